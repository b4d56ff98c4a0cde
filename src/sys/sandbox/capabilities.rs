//! Capabilities (capabilities(7)) of the calling thread.

use caps::{CapSet, Capability, CapsHashSet};
use std::io;

/// Keeps those of `wanted` that the thread may have, in force, and no other in any set. Gives the names of the kept.
pub(super) fn keep(wanted: &[Capability]) -> io::Result<Vec<&'static str>> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = wanted.iter().copied().filter(|wanted| permitted.contains(wanted)).collect();
    let set = |set, to: &CapsHashSet| caps::set(None, set, to).map_err(io::Error::other);
    // In this order each is a part of the next. The ambient set goes with the inheritable one.
    set(CapSet::Inheritable, &CapsHashSet::new())?;
    set(CapSet::Effective, &kept)?;
    set(CapSet::Permitted, &kept)?;
    Ok(wanted.iter().filter(|wanted| kept.contains(wanted)).map(name).collect())
}

/// As people say it.
fn name(of: &Capability) -> &'static str {
    match of {
        Capability::CAP_NET_ADMIN => "net_admin",
        Capability::CAP_SYS_NICE => "sys_nice",
        _ => "another",
    }
}

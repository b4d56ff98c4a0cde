//! Settings of one interface in /proc/sys/net, of the network namespace the calling thread is in.

use std::fs;
use std::io;

/// What the link's interface is to the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its carrier comes and goes with the peer.
    pub follows_peer: bool,
    /// It is a port of a bridge.
    pub bridge_port: bool,
}

/// The settings an interface of this role is to have, as paths below /proc/sys/net and their values (ip-sysctl of the kernel's
/// documentation), from the time before it is up.
///
/// Nobody at the far end of the link is a router of this machine: `accept_ra`, `autoconf` and `accept_redirects` are off. IPv4 redirects are
/// also heeded on a host that forwards nothing as long as conf/all/accept_redirects is on, but never for a route without a
/// gateway, and those into the link have none.
///
/// The kernel passes over routes into an interface without a carrier, as if they were not there, where
/// `ignore_routes_with_linkdown` is on: another route to the same place is taken.
///
/// A bridge's port has no business of its own on the wire: IPv6 would greet those at the far end, and never hear them.
#[must_use]
pub fn desired(interface: &str, role: Role) -> Vec<(String, &'static str)> {
    let mut settings = vec![
        ("ipv4", "accept_redirects", "0"),
        ("ipv6", "accept_ra", "0"),
        ("ipv6", "autoconf", "0"),
        ("ipv6", "accept_redirects", "0"),
    ];
    if role.follows_peer {
        settings.push(("ipv4", "ignore_routes_with_linkdown", "1"));
        settings.push(("ipv6", "ignore_routes_with_linkdown", "1"));
    }
    if role.bridge_port {
        settings.push(("ipv6", "disable_ipv6", "1"));
    }
    let named = |(family, name, value)| (format!("{family}/conf/{interface}/{name}"), value);
    settings.into_iter().map(named).collect()
}

/// Writes a setting at a path below /proc/sys/net. One of IPv6 that is not there is none: IPv6 is off.
///
/// # Errors
/// `EROFS` or `EACCES` where /proc/sys may not be written, as in some containers; `NotFound` for a setting this kernel does not have.
pub fn set(path: &str, value: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/{path}"), value) {
        Err(error) if path.starts_with("ipv6/") && error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// The interfaces at which IPv4 packets are dropped whose answers would leave by another one (`rp_filter` is 1; of an interface's and
/// that of `all` the higher counts).
pub fn strictly_filtered() -> Vec<String> {
    let folder = "/proc/sys/net/ipv4/conf";
    let value = |name: &str| fs::read_to_string(format!("{folder}/{name}/rp_filter")).map(|text| text.trim().parse());
    let of = |name: &str| value(name).ok().and_then(Result::ok).unwrap_or(0);
    let all: u8 = of("all");
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| !["all", "default", "lo"].contains(&name.as_str()) && of(name).max(all) == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_own_network, shell};

    #[test]
    fn an_interface_gets_the_settings_of_its_role() {
        in_own_network(|| {
            shell("ip link add left type veth peer name right");
            for (role, count) in [
                (Role { follows_peer: false, bridge_port: false }, 4),
                (Role { follows_peer: true, bridge_port: true }, 7),
            ] {
                let settings = desired("left", role);
                assert_eq!(settings.len(), count);
                for (path, value) in settings {
                    set(&path, value).unwrap();
                    assert_eq!(fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim(), value, "{path}");
                }
            }
            assert!(set("ipv4/conf/left/no_such_thing", "1").is_err());
        });
    }
}

//! Settings of one interface in /proc/sys/net, of the network namespace the calling thread is in.

use std::fs;
use std::io;

/// Has the kernel pass over routes into an interface while that has no carrier, as if they were not there: another route to the
/// same place is taken. It does not by itself (`ignore_routes_with_linkdown`, ip-sysctl of the kernel's documentation).
///
/// # Errors
/// `EROFS` or `EACCES` where /proc/sys may not be written, as in some containers. That IPv6 is off is none.
pub fn ignore_routes_with_linkdown(interface: &str) -> io::Result<()> {
    for family in ["ipv4", "ipv6"] {
        match set(family, interface, "ignore_routes_with_linkdown") {
            Err(error) if family == "ipv6" && error.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    Ok(())
}

/// Takes IPv6 off the interface.
///
/// # Errors
/// As above; `NotFound` where the kernel has none.
pub fn disable_ipv6(interface: &str) -> io::Result<()> {
    set("ipv6", interface, "disable_ipv6")
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

fn set(family: &str, interface: &str, name: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{name}"), "1")
}

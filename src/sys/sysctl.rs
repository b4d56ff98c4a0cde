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

fn set(family: &str, interface: &str, name: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{name}"), "1")
}

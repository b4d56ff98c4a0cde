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
        match fs::write(format!("/proc/sys/net/{family}/conf/{interface}/ignore_routes_with_linkdown"), "1") {
            Err(error) if family == "ipv6" && error.kind() == io::ErrorKind::NotFound => {}
            written => written?,
        }
    }
    Ok(())
}

//! The kernel's multicast routing table (linux/mroute.h): one group from one interface to another.

#![allow(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;
const MRT_INIT: libc::c_int = 200;
const MRT_ADD_VIF: libc::c_int = 202;
const MRT_ADD_MFC: libc::c_int = 204;
const VIFF_USE_IFINDEX: u8 = 8;
const MAXVIFS: usize = 32;

/// `struct vifctl`
#[repr(C)]
struct Vif {
    number: u16,
    flags: u8,
    threshold: u8,
    rate_limit: u32,
    index: u32,
    remote: u32,
}

/// `struct mfcctl`
#[repr(C)]
struct Entry {
    origin: [u8; 4],
    group: [u8; 4],
    parent: u16,
    ttls: [u8; MAXVIFS],
    counts: [u32; 3],
    expire: i32,
}

/// Has the calling thread's network route `group` from `origin`, which comes in by the one interface, out by the other, for as
/// long as what is returned lives.
pub fn route(origin: Ipv4Addr, group: Ipv4Addr, [from, to]: [u32; 2]) -> OwnedFd {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_IGMP) };
    assert!(fd >= 0, "a raw IGMP socket: {}", io::Error::last_os_error());
    // SAFETY: it was opened above and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&fd, MRT_INIT, &1_i32);
    for (number, index) in [(0, from), (1, to)] {
        set(&fd, MRT_ADD_VIF, &Vif { number, flags: VIFF_USE_IFINDEX, threshold: 1, rate_limit: 0, index, remote: 0 });
    }
    let mut ttls = [0; MAXVIFS];
    ttls[1] = 1;
    let (origin, group) = (origin.octets(), group.octets());
    set(&fd, MRT_ADD_MFC, &Entry { origin, group, parent: 0, ttls, counts: [0; 3], expire: 0 });
    fd
}

fn set<T>(fd: &OwnedFd, option: libc::c_int, value: &T) {
    let (pointer, length) = ((&raw const *value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `pointer` is to a live value of `length` bytes, laid out as linux/mroute.h has it.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_IP, option, pointer, length) };
    assert_eq!(result, 0, "multicast routing option {option}: {}", io::Error::last_os_error());
}

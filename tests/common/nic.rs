//! What only an ioctl or a bare socket option tells and sets: an interface's offloads, what a packet socket has lost.

#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::libc;

/// `struct ethtool_value` (linux/ethtool.h).
#[repr(C)]
struct Setting {
    command: u32,
    value: u32,
}

/// ETHTOOL_SRXCSUM, STXCSUM, SSG, STSO, SGSO and SGRO. UDP's segmentation has no command of its own and goes with GSO.
const OFFLOADS: [u32; 6] = [0x15, 0x17, 0x19, 0x1f, 0x24, 0x2c];

/// Switches every offload of an interface off. To be called in its network.
pub fn disable_offloads(interface: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for command in OFFLOADS {
        let mut setting = Setting { command, value: 0 };
        // SAFETY: all zeros is an `ifreq` with an empty name.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        assert!(interface.len() < request.ifr_name.len());
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut setting).cast();
        // SAFETY: the request points to a setting, as SIOCETHTOOL wants it; both outlive the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        assert_eq!(result, 0, "offload {command:#x} of {interface}: {}", io::Error::last_os_error());
    }
}

/// How many packets a packet socket has had no room for since this was last asked (`PACKET_STATISTICS`, `man 7 packet`).
pub fn lost(packet_socket: impl AsFd) -> u32 {
    let fd = packet_socket.as_fd().as_raw_fd();
    // Packets seen, packets lost.
    let mut counts = [0_u32; 2];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `counts`, and `length` itself; both outlive the call.
    let result = unsafe {
        let counts = counts.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, counts, &raw mut length)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    counts[1]
}

/// Sets an option of a socket that is a number.
pub fn set_int(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    let (pointer, length) = ((&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `pointer` is to a live integer of `length` bytes.
    let result = unsafe { libc::setsockopt(fd, level, option, pointer, length) };
    assert_eq!(result, 0, "option {option}: {}", io::Error::last_os_error());
}

//! Receiving in batches, each datagram or run of them with the addresses it came from and to.

use super::socket_addr;
use crate::sys::cmsg::{self, Control};
use libc::{c_uint, iovec, mmsghdr, msghdr, sockaddr_storage};
use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A received datagram, or a run of them from one peer that came as one: all but the bytes, which lie where
/// [`ReceiveBatch::receive`] was told to put them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its length in bytes, as far as there was room; of all of a run together.
    pub length: usize,
    /// Bytes in each datagram of a run, of which the last may have fewer; without `UDP_GRO` no less than `length`.
    /// Never 0: `chunks_mut` takes it.
    pub segment: usize,
    /// Whether it was longer than the room for it, and the rest is lost.
    pub truncated: bool,
    /// Where it came from.
    pub peer: SocketAddr,
    /// The address of this machine it was sent to.
    pub local: Option<IpAddr>,
    /// The traffic class it came with (TOS in IPv4): DSCP and ECN.
    pub class: u8,
}

/// Lengths as recvmsg(2) wants them before each call. It points into all three arguments.
fn receive_header(piece: &mut iovec, name: &mut sockaddr_storage, control: &mut Control) -> msghdr {
    // SAFETY: zeros are a valid `msghdr`; it has private padding on some targets, so there is no literal for it.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut *name).cast();
    message.msg_namelen = size_of::<sockaddr_storage>() as u32;
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr();
    message.msg_controllen = Control::SIZE as _;
    message
}

/// What recvmmsg(2) needs for a batch, allocated once and used over and over by one thread.
pub struct ReceiveBatch {
    messages: Box<[mmsghdr]>,
    pieces: Box<[iovec]>,
    names: Box<[sockaddr_storage]>,
    controls: Box<[Control]>,
    /// How many of them the last call filled.
    filled: usize,
}

// SAFETY: of the pointers in it those into `names` and `controls` point to memory it owns on the heap, which moves with
// it; those to the caller's rooms are not followed after `receive` returns.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    /// For batches of up to `size` rooms.
    pub fn new(size: usize) -> Self {
        // SAFETY: zeros are valid for all three, as integers and null pointers.
        let (message, piece, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        ReceiveBatch {
            messages: vec![message; size].into(),
            pieces: vec![piece; size].into(),
            names: vec![name; size].into(),
            controls: vec![Control::EMPTY; size].into(),
            filled: 0,
        }
    }

    /// Takes what `queue` holds, a [`UdpSocket`](super::UdpSocket) or its door, one datagram or run to each room in order, and
    /// gives how many rooms it filled: none rather than wait.
    ///
    /// # Errors
    /// As recvmmsg(2). ICMP-born errors (`ECONNREFUSED`, `EHOSTUNREACH`…) say nothing about the socket: go on. Of
    /// the others [`is_fatal`](super::is_fatal) tells those after which there is no going on.
    pub fn receive<'a>(
        &mut self,
        queue: BorrowedFd<'_>,
        rooms: impl Iterator<Item = &'a mut [u8]>,
    ) -> io::Result<usize> {
        self.filled = 0;
        let mut count = 0;
        let parts = self.messages.iter_mut().zip(&mut self.pieces).zip(&mut self.names).zip(&mut self.controls);
        for ((((message, piece), name), control), room) in parts.zip(rooms) {
            *piece = iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            message.msg_hdr = receive_header(piece, name, control);
            count += 1;
        }
        let (fd, headers) = (queue.as_raw_fd(), self.messages.as_mut_ptr());
        loop {
            // SAFETY: the first `count` headers were written above. They point to pieces, names and controls, which `self`
            // owns, and by the pieces to the rooms, which are borrowed mutably for 'a, that is beyond this call,
            // and do not overlap. No timeout is given.
            let received =
                unsafe { libc::recvmmsg(fd, headers, count as c_uint, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
            match Errno::result(received) {
                Ok(received) => {
                    self.filled = received as usize;
                    return Ok(self.filled);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the last call received, in the order of the rooms. A datagram from an address that is no IP address is left
    /// out; its place counts.
    pub fn datagrams(&self) -> impl Iterator<Item = (usize, Datagram)> {
        (0..self.filled).filter_map(|n| Some((n, self.datagram(n)?)))
    }

    fn datagram(&self, n: usize) -> Option<Datagram> {
        let message = &self.messages[n];
        let header = &message.msg_hdr;
        // SAFETY: the name is a whole `sockaddr_storage` of ours, of which the kernel wrote `msg_namelen` bytes.
        let name = unsafe { SockaddrStorage::from_raw((&raw const self.names[n]).cast(), Some(header.msg_namelen)) };
        // SAFETY: the kernel wrote `header`, and its control buffer is `self.controls[n]`, alive and unmoved.
        let told = unsafe { cmsg::told(header) };
        let length = message.msg_len as usize;
        Some(Datagram {
            length,
            segment: told.segment.unwrap_or(length).max(1),
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            peer: socket_addr(&name?)?,
            local: told.local,
            class: told.class,
        })
    }
}

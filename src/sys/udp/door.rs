//! The door: a second queue on a socket's port, for whatever does not come from an address of the peer's, or does not look as
//! what the peer sends.
//!
//! Who floods a port from elsewhere fills the door's queue, not the one the peer's datagrams wait in, and how fast the door is
//! looked at is the receiver's choice: what the queue has no room for costs the kernel about as much as a closed port. It
//! is a second socket of the same port (`SO_REUSEPORT`, socket(7)), with a classic BPF program that says which of the two a
//! datagram goes to. By its looks alone: nothing here is a proof of anything, and who uses the peer's address and knows what his
//! datagrams look like comes in by the peer's queue.

use super::{DOOR_BUFFER, UdpSocket, configure, new_socket, set_gro};
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_LEN,
    BPF_MSH, BPF_RET, BPF_RSH, BPF_W, SKF_NET_OFF, sock_filter, sock_fprog,
};
use nix::errno::Errno;
use nix::sys::socket::{self, SockaddrStorage, sockopt};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The sockets of the port, by the order in which they were bound to it.
const PEER: u32 = 0;
const DOOR: u32 = 1;

/// The most guests of one socket.
pub const MAX_GUESTS: usize = 4;

/// Where an IPv4 header has its source address (RFC 791, section 3.1).
const V4_SOURCE: u32 = 12;
/// Where an IPv6 header names the next one, has its source address, and ends (RFC 8200, section 3).
const V6_NEXT: u32 = 6;
const V6_SOURCE: u32 = 8;
const V6_HEADER: u32 = 40;

/// A second socket on the port of `of`. All that comes goes there until [`admit`] says otherwise.
fn open(of: &UdpSocket) -> io::Result<OwnedFd> {
    let address = of.local_addr()?;
    let door = new_socket(address)?;
    configure(&door, address, DOOR_BUFFER)?;
    of.ties.apply(&door).map_err(io::Error::other)?;
    // Not before the first one is bound: it is to fail where another process has the port.
    for fd in [&of.fd, &door] {
        socket::setsockopt(fd, sockopt::ReusePort, &true)?;
    }
    socket::bind(door.as_raw_fd(), &SockaddrStorage::from(address))?;
    admit(&of.fd, &[], &ANY)?;
    Ok(door)
}

/// Lets what is from one of `guests` and has their `looks` to the socket itself, and all else to its door.
fn admit(port: &OwnedFd, guests: &[SocketAddr], looks: &Looks) -> io::Result<()> {
    let mut code = program(guests, looks);
    let program = sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    let (pointer, length) = ((&raw const program).cast(), size_of::<sock_fprog>() as u32);
    // SAFETY: the descriptor is open, and `pointer` is to a live `sock_fprog` of `length` bytes, which points to `len`
    // live instructions; the kernel copies them before it returns.
    let result = unsafe {
        libc::setsockopt(port.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, pointer, length)
    };
    Ok(Errno::result(result).map(drop)?)
}

/// What is the same in all datagrams that are not for the door. The first one of a run speaks for all.
#[derive(Debug, PartialEq, Eq)]
pub struct Looks {
    /// Bytes, at least.
    pub length: u32,
    /// Words of four bytes within that length.
    pub words: &'static [Word],
}

/// Four bytes of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub struct Word {
    /// Where they begin.
    pub at: u32,
    /// Which of their bits count.
    pub mask: u32,
    /// What those are, in network order.
    pub value: u32,
}

/// Nothing is asked of a datagram.
const ANY: Looks = Looks { length: 0, words: &[] };

/// What must be found where.
struct Check {
    load: Vec<sock_filter>,
    /// How that is compared with the value: `BPF_JEQ` or `BPF_JGE`.
    how: u32,
    value: u32,
}

/// A program that gives [`PEER`] for what is from one of `guests` and has their `looks`, and [`DOOR`] for all else.
fn program(guests: &[SocketAddr], looks: &Looks) -> Vec<sock_filter> {
    let any = guests.iter().take(MAX_GUESTS).flat_map(|guest| when(from(*guest), vec![verdict(PEER)])).collect();
    let mut code = when(checks(looks), any);
    code.push(verdict(DOOR));
    code
}

/// What does `then` if all `checks` hold, and else goes on behind it. It jumps over what four guests take at most, so that a byte is
/// enough to say how far.
fn when(checks: Vec<Check>, then: Vec<sock_filter>) -> Vec<sock_filter> {
    let mut code = then;
    for Check { mut load, how, value } in checks.into_iter().rev() {
        load.push(sock_filter { jf: code.len() as u8, ..step(BPF_JMP | how | BPF_K, value) });
        code.splice(..0, load);
    }
    code
}

fn verdict(which: u32) -> sock_filter {
    step(BPF_RET | BPF_K, which)
}

/// The length first: a load from beyond the end would end the program with 0, which is [`PEER`].
fn checks(looks: &Looks) -> Vec<Check> {
    let length = Check { load: vec![step(BPF_LD | BPF_W | BPF_LEN, 0)], how: BPF_JGE, value: looks.length };
    let word = |word: &Word| {
        let load = vec![step(BPF_LD | BPF_W | BPF_ABS, word.at), step(BPF_ALU | BPF_AND | BPF_K, word.mask)];
        Check { load, how: BPF_JEQ, value: word.value }
    };
    [length].into_iter().chain(looks.words.iter().map(word)).collect()
}

fn from(peer: SocketAddr) -> Vec<Check> {
    let is = |load, value| Check { load, how: BPF_JEQ, value };
    let version = |value| is(vec![header(BPF_B, 0), step(BPF_ALU | BPF_RSH | BPF_K, 4)], value);
    let word = |at, bytes: &[u8]| is(vec![header(BPF_W, at)], number(bytes));
    let port = u32::from(peer.port());
    match peer.ip().to_canonical() {
        IpAddr::V4(source) => {
            // X = the header's length, which has four bits of its first byte.
            let length = step(BPF_LDX | BPF_B | BPF_MSH, offset(0));
            let behind = step(BPF_LD | BPF_H | BPF_IND, offset(0));
            vec![version(4), word(V4_SOURCE, &source.octets()), is(vec![length, behind], port)]
        }
        IpAddr::V6(source) => {
            let udp = is(vec![header(BPF_B, V6_NEXT)], libc::IPPROTO_UDP as u32);
            let source = source.octets();
            let words = source.chunks_exact(4).zip((V6_SOURCE..).step_by(4)).map(|(bytes, at)| word(at, bytes));
            let port = is(vec![header(BPF_H, V6_HEADER)], port);
            [version(6), udp].into_iter().chain(words).chain([port]).collect()
        }
    }
}

/// Big-endian, as a load gives it.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Loads what the IP header has at `at`.
fn header(size: u32, at: u32) -> sock_filter {
    step(BPF_LD | size | BPF_ABS, offset(at))
}

/// How a program names a place in the IP header.
fn offset(at: u32) -> u32 {
    (SKF_NET_OFF as u32).wrapping_add(at)
}

fn step(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

impl UdpSocket {
    /// Opens the door. Once; without one, all that comes to the port comes by the socket itself.
    ///
    /// # Errors
    /// Where the kernel does not have it (Linux 4.5): the socket is as it was.
    pub fn open_door(&mut self) -> io::Result<()> {
        let door = open(self)?;
        set_gro(&door, self.offloads().gro)?;
        self.door = Some(door);
        Ok(())
    }

    /// What is from anyone but a guest is to be received here, if anywhere.
    pub fn door(&self) -> Option<BorrowedFd<'_>> {
        self.door.as_ref().map(AsFd::as_fd)
    }

    /// Has what is from one of these guests and has their looks, and nothing else, come by the socket itself from now on; of the
    /// guests the first [`MAX_GUESTS`]. What is queued stays where it is. Without a door it changes nothing.
    ///
    /// # Errors
    /// When the kernel is out of memory: it stays as it was.
    pub fn admit(&self, guests: &[SocketAddr], looks: &Looks) -> io::Result<()> {
        if self.door.is_some() { admit(&self.fd, guests, looks) } else { Ok(()) }
    }
}

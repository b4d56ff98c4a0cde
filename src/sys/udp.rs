//! UDP sockets as a tunnel needs them: batches of datagrams, each with the local address it came to or leaves from.
//!
//! No path, session or counter is known here. Addresses that come out are canonical: IPv4 is never v4-mapped, whatever
//! the family of the socket.

mod door;
mod probe;
mod receive;
mod send;
mod ties;

pub use door::{Looks, MAX_GUESTS, Word};
pub use probe::{ErrorProbe, Unreachable};
pub use receive::{Datagram, ReceiveBatch};
pub use send::{Run, SendBatch, SendReport};
pub use ties::Ties;

use super::offloads::UdpOffloads;
use libc::c_int;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes asked for the send buffer: about 15 ms of a gigabit. (The kernel counts its own overhead in, and doubles the figure
/// for it.)
const SEND_BUFFER: usize = 2 << 20;

/// Bytes asked for the receive buffer, so that a loop that is not scheduled for some time slices loses nothing. A small
/// datagram takes more than ten times its size of it: this is 70 ms of a flood of 300,000 a second.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The same for the door: what strangers flood it with is not to be old when it is looked at, and it is as much as a gigabit
/// brings in 16 ms, from a peer whose address has changed.
const DOOR_BUFFER: usize = 2 << 20;

/// The TTL or hop limit of every datagram, whatever the system's default and that of the packet inside: the length of the way
/// is the link's own business (RFC 2003, section 3.1).
const HOPS: c_int = 64;

/// How long a batch waits for room in the send buffer before the rest of it is dropped, in milliseconds.
const SEND_WAIT_MS: u16 = 10;

/// Datagrams in one message without segmentation.
const PLAIN: usize = 1;

/// The most datagrams in one message with it: `UDP_MAX_SEGMENTS` since Linux 6.9.
const MAX_SEGMENTS: usize = 128;

/// A socket that could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has the port.
    #[error("UDP port {} is in use on {}: another tieline or program listens there; stop it, or set another port at [local] listen", .0.port(), .0.ip())]
    InUse(SocketAddr),
    /// No interface has the address.
    #[error("this machine has no address {}: set one it has, or [::]:{}, at [local] listen", .0.ip(), .0.port())]
    NoSuchAddress(SocketAddr),
    /// A port below the limit for ordinary users.
    #[error(
        "not allowed to bind {0}: ports this low need root or CAP_NET_BIND_SERVICE; set a higher one at [local] listen"
    )]
    NotPermitted(SocketAddr),
    /// There is no such interface to bind to.
    #[error("this machine has no interface {0}: set one it has at [local] bind, or take that line out")]
    NoSuchInterface(String),
    /// What config asks for beyond the address is refused.
    #[error("cannot {0}: {why}; this needs root or {1}", why = crate::os_error::in_words(.2))]
    NotTied(&'static str, &'static str, #[source] io::Error),
    /// The kernel runs without IPv6 (or IPv4).
    #[error("this kernel runs without the family of {0}: set an address of the other one at [local] listen")]
    NoFamily(SocketAddr),
    /// Anything else the system said.
    #[error("cannot bind UDP {0}: {why}", why = crate::os_error::in_words(.1))]
    Other(SocketAddr, #[source] io::Error),
}

/// An unconnected, non-blocking UDP socket.
///
/// All calls take `&self`: the kernel serialises them, so one socket serves a sending and a receiving thread.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    /// Where what is not from the peer comes, if that is told apart.
    door: Option<OwnedFd>,
    ties: Ties,
    is_v6: bool,
    port: u16,
    /// The most datagrams the kernel takes in one message, as far as is known.
    run_limit: AtomicUsize,
    gro: AtomicBool,
}

impl UdpSocket {
    /// Opens a socket on `address`, without offloads; `[::]:p` takes IPv4 too.
    ///
    /// Datagrams are sent with "don't fragment" and never by a path MTU the kernel learned from ICMP, which anyone can
    /// forge (`*_PMTUDISC_PROBE`).
    ///
    /// # Errors
    /// As [`BindError`] says.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        Self::bind_tied(address, &Ties::default())
    }

    /// The same, tied.
    ///
    /// # Errors
    /// As [`BindError`] says.
    pub fn bind_tied(address: SocketAddr, ties: &Ties) -> Result<Self, BindError> {
        let at = |error| bind_error(address, error);
        let fd = new_socket(address).map_err(at)?;
        configure(&fd, address, RECEIVE_BUFFER).map_err(at)?;
        ties.apply(&fd)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(at)?;
        let (run_limit, gro) = (AtomicUsize::new(PLAIN), AtomicBool::new(false));
        let (ties, is_v6) = (ties.clone(), address.is_ipv6());
        let mut socket = UdpSocket { fd, door: None, ties, is_v6, port: address.port(), run_limit, gro };
        if let Ok(bound) = socket.local_addr() {
            socket.port = bound.port();
        }
        Ok(socket)
    }

    /// Opens a socket on any address and a port of the kernel's choice: both families, or IPv4 alone where IPv6 is off.
    ///
    /// # Errors
    /// As [`BindError`] says.
    pub fn bind_any(ties: &Ties) -> Result<Self, BindError> {
        match Self::bind_tied((Ipv6Addr::UNSPECIFIED, 0).into(), ties) {
            Err(BindError::NoFamily(_) | BindError::NoSuchAddress(_)) => {
                Self::bind_tied((Ipv4Addr::UNSPECIFIED, 0).into(), ties)
            }
            bound => bound,
        }
    }

    /// The address and port it is bound to.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let name: SockaddrStorage = socket::getsockname(self.fd.as_raw_fd())?;
        socket_addr(&name).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The port it is bound to, as it was learned then.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Has each datagram carry this traffic class (TOS in IPv4) from now on, but for what is sent with another.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_class(&self, class: u8) -> io::Result<()> {
        set_int(&self.fd, libc::IPPROTO_IP, libc::IP_TOS, class.into())?;
        if self.is_v6 {
            set_int(&self.fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class.into())?;
        }
        Ok(())
    }

    /// Turns on those of the offloads wished for that this kernel has, the others off, and says which are on.
    ///
    /// With `gro`, [`ReceiveBatch::receive`] wants rooms for 65,535 bytes, and what it fills them with may be several
    /// datagrams. `segment` is what the kernel knows, not yet what the way to the peer allows: see
    /// [`SendBatch::send`].
    pub fn set_offloads(&self, wish: UdpOffloads) -> UdpOffloads {
        // A size of 0 asks for nothing for the socket, only whether the kernel knows the option; each run has its own.
        let segment = wish.segment && set_int(&self.fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        self.run_limit.store(if segment { MAX_SEGMENTS } else { PLAIN }, Ordering::Relaxed);
        // Off is how it begins: a kernel that refuses that does not know the option either.
        let set = set_gro(&self.fd, wish.gro).is_ok();
        self.gro.store(wish.gro && set, Ordering::Relaxed);
        self.offloads()
    }

    /// What is on now: segmentation goes off when the kernel refuses a run that it takes as single datagrams.
    pub fn offloads(&self) -> UdpOffloads {
        UdpOffloads { segment: self.run_limit() > PLAIN, gro: self.gro.load(Ordering::Relaxed) }
    }

    fn run_limit(&self) -> usize {
        self.run_limit.load(Ordering::Relaxed)
    }

    /// Remembers what the kernel took after it had refused more.
    fn limit_runs(&self, datagrams: usize) {
        self.run_limit.fetch_min(datagrams, Ordering::Relaxed);
    }

    /// Waits until the send buffer has room, for [`SEND_WAIT_MS`] at most, and says whether it has.
    fn wait_for_room(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        let _ = poll(&mut fds, PollTimeout::from(SEND_WAIT_MS));
        fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn new_socket(address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}

/// What must be so before it is bound to `address`.
fn configure(fd: &OwnedFd, address: SocketAddr, receive_buffer: usize) -> nix::Result<()> {
    // Names and numbers from <linux/in.h> and <linux/in6.h>; libc has those of both families.
    if address.is_ipv6() {
        socket::setsockopt(fd, sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
        socket::setsockopt(fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, HOPS)?;
    } else {
        socket::setsockopt(fd, sockopt::Ipv4PacketInfo, &true)?;
    }
    // On a dual-stack socket these are what governs the IPv4 half.
    set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    set_int(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    set_int(fd, libc::IPPROTO_IP, libc::IP_TTL, HOPS)?;
    // FORCE goes beyond the system's limit and needs CAP_NET_ADMIN; without it the limit is what we get.
    socket::setsockopt(fd, sockopt::RcvBufForce, &receive_buffer)
        .or_else(|_| socket::setsockopt(fd, sockopt::RcvBuf, &receive_buffer))?;
    socket::setsockopt(fd, sockopt::SndBufForce, &SEND_BUFFER)
        .or_else(|_| socket::setsockopt(fd, sockopt::SndBuf, &SEND_BUFFER))
}

fn set_int(fd: &OwnedFd, level: c_int, option: c_int, value: c_int) -> nix::Result<()> {
    let (pointer, length) = ((&raw const value).cast(), size_of::<c_int>() as u32);
    // SAFETY: the descriptor is open, and `pointer` is to a live integer of `length` bytes.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, pointer, length) };
    Errno::result(result).map(drop)
}

fn set_gro(fd: &OwnedFd, on: bool) -> nix::Result<()> {
    set_int(fd, libc::SOL_UDP, libc::UDP_GRO, on.into())
}

fn bind_error(address: SocketAddr, error: Errno) -> BindError {
    match error {
        Errno::EADDRINUSE => BindError::InUse(address),
        Errno::EADDRNOTAVAIL => BindError::NoSuchAddress(address),
        Errno::EACCES | Errno::EPERM => BindError::NotPermitted(address),
        Errno::EAFNOSUPPORT => BindError::NoFamily(address),
        error => BindError::Other(address, error.into()),
    }
}

/// Whether a failed send says that its local address is no longer good: the address was taken off the machine, or
/// there is no way from it to the peer.
pub fn unpins(error: &io::Error) -> bool {
    const BLAME: [i32; 3] = [libc::EINVAL, libc::EADDRNOTAVAIL, libc::ENETUNREACH];
    error.raw_os_error().is_some_and(|code| BLAME.contains(&code))
}

/// Whether a failed send says that the datagram is larger than the interface it would leave by takes.
pub fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// Whether an error means that the descriptor itself is of no more use, and not one datagram or path.
pub fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT))
}

fn socket_addr(name: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = name.as_sockaddr_in() {
        return Some(SocketAddr::from(*v4));
    }
    let v6 = SocketAddrV6::from(*name.as_sockaddr_in6()?);
    Some(match v6.ip().to_ipv4_mapped() {
        Some(v4) => (v4, v6.port()).into(),
        // A flow label may be part of what the kernel reports, but is no part of who the peer is.
        None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
    })
}

#[cfg(test)]
mod tests;

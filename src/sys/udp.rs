//! UDP sockets as a tunnel needs them: batches of datagrams, each with the local address it came to or leaves from.
//!
//! No path, session or counter is known here. Addresses that come out are canonical: IPv4 is never v4-mapped, whatever
//! the family of the socket.

use super::cmsg::{Control, local_address};
use libc::{c_int, c_uint, iovec, mmsghdr, msghdr, sockaddr_storage};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SetSockOpt, SockFlag, SockType, SockaddrLike, SockaddrStorage, sockopt};
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes asked for each socket buffer: about 15 ms of a gigabit, so that a loop that is not scheduled for a moment
/// loses nothing, and yet no queue to speak of. (The kernel counts its own overhead in, and doubles the figure for it.)
const BUFFER: usize = 2 << 20;

/// How long a batch waits for room in the send buffer before the rest of it is dropped, in milliseconds.
const SEND_WAIT_MS: u16 = 10;

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
    /// The kernel runs without IPv6 (or IPv4).
    #[error("this kernel runs without the family of {0}: set an address of the other one at [local] listen")]
    NoFamily(SocketAddr),
    /// Anything else the system said.
    #[error("cannot bind UDP {0}: {1}")]
    Other(SocketAddr, #[source] io::Error),
}

/// An unconnected, non-blocking UDP socket.
///
/// All calls take `&self`: the kernel serialises them, so one socket serves a sending and a receiving thread.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    is_v6: bool,
}

impl UdpSocket {
    /// Opens a socket on `address`; `[::]:p` takes IPv4 too.
    ///
    /// Datagrams are sent with "don't fragment" and never by a path MTU the kernel learned from ICMP, which anyone can
    /// forge (`*_PMTUDISC_PROBE`).
    ///
    /// # Errors
    /// As [`BindError`] says.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(family, SockType::Datagram, flags, None).map_err(|e| bind_error(address, e))?;
        let socket = UdpSocket { fd, is_v6: address.is_ipv6() };
        socket.configure(address).map_err(|e| bind_error(address, e))?;
        let name = SockaddrStorage::from(address);
        socket::bind(socket.fd.as_raw_fd(), &name).map_err(|e| bind_error(address, e))?;
        Ok(socket)
    }

    /// Opens a socket on any address and a port of the kernel's choice: both families, or IPv4 alone where IPv6 is off.
    ///
    /// # Errors
    /// As [`BindError`] says.
    pub fn bind_any() -> Result<Self, BindError> {
        match Self::bind((Ipv6Addr::UNSPECIFIED, 0).into()) {
            Err(BindError::NoFamily(_) | BindError::NoSuchAddress(_)) => Self::bind((Ipv4Addr::UNSPECIFIED, 0).into()),
            bound => bound,
        }
    }

    fn configure(&self, address: SocketAddr) -> nix::Result<()> {
        // Names and numbers from <linux/in.h> and <linux/in6.h>; libc has those of both families.
        if self.is_v6 {
            self.set(sockopt::Ipv6V6Only, &!address.ip().is_unspecified())?;
            self.set(sockopt::Ipv6RecvPacketInfo, &true)?;
            self.set_int(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        } else {
            self.set(sockopt::Ipv4PacketInfo, &true)?;
        }
        // On a dual-stack socket this is what governs the IPv4 half.
        self.set_int(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        // FORCE goes beyond the system's limit and needs CAP_NET_ADMIN; without it the limit is what we get.
        self.set(sockopt::RcvBufForce, &BUFFER).or_else(|_| self.set(sockopt::RcvBuf, &BUFFER))?;
        self.set(sockopt::SndBufForce, &BUFFER).or_else(|_| self.set(sockopt::SndBuf, &BUFFER))
    }

    fn set<O: SetSockOpt>(&self, option: O, value: &O::Val) -> nix::Result<()> {
        socket::setsockopt(&self.fd, option, value)
    }

    fn set_int(&self, level: c_int, option: c_int, value: c_int) -> nix::Result<()> {
        let (pointer, length) = ((&raw const value).cast(), size_of::<c_int>() as u32);
        // SAFETY: the descriptor is open, and `pointer` is to a live integer of `length` bytes.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, pointer, length) };
        Errno::result(result).map(drop)
    }

    /// The address and port it is bound to.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let name: SockaddrStorage = socket::getsockname(self.fd.as_raw_fd())?;
        socket_addr(&name).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Sends one datagram to `peer`, from `local` if that is given.
    ///
    /// # Errors
    /// As sendmsg(2), `WouldBlock` included: nothing was sent. [`unpins`] tells the ones that blame `local`.
    pub fn send_to(&self, datagram: &[u8], peer: SocketAddr, local: Option<IpAddr>) -> io::Result<()> {
        let mut header = MessageHeader::new(self.is_v6, peer, local)?;
        let mut piece = iovec_of(datagram);
        let mut message = header.message();
        message.msg_iov = &mut piece;
        loop {
            // SAFETY: `message` points to `header` and `piece`, and `piece` to `datagram`, all alive and unmoved until
            // the call returns; sendmsg only reads them.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, libc::MSG_DONTWAIT) };
            match Errno::result(sent) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
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

/// Whether an error means that the descriptor itself is of no more use, and not one datagram or path.
pub fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT))
}

/// Destination and source of what is sent, in the kernel's form.
struct MessageHeader {
    name: SockaddrStorage,
    control: Control,
    control_length: usize,
}

impl MessageHeader {
    fn new(socket_is_v6: bool, peer: SocketAddr, local: Option<IpAddr>) -> io::Result<Self> {
        let name = match (peer, socket_is_v6) {
            (SocketAddr::V4(peer), true) => SocketAddrV6::new(peer.ip().to_ipv6_mapped(), peer.port(), 0, 0).into(),
            (SocketAddr::V6(_), false) => return Err(Errno::EAFNOSUPPORT.into()),
            (peer, _) => peer,
        };
        // The kernel would read one family's bytes as the other's; what it says to nonsense is what we say.
        if local.is_some_and(|local| local.is_ipv4() != peer.is_ipv4()) {
            return Err(Errno::EINVAL.into());
        }
        let mut control = Control::EMPTY;
        let control_length = local.map_or(0, |local| control.pin(local, socket_is_v6));
        Ok(MessageHeader { name: name.into(), control, control_length })
    }

    /// The message header, still without the bytes to send. It points into `self`, which must stay where it is.
    fn message(&mut self) -> msghdr {
        // SAFETY: zeros are a valid `msghdr`; it has private padding on some targets, so there is no literal for it.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = self.name.as_ptr().cast_mut().cast();
        message.msg_namelen = self.name.len();
        message.msg_iovlen = 1;
        if self.control_length > 0 {
            message.msg_control = self.control.as_mut_ptr();
            message.msg_controllen = self.control_length as _;
        }
        message
    }
}

/// For sending only: the kernel writes nothing there.
fn iovec_of(bytes: &[u8]) -> iovec {
    iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
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

/// What became of one batch handed to [`SendBatch::send`].
#[derive(Debug, Default)]
pub struct SendReport {
    /// Datagrams the kernel took.
    pub sent: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Datagrams larger than the interface's MTU.
    pub too_big: usize,
    /// Datagrams dropped for any other reason.
    pub failed: usize,
    /// The last of those reasons.
    pub error: Option<io::Error>,
}

/// What sendmmsg(2) needs for a batch, allocated once and used over and over by one thread.
pub struct SendBatch {
    messages: Box<[mmsghdr]>,
    pieces: Box<[iovec]>,
}

// SAFETY: the pointers in it are written anew by each `send` and not read after it returns; between calls the memory is
// plain data.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// For batches of up to `size` datagrams.
    pub fn new(size: usize) -> Self {
        // SAFETY: zeros are valid for both, as integers and null pointers.
        let (message, piece) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        SendBatch { messages: vec![message; size].into(), pieces: vec![piece; size].into() }
    }

    /// Sends `datagrams` to `peer`, in order, from `local` if that is given; those beyond the batch's size count as failed.
    ///
    /// A datagram is sent once or dropped, and each one dropped is in the report. When the socket's buffer is full the
    /// batch waits for it, shortly: that holds up the loop, so the queue grows in front of the interface, where
    /// the kernel manages it, and not as loss behind the encryption. `ENOBUFS` names no moment to wait for:
    /// drop. A fault of the path, not of one datagram, drops the rest with it.
    pub fn send<'a>(
        &mut self,
        socket: &UdpSocket,
        peer: SocketAddr,
        local: Option<IpAddr>,
        mut datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> SendReport {
        let mut report = SendReport::default();
        let mut header = match MessageHeader::new(socket.is_v6, peer, local) {
            Ok(header) => header,
            Err(error) => {
                report.failed = datagrams.count();
                report.error = Some(error);
                return report;
            }
        };
        let template = header.message();
        let mut count = 0;
        for ((message, piece), datagram) in self.messages.iter_mut().zip(&mut self.pieces).zip(&mut datagrams) {
            *piece = iovec_of(datagram);
            message.msg_hdr = template;
            message.msg_hdr.msg_iov = piece;
            count += 1;
        }
        report.failed = datagrams.count();
        let mut next = 0;
        while next < count {
            match self.send_from(socket, next, count) {
                Ok(sent) => {
                    report.sent += sent;
                    let lengths = self.messages[next..next + sent].iter().map(|message| message.msg_len as usize);
                    report.bytes += lengths.sum::<usize>();
                    next += sent;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if socket.wait_for_room() => {}
                Err(error) => next = drop_some(&mut report, error, next, count),
            }
        }
        report
    }

    /// One sendmmsg(2) of the messages from `next` up to `count`; an error is about the first of them.
    fn send_from(&mut self, socket: &UdpSocket, next: usize, count: usize) -> nix::Result<usize> {
        let messages = &mut self.messages[next..count];
        let (fd, length) = (socket.fd.as_raw_fd(), messages.len() as c_uint);
        // SAFETY: `messages` has `length` headers, all written by `send`, whose header, pieces and datagrams are borrowed
        // until it returns; the kernel writes only the `msg_len` of each.
        let sent = unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), length, libc::MSG_DONTWAIT) };
        Errno::result(sent).map(|sent| sent as usize)
    }
}

/// Counts what an error costs and gives the index to go on from.
fn drop_some(report: &mut SendReport, error: Errno, next: usize, count: usize) -> usize {
    let dropped = match error {
        Errno::EMSGSIZE => {
            report.too_big += 1;
            return next + 1;
        }
        // These may concern this datagram alone: a firewall's rate limit, a moment without memory, an ICMP error
        // that some earlier datagram drew and this call only reports.
        Errno::EPERM | Errno::ENOBUFS | Errno::ENOMEM | Errno::ECONNREFUSED => 1,
        // All others, the full buffer included, would meet the next one too.
        _ => count - next,
    };
    report.failed += dropped;
    report.error = Some(error.into());
    next + dropped
}

/// A received datagram: all but its bytes, which lie where [`ReceiveBatch::receive`] was told to put them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its length in bytes, as far as there was room.
    pub length: usize,
    /// Whether it was longer than the room for it, and the rest is lost.
    pub truncated: bool,
    /// Where it came from.
    pub peer: SocketAddr,
    /// The address of this machine it was sent to.
    pub local: Option<IpAddr>,
}

/// Lengths as recvmsg(2) wants them before each call. It points into all three arguments.
fn receive_header(piece: &mut iovec, name: &mut sockaddr_storage, control: &mut Control) -> msghdr {
    // SAFETY: zeros are a valid `msghdr`, see `MessageHeader::message`.
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
    /// For batches of up to `size` datagrams.
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

    /// Takes what `socket` holds, one datagram to each room in order, and gives how many there were: none rather than
    /// wait.
    ///
    /// # Errors
    /// As recvmmsg(2). ICMP-born errors (`ECONNREFUSED`, `EHOSTUNREACH`…) say nothing about the socket: go on. Of
    /// the others [`is_fatal`] tells those after which there is no going on.
    pub fn receive<'a>(&mut self, socket: &UdpSocket, rooms: impl Iterator<Item = &'a mut [u8]>) -> io::Result<usize> {
        self.filled = 0;
        let mut count = 0;
        let parts = self.messages.iter_mut().zip(&mut self.pieces).zip(&mut self.names).zip(&mut self.controls);
        for ((((message, piece), name), control), room) in parts.zip(rooms) {
            *piece = iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
            message.msg_hdr = receive_header(piece, name, control);
            count += 1;
        }
        let (fd, headers) = (socket.fd.as_raw_fd(), self.messages.as_mut_ptr());
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
        Some(Datagram {
            length: message.msg_len as usize,
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            peer: socket_addr(&name?)?,
            // SAFETY: the kernel wrote `header`, and its control buffer is `self.controls[n]`, alive and unmoved.
            local: unsafe { local_address(header) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_own_network, shell};
    use std::time::{Duration, Instant};

    const ROOM: usize = 2000;

    fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(address.parse().unwrap()).unwrap()
    }

    /// `socket`'s port on loopback of the family of `like`.
    fn loopback(socket: &UdpSocket, like: IpAddr) -> SocketAddr {
        (like, socket.local_addr().unwrap().port()).into()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn receive(socket: &UdpSocket, want: usize) -> Vec<(Vec<u8>, Datagram)> {
        let (mut batch, mut all) = (ReceiveBatch::new(8), Vec::new());
        let deadline = Instant::now() + Duration::from_secs(5);
        while all.len() < want {
            assert!(Instant::now() < deadline, "{} of {want} datagrams came", all.len());
            let mut rooms = vec![[0u8; ROOM]; 8];
            let count = batch.receive(socket, rooms.iter_mut().map(|room| &mut room[..])).unwrap();
            assert_eq!(batch.datagrams().count(), count);
            all.extend(batch.datagrams().map(|(n, d)| (rooms[n][..d.length].to_vec(), d)));
        }
        all
    }

    fn send(from: &UdpSocket, to: SocketAddr, local: Option<IpAddr>, datagrams: &[&[u8]]) -> SendReport {
        SendBatch::new(8).send(from, to, local, datagrams.iter().copied())
    }

    /// Both directions between two sockets, by batch and by single send, pinned to `pin`.
    fn talk(a: &str, b: &str, target: &str, pin: &str) {
        let (a, b) = (bind(a), bind(b));
        let (target, pin) = (ip(target), ip(pin));
        let report = send(&a, loopback(&b, target), Some(pin), &[b"one", b"", b"three"]);
        assert!(report.error.is_none(), "{report:?}");
        assert_eq!((report.sent, report.bytes), (3, 8));
        a.send_to(b"four", loopback(&b, target), Some(pin)).unwrap();

        let got = receive(&b, 4);
        let bytes: Vec<_> = got.iter().map(|(bytes, _)| &bytes[..]).collect();
        assert_eq!(bytes, [&b"one"[..], b"", b"three", b"four"]);
        for (_, datagram) in &got {
            assert_eq!(datagram.peer, loopback(&a, pin));
            assert_eq!(datagram.local, Some(target));
            assert!(!datagram.truncated);
        }
        // The answer goes back on the path the datagram came by.
        let (_, came) = &got[0];
        b.send_to(b"back", came.peer, came.local).unwrap();
        let (bytes, back) = &receive(&a, 1)[0];
        assert_eq!(bytes, b"back");
        assert_eq!((back.peer, back.local), (loopback(&b, target), Some(pin)));
    }

    #[test]
    fn ipv4_keeps_both_addresses() {
        talk("0.0.0.0:0", "0.0.0.0:0", "127.0.0.1", "127.0.0.2");
    }

    #[test]
    fn ipv6_keeps_both_addresses() {
        talk("[::]:0", "[::]:0", "::1", "::1");
        talk("[::1]:0", "[::1]:0", "::1", "::1");
    }

    #[test]
    fn dual_stack_speaks_ipv4_and_never_shows_it_mapped() {
        talk("[::]:0", "0.0.0.0:0", "127.0.0.1", "127.0.0.2");
        talk("0.0.0.0:0", "[::]:0", "127.0.0.3", "127.0.0.1");
        talk("[::]:0", "[::]:0", "127.0.0.3", "127.0.0.2");
    }

    #[test]
    fn an_unpinned_send_leaves_the_choice_to_the_kernel() {
        let (a, b) = (bind("[::]:0"), bind("[::]:0"));
        for target in ["127.0.0.1", "::1"].map(ip) {
            assert_eq!(send(&a, loopback(&b, target), None, &[b"x"]).sent, 1);
            assert_eq!(receive(&b, 1)[0].1.peer, loopback(&a, target));
        }
    }

    #[test]
    fn a_truncated_datagram_says_so() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        a.send_to(&[7; ROOM + 1], loopback(&b, ip("127.0.0.1")), None).unwrap();
        let (bytes, datagram) = &receive(&b, 1)[0];
        assert_eq!((bytes.len(), datagram.truncated), (ROOM, true));
    }

    #[test]
    fn an_empty_socket_gives_nothing_at_once() {
        let mut room = [0; ROOM];
        let got = ReceiveBatch::new(1).receive(&bind("127.0.0.1:0"), std::iter::once(&mut room[..]));
        assert_eq!(got.unwrap(), 0);
    }

    #[test]
    fn a_lost_local_address_is_blamed_and_costs_the_batch() {
        let (a, b) = (bind("[::]:0"), bind("[::]:0"));
        // TEST-NET-1 (RFC 5737) and the documentation prefix (RFC 3849) are no address of this machine.
        for (target, pin) in [("127.0.0.1", "192.0.2.1"), ("::1", "2001:db8::1"), ("::1", "127.0.0.1")] {
            let report = send(&a, loopback(&b, ip(target)), Some(ip(pin)), &[b"x", b"y"]);
            assert_eq!((report.sent, report.failed), (0, 2), "{pin}");
            assert!(unpins(report.error.as_ref().unwrap()), "{pin}: {report:?}");
            let error = a.send_to(b"x", loopback(&b, ip(target)), Some(ip(pin))).unwrap_err();
            assert!(unpins(&error) && !is_fatal(&error), "{pin}: {error}");
        }
    }

    #[test]
    fn one_datagram_too_big_does_not_stop_its_neighbours() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let huge = vec![0; 65_600]; // over what UDP can carry, so over any MTU
        let report = send(&a, loopback(&b, ip("127.0.0.1")), None, &[b"x", &huge, b"y"]);
        assert_eq!((report.sent, report.bytes, report.too_big, report.failed), (2, 2, 1, 0));
        assert_eq!(receive(&b, 2).len(), 2);
    }

    #[test]
    fn what_exceeds_the_mtu_is_refused_not_cut_into_fragments() {
        in_own_network(|| {
            shell("ip link set lo mtu 1280 up");
            for target in ["127.0.0.1", "::1"].map(ip) {
                let (a, b) = (bind("[::]:0"), bind("[::]:0"));
                let headers = if target.is_ipv4() { 28 } else { 48 };
                let (fits, exceeds) = (vec![1; 1280 - headers], vec![2; 1281 - headers]);
                let report = send(&a, loopback(&b, target), None, &[&exceeds, &fits]);
                assert_eq!((report.sent, report.too_big, report.failed), (1, 1, 0), "{target}: {report:?}");
                assert_eq!(receive(&b, 1)[0].0, fits);
            }
        });
    }

    #[test]
    fn a_closed_port_at_the_far_end_is_no_evidence() {
        let (a, closed) = (bind("127.0.0.1:0"), loopback(&bind("127.0.0.1:0"), ip("127.0.0.1")));
        for _ in 0..3 {
            assert_eq!(send(&a, closed, None, &[b"x"]).sent, 1);
        }
    }

    #[test]
    fn more_than_the_batch_holds_is_counted() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let report = SendBatch::new(2).send(&a, loopback(&b, ip("127.0.0.1")), None, [&b"x"[..]; 3].into_iter());
        assert_eq!((report.sent, report.failed), (2, 1));
    }

    #[test]
    fn the_wrong_family_is_an_error_not_a_wrong_address() {
        let a = bind("127.0.0.1:0");
        let report = send(&a, "[::1]:9".parse().unwrap(), None, &[b"x"]);
        assert_eq!(report.failed, 1);
        assert_eq!(report.error.unwrap().raw_os_error(), Some(libc::EAFNOSUPPORT));
    }

    #[test]
    fn bind_errors_name_the_address_and_the_remedy() {
        let taken = bind("127.0.0.1:0").local_addr().unwrap();
        let _holder = UdpSocket::bind(taken).unwrap();
        let error = UdpSocket::bind(taken).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)), "{error}");
        assert!(error.to_string().contains(&format!("port {} is in use on 127.0.0.1", taken.port())), "{error}");

        let error = UdpSocket::bind("192.0.2.1:7311".parse().unwrap()).unwrap_err();
        assert!(matches!(error, BindError::NoSuchAddress(_)), "{error}");
        assert!(error.to_string().contains("no address 192.0.2.1"), "{error}");
    }

    #[test]
    fn bind_any_takes_ipv4_too() {
        let (a, b) = (UdpSocket::bind_any().unwrap(), bind("127.0.0.1:0"));
        a.send_to(b"x", b.local_addr().unwrap(), None).unwrap();
        assert_eq!(receive(&b, 1)[0].1.peer, loopback(&a, ip("127.0.0.1")));
    }
}

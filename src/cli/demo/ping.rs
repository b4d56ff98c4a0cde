//! ICMP echo (RFC 792, RFC 4443 §4), as much of it as it takes to time an answer. Needs CAP_NET_RAW.
//!
//! This file leans on nothing else in the crate: the tests in tests/ measure with it too.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// ICMP header and the 56 bytes `ping` also sends.
const LENGTH: usize = 8 + 56;

/// Echo requests to one address. It lives in the network namespace of the thread that makes it.
pub struct Pinger {
    // A raw socket speaks the same sendto/recvfrom as a datagram socket, and std has no other name for it.
    socket: UdpSocket,
    target: IpAddr,
    identifier: u16,
    sequence: u16,
}

impl Pinger {
    /// A pinger for `target`, which need not be reachable yet.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW.
    pub fn new(target: IpAddr) -> io::Result<Self> {
        let (family, protocol) = match target {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?.into();
        Ok(Self { socket, target, identifier: std::process::id() as u16, sequence: 0 })
    }

    /// One echo request, and the time until its answer; `None` if none comes within `patience`.
    ///
    /// # Errors
    /// If it cannot be sent: no route to the target, say.
    pub fn ping(&mut self, patience: Duration) -> io::Result<Option<Duration>> {
        let sent = Instant::now();
        self.send()?;
        while let Some(left) = patience.checked_sub(sent.elapsed()) {
            if self.receive(left)? == Some(self.sequence) {
                return Ok(Some(sent.elapsed()));
            }
        }
        Ok(None)
    }

    /// Sends an echo request `every` so often until any of them is answered (`true`) or `go_on` says no (`false`). That there
    /// is no interface or route yet is a reason to go on.
    pub fn until_answered(&mut self, every: Duration, mut go_on: impl FnMut() -> bool) -> bool {
        while go_on() {
            let sent = Instant::now();
            if self.send().is_err() {
                std::thread::sleep(every);
                continue;
            }
            while let Some(left) = every.checked_sub(sent.elapsed()) {
                if let Ok(Some(_)) = self.receive(left) {
                    return true;
                }
            }
        }
        false
    }

    fn send(&mut self) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = [0; LENGTH];
        message[0] = match self.target {
            IpAddr::V4(_) => ECHO_REQUEST_V4,
            IpAddr::V6(_) => ECHO_REQUEST_V6,
        };
        message[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        message[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        if self.target.is_ipv4() {
            // For ICMPv6 the kernel does it: that sum includes the addresses.
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.socket.send_to(&message, SocketAddr::new(self.target, 0)).map(drop)
    }

    /// The sequence number of the next answer to us, if one comes in time.
    fn receive(&self, patience: Duration) -> io::Result<Option<u16>> {
        self.socket.set_read_timeout(Some(patience.max(Duration::from_micros(100))))?;
        let mut buffer = [0; 2048];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) if from.ip() == self.target => Ok(self.answer(&buffer[..length])),
            Ok(_) => Ok(None),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn answer(&self, packet: &[u8]) -> Option<u16> {
        let (message, kind) = match self.target {
            // A raw IPv4 socket gives the IP header too.
            IpAddr::V4(_) => {
                let header = usize::from(packet.first()? & 0x0f) * 4;
                (packet.get(header..)?, ECHO_REPLY_V4)
            }
            IpAddr::V6(_) => (packet, ECHO_REPLY_V6),
        };
        let ours = *message.first()? == kind && *message.get(4..6)? == self.identifier.to_be_bytes();
        let sequence = message.get(6..8)?;
        ours.then(|| u16::from_be_bytes([sequence[0], sequence[1]]))
    }
}

/// The internet checksum (RFC 1071) of a message of even length.
fn checksum(message: &[u8]) -> u16 {
    let sum: u32 = message.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

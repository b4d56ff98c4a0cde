//! The cable seen by a third party: what arrives at a site over IPv4 can be recorded, and datagrams can be sent from any port
//! of the other.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt::RcvBuf};

use super::lab::Site;

/// A raw UDP socket: gets a copy of every datagram that arrives, IP header and all, and sends what it is given as the part after
/// the IP header (`man 7 raw`).
pub struct RawUdp(UdpSocket);

impl RawUdp {
    pub fn at(site: &Site) -> Self {
        let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp).unwrap();
        let fd = site.network.run(open).unwrap();
        setsockopt(&fd, RcvBuf, &(4 << 20)).unwrap();
        Self(fd.into())
    }

    /// Payloads of the datagrams that have arrived for `port`, the next `count` of them at most; fewer if a second passes.
    pub fn record(&self, port: u16, count: usize) -> Vec<Vec<u8>> {
        self.0.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut packet = vec![0; 65536];
        let mut payloads = Vec::new();
        while payloads.len() < count {
            match self.0.recv(&mut packet) {
                Ok(length) => payloads.extend(payload(&packet[..length], port)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => panic!("recording: {e}"),
            }
        }
        payloads
    }

    /// Sends a datagram whose source port is whatever is wanted.
    pub fn send(&self, from_port: u16, to: SocketAddr, payload: &[u8]) {
        // No checksum, which IPv4 allows (RFC 768).
        self.send_with_checksum(0, from_port, to, payload);
    }

    /// The same with anything, wrong or right, where the checksum stands.
    pub fn send_with_checksum(&self, checksum: u16, from_port: u16, to: SocketAddr, payload: &[u8]) {
        let length = (8 + payload.len()) as u16;
        let mut datagram = Vec::with_capacity(usize::from(length));
        for field in [from_port, to.port(), length, checksum] {
            datagram.extend(field.to_be_bytes());
        }
        datagram.extend(payload);
        match self.0.send_to(&datagram, SocketAddr::new(to.ip(), 0)) {
            Ok(_) => {}
            // A full queue drops, as any network may.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
            Err(e) => panic!("sending: {e}"),
        }
    }
}

fn payload(packet: &[u8], port: u16) -> Option<Vec<u8>> {
    let udp = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    (udp.get(2..4)? == port.to_be_bytes()).then(|| udp[8..].to_vec())
}

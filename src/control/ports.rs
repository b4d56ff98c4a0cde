//! The link's own UDP ports: the one it began with, and those opened later because nothing answered on it.
//!
//! Something on the way may have taken against one port (a NAT with a stale mapping, a firewall with a stale verdict);
//! another may pass. Which numbers are open is kept here; the sockets themselves are the loops'.

use crate::dataplane::MAX_SOCKETS;
use crate::protocol::SocketId;
use crate::sys::offloads::UdpOffloads;
use crate::sys::udp::{BindError, Ties, UdpSocket};
use std::net::SocketAddr;
use tracing::{info, warn};

const FIRST: SocketId = SocketId(0);

pub(super) struct Ports {
    listen: Option<SocketAddr>,
    ties: Ties,
    /// What is asked of each socket.
    wish: UdpOffloads,
    /// The traffic class of what is not user data.
    class: u8,
    open: Vec<SocketId>,
}

impl Ports {
    /// Opens the first socket: where config says, else anywhere.
    pub(super) fn open_first(
        listen: Option<SocketAddr>,
        ties: Ties,
        wish: UdpOffloads,
        class: u8,
    ) -> Result<(Ports, UdpSocket), BindError> {
        let ports = Ports { listen, ties, wish, class, open: vec![FIRST] };
        let socket = ports.bind(listen)?;
        Ok((ports, socket))
    }

    fn bind(&self, address: Option<SocketAddr>) -> Result<UdpSocket, BindError> {
        let mut socket = match address {
            Some(address) => UdpSocket::bind_tied(address, &self.ties)?,
            None => UdpSocket::bind_any(&self.ties)?,
        };
        socket.set_offloads(self.wish);
        if let Err(error) = socket.set_class(self.class) {
            warn!("the link's own datagrams go without the DSCP that config says: {error}");
        }
        if let Err(error) = socket.open_door() {
            info!("a flood from elsewhere will cost more than it need, as this kernel gives a port one queue: {error}");
        }
        Ok(socket)
    }

    /// Opens another of the same families and address, at a port of the kernel's choice.
    pub(super) fn open_another(&self) -> Result<UdpSocket, BindError> {
        self.bind(self.listen.map(|address| SocketAddr::new(address.ip(), 0)))
    }

    /// A number for another socket, and the one that must make room for it, which is never `used` nor the one that
    /// config asks for.
    pub(super) fn next(&mut self, used: Option<SocketId>) -> (SocketId, Option<SocketId>) {
        let mut evicted = None;
        if self.open.len() >= MAX_SOCKETS
            && let Some(oldest) = self.open.iter().position(|id| self.can_go(*id, used))
        {
            evicted = Some(self.open.remove(oldest));
        }
        let free = |id: &SocketId| !self.open.contains(id) && evicted != Some(*id);
        let id = (0..=u8::MAX).map(SocketId).find(free).unwrap_or(SocketId(u8::MAX));
        self.open.push(id);
        (id, evicted)
    }

    /// Takes the numbers that can go, now that the line uses `used`.
    pub(super) fn take_needless(&mut self, used: SocketId) -> Vec<SocketId> {
        let (gone, kept) = self.open.iter().partition(|id| self.can_go(**id, Some(used)));
        self.open = kept;
        gone
    }

    /// The port that config names is where the peer expects this end: it stays.
    fn can_go(&self, id: SocketId, used: Option<SocketId>) -> bool {
        Some(id) != used && (id != FIRST || self.listen.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    fn ids(numbers: &[u8]) -> Vec<SocketId> {
        numbers.iter().copied().map(SocketId).collect()
    }

    #[test]
    fn others_go_when_one_is_used_but_never_the_configured_one() {
        let (mut ports, _socket) = Ports::open_first(Some(LISTEN), Ties::default(), UdpOffloads::ALL, 0).unwrap();
        assert_eq!(ports.next(None), (SocketId(1), None));
        assert_eq!(ports.next(None), (SocketId(2), None));
        assert_eq!(ports.take_needless(SocketId(2)), ids(&[1]));
        assert_eq!(ports.next(Some(SocketId(2))), (SocketId(1), None), "a freed number is used again");
        assert_eq!(ports.take_needless(SocketId(0)), ids(&[2, 1]));

        let (mut ports, _socket) = Ports::open_first(None, Ties::default(), UdpOffloads::ALL, 0).unwrap();
        ports.next(None);
        assert_eq!(ports.take_needless(SocketId(1)), ids(&[0]));
    }

    #[test]
    fn there_is_room_for_one_more_always() {
        let (mut ports, _socket) = Ports::open_first(Some(LISTEN), Ties::default(), UdpOffloads::ALL, 0).unwrap();
        let used = ports.next(None).0;
        for _ in 0..1_000 {
            ports.next(Some(used));
            assert!(ports.open.len() <= MAX_SOCKETS);
            assert!(ports.open.contains(&used) && ports.open.contains(&FIRST));
        }
    }

    #[test]
    fn another_port_is_another_port() {
        let (ports, first) = Ports::open_first(Some(LISTEN), Ties::default(), UdpOffloads::ALL, 0).unwrap();
        let second = ports.open_another().unwrap();
        let (first, second) = (first.local_addr().unwrap(), second.local_addr().unwrap());
        assert_eq!(first.ip(), second.ip());
        assert_ne!(first.port(), second.port());
    }
}

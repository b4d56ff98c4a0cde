//! The link's open UDP sockets, by id. Each loop and the control side hold a table of their own.

use crate::protocol::SocketId;
use crate::sys::udp::UdpSocket;
use std::io;
use std::sync::Arc;

/// The most sockets open at once: one for each way there may be, or the one in use, one being tried, and some slack.
pub const MAX: usize = 4;

/// Up to [`MAX`] sockets.
#[derive(Debug, Default)]
pub(super) struct Sockets(Vec<(SocketId, Arc<UdpSocket>)>);

impl Sockets {
    /// Puts `socket` in, in place of one with the same id.
    pub(super) fn open(&mut self, id: SocketId, socket: Arc<UdpSocket>) -> io::Result<()> {
        self.close(id);
        if self.0.len() == MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.0.push((id, socket));
        Ok(())
    }

    pub(super) fn close(&mut self, id: SocketId) {
        self.0.retain(|(known, _)| *known != id);
    }

    pub(super) fn get(&self, id: SocketId) -> Option<&Arc<UdpSocket>> {
        self.0.iter().find_map(|(known, socket)| (*known == id).then_some(socket))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(SocketId, Arc<UdpSocket>)> {
        self.0.iter()
    }

    /// The UDP ports they are bound to.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(|(_, socket)| socket.port())
    }

    /// The n-th socket, in the order they were opened.
    pub(super) fn at(&self, n: usize) -> Option<&(SocketId, Arc<UdpSocket>)> {
        self.0.get(n)
    }
}

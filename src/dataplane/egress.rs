//! From the interface to the wire: read until the device is empty, seal, one send. Never a timer to fill a batch.

use super::handoff::{Command, Handoff};
use super::mailbox::Outbox;
use super::sockets::Sockets;
use super::{BATCH, LAYOUT, Traffic};
use crate::packet::{Batch, ip};
use crate::protocol::constants::MIN_TRANSPORT;
use crate::protocol::levels::Levels;
use crate::protocol::{EgressUpdate, Path, Sender};
use crate::sys::tun::{self, Refused};
use crate::sys::udp::{self, SendBatch, SendReport};
use crate::sys::wake::wait_readable;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// All the egress loop owns.
pub(super) struct Egress {
    tun: Arc<OwnedFd>,
    sender: Sender,
    sockets: Sockets,
    batch: Batch<()>,
    sends: SendBatch,
    handoff: Arc<Handoff<EgressUpdate>>,
    taken: Vec<Command<EgressUpdate>>,
    levels: Arc<Levels>,
    traffic: Arc<Traffic>,
    outbox: Outbox,
    /// Whether the path's local address was reported as bad since the last update.
    blamed: bool,
}

impl Egress {
    pub(super) fn new(
        tun: Arc<OwnedFd>,
        sender: Sender,
        handoff: Arc<Handoff<EgressUpdate>>,
        levels: Arc<Levels>,
        traffic: Arc<Traffic>,
        outbox: Outbox,
    ) -> Self {
        Egress {
            tun,
            sender,
            sockets: Sockets::default(),
            batch: Batch::new(LAYOUT),
            sends: SendBatch::new(BATCH),
            handoff,
            taken: Vec::new(),
            levels,
            traffic,
            outbox,
            blamed: false,
        }
    }

    /// The loop. It ends when told to, or with the error that leaves nothing to do: the device is gone.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            if self.wait()? {
                self.read_frames()?;
            }
            if self.take_updates().is_break() {
                return Ok(());
            }
            self.batch.retain(|datagram, ()| self.sender.seal(0, datagram).is_ok());
            self.send();
        }
    }

    /// Sleeps until there is something to do, and says whether the device has frames.
    fn wait(&self) -> io::Result<bool> {
        let ready = wait_readable([Some(self.tun.as_fd()), Some(self.handoff.as_fd())])?;
        if ready & 0b10 != 0 {
            self.handoff.still();
        }
        Ok(ready & 0b01 != 0)
    }

    fn read_frames(&mut self) -> io::Result<()> {
        while let Some(room) = self.batch.room() {
            let length = match tun::read(self.tun.as_fd(), room) {
                Ok(length) => length,
                Err(Refused::WouldBlock) => break,
                Err(Refused::Frame(_)) => {
                    self.traffic.errors.add(1);
                    continue;
                }
                Err(Refused::Gone(error)) => return Err(error),
            };
            if length == room.len() {
                // It filled the room, so there may have been more of it.
                self.levels.drops.too_big.bump();
            } else if ip::check(&room[..length]).is_err() {
                self.levels.drops.malformed.bump();
            } else {
                self.batch.push(length, ());
            }
        }
        Ok(())
    }

    fn take_updates(&mut self) -> ControlFlow<()> {
        self.handoff.take(&mut self.taken);
        for command in self.taken.drain(..) {
            match command {
                Command::Update(update) => {
                    self.sender.apply(update);
                    self.blamed = false;
                }
                // The control side's table of the same size took it, so there is room.
                Command::Open(id, socket) => drop(self.sockets.open(id, socket)),
                Command::Close(id) => self.sockets.close(id),
                Command::Stop => return ControlFlow::Break(()),
            }
        }
        if self.sender.take_keepalive() {
            self.send_keepalive();
        }
        ControlFlow::Continue(())
    }

    /// Sends the sealed batch, in one call where the kernel takes it all, and empties it.
    fn send(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let datagrams = self.batch.iter().map(|(datagram, ())| datagram);
        let path = self.sender.path();
        let report = match path.and_then(|path| Some((path, self.sockets.get(path.socket)?))) {
            Some((path, socket)) => self.sends.send(socket, path.peer, path.local, datagrams),
            None => SendReport { failed: datagrams.count(), ..SendReport::default() },
        };
        self.sender.handed_over();
        self.batch.clear();
        self.traffic.packets.add(report.sent as u64);
        self.traffic.bytes.add((report.bytes - report.sent * MIN_TRANSPORT) as u64);
        self.traffic.errors.add(report.failed as u64);
        (0..report.too_big).for_each(|_| self.levels.drops.too_big.bump());
        if let (Some(path), Some(error)) = (path, report.error) {
            self.blame(path, error);
        }
    }

    /// An empty datagram on its own, so that it counts as no user packet.
    fn send_keepalive(&mut self) {
        let mut datagram = [0; MIN_TRANSPORT];
        if self.sender.seal(0, &mut datagram).is_err() {
            return;
        }
        let Some(path) = self.sender.path() else { return };
        let Some(socket) = self.sockets.get(path.socket) else { return };
        let sent = socket.send_to(&datagram, path.peer, path.local);
        self.sender.handed_over();
        if let Err(error) = sent {
            self.blame(path, error);
        }
    }

    /// Tells the engine, once for each path it gives, that the path's local address does not work.
    fn blame(&mut self, path: Path, error: io::Error) {
        if path.local.is_some() && !self.blamed && udp::unpins(&error) {
            self.blamed = self.outbox.send_failed(path, error);
        }
    }
}

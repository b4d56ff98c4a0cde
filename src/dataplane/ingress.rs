//! From the wire to the interface: one receive, open in place, write each frame; the engine's share goes to its mailbox.

use super::handoff::{Command, Handoff};
use super::mailbox::Outbox;
use super::sockets::{self, Sockets};
use super::{BATCH, LAYOUT, Traffic};
use crate::packet::{Batch, ip};
use crate::protocol::constants::{HEADER, TAG};
use crate::protocol::levels::Levels;
use crate::protocol::{IngressUpdate, Path, Received, Receiver, SocketId, Time};
use crate::sys::clock::boottime_ns;
use crate::sys::tun::{self, Refused};
use crate::sys::udp::{self, ReceiveBatch, UdpSocket};
use crate::sys::wake::wait_readable;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// All the ingress loop owns.
pub(super) struct Ingress {
    tun: Arc<OwnedFd>,
    receiver: Receiver,
    sockets: Sockets,
    batch: Batch<Path>,
    receives: ReceiveBatch,
    handoff: Arc<Handoff<IngressUpdate>>,
    taken: Vec<Command<IngressUpdate>>,
    levels: Arc<Levels>,
    traffic: Arc<Traffic>,
    outbox: Outbox,
}

impl Ingress {
    pub(super) fn new(
        tun: Arc<OwnedFd>,
        receiver: Receiver,
        handoff: Arc<Handoff<IngressUpdate>>,
        levels: Arc<Levels>,
        traffic: Arc<Traffic>,
        outbox: Outbox,
    ) -> Self {
        Ingress {
            tun,
            receiver,
            sockets: Sockets::default(),
            batch: Batch::new(LAYOUT),
            receives: ReceiveBatch::new(BATCH),
            handoff,
            taken: Vec::new(),
            levels,
            traffic,
            outbox,
        }
    }

    /// The loop. It ends when told to, or with the error that leaves nothing to do: the device is gone.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            for n in (0..sockets::MAX).filter(|n| ready & (1 << n) != 0) {
                // A table that changed since only means another socket that may be empty.
                let Some((id, socket)) = self.sockets.at(n).cloned() else { continue };
                self.receive(id, &socket)?;
                if self.take_updates().is_break() {
                    return Ok(());
                }
                self.open()?;
            }
            if self.take_updates().is_break() {
                return Ok(());
            }
        }
    }

    /// Sleeps until there is something to do, and says which sockets have datagrams: bit n for the n-th.
    fn wait(&self) -> io::Result<u32> {
        let mut fds = [None; sockets::MAX + 1];
        for (n, fd) in fds[..sockets::MAX].iter_mut().enumerate() {
            *fd = self.sockets.at(n).map(|(_, socket)| socket.as_fd());
        }
        fds[sockets::MAX] = Some(self.handoff.as_fd());
        let ready = wait_readable(fds)?;
        if ready & (1 << sockets::MAX) != 0 {
            self.handoff.still();
        }
        Ok(ready)
    }

    /// Fills the batch from one socket. An error that is not the socket's end is no evidence of anything: it is counted.
    fn receive(&mut self, id: SocketId, socket: &UdpSocket) -> io::Result<()> {
        match self.receives.receive(socket, self.batch.rooms()) {
            Ok(_) => {}
            Err(error) if udp::is_fatal(&error) => return Err(error),
            Err(_) => self.traffic.errors.add(1),
        }
        for (slot, datagram) in self.receives.datagrams() {
            if datagram.truncated {
                self.levels.drops.malformed.bump();
                continue;
            }
            let path = Path { socket: id, local: datagram.local, peer: datagram.peer };
            self.batch.fill(slot, datagram.length, path);
        }
        Ok(())
    }

    /// Taken between receiving and opening: keys installed before a datagram was asked for are there when it comes.
    fn take_updates(&mut self) -> ControlFlow<()> {
        self.handoff.take(&mut self.taken);
        for command in self.taken.drain(..) {
            match command {
                Command::Update(update) => self.receiver.apply(update),
                // The control side's table of the same size took it, so there is room.
                Command::Open(id, socket) => drop(self.sockets.open(id, socket)),
                Command::Close(id) => self.sockets.close(id),
                Command::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    /// Opens the batch and sends each datagram's contents where they belong.
    fn open(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let now = Time(boottime_ns()?);
        let (mut packets, mut bytes) = (0, 0);
        for (datagram, &mut path) in self.batch.iter_mut() {
            match self.receiver.receive(now, path, datagram) {
                Received::Frame { .. } => {
                    let frame = plaintext(datagram);
                    if deliver(&self.tun, frame, &self.levels, &self.traffic)? {
                        packets += 1;
                        bytes += frame.len() as u64;
                    }
                }
                Received::Cold => self.outbox.cold(path, datagram),
                Received::Control { session, counter } => {
                    self.outbox.control(path, session, counter, plaintext(datagram));
                }
                Received::Nothing => {}
            }
        }
        self.traffic.packets.add(packets);
        self.traffic.bytes.add(bytes);
        self.outbox.notices(&mut self.receiver);
        Ok(())
    }
}

/// What an opened datagram carries.
fn plaintext(datagram: &[u8]) -> &[u8] {
    let end = datagram.len().saturating_sub(TAG);
    datagram.get(HEADER..end).unwrap_or_default()
}

/// Writes a frame to the interface and says whether it was taken; if not, it is counted.
///
/// # Errors
/// When the device is gone.
fn deliver(tun: &OwnedFd, frame: &[u8], levels: &Levels, traffic: &Traffic) -> io::Result<bool> {
    if ip::check(frame).is_err() {
        levels.drops.malformed.bump();
        return Ok(false);
    }
    match tun::write(tun.as_fd(), frame) {
        Ok(()) => return Ok(true),
        Err(Refused::Gone(error)) => return Err(error),
        // The interface is down, or the kernel out of memory: as on any wire, the frame is lost.
        Err(Refused::WouldBlock | Refused::Frame(_)) => traffic.errors.add(1),
    }
    Ok(false)
}

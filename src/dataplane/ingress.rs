//! From the wire to the interface: one receive, open in place, merge, write; the engine's share goes to its mailbox.

use super::Traffic;
use super::device::{Device, PIECES};
use super::handoff::{Command, Handoff};
use super::mailbox::Outbox;
use super::sockets::{self, Sockets};
use crate::packet::merge::{Limits, Merger, Write};
use crate::protocol::constants::{HEADER, TAG};
use crate::protocol::levels::Levels;
use crate::protocol::wire::data_flags;
use crate::protocol::{IngressUpdate, Path, Received, Receiver, SocketId, Time};
use crate::sys::clock::boottime_ns;
use crate::sys::tun::Refused;
use crate::sys::udp::{self, ReceiveBatch, UdpSocket};
use crate::sys::wake::wait_readable;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Messages taken in one receive call: with coalescing each may be a run of up to 64 KB, without it a datagram.
const ROOMS: usize = 16;
/// Room for the longest of them.
const ROOM: usize = 1 << 16;
/// Packets a batch is expected to have; more only make the merger's lists grow.
const PACKETS: usize = 1_024;

/// All the ingress loop owns.
pub(super) struct Ingress {
    device: Arc<Device>,
    receiver: Receiver,
    sockets: Sockets,
    /// [`ROOMS`] rooms, one after the other.
    buffer: Box<[u8]>,
    receives: ReceiveBatch,
    merger: Merger,
    handoff: Arc<Handoff<IngressUpdate>>,
    taken: Vec<Command<IngressUpdate>>,
    levels: Arc<Levels>,
    traffic: Arc<Traffic>,
    outbox: Outbox,
}

impl Ingress {
    pub(super) fn new(
        device: Arc<Device>,
        receiver: Receiver,
        handoff: Arc<Handoff<IngressUpdate>>,
        levels: Arc<Levels>,
        traffic: Arc<Traffic>,
        outbox: Outbox,
    ) -> Self {
        Ingress {
            merger: Merger::new(limits(&device), PACKETS),
            device,
            receiver,
            sockets: Sockets::default(),
            buffer: vec![0; ROOMS * ROOM].into(),
            receives: ReceiveBatch::new(ROOMS),
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
                self.receive(&socket)?;
                if self.take_updates().is_break() {
                    return Ok(());
                }
                self.open(id)?;
                self.write()?;
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

    /// Fills the rooms from one socket. An error that is not the socket's end is no evidence of anything: it is counted.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        match self.receives.receive(socket, self.buffer.chunks_exact_mut(ROOM)) {
            Ok(_) => {}
            Err(error) if udp::is_fatal(&error) => return Err(error),
            Err(_) => self.traffic.errors.add(1),
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

    /// Opens every datagram of the batch and sorts what is in it: frames to the merger, the rest to the mailbox.
    fn open(&mut self, socket: SocketId) -> io::Result<()> {
        let now = Time(boottime_ns()?);
        for (room, message) in self.receives.datagrams() {
            if message.truncated {
                self.levels.drops.malformed.bump();
                continue;
            }
            let path = Path { socket, local: message.local, peer: message.peer };
            let mut start = room * ROOM;
            let end = start + message.length;
            loop {
                let range = start..end.min(start + message.segment);
                start = range.end;
                let datagram = &mut self.buffer[range.clone()];
                match self.receiver.receive(now, path, datagram) {
                    Received::Frame { flags } => {
                        let partial = flags & data_flags::PARTIAL_CHECKSUM != 0;
                        if self.merger.push(&self.buffer, plaintext(range), partial).is_err() {
                            self.levels.drops.malformed.bump();
                        }
                    }
                    Received::Cold => self.outbox.cold(path, datagram),
                    Received::Control { session, counter } => {
                        self.outbox.control(path, session, counter, &self.buffer[plaintext(range)]);
                    }
                    Received::Nothing => {}
                }
                if start >= end {
                    break;
                }
            }
        }
        self.outbox.notices(&mut self.receiver);
        Ok(())
    }

    /// Writes what the merger made of the batch's frames.
    fn write(&mut self) -> io::Result<()> {
        self.merger.finish(&mut self.buffer);
        let (mut packets, mut bytes) = (0, 0);
        for write in self.merger.writes() {
            match deliver(&self.device, &self.buffer, &write) {
                Ok(()) => {
                    packets += write.packets();
                    bytes += write.length();
                }
                Err(Refused::Gone(error)) => return Err(error),
                // The interface is down, or the kernel out of memory: as on any wire, the frame is lost.
                Err(Refused::WouldBlock | Refused::Frame(_)) => self.traffic.errors.add(write.packets() as u64),
            }
        }
        self.merger.clear();
        self.traffic.packets.add(packets as u64);
        self.traffic.bytes.add(bytes as u64);
        Ok(())
    }
}

/// What an opened datagram carries.
fn plaintext(datagram: Range<usize>) -> Range<usize> {
    datagram.start + HEADER..datagram.end - TAG
}

fn deliver(device: &Device, buffer: &[u8], write: &Write<'_>) -> Result<(), Refused> {
    device.write(&write.header(), write.parts().map(|part| &buffer[part]))
}

/// How far packets are merged for a device: not at all where it takes them only one by one.
fn limits(device: &Device) -> Limits {
    let offloads = device.offloads();
    let segments = if offloads.vnet_hdr && offloads.tso { PIECES } else { 1 };
    Limits { segments, udp: offloads.uso, ..Limits::default() }
}

//! From the wire to the interface: one receive, open in place, merge, write; the engine's share goes to its mailbox.

use super::device::{Device, PIECES};
use super::handoff::{Handoff, Inbox};
use super::mailbox::{Message, Outbox};
use super::sockets;
use super::turns::{Turn, Turns};
use super::{FRAME, Open, Traffic, Treatment};
use crate::packet::Addresses;
use crate::packet::marks;
use crate::packet::merge::{Limits, Merger, Write};
use crate::packet::pieces::{Bounds, Joined, Name, Part, Piece, Pieces};
use crate::packet::source_filter::Named;
use crate::protocol::constants::{HEADER, PIECE_TIME, TAG};
use crate::protocol::levels::Levels;
use crate::protocol::wire::data_flags;
use crate::protocol::{IngressUpdate, Path, Received, SocketId, Time};
use crate::sys::clock::boottime_ns;
use crate::sys::offloads::TunOffloads;
use crate::sys::tun::Refused;
use crate::sys::udp::{self, ReceiveBatch, UdpSocket};
use crate::sys::wake::wait_readable;
use nix::errno::Errno;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Messages taken in one receive call: with coalescing each may be a run of up to 64 KB, without it a datagram.
pub(super) const ROOMS: usize = 16;
/// Room for the longest of them.
const ROOM: usize = 1 << 16;
/// How long a door is left alone after a batch from it in which nothing was the peer's, while there is something to do for the
/// peer: however much floods it from elsewhere, at most 50,000 datagrams a second are looked at, and the kernel drops the rest.
pub(super) const REST: Duration = Duration::from_micros(250);
/// Between two remarks that packets were dropped because of a mark of congestion.
const CONGESTED_EVERY: Duration = Duration::from_secs(1);
/// So long after the peer was heard there is. A line that is quiet or down has time for whoever knocks: it may be the peer.
const IN_USE: Duration = Duration::from_millis(100);
/// What the loop waits for, by bit: the n-th socket's own queue is 2n, its door 2n + 1; then the bell.
const BELL: usize = 2 * sockets::MAX;
/// Packets a batch is expected to have; more only make the merger's lists grow.
const PACKETS: usize = 1_024;

/// Where what was received ends, and frames put together of pieces that came apart begin; of those a batch's worth.
const PUT_TOGETHER: usize = ROOMS * ROOM;
/// Pieces that wait for the others of their frame. Memory that nothing is kept in is not touched.
const WAITING: Bounds = Bounds { pieces: 1_024, bytes: 1 << 20, time: PIECE_TIME.as_nanos() as u64, frame: FRAME };

/// All the ingress loop owns.
pub(super) struct Ingress<O> {
    device: Arc<Device>,
    treatment: Treatment,
    receiver: O,
    inbox: Inbox<IngressUpdate>,
    /// [`ROOMS`] rooms, one after the other, and room for frames put together.
    buffer: Box<[u8]>,
    receives: ReceiveBatch,
    /// Until when the doors are left alone.
    rest: Option<Time>,
    /// Until when the line is in use, for all that is known.
    in_use: Time,
    pieces: Pieces,
    merger: Merger,
    /// Prefixes whose packets were dropped, as far as they were told.
    named: Named,
    /// The addresses of the batch's last packet, which the next one often has too.
    last: Option<Addresses>,
    /// When it may be said again that packets were dropped because of a mark of congestion.
    congested_due: Time,
    levels: Arc<Levels>,
    traffic: Arc<Traffic>,
    outbox: Outbox,
}

impl<O: Open> Ingress<O> {
    pub(super) fn new(
        device: Arc<Device>,
        treatment: Treatment,
        receiver: O,
        handoff: Arc<Handoff<IngressUpdate>>,
        levels: Arc<Levels>,
        traffic: Arc<Traffic>,
        outbox: Outbox,
    ) -> Self {
        Ingress {
            merger: merger(&device, &treatment, false),
            named: Named::default(),
            last: None,
            congested_due: Time(0),
            device,
            treatment,
            receiver,
            inbox: Inbox::new(handoff),
            buffer: vec![0; 2 * PUT_TOGETHER].into(),
            pieces: Pieces::new(WAITING),
            receives: ReceiveBatch::new(ROOMS),
            rest: None,
            in_use: Time(0),
            levels,
            traffic,
            outbox,
        }
    }

    /// Takes one batch from a queue to the interface, and says what there was.
    fn serve(&mut self, bit: usize) -> io::Result<Turn> {
        let at_door = is_door(bit);
        if at_door && self.resting()?.is_some() {
            return Ok(Turn::Idle);
        }
        // A table that changed since only means another queue that may be empty.
        let Some((id, socket)) = self.inbox.sockets.at(bit / 2).cloned() else { return Ok(Turn::Idle) };
        let Some(queue) = queue(&socket, at_door) else { return Ok(Turn::Idle) };
        let filled = self.receive(queue)?;
        if self.take_updates().is_break() {
            return Ok(Turn::Stop);
        }
        let now = Time(boottime_ns()?);
        if self.open(now, id) {
            self.in_use = now + IN_USE;
        } else if at_door && filled > 0 && now < self.in_use {
            self.rest = Some(now + REST);
        }
        self.write()?;
        Ok(match filled {
            0 => Turn::Idle,
            ROOMS => Turn::Full,
            _ => Turn::Busy,
        })
    }

    /// How long the doors are still left alone.
    fn resting(&mut self) -> io::Result<Option<Duration>> {
        if let Some(until) = self.rest {
            let now = Time(boottime_ns()?);
            self.rest = (now < until).then_some(until);
            return Ok(self.rest.map(|until| until.since(now)));
        }
        Ok(None)
    }

    /// Fills the rooms from one queue, and says how many. An error that is not the socket's end is no evidence of
    /// anything: it is counted.
    fn receive(&mut self, queue: BorrowedFd<'_>) -> io::Result<usize> {
        match self.receives.receive(queue, self.buffer[..PUT_TOGETHER].chunks_exact_mut(ROOM)) {
            Ok(filled) => Ok(filled),
            Err(error) if udp::is_fatal(&error) => Err(error),
            Err(_) => {
                self.traffic.errors.add(1);
                Ok(0)
            }
        }
    }

    /// Taken between receiving and opening: keys installed before a datagram was asked for are there when it comes.
    fn take_updates(&mut self) -> ControlFlow<()> {
        self.inbox.take(|update| self.receiver.apply(update))
    }

    /// Opens every datagram of the batch and sorts what is in it: frames to the merger, the rest to the mailbox. Says whether the
    /// peer made any of them, and this moment: a cold open may be a copy.
    fn open(&mut self, now: Time, socket: SocketId) -> bool {
        let mut by_peer = false;
        self.last = None;
        for room in 0..ROOMS {
            let Some(message) = self.receives.datagram(room) else { continue };
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
                by_peer |= self.open_one(now, path, message.class, range);
                if start >= end {
                    break;
                }
            }
        }
        self.outbox.notices(&mut self.receiver);
        by_peer
    }

    /// Opens one datagram, and says whether it is the peer's; `class` is the traffic class it came with.
    fn open_one(&mut self, now: Time, path: Path, class: u8, range: Range<usize>) -> bool {
        let datagram = &mut self.buffer[range.clone()];
        match self.receiver.receive(now, path, datagram) {
            Received::Frame { flags } => self.take_frame(now, path, plaintext(range), flags, class),
            Received::Piece { flags, session, counter } => {
                let name = Name { origin: session, number: counter };
                let piece = Piece { name, part: part(flags), congested: marks::is_congested(class) };
                let text = plaintext(range.clone());
                match self.pieces.push(&mut self.buffer, PUT_TOGETHER, range, text, piece, now.0) {
                    Joined::Waits => {}
                    Joined::Whole { frame, congested } => {
                        self.take_frame(now, path, frame, flags, marks::with(class, congested));
                    }
                    Joined::TooLong => self.levels.drops.malformed.bump(),
                    Joined::NoRoom => self.traffic.errors.add(1),
                }
            }
            Received::Control { session, counter } => {
                self.outbox.control(path, session, counter, &self.buffer[plaintext(range)]);
            }
            Received::Cold => {
                if !self.outbox.cold(path, datagram) {
                    self.levels.drops.replayed.bump();
                }
                return false;
            }
            Received::Nothing => return false,
        }
        true
    }

    /// Whether a frame may go to the interface, by its source. One that may is remembered, so that it does not come back from there.
    /// Nothing is held against what is no packet: it is refused, and counted, further on.
    fn admits(&mut self, now: Time, frame: Range<usize>) -> bool {
        let Treatment { own, sources, returns, .. } = &self.treatment;
        if sources.is_none() && returns.is_none() {
            return true;
        }
        let bytes = &self.buffer[frame];
        let network = self.device.layer().network(bytes).ok().flatten();
        let Some(addresses) = network.and_then(|network| Addresses::of(network, bytes)) else { return true };
        if self.last == Some(addresses) {
            return true;
        }
        if sources.as_ref().is_some_and(|sources| !sources.admits(&addresses)) {
            self.levels.drops.source.bump();
            let source = addresses.source();
            if let Some(prefix) = self.named.name(source, now.0) {
                self.outbox.remark(Message::ForeignSource { source, prefix });
            }
            return false;
        }
        if let Some(returns) = returns
            && !own.has_destination_of(&addresses)
            && !own.is_for_many(&addresses)
        {
            returns.goes_out(&addresses, now.0);
        }
        self.last = Some(addresses);
        true
    }

    /// Gives a frame that came by `path` to the merger, with what the way has marked.
    fn take_frame(&mut self, now: Time, path: Path, frame: Range<usize>, flags: u8, class: u8) {
        if !self.admits(now, frame.clone()) {
            return;
        }
        let (partial, layer) = (flags & data_flags::PARTIAL_CHECKSUM != 0, self.device.layer());
        let bytes = &mut self.buffer[frame.clone()];
        self.treatment.clamp(layer, bytes, &self.levels, partial);
        if marks::take_out(class, layer, bytes).is_err() {
            self.levels.drops.congested.bump();
            if now >= self.congested_due {
                self.congested_due = now + CONGESTED_EVERY;
                self.outbox.remark(Message::Congested { path });
            }
        } else if self.merger.push(&self.buffer, frame, partial).is_err() {
            self.levels.drops.malformed.bump();
        }
    }

    /// Writes what the merger made of the batch's frames.
    fn write(&mut self) -> io::Result<()> {
        self.merger.finish(&mut self.buffer);
        let (device, buffer) = (&self.device, &self.buffer);
        let delivered = deliver(self.merger.writes(), |write| {
            device.write(&write.header(), write.parts().map(|part| &buffer[part]))
        })?;
        self.merger.clear();
        self.pieces.finish(&self.buffer);
        self.traffic.packets.add(delivered.packets as u64);
        self.traffic.bytes.add(delivered.bytes as u64);
        self.count_lost(delivered.lost);
        if delivered.unmergeable {
            warn!("the kernel does not take merged packets; from now on each is written alone, which is slower");
            self.merger = merger(device, &self.treatment, true);
        }
        Ok(())
    }
}

impl<O> Ingress<O> {
    /// Counts what the device did not take, by reason.
    fn count_lost(&self, lost: Lost) {
        if lost == Lost::default() {
            return;
        }
        let drops = &self.levels.drops;
        for (counter, packets) in [
            (&drops.interface_down, lost.down),
            (&drops.interface_invalid, lost.invalid),
            (&drops.interface_write, lost.other),
            (&self.traffic.errors, lost.packets()),
        ] {
            counter.add(packets as u64);
        }
    }
}

impl<O: Open> Turns for Ingress<O> {
    fn wait(&mut self) -> io::Result<u32> {
        let rest = self.resting()?;
        let mut fds = [None; BELL + 1];
        for (bit, fd) in fds[..BELL].iter_mut().enumerate().filter(|(bit, _)| rest.is_none() || !is_door(*bit)) {
            *fd = self.inbox.sockets.at(bit / 2).and_then(|(_, socket)| queue(socket, is_door(bit)));
        }
        fds[BELL] = Some(self.inbox.as_fd());
        let ready = wait_readable(fds, rest)?;
        if ready & (1 << BELL) != 0 {
            self.inbox.still();
        }
        Ok(ready)
    }

    fn turn(&mut self, ready: u32) -> io::Result<Turn> {
        let mut turn = Turn::Idle;
        for bit in (0..BELL).filter(|bit| ready & (1 << bit) != 0) {
            turn = turn.max(self.serve(bit)?);
            if turn == Turn::Stop {
                return Ok(turn);
            }
        }
        // Also when only the bell rang.
        Ok(if self.take_updates().is_break() { Turn::Stop } else { turn })
    }
}

fn is_door(bit: usize) -> bool {
    bit % 2 == 1
}

fn queue(socket: &UdpSocket, door: bool) -> Option<BorrowedFd<'_>> {
    if door { socket.door() } else { Some(socket.as_fd()) }
}

/// Which piece of its frame a datagram has.
fn part(flags: u8) -> Part {
    let piece = flags & data_flags::PIECE;
    Part { first: piece == data_flags::FIRST_PIECE, last: piece == data_flags::LAST_PIECE }
}

/// What an opened datagram carries.
fn plaintext(datagram: Range<usize>) -> Range<usize> {
    datagram.start + HEADER..datagram.end - TAG
}

/// What became of the frames of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Delivered {
    packets: usize,
    bytes: usize,
    /// Packets the device did not take.
    lost: Lost,
    /// Whether it refused merged packets for being merged.
    unmergeable: bool,
}

/// Packets the device did not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lost {
    /// The interface is administratively down.
    down: usize,
    /// The kernel does not take what is in them.
    invalid: usize,
    /// No memory, or no room.
    other: usize,
}

impl Lost {
    fn add(&mut self, packets: usize, refused: &Refused) {
        let errno = match refused {
            Refused::Frame(error) => error.raw_os_error(),
            Refused::WouldBlock | Refused::Gone(_) => None,
        };
        let count = match errno.map(Errno::from_raw) {
            Some(Errno::EIO) => &mut self.down,
            Some(Errno::EINVAL) => &mut self.invalid,
            _ => &mut self.other,
        };
        *count += packets;
    }

    fn packets(self) -> usize {
        self.down + self.invalid + self.other
    }
}

/// Gives the writes to `put`, one after the other. Only the end of the device is an error.
fn deliver<'a>(
    writes: impl Iterator<Item = Write<'a>>,
    mut put: impl FnMut(&Write<'_>) -> Result<(), Refused>,
) -> io::Result<Delivered> {
    let mut delivered = Delivered::default();
    for write in writes {
        match put(&write) {
            Ok(()) => {
                delivered.packets += write.packets();
                delivered.bytes += write.length();
            }
            Err(Refused::Gone(error)) => return Err(error),
            // The interface is down, or the kernel out of memory: as on any wire, the frame is lost.
            Err(refused) => {
                let before = delivered.lost.invalid;
                delivered.lost.add(write.packets(), &refused);
                delivered.unmergeable |= write.packets() > 1 && delivered.lost.invalid > before;
            }
        }
    }
    Ok(delivered)
}

/// No merging.
const SINGLE: Limits = Limits { segments: 1, flows: 0, udp: false };

/// What merges packets for a device, as far as it takes them merged; not at all if they are to be `single`.
fn merger(device: &Device, treatment: &Treatment, single: bool) -> Merger {
    let limits = if single { SINGLE } else { limits(device.offloads(), treatment.coalesce_udp) };
    Merger::new(device.layer(), limits, PACKETS).at(treatment.own.clone())
}

/// How far packets are merged: not at all where the device takes them only one by one, and UDP only where that is wanted, because what
/// the machine forwards, and whoever looks at packets there, is to have them as they were sent.
fn limits(offloads: TunOffloads, coalesce_udp: bool) -> Limits {
    match offloads {
        TunOffloads { vnet_hdr: true, tso: true, uso } => {
            Limits { segments: PIECES, udp: uso && coalesce_udp, ..Limits::default() }
        }
        _ => SINGLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Layer, testing::Model};

    /// Two UDP packets that merge, and a TCP packet that stays alone, delivered by `put`.
    fn delivered(limits: Limits, put: impl FnMut(&Write<'_>) -> Result<(), Refused>) -> Delivered {
        let frames = [Model::udp4().packet(50), Model::udp4().packet(50), Model::tcp6().packet(7)];
        let mut buffer = frames.concat();
        let mut merger = Merger::new(Layer::Ip, limits, 3);
        let mut start = 0;
        for frame in &frames {
            merger.push(&buffer, start..start + frame.len(), false).unwrap();
            start += frame.len();
        }
        merger.finish(&mut buffer);
        deliver(merger.writes(), put).unwrap()
    }

    /// What a kernel says that takes no merged packets.
    fn only_single(write: &Write<'_>) -> Result<(), Refused> {
        match write.packets() {
            1 => Ok(()),
            _ => Err(Refused::Frame(io::Error::from_raw_os_error(22))), // EINVAL
        }
    }

    #[test]
    fn a_kernel_that_refuses_merged_packets_gets_them_alone_from_then_on() {
        let first = delivered(Limits::default(), only_single);
        let invalid = |packets| Lost { invalid: packets, ..Lost::default() };
        assert_eq!((first.packets, first.lost, first.unmergeable), (1, invalid(2), true));
        let second = delivered(SINGLE, only_single);
        assert_eq!((second.packets, second.lost, second.unmergeable), (3, invalid(0), false));
    }

    #[test]
    fn udp_is_merged_only_where_the_kernel_takes_it_and_config_asks_for_it() {
        let udp = |uso, wanted| limits(TunOffloads { uso, ..TunOffloads::ALL }, wanted).udp;
        assert_eq!([udp(true, true), udp(true, false), udp(false, true)], [true, false, false]);
        assert!(limits(TunOffloads::ALL, false).segments > 1, "TCP is");
        assert_eq!(limits(TunOffloads::NONE, true), SINGLE);
    }

    #[test]
    fn an_interface_that_is_down_says_nothing_of_merging() {
        let down = delivered(Limits::default(), |_| Err(Refused::Frame(Errno::EIO.into())));
        assert_eq!(down, Delivered { lost: Lost { down: 3, ..Lost::default() }, ..Delivered::default() });
    }

    #[test]
    fn what_the_interface_does_not_take_is_counted_by_reason() {
        let lost = |refused: fn() -> Refused| delivered(SINGLE, |_| Err(refused())).lost;
        let none = Lost::default();
        assert_eq!(lost(|| Refused::Frame(Errno::EIO.into())), Lost { down: 3, ..none });
        assert_eq!(lost(|| Refused::Frame(Errno::EINVAL.into())), Lost { invalid: 3, ..none });
        assert_eq!(lost(|| Refused::Frame(Errno::ENOMEM.into())), Lost { other: 3, ..none });
        assert_eq!(lost(|| Refused::WouldBlock), Lost { other: 3, ..none });
    }
}

//! From the interface to the wire: read until the device is empty, cut, seal, send in runs, by one path or by two; frames that do not
//! fit one datagram go in pieces. Never a timer to fill a batch. Frames that are to wait do so in the device.

use super::device::Device;
use super::guard::Guard;
use super::handoff::{Handoff, Inbox};
use super::mailbox::Outbox;
use super::turns::{Turn, Turns};
use super::{BATCH, LAYOUT, Seal, Traffic, Treatment};
use crate::packet::Batch;
use crate::packet::marks;
use crate::packet::pieces::Part;
use crate::packet::split::{self, Checksums, Plan, Refused, Taken};
use crate::protocol::constants::MIN_TRANSPORT;
use crate::protocol::levels::Levels;
use crate::protocol::wire::data_flags;
use crate::protocol::{EgressUpdate, Path};
use crate::sys::udp::{self, Run, SendBatch, SendReport};
use crate::sys::wake::wait_readable;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Bytes of a frame that are read straight to where they are sealed. A packet of the usual sizes fits; of a super-packet
/// this much is moved once more.
const NEAR: usize = 2_048;

/// The most bytes of a super-packet.
const SUPER_PACKET: usize = 1 << 16;

/// What the loop waits for: the device, and commands.
const FRAMES: u32 = 0b01;
const COMMANDS: u32 = 0b10;

/// The path, and the one that copies go by.
const FIRST: usize = 0;
const SECOND: usize = 1;

/// All the egress loop owns.
pub(super) struct Egress<S> {
    device: Arc<Device>,
    /// A frame that is to be cut, or longer than [`NEAR`].
    staging: Box<[u8]>,
    outlet: Outlet<S>,
}

/// What a datagram is sealed and sent with.
#[derive(Clone, Copy)]
struct Marks {
    /// Of its own header.
    flags: u8,
    /// The traffic class of the IP header before it.
    class: u8,
}

/// What comes after reading: the batch, sealed and sent.
struct Outlet<S> {
    sender: S,
    inbox: Inbox<EgressUpdate>,
    batch: Batch<Marks>,
    treatment: Treatment,
    sends: SendBatch,
    /// For the second path, which is to hold up nothing.
    copies: SendBatch,
    levels: Arc<Levels>,
    traffic: Arc<Traffic>,
    outbox: Outbox,
    /// Whether the local address of the path and of the second one was reported as bad since the last update.
    blamed: [bool; 2],
    guard: Guard,
}

impl<S: Seal> Egress<S> {
    pub(super) fn new(
        device: Arc<Device>,
        treatment: Treatment,
        sender: S,
        handoff: Arc<Handoff<EgressUpdate>>,
        levels: Arc<Levels>,
        traffic: Arc<Traffic>,
        outbox: Outbox,
    ) -> Self {
        let guard = Guard::new(&treatment, levels.clone(), outbox.clone());
        let outlet = Outlet {
            sender,
            inbox: Inbox::new(handoff),
            batch: Batch::new(LAYOUT),
            treatment,
            sends: SendBatch::new(BATCH),
            copies: SendBatch::hasty(BATCH),
            levels,
            traffic,
            outbox,
            blamed: [false; 2],
            guard,
        };
        Egress { device, staging: vec![0; NEAR + SUPER_PACKET].into(), outlet }
    }

    /// Reads until the device is empty, the batch is full or frames are to wait, and says whether there was anything. A run of segments
    /// goes out as soon as it is cut.
    fn read_frames(&mut self) -> io::Result<ControlFlow<(), bool>> {
        let mut any = false;
        self.outlet.guard.begin_turn();
        while !self.outlet.sender.is_held() {
            let checksums = self.outlet.checksums();
            let Some(room) = self.outlet.batch.room() else { break };
            let near = &mut room[..NEAR];
            let Some(frame) = self.device.read(near, &mut self.staging[NEAR..])? else { break };
            any = true;
            let in_place = frame.length <= NEAR && frame.header.gso.is_none();
            if !in_place {
                self.staging[..NEAR].copy_from_slice(near);
            }
            let bytes = if in_place { &mut near[..frame.length] } else { &mut self.staging[..frame.length] };
            let layer = self.device.layer();
            if self.outlet.guard.refuses(layer, bytes, &self.outlet.inbox.sockets)? {
                continue;
            }
            let class = self.outlet.treatment.dscp.outer(marks::class(layer, bytes));
            self.outlet.treatment.clamp(layer, bytes, &self.outlet.levels, frame.header.checksum.is_some());
            match split::take(layer, &frame.header, bytes, checksums, LAYOUT.frame) {
                Ok(Taken::Whole { partial }) => {
                    if !in_place {
                        room[..frame.length].copy_from_slice(&self.staging[..frame.length]);
                    }
                    let marks = Marks { flags: flags(partial), class };
                    if frame.length <= self.outlet.sender.longest() {
                        self.outlet.batch.push(frame.length, marks);
                    } else if self.outlet.push_cut(frame.length, marks, &mut self.staging).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(Taken::Run(plan)) => {
                    if self.outlet.send_run(&plan, class, &self.staging[..frame.length]).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Err(Refused::Malformed) => self.outlet.levels.drops.malformed.bump(),
                Err(Refused::TooBig) => self.outlet.levels.drops.too_big.bump(),
            }
        }
        Ok(ControlFlow::Continue(any))
    }
}

impl<S: Seal> Turns for Egress<S> {
    fn wait(&mut self) -> io::Result<u32> {
        let device = (!self.outlet.sender.is_held()).then(|| self.device.as_fd());
        let ready = wait_readable([device, Some(self.outlet.inbox.as_fd())], None)?;
        if ready & COMMANDS != 0 {
            self.outlet.inbox.still();
        }
        Ok(ready)
    }

    fn turn(&mut self, ready: u32) -> io::Result<Turn> {
        let read = if ready & FRAMES != 0 { self.read_frames()? } else { ControlFlow::Continue(false) };
        let ControlFlow::Continue(any) = read else { return Ok(Turn::Stop) };
        if self.outlet.flush().is_break() {
            return Ok(Turn::Stop);
        }
        Ok(if any { Turn::Busy } else { Turn::Idle })
    }
}

/// What a datagram is sealed with.
fn flags(partial: bool) -> u8 {
    if partial { data_flags::PARTIAL_CHECKSUM } else { 0 }
}

impl Marks {
    /// Those of a piece of a frame that has these.
    fn of_piece(self, part: Part) -> Marks {
        let piece = match part {
            Part { first: true, last: true } => 0,
            Part { first: true, last: false } => data_flags::FIRST_PIECE,
            Part { first: false, last: true } => data_flags::LAST_PIECE,
            Part { first: false, last: false } => data_flags::PIECE,
        };
        Marks { flags: self.flags | piece, ..self }
    }
}

impl<S: Seal> Outlet<S> {
    /// What becomes of inner checksums under the session in use.
    fn checksums(&self) -> Checksums {
        if self.sender.partial_checksum() { Checksums::Partial } else { Checksums::Full }
    }

    /// Takes the frame that lies in the batch's room as pieces. All of them must be in one batch, for so they are sealed under one key with
    /// nothing between them: where there are too few places left, what is before it goes first.
    fn push_cut(&mut self, length: usize, marks: Marks, aside: &mut [u8]) -> ControlFlow<()> {
        let longest = self.sender.longest();
        let meta = |part| marks.of_piece(part);
        if self.batch.push_cut(length, longest, meta) {
            return ControlFlow::Continue(());
        }
        if let Some(room) = self.batch.room() {
            aside[..length].copy_from_slice(&room[..length]);
            self.flush()?;
        }
        if let Some(room) = self.batch.room() {
            room[..length].copy_from_slice(&aside[..length]);
            self.batch.push_cut(length, longest, meta);
        }
        ControlFlow::Continue(())
    }

    /// Cuts a super-packet into the batch and sends it, in as many goes as it takes.
    fn send_run(&mut self, plan: &Plan, class: u8, frame: &[u8]) -> ControlFlow<()> {
        let (mut next, marks) = (0, Marks { flags: flags(plan.is_partial()), class });
        while next < plan.count() {
            let longest = self.sender.longest();
            next = if plan.length(0) <= longest {
                plan.fill(next, frame, &mut self.batch, &marks)
            } else {
                plan.fill_cut(next, frame, &mut self.batch, longest, |part| marks.of_piece(part))
            };
            self.flush()?;
        }
        ControlFlow::Continue(())
    }

    /// Takes updates, seals the batch and sends it.
    fn flush(&mut self) -> ControlFlow<()> {
        self.take_updates()?;
        let sender = &mut self.sender;
        self.batch.retain(|datagram, marks| sender.seal(marks.flags, datagram).is_ok());
        self.send();
        ControlFlow::Continue(())
    }

    fn take_updates(&mut self) -> ControlFlow<()> {
        let mut changed = false;
        self.inbox.take(|update| {
            self.sender.apply(update);
            changed = true;
        })?;
        if changed {
            self.blamed = [false; 2];
            self.guard.watch([self.sender.path(), self.sender.second()]);
        }
        if self.sender.take_keepalive() {
            self.send_keepalive();
        }
        ControlFlow::Continue(())
    }

    /// Sends the sealed batch by the path, and the same by the second one, and empties it. What is lost is what the path lost: nobody
    /// counts on the copies.
    fn send(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let path = self.sender.path();
        let report = match path {
            Some(path) => self.send_by(path, FIRST),
            None => SendReport { failed: self.batch.len(), ..SendReport::default() },
        };
        if let Some(second) = self.sender.second() {
            self.send_by(second, SECOND);
        }
        self.sender.handed_over();
        // A frame is counted with its first piece.
        let first = |marks: &Marks| matches!(marks.flags & data_flags::PIECE, 0 | data_flags::FIRST_PIECE);
        let frames = self.batch.iter().filter(|(_, marks)| first(marks)).count();
        self.batch.clear();
        self.traffic.packets.add(frames.min(report.sent) as u64);
        self.traffic.bytes.add((report.bytes - report.sent * MIN_TRANSPORT) as u64);
        self.traffic.errors.add(report.failed as u64);
        (0..report.too_big).for_each(|_| self.levels.drops.too_big.bump());
    }

    /// Sends the batch by one of the two paths, neighbours of one size and class as one run; what speaks against the path is told.
    fn send_by(&mut self, path: Path, which: usize) -> SendReport {
        let Some(socket) = self.inbox.sockets.get(path.socket) else {
            return SendReport { failed: self.batch.len(), ..SendReport::default() };
        };
        let own = self.treatment.dscp.own();
        let runs = self.batch.runs(|marks| marks.class).map(|(bytes, size, class)| {
            let run = Run::new(bytes, size);
            // What the socket does by itself need not be said.
            if class == own { run } else { run.with_class(class) }
        });
        let sends = if which == FIRST { &mut self.sends } else { &mut self.copies };
        let mut report = sends.send(socket, path.peer, path.local, runs);
        if report.too_big > 0 {
            self.outbox.too_big(path);
        }
        if let Some(error) = report.error.take() {
            self.blame(path, which, error);
        }
        report
    }

    /// An empty datagram on its own, so that it counts as no user packet.
    fn send_keepalive(&mut self) {
        let mut datagram = [0; MIN_TRANSPORT];
        if self.sender.seal(0, &mut datagram).is_err() {
            return;
        }
        for (which, path) in [(FIRST, self.sender.path()), (SECOND, self.sender.second())] {
            let Some(path) = path else { continue };
            let Some(socket) = self.inbox.sockets.get(path.socket) else { continue };
            if let Err(error) = socket.send_to(&datagram, path.peer, path.local) {
                self.blame(path, which, error);
            }
        }
        self.sender.handed_over();
    }

    /// Tells the engine, once for each path it gives, that the path's local address does not work.
    fn blame(&mut self, path: Path, which: usize, error: io::Error) {
        if path.local.is_some() && !self.blamed[which] && udp::unpins(&error) {
            self.blamed[which] = self.outbox.send_failed(path, error);
        }
    }
}

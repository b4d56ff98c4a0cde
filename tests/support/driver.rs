//! The driver of an end, as `src/control` and `src/dataplane` would be: it carries out what the engine says, wakes it in
//! time, and takes what comes.

use super::{
    trace::fingerprint,
    world::{Flight, World, who},
};
use std::net::SocketAddr;
use tieline::{
    packet::pieces::{Joined, Name, Part, Piece, cut},
    protocol::{
        EgressUpdate, Event, HEADER, IngressUpdate, Input, Output, Path, Received, Small, SocketId, TAG, Time,
        control::State,
        wire::{Kind, data_flags},
    },
};

impl World {
    /// Carries out everything the engine says, in order, then looks at what it came to.
    pub fn carry_out(&mut self, end: usize) {
        let mut outputs = 0;
        while let Some(output) = self.ends[end].process().link.poll_output() {
            self.carry_out_one(end, output);
            outputs += 1;
        }
        let process = self.ends[end].process();
        process.watch.settled(outputs);
        process.watch.look(&process.link.status(), &process.link.ways());
        let (interface_up, state) = (self.ends[end].interface_up, self.status(end).state);
        assert_eq!(
            state == State::AdminDown,
            !interface_up,
            "{}: {state:?}, its interface up: {interface_up}",
            who(end)
        );
        let process = self.ends[end].process();
        let next = process.link.poll_timeout();
        if process.link.is_closed() {
            return self.kill(end);
        }
        self.set_timer(end, next);
    }

    fn carry_out_one(&mut self, end: usize, output: Output) {
        match output {
            Output::Ingress(update) => self.ingress(end, update),
            Output::Egress(update) => self.egress(end, update),
            Output::Send(transmit) => self.transmit(end, transmit.path, transmit.datagram),
            Output::Event(event) => self.event(end, event),
        }
    }

    /// The same, where a test polled the outputs itself.
    pub fn carry_out_these(&mut self, end: usize, outputs: Vec<Output>) {
        for output in outputs {
            self.carry_out_one(end, output);
        }
        self.carry_out(end);
    }

    /// The driver sleeps until `next`; a slow one longer.
    fn set_timer(&mut self, end: usize, next: Option<Time>) {
        let now = self.now;
        let e = &mut self.ends[end];
        let lateness = e.setup.lateness.as_nanos() as u64;
        assert!(lateness > 0 || next.is_none_or(|t| t >= e.time(now)), "{}'s next timeout lies in the past", who(end));
        if e.timer != next {
            e.timer = next;
            e.wakes =
                next.map(|t| e.world_time(t).max(now) + if lateness > 0 { self.dice.range(0..lateness) } else { 0 });
        }
    }

    fn ingress(&mut self, end: usize, update: IngressUpdate) {
        let process = self.ends[end].process();
        match &update {
            IngressUpdate::Install(opening) => process.watch.installed(opening.index),
            IngressUpdate::Remove(index) => process.watch.removed(*index),
            IngressUpdate::Current { .. } | IngressUpdate::Keys(_) => {}
        }
        process.receiver.apply(update);
    }

    fn egress(&mut self, end: usize, update: EgressUpdate) {
        let process = self.ends[end].process();
        process.sender.apply(update);
        let held = process.sender.is_held();
        if process.sender.take_keepalive() {
            self.seal(end, &[]);
        }
        if !held {
            let waiting = std::mem::take(&mut self.ends[end].held);
            waiting.iter().for_each(|frame| _ = self.seal(end, frame));
        }
    }

    /// Seals a frame and sends it; an empty one is a keepalive. False where there is no session.
    pub(super) fn seal(&mut self, end: usize, frame: &[u8]) -> bool {
        if self.ends[end].process().sender.is_held() && !frame.is_empty() {
            self.ends[end].held.push_back(frame.to_vec());
            return true;
        }
        let longest = self.ends[end].process().sender.longest();
        let mut datagrams = Vec::new();
        for (range, part) in cut(frame.len(), longest) {
            let piece = &frame[range];
            let mut datagram = [&[0; HEADER], piece, &[0; TAG]].concat();
            if self.ends[end].process().sender.seal(piece_flags(part), &mut datagram).is_err() {
                return false;
            }
            datagrams.push(datagram);
        }
        let process = self.ends[end].process();
        process.sender.handed_over();
        if let Some(path) = process.sender.path() {
            if !frame.is_empty() {
                self.frames.sealed(self.now, end, &self.ends, frame);
                self.ends[end].sealed += 1;
                self.ends[end].cut += u64::from(datagrams.len() > 1);
            }
            let second = self.ends[end].process().sender.second();
            for datagram in datagrams {
                if let Some(second) = second {
                    self.put_out(end, second, datagram.clone()); // the same bytes: no nonce is used again
                }
                self.transmit(end, path, datagram);
            }
        }
        true
    }

    fn event(&mut self, end: usize, event: Event) {
        let now = self.now;
        self.trace.note(now, format!("{end}{event:?}"), || format!("{}: {event:?}", who(end)));
        match &event {
            // The sockets of its ways are all there.
            Event::WantSocket | Event::UsesSocket(_) if !self.ends[end].setup.params.ways.is_empty() => {}
            Event::WantSocket => {
                let used = self.ends[end].used;
                let listens = self.ends[1 - end].setup.knows_peer;
                let address = self.fresh_address(end);
                let e = &mut self.ends[end];
                e.sockets.retain(|id, _| *id == used || listens && *id == SocketId(0));
                let id = (0..).map(SocketId).find(|id| !e.sockets.contains_key(id)).expect("a free number");
                e.sockets.insert(id, address);
                let time = e.time(now);
                e.process().link.handle_socket(time, id);
            }
            Event::UsesSocket(id) => {
                let listens = self.ends[1 - end].setup.knows_peer;
                let e = &mut self.ends[end];
                e.used = *id;
                e.sockets.retain(|other, _| other == id || listens && *other == SocketId(0));
            }
            Event::SameKey(Some(known)) => panic!("{} takes one machine for two: {known:?}", who(end)),
            Event::Session { post_quantum, epoch, .. } => {
                // It is gone again where a Goodbye was the first thing said under it.
                if let Some(session) = self.status(end).session {
                    self.ends[end].process().watch.session(*epoch, session.keys);
                }
                let hybrid = self.ends.iter().any(|end| end.setup.params.post_quantum);
                assert!(*post_quantum || !hybrid, "a session came into use that is not hybrid");
            }
            _ => {}
        }
        self.ends[end].events.push((now, event));
    }

    /// The socket call: it fails where the address to send from is not this machine's.
    fn transmit(&mut self, end: usize, path: Path, bytes: Vec<u8>) {
        let now = self.now;
        self.ends[end].process().watch.sent(now, path, &bytes);
        self.put_out(end, path, bytes);
    }

    fn put_out(&mut self, end: usize, path: Path, bytes: Vec<u8>) {
        let now = self.now;
        let e = &mut self.ends[end];
        let Some(&from) = e.sockets.get(&path.socket) else {
            panic!("{} sends from {:?}, which is closed", who(end), path.socket);
        };
        if path.local.is_some_and(|local| local != e.local) {
            self.trace.note(now, ("no send", end), || format!("{} cannot send from {:?}", who(end), path.local));
            let time = self.ends[end].time(now);
            self.ends[end].process().link.handle_send_failure(time, path);
            return;
        }
        self.launch(Flight { sender: end, from, to: path.peer, bytes });
    }

    /// A PathCheck that arrives is noted with the address it was sent to; its answer proves that.
    fn note_path_check(&mut self, end: usize, to: SocketAddr, message: &[u8]) {
        let Some(cookie) = message.get(4..12).and_then(|cookie| <[u8; 8]>::try_from(cookie).ok()) else { return };
        match message[0] {
            4 => _ = self.checks.insert(cookie, to),
            5 => {
                if let Some(&proven) = self.checks.get(&cookie) {
                    self.ends[end].process().watch.named(&[proven]);
                }
            }
            _ => {}
        }
    }

    /// An end's ingress loop takes a datagram.
    pub fn receive(&mut self, end: usize, socket: SocketId, flight: Flight) {
        let Flight { from, to, mut bytes, .. } = flight;
        let time = self.ends[end].time(self.now);
        let path = Path { socket, local: Some(self.ends[end].local), peer: from };
        let header: Vec<u8> = bytes.iter().take(32).copied().collect();
        let drops = self.ends[end].drops();
        self.ends[end].arrived.insert((fingerprint(&bytes), from));
        let process = self.ends[end].process();
        process.watch.received(from, bytes.len());
        let received = process.receiver.receive(time, path, &mut bytes);
        let text = HEADER..bytes.len().saturating_sub(TAG);
        let dropped = self.ends[end].drops() != drops;
        if !dropped {
            self.ends[end].process().watch.opened(&header);
        }
        if matches!(received, Received::Control { .. }) {
            self.note_path_check(end, to, &bytes[text.clone()]);
        }
        let input = match received {
            Received::Frame { .. } => {
                self.frames.delivered(end, &bytes[text]);
                self.ends[end].delivered += 1;
                None
            }
            Received::Piece { flags, session, counter } => {
                let (name, part) = (Name { origin: session, number: counter }, part(flags));
                self.put_together(end, &bytes, text, Piece { name, part, congested: false }, time);
                None
            }
            Received::Cold => Some(Input::Cold { path, datagram: Small::new(&bytes) }),
            Received::Control { session, counter } => {
                Some(Input::Control { path, session, counter, message: Small::new(&bytes[text]) })
            }
            Received::Nothing => None,
        };
        if let Some(input) = input {
            self.hand_over(end, input);
        }
        while let Some(process) = &mut self.ends[end].process
            && let Some(notice) = process.receiver.poll_notice()
        {
            if !self.dice.chance(self.notice_loss) {
                self.hand_over(end, Input::Notice(notice));
            }
        }
    }

    /// A piece of a frame came; each comes alone here, so that each is kept.
    fn put_together(&mut self, end: usize, datagram: &[u8], text: std::ops::Range<usize>, piece: Piece, now: Time) {
        let batch = datagram.len();
        let mut buffer = [datagram, &[0; 10_000]].concat();
        let pieces = &mut self.ends[end].process().pieces;
        let joined = pieces.push(&mut buffer, batch, 0..batch, text, piece, now.0);
        pieces.finish(&buffer);
        match joined {
            Joined::Waits => {}
            Joined::Whole { frame, .. } => {
                self.frames.delivered(end, &buffer[frame]);
                self.ends[end].delivered += 1;
            }
            lost => panic!("{}: {lost:?}", who(end)),
        }
    }

    /// The engine takes something out of its mailbox.
    pub fn hand_over(&mut self, end: usize, input: Input) {
        let time = self.ends[end].time(self.now);
        let begins = match &input {
            Input::Cold { datagram, .. } => datagram[0] == Kind::Response as u8,
            Input::Control { message, .. } => message.first() == Some(&2), // RekeyResp
            Input::Notice(_) => false,
        };
        let process = self.ends[end].process();
        process.watch.handles(begins);
        process.link.handle_input(time, input);
        self.carry_out(end);
    }
}

/// What a piece is sealed with.
fn piece_flags(part: Part) -> u8 {
    match (part.first, part.last) {
        (true, true) => 0,
        (true, false) => data_flags::FIRST_PIECE,
        (false, true) => data_flags::LAST_PIECE,
        (false, false) => data_flags::PIECE,
    }
}

fn part(flags: u8) -> Part {
    let piece = flags & data_flags::PIECE;
    Part { first: piece == data_flags::FIRST_PIECE, last: piece == data_flags::LAST_PIECE }
}

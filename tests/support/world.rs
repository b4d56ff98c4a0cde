//! The world itself: time, the network, and what happens to both ends in them.

use super::{
    A, B, Dice,
    end::{End, EndSetup},
    trace::{Lines, Trace, fingerprint},
    watch::Frames,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use tieline::protocol::{SocketId, control::State, link::Status, wire::Kind};

/// A datagram on its way.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Who sent it, where it was not made up.
    pub sender: usize,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

impl Flight {
    pub fn kind(&self) -> Option<Kind> {
        Kind::of(&self.bytes)
    }

    /// Whether it is part of a cold open.
    pub fn cold(&self) -> bool {
        self.kind().is_some_and(|kind| kind.cold_len().is_some())
    }
}

/// What a scenario decides about a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The network does with it what it does.
    Pass,
    /// The same, so many nanoseconds later.
    Late(u64),
    /// Lost.
    Drop,
    /// Kept in [`World::held`].
    Hold,
}

/// The network's manners.
#[derive(Clone, Debug)]
pub struct Network {
    /// Of what each end sends.
    pub loss: [f64; 2],
    pub duplicate: f64,
    pub corrupt: f64,
    /// One way, drawn for each datagram: so some overtake others.
    pub delay: std::ops::Range<u64>,
    /// Kept back for up to five seconds, now and then for a minute.
    pub hold_back: f64,
    /// Nothing passes that this end sends.
    pub blocked: [bool; 2],
    /// The largest datagram that passes of what each end sends.
    pub largest: [usize; 2],
}

impl Default for Network {
    fn default() -> Network {
        Network {
            loss: [0.0; 2],
            duplicate: 0.0,
            corrupt: 0.0,
            delay: 10_000_000..10_000_001,
            hold_back: 0.0,
            blocked: [false; 2],
            largest: [usize::MAX; 2],
        }
    }
}

/// What is to happen at a moment.
enum Happening {
    Arrive(Flight),
    Frame(usize),
    Resolve(usize),
}

/// How an end's user traffic goes.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Frames a second.
    pub rate: f64,
    pub longest: usize,
}

type Decide = Box<dyn FnMut(&Flight) -> Fate>;

/// See the module.
pub struct World {
    pub now: u64,
    pub seed: u64,
    pub dice: Dice,
    pub ends: [End; 2],
    pub network: Network,
    pub traffic: [Option<Traffic>; 2],
    pub trace: Trace,
    /// Notices this often do not reach the engine.
    pub notice_loss: f64,
    /// Every datagram sent, where a scenario wants them.
    pub log: Option<Vec<Flight>>,
    pub held: Vec<Flight>,
    decide: Option<Decide>,
    pub frames: Frames,
    /// Cookies of PathChecks that arrived, and where those had been sent to.
    pub(super) checks: BTreeMap<[u8; 8], SocketAddr>,
    happenings: BTreeMap<(u64, u64), Happening>,
    order: u64,
    next_port: u16,
}

impl World {
    pub fn new(seed: u64, setups: [EndSetup; 2]) -> World {
        let publics = [setups[0].public(), setups[1].public()];
        let [a, b] = setups;
        let ip = |n| IpAddr::V4(Ipv4Addr::new(192, 0, 2, n));
        World {
            now: 0,
            seed,
            dice: Dice::new(seed),
            ends: [End::new(a, publics[1], ip(1)), End::new(b, publics[0], ip(2))],
            network: Network::default(),
            traffic: [None; 2],
            trace: Trace::default(),
            notice_loss: 0.0,
            log: None,
            held: Vec::new(),
            decide: None,
            frames: Frames::default(),
            checks: BTreeMap::new(),
            happenings: BTreeMap::new(),
            order: 0,
            next_port: 10_000,
        }
    }

    pub fn keep_lines(&mut self, lines: Lines) {
        self.trace.keep(lines);
    }

    /// Asks a scenario about every datagram sent from now on.
    pub fn decide(&mut self, decide: impl FnMut(&Flight) -> Fate + 'static) {
        self.decide = Some(Box::new(decide));
    }

    pub fn decide_nothing(&mut self) {
        self.decide = None;
    }

    fn at(&mut self, time: u64, what: Happening) {
        self.order += 1;
        self.happenings.insert((time, self.order), what);
    }

    // --- ends -------------------------------------------------------------------------------------------------

    /// An address of this end that was never used before.
    pub(super) fn fresh_address(&mut self, end: usize) -> SocketAddr {
        self.next_port += 1;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, end as u8 + 1)), self.next_port)
    }

    /// Starts both ends.
    pub fn start_both(&mut self) {
        let address = self.fresh_address(B);
        self.ends[B].sockets.insert(SocketId(0), address); // A may knock before B runs
        for end in [A, B] {
            self.name_peer(end);
            self.start(end);
        }
    }

    /// The peer's address by name, as of now.
    fn name_peer(&mut self, end: usize) {
        if self.ends[end].setup.knows_peer {
            self.ends[end].addresses = self.ends[1 - end].sockets.get(&SocketId(0)).copied().into_iter().collect();
        }
    }

    pub fn start(&mut self, end: usize) {
        for socket in self.ends[end].own_sockets() {
            let address = self.fresh_address(end);
            self.ends[end].sockets.entry(socket).or_insert(address);
        }
        let (now, seed) = (self.now, self.seed.wrapping_add(1 + end as u64));
        self.trace.note(now, ("start", end), || format!("{} starts", who(end)));
        self.ends[end].asleep_until = 0;
        self.ends[end].born = self.log.as_ref().map_or(0, Vec::len);
        self.ends[end].start(now, seed);
        self.tell_addresses(end);
    }

    /// Tells a process where its peer is, on each of its ways if it has some.
    fn tell_addresses(&mut self, end: usize) {
        let addresses = self.ends[end].addresses.clone();
        for way in 0..self.ends[end].setup.params.ways.len().max(1) {
            self.name(end, way, &addresses);
        }
        self.carry_out(end);
    }

    /// Names a process these addresses of its peer's: for this one of its ways, if it has some. What comes of it is not carried out.
    pub fn name(&mut self, end: usize, way: usize, addresses: &[SocketAddr]) {
        let time = self.ends[end].time(self.now);
        let process = self.ends[end].process();
        process.watch.named(addresses);
        process.link.handle_addresses(time, way, addresses);
    }

    /// The end's process is gone, without a word.
    pub fn kill(&mut self, end: usize) {
        let now = self.now;
        self.trace.note(now, ("kill", end), || format!("{} is killed", who(end)));
        let e = &mut self.ends[end];
        (e.process, e.timer, e.wakes, e.closing, e.asleep_until) = (None, None, None, false, 0);
        let own = e.own_sockets();
        e.sockets.retain(|id, _| own.contains(id));
        e.used = SocketId(0);
    }

    /// Closes the end's process in good manners; it is gone once it said goodbye.
    pub fn close(&mut self, end: usize) {
        let now = self.now;
        self.trace.note(now, ("close", end), || format!("{} closes", who(end)));
        let time = self.ends[end].time(now);
        if let Some(process) = &mut self.ends[end].process {
            process.link.close(time);
            self.ends[end].closing = true;
            self.carry_out(end);
        }
    }

    /// The end's config has other keys now, and a running process reads it.
    pub fn reload(&mut self, end: usize) {
        let now = self.now;
        self.trace.note(now, ("reload", end), || format!("{} reads its keys again", who(end)));
        if self.ends[end].running() && self.ends[end].asleep_until > now {
            self.ends[end].asleep_until = 0; // whoever says so has woken it
            self.timeout(end);
        }
        if self.ends[end].running() && !self.ends[end].closing {
            self.ends[end].process().watch.handles(false);
            self.ends[end].reload(now);
            self.carry_out(end);
        }
    }

    /// The operator takes an end's interface down, or up again; whoever does so has woken the machine.
    pub fn set_interface(&mut self, end: usize, up: bool) {
        let now = self.now;
        self.trace.note(now, ("interface", end, up), || format!("{}'s interface is up: {up}", who(end)));
        if self.ends[end].running() && self.ends[end].asleep_until > now {
            self.ends[end].asleep_until = 0;
            self.timeout(end);
        }
        if self.ends[end].running() && !self.ends[end].closing {
            let time = self.ends[end].time(now);
            self.ends[end].interface_up = up;
            let process = self.ends[end].process();
            process.watch.handles(false);
            process.link.handle_interface(time, up);
            self.carry_out(end);
        }
    }

    /// The end holds the link back for so long, from the next time it is Up.
    pub fn set_hold(&mut self, end: usize, own: Duration) {
        self.trace.note(self.now, ("hold", end, own), || format!("{} holds the link back for {own:?}", who(end)));
        self.ends[end].process().link.handle_hold(own);
    }

    /// The network shows this end's sockets under new addresses; where the peer has its name, it hears of it later.
    pub fn rebind(&mut self, end: usize) {
        let ids: Vec<SocketId> = self.ends[end].sockets.keys().copied().collect();
        for id in ids {
            let address = self.fresh_address(end);
            self.ends[end].sockets.insert(id, address);
        }
        let now = self.now;
        self.trace.note(now, ("rebind", end), || format!("{} is now at {:?}", who(end), self.ends[end].sockets));
        if self.ends[1 - end].setup.knows_peer {
            let delay = self.dice.ms(0..3_000).as_nanos() as u64;
            self.at(self.now + delay, Happening::Resolve(1 - end));
        }
    }

    /// The machine itself has another address.
    pub fn renumber(&mut self, end: usize) {
        let last = self.dice.range(10..250) as u8;
        self.ends[end].local = IpAddr::V4(Ipv4Addr::new(192, 0, 2, last));
        self.rebind(end);
    }

    /// The machine's routes lead to the peer by another uplink than before, and so from another address.
    pub fn reroute(&mut self, end: usize) {
        self.renumber(end);
        let time = self.ends[end].time(self.now);
        let ids: Vec<SocketId> = self.ends[end].sockets.keys().copied().collect();
        ids.into_iter().for_each(|id| self.ends[end].process().link.handle_route_change(time, id));
        self.carry_out(end);
    }

    /// The machine sleeps: nothing reaches it, nothing is done, and `CLOCK_BOOTTIME` runs on. What is due waits.
    pub fn suspend(&mut self, end: usize, time: Duration) {
        let until = self.now + time.as_nanos() as u64;
        self.trace.note(self.now, ("suspend", end, until), || format!("{} sleeps for {time:?}", who(end)));
        let e = &mut self.ends[end];
        e.asleep_until = e.asleep_until.max(until);
        e.wakes = e.wakes.map(|at| at.max(until));
    }

    pub fn awake(&self, end: usize) -> bool {
        self.ends[end].running() && self.ends[end].asleep_until <= self.now
    }

    /// This end's clock leaps ahead.
    pub fn leap(&mut self, end: usize, by: Duration) {
        self.trace.note(self.now, ("leap", end, by), || format!("{}'s clock leaps by {by:?}", who(end)));
        let now = self.now;
        let e = &mut self.ends[end];
        e.setup.boot += by.as_nanos() as u64;
        e.wakes = e.timer.map(|timer| e.world_time(timer).max(now).max(e.asleep_until));
        if let Some(process) = &mut e.process {
            process.watch.leapt();
        }
    }

    /// Both ends learn the peer's address of now, where they have its name.
    pub fn resolve_all(&mut self) {
        for end in 0..2 {
            self.at(self.now, Happening::Resolve(end));
        }
    }

    pub fn status(&self, end: usize) -> Status {
        self.ends[end].status().expect("a running process")
    }

    /// Whether both ends run, are Up, and use the same session.
    pub fn together(&self) -> bool {
        let line = |end: &End| {
            let status = end.status()?;
            let rank = end.process.as_ref()?.watch.rank()?;
            Some((status.state == State::Up, status.session.map(|s| (s.epoch, s.post_quantum))?, rank))
        };
        let (a, b) = (line(&self.ends[0]), line(&self.ends[1]));
        a == b && a.is_some_and(|(up, ..)| up)
    }

    // --- time -------------------------------------------------------------------------------------------------

    /// Does the next thing there is to do, if it is due by `end`; false when there is none.
    pub fn step(&mut self, end: u64) -> bool {
        let timer = (0..2).filter_map(|e| Some((self.ends[e].wakes?, e))).min();
        let happening = self.happenings.first_key_value().map(|(key, _)| *key);
        match (timer, happening) {
            (Some((at, e)), next) if at <= end && next.is_none_or(|(t, _)| at <= t) => {
                self.now = self.now.max(at);
                self.timeout(e);
            }
            (_, Some(key)) if key.0 <= end => {
                self.now = self.now.max(key.0);
                if let Some(what) = self.happenings.remove(&key) {
                    self.happen(what);
                }
            }
            _ => return false,
        }
        true
    }

    pub fn run_to(&mut self, end: u64) {
        while self.step(end) {}
        self.now = self.now.max(end);
    }

    pub fn run(&mut self, time: Duration) {
        self.run_to(self.now + time.as_nanos() as u64);
    }

    /// Runs until `done`, or until the limit: false.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now + limit.as_nanos() as u64;
        while !done(self) {
            if !self.step(end) {
                self.now = end;
                return done(self);
            }
        }
        true
    }

    /// Wakes this end, whether anything is due or not.
    pub fn timeout(&mut self, end: usize) {
        let (now, time) = (self.now, self.ends[end].time(self.now));
        self.trace.note(now, ("timeout", end), || format!("{} wakes", who(end)));
        (self.ends[end].timer, self.ends[end].wakes) = (None, None); // it has fired
        let process = self.ends[end].process();
        process.watch.timeout(now);
        process.watch.handles(false);
        process.link.handle_timeout(time);
        self.carry_out(end);
        if let Some(next) = self.ends[end].process.as_ref().and_then(|p| p.link.poll_timeout()) {
            assert!(next > time, "{}'s next timeout is {:?} before now, just after one", who(end), time.since(next));
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Arrive(flight) => self.arrive(flight),
            Happening::Frame(end) => self.frame(end),
            Happening::Resolve(end) => {
                self.name_peer(end);
                let addresses = self.ends[end].addresses.clone();
                self.trace.note(self.now, ("resolve", end), || format!("{} resolves {addresses:?}", who(end)));
                if self.awake(end) {
                    self.tell_addresses(end);
                }
            }
        }
    }

    // --- the network ------------------------------------------------------------------------------------------

    /// What the network does with a datagram.
    pub fn launch(&mut self, flight: Flight) {
        let now = self.now;
        self.trace.note(now, (flight.sender, fingerprint(&flight.bytes)), || {
            format!("{} sends {}", who(flight.sender), show(&flight))
        });
        if let Some(log) = &mut self.log {
            log.push(flight.clone());
        }
        let mut late = 0;
        match self.decide.as_mut().map_or(Fate::Pass, |decide| decide(&flight)) {
            Fate::Pass => {}
            Fate::Late(by) => late = by,
            Fate::Drop => return self.trace.note(now, "lost", || "  … lost".into()),
            Fate::Hold => return self.held.push(flight),
        }
        if flight.bytes.len() > self.network.largest[flight.sender] {
            return self.trace.note(now, "lost", || "  … too large".into());
        }
        if self.network.blocked[flight.sender] || self.dice.chance(self.network.loss[flight.sender]) {
            return self.trace.note(now, "lost", || "  … lost".into());
        }
        let copies = 1 + u64::from(self.dice.chance(self.network.duplicate));
        for _ in 0..copies {
            let mut copy = flight.clone();
            if self.dice.chance(self.network.corrupt) {
                self.damage(&mut copy.bytes);
            }
            let mut delay = late + self.dice.range(self.network.delay.clone());
            if self.dice.chance(self.network.hold_back) {
                let longest = if self.dice.chance(0.1) { 60 } else { 5 };
                delay += self.dice.range(0..longest * 1_000_000_000);
            }
            self.at(now + delay, Happening::Arrive(copy));
        }
    }

    /// Flips a bit, or cuts the end off.
    pub fn damage(&mut self, bytes: &mut Vec<u8>) {
        let at = self.dice.range(0..bytes.len().max(1) as u64) as usize;
        if self.dice.chance(0.3) {
            bytes.truncate(at);
        } else if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << self.dice.range(0..8);
        }
    }

    /// Sends what was held back on its way, in order.
    pub fn release(&mut self, flight: Flight) {
        let delay = self.network.delay.start;
        self.at(self.now + delay, Happening::Arrive(flight));
    }

    /// The datagram reaches whoever has its address now, if anyone does.
    pub fn arrive(&mut self, flight: Flight) {
        let place = (0..2).find_map(|end| {
            let socket = self.ends[end].sockets.iter().find(|(_, address)| **address == flight.to)?;
            Some((end, *socket.0))
        });
        match place {
            Some((end, socket)) if self.awake(end) => {
                let now = self.now;
                self.trace.note(now, (end, "gets"), || format!("{} gets {}", who(end), show(&flight)));
                self.receive(end, socket, flight);
            }
            _ => {}
        }
    }

    /// Hands an end a datagram as if it had just come from `from`; gives what it sends at once in answer.
    pub fn give(&mut self, end: usize, from: SocketAddr, bytes: &[u8]) -> Vec<Flight> {
        let log = self.log.get_or_insert_default();
        let before = log.len();
        let (&socket, &to) = self.ends[end].sockets.first_key_value().expect("a socket");
        self.receive(end, socket, Flight { sender: 1 - end, from, to, bytes: bytes.to_vec() });
        self.log.as_ref().map(|log| log[before..].to_vec()).unwrap_or_default()
    }

    /// What was sent since this was last asked with the same `read`.
    pub fn news(&self, read: &mut usize) -> Vec<Flight> {
        let log: Vec<Flight> = self.log.iter().flatten().skip(*read).cloned().collect();
        *read += log.len();
        log
    }

    /// What `sender` sent of this kind so far.
    pub fn logged(&self, sender: usize, kind: Kind) -> Vec<Flight> {
        let log = self.log.iter().flatten();
        log.filter(|flight| flight.sender == sender && flight.kind() == Some(kind)).cloned().collect()
    }

    // --- user traffic -----------------------------------------------------------------------------------------

    /// Both ends begin to send frames at random times.
    pub fn start_traffic(&mut self, traffic: Traffic) {
        for end in 0..2 {
            self.traffic[end] = Some(traffic);
            self.at(self.now, Happening::Frame(end));
        }
    }

    pub fn stop_traffic(&mut self) {
        self.traffic = [None; 2];
    }

    fn frame(&mut self, end: usize) {
        let Some(traffic) = self.traffic[end] else { return };
        let pause = self.dice.range(0..(2e9 / traffic.rate) as u64);
        self.at(self.now + pause, Happening::Frame(end));
        if self.awake(end) {
            self.send_frame(end, traffic.longest);
            self.carry_out(end); // the send may have failed
        }
    }

    /// Seals and sends one frame that is like no other; false where there is no session.
    pub fn send_frame(&mut self, end: usize, longest: usize) -> bool {
        let len = 16 + self.dice.range(0..longest as u64) as usize;
        let mut frame = vec![end as u8; len];
        frame[..8].copy_from_slice(&self.order.to_be_bytes());
        self.order += 1;
        self.dice.fill(&mut frame[8..]);
        self.seal(end, &frame)
    }
}

pub(super) fn who(end: usize) -> char {
    if end == 0 { 'A' } else { 'B' }
}

/// A datagram in a line of a trace.
fn show(flight: &Flight) -> String {
    let name = match (flight.kind(), super::watch::name(&flight.bytes)) {
        (Some(kind), Some((index, _, counter))) => format!("{kind:?} {index:08x}/{counter}"),
        (Some(kind), None) => format!("{kind:?}"),
        (None, _) => "junk".into(),
    };
    format!("{name} of {} bytes {} → {}", flight.bytes.len(), flight.from, flight.to)
}

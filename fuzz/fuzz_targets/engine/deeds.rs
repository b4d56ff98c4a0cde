//! What the network, time and the machines do.

use super::{
    Story,
    support::{Fate, Flight, forge::Forgery, forge::inject, scenes::stranger, trace::fingerprint},
};
use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};
use tieline::protocol::{Path, SocketId};

impl Story<'_> {
    // --- time -------------------------------------------------------------------------------------------------

    /// Lets time pass, and all that is due in it happen.
    pub fn pass(&mut self, time: Duration) {
        let end = self.world.now + time.as_nanos() as u64;
        while self.steps > 0 && self.world.step(end) {
            self.steps -= 1;
        }
        if self.steps > 0 {
            self.world.now = self.world.now.max(end);
        }
    }

    /// `r`, `w` and how long: time passes, on a network that carries or holds what is sent in it.
    pub fn run(&mut self, fate: Fate) {
        let time = self.span();
        self.fate.set(fate);
        self.pass(time);
        self.fate.set(Fate::Hold);
    }

    /// `n`: whatever is due next.
    pub fn next(&mut self) {
        self.steps -= 1;
        self.world.step(1 << 62);
    }

    /// `t` and who: wakes an engine, whether anything is due or not.
    pub fn timeout(&mut self) {
        let end = self.end();
        if self.world.awake(end) {
            self.world.timeout(end);
        }
    }

    /// `l`, who and how far (a power of two, in nanoseconds): a clock leaps ahead.
    pub fn leap(&mut self) {
        let (end, by) = (self.end(), 1 << (self.number() % 62));
        if self.world.ends[end].setup.boot < 1 << 62 {
            self.world.leap(end, Duration::from_nanos(by));
        }
    }

    /// `z`, who and how long: a machine sleeps.
    pub fn suspend(&mut self) {
        let (end, time) = (self.end(), self.span());
        if self.world.ends[end].running() {
            self.world.suspend(end, time);
        }
    }

    // --- the network ------------------------------------------------------------------------------------------

    /// The datagram held that the input says, 0 being the oldest.
    fn pick(&mut self) -> Option<usize> {
        let which = self.number();
        which.checked_rem(self.world.held.len())
    }

    /// `d`, `c` and which: a datagram arrives, or a copy of it.
    pub fn deliver(&mut self, copy: bool) {
        let Some(at) = self.pick() else { return };
        let flight = if copy { self.world.held[at].clone() } else { self.world.held.remove(at) };
        self.world.arrive(flight);
    }

    /// `a`, which and from where: it arrives from another address, as by a NAT that forgot, or one who copies.
    pub fn deliver_from_elsewhere(&mut self) {
        let (at, from) = (self.pick(), self.address());
        let Some(at) = at else { return };
        let flight = Flight { from, ..self.world.held.remove(at) };
        self.world.arrive(flight);
    }

    /// `x` and which: it is lost.
    pub fn lose(&mut self) {
        if let Some(at) = self.pick() {
            self.world.held.remove(at);
        }
    }

    /// `f` and who: a user frame.
    pub fn frame(&mut self) {
        let end = self.end();
        if self.world.awake(end) {
            self.world.send_frame(end, 40);
            self.world.carry_out(end); // the send may have failed
        }
    }

    /// Addresses a datagram may come from and engines may be told of: of both ends, and of others.
    pub fn address(&mut self) -> SocketAddr {
        match self.number() % 6 {
            end @ (0 | 1) => self.world.ends[end].sockets.values().next().copied().unwrap_or_else(stranger),
            2 => stranger(),
            3 => "[2001:db8::7]:7".parse().expect("an address"),
            4 => "203.0.113.66:667".parse().expect("an address"),
            _ => "0.0.0.0:0".parse().expect("an address"),
        }
    }

    // --- machines ---------------------------------------------------------------------------------------------

    /// `s` and who: a process is killed, if there is one, and another started.
    pub fn restart(&mut self) {
        let end = self.end();
        if self.world.ends[end].running() {
            self.world.kill(end);
        }
        self.held[end] = None;
        self.world.start(end);
    }

    /// `q` and who: a process closes in good manners.
    pub fn close(&mut self) {
        let end = self.end();
        if self.world.awake(end) {
            self.world.close(end);
        }
    }

    /// `v` and who: a NAT gives an end another address (0, 1), or its machine gets another one (2, 3), or its interface is taken down,
    /// or up again (4, 5).
    pub fn rebind(&mut self) {
        match self.number() % 6 {
            end @ (0 | 1) => self.world.rebind(end),
            end @ (2 | 3) => self.world.renumber(end - 2),
            end => self.world.set_interface(end - 4, !self.world.ends[end - 4].interface_up),
        }
    }

    /// `u`, who, how many and which: an engine is told where its peer is, on the way that comes behind if it has some.
    pub fn addresses(&mut self) {
        let (end, count) = (self.end(), self.number() % 6);
        let addresses: Vec<SocketAddr> = (0..count).map(|_| self.address()).collect();
        if !self.world.awake(end) {
            return;
        }
        let ways = self.world.ends[end].setup.params.ways.len();
        let way = if ways > 0 { self.number() % ways } else { 0 };
        self.world.name(end, way, &addresses);
        self.world.carry_out(end);
    }

    /// `p`, who, what and a path: a datagram could not be sent that way (0), or the line gets that socket (1), or this machine found
    /// a probe or user data too large (2).
    pub fn send_failure(&mut self) {
        let (end, what) = (self.end(), self.number() % 3);
        let (local, peer) = (self.end(), self.address());
        if !self.world.awake(end) {
            return;
        }
        let time = self.world.ends[end].time(self.world.now);
        let e = &mut self.world.ends[end];
        let own = (local == 0).then_some(e.local);
        let used = e.used;
        let link = &mut e.process().link;
        match what {
            0 => link.handle_send_failure(time, Path { socket: used, local: own, peer }),
            2 => link.handle_too_big(time, Path { socket: used, local: None, peer }, (local == 0).then_some(1_400)),
            _ => link.handle_socket(time, used),
        }
        self.world.carry_out(end);
    }

    /// `y` and who: an end can draw no randomness, or again.
    pub fn dry(&mut self) {
        let end = self.end();
        if let Some(process) = &self.world.ends[end].process {
            process.draws.dry.fetch_xor(true, Relaxed);
        }
    }

    /// The socket that the input says.
    pub fn socket(&mut self, end: usize) -> SocketId {
        let which = self.number();
        let sockets = &self.world.ends[end].sockets;
        sockets.keys().nth(which % sockets.len().max(1)).copied().unwrap_or_default()
    }

    // --- forgeries: none of these may change anything ------------------------------------------------------------

    /// What would follow anyway is done before; nothing is forged at an end that does not run.
    fn forge(&mut self, end: usize, flight: Flight, forgery: Forgery) {
        if self.world.awake(end) {
            self.world.timeout(end);
        }
        if self.world.awake(end) {
            inject(&mut self.world, end, flight, forgery);
        }
    }

    /// `m`, which, where and what: bits of a datagram are flipped.
    pub fn forge_flipped(&mut self) {
        let (at, place, bits) = (self.pick(), self.number(), self.number() as u8);
        let Some(at) = at else { return };
        let mut flight = self.world.held[at].clone();
        let place = place % flight.bytes.len();
        flight.bytes[place] ^= bits;
        if bits != 0 {
            self.forge(1 - flight.sender, flight, Forgery::Junk);
        }
    }

    /// `k`, which and how long: the end of a datagram is cut off.
    pub fn forge_cut(&mut self) {
        let (at, length) = (self.pick(), self.number());
        let Some(at) = at else { return };
        let mut flight = self.world.held[at].clone();
        if length < flight.bytes.len() {
            flight.bytes.truncate(length);
            self.forge(1 - flight.sender, flight, Forgery::Junk);
        }
    }

    /// The datagram ever sent that the input says, 0 being the last.
    fn recorded(&mut self) -> Option<(usize, Flight)> {
        let back = self.number();
        let log = self.world.log.as_ref()?;
        let at = log.len().checked_sub(1 + back)?;
        Some((at, log[at].clone()))
    }

    /// `b` and which: a datagram goes back to who sent it.
    pub fn forge_reflected(&mut self) {
        if let Some((_, flight)) = self.recorded() {
            self.forge(flight.sender, flight, Forgery::Junk);
        }
    }

    /// `o`, which and from where: what came before comes again, or what was sent to an earlier process.
    pub fn forge_old(&mut self) {
        let (recorded, from) = (self.recorded(), self.number());
        let Some((at, flight)) = recorded else { return };
        let end = 1 - flight.sender;
        let came = self.world.ends[end].arrived.contains(&(fingerprint(&flight.bytes), flight.from));
        let from = if from % 2 == 0 { flight.from } else { stranger() };
        let forgery = match came {
            true => Forgery::Copy,
            false if at < self.world.ends[end].born => Forgery::Old,
            false => return,
        };
        self.forge(end, Flight { from, ..flight }, forgery);
    }

    /// `j`, who, how much and bytes: junk; behind the header of the last datagram to that end if the length is odd.
    pub fn forge_junk(&mut self) {
        let (end, length) = (self.end(), self.number());
        let mut bytes = self.input.take(length).to_vec();
        let from = self.address();
        let log = self.world.log.iter().flatten();
        let header = log.filter(|f| f.sender != end && !f.cold()).map(|f| f.bytes[..8].to_vec()).next_back();
        if length % 2 == 1 {
            bytes.splice(0..0, header.unwrap_or_default());
        }
        let to = stranger();
        self.forge(end, Flight { sender: 1 - end, from, to, bytes }, Forgery::Junk);
    }
}

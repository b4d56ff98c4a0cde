//! What the path carries: the search for the own direction is started with the line, goes with its path, and tells the egress
//! loop; the peer's probes are answered.

use super::{Event, Link, Output};
use crate::protocol::{
    Time,
    constants::*,
    control::{Message, State},
    halves::{EgressUpdate, Path},
    mtu::{Arrived, Found, Mtu},
};
use std::time::Duration;

/// Both directions' sizes.
pub(super) struct Sizes {
    search: Mtu,
    arrived: Arrived,
    /// The path that is searched, while the line is up.
    path: Option<Path>,
    /// What the egress loop was told …
    told: Option<u16>,
    /// … and the people.
    said: Option<Found>,
}

impl Sizes {
    pub(super) fn new() -> Sizes {
        Sizes { search: Mtu::new(), arrived: Arrived::default(), path: None, told: None, said: None }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.search.deadline()
    }

    pub(super) fn found(&self) -> Option<Found> {
        self.search.found()
    }

    pub(super) fn arrived(&self) -> Option<Found> {
        self.arrived.found()
    }

    pub(super) fn acked(&mut self, now: Time, mark: u8, size: u16) {
        self.search.acked(now, mark, size);
    }

    /// A session from a new cold open: the peer may have been started anew, and its marks with it.
    pub(super) fn new_peer(&mut self) {
        (self.arrived, self.path) = (Arrived::default(), None);
        self.search.stop();
    }

    /// Searches `path` from now on, unless it does; `None` ends it. Only where the line goes is anything probed, and it goes
    /// only where the peer proved to be.
    fn follow(&mut self, now: Time, path: Option<Path>) {
        let same = match (self.path, path) {
            // Another own address may be another way out; none is only one that is not known.
            (Some(a), Some(b)) => a.same_ends(b) && (a.local == b.local || a.local.is_none() || b.local.is_none()),
            (a, b) => a == b,
        };
        self.path = path;
        match path {
            _ if same => {}
            Some(_) => self.search.start(now),
            None => self.search.stop(),
        }
    }
}

impl Link {
    /// Hears the most bytes that a datagram to the peer need have, as the own interface and the largest user frame have it.
    pub fn handle_ceiling(&mut self, now: Time, size: u16) {
        self.sizes.search.set_ceiling(now, size);
        self.settle(now);
    }

    /// Hears that this machine did not take a datagram because of its size (EMSGSIZE): a probe of so many bytes, or, with `None`,
    /// user data.
    pub fn handle_too_big(&mut self, now: Time, probe: Option<u16>) {
        self.sizes.search.refused(now, probe);
        self.settle(now);
    }

    /// Any probe is answered, with 36 bytes for its 36 or more.
    pub(super) fn on_probe(&mut self, now: Time, mark: u8, size: u16) {
        if self.sizes.arrived.probe(now, mark, size) {
            self.sizes.search.suspect(now); // what became narrow one way may have both ways
        }
        if let Some(index) = self.slots.cur.as_ref().map(|cur| cur.index) {
            self.send_control(index, &Message::ProbeAck { mark, size }.encode(), None);
        }
    }

    /// Does what is due about sizes, and tells what has come of it.
    pub(super) fn run_sizes(&mut self, now: Time) {
        let cur = self.slots.cur.as_ref().filter(|_| self.liveness.state == State::Up);
        let session = cur.map(|cur| (cur.index, cur.levels.large.get()));
        self.sizes.follow(now, session.and(self.paths.current));
        if let (Some((index, large)), Some(path)) = (session, self.paths.current) {
            let mark = |sizes: &Sizes| sizes.search.mark();
            let timeout = self.probe_timeout();
            for size in self.sizes.search.step(now, timeout, large) {
                let probe = Message::Probe { mark: mark(&self.sizes), size };
                self.send_control(index, &probe.encode(), Some(path));
            }
        }
        let limit = self.sizes.search.limit();
        if self.sizes.told.replace(limit) != Some(limit) {
            self.outputs.push_back(Output::Egress(EgressUpdate::Limit(limit)));
        }
        let found = self.sizes.found();
        if let Some(Found { size, .. }) = found
            && std::mem::replace(&mut self.sizes.said, found).is_none_or(|said| said.size != size)
        {
            self.event(Event::Size { size });
        }
    }

    /// How long the answer to a probe may take.
    fn probe_timeout(&self) -> Duration {
        let of = |rtt: Duration| rtt * 2 + self.measure.jitter().unwrap_or_default() * 4;
        let timeout = self.measure.rtt().map_or(PROBE_TIMEOUT_FIRST, of);
        timeout.clamp(PROBE_TIMEOUT_MIN, PROBE_TIMEOUT_MAX)
    }
}

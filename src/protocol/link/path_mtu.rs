//! What the path carries: the search for the own direction is started with the line, goes with its path, and tells the egress
//! loop; the peer's probes are answered. And what both ends hold their interfaces to.

use super::{Event, Link, Output};
use crate::protocol::{
    Time,
    agreement::Agreement,
    constants::*,
    control::{Message, MtuOffer, State},
    halves::{EgressUpdate, Path},
    mtu::{Arrived, Found, Mtu},
    slots::Rank,
};
use std::time::Duration;

/// The search for what one path carries.
struct Search {
    mtu: Mtu,
    /// The path that is searched, while the line is up.
    path: Option<Path>,
}

impl Search {
    fn new(mark: u8) -> Search {
        Search { mtu: Mtu::new(mark), path: None }
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
            Some(_) => self.mtu.start(now),
            None => self.mtu.stop(),
        }
    }
}

/// Both directions' sizes.
pub(super) struct Sizes {
    /// The path, and where second copies go, if they go anywhere: what is to come by either must fit both.
    searches: [Search; 2],
    /// What the peer's probes of its own two tell.
    arrived: [Arrived; 2],
    /// What both ends make of it for their interfaces.
    pub(super) agreement: Agreement,
    /// What the egress loop was told …
    told: Option<u16>,
    /// … and the people.
    said: Option<Found>,
}

/// Which of two a mark belongs to.
fn which(mark: u8) -> usize {
    usize::from(mark & MARK_SECOND != 0)
}

impl Sizes {
    pub(super) fn new() -> Sizes {
        let searches = [0, MARK_SECOND].map(Search::new);
        let arrived = [Arrived::default(), Arrived::default()];
        Sizes { searches, arrived, agreement: Agreement::new(), told: None, said: None }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.searches.iter().filter_map(|search| search.mtu.deadline()).chain(self.agreement.deadline()).min()
    }

    /// What both carry, if two are in use.
    pub(super) fn found(&self) -> Option<Found> {
        let [path, second] = &self.searches;
        let second = second.path.and(second.mtu.found());
        path.mtu.found().map(|found| second.filter(|second| second.size < found.size).unwrap_or(found))
    }

    /// The most bytes a datagram may have now.
    fn limit(&self) -> u16 {
        let [path, second] = &self.searches;
        let second = second.path.map_or(u16::MAX, |_| second.mtu.limit());
        path.mtu.limit().min(second)
    }

    pub(super) fn arrived(&self) -> Option<Found> {
        self.arrived[0].found()
    }

    pub(super) fn acked(&mut self, now: Time, mark: u8, size: u16) {
        self.searches[which(mark)].mtu.acked(now, mark, size);
    }

    /// A session from a new cold open: the peer may have been started anew, and its marks with it.
    pub(super) fn new_peer(&mut self) {
        self.arrived = Default::default();
        for search in &mut self.searches {
            search.path = None;
            search.mtu.stop();
        }
    }
}

impl Link {
    /// Hears the most bytes that a datagram to the peer need have, as the own interface and the largest user frame have it.
    pub fn handle_ceiling(&mut self, now: Time, size: u16) {
        self.sizes.searches.iter_mut().for_each(|search| search.mtu.set_ceiling(now, size));
        self.settle(now);
    }

    /// Hears that the interface has this MTU whatever passes, which the peer is told; with `None` it follows the link.
    pub fn handle_given_mtu(&mut self, now: Time, mtu: Option<u16>) {
        self.sizes.agreement.set_given(now, mtu);
        self.settle(now);
    }

    /// Hears that this machine did not take a datagram for `path` because of its size (EMSGSIZE): a probe of so many bytes, or, with
    /// `None`, user data.
    pub fn handle_too_big(&mut self, now: Time, path: Path, probe: Option<u16>) {
        let searches = self.sizes.searches.iter_mut();
        let there = searches.filter(|search| search.path.is_some_and(|searched| searched.same_ends(path)));
        there.for_each(|search| search.mtu.refused(now, probe));
        self.settle(now);
    }

    /// Any probe is answered, with 36 bytes for its 36 or more.
    pub(super) fn on_probe(&mut self, now: Time, mark: u8, size: u16) {
        if self.sizes.arrived[which(mark)].probe(now, mark, size) {
            self.sizes.searches[which(mark)].mtu.suspect(now); // what became narrow one way may have both ways
        }
        if let Some(index) = self.slots.cur.as_ref().map(|cur| cur.index) {
            self.send_control(index, &Message::ProbeAck { mark, size }.encode(), None);
        }
    }

    /// What the peer offers, `order` being the rank and counter of its message, and what it has of this end's offer.
    pub(super) fn on_offer(&mut self, order: (Rank, u64), own: MtuOffer, has: MtuOffer, ask: bool) {
        if self.sizes.agreement.hear(order, own, has, ask) {
            self.send_offer();
        }
    }

    fn send_offer(&mut self) {
        let (own, has, ask) = self.sizes.agreement.message();
        if let Some(index) = self.slots.cur.as_ref().map(|cur| cur.index) {
            self.send_control(index, &Message::Mtu { own, has, ask }.encode(), None);
        }
    }

    /// Does what is due about sizes, and tells what has come of it.
    pub(super) fn run_sizes(&mut self, now: Time) {
        let cur = self.slots.cur.as_ref().filter(|_| self.liveness.state == State::Up);
        let session = cur.map(|cur| (cur.index, cur.levels.large.get()));
        for (n, path) in [self.paths.current, self.second_path()].into_iter().enumerate() {
            self.search(now, n, session, path);
        }
        let limit = self.sizes.limit();
        if self.sizes.told.replace(limit) != Some(limit) {
            self.outputs.push_back(Output::Egress(EgressUpdate::Limit(limit)));
        }
        let found = self.sizes.found();
        if let Some(Found { size, .. }) = found
            && std::mem::replace(&mut self.sizes.said, found).is_none_or(|said| said.size != size)
        {
            self.event(Event::Size { size });
        }
        if self.sizes.agreement.step(now, session.is_some(), found.map(|found| found.size)) {
            self.send_offer();
        }
    }

    /// Goes on with one of the searches; `session` is that in use, with the large datagrams sealed under it.
    fn search(&mut self, now: Time, n: usize, session: Option<(u32, u64)>, path: Option<Path>) {
        self.sizes.searches[n].follow(now, session.and(path));
        let (Some((index, large)), Some(path)) = (session, path) else { return };
        let timeout = self.probe_timeout(n);
        for size in self.sizes.searches[n].mtu.step(now, timeout, large) {
            let probe = Message::Probe { mark: self.sizes.searches[n].mtu.mark(), size };
            self.send_control(index, &probe.encode(), Some(path));
        }
    }

    /// How long the answer to a probe may take. Of the second way, which may be slower than the line is, it is not known.
    fn probe_timeout(&self, n: usize) -> Duration {
        let of = |rtt: Duration| rtt * 2 + self.measure.jitter().unwrap_or_default() * 4;
        let timeout = self.measure.rtt().map_or(PROBE_TIMEOUT_FIRST, of);
        timeout.clamp(if n == 0 { PROBE_TIMEOUT_MIN } else { PROBE_TIMEOUT_FIRST }, PROBE_TIMEOUT_MAX)
    }
}

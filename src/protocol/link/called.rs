//! What an end sees of those who call it: nothing at all, knocks whose answers do not arrive, or others than its peer. It only makes
//! words for the log of it (`docs/PROTOCOL.md` says what is answered), so that nobody has to guess for long.

use super::{Event, Link};
use crate::protocol::{Time, constants::*, control::State, wire::Kind};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// So long nothing arrives, or no answer does, before it is said.
const PATIENCE: Duration = KNOCK_AGE;
/// A caller whose datagrams are further apart than two attempts can be has begun anew.
const GAP: Duration = Duration::from_secs(15);
/// A knock under another key than the peer's may be the peer's all the same: it knocks with each key it is listed with. So it has
/// this long to show that it has the right one as well.
const DOUBT: Duration = Duration::from_secs(2);
/// Where the peer was heard lately: it has few addresses.
const REMEMBERED: usize = 4;

/// Whoever has the peer's key and gets no further.
struct Caller {
    at: IpAddr,
    since: Time,
    last: Time,
    /// It got a Challenge, and an Init of its was answered too.
    responded: bool,
    told: Option<Time>,
}

/// What has come so far.
pub(super) struct Called {
    /// Since when nothing of the peer's has come …
    since: Time,
    /// … and what had come of others by then.
    others: u64,
    told: Option<Time>,
    caller: Option<Caller>,
    /// A knock that is not the peer's, as far as is known, and when that counts.
    doubted: Option<(SocketAddr, Time)>,
    peer_at: [Option<(SocketAddr, Time)>; REMEMBERED],
}

impl Called {
    pub fn new(now: Time) -> Called {
        Called { since: now, others: 0, told: None, caller: None, doubted: None, peer_at: [None; REMEMBERED] }
    }

    /// An authentic cold-open datagram came from there.
    fn note_peer(&mut self, now: Time, from: SocketAddr) {
        let place = self.peer_at.iter().position(|known| known.is_some_and(|(at, _)| at == from));
        let oldest = || self.peer_at.iter().enumerate().min_by_key(|(_, known)| known.map(|(_, when)| when));
        if let Some(n) = place.or_else(|| oldest().map(|(n, _)| n)) {
            self.peer_at[n] = Some((from, now));
        }
        self.doubted = self.doubted.filter(|(source, _)| *source != from);
    }

    fn is_peers(&self, now: Time, source: SocketAddr) -> bool {
        self.peer_at.iter().flatten().any(|(at, when)| *at == source && now.since(*when) < NOTICE_SPACING)
    }
}

impl Link {
    /// An authentic cold-open datagram came.
    pub(super) fn hear_cold(&mut self, now: Time, from: SocketAddr) {
        self.called.note_peer(now, from);
        (self.called.since, self.called.told, self.called.others) = (now, None, self.others());
    }

    /// A Knock or an Init was answered: whoever sent it should come further soon.
    pub(super) fn answered_caller(&mut self, now: Time, peer: SocketAddr, kind: Kind) {
        if self.liveness.state == State::Up {
            return;
        }
        let at = peer.ip();
        let fresh = |caller: &Caller| now.since(caller.last) < GAP;
        if self.called.caller.as_ref().is_some_and(|caller| caller.at != at && fresh(caller)) {
            return; // somebody else may have copied what the caller sends
        }
        let known = self.called.caller.take().filter(fresh);
        let mut caller = known.unwrap_or(Caller { at, since: now, last: now, responded: false, told: None });
        caller.last = now;
        caller.responded |= kind == Kind::Init;
        // One nonce is answered for that long: whoever is answered for longer is no recorded knock.
        let due = now.since(caller.since) > PATIENCE && caller.told.is_none_or(|at| now.since(at) >= NOTICE_SPACING);
        if due {
            caller.told = Some(now);
            self.event(Event::AnswersLost { peer, responded: caller.responded });
        }
        self.called.caller = Some(caller);
    }

    /// A session was established: the caller has got through.
    pub(super) fn caller_is_in(&mut self) {
        self.called.caller = None;
    }

    /// A cold-open datagram came that is not the peer's.
    pub(super) fn doubt(&mut self, now: Time, source: SocketAddr) {
        let is_line = self.paths.current.is_some_and(|path| path.peer == source);
        if !is_line && !self.called.is_peers(now, source) && self.called.doubted.is_none() {
            self.called.doubted = Some((source, now + DOUBT));
        }
    }

    /// What came that the peer has not made.
    fn others(&self) -> u64 {
        let drops = &self.levels.drops;
        [&drops.malformed, &drops.unauthentic, &drops.no_session].into_iter().map(|counter| counter.get()).sum()
    }

    fn next_nothing(&self) -> Option<Time> {
        let waits = !self.knows_peer() && self.slots.boot.is_none() && self.slots.cur.is_none();
        let due = self.called.told.map_or(self.called.since + PATIENCE, |told| told + NOTICE_SPACING);
        (waits && self.closing.is_none()).then_some(due)
    }

    pub(super) fn next_called(&self) -> Option<Time> {
        let doubted = self.called.doubted.map(|(_, at)| at);
        [self.next_nothing(), doubted].into_iter().flatten().min()
    }

    pub(super) fn run_called(&mut self, now: Time) {
        if let Some((source, _)) = self.called.doubted.take_if(|(_, at)| *at <= now) {
            self.event(Event::Stranger(source));
        }
        if self.next_nothing().is_some_and(|at| at <= now) {
            self.called.told = Some(now);
            let (silence, others) = (now.since(self.called.since), self.others() > self.called.others);
            self.event(Event::NothingArrives { silence, others });
        }
    }
}

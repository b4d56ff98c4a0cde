//! More than one way: checks go out on each of this end's, and the line goes by the best; or the peer has some, and the line
//! goes where it leads.

use super::{Event, Link, Output, WayParams, WayStatus};
use crate::protocol::{
    Time,
    constants::*,
    control::Message,
    halves::{EgressUpdate, Path},
    paths::Cookie,
    slots::Rank,
    ways::{Follower, Move, News, Use, Ways},
};
use std::time::Duration;

/// The ways of both ends, and what became of choosing.
pub(super) struct Choice {
    pub(super) own: Ways,
    follower: Follower,
    /// Where user data is to go a second time.
    second: Option<Path>,
    /// Until when the egress loop holds what it has, before it is told the path.
    pub(super) release: Option<Time>,
    /// When the ways are looked at next.
    next: Option<Time>,
}

impl Choice {
    pub(super) fn new(now: Time, ways: &[WayParams]) -> Choice {
        Choice { own: Ways::new(now, ways), follower: Follower::default(), second: None, release: None, next: None }
    }

    /// The line begins anew, on this path.
    pub(super) fn begin(&mut self, now: Time, path: Path) {
        self.own.begin(now, path);
        (self.second, self.release) = (None, None);
    }
}

impl Link {
    /// What can be seen of the ways, in the order of [`Params::ways`](super::Params::ways).
    #[must_use]
    pub fn ways(&self) -> Vec<WayStatus> {
        self.ways.own.status()
    }

    /// Which of the ways is in use, if there are any.
    #[must_use]
    pub fn used_way(&self) -> Option<usize> {
        self.ways.own.used()
    }

    /// Where the peer has shown to be, on ways of either end's; the line goes by one of them.
    pub fn peers(&self) -> impl Iterator<Item = Path> {
        self.ways.own.answered().chain(self.ways.follower.proven())
    }

    /// Whether the peer says where the line goes.
    pub(super) fn is_led(&self, now: Time) -> bool {
        !self.ways.own.lead() && self.ways.follower.is_led(now, self.detection())
    }

    pub(super) fn next_ways(&self) -> Option<Time> {
        [self.ways.next, self.ways.release].into_iter().flatten().min()
    }

    /// Does what is due about the ways.
    pub(super) fn run_ways(&mut self, now: Time) {
        if self.ways.release.take_if(|at| *at <= now).is_some() {
            self.announce_egress();
        }
        if self.ways.own.lead() {
            self.run_own_ways(now);
        } else {
            let second = self.ways.follower.second(now, self.detection());
            self.use_second(second);
        }
    }

    fn run_own_ways(&mut self, now: Time) {
        let (detection, session) = (self.detection(), self.slots.cur.as_ref().map(|cur| cur.index));
        let interval = detection / MISSED_REPORTS;
        for news in self.ways.own.review(now, detection) {
            match news {
                News::Up(way, up) => self.event(Event::Way { way, up }),
                // An attempt looks after its sockets itself.
                News::Silent(way) if session.is_some() => self.event(Event::SilentWay { way }),
                News::Silent(_) => {}
            }
        }
        if let Some(index) = session {
            if let Some(Move { way, path, hold }) = self.ways.own.choose(now) {
                self.event(Event::UsesWay { way });
                self.switch(now, path, hold);
            }
            self.follow_own(now);
            self.use_second(self.ways.own.second());
            self.ask_ways(now, interval, index);
        }
        self.ways.next = self.ways.own.deadline(now, interval, detection, session.is_some());
    }

    /// The peer has answered at another of its addresses on the way in use, which was silent: the line goes there.
    fn follow_own(&mut self, now: Time) {
        let elsewhere = |path: &Path| self.paths.current.is_some_and(|current| current.peer != path.peer);
        if let Some(path) = self.ways.own.used_path().filter(elsewhere) {
            self.switch(now, path, Duration::ZERO);
        }
    }

    fn ask_ways(&mut self, now: Time, interval: Duration, index: u32) {
        let Link { ways, entropy, .. } = self;
        let mut failed = false;
        let checks = ways.own.ask(now, interval, || entropy.bytes().inspect_err(|_| failed = true).ok());
        for (path, cookie, Use { first, second, hold }) in checks {
            let hold_us = u32::try_from(hold.as_micros()).unwrap_or(u32::MAX);
            let check = Message::WayCheck { first, second, cookie, hold_us };
            self.send_control(index, &check.encode(), Some(path));
        }
        if failed {
            self.event(Event::CryptoFailed);
        }
    }

    /// Sends all by `path` from now on, but user data only when that before has had the time to arrive.
    fn switch(&mut self, now: Time, path: Path, hold: Duration) {
        if self.paths.current.is_none_or(|current| current == path) {
            return;
        }
        if self.sealing && !hold.is_zero() {
            self.outputs.push_back(Output::Egress(EgressUpdate::Hold));
            let until = now + hold.min(WAY_HOLD_MAX);
            self.ways.release = Some(self.ways.release.map_or(until, |at| at.max(until)));
        }
        self.move_to(path);
    }

    /// Where user data goes a second time: not where it goes anyway.
    pub(super) fn second_path(&self) -> Option<Path> {
        self.ways.second.filter(|second| Some(*second) != self.paths.current)
    }

    fn use_second(&mut self, path: Option<Path>) {
        let path = path.filter(|_| self.params.duplicate);
        if self.ways.second != path {
            self.ways.second = path;
            if self.ways.release.is_none() {
                self.announce_egress();
            }
        }
    }

    /// The peer asks whether it is heard on a way of its own, and says what it uses it for. Whoever has sealed this may have
    /// an answer where it came from: it is no longer than the question, and given once. Before more goes there the peer has to
    /// answer, as anyone else.
    pub(super) fn on_way_check(&mut self, now: Time, path: Path, of: (Rank, u64), usage: Use, cookie: Cookie) {
        let Some(index) = self.slots.cur.as_ref().map(|cur| cur.index) else {
            return;
        };
        let answer = Message::WayAnswer { cookie, time_us: now.as_micros() };
        self.send_control(index, &answer.encode(), Some(path));
        if self.ways.own.lead() {
            return;
        }
        let usage = Use { second: usage.second && self.params.duplicate, ..usage };
        let Ok(fresh) = self.entropy.bytes() else {
            return self.event(Event::CryptoFailed);
        };
        // What came from there before it was known whose way it is may have made it a candidate.
        let asked = self.paths.check().is_some_and(|check| check.candidate.peer == path.peer);
        if let Some(cookie) = self.ways.follower.hear(now, of, path, usage, fresh)
            && self.paths.current != Some(path)
            && !asked
        {
            self.send_path_check(path, cookie);
        }
    }

    /// The peer answered a check of this end's: if it was one to where it leads, the line follows.
    pub(super) fn on_followed(&mut self, now: Time, cookie: Cookie) {
        if self.ways.own.lead() {
            return;
        }
        if let Some((path, hold)) = self.ways.follower.answer(cookie) {
            self.switch(now, path, hold);
        }
    }
}

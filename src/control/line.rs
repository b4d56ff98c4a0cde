//! The line as the rest of the machine is to see it: up while both ends hear each other, less what damping holds back. It
//! is told to whoever goes by it.
//!
//! The carrier is set by the driver, at once. Routes take the kernel's answers, and are another task's (`reconciler`).

use super::damping::Damping;
use super::hooks::{News, Reason};
use super::status;
use crate::config;
use crate::protocol::Time;
use crate::protocol::control::State;
use crate::protocol::link::DownCause;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// Whether the line counts as there, and who is told.
pub(super) struct Line {
    damping: Damping,
    /// Whether the carrier goes by it: it was asked for, and the kernel can.
    sets_carrier: bool,
    /// Whether routes into the link go by it.
    moves_routes: bool,
    /// What was last told.
    on: bool,
    /// Until when the peer holds the link back, as far as it said.
    held_by_peer: Option<Time>,
    /// This end has closed the link: nothing brings the line back.
    closed: bool,
    hooks: watch::Sender<Option<News>>,
    /// Why it is what it is.
    reason: Reason,
}

impl Line {
    /// It begins down.
    pub(super) fn new(sets_carrier: bool, moves_routes: bool, hooks: watch::Sender<Option<News>>) -> Line {
        Line {
            damping: Damping::default(),
            sets_carrier,
            moves_routes,
            on: false,
            held_by_peer: None,
            closed: false,
            hooks,
            reason: Reason::default(),
        }
    }

    /// The link's state changed; `cause` says why it is not Up any more.
    pub(super) fn hear(&mut self, now: Time, state: State, cause: Option<DownCause>) {
        if let Some(cause) = cause {
            self.reason = cause.into();
        }
        if state != State::Up {
            return self.damping.fall(now);
        }
        self.reason = Reason::Connected;
        self.damping.rise(now);
        if let Some(left) = self.left(now) {
            let losses = self.damping.losses(now);
            warn!(
                "the line comes and goes, {losses} times in the last minute: it counts as up when it has stayed for {left:?}"
            );
        }
    }

    /// This end closes the link.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.reason = Reason::Closed;
    }

    /// When something changes by itself. That the peer does not hold the link back any more it has to say.
    pub(super) fn due(&self) -> Option<Time> {
        self.damping.on_at().filter(|_| !self.on && !self.closed && self.held_by_peer.is_none())
    }

    /// Whether the line is there, where that is news; `held_by_peer` is until when the peer holds the link back, as far as it said. What
    /// the peer does is no loss: it costs nothing the next time.
    pub(super) fn news(&mut self, now: Time, held_by_peer: Option<Time>) -> Option<bool> {
        match (std::mem::replace(&mut self.held_by_peer, held_by_peer), held_by_peer) {
            (None, Some(until)) => {
                let seconds = until.since(now).as_secs_f64();
                info!(
                    "the peer holds the link back for {seconds:.0} s, because it came and went there: until then no packets pass"
                );
            }
            (Some(_), None) if self.damping.is_on(now) => info!("the peer holds the link back no longer"),
            _ => {}
        }
        let on = self.damping.is_on(now) && !self.closed && held_by_peer.is_none();
        (std::mem::replace(&mut self.on, on) != on).then_some(on)
    }

    /// Passes the news on to the hooks; `peer` is where the other end is.
    pub(super) fn tell(&mut self, now: Time, on: bool, peer: Option<SocketAddr>) {
        let wait = self.damping.wait(now);
        if on && !wait.is_zero() {
            info!("the line has stayed up for {wait:?} and counts as up again");
        }
        self.hooks.send_replace(Some(News { up: on, reason: self.reason, peer }));
    }

    /// Whether it was there when that was last told.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether the interface's carrier goes by the line.
    pub(super) fn sets_carrier(&self) -> bool {
        self.sets_carrier
    }

    /// How long this end holds the link back once it is up, in a way that the peer's packets meet.
    pub(super) fn hold(&mut self, now: Time) -> Duration {
        if self.sets_carrier || self.moves_routes { self.damping.wait(now) } else { Duration::ZERO }
    }

    /// How long the link must still stay up.
    fn left(&self, now: Time) -> Option<Duration> {
        self.damping.on_at().map(|at| at.since(now)).filter(|left| !left.is_zero())
    }

    /// Until when no packets pass although the link is Up, as the interface has no carrier, or no
    /// routes lead into it; none where neither goes by the link. Or as that is so at the peer.
    pub(super) fn damped_until(&self, now: Time) -> Option<Time> {
        let own = self.left(now).filter(|_| self.sets_carrier || self.moves_routes).map(|left| now + left);
        own.max(self.held_by_peer)
    }

    /// What `status` shows.
    pub(super) fn status(&mut self, now: Time) -> status::Carrier {
        status::Carrier {
            follows: if self.sets_carrier { config::Carrier::Peer } else { config::Carrier::Always },
            on: self.on || !self.sets_carrier,
            losses: self.damping.losses(now),
            wait_s: self.damping.wait(now).as_secs_f64(),
            left_s: self.left(now).map(|left| (left.as_secs_f64() * 1e3).round() / 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time(0) + Duration::from_secs(seconds)
    }

    fn line() -> Line {
        Line::new(true, false, watch::channel(None).0)
    }

    #[test]
    fn the_line_is_there_when_neither_end_holds_it_back() {
        let mut line = line();
        line.hear(at(1), State::Up, None);
        assert_eq!(line.news(at(1), Some(at(5))), None);
        assert_eq!((line.due(), line.damped_until(at(1))), (None, Some(at(5))), "the peer is to say so");
        assert_eq!(line.news(at(6), Some(at(6))), None, "a Report is late");
        assert_eq!((line.news(at(7), None), line.damped_until(at(7))), (Some(true), None));
        assert_eq!(line.news(at(8), Some(at(9))), Some(false));
        assert_eq!(line.news(at(9), None), Some(true));
        assert_eq!((line.damping.losses(at(9)), line.hold(at(9))), (0, Duration::ZERO), "no losses of its own");
    }

    #[test]
    fn the_longer_of_both_ends_waits_counts() {
        let mut line = line();
        for n in 0..5 {
            line.hear(at(2 * n), State::Up, None);
            line.hear(at(2 * n + 1), State::Down, Some(DownCause::Goodbye));
        }
        assert_eq!(line.hold(at(10)), Duration::from_secs(2));
        line.hear(at(10), State::Up, None);
        assert_eq!((line.news(at(10), Some(at(11))), line.damped_until(at(10))), (None, Some(at(12))));
        assert_eq!((line.news(at(11), None), line.due()), (None, Some(at(12))));
        assert_eq!(line.news(at(12), None), Some(true));
    }

    #[test]
    fn an_end_that_shows_nobody_a_loss_holds_nothing_back() {
        let mut line = Line::new(false, false, watch::channel(None).0);
        for n in 0..5 {
            line.hear(at(2 * n), State::Up, None);
            line.hear(at(2 * n + 1), State::Down, Some(DownCause::Goodbye));
        }
        assert_eq!(line.hold(at(10)), Duration::ZERO);
    }
}

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

    /// When something changes by itself.
    pub(super) fn due(&self) -> Option<Time> {
        self.damping.on_at().filter(|_| !self.on && !self.closed)
    }

    /// Whether the line is there, where that is news.
    pub(super) fn news(&mut self, now: Time) -> Option<bool> {
        let on = self.damping.is_on(now) && !self.closed;
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

    /// How long the link must still stay up.
    fn left(&self, now: Time) -> Option<Duration> {
        self.damping.on_at().map(|at| at.since(now)).filter(|left| !left.is_zero())
    }

    /// Until when no packets pass although the link is Up, as the interface has no carrier, or no
    /// routes lead into it; none where neither goes by the link.
    pub(super) fn damped_until(&self, now: Time) -> Option<Time> {
        self.left(now).filter(|_| self.sets_carrier || self.moves_routes).map(|left| now + left)
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

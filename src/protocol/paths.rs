//! Where the peer is: the path in use, candidates for a new one, and the checks between them.
//!
//! A datagram that opens proves who sealed it, not where it was sent from: whoever copies it faster than the network
//! could pull the line to itself. So a new source is only a candidate. It and the current address are asked three
//! times each, and the line moves only if the candidate answers and the current address does not.

use super::{constants::*, halves::Path, time::Time};
use std::{net::SocketAddr, time::Duration};

/// What comes back in the answer to a check.
pub type Cookie = [u8; 8];

/// A check under way.
pub struct Check {
    pub candidate: Path,
    pub current: Path,
    pub candidate_cookie: Cookie,
    pub current_cookie: Cookie,
    candidate_answered: bool,
    sent: u8,
    next: Time,
    spacing: Duration,
}

/// What is to be done about a check now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask both addresses.
    Ask,
    /// The candidate answered and the current address did not: move there.
    Move(Path),
    /// Nothing came: stay.
    Stay,
}

/// The peer's addresses, for one lane.
#[derive(Default)]
pub struct Paths {
    /// Where everything is sent.
    pub current: Option<Path>,
    /// The newest path proven by a cold open or a check.
    pub validated: Option<Path>,
    check: Option<Check>,
    ignored: Option<(SocketAddr, Time)>,
    /// Asked while the link is down.
    probes: Vec<(Cookie, Path)>,
}

impl Paths {
    /// Whether a check of this new path should begin.
    pub fn is_candidate(&self, now: Time, path: Path) -> bool {
        let ignored = self.ignored.is_some_and(|(address, until)| address == path.peer && now < until);
        self.check.is_none() && !ignored && self.current.is_some_and(|current| current.peer != path.peer)
    }

    /// Begins a check; [`Paths::step`] says what to send.
    pub fn begin(&mut self, now: Time, candidate: Path, cookies: [Cookie; 2], rtt: Option<Duration>) {
        if let Some(current) = self.current {
            self.check = Some(Check {
                candidate,
                current,
                candidate_cookie: cookies[0],
                current_cookie: cookies[1],
                candidate_answered: false,
                sent: 0,
                next: now,
                spacing: PATH_CHECK_SPACING.max(rtt.unwrap_or_default()),
            });
        }
    }

    /// When [`Paths::step`] has something to do.
    pub fn deadline(&self) -> Option<Time> {
        self.check.as_ref().map(|check| check.next)
    }

    /// The check under way.
    pub fn check(&self) -> Option<&Check> {
        self.check.as_ref()
    }

    /// The next step of the check, if its time has come.
    pub fn step(&mut self, now: Time) -> Option<Step> {
        let check = self.check.as_mut().filter(|check| check.next <= now)?;
        if check.sent < PATH_CHECKS {
            check.sent += 1;
            check.next = now + check.spacing;
            return Some(Step::Ask);
        }
        let check = self.check.take()?;
        Some(if check.candidate_answered { Step::Move(check.candidate) } else { Step::Stay })
    }

    /// Takes an answer; the path to move to, if it proves one while the link is down.
    pub fn answer(&mut self, now: Time, cookie: Cookie) -> Option<Path> {
        if let Some(check) = &mut self.check {
            if cookie == check.current_cookie {
                self.ignored = Some((check.candidate.peer, now + CANDIDATE_IGNORE));
                self.check = None;
                return None;
            }
            check.candidate_answered |= cookie == check.candidate_cookie;
        }
        self.probes.iter().find(|(known, _)| *known == cookie).map(|(_, path)| *path)
    }

    /// Notes what is asked while the link is down, in place of what was asked before.
    pub fn set_probes(&mut self, probes: Vec<(Cookie, Path)>) {
        self.probes = probes;
    }

    /// Makes `path` the one in use; what was under way about another is over.
    pub fn set(&mut self, path: Path) {
        self.current = Some(path);
        self.validated = Some(path);
        self.check = None;
        self.probes.clear();
    }

    /// The own address or socket of the path in use changed; the peer's did not.
    pub fn set_local(&mut self, path: Path) {
        self.current = Some(path);
    }
}

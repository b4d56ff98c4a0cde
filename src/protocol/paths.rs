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
    /// When it began, or the line was seen to carry since.
    since: Time,
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
    /// Since when the line carries nothing, by a check that neither address answered.
    dead_since: Option<Time>,
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
                since: now,
                sent: 0,
                next: now,
                spacing: rtt.unwrap_or_default().clamp(PATH_CHECK_SPACING, PATH_CHECK_SPACING_MAX),
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
        if check.candidate_answered {
            return Some(Step::Move(check.candidate));
        }
        self.dead_since.get_or_insert(check.since);
        Some(Step::Stay)
    }

    /// A Report came, or another control message from the current address: the line carries.
    pub fn carries(&mut self, now: Time) {
        self.dead_since = None;
        if let Some(check) = &mut self.check {
            check.since = now;
        }
    }

    /// Since when the line carries nothing, though the peer may be heard: where both ends have moved, each hears the other's path
    /// checks from its new address, and may answer none; all else goes where nobody is.
    pub fn dead_since(&self) -> Option<Time> {
        self.dead_since
    }

    /// Takes an answer; the path to move to, if it proves one while the link is down.
    pub fn answer(&mut self, now: Time, cookie: Cookie) -> Option<Path> {
        if let Some(check) = &mut self.check {
            if cookie == check.current_cookie {
                self.ignored = Some((check.candidate.peer, now + CANDIDATE_IGNORE));
                self.check = None;
                self.carries(now);
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
        self.dead_since = None;
        self.probes.clear();
    }

    /// The own address or socket of the path in use changed; the peer's did not.
    pub fn set_local(&mut self, path: Path) {
        self.current = Some(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::SocketId;

    const C1: Cookie = [1; 8];
    const C2: Cookie = [2; 8];

    fn path(peer: &str) -> Path {
        Path { socket: SocketId(0), local: None, peer: peer.parse().unwrap() }
    }

    fn at(ms: u64) -> Time {
        Time(ms * 1_000_000)
    }

    fn checking() -> (Paths, Path, Path) {
        let (old, new) = (path("192.0.2.1:1"), path("192.0.2.9:1"));
        let mut paths = Paths::default();
        paths.set(old);
        assert!(paths.is_candidate(at(0), new));
        paths.begin(at(0), new, [C1, C2], None);
        for ms in [0, 200, 400] {
            assert_eq!(paths.deadline(), Some(at(ms)));
            assert_eq!(paths.step(at(ms)), Some(Step::Ask));
            assert_eq!(paths.step(at(ms)), None);
        }
        (paths, old, new)
    }

    #[test]
    fn the_line_moves_when_only_the_candidate_answers() {
        let (mut paths, _, new) = checking();
        assert_eq!(paths.answer(at(500), C1), None);
        assert_eq!(paths.step(at(600)), Some(Step::Move(new)));
    }

    #[test]
    fn it_stays_when_neither_answers() {
        let (mut paths, ..) = checking();
        assert_eq!(paths.step(at(600)), Some(Step::Stay));
        assert_eq!(paths.deadline(), None);
    }

    #[test]
    fn it_is_dead_while_neither_answers_until_it_carries() {
        let (mut paths, ..) = checking();
        assert_eq!(paths.dead_since(), None, "nothing is known before the check is over");
        paths.step(at(600));
        assert_eq!(paths.dead_since(), Some(at(0)));
        paths.carries(at(700));
        assert_eq!(paths.dead_since(), None);
        // What comes in the middle of a check counts.
        let (mut paths, ..) = checking();
        paths.carries(at(500));
        paths.step(at(600));
        assert_eq!(paths.dead_since(), Some(at(500)));
    }

    #[test]
    fn it_stays_at_once_when_the_current_address_answers_and_the_candidate_is_left_alone() {
        let (mut paths, _, new) = checking();
        paths.answer(at(410), C1);
        paths.answer(at(420), C2);
        assert_eq!(paths.deadline(), None);
        assert!(!paths.is_candidate(at(10_419), new));
        assert!(paths.is_candidate(at(10_420), new));
    }

    #[test]
    fn probes_of_a_line_that_is_down_move_it() {
        let (mut paths, old, new) = (Paths::default(), path("192.0.2.1:1"), path("192.0.2.9:1"));
        paths.set(old);
        paths.set_probes(vec![(C1, old), (C2, new)]);
        assert_eq!(paths.answer(at(1), [3; 8]), None);
        assert_eq!(paths.answer(at(1), C2), Some(new));
    }
}

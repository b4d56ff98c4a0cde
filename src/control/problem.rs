//! What keeps a link from doing its work, and what to do about it: the `problem` of `tieline status`.
//!
//! Whoever finds a problem sets it under its code, and clears it when it is over. A link may have several; `status` shows the worst.

use crate::protocol::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What can be wrong with a running link, the worst first. Programs know them by these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Code {
    /// This end's interface, or the peer's, is administratively down.
    InterfaceDown,
    /// Two machines use the same key.
    SameKeyTwice,
    /// A route leads the link's own datagrams into the link.
    RouteCoversPeer,
    /// Packets are dropped because something on the way marks their datagrams as congested.
    EcnMarks,
    /// The kernel does not take packets at the interface.
    InterfaceRefuses,
    /// Packets come faster than they are moved, and are dropped at the interface.
    Overload,
    /// Another program changes what belongs to the link, again and again.
    InterfaceTaken,
    /// The UDP port is another program's.
    PortInUse,
    /// A peer's name has no address.
    NameUnresolved,
    /// There is no uplink to send by.
    UplinkDown,
    /// Knocks of the peer arrive, and it does not hear the answers.
    AnswersLost,
    /// Nothing has come to the UDP port since the start.
    NothingArrives,
    /// The peer does not answer.
    PeerSilent,
    /// A route of the link's is another interface's already.
    RoutesOverlap,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) code: Code,
    /// What is wrong, where, and what to do.
    pub(super) text: String,
    /// Since when the link has had it.
    pub(super) since: Time,
}

/// The problems a link has now. Copies share them, so that each task can tell of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Problems(Arc<Mutex<BTreeMap<Code, Problem>>>);

impl Problems {
    /// The link has this problem. One it has already keeps its `since`, and gets the new text.
    pub(super) fn set(&self, code: Code, text: impl Into<String>, now: Time) {
        let text = text.into();
        let mut problems = self.lock();
        let since = problems.get(&code).map_or(now, |problem| problem.since);
        problems.insert(code, Problem { code, text, since });
    }

    /// The link does not have this problem any more; nothing happens if it had not.
    pub(super) fn clear(&self, code: Code) {
        self.lock().remove(&code);
    }

    /// The worst of them.
    pub(super) fn worst(&self) -> Option<Problem> {
        self.lock().first_key_value().map(|(_, problem)| problem.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Code, Problem>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_shown_and_each_keeps_its_since() {
        let problems = Problems::default();
        assert_eq!(problems.worst(), None);
        problems.set(Code::PeerSilent, "no answer", Time(1));
        problems.clone().set(Code::InterfaceDown, "tl0 is down", Time(2));
        problems.set(Code::PeerSilent, "still no answer", Time(3));
        let down = Problem { code: Code::InterfaceDown, text: "tl0 is down".into(), since: Time(2) };
        assert_eq!(problems.worst(), Some(down));
        problems.clear(Code::InterfaceDown);
        problems.clear(Code::InterfaceDown);
        let silent = Problem { code: Code::PeerSilent, text: "still no answer".into(), since: Time(1) };
        assert_eq!(problems.worst(), Some(silent));
        problems.clear(Code::PeerSilent);
        problems.set(Code::PeerSilent, "no answer", Time(4));
        assert_eq!(problems.worst().map(|problem| problem.since), Some(Time(4)), "it was gone meanwhile");
    }

    #[test]
    fn codes_have_the_names_programs_know() {
        let name = |code| serde_json::to_value(code).unwrap();
        assert_eq!(name(Code::InterfaceDown), "interface-down");
        assert_eq!(name(Code::SameKeyTwice), "same-key-twice");
        assert_eq!(name(Code::RouteCoversPeer), "route-covers-peer");
        assert_eq!(name(Code::EcnMarks), "ecn-marks");
        assert_eq!(name(Code::InterfaceRefuses), "interface-refuses");
        assert_eq!(name(Code::Overload), "overload");
    }
}

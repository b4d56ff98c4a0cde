//! How long each end holds the link back: what comes and goes is damped by each end for itself, and the other end has to know.
//!
//! While one end holds the link back, what the other sends into it reaches nobody who could answer. So both say in their Reports how
//! long they will.

use super::control::State;
use super::liveness::Liveness;
use super::time::Time;
use std::time::Duration;

/// The own time, and the peer's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    /// So long this end holds the link back, once it is Up.
    pub own: Duration,
    /// Until when the peer does, as it said last.
    peer: Option<Time>,
}

impl Hold {
    /// The whole seconds to tell the peer, rounded up: what is left if the link is Up, else what it will take from Up on.
    pub fn seconds(&self, now: Time, liveness: &Liveness) -> u8 {
        let left = self.ends(liveness).map_or(self.own, |at| at.since(now));
        u8::try_from(left.as_millis().div_ceil(1_000)).unwrap_or(u8::MAX)
    }

    /// When this end holds the link back no longer; `None` while it is not Up.
    pub fn ends(&self, liveness: &Liveness) -> Option<Time> {
        (liveness.state == State::Up).then(|| liveness.since + self.own)
    }

    /// The peer said in a Report for how many seconds it does.
    pub fn hear(&mut self, now: Time, seconds: u8) {
        self.peer = (seconds > 0).then(|| now + Duration::from_secs(seconds.into()));
    }

    /// Until when the peer holds the link back, for all this end knows. When that has passed the peer is still to say so.
    pub fn by_peer(&self, liveness: &Liveness) -> Option<Time> {
        self.peer.filter(|_| liveness.state == State::Up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(state: State) -> Liveness {
        Liveness { state, since: Time(10_000_000_000), ..Liveness::new(Time(0)) }
    }

    #[test]
    fn before_up_it_is_the_whole_time_and_then_what_is_left_rounded_up() {
        let hold = Hold { own: Duration::from_secs(4), ..Hold::default() };
        for state in [State::AdminDown, State::Down, State::Init] {
            assert_eq!((hold.seconds(Time(99_000_000_000), &at(state)), hold.ends(&at(state))), (4, None));
        }
        let left = |ms: u64| hold.seconds(Time(10_000_000_000 + ms * 1_000_000), &at(State::Up));
        assert_eq!([0, 1, 999, 3_000, 3_001, 3_999, 4_000, 9_000].map(left), [4, 4, 4, 1, 1, 1, 0, 0]);
        assert_eq!(hold.ends(&at(State::Up)), Some(Time(14_000_000_000)));
        let long = Hold { own: Duration::from_secs(900), ..hold };
        assert_eq!(long.seconds(Time(0), &at(State::Down)), 255);
    }

    #[test]
    fn the_peer_holds_until_it_says_that_it_does_not() {
        let mut hold = Hold::default();
        hold.hear(Time(1_000_000_000), 2);
        assert_eq!(hold.by_peer(&at(State::Up)), Some(Time(3_000_000_000)));
        assert_eq!(hold.by_peer(&at(State::Init)), None, "it is down anyway");
        hold.hear(Time(2_000_000_000), 0);
        assert_eq!(hold.by_peer(&at(State::Up)), None);
    }
}

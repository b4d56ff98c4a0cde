//! Liveness in three states, as in Bidirectional Forwarding Detection (RFC 5880 §6.8.6), without its demand mode and
//! administrative state.

use super::{control::State, time::Time};

/// This end's state, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    /// What this end says in its Reports.
    pub state: State,
    /// When it came to that.
    pub since: Time,
    /// When the state was last not Up: the moment Up was lost, or the start.
    pub not_up_since: Time,
    /// The state the peer said last.
    pub peer: Option<State>,
}

impl Liveness {
    /// Starts Down.
    pub fn new(now: Time) -> Liveness {
        Liveness { state: State::Down, since: now, not_up_since: now, peer: None }
    }

    /// Applies the state a Report carries; true where this end's or the peer's state changed.
    pub fn hear(&mut self, now: Time, peer: State) -> bool {
        let next = match (self.state, peer) {
            (State::Down, State::Down) => State::Init,
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => State::Up,
            (State::Up, State::Down) => State::Down,
            (same, _) => same,
        };
        let news = self.peer.replace(peer) != Some(peer);
        self.go(now, next) || news
    }

    /// The peer is not heard any more, or said goodbye; true where that is a change.
    pub fn lose(&mut self, now: Time) -> bool {
        self.peer = None;
        self.go(now, State::Down)
    }

    fn go(&mut self, now: Time, next: State) -> bool {
        if next == self.state {
            return false;
        }
        if self.state == State::Up {
            self.not_up_since = now;
        }
        (self.state, self.since) = (next, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_rfc_5880() {
        use State::{Down, Init, Up};
        let table = [
            (Down, Down, Init),
            (Down, Init, Up),
            (Down, Up, Down),
            (Init, Down, Init),
            (Init, Init, Up),
            (Init, Up, Up),
            (Up, Down, Down),
            (Up, Init, Up),
            (Up, Up, Up),
        ];
        for (own, peer, next) in table {
            let mut liveness = Liveness { state: own, ..Liveness::new(Time(0)) };
            liveness.hear(Time(1), peer);
            assert_eq!(liveness.state, next, "{own:?} hears {peer:?}");
        }
    }
}

//! Liveness in four states, as in Bidirectional Forwarding Detection (RFC 5880 §6.8.6), without its demand mode.

use super::{control::State, time::Time};

/// This end's state, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    /// What this end says in its Reports.
    pub state: State,
    /// When it came to that.
    pub since: Time,
    /// When the state was last not Up without an operator wanting it so: the moment Up was lost, an interface came up again, or
    /// the start.
    pub not_up_since: Time,
    /// The state the peer said last; none while it is not heard.
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
            (State::AdminDown, _) => State::AdminDown,
            (State::Down, State::Down) => State::Init,
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => State::Up,
            (State::Up, State::Down) | (State::Init | State::Up, State::AdminDown) => State::Down,
            (same, _) => same,
        };
        let before = self.peer.replace(peer);
        if before == Some(State::AdminDown) && peer != State::AdminDown {
            self.not_up_since = now;
        }
        self.go(now, next) || before != Some(peer)
    }

    /// The peer is not heard any more, or said goodbye; true where that changes this end's state.
    pub fn lose(&mut self, now: Time) -> bool {
        self.peer = None;
        self.state != State::AdminDown && self.go(now, State::Down)
    }

    /// The operator took this end's interface down, or up again; true where that is a change.
    pub fn set_interface(&mut self, now: Time, up: bool) -> bool {
        match (up, self.state) {
            (true, State::AdminDown) => {
                self.not_up_since = now;
                self.go(now, State::Down)
            }
            (true, _) => false,
            (false, _) => self.go(now, State::AdminDown),
        }
    }

    /// Whether the peer is heard, and it is an operator alone who keeps the link from being Up: there is nothing to mend.
    pub fn rests(&self) -> bool {
        self.peer == Some(State::AdminDown) || self.state == State::AdminDown && self.peer.is_some()
    }

    /// Whether silence would be news.
    pub fn watches(&self) -> bool {
        matches!(self.state, State::Init | State::Up) || self.rests()
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
    use State::{AdminDown, Down, Init, Up};

    fn at(own: State) -> Liveness {
        Liveness { state: own, ..Liveness::new(Time(0)) }
    }

    #[test]
    fn the_table_of_rfc_5880() {
        let table = [
            (AdminDown, AdminDown, AdminDown),
            (AdminDown, Down, AdminDown),
            (AdminDown, Init, AdminDown),
            (AdminDown, Up, AdminDown),
            (Down, AdminDown, Down),
            (Down, Down, Init),
            (Down, Init, Up),
            (Down, Up, Down),
            (Init, AdminDown, Down),
            (Init, Down, Init),
            (Init, Init, Up),
            (Init, Up, Up),
            (Up, AdminDown, Down),
            (Up, Down, Down),
            (Up, Init, Up),
            (Up, Up, Up),
        ];
        for (own, peer, next) in table {
            let mut liveness = at(own);
            liveness.hear(Time(1), peer);
            assert_eq!(liveness.state, next, "{own:?} hears {peer:?}");
        }
    }

    #[test]
    fn an_interface_that_is_down_outlasts_silence_and_comes_back_as_down() {
        for own in [Down, Init, Up] {
            let mut liveness = at(own);
            assert!(!liveness.set_interface(Time(1), true), "it was up");
            assert!(liveness.set_interface(Time(2), false) && !liveness.set_interface(Time(3), false));
            assert_eq!((liveness.state, liveness.since), (AdminDown, Time(2)));
            assert!(!liveness.lose(Time(4)), "silence is no change");
            assert!(liveness.set_interface(Time(5), true) && !liveness.set_interface(Time(6), true));
            assert_eq!((liveness.state, liveness.not_up_since), (Down, Time(5)));
        }
    }

    #[test]
    fn it_rests_while_an_operator_wants_it_and_the_peer_is_heard() {
        let mut liveness = at(Up);
        liveness.hear(Time(1), AdminDown);
        assert!(liveness.rests() && liveness.watches());
        liveness.hear(Time(2), Down);
        assert_eq!((liveness.rests(), liveness.state, liveness.not_up_since), (false, Init, Time(2)));
        liveness.set_interface(Time(3), false);
        assert!(liveness.rests(), "the peer said something");
        liveness.lose(Time(4));
        assert!(!liveness.rests() && !liveness.watches());
    }
}

//! One key on two machines, as after a VM was cloned: how the peer shows that it is two, and what
//! the peer says of this end.
//!
//! Two machines with one key take the link from each other, each by a new initial handshake. So do
//! a peer that moves, restarts or changes its keys; but of one machine all Reports under a later
//! session family were made after all those under the earlier ones, whatever the network does to
//! them, and their `time_us` says so. Reports that break this order were made by two clocks. A
//! machine that starts anew has another clock too, but nothing of it arrives afterwards under the
//! sessions it had before.
//!
//! No clock, no message: times and Reports go in, and what is known comes out.

use super::{constants::*, time::Time};
use std::{net::SocketAddr, time::Duration};

/// Whose key is on two machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The peer's, as this end sees it.
    Peer,
    /// This end's, as the peer says.
    Own,
}

/// One key is on two machines, which take the link from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SameKey {
    /// Whose key.
    pub whose: Whose,
    /// Where its two machines are, as the other end sees them. Of this end's own key the first is
    /// this machine.
    pub addresses: [SocketAddr; 2],
}

/// Something that is so until it has not been seen for a while.
#[derive(Clone, Copy, Debug)]
struct Lasting {
    addresses: [SocketAddr; 2],
    until: Time,
}

/// What this end knows.
#[derive(Debug, Default)]
pub struct Watch {
    /// The earliest `time_us` of the present family's Reports.
    earliest_us: Option<u64>,
    /// The latest of those that came under earlier families since the present one is in use, and
    /// from where.
    latest: Option<(u64, SocketAddr)>,
    /// The present family has brought its proof.
    proven: bool,
    /// When families brought proof, the last [`SAME_KEY_PROOFS`] of them.
    proofs: Vec<Time>,
    peer: Option<Lasting>,
    own: Option<Lasting>,
    /// What was last said to be so.
    said: Option<Whose>,
}

impl Watch {
    /// A session of a new family is the one in use.
    pub fn new_family(&mut self) {
        (self.earliest_us, self.latest, self.proven) = (None, None, false);
    }

    /// A Report came under a session of the present family.
    pub fn hear(&mut self, time_us: u64) {
        self.earliest_us = Some(self.earliest_us.map_or(time_us, |earliest| earliest.min(time_us)));
    }

    /// A Report came from this address under a session of an earlier family.
    pub fn hear_late(&mut self, time_us: u64, from: SocketAddr) {
        if self.latest.is_none_or(|(latest, _)| latest < time_us) {
            self.latest = Some((time_us, from));
        }
    }

    /// Looks at what the Reports show, while the link goes to `current` and silence of `detection`
    /// means that the peer is gone.
    pub fn judge(&mut self, now: Time, current: SocketAddr, detection: Duration) {
        let (false, Some(earliest), Some((latest, from))) = (self.proven, self.earliest_us, self.latest) else {
            return;
        };
        if latest <= earliest || from == current {
            return;
        }
        self.proven = true;
        let window = (detection * SAME_KEY_DETECTIONS * 2).max(SAME_KEY_MEMORY * 2);
        self.proofs.retain(|proof| now.since(*proof) <= window);
        self.proofs.push(now);
        if self.proofs.len() >= SAME_KEY_PROOFS {
            self.proofs.remove(0);
            self.peer = Some(Lasting { addresses: [from, current], until: now + lasts(detection) });
        }
    }

    /// The peer says that this end's key is on this machine, which it sees at the first of these,
    /// and on that at the other.
    pub fn told(&mut self, now: Time, addresses: [SocketAddr; 2], detection: Duration) {
        self.own = Some(Lasting { addresses, until: now + lasts(detection) });
    }

    /// Where the peer's other machine is, for the one at `current` to be told.
    pub fn other(&self, current: SocketAddr) -> Option<SocketAddr> {
        let [one, other] = self.peer?.addresses;
        Some(if one == current { other } else { one })
    }

    /// When something that is known will be so no longer.
    pub fn deadline(&self) -> Option<Time> {
        [self.peer, self.own].into_iter().flatten().map(|known| known.until).min()
    }

    /// What is known; of both keys this end's own, which is for its operator to mend.
    pub fn known(&self) -> Option<SameKey> {
        let own = self.own.map(|known| SameKey { whose: Whose::Own, addresses: known.addresses });
        own.or(self.peer.map(|known| SameKey { whose: Whose::Peer, addresses: known.addresses }))
    }

    /// Forgets what is over; then gives what is known, where that is news.
    pub fn news(&mut self, now: Time) -> Option<Option<SameKey>> {
        for known in [&mut self.peer, &mut self.own] {
            known.take_if(|known| known.until <= now);
        }
        let known = self.known();
        let whose = known.map(|known| known.whose);
        (std::mem::replace(&mut self.said, whose) != whose).then_some(known)
    }
}

/// How long something is taken to go on after it was last seen.
fn lasts(detection: Duration) -> Duration {
    (detection * SAME_KEY_DETECTIONS).max(SAME_KEY_MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DETECTION: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 7311))
    }

    /// The machine at 1 takes the link at `second`, its clock says `clock`; then a Report of the
    /// other one's comes, from 2, and its clock says `other`.
    fn turn(watch: &mut Watch, second: u64, clock: u64, other: u64) {
        watch.new_family();
        watch.hear(clock);
        watch.hear_late(other, address(2));
        watch.judge(at(second), address(1), DETECTION);
    }

    #[test]
    fn three_families_with_reports_of_two_clocks_make_two_machines() {
        let mut watch = Watch::default();
        for n in 1..=3 {
            assert_eq!(watch.news(at(n)), None, "{n}");
            turn(&mut watch, n, 100 + n, 900 + n);
            watch.judge(at(n), address(1), DETECTION); // the same once more is no more proof
        }
        let known = SameKey { whose: Whose::Peer, addresses: [address(2), address(1)] };
        assert_eq!((watch.news(at(3)), watch.news(at(3)), watch.known()), (Some(Some(known)), None, Some(known)));
        assert_eq!((watch.other(address(1)), watch.other(address(2))), (Some(address(2)), Some(address(1))));
        // It goes on while that happens, and ends when it does not.
        turn(&mut watch, 20, 120, 920);
        assert_eq!((watch.news(at(49)), watch.deadline()), (None, Some(at(50))));
        assert_eq!((watch.news(at(50)), watch.known(), watch.deadline()), (Some(None), None, None));
    }

    #[test]
    fn late_reports_of_one_machine_are_no_proof_however_late_they_are() {
        let mut watch = Watch::default();
        for n in 1..100 {
            turn(&mut watch, n, 100 * n, 100 * n - 1);
            watch.hear_late(5, address(3));
            watch.judge(at(n), address(1), DETECTION);
        }
        assert_eq!(watch.news(at(100)), None);
    }

    #[test]
    fn one_address_and_proof_that_is_rare_say_nothing() {
        let mut watch = Watch::default();
        for n in 1..10 {
            turn(&mut watch, n * 40, 1, 900);
        }
        assert_eq!(watch.known(), None, "two a minute at most");
        let mut watch = Watch::default();
        for n in 1..10 {
            watch.new_family();
            watch.hear(1);
            watch.hear_late(900, address(1));
            watch.judge(at(n), address(1), DETECTION);
        }
        assert_eq!(watch.known(), None, "one address");
    }

    #[test]
    fn what_the_peer_says_of_this_end_lasts_as_long() {
        let mut watch = Watch::default();
        watch.told(at(1), [address(1), address(2)], DETECTION);
        let known = SameKey { whose: Whose::Own, addresses: [address(1), address(2)] };
        assert_eq!(watch.news(at(1)), Some(Some(known)));
        watch.told(at(5), [address(1), address(2)], DETECTION);
        assert_eq!((watch.news(at(34)), watch.news(at(35))), (None, Some(None)));
        watch.told(at(40), [address(1), address(2)], Duration::from_secs(60));
        assert_eq!(
            (watch.news(at(40)), watch.news(at(339)), watch.news(at(340))),
            (Some(Some(known)), None, Some(None))
        );
    }
}

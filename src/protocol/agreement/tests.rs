//! What is offered when, and that both ends come to the same.

use super::*;

/// An end's offer, what it has of the other's, and whether it asks.
type Said = (MtuOffer, MtuOffer, bool);

/// Two ends, each with what it has found in its direction, and a line that takes `delay` and loses what it is told to.
struct Pair {
    now: u64,
    ends: [Agreement; 2],
    found: [Option<u16>; 2],
    counters: [u64; 2],
    delay: u64,
    /// When what arrives where.
    flying: Vec<(u64, usize, u64, Said)>,
    /// Of the messages of each end so many are lost.
    lost: [u32; 2],
    sent: [u32; 2],
    up: bool,
    /// When each end's outcome changed, and to what.
    changes: [Vec<(u64, LinkMtu)>; 2],
}

fn rank(epoch: u32) -> Rank {
    let key = |byte| crate::keys::SecretKey::from_bytes([byte; 32]).public().unwrap();
    Rank { epoch, lower_key_began: false, pair: crate::protocol::keyring::PairId([key(1), key(2)]) }
}

const MS: u64 = 1_000_000;

impl Pair {
    fn new(found: [Option<u16>; 2]) -> Pair {
        Pair {
            now: MS,
            ends: [Agreement::new(), Agreement::new()],
            found,
            counters: [0; 2],
            delay: 20 * MS,
            flying: Vec::new(),
            lost: [0; 2],
            sent: [0; 2],
            up: true,
            changes: [Vec::new(), Vec::new()],
        }
    }

    fn say(&mut self, end: usize) {
        self.sent[end] += 1;
        self.counters[end] += 1;
        if self.lost[end] > 0 {
            self.lost[end] -= 1;
            return;
        }
        let message = self.ends[end].message();
        self.flying.push((self.now + self.delay, 1 - end, self.counters[end], message));
    }

    /// In steps of 10 ms, as whatever happens on a line wakes the engine; and at each deadline nothing is left to do.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now += 10 * MS;
            let now = self.now;
            let (due, later) = std::mem::take(&mut self.flying).into_iter().partition(|(at, ..)| *at <= now);
            self.flying = later;
            for (_, end, counter, (own, has, ask)) in due {
                if self.ends[end].hear((rank(1), counter), own, has, ask) {
                    self.say(end);
                }
            }
            for end in 0..2 {
                if self.ends[end].step(Time(now), self.up, self.found[end]) {
                    self.say(end);
                }
                assert!(self.ends[end].deadline().is_none_or(|at| at.0 > now), "the timer spins");
                let link = self.ends[end].link();
                if let Some(link) = link.filter(|link| self.changes[end].last().map(|(_, last)| *last) != Some(*link)) {
                    self.changes[end].push((now, link));
                }
            }
        }
    }

    /// The size that each end holds its interface to.
    fn sizes(&self) -> [Option<u16>; 2] {
        self.ends.each_ref().map(|end| end.link().map(size))
    }

    /// How many sizes each end has come to.
    fn count(&self) -> [usize; 2] {
        self.changes.each_ref().map(|changes| {
            let mut sizes: Vec<u16> = changes.iter().map(|(_, link)| size(*link)).collect();
            sizes.dedup();
            sizes.len()
        })
    }
}

fn size(link: LinkMtu) -> u16 {
    match link {
        LinkMtu::Found { to_peer, from_peer } => to_peer.min(from_peer.unwrap_or(u16::MAX)),
        LinkMtu::Given(mtu) => mtu,
    }
}

#[test]
fn both_ends_come_to_the_lower_of_both_directions_and_to_no_other_before() {
    // The one that is narrow is found later: that takes more tries.
    let mut pair = Pair::new([Some(1472), None]);
    pair.run(3_000);
    assert_eq!(pair.sizes(), [None; 2], "it waits for the other direction");
    pair.found[1] = Some(1372);
    pair.run(1_000);
    assert_eq!(pair.sizes(), [Some(1372); 2]);
    assert_eq!(pair.count(), [1, 1]);
    let sent = pair.sent;
    pair.run(60_000);
    assert_eq!(pair.sent, sent, "what both know is not said again");
}

#[test]
fn a_smaller_size_is_taken_at_once_at_both_ends_whatever_is_lost() {
    for lost in 0..4 {
        let mut pair = Pair::new([Some(1472); 2]);
        pair.run(1_000);
        pair.lost[0] = lost;
        pair.found[0] = Some(1300);
        pair.run(10);
        assert_eq!(pair.sizes(), [Some(1300), Some(1472)], "at the end that found it");
        pair.run(980);
        assert_eq!(pair.sizes(), [Some(1300); 2], "{lost} lost");
    }
}

#[test]
fn a_larger_size_has_to_hold_first() {
    let mut pair = Pair::new([Some(1372), Some(1472)]);
    pair.run(1_000);
    pair.found[0] = Some(1472);
    pair.run(29_000);
    assert_eq!(pair.sizes(), [Some(1372); 2]);
    pair.run(2_000);
    assert_eq!(pair.sizes(), [Some(1472); 2]);
    assert_eq!(pair.count(), [2, 2]);
    let [a, b] = pair.changes.each_ref().map(|changes| changes.last().unwrap().0);
    assert!(a.abs_diff(b) < 100 * MS, "{a} and {b}");
}

#[test]
fn the_smallest_of_several_larger_sizes_is_offered_and_then_the_larger() {
    let mut pair = Pair::new([Some(1300), Some(1472)]);
    pair.run(1_000);
    for found in [1472, 1400, 1450] {
        pair.found[0] = Some(found);
        pair.run(12_000);
    }
    assert_eq!(pair.sizes(), [Some(1400); 2]);
    pair.run(31_000);
    assert_eq!(pair.sizes(), [Some(1450); 2]);
}

#[test]
fn a_size_that_comes_and_goes_changes_nothing_more() {
    // Each phase in seconds, and how many sizes may come of an hour of them: the first, the lower one, and a few more until the time
    // to hold is longer than the phase.
    for (phase, most) in [(5, 2), (20, 2), (35, 4), (100, 6)] {
        let mut pair = Pair::new([Some(1472); 2]);
        pair.run(1_000);
        for round in 0..3_600 / phase {
            pair.found[0] = Some(if round % 2 == 0 { 1300 } else { 1472 });
            pair.run(phase * 1_000);
        }
        let count = pair.count();
        assert!(count.iter().all(|count| *count <= most), "{phase} s: {count:?}");
        // And when it is over, the larger one comes back.
        pair.found[0] = Some(1472);
        pair.run(MTU_HOLD_MAX.as_millis() as u64 + 1_000);
        assert_eq!(pair.sizes(), [Some(1472); 2]);
    }
}

#[test]
fn a_size_that_lasted_is_forgiven() {
    let mut pair = Pair::new([Some(1472); 2]);
    pair.run(1_000);
    for _ in 0..3 {
        for (found, seconds) in [(1300, 10), (1472, 31), (1472, MTU_HOLD_MAX.as_secs())] {
            pair.found[0] = Some(found);
            pair.run(seconds * 1_000);
        }
    }
    assert_eq!(pair.count(), [7, 7], "each change was real");
}

#[test]
fn silence_between_two_sizes_is_no_time_that_a_size_held() {
    let mut pair = Pair::new([Some(1300), Some(1472)]);
    pair.run(1_000);
    pair.found[0] = Some(1472);
    pair.run(20_000);
    pair.up = false;
    pair.run(20_000);
    pair.up = true;
    pair.run(20_000);
    assert_eq!(pair.sizes(), [Some(1300); 2]);
    pair.run(11_000);
    assert_eq!(pair.sizes(), [Some(1472); 2]);
}

#[test]
fn a_given_mtu_is_the_links() {
    let mut pair = Pair::new([Some(1472); 2]);
    pair.ends[0].set_given(Time(MS), Some(1500));
    pair.run(1_000);
    assert_eq!(pair.ends[1].link(), Some(LinkMtu::Given(1500)));
    assert!(matches!(pair.ends[0].link(), Some(LinkMtu::Found { .. })), "the peer's follows the link");
    pair.ends[0].set_given(Time(pair.now), Some(9000));
    pair.run(1_000);
    assert_eq!(pair.ends[1].link(), Some(LinkMtu::Given(9000)));
    // Started anew without it, and with nothing found yet.
    pair.ends[0] = Agreement::new();
    pair.found[0] = None;
    (pair.up, pair.counters[0]) = (false, 1_000);
    pair.run(1_000);
    pair.up = true;
    pair.run(1_000);
    assert_eq!(pair.ends[0].link(), None, "until it has found its own");
    assert_eq!(pair.sizes()[1], Some(1472));
}

#[test]
fn a_peer_that_says_nothing_is_not_waited_for_for_ever() {
    let mut alone = Agreement::new();
    let mut said = 0;
    for ms in (0..120_000).step_by(10) {
        said += u32::from(alone.step(Time(MS + ms * MS), true, Some(1472)));
        let known = alone.link().is_some();
        assert_eq!(known, u128::from(ms) >= MTU_OFFER_WAIT.as_millis(), "at {ms} ms");
    }
    assert_eq!(alone.link(), Some(LinkMtu::Found { to_peer: 1472, from_peer: None }));
    assert!((15..25).contains(&said), "{said} times");
}

#[test]
fn an_offer_that_was_overtaken_counts_for_nothing() {
    let mut end = Agreement::new();
    end.step(Time(MS), true, Some(1472));
    let offer = |size| MtuOffer { size: Some(size), mtu: None };
    end.hear((rank(2), 5), offer(1300), MtuOffer::default(), false);
    end.hear((rank(2), 4), offer(1400), MtuOffer::default(), false);
    end.hear((rank(1), 9), offer(1400), MtuOffer::default(), false);
    end.step(Time(2 * MS), true, Some(1472));
    assert_eq!(end.link().map(size), Some(1300));
}

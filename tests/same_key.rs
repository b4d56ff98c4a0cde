//! Two machines with one key, as after a VM was cloned: both ends of the link they fight for say
//! so, with both addresses.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PORT, Site};
use common::wait_until;
use support::crowd::Crowd;
use support::{EndSetup, secs};
use tieline::protocol::Event;
use tieline::protocol::control::State;
use tieline::protocol::link::{SameKey, Whose};

/// Several rounds of the two taking the session from each other, on a busy machine.
const ROUNDS: Duration = Duration::from_secs(40);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A cable of its own from the left site to another one, with these addresses.
fn lay_second_cable(left: &Site, to: &Site, [near, far]: [IpAddr; 2]) {
    left.netlink(async |netlink| {
        netlink.create_veth("second", to.name).await.unwrap();
        let (second, other) = (netlink.index("second").await.unwrap(), netlink.index(to.name).await.unwrap());
        netlink.add_address(second, near, 24).await.unwrap();
        netlink.set_up(second).await.unwrap();
        netlink.set_netns(other, &to.network).await.unwrap();
    });
    to.netlink(async |netlink| {
        let cable = netlink.index(to.name).await.unwrap();
        netlink.add_address(cable, far, 24).await.unwrap();
        netlink.set_up(cable).await.unwrap();
        netlink.set_up(netlink.index("lo").await.unwrap()).await.unwrap();
    });
}

fn wait_for_both_addresses(end: &End<'_>, addresses: [IpAddr; 2], since: Instant) {
    wait_until(&format!("{} seeing the key twice", end.site.name), ROUNDS, || {
        end.status()["problem"]["code"] == "same-key-twice"
    });
    let status = end.status();
    let text = status["problem"]["text"].as_str().unwrap().to_owned();
    println!("{} after {:.1?}: {text}", end.site.name, since.elapsed());
    assert!(addresses.iter().all(|address| text.contains(&address.to_string())), "{text}");
    let [one, other] = addresses.map(|address| address.to_string());
    end.wait_for_log(&["warn", &one, &other], ROUNDS);
    let shown = end.status_text();
    assert!(shown.contains(&one) && shown.contains(&other), "{shown}");
}

scenario!(two_machines_with_one_key_are_named_at_the_peer_and_at_both_of_them, 150, {
    let mut lab = Lab::new();
    lab.left.endpoint = None;
    let mut clone = lab.right.copy("clone");
    let (near, far) = (ip("198.51.100.1"), ip("198.51.100.9"));
    lay_second_cable(&lab.left, &clone, [near, far]);
    clone.endpoint = Some(SocketAddr::new(near, PORT));
    let (left, right) = lab.up();
    assert_eq!(left.status()["problem"], serde_json::Value::Null);
    let cloned = clone.start();
    let since = Instant::now();
    let addresses = [lab.right.outer[0], far];
    for end in [&left, &right, &cloned] {
        wait_for_both_addresses(end, addresses, since);
    }
    // Once a minute at most, however often the session changes hands.
    std::thread::sleep(Duration::from_secs(5));
    for site in [&lab.left, &lab.right, &clone] {
        let said = site.log().lines().filter(|line| line.contains("WARN") && line.contains(&far.to_string())).count();
        assert_eq!(said, 1, "{}", site.name);
    }
});

// --- in virtual time
// ------------------------------------------------------------------------------------------

/// The called end, the caller, and a machine with the caller's key whose clock is this far ahead of
/// the caller's.
fn three(interval_ms: u64, clock: u64, known: bool) -> (Crowd, [EndSetup; 3]) {
    let mut setups = [1, 2, 2].map(EndSetup::new);
    setups.iter_mut().for_each(|setup| setup.params.interval = Duration::from_millis(interval_ms));
    setups[2].boot += clock;
    let mut crowd = Crowd::default();
    let peer = known.then(|| "192.0.2.2:7311".parse().unwrap());
    crowd.start(&setups[0], setups[1].public(), "192.0.2.1:7311", peer);
    crowd.start(&setups[1], setups[0].public(), "192.0.2.2:7311", Some("192.0.2.1:7311".parse().unwrap()));
    crowd.run(secs(5));
    assert!((0..2).all(|n| crowd.get(n).status().state == State::Up));
    (crowd, setups)
}

fn start_clone(crowd: &mut Crowd, setups: &[EndSetup; 3]) {
    let peer = Some("192.0.2.1:7311".parse().unwrap());
    crowd.start(&setups[2], setups[0].public(), "198.51.100.3:40000", peer);
}

fn same_key(crowd: &Crowd, number: usize) -> Option<SameKey> {
    crowd.get(number).status().same_key
}

#[test]
fn a_clone_is_seen_at_all_three_whatever_its_clock_says_and_forgotten_when_it_is_gone() {
    let [here, there]: [SocketAddr; 2] = ["192.0.2.2:7311", "198.51.100.3:40000"].map(|text| text.parse().unwrap());
    // A machine that was copied while it ran has the same clock.
    let cases = [(1_000, 0), (1_000, 1), (1_000, 9_000_000_000_000), (200, 5_000_000_000), (5_000, 0), (5_000, 77)];
    for ((interval, clock), known) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let what = format!("interval {interval} ms, clock {clock} ns ahead, address known: {known}");
        let (mut crowd, setups) = three(interval, clock, known);
        let cloned = crowd.now;
        start_clone(&mut crowd, &setups);
        let seen = |crowd: &Crowd| (0..3).all(|n| same_key(crowd, n).is_some());
        assert!(crowd.run_until(secs(interval.max(1_000) * 40 / 1_000), seen), "{what}: not seen");
        let after = Duration::from_nanos(crowd.now - cloned);
        let mut at_peer = same_key(&crowd, 0).unwrap();
        at_peer.addresses.sort();
        assert_eq!(at_peer, SameKey { whose: Whose::Peer, addresses: [here, there] }, "{what}");
        assert_eq!(same_key(&crowd, 1), Some(SameKey { whose: Whose::Own, addresses: [here, there] }), "{what}");
        assert_eq!(same_key(&crowd, 2), Some(SameKey { whose: Whose::Own, addresses: [there, here] }), "{what}");
        // It stays so while it lasts.
        crowd.run(secs(interval / 10));
        let said = |crowd: &Crowd, n: usize| crowd.get(n).said(|event| matches!(event, Event::SameKey(_)));
        assert_eq!([0, 1, 2].map(|n| said(&crowd, n)), [1; 3], "{what}");
        let gone = crowd.now;
        crowd.machines[2] = None;
        let over = |crowd: &Crowd| (0..2).all(|n| same_key(crowd, n).is_none());
        assert!(crowd.run_until(secs(400), over), "{what}: not forgotten");
        println!(
            "{what}: seen after {after:.1?}, forgotten {:.1?} after it went",
            Duration::from_nanos(crowd.now - gone)
        );
        crowd.run(secs(400));
        assert_eq!([0, 1].map(|n| said(&crowd, n)), [2; 2], "{what}");
        assert!((0..2).all(|n| crowd.get(n).status().state == State::Up), "{what}");
    }
}

#[test]
fn what_a_restarted_peer_had_sent_before_is_no_second_machine_however_late_it_comes() {
    let (mut crowd, setups) = three(1_000, 0, true);
    let peer = Some("192.0.2.1:7311".parse().unwrap());
    let places: [SocketAddr; 2] = ["192.0.2.2:7311", "198.51.100.3:40000"].map(|text| text.parse().unwrap());
    let mut late = 0;
    for round in 0..30 {
        let [here, next] = [places[round % 2], places[(round + 1) % 2]];
        // The last Reports before it ends wait in a queue of its uplink.
        crowd.delays.insert(here, 2_000_000_000);
        crowd.run(Duration::from_millis(1_700));
        late += crowd.on_the_way(here);
        crowd.delays.insert(next, 10_000_000);
        crowd.restart(1, &setups[1], setups[0].public(), next, peer);
        crowd.run(Duration::from_millis(2_300));
        assert_eq!([0, 1].map(|n| crowd.get(n).status().state), [State::Up; 2], "{round}");
        assert_eq!([0, 1].map(|n| crowd.get(n).said(|event| matches!(event, Event::SameKey(_)))), [0; 2], "{round}");
    }
    assert!(late >= 30, "nothing was late");
}

#[test]
fn a_peer_that_moves_restarts_and_restarts_elsewhere_is_one_machine() {
    let (mut crowd, setups) = three(1_000, 0, true);
    let peer = Some("192.0.2.1:7311".parse().unwrap());
    let places: [SocketAddr; 2] = ["192.0.2.2:7311", "198.51.100.3:40000"].map(|text| text.parse().unwrap());
    for round in 0..60 {
        let place = places[round % 2];
        // One of its uplinks holds back what it sends for longer than it takes to open a new
        // session.
        crowd.delays.insert(places[0], if round % 3 == 0 { 4_000_000_000 } else { 10_000_000 });
        match round % 4 {
            // It moves, and what is sent to the old address is lost.
            0 | 1 => crowd.moves(1, place),
            // The process starts anew, there or elsewhere.
            _ => crowd.restart(1, &setups[1], setups[0].public(), place, peer),
        }
        crowd.run(Duration::from_millis(700 + 130 * round as u64));
        assert_eq!([0, 1].map(|n| crowd.get(n).said(|event| matches!(event, Event::SameKey(_)))), [0; 2], "{round}");
    }
}

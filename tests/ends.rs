//! Ends that move: addresses, ports and names that change while a link runs, and how long it is out for that.
//!
//! The bounds are the protocol's (docs/PROTOCOL.md §11), and some more for a machine that is busy with something else.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use common::lab::{Lab, PORT, transfer, wait_for_bytes};
use common::nft;
use common::pulse::Pulse;

const MB: u64 = 1_000_000;
/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(700);
/// Three checks, 200 ms apart, then the line moves.
const MOVE: Duration = Duration::from_millis(600);
/// Interval of Reports, by default: what an end that sends nothing else is heard by.
const INTERVAL: Duration = Duration::from_secs(1);
/// An end that hears nothing looks for its peer after half the detection time, …
const SILENCE: Duration = Duration::from_millis(1_500);
/// … and a Knock that is lost is sent again 300 ms later.
const KNOCK: Duration = Duration::from_millis(300);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

scenario!(
    /// A branch behind a NAT, which forgets all about it every ten seconds: a transfer each way goes on.
    a_nat_that_forgets_every_ten_seconds,
    120,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = Lab::over_router();
        router.translate();
        lab.left.endpoint = None;
        let (left, _right) = lab.up();
        let endpoint = || left.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
        let since = left.status()["since"].clone();
        let pulse = Pulse::of(&lab);
        for n in 0..3 {
            let before = endpoint();
            let begun = Instant::now();
            let gaps = pulse.during(&format!("mapping forgotten, time {n}"), || {
                transfer(&lab.left, &lab.right, lab.right.inner[0], 200 * MB, |meter| {
                    wait_for_bytes(meter, 10 * MB);
                    router.forget();
                    assert!(meter.received.load(Relaxed) < 200 * MB, "the transfer was over already");
                    transfer(&lab.right, &lab.left, lab.left.inner[0], 60 * MB, |_| {});
                });
            });
            assert_ne!(endpoint(), before, "the NAT gave the same port");
            assert!(gaps[0] < MOVE + SLACK, "{gaps:?}");
            assert!(gaps[1] < SLACK, "the way out of the NAT was never closed: {gaps:?}");
            thread::sleep(Duration::from_secs(10).saturating_sub(begun.elapsed()));
        }
        let status = left.status();
        assert_eq!((&status["state"], &status["since"]), (&"up".into(), &since), "it was down meanwhile");
    }
);

scenario!(
    /// The same with nothing to carry: the next Report shows the new port.
    a_nat_that_forgets_an_idle_link,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = Lab::over_router();
        router.translate();
        lab.left.endpoint = None;
        let (left, _right) = lab.up();
        thread::sleep(INTERVAL);
        let begun = Instant::now();
        router.forget();
        lab.left.ping(lab.right.inner[0]);
        let took = begun.elapsed();
        println!("an idle link was reached again after {:.0} ms", took.as_secs_f64() * 1e3);
        assert!(took < INTERVAL + MOVE + SLACK, "{took:?}");
        assert_eq!(left.status()["state"], "up");
    }
);

scenario!(either_end_gets_another_address, 60, {
    let (lab, router) = Lab::over_router();
    let (left, right) = lab.up();
    let pulse = Pulse::of(&lab);
    let since = [&left, &right].map(|end| end.status()["since"].clone());
    let [old_left, old_right] = [lab.left.outer[0], lab.right.outer[0]];
    let (new_left, new_right) = (ip("192.0.2.77"), ip("198.51.100.88"));
    let moves = [(&lab.left, old_left, new_left), (&lab.right, old_right, new_right), (&lab.left, new_left, old_left)];
    for (site, from, to) in moves {
        let gaps = pulse.during(&format!("{}: {from} → {to}", site.name), || router.readdress(site, from, to));
        assert!(gaps.iter().all(|gap| *gap < MOVE + SLACK), "{gaps:?}");
    }
    let endpoint = |end: &common::lab::End<'_>| end.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
    assert_eq!(endpoint(&left), SocketAddr::new(new_right, PORT).to_string());
    assert_eq!(endpoint(&right), SocketAddr::new(old_left, PORT).to_string());
    assert_eq!([&left, &right].map(|end| end.status()["since"].clone()), since, "it was down meanwhile");
});

scenario!(
    /// Both at once, and each has the other's new address as its endpoint no more: only the old one of the left, which comes back.
    both_ends_get_another_address_at_once,
    60,
    {
        let (mut lab, router) = Lab::over_router();
        lab.left.endpoint = None;
        let (left, right) = lab.up();
        let pulse = Pulse::of(&lab);
        // The left end comes to another address, and the line with it; its first one is what the right end's config has.
        let (first, second) = (lab.left.outer[0], ip("192.0.2.77"));
        pulse.during("left alone", || router.readdress(&lab.left, first, second));
        let gaps = pulse.during("both at once", || {
            router.readdress(&lab.left, second, first);
            router.readdress(&lab.right, lab.right.outer[0], ip("198.51.100.88"));
        });
        assert!(gaps.iter().all(|gap| *gap < SILENCE + KNOCK + SLACK), "{gaps:?}");
        left.wait_for_state("up");
        right.wait_for_state("up");
    }
);

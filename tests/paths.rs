//! Two ways out: what a branch with two uplinks, or a peer with two addresses, sees of it when one of them dies, and comes back.
//!
//! `cargo test --test paths -- --nocapture` prints what was measured.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PATIENCE, PORT, Site, transfer, wait_for_bytes};
use common::pulse::{Account, Pulse, ms};
use common::relay::{Faults, Relay};
use common::router::{FIBRE, HQ, HQ_OTHER, RADIO, Router, Uplink};
use common::transfer::Meter;
use common::{nft, wait_until};
use serde_json::Value;

const MB: u64 = 1_000_000;
const INTERVAL: Duration = Duration::from_millis(200);
/// What the issue allows.
const STALL: Duration = Duration::from_millis(3 * 200 + 500);
/// A move that was planned is not seen. What a busy machine may add all the same.
const SLACK: Duration = Duration::from_millis(300);
/// How long a better path is up before it is used again, the first time …
const DAMPING: Duration = Duration::from_secs(5);
/// … and what checks and looking at it may add.
const LOOK: Duration = Duration::from_millis(1_500);
/// How often an end opens the socket of a silent path anew.
const REOPENED: Duration = Duration::from_secs(10);

fn endpoint(uplink: &Uplink, family: usize) -> SocketAddr {
    SocketAddr::new(uplink.own[family], PORT)
}

/// A `[[path]]` with these lines beyond its name and priority.
fn path(name: &str, priority: u32, lines: &str) -> String {
    format!("[[path]]\nname = \"{name}\"\npriority = {priority}\n{lines}\n")
}

fn by_interface(uplink: &Uplink) -> String {
    format!("interface = \"{}\"", uplink.name)
}

/// A branch with a better and a worse uplink, of which none is there yet, headquarters with one line, and a router that they all lead to.
/// Headquarters listens, the branch calls.
fn branch() -> (Lab, Router) {
    let (mut lab, router) = (Lab::unconnected(), Router::alone());
    (lab.left.endpoint, lab.right.endpoint) = (None, Some(endpoint(&HQ, 0)));
    lab.right.listen = None;
    [&mut lab.left, &mut lab.right].into_iter().for_each(tell_interval);
    lab.right.sections += &path("fibre", 0, &by_interface(&FIBRE));
    lab.right.sections += &path("radio", 1, &by_interface(&RADIO));
    router.plug_in(&lab.left, &HQ);
    (lab, router)
}

/// The same with both uplinks plugged in.
fn branch_with_uplinks() -> (Lab, Router) {
    let (lab, router) = branch();
    [FIBRE, RADIO].iter().for_each(|uplink| router.plug_in(&lab.right, uplink));
    (lab, router)
}

/// The same with a relay in each uplink.
fn branch_with_relays(delays: [Duration; 2]) -> (Lab, Router, [Relay; 2]) {
    let (lab, router) = branch();
    let plug_in = |n: usize| {
        let relay = router.plug_in_by_relay(&lab.right, [&FIBRE, &RADIO][n], n as u64);
        set(&relay, Faults { delay: delays[n], ..Faults::default() });
        relay
    };
    let relays = [plug_in(0), plug_in(1)];
    (lab, router, relays)
}

fn set(relay: &Relay, faults: Faults) {
    relay.set([faults; 2]);
}

fn tell_interval(site: &mut Site) {
    site.sections += &liveness();
}

fn liveness() -> String {
    format!("[liveness]\ninterval = \"{}ms\"\n", INTERVAL.as_millis())
}

/// Both directions of an uplink.
fn both_ways(uplink: &Uplink) -> Vec<String> {
    vec![to_hq(uplink), from_hq(uplink)]
}

fn to_hq(uplink: &Uplink) -> String {
    format!("iifname \"{}\"", uplink.port())
}

fn from_hq(uplink: &Uplink) -> String {
    format!("oifname \"{}\"", uplink.port())
}

/// What `status` says of one of the paths.
fn of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let paths = status["paths"].as_array().unwrap_or_else(|| panic!("no paths: {status}"));
    paths.iter().find(|path| path["name"] == name).unwrap_or_else(|| panic!("no path {name}: {status}"))
}

/// Whether of the paths these are up, and this one is used, and it alone.
fn is_so(status: &Value, up: &[&str], used: &str) -> bool {
    let paths = status["paths"].as_array().into_iter().flatten();
    let right = |path: &Value| {
        let name = path["name"].as_str().unwrap();
        path["used"] == (name == used) && path["state"] == if up.contains(&name) { "up" } else { "down" }
    };
    status["paths"].as_array().is_some_and(|paths| !paths.is_empty()) && paths.into_iter().all(right)
}

/// Waits until an end says so, and says how long that took.
fn wait_for(end: &End<'_>, up: &[&str], used: &str, patience: Duration) -> Duration {
    let begun = Instant::now();
    let mut status = Value::Null;
    while !is_so(&status, up, used) {
        let paths = &status["paths"];
        assert!(begun.elapsed() < patience, "not {up:?} up and {used} used within {patience:?}: {paths:#}");
        thread::sleep(Duration::from_millis(10));
        status = end.status();
    }
    begun.elapsed()
}

/// Starts both ends and waits until the branch has both paths, and uses the better.
fn up<'a>(lab: &'a Lab) -> (End<'a>, End<'a>) {
    let (left, right) = lab.up();
    wait_for(&right, &["fibre", "radio"], "fibre", PATIENCE);
    (left, right)
}

/// What does not change while a path is there: that the line is up, since when, and the session.
fn line(ends: [&End<'_>; 2]) -> [[Value; 3]; 2] {
    ends.map(|end| {
        let status = end.status();
        assert_eq!(status["state"], "up");
        [status["state"].clone(), status["since"].clone(), status["session"]["epoch"].clone()]
    })
}

/// Where headquarters has the branch.
fn peer(left: &End<'_>) -> String {
    let text = left.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
    text.parse::<SocketAddr>().unwrap().ip().to_canonical().to_string()
}

fn assert_short(gaps: [Duration; 2], longest: Duration) {
    assert!(gaps.iter().all(|gap| *gap < longest), "{gaps:?}");
}

/// Nothing came late, twice or not at all.
fn assert_unharmed(accounts: [Account; 2]) {
    println!("{accounts:?}");
    let harmed = |account: &Account| (account.lost, account.twice, account.overtaken) != (0, 0, 0);
    assert!(!accounts.iter().any(harmed), "{accounts:?}");
}

/// Waits until the better path, repaired now, is up, and after its damping is used again, and looks that nothing is lost in that, nor
/// noticed.
fn comes_back(pulse: &Pulse, right: &End<'_>, damping: Duration, patience: Duration) {
    let (repaired, numbers) = (Instant::now(), pulse.numbers());
    wait_for(right, &["fibre", "radio"], "radio", patience);
    let up = repaired.elapsed();
    wait_for(right, &["fibre", "radio"], "fibre", damping + LOOK);
    let back = repaired.elapsed();
    println!("the better path is up {:.0} ms after it was repaired, and used after {:.0} ms", ms(up), ms(back));
    assert!(back >= damping, "after {back:?} already");
    pulse.settle();
    let gaps = pulse.gaps(repaired);
    println!("the longest gap in that: {:.0} and {:.0} ms", ms(gaps[0]), ms(gaps[1]));
    assert_short(gaps, SLACK);
    assert_unharmed(pulse.account(numbers));
}

scenario!(
    /// TCP each way, which the uplink dies under without a word; and comes back.
    an_uplink_is_cut_in_mid_transfer_and_repaired,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, router) = branch_with_uplinks();
        let (left, right) = up(&lab);
        assert_eq!(peer(&left), FIBRE.own[0].to_string());
        let before = line([&left, &right]);
        let pulse = Pulse::of(&lab);
        let gaps = pulse.during("the fibre is cut", || transfer_both_ways(&lab, || router.cut("fibre", &both_ways(&FIBRE))));
        assert_short(gaps, STALL);
        assert!(is_so(&right.status(), &["radio"], "radio"), "{:#}", right.status()["paths"]);
        assert_eq!(peer(&left), RADIO.own[0].to_string());
        assert_eq!(left.status()["paths"], serde_json::json!([]));
        router.mend("fibre");
        comes_back(&pulse, &right, DAMPING, LOOK);
        assert_eq!(peer(&left), FIBRE.own[0].to_string());
        // Now it is the worse one that dies, which nobody notices.
        let numbers = pulse.numbers();
        router.cut("radio", &both_ways(&RADIO));
        wait_for(&right, &["fibre"], "fibre", STALL + LOOK);
        assert_unharmed(pulse.account(numbers));
        assert_eq!(line([&left, &right]), before);
    }
);

/// A transfer each way, in the middle of which something happens to what they go by.
fn transfer_both_ways(lab: &Lab, event: impl FnOnce()) {
    const BYTES: u64 = 300 * MB;
    let under_way = |meter: &Meter| meter.received.load(Relaxed) < BYTES;
    transfer(&lab.left, &lab.right, lab.right.inner[0], BYTES, |there| {
        transfer(&lab.right, &lab.left, lab.left.inner[0], BYTES, |back| {
            [there, back].into_iter().for_each(|meter| wait_for_bytes(meter, 10 * MB));
            assert!(under_way(there) && under_way(back), "a transfer was over already");
            event();
            let stalls = stalls([there, back], BYTES);
            println!("TCP stood still for {:.0} ms there, {:.0} ms back", ms(stalls[0]), ms(stalls[1]));
            // It tries again after ever twice the time, so it may sleep as long again as the line was out.
            assert_short(stalls, 2 * STALL);
        });
    });
}

/// How long at most nothing came of each of two transfers, from now until both are over or had the time of two stalls.
fn stalls(meters: [&Meter; 2], bytes: u64) -> [Duration; 2] {
    let begun = Instant::now();
    let mut stalls = [Duration::ZERO; 2];
    let mut last = meters.map(|meter| (meter.received.load(Relaxed), begun));
    while begun.elapsed() < 4 * STALL {
        for ((meter, last), stall) in meters.iter().zip(&mut last).zip(&mut stalls) {
            let received = meter.received.load(Relaxed);
            if received > last.0 || received == bytes {
                *last = (received, Instant::now());
            }
            *stall = (*stall).max(last.1.elapsed());
        }
        thread::sleep(Duration::from_millis(2));
    }
    stalls
}

scenario!(
    /// As config has it who says nothing about it: one second, three of which may be missed.
    at_the_default_interval_a_cut_uplink_is_left_within_three_seconds_and_a_half,
    40,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = branch_with_uplinks();
        for site in [&mut lab.left, &mut lab.right] {
            site.sections = site.sections.replace(&liveness(), "");
        }
        let (left, right) = up(&lab);
        let before = line([&left, &right]);
        let pulse = Pulse::of(&lab);
        let gaps = pulse.during("the fibre is cut", || {
            router.cut("fibre", &both_ways(&FIBRE));
            wait_for(&right, &["radio"], "radio", Duration::from_secs(5));
        });
        assert_short(gaps, Duration::from_millis(3_500));
        assert_eq!(line([&left, &right]), before);
    }
);

scenario!(
    /// What still passes is of no use to a line that answers: it moves as a whole, and the direction that worked is not out at all.
    an_uplink_that_is_dead_in_one_direction_is_left,
    60,
    {
        if !nft::is_there() {
            return;
        }
        for (what, dead, alive) in [("to headquarters", 1, 0), ("from headquarters", 0, 1)] {
            let (lab, router) = branch_with_uplinks();
            let (left, right) = up(&lab);
            let before = line([&left, &right]);
            let pulse = Pulse::of(&lab);
            let numbers = pulse.numbers();
            let rule = [from_hq(&FIBRE), to_hq(&FIBRE)][dead].clone();
            let gaps = pulse.during(&format!("the fibre passes nothing {what}"), || {
                router.cut("fibre", &[rule]);
                wait_for(&right, &["radio"], "radio", STALL + LOOK);
            });
            assert_short(gaps, STALL);
            assert!(gaps[alive] < SLACK, "{gaps:?}");
            assert!(gaps[dead] > SLACK, "it was not cut: {gaps:?}");
            let account = pulse.account(numbers)[alive];
            assert_unharmed([account; 2]);
            assert_eq!(line([&left, &right]), before);
        }
    }
);

scenario!(
    /// Down, and up again some seconds later: the socket is the same.
    an_uplink_whose_interface_goes_down_and_comes_up,
    60,
    {
        let go = |lab: &Lab| lab.right.take_down(FIBRE.name);
        an_interface_goes_and_comes_back("goes down", go, |lab, router| router.bring_up(&lab.right, &FIBRE));
    }
);

scenario!(
    /// As PPP and mobile modems do when they dial again: another interface, of the same name.
    an_uplink_whose_interface_is_deleted_and_made_anew,
    60,
    {
        let go = |lab: &Lab| lab.right.netlink(async |netlink| netlink.delete_link(FIBRE.name).await.unwrap());
        an_interface_goes_and_comes_back("is deleted", go, |lab, router| router.plug_in(&lab.right, &FIBRE));
    }
);

fn an_interface_goes_and_comes_back(what: &str, go: impl Fn(&Lab), come: impl Fn(&Lab, &Router)) {
    let (lab, router) = branch_with_uplinks();
    let (left, right) = up(&lab);
    let before = line([&left, &right]);
    let pulse = Pulse::of(&lab);
    let gaps = pulse.during(&format!("the interface of the fibre {what}"), || {
        go(&lab);
        wait_for(&right, &["radio"], "radio", STALL + LOOK);
    });
    assert_short(gaps, STALL);
    come(&lab, &router);
    comes_back(&pulse, &right, DAMPING, REOPENED + LOOK);
    assert_eq!(line([&left, &right]), before);
}

scenario!(
    /// Some distributions have it so: what comes by the uplink that the route to the peer does not use is dropped. It is said.
    an_uplink_with_a_strict_reverse_path_filter,
    40,
    {
        let (lab, router) = branch_with_uplinks();
        let strict = |value: &str| {
            lab.right.network.run(|| {
                fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
                fs::write(format!("/proc/sys/net/ipv4/conf/{}/rp_filter", RADIO.name), value).unwrap();
            })
        };
        strict("1").unwrap();
        let (_left, right) = lab.up();
        let said = "path radio will hear nothing over ipv4 while the route to the peer goes by another interface";
        right.wait_for_log(&[said, "net.ipv4.conf.right1.rp_filter is 1; set it to 2"], PATIENCE);
        assert!(!lab.right.log().contains("path fibre will hear nothing"), "{}", lab.right.log());
        thread::sleep(2 * INTERVAL);
        assert!(is_so(&right.status(), &["fibre"], "fibre"), "{:#}", right.status()["paths"]);
        // And what it says is the remedy.
        strict("2").unwrap();
        wait_for(&right, &["fibre", "radio"], "fibre", PATIENCE);
        drop(router);
    }
);

scenario!(
    /// The link is up without it, and takes it when it is there: it never failed, so at once.
    an_uplink_whose_interface_is_not_there_yet,
    60,
    {
        let (lab, router) = branch();
        router.plug_in(&lab.right, &RADIO);
        let (left, right) = lab.up();
        assert!(is_so(&right.status(), &["radio"], "radio"), "{:#}", right.status()["paths"]);
        let before = line([&left, &right]);
        let pulse = Pulse::of(&lab);
        let numbers = pulse.numbers();
        router.plug_in(&lab.right, &FIBRE);
        let took = wait_for(&right, &["fibre", "radio"], "fibre", REOPENED + LOOK);
        println!("used {took:.1?} after it was there");
        assert_unharmed(pulse.account(numbers));
        assert_eq!(peer(&left), FIBRE.own[0].to_string());
        assert_eq!(line([&left, &right]), before);
    }
);

scenario!(
    /// From slow to fast and from fast to slow, because a better one is there and because the one in use has died.
    order_is_kept_on_every_move,
    90,
    {
        // A relay that is not scheduled for a moment makes a few late; without order there are a hundred. tests/ways.rs has none.
        const LATE: u64 = 10;
        let (slow, fast) = (Duration::from_millis(60), Duration::from_millis(5));
        for delays in [[fast, slow], [slow, fast]] {
            let (lab, _router, relays) = branch_with_relays(delays);
            let working = [0, 1].map(|n| Faults { delay: delays[n], ..Faults::default() });
            set(&relays[0], Faults { cut: true, ..working[0] });
            let (_left, right) = lab.up();
            assert!(is_so(&right.status(), &["radio"], "radio"), "{:#}", right.status()["paths"]);
            let pulse = Pulse::every(&lab, Duration::from_micros(400));
            // The round-trip times are known by then.
            thread::sleep(Duration::from_millis(1_500));

            let numbers = pulse.numbers();
            set(&relays[0], working[0]);
            wait_for(&right, &["fibre", "radio"], "fibre", PATIENCE);
            thread::sleep(Duration::from_millis(500));
            let accounts = pulse.account(numbers);
            println!("a planned move from {:?} to {:?}: {accounts:?}", delays[1], delays[0]);
            assert!(accounts.iter().all(|account| (account.lost, account.twice) == (0, 0)), "{accounts:?}");
            assert!(accounts.iter().all(|account| account.overtaken <= LATE), "{accounts:?}");

            let numbers = pulse.numbers();
            set(&relays[0], Faults { cut: true, ..working[0] });
            wait_for(&right, &["radio"], "radio", STALL + LOOK);
            thread::sleep(Duration::from_millis(500));
            let accounts = pulse.account(numbers);
            println!("a move because of a failure, from {:?} to {:?}: {accounts:?}", delays[0], delays[1]);
            assert!(accounts.iter().all(|account| account.twice == 0 && account.overtaken <= LATE), "{accounts:?}");
            assert!(accounts.iter().all(|account| account.lost > 0), "it was not cut: {accounts:?}");

            let rtt = of(&right.status(), "radio")["rtt_ms"].as_f64().unwrap();
            println!("radio: round trip of {rtt:.1} ms");
            assert!((2.0 * ms(delays[1])..2.0 * ms(delays[1]) + 30.0).contains(&rtt), "{rtt} ms");
        }
    }
);

scenario!(
    /// Every datagram on both: one dies, and nothing is lost; each loses a fifth, and a twenty-fifth is.
    in_duplicate_nothing_is_lost_that_comes_by_either,
    60,
    {
        const LOSS: f64 = 0.2;
        let delays = [Duration::from_millis(5), Duration::from_millis(8)];
        let (mut lab, _router, relays) = branch_with_relays(delays);
        for site in [&mut lab.left, &mut lab.right] {
            site.link += "duplicate = true\n";
        }
        let working = [0, 1].map(|n| Faults { delay: delays[n], ..Faults::default() });
        let (left, right) = up(&lab);
        let before = line([&left, &right]);
        let pulse = Pulse::every(&lab, Duration::from_millis(1));
        thread::sleep(Duration::from_millis(500));

        for n in [0, 1] {
            let (numbers, passed) = (pulse.numbers(), counts(&relays, |counts| counts.passed));
            thread::sleep(Duration::from_millis(1_000));
            let (there, passed) = (pulse.numbers(), grown(passed, counts(&relays, |counts| counts.passed)));
            println!("of {:?} datagrams the uplinks carried {passed:?}", [0, 1].map(|n| there[n] - numbers[n]));
            for uplink in passed {
                assert!((0..2).all(|n| uplink[n] >= there[n] - numbers[n]), "not on both: {passed:?}");
            }
            set(&relays[n], Faults { cut: true, ..working[n] });
            thread::sleep(Duration::from_millis(1_500));
            set(&relays[n], working[n]);
            wait_for(&right, &["fibre", "radio"], ["radio", "fibre"][n], LOOK);
            let accounts = pulse.account(numbers);
            println!("{} cut: {accounts:?}", ["fibre", "radio"][n]);
            for account in accounts {
                assert_eq!((account.lost, account.twice), (0, 0), "{account:?}");
                // Where the faster of two comes back, what the slower alone carries is still under way.
                assert!(account.overtaken < 50, "{account:?}");
            }
            wait_for(&right, &["fibre", "radio"], "fibre", DAMPING + LOOK);
        }
        assert_eq!(line([&left, &right]), before);

        relays.iter().zip(working).for_each(|(relay, working)| set(relay, Faults { loss: LOSS, ..working }));
        let (numbers, lost, seen) =
            (pulse.numbers(), counts(&relays, |counts| counts.lost), counts(&relays, |counts| counts.seen));
        thread::sleep(Duration::from_millis(4_000));
        let accounts = pulse.account(numbers);
        let lost = grown(lost, counts(&relays, |counts| counts.lost));
        let seen = grown(seen, counts(&relays, |counts| counts.seen));
        println!("a fifth of each uplink lost ({lost:?} of {seen:?}): {accounts:?}");
        for account in accounts {
            assert!(account.sent > 1_000, "{account:?}");
            assert_eq!(account.twice, 0);
            // It should be LOSS², and 0.036 to 0.043 were seen.
            let share = account.lost as f64 / account.sent as f64;
            println!("inside {share:.3}");
            assert!(share < 2.0 * LOSS * LOSS, "{share:.3} is lost inside");
        }
        assert_eq!(line([&left, &right]), before);
        let status = right.status();
        for name in ["fibre", "radio"] {
            // There and back, of a dozen checks or two.
            let loss = of(&status, name)["loss_ratio"].as_f64().unwrap();
            println!("{name}: {loss:.2} of the checks are lost");
            assert!((0.02..0.9).contains(&loss), "{name}: {loss}");
        }
    }
);

/// A count of each direction of each relay.
fn counts(relays: &[Relay; 2], which: impl Fn(common::relay::Counts) -> u64) -> [[u64; 2]; 2] {
    relays.each_ref().map(|relay| relay.counts().map(&which))
}

fn grown(before: [[u64; 2]; 2], after: [[u64; 2]; 2]) -> [[u64; 2]; 2] {
    [0, 1].map(|relay| [0, 1].map(|n| after[relay][n] - before[relay][n]))
}

scenario!(
    /// The branch has one uplink and one socket, headquarters two addresses, of which one dies.
    a_peer_with_two_addresses_of_which_one_dies,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = branch();
        let second = "198.18.1.3";
        lab.left.netlink(async |netlink| {
            let line = netlink.index(HQ.name).await.unwrap();
            netlink.add_address(line, second.parse().unwrap(), 24).await.unwrap();
        });
        lab.right.sections = liveness() + &path("fibre", 0, "");
        lab.right.sections += &path("radio", 1, &format!("endpoint = \"{second}:{PORT}\""));
        router.plug_in(&lab.right, &FIBRE);
        let (left, right) = up(&lab);
        let before = line([&left, &right]);
        let pulse = Pulse::of(&lab);
        let dead = HQ.own[0];
        let gaps = pulse.during("the first address dies", || {
            router.cut("address", &[format!("ip saddr {dead}"), format!("ip daddr {dead}")]);
            wait_for(&right, &["radio"], "radio", STALL + LOOK);
        });
        assert_short(gaps, STALL);
        assert_eq!(right.status()["peer"]["endpoint"], format!("{second}:{PORT}"));
        router.mend("address");
        comes_back(&pulse, &right, DAMPING, LOOK);
        assert_eq!(right.status()["peer"]["endpoint"], endpoint(&HQ, 0).to_string());
        assert_eq!(line([&left, &right]), before);
    }
);

scenario!(
    /// Each end has two uplinks, and sends by its own; IPv6. Of two networks one dies, and comes back.
    both_ends_have_two_uplinks,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = (Lab::unconnected(), Router::alone());
        for (site, own, peers) in
            [(&mut lab.left, [HQ, HQ_OTHER], [FIBRE, RADIO]), (&mut lab.right, [FIBRE, RADIO], [HQ, HQ_OTHER])]
        {
            tell_interval(site);
            site.endpoint = None;
            for (n, name) in ["fibre", "radio"].into_iter().enumerate() {
                let lines = format!("{}\nendpoint = \"{}\"", by_interface(&own[n]), endpoint(&peers[n], 1));
                site.sections += &path(name, n as u32, &lines);
                router.plug_in(site, &own[n]);
            }
        }
        let (left, right) = up(&lab);
        wait_for(&left, &["fibre", "radio"], "fibre", PATIENCE);
        let before = line([&left, &right]);
        let pulse = Pulse::of(&lab);
        let gaps = pulse.during("the first network dies", || {
            let all = [both_ways(&FIBRE), both_ways(&HQ)].concat();
            router.cut("fibre", &all);
            for end in [&left, &right] {
                wait_for(end, &["radio"], "radio", STALL + LOOK);
            }
        });
        assert_short(gaps, STALL);
        router.mend("fibre");
        comes_back(&pulse, &right, DAMPING, LOOK);
        wait_for(&left, &["fibre", "radio"], "fibre", LOOK);
        assert_eq!(line([&left, &right]), before);
    }
);

scenario!(
    /// A branch that starts while its better uplink is dead is up as soon as any other.
    a_cold_start_while_the_better_uplink_is_dead,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, router) = branch_with_uplinks();
        let left = lab.left.start();
        wait_until("left listening", PATIENCE, || left.answers());
        let start = || {
            let begun = Instant::now();
            let right = lab.right.start();
            lab.right.ping(lab.left.inner[0]);
            (right, begun.elapsed())
        };
        let (right, usual) = start();
        assert!(right.terminate().success());
        left.wait_for_state("down");
        router.cut("fibre", &both_ways(&FIBRE));
        let (right, took) = start();
        println!("up after {took:.1?}, and {usual:.1?} where both work");
        assert!(took < usual + Duration::from_millis(700), "{took:?}");
        right.wait_for_state("up");
        assert!(is_so(&right.status(), &["radio"], "radio"), "{:#}", right.status()["paths"]);
        lab.left.ping_all(lab.right.inner[0]);
    }
);

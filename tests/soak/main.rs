//! A pair of ends under one fault after another, with traffic, for as long as is wanted:
//! `TIELINE_SOAK=30m cargo test --release --test soak -- --nocapture`. A run of 25 seconds is part of every `cargo test`.
//!
//! After each fault the link must be back within [`BOUND`]; then it is left alone for a while, in which nothing may be lost,
//! come out of order or be dropped. All the time nothing may arrive changed or twice, and the status socket must answer.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod traffic;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use common::lab::Lab;
use common::nft;
use faults::{Fault, Stage};
use serde_json::Value;
use traffic::{PING_PATIENCE, Traffic};
use watch::{Sample, Series};

/// The link is Up again so long after a fault is over, and pings come through both ways (docs/RELIABILITY.md).
const BOUND: Duration = Duration::from_secs(15);
const DEFAULT: Duration = Duration::from_secs(25);
/// From here on faults last for seconds rather than for one.
const LONG: Duration = Duration::from_secs(120);
/// In seconds; by default it is 120. So each fault has a good chance to meet a rekey.
const REKEY: &str = "10";
const TICK: Duration = Duration::from_millis(50);
const REASONS: [&str; 6] = ["replayed", "unauthentic", "malformed", "no_session", "too_big", "congested"];

scenario!(a_pair_survives_one_fault_after_another, length().as_secs() * 2 + 120, {
    let seed =
        std::env::var("TIELINE_SOAK_SEED").map_or(180, |seed| seed.parse().expect("TIELINE_SOAK_SEED: a number"));
    println!("{:?} with seed {seed}; TIELINE_SOAK_SEED={seed} draws the same faults again", length());
    let (mut lab, relay) = Lab::over_relay(seed);
    for site in [&mut lab.left, &mut lab.right] {
        site.arguments = vec!["--rekey-after", REKEY];
    }
    let traffic = Traffic::new();
    thread::scope(|scope| {
        // Otherwise a failure would wait for ever for those who make the traffic.
        let _stop = Stop(&traffic);
        let mut soak = Soak::new(Stage::new(&lab, relay, seed), &traffic);
        soak.recover();
        traffic.start(scope, &lab);
        soak.run(length());
        soak.finish();
    });
});

/// As `TIELINE_SOAK` says: 90s, 30m, 2h.
fn length() -> Duration {
    let Ok(text) = std::env::var("TIELINE_SOAK") else { return DEFAULT };
    let units = [('s', 1), ('m', 60), ('h', 3600)];
    let parse = |(unit, seconds)| Some(text.strip_suffix(unit)?.parse::<u64>().ok()? * seconds);
    let seconds = units.into_iter().find_map(parse);
    Duration::from_secs(seconds.unwrap_or_else(|| panic!("TIELINE_SOAK={text}: a number and s, m or h, as in 30m")))
}

struct Stop<'a>(&'a Traffic);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct Soak<'a> {
    stage: Stage<'a>,
    traffic: &'a Traffic,
    started: Instant,
    /// Of each end; the right one's begins anew with each process.
    series: [Series; 2],
    /// Lowest and highest RSS of each end in kB, whichever process it was.
    rss: [(u64, u64); 2],
    asked: Instant,
    answers: u64,
    calm: Duration,
    /// Since when the left end is Up, and its epoch; and how often that rose meanwhile.
    session: (Value, Option<u64>),
    rekeys: u64,
    /// Recoveries by fault: how many, and the slowest.
    recoveries: BTreeMap<Fault, (u32, Duration)>,
}

impl<'a> Soak<'a> {
    fn new(stage: Stage<'a>, traffic: &'a Traffic) -> Self {
        Self {
            stage,
            traffic,
            started: Instant::now(),
            series: [Series::new(), Series::new()],
            rss: [(u64::MAX, 0); 2],
            asked: Instant::now(),
            answers: 0,
            calm: Duration::ZERO,
            session: (Value::Null, None),
            rekeys: 0,
            recoveries: BTreeMap::new(),
        }
    }

    fn run(&mut self, length: Duration) {
        let (fault_ms, calm_ms) =
            if length < LONG { ((500, 3500), (800, 1200)) } else { ((1000, 20_000), (2000, 8000)) };
        self.be_calm(Duration::from_secs(1));
        let mut deck = Vec::new();
        while self.started.elapsed() < length {
            if deck.is_empty() {
                deck = self.shuffled();
            }
            let Some(fault) = deck.pop() else { return };
            let (lasts, calm) = (self.stage.time(fault_ms.0, fault_ms.1), self.stage.time(calm_ms.0, calm_ms.1));
            self.suffer(fault, lasts);
            self.be_calm(calm);
        }
    }

    /// Every fault once, in an order that follows from the seed.
    fn shuffled(&mut self) -> Vec<Fault> {
        let mut deck = Fault::ALL.to_vec();
        deck.retain(|fault| *fault != Fault::NatRebinds || nft::is_there());
        deck.sort_by_cached_key(|_| self.stage.dice.next());
        deck
    }

    fn suffer(&mut self, fault: Fault, lasts: Duration) {
        let before = self.statuses();
        let at = self.started.elapsed();
        let what = self.stage.begin(fault);
        print!("{:7.1} s  {what}, for {:.1} s", at.as_secs_f64(), lasts.as_secs_f64());
        let since = Instant::now();
        while since.elapsed() < lasts {
            self.stage.go_on(fault);
            self.look();
        }
        let lifted = Instant::now();
        self.stage.lift(fault);
        self.recover();
        let took = lifted.elapsed();
        println!("; Up after {:.2} s", took.as_secs_f64());
        assert!(took < BOUND, "{what}: back only after {took:?}; now {:#?}", self.statuses());
        let (count, slowest) = self.recoveries.entry(fault).or_default();
        (*count, *slowest) = (*count + 1, took.max(*slowest));
        if matches!(fault, Fault::Killed | Fault::Terminated) {
            self.series[1] = Series::new();
        }
        self.assert_explained(fault, &what, &before);
    }

    /// Drops are of the kinds this fault explains, and what is harmless has changed no state.
    fn assert_explained(&mut self, fault: Fault, what: &str, before: &[Value; 2]) {
        let after = self.statuses();
        // A new process has counters of its own.
        let same_process = if matches!(fault, Fault::Killed | Fault::Terminated) { 1 } else { 2 };
        for (name, (before, after)) in ["left", "right"].into_iter().zip(before.iter().zip(&after)).take(same_process) {
            for reason in REASONS.iter().filter(|reason| !fault.explains().contains(reason)) {
                assert_eq!(before["drops"][reason], after["drops"][reason], "{what}: {name} dropped {reason}");
            }
            if fault.is_harmless() {
                assert_eq!(before["since"], after["since"], "{what}: {name} was not Up all the time");
            }
        }
    }

    /// Waits until both ends say Up and a ping comes through both ways.
    fn recover(&self) {
        let since = Instant::now();
        // Longer than it may take, so that it can be said how long it did.
        while !(self.both_up() && self.stage.pings_pass()) && since.elapsed() < BOUND * 3 {
            self.traffic.assert_nothing_wrong();
            thread::sleep(TICK);
        }
    }

    fn both_up(&self) -> bool {
        let up = self.stage.awake().filter(|(_, end)| end.answers() && end.status()["state"] == "up").count();
        up == 2
    }

    /// One look at everything that must always be so.
    fn look(&mut self) {
        thread::sleep(TICK);
        self.traffic.assert_nothing_wrong();
        for (n, end) in self.stage.awake() {
            let sample = Sample::of(end);
            let (low, high) = self.rss[n];
            self.rss[n] = (low.min(sample.rss_kb), high.max(sample.rss_kb));
            self.series[n].add(sample);
        }
        if self.asked.elapsed() > Duration::from_secs(1) {
            self.asked = Instant::now();
            // Panics where there is no answer.
            let statuses: Vec<_> = self.stage.awake().map(|(n, end)| (n, end.status())).collect();
            self.answers += statuses.len() as u64;
            if let Some((0, left)) = statuses.into_iter().next() {
                self.note_session(&left);
            }
        }
    }

    /// A new session while the link stayed Up is a rekey, with no cold open.
    fn note_session(&mut self, left: &Value) {
        let session = (left["since"].clone(), left["session"]["epoch"].as_u64());
        self.rekeys += u64::from(left["state"] == "up" && session.0 == self.session.0 && session.1 > self.session.1);
        self.session = session;
    }

    fn statuses(&self) -> [Value; 2] {
        let statuses: Vec<_> = self.stage.awake().map(|(_, end)| end.status()).collect();
        statuses.try_into().expect("both ends")
    }

    /// A stretch in which nothing is done to the pair, and nothing may go wrong.
    fn be_calm(&mut self, time: Duration) {
        // What was sent before it is over by then, pings that were not answered too.
        let settled = Instant::now();
        while settled.elapsed() < PING_PATIENCE * 3 / 2 {
            self.look();
        }
        let (before, mark, since) = (self.statuses(), self.traffic.mark(), Instant::now());
        while since.elapsed() < time {
            self.look();
        }
        self.traffic.assert_all_since(&mark);
        self.calm += since.elapsed();
        for (before, after) in before.iter().zip(&self.statuses()) {
            assert_eq!(before["drops"], after["drops"], "dropped in calm");
            assert_eq!(
                (&before["state"], &before["since"]),
                (&after["state"], &after["since"]),
                "not Up all the time in calm"
            );
        }
        for (n, end) in self.stage.awake() {
            self.series[n].add_at_rest(Sample::at_rest(end));
        }
        self.series[0].assert_flat("left");
        self.series[1].assert_flat("right");
    }

    fn finish(self) {
        // Whoever typed during the last fault is answered when TCP tries again.
        let (before, since) = (self.traffic.lines.load(Relaxed), Instant::now());
        while self.traffic.lines.load(Relaxed) < before + 3 {
            self.traffic.assert_nothing_wrong();
            assert!(since.elapsed() < Duration::from_secs(60), "the connection that stays does not answer any more");
            thread::sleep(TICK);
        }
        self.table();
        self.series[0].assert_no_growth("left");
        self.traffic.stop();
        self.stage.close();
    }

    /// The run in figures, as docs/RELIABILITY.md has them.
    fn table(&self) {
        let traffic = self.traffic;
        let (delivered, sent) = (traffic.delivered(), traffic.sum(|flow| &flow.sent));
        let number = |of: &std::sync::atomic::AtomicU64| of.load(Relaxed);
        println!("\n| Fault | Times | Slowest recovery |\n|---|---|---|");
        for (fault, (count, slowest)) in &self.recoveries {
            println!("| {fault:?} | {count} | {:.2} s |", slowest.as_secs_f64());
        }
        let mut rows = vec![
            (
                "Time, of which calm",
                format!("{:.0} s, {:.0} s", self.started.elapsed().as_secs_f64(), self.calm.as_secs_f64()),
            ),
            ("Faults", self.recoveries.values().map(|(count, _)| count).sum::<u32>().to_string()),
            ("TCP, every byte compared", format!("{:.1} GB", number(&traffic.tcp_bytes) as f64 / 1e9)),
            ("Transfers whole, broken off", format!("{}, {}", number(&traffic.transfers), number(&traffic.broken_off))),
            ("Datagrams sent, delivered", format!("{sent}, {delivered}")),
            ("Datagrams twice, changed, lost in calm", "0, 0, 0".into()),
            ("Pings, unanswered", format!("{}, {}", number(&traffic.pings), number(&traffic.unanswered))),
            ("Lines on the connection that stayed", number(&traffic.lines).to_string()),
            ("Status asked and answered", self.answers.to_string()),
            ("Rekeys seen", self.rekeys.to_string()),
        ];
        let frames = self.stage.frames();
        let total = |of: fn(&common::relay::Counts) -> u64| frames.iter().map(of).sum::<u64>().to_string();
        rows.push(("Frames the relay saw, lost", format!("{}, {}", total(|c| c.seen), total(|c| c.lost))));
        rows.push(("… duplicated, damaged", format!("{}, {}", total(|c| c.duplicated), total(|c| c.corrupted))));
        for (name, n) in [("RSS of the left end, one process", 0), ("RSS of the right end, each process", 1)] {
            let (low, high) = self.rss[n];
            rows.push((name, format!("{low} to {high} kB")));
        }
        if let Some(last) = self.series[0].last() {
            rows.push(("Descriptors, threads of the left end, always", format!("{}, {}", last.fds, last.threads)));
        }
        println!("\n| What | Figure |\n|---|---|");
        rows.iter().for_each(|(what, figure)| println!("| {what} | {figure} |"));
    }
}

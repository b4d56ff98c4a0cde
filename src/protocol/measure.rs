//! What the line is like, from the Reports and the data's own counters: RTT, jitter, loss each way.
//!
//! The peer may lie: arithmetic saturates, and nothing here decides anything but what is shown.

use super::{
    constants::ECHOES,
    control::{LaneReport, Report, State},
    session::LaneSet,
    slots::Rank,
    time::Time,
};
use std::{collections::VecDeque, time::Duration};

/// Loss is that over this many Reports.
const LOSS_REPORTS: usize = 32;

/// Cumulative counts at two ends of a direction, Report after Report.
#[derive(Default)]
struct Loss(VecDeque<(u64, u64)>);

impl Loss {
    fn add(&mut self, sent: u64, received: u64) {
        if self.0.back().is_some_and(|last| sent < last.0 || received < last.1) {
            return; // counters do not fall
        }
        if self.0.len() == LOSS_REPORTS {
            self.0.pop_front();
        }
        self.0.push_back((sent, received));
    }

    /// Lost of sent over the window, 0 to 1.
    fn ratio(&self) -> Option<f64> {
        let ((s0, r0), (s1, r1)) = (self.0.front()?, self.0.back()?);
        let (sent, received) = (s1 - s0, r1 - r0);
        Some(if sent == 0 { 0.0 } else { (1.0 - received as f64 / sent as f64).clamp(0.0, 1.0) })
    }
}

/// What is known of the line.
#[derive(Default)]
pub struct Measure {
    /// Our last Reports: their time, and what we had sealed by then.
    said: VecDeque<(u64, u64)>,
    /// The peer's newest `time_us`, and when it came.
    heard: Option<(u64, Time)>,
    applied: Option<(Rank, u64)>,
    rtt: Option<Duration>,
    jitter_ns: Option<f64>,
    transit_ns: Option<i128>,
    tx: Loss,
    rx: Loss,
}

impl Measure {
    /// A session from a new cold open: its counters start at nothing.
    pub fn new_baseline(&mut self) {
        self.said.clear();
        (self.tx, self.rx) = (Loss::default(), Loss::default());
        self.transit_ns = None;
        self.heard = None;
    }

    /// The Report to send now.
    pub fn report(&mut self, now: Time, state: State, lanes: &LaneSet) -> Report {
        let (echo, hold) = self.heard.map_or((0, Duration::ZERO), |(time, at)| (time, now.since(at)));
        let report = Report {
            state,
            hold_us: u32::try_from(hold.as_micros()).unwrap_or(u32::MAX),
            time_us: now.as_micros().max(1), // 0 means none
            echo,
            lanes: lanes
                .iter()
                .map(|lane| LaneReport {
                    sent: lane.sent.get(),
                    received: lane.received.get(),
                    duplicate: lane.duplicate.get(),
                    late: lane.late.get(),
                    failed: lane.failed.get(),
                })
                .collect(),
        };
        if self.said.len() == ECHOES {
            self.said.pop_front();
        }
        self.said.push_back((report.time_us, report.lanes.iter().map(|l| l.sent).sum()));
        report
    }

    /// Whether a Report under this rank with this counter is newer than all applied; notes it if so.
    pub fn newer(&mut self, rank: Rank, counter: u64) -> bool {
        let newer = self.applied.is_none_or(|applied| applied < (rank, counter));
        if newer {
            self.applied = Some((rank, counter));
        }
        newer
    }

    /// Takes the figures of a Report.
    pub fn apply(&mut self, now: Time, report: &Report, lanes: &LaneSet) {
        let total = |f: fn(&LaneReport) -> u64| report.lanes.iter().map(f).fold(0, u64::saturating_add);
        self.rx.add(total(|l| l.sent), lanes.iter().map(|l| l.received.get()).sum());
        if self.said.iter().any(|(time, _)| *time == report.echo) {
            let hold = u64::from(report.hold_us);
            let rtt = now.as_micros().saturating_sub(report.echo).saturating_sub(hold);
            self.add_rtt(Duration::from_micros(rtt));
            let sealed = lanes.iter().map(|l| l.sent.get()).sum();
            self.tx.add(
                self.sealed_by(report.echo.saturating_add(hold), (now.as_micros(), sealed)),
                total(|l| l.received),
            );
        }
        self.add_transit(i128::from(now.0) - i128::from(report.time_us) * 1_000);
        self.heard = Some((report.time_us, now));
    }

    /// What this end had sealed by `time`, taking it as sealed evenly between its Reports. What it sealed then arrived
    /// about when the peer said how much it has: so it does not show as loss how the two ends' Reports lie in time.
    fn sealed_by(&self, time: u64, present: (u64, u64)) -> u64 {
        let mut before = (0, 0);
        for after in self.said.iter().copied().chain([present]) {
            if after.0 >= time && before.0 > 0 {
                let share = time.saturating_sub(before.0) as f64 / after.0.saturating_sub(before.0).max(1) as f64;
                return before.1 + (after.1.saturating_sub(before.1) as f64 * share) as u64;
            }
            before = after;
        }
        present.1
    }

    /// Smoothed by 1/8, as in RFC 6298 §2.3.
    fn add_rtt(&mut self, sample: Duration) {
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
    }

    /// Interarrival jitter, RFC 3550 §6.4.1: `J += (|D| - J) / 16`.
    fn add_transit(&mut self, transit: i128) {
        if let Some(last) = self.transit_ns.replace(transit) {
            let d = (transit - last).unsigned_abs() as f64;
            let jitter = self.jitter_ns.unwrap_or(0.0);
            self.jitter_ns = Some(jitter + (d - jitter) / 16.0);
        }
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// The interarrival jitter of the peer's Reports.
    pub fn jitter(&self) -> Option<Duration> {
        self.jitter_ns.map(|ns| Duration::from_nanos(ns as u64))
    }

    /// What the far end reports as lost of what we sent lately, 0 to 1.
    pub fn tx_loss(&self) -> Option<f64> {
        self.tx.ratio()
    }

    /// What was lost of what the far end sent lately, 0 to 1.
    pub fn rx_loss(&self) -> Option<f64> {
        self.rx.ratio()
    }
}

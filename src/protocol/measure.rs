//! What the line is like, from the Reports and the data's own counters: RTT, jitter, loss each way.
//!
//! The peer may lie: arithmetic saturates, and nothing here decides anything but what is shown.

use super::{
    constants::ECHOES,
    control::{LaneReport, Report, State},
    levels::LaneLevels,
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
    /// A new cold open: both ends count from 0.
    fn from_zero() -> Loss {
        Loss([(0, 0)].into())
    }

    fn add(&mut self, sent: u64, received: u64) {
        let received = received.min(sent); // what overtook the Report was sent after it
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
        let (&(s0, r0), &(s1, r1)) = (self.0.front()?, self.0.iter().skip(1).last()?);
        let (sent, received) = (s1 - s0, r1 - r0);
        Some(if sent == 0 { 0.0 } else { (1.0 - received as f64 / sent as f64).clamp(0.0, 1.0) })
    }
}

/// The peer's newest Report, and what this end had received when it came.
///
/// What goes back with its echo is this, not the count of the moment of sending: so the peer compares what it had sent
/// when it said so with what had arrived then, and neither hold time nor bursts look like loss.
struct Heard {
    time_us: u64,
    at: Time,
    lanes: Vec<LaneReport>,
}

fn count(lane: &LaneLevels) -> LaneReport {
    LaneReport {
        sent: lane.sent.get(),
        received: lane.received.get(),
        duplicate: lane.duplicate.get(),
        late: lane.late.get(),
        failed: lane.failed.get(),
    }
}

/// A round-trip time with one more sample in it, by 1/8, as in RFC 6298 §2.3.
pub fn smoothed(rtt: Option<Duration>, sample: Duration) -> Duration {
    rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8)
}

/// What is known of the line.
#[derive(Default)]
pub struct Measure {
    /// Our last Reports: their time, and what we had sealed by then.
    said: VecDeque<(u64, u64)>,
    heard: Option<Heard>,
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
        (self.tx, self.rx) = (Loss::from_zero(), Loss::from_zero());
        self.transit_ns = None;
        self.heard = None;
    }

    /// The Report to send now.
    pub fn report(&mut self, now: Time, state: State, lanes: &LaneSet) -> Report {
        let (echo, hold) =
            self.heard.as_ref().map_or((0, Duration::ZERO), |heard| (heard.time_us, now.since(heard.at)));
        let received = |lane: usize| self.heard.as_ref().and_then(|heard| heard.lanes.get(lane).copied());
        let report = Report {
            state,
            hold_us: u32::try_from(hold.as_micros()).unwrap_or(u32::MAX),
            time_us: now.as_micros().max(1), // 0 means none
            echo,
            lanes: (0..)
                .zip(lanes.iter())
                .map(|(i, lane)| LaneReport { sent: lane.sent.get(), ..received(i).unwrap_or_default() })
                .collect(),
            ..Report::default()
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
        let came: Vec<LaneReport> = lanes.iter().map(|lane| count(lane)).collect();
        self.rx.add(total(|l| l.sent), came.iter().map(|l| l.received).sum());
        if let Some(&(said, sent)) = self.said.iter().find(|(time, _)| *time == report.echo) {
            let rtt = now.as_micros().saturating_sub(said).saturating_sub(report.hold_us.into());
            self.rtt = Some(smoothed(self.rtt, Duration::from_micros(rtt)));
            self.tx.add(sent, total(|l| l.received));
        }
        self.add_transit(i128::from(now.0) - i128::from(report.time_us) * 1_000);
        self.heard = Some(Heard { time_us: report.time_us, at: now, lanes: came });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::session::lane_set;

    /// One end's counters and what it makes of the other's Reports.
    struct End {
        measure: Measure,
        lanes: LaneSet,
    }

    impl End {
        fn new() -> End {
            let mut measure = Measure::default();
            measure.new_baseline();
            End { measure, lanes: lane_set(1) }
        }

        fn report(&mut self, ms: u64) -> Report {
            self.measure.report(at(ms), State::Up, &self.lanes)
        }

        fn hear(&mut self, ms: u64, report: &Report) {
            self.measure.apply(at(ms), report, &self.lanes);
        }
    }

    fn at(ms: u64) -> Time {
        Time(1_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn a_burst_between_two_reports_is_no_loss() {
        let (mut a, mut b) = (End::new(), End::new());
        for round in 0..LOSS_REPORTS as u64 + 8 {
            let said = a.report(round * 1_000);
            b.hear(round * 1_000 + 10, &said);
            // A burst, after a's Report and before b's: all of it arrives.
            let burst = if round % 3 == 0 { 1_000 } else { 0 };
            a.lanes[0].sent.add(burst);
            b.lanes[0].received.add(burst);
            let said = b.report(round * 1_000 + 500);
            a.hear(round * 1_000 + 510, &said);
            assert_eq!(a.measure.tx_loss(), Some(0.0), "round {round}");
            assert_eq!(b.measure.rx_loss(), Some(0.0), "round {round}");
        }
        assert_eq!(a.measure.rtt(), Some(Duration::from_millis(20)));
    }

    #[test]
    fn both_ends_say_the_same_of_a_direction() {
        let (mut a, mut b) = (End::new(), End::new());
        assert_eq!(a.measure.tx_loss(), None);
        for round in 0..5 {
            a.lanes[0].sent.add(100);
            b.lanes[0].received.add(90);
            let said = a.report(round * 1_000);
            b.hear(round * 1_000 + 10, &said);
            let said = b.report(round * 1_000 + 500);
            a.hear(round * 1_000 + 510, &said);
        }
        let (tx, rx) = (a.measure.tx_loss().unwrap(), b.measure.rx_loss().unwrap());
        assert!((tx - 0.1).abs() < 1e-9 && (rx - 0.1).abs() < 1e-9, "{tx} {rx}");
    }

    #[test]
    fn a_lying_peer_breaks_nothing() {
        let mut a = End::new();
        let mut said = a.report(0);
        for n in [u64::MAX, 0, 1, u64::MAX] {
            let lane = LaneReport { sent: n, received: n, duplicate: n, late: n, failed: n };
            let lie = Report { hold_us: u32::MAX, time_us: n, echo: said.time_us, lanes: vec![lane; 16], ..said };
            a.hear(5, &lie);
            said = a.report(10);
        }
        let ratios = [a.measure.tx_loss(), a.measure.rx_loss()];
        assert!(ratios.into_iter().flatten().all(|ratio| (0.0..=1.0).contains(&ratio)));
    }
}

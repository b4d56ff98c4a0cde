//! What the demo says: the story while it runs, the figures when it is over.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::transfer::{Load, Tally};

/// Tells what is going on, on stderr: stdout is for the figures.
pub struct Narrator {
    quiet: bool,
    /// A terminal gets a progress line that is rewritten in place.
    terminal: bool,
}

impl Narrator {
    pub fn new(quiet: bool) -> Self {
        Self { quiet, terminal: io::stderr().is_terminal() }
    }

    pub fn say(&self, line: &str) {
        if !self.quiet {
            let clear = if self.terminal { "\r\x1b[K" } else { "" };
            // Nobody listening is no reason to fail.
            let _ = writeln!(io::stderr(), "{clear}{line}");
        }
    }

    pub fn progress(&self, line: &str) {
        if self.terminal && !self.quiet {
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }
}

/// The progress line of one transfer.
pub struct Progress<'a> {
    narrator: &'a Narrator,
    direction: &'a str,
    load: Load,
    started: Instant,
}

impl<'a> Progress<'a> {
    pub fn start(narrator: &'a Narrator, direction: &'a str, load: Load) -> Self {
        Self { narrator, direction, load, started: Instant::now() }
    }

    /// `received` bytes have come out of the link so far.
    pub fn show(&self, received: u64) {
        let elapsed = self.started.elapsed();
        let done = match self.load {
            Load::Hashed(total) => received as f64 / total as f64,
            Load::Timed(time) => elapsed.as_secs_f64() / time.as_secs_f64(),
        };
        self.narrator.progress(&format!(
            "{}  {:3.0} %  {:.2} Gbit/s",
            self.direction,
            100.0 * done.min(1.0),
            gbit_per_s(received, elapsed)
        ));
    }
}

/// The line that stays of a transfer.
pub fn line(direction: &str, load: Load, tally: &Tally) -> String {
    let rate = gbit_per_s(tally.bytes, tally.took);
    match load {
        Load::Hashed(bytes) => format!("{direction}: {} MB, the same SHA-256 at both ends", megabytes(bytes)),
        Load::Timed(time) => format!("{direction}: {rate:.2} Gbit/s for {:.1} s", time.as_secs_f64()),
    }
}

/// Round-trip times.
#[derive(Debug, Default)]
pub struct Rtt {
    /// Echo requests sent.
    pub sent: u32,
    /// The time each answer took, in the order they came.
    pub answered: Vec<Duration>,
}

impl Rtt {
    /// How many were not answered.
    pub fn lost(&self) -> usize {
        self.sent as usize - self.answered.len()
    }

    /// Milliseconds in which so many percent of the answers were there. `None` without an answer.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let mut times = self.answered.clone();
        times.sort_unstable();
        let rank = (times.len() * percent).div_ceil(100);
        times.get(rank.saturating_sub(1)).map(|time| millis(*time))
    }

    /// Milliseconds: minimum, mean, maximum, and the mean difference between one and the next. `None` without an answer.
    fn summary(&self) -> Option<[f64; 4]> {
        let times: Vec<f64> = self.answered.iter().map(|t| millis(*t)).collect();
        let min = times.iter().copied().reduce(f64::min)?;
        let max = times.iter().copied().reduce(f64::max)?;
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let steps = times.windows(2).map(|pair| (pair[1] - pair[0]).abs());
        let jitter = steps.sum::<f64>() / (times.len() - 1).max(1) as f64;
        Some([min, mean, max, jitter])
    }
}

/// What there is to say of the link, whatever was measured through it. Of each pair the first is hq's.
pub struct Link {
    /// From the later end's start to the first ping answered.
    pub connect: Duration,
    /// `status --json` of both ends once the link was up, …
    pub before: [Value; 2],
    /// … and after the transfers.
    pub after: [Value; 2],
}

/// What the plain demo measured. Of each pair the first is from hq to branch.
pub struct Figures {
    pub rtt: Rtt,
    /// The runs with SHA-256 at both ends.
    pub hashed: [Tally; 2],
    /// The timed runs.
    pub timed: [Tally; 2],
}

impl Link {
    pub fn connect_ms(&self) -> f64 {
        millis(self.connect)
    }

    /// The handshake, cipher and kind of keys in use, as in `status --json`.
    pub fn session(&self) -> Value {
        let session = &self.after[0]["session"];
        json!({
            "noise": session["noise"],
            "cipher": session["cipher"],
            "post_quantum": session["post_quantum"],
        })
    }

    /// The largest packet inside the link, in bytes.
    pub fn path_mtu(&self) -> &Value {
        &self.after[0]["path"]["mtu"]
    }

    /// What the far end reports as lost of what this end sent.
    fn loss(&self, end: usize) -> &Value {
        &self.after[end]["path"]["tx"]["loss_ratio"]
    }

    /// What this end has dropped since the link was up, by reason. Pings sent before that found no session, or no carrier, which is
    /// counted a second later: they don't count.
    fn drops(&self, end: usize) -> serde_json::Map<String, Value> {
        let of = |status: &Value, reason: &str| status["drops"][reason].as_u64().unwrap_or(0);
        let reasons = self.after[end]["drops"].as_object();
        reasons
            .into_iter()
            .flat_map(|reasons| reasons.keys())
            .filter(|reason| *reason != "interface_no_carrier")
            .map(|reason| {
                let since = of(&self.after[end], reason).saturating_sub(of(&self.before[end], reason));
                (reason.clone(), since.into())
            })
            .collect()
    }

    /// What was lost beside the pings, in words.
    fn lost(&self) -> Vec<String> {
        let mut parts = Vec::new();
        for (end, direction) in ["hq → branch", "branch → hq"].into_iter().enumerate() {
            parts.push(match self.loss(end).as_f64() {
                Some(ratio) => format!("{:.3} % {direction}", 100.0 * ratio),
                None => format!("not known {direction}"),
            });
        }
        let dropped: Vec<_> = ["hq", "branch"]
            .into_iter()
            .enumerate()
            .flat_map(|(end, name)| self.drops(end).into_iter().map(move |d| (name, d)))
            .filter(|(_, (_, count))| count.as_u64() != Some(0))
            .map(|(name, (reason, count))| format!("{count} {reason} at {name}"))
            .collect();
        parts.push(match dropped.is_empty() {
            true => "nothing dropped".into(),
            false => format!("dropped: {}", dropped.join(", ")),
        });
        parts
    }
}

impl Figures {
    /// The figures as one line of JSON. Times are in ms, rates in Gbit/s; what is not known is null.
    pub fn json(&self, link: &Link) -> String {
        let rtt = self.rtt.summary();
        let [there, back] = self.rates();
        let object = json!({
            "version": 1,
            "connect_ms": link.connect_ms(),
            "ping": {
                "sent": self.rtt.sent,
                "answered": self.rtt.answered.len(),
                "min_ms": rtt.map(|r| r[0]),
                "avg_ms": rtt.map(|r| r[1]),
                "max_ms": rtt.map(|r| r[2]),
                "jitter_ms": rtt.map(|r| r[3]),
            },
            "tcp": {
                "hq_to_branch_gbit_per_s": there,
                "branch_to_hq_gbit_per_s": back,
                "bytes_counted": self.timed[0].bytes + self.timed[1].bytes,
                "bytes_hashed": self.hashed[0].bytes + self.hashed[1].bytes,
                "hashes_equal": true,
            },
            "session": link.session(),
            "path_mtu": link.path_mtu(),
            "loss_ratio": { "hq_to_branch": link.loss(0), "branch_to_hq": link.loss(1) },
            "drops": { "hq": link.drops(0), "branch": link.drops(1) },
        });
        format!("{object}\n")
    }

    /// The figures as a table to read.
    pub fn table(&self, link: &Link) -> String {
        let [there, back] = self.rates();
        let session = link.session();
        let hashed = self.hashed[0].bytes + self.hashed[1].bytes;
        let counted = self.timed[0].bytes + self.timed[1].bytes;
        let ping = match self.rtt.summary() {
            Some([min, mean, max, jitter]) => {
                format!("{mean:.3} ms (min {min:.3}, max {max:.3}, jitter {jitter:.3})")
            }
            None => "no answer".into(),
        };
        let mut lost = vec![format!("{} of {} pings", self.rtt.lost(), self.rtt.sent)];
        lost.extend(link.lost());
        table(&[
            (
                "connect time",
                format!("{:.1} ms (start of the later end to its first ping answered)", link.connect_ms()),
            ),
            ("round trip", ping),
            ("TCP hq → branch", format!("{there:.2} Gbit/s")),
            ("TCP branch → hq", format!("{back:.2} Gbit/s")),
            ("handshake", known(&session["noise"])),
            ("cipher", known(&session["cipher"])),
            ("post-quantum", known(&session["post_quantum"])),
            ("path MTU", format!("{} bytes", known(link.path_mtu()))),
            (
                "bytes checked",
                format!(
                    "{} MB by SHA-256 at both ends; {} MB of the timed run by count",
                    megabytes(hashed),
                    megabytes(counted)
                ),
            ),
            ("lost", lost.join("; ")),
        ])
    }

    fn rates(&self) -> [f64; 2] {
        self.timed.map(|tally| gbit_per_s(tally.bytes, tally.took))
    }
}

/// Names and what is to be said of them, as a table to read.
pub fn table(rows: &[(&str, String)]) -> String {
    let mut table = String::from("\n");
    for (name, value) in rows {
        table.push_str(&format!("  {name:<17} {value}\n"));
    }
    table
}

/// A status value in words.
pub fn known(value: &Value) -> String {
    match value {
        Value::Null => "not known".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000
}

pub fn gbit_per_s(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64().max(1e-9) / 1e9
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn tally(bytes: u64) -> Tally {
        Tally { bytes, sha256: None, took: Duration::from_secs(2) }
    }

    pub fn link() -> Link {
        let status = |replayed: u64| {
            json!({
                "session": { "noise": "Noise_KKpsk2", "cipher": "aes-256-gcm", "post_quantum": true },
                "path": { "mtu": 1440, "tx": { "loss_ratio": 0.0 } },
                "drops": { "replayed": replayed, "no_session": 3 },
            })
        };
        Link { connect: Duration::from_micros(43_210), before: [status(0), status(0)], after: [status(0), status(2)] }
    }

    fn figures() -> Figures {
        Figures {
            rtt: Rtt { sent: 4, answered: [1, 3, 2].map(Duration::from_millis).to_vec() },
            hashed: [tally(128 << 20); 2],
            timed: [tally(1_000_000_000), tally(500_000_000)],
        }
    }

    #[test]
    fn json_gives_the_figures() {
        let object: Value = serde_json::from_str(&figures().json(&link())).unwrap();
        assert_eq!(object["connect_ms"], 43.21);
        assert_eq!(
            object["ping"],
            json!({ "sent": 4, "answered": 3, "min_ms": 1.0, "avg_ms": 2.0, "max_ms": 3.0, "jitter_ms": 1.5 })
        );
        assert_eq!(object["tcp"]["hq_to_branch_gbit_per_s"], 4.0);
        assert_eq!(object["tcp"]["bytes_hashed"], 256 << 20);
        assert_eq!(object["drops"]["branch"], json!({ "replayed": 2, "no_session": 0 }));
    }

    #[test]
    fn the_table_says_what_was_lost() {
        let table = figures().table(&link());
        assert!(table.contains("1 of 4 pings; 0.000 % hq → branch"), "{table}");
        assert!(table.contains("dropped: 2 replayed at branch"), "{table}");
        let mut clean = link();
        clean.after[1] = clean.after[0].clone();
        assert!(figures().table(&clean).contains("nothing dropped"));
    }

    #[test]
    fn a_link_that_answers_no_ping_has_no_round_trip() {
        let mut figures = figures();
        figures.rtt.answered.clear();
        assert!(figures.table(&link()).contains("no answer"));
        let object: Value = serde_json::from_str(&figures.json(&link())).unwrap();
        assert_eq!(object["ping"]["avg_ms"], Value::Null);
    }

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let rtt = |times: &[u64]| Rtt { sent: 5, answered: times.iter().map(|&t| Duration::from_millis(t)).collect() };
        let percentiles = |rtt: Rtt| [1, 50, 99, 100].map(|percent| rtt.percentile(percent));
        assert_eq!(percentiles(rtt(&[])), [None; 4]);
        assert_eq!(percentiles(rtt(&[7])), [Some(7.0); 4]);
        assert_eq!(percentiles(rtt(&[4, 1, 3, 2])), [1.0, 2.0, 4.0, 4.0].map(Some));
    }
}

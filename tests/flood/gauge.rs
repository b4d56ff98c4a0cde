//! What a flooded end shows from outside: memory, processor time by thread, what its machine's kernel took in and dropped, what it
//! counts itself, and which control messages never came.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::common::lab::{End, Site};

/// Makes `up` log each control message it opens: then those that are missing show.
pub const TELLING: [&str; 2] = ["--log-level", "info,tieline::control::driver=trace"];
/// The counters of `status`' drops, in this order.
pub const DROPS: [&str; 4] = ["malformed", "unauthentic", "replayed", "no_session"];

/// An end at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Resident memory in KB.
    pub rss: u64,
    /// Nanoseconds on a processor, by the thread's name.
    pub cpu: BTreeMap<String, u64>,
    /// Packets that arrived at an interface, and those the kernel had no time for.
    pub arrived: u64,
    pub missed: u64,
    /// UDP datagrams for which there was no room in a socket, in its whole network.
    pub no_room: u64,
    pub drops: [u64; 4],
    pub state: Value,
    /// Since when it is in that state.
    pub since: Value,
    /// How much has been logged.
    logged: usize,
}

impl Reading {
    pub fn of(end: &End<'_>, interface: &str) -> Self {
        let status = end.status();
        let proc = format!("/proc/{}", end.id());
        Self {
            rss: resident(&proc),
            cpu: cpu(&proc),
            arrived: received(&proc, interface, 1),
            missed: received(&proc, interface, 3),
            no_room: no_room(&proc),
            drops: DROPS.map(|name| status["drops"][name].as_u64().unwrap()),
            state: status["state"].clone(),
            since: status["since"].clone(),
            logged: end.site.log().len(),
        }
    }

    /// What was dropped since an earlier one, by reason.
    pub fn dropped_since(&self, before: &Self) -> [u64; 4] {
        std::array::from_fn(|n| self.drops[n] - before.drops[n])
    }

    /// Whether the line has been Up from `before` on.
    pub fn stayed_up_since(&self, before: &Self) -> bool {
        before.state == "up" && self.state == "up" && self.since == before.since
    }

    /// Datagrams that arrived for it since an earlier one, and that it never saw.
    pub fn unseen_since(&self, before: &Self) -> u64 {
        self.no_room - before.no_room + self.missed - before.missed
    }

    /// Nanoseconds the thread of this name was on a processor since an earlier one.
    pub fn cpu_since(&self, before: &Self, thread: &str) -> u64 {
        self.cpu.get(thread).copied().unwrap_or(0) - before.cpu.get(thread).copied().unwrap_or(0)
    }

    /// Control messages that came between two readings, and those missing from their numbers.
    pub fn control_since(&self, before: &Self, site: &Site) -> (u64, u64) {
        let log = site.log();
        let mut by_session = BTreeMap::<u64, BTreeSet<u64>>::new();
        for line in log[before.logged..self.logged].lines().filter(|line| line.contains("control message")) {
            let field = |name: &str| line.split(name).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
            let (Some(session), Some(counter)) = (field("session="), field("counter=")) else { continue };
            by_session.entry(session).or_default().insert(counter);
        }
        let mut all = (0, 0);
        for counters in by_session.values() {
            let (first, last, came) = (counters.first().unwrap(), counters.last().unwrap(), counters.len() as u64);
            all = (all.0 + came, all.1 + (last - first + 1 - came));
        }
        all
    }
}

fn resident(proc: &str) -> u64 {
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn cpu(proc: &str) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("{proc}/task")).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?;
        // Nanoseconds on the processor come first (Documentation/scheduler/sched-stats.rst).
        let spent = fs::read_to_string(path.join("schedstat")).ok()?;
        Some((name.trim().to_owned(), spent.split_whitespace().next()?.parse().ok()?))
    };
    threads.filter_map(read).collect()
}

/// A column of what /proc/net/dev says of receiving.
fn received(proc: &str, interface: &str, column: usize) -> u64 {
    let devices = fs::read_to_string(format!("{proc}/net/dev")).unwrap();
    let line = devices.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(column).unwrap().parse().unwrap()
}

fn no_room(proc: &str) -> u64 {
    let snmp = fs::read_to_string(format!("{proc}/net/snmp")).unwrap();
    let mut lines = snmp.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    both.find(|(name, _)| *name == "RcvbufErrors").unwrap().1.parse().unwrap()
}

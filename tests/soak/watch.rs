//! What a process uses, sample after sample, and whether that grows.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::lab::End;

/// What a long life may add to the memory of its own that a process has.
const GROWTH_KB: u64 = 512;

/// At one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Resident, all of it.
    pub rss_kb: u64,
    /// Resident and backed by no file: what leaks is here.
    own_kb: u64,
    pub fds: usize,
    pub threads: u64,
}

impl Sample {
    pub fn of(end: &End<'_>) -> Self {
        let status = fs::read_to_string(format!("/proc/{}/status", end.id())).unwrap();
        let number = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {status}"));
            line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
        };
        Self {
            rss_kb: number("VmRSS:"),
            own_kb: number("RssAnon:"),
            fds: fs::read_dir(format!("/proc/{}/fd", end.id())).unwrap().count(),
            threads: number("Threads:"),
        }
    }

    /// Without what is there for a moment only: a client of the status socket, say.
    pub fn at_rest(end: &End<'_>) -> Self {
        let samples: Vec<_> = (0..5)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                Self::of(end)
            })
            .collect();
        samples.into_iter().min_by_key(|sample| sample.fds).unwrap()
    }
}

/// Samples of one process over its life.
pub struct Series {
    since: Instant,
    samples: Vec<(Duration, Sample)>,
    at_rest: Vec<Sample>,
}

impl Series {
    pub fn new() -> Self {
        Self { since: Instant::now(), samples: Vec::new(), at_rest: Vec::new() }
    }

    pub fn add(&mut self, sample: Sample) {
        self.samples.push((self.since.elapsed(), sample));
    }

    pub fn add_at_rest(&mut self, sample: Sample) {
        self.at_rest.push(sample);
    }

    /// Panics where a descriptor or a thread has come to stay.
    pub fn assert_flat(&self, name: &str) {
        let Some(first) = self.at_rest.first() else { return };
        for sample in &self.at_rest {
            let same = (sample.fds, sample.threads) == (first.fds, first.threads);
            assert!(same, "{name} had {first:?} at its first calm moment and has {sample:?}");
        }
    }

    /// Panics where the memory grows: the median of the last third of this life against that of the first, after a fifth for
    /// warming up.
    pub fn assert_no_growth(&self, name: &str) {
        let life = self.samples.last().map_or(Duration::ZERO, |(at, _)| *at);
        let median = |from: f64, to: f64| {
            let within = self.samples.iter().filter(|(at, _)| *at >= life.mul_f64(from) && *at <= life.mul_f64(to));
            let mut own: Vec<_> = within.map(|(_, sample)| sample.own_kb).collect();
            own.sort_unstable();
            own[own.len() / 2]
        };
        let third = 0.8 / 3.0;
        let (first, last) = (median(0.2, 0.2 + third), median(1.0 - third, 1.0));
        println!("{name}: memory of its own {first} kB in the first third of its life, {last} kB in the last");
        assert!(last <= first + GROWTH_KB, "{name} grew from {first} kB to {last} kB");
    }

    /// The figures of the last calm moment.
    pub fn last(&self) -> Option<Sample> {
        self.at_rest.last().copied()
    }
}

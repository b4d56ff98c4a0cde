//! A world in virtual time for two ends of a link: shared by the simulation and the named scenarios. It has a clock, a
//! network that can do everything a bad one does, and a watch that knows what must never happen.
//!
//! Nothing in it is random but by a seed, and nothing reads a clock: the same setup gives the same trace.

#![allow(dead_code, unused_imports, clippy::expect_used)] // each test file uses its own part of it

pub mod crowd;
mod driver;
pub mod end;
pub mod entropy;
pub mod forge;
pub mod puppet;
pub mod scenes;
pub mod trace;
pub mod watch;
pub mod world;

pub use end::{End, EndSetup};
pub use entropy::SeededEntropy;
pub use puppet::Puppet;
pub use world::{Fate, Flight, Traffic, World};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::{ops::Range, time::Duration};

/// The first end.
pub const A: usize = 0;
/// The second end.
pub const B: usize = 1;

/// Draws what a world needs, from one seed.
pub struct Dice(ChaCha8Rng);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
    }

    /// True with this probability.
    pub fn chance(&mut self, p: f64) -> bool {
        ((self.u64() >> 11) as f64 / (1u64 << 53) as f64) < p
    }

    pub fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.u64() % (range.end - range.start).max(1)
    }

    pub fn ms(&mut self, range: Range<u64>) -> Duration {
        Duration::from_nanos(self.range(range.start * 1_000_000..range.end * 1_000_000))
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.range(0..from.len() as u64) as usize]
    }
}

/// Milliseconds, for scenarios.
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Seconds, for scenarios.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

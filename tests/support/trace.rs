//! What happened, as a hash that is always kept (two runs of a seed must agree), and as lines where someone asked.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

/// The last lines of a trace; shared, so that they outlive a panic.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<VecDeque<String>>>);

impl Lines {
    const KEPT: usize = 400;

    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == Lines::KEPT {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub fn take(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

/// Tells datagrams and frames apart; cheap, as each byte of a world goes through it.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// See the module.
#[derive(Default)]
pub struct Trace {
    hasher: DefaultHasher,
    lines: Option<Lines>,
}

impl Trace {
    pub fn keep(&mut self, lines: Lines) {
        self.lines = Some(lines);
    }

    /// Notes `what`, and says it in words where someone reads.
    pub fn note(&mut self, now: u64, what: impl Hash, words: impl FnOnce() -> String) {
        now.hash(&mut self.hasher);
        what.hash(&mut self.hasher);
        if let Some(lines) = &self.lines {
            lines.push(format!("{:>12.6} {}", now as f64 / 1e9, words()));
        }
    }

    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}

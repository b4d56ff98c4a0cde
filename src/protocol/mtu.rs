//! The largest datagram that the way to the peer carries, found by probing and kept found: packetization layer path MTU
//! discovery (DPLPMTUD, RFC 8899), by each end for what it sends itself.
//!
//! Everything is tried in *trials*: a few sizes at once, and beside them a small probe that any way carries. Only a try
//! whose small probe was answered says anything about the others: so silence shrinks nothing, and a line that loses much is
//! asked more often before a size is given up. A trial of the size in use finds a black hole, one of larger sizes finds
//! room to grow, and a search is trials of sizes that lie ever closer.
//!
//! Sizes are whole UDP payloads, in bytes.

use super::{constants::*, time::Time};
use std::time::Duration;

/// A size, and when it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Bytes of the largest datagram that passes, header and tag included.
    pub size: u16,
    /// Since when that is known.
    pub since: Time,
}

/// What a trial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Whether the size in use still passes.
    Confirm,
    /// Whether anything larger passes: a byte more, and the ceiling.
    Raise,
    /// What passes beyond what is known to.
    Search {
        /// The largest that may.
        high: u16,
    },
}

/// Sizes under test.
#[derive(Debug)]
struct Trial {
    purpose: Purpose,
    /// Rising.
    sizes: Vec<u16>,
    /// What is known to pass, until it is seen that it still does: a search may take long on a line that loses much.
    proof: Option<u16>,
    tries: u32,
    /// Tries whose small probe was answered …
    counted: u32,
    /// … and how many at last were not.
    silent: u32,
    /// Whether that of the present try was.
    small: bool,
    next: Time,
}

/// The search for one direction.
#[derive(Debug)]
pub(super) struct Mtu {
    /// The largest worth trying: what the own interface takes, and user frames need.
    ceiling: u16,
    /// What is in use.
    size: u16,
    /// The largest that passed, or [`MTU_FLOOR`].
    good: u16,
    found: Option<Found>,
    /// Comes back in answers, so that those to probes of another path or time count for nothing.
    mark: u8,
    /// The largest probe sent with it.
    sent: u16,
    /// Small probes lost lately, 0 to 1.
    loss: f64,
    trial: Option<Trial>,
    /// When to look for room to grow, and the pause after that.
    raise: Option<Time>,
    pause: Duration,
    /// When to look for a black hole; `None` while there is no line.
    look: Option<Time>,
    /// Large datagrams sealed when that was last done.
    seen: u64,
}

/// What the loss is taken for before anything is known, and at least.
const LOSS_FIRST: f64 = 0.2;
const LOSS_LEAST: f64 = 0.06;
/// And at most: a line that loses more would be asked for ever.
const LOSS_MOST: f64 = 0.65;
/// A size that passes is given up in one trial of so many.
const DOUBT: f64 = 1.0 / 4_000.0;
/// A trial that comes to nothing in so many tries is left.
const MOST_TRIES: u32 = 64;

impl Mtu {
    /// Before there is a line. `mark` is the first of its marks; all have its highest bit.
    pub fn new(mark: u8) -> Mtu {
        Mtu {
            ceiling: MTU_CEILING,
            size: MTU_BASE,
            good: MTU_FLOOR,
            found: None,
            mark,
            sent: 0,
            loss: LOSS_FIRST,
            trial: None,
            raise: None,
            pause: MTU_RAISE_FIRST,
            look: None,
            seen: 0,
        }
    }

    /// The most bytes a datagram may have now.
    pub fn limit(&self) -> u16 {
        self.size
    }

    /// What was found last.
    pub fn found(&self) -> Option<Found> {
        self.found
    }

    /// What probes carry now.
    pub fn mark(&self) -> u8 {
        self.mark
    }

    /// There is a line, over a path that was validated: what it carries is searched for.
    pub fn start(&mut self, now: Time) {
        self.look = Some(now);
        self.restart(now);
    }

    /// There is none.
    pub fn stop(&mut self) {
        (self.look, self.trial, self.raise) = (None, None, None);
    }

    /// Nothing larger than this is worth trying.
    pub fn set_ceiling(&mut self, now: Time, ceiling: u16) {
        let ceiling = ceiling.max(MTU_FLOOR);
        let before = std::mem::replace(&mut self.ceiling, ceiling);
        if self.look.is_none() {
            self.size = self.size.min(ceiling);
        } else if ceiling < self.size || ceiling < before && self.trial.is_some() {
            self.restart(now);
        } else if ceiling > before && self.trial.is_none() {
            self.search(now, ceiling);
        }
    }

    /// The own machine refused to send a probe of so many bytes; with `None`, user data of the size in use.
    pub fn refused(&mut self, now: Time, probe: Option<u16>) {
        let Some(length) = probe else {
            let searching = matches!(self.trial, Some(Trial { purpose: Purpose::Search { .. }, .. }));
            if self.look.is_some() && !searching {
                self.restart(now);
            }
            return;
        };
        match &mut self.trial {
            Some(Trial { purpose: Purpose::Search { high }, sizes, .. }) => {
                *high = (*high).min(length.saturating_sub(1)).max(self.good);
                sizes.retain(|size| *size < length);
                if *high == self.good {
                    self.finish(now);
                }
            }
            Some(Trial { purpose: Purpose::Confirm, .. }) if length >= self.size => self.restart(now),
            Some(Trial { purpose: Purpose::Raise, sizes, .. }) => {
                sizes.retain(|size| *size < length);
                if sizes.is_empty() {
                    self.finish(now);
                }
            }
            _ => {}
        }
    }

    /// Something else says that the way may have changed: the size in use is tried at once, whether anything large is sent or not.
    pub fn suspect(&mut self, now: Time) {
        if self.look.is_some() && self.trial.is_none() {
            self.trial = Some(Trial::new(now, Purpose::Confirm, vec![self.size]));
        }
    }

    /// When [`Mtu::step`] has something to do.
    pub fn deadline(&self) -> Option<Time> {
        let look = self.look?;
        Some(match &self.trial {
            Some(trial) => trial.next,
            None => self.raise.map_or(look, |raise| raise.min(look)),
        })
    }

    /// Does what is due, and gives the sizes to send a probe of: a trial's, and the small one. `timeout` is how long an answer
    /// may take, `large` how many datagrams above [`MTU_FLOOR`] were sealed so far.
    pub fn step(&mut self, now: Time, timeout: Duration, large: u64) -> Vec<u16> {
        if self.deadline().is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.judge(now);
        if self.trial.is_none() {
            self.begin(now, large);
        }
        let good = self.good;
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.next <= now) else { return Vec::new() };
        if trial.purpose != Purpose::Confirm {
            trial.sizes.retain(|size| *size > good);
        }
        (trial.tries, trial.small) = (trial.tries + 1, false);
        // On a line that loses much two or three in a row mean nothing.
        trial.next = now + (timeout * (1 << trial.silent.saturating_sub(3).min(4))).min(PROBE_TIMEOUT_MAX);
        let sizes: Vec<u16> = trial.proof.into_iter().chain(trial.sizes.iter().copied()).collect();
        self.sent = sizes.iter().copied().fold(self.sent, u16::max);
        sizes.into_iter().chain([PROBE_SMALL]).collect()
    }

    /// A probe was answered.
    pub fn acked(&mut self, now: Time, mark: u8, size: u16) {
        if mark != self.mark || self.look.is_none() || size > self.sent.max(PROBE_SMALL) {
            return;
        }
        if size <= PROBE_SMALL {
            if let Some(trial) = &mut self.trial {
                trial.small = true;
            }
            return;
        }
        if let Some(trial) = &mut self.trial {
            trial.proof = trial.proof.filter(|proof| *proof > size);
        }
        let before = self.good;
        self.good = before.max(size);
        self.size = self.size.max(size);
        match self.trial.as_ref().map(|trial| trial.purpose) {
            Some(Purpose::Search { high }) if self.good >= high => self.finish(now),
            Some(Purpose::Raise) if self.good > before => self.search(now, self.ceiling),
            Some(Purpose::Confirm) if size >= self.size => self.trial = None,
            None if self.found.is_none_or(|found| found.size < self.good) => self.note(now),
            _ => {}
        }
    }

    /// Ends a try whose time is over, and the trial with it if that was enough.
    fn judge(&mut self, now: Time) {
        let needed = self.needed();
        let Some(trial) = self.trial.as_mut().filter(|trial| trial.next <= now && trial.tries > 0) else { return };
        self.loss += (f64::from(u8::from(!trial.small)) - self.loss) / 8.0;
        (trial.counted, trial.silent) =
            if trial.small { (trial.counted + 1, 0) } else { (trial.counted, trial.silent + 1) };
        if trial.tries >= MOST_TRIES && trial.counted < needed {
            self.finish(now); // that tells nothing of sizes
        } else if trial.counted >= needed {
            match trial.purpose {
                // A black hole: large ones are lost, small ones arrive.
                Purpose::Confirm => self.restart(now),
                _ if trial.proof.is_some() => self.restart(now),
                Purpose::Raise => self.finish(now),
                Purpose::Search { high } => {
                    let failed = trial.sizes.iter().copied().find(|size| *size > self.good);
                    self.size = self.good;
                    self.search(now, failed.map_or(high, |failed| high.min(failed - 1)));
                }
            }
        }
    }

    /// How many tries without an answer are enough: the more the line loses, the more.
    fn needed(&self) -> u32 {
        (DOUBT.ln() / self.loss.clamp(LOSS_LEAST, LOSS_MOST).ln()).ceil() as u32
    }

    /// Begins the trial that is due, if one is.
    fn begin(&mut self, now: Time, large: u64) {
        if self.raise.is_some_and(|at| at <= now) {
            // A byte more tells of all there is beyond it.
            let mut sizes = vec![self.good + 1, self.ceiling];
            sizes.dedup();
            self.raise = None;
            self.trial = Some(Trial { proof: Some(self.good), ..Trial::new(now, Purpose::Raise, sizes) });
            return;
        }
        if self.look.is_some_and(|at| at <= now) {
            self.look = Some(now + MTU_LOOK);
            if std::mem::replace(&mut self.seen, large) != large && self.size > MTU_FLOOR {
                self.trial = Some(Trial::new(now, Purpose::Confirm, vec![self.size]));
            }
        }
    }

    /// Forgets what was known, and begins anew.
    fn restart(&mut self, now: Time) {
        self.mark = self.mark & MARK_SECOND | self.mark.wrapping_add(1) & !MARK_SECOND;
        self.sent = 0;
        self.good = MTU_FLOOR;
        self.size = MTU_BASE.min(self.ceiling);
        self.pause = MTU_RAISE_FIRST;
        self.search(now, self.ceiling);
    }

    /// Tries sizes above the good one, evenly spread, up to `high`.
    fn search(&mut self, now: Time, high: u16) {
        self.raise = None;
        let (good, span) = (self.good, u32::from(high.saturating_sub(self.good)));
        let count = span.min(PROBE_SIZES);
        if count == 0 {
            return self.finish(now);
        }
        let sizes = (1..=count).map(|n| good + (span * n / count) as u16).collect();
        let proof = (good > MTU_FLOOR).then_some(good);
        self.trial = Some(Trial { proof, ..Trial::new(now, Purpose::Search { high }, sizes) });
    }

    /// A search is over: the good size is the one.
    fn finish(&mut self, now: Time) {
        self.trial = None;
        self.size = self.good;
        if self.found.is_none_or(|found| found.size != self.good) {
            self.pause = MTU_RAISE_FIRST;
            self.note(now);
        }
        self.raise = (self.good < self.ceiling).then(|| now + self.pause);
        self.pause = (self.pause * 2).min(MTU_RAISE_MAX);
        self.look = Some(now + MTU_LOOK);
    }

    fn note(&mut self, now: Time) {
        self.found = Some(Found { size: self.good, since: now });
    }
}

impl Trial {
    fn new(now: Time, purpose: Purpose, sizes: Vec<u16>) -> Trial {
        Trial { purpose, sizes, proof: None, tries: 0, counted: 0, silent: 0, small: false, next: now }
    }
}

/// What the peer's probes tell of the other direction: the largest that came since it last began anew.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    mark: u8,
    found: Option<Found>,
}

impl Arrived {
    /// A probe of the peer's. True if what was found before is found no longer: the peer began anew.
    pub fn probe(&mut self, now: Time, mark: u8, size: u16) -> bool {
        if size <= PROBE_SMALL {
            return false;
        }
        let anew = std::mem::replace(&mut self.mark, mark) != mark && self.found.take().is_some();
        if self.found.is_none_or(|found| found.size < size) {
            self.found = Some(Found { size, since: now });
        }
        anew
    }

    /// The largest, and when the first of them came.
    pub fn found(&self) -> Option<Found> {
        self.found
    }
}

#[cfg(test)]
mod tests;

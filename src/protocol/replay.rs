//! The replay window: a ring of bits that remembers which counters were opened, as in RFC 6479.
//!
//! A counter is first asked about ([`Window::check`]), then the AEAD opens the datagram, and only then is it marked
//! ([`Window::mark`]): a forged datagram moves nothing.

use super::constants::{CONTROL_WINDOW, DATA_WINDOW};

/// Why a counter is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It was opened before.
    Duplicate,
    /// It is older than the window.
    Late,
}

/// Remembers the newest `size` counters.
pub struct Window {
    bits: Box<[u64]>,
    highest: Option<u64>,
    size: u64,
}

impl Window {
    /// The window of a data lane.
    #[must_use]
    pub fn data() -> Window {
        Window::new(DATA_WINDOW)
    }

    /// The window of the control lane.
    #[must_use]
    pub fn control() -> Window {
        Window::new(CONTROL_WINDOW)
    }

    fn new(size: u64) -> Window {
        // One word more than the window: the word being entered is cleared whole without losing a counter in range.
        let words = (size / 64 + 1).next_power_of_two();
        Window { bits: vec![0; words as usize].into(), highest: None, size }
    }

    /// Whether `counter` may still be opened; changes nothing.
    ///
    /// # Errors
    /// [`Replay`] where it may not.
    pub fn check(&self, counter: u64) -> Result<(), Replay> {
        let Some(highest) = self.highest.filter(|highest| counter <= *highest) else {
            return Ok(());
        };
        if highest - counter >= self.size {
            return Err(Replay::Late);
        }
        let (word, bit) = self.place(counter);
        if self.bits[word] & bit == 0 { Ok(()) } else { Err(Replay::Duplicate) }
    }

    /// Marks `counter` as opened; true when it is the highest so far. Only after [`Window::check`] said yes.
    pub fn mark(&mut self, counter: u64) -> bool {
        let newest = self.highest.is_none_or(|highest| counter > highest);
        if newest {
            self.clear_up_to(counter);
            self.highest = Some(counter);
        }
        let (word, bit) = self.place(counter);
        self.bits[word] |= bit;
        newest
    }

    /// Clears the words that hold counters above the highest, up to `counter`, and held older ones before.
    fn clear_up_to(&mut self, counter: u64) {
        let words = self.bits.len() as u64;
        let first = self.highest.map_or(0, |highest| highest / 64 + 1);
        let last = counter / 64;
        if last < first {
            return;
        }
        for word in first.max(last.saturating_sub(words - 1))..=last {
            self.bits[(word % words) as usize] = 0;
        }
    }

    fn place(&self, counter: u64) -> (usize, u64) {
        ((counter / 64) as usize & (self.bits.len() - 1), 1 << (counter % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// The plain model: remembers everything.
    #[derive(Default)]
    struct Model {
        seen: HashSet<u64>,
        highest: Option<u64>,
    }

    impl Model {
        fn check(&self, counter: u64, size: u64) -> Result<(), Replay> {
            match self.highest {
                Some(highest) if counter <= highest && highest - counter >= size => Err(Replay::Late),
                _ if self.seen.contains(&counter) => Err(Replay::Duplicate),
                _ => Ok(()),
            }
        }
    }

    proptest! {
        #[test]
        fn window_agrees_with_the_model(steps in prop::collection::vec((0u64..5, 0u64..3_000), 1..600)) {
            let (mut window, mut model, mut at) = (Window::control(), Model::default(), 0u64);
            for (kind, by) in steps {
                let counter = match kind { 0 => at.saturating_sub(by), 1 => at + by, 2 => at + by % 3, 3 => at.saturating_sub(by % 70), _ => at };
                prop_assert_eq!(window.check(counter), model.check(counter, CONTROL_WINDOW));
                if window.check(counter).is_ok() {
                    let newest = model.highest.is_none_or(|h| counter > h);
                    prop_assert_eq!(window.mark(counter), newest);
                    model.seen.insert(counter);
                    if newest { model.highest = Some(counter); at = counter; }
                }
            }
        }
    }

    #[test]
    fn edges_of_the_window() {
        let mut window = Window::data();
        assert!(window.mark(0));
        assert!(window.mark(DATA_WINDOW));
        assert_eq!(window.check(0), Err(Replay::Late));
        assert_eq!(window.check(1), Ok(()));
        assert!(!window.mark(1));
        assert_eq!(window.check(1), Err(Replay::Duplicate));
    }

    #[test]
    fn the_last_counter_of_all_is_taken_once() {
        let mut window = Window::control();
        assert_eq!(window.check(u64::MAX), Ok(()));
        assert!(window.mark(u64::MAX));
        assert_eq!(window.check(u64::MAX), Err(Replay::Duplicate));
        assert_eq!(window.check(5), Err(Replay::Late));
    }

    #[test]
    fn verdicts_of_the_vectors() {
        use crate::protocol::vectors::{int, long, section, text};
        for vector in section("window") {
            let mut window = match int::<u64>(&vector["inputs"]["size"]) {
                DATA_WINDOW => Window::data(),
                CONTROL_WINDOW => Window::control(),
                other => panic!("no window of {other}"),
            };
            let counters = vector["inputs"]["counters"].as_array().unwrap();
            let verdicts = vector["outputs"]["verdicts"].as_array().unwrap();
            assert_eq!(counters.len(), verdicts.len());
            for (counter, verdict) in counters.iter().zip(verdicts) {
                let found = match window.check(long(counter)) {
                    Ok(()) => "new",
                    Err(Replay::Duplicate) => "duplicate",
                    Err(Replay::Late) => "late",
                };
                assert_eq!(found, text(verdict), "{counter} of {counters:?}");
                if found == "new" {
                    window.mark(long(counter));
                }
            }
        }
    }
}

//! Time as the protocol knows it: nanoseconds of `CLOCK_BOOTTIME`, always handed in, never read.
//!
//! Not the wall clock (a machine that boots in 1970 connects) and not [`std::time::Instant`], which stops while a
//! machine sleeps and so would keep keys alive past their time.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// A moment, in nanoseconds since boot (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The time from `earlier` to `self`; zero where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole microseconds, as Reports carry them.
    #[must_use]
    pub fn as_micros(self) -> u64 {
        self.0 / 1_000
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, rhs: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, rhs: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

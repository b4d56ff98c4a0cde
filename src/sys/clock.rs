//! The clock: time since boot, also while the machine sleeps.
//!
//! Rust's `Instant` stops in suspend, and a session whose age stops with it would outlive its keys' limits. The
//! wall clock is not asked anywhere.

use nix::time::{ClockId, clock_gettime};
use std::io;

/// Nanoseconds of `CLOCK_BOOTTIME` (clock_gettime(2)).
///
/// # Errors
/// On a kernel without that clock (before Linux 2.6.39): ask once at start.
pub fn boottime_ns() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    // Both are never negative for this clock, and 2^64 ns are 584 years of uptime.
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::boottime_ns;
    use std::time::Duration;

    #[test]
    fn it_runs_at_the_rate_of_a_clock() {
        let before = boottime_ns().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let passed = boottime_ns().unwrap() - before;
        assert!((20_000_000..10_000_000_000).contains(&passed), "{passed} ns");
    }
}

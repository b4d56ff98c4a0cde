//! A timer on `CLOCK_BOOTTIME` for whoever waits in tokio (timerfd_create(2)).
//!
//! tokio's own timers follow a clock that stops in suspend: after a night's sleep a session would be kept for what was
//! left of its time. This one fires on waking.

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One timer; see [`super::clock`] for its time.
#[derive(Debug)]
pub struct Timer(AsyncFd<Fd>);

#[derive(Debug)]
struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new() -> io::Result<Timer> {
        let fd = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        // SAFETY: the wrapper owns the one descriptor, gives the same at each call, and is never exchanged for another.
        let fd = unsafe { AsyncFd::register_with_interest(Fd(fd), Interest::READABLE) }?;
        Ok(Timer(fd))
    }

    /// Waits until the clock has passed `at` nanoseconds, or for ever. Cancel-safe: each call sets the timer anew.
    ///
    /// # Errors
    /// As timerfd_settime(2) and read(2); none is to be expected.
    pub async fn until(&self, at: Option<u64>) -> io::Result<()> {
        let Some(at) = at else {
            return pending().await;
        };
        // At 0 a timer is disarmed; anything that has passed fires at once.
        let at = TimeSpec::from_duration(Duration::from_nanos(at.max(1)));
        self.0.get_ref().0.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(fired) = ready.try_io(|fd| Ok(fd.get_ref().0.wait()?)) {
                return fired;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::boottime_ns;

    const MS: u64 = 1_000_000;

    #[tokio::test]
    async fn it_fires_at_its_time_also_when_set_again_or_late() {
        let timer = Timer::new().unwrap();
        let now = boottime_ns().unwrap();
        tokio::select! {
            biased;
            fired = timer.until(Some(now + 3_600_000 * MS)) => panic!("an hour early: {fired:?}"),
            () = tokio::task::yield_now() => {}
        }
        timer.until(Some(now + 30 * MS)).await.unwrap();
        assert!(boottime_ns().unwrap() >= now + 30 * MS);
        timer.until(Some(0)).await.unwrap();
        timer.until(Some(now)).await.unwrap();
        let never = tokio::time::timeout(Duration::from_millis(20), timer.until(None)).await;
        assert!(never.is_err(), "no time was set");
    }
}

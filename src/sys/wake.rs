//! Waking a thread that sleeps in poll(2): an eventfd, and the poll itself.
//!
//! It carries no message. What there is to know lies elsewhere; this only ends the sleep.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::array::from_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A bell: any thread may ring it, one thread sleeps beside it.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A bell nobody has rung.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers go in; a returned descriptor is new and owned by no one else.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let fd = Errno::result(fd)?;
        // SAFETY: `fd` was just opened, is valid (checked above) and is handed over only here.
        Ok(Wake(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Ends the sleep of whoever waits for it now or will next.
    pub fn ring(&self) {
        // The one way to fail is EAGAIN, a counter at its limit: then it is ringing already.
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Stills it, so that the next wait sleeps again.
    pub fn still(&self) {
        // EAGAIN: nobody rang since.
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sleeps until at least one of `fds` can be read or has failed, or for `at_most` so long, and says which: bit n for `fds[n]`.
///
/// # Errors
/// `InvalidInput` if there is nothing to wait for; else as poll(2). A signal is not an error.
pub fn wait_readable<const N: usize>(fds: [Option<BorrowedFd<'_>>; N], at_most: Option<Duration>) -> io::Result<u32> {
    const { assert!(N <= 32, "one bit each") };
    let Some(first) = fds.iter().flatten().next() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "nothing to wait for"));
    };
    let (count, mut present) = (fds.iter().flatten().count(), fds.iter().flatten());
    let mut polled: [_; N] = from_fn(|_| PollFd::new(*present.next().unwrap_or(first), PollFlags::POLLIN));
    while let Err(error) = ppoll(&mut polled[..count], at_most.map(TimeSpec::from), None) {
        if error != Errno::EINTR {
            return Err(error.into());
        }
    }
    let bits = (0..N).filter(|n| fds[*n].is_some());
    Ok(bits.zip(polled).map(|(n, fd)| u32::from(fd.any().unwrap_or(true)) << n).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn it_wakes_once_however_often_it_was_rung() {
        let (a, b) = (Wake::new().unwrap(), Wake::new().unwrap());
        a.ring();
        a.ring();
        assert_eq!(wait_readable([Some(b.as_fd()), None, Some(a.as_fd())], None).unwrap(), 0b100);
        a.still();
        b.ring();
        assert_eq!(wait_readable([Some(b.as_fd()), Some(a.as_fd())], None).unwrap(), 0b01);
    }

    #[test]
    fn it_sleeps_no_longer_than_it_may() {
        let (silent, started) = (Wake::new().unwrap(), Instant::now());
        let at_most = Duration::from_millis(20);
        assert_eq!(wait_readable([Some(silent.as_fd())], Some(at_most)).unwrap(), 0);
        assert!(started.elapsed() >= at_most);
    }

    #[test]
    fn it_wakes_a_sleeper_on_another_thread() {
        let wake = Arc::new(Wake::new().unwrap());
        let sleeper = std::thread::spawn({
            let wake = wake.clone();
            move || wait_readable([Some(wake.as_fd())], None).unwrap()
        });
        std::thread::sleep(Duration::from_millis(10));
        wake.ring();
        assert_eq!(sleeper.join().unwrap(), 1);
    }
}

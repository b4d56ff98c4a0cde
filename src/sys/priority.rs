//! How readily the scheduler runs a thread (setpriority(2)).

use nix::errno::Errno;
use std::io;

/// Sets the nice value of the calling thread alone: -20 runs before all others, 19 after them, 0 is usual.
///
/// POSIX has one value for a process; Linux has one for each thread, and 0 names the caller's.
///
/// # Errors
/// `PermissionDenied` for a value below the present one without CAP_SYS_NICE in the machine's first user namespace (or
/// RLIMIT_NICE): the thread goes on as it was.
pub fn set_nice(nice: i8) -> io::Result<()> {
    // SAFETY: plain integers go in, and nothing of the program's memory is touched.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice.into()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn nice() -> i32 {
        Errno::clear();
        // SAFETY: as above.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn it_is_the_calling_threads_alone() {
        let before = nice();
        let inside = thread::spawn(move || {
            set_nice((before + 1) as i8).unwrap();
            nice()
        });
        assert_eq!(inside.join().unwrap(), before + 1);
        assert_eq!(nice(), before);
    }

    #[test]
    fn raising_works_or_says_why_not() {
        let raised = thread::spawn(|| (set_nice(-15), nice())).join().unwrap();
        match raised {
            (Ok(()), nice) => assert_eq!(nice, -15),
            (Err(error), nice) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
                assert!(nice > -15);
            }
        }
    }
}

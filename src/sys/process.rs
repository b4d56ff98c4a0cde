//! Processes that this one makes by copying itself (fork(2)): what to do where no program may be run any more.

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work` in a child process, which has all this one has and is bound as it is, waits for its end and says how that came. The
/// child's exit code is what `work` gives, or 101 after a panic.
///
/// # Errors
/// `EBUSY` where this process has more than one thread: the others' locks would be held in the child for ever. Else as fork(2) and
/// waitpid(2).
pub fn in_child(work: impl FnOnce() -> u8) -> io::Result<WaitStatus> {
    if threads()? != 1 {
        return Err(Errno::EBUSY.into());
    }
    // SAFETY: there is no other thread, as was just seen, so the child is a whole copy of this process, no lock of which is held by
    // somebody who is not there.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Err(Errno::EINTR) => {}
                ended => return Ok(ended?),
            }
        },
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: it ends the process, and runs nothing that the parent has registered for its own end.
            unsafe { libc::_exit(code.into()) }
        }
    }
}

fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness has some.
        let error = in_child(|| 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }
}

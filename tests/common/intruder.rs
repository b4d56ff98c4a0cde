//! Whoever has taken over a thread of a running process, as a bug in it might let someone: makes that thread call the kernel, and
//! sees what comes of it (ptrace(2), which the tests may and the process may not).

use std::ffi::CStr;

use nix::libc::{c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// `syscall`, as the processor reads it.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Below the stack, out of reach of what lies on it.
const SCRATCH: u64 = 4096;

/// A thread held by the tests, until this is dropped: then it goes on as if nothing had been.
pub struct Intruder {
    thread: Pid,
    before: user_regs_struct,
}

impl Intruder {
    /// Stops a thread that is waiting in a system call.
    pub fn into_thread(id: i32) -> Self {
        let thread = Pid::from_raw(id);
        ptrace::attach(thread).unwrap();
        stopped(thread);
        let before = ptrace::getregs(thread).unwrap();
        let word = ptrace::read(thread, (before.rip - 2) as ptrace::AddressType).unwrap();
        assert_eq!(word.to_le_bytes()[..2], SYSCALL, "the thread does not wait in a system call");
        Self { thread, before }
    }

    /// Makes the call in its place: the result, or the negative error number.
    pub fn call(&self, number: c_long, arguments: [u64; 4]) -> i64 {
        let [rdi, rsi, rdx, r10] = arguments;
        let registers = user_regs_struct {
            rax: number as u64,
            // No call that is to be gone on with.
            orig_rax: u64::MAX,
            rip: self.before.rip - 2,
            rdi,
            rsi,
            rdx,
            r10,
            ..self.before
        };
        ptrace::setregs(self.thread, registers).unwrap();
        ptrace::step(self.thread, None).unwrap();
        stopped(self.thread);
        ptrace::getregs(self.thread).unwrap().rax as i64
    }

    /// Puts a path where the thread can read it, and gives the address.
    pub fn path(&self, path: &CStr) -> u64 {
        let address = self.before.rsp - SCRATCH;
        for (n, chunk) in path.to_bytes_with_nul().chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let place = address + 8 * n as u64;
            ptrace::write(self.thread, place as ptrace::AddressType, i64::from_le_bytes(word)).unwrap();
        }
        address
    }
}

fn stopped(thread: Pid) {
    let status = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
}

impl Drop for Intruder {
    fn drop(&mut self) {
        // The thread may have been killed for what it was made to do.
        let _ = ptrace::setregs(self.thread, self.before);
        let _ = ptrace::detach(self.thread, None);
    }
}

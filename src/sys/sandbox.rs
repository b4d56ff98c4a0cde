//! Taking rights away from the running process, for good: what a bug in it could be made to do, it then cannot.
//!
//! Four locks, each of which holds alone: another user and no capabilities (`capabilities`, [`User`]), no files (`files`:
//! landlock), and few system calls (`calls`: seccomp). Which thread keeps what is decided in `policy`. All but [`User::assume`] bind the
//! calling thread and those it starts from then on, and nothing ever loosens them.

mod calls;
mod capabilities;
mod files;
mod policy;
mod user;

pub use files::Reach;
pub use policy::Role;
pub use user::User;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use std::io;

/// Keeps this process's memory, and so its keys, out of core dumps and from other processes of the same user. Root can still look
/// (ptrace(2), perf). It does not outlast an exec.
///
/// # Errors
/// As setrlimit(2) and prctl(2); none is to be expected.
pub fn keep_memory_private() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(prctl::set_dumpable(false)?)
}

/// Lets no program that is run from now on have more rights than this one: without that the kernel takes no other lock from
/// an ordinary user.
///
/// # Errors
/// As prctl(2): before Linux 3.5.
pub fn gain_no_privileges() -> io::Result<()> {
    Ok(prctl::set_no_new_privs()?)
}

/// Leaves the calling thread the capabilities of its role, of those it has, and gives their names.
///
/// # Errors
/// As capset(2); none is to be expected.
pub fn keep_capabilities(role: Role) -> io::Result<Vec<&'static str>> {
    capabilities::keep(policy::capabilities(role))
}

/// Leaves the calling thread the files that `reach` names, and none if nothing more; those that are open stay open. Gives the version
/// of landlock that holds it to that (landlock(7)); `None` where the kernel has none.
///
/// # Errors
/// As landlock_restrict_self(2), or when a folder of `reach` cannot be opened.
pub fn restrict_files(reach: Reach<'_>) -> io::Result<Option<i32>> {
    files::restrict(reach)
}

/// Leaves the calling thread the system calls of its role. It must have asked for [`gain_no_privileges`] before.
///
/// # Errors
/// When the kernel has no seccomp filters (seccomp(2)), or this crate none for the processor.
pub fn restrict_calls(role: Role) -> io::Result<()> {
    calls::restrict(role)
}

//! Network and user namespaces (`man 7 namespaces`): networks of our own on this machine, where `demo` and the tests build
//! two sites without root and without touching the machine's own interfaces.
//!
//! Namespaces here have no name and no mount: a [`NetNs`] is a file descriptor, and the kernel takes the namespace away, with
//! every interface in it, when the last descriptor, thread and socket that holds it is gone. There is nothing to clean up.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, getegid, geteuid, getppid, write};

/// CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN (linux/capability.h): what it takes to make namespaces and work in them.
const NEEDED_CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 21;

/// A network namespace, held open by a file descriptor.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Makes a new namespace. It holds nothing but a loopback interface that is down. The calling thread stays where it is.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN, see [`become_root`].
    pub fn create() -> io::Result<Self> {
        // A thread of its own makes it and then ends: `unshare` moves whoever calls it.
        in_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// If /proc is not mounted.
    pub fn current() -> io::Result<Self> {
        let fd = File::open("/proc/thread-self/ns/net")?.into();
        Ok(Self { fd })
    }

    /// Moves the calling thread into the namespace. Sockets it makes and threads and processes it starts from now on are there;
    /// sockets it already has stay where they were made.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN over the namespace.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` in the namespace, on a thread of its own, and returns what it returned. A panic in it goes on here.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_own_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Makes `command` start its process in the namespace.
    ///
    /// # Errors
    /// If no file descriptor is left. A refusal to enter shows when the command is spawned.
    pub fn enter_at_start(&self, command: &mut Command) -> io::Result<()> {
        let fd = self.fd.try_clone()?;
        let enter = move || Ok(setns(&fd, CloneFlags::CLONE_NEWNET)?);
        // SAFETY: between fork and exec `enter` makes one system call, on a descriptor it owns; it takes no lock and no memory.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn in_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// This process may not make network namespaces, and this is why.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The machine does not let this user make a user namespace, or gives no rights inside it.
    #[error("making a user namespace: {0}")]
    Forbidden(io::Error),
    /// The kernel moves a process into a new user namespace only while it has one thread.
    #[error("making a user namespace: this process already has several threads")]
    Threads,
    /// /proc could not be read.
    #[error("reading /proc/self/status: {0}")]
    Proc(io::Error),
}

impl NamespaceError {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Forbidden(_) => {
                "this machine keeps namespaces from ordinary users: run it as root, or allow them (sysctl \
                 user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
            }
            Self::Threads => "run it as root; this is a fault of the program, please report it",
            Self::Proc(_) => "mount /proc",
        }
    }
}

/// Makes sure this process may create network namespaces and be root in them: does nothing where it already may, and otherwise
/// moves it into a user namespace in which its own user and group are 0. Outside of that it gains no right over anything.
///
/// To be called while the process has one thread.
///
/// # Errors
/// [`NamespaceError::help`] says what to do. [`NamespaceError::Threads`] is a fault of the caller.
pub fn become_root() -> Result<(), NamespaceError> {
    if has_capabilities().map_err(NamespaceError::Proc)? {
        return Ok(());
    }
    IdMaps::of_this_user().enter().map_err(|errno| match errno {
        Errno::EINVAL => NamespaceError::Threads,
        other => NamespaceError::Forbidden(other.into()),
    })
}

/// Makes `command` start its process in a new network namespace, as root over it: what [`become_root`] and then
/// [`NetNs::create`] give, for a program that cannot call them because it has threads from the start.
///
/// # Errors
/// If /proc cannot be read. A refusal by the kernel shows when the command is spawned.
pub fn isolate_at_start(command: &mut Command) -> io::Result<()> {
    let maps = (!has_capabilities()?).then(IdMaps::of_this_user);
    let isolate = move || {
        if let Some(maps) = &maps {
            maps.enter()?;
        }
        Ok(unshare(CloneFlags::CLONE_NEWNET)?)
    };
    // SAFETY: between fork and exec `isolate` makes system calls on memory prepared before; it takes no lock and no memory.
    unsafe { command.pre_exec(isolate) };
    Ok(())
}

/// Makes the kernel kill `command`'s process when the thread that spawns it ends, however that happens.
pub fn die_with_parent(command: &mut Command) {
    let parent = Pid::this();
    let arm = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec `arm` makes two system calls; it takes no lock and no memory.
    unsafe { command.pre_exec(arm) };
}

fn has_capabilities() -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(effective & NEEDED_CAPABILITIES == NEEDED_CAPABILITIES)
}

/// The lines that map this user and group to 0 in a new user namespace (`man 7 user_namespaces`). Written out ahead, so that
/// entering needs no memory and may happen between fork and exec.
struct IdMaps {
    uid: String,
    gid: String,
}

impl IdMaps {
    fn of_this_user() -> Self {
        Self { uid: format!("0 {} 1", geteuid()), gid: format!("0 {} 1", getegid()) }
    }

    fn enter(&self) -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        // Without this an ordinary user may not map a group.
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", self.uid.as_bytes())?;
        write_file(c"/proc/self/gid_map", self.gid.as_bytes())
    }
}

/// Writes without taking memory. These files want everything in one write.
fn write_file(path: &CStr, text: &[u8]) -> nix::Result<()> {
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    write(&file, text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_this_process_are_readable() {
        let is_root = geteuid().is_root();
        // An ordinary user has none of them; root may have been stripped of some.
        assert!(is_root || !has_capabilities().unwrap());
    }

    #[test]
    fn a_process_can_be_started_in_a_network_of_its_own() {
        let mut command = Command::new("/bin/cat");
        command.arg("/proc/net/dev");
        die_with_parent(&mut command);
        isolate_at_start(&mut command).unwrap();
        let output = match command.output() {
            Ok(output) => output,
            Err(e) if std::env::var_os("CI").is_none() => {
                return eprintln!("skipped: this machine allows no namespaces ({e})");
            }
            Err(e) => panic!("this machine allows no namespaces: {e}"),
        };
        let devices = String::from_utf8(output.stdout).unwrap();
        let names: Vec<_> = devices.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect();
        assert!(names.contains(&"lo") && !names.contains(&"eth0"), "{names:?}");
    }

    #[test]
    fn a_namespace_is_left_as_it_was_entered_by_others() {
        if !has_capabilities().unwrap() {
            return eprintln!("skipped: needs CAP_SYS_ADMIN; tests/namespaces.rs covers it");
        }
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let made = NetNs::create().unwrap();
        let link = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let inside = made.run(link).unwrap();
        assert_ne!(inside, before);
        assert_eq!(link(), before);
        assert_eq!(made.run(link).unwrap(), inside);
    }
}

//! Another user than the one the process was started as.

use super::capabilities;
use caps::Capability;
use nix::sys::prctl;
use nix::unistd::{self, Gid, Uid, setgroups, setresgid, setresuid};
use std::io;
use std::path::Path;

/// A user of this machine and the group it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    uid: Uid,
    gid: Gid,
}

impl User {
    /// Someone nobody is: no file of the machine is theirs (`overflowuid`).
    pub const NOBODY: User = User { uid: Uid::from_raw(65_534), gid: Gid::from_raw(65_534) };

    /// By numbers.
    #[must_use]
    pub fn of(uid: u32, gid: u32) -> User {
        User { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }
    }

    /// By name; `None` if the machine has no such user. It reads /etc/passwd, or asks whoever knows the users.
    ///
    /// # Errors
    /// As getpwnam_r(3).
    pub fn find(name: &str) -> io::Result<Option<User>> {
        let found = unistd::User::from_name(name)?;
        Ok(found.map(|user| User { uid: user.uid, gid: user.gid }))
    }

    /// Its number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// Its group's number.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Makes this the user of the whole process, all its threads, with no group but its own. Of the calling thread's capabilities
    /// those that a link needs stay, for now; other threads lose theirs if they were root's.
    ///
    /// # Errors
    /// `EPERM` for anyone but root (CAP_SETUID and CAP_SETGID), unless this is the process's user already; `EINVAL` where the user
    /// namespace does not have the user.
    pub fn assume(&self) -> io::Result<()> {
        let Self { uid, gid } = *self;
        let is = unistd::getresuid()?;
        if [is.real, is.effective, is.saved] == [uid; 3] {
            return Ok(());
        }
        prctl::set_keepcaps(true)?;
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        // They are permitted still, but in force no longer.
        capabilities::keep(&[Capability::CAP_NET_ADMIN, Capability::CAP_SYS_NICE]).map(drop)
    }

    /// Gives it a file or folder.
    ///
    /// # Errors
    /// As chown(2).
    pub fn own(&self, path: &Path) -> io::Result<()> {
        Ok(unistd::chown(path, Some(self.uid), Some(self.gid))?)
    }
}

//! What a socket is tied to beyond its address.

use super::BindError;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::os::fd::OwnedFd;

/// By which way datagrams leave, beyond what their addresses say, and come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ties {
    /// By this interface alone (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
    /// With this mark, which rules of routing and of the packet filter may go by (`SO_MARK`); it is not on the wire.
    pub mark: Option<u32>,
}

impl Ties {
    /// Ties a socket that has no port yet: another one on another interface may have the same.
    pub(super) fn apply(&self, fd: &OwnedFd) -> Result<(), BindError> {
        if let Some(name) = &self.interface {
            setsockopt(fd, sockopt::BindToDevice, &name.into()).map_err(|error| match error {
                Errno::ENODEV => BindError::NoSuchInterface(name.clone()),
                other => BindError::NotTied("bind to an interface, [local] bind", "CAP_NET_RAW", other.into()),
            })?;
        }
        if let Some(mark) = self.mark {
            let marked = setsockopt(fd, sockopt::Mark, &mark).map_err(io::Error::from);
            marked.map_err(|error| BindError::NotTied("mark packets, [local] fwmark", "CAP_NET_ADMIN", error))?;
        }
        Ok(())
    }
}

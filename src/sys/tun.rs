//! The TUN or TAP device: making it, reading frames from it, writing frames to it, and its carrier.
//!
//! Addresses, routes and MTU are not here: netlink sets them. The device is never persistent, so it
//! vanishes with its descriptor, also when the process is killed.

use super::offloads::TunOffloads;
use libc::{c_int, c_uint};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::net::if_::if_nametoindex;
use nix::sys::uio;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// No interface can have this name.
    #[error("\"{0}\" cannot name an interface: it takes 1 to 15 bytes without spaces, '/', ':' or '%'")]
    Name(String),
    /// The name is taken, by another tieline or by anything else.
    #[error(
        "interface {0} exists already: another tieline or another program uses it; \
         stop that one, or set another name at [link] interface"
    )]
    Exists(String),
    /// The process may not make interfaces.
    #[error(
        "not allowed to make interface {0}: this needs root or CAP_NET_ADMIN \
         (sudo, or AmbientCapabilities=CAP_NET_ADMIN in a systemd unit)"
    )]
    NotPermitted(String),
    /// The node /dev/net/tun is there but may not be opened.
    #[error("not allowed to open /dev/net/tun: run as root, or give this user read and write access to it")]
    NodeForbidden,
    /// There is no /dev/net/tun, or no driver behind it.
    #[error(
        "no TUN driver at /dev/net/tun: load it (modprobe tun), \
         or in a container pass the device in (--device /dev/net/tun)"
    )]
    NoDriver,
    /// Anything else the system said.
    #[error("cannot make interface {0}: {why}", why = crate::os_error::in_words(.1))]
    Other(String, #[source] io::Error),
}

/// Bytes of the virtio header before each frame of a device with [`TunOffloads::vnet_hdr`]: `struct virtio_net_hdr`
/// without the merged buffers' count, its fields in the machine's own byte order.
pub const VNET_HEADER: usize = 10;

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IP packets (`IFF_TUN`).
    Tun,
    /// Ethernet frames (`IFF_TAP`). Its MTU counts neither their header, 14 bytes, nor a VLAN tag.
    Tap,
}

/// Makes the device `name`: no packet information in front of frames, non-blocking, closed on exec. It
/// gets those of the offloads wished for that this kernel has, and says which.
///
/// An interface that exists already is never taken over, persistent TUN devices included: a line on an interface that
/// someone else made would change it and could not take it away again.
///
/// # Errors
/// As [`TunError`] says. An offload that is refused is none.
pub fn create(name: &str, kind: Kind, wish: TunOffloads) -> Result<(OwnedFd, TunOffloads), TunError> {
    if !is_name(name) {
        return Err(TunError::Name(name.to_owned()));
    }
    if if_nametoindex(name).is_ok() {
        return Err(TunError::Exists(name.to_owned()));
    }
    let (fd, vnet_hdr) = match open(name, kind, wish.vnet_hdr) {
        Ok(fd) => (fd, wish.vnet_hdr),
        // A driver that does not know the header (gVisor's, say).
        Err(error) if wish.vnet_hdr && error.raw_os_error() == Some(libc::EINVAL) => {
            (open(name, kind, false).map_err(|error| named(name, error))?, false)
        }
        Err(error) => return Err(named(name, error)),
    };
    prepare(&fd).map_err(|error| named(name, error))?;
    if is_persistent(&fd).map_err(|error| named(name, error))? {
        // Someone made it between the look above and now: closing the descriptor leaves it as it was.
        return Err(TunError::Exists(name.to_owned()));
    }
    if !vnet_hdr {
        return Ok((fd, TunOffloads::NONE));
    }
    set_header_size(&fd).map_err(|error| named(name, error.into()))?;
    let granted = grant(wish, |flags| set_offload(&fd, flags));
    Ok((fd, granted))
}

fn open(name: &str, kind: Kind, vnet_hdr: bool) -> io::Result<OwnedFd> {
    let mut config = tun::Configuration::default();
    config.tun_name(name).layer(match kind {
        Kind::Tun => tun::Layer::L3,
        Kind::Tap => tun::Layer::L2,
    });
    // `ensure_root_privileges` is that crate's word for "set addresses and flags too", which netlink does for us.
    config.platform_config(|platform| {
        platform.ensure_root_privileges(false).vnet_hdr(vnet_hdr);
    });
    let device = tun::create(&config).map_err(io::Error::from)?;
    // SAFETY: `into_raw_fd` gives up the one owner of an open descriptor, and it goes nowhere else.
    Ok(unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) })
}

/// Ten bytes are the kernel's own default; this pins them.
fn set_header_size(fd: &OwnedFd) -> nix::Result<()> {
    let size = VNET_HEADER as c_int;
    // SAFETY: the descriptor is open, and TUNSETVNETHDRSZ reads one live integer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const size) };
    Errno::result(result).map(drop)
}

fn set_offload(fd: &OwnedFd, flags: c_uint) -> nix::Result<()> {
    // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(flags)) };
    Errno::result(result).map(drop)
}

/// Asks `set` for the flags wished for, then for less and less, and says what it took.
///
/// The kernel takes the USO flags only both together, and everything only along with CSUM.
fn grant(wish: TunOffloads, mut set: impl FnMut(c_uint) -> nix::Result<()>) -> TunOffloads {
    let without_uso = TunOffloads { uso: false, ..wish };
    let sums_only = TunOffloads { tso: false, ..without_uso };
    let granted = [wish, without_uso, sums_only].into_iter().find(|offloads| set(flags(*offloads)).is_ok());
    // With no flag at all frames come whole and summed, behind a header that says so.
    granted.unwrap_or(sums_only)
}

fn flags(offloads: TunOffloads) -> c_uint {
    let mut flags = libc::TUN_F_CSUM;
    if offloads.tso {
        flags |= libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    }
    if offloads.uso {
        flags |= libc::TUN_F_USO4 | libc::TUN_F_USO6;
    }
    flags
}

/// What the kernel takes as a name (`dev_valid_name`), less `%`, which it would replace by a number.
fn is_name(name: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    (1..libc::IFNAMSIZ).contains(&name.len()) && name != "." && name != ".." && !name.contains(bad)
}

/// Sorts what the system said into what the user can do about it.
fn named(name: &str, error: io::Error) -> TunError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => TunError::NotPermitted(name.to_owned()),
        Some(Errno::EACCES) => TunError::NodeForbidden,
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDriver,
        Some(Errno::EBUSY | Errno::EEXIST) => TunError::Exists(name.to_owned()),
        _ => TunError::Other(name.to_owned(), error),
    }
}

/// Non-blocking, and not inherited: a child holding the descriptor would keep the interface alive.
fn prepare(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn is_persistent(fd: &OwnedFd) -> io::Result<bool> {
    // SAFETY: `ifreq` is plain integers and pointers, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and TUNGETIFF writes one `ifreq` to the live one it is given.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &mut request) };
    Errno::result(result)?;
    // SAFETY: TUNGETIFF fills the flags member of the union, and any integer is a valid `c_short`.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(flags) & libc::IFF_PERSIST != 0)
}

/// Gives the interface a carrier, or takes it away, as pulling the plug does: what is sent into it is then dropped by the kernel
/// and never queued. Frames can be written either way. The descriptor is right enough: no capability is needed.
///
/// The interface shows it at once. Routes go by it only when the kernel has told itself so (`linkwatch`), which for a loss may take
/// it a second; since Linux 6.8 it does at once when someone asks for the interface over netlink.
///
/// # Errors
/// `EINVAL` before Linux 5.0; `EBADFD` when the interface was deleted.
pub fn set_carrier(tun: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let carrier = c_int::from(on);
    // SAFETY: the descriptor is open, and TUNSETCARRIER reads one live integer.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETCARRIER as _, &raw const carrier) };
    Errno::result(result)?;
    Ok(())
}

/// What a read or write on the device came to, when it was not done.
#[derive(Debug)]
pub enum Refused {
    /// Nothing to read, or no room to write, for now.
    WouldBlock,
    /// This frame was not taken: not IP or too short for Ethernet, no memory, or the interface is down. The next one may be.
    Frame(io::Error),
    /// The device is gone: nothing will be read or written on this descriptor again.
    Gone(io::Error),
}

/// Reads one frame, filling one room after the other, and gives its length. A frame longer than all rooms is cut to them
/// without a word, so leave more room than the largest MTU.
///
/// On a device with virtio headers the header comes first and counts, and may have a room of its own; the largest
/// super-packet takes [`VNET_HEADER`] + 65,535 bytes.
///
/// # Errors
/// As [`Refused`] says. `Frame`: the kernel could not describe it, and it is lost; not on a device without virtio
/// headers.
pub fn read(tun: BorrowedFd<'_>, rooms: &mut [IoSliceMut<'_>]) -> Result<usize, Refused> {
    loop {
        match uio::readv(tun, rooms) {
            Ok(0) => return Err(Refused::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => return Ok(length),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Refused::WouldBlock),
            // A super-packet of a kind that no virtio header can name (`tun_vnet_hdr_from_skb`).
            Err(error @ Errno::EINVAL) => return Err(Refused::Frame(error.into())),
            // EBADFD or EFAULT: the interface was deleted. The driver has no other errors on this side.
            Err(error) => return Err(Refused::Gone(error.into())),
        }
    }
}

/// Writes one frame whose pieces, on a device with virtio headers its header first, lie apart: up to 1,024 of them
/// (`UIO_MAXIOV`).
///
/// # Errors
/// As [`Refused`] says. `Frame` is also what comes of a virtio header that the kernel does not accept, or too many
/// pieces: the same bytes can then be written as single packets.
pub fn write(tun: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> Result<(), Refused> {
    loop {
        match uio::writev(tun, pieces) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Refused::WouldBlock),
            Err(error @ (Errno::EBADFD | Errno::EBADF | Errno::EPIPE)) => {
                return Err(Refused::Gone(error.into()));
            }
            Err(error) => return Err(Refused::Frame(error.into())),
        }
    }
}

#[cfg(test)]
mod tests;

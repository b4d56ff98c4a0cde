//! The TUN device: making it, reading frames from it, writing frames to it.
//!
//! Addresses, routes, MTU and carrier are not here: netlink sets them. The device is never persistent, so it
//! vanishes with its descriptor, also when the process is killed.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::net::if_::if_nametoindex;
use std::io;
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
    #[error("cannot make interface {0}: {1}")]
    Other(String, #[source] io::Error),
}

/// Makes the TUN device `name`: layer 3, no packet information in front of frames, non-blocking, closed on exec.
///
/// An interface that exists already is never taken over, persistent TUN devices included: a line on an interface that
/// someone else made would change it and could not take it away again.
///
/// # Errors
/// As [`TunError`] says.
pub fn create(name: &str) -> Result<OwnedFd, TunError> {
    if !is_name(name) {
        return Err(TunError::Name(name.to_owned()));
    }
    if if_nametoindex(name).is_ok() {
        return Err(TunError::Exists(name.to_owned()));
    }
    let mut config = tun::Configuration::default();
    config.tun_name(name).layer(tun::Layer::L3);
    // The offloads of the fast path begin here, with `vnet_hdr(true)`.
    // `ensure_root_privileges` is that crate's word for "set addresses and flags too", which netlink does for us.
    config.platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    let device = tun::create(&config).map_err(|error| named(name, error.into()))?;
    // SAFETY: `into_raw_fd` gives up the one owner of an open descriptor, and it goes nowhere else.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    prepare(&fd).map_err(|error| named(name, error))?;
    if is_persistent(&fd).map_err(|error| named(name, error))? {
        // Someone made it between the look above and now: closing the descriptor leaves it as it was.
        return Err(TunError::Exists(name.to_owned()));
    }
    Ok(fd)
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
    Ok(libc::c_int::from(flags) & libc::IFF_PERSIST != 0)
}

/// What a read or write on the device came to, when it was not done.
#[derive(Debug)]
pub enum Refused {
    /// Nothing to read, or no room to write, for now.
    WouldBlock,
    /// This frame was not taken: not IP, no memory, or the interface is down. The next one may be.
    Frame(io::Error),
    /// The device is gone: nothing will be read or written on this descriptor again.
    Gone(io::Error),
}

/// Reads one frame and gives its length. A frame longer than `room` is cut to it without a word, so leave more room than
/// the largest MTU.
///
/// # Errors
/// [`Refused::WouldBlock`] or [`Refused::Gone`].
pub fn read(tun: BorrowedFd<'_>, room: &mut [u8]) -> Result<usize, Refused> {
    loop {
        match nix::unistd::read(tun, room) {
            Ok(0) => return Err(Refused::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => return Ok(length),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(Refused::WouldBlock),
            // EBADFD or EFAULT: the interface was deleted. The driver has no other errors on this side.
            Err(error) => return Err(Refused::Gone(error.into())),
        }
    }
}

/// Writes one frame.
///
/// # Errors
/// As [`Refused`] says.
pub fn write(tun: BorrowedFd<'_>, frame: &[u8]) -> Result<(), Refused> {
    loop {
        match nix::unistd::write(tun, frame) {
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
mod tests {
    use super::*;
    use crate::sys::testing::{in_own_network, shell};
    use crate::sys::wake::wait_readable;
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;

    fn ping_frame(fd: &OwnedFd) -> Vec<u8> {
        let socket = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
        socket.send_to(b"hello", "10.9.9.2:9").unwrap();
        let mut room = [0; 2000];
        loop {
            match read(fd.as_fd(), &mut room) {
                Ok(length) if room[0] >> 4 == 4 => return room[..length].to_vec(),
                Ok(_) => {} // the interface's own IPv6 chatter
                Err(Refused::WouldBlock) => {
                    wait_readable([Some(fd.as_fd())]).unwrap();
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    #[test]
    fn frames_go_in_and_out_and_the_device_ends_with_its_descriptor() {
        in_own_network(|| {
            let fd = create("tltest0").unwrap();
            assert!(matches!(write(fd.as_fd(), &[0x45; 20]), Err(Refused::Frame(_))), "taken while down");
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 20u8).unwrap(), 0, "a loop would spin while it is down");
            shell("ip addr add 10.9.9.1/30 dev tltest0 && ip link set tltest0 up && ip link set lo up");

            let mut frame = ping_frame(&fd);
            assert_eq!(frame.len(), 20 + 8 + 5, "no header before the frame");
            assert!(frame.ends_with(b"hello"));

            // The same datagram, as if its receiver had sent it back: addresses swapped, so the sums still hold.
            let (source, destination) = (frame[12..16].to_vec(), frame[16..20].to_vec());
            frame[12..16].copy_from_slice(&destination);
            frame[16..20].copy_from_slice(&source);
            let socket = std::net::UdpSocket::bind("10.9.9.1:9").unwrap();
            let timeout = Some(std::time::Duration::from_secs(5));
            socket.set_read_timeout(timeout).unwrap();
            write(fd.as_fd(), &frame).unwrap();
            assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 5);
            assert!(matches!(write(fd.as_fd(), &[0x15; 20]), Err(Refused::Frame(_))), "not IP");

            assert!(if_nametoindex("tltest0").is_ok());
            drop(fd);
            assert!(if_nametoindex("tltest0").is_err());
        });
    }

    #[test]
    fn a_deleted_device_is_gone_not_silent() {
        in_own_network(|| {
            let fd = create("tltest1").unwrap();
            shell("ip link set tltest1 up && ip link del tltest1");
            assert_eq!(wait_readable([Some(fd.as_fd())]).unwrap(), 1, "a sleeping loop would not learn of it");
            assert!(matches!(read(fd.as_fd(), &mut [0; 100]), Err(Refused::Gone(_))));
            assert!(matches!(write(fd.as_fd(), &[0x45; 20]), Err(Refused::Gone(_))));
        });
    }

    #[test]
    fn what_exists_is_not_taken_over() {
        in_own_network(|| {
            shell("ip tuntap add tltest2 mode tun && ip link add tltest3 type veth peer name tltest7");
            let _held = create("tltest4").unwrap();
            for name in ["tltest2", "tltest3", "tltest4", "lo"] {
                let error = create(name).unwrap_err();
                assert!(matches!(error, TunError::Exists(_)), "{name}: {error}");
                assert!(if_nametoindex(name).is_ok());
            }
        });
    }

    #[test]
    fn a_persistent_device_is_known_as_such() {
        in_own_network(|| {
            shell("ip tuntap add tltest5 mode tun");
            let mut config = tun::Configuration::default();
            config.tun_name("tltest5").platform_config(|platform| {
                platform.ensure_root_privileges(false);
            });
            let taken = tun::create(&config).unwrap();
            // SAFETY: as in `create`.
            let taken = unsafe { OwnedFd::from_raw_fd(taken.into_raw_fd()) };
            assert!(is_persistent(&taken).unwrap());
            assert!(!is_persistent(&create("tltest6").unwrap()).unwrap());
        });
    }

    #[test]
    fn names_no_interface_can_have_are_refused_before_anything_is_opened() {
        for name in ["", ".", "..", "a/b", "a b", "tl%d", "a:b", "sixteen-letters-", "tl\n0"] {
            assert!(matches!(create(name), Err(TunError::Name(_))), "{name:?}");
        }
        assert!(is_name("fifteen-letters"));
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        let text = |code| named("tl0", io::Error::from_raw_os_error(code)).to_string();
        assert!(text(libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(text(libc::EACCES).contains("/dev/net/tun"));
        assert!(text(libc::ENOENT).contains("modprobe tun"));
        assert!(text(libc::EBUSY).contains("exists already"));
        assert!(text(libc::EIO).contains("cannot make interface tl0"));
    }
}

//! A datagram sent only to hear by ICMP why others are not answered: from a socket of its own, whose errors meet nobody's traffic.
//!
//! A socket that is to get ICMP errors (`IP_RECVERR`) gets each of them by its next call too, sending or receiving, in place of what
//! that was to do. The link's own sockets must not lose datagrams to a message that anyone can forge, so they do not ask for it.

use super::{HOPS, Ties, new_socket, set_int, socket_addr};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, bind, recvmsg, sendto, setsockopt, sockopt};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// As long as a Knock, so that it passes where that does; its first byte makes it no datagram of the protocol.
const DATAGRAM: [u8; 64] = [0; 64];

/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6` (linux/errqueue.h).
const BY_ICMP: [u8; 2] = [2, 3];

/// Why a datagram did not arrive, as ICMP has it. Anyone can forge that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// The machine is there, and nobody listens at the port.
    Port,
    /// There is no way to the machine, says that router, or this machine itself.
    Host(Option<IpAddr>),
    /// A firewall forbids it, says that router.
    Forbidden(Option<IpAddr>),
}

/// A socket that asks.
#[derive(Debug)]
pub struct ErrorProbe {
    fd: OwnedFd,
}

impl ErrorProbe {
    /// Opens one for the family of `local`, which leaves as the link's datagrams do: from that address, if it is one, and tied.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn open(local: IpAddr, ties: &Ties) -> io::Result<ErrorProbe> {
        let address = SocketAddr::new(local, 0);
        let fd = new_socket(address)?;
        if address.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, HOPS)?;
        } else {
            set_int(&fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            set_int(&fd, libc::IPPROTO_IP, libc::IP_TTL, HOPS)?;
        }
        ties.apply(&fd).map_err(io::Error::other)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(ErrorProbe { fd })
    }

    /// Sends one datagram there; what is known at once is the answer.
    pub fn ask(&self, peer: SocketAddr) -> Option<Unreachable> {
        match sendto(self.fd.as_raw_fd(), &DATAGRAM, &SockaddrStorage::from(peer), MsgFlags::MSG_DONTWAIT) {
            Err(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => Some(Unreachable::Host(None)),
            Err(Errno::EPERM | Errno::EACCES) => Some(Unreachable::Forbidden(None)),
            // An error of an earlier datagram may be what it reports: that is in the queue too.
            _ => None,
        }
    }

    /// The next answer that has come by ICMP, and to which of those asked it belongs.
    pub fn answer(&self) -> Option<(SocketAddr, Unreachable)> {
        let mut room = [0; 128];
        let mut pieces = [IoSliceMut::new(&mut room)];
        let mut control = cmsg_space!([u8; 256]);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        loop {
            let message =
                recvmsg::<SockaddrStorage>(self.fd.as_raw_fd(), &mut pieces, Some(&mut control), flags).ok()?;
            let peer = message.address.as_ref().and_then(socket_addr);
            let word = message.cmsgs().ok()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4RecvErr(error, by) => {
                    meaning(&error, by.map(|by| IpAddr::from(u32::from_be(by.sin_addr.s_addr).to_be_bytes())))
                }
                ControlMessageOwned::Ipv6RecvErr(error, by) => {
                    meaning(&error, by.map(|by| IpAddr::from(by.sin6_addr.s6_addr)))
                }
                _ => None,
            });
            if let (Some(peer), Some(word)) = (peer, word) {
                return Some((peer, word));
            }
        }
    }
}

/// RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1; Linux has an error for each of their codes.
fn meaning(error: &libc::sock_extended_err, by: Option<IpAddr>) -> Option<Unreachable> {
    if !BY_ICMP.contains(&error.ee_origin) {
        return None;
    }
    let by = by.filter(|by| !by.is_unspecified());
    let v4 = error.ee_origin == BY_ICMP[0];
    match Errno::from_raw(error.ee_errno as i32) {
        Errno::ECONNREFUSED => Some(Unreachable::Port),
        // Administratively prohibited: the network, the host, all communication.
        Errno::ENETUNREACH | Errno::EHOSTUNREACH if v4 && matches!(error.ee_code, 9 | 10 | 13) => {
            Some(Unreachable::Forbidden(by))
        }
        Errno::EACCES => Some(Unreachable::Forbidden(by)),
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => Some(Unreachable::Host(by)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_own_network, shell};
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    fn answers(probe: &ErrorProbe, count: usize) -> Vec<(SocketAddr, Unreachable)> {
        let mut all = Vec::new();
        let begun = Instant::now();
        while all.len() < count && begun.elapsed() < Duration::from_secs(10) {
            all.extend(probe.answer());
            std::thread::sleep(Duration::from_millis(5));
        }
        all
    }

    #[test]
    fn icmp_tells_a_closed_port_from_no_way_and_a_firewall_from_silence() {
        in_own_network(|| {
            shell("ip link set lo up && ip addr add 192.0.2.1/32 dev lo && ip addr add 2001:db8::1/128 dev lo nodad");
            shell("ip link add wan0 type veth peer name far0 && ip link set wan0 up && ip link set far0 up");
            shell("ip addr add 198.51.100.1/24 dev wan0");
            for (local, there) in [("0.0.0.0", "192.0.2.1"), ("::", "2001:db8::1")] {
                let probe = ErrorProbe::open(local.parse().unwrap(), &Ties::default()).unwrap();
                let there: IpAddr = there.parse().unwrap();
                let closed = SocketAddr::new(there, 7311);
                let open = UdpSocket::bind(SocketAddr::new(there, 0)).unwrap();
                assert_eq!(probe.ask(open.local_addr().unwrap()), None);
                assert_eq!(probe.ask(closed), None);
                assert_eq!(answers(&probe, 1), [(closed, Unreachable::Port)]);
                // Nothing is left of it that the next datagram could meet, and who listens got what was sent.
                assert_eq!(probe.ask(open.local_addr().unwrap()), None);
                assert_eq!(probe.answer(), None);
                let mut room = [1; 100];
                assert_eq!((open.recv(&mut room).unwrap(), open.recv(&mut room).unwrap(), room[0]), (64, 64, 0));
            }
            let probe = ErrorProbe::open("0.0.0.0".parse().unwrap(), &Ties::default()).unwrap();
            assert_eq!(probe.ask("203.0.113.9:1".parse().unwrap()), Some(Unreachable::Host(None)), "no route here");
            // Nobody answers to ARP.
            let absent = "198.51.100.9:7311".parse().unwrap();
            assert_eq!(probe.ask(absent), None);
            let heard = answers(&probe, 1);
            assert!(matches!(heard[..], [(peer, Unreachable::Host(_))] if peer == absent), "{heard:?}");
        });
    }

    #[test]
    fn codes_that_forbid_are_told_from_those_of_no_way() {
        let error = |origin, errno: Errno, code| libc::sock_extended_err {
            ee_errno: errno as u32,
            ee_origin: origin,
            ee_type: 3,
            ee_code: code,
            ee_pad: 0,
            ee_info: 0,
            ee_data: 0,
        };
        let by = Some(IpAddr::from([192, 0, 2, 7]));
        assert_eq!(meaning(&error(2, Errno::EHOSTUNREACH, 13), by), Some(Unreachable::Forbidden(by)));
        assert_eq!(meaning(&error(3, Errno::EACCES, 1), by), Some(Unreachable::Forbidden(by)));
        assert_eq!(meaning(&error(2, Errno::EHOSTUNREACH, 1), by), Some(Unreachable::Host(by)));
        assert_eq!(meaning(&error(2, Errno::ENETUNREACH, 0), None), Some(Unreachable::Host(None)));
        assert_eq!(meaning(&error(2, Errno::ECONNREFUSED, 3), by), Some(Unreachable::Port));
        assert_eq!(meaning(&error(1, Errno::EMSGSIZE, 0), by), None, "not by ICMP");
    }
}

//! getaddrinfo(3): the addresses of a name, and why there are none.

use nix::errno::Errno;
use std::ffi::{CString, c_int};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::{io, mem, ptr};

/// Why a name has no address, by getaddrinfo(3).
#[derive(Debug)]
pub enum LookupError {
    /// There is no such name.
    NoSuchName,
    /// The name is there, and has no address.
    NoAddress,
    /// No name server answers, or they say that they cannot now.
    NoAnswer,
    /// A name server refuses to answer.
    Refused,
    /// The system does not let this process ask, or something failed in it.
    System(io::Error),
    /// Something else, by its number.
    Other(c_int),
}

/// All addresses of `host`, in the order in which the machine would try them (RFC 6724), each once,
/// with `port`. Waits for name servers as long as the machine's configuration says.
///
/// # Errors
/// [`LookupError`]; a name with a zero byte in it is none.
pub fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
    let host = CString::new(host).map_err(|_| LookupError::NoSuchName)?;
    // SAFETY: an addrinfo of zeros is one that asks for nothing in particular.
    let mut hints: libc::addrinfo = unsafe { mem::zeroed() };
    // One of its kinds: else each address comes once for each.
    hints.ai_socktype = libc::SOCK_DGRAM;
    let mut found = ptr::null_mut();
    // SAFETY: the name and the hints live through the call; what it leaves in `found` is a list of
    // its own, or nothing.
    let code = unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &hints, &mut found) };
    if code != 0 {
        return Err(failure(code, io::Error::last_os_error()));
    }
    let mut addresses = Vec::new();
    let mut next = found;
    // SAFETY: the list is as getaddrinfo made it, each entry valid until it is freed, and the last
    // one's `ai_next` is null.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the entry's address is as long as its family's.
        addresses.extend(unsafe { address(entry, port) });
        next = entry.ai_next;
    }
    // SAFETY: it came from getaddrinfo, and nothing of it is used any more.
    unsafe { libc::freeaddrinfo(found) };
    Ok(addresses)
}

/// The address of an entry; none if it is of neither family.
///
/// # Safety
/// `ai_addr` must point to an address of the kind that `ai_family` says.
unsafe fn address(entry: &libc::addrinfo, port: u16) -> Option<SocketAddr> {
    match entry.ai_family {
        libc::AF_INET => {
            // SAFETY: the caller says so; it may lie anywhere.
            let v4 = unsafe { ptr::read_unaligned(entry.ai_addr.cast::<libc::sockaddr_in>()) };
            Some(SocketAddr::new(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()), port))
        }
        libc::AF_INET6 => {
            // SAFETY: the caller says so; it may lie anywhere.
            let v6 = unsafe { ptr::read_unaligned(entry.ai_addr.cast::<libc::sockaddr_in6>()) };
            Some(SocketAddrV6::new(v6.sin6_addr.s6_addr.into(), port, 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// What getaddrinfo's code means, where errno was this.
fn failure(code: c_int, errno: io::Error) -> LookupError {
    match code {
        libc::EAI_NONAME => LookupError::NoSuchName,
        libc::EAI_NODATA => LookupError::NoAddress,
        libc::EAI_AGAIN => LookupError::NoAnswer,
        libc::EAI_FAIL => LookupError::Refused,
        libc::EAI_SYSTEM => LookupError::System(errno),
        libc::EAI_MEMORY => LookupError::System(Errno::ENOMEM.into()),
        other => LookupError::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_as_the_standard_library_finds_them() {
        use std::net::ToSocketAddrs;
        for host in ["127.0.0.1", "::1", "localhost", "fe80::1%lo"] {
            let expected: Vec<SocketAddr> = (host, 7311).to_socket_addrs().unwrap().collect();
            let found = addresses(host, 7311).unwrap();
            assert_eq!(found, expected, "{host}");
            assert!(!found.is_empty());
        }
    }

    #[test]
    fn each_code_has_its_meaning() {
        let of = |code| failure(code, io::Error::from_raw_os_error(libc::EMFILE));
        assert!(matches!(of(libc::EAI_NONAME), LookupError::NoSuchName));
        assert!(matches!(of(libc::EAI_NODATA), LookupError::NoAddress));
        assert!(matches!(of(libc::EAI_AGAIN), LookupError::NoAnswer));
        assert!(matches!(of(libc::EAI_FAIL), LookupError::Refused));
        assert!(matches!(of(libc::EAI_SYSTEM), LookupError::System(e) if e.raw_os_error() == Some(libc::EMFILE)));
        assert!(matches!(of(libc::EAI_MEMORY), LookupError::System(e) if e.raw_os_error() == Some(libc::ENOMEM)));
        assert!(matches!(of(libc::EAI_FAMILY), LookupError::Other(libc::EAI_FAMILY)));
        assert!(matches!(addresses("a\0b", 1), Err(LookupError::NoSuchName)));
    }
}

//! Control messages: what the kernel tells of a datagram beside its bytes, and is told (ip(7), ipv6(7), udp(7), cmsg(3)).
//!
//! The local address (PKTINFO, both families), the traffic class (TOS in IPv4) and the size of segments.

use libc::{c_int, c_void, cmsghdr, in_pktinfo, in6_pktinfo, msghdr};
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for the control messages of one datagram, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; Control::SIZE]);

const _: () = assert!(align_of::<Control>() >= align_of::<cmsghdr>());
// All three messages a datagram can come or go with, each with its padding.
const _: () = assert!(
    Control::SIZE
        >= 3 * (size_of::<cmsghdr>() + align_of::<cmsghdr>()) + size_of::<in6_pktinfo>() + 2 * size_of::<c_int>()
);

impl Control {
    pub(super) const SIZE: usize = 112;
    pub(super) const EMPTY: Self = Control([0; Self::SIZE]);

    pub(super) fn as_mut_ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }

    /// Asks the kernel to send from `local`; gives the length to put into `msg_controllen`.
    ///
    /// A socket of IPv6 takes `IPV6_PKTINFO` also for IPv4, with the address mapped (`ip_cmsg_send` in the kernel).
    pub(super) fn pin(&mut self, local: IpAddr, socket_is_v6: bool) -> usize {
        if let (IpAddr::V4(local), false) = (local, socket_is_v6) {
            let info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(local).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            return self.append(0, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        let local = match local {
            IpAddr::V4(local) => local.to_ipv6_mapped(),
            IpAddr::V6(local) => local,
        };
        let info = in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: local.octets() }, ipi6_ifindex: 0 };
        self.append(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
    }

    /// Asks the kernel to send with this traffic class, over IPv4 or IPv6, behind `length` bytes of other messages; gives the
    /// length of all.
    pub(super) fn class(&mut self, length: usize, over_v4: bool, class: u8) -> usize {
        let (level, kind) = match over_v4 {
            true => (libc::IPPROTO_IP, libc::IP_TOS),
            false => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        };
        self.append(length, level, kind, c_int::from(class))
    }

    /// Asks the kernel to cut what is sent into datagrams of `size` bytes, behind `length` bytes of other messages; gives the
    /// length of all.
    pub(super) fn segment(&mut self, length: usize, size: u16) -> usize {
        self.append(length, libc::SOL_UDP, libc::UDP_SEGMENT, size)
    }

    /// Writes a message behind the first `length` bytes, and gives the length of all.
    fn append<T: Copy>(&mut self, length: usize, level: c_int, kind: c_int, value: T) -> usize {
        let size = size_of::<T>() as u32;
        // SAFETY: pure arithmetic on the sizes of small types.
        let (own, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size) as usize) };
        // Behind whole messages this is aligned and there is room: the slice only makes sure.
        let room = &mut self.0[length.next_multiple_of(align_of::<cmsghdr>())..][..space];
        let header = room.as_mut_ptr().cast::<cmsghdr>();
        // SAFETY: `room` has `space` bytes, which is header and value, and begins at a multiple of the alignment of
        // `cmsghdr` in a buffer aligned for it. The value is written unaligned, so its own alignment does not matter.
        // Zeros are a valid `cmsghdr`.
        unsafe {
            let mut head: cmsghdr = std::mem::zeroed();
            head.cmsg_level = level;
            head.cmsg_type = kind;
            head.cmsg_len = own as _;
            header.write(head);
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        length + space
    }
}

/// What the kernel said of a received datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The address it was sent to, IPv4 never mapped.
    pub(super) local: Option<IpAddr>,
    /// The size of the datagrams it was put together from.
    pub(super) segment: Option<usize>,
    /// The traffic class it came with; of all it was put together from the same.
    pub(super) class: u8,
}

/// Reads all control messages.
///
/// # Safety
/// `message` must be as recvmsg(2) left it, with `msg_control` still pointing to a live buffer of at least
/// `msg_controllen` bytes.
pub(super) unsafe fn told(message: &msghdr) -> Told {
    let mut told = Told::default();
    // SAFETY: the caller vouches for msg_control and msg_controllen.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a whole header inside the buffer.
        let (level, kind, length) = unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: `header` lies in the buffer as above, and `value` checks its length.
                let info: Option<in_pktinfo> = unsafe { value(header, length) };
                told.local = info.map(|info| Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: as above.
                let info: Option<in6_pktinfo> = unsafe { value(header, length) };
                told.local = info.map(|info| Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                // SAFETY: as above. It comes as one byte.
                told.class = unsafe { value::<u8>(header, length) }.unwrap_or(0);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // SAFETY: as above.
                let class: Option<c_int> = unsafe { value(header, length) };
                told.class = class.and_then(|class| u8::try_from(class).ok()).unwrap_or(0);
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: as above.
                let size: Option<c_int> = unsafe { value(header, length) };
                told.segment = size.and_then(|size| usize::try_from(size).ok());
            }
            _ => {}
        }
        // SAFETY: `message` and `header` are as above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    told
}

/// The value of a control message, if it is long enough to be a `T`.
///
/// # Safety
/// `header` must point to a control message of `length` bytes in a live buffer; any bytes must be a valid `T`.
unsafe fn value<T: Copy>(header: *const cmsghdr, length: usize) -> Option<T> {
    // SAFETY: pure arithmetic.
    let needed = unsafe { libc::CMSG_LEN(size_of::<T>() as u32) } as usize;
    if length < needed {
        return None;
    }
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the message holds at least `size_of::<T>()` bytes of data, checked above; every byte of `value` is
    // written, and the caller vouches that any bytes are a `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(libc::CMSG_DATA(header), value.as_mut_ptr().cast::<u8>(), size_of::<T>());
        Some(value.assume_init())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(control: &mut Control, length: usize) -> Told {
        // SAFETY: zeros are a valid `msghdr`.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_control = control.as_mut_ptr();
        message.msg_controllen = length as _;
        // SAFETY: `control` outlives the call and has `length` bytes.
        unsafe { told(&message) }
    }

    #[test]
    fn what_is_pinned_is_read_back() {
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        for (address, socket_is_v6) in [(v6, true), (v4, true)] {
            let mut control = Control::EMPTY;
            let length = control.pin(address, socket_is_v6);
            assert_eq!(read_back(&mut control, length), Told { local: Some(address), ..Told::default() });
        }
        // IPv4 proper names the source in `spec_dst` when sending, the destination in `addr` when receiving.
        let mut control = Control::EMPTY;
        let length = control.pin(v4, false);
        assert_eq!(read_back(&mut control, length).local, Some("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn nothing_or_too_little_is_no_address() {
        let mut control = Control::EMPTY;
        let length = control.pin("2001:db8::7".parse().unwrap(), true);
        assert_eq!(read_back(&mut control, 0), Told::default());
        assert_eq!(read_back(&mut control, 8), Told::default());
        // A message that says it is one byte too short for its kind.
        control.0[0] -= 1;
        assert_eq!(read_back(&mut control, length), Told::default());
    }

    #[test]
    fn messages_stand_one_behind_the_other() {
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        for pinned in [Some(v6), None] {
            let mut control = Control::EMPTY;
            let length = pinned.map_or(0, |address| control.pin(address, true));
            // Sizes come as `int`, unlike the u16 they go in by.
            let both = control.append(length, libc::SOL_UDP, libc::UDP_GRO, 1_420 as c_int);
            assert_eq!(read_back(&mut control, both), Told { local: pinned, segment: Some(1_420), class: 0 });
            let classed = control.class(length, false, 0xB9);
            let told = Told { local: pinned, class: 0xB9, ..Told::default() };
            assert_eq!(read_back(&mut control, classed), told);
            let out = control.segment(classed, 1_420);
            assert!(classed < out && out <= Control::SIZE);
            let both = control.append(length, libc::SOL_UDP, libc::UDP_GRO, 1_420 as c_int);
            // A size that is not whole is none, and takes nothing else with it.
            control.0[length] -= 1;
            assert_eq!(read_back(&mut control, both), Told { local: pinned, ..Told::default() });
        }
    }
}

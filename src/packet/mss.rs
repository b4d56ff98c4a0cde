//! The largest segment a TCP connection may send, lowered where it is agreed: in its SYN packets (RFC 9293, section 3.7.1).
//!
//! A connection finds out what fits by itself, from ICMP; this is for hosts whose firewall drops that.

use super::checksum::Sum;
use super::ip::Version;
use super::layer::Layer;
use super::split::flag;
use super::transport::{Protocol, Transport};
use super::{put_u16, u16_at};

/// Kinds of TCP options (RFC 9293, section 3.1).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Where a TCP header has its flags and its checksum, and its length without options.
const FLAGS: usize = 13;
const CHECKSUM: usize = 16;
const TCP_HEADER: usize = 20;

/// Lowers the maximum segment size that a SYN offers to what IP packets of `mtu` bytes can carry. Whatever is no SYN, or offers
/// no more, stays as it is. `partial` says that the packet's checksum is yet to be completed.
pub fn clamp(layer: Layer, packet: &mut [u8], mtu: usize, partial: bool) {
    let Some(found) = Transport::find(layer, packet).filter(|found| found.protocol == Protocol::Tcp) else { return };
    if packet[found.start + FLAGS] & flag::SYN == 0 {
        return;
    }
    let headers = TCP_HEADER + if found.version == Version::V4 { 20 } else { 40 };
    let most = u16::try_from(mtu.saturating_sub(headers)).unwrap_or(u16::MAX);
    let Some(place) = option(&packet[..found.payload], found.start + TCP_HEADER) else { return };
    let offered = u16_at(packet, place);
    if offered <= most {
        return;
    }
    put_u16(packet, place, most);
    if !partial {
        correct(packet, &found, place, offered);
    }
}

/// Where the value of the option lies, behind `at`. `headers` ends where the options do.
fn option(headers: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *headers.get(at)? {
            END => return None,
            NO_OPERATION => at += 1,
            kind => {
                let length = usize::from(*headers.get(at + 1)?);
                if kind == MAXIMUM_SEGMENT_SIZE {
                    return (length == 4 && at + 4 <= headers.len()).then_some(at + 2);
                }
                // A length below that of kind and length is none.
                at += Some(length).filter(|length| *length >= 2)?;
            }
        }
    }
}

/// Corrects the checksum for a value at `place` that was `before` (RFC 1624).
fn correct(packet: &mut [u8], found: &Transport, place: usize, before: u16) {
    let at = found.start + CHECKSUM;
    let turned =
        |value: u16| Sum::word(if (place - found.start).is_multiple_of(2) { value } else { value.swap_bytes() });
    let sum = Sum::word(!u16_at(packet, at)) - turned(before) + turned(u16_at(packet, place));
    put_u16(packet, at, sum.complete());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::Model;
    use proptest::prelude::*;

    /// A SYN with these options, padded to whole words.
    fn syn(of: Model, options: &[u8]) -> Vec<u8> {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), END);
        Model { flags: flag::SYN, options, ..of }.packet(0)
    }

    fn offered(packet: &[u8]) -> Option<u16> {
        let found = Transport::find(Layer::Ip, packet)?;
        option(&packet[..found.payload], found.start + TCP_HEADER).map(|place| u16_at(packet, place))
    }

    /// Whether the checksum, a complete one, is right.
    fn is_right(packet: &[u8]) -> bool {
        let found = Transport::find(Layer::Ip, packet).unwrap();
        (Sum::of(&packet[found.start..found.end]) + found.pseudo(packet) + Sum::word(found.length())).is_zero()
    }

    #[test]
    fn a_syn_offers_what_fits_and_its_checksum_is_right() {
        for (model, headers) in [(Model::tcp4(), 40), (Model::tcp6(), 60)] {
            for options in [&[2, 4, 0x05, 0xB4][..], &[1, 2, 4, 0x05, 0xB4], &[3, 3, 7, 4, 2, 2, 4, 0x05, 0xB4]] {
                let mut packet = syn(model.clone(), options);
                assert!(is_right(&packet));
                clamp(Layer::Ip, &mut packet, 1_280, false);
                assert_eq!(offered(&packet), Some(1_280 - headers), "{options:?}");
                assert!(is_right(&packet), "{options:?}");
            }
        }
    }

    #[test]
    fn behind_an_ethernet_header_too() {
        let model = Model { ethernet: Some(vec![7]), ..Model::tcp4() };
        let mut frame = syn(model.clone(), &[2, 4, 0x05, 0xB4]);
        clamp(Layer::Ethernet, &mut frame, 1_400, false);
        let lowered = syn(model, &[2, 4, 0x05, 0x50]); // 1,360
        assert_eq!(frame, lowered);
    }

    #[test]
    fn a_partial_checksum_covers_no_options_yet() {
        let mut packet = syn(Model::tcp4(), &[2, 4, 0x05, 0xB4]);
        let before = u16_at(&packet, 20 + CHECKSUM);
        clamp(Layer::Ip, &mut packet, 1_280, true);
        assert_eq!((offered(&packet), u16_at(&packet, 20 + CHECKSUM)), (Some(1_240), before));
    }

    #[test]
    fn what_needs_no_change_has_none() {
        let mss = [2, 4, 0x04, 0xD8]; // 1,240
        let unchanged = [
            syn(Model::tcp4(), &mss),
            syn(Model::tcp4(), &[]),
            syn(Model::tcp4(), &[0, 0, 0, 0, 2, 4, 0xFF, 0xFF]), // behind the end
            syn(Model::tcp4(), &[3, 0, 2, 4, 0xFF, 0xFF]),       // behind an option without a length
            syn(Model::tcp4(), &[2, 5, 0xFF, 0xFF]),             // of the wrong length
            Model { options: vec![2, 4, 0xFF, 0xFF], ..Model::tcp4() }.packet(9), // no SYN
            Model::udp4().packet(9),
        ];
        for before in unchanged {
            let mut packet = before.clone();
            clamp(Layer::Ip, &mut packet, 1_280, false);
            assert_eq!(packet, before);
        }
    }

    proptest! {
        #[test]
        fn any_options_are_safe(options in proptest::collection::vec(0u8..9, 0..40), mtu in 0usize..2_000) {
            let mut packet = syn(Model::tcp6(), &options);
            clamp(Layer::Ip, &mut packet, mtu, false);
            prop_assert!(is_right(&packet));
            prop_assert!(offered(&packet).is_none_or(|offered| usize::from(offered) <= mtu.saturating_sub(60)));
        }

        #[test]
        fn any_bytes_are_safe(mut bytes in crate::packet::testing::junk(), mtu in 0usize..2_000) {
            clamp(Layer::Ip, &mut bytes, mtu, false);
            clamp(Layer::Ethernet, &mut bytes, mtu, false);
        }
    }
}

//! The byte of an IP header that says how a packet is to be treated (DSCP, RFC 2474) and what it has met (ECN, RFC 3168), on
//! its way through a tunnel.
//!
//! Going in, the outer header gets the inner one's ECN (the normal mode of RFC 6040, section 4.1). Coming out, what the way has
//! marked goes back into the inner one (section 4.2), and a mark that its sender would not understand becomes the loss it
//! stands for. The DSCP of the inner header is never changed: that of the outer one is the network's own (RFC 2983, the pipe
//! model).

use super::checksum::Sum;
use super::layer::Layer;
use super::{put_u16, u16_at};

/// The two bits of ECN (RFC 3168, section 5).
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The outer header's DSCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dscp {
    /// The same for all, 0 to 63.
    Fixed(u8),
    /// The inner header's.
    Copy,
    /// Best effort: what is inside stays inside.
    #[default]
    None,
}

impl Dscp {
    /// The byte for the outer header of what is not user data.
    pub const fn own(self) -> u8 {
        match self {
            Dscp::Fixed(dscp) => dscp << 2,
            Dscp::Copy | Dscp::None => 0,
        }
    }

    /// The byte for the outer header of a packet with this one.
    pub const fn outer(self, inner: u8) -> u8 {
        match self {
            Dscp::Copy => inner,
            _ => self.own() | inner & ECN,
        }
    }
}

/// The byte of the IP packet in a frame; 0 where there is none.
pub fn class(layer: Layer, frame: &[u8]) -> u8 {
    layer.network(frame).ok().flatten().map_or(0, |network| of(&frame[network.start..]))
}

fn of(packet: &[u8]) -> u8 {
    match packet {
        [first, tos, ..] if first >> 4 == 4 => *tos,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// Whether this byte of a header says that the packet met congestion.
pub const fn is_congested(class: u8) -> bool {
    class & ECN == CE
}

/// The byte as it is where there was congestion.
pub const fn with(class: u8, congested: bool) -> u8 {
    if congested { class | CE } else { class }
}

/// The way was congested, and the packet's sender does not know of such marks: the packet is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Congested;

/// Puts what the outer header has come to say of congestion into the IP packet in a frame. `outer` is the byte of that header.
/// A frame without one has no place for it, and stays as it is.
///
/// # Errors
/// [`Congested`], by the table of RFC 6040, section 4.2.
pub fn take_out(outer: u8, layer: Layer, frame: &mut [u8]) -> Result<(), Congested> {
    // Without a mark there is nothing to look for: the commonest case.
    if outer & ECN == NOT_ECT {
        return Ok(());
    }
    let Ok(Some(network)) = layer.network(frame) else { return Ok(()) };
    let packet = &mut frame[network.start..];
    let inner = of(packet);
    match (inner & ECN, outer & ECN) {
        (NOT_ECT, CE) => return Err(Congested),
        (ECT_0, ECT_1) | (ECT_0 | ECT_1, CE) => set(packet, inner & !ECN | outer & ECN),
        _ => {}
    }
    Ok(())
}

/// Writes the byte, and corrects the IPv4 header's checksum by what changes (RFC 1624).
fn set(packet: &mut [u8], class: u8) {
    if packet[0] >> 4 == 6 {
        packet[0] = 0x60 | class >> 4;
        packet[1] = class << 4 | packet[1] & 0x0F;
        return;
    }
    let before = Sum::word(u16_at(packet, 0));
    packet[1] = class;
    let sum = Sum::word(!u16_at(packet, 10)) - before + Sum::word(u16_at(packet, 0));
    put_u16(packet, 10, sum.complete());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::Model;
    use proptest::prelude::*;

    /// A packet of either version with this byte.
    fn packet(v6: bool, class: u8) -> Vec<u8> {
        let mut packet = if v6 { Model::tcp6() } else { Model::tcp4() }.packet(10);
        set(&mut packet, class);
        packet
    }

    #[test]
    fn the_table_of_rfc_6040() {
        const DROP: Option<u8> = None;
        // By inner header; columns are the outer one: Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), DROP]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                for v6 in [false, true] {
                    let mut packet = packet(v6, 0xB8 | inner);
                    let told = take_out(0x48 | outer, Layer::Ip, &mut packet).ok().map(|()| of(&packet));
                    assert_eq!(told, expected.map(|ecn| 0xB8 | ecn), "inner {inner}, outer {outer}, v6 {v6}");
                }
            }
        }
    }

    #[test]
    fn congestion_goes_in_whatever_the_dscp() {
        let inner = 46 << 2 | CE;
        assert_eq!(Dscp::None.outer(inner), CE);
        assert_eq!(Dscp::Fixed(10).outer(inner), 10 << 2 | CE);
        assert_eq!(Dscp::Copy.outer(inner), inner);
        assert_eq!((Dscp::None.own(), Dscp::Fixed(63).own(), Dscp::Copy.own()), (0, 252, 0));
    }

    #[test]
    fn what_is_no_ip_has_none() {
        let arp = [vec![0xFF; 12], vec![0x08, 0x06], vec![0xFF; 28]].concat();
        for (layer, frame) in [(Layer::Ip, &[][..]), (Layer::Ip, &[0x45]), (Layer::Ip, &arp), (Layer::Ethernet, &arp)] {
            let mut after = frame.to_vec();
            assert_eq!((class(layer, frame), take_out(CE, layer, &mut after)), (0, Ok(())));
            assert_eq!(after, frame);
        }
    }

    #[test]
    fn behind_an_ethernet_header_too() {
        let mut frame = Model { ethernet: Some(vec![7]), ..Model::tcp4() }.packet(10);
        set(&mut frame[18..], 0xB8 | ECT_0);
        assert_eq!(class(Layer::Ethernet, &frame), 0xB8 | ECT_0);
        take_out(CE, Layer::Ethernet, &mut frame).unwrap();
        assert_eq!(class(Layer::Ethernet, &frame), 0xB8 | CE);
        assert!(Sum::of(&frame[18..38]).is_zero());
    }

    proptest! {
        #[test]
        fn nothing_changes_but_two_bits_and_the_checksum_is_right(
            v6: bool, inner: u8, outer: u8, flow in 0u32..1 << 20, identification: u16,
        ) {
            let mut before = packet(v6, inner);
            if v6 {
                before[1] = before[1] & 0xF0 | (flow >> 16) as u8;
                before[2..4].copy_from_slice(&(flow as u16).to_be_bytes());
            } else {
                // Whatever the checksum comes to, 0 and 0xFFFF included.
                put_u16(&mut before, 4, identification);
                put_u16(&mut before, 10, 0);
                let checksum = Sum::of(&before[..20]).complete();
                put_u16(&mut before, 10, checksum);
            }
            let mut after = before.clone();
            if take_out(outer, Layer::Ip, &mut after).is_ok() {
                prop_assert_eq!(of(&after) & !ECN, inner & !ECN);
                if v6 {
                    prop_assert_eq!((after[1] & 0x0F, &after[2..]), (before[1] & 0x0F, &before[2..]));
                } else {
                    prop_assert!(Sum::of(&after[..20]).is_zero());
                    prop_assert_eq!((&after[2..10], &after[12..]), (&before[2..10], &before[12..]));
                }
            } else {
                prop_assert_eq!((inner & ECN, outer & ECN), (NOT_ECT, CE));
                prop_assert_eq!(after, before);
            }
        }
    }
}

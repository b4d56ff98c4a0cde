//! What a frame begins with: an IP header, or an Ethernet header behind which there may be one.
//!
//! Of Ethernet only its length is looked at: a frame that is not IP, or not a right one, is a frame all the same, and passes as
//! it is.

use super::ip::{self, Malformed, Version};
use super::u16_at;

/// What the link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IP packets.
    Ip,
    /// Ethernet frames (IEEE 802.3), with VLAN tags or without, less their check sequence.
    Ethernet,
}

/// Bytes of an Ethernet header without tags: two addresses and the EtherType.
const ETHERNET: usize = 14;
/// Bytes of a VLAN tag (IEEE 802.1Q §9.3).
const TAG: usize = 4;
/// Tags that are looked behind: as many as Linux does (`VLAN_MAX_DEPTH`).
const MOST_TAGS: usize = 8;

/// EtherTypes: of a tag, and of a service provider's, which stands before it.
const TAGGED: u16 = 0x8100;
const SERVICE_TAGGED: u16 = 0x88A8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86DD;

/// Where the IP packet in a frame begins, and its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// From the frame's beginning, in bytes; 0 where the frame is the packet.
    pub start: usize,
    /// By its header, and by the EtherType where there is one.
    pub version: Version,
}

impl Layer {
    /// The most bytes a frame has beyond the interface's MTU: an Ethernet header and two VLAN tags, for a bridge lets a tag of its
    /// own and one more onto a port (`is_skb_forwardable`).
    pub const fn overhead(self) -> usize {
        match self {
            Layer::Ip => 0,
            Layer::Ethernet => ETHERNET + 2 * TAG,
        }
    }

    /// Whether a frame is for many stations: the group bit of its Ethernet destination (IEEE 802 §8.2.2), broadcast among them. An
    /// IP packet's own header says so for itself.
    pub fn is_for_many(self, frame: &[u8]) -> bool {
        self == Layer::Ethernet && frame.first().is_some_and(|first| first & 1 != 0)
    }

    /// Finds the IP packet in a frame; `None` if it is a frame of something else.
    ///
    /// # Errors
    /// [`Malformed`] if it is no frame of this layer at all: not IP, or shorter than an Ethernet header.
    pub fn network(self, frame: &[u8]) -> Result<Option<Network>, Malformed> {
        match self {
            Layer::Ip => ip::check(frame).map(|version| Some(Network { start: 0, version })),
            Layer::Ethernet if frame.len() < ETHERNET => Err(Malformed),
            Layer::Ethernet => Ok(behind_ethernet(frame)),
        }
    }
}

fn behind_ethernet(frame: &[u8]) -> Option<Network> {
    let mut start = ETHERNET;
    let mut ether_type = u16_at(frame, start - 2);
    for _ in 0..MOST_TAGS {
        if !matches!(ether_type, TAGGED | SERVICE_TAGGED) {
            break;
        }
        start += TAG;
        ether_type = u16_at(frame.get(..start)?, start - 2);
    }
    let version = ip::check(frame.get(start..)?).ok()?;
    let named = match version {
        Version::V4 => IPV4,
        Version::V6 => IPV6,
    };
    (ether_type == named).then_some(Network { start, version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::{Model, junk};
    use proptest::prelude::*;

    #[test]
    fn an_ip_packet_is_found_behind_tags() {
        for (model, version) in [(Model::tcp4(), Version::V4), (Model::udp6(), Version::V6)] {
            for tags in 0..=MOST_TAGS {
                let frame = Model { ethernet: Some(vec![7; tags]), ..model.clone() }.packet(9);
                let start = ETHERNET + tags * TAG;
                assert_eq!(Layer::Ethernet.network(&frame), Ok(Some(Network { start, version })));
                assert_eq!(Layer::Ip.network(&frame[start..]), Ok(Some(Network { start: 0, version })));
            }
            let frame = Model { ethernet: Some(vec![7; MOST_TAGS + 1]), ..model.clone() }.packet(9);
            assert_eq!(Layer::Ethernet.network(&frame), Ok(None), "Linux would not look behind it");
        }
    }

    #[test]
    fn what_is_not_ip_is_a_frame_all_the_same() {
        let ip = Model { ethernet: Some(vec![7]), ..Model::udp4() }.packet(9);
        let with = |at: usize, value: u8| {
            let mut frame = ip.clone();
            frame[at] = value;
            Layer::Ethernet.network(&frame)
        };
        assert!(matches!(with(12, 0x81), Ok(Some(_))));
        assert_eq!(with(17, 0x06), Ok(None), "ARP");
        assert_eq!(with(16, 0x86), Ok(None), "neither");
        assert_eq!(with(12, 0x91), Ok(None), "a tag of nobody's");
        assert_eq!(with(18, 0x65), Ok(None), "IPv6 by its header, IPv4 by its type");
        assert_eq!(with(21, 0xFF), Ok(None), "an IP header that lies");
        for length in ETHERNET..ip.len() {
            assert_eq!(Layer::Ethernet.network(&ip[..length]), Ok(None), "cut to {length}");
        }
        for length in 0..ETHERNET {
            assert_eq!(Layer::Ethernet.network(&ip[..length]), Err(Malformed), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(frame in junk(), tags in 0usize..12) {
            let mut tagged = vec![0; 12];
            tagged.extend([0x81, 0, 0, 7].repeat(tags));
            tagged.extend([0x08, 0]);
            tagged.extend(&frame);
            let found = Layer::Ethernet.network(&tagged).unwrap();
            let start = ETHERNET + tags * TAG;
            let is_ipv4 = ip::check(&frame) == Ok(Version::V4) && tags <= MOST_TAGS;
            prop_assert_eq!(found, is_ipv4.then_some(Network { start, version: Version::V4 }));
            let _ = Layer::Ethernet.network(&frame);
        }
    }
}

//! The addresses of an IP packet, and what one end knows of them: which are its own, and which mean many.

use super::ip::Version;
use super::layer::Network;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Source and destination of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// RFC 791.
    V4 {
        /// Who sent it.
        source: u32,
        /// Who it is for.
        destination: u32,
    },
    /// RFC 8200.
    V6 {
        /// Who sent it.
        source: u128,
        /// Who it is for.
        destination: u128,
    },
}

impl Addresses {
    /// Those of the IP packet that was found in `frame`; `None` if the frame is another one, and shorter.
    pub fn of(network: Network, frame: &[u8]) -> Option<Self> {
        let bytes = frame.get(network.start..)?.get(network.version.addresses())?;
        match network.version {
            Version::V4 => {
                let (source, destination) = bytes.split_first_chunk()?;
                let destination = u32::from_be_bytes(*destination.first_chunk()?);
                Some(Addresses::V4 { source: u32::from_be_bytes(*source), destination })
            }
            Version::V6 => {
                let (source, destination) = bytes.split_first_chunk()?;
                let destination = u128::from_be_bytes(*destination.first_chunk()?);
                Some(Addresses::V6 { source: u128::from_be_bytes(*source), destination })
            }
        }
    }

    /// Who sent it.
    pub fn source(&self) -> IpAddr {
        match *self {
            Addresses::V4 { source, .. } => Ipv4Addr::from(source).into(),
            Addresses::V6 { source, .. } => Ipv6Addr::from(source).into(),
        }
    }

    /// Who it is for.
    pub fn destination(&self) -> IpAddr {
        match *self {
            Addresses::V4 { destination, .. } => Ipv4Addr::from(destination).into(),
            Addresses::V6 { destination, .. } => Ipv6Addr::from(destination).into(),
        }
    }

    /// Whether it is for a multicast group (RFC 1112, RFC 4291 §2.7).
    pub fn are_to_a_group(&self) -> bool {
        match *self {
            Addresses::V4 { destination, .. } => destination >> 28 == 0xE,
            Addresses::V6 { destination, .. } => destination >> 120 == 0xFF,
        }
    }
}

/// The addresses this end has inside the link. Where it has none, as with a bridge's port, nothing is its own.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses {
    v4: Vec<u32>,
    v6: Vec<u128>,
    /// The last address of each IPv4 network: its broadcast (RFC 919).
    broadcasts: Vec<u32>,
}

impl OwnAddresses {
    /// From addresses with their prefix lengths.
    pub fn new(addresses: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        let mut own = OwnAddresses::default();
        for (address, length) in addresses {
            match address {
                IpAddr::V4(v4) => {
                    own.v4.push(v4.to_bits());
                    // A network of two has none (RFC 3021).
                    if length < 31 {
                        own.broadcasts.push(v4.to_bits() | !mask_v4(length));
                    }
                }
                IpAddr::V6(v6) => own.v6.push(v6.to_bits()),
            }
        }
        own
    }

    /// Whether a packet is from this end itself, by its source.
    pub fn has_source_of(&self, addresses: &Addresses) -> bool {
        match addresses {
            Addresses::V4 { source, .. } => self.v4.contains(source),
            Addresses::V6 { source, .. } => self.v6.contains(source),
        }
    }

    /// Whether a packet is for this end itself.
    pub fn has_destination_of(&self, addresses: &Addresses) -> bool {
        match addresses {
            Addresses::V4 { destination, .. } => self.v4.contains(destination),
            Addresses::V6 { destination, .. } => self.v6.contains(destination),
        }
    }

    /// Whether a packet is for many: multicast, or the broadcast of all networks or of one this end is in. The broadcast of a network
    /// elsewhere looks like any address.
    pub fn is_for_many(&self, addresses: &Addresses) -> bool {
        let is_broadcast = match addresses {
            Addresses::V4 { destination, .. } => *destination == u32::MAX || self.broadcasts.contains(destination),
            Addresses::V6 { .. } => false,
        };
        is_broadcast || addresses.are_to_a_group()
    }
}

/// The mask of an IPv4 prefix of so many bits.
pub(super) fn mask_v4(length: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0)
}

/// The mask of an IPv6 prefix of so many bits.
pub(super) fn mask_v6(length: u8) -> u128 {
    u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Layer;
    use crate::packet::testing::{Model, junk};
    use proptest::prelude::*;

    fn of(source: &str, destination: &str) -> Addresses {
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Addresses::V4 { source: source.to_bits(), destination: destination.to_bits() }
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Addresses::V6 { source: source.to_bits(), destination: destination.to_bits() }
            }
            _ => panic!("two families"),
        }
    }

    #[test]
    fn they_are_read_where_the_header_has_them() {
        for model in Model::each() {
            let frame = model.packet(9);
            let network = model.layer().network(&frame).unwrap().unwrap();
            let found = Addresses::of(network, &frame).unwrap();
            let both = [found.source().to_string(), found.destination().to_string()];
            match network.version {
                Version::V4 => assert_eq!(both, ["10.0.0.1", "10.0.1.1"]),
                Version::V6 => assert!(both[0].ends_with("a00:1") && both[1].ends_with("a00:101"), "{both:?}"),
            }
            assert_eq!(Addresses::of(network, &frame[..network.start + 19]), None);
        }
    }

    #[test]
    fn own_addresses_are_known_on_both_sides_of_a_packet() {
        let own = OwnAddresses::new([("10.99.0.1".parse().unwrap(), 30), ("fd99::1".parse().unwrap(), 126)]);
        for (ours, theirs) in [("10.99.0.1", "10.99.0.2"), ("fd99::1", "fd99::2")] {
            assert!(own.has_source_of(&of(ours, theirs)) && !own.has_destination_of(&of(ours, theirs)));
            assert!(own.has_destination_of(&of(theirs, ours)) && !own.has_source_of(&of(theirs, ours)));
        }
        assert!(!OwnAddresses::default().has_source_of(&of("0.0.0.0", "0.0.0.0")));
    }

    #[test]
    fn many_are_groups_and_known_broadcasts() {
        let own = OwnAddresses::new([("10.99.0.1".parse().unwrap(), 30), ("10.98.0.0".parse().unwrap(), 31)]);
        for (destination, many) in [
            ("224.0.0.0", true),
            ("239.255.255.255", true),
            ("255.255.255.255", true),
            ("10.99.0.3", true),
            ("223.255.255.255", false),
            ("240.0.0.1", false),
            ("10.98.0.1", false),
            ("10.99.0.0", false),
            ("192.168.1.255", false),
        ] {
            assert_eq!(own.is_for_many(&of("10.0.0.1", destination)), many, "{destination}");
        }
        for (destination, many) in [("ff02::1", true), ("ff3e::1", true), ("fe80::1", false), ("fd99::3", false)] {
            assert_eq!(own.is_for_many(&of("fd99::2", destination)), many, "{destination}");
        }
    }

    #[test]
    fn masks_of_every_length() {
        assert_eq!([0, 1, 24, 32, 200].map(mask_v4), [0, 1 << 31, 0xFFFF_FF00, u32::MAX, u32::MAX]);
        assert_eq!([0, 1, 64, 128].map(mask_v6), [0, 1 << 127, u128::MAX << 64, u128::MAX]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(frame in junk(), start in 0usize..40) {
            for version in [Version::V4, Version::V6] {
                let _ = Addresses::of(Network { start, version }, &frame);
            }
            if let Ok(Some(network)) = Layer::Ip.network(&frame) {
                prop_assert!(Addresses::of(network, &frame).is_some());
            }
        }
    }
}

//! Where the TCP or UDP header of a frame's IP packet lies.
//!
//! Both ends of the link must find the same place, because a partial checksum crosses it as one bit, without the place.
//! So this is the one parser for both, and what it does not find can be neither partial, nor split, nor merged:
//! fragments, other protocols, headers cut short, UDP lengths that are not the packet's.

use super::checksum::{self, Sum};
use super::ip::{self, Version};
use super::layer::{Layer, Network};
use super::{u16_at, virtio};
use std::ops::Range;

/// The transport protocols that can be cut and joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;

/// The longest IP packet there is anything to do with, in bytes. IPv6 could have 40 more; no offset would be safe in 16 bits.
pub(super) const LONGEST: usize = 65_535;

/// IPv4: "more fragments" and the offset, any of which makes the packet a fragment.
const FRAGMENT: u16 = 0x3FFF;

impl Protocol {
    /// Its number in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        }
    }

    /// Where its checksum lies in its header.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Protocol::Tcp => 16,
            Protocol::Udp => 6,
        }
    }
}

/// The layout of a frame with a whole TCP segment or UDP datagram in it. Offsets are in bytes from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Where the IP header begins: behind an Ethernet header, where there is one.
    pub network: usize,
    /// Of the IP header.
    pub version: Version,
    /// Of what it carries.
    pub protocol: Protocol,
    /// Where the TCP or UDP header begins: behind IPv4 options or IPv6 extension headers.
    pub start: usize,
    /// Where its payload begins: behind TCP options.
    pub payload: usize,
    /// Where the IP packet ends by its own account; bytes behind that are not part of it.
    pub end: usize,
}

impl Transport {
    /// Finds it, or tells by `None` that there is none to be found.
    pub fn find(layer: Layer, frame: &[u8]) -> Option<Self> {
        Self::behind(layer.network(frame).ok()??, frame)
    }

    /// Finds it in the IP packet that was found in `frame`.
    pub(super) fn behind(network: Network, frame: &[u8]) -> Option<Self> {
        let Network { start: network, version } = network;
        let packet = frame.get(network..)?;
        let (number, start, end) = match version {
            Version::V4 => v4(packet)?,
            Version::V6 => v6(packet)?,
        };
        if end > LONGEST {
            return None;
        }
        let inner = packet.get(start..end)?;
        let (protocol, header) = match number {
            TCP => (Protocol::Tcp, tcp_header(inner)?),
            UDP => (Protocol::Udp, udp_header(inner)?),
            _ => return None,
        };
        let payload = network + start + header;
        // The kernel is told of places in 16 bits.
        let fits = payload <= LONGEST;
        fits.then_some(Transport { network, version, protocol, start: network + start, payload, end: network + end })
    }

    /// Where source and destination address lie, one behind the other.
    pub const fn addresses(&self) -> Range<usize> {
        let Range { start, end } = self.version.addresses();
        self.network + start..self.network + end
    }

    /// Bytes of the TCP segment or UDP datagram, its header included: the length in its pseudo-header.
    pub const fn length(&self) -> u16 {
        // The packet is within LONGEST.
        (self.end - self.start) as u16
    }

    /// Where the kernel is told its checksum lies.
    pub const fn place(&self) -> virtio::Place {
        // All headers are within LONGEST.
        virtio::Place { start: self.start as u16, offset: self.protocol.checksum_offset() as u16 }
    }

    /// The checksum as it is stored in `frame`, in which this was found.
    pub fn stored(&self, frame: &[u8]) -> u16 {
        u16_at(frame, self.start + self.protocol.checksum_offset())
    }

    /// The sum over the addresses and the protocol number of `frame`, in which this was found.
    pub fn pseudo(&self, frame: &[u8]) -> Sum {
        Sum::pseudo(&frame[self.addresses()], self.protocol.number())
    }

    /// Completes a partial checksum in `frame`, in which this was found.
    pub fn complete(&self, frame: &mut [u8]) {
        if let Some(covered) = frame.get_mut(self.start..self.end) {
            checksum::complete(covered, self.protocol.checksum_offset());
        }
    }
}

fn v4(packet: &[u8]) -> Option<(u8, usize, usize)> {
    let header = usize::from(packet[0] & 0x0F) * 4;
    let whole = u16_at(packet, 6) & FRAGMENT == 0;
    whole.then_some((packet[9], header, u16_at(packet, 2).into()))
}

/// Walks over the extension headers that Linux too sees through when it cuts and joins.
fn v6(packet: &[u8]) -> Option<(u8, usize, usize)> {
    let end = ip::V6_HEADER + usize::from(u16_at(packet, 4));
    let (mut number, mut start) = (packet[6], ip::V6_HEADER);
    while matches!(number, HOP_BY_HOP | ROUTING | DESTINATION) {
        let extension: &[u8; 2] = packet.get(start..end)?.first_chunk()?;
        number = extension[0];
        start += 8 + 8 * usize::from(extension[1]);
    }
    Some((number, start, end))
}

fn tcp_header(segment: &[u8]) -> Option<usize> {
    let header = usize::from(segment.get(12)? >> 4) * 4;
    (TCP_HEADER <= header && header <= segment.len()).then_some(header)
}

fn udp_header(datagram: &[u8]) -> Option<usize> {
    let fits = datagram.len() >= UDP_HEADER && usize::from(u16_at(datagram, 4)) == datagram.len();
    fits.then_some(UDP_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::{Extension, Model, Wire, junk};
    use proptest::prelude::*;

    #[test]
    fn headers_are_found_behind_options_and_extensions() {
        let model = Model { options: vec![1; 12], ..Model::tcp4() };
        let ip = |frame: Vec<u8>| Transport::find(Layer::Ip, &frame);
        let found = ip(model.packet(100)).unwrap();
        assert_eq!((found.start, found.payload, found.end), (20, 52, 152));
        assert_eq!((found.length(), found.place()), (132, virtio::Place { start: 20, offset: 16 }));

        let wire = Wire::V4 { options: vec![1; 8], identification: 7, flags: 0x4000 };
        let found = ip(Model { wire, ..Model::udp4() }.packet(9)).unwrap();
        assert_eq!((found.start, found.payload, found.end), (28, 36, 45));
        assert_eq!(found.place(), virtio::Place { start: 28, offset: 6 });

        let extensions = vec![Extension::new(0, 0), Extension::new(43, 1), Extension::new(60, 2)];
        let found = ip(Model { wire: Wire::v6(extensions), ..Model::tcp4() }.packet(1)).unwrap();
        assert_eq!((found.start, found.payload, found.end), (40 + 48, 108, 109));
        assert_eq!(found.version, Version::V6);

        let ethernet = Model { ethernet: Some(vec![5, 6]), options: vec![1; 12], ..Model::tcp4() };
        let found = Transport::find(Layer::Ethernet, &ethernet.packet(100)).unwrap();
        assert_eq!((found.network, found.start, found.payload, found.end), (22, 42, 74, 174));
        assert_eq!((found.length(), found.place()), (132, virtio::Place { start: 42, offset: 16 }));
        assert_eq!(found.addresses(), 34..42);
    }

    #[test]
    fn what_both_ends_cannot_agree_on_is_not_found() {
        let find = |frame: &[u8]| Transport::find(Layer::Ip, frame);
        let tcp4 = Model::tcp4().packet(10);
        let mutated = |at: usize, value: u8| {
            let mut packet = tcp4.clone();
            packet[at] = value;
            find(&packet)
        };
        assert!(mutated(6, 0x40).is_some(), "don't fragment");
        assert_eq!(mutated(6, 0x20), None, "more fragments");
        assert_eq!(mutated(7, 0x01), None, "a later fragment");
        assert_eq!(mutated(9, 1), None, "ICMP");
        assert_eq!(mutated(9, 132), None, "SCTP");
        assert_eq!(mutated(32, 0x40), None, "a TCP header shorter than its fixed part");
        assert_eq!(mutated(32, 0xF0), None, "a TCP header longer than the packet");
        assert_eq!(mutated(3, 39), None, "cut by the IP header's own account");
        assert_eq!(mutated(9, 17), None, "UDP whose length is not the packet's");

        for number in [44, 50, 51, 59, 135] {
            let wire = Wire::v6(vec![Extension::new(0, 0), Extension::new(number, 0)]);
            assert_eq!(find(&Model { wire, ..Model::tcp4() }.packet(10)), None, "{number}");
        }
        let mut endless = Model { wire: Wire::v6(vec![Extension::new(0, 0)]), ..Model::tcp4() }.packet(10);
        endless[41] = 255;
        assert_eq!(find(&endless), None, "an extension beyond the packet");
        let longest = |length: usize| find(&Model::udp6().packet(length - 48));
        assert!(longest(65_535).is_some());
        assert_eq!(longest(65_536), None, "offsets would not fit 16 bits");
        let framed = |ethernet, words| {
            let wire = Wire::v6(vec![Extension::new(60, words); 31]);
            Transport::find(Layer::Ethernet, &Model { ethernet: Some(ethernet), wire, ..Model::udp6() }.packet(1))
        };
        let found = framed(vec![1; 8], 255).unwrap();
        assert_eq!((found.payload, found.end), (46 + 40 + 31 * 2048 + 8, found.payload + 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe_and_what_is_found_lies_inside(mut bytes in junk(), ethernet: bool) {
            let layer = if ethernet { Layer::Ethernet } else { Layer::Ip };
            if let Some(found) = Transport::find(layer, &bytes) {
                prop_assert!(found.network + 20 <= found.start && found.start < found.payload);
                let before = if ethernet { 14 } else { 0 };
                prop_assert!(found.payload <= found.end && found.network >= before);
                prop_assert!(found.end <= bytes.len());
                found.complete(&mut bytes);
                let inner = &bytes[found.start..found.end];
                prop_assert_eq!(usize::from(found.length()), inner.len());
            }
        }
    }
}

//! A plain slow model of packets, for tests: built field by field, cut by the letter, summed word by word.

use super::layer::Layer;
use super::transport::Protocol;
use super::virtio::{Gso, Header, Kind, Place};
use proptest::prelude::*;
use proptest::sample::select;

/// The sum of RFC 1071 §1 by the letter.
pub fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xFFFF {
            sum -= 0xFFFF;
        }
    }
    sum as u16
}

/// How the checksum of a packet is to be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Partial,
    Full,
}

/// An IPv6 extension header: its number, and its length in words of eight bytes after the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    number: u8,
    words: u8,
}

impl Extension {
    pub fn new(number: u8, words: u8) -> Self {
        Extension { number, words }
    }
}

/// The part of an IP header that is not in both versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    V4 { options: Vec<u8>, identification: u16, flags: u16 },
    V6 { extensions: Vec<Extension>, label: u32 },
}

impl Wire {
    pub fn v6(extensions: Vec<Extension>) -> Self {
        Wire::V6 { extensions, label: 0xABCDE }
    }
}

/// All that is in a packet but its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The tags of the Ethernet header before it, if it has one.
    pub ethernet: Option<Vec<u16>>,
    pub wire: Wire,
    pub protocol: Protocol,
    pub tos: u8,
    pub ttl: u8,
    /// The last byte of the source address.
    pub host: u8,
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledgement: u32,
    /// The low bits of TCP's byte 12.
    pub reserved: u8,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
}

impl Model {
    pub fn tcp4() -> Self {
        Model {
            ethernet: None,
            wire: Wire::V4 { options: vec![], identification: 0xFFFE, flags: 0x4000 },
            protocol: Protocol::Tcp,
            tos: 2,
            ttl: 64,
            host: 1,
            ports: (5201, 40000),
            sequence: u32::MAX - 2000,
            acknowledgement: 77,
            reserved: 0,
            flags: 0x10,
            window: 501,
            urgent: 0,
            options: vec![],
        }
    }

    pub fn tcp6() -> Self {
        Model { wire: Wire::v6(vec![]), options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], ..Model::tcp4() }
    }

    pub fn udp4() -> Self {
        Model { protocol: Protocol::Udp, ..Model::tcp4() }
    }

    pub fn udp6() -> Self {
        Model { protocol: Protocol::Udp, ..Model::tcp6() }
    }

    /// One of each kind that can be cut, as an IP packet and behind Ethernet headers with and without tags.
    pub fn each() -> impl Iterator<Item = Model> {
        let plain = || [Model::tcp4(), Model::tcp6(), Model::udp4(), Model::udp6()];
        let headers = [None, Some(vec![]), Some(vec![0x6007]), Some(vec![9, 7])];
        headers.into_iter().flat_map(move |ethernet| plain().map(|model| Model { ethernet: ethernet.clone(), ..model }))
    }

    /// A packet with `length` bytes of payload and a complete checksum.
    pub fn packet(&self, length: usize) -> Vec<u8> {
        self.build(&bytes(length, self.sequence), Checksum::Full)
    }

    pub fn build(&self, payload: &[u8], checksum: Checksum) -> Vec<u8> {
        let mut inner = self.transport_header(payload.len());
        let checksum_offset = if self.protocol == Protocol::Tcp { 16 } else { 6 };
        inner.extend(payload);
        let mut packet = self.ip_header(inner.len());
        let mut pseudo = packet[if packet[0] >> 4 == 4 { 12..20 } else { 8..40 }].to_vec();
        pseudo.extend([0, self.protocol.number()]);
        pseudo.extend((inner.len() as u16).to_be_bytes());
        inner[checksum_offset..checksum_offset + 2].copy_from_slice(&slow_sum(&pseudo).to_be_bytes());
        if checksum == Checksum::Full {
            slow_complete(&mut inner, checksum_offset);
        }
        packet.extend(inner);
        [self.link_header(), packet].concat()
    }

    /// What carries such packets.
    pub fn layer(&self) -> Layer {
        if self.ethernet.is_some() { Layer::Ethernet } else { Layer::Ip }
    }

    /// Bytes before the IP header.
    pub fn network(&self) -> usize {
        self.link_header().len()
    }

    /// The outer one of two tags is a provider's.
    fn link_header(&self) -> Vec<u8> {
        let Some(tags) = &self.ethernet else { return vec![] };
        let mut header = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, self.host];
        for (n, tag) in tags.iter().enumerate() {
            header.extend(if n + 1 < tags.len() { [0x88, 0xA8] } else { [0x81, 0x00] });
            header.extend(tag.to_be_bytes());
        }
        header.extend(if matches!(self.wire, Wire::V4 { .. }) { [0x08, 0x00] } else { [0x86, 0xDD] });
        header
    }

    fn transport_header(&self, payload: usize) -> Vec<u8> {
        let mut header = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.protocol == Protocol::Udp {
            header.extend((payload as u16 + 8).to_be_bytes());
            header.extend([0, 0]);
            return header;
        }
        header.extend(self.sequence.to_be_bytes());
        header.extend(self.acknowledgement.to_be_bytes());
        header.extend([(20 + self.options.len() as u8) << 2 | self.reserved, self.flags]);
        header.extend(self.window.to_be_bytes());
        header.extend([0, 0]);
        header.extend(self.urgent.to_be_bytes());
        header.extend(&self.options);
        header
    }

    fn ip_header(&self, inner: usize) -> Vec<u8> {
        let (source, destination) = ([10, 0, 0, self.host], [10, 0, 1, 1]);
        match &self.wire {
            Wire::V4 { options, identification, flags } => {
                let length = 20 + options.len();
                let mut header = vec![0x40 | (length / 4) as u8, self.tos];
                header.extend(((length + inner) as u16).to_be_bytes());
                header.extend(identification.to_be_bytes());
                header.extend(flags.to_be_bytes());
                header.extend([self.ttl, self.protocol.number(), 0, 0]);
                header.extend([source, destination].concat());
                header.extend(options);
                let checksum = !slow_sum(&header);
                header[10..12].copy_from_slice(&checksum.to_be_bytes());
                header
            }
            Wire::V6 { extensions, label } => {
                let mut rest = vec![];
                for (n, extension) in extensions.iter().enumerate() {
                    let next = extensions.get(n + 1).map_or(self.protocol.number(), |next| next.number);
                    rest.extend([next, extension.words, 1, 4]);
                    rest.extend(vec![0; 4 + 8 * usize::from(extension.words)]);
                }
                let mut header = (6 << 28 | u32::from(self.tos) << 20 | label).to_be_bytes().to_vec();
                header.extend(((rest.len() + inner) as u16).to_be_bytes());
                header.extend([extensions.first().map_or(self.protocol.number(), |next| next.number), self.ttl]);
                for address in [source, destination] {
                    header.extend([0xFD; 12]);
                    header.extend(address);
                }
                header.extend(rest);
                header
            }
        }
    }

    /// Bytes of all headers.
    pub fn header_length(&self) -> usize {
        self.build(&[], Checksum::Partial).len()
    }

    /// What the kernel says of a big packet of this kind, but for the header length.
    pub fn gso(&self, size: usize) -> Header {
        let start = self.header_length() - self.transport_header(0).len();
        let (offset, kind) = match (self.protocol, &self.wire) {
            (Protocol::Tcp, Wire::V4 { .. }) => (16, Kind::Tcp4),
            (Protocol::Tcp, Wire::V6 { .. }) => (16, Kind::Tcp6),
            (Protocol::Udp, _) => (6, Kind::Udp),
        };
        Header {
            checksum: Some(Place { start: start as u16, offset }),
            gso: Some(Gso { kind, ecn: kind != Kind::Udp && self.flags & 0x80 != 0, size: size as u16 }),
            header_length: self.header_length() as u16,
        }
    }

    /// The packets of `payload` cut at `size`, as `tcp_gso_segment` and `__udp_gso_segment` would.
    pub fn segments(&self, payload: &[u8], size: usize, checksum: Checksum) -> Vec<Vec<u8>> {
        let last = payload.chunks(size).count() - 1;
        let mut one = self.clone();
        let mut segments = vec![];
        for (n, chunk) in payload.chunks(size).enumerate() {
            one.flags = self.flags & if n > 0 { 0x7F } else { 0xFF } & if n < last { 0xF6 } else { 0xFF };
            segments.push(one.build(chunk, checksum));
            one.advance(chunk.len());
        }
        segments
    }

    /// Goes on to the packet after one with `payload` bytes.
    pub fn advance(&mut self, payload: usize) {
        self.sequence = self.sequence.wrapping_add(payload as u32);
        if let Wire::V4 { identification, .. } = &mut self.wire {
            *identification = identification.wrapping_add(1);
        }
    }
}

/// Completes a checksum where the pseudo-header's sum stands, by the letter.
pub fn slow_complete(covered: &mut [u8], offset: usize) {
    let checksum = match !slow_sum(covered) {
        0 => 0xFFFF,
        checksum => checksum,
    };
    covered[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Bytes before the IP header, by the letter. There is one.
pub fn network(layer: Layer, frame: &[u8]) -> usize {
    let mut at = if layer == Layer::Ip { return 0 } else { 12 };
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xA8]) {
        at += 4;
    }
    at + 2
}

/// What the kernel makes of a write: the frames as they leave it, with complete checksums. By offsets alone.
pub fn cut(layer: Layer, frame: &[u8], header: &Header) -> Vec<Vec<u8>> {
    let Some(place) = header.checksum else {
        assert_eq!(header.gso, None);
        return vec![frame.to_vec()];
    };
    let (start, offset) = (usize::from(place.start), usize::from(place.offset));
    let Some(gso) = header.gso else {
        let mut packet = frame.to_vec();
        slow_complete(&mut packet[start..], offset);
        return vec![packet];
    };
    let (headers, payload) = frame.split_at(header.header_length.into());
    let chunks: Vec<_> = payload.chunks(gso.size.into()).collect();
    assert!(chunks.len() > 1, "the kernel takes no GSO packet that needs no cutting");
    let mut packets = vec![];
    for (n, chunk) in chunks.iter().enumerate() {
        let mut packet = [headers, chunk].concat();
        let (below, inner) = packet.split_at_mut(start);
        let ip = &mut below[network(layer, frame)..];
        // The sum of the pseudo-header is corrected for the length, not made anew: the kernel trusts it.
        let shorter = (!((frame.len() - start) as u16)).to_be_bytes();
        let sum = slow_sum(&[&inner[offset..offset + 2], &shorter, &(inner.len() as u16).to_be_bytes()].concat());
        if ip[0] >> 4 == 4 {
            let length = (ip.len() + inner.len()) as u16;
            let identification = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(n as u16);
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[4..6].copy_from_slice(&identification.to_be_bytes());
            ip[10..12].fill(0);
            let checksum = !slow_sum(ip);
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let length = (ip.len() + inner.len() - 40) as u16;
            ip[4..6].copy_from_slice(&length.to_be_bytes());
        }
        if gso.kind == Kind::Udp {
            let length = (inner.len() as u16).to_be_bytes();
            inner[4..6].copy_from_slice(&length);
        } else {
            let sequence = u32::from_be_bytes([inner[4], inner[5], inner[6], inner[7]]);
            let sequence = sequence.wrapping_add((n * usize::from(gso.size)) as u32);
            inner[4..8].copy_from_slice(&sequence.to_be_bytes());
            assert_eq!(gso.ecn, headers[start + 13] & 0x80 != 0);
            inner[13] &= if n > 0 { 0x7F } else { 0xFF } & if n + 1 < chunks.len() { 0xF6 } else { 0xFF };
        }
        inner[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        slow_complete(inner, offset);
        packets.push(packet);
    }
    packets
}

/// `length` bytes that differ with `seed` and never repeat early.
pub fn bytes(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(0x0019_660D).wrapping_add(0x3C6E_F35F);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Any model that can be cut.
pub fn model() -> impl Strategy<Value = Model> {
    let v4 = (0usize..=10, any::<u16>(), select(&[0u16, 0x4000][..]))
        .prop_map(|(words, identification, flags)| Wire::V4 { options: vec![1; words * 4], identification, flags });
    let extension = (select(&[0u8, 43, 60][..]), 0u8..4).prop_map(|(number, words)| Extension { number, words });
    let v6 = (proptest::collection::vec(extension, 0..4), 0u32..1 << 20)
        .prop_map(|(extensions, label)| Wire::V6 { extensions, label });
    let ethernet = proptest::option::of(proptest::collection::vec(any::<u16>(), 0..4));
    let ip = (prop_oneof![v4, v6], any::<u8>(), any::<u8>(), any::<u8>(), ethernet);
    let ports = any::<(u16, u16)>();
    let tcp = (any::<u32>(), any::<u32>(), 0u8..16, any::<u8>(), any::<u16>(), any::<u16>(), 0usize..=10);
    (ip, select(&[Protocol::Tcp, Protocol::Udp][..]), ports, tcp).prop_map(
        |(
            (wire, tos, ttl, host, ethernet),
            protocol,
            ports,
            (sequence, acknowledgement, reserved, flags, window, urgent, words),
        )| {
            let options = bytes(words * 4, acknowledgement);
            Model {
                ethernet,
                wire,
                protocol,
                tos,
                ttl,
                host,
                ports,
                sequence,
                acknowledgement,
                reserved,
                flags,
                window,
                urgent,
                options,
            }
        },
    )
}

/// Bytes that are nothing, almost a packet, or cut short.
pub fn junk() -> impl Strategy<Value = Vec<u8>> {
    let spoiled = (
        model(),
        0usize..100,
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<prop::sample::Index>(),
    );
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..120),
        spoiled.prop_map(|(model, length, spoils, cut)| {
            let mut packet = model.packet(length);
            for (at, value) in spoils {
                let at = at.index(packet.len().min(80));
                packet[at] = value;
            }
            if cut.index(4) == 0 {
                packet.truncate(cut.index(packet.len()));
            }
            packet
        }),
    ]
}

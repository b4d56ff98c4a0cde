//! What the packet targets share: sums by the letter, and packets made right so that junk gets past the first look.

use tieline::packet::Layer;
use tieline::packet::transport::{Protocol, Transport};

/// The sum of RFC 1071 §1, word by word.
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, last) = bytes.as_chunks::<2>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum += last.first().map_or(0, |&byte| u64::from(byte) << 8);
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// Ones' complement addition.
pub fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// Ones' complement zero has two forms.
pub fn is_zero(sum: u16) -> bool {
    matches!(sum, 0 | 0xFFFF)
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The layer an input asks for.
pub fn layer(ethernet: bool) -> Layer {
    if ethernet { Layer::Ethernet } else { Layer::Ip }
}

/// Where a frame's IP header is to be looked for: at the beginning, or behind an Ethernet header with its tags.
pub fn network(layer: Layer, frame: &[u8]) -> usize {
    let mut at = if layer == Layer::Ip { return 0 } else { 12 };
    let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xA8]));
    while is_tag(at) {
        at += 4;
    }
    (at + 2).min(frame.len())
}

/// Where the checksum of the packet's TCP or UDP header lies.
pub fn checksum_at(found: &Transport) -> usize {
    found.start + found.protocol.checksum_offset()
}

/// Source and destination of an IP packet.
pub fn addresses(packet: &[u8]) -> &[u8] {
    &packet[if packet[0] >> 4 == 4 { 12..20 } else { 8..40 }]
}

/// The pseudo-header's sum less the length.
pub fn pseudo(packet: &[u8], protocol: Protocol) -> u16 {
    add(sum(addresses(packet)), protocol.number().into())
}

/// Completes the checksum of a packet where a part of the sum stands.
pub fn complete(packet: &mut [u8], found: &Transport) {
    let checksum = match !sum(&packet[found.start..found.end]) {
        0 => 0xFFFF,
        checksum => checksum,
    };
    put_u16(packet, checksum_at(found), checksum);
}

/// Makes lengths and checksums of what looks like a packet right, the TCP or UDP one `partial` or complete, and the EtherType
/// before it.
pub fn mend(layer: Layer, frame: &mut [u8], partial: bool) {
    let at = network(layer, frame);
    match frame.get(at).map(|byte| byte >> 4) {
        Some(4) if at > 0 => put_u16(frame, at - 2, 0x0800),
        Some(6) if at > 0 => put_u16(frame, at - 2, 0x86DD),
        _ => {}
    }
    mend_packet(&mut frame[at..], partial);
}

fn mend_packet(packet: &mut [u8], partial: bool) {
    let Ok(length) = u16::try_from(packet.len()) else { return };
    let (protocol, inner) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            put_u16(packet, 2, length);
            (packet[9], usize::from(packet[0] & 15) * 4)
        }
        Some(6) if packet.len() >= 40 => {
            put_u16(packet, 4, length - 40);
            (packet[6], 40)
        }
        _ => return,
    };
    if protocol == Protocol::Udp.number() && packet.len() >= inner + 8 {
        put_u16(packet, inner + 4, length.saturating_sub(inner as u16));
    }
    mend_ip_checksum(packet);
    if let Some(found) = Transport::find(Layer::Ip, packet) {
        let pseudo = add(pseudo(packet, found.protocol), found.length());
        put_u16(packet, checksum_at(&found), pseudo);
        if !partial {
            complete(packet, &found);
        }
    }
}

/// Makes an IPv4 header's checksum right.
pub fn mend_ip_checksum(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    if packet[0] >> 4 == 4 && (20..=packet.len()).contains(&header) {
        put_u16(packet, 10, 0);
        let checksum = !sum(&packet[..header]);
        put_u16(packet, 10, checksum);
    }
}

/// An input taken apart from its beginning. What is beyond the end is zero.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let head = self.take(N);
        array[..head.len()].copy_from_slice(head);
        array
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }
}

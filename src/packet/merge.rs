//! From opened datagrams to what is written to the interface: runs of packets that would come out again if the kernel
//! cut them become one.
//!
//! The rules are those of Linux's GRO (`inet_gro_receive`, `tcp_gro_receive`, `udp_gro_receive_segment`): a packet joins
//! only if cutting what comes of it gives back every byte of every packet. The one exception is GRO's too: an atomic IPv4
//! datagram's identification, which means nothing (RFC 6864 §4.1). Ethernet headers, VLAN tags among them, must be the same.
//!
//! UDP is joined only where that is asked for, and then only what is for this end itself, as GRO does it where a socket asks. What is
//! forwarded stays as it was sent: a kernel that routes multicast drops what is longer than the next link takes, and
//! packet filters and helpers for NAT look at each datagram.
//!
//! No payload moves. A merged packet is the first one, its headers rewritten where they lie, and the places of the
//! others' payloads.

use super::addresses::{Addresses, OwnAddresses};
use super::checksum::Sum;
use super::ip::{self, Malformed, Version};
use super::layer::{Layer, Network};
use super::split::flag;
use super::transport::{LONGEST, Protocol, Transport};
use super::virtio::{Gso, Header, Kind};
use super::{put_u16, u16_at, u32_at};
use std::ops::Range;

/// IPv4: the only flag a merged packet may have.
const DONT_FRAGMENT: u16 = 0x4000;

/// How far merging goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most packets made into one. With 1 nothing is merged.
    pub segments: usize,
    /// The most flows that packets are collected for at a time.
    pub flows: usize,
    /// Whether UDP datagrams are merged: from Linux 6.2 on the kernel takes them (`VIRTIO_NET_HDR_GSO_UDP_L4`). Multicast never is.
    pub udp: bool,
}

impl Default for Limits {
    /// As many segments as Linux cuts a UDP packet into on every version; as many flows as its GRO has in a bucket.
    fn default() -> Self {
        Limits { segments: 64, flows: 8, udp: true }
    }
}

/// Collects a batch of packets and tells what is to be written, in order.
///
/// [`push`](Self::push) each packet, [`finish`](Self::finish) the batch, write what [`writes`](Self::writes) gives,
/// [`clear`](Self::clear). All packets lie in one buffer, the same one in all four steps.
///
/// **Order.** Writes come in the order of their first packets, and a flow (addresses, protocol, ports) has at most one
/// group open to more, which is closed by the first packet of that flow that does not join it. So within a flow
/// nothing is overtaken. A packet whose flow cannot be told, a fragment for one, closes all groups between its addresses;
/// a frame that is not IP closes all.
#[derive(Debug)]
pub struct Merger {
    layer: Layer,
    limits: Limits,
    /// The only addresses for which UDP is merged; without it each that is one host's.
    own: Option<OwnAddresses>,
    groups: Vec<Group>,
    /// Payloads that were joined to a group, chained by [`Piece::next`].
    pieces: Vec<Piece>,
    /// The groups that may still grow, by their place in `groups`, oldest first.
    open: Vec<usize>,
}

/// Packets to be written as one; at first, and often for good, a single one.
#[derive(Debug)]
struct Group {
    /// The first packet.
    head: Range<usize>,
    /// Where its transport header lies, if it has one.
    found: Option<Transport>,
    /// Whether its checksum came partial.
    partial: bool,
    /// Payload bytes of each packet but the last.
    size: usize,
    segments: usize,
    /// Bytes of the whole.
    length: usize,
    /// The pseudo-header's sum less the length; known once a second packet has asked for it.
    pseudo: Option<Sum>,
    /// Whether all identifications are the same, and not each one more than the last.
    fixed: bool,
    /// Whether the first packet has CWR set.
    ecn: bool,
    /// FIN and PSH of the last packet.
    last_flags: u8,
    /// The first and the last of the joined payloads, in [`Merger::pieces`].
    pieces: Option<(usize, usize)>,
}

/// The payload of a packet that was joined to another.
#[derive(Debug)]
struct Piece {
    range: Range<usize>,
    next: Option<usize>,
}

/// A packet on its way into a group.
struct Candidate<'a> {
    bytes: &'a [u8],
    found: Transport,
    partial: bool,
}

impl Merger {
    /// A merger with room for batches of `packets`. It allocates here, and again only for a batch larger than any before.
    pub fn new(layer: Layer, limits: Limits, packets: usize) -> Self {
        Merger {
            layer,
            limits,
            own: None,
            groups: Vec::with_capacity(packets),
            pieces: Vec::with_capacity(packets),
            open: Vec::with_capacity(limits.flows),
        }
    }

    /// The same, at an end with these addresses inside the link: UDP for others is not merged.
    #[must_use]
    pub fn at(self, own: OwnAddresses) -> Self {
        Merger { own: Some(own), ..self }
    }

    /// Takes the frame at `range` in `buffer`, the next in order of arrival; `partial` as the far end has said of it.
    ///
    /// # Errors
    /// [`Malformed`], and the packet is not taken, if it is no frame of the layer, or partial without a checksum that could be.
    pub fn push(&mut self, buffer: &[u8], range: Range<usize>, partial: bool) -> Result<(), Malformed> {
        let bytes = buffer.get(range.clone()).ok_or(Malformed)?;
        let network = self.layer.network(bytes)?;
        match network.and_then(|network| Transport::behind(network, bytes)) {
            Some(found) => self.push_found(buffer, range, &Candidate { bytes, found, partial }),
            None if partial => return Err(Malformed),
            None => {
                match network {
                    Some(network) => self.close_between(buffer, network, bytes),
                    None => self.open.clear(),
                }
                self.groups.push(Group::new(range, None, false));
            }
        }
        Ok(())
    }

    fn push_found(&mut self, buffer: &[u8], range: Range<usize>, candidate: &Candidate<'_>) {
        let found = candidate.found;
        let mergeable = candidate.is_mergeable(&self.limits) && !self.must_stay_alone(candidate);
        if let Some(place) = self.find_open(buffer, candidate) {
            let index = self.open[place];
            if mergeable && self.groups[index].join(buffer, candidate, &self.limits) {
                self.chain(index, range.start + found.payload..range.end);
                if candidate.is_last() || candidate.payload() < self.groups[index].size {
                    self.open.remove(place);
                }
                return;
            }
            self.open.remove(place);
        }
        if mergeable && !candidate.is_last() {
            self.open_next();
        }
        // The kernel sums to the end of what it is given, so nothing may lie behind a partial packet.
        let end = if candidate.partial { range.start + found.end } else { range.end };
        self.groups.push(Group::new(range.start..end, Some(found), candidate.partial));
    }

    /// Whether it is UDP for many hosts, by its IP address or its Ethernet address, or for another host than this end.
    fn must_stay_alone(&self, candidate: &Candidate<'_>) -> bool {
        let Transport { network: start, version, protocol, .. } = candidate.found;
        if protocol != Protocol::Udp {
            return false;
        }
        let Some(addresses) = Addresses::of(Network { start, version }, candidate.bytes) else { return true };
        let is_ours = self.own.as_ref().is_none_or(|own| own.has_destination_of(&addresses));
        !is_ours || addresses.are_to_a_group() || self.layer.is_for_many(candidate.bytes)
    }

    /// The open group of the candidate's flow, by its place in `open`. The latest is the likeliest.
    fn find_open(&self, buffer: &[u8], candidate: &Candidate<'_>) -> Option<usize> {
        self.open.iter().rposition(|&index| {
            let group = &self.groups[index];
            group.found.is_some_and(|found| candidate.is_of_flow(&found, &buffer[group.head.clone()]))
        })
    }

    /// Closes the groups of which `bytes`, a packet without ports, could be.
    fn close_between(&mut self, buffer: &[u8], network: Network, bytes: &[u8]) {
        let (groups, addresses) = (&self.groups, &bytes[network.start..][network.version.addresses()]);
        self.open.retain(|&index| {
            let group = &groups[index];
            let found = group.found.filter(|found| found.version == network.version);
            found.is_none_or(|found| buffer[group.head.clone()][found.addresses()] != *addresses)
        });
    }

    /// Opens the group that is pushed next. Where there is no room for it the oldest is closed.
    fn open_next(&mut self) {
        if self.limits.flows == 0 {
            return;
        }
        if self.open.len() >= self.limits.flows {
            self.open.remove(0);
        }
        self.open.push(self.groups.len());
    }

    fn chain(&mut self, index: usize, range: Range<usize>) {
        let new = self.pieces.len();
        self.pieces.push(Piece { range, next: None });
        let group = &mut self.groups[index];
        match group.pieces {
            None => group.pieces = Some((new, new)),
            Some((first, last)) => {
                self.pieces[last].next = Some(new);
                group.pieces = Some((first, new));
            }
        }
    }

    /// Ends the batch: rewrites the headers of first packets, where they lie, for what has joined them.
    pub fn finish(&mut self, buffer: &mut [u8]) {
        self.open.clear();
        for group in self.groups.iter().filter(|group| group.segments > 1) {
            if let (Some(found), Some(head)) = (group.found, buffer.get_mut(group.head.clone())) {
                group.rewrite(&found, head);
            }
        }
    }

    /// What is to be written, in order.
    pub fn writes(&self) -> impl Iterator<Item = Write<'_>> {
        self.groups.iter().map(|group| Write { group, pieces: &self.pieces })
    }

    /// Forgets the batch.
    pub fn clear(&mut self) {
        self.groups.clear();
        self.pieces.clear();
        self.open.clear();
    }
}

impl Candidate<'_> {
    fn payload(&self) -> usize {
        self.found.end - self.found.payload
    }

    /// The TCP flags, or none in UDP.
    fn flags(&self) -> u8 {
        match self.found.protocol {
            Protocol::Tcp => self.bytes[self.found.start + 13],
            Protocol::Udp => 0,
        }
    }

    /// Whether nothing may be joined behind it.
    fn is_last(&self) -> bool {
        self.flags() & (flag::FIN | flag::PSH) != 0
    }

    /// Whether it could be merged with anything, as far as its headers alone can tell.
    fn is_mergeable(&self, limits: &Limits) -> bool {
        let allowed = match self.found.protocol {
            Protocol::Tcp => self.flags() & (flag::SYN | flag::RST | flag::URG) == 0,
            // No checksum at all would come out as one.
            Protocol::Udp => limits.udp && self.found.stored(self.bytes) != 0,
        };
        let nothing_behind = self.bytes.len() == self.found.end;
        limits.segments > 1 && allowed && self.payload() > 0 && nothing_behind && self.has_plain_ip()
    }

    /// IPv4 without options, with nothing but DF said of fragments, and with a right checksum, for it will be made anew.
    fn has_plain_ip(&self) -> bool {
        match self.found.version {
            Version::V4 => {
                let header = &self.bytes[self.found.network..self.found.start];
                header.len() == 20 && u16_at(header, 6) & !DONT_FRAGMENT == 0 && Sum::of(header).is_zero()
            }
            Version::V6 => true,
        }
    }

    fn is_of_flow(&self, found: &Transport, head: &[u8]) -> bool {
        let ports = |found: &Transport, bytes| u32_at(bytes, found.start);
        ports(&self.found, self.bytes) == ports(found, head)
            && (self.found.version, self.found.protocol) == (found.version, found.protocol)
            && self.bytes[self.found.addresses()] == head[found.addresses()]
    }

    /// Whether all headers are the first packet's, but for what cutting makes anew. They are of one flow.
    fn has_headers_of(&self, found: &Transport, head: &[u8]) -> bool {
        let same = |range: Range<usize>| self.bytes[range.clone()] == head[range];
        if (self.found.network, self.found.start, self.found.payload) != (found.network, found.start, found.payload) {
            return false;
        }
        let (network, start) = (found.network, found.start);
        let ip = match found.version {
            // From the frame's beginning on: an Ethernet header is the same or it is not.
            Version::V4 => same(0..network + 2) && same(network + 6..network + 10),
            // Behind the addresses, extensions.
            Version::V6 => {
                same(0..network + 4) && same(network + 6..network + 8) && same(network + ip::V6_HEADER..start)
            }
        };
        let inner = match found.protocol {
            Protocol::Tcp => {
                // Acknowledgement, header length, window, urgent pointer, options.
                same(start + 8..start + 13) && same(start + 14..start + 16) && same(start + 18..found.payload)
            }
            Protocol::Udp => true,
        };
        ip && inner
    }

    /// The sum over the pseudo-header less the length: as stored in a partial checksum; if a complete one is right, as
    /// it should be.
    fn pseudo(&self) -> Option<Sum> {
        let length = Sum::word(self.found.length());
        if self.partial {
            return Some(Sum::word(self.found.stored(self.bytes)) - length);
        }
        let pseudo = self.found.pseudo(self.bytes);
        let sum = Sum::of(&self.bytes[self.found.start..self.found.end]) + pseudo + length;
        sum.is_zero().then_some(pseudo)
    }
}

impl Group {
    fn new(head: Range<usize>, found: Option<Transport>, partial: bool) -> Self {
        Group {
            length: head.len(),
            size: found.map_or(0, |found| found.end - found.payload),
            head,
            found,
            partial,
            segments: 1,
            pseudo: None,
            fixed: false,
            ecn: false,
            last_flags: 0,
            pieces: None,
        }
    }

    /// Takes in the next packet of its flow, or leaves all as it is and says no.
    fn join(&mut self, buffer: &[u8], next: &Candidate<'_>, limits: &Limits) -> bool {
        let Some(found) = self.found else { return false };
        let head = &buffer[self.head.clone()];
        let length = self.length + next.payload();
        let fits = self.segments < limits.segments && length <= LONGEST && next.payload() <= self.size;
        if !fits || !next.has_headers_of(&found, head) {
            return false;
        }
        let Some(fixed) = self.follows(&found, head, next.bytes) else { return false };
        let first = Candidate { bytes: head, found, partial: self.partial };
        let flags = next.flags();
        if flags & flag::CWR != 0 || (flags ^ first.flags()) & !(flag::FIN | flag::PSH | flag::CWR) != 0 {
            return false;
        }
        // A pass over the bytes where a checksum is complete, so it comes last. The first packet's is looked at only now.
        self.pseudo = self.pseudo.or_else(|| first.pseudo());
        if self.pseudo.is_none() || self.pseudo != next.pseudo() {
            return false;
        }
        self.segments += 1;
        self.length = length;
        self.fixed = fixed;
        self.ecn = first.flags() & flag::CWR != 0;
        self.last_flags = flags & (flag::FIN | flag::PSH);
        true
    }

    /// Whether the packet's TCP sequence number and IPv4 identification are the ones that come next; if so, whether the
    /// identifications are fixed.
    fn follows(&self, found: &Transport, head: &[u8], next: &[u8]) -> Option<bool> {
        if found.protocol == Protocol::Tcp {
            let sequence = |bytes| u32_at(bytes, found.start + 4);
            let payload = (self.length - found.payload) as u32;
            if sequence(next) != sequence(head).wrapping_add(payload) {
                return None;
            }
        }
        if found.version == Version::V6 {
            return Some(false);
        }
        let at = found.network;
        let ahead = u16_at(next, at + 4).wrapping_sub(u16_at(head, at + 4));
        // The second packet decides, and only of datagrams that can never be fragments.
        let atomic = u16_at(head, at + 6) & DONT_FRAGMENT != 0;
        let fixed = if self.segments == 1 { atomic && ahead == 0 } else { self.fixed };
        let expected = if fixed { 0 } else { self.segments as u16 };
        (ahead == expected).then_some(fixed)
    }

    /// Makes the first packet's headers those of the whole.
    fn rewrite(&self, found: &Transport, head: &mut [u8]) {
        let (below, inner) = head.split_at_mut(found.start);
        let ip = &mut below[found.network..];
        let (length, inner_length) = (self.length - found.network, (self.length - found.start) as u16);
        match found.version {
            Version::V4 => {
                put_u16(ip, 2, length as u16);
                put_u16(ip, 10, 0);
                let checksum = Sum::of(ip).complete();
                put_u16(ip, 10, checksum);
            }
            Version::V6 => put_u16(ip, 4, (length - ip::V6_HEADER) as u16),
        }
        match found.protocol {
            Protocol::Tcp => inner[13] |= self.last_flags,
            Protocol::Udp => put_u16(inner, 4, inner_length),
        }
        let sum = self.pseudo.unwrap_or_default() + Sum::word(inner_length);
        put_u16(inner, found.protocol.checksum_offset(), sum.partial());
    }
}

/// One write to the interface, good once the batch is [finished](Merger::finish).
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    group: &'a Group,
    pieces: &'a [Piece],
}

impl Write<'_> {
    /// What the kernel is told of it.
    pub fn header(&self) -> Header {
        let Some(found) = self.group.found else { return Header::default() };
        if self.group.segments == 1 {
            let checksum = self.group.partial.then(|| found.place());
            return Header { checksum, ..Header::default() };
        }
        let kind = match (found.protocol, found.version) {
            (Protocol::Tcp, Version::V4) => Kind::Tcp4,
            (Protocol::Tcp, Version::V6) => Kind::Tcp6,
            (Protocol::Udp, _) => Kind::Udp,
        };
        let gso = Gso { kind, ecn: self.group.ecn, size: self.group.size as u16 };
        Header { checksum: Some(found.place()), gso: Some(gso), header_length: found.payload as u16 }
    }

    /// Where its bytes lie, in order: the first packet, then the payloads of the others.
    pub fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let piece = |index: usize| self.pieces.get(index);
        let first = self.group.pieces.and_then(|(first, _)| piece(first));
        let rest = std::iter::successors(first, move |last| last.next.and_then(piece));
        std::iter::once(self.group.head.clone()).chain(rest.map(|piece| piece.range.clone()))
    }

    /// How many packets it is made of, which is also how many parts there are.
    pub fn packets(&self) -> usize {
        self.group.segments
    }

    /// Its bytes, without the virtio header.
    pub fn length(&self) -> usize {
        self.group.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::{Checksum, Extension, Model, Wire, bytes, cut, junk, model, network};
    use crate::packet::testing::{slow_complete, slow_sum};
    use proptest::prelude::*;

    /// Packets in one buffer with something between them, as datagrams leave them.
    fn lay(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
        let mut buffer = vec![];
        let mut ranges = vec![];
        for packet in packets {
            buffer.extend([0xEE; 16]);
            ranges.push(buffer.len()..buffer.len() + packet.len());
            buffer.extend(packet);
            buffer.extend([0xEE; 16]);
        }
        (buffer, ranges)
    }

    /// What is written of packets with partial checksums, at an end with these addresses or at any.
    fn writes_at(own: Option<&OwnAddresses>, layer: Layer, packets: &[Vec<u8>]) -> usize {
        let (mut buffer, ranges) = lay(packets);
        let merger = Merger::new(layer, Limits::default(), packets.len());
        let mut merger = match own {
            Some(own) => merger.at(own.clone()),
            None => merger,
        };
        ranges.into_iter().for_each(|range| merger.push(&buffer, range, true).unwrap());
        merger.finish(&mut buffer);
        merger.writes().count()
    }

    /// The packet, to another address, which is at `at`.
    fn readdressed(mut packet: Vec<u8>, at: usize, destination: &[u8]) -> Vec<u8> {
        assert_ne!(packet[at..at + destination.len()], *destination);
        packet[at..at + destination.len()].copy_from_slice(destination);
        if packet[0] >> 4 == 4 {
            packet[10..12].fill(0);
            let checksum = !slow_sum(&packet[..20]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    #[test]
    fn udp_is_joined_for_this_end_alone_and_tcp_for_every_host() {
        let run = |model: &Model| model.segments(&bytes(500, 7), 100, Checksum::Partial);
        let own = [Model::udp4(), Model::udp6()].map(|model| {
            let packet = model.packet(1);
            let network = Layer::Ip.network(&packet).unwrap().unwrap();
            (Addresses::of(network, &packet).unwrap().destination(), 30)
        });
        let own = OwnAddresses::new(own);
        let none = OwnAddresses::default();
        let many: [(Model, usize, [[u8; 4]; 4]); 2] = [
            (Model::udp4(), 16, [[224, 0, 0, 251], [239, 1, 1, 1], [255; 4], [10, 0, 1, 3]]),
            (Model::udp6(), 24, [[0xFF, 2, 0, 0], [0xFF, 0x3E, 0, 0], [0xFF, 5, 0, 0], [0xFF, 0xFF, 0, 0]]),
        ];
        for (model, at, groups) in many {
            let at_any =
                |packets: &[Vec<u8>]| [None, Some(&own), Some(&none)].map(|own| writes_at(own, Layer::Ip, packets));
            assert_eq!(at_any(&run(&model)), [1, 1, 5]);
            for group in groups {
                let packets: Vec<_> = run(&model).into_iter().map(|packet| readdressed(packet, at, &group)).collect();
                assert_eq!(at_any(&packets)[1..], [5, 5], "{group:?}");
            }
            let host: Vec<_> = run(&model).into_iter().map(|packet| readdressed(packet, at, &[10, 0, 1, 7])).collect();
            assert_eq!(at_any(&host), [1, 5, 5], "another host's");
            let group: Vec<_> = run(&model).into_iter().map(|packet| readdressed(packet, at, &groups[1])).collect();
            assert_eq!(at_any(&group), [5; 3], "a group's");
        }
        for (model, alone) in [(Model::udp4(), 5), (Model::udp6(), 5), (Model::tcp4(), 1), (Model::tcp6(), 1)] {
            let packets = run(&model);
            assert_eq!(writes_at(Some(&none), Layer::Ip, &packets), alone);
            let model = Model { ethernet: Some(vec![7]), ..model };
            let packets = run(&model);
            assert_eq!(writes_at(Some(&own), Layer::Ethernet, &packets), 1);
            // By the Ethernet address alone.
            for address in [[0xFF; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5E, 0, 0, 1]] {
                let packets: Vec<_> = packets.iter().map(|packet| [&address[..], &packet[6..]].concat()).collect();
                assert_eq!(writes_at(Some(&own), Layer::Ethernet, &packets), alone, "{address:?}");
            }
        }
    }

    /// What would be written of these packets, each with its partial bit.
    fn merge(limits: Limits, packets: &[(Vec<u8>, bool)]) -> Vec<(Vec<u8>, Header)> {
        merge_in(Layer::Ip, limits, packets)
    }

    fn merge_in(layer: Layer, limits: Limits, packets: &[(Vec<u8>, bool)]) -> Vec<(Vec<u8>, Header)> {
        let (mut buffer, ranges) = lay(&packets.iter().map(|(packet, _)| packet.clone()).collect::<Vec<_>>());
        let mut merger = Merger::new(layer, limits, packets.len());
        for (range, (_, partial)) in ranges.into_iter().zip(packets) {
            let _ = merger.push(&buffer, range, *partial);
        }
        merger.finish(&mut buffer);
        let mut writes = vec![];
        for write in merger.writes() {
            let frame = write.parts().map(|part| &buffer[part]).collect::<Vec<_>>().concat();
            assert_eq!((write.parts().count(), frame.len()), (write.packets(), write.length()));
            assert_eq!(Header::parse(write.header().encode()), Ok(write.header()));
            writes.push((frame, write.header()));
        }
        writes
    }

    fn partial(packets: Vec<Vec<u8>>) -> Vec<(Vec<u8>, bool)> {
        packets.into_iter().map(|packet| (packet, true)).collect()
    }

    fn full(packets: Vec<Vec<u8>>) -> Vec<(Vec<u8>, bool)> {
        packets.into_iter().map(|packet| (packet, false)).collect()
    }

    /// The kinds of packets of which any two in a row merge.
    fn plain() -> Vec<Model> {
        let extended = Wire::v6(vec![Extension::new(0, 0), Extension::new(60, 1)]);
        let extended = Model { wire: extended, ..Model::tcp6() };
        let framed = Model { ethernet: Some(vec![7]), ..extended.clone() };
        Model::each().chain([extended, framed]).collect()
    }

    /// The IP packets among them.
    fn basic() -> Vec<Model> {
        plain().into_iter().filter(|model| model.ethernet.is_none()).collect()
    }

    /// Two packets of 100 bytes in a row, the second one changed.
    fn pair(model: &Model, change: impl FnOnce(&mut Model)) -> Vec<(Vec<u8>, bool)> {
        let first = model.packet(100);
        let mut second = model.clone();
        second.advance(100);
        change(&mut second);
        full(vec![first, second.packet(100)])
    }

    fn writes_of(packets: &[(Vec<u8>, bool)]) -> usize {
        writes_in(Layer::Ip, packets)
    }

    fn writes_in(layer: Layer, packets: &[(Vec<u8>, bool)]) -> usize {
        let writes = merge_in(layer, Limits::default(), packets);
        let back: Vec<_> = writes.iter().flat_map(|(frame, header)| cut(layer, frame, header)).collect();
        let completed: Vec<_> = packets.iter().map(|(packet, partial)| completed(layer, packet, *partial)).collect();
        if writes.len() == packets.len() {
            assert_eq!(back, completed, "what is not merged stays as it came");
        }
        writes.len()
    }

    fn completed(layer: Layer, packet: &[u8], partial: bool) -> Vec<u8> {
        let mut packet = packet.to_vec();
        if let (true, Some(found)) = (partial, Transport::find(layer, &packet)) {
            packet.truncate(found.end);
            slow_complete(&mut packet[found.start..], found.protocol.checksum_offset());
        }
        packet
    }

    #[test]
    fn a_run_becomes_one_and_is_cut_to_the_same_packets() {
        for model in plain() {
            for checksum in [Checksum::Partial, Checksum::Full] {
                let payload = bytes(1301, 1);
                let packets = model.segments(&payload, 100, checksum);
                let input: Vec<_> = packets.into_iter().map(|p| (p, checksum == Checksum::Partial)).collect();
                let writes = merge_in(model.layer(), Limits::default(), &input);
                assert_eq!(writes, [(model.build(&payload, Checksum::Partial), model.gso(100))]);
                assert_eq!(
                    cut(model.layer(), &writes[0].0, &writes[0].1),
                    model.segments(&payload, 100, Checksum::Full)
                );
            }
        }
    }

    #[test]
    fn two_in_a_row_merge_and_any_difference_rules_it_out() {
        type Change = fn(&mut Model);
        let always: [(&str, Change); 5] = [
            ("ttl", |m| m.ttl -= 1),
            ("tos or congestion bits", |m| m.tos ^= 1),
            ("address", |m| m.host += 1),
            ("source port", |m| m.ports.0 += 1),
            ("destination port", |m| m.ports.1 += 1),
        ];
        let tcp: [(&str, Change); 17] = [
            ("gap", |m| m.sequence += 1),
            ("overlap", |m| m.sequence -= 1),
            ("repeat", |m| m.sequence -= 100),
            ("acknowledgement", |m| m.acknowledgement += 1),
            ("window", |m| m.window += 1),
            ("urgent pointer", |m| m.urgent += 1),
            ("SYN", |m| m.flags |= 0x02),
            ("RST", |m| m.flags |= 0x04),
            ("no ACK", |m| m.flags ^= 0x10),
            ("URG", |m| m.flags |= 0x20),
            ("ECE", |m| m.flags |= 0x40),
            ("CWR", |m| m.flags |= 0x80),
            ("AE", |m| m.reserved ^= 1),
            ("options", |m| m.options = vec![1; 8]),
            ("more options", |m| m.options.extend([1; 4])),
            ("protocol", |m| m.protocol = Protocol::Udp),
            ("window and flags", |m| (m.window, m.flags) = (0, 0x18)),
        ];
        for model in plain() {
            assert_eq!(writes_in(model.layer(), &pair(&model, |_| {})), 1);
            for (what, change) in always {
                assert_eq!(writes_in(model.layer(), &pair(&model, change)), 2, "{what} {model:?}");
            }
            if let Some(tags) = &model.ethernet {
                for other in [[&tags[..], &[7]].concat(), tags.iter().map(|tag| tag ^ 0x2000).collect()] {
                    let same = other == *tags;
                    let writes = writes_in(model.layer(), &pair(&model, |m| m.ethernet = Some(other.clone())));
                    assert_eq!(writes, if same { 1 } else { 2 }, "{other:?} {model:?}");
                }
            }
            for (what, change) in tcp.into_iter().filter(|_| model.protocol == Protocol::Tcp) {
                assert_eq!(writes_in(model.layer(), &pair(&model, change)), 2, "{what} {model:?}");
            }
        }
    }

    #[test]
    fn differing_ip_headers_rule_it_out() {
        for model in [Model::tcp6(), Model::udp6()] {
            for wire in [
                Wire::V6 { extensions: vec![], label: 1 },
                Wire::v6(vec![Extension::new(60, 0)]),
                Wire::v6(vec![Extension::new(0, 0), Extension::new(60, 0)]),
            ] {
                assert_eq!(writes_of(&pair(&model, |m| m.wire = wire)), 2);
            }
        }
        let v4 = |identification, flags| Wire::V4 { options: vec![], identification, flags };
        for (first, second, writes) in [
            (v4(9, 0x4000), v4(10, 0x4000), 1),
            (v4(9, 0), v4(10, 0), 1),
            (v4(0xFFFF, 0), v4(0, 0), 1),
            (v4(9, 0x4000), v4(9, 0x4000), 1), // atomic: it means nothing
            (v4(9, 0), v4(9, 0), 2),
            (v4(9, 0x4000), v4(11, 0x4000), 2),
            (v4(9, 0x4000), v4(8, 0x4000), 2),
            (v4(9, 0x4000), v4(10, 0), 2),
            (v4(9, 0), v4(10, 0x4000), 2),
            (v4(9, 0x8000), v4(10, 0x8000), 2),
            (v4(9, 0x2000), v4(10, 0x2000), 2),
            (v4(9, 0x0001), v4(10, 0x0001), 2),
        ] {
            for model in [Model::tcp4(), Model::udp4()] {
                let model = Model { wire: first.clone(), ..model };
                assert_eq!(writes_of(&pair(&model, |m| m.wire = second.clone())), writes, "{first:?} {second:?}");
            }
        }
        let options = |identification| Wire::V4 { options: vec![1; 4], identification, flags: 0 };
        let model = Model { wire: options(1), ..Model::tcp4() };
        assert_eq!(writes_of(&pair(&model, |m| m.wire = options(2))), 2, "options, which GRO leaves alone");
    }

    #[test]
    fn identifications_are_fixed_throughout_or_not_at_all() {
        let packets = |identifications: &[u16]| {
            let mut model = Model::tcp4();
            let mut packets = vec![];
            for &identification in identifications {
                model.wire = Wire::V4 { options: vec![], identification, flags: 0x4000 };
                packets.push(model.packet(50));
                model.advance(50);
            }
            full(packets)
        };
        assert_eq!(writes_of(&packets(&[0, 0, 0, 0])), 1);
        assert_eq!(writes_of(&packets(&[5, 6, 7, 8])), 1);
        assert_eq!(writes_of(&packets(&[5, 5, 6, 7])), 2);
        assert_eq!(writes_of(&packets(&[5, 6, 5, 6])), 2);
        assert_eq!(writes_of(&packets(&[5, 6, 6, 6])), 2);
    }

    #[test]
    fn a_wrong_checksum_is_never_made_right() {
        for model in plain() {
            let transport = Transport::find(model.layer(), &model.packet(100)).unwrap();
            let at = transport.start + transport.protocol.checksum_offset();
            for (spoiled, place) in [(0, at), (1, at), (0, transport.payload), (1, transport.payload)] {
                let mut packets = pair(&model, |_| {});
                packets[spoiled].0[place] ^= 0x55;
                assert_eq!(writes_in(model.layer(), &packets), 2, "{spoiled} {place}");
            }
            // Partial, and not of this pseudo-header.
            let mut packets = partial(model.segments(&bytes(200, 1), 100, Checksum::Partial));
            assert_eq!(writes_in(model.layer(), &packets), 1);
            packets[1].0[at] ^= 0x55;
            assert_eq!(writes_in(model.layer(), &packets), 2);
            if transport.version == Version::V4 {
                let mut packets = pair(&model, |_| {});
                packets[1].0[transport.network + 10] ^= 0x55;
                assert_eq!(writes_in(model.layer(), &packets), 2, "the IP header's");
                packets.swap(0, 1);
                assert_eq!(writes_in(model.layer(), &packets), 2);
            }
        }
        // No checksum at all.
        let mut packets = pair(&Model::udp4(), |_| {});
        packets.iter_mut().for_each(|(packet, _)| packet[26..28].fill(0));
        assert_eq!(writes_of(&packets), 2);
    }

    #[test]
    fn partial_and_complete_ones_merge() {
        let model = Model::tcp4();
        let mut packets = full(model.segments(&bytes(300, 1), 100, Checksum::Full));
        packets[1] = (model.segments(&bytes(300, 1), 100, Checksum::Partial).remove(1), true);
        assert_eq!(writes_of(&packets), 1);
        packets.reverse();
        assert_eq!(writes_of(&packets), 3, "from the end to the beginning");
    }

    #[test]
    fn the_end_of_a_run_ends_it() {
        let flags = |flags: [u8; 4]| {
            let mut model = Model::tcp4();
            let mut packets = vec![];
            for flags in flags {
                model.flags = 0x10 | flags;
                packets.push(model.packet(50));
                model.advance(50);
            }
            merge(Limits::default(), &full(packets))
                .iter()
                .map(|(frame, _)| (frame.len() - 40) / 50)
                .collect::<Vec<_>>()
        };
        assert_eq!(flags([0, 0, 0, 0]), [4]);
        assert_eq!(flags([0, 0, 8, 0]), [3, 1]);
        assert_eq!(flags([8, 0, 0, 0]), [1, 3]);
        assert_eq!(flags([0, 1, 0, 0]), [2, 2]);
        assert_eq!(flags([0x80, 0, 0, 8]), [4], "CWR on the first");
        assert_eq!(flags([0, 0, 0x80, 0]), [2, 2]);
        assert_eq!(flags([0x80, 0x80, 0x80, 0x80]), [1, 1, 1, 1]);

        let lengths = |lengths: &[usize]| {
            let mut model = Model::udp6();
            let mut packets = vec![];
            for &length in lengths {
                packets.push(model.packet(length));
                model.advance(length);
            }
            merge(Limits::default(), &full(packets)).iter().map(|(frame, _)| frame.len() - 48).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[50, 50, 1, 50]), [101, 50]);
        assert_eq!(lengths(&[50, 51, 51]), [50, 102]);
        assert_eq!(lengths(&[50, 0, 50, 50]), [50, 0, 100]);
    }

    #[test]
    fn limits_hold() {
        let input = |count: usize, size: usize| {
            partial(Model::udp4().segments(&bytes(count * size, 1), size, Checksum::Partial))
        };
        let count = |limits, packets: &[(Vec<u8>, bool)]| merge(limits, packets).len();
        let limits = |segments, flows, udp| Limits { segments, flows, udp };
        assert_eq!(count(limits(64, 8, true), &input(64, 10)), 1);
        assert_eq!(count(limits(64, 8, true), &input(65, 10)), 2);
        assert_eq!(count(limits(1, 8, true), &input(5, 10)), 5);
        assert_eq!(count(limits(64, 0, true), &input(5, 10)), 5);
        assert_eq!(count(limits(64, 8, false), &input(5, 10)), 5);
        // 65,535 with the headers, and not one more.
        let mut packets = input(7, 9358);
        packets.push((
            Model { wire: Wire::V4 { options: vec![], identification: 5, flags: 0x4000 }, ..Model::udp4() }.packet(1),
            false,
        ));
        let writes = merge(Limits::default(), &packets);
        assert_eq!(writes.iter().map(|(frame, _)| frame.len()).collect::<Vec<_>>(), [65_535,]);
        let mut model = Model::udp4();
        (0..7).for_each(|_| model.advance(0));
        packets[7] = (model.packet(2), false);
        let writes = merge(Limits::default(), &packets);
        assert_eq!(writes.iter().map(|(frame, _)| frame.len()).collect::<Vec<_>>(), [65_534, 30]);
    }

    #[test]
    fn flows_side_by_side_merge_each_for_itself() {
        let mut models: Vec<_> = (0..8).map(|n| Model { ports: (1, n), ..Model::tcp4() }).collect();
        let mut packets = vec![];
        for _ in 0..8 {
            for model in &mut models {
                packets.push(model.packet(100));
                model.advance(100);
            }
        }
        let lengths: Vec<_> = merge(Limits::default(), &full(packets.clone())).iter().map(|(f, _)| f.len()).collect();
        assert_eq!(lengths, [840; 8]);
        // One flow more than there is room for: the oldest goes, and comes back in vain.
        let few = merge(Limits { flows: 7, ..Limits::default() }, &full(packets));
        assert_eq!(few.len(), 64);
    }

    #[test]
    fn what_has_no_ports_is_not_overtaken() {
        let run = |between: Vec<u8>| {
            let mut packets = pair(&Model::udp4(), |_| {});
            packets.insert(1, (between, false));
            merge(Limits::default(), &packets).len()
        };
        let fragment = Wire::V4 { options: vec![], identification: 1, flags: 0x2000 };
        let fragment = Model { wire: fragment, ..Model::udp4() };
        assert_eq!(run(fragment.packet(9)), 3);
        assert_eq!(run(Model { host: 2, ..fragment }.packet(9)), 2, "between other addresses");
        assert_eq!(run(Model::udp6().packet(9)), 2, "of another version");
        assert_eq!(run(Model { ports: (9, 9), ..Model::udp4() }.packet(9)), 2, "another flow");
        assert_eq!(run(Model::udp4().packet(0)), 3, "the same flow");
    }

    #[test]
    fn what_is_not_ip_is_not_overtaken_and_stays_as_it_is() {
        let framed = Model { ethernet: Some(vec![7]), ..Model::udp4() };
        let arp = [vec![0xFF; 12], vec![0x08, 0x06], vec![1; 28]].concat();
        let mut packets = pair(&framed, |_| {});
        packets.insert(1, (arp.clone(), false));
        let writes = merge_in(Layer::Ethernet, Limits::default(), &packets);
        assert_eq!(writes.len(), 3);
        assert_eq!(writes[1], (arp.clone(), Header::default()));
        let mut merger = Merger::new(Layer::Ethernet, Limits::default(), 1);
        assert_eq!(merger.push(&arp, 0..arp.len(), true), Err(Malformed), "there is no checksum to be partial");
        assert_eq!(merger.push(&arp, 0..13, false), Err(Malformed));
        assert_eq!(merger.push(&arp, 0..14, false), Ok(()));
    }

    #[test]
    fn a_lone_partial_packet_says_where_its_checksum_is() {
        for model in plain() {
            let mut packet = model.build(b"alone", Checksum::Partial);
            let header = Header { checksum: model.gso(0).checksum, ..Header::default() };
            assert_eq!(
                merge_in(model.layer(), Limits::default(), &[(packet.clone(), true)]),
                [(packet.clone(), header)]
            );
            packet.extend([9; 7]);
            let writes = merge_in(model.layer(), Limits::default(), &[(packet.clone(), true)]);
            assert_eq!(writes, [(packet[..packet.len() - 7].to_vec(), header)], "nothing behind it is summed");
            let writes = merge_in(model.layer(), Limits::default(), &[(packet.clone(), false)]);
            assert_eq!(writes, [(packet, Header::default())], "as it came");
        }
    }

    #[test]
    fn a_bit_that_cannot_be_is_an_error() {
        let mut merger = Merger::new(Layer::Ip, Limits::default(), 1);
        let fragment = Model { wire: Wire::V4 { options: vec![], identification: 1, flags: 0x2000 }, ..Model::udp4() };
        for packet in [fragment.packet(9), vec![0x45; 19], vec![]] {
            assert_eq!(merger.push(&packet, 0..packet.len(), true), Err(Malformed));
        }
        let packet = fragment.packet(9);
        assert_eq!(merger.push(&packet, 0..packet.len() + 1, false), Err(Malformed));
        assert_eq!(merger.push(&packet, 0..packet.len(), false), Ok(()));
        assert_eq!(merger.writes().count(), 1);
        merger.clear();
        assert_eq!(merger.writes().count(), 0);
    }

    /// One packet of a random stream: whose it is, how long, what is odd about it.
    type Event = (usize, usize, Option<u8>, bool);

    /// The packets of a few flows, most of them the next one of their flow.
    fn stream(models: &mut [Model], events: &[Event]) -> Vec<(Vec<u8>, bool)> {
        let mut packets = vec![];
        for &(flow, length, odd, partial) in events {
            let count = models.len();
            let model = &mut models[flow % count];
            let mut one = model.clone();
            let oddity = odd.map(|odd| spoil(&mut one, model, odd));
            let checksum = if partial { Checksum::Partial } else { Checksum::Full };
            let mut packet = one.build(&bytes(length, packets.len() as u32), checksum);
            if let Some(Oddity::Flip(seed)) = oddity {
                let at = usize::from(seed) % packet.len();
                packet[at] ^= 1 << (seed % 8);
            }
            if let Some(Oddity::Pad) = oddity {
                packet.extend([0xAA; 5]);
            }
            packets.push((packet, partial));
            model.advance(length);
        }
        packets
    }

    enum Oddity {
        InHeaders,
        Flip(u8),
        Pad,
    }

    fn spoil(one: &mut Model, flow: &mut Model, odd: u8) -> Oddity {
        match odd % 24 {
            0 | 1 => one.flags |= 0x08,
            2 => one.flags |= 0x01,
            3 => one.flags |= 0x80,
            4 => one.flags |= 1 << (odd % 7),
            5 => one.tos ^= 3,
            6 => one.ttl ^= 1,
            7 => one.sequence = one.sequence.wrapping_add(u32::from(odd)),
            8 => flow.acknowledgement ^= 1,
            9 => flow.window ^= 1,
            10 => flow.options = vec![odd; 12],
            11 => one.options = vec![],
            12 => one.urgent ^= 1,
            13 => one.reserved ^= 1,
            14..=17 => match &mut one.wire {
                Wire::V4 { identification, flags, options } => match odd % 24 {
                    14 => *identification = identification.wrapping_sub(1),
                    15 => *flags ^= 0x4000,
                    16 => *flags |= if odd > 100 { 0x2000 } else { 0x0007 },
                    _ => *options = vec![1; 4],
                },
                Wire::V6 { extensions, label } => match odd % 24 {
                    14 => *label ^= 1,
                    15 => *extensions = vec![Extension::new(60, 0)],
                    16 => *extensions = vec![Extension::new(44, 0)],
                    _ => *extensions = vec![Extension::new(50, 0)],
                },
            },
            18 => return Oddity::Pad,
            _ => return Oddity::Flip(odd),
        }
        Oddity::InHeaders
    }

    /// Addresses, and protocol and ports.
    type Flow = (Vec<u8>, Option<(u8, u32)>);

    /// What order is kept for, by the letter: addresses, and the ports where they can be told; `None` of what is not IP.
    fn flow_of(layer: Layer, frame: &[u8]) -> Option<Flow> {
        layer.network(frame).unwrap()?;
        let packet = &frame[network(layer, frame)..];
        let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
        let ports =
            Transport::find(Layer::Ip, packet).map(|found| (found.protocol.number(), u32_at(packet, found.start)));
        Some((packet[addresses].to_vec(), ports))
    }

    /// Identifications of atomic datagrams mean nothing; whether the sum over the header is right does.
    fn without_atomic_identification(layer: Layer, mut frame: Vec<u8>) -> Vec<u8> {
        if layer.network(&frame).unwrap().is_none() {
            return frame;
        }
        let at = network(layer, &frame);
        let packet = &mut frame[at..];
        let header = usize::from(packet[0] & 15) * 4;
        if packet[0] >> 4 == 4 && u16_at(packet, 6) == 0x4000 {
            let sum = slow_sum(&packet[..header]);
            put_u16(packet, 10, sum);
            put_u16(packet, 4, 0);
        }
        frame
    }

    fn check_stream(layer: Layer, limits: Limits, input: &[(Vec<u8>, bool)]) -> Result<(), TestCaseError> {
        let taken = |(frame, partial): &&(Vec<u8>, bool)| {
            layer.network(frame).is_ok() && (!partial || Transport::find(layer, frame).is_some())
        };
        let plain = |frame| without_atomic_identification(layer, frame);
        let sent = input.iter().filter(taken).map(|(frame, partial)| plain(completed(layer, frame, *partial)));
        let sent: Vec<_> = sent.collect();
        let writes = merge_in(layer, limits, input);
        let got: Vec<_> = writes.iter().flat_map(|(frame, header)| cut(layer, frame, header)).map(plain).collect();
        prop_assert_eq!(got.len(), sent.len());
        for flow in sent.iter().map(|frame| flow_of(layer, frame)) {
            // What is not IP keeps its place in every flow.
            let of_flow = |frame: &&Vec<u8>| match (&flow, flow_of(layer, frame)) {
                (Some((addresses, ports)), Some(other)) => {
                    other.0 == *addresses && (other.1.is_none() || other.1 == *ports)
                }
                (_, None) => true,
                (None, Some(_)) => false,
            };
            let (sent, got): (Vec<_>, Vec<_>) =
                (sent.iter().filter(of_flow).collect(), got.iter().filter(of_flow).collect());
            prop_assert_eq!(sent, got);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn what_was_cut_comes_back(model in model(), count in 2usize..60, size in 1usize..1000, last in any::<usize>(), part in any::<bool>()) {
            let mut model = Model { flags: model.flags & !(flag::SYN | flag::RST | flag::URG), ..model };
            if let Wire::V4 { options, .. } = &mut model.wire {
                options.clear();
            }
            let payload = bytes((count - 1) * size + 1 + last % size, 1);
            let mut frame = model.build(&payload, Checksum::Partial);
            let (checksums, checksum) = match part {
                true => (super::super::split::Checksums::Partial, Checksum::Partial),
                false => (super::super::split::Checksums::Full, Checksum::Full),
            };
            let taken = super::super::split::take(model.layer(), &model.gso(size), &mut frame, checksums, 65_535).unwrap();
            let super::super::split::Taken::Run(plan) = taken else { panic!() };
            let mut room = [0; 2000];
            let packets: Vec<_> = (0..plan.count()).map(|index| {
                let length = plan.write(index, &frame, &mut room).unwrap();
                (room[..length].to_vec(), part)
            }).collect();
            prop_assert_eq!(&packets.iter().map(|(p, _)| p.clone()).collect::<Vec<_>>(), &model.segments(&payload, size, checksum));
            prop_assert_eq!(merge_in(model.layer(), Limits::default(), &packets), [(frame, model.gso(size))]);
        }

        #[test]
        fn nothing_is_lost_changed_or_overtaken(
            models in proptest::collection::vec((0usize..5, 0usize..3), 1..5),
            ethernet: bool,
            events in proptest::collection::vec(
                (0usize..6, prop_oneof![4 => Just(40usize), 1 => 0usize..60], proptest::option::weighted(0.2, any::<u8>()), any::<bool>()),
                0..80,
            ),
            flows in 0usize..5,
            segments in 1usize..70,
        ) {
            let layer = if ethernet { Layer::Ethernet } else { Layer::Ip };
            let mut models: Vec<_> = models.iter().enumerate().map(|(n, &(model, tags))| {
                let ethernet = ethernet.then(|| vec![7; tags]);
                Model { ethernet, ports: (n as u16, 5), ..basic()[model].clone() }
            }).collect();
            check_stream(layer, Limits { segments, flows, udp: true }, &stream(&mut models, &events))?;
        }

        #[test]
        fn nothing_panics(
            packets in proptest::collection::vec((junk(), any::<bool>(), 1usize..3), 0..20),
            ethernet: bool,
        ) {
            let layer = if ethernet { Layer::Ethernet } else { Layer::Ip };
            let packets: Vec<_> = packets
                .into_iter()
                .flat_map(|(packet, partial, times)| vec![(packet, partial); times])
                .collect();
            check_stream(layer, Limits::default(), &packets)?;
        }
    }

    /// The property above would hold of a merger that never merges.
    #[test]
    fn streams_do_merge() {
        let mut models = basic();
        models.iter_mut().enumerate().for_each(|(n, model)| model.ports.0 = n as u16);
        let events: Vec<Event> = (0..60).map(|n| (n, 40, None, n % 2 == 0)).collect();
        assert_eq!(merge(Limits::default(), &stream(&mut models, &events)).len(), 5);
    }
}

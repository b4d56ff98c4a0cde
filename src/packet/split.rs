//! From what the interface gives to what a datagram carries: one read of up to 64 KB becomes the packets it stands for.
//!
//! Cutting is planned from the headers alone ([`take`] gives a [`Plan`]); each segment is then made by itself, at its
//! final place. So the caller says where bytes go and when they are copied, if they are copied at all.

use super::checksum::{self, Sum};
use super::ip::{self, Version};
use super::layer::Layer;
use super::transport::{Protocol, Transport};
use super::virtio::{Gso, Header, Kind, Place};
use super::{Batch, put_u16, u16_at, u32_at};
use std::ops::Range;

/// What the ends have agreed on about the TCP and UDP checksums of inner packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They may cross the link with the pseudo-header's sum alone: the link protects every byte better than they do,
    /// and the far kernel completes them where a packet leaves it.
    Partial,
    /// They are completed here.
    Full,
}

/// A frame read that nothing can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is no frame of its layer, or not what its virtio header says.
    Malformed,
    /// A frame of it is longer than the limit.
    TooBig,
}

/// What a frame read comes to.
#[derive(Clone, Debug)]
pub enum Taken {
    /// It is one frame and ready, as it lies there.
    Whole {
        /// Whether its checksum is still partial.
        partial: bool,
    },
    /// It is to be cut by the plan.
    Run(Plan),
}

/// Looks at a frame read, and completes its checksum in place if it is a single packet that needs it.
///
/// `limit` is the most bytes a frame may have that is not to be cut any more. A checksum stays partial only if that is agreed and
/// [`Transport::find`] finds it where `header` says, for so will the far end. A packet whose checksum is not the
/// kernel's to complete passes as it came.
///
/// # Errors
/// As [`Refused`] says.
pub fn take(
    layer: Layer,
    header: &Header,
    frame: &mut [u8],
    checksums: Checksums,
    limit: usize,
) -> Result<Taken, Refused> {
    let network = layer.network(frame).map_err(|_| Refused::Malformed)?;
    let found = network.and_then(|network| Transport::behind(network, frame));
    if let Some(gso) = header.gso {
        let found = found.ok_or(Refused::Malformed)?;
        return Plan::new(gso, header.checksum, found, frame, checksums, limit).map(Taken::Run);
    }
    if frame.len() > limit {
        return Err(Refused::TooBig);
    }
    let Some(place) = header.checksum else { return Ok(Taken::Whole { partial: false }) };
    match found.filter(|found| found.place() == place) {
        Some(found) if found.end == frame.len() && checksums == Checksums::Partial => {
            return Ok(Taken::Whole { partial: true });
        }
        Some(found) => found.complete(frame),
        None => complete(frame, place)?,
    }
    Ok(Taken::Whole { partial: false })
}

/// What a network card does that knows no protocol: an inner packet's checksum, say, inside a tunnel inside this one.
fn complete(frame: &mut [u8], place: Place) -> Result<(), Refused> {
    let covered = frame.get_mut(place.start.into()..).ok_or(Refused::Malformed)?;
    checksum::complete(covered, place.offset.into()).then_some(()).ok_or(Refused::Malformed)
}

/// How a frame is cut: everything that follows from its headers, so that segments can be made in any order, and from
/// any copy of the headers, be it one already cut.
#[derive(Clone, Debug)]
pub struct Plan {
    found: Transport,
    checksums: Checksums,
    /// Payload bytes of every segment but the last.
    size: usize,
    count: usize,
    /// The sum over the IPv4 header less what differs between segments.
    ip_sum: Sum,
    identification: u16,
    /// The sum over the pseudo-header less the length.
    pseudo: Sum,
    sequence: u32,
    flags: u8,
}

/// TCP flags (RFC 9293 §3.1), as they stand in byte 13 of the header.
pub(super) mod flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const URG: u8 = 0x20;
    pub const CWR: u8 = 0x80;
}

impl Plan {
    fn new(
        gso: Gso,
        place: Option<Place>,
        found: Transport,
        frame: &[u8],
        checksums: Checksums,
        limit: usize,
    ) -> Result<Self, Refused> {
        let kind = match (found.protocol, found.version) {
            (Protocol::Tcp, Version::V4) => Kind::Tcp4,
            (Protocol::Tcp, Version::V6) => Kind::Tcp6,
            (Protocol::Udp, _) => Kind::Udp,
        };
        if kind != gso.kind || gso.size == 0 {
            return Err(Refused::Malformed);
        }
        let pseudo = match place {
            // The kernel's own sum, less the length of the whole: a routing header may have made it of other addresses.
            Some(place) if place == found.place() => Sum::word(found.stored(frame)) - Sum::word(found.length()),
            Some(_) => return Err(Refused::Malformed),
            // Some drivers join packets whose checksums they have seen to be right.
            None => found.pseudo(frame),
        };
        let size = usize::from(gso.size);
        let payload = found.end - found.payload;
        if found.payload + payload.min(size) > limit {
            return Err(Refused::TooBig);
        }
        let (ip_sum, identification) = match found.version {
            Version::V4 => ipv4_sum(&frame[found.network..found.start]),
            Version::V6 => (Sum::default(), 0),
        };
        let (sequence, flags) = match found.protocol {
            Protocol::Tcp => (u32_at(frame, found.start + 4), frame[found.start + 13]),
            Protocol::Udp => (0, 0),
        };
        let count = payload.div_ceil(size).max(1);
        Ok(Plan { found, checksums, size, count, ip_sum, identification, pseudo, sequence, flags })
    }

    /// How many segments there are: at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of all headers of each segment.
    pub fn header_length(&self) -> usize {
        self.found.payload
    }

    /// Where the payload of segment `index` lies in the frame; empty if there is no such segment.
    pub fn payload(&self, index: usize) -> Range<usize> {
        // No index beyond the last is more than the end, and none overflows.
        let at = |index: usize| (self.found.payload + index.min(self.count) * self.size).min(self.found.end);
        at(index)..at(index.saturating_add(1))
    }

    /// Bytes of segment `index`, a frame. All but the last are of one length.
    pub fn length(&self, index: usize) -> usize {
        self.header_length() + self.payload(index).len()
    }

    /// Whether the segments' checksums stay partial.
    pub fn is_partial(&self) -> bool {
        self.checksums == Checksums::Partial
    }

    /// Makes the frame's headers, or those of any segment, into those of segment `index`, with its checksum partial.
    ///
    /// Nothing happens unless there is such a segment, and [`header_length`](Self::header_length) bytes.
    pub fn patch(&self, index: usize, header: &mut [u8]) {
        if index >= self.count {
            return;
        }
        let headers = header.get_mut(self.found.network..self.header_length());
        let Some((ip, inner)) =
            headers.and_then(|headers| headers.split_at_mut_checked(self.found.start - self.found.network))
        else {
            return;
        };
        let length = self.length(index) - self.found.network;
        match self.found.version {
            Version::V4 => self.patch_ipv4(index, length as u16, ip),
            Version::V6 => put_u16(ip, 4, (length - ip::V6_HEADER) as u16),
        }
        let inner_length = (length - ip.len()) as u16;
        match self.found.protocol {
            Protocol::Tcp => self.patch_tcp(index, inner),
            Protocol::Udp => put_u16(inner, 4, inner_length),
        }
        let sum = self.pseudo + Sum::word(inner_length);
        put_u16(inner, self.found.protocol.checksum_offset(), sum.partial());
    }

    fn patch_ipv4(&self, index: usize, length: u16, ip: &mut [u8]) {
        // Each segment is a datagram of its own, so it has an identification of its own.
        let identification = self.identification.wrapping_add(index as u16);
        put_u16(ip, 2, length);
        put_u16(ip, 4, identification);
        put_u16(ip, 10, (self.ip_sum + Sum::word(length) + Sum::word(identification)).complete());
    }

    /// CWR answers one congestion mark, so it goes once; FIN and PSH say something of the last byte.
    fn patch_tcp(&self, index: usize, tcp: &mut [u8]) {
        let sequence = self.sequence.wrapping_add((index * self.size) as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        let mut flags = self.flags;
        if index > 0 {
            flags &= !flag::CWR;
        }
        if index + 1 < self.count {
            flags &= !(flag::FIN | flag::PSH);
        }
        tcp[13] = flags;
    }

    /// Makes `packet`, which has the payload of segment `index` in place behind room for the headers, and any
    /// segment's headers in that room, into that segment.
    pub fn finish(&self, index: usize, packet: &mut [u8]) {
        self.patch(index, packet);
        if index < self.count
            && self.checksums == Checksums::Full
            && let Some(covered) = packet.get_mut(self.found.start..self.length(index))
        {
            checksum::complete(covered, self.found.protocol.checksum_offset());
        }
    }

    /// Writes segment `index` of `frame` to the beginning of `room` and gives its length.
    ///
    /// `None`, and nothing is written that counts, if there is no such segment, the room is too small, or the frame
    /// isn't the one that was planned for.
    pub fn write(&self, index: usize, frame: &[u8], room: &mut [u8]) -> Option<usize> {
        if index >= self.count {
            return None;
        }
        let packet = room.get_mut(..self.length(index))?;
        let (header, payload) = packet.split_at_mut_checked(self.header_length())?;
        header.copy_from_slice(frame.get(..header.len())?);
        payload.copy_from_slice(frame.get(self.payload(index))?);
        self.finish(index, packet);
        Some(packet.len())
    }

    /// Writes segments of `frame`, from the one numbered `next` on, into `batch` until it is full, each with `meta`.
    /// Gives the number of the next one to be written: [`count`](Self::count) when all are.
    ///
    /// A segment longer than the batch's rooms is left out; the limit given to [`take`] is there to see to that.
    pub fn fill<M: Clone>(&self, next: usize, frame: &[u8], batch: &mut Batch<M>, meta: &M) -> usize {
        for index in next..self.count {
            let Some(room) = batch.room() else { return index };
            if let Some(length) = self.write(index, frame, room) {
                batch.push(length, meta.clone());
            }
        }
        self.count
    }
}

/// The sum over an IPv4 header less length, identification and the checksum itself; and the identification.
fn ipv4_sum(header: &[u8]) -> (Sum, u16) {
    let word = |at| Sum::word(u16_at(header, at));
    (Sum::of(header) - word(2) - word(4) - word(10), u16_at(header, 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Layout;
    use crate::packet::testing::{Checksum, Extension, Model, Wire, bytes, cut, junk, model, slow_complete};
    use proptest::prelude::*;

    const ANY: usize = 65_535;

    fn plan(layer: Layer, header: &Header, frame: &mut [u8], checksums: Checksums) -> Plan {
        match take(layer, header, frame, checksums, ANY).unwrap() {
            Taken::Run(plan) => plan,
            Taken::Whole { .. } => panic!("not cut"),
        }
    }

    fn segments(plan: &Plan, frame: &[u8]) -> Vec<Vec<u8>> {
        let mut room = vec![0xEE; 70_000];
        (0..plan.count())
            .map(|index| {
                let length = plan.write(index, frame, &mut room).unwrap();
                room[..length].to_vec()
            })
            .collect()
    }

    /// A single packet, as it is afterwards, and whether it is partial.
    fn whole(layer: Layer, header: &Header, frame: &[u8], checksums: Checksums) -> Result<(Vec<u8>, bool), Refused> {
        let mut frame = frame.to_vec();
        match take(layer, header, &mut frame, checksums, ANY)? {
            Taken::Whole { partial } => Ok((frame, partial)),
            Taken::Run(_) => panic!("cut"),
        }
    }

    #[test]
    fn flags_go_where_they_belong() {
        let model = Model { flags: 0x99, ..Model::tcp4() };
        let mut frame = model.build(&bytes(2001, 1), Checksum::Partial);
        let plan = plan(model.layer(), &model.gso(1000), &mut frame, Checksums::Partial);
        let flags: Vec<_> = segments(&plan, &frame).iter().map(|segment| segment[33]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19]);
        let lengths: Vec<_> = (0..plan.count()).map(|index| plan.length(index)).collect();
        assert_eq!(lengths, [1040, 1040, 41], "a last segment of one byte");
    }

    #[test]
    fn a_partial_packet_stays_as_it_is_only_where_that_was_agreed() {
        for model in Model::each() {
            let layer = model.layer();
            let header = Header { gso: None, ..model.gso(0) };
            let (partial, full) = (model.build(b"odd", Checksum::Partial), model.build(b"odd", Checksum::Full));
            assert_eq!(whole(layer, &header, &partial, Checksums::Partial), Ok((partial.clone(), true)));
            assert_eq!(whole(layer, &header, &partial, Checksums::Full), Ok((full.clone(), false)));
            // What came without a checksum to complete never gets the bit, not even with one that could be partial.
            assert_eq!(whole(layer, &Header::default(), &full, Checksums::Partial), Ok((full, false)));
            assert_eq!(whole(layer, &Header::default(), &partial, Checksums::Partial), Ok((partial, false)));
        }
    }

    #[test]
    fn a_checksum_the_far_end_would_not_find_is_completed() {
        // An inner packet in a tunnel inside this one: the place is not this packet's.
        let inner = Model::tcp4().build(b"deep inside", Checksum::Partial);
        let outer = Model::udp4().build(&[&[0; 8][..], &inner].concat(), Checksum::Full);
        let header = Header { checksum: Some(Place { start: 28 + 8 + 20, offset: 16 }), ..Header::default() };
        let (packet, partial) = whole(Layer::Ip, &header, &outer, Checksums::Partial).unwrap();
        assert!(!partial);
        assert_eq!(packet[36..], Model::tcp4().build(b"deep inside", Checksum::Full));

        // A fragment, a protocol that is neither, and IPsec's header between: by the letter, and no bit.
        let v4 = |flags| Wire::V4 { options: vec![], identification: 1, flags };
        let mut icmp = Model::tcp4().build(b"ping", Checksum::Partial);
        icmp[9] = 1;
        for (packet, start) in [
            (Model { wire: v4(0x2000), ..Model::udp4() }.build(b"first", Checksum::Partial), 20),
            (Model { wire: v4(0x0001), ..Model::udp4() }.build(b"later", Checksum::Partial), 20),
            (icmp, 20),
            (Model { wire: Wire::v6(vec![Extension::new(44, 0)]), ..Model::udp4() }.build(b"x", Checksum::Partial), 48),
            (Model { wire: Wire::v6(vec![Extension::new(51, 0)]), ..Model::udp4() }.build(b"x", Checksum::Partial), 48),
        ] {
            let header = Header { checksum: Some(Place { start, offset: 6 }), ..Header::default() };
            let mut expected = packet.clone();
            slow_complete(&mut expected[start.into()..], 6);
            assert_eq!(whole(Layer::Ip, &header, &packet, Checksums::Partial), Ok((expected, false)), "{packet:02x?}");
        }
    }

    #[test]
    fn bytes_behind_a_packet_are_not_summed() {
        let model = Model::udp4();
        let mut padded = model.build(b"odd", Checksum::Partial);
        padded.extend([0xFF; 9]);
        let header = Header { gso: None, ..model.gso(0) };
        let (packet, partial) = whole(Layer::Ip, &header, &padded, Checksums::Partial).unwrap();
        assert!(!partial, "the far kernel would sum them");
        assert_eq!(packet[..31], model.build(b"odd", Checksum::Full));
    }

    #[test]
    fn a_frame_that_is_not_ip_passes_as_it_is() {
        let none = Header::default();
        for frame in [
            [vec![0xFF; 12], vec![0x08, 0x06], vec![1; 28]].concat(), // ARP
            [vec![1; 12], vec![0, 20, 0x42], vec![3; 40]].concat(),   // a spanning tree's, with its length for a type
            [vec![2; 12], vec![0x81, 0, 0]].concat(),                 // a tag cut short
            vec![9; 14],
        ] {
            assert_eq!(whole(Layer::Ethernet, &none, &frame, Checksums::Partial), Ok((frame.clone(), false)));
            assert_eq!(whole(Layer::Ip, &none, &frame, Checksums::Partial), Err(Refused::Malformed));
            let limit = frame.len() - 1;
            let longer = take(Layer::Ethernet, &none, &mut frame.clone(), Checksums::Partial, limit);
            assert_eq!(longer.err(), Some(Refused::TooBig));
            let gso = Model { ethernet: Some(vec![]), ..Model::tcp4() }.gso(9);
            let cut = take(Layer::Ethernet, &gso, &mut frame.clone(), Checksums::Partial, ANY);
            assert_eq!(cut.err(), Some(Refused::Malformed));
        }
        // What the kernel has left to a card to sum, behind a header of another kind, is summed by the letter.
        let inner = Model::udp4();
        let session = [vec![4; 12], vec![0x88, 0x64, 0x11, 0, 0, 1, 0, 33, 0, 0x21]].concat();
        let frame = [&session[..], &inner.build(b"odd", Checksum::Partial)].concat();
        let header = Header { checksum: Some(Place { start: 22 + 20, offset: 6 }), ..none };
        let full = [&session[..], &inner.build(b"odd", Checksum::Full)].concat();
        assert_eq!(whole(Layer::Ethernet, &header, &frame, Checksums::Partial), Ok((full, false)));
        assert_eq!(whole(Layer::Ethernet, &none, &[9; 13], Checksums::Partial), Err(Refused::Malformed));
    }

    #[test]
    fn a_header_that_does_not_fit_the_frame_is_refused() {
        let model = Model::tcp4();
        let frame = model.build(&bytes(3000, 1), Checksum::Partial);
        let good = model.gso(1000);
        let gso = |kind, size| Header { gso: Some(Gso { kind, ecn: false, size }), ..good };
        let place = |start, offset| Header { checksum: Some(Place { start, offset }), ..good };
        let lone = |start, offset| Header { gso: None, ..place(start, offset) };
        let refused = |header: &Header, frame: &[u8], limit| {
            take(Layer::Ip, header, &mut frame.to_vec(), Checksums::Full, limit).err()
        };
        let malformed = Some(Refused::Malformed);
        assert_eq!(refused(&good, &frame, 1040), None);
        assert_eq!(refused(&good, &frame, 1039), Some(Refused::TooBig));
        assert_eq!(refused(&Header::default(), &frame, 1040), Some(Refused::TooBig));
        assert_eq!(refused(&gso(Kind::Tcp6, 1000), &frame, ANY), malformed);
        assert_eq!(refused(&gso(Kind::Udp, 1000), &frame, ANY), malformed);
        assert_eq!(refused(&gso(Kind::Tcp4, 0), &frame, ANY), malformed);
        assert_eq!(refused(&place(20, 6), &frame, ANY), malformed);
        assert_eq!(refused(&place(24, 16), &frame, ANY), malformed);
        assert_eq!(refused(&good, &frame[..2000], ANY), malformed);
        assert_eq!(refused(&lone(3039, 0), &frame, ANY), malformed);
        assert_eq!(refused(&lone(u16::MAX, 0), &frame, ANY), malformed);
        assert_eq!(refused(&lone(0, u16::MAX), &frame, ANY), malformed);
        assert_eq!(refused(&Header::default(), &[], ANY), malformed);
    }

    #[test]
    fn a_frame_seen_to_be_right_is_cut_like_one_that_was_not_summed() {
        let model = Model::tcp6();
        let payload = bytes(5000, 1);
        let header = Header { checksum: None, ..model.gso(1300) };
        let mut frame = model.build(&payload, Checksum::Full);
        let plan = plan(model.layer(), &header, &mut frame, Checksums::Full);
        assert_eq!(segments(&plan, &frame), model.segments(&payload, 1300, Checksum::Full));
    }

    #[test]
    fn a_sum_over_other_addresses_is_kept() {
        // With a routing header the pseudo-header has the final destination, which only the kernel has looked up.
        let model = Model { wire: Wire::v6(vec![Extension::new(43, 2)]), ..Model::tcp4() };
        let mut frame = model.build(&bytes(100, 1), Checksum::Partial);
        let at = frame.len() - 100 - 4;
        let stored = Sum::word(u16_at(&frame, at)) + Sum::word(0x1234);
        put_u16(&mut frame, at, stored.partial());
        let plan = plan(model.layer(), &model.gso(60), &mut frame, Checksums::Partial);
        for (ours, theirs) in segments(&plan, &frame).iter().zip(model.segments(&bytes(100, 1), 60, Checksum::Partial))
        {
            assert_eq!(Sum::word(u16_at(ours, at)) - Sum::word(0x1234), Sum::word(u16_at(&theirs, at)));
        }
    }

    #[test]
    fn a_full_batch_is_gone_on_with() {
        let layout = Layout { header: 16, frame: 1100, tag: 16, slots: 4 };
        let model = Model::udp6();
        let payload = bytes(9001, 1);
        let mut frame = model.build(&payload, Checksum::Partial);
        let plan = plan(model.layer(), &model.gso(1000), &mut frame, Checksums::Partial);
        let mut batch = Batch::new(layout);
        let (mut next, mut got, mut rounds) = (0, vec![], 0);
        while next < plan.count() {
            next = plan.fill(next, &frame, &mut batch, &plan.is_partial());
            let ends: Vec<_> = batch.iter().map(|(datagram, _)| datagram.as_ptr_range()).collect();
            assert!(ends.windows(2).all(|pair| pair[0].end == pair[1].start), "one run");
            got.extend(batch.iter().map(|(datagram, _)| datagram[16..datagram.len() - 16].to_vec()));
            batch.clear();
            rounds += 1;
        }
        assert_eq!(rounds, 3);
        assert_eq!(got, model.segments(&payload, 1000, Checksum::Partial));
    }

    proptest! {
        #[test]
        fn cut_as_the_model_cuts(
            model in model(),
            length in prop_oneof![1usize..200, 1usize..65_000],
            size in prop_oneof![1usize..30, 500usize..9000],
            partial in any::<bool>(),
        ) {
            // Not more segments than a test can wait for.
            let length = length.min(size * 100).min(65_535 - model.header_length() + model.network());
            let (checksums, checksum) =
                if partial { (Checksums::Partial, Checksum::Partial) } else { (Checksums::Full, Checksum::Full) };
            let payload = bytes(length, 1);
            let mut frame = model.build(&payload, Checksum::Partial);
            let header = model.gso(size);
            let plan = plan(model.layer(), &header, &mut frame, checksums);
            let expected = model.segments(&payload, size, checksum);
            prop_assert_eq!(plan.count(), expected.len());
            prop_assert_eq!(segments(&plan, &frame), expected);
            if length > size {
                prop_assert_eq!(cut(model.layer(), &frame, &header), model.segments(&payload, size, Checksum::Full));
            }
        }

        /// Payloads read straight to their places; headers made from the neighbour's, in any order.
        #[test]
        fn cut_in_place(model in model(), length in 1usize..5000, size in 50usize..1500, backwards in any::<bool>()) {
            let payload = bytes(length, 1);
            let mut frame = model.build(&payload, Checksum::Partial);
            let plan = plan(model.layer(), &model.gso(size), &mut frame, Checksums::Full);
            let mut order: Vec<_> = (0..plan.count()).collect();
            if backwards {
                order.reverse();
            }
            let mut header = frame[..plan.header_length()].to_vec();
            let expected = model.segments(&payload, size, Checksum::Full);
            for index in order {
                let mut packet = [&header[..], &frame[plan.payload(index)]].concat();
                plan.finish(index, &mut packet);
                header = packet[..plan.header_length()].to_vec();
                prop_assert_eq!(&packet, &expected[index]);
            }
        }

        #[test]
        fn nothing_panics(
            mut frame in junk(),
            header: [u8; 10],
            ethernet: bool,
            sane in any::<bool>(),
            limit in 0usize..300,
            room in 0usize..300,
            index in prop_oneof![0usize..9, any::<usize>()],
        ) {
            let (mut header, layer) = (header, if ethernet { Layer::Ethernet } else { Layer::Ip });
            if sane {
                (header[0], header[1]) = (header[0] & 1, [0, 1, 4, 5][usize::from(header[1] & 3)]);
                header[2..].iter_mut().skip(1).step_by(2).for_each(|high| *high = 0);
                if let Some(found) = Transport::find(layer, &frame) {
                    header[6..8].copy_from_slice(&found.place().start.to_ne_bytes());
                    header[8..].copy_from_slice(&found.place().offset.to_ne_bytes());
                }
            }
            let Ok(header) = Header::parse(header) else { return Ok(()) };
            let Ok(Taken::Run(plan)) = take(layer, &header, &mut frame, Checksums::Full, limit) else { return Ok(()) };
            prop_assert!((0..plan.count()).all(|index| plan.length(index) <= limit));
            let mut room = vec![0; room];
            let written = plan.write(index, &frame, &mut room);
            prop_assert_eq!(written.is_some(), index < plan.count() && plan.length(index) <= room.len());
            plan.finish(index, &mut room);
            // Another frame than the one planned for.
            plan.write(0, &frame[..frame.len() / 2], &mut room);
        }
    }
}

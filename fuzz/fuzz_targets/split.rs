//! Any virtio header before any frame, IP or Ethernet: what is cut is the frame's payload whole, in segments that differ where they
//! must, with right checksums; what is not to be cut stays but for its checksum.
//!
//! Input: settings, virtio header, limit, frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline::packet::split::{Checksums, Plan, Refused, Taken, take};
use tieline::packet::transport::{Protocol, Transport};
use tieline::packet::virtio::{Gso, Header, Kind};
use tieline::packet::{Batch, Layer, Layout, ip::Version};
use tieline_fuzz::{Bytes, add, checksum_at, complete, is_zero, layer, mend, pseudo, put_u16, sum, u16_at};

const FULL: u8 = 1;
const MEND: u8 = 2;
const ETHERNET: u8 = 4;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let settings = input.u8();
    let (header, limit) = (input.array(), usize::from(input.u16()));
    let Ok(mut header) = Header::parse(header) else { return };
    let layer = layer(settings & ETHERNET != 0);
    let mut frame = input.0.to_vec();
    if settings & MEND != 0 {
        // Some longer than any input, where that does not make more segments than one can wait for.
        if header.gso.is_none_or(|gso| gso.size > 100) {
            frame.resize(frame.len() + usize::from(settings >> 3) * 2000, settings);
        }
        mend(layer, &mut frame, header.checksum.is_some());
        agree(layer, &mut header, &frame);
    }
    let checksums = if settings & FULL != 0 { Checksums::Full } else { Checksums::Partial };
    let original = frame.clone();
    match take(layer, &header, &mut frame, checksums, limit) {
        Ok(Taken::Run(plan)) => {
            assert_eq!(frame, original, "planning changes nothing");
            check_run(layer, &plan, &header, &frame, checksums, limit);
        }
        Ok(Taken::Whole { partial }) => {
            assert!(frame.len() <= limit);
            check_whole(layer, &header, &original, &frame, partial, checksums);
        }
        Err(Refused::TooBig) => assert!(frame.len() > limit),
        Err(Refused::Malformed) => assert_eq!(frame, original),
    }
});

/// Makes the virtio header say of the frame what the kernel would.
fn agree(layer: Layer, header: &mut Header, frame: &[u8]) {
    let Some(found) = Transport::find(layer, frame) else { return };
    header.checksum = header.checksum.map(|_| found.place());
    if let Some(gso) = &mut header.gso {
        gso.kind = match (found.protocol, found.version) {
            (Protocol::Tcp, Version::V4) => Kind::Tcp4,
            (Protocol::Tcp, Version::V6) => Kind::Tcp6,
            (Protocol::Udp, _) => Kind::Udp,
        };
    }
}

fn check_run(layer: Layer, plan: &Plan, header: &Header, frame: &[u8], checksums: Checksums, limit: usize) {
    let Some(gso) = header.gso else { panic!("nothing to cut by") };
    let whole = Transport::find(layer, frame).expect("something to cut");
    let segments = segments(plan, frame);
    assert_eq!(segments.len(), plan.count());
    assert_eq!(plan.is_partial(), checksums == Checksums::Partial);
    // The kernel's sum, where there is one, may be of addresses that are not in the packet.
    let pseudo = match header.checksum {
        Some(_) => add(whole.stored(frame), !whole.length()),
        None => pseudo(&frame[whole.network..], whole.protocol),
    };
    let mut payload: Vec<u8> = vec![];
    for (index, segment) in segments.iter().enumerate() {
        assert!(segment.len() <= limit);
        let found = Transport::find(layer, segment).expect("a segment is a packet");
        assert_eq!(found, Transport { end: segment.len(), ..whole });
        check_headers(index, segments.len(), gso, &whole, frame, segment);
        check_checksum(segment.clone(), &found, add(pseudo, found.length()), checksums);
        payload.extend(&segment[found.payload..]);
        if index + 1 < segments.len() {
            assert_eq!(payload.len(), (index + 1) * usize::from(gso.size), "all but the last are of one size");
        }
    }
    assert_eq!(payload, frame[whole.payload..whole.end]);
}

/// Cut into a batch that is too small, again and again.
fn segments(plan: &Plan, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut batch = Batch::new(Layout { header: 16, frame: plan.length(0), tag: 16, slots: 3 });
    let (mut next, mut segments) = (0, vec![]);
    while next < plan.count() {
        next = plan.fill(next, frame, &mut batch, &());
        segments.extend(batch.iter().map(|(datagram, ())| datagram[16..datagram.len() - 16].to_vec()));
        batch.clear();
    }
    segments
}

fn check_headers(index: usize, count: usize, gso: Gso, found: &Transport, frame: &[u8], segment: &[u8]) {
    let mut expected = frame[..found.payload].to_vec();
    let (network, start) = (found.network, found.start);
    match found.version {
        Version::V4 => {
            assert!(is_zero(sum(&segment[network..start])));
            put_u16(&mut expected, network + 2, (segment.len() - network) as u16);
            put_u16(&mut expected, network + 4, u16_at(frame, network + 4).wrapping_add(index as u16));
            put_u16(&mut expected, network + 10, u16_at(segment, network + 10));
        }
        Version::V6 => put_u16(&mut expected, network + 4, (segment.len() - network - 40) as u16),
    }
    match found.protocol {
        Protocol::Tcp => {
            let sequence = u32::from_be_bytes(frame[start + 4..start + 8].try_into().unwrap());
            let sequence = sequence.wrapping_add(index as u32 * u32::from(gso.size));
            expected[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
            // CWR on the first alone, FIN and PSH on the last alone.
            expected[start + 13] &= if index > 0 { !0x80 } else { !0 };
            expected[start + 13] &= if index + 1 < count { !0x09 } else { !0 };
        }
        Protocol::Udp => put_u16(&mut expected, start + 4, (segment.len() - start) as u16),
    }
    put_u16(&mut expected, checksum_at(found), found.stored(segment));
    assert_eq!(segment[..found.payload], expected);
}

fn check_checksum(mut segment: Vec<u8>, found: &Transport, pseudo: u16, checksums: Checksums) {
    if checksums == Checksums::Partial {
        assert!(is_zero(add(found.stored(&segment), !pseudo)));
        complete(&mut segment, found);
    }
    assert_ne!(found.stored(&segment), 0, "in UDP that would be none");
    assert!(is_zero(add(sum(&segment[found.start..]), pseudo)));
}

fn check_whole(layer: Layer, header: &Header, original: &[u8], frame: &[u8], partial: bool, checksums: Checksums) {
    let found = Transport::find(layer, original);
    if partial {
        assert_eq!(checksums, Checksums::Partial);
        assert_eq!(header.checksum, found.map(|found| found.place()));
    }
    let Some(place) = header.checksum.filter(|_| !partial) else { return assert_eq!(frame, original) };
    let (start, at) = (usize::from(place.start), usize::from(place.start) + usize::from(place.offset));
    let end = found.filter(|found| found.place() == place).map_or(frame.len(), |found| found.end);
    assert!(frame[..at] == original[..at] && frame[at + 2..] == original[at + 2..]);
    // At an odd place it is not a word of the sum.
    if place.offset % 2 == 0 {
        assert!(is_zero(add(sum(&frame[start..end]), u16_at(original, at))));
    }
}

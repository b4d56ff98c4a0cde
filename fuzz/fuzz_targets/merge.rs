//! Any packets in any order, bare or in Ethernet frames: what is written, cut again, is the same packets, in the same order within each flow.
//!
//! Input: limits, then packets, each either its own bytes or the next one of a flow, with something odd about it or not.
#![no_main]

use std::collections::BTreeSet;
use std::ops::Range;

use libfuzzer_sys::fuzz_target;
use tieline::packet::merge::{Limits, Merger};
use tieline::packet::split::{Checksums, Taken, take};
use tieline::packet::transport::{Protocol, Transport};
use tieline::packet::{Layer, virtio::Header};
use tieline_fuzz::{
    Bytes, add, addresses, checksum_at, complete, is_zero, layer, mend, mend_ip_checksum, network, pseudo,
};
use tieline_fuzz::{put_u16, sum, u16_at};

/// A packet and whether its checksum is said to be partial.
type Packet = (Vec<u8>, bool);

/// What order is kept for: addresses, and protocol and ports where they can be told. `None` of what is not IP.
type Flow<'a> = Option<(&'a [u8], Option<(u8, &'a [u8])>)>;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let [segments, flows] = input.array().map(usize::from);
    let layer = layer(segments >= 128);
    let limits = Limits { segments: segments % 128 % 80, flows: flows % 10, udp: flows < 128 };
    let packets = packets(layer, input);
    let taken = packets.iter().filter(|packet| is_taken(layer, packet));
    let sent: Vec<_> = taken.map(|packet| as_it_leaves(layer, packet)).collect();
    let got = written(layer, limits, &packets).into_iter().map(|frame| plain(layer, frame)).collect::<Vec<_>>();
    assert_eq!(got.len(), sent.len());
    let [sent, got] =
        [&sent, &got].map(|packets| packets.iter().map(|packet| (flow_of(layer, packet), packet)).collect::<Vec<_>>());
    for flow in sent.iter().map(|(flow, _)| *flow).collect::<BTreeSet<_>>() {
        // One without ports could be of any flow between its addresses, and what is not IP keeps its place in all.
        let of_flow = |(other, _): &&(Flow, _)| match (flow, *other) {
            (Some((addresses, ports)), Some(other)) => other.0 == addresses && (other.1.is_none() || other.1 == ports),
            (_, other) => other.is_none(),
        };
        assert!(sent.iter().filter(of_flow).eq(got.iter().filter(of_flow)));
    }
});

const RAW: u8 = 0x04;
const PARTIAL: u8 = 0x08;
const LONG: u8 = 0x10;
const CHANGED: u8 = 0x20;
const SPOILED: u8 = 0x40;
const AS_IT_IS: u8 = 0x80;

/// More would only be slow.
const MOST_BYTES: usize = 100_000;

fn packets(layer: Layer, mut input: Bytes<'_>) -> Vec<Packet> {
    let mut flows: [Vec<u8>; 4] = Default::default();
    let (mut packets, mut total) = (vec![], 0);
    while !input.is_empty() && total < MOST_BYTES {
        let what = input.u8();
        let (flow, partial) = (&mut flows[usize::from(what & 3)], what & PARTIAL != 0);
        if what & RAW != 0 {
            let length = input.u8();
            *flow = input.take(length.into()).to_vec();
        } else {
            advance(layer, flow);
        }
        if what & LONG != 0 {
            resize(layer, flow, input.u16().into());
        }
        if what & CHANGED != 0 {
            change(flow, input.array());
        }
        if what & AS_IT_IS == 0 {
            mend(layer, flow, partial);
        }
        let mut packet = flow.clone();
        if what & SPOILED != 0 {
            change(&mut packet, input.array());
        }
        total += packet.len();
        packets.push((packet, partial));
    }
    packets
}

/// Makes a packet the next one of its flow.
fn advance(layer: Layer, packet: &mut [u8]) {
    let Some(found) = Transport::find(layer, packet) else { return };
    let at = found.network;
    if packet[at] >> 4 == 4 {
        put_u16(packet, at + 4, u16_at(packet, at + 4).wrapping_add(1));
    }
    if let (Protocol::Tcp, Some(sequence)) = (found.protocol, packet[found.start + 4..].first_chunk_mut()) {
        let next = u32::from_be_bytes(*sequence).wrapping_add((found.end - found.payload) as u32);
        *sequence = next.to_be_bytes();
    }
}

/// Gives a packet another payload.
fn resize(layer: Layer, packet: &mut Vec<u8>, payload: usize) {
    if let Some(found) = Transport::find(layer, packet) {
        packet.resize(found.payload + payload, payload as u8);
    }
}

fn change(packet: &mut [u8], [at, bits]: [u8; 2]) {
    if let Some(byte) = packet.get_mut(usize::from(at)) {
        *byte ^= bits;
    }
}

fn is_taken(layer: Layer, (packet, partial): &Packet) -> bool {
    layer.network(packet).is_ok() && (!partial || Transport::find(layer, packet).is_some())
}

/// What would be written of the packets, each write cut as the kernel would, with complete checksums.
fn written(layer: Layer, limits: Limits, packets: &[Packet]) -> Vec<Vec<u8>> {
    let mut buffer: Vec<u8> = packets.iter().flat_map(|(packet, _)| packet).copied().collect();
    let mut merger = Merger::new(layer, limits, 4);
    let mut start = 0;
    for packet in packets {
        let range = start..start + packet.0.len();
        start = range.end;
        assert_eq!(merger.push(&buffer, range, packet.1).is_ok(), is_taken(layer, packet));
    }
    merger.finish(&mut buffer);
    let mut all = vec![];
    for write in merger.writes() {
        let parts: Vec<Range<usize>> = write.parts().collect();
        let mut frame: Vec<u8> = parts.iter().flat_map(|part| &buffer[part.clone()]).copied().collect();
        assert_eq!((parts.len(), frame.len()), (write.packets(), write.length()));
        assert_eq!(Header::parse(write.header().encode()), Ok(write.header()));
        assert!(write.packets() <= limits.segments.max(1));
        check_cwr(layer, &write.header(), &frame);
        let before = all.len();
        match take(layer, &write.header(), &mut frame, Checksums::Full, usize::MAX).expect("what is written can be cut")
        {
            Taken::Whole { .. } => all.push(frame),
            Taken::Run(plan) => {
                for index in 0..plan.count() {
                    let mut segment = vec![0; plan.length(index)];
                    plan.write(index, &frame, &mut segment).expect("there is such a segment");
                    all.push(segment);
                }
            }
        }
        assert_eq!(all.len() - before, write.packets());
    }
    all
}

/// The kernel is told of CWR, or it would repeat it.
fn check_cwr(layer: Layer, header: &Header, frame: &[u8]) {
    if let (Some(gso), Some(found)) = (header.gso, Transport::find(layer, frame)) {
        assert_eq!(gso.ecn, found.protocol == Protocol::Tcp && frame[found.start + 13] & 0x80 != 0);
    }
}

fn as_it_leaves(layer: Layer, (frame, partial): &Packet) -> Vec<u8> {
    let mut frame = frame.clone();
    if let (true, Some(found)) = (partial, Transport::find(layer, &frame)) {
        frame.truncate(found.end);
        complete(&mut frame, &found);
    }
    plain(layer, frame)
}

/// The frame without what says nothing: which form of zero a right checksum has, and an atomic datagram's identification.
fn plain(layer: Layer, mut frame: Vec<u8>) -> Vec<u8> {
    if layer.network(&frame).is_ok_and(|network| network.is_some()) {
        let packet = frame.split_off(network(layer, &frame));
        frame.extend(plain_packet(packet));
    }
    frame
}

fn plain_packet(mut packet: Vec<u8>) -> Vec<u8> {
    if let Some(found) = Transport::find(Layer::Ip, &packet)
        && (found.protocol == Protocol::Tcp || found.stored(&packet) != 0)
        && is_zero(add(sum(&packet[found.start..found.end]), add(pseudo(&packet, found.protocol), found.length())))
    {
        put_u16(&mut packet, checksum_at(&found), 0xFFFF);
        packet.push(1);
    }
    let header = usize::from(packet[0] & 15) * 4;
    if packet[0] >> 4 == 4 && is_zero(sum(&packet[..header])) {
        if u16_at(&packet, 6) == 0x4000 {
            put_u16(&mut packet, 4, 0);
        }
        mend_ip_checksum(&mut packet);
        packet.push(2);
    }
    packet
}

fn flow_of(layer: Layer, frame: &[u8]) -> Flow<'_> {
    layer.network(frame).ok()??;
    let packet = &frame[network(layer, frame)..];
    let ports = |found: Transport| (found.protocol.number(), &packet[found.start..found.start + 4]);
    Some((addresses(packet), Transport::find(Layer::Ip, packet).map(ports)))
}

//! What the fast path must never change: bytes, order, sizes and checksums, whatever was cut, joined or left to the kernel on
//! the way. Every scenario has two real ends; see tests/namespaces.rs for the link itself.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::thread;
use std::time::Duration;

use common::capture::{Capture, Packet};
use common::census::Census;
use common::ecn::{CE, ECT_0, Segment, ecn};
use common::flow::{datagram, flow};
use common::lab::{End, Lab, PATIENCE, Site, stream, transfer};
use common::nft;
use common::ping::Pinger;
use common::udp::RawUdp;
use common::wait_until;
use common::yard::{Wire, Yard, checksum_errors};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4Tos, Ipv6TClass, UdpGsoSegment};
use serde_json::Value;
use tieline::sys::netns::NetNs;

const MB: u64 = 1_000_000;

/// 1500 − 20 − 8 − 32
const MTU: usize = 1440;

scenario!(forwarded_packets_are_whole_and_their_checksums_right, 60, {
    forward(Wire::Plain, [&[], &[]]);
});

scenario!(
    /// Super-packets reach the link by forwarding, not only from its own end's sockets.
    forwarded_super_packets_are_cut_and_completed,
    60,
    {
        forward(Wire::Offloading, [&[], &[]]);
    }
);

scenario!(
    /// One end's device takes and gives no unfinished packet; the other's does.
    forwarded_packets_are_right_where_one_end_has_no_offloads,
    60,
    {
        forward(Wire::Offloading, [&BARE, &[]]);
        forward(Wire::Offloading, [&[], &BARE]);
    }
);

const BARE: [&str; 6] = ["--without", "vnet_hdr", "--without", "udp_segment", "--without", "udp_gro"];

/// Hosts behind both sites and the sites themselves, all talking at once. What leaves the link for a wire that helps with
/// nothing must be complete and fit it. `near` is the left host's wire; the right one's is always plain.
fn forward(near: Wire, arguments: [&[&'static str]; 2]) {
    let mut lab = Lab::new();
    let yards = [Yard::behind(&lab.left, 1, near), Yard::behind(&lab.right, 2, Wire::Plain)];
    for (n, site) in [&mut lab.left, &mut lab.right].into_iter().enumerate() {
        site.link = yards[1 - n].routes.clone();
        site.arguments = arguments[n].to_vec();
    }
    let (left_end, right_end) = lab.up();
    let before = dropped([&left_end, &right_end]);
    let plain = if near == Wire::Plain { &yards[..] } else { &yards[1..] };
    let captures: Vec<_> = plain.iter().map(|yard| Capture::start(&yard.network)).collect();
    let [near, far] = &yards;
    let hosts = [Host::of_site(&lab.left), Host::of_site(&lab.right), Host::of_yard(near), Host::of_yard(far)];
    let [left, right, near, far] = &hosts;
    thread::scope(|scope| {
        for (from, to) in [(left, far), (far, left), (right, near), (near, right), (near, far), (far, near)] {
            for family in [0, 1] {
                scope.spawn(move || everything(from, to, to.address[family]));
            }
        }
    });
    captures.into_iter().for_each(|capture| assert_in_order(&capture.finish()));
    // Most of what was lost was lost before it came to the link, where queues may be full. On the cable only a socket's buffer
    // can be, which for an ordinary user is small.
    for (from, to) in [(&left_end, &right_end), (&right_end, &left_end)] {
        let received = packets(to, "rx");
        let sent = packets(from, "tx"); // asked for later: hosts have something to say now and then
        println!("{} sent {sent} packets, {received} arrived", from.site.name);
        assert!(received <= sent && sent - received <= sent / 5, "{sent} packets sent, {received} arrived");
    }
    for host in &hosts {
        let errors = checksum_errors(host.network);
        assert!(errors.len() >= 4, "{errors:?}");
        assert!(errors.iter().all(|(_, count)| *count == 0), "{errors:?}");
    }
    assert_eq!(dropped([&left_end, &right_end]), before);
}

/// What both ends have dropped, by reason, once they are up: both knock at once, and of that some is left over.
fn dropped(ends: [&End<'_>; 2]) -> [Value; 2] {
    ends.map(|end| {
        end.wait_for_state("up");
        end.drops()
    })
}

fn packets(end: &End<'_>, direction: &str) -> u64 {
    end.status()["path"][direction]["packets"].as_u64().unwrap()
}

/// Someone who sends and receives.
struct Host<'a> {
    network: &'a NetNs,
    address: [IpAddr; 2],
}

impl<'a> Host<'a> {
    fn of_site(site: &'a Site) -> Self {
        Self { network: &site.network, address: site.inner }
    }

    fn of_yard(yard: &'a Yard) -> Self {
        Self { network: &yard.network, address: yard.address }
    }
}

/// TCP, UDP with and without fragments, and ICMP at once.
fn everything(from: &Host<'_>, to: &Host<'_>, address: IpAddr) {
    thread::scope(|scope| {
        scope.spawn(|| stream(from.network, to.network, address, 8 * MB, |_| {}));
        scope.spawn(|| assert_flow(from, to, address, 1..=1300, 600));
        scope.spawn(|| assert_flow(from, to, address, 2000..=9000, 60));
        scope.spawn(|| assert_answered(from.network, address));
    });
}

fn assert_flow(from: &Host<'_>, to: &Host<'_>, address: IpAddr, sizes: RangeInclusive<usize>, count: usize) {
    let arrived = flow(from.network, to.network, address, sizes.clone(), count);
    println!("{arrived} of {count} datagrams of {sizes:?} bytes to {address}");
    // Queues are full of TCP, and full queues drop; how much depends on how busy the machine is.
    assert!(arrived > count / 5, "{arrived} of {count} datagrams of {sizes:?} bytes to {address}");
}

fn assert_answered(network: &NetNs, address: IpAddr) {
    let ping = || {
        let mut pinger = Pinger::new(address).unwrap();
        (0..20).filter(|_| pinger.ping(Duration::from_secs(1)).unwrap().is_some()).count()
    };
    let answered = network.run(ping).unwrap();
    assert!(answered > 10, "{answered} of 20 pings to {address} answered");
}

fn assert_in_order(packets: &[Packet]) {
    let mut census = Census::default();
    for packet in packets {
        let start = &packet[..packet.len().min(100)];
        census.take(packet).unwrap_or_else(|wrong| panic!("{wrong} in {start:02x?} …, {} bytes", packet.len()));
    }
    println!("{} packets: {}", packets.len(), census.summary());
    assert!(census.longest <= MTU, "a packet of {} bytes", census.longest);
    for family in [0, 1] {
        assert!(census.tcp[family] > 1000, "{}", census.summary());
        assert!(census.udp[family] > 250, "{}", census.summary());
        assert!(census.icmp[family] > 10, "{}", census.summary());
        assert!(census.fragments[family] > 100 && census.reassembled[family] > 25, "{}", census.summary());
    }
}

scenario!(
    /// As a careful router has it: what connection tracking finds wrong, a checksum among others, goes no further.
    nothing_is_invalid_to_a_router_that_tracks_connections,
    60,
    {
        if nft::is_there() {
            // What is joined comes as an unfinished packet, which is not summed; what a bare end writes is.
            for right in [&[][..], &BARE] {
                track(right);
            }
        }
    }
);

const DROP_INVALID: &str = "
table inet careful {
    counter seen { }
    counter invalid { }
    chain forward {
        type filter hook forward priority 0
        ct state invalid counter name invalid drop
        counter name seen
    }
}";

fn track(arguments: &[&'static str]) {
    let mut lab = Lab::new();
    let far = Yard::behind(&lab.right, 2, Wire::Plain);
    (lab.left.link, lab.right.arguments) = (far.routes.clone(), arguments.to_vec());
    set(&lab.right.network, "netfilter/nf_conntrack_checksum", "1");
    nft::load(&lab.right.network, DROP_INVALID);
    let _ends = lab.up();
    let [left, host] = &[Host::of_site(&lab.left), Host::of_yard(&far)];
    thread::scope(|scope| {
        for (from, to) in [(left, host), (host, left)] {
            for address in to.address {
                scope.spawn(move || everything(from, to, address));
            }
        }
    });
    let counted = |name| nft::counted(&lab.right.network, name);
    println!("{} packets seen", counted("seen"));
    assert!(counted("seen") > 1000);
    assert_eq!(counted("invalid"), 0);
    // And it does look: one of a wrong checksum it finds.
    RawUdp::at(&lab.left).send_with_checksum(0xBAD, 9, SocketAddr::new(far.address[0], 9), b"not so");
    wait_until("one packet to be invalid", PATIENCE, || counted("invalid") == 1);
}

/// Writes a setting of a network, named as under `/proc/sys/net`.
fn set(network: &NetNs, name: &str, value: &str) {
    network.run(|| fs::write(format!("/proc/sys/net/{name}"), value)).unwrap().unwrap();
}

scenario!(
    /// A host behind one site marks some of its own packets as a congested router would. The other host says so to it, and it
    /// answers with CWR, super-packets among those that have it.
    congestion_marks_and_the_answer_to_them_come_through,
    60,
    {
        if nft::is_there() {
            for left in [&[][..], &BARE] {
                mark(left);
            }
        }
    }
);

const MARK_SOME: &str = "
table inet congested {
    chain output {
        type filter hook output priority 0
        ip ecn ect0 numgen inc mod 20 0 ip ecn set ce
        ip6 ecn ect0 numgen inc mod 20 0 ip6 ecn set ce
    }
}";

fn mark(arguments: &[&'static str]) {
    let mut lab = Lab::new();
    let [near, far] = [Yard::behind(&lab.left, 1, Wire::Offloading), Yard::behind(&lab.right, 2, Wire::Plain)];
    (lab.left.link, lab.right.link) = (far.routes.clone(), near.routes.clone());
    lab.left.arguments = arguments.to_vec();
    for yard in [&near, &far] {
        set(&yard.network, "ipv4/tcp_ecn", "1");
        // Not all congestion controls heed marks.
        set(&yard.network, "ipv4/tcp_congestion_control", "reno");
    }
    nft::load(&near.network, MARK_SOME);
    let _ends = lab.up();
    for address in far.address {
        let captures = [Capture::start(&lab.left.network), Capture::start(&far.network)];
        stream(&near.network, &far.network, address, 30 * MB, |_| {});
        let [sent, arrived] = captures.map(Capture::finish);
        arrived.iter().for_each(|packet| Census::default().take(packet).unwrap());
        let segments = |packets: &[Packet]| packets.iter().filter_map(|p| Segment::of(p, address)).collect::<Vec<_>>();
        assert_marks_kept(&segments(&sent), &segments(&arrived));
    }
}

fn assert_marks_kept(sent: &[Segment], arrived: &[Segment]) {
    for segment in arrived {
        assert!(sent.iter().any(|whole| segment.is_cut_from(whole)), "{segment:?}");
    }
    let count = |is: fn(&&Segment) -> bool| [sent, arrived].map(|segments| segments.iter().filter(is).count());
    let kinds = [("ECT(0)", count(|s| s.ecn == ECT_0)), ("CE", count(|s| s.ecn == CE)), ("CWR", count(|s| s.cwr))];
    let large = sent.iter().filter(|s| s.cwr && s.length > MTU).count();
    println!("sent and arrived: {kinds:?}; {large} super-packets with CWR");
    assert!(kinds.iter().all(|(_, counts)| counts.iter().all(|count| *count > 0)), "{kinds:?}");
    assert!(large > 0, "no super-packet had CWR");
}

scenario!(every_mtu_carries_the_same_bytes, 60, {
    for mtu in [1280, 1420, 1500, 9000] {
        let mut lab = Lab::new();
        for site in [&mut lab.left, &mut lab.right] {
            site.link = format!("mtu = {mtu}\n");
            site.set_cable_mtu(mtu + 80);
        }
        let (left, right) = lab.up();
        let before = dropped([&left, &right]);
        for family in [0, 1] {
            transfer(&lab.left, &lab.right, lab.right.inner[family], 40 * MB, |_| {});
            transfer(&lab.right, &lab.left, lab.left.inner[family], 40 * MB, |_| {});
        }
        assert_eq!(dropped([&left, &right]), before);
    }
});

scenario!(a_mix_keeps_bytes_and_order, 60, {
    let lab = Lab::new();
    let (left_end, right_end) = lab.up();
    let before = dropped([&left_end, &right_end]);
    let (left, right) = (&Host::of_site(&lab.left), &Host::of_site(&lab.right));
    thread::scope(|scope| {
        for (from, to) in [(left, right), (right, left)] {
            for address in to.address {
                for _ in 0..2 {
                    scope.spawn(move || stream(from.network, to.network, address, 30 * MB, |_| {}));
                }
                scope.spawn(move || assert_flow(from, to, address, 8..=60_000, 150));
                scope.spawn(move || assert_flow(from, to, address, 8..=1400, 1000));
                scope.spawn(move || assert_flow(from, to, address, 64..=64, 2000));
                scope.spawn(move || assert_answered(from.network, address));
            }
        }
    });
    assert_eq!(dropped([&left_end, &right_end]), before);
});

/// What the application asks for: so many datagrams of this size in one call.
const SEGMENTS: u64 = 8;
const SEGMENT: usize = 1200;

scenario!(an_applications_own_udp_segments_arrive_as_it_cut_and_marked_them, 40, {
    const WITHOUT: [&str; 2] = ["--without", "uso"];
    for arguments in [[&[][..], &[]], [&WITHOUT, &[]], [&[], &WITHOUT]] {
        let mut lab = Lab::new();
        let far = Yard::behind(&lab.right, 2, Wire::Plain);
        lab.left.link = far.routes.clone();
        (lab.left.arguments, lab.right.arguments) = (arguments[0].to_vec(), arguments[1].to_vec());
        let _ends = lab.up();
        let capture = Capture::start(&far.network);
        let [left, right, far] = &[Host::of_site(&lab.left), Host::of_site(&lab.right), Host::of_yard(&far)];
        for (from, to) in [(left, right), (right, left), (left, far)] {
            to.address.into_iter().for_each(|address| send_segments(from, to, address));
        }
        assert_marked_by_call(&capture.finish());
    }
});

fn send_segments(from: &Host<'_>, to: &Host<'_>, address: IpAddr) {
    let receiver = to.network.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let sender = from.network.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
    setsockopt(&sender, UdpGsoSegment, &(SEGMENT as i32)).unwrap();
    let mut room = vec![0; 1 << 16];
    for call in 0..100 {
        set_ecn(&sender, ecn_of(call));
        // Now and then there is only one, and now and then the last one is shorter.
        let segments = if call % 7 == 0 { 1 } else { SEGMENTS };
        let last = if call % 3 == 0 { 1 + call as usize * 11 } else { SEGMENT };
        let size = |n| if n + 1 == segments { last } else { SEGMENT };
        let expected: Vec<_> = (0..segments)
            .map(|n| {
                let mut bytes = datagram(call * SEGMENTS + n, &(SEGMENT..=SEGMENT));
                bytes.truncate(size(n));
                bytes
            })
            .collect();
        sender.send_to(&expected.concat(), receiver.local_addr().unwrap()).unwrap();
        for (n, expected) in expected.iter().enumerate() {
            let length = receiver.recv(&mut room).unwrap();
            assert!(room[..length] == expected[..], "call {call}, datagram {n} with {length} bytes");
        }
    }
}

/// Each call has other congestion bits.
fn ecn_of(call: u64) -> u8 {
    (call % 4) as u8
}

fn set_ecn(socket: &UdpSocket, bits: u8) {
    let bits = i32::from(bits);
    match socket.local_addr().unwrap() {
        SocketAddr::V4(_) => setsockopt(socket, Ipv4Tos, &bits).unwrap(),
        SocketAddr::V6(_) => setsockopt(socket, Ipv6TClass, &bits).unwrap(),
    }
}

fn assert_marked_by_call(packets: &[Packet]) {
    let mut counts = [[0; 4]; 2];
    for packet in packets {
        let (family, protocol, header) = if packet[0] >> 4 == 4 { (0, packet[9], 20) } else { (1, packet[6], 40) };
        // Some are too short to have their whole number in them.
        let Some(number) = packet[header..].get(8..16).filter(|_| protocol == 17) else { continue };
        let call = u64::from_le_bytes(number.try_into().unwrap()) / SEGMENTS;
        assert_eq!(ecn(packet), ecn_of(call), "call {call}");
        counts[family][usize::from(ecn(packet))] += 1;
    }
    assert!(counts.iter().flatten().all(|count| *count > 100), "{counts:?}");
}

#[test]
fn the_census_finds_every_changed_bit_of_a_datagram() {
    // 10.1.0.2:1000 → 10.2.0.2:2000, UDP over IPv4 with four bytes in it.
    let good = hex::decode("4500002012344000401114930a0100020a02000203e807d0000cf64877697265").unwrap();
    Census::default().take(&good).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Census::default().take(&bad).is_err(), "bit {bit} changed and nothing was said");
    }
}

//! What the outer packets of a link say of how they are to be treated and what they have met (DSCP, ECN, TTL), and what of it
//! comes to the packets inside.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::capture::{Capture, Packet};
use common::ecn::{CE, ECT_0, ecn};
use common::lab::{End, Lab, PATIENCE, PORT, Site};
use common::{nft, wait_until};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv4Tos, Ipv6TClass, UdpGsoSegment};
use tieline::protocol::wire::Kind;

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
/// Expedited forwarding (RFC 3246), and assured (RFC 2597).
const EF: u8 = 46;
const AF11: u8 = 10;

/// What an application sends in one call: so many datagrams of this size.
const SEGMENTS: usize = 8;
const SEGMENT: usize = 1_000;
/// How often it does.
const CALLS: usize = 25;

/// A packet of a UDP datagram: whether it carries the link, its DSCP, its ECN and its TTL or hop limit.
struct Seen {
    is_outer: bool,
    /// Whether it is a datagram of a test, or carries one.
    is_data: bool,
    dscp: u8,
    ecn: u8,
    ttl: u8,
    length: usize,
}

impl Seen {
    fn of(packet: &Packet) -> Option<Self> {
        let v4 = packet[0] >> 4 == 4;
        let (protocol, ttl, header) = if v4 { (packet[9], packet[8], 20) } else { (packet[6], packet[7], 40) };
        let ports: &[u8; 4] = packet.get(header..)?.first_chunk()?;
        let class = if v4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 };
        let is_outer = ports[..2] == PORT.to_be_bytes();
        // What the link itself sends may be as large, when it looks how large it may be.
        let is_data = packet.len() > SEGMENT && (!is_outer || packet[header + 8] == Kind::Data as u8);
        let length = packet.len();
        (protocol == 17).then_some(Seen { is_outer, is_data, dscp: class >> 2, ecn: ecn(packet), ttl, length })
    }
}

/// A link over IPv4 or IPv6, with lines of `[local]` at the left end.
fn lab(family: usize, local: &str) -> Lab {
    let mut lab = Lab::new();
    lab.left.endpoint = Some(SocketAddr::new(lab.right.outer[family], PORT));
    lab.right.endpoint = Some(SocketAddr::new(lab.left.outer[family], PORT));
    lab.left.local = local.to_owned();
    lab
}

/// Sends datagrams of this traffic class inside the link, some in runs, and gives how many of them arrive.
fn send(from: &Site, to: &Site, family: usize, class: u8, expected: usize) {
    let address = to.inner[family];
    let receiver = to.network.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = from.network.run(|| UdpSocket::bind((from.inner[family], 0))).unwrap().unwrap();
    sender.set_ttl(7).unwrap();
    match address {
        IpAddr::V4(_) => setsockopt(&sender, Ipv4Tos, &class.into()).unwrap(),
        IpAddr::V6(_) => setsockopt(&sender, Ipv6TClass, &class.into()).unwrap(),
    }
    setsockopt(&sender, UdpGsoSegment, &(SEGMENT as i32)).unwrap();
    for call in 0..CALLS {
        let datagrams = if call % 3 == 0 { 1 } else { SEGMENTS };
        let bytes = vec![call as u8; datagrams * SEGMENT];
        sender.send_to(&bytes, receiver.local_addr().unwrap()).unwrap();
        for _ in 0..if expected > 0 { datagrams } else { 0 } {
            assert_eq!(receiver.recv(&mut [0; 2 * SEGMENT]).unwrap(), SEGMENT);
        }
    }
}

/// Datagrams that [`send`] sends.
fn all() -> usize {
    (0..CALLS).map(|call| if call % 3 == 0 { 1 } else { SEGMENTS }).sum()
}

fn congested(end: &End<'_>) -> u64 {
    end.status()["drops"]["congested"].as_u64().unwrap()
}

scenario!(the_outer_header_has_the_dscp_that_config_says_the_ecn_of_the_inner_one_and_a_fixed_ttl, 90, {
    for family in [0, 1] {
        for (config, own, user) in
            [("", 0, 0), ("dscp = \"none\"\n", 0, 0), ("dscp = \"copy\"\n", 0, EF), ("dscp = 10\n", AF11, AF11)]
        {
            let lab = lab(family, config);
            lab.left.network.run(|| fs::write("/proc/sys/net/ipv4/ip_default_ttl", "33").unwrap()).unwrap();
            let capture = Capture::start(&lab.right.network);
            let _ends = lab.up();
            for ecn in [NOT_ECT, ECT_0, ECT_1, CE] {
                send(&lab.left, &lab.right, family, EF << 2 | ecn, all());
            }
            let seen: Vec<_> = capture.finish().iter().filter_map(Seen::of).collect();
            let (outer, inner): (Vec<_>, Vec<_>) = seen.iter().partition(|seen| seen.is_outer);
            assert!(outer.iter().all(|seen| seen.ttl == 64), "of a default of 33, and 7 inside");
            for (what, packets, dscp) in [("outer", &outer, user), ("inner", &inner, EF)] {
                let data: Vec<_> = packets.iter().filter(|seen| seen.is_data).collect();
                assert!(data.iter().all(|seen| seen.dscp == dscp), "{config:?}: {what}");
                for ecn in [NOT_ECT, ECT_0, ECT_1, CE] {
                    // What travels as one is seen as one.
                    let bytes: usize = data.iter().filter(|seen| seen.ecn == ecn).map(|seen| seen.length).sum();
                    assert!(
                        bytes >= all() * SEGMENT && bytes < all() * (SEGMENT + 150),
                        "{config:?}: {bytes} bytes {what} with {ecn}"
                    );
                }
            }
            // The link's own.
            let rest: Vec<_> = outer.iter().filter(|seen| !seen.is_data).collect();
            assert!(!rest.is_empty() && rest.iter().all(|seen| (seen.dscp, seen.ecn) == (own, NOT_ECT)), "{config:?}");
        }
    }
});

const MARK_ALL: &str = "
table inet congested {
    chain arriving {
        type filter hook prerouting priority raw
        udp sport 7311 ip ecn set ce
        udp sport 7311 ip6 ecn set ce
    }
}";

scenario!(congestion_on_the_way_reaches_who_understands_it_and_costs_the_others_the_packet, 60, {
    if nft::is_there() {
        for family in [0, 1] {
            let lab = lab(family, "");
            let (left, right) = lab.up();
            nft::load(&lab.right.network, MARK_ALL);
            let capture = Capture::start(&lab.right.network);
            for ecn in [ECT_0, ECT_1, CE] {
                send(&lab.left, &lab.right, family, EF << 2 | ecn, all());
            }
            let seen: Vec<_> = capture.finish().iter().filter_map(Seen::of).collect();
            let inner: Vec<_> = seen.iter().filter(|seen| !seen.is_outer && seen.is_data).collect();
            assert!(inner.iter().all(|seen| (seen.dscp, seen.ecn) == (EF, CE)));
            assert!(inner.iter().map(|seen| seen.length).sum::<usize>() >= 3 * all() * SEGMENT);
            let before = congested(&right);
            send(&lab.left, &lab.right, family, EF << 2 | NOT_ECT, 0);
            wait_until("all being dropped and counted", PATIENCE, || congested(&right) >= before + all() as u64);
            assert_eq!(congested(&left), 0);
            // The line itself is not the worse for it.
            assert_eq!(right.status()["state"], "up");
        }
    }
});

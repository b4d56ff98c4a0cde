//! What an end does with the packets inside the link: UDP reaches the far interface as it was sent, sources that are not the
//! peer's and router advertisements are not believed, and what came out of the link does not go back into it.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::bridge::ip;
use common::capture::{Capture, Packet};
use common::lab::{End, Lab, PATIENCE, Site};
use common::yard::{Wire, Yard};
use common::{mroute, nft, wait_until};
use nix::libc::{IP_MTU_DISCOVER, IP_PMTUDISC_DO, IPPROTO_IP, IPV6_MULTICAST_HOPS, IPV6_MULTICAST_IF, c_int};
use nix::sys::socket::sockopt::UdpGsoSegment;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};
use nix::sys::socket::{sendto, setsockopt, socket};
use tieline::packet::checksum;
use tieline::sys::netns::NetNs;

/// What the application asks for: so many datagrams of this size in one call.
const RUN: usize = 16;
const SIZE: usize = 1200;
const RUNS: usize = 40;
const PORT: u16 = 9000;
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);

const LARGE: &str = "
table inet watch {
    counter seen { }
    counter large { }
    chain prerouting {
        type filter hook prerouting priority 0
        iifname \"tl-right\" udp dport 9000 counter name seen
        iifname \"tl-right\" udp dport 9000 meta length > 1300 counter name large
    }
}";

/// Sends [`RUNS`] times [`RUN`] datagrams to each of these, as a program with segmentation offload does.
fn send_runs(site: &Site, to: &[SocketAddr]) {
    for to in to {
        let any: IpAddr = if to.is_ipv4() { site.inner[0] } else { site.inner[1] };
        let sender = site.network.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        sender.set_multicast_ttl_v4(8).unwrap();
        setsockopt(&sender, UdpGsoSegment, &(SIZE as i32)).unwrap();
        // As DTLS, QUIC and RTP senders do: these may not be fragmented.
        common::nic::set_int(sender.as_raw_fd(), IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
        for _ in 0..RUNS {
            sender.send_to(&[0x5A; RUN * SIZE], to).unwrap();
            // As fast as a small receive buffer can follow.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The lengths of those packets that are UDP over IPv4 to the port at this address.
fn udp_lengths(packets: &[Packet], to: IpAddr) -> Vec<usize> {
    let is_ours =
        |p: &&Packet| p[0] == 0x45 && p[9] == 17 && p[16..20] == octets(to) && p[22..24] == PORT.to_be_bytes();
    packets.iter().filter(is_ours).map(|packet| packet.len()).collect()
}

/// A socket that hears the port, and counts what comes until nothing more does.
struct Listener(UdpSocket);

impl Listener {
    fn at(network: &NetNs, address: IpAddr) -> Self {
        let socket = network.run(|| UdpSocket::bind((address, PORT))).unwrap().unwrap();
        setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        Self(socket)
    }

    fn count(&self) -> usize {
        let mut room = vec![0; 1 << 16];
        let mut count = 0;
        while let Ok(length) = self.0.recv(&mut room) {
            assert_eq!(length, SIZE);
            count += 1;
        }
        count
    }
}

/// What the right-hand end makes of runs of datagrams from the left.
struct Arrived {
    /// The lengths of the packets at the interface that were for a group, for the end itself, and for a host behind it.
    lengths: [Vec<usize>; 3],
    /// How many of those for the group the host behind it heard.
    heard: usize,
    /// What a rule in the kernel counted: all, and those longer than one datagram.
    counted: Option<[u64; 2]>,
}

/// Sends runs of datagrams, with this line in the config of the receiving end.
fn arrived(line: &str) -> Arrived {
    let mut lab = Lab::new();
    let yard = Yard::behind(&lab.right, 2, Wire::Plain);
    lab.left.link = yard.routes.clone();
    lab.right.link = line.into();
    if nft::is_there() {
        nft::load(&lab.right.network, LARGE);
    }
    let _ends = lab.up();
    ip(&lab.left.network, &format!("route add {GROUP} dev tl-left"));
    let mut indices = [0; 2];
    lab.right.netlink(async |netlink| {
        indices = [netlink.index("tl-right").await.unwrap(), netlink.index("gate").await.unwrap()];
    });
    let IpAddr::V4(origin) = lab.left.inner[0] else { panic!("not IPv4") };
    let _routed = lab.right.network.run(|| mroute::route(origin, GROUP, indices)).unwrap();
    let listener = Listener::at(&yard.network, Ipv4Addr::UNSPECIFIED.into());
    let IpAddr::V4(own) = yard.address[0] else { panic!("not IPv4") };
    listener.0.join_multicast_v4(&GROUP, &own).unwrap();

    let capture = Capture::start(&lab.right.network);
    send_runs(&lab.left, &[(GROUP, PORT).into()]);
    let heard = listener.count();
    send_runs(&lab.left, &[(lab.right.inner[0], PORT).into(), (yard.address[0], PORT).into()]);
    let packets = capture.finish();
    let lengths = [GROUP.into(), lab.right.inner[0], yard.address[0]].map(|to| udp_lengths(&packets, to));
    let longest = lengths.each_ref().map(|lengths| lengths.iter().max());
    println!("{line:?}: {heard} of {} multicast datagrams heard; the longest packets {longest:?}", RUN * RUNS);
    let counted = || ["seen", "large"].map(|name| nft::counted(&lab.right.network, name));
    Arrived { heard, counted: nft::is_there().then(counted), lengths }
}

/// The length of one datagram with its headers, all there is of so many.
fn assert_single(lengths: &[usize], whose: &str) {
    assert!(lengths.iter().all(|length| *length == 20 + 8 + SIZE), "{whose}: {:?}", lengths.iter().max());
    assert!(lengths.len() >= RUN * RUNS * 9 / 10, "{whose}: {} arrived", lengths.len());
}

scenario!(
    /// Whoever looks at the far interface sees datagrams of the size they were sent with: a reader of packets, a rule that asks
    /// for their length, and the kernel's multicast routing, which drops what is longer than the next link takes.
    udp_datagrams_reach_the_far_interface_as_they_were_sent,
    60,
    {
        let Arrived { lengths: [group, own, host], heard, counted } = arrived("");
        assert!(heard >= RUN * RUNS * 9 / 10, "{heard} of {} multicast datagrams were routed", RUN * RUNS);
        for (lengths, whose) in [(group, "a group's"), (own, "the end's own"), (host, "a host's")] {
            assert_single(&lengths, whose);
        }
        if let Some([seen, large]) = counted {
            assert_eq!(large, 0);
            assert!(seen >= 3 * (RUN * RUNS) as u64 * 9 / 10, "{seen}");
        }
    }
);

scenario!(
    /// With `coalesce_udp` that is so for what the end forwards; only its own come in runs.
    coalesced_udp_is_for_the_end_itself_alone,
    60,
    {
        let Arrived { lengths: [group, own, host], heard, .. } = arrived("coalesce_udp = true\n");
        assert!(heard >= RUN * RUNS * 9 / 10, "{heard} of {} multicast datagrams were routed", RUN * RUNS);
        assert_single(&group, "a group's");
        assert_single(&host, "a host's");
        let payload: usize = own.iter().map(|length| length - 28).sum();
        assert!(payload >= RUN * RUNS * SIZE * 9 / 10, "{payload} bytes arrived");
        assert!(own.len() < RUN * RUNS / 2, "{} packets of {} datagrams", own.len(), RUN * RUNS);
    }
);

/// An IPv4 packet with a UDP header and a word in it, from any source.
fn packet(source: [u8; 4], destination: [u8; 4], word: &[u8; 8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 36, 0, 7, 0, 0, 64, 17, 0, 0];
    packet.extend([source, destination].concat());
    packet.extend([0x23, 0x28, 0x23, 0x28, 0, 16, 0, 0]);
    packet.extend(word);
    checksum::complete(&mut packet[..20], 10);
    packet
}

fn octets(address: IpAddr) -> [u8; 4] {
    let IpAddr::V4(v4) = address else { panic!("{address}") };
    v4.octets()
}

/// Sends a packet as it is, by the routes of a network.
fn send_raw(network: &NetNs, packet: &[u8]) {
    let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    let socket = network.run(open).unwrap().unwrap();
    let [a, b, c, d] = packet[16..20] else { panic!("too short") };
    let to = SockaddrIn::new(a, b, c, d, 0);
    assert_eq!(sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()), Ok(packet.len()));
}

/// Whether it is UDP: an ICMP message quotes the packet it is about, word and all.
fn is_udp(packet: &Packet) -> bool {
    packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == 17
}

/// Whether one of these packets ends with a word.
fn has(packets: &[Packet], word: &[u8; 8]) -> bool {
    packets.iter().any(|packet| packet.ends_with(word))
}

fn drops(end: &End<'_>, reason: &str) -> u64 {
    end.status()["drops"][reason].as_u64().unwrap_or(0)
}

scenario!(
    /// With `routes`, packets from the peer have a source that is the peer's: its inner address, `routes`, link-local.
    a_source_that_is_not_the_peers_is_dropped_and_counted,
    90,
    {
        for filtered in [true, false] {
            let mut lab = Lab::new();
            let off = if filtered { "" } else { "source_filter = false\n" };
            lab.left.link = format!("routes = [\"198.51.100.0/24\"]\n{off}");
            let (left, _right) = lab.up();
            let [own, peer] = [lab.left.inner[0], lab.right.inner[0]].map(octets);
            let capture = Capture::start(&lab.left.network);
            let sources = [
                (peer, true, b"peer----"),
                ([198, 51, 100, 9], true, b"routed--"),
                ([169, 254, 7, 7], true, b"linkloc-"),
                ([203, 0, 113, 9], !filtered, b"foreign-"),
                ([203, 0, 113, 10], !filtered, b"again---"),
                (own, !filtered, b"ours----"),
            ];
            for (source, _, word) in sources {
                send_raw(&lab.right.network, &packet(source, own, word));
            }
            send_raw(&lab.right.network, &packet(peer, own, b"the end-"));
            if filtered {
                wait_until("three packets to be dropped", PATIENCE, || drops(&left, "source") == 3);
                left.wait_for_log(&["203.0.113.0/24", "outside `routes`", "source_filter = false"], PATIENCE);
            }
            let seen = capture.finish();
            assert!(has(&seen, b"the end-"));
            for (source, passes, word) in sources {
                assert_eq!(has(&seen, word), passes, "from {source:?} with the filter {filtered}");
            }
            let named = lab.left.log().lines().filter(|line| line.contains("203.0.113")).count();
            assert_eq!(named, usize::from(filtered), "the first of a prefix is named, once");
        }
    }
);

/// A router advertisement with a lifetime of half an hour and a prefix for hosts to take addresses from (RFC 4861 §4.2).
fn advertisement() -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xC0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend([0x20, 1, 0x0D, 0xB8, 0x66, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    message
}

fn set_v6(fd: &impl AsRawFd, option: c_int, value: c_int) {
    common::nic::set_int(fd.as_raw_fd(), nix::libc::IPPROTO_IPV6, option, value);
}

scenario!(
    /// A peer that says it is a router is none: neither a default route nor an address comes of it.
    a_router_advertisement_through_the_link_changes_nothing,
    60,
    {
        let lab = Lab::new();
        let (left, right) = lab.up();
        let mut index = 0;
        lab.right.netlink(async |netlink| index = netlink.index("tl-right").await.unwrap());
        let open = || socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6);
        let socket = lab.right.network.run(open).unwrap().unwrap();
        set_v6(&socket, IPV6_MULTICAST_IF, index as c_int);
        set_v6(&socket, IPV6_MULTICAST_HOPS, 255);
        let all: std::net::SocketAddrV6 = format!("[ff02::1%{index}]:0").parse().unwrap();
        let all = nix::sys::socket::SockaddrIn6::from(all);
        wait_until("a link-local address at the far end", PATIENCE, || {
            ip(&lab.right.network, "-6 addr show dev tl-right scope link -tentative").contains("fe80")
        });
        let capture = Capture::start(&lab.left.network);
        for _ in 0..3 {
            sendto(socket.as_raw_fd(), &advertisement(), &all, MsgFlags::empty()).unwrap();
        }
        // It comes behind them, and by then they have been looked at.
        lab.right.ping_all(lab.left.inner[1]);
        let seen = capture.finish();
        let is_advertisement = |packet: &&Packet| packet[0] >> 4 == 6 && packet[6] == 58 && packet[40] == 134;
        assert_eq!(seen.iter().filter(is_advertisement).count(), 3, "they came through the link");
        let routes = ip(&lab.left.network, "-6 route show");
        assert!(!routes.contains("proto ra") && !routes.contains("2001:db8:6600::"), "{routes}");
        let addresses = ip(&lab.left.network, "-6 addr show dev tl-left");
        assert!(!addresses.contains("2001:db8:6600:"), "{addresses}");
        for (site, name) in [(&lab.left, "tl-left"), (&lab.right, "tl-right")] {
            for setting in ["ipv6/conf/IF/accept_ra", "ipv6/conf/IF/autoconf", "ipv6/conf/IF/accept_redirects"] {
                let path = format!("/proc/sys/net/{}", setting.replace("IF", name));
                let value = site.network.run(|| fs::read_to_string(&path)).unwrap().unwrap();
                assert_eq!(value.trim(), "0", "{path}");
            }
        }
        drop([left, right]);
    }
);

scenario!(
    /// An unused address of the link's own prefix, and a network that each end takes for the other's.
    what_came_out_of_the_link_does_not_go_back_into_it,
    60,
    {
        let mut lab = Lab::new();
        let yard = Yard::behind(&lab.left, 1, Wire::Plain);
        lab.left.link = "routes = [\"10.50.0.0/16\", \"fd50::/48\"]\n".into();
        lab.right.link = yard.routes.replace(']', ", \"10.50.7.0/24\", \"fd50:0:0:7::/64\"]");
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            lab.right.network.run(|| fs::write(format!("/proc/sys/net/{switch}"), "1")).unwrap().unwrap();
        }
        let (left, right) = lab.up();
        let captures = [&lab.left, &lab.right].map(|site| Capture::start(&site.network));
        let targets = ["10.99.0.0", "fd99::3", "10.50.7.7", "fd50:0:0:7::7"].map(|text| text.parse::<IpAddr>().unwrap());
        for (target, word) in targets.into_iter().zip([b"v4 link-", b"v6 link-", b"v4 route", b"v6 route"]) {
            let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let sender = yard.network.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
            sender.send_to(word, (target, PORT)).unwrap();
        }
        let returned = || (drops(&right, "returned"), drops(&left, "returned"));
        let started = std::time::Instant::now();
        while returned().0 < 4 && started.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(20));
        }
        // What crosses is seen once at the site it came from, behind the wire of the host, and once at the other.
        let crossings = captures.map(|capture| {
            let words: [&[u8; 8]; 4] = [b"v4 link-", b"v6 link-", b"v4 route", b"v6 route"];
            let seen = capture.finish();
            words.map(|word| seen.iter().filter(|packet| is_udp(packet) && packet.ends_with(word)).count())
        });
        println!("seen at the near and at the far site: {crossings:?}; dropped {:?}", returned());
        assert_eq!(crossings, [[1; 4]; 2], "each crosses once");
        assert_eq!(returned(), (4, 0));
        right.wait_for_log(&["came out of the link", "sent back into it"], PATIENCE);
        // What is not sent back goes on as ever.
        lab.right.ping_all(yard.address[0]);
        lab.left.ping_all(lab.right.inner[1]);
        assert_eq!(returned(), (4, 0));
    }
);

//! What an end does with the packets inside the link: UDP reaches the far interface as it was sent.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use common::bridge::ip;
use common::capture::{Capture, Packet};
use common::lab::{Lab, Site};
use common::yard::{Wire, Yard};
use common::{mroute, nft};
use nix::libc::{IP_MTU_DISCOVER, IP_PMTUDISC_DO, IPPROTO_IP};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
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

fn octets(address: IpAddr) -> [u8; 4] {
    let IpAddr::V4(v4) = address else { panic!("{address}") };
    v4.octets()
}

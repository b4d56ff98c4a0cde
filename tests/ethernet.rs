//! A link that carries Ethernet: two bridges become one, and nobody at either can tell.
//!
//! VLAN tags are made and read by hand, as is whatever no kernel here would send.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::bridge::{Host, Lan, Port, hardware_address, ip};
use common::flow::flow;
use common::lab::{End, Lab, PATIENCE, PORT, ping, stream, transfer};
use common::nic::disable_offloads;
use common::wait_until;
use common::yard::checksum_errors;
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use tieline::packet::Layer;
use tieline::packet::checksum::{self, Sum};
use tieline::packet::split::{Checksums, Taken, take};
use tieline::packet::transport::Transport;
use tieline::packet::virtio::{Gso, Header, Kind};
use tieline::sys::netns::NetNs;
use tieline::sys::offloads::TunOffloads;

const MB: u64 = 1_000_000;
const BARE: [&str; 6] = ["--without", "vnet_hdr", "--without", "udp_segment", "--without", "udp_gro"];
/// Long enough for what must not come to come.
const MOMENT: Duration = Duration::from_millis(300);

/// Both ends as ports of their sites' bridges.
fn bridged(arguments: [&[&'static str]; 2], lines: &str) -> Lab {
    let mut lab = Lab::new();
    for (site, arguments) in [&mut lab.left, &mut lab.right].into_iter().zip(arguments) {
        site.addressed = false;
        site.link = format!("layer = \"ethernet\"\nbridge = \"br0\"\n{lines}");
        site.arguments = arguments.to_vec();
    }
    lab
}

fn up(lab: &Lab) -> [End<'_>; 2] {
    let ends = [lab.left.start(), lab.right.start()];
    for end in &ends {
        wait_until("the end to answer", PATIENCE, || end.answers());
        end.wait_for_state("up");
    }
    ends
}

scenario!(an_interface_with_addresses_needs_no_bridge, 60, {
    for arguments in [[&[][..], &[]], [&BARE, &[]], [&BARE, &BARE]] {
        let mut lab = Lab::new();
        lab.left.link = "layer = \"ethernet\"\n".into();
        lab.right.link = lab.left.link.clone();
        (lab.left.arguments, lab.right.arguments) = (arguments[0].to_vec(), arguments[1].to_vec());
        let _ends = lab.up();
        for family in [0, 1] {
            lab.left.ping_all(lab.right.inner[family]);
            transfer(&lab.left, &lab.right, lab.right.inner[family], 20 * MB, |_| {});
            transfer(&lab.right, &lab.left, lab.left.inner[family], 20 * MB, |_| {});
        }
        let far = hardware_address(&lab.right.network, lab.right.interface);
        let known = ip(&lab.left.network, "neighbour show dev tl-left");
        assert!(known.matches(&far).count() >= 2, "ARP and ND have found {far}: {known}");
    }
});

scenario!(
    /// From the first broadcast of a host that has nothing to TCP at full speed.
    bridged_hosts_are_on_one_ethernet,
    90,
    {
        for arguments in [[&[][..], &[]], [&BARE, &[]], [&BARE, &BARE]] {
            let lab = bridged(arguments, "mtu = 1400\n");
            let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
            let [near, far] = &[lans[0].host(1, 1400), lans[1].host(2, 1400)];
            if arguments[0].is_empty() {
                // What is between two containers of one machine comes whole; what is not comes as on a wire.
                near.network.run(|| disable_offloads(Host::INTERFACE)).unwrap();
            }
            let _ends = up(&lab);
            far.take_addresses();
            lease(near, far);
            near.take_addresses_but_the_leased();
            for (from, to) in [(near, far), (far, near)] {
                for address in to.address {
                    ping(&from.network, address, PATIENCE).unwrap();
                }
                let address = hardware_address(&to.network, Host::INTERFACE);
                let known = from.neighbours();
                assert!(known.matches(&address).count() >= 2, "ARP and ND have found {address}: {known}");
            }
            everything(near, far);
        }
    }
);

impl Host {
    /// The IPv6 address; the other one came by DHCP.
    fn take_addresses_but_the_leased(&self) {
        ip(&self.network, &format!("address add {}/64 dev {} nodad", self.address[1], Host::INTERFACE));
    }
}

/// TCP and UDP both ways in both families at once, with fragments.
fn everything(near: &Host, far: &Host) {
    thread::scope(|scope| {
        for (from, to) in [(near, far), (far, near)] {
            for address in to.address {
                scope.spawn(move || {
                    stream(&from.network, &to.network, address, 20 * MB, |_| {});
                });
                scope.spawn(move || assert_flow(from, to, address, 1..=1300, 600));
                scope.spawn(move || assert_flow(from, to, address, 2000..=9000, 60));
            }
        }
    });
    for host in [near, far] {
        let errors = checksum_errors(&host.network);
        assert!(errors.len() >= 4 && errors.iter().all(|(_, count)| *count == 0), "{errors:?}");
    }
}

fn assert_flow(from: &Host, to: &Host, address: IpAddr, sizes: RangeInclusive<usize>, count: usize) {
    let arrived = flow(&from.network, &to.network, address, sizes.clone(), count);
    // Queues are full of TCP, and full queues drop.
    assert!(arrived > count / 5, "{arrived} of {count} datagrams of {sizes:?} bytes to {address}");
}

/// What a host does that has no address (RFC 2131 §3.1): it asks all there are, and one answers to all, for it could not be
/// spoken to. Afterwards it has the address it is to have.
fn lease(client: &Host, server: &Host) {
    let socket = |network: &NetNs, port: u16| {
        let socket = network.run(|| UdpSocket::bind(("0.0.0.0", port))).unwrap().unwrap();
        setsockopt(&socket, BindToDevice, &Host::INTERFACE.into()).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (asking, serving) = (socket(&client.network, 68), socket(&server.network, 67));
    let all = |port: u16| SocketAddr::from(([255; 4], port));
    let mut room = [0; 1500];
    // Discover and offer, request and acknowledgement.
    for (question, answer) in [(1, 2), (3, 5)] {
        asking.send_to(&dhcp(1, question, [0; 4].into()), all(67)).unwrap();
        let (length, from) = serving.recv_from(&mut room).unwrap();
        assert_eq!((&room[..length], from), (&dhcp(1, question, [0; 4].into())[..], "0.0.0.0:68".parse().unwrap()));
        serving.send_to(&dhcp(2, answer, client.address[0]), all(68)).unwrap();
        let (length, from) = asking.recv_from(&mut room).unwrap();
        assert_eq!(room[..length], dhcp(2, answer, client.address[0]));
        assert_eq!(from.ip(), server.address[0]);
    }
    let leased = IpAddr::from(<[u8; 4]>::try_from(&room[16..20]).unwrap());
    ip(&client.network, &format!("address add {leased}/24 dev {}", Host::INTERFACE));
}

/// A DHCP message (RFC 2131 §2) with its type for its only option: BOOTP's operation, type, "your address".
fn dhcp(operation: u8, kind: u8, yours: IpAddr) -> Vec<u8> {
    let IpAddr::V4(yours) = yours else { panic!("{yours}") };
    let mut message = vec![operation, 1, 6, 0, 0x71, 0x1E, 0x11, 0x4E, 0, 0, 0x80, 0];
    message.extend([0; 4]);
    message.extend(yours.octets());
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind, 255]);
    message.resize(300, 0);
    message
}

/// Addresses of two who are nowhere else, and of all.
const ONE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ALL: [u8; 6] = [0xFF; 6];

/// An Ethernet header with these tags, then what is in it.
fn frame(to: [u8; 6], from: [u8; 6], tags: &[[u8; 4]], ether_type: u16, content: &[u8]) -> Vec<u8> {
    [&[to, from].concat(), &tags.concat(), &ether_type.to_be_bytes()[..], content].concat()
}

/// Tags as a customer's switch puts them, and a provider's.
const TAGS: [&[[u8; 4]]; 4] =
    [&[], &[[0x81, 0, 0x60, 7]], &[[0x88, 0xA8, 0, 9], [0x81, 0, 0, 7]], &[[0x81, 0, 0, 9], [0x81, 0, 0x20, 7]]];

/// What numbers frames, so that each is another.
fn filled(length: usize, number: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31) ^ number).collect()
}

scenario!(
    /// Byte by byte, in both directions: tagged or not, IP or not, to one, to some and to all.
    frames_of_any_kind_come_through_unchanged,
    60,
    {
        for arguments in [[&[][..], &[]], [&BARE, &[]], [&BARE, &BARE]] {
            let lab = bridged(arguments, "mtu = 1400\n");
            let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
            let _ends = up(&lab);
            let [left, right] = &lans.map(|lan| lan.port(TunOffloads::NONE));
            let mut number = 0;
            for tags in TAGS {
                // ARP, IPv4 and IPv6 that are none, PPPoE, LLDP's multicast, a length in place of a type, loopback's.
                for (to, ether_type, length) in [
                    (ALL, 0x0806, 28),
                    (OTHER, 0x0800, 60),
                    (OTHER, 0x86DD, 1400),
                    (OTHER, 0x8864, 1400),
                    ([0x01, 0, 0x0C, 0xCC, 0xCC, 0xCD], 0x88CC, 100),
                    ([0x33, 0x33, 0, 0, 0, 1], 0x88B5, 46),
                    (OTHER, 38, 38),
                    // As short as a kernel takes one behind a tag.
                    (OTHER, 0x9000, 2),
                ] {
                    for (from, to_port) in [(left, right), (right, left)] {
                        number += 1;
                        let (to, own) = match std::ptr::eq(from, left) || to != OTHER {
                            true => (to, ONE),
                            false => (ONE, OTHER),
                        };
                        let own = if std::ptr::eq(from, right) { OTHER } else { own };
                        let frame = frame(to, own, tags, ether_type, &filled(length, number));
                        from.send(&Header::default(), &frame);
                        assert!(to_port.hears(&frame, PATIENCE), "{tags:02x?} {ether_type:#x} {to:02x?} {length}");
                    }
                }
            }
        }
    }
);

scenario!(
    /// The MTU counts neither header nor tags, and there is no ICMP here to say what was too large.
    frames_of_the_mtus_size_pass_and_larger_ones_do_not,
    60,
    {
        // The cable carries no byte more than the largest datagram that may come of it takes.
        for (mtu, cable) in [(1400, 1482), (9000, 9082)] {
            let lab = bridged([&[], &BARE], &format!("mtu = {mtu}\n"));
            [&lab.left, &lab.right].into_iter().for_each(|site| site.set_cable_mtu(cable));
            let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
            let _ends = up(&lab);
            let [left, right] = &lans.map(|lan| lan.port(TunOffloads::NONE));
            for (number, tags) in TAGS.into_iter().enumerate() {
                for (from, to) in [(left, right), (right, left)] {
                    let of = |length: usize| frame(ALL, ONE, tags, 0x88B5, &filled(length, number as u8));
                    from.send(&Header::default(), &of(mtu));
                    assert!(to.hears(&of(mtu), PATIENCE), "{tags:02x?} with {mtu} bytes");
                    // A bridge gives way by a tag's length, whether or not there is one.
                    from.send(&Header::default(), &of(mtu + 9));
                    assert!(!to.hears(&of(mtu + 9), MOMENT), "{tags:02x?} with {} bytes", mtu + 9);
                }
            }
        }
    }
);

scenario!(
    /// Hosts that are as they come, with 1500, behind bridges at both ends: the link has the bridges' MTU, and says so.
    a_link_takes_the_mtu_of_its_bridge,
    90,
    {
        for arguments in [[&[][..], &[]], [&BARE, &[]], [&BARE, &BARE]] {
            let lab = bridged(arguments, "");
            let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
            let [near, far] = &[lans[0].host(1, 1500), lans[1].host(2, 1500)];
            [near, far].into_iter().for_each(Host::take_addresses);
            let ends = up(&lab);
            for end in &ends {
                end.wait_for_log(&["takes the mtu of bridge br0, 1500"], PATIENCE);
                assert_eq!(end.site.interface_mtu(), 1500);
            }
            for (from, to) in [(near, far), (far, near)] {
                for address in to.address {
                    ping(&from.network, address, PATIENCE).unwrap();
                    // Whole packets that may not be fragmented by whoever sends them.
                    let most = if address.is_ipv4() { 1472 } else { 1452 };
                    ip_ping(from, address, most);
                }
            }
            everything(near, far);
        }
    }
);

/// Pings with so many bytes, and without leave to fragment them.
fn ip_ping(from: &Host, to: IpAddr, bytes: usize) {
    let mut command = Command::new("ping");
    command.args(["-c", "3", "-i", "0.2", "-W", "5", "-M", "do", "-s", &bytes.to_string(), &to.to_string()]);
    from.network.enter_at_start(&mut command).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{bytes} bytes to {to}: {}", String::from_utf8_lossy(&output.stdout));
}

scenario!(
    /// The bridge changes, by hand and with its ports, and the link with it; what config says stays.
    a_link_follows_the_mtu_of_its_bridge,
    60,
    {
        let mut lab = bridged([&[], &[]], "");
        lab.right.link += "mtu = 1400\n";
        let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
        let _hosts = [lans[0].host(1, 1500), lans[1].host(2, 1500)];
        let [left, _right] = up(&lab);
        assert_eq!([lab.left.interface_mtu(), lab.right.interface_mtu()], [1500, 1400]);
        left.wait_for_log(&["mtu is 1500 here and 1400 at the other end"], PATIENCE);
        // The bridge follows its lowest port, and that is not to be the link's for ever.
        for mtu in [1400, 1500, 9000, 1500] {
            ip(&lab.left.network, &format!("link set host1 mtu {mtu}"));
            wait_until(&format!("an MTU of {mtu}"), PATIENCE, || lab.left.interface_mtu() == mtu);
        }
        for mtu in [1400, 9000] {
            ip(&lab.left.network, &format!("link set br0 mtu {mtu}"));
            wait_until(&format!("an MTU of {mtu}"), PATIENCE, || lab.left.interface_mtu() == mtu);
        }
        // And what another program gives it, it does not keep.
        ip(&lab.left.network, "link set tl-left mtu 1300");
        wait_until("the bridge's MTU", PATIENCE, || lab.left.interface_mtu() == 9000);
        assert_eq!(lab.right.interface_mtu(), 1400);
    }
);

scenario!(
    /// A super-frame with tags is cut into frames that all have them, and what is joined at the far end is what it was. UDP for all
    /// hosts is joined by no config.
    tagged_super_frames_come_through,
    60,
    {
        for (arguments, line) in
            [([&[][..], &[]], ""), ([&[], &[]], "coalesce_udp = true\n"), ([&BARE, &[]], ""), ([&[], &BARE], "")]
        {
            let lab = bridged(arguments, &format!("mtu = 1400\n{line}"));
            let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
            let _ends = up(&lab);
            let [left, right] = &lans.map(|lan| lan.port(TunOffloads::ALL));
            for (number, tags) in TAGS.into_iter().enumerate() {
                for kind in [Kind::Tcp4, Kind::Udp] {
                    let joined = send_super_frame(left, right, tags, kind, number as u8);
                    println!("{arguments:?} {tags:02x?} {kind:?}: {joined} frames at the far end");
                    if kind == Kind::Udp {
                        assert_eq!(joined, SEGMENTS, "frames of so many segments");
                    } else if arguments[0].is_empty() && arguments[1].is_empty() {
                        assert!(joined < SEGMENTS / 2, "{joined} frames of {SEGMENTS} segments");
                    }
                }
            }
        }
    }
);

const SEGMENTS: usize = 20;
const SEGMENT: usize = 1000;

/// Sends one of [`SEGMENTS`] segments, and gives the number of frames it comes in; cut by the kernel's rules they are the same.
fn send_super_frame(left: &Port, right: &Port, tags: &[[u8; 4]], kind: Kind, number: u8) -> usize {
    let payload = filled(SEGMENTS * SEGMENT - 1, number);
    let transport = match kind {
        Kind::Udp => [&[0x14, 0x51, 0x9C, number][..], &(8 + payload.len() as u16).to_be_bytes(), &[0, 0]].concat(),
        _ => vec![0x14, 0x51, 0x9C, number, 0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x18, 1, 0xF5, 0, 0, 0, 0],
    };
    let protocol = if kind == Kind::Udp { 17 } else { 6 };
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 7, 0, 1, 10, 7, 0, 2];
    packet.extend(transport);
    packet.extend(payload);
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    checksum::complete(&mut packet[..20], 10);
    let mut frame = frame(ALL, ONE, tags, 0x0800, &packet);
    let found = Transport::find(Layer::Ethernet, &frame).unwrap();
    let sum = found.pseudo(&frame) + Sum::word(found.length());
    let at = found.start + found.protocol.checksum_offset();
    frame[at..at + 2].copy_from_slice(&sum.partial().to_be_bytes());
    let gso = Some(Gso { kind, ecn: false, size: SEGMENT as u16 });
    let header = Header { checksum: Some(found.place()), gso, header_length: found.payload as u16 };
    left.send(&header, &frame);

    let expected = cut(&header, frame);
    assert_eq!(expected.len(), SEGMENTS);
    let (mut got, mut frames) = (vec![], 0);
    while got.len() < SEGMENTS {
        let (header, frame) = right.receive(PATIENCE).expect("the rest of it");
        // Not the bridges' own.
        if frame[6..12] == ONE {
            frames += 1;
            got.extend(cut(&header, frame));
        }
    }
    assert!(got == expected, "{tags:02x?} {kind:?}");
    frames
}

/// The frames one stands for, with complete checksums.
fn cut(header: &Header, mut frame: Vec<u8>) -> Vec<Vec<u8>> {
    match take(Layer::Ethernet, header, &mut frame, Checksums::Full, usize::MAX).unwrap() {
        Taken::Whole { .. } => vec![frame],
        Taken::Run(plan) => (0..plan.count())
            .map(|index| {
                let mut segment = vec![0; plan.length(index)];
                plan.write(index, &frame, &mut segment).unwrap();
                segment
            })
            .collect(),
    }
}

scenario!(
    /// Hosts behind it see the same port with the same address come back.
    the_far_end_restarts_and_is_the_same_again,
    60,
    {
        let lab = bridged([&[], &[]], "mtu = 1400\n");
        let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
        let [near, far] = &[lans[0].host(1, 1400), lans[1].host(2, 1400)];
        [near, far].into_iter().for_each(Host::take_addresses);
        let [left, right] = up(&lab);
        ping(&near.network, far.address[0], PATIENCE).unwrap();
        let before = hardware_address(&lab.right.network, lab.right.interface);
        let bridge = hardware_address(&lab.right.network, "br0");
        right.kill_9();
        wait_until("the port to be gone", PATIENCE, || !lans[1].ports().contains("tl-right"));
        assert!(ping(&near.network, far.address[0], MOMENT).is_none());
        assert_eq!(hardware_address(&lab.right.network, "br0"), bridge, "the bridge's own address has changed");
        let right = lab.right.start();
        ping(&near.network, far.address[0], PATIENCE).unwrap();
        ping(&near.network, far.address[1], PATIENCE).unwrap();
        assert!(lans[1].ports().contains("tl-right"));
        assert_eq!(hardware_address(&lab.right.network, lab.right.interface), before);
        assert_eq!(hardware_address(&lab.right.network, "br0"), bridge, "the bridge's own address has changed");
        assert_ne!(hardware_address(&lab.left.network, lab.left.interface), before);
        assert!(left.terminate().success() && right.terminate().success());
    }
);

scenario!(
    /// As it stands, but for where the keys are and where hq is.
    the_example_makes_one_ethernet_of_two,
    30,
    {
        let lab = Lab::new();
        let lans = [Lan::at(&lab.left), Lan::at(&lab.right)];
        let [near, far] = &[lans[0].host(1, 1400), lans[1].host(2, 1400)];
        [near, far].into_iter().for_each(Host::take_addresses);
        let root = env!("CARGO_MANIFEST_DIR");
        let ends = [(&lab.left, "hq"), (&lab.right, "branch")].map(|(site, name)| {
            let text = fs::read_to_string(format!("{root}/examples/ethernet-bridge/{name}.toml")).unwrap();
            let hq = format!("{}:{PORT}", lab.left.outer[0]);
            let text = text.replace("../../keys", &format!("{root}/keys")).replace("hq.example.net:7311", &hq);
            fs::write(site.config(), text).unwrap();
            site.start_as_it_is()
        });
        for address in far.address {
            ping(&near.network, address, PATIENCE).unwrap();
        }
        ends.into_iter().for_each(|end| assert!(end.terminate().success()));
    }
);

scenario!(ends_with_different_layers_are_told_so_both, 60, {
    let mut lab = Lab::new();
    lab.left.link = "layer = \"ethernet\"\n".into();
    // It only answers: what it says it has learned from the one that calls.
    lab.right.endpoint = None;
    let ends = [lab.left.start(), lab.right.start()];
    for end in &ends {
        end.wait_for_log(&["ethernet", "the same layer in [link] at both"], PATIENCE);
        assert_eq!(end.status()["state"], "down");
    }
});

scenario!(without_its_bridge_nothing_starts, 30, {
    let lab = bridged([&[], &[]], "");
    let mut end = lab.left.start();
    wait_until("giving up", PATIENCE, || end.has_ended());
    end.wait_for_log(&["no bridge br0", "ip link add br0 type bridge"], PATIENCE);
    assert!(!lab.left.interfaces().contains(&"tl-left".to_owned()));
});

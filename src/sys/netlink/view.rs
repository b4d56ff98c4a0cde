//! What the kernel's tables say now: interfaces, addresses, and the routes that a packet would take or could take.

use super::own::{MAIN, OwnRoute, PROTOCOL};
use super::{Netlink, NetlinkError, all_routes, done, gateway, next_hops, one, route_query};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Its index, which no other one has as long as it is there.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The bridge whose port it is, or another interface above it.
    pub controller: Option<u32>,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The group it is in: 0 unless somebody has set another.
    pub group: u32,
}

/// What the kernel has counted at an interface since it was made. A super-packet counts as one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Whether the interface is administratively up and has a carrier now.
    pub carries: bool,
    /// How often its carrier came or went.
    pub carrier_changes: u32,
    /// Packets that were sent into it: with a TUN or TAP device, those that were read from that.
    pub tx_packets: u64,
    /// Packets that were to be sent into it and were dropped: its queue was full, or it had no carrier.
    pub tx_dropped: u64,
    /// Packets that came out of it: with a TUN or TAP device, those that were written to that.
    pub rx_packets: u64,
    /// Packets that came out of it and were dropped: the kernel had no room for them or, on an Ethernet, nobody takes their protocol.
    /// A write to a TUN or TAP device that failed counts too.
    pub rx_dropped: u64,
}

/// The route that a packet would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The interface it leaves by.
    pub oif: u32,
    /// The router it goes to; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address it would have.
    pub source: Option<IpAddr>,
}

/// A route of the main table, whoever set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MainRoute {
    /// Its destination.
    pub network: IpNet,
    /// Its priority; the lowest is used.
    pub metric: u32,
    /// Who set it (`rtm_protocol`): 2 the kernel, 3 boot, 4 static, 16 DHCP, 186 BGP, …
    pub protocol: u8,
    /// The interface it leads to, the first if there are several; `None` if it leads nowhere.
    pub oif: Option<u32>,
    /// The router there.
    pub gateway: Option<IpAddr>,
    /// The source address it prefers.
    pub source: Option<IpAddr>,
}

/// A packet to be routed.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Where it goes.
    pub to: IpAddr,
    /// The mark it has.
    pub mark: Option<u32>,
    /// The interface it can leave by; `None`: any.
    pub out: Option<u32>,
    /// The UDP port it comes from; `None`: it is not told, and not that it is UDP.
    pub port: Option<u16>,
}

impl Netlink {
    /// All interfaces.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all interfaces.
    pub async fn links(&self) -> Result<Vec<LinkState>, NetlinkError> {
        let mut found = Vec::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = done(links.try_next().await, || "reading the list of interfaces".to_owned())? {
            found.push(link_state(&link));
        }
        Ok(found)
    }

    /// What the kernel has counted at an interface (`struct rtnl_link_stats64`).
    ///
    /// # Errors
    /// If there is no such interface.
    pub async fn counters(&self, index: u32) -> Result<InterfaceCounters, NetlinkError> {
        let found = self.handle.link().get().match_index(index).execute().try_next().await;
        let link = self.one_of(index, found, |name| format!("reading the counters of {name}")).await?;
        Ok(counters(&link))
    }

    /// The addresses of an interface, host bits kept. None if there is no such interface.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all addresses.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let mut found = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = done(addresses.try_next().await, || "reading the addresses".to_owned())? {
            if address.header.index == index {
                // On an interface without a peer's address the two are the same.
                let own = address.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                });
                let any = address.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                });
                found.extend(own.or(any).and_then(|ip| IpNet::new(ip, address.header.prefix_len).ok()));
            }
        }
        Ok(found)
    }

    /// The route that a packet takes, by all rules and tables.
    ///
    /// # Errors
    /// `ENETUNREACH`, `EHOSTUNREACH` and their like if there is none.
    pub async fn route_of(&self, packet: Packet) -> Result<Taken, NetlinkError> {
        let found = self.ask_for(packet, RouteFlags::empty()).await?;
        let (oif, gateway) = next_hops(&found).first().copied().unwrap_or_default();
        Ok(Taken { oif, gateway, source: source(&found) })
    }

    /// The entry of the routing tables by which a packet takes its route: the network, and the table.
    ///
    /// # Errors
    /// `ENETUNREACH`, `EHOSTUNREACH` and their like if there is none.
    pub async fn entry_of(&self, packet: Packet) -> Result<(IpNet, u32), NetlinkError> {
        let found = self.ask_for(packet, RouteFlags::FibMatch | RouteFlags::LookupTable).await?;
        let (network, table) = destination(&found);
        let network = IpNet::new(network, found.header.destination_prefix_length);
        Ok((network.unwrap_or_else(|_| IpNet::from(packet.to)), table))
    }

    async fn ask_for(&self, packet: Packet, flags: RouteFlags) -> Result<RouteMessage, NetlinkError> {
        let to = packet.to.to_canonical();
        let mut query = route_query(to);
        query.header.flags |= flags;
        query.attributes.extend(packet.mark.map(RouteAttribute::Mark));
        query.attributes.extend(packet.out.map(RouteAttribute::Oif));
        if let Some(port) = packet.port {
            query.attributes.push(RouteAttribute::IpProto(libc::IPPROTO_UDP as u8));
            query.attributes.push(RouteAttribute::Sport(port));
        }
        let found = self.handle.route().get(query).execute().try_next().await;
        one(found, || format!("looking for the route to {to}"))
    }

    /// The routes of the main table that a packet to `to` could take, the one it does take first: longest prefix, then lowest metric.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all routes.
    pub async fn main_routes(&self, to: IpAddr) -> Result<Vec<MainRoute>, NetlinkError> {
        let mut found = self.main_table(to.is_ipv6()).await?;
        found.retain(|route| route.network.contains(&to));
        found.sort_by_key(|route| (std::cmp::Reverse(route.network.prefix_len()), route.metric));
        Ok(found)
    }

    /// The route of the main table to exactly this network with this metric.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all routes.
    pub async fn main_route(&self, network: &IpNet, metric: u32) -> Result<Option<MainRoute>, NetlinkError> {
        let found = self.main_table(network.addr().is_ipv6()).await?;
        Ok(found.into_iter().find(|route| route.network == *network && route.metric == metric))
    }

    async fn main_table(&self, v6: bool) -> Result<Vec<MainRoute>, NetlinkError> {
        let mut query = all_routes(v6);
        query.header.table = MAIN as u8;
        let mut found = Vec::new();
        let mut routes = self.handle.route().get(query).execute();
        while let Some(route) = done(routes.try_next().await, || "reading the main routing table".to_owned())? {
            found.extend(main_route(&route));
        }
        Ok(found)
    }
}

impl MainRoute {
    /// Whether it carries tieline's protocol number.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.protocol == PROTOCOL
    }
}

/// The network that a route leads to, without its length, and the table.
fn destination(message: &RouteMessage) -> (IpAddr, u32) {
    let mut table = u32::from(message.header.table);
    let mut network = match message.header.address_family {
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => network = IpAddr::V4(*v4),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => network = IpAddr::V6(*v6),
            _ => {}
        }
    }
    (network, table)
}

fn main_route(message: &RouteMessage) -> Option<MainRoute> {
    let (network, table) = destination(message);
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(number) => Some(*number),
        _ => None,
    });
    if table != MAIN || !matches!(message.header.kind, RouteType::Unicast | RouteType::Unreachable) {
        return None;
    }
    let hop = next_hops(message).first().copied().filter(|_| message.header.kind == RouteType::Unicast);
    Some(MainRoute {
        network: IpNet::new(network, message.header.destination_prefix_length).ok()?,
        metric: metric.unwrap_or(0),
        protocol: protocol_number(message.header.protocol),
        oif: hop.map(|(oif, _)| oif),
        gateway: hop.and_then(|(_, gateway)| gateway).or_else(|| gateway(&message.attributes)),
        source: source(message),
    })
}

fn protocol_number(protocol: RouteProtocol) -> u8 {
    protocol.into()
}

fn source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn link_state(link: &LinkMessage) -> LinkState {
    let flags = link.header.flags;
    let mut state = LinkState {
        index: link.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        controller: None,
        is_bridge: false,
        group: 0,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => state.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => state.mtu = *mtu,
            // What counts is what the device says, which routing hears of later.
            LinkAttribute::Carrier(carrier) => state.carrier = *carrier != 0,
            LinkAttribute::Controller(index) if *index != 0 => state.controller = Some(*index),
            LinkAttribute::Group(group) => state.group = *group,
            LinkAttribute::LinkInfo(infos) => state.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => {}
        }
    }
    state
}

fn counters(link: &LinkMessage) -> InterfaceCounters {
    let LinkState { up, carrier, .. } = link_state(link);
    let mut counters = InterfaceCounters { carries: up && carrier, ..InterfaceCounters::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::CarrierChanges(changes) => counters.carrier_changes = *changes,
            LinkAttribute::Stats64(stats) => {
                counters.tx_packets = stats.tx_packets;
                counters.tx_dropped = stats.tx_dropped;
                counters.rx_packets = stats.rx_packets;
                counters.rx_dropped = stats.rx_dropped;
            }
            _ => {}
        }
    }
    counters
}

/// The name of a routing protocol (`/etc/iproute2/rt_protos`), or its number.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    let known = [(2, "kernel"), (3, "boot"), (4, "static"), (9, "ra"), (11, "zebra"), (12, "bird"), (16, "dhcp")];
    let routing = [(PROTOCOL, "tieline"), (186, "bgp"), (187, "isis"), (188, "ospf"), (189, "rip")];
    let name = known.iter().chain(&routing).find(|(number, _)| *number == protocol);
    name.map_or_else(|| protocol.to_string(), |(_, name)| (*name).to_owned())
}

impl OwnRoute {
    /// Whether it is in the main table.
    #[must_use]
    pub fn is_in_main(&self) -> bool {
        self.table == MAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::tests::in_own_network;
    use crate::sys::offloads::TunOffloads;
    use crate::sys::testing::shell;
    use crate::sys::tun;
    use std::os::fd::AsFd;

    #[test]
    fn interfaces_addresses_and_routes_are_seen_as_they_are() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            shell("ip link add left type veth peer name right; ip link add br7 type bridge; ip link set br7 up");
            shell("ip link set left up mtu 1400; ip link set right master br7 group 77");
            shell("ip addr add 192.0.2.1/24 dev left; ip addr add 2001:db8::1/64 dev left nodad");
            shell("ip route add default via 192.0.2.254 metric 5; ip route add 10.0.0.0/8 dev left metric 9 proto 115");
            shell(
                "ip route add unreachable 10.0.0.0/8 metric 4294967295; ip route add 10.0.0.0/8 dev left metric 7 table 8",
            );
            let links = netlink.links().await.unwrap();
            let of = |name: &str| links.iter().find(|link| link.name == name).unwrap();
            let (left, right, bridge) = (of("left"), of("right"), of("br7"));
            assert_eq!((left.up, left.mtu, left.carrier, left.controller), (true, 1400, false, None));
            assert_eq!((right.up, right.controller, right.group), (false, Some(bridge.index), 77));
            assert!(bridge.is_bridge && !right.is_bridge);
            let mut addresses = netlink.addresses(left.index).await.unwrap();
            addresses.retain(|net| !net.addr().to_string().starts_with("fe80"));
            assert_eq!(addresses, ["192.0.2.1/24".parse().unwrap(), "2001:db8::1/64".parse::<IpNet>().unwrap()]);

            let found = netlink.main_routes("10.1.2.3".parse().unwrap()).await.unwrap();
            let shown: Vec<_> = found.iter().map(|r| (r.network.to_string(), r.metric, r.oif, r.is_own())).collect();
            let net = |text: &str| text.to_owned();
            assert_eq!(
                shown,
                [
                    (net("10.0.0.0/8"), 9, Some(left.index), true),
                    (net("10.0.0.0/8"), u32::MAX, None, false),
                    (net("0.0.0.0/0"), 5, Some(left.index), false)
                ]
            );
            assert_eq!(found[2].gateway, Some("192.0.2.254".parse().unwrap()));
            let exact = netlink.main_route(&"10.0.0.0/8".parse().unwrap(), 9).await.unwrap();
            assert_eq!(exact, Some(found[0]));
            assert_eq!(
                (protocol_name(115), protocol_name(4), protocol_name(77)),
                (net("tieline"), net("static"), net("77"))
            );
        });
    }

    #[test]
    fn what_the_queue_has_no_room_for_is_counted_and_so_is_what_comes_without_a_carrier() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            let (fd, _) = tun::create("tl-test", tun::Kind::Tun, TunOffloads::NONE).unwrap();
            shell("sysctl -qw net.ipv6.conf.tl-test.disable_ipv6=1; ip link set tl-test txqueuelen 4");
            shell("ip addr add 192.0.2.1/24 dev tl-test; ip link set tl-test up");
            let index = netlink.index("tl-test").await.unwrap();
            let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
            let send = |count| (0..count).for_each(|_| _ = socket.send_to(b"x", "192.0.2.2:9").unwrap());
            let before = netlink.counters(index).await.unwrap();
            send(20);
            let full = netlink.counters(index).await.unwrap();
            assert_eq!((full.carries, full.tx_dropped, full.tx_packets), (true, before.tx_dropped + 16, 0));
            tun::read(fd.as_fd(), &mut [std::io::IoSliceMut::new(&mut [0; 100])]).unwrap();
            tun::set_carrier(fd.as_fd(), false).unwrap();
            netlink.notice_carrier(index).await.unwrap();
            send(10);
            let off = netlink.counters(index).await.unwrap();
            assert_eq!((off.carries, off.tx_dropped, off.tx_packets), (false, full.tx_dropped + 10, 1));
            assert_eq!(off.carrier_changes, full.carrier_changes + 1);
            tun::write(fd.as_fd(), &[std::io::IoSlice::new(&[0x15; 20])]).unwrap_err();
            let refused = netlink.counters(index).await.unwrap();
            assert_eq!((refused.rx_dropped, refused.rx_packets), (off.rx_dropped + 1, 0), "no IP packet");
            netlink.counters(999).await.unwrap_err();
        });
    }

    #[test]
    fn a_packet_is_routed_by_its_mark_its_port_and_its_interface() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            for (name, address) in [("wan0", "192.0.2.1/24"), ("wan1", "198.51.100.1/24"), ("wan2", "203.0.113.1/24")] {
                shell(&format!("ip link add {name} type veth peer name far-{name}; ip link set far-{name} up"));
                shell(&format!("ip addr add {address} dev {name}; ip link set {name} up"));
            }
            shell("ip route add 10.0.0.0/8 via 192.0.2.9; ip route add 10.0.0.0/8 via 198.51.100.9 table 7");
            shell("ip route add 10.0.0.0/8 via 203.0.113.9 table 8; ip route add default via 203.0.113.9");
            shell("ip rule add fwmark 7 lookup 7; ip rule add ipproto udp sport 7311 lookup 8");
            let plain = Packet { to: "10.1.2.3".parse().unwrap(), mark: None, out: None, port: None };
            let wan2 = netlink.index("wan2").await.unwrap();
            for (packet, source) in [
                (plain, "192.0.2.1"),
                (Packet { mark: Some(7), ..plain }, "198.51.100.1"),
                (Packet { port: Some(7311), ..plain }, "203.0.113.1"),
                (Packet { port: Some(7312), ..plain }, "192.0.2.1"),
                (Packet { out: Some(wan2), ..plain }, "203.0.113.1"),
            ] {
                let taken = netlink.route_of(packet).await.unwrap();
                assert_eq!(taken.source, Some(source.parse().unwrap()), "{packet:?}");
            }
            let entries = [(plain, "10.0.0.0/8", MAIN), (Packet { mark: Some(7), ..plain }, "10.0.0.0/8", 7)];
            let other = Packet { to: "192.0.9.9".parse().unwrap(), ..plain };
            for (packet, network, table) in entries.into_iter().chain([(other, "0.0.0.0/0", MAIN)]) {
                assert_eq!(netlink.entry_of(packet).await.unwrap(), (network.parse().unwrap(), table), "{packet:?}");
            }
            netlink.route_of(Packet { to: "fd00::1".parse().unwrap(), ..plain }).await.unwrap_err();
        });
    }
}

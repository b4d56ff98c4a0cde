//! Routes that carry tieline's own protocol number. Only what is listed here is ever removed.
//!
//! A route of another program has another number (`man 8 ip-route`, `protocol`), so that it cannot be mistaken for one of these. What
//! belongs to which link is told by the metric, see [`OwnRoute::metric`].

use super::{Netlink, NetlinkError, all_routes, done, invalid};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The protocol number of all routes and rules of tieline's (`rtm_protocol`, `FRA_PROTOCOL`): none that iproute2 has a name for.
pub const PROTOCOL: u8 = 115;

/// The machine's usual table (`RT_TABLE_MAIN`).
pub const MAIN: u32 = 254;

/// The table of the default routes into links. All links share it, so that their metrics decide.
pub const DEFAULTS: u32 = 0x7311;

/// The table of routes to peers, for the links' own datagrams alone.
pub const PEERS: u32 = DEFAULTS + 1;

/// The metric that Linux gives an IPv6 route without one (`IP6_RT_PRIO_USER`).
const V6_METRIC: u32 = 1024;

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Into an interface, without a next hop.
    Interface(u32),
    /// By an interface, to a router of it or to a host on it.
    NextHop {
        /// The interface's index.
        oif: u32,
        /// The router; `None` if the destination is on the link itself.
        gateway: Option<IpAddr>,
        /// The source address that is preferred; `None` leaves it to the kernel.
        source: Option<IpAddr>,
    },
    /// Nowhere: whoever sends there is told that the host is unreachable.
    Unreachable,
}

/// A route of tieline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnRoute {
    /// Its destination, without host bits.
    pub network: IpNet,
    /// The routing table it is in.
    pub table: u32,
    /// Its priority as the kernel counts it: the lowest is used. For routes that outlive an interface it also says whose they are.
    pub metric: u32,
    /// Where it leads.
    pub target: Target,
}

impl OwnRoute {
    /// The metric that the kernel has for a route of which config says `metric`.
    #[must_use]
    pub fn metric_of(network: &IpNet, metric: Option<u32>) -> u32 {
        match (network, metric) {
            (IpNet::V4(_), metric) => metric.unwrap_or(0),
            (IpNet::V6(_), None | Some(0)) => V6_METRIC,
            (IpNet::V6(_), Some(metric)) => metric,
        }
    }

    fn message(&self) -> Result<RouteMessage, NetlinkError> {
        let action = || format!("describing the route to {}", self.network);
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.network.addr(), self.network.prefix_len())
            .map_err(|error| invalid(error, action))?
            .table_id(self.table)
            .priority(self.metric)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build();
        match self.target {
            Target::Interface(index) => {
                // As `ip route add NETWORK dev NAME` has it for IPv4.
                message.header.scope =
                    if self.network.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
                message.attributes.push(RouteAttribute::Oif(index));
            }
            Target::NextHop { oif, gateway, source } => {
                message.attributes.push(RouteAttribute::Oif(oif));
                message.attributes.extend(source.map(|ip| RouteAttribute::PrefSource(ip.into())));
                match gateway {
                    Some(gateway) => {
                        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
                        // The route it was copied from has said that the router is there.
                        message.header.flags |= RouteFlags::Onlink;
                    }
                    None if self.network.addr().is_ipv4() => message.header.scope = RouteScope::Link,
                    None => {}
                }
            }
            Target::Unreachable => message.header.kind = RouteType::Unreachable,
        }
        Ok(message)
    }

    /// What the kernel's answer says, if it is of tieline's.
    fn read(message: &RouteMessage) -> Option<OwnRoute> {
        if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
            return None;
        }
        let v6 = message.header.address_family == AddressFamily::Inet6;
        let mut network = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
        let (mut table, mut metric) = (u32::from(message.header.table), 0);
        let (mut oif, mut gateway, mut source) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => network = ip(address)?,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(number) => metric = *number,
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::PrefSource(address) => source = ip(address),
                _ => {}
            }
        }
        let target = match (message.header.kind, oif) {
            (RouteType::Unreachable, _) => Target::Unreachable,
            (RouteType::Unicast, Some(oif)) if table == PEERS => Target::NextHop { oif, gateway, source },
            (RouteType::Unicast, Some(oif)) => Target::Interface(oif),
            _ => return None,
        };
        let network = IpNet::new(network, message.header.destination_prefix_length).ok()?;
        Some(OwnRoute { network, table, metric, target })
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

impl Netlink {
    /// All routes of tieline's, of every link of this network namespace.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all routes.
    pub async fn own_routes(&self) -> Result<Vec<OwnRoute>, NetlinkError> {
        let mut found = Vec::new();
        for v6 in [false, true] {
            let mut query = all_routes(v6);
            // A kernel that checks strictly answers with tieline's alone; another answers with all.
            query.header.protocol = RouteProtocol::Other(PROTOCOL);
            let mut routes = self.handle.route().get(query).execute();
            while let Some(route) = done(routes.try_next().await, || "reading the routing tables".to_owned())? {
                found.extend(OwnRoute::read(&route));
            }
        }
        Ok(found)
    }

    /// Sets a route.
    ///
    /// # Errors
    /// Of kind `AlreadyExists` where the table has one to that network with that metric, whoever set it.
    pub async fn add_own_route(&self, route: &OwnRoute) -> Result<(), NetlinkError> {
        let action = || format!("adding the route to {}", route.network);
        done(self.handle.route().add(route.message()?).execute().await, action)
    }

    /// Takes such a route away. That it is not there is no error.
    ///
    /// # Errors
    /// If the caller lacks CAP_NET_ADMIN.
    pub async fn remove_own_route(&self, route: &OwnRoute) -> Result<(), NetlinkError> {
        let action = || format!("removing the route to {}", route.network);
        match done(self.handle.route().del(route.message()?).execute().await, action) {
            // ESRCH: there is no such route. ENODEV: its interface has gone, and the route with it.
            Err(error) if error.is(Errno::ESRCH) || error.is(Errno::ENODEV) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::tests::in_own_network;
    use crate::sys::testing::shell;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn own_routes_are_told_from_all_others_and_alone_removed() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            netlink.create_veth("left", "right").await.unwrap();
            let left = netlink.index("left").await.unwrap();
            netlink.set_up(left).await.unwrap();
            netlink.set_up(netlink.index("right").await.unwrap()).await.unwrap();
            shell("ip addr add 192.0.2.1/24 dev left; ip addr add 2001:db8::1/64 dev left nodad");
            shell("ip route add 198.51.100.0/24 dev left; ip -6 route add fd01::/64 dev left");
            shell("ip route add unreachable 203.0.113.0/24 metric 4294900000");
            let hop = |gateway: &str, source: Option<&str>| Target::NextHop {
                oif: left,
                gateway: gateway.parse().ok(),
                source: source.map(|ip| ip.parse().unwrap()),
            };
            let route = |network, table, metric, target| OwnRoute { network: net(network), table, metric, target };
            let mut all = vec![
                route("10.0.0.0/8", MAIN, 0, Target::Interface(left)),
                route("fd02::/64", MAIN, 1024, Target::Interface(left)),
                route("10.0.0.0/8", MAIN, u32::MAX, Target::Unreachable),
                route("fd02::/64", MAIN, u32::MAX, Target::Unreachable),
                route("0.0.0.0/0", DEFAULTS, 7, Target::Interface(left)),
                route("::/0", DEFAULTS, u32::MAX - 1, Target::Unreachable),
                route("203.0.113.7/32", PEERS, 5, hop("192.0.2.254", Some("192.0.2.1"))),
                route("203.0.113.8/32", PEERS, 5, hop("", None)),
                route("2001:db8:7::1/128", PEERS, 5, hop("2001:db8::fe", None)),
                route("2001:db8:7::2/128", PEERS, 5, hop("", None)),
                route("203.0.113.9/32", PEERS, 5, Target::Unreachable),
            ];
            let before = crate::sys::testing::output("ip route show table all; ip -6 route show table all");
            for route in &all {
                netlink.add_own_route(route).await.unwrap_or_else(|error| panic!("{route:?}: {error}"));
                let again = netlink.add_own_route(route).await.unwrap_err();
                assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists, "{route:?}");
            }
            let mut found = netlink.own_routes().await.unwrap();
            all.sort();
            found.sort();
            assert_eq!(found, all);
            for route in &all {
                netlink.remove_own_route(route).await.unwrap();
                netlink.remove_own_route(route).await.unwrap();
            }
            assert_eq!(netlink.own_routes().await.unwrap(), []);
            let after = crate::sys::testing::output("ip route show table all; ip -6 route show table all");
            assert_eq!(after, before, "another's route was touched");
        });
    }

    #[test]
    fn another_ones_route_to_the_same_network_stays() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            netlink.create_veth("left", "right").await.unwrap();
            let left = netlink.index("left").await.unwrap();
            netlink.set_up(left).await.unwrap();
            shell("ip route add 10.0.0.0/8 dev left metric 5");
            let route =
                OwnRoute { network: net("10.0.0.0/8"), table: MAIN, metric: 5, target: Target::Interface(left) };
            let error = netlink.add_own_route(&route).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
            netlink.remove_own_route(&route).await.unwrap();
            shell("ip route show 10.0.0.0/8 | grep -q 'dev left'");
        });
    }

    #[test]
    fn metrics_as_the_kernel_has_them() {
        let metric = |network, metric| OwnRoute::metric_of(&net(network), metric);
        assert_eq!((metric("10.0.0.0/8", None), metric("10.0.0.0/8", Some(7))), (0, 7));
        assert_eq!((metric("fd00::/8", None), metric("fd00::/8", Some(7))), (1024, 7));
    }
}

//! Whose a route is: which interface has the network already that another was to get, and who set it.

use super::{Netlink, NetlinkError, all_routes, done, next_hops};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use std::fmt;
use std::io;
use std::net::IpAddr;

/// `RT_TABLE_MAIN` (linux/rtnetlink.h).
const MAIN: u32 = 254;

/// The route that a network has. `Display` says it as a reader of `ip route` knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteOwner {
    /// The interface it leads to, the first where there are several; `None` for one that leads nowhere (`unreachable`, `blackhole`, …).
    pub interface: Option<String>,
    /// Who set it, as ip-route(8) names it: `kernel`, `static`, `dhcp`, `bird`, …; a number for others.
    pub protocol: String,
    /// Its metric.
    pub metric: u32,
}

impl fmt::Display for RouteOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteOwner { interface, protocol, metric } = self;
        match interface {
            Some(name) => write!(f, "routed to {name} on this machine (metric {metric}, proto {protocol})"),
            None => write!(f, "blocked by a route on this machine (metric {metric}, proto {protocol})"),
        }
    }
}

impl Netlink {
    /// The route that exactly this network has with this metric in a table (`None`: the main one); without a metric the one that the
    /// kernel gives by default.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all routes.
    pub async fn route_owner(
        &self,
        network: IpAddr,
        prefix_len: u8,
        metric: Option<u32>,
        table: Option<u32>,
    ) -> Result<Option<RouteOwner>, NetlinkError> {
        let (table, metric) = (table.unwrap_or(MAIN), metric.unwrap_or(if network.is_ipv4() { 0 } else { 1024 }));
        let query = all_routes(network.is_ipv6());
        let mut routes = self.handle.route().get(query).execute();
        while let Some(route) = done(routes.try_next().await, || format!("looking for the route of {network}"))? {
            if table_of(&route) == table && metric_of(&route) == metric && leads_to(&route, network, prefix_len) {
                let interface = match (route.header.kind, next_hops(&route).first()) {
                    (RouteType::Unicast | RouteType::Local, Some((index, _))) => Some(self.name(*index).await),
                    _ => None,
                };
                let protocol = name_of(route.header.protocol);
                return Ok(Some(RouteOwner { interface, protocol, metric }));
            }
        }
        Ok(None)
    }

    /// What to say of a route that could not be added because there is one: whose that is. Where it is not found, `error`.
    pub(super) async fn taken_route(
        &self,
        error: NetlinkError,
        network: IpAddr,
        prefix_len: u8,
        metric: Option<u32>,
        table: Option<u32>,
    ) -> NetlinkError {
        match self.route_owner(network, prefix_len, metric, table).await {
            Ok(Some(owner)) => NetlinkError {
                action: format!(
                    "{network}/{prefix_len} is already {owner}. `routes` lists what is behind the *other* end"
                ),
                source: io::ErrorKind::AlreadyExists.into(),
            },
            _ => error,
        }
    }
}

fn table_of(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(number) => Some(*number),
        _ => None,
    });
    named.unwrap_or(route.header.table.into())
}

fn metric_of(route: &RouteMessage) -> u32 {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

/// Whether it is for exactly this network.
fn leads_to(route: &RouteMessage, network: IpAddr, prefix_len: u8) -> bool {
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    // A default route has none.
    route.header.destination_prefix_length == prefix_len && destination.is_none_or(|found| found == network)
}

/// As `/etc/iproute2/rt_protos` and ip-route(8) have it.
fn name_of(protocol: RouteProtocol) -> String {
    let number = u8::from(protocol);
    let name = match number {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        10 => "mrt",
        11 => "zebra",
        12 => "bird",
        13 => "dnrouted",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        17 => "mrouted",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{in_own_network, shell};

    fn owner(interface: Option<&str>, protocol: &str, metric: u32) -> Option<RouteOwner> {
        Some(RouteOwner { interface: interface.map(str::to_owned), protocol: protocol.to_owned(), metric })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn who_has_a_route_is_told_by_interface_protocol_and_metric() {
        in_own_network(|| {
            shell("ip link add lan0 type veth peer name lan1 && ip link set lan0 up && ip link set lan1 up");
            shell("ip addr add 192.168.20.1/24 dev lan0 && ip addr add fd20::1/64 dev lan0 nodad");
            shell("ip route add 10.0.0.0/8 dev lan0 metric 7 proto static");
            shell("ip route add 10.0.0.0/8 dev lan1 metric 8 proto bird");
            shell("ip route add unreachable 10.7.0.0/16 metric 9 proto 99");
            shell("ip route add 0.0.0.0/0 dev lan1 table 29457 proto dhcp");
            shell("ip route add fd21::/64 dev lan1");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let netlink = Netlink::open().unwrap();
                let find = async |network, length, metric, table| {
                    netlink.route_owner(ip(network), length, metric, table).await.unwrap()
                };
                assert_eq!(find("192.168.20.0", 24, None, None).await, owner(Some("lan0"), "kernel", 0));
                assert_eq!(find("10.0.0.0", 8, Some(7), None).await, owner(Some("lan0"), "static", 7));
                assert_eq!(find("10.0.0.0", 8, Some(8), None).await, owner(Some("lan1"), "bird", 8));
                assert_eq!(find("10.0.0.0", 8, None, None).await, None, "another metric is another route");
                assert_eq!(find("10.0.0.0", 9, Some(7), None).await, None);
                assert_eq!(find("10.7.0.0", 16, Some(9), None).await, owner(None, "99", 9));
                assert_eq!(find("0.0.0.0", 0, None, Some(29457)).await, owner(Some("lan1"), "dhcp", 0));
                assert_eq!(find("0.0.0.0", 0, None, None).await, None);
                assert_eq!(find("fd21::", 64, None, None).await, owner(Some("lan1"), "boot", 1024));

                let lan1 = netlink.index("lan1").await.unwrap();
                let taken = netlink.add_route(lan1, ip("192.168.20.0"), 24, None).await.unwrap_err();
                assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
                assert_eq!(
                    taken.to_string(),
                    "192.168.20.0/24 is already routed to lan0 on this machine (metric 0, proto kernel). `routes` lists what is \
                     behind the *other* end"
                );
                let blocked = netlink.add_route(lan1, ip("10.7.0.0"), 16, Some(9)).await.unwrap_err().to_string();
                assert!(blocked.starts_with("10.7.0.0/16 is already blocked by a route on this machine"), "{blocked}");
            });
        });
    }
}

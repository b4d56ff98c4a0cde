//! Interfaces, addresses, routes and MTUs, by rtnetlink (RFC 3549; `man 7 rtnetlink`).
//!
//! One small method per thing the link or the demo does to the kernel's tables, each with an error that says what was being
//! done. It keeps no record of what it did: addresses and routes die with their interface, and a TUN dies with its file
//! descriptor, so closing the device is the undo.

pub mod monitor;
pub mod own;
mod owner;
pub mod rules;
pub mod view;

pub use owner::RouteOwner;

use std::fmt::{self, Display};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection_with_strict_check,
};

/// A change of the kernel's tables, or a question to them, that failed: what was being done, why it failed and, where the
/// cause has a usual meaning, what that is.
#[derive(Debug, thiserror::Error)]
#[error("{action}{}", Cause(.source))]
pub struct NetlinkError {
    action: String,
    source: io::Error,
}

impl NetlinkError {
    /// The kernel's answer, for callers that treat one of them differently (`NotFound`, `PermissionDenied`, …).
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// What failed, and what the system said.
    #[must_use]
    pub fn new(action: String, source: io::Error) -> NetlinkError {
        NetlinkError { action, source }
    }

    /// Whether it is this one.
    fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

/// Why something failed: what the kernel says, without its number, and what that usually means. Nothing where the text before says
/// all there is to say.
struct Cause<'a>(&'a io::Error);

impl Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(code) => write!(f, ": {}{}", Errno::from_raw(code).desc(), hint(self.0)),
            None if self.0.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            None => write!(f, ": {}", self.0),
        }
    }
}

/// What an answer usually means to someone who configures a link.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EEXIST) => " — something else on this machine already has it",
        Some(Errno::EPERM) => " — this needs root or CAP_NET_ADMIN",
        Some(Errno::EOPNOTSUPP | Errno::EACCES) => {
            " — is IPv6 turned off on this machine or interface (net.ipv6.conf.*.disable_ipv6)?"
        }
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => " — there is no route to it",
        Some(Errno::ENODEV) => " — there is no such interface",
        _ => "",
    }
}

/// The way to one address, from the routing tables alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Largest IP packet, in bytes, that configuration lets onto the way: the route's own `mtu` where one is set, else the
    /// interface's (the smallest of them where the route has several next hops). Never a path MTU learned from ICMP: anyone
    /// can send those.
    pub mtu: u32,
    /// Index of the interface the packets leave by.
    pub oif: u32,
    /// The router they go to; `None` if the address is on the link.
    pub gateway: Option<IpAddr>,
}

/// A connection to the kernel's routing and interface tables, of the network namespace the opening thread was in.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    /// How [`Netlink::route_to`] looks at the tables: as a packet with this mark …
    mark: Option<u32>,
    /// … that can leave by this interface alone …
    out: Option<u32>,
    /// … and comes from this UDP port; 0 where that is not known.
    port: Arc<AtomicU16>,
}

impl Netlink {
    /// Opens a netlink socket and spawns the task that serves it on the current tokio runtime, which must have its I/O driver
    /// enabled. The task ends when the last clone is dropped.
    ///
    /// # Errors
    /// Whatever `socket(AF_NETLINK)` says.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`tokio::spawn`] does.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _unasked_for) = new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Self { handle, mark: None, out: None, port: Arc::default() })
    }

    /// The same, which looks for routes as a packet with this mark does that can leave by the interface `out` alone.
    #[must_use]
    pub fn seen_by(self, mark: Option<u32>, out: Option<u32>) -> Self {
        Self { mark, out, ..self }
    }

    /// From now on this, and all that were cloned from it, look for routes as a UDP datagram from this port does, which rules may go by
    /// ([`rules`]).
    pub fn set_port(&self, port: u16) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// The same, which looks for routes as what can leave by this interface alone does.
    #[must_use]
    pub fn leaving_by(self, out: u32) -> Self {
        Self { out: Some(out), ..self }
    }

    /// Index of the interface of this name.
    ///
    /// # Errors
    /// Of kind `NotFound` or `ENODEV` if there is none.
    pub async fn index(&self, name: &str) -> Result<u32, NetlinkError> {
        let query = self.handle.link().get().match_name(name);
        let found = query.execute().try_next().await;
        let link = one(found, || format!("looking for interface {name}"))?;
        Ok(link.header.index)
    }

    /// Whether an interface is a bridge of the kernel's (`man 8 ip-link`, type `bridge`).
    ///
    /// # Errors
    /// If there is no such interface.
    pub async fn is_bridge(&self, index: u32) -> Result<bool, NetlinkError> {
        let query = self.handle.link().get().match_index(index);
        let found = query.execute().try_next().await;
        let link = self.one_of(index, found, |name| format!("looking at {name}")).await?;
        let bridge = LinkInfo::Kind(InfoKind::Bridge);
        Ok(link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkInfo(infos) if infos.contains(&bridge))))
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// If one of them is gone, the bridge takes no such interface, or the caller lacks CAP_NET_ADMIN.
    pub async fn join_bridge(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).controller(bridge).build();
        let bridge = self.name(bridge).await;
        self.change(index, message, |name| format!("making {name} a port of {bridge}")).await
    }

    /// Sets an Ethernet interface's own address.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` if it is no unicast address; also if the interface is gone or the caller lacks CAP_NET_ADMIN.
    pub async fn set_hardware_address(&self, index: u32, address: [u8; 6]) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).address(address.to_vec()).build();
        self.change(index, message, |name| format!("setting the Ethernet address of {name}")).await
    }

    /// MTU of an interface in bytes.
    ///
    /// # Errors
    /// If there is no such interface.
    pub async fn mtu(&self, index: u32) -> Result<u32, NetlinkError> {
        let query = self.handle.link().get().match_index(index);
        let found = query.execute().try_next().await;
        let link = self.one_of(index, found, |name| format!("reading the MTU of {name}")).await?;
        link_mtu(&link).ok_or_else(|| NetlinkError {
            action: format!("reading the MTU of interface {index}"),
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    /// Gives an interface an address; the kernel adds the route to the rest of its prefix.
    ///
    /// IPv6 addresses come without duplicate address detection (RFC 4862 §5.4 asks it of links with neighbours): on a wire
    /// with two ends it can only delay the first packet by a second.
    ///
    /// # Errors
    /// If the interface has it already, is gone, or the caller lacks CAP_NET_ADMIN.
    pub async fn add_address(&self, index: u32, address: IpAddr, prefix_len: u8) -> Result<(), NetlinkError> {
        let message = match address {
            IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, prefix_len).build(),
            IpAddr::V6(v6) => {
                let mut message = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, prefix_len).build();
                message.header.flags |= AddressHeaderFlags::Nodad;
                message
            }
        };
        let mut request = self.handle.address().add(index, address, prefix_len);
        *request.message_mut() = message;
        let added = request.execute().await;
        self.done_with(index, added, |name| format!("adding address {address}/{prefix_len} to {name}")).await
    }

    /// Takes an address from an interface, and with it the routes that hang on it.
    ///
    /// # Errors
    /// If the interface does not have it.
    pub async fn del_address(&self, index: u32, address: IpAddr, prefix_len: u8) -> Result<(), NetlinkError> {
        // The same message as for adding says exactly which one is meant.
        let mut request = self.handle.address().add(index, address, prefix_len);
        let message = request.message_mut().clone();
        let removed = self.handle.address().del(message).execute().await;
        self.done_with(index, removed, |name| format!("removing address {address}/{prefix_len} from {name}")).await
    }

    /// Sets the largest packet, in bytes, an interface takes.
    ///
    /// # Errors
    /// `EINVAL` outside what the device allows.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.change(index, message, |name| format!("setting MTU {mtu} on {name}")).await
    }

    /// Sets the largest super-packet an interface is given: its bytes, IP header included, and its segments. Larger ones the
    /// kernel cuts before.
    ///
    /// Up to 65,536 bytes this holds for IPv4 and IPv6 alike (`netif_set_gso_max_size`).
    ///
    /// # Errors
    /// `EINVAL` outside what the device allows; also if the interface is gone or the caller lacks CAP_NET_ADMIN.
    pub async fn set_gso_max(&self, index: u32, bytes: u32, segments: u16) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(bytes))
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(segments.into()))
            .build();
        self.change(index, message, |name| format!("setting the largest super-packet of {name}")).await
    }

    /// Sets how many packets, or super-packets, may wait on an interface; what comes when it is full is dropped.
    ///
    /// # Errors
    /// If the interface is gone or the caller lacks CAP_NET_ADMIN.
    pub async fn set_queue_length(&self, index: u32, packets: u32) -> Result<(), NetlinkError> {
        let message =
            LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::TxQueueLen(packets)).build();
        self.change(index, message, |name| format!("setting the queue length of {name}")).await
    }

    /// Puts an interface in a group, by which rules and firewalls can know it (`man 8 ip-link`, `group`).
    ///
    /// # Errors
    /// If the interface is gone or the caller lacks CAP_NET_ADMIN.
    pub async fn set_group(&self, index: u32, group: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::Group(group)).build();
        self.change(index, message, |name| format!("setting the group of {name}")).await
    }

    /// Brings an interface administratively up.
    ///
    /// # Errors
    /// If the interface is gone or the caller lacks CAP_NET_ADMIN.
    pub async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.change(index, message, |name| format!("bringing {name} up")).await
    }

    /// Sends a network into an interface, without a next hop, in the main table. `metric` is the route's priority, lower wins; without
    /// one the kernel's default holds (0 for IPv4, 1024 for IPv6).
    ///
    /// # Errors
    /// `EEXIST` if the same network with the same metric already has a route; `EINVAL` if the network has bits set beyond its
    /// prefix.
    pub async fn add_route(
        &self,
        index: u32,
        network: IpAddr,
        prefix_len: u8,
        metric: Option<u32>,
    ) -> Result<(), NetlinkError> {
        let action = |name: &str| format!("adding route {network}/{prefix_len} to {name}");
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network, prefix_len)
            .map_err(|e| invalid(e, || action(&nameless(index))))?
            .output_interface(index);
        if let Some(metric) = metric {
            route = route.priority(metric);
        }
        let added = self.handle.route().add(route.build()).execute().await;
        match self.done_with(index, added, action).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(self.taken_route(error, network, prefix_len, metric, None).await)
            }
            other => other,
        }
    }

    /// Has the kernel notice now that an interface's carrier came or went, as far as routes go by it. By itself it does so
    /// once a second at most where a carrier was lost (`linkwatch`). Before Linux 6.8 this changes nothing.
    ///
    /// # Errors
    /// If the interface is gone.
    pub async fn notice_carrier(&self, index: u32) -> Result<(), NetlinkError> {
        // Whoever asks for an interface gets it with that done (`linkwatch_sync_dev`).
        let found = self.handle.link().get().match_index(index).execute().try_next().await;
        self.one_of(index, found, |name| format!("asking for {name}")).await.map(drop)
    }

    /// The way packets to `peer` would take now. An IPv4-mapped IPv6 address means the IPv4 one.
    ///
    /// It asks for the matching entry of the routing table (`RTM_F_FIB_MATCH`) and not for the kernel's resolved route, which
    /// would carry whatever path MTU some ICMP message claimed.
    ///
    /// # Errors
    /// `ENETUNREACH` and its like if there is no way.
    pub async fn route_to(&self, peer: IpAddr) -> Result<Route, NetlinkError> {
        let peer = peer.to_canonical();
        let action = || format!("looking for the route to {peer}");
        let mut query = route_query(peer);
        query.attributes.extend(self.mark.map(RouteAttribute::Mark));
        query.attributes.extend(self.out.map(RouteAttribute::Oif));
        let port = self.port.load(Ordering::Relaxed);
        if port != 0 {
            query.attributes.extend([RouteAttribute::IpProto(libc::IPPROTO_UDP as u8), RouteAttribute::Sport(port)]);
        }
        query.header.flags |= RouteFlags::FibMatch;
        let found = self.handle.route().get(query).execute().try_next().await;
        let entry = one(found, action)?;

        let hops = next_hops(&entry);
        let Some(&(oif, gateway)) = hops.first() else {
            return Err(NetlinkError {
                action: action(),
                source: io::Error::from_raw_os_error(Errno::ENETUNREACH as i32),
            });
        };
        let mtu = match route_mtu(&entry) {
            Some(mtu) => mtu,
            None => {
                let mut least = u32::MAX;
                for (index, _) in hops {
                    least = least.min(self.mtu(index).await?);
                }
                least
            }
        };
        Ok(Route { mtu, oif, gateway })
    }

    /// Makes a pair of interfaces that are the two ends of one cable.
    ///
    /// # Errors
    /// `EEXIST` if one of the names is taken.
    pub async fn create_veth(&self, a: &str, b: &str) -> Result<(), NetlinkError> {
        let request = self.handle.link().add(LinkVeth::new(a, b).build());
        done(request.execute().await, || format!("creating the veth pair {a}, {b}"))
    }

    /// Moves an interface into another network namespace. It arrives there down and without addresses.
    ///
    /// # Errors
    /// If that namespace already has an interface of the same name.
    pub async fn set_netns(&self, index: u32, namespace: impl AsFd) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).setns_by_fd(namespace.as_fd().as_raw_fd()).build();
        self.change(index, message, |name| format!("moving {name} to another network namespace")).await
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// If there is none of this name, or it is not of a kind that can be deleted.
    pub async fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let index = self.index(name).await?;
        done(self.handle.link().del(index).execute().await, || format!("deleting interface {name}"))
    }

    async fn change(
        &self,
        index: u32,
        message: LinkMessage,
        action: impl Fn(&str) -> String,
    ) -> Result<(), NetlinkError> {
        let changed = self.handle.link().change(message).execute().await;
        self.done_with(index, changed, action).await
    }

    /// What an interface is called, for people; its number where it has gone.
    async fn name(&self, index: u32) -> String {
        let found = self.handle.link().get().match_index(index).execute().try_next().await;
        let name = found.ok().flatten().and_then(|link| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        });
        name.unwrap_or_else(|| nameless(index))
    }

    /// The answer to what was done with an interface, which is looked up where that failed, so that it can be named.
    async fn done_with<T>(
        &self,
        index: u32,
        result: Result<T, rtnetlink::Error>,
        action: impl Fn(&str) -> String,
    ) -> Result<T, NetlinkError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let name = self.name(index).await;
                done(Err(error), || action(&name))
            }
        }
    }

    /// The same for a question with a single answer.
    async fn one_of<T>(
        &self,
        index: u32,
        answer: Result<Option<T>, rtnetlink::Error>,
        action: impl Fn(&str) -> String,
    ) -> Result<T, NetlinkError> {
        let found = self.done_with(index, answer, &action).await?;
        found.ok_or_else(|| NetlinkError { action: action(&nameless(index)), source: io::ErrorKind::NotFound.into() })
    }
}

/// What an interface is called whose name is not known.
fn nameless(index: u32) -> String {
    format!("the interface with number {index}")
}

/// A question for all routes of a family: of the kernel's filters, which go by the header and by what follows it, none is set.
fn all_routes(v6: bool) -> RouteMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    query
}

/// A question for the route to an address. What a route has and a question has not is left at 0, which the kernel insists on.
fn route_query(to: IpAddr) -> RouteMessage {
    let mut query = RouteMessage::default();
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    (query.header.address_family, query.header.destination_prefix_length) =
        (family, if to.is_ipv4() { 32 } else { 128 });
    query.attributes.push(RouteAttribute::Destination(to.into()));
    query
}

/// The (interface, gateway) pairs of a route: one, or several where it is spread over paths.
fn next_hops(route: &RouteMessage) -> Vec<(u32, Option<IpAddr>)> {
    let several = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match several {
        Some(hops) => hops.iter().map(|hop| (hop.interface_index, gateway(&hop.attributes))).collect(),
        None => route
            .attributes
            .iter()
            .find_map(|a| match a {
                RouteAttribute::Oif(index) => Some((*index, gateway(&route.attributes))),
                _ => None,
            })
            .into_iter()
            .collect(),
    }
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn route_mtu(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Metrics(metrics) => metrics.iter().find_map(|m| match m {
            RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
            _ => None,
        }),
        _ => None,
    })
}

fn link_mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The single answer to a question.
fn one<T>(answer: Result<Option<T>, rtnetlink::Error>, action: impl Fn() -> String) -> Result<T, NetlinkError> {
    done(answer, &action)?.ok_or_else(|| NetlinkError { action: action(), source: io::ErrorKind::NotFound.into() })
}

fn done<T>(result: Result<T, rtnetlink::Error>, action: impl Fn() -> String) -> Result<T, NetlinkError> {
    result.map_err(|error| NetlinkError {
        action: action(),
        source: match error {
            rtnetlink::Error::NetlinkError(answer) => answer.to_io(),
            other => io::Error::other(other),
        },
    })
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static, action: impl Fn() -> String) -> NetlinkError {
    NetlinkError { action: action(), source: io::Error::new(io::ErrorKind::InvalidInput, error) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::sys::netns::NetNs;
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    use std::net::UdpSocket;
    use std::time::Duration;

    pub(super) fn in_own_network(test: impl Future<Output = ()> + Send + 'static) {
        crate::sys::testing::in_own_network(|| runtime().block_on(test));
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_link_gets_addresses_routes_and_an_mtu() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            netlink.create_veth("left", "right").await.unwrap();
            let left = netlink.index("left").await.unwrap();
            let right = netlink.index("right").await.unwrap();
            netlink.set_mtu(left, 1400).await.unwrap();
            netlink.set_up(left).await.unwrap();
            netlink.set_up(right).await.unwrap();
            for (address, len) in [("10.99.0.1", 30), ("10.98.0.0", 31), ("fd99::1", 126)] {
                netlink.add_address(left, ip(address), len).await.unwrap();
            }
            for (network, len) in [("192.168.20.0", 24), ("fd20::", 48), ("0.0.0.0", 0)] {
                let add = netlink.add_route(left, ip(network), len, Some(100));
                add.await.unwrap();
            }
            let route = Route { mtu: 1400, oif: left, gateway: None };
            for peer in ["10.99.0.2", "10.98.0.1", "fd99::2", "192.168.20.9"] {
                assert_eq!(netlink.route_to(ip(peer)).await.unwrap(), route, "{peer}");
            }
            for peer in ["fd20::9", "203.0.113.9", "::ffff:192.168.20.9"] {
                assert_eq!(netlink.route_to(ip(peer)).await.unwrap(), route, "{peer}");
            }
            // Without DAD an IPv6 address can be used at once.
            UdpSocket::bind("[fd99::1]:0").unwrap();

            let nowhere = netlink.route_to(ip("fd21::9")).await.unwrap_err();
            let said = nowhere.to_string();
            assert!(said.starts_with("looking for the route to fd21::9: Network is unreachable"), "{said}");
            netlink.del_address(left, ip("fd99::1"), 126).await.unwrap();
            UdpSocket::bind("[fd99::1]:0").unwrap_err();
            netlink.delete_link("left").await.unwrap();
            netlink.index("right").await.expect_err("a veth goes with its other end");
        });
    }

    #[test]
    fn errors_say_what_failed_and_why() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            netlink.create_veth("left", "right").await.unwrap();
            let left = netlink.index("left").await.unwrap();
            netlink.set_up(left).await.unwrap();
            netlink.add_route(left, ip("10.0.0.0"), 8, None).await.unwrap();
            let again = netlink.add_route(left, ip("10.0.0.0"), 8, None).await;
            assert_eq!(
                again.unwrap_err().to_string(),
                "10.0.0.0/8 is already routed to left on this machine (metric 0, proto static). `routes` lists what is behind \
                 the *other* end"
            );
            let address = netlink.add_address(left, ip("10.0.0.1"), 8);
            address.await.unwrap();
            let again = netlink.add_address(left, ip("10.0.0.1"), 8).await;
            let said = "adding address 10.0.0.1/8 to left: File exists — something else on this machine already has it";
            assert_eq!(again.unwrap_err().to_string(), said);
            assert_eq!(
                netlink.index("tl9").await.unwrap_err().to_string(),
                "looking for interface tl9: No such device — there is no such interface"
            );
            assert_eq!(
                netlink.add_address(999, ip("10.0.0.1"), 8).await.unwrap_err().to_string(),
                "adding address 10.0.0.1/8 to the interface with number 999: No such device — there is no such interface"
            );
            let mtu = netlink.set_mtu(left, 7).await.unwrap_err();
            assert_eq!(mtu.kind(), io::ErrorKind::InvalidInput, "{mtu}");
            let long = netlink.add_route(left, ip("10.0.0.0"), 33, None).await;
            assert_eq!(long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn a_route_with_an_mtu_of_its_own_is_believed_and_an_icmp_message_is_not() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            netlink.create_veth("left", "right").await.unwrap();
            let left = netlink.index("left").await.unwrap();
            netlink.set_up(left).await.unwrap();
            let add = netlink.add_address(left, ip("192.0.2.1"), 24);
            add.await.unwrap();
            let far = NetNs::create().unwrap();
            let right = netlink.index("right").await.unwrap();
            netlink.set_netns(right, &far).await.unwrap();

            let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
            socket.connect("192.0.2.2:9").unwrap();
            let port = socket.local_addr().unwrap().port();
            far.run(|| runtime().block_on(claim_small_path(port))).unwrap();

            // Here the kernel believes it …
            assert_eq!(kernels_path_mtu(&netlink).await, Some(600));
            // … and we do not.
            let route = netlink.route_to(ip("192.0.2.2")).await.unwrap();
            assert_eq!((route.mtu, route.oif), (1500, left));

            let mut configured = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::new(198, 51, 100, 0), 24)
                .gateway(Ipv4Addr::new(192, 0, 2, 2))
                .build();
            let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(1380)]);
            configured.attributes.push(metrics);
            let add = netlink.handle.route().add(configured);
            add.execute().await.unwrap();
            assert_eq!(
                netlink.route_to(ip("198.51.100.7")).await.unwrap(),
                Route { mtu: 1380, oif: left, gateway: Some(ip("192.0.2.2")) }
            );
        });
    }

    /// What the kernel would use for a socket: the resolved route, PMTU exceptions and all.
    async fn kernels_path_mtu(netlink: &Netlink) -> Option<u32> {
        let query = route_query(ip("192.0.2.2"));
        // The message may still be on its way through the softirq.
        for _ in 0..100 {
            let mut found = Box::pin(netlink.handle.route().get(query.clone()).execute());
            let mtu = route_mtu(&found.try_next().await.unwrap().unwrap());
            if mtu.is_some() {
                return mtu;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }

    /// As 192.0.2.2: brings the wire up and says by ICMP (RFC 1191) that the way for 192.0.2.1's datagrams takes 600 bytes only.
    async fn claim_small_path(port: u16) {
        let netlink = Netlink::open().unwrap();
        let right = netlink.index("right").await.unwrap();
        netlink.set_up(right).await.unwrap();
        let add = netlink.add_address(right, ip("192.0.2.2"), 24);
        add.await.unwrap();
        let mut message = vec![3, 4, 0, 0, 0, 0, 2, 88];
        message.extend([0x45, 0, 0x05, 0xdc, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        message.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        message.extend(port.to_be_bytes());
        message.extend([0, 9, 0x05, 0xc8, 0, 0]);
        let mut sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        let raw: UdpSocket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp).unwrap().into();
        raw.send_to(&message, "192.0.2.1:0").unwrap();
    }
}

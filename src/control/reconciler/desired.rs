//! What the kernel's tables should have for a link, as the config and the state of the link say. Nothing is asked or changed here.

use crate::config::{Config, Fallback};
use crate::protocol::crypto::sha256;
use crate::sys::netlink::own::{DEFAULTS, MAIN, OwnRoute, PEERS, Target};
use crate::sys::netlink::rules::{OwnRule, Owner};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What config says of a link's addresses and routes, and whose they are.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub(super) interface: String,
    pub(super) addresses: Vec<IpNet>,
    routes: Vec<IpNet>,
    metric: Option<u32>,
    /// The routes are there only while the link carries.
    follow: bool,
    /// Unreachable twins stand behind the routes.
    block: bool,
    pub(super) owner: Owner,
}

/// What it depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// The interface, while it is there and administratively up.
    pub(super) index: Option<u32>,
    /// The link carries, as damping has it.
    pub(super) on: bool,
    /// The UDP ports of the link's own datagrams.
    pub(super) ports: BTreeSet<u16>,
    /// The ports' datagrams need rules to stay out of every link.
    pub(super) detour: bool,
    /// The routes to peers that need one of their own, the preferred one first.
    pub(super) peers: BTreeMap<IpAddr, Vec<Target>>,
}

/// Whose kernel state that of the link on an interface is: another one's with a chance of one in 65,536.
fn owner(interface: &str) -> Owner {
    let [a, b, ..] = sha256(&[b"tieline v1 owner of kernel state", interface.as_bytes()]);
    Owner(u16::from_be_bytes([a, b]))
}

impl Desired {
    /// What any link on this interface could have set.
    pub(super) fn of_interface(interface: &str) -> Desired {
        Desired {
            interface: interface.to_owned(),
            addresses: Vec::new(),
            routes: Vec::new(),
            metric: None,
            follow: true,
            block: true,
            owner: owner(interface),
        }
    }

    pub(super) fn of(config: &Config) -> Desired {
        let link = &config.link;
        Desired {
            interface: link.interface.clone(),
            addresses: link.addresses.clone(),
            routes: link.routes.clone(),
            metric: link.metric,
            follow: link.routes_follow,
            block: link.fallback == Fallback::Block,
            owner: owner(&link.interface),
        }
    }

    /// Whether a default route of this family goes into the link.
    pub(super) fn has_default(&self, v6: bool) -> bool {
        self.routes.iter().any(|route| route.prefix_len() == 0 && route.addr().is_ipv6() == v6)
    }

    /// The metric of the twins: of all metrics that people choose it is the worst, and it says which link a twin belongs to.
    fn worst(&self) -> u32 {
        u32::MAX - u32::from(self.owner.0)
    }

    /// The metric of the n-th route to a peer: it says whose it is, too. (For IPv6, 0 would mean another.)
    fn of_peers(&self, n: u32) -> u32 {
        1 + u32::from(self.owner.0) + (n << 16)
    }

    /// The routes there should be.
    pub(super) fn routes(&self, state: &State) -> BTreeSet<OwnRoute> {
        let into = state.index.filter(|_| state.on || !self.follow);
        let own = self.routes.iter().filter_map(|network| Some(self.route_into(network, into?)));
        own.chain(self.twins()).chain(self.to_peers(state)).collect()
    }

    fn route_into(&self, network: &IpNet, index: u32) -> OwnRoute {
        let metric = OwnRoute::metric_of(network, self.metric);
        OwnRoute { network: *network, table: table(network), metric, target: Target::Interface(index) }
    }

    /// What is behind the link, and the link's own network, is unreachable when nothing better says where it is.
    pub(super) fn twins(&self) -> impl Iterator<Item = OwnRoute> + '_ {
        let connected = self.addresses.iter().map(IpNet::trunc).filter(|net| net.prefix_len() < net.max_prefix_len());
        let blocked = self.routes.iter().copied().chain(connected).filter(|_| self.block);
        blocked.map(|network| OwnRoute {
            network,
            table: table(&network),
            metric: self.worst(),
            target: Target::Unreachable,
        })
    }

    fn to_peers<'a>(&'a self, state: &'a State) -> impl Iterator<Item = OwnRoute> + 'a {
        let each =
            state.peers.iter().flat_map(|(peer, targets)| targets.iter().zip(0..).map(move |(t, n)| (peer, t, n)));
        each.map(|(peer, target, n)| OwnRoute {
            network: IpNet::from(*peer),
            table: PEERS,
            metric: self.of_peers(n),
            target: *target,
        })
    }

    /// The rules there should be, in the order in which they may come: none leads anywhere before what follows is there.
    pub(super) fn rules(&self, state: &State) -> Vec<OwnRule> {
        let families = || [false, true].into_iter();
        let of_port = |port: &u16| {
            let port = *port;
            families().flat_map(move |v6| OwnRule::of_port(v6, port, self.owner))
        };
        let ports = state.ports.iter().filter(|_| state.detour).flat_map(of_port);
        ports.chain(families().filter(|v6| self.has_default(*v6)).flat_map(OwnRule::shared)).collect()
    }

    /// Whether a route that was found is this link's, which has the interface `index`.
    pub(super) fn is_ours(&self, route: &OwnRoute, index: Option<u32>) -> bool {
        match route.target {
            Target::Interface(oif) => Some(oif) == index,
            _ if route.table == PEERS => route.metric.wrapping_sub(1) as u16 == self.owner.0,
            Target::Unreachable => route.metric == self.worst(),
            Target::NextHop { .. } => false,
        }
    }

    /// Whether a rule that was found is this link's alone.
    pub(super) fn is_our_rule(&self, rule: &OwnRule) -> bool {
        rule.port.is_some_and(|(_, owner)| owner == self.owner)
    }
}

/// Default routes have a table of their own, so that the machine's own default route stays what it is.
fn table(network: &IpNet) -> u32 {
    if network.prefix_len() == 0 { DEFAULTS } else { MAIN }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(routes: &[&str], follow: bool, block: bool) -> Desired {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        Desired {
            interface: "tl0".into(),
            addresses: nets(&["10.99.0.1/30", "fd99::1/127", "10.98.0.1/32"]),
            routes: nets(routes),
            metric: Some(7),
            follow,
            block,
            owner: Owner(5),
        }
    }

    fn shown(routes: &BTreeSet<OwnRoute>) -> Vec<String> {
        let line = |route: &OwnRoute| {
            let OwnRoute { network, table, metric, target } = route;
            format!("{network} {target:?} table {table} metric {metric}")
        };
        routes.iter().map(line).collect()
    }

    #[test]
    fn twins_stand_behind_all_routes_and_behind_the_links_own_network() {
        let down = State { index: Some(3), ..State::default() };
        let block = desired(&["192.168.20.0/24", "0.0.0.0/0"], true, true);
        let worst = u32::MAX - 5;
        let twins = [
            format!("0.0.0.0/0 Unreachable table {DEFAULTS} metric {worst}"),
            format!("10.99.0.0/30 Unreachable table {MAIN} metric {worst}"),
            format!("192.168.20.0/24 Unreachable table {MAIN} metric {worst}"),
            format!("fd99::/127 Unreachable table {MAIN} metric {worst}"),
        ];
        assert_eq!(shown(&block.routes(&down)), twins);
        assert_eq!(shown(&block.routes(&State::default())), twins, "before there is an interface");
        let up = State { on: true, ..down.clone() };
        let mut both = twins.to_vec();
        both.push(format!("0.0.0.0/0 Interface(3) table {DEFAULTS} metric 7"));
        both.push(format!("192.168.20.0/24 Interface(3) table {MAIN} metric 7"));
        let mut found = shown(&block.routes(&up));
        found.sort();
        both.sort();
        assert_eq!(found, both);
        let clear = desired(&["192.168.20.0/24"], true, false);
        assert!(clear.routes(&down).is_empty());
        assert_eq!(clear.routes(&up).len(), 1);
        assert_eq!(desired(&["192.168.20.0/24"], false, false).routes(&down).len(), 1, "they stay");
    }

    #[test]
    fn what_is_found_is_told_by_whose_it_is() {
        let (ours, mut theirs) = (desired(&["192.168.20.0/24", "::/0"], true, true), desired(&[], true, true));
        theirs.owner = Owner(6);
        let peer = Target::NextHop { oif: 9, gateway: None, source: None };
        let state = State {
            index: Some(3),
            on: true,
            ports: [7311].into(),
            detour: true,
            peers: [
                ("203.0.113.7".parse().unwrap(), vec![peer, peer]),
                ("203.0.113.8".parse().unwrap(), vec![Target::Unreachable]),
            ]
            .into(),
        };
        for route in ours.routes(&state) {
            assert!(ours.is_ours(&route, Some(3)) && !theirs.is_ours(&route, Some(4)), "{route:?}");
        }
        let rules = ours.rules(&state);
        assert_eq!(rules.iter().filter(|rule| ours.is_our_rule(rule)).count(), 6);
        assert!(rules.iter().all(|rule| !theirs.is_our_rule(rule)));
        assert_eq!(rules.len(), 8, "and two for all links, of the family with a default route");
        assert!(ours.rules(&State { detour: false, ..state }).iter().all(|rule| rule.port.is_none()));
    }
}

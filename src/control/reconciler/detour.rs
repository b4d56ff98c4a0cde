//! How a link's own datagrams stay out of every link, whatever the routes say.
//!
//! Where the route to the peer leads into a link, or is blocked by an unreachable twin, the link's UDP ports get rules
//! ([`crate::sys::netlink::rules`]) that lead past the links' default routes. Where that is not enough the peer gets a route
//! of its own, copied from the best route of the main table that leads into no link.

use super::desired::State;
use crate::sys::netlink::own::{MAIN, Target};
use crate::sys::netlink::rules::MARK;
use crate::sys::netlink::view::{LinkState, MainRoute, Packet};
use crate::sys::netlink::{Netlink, NetlinkError};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The group that tieline puts its interfaces in, by which one link knows those of others.
pub(in crate::control) const GROUP: u32 = MARK;

/// What the peers' addresses need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Detours {
    /// The ports need their rules.
    pub(super) needed: bool,
    /// The peers that need routes of their own.
    pub(super) peers: BTreeMap<IpAddr, Vec<Target>>,
    /// The peers that only a link leads to, and the route that does.
    pub(super) covered: BTreeMap<IpAddr, Cover>,
}

/// A route that leads a link's own datagrams into a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) struct Cover {
    /// Where it leads, as the table has it.
    pub(super) network: IpNet,
    pub(super) table: u32,
}

impl Cover {
    /// What is wrong, and what to do, for the peer with this address.
    pub(in crate::control) fn in_words(&self, peer: IpAddr) -> String {
        let Cover { network, table } = self;
        if *table == MAIN {
            return format!(
                "the route to {network} leads the link's own datagrams to {peer} into a link, and there is no other route to it: \
                 nothing is sent there; add a route to {peer} by an uplink, or take {network} out of `routes`"
            );
        }
        format!(
            "the route to {network} in table {table} leads the link's own datagrams to {peer} into a link: nothing is sent there; \
             take it out, or have the rule that leads to table {table} (ip rule) leave out {peer}"
        )
    }
}

impl Detours {
    /// Puts them where the tables are made from.
    pub(super) fn fill(&self, state: &mut State, always: bool) {
        state.detour = self.needed || always;
        state.peers.clone_from(&self.peers);
    }
}

/// The machine's interfaces, as far as they matter for the way to the peer.
pub(super) struct Uplinks<'a> {
    pub(super) links: &'a [LinkState],
    /// The interfaces that the link's sockets are bound to; `None` stands for a socket that is bound to none.
    pub(super) outs: &'a [Option<u32>],
    /// The mark of the link's own datagrams.
    pub(super) mark: Option<u32>,
}

impl Uplinks<'_> {
    pub(super) fn is_link(&self, index: u32) -> bool {
        self.links.iter().any(|link| link.index == index && link.group == GROUP)
    }

    fn is_up(&self, index: u32) -> bool {
        self.links.iter().any(|link| link.index == index && link.up)
    }

    /// What these peers need now.
    pub(super) async fn detours(&self, netlink: &Netlink, peers: &BTreeSet<IpAddr>) -> Result<Detours, NetlinkError> {
        let mut detours = Detours::default();
        for peer in peers {
            if self.goes_straight(netlink, *peer, self.mark).await {
                continue;
            }
            let routes = netlink.main_routes(*peer).await?;
            let into_links = |route: &&MainRoute| route.is_own() || route.oif.is_some_and(|oif| self.is_link(oif));
            let cover = routes.iter().find(into_links).map(|route| Cover { network: route.network, table: MAIN });
            if self.goes_straight(netlink, *peer, Some(MARK)).await {
                detours.needed = true;
            } else if let Some(cover) = cover {
                detours.needed = true;
                let targets = self.around(&routes);
                if targets.is_empty() {
                    detours.covered.insert(*peer, cover);
                }
                let blocked = if targets.is_empty() { vec![Target::Unreachable] } else { targets };
                detours.peers.insert(*peer, blocked);
            }
        }
        Ok(detours)
    }

    /// Whether a datagram to the peer with this mark leaves by an interface that is no link, by each of the sockets.
    async fn goes_straight(&self, netlink: &Netlink, to: IpAddr, mark: Option<u32>) -> bool {
        for out in self.outs {
            match netlink.route_of(Packet { to, mark, out: *out, port: None }).await {
                Ok(taken) if !self.is_link(taken.oif) => {}
                _ => return false,
            }
        }
        true
    }

    /// The best route past any link for each of the sockets.
    fn around(&self, routes: &[MainRoute]) -> Vec<Target> {
        let mut targets = Vec::new();
        for out in self.outs {
            let usable = |route: &&MainRoute| {
                let oif = route.oif.filter(|oif| !self.is_link(*oif) && self.is_up(*oif));
                !route.is_own() && oif.is_some_and(|oif| out.is_none_or(|out| out == oif))
            };
            let Some(MainRoute { oif: Some(oif), gateway, source, .. }) = routes.iter().find(usable) else { continue };
            let target = Target::NextHop { oif: *oif, gateway: *gateway, source: *source };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets
    }
}

//! The reconciler: it knows what the kernel should have for the link, listens to what changes, and restores what is missing.
//!
//! ```text
//!   config, link up or down, peers, ports ─▶ desired ─┐
//!                                                     ├─▶ what is missing is set, what is too much is removed
//!   netlink's notifications ─▶ what there is ─────────┘
//! ```
//!
//! Only what carries tieline's protocol number is ever removed, and of that only what is this link's. An interface that the operator has
//! taken down stays down, and what the kernel dropped with it comes back when it is up again. What outlives the interface (unreachable
//! twins, rules) also outlives a link that was killed: the next start takes it over, and [`Reconciler::release`] removes it.

mod desired;
mod detour;
mod restore;

use super::interface;
use super::mtu::BridgeMtu;
use crate::config::{Carrier, Config};
use crate::packet::Layer;
use crate::sys::netlink::monitor::{Change, Monitor, Notification};
use crate::sys::netlink::own::OwnRoute;
use crate::sys::netlink::rules::OwnRule;
use crate::sys::netlink::view::{LinkState, Packet, Taken, protocol_name};
use crate::sys::netlink::{Netlink, NetlinkError};
use desired::{Desired, State};
pub(super) use detour::GROUP;
use detour::{Cover, Detours, Uplinks};
use ipnet::IpNet;
use restore::{Item, Restorer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

/// Changes come in groups: so long after the first the tables are looked at.
const SETTLE: Duration = Duration::from_millis(20);
/// The same complaint is made this often at most.
const COMPLAIN: Duration = Duration::from_secs(60);
/// What could not be set is tried again this often.
const AGAIN: Duration = Duration::from_secs(5);
/// The largest number that a process can have (`PID_MAX_LIMIT`); larger ones are netlink ports that say nothing.
const MAX_PROCESS: u32 = 1 << 22;

/// What the link needs of the kernel now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The link carries, as damping has it.
    pub(super) on: bool,
    /// The interface's MTU in bytes.
    pub(super) mtu: Option<u32>,
    /// Where datagrams of the link's own go, or may go soon.
    pub(super) peers: BTreeSet<IpAddr>,
    /// The UDP ports they come from.
    pub(super) ports: BTreeSet<u16>,
}

/// What the kernel shows of the machine, as far as it concerns the link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The link's interface; `None` if it is not in this network namespace any more.
    pub(super) interface: Option<LinkState>,
    /// The MTUs at the bridge that the interface joins, if it is to join one and that is there.
    pub(super) bridge: Option<BridgeMtu>,
    /// All interfaces by name, with the index each has.
    pub(super) links: Arc<BTreeMap<String, u32>>,
    /// Rises with each change of an address or interface of this machine.
    pub(super) changes: u64,
    /// Rises each time the route to a peer leads by another interface, router or own address than before.
    pub(super) reroutes: u64,
    /// The peers that may be sent to: their datagrams enter no link.
    pub(super) admitted: Arc<BTreeSet<IpAddr>>,
    /// The peers that only a link leads to, and the route that does.
    pub(super) covered: BTreeMap<IpAddr, Cover>,
}

/// Keeps the kernel's tables as the link needs them.
pub(super) struct Reconciler {
    netlink: Netlink,
    monitor: Monitor,
    desired: Desired,
    mark: Option<u32>,
    /// The names of the interfaces that sockets are bound to; `None` stands for a socket that is bound to none.
    outs: Vec<Option<String>>,
    bridge: Option<String>,
    layer: Layer,
    /// The interface's carrier follows the link.
    carrier: bool,
    wanted: Wanted,
    seen: Seen,
    /// The interface's index, once it was made.
    index: Option<u32>,
    /// The link-local address that the kernel gave the interface.
    link_local: Option<IpNet>,
    /// What was there after it was last looked at.
    kept: BTreeSet<Item>,
    restorer: Restorer,
    complaints: BTreeMap<Item, Instant>,
    taken: BTreeMap<IpAddr, Taken>,
    /// Something could not be set.
    failed: bool,
    /// There was something of this link's before it began.
    adopted: bool,
}

impl Reconciler {
    /// Begins before there is an interface: from here on nothing for the link goes by another route.
    ///
    /// # Errors
    /// When the kernel takes no routes or rules from this process; then none is left that was not there before.
    pub(super) async fn begin(netlink: Netlink, config: &Config) -> Result<Reconciler, NetlinkError> {
        let desired = Desired::of(config);
        let monitor = Monitor::open().map_err(|error| NetlinkError::new("listening to netlink".into(), error))?;
        let mut reconciler = Reconciler {
            netlink,
            monitor,
            desired,
            mark: config.mark(),
            outs: outs(config),
            bridge: config.link.bridge.clone(),
            layer: interface::layer(&config.link),
            carrier: config.link.carrier == Carrier::Peer,
            wanted: Wanted::default(),
            seen: Seen::default(),
            index: None,
            link_local: None,
            kept: BTreeSet::new(),
            restorer: Restorer::default(),
            complaints: BTreeMap::new(),
            taken: BTreeMap::new(),
            failed: false,
            adopted: false,
        };
        let before = reconciler.netlink.own_routes().await?;
        reconciler.adopted = before.iter().any(|route| reconciler.desired.is_ours(route, None));
        match reconciler.pass().await {
            Ok(()) => Ok(reconciler),
            Err(error) => {
                reconciler.abandon().await;
                Err(error)
            }
        }
    }

    /// Takes the interface in hand, with its addresses and routes.
    ///
    /// # Errors
    /// When an address cannot be set.
    pub(super) async fn attach(&mut self, index: u32, wanted: Wanted) -> Result<(), NetlinkError> {
        self.index = Some(index);
        self.wanted = wanted;
        self.netlink.set_group(index, GROUP).await?;
        for address in &self.desired.addresses {
            self.netlink.add_address(index, address.addr(), address.prefix_len()).await?;
        }
        self.netlink.set_up(index).await?;
        self.warn_of_taken_routes().await?;
        self.pass().await
    }

    /// Routes that cannot be set show at once, and not when the peer comes.
    async fn warn_of_taken_routes(&mut self) -> Result<(), NetlinkError> {
        let up = State { index: self.index, on: true, ..State::default() };
        for route in self.desired.routes(&up) {
            let holder = self.netlink.main_route(&route.network, route.metric).await?;
            if route.is_in_main() && holder.is_some_and(|holder| !holder.is_own()) {
                let taken = NetlinkError::new("adding a route".to_owned(), ErrorKind::AlreadyExists.into());
                self.complain(&Item::Route(route), &taken).await;
            }
        }
        Ok(())
    }

    /// What the kernel shows now.
    pub(super) fn seen(&self) -> Seen {
        self.seen.clone()
    }

    /// Follows the link and the kernel until nobody wants anything any more.
    pub(super) async fn run(mut self, mut wanted: watch::Receiver<Wanted>, seen: watch::Sender<Seen>) -> Reconciler {
        loop {
            let now = wanted.borrow_and_update().clone();
            if now.on != self.wanted.on {
                self.notice_carrier().await;
            }
            self.wanted = now;
            if let Err(error) = self.pass().await {
                debug!("the kernel's tables could not be looked at: {error}");
                self.failed = true;
            }
            seen.send_if_modified(|told| std::mem::replace(told, self.seen.clone()) != self.seen);
            self.say();
            let failed = self.failed;
            let due = self.restorer.due(Instant::now());
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return self },
                () = self.news() => {}
                () = sleep(AGAIN), if failed => {}
                () = until(due) => {}
            }
        }
    }

    /// Waits for a change that matters, and then for those that come with it.
    async fn news(&mut self) {
        loop {
            let first = self.monitor.next().await;
            if !self.hear(first) {
                continue;
            }
            let settled = Instant::now() + SETTLE;
            while let Ok(next) = tokio::time::timeout_at(settled, self.monitor.next()).await {
                self.hear(next);
            }
            return;
        }
    }

    /// Whether a change may be one of what is kept here, or of the way to the peer.
    fn hear(&mut self, Notification { change, by }: Notification) -> bool {
        let ours = |index| Some(index) == self.index;
        let (matters, is_ours) = match change {
            Change::Link { index } | Change::Address { index } => {
                self.seen.changes += 1;
                (true, ours(index))
            }
            Change::Route { own, oif } => (true, own || oif.is_some_and(ours)),
            Change::Rule { own } => (own, own),
            Change::Overrun => (true, false),
        };
        let by = by.filter(|process| is_ours && *process != std::process::id() && *process <= MAX_PROCESS);
        if let Some(process) = by {
            self.restorer.blame(process);
        }
        matters
    }

    /// Has routing see at once that the carrier came or went.
    async fn notice_carrier(&self) {
        if let Some(index) = self.index.filter(|_| self.carrier)
            && let Err(error) = self.netlink.notice_carrier(index).await
        {
            debug!("routes see the carrier on the kernel's own time: {error}");
        }
    }

    /// Looks at all there is, sets what is missing and removes what is too much.
    async fn pass(&mut self) -> Result<(), NetlinkError> {
        self.failed = false;
        self.netlink.set_port(self.wanted.ports.first().copied().unwrap_or_default());
        let links = self.netlink.links().await?;
        self.look_at(&links);
        let detours = self.detours(&links).await?;
        let mut state = State {
            index: self.seen.interface.as_ref().filter(|link| link.up).map(|link| link.index),
            on: self.wanted.on,
            ports: self.wanted.ports.clone(),
            ..State::default()
        };
        detours.fill(&mut state, self.desired.has_default(false) || self.desired.has_default(true));
        // First: below 1280 bytes the kernel takes neither routes nor addresses of IPv6.
        self.keep_mtu().await?;
        self.keep_routes(&state).await?;
        self.keep_rules(&state).await?;
        self.keep_interface(&links).await?;
        self.follow_peers(&links, detours).await;
        Ok(())
    }

    /// Finds the interface among all there are.
    fn look_at(&mut self, links: &[LinkState]) {
        let by_name = links.iter().map(|link| (link.name.clone(), link.index)).collect();
        if *self.seen.links != by_name {
            self.seen.links = Arc::new(by_name);
        }
        let bridge = self.bridge.as_ref();
        self.seen.bridge = bridge.and_then(|name| BridgeMtu::find(links, name, GROUP, self.index));
        let Some(index) = self.index else { return };
        // Another interface may have the index of one that was moved to another network namespace.
        let is_ours =
            |link: &&LinkState| link.index == index && (link.group == GROUP || link.name == self.desired.interface);
        let found = links.iter().find(is_ours).cloned();
        match (&self.seen.interface, &found) {
            (Some(_), None) => error!(
                "interface {} is not in this network namespace any more: tieline does not set addresses and routes there; move \
                 it back, or restart the link",
                self.desired.interface
            ),
            (None, Some(_)) if !self.kept.is_empty() => debug!("the interface is there"),
            _ => {}
        }
        self.seen.interface = found;
    }

    async fn detours(&self, links: &[LinkState]) -> Result<Detours, NetlinkError> {
        let outs = self.out_indexes(links);
        let uplinks = Uplinks { links, outs: &outs, mark: self.mark };
        uplinks.detours(&self.netlink, &self.wanted.peers).await
    }

    /// The interfaces that sockets are bound to, as far as they are there.
    fn out_indexes(&self, links: &[LinkState]) -> Vec<Option<u32>> {
        let index = |name: &String| links.iter().find(|link| link.name == *name).map(|link| link.index);
        let each = self.outs.iter().filter_map(|out| match out {
            None => Some(None),
            Some(name) => index(name).map(Some),
        });
        each.collect()
    }

    async fn keep_routes(&mut self, state: &State) -> Result<(), NetlinkError> {
        let there: BTreeSet<OwnRoute> = self.netlink.own_routes().await?.into_iter().collect();
        let desired = self.desired.routes(state);
        for route in desired.difference(&there) {
            let netlink = self.netlink.clone();
            self.set(Item::Route(*route), async move || netlink.add_own_route(route).await).await?;
        }
        let ours = |route: &&OwnRoute| self.desired.is_ours(route, self.index);
        for route in there.difference(&desired).filter(ours) {
            self.netlink.remove_own_route(route).await?;
        }
        let wanted = desired.into_iter().map(Item::Route).collect();
        let is_there = |item: &Item| matches!(item, Item::Route(route) if there.contains(route));
        self.remember(|item| matches!(item, Item::Route(_)), &wanted, is_there);
        Ok(())
    }

    async fn keep_rules(&mut self, state: &State) -> Result<(), NetlinkError> {
        let there: BTreeSet<_> = self.netlink.own_rules().await?.into_iter().collect();
        let desired = self.desired.rules(state);
        for rule in desired.iter().filter(|rule| !there.contains(rule)) {
            let netlink = self.netlink.clone();
            self.set(Item::Rule(*rule), async move || netlink.add_own_rule(rule).await).await?;
        }
        let needless = |rule: &&_| self.desired.is_our_rule(rule) && !desired.contains(rule);
        for rule in there.iter().filter(needless) {
            self.netlink.remove_own_rule(rule).await?;
        }
        let wanted = desired.into_iter().map(Item::Rule).collect();
        let is_there = |item: &Item| matches!(item, Item::Rule(rule) if there.contains(rule));
        self.remember(|item| matches!(item, Item::Rule(_)), &wanted, is_there);
        Ok(())
    }

    /// The interface's addresses, its group and its bridge, while it is up.
    async fn keep_interface(&mut self, links: &[LinkState]) -> Result<(), NetlinkError> {
        let Some(link) = self.seen.interface.clone().filter(|link| link.up) else { return Ok(()) };
        let there = self.netlink.addresses(link.index).await?;
        let desired = self.desired.addresses.clone();
        for address in desired.iter().filter(|address| !there.contains(address)) {
            let netlink = self.netlink.clone();
            let add = async move || netlink.add_address(link.index, address.addr(), address.prefix_len()).await;
            self.set(Item::Address(*address), add).await?;
        }
        let wanted = desired.into_iter().map(Item::Address).collect();
        let is_there = |item: &Item| matches!(item, Item::Address(address) if there.contains(address));
        self.remember(|item| matches!(item, Item::Address(_)), &wanted, is_there);
        self.keep_link_local(link.index, &there).await?;
        if link.group != GROUP {
            let netlink = self.netlink.clone();
            self.kept.insert(Item::Group);
            self.set(Item::Group, async move || netlink.set_group(link.index, GROUP).await).await?;
        }
        self.keep_bridge(&link, links).await
    }

    async fn keep_mtu(&mut self) -> Result<(), NetlinkError> {
        let Some(link) = self.seen.interface.clone().filter(|link| link.up) else { return Ok(()) };
        let Some(mtu) = self.wanted.mtu else { return Ok(()) };
        if link.mtu != mtu {
            let (netlink, index, layer) = (self.netlink.clone(), link.index, self.layer);
            self.set(Item::Mtu(mtu), async move || interface::set_mtu(&netlink, index, mtu, layer).await).await?;
        }
        self.remember(|item| matches!(item, Item::Mtu(_)), &[Item::Mtu(mtu)].into(), |_| link.mtu == mtu);
        Ok(())
    }

    /// The link-local address is the kernel's to choose, and is not given again once it was removed.
    async fn keep_link_local(&mut self, index: u32, there: &[IpNet]) -> Result<(), NetlinkError> {
        let is_link_local = |net: &&IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        if let Some(present) = there.iter().find(is_link_local) {
            self.link_local = Some(*present);
        } else if let Some(address) = self.link_local {
            let (item, netlink) = (Item::Address(address), self.netlink.clone());
            self.kept.insert(item.clone());
            let add = async move || netlink.add_address(index, address.addr(), address.prefix_len()).await;
            self.set(item, add).await?;
        }
        Ok(())
    }

    async fn keep_bridge(&mut self, link: &LinkState, links: &[LinkState]) -> Result<(), NetlinkError> {
        let Some(name) = self.bridge.clone() else { return Ok(()) };
        let item = Item::Bridge(name.clone());
        let Some(bridge) = links.iter().find(|link| link.name == name && link.is_bridge) else { return Ok(()) };
        if link.controller != Some(bridge.index) {
            let (netlink, port, bridge) = (self.netlink.clone(), link.index, bridge.index);
            self.set(item.clone(), async move || netlink.join_bridge(port, bridge).await).await?;
        }
        self.kept.insert(item);
        Ok(())
    }

    /// Sets one thing that is missing. What another program keeps removing waits; what cannot be set is said, and tried again.
    async fn set(
        &mut self,
        item: Item,
        add: impl AsyncFnOnce() -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let (now, was_there) = (Instant::now(), self.kept.contains(&item));
        if was_there && !self.restorer.may_restore(now, &item) {
            return Ok(());
        }
        match add().await {
            Ok(()) if was_there => self.restorer.restored(now, &item),
            Ok(()) => _ = self.kept.insert(item),
            // Before there is an interface nothing runs that could try again.
            Err(error) if self.index.is_none() && error.kind() != ErrorKind::AlreadyExists => return Err(error),
            Err(error) => {
                self.failed = true;
                self.complain(&item, &error).await;
            }
        }
        Ok(())
    }

    /// Of what is wanted of one kind, what is there counts as kept, beside what was kept before; what is not wanted any more does not.
    fn remember(&mut self, of_kind: fn(&Item) -> bool, wanted: &BTreeSet<Item>, there: impl Fn(&Item) -> bool) {
        self.kept.retain(|item| !of_kind(item) || wanted.contains(item));
        self.kept.extend(wanted.iter().filter(|item| there(item)).cloned());
    }

    /// Says why something cannot be set, now and then.
    async fn complain(&mut self, item: &Item, error: &NetlinkError) {
        let now = Instant::now();
        if self.complaints.get(item).is_some_and(|said| now < *said + COMPLAIN) {
            return;
        }
        self.complaints.insert(item.clone(), now);
        match item {
            Item::Route(route) if error.kind() == ErrorKind::AlreadyExists => {
                warn!("{}; the link goes on without it", self.holder(route).await);
            }
            _ => warn!("{item} cannot be set: {error}; tieline tries again every {} s", AGAIN.as_secs()),
        }
    }

    /// Who has a route to the same network with the same metric.
    async fn holder(&self, route: &OwnRoute) -> String {
        let found = self.netlink.main_route(&route.network, route.metric).await.ok().flatten();
        let Some(found) = found else {
            return format!("there is another route to {} with metric {}", route.network, route.metric);
        };
        let name = found.oif.and_then(|oif| self.seen.links.iter().find(|(_, index)| **index == oif));
        let to = name.map_or_else(|| "nowhere (unreachable)".to_owned(), |(name, _)| format!("to {name}"));
        format!(
            "{} is already routed {to} on this machine (metric {}, proto {}): `routes` in [link] lists what is behind the *other* \
             end; take it out, or set another `metric`",
            route.network,
            found.metric,
            protocol_name(found.protocol)
        )
    }

    /// Looks where datagrams to the peers leave now.
    async fn follow_peers(&mut self, links: &[LinkState], Detours { mut covered, .. }: Detours) {
        let outs = self.out_indexes(links);
        let uplinks = Uplinks { links, outs: &outs, mark: self.mark };
        let port = self.wanted.ports.first().copied();
        let mut taken = BTreeMap::new();
        for peer in &self.wanted.peers {
            for out in &outs {
                let packet = Packet { to: *peer, mark: self.mark, out: *out, port };
                let Ok(route) = self.netlink.route_of(packet).await else { continue };
                taken.entry(*peer).or_insert(route);
                // Somebody else's rule may come before the link's own.
                if uplinks.is_link(route.oif)
                    && let Ok((network, table)) = self.netlink.entry_of(packet).await
                {
                    covered.entry(*peer).or_insert(Cover { network, table });
                }
            }
        }
        let moved = |(peer, route): (&IpAddr, &Taken)| self.taken.get(peer).is_some_and(|before| before != route);
        if taken.iter().any(moved) {
            self.seen.reroutes += 1;
        }
        // A peer that is out of reach for a moment may come back by another way.
        self.taken.retain(|peer, _| self.wanted.peers.contains(peer));
        self.taken.extend(taken);
        if covered != self.seen.covered {
            self.tell_covered(&covered);
            self.seen.covered = covered;
        }
        if *self.seen.admitted != self.wanted.peers {
            self.seen.admitted = Arc::new(self.wanted.peers.clone());
        }
    }

    fn tell_covered(&self, covered: &BTreeMap<IpAddr, Cover>) {
        for (peer, cover) in covered.iter().filter(|(peer, cover)| self.seen.covered.get(*peer) != Some(*cover)) {
            warn!("{}", cover.in_words(*peer));
        }
        for (peer, cover) in self.seen.covered.iter().filter(|(peer, _)| !covered.contains_key(*peer)) {
            info!("there is a route to {peer} past the one to {} now", cover.network);
        }
    }

    fn say(&mut self) {
        if let Some(line) = self.restorer.line(Instant::now()) {
            warn!("{}: {line}", self.desired.interface);
        }
    }

    /// Removes what this link has set and what would outlive it, as the operator stops it.
    pub(super) async fn release(self) {
        if let Err(error) = remove_all(&self.netlink, &self.desired, self.index).await {
            warn!("{error}: what is left is removed by `tieline release`");
        }
    }

    /// The link could not start: what was there before stays, as the operator has not stopped anything.
    pub(super) async fn abandon(self) {
        if !self.adopted {
            self.release().await;
        }
    }
}

/// Removes what a link on this interface has left in the kernel's tables, and says what that was.
///
/// # Errors
/// When the kernel does not let this process look or remove.
pub(super) async fn release(netlink: &Netlink, interface: &str) -> Result<Vec<String>, NetlinkError> {
    let removed = remove_all(netlink, &Desired::of_interface(interface), None).await?;
    Ok(removed.iter().map(Item::to_string).collect())
}

/// Removes all that is a link's, and the rules that all links share with the last link that has a default route.
async fn remove_all(netlink: &Netlink, desired: &Desired, index: Option<u32>) -> Result<Vec<Item>, NetlinkError> {
    let rules = netlink.own_rules().await?;
    let routes = netlink.own_routes().await?;
    let (ours, others): (Vec<_>, Vec<_>) = routes.into_iter().partition(|route| desired.is_ours(route, index));
    let mut removed = Vec::new();
    for route in ours {
        netlink.remove_own_route(&route).await?;
        removed.push(Item::Route(route));
    }
    let in_use =
        |v6: bool| others.iter().any(|route| route.network.prefix_len() == 0 && route.network.addr().is_ipv6() == v6);
    let ends = |rule: &OwnRule| desired.is_our_rule(rule) || (rule.port.is_none() && !in_use(rule.v6));
    for rule in rules.into_iter().filter(ends) {
        netlink.remove_own_rule(&rule).await?;
        removed.push(Item::Rule(rule));
    }
    Ok(removed)
}

/// Where the link's sockets are bound.
fn outs(config: &Config) -> Vec<Option<String>> {
    let bind = &config.local.bind;
    match config.paths.as_slice() {
        [] => vec![bind.clone()],
        paths => {
            let outs: BTreeSet<_> = paths.iter().map(|path| path.interface.clone().or(bind.clone())).collect();
            outs.into_iter().collect()
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

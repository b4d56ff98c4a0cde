//! Which MTU the link's interface should have and why, and the largest datagram that is worth trying. The reconciler sets it.

use super::driver::changed;
use super::interface::{auto, datagram, inner, layer};
use super::reconciler::Seen;
use crate::config::{Config, Mtu};
use crate::packet::Layer;
use crate::protocol::constants::LINK_MTU_MIN;
use crate::protocol::link::LinkMtu;
use crate::sys::netlink::view::LinkState;
use crate::sys::netlink::{Netlink, NetlinkError, Route};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// The route to the peer is looked at this often, beside each change that the kernel tells of.
const REFRESH: Duration = Duration::from_secs(60);

/// The path to the peer, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// Which of config's paths it is, if one.
    pub(super) path: Option<usize>,
    /// Where the peer is.
    pub(super) peer: Option<IpAddr>,
    /// Bytes of the largest datagram that was found to arrive.
    pub(super) found: Option<u16>,
    /// What both ends hold their interfaces to.
    pub(super) link: Option<LinkMtu>,
}

/// The sizes that this machine sets, all in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// The largest datagram that the route to the peer takes: more need not be tried.
    pub(super) ceiling: Option<u16>,
    /// The interface's MTU, where the link does not choose it. The peer is told.
    pub(super) given: Option<u16>,
    /// The MTU that the interface should have.
    pub(super) mtu: Option<u32>,
}

/// The MTUs at the bridge that the interface joins, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BridgeMtu {
    /// The bridge's own.
    bridge: u32,
    /// The lowest of its ports that are no link's.
    others: Option<u32>,
    /// The link's interface, once it is a port.
    own: Option<u32>,
}

impl BridgeMtu {
    /// As found among all interfaces. Ports of the group `links_group` are links' interfaces, and `own` is this link's index.
    pub(super) fn find(links: &[LinkState], name: &str, links_group: u32, own: Option<u32>) -> Option<BridgeMtu> {
        let bridge = links.iter().find(|link| link.name == name && link.is_bridge)?;
        let ports = || links.iter().filter(|link| link.controller == Some(bridge.index));
        let others = ports().filter(|port| port.group != links_group && Some(port.index) != own);
        Some(BridgeMtu {
            bridge: bridge.mtu,
            others: others.map(|port| port.mtu).min(),
            own: ports().find(|port| Some(port.index) == own).map(|port| port.mtu),
        })
    }

    /// What an interface has that takes the bridge's MTU. `fixed` is what the bridge is known to have been set to.
    ///
    /// A bridge whose MTU nobody has set takes the lowest of its ports (`br_mtu_auto_adjust`), so also this interface's. Following
    /// that, the interface would never grow again: then the other ports decide.
    pub(super) fn choose(self, fixed: &mut Option<u32>) -> u32 {
        let BridgeMtu { bridge, others, own } = self;
        let chosen = others.map_or(bridge, |others| {
            if bridge != own.map_or(others, |own| own.min(others)) {
                *fixed = Some(bridge);
            }
            if *fixed == Some(bridge) { bridge } else { others }
        });
        auto(chosen)
    }
}

/// Why the interface has its MTU.
enum Reason {
    /// It is written in config.
    Config,
    /// The bridge has it.
    Bridge,
    /// The peer's interface has it whatever passes.
    Peer,
    /// Packets of so many bytes pass to the peer, and from it where that is known.
    Found(u32, Option<u32>),
}

/// Knows the MTU for the path to the peer.
pub(super) struct MtuKeeper {
    netlink: Netlink,
    config: Mtu,
    layer: Layer,
    /// By which interface each of config's paths leaves, and the link where it has none, where config says so.
    uplinks: Vec<Option<String>>,
    bind: Option<String>,
    /// What the interface should have.
    mtu: u32,
    /// What the bridge was set to, if it was.
    fixed_bridge: Option<u32>,
    /// What the log last said that fits one datagram, …
    said: Option<u32>,
    /// … and what the other end's interface has, if it differs.
    differs: Option<u16>,
}

impl MtuKeeper {
    /// For an interface that was made with this MTU.
    pub(super) fn new(netlink: Netlink, mtu: u32, config: &Config) -> MtuKeeper {
        let bind = config.local.bind.clone();
        let uplinks = config.paths.iter().map(|path| path.interface.clone().or(bind.clone())).collect();
        MtuKeeper {
            netlink,
            config: config.link.mtu,
            layer: layer(&config.link),
            uplinks,
            bind,
            mtu,
            fixed_bridge: None,
            said: None,
            differs: None,
        }
    }

    /// Follows the path, and what the kernel shows, for ever; and tells the sizes that come of it.
    pub(super) async fn follow(
        mut self,
        mut way: watch::Receiver<Way>,
        mut seen: watch::Receiver<Seen>,
        limits: watch::Sender<Limits>,
    ) {
        loop {
            let now = *way.borrow_and_update();
            let bridge = seen.borrow_and_update().bridge;
            let ceiling = self.ceiling(now).await.or(limits.borrow().ceiling);
            self.decide(now, bridge);
            let given = (self.config != Mtu::Auto).then_some(self.mtu as u16);
            let new = Limits { ceiling, given, mtu: Some(self.mtu) };
            limits.send_if_modified(|told| std::mem::replace(told, new) != new);
            self.compare(now, given);
            tokio::select! {
                changed = way.changed() => if changed.is_err() { return },
                () = changed(&mut seen) => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    /// The largest datagram that the route to the peer takes; `None` while that is not known.
    async fn ceiling(&self, Way { path, peer, .. }: Way) -> Option<u16> {
        let peer = peer?;
        match self.route_to(peer, path).await {
            Ok(route) => Some(datagram(route.mtu, peer, self.layer)),
            Err(error) => {
                // Sending fails too, and that is logged.
                debug!("what the route to {peer} takes is not known: {error}");
                None
            }
        }
    }

    /// The route by which a path's datagrams leave.
    async fn route_to(&self, peer: IpAddr, path: Option<usize>) -> Result<Route, NetlinkError> {
        let uplink = path.map_or(self.bind.as_ref(), |path| self.uplinks.get(path)?.as_ref());
        let Some(uplink) = uplink else {
            return self.netlink.route_to(peer).await;
        };
        // Each time: one that went and came back has another index.
        let out = self.netlink.index(uplink).await?;
        self.netlink.clone().leaving_by(out).route_to(peer).await
    }

    /// Takes what is known now, and says what has changed.
    fn decide(&mut self, way: Way, bridge: Option<BridgeMtu>) {
        let Some((mtu, reason)) = self.target(way, bridge) else { return };
        if std::mem::replace(&mut self.mtu, mtu) != mtu {
            info!("{}", in_words(mtu, &reason));
        }
        let Some(fits) = way.found.map(|found| inner(found, self.layer)) else { return };
        if mtu > fits && self.said.replace(fits) != Some(fits) {
            info!("{}", in_fragments(mtu, fits, &reason));
        }
    }

    /// What the interface should have, and why; `None` while that is not known.
    fn target(&mut self, way: Way, bridge: Option<BridgeMtu>) -> Option<(u32, Reason)> {
        match (self.config, way.link) {
            (Mtu::Fixed(mtu), _) => Some((mtu.into(), Reason::Config)),
            (Mtu::Bridge, _) => Some((bridge?.choose(&mut self.fixed_bridge), Reason::Bridge)),
            (Mtu::Auto, Some(LinkMtu::Given(mtu))) => Some((mtu.into(), Reason::Peer)),
            (Mtu::Auto, Some(LinkMtu::Found { to_peer, from_peer })) => {
                let (to, from) = (inner(to_peer, self.layer), from_peer.map(|from| inner(from, self.layer)));
                Some((auto(from.map_or(to, |from| from.min(to))), Reason::Found(to, from)))
            }
            (Mtu::Auto, None) => None,
        }
    }

    /// Says when the interfaces of the two ends were given different MTUs.
    fn compare(&mut self, way: Way, given: Option<u16>) {
        let (Some(given), Some(LinkMtu::Given(theirs))) = (given, way.link) else { return };
        if given == theirs {
            self.differs = None;
        } else if self.differs.replace(theirs) != Some(theirs) {
            let remedy = match self.config {
                Mtu::Bridge => {
                    "the bridge there drops larger frames; give the bridges and hosts of both sites the same MTU"
                }
                _ => "larger packets may be lost, and OSPF stays in ExStart; set the same mtu in [link] at both ends",
            };
            let (lower, higher) = (given.min(theirs), given.max(theirs));
            warn!("the MTU is {given} here and {theirs} at the other end: {lower} fits both, not {higher}; {remedy}");
        }
    }
}

/// Why the interface gets another MTU.
fn in_words(mtu: u32, reason: &Reason) -> String {
    let what = format!("the interface's MTU is {mtu}");
    match reason {
        Reason::Config => what,
        Reason::Bridge => format!("{what}, as its bridge's is"),
        Reason::Peer => format!("{what}, as it is set at the other end"),
        Reason::Found(to, None) => format!("{what}: packets of {to} bytes pass to the peer in one datagram"),
        Reason::Found(to, Some(from)) => {
            format!("{what}: packets of {to} bytes pass to the peer in one datagram, and packets of {from} from it")
        }
    }
}

/// What to know of an interface whose packets may be larger than a datagram.
fn in_fragments(mtu: u32, fits: u32, reason: &Reason) -> String {
    let what = format!("packets of more than {fits} bytes, up to the interface's MTU of {mtu}, go in pieces");
    match reason {
        Reason::Config if fits >= LINK_MTU_MIN.into() => {
            format!("{what}; mtu = \"auto\" in [link] is faster where {fits} will do")
        }
        Reason::Bridge => format!("{what}; its bridge has that MTU, and mtu in [link] sets another"),
        Reason::Peer => format!("{what}; the other end has set that MTU"),
        Reason::Config | Reason::Found(..) => {
            format!("{what}: {LINK_MTU_MIN} is the least an interface with IPv6 can have")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PathConfig;
    use crate::sys::netns::NetNs;
    use crate::sys::testing::shell;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn advice_fits_the_case() {
        let fixed = in_fragments(1500, 1440, &Reason::Config);
        assert!(fixed.contains("more than 1440 bytes") && fixed.contains("mtu = \"auto\""), "{fixed}");
        let bridged = in_fragments(1500, 1418, &Reason::Bridge);
        assert!(bridged.contains("more than 1418 bytes") && bridged.contains("its bridge has that MTU"), "{bridged}");
        for reason in [Reason::Config, Reason::Found(1200, None)] {
            let small = in_fragments(1280, 1200, &reason);
            assert!(small.contains("1280 is the least"), "{small}");
        }
    }

    #[test]
    fn a_bridge_that_follows_its_ports_does_not_hold_the_link_down() {
        let mut fixed = None;
        let mut choose = |bridge, others, own| BridgeMtu { bridge, others, own }.choose(&mut fixed);
        assert_eq!(choose(1500, None, None), 1500, "a bridge without ports");
        assert_eq!(choose(9000, Some(9000), None), 9000);
        assert_eq!(choose(1500, Some(1500), Some(1500)), 1500);
        // A port shrinks, and grows again: the bridge stays at the lowest of its ports, which is the link's.
        assert_eq!(choose(1400, Some(1400), Some(1500)), 1400);
        assert_eq!(choose(1400, Some(1500), Some(1400)), 1500);
        assert_eq!(choose(1500, Some(1500), Some(1500)), 1500);
        // One that was set stays what it is, whatever its ports have.
        assert_eq!(choose(1400, Some(1500), Some(1500)), 1400);
        assert_eq!(choose(1400, Some(1500), Some(1400)), 1400);
        assert_eq!(choose(65_535, Some(1500), Some(1400)), 9000, "the most that a link carries");
        assert_eq!(choose(1000, Some(1500), Some(1400)), 1280, "the least that IPv6 needs");
    }

    #[test]
    fn the_ports_of_other_links_do_not_count() {
        let link = |index, name: &str, mtu, controller, group| LinkState {
            index,
            name: name.to_owned(),
            up: true,
            carrier: true,
            mtu,
            controller,
            is_bridge: name.starts_with("br"),
            group,
        };
        let links = [
            link(1, "br0", 1400, None, 0),
            link(2, "eth1", 1500, Some(1), 0),
            link(3, "eth2", 1280, None, 0),
            link(4, "tl0", 1400, Some(1), 7),
            link(5, "tl1", 1300, Some(1), 7),
        ];
        let found = BridgeMtu { bridge: 1400, others: Some(1500), own: Some(1400) };
        assert_eq!(BridgeMtu::find(&links, "br0", 7, Some(4)), Some(found));
        assert_eq!(BridgeMtu::find(&links, "br0", 7, None), Some(BridgeMtu { own: None, ..found }));
        assert_eq!(BridgeMtu::find(&links, "eth1", 7, Some(4)), None, "no bridge");
    }

    fn config() -> Config {
        Config::load("examples/hq.toml".as_ref()).unwrap().0
    }

    /// A keeper at work, what it is told, and what it tells.
    fn keeper(
        netlink: &Netlink,
        mtu: u32,
        config: &Config,
    ) -> (watch::Sender<Way>, watch::Sender<Seen>, watch::Receiver<Limits>) {
        let (way, watched) = watch::channel(Way::default());
        let (show, seen) = watch::channel(Seen::default());
        let (tell, limits) = watch::channel(Limits::default());
        tokio::spawn(MtuKeeper::new(netlink.clone(), mtu, config).follow(watched, seen, tell));
        (way, show, limits)
    }

    /// Waits until the keeper tells this.
    async fn tells(limits: &mut watch::Receiver<Limits>, what: impl Fn(&Limits) -> bool) {
        let waited = limits.wait_for(|limits| what(limits));
        if tokio::time::timeout(Duration::from_secs(10), waited).await.is_err() {
            panic!("it tells {:?}", limits.borrow());
        }
    }

    /// Runs `test` in an empty network of its own, where this machine allows that.
    fn in_own_network(test: impl Future<Output = ()> + Send) {
        let Ok(network) = NetNs::create() else {
            assert!(std::env::var_os("CI").is_none(), "may not make a network namespace");
            return eprintln!("skipped: may not make a network namespace");
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        network.run(|| runtime().block_on(test)).unwrap();
    }

    #[test]
    fn the_ceiling_is_what_the_route_by_each_path_takes() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            for (name, mtu) in [("out", 1492), ("lte", 1400)] {
                shell(&format!("ip link add {name} type veth peer name far-{name}; ip link set {name} mtu {mtu} up"));
            }
            shell("ip addr add 192.0.2.9/24 dev out; ip route add 192.0.2.0/24 dev lte metric 100");
            let path = |interface: Option<&str>| PathConfig {
                name: String::new(),
                interface: interface.map(str::to_owned),
                local: None,
                endpoint: None,
                priority: 100,
            };
            let mut config = config();
            config.paths = vec![path(Some("out")), path(Some("lte")), path(None)];
            let (way, show, mut limits) = keeper(&netlink, 1420, &config);
            way.send_replace(Way { peer: Some(V4), ..Way::default() });
            tells(&mut limits, |limits| limits.ceiling == Some(1464)).await;
            assert_eq!(limits.borrow().mtu, Some(1420), "until it is found what passes");
            for (path, most) in [(1, 1372), (0, 1464), (1, 1372), (2, 1464)] {
                way.send_replace(Way { path: Some(path), peer: Some(V4), ..Way::default() });
                tells(&mut limits, |limits| limits.ceiling == Some(most)).await;
            }
            // It is looked at again when something has changed, and not only each minute.
            shell("ip link set out mtu 1450");
            show.send_modify(|seen| seen.changes += 1);
            tells(&mut limits, |limits| limits.ceiling == Some(1422)).await;
        });
    }

    #[test]
    fn the_lower_of_both_directions_or_what_the_peer_was_given_is_the_mtu() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            let mut config = config();
            config.link.mtu = Mtu::Auto;
            let (way, _show, mut limits) = keeper(&netlink, 1420, &config);
            let found = |to_peer, from_peer| LinkMtu::Found { to_peer, from_peer };
            for (link, mtu) in [
                (found(1464, None), 1432),
                (found(1272, None), 1280),
                (found(1400, Some(1464)), 1368),
                (found(1464, Some(1372)), 1340),
                (LinkMtu::Given(1500), 1500),
            ] {
                way.send_replace(Way { link: Some(link), ..Way::default() });
                tells(&mut limits, |limits| limits.mtu == Some(mtu) && limits.given.is_none()).await;
            }
            // What stands in config is told to the peer, and is not the link's to change.
            config.link.mtu = Mtu::Fixed(1400);
            let (way, _show, mut limits) = keeper(&netlink, 1400, &config);
            way.send_replace(Way { link: Some(LinkMtu::Given(1500)), found: Some(1300), ..Way::default() });
            tells(&mut limits, |limits| *limits == Limits { ceiling: None, given: Some(1400), mtu: Some(1400) }).await;
        });
    }

    #[test]
    fn a_bridges_port_follows_the_bridge_and_nothing_else() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            let mut config = config();
            config.link.mtu = Mtu::Bridge;
            let (way, show, mut limits) = keeper(&netlink, 1500, &config);
            tells(&mut limits, |limits| limits.given == Some(1500)).await;
            for link in [LinkMtu::Found { to_peer: 1400, from_peer: None }, LinkMtu::Given(1400)] {
                way.send_replace(Way { found: Some(1400), link: Some(link), ..Way::default() });
            }
            for mtu in [9000, 1400, 1500] {
                let bridge = Some(BridgeMtu { bridge: mtu, others: None, own: Some(1500) });
                show.send_modify(|seen| seen.bridge = bridge);
                tells(&mut limits, |limits| (limits.given, limits.mtu) == (Some(mtu as u16), Some(mtu))).await;
            }
            // A bridge that is gone for a moment changes nothing.
            show.send_modify(|seen| (seen.bridge, seen.changes) = (None, 1));
            way.send_replace(Way { found: Some(1300), ..Way::default() });
            tokio::task::yield_now().await;
            assert_eq!(limits.borrow().mtu, Some(1500));
        });
    }
}

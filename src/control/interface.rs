//! The link's interface: made at start with its addresses and routes, and kept at the MTU that was found for the way to the peer.
//!
//! There is no undoing here: the kernel takes the interface, its addresses and its routes away when the last descriptor of
//! the device closes, also after kill -9.

use super::RunError;
use crate::config::{LinkConfig, Mtu};
use crate::dataplane::Device;
use crate::protocol::constants::MIN_TRANSPORT;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::offloads::TunOffloads;
use crate::sys::tun;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, info};

/// An outer packet of this size is taken for granted until the way to the peer is known: Ethernet's.
const USUAL_MTU: u32 = 1_500;
/// Linux takes IPv6 off an interface below this (RFC 8200 §5), and does not bring it back.
const MIN_MTU: u32 = 1_280;
/// The largest packet the link carries.
const MAX_MTU: u32 = 9_000;
/// Packets that may wait to be sent into the link: what half a million a second leave within 4 ms, the longest tick of
/// the scheduler's clock (CONFIG_HZ=250), for so long the egress loop may have to wait for a processor. The kernel's 500 lose
/// packets at a third of the rate the loop can keep up with (`docs/PERFORMANCE.md`).
const QUEUE: u32 = 2_000;
/// The way to the peer is looked at this often: its route may have changed.
const REFRESH: Duration = Duration::from_secs(60);

/// The largest datagram on a way that carries `outer` bytes to `peer`: less the IP header without options and the UDP header.
/// None larger than the largest packet needs is counted.
fn datagram(outer: u32, peer: IpAddr) -> u16 {
    let ip = if peer.is_ipv4() { 20 } else { 40 };
    outer.saturating_sub(ip + 8).min(MAX_MTU + MIN_TRANSPORT as u32) as u16
}

/// The largest inner packet that fits a datagram of this size: less the transport header and tag.
pub(super) fn inner(datagram: u16) -> u32 {
    u32::from(datagram).saturating_sub(MIN_TRANSPORT as u32)
}

/// What `mtu = "auto"` is where packets of that size fit one datagram.
fn auto(fits: u32) -> u32 {
    fits.clamp(MIN_MTU, MAX_MTU)
}

/// Makes the interface, with those of the offloads wished for that there are, and brings it up. It lives as long as the
/// device.
pub(super) async fn create(
    netlink: &Netlink,
    config: &LinkConfig,
    wish: TunOffloads,
) -> Result<(u32, Device), RunError> {
    let (tun, offloads) = tun::create(&config.interface, wish)?;
    let index = netlink.index(&config.interface).await?;
    let mtu = match config.mtu {
        Mtu::Fixed(mtu) => mtu.into(),
        // The peer may be reached over IPv6.
        Mtu::Auto => USUAL_MTU - 80,
    };
    netlink.set_mtu(index, mtu).await?;
    set_longest(netlink, index, mtu).await;
    netlink.set_queue_length(index, QUEUE).await?;
    for address in &config.addresses {
        netlink.add_address(index, address.addr(), address.prefix_len()).await?;
    }
    netlink.set_up(index).await?;
    for route in &config.routes {
        netlink.add_route(index, route.addr(), route.prefix_len(), config.metric).await?;
    }
    Ok((index, Device::new(tun, offloads)))
}

/// The longest UDP datagram over IPv4, which is what one segmented send may come to.
const MAX_SEND: u32 = 65_507;
/// The shortest headers of a TCP segment: more of them leave room to spare.
const HEADERS: u32 = 40;
/// Segments of one super-packet, as many as every kernel takes in one segmented send.
const MAX_SEGMENTS: u32 = 64;

/// The longest super-packet, and its segments, whose datagrams fit one segmented send.
fn longest(mtu: u32) -> (u32, u16) {
    let segments = (MAX_SEND / (mtu + MIN_TRANSPORT as u32)).clamp(1, MAX_SEGMENTS);
    (HEADERS + segments * (mtu - HEADERS), segments as u16)
}

/// Has the kernel make super-packets that are one send each. A longer one takes two, so a refusal is none.
async fn set_longest(netlink: &Netlink, index: u32, mtu: u32) {
    let (bytes, segments) = longest(mtu);
    if let Err(error) = netlink.set_gso_max(index, bytes, segments).await {
        debug!("super-packets stay as long as they are: {error}");
    }
}

/// The way to the peer, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// Where the peer is.
    pub(super) peer: Option<IpAddr>,
    /// The largest datagram that was found to arrive.
    pub(super) found: Option<u16>,
}

/// Keeps the interface's MTU right for the way to the peer.
pub(super) struct MtuKeeper {
    netlink: Netlink,
    index: u32,
    config: Mtu,
    set: Option<u32>,
    said: Option<u32>,
}

impl MtuKeeper {
    pub(super) fn new(netlink: Netlink, index: u32, config: Mtu) -> MtuKeeper {
        MtuKeeper { netlink, index, config, set: None, said: None }
    }

    /// Follows the way for ever, and tells the largest datagram that the route to the peer takes: more need not be tried.
    pub(super) async fn follow(mut self, mut way: watch::Receiver<Way>, ceiling: watch::Sender<Option<u16>>) {
        loop {
            let Way { peer, found } = *way.borrow_and_update();
            if let Some(peer) = peer {
                match self.netlink.route_to(peer).await {
                    Ok(route) => {
                        let most = Some(datagram(route.mtu, peer));
                        ceiling.send_if_modified(|told| std::mem::replace(told, most) != most);
                    }
                    // Sending fails too, which says so soon enough.
                    Err(error) => debug!("what the route to {peer} takes is not known: {error}"),
                }
            }
            if let Some(found) = found
                && let Err(error) = self.fit(inner(found)).await
            {
                debug!("the interface's MTU stays: {error}");
            }
            tokio::select! {
                changed = way.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(REFRESH) => {}
            }
        }
    }

    /// Packets of so many bytes fit one datagram.
    async fn fit(&mut self, fits: u32) -> Result<(), NetlinkError> {
        let mtu = match self.config {
            Mtu::Fixed(mtu) => mtu.into(),
            Mtu::Auto => auto(fits),
        };
        if self.config == Mtu::Auto && self.set != Some(mtu) {
            self.netlink.set_mtu(self.index, mtu).await?;
            set_longest(&self.netlink, self.index, mtu).await;
            self.set = Some(mtu);
            info!("the interface's MTU is {mtu}");
        }
        if mtu > fits && self.said.replace(fits) != Some(fits) {
            info!("{}", in_pieces(mtu, fits, self.config));
        }
        Ok(())
    }
}

/// What to know of an interface whose packets may be larger than a datagram.
fn in_pieces(mtu: u32, fits: u32, config: Mtu) -> String {
    let what = format!("packets of more than {fits} bytes, up to the interface's MTU of {mtu}, go in pieces");
    match config {
        Mtu::Fixed(_) if fits >= MIN_MTU => format!("{what}; mtu = \"auto\" in [link] is faster where {fits} will do"),
        _ => format!("{what}: {MIN_MTU} is the least an interface with IPv6 can have"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::NetNs;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn sizes_on_known_ways() {
        assert_eq!((datagram(1500, V4), datagram(1500, V6)), (1472, 1452));
        assert_eq!((datagram(1492, V4), datagram(65_536, V4), datagram(20, V6)), (1464, 9_032, 0));
        assert_eq!((inner(1472), inner(20)), (1440, 0));
        assert_eq!((auto(1440), auto(1200), auto(9_000)), (1440, 1280, 9_000), "never below what IPv6 needs");
    }

    #[test]
    fn a_super_packet_fits_one_send() {
        for mtu in [1_280, 1_420, 1_440, 1_500, 4_000, 9_000] {
            let (bytes, segments) = longest(mtu);
            let payload = mtu - HEADERS;
            assert!(u32::from(segments) * (mtu + 32) <= MAX_SEND && bytes <= 65_535);
            assert_eq!((bytes - HEADERS).div_ceil(payload), u32::from(segments));
            assert!(bytes > 56_000 || mtu > 4_000, "{mtu}: {bytes}");
        }
    }

    #[test]
    fn advice_fits_the_case() {
        let fixed = in_pieces(1500, 1440, Mtu::Fixed(1500));
        assert!(fixed.contains("more than 1440 bytes") && fixed.contains("mtu = \"auto\""), "{fixed}");
        for config in [Mtu::Fixed(1280), Mtu::Auto] {
            let small = in_pieces(1280, 1200, config);
            assert!(small.contains("1280 is the least"), "{small}");
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
    fn an_interface_follows_the_route_to_the_peer_and_leaves_with_its_descriptor() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            netlink.create_veth("out", "far").await.unwrap();
            let out = netlink.index("out").await.unwrap();
            netlink.set_mtu(out, 1492).await.unwrap();
            netlink.add_address(out, "192.0.2.9".parse().unwrap(), 24).await.unwrap();
            netlink.set_up(out).await.unwrap();

            let config = LinkConfig {
                interface: "tl-test".into(),
                addresses: vec!["10.99.0.1/30".parse().unwrap(), "fd99::1/126".parse().unwrap()],
                routes: vec!["198.51.100.0/24".parse().unwrap(), "fd77::/64".parse().unwrap()],
                mtu: Mtu::Auto,
                metric: Some(7),
            };
            let (index, tun) = create(&netlink, &config, TunOffloads::ALL).await.unwrap();
            assert_eq!(netlink.mtu(index).await.unwrap(), 1420);
            assert_eq!(netlink.route_to("198.51.100.7".parse().unwrap()).await.unwrap().oif, index);
            assert_eq!(netlink.route_to("fd77::7".parse().unwrap()).await.unwrap().oif, index);

            let (way, watched) = watch::channel(Way::default());
            let (tell, mut ceiling) = watch::channel(None);
            let keeper = tokio::spawn(MtuKeeper::new(netlink.clone(), index, Mtu::Auto).follow(watched, tell));
            way.send_replace(Way { peer: Some(V4), found: None });
            ceiling.changed().await.unwrap();
            assert_eq!(*ceiling.borrow(), Some(1464));
            assert_eq!(netlink.mtu(index).await.unwrap(), 1420, "until it is found what passes");
            for (found, mtu) in [(1464, 1432), (1272, 1280), (1400, 1368)] {
                way.send_replace(Way { peer: Some(V4), found: Some(found) });
                let set = async { while netlink.mtu(index).await.unwrap() != mtu {} };
                tokio::time::timeout(Duration::from_secs(10), set).await.unwrap();
            }
            drop(way);
            keeper.await.unwrap();

            drop(tun);
            assert!(netlink.index("tl-test").await.is_err(), "still there");
        });
    }
}

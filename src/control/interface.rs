//! The link's interface: made at start. Which MTU it should have later is `mtu`'s to say; its addresses, routes and MTU are the
//! reconciler's to keep.
//!
//! There is no undoing here: the kernel takes the interface, its addresses and its routes away when the last descriptor of
//! the device closes, also after kill -9.

use super::RunError;
use super::mtu::BridgeMtu;
use super::reconciler::GROUP;
use crate::config::{self, Carrier, Config, LinkConfig, Mtu};
use crate::dataplane::Device;
use crate::keys::PublicKey;
use crate::packet::Layer;
use crate::protocol::constants::MIN_TRANSPORT;
use crate::protocol::crypto::{CryptoFailure, sha256};
use crate::protocol::link::SetupError;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::offloads::TunOffloads;
use crate::sys::{sysctl, tun};
use std::net::{IpAddr, Ipv6Addr};
use tracing::{debug, info, warn};

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

/// The largest datagram on a way that carries `outer` bytes to `peer`: less the IP header without options and the UDP header.
/// None larger than the largest packet needs is counted.
pub(super) fn datagram(outer: u32, peer: IpAddr, layer: Layer) -> u16 {
    let ip = if peer.is_ipv4() { 20 } else { 40 };
    outer.saturating_sub(ip + 8).min(MAX_MTU + around(layer)) as u16
}

/// The largest inner packet that fits a datagram of this size.
pub(super) fn inner(datagram: u16, layer: Layer) -> u32 {
    u32::from(datagram).saturating_sub(around(layer))
}

/// What a datagram has around an inner packet: the transport header and tag, and what a frame has around a packet.
fn around(layer: Layer) -> u32 {
    (MIN_TRANSPORT + layer.overhead()) as u32
}

/// What an interface has that is to have this MTU, as far as a link can.
pub(super) fn auto(fits: u32) -> u32 {
    fits.clamp(MIN_MTU, MAX_MTU)
}

/// The interface that was made.
pub(super) struct Interface {
    pub(super) index: u32,
    /// The MTU it was given, in bytes.
    pub(super) mtu: u32,
    /// It lives as long as this does.
    pub(super) device: Device,
    /// Whether its carrier can be set, and is to follow the peer: it has none yet.
    pub(super) sets_carrier: bool,
}

/// Makes the interface, with those of the offloads wished for that there are. It is still down, and has no addresses.
pub(super) async fn create(netlink: &Netlink, config: &Config, wish: TunOffloads) -> Result<Interface, RunError> {
    let own = config.local.private_key.public().map_err(|_| SetupError::from(CryptoFailure))?;
    let config = &config.link;
    let bridge = match &config.bridge {
        Some(name) => Some(find_bridge(netlink, name).await?),
        None => None,
    };
    let layer = layer(config);
    let kind = match layer {
        Layer::Ip => tun::Kind::Tun,
        Layer::Ethernet => tun::Kind::Tap,
    };
    let (tun, offloads) = tun::create(&config.interface, kind, wish)?;
    let device = Device::new(tun, layer, offloads);
    apply_settings(config);
    let sets_carrier = config.carrier == Carrier::Peer && take_carrier(&device, &config.interface);
    let index = netlink.index(&config.interface).await?;
    if layer == Layer::Ethernet {
        netlink.set_hardware_address(index, hardware_address(&own, &config.interface)).await?;
    }
    let mtu = first_mtu(netlink, config, layer).await?;
    set_mtu(netlink, index, mtu, layer).await?;
    netlink.set_queue_length(index, QUEUE).await?;
    if let Some(bridge) = bridge {
        netlink.join_bridge(index, bridge).await?;
    }
    Ok(Interface { index, mtu, device, sets_carrier })
}

/// The MTU until it is known what passes.
async fn first_mtu(netlink: &Netlink, config: &LinkConfig, layer: Layer) -> Result<u32, NetlinkError> {
    // The peer may be reached over IPv6.
    let usual = auto(inner(datagram(USUAL_MTU, IpAddr::V6(Ipv6Addr::UNSPECIFIED), layer), layer));
    match (config.mtu, &config.bridge) {
        (Mtu::Fixed(mtu), _) => Ok(mtu.into()),
        (Mtu::Bridge, Some(name)) => {
            // Before it is a port: the kernel lowers a bridge's MTU to that of its ports.
            let found = BridgeMtu::find(&netlink.links().await?, name, GROUP, None);
            let mtu = found.map_or(usual, |found| found.choose(&mut None));
            info!(
                "{} takes the MTU of bridge {name}, {mtu}: frames that do not fit one datagram go in pieces; mtu in [link] sets \
                 another",
                config.interface
            );
            Ok(mtu)
        }
        _ => Ok(usual),
    }
}

/// Gives the interface the settings it is to have, before it is up and could hear anything.
fn apply_settings(config: &LinkConfig) {
    for (path, value) in sysctl::desired(&config.interface, role(config)) {
        if let Err(error) = sysctl::set(&path, value) {
            warn!("cannot set /proc/sys/net/{path} to {value}: {error}; {}", without(&path));
        }
    }
}

/// What the interface is to the rest of the machine.
pub(super) fn role(config: &LinkConfig) -> sysctl::Role {
    sysctl::Role { follows_peer: config.carrier == Carrier::Peer, bridge_port: config.bridge.is_some() }
}

/// What follows where a setting cannot be made.
fn without(path: &str) -> &'static str {
    match path.rsplit('/').next() {
        Some("ignore_routes_with_linkdown") => "while the peer is away, static routes and the link's own network stay",
        Some("disable_ipv6") => "the interface gets a link-local IPv6 address, which nobody uses",
        _ => "the peer can change this machine's addresses and routes by ICMP; set it by other means",
    }
}

/// Takes the carrier away until the peer is there; says whether that can be done.
fn take_carrier(device: &Device, interface: &str) -> bool {
    let taken = device.set_carrier(false);
    if let Err(error) = &taken {
        warn!(
            "this kernel cannot take the carrier from {interface}: {error}; the interface looks alive without the peer too"
        );
    }
    taken.is_ok()
}

/// What the config's layer means to the packet path.
pub(super) fn layer(config: &LinkConfig) -> Layer {
    match config.layer {
        config::Layer::Ip => Layer::Ip,
        config::Layer::Ethernet => Layer::Ethernet,
    }
}

async fn find_bridge(netlink: &Netlink, name: &str) -> Result<u32, RunError> {
    let no_bridge = |why: String| RunError::NoBridge { bridge: name.to_owned(), why };
    let index = netlink.index(name).await.map_err(|error| no_bridge(error.to_string()))?;
    match netlink.is_bridge(index).await? {
        true => Ok(index),
        false => Err(no_bridge(format!("interface {name} is of another kind"))),
    }
}

/// The Ethernet address of an end's interface: the same after each start, another one at each end and for each interface. It
/// says nothing that the public key does not.
///
/// Locally administered (IEEE 802 §8.4), and above all others but for one in 16,384 of those that the kernel makes at random: a bridge
/// takes the lowest of its ports' addresses for its own, and would change it with a lower one.
fn hardware_address(own: &PublicKey, interface: &str) -> [u8; 6] {
    let [a, b, c, d, ..] = sha256(&[b"tieline v1 ethernet address", own.as_bytes(), interface.as_bytes()]);
    [0xFE, 0xFF, a, b, c, d]
}

/// The longest UDP datagram over IPv4, which is what one segmented send may come to.
const MAX_SEND: u32 = 65_507;
/// The shortest headers of a TCP segment: more of them leave room to spare.
const HEADERS: u32 = 40;
/// Segments of one super-packet, as many as every kernel takes in one segmented send.
const MAX_SEGMENTS: u32 = 64;

/// The longest super-packet, and its segments, whose datagrams fit one segmented send.
fn longest(mtu: u32, layer: Layer) -> (u32, u16) {
    let overhead = layer.overhead() as u32;
    let segments = (MAX_SEND / (mtu + overhead + MIN_TRANSPORT as u32)).clamp(1, MAX_SEGMENTS);
    (overhead + HEADERS + segments * (mtu - HEADERS), segments as u16)
}

/// Sets the interface's MTU, and the longest super-packet that goes with it.
pub(super) async fn set_mtu(netlink: &Netlink, index: u32, mtu: u32, layer: Layer) -> Result<(), NetlinkError> {
    netlink.set_mtu(index, mtu).await?;
    set_longest(netlink, index, mtu, layer).await;
    Ok(())
}

/// Has the kernel make super-packets that are one send each. A longer one takes two, so a refusal is none.
async fn set_longest(netlink: &Netlink, index: u32, mtu: u32, layer: Layer) {
    let (bytes, segments) = longest(mtu, layer);
    if let Err(error) = netlink.set_gso_max(index, bytes, segments).await {
        debug!("super-packets stay as long as they are: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns::NetNs;
    use crate::sys::testing::shell;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn sizes_on_known_ways() {
        let ip = |outer, peer| datagram(outer, peer, Layer::Ip);
        assert_eq!((ip(1500, V4), ip(1500, V6)), (1472, 1452));
        assert_eq!((ip(1492, V4), ip(65_536, V4), ip(20, V6)), (1464, 9_032, 0));
        assert_eq!((inner(1472, Layer::Ip), inner(20, Layer::Ip)), (1440, 0));
        // 14 bytes of header and two tags of 4.
        let ethernet = [1500, 1582, 65_536].map(|outer| inner(datagram(outer, V4, Layer::Ethernet), Layer::Ethernet));
        assert_eq!(ethernet, [1418, 1500, 9_000]);
        assert_eq!((auto(1440), auto(1200), auto(9_000)), (1440, 1280, 9_000), "never below what IPv6 needs");
    }

    #[test]
    fn a_super_packet_fits_one_send() {
        for mtu in [1_280, 1_420, 1_440, 1_500, 4_000, 9_000] {
            for (layer, header) in [(Layer::Ip, 0), (Layer::Ethernet, 22)] {
                let (bytes, segments) = longest(mtu, layer);
                let payload = mtu - HEADERS;
                assert!(u32::from(segments) * (header + mtu + 32) <= MAX_SEND && bytes <= 65_535);
                assert_eq!((bytes - header - HEADERS).div_ceil(payload), u32::from(segments));
                assert!(bytes > 56_000 || mtu > 4_000, "{mtu}: {bytes}");
            }
        }
    }

    fn config() -> Config {
        Config::load("examples/hq.toml".as_ref()).unwrap().0
    }

    #[test]
    fn an_ethernet_address_is_this_ends_and_this_interfaces_alone() {
        let [hq, branch] = ["hq", "branch"].map(|name| {
            let config = Config::load(format!("examples/{name}.toml").as_ref()).unwrap().0;
            config.local.private_key.public().unwrap()
        });
        let address = hardware_address(&hq, "tl0");
        assert_eq!(address, hardware_address(&hq, "tl0"));
        assert_eq!(address[0] & 0b11, 0b10, "locally administered, for one");
        assert_ne!(address, hardware_address(&branch, "tl0"));
        assert_ne!(address, hardware_address(&hq, "tl1"));
    }

    #[test]
    fn an_ethernet_interface_joins_its_bridge_or_says_why_not() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            let mut config = config();
            config.link = LinkConfig {
                interface: "tl-test".into(),
                addresses: vec![],
                routes: vec![],
                mtu: Mtu::Auto,
                metric: None,
                mss_clamp: false,
                layer: config::Layer::Ethernet,
                bridge: Some("br-test".into()),
                routes_follow: true,
                carrier: Carrier::Peer,
                duplicate: false,
                fallback: config::Fallback::Block,
                coalesce_udp: false,
                source_filter: false,
            };
            let refused = async |config: &Config| match create(&netlink, config, TunOffloads::ALL).await {
                Err(error) => error.to_string(),
                Ok(_) => panic!("joined {:?}", config.link.bridge),
            };
            let said = refused(&config).await;
            assert!(said.contains("no bridge br-test") && said.contains("ip link add br-test type bridge"), "{said}");
            config.link.bridge = Some("lo".into());
            let said = refused(&config).await;
            assert!(said.contains("lo is of another kind"), "{said}");
            assert!(netlink.index("tl-test").await.is_err(), "nothing is left of what failed");

            shell("ip link add br-test type bridge && ip link set br-test up");
            config.link.bridge = Some("br-test".into());
            let Interface { index, mtu, device, .. } = create(&netlink, &config, TunOffloads::ALL).await.unwrap();
            assert_eq!((netlink.mtu(index).await.unwrap(), mtu), (1398, 1398));
            let own = config.local.private_key.public().unwrap();
            let address = hardware_address(&own, "tl-test").map(|byte| format!("{byte:02x}")).join(":");
            shell(&format!("ip link show dev tl-test | grep -q 'link/ether {address}'"));
            shell("ip link show dev tl-test | grep -q 'master br-test'");
            shell("test -z \"$(ip -6 addr show dev tl-test)\"");
            drop(device);
            assert!(netlink.index("tl-test").await.is_err(), "still there");

            // Without an MTU in config it has that of the bridge, which stays what it was.
            config.link.mtu = Mtu::Bridge;
            for bridge in [1500, 9000, 1400] {
                shell(&format!("ip link set br-test mtu {bridge}"));
                let Interface { index, device: _device, .. } =
                    create(&netlink, &config, TunOffloads::ALL).await.unwrap();
                assert_eq!(netlink.mtu(index).await.unwrap(), bridge);
                assert_eq!(netlink.mtu(netlink.index("br-test").await.unwrap()).await.unwrap(), bridge);
            }
        });
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
}

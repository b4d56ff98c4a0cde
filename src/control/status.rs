//! What `tieline status` shows of a running link: the document, version 1, and how it is filled in.
//!
//! Fields may be added, never changed or taken away. How the document travels is `socket`'s business.

mod socket;

pub use socket::{AskError, ask, run_dir, running, socket_path};
pub(super) use socket::{Client, Listener, is_live};

use super::interface::inner;
use super::losses::InterfaceDrops;
use super::problem;
use crate::config::{self, Config, PathConfig};
use crate::dataplane::Counters;
use crate::keys::PublicKey;
use crate::packet::Layer;
use crate::protocol::control::State as LinkState;
use crate::protocol::levels::Drops as LinkDrops;
use crate::protocol::{Time, link};
use crate::sys::offloads;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The version of the document.
pub const VERSION: u32 = 1;
/// The handshake every session begins with.
const NOISE: &str = "Noise_KKpsk2_25519_ChaChaPoly_SHA256";

/// All there is to see of one link. What is not known is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`VERSION`]
    pub version: u32,
    /// The config file's stem.
    pub name: String,
    /// The interface.
    pub interface: String,
    /// The state of liveness. Packets pass only while it is up and `damped` is null.
    pub state: State,
    /// Since when the state is what it is (RFC 3339, UTC); reckoned back from the wall clock, which may be wrong.
    pub since: Option<String>,
    /// Until when no packets pass although the state is up (RFC 3339, UTC): the link went down too
    /// often, so the interface gets no carrier yet, or its routes are not set yet. Or this is so at
    /// the peer, see `peer.damped`. Null if they pass.
    #[serde(default)]
    pub damped: Option<String>,
    /// After so many milliseconds of silence the state is down: three intervals, the longer of the two ends' once they have agreed, until
    /// then this end's.
    #[serde(default)]
    pub detection_ms: Option<f64>,
    /// The worst of what keeps the link from doing its work; null if nothing is known to.
    #[serde(default)]
    pub problem: Option<Problem>,
    /// This end.
    #[serde(default)]
    pub local: Local,
    /// The other end.
    pub peer: Peer,
    /// Whether a change of keys is under way.
    #[serde(default)]
    pub rotation: Rotation,
    /// The session all is sent under; null while there is none.
    pub session: Option<Session>,
    /// Whether the rest of the machine sees the line as there.
    #[serde(default)]
    pub carrier: Carrier,
    /// The line.
    pub path: Path,
    /// The paths that config names, in its order.
    #[serde(default)]
    pub paths: Vec<NamedPath>,
    /// Datagrams and frames that were dropped since the start, by reason.
    pub drops: Drops,
    /// What the kernel takes off the link's hands; one that it refused at start or later is false.
    #[serde(default)]
    pub offloads: Offloads,
    /// What holds the process; null if nothing does.
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
}

/// What is wrong with a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is, in a word that stays the same: `interface-down`, `same-key-twice`, …
    pub code: String,
    /// What is wrong, where, and what to do.
    pub text: String,
    /// Since when (RFC 3339, UTC).
    pub since: Option<String>,
}

/// What the process has given up, see [`crate::sys::sandbox`]. What the kernel does not have is false or null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The capabilities that are left to it, to its control thread alone, in small letters and without `CAP_`.
    pub capabilities: Vec<String>,
    /// Whether it can gain none by running a program.
    pub no_new_privs: bool,
    /// Whether each of its threads can make only the system calls it needs.
    pub seccomp: bool,
    /// The version of landlock that keeps files from it.
    pub landlock: Option<i32>,
    /// The user it became.
    pub user: Option<String>,
}

/// What routing sees of the line. A line that comes and goes is damped: it has to stay for a while before it counts as there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Carrier {
    /// `peer`: it is on while both ends hear each other. `always`: it is on, because config says so or the kernel cannot do else.
    pub follows: config::Carrier,
    /// Whether the interface has one.
    pub on: bool,
    /// How often the line was lost within the last minute, without what five minutes up made good.
    pub losses: usize,
    /// How many seconds it has to stay up, now or when it comes up next: 0 up to three losses within a minute, then 1, doubling to 30.
    pub wait_s: f64,
    /// How many of them are left, while it is up and does not count as there yet.
    pub left_s: Option<f64>,
}

impl Default for Carrier {
    /// That of a link that does not tell.
    fn default() -> Carrier {
        Carrier { follows: config::Carrier::Always, on: true, losses: 0, wait_s: 0.0, left_s: None }
    }
}

/// Offloads in use, see [`crate::sys::offloads`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// Frames of the interface come with a header that tells of them.
    pub vnet_hdr: bool,
    /// TCP comes from the interface, and goes to it, in super-packets.
    pub tso: bool,
    /// So does UDP.
    pub uso: bool,
    /// Runs of datagrams leave in one send.
    pub udp_segment: bool,
    /// Runs of datagrams come in one receive.
    pub udp_gro: bool,
}

impl From<offloads::Offloads> for Offloads {
    fn from(offloads::Offloads { tun, udp }: offloads::Offloads) -> Offloads {
        Offloads { vnet_hdr: tun.vnet_hdr, tso: tun.tso, uso: tun.uso, udp_segment: udp.segment, udp_gro: udp.gro }
    }
}

/// The state of liveness (RFC 5880 §6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The operator took this end's interface down.
    AdminDown,
    /// Both ends hear each other.
    Up,
    /// The peer is heard, and does not say yet that it hears this end.
    Init,
    /// The peer is not heard, or says that its interface is down.
    Down,
}

/// This end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// Its public key: that of the session in use, else the configured one.
    pub public_key: String,
}

/// A change of keys, as this end sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotation {
    /// Each key is listed once, and in use.
    #[default]
    None,
    /// This end has changed a key, and the link is not under it yet: the peer does not list it, or not first.
    Waiting,
    /// Two keys of a kind are listed, and the link is under one of them.
    Listed,
}

/// The other end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its public key: that of the session in use, else the one listed first.
    pub public_key: String,
    /// Those that config lists: two while it changes its key.
    #[serde(default)]
    pub public_keys: Vec<String>,
    /// Where it is, or where it is looked for.
    pub endpoint: Option<String>,
    /// Until when it holds the link back, as the link went down too often there (RFC 3339, UTC): as it said last. Null if it does not.
    #[serde(default)]
    pub damped: Option<String>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The Noise protocol of its handshake.
    pub noise: String,
    /// Its AEAD.
    pub cipher: String,
    /// Whether ML-KEM-768 went into its keys.
    pub post_quantum: bool,
    /// Its number: it rises with each session.
    pub epoch: u32,
    /// Its age in seconds.
    pub age_s: f64,
    /// Which of the preshared keys listed is in it, from 1; null without one.
    #[serde(default)]
    pub preshared_key: Option<usize>,
}

/// The line, as the Reports and the traffic itself show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// The largest inner packet, in bytes, that fits one datagram to the peer: as found, and until then as the own interface has it.
    /// Larger ones go in pieces.
    pub mtu: Option<u32>,
    /// Round-trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Jitter in milliseconds (RFC 3550 §6.4.1).
    pub jitter_ms: Option<f64>,
    /// To the peer.
    pub tx: Traffic,
    /// From the peer.
    pub rx: Traffic,
}

/// One of the paths that config names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedPath {
    /// What config calls it.
    pub name: String,
    /// The interface it is tied to; null where the routing table chooses.
    pub interface: Option<String>,
    /// The own address it is tied to; null where `listen` or the kernel chooses.
    pub local: Option<String>,
    /// The peer's address on it, where it answered last or is looked for.
    pub endpoint: Option<String>,
    /// Of the paths that are up the one with the lowest is used.
    pub priority: u32,
    /// Whether the peer answers there: up or down.
    pub state: State,
    /// Since when (RFC 3339, UTC).
    pub since: Option<String>,
    /// Whether user traffic is sent there.
    pub used: bool,
    /// Round-trip time of its checks in milliseconds.
    pub rtt_ms: Option<f64>,
    /// The share of its checks that was not answered lately, 0 to 1: there and back.
    pub loss_ratio: Option<f64>,
}

/// User traffic inside the link, in one direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets since the start.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The share of them lost on the way lately, 0 to 1; for what was sent it is what the far end reports.
    pub loss_ratio: Option<f64>,
    /// The share of packets that this end itself dropped lately, 0 to 1: of what was to be sent before it was sealed, of what came
    /// after it was opened. `drops` has the reasons. It is not in `loss_ratio`.
    #[serde(default)]
    pub dropped_ratio: Option<f64>,
    /// The largest inner packet, in bytes, that was found to fit one datagram; of what comes from the peer, as far as its probes show.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// When that was found (RFC 3339, UTC).
    #[serde(default)]
    pub mtu_since: Option<String>,
}

/// What was dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Nonce, stamp or window: it came before, or too late to tell.
    pub replayed: u64,
    /// MAC, token or AEAD: not from the peer, or damaged.
    pub unauthentic: u64,
    /// Length, header or range.
    pub malformed: u64,
    /// An unknown index, or user data while there was no session.
    pub no_session: u64,
    /// Packets that did not fit one datagram.
    pub too_big: u64,
    /// Packets that came with a mark of congestion which their sender does not know: RFC 6040 has them dropped.
    #[serde(default)]
    pub congested: u64,
    /// Packets from the peer with a source that is outside `routes` and the link's own networks.
    #[serde(default)]
    pub source: u64,
    /// Packets that came out of the link and were about to be sent back into it.
    #[serde(default)]
    pub returned: u64,
    /// The link's own datagrams that a route sent into the link.
    #[serde(default)]
    pub looped: u64,
    /// Datagrams that the socket did not take, for another reason than their size.
    #[serde(default)]
    pub socket_send: u64,
    /// Packets for the peer that the interface's queue had no room for. A super-packet counts as one, here and in the next.
    #[serde(default)]
    pub interface_queue: u64,
    /// Packets for the peer that came while the interface had no carrier, or in the second in which that came or went.
    #[serde(default)]
    pub interface_no_carrier: u64,
    /// Packets from the peer that came while the interface was administratively down.
    #[serde(default)]
    pub interface_down: u64,
    /// Packets from the peer that the interface did not take as they are.
    #[serde(default)]
    pub interface_invalid: u64,
    /// Packets from the peer that the interface did not take for another reason, such as lack of memory.
    #[serde(default)]
    pub interface_write: u64,
    /// Packets from the peer that the kernel dropped after the interface had taken them. A super-packet counts as one. On an
    /// Ethernet those of protocols that nobody takes are among them.
    #[serde(default)]
    pub interface_receive: u64,
}

impl Status {
    /// Whether packets pass: both ends hear each other, and the interface has its carrier.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.state == State::Up && self.damped.is_none()
    }

    /// As it is sent: one JSON document, readable as it stands.
    pub(super) fn to_json(&self) -> String {
        // It cannot fail: there are only strings, numbers that are finite, and named fields.
        serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default()
    }
}

/// What the config says of a link.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) interface: String,
    pub(super) layer: Layer,
    pub(super) own: PublicKey,
    pub(super) peers: Vec<PublicKey>,
    /// How many are listed.
    pub(super) preshared: usize,
    pub(super) paths: Vec<PathConfig>,
    pub(super) sandbox: Option<Sandbox>,
}

impl Identity {
    /// Takes the keys of a config that was read again.
    pub(super) fn take_keys(&mut self, config: &Config) {
        if let Ok(own) = config.local.private_key.public() {
            self.own = own;
        }
        self.peers.clone_from(&config.peer.public_keys);
        self.preshared = config.peer.preshared_keys.len();
    }
}

/// When things came to be as they are, on the wall clock.
#[derive(Debug, Default)]
pub(super) struct Since {
    pub(super) state: Option<String>,
    /// To the peer, and from it.
    pub(super) sizes: [Option<String>; 2],
    /// Of each of config's paths.
    pub(super) paths: Vec<Option<String>>,
    /// Until when the link is damped, here or at the peer.
    pub(super) damped: Option<String>,
    /// Until when the peer holds it back.
    pub(super) held_by_peer: Option<String>,
    /// Of the problem.
    pub(super) problem: Option<String>,
}

/// What does.
pub(super) struct Moment<'a> {
    pub(super) now: Time,
    pub(super) link: link::Status,
    /// Config's paths.
    pub(super) ways: &'a [link::WayStatus],
    /// Where the peer is looked for while there is no path.
    pub(super) sought: Option<std::net::SocketAddr>,
    /// The largest datagram that the own interface takes.
    pub(super) ceiling: Option<u16>,
    pub(super) counters: Counters,
    pub(super) drops: &'a LinkDrops,
    /// What the kernel dropped at the interface.
    pub(super) interface: InterfaceDrops,
    /// The share of packets that this end dropped lately: to the peer, and from it.
    pub(super) dropped: Option<[f64; 2]>,
    pub(super) offloads: offloads::Offloads,
    pub(super) carrier: Carrier,
    /// The worst there is.
    pub(super) problem: Option<problem::Problem>,
}

impl Moment<'_> {
    /// Fills in the document.
    pub(super) fn show(&self, identity: &Identity, since: Since) -> Status {
        let link = &self.link;
        let endpoint = link.path.map(|path| path.peer).or(self.sought);
        let in_use = link.session.map(|session| session.keys);
        Status {
            version: VERSION,
            name: identity.name.clone(),
            interface: identity.interface.clone(),
            state: match link.state {
                LinkState::AdminDown => State::AdminDown,
                LinkState::Up => State::Up,
                LinkState::Init => State::Init,
                LinkState::Down => State::Down,
            },
            since: since.state,
            damped: since.damped,
            detection_ms: ms(Some(link.detection)),
            problem: self.problem.as_ref().map(|problem| show_problem(problem, since.problem)),
            local: Local { public_key: in_use.map_or(identity.own, |keys| keys.own).to_string() },
            peer: Peer {
                public_key: in_use
                    .map(|keys| keys.peer)
                    .or(identity.peers.first().copied())
                    .map(|key| key.to_string())
                    .unwrap_or_default(),
                public_keys: identity.peers.iter().map(ToString::to_string).collect(),
                endpoint: endpoint.map(|address| address.to_string()),
                damped: since.held_by_peer,
            },
            rotation: match link.waits_for_keys {
                true => Rotation::Waiting,
                false if identity.peers.len().max(identity.preshared) > 1 => Rotation::Listed,
                false => Rotation::None,
            },
            session: link.session.map(|session| Session {
                noise: NOISE.to_owned(),
                cipher: session.cipher.name().to_owned(),
                post_quantum: session.post_quantum,
                epoch: session.epoch,
                age_s: thousandths(self.now.since(session.established).as_secs_f64()),
                preshared_key: session.keys.preshared,
            }),
            carrier: self.carrier.clone(),
            path: self.path(identity.layer, since.sizes),
            paths: identity.paths.iter().zip(self.ways).zip(since.paths).map(named_path).collect(),
            drops: self.drops(),
            offloads: self.offloads.into(),
            sandbox: identity.sandbox.clone(),
        }
    }

    fn drops(&self) -> Drops {
        let (link, interface) = (self.drops, self.interface);
        Drops {
            replayed: link.replayed.get(),
            unauthentic: link.unauthentic.get(),
            malformed: link.malformed.get(),
            no_session: link.no_session.get(),
            too_big: link.too_big.get(),
            congested: link.congested.get(),
            source: link.source.get(),
            returned: link.returned.get(),
            looped: link.looped.get(),
            socket_send: self.counters.tx_errors,
            interface_queue: interface.queue,
            interface_no_carrier: interface.no_carrier,
            interface_down: link.interface_down.get(),
            interface_invalid: link.interface_invalid.get(),
            interface_write: link.interface_write.get(),
            interface_receive: interface.receive,
        }
    }

    fn path(&self, layer: Layer, [tx_since, rx_since]: [Option<String>; 2]) -> Path {
        let (link, counters) = (&self.link, &self.counters);
        let [tx, rx] = [link.tx_size, link.rx_size].map(|found| found.map(|found| inner(found.size, layer)));
        let dropped = self.dropped.map(|ratios| ratios.map(thousandths));
        Path {
            mtu: tx.or(self.ceiling.map(|ceiling| inner(ceiling, layer))),
            rtt_ms: ms(link.rtt),
            jitter_ms: ms(link.jitter),
            tx: Traffic {
                packets: counters.tx_packets,
                bytes: counters.tx_bytes,
                loss_ratio: link.tx_loss,
                dropped_ratio: dropped.map(|[tx, _]| tx),
                mtu: tx,
                mtu_since: tx_since,
            },
            rx: Traffic {
                packets: counters.rx_packets,
                bytes: counters.rx_bytes,
                loss_ratio: link.rx_loss,
                dropped_ratio: dropped.map(|[_, rx]| rx),
                mtu: rx,
                mtu_since: rx_since,
            },
        }
    }
}

fn show_problem(problem: &problem::Problem, since: Option<String>) -> Problem {
    // A code is written as a word.
    let code = serde_json::to_value(problem.code).ok().and_then(|code| code.as_str().map(str::to_owned));
    Problem { code: code.unwrap_or_default(), text: problem.text.clone(), since }
}

fn named_path(((config, way), since): ((&PathConfig, &link::WayStatus), Option<String>)) -> NamedPath {
    NamedPath {
        name: config.name.clone(),
        interface: config.interface.clone(),
        local: config.local.map(|address| address.to_string()),
        endpoint: way.peer.map(|address| address.to_string()),
        priority: config.priority,
        state: if way.up { State::Up } else { State::Down },
        since,
        used: way.used,
        rtt_ms: ms(way.rtt),
        loss_ratio: way.loss,
    }
}

/// In milliseconds.
fn ms(time: Option<Duration>) -> Option<f64> {
    time.map(|time| thousandths(time.as_secs_f64() * 1e3))
}

fn thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Moments of the boot clock on the wall clock, for people.
///
/// The same moment keeps its words, although the two clocks drift: they change only when the wall clock was set.
#[derive(Default)]
pub(super) struct WallClock(Option<(Time, OffsetDateTime)>);

impl WallClock {
    /// `moment` in RFC 3339, when it is `now` on the boot clock and `wall` on the wall clock: the second it lies in, or if it is to come
    /// the next one. `None` where that year cannot be written.
    pub(super) fn show(&mut self, moment: Time, now: Time, wall: SystemTime) -> Option<String> {
        let mut wall = OffsetDateTime::from(wall.checked_sub(now.since(moment))?.checked_add(moment.since(now))?);
        if moment > now {
            wall = wall.checked_add(time::Duration::nanoseconds(999_999_999))?;
        }
        let drift = |shown: OffsetDateTime| (shown - wall).abs();
        let shown = match self.0 {
            Some((last, shown)) if last == moment && drift(shown) < Duration::from_secs(2) => shown,
            _ => wall.replace_nanosecond(0).ok()?,
        };
        self.0 = Some((moment, shown));
        shown.format(&Rfc3339).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::link::KeysInUse;
    use crate::protocol::mtu::Found;
    use crate::protocol::session::Cipher;
    use crate::protocol::{Path as LinkPath, SocketId};

    fn identity() -> Identity {
        Identity {
            name: "hq".into(),
            layer: Layer::Ip,
            interface: "tl0".into(),
            own: key(1),
            peers: vec![key(2)],
            preshared: 0,
            paths: paths(),
            sandbox: Some(sandbox()),
        }
    }

    /// One that says all there is to say, and one that says nothing.
    fn paths() -> Vec<PathConfig> {
        let path = |name: &str, priority| PathConfig {
            name: name.into(),
            interface: None,
            local: None,
            endpoint: None,
            priority,
        };
        let local = Some("192.0.2.9".parse().unwrap());
        vec![PathConfig { interface: Some("wan0".into()), local, ..path("fibre", 10) }, path("lte", 100)]
    }

    fn ways() -> [link::WayStatus; 2] {
        let silent = link::WayStatus { peer: None, up: false, since: Time(0), used: false, rtt: None, loss: None };
        let peer = Some("203.0.113.7:7311".parse().unwrap());
        let rtt = Some(Duration::from_micros(12_345));
        [link::WayStatus { peer, up: true, used: true, rtt, loss: Some(0.125), ..silent }, silent]
    }

    fn since() -> Since {
        let at = |second: u8| Some(format!("2026-01-02T03:04:0{second}Z"));
        Since {
            state: at(5),
            sizes: [at(6), at(7)],
            paths: vec![at(8), None],
            damped: at(9),
            held_by_peer: at(4),
            problem: at(0),
        }
    }

    fn key(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32]).unwrap()
    }

    fn sandbox() -> Sandbox {
        let capabilities = vec!["net_admin".into()];
        Sandbox { capabilities, no_new_privs: true, seccomp: true, landlock: Some(7), user: None }
    }

    fn moment(link: link::Status, drops: &LinkDrops) -> Moment<'_> {
        moment_of(link, &[], drops)
    }

    fn moment_of<'a>(link: link::Status, ways: &'a [link::WayStatus], drops: &'a LinkDrops) -> Moment<'a> {
        let tx = Counters { tx_packets: 1, tx_bytes: 84, tx_errors: 4, ..Counters::default() };
        let counters = Counters { rx_packets: 2, rx_bytes: 168, ..tx };
        Moment {
            now: Time(41_200_000_000),
            link,
            ways,
            sought: None,
            ceiling: Some(1_472),
            counters,
            drops,
            interface: InterfaceDrops { queue: 63, no_carrier: 7, receive: 9 },
            dropped: Some([0.125, 0.0]),
            offloads: offloads::Offloads::ALL,
            carrier: Carrier { follows: config::Carrier::Peer, on: false, losses: 5, wait_s: 2.0, left_s: Some(0.5) },
            problem: Some(problem::Problem {
                code: problem::Code::PeerSilent,
                text: "no answer".into(),
                since: Time(40_000_000_000),
            }),
        }
    }

    fn session(keys: KeysInUse) -> link::SessionStatus {
        link::SessionStatus { cipher: Cipher::Aes256Gcm, post_quantum: true, epoch: 3, established: Time(0), keys }
    }

    #[test]
    fn version_1_as_the_contract_has_it() {
        let session = session(KeysInUse { own: key(1), peer: key(2), preshared: None });
        let path = LinkPath { socket: SocketId(0), local: None, peer: "203.0.113.7:7311".parse().unwrap() };
        let link = link::Status {
            state: LinkState::Up,
            since: Time(0),
            peer_state: Some(LinkState::Up),
            held_by_peer: None,
            detection: Duration::from_secs(3),
            session: Some(session),
            waits_for_keys: false,
            path: Some(path),
            tx_size: Some(Found { size: 1_472, since: Time(1) }),
            rx_size: Some(Found { size: 1_304, since: Time(2) }),
            link_mtu: None,
            rtt: Some(Duration::from_micros(12_100)),
            jitter: Some(Duration::from_micros(300)),
            tx_loss: Some(0.0),
            rx_loss: Some(0.25),
            same_key: None,
        };
        let drops = LinkDrops::default();
        drops.replayed.add(5);
        drops.interface_down.add(2);
        let status = moment_of(link, &ways(), &drops).show(&identity(), since());
        let golden = r#"{
  "version": 1,
  "name": "hq",
  "interface": "tl0",
  "state": "up",
  "since": "2026-01-02T03:04:05Z",
  "damped": "2026-01-02T03:04:09Z",
  "detection_ms": 3000.0,
  "problem": {
    "code": "peer-silent",
    "text": "no answer",
    "since": "2026-01-02T03:04:00Z"
  },
  "local": {
    "public_key": "KEY1"
  },
  "peer": {
    "public_key": "KEY2",
    "public_keys": [
      "KEY2"
    ],
    "endpoint": "203.0.113.7:7311",
    "damped": "2026-01-02T03:04:04Z"
  },
  "rotation": "none",
  "session": {
    "noise": "Noise_KKpsk2_25519_ChaChaPoly_SHA256",
    "cipher": "aes-256-gcm",
    "post_quantum": true,
    "epoch": 3,
    "age_s": 41.2,
    "preshared_key": null
  },
  "carrier": {
    "follows": "peer",
    "on": false,
    "losses": 5,
    "wait_s": 2.0,
    "left_s": 0.5
  },
  "path": {
    "mtu": 1440,
    "rtt_ms": 12.1,
    "jitter_ms": 0.3,
    "tx": {
      "packets": 1,
      "bytes": 84,
      "loss_ratio": 0.0,
      "dropped_ratio": 0.125,
      "mtu": 1440,
      "mtu_since": "2026-01-02T03:04:06Z"
    },
    "rx": {
      "packets": 2,
      "bytes": 168,
      "loss_ratio": 0.25,
      "dropped_ratio": 0.0,
      "mtu": 1272,
      "mtu_since": "2026-01-02T03:04:07Z"
    }
  },
  "paths": [
    {
      "name": "fibre",
      "interface": "wan0",
      "local": "192.0.2.9",
      "endpoint": "203.0.113.7:7311",
      "priority": 10,
      "state": "up",
      "since": "2026-01-02T03:04:08Z",
      "used": true,
      "rtt_ms": 12.345,
      "loss_ratio": 0.125
    },
    {
      "name": "lte",
      "interface": null,
      "local": null,
      "endpoint": null,
      "priority": 100,
      "state": "down",
      "since": null,
      "used": false,
      "rtt_ms": null,
      "loss_ratio": null
    }
  ],
  "drops": {
    "replayed": 5,
    "unauthentic": 0,
    "malformed": 0,
    "no_session": 0,
    "too_big": 0,
    "congested": 0,
    "source": 0,
    "returned": 0,
    "looped": 0,
    "socket_send": 4,
    "interface_queue": 63,
    "interface_no_carrier": 7,
    "interface_down": 2,
    "interface_invalid": 0,
    "interface_write": 0,
    "interface_receive": 9
  },
  "offloads": {
    "vnet_hdr": true,
    "tso": true,
    "uso": true,
    "udp_segment": true,
    "udp_gro": true
  },
  "sandbox": {
    "capabilities": [
      "net_admin"
    ],
    "no_new_privs": true,
    "seccomp": true,
    "landlock": 7,
    "user": null
  }
}
"#;
        let golden = &golden.replace("KEY1", &key(1).to_string()).replace("KEY2", &key(2).to_string());
        assert_eq!(&status.to_json(), golden);
        assert_eq!(serde_json::from_str::<Status>(golden).unwrap(), status);
    }

    #[test]
    fn a_rotation_shows_the_keys_in_use_and_what_it_waits_for() {
        let drops = LinkDrops::default();
        let show = |link, identity: &Identity| {
            let status = moment(link, &drops).show(identity, Since::default());
            (status.rotation, status.local.public_key, status.peer.public_key, status.session.unwrap().preshared_key)
        };
        let keys = KeysInUse { own: key(1), peer: key(3), preshared: Some(2) };
        let link = link::Status { session: Some(session(keys)), ..link::Status::FRESH };
        let [own, peer] = [1, 3].map(|n| key(n).to_string());
        let two = Identity { peers: vec![key(2), key(3)], ..identity() };
        assert_eq!(show(link, &two), (Rotation::Listed, own.clone(), peer.clone(), Some(2)));
        let two = Identity { preshared: 2, ..identity() };
        assert_eq!(show(link, &two), (Rotation::Listed, own.clone(), peer.clone(), Some(2)));
        let changed = Identity { own: key(4), ..identity() };
        let link = link::Status { waits_for_keys: true, ..link };
        assert_eq!(show(link, &changed), (Rotation::Waiting, own, peer, Some(2)));
    }

    #[test]
    fn what_is_not_known_is_null() {
        let drops = LinkDrops::default();
        let status =
            Moment { ceiling: None, ..moment(link::Status::FRESH, &drops) }.show(&identity(), Since::default());
        let json: serde_json::Value = serde_json::from_str(&status.to_json()).unwrap();
        for field in ["/since", "/peer/endpoint", "/session", "/path/mtu", "/path/rtt_ms", "/path/tx/loss_ratio"] {
            assert_eq!(json.pointer(field), Some(&serde_json::Value::Null), "{field}");
        }
        assert_eq!(json["state"], "down");
        assert_eq!(json["paths"], serde_json::json!([]));
    }

    #[test]
    fn a_document_with_more_fields_is_read_too() {
        let drops = LinkDrops::default();
        let status = moment(link::Status::FRESH, &drops).show(&identity(), Since::default());
        let later = status.to_json().replacen('{', r#"{ "history": [1, 2], "#, 1);
        assert_eq!(serde_json::from_str::<Status>(&later).unwrap(), status);
        let earlier = status.to_json().replace("\"paths\": [],", "");
        assert_eq!(serde_json::from_str::<Status>(&earlier).unwrap(), status);
    }

    #[test]
    fn a_moment_keeps_its_words_until_the_clock_is_set() {
        let epoch = SystemTime::UNIX_EPOCH;
        let (mut clock, moment) = (WallClock::default(), Time(5_000_000_000));
        // A second begins at the moment: the two clocks need not agree on which.
        let words = clock.show(moment, Time(6_000_000_000), epoch + Duration::from_millis(100_999)).unwrap();
        assert_eq!(words, "1970-01-01T00:01:39Z");
        let drifted = clock.show(moment, Time(7_000_000_000), epoch + Duration::from_millis(102_001)).unwrap();
        assert_eq!(drifted, words);
        let set = clock.show(moment, Time(8_000_000_000), epoch + Duration::from_secs(1_767_323_048)).unwrap();
        assert_eq!(set, "2026-01-02T03:04:05Z");
        let other = clock.show(Time(8_000_000_000), Time(8_000_000_000), epoch).unwrap();
        assert_eq!(other, "1970-01-01T00:00:00Z");
        // What is to come is over by the time that is shown.
        let (to_come, wall) = (Time(9_400_000_000), epoch + Duration::from_millis(5_700));
        assert_eq!(clock.show(to_come, Time(8_000_000_000), wall).unwrap(), "1970-01-01T00:00:08Z");
        let later = epoch + Duration::from_millis(6_700);
        assert_eq!(clock.show(to_come, Time(9_000_000_000), later).unwrap(), "1970-01-01T00:00:08Z");
    }
}

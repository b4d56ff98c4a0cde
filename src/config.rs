//! From the text of one TOML file to a [`Config`] in which everything has been checked.
//!
//! One file is one link. [`Config::load`] is all that `check` does and the first thing that `up` does: it reads the
//! file and the key files it names, and needs no root, no network and no name server. Acting on a config is the
//! business of [`crate::control`].

mod check;
mod choices;
mod parse;
mod report;
mod schema;
mod wireguard;
mod wrong;

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::keys::{PresharedKey, PublicKey, SecretKey};
use crate::packet::marks::Dscp;
use crate::text::{self, NotText};
pub use report::Problem;
use report::{Report, Source};

/// The mark on the link's own datagrams where they need one and config names none.
pub const DEFAULT_MARK: u32 = 0x7311;

/// The most `[[path]]`s.
pub const MAX_PATHS: usize = 4;

/// Largest config file that is read, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// One link, checked: every value is in range and the values agree with each other.
#[derive(Debug)]
pub struct Config {
    /// The file's stem: `hq` for `/etc/tieline/hq.toml`.
    pub name: String,
    /// The file, as it was named.
    pub path: PathBuf,
    /// `[link]`: the interface.
    pub link: LinkConfig,
    /// `[local]`: this end.
    pub local: LocalConfig,
    /// `[peer]`: the other end.
    pub peer: PeerConfig,
    /// `[[path]]`: the ways to the peer, in the order of the file, at most [`MAX_PATHS`]. None: the one of `local` and `peer`.
    pub paths: Vec<PathConfig>,
    /// `[crypto]`
    pub crypto: CryptoConfig,
    /// `liveness.interval`: how often a Report is sent, 50 ms to 60 s. The link is down after three missed.
    pub liveness_interval: Duration,
    /// `[hooks]`: what is run when the line comes and goes.
    pub hooks: HooksConfig,
}

/// The interface and what is sent into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Name of the interface.
    pub interface: String,
    /// Its addresses with their prefix lengths; host bits are kept, no two networks overlap.
    pub addresses: Vec<IpNet>,
    /// Networks sent into the link; no host bits, none is within a network of `addresses`.
    pub routes: Vec<IpNet>,
    /// Its MTU.
    pub mtu: Mtu,
    /// Metric of the routes; the kernel's own choice if `None`.
    pub metric: Option<u32>,
    /// Whether TCP connections through the link are kept from sending segments that do not fit it.
    pub mss_clamp: bool,
    /// What is carried; the same at both ends. With Ethernet there are no `routes`.
    pub layer: Layer,
    /// The bridge whose port the interface becomes; only with Ethernet, and without `addresses`.
    pub bridge: Option<String>,
    /// Whether the routes are there only while the link is up.
    pub routes_follow: bool,
    /// When the interface has a carrier.
    pub carrier: Carrier,
    /// Whether each datagram goes on the two best paths.
    pub duplicate: bool,
    /// What becomes of traffic for the link while it cannot carry.
    pub fallback: Fallback,
    /// Whether UDP datagrams from the peer to one of `addresses` are handed to the kernel in GSO runs. Packet readers and filters on
    /// this machine then see long ones; what it forwards, multicast and broadcast stay as they were sent.
    pub coalesce_udp: bool,
    /// Whether packets from the peer are dropped whose source is neither link-local nor in `routes` or a network of
    /// `addresses`; only with IP.
    pub source_filter: bool,
}

/// What becomes of packets for networks behind the link while the link is down, or its process is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// They are refused as unreachable, unless the machine has another route to exactly that network, with a better metric.
    #[default]
    Block,
    /// They go wherever the machine's other routes lead, in plain text.
    Clear,
}

/// When the interface has a carrier: what it is to an Ethernet card that a cable is plugged in, and to routing that a line is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// While both ends hear each other.
    Peer,
    /// Always.
    Always,
}

/// What the link carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layer {
    /// IP packets.
    #[default]
    Ip,
    /// Ethernet frames.
    Ethernet,
}

/// Programs with their arguments, each run without a shell; none where a list is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HooksConfig {
    /// When the line is there: the program's absolute path comes first.
    pub up: Vec<String>,
    /// When it is gone, likewise.
    pub down: Vec<String>,
}

/// The interface's MTU: the largest inner packet, in bytes, without an Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtu {
    /// The largest packet that passes in one datagram in both directions, or what the other end has set.
    Auto,
    /// That of [`LinkConfig::bridge`], where there is one and the file names no `mtu`.
    Bridge,
    /// 1280 to 9000.
    Fixed(u16),
}

/// This end.
#[derive(Debug)]
pub struct LocalConfig {
    /// Who this end is.
    pub private_key: SecretKey,
    /// Where that was read.
    pub private_key_file: PathBuf,
    /// Address the UDP socket is bound to. `None`: any address, any port.
    pub listen: Option<SocketAddr>,
    /// The interface that the link's own datagrams leave and come by. `None`: any.
    pub bind: Option<String>,
    /// The mark on the link's own datagrams, not 0. `None`: none, or [`DEFAULT_MARK`] where a default route goes into the link.
    pub fwmark: Option<u32>,
    /// DSCP of the datagrams that carry the link.
    pub dscp: Dscp,
    /// The user the link runs as once it is set up; it is not looked for yet. `None`: who started it.
    pub user: Option<String>,
}

/// The other end.
#[derive(Debug)]
pub struct PeerConfig {
    /// Who the other end is; never this end's own key. One, or an old and a new one while it changes its key.
    pub public_keys: Vec<PublicKey>,
    /// Where to call it. `None`: it calls.
    pub endpoint: Option<Endpoint>,
    /// Mixed into every handshake. None, one, or two while both ends change it: this end answers under the first.
    pub preshared_keys: Vec<PresharedKey>,
    /// Where each was read.
    pub preshared_key_files: Vec<PathBuf>,
}

/// Host and UDP port. The host is a name still to be looked up, or an address (IPv6 without brackets, and perhaps
/// with a `%zone`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// Port, not 0.
    pub port: u16,
}

impl Endpoint {
    /// The host, if it is an address that needs no lookup. (One with a zone does: the interface has a number.)
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Endpoint {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        parse::endpoint(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// One way to the peer: an uplink of this end's, an address of the peer's, or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathConfig {
    /// What status and log call it; no two have the same.
    pub name: String,
    /// The interface it leaves by. `None`: what the routing table says.
    pub interface: Option<String>,
    /// The own address it leaves from. `None`: that of `listen`.
    pub local: Option<IpAddr>,
    /// Where it ends; that of `[peer]` unless it has its own. `None`: the peer calls.
    pub endpoint: Option<Endpoint>,
    /// The path with the lowest number that works is used; of those with equal numbers the first in the file.
    pub priority: u32,
}

/// How the link is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CryptoConfig {
    /// AEAD of the data.
    pub cipher: CipherChoice,
    /// Whether keys are hybrid (X25519 and ML-KEM-768). True at either end is enough for both.
    pub post_quantum: bool,
    /// What happens to the inner packets' L4 checksums.
    pub checksum: Checksum,
}

/// Which AEAD to use for data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherChoice {
    /// The faster one on this machine.
    Auto,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// What happens to the inner packets' L4 checksums. Accepted already; acts once the fast path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Left to the far end's kernel where the packet came without one: the AEAD protects it on the way.
    Partial,
    /// Always filled in before sending.
    Full,
}

/// Something allowed but odd. `Display` gives what, where and what to do, on several lines.
#[derive(Debug)]
pub struct Warning(Report);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a file is not a config. `Display` gives what, where (file, line, column, the line itself) and what to do, on
/// several lines, with every secret masked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(Box<Report>);

impl From<Report> for ConfigError {
    fn from(report: Report) -> Self {
        Self(Box::new(report))
    }
}

impl Config {
    /// Reads and checks a file and the key files it names.
    ///
    /// # Errors
    /// The first thing that is wrong: see [`ConfigError`].
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigError> {
        let text = read_text(path).map_err(|problem| Report::of_file(path, problem))?;
        Self::from_text(path, &text)
    }

    /// The mark on the link's own datagrams. Where everything else goes into the link it is what keeps them out.
    #[must_use]
    pub fn mark(&self) -> Option<u32> {
        let default = self.link.routes.iter().any(|route| route.prefix_len() == 0);
        self.local.fwmark.or(default.then_some(DEFAULT_MARK))
    }

    /// What the two say differently beyond their keys, as `[section] key`.
    #[must_use]
    pub fn differences(&self, other: &Config) -> Vec<&'static str> {
        let (link, theirs) = (&self.link, &other.link);
        [
            (link.interface == theirs.interface, "[link] interface"),
            (link.addresses == theirs.addresses, "[link] address"),
            (link.routes == theirs.routes, "[link] routes"),
            (link.mtu == theirs.mtu, "[link] mtu"),
            (link.metric == theirs.metric, "[link] metric"),
            (link.mss_clamp == theirs.mss_clamp, "[link] mss_clamp"),
            (link.layer == theirs.layer, "[link] layer"),
            (link.bridge == theirs.bridge, "[link] bridge"),
            (link.routes_follow == theirs.routes_follow, "[link] routes_follow"),
            (link.carrier == theirs.carrier, "[link] carrier"),
            (link.duplicate == theirs.duplicate, "[link] duplicate"),
            (link.fallback == theirs.fallback, "[link] fallback"),
            (link.coalesce_udp == theirs.coalesce_udp, "[link] coalesce_udp"),
            (link.source_filter == theirs.source_filter, "[link] source_filter"),
            (self.local.listen == other.local.listen, "[local] listen"),
            (self.local.bind == other.local.bind, "[local] bind"),
            (self.local.fwmark == other.local.fwmark, "[local] fwmark"),
            (self.local.dscp == other.local.dscp, "[local] dscp"),
            (self.local.user == other.local.user, "[local] user"),
            (self.peer.endpoint == other.peer.endpoint, "[peer] endpoint"),
            (self.paths_alone() == other.paths_alone(), "[[path]]"),
            (self.crypto.cipher == other.crypto.cipher, "[crypto] cipher"),
            (self.crypto.post_quantum == other.crypto.post_quantum, "[crypto] post_quantum"),
            (self.crypto.checksum == other.crypto.checksum, "[crypto] checksum"),
            (self.hooks.up == other.hooks.up, "[hooks] up"),
            (self.hooks.down == other.hooks.down, "[hooks] down"),
            (self.liveness_interval == other.liveness_interval, "[liveness] interval"),
        ]
        .into_iter()
        .filter_map(|(same, what)| (!same).then_some(what))
        .collect()
    }

    /// The paths without what they have from `[peer]`.
    fn paths_alone(&self) -> Vec<PathConfig> {
        let own =
            |endpoint: Option<Endpoint>| endpoint.filter(|endpoint| Some(endpoint) != self.peer.endpoint.as_ref());
        self.paths.iter().cloned().map(|path| PathConfig { endpoint: own(path.endpoint.clone()), ..path }).collect()
    }

    /// Checks `text` as if it were the content of `path`, beside which the key files are.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_text(path: &Path, text: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        let source = Source { path, text };
        let file = toml::from_str(text).map_err(|error| wrong::report(&source, &error))?;
        let (config, warnings) = check::check(&source, file)?;
        Ok((config, warnings.into_iter().map(Warning).collect()))
    }
}

/// Reads a regular file of a sensible size; anything else could keep us waiting.
fn read_text(path: &Path) -> Result<String, Problem> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Problem::new("there is no such config file", "check the path, or make one with `tieline init`")
        }
        _ => Problem::new(
            format!("cannot read the file: {}", crate::os_error::in_words(&error)),
            "check who may read the file and its folders",
        ),
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Problem::new("this is not a regular file", "name a TOML file, such as `tieline init` writes"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(Problem::new(
            "the file is too large for a config",
            "name a TOML file, such as `tieline init` writes",
        ));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    text::utf8(&bytes).map(str::to_owned).map_err(|wrong| match wrong {
        NotText::Utf16(name) => Problem::new(
            "the file is UTF-16 text, and a config is UTF-8",
            format!("save it as UTF-8 in your editor, or with `iconv -f {name} -t UTF-8 OLD > NEW`"),
        ),
        NotText::Unknown => Problem::new("the file is not text (UTF-8)", "name a TOML file"),
    })
}

#[cfg(test)]
mod tests;

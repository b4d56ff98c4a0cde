//! The control side: everything of a running link that waits, on one thread.
//!
//! ```text
//!   config ──▶ run ──▶ driver ◀──▶ protocol::Link      decides
//!                        │  ▲
//!            updates,    │  │  mailbox
//!            datagrams   ▼  │
//!                      dataplane                       carries
//! ```
//!
//! [`run`] is a whole link: it makes the interface, opens the socket, starts the packet loops and drives the engine until
//! it is told to stop; then it says goodbye and nothing is left. The driver carries out what the engine says, in
//! its order, and never blocks. Around it: `reconciler` keeps addresses, routes and rules in the kernel,
//! `resolver` finds the peer's addresses, `mtu` knows which MTU the interface should have, [`status`] answers who
//! asks, `line` says whether the line counts as there, which routes and `hooks` go by, `reload` reads changed keys,
//! `losses` counts what this end drops itself, `story` finds the words for the log, `unreachable` asks why nobody answers, `problem` knows what is wrong with the
//! link.
//!
//! To embed a link in another program, give [`run_until`] a config and the moment to stop:
//!
//! ```no_run
//! # async fn embed() -> Result<(), Box<dyn std::error::Error>> {
//! use tieline::{config::Config, control};
//!
//! let (config, _warnings) = Config::load("/etc/tieline/hq.toml".as_ref())?;
//! let an_hour = tokio::time::sleep(std::time::Duration::from_secs(3600));
//! control::run_until(config, control::Options::default(), an_hour).await?;
//! # Ok(())
//! # }
//! ```

mod confine;
mod damping;
mod driver;
mod drops;
mod entropy;
mod hooks;
mod interface;
mod line;
mod losses;
mod mtu;
mod names;
mod ports;
mod problem;
mod reconciler;
mod reload;
mod resolver;
pub mod status;
mod story;
mod unreachable;

pub use confine::Sandbox;
pub use entropy::OsEntropy;
pub use hooks::serve as serve_hooks;
pub use names::serve as serve_names;

use crate::config::{Checksum, CipherChoice, Config, CryptoConfig, Endpoint, Layer, Mtu, PathConfig};
use crate::dataplane::{Dataplane, Loop, Treatment};
use crate::keys::secret::leaving_no_trace;
use crate::os_error::in_words;
use crate::packet::OwnAddresses;
use crate::packet::returns::Returns;
use crate::packet::source_filter::SourceFilter;
use crate::protocol::crypto::{CryptoFailure, Entropy};
use crate::protocol::link::{RekeyTimes, SetupError, WayParams};
use crate::protocol::{Keys, Link, Params, Time};
use crate::sys::clock::boottime_ns;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::offloads::{Offloads, TunOffloads};
use crate::sys::timer::Timer;
use crate::sys::tun::TunError;
use crate::sys::udp::BindError;
use confine::{Closed, Confinement};
use driver::{Driver, DriverState, Inlets};
use hooks::Hooks;
use interface::Interface;
use ipnet::IpNet;
use line::Line;
use mtu::{Limits, MtuKeeper, Way};
use ports::Ports;
use problem::Problems;
use reconciler::{Reconciler, Wanted};
use reload::Reload;
use resolver::{Ask, Resolver, listed};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

/// How long removing what a link has set may take.
const RELEASE: Duration = Duration::from_secs(2);

/// What can be chosen about a run that is not in the config.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// When sessions are rekeyed: other values than the protocol's are for tests.
    pub rekey: Option<RekeyTimes>,
    /// What is asked of the kernel at both edges; what it does not have is done without. Less than all is for tests.
    pub offloads: Offloads,
    /// Whether the process gives up, once all is set up, what it needs no longer. `None`, which is the default, leaves it and
    /// its user alone.
    pub sandbox: Option<Sandbox>,
}

impl Default for Options {
    fn default() -> Options {
        Options { rekey: None, offloads: Offloads::ALL, sandbox: None }
    }
}

/// Why a link did not come to run, or ended. Each says what to do where there is something to do.
#[derive(Debug, Error)]
pub enum RunError {
    /// The keys cannot make a link.
    #[error("the keys cannot make a link: {0}")]
    Keys(#[from] SetupError),
    /// The UDP socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A path's.
    #[error("path {path}: {}", ports::in_words(source))]
    Path {
        /// Its name.
        path: String,
        /// What the system said.
        source: BindError,
    },
    /// The interface.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Its addresses or routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// What should be a bridge is none.
    #[error(
        "there is no bridge {bridge} to join: {why}; make it first (ip link add {bridge} type bridge), or name another at \
         [link] bridge"
    )]
    NoBridge {
        /// Its name.
        bridge: String,
        /// What there is instead.
        why: String,
    },
    /// A link of that name runs already.
    #[error(
        "a link on interface {interface} is running already (it answers at {}): stop that one, or set another name at \
         [link] interface",
        socket.display()
    )]
    AlreadyRunning {
        /// The interface.
        interface: String,
        /// Its status socket.
        socket: PathBuf,
    },
    /// The status socket cannot be opened.
    #[error("cannot open the status socket {}: {}; TIELINE_RUN_DIR sets another folder", path.display(), in_words(source))]
    StatusSocket {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The user that config names is none.
    #[error("this machine has no user `{user}`: make it (useradd --system {user}), or set another at [local] user")]
    NoSuchUser {
        /// Its name.
        user: String,
    },
    /// The process may not become that user.
    #[error(
        "cannot become user `{user}`: {}; this needs root, or to be started as that user with CAP_NET_ADMIN",
        in_words(source)
    )]
    User {
        /// Its name.
        user: String,
        /// What the system said.
        source: io::Error,
    },
    /// A packet loop ended.
    #[error(
        "the {which} loop on {interface} ended: {}; if nobody deleted the interface, this is a fault in tieline",
        in_words(source)
    )]
    LoopDied {
        /// Which of them.
        which: Loop,
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The system refuses something it never should.
    #[error("{what}: {}", in_words(source))]
    System {
        /// What was being done.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl RunError {
    fn system(what: &'static str) -> impl Fn(io::Error) -> RunError {
        move |source| RunError::System { what, source }
    }
}

/// Runs a link until SIGINT or SIGTERM, on the calling thread and two of its own; when it returns nothing of it is left. On SIGHUP
/// it reads its config again and takes what is new of the keys.
///
/// # Errors
/// As [`RunError`] says; nothing of the link is left then either.
pub fn run(config: Config, options: Options) -> Result<(), RunError> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::system("cannot start the runtime"))?;
    let result = runtime.block_on(async {
        let what = "cannot watch for signals";
        let (stop, hangups) = (stop_signal().map_err(RunError::system(what))?, signal(SignalKind::hangup()));
        drive(config, options, Some(hangups.map_err(RunError::system(what))?), stop).await
    });
    // A name server that does not answer may hold a lookup's thread for a minute more.
    runtime.shutdown_background();
    result
}

/// Ends on SIGINT and SIGTERM.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => info!("SIGINT: closing the link"),
            _ = terminate.recv() => info!("SIGTERM: closing the link"),
        }
    })
}

/// Runs a link until `stop` completes, on the current tokio runtime and two threads of its own; when it returns nothing
/// of it is left. Dropping the future ends it too, without a goodbye to the peer.
///
/// # Errors
/// As [`RunError`] says; nothing of the link is left then either.
///
/// # Panics
/// Outside a tokio runtime with I/O and time enabled.
pub async fn run_until(config: Config, options: Options, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    drive(config, options, None, stop).await
}

/// Removes what a link on `interface` that was killed, or crashed, has left in the kernel's routing tables and rules. Gives a line for
/// each thing that was removed.
///
/// # Errors
/// [`RunError::AlreadyRunning`] while the link runs; else what the kernel says.
pub fn release(interface: &str) -> Result<Vec<String>, RunError> {
    let socket = status::socket_path(&status::run_dir(), interface);
    if status::is_live(&socket) {
        return Err(RunError::AlreadyRunning { interface: interface.to_owned(), socket });
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::system("cannot start the runtime"))?;
    runtime.block_on(async {
        let netlink = Netlink::open().map_err(RunError::system("cannot open a netlink socket"))?;
        Ok(reconciler::release(&netlink, interface).await?)
    })
}

async fn drive(
    config: Config,
    options: Options,
    hangups: Option<Signal>,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let name = &config.link.interface;
    let socket_path = status::socket_path(&status::run_dir(), name);
    if status::is_live(&socket_path) {
        return Err(RunError::AlreadyRunning { interface: name.clone(), socket: socket_path });
    }
    let netlink = Netlink::open().map_err(RunError::system("cannot open a netlink socket"))?;
    let netlink = netlink.seen_by(config.mark(), None);
    let mut reconciler = Some(Reconciler::begin(netlink.clone(), &config).await?);
    let result = drive_with(netlink, config, options, hangups, stop, socket_path, &mut reconciler).await;
    // It is still here if the link could not start.
    if let Some(reconciler) = reconciler {
        reconciler.abandon().await;
    }
    result
}

/// Ends the reconciler's task. What it keeps goes if the operator stopped the link, and stays if the link failed: then a service
/// manager starts it again, and until then nothing may leave by another route.
async fn end_reconciler(task: JoinHandle<Reconciler>, stopped: bool) {
    match timeout(RELEASE, task).await {
        Ok(Ok(reconciler)) if stopped => {
            if timeout(RELEASE, reconciler.release()).await.is_err() {
                warn!("the kernel does not answer: run `tieline release` to remove what is left of the link");
            }
        }
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => warn!("run `tieline release` to remove what is left of the link in the kernel's tables"),
    }
}

async fn drive_with(
    netlink: Netlink,
    config: Config,
    options: Options,
    hangups: Option<Signal>,
    stop: impl Future<Output = ()>,
    socket_path: PathBuf,
    slot: &mut Option<Reconciler>,
) -> Result<(), RunError> {
    let name = &config.link.interface;
    let mut confinement = Confinement::prepare(options.sandbox, &config.local)?;
    let lookup = confinement.lookup(endpoints(&config).into_iter().flatten())?;
    let (news, told) = watch::channel(None);
    let hooks = Hooks::start(&config, options.sandbox, told)
        .map_err(RunError::system("cannot start the helper that runs the hooks"))?;
    let links = slot.as_ref().map(|reconciler| reconciler.seen().links).unwrap_or_default();
    let (ports, sockets) = Ports::open(&config, options.offloads.udp, &links)?;
    let asks = |(n, endpoint)| Ask { endpoint, families: ports.families(n, &sockets) };
    let asks: Vec<Ask<'_>> = endpoints(&config).into_iter().enumerate().map(asks).collect();
    let problems = Problems::default();
    let resolver = Resolver::start(&asks, lookup, &problems);
    let locals: Result<Vec<SocketAddr>, _> = sockets.iter().map(|(_, socket)| socket.local_addr()).collect();
    let locals = locals.map_err(RunError::system("cannot read a socket's address"))?;
    let interface = interface::create(&netlink, &config, options.offloads.tun).await?;
    let Interface { index, mtu, device, sets_carrier } = interface;
    let wanted = Wanted { mtu: Some(mtu), ..first_wanted(&config, &locals) };
    if let Some(reconciler) = slot {
        reconciler.attach(index, wanted.clone()).await?;
    }
    let now = clock()?;
    let params = params(&config, options, device.offloads(), &ports);
    let (link, sender, receiver) = leaving_no_trace(|| Link::new(params, keys(&config), Box::new(OsEntropy), now))?;
    let listener = status::Listener::open(&socket_path, confinement.user())
        .map_err(|source| RunError::StatusSocket { path: socket_path.clone(), source })?;
    confinement.close_process(&socket_path, &config)?;
    let (dataplane, mailbox) = Dataplane::start_with(
        device,
        sockets,
        treatment(&config)?,
        sender,
        receiver,
        link.levels(),
        confinement.close_loops(),
    )
    .map_err(RunError::system("cannot start the packet loops"))?;
    info!("{} on interface {name}, UDP {}", config.name, listed(&locals));

    let (way, followed) = watch::channel(Way::default());
    let (tell, limits) = watch::channel(Limits { mtu: Some(mtu), ..Limits::default() });
    let (wanted, wants) = watch::channel(wanted);
    let reconciler = slot.take();
    let (count, counted) = watch::channel(None);
    let (show, seen) = watch::channel(reconciler.as_ref().map(Reconciler::seen).unwrap_or_default());
    // They end when the driver does, as nobody tells them any more where the peer is and how the line is.
    tokio::spawn(MtuKeeper::new(netlink.clone(), mtu, &config).follow(followed, seen.clone(), tell));
    tokio::spawn(losses::follow(netlink.clone(), index, count));
    let (asked_to, asked) = mpsc::channel(16);
    let inlets = Inlets {
        timer: Timer::new().map_err(RunError::system("cannot make a timer"))?,
        mailbox,
        resolver,
        listener,
        hangups,
        asked,
        counted,
    };
    let Closed { state: sandbox, reads } = confinement.close()?;
    let identity = status::Identity {
        name: config.name.clone(),
        interface: name.clone(),
        layer: interface::layer(&config.link),
        own: config.local.private_key.public().map_err(|_| SetupError::from(CryptoFailure))?,
        peers: config.peer.public_keys.clone(),
        preshared: config.peer.preshared_keys.len(),
        paths: config.paths.clone(),
        sandbox,
    };
    let state = DriverState::new(&identity, &locals, problems);
    let moves_routes = config.link.routes_follow && !config.link.routes.is_empty();
    let reload = Reload::new(config, reads);
    let line = Line::new(sets_carrier, moves_routes, news);
    let reconciler = reconciler.map(|reconciler| tokio::spawn(reconciler.run(wants, show)));
    let asked = asked_to;
    let driver = Driver { link, line, dataplane, ports, identity, reload, way, limits, wanted, seen, asked, state };
    let result = driver.run(inlets, stop).await;
    if let Some(task) = reconciler {
        end_reconciler(task, result.is_ok()).await;
    }
    if let Some(hooks) = hooks {
        hooks.finish().await;
    }
    if result.is_ok() {
        info!("closed");
    }
    result
}

/// What the kernel needs to know before the first datagram leaves.
fn first_wanted(config: &Config, locals: &[SocketAddr]) -> Wanted {
    let known = endpoints(config).into_iter().flatten().filter_map(Endpoint::address);
    Wanted {
        on: false,
        mtu: None,
        peers: known.map(|ip| ip.to_canonical()).collect(),
        ports: locals.iter().map(SocketAddr::port).collect(),
    }
}

/// Where each path ends, or the link where it has none; `None` for one by which the peer calls.
fn endpoints(config: &Config) -> Vec<Option<&Endpoint>> {
    match config.paths.as_slice() {
        [] => vec![config.peer.endpoint.as_ref()],
        paths => paths.iter().map(|path| path.endpoint.as_ref()).collect(),
    }
}

/// The paths, as the engine takes them.
fn ways(config: &Config, ports: &Ports) -> Vec<WayParams> {
    let way = |(n, path): (usize, &PathConfig)| WayParams { socket: ports.socket_of(n), priority: path.priority };
    config.paths.iter().enumerate().map(way).collect()
}

/// The time of the protocol.
fn clock() -> Result<Time, RunError> {
    boottime_ns().map(Time).map_err(RunError::system("cannot read the clock"))
}

/// The keys of the config, as the engine takes them.
fn keys(config: &Config) -> Keys<'_> {
    let (own, peer) = (&config.local.private_key, &config.peer);
    Keys { own, peers: &peer.public_keys, preshared: &peer.preshared_keys }
}

/// What the config means to the packet loops.
fn treatment(config: &Config) -> Result<Treatment, RunError> {
    let most = match config.link.mtu {
        Mtu::Fixed(mtu) => mtu,
        // What fits is what the interface has.
        Mtu::Auto | Mtu::Bridge => u16::MAX,
    };
    let link = &config.link;
    let prefixes = |networks: &[IpNet]| networks.iter().map(|net| (net.addr(), net.prefix_len())).collect::<Vec<_>>();
    let addresses = prefixes(&link.addresses);
    let is_ip = link.layer == Layer::Ip;
    Ok(Treatment {
        dscp: config.local.dscp,
        clamp: link.mss_clamp.then_some(most),
        coalesce_udp: link.coalesce_udp,
        sources: (is_ip && link.source_filter).then(|| SourceFilter::new(&addresses, &prefixes(&link.routes))),
        // On an Ethernet a bridge sees to it.
        returns: if is_ip { Some(Arc::new(Returns::new(random()?))) } else { None },
        own: OwnAddresses::new(addresses),
    })
}

/// Numbers that nobody can guess.
fn random() -> Result<[u64; 4], RunError> {
    let mut bytes = [[0; 8]; 4];
    OsEntropy.fill(bytes.as_flattened_mut()).map_err(SetupError::from)?;
    Ok(bytes.map(u64::from_ne_bytes))
}

fn params(config: &Config, options: Options, device: TunOffloads, ports: &Ports) -> Params {
    let (aes, chacha) = ciphers(config.crypto, has_aes());
    Params {
        aes,
        chacha,
        post_quantum: config.crypto.post_quantum,
        cut_frames: true,
        // Without the header the kernel could not be told which packets of either direction are partial.
        partial_checksum: config.crypto.checksum == Checksum::Partial && device.vnet_hdr,
        ethernet: config.link.layer == Layer::Ethernet,
        interval: config.liveness_interval,
        ways: ways(config, ports),
        duplicate: config.link.duplicate,
        rekey: options.rekey.unwrap_or_default(),
    }
}

/// Whether AES-256-GCM and ChaCha20-Poly1305 are offered.
fn ciphers(config: CryptoConfig, has_aes: bool) -> (bool, bool) {
    match config.cipher {
        CipherChoice::Auto => (has_aes, true),
        CipherChoice::ChaCha20Poly1305 => (false, true),
        CipherChoice::Aes256Gcm => {
            if !has_aes {
                warn!(
                    "this CPU has no AES instructions: aes-256-gcm is slow here; cipher = \"auto\" takes the faster one"
                );
            }
            (true, false)
        }
    }
}

/// Whether the CPU has instructions for AES and for GCM's multiplication.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphers_offered() {
        let config = |cipher| CryptoConfig { cipher, post_quantum: true, checksum: Checksum::Partial };
        assert_eq!(ciphers(config(CipherChoice::Auto), true), (true, true));
        assert_eq!(ciphers(config(CipherChoice::Auto), false), (false, true));
        assert_eq!(ciphers(config(CipherChoice::Aes256Gcm), true), (true, false));
        assert_eq!(ciphers(config(CipherChoice::Aes256Gcm), false), (true, false), "who asks for it gets it");
        assert_eq!(ciphers(config(CipherChoice::ChaCha20Poly1305), true), (false, true));
    }
}

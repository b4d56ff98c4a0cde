//! `tieline demo`: a link on this one machine, seen to work.
//!
//! Two network namespaces with a cable between them, fresh keys, two real `tieline up` processes; then ping and TCP through
//! the link, and a table of what was measured. Nothing of it is left when it ends, however it ends: the namespaces die with
//! their processes, the processes with this one, and the folder with the keys is removed.

mod ping;
mod report;
mod site;
mod transfer;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::{DemoArgs, Failure, print};
use crate::sys::netlink::NetlinkError;
use crate::sys::netns::{NamespaceError, become_root};
use ping::Pinger;
use report::{Figures, Narrator, Progress, Rtt, millis};
use site::{End, Site, Workspace};
use transfer::{Load, Meter, Tally};

/// Bytes sent each way with SHA-256 taken at both ends.
const HASHED_BYTES: u64 = 128 << 20;
/// Echo requests for the round-trip figures, and the pause between two.
const PINGS: u32 = 50;
const PING_PAUSE: Duration = Duration::from_millis(10);
/// An echo not answered by then is lost.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// While waiting for the link: often enough to see the first millisecond it works in.
const KNOCKING_PAUSE: Duration = Duration::from_millis(2);
/// The link is up by then or it has failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// An end listens by then or it has failed.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// A TCP connection through the link is there by then or it has failed.
const TCP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at a running transfer.
const TICK: Duration = Duration::from_millis(50);
/// TCP port of the transfers, inside the link.
const PORT: u16 = 7000;

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// No namespaces for this user.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// No TUN device for this user.
    #[error("opening /dev/net/tun: {0}")]
    Tun(io::Error),
    /// The cable could not be laid.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Keys could not be made or written.
    #[error("making keys: {0}")]
    Key(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Anything else the machine refused.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// One of the two ends misbehaved.
    #[error("the end {name} {why}; the last lines of its log:{log}")]
    End {
        /// Its name.
        name: &'static str,
        /// What it did.
        why: String,
        /// The last lines of its log.
        log: String,
    },
    /// Both run, and nothing comes through.
    #[error(
        "no ping came through the link within {} s; the last lines of the log of hq:{hq_log}\n  and of branch:{branch_log}",
        CONNECT_PATIENCE.as_secs()
    )]
    NoAnswer {
        /// The last lines of one log.
        hq_log: String,
        /// The last lines of the other.
        branch_log: String,
    },
    /// Bytes came out of the link that did not go in, or did not come out.
    #[error("the bytes sent {direction} through the link are not those received: {sent} sent, {received} received")]
    Corrupted {
        /// From where to where.
        direction: String,
        /// Bytes sent.
        sent: u64,
        /// Bytes received.
        received: u64,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    fn io(action: impl Into<String>, source: io::Error) -> Self {
        Self::Io { action: action.into(), source }
    }

    /// What to do about it.
    fn help(&self) -> &'static str {
        match self {
            Self::Namespace(error) => error.help(),
            Self::Tun(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "run the demo as root, or let users open the device as most distributions do (chmod 0666 /dev/net/tun): \
                 making an interface with it still takes rights over the network"
            }
            Self::Tun(_) => "load the kernel's TUN device (modprobe tun), or give this container the device",
            Self::End { .. } | Self::NoAnswer { .. } | Self::Corrupted { .. } => {
                "TIELINE_LOG=debug tieline demo shows more of the ends' logs; please report it if it stays"
            }
            Self::Interrupted => "everything has been removed again",
            Self::Netlink(_) | Self::Key(_) | Self::Io { .. } => {
                "the kernel refused something the demo needs; everything has been removed again"
            }
        }
    }

    fn key(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Key(Box::new(error))
    }
}

/// Runs the demo and writes its table, or JSON, to stdout. Must be called before the process has threads.
pub(super) fn run(args: &DemoArgs) -> ExitCode {
    let done = demo(args).map_err(|error| Failure::failed(&error, error.help())).and_then(|text| print(&text));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn demo(args: &DemoArgs) -> Result<String, DemoError> {
    become_root()?;
    open_tun_once()?;
    let stop = stop_on_signals()?;
    let narrator = Narrator::new(args.json);
    let figures = perform(Duration::from_secs(args.seconds.into()), &stop, &narrator);
    if stop.load(Relaxed) {
        return Err(DemoError::Interrupted);
    }
    Ok(if args.json { figures?.json() } else { figures?.table() })
}

/// Everything between the checks and the figures. When it returns, nothing is left of what it built.
fn perform(time: Duration, stop: &AtomicBool, narrator: &Narrator) -> Result<Figures, DemoError> {
    narrator.say("two network namespaces, a cable between them, fresh keys, two `tieline up`");
    let workspace = Workspace::create()?;
    let sites = site::build()?;
    Site::configure(&sites, &workspace)?;
    let stage = Stage { sites: &sites, stop, narrator };
    let (mut hq, mut branch, connect) = stage.connect(&workspace)?;
    narrator.say(&format!("up after {:.1} ms", millis(connect)));
    let before = [hq.status()?, branch.status()?];

    let measured = stage.measure(time);
    // What went wrong in an end explains more than what it made of a transfer.
    hq.check_alive()?;
    branch.check_alive()?;
    let (rtt, hashed, timed) = measured?;
    let after = [hq.status()?, branch.status()?];
    hq.stop()?;
    branch.stop()?;
    Ok(Figures { connect, rtt, hashed, timed, before, after })
}

/// The clearest moment to find out is before anything has been built.
fn open_tun_once() -> Result<(), DemoError> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop).map_err(DemoError::Tun)
}

/// Turns the signals that end a program into a flag, so that each step can end and be undone. They are caught and not blocked:
/// a blocked signal would stay blocked in the ends, which are to end on one.
fn stop_on_signals() -> Result<Arc<AtomicBool>, DemoError> {
    let failed = |e| DemoError::io("setting up signals", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    drop(guard);
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let wait = move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hangup.recv() => {} }
        });
        flag.store(true, Relaxed);
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    Ok(stop)
}

/// The scene once it is set: two sites, and someone who may call a halt.
struct Stage<'a> {
    sites: &'a [Site; 2],
    stop: &'a AtomicBool,
    narrator: &'a Narrator,
}

impl Stage<'_> {
    /// Starts both ends, the one without an endpoint first. The time is from the later end's start to the first ping answered.
    fn connect(&self, workspace: &Workspace) -> Result<(End, End, Duration), DemoError> {
        let [hq_site, branch_site] = self.sites;
        let mut hq = End::start(hq_site, workspace)?;
        let started = Instant::now();
        while !hq.is_listening() {
            hq.check_alive()?;
            self.check_stop()?;
            if started.elapsed() > START_PATIENCE {
                return Err(hq.failed("did not start to listen"));
            }
            thread::sleep(Duration::from_millis(2));
        }

        let started = Instant::now();
        let mut branch = End::start(branch_site, workspace)?;
        let target = hq_site.inner.into();
        let connected = at(branch_site, "pinging", || {
            let mut pinger = Pinger::new(target)?;
            Ok(pinger.until_answered(KNOCKING_PAUSE, || {
                started.elapsed() < CONNECT_PATIENCE && !self.stop.load(Relaxed) && branch.check_alive().is_ok()
            }))
        })?;
        let took = started.elapsed();
        self.check_stop()?;
        if connected {
            return Ok((hq, branch, took));
        }
        branch.check_alive()?;
        hq.check_alive()?;
        Err(DemoError::NoAnswer { hq_log: hq.log_tail(), branch_log: branch.log_tail() })
    }

    fn check_stop(&self) -> Result<(), DemoError> {
        match self.stop.load(Relaxed) {
            true => Err(DemoError::Interrupted),
            false => Ok(()),
        }
    }

    fn measure(&self, time: Duration) -> Result<(Rtt, [Tally; 2], [Tally; 2]), DemoError> {
        let rtt = self.ping()?;
        let hashed = self.both_ways(Load::Hashed(HASHED_BYTES))?;
        let timed = self.both_ways(Load::Timed(time))?;
        Ok((rtt, hashed, timed))
    }

    fn ping(&self) -> Result<Rtt, DemoError> {
        let [hq, branch] = self.sites;
        let target = hq.inner.into();
        at(branch, "pinging", || {
            let mut pinger = Pinger::new(target)?;
            let mut rtt = Rtt::default();
            while rtt.sent < PINGS && !self.stop.load(Relaxed) {
                rtt.sent += 1;
                rtt.answered.extend(pinger.ping(PING_PATIENCE)?);
                thread::sleep(PING_PAUSE);
            }
            Ok(rtt)
        })
    }

    fn both_ways(&self, load: Load) -> Result<[Tally; 2], DemoError> {
        let [hq, branch] = self.sites;
        let there = self.transfer(hq, branch, load)?;
        let back = self.transfer(branch, hq, load)?;
        Ok([there, back])
    }

    /// One TCP connection through the link, of which both ends must have seen the same bytes. Returns the receiver's figures.
    fn transfer(&self, from: &Site, to: &Site, load: Load) -> Result<Tally, DemoError> {
        let direction = format!("from {} to {}", from.name, to.name);
        let address = SocketAddr::new(to.inner.into(), PORT);
        let listener = at(to, "listening", || TcpListener::bind(address))?;
        let outgoing = at(from, "connecting", || TcpStream::connect_timeout(&address, TCP_PATIENCE))?;
        let failed = |e| DemoError::io(format!("sending {direction} through the link"), e);
        let incoming = accept(&listener).map_err(failed)?;

        let meter = Meter::default();
        let outcome = thread::scope(|scope| {
            let sender = scope.spawn(|| meter.guard(transfer::send(&outgoing, load, &meter)));
            let receiver = scope.spawn(|| meter.guard(transfer::receive(&incoming, load, &meter)));
            let progress = Progress::start(self.narrator, &direction, load);
            while !(sender.is_finished() && receiver.is_finished()) {
                thread::sleep(TICK);
                progress.show(meter.received.load(Relaxed));
                if self.stop.load(Relaxed) {
                    meter.stop.store(true, Relaxed);
                }
            }
            (join(sender), join(receiver))
        });
        let (sent, received) = first_cause(outcome).map_err(failed)?;
        if (sent.bytes, sent.sha256) != (received.bytes, received.sha256) {
            return Err(DemoError::Corrupted { direction, sent: sent.bytes, received: received.bytes });
        }
        self.narrator.say(&report::line(&direction, load, &received));
        Ok(received)
    }
}

fn at<T: Send>(site: &Site, action: &str, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, DemoError> {
    site.network.run(work).and_then(|result| result).map_err(|e| DemoError::io(format!("{action} at {}", site.name), e))
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let started = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) if started.elapsed() > TCP_PATIENCE => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Both tallies, or the error that came first: the side it did not come from only says that it was stopped.
fn first_cause((sent, received): (io::Result<Tally>, io::Result<Tally>)) -> io::Result<(Tally, Tally)> {
    match (sent, received) {
        (Err(e), received) if e.kind() == io::ErrorKind::Interrupted => Err(received.err().unwrap_or(e)),
        (sent, received) => Ok((sent?, received?)),
    }
}

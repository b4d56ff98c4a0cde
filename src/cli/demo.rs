//! `tieline demo`: a link on this one machine, seen to work.
//!
//! Two network namespaces with a cable between them, fresh keys, two real `tieline up` processes; then ping and TCP through
//! the link, and a table of what was measured. Nothing of it is left when it ends, however it ends: the namespaces die with
//! their processes, the processes with this one, and the folder with the keys is removed.

mod bench;
mod flood;
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
use bench::Bench;
use ping::Pinger;
use report::{Figures, Link, Narrator, Progress, Rtt};
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
/// TCP and UDP port of what is measured, inside the link.
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
    #[error("{action}: {}", crate::os_error::in_words(source))]
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
    let time = Duration::from_secs(args.seconds.into());
    let text = if args.bench {
        let done = perform(&stop, &narrator, |stage, ends| Bench::measure(stage, ends, time));
        done.map(|(link, bench)| if args.json { bench.json(&link) } else { bench.table(&link) })
    } else {
        let done = perform(&stop, &narrator, |stage, _| stage.measure(time));
        done.map(|(link, figures)| if args.json { figures.json(&link) } else { figures.table(&link) })
    };
    // Whatever else went wrong then, it was the interruption that did it.
    if stop.load(Relaxed) { Err(DemoError::Interrupted) } else { text }
}

/// Everything between the checks and the figures. When it returns, nothing is left of what it built.
fn perform<T>(
    stop: &AtomicBool,
    narrator: &Narrator,
    measure: impl FnOnce(&Stage<'_>, [&End; 2]) -> Result<T, DemoError>,
) -> Result<(Link, T), DemoError> {
    narrator.say("two network namespaces, a cable between them, fresh keys, two `tieline up`");
    let workspace = Workspace::create()?;
    let sites = site::build()?;
    Site::configure(&sites, &workspace)?;
    let stage = Stage { sites: &sites, stop, narrator };
    let (mut hq, mut branch, connect) = stage.connect(&workspace)?;
    narrator.say(&format!("up after {:.1} ms", report::millis(connect)));
    let before = [hq.status()?, branch.status()?];

    let measured = measure(&stage, [&hq, &branch]);
    // What went wrong in an end explains more than what it made of a transfer.
    hq.check_alive()?;
    branch.check_alive()?;
    let measured = measured?;
    let after = [hq.status()?, branch.status()?];
    hq.stop()?;
    branch.stop()?;
    Ok((Link { connect, before, after }, measured))
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

    fn measure(&self, time: Duration) -> Result<Figures, DemoError> {
        let rtt = self.ping(PING_PAUSE, |sent, _| sent >= PINGS)?;
        let hashed = self.both_ways(Load::Hashed(HASHED_BYTES), 1)?;
        let timed = self.both_ways(Load::Timed(time), 1)?;
        Ok(Figures { rtt, hashed, timed })
    }

    /// Pings hq from branch until it is `enough`, which is told how many were sent, and in what time.
    fn ping(&self, pause: Duration, enough: impl Fn(u32, Duration) -> bool + Sync) -> Result<Rtt, DemoError> {
        let [hq, branch] = self.sites;
        let target = hq.inner.into();
        at(branch, "pinging", || {
            let mut pinger = Pinger::new(target)?;
            let mut rtt = Rtt::default();
            let started = Instant::now();
            while !enough(rtt.sent, started.elapsed()) && !self.stop.load(Relaxed) {
                rtt.sent += 1;
                rtt.answered.extend(pinger.ping(PING_PATIENCE)?);
                thread::sleep(pause);
            }
            Ok(rtt)
        })
    }

    fn both_ways(&self, load: Load, streams: usize) -> Result<[Tally; 2], DemoError> {
        let [hq, branch] = self.sites;
        let there = self.transfer(hq, branch, load, streams)?;
        let back = self.transfer(branch, hq, load, streams)?;
        Ok([there, back])
    }

    /// So many TCP connections through the link at once, each with the whole load, of which both ends must have seen the same
    /// bytes. Returns the receivers' figures.
    fn transfer(&self, from: &Site, to: &Site, load: Load, streams: usize) -> Result<Tally, DemoError> {
        let direction = match streams {
            1 => format!("from {} to {}", from.name, to.name),
            _ => format!("from {} to {}, {streams} streams", from.name, to.name),
        };
        let failed = |e| DemoError::io(format!("sending {direction} through the link"), e);
        let address = SocketAddr::new(to.inner.into(), PORT);
        let listener = at(to, "listening", || TcpListener::bind(address))?;
        let connect = |_| {
            let outgoing = at(from, "connecting", || TcpStream::connect_timeout(&address, TCP_PATIENCE))?;
            Ok((outgoing, accept(&listener).map_err(failed)?))
        };
        let connections = (0..streams).map(connect).collect::<Result<(Vec<_>, Vec<_>), DemoError>>()?;

        let meter = &Meter::default();
        let outcomes = thread::scope(|scope| {
            let (outgoing, incoming) = &connections;
            let send = |stream| scope.spawn(move || meter.guard(transfer::send(stream, load, meter)));
            let receive = |stream| scope.spawn(move || meter.guard(transfer::receive(stream, load, meter)));
            let running: Vec<_> = outgoing.iter().map(send).chain(incoming.iter().map(receive)).collect();
            let progress = Progress::start(self.narrator, &direction, load);
            while !running.iter().all(|end| end.is_finished()) {
                thread::sleep(TICK);
                progress.show(meter.received.load(Relaxed));
                if self.stop.load(Relaxed) {
                    meter.stop.store(true, Relaxed);
                }
            }
            running.into_iter().map(join).collect()
        });
        let tallies = first_cause(outcomes).map_err(failed)?;
        let (sent, received) = tallies.split_at(streams);
        let bytes = |tallies: &[Tally]| tallies.iter().map(|tally| tally.bytes).sum();
        if sent.iter().zip(received).any(|(s, r)| (s.bytes, s.sha256) != (r.bytes, r.sha256)) {
            return Err(DemoError::Corrupted { direction, sent: bytes(sent), received: bytes(received) });
        }
        let took = received.iter().map(|tally| tally.took).max().unwrap_or_default();
        let total = Tally { bytes: bytes(received), sha256: None, took };
        self.narrator.say(&report::line(&direction, load, &total));
        Ok(total)
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

/// All tallies, or the error behind the others: the ends it did not come from only say that they were stopped.
fn first_cause(mut outcomes: Vec<io::Result<Tally>>) -> io::Result<Vec<Tally>> {
    outcomes.sort_by_key(|outcome| matches!(outcome, Err(e) if e.kind() == io::ErrorKind::Interrupted));
    outcomes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_was_stopped_does_not_hide_why() {
        let tally = |bytes| Tally { bytes, sha256: None, took: Duration::ZERO };
        let error = |kind: io::ErrorKind| Err(kind.into());
        let stopped = || error(io::ErrorKind::Interrupted);
        let kind = |outcomes| first_cause(outcomes).unwrap_err().kind();
        assert_eq!(
            kind(vec![Ok(tally(1)), stopped(), error(io::ErrorKind::TimedOut), stopped()]),
            io::ErrorKind::TimedOut
        );
        assert_eq!(kind(vec![stopped(), Ok(tally(1))]), io::ErrorKind::Interrupted);
        // Who is whose other end must stay known.
        let tallies = [3, 1, 2].map(tally);
        assert_eq!(first_cause(tallies.map(Ok).into()).unwrap(), tallies);
    }
}

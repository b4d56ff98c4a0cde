//! Commands of the config that are run when the line comes and goes: `[hooks] up` and `down`.
//!
//! The link's own process can run nothing (its sandbox sees to that), so a helper does, which is this program started anew before
//! the sandbox closes, or a thread where there is no sandbox:
//!
//! ```text
//!   link ── what to run ▸ {"up":true,"reason":"connected",…} ▸ … ──▶ helper ──▶ the hook
//!        ◀── what it said and how it ended, in lines ────────────────
//! ```
//!
//! The helper is told which commands there are before anything from the network reaches the link. After that all a link that was
//! taken over could have it do is run those, with one of a few words and an address. It keeps the rights `up` was started with, which is
//! what hooks are for, and outlives a link that was killed long enough to run `down`. The link loses nothing but hooks if it ends.

mod runner;

use super::confine::Sandbox;
use crate::config::Config;
use crate::keys::mask_secrets;
use crate::protocol::link::DownCause;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

pub use runner::serve;

/// How long a hook may take; then it is killed, with all it has started.
const LIMIT: Duration = Duration::from_secs(30);
/// When the link ends: one hook that runs, the last one, and some time to spare.
const LAST_WORDS: Duration = Duration::from_secs(65);
/// The longest line the helper may say, in bytes: a line of a hook's, which it has cut, in JSON.
const LONGEST: u64 = 8 << 10;

/// What the helper is to run: the first line it gets.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    name: String,
    interface: String,
    addresses: String,
    routes: String,
    up: Vec<String>,
    down: Vec<String>,
}

/// The line came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct News {
    pub(super) up: bool,
    pub(super) reason: Reason,
    /// Where the peer is, or was sought last.
    pub(super) peer: Option<SocketAddr>,
}

/// Why, in the words of `TIELINE_REASON`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reason {
    /// Both ends hear each other.
    #[default]
    Connected,
    /// Nothing was heard of the peer for three intervals.
    Silence,
    /// The peer said that it closes the link.
    Goodbye,
    /// The peer does not hear this end, or has started anew.
    PeerDown,
    /// The key of the session was taken out of the config.
    KeyRemoved,
    /// The operator took this end's interface down.
    AdminDown,
    /// The operator took the peer's interface down.
    PeerAdminDown,
    /// This end closed the link.
    Closed,
    /// The link's process ended without a word: it was killed, or crashed.
    Died,
}

impl From<DownCause> for Reason {
    fn from(cause: DownCause) -> Reason {
        match cause {
            DownCause::Silence(_) => Reason::Silence,
            DownCause::Goodbye => Reason::Goodbye,
            DownCause::PeerDown => Reason::PeerDown,
            DownCause::KeyRemoved => Reason::KeyRemoved,
            DownCause::AdminDown => Reason::AdminDown,
            DownCause::PeerAdminDown => Reason::PeerAdminDown,
        }
    }
}

/// What the helper tells of a hook.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// A line of its output.
    Said { hook: String, line: String },
    /// It ended as it should.
    Done { hook: String, ms: u64 },
    /// It did not, or there was none.
    Failed { hook: String, why: String },
}

/// The helper, as the link has it.
pub(super) struct Hooks {
    /// Its process, where it is one.
    process: Option<Child>,
    task: JoinHandle<()>,
}

impl Hooks {
    /// Starts the helper if config has hooks, and has it follow `news` until nobody tells any more.
    ///
    /// # Errors
    /// When the process or thread cannot be started.
    pub(super) fn start(
        config: &Config,
        sandbox: Option<Sandbox>,
        news: watch::Receiver<Option<News>>,
    ) -> io::Result<Option<Hooks>> {
        let (up, down) = (config.hooks.up.clone(), config.hooks.down.clone());
        if up.is_empty() && down.is_empty() {
            return Ok(None);
        }
        let list = |networks: &[ipnet::IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let orders = Orders {
            name: config.name.clone(),
            interface: config.link.interface.clone(),
            addresses: list(&config.link.addresses),
            routes: list(&config.link.routes),
            up,
            down,
        };
        let (ours, theirs) = BlockingStream::pair()?;
        ours.set_nonblocking(true)?;
        let process = match sandbox {
            Some(sandbox) => Some(spawn(sandbox.hooks, theirs)?),
            None => {
                let serve = move || runner::serve_stream(&theirs);
                thread::Builder::new().name("tieline-hooks".into()).spawn(serve)?;
                None
            }
        };
        let task = tokio::spawn(converse(UnixStream::from_std(ours)?, orders, news));
        Ok(Some(Hooks { process, task }))
    }

    /// Waits until the helper has run what was told last; whoever tells must be gone.
    pub(super) async fn finish(mut self) {
        if timeout(LAST_WORDS, &mut self.task).await.is_err() {
            self.task.abort();
            return error!("the helper that runs the hooks does not end; it is left behind");
        }
        if let Some(process) = &mut self.process {
            // It has closed its end, which is the last it does.
            let _ = process.wait();
        }
    }
}

/// Starts this program again with `argument` as its only one.
fn spawn(argument: &str, theirs: BlockingStream) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg(argument)
        .stdin(OwnedFd::from(theirs.try_clone()?))
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::inherit())
        .current_dir("/")
        // Ctrl-C is for the link, which then has the last hook run.
        .process_group(0)
        .spawn()
}

/// Tells the helper what is new, and the log what the helper says.
async fn converse(stream: UnixStream, orders: Orders, news: watch::Receiver<Option<News>>) {
    let (hears, says) = stream.into_split();
    let mut listening = pin!(listen(hears));
    tokio::select! {
        () = &mut listening => error!("the helper that runs the hooks has ended: none runs any more until the link is started again"),
        // It has all it will get. It runs what is to be run, and closes its end.
        () = tell(says, orders, news) => listening.await,
    }
}

async fn tell(mut helper: OwnedWriteHalf, orders: Orders, mut news: watch::Receiver<Option<News>>) {
    // Where the helper does not listen any more it has ended, which is noticed on the other side.
    let _ = write_line(&mut helper, &orders).await;
    while news.changed().await.is_ok() {
        let latest = *news.borrow_and_update();
        if let Some(latest) = latest {
            let _ = write_line(&mut helper, &latest).await;
        }
    }
    let _ = helper.shutdown().await;
}

async fn write_line(helper: &mut OwnedWriteHalf, line: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string(line).map_err(io::Error::other)?;
    text.push('\n');
    helper.write_all(text.as_bytes()).await
}

async fn listen(helper: OwnedReadHalf) {
    let mut helper = BufReader::new(helper);
    loop {
        let mut line = String::new();
        match (&mut helper).take(LONGEST).read_line(&mut line).await {
            Ok(1..) => log(&line),
            Ok(0) => return,
            Err(error) => {
                return error!("the helper that runs the hooks makes no sense: {}", crate::os_error::in_words(&error));
            }
        }
    }
}

fn log(line: &str) {
    match serde_json::from_str(line) {
        Ok(Word::Said { hook, line }) => info!("hook {hook}: {}", mask_secrets(&line)),
        Ok(Word::Done { hook, ms }) => info!("hook {hook} done in {ms} ms"),
        Ok(Word::Failed { hook, why }) => warn!("hook {hook} failed: {}", mask_secrets(&why)),
        Err(error) => debug!("the helper that runs the hooks makes no sense: {error}"),
    }
}

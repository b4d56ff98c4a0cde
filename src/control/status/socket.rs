//! The status socket: `<run dir>/<interface>.sock`, one JSON document to whoever connects.

use super::Status;
use crate::os_error::in_words;
use crate::sys::sandbox::User;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::unistd::getpid;
use std::env;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

/// Where sockets are unless `TIELINE_RUN_DIR` says otherwise.
const RUN_DIR: &str = "/run/tieline";
/// A link that does not answer by then is stuck.
const PATIENCE: Duration = Duration::from_secs(2);
/// No document is as long as this.
const MAX_BYTES: u64 = 64 << 10;
/// The pause after a connection that could not be taken: the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The folder with the sockets of this machine's links.
#[must_use]
pub fn run_dir() -> PathBuf {
    env::var_os("TIELINE_RUN_DIR").filter(|dir| !dir.is_empty()).map_or_else(|| RUN_DIR.into(), PathBuf::from)
}

/// The socket of the link on `interface`.
#[must_use]
pub fn socket_path(run_dir: &Path, interface: &str) -> PathBuf {
    run_dir.join(format!("{interface}.sock"))
}

/// The interfaces that have a socket, in order; after kill -9 there is one and no link behind it.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn running(run_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let interface = |name: &str| name.strip_suffix(".sock").filter(|stem| !stem.starts_with('.')).map(str::to_owned);
    let mut interfaces = Vec::new();
    for entry in entries {
        interfaces.extend(entry?.file_name().to_str().and_then(interface));
    }
    interfaces.sort();
    Ok(interfaces)
}

/// Why a link's status is not known.
#[derive(Debug, Error)]
pub enum AskError {
    /// There is no socket, or nobody behind it.
    #[error("no link is running on interface {interface}")]
    NotRunning {
        /// The interface.
        interface: String,
    },
    /// This user may not ask.
    #[error("not allowed to ask about {interface}: {} is for root, or the user that runs the link", path.display())]
    Forbidden {
        /// The interface.
        interface: String,
        /// The socket.
        path: PathBuf,
    },
    /// It does not answer as a link does.
    #[error("the link on {interface} does not answer at {}: {why}", path.display())]
    Silent {
        /// The interface.
        interface: String,
        /// The socket.
        path: PathBuf,
        /// What came of it, in words.
        why: String,
    },
}

/// Asks a running link for its status, waiting 2 s at most: the document as it came, which may have fields of a later
/// version, and what this version reads in it.
///
/// # Errors
/// As [`AskError`] says.
pub fn ask(run_dir: &Path, interface: &str) -> Result<(String, Status), AskError> {
    let path = socket_path(run_dir, interface);
    let silent = |why: String| AskError::Silent { interface: interface.into(), path: path.clone(), why };
    let stream = connect(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::NotRunning { interface: interface.into() },
        ErrorKind::PermissionDenied => AskError::Forbidden { interface: interface.into(), path: path.clone() },
        ErrorKind::WouldBlock => {
            silent("it takes no connections: as many as there is room for wait for an answer".into())
        }
        _ => silent(in_words(&error)),
    })?;
    let process = process_behind(&stream);
    let text = read(stream).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            silent(format!("{process} took the connection and said nothing for {} s", PATIENCE.as_secs()))
        }
        _ => silent(in_words(&error)),
    })?;
    if text.is_empty() {
        return Err(silent(format!("{process} closed the connection without an answer")));
    }
    let status = serde_json::from_str(&text);
    let status = status.map_err(|error| silent(format!("what {process} said is not a link's status ({error})")))?;
    Ok((text, status))
}

/// Who listens: `process 1234`.
fn process_behind(stream: &BlockingStream) -> String {
    match socket::getsockopt(stream, sockopt::PeerCredentials) {
        // 0 is one of another PID namespace.
        Ok(who) if who.pid() > 0 => format!("process {}", who.pid()),
        _ => "its process".to_owned(),
    }
}

fn read(stream: BlockingStream) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Connects without waiting: at a process that is stuck a blocking connect(2) would be too, once its queue is full.
fn connect(path: &Path) -> io::Result<BlockingStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = BlockingStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether a link answers at `path`; a full queue is an answer too.
pub(crate) fn is_live(path: &Path) -> bool {
    match connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// The link's end of its socket. Dropping it removes the socket.
pub(crate) struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Opens the socket at `path`, in place of one that a killed link left behind.
    ///
    /// The caller has seen that no link is live there ([`is_live`]), and has the interface the socket is named after.
    /// Both the socket and tieline's own folder become `owner`'s, who can then take the socket away; a folder that was there and
    /// is not tieline's stays whose it is.
    pub(crate) fn open(path: &Path, owner: Option<&User>) -> io::Result<Listener> {
        if let Some(folder) = path.parent() {
            let ours = folder == Path::new(RUN_DIR) || !folder.exists();
            DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            owner.filter(|_| ours).map_or(Ok(()), |owner| owner.own(folder))?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(ErrorKind::AlreadyExists, "something else than a socket is there"));
            }
            _ => {}
        }
        // Under a name nobody looks for until it is ready; the rename takes the place of the old one in one step.
        let new = path.with_extension(getpid().to_string());
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new)?;
        let ready = owner
            .map_or(Ok(()), |owner| owner.own(&new))
            .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(0o660)))
            .and_then(|()| fs::rename(&new, path));
        if let Err(error) = ready {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        Ok(Listener { listener, path: path.to_owned() })
    }

    /// The next one who asks. Cancel-safe.
    pub(crate) async fn next(&self) -> Client {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Client(stream),
                Err(error) => {
                    debug!("the status socket: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Someone who asks.
pub(crate) struct Client(UnixStream);

impl Client {
    /// Answers and hangs up. It never waits: a fresh connection has room for all of it.
    pub(crate) fn answer(self, text: &str) {
        let sent = self.0.into_std().and_then(|mut stream| stream.write_all(text.as_bytes()));
        if let Err(error) = sent {
            debug!("a status was not taken: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Drops, Path as Line, Peer, State, Traffic};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener as BlockingListener;

    fn status() -> Status {
        let traffic =
            Traffic { packets: 1, bytes: 2, loss_ratio: Some(0.5), dropped_ratio: None, mtu: None, mtu_since: None };
        Status {
            version: 1,
            name: "hq".into(),
            interface: "tl0".into(),
            state: State::Init,
            since: None,
            damped: None,
            detection_ms: None,
            problem: None,
            local: Default::default(),
            peer: Peer { public_key: "tlpub1…".into(), public_keys: Vec::new(), endpoint: None, damped: None },
            rotation: Default::default(),
            session: None,
            path: Line { mtu: None, rtt_ms: None, jitter_ms: None, tx: traffic.clone(), rx: traffic },
            paths: Vec::new(),
            drops: Drops::default(),
            offloads: Default::default(),
            sandbox: None,
            carrier: Default::default(),
        }
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = socket_path(&folder.path().join("run"), "tl0");
        (folder, path)
    }

    #[tokio::test]
    async fn who_asks_is_answered_and_the_socket_goes_with_its_link() {
        let (_folder, path) = folder();
        let listener = Listener::open(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let asked = std::thread::spawn({
            let run_dir = path.parent().unwrap().to_owned();
            move || (running(&run_dir).unwrap(), ask(&run_dir, "tl0").unwrap())
        });
        // The longest a document may become, for the connection to have room.
        let text = format!("{}{}", status().to_json(), " ".repeat(30_000));
        listener.next().await.answer(&text);
        assert_eq!(asked.join().unwrap(), (vec!["tl0".to_owned()], (text, status())));
        drop(listener);
        assert!(fs::read_dir(path.parent().unwrap()).unwrap().next().is_none(), "something was left");
    }

    #[tokio::test]
    async fn a_user_gets_the_socket_and_a_folder_made_for_it_and_no_other() {
        if !nix::unistd::geteuid().is_root() {
            assert!(env::var_os("CI").is_none(), "only root can give files away");
            return eprintln!("skipped: only root can give files away");
        }
        let (folder, path) = folder();
        let uid = |path: &Path| fs::metadata(path).unwrap().uid();
        drop(Listener::open(&path, Some(&User::NOBODY)).unwrap());
        assert_eq!((uid(path.parent().unwrap()), uid(folder.path())), (User::NOBODY.uid(), 0));
        let beside = folder.path().join("tl1.sock");
        let _listener = Listener::open(&beside, Some(&User::NOBODY)).unwrap();
        assert_eq!((uid(&beside), uid(folder.path())), (User::NOBODY.uid(), 0));
    }

    #[tokio::test]
    async fn a_socket_is_live_as_long_as_someone_listens() {
        let (_folder, path) = folder();
        assert!(!is_live(&path));
        let listener = Listener::open(&path, None).unwrap();
        assert!(is_live(&path));
        std::mem::forget(BlockingStream::connect(&path).unwrap());
        drop(listener);
        assert!(!is_live(&path));
    }

    #[tokio::test]
    async fn one_that_never_takes_connections_is_live_and_asking_it_ends() {
        let (_folder, path) = folder();
        fs::create_dir(path.parent().unwrap()).unwrap();
        let _stuck = BlockingListener::bind(&path).unwrap();
        assert!(is_live(&path));
        let asked = ask(path.parent().unwrap(), "tl0").unwrap_err().to_string();
        let says = format!("process {} took the connection and said nothing for 2 s", std::process::id());
        assert!(asked.contains(&says) && !asked.contains("os error"), "{asked}");
        let queue: Vec<_> = std::iter::from_fn(|| connect(&path).ok()).take(10_000).collect();
        assert!(queue.len() < 10_000, "the queue has no end");
        assert!(is_live(&path), "its queue is full, and so it is there");
        let asked = ask(path.parent().unwrap(), "tl0").unwrap_err().to_string();
        assert!(asked.contains("it takes no connections") && !asked.contains("os error"), "{asked}");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let (_folder, path) = folder();
        fs::create_dir(path.parent().unwrap()).unwrap();
        drop(BlockingListener::bind(&path).unwrap());
        assert!(path.exists() && !is_live(&path));
        let asked = ask(path.parent().unwrap(), "tl0").unwrap_err();
        assert!(matches!(asked, AskError::NotRunning { .. }), "{asked}");
        drop(Listener::open(&path, None).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(Listener::open(&path, None).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn without_a_folder_nothing_runs() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("none");
        assert!(running(&none).unwrap().is_empty());
        assert!(matches!(ask(&none, "tl0"), Err(AskError::NotRunning { .. })));
    }

    #[tokio::test]
    async fn what_is_no_status_is_said_to_be_none() {
        let (_folder, path) = folder();
        let listener = Listener::open(&path, None).unwrap();
        let run_dir = path.parent().unwrap().to_owned();
        let asked = std::thread::spawn(move || [ask(&run_dir, "tl0"), ask(&run_dir, "tl0")]);
        listener.next().await.answer("{}");
        listener.next().await.answer("");
        for answer in asked.join().unwrap() {
            assert!(matches!(answer, Err(AskError::Silent { .. })), "{answer:?}");
        }
    }
}

//! Looking names up, in this process or by a helper: the same program, started anew before the sandbox closes.
//!
//! Name services are code and files that nobody can list beforehand: modules of the C library, sockets, caches. The link's own
//! process must not need any of that, so the helper does, as a user without rights, and hands addresses over a socket pair:
//!
//! ```text
//!   link ── "branch.example.net 7311\n" ──▶ helper
//!        ◀── "= 203.0.113.7:7311 [2001:db8::7]:7311\n", or "! why not\n" ──
//! ```
//!
//! The helper ends when its end of the pair is closed, however the link ended.

use crate::config::Endpoint;
use crate::sys::sandbox::{self, Reach, Role, User};
use nix::sys::socket::{Shutdown, shutdown};
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixStream, lookup_host};
use tokio::sync::Mutex;
use tracing::debug;

/// The longest answer taken, in bytes: some hundred addresses, more than are ever tried.
const MAX_ANSWER: u64 = 16 << 10;

/// Who looks names up.
#[derive(Clone)]
pub(super) enum Lookup {
    /// This process, on a thread that waits for it.
    Here,
    /// A helper.
    Helper(Arc<Mutex<Helper>>),
}

impl Lookup {
    pub(super) fn by(helper: Helper) -> Lookup {
        Lookup::Helper(Arc::new(Mutex::new(helper)))
    }

    /// All addresses of `endpoint`, in the order in which the machine would try them.
    pub(super) async fn addresses(&self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        match self {
            // getaddrinfo also turns the zone of a link-local address into its scope.
            Lookup::Here => Ok(lookup_host((endpoint.host.as_str(), endpoint.port)).await?.collect()),
            Lookup::Helper(helper) => helper.lock().await.ask(endpoint).await,
        }
    }
}

/// The helper, as the link has it. Dropping it ends it.
pub(super) struct Helper {
    stream: BufReader<UnixStream>,
    process: Child,
}

impl Helper {
    /// Starts this program again with `argument` as its first, to look names up as `user`.
    pub(super) fn start(argument: &str, user: &User) -> io::Result<Helper> {
        let (ours, theirs) = BlockingStream::pair()?;
        ours.set_nonblocking(true)?;
        let process = Command::new("/proc/self/exe")
            .arg(argument)
            .args([user.uid().to_string(), user.gid().to_string()])
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::inherit())
            .current_dir("/")
            // Ctrl-C is for the link, which may still want an address while it closes.
            .process_group(0)
            .spawn()?;
        Ok(Helper { stream: BufReader::new(UnixStream::from_std(ours)?), process })
    }

    async fn ask(&mut self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        let question = format!("{} {}\n", endpoint.host, endpoint.port);
        let mut answer = String::new();
        let asked = self.stream.write_all(question.as_bytes()).await.is_ok();
        if !asked || !matches!((&mut self.stream).take(MAX_ANSWER).read_line(&mut answer).await, Ok(1..)) {
            let what = "the helper that looks names up has ended; start the link again";
            return Err(io::Error::new(ErrorKind::BrokenPipe, what));
        }
        read_answer(&answer)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = shutdown(self.stream.get_ref().as_raw_fd(), Shutdown::Both);
        // At once: it does nothing but wait for this, and looks names up beside.
        let _ = self.process.wait();
    }
}

/// The helper is not trusted more than the name servers it asks.
fn read_answer(answer: &str) -> io::Result<Vec<SocketAddr>> {
    let nonsense = || io::Error::new(ErrorKind::InvalidData, "the helper that looks names up does not answer");
    let line = answer.strip_suffix('\n').ok_or_else(nonsense)?;
    if let Some(why) = line.strip_prefix("! ") {
        return Err(io::Error::other(why.chars().filter(|c| !c.is_control()).collect::<String>()));
    }
    let addresses = line.strip_prefix("= ").ok_or_else(nonsense)?;
    addresses.split(' ').map(|word| word.parse().map_err(|_| nonsense())).collect()
}

/// What the helper does: looks up, for whoever is at the other end of its standard input and output, until that is closed.
///
/// It becomes `user` where it may, and gives up all rights but to read files and to use the network.
///
/// # Errors
/// When no thread can be started, or nobody is there.
pub fn serve(user: &User) -> io::Result<()> {
    // Where one of these is refused the link has said so, or it is a namespace without that user.
    let refused = [
        sandbox::keep_memory_private(),
        user.assume(),
        sandbox::gain_no_privileges(),
        sandbox::keep_capabilities(Role::Names).map(drop),
        sandbox::restrict_files(Reach::Read).map(drop),
        sandbox::restrict_calls(Role::Names),
    ];
    for error in refused.into_iter().filter_map(Result::err) {
        debug!("the helper that looks names up goes without a lock: {error}");
    }
    let (ask, asked) = mpsc::channel();
    thread::Builder::new().name("tieline-lookup".into()).spawn(move || answer_all(&asked))?;
    for question in io::stdin().lock().lines() {
        if ask.send(question?).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    Ok(())
}

/// On a thread of its own: a name server that does not answer must not keep the helper alive when the link has ended.
fn answer_all(asked: &mpsc::Receiver<String>) {
    for question in asked {
        let mut out = io::stdout().lock();
        let answered = writeln!(out, "{}", answer(&question)).and_then(|()| out.flush());
        if answered.is_err() {
            return;
        }
    }
}

fn answer(question: &str) -> String {
    let parts = question.split_once(' ').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some(endpoint) = parts else {
        return "! this is no question".into();
    };
    match endpoint.to_socket_addrs() {
        Ok(found) => found.fold("=".into(), |text: String, address| format!("{text} {address}")),
        Err(error) => format!("! {}", error.to_string().replace('\n', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_helper_answers_is_read() {
        let found = read_answer(&(answer("127.0.0.1 7311") + "\n")).unwrap();
        assert_eq!(found, ["127.0.0.1:7311".parse().unwrap()]);
        let found = read_answer("= 192.0.2.1:1 [fe80::1%3]:2\n").unwrap();
        assert_eq!(found, ["192.0.2.1:1".parse().unwrap(), "[fe80::1%3]:2".parse().unwrap()]);
        let none = read_answer(&(answer("nothing.invalid 7311") + "\n")).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::Other, "{none}");
        assert_eq!(read_answer("! \u{1b}[2Jno\n").unwrap_err().to_string(), "[2Jno");
    }

    #[test]
    fn a_helper_that_talks_nonsense_is_not_believed() {
        for answer in ["", "\n", "= 192.0.2.1:1", "= \n", "192.0.2.1:1\n", "= 192.0.2.1:1  192.0.2.2:1\n", "= a b\n"] {
            assert_eq!(read_answer(answer).unwrap_err().kind(), ErrorKind::InvalidData, "{answer:?}");
        }
        for question in ["", "host", "host port", "host 70000"] {
            assert!(answer(question).starts_with("! "), "{question}");
        }
    }
}

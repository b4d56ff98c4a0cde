//! Looking names up, in this process or by a helper: the same program, started anew before the sandbox closes.
//!
//! Name services are code and files that nobody can list beforehand: modules of the C library, sockets, caches. The link's own
//! process must not need any of that, so the helper does, as a user without rights, and hands addresses over a socket pair:
//!
//! ```text
//!   link ── "7 branch.example.net 7311\n" ──▶ helper ══ fork ══▶ its worker
//!        ◀── "7 = 203.0.113.7:7311 [2001:db8::7]:7311\n", or "7 ! why not\n" ──
//! ```
//!
//! What others' code may crash, or never come back from, is a worker: a copy of the helper, which makes another when one has died and
//! says so with the number 0. The link itself could make none: it is confined by then. Both end when their end of the pair is
//! closed, however the link ended.

use crate::config::Endpoint;
use crate::sys::process::in_child;
use crate::sys::sandbox::{self, Reach, Role, User};
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::wait::WaitStatus;
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixStream, lookup_host};
use tokio::time::timeout;
use tracing::{debug, warn};

/// The longest answer taken, in bytes: some hundred addresses, more than are ever tried.
const MAX_ANSWER: u64 = 16 << 10;
/// An answer that takes longer is not waited for: the C library's own patience with servers that do not answer is mostly shorter.
const PATIENCE: Duration = Duration::from_secs(60);
/// A question that is at work for so long when the next one comes has taken its worker's life.
const HUNG: Duration = Duration::from_secs(30);
/// So long after a worker has died comes the next.
const RESPITE: Duration = Duration::from_millis(200);

/// Who looks names up.
#[derive(Clone)]
pub(super) enum Lookup {
    /// This process, on a thread that waits for it.
    Here,
    /// A helper.
    Helper(Arc<tokio::sync::Mutex<Helper>>),
}

impl Lookup {
    pub(super) fn by(helper: Helper) -> Lookup {
        Lookup::Helper(Arc::new(tokio::sync::Mutex::new(helper)))
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
    /// Of the newest question.
    number: u64,
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
        Ok(Helper { stream: BufReader::new(UnixStream::from_std(ours)?), process, number: 0 })
    }

    async fn ask(&mut self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        let answer = async {
            match self.answer(endpoint).await {
                // Perhaps on an earlier question; and if not, that one may have been the unlucky one.
                Err(error) if error.kind() == ErrorKind::Interrupted => self.answer(endpoint).await,
                other => other,
            }
        };
        let answer = timeout(PATIENCE, answer).await;
        read_answer(&answer.map_err(|_| io::Error::new(ErrorKind::TimedOut, "the name service does not answer"))??)
    }

    /// What the helper says to a question, without its number; `Interrupted` if a worker has died.
    async fn answer(&mut self, endpoint: &Endpoint) -> io::Result<String> {
        self.number += 1;
        let question = format!("{} {} {}\n", self.number, endpoint.host, endpoint.port);
        let mut asked = self.stream.write_all(question.as_bytes()).await.is_ok();
        let mut line = String::new();
        while asked {
            line.clear();
            asked = matches!((&mut self.stream).take(MAX_ANSWER).read_line(&mut line).await, Ok(1..));
            match line.split_once(' ') {
                Some((number, answer)) if number == self.number.to_string() => return Ok(answer.to_owned()),
                Some(("0", _)) => return Err(io::Error::new(ErrorKind::Interrupted, "the lookup failed; see the log")),
                // An answer that was not waited for.
                _ => {}
            }
        }
        let what = "the helper that looks names up has ended; start the link again";
        Err(io::Error::new(ErrorKind::BrokenPipe, what))
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

/// What the helper does: sees to it that somebody looks names up for whoever is at the other end of its standard input and output,
/// until that is closed.
///
/// It becomes `user` where it may, and gives up all rights but to read files and to use the network. To be called while the process has
/// one thread.
///
/// # Errors
/// When no process or thread can be started, or nobody is there.
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
    loop {
        match in_child(|| u8::from(work().is_err()))? {
            WaitStatus::Exited(_, 0) => return Ok(()),
            ended => warn!("looking names up failed, and begins anew: {ended:?}"),
        }
        thread::sleep(RESPITE);
        say("0 !")?;
    }
}

/// What a worker does. It gives up where it is asked something and has had no answer to an earlier question for long: nobody waits for
/// that any more, and a new worker may fare better.
fn work() -> io::Result<()> {
    let (ask, asked) = mpsc::channel::<String>();
    let begun = Arc::new(Mutex::new(None::<Instant>));
    let at_work = begun.clone();
    let answer_all = move || {
        for question in asked {
            *at_work.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            let said = say(&answer(&question));
            *at_work.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if said.is_err() {
                return;
            }
        }
    };
    // A name server that does not answer must not keep the worker alive when the link has ended.
    thread::Builder::new().name("tieline-lookup".into()).spawn(answer_all)?;
    for question in io::stdin().lock().lines() {
        let hangs = begun.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() >= HUNG);
        if hangs || ask.send(question?).is_err() {
            return Err(ErrorKind::BrokenPipe.into());
        }
    }
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The answer to a line, with its number.
fn answer(line: &str) -> String {
    let (number, question) = line.split_once(' ').unwrap_or((line, ""));
    let parts = question.split_once(' ').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some(endpoint) = parts else {
        return format!("{number} ! this is no question");
    };
    match endpoint.to_socket_addrs() {
        Ok(found) => found.fold(format!("{number} ="), |text, address| format!("{text} {address}")),
        Err(error) => format!("{number} ! {}", error.to_string().replace('\n', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_helper_answers_is_read() {
        let said = |question| answer(question).strip_prefix("7 ").unwrap().to_owned() + "\n";
        let found = read_answer(&said("7 127.0.0.1 7311")).unwrap();
        assert_eq!(found, ["127.0.0.1:7311".parse().unwrap()]);
        let found = read_answer("= 192.0.2.1:1 [fe80::1%3]:2\n").unwrap();
        assert_eq!(found, ["192.0.2.1:1".parse().unwrap(), "[fe80::1%3]:2".parse().unwrap()]);
        let none = read_answer(&said("7 nothing.invalid 7311")).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::Other, "{none}");
        assert_eq!(read_answer("! \u{1b}[2Jno\n").unwrap_err().to_string(), "[2Jno");
    }

    #[test]
    fn a_helper_that_talks_nonsense_is_not_believed() {
        for answer in ["", "\n", "= 192.0.2.1:1", "= \n", "192.0.2.1:1\n", "= 192.0.2.1:1  192.0.2.2:1\n", "= a b\n"] {
            assert_eq!(read_answer(answer).unwrap_err().kind(), ErrorKind::InvalidData, "{answer:?}");
        }
        for question in ["7", "7 host", "7 host port", "7 host 70000"] {
            assert!(answer(question).starts_with("7 ! "), "{question}");
        }
    }
}

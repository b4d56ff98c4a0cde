//! Looking names up, in this process or by a helper: the same program, started anew before the
//! sandbox closes.
//!
//! Name services are code and files that nobody can list beforehand: modules of the C library,
//! sockets, caches. The link's own process must not need any of that, so the helper does (`serve`),
//! as a user without rights, and hands addresses over a socket pair:
//!
//! ```text
//!   link ── "7 branch.example.net 7311\n" ──▶ helper ══ fork ══▶ its worker, a thread a question
//!        ◀── "7 = 203.0.113.7:7311 [2001:db8::7]:7311\n", or "7 ! why not\n" ──
//! ```
//!
//! Questions do not wait for each other: a name whose servers are dead takes as long as they let
//! it, and no other name's time.

mod cause;
mod serve;

pub use serve::serve;

use crate::config::Endpoint;
use crate::sys::sandbox::User;
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// The longest answer taken, in bytes: some hundred addresses, more than any name has.
const MAX_ANSWER: u64 = 16 << 10;
/// An answer that takes longer is not waited for: the C library's own patience with servers that do
/// not answer is mostly shorter.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who looks names up.
#[derive(Clone)]
pub(super) enum Lookup {
    /// This process, on a thread that waits for it.
    Here,
    /// A helper.
    Helper(Arc<Helper>),
}

impl Lookup {
    pub(super) fn by(helper: Helper) -> Lookup {
        Lookup::Helper(Arc::new(helper))
    }

    /// All addresses of `endpoint`, in the order in which the machine would try them.
    pub(super) async fn addresses(&self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        match self {
            Lookup::Here => {
                let endpoint = endpoint.clone();
                let found = spawn_blocking(move || cause::addresses(&endpoint)).await;
                found.map_err(io::Error::other)?.map_err(io::Error::other)
            }
            Lookup::Helper(helper) => helper.questions.ask(endpoint).await,
        }
    }
}

/// The helper, as the link has it. Dropping it ends it.
pub(super) struct Helper {
    questions: Questions,
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
        Ok(Helper { questions: Questions::over(UnixStream::from_std(ours)?), process })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.questions.end();
        // At once: it does nothing but wait for this, and looks names up beside.
        let _ = self.process.wait();
    }
}

/// What is asked, and not answered yet.
struct Questions {
    to: tokio::sync::Mutex<OwnedWriteHalf>,
    open: Arc<Mutex<Open>>,
    reader: JoinHandle<()>,
}

/// An answer without its number, or why there will be none.
type Answer = io::Result<String>;

#[derive(Default)]
struct Open {
    /// Of the newest question.
    number: u64,
    questions: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// Nobody answers any more.
    ended: bool,
}

impl Questions {
    /// Begins to read answers from this stream.
    fn over(stream: UnixStream) -> Questions {
        let (from, to) = stream.into_split();
        let open = Arc::<Mutex<Open>>::default();
        let reader = tokio::spawn(read_answers(from, open.clone()));
        Questions { to: tokio::sync::Mutex::new(to), open, reader }
    }

    async fn ask(&self, endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
        let answer = async {
            match self.answer(endpoint).await {
                // Perhaps on another question; and if not, that one may have been the unlucky one.
                Err(error) if error.kind() == ErrorKind::Interrupted => self.answer(endpoint).await,
                other => other,
            }
        };
        let no_answer = || {
            let text = "no answer within 60 s: the name servers, or a module in /etc/nsswitch.conf, take too long";
            io::Error::new(ErrorKind::TimedOut, text)
        };
        read_answer(&timeout(PATIENCE, answer).await.map_err(|_| no_answer())??)
    }

    /// What the helper says to a question; `Interrupted` if a worker has died.
    async fn answer(&self, endpoint: &Endpoint) -> Answer {
        let gone =
            || io::Error::new(ErrorKind::BrokenPipe, "the helper that looks names up has ended; start the link again");
        let (number, answer) = self.open().ask().ok_or_else(gone)?;
        let question = format!("{number} {} {}\n", endpoint.host, endpoint.port);
        if self.to.lock().await.write_all(question.as_bytes()).await.is_err() {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    fn end(&mut self) {
        let _ = shutdown(self.to.get_mut().as_ref().as_raw_fd(), Shutdown::Both);
        self.reader.abort();
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

impl Open {
    /// A new question's number, and where its answer will come; none when nobody answers any more.
    fn ask(&mut self) -> Option<(u64, oneshot::Receiver<Answer>)> {
        if self.ended {
            return None;
        }
        let (tell, told) = oneshot::channel();
        self.number += 1;
        // Nobody waits for some of them any more.
        self.questions.retain(|_, question| !question.is_closed());
        self.questions.insert(self.number, tell);
        Some((self.number, told))
    }

    /// Takes a line of the helper's.
    fn hear(&mut self, line: &str) {
        let (number, answer) = line.split_once(' ').unwrap_or_default();
        match number.parse() {
            // The worker that had these has died, and there is another by now.
            Ok(0) => {
                for (_, question) in std::mem::take(&mut self.questions) {
                    let text = "the process that looks names up has died; see the log";
                    let _ = question.send(Err(io::Error::new(ErrorKind::Interrupted, text)));
                }
            }
            Ok(number) => {
                if let Some(question) = self.questions.remove(&number) {
                    let _ = question.send(Ok(answer.to_owned()));
                }
            }
            Err(_) => {}
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands each answer to whoever asked, until the helper ends.
async fn read_answers(from: OwnedReadHalf, open: Arc<Mutex<Open>>) {
    let mut from = BufReader::new(from);
    let mut line = String::new();
    while matches!((&mut from).take(MAX_ANSWER).read_line(&mut line).await, Ok(1..)) {
        lock(&open).hear(&line);
        line.clear();
    }
    let mut open = lock(&open);
    (open.ended, open.questions) = (true, BTreeMap::new());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_helper_answers_is_read() {
        let found = read_answer("= 127.0.0.1:7311\n").unwrap();
        assert_eq!(found, ["127.0.0.1:7311".parse().unwrap()]);
        let found = read_answer("= 192.0.2.1:1 [fe80::1%3]:2\n").unwrap();
        assert_eq!(found, ["192.0.2.1:1".parse().unwrap(), "[fe80::1%3]:2".parse().unwrap()]);
        assert_eq!(read_answer("! \u{1b}[2Jno\n").unwrap_err().to_string(), "[2Jno");
    }

    #[test]
    fn a_helper_that_talks_nonsense_is_not_believed() {
        for answer in ["", "\n", "= 192.0.2.1:1", "= \n", "192.0.2.1:1\n", "= 192.0.2.1:1  192.0.2.2:1\n", "= a b\n"] {
            assert_eq!(read_answer(answer).unwrap_err().kind(), ErrorKind::InvalidData, "{answer:?}");
        }
    }

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.into(), port: 1 }
    }

    /// The next question that comes, without its number.
    async fn next(from: &mut BufReader<UnixStream>) -> (u64, String) {
        let mut line = String::new();
        from.read_line(&mut line).await.unwrap();
        let (number, asked) = line.trim_end().split_once(' ').unwrap();
        (number.parse().unwrap(), asked.to_owned())
    }

    #[tokio::test]
    async fn questions_do_not_wait_for_each_other_and_each_gets_its_own_answer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (questions, mut helper) = (Questions::over(ours), BufReader::new(theirs));
        let (has_one, had_one) = oneshot::channel();
        let (slow, fast) = (endpoint("slow.example"), endpoint("fast.example"));
        let asked = async {
            let (mut slow, mut fast) = (Box::pin(questions.ask(&slow)), Box::pin(questions.ask(&fast)));
            let first = tokio::select! { biased; found = &mut slow => panic!("{found:?}"), found = &mut fast => found };
            has_one.send(()).unwrap();
            (first.unwrap(), slow.await.unwrap())
        };
        let answered = async {
            let questions = [next(&mut helper).await, next(&mut helper).await];
            assert_eq!(questions.each_ref().map(|(_, asked)| &asked[..]), ["slow.example 1", "fast.example 1"]);
            let [(slow, _), (fast, _)] = questions;
            // An answer to what nobody asked, and one that was not waited for, are nobody's.
            let text = format!("99 = 192.0.2.99:1\n{fast} = 192.0.2.2:1\n{fast} = 192.0.2.3:1\n");
            helper.write_all(text.as_bytes()).await.unwrap();
            had_one.await.unwrap();
            helper.write_all(format!("{slow} = 192.0.2.1:1\n").as_bytes()).await.unwrap();
        };
        let ((fast, slow), ()) = tokio::join!(asked, answered);
        assert_eq!(fast, ["192.0.2.2:1".parse().unwrap()]);
        assert_eq!(slow, ["192.0.2.1:1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn all_that_a_dead_worker_had_is_asked_once_more_and_nothing_of_a_helper_that_has_ended() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (questions, mut helper) = (Questions::over(ours), BufReader::new(theirs));
        let names = [endpoint("a.example"), endpoint("b.example")];
        let asked = async { tokio::join!(questions.ask(&names[0]), questions.ask(&names[1])) };
        let answered = async {
            for _ in 0..2 {
                next(&mut helper).await;
            }
            helper.write_all(b"0 !\n").await.unwrap();
            for _ in 0..2 {
                let (number, asked) = next(&mut helper).await;
                let n = if asked.starts_with('a') { 1 } else { 2 };
                helper.write_all(format!("{number} = 192.0.2.{n}:1\n").as_bytes()).await.unwrap();
            }
        };
        let ((a, b), ()) = tokio::join!(asked, answered);
        assert_eq!(
            (a.unwrap(), b.unwrap()),
            (vec!["192.0.2.1:1".parse().unwrap()], vec!["192.0.2.2:1".parse().unwrap()])
        );
        let gone = async {
            next(&mut helper).await;
            drop(helper);
        };
        let (unanswered, ()) = tokio::join!(questions.ask(&names[0]), gone);
        assert_eq!(unanswered.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(questions.ask(&names[0]).await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}

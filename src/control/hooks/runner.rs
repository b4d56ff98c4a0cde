//! The helper's side: hooks run one after the other, each bounded in time and in what it may say.

use super::{LIMIT, News, Orders, Reason, Word};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How much of a hook's output gets into the log: so many bytes, …
const MOST_BYTES: usize = 4 << 10;
/// … in so many lines, …
const MOST_LINES: usize = 20;
/// … of so many characters. The rest is counted.
const LONGEST_LINE: usize = 400;
/// How often it is looked whether a hook has ended.
const LOOK: u16 = 20;

/// What the helper does: runs the hooks it is told first, for the news that follow on its standard input, until that is closed.
///
/// # Errors
/// When no thread can be started, or what comes first is not what it is to run.
pub fn serve() -> io::Result<()> {
    // Whoever stops a whole service sends these to all of it. The link then says what is to run last, and closes the input.
    let ours = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ours), None)?;
    let news = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    run_all(BufReader::new(news).lines(), io::stdout())
}

/// The same over a stream, for a link without a sandbox.
pub(super) fn serve_stream(link: &UnixStream) {
    let Ok(reads) = link.try_clone() else { return };
    // The link logs what there is to log; if it is gone there is nobody to tell.
    let _ = run_all(BufReader::new(reads).lines(), link);
}

fn run_all(
    mut lines: impl Iterator<Item = io::Result<String>> + Send + 'static,
    mut link: impl Write,
) -> io::Result<()> {
    let first = lines.next().ok_or(ErrorKind::UnexpectedEof)??;
    let orders: Orders = serde_json::from_str(&first)?;
    let (tell, news) = mpsc::channel();
    let read = move || {
        // A line that makes no sense ends it like the link's end.
        let news = lines.map_while(|line| serde_json::from_str::<News>(&line.ok()?).ok());
        news.for_each(|news| _ = tell.send(news));
    };
    thread::Builder::new().name("tieline-news".into()).spawn(read)?;
    let mut last = News { up: false, reason: Reason::Died, peer: None };
    while let Ok(next) = news.recv() {
        // What came meanwhile makes what came before it old.
        let latest = news.try_iter().last().unwrap_or(next);
        if latest.up != last.up {
            run(&orders, latest, &mut link);
        }
        last = latest;
    }
    if last.up {
        run(&orders, News { up: false, reason: Reason::Died, ..last }, &mut link);
    }
    Ok(())
}

/// Runs the hook for the news, if there is one, and tells the link of it. That nobody listens any more stops no hook.
fn run(orders: &Orders, news: News, link: &mut impl Write) {
    let (hook, argv) = if news.up { ("up", &orders.up) } else { ("down", &orders.down) };
    let Some((program, arguments)) = argv.split_first() else { return };
    let mut command = Command::new(program);
    command.args(arguments).envs(variables(orders, news));
    let started = Instant::now();
    let (output, ended) = run_bounded(command, LIMIT);
    let mut say = |word: &Word| {
        let line = serde_json::to_string(word).map_err(io::Error::other);
        let _ = line.and_then(|line| writeln!(link, "{line}")).and_then(|()| link.flush());
    };
    let hook = || hook.to_owned();
    output.lines().into_iter().for_each(|line| say(&Word::Said { hook: hook(), line }));
    say(&match ended {
        Ok(Some(status)) if status.success() => {
            Word::Done { hook: hook(), ms: started.elapsed().as_millis().try_into().unwrap_or(u64::MAX) }
        }
        Ok(Some(status)) => Word::Failed { hook: hook(), why: format!("{program} ended with {status}") },
        Ok(None) => Word::Failed { hook: hook(), why: format!("{program} was killed: it took longer than {LIMIT:?}") },
        Err(error) => {
            Word::Failed { hook: hook(), why: format!("cannot run {program}: {}", crate::os_error::in_words(&error)) }
        }
    });
}

/// What a hook is told, beside the environment `up` was started with. README.md has the list.
fn variables(orders: &Orders, news: News) -> [(&'static str, String); 7] {
    // It is a word in kebab case, and no number or list.
    let reason = serde_json::to_value(news.reason).ok().and_then(|reason| reason.as_str().map(str::to_owned));
    [
        ("TIELINE_NAME", orders.name.clone()),
        ("TIELINE_INTERFACE", orders.interface.clone()),
        ("TIELINE_STATE", if news.up { "up" } else { "down" }.to_owned()),
        ("TIELINE_REASON", reason.unwrap_or_default()),
        ("TIELINE_PEER", news.peer.map(|peer| peer.to_string()).unwrap_or_default()),
        ("TIELINE_ADDRESSES", orders.addresses.clone()),
        ("TIELINE_ROUTES", orders.routes.clone()),
    ]
}

/// Runs a command in a process group of its own. Gives how it ended, or `None` where it had to be killed. What it has started and
/// left in its group ends with it.
fn run_bounded(mut command: Command, limit: Duration) -> (Output, io::Result<Option<ExitStatus>>) {
    let mut output = Output::default();
    let ended = begin(&mut command).and_then(|(mut child, mut pipe)| {
        // The command holds the other end of the pipe.
        drop(command);
        let group = Pid::from_raw(child.id() as i32);
        let in_time = wait(group, &mut pipe, &mut output, Instant::now() + limit);
        // It is not reaped yet, so this is its group and no other's.
        let _ = killpg(group, Signal::SIGKILL);
        let status = child.wait()?;
        output.take(&mut pipe);
        Ok(in_time?.then_some(status))
    });
    (output, ended)
}

fn begin(command: &mut Command) -> io::Result<(Child, PipeReader)> {
    let (pipe, theirs) = io::pipe()?;
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_RDONLY | OFlag::O_NONBLOCK))?;
    command.stdin(Stdio::null()).stdout(theirs.try_clone()?).stderr(theirs).current_dir("/").process_group(0);
    Ok((command.spawn()?, pipe))
}

/// Takes what the process says until it has ended (`true`) or its time is over.
fn wait(process: Pid, pipe: &mut PipeReader, output: &mut Output, by: Instant) -> io::Result<bool> {
    let seen = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while Instant::now() < by {
        if output.open {
            let mut readable = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            poll(&mut readable, LOOK)?;
            output.take(pipe);
        } else {
            thread::sleep(Duration::from_millis(LOOK.into()));
        }
        if waitid(Id::Pid(process), seen)? != WaitStatus::StillAlive {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a hook said, as much of it as is kept.
struct Output {
    bytes: Vec<u8>,
    /// What was too much.
    more: u64,
    /// Whether there may be more to come.
    open: bool,
}

impl Default for Output {
    fn default() -> Output {
        Output { bytes: Vec::new(), more: 0, open: true }
    }
}

impl Output {
    /// Takes what there is by now, of a great deal only the next part: who writes without end is not waited for.
    fn take(&mut self, pipe: &mut PipeReader) {
        let mut room = [0; 4 << 10];
        for _ in 0..16 {
            match pipe.read(&mut room) {
                Ok(0) => return self.open = false,
                Ok(length) => {
                    let kept = length.min(MOST_BYTES - self.bytes.len());
                    self.bytes.extend_from_slice(&room[..kept]);
                    self.more += (length - kept) as u64;
                }
                Err(_) => return,
            }
        }
    }

    /// In lines for a log.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes);
        let tame = |line: &str| line.chars().filter(|c| !c.is_control()).take(LONGEST_LINE).collect::<String>();
        let mut all = text.lines().map(tame).filter(|line| !line.trim().is_empty());
        let mut lines: Vec<String> = all.by_ref().take(MOST_LINES).collect();
        let left: u64 = all.map(|line| line.len() as u64).sum();
        if self.more + left > 0 {
            lines.push(format!("… and {} bytes more", self.more + left));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn run_shell(script: &str, limit: Duration) -> (Vec<String>, Option<ExitStatus>, Duration) {
        let started = Instant::now();
        let (output, ended) = run_bounded(shell(script), limit);
        (output.lines(), ended.unwrap(), started.elapsed())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_it_says_and_how_it_ends_is_told() {
        let (lines, status, _) = run_shell("echo one; echo two >&2; exit 3", LONG);
        assert_eq!((lines, status.unwrap().code()), (vec!["one".to_owned(), "two".to_owned()], Some(3)));
        let (output, ended) = run_bounded(Command::new("/does/not/exist"), LONG);
        assert_eq!((output.lines().len(), ended.unwrap_err().kind()), (0, ErrorKind::NotFound));
    }

    #[test]
    fn who_takes_too_long_is_killed_with_all_he_started() {
        let folder = tempfile::tempdir().unwrap();
        let (seen, limit) = (folder.path().join("seen"), Duration::from_millis(300));
        let script = format!("trap '' TERM; (sleep 1; echo late > {0}) & echo there; sleep 60", seen.display());
        let (lines, status, took) = run_shell(&script, limit);
        assert_eq!((lines, status), (vec!["there".to_owned()], None));
        assert!((limit..LONG).contains(&took), "{took:?}");
        thread::sleep(Duration::from_millis(1_200));
        assert!(!seen.exists(), "a child outlived it");
    }

    #[test]
    fn what_is_left_in_its_group_ends_with_it_and_what_has_left_it_keeps_nobody_waiting() {
        let (lines, status, took) = run_shell("sleep 60 & setsid sleep 2 & echo done", LONG);
        assert_eq!((lines, status.unwrap().success()), (vec!["done".to_owned()], true));
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[test]
    fn who_closes_his_output_is_still_waited_for() {
        let (lines, status, took) = run_shell("exec >&- 2>&-; sleep 0.3", LONG);
        assert!(lines.is_empty() && status.unwrap().success());
        assert!(took >= Duration::from_millis(300));
    }

    #[test]
    fn a_flood_of_words_is_cut_and_does_not_stop_it() {
        let (lines, status, _) = run_shell("yes word | head -c 1000000; printf '\\033[2J\\n'", LONG);
        assert!(status.unwrap().success());
        assert_eq!(lines.len(), MOST_LINES + 1);
        assert!(lines[..MOST_LINES].iter().all(|line| line == "word"));
        let more: u64 = lines[MOST_LINES].split(' ').nth(2).unwrap().parse().unwrap();
        assert!(more > 950_000, "{more}");
        let (lines, ..) = run_shell("head -c 3000 /dev/zero | tr '\\0' x; printf '\\n\\033[2Jtame\\n'", LONG);
        assert_eq!((lines[0].len(), lines[1].as_str()), (LONGEST_LINE, "[2Jtame"));
        let (lines, status, _) = run_shell("yes", Duration::from_millis(200));
        assert!(status.is_none() && lines.len() == MOST_LINES + 1, "writing without end");
    }

    /// A helper with these hooks, the words it has said when all was told and done, and what the hooks wrote.
    fn told(up: &str, down: &str, news: &[News]) -> (Vec<Word>, String) {
        let folder = tempfile::tempdir().unwrap();
        let wrote = folder.path().join("wrote");
        let argv = |script: &str| match script {
            "" => vec![],
            script => ["/bin/sh", "-c", script, "hook", wrote.to_str().unwrap()].map(str::to_owned).to_vec(),
        };
        let text = |word: &str| word.to_owned();
        let orders = Orders {
            name: text("hq"),
            interface: text("tl0"),
            addresses: text("10.99.0.2/31 fd99::2/127"),
            routes: text("10.50.0.0/24"),
            up: argv(up),
            down: argv(down),
        };
        let mut lines = vec![serde_json::to_string(&orders).unwrap()];
        lines.extend(news.iter().map(|news| serde_json::to_string(news).unwrap()));
        let mut words = Vec::new();
        run_all(lines.into_iter().map(Ok), &mut words).unwrap();
        let words = String::from_utf8(words).unwrap();
        let words = words.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (words, std::fs::read_to_string(wrote).unwrap_or_default())
    }

    const UP: News = News { up: true, reason: Reason::Connected, peer: None };
    const DOWN: News = News { up: false, reason: Reason::Silence, peer: None };

    #[test]
    fn hooks_are_told_what_there_is_to_know() {
        let peer = Some("[2001:db8::7]:7311".parse().unwrap());
        let script = "env | grep '^TIELINE_' | grep -v LOG | sort >> $1";
        let (_, wrote) = told(script, "", &[News { peer, ..UP }]);
        let expected = "\
TIELINE_ADDRESSES=10.99.0.2/31 fd99::2/127
TIELINE_INTERFACE=tl0
TIELINE_NAME=hq
TIELINE_PEER=[2001:db8::7]:7311
TIELINE_REASON=connected
TIELINE_ROUTES=10.50.0.0/24
TIELINE_STATE=up
";
        assert_eq!(wrote, expected);
    }

    #[test]
    fn the_latest_wins_nothing_runs_twice_and_a_link_that_vanished_is_down() {
        let script = "echo $TIELINE_STATE $TIELINE_REASON >> $1";
        assert_eq!(told(script, script, &[DOWN, DOWN]).1, "", "it was never up");
        // How many of the news it sees first is a matter of chance, and the others are there before a hook that takes its time ends.
        let slow = "echo $TIELINE_STATE $TIELINE_REASON >> $1; sleep 0.2";
        let wrote = told(slow, slow, &[UP, DOWN, UP, DOWN, UP]).1;
        assert!(wrote.ends_with("up connected\ndown died\n"), "{wrote}");
        assert!(wrote.lines().zip(wrote.lines().skip(1)).all(|(one, next)| one[..2] != next[..2]), "{wrote}");
        assert!(wrote.lines().count() < 6, "nothing was left out: {wrote}");
        let wrote = told(script, script, &[UP, News { reason: Reason::Closed, ..DOWN }]).1;
        assert!(matches!(wrote.as_str(), "" | "up connected\ndown closed\n"), "{wrote}");
    }

    #[test]
    fn never_two_at_once_and_failures_are_told() {
        let script = "mkdir $1.busy && sleep 0.2 && rmdir $1.busy";
        let (words, _) = told(script, script, &[UP]);
        assert!(matches!(&words[..], [Word::Done { .. }, Word::Done { .. }]), "{words:?}");
        let (words, _) = told("echo no; exit 7", "", &[UP]);
        let said = Word::Said { hook: "up".into(), line: "no".into() };
        let why = "/bin/sh ended with exit status: 7".to_owned();
        assert_eq!(words, [said, Word::Failed { hook: "up".into(), why }]);
    }

    #[test]
    fn nonsense_ends_it() {
        assert!(run_all(["not JSON"].map(|line| Ok(line.to_owned())).into_iter(), io::sink()).is_err());
        assert!(run_all(std::iter::empty(), io::sink()).is_err());
    }
}

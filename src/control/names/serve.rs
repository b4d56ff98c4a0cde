//! The helper that looks names up: what it does, as another process without rights.
//!
//! What others' code may crash, or never come back from, is a worker: a copy of the helper, which
//! makes another when one has died and says so with the number 0. The link itself could make none:
//! it is confined by then. Both end when their end of the pair is closed, however the link ended.

use super::cause;
use crate::config::Endpoint;
use crate::sys::process::in_child;
use crate::sys::sandbox::{self, Reach, Role, User};
use nix::sys::wait::WaitStatus;
use std::collections::BTreeMap;
use std::io::{self, BufRead, ErrorKind, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// A question that has been at work for so long when it is asked again has taken its worker's life:
/// nobody waits for it any more.
const HUNG: Duration = Duration::from_secs(30);
/// So have more questions than this at work at once. A link has no more names than paths, and asks
/// for one again when it has an answer, or no patience any more.
const AT_WORK: usize = 16;
/// So long after a worker has died comes the next.
const RESPITE: Duration = Duration::from_millis(200);

/// What the helper does: sees to it that somebody looks names up for whoever is at the other end of
/// its standard input and output, until that is closed.
///
/// It becomes `user` where it may, and gives up all rights but to read files and to use the
/// network. To be called while the process has one thread.
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

/// The questions a worker has at work, by the whole line: what is asked, and since when.
#[derive(Clone, Default)]
struct AtWork(Arc<Mutex<BTreeMap<String, (String, Instant)>>>);

impl AtWork {
    /// Whether a new worker would fare better: this was asked long ago and hangs, or too much does.
    fn hangs(&self, asked: &str, now: Instant) -> bool {
        let questions = self.lock();
        let hung = |(earlier, since): &(String, Instant)| earlier == asked && now.duration_since(*since) >= HUNG;
        questions.len() >= AT_WORK || questions.values().any(hung)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker does: each question is answered by a thread of its own. Those end with the process
/// when the link has ended, whether a name server has answered or not.
fn work() -> io::Result<()> {
    let at_work = AtWork::default();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let asked = line.split_once(' ').map_or("", |(_, asked)| asked).to_owned();
        let now = Instant::now();
        if at_work.hangs(&asked, now) {
            return Err(ErrorKind::TimedOut.into());
        }
        at_work.lock().insert(line.clone(), (asked, now));
        let done = at_work.clone();
        let look = move || {
            // Where nobody listens any more the worker ends anyway.
            let _ = say(&answer(&line));
            done.lock().remove(&line);
        };
        thread::Builder::new().name("tieline-lookup".into()).spawn(look)?;
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
    let parts = question.split_once(' ').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    let Some(endpoint) = parts.map(|(host, port)| Endpoint { host, port }) else {
        return format!("{number} ! this is no question");
    };
    match cause::addresses(&endpoint) {
        Ok(found) => found.iter().fold(format!("{number} ="), |text, address| format!("{text} {address}")),
        Err(why) => format!("{number} ! {}", why.replace('\n', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_or_is_too_much_takes_another_worker() {
        let (at_work, now) = (AtWork::default(), Instant::now());
        let begin = |number: usize, asked: &str, since: Duration| {
            at_work.lock().insert(format!("{number} {asked}"), (asked.to_owned(), now - since));
        };
        begin(1, "hq 1", HUNG);
        begin(2, "branch 1", HUNG / 2);
        assert!(at_work.hangs("hq 1", now), "nobody waits for the first any more");
        assert!(!at_work.hangs("branch 1", now) && !at_work.hangs("other 1", now), "one name keeps no other waiting");
        (3..=AT_WORK).for_each(|number| begin(number, "branch 1", Duration::ZERO));
        assert!(at_work.hangs("other 1", now));
    }

    #[test]
    fn a_line_that_is_no_question_is_answered_too() {
        for question in ["7", "7 host", "7 host port", "7 host 70000"] {
            assert_eq!(answer(question), "7 ! this is no question");
        }
        assert_eq!(answer("7 127.0.0.1 7311"), "7 = 127.0.0.1:7311");
        assert!(answer("7 nothing.invalid 7311").starts_with("7 ! "));
    }
}

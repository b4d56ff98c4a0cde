//! The harness of the namespace tests: a scenario runs in a process of its own, in a network of its own, within a time of its
//! own, and whatever it started dies with it.

// Each test binary uses its part of it.
#![allow(dead_code)]

pub mod bridge;
pub mod capture;
pub mod census;
pub mod dns;
pub mod ecn;
pub mod flow;
#[cfg(target_arch = "x86_64")]
pub mod intruder;
pub mod lab;
pub mod mroute;
pub mod nft;
pub mod nic;
pub mod pulse;
pub mod relay;
pub mod router;
pub mod stray;
pub mod udp;
pub mod way;
pub mod yard;

// The instruments the demo measures with.
#[path = "../../src/cli/demo/ping.rs"]
pub mod ping;
#[path = "../../src/cli/demo/transfer.rs"]
pub mod transfer;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tieline::sys::netns::{die_with_parent, isolate_at_start};

/// Set in the process that plays a scenario.
const INSIDE: &str = "TIELINE_TEST_INSIDE";

/// Defines a test that plays a scenario: its name, the seconds it may take, and what happens.
#[macro_export]
macro_rules! scenario {
    ($(#[$doc:meta])* $name:ident, $seconds:expr, $story:expr) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            $crate::common::play(stringify!($name), $seconds, || $story);
        }
    };
}

/// One at a time: two would measure each other.
static STAGE: Mutex<()> = Mutex::new(());

/// Until it is dropped nothing else of this file runs.
pub fn alone() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts this test binary again for the one scenario, in a new network namespace and as root over it, and watches the clock.
/// The second time round, tells the story.
pub fn play(name: &str, seconds: u64, story: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return story();
    }
    if let Err(why) = namespaces_and_tun() {
        assert!(std::env::var_os("CI").is_none(), "this machine cannot run {name}: {why}");
        return eprintln!("skipped {name}: {why}");
    }
    let _alone = alone();
    let (output, verdict) = in_time(name, Duration::from_secs(seconds));
    if let Err(why) = verdict {
        panic!("{why}");
    }
    // A misspelt name would run nothing, and pass.
    assert!(output.contains("1 passed"), "{name} did not run");
}

fn in_time(name: &str, patience: Duration) -> (String, Result<(), String>) {
    let output = tempfile::tempfile().unwrap();
    let mut child = test_binary(name, &output).spawn().unwrap();
    let mut text = Vec::new();
    // Said as it comes: some scenarios go on for long.
    let mut follow = || {
        let said = text.len();
        let mut room = [0; 1 << 14];
        while let Ok(length @ 1..) = output.read_at(&mut room, text.len() as u64) {
            text.extend_from_slice(&room[..length]);
        }
        print!("{}", String::from_utf8_lossy(&text[said..]));
    };
    let ended = end_within_meanwhile(&mut child, patience, &mut follow);
    follow();
    let verdict = match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{name} failed: {status}")),
        None => Err(format!("{name} was not over after {patience:?}")),
    };
    (String::from_utf8_lossy(&text).into_owned(), verdict)
}

/// Waits for a process to end by itself; kills it when its time is over.
pub fn end_within(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    end_within_meanwhile(child, patience, || {})
}

fn end_within_meanwhile(child: &mut Child, patience: Duration, mut meanwhile: impl FnMut()) -> Option<ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < patience {
        meanwhile();
        let ended = child.try_wait().unwrap();
        if ended.is_some() {
            return ended;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// Runs a command that says little, within a time.
pub fn output_within(command: &mut Command, patience: Duration) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = end_within(&mut child, patience);
    let output = child.wait_with_output().unwrap();
    assert!(ended.is_some(), "not over after {patience:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn test_binary(name: &str, output: &File) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap());
    isolate_at_start(&mut command).unwrap();
    die_with_parent(&mut command);
    command
}

/// Whether this machine lets us make namespaces and TUN devices; if not, why.
pub fn namespaces_and_tun() -> Result<(), String> {
    let mut probe = Command::new("/proc/self/exe");
    probe.arg("--list").stdout(Stdio::null()).stderr(Stdio::null());
    isolate_at_start(&mut probe).map_err(|e| e.to_string())?;
    probe.status().map_err(|e| format!("making a network namespace: {e}"))?;
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    tun.map(drop).map_err(|e| format!("opening /dev/net/tun: {e}"))
}

/// Ids of the processes a process has started.
pub fn children(id: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    list.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Looks until it is so.
pub fn wait_until(what: &str, patience: Duration, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

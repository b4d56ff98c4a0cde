//! What tests of the edge share: a network of their own. Nothing here is built into the program.

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a network namespace of its own, on a thread of its own. Where that is not allowed it is skipped, but
/// not in CI.
pub(crate) fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        let Err(error) = unshare(CloneFlags::CLONE_NEWNET) else {
            test();
            return true;
        };
        assert!(std::env::var_os("CI").is_none(), "no network namespace: {error}");
        false
    });
    if !ran.join().unwrap() {
        eprintln!("skipped: a network namespace needs root");
    }
}

/// Runs a command that must succeed.
pub(crate) fn shell(command: &str) {
    let status = std::process::Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// What a command prints that must succeed.
pub(crate) fn output(command: &str) -> String {
    let output = std::process::Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

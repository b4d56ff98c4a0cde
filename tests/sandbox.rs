//! What a running link can no longer do, and that it still does all it is for. Each lock alone, then all of them on a real `up`.
//!
//! What each thread may do is decided in `src/sys/sandbox/policy.rs`.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::thread;
use std::time::Duration;

use common::dns::own_files;
use common::lab::{End, Lab, PATIENCE, transfer};
use common::{children, output_within, wait_until};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::{Pid, execv, geteuid};
use serde_json::{Value, json};
use tieline::sys::sandbox::{
    Reach, Role, gain_no_privileges, keep_capabilities, keep_memory_private, restrict_calls, restrict_files,
};

const MB: u64 = 1_000_000;
/// The user that every machine has and nobody is.
const NOBODY: u32 = 65_534;
/// Of the link's own.
const LINK: [Role; 3] = [Role::Control { reads: false }, Role::Egress, Role::Ingress];

/// Runs `work` on a thread that ends with it, and what it was confined to.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn errno<T>(result: io::Result<T>) -> Errno {
    Errno::from_raw(result.err().and_then(|error| error.raw_os_error()).unwrap_or_default())
}

#[test]
fn without_calls_there_is_no_exec_ptrace_file_thread_or_connection() {
    let before = &UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for role in LINK {
        on_a_thread(move || {
            gain_no_privileges().unwrap();
            restrict_calls(role).unwrap();
            assert_eq!(execv(c"/does/not/exist", &[c"x"]), Err(Errno::ENOSYS), "{role:?}");
            assert_eq!(ptrace::attach(Pid::from_raw(i32::MAX)), Err(Errno::ENOSYS), "{role:?}");
            assert_eq!(errno(File::open("/etc/shadow")), Errno::ENOSYS, "{role:?}");
            assert_eq!(errno(fs::metadata("/etc/shadow")), Errno::ENOSYS, "{role:?}");
            assert_eq!(errno(thread::Builder::new().spawn(|| {})), Errno::ENOSYS, "{role:?}");
            assert_eq!(errno(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))), Errno::ENOSYS, "{role:?}");
            assert_eq!(errno(unix_socket()), Errno::ENOSYS, "{role:?}");
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
            assert_eq!(udp.is_ok(), matches!(role, Role::Control { .. }), "{role:?}");
            // That is an ioctl (FIONBIO); of those there is only the one for the carrier.
            assert_eq!(errno(before.set_nonblocking(true)), Errno::ENOSYS, "{role:?}");
            assert_eq!(nix::sys::signal::kill(Pid::this(), None), Err(Errno::ENOSYS), "{role:?}");
        });
    }
}

/// What reads its config again opens files, and that only to read them; landlock says which.
#[test]
fn with_calls_to_read_nothing_can_be_written_or_made() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::write(&key, "a key").unwrap();
    on_a_thread(|| {
        gain_no_privileges().unwrap();
        restrict_calls(Role::Control { reads: true }).unwrap();
        assert_eq!(fs::read_to_string(&key).unwrap(), "a key");
        for denied in [
            File::options().append(true).open(&key).map(drop),
            File::options().read(true).write(true).open(&key).map(drop),
            File::options().write(true).truncate(true).open(&key).map(drop),
            File::create(folder.path().join("new")).map(drop),
            fs::create_dir(folder.path().join("new")),
            fs::rename(&key, folder.path().join("other")),
            fs::set_permissions(&key, Permissions::from_mode(0o644)),
        ] {
            assert_eq!(errno(denied), Errno::ENOSYS);
        }
        assert_eq!(execv(c"/does/not/exist", &[c"x"]), Err(Errno::ENOSYS));
        assert_eq!(errno(thread::Builder::new().spawn(|| {})), Errno::ENOSYS);
    });
    assert_eq!(fs::read_to_string(&key).unwrap(), "a key");
}

fn unix_socket() -> io::Result<()> {
    std::os::unix::net::UnixDatagram::unbound().map(drop)
}

#[test]
fn whoever_looks_names_up_can_read_files_and_run_nothing() {
    on_a_thread(|| {
        gain_no_privileges().unwrap();
        restrict_calls(Role::Names).unwrap();
        assert_eq!(execv(c"/does/not/exist", &[c"x"]), Err(Errno::EPERM));
        assert_eq!(ptrace::attach(Pid::from_raw(i32::MAX)), Err(Errno::EPERM));
        assert_eq!(nix::sys::signal::kill(Pid::this(), None), Err(Errno::EPERM));
        fs::read("/etc/passwd").unwrap();
        thread::spawn(|| {}).join().unwrap();
    });
}

/// Whether this kernel has landlock; in CI it must.
fn has_landlock() -> bool {
    let abi = on_a_thread(|| restrict_files(Reach::Read).unwrap());
    assert!(abi.is_some() || std::env::var_os("CI").is_none(), "this kernel has no landlock");
    abi.is_some()
}

#[test]
fn without_files_nothing_opens_and_only_the_folder_gives_away() {
    if !has_landlock() {
        return eprintln!("skipped: this kernel has no landlock");
    }
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let readable = tempfile::tempdir().unwrap();
    let key = readable.path().join("key");
    fs::write(&key, "").unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("secret"), "").unwrap();
    fs::write(at("socket"), "").unwrap();
    fs::write(other.path().join("socket"), "").unwrap();
    on_a_thread(|| {
        restrict_files(Reach::Link { remove: folder.path(), read: &[readable.path().to_owned()] }).unwrap();
        for denied in [
            File::open("/etc/passwd").map(drop),
            File::open("/etc/shadow").map(drop),
            File::open(at("secret")).map(drop),
            File::create(at("new")).map(drop),
            fs::create_dir(at("new")),
            fs::remove_file(other.path().join("socket")),
            File::options().append(true).open(&key).map(drop),
            File::create(readable.path().join("new")).map(drop),
            fs::remove_file(&key),
        ] {
            assert_eq!(denied.unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
        fs::remove_file(at("socket")).unwrap();
        fs::read(&key).unwrap();
    });
    on_a_thread(|| {
        restrict_files(Reach::Read).unwrap();
        fs::read(at("secret")).unwrap();
        assert_eq!(File::create(at("new")).unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(fs::remove_file(at("secret")).unwrap_err().kind(), ErrorKind::PermissionDenied);
    });
}

#[test]
fn capabilities_are_the_roles_alone() {
    for role in LINK.into_iter().chain([Role::Names]) {
        on_a_thread(move || {
            let had = field(&fs::read_to_string("/proc/thread-self/status").unwrap(), "CapPrm");
            let kept = keep_capabilities(role).unwrap();
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let wanted = if role == (Role::Control { reads: false }) { NET_ADMIN & had } else { 0 };
            assert_eq!(kept, if wanted == 0 { vec![] } else { vec!["net_admin"] });
            for (set, expected) in [("CapPrm", wanted), ("CapEff", wanted), ("CapInh", 0), ("CapAmb", 0)] {
                assert_eq!(field(&status, set), expected, "{set} of {role:?}");
            }
        });
    }
}

const NET_ADMIN: u64 = 1 << 12;

/// A field of /proc/PID/status that is a number, in hex as the capabilities are.
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    u64::from_str_radix(value.split_whitespace().next().unwrap(), 16).unwrap()
}

/// In a process of its own: this would keep the debugger from the test binary.
#[test]
fn memory_is_private() {
    const INSIDE: &str = "TIELINE_TEST_PRIVATE";
    if std::env::var_os(INSIDE).is_some() {
        keep_memory_private().unwrap();
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
        return assert!(!nix::sys::prctl::get_dumpable().unwrap());
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["memory_is_private", "--exact"]).env(INSIDE, "1");
    let output = output_within(&mut command, PATIENCE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What /proc says of each thread of a process, by the thread's name.
fn threads(process: u32) -> Vec<(String, i32, String)> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let task = task.unwrap().path();
        let read = |name| fs::read_to_string(task.join(name)).unwrap();
        let id = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
        threads.push((read("comm").trim().to_owned(), id, read("status")));
    }
    threads.sort();
    threads
}

/// Each thread of a link is confined, and has the capabilities given.
fn assert_confined(end: &End<'_>, control: u64) {
    let threads = threads(end.id());
    let names: Vec<_> = threads.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["tieline", "tieline-egress", "tieline-ingress"]);
    for (name, _, status) in &threads {
        let capabilities = if name == "tieline" { control } else { 0 };
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(field(status, set), capabilities, "{set} of {name}");
        }
        assert_eq!((field(status, "CapInh"), field(status, "CapAmb")), (0, 0), "{name}");
        assert_eq!((field(status, "NoNewPrivs"), field(status, "Seccomp")), (1, 2), "{name}");
    }
}

fn expected(capabilities: &[&str], user: Option<&str>) -> Value {
    let landlock = on_a_thread(|| restrict_files(Reach::Read).unwrap());
    json!({
        "capabilities": capabilities,
        "no_new_privs": true,
        "seccomp": true,
        "landlock": landlock,
        "user": user,
    })
}

scenario!(a_running_link_is_confined_and_says_so, 40, {
    let mut lab = Lab::new();
    lab.right.link = "mtu = 1400\n".into();
    let (left, right) = lab.up();
    assert_confined(&left, NET_ADMIN);
    assert_confined(&right, NET_ADMIN);
    assert_eq!(left.status()["sandbox"], expected(&["net_admin"], None));
    // Also where the MTU is set: what another program changes is restored.
    assert_eq!(right.status()["sandbox"], expected(&["net_admin"], None));
    // What it is kept for happens behind the closed door: the interface takes the MTU that is set at the other end.
    wait_until("the MTU following the peer's", PATIENCE, || lab.left.interface_mtu() == 1400);
    transfer(&lab.left, &lab.right, lab.right.inner[0], 20 * MB, |_| {});
    assert!(!lab.left.log().contains("the sandbox goes without"), "{}", lab.left.log());
    assert!(left.terminate().success() && right.terminate().success());
    assert!(!lab.left.socket().exists() && !lab.right.socket().exists());
});

#[cfg(target_arch = "x86_64")]
scenario!(
    /// What someone gets who has taken over a thread of a running link: nothing. The same calls made by a link without the
    /// sandbox show that they would have worked.
    an_intruder_in_any_thread_can_do_nothing,
    40,
    {
        use common::intruder::Intruder;
        use nix::libc::{AT_FDCWD, O_RDONLY, PTRACE_ATTACH, SYS_execve, SYS_openat, SYS_ptrace, SYS_socket};
        let results = |thread| {
            let intruder = Intruder::into_thread(thread);
            let shadow = intruder.path(c"/etc/shadow");
            let opened = intruder.call(SYS_openat, [AT_FDCWD as u64, shadow, O_RDONLY as u64, 0]);
            let traced = intruder.call(SYS_ptrace, [PTRACE_ATTACH.into(), i32::MAX as u64, 0, 0]);
            let connected = intruder.call(SYS_socket, [1, 1, 0, 0]);
            let program = intruder.path(c"/does/not/exist");
            let run = intruder.call(SYS_execve, [program, 0, 0, 0]);
            [opened, traced, connected, run]
        };
        let mut lab = Lab::new();
        lab.right.arguments = vec!["--no-sandbox"];
        let (left, right) = lab.up();
        for (name, thread, _) in threads(left.id()) {
            // The one that reads the config again may open what landlock leaves it, and that is not this.
            let open = if name == "tieline" { Errno::EACCES } else { Errno::ENOSYS };
            let refused = [open, Errno::ENOSYS, Errno::ENOSYS, Errno::ENOSYS].map(|errno| -i64::from(errno as i32));
            assert_eq!(results(thread), refused, "{name}");
        }
        for (name, thread, _) in threads(right.id()) {
            let [opened, traced, connected, run] = results(thread);
            // Only the machine's own root may read it.
            let refused = -i64::from(Errno::EACCES as i32);
            assert!((opened >= 0 || opened == refused) && connected >= 0, "{name}: {opened} {connected}");
            assert_eq!([traced, run], [-i64::from(Errno::ESRCH as i32), -i64::from(Errno::ENOENT as i32)], "{name}");
        }
        right.wait_for_log(&["--no-sandbox"], PATIENCE);
        assert_eq!(right.status()["sandbox"], Value::Null);
        lab.left.ping_all(lab.right.inner[0]);
    }
);

scenario!(rekeys_and_other_ports_work_in_it, 150, {
    let mut lab = Lab::new();
    lab.left.listen = None;
    lab.right.endpoint = None;
    lab.left.arguments = vec!["--rekey-after", "1"];
    lab.right.arguments = lab.left.arguments.clone();
    let left = lab.left.start();
    // Nothing answers, so it tries another port, after some half a minute.
    let ports = || {
        let sockets = fs::read_to_string(format!("/proc/{}/net/udp6", left.id())).unwrap();
        // Address and port come second; a port has two sockets, one of them its door.
        let ports = sockets.lines().skip(1).map(|socket| socket.split_whitespace().nth(1).unwrap().to_owned());
        ports.collect::<BTreeSet<_>>().len()
    };
    wait_until("another UDP port", Duration::from_secs(90), || ports() > 1);
    assert_confined(&left, NET_ADMIN);
    let right = lab.right.start();
    lab.left.ping(lab.right.inner[0]);
    let epoch = || right.status()["session"]["epoch"].as_u64();
    let before = epoch();
    wait_until("a rekey", PATIENCE, || epoch() > before);
    lab.left.ping_all(lab.right.inner[1]);
});

scenario!(a_name_is_looked_up_by_a_helper_that_ends_with_the_link, 60, {
    let [hosts] = own_files([("/etc/hosts", "")]);
    let mut lab = Lab::new();
    lab.left.named = Some("right.test");
    lab.right.endpoint = None;
    let (left, _right) = (lab.left.start(), lab.right.start());
    left.wait_for_log(&["cannot look up right.test"], PATIENCE);
    fs::write(&hosts, "192.0.2.2 right.test\n").unwrap();
    lab.left.ping(lab.right.inner[0]);

    assert_confined(&left, NET_ADMIN);
    let helpers = children(left.id());
    assert_eq!(helpers.len(), 1);
    let workers = children(helpers[0]);
    assert_eq!(workers.len(), 1);
    let helpers = [helpers, workers].concat();
    for (name, _, status) in helpers.iter().flat_map(|id| threads(*id)) {
        assert_eq!((field(&status, "CapPrm"), field(&status, "CapEff")), (0, 0), "{name}");
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), (1, 2), "{name}");
    }
    let owner = fs::metadata(format!("/proc/{}/task", helpers[0])).unwrap().uid();
    println!("the helper belongs to user {owner}");

    left.kill_9();
    let gone = || helpers.iter().all(|id| !fs::exists(format!("/proc/{id}")).unwrap());
    wait_until("the helpers ending with a killed link", PATIENCE, gone);
    let left = lab.left.start();
    lab.left.ping(lab.right.inner[0]);
    let helper = children(left.id())[0];
    let worker = children(helper)[0];
    assert!(left.terminate().success());
    for id in [helper, worker] {
        assert!(!fs::exists(format!("/proc/{id}")).unwrap(), "a helper outlives a link that ended");
    }
});

scenario!(a_link_runs_as_another_user, 60, {
    if !may_become_nobody() {
        return eprintln!("skipped: this namespace has no user `nobody`");
    }
    let mut lab = Lab::new();
    lab.left.local = "user = \"nobody\"\n".into();
    let folder = lab.left.socket().parent().unwrap().to_owned();
    chown(&folder, Some(NOBODY), None).unwrap();
    let (left, _right) = lab.up();
    for (name, _, status) in threads(left.id()) {
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        let uids: Vec<u32> = uids.split_whitespace().map(|uid| uid.parse().unwrap()).collect();
        assert_eq!(uids, [NOBODY; 4], "{name}");
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        assert_eq!(groups.trim(), "", "{name}");
    }
    assert_confined(&left, NET_ADMIN);
    assert_eq!(left.status()["sandbox"], expected(&["net_admin"], Some("nobody")));
    assert_eq!(fs::metadata(lab.left.socket()).unwrap().uid(), NOBODY);
    wait_until("the MTU following the way", PATIENCE, || lab.left.interface_mtu() == 1440);
    transfer(&lab.right, &lab.left, lab.left.inner[1], 20 * MB, |_| {});
    assert!(left.terminate().success());
    assert!(!lab.left.socket().exists());
});

fn may_become_nobody() -> bool {
    geteuid().is_root() && fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")
}

scenario!(a_user_that_is_none_is_said_and_nothing_is_left, 30, {
    let mut lab = Lab::new();
    lab.left.local = "user = \"nobody-of-that-name\"\n".into();
    let mut left = lab.left.start();
    wait_until("giving up", PATIENCE, || left.has_ended());
    left.wait_for_log(&["no user `nobody-of-that-name`", "[local] user"], PATIENCE);
    assert_eq!(lab.left.interfaces(), ["lo", "left"]);
});

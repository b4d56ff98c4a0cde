//! A name server in a network of the tests, which says what it is told to (RFC 1035 §4), and the files that make a site ask it.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tieline::sys::netns::NetNs;

const TICK: Duration = Duration::from_millis(50);
const A: u16 = 1;
const AAAA: u16 = 28;

/// A running name server; it ends when it is dropped.
pub struct NameServer {
    said: Arc<Mutex<Said>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Said {
    names: BTreeMap<String, Vec<IpAddr>>,
    /// When an address was asked for, and of which family (IPv6 is true).
    asked: Vec<(Instant, bool)>,
    silent: bool,
    /// Names whose own servers are dead.
    dead: Option<String>,
}

impl NameServer {
    /// Answers at port 53 of an address in a network.
    pub fn at(network: &NetNs, address: IpAddr) -> Self {
        let socket = network.run(|| UdpSocket::bind(SocketAddr::new(address, 53))).unwrap().unwrap();
        socket.set_read_timeout(Some(TICK)).unwrap();
        let (said, stop) = (Arc::<Mutex<Said>>::default(), Arc::<AtomicBool>::default());
        let (shared, stopped) = (said.clone(), stop.clone());
        let serve = move || {
            let mut room = [0; 512];
            while !stopped.load(Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut room) else { continue };
                if let Some(answer) = answer(&room[..length], &mut shared.lock().unwrap()) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&answer, from);
                }
            }
        };
        Self { said, stop, thread: Some(thread::spawn(serve)) }
    }

    /// From now on the name has these addresses.
    pub fn says(&self, name: &str, addresses: &[IpAddr]) {
        self.said.lock().unwrap().names.insert(name.to_owned(), addresses.to_vec());
    }

    /// Whether it answers at all.
    pub fn is_silent(&self, silent: bool) {
        self.said.lock().unwrap().silent = silent;
    }

    /// For this name there is no answer, as where the servers it is asked of are dead; for others
    /// there is.
    pub fn does_not_answer_for(&self, name: &str) {
        self.said.lock().unwrap().dead = Some(name.to_owned());
    }

    /// How many times IPv4 and IPv6 addresses were asked for since then.
    pub fn asked(&self, since: Instant) -> [usize; 2] {
        let said = self.said.lock().unwrap();
        [false, true].map(|v6| said.asked.iter().filter(|(at, family)| *at >= since && *family == v6).count())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || thread::panicking(), "the name server broke down");
    }
}

/// The answer to a query with one question; `None` to anything else.
fn answer(query: &[u8], said: &mut Said) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8(query.get(at + 1..at + 1 + length)?.to_vec()).ok()?);
        at += 1 + length;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    if kind == A || kind == AAAA {
        said.asked.push((Instant::now(), kind == AAAA));
    }
    let name = labels.join(".");
    if said.silent || said.dead.as_ref() == Some(&name) {
        return None;
    }
    let known = said.names.get(&name);
    let fits = |address: &&IpAddr| kind == if address.is_ipv4() { A } else { AAAA };
    let addresses: Vec<&IpAddr> = known.into_iter().flatten().filter(fits).collect();
    let code = if known.is_some() { 0 } else { 3 };
    let mut reply = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0];
    reply.extend(question);
    for address in addresses {
        // The name in the question, class IN, no time to live.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 0, 0]);
        match address {
            IpAddr::V4(v4) => reply.extend([&[0, 4][..], &v4.octets()].concat()),
            IpAddr::V6(v6) => reply.extend([&[0, 16][..], &v6.octets()].concat()),
        }
    }
    Some(reply)
}

/// Puts files of our own in the place of the machine's, with these texts, for the calling thread and what it starts from now on. They
/// can be written to.
pub fn own_files<const N: usize>(files: [(&str, &str); N]) -> [tempfile::NamedTempFile; N] {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    files.map(|(path, text)| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        // Whoever looks names up is another user.
        file.as_file().set_permissions(Permissions::from_mode(0o644)).unwrap();
        mount(Some(file.path()), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        file
    })
}

/// Has everything that the calling thread starts from now on ask the name server at `address`, and nobody else.
pub fn ask_only(address: IpAddr) -> [tempfile::NamedTempFile; 3] {
    ask_as(&format!("nameserver {address}\noptions timeout:1 attempts:2\n"))
}

/// The same, with this for a resolv.conf.
pub fn ask_as(resolv_conf: &str) -> [tempfile::NamedTempFile; 3] {
    own_files([
        ("/etc/resolv.conf", resolv_conf),
        ("/etc/nsswitch.conf", "hosts: files dns\npasswd: files\ngroup: files\n"),
        ("/etc/hosts", ""),
    ])
}

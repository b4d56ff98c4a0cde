//! Two sites, a cable between them, and `tieline up` at each.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rtnetlink::LinkUnspec;
use serde_json::Value;
use tieline::keys::{PresharedKey, PublicKey, SecretKey};
use tieline::sys::netlink::Netlink;
use tieline::sys::netns::{NetNs, die_with_parent};

use super::ping::Pinger;
use super::relay::Relay;
use super::router::Router;
use super::transfer::{self, Load, Meter, Tally};
use super::{output_within, wait_until};

/// UDP port of both ends.
pub const PORT: u16 = 7311;
/// How long anything that should happen at once may take on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// The whole of it. The folder goes with it; the networks go with their last process.
pub struct Lab {
    pub left: Site,
    pub right: Site,
}

/// One side: a network, addresses outside and inside the link, keys, and what its config says beyond the usual.
pub struct Site {
    pub name: &'static str,
    pub network: NetNs,
    pub outer: [IpAddr; 2],
    pub inner: [IpAddr; 2],
    pub interface: &'static str,
    pub key: SecretKey,
    /// Config as the tests change it.
    pub peer: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub listen: Option<SocketAddr>,
    pub preshared: Option<PresharedKey>,
    /// Whether its interface has the addresses inside; a bridge's port has none.
    pub addressed: bool,
    /// Lines of `[link]` beyond name and address.
    pub link: String,
    /// Lines of `[local]` beyond key and port.
    pub local: String,
    /// Sections beyond these and `[peer]`.
    pub sections: String,
    /// The other end's host by name, in place of `endpoint`.
    pub named: Option<&'static str>,
    /// Arguments for `up` beyond the config.
    pub arguments: Vec<&'static str>,
    folder: tempfile::TempDir,
}

impl Lab {
    /// Sites that know each other's keys and IPv4 endpoints, nothing running yet.
    pub fn new() -> Self {
        let lab = Self::unconnected();
        lab.lay_cable();
        lab.connect();
        lab
    }

    /// The same with a relay in place of the cable, for now as good as one.
    pub fn over_relay(seed: u64) -> (Self, Relay) {
        let lab = Self::unconnected();
        let relay = Relay::between([&lab.left, &lab.right], seed);
        lab.connect();
        (lab, relay)
    }

    /// The same with a router in place of the cable, and each site in a network of its own.
    pub fn over_router() -> (Self, Router) {
        let mut lab = Self::unconnected();
        lab.right.outer = ["198.51.100.2".parse().unwrap(), "2001:db8:0:1::2".parse().unwrap()];
        lab.left.endpoint = Some(SocketAddr::new(lab.right.outer[0], PORT));
        let router = Router::between([&lab.left, &lab.right]);
        (lab, router)
    }

    /// The same with nothing between them, nor addresses outside.
    pub fn unconnected() -> Self {
        let key = || SecretKey::generate().unwrap();
        let (left_key, right_key) = (key(), key());
        let (left_public, right_public) = (left_key.public().unwrap(), right_key.public().unwrap());
        Self {
            left: Site::new("left", "tl-left", 1, left_key, right_public),
            right: Site::new("right", "tl-right", 2, right_key, left_public),
        }
    }

    fn lay_cable(&self) {
        self.left.netlink(async |netlink| {
            netlink.create_veth("left", "right").await.unwrap();
            let right = netlink.index("right").await.unwrap();
            netlink.set_netns(right, &self.right.network).await.unwrap();
        });
    }

    /// Gives the sites their addresses outside.
    fn connect(&self) {
        for site in [&self.left, &self.right] {
            site.netlink(async |netlink| {
                let cable = netlink.index(site.name).await.unwrap();
                netlink.add_address(cable, site.outer[0], 24).await.unwrap();
                netlink.add_address(cable, site.outer[1], 64).await.unwrap();
                netlink.set_up(cable).await.unwrap();
                netlink.set_up(netlink.index("lo").await.unwrap()).await.unwrap();
            });
        }
        // The kernel finishes setting up IPv6 on its own time; what a scenario sees should not depend on it.
        self.left.ping(self.right.outer[1]);
        self.right.ping(self.left.outer[1]);
    }

    /// Starts both ends and waits until a ping comes through and both say Up: a ping needs a session, and that is there earlier.
    pub fn up(&self) -> (End<'_>, End<'_>) {
        let (left, right) = (self.left.start(), self.right.start());
        self.right.ping(self.left.inner[0]);
        [&left, &right].into_iter().for_each(|end| end.wait_for_state("up"));
        (left, right)
    }
}

impl Site {
    fn new(name: &'static str, interface: &'static str, host: u8, key: SecretKey, peer: PublicKey) -> Self {
        let ip = |text: String| text.parse::<IpAddr>().unwrap();
        let other = 3 - host;
        Self {
            name,
            network: NetNs::create().unwrap(),
            outer: [ip(format!("192.0.2.{host}")), ip(format!("2001:db8::{host}"))],
            inner: [ip(format!("10.99.0.{host}")), ip(format!("fd99::{host}"))],
            interface,
            key,
            peer,
            endpoint: Some(SocketAddr::new(ip(format!("192.0.2.{other}")), PORT)),
            listen: Some(SocketAddr::new(ip("::".into()), PORT)),
            preshared: None,
            addressed: true,
            link: String::new(),
            local: String::new(),
            sections: String::new(),
            named: None,
            arguments: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Another machine with the same key and addresses inside, as after a VM was cloned; in a
    /// network of its own, where it has no address yet.
    pub fn copy(&self, name: &'static str) -> Site {
        let key = SecretKey::from_bytes(*self.key.as_bytes());
        let mut copy = Self::new(name, self.interface, 2, key, self.peer);
        copy.inner = self.inner;
        copy
    }

    /// Runs `work` in the site's network with a netlink connection.
    pub fn netlink(&self, work: impl AsyncFnOnce(Netlink) + Send) {
        netlink(&self.network, work);
    }

    /// The MTU of the link's interface.
    pub fn interface_mtu(&self) -> u32 {
        let mut mtu = 0;
        self.netlink(async |netlink| {
            let index = netlink.index(self.interface).await.unwrap();
            mtu = netlink.mtu(index).await.unwrap();
        });
        mtu
    }

    /// The MTUs that the link's interface changes to until `over`, each with the time after `since`, looked at every few milliseconds.
    pub fn watch_interface_mtu(&self, since: Instant, over: &AtomicBool) -> Vec<(Duration, u32)> {
        let mut changes = Vec::new();
        self.netlink(async |netlink| {
            let index = netlink.index(self.interface).await.unwrap();
            let mut last = netlink.mtu(index).await.unwrap();
            while !over.load(Relaxed) {
                thread::sleep(Duration::from_millis(5));
                let mtu = netlink.mtu(index).await.unwrap();
                if std::mem::replace(&mut last, mtu) != mtu {
                    changes.push((since.elapsed(), mtu));
                }
            }
        });
        changes
    }

    /// Lets the cable carry packets of so many bytes; to be said at both ends.
    pub fn set_cable_mtu(&self, mtu: u32) {
        self.netlink(async |netlink| {
            let cable = netlink.index(self.name).await.unwrap();
            netlink.set_mtu(cable, mtu).await.unwrap();
        });
    }

    /// Takes an IPv4 address on the cable away and gives another, as a DHCP server may.
    pub fn change_address(&self, from: IpAddr, to: IpAddr) {
        self.netlink(async |netlink| {
            let cable = netlink.index(self.name).await.unwrap();
            netlink.del_address(cable, from, 24).await.unwrap();
            netlink.add_address(cable, to, 24).await.unwrap();
        });
    }

    /// Takes the interface on the cable down, as whoever pulls it out or switches it off.
    pub fn take_cable_down(&self) {
        self.take_down(self.name);
    }

    /// Takes any interface of the site down.
    pub fn take_down(&self, interface: &str) {
        self.netlink(async |netlink| {
            // What was configured comes back with it, as IPv4 addresses do anyway.
            fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/keep_addr_on_down"), "1").unwrap();
            let cable = LinkUnspec::new_with_index(netlink.index(interface).await.unwrap()).down().build();
            let (connection, handle, _unasked_for) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().change(cable).execute().await.unwrap();
        });
    }

    /// And up again.
    pub fn bring_cable_up(&self) {
        self.netlink(async |netlink| netlink.set_up(netlink.index(self.name).await.unwrap()).await.unwrap());
    }

    /// Pings until it is answered, and says how long that took.
    pub fn ping(&self, target: IpAddr) -> Duration {
        self.ping_within(target, PATIENCE)
            .unwrap_or_else(|| panic!("{}: no answer from {target} within {PATIENCE:?}", self.name))
    }

    /// Pings as often as one would by hand; every one must be answered.
    pub fn ping_all(&self, target: IpAddr) {
        let ping = || {
            let mut pinger = Pinger::new(target).unwrap();
            (0..20).filter(|_| pinger.ping(PATIENCE).unwrap().is_none()).count()
        };
        let lost = self.network.run(ping).unwrap();
        assert_eq!(lost, 0, "pings from {} to {target} lost", self.name);
    }

    pub fn ping_within(&self, target: IpAddr, patience: Duration) -> Option<Duration> {
        ping(&self.network, target, patience)
    }

    /// Names of the interfaces there are.
    pub fn interfaces(&self) -> Vec<String> {
        let devices = self.network.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    }

    /// The kernel's routes as /proc shows them: destination, length or mask, interface. Without IPv6's link-local ones, which
    /// come and go with the cable's own business.
    pub fn routes(&self) -> Vec<[String; 3]> {
        let read = |name, columns: [usize; 3]| {
            let table = fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
            let pick = |line: &str| {
                let fields: Vec<_> = line.split_whitespace().collect();
                columns.map(|column| fields[column].to_owned())
            };
            table.lines().map(pick).collect::<Vec<_>>()
        };
        let both = || [read("route", [1, 7, 0]), read("ipv6_route", [0, 1, 9])].concat();
        let mut routes = self.network.run(both).unwrap();
        routes.retain(|[destination, ..]| !destination.starts_with("fe80") && !destination.starts_with("ff"));
        routes.sort();
        routes
    }

    /// The kernel's rules of policy routing, of both families, in words that compare.
    pub fn rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        self.netlink(async |_| {
            let (connection, handle, _unasked_for) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            for family in [rtnetlink::IpVersion::V4, rtnetlink::IpVersion::V6] {
                let mut found = handle.rule().get(family).execute();
                while let Some(rule) = found.try_next().await.unwrap() {
                    rules.push(format!("{rule:?}"));
                }
            }
        });
        rules
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(format!("{}.sock", self.interface))
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join(format!("{}.toml", self.name))
    }

    /// Starts it with these lines in `[link]` in place of its own.
    pub fn start_with(&self, link: &str) -> End<'_> {
        self.write_config_with(link);
        self.start_as_it_is()
    }

    fn write_config(&self) {
        self.write_config_with(&self.link);
    }

    fn write_config_with(&self, link: &str) {
        let key = self.folder.path().join("key");
        if !key.exists() {
            self.key.write_file(&key).unwrap();
        }
        let [inner4, inner6] = self.inner;
        let address = match self.addressed {
            true => format!("address = [\"{inner4}/30\", \"{inner6}/126\"]\n"),
            false => String::new(),
        };
        let mut text =
            format!("[link]\ninterface = \"{}\"\n{address}{}\n[local]\nprivate_key = \"key\"\n", self.interface, link);
        if let Some(listen) = self.listen {
            text += &format!("listen = \"{listen}\"\n");
        }
        text += &self.local;
        text += &format!("[peer]\npublic_key = \"{}\"\n", self.peer);
        if let Some(name) = self.named {
            text += &format!("endpoint = \"{name}:{PORT}\"\n");
        } else if let Some(endpoint) = self.endpoint {
            text += &format!("endpoint = \"{endpoint}\"\n");
        }
        if let Some(preshared) = &self.preshared {
            let psk = self.folder.path().join("psk");
            if !psk.exists() {
                preshared.write_file(&psk).unwrap();
            }
            text += "preshared_key = \"psk\"\n";
        }
        text += &self.sections;
        fs::write(self.config(), text).unwrap();
    }

    /// Puts one part of the config in the place of another, as an editor does: a new file with the old one's name.
    pub fn edit_config(&self, old: &str, new: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert_eq!(text.matches(old).count(), 1, "{old} in\n{text}");
        let beside = self.config().with_extension("new");
        fs::write(&beside, text.replace(old, new)).unwrap();
        fs::rename(beside, self.config()).unwrap();
    }

    /// A `tieline` of this site: in its network, with its folder as run directory, dead when the test is.
    pub fn tieline(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tieline"));
        command.env("TIELINE_RUN_DIR", self.folder.path()).env_remove("TIELINE_LOG").stdin(Stdio::null());
        self.network.enter_at_start(&mut command).unwrap();
        die_with_parent(&mut command);
        command
    }

    /// Starts `tieline up`, without waiting for anything.
    pub fn start(&self) -> End<'_> {
        self.write_config();
        self.start_as_it_is()
    }

    /// The same, with the config that is there.
    pub fn start_as_it_is(&self) -> End<'_> {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let child = self
            .tieline()
            .arg("up")
            .args(&self.arguments)
            .arg(self.config())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        End { site: self, child }
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What every `up` of this site has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What a failed scenario shows of the ends.
        if thread::panicking() {
            eprintln!("── log of {} ──\n{}", self.name, self.log());
        }
    }
}

/// A running `tieline up`.
pub struct End<'a> {
    pub site: &'a Site,
    child: Child,
}

impl End<'_> {
    /// Of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// As a power cut would: no goodbye, nothing undone.
    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// SIGHUP: it reads its config again.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// As a service manager does.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        wait_until("ending on SIGTERM", PATIENCE, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Whether `tieline status` gets an answer.
    pub fn answers(&self) -> bool {
        serde_json::from_slice::<Value>(&self.ask().stdout).is_ok()
    }

    fn ask(&self) -> Output {
        output_within(self.site.tieline().args(["status", "--json"]).arg(self.site.config()), PATIENCE)
    }

    /// `tieline status --json`, and its exit code.
    pub fn status_and_code(&self) -> (Value, i32) {
        let output = self.ask();
        let text = String::from_utf8_lossy(&output.stdout);
        let status = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("status --json: {e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        (status, output.status.code().unwrap())
    }

    pub fn status(&self) -> Value {
        self.status_and_code().0
    }

    /// `tieline status` for people.
    pub fn status_text(&self) -> String {
        let output = output_within(self.site.tieline().arg("status").arg(self.site.config()), PATIENCE);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What it has dropped, by reason; without what the kernel dropped at the interface, whose queue may be full.
    pub fn drops(&self) -> Value {
        let mut drops = self.status()["drops"].take();
        drops.as_object_mut().unwrap().retain(|reason, _| !reason.starts_with("interface_"));
        drops
    }

    pub fn wait_for_state(&self, state: &str) {
        wait_until(&format!("{} being {state}", self.site.name), PATIENCE, || {
            self.answers() && self.status()["state"] == state
        });
    }

    /// Waits until the log has a line with all of these words.
    pub fn wait_for_log(&self, words: &[&str], patience: Duration) {
        let has_all = |line: &str| words.iter().all(|word| line.to_lowercase().contains(word));
        wait_until(&format!("{} logging {words:?}", self.site.name), patience, || self.site.log().lines().any(has_all));
    }
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pings from a network until it is answered, and says how long that took; `None` if it is not within `patience`.
pub fn ping(from: &NetNs, target: IpAddr, patience: Duration) -> Option<Duration> {
    let started = Instant::now();
    let ping = || {
        let mut pinger = Pinger::new(target).unwrap();
        pinger.until_answered(Duration::from_millis(5), || started.elapsed() < patience)
    };
    from.run(ping).unwrap().then(|| started.elapsed())
}

/// Runs `work` in a network with a netlink connection.
pub fn netlink(network: &NetNs, work: impl AsyncFnOnce(Netlink) + Send) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let work = async || work(Netlink::open().unwrap()).await;
    network.run(|| runtime.block_on(work())).unwrap();
}

/// A TCP connection `from` one site `to` an address of the other, hashed at both ends; `meanwhile` happens while it runs.
/// Panics unless every byte arrives.
pub fn transfer(from: &Site, to: &Site, address: IpAddr, bytes: u64, meanwhile: impl FnOnce(&Meter)) -> Tally {
    let received = stream(&from.network, &to.network, address, bytes, meanwhile);
    println!(
        "{} → {address}: {} MB at {:.2} Gbit/s",
        from.name,
        bytes / 1_000_000,
        bytes as f64 * 8e-9 / received.took.as_secs_f64()
    );
    received
}

/// The same between any two networks. The port is one that is free, so that there may be many at once.
pub fn stream(from: &NetNs, to: &NetNs, address: IpAddr, bytes: u64, meanwhile: impl FnOnce(&Meter)) -> Tally {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let outgoing = from.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
    let incoming = listener.accept().unwrap().0;
    let (load, meter) = (Load::Hashed(bytes), Meter::default());
    let (sent, received) = thread::scope(|scope| {
        let sender = scope.spawn(|| meter.guard(transfer::send(&outgoing, load, &meter)));
        let receiver = scope.spawn(|| meter.guard(transfer::receive(&incoming, load, &meter)));
        meanwhile(&meter);
        (sender.join().unwrap(), receiver.join().unwrap())
    });
    let (sent, received) = (sent.unwrap(), received.unwrap());
    assert_eq!(received.bytes, bytes);
    assert_eq!((sent.bytes, sent.sha256), (received.bytes, received.sha256));
    received
}

/// Waits until so many bytes of a running transfer have arrived.
pub fn wait_for_bytes(meter: &Meter, bytes: u64) {
    wait_until(&format!("{bytes} bytes to arrive"), PATIENCE, || {
        assert!(!meter.stop.load(Relaxed), "the transfer failed");
        meter.received.load(Relaxed) >= bytes
    });
}

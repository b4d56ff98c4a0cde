//! A routing daemon over the link: BGP and OSPF (FRR, as Debian has it) move traffic to another line because of the carrier, and back.
//!
//! Their own timers would take 40 s (OSPF) or 180 s (BGP) to notice. `cargo test --test frr -- --nocapture` prints what it took.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::lab::{Lab, PATIENCE, PORT, Site};
use common::nic::disable_offloads;
use common::{nft, wait_until, way};
use nix::unistd::{User, geteuid};
use tieline::sys::netns::die_with_parent;

/// Of the liveness of both ends: the link is down 1.5 s after a cut.
const INTERVAL: Duration = Duration::from_millis(500);
/// What a move may take at most: far from what it takes, and further from what the daemons' own timers would.
const MOVE: Duration = Duration::from_secs(10);
/// What daemons may take to find each other on a busy machine.
const MEETING: Duration = Duration::from_secs(60);

/// Where FRR's daemons are in Debian.
const DAEMONS: &str = "/usr/lib/frr";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A site's number, from its addresses: 1 or 2.
fn number(site: &Site) -> u8 {
    if site.name == "left" { 1 } else { 2 }
}

/// The site on its local network, which the other is to reach.
fn at_home(site: &Site) -> IpAddr {
    ip(&format!("10.{}.0.1", number(site)))
}

/// The site on the other line.
fn on_backup(site: &Site) -> IpAddr {
    ip(&format!("172.16.0.{}", number(site)))
}

/// Whether the daemons can be run here: they become a user of their own. In CI they must be there.
fn can_route() -> bool {
    let there = ["zebra", "bgpd", "ospfd"].iter().all(|daemon| Path::new(DAEMONS).join(daemon).exists());
    assert!(there || std::env::var_os("CI").is_none(), "this machine has no FRR: apt install frr");
    // In a user namespace there is no other user.
    let every_user = geteuid().is_root() && fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295");
    let can = there && every_user;
    if !can {
        eprintln!("skipped: no FRR here, or no right to run it as its user");
    }
    can
}

/// Two sites with a network behind each, the link between them and another line beside it.
fn sites(carrier: &str) -> Lab {
    let mut lab = Lab::new();
    for site in [&mut lab.left, &mut lab.right] {
        site.link = format!("carrier = \"{carrier}\"\n");
        site.local = format!("[liveness]\ninterval = \"{}ms\"\n", INTERVAL.as_millis());
    }
    lab.left.netlink(async |netlink| {
        netlink.create_veth("backup", "far").await.unwrap();
        let far = netlink.index("far").await.unwrap();
        netlink.set_netns(far, &lab.right.network).await.unwrap();
    });
    for (site, backup) in [(&lab.left, "backup"), (&lab.right, "far")] {
        site.netlink(async |netlink| {
            let backup = netlink.index(backup).await.unwrap();
            netlink.add_address(backup, on_backup(site), 30).await.unwrap();
            netlink.set_up(backup).await.unwrap();
            netlink.create_veth("home", "hosts").await.unwrap();
            let home = netlink.index("home").await.unwrap();
            netlink.add_address(home, at_home(site), 24).await.unwrap();
            netlink.set_up(home).await.unwrap();
            netlink.set_up(netlink.index("hosts").await.unwrap()).await.unwrap();
        });
    }
    lab
}

/// FRR's daemons of one site, in a process namespace of their own: they all end when its first process does, and that with this.
struct Daemons {
    first: Child,
    folder: tempfile::TempDir,
}

impl Daemons {
    /// Starts zebra and `daemon` in the site's network. All they write goes to a folder of their own.
    fn start(site: &Site, daemon: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let user = User::from_name("frr").unwrap().expect("no user frr, but its daemons");
        chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        let at = folder.path().display();
        let options = format!("--vty_socket {at} -z {at}/zebra.api -A 127.0.0.1 -P 0");
        // What they leave there is not for the machine's own.
        let mut script = "mount -t tmpfs tmpfs /var/tmp\n".to_owned();
        for (name, config) in [("zebra", "hostname test\n"), (daemon, config)] {
            fs::write(folder.path().join(format!("{name}.conf")), config).unwrap();
            let own = format!("-i {at}/{name}.pid -f {at}/{name}.conf --log file:{at}/{name}.log");
            script +=
                &format!("{DAEMONS}/{name} {options} {own} &\nwhile [ ! -S {at}/{name}.vty ]; do sleep 0.05; done\n");
        }
        script += "wait\n";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        site.network.enter_at_start(&mut command).unwrap();
        die_with_parent(&mut command);
        Self { first: command.spawn().unwrap(), folder }
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
        if thread::panicking() {
            for log in fs::read_dir(self.folder.path())
                .unwrap()
                .flatten()
                .filter(|file| file.path().extension().is_some_and(|ext| ext == "log"))
            {
                eprintln!("── {} ──\n{}", log.path().display(), fs::read_to_string(log.path()).unwrap_or_default());
            }
        }
    }
}

/// BGP to the other site over both lines, the link being the better one; a broken line shows in 180 s, or by its carrier.
fn bgp(site: &Site, other: &Site) -> String {
    let (own, peer) = (65_000 + u32::from(number(site)), 65_000 + u32::from(number(other)));
    let (link, backup) = (other.inner[0], on_backup(other));
    let neighbor = |address| format!(" neighbor {address} remote-as {peer}\n neighbor {address} timers connect 1\n");
    format!(
        "router bgp {own}\n bgp router-id {home}\n no bgp ebgp-requires-policy\n{}{} address-family ipv4 unicast\n  \
         network 10.{}.0.0/24\n  neighbor {link} weight 200\n  neighbor {backup} weight 100\n exit-address-family\n",
        neighbor(link),
        neighbor(backup),
        number(site),
        home = at_home(site),
    )
}

/// OSPF likewise; a silent neighbour would be missed after 40 s.
fn ospf(site: &Site, _other: &Site) -> String {
    let backup = if site.name == "left" { "backup" } else { "far" };
    let line = |name: &str, cost: u32| {
        format!(
            "interface {name}\n ip ospf network point-to-point\n ip ospf cost {cost}\n ip ospf hello-interval 1\n \
             ip ospf dead-interval 40\n"
        )
    };
    let networks: String = ["10.99.0.0/30", "172.16.0.0/30", &format!("10.{}.0.0/24", number(site))]
        .map(|network| format!(" network {network} area 0\n"))
        .concat();
    let router = format!("router ospf\n ospf router-id {}\n{networks}", at_home(site));
    line(site.interface, 10) + &line(backup, 100) + &router
}

/// Says that it is over, also when what was going on has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sends from one site's network to the other's, a hundred times a second, while `meanwhile` happens; says how long nothing
/// arrived at the longest.
fn longest_gap(from: &Site, to: &Site, meanwhile: impl FnOnce()) -> Duration {
    let bind = |site: &Site| site.network.run(|| UdpSocket::bind((at_home(site), 0))).unwrap().unwrap();
    let (near, far) = (bind(from), bind(to));
    far.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (address, over) = (far.local_addr().unwrap(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                // Between two lines there may be none.
                let _ = near.send_to(&[0; 100], address);
                thread::sleep(Duration::from_millis(10));
            }
        });
        let gaps = scope.spawn(|| {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !over.load(Relaxed) {
                if far.recv(&mut [0; 200]).is_ok() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
            }
            longest.max(last.elapsed())
        });
        let ending = Ending(&over);
        meanwhile();
        thread::sleep(Duration::from_millis(500));
        drop(ending);
        gaps.join().unwrap()
    })
}

/// The traffic between the two sites moves to the other line when the link is cut, and back.
fn traffic_moves(name: &str, daemon: &str, config: fn(&Site, &Site) -> String) {
    let lab = sites("peer");
    let _ends = lab.up();
    let (left, right) = (&lab.left, &lab.right);
    let daemons =
        [Daemons::start(left, daemon, &config(left, right)), Daemons::start(right, daemon, &config(right, left))];
    let places = [(left, at_home(right)), (right, at_home(left))];
    let started = Instant::now();
    // The other line has to be known too, or there is nothing to move to.
    let link = |patience, since| places.map(|(site, place)| way::until(site, place, site.inner[0], since, patience));
    let backup =
        |patience, since| places.map(|(site, place)| way::until(site, place, on_backup(site), since, patience));
    link(MEETING, started);
    println!("{name}: routes over the link after {:.1?}", started.elapsed());
    wait_until("both lines being known", MEETING, || both_lines(&daemons[0], daemon));

    for round in 0..2 {
        let mut moved = [Duration::ZERO; 2];
        let gap = longest_gap(left, right, || {
            let cut = Instant::now();
            left.take_cable_down();
            moved = backup(MOVE, cut);
        });
        println!("{name}, round {round}: moved {moved:.2?} after the cut, nothing arrived for {gap:.2?}");
        assert!(gap < MOVE);
        let mut moved = [Duration::ZERO; 2];
        let gap = longest_gap(left, right, || {
            let mended = Instant::now();
            left.bring_cable_up();
            moved = link(MEETING, mended);
        });
        println!("{name}, round {round}: back {moved:.2?} after the repair, nothing arrived for {gap:.2?}");
        assert!(gap < Duration::from_secs(1), "the way back is no cut");
    }
}

impl Daemons {
    /// What a daemon answers to a command.
    fn ask(&self, daemon: &str, command: &str) -> String {
        let output = Command::new("vtysh")
            .arg("--vty_socket")
            .arg(self.folder.path())
            .args(["-d", daemon, "-c", command])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }
}

/// Whether the daemon knows two ways, by its own account.
fn both_lines(daemons: &Daemons, daemon: &str) -> bool {
    let ask = if daemon == "bgpd" { "show ip bgp 10.2.0.0/24" } else { "show ip ospf neighbor" };
    let text = daemons.ask(daemon, ask);
    match daemon {
        "bgpd" => text.contains("2 available"),
        _ => text.matches("Full").count() == 2,
    }
}

scenario!(bgp_moves_traffic_because_of_the_carrier_and_back, 240, {
    if can_route() {
        traffic_moves("BGP", "bgpd", bgp);
    }
});

scenario!(ospf_moves_traffic_because_of_the_carrier_and_back, 240, {
    if can_route() {
        traffic_moves("OSPF", "ospfd", ospf);
    }
});

/// From now on packets of the link longer than this are dropped before they reach a site, without a word.
fn narrow(site: &Site, longest: usize) {
    let rules = format!(
        "table inet narrow {{
            chain path {{
                type filter hook prerouting priority -300
                udp dport {PORT} meta length > {longest} drop
            }}
        }}"
    );
    nft::load(&site.network, &rules);
}

/// Whether OSPF's neighbour over the link is Full, by the daemon's own account.
fn is_full(daemons: &Daemons, site: &Site) -> bool {
    let text = daemons.ask("ospfd", &format!("show ip ospf neighbor {}", site.interface));
    text.lines().any(|line| line.contains(site.interface) && line.contains("Full/"))
}

scenario!(
    /// OSPF compares MTUs, and starts anew when one changes: with a direction that carries less it finds its neighbour, and when that
    /// direction shrinks further it starts anew once.
    ospf_is_full_though_one_direction_carries_less,
    150,
    {
        if !can_route() || !nft::is_there() {
            return;
        }
        let lab = sites("peer");
        let (left, right) = (&lab.left, &lab.right);
        // As the packet filter looks at what came in one receive.
        [left, right].into_iter().for_each(|site| site.network.run(|| disable_offloads(site.name)).unwrap());
        narrow(right, 1450);
        let _ends = lab.up();
        let both = |mtu| [left, right].map(Site::interface_mtu) == [mtu; 2];
        let daemons = [Daemons::start(left, "ospfd", &ospf(left, right)), Daemons::start(right, "ospfd", &ospf(right, left))];
        let full = || is_full(&daemons[0], left) && is_full(&daemons[1], right);
        wait_until("neighbours that are Full", MEETING, || both(1390) && full());
        let (since, over) = (Instant::now(), AtomicBool::new(false));
        let (changes, seen) = thread::scope(|scope| {
            let watches = [left, right].map(|site| scope.spawn(|| site.watch_interface_mtu(since, &over)));
            let ending = Ending(&over);
            narrow(right, 1400);
            // Large datagrams show that the direction has shrunk; OSPF's own are small.
            let (near, far) = ((at_home(left), 0), (at_home(right), 9));
            let socket = left.network.run(|| UdpSocket::bind(near)).unwrap().unwrap();
            wait_until("one lower MTU at both", PATIENCE, || {
                let _ = socket.send_to(&[0; 1340], far);
                both(1340)
            });
            // Until it has been Full for longer than a daemon takes to notice.
            let (mut seen, mut since) = (Vec::new(), Instant::now());
            wait_until("neighbours that stay Full", MEETING, || {
                seen.push(full());
                since = if seen.ends_with(&[true]) { since } else { Instant::now() };
                since.elapsed() > Duration::from_secs(10)
            });
            drop(ending);
            (watches.map(|watch| watch.join().unwrap()), seen)
        });
        let away = seen.windows(2).filter(|two| two[0] && !two[1]).count();
        let not_full = seen.iter().filter(|full| !**full).count();
        println!("interfaces changed {changes:.2?}; {not_full} of {} looks not Full, {away} times from Full", seen.len());
        assert!(changes.iter().all(|of| of.len() == 1), "{changes:?}");
        assert!(changes[0][0].0.abs_diff(changes[1][0].0) < Duration::from_secs(1), "{changes:?}");
        assert!(away <= 1, "{seen:?}");
    }
);

scenario!(
    /// The proof that it is the carrier: without it traffic stays where it is lost.
    with_carrier_always_nothing_moves,
    120,
    {
        if !can_route() {
            return;
        }
        let lab = sites("always");
        let (left_end, _right_end) = lab.up();
        let (left, right) = (&lab.left, &lab.right);
        let daemons = [Daemons::start(left, "bgpd", &bgp(left, right)), Daemons::start(right, "bgpd", &bgp(right, left))];
        way::until(left, at_home(right), left.inner[0], Instant::now(), MEETING);
        wait_until("both lines being known", MEETING, || both_lines(&daemons[0], "bgpd"));
        left.take_cable_down();
        left_end.wait_for_state("down");
        thread::sleep(Duration::from_secs(5));
        assert_eq!(way::to(left, at_home(right)), Some(left.inner[0]));
    }
);

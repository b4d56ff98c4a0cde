//! What tieline keeps in the kernel: nothing leaves in plain text, what another program removes comes back, several links share a host,
//! and the link's own datagrams enter no link.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PATIENCE, PORT, Site};
use common::router::{Router, Uplink};
use common::stray::{Capture, Strays, printed, sh};
use common::{nft, wait_until};
use tieline::sys::netns::NetNs;

/// Networks behind the left end.
const FAR: [&str; 2] = ["10.50.0.9", "fd50::9"];
const ROUTES: &str = "routes = [\"10.50.0.0/24\", \"fd50::/64\"]\n";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two sites with the internet between them; the right one has routes to what is behind the left.
fn sites(routes: &str) -> (Lab, Router) {
    let (mut lab, router) = Lab::over_router();
    lab.right.link = routes.to_owned();
    for address in FAR {
        sh(&lab.left.network, &format!("ip addr add {address} dev lo"));
    }
    (lab, router)
}

/// Waits until a command prints a line with these words, and says how long that took.
fn comes_back(network: &NetNs, command: &str, words: &str) -> Duration {
    let since = Instant::now();
    let has = |text: String| text.lines().any(|line| words.split(' ').all(|word| line.contains(word)));
    wait_until(&format!("`{words}` in `{command}`"), PATIENCE, || has(printed(network, command)));
    since.elapsed()
}

scenario!(
    /// Before the first start all leaves in plain text; from then on nothing does, until the link is stopped.
    nothing_for_the_link_leaves_in_plain_text_until_it_is_stopped,
    90,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, _router) = sites(ROUTES);
        let network = &lab.right.network;
        let capture = Capture::at(network, &["right"]);
        let [far4, far6] = FAR.map(ip);
        let strays = Strays::from(network, &[far4, far6, lab.left.inner[0], lab.left.inner[1]]);
        wait_until("packets leaving in plain text", PATIENCE, || capture.leaked() > 100);

        let right = lab.right.start();
        wait_until("the link running", PATIENCE, || right.answers());
        let before = capture.leaked();
        let dark = |what: &str| assert_eq!(capture.leaked(), before, "left in plain text: {what}");
        thread::sleep(Duration::from_millis(300));
        dark("before the peer came");
        let left = lab.left.start();
        right.wait_for_state("up");
        wait_until("packets in the link", PATIENCE, || capture.inside() > 100);
        lab.right.ping(far4);
        left.kill_9();
        right.wait_for_state("down");
        thread::sleep(Duration::from_millis(300));
        dark("while the link was down");
        right.kill_9();
        thread::sleep(Duration::from_millis(300));
        dark("after kill -9");
        let kept = printed(network, "ip route show table all type unreachable proto 115 | sort");
        assert_eq!(kept.lines().count(), 4, "{kept}");
        let _left = lab.left.start();
        let right = lab.right.start();
        right.wait_for_state("up");
        lab.right.ping(far4);
        dark("after the next start");
        let adopted = printed(network, "ip route show table all type unreachable proto 115 | sort");
        assert_eq!(adopted, kept, "the next start did not take over what was there");
        assert!(right.terminate().success());
        wait_until("packets leaving in plain text again", PATIENCE, || capture.leaked() > before + 100);
        drop(strays);
        for command in ["ip route show table all proto 115", "ip -6 route show table all proto 115", "ip rule show", "ip -6 rule show"] {
            let left_over = printed(network, command);
            assert!(!left_over.contains("115"), "{command}: {left_over}");
        }
    }
);

scenario!(
    /// A better metric wins, also while the link is up: that is what the operator has set it for.
    the_operators_own_backup_route_is_used_while_the_link_is_down,
    60,
    {
        let (lab, _router) = sites("routes = [\"10.50.0.0/24\"]\nmetric = 10\n");
        sh(&lab.right.network, "ip link add spare type veth peer name far && ip link set spare up && ip link set far up");
        sh(&lab.right.network, "ip addr add 172.16.0.1/24 dev spare && ip route add 10.50.0.0/24 dev spare metric 4000000000");
        let route = "ip route get 10.50.0.9";
        let (left, right) = lab.up();
        comes_back(&lab.right.network, route, "dev tl-right");
        left.kill_9();
        comes_back(&lab.right.network, route, "dev spare");
        right.kill_9();
        assert!(printed(&lab.right.network, route).contains("dev spare"));
    }
);

scenario!(with_fallback_clear_the_machines_other_routes_are_used, 60, {
    let (lab, _router) = sites("routes = [\"10.50.0.0/24\"]\nfallback = \"clear\"\n");
    let right = lab.right.start();
    wait_until("the link running", PATIENCE, || right.answers());
    assert_eq!(printed(&lab.right.network, "ip route show type unreachable"), "");
    assert!(printed(&lab.right.network, "ip route get 10.50.0.9").contains("dev right"));
});

scenario!(
    /// `tieline release` removes what a killed link has left, and leaves a running one alone.
    what_a_killed_link_left_is_released,
    60,
    {
        let (lab, _router) = sites("routes = [\"10.50.0.0/24\", \"0.0.0.0/0\"]\n");
        let right = lab.right.start();
        wait_until("the link running", PATIENCE, || right.answers());
        let release = |code| {
            let output = lab.right.tieline().arg("release").arg(lab.right.config()).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        release(1);
        right.kill_9();
        let removed = release(0);
        for thing in ["unreachable route 10.50.0.0/24", "unreachable route 0.0.0.0/0", "unreachable route 10.99.0.0/30", "IPv4 rule 32700"] {
            assert!(removed.contains(&format!("removed {thing}")), "{removed}");
        }
        for command in ["ip route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule"] {
            assert!(!printed(&lab.right.network, command).contains("proto 115"), "{command}");
        }
        assert!(release(0).contains("nothing is left"));
    }
);

/// What another program may do to the kernel's state, and what is to come back.
const DAMAGES: [(&str, &str, &str); 13] = [
    ("ip rule del pref 32700", "ip rule", "32700: lookup main suppress_prefixlength 0"),
    ("ip -6 rule del pref 32701", "ip -6 rule", "32701: lookup 29457"),
    ("ip rule del pref 32690", "ip rule", "32690: sport 7311 goto 32702"),
    ("ip rule flush; ip rule add pref 32766 lookup main", "ip rule", "32701: lookup 29457"),
    ("ip route flush table 29457", "ip route show table 29457", "default dev tl-right"),
    ("ip route flush table 29457", "ip route show table 29457", "unreachable default"),
    ("ip addr flush dev tl-right", "ip addr show dev tl-right", "inet 10.99.0.2/30"),
    ("ip -6 addr flush dev tl-right", "ip -6 addr show dev tl-right", "inet6 fd99::2/126"),
    ("ip route del 10.50.0.0/24 dev tl-right", "ip route", "10.50.0.0/24 dev tl-right"),
    ("ip route del unreachable 10.50.0.0/24", "ip route", "unreachable 10.50.0.0/24"),
    ("ip link set tl-right group 0", "ip link show dev tl-right", "group 29457"),
    ("ip link set tl-right carrier off", "ip link show dev tl-right", "LOWER_UP"),
    ("ip link set tl-right down; ip link set tl-right up", "ip -6 route", "fd50::/64 dev tl-right"),
];

scenario!(
    /// Each thing that another program removes is there again within a second, and the log says so.
    what_another_program_removes_is_restored,
    120,
    {
        let (lab, _router) = sites("routes = [\"10.50.0.0/24\", \"fd50::/64\", \"0.0.0.0/0\", \"::/0\"]\n");
        let network = &lab.right.network;
        let (_left, right) = lab.up();
        wait_until("the routes", PATIENCE, || printed(network, "ip -6 route").contains("fd50::/64 dev tl-right"));
        let before = |command: &str| printed(network, command);
        let state = || ["ip rule", "ip -6 rule", "ip route", "ip -6 route", "ip route show table 29457"].map(before);
        let whole = state();
        for (damage, command, words) in DAMAGES {
            sh(network, damage);
            let took = comes_back(network, command, words);
            println!("{damage}: back after {:.0} ms", took.as_secs_f64() * 1e3);
            lab.right.ping(ip("10.50.0.9"));
            lab.right.ping(lab.left.inner[1]);
        }
        sh(network, "ip rule add pref 32767 lookup default");
        wait_until("all being as it was", PATIENCE, || state() == whole);
        right.wait_for_log(&["restored", "address 10.99.0.2/30"], PATIENCE);
    }
);

scenario!(
    /// Another program removes whatever it meets, beside traffic: in the end all is there, and the log has a line a second at most.
    a_program_that_removes_at_random_wins_nothing,
    150,
    {
        let seconds = std::env::var("TIELINE_RANDOM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
        let (lab, _router) = sites("routes = [\"10.50.0.0/24\", \"fd50::/64\", \"0.0.0.0/0\", \"::/0\"]\n");
        let network = &lab.right.network;
        sh(network, "ip route add 10.77.0.0/16 via 198.51.100.254; ip rule add pref 100 from 172.16.0.0/12 lookup 7");
        let (_left, right) = lab.up();
        wait_until("the routes", PATIENCE, || printed(network, "ip -6 route").contains("fd50::/64 dev tl-right"));
        let commands = ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all proto 115", "ip -o addr show dev tl-right"];
        let state = || commands.map(|command| {
            // Which link-local address the kernel chooses is its own business.
            let text = printed(network, command);
            let kept = text.lines().filter(|line| !line.contains("fe80"));
            let mut lines: Vec<String> = kept.map(|line| line.trim_end().to_owned()).collect();
            lines.sort();
            lines
        });
        let whole = state();
        let _strays = Strays::from(network, &FAR.map(ip));
        let started = Instant::now();
        let mut random: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut done = 0;
        while started.elapsed() < Duration::from_secs(seconds) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // All but the one that removes the machine's own rules.
            let damage = DAMAGES[(random >> 33) as usize % DAMAGES.len()].0;
            if !damage.contains("flush;") {
                let _ = network.run(|| std::process::Command::new("sh").args(["-c", damage]).output()).unwrap();
                done += 1;
            }
            thread::sleep(Duration::from_millis((random >> 40) % 150));
        }
        println!("{done} things were removed in {seconds} s");
        let deadline = Instant::now() + PATIENCE;
        while state() != whole && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(state(), whole);
        lab.right.ping(ip("10.50.0.9"));
        right.wait_for_state("up");
        let log = lab.right.log();
        let lines = log.lines().filter(|line| line.contains("restored") || line.contains("each time")).count() as u64;
        println!("{lines} lines of the log");
        // The carrier's are the driver's, one a second at most too.
        assert!((1..=2 * (seconds + 2)).contains(&lines), "{lines} lines in {seconds} s\n{log}");
    }
);

/// A second pair of sites whose right end is on the same machine as the first one's.
fn beside(lab: &Lab, router: &Router, n: u8) -> Lab {
    let mut other = Lab::unconnected();
    other.right.network = lab.right.network.run(|| NetNs::current().unwrap()).unwrap();
    let port = PORT + u16::from(n);
    other.left.name = ["left", "left1", "left2"][usize::from(n)];
    (other.left.interface, other.right.interface) = [("tl-l1", "tl-r1"), ("tl-l2", "tl-r2")][usize::from(n) - 1];
    other.left.outer = [ip(&format!("192.0.{}.1", 2 + n)), ip(&format!("2001:db8:{n}::1"))];
    other.right.outer = lab.right.outer;
    for (site, host) in [(&mut other.left, 1), (&mut other.right, 2)] {
        site.inner = [ip(&format!("10.{}.0.{host}", 99 - n)), ip(&format!("fd9{n}::{host}"))];
        site.listen = Some(SocketAddr::new(ip("::"), port));
    }
    other.left.endpoint = Some(SocketAddr::new(other.right.outer[0], port));
    other.right.endpoint = Some(SocketAddr::new(other.left.outer[0], port));
    router.plug_in(&other.left, &Uplink { name: other.left.name, own: other.left.outer, metric: 0 });
    for address in FAR {
        sh(&other.left.network, &format!("ip addr add {address} dev lo"));
    }
    other
}

scenario!(
    /// Links with default routes come and go in any order on one machine: what is for them goes by the best one that is up, and never
    /// beside them.
    three_links_with_default_routes_share_a_machine,
    180,
    {
        if !nft::is_there() {
            return;
        }
        let seconds = std::env::var("TIELINE_RANDOM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
        let (lab, router) = sites("");
        let labs = [&lab, &beside(&lab, &router, 1), &beside(&lab, &router, 2)];
        let metrics = [100, 200, 300];
        let capture = Capture::at(&lab.right.network, &["right"]);
        let texts = metrics.map(|metric| format!("routes = [\"0.0.0.0/0\", \"::/0\"]\nmetric = {metric}\n"));
        let sites: Vec<&Site> = labs.iter().map(|lab| &lab.right).collect();
        let _lefts: Vec<End<'_>> = labs.iter().map(|lab| lab.left.start()).collect();
        let start = |n: usize| sites[n].start_with(&texts[n]);
        let mut ends: [Option<End<'_>>; 3] = [Some(start(0)), None, None];
        wait_until("the first link", PATIENCE, || ends[0].as_ref().unwrap().answers());
        let _strays = Strays::from(&lab.right.network, &FAR.map(ip));
        let before = capture.leaked();
        ends[0].as_ref().unwrap().wait_for_state("up");
        lab.right.ping(ip(FAR[0]));
        let started = Instant::now();
        let mut random: u64 = 1;
        while started.elapsed() < Duration::from_secs(seconds) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let n = (random >> 33) as usize % 3;
            let running = ends.iter().flatten().count();
            match ends[n].take() {
                // One stays, or the operator has stopped them all.
                Some(end) if running == 1 => ends[n] = Some(end),
                Some(end) if (random >> 40).is_multiple_of(2) => end.kill_9(),
                Some(end) => assert!(end.terminate().success()),
                None => ends[n] = Some(start(n)),
            }
            assert_eq!(capture.leaked(), before, "left in plain text after link {n} changed");
            thread::sleep(Duration::from_millis((random >> 42) % 400));
        }
        for (n, end) in ends.iter_mut().enumerate() {
            let end = end.get_or_insert_with(|| start(n));
            wait_until("the link running", PATIENCE, || end.answers());
            end.wait_for_state("up");
        }
        // The best one is used, then the next, and each one's own datagrams are past all of them.
        for (n, name) in ["tl-right", "tl-r1", "tl-r2"].into_iter().enumerate() {
            comes_back(&lab.right.network, "ip route get 203.0.113.9", &format!("dev {name}"));
            lab.right.ping(ip(FAR[0]));
            for lab in &labs[n..] {
                lab.right.ping(lab.left.inner[0]);
            }
            if n < 2 {
                assert!(ends[n].take().unwrap().terminate().success());
            }
        }
        assert_eq!(capture.leaked(), before, "left in plain text");
        assert!(ends[2].take().unwrap().terminate().success());
        let rules = printed(&lab.right.network, "ip rule; ip -6 rule; ip route show table 29457");
        assert!(!rules.contains("3270") && !rules.contains("115"), "{rules}");
    }
);

/// Counts the link's own datagrams that enter the link's interface.
fn count_loops(network: &NetNs) {
    nft::load(
        network,
        "table inet looped {
            counter looped {}
            chain leave { type filter hook postrouting priority 300; oifname \"tl-*\" udp sport 7311 counter name looped; }
        }",
    );
}

scenario!(
    /// A route into the link that covers the peer simply works, as one that comes later does.
    a_route_that_covers_the_peer_works,
    90,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, _router) = sites("routes = [\"10.50.0.0/24\", \"192.0.0.0/8\", \"2001:db8::/33\"]\n");
        count_loops(&lab.right.network);
        for v6 in [0, 1] {
            lab.right.endpoint = Some(SocketAddr::new(lab.left.outer[v6], PORT));
            lab.left.endpoint = None;
            let (left, right) = lab.up();
            lab.right.ping(ip(FAR[0]));
            // What is not the link's own goes where the route says.
            comes_back(&lab.right.network, "ip route get 192.0.2.1", "dev tl-right");
            left.kill_9();
            right.wait_for_state("down");
            let left = lab.left.start();
            right.wait_for_state("up");
            lab.right.ping(ip(FAR[0]));
            assert!(right.terminate().success());
            left.kill_9();
            assert_eq!(nft::counted(&lab.right.network, "looped"), 0, "own datagrams in the link");
        }
        // One that a routing daemon learns later.
        lab.right.link = ROUTES.into();
        lab.right.endpoint = Some(SocketAddr::new(lab.left.outer[0], PORT));
        let (_left, right) = lab.up();
        sh(&lab.right.network, "ip route add 192.0.2.0/24 dev tl-right proto bgp");
        comes_back(&lab.right.network, "ip route show table 29458", "192.0.2.1 via 198.51.100.254");
        let early = nft::counted(&lab.right.network, "looped");
        lab.right.ping_all(lab.left.inner[0]);
        right.wait_for_state("up");
        assert_eq!(nft::counted(&lab.right.network, "looped"), early, "own datagrams in the link");
        sh(&lab.right.network, "ip route del 192.0.2.0/24 dev tl-right");
        wait_until("the detour's end", PATIENCE, || printed(&lab.right.network, "ip route show table 29458").is_empty());
        lab.right.ping_all(lab.left.inner[0]);
    }
);

scenario!(
    /// Where there is no other route to the peer nothing is sent into the link, and the log names the route.
    a_route_that_alone_leads_to_the_peer_is_named,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, _router) = sites("routes = [\"192.0.0.0/8\"]\nroutes_follow = false\n");
        count_loops(&lab.right.network);
        sh(&lab.right.network, "ip route del default");
        let right = lab.right.start();
        right.wait_for_log(&["192.0.0.0/8", "no other route"], PATIENCE);
        thread::sleep(Duration::from_millis(500));
        assert_eq!(nft::counted(&lab.right.network, "looped"), 0, "own datagrams in the link");
        sh(&lab.right.network, "ip route add default via 198.51.100.254");
        let _left = lab.left.start();
        right.wait_for_state("up");
    }
);

scenario!(
    /// A firewall that gives each packet another mark, and a strict reverse path filter, change nothing.
    a_firewall_that_changes_marks_is_no_matter,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, _router) = sites("routes = [\"0.0.0.0/0\"]\n");
        count_loops(&lab.right.network);
        nft::load(
            &lab.right.network,
            "table ip marks { chain out { type route hook output priority mangle; meta mark set 0x99\n}\n}",
        );
        sh(&lab.right.network, "for i in all right; do echo 1 > /proc/sys/net/ipv4/conf/$i/rp_filter; done");
        let (_left, right) = lab.up();
        lab.right.ping(ip(FAR[0]));
        lab.right.ping_all(ip(FAR[0]));
        right.wait_for_state("up");
        assert_eq!(nft::counted(&lab.right.network, "looped"), 0, "own datagrams in the link");
    }
);

scenario!(
    /// Rules that come before the link's own may send its datagrams into the link, by their destination or by a mark that a firewall sets.
    /// Nothing is sent there, and the log and the status say what does it, until it ends.
    a_rule_that_leads_the_links_datagrams_into_it_is_named,
    90,
    {
        if !nft::is_there() {
            return;
        }
        // With a carrier that follows the peer, the route would come and go with it.
        let (lab, _router) = sites(&format!("{ROUTES}carrier = \"always\"\n"));
        let network = &lab.right.network;
        count_loops(network);
        nft::load(
            network,
            "table ip marks { chain out { type route hook output priority mangle; udp sport 7311 meta mark set 0x99\n}\n}",
        );
        let (_left, right) = lab.up();
        let peer = lab.left.outer[0].to_string();
        let problem = |right: &End| right.status()["problem"].clone();
        for (rule, words) in [
            (format!("to {peer} lookup 100"), ["0.0.0.0/0 in table 100", &peer]),
            ("fwmark 0x99 lookup 100".into(), ["firewall's mark", &peer]),
        ] {
            lab.right.ping_all(lab.left.inner[0]);
            assert_eq!(problem(&right)["code"], serde_json::Value::Null);
            let before = nft::counted(network, "looped");
            sh(network, &format!("ip route add default dev tl-right table 100; ip rule add pref 100 {rule}"));
            let named = || {
                let found = problem(&right);
                found["code"] == "route-covers-peer" && words.iter().all(|word| found["text"].as_str().unwrap().contains(word))
            };
            wait_until("the problem", PATIENCE, named);
            right.wait_for_log(&words, PATIENCE);
            let sent = nft::counted(network, "looped") - before;
            println!("{rule}: {sent} of the link's own datagrams");
            assert!(sent < 500, "a loop: {sent} datagrams");
            sh(network, &format!("ip rule del pref 100 {rule}; ip route flush table 100"));
            wait_until("no problem", PATIENCE, || problem(&right).is_null());
            right.wait_for_state("up");
        }
    }
);

/// Waits until the interface has its MTU and its addresses, and says how long that took.
fn mtu_comes_back(network: &NetNs, mtu: u32) -> Duration {
    let since = Instant::now();
    let shown = || printed(network, "ip -o link show dev tl-right; ip addr show dev tl-right");
    let all = [format!("mtu {mtu} "), "10.99.0.2/".into(), "fd99::2/".into(), "inet6 fe80:".into()];
    wait_until("the MTU and the addresses", PATIENCE, || {
        let shown = shown();
        all.iter().all(|part| shown.contains(part.as_str()))
    });
    since.elapsed()
}

scenario!(
    /// An MTU that is too small for IPv6, or larger than what the link carries, is taken back, and what the kernel removed with it.
    an_mtu_that_another_program_sets_is_taken_back,
    60,
    {
        for (config, mtu) in [("", 1440), ("mtu = 1400\n", 1400)] {
            let mut lab = Lab::new();
            lab.right.link = format!("{config}routes = [\"fd50::/64\"]\n");
            let (_left, right) = lab.up();
            let network = &lab.right.network;
            mtu_comes_back(network, mtu);
            let mut took = Vec::new();
            for foreign in [1000, 9217, 1300, 576, 65_000] {
                sh(network, &format!("ip link set tl-right mtu {foreign}"));
                took.push(mtu_comes_back(network, mtu));
                comes_back(network, "ip -6 route show", "fd50::/64 dev tl-right");
                lab.right.ping_all(lab.left.inner[0]);
                lab.right.ping_all(lab.left.inner[1]);
            }
            println!("taken back after {took:.3?}");
            assert!(took.iter().min() < Some(&Duration::from_secs(1)), "{took:?}");
            right.wait_for_log(&["restored", &format!("mtu {mtu}")], PATIENCE);
            let words = format!("MTU {mtu}");
            let log = lab.right.log();
            let lines = log.lines().filter(|line| line.contains("restored") && line.contains(&words)).count();
            assert!(lines <= 5 && !log.contains("cannot be set"), "{log}");
            // And back by its own hand: IPv6 is there all the same.
            sh(network, &format!("ip link set tl-right mtu 1000; ip link set tl-right mtu {mtu}"));
            mtu_comes_back(network, mtu);
        }
    }
);

scenario!(
    /// A program that sets another MTU each time is named, and let be until it ends.
    a_fight_for_the_mtu_is_named_and_given_up,
    90,
    {
        let lab = Lab::new();
        let (_left, right) = lab.up();
        let network = &lab.right.network;
        mtu_comes_back(network, 1440);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let ending = Ending(&over);
            scope.spawn(|| {
                lab.right.netlink(async |netlink| {
                    let index = netlink.index("tl-right").await.unwrap();
                    while !over.load(Relaxed) {
                        if netlink.mtu(index).await.unwrap() == 1440 {
                            netlink.set_mtu(index, 1300).await.unwrap();
                        }
                        thread::sleep(Duration::from_millis(5));
                    }
                });
            });
            right.wait_for_log(&["changes mtu 1440 each time it is restored"], PATIENCE);
            thread::sleep(Duration::from_secs(3));
            let log = lab.right.log();
            assert!(log.lines().filter(|line| line.contains("MTU 1440")).count() <= 3, "{log}");
            drop(ending);
        });
        mtu_comes_back(network, 1440);
    }
);

/// Says that it is over, also when what was going on has failed.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

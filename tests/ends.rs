//! Ends that move: addresses, ports and names that change while a link runs, and how long it is out for that.
//!
//! The bounds are the protocol's (docs/PROTOCOL.md §11), and some more for a machine that is busy with something else.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use common::dns::{NameServer, ask_as, ask_only};
use common::lab::{End, Lab, PATIENCE, PORT, Site, transfer, wait_for_bytes};
use common::pulse::Pulse;
use common::router::{Router, SPARE};
use common::{children, nft, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const MB: u64 = 1_000_000;
/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(700);
/// Three checks, 200 ms apart, then the line moves; one second later if they were lost, as beside a transfer on a busy machine they may be.
const MOVE: Duration = Duration::from_millis(1_600);
/// Interval of Reports, by default: what an end that sends nothing else is heard by.
const INTERVAL: Duration = Duration::from_secs(1);
/// An end that hears nothing looks for its peer after half the detection time, …
const SILENCE: Duration = Duration::from_millis(1_500);
/// … and a Knock that is lost is sent again 300 ms later.
const KNOCK: Duration = Duration::from_millis(300);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sites of which the right one is behind a NAT, and calls.
fn behind_nat() -> (Lab, Router) {
    let (mut lab, router) = Lab::over_router();
    router.translate();
    lab.left.endpoint = None;
    (lab, router)
}

scenario!(
    /// A branch behind a NAT, which forgets all about it every ten seconds: a transfer each way goes on.
    a_nat_that_forgets_every_ten_seconds,
    120,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, router) = behind_nat();
        let (left, _right) = lab.up();
        let endpoint = || left.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
        let since = left.status()["since"].clone();
        let pulse = Pulse::of(&lab);
        for n in 0..3 {
            let before = endpoint();
            let begun = Instant::now();
            let gaps = pulse.during(&format!("mapping forgotten, time {n}"), || {
                transfer(&lab.left, &lab.right, lab.right.inner[0], 200 * MB, |meter| {
                    wait_for_bytes(meter, 10 * MB);
                    router.forget();
                    assert!(meter.received.load(Relaxed) < 200 * MB, "the transfer was over already");
                    transfer(&lab.right, &lab.left, lab.left.inner[0], 60 * MB, |_| {});
                });
            });
            assert_ne!(endpoint(), before, "the NAT gave the same port");
            assert!(gaps[0] < MOVE + SLACK, "{gaps:?}");
            assert!(gaps[1] < SLACK, "the way out of the NAT was never closed: {gaps:?}");
            thread::sleep(Duration::from_secs(10).saturating_sub(begun.elapsed()));
        }
        let status = left.status();
        assert_eq!((&status["state"], &status["since"]), (&"up".into(), &since), "it was down meanwhile");
    }
);

scenario!(
    /// The same with nothing to carry: the next Report shows the new port.
    a_nat_that_forgets_an_idle_link,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, router) = behind_nat();
        let (left, _right) = lab.up();
        thread::sleep(INTERVAL);
        let begun = Instant::now();
        router.forget();
        lab.left.ping(lab.right.inner[0]);
        let took = begun.elapsed();
        println!("an idle link was reached again after {:.0} ms", took.as_secs_f64() * 1e3);
        assert!(took < INTERVAL + MOVE + SLACK, "{took:?}");
        assert_eq!(left.status()["state"], "up");
    }
);

scenario!(either_end_gets_another_address, 60, {
    let (lab, router) = Lab::over_router();
    let (left, right) = lab.up();
    let pulse = Pulse::of(&lab);
    let since = [&left, &right].map(|end| end.status()["since"].clone());
    let [old_left, old_right] = [lab.left.outer[0], lab.right.outer[0]];
    let (new_left, new_right) = (ip("192.0.2.77"), ip("198.51.100.88"));
    let moves = [(&lab.left, old_left, new_left), (&lab.right, old_right, new_right), (&lab.left, new_left, old_left)];
    for (site, from, to) in moves {
        let gaps = pulse.during(&format!("{}: {from} → {to}", site.name), || router.readdress(site, from, to));
        assert!(gaps.iter().all(|gap| *gap < MOVE + SLACK), "{gaps:?}");
    }
    let endpoint = |end: &End<'_>| end.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
    assert_eq!(endpoint(&left), SocketAddr::new(new_right, PORT).to_string());
    assert_eq!(endpoint(&right), SocketAddr::new(old_left, PORT).to_string());
    assert_eq!([&left, &right].map(|end| end.status()["since"].clone()), since, "it was down meanwhile");
});

scenario!(
    /// Both at once, and each has the other's new address as its endpoint no more: only the old one of the left, which comes back.
    both_ends_get_another_address_at_once,
    60,
    {
        let (mut lab, router) = Lab::over_router();
        lab.left.endpoint = None;
        let (left, right) = lab.up();
        let pulse = Pulse::of(&lab);
        // The left end comes to another address, and the line with it; its first one is what the right end's config has.
        let (first, second) = (lab.left.outer[0], ip("192.0.2.77"));
        pulse.during("left alone", || router.readdress(&lab.left, first, second));
        let gaps = pulse.during("both at once", || {
            router.readdress(&lab.left, second, first);
            router.readdress(&lab.right, lab.right.outer[0], ip("198.51.100.88"));
        });
        assert!(gaps.iter().all(|gap| *gap < SILENCE + KNOCK + SLACK), "{gaps:?}");
        left.wait_for_state("up");
        right.wait_for_state("up");
    }
);

const NAME: &str = "hq.test";

/// Two sites of which the right one knows the left by its name alone, and the name server it asks. The files last as long as they are
/// held.
fn by_name() -> (Lab, Router, NameServer, [tempfile::NamedTempFile; 3]) {
    let (mut lab, router) = Lab::over_router();
    let gateway = Router::gateway(&lab.right)[0];
    let server = NameServer::at(&router.network, gateway);
    (lab.left.endpoint, lab.right.named) = (None, Some(NAME));
    (lab, router, server, ask_only(gateway))
}

scenario!(
    /// The name has addresses of both families, and a link comes up by either; the dead ones cost nothing.
    addresses_of_both_families_are_tried,
    60,
    {
        let (lab, _router, server, _files) = by_name();
        let dead = [ip("2001:db8:0:f::1"), ip("203.0.113.1")];
        for (n, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let begun = Instant::now();
            server.says(NAME, &[lab.left.outer[n], dead[1 - n]]);
            let left = lab.left.start();
            wait_until("left listening", PATIENCE, || left.answers());
            let started = Instant::now();
            let right = lab.right.start();
            lab.right.ping(lab.left.inner[0]);
            let took = started.elapsed();
            println!("{family} alone works: up after {:.0} ms", took.as_secs_f64() * 1e3);
            assert!(took < KNOCK + SLACK, "{took:?}");
            let asked = server.asked(begun);
            assert!(asked.iter().all(|asked| *asked > 0), "{asked:?}");
            let endpoint = SocketAddr::new(lab.left.outer[n], PORT).to_string();
            assert_eq!(right.status()["peer"]["endpoint"], endpoint);
            left.kill_9();
            right.kill_9();
        }
    }
);

scenario!(
    /// The name has more addresses than are knocked at in one sending, and the last one works.
    all_addresses_of_a_name_are_tried,
    60,
    {
        let (lab, _router, server, _files) = by_name();
        let dead = |n| ip(&format!("203.0.113.{n}"));
        let addresses: Vec<IpAddr> = (1..=7).map(dead).chain([lab.left.outer[0]]).collect();
        server.says(NAME, &addresses);
        let left = lab.left.start();
        wait_until("left listening", PATIENCE, || left.answers());
        let started = Instant::now();
        let _right = lab.right.start();
        lab.right.ping(lab.left.inner[0]);
        let took = started.elapsed();
        println!("the last of eight addresses works: up after {:.0} ms", took.as_secs_f64() * 1e3);
        assert!(took < KNOCK + SLACK, "{took:?}");
    }
);

scenario!(
    /// The servers of one path's name are dead: the C library waits for them for 10 s, and the
    /// other path's name for nobody.
    a_name_with_dead_servers_keeps_no_other_name_waiting,
    60,
    {
        let (mut lab, router) = Lab::over_router();
        let gateway = Router::gateway(&lab.right)[0];
        let server = NameServer::at(&router.network, gateway);
        let _files = ask_as(&format!("nameserver {gateway}\n"));
        server.does_not_answer_for("dead.test");
        server.says(NAME, &[lab.left.outer[0]]);
        (lab.left.endpoint, lab.right.endpoint) = (None, None);
        let path = |name| format!("[[path]]\nname = \"{name}\"\nendpoint = \"{name}:{PORT}\"\n");
        lab.right.sections = path("dead.test") + &path(NAME);
        let left = lab.left.start();
        wait_until("left listening", PATIENCE, || left.answers());
        let started = Instant::now();
        let right = lab.right.start();
        lab.right.ping(lab.left.inner[0]);
        let took = started.elapsed();
        println!("up after {:.0} ms beside a name whose servers are dead", took.as_secs_f64() * 1e3);
        assert!(took < KNOCK + SLACK, "{took:?}");
        let words = ["cannot look up dead.test", "no answer from name server", "port 53"];
        right.wait_for_log(&words, Duration::from_secs(15));
    }
);

scenario!(
    /// Each is said when it comes, however soon after another, and is a problem until there is an
    /// address.
    why_a_name_has_no_address_is_said_with_what_to_do,
    90,
    {
        let (lab, _router, server, files) = by_name();
        let _left = lab.left.start();
        let mode = |mode| files[0].as_file().set_permissions(Permissions::from_mode(mode)).unwrap();
        let right = lab.right.start();
        right.wait_for_log(&["warn", "cannot look up hq.test", "there is no such name (name server"], PATIENCE);
        wait_until("the problem", PATIENCE, || right.status()["problem"]["code"] == "name-unresolved");
        let text = right.status()["problem"]["text"].as_str().unwrap().to_owned();
        assert!(text.contains("hq.test:7311") && text.contains("no such name"), "{text}");
        server.is_silent(true);
        right.wait_for_log(&["warn", "no answer from name server", "port 53"], PATIENCE);
        // Whoever looks names up is nobody, in a namespace that has one.
        let helper = children(right.id())[0];
        if fs::metadata(format!("/proc/{helper}/task")).unwrap().uid() != 0 {
            mode(0o600);
            right.wait_for_log(&["warn", "may not read /etc/resolv.conf", "chmod a+r /etc/resolv.conf"], PATIENCE * 2);
            let text = right.status()["problem"]["text"].as_str().unwrap().to_owned();
            assert!(text.contains("may not read /etc/resolv.conf"), "{text}");
            mode(0o644);
        } else {
            println!("the helper is root here: it may read whatever there is");
        }
        server.is_silent(false);
        server.says(NAME, &[lab.left.outer[0]]);
        right.wait_for_state("up");
        wait_until("the problem's end", PATIENCE, || right.status()["problem"].is_null());
    }
);

scenario!(
    /// Both ends get another address at once, so that neither hears the other: the name alone leads back.
    a_name_moves_in_mid_life,
    90,
    {
        let (lab, router, server, _files) = by_name();
        server.says(NAME, &[lab.left.outer[0]]);
        let (left, right) = lab.up();
        let pulse = Pulse::of(&lab);
        // Answers are not asked for within five seconds of each other.
        thread::sleep(Duration::from_secs(5));
        let (first, second) = (lab.left.outer[0], ip("192.0.2.77"));
        let gaps = pulse.during("the name moves with the end", || {
            server.says(NAME, &[second]);
            router.readdress(&lab.left, first, second);
            router.readdress(&lab.right, lab.right.outer[0], ip("198.51.100.88"));
        });
        assert!(gaps.iter().all(|gap| *gap < SILENCE + KNOCK + SLACK), "{gaps:?}");
        // The name server says so only later, and is out of reach in between: asked every five seconds, after failures too.
        let mut moved = Instant::now();
        let gaps = pulse.during("the name follows ten seconds later", || {
            server.is_silent(true);
            router.readdress(&lab.left, second, first);
            router.readdress(&lab.right, ip("198.51.100.88"), lab.right.outer[0]);
            left.wait_for_state("down");
            thread::sleep(Duration::from_secs(7));
            server.is_silent(false);
            server.says(NAME, &[first]);
            moved = Instant::now();
            wait_until("the link coming back", PATIENCE, || right.status()["state"] == "up");
            println!("back {:.0} ms after the name had moved", moved.elapsed().as_secs_f64() * 1e3);
            assert!(moved.elapsed() < Duration::from_secs(8), "{:?}", moved.elapsed());
        });
        println!("{gaps:?}");
        left.wait_for_state("up");
    }
);

scenario!(
    /// A name server that lies is asked while the line is Up, because nothing came for a moment: nothing moves.
    a_wrong_answer_changes_nothing_while_up,
    60,
    {
        if !nft::is_there() {
            return;
        }
        let (lab, router, server, _files) = by_name();
        server.says(NAME, &[lab.left.outer[0]]);
        let (_left, right) = lab.up();
        let pulse = Pulse::of(&lab);
        thread::sleep(Duration::from_secs(5));
        let before = right.status();
        for addresses in [&[ip("198.51.100.66"), ip("127.0.0.1"), ip("0.0.0.0"), ip("::1"), ip("255.255.255.255")][..], &[]] {
            server.says(NAME, addresses);
            let since = Instant::now();
            pulse.during(&format!("a silence, and then {addresses:?}"), || {
                nft::load(&router.network, "table inet cut { chain each { type filter hook forward priority 1; policy drop; }; }");
                wait_until("the name server being asked", PATIENCE, || server.asked(since)[0] > 0);
                nft::load(&router.network, "delete table inet cut");
            });
            let after = right.status();
            assert_eq!((&after["state"], &after["peer"]), (&before["state"], &before["peer"]));
            thread::sleep(Duration::from_secs(5));
        }
    }
);

scenario!(
    /// The process that looks names up is killed, as the kernel does where memory runs out: the next is there when it is needed.
    a_helper_that_dies_is_replaced,
    60,
    {
        let (lab, router, server, _files) = by_name();
        server.says(NAME, &[lab.left.outer[0]]);
        let (_left, right) = lab.up();
        let pulse = Pulse::of(&lab);
        thread::sleep(Duration::from_secs(5));
        let helper = children(right.id())[0];
        let worker = || children(helper).first().copied();
        let second = ip("192.0.2.77");
        let dead = worker().unwrap();
        kill(Pid::from_raw(dead as i32), Signal::SIGKILL).unwrap();
        wait_until("another", PATIENCE, || worker().is_some_and(|id| id != dead));
        let gaps = pulse.during("the name moves after the helper died", || {
            server.says(NAME, &[second]);
            router.readdress(&lab.left, lab.left.outer[0], second);
            router.readdress(&lab.right, lab.right.outer[0], ip("198.51.100.88"));
        });
        assert!(gaps.iter().all(|gap| *gap < SILENCE + KNOCK + SLACK), "{gaps:?}");
        // In the middle of a question, too.
        let since = Instant::now();
        let dead = worker().unwrap();
        pulse.during("the helper dies while it looks", || {
            thread::sleep(Duration::from_secs(5));
            server.is_silent(true);
            router.readdress(&lab.left, second, lab.left.outer[0]);
            router.readdress(&lab.right, ip("198.51.100.88"), lab.right.outer[0]);
            let asked = Instant::now();
            wait_until("a question", PATIENCE, || server.asked(asked)[0] > 0);
            kill(Pid::from_raw(dead as i32), Signal::SIGKILL).unwrap();
            server.says(NAME, &[lab.left.outer[0]]);
            server.is_silent(false);
        });
        let gap = pulse.gaps(since);
        assert!(gap.iter().all(|gap| *gap < SILENCE + KNOCK + 2 * SLACK), "{gap:?}");
    }
);

/// Counts what leaves a site for the link's port: with the mark and without, by the uplink and by the link itself, and all else that leaves
/// by the uplink but for what is between neighbours.
fn count_what_leaves(site: &Site) {
    let rules = "table inet seen {
        counter marked {}
        counter plain {}
        counter inside {}
        counter leaked {}
        chain out { type filter hook output priority 0;
            udp dport 7311 meta mark 0x7311 counter name marked
            udp dport 7311 meta mark != 0x7311 counter name plain
            udp dport 7311 oifname \"tl-*\" counter name inside
            oifname \"right\" tcp dport > 0 counter name leaked
            oifname \"right\" icmp type echo-request counter name leaked
            oifname \"right\" icmpv6 type echo-request counter name leaked
        }
    }";
    nft::load(&site.network, rules);
}

scenario!(
    /// The routing table sends what is for the peer by another interface; and an end whose peer does not answer opens another port.
    sockets_are_bound_and_marked_also_later_ones,
    150,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = Lab::over_router();
        router.plug_in_spare(&lab.right, lab.left.outer[0]);
        (lab.left.endpoint, lab.right.listen) = (None, None);
        // Only so the link's own process keeps no right for anything else.
        lab.right.link = "mtu = 1400\nroutes_follow = false\n".into();
        let endpoint = |left: &End<'_>| {
            let text = left.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
            text.parse::<SocketAddr>().unwrap()
        };
        let (left, right) = lab.up();
        assert_eq!(endpoint(&left).ip(), ip(SPARE[0]), "as the routing table says");
        left.kill_9();
        right.kill_9();

        lab.right.local = "bind = \"right\"\nfwmark = 0x7311\n".into();
        count_what_leaves(&lab.right);
        let right = lab.right.start();
        let local = || -> BTreeSet<String> {
            let sockets = fs::read_to_string(format!("/proc/{}/net/udp6", right.id())).unwrap();
            sockets.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().to_owned()).collect()
        };
        wait_until("a UDP port", PATIENCE, || !local().is_empty());
        let first = local();
        wait_until("another UDP port", Duration::from_secs(90), || local().difference(&first).count() > 0);
        let left = lab.left.start();
        lab.right.ping(lab.left.inner[0]);
        left.wait_for_state("up");
        let peer = endpoint(&left);
        assert_eq!(peer.ip(), lab.right.outer[0], "not bound to the interface");
        assert!(!first.iter().any(|address| address.ends_with(&format!(":{:04X}", peer.port()))), "by the first port");
        transfer(&lab.left, &lab.right, lab.right.inner[0], 20 * MB, |_| {});
        let counted = |name| nft::counted(&lab.right.network, name);
        assert!(counted("marked") > 0);
        assert_eq!(counted("plain"), 0, "without the mark");
        assert_eq!(right.status()["sandbox"]["capabilities"], serde_json::json!(["net_admin"]));
        drop(right);

        lab.right.local = "bind = \"nothing0\"\n".into();
        let right = lab.right.start();
        right.wait_for_log(&["no interface nothing0", "[local] bind"], PATIENCE);
        wait_until("the link running", PATIENCE, || right.answers());
    }
);

scenario!(
    /// Everything goes into the link but its own datagrams, wherever the peer is; and nothing of it is left.
    the_default_route_goes_into_the_link,
    120,
    {
        if !nft::is_there() {
            return;
        }
        let (mut lab, router) = Lab::over_router();
        lab.right.link = "routes = [\"0.0.0.0/0\", \"::/0\"]\n".into();
        let far = [ip("203.0.113.50"), ip("2001:db8:0:f::50")];
        lab.left.netlink(async |netlink| {
            let lo = netlink.index("lo").await.unwrap();
            netlink.add_address(lo, far[0], 32).await.unwrap();
            netlink.add_address(lo, far[1], 128).await.unwrap();
        });
        // Of IPv6 each table ever used has an entry of the kernel's own for what has no route.
        let routes = || lab.right.routes().into_iter().collect::<BTreeSet<_>>();
        let (rules, before) = (lab.right.rules(), routes());
        assert_eq!(lab.right.ping_within(far[0], Duration::from_millis(300)), None, "reached without the link");
        count_what_leaves(&lab.right);
        let counted = |name| nft::counted(&lab.right.network, name);
        let check = |right: &End<'_>| {
            right.wait_for_state("up");
            let before = counted("leaked");
            for address in far {
                lab.right.ping(address);
                lab.right.ping_all(address);
                transfer(&lab.right, &lab.left, address, 20 * MB, |_| {});
            }
            assert_eq!(counted("leaked"), before, "what is for the link left beside it");
            assert_eq!((counted("plain"), counted("inside")), (0, 0), "its own datagrams went into the link");
            // By way of the uplink, whose routes the mark sees.
            assert_eq!(right.status()["path"]["mtu"], 1440);
            // What the machine has a route of its own for stays.
            lab.right.ping(Router::gateway(&lab.right)[0]);
        };
        let (left, right) = lab.up();
        check(&right);
        assert_eq!(lab.right.rules().len(), rules.len() + 10);

        // Either end moves.
        let pulse = Pulse::of(&lab);
        for (site, to) in [(&lab.left, "192.0.2.77"), (&lab.right, "198.51.100.88")] {
            let gaps = pulse.during(&format!("{} moves", site.name), || router.readdress(site, site.outer[0], ip(to)));
            assert!(gaps.iter().all(|gap| *gap < MOVE + SLACK), "{gaps:?}");
        }
        router.readdress(&lab.left, ip("192.0.2.77"), lab.left.outer[0]);
        pulse.settle();
        router.readdress(&lab.right, ip("198.51.100.88"), lab.right.outer[0]);
        pulse.settle();
        drop(pulse);
        check(&right);

        right.kill_9();
        let unreachable = routes().difference(&before).count();
        assert!(unreachable > 0 && routes().iter().all(|[.., interface]| interface != "tl-right"), "{:?}", routes());
        assert_eq!(lab.right.ping_within(lab.left.outer[0], Duration::from_millis(300)), None, "in plain text");
        let right = lab.right.start();
        lab.right.ping(lab.left.inner[0]);
        check(&right);
        assert_eq!(lab.right.rules().len(), rules.len() + 10, "rules twice");
        assert!(right.terminate().success());
        assert_eq!((lab.right.rules(), routes()), (rules.clone(), before.clone()), "something is left");

        // Nor when it cannot start: here its port is another's.
        let taken = lab.right.network.run(|| std::net::UdpSocket::bind(("::", PORT)).unwrap()).unwrap();
        let mut right = lab.right.start();
        wait_until("giving up", PATIENCE, || right.has_ended());
        right.wait_for_log(&["port 7311 is in use"], PATIENCE);
        assert_eq!((lab.right.rules(), routes()), (rules, before), "something is left");
        drop(taken);
        drop(left);
    }
);

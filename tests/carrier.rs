//! The line tells the truth: carrier, routes, damping and hooks of real ends, and what the kernel's routing makes of it.
//!
//! `cargo test --test carrier -- --nocapture` prints what was measured.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PATIENCE, Site};
use common::{wait_until, way};
use nix::net::if_::InterfaceFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

/// A place that both the link and another way lead to.
const PLACE: &str = "10.50.0.9";
/// This end on the other way.
const BACKUP: &str = "172.16.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn interval(site: &mut Site, interval: &str) {
    // The harness writes what is for [local] in front of [peer].
    site.local = format!("{}\n[liveness]\ninterval = \"{interval}\"\n", site.local);
}

/// Another way to [`PLACE`], worse than the link.
fn lay_backup(site: &Site) {
    site.netlink(async |netlink| {
        netlink.create_veth("backup", "nowhere").await.unwrap();
        let backup = netlink.index("backup").await.unwrap();
        netlink.add_address(backup, ip(BACKUP), 24).await.unwrap();
        netlink.set_up(backup).await.unwrap();
        netlink.set_up(netlink.index("nowhere").await.unwrap()).await.unwrap();
        netlink.add_route(backup, ip("10.50.0.0"), 24, Some(500)).await.unwrap();
    });
}

/// A static route into the link, as the machine's owner would set it beside the config.
fn route_into_link(site: &Site) {
    site.netlink(async |netlink| {
        let link = netlink.index(site.interface).await.unwrap();
        netlink.add_route(link, ip("10.50.0.0"), 24, Some(10)).await.unwrap();
    });
}

/// By which of its addresses the site would send to [`PLACE`] now.
fn way(site: &Site) -> Option<IpAddr> {
    way::to(site, ip(PLACE))
}

/// How long after `since` it does so by this address.
fn until_way(site: &Site, by: IpAddr, since: Instant) -> Duration {
    way::until(site, ip(PLACE), by, since, PATIENCE)
}

/// Whether the site's interface has a carrier.
fn carrier(site: &Site) -> bool {
    let lower_up = InterfaceFlags::IFF_LOWER_UP;
    let look = || nix::ifaddrs::getifaddrs().unwrap().find(|found| found.interface_name == site.interface);
    site.network.run(look).unwrap().is_some_and(|interface| interface.flags.contains(lower_up))
}

scenario!(
    /// The bounds are the ones promised: three intervals and a fifth to lose it, one to have it back.
    a_killed_peer_takes_carrier_and_traffic_away_within_three_intervals_and_brings_them_back_within_one,
    90,
    {
        for (text, interval_ms) in [("1s", 1_000), ("200ms", 200)] {
            let mut lab = Lab::new();
            interval(&mut lab.left, text);
            interval(&mut lab.right, text);
            lay_backup(&lab.left);
            let (left, mut right) = lab.up();
            let (link, backup) = (lab.left.inner[0], ip(BACKUP));
            route_into_link(&lab.left);
            for round in 0..2 {
                until_way(&lab.left, link, Instant::now());
                std::thread::sleep(Duration::from_millis(interval_ms * 2 + 30));
                let killed = Instant::now();
                right.kill_9();
                let lost = until_way(&lab.left, backup, killed);
                assert!(!carrier(&lab.left));
                let restarted = Instant::now();
                right = lab.right.start();
                let back = until_way(&lab.left, link, restarted);
                assert!(carrier(&lab.left));
                println!("interval {text}, round {round}: lost after {lost:.1?}, back {back:.1?} after the restart");
                assert!(lost <= Duration::from_millis(interval_ms * 36 / 10), "{lost:?}");
                assert!(back <= Duration::from_millis(interval_ms.max(1_000)), "{back:?}");
            }
            // Of two ends one has its carrier first, by half a round trip and what else its machine is busy with.
            lab.left.ping(lab.right.inner[0]);
            lab.left.ping_all(lab.right.inner[0]);
            assert_eq!(left.status()["carrier"]["losses"], 2);
        }
    }
);

scenario!(there_is_no_carrier_before_the_peer_and_the_links_own_network_is_not_there, 40, {
    let mut lab = Lab::new();
    interval(&mut lab.left, "200ms");
    lay_backup(&lab.left);
    let left = lab.left.start();
    wait_until("an answer", PATIENCE, || left.answers());
    assert!(lab.left.interfaces().iter().any(|name| name == lab.left.interface));
    assert!(!carrier(&lab.left));
    assert_eq!(left.status()["carrier"]["on"], false);
    assert_eq!(left.status()["carrier"]["follows"], "peer");
    route_into_link(&lab.left);
    assert_eq!(way(&lab.left), Some(ip(BACKUP)));
    // Neither IPv4's nor IPv6's.
    for address in lab.right.inner {
        let to =
            || UdpSocket::bind((if address.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap().connect((address, 9));
        // What stands behind the network says so, and nothing leaves by another route.
        assert_eq!(lab.left.network.run(to).unwrap().unwrap_err().kind(), ErrorKind::HostUnreachable);
    }
    let _right = lab.right.start();
    until_way(&lab.left, lab.left.inner[0], Instant::now());
    assert!(carrier(&lab.left));
    for address in lab.right.inner {
        lab.left.ping(address);
    }
    wait_until("status saying so", PATIENCE, || left.status()["carrier"]["on"] == true);
});

scenario!(a_goodbye_takes_it_away_at_once, 40, {
    let mut lab = Lab::new();
    // Without the goodbye it would be half a minute.
    interval(&mut lab.left, "10s");
    interval(&mut lab.right, "10s");
    lay_backup(&lab.left);
    let (_left, right) = lab.up();
    route_into_link(&lab.left);
    until_way(&lab.left, lab.left.inner[0], Instant::now());
    let asked = Instant::now();
    right.signal(Signal::SIGTERM);
    let lost = until_way(&lab.left, ip(BACKUP), asked);
    println!("{lost:.1?} after SIGTERM at the far end");
    assert!(!carrier(&lab.left));
    assert!(lost < Duration::from_secs(3), "{lost:?}");
});

scenario!(carrier_always_stays, 40, {
    let mut lab = Lab::new();
    lab.left.link = "carrier = \"always\"\nroutes_follow = false\nroutes = [\"10.50.0.0/24\"]\nmetric = 10\n".into();
    lay_backup(&lab.left);
    let left = lab.left.start();
    wait_until("an answer", PATIENCE, || left.answers());
    assert!(carrier(&lab.left));
    assert_eq!(way(&lab.left), Some(lab.left.inner[0]), "routes that do not follow are there from the start");
    let right = lab.right.start();
    left.wait_for_state("up");
    assert!(right.terminate().success());
    left.wait_for_state("down");
    assert!(carrier(&lab.left));
    assert_eq!(way(&lab.left), Some(lab.left.inner[0]));
    let status = left.status();
    assert_eq!((&status["carrier"]["follows"], &status["carrier"]["on"]), (&"always".into(), &true.into()));
    assert_eq!(status["damped"], serde_json::Value::Null);
});

scenario!(what_cannot_be_sent_is_dropped_and_not_kept_for_later, 60, {
    let mut lab = Lab::new();
    interval(&mut lab.left, "200ms");
    interval(&mut lab.right, "200ms");
    let (_left, right) = lab.up();
    let far = lab.right.network.run(|| UdpSocket::bind((lab.right.inner[0], 0))).unwrap().unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let near = lab.left.network.run(|| UdpSocket::bind((lab.left.inner[0], 0))).unwrap().unwrap();
    // Into the link and nowhere else, whatever routing says.
    setsockopt(&near, sockopt::BindToDevice, &lab.left.interface.into()).unwrap();
    let to = far.local_addr().unwrap();
    near.send_to(b"before", to).unwrap();
    let mut bytes = [0; 16];
    assert_eq!(far.recv(&mut bytes).unwrap(), 6);

    right.signal(Signal::SIGSTOP);
    wait_until("carrier going", PATIENCE, || !carrier(&lab.left));
    // The kernel has heard of it by then too.
    std::thread::sleep(Duration::from_millis(50));
    let refused = (0..1_000).filter(|_| near.send_to(b"meanwhile", to).is_err()).count();
    println!("{refused} of 1000 refused, the others dropped");
    right.signal(Signal::SIGCONT);
    wait_until("carrier coming", PATIENCE, || carrier(&lab.left) && carrier(&lab.right));
    wait_until("a datagram leaving", PATIENCE, || near.send_to(b"after", to).is_ok());
    let length = far.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"after", "it was kept");
});

/// The link's routes of IPv4 with their metrics: (network, metric), as /proc has them.
fn link_routes(site: &Site) -> Vec<(String, String)> {
    let table = site.network.run(|| fs::read_to_string("/proc/thread-self/net/route").unwrap()).unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let own = fields.filter(|fields| fields[0] == site.interface && fields[1] != "0000630A");
    own.map(|fields| (fields[1].clone(), fields[6].clone())).collect()
}

scenario!(routes_come_and_go_with_the_link_and_have_their_metric, 60, {
    let mut lab = Lab::new();
    // With a fixed MTU nothing else would need the right to it.
    let routes = "mtu = 1400\nroutes = [\"10.50.0.0/24\", \"10.51.0.0/24\", \"fd50::/64\"]\nmetric = 77\n";
    lab.left.link = routes.into();
    interval(&mut lab.left, "200ms");
    let left = lab.left.start();
    wait_until("an answer", PATIENCE, || left.answers());
    let before = lab.left.routes();
    assert_eq!(link_routes(&lab.left), []);
    assert_eq!(left.status()["sandbox"]["capabilities"], serde_json::json!(["net_admin"]));
    let there = [("0000320A", "77"), ("0000330A", "77")].map(|(to, metric)| (to.to_owned(), metric.to_owned()));
    for round in 0..2 {
        let right = lab.right.start();
        wait_until("the routes coming", PATIENCE, || link_routes(&lab.left) == there);
        wait_until("IPv6's too", PATIENCE, || lab.left.routes().len() == before.len() + 3);
        assert!(right.terminate().success());
        wait_until("the routes going", PATIENCE, || lab.left.routes() == before);
        println!("round {round}: {before:?}");
    }
    left.wait_for_state("down");
    assert!(!lab.left.log().contains("WARN removing"), "{}", lab.left.log());
});

scenario!(a_route_that_cannot_be_set_is_said_at_the_start, 30, {
    let mut lab = Lab::new();
    lab.left.link = "routes = [\"10.50.0.0/24\"]\nmetric = 500\n".into();
    lay_backup(&lab.left);
    let left = lab.left.start();
    let words = ["warn", "10.50.0.0/24 is already routed to backup", "metric 500, proto static", "the *other* end"];
    left.wait_for_log(&words, PATIENCE);
    wait_until("the link running all the same", PATIENCE, || left.answers());
});

scenario!(
    /// Someone else's route is in the way when the link comes up: it is said, tried again, and keeps no other route out.
    a_route_in_the_way_is_said_and_waited_for,
    60,
    {
        let mut lab = Lab::new();
        lab.left.link = "routes = [\"10.50.0.0/24\", \"10.51.0.0/24\"]\nmetric = 500\n".into();
        let left = lab.left.start();
        wait_until("an answer", PATIENCE, || left.answers());
        lay_backup(&lab.left);
        let _right = lab.right.start();
        left.wait_for_log(&["warn", "10.50.0.0/24 is already routed to backup", "without it"], PATIENCE);
        let only = |text: &str| link_routes(&lab.left) == [(text.to_owned(), "500".to_owned())];
        wait_until("the other route", PATIENCE, || only("0000330A"));
        lab.left.netlink(async |netlink| netlink.delete_link("backup").await.unwrap());
        wait_until("both routes", PATIENCE, || link_routes(&lab.left).len() == 2);
        assert_eq!(lab.left.log().matches("is already routed").count(), 1, "{}", lab.left.log());
    }
);

scenario!(a_line_that_comes_and_goes_is_damped_and_says_so, 90, {
    let mut lab = Lab::new();
    interval(&mut lab.left, "200ms");
    interval(&mut lab.right, "200ms");
    lab.left.link = "routes = [\"10.50.0.0/24\"]\n".into();
    let (left, mut right) = lab.up();
    let carrier_status = || left.status()["carrier"].clone();
    for loss in 1..=4 {
        assert!(carrier(&lab.left), "before loss {loss}");
        assert!(right.terminate().success());
        wait_until("carrier going", PATIENCE, || !carrier(&lab.left));
        let status = carrier_status();
        println!("{status}");
        assert_eq!((&status["losses"], &status["wait_s"]), (&loss.into(), &(if loss < 4 { 0.0 } else { 1.0 }).into()));
        right = lab.right.start();
        if loss < 4 {
            wait_until("carrier coming", PATIENCE, || carrier(&lab.left));
            assert_eq!(carrier_status()["left_s"], serde_json::Value::Null);
        }
    }
    left.wait_for_log(&["up with"], PATIENCE);
    let mut seen_waiting = 0;
    wait_until("carrier coming", PATIENCE, || {
        let (status, code) = left.status_and_code();
        let waits = status["state"] == "up" && status["carrier"]["on"] == false;
        // While it is damped no packet passes, and whoever goes by the exit code knows it.
        assert_eq!(waits, status["damped"].is_string(), "{status}");
        let passes = status["state"] == "up" && !waits;
        assert_eq!(code, if passes { 0 } else { 3 }, "{status}");
        if waits && status["carrier"]["left_s"].as_f64().is_some_and(|left| left > 0.0 && left <= 1.0) {
            assert!(!carrier(&lab.left) || left.status()["carrier"]["on"] == true);
            assert!(link_routes(&lab.left).is_empty() || left.status()["carrier"]["on"] == true);
            seen_waiting += 1;
        }
        carrier(&lab.left)
    });
    assert!(seen_waiting > 0, "it never waited");
    left.wait_for_log(&["comes and goes", "stayed for 1s"], PATIENCE);
    left.wait_for_log(&["has stayed up for 1s"], PATIENCE);
    wait_until("the route coming", PATIENCE, || link_routes(&lab.left).len() == 1);
    lab.left.ping_all(lab.right.inner[0]);
    drop(right);
});

/// The right end stops and starts so often that the left one damps the link; gives the right one, which has just started.
fn comes_and_goes<'a>(lab: &'a Lab, left: &End, mut right: End<'a>) -> End<'a> {
    for loss in 1..=6 {
        [left, &right].into_iter().for_each(|end| end.wait_for_state("up"));
        assert!(right.terminate().success());
        wait_until("the loss", PATIENCE, || left.status()["carrier"]["losses"] == loss);
        right = lab.right.start();
    }
    right
}

scenario!(
    /// The right end starts anew each time, so that only the left one knows that the line comes and goes.
    the_far_end_of_a_damped_link_waits_for_it_and_says_so,
    90,
    {
        let mut lab = Lab::new();
        interval(&mut lab.left, "200ms");
        interval(&mut lab.right, "200ms");
        lab.right.link = "routes = [\"10.50.0.0/24\"]\n".into();
        let (left, right) = lab.up();
        let right = comes_and_goes(&lab, &left, right);
        let mut seen_waiting = 0;
        wait_until("carrier coming at both", PATIENCE, || {
            let held = left.answers() && left.status()["damped"].is_string();
            let ends_later = left.status()["carrier"]["left_s"].as_f64().is_some_and(|left| left > 0.5);
            if held && ends_later && right.answers() && right.status()["state"] == "up" {
                let there = carrier(&lab.right) || !link_routes(&lab.right).is_empty();
                let (status, code) = right.status_and_code();
                let text = right.status_text();
                if left.status()["damped"].is_string() {
                    assert!(!there, "packets go into the link, and none comes back: {status}");
                    assert_eq!(code, 3, "{status}");
                    assert_eq!(status["damped"], status["peer"]["damped"], "{status}");
                    assert_eq!(status["carrier"]["losses"], 0, "{status}");
                    assert!(text.contains("the peer holds the link back"), "{text}");
                    seen_waiting += 1;
                }
            }
            carrier(&lab.left) && carrier(&lab.right)
        });
        assert!(seen_waiting > 0, "it never waited");
        right.wait_for_log(&["the peer holds the link back for", "no packets pass"], PATIENCE);
        right.wait_for_log(&["the peer holds the link back no longer"], PATIENCE);
        wait_until("the route coming", PATIENCE, || link_routes(&lab.right).len() == 1);
        lab.left.ping_all(lab.right.inner[0]);
        assert_eq!(right.status_and_code().1, 0);
    }
);

scenario!(
    /// The interface keeps its carrier, but the routes follow the link: while they are away no
    /// packet passes either.
    a_damped_link_whose_routes_alone_follow_it_is_not_up,
    90,
    {
        let mut lab = Lab::new();
        interval(&mut lab.left, "200ms");
        interval(&mut lab.right, "200ms");
        lab.left.link = "carrier = \"always\"\nroutes = [\"10.50.0.0/24\"]\n".into();
        let (left, right) = lab.up();
        let right = comes_and_goes(&lab, &left, right);
        let mut seen_waiting = 0;
        wait_until("the link being up", PATIENCE, || {
            // Looked at first, as the wait may end at any moment.
            let routes = link_routes(&lab.left).len();
            let (status, code) = left.status_and_code();
            if status["state"] == "up" && status["carrier"]["left_s"].is_number() {
                assert!(status["damped"].is_string(), "{status}");
                assert_eq!((code, routes), (3, 0), "{status}");
                seen_waiting += 1;
            }
            code == 0
        });
        assert!(seen_waiting > 0, "it never waited");
        wait_until("the route", PATIENCE, || link_routes(&lab.left).len() == 1);
        drop(right);
    }
);

/// The `[hooks]` of a config: both run this script, which has a folder of its own as `$1`, with a file `told` to write to.
fn hooks(site: &mut Site, script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let argv = format!("[\"/bin/sh\", \"-c\", '''{script}''', \"hook\", \"{}\"]", folder.path().display());
    site.local = format!("{}\n[hooks]\nup = {argv}\ndown = {argv}\n", site.local);
    folder
}

/// What the hooks have written.
fn told(folder: &tempfile::TempDir) -> String {
    fs::read_to_string(folder.path().join("told")).unwrap_or_default()
}

/// Ids of the processes a process has started, and are still there.
fn children(id: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    list.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

scenario!(hooks_run_for_each_turn_of_the_line_and_are_told_about_it, 60, {
    for sandboxed in [true, false] {
        let mut lab = Lab::new();
        interval(&mut lab.left, "200ms");
        interval(&mut lab.right, "200ms");
        lab.left.link = "routes = [\"10.50.0.0/24\"]\n".into();
        if !sandboxed {
            lab.left.arguments = vec!["--no-sandbox"];
        }
        let script = "echo $TIELINE_STATE $TIELINE_REASON $TIELINE_INTERFACE $TIELINE_NAME $TIELINE_PEER >> $1/told; id -u >> $1/told; \
                      env | grep -i -c -e tlsecret -e tlpsk >> $1/told; echo in words";
        let folder = hooks(&mut lab.left, script);
        let left = lab.left.start();
        wait_until("an answer", PATIENCE, || left.answers());
        let me = nix::unistd::getuid().as_raw();
        let mut expected = String::new();
        let mut next = |state: &str, reason: &str| {
            expected += &format!("{state} {reason} tl-left left 192.0.2.2:7311\n{me}\n0\n");
            wait_until(&format!("{expected:?} in {:?}", told(&folder)), PATIENCE, || told(&folder) == expected);
        };
        let right = lab.right.start();
        next("up", "connected");
        left.wait_for_log(&["hook up: in words"], PATIENCE);
        left.wait_for_log(&["hook up done in"], PATIENCE);
        assert!(right.terminate().success());
        next("down", "goodbye");
        let right = lab.right.start();
        next("up", "connected");
        right.kill_9();
        next("down", "silence");
        let _right = lab.right.start();
        next("up", "connected");
        assert_eq!(children(left.id()).len(), usize::from(sandboxed));
        assert!(left.terminate().success());
        assert_eq!(told(&folder).lines().filter(|line| line.starts_with("down closed")).count(), 1, "before `up` ends");
    }
});

scenario!(a_hook_that_hangs_or_fails_is_said_and_keeps_the_link_from_nothing, 90, {
    let mut lab = Lab::new();
    interval(&mut lab.left, "200ms");
    interval(&mut lab.right, "200ms");
    // The first that runs takes far too long; the next ones fail. Never two at once.
    let script = "kill -0 $(cat $1/busy) && echo twice >> $1/told; echo $$ > $1/busy; echo $TIELINE_STATE >> $1/told; \
                  [ -e $1/ran ] || { touch $1/ran; sleep 100; }; exit 5";
    let folder = hooks(&mut lab.left, script);
    let (left, mut right) = lab.up();
    wait_until("the hook", PATIENCE, || told(&folder) == "up\n");
    let started = Instant::now();
    for _ in 0..2 {
        assert!(right.terminate().success());
        wait_until("carrier going", PATIENCE, || !carrier(&lab.left));
        right = lab.right.start();
        wait_until("carrier coming", PATIENCE, || carrier(&lab.left));
    }
    assert!(right.terminate().success());
    wait_until("carrier going", PATIENCE, || !carrier(&lab.left));
    assert_eq!(told(&folder), "up\n", "one at a time");
    left.wait_for_log(&["warn", "hook up failed", "was killed", "30s"], Duration::from_secs(40));
    println!("killed {:.1?} after the line came", started.elapsed());
    left.wait_for_log(&["warn", "hook down failed", "exit status: 5"], PATIENCE);
    assert_eq!(told(&folder), "up\ndown\n", "the latest state wins");
});

scenario!(a_helper_that_dies_takes_no_link_down_and_a_link_that_dies_is_told_of, 60, {
    let mut lab = Lab::new();
    interval(&mut lab.left, "200ms");
    interval(&mut lab.right, "200ms");
    let folder = hooks(&mut lab.left, "echo $TIELINE_STATE $TIELINE_REASON >> $1/told");
    let (left, right) = lab.up();
    wait_until("the hook", PATIENCE, || told(&folder) == "up connected\n");
    // As out of memory, or by someone's mistake.
    left.kill_9();
    wait_until("the last hook", PATIENCE, || told(&folder) == "up connected\ndown died\n");

    let left = lab.left.start();
    wait_until("the hook", PATIENCE, || told(&folder).lines().count() == 3);
    let helper = children(left.id())[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper as i32), Signal::SIGKILL).unwrap();
    left.wait_for_log(&["error", "helper that runs the hooks has ended"], PATIENCE);
    right.wait_for_state("up"); // it is so a Report later
    lab.left.ping_all(lab.right.inner[0]);
    assert!(right.terminate().success());
    wait_until("carrier going", PATIENCE, || !carrier(&lab.left));
    assert_eq!(left.status()["state"], "down");
    let started = Instant::now();
    assert!(left.terminate().success());
    assert!(started.elapsed() < Duration::from_secs(3), "it waited for nobody: {:?}", started.elapsed());
    assert_eq!(told(&folder).lines().count(), 3);
});

scenario!(
    /// A service manager stops all processes of a service at once.
    the_last_hook_runs_although_the_helper_was_told_to_end_too,
    30,
    {
        let mut lab = Lab::new();
        let folder = hooks(&mut lab.left, "echo $TIELINE_STATE $TIELINE_REASON >> $1/told");
        let (left, _right) = lab.up();
        wait_until("the hook", PATIENCE, || told(&folder) == "up connected\n");
        let helper = children(left.id())[0];
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper as i32), Signal::SIGTERM).unwrap();
        assert!(left.terminate().success());
        assert_eq!(told(&folder), "up connected\ndown closed\n");
    }
);

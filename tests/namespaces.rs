//! Two real ends in real network namespaces: what a user would see, and what an attacker on the cable would try.
//!
//! Every scenario makes its own networks and touches nothing of the machine's. Where that is not allowed it is skipped, unless
//! `CI` is set: there it fails.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PATIENCE, PORT, Site, transfer, wait_for_bytes};
use common::udp::RawUdp;
use common::{children, output_within, wait_until};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use tieline::keys::{PresharedKey, SecretKey};

const MB: u64 = 1_000_000;
/// Twice what a restart may take by default, so that a busy machine does not decide.
const RECOVERY: Duration = Duration::from_secs(6);

scenario!(
    /// The harness itself: without a link the cable carries pings and bytes, and there is no other interface.
    the_cable_alone_works,
    20,
    {
        let lab = Lab::new();
        for (from, to) in [(&lab.left, &lab.right), (&lab.right, &lab.left)] {
            for address in to.outer {
                from.ping(address);
                transfer(from, to, address, 20 * MB, |_| {});
            }
            assert_eq!(from.interfaces(), ["lo", from.name]);
        }
    }
);

scenario!(ping_4_and_6_over_4_and_6, 60, {
    for outer in [0, 1] {
        let mut lab = Lab::new();
        lab.left.endpoint = Some(SocketAddr::new(lab.right.outer[outer], PORT));
        lab.right.endpoint = Some(SocketAddr::new(lab.left.outer[outer], PORT));
        let _ends = lab.up();
        for inner in [0, 1] {
            lab.left.ping_all(lab.right.inner[inner]);
            lab.right.ping_all(lab.left.inner[inner]);
        }
    }
});

scenario!(tcp_both_ways_arrives_unchanged, 90, {
    let lab = Lab::new();
    let _ends = lab.up();
    for family in [0, 1] {
        transfer(&lab.left, &lab.right, lab.right.inner[family], 200 * MB, |_| {});
        transfer(&lab.right, &lab.left, lab.left.inner[family], 200 * MB, |_| {});
    }
});

scenario!(each_offload_can_be_missing_at_either_end, 120, {
    // One after the other at one end, whose other has them all; at last none at either.
    let missing = ["vnet_hdr", "tso", "uso", "udp_segment", "udp_gro"];
    let without = |names: &[&'static str]| names.iter().flat_map(|name| ["--without", name]).collect::<Vec<_>>();
    let cases = missing.iter().map(|name| (vec![*name], vec![])).chain([(missing.to_vec(), missing.to_vec())]);
    for (left, right) in cases {
        let mut lab = Lab::new();
        (lab.left.arguments, lab.right.arguments) = (without(&left), without(&right));
        let (end, _other) = lab.up();
        for family in [0, 1] {
            transfer(&lab.left, &lab.right, lab.right.inner[family], 30 * MB, |_| {});
            transfer(&lab.right, &lab.left, lab.left.inner[family], 30 * MB, |_| {});
        }
        let status = end.status();
        for name in missing {
            let implied =
                left.contains(&"vnet_hdr") && matches!(name, "tso" | "uso") || left == ["tso"] && name == "uso";
            let expected = !left.contains(&name) && !implied;
            assert_eq!(status["offloads"][name], expected, "{name} without {left:?}");
        }
    }
});

/// Numbered datagrams each way, one a millisecond, while `meanwhile` happens. Panics unless each arrives, once and in its turn.
fn while_numbered(lab: &Lab, meanwhile: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let bind = |site: &Site| site.network.run(|| UdpSocket::bind((site.inner[0], 0))).unwrap().unwrap();
    let sockets = [bind(&lab.left), bind(&lab.right)];
    sockets[0].connect(sockets[1].local_addr().unwrap()).unwrap();
    sockets[1].connect(sockets[0].local_addr().unwrap()).unwrap();
    let send = |socket: &UdpSocket| {
        let mut number = 0u64;
        while !over.load(Relaxed) {
            socket.send(&number.to_be_bytes()).unwrap();
            number += 1;
            thread::sleep(Duration::from_millis(1));
        }
        number
    };
    let receive = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (mut bytes, mut next) = ([0; 8], 0);
        while socket.recv(&mut bytes).is_ok() || !over.load(Relaxed) {
            assert_eq!(u64::from_be_bytes(bytes), next, "not the datagram that was due");
            next += 1;
        }
        next
    };
    thread::scope(|scope| {
        let senders = sockets.each_ref().map(|socket| scope.spawn(move || send(socket)));
        let receivers = sockets.each_ref().map(|socket| scope.spawn(move || receive(socket)));
        meanwhile();
        over.store(true, Relaxed);
        let sent = senders.map(|sender| sender.join().unwrap());
        let mut received = receivers.map(|receiver| receiver.join().unwrap());
        received.reverse();
        println!("{sent:?} datagrams");
        assert_eq!(sent, received, "datagrams were lost");
    });
}

/// A `tieline rotate` of this site: gives what it says.
fn rotate(site: &Site, arguments: &[&str]) -> String {
    let output = output_within(site.tieline().arg("rotate").args(arguments).arg(site.config()), PATIENCE);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn line_with<'a>(text: &'a str, begin: &str) -> &'a str {
    text.lines().map(str::trim).find(|line| line.starts_with(begin)).unwrap()
}

scenario!(
    /// The steps that `rotate` says, on a link in its sandbox that carries numbered datagrams all the time.
    a_key_is_changed_without_a_cut, 60, {
    let lab = Lab::new();
    let (left, right) = lab.up();
    let old = lab.left.key.public().unwrap();
    while_numbered(&lab, || {
        let steps = rotate(&lab.left, &[]);
        let both = line_with(&steps, "public_key");
        assert!(both.contains(&old.to_string()));
        lab.right.edit_config(&format!("public_key = \"{old}\""), both);
        right.reload();
        right.wait_for_log(&["sighup", "the peer may use the key"], PATIENCE);
        assert_eq!(right.status()["rotation"], "listed");
        lab.left.edit_config("private_key = \"key\"", line_with(&steps, "private_key"));
        left.reload();
        let new = both.rsplit('"').nth(1).unwrap();
        wait_until("the link moving", PATIENCE, || left.status()["local"]["public_key"] == new);
        wait_until("the peer seeing it", PATIENCE, || right.status()["peer"]["public_key"] == new);
        assert_eq!(left.status()["rotation"], "none");
        thread::sleep(Duration::from_millis(300));
        lab.right.edit_config(both, &format!("public_key = \"{new}\""));
        right.reload();
        right.wait_for_log(&["sighup", "is taken no more"], PATIENCE);
        assert_eq!(right.status()["rotation"], "none");
        assert_eq!(right.status()["peer"]["public_keys"], serde_json::json!([new]));
    });
    for (site, end) in [(&lab.left, &left), (&lab.right, &right)] {
        assert_eq!(end.status()["state"], "up");
        let log = site.log();
        assert!(!log.contains("peer gone") && !log.contains("ERROR"), "{log}");
    }
    // The old key opens nothing any more.
    left.kill_9();
    lab.left.edit_config("private_key = \"key.2\"", "private_key = \"key\"");
    let left = lab.left.start_as_it_is();
    let refused = || right.status()["drops"]["unauthentic"].as_u64() > Some(0);
    wait_until("the old key being refused", PATIENCE, refused);
    assert!(lab.left.ping_within(lab.right.inner[0], Duration::from_secs(2)).is_none());
    drop(left);
});

scenario!(a_preshared_key_is_changed_without_a_cut, 60, {
    let mut lab = Lab::new();
    let psk = PresharedKey::generate().unwrap();
    lab.left.preshared = Some(PresharedKey::from_bytes(*psk.as_bytes()).unwrap());
    lab.right.preshared = Some(psk);
    let (left, right) = lab.up();
    while_numbered(&lab, || {
        rotate(&lab.left, &["--psk"]);
        let file = |site: &Site, name: &str| site.config().with_file_name(name);
        fs::copy(file(&lab.left, "psk.2"), file(&lab.right, "psk.2")).unwrap();
        let key = |names: &str| format!("preshared_key = {names}");
        let edits = [
            (&lab.right, &right, "\"psk\"", "[\"psk\", \"psk.2\"]"),
            (&lab.left, &left, "\"psk\"", "[\"psk.2\", \"psk\"]"),
            (&lab.right, &right, "[\"psk\", \"psk.2\"]", "[\"psk.2\", \"psk\"]"),
        ];
        for (site, end, before, after) in edits {
            site.edit_config(&key(before), &key(after));
            end.reload();
            end.wait_for_log(&["sighup", "other preshared keys"], PATIENCE);
        }
        for end in [&left, &right] {
            wait_until("the link moving", PATIENCE, || end.status()["session"]["preshared_key"] == 1);
        }
        thread::sleep(Duration::from_millis(300));
        for (site, end) in [(&lab.right, &right), (&lab.left, &left)] {
            site.edit_config(&key("[\"psk.2\", \"psk\"]"), &key("\"psk.2\""));
            end.reload();
            wait_until("one key", PATIENCE, || end.status()["rotation"] == "none");
        }
    });
    for end in [&left, &right] {
        assert_eq!((&end.status()["state"], &end.status()["session"]["preshared_key"]), (&"up".into(), &1.into()));
    }
});

scenario!(a_wrong_config_at_sighup_changes_nothing_and_is_said, 60, {
    let lab = Lab::new();
    let (left, _right) = lab.up();
    while_numbered(&lab, || {
        let public = format!("public_key = \"{}\"", lab.left.peer);
        lab.left.edit_config(&public, "public_key = \"nonsense\"");
        left.reload();
        left.wait_for_log(&["sighup: the config was not taken"], PATIENCE);
        left.wait_for_log(&["not a tieline key"], PATIENCE);
        lab.left.edit_config("public_key = \"nonsense\"", &public);
        // What is not in the folders that landlock leaves.
        lab.left.edit_config("private_key = \"key\"", "private_key = \"/etc/shadow\"");
        left.reload();
        left.wait_for_log(&["/etc/shadow: cannot read it"], PATIENCE);
        left.wait_for_log(&["note: a running link reads files in"], PATIENCE);
        lab.left.edit_config("private_key = \"/etc/shadow\"", "private_key = \"key\"\nuser = \"nobody\"");
        left.reload();
        left.wait_for_log(&["[local] user", "takes a restart"], PATIENCE);
        assert_eq!(left.status()["state"], "up");
    });
});

scenario!(tcp_both_ways_at_once_arrives_unchanged, 60, {
    let lab = Lab::new();
    let _ends = lab.up();
    thread::scope(|scope| {
        scope.spawn(|| transfer(&lab.left, &lab.right, lab.right.inner[0], 100 * MB, |_| {}));
        scope.spawn(|| transfer(&lab.right, &lab.left, lab.left.inner[0], 100 * MB, |_| {}));
    });
});

scenario!(
    /// As an ssh session: a few bytes at a time, each answered before the next is typed.
    interactive_traffic_is_answered_at_once,
    40,
    {
        let lab = Lab::new();
        let _ends = lab.up();
        let listener = lab.left.network.run(|| TcpListener::bind((lab.left.inner[0], 22))).unwrap().unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut shell = listener.accept().unwrap().0;
                shell.set_nodelay(true).unwrap();
                io::copy(&mut shell.try_clone().unwrap(), &mut shell).unwrap();
            });
            let mut keyboard = lab.right.network.run(connect).unwrap();
            keyboard.set_nodelay(true).unwrap();
            keyboard.set_read_timeout(Some(PATIENCE)).unwrap();
            let started = Instant::now();
            for n in 0..500_usize {
                let typed = junk(1 + n % 40);
                keyboard.write_all(&typed).unwrap();
                let mut echo = vec![0; typed.len()];
                keyboard.read_exact(&mut echo).unwrap();
                assert_eq!(echo, typed);
            }
            println!("an answer takes {:.3} ms", started.elapsed().as_secs_f64() * 1e3 / 500.0);
        });
    }
);

scenario!(datagrams_of_every_size_arrive, 40, {
    let lab = Lab::new();
    let _ends = lab.up();
    for family in [0, 1] {
        let bind = |site: &Site| site.network.run(|| UdpSocket::bind((site.inner[family], 5000))).unwrap().unwrap();
        let (left, right) = (bind(&lab.left), bind(&lab.right));
        left.set_read_timeout(Some(PATIENCE)).unwrap();
        // Up to what fits one frame, and then some that the kernel must cut in pieces first.
        for length in (0..1500).step_by(7).chain([1392, 1393, 1412, 1413, 3000, 9000, 60_000]) {
            let sent = junk(length + 1);
            right.send_to(&sent, left.local_addr().unwrap()).unwrap();
            let mut received = vec![0; 65_536];
            let (length, from) = left.recv_from(&mut received).unwrap();
            assert_eq!((&received[..length], from), (&sent[..], right.local_addr().unwrap()));
        }
    }
});

scenario!(
    /// Only one end knows where the other is, and that one is killed and restarted; then the other.
    either_end_killed_and_restarted_comes_back,
    90,
    {
        let mut lab = Lab::new();
        lab.left.endpoint = None;
        let (left, right) = lab.up();
        right.wait_for_state("up");

        right.kill_9();
        assert_eq!(lab.right.interfaces(), ["lo", "right"], "a TUN goes with its process");
        let right = restart(&lab.right, lab.left.inner[0]);
        left.kill_9();
        let left = restart(&lab.left, lab.right.inner[0]);

        for end in [&left, &right] {
            end.wait_for_state("up");
        }
        transfer(&lab.left, &lab.right, lab.right.inner[0], 10 * MB, |_| {});
    }
);

/// Starts an end again and holds the time until it can reach the other against what is promised.
fn restart(site: &Site, other: IpAddr) -> End<'_> {
    let started = Instant::now();
    let end = site.start();
    site.ping(other);
    let took = started.elapsed();
    println!("{} was back {:.0} ms after its restart", site.name, took.as_secs_f64() * 1e3);
    assert!(took < RECOVERY, "{} took {took:?} to come back", site.name);
    end
}

scenario!(
    /// The second end finds the first listening: the cold connect that is promised to take under 100 ms.
    the_later_end_connects_at_once,
    40,
    {
        let mut lab = Lab::new();
        lab.left.endpoint = None;
        let _left = lab.left.start();
        wait_until("left listening", PATIENCE, || lab.left.socket().exists());
        let started = Instant::now();
        let _right = lab.right.start();
        lab.right.ping(lab.left.inner[0]);
        let took = started.elapsed();
        println!("cold connect in {:.1} ms", took.as_secs_f64() * 1e3);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
);

scenario!(address_changes_during_a_transfer, 60, {
    let mut lab = Lab::new();
    // Only a roaming end may be unknown: the one that stays has no endpoint to fall back to.
    lab.left.endpoint = None;
    let (left, right) = lab.up();
    let before = left.status();
    transfer(&lab.right, &lab.left, lab.left.inner[0], 400 * MB, |meter| {
        wait_for_bytes(meter, 20 * MB);
        lab.right.change_address(lab.right.outer[0], "192.0.2.77".parse().unwrap());
        assert!(meter.received.load(Relaxed) < 400 * MB, "the transfer was over already");
    });
    // The other way the path is pinned to the old local address no longer.
    transfer(&lab.left, &lab.right, lab.right.inner[0], 20 * MB, |_| {});
    let after = left.status();
    assert_eq!(after["peer"]["endpoint"], format!("192.0.2.77:{PORT}"));
    assert!(after["session"]["epoch"].as_u64() >= before["session"]["epoch"].as_u64());
    right.wait_for_state("up");
});

scenario!(both_ends_start_at_once, 60, {
    for _ in 0..3 {
        let lab = Lab::new();
        let (left, right) = lab.up();
        lab.left.ping(lab.right.inner[0]);
        left.wait_for_state("up");
        right.wait_for_state("up");
        wait_until("both having the same session", PATIENCE, || {
            left.status()["session"]["epoch"] == right.status()["session"]["epoch"]
        });
    }
});

scenario!(one_end_without_endpoint_learns_it, 40, {
    let mut lab = Lab::new();
    lab.left.endpoint = None;
    lab.right.listen = None;
    let (left, _right) = lab.up();
    left.wait_for_state("up");
    let endpoint = left.status()["peer"]["endpoint"].as_str().unwrap().to_owned();
    assert!(endpoint.starts_with("192.0.2.2:"), "{endpoint}");
});

scenario!(a_wrong_public_key_keeps_the_link_down_and_is_named, 60, {
    let mut lab = Lab::new();
    lab.left.peer = SecretKey::generate().unwrap().public().unwrap();
    lab.left.endpoint = None;
    let (left, right) = (lab.left.start(), lab.right.start());
    right.wait_for_log(&["public key"], Duration::from_secs(40));
    left.wait_for_log(&["public key", "192.0.2.2"], Duration::from_secs(40));
    assert_stays_down(&lab, [&left, &right]);
});

scenario!(different_preshared_keys_keep_the_link_down_and_are_named, 60, {
    let mut lab = Lab::new();
    lab.left.preshared = Some(PresharedKey::generate().unwrap());
    lab.right.preshared = Some(PresharedKey::generate().unwrap());
    lab.left.endpoint = None;
    let (left, right) = (lab.left.start(), lab.right.start());
    right.wait_for_log(&["preshared key"], Duration::from_secs(40));
    assert_stays_down(&lab, [&left, &right]);
});

fn assert_stays_down(lab: &Lab, ends: [&End<'_>; 2]) {
    assert_eq!(lab.right.ping_within(lab.left.inner[0], Duration::from_secs(2)), None);
    for end in ends {
        let (status, code) = end.status_and_code();
        assert_ne!(status["state"], "up");
        assert_eq!(status["session"], Value::Null, "a missing session is null");
        assert_eq!(code, 3);
    }
}

scenario!(equal_preshared_keys_work, 40, {
    let mut lab = Lab::new();
    let secret = PresharedKey::generate().unwrap();
    lab.right.preshared = Some(PresharedKey::parse(&secret.encode()).unwrap());
    lab.left.preshared = Some(secret);
    let _ends = lab.up();
});

/// Where a datagram's counter stands (docs/PROTOCOL.md §6).
const COUNTER: Range<usize> = 8..16;

scenario!(junk_and_replays_during_a_transfer_change_nothing, 90, {
    let lab = Lab::new();
    let (left, right) = lab.up();
    left.wait_for_state("up");
    let before = left.status();
    let cable = RawUdp::at(&lab.left);
    let forger = RawUdp::at(&lab.right);
    let target = SocketAddr::new(lab.left.outer[0], PORT);
    transfer(&lab.right, &lab.left, lab.left.inner[0], 400 * MB, |meter| {
        wait_for_bytes(meter, 10 * MB);
        let recorded = cable.record(PORT, 500);
        assert_eq!(recorded.len(), 500);
        for (n, datagram) in recorded.iter().enumerate() {
            // As the peer sent it, from the peer's port and from another …
            forger.send(PORT, target, datagram);
            forger.send(4711, target, datagram);
            // … with a counter yet to come, which must not move the window; cut short; and something made up.
            let mut ahead = datagram.clone();
            ahead[COUNTER][0] ^= 1;
            forger.send(PORT, target, &ahead);
            forger.send(4711, target, &datagram[..n % datagram.len().min(40)]);
            forger.send(4711, target, &junk(n % 1400));
        }
        assert!(meter.received.load(Relaxed) < 400 * MB, "the transfer was over already");
    });
    let after = left.status();
    for reason in ["replayed", "unauthentic", "malformed"] {
        let count = |status: &Value| status["drops"][reason].as_u64().unwrap();
        println!("{reason}: {}", count(&after) - count(&before));
        assert!(count(&after) > count(&before), "{reason}: {after}");
    }
    for field in ["/state", "/since", "/peer", "/session/epoch"] {
        assert_eq!(before.pointer(field), after.pointer(field), "{field}");
    }
    right.wait_for_state("up");
});

/// So many bytes that mean nothing; as a datagram it has each message type's first byte in turn.
fn junk(n: usize) -> Vec<u8> {
    (0..n).map(|i| if i == 0 { (n % 8) as u8 } else { (i * n) as u8 }).collect()
}

scenario!(a_rekey_during_a_transfer_goes_unnoticed, 120, {
    let mut lab = Lab::new();
    for site in [&mut lab.left, &mut lab.right] {
        site.arguments = vec!["--rekey-after", "1"];
    }
    let (left, _right) = lab.up();
    left.wait_for_state("up");
    let epoch = || left.status()["session"]["epoch"].as_u64().unwrap();
    let lost = || left.status()["drops"]["no_session"].as_u64().unwrap();
    let lost_before = lost();
    // How long one takes depends on the machine; several in a row meet a rekey a second for certain.
    let across_a_rekey = (0..50).find(|_| {
        let before = epoch();
        transfer(&lab.right, &lab.left, lab.left.inner[0], 100 * MB, |_| {});
        transfer(&lab.left, &lab.right, lab.right.inner[0], 100 * MB, |_| {});
        epoch() > before
    });
    assert_ne!(across_a_rekey, None, "no rekey in a minute");
    assert_eq!(lost(), lost_before);
    left.wait_for_state("up");
});

scenario!(sigterm_leaves_nothing_behind, 40, {
    let lab = Lab::new();
    let routes = [lab.left.routes(), lab.right.routes()];
    let (left, right) = lab.up();
    right.wait_for_state("up");
    assert!(lab.left.socket().exists() && lab.right.socket().exists());
    assert_ne!(lab.left.routes(), routes[0]);

    let started = Instant::now();
    assert!(left.terminate().success());
    assert!(started.elapsed() < Duration::from_secs(2), "ending took {:?}", started.elapsed());
    // The other end hears the goodbye and need not wait for its detection time.
    wait_until("right being down", Duration::from_secs(2), || right.status()["state"] == "down");
    assert!(right.terminate().success());
    for (site, before) in [&lab.left, &lab.right].into_iter().zip(routes) {
        assert_eq!(site.interfaces(), ["lo", site.name]);
        assert_eq!(site.routes(), before);
        assert!(!site.socket().exists());
    }
});

scenario!(a_stale_status_socket_is_replaced_and_a_live_one_is_not, 40, {
    let lab = Lab::new();
    let left = lab.left.start();
    wait_until("left listening", PATIENCE, || lab.left.socket().exists());
    let mut second = lab.left.start();
    wait_until("the second process giving up", PATIENCE, || second.has_ended());
    left.status();
    left.kill_9();
    assert!(lab.left.socket().exists());
    let left = lab.left.start();
    let _right = lab.right.start();
    lab.right.ping(lab.left.inner[0]);
    left.wait_for_state("up");
});

scenario!(status_has_every_field_of_version_1, 40, {
    let lab = Lab::new();
    let (left, _right) = lab.up();
    left.wait_for_state("up");
    // RTT and loss come with the second report.
    wait_until("figures in the status", PATIENCE, || {
        let status = left.status();
        status["path"]["rtt_ms"].is_f64() && status["path"]["tx"]["loss_ratio"].is_f64()
    });
    let (status, code) = left.status_and_code();
    assert_eq!(code, 0);
    assert_eq!(status["version"], 1);
    assert_eq!(status["name"], "left");
    assert_eq!(status["interface"], "tl-left");
    assert_eq!(status["peer"]["public_key"], lab.left.peer.to_string());
    assert_eq!(status["peer"]["endpoint"], format!("192.0.2.2:{PORT}"));
    assert_eq!(status["session"]["post_quantum"], true);
    // 1500 − 20 − 8 − 32
    assert_eq!(status["path"]["mtu"], 1440);
    for field in ["since", "session/noise", "session/cipher"] {
        assert!(at(&status, field).is_string(), "{field}: {status}");
    }
    for field in [
        "session/age_s",
        "path/rtt_ms",
        "path/jitter_ms",
        "path/tx/loss_ratio",
        "path/rx/loss_ratio",
        "path/rx/dropped_ratio",
    ] {
        assert!(at(&status, field).is_f64(), "{field}: {status}");
    }
    for field in ["session/epoch", "path/tx/packets", "path/tx/bytes", "path/rx/packets", "path/rx/bytes"] {
        assert!(at(&status, field).as_u64() > Some(0), "{field}: {status}");
    }
    let link = ["replayed", "unauthentic", "malformed", "no_session", "too_big", "congested", "socket_send"];
    let interface = ["queue", "no_carrier", "down", "invalid", "write", "receive"];
    let interface = interface.map(|reason| format!("interface_{reason}"));
    for reason in link.into_iter().chain(interface.iter().map(String::as_str)) {
        assert!(at(&status, &format!("drops/{reason}")).is_u64(), "{reason}: {status}");
    }
});

fn at<'a>(status: &'a Value, field: &str) -> &'a Value {
    status.pointer(&format!("/{field}")).unwrap_or_else(|| panic!("no {field}: {status}"))
}

scenario!(demo_gives_figures_and_leaves_nothing, 60, {
    let folder = tempfile::tempdir().unwrap();
    let output = output_within(&mut demo(&["--seconds", "2", "--json"], folder.path()), PATIENCE * 2);
    assert_demo_figures(&output);
    assert_nothing_left(folder.path());

    let output = output_within(&mut demo(&["--seconds", "1"], folder.path()), PATIENCE * 2);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("Gbit/s") && table.contains("post-quantum     "), "{table}");
});

scenario!(demo_bench_gives_every_figure_and_leaves_nothing, 60, {
    let folder = tempfile::tempdir().unwrap();
    let output = output_within(&mut demo(&["--bench", "--seconds", "1", "--json"], folder.path()), PATIENCE * 3);
    assert_nothing_left(folder.path());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {words}", output.status);
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{figures:#}");
    let number = |field: &str| at(&figures, field).as_f64().unwrap_or_else(|| panic!("{field}: {figures}"));
    for streams in ["tcp", "tcp_4"] {
        for direction in ["hq_to_branch", "branch_to_hq"] {
            let rate = number(&format!("{streams}/{direction}_gbit_per_s"));
            assert!(rate > 0.001 && rate < 1000.0, "{streams} {direction}");
        }
    }
    // No end of a link spends less than 10 ms or more than an hour on a gigabyte.
    assert!(number("cpu_s_per_gb") > 0.01 && number("cpu_s_per_gb") < 3600.0);
    let (sent, delivered, loss) = (number("udp_64/sent"), number("udp_64/delivered"), number("udp_64/loss_ratio"));
    assert!(delivered > 0.0 && delivered <= sent && (loss - (1.0 - delivered / sent)).abs() < 1e-6);
    // The flood lasts its second or a little longer.
    let rate = number("udp_64/delivered_per_s");
    assert!(rate > 0.0 && rate <= delivered);
    for when in ["idle", "loaded"] {
        let ping = |field| number(&format!("ping/{when}/{field}"));
        assert!(ping("answered") > 0.0 && ping("answered") <= ping("sent"), "{when}");
        assert!(ping("p50_ms") > 0.0 && ping("p50_ms") <= ping("p99_ms"), "{when}");
    }
    assert!(number("connect_ms") > 0.0);
    assert_eq!((&figures["session"]["post_quantum"], &figures["path_mtu"]), (&true.into(), &1440.into()));
});

scenario!(demo_interrupted_leaves_nothing, 60, {
    use nix::sys::signal::{Signal, kill};
    let folder = tempfile::tempdir().unwrap();
    for (signal, arguments) in [(Signal::SIGINT, &["--seconds", "60"][..]), (Signal::SIGTERM, &["--bench"])] {
        let mut demo = demo(arguments, folder.path()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the demo having two ends", PATIENCE, || children(demo.id()).len() == 2);
        let ends = children(demo.id());
        kill(nix::unistd::Pid::from_raw(demo.id() as i32), signal).unwrap();
        wait_until("the demo ending", PATIENCE, || demo.try_wait().unwrap().is_some());
        let output = demo.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{signal}");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("interrupted"), "{words}");
        for id in ends {
            assert!(!Path::new(&format!("/proc/{id}")).exists(), "end {id} still runs");
        }
        assert_nothing_left(folder.path());
    }
});

/// `tieline demo` with its temporary files in a folder of ours.
fn demo(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tieline"));
    command.arg("demo").args(arguments).env("TMPDIR", folder).stdin(Stdio::null());
    tieline::sys::netns::die_with_parent(&mut command);
    command
}

fn assert_demo_figures(output: &Output) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {words}", output.status);
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("{figures:#}");
    assert!(figures["connect_ms"].as_f64() > Some(0.0));
    assert_eq!(figures["ping"]["sent"], figures["ping"]["answered"]);
    assert!(figures["tcp"]["hq_to_branch_gbit_per_s"].as_f64() > Some(0.0));
    assert!(figures["tcp"]["branch_to_hq_gbit_per_s"].as_f64() > Some(0.0));
    assert_eq!(figures["tcp"]["bytes_hashed"], 2 * (128 << 20));
    assert_eq!(figures["session"]["post_quantum"], true);
}

/// No file of the demo's in the folder it was given, and no end still running: their config lay there.
fn assert_nothing_left(folder: &Path) {
    assert_eq!(entries(folder), 0, "the demo left files");
    let name = folder.to_str().unwrap();
    for process in fs::read_dir("/proc").unwrap() {
        let words = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        assert!(!words.contains(name), "still running: {words}");
    }
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

/// Straight from the shell, in no namespace of the harness's: as root it must change nothing of the machine's, as anyone else it
/// works or says what to do.
#[test]
fn demo_runs_as_whoever_runs_the_tests() {
    let _alone = common::alone();
    let folder = tempfile::tempdir().unwrap();
    let interfaces = || fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
    let before = interfaces();
    let output = output_within(&mut demo(&["--seconds", "1", "--json"], folder.path()), PATIENCE * 2);
    assert_eq!((entries(folder.path()), interfaces()), (0, before), "the demo left something");
    match common::namespaces_and_tun() {
        Ok(()) => assert_demo_figures(&output),
        Err(_) => {
            let words = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words}");
            assert!(words.contains("run") && words.contains("as root"), "{words}");
        }
    }
}

/// Someone nobody is: no file or right of this machine is theirs.
const NOBODY: u32 = 65534;

#[test]
fn demo_runs_as_an_ordinary_user_who_may_open_the_tun_device() {
    as_ordinary_user(0o666, |output| assert_demo_figures(&output));
}

#[test]
fn demo_says_what_to_do_where_the_tun_device_may_not_be_opened() {
    as_ordinary_user(0o600, |output| {
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("/dev/net/tun") && words.contains("run the demo as root"), "{words}");
    });
}

/// Runs the demo as an ordinary user who has a /dev/net/tun of their own with this mode. It stands in a mount namespace that
/// only the calling thread and its children see: the machine's own node is not touched.
fn as_ordinary_user(tun_mode: u32, check: impl FnOnce(Output) + Send) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: only root can become somebody else and make a device node");
    }
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    // The build folder may lie where others cannot look.
    let program = folder.path().join("tieline");
    fs::copy(env!("CARGO_BIN_EXE_tieline"), &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::set_permissions(&files, Permissions::from_mode(0o777)).unwrap();

    let _alone = common::alone();
    let run = || {
        own_tun_node(tun_mode);
        let mut command = Command::new(&program);
        command.args(["demo", "--seconds", "1", "--json"]).env("TMPDIR", &files);
        command.uid(NOBODY).gid(NOBODY);
        output_within(&mut command, Duration::from_secs(60))
    };
    let output = thread::scope(|scope| scope.spawn(run).join().unwrap());
    assert_eq!(entries(&files), 0, "the demo left files");
    check(output);
}

fn own_tun_node(mode: u32) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let node = Path::new("/dev/net/tun");
    mknod(node, SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).unwrap();
    fs::set_permissions(node, Permissions::from_mode(mode)).unwrap();
}

//! Packets that an end drops while the link is up: `status` and the log say so, and say nothing where it is no loss of theirs.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use common::lab::{End, Lab, PATIENCE, Site};
use common::{nft, wait_until};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;
use tieline::sys::netns::NetNs;

/// Sends so many small datagrams at once.
fn burst(from: &NetNs, to: IpAddr, count: usize) {
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for _ in 0..count {
        sender.send_to(b"one of many", SocketAddr::new(to, 9)).unwrap();
    }
}

fn set_queue_length(site: &Site, packets: u32) {
    site.netlink(async |netlink| {
        let index = netlink.index(site.interface).await.unwrap();
        netlink.set_queue_length(index, packets).await.unwrap();
    });
}

fn dropped(end: &End<'_>, reason: &str) -> u64 {
    end.status()["drops"][reason].as_u64().unwrap_or(0)
}

fn code(end: &End<'_>) -> Value {
    end.status()["problem"]["code"].clone()
}

scenario!(packets_that_the_interfaces_full_queue_drops_are_counted_shown_and_told, 90, {
    let lab = Lab::new();
    let (left, right) = lab.up();
    set_queue_length(&lab.left, 2);
    wait_until("the left end saying that it is overloaded", PATIENCE, || {
        burst(&lab.left.network, lab.right.inner[0], 500);
        code(&left) == "overload"
    });
    let (status, exit) = left.status_and_code();
    assert_eq!((&status["state"], exit), (&"up".into(), 0), "{status}");
    let problem = status["problem"]["text"].as_str().unwrap();
    assert!(problem.contains("the queue of tl-left was full") && problem.contains("`tc`"), "{problem}");
    assert!(dropped(&left, "interface_queue") >= 10, "{status}");
    assert!(status["path"]["tx"]["dropped_ratio"].as_f64().unwrap() > 0.01, "{status}");
    let shown = left.status_text();
    let lines = ["problem   ", "% dropped by this end lately", "by the interface's full queue"];
    assert!(lines.iter().all(|line| shown.contains(line)), "{shown}");
    left.wait_for_log(&["warn", "the queue of tl-left was full", "this machine encrypts"], PATIENCE);

    set_queue_length(&lab.left, 2_000);
    left.wait_for_log(&["info", "the queue of tl-left has room again"], 2 * PATIENCE);
    wait_until("no problem", PATIENCE, || left.status()["problem"].is_null());
    let told = lab.left.log().lines().filter(|line| line.contains("the queue of")).count();
    assert_eq!(told, 2, "begin and end, each once");
    assert_eq!((dropped(&right, "interface_queue"), code(&right)), (0, Value::Null));
});

scenario!(what_is_sent_into_an_interface_without_a_carrier_is_counted_and_no_overload, 60, {
    let lab = Lab::new();
    let (left, right) = lab.up();
    right.kill_9();
    left.wait_for_state("down");
    wait_until("the carrier gone", PATIENCE, || left.status()["carrier"]["on"] == false);
    let before = dropped(&left, "interface_no_carrier");
    // What is for all on the link needs no route.
    let send = || {
        let sender = UdpSocket::bind((lab.left.inner[0], 0)).unwrap();
        setsockopt(&sender, sockopt::BindToDevice, &lab.left.interface.into()).unwrap();
        for _ in 0..200 {
            sender.send_to(b"to nobody", "224.0.0.77:9").unwrap();
        }
    };
    lab.left.network.run(send).unwrap();
    wait_until("all being counted", PATIENCE, || dropped(&left, "interface_no_carrier") >= before + 200);
    assert_eq!(dropped(&left, "interface_queue"), 0);
    assert_ne!(code(&left), "overload");
    assert!(!lab.left.log().contains("the queue of"), "{}", lab.left.log());
});

const MARK_ALL: &str = "
table inet congested {
    chain arriving {
        type filter hook prerouting priority raw
        udp sport 7311 ip ecn set ce
    }
}";

scenario!(a_way_that_marks_every_datagram_as_congested_is_told_at_the_end_it_leads_to, 90, {
    if nft::is_there() {
        let lab = Lab::new();
        let (left, right) = lab.up();
        nft::load(&lab.right.network, MARK_ALL);
        wait_until("the right end saying that it drops what is marked", PATIENCE, || {
            burst(&lab.left.network, lab.right.inner[0], 20);
            code(&right) == "ecn-marks"
        });
        let (status, exit) = right.status_and_code();
        assert_eq!((&status["state"], exit), (&"up".into(), 0), "{status}");
        let problem = status["problem"]["text"].as_str().unwrap();
        let words = ["from the peer", "ECN CE", "from 192.0.2.1:7311", "traffic class", "DSCP"];
        assert!(words.iter().all(|words| problem.contains(words)), "{problem}");
        assert!(status["path"]["rx"]["dropped_ratio"].as_f64().unwrap() > 0.5, "{status}");
        let shown = right.status_text();
        let lines = ["problem   ", "% dropped by this end lately", " congested"];
        assert!(lines.iter().all(|line| shown.contains(line)), "{shown}");
        right.wait_for_log(&["warn", "ecn ce", "192.0.2.1:7311", "router or firewall rule"], PATIENCE);
        assert_eq!(code(&left), Value::Null);

        nft::load(&lab.right.network, "flush ruleset");
        right.wait_for_log(&["info", "without marks of congestion again"], 2 * PATIENCE);
        assert_eq!(lab.right.log().lines().filter(|line| line.contains("ECN CE")).count(), 1);
    }
});

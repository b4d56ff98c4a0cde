//! What the log of a real end says while there is no link: why nobody answers, and what does not arrive.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::lab::{Lab, PATIENCE};
use common::nft;
use common::router::Router;

/// An attempt takes 5 s, ICMP is waited for 3.5 s, and an end is called silent after 10 s; the rest is for a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// The lines that say that nobody answers.
fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("no answer from")).collect()
}

scenario!(a_port_where_nobody_listens_is_named_and_after_an_outage_no_key_is_doubted, 120, {
    let mut lab = Lab::new();
    // A route that covers the peer is blocked on this machine while the link is down: that is no news of the network.
    lab.left.link = "routes = [\"192.0.0.0/8\"]\n".into();
    let closed = format!("nobody listens at {}", lab.left.endpoint.unwrap());
    let left = lab.left.start();
    left.wait_for_log(&[&closed, "icmp port unreachable", "start the other end", "`endpoint`"], LONG);
    let right = lab.right.start();
    [&left, &right].into_iter().for_each(|end| end.wait_for_state("up"));
    right.kill_9();
    left.wait_for_log(&["no answer", "nothing has been heard from the peer for", &closed], LONG);
    let log = lab.left.log();
    let complaints = complaints(&log);
    assert!(complaints.len() == 2, "{log}");
    assert!(!complaints[1].contains("key") && !complaints[1].contains("`endpoint`"), "{}", complaints[1]);
});

scenario!(routers_that_say_why_are_told_from_silence, 180, {
    if !nft::is_there() {
        return;
    }
    let (mut lab, router) = Lab::over_router();
    let peer = lab.left.endpoint.unwrap();
    let gateway = Router::gateway(&lab.left)[0].to_string();

    router.cut("all", &["udp dport 7311".to_owned()]);
    let left = lab.left.start();
    left.wait_for_log(&["no answer", "wrong address, udp blocked on the way", "public keys"], LONG);
    drop(left);
    router.mend("all");

    let chain = "chain no { type filter hook forward priority 1\nudp dport 7311 reject with icmpx admin-prohibited\n}";
    nft::load(&router.network, &format!("table inet no {{\n{chain}\n}}"));
    let left = lab.left.start();
    left.wait_for_log(&[&format!("a firewall forbids udp to {peer} ({gateway} says by icmp)")], LONG);
    drop(left);
    nft::load(&router.network, "delete table inet no");

    // Nobody there has this address: the router asks for it in vain.
    lab.left.endpoint = Some("198.51.100.77:7311".parse().unwrap());
    let left = lab.left.start();
    let says = format!("no route to 198.51.100.77, or that machine is off ({gateway}");
    left.wait_for_log(&[&says, "correct the address"], LONG);
});

scenario!(an_end_that_waits_says_that_nothing_arrives_or_that_its_answers_do_not, 120, {
    if !nft::is_there() {
        return;
    }
    let (mut lab, router) = Lab::over_router();
    lab.right.endpoint = None;
    lab.right.arguments = vec!["--log-level", "debug"];
    let right = lab.right.start();
    right.wait_for_log(&["nothing has arrived at udp 7311 for 10 s", "is the other end started"], LONG);
    router.cut("back", &["udp sport 7311".to_owned()]);
    lab.left.listen = None;
    let left = lab.left.start();
    let words =
        [&format!("valid knocks from {}:", lab.left.outer[0]), "arrive at udp 7311, our answers do not reach it"];
    right.wait_for_log(&words, LONG);
    for step in ["knock received from", "challenge sent to"] {
        right.wait_for_log(&[step], PATIENCE);
    }
    router.mend("back");
    [&left, &right].into_iter().for_each(|end| end.wait_for_state("up"));
    for step in ["init received from", "response sent to"] {
        right.wait_for_log(&[step], PATIENCE);
    }
});

//! Uplinks that come, go and change under a link: each is waited for, taken as soon as the kernel says that it is there, and the link
//! keeps its port.
//!
//! `cargo test --test uplinks -- --nocapture` prints how long each took.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PATIENCE, PORT, Site};
use common::router::{FIBRE, HQ, RADIO, Router, Uplink};
use common::stray::sh;
use common::wait_until;

/// An uplink is to be taken within a second of the kernel's word. This is what a busy machine may need, and less than a link needs that
/// waits for its own timers.
const TAKEN: Duration = Duration::from_secs(4);
/// The line of `[local]` for a link that is bound to the first uplink.
const BIND: &str = "bind = \"right0\"\n";
/// A section for a link with one path, which leaves by it.
const SINGLE_PATH: &str = "[[path]]\nname = \"dsl\"\npriority = 0\ninterface = \"right0\"\n";

/// Headquarters, which listens and is on line, and a branch that calls it and has no uplink yet.
fn branch() -> (Lab, Router) {
    let (mut lab, router) = (Lab::unconnected(), Router::alone());
    lab.left.endpoint = None;
    lab.right.endpoint = Some(SocketAddr::new(HQ.own[0], PORT));
    lab.right.listen = None;
    // As on every machine: without it the kernel binds sockets to any address.
    sh(&lab.right.network, "ip link set lo up");
    router.plug_in(&lab.left, &HQ);
    (lab, router)
}

/// A shorter interval at both ends, so that a link which is cut is soon down.
fn hurry(lab: &mut Lab) {
    for site in [&mut lab.left, &mut lab.right] {
        site.sections += "[liveness]\ninterval = \"200ms\"\n";
    }
}

/// Where headquarters has the branch.
fn seen_from(hq: &End) -> SocketAddr {
    let status = hq.status();
    status["peer"]["endpoint"].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{status:#}"))
}

/// Does what brings an uplink, and waits until pings pass by it.
fn comes(lab: &Lab, what: &str, come: impl FnOnce()) {
    come();
    let since = Instant::now();
    lab.right.ping(lab.left.inner[0]);
    let took = since.elapsed();
    println!("{what}: pings pass after {took:.1?}");
    assert!(took < TAKEN, "{took:?}");
}

fn delete(site: &Site, uplink: &Uplink) {
    sh(&site.network, &format!("ip link del {}", uplink.name));
}

/// As PPP does when it dials again: the interface goes, the link goes down, and another interface of the same name comes.
fn the_interface_is_made_anew(set: impl FnOnce(&mut Site)) {
    let (mut lab, router) = branch();
    hurry(&mut lab);
    set(&mut lab.right);
    router.plug_in(&lab.right, &FIBRE);
    let (left, right) = lab.up();
    let before = seen_from(&left);
    for time in ["first", "second"] {
        delete(&lab.right, &FIBRE);
        right.wait_for_log(&["waits until interface right0 is there again"], PATIENCE);
        [&left, &right].into_iter().for_each(|end| end.wait_for_state("down"));
        comes(&lab, &format!("made anew, {time} time"), || router.plug_in(&lab.right, &FIBRE));
        assert_eq!(seen_from(&left), before, "on the same port");
    }
}

scenario!(the_interface_of_bind_is_made_anew, 60, the_interface_is_made_anew(|branch| branch.local = BIND.into()));

scenario!(
    the_interface_of_bind_is_made_anew_and_the_port_is_configured,
    60,
    the_interface_is_made_anew(|branch| {
        branch.local = BIND.into();
        branch.listen = Some(SocketAddr::from(([0; 4], PORT)));
    })
);

scenario!(
    the_interface_of_a_single_path_is_made_anew,
    60,
    the_interface_is_made_anew(|branch| {
        branch.sections += SINGLE_PATH;
    })
);

scenario!(
    /// The address goes with the interface, and comes back with it.
    the_interface_of_the_address_listened_at_is_made_anew,
    60,
    {
        let (mut lab, router) = branch();
        hurry(&mut lab);
        lab.right.listen = Some(SocketAddr::new(FIBRE.own[0], PORT));
        router.plug_in(&lab.right, &FIBRE);
        let (left, right) = lab.up();
        delete(&lab.right, &FIBRE);
        [&left, &right].into_iter().for_each(|end| end.wait_for_state("down"));
        comes(&lab, "address back", || router.plug_in(&lab.right, &FIBRE));
        assert_eq!(seen_from(&left), SocketAddr::new(FIBRE.own[0], PORT));
    }
);

/// The link starts before its uplink is there, says so, and takes it when it comes.
fn it_is_waited_for(said: &[&str], set: impl FnOnce(&mut Site)) {
    let (mut lab, router) = branch();
    set(&mut lab.right);
    let (left, right) = (lab.left.start(), lab.right.start());
    right.wait_for_log(said, PATIENCE);
    right.wait_for_state("down");
    comes(&lab, "there", || router.plug_in(&lab.right, &FIBRE));
    [&left, &right].into_iter().for_each(|end| end.wait_for_state("up"));
    assert_eq!(seen_from(&left).ip(), FIBRE.own[0]);
}

scenario!(
    an_address_to_listen_at_that_is_not_there_yet_is_waited_for,
    60,
    it_is_waited_for(&["no address 198.18.11.2", "waiting until it is there"], |branch| {
        branch.listen = Some(SocketAddr::new(FIBRE.own[0], PORT));
    })
);

scenario!(
    an_interface_to_bind_to_that_is_not_there_yet_is_waited_for,
    60,
    it_is_waited_for(&["no interface right0", "waiting until it is there"], |branch| branch.local = BIND.into())
);

scenario!(
    the_interface_of_a_single_path_that_is_not_there_yet_is_waited_for,
    60,
    it_is_waited_for(&["path dsl is not there yet", "no interface right0"], |branch| {
        branch.sections += SINGLE_PATH;
    })
);

/// Two uplinks change under a link that is tied to none: it goes by the other one soon, and is never down.
fn the_link_moves(what: &str, start: &[&Uplink], to: &Uplink, change: impl FnOnce(&Lab, &Router)) {
    let (lab, router) = branch();
    start.iter().for_each(|uplink| router.plug_in(&lab.right, uplink));
    let (left, right) = lab.up();
    let ends = [&left, &right];
    let (before, since) = (seen_from(&left), ends.map(|end| end.status()["since"].clone()));
    assert_ne!(before.ip(), to.own[0]);
    change(&lab, &router);
    let changed = Instant::now();
    wait_until("headquarters seeing the other uplink", PATIENCE, || seen_from(&left).ip() == to.own[0]);
    println!("{what}: moved after {:.1?}", changed.elapsed());
    lab.right.ping_all(lab.left.inner[0]);
    lab.left.ping_all(lab.right.inner[0]);
    assert_eq!(seen_from(&left), SocketAddr::new(to.own[0], before.port()), "the port stays");
    assert_eq!(ends.map(|end| end.status()["since"].clone()), since, "the link was down");
}

scenario!(
    the_default_route_moves_to_another_uplink,
    60,
    the_link_moves("default route deleted", &[&FIBRE, &RADIO], &RADIO, |lab, _| {
        for family in ["-4", "-6"] {
            sh(&lab.right.network, &format!("ip {family} route del default dev right0"));
        }
    })
);

scenario!(
    the_uplink_with_the_default_route_goes_down,
    60,
    the_link_moves("uplink down", &[&FIBRE, &RADIO], &RADIO, |lab, _| lab.right.take_down(FIBRE.name))
);

scenario!(
    the_uplink_with_the_default_route_is_deleted,
    60,
    the_link_moves("uplink deleted", &[&FIBRE, &RADIO], &RADIO, |lab, _| delete(&lab.right, &FIBRE))
);

scenario!(
    a_better_uplink_comes,
    60,
    the_link_moves("better uplink", &[&RADIO], &FIBRE, |lab, router| router.plug_in(&lab.right, &FIBRE))
);

scenario!(
    /// As when a script of the operator's prefers an uplink by a route to headquarters alone.
    a_more_specific_route_to_the_peer_comes,
    60,
    the_link_moves("host route", &[&FIBRE, &RADIO], &RADIO, |lab, _| {
        sh(&lab.right.network, &format!("ip route add {} via 198.18.12.254", HQ.own[0]));
    })
);

scenario!(
    /// As when a DHCP server gives another one.
    the_address_of_the_uplink_changes,
    60,
    the_link_moves("address", &[&FIBRE], &Uplink { own: ["198.18.11.3".parse().unwrap(), FIBRE.own[1]], ..FIBRE }, |lab, _| {
        sh(&lab.right.network, "ip addr del 198.18.11.2/24 dev right0");
        sh(&lab.right.network, "ip addr add 198.18.11.3/24 dev right0");
        sh(&lab.right.network, "ip route replace default via 198.18.11.254 metric 111");
    })
);

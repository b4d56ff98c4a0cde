//! `ip link set … down` at one end of a real link: the far end is told, its carrier and routes follow, and all comes back.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use common::lab::{Lab, PATIENCE, Site};
use common::{wait_until, way};
use nix::net::if_::InterfaceFlags;
use rtnetlink::LinkUnspec;

/// A place that both the link and a backup lead to.
const PLACE: &str = "10.50.0.9";
/// The left end on the backup.
const BACKUP: &str = "172.16.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn carrier(site: &Site) -> bool {
    let look = || nix::ifaddrs::getifaddrs().unwrap().find(|found| found.interface_name == site.interface);
    let found = site.network.run(look).unwrap();
    found.is_some_and(|interface| interface.flags.contains(InterfaceFlags::IFF_LOWER_UP))
}

/// `ip link set … up` or `down` of the link's own interface.
fn set_interface(site: &Site, up: bool) {
    site.netlink(async |netlink| {
        let link = LinkUnspec::new_with_index(netlink.index(site.interface).await.unwrap());
        let (connection, handle, _unasked_for) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let message = if up { link.up() } else { link.down() };
        handle.link().change(message.build()).execute().await.unwrap();
    });
}

/// A route to [`PLACE`] beside the link, worse than the link's own.
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

scenario!(the_far_end_of_an_interface_that_is_taken_down_loses_carrier_and_routes_and_both_say_why, 90, {
    let mut lab = Lab::new();
    lab.left.link = "routes = [\"10.50.0.0/24\"]\nmetric = 10\n".into();
    lay_backup(&lab.left);
    let (left, right) = lab.up();
    way::until(&lab.left, ip(PLACE), lab.left.inner[0], Instant::now(), PATIENCE);
    let epoch = left.status()["session"]["epoch"].clone();

    set_interface(&lab.right, false);
    let down = Instant::now();
    wait_until("the far carrier falling", PATIENCE, || !carrier(&lab.left));
    let lost = way::until(&lab.left, ip(PLACE), ip(BACKUP), down, PATIENCE);
    println!("the far end's traffic is on its backup {lost:.1?} after `ip link set down`");
    let (status, code) = right.status_and_code();
    assert_eq!((&status["state"], code), (&"admin-down".into(), 3), "{status}");
    assert_eq!(status["problem"]["code"], "interface-down", "{status}");
    assert!(status["problem"]["text"].as_str().unwrap().contains("ip link set tl-right up"), "{status}");
    let (status, code) = left.status_and_code();
    assert_eq!((&status["state"], code), (&"down".into(), 3), "{status}");
    assert_eq!(status["problem"]["code"], "interface-down", "{status}");
    assert!(status["problem"]["text"].as_str().unwrap().contains("the peer's interface"), "{status}");
    left.wait_for_log(&["the peer's interface is administratively down", "ip link set", "there"], PATIENCE);
    right.wait_for_log(&["tl-right is administratively down", "ip link set tl-right up"], PATIENCE);
    let text = right.status_text();
    assert!(text.contains("administratively down") && text.contains("ip link set tl-right up"), "{text}");

    // It stays so, and without a new handshake.
    std::thread::sleep(Duration::from_secs(5));
    assert!(!carrier(&lab.left));
    assert_eq!(left.status()["session"]["epoch"], epoch, "a new session was made meanwhile");

    set_interface(&lab.right, true);
    let up = Instant::now();
    wait_until("both carriers", PATIENCE, || carrier(&lab.left) && carrier(&lab.right));
    let back = way::until(&lab.left, ip(PLACE), lab.left.inner[0], up, PATIENCE);
    println!("and back on the link {back:.1?} after `ip link set up`");
    [&left, &right].into_iter().for_each(|end| end.wait_for_state("up"));
    lab.left.ping(lab.right.inner[0]);
    lab.left.ping_all(lab.right.inner[0]);
    for end in [&left, &right] {
        let (status, code) = end.status_and_code();
        assert_eq!((&status["problem"], code), (&serde_json::Value::Null, 0), "{status}");
        assert_eq!(status["session"]["epoch"], epoch, "a new session was made: {status}");
    }
});

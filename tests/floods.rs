//! Floods of each kind on a running link, moderate ones: what must hold however fast the machine is. What fast ones cost is
//! `benches/floods`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod flood;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, SystemTime};

use common::lab::{End, Lab, PORT, transfer};
use common::udp::RawUdp;
use flood::gauge::{Reading, TELLING};
use flood::junk;
use flood::opener::Opener;
use flood::outside::{Flow, GATE, Outside};
use tieline::protocol::constants::INIT_SPACING;
use tieline::protocol::wire;

const MB: u64 = 1_000_000;
/// Datagrams of a flood, and a second.
const COUNT: usize = 20_000;
const RATE: u64 = 20_000;
/// Often enough that many are on their way in each flood, seldom enough that a busy machine is not taken for a dead one.
const INTERVAL: &str = "[liveness]\ninterval = \"500ms\"\n";
/// KB an end may come to hold beyond what it held before the first flood: its buffers, touched for the first time, are 1 MB.
const GROWTH: u64 = 3_000;

/// Two sites of which the left one knocks, and the outside.
fn stage() -> (Lab, Outside) {
    let mut lab = Lab::new();
    for site in [&mut lab.left, &mut lab.right] {
        site.arguments = TELLING.to_vec();
        site.local = INTERVAL.to_owned();
    }
    lab.right.endpoint = None;
    let outside = Outside::of(&lab, PORT);
    (lab, outside)
}

/// Sends all of these once, with a transfer beside them. The right end counts each that reaches it, and nothing else is lost.
fn flooded(what: &str, ends: &[End<'_>; 2], outside: &Outside, from: SocketAddr, some: &[Vec<u8>]) {
    let [left, right] = ends;
    let read = || [Reading::of(left, left.site.name), Reading::of(right, GATE)];
    let [left_before, right_before] = read();
    let datagrams: Vec<_> = some.iter().cycle().take(COUNT).cloned().collect();
    let flow = Flow { from, to: outside.target, datagrams: &datagrams, per_second: RATE };
    let answers = thread::scope(|scope| {
        let flooding = scope.spawn(|| outside.send_all(&flow));
        transfer(left.site, right.site, right.site.inner[0], 50 * MB, |_| {});
        flooding.join().unwrap()
    });
    let [left_after, right_after] = read();
    let dropped: u64 = right_after.dropped_since(&right_before).iter().sum();
    // What found no room in the queue may also be of the transfer: then there is less to say.
    let unseen = right_after.unseen_since(&right_before);
    let counted = dropped + answers;
    println!("{what}: {dropped} dropped, {answers} answered, {unseen} never seen");
    assert!(
        (COUNT as u64 - unseen..=COUNT as u64).contains(&counted),
        "{what}: {counted} of {COUNT}, {unseen} not seen"
    );
    let unseen = unseen + left_after.unseen_since(&left_before);
    for (end, before, after) in [(left, &left_before, &left_after), (right, &right_before, &right_after)] {
        assert!(after.stayed_up_since(before), "{what}: {} was not always up", end.site.name);
        let (came, lost) = after.control_since(before, end.site);
        assert!(came > 1, "{what}: no Reports at {}", end.site.name);
        assert!(lost <= unseen, "{what}: {lost} Reports lost at {}", end.site.name);
    }
}

scenario!(a_flood_of_each_kind_is_counted_and_disturbs_nothing, 180, {
    let (lab, outside) = stage();
    let recorder = RawUdp::at(&lab.right);
    let ends = <[End<'_>; 2]>::from(lab.up());
    let beginning = recorder.record(PORT, 10);
    let Outside { stranger, peer, .. } = outside;
    transfer(&lab.left, &lab.right, lab.right.inner[0], 50 * MB, |_| {});
    let before = Reading::of(&ends[1], GATE);

    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let keys = junk::open_key(&lab.left.key, &lab.right.key.public().unwrap());
    let index = junk::index(&RawUdp::at(&lab.right).record(PORT, 1)[0]).unwrap();
    let data = |size| junk::transport(wire::Kind::Data, index, size);
    let flood = |what, from, datagrams: &[Vec<u8>]| flooded(what, &ends, &outside, from, datagrams);
    flood("random bytes", stranger, &junk::garbage(junk::SMALL));
    flood("each type", stranger, &junk::each_type());
    flood("each type by the peer's address", peer, &junk::each_type());
    flood("a Knock of this moment", stranger, &[junk::knock(&keys, seed)]);
    flood("the Init", peer, &junk::recorded(&beginning, wire::Kind::Init)[..1]);
    flood("the Init by a stranger", stranger, &junk::recorded(&beginning, wire::Kind::Init)[..1]);
    flood("Data, empty", stranger, &data(junk::EMPTY_TRANSPORT));
    flood("Data by the peer's address", peer, &data(junk::SMALL));
    flood("Data, large", stranger, &data(junk::LARGE));
    flood("Control", peer, &junk::transport(wire::Kind::Control, index, junk::SMALL));
    // By now it is old.
    flood("the first Knock", stranger, &junk::recorded(&beginning, wire::Kind::Knock)[..1]);

    let after = Reading::of(&ends[1], GATE);
    assert!(after.rss <= before.rss + GROWTH, "grown from {} to {} KB", before.rss, after.rss);
});

scenario!(who_has_the_keys_gets_so_many_handshakes_a_second_and_no_more, 60, {
    let (lab, outside) = stage();
    let ends = <[End<'_>; 2]>::from(lab.up());
    let before = Reading::of(&ends[1], GATE);
    let socket = outside.socket(outside.stranger, outside.target);
    let (own, public) = (&lab.left.key, lab.right.key.public().unwrap());
    for honest in [true, false] {
        let (opener, stop) = (Opener::new(own, &public, honest), AtomicBool::new(false));
        let opened = thread::scope(|scope| {
            let opening = scope.spawn(|| opener.open(&socket, RATE, u64::from(honest) << 32, &stop));
            thread::sleep(Duration::from_secs(3));
            stop.store(true, Relaxed);
            opening.join().unwrap()
        });
        println!("honest: {honest}: {opened:?}");
        let most = (opened.took.as_secs_f64() / INIT_SPACING.as_secs_f64()) as u64 + 1;
        assert!(opened.responses <= most, "{} handshakes in {:?}", opened.responses, opened.took);
        assert!(opened.inits > 2 * most, "that was no flood");
        if honest {
            assert!(opened.responses > 0, "not one was read");
        }
    }
    let after = Reading::of(&ends[1], GATE);
    assert!(after.stayed_up_since(&before));
    assert!(after.rss <= before.rss + GROWTH, "grown from {} to {} KB", before.rss, after.rss);
    lab.left.ping_all(lab.right.inner[0]);
});

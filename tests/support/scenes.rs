//! What scenarios are made of: pairs of ends in a known state, and words for what is seen of them.

use super::{world::Fate, *};
use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};
use tieline::{
    keys::SecretKey,
    protocol::{crypto::OpenKeys, wire::Kind},
};

/// Two ends with each other's address, started, with every datagram logged.
pub fn pair() -> World {
    pair_with(|_| {})
}

pub fn pair_with(set: impl FnOnce(&mut [EndSetup; 2])) -> World {
    let mut setups = [EndSetup::new(1), EndSetup::new(2)];
    set(&mut setups);
    let mut world = World::new(1, setups);
    world.log = Some(Vec::new());
    world.start_both();
    world
}

/// Only A knows where the other is: so A opens.
pub fn a_opens() -> World {
    pair_with(|setups| setups[B].knows_peer = false)
}

pub fn up(mut world: World) -> World {
    assert!(world.run_until(secs(3), World::together), "not together after 3 s");
    world.run(ms(200)); // what is still on its way
    world
}

/// A step at a time until something of this kind was sent by this end.
pub fn run_until_sent(world: &mut World, end: usize, kind: Kind) -> Flight {
    assert!(world.run_until(secs(5), |w| !w.logged(end, kind).is_empty()), "no {kind:?} was sent");
    world.logged(end, kind).pop().unwrap()
}

/// State, session and path, in words that compare.
pub fn seen(world: &World, end: usize) -> String {
    let status = world.status(end);
    format!("{:?} {:?} {:?} {:?}", status.state, status.since, status.session, status.path)
}

pub fn epoch(world: &World, end: usize) -> u32 {
    world.status(end).session.expect("a session").epoch
}

/// The drop counters: malformed, unauthentic, replayed, no_session.
pub fn drops(world: &mut World, end: usize) -> [u64; 4] {
    let levels = world.ends[end].process().link.levels();
    let d = &levels.drops;
    [&d.malformed, &d.unauthentic, &d.replayed, &d.no_session].map(|counter| counter.get())
}

pub const MALFORMED: usize = 0;
pub const UNAUTHENTIC: usize = 1;
pub const REPLAYED: usize = 2;

/// Gives `end` a datagram that must be dropped under this counter and change nothing else: silence.
#[track_caller]
pub fn refused(world: &mut World, end: usize, from: SocketAddr, bytes: &[u8], counter: usize) {
    let (before, mut expected) = (seen(world, end), drops(world, end));
    expected[counter] += 1;
    let answers = world.give(end, from, bytes);
    assert!(answers.is_empty(), "answered: {answers:?}");
    assert_eq!(drops(world, end), expected, "counted elsewhere");
    assert_eq!(seen(world, end), before);
}

/// Frames go both ways, and all arrive.
#[track_caller]
pub fn carries(world: &mut World) {
    let before = [A, B].map(|end| world.ends[end].delivered);
    for end in [A, B, A, B] {
        assert!(world.send_frame(end, 1_000), "no session to send under");
    }
    world.run(ms(500));
    assert_eq!([A, B].map(|end| world.ends[end].delivered - before[end]), [2, 2]);
}

pub fn stranger() -> SocketAddr {
    "203.0.113.66:666".parse().unwrap()
}

/// One direction's MAC key, as one who has ss could compute it.
pub fn open_keys(world: &World, end: usize) -> OpenKeys {
    let secret = SecretKey::from_bytes(world.ends[end].setup.secret);
    OpenKeys::derive(&secret, &secret.public().unwrap(), &world.ends[end].peers[0]).unwrap()
}

/// B, up and waiting, and one who has A's keys.
pub fn puppet() -> (World, Puppet) {
    let mut world = a_opens();
    world.kill(A);
    world.run(ms(100));
    let puppet = Puppet::new(&world.ends[A].setup, &world.ends[B].setup, stranger());
    (world, puppet)
}

/// Whether a datagram is a part of M1 or M2: these lengths no other control message has.
pub fn rekey_part(flight: &Flight) -> bool {
    flight.kind() == Some(Kind::Control) && [548, 252, 156].contains(&flight.bytes.len())
}

pub fn report(flight: &Flight) -> bool {
    flight.kind() == Some(Kind::Control) && flight.bytes.len() == 96
}

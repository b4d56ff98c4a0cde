//! What an end makes known of those who call it, or do not, in virtual time: that nothing arrives, that its answers do not, and each
//! cold-open datagram.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;
use support::{scenes::*, world::Fate, *};
use tieline::keys::SecretKey;
use tieline::protocol::{
    Event,
    crypto::OpenKeys,
    link::ColdStep,
    wire::{self, Kind},
};

/// How often `end` was heard to say that nothing arrives, and how often with others than the peer about.
fn nothing(world: &World, end: usize) -> [usize; 2] {
    let said =
        |wanted| world.ends[end].said(|e| matches!(e, Event::NothingArrives { others, .. } if *others == wanted));
    [said(false), said(true)]
}

/// How often `end` was heard to say that its answers do not arrive; the other may try from several ports.
fn lost(world: &World, end: usize, wanted: bool) -> usize {
    let at = world.ends[1 - end].sockets.values().next().unwrap().ip();
    world.ends[end]
        .said(|e| matches!(e, Event::AnswersLost { peer, responded } if *responded == wanted && peer.ip() == at))
}

#[test]
fn an_end_that_nobody_calls_says_so_after_ten_seconds_and_then_once_a_minute() {
    let mut world = pair_with(|setups| setups.iter_mut().for_each(|setup| setup.knows_peer = false));
    world.run(ms(9_900));
    assert_eq!(nothing(&world, A), [0, 0]);
    world.run(ms(200));
    assert_eq!(nothing(&world, A), [1, 0]);
    let exact = Event::NothingArrives { silence: secs(10), others: false };
    assert_eq!(world.ends[A].said(|e| *e == exact), 1);
    world.run(secs(59));
    assert_eq!(nothing(&world, A), [1, 0]);
    world.give(A, stranger(), b"junk");
    world.run(secs(2));
    assert_eq!(nothing(&world, A), [1, 1], "others about are told apart");
    assert_eq!(nothing(&world, B), [2, 0]);
}

#[test]
fn an_end_that_is_called_or_calls_never_says_so() {
    let mut world = up(a_opens());
    world.run(secs(60));
    world.kill(A);
    world.run(secs(120));
    assert_eq!(nothing(&world, B), [0, 0]);
    // It calls the address where the peer was.
    assert!(world.ends[B].said(|e| matches!(e, Event::NoAnswer { .. })) > 5);
}

#[test]
fn answers_that_do_not_arrive_are_noticed_by_whoever_gives_them() {
    let mut world = a_opens();
    world.decide(|flight| if flight.sender == B { Fate::Drop } else { Fate::Pass });
    world.run(secs(9));
    assert_eq!(lost(&world, B, false), 0);
    world.run(secs(5));
    assert_eq!(lost(&world, B, false), 1);
    world.run(secs(50));
    assert_eq!(lost(&world, B, false), 1, "once a minute");
    world.run(secs(20));
    assert_eq!(lost(&world, B, false), 2);
    assert_eq!((nothing(&world, B), lost(&world, B, true)), ([0, 0], 0));
    world.decide_nothing();
    assert!(world.run_until(secs(8), World::together));
    world.run(secs(120));
    assert_eq!(lost(&world, B, false), 2);
}

#[test]
fn responses_that_do_not_arrive_are_told_from_challenges() {
    let mut world = a_opens();
    world.decide(|flight| if flight.kind() == Some(Kind::Response) { Fate::Drop } else { Fate::Pass });
    world.run(secs(16));
    assert_eq!([lost(&world, B, false), lost(&world, B, true)], [0, 1]);
}

#[test]
fn a_link_that_opens_complains_of_nothing() {
    for mut world in [pair(), a_opens()] {
        world.run(secs(200));
        assert!(world.together());
        for end in [A, B] {
            assert_eq!((nothing(&world, end), lost(&world, end, false), lost(&world, end, true)), ([0, 0], 0, 0));
        }
    }
}

#[test]
fn a_recorded_knock_sent_again_makes_nobody_complain() {
    let mut world = a_opens();
    let knock = run_until_sent(&mut world, A, Kind::Knock);
    world.kill(A);
    world.kill(B);
    world.start(B);
    for _ in 0..40 {
        world.give(B, knock.from, &knock.bytes);
        world.run(ms(500));
    }
    assert_eq!(lost(&world, B, false), 0, "one datagram is no caller");
}

#[test]
fn somebody_who_copies_a_callers_knocks_is_not_named_in_its_place() {
    let mut world = a_opens();
    world.decide(|flight| if flight.sender == B { Fate::Drop } else { Fate::Pass });
    for _ in 0..100 {
        world.run(ms(200));
        let knock = world.logged(A, Kind::Knock).pop().unwrap();
        world.give(B, stranger(), &knock.bytes);
    }
    assert!(lost(&world, B, false) > 0);
    assert_eq!(world.ends[B].said(|e| matches!(e, Event::AnswersLost { peer, .. } if *peer == stranger())), 0);
}

/// How often an end made this of a cold-open datagram.
fn cold(world: &World, end: usize, kind: Kind, step: ColdStep) -> usize {
    world.ends[end].said(|e| matches!(e, Event::Cold { kind: k, step: s, .. } if (*k, *s) == (kind, step)))
}

#[test]
fn each_step_of_a_cold_open_is_told() {
    let mut world = up(a_opens());
    let mine = [Kind::Knock, Kind::Init];
    for kind in [Kind::Knock, Kind::Challenge, Kind::Init, Kind::Response] {
        let (sender, receiver) = if mine.contains(&kind) { (A, B) } else { (B, A) };
        assert_eq!(cold(&world, sender, kind, ColdStep::Sent), world.logged(sender, kind).len(), "{kind:?}");
        assert!(cold(&world, receiver, kind, ColdStep::Taken) >= 1, "{kind:?}");
    }
    let response = world.logged(B, Kind::Response).pop().unwrap();
    refused(&mut world, A, response.from, &response.bytes, REPLAYED);
    assert_eq!(cold(&world, A, Kind::Response, ColdStep::Replayed), 1);
    let init = world.logged(A, Kind::Init).pop().unwrap();
    refused(&mut world, B, stranger(), &init.bytes, UNAUTHENTIC);
    assert_eq!(cold(&world, B, Kind::Init, ColdStep::Unauthentic), 1, "a token is for one address");
}

#[test]
fn a_stranger_is_told_of_once_he_has_had_time_to_be_the_peer() {
    let mut world = pair_with(|setups| setups.iter_mut().for_each(|setup| setup.knows_peer = false));
    let own = SecretKey::from_bytes(world.ends[A].setup.secret).public().unwrap();
    let knock = |secret: u8| {
        let secret = SecretKey::from_bytes([secret; 32]);
        let keys = OpenKeys::derive(&secret, &secret.public().unwrap(), &own).unwrap();
        wire::knock(&[secret.as_bytes()[0]; 16], &keys.sending)
    };
    let told = |world: &World| world.ends[A].said(|e| matches!(e, Event::Stranger(_)));
    world.give(A, stranger(), &knock(66));
    world.run(secs(1));
    assert_eq!(told(&world), 0);
    world.run(secs(2));
    assert_eq!(told(&world), 1);
    // With the peer's key as well, before or after it, it is the peer.
    for right_first in [true, false] {
        world.run(Duration::from_secs(70));
        let knocks = if right_first { [knock(2), knock(66)] } else { [knock(67), knock(2)] };
        knocks.iter().for_each(|knock| _ = world.give(A, "203.0.113.9:9".parse().unwrap(), knock));
        world.run(secs(5));
        assert_eq!(told(&world), 1, "right first: {right_first}");
    }
}

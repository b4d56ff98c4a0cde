//! Keys change while the line carries traffic: every order of the steps, every state between them, and what a key that was
//! taken out can still do, which is nothing. Each frame is numbered: none may be lost, come twice or out of turn.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;
use support::{scenes::*, *};
use tieline::{
    keys::{PublicKey, SecretKey},
    protocol::{
        Event,
        control::State,
        crypto::OpenKeys,
        link::{DownCause, KeysInUse, RekeyTimes},
        wire::{self, Kind},
    },
};

/// How long the line may take to move once both ends have what it takes: this end asks again every 30 s.
const ASKED_AGAIN: Duration = secs(36);

fn public(secret: u8) -> PublicKey {
    SecretKey::from_bytes([secret; 32]).public().unwrap()
}

/// Two ends that are Up and carry frames both ways, with keys 1 and 2.
fn busy(set: impl FnOnce(&mut [EndSetup; 2])) -> World {
    let mut world = up(pair_with(set));
    world.frames.ordered = true;
    world.start_traffic(Traffic { rate: 200.0, longest: 300 });
    world.run(ms(300));
    world
}

/// This end's config names these keys of the peer's from now on.
fn list(world: &mut World, end: usize, secrets: &[u8]) {
    world.ends[end].peers = secrets.iter().map(|secret| public(*secret)).collect();
    world.reload(end);
}

/// This end has another key.
fn change(world: &mut World, end: usize, secret: u8) {
    world.ends[end].setup.secret = [secret; 32];
    world.reload(end);
}

fn preshared(world: &mut World, end: usize, keys: &[u8]) {
    world.ends[end].setup.psks = keys.iter().map(|key| [*key; 32]).collect();
    world.reload(end);
}

fn in_use(world: &World, end: usize) -> KeysInUse {
    world.status(end).session.expect("a session").keys
}

/// Whether both ends use the keys of these secrets.
fn under(world: &World, secrets: [u8; 2]) -> bool {
    let keys = secrets.map(public);
    world.together()
        && [A, B].iter().all(|&end| (in_use(world, end).own, in_use(world, end).peer) == (keys[end], keys[1 - end]))
}

/// The line has carried every frame, and was Up all the time.
#[track_caller]
fn unbroken(world: &mut World) {
    world.stop_traffic();
    world.run(ms(500));
    for end in [A, B] {
        let (sealed, delivered) = (world.ends[1 - end].sealed, world.ends[end].delivered);
        assert!(sealed > 50, "hardly any traffic");
        assert_eq!(sealed, delivered, "frames to {end} were lost");
        let left = world.ends[end].said(|e| matches!(e, Event::State { cause: Some(_), .. }));
        assert_eq!(left, 0, "{end} was not Up all the time");
    }
}

/// Everything this end was ever sent by the other, sent once more, and a Knock of a thief of the other's old key: silence.
#[track_caller]
fn nothing_of(world: &mut World, end: usize, old: u8) {
    for kind in [Kind::Knock, Kind::Init, Kind::Challenge, Kind::Response] {
        for flight in world.logged(1 - end, kind) {
            let before = seen(world, end);
            let answers = world.give(end, flight.from, &flight.bytes);
            assert!(answers.is_empty(), "a recorded {kind:?} drew {answers:?}");
            assert_eq!(seen(world, end), before);
        }
    }
    let thief = SecretKey::from_bytes([old; 32]);
    let own = SecretKey::from_bytes(world.ends[end].setup.secret).public().unwrap();
    let keys = OpenKeys::derive(&thief, &public(old), &own).unwrap();
    refused(world, end, stranger(), &wire::knock(&[9; 16], &keys.sending), UNAUTHENTIC);
}

type Set = Box<dyn Fn(&mut [EndSetup; 2])>;

/// The ways a link can be set up that matter here.
fn kinds() -> Vec<Set> {
    vec![
        Box::new(|_| {}),
        Box::new(|setups| setups.iter_mut().for_each(|setup| setup.params.post_quantum = false)),
        Box::new(|setups| setups[A].knows_peer = false),
        Box::new(|setups| setups[B].knows_peer = false),
        Box::new(|setups| setups.iter_mut().for_each(|setup| setup.psks = vec![[5; 32]])),
    ]
}

#[test]
fn a_key_is_changed_in_two_steps_and_nothing_is_lost() {
    for set in kinds() {
        for new in [11, 12, 13, 14] {
            let mut world = busy(&set);
            list(&mut world, B, &[1, new]);
            world.run(secs(2));
            assert!(under(&world, [1, 2]), "listing a key changes nothing");
            change(&mut world, A, new);
            assert!(world.run_until(secs(1), |w| under(w, [new, 2])), "the line did not move");
            world.run(secs(1));
            list(&mut world, B, &[new]);
            world.run(secs(130)); // past a rekey
            assert!(under(&world, [new, 2]));
            for end in [A, B] {
                assert_eq!(world.ends[end].said(|e| matches!(e, Event::Keys(_))), 1, "it moved once");
                assert_eq!(world.ends[end].said(|e| matches!(e, Event::NotMoved { .. })), 0);
                assert!(!world.status(end).waits_for_keys);
            }
            unbroken(&mut world);
            world.run(secs(11)); // Knocks answered before are silent too
            nothing_of(&mut world, B, 1);
        }
    }
}

#[test]
fn a_peer_that_knocks_with_an_old_key_too_is_no_stranger() {
    let mut world = busy(|setups| setups[A].knows_peer = false);
    list(&mut world, B, &[1, 11]);
    change(&mut world, A, 11);
    assert!(world.run_until(secs(1), |w| under(w, [11, 2])));
    // B has another process, which knocks with both keys at once.
    for end in [A, B] {
        world.kill(end);
    }
    for end in [A, B] {
        world.start(end);
    }
    assert!(world.run_until(secs(5), |w| under(w, [11, 2])));
    world.run(secs(70));
    assert!(drops(&mut world, A)[UNAUTHENTIC] > 0, "B has not knocked with the old key");
    assert_eq!(world.ends[A].said(|e| matches!(e, Event::Stranger(_))), 0);
}

#[test]
fn a_key_changed_before_the_peer_knows_it_leaves_the_line_as_it_is() {
    for set in kinds() {
        let mut world = busy(&set);
        change(&mut world, A, 11);
        world.run(secs(400)); // two rekeys with the old key, and a dozen knocks with the new one
        assert!(under(&world, [1, 2]));
        assert!(world.status(A).waits_for_keys && !world.status(B).waits_for_keys);
        let asked = world.ends[A].said(|e| *e == Event::NotMoved { own: true });
        assert!((10..=13).contains(&asked), "asked {asked} times in 400 s");
        list(&mut world, B, &[1, 11]);
        assert!(world.run_until(ASKED_AGAIN, |w| under(w, [11, 2])));
        list(&mut world, B, &[11]);
        world.run(secs(5));
        unbroken(&mut world);
    }
}

#[test]
fn a_change_taken_back_leaves_the_line_as_it_is() {
    let mut world = busy(|_| {});
    change(&mut world, A, 11);
    world.run(secs(7));
    change(&mut world, A, 1);
    world.run(secs(70));
    assert!(under(&world, [1, 2]) && !world.status(A).waits_for_keys);
    assert_eq!(world.ends[A].said(|e| matches!(e, Event::NotMoved { .. })), 1, "asked on without need");
    unbroken(&mut world);
}

#[test]
fn both_ends_change_at_once() {
    for set in kinds() {
        let mut world = busy(&set);
        list(&mut world, A, &[2, 12]);
        list(&mut world, B, &[1, 11]);
        change(&mut world, A, 11);
        change(&mut world, B, 12);
        assert!(world.run_until(secs(1), |w| under(w, [11, 12])), "the line did not move");
        world.run(ms(100)); // taking the old keys out, one may not hurry ahead of what is on its way
        list(&mut world, A, &[12]);
        list(&mut world, B, &[11]);
        world.run(secs(20));
        assert!(under(&world, [11, 12]));
        unbroken(&mut world);
    }
}

/// Both ends go to new keys, each step of each at any time: 20 orders of A's three steps and B's three.
#[test]
fn every_order_of_both_ends_steps() {
    for order in 0u32..64 {
        if order.count_ones() != 3 {
            continue;
        }
        let mut world = busy(|_| {});
        let mut done = [0, 0];
        for step in 0..6 {
            let end = (order >> step & 1) as usize;
            let [own, peer] = if end == A { [11, 12] } else { [12, 11] };
            match done[end] {
                0 => list(&mut world, end, &[peer - 10, peer]),
                1 => change(&mut world, end, own),
                // The old key is taken out once the peer uses the new one, as a user would.
                _ => {
                    if in_use(&world, end).peer == public(peer) {
                        list(&mut world, end, &[peer]);
                    }
                }
            }
            done[end] += 1;
            world.run(secs(3));
        }
        assert!(world.run_until(ASKED_AGAIN, |w| under(w, [11, 12])), "order {order:06b}: the line did not move");
        for (end, peer) in [(A, 12), (B, 11)] {
            list(&mut world, end, &[peer]);
        }
        world.run(secs(3));
        assert!(under(&world, [11, 12]), "order {order:06b}");
        unbroken(&mut world);
    }
}

#[test]
fn an_end_restarted_between_any_two_steps_finds_its_peer() {
    let steps: [fn(&mut World); 4] =
        [|world| list(world, B, &[1, 11]), |world| change(world, A, 11), |world| list(world, B, &[11]), |_| {}];
    for set in kinds() {
        for until in 1..=steps.len() {
            for restarted in [vec![A], vec![B], vec![A, B], vec![B, A]] {
                for pause in [ms(5), ms(35), secs(1)] {
                    let mut world = pair_with(&set);
                    assert!(world.run_until(secs(3), World::together));
                    for step in &steps[..until] {
                        step(&mut world);
                        world.run(if until == 2 { pause } else { secs(1) });
                    }
                    for end in &restarted {
                        world.kill(*end);
                        world.run(ms(50));
                        world.start(*end);
                    }
                    let what = format!("step {until}, {restarted:?} restarted after {pause:?}");
                    assert!(world.run_until(secs(20), World::together), "not together: {what}");
                    let own = if until > 1 { 11 } else { 1 };
                    assert!(world.run_until(secs(5), |w| under(w, [own, 2])), "under another key: {what}");
                    carries(&mut world);
                }
            }
        }
    }
}

/// The wrong order, and the peer is restarted: the end that changed its key is still met under the old one.
#[test]
fn a_peer_that_restarts_without_knowing_the_new_key_is_found() {
    for set in kinds() {
        let mut world = busy(&set);
        change(&mut world, A, 11);
        world.run(secs(2));
        world.kill(B);
        world.run(secs(2));
        world.start(B);
        assert!(world.run_until(secs(12), |w| under(w, [1, 2])), "not together again");
        world.stop_traffic();
        world.run(ms(100));
        carries(&mut world);
        // Once no session is left that was made with it, the old key is gone.
        world.kill(B);
        world.run(secs(200));
        world.start(B);
        world.run(secs(30));
        assert!(world.status(A).session.is_none() && world.status(B).session.is_none());
        list(&mut world, B, &[11]);
        assert!(world.run_until(secs(12), |w| under(w, [11, 2])));
        carries(&mut world);
    }
}

#[test]
fn a_key_taken_out_ends_its_sessions_at_once() {
    for set in kinds() {
        let mut world = up(pair_with(&set));
        list(&mut world, B, &[11]);
        let status = world.status(B);
        assert!(status.session.is_none() && status.state == State::Down && status.path.is_some());
        let removed = |e: &Event| matches!(e, Event::State { cause: Some(DownCause::KeyRemoved), .. });
        assert_eq!(world.ends[B].said(removed), 1);
        world.run(ms(200));
        let before = world.ends[B].delivered;
        assert!(world.send_frame(A, 100), "A does not know yet");
        world.run(secs(60));
        assert_eq!(world.ends[B].delivered, before, "a frame of a removed key was delivered");
        assert!(world.status(B).session.is_none());
        nothing_of(&mut world, B, 1);
        change(&mut world, A, 11);
        assert!(world.run_until(secs(12), |w| under(w, [11, 2])));
        carries(&mut world);
    }
}

/// Cold-open datagrams that are in the mailbox when their key is taken out.
#[test]
fn a_datagram_that_passed_before_its_key_was_taken_out_is_dropped() {
    use tieline::protocol::{Input, Path, Received, Small, SocketId};
    let mut world = up(a_opens());
    let keys = open_keys(&world, A);
    let mut knock = wire::knock(&[8; 16], &keys.sending);
    let path = Path { socket: SocketId(0), local: None, peer: stranger() };
    let now = world.ends[B].time(world.now);
    assert_eq!(world.ends[B].process().receiver.receive(now, path, &mut knock), Received::Cold);
    list(&mut world, B, &[11]);
    let dropped = drops(&mut world, B)[UNAUTHENTIC];
    let input = Input::Cold { path, datagram: Small::new(&knock) };
    world.ends[B].process().link.handle_input(now, input);
    assert!(world.ends[B].process().link.poll_output().is_none(), "it was answered");
    assert_eq!(drops(&mut world, B)[UNAUTHENTIC], dropped + 1);
}

#[test]
fn a_preshared_key_is_changed_in_three_steps_and_nothing_is_lost() {
    for set in kinds() {
        for far in [A, B] {
            let here = 1 - far;
            let mut world = busy(|setups| {
                set(setups);
                setups.iter_mut().for_each(|setup| setup.psks = vec![[5; 32]]);
            });
            let uses = |world: &World, end: usize| in_use(world, end).preshared;
            preshared(&mut world, far, &[5, 6]);
            world.run(secs(3));
            preshared(&mut world, here, &[6, 5]);
            world.run(secs(3));
            assert_eq!(
                [uses(&world, far), uses(&world, here)],
                [Some(1), Some(2)],
                "it moves when both prefer the new one"
            );
            assert!(world.status(here).waits_for_keys && !world.status(far).waits_for_keys);
            preshared(&mut world, far, &[6, 5]);
            let moved = |w: &World| w.together() && [A, B].iter().all(|end| uses(w, *end) == Some(1));
            assert!(world.run_until(secs(1), moved), "the line did not move");
            world.run(ms(100));
            preshared(&mut world, far, &[6]);
            preshared(&mut world, here, &[6]);
            world.run(secs(130));
            assert!(moved(&world) && ![A, B].iter().any(|end| world.status(*end).waits_for_keys));
            let moves = world.ends[here].said(|e| matches!(e, Event::Keys(_)));
            assert_eq!(moves, 1);
            assert_eq!(world.ends[here].said(|e| matches!(e, Event::PresharedKeysDiffer)), 0);
            unbroken(&mut world);
        }
    }
}

#[test]
fn who_waits_for_the_other_to_prefer_the_new_preshared_key_asks_now_and_then() {
    let mut world = busy(|setups| setups.iter_mut().for_each(|setup| setup.psks = vec![[5; 32]]));
    preshared(&mut world, B, &[5, 6]);
    preshared(&mut world, A, &[6, 5]);
    let asked = |world: &World| world.logged(A, Kind::Init).len();
    let (before, epoch) = (asked(&world), world.status(A).session.unwrap().epoch);
    world.run(secs(100));
    // A Response under the old key is not taken, so each attempt sends its Init five times.
    assert!((5..=4 * 5).contains(&(asked(&world) - before)), "{} Inits", asked(&world) - before);
    assert_eq!(world.status(A).session.unwrap().epoch, epoch, "a session that nobody needs");
    unbroken(&mut world);
}

#[test]
fn with_preshared_keys_at_any_step_the_ends_find_each_other() {
    let steps: [(usize, &[u8]); 5] = [(B, &[5, 6]), (A, &[6, 5]), (B, &[6, 5]), (A, &[6]), (B, &[6])];
    for set in kinds() {
        for until in 0..=steps.len() {
            for restarted in [vec![A], vec![B], vec![A, B], vec![B, A]] {
                let mut world = pair_with(|setups| {
                    set(setups);
                    setups.iter_mut().for_each(|setup| setup.psks = vec![[5; 32]]);
                });
                assert!(world.run_until(secs(3), World::together));
                for (end, keys) in &steps[..until] {
                    preshared(&mut world, *end, keys);
                    world.run(ms(500));
                }
                for end in &restarted {
                    world.kill(*end);
                    world.run(ms(50));
                    world.start(*end);
                }
                assert!(world.run_until(secs(20), World::together), "step {until}, {restarted:?}");
                world.run(secs(40));
                assert!(world.together());
                carries(&mut world);
            }
        }
    }
}

#[test]
fn a_preshared_key_taken_out_ends_its_sessions_at_once_and_the_link_comes_back() {
    let mut world = up(pair_with(|setups| setups.iter_mut().for_each(|setup| setup.psks = vec![[5; 32]])));
    preshared(&mut world, B, &[6, 5]);
    preshared(&mut world, A, &[6]);
    assert!(world.status(A).session.is_none());
    assert!(world.run_until(secs(1), World::together), "not together again");
    carries(&mut world);
}

/// A child of the new pair, begun by A, and one of the old pair, begun by B, have the same epoch, and in both the lower key
/// belongs to the same side: only the pair tells their ranks apart.
#[test]
fn a_move_while_the_old_session_is_rekeyed_ends_in_one_session() {
    let key = |n: u8| *public(n).as_bytes();
    // A's old key is lower than B's, its new one higher; and the other way round.
    let sorted = |a: u8, b: u8, c: u8| key(a) < key(b) && key(b) < key(c);
    let triples = (1..40u8).flat_map(|a| (1..40).flat_map(move |b| (1..40).map(move |c| (a, b, c))));
    let (low, own, high) = triples.into_iter().find(|&(a, b, c)| sorted(a, b, c)).unwrap();
    for (old, new) in [(low, high), (high, low)] {
        for before in 0..100u64 {
            let mut setups = [EndSetup::new(old), EndSetup::new(own)];
            setups[A].knows_peer = false; // so B begins, and rekeys
            setups[B].params.rekey = RekeyTimes { initiator: secs(4), responder: secs(60) };
            let mut world = World::new(5, setups);
            world.start_both();
            assert!(world.run_until(secs(2), World::together));
            list(&mut world, B, &[old, new]);
            let established = world.status(B).session.unwrap().established;
            let rekey = world.ends[B].world_time(established) + secs(4).as_nanos() as u64;
            world.run_to(rekey - ms(before).as_nanos() as u64);
            change(&mut world, A, new);
            assert!(world.run_until(secs(2), |w| under(w, [new, own])), "{before} ms before the rekey");
            world.run(secs(3));
            let ranks = [A, B].map(|end| world.ends[end].process().watch.rank());
            assert_eq!(ranks[A], ranks[B], "two sessions, {before} ms before the rekey");
            carries(&mut world);
        }
    }
}

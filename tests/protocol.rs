//! The course of the protocol by name: `docs/PROTOCOL.md` is the text, these are its consequences. Attacks are in `hostile.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};
use support::{
    scenes::*,
    world::{Fate, Flight, Network, World},
    *,
};
use tieline::{
    keys::SecretKey,
    protocol::{
        Event,
        constants::{MIN_TRANSPORT, SESSION_LIFE},
        control::State,
        crypto::{MacKey, Prk, x25519},
        link::{DownCause, LinkMtu, RekeyTimes},
        wire::{self, Kind, Verdict},
    },
};

// --- the cold open --------------------------------------------------------------------------------------------

#[test]
fn init_replay_same_token_after_confirm() {
    let mut world = up(a_opens());
    let init = world.logged(A, Kind::Init).pop().unwrap();
    refused(&mut world, B, init.from, &init.bytes, REPLAYED);
    world.run(secs(5));
    refused(&mut world, B, init.from, &init.bytes, REPLAYED);
    carries(&mut world);
}

#[test]
fn init_replay_old_noise_under_fresh_token() {
    let mut world = up(a_opens());
    let old = world.logged(A, Kind::Init).pop().unwrap();
    // One who has K, but neither ss nor a static secret: Knocks and MACs are his, Noise is not.
    let key = open_keys(&world, A).sending;
    let nonce = [7; 16];
    let challenge = world.give(B, stranger(), &wire::knock(&nonce, &key)).pop().expect("a Challenge");
    let token = challenge.bytes[20..44].try_into().unwrap();
    let noise = old.bytes[44..108].try_into().unwrap();
    refused(&mut world, B, stranger(), &wire::init(&nonce, &token, &noise, &key), UNAUTHENTIC);
    // The token is used up all the same, and with the old nonce it never was one.
    refused(&mut world, B, stranger(), &wire::init(&nonce, &token, &noise, &key), REPLAYED);
    let old_nonce = old.bytes[4..20].try_into().unwrap();
    refused(&mut world, B, stranger(), &wire::init(&old_nonce, &token, &noise, &key), UNAUTHENTIC);
    carries(&mut world);
}

#[test]
fn an_attempt_takes_up_an_address_that_is_resolved_meanwhile() {
    let mut world = a_opens();
    world.kill(A);
    world.log = Some(Vec::new());
    let right = std::mem::replace(&mut world.ends[A].addresses, vec![stranger()]);
    world.start(A);
    world.run(ms(1_000));
    let knocks = |world: &World, to| world.logged(A, Kind::Knock).iter().filter(|f| f.to == to).count();
    assert_eq!((knocks(&world, stranger()), knocks(&world, right[0])), (3, 0), "at 0, 0.3 and 0.9 s");
    world.name(A, 0, &right);
    world.carry_out(A);
    world.run(ms(200));
    assert_eq!((knocks(&world, stranger()), knocks(&world, right[0])), (3, 1));
    assert!(world.together(), "it waits for its next attempt");
    // What is resolved later changes nothing.
    world.name(A, 0, &[stranger()]);
    world.carry_out(A);
    world.run(secs(2));
    assert_eq!(knocks(&world, stranger()), 3);
    carries(&mut world);
}

/// Addresses where nobody is.
fn nowhere(count: u16) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|n| SocketAddr::new(stranger().ip(), 1_000 + n))
}

#[test]
fn however_many_addresses_a_name_has_all_are_knocked_at_in_turn_and_few_at_a_time() {
    for count in [4, 5, 8, 9, 30] {
        let mut world = a_opens();
        world.kill(A);
        world.log = Some(Vec::new());
        let right = world.ends[A].addresses[0];
        world.ends[A].addresses = nowhere(count - 1).chain([right]).collect();
        world.start(A);
        let begun = world.now;
        assert!(world.run_until(secs(20), World::together), "not found among {count} addresses");
        let took = Duration::from_nanos(world.now - begun);
        println!("the last of {count} addresses is found after {took:.2?}");
        let knocks = world.logged(A, Kind::Knock);
        let at_once = knocks.iter().filter(|flight| flight.to == knocks[0].to).count();
        assert!(knocks.len() <= (at_once + 1) * count as usize, "{} knocks", knocks.len());
        assert!(took <= secs(if count <= 9 { 2 } else { 9 }), "{took:?} for {count} addresses");
        carries(&mut world);
    }
}

#[test]
fn a_peer_that_is_gone_is_looked_for_at_all_addresses_the_proven_one_always_among_them() {
    let mut world = up(a_opens());
    let proven = world.status(A).path.unwrap().peer;
    // B is away for a while, and its name means many addresses by then.
    world.network.blocked = [true; 2];
    let many: Vec<SocketAddr> = nowhere(9).collect();
    world.name(A, 0, &many);
    world.carry_out(A);
    let mut read = world.log.as_ref().unwrap().len();
    world.run(secs(20));
    let sent = world.news(&mut read);
    for kind in [Kind::Knock, Kind::Control] {
        let to = |address| sent.iter().filter(|f| f.sender == A && f.kind() == Some(kind) && f.to == address).count();
        assert!(
            many.iter().all(|address| to(*address) > 0),
            "{kind:?} to {:?}",
            many.iter().map(|a| to(*a)).collect::<Vec<_>>()
        );
        assert!(many.iter().all(|address| to(*address) < to(proven)), "{kind:?}");
    }
    world.network.blocked = [false; 2];
    assert!(world.run_until(secs(4), World::together));
    carries(&mut world);
}

#[test]
fn init_from_before_responder_reboot() {
    let mut world = a_opens();
    world.decide(|flight| if flight.kind() == Some(Kind::Init) { Fate::Drop } else { Fate::Pass });
    let init = run_until_sent(&mut world, A, Kind::Init);
    world.kill(B);
    world.start(B);
    refused(&mut world, B, init.from, &init.bytes, UNAUTHENTIC);
    assert!(world.status(B).session.is_none());
    world.decide_nothing();
    assert!(world.run_until(secs(12), World::together));
}

#[test]
fn init_from_other_source_address() {
    let mut world = a_opens();
    world.decide(|flight| if flight.kind() == Some(Kind::Init) { Fate::Hold } else { Fate::Pass });
    let init = run_until_sent(&mut world, A, Kind::Init);
    refused(&mut world, B, stranger(), &init.bytes, UNAUTHENTIC);
    let other_port = SocketAddr::new(init.from.ip(), init.from.port() ^ 1);
    refused(&mut world, B, other_port, &init.bytes, UNAUTHENTIC);
    assert_eq!(world.give(B, init.from, &init.bytes).len(), 1, "from where the token was sent it is good");
}

#[test]
fn response_lost_init_resent() {
    let mut world = a_opens();
    let mut lost = 0;
    world.decide(move |flight| {
        lost += u32::from(flight.kind() == Some(Kind::Response));
        if flight.kind() == Some(Kind::Response) && lost <= 2 { Fate::Drop } else { Fate::Pass }
    });
    let first = run_until_sent(&mut world, B, Kind::Response);
    let draws = world.ends[B].process().draws.clone();
    let spent = draws.keys.load(Relaxed);
    assert_eq!(spent, 2, "the token key, and one ephemeral");
    assert!(world.run_until(secs(3), |w| w.logged(B, Kind::Response).len() == 3));
    assert_eq!(draws.keys.load(Relaxed), spent, "another ephemeral was drawn for a resend");
    assert!(world.logged(B, Kind::Response).iter().all(|again| again.bytes == first.bytes));
    let inits = world.logged(A, Kind::Init);
    assert!(inits.len() == 3 && inits.iter().all(|again| again.bytes == inits[0].bytes));
    assert!(world.run_until(secs(1), World::together));
}

#[test]
fn a_response_is_resent_five_times() {
    let mut world = a_opens();
    world.decide(|flight| if flight.kind() == Some(Kind::Response) { Fate::Drop } else { Fate::Pass });
    run_until_sent(&mut world, B, Kind::Response);
    let init = world.logged(A, Kind::Init).pop().unwrap();
    for _ in 0..5 {
        assert_eq!(world.give(B, init.from, &init.bytes).len(), 1);
    }
    refused(&mut world, B, init.from, &init.bytes, REPLAYED);
}

/// One order in which the datagrams of two crosswise cold opens arrive: at each point, which of those on their way
/// comes next. Gives how many choices there were at each point.
fn play(order: &[usize], hybrid: bool) -> Vec<usize> {
    let mut world = World::new(
        3,
        [EndSetup::new(1), EndSetup::new(2)].map(|mut setup| {
            setup.params.post_quantum = hybrid;
            setup
        }),
    );
    world.decide(|_| Fate::Hold);
    world.start_both();
    let mut choices = Vec::new();
    // Each cold datagram may come at any moment; what is sealed comes in order, each way's all at once.
    while world.held.iter().any(Flight::cold) && world.now < 250_000_000 {
        let mut next: Vec<Vec<usize>> =
            (0..world.held.len()).filter(|&i| world.held[i].cold()).map(|i| vec![i]).collect();
        for end in [A, B] {
            let sealed: Vec<usize> =
                (0..world.held.len()).filter(|&i| world.held[i].sender == end && !world.held[i].cold()).collect();
            next.extend((!sealed.is_empty()).then_some(sealed));
        }
        let choice = order.get(choices.len()).copied().unwrap_or(0);
        choices.push(next.len());
        for (taken, i) in next[choice].clone().into_iter().enumerate() {
            let flight = world.held.remove(i - taken);
            world.release(flight);
        }
        world.run(ms(11));
    }
    world.decide_nothing();
    for flight in std::mem::take(&mut world.held) {
        world.release(flight);
    }
    assert!(world.run_until(secs(4), World::together), "not together after {order:?}, hybrid {hybrid}");
    let epochs = [A, B].map(|end| epoch(&world, end));
    world.run(secs(5));
    assert!(world.together(), "came apart after {order:?}");
    assert_eq!([A, B].map(|end| epoch(&world, end)), epochs, "changed session after {order:?}");
    carries(&mut world);
    choices
}

#[test]
fn simultaneous_open_all_interleavings() {
    for hybrid in [false, true] {
        let (mut order, mut played) = (Vec::new(), 0);
        loop {
            let choices = play(&order, hybrid);
            played += 1;
            // The next order: the last choice that was not the last of its kind goes one further.
            order.resize(choices.len(), 0);
            let Some(at) = (0..choices.len()).rev().find(|&at| order[at] + 1 < choices[at]) else { break };
            order.truncate(at + 1);
            order[at] += 1;
        }
        println!("hybrid {hybrid}: {played} orders");
        assert!(played >= 70, "two chains of four interleave in 70 ways at least, not {played}");
    }
}

#[test]
fn only_higher_keys_knocks_arrive() {
    let mut world = World::new(1, [EndSetup::new(1), EndSetup::new(2)]);
    world.log = Some(Vec::new());
    let keys = [A, B].map(|end| *world.ends[end].setup.public().as_bytes());
    let higher = if keys[A] > keys[B] { A } else { B };
    world.decide(move |flight| {
        let lost = flight.kind() == Some(Kind::Knock) && flight.sender != higher;
        if lost { Fate::Drop } else { Fate::Pass }
    });
    world.start_both();
    let mut world = up(world);
    assert!(world.logged(higher, Kind::Init).len() == 1 && world.logged(1 - higher, Kind::Init).is_empty());
    carries(&mut world);
    world.run(secs(20));
    assert_eq!(world.logged(1 - higher, Kind::Knock).len(), 1, "knocking went on");
}

#[test]
fn holder_of_both_public_keys_knocks() {
    let mut world = up(a_opens());
    let [a, b] = [A, B].map(|end| world.ends[end].setup.public());
    let mallory = SecretKey::from_bytes([66; 32]);
    let m = mallory.public().unwrap();
    // Every key he can make of what he has.
    let key = |ikm: &[u8], from: &[u8; 32], to: &[u8; 32]| -> MacKey {
        MacKey::new(&Prk::extract(b"tieline v1 open", ikm).expand(&[from, to]).unwrap())
    };
    let (ma, mb) =
        (x25519(mallory.as_bytes(), a.as_bytes()).unwrap(), x25519(mallory.as_bytes(), b.as_bytes()).unwrap());
    let secrets: [&[u8]; 5] = [&*ma, &*mb, &[0; 32], a.as_bytes(), b.as_bytes()];
    let mut knocks = 0;
    for ikm in secrets {
        for (from, to) in [(&a, &b), (&b, &a), (&m, &b), (&m, &a)] {
            let knock = wire::knock(&[9; 16], &key(ikm, from.as_bytes(), to.as_bytes()));
            refused(&mut world, B, stranger(), &knock, UNAUTHENTIC);
            refused(&mut world, A, stranger(), &knock, UNAUTHENTIC);
            knocks += 1;
        }
    }
    // It is said once, not each time, when he has had time to show another key.
    world.run(secs(3));
    assert_eq!(world.ends[B].said(|e| *e == Event::Stranger(stranger())), 1, "after {knocks} knocks");
    carries(&mut world);
}

#[test]
fn reflect_every_datagram_to_its_sender() {
    let mut world = pair();
    world.start_traffic(Traffic { rate: 20.0, longest: 300 });
    let (mut reflected, end) = (0, secs(6).as_nanos() as u64);
    while world.now < end {
        if !world.step(end) {
            break;
        }
        for flight in world.news(&mut reflected) {
            let (before, dropped) = (seen(&world, flight.sender), world.ends[flight.sender].drops());
            let answers = world.give(flight.sender, flight.to, &flight.bytes);
            assert!(answers.is_empty(), "a reflected {:?} drew {answers:?}", flight.kind());
            assert_eq!(world.ends[flight.sender].drops(), dropped + 1);
            assert_eq!(seen(&world, flight.sender), before);
        }
    }
    assert!(world.together() && reflected > 100, "{reflected} reflected");
}

#[test]
fn wrong_preshared_key_is_said() {
    for psks in [[Some([1; 32]), Some([2; 32])], [Some([1; 32]), None], [None, Some([2; 32])]] {
        let mut world = pair_with(|setups| {
            setups[B].knows_peer = false;
            (setups[A].psks, setups[B].psks) = (psks[0].into_iter().collect(), psks[1].into_iter().collect());
        });
        world.run(secs(4));
        assert!(world.ends[A].said(|e| *e == Event::PresharedKeysDiffer) > 0);
        assert!([A, B].iter().all(|end| world.status(*end).session.is_none()));
        assert_eq!(world.ends[A].said(|e| matches!(e, Event::Session { .. })), 0);
    }
}

#[test]
fn no_common_cipher_is_said_and_waits() {
    let mut world = pair_with(|setups| {
        setups[B].knows_peer = false;
        (setups[A].params.aes, setups[B].params.chacha) = (false, false);
    });
    world.run(secs(29));
    assert_eq!(world.ends[A].said(|e| *e == Event::Refused(Verdict::NoCommonCipher)), 1);
    assert_eq!(world.ends[B].said(|e| *e == Event::Refusing(Verdict::NoCommonCipher)), 1);
    assert_eq!(world.logged(A, Kind::Knock).len(), 1, "knocked again within 30 s");
    world.run(secs(2));
    assert_eq!(world.logged(A, Kind::Knock).len(), 2, "did not knock again after 30 s");
    assert!(world.status(A).session.is_none() && world.status(B).session.is_none());
}

#[test]
fn layers_that_differ_are_said_at_both_ends_and_no_session_comes_of_it() {
    for ethernet in [A, B] {
        let mut world = pair_with(|setups| {
            setups[B].knows_peer = false;
            setups[ethernet].params.ethernet = true;
        });
        world.run(secs(29));
        assert_eq!(world.ends[A].said(|e| *e == Event::Refused(Verdict::LayersDiffer)), 1);
        assert_eq!(world.ends[B].said(|e| *e == Event::Refusing(Verdict::LayersDiffer)), 1);
        assert!([A, B].iter().all(|end| world.status(*end).session.is_none()));
        assert_eq!(world.logged(A, Kind::Knock).len(), 1, "knocked again within 30 s");
    }
    let world = pair_with(|setups| setups.iter_mut().for_each(|setup| setup.params.ethernet = true));
    carries(&mut up(world));
}

#[test]
fn a_clock_at_its_beginning_is_as_good_as_any() {
    for boots in [[0, 0], [0, 1 << 60], [1 << 60, 0]] {
        let world = pair_with(|setups| (setups[A].boot, setups[B].boot) = (boots[0], boots[1]));
        let mut world = up(world);
        world.run(secs(40));
        carries(&mut world);
        let rtt = world.status(A).rtt.expect("a round-trip time");
        assert!((ms(20)..ms(22)).contains(&rtt), "{rtt:?} over a line of 20 ms");
    }
}

#[test]
fn without_entropy_nothing_spins_and_later_all_is_well() {
    let mut world = a_opens();
    world.ends[A].process().draws.dry.store(true, Relaxed);
    world.run(secs(30));
    assert!(world.ends[A].said(|e| *e == Event::CryptoFailed) < 60, "said again and again");
    assert!(world.status(A).session.is_none());
    world.ends[A].process().draws.dry.store(false, Relaxed);
    assert!(world.run_until(secs(12), World::together));
}

#[test]
fn each_answer_has_a_higher_epoch_than_those_before() {
    let (mut world, mut puppet) = puppet();
    let mut answer = |world: &mut World, own| puppet.open(world, B, own).expect("a Response").peer.epoch;
    let first = answer(&mut world, 1);
    world.run(ms(150));
    assert_eq!(answer(&mut world, 1), first + 1);
    // What was never confirmed leaves no trace.
    world.run(secs(11));
    assert_eq!(answer(&mut world, 1), first);
    // Nor does what an Init says of its sender, which is not proven yet.
    world.run(ms(150));
    answer(&mut world, 70);
    world.run(ms(150));
    assert_eq!(answer(&mut world, 1), first + 2);
}

#[test]
fn inits_too_close_together_are_refused() {
    let (mut world, mut puppet) = puppet();
    assert!(puppet.open(&mut world, B, 1).is_some());
    world.run(ms(50));
    assert!(puppet.open(&mut world, B, 1).is_none(), "answered 50 ms after another");
    world.run(ms(51));
    assert!(puppet.open(&mut world, B, 1).is_some());
}

#[test]
fn user_data_in_a_bootstrap_is_malformed() {
    let (mut world, mut puppet) = puppet();
    let mut halves = puppet.open(&mut world, B, 1).expect("a Response").halves;
    let mut datagram = vec![0; 16 + 100 + 16];
    halves.sealers[0].seal(0, &mut datagram).unwrap();
    refused(&mut world, B, stranger(), &datagram, MALFORMED);
    // And control that has no place in one is dropped, though it opens.
    let goodbye = halves.control.seal_message(&[8]).unwrap();
    refused(&mut world, B, stranger(), &goodbye, MALFORMED);
    assert_eq!(world.ends[B].delivered, 0);
}

// --- bootstrap and rekey --------------------------------------------------------------------------------------

#[test]
fn bootstrap_confirmation_lost_five_times() {
    let mut world = a_opens();
    let mut parts = 0;
    world.decide(move |flight| {
        let part = rekey_part(flight) && flight.sender == A;
        parts += u32::from(part);
        if part && parts <= 5 * 3 { Fate::Drop } else { Fate::Pass }
    });
    // The sixth sending comes 0.25 + 0.5 + 1 + 2 + 2 s after the first.
    assert!(world.run_until(secs(7), World::together));
    assert!((5_750..6_000).contains(&(world.now / 1_000_000)), "together after {} ms", world.now / 1_000_000);
    assert_eq!(world.logged(A, Kind::Init).len(), 1, "it took another cold open");
    assert_eq!(world.ends[A].process().draws.kem.load(Relaxed), 1);
    carries(&mut world);
}

#[test]
fn child_confirmation_lost_five_times() {
    let mut world = a_opens();
    let mut reports = 0;
    world.decide(move |flight| {
        let first = report(flight) && flight.sender == A;
        reports += u32::from(first);
        // The keepalive that goes with a new session would confirm it too.
        let keepalive = flight.kind() == Some(Kind::Data) && reports < 5;
        if first && reports <= 5 || keepalive { Fate::Drop } else { Fate::Pass }
    });
    assert!(world.run_until(secs(2), World::together));
    assert!((1_000..1_300).contains(&(world.now / 1_000_000)), "together after {} ms", world.now / 1_000_000);
    assert_eq!(world.logged(A, Kind::Init).len(), 1);
    carries(&mut world);
}

#[test]
fn rekey_parts_lost_duplicated_reordered() {
    let world = pair_with(|setups| {
        setups[B].knows_peer = false;
        setups[A].params.rekey = RekeyTimes { initiator: secs(4), responder: secs(90) };
    });
    let mut world = up(world);
    let (before, drops_before) = (epoch(&world, A), [drops(&mut world, A), drops(&mut world, B)]);
    let kem = |world: &mut World| [A, B].map(|end| world.ends[end].process().draws.kem.load(Relaxed));
    assert_eq!(kem(&mut world), [1, 1]);
    // Of each message's first sending one part is lost; everything else is kept, and let go backwards and twice.
    let kept = Rc::new(RefCell::new(Vec::new()));
    let (mut sent, keep) = ([0, 0], kept.clone());
    world.decide(move |flight| {
        if !rekey_part(flight) {
            return Fate::Pass;
        }
        sent[flight.sender] += 1;
        if sent[flight.sender] == 2 {
            return Fate::Drop;
        }
        keep.borrow_mut().push(flight.clone());
        Fate::Drop
    });
    world.start_traffic(Traffic { rate: 50.0, longest: 500 });
    for _ in 0..400 {
        world.run(ms(20));
        for flight in kept.borrow_mut().drain(..).rev() {
            for _ in 0..2 {
                world.release(flight.clone());
            }
        }
        if epoch(&world, A) > before && epoch(&world, B) > before {
            break;
        }
    }
    world.stop_traffic();
    world.run(ms(500));
    assert!(world.together() && epoch(&world, A) == before + 1);
    assert_eq!(kem(&mut world), [2, 2], "one exchange, one encapsulation");
    for end in [A, B] {
        let mut expected = drops_before[end];
        let now = drops(&mut world, end);
        expected[REPLAYED] = now[REPLAYED]; // the copies
        assert_eq!(now, expected);
        assert_eq!(world.ends[end].said(|e| matches!(e, Event::RekeyFailed(_))), 0);
        assert_eq!(world.ends[end].delivered, world.ends[1 - end].sealed, "user data was lost over a rekey");
    }
}

#[test]
fn both_ends_rekey_at_once() {
    let world = pair_with(|setups| {
        setups[B].knows_peer = false;
        // B's session is 10 ms younger: the network's delay.
        setups[A].params.rekey = RekeyTimes { initiator: ms(4_010), responder: secs(90) };
        setups[B].params.rekey = RekeyTimes { initiator: secs(90), responder: secs(4) };
    });
    let mut world = up(world);
    let before = epoch(&world, A);
    world.start_traffic(Traffic { rate: 200.0, longest: 500 });
    let parts = |world: &World, end| world.log.iter().flatten().filter(|f| rekey_part(f) && f.sender == end).count();
    let already = [A, B].map(|end| parts(&world, end));
    world.run(ms(4_000));
    world.stop_traffic();
    world.run(ms(500));
    // Each end sent its M1, and the M2 that answers the other's.
    assert_eq!([A, B].map(|end| parts(&world, end)), already.map(|n| n + 6));
    assert!(world.together() && epoch(&world, A) > before);
    for end in [A, B] {
        assert_eq!(world.ends[end].delivered, world.ends[1 - end].sealed, "user data was lost over a rekey");
    }
    carries(&mut world);
}

#[test]
fn a_rekey_that_cannot_be_answered_is_said_once() {
    let mut world = up(pair_with(|setups| {
        setups[B].knows_peer = false;
        setups[A].params.rekey = RekeyTimes { initiator: secs(4), responder: secs(90) };
    }));
    let before = drops(&mut world, B);
    world.ends[B].process().draws.dry.store(true, Relaxed);
    world.run(secs(10));
    world.ends[B].process().draws.dry.store(false, Relaxed);
    assert_eq!(world.ends[B].said(|e| matches!(e, Event::RekeyFailed(_))), 1);
    assert_eq!(drops(&mut world, B), before, "what A resends is not at fault");
    // The session runs to its stop, and a cold open follows.
    let epoch_then = epoch(&world, A);
    assert!(world.run_until(secs(180), |w| w.together() && epoch(w, A) > epoch_then));
    carries(&mut world);
}

#[test]
fn a_session_that_stops_just_after_a_report_leaves_no_timer_behind() {
    // Where no rekey comes through, an end is Up until its session stops; that is news to be reported, and there is
    // nothing to report it under. The world sees to it that no timer lies in the past.
    for interval in 50..58 {
        let mut world = up(pair_with(|setups| {
            setups.iter_mut().for_each(|setup| setup.params.interval = ms(interval));
            setups[B].knows_peer = false;
        }));
        let before = epoch(&world, A);
        world.decide(|flight| if rekey_part(flight) || flight.cold() { Fate::Drop } else { Fate::Pass });
        world.run(SESSION_LIFE + secs(1));
        assert!(world.status(A).session.is_none() && world.status(B).session.is_none());
        world.decide_nothing();
        assert!(world.run_until(secs(8), |w| w.together() && epoch(w, A) > before));
    }
}

#[test]
fn post_quantum_true_against_false() {
    for wishes in [[true, false], [false, true], [true, true], [false, false]] {
        let world = pair_with(|setups| {
            (setups[A].params.post_quantum, setups[B].params.post_quantum) = (wishes[0], wishes[1]);
        });
        let mut world = up(world);
        let hybrid = wishes[0] || wishes[1];
        for end in [A, B] {
            assert_eq!(world.status(end).session.unwrap().post_quantum, hybrid, "{wishes:?}");
            assert_eq!(world.ends[end].process().draws.kem.load(Relaxed) > 0, hybrid);
        }
        carries(&mut world);
    }
}

#[test]
fn both_implementations_of_ml_kem_understand_each_other() {
    for real in [A, B] {
        let mut world = up(pair_with(|setups| {
            setups[B].knows_peer = false;
            setups[real].real_entropy = true;
        }));
        assert!(world.status(real).session.unwrap().post_quantum);
        carries(&mut world);
    }
}

#[test]
fn sessions_are_replaced_before_they_end() {
    let mut world = up(a_opens());
    world.traffic = [None; 2];
    world.start_traffic(Traffic { rate: 2.0, longest: 100 });
    world.run(secs(1_000));
    world.stop_traffic();
    world.run(secs(1));
    assert!(world.together());
    // The first session is of epoch 2, under the bootstrap; one more every 120 s.
    assert_eq!(epoch(&world, A), 2 + 8);
    assert_eq!(world.ends[A].said(|e| matches!(e, Event::State { .. })), 2, "Init and Up, and never again");
    for end in [A, B] {
        assert_eq!(world.ends[end].delivered, world.ends[1 - end].sealed);
    }
}

#[test]
fn a_bootstrap_is_given_its_time_in_silence() {
    let mut world = up(pair());
    world.kill(A);
    world.start(A);
    let init = |w: &World| w.logged(A, Kind::Init).len() + w.logged(B, Kind::Init).len();
    // B still holds the old session, in which it hears nothing more; the rekey in the new bootstrap is slow.
    world.decide(|flight| if rekey_part(flight) { Fate::Drop } else { Fate::Pass });
    world.run(secs(3));
    let inits = init(&world); // one of each end: neither hears of the other's bootstrap
    world.run(secs(5));
    assert_eq!(init(&world), inits, "opened again and again, though there is a bootstrap");
    world.decide_nothing();
    assert!(world.run_until(secs(4), World::together));
}

// --- liveness -------------------------------------------------------------------------------------------------

#[test]
fn peer_reboots_while_up() {
    for knows in [[true, true], [true, false], [false, true]] {
        for rebooted in [A, B] {
            let world = pair_with(|setups| (setups[A].knows_peer, setups[B].knows_peer) = (knows[0], knows[1]));
            let mut world = up(world);
            world.run(ms(1_234));
            let before = epoch(&world, 1 - rebooted);
            world.kill(rebooted);
            world.start(rebooted);
            let from = world.now;
            let gone = world.run_until(secs(3), |w| w.together() && epoch(w, A) > before);
            assert!(gone, "not together 3 s after end {rebooted} was started again, knowing {knows:?}");
            println!("{knows:?}, {rebooted}: {} ms", (world.now - from) / 1_000_000);
            carries(&mut world);
        }
    }
}

#[test]
fn three_missed_reports_bring_the_line_down() {
    for interval in [50, 1_000, 5_000] {
        let world = pair_with(|setups| {
            setups[A].params.interval = ms(interval);
            setups[B].params.interval = ms(interval / 2).max(ms(50));
        });
        let mut world = up(world);
        world.run(ms(interval * 3));
        world.network.blocked = [false, true];
        let silence = ms(interval) * 3;
        let from = world.now;
        assert!(world.run_until(silence * 2, |w| w.status(A).state == State::Down));
        let took = Duration::from_nanos(world.now - from);
        // What was under way still came, and the last Report may have come up to an interval before.
        assert!(took > silence - ms(interval) - ms(15) && took <= silence + ms(15), "{took:?} for 3 × {interval} ms");
        let cause = Some(DownCause::Silence(silence));
        assert_eq!(world.ends[A].said(|e| *e == Event::State { state: State::Down, cause }), 1);
        // B still hears A, who says Down: B is not Up either, and says so.
        world.run(ms(interval));
        assert_ne!(world.status(B).state, State::Up);
        world.network.blocked = [false; 2];
        assert!(world.run_until(silence + secs(8), World::together));
    }
}

#[test]
fn an_end_shows_after_how_much_silence_the_line_counts_as_down() {
    let mut world = a_opens();
    world.kill(A);
    for end in [A, B] {
        world.kill(end);
        world.ends[end].setup.params.interval = [ms(100), secs(1)][end];
        world.start(end);
    }
    assert_eq!([A, B].map(|end| world.status(end).detection), [ms(300), secs(3)], "nothing is agreed yet");
    let mut world = up(world);
    assert_eq!([A, B].map(|end| world.status(end).detection), [secs(3); 2]);
    world.network.blocked = [true; 2];
    for end in [A, B] {
        assert!(world.run_until(secs(4), |world| world.status(end).state == State::Down));
        let cause = Some(DownCause::Silence(secs(3)));
        assert_eq!(world.ends[end].said(|e| *e == Event::State { state: State::Down, cause }), 1);
    }
}

/// Where Reports alone are to be heard, three in a row are lost often, and two and the third late more often still.
#[test]
fn an_idle_line_stays_up_where_three_of_ten_are_lost() {
    const HOURS: u64 = 2;
    let mut world = up(pair());
    world.log = None;
    world.network = Network { loss: [0.3; 2], delay: 500_000_000..560_000_000, ..Network::default() };
    let downs = |world: &World| {
        [A, B].map(|end| world.ends[end].said(|e| matches!(e, Event::State { state: State::Down, .. })))
    };
    let mut apart = 0;
    for _ in 0..HOURS * 3600 * 5 {
        world.run(ms(200));
        apart += u64::from([A, B].iter().any(|end| world.status(*end).state != State::Up));
    }
    // With Reports alone it is 200 times an hour at each end, and 16 % of the time.
    let [a, b] = downs(&world);
    assert!(a + b <= 2 * 2 * HOURS as usize, "Down {a} and {b} times in {HOURS} hours");
    assert!(apart * 1000 < HOURS * 3600 * 5 * 2, "apart {:.2} % of the time", apart as f64 / (HOURS * 180) as f64);
}

#[test]
fn only_a_peer_whose_report_is_overdue_is_asked() {
    let check = |flight: &Flight| flight.kind() == Some(Kind::Control) && flight.bytes.len() == 44;
    let asked = |world: &World| world.log.iter().flatten().filter(|f| f.sender == A && check(f)).count();
    let mut world = up(pair());
    world.run(secs(10));
    // Mtu is as long as PathCheck: both ends have said theirs by now.
    let offers = asked(&world);
    world.run(secs(60));
    assert_eq!(asked(&world), offers, "on a line that loses nothing");
    world.network.blocked = [true; 2];
    world.run(secs(10));
    // From 1⅛ to 3 s of silence, each eighth of a second; afterwards, while Down, each interval.
    let times = asked(&world) - offers;
    assert!((14..=24).contains(&times), "{times} times");
}

#[test]
fn goodbye_brings_the_line_down_at_once_and_wipes() {
    let mut world = up(a_opens());
    world.close(A);
    world.run(ms(11));
    let status = world.status(B);
    assert!(status.state == State::Down && status.session.is_none());
    assert_eq!(world.ends[B].said(|e| matches!(e, Event::State { cause: Some(DownCause::Goodbye), .. })), 1);
    assert!(!world.send_frame(B, 100), "sealed after goodbye");
    // The closing end answers nothing, and is gone after the third goodbye.
    let init = world.logged(A, Kind::Init).pop().unwrap();
    let knock = wire::knock(&[1; 16], &open_keys(&world, B).sending);
    assert!(world.give(A, init.to, &knock).is_empty());
    world.run(ms(120));
    assert!(!world.ends[A].running());
    world.start(A);
    assert!(world.run_until(secs(1), World::together), "not back within a second");
    carries(&mut world);
}

#[test]
fn what_was_opened_counts_though_the_notice_of_it_was_lost() {
    let mut setups = [EndSetup::new(1), EndSetup::new(2)];
    setups.iter_mut().for_each(|setup| setup.params.post_quantum = false);
    let mut world = World::new(1, setups);
    world.notice_loss = 1.0;
    // B gets nothing but A's data, and nobody gets B's Knocks.
    world.decide(|flight| match (flight.sender, flight.kind()) {
        (A, Some(Kind::Control)) | (B, Some(Kind::Knock)) => Fate::Drop,
        _ => Fate::Pass,
    });
    world.start_both();
    world.run(secs(2));
    assert!(world.status(B).session.is_some());
}

#[test]
fn figures_are_those_of_the_line() {
    let mut world = up(pair());
    world.network = Network { loss: [0.1; 2], delay: 20_000_000..20_000_001, ..Network::default() };
    world.start_traffic(Traffic { rate: 200.0, longest: 100 });
    world.run(secs(60));
    for end in [A, B] {
        let status = world.status(end);
        let rtt = status.rtt.unwrap();
        assert!((ms(39)..ms(41)).contains(&rtt), "rtt {rtt:?}");
        assert!(status.jitter.unwrap() < ms(1), "jitter {:?}", status.jitter);
        for loss in [status.tx_loss.unwrap(), status.rx_loss.unwrap()] {
            assert!((0.07..0.13).contains(&loss), "{loss} measured of 0.1");
        }
    }
    world.network = Network { delay: 20_000_000..60_000_000, ..Network::default() };
    world.run(secs(60));
    for end in [A, B] {
        let status = world.status(end);
        assert!((ms(60)..ms(100)).contains(&status.rtt.unwrap()), "rtt {:?}", status.rtt);
        assert!((ms(5)..ms(30)).contains(&status.jitter.unwrap()), "jitter {:?}", status.jitter);
        assert!(status.tx_loss.unwrap() < 0.02 && status.rx_loss.unwrap() < 0.02, "{status:?}");
    }
}

#[test]
fn a_late_report_of_the_old_family_spoils_no_figures() {
    let mut world = up(a_opens());
    world.start_traffic(Traffic { rate: 100.0, longest: 100 });
    world.run(secs(5));
    // A's last Report before it dies stays on its way …
    world.decide(|flight| if report(flight) && flight.sender == A { Fate::Hold } else { Fate::Pass });
    assert!(world.run_until(secs(2), |w| !w.held.is_empty()));
    let late = world.held.pop().unwrap();
    world.kill(A);
    world.start(A);
    let before = epoch(&world, B);
    // … until B uses A's new session, but before a Report under that.
    assert!(world.run_until(secs(3), |w| epoch(w, B) > before));
    world.give(B, late.from, &late.bytes);
    world.decide_nothing();
    for flight in std::mem::take(&mut world.held) {
        world.release(flight);
    }
    world.network.loss = [0.2; 2];
    world.run(secs(30));
    let loss = world.status(B).rx_loss.unwrap();
    assert!((0.15..0.25).contains(&loss), "{loss} measured of 0.2");
}

// --- an interface that is taken down ----------------------------------------------------------------------------

/// The states of both ends.
fn states(world: &World) -> [State; 2] {
    [A, B].map(|end| world.status(end).state)
}

/// How often an end said so since the event number `from`.
fn said_since(world: &World, end: usize, from: usize, what: impl Fn(&Event) -> bool) -> usize {
    world.ends[end].events[from..].iter().filter(|(_, event)| what(event)).count()
}

#[test]
fn an_end_knows_before_it_is_up_for_how_long_the_other_holds_the_link_back() {
    for holds in [A, B] {
        let mut world = up(pair());
        world.run(ms(1_234));
        let other = 1 - holds;
        assert_eq!([A, B].map(|end| world.status(end).held_by_peer), [None; 2]);
        world.set_hold(holds, ms(3_500));
        world.set_interface(holds, false);
        world.run(ms(500));
        assert_eq!(world.status(other).held_by_peer, None, "it is down anyway");
        world.set_interface(holds, true);
        let came_up = (0..100).find(|_| {
            world.run(ms(1));
            world.status(other).state == State::Up
        });
        assert!(came_up.is_some());
        // From its first moment on: else its carrier would come and go.
        let until = world.status(other).held_by_peer.expect("it does not know");
        assert!(until.since(world.status(other).since) >= ms(3_500), "{until:?}");
        world.run(ms(3_400));
        assert!(world.status(other).held_by_peer.is_some());
        world.log = Some(Vec::new());
        world.run(ms(150));
        assert_eq!(world.status(other).held_by_peer, None, "it is told when that is over, and not an interval later");
        assert_eq!(world.status(holds).held_by_peer, None);
        let reports = world.log.iter().flatten().filter(|f| f.sender == holds && report(f)).count();
        assert_eq!(reports, 1, "one says it");
        assert_eq!(states(&world), [State::Up; 2]);
    }
}

/// Where both addresses work, the one that the routes have left must not hold the peer.
#[test]
fn the_peer_follows_the_routes_whichever_of_its_questions_comes_first() {
    let mut world = up(pair());
    let [from, old] = [A, B].map(|end| *world.ends[end].sockets.first_key_value().unwrap().1);
    let left = world.ends[B].local;
    world.decide(|f| if f.sender == A && f.kind() == Some(Kind::Control) { Fate::Hold } else { Fate::Pass });
    world.reroute(B);
    let asks = |f: &Flight| f.bytes.len() == 12 + MIN_TRANSPORT;
    assert!(world.run_until(ms(100), |world| world.held.iter().any(|f| asks(f) && f.to == old)));
    let new = std::mem::replace(&mut world.ends[B].local, left);
    let (at_old, others): (Vec<_>, Vec<_>) = std::mem::take(&mut world.held).into_iter().partition(|f| f.to == old);
    for question in at_old.iter().filter(|f| asks(f)) {
        let answers = world.give(B, from, &question.bytes);
        assert!(!answers.iter().any(asks), "answered where the routes do not lead any more");
    }
    world.ends[B].local = new;
    world.decide(|_| Fate::Pass);
    others.into_iter().for_each(|f| world.release(f));
    world.run(ms(1_000));
    let now = *world.ends[B].sockets.first_key_value().unwrap().1;
    assert_eq!(world.status(A).path.map(|path| path.peer), Some(now));
}

#[test]
fn an_interface_taken_down_takes_the_peer_down_at_once_and_all_comes_back_with_it() {
    for down in [A, B] {
        let mut world = up(pair());
        world.run(ms(1_234));
        let before = epoch(&world, A);
        let far = 1 - down;
        world.set_interface(down, false);
        world.run(ms(11));
        assert_eq!(
            (world.status(down).state, world.status(far).state),
            (State::AdminDown, State::Down),
            "one way later"
        );
        let cause = Some(DownCause::PeerAdminDown);
        assert_eq!(world.ends[far].said(|e| *e == Event::State { state: State::Down, cause }), 1);
        assert_eq!(world.ends[far].said(|e| *e == Event::PeerInterface { up: false }), 1);
        let cause = Some(DownCause::AdminDown);
        assert_eq!(world.ends[down].said(|e| *e == Event::State { state: State::AdminDown, cause }), 1);
        // Five minutes of it: Reports and rekeys go on, nobody knocks, and nothing is said again.
        world.log = Some(Vec::new());
        let told = [A, B].map(|end| world.ends[end].events.len());
        world.run(secs(300));
        assert_eq!((world.status(down).state, world.status(far).state), (State::AdminDown, State::Down));
        for end in [A, B] {
            assert!(world.logged(end, Kind::Knock).is_empty(), "end {end} knocked");
            let reports = world.log.iter().flatten().filter(|f| f.sender == end && report(f)).count();
            assert!((295..=310).contains(&reports), "{reports} Reports of end {end} in 300 s");
            let rekeyed = said_since(&world, end, told[end], |e| matches!(e, Event::Session { rekeyed: true, .. }));
            assert!(rekeyed >= 2, "rekeyed {rekeyed} times");
            let other = said_since(&world, end, told[end], |e| !matches!(e, Event::Session { rekeyed: true, .. }));
            assert_eq!(other, 0, "{:?}", &world.ends[end].events[told[end]..]);
        }
        assert!(epoch(&world, A) > before);
        world.set_interface(down, true);
        world.run(ms(31));
        assert_eq!(states(&world), [State::Up; 2], "a round trip and a half later");
        assert_eq!(world.ends[far].said(|e| *e == Event::PeerInterface { up: true }), 1);
        world.run(secs(20));
        assert!(world.together() && world.logged(A, Kind::Knock).is_empty() && world.logged(B, Kind::Knock).is_empty());
        carries(&mut world);
    }
}

#[test]
fn the_same_interface_said_again_is_no_news() {
    let mut world = up(pair());
    world.set_interface(A, true);
    world.set_interface(A, false);
    let said = world.ends[A].events.len();
    world.log = Some(Vec::new());
    (0..50).for_each(|_| world.set_interface(A, false));
    assert_eq!((world.ends[A].events.len(), world.log.as_ref().map(Vec::len)), (said, Some(0)));
}

#[test]
fn interfaces_down_at_both_ends_come_back_in_any_order() {
    for (first, gap) in [(A, 0), (B, 0), (A, 5), (B, 5), (A, 9_000), (B, 9_000)] {
        let mut world = up(pair());
        world.set_interface(A, false);
        world.run(ms(gap));
        world.set_interface(B, false);
        world.run(secs(30));
        assert_eq!(states(&world), [State::AdminDown; 2]);
        world.set_interface(first, true);
        world.run(ms(gap));
        assert_eq!(world.status(1 - first).state, State::AdminDown);
        world.set_interface(1 - first, true);
        world.run(ms(81)); // Reports sent for changes are spaced
        assert_eq!(states(&world), [State::Up; 2], "{first} first, {gap} ms apart");
        carries(&mut world);
    }
}

#[test]
fn an_interface_that_only_blinks_leaves_the_link_up() {
    for pause in [0, 1, 5, 11, 19, 25, 39, 45] {
        let mut world = up(pair());
        for _ in 0..20 {
            world.set_interface(A, false);
            world.run(ms(pause));
            world.set_interface(A, true);
            world.run(ms(pause));
        }
        world.run(secs(4)); // Reports sent for changes are spaced: the last change may wait for the next
        assert_eq!(states(&world), [State::Up; 2], "with pauses of {pause} ms");
        world.run(secs(10));
        assert!(world.together());
        carries(&mut world);
    }
}

#[test]
fn a_word_of_the_interface_that_is_lost_is_said_again_with_the_next_report() {
    let mut world = up(pair());
    world.run(ms(1_500));
    for up in [false, true] {
        world.decide(|_| Fate::Drop);
        world.set_interface(A, up);
        world.run(ms(1));
        world.decide_nothing();
        world.run(ms(1_050));
        let expected = if up { [State::Up; 2] } else { [State::AdminDown, State::Down] };
        assert_eq!(states(&world), expected, "an interval after a lost Report");
    }
    // Lossy as it is, it comes down and up in a few intervals.
    world.network = Network { loss: [0.3; 2], ..Network::default() };
    for _ in 0..20 {
        world.set_interface(B, false);
        assert!(world.run_until(secs(8), |w| states(w) == [State::Down, State::AdminDown]));
        world.run(secs(5));
        world.set_interface(B, true);
        assert!(world.run_until(secs(8), World::together));
        world.run(secs(5));
    }
}

#[test]
fn restarts_while_an_interface_is_down() {
    for knows in [[true, true], [true, false], [false, true]] {
        for restarted in [A, B] {
            let world = pair_with(|setups| (setups[A].knows_peer, setups[B].knows_peer) = (knows[0], knows[1]));
            let mut world = up(world);
            world.set_interface(A, false);
            world.run(secs(10));
            world.kill(restarted);
            world.run(secs(1));
            world.start(restarted);
            if restarted == B {
                // It is told as soon as there is a session.
                let told = |w: &World| w.status(B).peer_state == Some(State::AdminDown);
                assert!(world.run_until(secs(6), told), "{knows:?}");
                world.run(secs(10));
                assert_eq!(states(&world), [State::AdminDown, State::Down]);
                let knocks = [A, B].map(|end| world.logged(end, Kind::Knock).len());
                world.run(secs(60));
                assert_eq!([A, B].map(|end| world.logged(end, Kind::Knock).len()), knocks, "it goes on knocking");
                world.set_interface(A, true);
            } // else the interface is a new one, which is up
            assert!(world.run_until(secs(6), World::together), "{restarted} restarted, {knows:?}");
            carries(&mut world);
        }
    }
}

/// What is Down on purpose must not hide that the peer is gone, nor keep it from being found again.
#[test]
fn silence_beside_an_interface_that_is_down_is_seen_and_healed() {
    for (down, moved) in [(A, A), (A, B), (B, A), (B, B)] {
        let mut world = up(pair());
        world.set_interface(down, false);
        world.run(secs(5));
        world.network.blocked = [true; 2];
        world.run(secs(5));
        assert_eq!([A, B].map(|end| world.status(end).peer_state), [None; 2], "the peer is not heard");
        assert_eq!(world.status(down).state, State::AdminDown);
        assert!([A, B].iter().any(|end| !world.logged(*end, Kind::Knock).is_empty()), "nobody looks for the other");
        world.rebind(moved);
        world.network.blocked = [false; 2];
        assert!(world.run_until(secs(12), |w| w.status(1 - down).peer_state == Some(State::AdminDown)));
        world.set_interface(down, true);
        // The one who moved may be known by its Reports alone, until a path check has shown where it is.
        assert!(world.run_until(secs(4), World::together), "{down} was down, {moved} moved");
        carries(&mut world);
    }
}

/// An end that answers nothing any more, and so cannot say it, is as silent as ever.
#[test]
fn a_peer_killed_with_its_interface_down_is_missed_and_found_again() {
    let mut world = up(a_opens());
    world.set_interface(B, false);
    world.run(secs(2));
    world.kill(B);
    world.run(secs(10));
    let status = world.status(A);
    assert_eq!((status.state, status.peer_state), (State::Down, None));
    world.start(B);
    assert!(world.run_until(secs(6), World::together));
    assert_eq!(world.ends[A].said(|e| *e == Event::PeerInterface { up: false }), 1);
}

// --- paths ----------------------------------------------------------------------------------------------------

#[test]
fn an_answer_to_a_probe_moves_the_line_only_while_it_is_down() {
    for late in [false, true] {
        let mut world = up(a_opens());
        let addresses = [world.status(A).path.unwrap().peer, stranger()];
        world.name(A, 0, &addresses);
        world.decide(|flight| match flight.kind() {
            Some(Kind::Knock) => Fate::Drop, // no cold open, which would mend it another way
            _ if flight.to == stranger() => Fate::Hold,
            // The answer of the address in use would settle it.
            _ if flight.sender == B && flight.bytes.len() == 44 => Fate::Drop,
            _ => Fate::Pass,
        });
        world.network.blocked = [true; 2];
        assert!(world.run_until(secs(6), |w| !w.held.is_empty()), "the second address was never asked");
        assert_eq!(world.status(A).state, State::Down);
        if late {
            world.network.blocked = [false; 2];
            assert!(world.run_until(secs(5), World::together));
        }
        let check = world.held.pop().unwrap(); // the last one: its cookie is the one that counts
        let answer = world.give(B, check.from, &check.bytes).into_iter().find(|f| f.bytes.len() == 44).unwrap();
        world.give(A, answer.from, &answer.bytes);
        assert_eq!(world.status(A).path.unwrap().peer == stranger(), !late);
    }
}

#[test]
fn a_wrong_length_or_version_is_malformed() {
    let mut world = up(a_opens());
    let from = world.logged(A, Kind::Init).pop().unwrap().from;
    let key = open_keys(&world, A).sending;
    let knock = wire::knock(&[3; 16], &key);
    refused(&mut world, B, from, &knock[..63], MALFORMED);
    refused(&mut world, B, from, &[], MALFORMED);
    refused(&mut world, B, from, &[9; 64], MALFORMED);
    let mut other = knock[..48].to_vec();
    other[1] = 2;
    other.extend_from_slice(&key.mac16(&[&other.clone()]));
    refused(&mut world, B, from, &other, MALFORMED);
    assert_eq!(world.ends[B].said(|e| matches!(e, Event::OtherVersion { version: 2, .. })), 1);
}

// --- one MTU for a link ---------------------------------------------------------------------------------------

/// What each end is to hold its interface to, as the size of a datagram, or as the MTU that the other end has been given.
fn link_sizes(world: &World) -> [Option<u16>; 2] {
    [A, B].map(|end| {
        Some(match world.status(end).link_mtu? {
            LinkMtu::Found { to_peer, from_peer } => to_peer.min(from_peer.unwrap_or(u16::MAX)),
            LinkMtu::Given(mtu) => mtu,
        })
    })
}

/// Lets time pass, in which both ends send frames of 1,000 bytes. Gives when each end's size changed, and to what.
fn sizes_over(world: &mut World, time: Duration) -> [Vec<(u64, u16)>; 2] {
    let mut changes = [Vec::new(), Vec::new()];
    let mut before = link_sizes(world);
    for _ in 0..time.as_millis() / 20 {
        [A, B].into_iter().for_each(|end| _ = world.send_frame(end, 1_000));
        world.run(ms(20));
        let now = link_sizes(world);
        for end in [A, B] {
            if now[end] != before[end] {
                changes[end].push((world.now, now[end].expect("a size is not forgotten")));
            }
        }
        before = now;
    }
    changes
}

#[test]
fn both_ends_have_the_lower_size_of_both_directions_and_change_together() {
    let mut world = a_opens();
    world.network.largest = [usize::MAX, 1_372];
    let mut world = up(world);
    let changes = sizes_over(&mut world, secs(20));
    assert_eq!(
        changes.map(|changes| changes.into_iter().map(|(_, size)| size).collect::<Vec<_>>()),
        [[1_372], [1_372]]
    );
    // Smaller in the other direction: at once, once, and at both ends within a second, whatever the line loses.
    world.network.loss = [0.2; 2];
    world.network.largest = [1_300, 1_372];
    let [a, b] = sizes_over(&mut world, secs(20));
    assert_eq!((a.len(), b.len()), (1, 1), "{a:?} {b:?}");
    assert_eq!((a[0].1, b[0].1), (1_300, 1_300));
    assert!(a[0].0.abs_diff(b[0].0) < 1_000_000_000, "{a:?} {b:?}");
    // Larger again in both: when it has been found to be, and has held for half a minute, and is the same at both ends again.
    world.network.loss = [0.0; 2];
    world.network.largest = [usize::MAX; 2];
    let from = world.now;
    let [a, b] = sizes_over(&mut world, secs(400));
    assert_eq!((a.last().unwrap().1, b.last().unwrap().1), (1_472, 1_472));
    assert!(a.len() <= 2 && b.len() == a.len(), "one for each direction that grew: {a:?} {b:?}");
    for (a, b) in a.iter().zip(&b) {
        assert!(a.0 - from > 30_000_000_000 && a.0.abs_diff(b.0) < 1_000_000_000 && a.1 == b.1, "{a:?} {b:?}");
    }
}

#[test]
fn a_size_that_comes_and_goes_does_not_move_the_interfaces() {
    let mut world = up(a_opens());
    sizes_over(&mut world, secs(5));
    assert_eq!(link_sizes(&world), [Some(1_472); 2]);
    let mut changes = [0; 2];
    for round in 0..40 {
        world.network.largest[A] = if round % 2 == 0 { 1_300 } else { usize::MAX };
        let more = sizes_over(&mut world, secs(25));
        changes = [A, B].map(|end| changes[end] + more[end].len());
    }
    assert_eq!((changes, link_sizes(&world)), ([1, 1], [Some(1_300); 2]));
}

#[test]
fn an_mtu_that_is_set_at_one_end_is_taken_by_the_other() {
    let mut world = up(a_opens());
    world.run(secs(3));
    let time = world.ends[A].time(world.now);
    world.ends[A].process().link.handle_given_mtu(time, Some(1_500));
    world.carry_out(A);
    world.run(ms(100));
    assert_eq!(world.status(B).link_mtu, Some(LinkMtu::Given(1_500)));
    assert!(matches!(world.status(A).link_mtu, Some(LinkMtu::Found { .. })));
    // After a restart without it.
    world.kill(A);
    world.start(A);
    assert!(world.run_until(secs(10), World::together));
    world.run(secs(3));
    assert_eq!(link_sizes(&world), [Some(1_472); 2]);
}

#[test]
fn offers_that_both_have_are_not_repeated() {
    let mut world = up(a_opens());
    world.run(secs(10));
    let offer = |flight: &&Flight| flight.kind() == Some(Kind::Control) && flight.bytes.len() == 12 + 32;
    let count = |world: &World| world.log.as_ref().unwrap().iter().filter(offer).count();
    let before = count(&world);
    assert!((2..=8).contains(&before), "{before} offers");
    world.run(secs(60));
    assert_eq!(count(&world), before);
}

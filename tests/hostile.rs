//! Attacks and accidents by name, each played out between two ends in virtual time. What must come of them is what
//! `docs/PROTOCOL.md` promises: counters move, nothing else does; what is disturbed heals by itself, in a stated time; and what
//! is held stays within its bounds. `docs/RELIABILITY.md` says in a line what each shows.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};
use support::{scenes::*, watch::name, *};
use tieline::protocol::{
    Event, Path, SocketId,
    constants::*,
    control::{LaneReport, Message, Report, State},
    link::{DownCause, RekeyTimes},
    wire::{self, Kind},
};

/// How often this end's state changed.
fn changes(world: &World, end: usize) -> usize {
    world.ends[end].said(|e| matches!(e, Event::State { .. }))
}

/// Both ends bring the line back after whatever was done to it: at once where they know each other's addresses, and in
/// `limit` at the latest.
#[track_caller]
fn heals(world: &mut World, limit: Duration) {
    assert!(world.run_until(limit, World::together), "not together {limit:?} after it was over");
    world.run(ms(100));
    carries(world);
}

// --- the cold open --------------------------------------------------------------------------------------------

#[test]
fn withheld_init_after_newer_accepted() {
    for confirmed in [true, false] {
        let mut world = a_opens();
        world.decide(|flight| if flight.kind() == Some(Kind::Init) { Fate::Hold } else { Fate::Pass });
        let old = run_until_sent(&mut world, A, Kind::Init);
        let newest = |w: &World| w.held.last().cloned().filter(|init| init.bytes[4..20] != old.bytes[4..20]);
        assert!(world.run_until(secs(8), |w| newest(w).is_some()), "no second attempt");
        let newer = newest(&world).unwrap();
        assert_eq!(world.give(B, newer.from, &newer.bytes).len(), 1, "the newer one is taken");
        if confirmed {
            assert!(world.run_until(secs(1), World::together));
        } else {
            world.decide(|_| Fate::Drop);
        }
        world.run(INIT_SPACING);
        assert!(world.now < 9_500_000_000, "the old token is still young: its age is not why it is refused");
        refused(&mut world, B, old.from, &old.bytes, REPLAYED);
        refused(&mut world, B, old.from, &old.bytes, REPLAYED);
        world.decide_nothing();
        heals(&mut world, secs(12));
    }
}

#[test]
fn forged_challenge_flood() {
    let mut world = a_opens();
    world.network.blocked = [false, true]; // B's own Challenges do not arrive
    let knock = run_until_sent(&mut world, A, Kind::Knock);
    let (key, no_key) = (open_keys(&world, B).sending, open_keys(&world, A).sending);
    let (nonce, token) = (knock.bytes[4..20].try_into().unwrap(), |n: u32| {
        let mut token = [3; 24];
        token[..4].copy_from_slice(&n.to_be_bytes());
        token
    });
    for n in 0..300 {
        // By one who has no key; with a nonce that was not asked for; from where nobody was asked.
        refused(&mut world, A, knock.to, &wire::challenge(&nonce, &token(n), &no_key), UNAUTHENTIC);
        refused(&mut world, A, knock.to, &wire::challenge(&[9; 16], &token(n), &key), REPLAYED);
        refused(&mut world, A, stranger(), &wire::challenge(&nonce, &token(n), &key), REPLAYED);
    }
    // One who has K of this direction and reads A's Knocks spoils an attempt: for one Init and one DH, not more.
    let mut read = 0;
    let (draws, end) = (world.ends[A].process().draws.clone(), world.now + secs(20).as_nanos() as u64);
    let before = draws.keys.load(Relaxed);
    let mut attempts = HashSet::new();
    world.network.blocked = [false, false];
    while world.step(end) {
        for knock in world.news(&mut read).into_iter().filter(|f| f.kind() == Some(Kind::Knock)) {
            let nonce: [u8; 16] = knock.bytes[4..20].try_into().unwrap();
            let first = attempts.insert(nonce);
            for n in 0..50 {
                let answers = world.give(A, knock.to, &wire::challenge(&nonce, &token(n), &key));
                assert_eq!(answers.len(), usize::from(first && n == 0), "{answers:?}");
            }
        }
    }
    assert!((3..=5).contains(&attempts.len()), "{} attempts in 20 s", attempts.len());
    assert_eq!(draws.keys.load(Relaxed) - before, attempts.len() as u64, "one ephemeral an attempt");
    assert_eq!(world.ends[B].process().draws.keys.load(Relaxed), 1, "B computed nothing for a forged token");
    assert!(world.status(A).session.is_none() && world.status(B).session.is_none());
    heals(&mut world, ATTEMPT_TIME + PAUSE_MAX.mul_f64(1.25) + secs(1));
}

#[test]
fn rekey_parts_blackholed_at_open() {
    let mut world = a_opens();
    world.decide(|flight| if rekey_part(flight) { Fate::Drop } else { Fate::Pass });
    for round in 1..=3 {
        world.run(secs(11));
        assert_eq!(world.ends[A].said(|e| *e == Event::HybridUnfinished), round);
        assert_eq!(world.logged(A, Kind::Init).len(), round + 1, "one cold open for each bootstrap");
        assert!(!world.send_frame(A, 100) && !world.send_frame(B, 100), "user data in a bootstrap");
        assert_eq!(world.status(A).state, State::Down);
    }
    world.decide_nothing();
    heals(&mut world, REKEY_RESEND_MAX + secs(1));
}

#[test]
fn stray_open_during_healthy_session() {
    for hybrid in [true, false] {
        let mut world = up(pair_with(|setups| {
            setups.iter_mut().for_each(|setup| setup.params.post_quantum = hybrid);
            setups[A].params.rekey = RekeyTimes { initiator: secs(20), responder: secs(25) };
            setups[B].params.rekey = setups[A].params.rekey;
        }));
        let (before, opens) = (epoch(&world, B), world.logged(A, Kind::Init).len() + world.logged(B, Kind::Init).len());
        let (states, path) = ([changes(&world, A), changes(&world, B)], world.status(B).path);
        world.start_traffic(Traffic { rate: 50.0, longest: 300 });
        // One who has A's secret, or ss alone, opens at B without an end, and confirms nothing.
        let mut puppet = Puppet::new(&world.ends[A].setup, &world.ends[B].setup, stranger());
        for round in 0..400 {
            world.run(INIT_SPACING);
            assert!(puppet.open(&mut world, B, 1 + round % 7).is_some(), "not answered");
        }
        world.stop_traffic();
        world.run(ms(200));
        assert!(world.together());
        assert_eq!([changes(&world, A), changes(&world, B)], states, "the state changed");
        assert_eq!(world.status(B).path, path);
        assert_eq!(world.logged(A, Kind::Init).len() + world.logged(B, Kind::Init).len(), opens, "an end opened anew");
        assert!(epoch(&world, B) > before, "the rekey did not come through");
        for end in [A, B] {
            assert_eq!(world.ends[end].delivered, world.ends[1 - end].sealed, "user data was lost");
        }
        let to_stranger = world.log.iter().flatten().filter(|f| f.to == stranger());
        assert!(to_stranger.clone().all(Flight::cold) && to_stranger.count() == 800, "a Challenge and a Response each");
    }
}

#[test]
fn forged_init_with_huge_epoch() {
    for hybrid in [true, false] {
        let forged = [MAX_EPOCH, MAX_EPOCH - 1, MAX_EPOCH - 3];
        let mut world = pair_with(|setups| {
            setups.iter_mut().for_each(|setup| setup.params.post_quantum = hybrid);
            setups[B].knows_peer = false;
            setups[A].params.rekey = RekeyTimes { initiator: secs(5), responder: secs(6) };
            setups[B].params.rekey = setups[A].params.rekey;
        });
        world.kill(A);
        world.run(ms(100));
        let mut puppet = Puppet::new(&world.ends[A].setup, &world.ends[B].setup, stranger());
        for epoch in forged {
            assert!(puppet.open(&mut world, B, epoch).is_some());
            world.run(ms(150));
        }
        // The real end finds B as it would have.
        world.start(A);
        assert!(world.run_until(secs(3), World::together), "a forged epoch keeps the link from opening");
        assert!(epoch(&world, A) < 10, "the session took its epoch from a forged one: {}", epoch(&world, A));
        world.run(ms(200));
        // Nor does it come into what a rekey makes, however often it is said.
        let states = [changes(&world, A), changes(&world, B)];
        for round in 0..150 {
            assert!(puppet.open(&mut world, B, forged[round % 3]).is_some());
            world.run(ms(200));
        }
        // Each counts as one, as any Init does.
        assert!(world.together() && (5..200).contains(&epoch(&world, A)), "epoch {}", epoch(&world, A));
        assert_eq!([changes(&world, A), changes(&world, B)], states, "the line went down");
        assert_eq!(world.ends[B].said(|e| matches!(e, Event::RekeyFailed(_) | Event::CryptoFailed)), 0);
        carries(&mut world);
        // And a restart finds the end again.
        for end in [A, B] {
            puppet.open(&mut world, B, MAX_EPOCH);
            world.kill(end);
            world.start(end);
            world.run(ms(150));
            heals(&mut world, secs(4));
        }
    }
}

#[test]
fn replayed_knock_after_10s() {
    let mut world = up(a_opens());
    let knock = world.logged(A, Kind::Knock).pop().unwrap();
    world.run_to(9_900_000_000);
    assert_eq!(world.give(B, knock.from, &knock.bytes).len(), 1);
    world.run_to(10_100_000_000);
    refused(&mut world, B, knock.from, &knock.bytes, REPLAYED);
    // A restarted end does not know its nonce: each copy draws one Challenge, for ten seconds, and no more than it has.
    world.kill(B);
    world.start(B);
    let from = world.now;
    for at in [0, 5_000, 9_900] {
        world.run_to(from + at * 1_000_000);
        let (before, dropped) = (seen(&world, B), drops(&mut world, B));
        let answers = world.give(B, stranger(), &knock.bytes);
        assert!(answers.len() == 1 && answers[0].kind() == Some(Kind::Challenge), "{answers:?}");
        assert!(answers[0].to == stranger() && answers[0].bytes.len() == knock.bytes.len());
        assert_eq!((seen(&world, B), drops(&mut world, B)), (before, dropped));
    }
    world.run_to(from + 10_100_000_000);
    for source in [stranger(), knock.from] {
        refused(&mut world, B, source, &knock.bytes, REPLAYED);
    }
    assert!(world.together());
    carries(&mut world);
}

// --- sessions and rekeys --------------------------------------------------------------------------------------

#[test]
fn new_session_unconfirmed_for_30s() {
    let mut world = up(pair_with(|setups| {
        setups[B].knows_peer = false;
        setups[A].params.rekey = RekeyTimes { initiator: secs(4), responder: secs(90) };
    }));
    let before = epoch(&world, A);
    // What A sends under the child does not arrive, and no cold open mends it.
    let known: HashSet<u32> = world.log.iter().flatten().filter_map(|f| Some(name(&f.bytes)?.0)).collect();
    world.decide(move |flight| {
        let new = name(&flight.bytes).is_some_and(|(index, ..)| !known.contains(&index));
        if new && flight.sender == A || flight.cold() { Fate::Drop } else { Fate::Pass }
    });
    assert!(world.run_until(secs(5), |w| epoch(w, A) > before));
    let (child, sent) = (epoch(&world, A), world.log.as_ref().unwrap().len());
    world.run(secs(30));
    assert_eq!(epoch(&world, B), before, "B uses what nobody confirmed");
    assert_eq!(epoch(&world, A), child);
    let confirmations = world.log.iter().flatten().skip(sent).filter(|f| f.sender == A && !f.cold()).count();
    assert!((150..250).contains(&confirmations), "{confirmations} datagrams to confirm it in 30 s");
    // The first of them that comes through is enough.
    world.decide_nothing();
    assert!(world.run_until(CONFIRM_SPACING + ms(50), |w| epoch(w, B) == child), "the child was not kept");
    assert!(world.run_until(ms(200), World::together));
    carries(&mut world);
}

#[test]
fn counter_at_every_limit() {
    let quiet = |setup: &mut EndSetup| setup.params.post_quantum = false;
    let starts_rekey = |world: &mut World, end: usize| {
        world.run(ms(1_100)); // looked at with each Report
        world.logged(end, Kind::Control).iter().any(|f| f.bytes.len() == 92)
    };
    // A began this session: it starts a rekey when its peer has used 2^27 of 2^28 counters …
    let mut world = pair_with(|setups| setups.iter_mut().for_each(quiet));
    world.kill(B);
    run_until_sent(&mut world, A, Kind::Knock);
    let mut puppet = Puppet::new(&world.ends[B].setup, &world.ends[A].setup, stranger());
    let held = puppet.answer(&mut world, A, 1);
    let from = world.status(A).path.unwrap().peer;
    for (counter, starts) in [(1 << 26, false), ((1 << 27) - 2, false), ((1 << 27) - 1, true)] {
        world.give(A, from, &held.seal_at(0, counter, &[]));
        assert_eq!(starts_rekey(&mut world, A), starts, "at counter {counter}");
    }
    // … and B, which did not begin its own, at three quarters.
    let mut world = pair_with(|setups| setups.iter_mut().for_each(quiet));
    world.kill(A);
    let mut puppet = Puppet::new(&world.ends[A].setup, &world.ends[B].setup, stranger());
    let held = puppet.open(&mut world, B, 1).unwrap();
    for (counter, starts) in [(1 << 27, false), ((3 << 26) - 2, false), ((3 << 26) - 1, true)] {
        world.give(B, stranger(), &held.seal_at(0, counter, &[]));
        assert_eq!(starts_rekey(&mut world, B), starts, "at counter {counter}");
    }
    // The limit binds who seals. Who opens takes the counters beyond, each once, within the window.
    let answer = Message::PathAnswer { lane: 0, cookie: [0; 8] }.encode(); // means nothing here
    for (lane, text, window) in [(0, &[][..], DATA_WINDOW), (CONTROL_LANE, &answer, CONTROL_WINDOW)] {
        for highest in [(1 << 28) - 1, (1 << 28) + 1, u64::MAX] {
            let mut taken = |counter: u64| {
                let before = drops(&mut world, B);
                world.give(B, stranger(), &held.seal_at(lane, counter, text));
                let [malformed, unauthentic, replayed, no_session] = drops(&mut world, B);
                assert_eq!([malformed, unauthentic, no_session], [before[0], before[1], before[3]]);
                replayed == before[REPLAYED]
            };
            assert!(taken(highest) && !taken(highest), "{highest} on lane {lane}");
            let last = highest - (window - 1);
            assert!(taken(last) && !taken(last), "the last counter of the window below {highest}");
            assert!(!taken(last - 1) && !taken(0), "older than the window below {highest}");
            assert!(taken(highest - 1) && !taken(highest - 1));
        }
    }
    // A peer that has used up its counters has hurt nobody but itself.
    world.start(A);
    assert!(world.run_until(secs(3), World::together));
    carries(&mut world);
}

#[test]
fn withheld_goodbye_and_report_after_restart() {
    let mut world = a_opens();
    // A's first Report, which says Down, stays on its way …
    let mut first = true;
    world.decide(move |flight| {
        let hold = first && flight.sender == A && report(flight);
        first &= !hold;
        if hold { Fate::Hold } else { Fate::Pass }
    });
    let mut world = up(world);
    world.start_traffic(Traffic { rate: 50.0, longest: 100 });
    world.run(secs(2));
    // … and so do its last, said while Up, and its three Goodbyes.
    world.decide(|f| if f.sender == A && f.kind() == Some(Kind::Control) { Fate::Hold } else { Fate::Pass });
    assert!(world.run_until(secs(2), |w| w.held.iter().filter(|f| report(f)).count() > 1));
    world.close(A);
    world.run(ms(200));
    world.decide_nothing();
    world.start(A);
    assert!(world.run_until(secs(3), World::together));
    world.run(secs(2));
    let late = std::mem::take(&mut world.held);
    let goodbyes = late.iter().filter(|f| f.bytes.len() == 33).count();
    assert!(goodbyes == 3 && late.iter().any(report), "{goodbyes} goodbyes of {}", late.len());
    let states = changes(&world, B);
    for flight in late {
        let (before, figures) = (seen(&world, B), world.status(B));
        assert!(world.give(B, flight.from, &flight.bytes).is_empty());
        assert_eq!(seen(&world, B), before, "obeyed what the session before said");
        let now = world.status(B);
        assert_eq!((now.rtt, now.tx_loss, now.rx_loss), (figures.rtt, figures.tx_loss, figures.rx_loss));
    }
    world.run(secs(5));
    world.stop_traffic();
    world.run(ms(200));
    assert_eq!(changes(&world, B), states);
    carries(&mut world);
}

// --- junk and lies --------------------------------------------------------------------------------------------

/// Bytes of nobody's, of every type there is and some there are not, with `index` where an index goes.
fn junk(dice: &mut Dice, index: u32) -> Vec<u8> {
    let len = *dice.pick(&[0, 1, 15, 16, 31, 32, 33, 44, 63, 64, 65, 96, 100, 124, 125, 548, 1_500, 9_000]);
    let mut bytes = vec![0; len];
    dice.fill(&mut bytes);
    let counter = match dice.range(0..3) {
        0 => dice.range(0..3_000),
        1 => dice.u64(),
        _ => u64::MAX - dice.range(0..2),
    };
    let (kind, lane) = (*dice.pick(&[0, 1, 2, 3, 4, 5, 5, 5, 6, 6, 6, 7, 255]), *dice.pick(&[0, 1, 15, 255]));
    let flags = *dice.pick(&[0, 0, 0, 1, 2, 255]);
    let header = [&[kind, flags, lane, 0][..], &index.to_be_bytes(), &counter.to_be_bytes()].concat();
    let known = len.min(16);
    bytes[..known].copy_from_slice(&header[..known]);
    bytes
}

#[test]
fn junk_flood_on_all_types_with_known_index() {
    let mut world = up(pair());
    let index = |world: &World| name(&world.logged(A, Kind::Control).pop().unwrap().bytes).unwrap().0;
    let (known, at_a) = (index(&world), world.status(B).path.unwrap().peer);
    let mut dice = Dice::new(5);
    world.start_traffic(Traffic { rate: 100.0, longest: 300 });
    let (states, before) = (changes(&world, B), drops(&mut world, B));
    let told = world.ends[B].events.len();
    for round in 0..20_000u64 {
        if round % 40 == 0 {
            world.run(ms(20));
        }
        let (was, dropped) = (seen(&world, B), world.ends[B].drops());
        let from = if dice.chance(0.5) { at_a } else { stranger() };
        let answers = world.give(B, from, &junk(&mut dice, known));
        assert!(answers.is_empty(), "junk was answered: {answers:?}");
        assert_eq!(world.ends[B].drops(), dropped + 1, "junk was not counted once");
        assert_eq!(seen(&world, B), was);
    }
    let after = drops(&mut world, B);
    assert!((0..4).all(|i| i == 3 || after[i] > before[i]), "{before:?} {after:?}");
    world.stop_traffic();
    world.run(ms(200));
    assert!(world.together() && changes(&world, B) == states);
    assert_eq!(world.ends[B].delivered, world.ends[A].sealed, "junk took a place in the window");
    assert!(world.ends[B].events.len() <= told + 1, "said more than once that strangers come");
    // Junk is no sign of life.
    world.kill(A);
    let from = world.now;
    while world.status(B).state == State::Up {
        world.give(B, at_a, &junk(&mut dice, known));
        world.run(ms(50));
        assert!(world.now < from + 3_100_000_000, "junk keeps a dead line up");
    }
    // And it stops nobody from coming back.
    world.start(A);
    for _ in 0..40 {
        world.give(B, at_a, &junk(&mut dice, known));
        world.run(ms(50));
    }
    assert!(world.together());
    carries(&mut world);
}

#[test]
fn peer_lies_in_reports() {
    let mut world = pair_with(|setups| setups.iter_mut().for_each(|setup| setup.params.post_quantum = false));
    world.kill(A);
    let mut puppet = Puppet::new(&world.ends[A].setup, &world.ends[B].setup, stranger());
    let mut held = puppet.open(&mut world, B, 1).unwrap();
    let mut say = |world: &mut World, message: &[u8]| {
        let datagram = held.halves.control.seal_message(message).unwrap();
        world.give(B, stranger(), &datagram)
    };
    let told = |flights: &[Flight]| flights.iter().filter(|f| report(f)).count();
    let honest = Report { state: State::Init, time_us: 1, lanes: vec![LaneReport::default()], ..Report::default() };
    say(&mut world, &Message::Report(honest.clone()).encode());
    assert_eq!(world.status(B).state, State::Up);
    let mut dice = Dice::new(6);
    for round in 0..2_000u64 {
        let n = *dice.pick(&[0, 1, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX]);
        let lane = LaneReport { sent: n, received: dice.u64(), duplicate: n, late: n, failed: n };
        let random = dice.u64();
        let echo = *dice.pick(&[0, n, random, world.ends[B].time(world.now).as_micros() + 1]);
        let hold_us = *dice.pick(&[0, u32::MAX]);
        let lie = Report { state: State::Up, held_s: n as u8, hold_us, time_us: n.max(1), echo, lanes: vec![lane] };
        let answers = say(&mut world, &Message::Report(lie).encode());
        assert!(told(&answers) <= 1, "{answers:?}");
        world.run(ms(7));
        let status = world.status(B);
        assert_eq!(status.state, State::Up, "round {round}");
        assert_eq!(status.rtt, None, "took a round-trip time from an echo it never sent");
        let losses = [status.tx_loss, status.rx_loss];
        assert!(losses.into_iter().flatten().all(|loss| (0.0..=1.0).contains(&loss)), "{losses:?}");
    }
    // What is outside its range is dropped, and counts as heard.
    let well_formed = Message::Report(honest.clone()).encode();
    for (at, value) in [(1, 4), (1, 255), (2, 0), (2, 2), (2, 16), (2, 17)] {
        let mut bad = well_formed.clone();
        bad[at] = value;
        let before = drops(&mut world, B);
        assert!(say(&mut world, &bad).is_empty());
        assert_eq!(drops(&mut world, B)[MALFORMED], before[MALFORMED] + 1, "byte {at} = {value}");
    }
    // The lies cost Reports, and not many: one a change, one each 20 ms at most.
    let sent = world.log.as_ref().unwrap().len();
    for round in 0..1_000 {
        let state = [State::Down, State::Init, State::Up][round % 3];
        say(&mut world, &Message::Report(Report { state, ..honest.clone() }).encode());
        world.run(ms(1));
    }
    let answers = told(&world.log.as_ref().unwrap()[sent..]);
    assert!(answers <= 60, "{answers} Reports in a second of lies");
    // They die with the family: the real end's figures are those of the line.
    world.start(A);
    assert!(world.run_until(secs(6), |w| w.together()));
    world.start_traffic(Traffic { rate: 20.0, longest: 100 });
    world.run(secs(40));
    world.stop_traffic();
    world.run(ms(100));
    let status = world.status(B);
    assert!((ms(19)..ms(22)).contains(&status.rtt.unwrap()), "{:?}", status.rtt);
    assert_eq!((status.tx_loss, status.rx_loss), (Some(0.0), Some(0.0)));
    carries(&mut world);
}

// --- addresses ------------------------------------------------------------------------------------------------

#[test]
fn racing_copier_from_own_address() {
    let mut world = up(a_opens());
    world.start_traffic(Traffic { rate: 50.0, longest: 300 });
    let (before, end) = (seen(&world, B), world.now + secs(15).as_nanos() as u64);
    let mut read = world.log.as_ref().unwrap().len();
    while world.step(end) {
        // The copier is at B before the original, from an address of its own.
        for flight in world.news(&mut read) {
            if flight.sender == A && flight.to != stranger() {
                world.give(B, stranger(), &flight.bytes);
            }
        }
    }
    assert_eq!(seen(&world, B), before, "the copier moved the path");
    let to_copier: Vec<Flight> = world.log.iter().flatten().filter(|f| f.to == stranger()).cloned().collect();
    assert!(!to_copier.is_empty(), "the copier was never a candidate");
    assert!(to_copier.iter().all(|f| f.bytes.len() == 44), "more than path checks went to the copier");
    // The current address answers each check: twice in 15 s, at most three checks each.
    assert!(to_copier.len() <= 6, "{} checks went to the copier", to_copier.len());
    assert!(world.together());
}

#[test]
fn nat_rebind_and_local_failover() {
    // The NAT in front of A forgets its mapping: the line follows, without a cold open and without a word.
    let mut world = up(a_opens());
    let old = world.status(B).path.unwrap().peer;
    world.rebind(A);
    assert!(world.run_until(secs(3), |w| w.status(B).path.unwrap().peer != old));
    world.run(secs(10));
    assert_eq!(world.ends[B].said(|e| matches!(e, Event::Path(_))), 1);
    assert_eq!(changes(&world, B), 2, "Init and Up, and no more");
    assert_eq!(world.logged(A, Kind::Init).len(), 1, "it took a cold open");
    carries(&mut world);
    // An end fails over to another address of its own machine.
    for end in [A, B] {
        let mut world = up(pair());
        world.start_traffic(Traffic { rate: 10.0, longest: 100 });
        world.renumber(end);
        world.run(secs(6));
        assert!(world.together(), "not together after end {end} failed over");
        world.stop_traffic();
        world.run(ms(100));
        carries(&mut world);
    }
    // Both at once: no check can be answered. The cold open that silence begins mends it before anyone calls it down.
    let mut world = up(pair());
    let (before, states) = (epoch(&world, A), [changes(&world, A), changes(&world, B)]);
    world.rebind(A);
    world.renumber(B);
    let mended = |w: &World| w.together() && epoch(w, A) > before;
    assert!(world.run_until(secs(6), mended), "not together after both moved");
    assert_eq!([changes(&world, A), changes(&world, B)], states);
    carries(&mut world);
}

#[test]
fn an_end_that_moves_while_it_checks_where_the_other_went() {
    // Each then hears the other at its new address, by path checks that neither may answer; all else goes where nobody is.
    let mut world = pair();
    world.network.delay = 200_000_000..200_000_001;
    let mut world = up(world);
    world.run(secs(3));
    let before = epoch(&world, A);
    world.rebind(B);
    world.resolve_all();
    world.send_frame(B, 100);
    world.run(ms(300)); // A asks at the new address, and the answer is under way
    world.rebind(A);
    world.resolve_all();
    world.start_traffic(Traffic { rate: 20.0, longest: 100 });
    let mended = |w: &World| w.together() && epoch(w, A) > before;
    assert!(world.run_until(secs(6), mended), "it stayed up with nothing on it");
    world.stop_traffic();
    world.network.delay = world::Network::default().delay;
    world.run(secs(1));
    carries(&mut world);
}

#[test]
fn spoofed_icmp_and_poisoned_dns_while_up() {
    let mut world = up(pair());
    let poison: Vec<SocketAddr> = (1..=6).map(|n| SocketAddr::from(([203, 0, 113, n], 666))).collect();
    let poisoned = poison.clone();
    let to_poison = move |w: &World| w.log.iter().flatten().filter(|f| poisoned.contains(&f.to)).count();
    world.start_traffic(Traffic { rate: 50.0, longest: 300 });
    let states = [changes(&world, A), changes(&world, B)];
    let paths = [A, B].map(|end| world.status(end).path.unwrap());
    for _ in 0..50 {
        for end in [A, B] {
            let time = world.ends[end].time(world.now);
            world.name(end, 0, &poison);
            let process = world.ends[end].process();
            // What an error from the kernel may name: a path that is not the line's, and the line's.
            let other = Path { socket: SocketId(0), local: Some(IpAddr::from([192, 0, 2, 99])), peer: poison[0] };
            for path in [other, Path { peer: paths[end].peer, ..other }, Path { local: None, ..paths[end] }, paths[end]]
            {
                process.link.handle_send_failure(time, path);
            }
            world.carry_out(end);
        }
        world.run(ms(200));
    }
    world.stop_traffic();
    world.run(ms(100));
    assert!(world.together());
    assert_eq!([changes(&world, A), changes(&world, B)], states, "the line went down");
    assert_eq!([A, B].map(|end| world.status(end).path.unwrap().peer), paths.map(|path| path.peer));
    assert_eq!(to_poison(&world), 0, "what DNS said moved a live line");
    for end in [A, B] {
        assert_eq!(world.ends[end].delivered, world.ends[1 - end].sealed, "user data was lost");
    }
    // When the line is down the poisoned names are knocked at, but not in place of the address that was proven.
    world.network.blocked = [true; 2];
    world.run(secs(10));
    assert!(to_poison(&world) > 0 && world.status(A).state == State::Down);
    assert!(
        world
            .log
            .iter()
            .flatten()
            .filter(|f| poison.contains(&f.to))
            .all(|f| { [Some(Kind::Knock), Some(Kind::Control)].contains(&f.kind()) && f.bytes.len() <= 64 })
    );
    world.network.blocked = [false; 2];
    heals(&mut world, secs(4));
    assert_eq!([A, B].map(|end| world.status(end).path.unwrap().peer), paths.map(|path| path.peer));
    // Not even where the peer has forgotten everything, and only the poisoned end can find the other.
    let mut world = up(a_opens());
    world.name(A, 0, &poison);
    world.kill(B);
    world.start(B);
    heals(&mut world, secs(4));
}

// --- floods ---------------------------------------------------------------------------------------------------

/// Moments of a flood of `per_second` from now on, for `time`: `each` is called at every one of them.
fn flood(world: &mut World, per_second: u64, time: Duration, mut each: impl FnMut(&mut World, u64)) {
    let start = world.now;
    for n in 0..time.as_secs() * per_second {
        let due = start + n * 1_000_000_000 / per_second;
        world.run(Duration::from_nanos(due - world.now));
        each(world, n);
    }
}

#[test]
fn replayed_knock_flood() {
    let mut world = a_opens();
    let knock = run_until_sent(&mut world, A, Kind::Knock);
    let mut world = up(world);
    let (before, time) = (seen(&world, B), secs(2));
    let counted = drops(&mut world, B)[REPLAYED];
    let mut answers = 0;
    flood(&mut world, 100_000, time, |world, _| answers += world.give(B, stranger(), &knock.bytes).len() as u64);
    assert_eq!(answers, u64::from(COLD_COPIES) - 1, "Challenges; the Knock itself drew one more");
    assert_eq!(drops(&mut world, B)[REPLAYED] - counted, 200_000 - answers, "what is not answered is counted");
    assert_eq!(seen(&world, B), before);
    // Meanwhile a restarted end gets in: copies of one Knock leave room for another.
    world.kill(A);
    world.start(A);
    flood(&mut world, 20_000, secs(3), |world, _| drop(world.give(B, stranger(), &knock.bytes)));
    assert!(World::together(&world), "kept out");
    carries(&mut world);
}

#[test]
fn init_flood_by_one_who_has_the_keys() {
    for honest in [true, false] {
        let (mut world, mut puppet) = puppet();
        let drawn = |world: &mut World| world.ends[B].process().draws.keys.load(Relaxed);
        let (before, time, mut answered) = (drawn(&mut world), secs(5), 0);
        flood(&mut world, COLD_RATE, time, |world, n| {
            if honest {
                answered += u64::from(puppet.open(world, B, n as u32 + 1).is_some());
            } else {
                puppet.open_with_junk(world, B);
            }
        });
        // Each Noise message that is looked at draws an ephemeral key.
        let most = (time.as_nanos() / INIT_SPACING.as_nanos()) as u64;
        assert_eq!(drawn(&mut world) - before, most, "honest: {honest}");
        assert_eq!(answered, if honest { most } else { 0 });
    }
}

// --- time -----------------------------------------------------------------------------------------------------

#[test]
fn clock_jumps_and_suspend() {
    // A nap shorter than the detection time is not noticed.
    let mut world = up(pair());
    let states = [changes(&world, A), changes(&world, B)];
    world.suspend(A, ms(1_500));
    world.run(secs(6));
    assert_eq!([changes(&world, A), changes(&world, B)], states);
    carries(&mut world);
    for asleep in [&[A][..], &[B], &[A, B]] {
        for time in [secs(10), secs(170), secs(200), secs(3_600)] {
            let mut world = up(pair());
            world.run(secs(20));
            let before = epoch(&world, A);
            asleep.iter().for_each(|&end| world.suspend(end, time));
            world.run(time);
            let sent = world.log.as_ref().unwrap().len();
            heals(&mut world, secs(4));
            // Keys do not outlive their time, though nothing ran in it.
            if time > SESSION_LIFE {
                assert!(epoch(&world, A) > before);
                let known: HashSet<u32> =
                    world.log.iter().flatten().take(sent).filter_map(|f| Some(name(&f.bytes)?.0)).collect();
                let old = world.log.iter().flatten().skip(sent).filter_map(|f| name(&f.bytes));
                assert_eq!(old.filter(|(index, ..)| known.contains(index)).count(), 0, "used keys {time:?} old");
            }
        }
    }
    // Nor are they used by an end that says goodbye, should it sleep meanwhile.
    let mut world = up(pair());
    world.close(B);
    world.leap(B, SESSION_LIFE + secs(5));
    world.run(ms(5));
    assert!(world.ends[B].running() && !world.send_frame(B, 100), "sealed under keys that are over");
    // Sendings that were missed are not made up for in a burst.
    let mut world = a_opens();
    world.network.blocked = [true; 2];
    world.suspend(A, secs(4));
    world.run(ms(4_100));
    assert_eq!(world.logged(A, Kind::Knock).len(), 2, "one before, and one for all that were due");
    // A clock that leaps is a machine that slept.
    for time in [secs(1), secs(100), secs(10_000), Duration::from_secs(86_400 * 365)] {
        let mut world = up(pair());
        world.leap(A, time);
        world.run(ms(500));
        heals(&mut world, secs(8));
        assert!(world.ends[A].said(|e| matches!(e, Event::State { cause: Some(DownCause::Goodbye), .. })) == 0);
    }
}

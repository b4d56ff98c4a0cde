//! What is sent by one who holds no key, and what may come of it.

use super::{World, scenes::seen, world::Flight};
use tieline::protocol::{Event, Input, Notice, Output, Path, Received, Small, wire::Kind};

/// What one who holds no key can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgery {
    /// Nothing an end ever sent: junk, with or without a header that was, a damaged copy, or a copy for the other end.
    Junk,
    /// What the end got before.
    Copy,
    /// What was sent to it when another process of it ran.
    Old,
}

/// Gives `end` such a datagram. It is counted as dropped, or draws one Challenge or one cached Response; it changes nothing.
pub fn inject(world: &mut World, end: usize, mut flight: Flight, forgery: Forgery) {
    let time = world.ends[end].time(world.now);
    let Some((&socket, _)) = world.ends[end].sockets.iter().next() else { return };
    let path = Path { socket, local: Some(world.ends[end].local), peer: flight.from };
    let before = (seen(world, end), world.ends[end].drops());
    let process = world.ends[end].process();
    process.watch.received(flight.from, flight.bytes.len());
    let whole = flight.bytes.clone();
    let received = process.receiver.receive(time, path, &mut flight.bytes);
    match received {
        Received::Nothing => assert_ne!(world.ends[end].drops(), before.1, "dropped without being counted"),
        Received::Cold if forgery != Forgery::Junk => {
            let input = Input::Cold { path, datagram: Small::new(&whole) };
            flight.bytes = whole;
            process.watch.handles(false);
            process.link.handle_input(time, input);
            answers_only(world, end, &flight, forgery);
        }
        other => panic!("a forged datagram was taken: {other:?}"),
    }
    while let Some(notice) = world.ends[end].process().receiver.poll_notice() {
        let input = Input::Notice(notice);
        assert!(matches!(notice, Notice::Stranger { .. }), "a forged datagram is news: {notice:?}");
        world.ends[end].process().link.handle_input(time, input);
        world.carry_out(end);
    }
    if world.ends[end].running() {
        assert_eq!(seen(world, end), before.0, "a forged datagram changed the link");
    }
}

/// Carries out what the engine says to a copied cold-open datagram, which is not much.
fn answers_only(world: &mut World, end: usize, copy: &Flight, forgery: Forgery) {
    let kind = copy.kind();
    let cached = (kind == Some(Kind::Init)).then(|| response_to(world, end, copy)).flatten();
    // An Init that had come too soon after another may be taken the second time.
    let fresh = kind == Some(Kind::Init) && forgery == Forgery::Copy && cached.is_none();
    // And a Challenge that had come from where the peer was not looked for yet.
    let early = kind == Some(Kind::Challenge) && sent_with_nonce(world, end, Kind::Init, copy).is_none();
    let (mut outputs, mut answers) = (Vec::new(), 0);
    while let Some(output) = world.ends[end].process().link.poll_output() {
        match &output {
            Output::Send(transmit) => {
                assert_eq!(transmit.path.peer, copy.from);
                let answer = Kind::of(&transmit.datagram);
                let challenge = (kind, answer) == (Some(Kind::Knock), Some(Kind::Challenge));
                let response = fresh && answer == Some(Kind::Response) || cached.as_ref() == Some(&transmit.datagram);
                let init = early && answer == Some(Kind::Init);
                assert!(challenge || response || init, "a copy of {kind:?} drew {answer:?}");
                answers += 1;
                assert_eq!(answers, 1, "a copy of {kind:?} drew more than one answer");
            }
            Output::Ingress(_) | Output::Event(Event::CryptoFailed) => assert!(fresh, "a copy of {kind:?} was taken"),
            // The attempt goes on: one who has K of the direction could have made that Response.
            Output::Event(Event::PresharedKeysDiffer) => {
                let [a, b] = [0, 1].map(|end| world.ends[end].setup.psks.clone());
                assert!(kind == Some(Kind::Response) && a != b, "a copy of {kind:?} was news: PresharedKeysDiffer");
            }
            // For who reads the log at level debug.
            Output::Event(Event::Cold { .. }) => {}
            Output::Egress(_) => panic!("a copy of {kind:?} spoke to the egress loop"),
            Output::Event(event) => panic!("a copy of {kind:?} was news: {event:?}"),
        }
        outputs.push(output);
    }
    world.carry_out_these(end, outputs);
}

/// What the end's present process answered to this Init.
fn response_to(world: &World, end: usize, init: &Flight) -> Option<Vec<u8>> {
    sent_with_nonce(world, end, Kind::Response, init)
}

/// What it sent of this kind with the nonce of `of`.
fn sent_with_nonce(world: &World, end: usize, kind: Kind, of: &Flight) -> Option<Vec<u8>> {
    let mut sent = world.log.iter().flatten().skip(world.ends[end].born).filter(|f| f.sender == end);
    sent.find(|f| f.kind() == Some(kind) && f.bytes[4..20] == of.bytes[4..20]).map(|f| f.bytes.clone())
}

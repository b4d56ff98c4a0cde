//! The protocol by its public API against the vectors of an implementation of its own (`tests/vectors/README.md`).
//!
//! What needs a look inside is checked beside the code: `transport` (the sealing) in `protocol::session`, `rekey` in
//! `protocol::rekey`, `window` in `protocol::replay`, `cold_drops`, `rank` and `negotiate` in `protocol::link::open`,
//! `rekey_datagrams` (as a link sends them) and `control_rejects` in `protocol::link`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "vectors/reader.rs"]
mod reader;

use aws_lc_rs::hmac;
use reader::*;
use serde_json::Value;
use tieline::{
    keys,
    protocol::{
        self, Event, IngressUpdate, Output, Received, Time,
        constants::{HEADER, TAG, VERSION},
        control::{LaneReport, Message, MtuOffer, RekeySide, Report, State},
        crypto::{MacKey, OpenKeys, Prk, sha256, x25519},
        handshake::{NOISE, Root},
        wire::{self, Cold, ColdCheck, Header, Kind, Malformed, Payload, Verdict, check_cold},
    },
};

#[test]
fn every_section_of_the_file_is_known() {
    let file = file();
    let known = ["format", "protocol_version", "noise"].into_iter().chain(SECTIONS.iter().map(|(name, _)| *name));
    let mut known: Vec<&str> = known.collect();
    let mut found: Vec<&str> = file.as_object().unwrap().keys().map(String::as_str).collect();
    known.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, known);
    assert_eq!((&file["format"], &file["noise"]), (&"tieline test vectors".into(), &NOISE.into()));
    assert_eq!(int::<u8>(&file["protocol_version"]), VERSION);
    for (name, count) in SECTIONS {
        assert_eq!(section(name).len(), count);
    }
}

#[test]
fn keys() {
    let vector = &section("keys")[0];
    let outputs = &vector["outputs"];
    for end in ["a", "b"] {
        assert_eq!(secret(end).public().unwrap(), public(end));
        let ss = x25519(secret(end).as_bytes(), public(other(end)).as_bytes()).unwrap();
        assert_eq!(*ss, array(&outputs["ss"]));
        let derived = OpenKeys::derive(&secret(end), &public(end), &public(other(end))).unwrap();
        let listed = |from: &str| MacKey::new(&array(&outputs[format!("k_{from}_to_{}", other(from))]));
        assert_eq!(derived.sending.mac16(&[b"any"]), listed(end).mac16(&[b"any"]));
        assert_eq!(derived.receiving.mac16(&[b"any"]), listed(other(end)).mac16(&[b"any"]));
    }
}

/// K(`from` → the other end).
fn open_key(from: &str) -> MacKey {
    OpenKeys::derive(&secret(from), &public(from), &public(other(from))).unwrap().sending
}

#[test]
fn cold_opens_by_the_byte() {
    for vector in section("cold") {
        let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
        let initiator = text(&inputs["initiator"]);
        let (there, back) = (open_key(initiator), open_key(other(initiator)));
        let nonce = array(&inputs["nonce"]);
        let token = array(&outputs["token"]);

        let (ip, port) = (bytes(&outputs["source_ip16"]), int::<u16>(&inputs["source_port"]).to_be_bytes());
        assert_eq!(wire::address18(source(inputs))[..], [&ip[..], &port].concat());
        let stamp = long(&inputs["t0"]) + long(&inputs["knock_at_ns"]);
        assert_eq!(stamp, long(&outputs["stamp"]));

        let knock = wire::knock(&nonce, &there);
        assert_eq!(hex::encode(&knock), text(&outputs["knock"]));
        let challenge = wire::challenge(&nonce, &token, &back);
        assert_eq!(hex::encode(&challenge), text(&outputs["challenge"]));

        let payloads = [("payload1", &inputs["initiator_settings"]), ("payload2", &outputs["responder_payload"])];
        for (name, fields) in payloads {
            let encoded: [u8; 16] = array(&outputs[name]);
            assert_eq!(payload(fields).encode(), encoded);
            assert_eq!(Payload::parse(&encoded), Ok(payload(fields)));
        }
        assert_eq!(bytes(&outputs["prologue"]), [&b"tieline v1 cold"[..], &nonce, &token].concat());
        let roots = handshake::<64, 16>(&vector);
        let (noise1, noise2) = (array(&outputs["noise1"]), array(&outputs["noise2"]));
        let init = wire::init(&nonce, &token, &noise1, &there);
        assert_eq!(hex::encode(&init), text(&outputs["init"]));
        let response = wire::response(&nonce, &noise2, &back);
        assert_eq!(hex::encode(&response), text(&outputs["response"]));

        for (datagram, key, cold) in [
            (knock, &there, Cold::Knock { nonce }),
            (challenge, &back, Cold::Challenge { nonce, token }),
            (init, &there, Cold::Init { nonce, token, noise: noise1 }),
            (response, &back, Cold::Response { nonce, noise: noise2 }),
        ] {
            assert_eq!(check_cold(&datagram, key), ColdCheck::Authentic);
            assert_eq!(Cold::parse(&datagram), Ok(cold));
        }
        // Without a session there is nothing to derive; `agreed` is checked in `protocol::link::open`.
        assert_eq!(outputs["session"].is_null(), payload(&outputs["responder_payload"]).verdict != Verdict::Fine);
        if !outputs["session"].is_null() {
            roots.iter().for_each(|root| check_root(root, &outputs["session"], &outputs["agreed"]));
        }
    }
}

/// h, chain and every lane key that is listed.
fn check_root(root: &Root, session: &Value, agreed: &Value) {
    assert_eq!(root.h, array(&session["h"]));
    assert_eq!(*root.chain, array(&session["chain"]));
    // The raw split stays inside; what it gives is compared from the listed one.
    let split = [bytes(&session["k1"]), bytes(&session["k2"])].concat();
    let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &root.h), &split);
    assert_eq!(prk.as_ref(), bytes(&session["prk"]));
    assert_eq!(Prk::extract(&root.h, &split).expand::<32>(&[b"tieline v1 chain"]).unwrap(), root.chain);
    let keys = session["keys"].as_array().unwrap();
    let lanes = if session["kind"] == "bootstrap" { 1 } else { int::<usize>(&agreed["lanes"]) + 1 };
    assert_eq!(keys.len(), 2 * 2 * lanes);
    for key in keys {
        let lane = root.lane(int(&key["cipher"]), int(&key["dir"]), int(&key["lane"])).unwrap();
        assert_eq!((*lane.key, *lane.iv), (array(&key["key"]), array(&key["iv"])));
    }
}

/// The randomness a responder's link starts with: T, and t0 in the upper 62 of 64 bits.
fn responder_of(cold: &Value, more: &[&[u8]]) -> End {
    let inputs = &cold["inputs"];
    let (t, t0) = (bytes(&inputs["t_secret"]), (long(&inputs["t0"]) << 2).to_be_bytes());
    let entropy = Script::new(&[&[&t[..], &t0], more].concat());
    let responder = other(text(&inputs["initiator"]));
    End::new(responder, params(&inputs["responder_settings"]), psk(&inputs["psk"]), entropy)
}

#[test]
fn a_link_answers_every_knock_with_the_listed_challenge_and_every_init_with_a_response() {
    for vector in section("cold") {
        let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
        let index = payload(&inputs["responder_settings"]).index.to_be_bytes();
        let mut r = responder_of(&vector, &[&bytes(&inputs["responder_ephemeral"]), &index]);
        let (knocked, opened) = (Time(long(&inputs["knock_at_ns"])), Time(long(&inputs["init_at_ns"])));
        let from = path(source(inputs));
        let challenge = r.deliver(knocked, from, &bytes(&outputs["knock"]));
        assert_eq!(challenge, [bytes(&outputs["challenge"])], "{}", vector["name"]);
        let response = r.deliver(opened, from, &bytes(&outputs["init"]));
        // Its own settings differ from the listed ones where this version has only one (lanes, flags, epoch).
        assert_eq!(response.len(), 1, "{}", vector["name"]);
        assert_eq!(response[0][..20], bytes(&outputs["response"])[..20]);
        assert_eq!(response[0].len(), wire::RESPONSE);
        assert_eq!(r.drops(), Counted::default());
    }
}

#[test]
fn two_links_say_a_whole_cold_open_as_listed() {
    // The one whose settings are all this version's own.
    let vector = named("cold", "no common cipher");
    let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
    let indices = ["initiator", "responder"].map(|r| payload(&inputs[format!("{r}_settings")]).index.to_be_bytes());
    let (nonce, e_i) = (bytes(&inputs["nonce"]), bytes(&inputs["initiator_ephemeral"]));
    let entropy = Script::for_link(&[&nonce, &indices[0], &e_i]);
    let mut i = End::new(text(&inputs["initiator"]), params(&inputs["initiator_settings"]), None, entropy);
    let mut r = responder_of(&vector, &[&bytes(&inputs["responder_ephemeral"]), &indices[1]]);
    let (knocked, opened) = (Time(long(&inputs["knock_at_ns"])), Time(long(&inputs["init_at_ns"])));
    let (i_path, r_path) = (path(source(inputs)), path("192.0.2.1:7311".parse().unwrap()));

    i.link.handle_addresses(knocked, 0, &[r_path.peer]);
    let knock = i.sent();
    assert_eq!(knock, [bytes(&outputs["knock"])]);
    let challenge = r.deliver(knocked, i_path, &knock[0]);
    assert_eq!(challenge, [bytes(&outputs["challenge"])]);
    let init = i.deliver(opened, r_path, &challenge[0]);
    assert_eq!(init, [bytes(&outputs["init"])]);
    let response = r.deliver(opened, i_path, &init[0]);
    assert_eq!(response, [bytes(&outputs["response"])]);
    let mut datagram = response[0].clone();
    assert_eq!(i.receiver.receive(opened, r_path, &mut datagram), Received::Cold);
    i.link.handle_input(opened, protocol::Input::Cold { path: r_path, datagram: protocol::Small::new(&datagram) });
    let refused = |o: Output| matches!(o, Output::Event(Event::Refused(Verdict::NoCommonCipher)));
    assert!(std::iter::from_fn(|| i.link.poll_output()).any(refused));
}

#[test]
fn rekeys_by_the_byte() {
    for vector in section("rekey") {
        let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
        let parent = Listed::named(text(&inputs["parent"]));
        assert_eq!((hex::encode(parent.root().h), hex::encode(*parent.root().chain)), {
            (text(&inputs["parent_h"]).into(), text(&inputs["parent_chain"]).into())
        });
        assert_eq!(inputs["hybrid"], parent.hybrid);
        assert_eq!((cipher(&inputs["cipher"]), int::<u8>(&inputs["lanes"])), (parent.cipher, parent.lanes));

        let (ek, ct) = (bytes(&outputs["mlkem_ek"]), bytes(&outputs["mlkem_ct"]));
        assert_eq!(sha256(&[&ek]), array(&outputs["h_ek"]));
        assert_eq!(sha256(&[&ek, &ct]), array(&outputs["h_ek_ct"]));
        // `psk'` and the prologue as the code makes them: `protocol::rekey`.
        for root in handshake::<56, 8>(&vector) {
            check_root(&root, &outputs["session"], inputs);
        }
        for (m, noise, kem, parts) in [("m1", "noise1", &ek, "m1_parts"), ("m2", "noise2", &ct, "m2_parts")] {
            assert_eq!(bytes(&outputs[m]), [bytes(&outputs[noise]), kem.clone()].concat());
            let parts: Vec<u8> = outputs[parts].as_array().unwrap().iter().flat_map(bytes).collect();
            assert_eq!(parts, bytes(&outputs[m]));
        }
    }
}

#[test]
fn rekey_datagrams_seal_and_open_under_the_parent() {
    let vectors = section("rekey_datagrams");
    for rekey in section("rekey") {
        let parent = Listed::named(text(&rekey["inputs"]["parent"]));
        let mut seals = ["a", "b"].map(|end| (end, parent.halves(end)));
        let mut checked = 0;
        for vector in vectors.iter().filter(|v| v["inputs"]["rekey"] == rekey["name"]) {
            let (inputs, sender) = (&vector["inputs"], text(&vector["inputs"]["sender"]));
            assert_eq!(inputs["session"], parent.vector["name"]);
            let plaintext = bytes(&inputs["plaintext"]);
            let (_, halves) = seals.iter_mut().find(|(end, _)| *end == sender).unwrap();
            let datagram = halves.control.seal_message(&plaintext).unwrap();
            assert_eq!(hex::encode(&datagram), text(&vector["outputs"]["datagram"]), "{}", vector["name"]);
            assert_eq!(Header::parse(&datagram).unwrap().counter, long(&inputs["counter"]));

            let (mut opened, mut end) = (datagram, receiver_of(&parent, other(sender)));
            let received = end.receiver.receive(Time(1), path("192.0.2.1:1".parse().unwrap()), &mut opened);
            let (session, counter) = (parent.index(other(sender)), long(&inputs["counter"]));
            assert_eq!(received, Received::Control { session, counter });
            assert_eq!(opened[HEADER..opened.len() - TAG], plaintext);
            checked += 1;
        }
        let parts = |name: &str| rekey["outputs"][name].as_array().unwrap().len();
        assert_eq!(checked, parts("m1_parts") + parts("m2_parts"));
    }
}

/// An end whose ingress half holds this session and nothing else.
fn receiver_of(session: &Listed, end: &str) -> End {
    let mut made = End::new(end, protocol::Params::default(), None, Script::for_link(&[]));
    made.receiver.apply(IngressUpdate::Install(session.halves(end).opening));
    made
}

#[test]
fn transport_datagrams_are_received() {
    // Sealed: `protocol::session`.
    let mut pieces = 0;
    for vector in section("transport") {
        let inputs = &vector["inputs"];
        let session = Listed::named(text(&inputs["session"]));
        let (sender, plaintext) = (text(&inputs["sender"]), bytes(&inputs["plaintext"]));
        let mut end = receiver_of(&session, other(sender));
        let mut datagram = bytes(&vector["outputs"]["datagram"]);
        let received = end.receiver.receive(Time(1), path("192.0.2.1:1".parse().unwrap()), &mut datagram);
        let flags: u8 = int(&inputs["flags"]);
        let (session, counter) = (session.index(other(sender)), long(&inputs["counter"]));
        let expected = match (int::<u8>(&inputs["type"]), plaintext.is_empty()) {
            (6, _) => Received::Control { session, counter },
            (_, true) => Received::Nothing,
            _ if flags & wire::data_flags::PIECE != 0 => {
                pieces += 1;
                Received::Piece { flags, session, counter }
            }
            (_, false) => Received::Frame { flags },
        };
        assert_eq!((received, end.drops()), (expected, Counted::default()), "{}", vector["name"]);
        assert_eq!(datagram[HEADER..datagram.len() - TAG], plaintext);
        assert!(matches!(end.receiver.poll_notice(), Some(protocol::Notice::Opened { .. })), "it opened");
    }
    assert_eq!(pieces, 2);
}

#[test]
fn transport_drops_are_counted_as_listed() {
    for vector in section("transport_drops") {
        let inputs = &vector["inputs"];
        let mut end = receiver_of(&Listed::named(text(&inputs["session"])), text(&inputs["receiver"]));
        let mut datagram = bytes(&inputs["datagram"]);
        let received = end.receiver.receive(Time(1), path("192.0.2.1:1".parse().unwrap()), &mut datagram);
        assert_eq!(received, Received::Nothing, "{}", vector["name"]);
        assert_eq!(end.drops(), Counted::default().plus(&vector["outputs"]["drop"]), "{}", vector["name"]);
        assert_eq!(end.receiver.poll_notice(), None, "{}: nothing opened", vector["name"]);
    }
}

fn report(inputs: &Value) -> Report {
    let lane = |lane: &Value| LaneReport {
        sent: long(&lane["sent"]),
        received: long(&lane["received"]),
        duplicate: long(&lane["duplicate"]),
        late: long(&lane["late"]),
        failed: long(&lane["failed"]),
    };
    Report {
        state: [State::AdminDown, State::Down, State::Init, State::Up][int::<usize>(&inputs["state"])],
        held_s: int(&inputs["held_s"]),
        hold_us: int(&inputs["hold_us"]),
        time_us: long(&inputs["time_us"]),
        echo: long(&inputs["echo"]),
        lanes: inputs["lanes"].as_array().unwrap().iter().map(lane).collect(),
    }
}

fn offer(inputs: &Value) -> MtuOffer {
    let field = |name: &str| (!inputs[name].is_null()).then(|| int(&inputs[name]));
    MtuOffer { size: field("size"), mtu: field("mtu") }
}

#[test]
fn control_messages_by_the_byte() {
    for vector in section("control") {
        let inputs = &vector["inputs"];
        let part = inputs.get("bytes").map(bytes).unwrap_or_default();
        let rekey =
            |side| Message::Rekey { side, part: int(&inputs["part"]), parts: int(&inputs["parts"]), bytes: &part };
        let message = match text(&inputs["kind"]) {
            "rekey_init" => rekey(RekeySide::Init),
            "rekey_resp" => rekey(RekeySide::Resp),
            "report" => Message::Report(report(inputs)),
            "path_check" => Message::PathCheck { lane: int(&inputs["lane"]), cookie: array(&inputs["cookie"]) },
            "path_answer" => Message::PathAnswer { lane: int(&inputs["lane"]), cookie: array(&inputs["cookie"]) },
            "probe" => Message::Probe { mark: 0, size: int(&inputs["size"]) },
            "probe_ack" => Message::ProbeAck { mark: 0, size: int(&inputs["size"]) },
            "goodbye" => Message::Goodbye,
            "mtu" => {
                Message::Mtu { own: offer(&inputs["own"]), has: offer(&inputs["has"]), ask: inputs["ask"] == true }
            }
            "same_key" => Message::SameKey {
                here: text(&inputs["here"]).parse().unwrap(),
                there: text(&inputs["there"]).parse().unwrap(),
            },
            other => panic!("no control message {other}"),
        };
        let plaintext = bytes(&vector["outputs"]["plaintext"]);
        assert_eq!(message.encode(), plaintext);
        assert_eq!(Message::parse(&plaintext), Ok(message));
    }
}

#[test]
fn what_is_wrong_with_a_control_message_alone_is_found_alone() {
    // The rest of `control_rejects` takes a session to see: all of them are given to a link in `protocol::link`.
    let found = section("control_rejects").into_iter().filter(|v| {
        let plaintext = bytes(&v["inputs"]["plaintext"]);
        matches!(Message::parse(&plaintext), Err(Malformed) | Ok(Message::Unknown(_)))
    });
    assert_eq!(found.count(), 20);
}

#[test]
fn transport_headers_by_the_byte() {
    for vector in section("transport") {
        let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
        let kind = [Kind::Data, Kind::Control][int::<usize>(&inputs["type"]) - 5];
        let header = Header {
            kind,
            flags: int(&inputs["flags"]),
            lane: int(&inputs["lane"]),
            path: 0,
            index: int(&inputs["index"]),
            counter: long(&inputs["counter"]),
        };
        assert_eq!(header.encode(), array(&outputs["header"]));
        assert!(text(&vector["name"]).ends_with(cipher(&inputs["cipher"]).name()));
    }
}

//! The vectors of the cold open: what is dropped and counted where, what both ends agree on, ranks.

use super::*;
use crate::protocol::{Params, slots::Rank, vectors::*, wire::init};
use serde_json::Value;
use std::time::Duration;

/// When a vector's datagram comes.
fn at(inputs: &Value) -> Time {
    Time(long(&inputs["at_ns"]))
}

/// R of the cold open `cold` at its `knock_at_ns`, the Knock answered.
fn responder(cold: &Value) -> End {
    let inputs = &cold["inputs"];
    let (t, t0) = (bytes(&inputs["t_secret"]), (long(&inputs["t0"]) << 2).to_be_bytes());
    let index = payload(&inputs["responder_settings"]).index.to_be_bytes();
    let entropy = Script::new(&[&t, &t0, &bytes(&inputs["responder_ephemeral"]), &index]);
    let mut end = End::new("b", params(&inputs["responder_settings"]), None, entropy);
    let knocked = Time(long(&inputs["knock_at_ns"]));
    let challenge = end.deliver(knocked, path(source(inputs)), &bytes(&cold["outputs"]["knock"]));
    assert_eq!(challenge, [bytes(&cold["outputs"]["challenge"])]);
    end
}

/// I of that cold open, knocking at `address`; the rekey that follows is `first hybrid`.
fn initiator(cold: &Value, address: SocketAddr) -> End {
    let (inputs, first) = (&cold["inputs"], named("rekey", "first hybrid"));
    let index = payload_index(&first["inputs"]["initiator_payload"]);
    let e = bytes(&first["inputs"]["initiator_ephemeral"]);
    let entropy = Script::for_link(&[&bytes(&inputs["nonce"]), &index, &e]).with_kem(&first);
    let mut end = End::new("a", params(&inputs["initiator_settings"]), None, entropy);
    end.link.handle_addresses(Time(long(&inputs["knock_at_ns"])), 0, &[address]);
    assert_eq!(end.sent(), [bytes(&cold["outputs"]["knock"])]);
    end
}

fn payload_index(fields: &Value) -> [u8; 4] {
    int::<u32>(&fields["index"]).to_be_bytes()
}

/// As if `end` had taken the Challenge and sent the listed Init, whose settings this version would not choose.
fn send_listed_init(end: &mut End, cold: &Value, address: SocketAddr) {
    let (inputs, outputs) = (&cold["inputs"], &cold["outputs"]);
    let payload = payload(&inputs["initiator_settings"]);
    let (nonce, token) = (array(&inputs["nonce"]), array(&outputs["token"]));
    let mut e = Script::new(&[&bytes(&inputs["initiator_ephemeral"])]);
    let link = &mut end.link;
    let pair = link.keys.pairs[0].clone();
    let mut handshake = pair.statics.initiate(&cold_prologue(&nonce, &token), &[0; 32], &mut e).unwrap();
    let datagram = init(&nonce, &token, &handshake.write(&payload.encode()).unwrap(), &pair.keys.sending);
    assert_eq!(datagram, bytes(&outputs["init"]));
    link.attempt.as_mut().unwrap().init = Some(SentInit { path: path(address), pair, datagram, handshake, payload });
}

#[test]
fn cold_drops_are_counted_as_listed() {
    const RESPONSE_TYPE: u8 = wire::Kind::Response as u8;
    for vector in section("cold_drops") {
        let (inputs, drop) = (&vector["inputs"], &vector["outputs"]["drop"]);
        let cold = named("cold", text(&inputs["case"]));
        let (datagram, from) = (bytes(&inputs["datagram"]), source(inputs));
        let mut end = match text(&inputs["receiver"]) {
            "b" => responder(&cold),
            _ => initiator(&cold, from),
        };
        if datagram[0] == RESPONSE_TYPE {
            send_listed_init(&mut end, &cold, from);
        }
        let before = end.drops();
        let answers = end.deliver(at(inputs), path(from), &datagram);
        assert_eq!(end.drops(), before.plus(drop), "{}", vector["name"]);
        if drop.is_null() {
            assert_eq!(answers.len(), 1, "{}: what is taken is answered", vector["name"]);
            assert_eq!(answers[0][0], RESPONSE_TYPE);
        } else {
            assert!(answers.is_empty(), "{}: what is dropped is not answered", vector["name"]);
        }
    }
}

#[test]
fn the_good_response_opens_where_the_bad_ones_did_not_and_the_rekey_begins_as_listed() {
    let cold = named("cold", "hybrid");
    let from = source(&cold["inputs"]);
    let mut end = initiator(&cold, from);
    send_listed_init(&mut end, &cold, from);
    let opened = Time(long(&cold["inputs"]["init_at_ns"]));
    let parts = end.deliver(opened, path(from), &bytes(&cold["outputs"]["response"]));
    let listed: Vec<Vec<u8>> = section("rekey_datagrams")
        .iter()
        .filter(|v| v["inputs"]["rekey"] == "first hybrid" && v["inputs"]["sender"] == "a")
        .map(|v| bytes(&v["outputs"]["datagram"]))
        .collect();
    assert_eq!(parts, listed);
    assert_eq!(end.drops(), Counted::default());
}

#[test]
fn both_ends_agree_on_what_is_listed() {
    let mut cut = 0;
    let mut pairs: Vec<(Value, Value, Value, Value)> = Vec::new();
    for v in section("negotiate") {
        let (inputs, outputs) = (&v["inputs"], &v["outputs"]);
        let settings = |role: &str| inputs[format!("{role}_settings")].clone();
        pairs.push((settings("initiator"), settings("responder"), outputs.clone(), v["name"].clone()));
    }
    for v in section("cold") {
        let (inputs, outputs) = (&v["inputs"], &v["outputs"]);
        let settings = |role: &str| inputs[format!("{role}_settings")].clone();
        let mut answer = outputs["responder_payload"].clone();
        answer["agreed"] = outputs["agreed"].clone();
        pairs.push((settings("initiator"), settings("responder"), answer, v["name"].clone()));
    }
    assert_eq!(pairs.len(), 34 + 6);
    for (i, r, answer, name) in pairs {
        let (i, r) = (payload(&i), payload(&r));
        let (cipher, verdict) = judge(&r, &i);
        assert_eq!(cipher.map_or(0, |c| c as u8), int::<u8>(&answer["ciphers"]), "{name}");
        assert_eq!(verdict as u8, int::<u8>(&answer["status"]), "{name}");
        // I takes that answer for what it is.
        let response = Payload { ciphers: cipher.map_or(0, |c| c as u8), verdict, ..r };
        assert_eq!(chosen(&response, i.ciphers), Some(cipher), "{name}");
        let agreed = &answer["agreed"];
        assert_eq!(agreed.is_null(), cipher.is_none());
        let Some(cipher) = cipher else { continue };
        for found in [agree(cipher, &i, &response), agree(cipher, &response, &i)] {
            assert_eq!(found.cipher as u8, int::<u8>(&agreed["cipher"]), "{name}");
            assert_eq!(found.hybrid, agreed["hybrid"], "{name}");
            assert_eq!(found.partial_checksum, agreed["partial_checksum"], "{name}");
            assert_eq!(found.cut_frames, agreed["cut_frames"], "{name}");
            assert_eq!(found.lanes.len(), int::<usize>(&agreed["lanes"]), "{name}");
            assert_eq!(found.detection, Duration::from_millis(int(&agreed["detection_ms"])), "{name}");
        }
        assert!(!layers_differ(&i, &r));
        assert_eq!(r.flags & payload_flags::ETHERNET != 0, agreed["ethernet"], "{name}");
        cut += u8::from(agreed["cut_frames"] == true);
    }
    assert_eq!(cut, 1);
}

/// The rank `end` gives a cold session of these epochs, of which `vector` says who began it.
fn rank(vector: &Value, end: &str) -> Rank {
    let mut made = End::new(end, Params::default(), None, Script::for_link(&[]));
    let initiator = text(&vector["initiator"]) == end;
    let said = |role: &str| {
        let epoch = int(&vector[format!("epoch_{role}")]);
        Payload { epoch, ..payload(&named("cold", "hybrid")["inputs"][format!("{role}_settings")]) }
    };
    let (own, peer) = if initiator { ("initiator", "responder") } else { ("responder", "initiator") };
    let root = Listed::named("hybrid").root();
    let peer_path = path("192.0.2.1:1".parse().unwrap());
    let payloads = (&said(own), &said(peer));
    let keys = (made.link.keys.pairs[0].clone(), made.link.keys.psk().clone());
    let session = made.link.cold_session(Time(0), peer_path, keys, (root, Cipher::Aes256Gcm), payloads, initiator);
    session.ok().unwrap().rank
}

#[test]
fn ranks_are_the_same_at_both_ends_and_compare_as_listed() {
    let (mut values, mut comparisons) = (0, 0);
    for vector in section("rank") {
        let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
        for end in ["a", "b"] {
            if outputs.get("order").is_none() {
                let listed = (int::<u32>(&outputs["epoch"]), int::<u8>(&outputs["t"]) == 1);
                let found = rank(inputs, end);
                assert_eq!((found.epoch, found.lower_key_began), listed);
                values += 1;
            } else {
                let order = rank(&inputs["left"], end).cmp(&rank(&inputs["right"], end));
                assert_eq!(format!("{order:?}").to_lowercase(), text(&outputs["order"]));
                comparisons += 1;
            }
        }
    }
    assert_eq!((values, comparisons), (2 * 7, 2 * 49));
}

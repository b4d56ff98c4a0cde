//! The vectors of rekeys as two links say them, and of control messages that a link refuses.

use super::{sessions::Birth, *};
use crate::protocol::{
    session::lane_set,
    slots::{Agreed, Kind, Placed, Rank},
    vectors::{Counted, End, Listed, Script, array, bytes, int, named, other, path, psk, section, text},
};
use serde_json::Value;

fn anywhere() -> Path {
    path("192.0.2.1:7311".parse().unwrap())
}

/// An end that holds `parent`, established at 0, and nothing else. It never said anything under it.
fn holding(end: &str, parent: &Listed, entropy: Script) -> End {
    let outputs = &parent.vector["outputs"]["session"];
    let psk = psk(&parent.vector["inputs"]["psk"]);
    let mut made = End::new(end, Params::default(), psk, entropy);
    let (pair, psk) = (made.link.keys.pairs[0].clone(), made.link.keys.psk().clone());
    let birth = Birth {
        kind: if parent.bootstrap { Kind::Boot } else { Kind::Data },
        agreed: Agreed {
            partial_checksum: true,
            cut_frames: true,
            cipher: parent.cipher,
            hybrid: parent.hybrid,
            detection: Duration::from_secs(3),
            lanes: lane_set(parent.lanes),
        },
        post_quantum: false,
        initiator: parent.initiator == end,
        index: parent.index(end),
        peer_index: parent.index(other(end)),
        pair,
        psk,
        epoch: rank(outputs).0,
        said: rank(outputs).0,
        parent: None,
        path: anywhere(),
    };
    let session = made.link.make_session(Time(0), parent.root(), birth).unwrap();
    let placed = made.link.slots.establish(Time(0), session);
    assert_eq!(placed, if parent.bootstrap { Placed::Boot } else { Placed::Current });
    assert!(made.sent().is_empty());
    made
}

/// A listed rank: the epoch, and whether the end with the lower key began.
fn rank(session: &Value) -> (u32, bool) {
    (int(&session["rank"]["epoch"]), int::<u8>(&session["rank"]["t"]) == 1)
}

fn of(rank: Rank) -> (u32, bool) {
    (rank.epoch, rank.lower_key_began)
}

/// One end of a rekey, about to send or to answer.
fn end_of(rekey: &Value, end: &str) -> End {
    let inputs = &rekey["inputs"];
    let role = if text(&inputs["starter"]) == end { "initiator" } else { "responder" };
    let payload = &inputs[format!("{role}_payload")];
    let index = int::<u32>(&payload["index"]).to_be_bytes();
    let e = bytes(&inputs[format!("{role}_ephemeral")]);
    let entropy = Script::for_link(&[&index, &e]).with_kem(rekey);
    let mut made = holding(end, &Listed::named(text(&inputs["parent"])), entropy);
    made.link.slots.high = int::<u32>(&payload["epoch"]) - 1;
    made
}

#[test]
fn two_links_say_every_rekey_as_listed() {
    let vectors = section("rekey_datagrams");
    let mut checked = 0;
    for rekey in section("rekey") {
        let listed = |sender: &str| -> Vec<Vec<u8>> {
            let of = |v: &&Value| v["inputs"]["rekey"] == rekey["name"] && v["inputs"]["sender"] == sender;
            vectors.iter().filter(of).map(|v| bytes(&v["outputs"]["datagram"])).collect()
        };
        let starter = text(&rekey["inputs"]["starter"]);
        let (mut i, mut r) = (end_of(&rekey, starter), end_of(&rekey, other(starter)));
        let parent = Listed::named(text(&rekey["inputs"]["parent"]));
        let now = Time(0) + Duration::from_secs(150);
        if parent.bootstrap {
            let boot = i.link.slots.boot.take().unwrap();
            i.link.establish(now, boot); // whose first deed is the rekey
        } else {
            i.link.run_rekeys(now);
        }
        let m1 = i.sent();
        assert_eq!(m1, listed(starter), "{}", rekey["name"]);
        let m2: Vec<Vec<u8>> = m1.iter().flat_map(|part| r.deliver(now, anywhere(), part)).collect();
        assert_eq!(m2, listed(other(starter)), "{}", rekey["name"]);
        checked += m1.len() + m2.len();
        let reports: Vec<Vec<u8>> = m2.iter().flat_map(|part| i.deliver(now, anywhere(), part)).collect();
        assert_eq!(reports.len(), 1, "the child is confirmed by a Report");

        let outputs = &rekey["outputs"]["session"];
        let at_r = r.link.slots.answered.first().unwrap();
        for child in [i.link.slots.cur.as_ref().unwrap(), at_r] {
            assert_eq!((of(child.rank), child.kind), (rank(outputs), Kind::Data));
            assert_eq!((child.h, *child.chain), (array(&outputs["h"]), array(&outputs["chain"])));
        }
        r.deliver(now, anywhere(), &reports[0]);
        assert_eq!(r.link.slots.cur.as_ref().map(|cur| of(cur.rank)), Some(rank(outputs)), "and was");
        assert_eq!((i.drops(), r.drops()), (Counted::default(), Counted::default()));
    }
    assert_eq!(checked, vectors.len());
}

#[test]
fn control_messages_to_be_rejected_are() {
    // This end's own rekey is open, so that parts of either message are looked at.
    let rekey = named("rekey", "second hybrid");
    let starter = text(&rekey["inputs"]["starter"]);
    let mut end = end_of(&rekey, starter);
    let parent = Listed::named(text(&rekey["inputs"]["parent"]));
    end.link.run_rekeys(Time(0) + Duration::from_secs(150));
    assert_eq!(end.sent().len(), 3);
    let mut peer = parent.halves(other(starter)).control;
    let mut tell = |plaintext: &[u8]| {
        let before = end.drops();
        end.deliver(Time(0) + Duration::from_secs(150), anywhere(), &peer.seal_message(plaintext).unwrap());
        (before, end.drops())
    };
    for vector in section("control_rejects") {
        let inputs = &vector["inputs"];
        assert_eq!((int::<u8>(&inputs["lanes"]), &inputs["hybrid"]), (parent.lanes, &parent.hybrid.into()));
        let (before, after) = tell(&bytes(&inputs["plaintext"]));
        assert_eq!(after, before.plus(&vector["outputs"]["drop"]), "{}", vector["name"]);
    }
    // The good ones of this session's shape are not.
    let fits = |v: &&Value| match text(&v["inputs"]["kind"]) {
        "report" => v["inputs"]["lanes"].as_array().unwrap().len() == 2,
        "rekey_init" | "rekey_resp" => v["inputs"]["parts"] == 3,
        _ => true,
    };
    let good: Vec<Value> = section("control").into_iter().filter(|v| fits(&v)).collect();
    assert_eq!(good.len(), 3 + 1 + 9);
    for vector in good {
        let (before, after) = tell(&bytes(&vector["outputs"]["plaintext"]));
        assert_eq!(after, before, "{}", vector["inputs"]["kind"]);
    }
}

#[test]
fn a_rekey_starts_at_half_a_limit_at_the_initiator_and_at_three_quarters_at_the_responder() {
    let parent = Listed::named("first hybrid"); // two lanes: each has half of the limits
    for end in ["a", "b"] {
        let link = holding(end, &parent, Script::for_link(&[])).link;
        let cur = link.slots.cur.as_ref().unwrap();
        let quarters = if cur.initiator { 2 } else { 3 };
        let levels = &cur.levels;
        let (datagrams, bytes) = ((1u64 << 27) / 4 * quarters, (1u64 << 37) / 4 * quarters);
        let limits = [
            (&levels.sealed, datagrams),
            (&levels.peer_sealed, datagrams),
            (&levels.sealed_bytes, bytes),
            (&levels.opened_bytes, bytes),
        ];
        for (level, limit) in limits {
            level.set(limit - 1);
            assert!(!link.worn(), "{end} at {limit} less one");
            level.set(limit);
            assert!(link.worn(), "{end} at {limit}");
            level.set(0);
        }
    }
}

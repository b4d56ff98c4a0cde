//! Reads `tieline-v1.json`, and sets up ends and sessions as it lists them. No checks of the protocol's are made here
//! but that the handshakes give the bytes listed.
//!
//! It is shared by `tests/vectors.rs` and the unit tests in `src/protocol`, which both have `keys` and `protocol` at
//! their root; neither needs all of it.
#![allow(dead_code)]

use crate::{
    keys::{PresharedKey, PublicKey, SecretKey},
    protocol::{
        Input, Keys, Link, Output, Params, Path, Received, Receiver, Small, SocketId, Time,
        constants::{HEADER, TAG},
        crypto::{CryptoFailure, Entropy, KEM_CT, KEM_EK, KemKey, KemPair, Secret},
        handshake::{Root, Statics},
        session::{Cipher, Halves, Shape, lane_set},
        wire::{Payload, Verdict},
    },
};
use aws_lc_rs::kem;
use ml_kem::{
    kem::KeyExport,
    ml_kem_768::{DecapsulationKey, EncapsulationKey},
};
use serde_json::Value;
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The file's sections, and how many vectors each has: a test that reads one checks all of it.
pub const SECTIONS: [(&str, usize); 12] = [
    ("keys", 1),
    ("cold", 6),
    ("rekey", 5),
    ("rekey_datagrams", 22),
    ("transport", 16),
    ("control", 19),
    ("control_rejects", 27),
    ("cold_drops", 41),
    ("transport_drops", 15),
    ("window", 10),
    ("rank", 7 + 49),
    ("negotiate", 34),
];

/// The whole file.
pub fn file() -> Value {
    serde_json::from_str(include_str!("tieline-v1.json")).expect("the file is JSON")
}

/// All vectors of a section, as many as [`SECTIONS`] says.
pub fn section(name: &str) -> Vec<Value> {
    let vectors = match &file()[name] {
        Value::Array(vectors) => vectors.clone(),
        rank if name == "rank" => {
            ["values", "comparisons"].iter().flat_map(|part| rank[part].as_array().expect("a list").clone()).collect()
        }
        one => vec![one.clone()],
    };
    let (_, count) = SECTIONS.iter().find(|(section, _)| *section == name).expect("a known section");
    assert_eq!(vectors.len(), *count, "the number of vectors in {name}");
    vectors
}

/// The vector of a section that has this name.
pub fn named(section_name: &str, name: &str) -> Value {
    section(section_name).into_iter().find(|v| v["name"] == name).expect("a vector of this name")
}

/// A name, or any other text.
pub fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Hex.
pub fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(text(value)).expect("hex")
}

/// Hex of a known length.
pub fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().expect("the length")
}

/// 64 bits, as 16 hex digits.
pub fn long(value: &Value) -> u64 {
    u64::from_be_bytes(array(value))
}

/// A JSON number.
pub fn int<T: TryFrom<u64>>(value: &Value) -> T {
    let number = value.as_u64().expect("a number");
    T::try_from(number).ok().expect("a number in range")
}

/// The end that is not `end`.
pub fn other(end: &str) -> &'static str {
    if end == "a" { "b" } else { "a" }
}

/// An end's static secret.
pub fn secret(end: &str) -> SecretKey {
    SecretKey::from_bytes(array(&section("keys")[0]["inputs"][format!("secret_{end}")]))
}

/// An end's public key.
pub fn public(end: &str) -> PublicKey {
    PublicKey::from_bytes(array(&section("keys")[0]["outputs"][format!("public_{end}")])).expect("a canonical key")
}

/// What an end needs for any handshake.
pub fn statics(end: &str) -> Statics {
    Statics::new(&secret(end), public(other(end)))
}

/// A preshared key, if there is one.
pub fn psk(value: &Value) -> Option<PresharedKey> {
    value.as_str().map(|_| PresharedKey::from_bytes(array(value)).expect("not zero"))
}

/// A payload by its fields; `None` for a status that does not exist.
pub fn payload(settings: &Value) -> Payload {
    Payload {
        index: int(&settings["index"]),
        epoch: int(&settings["epoch"]),
        ciphers: int(&settings["ciphers"]),
        flags: int(&settings["flags"]),
        lanes: int(&settings["lanes"]),
        verdict: match int::<u8>(&settings["status"]) {
            0 => Verdict::Fine,
            1 => Verdict::NoCommonCipher,
            2 => Verdict::LayersDiffer,
            other => panic!("status {other}"),
        },
        interval_ms: int(&settings["interval_ms"]),
    }
}

/// A cipher by its number.
pub fn cipher(value: &Value) -> Cipher {
    match int::<u8>(value) {
        1 => Cipher::Aes256Gcm,
        2 => Cipher::ChaCha20Poly1305,
        other => panic!("cipher {other}"),
    }
}

/// The address a datagram came from.
pub fn source(inputs: &Value) -> SocketAddr {
    let ip: IpAddr = text(&inputs["source_ip"]).parse().expect("an address");
    SocketAddr::new(ip, int(&inputs["source_port"]))
}

/// A path to `peer`.
pub fn path(peer: SocketAddr) -> Path {
    Path { socket: SocketId(0), local: None, peer }
}

/// Entropy that hands out listed bytes, in order, and one run of ML-KEM-768.
#[derive(Default)]
pub struct Script {
    bytes: VecDeque<Vec<u8>>,
    kem: Option<Value>,
}

impl Script {
    /// These bytes, in this order.
    pub fn new(bytes: &[&[u8]]) -> Script {
        Script { bytes: bytes.iter().map(|b| b.to_vec()).collect(), kem: None }
    }

    /// The randomness a link draws as it starts, for tokens nobody looks at.
    pub fn for_link(bytes: &[&[u8]]) -> Script {
        Script::new(&[&[&[7; 32][..], &[7; 8]], bytes].concat())
    }

    /// The ML-KEM-768 run of a vector of `rekey`.
    pub fn with_kem(self, rekey: &Value) -> Script {
        Script { kem: Some(rekey.clone()), ..self }
    }

    fn kem(&self) -> Result<&Value, CryptoFailure> {
        self.kem.as_ref().ok_or(CryptoFailure)
    }
}

impl Entropy for Script {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoFailure> {
        if let [jitter] = out {
            *jitter = 128; // of a pause between attempts: no vector lists it
            return Ok(());
        }
        let next = self.bytes.pop_front().ok_or(CryptoFailure)?;
        assert_eq!(next.len(), out.len(), "randomness is drawn in another order than listed");
        out.copy_from_slice(&next);
        Ok(())
    }

    fn kem_generate(&mut self) -> Result<KemPair, CryptoFailure> {
        let (inputs, outputs) = (&self.kem()?["inputs"], &self.kem()?["outputs"]);
        let seed = [bytes(&inputs["mlkem_d"]), bytes(&inputs["mlkem_z"])].concat();
        let seed: [u8; 64] = seed.try_into().expect("d and z");
        let ek = DecapsulationKey::from_seed(seed.into()).encapsulation_key().to_bytes();
        let ek: [u8; KEM_EK] = ek.as_slice().try_into().expect("the length");
        assert_eq!(ek, array(&outputs["mlkem_ek"]), "ek");
        let dk = kem::DecapsulationKey::new(&kem::ML_KEM_768, &bytes(&outputs["mlkem_dk"])).expect("dk");
        Ok((Box::new(Decapsulation(dk)), Box::new(ek)))
    }

    fn kem_encapsulate(&mut self, ek: &[u8; KEM_EK]) -> Result<(Box<[u8; KEM_CT]>, Secret), CryptoFailure> {
        let (inputs, outputs) = (&self.kem()?["inputs"], &self.kem()?["outputs"]);
        let ek = EncapsulationKey::new(&(*ek).into()).map_err(|_| CryptoFailure)?;
        let (ct, k) = ek.encapsulate_deterministic(&array::<32>(&inputs["mlkem_m"]).into());
        let ct: [u8; KEM_CT] = ct.as_slice().try_into().expect("the length");
        let k: [u8; 32] = k.as_slice().try_into().expect("the length");
        assert_eq!((ct, k), (array(&outputs["mlkem_ct"]), array(&outputs["mlkem_k"])), "ct and k");
        Ok((Box::new(ct), k.into()))
    }
}

/// aws-lc-rs opens what RustCrypto's ml-kem closed.
struct Decapsulation(kem::DecapsulationKey);

impl KemKey for Decapsulation {
    fn decapsulate(&self, ct: &[u8; KEM_CT]) -> Result<Secret, CryptoFailure> {
        let k = self.0.decapsulate(kem::Ciphertext::from(&ct[..])).map_err(|_| CryptoFailure)?;
        k.as_ref().try_into().map(Secret::copy_of).map_err(|_| CryptoFailure)
    }
}

/// A session that a vector of `cold` or `rekey` ends in.
pub struct Listed {
    /// That vector.
    pub vector: Value,
    /// The end that sent message 1.
    pub initiator: String,
    /// The AEAD.
    pub cipher: Cipher,
    /// Whether hybrid was agreed.
    pub hybrid: bool,
    /// Whether it is for control only.
    pub bootstrap: bool,
    /// The data lanes agreed.
    pub lanes: u8,
    cold: bool,
}

impl Listed {
    /// The session of this name.
    pub fn named(name: &str) -> Listed {
        let cold = section("cold").iter().any(|v| v["name"] == name);
        let vector = named(if cold { "cold" } else { "rekey" }, name);
        let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
        let (initiator, agreed) =
            if cold { (&inputs["initiator"], &outputs["agreed"]) } else { (&inputs["starter"], inputs) };
        Listed {
            initiator: text(initiator).into(),
            cipher: cipher(&agreed["cipher"]),
            hybrid: agreed["hybrid"].as_bool().expect("a bool"),
            bootstrap: outputs["session"]["kind"] == "bootstrap",
            lanes: int(&agreed["lanes"]),
            cold,
            vector,
        }
    }

    /// The index `end` receives on.
    pub fn index(&self, end: &str) -> u32 {
        let role = if end == self.initiator { "initiator" } else { "responder" };
        let what = if self.cold { "settings" } else { "payload" };
        int(&self.vector["inputs"][format!("{role}_{what}")]["index"])
    }

    /// What its keys come from, at either end: the handshake is run anew.
    pub fn root(&self) -> Root {
        let [root, _] = if self.cold { handshake::<64, 16>(&self.vector) } else { handshake::<56, 8>(&self.vector) };
        root
    }

    /// What `end` knows of it.
    pub fn shape(&self, end: &str) -> Shape {
        Shape {
            cipher: self.cipher,
            initiator: end == self.initiator,
            own_index: self.index(end),
            peer_index: self.index(other(end)),
            lanes: (!self.bootstrap).then(|| lane_set(self.lanes)),
            partial_checksum: true,
            cut_frames: true,
        }
    }

    /// Its halves at `end`.
    pub fn halves(&self, end: &str) -> Halves {
        Halves::derive(&self.root(), &self.shape(end)).expect("the primitives work")
    }
}

/// Runs the handshake of a vector of `cold` (64, 16) or `rekey` (56, 8) between two ends, and compares its messages.
pub fn handshake<const N: usize, const P: usize>(vector: &Value) -> [Root; 2] {
    let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
    let initiator = text(inputs.get("initiator").or(inputs.get("starter")).expect("an initiator"));
    let prologue = bytes(&outputs["prologue"]);
    let psk: [u8; 32] = match (outputs.get("psk"), &inputs["psk"]) {
        (Some(psk), _) => array(psk),
        (None, Value::Null) => [0; 32],
        (None, psk) => array(psk),
    };
    let ephemeral = |role: &str| Script::new(&[&bytes(&inputs[format!("{role}_ephemeral")])]);
    // Zeros first, as a rekey does: psk' is known only when message 1 is.
    let start = [0; 32];
    let mut i = statics(initiator).initiate(&prologue, &start, &mut ephemeral("initiator")).expect("starts");
    let mut r = statics(other(initiator)).respond(&prologue, &start, &mut ephemeral("responder")).expect("starts");

    let noise1: [u8; N] = i.write(&bytes(&outputs["payload1"])).expect("message 1");
    assert_eq!(hex::encode(noise1), text(&outputs["noise1"]), "{}: noise1", vector["name"]);
    assert_eq!(r.read::<P>(&noise1), Ok(array(&outputs["payload1"])));
    for side in [&mut i, &mut r] {
        side.set_psk(&psk).expect("takes a psk");
    }
    let noise2: [u8; N] = r.write(&bytes(&outputs["payload2"])).expect("message 2");
    assert_eq!(hex::encode(noise2), text(&outputs["noise2"]), "{}: noise2", vector["name"]);
    assert_eq!(i.read::<P>(&noise2), Ok(array(&outputs["payload2"])));
    [i.split().expect("finished"), r.split().expect("finished")]
}

/// One end: link and ingress half.
pub struct End {
    /// The engine.
    pub link: Link,
    /// What opens for it.
    pub receiver: Receiver,
}

/// Settings as a vector gives them, as far as this version has them.
pub fn params(settings: &Value) -> Params {
    let settings = payload(settings);
    Params {
        aes: settings.ciphers & 1 != 0,
        chacha: settings.ciphers & 2 != 0,
        post_quantum: settings.flags & 1 != 0,
        partial_checksum: settings.flags & 2 != 0,
        ethernet: settings.flags & 8 != 0,
        cut_frames: settings.flags & 16 != 0,
        interval: Duration::from_millis(settings.interval_ms.into()),
        ..Params::default()
    }
}

impl End {
    /// Sets `end` up at time 0.
    pub fn new(end: &str, params: Params, psk: Option<PresharedKey>, entropy: Script) -> End {
        let keys = Keys { own: &secret(end), peers: &[public(other(end))], preshared: psk.as_slice() };
        let made = Link::new(params, keys, Box::new(entropy), Time(0));
        let (link, _, receiver) = made.expect("two different keys");
        End { link, receiver }
    }

    /// Lets a datagram come, and gives what is sent in answer.
    pub fn deliver(&mut self, now: Time, path: Path, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut datagram = datagram.to_vec();
        match self.receiver.receive(now, path, &mut datagram) {
            Received::Cold => self.link.handle_input(now, Input::Cold { path, datagram: Small::new(&datagram) }),
            Received::Control { session, counter } => {
                let message = Small::new(&datagram[HEADER..datagram.len() - TAG]);
                self.link.handle_input(now, Input::Control { path, session, counter, message });
            }
            Received::Frame { .. } | Received::Piece { .. } | Received::Nothing => {}
        }
        self.sent()
    }

    /// Carries out what the link wants; gives what it sends.
    pub fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        while let Some(output) = self.link.poll_output() {
            match output {
                Output::Ingress(update) => self.receiver.apply(update),
                Output::Send(transmit) => sent.push(transmit.datagram),
                Output::Egress(_) | Output::Event(_) => {}
            }
        }
        sent
    }

    /// What was dropped so far.
    pub fn drops(&self) -> Counted {
        let levels = self.link.levels();
        let drops = &levels.drops;
        Counted {
            malformed: drops.malformed.get(),
            unauthentic: drops.unauthentic.get(),
            replayed: drops.replayed.get(),
            no_session: drops.no_session.get(),
        }
    }
}

/// The counters of §13.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    malformed: u64,
    unauthentic: u64,
    replayed: u64,
    no_session: u64,
}

impl Counted {
    /// One more in the counter a vector names; none for null.
    pub fn plus(self, counter: &Value) -> Counted {
        let mut drops = self;
        match counter.as_str() {
            None => {}
            Some("malformed") => drops.malformed += 1,
            Some("unauthentic") => drops.unauthentic += 1,
            Some("replayed") => drops.replayed += 1,
            Some("no_session") => drops.no_session += 1,
            Some(other) => panic!("no counter {other}"),
        }
        drops
    }
}

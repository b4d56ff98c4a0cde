//! The hybrid rekey under a parent session: M1 and M2, their parts, and what makes the child's preshared key.
//!
//! One exchange per parent and starter, never made anew: a resend repeats the bytes. Nothing uses the ML-KEM secret
//! but `psk'`, and no child key exists before M2 has opened.

use super::{
    constants::*,
    control::{Message, RekeySide},
    crypto::{CryptoFailure, Entropy, KEM_CT, KEM_EK, KemKey, Prk, Secret, sha256},
    handshake::{Handshake, Root, Statics, Unreadable},
    time::Time,
    wire::{Malformed, Reader},
};
use zeroize::Zeroizing;

/// Bytes of the Noise message in M1 and M2: `e32 ‖ AEAD(payload8) ‖ tag16`.
const NOISE_LEN: usize = 56;

/// The bytes of M1 or M2.
fn length(side: RekeySide, hybrid: bool) -> usize {
    match (side, hybrid) {
        (_, false) => NOISE_LEN,
        (RekeySide::Init, true) => NOISE_LEN + KEM_EK,
        (RekeySide::Resp, true) => NOISE_LEN + KEM_CT,
    }
}

/// A message cut into control messages of at most [`REKEY_PART`] bytes, encoded.
pub fn parts(side: RekeySide, message: &[u8]) -> Vec<Vec<u8>> {
    let parts = message.len().div_ceil(REKEY_PART) as u8;
    (0..parts)
        .zip(message.chunks(REKEY_PART))
        .map(|(part, bytes)| Message::Rekey { side, part, parts, bytes }.encode())
        .collect()
}

/// Puts a message together from parts that come in any order, and more than once.
pub struct Assembly {
    bytes: Vec<u8>,
    missing: u32,
}

impl Assembly {
    fn new(side: RekeySide, hybrid: bool) -> Assembly {
        let len = length(side, hybrid);
        Assembly { bytes: vec![0; len], missing: (1 << len.div_ceil(REKEY_PART)) - 1 }
    }

    /// Takes a part; a part that came before keeps its first bytes.
    ///
    /// # Errors
    /// [`Malformed`] where part, parts or length are not those of this message.
    fn add(&mut self, part: u8, parts: u8, bytes: &[u8]) -> Result<(), Malformed> {
        let at = usize::from(part) * REKEY_PART;
        let exact = self.bytes.len().div_ceil(REKEY_PART) == usize::from(parts)
            && at < self.bytes.len()
            && bytes.len() == REKEY_PART.min(self.bytes.len() - at);
        if !exact {
            return Err(Malformed);
        }
        if self.missing & (1 << part) != 0 {
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            self.missing &= !(1 << part);
        }
        Ok(())
    }

    fn complete(&self) -> bool {
        self.missing == 0
    }
}

/// `index4 ‖ epoch4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RekeyPayload {
    pub index: u32,
    pub epoch: u32,
}

impl RekeyPayload {
    fn encode(self) -> [u8; 8] {
        let mut out = [0; 8];
        out[..4].copy_from_slice(&self.index.to_be_bytes());
        out[4..].copy_from_slice(&self.epoch.to_be_bytes());
        out
    }

    fn parse(bytes: [u8; 8]) -> Result<RekeyPayload, RekeyError> {
        let mut r = Reader(&bytes);
        let payload = RekeyPayload { index: r.u32()?, epoch: r.u32()? };
        if payload.index == 0 || !(1..=MAX_EPOCH).contains(&payload.epoch) {
            Err(RekeyError::Malformed)
        } else {
            Ok(payload)
        }
    }
}

/// Why a rekey came to nothing. Under an authentic parent none of these is the network's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RekeyError {
    Malformed,
    Unreadable,
    Crypto,
}

impl RekeyError {
    /// For the log.
    pub fn reason(self) -> &'static str {
        match self {
            RekeyError::Malformed => "a message of the rekey is malformed",
            RekeyError::Unreadable => "a message of the rekey does not open",
            RekeyError::Crypto => "a cryptographic primitive failed in the rekey",
        }
    }
}

impl From<Malformed> for RekeyError {
    fn from(_: Malformed) -> RekeyError {
        RekeyError::Malformed
    }
}

impl From<Unreadable> for RekeyError {
    fn from(_: Unreadable) -> RekeyError {
        RekeyError::Unreadable
    }
}

impl From<CryptoFailure> for RekeyError {
    fn from(_: CryptoFailure) -> RekeyError {
        RekeyError::Crypto
    }
}

/// What of the parent, and of this end, goes into a rekey.
pub struct Ground<'a> {
    pub statics: &'a Statics,
    pub psk: &'a [u8; 32],
    pub h: &'a [u8; 32],
    pub chain: &'a Secret,
    pub hybrid: bool,
}

impl Ground<'_> {
    /// `"tieline v1 rekey" ‖ h_P ‖ H(ek)`.
    fn prologue(&self, ek: &[u8]) -> Vec<u8> {
        [b"tieline v1 rekey", &self.h[..], &sha256(&[ek])].concat()
    }

    /// `psk' = HKDF(chain_P, k ‖ psk, "tieline v1 psk" ‖ H(ek ‖ ct))`; without ML-KEM `k`, `ek` and `ct` are empty.
    fn psk(&self, k: Option<&Secret>, ek: &[u8], ct: &[u8]) -> Result<Secret, CryptoFailure> {
        let mut ikm = Zeroizing::new(Vec::with_capacity(64));
        ikm.extend_from_slice(k.map_or(&[][..], |k| &k[..]));
        ikm.extend_from_slice(self.psk);
        Prk::extract(&self.chain[..], &ikm).expand(&[b"tieline v1 psk", &sha256(&[ek, ct])])
    }
}

/// The rekey as its starter sees it.
pub struct Exchange {
    handshake: Option<Handshake>,
    kem: Option<Box<dyn KemKey>>,
    own: RekeyPayload,
    m1: Vec<u8>,
    m2: Assembly,
    /// When M1 is sent next.
    pub resend_at: Time,
    spacing: std::time::Duration,
}

/// What a finished rekey makes a child of.
pub struct Child {
    pub root: Root,
    pub own: RekeyPayload,
    pub peer: RekeyPayload,
}

impl Exchange {
    /// Makes M1. The first resend comes after `spacing`.
    pub fn start(
        ground: &Ground<'_>,
        own: RekeyPayload,
        entropy: &mut dyn Entropy,
        now: Time,
        spacing: std::time::Duration,
    ) -> Result<Exchange, RekeyError> {
        let (kem, ek) = if ground.hybrid {
            let (kem, ek) = entropy.kem_generate()?;
            (Some(kem), ek.to_vec())
        } else {
            (None, Vec::new())
        };
        // The true psk' is known only with M2, and Noise mixes it in only there.
        let mut handshake = ground.statics.initiate(&ground.prologue(&ek), &[0; 32], entropy)?;
        let noise = handshake.write::<NOISE_LEN>(&own.encode())?;
        Ok(Exchange {
            handshake: Some(handshake),
            kem,
            own,
            m1: [&noise[..], &ek].concat(),
            m2: Assembly::new(RekeySide::Resp, ground.hybrid),
            resend_at: now,
            spacing,
        })
    }

    /// The index M1 gave the peer.
    pub fn index(&self) -> u32 {
        self.own.index
    }

    /// The parts of M1, to be sent now; sets when they are next.
    pub fn send(&mut self, now: Time) -> Vec<Vec<u8>> {
        self.resend_at = now + self.spacing;
        self.spacing = (self.spacing * 2).min(REKEY_RESEND_MAX);
        parts(RekeySide::Init, &self.m1)
    }

    /// Takes a part of M2; the child once all are there.
    ///
    /// # Errors
    /// [`RekeyError`]; all but `Malformed` end this exchange.
    pub fn add(&mut self, ground: &Ground<'_>, part: u8, parts: u8, bytes: &[u8]) -> Result<Option<Child>, RekeyError> {
        self.m2.add(part, parts, bytes)?;
        if !self.m2.complete() {
            return Ok(None);
        }
        let Some(mut handshake) = self.handshake.take() else {
            return Ok(None);
        };
        let (noise, ct) = self.m2.bytes.split_at(NOISE_LEN);
        let k = match (&self.kem, ct.try_into()) {
            (Some(kem), Ok(ct)) => Some(kem.decapsulate(ct)?),
            _ => None,
        };
        handshake.set_psk(&*ground.psk(k.as_ref(), &self.m1[NOISE_LEN..], ct)?)?;
        let peer = RekeyPayload::parse(handshake.read(noise)?)?;
        self.kem = None;
        Ok(Some(Child { root: handshake.split()?, own: self.own, peer }))
    }

    /// Whether it still waits for M2.
    pub fn open(&self) -> bool {
        self.handshake.is_some()
    }
}

/// The rekey as the other end sees it.
pub enum Answer {
    /// Parts of M1 are missing.
    Waiting(Assembly),
    /// M2, and when it was last sent.
    Made { m2: Vec<u8>, sent: Time },
    /// It failed, and is not tried again under this parent.
    Failed,
}

impl Answer {
    /// Waits for M1.
    pub fn new(hybrid: bool) -> Answer {
        Answer::Waiting(Assembly::new(RekeySide::Init, hybrid))
    }

    /// Takes a part of M1; M1 once all are there, the first time.
    ///
    /// # Errors
    /// [`Malformed`] where part, parts or length are not those of M1.
    pub fn add(&mut self, part: u8, parts: u8, bytes: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let Answer::Waiting(m1) = self else {
            return Ok(None);
        };
        m1.add(part, parts, bytes)?;
        Ok(m1.complete().then(|| std::mem::take(&mut m1.bytes)))
    }
}

/// Answers M1: the child and M2.
///
/// # Errors
/// [`RekeyError`]: the parent runs to its stop.
pub fn answer(
    ground: &Ground<'_>,
    m1: &[u8],
    own: RekeyPayload,
    entropy: &mut dyn Entropy,
) -> Result<(Child, Vec<u8>), RekeyError> {
    let (noise, ek) = m1.split_at_checked(NOISE_LEN).ok_or(RekeyError::Malformed)?;
    let mut handshake = ground.statics.respond(&ground.prologue(ek), &[0; 32], entropy)?;
    let peer = RekeyPayload::parse(handshake.read(noise)?)?;
    let (ct, k) = match ek.try_into() {
        Ok(ek) if ground.hybrid => {
            let (ct, k) = entropy.kem_encapsulate(ek)?;
            (ct.to_vec(), Some(k))
        }
        _ => (Vec::new(), None),
    };
    handshake.set_psk(&*ground.psk(k.as_ref(), ek, &ct)?)?;
    let noise = handshake.write::<NOISE_LEN>(&own.encode())?;
    let m2 = [&noise[..], &ct].concat();
    Ok((Child { root: handshake.split()?, own, peer }, m2))
}

#[cfg(test)]
mod vectors {
    use super::*;
    use crate::protocol::vectors::{Script, array, bytes, int, other, psk, section, statics, text};
    use serde_json::Value;
    use std::time::Duration;

    /// The part, parts and bytes inside encoded parts.
    fn unwrapped(encoded: &[Vec<u8>], side: RekeySide) -> Vec<(u8, u8, Vec<u8>)> {
        let one = |encoded: &Vec<u8>| match Message::parse(encoded) {
            Ok(Message::Rekey { side: found, part, parts, bytes }) if found == side => (part, parts, bytes.to_vec()),
            other => panic!("not a part of {side:?}: {other:?}"),
        };
        encoded.iter().map(one).collect()
    }

    fn listed(parts: &Value) -> Vec<(u8, u8, Vec<u8>)> {
        let parts: Vec<Vec<u8>> = parts.as_array().unwrap().iter().map(bytes).collect();
        let count = parts.len() as u8;
        (0..count).zip(parts).map(|(part, bytes)| (part, count, bytes)).collect()
    }

    #[test]
    fn a_whole_exchange_gives_the_listed_bytes() {
        for vector in section("rekey") {
            let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
            let starter = text(&inputs["starter"]);
            let (h, chain) = (array(&inputs["parent_h"]), array(&inputs["parent_chain"]).into());
            let psk = psk(&inputs["psk"]).map_or([0; 32], |psk| *psk.as_bytes());
            let (i, r) = (statics(starter), statics(other(starter)));
            let hybrid = inputs["hybrid"].as_bool().unwrap();
            let ground = |statics| Ground { statics, psk: &psk, h: &h, chain: &chain, hybrid };
            let (ek, ct) = (bytes(&outputs["mlkem_ek"]), bytes(&outputs["mlkem_ct"]));
            let k = hybrid.then(|| array(&outputs["mlkem_k"]).into());
            assert_eq!(hex::encode(ground(&i).prologue(&ek)), text(&outputs["prologue"]));
            assert_eq!(*ground(&r).psk(k.as_ref(), &ek, &ct).unwrap(), array(&outputs["psk"]));

            let payload = |role: &str| {
                let fields = &inputs[format!("{role}_payload")];
                RekeyPayload { index: int(&fields["index"]), epoch: int(&fields["epoch"]) }
            };
            assert_eq!(payload("initiator").encode(), array(&outputs["payload1"]));
            assert_eq!(RekeyPayload::parse(array(&outputs["payload2"])), Ok(payload("responder")));
            let entropy = |role: &str| Script::new(&[&bytes(&inputs[format!("{role}_ephemeral")])]).with_kem(&vector);
            let (mut i_entropy, mut r_entropy) = (entropy("initiator"), entropy("responder"));

            let start = Exchange::start(&ground(&i), payload("initiator"), &mut i_entropy, Time(0), Duration::ZERO);
            let mut exchange = start.ok().unwrap();
            assert_eq!(hex::encode(&exchange.m1), text(&outputs["m1"]));
            let m1_parts = unwrapped(&exchange.send(Time(0)), RekeySide::Init);
            assert_eq!(m1_parts, listed(&outputs["m1_parts"]));

            let mut waiting = Answer::new(hybrid);
            let m1 = m1_parts.iter().rev().find_map(|(part, parts, bytes)| waiting.add(*part, *parts, bytes).unwrap());
            let (r_child, m2) = answer(&ground(&r), &m1.unwrap(), payload("responder"), &mut r_entropy).ok().unwrap();
            assert_eq!(hex::encode(&m2), text(&outputs["m2"]));
            let m2_parts = unwrapped(&parts(RekeySide::Resp, &m2), RekeySide::Resp);
            assert_eq!(m2_parts, listed(&outputs["m2_parts"]));

            let mut add = |(part, parts, bytes): &(u8, u8, Vec<u8>)| exchange.add(&ground(&i), *part, *parts, bytes);
            let i_child = m2_parts.iter().find_map(|part| add(part).ok().unwrap()).unwrap();
            for (child, peer) in [(i_child, "responder"), (r_child, "initiator")] {
                assert_eq!(child.peer, payload(peer));
                assert_eq!(child.root.h, array(&outputs["session"]["h"]));
                assert_eq!(*child.root.chain, array(&outputs["session"]["chain"]));
            }
        }
    }
}

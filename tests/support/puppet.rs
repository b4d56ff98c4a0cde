//! An end played by hand, out of the protocol's parts: it has the keys of a real end, and none of its manners.

use super::{Flight, SeededEntropy, World, end::EndSetup};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::net::SocketAddr;
use tieline::{
    keys::SecretKey,
    protocol::{
        constants::CONTROL_LANE,
        crypto::OpenKeys,
        handshake::{Handshake, Root, Statics},
        session::{Cipher, Halves, Shape, lane_set},
        wire::{self, Header, Kind, Payload, Token, Verdict},
    },
};

/// See the module.
pub struct Puppet {
    keys: OpenKeys,
    statics: Statics,
    psk: [u8; 32],
    entropy: SeededEntropy,
    address: SocketAddr,
    knocks: u64,
}

/// A session the puppet holds, data lanes included whether it is a bootstrap or not.
pub struct Held {
    /// What the real end said of itself.
    pub peer: Payload,
    pub halves: Halves,
    root: Root,
    /// 0 where the puppet began.
    direction: u8,
}

impl Held {
    fn new(handshake: Handshake, own: &Payload, peer: Payload, initiator: bool) -> Held {
        let shape = Shape {
            cipher: Cipher::Aes256Gcm,
            initiator,
            own_index: own.index,
            peer_index: peer.index,
            lanes: Some(lane_set(1)),
            partial_checksum: true,
            cut_frames: false,
        };
        let root = handshake.split().expect("a split");
        let halves = Halves::derive(&root, &shape).expect("keys");
        Held { peer, halves, root, direction: u8::from(!initiator) }
    }

    /// Seals `text` under any counter: no real sealing half can be made to.
    pub fn seal_at(&self, lane: u8, counter: u64, text: &[u8]) -> Vec<u8> {
        let kind = if lane == CONTROL_LANE { Kind::Control } else { Kind::Data };
        let header = Header { kind, flags: 0, lane, path: 0, index: self.peer.index, counter }.encode();
        let keys = self.root.lane(Cipher::Aes256Gcm as u8, self.direction, lane).expect("lane keys");
        let mut nonce = *keys.iv;
        nonce[4..].iter_mut().zip(counter.to_be_bytes()).for_each(|(byte, c)| *byte ^= c);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*keys.key).expect("a key"));
        let mut sealed = text.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header[..]), &mut sealed)
            .expect("a seal");
        [&header[..], &sealed].concat()
    }
}

impl Puppet {
    /// It poses as `setup`, whose peer is `peer`.
    pub fn new(setup: &EndSetup, peer: &EndSetup, address: SocketAddr) -> Puppet {
        let (secret, peer) = (SecretKey::from_bytes(setup.secret), peer.public());
        Puppet {
            keys: OpenKeys::derive(&secret, &secret.public().expect("a key"), &peer).expect("keys"),
            statics: Statics::new(&secret, peer),
            psk: setup.psks.first().copied().unwrap_or_default(),
            entropy: SeededEntropy::new(4711),
            address,
            knocks: 0,
        }
    }

    fn payload(&self, epoch: u32) -> Payload {
        Payload {
            index: 0xabcd + self.knocks as u32,
            epoch,
            ciphers: 3,
            flags: 0,
            lanes: 1,
            verdict: Verdict::Fine,
            interval_ms: 1_000,
        }
    }

    /// Opens a session at `end` without confirming it. None where Knock or Init got no answer that can be read.
    pub fn open(&mut self, world: &mut World, end: usize, epoch: u32) -> Option<Held> {
        self.knocks += 1;
        let mut nonce = [1; 16];
        nonce[..8].copy_from_slice(&self.knocks.to_be_bytes());
        let answers = world.give(end, self.address, &wire::knock(&nonce, &self.keys.sending));
        let token: Token = of_kind(&answers, Kind::Challenge)?[20..44].try_into().expect("a token");
        let own = self.payload(epoch);
        let mut handshake =
            self.statics.initiate(&prologue(&nonce, &token), &self.psk, &mut self.entropy).expect("a handshake");
        let noise = handshake.write(&own.encode()).expect("message 1");
        let answers = world.give(end, self.address, &wire::init(&nonce, &token, &noise, &self.keys.sending));
        let message = handshake.read(&of_kind(&answers, Kind::Response)?[20..84]).ok()?;
        Some(Held::new(handshake, &own, Payload::parse(&message).expect("a payload"), true))
    }

    /// The same, with a Noise message that nobody can read.
    pub fn open_with_junk(&mut self, world: &mut World, end: usize) {
        self.knocks += 1;
        let mut nonce = [1; 16];
        nonce[..8].copy_from_slice(&self.knocks.to_be_bytes());
        let answers = world.give(end, self.address, &wire::knock(&nonce, &self.keys.sending));
        let token: Token = answers[0].bytes[20..44].try_into().expect("a token");
        let answers = world.give(end, self.address, &wire::init(&nonce, &token, &[7; 64], &self.keys.sending));
        assert!(answers.is_empty(), "junk was answered");
    }

    /// Answers the attempt `end` has under way, at whatever address that knocks.
    pub fn answer(&mut self, world: &mut World, end: usize, epoch: u32) -> Held {
        let knock = world.logged(end, Kind::Knock).pop().expect("a Knock");
        let nonce: [u8; 16] = knock.bytes[4..20].try_into().expect("a nonce");
        let token: Token = [7; 24];
        let answers = world.give(end, knock.to, &wire::challenge(&nonce, &token, &self.keys.sending));
        let own = Payload { ciphers: Cipher::Aes256Gcm as u8, ..self.payload(epoch) };
        let mut handshake =
            self.statics.respond(&prologue(&nonce, &token), &self.psk, &mut self.entropy).expect("a handshake");
        let message = handshake.read(&answers[0].bytes[44..108]).expect("message 1");
        let noise = handshake.write(&own.encode()).expect("message 2");
        world.give(end, knock.to, &wire::response(&nonce, &noise, &self.keys.sending));
        Held::new(handshake, &own, Payload::parse(&message).expect("a payload"), false)
    }
}

/// The first of these datagrams that is of this kind.
fn of_kind(flights: &[Flight], kind: Kind) -> Option<&[u8]> {
    flights.iter().find(|flight| flight.kind() == Some(kind)).map(|flight| &flight.bytes[..])
}

fn prologue(nonce: &[u8; 16], token: &Token) -> Vec<u8> {
    [b"tieline v1 cold", &nonce[..], token].concat()
}

//! An initiator played by hand, out of the protocol's parts: it has the keys of a real end, and none of its manners.

use super::{SeededEntropy, World, end::EndSetup};
use std::net::SocketAddr;
use tieline::{
    keys::SecretKey,
    protocol::{
        crypto::OpenKeys,
        handshake::Statics,
        session::{Cipher, Halves, Shape, lane_set},
        wire::{self, Payload, Token, Verdict},
    },
};

/// See the module.
pub struct Puppet {
    keys: OpenKeys,
    statics: Statics,
    entropy: SeededEntropy,
    address: SocketAddr,
    knocks: u8,
}

impl Puppet {
    /// It poses as `setup`, whose peer is `peer`.
    pub fn new(setup: &EndSetup, peer: &EndSetup, address: SocketAddr) -> Puppet {
        let (secret, peer) = (SecretKey::from_bytes(setup.secret), peer.public());
        Puppet {
            keys: OpenKeys::derive(&secret, &secret.public().expect("a key"), &peer).expect("keys"),
            statics: Statics::new(&secret, peer),
            entropy: SeededEntropy::new(4711),
            address,
            knocks: 0,
        }
    }

    /// Opens a session at `end` without confirming it: what its Response said, and the keys, data lanes included
    /// whether it is a bootstrap or not. None where the Init got no answer.
    pub fn open(&mut self, world: &mut World, end: usize, epoch: u32) -> Option<(Payload, Halves)> {
        self.knocks += 1;
        let nonce = [self.knocks; 16];
        let answers = world.give(end, self.address, &wire::knock(&nonce, &self.keys.sending));
        let token: Token = answers[0].bytes[20..44].try_into().expect("a token");
        let own = Payload {
            index: 0xabcd,
            epoch,
            ciphers: 3,
            flags: 0,
            lanes: 1,
            verdict: Verdict::Fine,
            interval_ms: 1_000,
        };
        let prologue = [b"tieline v1 cold", &nonce[..], &token].concat();
        let mut handshake = self.statics.initiate(&prologue, &[0; 32], &mut self.entropy).expect("a handshake");
        let noise = handshake.write(&own.encode()).expect("message 1");
        let answers = world.give(end, self.address, &wire::init(&nonce, &token, &noise, &self.keys.sending));
        let peer =
            Payload::parse(&handshake.read(&answers.first()?.bytes[20..84]).expect("message 2")).expect("a payload");
        let shape = Shape {
            cipher: Cipher::Aes256Gcm,
            initiator: true,
            own_index: own.index,
            peer_index: peer.index,
            lanes: Some(lane_set(1)),
            partial_checksum: true,
        };
        Some((peer, Halves::derive(&handshake.split().expect("a split"), &shape).expect("keys")))
    }
}

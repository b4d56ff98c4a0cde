//! The Noise handshake, `KKpsk2`, as cold open and rekey both use it: one message each way, then the raw split.
//!
//! snow's traps are closed here: the split is taken only from a finished handshake, and a state that failed to read
//! message 2 may read again (KKpsk2's message 2 starts with `e`, which overwrites what the failed read left: pinned by
//! a test). `write_message` is never called to resend: callers keep the bytes. snow wipes nothing, so the stack under each step is.

use super::{
    crypto::{CryptoFailure, Entropy, Prk, Secret},
    resolver::Resolver,
};
use crate::keys::{
    PublicKey, SecretKey,
    secret::{Guarded, leaving_no_trace},
};
use snow::{Builder, HandshakeState, params::NoiseParams};
use thiserror::Error;

/// The Noise protocol name (Noise rev 34 §8).
pub const NOISE: &str = "Noise_KKpsk2_25519_ChaChaPoly_SHA256";

/// A message does not read: not from the peer, damaged, or the preshared keys differ.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the handshake message does not open")]
pub struct Unreadable;

/// The static keys of one end, and of its peer.
pub struct Statics {
    own: Secret,
    peer: PublicKey,
}

impl Statics {
    /// Copies the secret: the caller's copy can go.
    #[must_use]
    pub fn new(own: &SecretKey, peer: PublicKey) -> Statics {
        Statics { own: Secret::copy_of(own.as_bytes()), peer }
    }

    fn start(&self, initiator: bool, prologue: &[u8], psk: &[u8; 32], e: Secret) -> Result<Handshake, CryptoFailure> {
        let params: NoiseParams = NOISE.parse().map_err(|_| CryptoFailure)?;
        let build = || -> Result<HandshakeState, snow::Error> {
            let builder = Builder::with_resolver(params, Box::new(Resolver::new(e)))
                .prologue(prologue)?
                .local_private_key(&*self.own)?
                .remote_public_key(self.peer.as_bytes())?
                .psk(2, psk)?;
            if initiator { builder.build_initiator() } else { builder.build_responder() }
        };
        leaving_no_trace(|| build().map(|state| Handshake(Box::new(Guarded(state))))).map_err(|_| CryptoFailure)
    }

    /// Starts a handshake as initiator.
    ///
    /// # Errors
    /// [`CryptoFailure`] where entropy or a primitive fails.
    pub fn initiate(
        &self,
        prologue: &[u8],
        psk: &[u8; 32],
        entropy: &mut dyn Entropy,
    ) -> Result<Handshake, CryptoFailure> {
        self.start(true, prologue, psk, ephemeral(entropy)?)
    }

    /// Starts a handshake as responder.
    ///
    /// # Errors
    /// [`CryptoFailure`] where entropy or a primitive fails.
    pub fn respond(
        &self,
        prologue: &[u8],
        psk: &[u8; 32],
        entropy: &mut dyn Entropy,
    ) -> Result<Handshake, CryptoFailure> {
        self.start(false, prologue, psk, ephemeral(entropy)?)
    }
}

fn ephemeral(entropy: &mut dyn Entropy) -> Result<Secret, CryptoFailure> {
    let mut key = Secret::default();
    entropy.fill(&mut *key)?;
    Ok(key)
}

/// One handshake under way. Boxed: snow's state holds keys, and moving it would leave copies behind.
pub struct Handshake(Box<Guarded<HandshakeState>>);

impl Handshake {
    /// Writes the next message: `e32 ‖ AEAD(payload) ‖ tag16`. Once: a resend repeats these bytes.
    ///
    /// # Errors
    /// [`CryptoFailure`] where it is not this side's turn, or a DH is refused.
    pub fn write<const N: usize>(&mut self, payload: &[u8]) -> Result<[u8; N], CryptoFailure> {
        let mut message = [0; N];
        match leaving_no_trace(|| self.0.0.write_message(payload, &mut message)) {
            Ok(len) if len == N => Ok(message),
            _ => Err(CryptoFailure),
        }
    }

    /// Reads the peer's message. After an error the same side may read again.
    ///
    /// # Errors
    /// [`Unreadable`] where it does not open, or its payload is not `N` bytes.
    pub fn read<const N: usize>(&mut self, message: &[u8]) -> Result<[u8; N], Unreadable> {
        let mut payload = [0; N];
        match leaving_no_trace(|| self.0.0.read_message(message, &mut payload)) {
            Ok(len) if len == N => Ok(payload),
            _ => Err(Unreadable),
        }
    }

    /// Replaces the preshared key, which a rekey knows only halfway.
    ///
    /// # Errors
    /// [`CryptoFailure`] where snow refuses it.
    pub fn set_psk(&mut self, psk: &[u8; 32]) -> Result<(), CryptoFailure> {
        self.0.0.set_psk(2, psk).map_err(|_| CryptoFailure)
    }

    /// What a finished handshake leaves.
    ///
    /// # Errors
    /// [`CryptoFailure`] where it is not finished: snow would hand out keys all the same.
    pub fn split(mut self) -> Result<Root, CryptoFailure> {
        if !self.0.0.is_handshake_finished() {
            return Err(CryptoFailure);
        }
        let h: [u8; 32] = self.0.0.get_handshake_hash().try_into().map_err(|_| CryptoFailure)?;
        let mut ikm = Secret::<64>::default();
        leaving_no_trace(|| {
            let (k1, k2) = self.0.0.dangerously_get_raw_split();
            ikm[..32].copy_from_slice(&k1);
            ikm[32..].copy_from_slice(&k2);
        });
        let prk = Prk::extract(&h, &*ikm);
        Ok(Root { h, chain: prk.expand(&[b"tieline v1 chain"])?, prk })
    }
}

/// What all keys of a session are expanded from; dropped once they are.
pub struct Root {
    /// The handshake hash.
    pub h: [u8; 32],
    /// What binds a child to this session.
    pub chain: Secret,
    prk: Prk,
}

impl Root {
    /// Key and iv of one lane in one direction.
    ///
    /// # Errors
    /// [`CryptoFailure`] where the primitive itself fails.
    pub fn lane(&self, cipher: u8, direction: u8, lane: u8) -> Result<LaneKey, CryptoFailure> {
        let suffix = [cipher, direction, lane];
        Ok(LaneKey {
            key: self.prk.expand(&[b"tieline v1 key", &suffix])?,
            iv: self.prk.expand(&[b"tieline v1 iv", &suffix])?,
        })
    }
}

/// Key and iv of one lane in one direction.
pub struct LaneKey {
    /// The AEAD key.
    pub key: Secret,
    /// What the counter is XORed into.
    pub iv: Secret<12>,
}

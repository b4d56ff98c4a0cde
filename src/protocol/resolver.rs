//! What snow is made to run on: aws-lc-rs for all four primitives, and one ephemeral key drawn beforehand.
//!
//! snow's default X25519 lets an all-zero result through; this one refuses it. Its `Random` is a box with exactly one
//! key in it: a handshake that asked twice would be a fault, and fails.

use super::crypto::{self, Secret};
use aws_lc_rs::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    digest,
};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use std::sync::{Mutex, PoisonError};
use zeroize::{Zeroize, Zeroizing};

/// Resolves `25519_ChaChaPoly_SHA256` and nothing else.
pub(super) struct Resolver {
    /// The ephemeral secret of the one handshake this resolver is for.
    ephemeral: Mutex<Option<Secret>>,
}

impl Resolver {
    pub fn new(ephemeral: Secret) -> Resolver {
        Resolver { ephemeral: Mutex::new(Some(ephemeral)) }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let key = self.ephemeral.lock().unwrap_or_else(PoisonError::into_inner).take();
        Some(Box::new(OneKey(key)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<Sha256>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::<ChaChaPoly>::default() as Box<dyn Cipher>)
    }
}

struct OneKey(Option<Secret>);

impl Random for OneKey {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        let key = self.0.take().ok_or(Error::Rng)?;
        if out.len() != key.len() {
            return Err(Error::Rng);
        }
        out.copy_from_slice(&*key);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    secret: Secret,
    public: [u8; 32],
}

impl X25519 {
    fn derive(&mut self) -> Result<(), Error> {
        self.public = crypto::x25519_public(&self.secret).map_err(|_| Error::Dh)?;
        Ok(())
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        self.secret.copy_from_slice(secret);
        if self.derive().is_err() {
            self.public = [0; 32]; // a key whose every DH is refused at the peer
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(&mut *self.secret)?;
        self.derive()
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.secret
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        // snow hands over its 56-byte key buffer: the first 32 bytes are the key.
        let public = public.first_chunk().ok_or(Error::Dh)?;
        let shared = crypto::x25519(&self.secret, public).map_err(|_| Error::Dh)?;
        out[..32].copy_from_slice(&*shared);
        Ok(())
    }
}

struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Sha256 {
        Sha256(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self = Sha256::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let context = std::mem::take(self).0;
        out[..32].copy_from_slice(context.finish().as_ref());
    }
}

#[derive(Default)]
struct ChaChaPoly(Option<LessSafeKey>);

impl ChaChaPoly {
    /// `0^4 ‖ n` in little-endian (Noise rev 34 §12).
    fn nonce(n: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&n.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
    }

    /// snow's trait has no way to fail here; on a failure nothing is written, and the peer cannot open zeros.
    fn encrypt(&self, n: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let len = plaintext.len();
        let total = len + 16;
        out[..len].copy_from_slice(plaintext);
        let tag = self
            .0
            .as_ref()
            .and_then(|key| key.seal_in_place_separate_tag(Self::nonce(n), Aad::from(ad), &mut out[..len]).ok());
        match tag {
            Some(tag) => out[len..total].copy_from_slice(tag.as_ref()),
            None => out[..total].fill(0),
        }
        total
    }

    fn decrypt(&self, n: u64, ad: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let plain = key.open_in_place(Self::nonce(n), Aad::from(ad), &mut buffer).map_err(|_| Error::Decrypt)?;
        out.get_mut(..plain.len()).ok_or(Error::Decrypt)?.copy_from_slice(plain);
        let len = plain.len();
        plain.zeroize();
        Ok(len)
    }
}

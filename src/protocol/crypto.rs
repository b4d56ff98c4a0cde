//! The primitives the protocol is made of, all from aws-lc-rs, and what it asks of the world: entropy.
//!
//! No randomness is drawn here: [`Entropy`] comes in as an argument, so that two ends in a test repeat to the bit.

pub use crate::keys::Secret;
use crate::keys::{
    PublicKey, SecretKey,
    secret::{Guarded, leaving_no_trace},
};
use aws_lc_rs::{
    agreement::{self, UnparsedPublicKey, X25519},
    digest, hkdf, hmac,
};
use std::sync::Arc;
use subtle::ConstantTimeEq;
use thiserror::Error;

/// A primitive failed where no input of the peer's could make it: broken memory, or no memory.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a cryptographic primitive failed")]
pub struct CryptoFailure;

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203 §8).
pub const KEM_EK: usize = 1_184;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203 §8).
pub const KEM_CT: usize = 1_088;

/// A key pair of ML-KEM-768, of which only the decapsulation is ever asked.
pub trait KemKey: Send {
    /// The shared secret in `ct`. A changed `ct` gives another secret, not an error (implicit rejection).
    ///
    /// # Errors
    /// [`CryptoFailure`] where the primitive itself fails.
    fn decapsulate(&self, ct: &[u8; KEM_CT]) -> Result<Secret, CryptoFailure>;
}

/// A decapsulation key, and the encapsulation key that goes to the peer.
pub type KemPair = (Box<dyn KemKey>, Box<[u8; KEM_EK]>);

/// Where keys, nonces and tokens come from.
///
/// ML-KEM belongs here because aws-lc-rs draws its own randomness for it: a test gives a deterministic one.
pub trait Entropy: Send {
    /// Fills `out` with random bytes.
    ///
    /// # Errors
    /// [`CryptoFailure`] where the source fails.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoFailure>;

    /// Makes an ML-KEM-768 key pair: the decapsulation key and the encapsulation key's bytes.
    ///
    /// # Errors
    /// [`CryptoFailure`] where the primitive itself fails.
    fn kem_generate(&mut self) -> Result<KemPair, CryptoFailure>;

    /// Encapsulates to `ek`: the ciphertext and the shared secret.
    ///
    /// # Errors
    /// [`CryptoFailure`] where `ek` is not a valid encapsulation key (FIPS 203 §7.2) or the primitive fails.
    fn kem_encapsulate(&mut self, ek: &[u8; KEM_EK]) -> Result<(Box<[u8; KEM_CT]>, Secret), CryptoFailure>;
}

impl dyn Entropy + '_ {
    /// `N` random bytes.
    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], CryptoFailure> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }
}

/// X25519 (RFC 7748 §5); the all-zero result of a low-order point is refused (§6.1).
///
/// # Errors
/// [`CryptoFailure`] for such a point.
pub fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Result<Secret, CryptoFailure> {
    let key = agreement::PrivateKey::from_private_key(&X25519, secret).map_err(|_| CryptoFailure)?;
    agreement::agree(&key, UnparsedPublicKey::new(&X25519, public), CryptoFailure, |shared| {
        shared.try_into().map(Secret::copy_of).map_err(|_| CryptoFailure)
    })
}

/// The public key of an X25519 secret.
///
/// # Errors
/// [`CryptoFailure`] where the primitive itself fails.
pub fn x25519_public(secret: &[u8; 32]) -> Result<[u8; 32], CryptoFailure> {
    let key = agreement::PrivateKey::from_private_key(&X25519, secret).map_err(|_| CryptoFailure)?;
    let public = key.compute_public_key().map_err(|_| CryptoFailure)?;
    public.as_ref().try_into().map_err(|_| CryptoFailure)
}

/// SHA-256 over the parts, joined.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The pseudo-random key of HKDF-Extract with SHA-256 (RFC 5869 §2.2).
pub struct Prk(Box<Guarded<hkdf::Prk>>);

impl Prk {
    /// HKDF-Extract.
    #[must_use]
    pub fn extract(salt: &[u8], ikm: &[u8]) -> Prk {
        Prk(Box::new(Guarded(hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(ikm))))
    }

    /// HKDF-Expand (RFC 5869 §2.3) of `N` ≤ 32 bytes.
    ///
    /// # Errors
    /// [`CryptoFailure`] where the primitive itself fails.
    pub fn expand<const N: usize>(&self, info: &[&[u8]]) -> Result<Secret<N>, CryptoFailure> {
        struct Length(usize);
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let mut out = Secret::default();
        leaving_no_trace(|| self.0.0.expand(info, Length(N))?.fill(&mut *out)).map_err(|_| CryptoFailure)?;
        Ok(out)
    }
}

/// A key of [`MacKey::mac16`]: HMAC-SHA256 (RFC 2104) cut to its first 16 bytes.
#[derive(Clone)]
pub struct MacKey(Arc<Guarded<hmac::Key>>);

impl MacKey {
    /// A key of 32 bytes.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> MacKey {
        MacKey(Arc::new(Guarded(hmac::Key::new(hmac::HMAC_SHA256, key))))
    }

    /// The MAC of the parts, joined.
    #[must_use]
    pub fn mac16(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.0.0);
        for part in parts {
            context.update(part);
        }
        let mut out = [0; 16];
        out.copy_from_slice(&context.sign().as_ref()[..16]);
        out
    }

    /// Whether `mac` is the MAC of the parts, compared in constant time.
    #[must_use]
    pub fn verify16(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        self.mac16(parts).ct_eq(mac).into()
    }
}

/// The two MAC keys of cold open, one a direction.
pub struct OpenKeys {
    /// K(own → peer): what this end sends is MAC'd with it.
    pub sending: MacKey,
    /// K(peer → own): what comes must verify under it.
    pub receiving: MacKey,
}

impl OpenKeys {
    /// Derives both from the two static keys; the shared secret is wiped before this returns.
    ///
    /// # Errors
    /// [`CryptoFailure`] where the peer's key is a low-order point.
    pub fn derive(own: &SecretKey, own_public: &PublicKey, peer: &PublicKey) -> Result<OpenKeys, CryptoFailure> {
        let ss = leaving_no_trace(|| x25519(own.as_bytes(), peer.as_bytes()))?;
        let prk = Prk::extract(b"tieline v1 open", &*ss);
        let key = |from: &PublicKey, to: &PublicKey| -> Result<MacKey, CryptoFailure> {
            let key = prk.expand(&[from.as_bytes(), to.as_bytes()])?;
            Ok(leaving_no_trace(|| MacKey::new(&key)))
        };
        Ok(OpenKeys { sending: key(own_public, peer)?, receiving: key(peer, own_public)? })
    }
}

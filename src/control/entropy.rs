//! Where this process's keys, nonces and tokens come from: the system's randomness, through aws-lc-rs.
//!
//! ML-KEM is here and not in the protocol because aws-lc-rs draws its randomness itself.

use crate::keys::secret::leaving_no_trace;
use crate::protocol::crypto::{CryptoFailure, Entropy, KEM_CT, KEM_EK, KemKey, Secret};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768, SharedSecret};
use aws_lc_rs::rand;

/// The entropy of real links.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoFailure> {
        rand::fill(out).map_err(|_| CryptoFailure)
    }

    fn kem_generate(&mut self) -> Result<(Box<dyn KemKey>, Box<[u8; KEM_EK]>), CryptoFailure> {
        let key = leaving_no_trace(|| DecapsulationKey::generate(&ML_KEM_768)).map_err(|_| CryptoFailure)?;
        let public = key.encapsulation_key().and_then(|public| public.key_bytes()).map_err(|_| CryptoFailure)?;
        let public = public.as_ref().try_into().map_err(|_| CryptoFailure)?;
        Ok((Box::new(MlKem768(key)), Box::new(public)))
    }

    fn kem_encapsulate(&mut self, ek: &[u8; KEM_EK]) -> Result<(Box<[u8; KEM_CT]>, Secret), CryptoFailure> {
        let key = EncapsulationKey::new(&ML_KEM_768, ek).map_err(|_| CryptoFailure)?;
        leaving_no_trace(|| {
            let (ciphertext, secret) = key.encapsulate().map_err(|_| CryptoFailure)?;
            let ciphertext = ciphertext.as_ref().try_into().map_err(|_| CryptoFailure)?;
            Ok((Box::new(ciphertext), wiped_copy(&secret)?))
        })
    }
}

/// aws-lc frees and wipes the key when this is dropped.
struct MlKem768(DecapsulationKey);

impl KemKey for MlKem768 {
    fn decapsulate(&self, ct: &[u8; KEM_CT]) -> Result<Secret, CryptoFailure> {
        leaving_no_trace(|| {
            let secret = self.0.decapsulate(Ciphertext::from(ct.as_slice())).map_err(|_| CryptoFailure)?;
            wiped_copy(&secret)
        })
    }
}

/// The original is wiped by aws-lc-rs when it is dropped.
fn wiped_copy(secret: &SharedSecret) -> Result<Secret, CryptoFailure> {
    secret.as_ref().try_into().map(Secret::copy_of).map_err(|_| CryptoFailure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ml_kem::kem::Decapsulate;
    use ml_kem::{KeyExport, MlKem768 as Reference};

    #[test]
    fn both_sides_of_a_kem_get_the_same_secret() {
        let (key, ek) = OsEntropy.kem_generate().unwrap();
        let (ct, secret) = OsEntropy.kem_encapsulate(&ek).unwrap();
        assert_eq!(*key.decapsulate(&ct).unwrap(), *secret);
        assert_ne!(*secret, [0; 32]);
    }

    #[test]
    fn a_changed_ciphertext_gives_another_secret_and_no_error() {
        let (key, ek) = OsEntropy.kem_generate().unwrap();
        let (mut ct, secret) = OsEntropy.kem_encapsulate(&ek).unwrap();
        ct[17] ^= 1;
        assert_ne!(*key.decapsulate(&ct).unwrap(), *secret);
    }

    #[test]
    fn what_is_no_encapsulation_key_is_refused() {
        // FIPS 203 §7.2: coefficients must be below q = 3329.
        assert!(OsEntropy.kem_encapsulate(&[0xff; KEM_EK]).is_err());
    }

    #[test]
    fn another_implementation_opens_what_this_one_sealed() {
        let seed = [7u8; 64];
        let theirs = ml_kem::DecapsulationKey::<Reference>::from_seed(seed.into());
        let ek: [u8; KEM_EK] = theirs.encapsulation_key().to_bytes().as_slice().try_into().unwrap();
        let (ct, secret) = OsEntropy.kem_encapsulate(&ek).unwrap();
        assert_eq!(theirs.decapsulate_slice(&ct[..]).unwrap().as_slice(), &secret[..]);
    }

    #[test]
    fn random_bytes_differ() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        OsEntropy.fill(&mut a).unwrap();
        OsEntropy.fill(&mut b).unwrap();
        assert_ne!(a, b);
    }
}

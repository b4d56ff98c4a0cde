//! Entropy that repeats: ChaCha8 from a seed, and ML-KEM-768 made from it by the `ml-kem` package, as aws-lc-rs takes no
//! randomness from outside.

use ml_kem::{Decapsulate, DecapsulationKey, EncapsulationKey, KeyExport, MlKem768};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};
use tieline::protocol::crypto::{CryptoFailure, Entropy, KEM_CT, KEM_EK, KemKey, KemPair, Secret};

/// What was drawn so far, and whether there is any more.
#[derive(Default)]
pub struct Draws {
    /// Keys of 32 bytes: one at the start (the token key), one for each handshake message.
    pub keys: AtomicU64,
    /// ML-KEM key pairs and encapsulations.
    pub kem: AtomicU64,
    /// From now on nothing can be drawn.
    pub dry: AtomicBool,
}

/// See the module.
pub struct SeededEntropy {
    rng: ChaCha8Rng,
    draws: Arc<Draws>,
}

impl SeededEntropy {
    pub fn new(seed: u64) -> SeededEntropy {
        SeededEntropy { rng: ChaCha8Rng::seed_from_u64(seed), draws: Arc::default() }
    }

    pub fn draws(&self) -> Arc<Draws> {
        self.draws.clone()
    }

    fn draw<const N: usize>(&mut self) -> Result<[u8; N], CryptoFailure> {
        if self.draws.dry.load(Relaxed) {
            return Err(CryptoFailure);
        }
        let mut out = [0; N];
        self.rng.fill_bytes(&mut out);
        Ok(out)
    }
}

struct Key(Box<DecapsulationKey<MlKem768>>);

impl KemKey for Key {
    fn decapsulate(&self, ct: &[u8; KEM_CT]) -> Result<Secret, CryptoFailure> {
        let ct = ct.as_slice().try_into().map_err(|_| CryptoFailure)?;
        let shared: [u8; 32] = self.0.decapsulate(ct).into();
        Ok(shared.into())
    }
}

impl Entropy for SeededEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoFailure> {
        if self.draws.dry.load(Relaxed) {
            return Err(CryptoFailure);
        }
        self.draws.keys.fetch_add(u64::from(out.len() == 32), Relaxed);
        self.rng.fill_bytes(out);
        Ok(())
    }

    fn kem_generate(&mut self) -> Result<KemPair, CryptoFailure> {
        self.draws.kem.fetch_add(1, Relaxed);
        let key = DecapsulationKey::<MlKem768>::from_seed(self.draw::<64>()?.into());
        let ek: [u8; KEM_EK] = key.encapsulation_key().to_bytes().into();
        Ok((Box::new(Key(Box::new(key))), Box::new(ek)))
    }

    fn kem_encapsulate(&mut self, ek: &[u8; KEM_EK]) -> Result<(Box<[u8; KEM_CT]>, Secret), CryptoFailure> {
        self.draws.kem.fetch_add(1, Relaxed);
        let ek = ek.as_slice().try_into().map_err(|_| CryptoFailure)?;
        let key = EncapsulationKey::<MlKem768>::new(ek).map_err(|_| CryptoFailure)?;
        let (ct, shared) = key.encapsulate_deterministic(&self.draw::<32>()?.into());
        let (ct, shared): ([u8; KEM_CT], [u8; 32]) = (ct.into(), shared.into());
        Ok((Box::new(ct), shared.into()))
    }
}

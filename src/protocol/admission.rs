//! Who gets in: what the responder checks before a cold-open datagram costs it a DH, and the little it remembers.
//!
//! A token proves that its bearer reads what is sent to its address; it is stateless, as in RFC 9147 §5.1. Freshness
//! is the responder's own stamp inside the token, taken once (`floor`): no clock is shared between the ends.

use super::{
    constants::*,
    crypto::{CryptoFailure, Entropy, MacKey},
    time::Time,
    wire::{Nonce, Token, address18},
};
use std::{collections::VecDeque, net::SocketAddr};

/// Which counter a refused datagram goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nonce or stamp.
    Replayed,
    /// The token is not ours, or not for this address.
    Unauthentic,
}

/// What an Init is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// New: worth a DH.
    Fresh,
    /// The one answered last: send these bytes again.
    Repeat(Vec<u8>),
}

/// The Init answered last, and the answer.
struct Cache {
    init: Vec<u8>,
    response: Vec<u8>,
    made: Time,
    resends_left: u8,
}

/// The responder's memory of cold opens; all of it dies with the process.
pub struct Admission {
    token_key: MacKey,
    /// Makes stamps of different runs incomparable without saying when the machine booted.
    t0: u64,
    floor: u64,
    knocks: VecDeque<(Nonce, Time)>,
    last_init: Option<Time>,
    cache: Option<Cache>,
}

impl Admission {
    /// Draws the token key and `t0`.
    ///
    /// # Errors
    /// [`CryptoFailure`] where entropy fails.
    pub fn new(entropy: &mut dyn Entropy) -> Result<Admission, CryptoFailure> {
        Ok(Admission {
            token_key: MacKey::new(&entropy.bytes()?),
            t0: u64::from_be_bytes(entropy.bytes()?) >> 2,
            floor: 0,
            knocks: VecDeque::with_capacity(KNOCK_MEMORY),
            last_init: None,
            cache: None,
        })
    }

    /// Answers a Knock with a token, unless its nonce is an old one.
    ///
    /// # Errors
    /// [`Refusal::Replayed`] for a nonce first answered more than [`KNOCK_AGE`] ago.
    pub fn knock(&mut self, now: Time, nonce: &Nonce, source: SocketAddr) -> Result<Token, Refusal> {
        match self.knocks.iter().find(|(known, _)| known == nonce) {
            Some((_, first)) if now.since(*first) > KNOCK_AGE => return Err(Refusal::Replayed),
            Some(_) => {}
            None => {
                if self.knocks.len() == KNOCK_MEMORY {
                    self.knocks.pop_front();
                }
                self.knocks.push_back((*nonce, now));
            }
        }
        Ok(self.token(self.t0.wrapping_add(now.0), nonce, source))
    }

    /// Judges an Init whose MAC is right, before anything is computed with it.
    ///
    /// # Errors
    /// [`Refusal`]: the first check that failed.
    pub fn init(
        &mut self,
        now: Time,
        datagram: &[u8],
        nonce: &Nonce,
        token: &Token,
        source: SocketAddr,
    ) -> Result<Admitted, Refusal> {
        let stamp =
            u64::from_be_bytes([token[0], token[1], token[2], token[3], token[4], token[5], token[6], token[7]]);
        let expected = self.token(stamp, nonce, source);
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&expected[..], &token[..])) {
            return Err(Refusal::Unauthentic);
        }
        let made = Time(stamp.wrapping_sub(self.t0));
        if made > now || now.since(made) > TOKEN_AGE {
            return Err(Refusal::Replayed);
        }
        if stamp == self.floor
            && let Some(response) = self.repeat(now, datagram)
        {
            return Ok(Admitted::Repeat(response));
        }
        let too_soon = self.last_init.is_some_and(|last| now.since(last) < INIT_SPACING);
        if stamp <= self.floor || too_soon {
            return Err(Refusal::Replayed);
        }
        self.floor = stamp;
        self.last_init = Some(now);
        self.cache = None;
        Ok(Admitted::Fresh)
    }

    /// Keeps what answers this Init, should it come again.
    pub fn remember(&mut self, now: Time, init: &[u8], response: &[u8]) {
        self.cache =
            Some(Cache { init: init.to_vec(), response: response.to_vec(), made: now, resends_left: RESPONSE_RESENDS });
    }

    /// The session was confirmed: its Response is not needed again.
    pub fn forget(&mut self) {
        self.cache = None;
    }

    fn repeat(&mut self, now: Time, datagram: &[u8]) -> Option<Vec<u8>> {
        let cache = self.cache.as_mut()?;
        if cache.init != datagram || cache.resends_left == 0 || now.since(cache.made) > RESPONSE_CACHE {
            return None;
        }
        cache.resends_left -= 1;
        Some(cache.response.clone())
    }

    /// `stamp8 ‖ MAC16(T, "token" ‖ stamp8 ‖ nonce16 ‖ ip16 ‖ port2)`.
    fn token(&self, stamp: u64, nonce: &Nonce, source: SocketAddr) -> Token {
        let stamp = stamp.to_be_bytes();
        let mut token = [0; 24];
        token[..8].copy_from_slice(&stamp);
        token[8..].copy_from_slice(&self.token_key.mac16(&[b"token", &stamp, nonce, &address18(source)]));
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Counts up: good enough where nobody attacks.
    struct Counting(u8);

    impl Entropy for Counting {
        fn fill(&mut self, out: &mut [u8]) -> Result<(), CryptoFailure> {
            for byte in out {
                self.0 = self.0.wrapping_add(1);
                *byte = self.0;
            }
            Ok(())
        }

        fn kem_generate(&mut self) -> Result<crate::protocol::crypto::KemPair, CryptoFailure> {
            Err(CryptoFailure)
        }

        fn kem_encapsulate(
            &mut self,
            _: &[u8; crate::protocol::crypto::KEM_EK],
        ) -> Result<(Box<[u8; crate::protocol::crypto::KEM_CT]>, crate::protocol::crypto::Secret), CryptoFailure>
        {
            Err(CryptoFailure)
        }
    }

    const NONCE: Nonce = [9; 16];

    fn admission() -> Admission {
        Admission::new(&mut Counting(0)).unwrap()
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn source() -> SocketAddr {
        "192.0.2.1:7311".parse().unwrap()
    }

    #[test]
    fn a_token_is_good_once_for_its_address_and_for_ten_seconds() {
        let mut admission = admission();
        let token = admission.knock(at(1), &NONCE, source()).unwrap();
        let other = "192.0.2.1:7312".parse().unwrap();
        assert_eq!(admission.init(at(2), b"init", &NONCE, &token, other), Err(Refusal::Unauthentic));
        assert_eq!(admission.init(at(2), b"init", &[8; 16], &token, source()), Err(Refusal::Unauthentic));
        assert_eq!(
            admission.init(at(11) + Duration::from_nanos(1), b"init", &NONCE, &token, source()),
            Err(Refusal::Replayed)
        );
        assert_eq!(admission.init(at(0), b"init", &NONCE, &token, source()), Err(Refusal::Replayed));
        assert_eq!(admission.init(at(11), b"init", &NONCE, &token, source()), Ok(Admitted::Fresh));
        assert_eq!(admission.init(at(11), b"init", &NONCE, &token, source()), Err(Refusal::Replayed));
    }

    #[test]
    fn the_same_init_draws_the_same_response_five_times() {
        let mut admission = admission();
        let token = admission.knock(at(1), &NONCE, source()).unwrap();
        assert_eq!(admission.init(at(1), b"init", &NONCE, &token, source()), Ok(Admitted::Fresh));
        admission.remember(at(1), b"init", b"response");
        assert_eq!(admission.init(at(1), b"other", &NONCE, &token, source()), Err(Refusal::Replayed));
        for _ in 0..RESPONSE_RESENDS {
            assert_eq!(
                admission.init(at(2), b"init", &NONCE, &token, source()),
                Ok(Admitted::Repeat(b"response".to_vec()))
            );
        }
        assert_eq!(admission.init(at(2), b"init", &NONCE, &token, source()), Err(Refusal::Replayed));
    }

    #[test]
    fn accepted_inits_are_a_tenth_of_a_second_apart_and_older_stamps_are_over() {
        let mut admission = admission();
        let first = admission.knock(at(1), &NONCE, source()).unwrap();
        let second = admission.knock(at(2), &NONCE, source()).unwrap();
        let third = admission.knock(at(3), &NONCE, source()).unwrap();
        assert_eq!(admission.init(at(4), b"b", &NONCE, &second, source()), Ok(Admitted::Fresh));
        assert_eq!(admission.init(at(5), b"a", &NONCE, &first, source()), Err(Refusal::Replayed));
        let soon = at(4) + INIT_SPACING - Duration::from_nanos(1);
        assert_eq!(admission.init(soon, b"c", &NONCE, &third, source()), Err(Refusal::Replayed));
        assert_eq!(admission.init(at(4) + INIT_SPACING, b"c", &NONCE, &third, source()), Ok(Admitted::Fresh));
    }

    #[test]
    fn a_recorded_knock_is_answered_for_ten_seconds_only() {
        let mut admission = admission();
        assert!(admission.knock(at(1), &NONCE, source()).is_ok());
        assert!(admission.knock(at(11), &NONCE, source()).is_ok());
        assert_eq!(admission.knock(at(12), &NONCE, source()), Err(Refusal::Replayed));
        assert!(admission.knock(at(12), &[1; 16], source()).is_ok());
    }
}

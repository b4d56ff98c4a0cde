//! The internet checksum: sums over bytes, pseudo-headers, and completing a sum that somebody else began (RFC 1071).
//!
//! It knows no packet: where a checksum lies, and what it covers, is [`super::transport`]'s business.

use std::ops::{Add, Sub};

/// A ones' complement sum of 16-bit words in network order, carries folded in, not complemented.
///
/// Zero has two forms, 0 and 0xFFFF; they are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u16);

impl Sum {
    /// The sum over `bytes`; one of odd length counts as if a zero followed.
    pub fn of(bytes: &[u8]) -> Self {
        // In the machine's own order, four bytes at a time: RFC 1071 §2 (B) and (C) say why that gives the same sum.
        // Into 64 bits go the carries of 16 GB, and the loop is one the compiler makes vectors of.
        let (words, rest) = bytes.as_chunks::<4>();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        Sum(u16::from_be(fold(sum + u64::from(u32::from_ne_bytes(last)))))
    }

    /// The sum of the one word `value`.
    pub const fn word(value: u16) -> Self {
        Sum(value)
    }

    /// The sum over a pseudo-header less its length: `addresses` are source and destination as they stand in the IP
    /// header, 8 bytes or 32 (RFC 9293 §3.1, RFC 8200 §8.1).
    ///
    /// Add the length, and it is what the kernel stores for a checksum yet to be completed.
    pub fn pseudo(addresses: &[u8], protocol: u8) -> Self {
        Sum::of(addresses) + Sum::word(protocol.into())
    }

    /// The sum itself, as a partial checksum is stored.
    pub const fn partial(self) -> u16 {
        self.0
    }

    /// Its complement, as a complete checksum is stored.
    pub const fn complete(self) -> u16 {
        !self.0
    }

    /// Whether it is zero, as the sum over anything with a right checksum in it is.
    pub const fn is_zero(self) -> bool {
        self.0 == 0 || self.0 == 0xFFFF
    }
}

impl Add for Sum {
    type Output = Sum;

    fn add(self, other: Sum) -> Sum {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Sum(sum + u16::from(carry))
    }
}

impl Sub for Sum {
    type Output = Sum;

    fn sub(self, other: Sum) -> Sum {
        self + Sum(!other.0)
    }
}

impl PartialEq for Sum {
    fn eq(&self, other: &Sum) -> bool {
        (*self - *other).is_zero()
    }
}

impl Eq for Sum {}

fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

/// Completes the checksum that lies `offset` bytes into `covered`, where the sum of the pseudo-header stands so far.
///
/// A result of 0 is stored as 0xFFFF, which means the same, while 0 in UDP means that there is none (RFC 768).
/// Says whether it could: there may be no such place.
pub fn complete(covered: &mut [u8], offset: usize) -> bool {
    if covered.len() < 2 || offset > covered.len() - 2 {
        return false;
    }
    let checksum = match Sum::of(covered).complete() {
        0 => 0xFFFF,
        checksum => checksum,
    };
    super::put_u16(covered, offset, checksum);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::slow_sum;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xF2, 0x03, 0xF4, 0xF5, 0xF6, 0xF7];
        assert_eq!(Sum::of(&bytes).partial(), 0xDDF2);
        assert_eq!(Sum::of(&bytes).complete(), 0x220D);
    }

    #[test]
    fn a_known_ip_header_sums_to_zero() {
        let header = hex::decode("45000073000040004011b861c0a80001c0a800c7").unwrap();
        assert!(Sum::of(&header).is_zero());
        let mut covered = header.clone();
        covered[10..12].fill(0);
        assert!(complete(&mut covered, 10));
        assert_eq!(covered, header);
    }

    #[test]
    fn zero_is_never_stored_as_none() {
        let mut covered = [0xFF, 0xFF, 0, 0];
        assert!(complete(&mut covered, 2));
        assert_eq!(covered, [0xFF; 4]);
    }

    #[test]
    fn places_outside_are_refused() {
        for (length, offset) in [(0, 0), (1, 0), (2, 1), (20, 19), (20, usize::MAX)] {
            assert!(!complete(&mut vec![1; length], offset), "{length} {offset}");
        }
    }

    proptest! {
        #[test]
        fn fast_is_slow(bytes in proptest::collection::vec(any::<u8>(), 0..200), ones in any::<bool>()) {
            let bytes = if ones { vec![0xFF; bytes.len()] } else { bytes };
            prop_assert_eq!(Sum::of(&bytes), Sum::word(slow_sum(&bytes)));
            // Zero only of zeros: what is stored must be the form the kernel stores.
            prop_assert_eq!(Sum::of(&bytes).partial(), slow_sum(&bytes));
        }

        #[test]
        fn sums_add_and_subtract(a in any::<u16>(), b in any::<u16>()) {
            let (a, b) = (Sum::word(a), Sum::word(b));
            prop_assert_eq!(a + b - b, a);
            prop_assert!((a - a).is_zero());
            prop_assert_eq!(a + b, b + a);
        }

        #[test]
        fn what_is_completed_sums_to_zero(
            mut covered in proptest::collection::vec(any::<u8>(), 2..100),
            place in any::<prop::sample::Index>(),
        ) {
            let offset = place.index(covered.len() / 2) * 2;
            let pseudo = Sum::word(super::super::u16_at(&covered, offset));
            prop_assert!(complete(&mut covered, offset));
            prop_assert!((Sum::of(&covered) + pseudo).is_zero());
        }
    }
}

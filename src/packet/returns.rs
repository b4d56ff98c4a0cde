//! What came out of the link and is about to be sent back into it, told by its addresses and the time.
//!
//! A packet for an address that no host has, or for a network that each end takes for the other's, would cross the link until its hop limit
//! is used up. The one loop leaves the addresses of what it writes to the interface in a small table, the other looks for those of what
//! it reads from there: a packet between the same two, in the same direction and within a second is on its way back.
//!
//! The table forgets: an entry may be overwritten by another, and then a packet crosses once more. It does not invent: two pairs of addresses
//! are taken for one by 51 bits of a keyed hash.

use super::addresses::Addresses;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Entries, as a power of two: 16 KB in all.
const BITS: u32 = 11;
/// A tick of the table's clock, as a power of two of nanoseconds: 17 ms.
const TICK: u32 = 24;
/// Bits of an entry that hold the tick, which begin anew after three days; those above hold the hash.
const TIME: u64 = (1 << 24) - 1;
/// For so many ticks an entry is good: a second.
const LIFE: u64 = 60;

/// The table. Both loops share it; each entry is read and written at once.
#[derive(Debug)]
pub struct Returns {
    key: [u64; 4],
    entries: Box<[AtomicU64]>,
}

impl Returns {
    /// An empty one, with a `key` that nobody else knows: whoever does can make addresses that are taken for others.
    pub fn new(key: [u64; 4]) -> Self {
        let entries = (0..1 << BITS).map(|_| AtomicU64::new(0)).collect();
        Returns { key, entries }
    }

    /// A packet with these addresses goes from the link to the interface, at `now` nanoseconds.
    pub fn goes_out(&self, addresses: &Addresses, now: u64) {
        let hash = self.hash(addresses);
        if let Some(entry) = self.entries.get(place(hash)) {
            entry.store(hash & !TIME | now >> TICK & TIME, Relaxed);
        }
    }

    /// Whether one that comes from the interface, at `now` nanoseconds, has just gone out.
    pub fn comes_back(&self, addresses: &Addresses, now: u64) -> bool {
        let hash = self.hash(addresses);
        let entry = self.entries.get(place(hash)).map_or(0, |entry| entry.load(Relaxed));
        let age = (now >> TICK).wrapping_sub(entry) & TIME;
        // The two loops read the clock each for itself, so that one may be a tick ahead.
        let young = age <= LIFE || age == TIME;
        entry != 0 && (entry ^ hash) & !TIME == 0 && young
    }

    fn hash(&self, addresses: &Addresses) -> u64 {
        let [a, b, c, d] = self.key;
        let mixed = match *addresses {
            Addresses::V4 { source, destination } => u64::from(source) << 32 | u64::from(destination),
            Addresses::V6 { source, destination } => {
                let half = |number: u128| ((number >> 64) as u64, number as u64);
                let ((s1, s2), (d1, d2)) = (half(source), half(destination));
                fold(s1 ^ a, s2 ^ b).rotate_left(17) ^ fold(d1 ^ c, d2 ^ d)
            }
        };
        fold(fold(mixed ^ a, b | 1) ^ c, d | 1)
    }
}

/// Where in the table.
fn place(hash: u64) -> usize {
    (hash & ((1 << BITS) - 1)) as usize
}

/// Both halves of a product: each bit of it depends on many of both factors.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: [u64; 4] = [0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03, 0x8CB9_2BA7_2F3D_8DD7, 0xAAF2_4C1B_6E1D_0B9F];
    const SECOND: u64 = 1_000_000_000;

    fn v4(source: u32, destination: u32) -> Addresses {
        Addresses::V4 { source, destination }
    }

    #[test]
    fn what_went_out_is_known_for_a_second_and_in_its_direction_alone() {
        let returns = Returns::new(KEY);
        for (sent, back) in [
            (v4(1, 2), v4(2, 1)),
            (Addresses::V6 { source: 1, destination: 2 }, Addresses::V6 { source: 2, destination: 1 }),
        ] {
            for start in [SECOND, 1000 * SECOND, (TIME << TICK) - 5, 400_000 * SECOND] {
                assert!(!returns.comes_back(&sent, start));
                returns.goes_out(&sent, start);
                assert!(returns.comes_back(&sent, start));
                assert!(returns.comes_back(&sent, start - (1 << TICK)), "the other loop's clock was read before");
                assert!(returns.comes_back(&sent, start + SECOND));
                assert!(!returns.comes_back(&sent, start + SECOND + SECOND / 10));
                assert!(!returns.comes_back(&back, start), "an answer");
            }
        }
    }

    #[test]
    fn a_busy_table_forgets_and_invents_nothing() {
        let returns = Returns::new(KEY);
        (0..100_000).for_each(|n| returns.goes_out(&v4(n, 7), SECOND));
        let known = (0..100_000).filter(|n| returns.comes_back(&v4(*n, 7), SECOND)).count();
        assert!((1_900..=1 << BITS).contains(&known), "{known}");
        let invented = (100_000..1_100_000).filter(|n| returns.comes_back(&v4(*n, 7), SECOND)).count();
        assert_eq!(invented, 0);
    }

    proptest! {
        #[test]
        fn other_addresses_are_not_taken_for_these(
            key in any::<[u64; 4]>(), source in any::<u128>(), destination in any::<u128>(), bit in 0u32..256,
        ) {
            let returns = Returns::new(key);
            let sent = Addresses::V6 { source, destination };
            returns.goes_out(&sent, SECOND);
            prop_assert!(returns.comes_back(&sent, SECOND));
            let flip = |n: u128, at: u32| if (at..at + 128).contains(&bit) { n ^ 1 << (bit - at) } else { n };
            let other = Addresses::V6 { source: flip(source, 0), destination: flip(destination, 128) };
            prop_assert!(!returns.comes_back(&other, SECOND));
        }
    }
}

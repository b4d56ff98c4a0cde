//! How many cold-open datagrams reach the engine, however many come whose MAC is right.
//!
//! Without the key nobody makes one, but whoever recorded one can send it again, from any address, as fast as the line takes it. So
//! of one datagram only so many copies are looked at, and that costs no MAC; and of each type only so many a second, which bounds
//! what one who has the key can ask of the engine. Copies of one leave room for others: to replay recorded Knocks keeps no genuine
//! one out.

use super::{
    constants::*,
    time::Time,
    wire::{INIT, Kind},
};
use std::time::Duration;

/// How long a [`COLD_RATE`]th takes.
const SPACING: Duration = Duration::from_nanos(1_000_000_000 / COLD_RATE);
/// Types of cold-open datagrams.
const TYPES: usize = 4;

/// See the module.
pub(super) struct Gate {
    /// [`COLD_MEMORY`] places; a datagram's is named by its last two bytes, a MAC's, which nobody chooses.
    admitted: Box<[Admitted]>,
    /// By type: when all that was admitted would have come, had it come evenly.
    even: [Time; TYPES],
}

/// A datagram that was admitted, and how often.
#[derive(Clone, Copy)]
struct Admitted {
    bytes: [u8; INIT],
    len: u8,
    copies: u8,
}

impl Admitted {
    const NOTHING: Admitted = Admitted { bytes: [0; INIT], len: 0, copies: 0 };

    fn is(&self, datagram: &[u8]) -> bool {
        self.bytes[..self.len.into()] == *datagram
    }
}

impl Gate {
    pub fn new() -> Gate {
        Gate { admitted: vec![Admitted::NOTHING; COLD_MEMORY].into(), even: [Time(0); TYPES] }
    }

    /// Whether these bytes were admitted as often as they may be. To be asked first: it costs next to nothing.
    pub fn is_one_copy_too_many(&mut self, datagram: &[u8]) -> bool {
        self.place(datagram).is_some_and(|place| place.copies >= COLD_COPIES && place.is(datagram))
    }

    /// Admits an authentic datagram, unless there were too many of its type.
    pub fn admits(&mut self, now: Time, datagram: &[u8]) -> bool {
        let Some(kind) = Kind::of(datagram).filter(|kind| kind.cold_len() == Some(datagram.len())) else {
            return false;
        };
        let even = &mut self.even[kind as usize - Kind::Knock as usize];
        let earliest = now - SPACING * (COLD_BURST as u32 - 1);
        if *even > now {
            return false;
        }
        *even = (*even).max(earliest) + SPACING;
        self.remember(datagram);
        true
    }

    fn remember(&mut self, datagram: &[u8]) {
        let Some(place) = self.place(datagram) else { return };
        if !place.is(datagram) {
            (place.len, place.copies) = (datagram.len() as u8, 0);
            place.bytes[..datagram.len()].copy_from_slice(datagram);
        }
        place.copies = place.copies.saturating_add(1);
    }

    /// Where this datagram is remembered, if it was. None for what is never admitted.
    fn place(&mut self, datagram: &[u8]) -> Option<&mut Admitted> {
        let name = datagram.last_chunk().filter(|_| datagram.len() <= INIT)?;
        self.admitted.get_mut(usize::from(u16::from_be_bytes(*name)) % COLD_MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{crypto::MacKey, wire};
    use std::collections::BTreeMap;

    const START: Time = Time(1 << 40);

    fn knock(n: u64) -> Vec<u8> {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&n.to_be_bytes());
        wire::knock(&nonce, &MacKey::new(&[9; 32]))
    }

    fn passes(gate: &mut Gate, now: Time, datagram: &[u8]) -> bool {
        !gate.is_one_copy_too_many(datagram) && gate.admits(now, datagram)
    }

    /// Moments of a flood of `per_second` that lasts `time`.
    fn flood(per_second: u64, time: Duration) -> impl Iterator<Item = Time> {
        let count = time.as_nanos() as u64 * per_second / 1_000_000_000;
        (0..count).map(move |n| START + Duration::from_nanos(n * 1_000_000_000 / per_second))
    }

    #[test]
    fn of_one_datagram_so_many_copies_pass() {
        let (mut gate, datagram) = (Gate::new(), knock(1));
        let passed = flood(300_000, Duration::from_secs(2)).filter(|now| passes(&mut gate, *now, &datagram)).count();
        assert_eq!(passed, usize::from(COLD_COPIES));
    }

    #[test]
    fn a_resent_one_always_passes() {
        let (mut gate, datagram) = (Gate::new(), knock(1));
        for after in COLD_RESENDS {
            for _address in 0..MAX_ADDRESSES {
                // As the network made two of it.
                assert!((0..2).all(|_| passes(&mut gate, START + after, &datagram)), "{after:?}");
            }
        }
    }

    #[test]
    fn replaying_recorded_ones_keeps_no_other_out() {
        let mut gate = Gate::new();
        let recorded: Vec<_> = (0..20).map(knock).collect();
        let mut genuine = 1_000;
        for (n, now) in flood(300_000, Duration::from_secs(5)).enumerate() {
            passes(&mut gate, now, &recorded[n % recorded.len()]);
            // From when on each was taken as often as it may be.
            if n > 600_000 && n % 30_000 == 0 {
                assert!(passes(&mut gate, now, &knock(genuine)), "{genuine}");
                genuine += 1;
            }
        }
        assert!(genuine > 1_020);
    }

    #[test]
    fn of_each_type_so_many_pass_in_a_second() {
        let key = MacKey::new(&[9; 32]);
        let (mut gate, mut passed) = (Gate::new(), BTreeMap::<u8, u64>::new());
        for (n, now) in flood(300_000, Duration::from_secs(3)).enumerate() {
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&n.to_be_bytes());
            let datagram = match n % 4 {
                0 => wire::knock(&nonce, &key),
                1 => wire::challenge(&nonce, &[0; 24], &key),
                2 => wire::init(&nonce, &[0; 24], &[0; 64], &key),
                _ => wire::response(&nonce, &[0; 64], &key),
            };
            if passes(&mut gate, now, &datagram) {
                *passed.entry(datagram[0]).or_default() += 1;
            }
        }
        for kind in 1..=4 {
            let count = passed[&kind];
            assert!((3 * COLD_RATE..=3 * COLD_RATE + COLD_BURST).contains(&count), "type {kind}: {count}");
        }
    }

    #[test]
    fn as_many_as_are_allowed_pass_at_once() {
        let mut gate = Gate::new();
        let at_once =
            |gate: &mut Gate, from: u64, now| (from..from + 99).filter(|n| passes(gate, now, &knock(*n))).count();
        assert_eq!(at_once(&mut gate, 0, START), COLD_BURST as usize);
        assert_eq!(at_once(&mut gate, 100, START + SPACING * 3), 3);
        assert_eq!(at_once(&mut gate, 200, START + Duration::from_secs(9)), COLD_BURST as usize);
    }

    #[test]
    fn what_is_no_such_datagram_is_never_admitted() {
        let mut gate = Gate::new();
        for datagram in [&[][..], &[1; 63], &[1; 65], &[5; 64], &[0; 64], &[3; 2_000]] {
            assert!(!gate.is_one_copy_too_many(datagram));
            assert!(!gate.admits(START, datagram));
        }
    }
}

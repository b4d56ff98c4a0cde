//! Any pieces in any order: what comes whole is a first piece, those after it and a last one, of one origin and following on
//! each other, all of which came and none of which was in a frame before; and never more than allowed.
//!
//! Input: pieces, each with its name, what it says it is, its length, the time, and whether a batch ends with it.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use tieline::packet::pieces::{Bounds, Joined, Name, Part, Piece, Pieces};
use tieline_fuzz::Bytes;

const BOUNDS: Bounds = Bounds { pieces: 16, bytes: 500, time: 100, frame: 200 };
/// Before and behind each piece, as header and tag.
const AROUND: [usize; 2] = [5, 3];
/// Where a batch ends, and the buffer.
const BATCH: usize = 1_000;
const BUFFER: usize = 1_600;

/// Pieces that came and are in no frame yet, by origin and number.
type Came = BTreeMap<(u32, u64), (Part, Vec<u8>)>;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes(input);
    let (mut pieces, mut came, mut named) = (Pieces::new(BOUNDS), Came::new(), BTreeMap::new());
    let (mut buffer, mut at, mut now) = (vec![0xEE; BUFFER], 0, 0);
    while !input.is_empty() {
        let [what, number, length, fill] = input.array();
        let name = Name { origin: (what & 1).into(), number: number.into() };
        let part = Part { first: what & 2 != 0, last: what & 4 != 0 };
        let length = usize::from(length) % 220;
        if what & 8 != 0 || at + length + 8 > BATCH {
            pieces.finish(&buffer);
            at = 0;
        }
        now += if what & 16 != 0 { u64::from(fill) } else { 0 };
        // No counter opens twice.
        if named.insert((name.origin, name.number), ()).is_some() {
            continue;
        }
        let bytes: Vec<u8> = (0..length).map(|n| fill.wrapping_add(n as u8)).collect();
        // A gap now and then: another datagram was between them.
        let start = at + usize::from(what & 32 != 0 && at + length + 9 <= BATCH);
        let range = start + AROUND[0]..start + AROUND[0] + length;
        buffer[range.clone()].copy_from_slice(&bytes);
        at = range.end + AROUND[1];
        came.insert((name.origin, name.number), (part, bytes));
        if let Joined::Whole { frame, .. } =
            pieces.push(&mut buffer, BATCH, start..at, range, Piece { name, part, congested: false }, now)
        {
            check(&mut came, name, &buffer[frame]);
        }
    }
});

/// Takes the pieces of the frame that `last` made whole out of those that came, and compares.
fn check(came: &mut Came, last: Name, frame: &[u8]) {
    let key = |number| (last.origin, number);
    let mut first = last.number;
    while !came[&key(first)].0.first {
        first = first.checked_sub(1).expect("a piece before it");
    }
    let mut bytes = Vec::new();
    for number in first.. {
        let (part, piece) = came.remove(&key(number)).expect("a piece that came, and is in no other frame");
        assert!(number == first || !part.first, "a first piece within a frame");
        bytes.extend(piece);
        if part.last {
            break;
        }
    }
    assert_eq!(bytes, frame);
    assert!(frame.len() <= BOUNDS.frame || first == last.number, "longer than allowed");
}

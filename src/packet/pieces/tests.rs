use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { pieces: 16, bytes: 400, time: 1_000, frame: 100 };
/// Before and behind each piece in a buffer: header and tag.
const HEAD: usize = 3;
const TAIL: usize = 2;
/// Where a batch ends in the buffers of these tests, and how long they are.
const BATCH: usize = 2_000;
const BUFFER: usize = 4_000;

const FIRST: Part = Part { first: true, last: false };
const MIDDLE: Part = Part { first: false, last: false };
const LAST: Part = Part { first: false, last: true };

/// A piece that arrives.
#[derive(Clone, Debug)]
struct Piece {
    name: Name,
    part: Part,
    bytes: Vec<u8>,
}

/// The pieces of a frame, the first with this number.
fn pieces(origin: u32, number: u64, frame: &[u8], longest: usize) -> Vec<Piece> {
    let name = |n| Name { origin, number: number + n };
    (0..)
        .zip(cut(frame.len(), longest))
        .map(|(n, (range, part))| Piece { name: name(n), part, bytes: frame[range].to_vec() })
        .collect()
}

fn frame(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| seed.wrapping_mul(31).wrapping_add(n as u8)).collect()
}

/// Lets a batch of pieces come, side by side as one receive leaves them, and gives what is whole. `lost` counts the rest.
fn batch(to: &mut Pieces, pieces: &[Piece], now: u64, lost: &mut Vec<Joined>) -> Vec<Vec<u8>> {
    let (mut buffer, mut at, mut whole) = (vec![0xEE; BUFFER], 0, Vec::new());
    for Piece { name, part, bytes } in pieces {
        let range = at + HEAD..at + HEAD + bytes.len();
        buffer[range.clone()].copy_from_slice(bytes);
        let datagram = at..range.end + TAIL;
        at = datagram.end;
        assert!(at <= BATCH);
        match to.push(
            &mut buffer,
            BATCH,
            datagram,
            range,
            super::Piece { name: *name, part: *part, congested: false },
            now,
        ) {
            Joined::Waits => {}
            Joined::Whole { frame, .. } => whole.push(frame),
            other => lost.push(other),
        }
    }
    // Not before all have come: none may overwrite another.
    let frames = whole.into_iter().map(|range| buffer[range].to_vec()).collect();
    to.finish(&buffer);
    frames
}

fn get(to: &mut Pieces, pieces: &[Piece], now: u64) -> Vec<Vec<u8>> {
    let mut lost = Vec::new();
    let frames = batch(to, pieces, now, &mut lost);
    assert!(lost.is_empty(), "{lost:?}");
    frames
}

#[test]
fn pieces_are_as_few_as_can_be_and_equal() {
    let lengths = |length, longest| cut(length, longest).map(|(range, _)| range.len()).collect::<Vec<_>>();
    assert_eq!(lengths(1_500, 1_440), [750, 750]);
    assert_eq!(lengths(1_441, 1_440), [721, 720]);
    assert_eq!(lengths(1_440, 1_440), [1_440]);
    assert_eq!(lengths(9_000, 1_368), [1_286, 1_286, 1_286, 1_286, 1_286, 1_286, 1_284]);
    let parts: Vec<Part> = cut(30, 10).map(|(_, part)| part).collect();
    assert_eq!(parts, [FIRST, MIDDLE, LAST]);
    assert_eq!(cut(10, 10).map(|(_, part)| part).collect::<Vec<_>>(), [Part { first: true, last: true }]);
}

#[test]
fn pieces_in_order_are_whole_where_they_lie() {
    let mut to = Pieces::new(BOUNDS);
    let (a, b) = (frame(90, 1), frame(61, 2));
    let come = [pieces(7, 5, &a, 40), pieces(7, 8, &b, 40)].concat();
    assert_eq!(get(&mut to, &come, 0), [a, b]);
    assert_eq!(to.end, 0, "nothing was kept");
}

#[test]
fn a_frame_is_whole_in_any_order_and_over_batches() {
    let whole = frame(100, 3);
    let come = pieces(1, 40, &whole, 30);
    let orders = (0..24).map(|n| {
        let (mut left, mut n) = (come.clone(), n);
        (1..=4)
            .rev()
            .map(|count| {
                let at = n % count;
                n /= count;
                left.remove(at)
            })
            .collect::<Vec<_>>()
    });
    for order in orders {
        for split in 0..=4 {
            let mut to = Pieces::new(BOUNDS);
            let mut frames = get(&mut to, &order[..split], 0);
            frames.extend(get(&mut to, &order[split..], 900));
            assert_eq!(frames, std::slice::from_ref(&whole), "{order:?} at {split}");
            let again = get(&mut to, &[], 0);
            assert!(again.is_empty() && to.kept.iter().all(|kept| kept.is_none()), "nothing is left behind");
        }
    }
}

#[test]
fn a_mark_on_any_piece_is_on_the_frame() {
    for marked in [None, Some(0), Some(1), Some(2)] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]] {
            let (mut to, mut buffer) = (Pieces::new(BOUNDS), vec![0; BUFFER]);
            let come = pieces(1, 7, &frame(60, 1), 20);
            let mut said = Vec::new();
            for (at, n) in order.into_iter().enumerate() {
                let (datagram, range) = (at * 30..at * 30 + 25, at * 30 + HEAD..at * 30 + HEAD + 20);
                let piece = super::Piece { name: come[n].name, part: come[n].part, congested: marked == Some(n) };
                if let Joined::Whole { congested, .. } = to.push(&mut buffer, BATCH, datagram, range, piece, 0) {
                    said.push(congested);
                }
            }
            assert_eq!(said, [marked.is_some()], "{marked:?} in {order:?}");
        }
    }
}

#[test]
fn what_waits_too_long_is_gone() {
    for (wait, whole) in [(1_000, 1), (1_001, 0)] {
        let mut to = Pieces::new(BOUNDS);
        let come = pieces(1, 1, &frame(50, 1), 25);
        assert!(get(&mut to, &come[..1], 10).is_empty());
        assert_eq!(get(&mut to, &come[1..], 10 + wait).len(), whole);
    }
}

#[test]
fn pieces_of_other_sessions_and_frames_never_meet() {
    let mut to = Pieces::new(BOUNDS);
    let (a, b) = (pieces(1, 1, &frame(50, 1), 25), pieces(2, 1, &frame(50, 2), 25));
    assert!(get(&mut to, &[a[0].clone(), b[1].clone()], 0).is_empty());
    // Two beginnings and two ends: nothing between them is missing, and yet they are not one.
    let (c, d) = (pieces(1, 21, &frame(50, 3), 25), pieces(1, 23, &frame(50, 4), 25));
    assert!(get(&mut to, &[c[0].clone(), d[1].clone()], 0).is_empty());
    let e = Piece { name: Name { origin: 1, number: 22 }, ..c[0].clone() };
    assert!(get(&mut to, &[e], 0).is_empty());
}

#[test]
fn memory_is_what_it_was_whatever_comes() {
    let mut to = Pieces::new(BOUNDS);
    for number in 0..5_000 {
        let piece = Piece {
            name: Name { origin: 1, number: number * 3 },
            part: [FIRST, LAST, MIDDLE][number as usize % 3],
            bytes: frame(60, 1),
        };
        assert!(get(&mut to, &[piece], 0).is_empty());
    }
    assert_eq!((to.kept.len(), to.bytes.len()), (BOUNDS.pieces, BOUNDS.bytes));
    // And the newest find their others.
    let whole = frame(100, 9);
    let come = pieces(1, 90_000, &whole, 50);
    assert_eq!(get(&mut to, &[come[1].clone(), come[0].clone()], 0), [whole]);
}

#[test]
fn a_frame_longer_than_there_is_room_for_is_refused_either_way() {
    let come = pieces(1, 1, &frame(101, 1), 40);
    let mut lost = Vec::new();
    assert!(batch(&mut Pieces::new(BOUNDS), &come, 0, &mut lost).is_empty());
    assert_eq!(lost, [Joined::TooLong]);
    let backwards: Vec<Piece> = come.iter().rev().cloned().collect();
    assert!(batch(&mut Pieces::new(BOUNDS), &backwards, 0, &mut lost).is_empty());
    assert_eq!(lost, [Joined::TooLong, Joined::TooLong]);
}

#[test]
fn frames_beyond_the_room_behind_the_batch_are_lost_and_said_to_be() {
    let mut to = Pieces::new(Bounds { pieces: 1_024, bytes: 100_000, ..BOUNDS });
    let (mut lasts, mut firsts) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let come = pieces(1, n * 2, &frame(100, n as u8), 50);
        lasts.push(come[1].clone());
        firsts.push(come[0].clone());
    }
    for few in lasts.chunks(30) {
        assert!(get(&mut to, few, 0).is_empty());
    }
    let mut lost = Vec::new();
    let came = batch(&mut to, &firsts, 0, &mut lost).len();
    assert_eq!((came, lost.len()), ((BUFFER - BATCH) / 100, 30 - (BUFFER - BATCH) / 100));
    assert!(lost.iter().all(|lost| *lost == Joined::NoRoom));
}

proptest! {
    /// Frames of all sizes in a network that loses, doubles nothing (that is the window's business), and mixes: what comes whole is one of
    /// them, once, and all of whose pieces came.
    #[test]
    fn only_whole_frames_come_and_each_once(
        sizes in prop::collection::vec((1usize..=100, 10usize..60), 1..12),
        keys in prop::collection::vec(any::<u16>(), 80),
        lost in prop::collection::vec(prop::bool::weighted(0.1), 80),
        batches in 1usize..10,
    ) {
        let (mut come, mut frames, mut number) = (Vec::new(), Vec::new(), 0);
        for (n, (length, longest)) in sizes.into_iter().enumerate() {
            let whole = frame(length, n as u8);
            let cut = pieces(3, number, &whole, longest);
            number += cut.len() as u64;
            come.extend(cut);
            frames.push(whole);
        }
        let complete: Vec<&Vec<u8>> = {
            let mut left = come.iter().zip(&lost);
            frames.iter().filter(|frame| {
                let (mut bytes, mut all) = (0, true);
                while bytes < frame.len() {
                    let (piece, lost) = left.next().unwrap();
                    bytes += piece.bytes.len();
                    all &= !lost;
                }
                all
            }).collect()
        };
        let mut arrived: Vec<_> = come.iter().zip(&lost).zip(&keys).filter(|((_, lost), _)| !**lost).map(|((piece, _), key)| (key, piece.clone())).collect();
        arrived.sort_by_key(|(key, _)| **key);
        let arrived: Vec<Piece> = arrived.into_iter().map(|(_, piece)| piece).collect();
        let mut to = Pieces::new(Bounds { pieces: 128, bytes: 10_000, ..BOUNDS });
        let mut got = Vec::new();
        for batch in arrived.chunks(arrived.len().div_ceil(batches).max(1)) {
            got.extend(get(&mut to, batch, 0));
        }
        got.sort();
        let mut complete: Vec<Vec<u8>> = complete.into_iter().cloned().collect();
        complete.sort();
        prop_assert_eq!(got, complete);
    }

    /// Any pieces from one who means harm: nothing panics, and nothing longer than allowed comes.
    #[test]
    fn any_pieces_do_no_harm(come in prop::collection::vec((0u32..2, 0u64..24, any::<(bool, bool)>(), 0usize..60, 0u64..3_000), 0..60)) {
        let mut to = Pieces::new(BOUNDS);
        for (origin, number, (first, last), length, now) in come {
            let piece = Piece { name: Name { origin, number }, part: Part { first, last }, bytes: frame(length, 1) };
            let whole = batch(&mut to, &[piece], now, &mut Vec::new());
            prop_assert!(whole.iter().all(|frame| frame.len() <= BOUNDS.frame));
        }
    }
}

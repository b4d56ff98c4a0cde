//! A batch of datagrams in one piece of memory, allocated once.
//!
//! Not a queue and not a pool: one loop fills it, works on it in place, empties it, and begins again.
//!
//! Each datagram begins where the one before it ended, so neighbours of one size are already the run that one segmented
//! send wants.

use std::ops::Range;

/// The sizes a [`Batch`] is cut to, in bytes but for `slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Room before each frame, for the header.
    pub header: usize,
    /// Room for the frame itself.
    pub frame: usize,
    /// Room after each frame, for the tag.
    pub tag: usize,
    /// The most datagrams in the batch.
    pub slots: usize,
}

impl Layout {
    /// The most bytes one datagram takes: header, frame and tag.
    pub const fn datagram(&self) -> usize {
        self.header + self.frame + self.tag
    }
}

/// Up to [`Layout::slots`] datagrams, each with something known about it (`M`: where it came from, say).
#[derive(Debug)]
pub struct Batch<M> {
    layout: Layout,
    bytes: Box<[u8]>,
    entries: Vec<Entry<M>>,
    /// Where the next packed datagram begins: behind the last one.
    end: usize,
}

#[derive(Debug)]
struct Entry<M> {
    range: Range<usize>,
    meta: M,
}

impl<M> Batch<M> {
    /// An empty batch. This is the only place that allocates.
    pub fn new(layout: Layout) -> Self {
        Batch {
            layout,
            bytes: vec![0; layout.datagram() * layout.slots].into_boxed_slice(),
            entries: Vec::with_capacity(layout.slots),
            end: 0,
        }
    }

    /// How many datagrams there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether no further datagram can be pushed.
    pub fn is_full(&self) -> bool {
        self.entries.len() == self.layout.slots
    }

    /// Forgets every datagram. The bytes stay as they are until they are written over.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.end = 0;
    }

    /// Where the next frame is to be written: [`Layout::frame`] bytes, or `None` in a full batch.
    ///
    /// Asking twice without a [`push`](Self::push) between gives the same room.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        if self.is_full() {
            return None;
        }
        // Datagrams never exceed `Layout::datagram`, so behind fewer than `slots` of them one more fits.
        let start = self.end + self.layout.header;
        self.bytes.get_mut(start..start + self.layout.frame)
    }

    /// Takes the first `frame` bytes of [`room`](Self::room) as a frame, with header and tag room around it.
    ///
    /// A length over [`Layout::frame`] counts as that; in a full batch nothing happens.
    pub fn push(&mut self, frame: usize, meta: M) {
        if self.is_full() {
            return;
        }
        let length = self.layout.header + frame.min(self.layout.frame) + self.layout.tag;
        let range = self.end..self.end + length;
        self.end = range.end;
        self.entries.push(Entry { range, meta });
    }

    /// The datagrams, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &M)> + Clone {
        (self.entries.iter()).map(|entry| (&self.bytes[entry.range.clone()], &entry.meta))
    }

    /// The bytes of neighbouring datagrams of one size that have the same `kind`, that size, and that kind; the last of a run may
    /// be shorter.
    pub fn runs<K: PartialEq>(
        &self,
        kind: impl Fn(&M) -> K + Clone,
    ) -> impl Iterator<Item = (&[u8], usize, K)> + Clone {
        let mut rest = &self.entries[..];
        std::iter::from_fn(move || {
            let (first, more) = rest.split_first()?;
            let (size, mut end, of) = (first.range.len(), first.range.end, kind(&first.meta));
            let mut count = 0;
            for entry in more {
                if entry.range.start != end || entry.range.len() > size || kind(&entry.meta) != of {
                    break;
                }
                (end, count) = (entry.range.end, count + 1);
                if entry.range.len() < size {
                    break;
                }
            }
            rest = &more[count..];
            Some((&self.bytes[first.range.start..end], size, of))
        })
    }

    /// The datagrams, in order, to be worked on in place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&mut [u8], &mut M)> {
        let mut rest = &mut self.bytes[..];
        let mut at = 0;
        self.entries.iter_mut().map(move |entry| {
            // Entries rise and never overlap, so each can be cut off the front of what is left.
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(entry.range.start - at);
            let (datagram, tail) = tail.split_at_mut(entry.range.len());
            at = entry.range.end;
            rest = tail;
            (datagram, &mut entry.meta)
        })
    }

    /// Works on each datagram in place and forgets those for which `keep` says no. No bytes move; what was behind the last one
    /// kept is room again.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut [u8], &mut M) -> bool) {
        let bytes = &mut self.bytes;
        self.entries.retain_mut(|entry| keep(&mut bytes[entry.range.clone()], &mut entry.meta));
        self.end = self.entries.last().map_or(0, |entry| entry.range.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: Layout = Layout { header: 3, frame: 20, tag: 2, slots: 4 };

    fn fill_room(batch: &mut Batch<u8>, length: usize, byte: u8) {
        batch.room().unwrap()[..length].fill(byte);
        batch.push(length, byte);
    }

    #[test]
    fn what_is_not_kept_leaves_its_room() {
        let mut batch = Batch::new(LAYOUT);
        for round in 0..10 * LAYOUT.slots {
            assert!(batch.room().is_some(), "no room in round {round}");
            batch.push(LAYOUT.frame, 0);
            batch.retain(|_, _| false);
        }
    }

    #[test]
    fn packed_datagrams_touch_one_another() {
        let mut batch = Batch::new(LAYOUT);
        for byte in 1..=3 {
            fill_room(&mut batch, 10, byte);
        }
        let spans: Vec<_> = batch.iter().map(|(bytes, _)| bytes.as_ptr_range()).collect();
        assert_eq!(spans[0].end, spans[1].start);
        assert_eq!(spans[1].end, spans[2].start);
        assert!(batch.iter().all(|(bytes, _)| bytes.len() == 15));
    }

    #[test]
    fn a_full_batch_has_no_room() {
        let mut batch = Batch::new(LAYOUT);
        for byte in 0..4 {
            assert!(!batch.is_full());
            fill_room(&mut batch, 20, byte);
        }
        assert!(batch.is_full());
        assert!(batch.room().is_none());
        batch.push(1, 9);
        assert_eq!(batch.len(), 4);
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(batch.room().unwrap().len(), 20);
    }

    #[test]
    fn runs_are_neighbours_of_one_size_and_a_shorter_last() {
        let mut batch = Batch::new(Layout { slots: 9, ..LAYOUT });
        for (byte, length) in [7, 7, 3, 3, 9, 2, 2, 2, 2].into_iter().enumerate() {
            fill_room(&mut batch, length, byte as u8);
        }
        let sizes =
            |batch: &Batch<u8>| batch.runs(|_| ()).map(|(bytes, size, ())| (bytes.len(), size)).collect::<Vec<_>>();
        // Seven and seven and, last of that run, three; and so on: header and tag are five.
        assert_eq!(sizes(&batch), [(12 + 12 + 8, 12), (8, 8), (14 + 7, 14), (7 * 3, 7)]);
        // What was forgotten leaves a gap, and ends a run.
        batch.retain(|_, byte| *byte != 1 && *byte != 7);
        assert_eq!(sizes(&batch), [(12, 12), (8 + 8, 8), (14 + 7, 14), (7, 7), (7, 7)]);
        let all: usize = batch.runs(|_| ()).map(|(bytes, ..)| bytes.len()).sum();
        assert_eq!(all, batch.iter().map(|(bytes, _)| bytes.len()).sum::<usize>());
    }

    #[test]
    fn a_run_is_of_one_kind() {
        let mut batch = Batch::new(LAYOUT);
        for byte in [2, 4, 5, 7] {
            fill_room(&mut batch, 10, byte);
        }
        let odd = |byte: &u8| byte % 2 == 1;
        let runs: Vec<_> = batch.runs(odd).map(|(bytes, size, odd)| (bytes.len(), size, odd)).collect();
        assert_eq!(runs, [(30, 15, false), (30, 15, true)]);
    }

    #[test]
    fn lengths_beyond_the_room_count_as_the_room() {
        let mut batch = Batch::new(LAYOUT);
        batch.push(usize::MAX, 0);
        assert_eq!(batch.iter().next().unwrap().0.len(), 25);
    }

    proptest! {
        /// Against the plain model: a vector of vectors.
        #[test]
        fn packed_matches_a_vector_of_frames(
            frames in proptest::collection::vec((0usize..=20, any::<u8>()), 0..8),
            keep in proptest::collection::vec(any::<bool>(), 8),
        ) {
            let mut batch = Batch::new(LAYOUT);
            let mut model = Vec::new();
            for &(length, byte) in &frames {
                let Some(room) = batch.room() else { break };
                room[..length].fill(byte);
                batch.push(length, byte);
                model.push((vec![byte; length], byte));
            }
            prop_assert_eq!(batch.len(), frames.len().min(4));

            // Headers and tags written round each frame must not touch a neighbour's frame.
            for (datagram, _) in batch.iter_mut() {
                let end = datagram.len() - LAYOUT.tag;
                datagram[..LAYOUT.header].fill(0xAA);
                datagram[end..].fill(0xBB);
            }
            let mut index = 0;
            batch.retain(|_, _| { index += 1; keep[index - 1] });
            let mut index = 0;
            model.retain(|_| { index += 1; keep[index - 1] });

            let got: Vec<_> = batch
                .iter()
                .map(|(d, meta)| (d[LAYOUT.header..d.len() - LAYOUT.tag].to_vec(), *meta))
                .collect();
            prop_assert_eq!(got, model);
        }
    }
}

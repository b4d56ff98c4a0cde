//! Frames that do not fit one datagram: cut into pieces, and made whole again.
//!
//! Pieces know each other by number: each has that of the one before it and one more. Which is the first and which the last stands
//! on them, so a piece needs no header of its own.
//!
//! Whole again costs little where pieces come as they were sent, side by side in one buffer: each moves up to the one before
//! it. What comes otherwise is kept for a while, in bounded memory, until the others are there.

use std::ops::Range;

/// Where each of `length` bytes' pieces of at most `longest` ends and the next begins: as few as there can be, all of one
/// length but the last, which may be shorter.
pub fn cut(
    length: usize,
    longest: usize,
) -> impl DoubleEndedIterator<Item = (Range<usize>, Part)> + ExactSizeIterator + Clone {
    let count = length.div_ceil(longest.max(1)).max(1);
    let size = length.div_ceil(count);
    (0..count).map(move |n| {
        let part = Part { first: n == 0, last: n + 1 == count };
        ((n * size).min(length)..((n + 1) * size).min(length), part)
    })
}

/// Which piece of its frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first.
    pub first: bool,
    /// The last. One that is both is a frame of one piece.
    pub last: bool,
}

/// A piece's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// Where its number was given: pieces of different origin are strangers.
    pub origin: u32,
    /// Its number, by which pieces of a frame follow on each other. No two pieces have one name.
    pub number: u64,
}

/// A piece, but for its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its name.
    pub name: Name,
    /// Which it is.
    pub part: Part,
    /// Whether its datagram was marked as having met congestion. Then its frame is (RFC 3168, section 5.3).
    pub congested: bool,
}

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Pieces that wait for others, at most.
    pub pieces: usize,
    /// Their bytes, at most.
    pub bytes: usize,
    /// How long one waits, in nanoseconds.
    pub time: u64,
    /// The most bytes of a frame.
    pub frame: usize,
}

/// What became of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It waits for others.
    Waits,
    /// Its frame is whole, and lies there in the buffer.
    Whole {
        /// Where.
        frame: Range<usize>,
        /// Whether any piece was marked.
        congested: bool,
    },
    /// It makes its frame longer than it may be: what there is of it is forgotten.
    TooLong,
    /// Its frame is whole, and there is no more room for it behind the batch: it is lost.
    NoRoom,
}

/// The most pieces a frame may have: none that fits [`Bounds::frame`] is cut into as many.
const MOST: usize = 64;

/// Makes frames whole.
///
/// [`push`](Self::push) each piece as it comes; at the end of a batch, before its buffer is filled anew,
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Pieces {
    bounds: Bounds,
    /// The beginning of a frame, in the buffer: all of it that has come, up to the piece of that name.
    front: Option<Front>,
    /// By their number, each at its remainder by the length.
    kept: Box<[Option<Kept>]>,
    /// What they are made of, a ring: the newest take the oldest ones' place.
    bytes: Box<[u8]>,
    /// Where the next goes, counted on for ever.
    end: u64,
    /// Room behind the batch that is used up.
    used: usize,
}

#[derive(Debug)]
struct Front {
    name: Name,
    congested: bool,
    range: Range<usize>,
    /// Where the next piece would begin if it came right behind.
    next: usize,
    time: u64,
}

/// A piece that waits; or several from the first on, under the name of their last.
#[derive(Clone, Copy, Debug)]
struct Kept {
    name: Name,
    part: Part,
    congested: bool,
    /// Where it begins, as [`Pieces::end`] counts.
    at: u64,
    length: usize,
    time: u64,
}

impl Pieces {
    /// Room for what `bounds` allows; this is the only place that allocates.
    pub fn new(bounds: Bounds) -> Pieces {
        Pieces {
            bounds,
            front: None,
            kept: vec![None; bounds.pieces.max(1)].into(),
            bytes: vec![0; bounds.bytes].into(),
            end: 0,
            used: 0,
        }
    }

    /// Takes the piece at `range` of `buffer`, where its datagram ends at `end`, `now` in nanoseconds. What was kept of a frame that is
    /// whole is put together in the buffer behind `batch`, where datagrams end.
    pub fn push(
        &mut self,
        buffer: &mut [u8],
        batch: usize,
        datagram: Range<usize>,
        range: Range<usize>,
        piece: Piece,
        now: u64,
    ) -> Joined {
        let Piece { name, part, congested } = piece;
        if let Some(front) = self.front.take() {
            if !part.first && front.is_before(name) && front.next == datagram.start {
                return self.append(buffer, batch, front, (datagram.end, range), piece, now);
            }
            self.keep_front(buffer, &front);
        }
        if part.first && part.last {
            return Joined::Whole { frame: range, congested };
        }
        if part.first && self.find(name.after(), now).is_none() {
            self.front = Some(Front { name, congested, range, next: datagram.end, time: now });
            return Joined::Waits;
        }
        self.keep(&buffer[range], piece, now);
        self.join(buffer, batch, name, now)
    }

    /// Moves a piece up to those before it.
    fn append(
        &mut self,
        buffer: &mut [u8],
        batch: usize,
        mut front: Front,
        (end, range): (usize, Range<usize>),
        Piece { name, part, congested }: Piece,
        now: u64,
    ) -> Joined {
        let length = range.len();
        if front.range.len() + length > self.bounds.frame {
            return Joined::TooLong;
        }
        buffer.copy_within(range, front.range.end);
        front.range.end += length;
        front.congested |= congested;
        if part.last {
            return Joined::Whole { frame: front.range, congested: front.congested };
        }
        (front.name, front.next, front.time) = (name, end, now);
        if self.find(name.after(), now).is_some() {
            // The rest is here already.
            self.keep_front(buffer, &front);
            return self.join(buffer, batch, name, now);
        }
        self.front = Some(front);
        Joined::Waits
    }

    /// Ends a batch: its buffer will be filled anew.
    pub fn finish(&mut self, buffer: &[u8]) {
        if let Some(front) = self.front.take() {
            self.keep_front(buffer, &front);
        }
        self.used = 0;
    }

    fn keep_front(&mut self, buffer: &[u8], front: &Front) {
        let part = Part { first: true, last: false };
        let piece = Piece { name: front.name, part, congested: front.congested };
        self.keep(&buffer[front.range.clone()], piece, front.time);
    }

    fn keep(&mut self, bytes: &[u8], Piece { name, part, congested }: Piece, time: u64) {
        let size = self.bytes.len();
        if bytes.len() > size || bytes.len() > self.bounds.frame {
            return;
        }
        // A piece lies in one: what is left at the end of the ring is left out.
        let place = (self.end % size as u64) as usize;
        if place + bytes.len() > size {
            self.end += (size - place) as u64;
        }
        let (at, place) = (self.end, (self.end % size as u64) as usize);
        self.bytes[place..place + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len() as u64;
        let slot = self.slot(name);
        self.kept[slot] = Some(Kept { name, part, congested, at, length: bytes.len(), time });
    }

    fn slot(&self, name: Name) -> usize {
        (name.number % self.kept.len() as u64) as usize
    }

    /// The piece of that name, if it is kept and neither written over nor too old.
    fn find(&self, name: Name, now: u64) -> Option<Kept> {
        let kept = self.kept[self.slot(name)].filter(|kept| kept.name == name)?;
        let there = self.end - kept.at <= self.bytes.len() as u64;
        (there && now.saturating_sub(kept.time) <= self.bounds.time).then_some(kept)
    }

    /// Puts the frame of the piece of that name together, if it is all there.
    fn join(&mut self, buffer: &mut [u8], batch: usize, name: Name, now: u64) -> Joined {
        let Some((first, last, length)) = self.whole(name, now) else { return Joined::Waits };
        let start = batch + self.used;
        let room = buffer.get_mut(start..start + length).filter(|_| length <= self.bounds.frame);
        let mut outcome = match &room {
            Some(_) => Joined::Whole { frame: start..start + length, congested: false },
            None if length > self.bounds.frame => Joined::TooLong,
            None => Joined::NoRoom,
        };
        let (mut room, mut next) = (room.unwrap_or_default(), first);
        loop {
            let slot = self.slot(next);
            let Some(kept) = self.kept[slot].take() else {
                outcome = Joined::Waits; // it was found just now
                break;
            };
            let place = (kept.at % self.bytes.len() as u64) as usize;
            if let Some((here, rest)) = std::mem::take(&mut room).split_at_mut_checked(kept.length) {
                here.copy_from_slice(&self.bytes[place..place + kept.length]);
                room = rest;
            }
            if let Joined::Whole { congested, .. } = &mut outcome {
                *congested |= kept.congested;
            }
            if next == last {
                break;
            }
            next = next.after();
        }
        if matches!(outcome, Joined::Whole { .. }) {
            self.used += length;
        }
        outcome
    }

    /// The names of the first and the last piece of the frame that has this one, and the length of all, if none is missing.
    fn whole(&self, name: Name, now: u64) -> Option<(Name, Name, usize)> {
        let mut first = self.find(name, now)?;
        let (mut last, mut length) = (first, first.length);
        for _ in 0..MOST {
            if !first.part.first {
                first = self.find(first.name.before()?, now)?;
                length += first.length;
            } else if !last.part.last {
                last = self.find(last.name.after(), now)?;
                length += last.length;
            } else {
                return Some((first.name, last.name, length));
            }
        }
        None
    }
}

impl Front {
    fn is_before(&self, name: Name) -> bool {
        self.name.after() == name
    }
}

impl Name {
    fn after(self) -> Name {
        Name { number: self.number.wrapping_add(1), ..self }
    }

    fn before(self) -> Option<Name> {
        Some(Name { number: self.number.checked_sub(1)?, ..self })
    }
}

#[cfg(test)]
mod tests;

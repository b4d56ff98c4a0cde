//! Being led: what the peer says of its ways, and which of them the line goes by.

use super::Use;
use crate::protocol::{constants::*, halves::Path, paths::Cookie, slots::Rank, time::Time};
use std::time::Duration;

/// A way of the peer's.
struct Led {
    path: Path,
    /// When a word about it was heard last, which was this one: of a slow way and a fast one each has its own order.
    heard: Time,
    said: Option<(Rank, u64)>,
    usage: Use,
    /// The check that it was sent, and when.
    asked: Option<(Cookie, Time)>,
    proven: bool,
}

/// The peer's ways, as an end knows them that has none of its own to choose from.
#[derive(Default)]
pub struct Follower {
    ways: Vec<Led>,
}

impl Follower {
    /// Whether the peer leads: then no other source of its datagrams means anything.
    pub fn is_led(&self, now: Time, detection: Duration) -> bool {
        self.ways.iter().any(|way| now < way.heard + detection)
    }

    /// The peer says what it uses `path` for; gives the cookie with which it has to prove that it is there, if it has to: `fresh`, or
    /// that of a check whose answer may still be under way.
    pub fn hear(&mut self, now: Time, of: (Rank, u64), path: Path, usage: Use, fresh: Cookie) -> Option<Cookie> {
        // Whichever own address it is from: who copies is not to have more sent to him.
        let asked = self.ways.iter().filter(|way| way.path.peer == path.peer).filter_map(|way| way.asked);
        let spaced = asked.map(|(_, at)| at + PATH_CHECK_SPACING).max().is_none_or(|next| next <= now);
        let way = match self.ways.iter().position(|way| way.path == path) {
            Some(known) => &mut self.ways[known],
            None => self.make_room(path),
        };
        if way.said.is_some_and(|said| of <= said) {
            return None;
        }
        (way.heard, way.said, way.usage) = (now, Some(of), usage);
        if !spaced || !(usage.first || usage.second) {
            return None;
        }
        let cookie = way.asked.map_or(fresh, |(asked, _)| asked);
        way.asked = Some((cookie, now));
        Some(cookie)
    }

    /// The one that was heard longest ago makes room.
    fn make_room(&mut self, path: Path) -> &mut Led {
        if self.ways.len() == MAX_WAYS
            && let Some(oldest) = (0..MAX_WAYS).min_by_key(|n| self.ways[*n].heard)
        {
            self.ways.swap_remove(oldest);
        }
        let usage = Use::default();
        self.ways.push(Led { path, heard: Time(0), said: None, usage, asked: None, proven: false });
        let last = self.ways.len() - 1;
        &mut self.ways[last]
    }

    /// Whether the peer wants the line there: its last word about another way that it used may be older.
    fn is_first(&self, way: &Led) -> bool {
        let newest = self.ways.iter().filter(|way| way.usage.first).map(|way| way.said).max();
        way.usage.first && newest == Some(way.said)
    }

    /// Takes an answer to a check: where the line is to go, if the peer wants it there, and after how long.
    pub fn answer(&mut self, cookie: Cookie) -> Option<(Path, Duration)> {
        let at = self.ways.iter().position(|way| way.asked.is_some_and(|(asked, _)| asked == cookie))?;
        (self.ways[at].asked, self.ways[at].proven) = (None, true);
        let way = &self.ways[at];
        self.is_first(way).then_some((way.path, way.usage.hold))
    }

    /// Where the peer has proved to be.
    pub fn proven(&self) -> impl Iterator<Item = Path> {
        self.ways.iter().filter(|way| way.proven).map(|way| way.path)
    }

    /// Where the second copy of each datagram goes, if that is wanted: by the second best; by what was the best, until the peer says
    /// what it is now; by the best, where the line will go in a moment.
    pub fn second(&self, now: Time, detection: Duration) -> Option<Path> {
        let good = |way: &&Led| way.proven && now < way.heard + detection && (way.usage.first || way.usage.second);
        let best = self.ways.iter().filter(good).max_by_key(|way| (way.usage.second, !self.is_first(way), way.said));
        best.map(|way| way.path)
    }
}

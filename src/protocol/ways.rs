//! The ways to the peer that config names: which of them work, what they are like, and which one is used.
//!
//! An end that has some leads: it asks on each of them all the time, sends by the best that answers, and says so; its peer
//! follows ([`Follower`]), as soon as the address it is led to has answered a check of its own. Both ends may have some: then each
//! chooses for what it sends.

mod follower;

pub use follower::Follower;

use super::{
    constants::*,
    halves::Path,
    link::{WayParams, WayStatus},
    measure::smoothed,
    paths::Cookie,
    time::Time,
};
use std::{collections::VecDeque, net::SocketAddr, time::Duration};

/// Checks that are remembered: answers to older ones are not waited for, and loss is that of these.
const CHECKS: usize = 32;
/// Round trips that tell how far two ways differ.
const TRIPS: usize = 8;
/// Addresses that a silent way is looked for at.
const ADDRESSES: usize = 2;

/// So many of a list, the next ones at each turn, until it begins anew.
pub fn in_turn<T: Copy>(list: &[T], slots: usize, turn: usize) -> impl Iterator<Item = T> {
    let first = turn.wrapping_mul(slots).checked_rem(list.len()).unwrap_or_default();
    let first = if list.len() > slots { first } else { 0 };
    list.iter().copied().cycle().skip(first).take(slots.min(list.len()))
}

/// A check, and what came of it.
struct Asked {
    cookie: Cookie,
    at: Time,
    peer: SocketAddr,
    answered: bool,
}

/// When a check was sent, when it was answered and when that came, the second by the peer's clock; in nanoseconds.
#[derive(Clone, Copy)]
struct Trip {
    out: i128,
    back: i128,
}

/// One way.
struct Way {
    params: WayParams,
    addresses: Vec<SocketAddr>,
    /// Where the peer answered last, from which of the own addresses.
    path: Option<Path>,
    up: bool,
    since: Time,
    /// The last answer.
    heard: Time,
    /// The first check that was sent after it.
    waiting_since: Option<Time>,
    asked: VecDeque<Asked>,
    trips: VecDeque<Trip>,
    rtt: Option<Duration>,
    /// More of its checks are lost than a line should lose, since then; or no more.
    lossy: bool,
    lossy_since: Time,
    /// How long it has to be good before it is used in place of another that works.
    wait: Duration,
    silent_next: Time,
    /// How often it was asked since it is silent.
    turn: usize,
}

impl Way {
    fn new(now: Time, params: WayParams) -> Way {
        Way {
            params,
            addresses: Vec::new(),
            path: None,
            up: false,
            since: now,
            heard: now,
            waiting_since: None,
            asked: VecDeque::new(),
            trips: VecDeque::new(),
            rtt: None,
            lossy: false,
            lossy_since: now,
            wait: Duration::ZERO,
            silent_next: now + WAY_SILENT,
            turn: 0,
        }
    }

    /// Everywhere the peer may be on this way, the likeliest first; one address while it answers.
    fn candidates(&self) -> Vec<Path> {
        let anew = |&peer: &SocketAddr| Path { socket: self.params.socket, local: None, peer };
        let mut paths: Vec<Path> = self.path.into_iter().collect();
        if !self.up || paths.is_empty() {
            let known = self.path.map(|path| path.peer);
            paths.extend(self.addresses.iter().filter(|peer| Some(**peer) != known).map(anew));
        }
        paths
    }

    /// A few of those: where the peer was last, and of the others the next ones at each turn.
    fn places(&self, turn: usize) -> Vec<Path> {
        let all = self.candidates();
        let (proven, others) = all.split_at(usize::from(self.path.is_some()));
        proven.iter().copied().chain(in_turn(others, ADDRESSES - proven.len(), turn)).collect()
    }

    /// When it is asked next: each interval, and more often once an answer is overdue.
    fn next(&self, interval: Duration, hurry: bool) -> Time {
        let Some(last) = self.asked.back() else { return Time(0) };
        let often = (interval / ASKS_PER_INTERVAL).max(REPORT_SPACING);
        match self.waiting_since {
            _ if hurry => last.at + often,
            Some(since) if self.up => {
                let overdue = since + often.max(interval.min(self.rtt.unwrap_or_default() * 2));
                (last.at + interval).min(overdue.max(last.at + often))
            }
            _ => last.at + interval,
        }
    }

    fn ask(&mut self, now: Time, cookie: Cookie, peer: SocketAddr) {
        if self.asked.len() == CHECKS {
            self.asked.pop_front();
        }
        self.asked.push_back(Asked { cookie, at: now, peer, answered: false });
        self.waiting_since.get_or_insert(now);
    }

    /// Takes an answer that says when it was sent; true where it is one to a check of this way's.
    fn answer(&mut self, now: Time, from: Path, cookie: Cookie, time_us: u64) -> bool {
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.cookie == cookie && !asked.answered) else {
            return false;
        };
        asked.answered = true;
        let (at, peer) = (asked.at, asked.peer);
        if self.up && self.path.is_some_and(|path| path.peer != peer) {
            return true; // it was asked here while the way was silent; meanwhile the peer has answered elsewhere
        }
        self.rtt = Some(smoothed(self.rtt, now.since(at)));
        let peers = i128::from(time_us) * 1_000;
        if self.trips.len() == TRIPS {
            self.trips.pop_front();
        }
        self.trips.push_back(Trip { out: peers - i128::from(at.0), back: i128::from(now.0) - peers });
        // An answer proves the address that was asked; where it came from it proves nothing.
        let same = from.socket == self.params.socket && from.peer == peer;
        let known = self.path.filter(|path| path.peer == peer).and_then(|path| path.local);
        let local = if same { from.local } else { known };
        self.path = Some(Path { socket: self.params.socket, local, peer });
        (self.heard, self.waiting_since) = (now, None);
        self.judge(now);
        true
    }

    /// The share of the checks lost, of those of which it is known.
    fn loss(&self) -> Option<f64> {
        let known = match self.asked.iter().rposition(|asked| asked.answered) {
            Some(last) if self.up => last + 1,
            _ => self.asked.len(),
        };
        let peer = self.path?.peer;
        let judged = self.asked.iter().take(known).filter(|asked| asked.peer == peer);
        let (all, lost) = judged.fold((0, 0), |(all, lost), asked| (all + 1, lost + i32::from(!asked.answered)));
        (all > 0).then(|| f64::from(lost) / f64::from(all))
    }

    /// Follows the loss, with a gap between much and little so that it does not flutter.
    fn judge(&mut self, now: Time) {
        let loss = self.loss().filter(|_| self.asked.len() >= CHECKS / 2).unwrap_or_default();
        let lossy = if self.lossy { loss > WAY_CLEAN } else { loss >= WAY_LOSSY };
        if lossy != self.lossy {
            (self.lossy, self.lossy_since) = (lossy, now);
        }
    }

    /// Notes whether it works; true where that is news.
    fn set_up(&mut self, now: Time, up: bool) -> bool {
        if self.up == up {
            return false;
        }
        if up {
            // What it was like before says nothing of what it is like now; the answer that shows it up does, and those that
            // are still under way.
            let shown = self.asked.iter().rposition(|asked| asked.answered).map_or(0, |last| last + 1);
            self.asked.drain(..shown);
            self.trips.drain(..self.trips.len().saturating_sub(1));
        } else {
            let forgotten = now.since(self.since) >= WAY_FORGET;
            let doubled = if forgotten { WAY_WAIT } else { self.wait * 2 };
            self.wait = doubled.clamp(WAY_WAIT, WAY_WAIT_MAX);
            self.silent_next = now + WAY_SILENT;
            self.lossy = false;
        }
        (self.up, self.since, self.waiting_since, self.turn) = (up, now, None, 0);
        true
    }

    /// From when on it may be used in place of another that works.
    fn steady_at(&self) -> Time {
        self.since.max(self.lossy_since) + self.wait
    }
}

/// What there is to tell of the ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It answers, or does no more.
    Up(usize, bool),
    /// It has been silent for long.
    Silent(usize),
}

/// Another way is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub way: usize,
    pub path: Path,
    /// How long nothing may be sent by it, for what went the old way to arrive first.
    pub hold: Duration,
}

/// All of them.
pub struct Ways {
    ways: Vec<Way>,
    used: Option<usize>,
    second: Option<usize>,
    /// When the one in use was taken, and how long the peer has to hold what it sends.
    moved: Time,
    back: Duration,
    /// Nothing is asked before: there was no randomness for it.
    rest: Time,
}

impl Ways {
    pub fn new(now: Time, params: &[WayParams]) -> Ways {
        let ways = params.iter().take(MAX_WAYS).map(|params| Way::new(now, *params)).collect();
        Ways { ways, used: None, second: None, moved: now, back: Duration::ZERO, rest: now }
    }

    /// Whether this end chooses: ways without an address only wait for the peer.
    pub fn lead(&self) -> bool {
        self.ways.iter().any(|way| !way.addresses.is_empty())
    }

    pub fn set_addresses(&mut self, way: usize, addresses: &[SocketAddr]) {
        if let Some(way) = self.ways.get_mut(way) {
            way.addresses = addresses.to_vec();
        }
    }

    /// Everywhere the peer may be, on all ways, the preferred first.
    pub fn paths(&self) -> Vec<Path> {
        self.by_priority().flat_map(Way::candidates).collect()
    }

    /// A few of those on each way, other ones at each turn.
    pub fn places(&self, turn: usize) -> Vec<Path> {
        self.by_priority().flat_map(|way| way.places(turn)).collect()
    }

    fn by_priority(&self) -> impl Iterator<Item = &Way> {
        let mut ways: Vec<&Way> = self.ways.iter().collect();
        ways.sort_by_key(|way| way.params.priority);
        ways.into_iter()
    }

    /// Whether this is where one of them leads.
    pub fn knows(&self, path: Path) -> bool {
        self.find(path).is_some()
    }

    fn find(&self, path: Path) -> Option<usize> {
        self.ways.iter().position(|way| {
            let here = way.path.is_some_and(|known| known.peer == path.peer) || way.addresses.contains(&path.peer);
            way.params.socket == path.socket && here
        })
    }

    /// A session was opened on this path: the line begins there, and all ways are asked at once.
    pub fn begin(&mut self, now: Time, path: Path) {
        self.used = self.find(path);
        (self.second, self.moved, self.back) = (None, now, Duration::ZERO);
        self.ways.iter_mut().for_each(|way| way.asked.clear());
        if let Some(way) = self.used_way() {
            (way.path, way.heard) = (Some(path), now);
        }
    }

    fn used_way(&mut self) -> Option<&mut Way> {
        self.ways.get_mut(self.used?)
    }

    /// The peer is at another address on the way in use, or that is left from another of the own.
    pub fn use_path(&mut self, path: Path) {
        if let Some(way) = self.used_way().filter(|way| way.params.socket == path.socket) {
            way.path = Some(path);
        }
    }

    /// Leaves the own address of `path` to the routing table.
    pub fn unpin(&mut self, path: Path) {
        let known = self.ways.iter_mut().filter_map(|way| way.path.as_mut());
        known.filter(|known| **known == path).for_each(|known| known.local = None);
    }

    /// Where the second copy of each datagram goes, if that is wanted.
    pub fn second(&self) -> Option<Path> {
        self.ways.get(self.second?)?.path
    }

    /// Whether user data goes there: the peer may ask for an answer.
    pub fn uses(&self, path: Path) -> bool {
        let there = |way: &Way| way.path.is_some_and(|known| known.same_ends(path));
        [self.used, self.second].into_iter().flatten().filter_map(|n| self.ways.get(n)).any(there)
    }

    /// Asks on each way that it is time for: gives the path and the message's marks and hold time for each check, which goes out
    /// with the cookie that `cookie` gave; where it gives none, the rest is asked an interval later.
    pub fn ask(
        &mut self,
        now: Time,
        interval: Duration,
        mut cookie: impl FnMut() -> Option<Cookie>,
    ) -> Vec<(Path, Cookie, Use)> {
        let mut checks = Vec::new();
        for n in 0..self.ways.len() {
            if now < self.rest {
                break;
            }
            let (usage, hurry) = (self.usage(n), self.hurries(now, interval, n));
            let way = &mut self.ways[n];
            if way.next(interval, hurry) > now {
                continue;
            }
            let places = way.places(way.turn);
            way.turn = way.turn.wrapping_add(1);
            for path in places {
                let Some(cookie) = cookie() else {
                    self.rest = now + interval;
                    break;
                };
                way.ask(now, cookie, path.peer);
                checks.push((path, cookie, usage));
            }
        }
        checks
    }

    /// The peer is told more often where it is led to, at first.
    fn hurries(&self, now: Time, interval: Duration, way: usize) -> bool {
        self.used == Some(way) && now < self.moved + interval
    }

    fn usage(&self, way: usize) -> Use {
        Use { first: self.used == Some(way), second: self.second == Some(way), hold: self.back }
    }

    pub fn answer(&mut self, now: Time, from: Path, cookie: Cookie, time_us: u64) {
        _ = self.ways.iter_mut().any(|way| way.answer(now, from, cookie, time_us));
    }

    /// What has changed by now.
    pub fn review(&mut self, now: Time, detection: Duration) -> Vec<News> {
        let mut news = Vec::new();
        for (n, way) in self.ways.iter_mut().enumerate() {
            let up = way.path.is_some() && now < way.heard + detection;
            if way.set_up(now, up) {
                news.push(News::Up(n, up));
            }
            if !way.up && way.silent_next <= now && !way.addresses.is_empty() {
                way.silent_next = now + WAY_SILENT;
                news.push(News::Silent(n));
            }
        }
        news
    }

    /// The ways that work, the best first.
    fn ranked(&self) -> Vec<usize> {
        let mut up: Vec<usize> = (0..self.ways.len()).filter(|n| self.ways[*n].up).collect();
        up.sort_by_key(|n| (self.ways[*n].lossy, self.ways[*n].params.priority));
        up
    }

    /// The ways that are better than the one in use, the best first, and from when on each may be used in its place. All that work are
    /// better than one that does not, and at once.
    fn better(&self) -> impl Iterator<Item = (usize, Option<Time>)> {
        let works = self.used.is_some_and(|used| self.ways[used].up);
        let better = self.ranked().into_iter().take_while(|n| Some(*n) != self.used);
        better.map(move |n| (n, works.then(|| self.ways[n].steady_at())))
    }

    /// Chooses; gives the way to move to, if it is another. `second` is chosen with it.
    pub fn choose(&mut self, now: Time) -> Option<Move> {
        let next = self.better().find(|(_, from)| from.is_none_or(|from| from <= now));
        let mut moved = None;
        if let Some((way, _)) = next
            && let Some(path) = self.ways[way].path
        {
            let differ = |of: fn(&Trip) -> i128| {
                self.used.map_or(Duration::ZERO, |used| differ(&self.ways[used], &self.ways[way], of))
            };
            let (hold, back) = (differ(|trip| trip.out), differ(|trip| trip.back));
            (self.used, self.moved, self.back) = (Some(way), now, back);
            moved = Some(Move { way, path, hold });
        }
        self.second = self.ranked().into_iter().find(|n| Some(*n) != self.used);
        moved
    }

    /// When something is due.
    pub fn deadline(&self, now: Time, interval: Duration, detection: Duration, asking: bool) -> Option<Time> {
        let asks = self.ways.iter().enumerate().filter(|(_, way)| asking && !way.candidates().is_empty());
        let asks = asks.map(|(n, way)| way.next(interval, self.hurries(now, interval, n)).max(self.rest));
        let lost = self.ways.iter().filter(|way| way.up).map(|way| way.heard + detection);
        let silent = self.ways.iter().filter(|way| !way.up && !way.addresses.is_empty()).map(|way| way.silent_next);
        let better = self.better().filter_map(|(_, from)| from).filter(|_| asking);
        asks.chain(lost).chain(silent).chain(better).min()
    }

    /// The one in use.
    pub fn used(&self) -> Option<usize> {
        self.used
    }

    /// Where that leads.
    pub fn used_path(&self) -> Option<Path> {
        self.ways.get(self.used?)?.path
    }

    /// Where the peer has answered, on each way.
    pub fn answered(&self) -> impl Iterator<Item = Path> {
        self.ways.iter().filter_map(|way| way.path)
    }

    pub fn status(&self) -> Vec<WayStatus> {
        let show = |(n, way): (usize, &Way)| WayStatus {
            peer: way.path.map(|path| path.peer).or(way.addresses.first().copied()),
            up: way.up,
            since: way.since,
            used: self.used == Some(n),
            rtt: way.rtt.filter(|_| way.up),
            loss: way.loss(),
        };
        self.ways.iter().enumerate().map(show).collect()
    }
}

/// How much longer the old way takes than the new one, in the direction that `of` picks. No two clocks need agree: the
/// difference between them is in both.
fn differ(old: &Way, new: &Way, of: impl Fn(&Trip) -> i128) -> Duration {
    let (slowest, fastest) = (old.trips.iter().map(&of).max(), new.trips.iter().map(&of).min());
    let ns = slowest.zip(fastest).map_or(0, |(slowest, fastest)| slowest - fastest);
    let ns = ns.saturating_add(WAY_HOLD_MIN.as_nanos() as i128);
    Duration::from_nanos(u64::try_from(ns).unwrap_or_default()).min(WAY_HOLD_MAX)
}

/// What the end that leads says of a way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// It sends there.
    pub first: bool,
    /// It is the second best.
    pub second: bool,
    /// How long the peer has to wait with what it sends there.
    pub hold: Duration,
}

//! What must never happen, seen from outside the protocol: each broken promise is a panic that names it.

use super::{end::End, trace::fingerprint};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};
use tieline::protocol::{
    Path,
    constants::{MAX_ANSWERED, MIN_TRANSPORT, PATH_CHECKS, SESSION_LIFE},
    control::State,
    link::{KeysInUse, Status, WayStatus},
    wire::Kind,
};

/// A transport datagram's name: index, lane, counter.
type Name = (u32, u8, u64);

/// A session's rank: epoch, whether the end with the lower key began, and the pair of keys, the lower first.
type Rank = (u32, bool, [[u8; 32]; 2]);

/// Reads the name off a transport datagram's header.
pub fn name(datagram: &[u8]) -> Option<Name> {
    if datagram.len() < MIN_TRANSPORT || !matches!(Kind::of(datagram), Some(Kind::Data | Kind::Control)) {
        return None;
    }
    let index = u32::from_be_bytes(datagram[4..8].try_into().ok()?);
    let counter = u64::from_be_bytes(datagram[8..16].try_into().ok()?);
    Some((index, datagram[2], counter))
}

/// The length of a sealed PathCheck or PathAnswer.
const PATH_CHECK: usize = 12 + MIN_TRANSPORT;
/// The length of a sealed WayCheck or WayAnswer.
const WAY_CHECK: usize = 20 + MIN_TRANSPORT;

/// What one process did so far, as the world saw it.
pub struct ProcessWatch {
    /// Whether what is handled now makes this end the initiator of a session that comes of it.
    begins: bool,
    /// That of `cur`.
    rank: Option<Rank>,
    /// Sessions the ingress loop was given and not yet told to forget.
    held: BTreeSet<u32>,
    sealed: HashSet<Name>,
    opened: HashSet<Name>,
    /// Addresses that proved they read what is sent to them, or that config names.
    proven: BTreeSet<SocketAddr>,
    /// Bytes of cold-open answers sent less bytes received.
    owed: BTreeMap<SocketAddr, i64>,
    /// When checks went to addresses that are not proven.
    checked: Vec<(u64, SocketAddr)>,
    /// Timeouts handled in this second of the world.
    timeouts: (u64, u32),
}

impl ProcessWatch {
    /// The most timeouts one end may handle in a second.
    const TIMEOUTS: u32 = 1_000;

    /// boot, cur, prev, and those in `answered`.
    const SESSIONS: usize = 3 + MAX_ANSWERED;
    /// The most that may follow from one thing that happens.
    const OUTPUTS: usize = 40;

    pub fn new() -> ProcessWatch {
        ProcessWatch {
            begins: false,
            rank: None,
            held: BTreeSet::new(),
            sealed: HashSet::new(),
            opened: HashSet::new(),
            proven: BTreeSet::new(),
            owed: BTreeMap::new(),
            checked: Vec::new(),
            timeouts: (0, 0),
        }
    }

    /// A timeout is handled.
    pub fn timeout(&mut self, now: u64) {
        let second = now / 1_000_000_000;
        self.timeouts = if self.timeouts.0 == second { (second, self.timeouts.1 + 1) } else { (second, 1) };
        assert!(self.timeouts.1 <= Self::TIMEOUTS, "the timer spins: {} calls in second {second}", self.timeouts.1);
    }

    /// The engine is about to handle something; a Response or an M2 makes this end an initiator.
    pub fn handles(&mut self, begins: bool) {
        self.begins = begins;
    }

    /// A session came into use.
    pub fn session(&mut self, epoch: u32, keys: KeysInUse) {
        let mut pair = [*keys.own.as_bytes(), *keys.peer.as_bytes()];
        let lower_key = pair[0] < pair[1];
        pair.sort_unstable();
        let rank = Some((epoch, self.begins == lower_key, pair));
        assert!(rank > self.rank, "cur fell in rank from {:?} to {rank:?}", self.rank);
        self.rank = rank;
    }

    /// The rank of the session that came into use last.
    pub fn rank(&self) -> Option<Rank> {
        self.rank
    }

    /// The ingress loop was given a session.
    pub fn installed(&mut self, index: u32) {
        assert!(self.held.insert(index), "two sessions have the index {index:08x}");
    }

    /// It was told to forget one.
    pub fn removed(&mut self, index: u32) {
        assert!(self.held.remove(&index), "the session {index:08x} is removed that was not there");
    }

    /// The indices of the sessions the ingress loop has.
    pub fn held(&self) -> &BTreeSet<u32> {
        &self.held
    }

    /// Everything the engine had to say of one event was carried out.
    pub fn settled(&mut self, outputs: usize) {
        assert!(self.held.len() <= Self::SESSIONS, "{} sessions are held", self.held.len());
        assert!(outputs <= Self::OUTPUTS, "{outputs} outputs of one event");
    }

    /// A datagram arrived from `from`.
    pub fn received(&mut self, from: SocketAddr, len: usize) {
        *self.owed.entry(from).or_default() -= len as i64;
    }

    /// Config or the resolver name these addresses, or a PathAnswer proved one.
    pub fn named(&mut self, addresses: &[SocketAddr]) {
        self.proven.extend(addresses);
    }

    /// A datagram leaves for `path`.
    pub fn sent(&mut self, now: u64, path: Path, datagram: &[u8]) {
        let to = path.peer;
        if let Some(name) = name(datagram) {
            assert!(
                self.sealed.insert(name),
                "nonce used twice: index {:08x} lane {} counter {}",
                name.0,
                name.1,
                name.2
            );
        }
        match Kind::of(datagram) {
            Some(Kind::Challenge | Kind::Response) => {
                let owed = self.owed.entry(to).or_default();
                *owed += datagram.len() as i64;
                assert!(*owed <= 0, "{to} was answered with {owed} bytes more than came from it");
                if Kind::of(datagram) == Some(Kind::Response) {
                    self.proven.insert(to); // its Init carried our token
                }
            }
            Some(Kind::Knock | Kind::Init) => {
                assert!(self.proven.contains(&to), "knocked at {to}, which nobody named");
            }
            Some(Kind::Control) if datagram.len() == WAY_CHECK && !self.proven.contains(&to) => {
                let owed = self.owed.entry(to).or_default();
                *owed += datagram.len() as i64;
                assert!(*owed <= 0, "{to} got {owed} bytes more than came from it");
            }
            Some(Kind::Data | Kind::Control) if !self.proven.contains(&to) => {
                assert_eq!(datagram.len(), PATH_CHECK, "more than a path check to {to}, which is not proven");
                self.checked.retain(|(at, _)| now - at < 550_000_000); // three checks take at least 600 ms
                self.checked.push((now, to));
                let checks = self.checked.iter().filter(|(_, address)| *address == to).count();
                assert!(checks <= usize::from(PATH_CHECKS), "{checks} path checks to {to} in half a second");
            }
            Some(Kind::Data | Kind::Control) => {}
            None => panic!("a datagram of no known kind was sent"),
        }
    }

    /// The end's clock leapt, by which it spaces its path checks.
    pub fn leapt(&mut self) {
        self.checked.clear();
    }

    /// A transport datagram was opened.
    pub fn opened(&mut self, datagram: &[u8]) {
        if let Some(name) = name(datagram) {
            assert!(self.opened.insert(name), "opened twice: index {:08x} lane {} counter {}", name.0, name.1, name.2);
        }
    }

    /// Looks at what the process says of itself, after every event.
    pub fn look(&mut self, status: &Status, ways: &[WayStatus]) {
        let used = ways.iter().find(|way| way.used && way.up && status.session.is_some());
        if let Some(way) = used {
            let peer = status.path.map(|path| path.peer);
            assert_eq!(
                way.peer, peer,
                "the peer answers at one address on the way in use, and the line goes to another"
            );
        }
        if let Some(session) = status.session {
            assert_eq!(Some(session.epoch), self.rank.map(|rank| rank.0), "another session is in use than was said");
        } else {
            assert_ne!(status.state, State::Up, "Up without a session");
        }
    }
}

/// User frames, from end to end.
#[derive(Default)]
pub struct Frames {
    /// By its fingerprint: who sent it.
    sent: HashMap<u64, usize>,
    delivered: HashSet<u64>,
    /// Whether they must come in the order in which they were sent, and the last that came to each end.
    pub ordered: bool,
    last: [u64; 2],
}

impl Frames {
    /// `from` seals this frame now.
    pub fn sealed(&mut self, now: u64, from: usize, ends: &[End; 2], frame: &[u8]) {
        let hybrid = ends.iter().any(|end| end.setup.params.post_quantum);
        let session = ends[from].status().and_then(|status| status.session);
        let session = session.expect("user data was sealed with no session in use");
        assert!(session.post_quantum || !hybrid, "user data was sealed in a session that is not hybrid");
        let age = ends[from].time(now).since(session.established);
        assert!(
            age <= SESSION_LIFE || !ends[from].setup.lateness.is_zero(),
            "user data was sealed under keys {age:?} old"
        );
        self.sent.insert(fingerprint(frame), from);
    }

    /// `to` got this frame.
    pub fn delivered(&mut self, to: usize, frame: &[u8]) {
        if self.ordered {
            let number = u64::from_be_bytes(frame[..8].try_into().expect("a number"));
            assert!(number > self.last[to], "frame {number} came after {}", self.last[to]);
            self.last[to] = number;
        }
        let frame = fingerprint(frame);
        assert_eq!(self.sent.get(&frame), Some(&(1 - to)), "a frame was delivered that the other end had not sent");
        assert!(self.delivered.insert(frame), "a frame was delivered twice");
    }
}

//! The two halves of a link that the packet loops own: [`Sender`] seals what leaves, [`Receiver`] opens what comes.
//!
//! They are told what to do by updates that the engine hands out in order, and tell the engine by levels; what must
//! wake it is a [`Notice`]. A notice that is lost is given again: nothing waits for one.

use super::{
    constants::*,
    crypto::MacKey,
    gate::Gate,
    levels::Levels,
    session::{LaneSealer, OpenError, Opening, SealError},
    time::Time,
    wire::{ColdCheck, Header, Kind, check_cold, data_flags},
};
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// One of the link's UDP sockets: 0 is the first, another is opened when nothing answers for long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u8);

/// Where a datagram came from or goes: from which socket and own address, and which address of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// The local socket.
    pub socket: SocketId,
    /// The own address a datagram came to, or must leave from; `None` leaves it to the routing table.
    pub local: Option<IpAddr>,
    /// The peer's address; never an IPv4-mapped one.
    pub peer: SocketAddr,
}

impl Path {
    /// Whether it is between the same socket and the same address of the peer's, from whichever own address.
    #[must_use]
    pub fn same_ends(self, other: Path) -> bool {
        (self.socket, self.peer) == (other.socket, other.peer)
    }
}

/// What the engine hands to the egress loop.
pub enum EgressUpdate {
    /// Seal under this session from now on; `None` stops user data.
    Session(Option<Box<LaneSealer>>),
    /// Send there from now on, and on one path alone.
    Path(Option<Path>),
    /// Send every datagram there too, after the path: the same bytes, of which the peer takes what comes first.
    Second(Option<Path>),
    /// Take no frames until the next [`EgressUpdate::Path`]: what was sent last is to arrive before what comes by a faster path.
    Hold,
    /// A datagram may have so many bytes at most; frames for which that is too few are cut, where that is agreed.
    Limit(u16),
    /// Seal one empty datagram: NAT mappings and counters stay alive on a line without traffic.
    Keepalive,
}

/// The egress half: seals user frames of one lane.
pub struct Sender {
    sealer: Option<Box<LaneSealer>>,
    path: Option<Path>,
    second: Option<Path>,
    held: bool,
    limit: u16,
    keepalive: bool,
    levels: Arc<Levels>,
}

impl Sender {
    pub(crate) fn new(levels: Arc<Levels>) -> Sender {
        Sender { sealer: None, path: None, second: None, held: false, limit: u16::MAX, keepalive: false, levels }
    }

    /// Takes an update; looked for once a batch.
    pub fn apply(&mut self, update: EgressUpdate) {
        match update {
            EgressUpdate::Session(sealer) => self.sealer = sealer,
            EgressUpdate::Path(path) => (self.path, self.second, self.held) = (path, None, false),
            EgressUpdate::Second(path) => self.second = path,
            EgressUpdate::Hold => self.held = true,
            EgressUpdate::Limit(limit) => {
                self.limit = limit;
                self.levels.largest.set(limit.into());
            }
            EgressUpdate::Keepalive => self.keepalive = true,
        }
    }

    /// Where sealed datagrams go.
    #[must_use]
    pub fn path(&self) -> Option<Path> {
        self.path
    }

    /// Where each of them goes as well.
    #[must_use]
    pub fn second(&self) -> Option<Path> {
        self.second
    }

    /// Whether frames are to wait where they are.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Whether an empty datagram was asked for since the last call.
    pub fn take_keepalive(&mut self) -> bool {
        std::mem::take(&mut self.keepalive)
    }

    /// Whether the session in use lets inner checksums be partial.
    #[must_use]
    pub fn partial_checksum(&self) -> bool {
        self.sealer.as_ref().is_some_and(|sealer| sealer.flags() & data_flags::PARTIAL_CHECKSUM != 0)
    }

    /// The most bytes of a frame that go into one datagram: a longer frame is to be cut into pieces, each sealed with its flags of
    /// [`data_flags::PIECE`], in order and with nothing between them.
    #[must_use]
    pub fn longest(&self) -> usize {
        match &self.sealer {
            Some(sealer) if sealer.flags() & data_flags::PIECE != 0 => usize::from(self.limit) - MIN_TRANSPORT,
            // The other end would not know what to do with pieces.
            _ => usize::MAX,
        }
    }

    /// Seals one frame in place: `datagram` is [`HEADER`] bytes of room, the frame, [`TAG`] bytes of room.
    ///
    /// # Errors
    /// [`SealError`]; the frame is counted in [`super::levels::Drops::no_session`] and must not be sent.
    pub fn seal(&mut self, flags: u8, datagram: &mut [u8]) -> Result<(), SealError> {
        let sealed = match &mut self.sealer {
            Some(sealer) if self.path.is_some() => sealer.seal(flags, datagram),
            _ => Err(SealError::NoSession),
        };
        if sealed.is_err() {
            self.levels.drops.no_session.bump();
        }
        sealed
    }

    /// Says that what was sealed has been handed to the socket; once a batch.
    ///
    /// Reports count what has left. A Report overtakes what is sealed and still waits for its turn, and the peer would take
    /// that for lost.
    pub fn handed_over(&mut self) {
        if let Some(sealer) = &mut self.sealer {
            sealer.handed_over();
        }
    }
}

/// What the engine hands to the ingress loop.
pub enum IngressUpdate {
    /// Open this session's datagrams too. Applied before the datagram that lets the peer use it is sent.
    Install(Box<Opening>),
    /// Forget the session with this index.
    Remove(u32),
    /// Take cold-open datagrams whose MAC is right under one of these, and no others. Applied before the Knock that lets the
    /// peer use a new one is sent.
    Keys(Vec<MacKey>),
    /// The session all is sent under, and the path: what comes from elsewhere is news.
    Current {
        /// Its index; `None` when there is no such session.
        session: Option<u32>,
        /// Where this end sends.
        path: Option<Path>,
    },
}

/// What the ingress half wants the engine to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The first datagram under this session was opened.
    Opened {
        /// Its index.
        session: u32,
    },
    /// The newest datagram of `cur` came from or to another address than the one used.
    Moved {
        /// The session's index.
        session: u32,
        /// Where it came from and to.
        path: Path,
    },
    /// A cold-open datagram whose MAC is not the peer's.
    Stranger {
        /// Where it came from.
        source: SocketAddr,
    },
}

/// What became of a received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A user frame: the plaintext is `datagram[HEADER..len - TAG]`.
    Frame {
        /// The header's flags.
        flags: u8,
    },
    /// A piece of a cut frame, which the pieces with neighbouring counters make whole; it lies as a frame does.
    Piece {
        /// The header's flags.
        flags: u8,
        /// The index of the session it was opened under.
        session: u32,
        /// Its counter.
        counter: u64,
    },
    /// A cold-open datagram whose MAC is right, and not one of too many: the whole of it is for the engine.
    Cold,
    /// A control message: the plaintext is `datagram[HEADER..len - TAG]`, for the engine.
    Control {
        /// The index of the session it was opened under.
        session: u32,
        /// Its counter.
        counter: u64,
    },
    /// A keepalive, or dropped and counted.
    Nothing,
}

/// How long the same news is not repeated.
const MOVED_SPACING: Duration = Duration::from_millis(200);

/// The ingress half: opens what comes, and sorts it.
pub struct Receiver {
    keys: Vec<MacKey>,
    gate: Gate,
    sessions: Vec<Opening>,
    current: Option<u32>,
    path: Option<Path>,
    levels: Arc<Levels>,
    notices: VecDeque<Notice>,
    candidate_after: Time,
    moved_after: Time,
    stranger_after: Time,
}

impl Receiver {
    pub(crate) fn new(keys: Vec<MacKey>, levels: Arc<Levels>) -> Receiver {
        Receiver {
            keys,
            gate: Gate::new(),
            sessions: Vec::new(),
            current: None,
            path: None,
            levels,
            notices: VecDeque::with_capacity(8),
            candidate_after: Time(0),
            moved_after: Time(0),
            stranger_after: Time(0),
        }
    }

    /// Takes an update; looked for once a batch, before anything of the batch is opened.
    pub fn apply(&mut self, update: IngressUpdate) {
        match update {
            IngressUpdate::Install(opening) => {
                self.sessions.retain(|s| s.index != opening.index);
                self.sessions.push(*opening);
            }
            IngressUpdate::Remove(index) => self.sessions.retain(|s| s.index != index),
            IngressUpdate::Keys(keys) => self.keys = keys,
            IngressUpdate::Current { session, path } => (self.current, self.path) = (session, path),
        }
    }

    /// Sorts one datagram, opening it in place if it is a transport datagram.
    pub fn receive(&mut self, now: Time, path: Path, datagram: &mut [u8]) -> Received {
        match Kind::of(datagram) {
            Some(Kind::Data | Kind::Control) => self.transport(now, path, datagram),
            _ => self.cold(now, path, datagram),
        }
    }

    /// The next thing the engine should look at; asked after each batch.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    fn cold(&mut self, now: Time, path: Path, datagram: &[u8]) -> Received {
        if self.gate.is_one_copy_too_many(datagram) {
            return self.drop(|d| &d.replayed);
        }
        match self.check_cold(datagram) {
            ColdCheck::Authentic if self.gate.admits(now, datagram) => return Received::Cold,
            ColdCheck::Authentic => return self.drop(|d| &d.replayed),
            ColdCheck::Malformed => self.levels.drops.malformed.bump(),
            ColdCheck::Unauthentic => {
                self.levels.drops.unauthentic.bump();
                if now >= self.stranger_after {
                    self.stranger_after = now + NOTICE_SPACING;
                    self.notice(Notice::Stranger { source: path.peer });
                }
            }
        }
        Received::Nothing
    }

    /// Under two or three keys where the ends change theirs, else under one.
    fn check_cold(&self, datagram: &[u8]) -> ColdCheck {
        let checks = self.keys.iter().map(|key| check_cold(datagram, key));
        checks
            .reduce(|found, next| if found == ColdCheck::Unauthentic { next } else { found })
            .unwrap_or(ColdCheck::Unauthentic)
    }

    fn transport(&mut self, now: Time, path: Path, datagram: &mut [u8]) -> Received {
        let Ok(header) = Header::parse(datagram) else {
            self.levels.drops.malformed.bump();
            return Received::Nothing;
        };
        let Some(session) = self.sessions.iter_mut().find(|s| s.index == header.index) else {
            self.levels.drops.no_session.bump();
            return Received::Nothing;
        };
        let opened = match header.kind {
            Kind::Data => session.open_data(header, datagram),
            _ if header.lane == CONTROL_LANE => Some(session.open_control(header.counter, datagram)),
            _ => None,
        };
        match opened {
            Some(Ok(newest)) => {
                let first = session.levels().opened.get() == 0;
                session.levels().hear(now);
                self.note(now, path, header.index, first, newest);
                sort(header, datagram.len())
            }
            Some(Err(OpenError::Replayed(_))) => self.drop(|d| &d.replayed),
            Some(Err(OpenError::Unauthentic)) => self.drop(|d| &d.unauthentic),
            None => self.drop(|d| &d.malformed),
        }
    }

    fn drop(&self, which: impl Fn(&super::levels::Drops) -> &super::levels::Counter) -> Received {
        which(&self.levels.drops).bump();
        Received::Nothing
    }

    /// Tells the engine what an opened datagram means beyond its contents.
    fn note(&mut self, now: Time, path: Path, session: u32, first: bool, newest: bool) {
        if first {
            self.notice(Notice::Opened { session });
        }
        if !newest || self.current != Some(session) || self.path == Some(path) {
            return;
        }
        let same_peer = self.path.is_some_and(|p| p.peer == path.peer);
        let (after, spacing) = if same_peer {
            (&mut self.moved_after, MOVED_SPACING)
        } else {
            (&mut self.candidate_after, CANDIDATE_SPACING)
        };
        if now >= *after {
            *after = now + spacing;
            self.notice(Notice::Moved { session, path });
        }
    }

    fn notice(&mut self, notice: Notice) {
        if self.notices.len() < self.notices.capacity() {
            self.notices.push_back(notice);
        }
    }
}

/// Where an opened datagram goes.
fn sort(header: Header, len: usize) -> Received {
    match header.kind {
        Kind::Control => Received::Control { session: header.index, counter: header.counter },
        _ if len == MIN_TRANSPORT => Received::Nothing,
        _ if header.flags & data_flags::PIECE != 0 => {
            Received::Piece { flags: header.flags, session: header.index, counter: header.counter }
        }
        _ => Received::Frame { flags: header.flags },
    }
}

/// What the loops put into the engine's mailbox, owned and of bounded size.
#[derive(Clone, Debug)]
pub enum Input {
    /// A cold-open datagram whose MAC is right.
    Cold {
        /// Where it came from and to.
        path: Path,
        /// The whole datagram.
        datagram: Small,
    },
    /// An opened control message.
    Control {
        /// Where it came from and to.
        path: Path,
        /// The index of the session it was opened under.
        session: u32,
        /// Its counter.
        counter: u64,
        /// The plaintext.
        message: Small,
    },
    /// See [`Notice`].
    Notice(Notice),
}

/// Up to [`Small::MAX`] bytes, inline: a mailbox of these never allocates.
#[derive(Clone)]
pub struct Small {
    bytes: [u8; Small::MAX],
    len: u16,
}

impl Small {
    /// The longest control message: a Report of 16 lanes has 664 bytes. Probes are longer, and cut: what follows
    /// their head means nothing.
    pub const MAX: usize = 680;

    /// Copies the first [`Small::MAX`] bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Small {
        let len = bytes.len().min(Small::MAX);
        let mut small = Small { bytes: [0; Small::MAX], len: len as u16 };
        small.bytes[..len].copy_from_slice(&bytes[..len]);
        small
    }
}

impl std::ops::Deref for Small {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Small {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        session::{Halves, Shape},
        vectors::Listed,
        wire::data_flags::{FIRST_PIECE, PARTIAL_CHECKSUM},
    };

    const PATH: Path =
        Path { socket: SocketId(0), local: None, peer: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1) };

    /// Lets `a` seal under what it agreed to and `b` receive under what it did.
    fn pass(agreed: [bool; 2], flags: u8) -> Result<(Received, u64), SealError> {
        let listed = Listed::named("first hybrid");
        let [mut at_a, at_b] = ["a", "b"].map(|end| {
            let partial_checksum = agreed[usize::from(end == "b")];
            Halves::derive(&listed.root(), &Shape { partial_checksum, ..listed.shape(end) }).unwrap()
        });
        let levels: Arc<Levels> = Arc::default();
        let mut sender = Sender::new(levels.clone());
        sender.apply(EgressUpdate::Session(Some(Box::new(at_a.sealers.remove(0)))));
        sender.apply(EgressUpdate::Path(Some(PATH)));
        assert_eq!(sender.partial_checksum(), agreed[0]);
        let mut receiver = Receiver::new(vec![MacKey::new(&[0; 32])], levels.clone());
        receiver.apply(IngressUpdate::Install(at_b.opening));
        let mut datagram = [0; HEADER + 40 + TAG];
        sender.seal(flags, &mut datagram)?;
        Ok((receiver.receive(Time(1), PATH, &mut datagram), levels.drops.malformed.get()))
    }

    /// What a sender cuts frames to, and what becomes of a piece, where both ends agreed to cutting or neither did.
    fn cut(agreed: bool) -> (usize, Result<Received, SealError>) {
        let listed = Listed::named("first hybrid");
        let [mut at_a, at_b] = ["a", "b"]
            .map(|end| Halves::derive(&listed.root(), &Shape { cut_frames: agreed, ..listed.shape(end) }).unwrap());
        let levels: Arc<Levels> = Arc::default();
        let mut sender = Sender::new(levels.clone());
        sender.apply(EgressUpdate::Limit(1_200));
        assert_eq!(sender.longest(), usize::MAX, "no session yet");
        sender.apply(EgressUpdate::Session(Some(Box::new(at_a.sealers.remove(0)))));
        sender.apply(EgressUpdate::Path(Some(PATH)));
        let mut receiver = Receiver::new(vec![MacKey::new(&[0; 32])], levels);
        receiver.apply(IngressUpdate::Install(at_b.opening));
        let mut datagram = [0; HEADER + 40 + TAG];
        let sealed = sender.seal(FIRST_PIECE, &mut datagram);
        (sender.longest(), sealed.map(|()| receiver.receive(Time(1), PATH, &mut datagram)))
    }

    #[test]
    fn a_path_ends_a_hold_and_a_second_path_and_nothing_else_does() {
        let second = Path { socket: SocketId(1), ..PATH };
        let mut sender = Sender::new(Arc::default());
        assert!(!sender.is_held());
        for path in [Some(PATH), None] {
            let others = [EgressUpdate::Limit(1_400), EgressUpdate::Keepalive, EgressUpdate::Session(None)];
            for update in [EgressUpdate::Hold, EgressUpdate::Second(Some(second))].into_iter().chain(others) {
                sender.apply(update);
                assert!(sender.is_held());
            }
            assert_eq!(sender.second(), Some(second));
            sender.apply(EgressUpdate::Path(path));
            assert_eq!((sender.is_held(), sender.path(), sender.second()), (false, path, None));
        }
        sender.apply(EgressUpdate::Second(Some(second)));
        sender.apply(EgressUpdate::Second(None));
        assert_eq!(sender.second(), None);
    }

    #[test]
    fn frames_are_cut_only_where_that_was_agreed() {
        let (longest, received) = cut(true);
        assert_eq!(longest, 1_168);
        assert!(matches!(received, Ok(Received::Piece { flags: FIRST_PIECE, counter: 0, .. })), "{received:?}");
        assert_eq!(cut(false), (usize::MAX, Err(SealError::NotAgreed)));
    }

    #[test]
    fn the_partial_bit_is_sealed_and_taken_only_where_it_was_agreed() {
        assert_eq!(pass([true, true], PARTIAL_CHECKSUM), Ok((Received::Frame { flags: PARTIAL_CHECKSUM }, 0)));
        assert_eq!(pass([true, true], 0), Ok((Received::Frame { flags: 0 }, 0)));
        assert_eq!(pass([false, false], 0), Ok((Received::Frame { flags: 0 }, 0)));
        assert_eq!(pass([false, false], PARTIAL_CHECKSUM), Err(SealError::NotAgreed));
        assert_eq!(pass([true, false], PARTIAL_CHECKSUM), Ok((Received::Nothing, 1)));
    }
}

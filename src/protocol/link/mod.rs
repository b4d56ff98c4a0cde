//! The engine: one end of a link, without a clock, a socket or a thread.
//!
//! Call order: one `handle_*`, then [`Link::poll_output`] until it is empty, each output carried out in order (keys
//! reach the ingress loop before the datagram that lets the peer use them), then [`Link::poll_timeout`]. So two ends
//! run in virtual time inside one test, and any failure is a seed.
//!
//! `open.rs` has the cold open in both roles, `called.rs` what is said of those who call, `sessions.rs` what becomes of
//! sessions and their rekeys, `upkeep.rs` reports, liveness and paths, `ways.rs` where there is more than one, `path_mtu.rs` what the path carries, `rotation.rs` what a change of keys brings with it.

mod called;
mod open;
mod output;
mod path_mtu;
mod rotation;
mod sessions;
mod upkeep;
#[cfg(test)]
mod vectors;
mod ways;

pub use super::agreement::LinkMtu;
pub use super::same_key::{SameKey, Whose};
use super::{
    admission::Admission,
    constants::*,
    control::State,
    crypto::{CryptoFailure, Entropy},
    halves::{EgressUpdate, IngressUpdate, Input, Notice, Path, Receiver, Sender, SocketId},
    hold::Hold,
    keyring::{Keyring, Keys, PairId, Psk},
    levels::Levels,
    liveness::Liveness,
    measure::Measure,
    mtu::Found,
    paths::Paths,
    same_key::Watch,
    session::Cipher,
    slots::Slots,
    time::Time,
    wire::cipher_bits,
};
use crate::keys::PublicKey;
use called::Called;
use open::{Attempt, Opener};
pub use output::{ColdStep, DownCause, Event, Output, Transmit};
use path_mtu::Sizes;
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use thiserror::Error;
use ways::Choice;

/// How one end is set up, beyond its keys.
#[derive(Clone, Debug)]
pub struct Params {
    /// Whether AES-256-GCM is offered: where config allows it and the CPU has the instructions.
    pub aes: bool,
    /// Whether ChaCha20-Poly1305 is offered.
    pub chacha: bool,
    /// Whether this end asks for hybrid post-quantum keys; either end's wish is enough.
    pub post_quantum: bool,
    /// Whether this end cuts frames that are larger than what the path carries, and puts them together; both must.
    pub cut_frames: bool,
    /// Whether this end can take and give packets whose TCP or UDP checksum is partial; both must.
    pub partial_checksum: bool,
    /// Whether the link carries Ethernet frames; at both ends, or at neither.
    pub ethernet: bool,
    /// The report interval, 50 ms to 60 s.
    pub interval: Duration,
    /// The ways to the peer that config names, at most [`MAX_WAYS`]; none where there is but one.
    pub ways: Vec<WayParams>,
    /// Whether user data goes on the two best ways at once.
    pub duplicate: bool,
    /// When sessions are rekeyed.
    pub rekey: RekeyTimes,
}

/// One of the ways to the peer that config names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayParams {
    /// The socket that is tied to its uplink, or that all ways share.
    pub socket: SocketId,
    /// Of the ways that work the one with the lowest is used; of equal ones the first.
    pub priority: u32,
}

/// What can be seen of a way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WayStatus {
    /// The peer's address on it, where it answered last or is looked for.
    pub peer: Option<SocketAddr>,
    /// Whether the peer answers there.
    pub up: bool,
    /// Since when it does, or does not.
    pub since: Time,
    /// Whether user data goes there.
    pub used: bool,
    /// The smoothed round-trip time of its checks.
    pub rtt: Option<Duration>,
    /// The share of its checks that was not answered lately, 0 to 1.
    pub loss: Option<f64>,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            aes: true,
            chacha: true,
            post_quantum: true,
            cut_frames: true,
            partial_checksum: true,
            ethernet: false,
            interval: Duration::from_secs(1),
            ways: Vec::new(),
            duplicate: false,
            rekey: RekeyTimes::default(),
        }
    }
}

impl Params {
    fn interval_ms(&self) -> u32 {
        let ms = u32::try_from(self.interval.as_millis()).unwrap_or(u32::MAX);
        ms.clamp(INTERVAL_MIN_MS, INTERVAL_MAX_MS)
    }

    fn ciphers(&self) -> u8 {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        bit(self.aes, cipher_bits::AES_256_GCM) | bit(self.chacha, cipher_bits::CHACHA20_POLY1305)
    }
}

/// When the two ends of a session start to rekey it. Other values than the default are for tests.
#[derive(Clone, Copy, Debug)]
pub struct RekeyTimes {
    /// The session's initiator.
    pub initiator: Duration,
    /// The session's responder, if nothing came by then.
    pub responder: Duration,
}

impl Default for RekeyTimes {
    fn default() -> RekeyTimes {
        RekeyTimes { initiator: REKEY_INITIATOR, responder: REKEY_RESPONDER }
    }
}

/// Why a link cannot be set up.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SetupError {
    /// Both ends would be the same one.
    #[error("the peer's public key is this end's own")]
    OwnKey,
    /// X25519 with the peer's key gives nothing.
    #[error("the peer's public key is a low-order point")]
    PeerKey,
    /// An end has one or two keys of its peer's, and at most two preshared keys.
    #[error("there must be one or two public keys of the peer, and at most two preshared keys")]
    Count,
    /// A primitive failed.
    #[error(transparent)]
    Crypto(#[from] CryptoFailure),
}

/// What can be seen of the session in use.
#[derive(Clone, Copy, Debug)]
pub struct SessionStatus {
    /// Its AEAD.
    pub cipher: Cipher,
    /// Whether ML-KEM went into its keys.
    pub post_quantum: bool,
    /// Its epoch.
    pub epoch: u32,
    /// Since when it is established.
    pub established: Time,
    /// The keys it was made with.
    pub keys: KeysInUse,
}

/// The keys a session was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeysInUse {
    /// This end's public key.
    pub own: PublicKey,
    /// The peer's.
    pub peer: PublicKey,
    /// The preshared key's place in the list, from 1; `None` without one.
    pub preshared: Option<usize>,
}

/// What can be seen of a link.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// The liveness state.
    pub state: State,
    /// Since when.
    pub since: Time,
    /// The state the peer said last; none while it is not heard.
    pub peer_state: Option<State>,
    /// Until when the peer holds the link back, as far as it said; it still does until this is `None`.
    pub held_by_peer: Option<Time>,
    /// Silence that takes the link Down: three intervals, of this end's until a session is there, then of the longer of the two.
    pub detection: Duration,
    /// The session in use.
    pub session: Option<SessionStatus>,
    /// Whether that is under other keys than a new one would be: this end has changed its own, and the peer does not know yet.
    pub waits_for_keys: bool,
    /// Where the line goes.
    pub path: Option<Path>,
    /// The largest datagram that the way to the peer carries, as found.
    pub tx_size: Option<Found>,
    /// That of the way back, as far as the peer's probes show it.
    pub rx_size: Option<Found>,
    /// What the interface is to be held to, as both ends have it; `None` until that is known.
    pub link_mtu: Option<LinkMtu>,
    /// The smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Interarrival jitter of the peer's Reports (RFC 3550 §6.4.1).
    pub jitter: Option<Duration>,
    /// What the far end reports as lost lately, 0 to 1.
    pub tx_loss: Option<f64>,
    /// What was lost lately of what the far end sent, 0 to 1.
    pub rx_loss: Option<f64>,
    /// One key on two machines.
    pub same_key: Option<SameKey>,
}

#[cfg(test)]
impl Status {
    /// That of a link that has just been set up at time 0: what tests of those who show it begin with.
    pub(crate) const FRESH: Status = Status {
        state: State::Down,
        since: Time(0),
        peer_state: None,
        held_by_peer: None,
        detection: Duration::from_secs(3),
        session: None,
        waits_for_keys: false,
        path: None,
        tx_size: None,
        rx_size: None,
        link_mtu: None,
        rtt: None,
        jitter: None,
        tx_loss: None,
        rx_loss: None,
        same_key: None,
    };
}

/// Whether the data lane is idle: what it had sealed when last looked at, the empty datagram asked for then included.
struct Keepalive {
    checked: Time,
    sealed: u64,
}

/// A link being closed.
struct Closing {
    goodbyes_left: u8,
    next: Time,
}

/// One end of a link.
pub struct Link {
    params: Params,
    keys: Keyring,
    /// The pairs whose cold-open datagrams the ingress loop takes.
    taken: Vec<PairId>,
    /// When the link may next try to move to other keys.
    move_after: Time,
    /// The keys of the session that came into use last.
    keys_in_use: Option<(PairId, Psk)>,
    entropy: Box<dyn Entropy>,
    levels: Arc<Levels>,
    outputs: VecDeque<Output>,

    /// Addresses of the peer's that config or the resolver gave.
    addresses: Vec<SocketAddr>,
    /// The newest local port: cold opens go out of it.
    socket: SocketId,
    admission: Admission,
    opener: Opener,
    attempt: Option<Attempt>,
    called: Called,

    slots: Slots,
    /// Whether the egress loop has a session to seal under.
    sealing: bool,
    /// A data session this end opened that it has not heard anything under yet: when to say so again.
    confirm_at: Option<Time>,
    liveness: Liveness,
    hold: Hold,
    measure: Measure,
    paths: Paths,
    ways: Choice,
    sizes: Sizes,
    same_key: Watch,
    report_at: Option<Time>,
    /// When the last two were sent, the older first.
    last_reports: [Option<Time>; 2],
    /// When the silent peer was last asked whether it is there.
    asked: Option<Time>,
    keepalive: Keepalive,
    /// An own address that this machine's routes have left, and until when nothing that still comes to it brings the link back to it.
    left: Option<(IpAddr, Time)>,
    closing: Option<Closing>,
}

impl Link {
    /// Sets up one end, and the two halves for the packet loops.
    ///
    /// # Errors
    /// [`SetupError`] where the keys cannot make a link.
    pub fn new(
        params: Params,
        keys: Keys<'_>,
        mut entropy: Box<dyn Entropy>,
        now: Time,
    ) -> Result<(Link, Sender, Receiver), SetupError> {
        let keys = Keyring::new(keys)?;
        let levels: Arc<Levels> = Arc::default();
        let sender = Sender::new(levels.clone());
        let receiver =
            Receiver::new(keys.pairs.iter().map(|pair| pair.keys.receiving.clone()).collect(), levels.clone());
        let link = Link {
            taken: keys.pairs.iter().map(|pair| pair.id()).collect(),
            keys,
            move_after: now,
            keys_in_use: None,
            admission: Admission::new(&mut *entropy)?,
            entropy,
            levels,
            outputs: VecDeque::new(),
            addresses: Vec::new(),
            socket: SocketId(0),
            opener: Opener::new(now),
            attempt: None,
            called: Called::new(now),
            slots: Slots::default(),
            sealing: false,
            confirm_at: None,
            liveness: Liveness::new(now),
            hold: Hold::default(),
            measure: Measure::default(),
            paths: Paths::default(),
            ways: Choice::new(now, &params.ways),
            sizes: Sizes::new(),
            same_key: Watch::default(),
            report_at: None,
            last_reports: [None; 2],
            asked: None,
            keepalive: Keepalive { checked: now, sealed: 0 },
            left: None,
            closing: None,
            params,
        };
        Ok((link, sender, receiver))
    }

    /// The counters all of this link's parts share.
    #[must_use]
    pub fn levels(&self) -> Arc<Levels> {
        self.levels.clone()
    }

    /// Takes what a packet loop put into the mailbox.
    pub fn handle_input(&mut self, now: Time, input: Input) {
        if self.closing.is_some() {
            return; // a closing end answers nothing
        }
        match input {
            Input::Cold { path, datagram } => self.on_cold(now, path, &datagram),
            Input::Control { path, session, counter, message } => {
                self.on_control(now, path, session, counter, &message);
            }
            Input::Notice(Notice::Opened { session }) => self.on_opened(now, session),
            Input::Notice(Notice::Moved { session, path }) => self.on_moved(now, session, path),
            Input::Notice(Notice::Stranger { source }) => self.doubt(now, source),
        }
        self.settle(now);
    }

    /// Takes the peer's addresses as config or the resolver gives them, in order of preference: on this way, by its place in
    /// [`Params::ways`]; or the link's, where there are none. An empty list leaves those before in force: a name that is gone does not
    /// say that the peer is.
    pub fn handle_addresses(&mut self, now: Time, way: usize, addresses: &[SocketAddr]) {
        if addresses.is_empty() {
            return;
        }
        match self.params.ways.is_empty() {
            true => self.addresses = addresses.to_vec(),
            false => self.ways.own.set_addresses(way, addresses),
        }
        self.knock_anew();
        self.settle(now);
    }

    /// Takes a new local port, asked for by [`Event::WantSocket`].
    pub fn handle_socket(&mut self, now: Time, socket: SocketId) {
        self.socket = socket;
        self.settle(now);
    }

    /// Hears whether the operator has this end's interface up (IFF_UP). While it is down the state is AdminDown, and the peer is
    /// told (RFC 5880 §6.8.16); sessions and Reports go on. Saying the same again changes nothing.
    pub fn handle_interface(&mut self, now: Time, up: bool) {
        if self.closing.is_none() {
            self.set_interface(now, up);
            self.settle(now);
        }
    }

    /// Hears for how long this end holds the link back once it is Up, as it comes and goes: the peer is told with each Report. To be
    /// called when the state has changed, before time passes.
    pub fn handle_hold(&mut self, own: Duration) {
        self.hold.own = own;
    }

    /// Hears that a datagram could not be sent from the path's own address (EINVAL, EADDRNOTAVAIL, ENETUNREACH): it
    /// is unpinned.
    pub fn handle_send_failure(&mut self, now: Time, path: Path) {
        if let Some(current) = self.paths.current
            && current == path
            && current.local.is_some()
        {
            self.use_local(Path { local: None, ..current });
        }
        self.ways.own.unpin(path);
        if let Some(attempt) = &mut self.attempt {
            attempt.unpin(path);
        }
        self.settle(now);
    }

    /// Hears that the routes of this machine lead to the peer by another uplink than before, for what is sent from `socket`: the own
    /// address there is the routing table's to choose again, and the peer is told at once by a Report from the new one.
    pub fn handle_route_change(&mut self, now: Time, socket: SocketId) {
        let current = self.paths.current.filter(|current| current.socket == socket);
        if let Some(local) = current.and_then(|current| current.local) {
            self.left = Some((local, now + LEFT_ADDRESS));
        }
        let pinned = current.into_iter().chain(self.ways.own.answered().filter(|path| path.socket == socket));
        for path in pinned.collect::<Vec<_>>() {
            self.handle_send_failure(now, path);
        }
        if current.is_some() && self.closing.is_none() {
            self.send_report(now);
        }
        self.settle(now);
    }

    /// Whether the routes have left the own address of a path for good just now.
    fn has_left(&self, now: Time, path: Path) -> bool {
        self.left.is_some_and(|(local, until)| path.local == Some(local) && now < until)
    }

    /// Lets time pass: whatever is due by `now` is done.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.closing.is_some() {
            self.slots.expire(now); // keys end with their time, whatever else is under way
            self.expire_sessions();
            self.run_liveness(now);
            return self.say_goodbye(now);
        }
        self.confirm_by_level(now);
        if self.slots.expire(now) {
            self.event(Event::HybridUnfinished);
        }
        self.expire_sessions();
        self.run_paths(now); // what a check shows of the line counts for its liveness
        self.run_liveness(now);
        self.run_attempt(now);
        self.run_rekeys(now);
        self.run_reports(now);
        self.run_called(now);
        self.settle(now);
    }

    /// Closes this end: Goodbye is sent three times, then [`Link::is_closed`].
    pub fn close(&mut self, now: Time) {
        if self.closing.is_none() {
            let goodbyes_left = if self.slots.cur.is_some() { GOODBYES } else { 0 };
            self.closing = Some(Closing { goodbyes_left, next: now });
            self.attempt = None;
            self.say_goodbye(now);
        }
    }

    /// Whether a closing end has nothing left to send.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| closing.goodbyes_left == 0)
    }

    /// The next thing to carry out; `None` when there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Link::handle_timeout`] wants to be called next, unless something else happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if let Some(closing) = &self.closing {
            return (closing.goodbyes_left > 0).then_some(closing.next);
        }
        [
            self.slots.next_expiry(),
            self.next_liveness(),
            self.next_ask(),
            self.next_attempt(),
            self.next_rekey(),
            self.paths.deadline(),
            self.report_at,
            self.confirm_at,
            self.next_keepalive(),
            self.sizes.deadline(),
            self.next_ways(),
            self.next_called(),
            self.same_key.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What can be seen from outside.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            state: self.liveness.state,
            since: self.liveness.since,
            peer_state: self.liveness.peer.filter(|_| self.liveness.watches()),
            held_by_peer: self.hold.by_peer(&self.liveness),
            detection: self.detection(),
            session: self.slots.cur.as_ref().map(|cur| SessionStatus {
                cipher: cur.agreed.cipher,
                post_quantum: cur.post_quantum,
                epoch: cur.rank.epoch,
                established: cur.established,
                keys: self.keys_of(cur),
            }),
            waits_for_keys: self.wants_to_move(),
            path: self.paths.current,
            tx_size: self.sizes.found(),
            rx_size: self.sizes.arrived(),
            link_mtu: self.sizes.agreement.link(),
            rtt: self.measure.rtt(),
            jitter: self.measure.jitter(),
            tx_loss: self.measure.tx_loss(),
            rx_loss: self.measure.rx_loss(),
            same_key: self.same_key.known(),
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn send(&mut self, path: Path, datagram: Vec<u8>) {
        self.outputs.push_back(Output::Send(Transmit { path, datagram }));
    }

    /// What follows from any change: attempts begin or end, the ingress loop forgets what was wiped, and what the path carries is looked for.
    fn settle(&mut self, now: Time) {
        self.expire_sessions();
        self.tell_keys();
        self.review_attempt(now);
        self.note_same_key(now);
        self.run_ways(now);
        self.run_sizes(now);
    }

    /// Tells the ingress loop which sessions are gone, and the egress loop when it has none left.
    fn expire_sessions(&mut self) {
        let wiped = self.slots.take_wiped();
        if wiped.is_empty() {
            return;
        }
        for index in wiped {
            self.outputs.push_back(Output::Ingress(IngressUpdate::Remove(index)));
        }
        if self.slots.cur.is_none() && std::mem::take(&mut self.sealing) {
            self.outputs.push_back(Output::Egress(EgressUpdate::Session(None)));
            self.announce_current();
            (self.report_at, self.confirm_at) = (None, None);
        }
    }

    /// Tells both loops where the line goes.
    fn announce_current(&mut self) {
        let path = self.paths.current;
        let session = self.slots.cur.as_ref().map(|s| s.index);
        self.outputs.push_back(Output::Ingress(IngressUpdate::Current { session, path }));
        if self.ways.release.is_none() {
            self.announce_egress();
        }
    }

    /// Tells the egress loop alone.
    fn announce_egress(&mut self) {
        self.outputs.push_back(Output::Egress(EgressUpdate::Path(self.paths.current)));
        if let Some(second) = self.second_path() {
            self.outputs.push_back(Output::Egress(EgressUpdate::Second(Some(second))));
        }
    }
}

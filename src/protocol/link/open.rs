//! The cold open, in both roles: Knock, Challenge, Init, Response. An end may be in both at once, and neither role
//! waits for the other.

use super::{ColdStep, Event, Link, sessions::Birth};
use crate::protocol::{
    Time,
    admission::{Admitted, Refusal},
    constants::*,
    control::State,
    crypto::CryptoFailure,
    halves::{Path, SocketId},
    handshake::{Handshake, Root},
    keyring::{Pair, Psk},
    levels::{Counter, Drops},
    session::Cipher,
    slots::{Kind, Session},
    ways::in_turn,
    wire::{self, Cold, Kind as ColdKind, Nonce, Payload, Token, Verdict, payload_flags},
};
use agree::{agree, chosen, judge, layers_differ};
use std::{net::SocketAddr, sync::Arc};

mod agree;
#[cfg(test)]
mod vectors;

/// What outlives an attempt: when the next may begin.
pub(super) struct Opener {
    failures: u32,
    not_before: Time,
    /// Knocks sent since something answered.
    knocks: u32,
    /// How often Knocks, and checks while the line is down, were sent: each time to other
    /// addresses, where there are many.
    turns: [usize; 2],
}

impl Opener {
    pub fn new(now: Time) -> Opener {
        Opener { failures: 0, not_before: now, knocks: 0, turns: [0; 2] }
    }

    /// Half a second, doubling to [`PAUSE_MAX`], ±25 % so that two ends do not keep step.
    fn fail(&mut self, now: Time, random: u8) {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.failures.min(8)).min(PAUSE_MAX);
        let jitter = 0.75 + f64::from(random) / 255.0 / 2.0;
        self.not_before = now + pause.mul_f64(jitter);
        self.failures = self.failures.saturating_add(1);
    }

    /// The line is Up: the next attempt, whenever it is needed, begins at once.
    pub fn reset(&mut self, now: Time) {
        *self = Opener::new(now);
    }
}

/// Why an attempt runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// There is no session, or the line is not Up.
    NotUp,
    /// The line is Up, and suspiciously quiet.
    Silence,
    /// The line is to move to other keys; all else comes first.
    Move,
}

/// One attempt to open a session, as initiator.
pub(super) struct Attempt {
    reason: Reason,
    nonce: Nonce,
    /// With which keys, and where by now: each with each.
    pairs: Vec<Arc<Pair>>,
    knocked: Vec<Path>,
    /// What the Response may be under.
    psks: Vec<Psk>,
    started: Time,
    /// When the present message was first sent, and how often by now.
    first_sent: Time,
    sent: usize,
    /// Once a Challenge came: Init instead of Knock.
    init: Option<SentInit>,
}

/// An Init on its way, to the one address whose Challenge came first.
struct SentInit {
    path: Path,
    pair: Arc<Pair>,
    datagram: Vec<u8>,
    handshake: Handshake,
    payload: Payload,
}

impl SentInit {
    /// Reads message 2, which is under one of these preshared keys. One that does not fit leaves it readable under another.
    fn read(&mut self, noise: &wire::ColdNoise, psks: &[Psk]) -> Option<([u8; Payload::LEN], Psk)> {
        psks.iter().find_map(|psk| {
            self.handshake.set_psk(psk.bytes()).ok()?;
            Some((self.handshake.read(noise).ok()?, psk.clone()))
        })
    }
}

impl Attempt {
    fn next_send(&self) -> Option<Time> {
        COLD_RESENDS.get(self.sent).map(|after| self.first_sent + *after)
    }

    /// A Knock under each of its keys at each of these.
    fn knocks(&self, at: &[Path]) -> Vec<(Path, Vec<u8>)> {
        let knock = |pair: &Arc<Pair>| wire::knock(&self.nonce, &pair.keys.sending);
        let knocks: Vec<Vec<u8>> = self.pairs.iter().map(knock).collect();
        at.iter().flat_map(|path| knocks.iter().map(|knock| (*path, knock.clone()))).collect()
    }

    /// The index its Init gave the peer.
    pub fn index(&self) -> Option<u32> {
        self.init.as_ref().map(|init| init.payload.index)
    }

    fn ends(&self) -> Time {
        self.started + ATTEMPT_TIME
    }

    /// Leaves the own address of `path` to the routing table.
    pub fn unpin(&mut self, path: Path) {
        for used in self.knocked.iter_mut().chain(self.init.as_mut().map(|init| &mut init.path)) {
            if *used == path {
                used.local = None;
            }
        }
    }
}

impl Link {
    /// Everywhere the peer may be: on all ways; or from this socket, at the address proven last,
    /// then where config and resolver say. The number is that of the proven ones.
    fn known_paths(&self, socket: SocketId) -> (Vec<Path>, usize) {
        if self.ways.own.lead() {
            return (self.ways.own.paths(), 0);
        }
        let mut known: Vec<Path> = Vec::new();
        for proven in [self.paths.validated, self.paths.current].into_iter().flatten() {
            add_peer(&mut known, socket, proven.peer);
        }
        let proven = known.len();
        self.addresses.iter().for_each(|peer| add_peer(&mut known, socket, *peer));
        (known, proven)
    }

    /// Where to look for the peer this time: on each way, or at [`MAX_ADDRESSES`] at most. What was
    /// proven is always among them, and of the others come the next ones at each turn.
    pub(super) fn places(&self, socket: SocketId, turn: usize) -> Vec<Path> {
        if self.ways.own.lead() {
            return self.ways.own.places(turn);
        }
        let (known, proven) = self.known_paths(socket);
        let (proven, others) = known.split_at(proven);
        proven.iter().copied().chain(in_turn(others, MAX_ADDRESSES - proven.len(), turn)).collect()
    }

    /// Where to look for the peer by the session there is, while the line is down.
    pub(super) fn next_places(&mut self, socket: SocketId) -> Vec<Path> {
        let turn = self.opener.turns[1];
        self.opener.turns[1] = turn.wrapping_add(1);
        self.places(socket, turn)
    }

    /// Where the attempt knocks this time, and from now on takes an answer from.
    fn next_knocked(&mut self, reason: Reason) -> Vec<Path> {
        // A move takes the very path the line has: a NAT on it knows no other.
        let line = self.paths.current.filter(|_| reason == Reason::Move);
        let on_line = |path: Path| line.filter(|line| line.peer == path.peer).unwrap_or(path);
        let turn = self.opener.turns[0];
        self.opener.turns[0] = turn.wrapping_add(1);
        let places: Vec<Path> = self.places(self.socket, turn).into_iter().map(on_line).collect();
        if let Some(attempt) = &mut self.attempt {
            let new = |path: &&Path| !attempt.knocked.contains(path);
            let new: Vec<Path> = places.iter().filter(new).copied().collect();
            attempt.knocked.extend(new);
        }
        places
    }

    /// Whether somebody is known whom this end can call.
    pub(super) fn knows_peer(&self) -> bool {
        !self.addresses.is_empty() || self.paths.validated.is_some() || self.ways.own.lead()
    }

    /// When there is reason for an attempt, should nothing change until then.
    fn attempt_due(&self) -> Option<(Time, Reason)> {
        if !self.knows_peer() || self.closing.is_some() {
            return None;
        }
        let start = self.opener.not_before;
        if self.slots.boot.is_some() {
            return None; // it has its time to become a session
        }
        let Some(cur) = &self.slots.cur else {
            return Some((start, Reason::NotUp));
        };
        let silent = self.last_heard().map(|heard| (heard + self.detection() / 2, Reason::Silence));
        // A session just opened has a detection time to bring the line Up.
        let not_up = (self.liveness.state != State::Up && !self.liveness.rests())
            .then(|| (self.liveness.not_up_since.max(cur.established) + self.detection(), Reason::NotUp));
        let (at, reason) = [not_up, silent].into_iter().flatten().min_by_key(|(at, _)| *at)?;
        Some((at.max(start), reason))
    }

    pub(super) fn next_attempt(&self) -> Option<Time> {
        let due = self.attempt_due().map(|(at, _)| at);
        let Some(attempt) = &self.attempt else {
            return [due, self.move_due()].into_iter().flatten().min();
        };
        let next = attempt.next_send().map_or(attempt.ends(), |t| t.min(attempt.ends()));
        let overtaken = due.filter(|_| attempt.reason == Reason::Move);
        Some(overtaken.map_or(next, |due| due.min(next)))
    }

    /// Begins an attempt that is due, and drops one that lost its reason.
    pub(super) fn review_attempt(&mut self, now: Time) {
        let due = self.attempt_due().filter(|(at, _)| *at <= now).map(|(_, reason)| reason);
        if let Some(attempt) = &self.attempt {
            let over = match attempt.reason {
                Reason::NotUp => self.liveness.rests() && self.slots.cur.is_some(),
                Reason::Silence => self.last_heard().is_some_and(|heard| heard > attempt.started),
                Reason::Move => due.is_some() || !self.wants_to_move(),
            };
            if !over {
                return;
            }
            self.attempt = None;
        }
        let move_due = self.move_due().is_some_and(|at| at <= now).then_some(Reason::Move);
        if let Some(reason) = due.or(move_due) {
            self.begin_attempt(now, reason);
        }
    }

    /// The keys an attempt is made with. One that is to move the line takes no others than it is to move to.
    fn keys_for(&self, reason: Reason) -> (Vec<Arc<Pair>>, Vec<Psk>) {
        let keys = &self.keys;
        if reason != Reason::Move {
            return (self.pairs().cloned().collect(), keys.psks.clone());
        }
        let psk_alone = self.slots.cur.as_ref().is_some_and(|cur| keys.lists(&cur.pair));
        (keys.pairs.clone(), if psk_alone { vec![keys.psk().clone()] } else { keys.psks.clone() })
    }

    fn begin_attempt(&mut self, now: Time, reason: Reason) {
        let Ok(nonce) = self.entropy.bytes() else {
            return self.crypto_failed(now);
        };
        let addresses = peers(&self.known_paths(self.socket).0);
        let (pairs, psks) = self.keys_for(reason);
        match reason {
            Reason::NotUp => self.event(Event::Connecting { addresses }),
            Reason::Silence => self.event(Event::Quiet),
            Reason::Move => {}
        }
        let (first_sent, sent, init, knocked) = (now, 0, None, Vec::new());
        self.attempt = Some(Attempt { reason, nonce, pairs, knocked, psks, started: now, first_sent, sent, init });
        self.run_attempt(now);
    }

    /// An attempt that nobody has answered yet knocks at once where the peer may be by now, and no more where it is not.
    pub(super) fn knock_anew(&mut self) {
        let (known, lead) = (self.known_paths(self.socket).0, self.ways.own.lead());
        let places = self.places(self.socket, self.opener.turns[0]);
        let Some(attempt) = self.attempt.as_mut().filter(|a| a.init.is_none() && a.reason != Reason::Move) else {
            return;
        };
        // Of ways the socket is a part, of an address it is only where to begin.
        let same = |a: &Path, b: &Path| a.peer == b.peer && (a.socket == b.socket || !lead);
        attempt.knocked.retain(|path| known.iter().any(|known| same(known, path)));
        let is_new = |path: &Path| !attempt.knocked.iter().any(|knocked| same(knocked, path));
        let new: Vec<Path> = places.into_iter().filter(is_new).collect();
        attempt.knocked.extend(&new);
        let knocks = attempt.knocks(&new);
        knocks.into_iter().for_each(|(path, datagram)| self.send_cold(path, datagram));
    }

    /// Sends what is due of the attempt, or ends it.
    pub(super) fn run_attempt(&mut self, now: Time) {
        let Some(attempt) = &mut self.attempt else {
            return;
        };
        if attempt.ends() <= now {
            return self.fail_attempt(now);
        }
        if attempt.next_send().is_none_or(|at| at > now) {
            return;
        }
        // What a sleeping machine missed is not made up for: one sending, whatever is due.
        attempt.sent = COLD_RESENDS.iter().take_while(|after| attempt.first_sent + **after <= now).count();
        if let Some(init) = &attempt.init {
            let (path, datagram) = (init.path, init.datagram.clone());
            return self.send_cold(path, datagram);
        }
        let reason = attempt.reason;
        if reason != Reason::Move {
            self.opener.knocks = self.opener.knocks.saturating_add(1);
        }
        let places = self.next_knocked(reason);
        let knocks = self.attempt.as_ref().map(|attempt| attempt.knocks(&places)).unwrap_or_default();
        knocks.into_iter().for_each(|(path, datagram)| self.send_cold(path, datagram));
    }

    fn send_cold(&mut self, path: Path, datagram: Vec<u8>) {
        self.note_cold(&datagram, path, ColdStep::Sent);
        self.send(path, datagram);
    }

    fn note_cold(&mut self, datagram: &[u8], path: Path, step: ColdStep) {
        if let Some(kind) = ColdKind::of(datagram) {
            self.event(Event::Cold { kind, peer: path.peer, step });
        }
    }

    fn fail_attempt(&mut self, now: Time) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        if attempt.reason == Reason::Move {
            return self.fail_to_move(now);
        }
        let random = self.entropy.bytes::<1>().map_or(128, |[byte]| byte);
        self.opener.fail(now, random);
        self.event(Event::NoAnswer {
            addresses: peers(&attempt.knocked),
            knocks: self.opener.knocks,
            challenged: attempt.init.is_some(),
        });
        if self.opener.failures.is_multiple_of(FAILURES_TO_NEW_PORT) {
            self.event(Event::WantSocket);
        }
    }

    /// A primitive failed: said aloud, and tried again after a pause.
    pub(super) fn crypto_failed(&mut self, now: Time) {
        self.attempt = None;
        self.move_after = now + PAUSE_MAX;
        self.opener.fail(now, 128);
        self.event(Event::CryptoFailed);
    }

    fn drop(&self, counter: impl Fn(&Drops) -> &Counter) {
        counter(&self.levels.drops).bump();
    }

    /// Drops a cold-open datagram of the peer's, for what is in it.
    fn drop_cold(&mut self, kind: ColdKind, path: Path, step: ColdStep) {
        self.drop(|drops| match step {
            ColdStep::Malformed => &drops.malformed,
            ColdStep::Unauthentic => &drops.unauthentic,
            _ => &drops.replayed,
        });
        self.event(Event::Cold { kind, peer: path.peer, step });
    }

    /// A cold-open datagram whose length is right, and its MAC was when it came.
    pub(super) fn on_cold(&mut self, now: Time, path: Path, datagram: &[u8]) {
        let Some(pair) = self.pair_of(datagram) else {
            return self.drop(|d| &d.unauthentic); // its key was taken out meanwhile
        };
        self.hear_cold(now, path.peer);
        self.note_cold(datagram, path, ColdStep::Taken);
        match Cold::parse(datagram) {
            Ok(Cold::Knock { nonce }) => self.on_knock(now, path, &pair, &nonce),
            Ok(Cold::Challenge { nonce, token }) => self.on_challenge(now, path, pair, nonce, token),
            Ok(Cold::Init { nonce, token, noise }) => self.on_init(now, path, pair, datagram, (nonce, token, &noise)),
            Ok(Cold::Response { nonce, noise }) => self.on_response(now, path, &pair, nonce, &noise),
            Err(_) => {
                self.drop(|d| &d.malformed);
                self.note_cold(datagram, path, ColdStep::Malformed);
                if let Some(&version) = datagram.get(1)
                    && version != VERSION
                {
                    self.event(Event::OtherVersion { version, peer: path.peer });
                }
            }
        }
    }

    fn refuse(&mut self, kind: ColdKind, path: Path, refusal: Refusal) {
        let step = match refusal {
            Refusal::Replayed => ColdStep::Replayed,
            Refusal::Unauthentic => ColdStep::Unauthentic,
        };
        self.drop_cold(kind, path, step);
    }

    fn on_knock(&mut self, now: Time, path: Path, pair: &Pair, nonce: &Nonce) {
        match self.admission.knock(now, nonce, path.peer) {
            Ok(token) => {
                let challenge = wire::challenge(nonce, &token, &pair.keys.sending);
                self.send_cold(path, challenge);
                self.answered_caller(now, path.peer, ColdKind::Knock);
            }
            Err(refusal) => self.refuse(ColdKind::Knock, path, refusal),
        }
    }

    fn on_challenge(&mut self, now: Time, path: Path, pair: Arc<Pair>, nonce: Nonce, token: Token) {
        let waited_for = self.attempt.as_ref().is_some_and(|attempt| {
            attempt.nonce == nonce
                && attempt.init.is_none()
                && attempt.knocked.iter().any(|k| k.peer == path.peer)
                && attempt.pairs.iter().any(|p| p.id() == pair.id())
        });
        if !waited_for {
            return self.refuse(ColdKind::Challenge, path, Refusal::Replayed);
        }
        match self.make_init(path, pair, &nonce, &token) {
            Ok(init) => {
                if let Some(attempt) = &mut self.attempt {
                    (attempt.init, attempt.first_sent, attempt.sent) = (Some(init), now, 0);
                }
                self.opener.knocks = 0;
                self.run_attempt(now);
            }
            Err(CryptoFailure) => self.crypto_failed(now),
        }
    }

    fn make_init(
        &mut self,
        path: Path,
        pair: Arc<Pair>,
        nonce: &Nonce,
        token: &Token,
    ) -> Result<SentInit, CryptoFailure> {
        let index = self.fresh_index()?;
        let payload = self.own_payload(index)?;
        let psk = self.keys.psk().bytes(); // message 1 does not depend on it
        let mut handshake = pair.statics.initiate(&cold_prologue(nonce, token), psk, &mut *self.entropy)?;
        let noise = handshake.write(&payload.encode())?;
        let datagram = wire::init(nonce, token, &noise, &pair.keys.sending);
        Ok(SentInit { path, pair, datagram, handshake, payload })
    }

    /// What this end says of itself, and offers.
    ///
    /// # Errors
    /// [`CryptoFailure`] past the last epoch: this process has opened 2^31 sessions.
    fn own_payload(&self, index: u32) -> Result<Payload, CryptoFailure> {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        Ok(Payload {
            index,
            epoch: self.slots.next_epoch().ok_or(CryptoFailure)?,
            ciphers: self.params.ciphers(),
            flags: flag(self.params.post_quantum, payload_flags::HYBRID)
                | flag(self.params.partial_checksum, payload_flags::PARTIAL_CHECKSUM)
                | flag(self.params.ethernet, payload_flags::ETHERNET)
                | flag(self.params.cut_frames, payload_flags::CUT_FRAMES)
                | flag(self.keys.has_psk, payload_flags::PSK),
            lanes: LANES,
            verdict: Verdict::Fine,
            interval_ms: self.params.interval_ms(),
        })
    }

    /// Message 1, with everything right that can be told without a DH but the token.
    fn on_init(
        &mut self,
        now: Time,
        path: Path,
        pair: Arc<Pair>,
        datagram: &[u8],
        init: (Nonce, Token, &wire::ColdNoise),
    ) {
        let (nonce, token, noise) = init;
        match self.admission.init(now, datagram, &nonce, &token, path.peer) {
            Ok(Admitted::Fresh) => {}
            Ok(Admitted::Repeat(response)) => return self.send_cold(path, response),
            Err(refusal) => return self.refuse(ColdKind::Init, path, refusal),
        }
        let prologue = cold_prologue(&nonce, &token);
        let Ok(mut handshake) = pair.statics.respond(&prologue, self.keys.psk().bytes(), &mut *self.entropy) else {
            return self.event(Event::CryptoFailed);
        };
        let Ok(payload) = handshake.read(noise) else {
            return self.drop_cold(ColdKind::Init, path, ColdStep::Unauthentic);
        };
        let Some(peer) = Payload::parse(&payload).ok().filter(|p| p.verdict == Verdict::Fine) else {
            return self.drop_cold(ColdKind::Init, path, ColdStep::Malformed);
        };
        match self.respond(now, path, pair, &nonce, handshake, &peer) {
            Ok(response) => {
                self.admission.remember(now, datagram, &response);
                self.send_cold(path, response);
                self.answered_caller(now, path.peer, ColdKind::Init);
            }
            Err(CryptoFailure) => self.event(Event::CryptoFailed),
        }
    }

    /// Makes the Response, and the unconfirmed session it announces.
    fn respond(
        &mut self,
        now: Time,
        path: Path,
        pair: Arc<Pair>,
        nonce: &Nonce,
        mut handshake: Handshake,
        peer: &Payload,
    ) -> Result<Vec<u8>, CryptoFailure> {
        let index = self.fresh_index()?;
        let offered = self.own_payload(index)?;
        let (chosen, verdict) = judge(&offered, peer);
        let own = Payload { ciphers: chosen.map_or(0, |c| c as u8), verdict, ..offered };
        let noise = handshake.write(&own.encode())?;
        let response = wire::response(nonce, &noise, &pair.keys.sending);
        match chosen {
            Some(cipher) => {
                let keys = (pair, self.keys.psk().clone());
                let derived = (handshake.split()?, cipher);
                let session = self.cold_session(now, path, keys, derived, (&own, peer), false)?;
                self.slots.answer(session);
                self.expire_sessions();
            }
            None => self.event(Event::Refusing(verdict)),
        }
        Ok(response)
    }

    fn on_response(&mut self, now: Time, path: Path, pair: &Pair, nonce: Nonce, noise: &wire::ColdNoise) {
        let Some(Attempt { reason, psks, init: Some(init), .. }) = self.attempt.as_mut().filter(|a| a.nonce == nonce)
        else {
            return self.refuse(ColdKind::Response, path, Refusal::Replayed);
        };
        if init.path.peer != path.peer || init.pair.id() != pair.id() {
            return self.refuse(ColdKind::Response, path, Refusal::Replayed);
        }
        let reason = *reason;
        let Some((payload, psk)) = init.read(noise, psks) else {
            self.drop_cold(ColdKind::Response, path, ColdStep::Unauthentic);
            if reason != Reason::Move {
                self.event(Event::PresharedKeysDiffer);
            }
            return;
        };
        let offered = init.payload.ciphers;
        let Some((peer, cipher)) = Payload::parse(&payload).ok().and_then(|p| Some((p, chosen(&p, offered)?))) else {
            self.drop_cold(ColdKind::Response, path, ColdStep::Malformed);
            self.fail_attempt(now);
            return;
        };
        let layers_differ = layers_differ(&init.payload, &peer);
        let Some(cipher) = cipher.filter(|_| !layers_differ) else {
            self.attempt = None;
            self.opener.not_before = now + PAUSE_REFUSED;
            self.move_after = now + PAUSE_REFUSED;
            let verdict = if layers_differ { Verdict::LayersDiffer } else { peer.verdict };
            return self.event(Event::Refused(verdict));
        };
        if let Some(init) = self.attempt.take().and_then(|attempt| attempt.init) {
            self.open_as_initiator(now, path, psk, init, cipher, &peer);
        }
    }

    fn open_as_initiator(&mut self, now: Time, path: Path, psk: Psk, init: SentInit, cipher: Cipher, peer: &Payload) {
        let SentInit { pair, handshake, payload, .. } = init;
        let session = handshake
            .split()
            .and_then(|root| self.cold_session(now, path, (pair, psk), (root, cipher), (&payload, peer), true));
        match session {
            Ok(session) => self.establish(now, session),
            Err(CryptoFailure) => self.crypto_failed(now),
        }
    }

    /// A session fresh from a cold open, its opening half on its way to the ingress loop.
    fn cold_session(
        &mut self,
        now: Time,
        path: Path,
        (pair, psk): (Arc<Pair>, Psk),
        (root, cipher): (Root, Cipher),
        (own, peer): (&Payload, &Payload),
        initiator: bool,
    ) -> Result<Session, CryptoFailure> {
        let agreed = agree(cipher, own, peer);
        let birth = Birth {
            kind: if agreed.hybrid { Kind::Boot } else { Kind::Data },
            agreed,
            pair,
            psk,
            post_quantum: false,
            initiator,
            index: own.index,
            peer_index: peer.index,
            epoch: own.epoch.max(peer.epoch),
            said: own.epoch,
            parent: None,
            path,
        };
        self.make_session(now, root, birth)
    }
}

/// Adds an address of the peer's that is not there yet.
fn add_peer(known: &mut Vec<Path>, socket: SocketId, peer: SocketAddr) {
    if known.iter().all(|path| path.peer != peer) {
        known.push(Path { socket, local: None, peer });
    }
}

/// The peer's addresses of these, each once.
fn peers(paths: &[Path]) -> Vec<SocketAddr> {
    let mut peers: Vec<SocketAddr> = Vec::with_capacity(paths.len());
    for path in paths {
        if !peers.contains(&path.peer) {
            peers.push(path.peer);
        }
    }
    peers
}

/// `"tieline v1 cold" ‖ nonce16 ‖ token24`.
fn cold_prologue(nonce: &Nonce, token: &Token) -> Vec<u8> {
    [b"tieline v1 cold", &nonce[..], token].concat()
}

//! Sessions from birth to use: how they are made, established and put in their slots, and the rekeys under them.

use super::{Event, Keepalive, Link, Output, open::Attempt};
use crate::protocol::{
    Time,
    constants::*,
    control::RekeySide,
    crypto::CryptoFailure,
    halves::{EgressUpdate, IngressUpdate, Path},
    handshake::Root,
    keyring::{Pair, Psk},
    rekey::{self, Answer, Child, Exchange, Ground, RekeyError, RekeyPayload},
    session::{Halves, SealError, Shape},
    slots::{Agreed, Kind, Placed, Rank, Session},
};
use std::{sync::Arc, time::Duration};

/// All of a session that is known before its keys are.
pub(super) struct Birth {
    pub kind: Kind,
    pub agreed: Agreed,
    pub pair: Arc<Pair>,
    pub psk: Psk,
    pub post_quantum: bool,
    pub initiator: bool,
    pub index: u32,
    pub peer_index: u32,
    /// The higher of what both ends said.
    pub epoch: u32,
    pub said: u32,
    pub parent: Option<u32>,
    pub path: Path,
}

impl Link {
    /// Derives a session's keys and hands its opening half to the ingress loop.
    pub(super) fn make_session(&mut self, now: Time, root: Root, birth: Birth) -> Result<Session, CryptoFailure> {
        let shape = Shape {
            cipher: birth.agreed.cipher,
            initiator: birth.initiator,
            own_index: birth.index,
            peer_index: birth.peer_index,
            lanes: (birth.kind == Kind::Data).then(|| birth.agreed.lanes.clone()),
            partial_checksum: birth.agreed.partial_checksum,
            cut_frames: birth.agreed.cut_frames,
        };
        let halves = Halves::derive(&root, &shape)?;
        self.outputs.push_back(Output::Ingress(IngressUpdate::Install(halves.opening)));
        let lower_key_began = birth.initiator == birth.pair.lower_key();
        Ok(Session {
            rank: Rank { epoch: birth.epoch, lower_key_began, pair: birth.pair.id() },
            said: birth.said,
            kind: birth.kind,
            agreed: birth.agreed,
            pair: birth.pair,
            psk: birth.psk,
            post_quantum: birth.post_quantum,
            initiator: birth.initiator,
            index: birth.index,
            parent: birth.parent,
            path: birth.path,
            h: root.h,
            chain: root.chain,
            control: halves.control,
            sealers: halves.sealers,
            levels: halves.levels,
            made: now,
            established: now,
            first_opened: None,
            orphaned: None,
            exchange: None,
            rekey_failed: false,
            answer: None,
        })
    }

    /// A receive index that no session and nothing under way has.
    pub(super) fn fresh_index(&mut self) -> Result<u32, CryptoFailure> {
        loop {
            let index = u32::from_be_bytes(self.entropy.bytes()?);
            let opening = self.attempt.as_ref().and_then(Attempt::index);
            let rekeying =
                self.slots.all().filter_map(|s| s.exchange.as_ref()).any(|exchange| exchange.index() == index);
            if index != 0 && opening != Some(index) && !rekeying && self.slots.all().all(|s| s.index != index) {
                return Ok(index);
            }
        }
    }

    /// Something was opened under this session for the first time.
    pub(super) fn on_opened(&mut self, now: Time, index: u32) {
        if let Some(session) = self.slots.take_answered(index) {
            self.establish(now, session);
        }
        if let Some(session) = self.slots.get_mut(index) {
            session.first_opened.get_or_insert(now);
        }
        if self.slots.cur.as_ref().is_some_and(|cur| cur.index == index) {
            self.confirm_at = None;
        }
    }

    /// The same by the level, should the notice have been lost.
    pub(super) fn confirm_by_level(&mut self, now: Time) {
        let opened = |s: &&Session| s.first_opened.is_none() && s.levels.opened.get() > 0;
        let indices: Vec<u32> = self.slots.all().filter(opened).map(|s| s.index).collect();
        for index in indices {
            self.on_opened(now, index);
        }
    }

    /// A session is established: at the initiator by a good Response or M2, at the responder by the first datagram.
    pub(super) fn establish(&mut self, now: Time, session: Session) {
        self.caller_is_in();
        let (initiator, cold, index) = (session.initiator, session.parent.is_none(), session.index);
        if cold && !initiator {
            self.admission.forget();
        }
        let new_family = self.slots.cur.as_ref().is_none_or(|cur| !cur.same_family(&session));
        let path = session.path;
        match self.slots.establish(now, session) {
            Placed::Boot => {
                self.attempt = None;
                if initiator {
                    self.start_rekey(now, index);
                }
            }
            Placed::Current => {
                self.attempt = None;
                self.enter_current(now, new_family, path, !cold);
                self.confirm_at = initiator.then(|| now + CONFIRM_SPACING);
                self.send_report(now);
            }
            Placed::Previous | Placed::Unused => {}
        }
        self.expire_sessions();
    }

    /// Moves all sending to the new `cur`.
    fn enter_current(&mut self, now: Time, new_family: bool, path: Path, rekeyed: bool) {
        if new_family {
            self.measure.new_baseline();
            self.same_key.new_family();
            self.sizes.new_peer();
            self.paths.set(path);
            self.ways.begin(now, path);
            self.socket = path.socket; // the driver closes the others
            self.event(Event::UsesSocket(path.socket));
        }
        let peer = self.paths.current.map(|path| path.peer);
        let Some(cur) = &mut self.slots.cur else {
            return;
        };
        let sealer = cur.sealers.pop().map(Box::new);
        let event = Event::Session {
            epoch: cur.rank.epoch,
            cipher: cur.agreed.cipher,
            post_quantum: cur.post_quantum,
            rekeyed,
            peer,
        };
        self.outputs.push_back(Output::Egress(EgressUpdate::Session(sealer)));
        self.sealing = true;
        self.announce_current();
        self.outputs.push_back(Output::Egress(EgressUpdate::Keepalive));
        self.keepalive = Keepalive { checked: now, sealed: 1 };
        self.event(event);
        self.note_keys();
    }

    /// Seals a control message under the session with this index and sends it: under a bootstrap to where that was
    /// opened, otherwise on the line's path.
    pub(super) fn send_control(&mut self, index: u32, message: &[u8], path: Option<Path>) {
        let line = self.paths.current;
        let Some(session) = self.slots.get_mut(index) else {
            return;
        };
        let path = match session.kind {
            Kind::Boot => session.path,
            Kind::Data => path.or(line).unwrap_or(session.path),
        };
        match session.control.seal_message(message) {
            Ok(datagram) => self.send(path, datagram),
            Err(SealError::Exhausted) => {} // its successor is due; its stop comes
            Err(SealError::NoSession | SealError::NotAgreed) => {} // no control message asks for either
        }
    }

    /// When a rekey is to be started or sent again.
    pub(super) fn next_rekey(&self) -> Option<Time> {
        let resend = [&self.slots.boot, &self.slots.cur].into_iter().flatten().filter_map(|session| {
            session.exchange.as_ref().filter(|exchange| exchange.open()).map(|exchange| exchange.resend_at)
        });
        resend.chain(self.rekey_start()).min()
    }

    /// When `cur` is old enough for this end to start.
    fn rekey_start(&self) -> Option<Time> {
        let cur = self.slots.cur.as_ref().filter(|cur| cur.may_start_rekey())?;
        let times = self.params.rekey;
        if cur.initiator {
            Some(cur.established + times.initiator)
        } else {
            cur.answer.is_none().then(|| cur.established + times.responder)
        }
    }

    /// Whether `cur` has sealed so much that this end should start: half its limit at the initiator, three quarters at
    /// the responder. Looked at with each Report: even 100 Gbit/s take minutes from there to the limit.
    pub(super) fn worn(&self) -> bool {
        let Some(cur) = self.slots.cur.as_ref().filter(|cur| cur.may_start_rekey()) else {
            return false;
        };
        let quarters = if cur.initiator { 2 } else { 3 };
        let lanes = cur.agreed.lanes.len().max(1) as u64;
        let (datagrams, bytes) = (SEAL_DATAGRAMS / lanes / 4 * quarters, SEAL_BYTES / lanes / 4 * quarters);
        let levels = &cur.levels;
        let most = levels.sealed.get().max(levels.peer_sealed.get());
        most >= datagrams || levels.sealed_bytes.get().max(levels.opened_bytes.get()) >= bytes
    }

    pub(super) fn run_rekeys(&mut self, now: Time) {
        if (self.rekey_start().is_some_and(|at| at <= now) || self.worn())
            && let Some(cur) = &self.slots.cur
        {
            self.start_rekey(now, cur.index);
        }
        let due = |session: &&Session| session.exchange.as_ref().is_some_and(|e| e.open() && e.resend_at <= now);
        let slots = [&self.slots.boot, &self.slots.cur];
        let indices: Vec<u32> = slots.into_iter().flatten().filter(due).map(|s| s.index).collect();
        for index in indices {
            self.send_exchange(now, index);
        }
    }

    fn start_rekey(&mut self, now: Time, parent: u32) {
        let spacing = (self.measure.rtt().unwrap_or_default() * 2).clamp(REKEY_RESEND_MIN, REKEY_RESEND_MAX);
        match self.make_exchange(now, parent, spacing) {
            Ok(exchange) => {
                if let Some(parent) = self.slots.parent_mut(parent) {
                    parent.exchange = Some(exchange);
                }
                self.send_exchange(now, parent);
            }
            Err(error) => {
                if let Some(parent) = self.slots.parent_mut(parent) {
                    parent.rekey_failed = true;
                }
                self.event(Event::RekeyFailed(error.reason()));
            }
        }
    }

    fn make_exchange(&mut self, now: Time, parent: u32, spacing: Duration) -> Result<Exchange, RekeyError> {
        let own = self.own_rekey_payload()?;
        let Link { slots, entropy, .. } = self;
        let parent = slots.parent_mut(parent).ok_or(RekeyError::Crypto)?;
        let ground = parent.ground();
        Exchange::start(&ground, own, &mut **entropy, now, spacing)
    }

    fn own_rekey_payload(&mut self) -> Result<RekeyPayload, CryptoFailure> {
        let epoch = self.slots.next_epoch().ok_or(CryptoFailure)?;
        Ok(RekeyPayload { index: self.fresh_index()?, epoch })
    }

    fn send_exchange(&mut self, now: Time, parent: u32) {
        let exchange = self.slots.parent_mut(parent).and_then(|session| session.exchange.as_mut());
        let parts = exchange.map(|exchange| exchange.send(now)).unwrap_or_default();
        for part in parts {
            self.send_control(parent, &part, None);
        }
    }

    /// A part of M1 or M2 came under the session with this index.
    pub(super) fn on_rekey_part(&mut self, now: Time, parent: u32, side: RekeySide, part: (u8, u8, &[u8])) {
        if self.slots.parent_mut(parent).is_none() {
            return; // late parts under what has been replaced
        }
        let outcome = match side {
            RekeySide::Init => self.on_m1_part(now, parent, part),
            RekeySide::Resp => self.on_m2_part(now, parent, part),
        };
        match outcome {
            Ok(()) => {}
            Err(RekeyError::Malformed) => self.levels.drops.malformed.bump(),
            Err(error) => self.event(Event::RekeyFailed(error.reason())),
        }
    }

    fn on_m1_part(&mut self, now: Time, parent: u32, (part, parts, bytes): (u8, u8, &[u8])) -> Result<(), RekeyError> {
        let Some(session) = self.slots.parent_mut(parent) else {
            return Ok(());
        };
        let hybrid = session.agreed.hybrid;
        let answer = session.answer.get_or_insert_with(|| Answer::new(hybrid));
        match answer {
            Answer::Waiting(_) => match answer.add(part, parts, bytes)? {
                Some(m1) => self.answer_rekey(now, parent, &m1),
                None => Ok(()),
            },
            Answer::Made { m2, sent } if now.since(*sent) >= REKEY_ANSWER_SPACING => {
                *sent = now;
                let parts = rekey::parts(RekeySide::Resp, m2);
                for part in parts {
                    self.send_control(parent, &part, None);
                }
                Ok(())
            }
            Answer::Made { .. } | Answer::Failed => Ok(()),
        }
    }

    /// All of M1 is there: makes the child and sends M2, once.
    fn answer_rekey(&mut self, now: Time, parent: u32, m1: &[u8]) -> Result<(), RekeyError> {
        if let Some(session) = self.slots.parent_mut(parent) {
            session.answer = Some(Answer::Failed); // unless what follows says otherwise
        }
        let own = self.own_rekey_payload()?;
        let Link { slots, entropy, .. } = self;
        let Some(session) = slots.parent_mut(parent) else {
            return Ok(());
        };
        let ground = session.ground();
        let (child, m2) = rekey::answer(&ground, m1, own, &mut **entropy)?;
        let parts = rekey::parts(RekeySide::Resp, &m2);
        session.answer = Some(Answer::Made { m2, sent: now });
        let child = self.child(now, parent, child, false)?;
        self.slots.answer(child);
        self.expire_sessions();
        for part in parts {
            self.send_control(parent, &part, None);
        }
        Ok(())
    }

    fn on_m2_part(&mut self, now: Time, parent: u32, (part, parts, bytes): (u8, u8, &[u8])) -> Result<(), RekeyError> {
        let Some(session) = self.slots.parent_mut(parent) else {
            return Ok(());
        };
        let Session { exchange, h, chain, agreed, pair, psk, .. } = session;
        let Some(exchange) = exchange.as_mut().filter(|exchange| exchange.open()) else {
            return Ok(()); // a part of what is finished
        };
        let ground = Ground { statics: &pair.statics, psk: psk.bytes(), h, chain, hybrid: agreed.hybrid };
        if let Some(child) = exchange.add(&ground, part, parts, bytes)? {
            let child = self.child(now, parent, child, true)?;
            self.establish(now, child);
        }
        Ok(())
    }

    /// The session a rekey made: it inherits what was agreed.
    fn child(&mut self, now: Time, parent: u32, child: Child, initiator: bool) -> Result<Session, CryptoFailure> {
        let session = self.slots.parent_mut(parent).ok_or(CryptoFailure)?;
        let birth = Birth {
            kind: Kind::Data,
            agreed: session.agreed.clone(),
            pair: session.pair.clone(),
            psk: session.psk.clone(),
            post_quantum: session.agreed.hybrid,
            initiator,
            index: child.own.index,
            peer_index: child.peer.index,
            epoch: child.own.epoch.max(child.peer.epoch),
            said: child.own.epoch,
            parent: Some(parent),
            path: session.path,
        };
        self.make_session(now, child.root, birth)
    }
}

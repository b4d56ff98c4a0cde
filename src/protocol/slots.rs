//! Ranks and slots: which sessions an end holds, and which of two is the higher.
//!
//! Both ends compute the same rank for a session from what both said, so whatever was started twice or lost, both come
//! to hold the same one as `cur` (`docs/PROTOCOL.md` §4 and §8). Time moves sessions out; nothing here moves `cur` down.

use super::{
    constants::*,
    crypto::Secret,
    halves::Path,
    keyring::{Pair, PairId, Psk},
    levels::SessionLevels,
    rekey::{Answer, Exchange, Ground},
    session::{Cipher, LaneSealer, LaneSet},
    time::Time,
};
use std::{sync::Arc, time::Duration};

/// Higher ranks win: by epoch, then by whose public key is the lower, then by the pair of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The higher of both ends' epochs.
    pub epoch: u32,
    /// Whether the session's initiator has the lower public key.
    pub lower_key_began: bool,
    /// The keys it was made with. Who has the lower one may depend on the pair: without this two sessions begun by different
    /// ends, under different pairs, could have one rank.
    pub pair: PairId,
}

/// What both ends agreed on in the cold open; children inherit it.
#[derive(Clone)]
pub struct Agreed {
    /// The AEAD.
    pub cipher: Cipher,
    /// Whether user data waits for a hybrid rekey.
    pub hybrid: bool,
    /// Whether inner checksums may be partial.
    pub partial_checksum: bool,
    /// Whether frames may be cut.
    pub cut_frames: bool,
    /// Silence this long means that the peer is gone.
    pub detection: Duration,
    /// The counters of every session of this cold open.
    pub lanes: LaneSet,
}

/// What a session may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only the rekey that makes it hybrid.
    Boot,
    /// Everything.
    Data,
}

/// One session, whatever slot it is in. Its opening half is with the ingress loop, its sealing halves go to the
/// egress loops when it becomes `cur`.
pub struct Session {
    pub rank: Rank,
    /// The epoch this end said in making it.
    pub said: u32,
    pub kind: Kind,
    pub agreed: Agreed,
    /// The keys it was made with, and will be rekeyed with.
    pub pair: Arc<Pair>,
    pub psk: Psk,
    /// Whether an ML-KEM exchange went into its keys.
    pub post_quantum: bool,
    /// Whether this end sent message 1.
    pub initiator: bool,
    /// The index this end receives on: what names a session here.
    pub index: u32,
    /// The index of the session it was rekeyed under; none for a cold one.
    pub parent: Option<u32>,
    /// Where the cold open it stems from was proven.
    pub path: Path,
    pub h: [u8; 32],
    pub chain: Secret,
    pub control: LaneSealer,
    pub sealers: Vec<LaneSealer>,
    pub levels: Arc<SessionLevels>,
    pub made: Time,
    /// When it was established; `made` until then.
    pub established: Time,
    /// When the engine saw that something was opened under it.
    pub first_opened: Option<Time>,
    /// For an unconfirmed child: since when its parent is gone.
    pub orphaned: Option<Time>,
    /// The rekey this end started under it.
    pub exchange: Option<Exchange>,
    /// This end could not start one: the session runs to its stop.
    pub rekey_failed: bool,
    /// The rekey the peer started under it.
    pub answer: Option<Answer>,
}

impl Session {
    /// Whether `other` stems from the same cold open.
    pub fn same_family(&self, other: &Session) -> bool {
        Arc::ptr_eq(&self.agreed.lanes, &other.agreed.lanes)
    }

    /// One exchange a starter and parent.
    pub fn may_start_rekey(&self) -> bool {
        self.exchange.is_none() && !self.rekey_failed
    }

    /// What of it goes into a rekey.
    pub fn ground(&self) -> Ground<'_> {
        let (h, chain) = (&self.h, &self.chain);
        Ground { statics: &self.pair.statics, psk: self.psk.bytes(), h, chain, hybrid: self.agreed.hybrid }
    }

    fn unconfirmed_until(&self) -> Option<Time> {
        match (self.parent, self.kind) {
            (Some(_), _) => self.orphaned.map(|gone| gone + ANSWERED_AFTER_PARENT),
            (None, Kind::Boot) => Some(self.made + BOOT_LIFE),
            (None, Kind::Data) => Some(self.made + ANSWERED_DATA_LIFE),
        }
    }
}

/// What establishing a session did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is the bootstrap to rekey under.
    Boot,
    /// It is the session everything is sent under.
    Current,
    /// It is only good for what is still on its way.
    Previous,
    /// It ranks below all that is held: gone.
    Unused,
}

/// The sessions of one end.
#[derive(Default)]
pub struct Slots {
    pub boot: Option<Session>,
    pub cur: Option<Session>,
    pub prev: Option<Session>,
    pub answered: Vec<Session>,
    /// The highest epoch of any session established.
    pub high: u32,
    /// Indices of sessions wiped since last asked.
    wiped: Vec<u32>,
    /// When a datagram was last opened under any session that is gone: the peer was heard, whatever became of that.
    heard_before: Option<Time>,
}

impl Slots {
    /// Every session held.
    pub fn all(&self) -> impl Iterator<Item = &Session> {
        [&self.boot, &self.cur, &self.prev].into_iter().flatten().chain(&self.answered)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        [&mut self.boot, &mut self.cur, &mut self.prev].into_iter().flatten().chain(&mut self.answered)
    }

    /// The session with this index, in whatever slot.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Session> {
        self.all_mut().find(|s| s.index == index)
    }

    /// The session with this index if a rekey may run under it: boot or cur.
    pub fn parent_mut(&mut self, index: u32) -> Option<&mut Session> {
        [&mut self.boot, &mut self.cur].into_iter().flatten().find(|s| s.index == index)
    }

    /// The epoch this end says in its next message; none past the last one.
    ///
    /// Of an unconfirmed session only what this end said counts: what the other one did may be forged, and one forged
    /// epoch near the last would end all opening and rekeying.
    pub fn next_epoch(&self) -> Option<u32> {
        let highest = self.answered.iter().map(|s| s.said).fold(self.high, u32::max);
        highest.checked_add(1).filter(|epoch| *epoch <= MAX_EPOCH)
    }

    /// Indices to be removed from the ingress loop.
    pub fn take_wiped(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.wiped)
    }

    fn wipe(&mut self, sessions: impl IntoIterator<Item = Session>) {
        for session in sessions {
            self.heard_before = self.heard_before.max(session.levels.heard());
            self.wiped.push(session.index);
        }
    }

    /// Holds an unconfirmed session: one a parent, the cold one replacing the last, and the lowest goes when there are
    /// too many.
    pub fn answer(&mut self, session: Session) {
        if let Some(at) = self.answered.iter().position(|s| s.parent == session.parent) {
            let old = self.answered.swap_remove(at);
            self.wipe([old]);
        }
        self.answered.push(session);
        if self.answered.len() > MAX_ANSWERED
            && let Some(at) = (0..self.answered.len()).min_by_key(|i| self.answered[*i].rank)
        {
            let lowest = self.answered.swap_remove(at);
            self.wipe([lowest]);
        }
    }

    /// Takes an unconfirmed session out, to be established.
    pub fn take_answered(&mut self, index: u32) -> Option<Session> {
        let at = self.answered.iter().position(|s| s.index == index)?;
        Some(self.answered.swap_remove(at))
    }

    /// Puts an established session where its rank belongs.
    pub fn establish(&mut self, now: Time, mut session: Session) -> Placed {
        session.established = now;
        self.high = self.high.max(session.rank.epoch);
        let mut placed = match session.kind {
            Kind::Boot => self.establish_boot(session),
            Kind::Data => self.establish_data(session),
        };
        // Confirmed so late that the time for what came before `cur` is over.
        if placed == Placed::Previous && self.prev_end().is_some_and(|end| end <= now) {
            let late = self.prev.take();
            self.wipe(late);
            placed = Placed::Unused;
        }
        self.orphan(now);
        placed
    }

    fn establish_boot(&mut self, session: Session) -> Placed {
        let highest = [&self.boot, &self.cur].into_iter().flatten().map(|s| s.rank).max();
        if highest.is_some_and(|rank| rank >= session.rank) {
            self.wipe([session]);
            return Placed::Unused;
        }
        let old = self.boot.replace(session);
        self.wipe(old);
        Placed::Boot
    }

    fn establish_data(&mut self, session: Session) -> Placed {
        if self.boot.as_ref().is_some_and(|boot| boot.rank < session.rank) {
            let boot = self.boot.take();
            self.wipe(boot);
        }
        let above = |slot: &Option<Session>| slot.as_ref().is_none_or(|held| held.rank < session.rank);
        if above(&self.cur) {
            let old = self.cur.replace(session);
            if old.is_some() {
                let older = std::mem::replace(&mut self.prev, old);
                self.wipe(older);
            }
            Placed::Current
        } else if above(&self.prev) {
            let old = self.prev.replace(session);
            self.wipe(old);
            Placed::Previous
        } else {
            self.wipe([session]);
            Placed::Unused
        }
    }

    /// Notes which unconfirmed children lost their parent.
    fn orphan(&mut self, now: Time) {
        let held: Vec<u32> = self.all().map(|s| s.index).collect();
        for child in &mut self.answered {
            if child.parent.is_some_and(|parent| !held.contains(&parent)) {
                child.orphaned.get_or_insert(now);
            }
        }
    }

    /// Wipes every session of a rank up to `rank`: the peer said goodbye under it.
    pub fn wipe_up_to(&mut self, now: Time, rank: Rank) {
        self.retain(now, |s| s.rank > rank);
    }

    /// Wipes every session that does not pass: the keys it was made with count no longer.
    pub fn retain(&mut self, now: Time, keep: impl Fn(&Session) -> bool) {
        let slots = [&mut self.boot, &mut self.cur, &mut self.prev];
        let mut gone: Vec<Session> = slots.into_iter().filter_map(|slot| slot.take_if(|s| !keep(s))).collect();
        gone.extend(self.answered.extract_if(.., |s| !keep(s)));
        self.wipe(gone);
        self.orphan(now);
    }

    fn boot_end(&self) -> Option<Time> {
        self.boot.as_ref().map(|s| s.established + BOOT_LIFE)
    }

    fn cur_end(&self) -> Option<Time> {
        self.cur.as_ref().map(|s| s.established + SESSION_LIFE)
    }

    fn prev_end(&self) -> Option<Time> {
        let own = self.prev.as_ref()?.established + SESSION_LIFE_PREV;
        let overtaken = self.cur.as_ref().and_then(|s| s.first_opened).map(|first| first + PREV_LIFE);
        Some(overtaken.map_or(own, |t| own.min(t)))
    }

    /// Wipes what is past its time; true when the bootstrap ended without a child.
    pub fn expire(&mut self, now: Time) -> bool {
        let due = |end: Option<Time>| end.is_some_and(|end| end <= now);
        let (boot, cur, prev) = (due(self.boot_end()), due(self.cur_end()), due(self.prev_end()));
        let slots = [(boot, &mut self.boot), (cur, &mut self.cur), (prev, &mut self.prev)];
        let mut late: Vec<Session> = slots.into_iter().filter_map(|(due, slot)| slot.take_if(|_| due)).collect();
        late.extend(self.answered.extract_if(.., |s| due(s.unconfirmed_until())));
        self.wipe(late);
        self.orphan(now);
        boot
    }

    /// When something is next past its time.
    pub fn next_expiry(&self) -> Option<Time> {
        let unconfirmed = self.answered.iter().filter_map(Session::unconfirmed_until);
        [self.boot_end(), self.cur_end(), self.prev_end()].into_iter().flatten().chain(unconfirmed).min()
    }

    /// When a datagram was last opened under `cur`, `prev` or what was there before.
    pub fn heard(&self) -> Option<Time> {
        let held = [&self.cur, &self.prev].into_iter().flatten().filter_map(|s| s.levels.heard()).max();
        held.max(self.heard_before)
    }
}

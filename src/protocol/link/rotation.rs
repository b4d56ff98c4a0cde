//! A change of keys while the link runs (`docs/PROTOCOL.md` §3.1): what was made with a key that is listed no longer ends at
//! once; what was made with one that this end has changed goes on until the link has moved.

use super::{DownCause, Event, KeysInUse, Link, Output, SetupError};
use crate::protocol::{
    Time,
    constants::*,
    halves::IngressUpdate,
    keyring::{Keyring, Keys, Pair, PairId, Psk},
    slots::Session,
};
use std::sync::Arc;

impl Link {
    /// Takes the keys as config has them now. User data flows on unless the key of its session was taken out.
    ///
    /// # Errors
    /// [`SetupError`] where they cannot make a link: nothing has changed then.
    pub fn handle_keys(&mut self, now: Time, keys: Keys<'_>) -> Result<(), SetupError> {
        self.keys = Keyring::new(keys)?;
        if self.closing.is_some() {
            return Ok(());
        }
        self.attempt = None; // the next knocks with the keys of now
        self.move_after = now;
        let was_cur = self.slots.cur.is_some();
        let Link { slots, keys, .. } = self;
        slots.retain(now, |session| keys.allows(&session.pair, &session.psk));
        if was_cur && self.slots.cur.is_none() {
            self.lose(now, DownCause::KeyRemoved);
        }
        self.settle(now);
        Ok(())
    }

    /// The pairs this end is met under: those it is set up with, and that of `cur` until the link has moved from it. Three at
    /// most.
    pub(super) fn pairs(&self) -> impl Iterator<Item = &Arc<Pair>> {
        let retired = self.slots.cur.as_ref().map(|cur| &cur.pair).filter(|pair| !self.keys.lists(pair));
        self.keys.pairs.iter().chain(retired)
    }

    /// The pair that the peer has made this cold-open datagram with.
    pub(super) fn pair_of(&self, datagram: &[u8]) -> Option<Arc<Pair>> {
        self.pairs().find(|pair| pair.made(datagram)).cloned()
    }

    /// Tells the ingress loop whose cold-open datagrams to take, should that have changed.
    pub(super) fn tell_keys(&mut self) {
        if self.pairs().map(|pair| pair.id()).eq(self.taken.iter().copied()) {
            return;
        }
        let (taken, keys): (Vec<PairId>, Vec<_>) =
            self.pairs().map(|pair| (pair.id(), pair.keys.receiving.clone())).unzip();
        self.taken = taken;
        self.outputs.push_back(Output::Ingress(IngressUpdate::Keys(keys)));
    }

    /// Whether `cur` was made with other keys than a new session would be, as far as that is for this end to decide.
    pub(super) fn wants_to_move(&self) -> bool {
        self.slots.cur.as_ref().is_some_and(|cur| !self.keys.prefers(&cur.pair, &cur.psk))
    }

    /// When to try that.
    pub(super) fn move_due(&self) -> Option<Time> {
        let may = self.closing.is_none() && self.slots.boot.is_none();
        (may && self.wants_to_move()).then_some(self.move_after)
    }

    /// The peer did not take this end's new key.
    pub(super) fn fail_to_move(&mut self, now: Time) {
        self.move_after = now + PAUSE_REFUSED;
        if let Some(cur) = &self.slots.cur {
            let own = !self.keys.lists(&cur.pair);
            self.event(Event::NotMoved { own });
        }
    }

    pub(super) fn keys_of(&self, session: &Session) -> KeysInUse {
        let preshared = self.keys.position(&session.psk).filter(|_| self.keys.has_psk);
        KeysInUse { own: session.pair.own, peer: session.pair.peer, preshared: preshared.map(|at| at + 1) }
    }

    /// Says so if `cur` is under other keys than the session before it.
    pub(super) fn note_keys(&mut self) {
        let Some(cur) = &self.slots.cur else {
            return;
        };
        let (pair, psk) = (cur.pair.id(), cur.psk.clone());
        let (keys, same) = (self.keys_of(cur), |(before, old): &(PairId, Psk)| *before == pair && old.same(&psk));
        let news = self.keys_in_use.as_ref().is_some_and(|before| !same(before));
        self.keys_in_use = Some((pair, psk));
        if news {
            self.event(Event::Keys(keys));
        }
    }
}

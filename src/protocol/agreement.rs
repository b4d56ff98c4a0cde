//! One MTU for a link: what both ends hold their interfaces to, so that whoever compares them, as OSPF does (RFC 2328 §10.6), finds
//! the same at both.
//!
//! Each end decides for the direction it sends in, by what its search finds there, and says so to the other ([`MtuOffer`]): the
//! lower of both offers is the link's size, at both ends at once. So each real change is judged by one end, once. A smaller
//! size is offered at once. A larger one has to hold for a while first, and for longer where sizes come and go: an MTU that
//! changes takes the neighbours of a routing daemon away.
//!
//! An end whose interface has a given MTU says that too, and the other takes it.

use super::{constants::*, control::MtuOffer, slots::Rank, time::Time};
use std::time::Duration;

/// What an interface is to be held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMtu {
    /// What passes both ways in one datagram.
    Found {
        /// Bytes of the largest datagram that this end has found to pass to the peer.
        to_peer: u16,
        /// The same that the peer has found in its direction; `None` where it does not say.
        from_peer: Option<u16>,
    },
    /// The peer's interface has this MTU, in bytes, whatever passes.
    Given(u16),
}

/// Larger sizes than the one offered, in a row.
#[derive(Debug)]
struct Growth {
    /// The smallest of them.
    least: u16,
    since: Time,
}

/// What this end offers, what the peer does, and what comes of it.
#[derive(Debug)]
pub(super) struct Agreement {
    own: MtuOffer,
    peer: Option<MtuOffer>,
    /// The rank and counter of the peer's newest offer.
    newest: Option<(Rank, u64)>,
    growth: Option<Growth>,
    /// For how long a larger size has to hold.
    hold: Duration,
    /// When a larger size was last offered.
    grown: Option<Time>,
    /// Since when the line is up.
    up: Option<Time>,
    /// How often the present offer was said …
    said: u32,
    /// … and when it is to be said again, until the peer says that it has it.
    again: Option<Time>,
    link: Option<LinkMtu>,
}

impl Agreement {
    pub fn new() -> Agreement {
        Agreement {
            own: MtuOffer::default(),
            peer: None,
            newest: None,
            growth: None,
            hold: MTU_HOLD,
            grown: None,
            up: None,
            said: 0,
            again: None,
            link: None,
        }
    }

    /// What the interface is to be held to; `None` until that is known.
    pub fn link(&self) -> Option<LinkMtu> {
        self.link
    }

    /// The own interface has this MTU whatever is found; with `None` it is the link's to choose.
    pub fn set_given(&mut self, now: Time, mtu: Option<u16>) {
        let own = MtuOffer { mtu: mtu.map(|mtu| mtu.clamp(LINK_MTU_MIN, LINK_MTU_MAX)), ..self.own };
        self.offer(now, own);
    }

    /// A message of the peer's, with what it offers and what it has of this end's. True if it wants to be answered.
    pub fn hear(&mut self, order: (Rank, u64), offer: MtuOffer, has: MtuOffer, ask: bool) -> bool {
        if self.newest.is_none_or(|newest| newest < order) {
            self.newest = Some(order);
            // An end that was started anew knows its MTU at once, and the size not yet.
            let size = offer.size.or(self.peer.and_then(|peer| peer.size));
            self.peer = Some(MtuOffer { size, ..offer });
        }
        if has == self.own {
            self.again = None;
        }
        ask
    }

    /// What to say: this end's offer, what it has of the peer's, and whether that is to be answered.
    pub fn message(&self) -> (MtuOffer, MtuOffer, bool) {
        (self.own, self.peer.unwrap_or_default(), self.again.is_some())
    }

    /// When [`Agreement::step`] has something to do.
    pub fn deadline(&self) -> Option<Time> {
        let up = self.up?;
        let growth = self.growth.as_ref().map(|growth| growth.since + self.hold);
        let waits = self.peer.is_none_or(|peer| peer.size.is_none()) && self.link.is_none() && self.own.size.is_some();
        let alone = waits.then(|| up + MTU_OFFER_WAIT);
        [self.again, growth, alone].into_iter().flatten().min()
    }

    /// Takes what the search has found, while the line is up or not. True if the offer is to be said now.
    pub fn step(&mut self, now: Time, up: bool, found: Option<u16>) -> bool {
        if !up {
            (self.up, self.growth, self.again) = (None, None, None);
            return false;
        }
        if self.up.is_none() {
            // A peer that was started anew has heard nothing.
            (self.up, self.said, self.again) = (Some(now), 0, Some(now));
        }
        if let Some(found) = found {
            self.take(now, found.clamp(MTU_FLOOR, MTU_LARGEST));
        }
        self.decide(now);
        if self.again.is_none_or(|at| at > now) {
            return false;
        }
        if self.own == MtuOffer::default() {
            self.again = None; // nothing is known yet
            return false;
        }
        self.said += 1;
        let doublings = self.said.saturating_sub(MTU_OFFERS).min(16);
        self.again = Some(now + (MTU_OFFER_SPACING * (1 << doublings)).min(MTU_OFFER_SPACING_MAX));
        true
    }

    /// Judges a size that was found in this end's direction.
    fn take(&mut self, now: Time, found: u16) {
        let Some(size) = self.own.size.filter(|size| found != *size) else {
            self.growth = None;
            return self.offer(now, MtuOffer { size: Some(found), ..self.own });
        };
        if found < size {
            let soon = self.grown.is_some_and(|at| now.since(at) < MTU_HOLD_MAX);
            self.hold = if soon { (self.hold * 2).min(MTU_HOLD_MAX) } else { MTU_HOLD };
            self.growth = None;
            return self.offer(now, MtuOffer { size: Some(found), ..self.own });
        }
        let growth = self.growth.get_or_insert(Growth { least: found, since: now });
        growth.least = growth.least.min(found);
        if growth.since + self.hold <= now {
            let size = Some(growth.least);
            (self.growth, self.grown) = (None, Some(now));
            self.offer(now, MtuOffer { size, ..self.own });
        }
    }

    /// Offers this from now on.
    fn offer(&mut self, now: Time, own: MtuOffer) {
        if std::mem::replace(&mut self.own, own) != own {
            (self.said, self.again) = (0, self.up.map(|_| now));
        }
    }

    fn decide(&mut self, now: Time) {
        let peer = self.peer.unwrap_or_default();
        if let Some(mtu) = peer.mtu {
            self.link = Some(LinkMtu::Given(mtu));
        } else if let Some(to_peer) = self.own.size {
            // Frames that do not fit are cut meanwhile: better that than an MTU that changes twice.
            let waits =
                peer.size.is_none() && self.up.is_none_or(|up| now < up + MTU_OFFER_WAIT) && self.link.is_none();
            if !waits {
                self.link = Some(LinkMtu::Found { to_peer, from_peer: peer.size });
            }
        }
    }
}

#[cfg(test)]
mod tests;

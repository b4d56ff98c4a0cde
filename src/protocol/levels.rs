//! Levels: numbers one side writes and the other reads, so that nothing that matters depends on an event arriving.
//!
//! Each counter has one writer (a packet loop), so an addition is a plain load and store; readers may be a little
//! behind, never wrong.

use super::time::Time;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Adds `n`; only its one writer may.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    /// Adds one from any thread: for the rare counts that several loops share.
    pub fn bump(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Replaces the number; only its one writer may.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
}

/// What was dropped, by reason.
#[derive(Debug, Default)]
pub struct Drops {
    /// Nonce, stamp or window: seen before, or too old to tell.
    pub replayed: Counter,
    /// MAC, token or AEAD: not from the peer, or damaged.
    pub unauthentic: Counter,
    /// Length, header or range.
    pub malformed: Counter,
    /// An unknown index, or user data while there is no session.
    pub no_session: Counter,
    /// User frames that did not fit one datagram.
    pub too_big: Counter,
    /// User frames that met congestion on the way, and whose sender knows of no other mark than loss (RFC 6040).
    pub congested: Counter,
    /// User frames from the peer with a source it may not have.
    pub source: Counter,
    /// User frames that came out of the link and were about to be sent back into it.
    pub returned: Counter,
    /// The link's own datagrams that a route sent into the link.
    pub looped: Counter,
    /// User frames from the peer that the interface did not take because it is administratively down.
    pub interface_down: Counter,
    /// User frames from the peer that the interface did not take as they are.
    pub interface_invalid: Counter,
    /// User frames from the peer that the interface did not take for another reason, such as lack of memory.
    pub interface_write: Counter,
}

/// The levels of a whole link.
#[derive(Debug, Default)]
pub struct Levels {
    /// What was dropped, by reason.
    pub drops: Drops,
    /// The largest datagram that is sent to the peer, as far as that is known: 0 at first.
    pub largest: Counter,
}

/// The levels of one data lane, kept over a cold open and its children.
#[derive(Debug, Default)]
pub struct LaneLevels {
    /// Datagrams sealed and handed to the socket.
    pub sent: Counter,
    /// Datagrams opened.
    pub received: Counter,
    /// Datagrams that came a second time.
    pub duplicate: Counter,
    /// Datagrams older than the window.
    pub late: Counter,
    /// Datagrams that did not open.
    pub failed: Counter,
}

/// The levels of one session.
#[derive(Debug, Default)]
pub struct SessionLevels {
    /// Datagrams opened under it, on any lane.
    pub opened: Counter,
    /// When the newest of them was opened.
    heard: AtomicU64,
    /// Datagrams its fullest data lane sealed.
    pub sealed: Counter,
    /// Plaintext bytes its fullest data lane sealed.
    pub sealed_bytes: Counter,
    /// Datagrams above [`super::constants::MTU_FLOOR`] that were sealed: what a black hole would lose.
    pub large: Counter,
    /// The highest counter opened on a data lane, plus one: how far the peer is with its keys.
    pub peer_sealed: Counter,
    /// Plaintext bytes opened on its data lanes.
    pub opened_bytes: Counter,
}

impl SessionLevels {
    /// When a datagram was last opened under this session.
    #[must_use]
    pub fn heard(&self) -> Option<Time> {
        (self.opened.get() > 0).then(|| Time(self.heard.load(Relaxed)))
    }

    pub(crate) fn hear(&self, now: Time) {
        self.heard.store(now.0, Relaxed);
        self.opened.add(1);
    }
}

//! What must not go from the interface into the link: its own datagrams, and what has just come out of it.

use super::Treatment;
use super::mailbox::{Message, Outbox};
use super::sockets::Sockets;
use crate::packet::own_datagrams::OwnDatagrams;
use crate::packet::returns::Returns;
use crate::packet::{Addresses, Layer, OwnAddresses};
use crate::protocol::levels::Levels;
use crate::protocol::{Path, Time};
use crate::sys::clock::boottime_ns;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Between two remarks that a route sends the link's own datagrams into it …
const LOOPED_EVERY: Duration = Duration::from_secs(1);
/// … and that packets were about to be sent back.
const RETURNED_EVERY: Duration = Duration::from_secs(60);

/// The egress loop's guard. For all but what it refuses it costs a few compares, and where a packet is forwarded a look into a table.
pub(super) struct Guard {
    own: OwnAddresses,
    returns: Option<Arc<Returns>>,
    levels: Arc<Levels>,
    outbox: Outbox,
    /// The path and the second one, and by which their datagrams are known.
    paths: [Option<Path>; 2],
    datagrams: OwnDatagrams,
    /// The time, once it was asked for in this turn.
    now: Option<Time>,
    /// When each of the two remarks may be made again.
    looped_due: Time,
    returned_due: Time,
}

impl Guard {
    pub(super) fn new(treatment: &Treatment, levels: Arc<Levels>, outbox: Outbox) -> Self {
        Guard {
            own: treatment.own.clone(),
            returns: treatment.returns.clone(),
            levels,
            outbox,
            paths: [None; 2],
            datagrams: OwnDatagrams::default(),
            now: None,
            looped_due: Time(0),
            returned_due: Time(0),
        }
    }

    /// The link's own datagrams go by these from now on.
    pub(super) fn watch(&mut self, paths: [Option<Path>; 2]) {
        self.paths = paths;
        self.datagrams = OwnDatagrams::to(paths.map(|path| path.map(|path| path.peer)));
    }

    /// Some frames are looked at soon, all of them at the same time.
    pub(super) fn begin_turn(&mut self) {
        self.now = None;
    }

    /// Whether a frame from the interface must not go into the link. Such a one is counted, and now and then told.
    ///
    /// # Errors
    /// When there is no clock.
    pub(super) fn refuses(&mut self, layer: Layer, frame: &[u8], sockets: &Sockets) -> io::Result<bool> {
        let Ok(Some(network)) = layer.network(frame) else { return Ok(false) };
        let Some(addresses) = Addresses::of(network, frame) else { return Ok(false) };
        if let Some(which) = self.datagrams.path_of(network, frame, &addresses, sockets.ports()) {
            self.levels.drops.looped.bump();
            self.remark_looped(which)?;
            return Ok(true);
        }
        let Some(returns) = &self.returns else { return Ok(false) };
        if self.own.has_source_of(&addresses) || self.own.is_for_many(&addresses) {
            return Ok(false);
        }
        let now = now(&mut self.now)?;
        if !returns.comes_back(&addresses, now.0) {
            return Ok(false);
        }
        self.levels.drops.returned.bump();
        if now >= self.returned_due {
            self.returned_due = now + RETURNED_EVERY;
            self.outbox.remark(Message::Returned { destination: addresses.destination() });
        }
        Ok(true)
    }

    fn remark_looped(&mut self, which: usize) -> io::Result<()> {
        let now = now(&mut self.now)?;
        if let Some(path) = self.paths[which].filter(|_| now >= self.looped_due) {
            self.looped_due = now + LOOPED_EVERY;
            self.outbox.remark(Message::Looped { path });
        }
        Ok(())
    }
}

/// The time: asked for once, and kept until it is taken away.
fn now(kept: &mut Option<Time>) -> io::Result<Time> {
    match *kept {
        Some(now) => Ok(now),
        None => Ok(*kept.insert(Time(boottime_ns()?))),
    }
}

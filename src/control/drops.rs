//! What this end drops and why, in words for the log: each names the cause and the remedy, and none comes often.

use crate::protocol::{Path, Time};
use std::net::IpAddr;
use std::time::Duration;
use tracing::warn;

/// Between two lines that say the same.
const AGAIN: Duration = Duration::from_secs(60);

/// When lines that the loops may ask for more often were last written.
#[derive(Debug, Default)]
pub(super) struct DropLog {
    looped: Option<Time>,
}

impl DropLog {
    /// A packet from the peer had a source that is not the peer's.
    pub(super) fn foreign_source(&self, source: IpAddr, (prefix, length): (IpAddr, u8)) {
        warn!(
            "dropped a packet from {source}, of {prefix}/{length}, that came out of the link: this network is outside `routes` and is \
             not the link's own; add it to `routes`, or set source_filter = false in [link] if others route it here"
        );
    }

    /// A packet was about to be sent back to where it came from.
    pub(super) fn returned(&self, destination: IpAddr) {
        warn!(
            "packets for {destination} came out of the link and were about to be sent back into it, and were dropped: no host has \
             this address here, or a route points the wrong way"
        );
    }

    /// The link's own datagrams were about to be sent into the link.
    pub(super) fn looped(&mut self, now: Time, path: Path) {
        if self.looped.is_some_and(|last| now < last + AGAIN) {
            return;
        }
        self.looped = Some(now);
        let peer = path.peer;
        warn!(
            "a route sends the link's own datagrams to {peer} into the link itself, and they are dropped: give {} a route by another \
             interface",
            peer.ip()
        );
    }
}

//! What this end drops and why, in words for the log: each names the cause and the remedy, and none comes often.

use crate::protocol::Time;
use std::net::IpAddr;
use std::time::Duration;
use tracing::warn;

/// The loops tell of a datagram of the link's own once a second: after so long without, it is over.
const LOOP_OVER: Duration = Duration::from_secs(10);

/// What the loops tell of more often than the log should.
#[derive(Debug, Default)]
pub(super) struct DropLog {
    looped: Option<Loop>,
}

/// The link's own datagrams were about to be sent into the link.
#[derive(Clone, Copy, Debug)]
struct Loop {
    peer: IpAddr,
    /// When that was told first and last. Told once, it may have been over before the routes were mended.
    first: Time,
    last: Time,
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

    /// The link's own datagrams to this peer were about to be sent into the link. `known` if the route that does it has been named.
    pub(super) fn looped(&mut self, now: Time, peer: IpAddr, known: bool) {
        let before = self.looped.filter(|before| now.since(before.last) < LOOP_OVER);
        let first = before.map_or(now, |before| before.first);
        self.looped = Some(Loop { peer, first, last: now });
        let second = before.is_some_and(|before| before.first == before.last);
        if second && !known {
            warn!("{}", loop_in_words(peer));
        }
    }

    /// What is wrong while the link's own datagrams come back to it.
    pub(super) fn loop_at(&self, now: Time) -> Option<String> {
        let going_on = |found: &Loop| found.first != found.last && now.since(found.last) < LOOP_OVER;
        self.looped.filter(going_on).map(|found| loop_in_words(found.peer))
    }
}

fn loop_in_words(peer: IpAddr) -> String {
    format!(
        "the link's own datagrams to {peer} are sent into the link itself, and are dropped: a rule or a firewall's mark leads them there \
         (ip rule; nft list ruleset); give {peer} a route by an uplink that comes before it"
    )
}

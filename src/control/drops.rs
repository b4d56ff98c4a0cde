//! What this end drops and why, in words for the log: each names the cause and the remedy, and none comes often.

use std::net::IpAddr;
use tracing::warn;

/// A packet from the peer had a source that is not the peer's.
pub(super) fn foreign_source(source: IpAddr, (prefix, length): (IpAddr, u8)) {
    warn!(
        "dropped a packet from {source}, of {prefix}/{length}, that came out of the link: this network is outside `routes` and is \
         not the link's own; add it to `routes`, or set source_filter = false in [link] if others route it here"
    );
}

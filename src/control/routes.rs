//! The kernel's routing goes by the line: routes are there while it is, and a carrier that is lost counts at once.

use crate::config::{Carrier, LinkConfig};
use crate::sys::netlink::{Netlink, NetlinkError};
use ipnet::IpNet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

/// A route that could not be set or taken away is tried again so often.
const AGAIN: Duration = Duration::from_secs(5);

/// Those routes of a link that come and go, and which of them are there.
pub(super) struct Routes {
    netlink: Netlink,
    index: u32,
    metric: Option<u32>,
    list: Vec<(IpNet, bool)>,
    carrier: Carrier,
}

impl Routes {
    /// None of them is there yet.
    pub(super) fn new(netlink: Netlink, index: u32, config: &LinkConfig) -> Routes {
        let list = config.routes.iter().filter(|_| config.routes_follow).map(|route| (*route, false)).collect();
        Routes { netlink, index, metric: config.metric, list, carrier: config.carrier }
    }

    /// Follows the line until nobody tells of it any more. What it misses meanwhile it need not know.
    pub(super) async fn follow(mut self, mut line: watch::Receiver<bool>) {
        let mut complained = false;
        loop {
            let on = *line.borrow_and_update();
            if self.carrier == Carrier::Peer
                && let Err(error) = self.netlink.notice_carrier(self.index).await
            {
                debug!("routes see the carrier on the kernel's own time: {error}");
            }
            let result = self.set(on).await;
            let failed = result.is_err();
            if let Err(error) = result
                && !std::mem::replace(&mut complained, true)
            {
                warn!("{error}; trying again every {AGAIN:?}");
            }
            complained &= failed;
            tokio::select! {
                changed = line.changed() => if changed.is_err() { return },
                () = sleep(AGAIN), if failed => {}
            }
        }
    }

    /// Sets those that are missing, or takes away those that are there. What fails keeps no other from it.
    async fn set(&mut self, on: bool) -> Result<(), NetlinkError> {
        let mut result = Ok(());
        for (route, there) in self.list.iter_mut().filter(|(_, there)| *there != on) {
            let (network, length) = (route.addr(), route.prefix_len());
            let done = match on {
                true => self.netlink.add_route(self.index, network, length, self.metric).await,
                false => self.netlink.del_route(self.index, network, length, self.metric).await,
            };
            if done.is_ok() {
                *there = on;
            }
            result = result.and(done);
        }
        result
    }
}

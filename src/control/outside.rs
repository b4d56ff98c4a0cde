//! Where everything goes into the link (`0.0.0.0/0`, `::/0`): how the link's own datagrams stay outside.
//!
//! They have a mark, and the default routes are in a table of their own, which is for what has no mark ([`Netlink::add_rules`]). So it does
//! not matter where the peer is, whether it moves, and by which of the machine's ways it is reached today: marked datagrams see
//! the routes there would be without the link. The routes go with the interface; the rules are taken away here, and change nothing if
//! they are left by a process that was killed.

use crate::config::Config;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::sysctl;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{debug, warn};

/// How long taking the rules away may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The rules that are there while the link is.
pub(super) struct Outside {
    netlink: Netlink,
    mark: u32,
    /// For IPv6, for IPv4.
    families: Vec<bool>,
}

impl Outside {
    /// Sets the rules for those families whose default route goes into the link; often that is none.
    ///
    /// # Errors
    /// When the kernel refuses them, or the table they lead to is in use. None of them is left then.
    pub(super) async fn begin(netlink: Netlink, config: &Config) -> Result<Outside, NetlinkError> {
        let default = |v6| move |net: &&ipnet::IpNet| net.prefix_len() == 0 && net.addr().is_ipv6() == v6;
        let wanted = [false, true].into_iter().filter(|v6| config.link.routes.iter().any(|net| default(*v6)(&net)));
        let mut outside = Outside { netlink, mark: config.mark().unwrap_or_default(), families: Vec::new() };
        for v6 in wanted {
            if outside.netlink.has_routes(v6, outside.mark).await? {
                outside.end().await;
                return Err(NetlinkError::taken(format!("using routing table {} ([local] fwmark)", outside.mark)));
            }
            outside.families.push(v6);
            if let Err(error) = outside.netlink.add_rules(v6, outside.mark).await {
                outside.end().await;
                return Err(error);
            }
        }
        if outside.families.contains(&false) {
            warn_of_strict_filters();
        }
        Ok(outside)
    }

    /// Takes the rules away.
    pub(super) async fn end(&mut self) {
        for v6 in std::mem::take(&mut self.families) {
            match timeout(PATIENCE, self.netlink.del_rules(v6, self.mark)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!("{error}; it changes nothing any more, and `ip rule del` takes it away"),
                Err(_) => debug!("routing rules for mark {:#x} are left", self.mark),
            }
        }
    }
}

/// A strict reverse path filter (RFC 3704) looks where an answer to the peer would go without the mark: into the link.
fn warn_of_strict_filters() {
    for interface in sysctl::strictly_filtered() {
        warn!(
            "what the peer sends will be dropped where it comes in at {interface}: net.ipv4.conf.{interface}.rp_filter is 1, and \
             everything goes into the link; set it to 2"
        );
    }
}

//! Policy routing (`man 8 ip-rule`): everything goes by a table of its own, but for packets with a mark.
//!
//! Two rules for each family, before the main table's own (32,766) and behind those anyone made beforehand:
//!
//! ```text
//!   32700: not from all fwmark M lookup main suppress_prefixlength 0    what the machine has a route of its own for stays
//!   32701: not from all fwmark M lookup M                               all else goes by table M
//! ```
//!
//! Rules do not go with an interface. But with table M empty, as it is when the interface is gone, they change nothing.

use super::{Netlink, NetlinkError, done};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use std::net::{Ipv4Addr, Ipv6Addr};

const NEAR: u32 = 32_700;
const FAR: u32 = 32_701;
/// `RT_TABLE_MAIN` (linux/rtnetlink.h).
const MAIN: u8 = 254;

impl Netlink {
    /// Sends what has not this mark by the table of the mark's number, unless the main table has a route for it other than a default
    /// one. Rules that are there already, from a process that was killed, are left.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or where the kernel has no such rules or not the family.
    pub async fn add_rules(&self, v6: bool, mark: u32) -> Result<(), NetlinkError> {
        let action = || format!("adding a routing rule for mark {mark:#x}");
        for rule in rules(v6, mark) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule;
            match done(request.execute().await, action) {
                Err(error) if error.source.raw_os_error() == Some(Errno::EEXIST as i32) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Takes these rules away. That they are not there is no error.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub async fn del_rules(&self, v6: bool, mark: u32) -> Result<(), NetlinkError> {
        for rule in rules(v6, mark) {
            let action = || format!("removing a routing rule for mark {mark:#x}");
            match done(self.handle.rule().del(rule).execute().await, action) {
                Err(error) if error.source.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether a table has routes.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all routes.
    pub async fn has_routes(&self, v6: bool, table: u32) -> Result<bool, NetlinkError> {
        // Without a destination it asks for all there are.
        let query = match v6 {
            true => RouteMessageBuilder::<Ipv6Addr>::new().build(),
            false => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        };
        let action = || format!("looking at routing table {table}");
        let mut routes = self.handle.route().get(query).execute();
        while let Some(route) = done(routes.try_next().await, action)? {
            let named = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Table(number) => Some(*number),
                _ => None,
            });
            if named.unwrap_or(route.header.table.into()) == table {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn rules(v6: bool, mark: u32) -> [RuleMessage; 2] {
    let rule = |priority| {
        let mut rule = RuleMessage::default();
        rule.header.family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        rule.header.action = RuleAction::ToTable;
        rule.header.flags = RuleFlags::Invert;
        rule.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::FwMark(mark)];
        rule
    };
    let (mut near, mut far) = (rule(NEAR), rule(FAR));
    near.header.table = MAIN;
    near.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    far.attributes.push(RuleAttribute::Table(mark));
    [near, far]
}

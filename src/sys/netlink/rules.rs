//! Policy routing (`man 8 ip-rule`): the links' default routes have a table of their own, and the links' own datagrams stay out of it.
//!
//! All rules stand before the main table's own (32,766) and behind those that anyone made beforehand. They carry
//! [`PROTOCOL`]. Those of a port, for as long as a link's own datagrams would enter a link:
//!
//! ```text
//!   32689: iif lo ipproto udp sport PORT lookup 29458      routes to the peer, past any link
//!   32690: iif lo ipproto udp sport PORT goto 32702        past the default routes below
//!   32702: ipproto udp sport PORT nop                      where that leads
//! ```
//!
//! And those that all links with a default route share:
//!
//! ```text
//!   32700: not fwmark 0x7311 lookup main suppress_prefixlength 0    what the machine has a route of its own for stays
//!   32701: not fwmark 0x7311 lookup 29457                           all else goes by the links' default routes
//! ```
//!
//! The port tells a link's own datagrams from all others, whatever mark a firewall gives them. The kernel looks at ports again when the
//! firewall has changed a packet, and for its reverse path filter, only where a rule asks for ports without `iif lo`: that is what
//! the last of the three is for (`fib_rule_requires_fldissect`).

use super::own::{DEFAULTS, MAIN, PEERS, PROTOCOL};
use super::{Netlink, NetlinkError, done};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange};

/// The mark that the shared rules pass over.
pub const MARK: u32 = DEFAULTS;

const TO_PEERS: u32 = 32_689;
const PAST: u32 = 32_690;
const NEAR: u32 = 32_700;
const FAR: u32 = 32_701;
const BEYOND: u32 = 32_702;

/// What a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// The link's own datagrams go by the table of routes to peers.
    ToPeers,
    /// They go past the links' default routes.
    Past,
    /// Where [`Purpose::Past`] leads.
    Beyond,
    /// What the main table has a route for, other than a default one, goes by that.
    Near,
    /// All else goes by the links' default routes.
    Far,
}

/// A rule of tieline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnRule {
    /// Whether it is for IPv6, and not for IPv4.
    pub v6: bool,
    /// What it is for.
    pub purpose: Purpose,
    /// The UDP port it is about, and whose it is; `None` for those that all links share.
    pub port: Option<(u16, Owner)>,
}

/// The link that a rule belongs to. The kernel keeps it as a group of interfaces that no interface is in (`suppress_ifgroup`), as it
/// keeps nothing else of a rule that would not change what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u16);

/// Above any group that people number.
const GROUPS: u32 = 0x7311_0000;

impl OwnRule {
    /// The three rules that keep a link's own datagrams, from a UDP port, out of every link.
    pub fn of_port(v6: bool, port: u16, owner: Owner) -> [OwnRule; 3] {
        [Purpose::Beyond, Purpose::ToPeers, Purpose::Past].map(|purpose| OwnRule {
            v6,
            purpose,
            port: Some((port, owner)),
        })
    }

    /// The two that lead to the links' default routes.
    pub fn shared(v6: bool) -> [OwnRule; 2] {
        [Purpose::Near, Purpose::Far].map(|purpose| OwnRule { v6, purpose, port: None })
    }

    fn message(&self) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = if self.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let mut attributes = vec![RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL))];
        if let Some((port, Owner(owner))) = self.port {
            attributes.push(RuleAttribute::IpProtocol(IpProtocol::Udp));
            attributes.push(RuleAttribute::SourcePortRange(RulePortRange { start: port, end: port }));
            attributes.push(RuleAttribute::SuppressIfGroup(GROUPS | u32::from(owner)));
        }
        rule.header.action = match self.purpose {
            Purpose::Past => RuleAction::Goto,
            Purpose::Beyond => RuleAction::Nop,
            Purpose::ToPeers | Purpose::Near | Purpose::Far => RuleAction::ToTable,
        };
        let local = || RuleAttribute::Iifname("lo".to_owned());
        match self.purpose {
            Purpose::ToPeers => {
                attributes.extend([RuleAttribute::Priority(TO_PEERS), RuleAttribute::Table(PEERS), local()]);
            }
            Purpose::Past => attributes.extend([RuleAttribute::Priority(PAST), RuleAttribute::Goto(BEYOND), local()]),
            Purpose::Beyond => attributes.push(RuleAttribute::Priority(BEYOND)),
            Purpose::Near => {
                let (table, suppress) = (RuleAttribute::Table(MAIN), RuleAttribute::SuppressPrefixLen(0));
                attributes.extend([RuleAttribute::Priority(NEAR), table, suppress, RuleAttribute::FwMark(MARK)]);
                rule.header.flags = RuleFlags::Invert;
            }
            Purpose::Far => {
                let table = RuleAttribute::Table(DEFAULTS);
                attributes.extend([RuleAttribute::Priority(FAR), table, RuleAttribute::FwMark(MARK)]);
                rule.header.flags = RuleFlags::Invert;
            }
        }
        rule.attributes = attributes;
        rule
    }

    /// What the kernel's answer says, if it is exactly a rule of tieline's.
    fn read(message: &RuleMessage) -> Option<OwnRule> {
        let (mut protocol, mut priority, mut port, mut owner) = (None, 0, None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Protocol(number) => protocol = Some(*number),
                RuleAttribute::Priority(number) => priority = *number,
                RuleAttribute::SourcePortRange(range) if range.start == range.end => port = Some(range.start),
                RuleAttribute::SuppressIfGroup(group) if group & GROUPS == GROUPS => owner = Some(Owner(*group as u16)),
                _ => {}
            }
        }
        if protocol != Some(RouteProtocol::Other(PROTOCOL)) {
            return None;
        }
        let purpose = match priority {
            TO_PEERS => Purpose::ToPeers,
            PAST => Purpose::Past,
            NEAR => Purpose::Near,
            FAR => Purpose::Far,
            BEYOND => Purpose::Beyond,
            _ => return None,
        };
        Some(OwnRule { v6: message.header.family == AddressFamily::Inet6, purpose, port: port.zip(owner) })
    }
}

impl Netlink {
    /// All rules of tieline's, of every link of this network namespace.
    ///
    /// # Errors
    /// Whatever the kernel says to a question for all rules; one without a family's rules has none.
    pub async fn own_rules(&self) -> Result<Vec<OwnRule>, NetlinkError> {
        let mut found = Vec::new();
        for family in [IpVersion::V4, IpVersion::V6] {
            let mut rules = self.handle.rule().get(family).execute();
            loop {
                match done(rules.try_next().await, || "reading the routing rules".to_owned()) {
                    Ok(Some(rule)) => found.extend(OwnRule::read(&rule)),
                    Ok(None) => break,
                    Err(error) if error.is(Errno::EOPNOTSUPP) || error.is(Errno::EAFNOSUPPORT) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    /// Adds a rule. That it is there already is no error.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, or where the kernel has no such rules (before Linux 4.17) or not the family.
    pub async fn add_own_rule(&self, rule: &OwnRule) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.message();
        match done(request.execute().await, || format!("adding routing rule {}", rule.priority())) {
            Err(error) if error.is(Errno::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes a rule away. That it is not there is no error.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub async fn remove_own_rule(&self, rule: &OwnRule) -> Result<(), NetlinkError> {
        let action = || format!("removing routing rule {}", rule.priority());
        match done(self.handle.rule().del(rule.message()).execute().await, action) {
            Err(error) if error.is(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

impl OwnRule {
    /// Its place among the machine's rules.
    #[must_use]
    pub fn priority(&self) -> u32 {
        match self.purpose {
            Purpose::ToPeers => TO_PEERS,
            Purpose::Past => PAST,
            Purpose::Near => NEAR,
            Purpose::Far => FAR,
            Purpose::Beyond => BEYOND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::tests::in_own_network;
    use crate::sys::testing::{output, shell};

    #[test]
    fn own_rules_are_told_from_all_others_and_alone_removed() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            shell("ip rule add pref 32701 fwmark 7 lookup 29457; ip rule add pref 32690 from 10.0.0.0/8 lookup 7");
            let before = output("ip rule; ip -6 rule");
            let mut all: Vec<OwnRule> = [false, true]
                .into_iter()
                .flat_map(|v6| {
                    let ports = [(7311, Owner(1)), (7312, Owner(0xFFFF))];
                    let of_ports = ports.into_iter().flat_map(move |(port, owner)| OwnRule::of_port(v6, port, owner));
                    of_ports.chain(OwnRule::shared(v6))
                })
                .collect();
            for rule in &all {
                netlink.add_own_rule(rule).await.unwrap_or_else(|error| panic!("{rule:?}: {error}"));
                netlink.add_own_rule(rule).await.unwrap();
            }
            let mut found = netlink.own_rules().await.unwrap();
            found.sort();
            all.sort();
            assert_eq!(found, all);
            for rule in &all {
                netlink.remove_own_rule(rule).await.unwrap();
                netlink.remove_own_rule(rule).await.unwrap();
            }
            assert_eq!(netlink.own_rules().await.unwrap(), []);
            assert_eq!(output("ip rule; ip -6 rule"), before, "another's rule was touched");
        });
    }
}

//! What changes in the kernel's tables, as it changes: the notifications of rtnetlink (`man 7 rtnetlink`, `RTNLGRP_*`).

use super::own::PROTOCOL;
use futures_util::StreamExt;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use std::io;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface: made, deleted, renamed, up, down, or with another MTU.
    Link {
        /// Its index.
        index: u32,
    },
    /// An interface's addresses.
    Address {
        /// Its index.
        index: u32,
    },
    /// A route.
    Route {
        /// Whether it carries tieline's protocol number.
        own: bool,
        /// The interface it leads to.
        oif: Option<u32>,
    },
    /// A rule of policy routing.
    Rule {
        /// Whether it carries tieline's protocol number.
        own: bool,
    },
    /// There was more than could be taken in: anything may have changed.
    Overrun,
}

/// A change, and who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What has changed.
    pub change: Change,
    /// The netlink port of whoever asked for it, most often its process's id; `None` where the kernel did it by itself.
    pub by: Option<u32>,
}

/// The notifications of the network namespace it was opened in.
pub struct Monitor {
    notifications: UnboundedReceiver<Notification>,
    tasks: [JoinHandle<()>; 2],
}

impl Monitor {
    /// Begins to listen, with tasks of its own on the current tokio runtime; they end when this is dropped.
    ///
    /// # Errors
    /// Whatever socket(2) and bind(2) say.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`tokio::spawn`] does.
    pub fn open() -> io::Result<Monitor> {
        let (connection, handle, mut messages) = new_multicast_connection(&GROUPS)?;
        let (tell, notifications) = mpsc::unbounded_channel();
        let read = async move {
            // The connection lives as long as somebody may ask it something.
            let _handle = handle;
            while let Some((message, _)) = messages.next().await {
                let by = Some(message.header.port_number).filter(|port| *port != 0);
                if let Some(change) = change(&message.payload)
                    && tell.send(Notification { change, by }).is_err()
                {
                    return;
                }
            }
        };
        Ok(Monitor { notifications, tasks: [tokio::spawn(connection), tokio::spawn(read)] })
    }

    /// The next change; waits for ever if there is none. Cancel-safe.
    pub async fn next(&mut self) -> Notification {
        match self.notifications.recv().await {
            Some(notification) => notification,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn change(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
    use RouteNetlinkMessage as M;
    let message = match payload {
        NetlinkPayload::InnerMessage(message) => message,
        NetlinkPayload::Overrun(_) => return Some(Change::Overrun),
        _ => return None,
    };
    Some(match message {
        M::NewLink(link) | M::DelLink(link) if !of_wireless(link) => Change::Link { index: link.header.index },
        M::NewAddress(address) | M::DelAddress(address) => Change::Address { index: address.header.index },
        M::NewRoute(route) | M::DelRoute(route) => of_route(route),
        M::NewRule(rule) | M::DelRule(rule) => of_rule(rule),
        _ => return None,
    })
}

/// Scans of a wireless interface come as changes of it many times a second, and change nothing.
fn of_wireless(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Wireless(_)))
}

fn of_route(route: &RouteMessage) -> Change {
    let oif = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    Change::Route { own: route.header.protocol == RouteProtocol::Other(PROTOCOL), oif }
}

fn of_rule(rule: &RuleMessage) -> Change {
    let own = RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL));
    Change::Rule { own: rule.attributes.contains(&own) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netlink::Netlink;
    use crate::sys::netlink::tests::in_own_network;
    use crate::sys::testing::shell;
    use std::time::Duration;

    #[test]
    fn each_kind_of_change_is_told() {
        in_own_network(async {
            let netlink = Netlink::open().unwrap();
            shell("ip link add left type veth peer name right && ip link set right up");
            let left = netlink.index("left").await.unwrap();
            let mut monitor = Monitor::open().unwrap();
            let own = |own, oif| Change::Route { own, oif };
            for (command, change) in [
                ("ip link set left up", Change::Link { index: left }),
                ("ip addr add 192.0.2.1/24 dev left", Change::Address { index: left }),
                ("ip -6 addr add 2001:db8::1/64 dev left nodad", Change::Address { index: left }),
                ("ip route add 10.0.0.0/8 dev left", own(false, Some(left))),
                ("ip route add 10.1.0.0/16 dev left proto 115", own(true, Some(left))),
                ("ip route del 10.1.0.0/16 dev left proto 115", own(true, Some(left))),
                ("ip rule add pref 77 lookup 77", Change::Rule { own: false }),
                ("ip -6 rule add pref 77 lookup 77 proto 115", Change::Rule { own: true }),
                ("ip link del left", Change::Link { index: left }),
            ] {
                shell(command);
                let seen = async {
                    loop {
                        let next = monitor.next().await;
                        if next.change == change {
                            return next.by;
                        }
                    }
                };
                tokio::time::timeout(Duration::from_secs(15), seen).await.unwrap_or_else(|_| panic!("{command}"));
            }
        });
    }
}

//! When what another program has taken away is set again, and what the log says of it. Time is an argument.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

use crate::sys::netlink::own::{OwnRoute, PEERS, Target};
use crate::sys::netlink::rules::OwnRule;

/// What is gone again so soon after it was set was taken away by a program that answers to that, …
const AT_ONCE: Duration = Duration::from_millis(250);
/// … if it happens so often in a row.
const IN_A_ROW: u32 = 10;
/// From then on it is set again this often only.
const TRUCE: Duration = Duration::from_secs(5);
/// A line of the log at most this often.
const SPACING: Duration = Duration::from_secs(1);
/// So many things, and so many processes, are named in one line.
const NAMED: (usize, usize) = (12, 3);

/// Something that should be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    Address(IpNet),
    Route(OwnRoute),
    Rule(OwnRule),
    Bridge(String),
    Group,
    /// The interface's, in bytes.
    Mtu(u32),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Address(address) => write!(f, "address {address}"),
            Item::Route(OwnRoute { network, table: PEERS, .. }) => {
                write!(f, "the route to the peer at {}", network.addr())
            }
            Item::Route(OwnRoute { network, target: Target::Unreachable, .. }) => {
                write!(f, "unreachable route {network}")
            }
            Item::Route(OwnRoute { network, .. }) => write!(f, "route {network}"),
            Item::Rule(rule) => write!(f, "{} rule {}", if rule.v6 { "IPv6" } else { "IPv4" }, rule.priority()),
            Item::Bridge(bridge) => write!(f, "membership of bridge {bridge}"),
            Item::Mtu(mtu) => write!(f, "MTU {mtu}"),
            Item::Group => f.write_str("the interface's group"),
        }
    }
}

/// How often one thing was taken away at once.
#[derive(Clone, Copy, Debug)]
struct Contest {
    restored: Instant,
    in_a_row: u32,
}

/// What was restored, how often, and what there is to say of it.
#[derive(Debug, Default)]
pub(super) struct Restorer {
    contests: BTreeMap<Item, Contest>,
    restored: BTreeSet<String>,
    given_up: BTreeSet<String>,
    /// The processes that have asked for changes since the last line.
    by: BTreeSet<u32>,
    said: Option<Instant>,
}

impl Restorer {
    /// Something is missing that was there: whether it is to be set now.
    pub(super) fn may_restore(&mut self, now: Instant, item: &Item) -> bool {
        let Some(contest) = self.contests.get(item) else { return true };
        contest.in_a_row < IN_A_ROW || now >= contest.restored + TRUCE
    }

    /// It was set again.
    pub(super) fn restored(&mut self, now: Instant, item: &Item) {
        let contest = self.contests.entry(item.clone()).or_insert(Contest { restored: now, in_a_row: 0 });
        let fought = contest.in_a_row >= IN_A_ROW;
        let limit = if fought { TRUCE + AT_ONCE } else { AT_ONCE };
        let at_once = now.duration_since(contest.restored) < limit;
        let before = contest.in_a_row;
        *contest = Contest { restored: now, in_a_row: if at_once { before.saturating_add(1) } else { 0 } };
        if contest.in_a_row == IN_A_ROW {
            self.given_up.insert(item.to_string());
        } else if !(fought && at_once) {
            self.restored.insert(item.to_string());
        }
    }

    /// Somebody asked for a change of what is ours.
    pub(super) fn blame(&mut self, process: u32) {
        self.by.insert(process);
    }

    /// The next time that something is to be done without any news.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let truce = self.contests.values().filter(|contest| contest.in_a_row >= IN_A_ROW).map(|c| c.restored + TRUCE);
        let line = (!self.restored.is_empty() || !self.given_up.is_empty())
            .then(|| self.said.map_or(now, |said| said + SPACING));
        truce.filter(|at| *at > now).chain(line).min()
    }

    /// The line that is due now, if one is.
    pub(super) fn line(&mut self, now: Instant) -> Option<String> {
        if (self.restored.is_empty() && self.given_up.is_empty()) || self.said.is_some_and(|said| now < said + SPACING)
        {
            return None;
        }
        self.said = Some(now);
        let by = match std::mem::take(&mut self.by) {
            processes if processes.is_empty() => "another program or the kernel".to_owned(),
            processes => format!("process {}", list(&processes, NAMED.1)),
        };
        let mut sentences = Vec::new();
        let restored = std::mem::take(&mut self.restored);
        if !restored.is_empty() {
            sentences.push(format!("restored what {by} had removed or changed: {}", list(&restored, NAMED.0)));
        }
        let given_up = std::mem::take(&mut self.given_up);
        if !given_up.is_empty() {
            sentences.push(format!(
                "{by} removes or changes {} each time it is restored: stop that program from managing this interface; until then tieline \
                 tries again every {} s only",
                list(&given_up, NAMED.0),
                TRUCE.as_secs()
            ));
        }
        Some(sentences.join("; "))
    }
}

fn list<T: ToString>(of: &BTreeSet<T>, most: usize) -> String {
    let named: Vec<String> = of.iter().take(most).map(ToString::to_string).collect();
    let more = of.len().saturating_sub(most);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Item {
        Item::Address("10.99.0.1/30".parse().unwrap())
    }

    #[test]
    fn what_is_removed_now_and_then_is_restored_each_time() {
        let (mut restorer, start) = (Restorer::default(), Instant::now());
        for n in 0..100 {
            let now = start + Duration::from_millis(300) * n;
            assert!(restorer.may_restore(now, &address()), "{n}");
            restorer.restored(now, &address());
        }
    }

    #[test]
    fn a_program_that_removes_it_at_once_is_named_and_then_let_be() {
        let (mut restorer, start) = (Restorer::default(), Instant::now());
        let (mut tries, mut lines) = (0, Vec::new());
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            if ms % 10 == 0 && restorer.may_restore(now, &address()) {
                restorer.blame(4711);
                restorer.restored(now, &address());
                tries += 1;
            }
            lines.extend(restorer.line(now));
        }
        assert!((20..=25).contains(&tries), "{tries}");
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("process 4711 had removed or changed: address 10.99.0.1/30"), "{lines:?}");
        assert!(lines[1].contains("removes or changes address 10.99.0.1/30 each time"), "{lines:?}");
        // Once it is left alone for longer, all is as it was.
        let later = start + Duration::from_secs(100);
        assert!(restorer.may_restore(later, &address()));
        restorer.restored(later, &address());
        assert!(restorer.may_restore(later, &address()) && restorer.line(later).is_some());
    }

    #[test]
    fn the_log_has_one_line_a_second_at_most_and_nothing_is_left_out() {
        let (mut restorer, start) = (Restorer::default(), Instant::now());
        let (mut lines, mut last) = (Vec::new(), None::<Instant>);
        for n in 0..200u32 {
            let now = start + Duration::from_millis(50) * n;
            let item = Item::Address(format!("10.99.{}.1/30", n % 100).parse().unwrap());
            restorer.restored(now, &item);
            if let Some(line) = restorer.line(now) {
                assert!(last.is_none_or(|last| now - last >= SPACING));
                last = Some(now);
                lines.push(line);
            }
        }
        assert_eq!(lines.len(), 10);
        assert!(lines[1].ends_with("and 8 more"), "{lines:?}");
        let due = restorer.due(start + Duration::from_secs(10)).unwrap();
        assert!(restorer.line(due).is_some() && restorer.line(due + SPACING).is_none());
    }
}

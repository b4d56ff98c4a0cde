//! Why nobody answers, as far as ICMP says: asked once an attempt has failed, by a datagram of its own ([`ErrorProbe`]).
//!
//! It makes words for the log and nothing else, as anyone can forge ICMP.

use crate::sys::udp::{ErrorProbe, Ties, Unreachable};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::debug;

/// By then a router has answered, and ARP has given up.
const PATIENCE: Duration = Duration::from_millis(3_500);
/// A machine sends few ICMP errors to one other (Linux: one a second), and the link's own datagrams cause some, which nobody reads. So
/// the question is asked again this often.
const AGAIN: Duration = Duration::from_millis(50);
/// How often it is looked for an answer.
const TICK: Duration = Duration::from_millis(10);
/// No more addresses are asked at a time.
const MOST: usize = 8;

/// Addresses to ask, and how what is sent there leaves.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The own address it leaves from, if it matters.
    pub(super) local: Option<IpAddr>,
    pub(super) ties: Ties,
    pub(super) peers: Vec<SocketAddr>,
}

/// What is known of each address; nothing of those that stay silent.
pub(super) type Reasons = Vec<(SocketAddr, Unreachable)>;

/// Asks, and waits for what comes.
pub(super) async fn ask(questions: Vec<Question>) -> Reasons {
    let mut open: Vec<(ErrorProbe, Vec<SocketAddr>)> = questions.into_iter().flat_map(probes).collect();
    let mut reasons = Reasons::new();
    let (begun, mut asked) = (Instant::now(), None);
    while begun.elapsed() < PATIENCE {
        let again = asked.is_none_or(|at: Instant| at.elapsed() >= AGAIN);
        if again {
            asked = Some(Instant::now());
        }
        for (probe, peers) in &mut open {
            reasons.extend(std::iter::from_fn(|| probe.answer()));
            // What this machine itself says counts not: the probe's port has none of the rules that the link's ports have.
            peers.retain(|peer| {
                reasons.iter().all(|(known, _)| known != peer) && (!again || probe.ask(*peer).is_none())
            });
        }
        open.retain(|(_, peers)| !peers.is_empty());
        if open.is_empty() {
            break;
        }
        sleep(TICK).await;
    }
    once_each(reasons)
}

/// A socket for each family among those asked, and whom it asks.
fn probes(Question { local, ties, peers }: Question) -> Vec<(ErrorProbe, Vec<SocketAddr>)> {
    let mut probes = Vec::new();
    for v6 in [false, true] {
        let peers: Vec<SocketAddr> = peers.iter().copied().filter(|peer| peer.is_ipv6() == v6).take(MOST).collect();
        let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let local = local.filter(|local| local.is_ipv6() == v6).unwrap_or(any);
        if peers.is_empty() {
            continue;
        }
        match ErrorProbe::open(local, &ties) {
            Ok(probe) => probes.push((probe, peers)),
            Err(error) => debug!("why nobody answers is not asked: {error}"),
        }
    }
    probes
}

/// The first of what is known of each address.
fn once_each(reasons: Reasons) -> Reasons {
    let mut first = Reasons::new();
    for (peer, why) in reasons {
        if first.iter().all(|(known, _)| *known != peer) {
            first.push((peer, why));
        }
    }
    first
}

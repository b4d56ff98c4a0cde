//! Where the peer is, as config and DNS say: names are looked up in the background, for ever: now and then, and when the peer is not
//! heard.
//!
//! It only feeds the list of addresses that a cold open knocks at; DNS never touches a session. A lookup that fails
//! leaves the last answer in force.

use super::names::Lookup;
use crate::config::Endpoint;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, warn};

/// How often a name is looked up.
#[derive(Clone, Copy)]
struct Pace {
    /// So long after its last answer, …
    refresh: Duration,
    /// … or when somebody asks for it, but not sooner than this.
    spacing: Duration,
    /// The first pause after a failure; it doubles …
    retry_min: Duration,
    /// … up to this, or until somebody asks.
    retry_max: Duration,
}

const PACE: Pace = Pace {
    refresh: Duration::from_secs(300),
    spacing: Duration::from_secs(5),
    retry_min: Duration::from_secs(1),
    retry_max: Duration::from_secs(30),
};

/// A name that does not resolve is in the log this often at most.
const COMPLAIN: Duration = Duration::from_secs(60);

/// The address families a socket can send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    /// Those of a socket bound to `local`: `[::]` serves both.
    pub(super) fn of(local: SocketAddr) -> Families {
        Families { v4: local.is_ipv4() || local.ip().is_unspecified(), v6: local.is_ipv6() }
    }

    fn take(self, ip: IpAddr) -> bool {
        if ip.is_ipv4() { self.v4 } else { self.v6 }
    }

    fn name(self) -> &'static str {
        match (self.v4, self.v6) {
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            _ => "IPv4 or IPv6",
        }
    }
}

/// The peer's addresses as they become known.
pub(super) struct Resolver {
    found: mpsc::Receiver<Vec<SocketAddr>>,
    again: Arc<Notify>,
    task: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Begins to look `endpoint` up. An address needs no lookup: it is there at the first [`Resolver::next`].
    pub(super) fn start(endpoint: Option<&Endpoint>, families: Families, lookup: Lookup) -> Resolver {
        let (tell, found) = mpsc::channel(1);
        let again = Arc::new(Notify::new());
        let task = match endpoint {
            None => None,
            Some(endpoint) => match endpoint.address() {
                Some(ip) => {
                    let address = SocketAddr::new(ip.to_canonical(), endpoint.port);
                    let _ = tell.try_send(vec![address]); // there is room for one
                    None
                }
                None => {
                    let asked = endpoint.clone();
                    let look = move || look_up(lookup.clone(), asked.clone(), families);
                    Some(tokio::spawn(keep_looking(endpoint.clone(), look, PACE, tell, again.clone())))
                }
            },
        };
        Resolver { found, again, task }
    }

    /// The next list that differs from the one before; waits for ever if there is nothing to look up. Cancel-safe.
    pub(super) async fn next(&mut self) -> Vec<SocketAddr> {
        match self.found.recv().await {
            Some(addresses) => addresses,
            None => std::future::pending().await,
        }
    }

    /// The peer is not heard at the addresses given: they may be old.
    pub(super) fn look_again(&self) {
        self.again.notify_one();
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Looks for ever, and tells each answer that differs from the one before.
async fn keep_looking<F: Future<Output = io::Result<Vec<SocketAddr>>>>(
    endpoint: Endpoint,
    mut look: impl FnMut() -> F,
    pace: Pace,
    tell: mpsc::Sender<Vec<SocketAddr>>,
    again: Arc<Notify>,
) {
    let mut known = Vec::new();
    let mut retry = pace.retry_min;
    let mut complaint: Option<Instant> = None;
    loop {
        let pause = match look().await {
            Ok(addresses) => {
                retry = pace.retry_min;
                if addresses != known {
                    debug!("{endpoint} is at {}", listed(&addresses));
                    known.clone_from(&addresses);
                    if tell.send(addresses).await.is_err() {
                        return; // nobody listens any more
                    }
                }
                pace.refresh
            }
            Err(error) => {
                if complaint.is_none_or(|at| at.elapsed() >= COMPLAIN) {
                    complaint = Some(Instant::now());
                    warn!("cannot look up {endpoint}: {error}; trying again");
                }
                let pause = retry;
                retry = (retry * 2).min(pace.retry_max);
                pause
            }
        };
        let least = pause.min(pace.spacing);
        sleep(least).await;
        tokio::select! {
            () = sleep(pause - least) => {}
            () = again.notified() => {}
        }
    }
}

async fn look_up(lookup: Lookup, endpoint: Endpoint, families: Families) -> io::Result<Vec<SocketAddr>> {
    let found = lookup.addresses(&endpoint).await?;
    let usable = usable(&found, families);
    if usable.is_empty() {
        let what = format!("it has no {} address, and this end's socket takes no other", families.name());
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what));
    }
    Ok(usable)
}

/// What the socket can send to, each address once, the families by turns (as RFC 8305 §4 does): few addresses are tried at
/// a time, and a host's many addresses of the family that does not work must not keep the other one's out.
fn usable(found: &[SocketAddr], families: Families) -> Vec<SocketAddr> {
    let mut first = Vec::new();
    let mut second = Vec::new();
    for address in found {
        let mut address = *address;
        address.set_ip(address.ip().to_canonical());
        let first_is_v4 = first.first().is_none_or(|a: &SocketAddr| a.is_ipv4() == address.is_ipv4());
        let list = if first_is_v4 { &mut first } else { &mut second };
        if families.take(address.ip()) && !list.contains(&address) {
            list.push(address);
        }
    }
    let mut second = second.into_iter();
    let mut turns: Vec<SocketAddr> = first.into_iter().flat_map(|a| [Some(a), second.next()]).flatten().collect();
    turns.extend(second);
    turns
}

/// Addresses in a sentence.
pub(super) fn listed(addresses: &[SocketAddr]) -> String {
    let words: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{Ready, ready};

    fn addresses(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|word| word.parse().unwrap()).collect()
    }

    fn families(listen: &str) -> Families {
        Families::of(listen.parse().unwrap())
    }

    #[test]
    fn only_what_the_socket_can_send_to_is_used() {
        let found = addresses("[2001:db8::1]:1 192.0.2.1:1");
        assert_eq!(usable(&found, families("0.0.0.0:0")), addresses("192.0.2.1:1"));
        assert_eq!(usable(&found, families("192.0.2.9:0")), addresses("192.0.2.1:1"));
        assert_eq!(usable(&found, families("[2001:db8::9]:0")), addresses("[2001:db8::1]:1"));
        assert_eq!(usable(&found, families("[::]:0")), found);
    }

    #[test]
    fn families_take_turns_and_nothing_is_there_twice_or_mapped() {
        let found = addresses("[2001:db8::1]:1 [2001:db8::2]:1 [2001:db8::1]:1 [2001:db8::3]:1 192.0.2.1:1");
        let turns = "[2001:db8::1]:1 192.0.2.1:1 [2001:db8::2]:1 [2001:db8::3]:1";
        assert_eq!(usable(&found, families("[::]:0")), addresses(turns));
        let mapped = addresses("[::ffff:192.0.2.1]:1 192.0.2.1:1 [2001:db8::1]:1 192.0.2.2:1");
        assert_eq!(usable(&mapped, families("[::]:0")), addresses("192.0.2.1:1 [2001:db8::1]:1 192.0.2.2:1"));
    }

    #[tokio::test]
    async fn an_address_is_there_at_once_and_canonical() {
        let endpoint: Endpoint = "[::ffff:192.0.2.7]:7311".parse().unwrap();
        let mut resolver = Resolver::start(Some(&endpoint), families("[::]:0"), Lookup::Here);
        assert_eq!(resolver.next().await, addresses("192.0.2.7:7311"));
        let more = tokio::time::timeout(Duration::from_millis(10), resolver.next()).await;
        assert!(more.is_err(), "an address does not change");
    }

    /// What a name server says to one question after the other, the last for ever.
    fn answers(texts: &[&'static str]) -> impl FnMut() -> Ready<io::Result<Vec<SocketAddr>>> {
        let mut texts: Vec<_> = texts.iter().rev().copied().collect();
        move || {
            let text = if texts.len() > 1 { texts.pop() } else { texts.first().copied() };
            ready(match text.unwrap() {
                "" => Err(io::ErrorKind::NotFound.into()),
                text => Ok(addresses(text)),
            })
        }
    }

    #[tokio::test]
    async fn failures_are_tried_again_and_only_news_is_told() {
        let ms = Duration::from_millis;
        let pace = Pace { refresh: ms(4), spacing: ms(1), retry_min: ms(1), retry_max: ms(3) };
        let answers = answers(&["", "", "", "192.0.2.1:1", "192.0.2.1:1", "", "192.0.2.2:1"]);
        let endpoint: Endpoint = "branch.example.net:1".parse().unwrap();
        let (tell, mut found) = mpsc::channel(1);
        let again = Arc::new(Notify::new());
        let heard = async {
            assert_eq!(found.recv().await.unwrap(), addresses("192.0.2.1:1"));
            assert_eq!(found.recv().await.unwrap(), addresses("192.0.2.2:1"));
            assert!(tokio::time::timeout(ms(30), found.recv()).await.is_err(), "told the same again");
        };
        tokio::select! {
            () = heard => {}
            () = keep_looking(endpoint, answers, pace, tell, again) => panic!("it gave up"),
        }
    }

    #[tokio::test]
    async fn it_looks_again_when_asked() {
        let ms = Duration::from_millis;
        let pace = Pace { refresh: Duration::from_secs(300), spacing: ms(20), retry_min: ms(1), retry_max: ms(1) };
        let endpoint: Endpoint = "branch.example.net:1".parse().unwrap();
        let (tell, mut found) = mpsc::channel(1);
        let again = Arc::new(Notify::new());
        let began = Instant::now();
        let heard = async {
            assert_eq!(found.recv().await.unwrap(), addresses("192.0.2.1:1"));
            again.notify_one();
            assert_eq!(found.recv().await.unwrap(), addresses("192.0.2.2:1"));
        };
        tokio::select! {
            () = heard => {}
            () = keep_looking(endpoint, answers(&["192.0.2.1:1", "192.0.2.2:1"]), pace, tell, again.clone()) => {}
        }
        assert!((ms(20)..Duration::from_secs(60)).contains(&began.elapsed()));
    }

    #[tokio::test]
    async fn who_asks_does_not_wait_for_the_end_of_a_long_pause() {
        let ms = Duration::from_millis;
        let long = Duration::from_secs(300);
        let pace = Pace { refresh: long, spacing: ms(20), retry_min: long, retry_max: long };
        let endpoint: Endpoint = "branch.example.net:1".parse().unwrap();
        let (tell, mut found) = mpsc::channel(1);
        let again = Arc::new(Notify::new());
        again.notify_one();
        tokio::select! {
            heard = tokio::time::timeout(ms(10_000), found.recv()) => {
                assert_eq!(heard.expect("no second look").unwrap(), addresses("192.0.2.1:1"));
            }
            () = keep_looking(endpoint, answers(&["", "192.0.2.1:1"]), pace, tell, again) => {}
        }
    }

    #[tokio::test]
    async fn localhost_is_found_in_the_sockets_family() {
        let endpoint: Endpoint = "localhost:7311".parse().unwrap();
        let mut resolver = Resolver::start(Some(&endpoint), families("0.0.0.0:0"), Lookup::Here);
        assert_eq!(resolver.next().await, addresses("127.0.0.1:7311"));
    }
}

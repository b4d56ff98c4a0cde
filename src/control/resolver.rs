//! Where the peer is, as config and DNS say: names are looked up in the background, for ever: now and then, and when the peer is not
//! heard.
//!
//! It only feeds the lists of addresses that a cold open knocks at, one for each path where config has paths; DNS never touches a
//! session. A lookup that fails, or finds nothing that a path can send to, leaves the last answer in force. What several paths name is
//! looked up once.

use super::clock;
use super::names::Lookup;
use super::problem::{Code, Problems};
use crate::config::Endpoint;
use crate::os_error::in_words;
use std::collections::VecDeque;
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

/// That a name does not resolve is in the log this often at most, for one reason.
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

    /// Those of either.
    fn or(self, other: Families) -> Families {
        Families { v4: self.v4 || other.v4, v6: self.v6 || other.v6 }
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

/// Who wants to know where the peer is: a path of config's, or the link where it has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    /// `None`: the peer calls.
    pub(super) endpoint: Option<&'a Endpoint>,
    /// What the socket can send to.
    pub(super) families: Families,
}

/// Addresses, and the number of who asked for them or of what was looked up.
type Found = (usize, Vec<SocketAddr>);

/// What is to be looked up, and for which of those who asked.
struct Sought {
    endpoint: Endpoint,
    by: Vec<(usize, Families)>,
    again: Arc<Notify>,
}

impl Sought {
    /// Each endpoint once.
    fn all(asks: &[Ask<'_>]) -> Vec<Sought> {
        let mut all: Vec<Sought> = Vec::new();
        for (n, Ask { endpoint, families }) in asks.iter().enumerate() {
            let Some(endpoint) = *endpoint else { continue };
            match all.iter_mut().find(|sought| sought.endpoint == *endpoint) {
                Some(sought) => sought.by.push((n, *families)),
                None => {
                    let (endpoint, by) = (endpoint.clone(), vec![(n, *families)]);
                    all.push(Sought { endpoint, by, again: Arc::default() });
                }
            }
        }
        all
    }

    /// What one of those who asked can send to.
    fn families(&self) -> Families {
        self.by.iter().fold(Families { v4: false, v6: false }, |all, (_, families)| all.or(*families))
    }

    /// Each one's part of what was found; what it had before stays in force where there is none.
    fn share_out(&self, found: &[SocketAddr]) -> impl Iterator<Item = Found> {
        self.by.iter().filter_map(|(n, families)| {
            let part = usable(found, *families);
            if part.is_empty() {
                warn!("{} has no {} address, as one of the paths to it needs", self.endpoint, families.name());
                return None;
            }
            Some((*n, part))
        })
    }
}

/// The peer's addresses as they become known.
pub(super) struct Resolver {
    sought: Vec<Sought>,
    found: mpsc::Receiver<Found>,
    /// Shared out, and not yet told.
    waiting: VecDeque<Found>,
    tasks: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Begins to look up what is asked for. An address needs no lookup: it is there at the first
    /// [`Resolver::next`]. A name that has none is a problem.
    pub(super) fn start(asks: &[Ask<'_>], lookup: Lookup, problems: &Problems) -> Resolver {
        let sought = Sought::all(asks);
        let (tell, found) = mpsc::channel(sought.len().max(1));
        let (mut waiting, mut tasks) = (VecDeque::new(), Vec::new());
        for (n, one) in sought.iter().enumerate() {
            let (lookup, asked, families) = (lookup.clone(), one.endpoint.clone(), one.families());
            match asked.address() {
                Some(ip) => waiting.extend(one.share_out(&[SocketAddr::new(ip.to_canonical(), asked.port)])),
                None => {
                    let look = move || look_up(lookup.clone(), asked.clone(), families);
                    let task = keep_looking(
                        (n, one.endpoint.clone()),
                        look,
                        PACE,
                        (tell.clone(), problems.clone()),
                        one.again.clone(),
                    );
                    tasks.push(tokio::spawn(task));
                }
            }
        }
        Resolver { sought, found, waiting, tasks }
    }

    /// The next list that differs from the one before, and which of those who asked it is for; waits for ever if there is nothing
    /// to look up. Cancel-safe.
    pub(super) async fn next(&mut self) -> Found {
        loop {
            if let Some(told) = self.waiting.pop_front() {
                return told;
            }
            match self.found.recv().await {
                Some((n, addresses)) => self.waiting.extend(self.sought[n].share_out(&addresses)),
                None => std::future::pending().await,
            }
        }
    }

    /// The peer is not heard at the addresses given: they may be old.
    pub(super) fn look_again(&self) {
        self.sought.iter().for_each(|sought| sought.again.notify_one());
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Looks for ever, and tells each answer that differs from the one before, with the number `n`.
async fn keep_looking<F: Future<Output = io::Result<Vec<SocketAddr>>>>(
    (n, endpoint): (usize, Endpoint),
    mut look: impl FnMut() -> F,
    pace: Pace,
    (tell, problems): (mpsc::Sender<Found>, Problems),
    again: Arc<Notify>,
) {
    let mut known = Vec::new();
    let mut retry = pace.retry_min;
    let mut trouble = Trouble::default();
    loop {
        let pause = match look().await {
            Ok(addresses) => {
                retry = pace.retry_min;
                trouble.end(&problems);
                if addresses != known {
                    debug!("{endpoint} is at {}", listed(&addresses));
                    known.clone_from(&addresses);
                    if tell.send((n, addresses)).await.is_err() {
                        return; // nobody listens any more
                    }
                }
                pace.refresh
            }
            Err(error) => {
                let text = format!("cannot look up {endpoint}: {}", in_words(&error));
                trouble.say(text, known.is_empty().then_some(&problems));
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

/// A name that cannot be looked up.
#[derive(Default)]
struct Trouble {
    /// What was said last, and when.
    said: Option<(String, Instant)>,
    /// It is a problem: the name never had an address.
    is_problem: bool,
}

impl Trouble {
    fn say(&mut self, text: String, problems: Option<&Problems>) {
        if let (Some(problems), Ok(now)) = (problems, clock()) {
            problems.set(Code::NameUnresolved, text.as_str(), now);
            self.is_problem = true;
        }
        if self.said.as_ref().is_none_or(|(said, at)| *said != text || at.elapsed() >= COMPLAIN) {
            warn!("{text}; trying again");
            self.said = Some((text, Instant::now()));
        }
    }

    /// There is an answer.
    fn end(&mut self, problems: &Problems) {
        self.said = None;
        if std::mem::take(&mut self.is_problem) {
            problems.clear(Code::NameUnresolved);
        }
    }
}

async fn look_up(lookup: Lookup, endpoint: Endpoint, families: Families) -> io::Result<Vec<SocketAddr>> {
    let found = lookup.addresses(&endpoint).await?;
    let usable = usable(&found, families);
    if usable.is_empty() {
        let what = format!("it has no {} address, and this end's sockets take no other", families.name());
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

    fn ask<'a>(endpoint: &'a Endpoint, listen: &str) -> Ask<'a> {
        Ask { endpoint: Some(endpoint), families: families(listen) }
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
        let mut resolver = Resolver::start(&[ask(&endpoint, "[::]:0")], Lookup::Here, &Problems::default());
        assert_eq!(resolver.next().await, (0, addresses("192.0.2.7:7311")));
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
        let (tell, mut found) = mpsc::channel::<Found>(1);
        let again = Arc::new(Notify::new());
        let heard = async {
            assert_eq!(found.recv().await.unwrap().1, addresses("192.0.2.1:1"));
            assert_eq!(found.recv().await.unwrap().1, addresses("192.0.2.2:1"));
            assert!(tokio::time::timeout(ms(30), found.recv()).await.is_err(), "told the same again");
        };
        tokio::select! {
            () = heard => {}
            () = keep_looking((0, endpoint), answers, pace, (tell, Problems::default()), again) => panic!("it gave up"),
        }
    }

    #[tokio::test]
    async fn it_looks_again_when_asked() {
        let ms = Duration::from_millis;
        let pace = Pace { refresh: Duration::from_secs(300), spacing: ms(20), retry_min: ms(1), retry_max: ms(1) };
        let endpoint: Endpoint = "branch.example.net:1".parse().unwrap();
        let (tell, mut found) = mpsc::channel::<Found>(1);
        let again = Arc::new(Notify::new());
        let began = Instant::now();
        let heard = async {
            assert_eq!(found.recv().await.unwrap().1, addresses("192.0.2.1:1"));
            again.notify_one();
            assert_eq!(found.recv().await.unwrap().1, addresses("192.0.2.2:1"));
        };
        tokio::select! {
            () = heard => {}
            () = keep_looking((0, endpoint), answers(&["192.0.2.1:1", "192.0.2.2:1"]), pace, (tell, Problems::default()), again.clone()) => {}
        }
        assert!((ms(20)..Duration::from_secs(60)).contains(&began.elapsed()));
    }

    #[tokio::test]
    async fn who_asks_does_not_wait_for_the_end_of_a_long_pause() {
        let ms = Duration::from_millis;
        let long = Duration::from_secs(300);
        let pace = Pace { refresh: long, spacing: ms(20), retry_min: long, retry_max: long };
        let endpoint: Endpoint = "branch.example.net:1".parse().unwrap();
        let (tell, mut found) = mpsc::channel::<Found>(1);
        let again = Arc::new(Notify::new());
        again.notify_one();
        tokio::select! {
            heard = tokio::time::timeout(ms(10_000), found.recv()) => {
                assert_eq!(heard.expect("no second look").unwrap().1, addresses("192.0.2.1:1"));
            }
            () = keep_looking((0, endpoint), answers(&["", "192.0.2.1:1"]), pace, (tell, Problems::default()), again) => {}
        }
    }

    #[tokio::test]
    async fn localhost_is_found_in_the_sockets_family() {
        let endpoint: Endpoint = "localhost:7311".parse().unwrap();
        let mut resolver = Resolver::start(&[ask(&endpoint, "0.0.0.0:0")], Lookup::Here, &Problems::default());
        assert_eq!(resolver.next().await, (0, addresses("127.0.0.1:7311")));
    }

    #[test]
    fn what_several_paths_name_is_looked_up_once_and_each_gets_what_it_can_send_to() {
        let [name, other]: [Endpoint; 2] = ["hq.example.net:1", "203.0.113.7:1"].map(|text| text.parse().unwrap());
        let calls = Ask { endpoint: None, families: families("[::]:0") };
        let asks =
            [ask(&name, "192.0.2.9:0"), calls, ask(&other, "[::]:0"), ask(&name, "[::]:0"), ask(&name, "[::1]:0")];
        let sought = Sought::all(&asks);
        let by = |n: usize| sought[n].by.iter().map(|(who, _)| *who).collect::<Vec<_>>();
        assert_eq!((sought.len(), by(0), by(1)), (2, vec![0, 3, 4], vec![2]));
        assert_eq!(sought[0].families().name(), "IPv4 or IPv6", "what any of them can send to");
        let found = addresses("[2001:db8::1]:1 192.0.2.1:1");
        let parts = [(0, addresses("192.0.2.1:1")), (3, found.clone()), (4, addresses("[2001:db8::1]:1"))];
        assert_eq!(sought[0].share_out(&found).collect::<Vec<_>>(), parts);
        let v4 = addresses("192.0.2.1:1");
        let nothing_for_the_last = [(0, v4.clone()), (3, v4.clone())];
        assert_eq!(sought[0].share_out(&v4).collect::<Vec<_>>(), nothing_for_the_last, "what it had is in force");
    }

    #[tokio::test]
    async fn each_path_is_told_its_addresses() {
        let ends: [Endpoint; 2] = ["localhost:1", "192.0.2.7:1"].map(|text| text.parse().unwrap());
        let asks = [ask(&ends[0], "0.0.0.0:0"), ask(&ends[1], "[::]:0"), ask(&ends[0], "127.0.0.1:0")];
        let mut resolver = Resolver::start(&asks, Lookup::Here, &Problems::default());
        assert_eq!(resolver.tasks.len(), 1, "an address is not looked up, and a name once");
        assert_eq!(resolver.next().await, (1, addresses("192.0.2.7:1")));
        assert_eq!(resolver.next().await, (0, addresses("127.0.0.1:1")));
        assert_eq!(resolver.next().await, (2, addresses("127.0.0.1:1")));
    }
}

//! What a link lives through, in words for whoever runs it: what happens, and when nothing does, the likely cause.
//!
//! Only words are made here, and how often they may be said is decided; [`Line::log`] says them.

use super::resolver::listed;
use super::unreachable::Reasons;
use crate::os_error::in_words;
use crate::protocol::constants::{MISSED_REPORTS, NOTICE_SPACING, VERSION};
use crate::protocol::control::State;
use crate::protocol::levels::Drops;
use crate::protocol::link::{ColdStep, DownCause, KeysInUse, SameKey, Status, Whose};
use crate::protocol::wire::{Kind, Verdict};
use crate::protocol::{Event, Time};
use crate::sys::udp::Unreachable;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tracing::Level;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) level: Level,
    pub(super) text: String,
}

impl Line {
    pub(super) fn new(level: Level, text: impl Into<String>) -> Option<Line> {
        Some(Line { level, text: text.into() })
    }

    /// Writes it to the log.
    pub(super) fn log(&self) {
        // The level of a tracing event is fixed where it stands.
        match self.level {
            Level::ERROR => tracing::error!("{}", self.text),
            Level::WARN => tracing::warn!("{}", self.text),
            Level::INFO => tracing::info!("{}", self.text),
            _ => tracing::debug!("{}", self.text),
        }
    }
}

/// What is said once a minute at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Complaint {
    NoAnswer,
    NoAnswerAfterChallenge,
    NothingArrives,
    AnswersLost,
    PresharedKeys,
    SameKey,
    NotMoved,
    Refused,
    Stranger,
    Version,
    Rekey,
    HybridUnfinished,
    Crypto,
    /// By which of config's paths, where that is known.
    Sending(Option<usize>),
}

/// What happens to a path is said so often …
const LOUD: usize = 4;

/// … and then quietly, until nothing has happened to it for a minute.
#[derive(Default)]
struct Pace {
    told: usize,
    last: Time,
}

/// So many cold-open datagrams are told of in a second, at level debug; of the others the number.
const COLD_TOLD: u32 = 20;
/// A second.
const SECOND: Duration = Duration::from_secs(1);

/// How many cold-open datagrams were told of in this second, and how many were not.
#[derive(Default)]
struct Crowd {
    since: Time,
    told: u32,
    untold: u64,
}

/// The story so far.
#[derive(Default)]
pub(super) struct Story {
    /// The link's.
    interface: String,
    /// It is administratively down.
    admin_down: bool,
    /// Of config's paths.
    names: Vec<String>,
    /// Of each of them; and of which is used.
    paces: BTreeMap<Option<usize>, Pace>,
    /// The paths by which nothing can be sent, since they were last up.
    shut: BTreeSet<usize>,
    said: BTreeMap<Complaint, Time>,
    /// Where the cold open that runs knocks, and since when.
    connecting: Option<(Vec<SocketAddr>, Time)>,
    /// The Response of that cold open came and did not open.
    response_unreadable: bool,
    /// Where this end hears the peer: `UDP 7311`.
    ports: String,
    /// The link was up, and since when nothing is heard.
    heard_until: Option<Time>,
    /// Why nobody answers, as far as ICMP says.
    reasons: Reasons,
    crowd: Crowd,
    /// What was dropped when that was last told, and when.
    dropped: ([u64; 4], Time),
}

impl Story {
    /// That of a link on this interface with paths of these names, whose sockets have these addresses.
    pub(super) fn of(interface: String, names: Vec<String>, locals: &[SocketAddr]) -> Story {
        let ports: BTreeSet<u16> = locals.iter().map(SocketAddr::port).collect();
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        // A socket may wait for its interface.
        let ports =
            if ports.is_empty() { "this end's UDP port".to_owned() } else { format!("UDP {}", ports.join(", ")) };
        Story { interface, names, ports, ..Story::default() }
    }

    /// What there is to say about an event; `status` is the link's after it.
    pub(super) fn tell(&mut self, now: Time, event: &Event, status: &Status) -> Option<Line> {
        match event {
            Event::Connecting { addresses } => self.connecting(now, addresses),
            Event::Quiet => Line::new(Level::DEBUG, "nothing comes: looking for the peer"),
            Event::NoAnswer { addresses, knocks, challenged } => self.no_answer(now, addresses, *knocks, *challenged),
            Event::NothingArrives { silence, others } => self.nothing_arrives(now, *silence, *others),
            Event::AnswersLost { peer, responded } => self.answers_lost(now, *peer, *responded),
            Event::Cold { kind, peer, step } => self.cold(now, *kind, *peer, *step),
            Event::State { state, cause } => self.state(now, *state, *cause, status),
            Event::Session { epoch, rekeyed: true, .. } => Line::new(Level::DEBUG, format!("rekeyed, epoch {epoch}")),
            Event::Session { epoch, .. } => Line::new(Level::DEBUG, format!("a new session, epoch {epoch}")),
            Event::PeerInterface { up: false } => {
                self.connecting = None; // how long an operator waits is no figure of the link's
                Line::new(Level::WARN, PEER_DOWN)
            }
            Event::PeerInterface { up: true } => Line::new(Level::INFO, "the peer's interface is up again"),
            Event::Path(path) => Line::new(Level::INFO, format!("the path moved to {}", path.peer)),
            Event::Way { way, up: true } => {
                self.shut.remove(way);
                self.on_path(now, Some(*way), Level::INFO, format!("path {} is up", self.name(*way)))
            }
            Event::Way { way, up: false } => {
                let text = format!("path {} is lost: the peer does not answer there any more", self.name(*way));
                self.on_path(now, Some(*way), Level::WARN, text)
            }
            Event::UsesWay { way } => {
                self.on_path(now, None, Level::INFO, format!("the link uses path {}", self.name(*way)))
            }
            Event::SilentWay { way } => Line::new(Level::DEBUG, format!("still no answer by path {}", self.name(*way))),
            Event::Size { size } => {
                Line::new(Level::INFO, format!("the way to the peer carries datagrams of up to {size} bytes"))
            }
            Event::WantSocket if !self.names.is_empty() => {
                Line::new(Level::INFO, "still no answer: opening the paths' sockets anew")
            }
            Event::WantSocket => Line::new(Level::INFO, "still no answer: trying from another local port"),
            Event::Keys(keys) => Line::new(Level::INFO, moved(*keys)),
            Event::UsesSocket(id) => Line::new(Level::DEBUG, format!("the line uses socket {}", id.0)),
            trouble => self.trouble(now, trouble, status),
        }
    }

    fn name(&self, way: usize) -> &str {
        self.names.get(way).map_or("?", String::as_str)
    }

    /// Something happened to a path, or another one is used.
    fn on_path(&mut self, now: Time, way: Option<usize>, level: Level, text: String) -> Option<Line> {
        let pace = self.paces.entry(way).or_default();
        if now.since(pace.last) >= NOTICE_SPACING {
            pace.told = 0;
        }
        (pace.told, pace.last) = (pace.told + 1, now);
        match pace.told {
            ..=LOUD => Line::new(level, text),
            told if told == LOUD + 1 => {
                let more = "this comes and goes, and is said at level debug until it keeps still for a minute";
                Line::new(Level::WARN, format!("{text}; {more}"))
            }
            _ => Line::new(Level::DEBUG, text),
        }
    }

    /// A datagram of the engine's own was not sent; `way` is the path by which, where that is known. An uplink may be away for long, so
    /// of a path it is said once.
    pub(super) fn cannot_send(
        &mut self,
        now: Time,
        peer: SocketAddr,
        way: Option<usize>,
        error: &std::io::Error,
    ) -> Option<Line> {
        let by = way.map(|way| format!(" by path {}", self.name(way))).unwrap_or_default();
        let text = format!("cannot send to {peer}{by}: {}", in_words(error));
        if way.is_some_and(|way| !self.shut.insert(way)) {
            return Line::new(Level::DEBUG, text);
        }
        self.complain(now, Complaint::Sending(way), Level::WARN, || {
            let what = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => {
                    format!("this machine has no route there: see `ip route get {}`", peer.ip())
                }
                Some(Errno::EPERM | Errno::EACCES) => {
                    "a firewall rule or route of this machine forbids it: see `nft list ruleset` and `ip route`"
                        .to_owned()
                }
                _ => "is there a route to it, and does a local firewall let it pass?".to_owned(),
            };
            format!("{text}; {what}")
        })
    }

    /// Whether it is to be said why nobody answers, so that it is worth asking.
    pub(super) fn wants_reasons(&self, now: Time) -> bool {
        !self.response_unreadable && self.may_complain(now, Complaint::NoAnswer)
    }

    /// What ICMP said of those who do not answer.
    pub(super) fn take_reasons(&mut self, reasons: Reasons) {
        self.reasons = reasons;
    }

    /// This end waits to be called, and is not.
    fn nothing_arrives(&mut self, now: Time, silence: Duration, others: bool) -> Option<Line> {
        let at = self.ports.clone();
        self.complain(now, Complaint::NothingArrives, Level::WARN, || {
            let what = if others { "nothing of the peer's has arrived" } else { "nothing has arrived" };
            format!(
                "{what} at {at} for {}: is the other end started, does its `endpoint` have this end's address and port, and do \
                 the firewalls and port forwardings in front of this end let {at} in?",
                rough(silence)
            )
        })
    }

    /// The peer calls, and does not hear what this end answers.
    fn answers_lost(&mut self, now: Time, peer: SocketAddr, responded: bool) -> Option<Line> {
        let at = self.ports.clone();
        self.complain(now, Complaint::AnswersLost, Level::WARN, || {
            let how = match responded {
                true => {
                    "it got one step further, and then nothing came of it: datagrams to it are lost, or the preshared keys of \
                     the two ends differ, which its log says"
                }
                false => "does a firewall of this end or on the way forbid what goes from here to there, or does it leave by \
                          another uplink than the one they come by?",
            };
            format!("valid knocks from {peer} arrive at {at}, our answers do not reach it: {how}")
        })
    }

    /// A cold-open datagram, for those who look for what goes wrong. A flood of them is counted.
    fn cold(&mut self, now: Time, kind: Kind, peer: SocketAddr, step: ColdStep) -> Option<Line> {
        let crowd = &mut self.crowd;
        let mut before = String::new();
        if now.since(crowd.since) >= SECOND {
            if crowd.untold > 0 {
                before = format!("{} more cold-open datagrams were not logged; ", crowd.untold);
            }
            *crowd = Crowd { since: now, ..Crowd::default() };
        }
        if crowd.told >= COLD_TOLD {
            crowd.untold += 1;
            return None;
        }
        crowd.told += 1;
        let text = match step {
            ColdStep::Sent => format!("{kind:?} sent to {peer}"),
            ColdStep::Taken => format!("{kind:?} received from {peer}"),
            ColdStep::Replayed => format!("{kind:?} from {peer} refused: a copy, too late, or not asked for"),
            ColdStep::Unauthentic => {
                format!("{kind:?} from {peer} refused: made for another address, or with another key")
            }
            ColdStep::Malformed => format!("{kind:?} from {peer} refused: what is in it is not of this protocol"),
        };
        Line::new(Level::DEBUG, before + &text)
    }

    /// What was dropped since that was last said, once a second at most.
    pub(super) fn dropped(&mut self, now: Time, drops: &Drops) -> Option<Line> {
        let counts =
            [&drops.unauthentic, &drops.replayed, &drops.malformed, &drops.no_session].map(|count| count.get());
        let (before, at) = self.dropped;
        if counts == before || now.since(at) < SECOND {
            return None;
        }
        self.dropped = (counts, now);
        let names = ["unauthentic", "replayed", "malformed", "without a session"];
        let new = counts.iter().zip(before).zip(names).map(|((now, before), name)| (now.wrapping_sub(before), name));
        let words: Vec<String> = new.filter(|(n, _)| *n > 0).map(|(n, name)| format!("{n} {name}")).collect();
        Line::new(Level::DEBUG, format!("datagrams refused: {}", words.join(", ")))
    }

    /// Attempts repeat every few seconds; only the first of a row is news.
    fn connecting(&mut self, now: Time, addresses: &[SocketAddr]) -> Option<Line> {
        let again = self.connecting.as_ref().is_some_and(|(last, _)| last == addresses);
        self.connecting = Some((addresses.to_vec(), now));
        self.response_unreadable = false;
        let level = if again { Level::DEBUG } else { Level::INFO };
        Line::new(level, format!("connecting to {}", listed(addresses)))
    }

    fn no_answer(&mut self, now: Time, addresses: &[SocketAddr], knocks: u32, challenged: bool) -> Option<Line> {
        if self.response_unreadable {
            return None; // an answer came, and was spoken of
        }
        let whom = listed(addresses);
        if challenged {
            return self.complain(now, Complaint::NoAnswerAfterChallenge, Level::WARN, || {
                format!(
                    "{whom} answered a knock and then nothing more: datagrams are lost on the way, or it has just stopped; \
                     still trying"
                )
            });
        }
        let (reasons, heard_until) = (std::mem::take(&mut self.reasons), self.heard_until);
        self.complain(now, Complaint::NoAnswer, Level::WARN, || {
            let knocks = if knocks == 1 { "1 knock".to_owned() } else { format!("{knocks} knocks") };
            let lost = heard_until.map(|at| now.since(at));
            let why = why_silent(&reasons, lost);
            format!("no answer from {whom} after {knocks}: {why}; still trying")
        })
    }

    fn state(&mut self, now: Time, state: State, cause: Option<DownCause>, status: &Status) -> Option<Line> {
        let was_down = std::mem::replace(&mut self.admin_down, state == State::AdminDown);
        if let Some(cause) = cause {
            let silence = if let DownCause::Silence(silence) = cause { silence } else { Duration::ZERO };
            self.heard_until = Some(now - silence);
            // What is new now was not what was said before.
            self.said.remove(&Complaint::NoAnswer);
        }
        match (state, cause) {
            (State::AdminDown, _) => {
                self.connecting = None;
                Line::new(Level::WARN, format!("{}; the peer is told", own_down(&self.interface)))
            }
            (State::Up, _) => self.up(now, status),
            (_, None) if was_down => Line::new(Level::INFO, format!("interface {} is up again", self.interface)),
            (_, None) => None,
            (_, Some(cause)) => gone(cause).and_then(|text| Line::new(Level::WARN, text)),
        }
    }

    /// `up with 203.0.113.7:7311 in 41 ms: aes-256-gcm, post-quantum, rtt 12.1 ms`
    fn up(&mut self, now: Time, status: &Status) -> Option<Line> {
        let mut text = "up".to_owned();
        if let Some(path) = status.path {
            text += &format!(" with {}", path.peer);
        }
        if let Some((_, since)) = self.connecting.take() {
            text += &format!(" in {}", milliseconds(now.since(since)));
        }
        let mut facts = Vec::new();
        if let Some(session) = status.session {
            facts.push(session.cipher.name().to_owned());
            facts.push(if session.post_quantum { "post-quantum" } else { "not post-quantum" }.to_owned());
        }
        if let Some(rtt) = status.rtt {
            facts.push(format!("rtt {}", milliseconds(rtt)));
        }
        if !facts.is_empty() {
            text += &format!(": {}", facts.join(", "));
        }
        Line::new(Level::INFO, text)
    }

    fn trouble(&mut self, now: Time, event: &Event, status: &Status) -> Option<Line> {
        use {Complaint as C, Level as L};
        match event {
            Event::PresharedKeysDiffer => {
                self.response_unreadable = true;
                self.complain(now, C::PresharedKeys, L::WARN, || {
                    "the preshared keys of the two ends differ, or only one has one: its answer is authentic and cannot be \
                     opened; give both the same preshared_key file"
                })
            }
            Event::SameKey(Some(known)) => self.complain(now, C::SameKey, L::WARN, || same_key(known)),
            Event::SameKey(None) => {
                Line::new(L::INFO, "only one machine has used the key for a while: the other one does not take the link any more")
            }
            Event::NotMoved { own: true } => self.complain(now, C::NotMoved, L::WARN, || {
                "the peer does not take this end's new key: the link goes on with the old one; list the new one there, and \
                 reload its config; asking again every 30 s"
            }),
            Event::NotMoved { own: false } => self.complain(now, C::NotMoved, L::WARN, || {
                "the peer does not list the first preshared key first yet: the link goes on with the other one; asking again \
                 every 30 s"
            }),
            Event::Refused(verdict) => self.complain(now, C::Refused, L::WARN, || {
                format!("the peer refuses the link: {}; asking again every 30 s", differ(*verdict))
            }),
            Event::Refusing(verdict) => self.complain(now, C::Refused, L::WARN, || {
                format!("the link the peer asks for cannot be: {}", differ(*verdict))
            }),
            Event::Stranger(source) => {
                // Beside a line that is up, it is what any open port hears.
                let level = if status.state == State::Up { L::DEBUG } else { L::WARN };
                self.complain(now, C::Stranger, level, || {
                    format!(
                        "knocks that are not from our peer: source {source}; if that is the peer, the two ends don't have each \
                         other's public keys"
                    )
                })
            }
            Event::OtherVersion { version, peer } => self.complain(now, C::Version, L::WARN, || {
                format!("{peer} speaks version {version} of the protocol and this end version {VERSION}: update the older")
            }),
            Event::HybridUnfinished => self.complain(now, C::HybridUnfinished, L::ERROR, || {
                "hybrid rekey did not finish: the datagrams of 544 bytes it takes do not arrive; trying again"
            }),
            Event::RekeyFailed(why) => self.complain(now, C::Rekey, L::ERROR, || {
                format!("a rekey failed under an authentic session: {why}; the session runs to its end, then a new one opens")
            }),
            Event::CryptoFailed => self.complain(now, C::Crypto, L::ERROR, || {
                "a cryptographic primitive or the system's randomness failed on this machine; trying again"
            }),
            _ => None,
        }
    }

    fn complain<T: Into<String>>(
        &mut self,
        now: Time,
        kind: Complaint,
        level: Level,
        text: impl FnOnce() -> T,
    ) -> Option<Line> {
        if !self.may_complain(now, kind) {
            return None;
        }
        self.said.insert(kind, now);
        Line::new(level, text())
    }

    fn may_complain(&self, now: Time, kind: Complaint) -> bool {
        self.said.get(&kind).is_none_or(|said| now.since(*said) >= NOTICE_SPACING)
    }
}

/// Why nobody answers: what ICMP says, else what is likely for a peer that was last heard so long ago, or never.
fn why_silent(reasons: &Reasons, lost: Option<Duration>) -> String {
    let silence = lost.map(|lost| format!("nothing has been heard from the peer for {}", rough(lost)));
    if !reasons.is_empty() {
        let said = reasons.iter().map(|(peer, why)| unreachable(*peer, *why, lost.is_some()));
        return silence.into_iter().chain(said).collect::<Vec<_>>().join("; ");
    }
    match silence {
        // It was up before: its keys and where it was are right.
        Some(silence) => {
            format!("{silence}: it is not running, its address has changed, or the network between is out")
        }
        None => "wrong address, UDP blocked on the way, the peer not running, or the two ends don't have each other's \
                 public keys"
            .to_owned(),
    }
}

/// What ICMP says of an address, and what to do about it; of one that was right before, it is not doubted.
fn unreachable(peer: SocketAddr, why: Unreachable, was_up: bool) -> String {
    let by = |by: Option<IpAddr>| by.map_or("this machine says".to_owned(), |by| format!("{by} says by ICMP"));
    match why {
        Unreachable::Port => {
            let or = if was_up { "" } else { ", or correct the port in `endpoint`" };
            format!("nobody listens at {peer} (ICMP port unreachable): start the other end{or}")
        }
        Unreachable::Host(router) => {
            let what = if was_up { "mend the network there" } else { "correct the address, or mend the network there" };
            format!("no route to {}, or that machine is off ({}): {what}", peer.ip(), by(router))
        }
        Unreachable::Forbidden(router) => {
            format!("a firewall forbids UDP to {peer} ({}): let it pass there", by(router))
        }
    }
}

/// `45 s`, `12 min`, `3 h`.
fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// A line that has changed keys without a cut.
fn moved(keys: KeysInUse) -> String {
    let preshared = keys.preshared.map(|at| format!(", preshared key {at} of the list")).unwrap_or_default();
    format!("the link moved to other keys: this end's {}, the peer's {}{preshared}", keys.own, keys.peer)
}

/// Two machines have one key, and what to do.
pub(super) fn same_key(known: &SameKey) -> String {
    let [one, other] = known.addresses;
    let who = match known.whose {
        Whose::Own => {
            format!(
                "another machine uses this end's key: the peer sees this machine at {one} and the other one at {other}"
            )
        }
        Whose::Peer => format!("two machines use the peer's key, one at {one} and one at {other}"),
    };
    format!(
        "{who}; they take the link from each other, so each loses packets; stop tieline on one of them: a copied machine needs a \
         link of its own (tieline init)"
    )
}

/// What an operator did at the other end, and may undo there.
pub(super) const PEER_DOWN: &str =
    "the peer's interface is administratively down: no packets pass until it is up again (ip link set ... up there)";

/// The same of this end.
pub(super) fn own_down(interface: &str) -> String {
    format!(
        "interface {interface} is administratively down: no packets pass until it is up again (ip link set {interface} up)"
    )
}

/// Why the link is not Up any more; none where that has its own line.
fn gone(cause: DownCause) -> Option<String> {
    Some(match cause {
        DownCause::Silence(silence) => {
            format!("peer gone: nothing heard for {} ({MISSED_REPORTS} missed reports)", seconds(silence))
        }
        DownCause::KeyRemoved => "the key of the session in use was taken out of the config".to_owned(),
        DownCause::Goodbye => "peer said goodbye".to_owned(),
        DownCause::PeerDown => "peer does not hear us any more, or has started anew".to_owned(),
        DownCause::AdminDown | DownCause::PeerAdminDown => return None,
    })
}

/// In what the ends differ, and what to do about it.
fn differ(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NoCommonCipher => "the two ends share no cipher: set cipher = \"auto\" in [crypto] at both",
        Verdict::LayersDiffer => "one end carries ethernet and the other ip: set the same layer in [link] at both",
        Verdict::Fine => "no reason is given",
    }
}

/// `12.1 ms`, `41 ms`.
fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 20.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// `3 s`, `0.15 s`.
fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::PublicKey;
    use crate::protocol::link::SessionStatus;
    use crate::protocol::session::Cipher;
    use crate::protocol::{Path, SocketId};

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    fn peer() -> SocketAddr {
        "203.0.113.7:7311".parse().unwrap()
    }

    fn text(line: Option<Line>) -> String {
        line.map(|line| format!("{} {}", line.level, line.text)).unwrap_or_default()
    }

    fn up() -> Status {
        let key = |n| PublicKey::from_bytes([n; 32]).unwrap();
        let keys = KeysInUse { own: key(1), peer: key(2), preshared: None };
        let (cipher, established) = (Cipher::Aes256Gcm, Time(0));
        let session = SessionStatus { cipher, post_quantum: true, epoch: 2, established, keys };
        let path = Path { socket: SocketId(0), local: None, peer: peer() };
        let rtt = Some(Duration::from_micros(12_140));
        Status { state: State::Up, session: Some(session), path: Some(path), rtt, ..Status::FRESH }
    }

    #[test]
    fn a_link_comes_and_goes() {
        let mut story = Story::default();
        let connecting = Event::Connecting { addresses: vec![peer()] };
        assert_eq!(text(story.tell(at(1), &connecting, &Status::FRESH)), "INFO connecting to 203.0.113.7:7311");
        assert_eq!(text(story.tell(at(7), &connecting, &Status::FRESH)), "DEBUG connecting to 203.0.113.7:7311");
        let event = Event::State { state: State::Init, cause: None };
        assert_eq!(story.tell(at(7), &event, &Status::FRESH), None);
        let event = Event::State { state: State::Up, cause: None };
        let now = at(7) + Duration::from_millis(41);
        assert_eq!(
            text(story.tell(now, &event, &up())),
            "INFO up with 203.0.113.7:7311 in 41 ms: aes-256-gcm, post-quantum, rtt 12.1 ms"
        );
        let silence = DownCause::Silence(Duration::from_secs(3));
        let event = Event::State { state: State::Down, cause: Some(silence) };
        assert_eq!(
            text(story.tell(at(9), &event, &Status::FRESH)),
            "WARN peer gone: nothing heard for 3 s (3 missed reports)"
        );
        assert_eq!(text(story.tell(at(10), &connecting, &Status::FRESH)), "INFO connecting to 203.0.113.7:7311");
        let event = Event::State { state: State::Down, cause: Some(DownCause::Goodbye) };
        assert_eq!(text(story.tell(at(20), &event, &Status::FRESH)), "WARN peer said goodbye");
    }

    #[test]
    fn an_interface_that_is_taken_down_is_named_with_the_command_that_takes_it_up() {
        let mut story = two_paths();
        story.tell(at(1), &Event::Connecting { addresses: vec![peer()] }, &Status::FRESH);
        let mut told = |second, event| text(story.tell(at(second), &event, &up()));
        let state = |state, cause| Event::State { state, cause };
        let line = told(2, state(State::AdminDown, Some(DownCause::AdminDown)));
        assert!(line.starts_with("WARN interface tl0 is administratively down"), "{line}");
        assert!(line.contains("ip link set tl0 up") && line.contains("the peer is told"), "{line}");
        assert_eq!(told(9, state(State::Down, None)), "INFO interface tl0 is up again");
        assert_eq!(told(9, state(State::Init, None)), "");
        let line = told(3_600, state(State::Up, None));
        assert!(line.starts_with("INFO up with 203.0.113.7:7311: "), "an hour is no time to connect in: {line}");
        let line = told(3_700, Event::PeerInterface { up: false });
        assert!(line.starts_with("WARN the peer's interface is administratively down"), "{line}");
        assert_eq!(told(3_700, state(State::Down, Some(DownCause::PeerAdminDown))), "", "said twice");
        assert_eq!(told(3_800, Event::PeerInterface { up: true }), "INFO the peer's interface is up again");
    }

    #[test]
    fn an_end_that_is_called_knows_no_connect_time() {
        let event = Event::State { state: State::Up, cause: None };
        let line = text(Story::default().tell(at(1), &event, &up()));
        assert!(line.starts_with("INFO up with 203.0.113.7:7311: "), "{line}");
    }

    #[test]
    fn each_complaint_is_heard_once_a_minute_and_does_not_mute_others() {
        let mut story = Story::default();
        let silence = Event::NoAnswer { addresses: vec![peer()], knocks: 4, challenged: false };
        let stranger = Event::Stranger(peer());
        let mut heard = Vec::new();
        for second in 0..180 {
            for event in [&silence, &stranger, &Event::CryptoFailed] {
                heard.extend(story.tell(at(second), event, &Status::FRESH).map(|line| (second, line.level)));
            }
        }
        let minute = |s| [(s, Level::WARN), (s, Level::WARN), (s, Level::ERROR)];
        assert_eq!(heard, [minute(0), minute(60), minute(120)].concat());
    }

    #[test]
    fn silence_names_its_likely_causes() {
        let event = Event::NoAnswer { addresses: vec![peer()], knocks: 4, challenged: false };
        let line = text(Story::default().tell(at(0), &event, &Status::FRESH));
        for words in ["203.0.113.7:7311", "4 knocks", "wrong address", "UDP blocked", "not running", "public keys"] {
            assert!(line.contains(words), "{words}: {line}");
        }
        let line = text(Story::default().tell(at(0), &Event::Stranger(peer()), &Status::FRESH));
        assert!(line.contains("source 203.0.113.7:7311") && line.contains("public keys"), "{line}");
    }

    fn silence() -> Event {
        Event::NoAnswer { addresses: vec![peer()], knocks: 4, challenged: false }
    }

    #[test]
    fn after_an_outage_nobody_is_told_to_look_at_keys() {
        let mut story = Story::default();
        story.tell(at(1), &Event::State { state: State::Up, cause: None }, &up());
        let cause = Some(DownCause::Silence(Duration::from_secs(3)));
        story.tell(at(103), &Event::State { state: State::Down, cause }, &Status::FRESH);
        let line = text(story.tell(at(108), &silence(), &Status::FRESH));
        for words in ["for 8 s", "not running", "address has changed", "network between is out"] {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert!(!line.contains("key") && !line.contains("wrong address"), "{line}");
        let line = text(story.tell(at(100 + 900), &silence(), &Status::FRESH));
        assert!(line.contains("for 15 min"), "{line}");
        story.take_reasons(vec![(peer(), Unreachable::Port)]);
        let line = text(story.tell(at(100 + 960), &silence(), &Status::FRESH));
        let words = "nothing has been heard from the peer for 16 min; nobody listens at 203.0.113.7:7311 (ICMP port unreachable): start";
        assert!(line.contains(words) && !line.contains("correct"), "{line}");
    }

    #[test]
    fn what_icmp_says_is_named_in_place_of_guesses() {
        let mut story = Story::default();
        let mut told = |second, why| {
            assert!(story.wants_reasons(at(second)));
            story.take_reasons(vec![(peer(), why)]);
            let line = text(story.tell(at(second), &silence(), &Status::FRESH));
            assert!(!story.wants_reasons(at(second + 59)), "asked for what is not said");
            assert!(line.starts_with("WARN no answer from 203.0.113.7:7311 after 4 knocks: "), "{line}");
            assert!(!line.contains("public keys"), "{line}");
            line
        };
        assert!(told(0, Unreachable::Port).contains("nobody listens at 203.0.113.7:7311 (ICMP port unreachable)"));
        let router = Some("192.0.2.1".parse().unwrap());
        assert!(
            told(60, Unreachable::Host(router))
                .contains("no route to 203.0.113.7, or that machine is off (192.0.2.1 says by ICMP)")
        );
        assert!(told(120, Unreachable::Host(None)).contains("(this machine says)"));
        assert!(told(180, Unreachable::Forbidden(router)).contains("a firewall forbids UDP to 203.0.113.7:7311"));
        let line = text(story.tell(at(240), &silence(), &Status::FRESH));
        assert!(line.contains("public keys"), "what was said is not said again unasked: {line}");
    }

    #[test]
    fn an_end_that_waits_says_where_and_what_does_not_come() {
        let mut story =
            Story::of("tl0".into(), Vec::new(), &["[::]:7311".parse().unwrap(), "192.0.2.1:7311".parse().unwrap()]);
        let mut told = |second, event| text(story.tell(at(second), &event, &Status::FRESH));
        let nothing = |others| Event::NothingArrives { silence: Duration::from_secs(10), others };
        let line = told(10, nothing(false));
        assert!(line.starts_with("WARN nothing has arrived at UDP 7311 for 10 s: is the other end started"), "{line}");
        assert_eq!(told(40, nothing(false)), "", "twice in a minute");
        assert!(told(70, nothing(true)).contains("nothing of the peer's has arrived at UDP 7311"));
        let lost = |responded| Event::AnswersLost { peer: peer(), responded };
        let line = told(71, lost(false));
        let begins = "WARN valid knocks from 203.0.113.7:7311 arrive at UDP 7311, our answers do not reach it: ";
        assert!(line.starts_with(begins) && !line.contains("preshared"), "{line}");
        assert!(told(140, lost(true)).contains("preshared keys"));
    }

    #[test]
    fn cold_open_datagrams_are_told_at_debug_and_a_flood_is_counted() {
        let mut story = Story::default();
        let event = |step| Event::Cold { kind: Kind::Knock, peer: peer(), step };
        assert_eq!(text(story.tell(at(1), &event(ColdStep::Sent), &up())), "DEBUG Knock sent to 203.0.113.7:7311");
        let refused = text(story.tell(at(1), &event(ColdStep::Replayed), &up()));
        assert_eq!(refused, "DEBUG Knock from 203.0.113.7:7311 refused: a copy, too late, or not asked for");
        let told = (0..1_000).filter_map(|_| story.tell(at(1), &event(ColdStep::Taken), &up())).count();
        assert_eq!(told, COLD_TOLD as usize - 2);
        let next = text(story.tell(at(2), &event(ColdStep::Taken), &up()));
        assert_eq!(next, "DEBUG 982 more cold-open datagrams were not logged; Knock received from 203.0.113.7:7311");
    }

    #[test]
    fn what_the_loops_refuse_is_counted_once_a_second() {
        let (mut story, drops) = (Story::default(), Drops::default());
        assert_eq!(story.dropped(at(5), &drops), None);
        drops.unauthentic.add(3);
        drops.replayed.add(1);
        assert_eq!(text(story.dropped(at(5), &drops)), "DEBUG datagrams refused: 3 unauthentic, 1 replayed");
        drops.malformed.add(2);
        assert_eq!(story.dropped(at(5), &drops), None);
        assert_eq!(text(story.dropped(at(6), &drops)), "DEBUG datagrams refused: 2 malformed");
    }

    #[test]
    fn an_answer_that_does_not_open_is_not_called_silence_too() {
        let mut story = Story::default();
        story.tell(at(0), &Event::Connecting { addresses: vec![peer()] }, &Status::FRESH);
        let line = text(story.tell(at(0), &Event::PresharedKeysDiffer, &Status::FRESH));
        assert!(line.starts_with("WARN the preshared keys of the two ends differ"), "{line}");
        let silence = Event::NoAnswer { addresses: vec![peer()], knocks: 0, challenged: true };
        assert_eq!(story.tell(at(5), &silence, &Status::FRESH), None);
        story.tell(at(6), &Event::Connecting { addresses: vec![peer()] }, &Status::FRESH);
        assert!(text(story.tell(at(11), &silence, &Status::FRESH)).contains("answered a knock"));
    }

    #[test]
    fn two_machines_with_one_key_are_named_once_a_minute_with_what_to_do() {
        let mut story = Story::default();
        let other = "198.51.100.9:40000".parse().unwrap();
        let known = |whose| Event::SameKey(Some(SameKey { whose, addresses: [peer(), other] }));
        let line = text(story.tell(at(0), &known(Whose::Peer), &up()));
        for words in ["WARN two machines use the peer's key", "203.0.113.7:7311", "198.51.100.9:40000", "tieline init"]
        {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert!(text(story.tell(at(40), &Event::SameKey(None), &up())).starts_with("INFO only one machine"));
        assert_eq!(story.tell(at(59), &known(Whose::Peer), &up()), None);
        let line = text(story.tell(at(60), &known(Whose::Own), &up()));
        assert!(line.contains("this machine at 203.0.113.7:7311 and the other one at 198.51.100.9:40000"), "{line}");
    }

    #[test]
    fn strangers_beside_a_line_that_is_up_are_no_news() {
        let line = Story::default().tell(at(0), &Event::Stranger(peer()), &up()).unwrap();
        assert_eq!(line.level, Level::DEBUG);
    }

    fn two_paths() -> Story {
        Story::of("tl0".into(), vec!["fibre".into(), "lte".into()], &[])
    }

    #[test]
    fn paths_come_and_go_by_name() {
        let mut story = two_paths();
        let mut told = |second, event| text(story.tell(at(second), &event, &up()));
        assert_eq!(told(1, Event::Way { way: 1, up: true }), "INFO path lte is up");
        assert_eq!(told(1, Event::UsesWay { way: 1 }), "INFO the link uses path lte");
        let lost = "WARN path lte is lost: the peer does not answer there any more";
        assert_eq!(told(9, Event::Way { way: 1, up: false }), lost);
        assert_eq!(told(9, Event::SilentWay { way: 0 }), "DEBUG still no answer by path fibre");
        assert!(told(9, Event::WantSocket).contains("paths' sockets anew"));
        assert!(text(Story::default().tell(at(9), &Event::WantSocket, &up())).contains("another local port"));
    }

    #[test]
    fn a_path_that_comes_and_goes_does_not_fill_the_log() {
        let mut story = two_paths();
        let lines = |story: &mut Story, from| {
            let of = |second| story.tell(at(second), &Event::Way { way: 0, up: second % 2 == 0 }, &up()).unwrap();
            (from..from + 200).map(of).filter(|line| line.level != Level::DEBUG).collect::<Vec<_>>()
        };
        let heard = lines(&mut story, 100);
        assert_eq!(heard.len(), 5, "{heard:?}");
        assert!(heard[4].text.contains("comes and goes") && heard[4].level == Level::WARN, "{heard:?}");
        assert!(!heard[3].text.contains("comes and goes"));
        let other = text(story.tell(at(299), &Event::Way { way: 1, up: true }, &up()));
        assert_eq!(other, "INFO path lte is up", "one does not mute another");
        assert_eq!(lines(&mut story, 359).len(), 5, "it has kept still for a minute");
    }

    #[test]
    fn that_nothing_leaves_by_a_path_is_said_once_until_it_is_up_again() {
        let mut story = two_paths();
        let error = || std::io::Error::from(std::io::ErrorKind::NetworkUnreachable);
        let levels = |story: &mut Story, way, from: u64| {
            let said = |second| story.cannot_send(at(second), peer(), way, &error());
            (from..from + 300).filter_map(said).filter(|line| line.level == Level::WARN).map(|line| line.text).collect()
        };
        let said: Vec<String> = levels(&mut story, Some(1), 0);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("203.0.113.7:7311 by path lte:"), "{said:?}");
        assert_eq!(Vec::len(&levels(&mut story, Some(0), 0)), 1, "one does not mute another");
        story.tell(at(400), &Event::Way { way: 1, up: true }, &up());
        assert_eq!(Vec::len(&levels(&mut story, Some(1), 400)), 1);
        assert_eq!(Vec::len(&levels(&mut story, None, 0)), 5, "the only way there is: each minute");
    }
}

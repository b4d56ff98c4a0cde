//! Packets that this end drops while the link is up: at its interface, and because of marks of congestion. It knows how many
//! they are, and when they are so many that people must be told.
//!
//! The loss that `status` shows is what Reports measure between the two ends. What is dropped before a packet is sealed, or
//! after it was opened, is not in it, and is counted here.

use super::driver::changed;
use super::problem::{Code, Problems};
use super::story::Line;
use crate::packet::Layer;
use crate::protocol::Time;
use crate::protocol::levels::Drops;
use crate::sys::netlink::Netlink;
use crate::sys::netlink::view::InterfaceCounters;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{Level, debug};

/// The kernel's counters are read this often.
const EVERY: Duration = Duration::from_secs(1);
/// So many readings are looked at together.
const WINDOW: usize = 5;
/// More than this share of the packets is too many.
const TOO_MANY: f64 = 0.01;
/// Fewer packets than this say nothing: a burst into an idle link.
const FEW: u64 = 10;
/// Of two times that packets are dropped, the second is told only if it comes so much later.
const AGAIN: Duration = Duration::from_secs(60);

/// Reads the kernel's counters of the interface, for as long as somebody wants them.
pub(super) async fn follow(netlink: Netlink, index: u32, tell: watch::Sender<Option<InterfaceCounters>>) {
    loop {
        let counters = netlink.counters(index).await;
        if let Err(error) = &counters {
            debug!("what the interface drops is not known: {error}");
        }
        if tell.send(counters.ok()).is_err() {
            return;
        }
        sleep(EVERY).await;
    }
}

/// The next of them.
pub(super) async fn next(told: &mut watch::Receiver<Option<InterfaceCounters>>) -> Option<InterfaceCounters> {
    changed(told).await;
    *told.borrow_and_update()
}

/// What was counted until a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// By the kernel at the interface; `None` where the interface is not the link's any more.
    interface: Option<InterfaceCounters>,
    /// Packets written to the interface.
    written: u64,
    /// Packets that the interface did not take: because it is down, and for other reasons.
    down: u64,
    refused: u64,
    congested: u64,
}

impl Reading {
    /// By the kernel, and by the loops, which have written so many packets to the interface.
    pub(super) fn of(interface: Option<InterfaceCounters>, drops: &Drops, written: u64) -> Reading {
        Reading {
            interface,
            written,
            down: drops.interface_down.get(),
            refused: drops.interface_invalid.get() + drops.interface_write.get(),
            congested: drops.congested.get(),
        }
    }
}

/// What the kernel has dropped at the interface since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfaceDrops {
    /// For the peer: the interface's queue was full.
    pub(super) queue: u64,
    /// For the peer: the interface had no carrier. Those of the second in which it came or went are here too.
    pub(super) no_carrier: u64,
    /// From the peer, after they were written to the interface.
    pub(super) receive: u64,
}

/// Where packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Queue,
    Receive,
    Write,
    Marks,
}

const PLACES: [Place; 4] = [Place::Marks, Place::Write, Place::Queue, Place::Receive];

impl Place {
    fn code(self) -> Code {
        match self {
            Place::Queue | Place::Receive => Code::Overload,
            Place::Write => Code::InterfaceRefuses,
            Place::Marks => Code::EcnMarks,
        }
    }

    /// One packet is enough where not one should be dropped on any line.
    fn few(self) -> u64 {
        if self == Place::Marks { 1 } else { FEW }
    }
}

/// Packets: dropped at a place, and let pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    dropped: u64,
    passed: u64,
}

impl Share {
    fn ratio(self) -> f64 {
        match self.dropped + self.passed {
            0 => 0.0,
            all => self.dropped as f64 / all as f64,
        }
    }
}

/// What has become of a place where packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Began,
    /// So many were dropped since it began.
    Ended {
        dropped: u64,
        after: Duration,
    },
}

/// One place, watched.
#[derive(Debug, Default)]
struct Watch {
    window: VecDeque<Share>,
    /// Since when too many are dropped, how many were since, and whether that was told.
    since: Option<Time>,
    dropped: u64,
    told: bool,
    /// Readings since there were too many.
    quiet: usize,
    last_told: Option<Time>,
}

impl Watch {
    /// What the last readings come to.
    fn sum(&self) -> Share {
        let add = |sum: Share, share: &Share| Share {
            dropped: sum.dropped + share.dropped,
            passed: sum.passed + share.passed,
        };
        self.window.iter().fold(Share::default(), add)
    }

    /// Takes what was dropped since the last reading.
    fn take(&mut self, now: Time, share: Share, few: u64) -> Option<News> {
        self.window.push_back(share);
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        let sum = self.sum();
        if sum.dropped >= few && sum.ratio() > TOO_MANY {
            self.quiet = 0;
            return self.begin(now, share.dropped);
        }
        self.dropped += share.dropped;
        self.quiet += 1;
        if self.quiet < WINDOW {
            return None;
        }
        let since = self.since.take()?;
        let ended = News::Ended { dropped: self.dropped, after: now.since(since) };
        std::mem::take(&mut self.told).then_some(ended)
    }

    fn begin(&mut self, now: Time, dropped: u64) -> Option<News> {
        if self.since.is_some() {
            self.dropped += dropped;
            return None;
        }
        (self.since, self.dropped) = (Some(now), dropped);
        self.told = self.last_told.is_none_or(|last| now.since(last) >= AGAIN);
        if self.told {
            self.last_told = Some(now);
        }
        self.told.then_some(News::Began)
    }
}

/// What is dropped, and what was told of it.
#[derive(Debug)]
pub(super) struct Losses {
    interface: String,
    layer: Layer,
    /// The first reading that had the kernel's counters, …
    first: Option<Reading>,
    /// … and the last one.
    before: Option<Reading>,
    totals: InterfaceDrops,
    watches: [Watch; PLACES.len()],
    /// What people were told is wrong at each place, while it is.
    texts: [Option<String>; PLACES.len()],
    /// On the way from where, and by which of config's paths, packets are marked.
    marked: Option<(SocketAddr, Option<String>)>,
}

impl Losses {
    /// Of a link on this interface.
    pub(super) fn of(interface: &str, layer: Layer) -> Losses {
        Losses {
            interface: interface.to_owned(),
            layer,
            first: None,
            before: None,
            totals: InterfaceDrops::default(),
            watches: Default::default(),
            texts: Default::default(),
            marked: None,
        }
    }

    /// Packets were dropped because of a mark of congestion, in datagrams from this address by this path.
    pub(super) fn marked(&mut self, peer: SocketAddr, path: Option<String>) {
        self.marked = Some((peer, path));
    }

    /// What the kernel has dropped at the interface.
    pub(super) fn interface(&self) -> InterfaceDrops {
        self.totals
    }

    /// The share of packets that was dropped lately: of those for the peer, and of those from it. `None` while nothing is known.
    pub(super) fn ratios(&self) -> Option<[f64; 2]> {
        self.before?;
        let mut passed = [1.0; 2];
        for (place, watch) in PLACES.into_iter().zip(&self.watches) {
            passed[usize::from(place != Place::Queue)] *= 1.0 - watch.sum().ratio();
        }
        Some(passed.map(|passed| 1.0 - passed))
    }

    /// Takes a reading, sets and clears the problems that come of it, and gives what there is to say.
    pub(super) fn take(&mut self, now: Time, reading: Reading, problems: &Problems) -> Vec<Line> {
        if self.first.is_none() && reading.interface.is_some() {
            self.first = Some(reading);
        }
        let Some(before) = self.before.replace(reading) else { return Vec::new() };
        let mut lines = Vec::new();
        for (n, place) in PLACES.into_iter().enumerate() {
            let share = self.since(place, &before, &reading);
            let news = self.watches[n].take(now, share, place.few());
            if self.watches[n].quiet == 0 {
                self.texts[n] = Some(self.in_words(place, self.watches[n].sum()));
            }
            if self.watches[n].since.is_none() {
                self.texts[n] = None;
            }
            match news {
                Some(News::Began) => lines.extend(self.texts[n].clone().and_then(|text| Line::new(Level::WARN, text))),
                Some(News::Ended { dropped, after }) => lines.extend(self.ended(place, dropped, after)),
                None => {}
            }
        }
        self.tell(now, problems);
        lines
    }

    fn tell(&self, now: Time, problems: &Problems) {
        for code in [Code::EcnMarks, Code::InterfaceRefuses, Code::Overload] {
            let mut texts = PLACES.iter().zip(&self.texts).filter(|(place, _)| place.code() == code);
            match texts.find_map(|(_, text)| text.as_ref()) {
                Some(text) => problems.set(code, text.as_str(), now),
                None => problems.clear(code),
            }
        }
    }

    /// What was dropped at a place between two readings.
    fn since(&mut self, place: Place, before: &Reading, reading: &Reading) -> Share {
        let written = reading.written.wrapping_sub(before.written);
        match place {
            Place::Marks => Share { dropped: reading.congested.wrapping_sub(before.congested), passed: written },
            Place::Write => Share { dropped: reading.refused.wrapping_sub(before.refused), passed: written },
            Place::Queue => self.queue(before, reading),
            Place::Receive => self.receive(before, reading),
        }
    }

    /// Without a carrier the kernel drops all that is to be sent into an interface and counts it as it counts what its queue has no
    /// room for. Only what was dropped while the carrier stayed is overload.
    fn queue(&mut self, before: &Reading, reading: &Reading) -> Share {
        let (Some(before), Some(now)) = (before.interface, reading.interface) else { return Share::default() };
        let dropped = now.tx_dropped.saturating_sub(before.tx_dropped);
        let carried = before.carries && now.carries && before.carrier_changes == now.carrier_changes;
        if !carried {
            self.totals.no_carrier += dropped;
            return Share::default();
        }
        self.totals.queue += dropped;
        Share { dropped, passed: now.tx_packets.saturating_sub(before.tx_packets) }
    }

    /// A write that fails is counted by the kernel too, and maybe read there a second later than here: so all since the first
    /// reading is compared. On an Ethernet so are frames of protocols that nobody here takes, as they come on any Ethernet: they are
    /// no overload.
    fn receive(&mut self, before: &Reading, reading: &Reading) -> Share {
        let (Some(first), Some(last), Some(now)) = (self.first, before.interface, reading.interface) else {
            return Share::default();
        };
        let start = first.interface.map_or(0, |interface| interface.rx_dropped);
        let failed = (reading.down + reading.refused).saturating_sub(first.down + first.refused);
        let all = now.rx_dropped.saturating_sub(start).saturating_sub(failed).max(self.totals.receive);
        let dropped = all - std::mem::replace(&mut self.totals.receive, all);
        match self.layer {
            Layer::Ip => Share { dropped, passed: now.rx_packets.saturating_sub(last.rx_packets) },
            Layer::Ethernet => Share::default(),
        }
    }

    /// What is wrong at a place, and what to do.
    fn in_words(&self, place: Place, share: Share) -> String {
        let (interface, percent) = (&self.interface, share.ratio() * 100.0);
        let dropped = |direction| {
            format!("{percent:.1} % of the packets {direction} the peer were dropped in the last {WINDOW} s")
        };
        match place {
            Place::Queue => format!(
                "{}, because the queue of {interface} was full: they come faster than this machine encrypts them or the uplink \
                 takes them; send less into the link (a shaper: `tc`), or give tieline a faster or less busy processor",
                dropped("for")
            ),
            Place::Receive => format!(
                "{}, because the kernel had no room for what tieline wrote to {interface}: raise net.core.netdev_max_backlog, or \
                 give this machine a faster or less busy processor",
                dropped("from")
            ),
            Place::Write => format!(
                "{}, because the kernel did not take them at {interface}: its memory is full (see `free`), or what the peer sends \
                 are no IP packets",
                dropped("from")
            ),
            Place::Marks => format!(
                "{}, because their datagrams came marked as congested (ECN CE) though the packets' senders do not use ECN (RFC \
                 6040): something on the way {}to here sets the last two bits of the traffic class (TOS) on all datagrams; find \
                 the router or firewall rule that rewrites this byte and let it change the DSCP alone",
                dropped("from"),
                self.from()
            ),
        }
    }

    /// Where marked datagrams come from.
    fn from(&self) -> String {
        match &self.marked {
            None => String::new(),
            Some((peer, None)) => format!("from {peer} "),
            Some((peer, Some(path))) => format!("from {peer} by path {path} "),
        }
    }

    fn ended(&self, place: Place, dropped: u64, after: Duration) -> Option<Line> {
        let (interface, seconds) = (&self.interface, after.as_secs());
        let over = match place {
            Place::Queue => format!("the queue of {interface} has room again"),
            Place::Receive => format!("the kernel has room again for what comes out of {interface}"),
            Place::Write => format!("{interface} takes packets again"),
            Place::Marks => "packets from the peer come without marks of congestion again".to_owned(),
        };
        Line::new(Level::INFO, format!("{over}: {dropped} packets were dropped within {seconds} s"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// An interface that carries and has sent and received nothing.
    fn idle() -> InterfaceCounters {
        InterfaceCounters { carries: true, carrier_changes: 3, ..InterfaceCounters::default() }
    }

    /// A link under test: what is counted rises by what each second brings.
    struct Scene {
        losses: Losses,
        problems: Problems,
        reading: Reading,
        second: u64,
    }

    impl Scene {
        fn new(layer: Layer) -> Scene {
            // What was there before the link is none of its business.
            let interface = InterfaceCounters { tx_dropped: 7_000, rx_dropped: 9_000, ..idle() };
            let reading = Reading { interface: Some(interface), ..Reading::default() };
            let mut scene =
                Scene { losses: Losses::of("tl0", layer), problems: Problems::default(), reading, second: 0 };
            assert_eq!(scene.losses.ratios(), None);
            assert_eq!(scene.second(|_, _| {}), "");
            scene
        }

        /// What is said in a second in which this happens.
        fn second(&mut self, happens: impl Fn(&mut Reading, &mut InterfaceCounters)) -> String {
            let mut interface = self.reading.interface.unwrap();
            happens(&mut self.reading, &mut interface);
            self.reading.interface = Some(interface);
            self.second += 1;
            let lines = self.losses.take(Time(self.second * SECOND), self.reading, &self.problems);
            lines.iter().map(|line| format!("{} {}", line.level, line.text)).collect::<Vec<_>>().join("\n")
        }

        /// The second in which something is said for the first time, of so many, and that.
        fn first(
            &mut self,
            seconds: u64,
            happens: impl Fn(&mut Reading, &mut InterfaceCounters),
        ) -> Option<(u64, String)> {
            let mut said = (1..=seconds).map(|n| (n, self.second(&happens)));
            said.find(|(_, said)| !said.is_empty())
        }

        fn problem(&self) -> Option<(Code, String)> {
            self.problems.worst().map(|problem| (problem.code, problem.text))
        }
    }

    /// 63 % of 10,000 packets find the queue full.
    fn flood(_: &mut Reading, interface: &mut InterfaceCounters) {
        interface.tx_packets += 3_700;
        interface.tx_dropped += 6_300;
    }

    fn calm(reading: &mut Reading, interface: &mut InterfaceCounters) {
        (interface.tx_packets, interface.rx_packets) = (interface.tx_packets + 10, interface.rx_packets + 10);
        reading.written += 10;
    }

    #[test]
    fn a_full_queue_is_a_problem_until_it_has_room_and_each_is_said_once() {
        let mut scene = Scene::new(Layer::Ip);
        let line = scene.second(flood);
        for words in ["WARN 63.0 % of the packets for the peer", "the queue of tl0 was full", "`tc`", "processor"] {
            assert!(line.contains(words), "{words}: {line}");
        }
        let (code, text) = scene.problem().unwrap();
        assert_eq!(code, Code::Overload);
        assert!(line.ends_with(&text), "{text}");
        assert_eq!(scene.losses.interface(), InterfaceDrops { queue: 6_300, ..InterfaceDrops::default() });
        let [to, from] = scene.losses.ratios().unwrap();
        assert!((to - 0.63).abs() < 1e-9 && from == 0.0, "{to} {from}");
        assert_eq!(scene.first(3, flood), None, "said again");
        let (second, line) = scene.first(60, calm).unwrap();
        assert_eq!(line, "INFO the queue of tl0 has room again: 25200 packets were dropped within 12 s");
        assert_eq!((second, scene.problem()), (9, None), "the last seconds count, and then as many that are quiet");
        assert_eq!(scene.losses.ratios(), Some([0.0; 2]));
    }

    #[test]
    fn what_comes_and_goes_is_told_once_a_minute() {
        let mut scene = Scene::new(Layer::Ip);
        let mut said = Vec::new();
        for second in 0..180 {
            let line = if second % 30 < 10 { scene.second(flood) } else { scene.second(calm) };
            assert!(second % 30 >= 10 || scene.problem().is_some());
            said.extend((!line.is_empty()).then(|| line[..4].to_owned()));
        }
        assert_eq!(said, ["WARN", "INFO", "WARN", "INFO", "WARN", "INFO"]);
    }

    #[test]
    fn a_few_packets_or_few_of_many_are_no_problem() {
        let mut scene = Scene::new(Layer::Ip);
        let few = |_: &mut Reading, interface: &mut InterfaceCounters| interface.tx_dropped += 1;
        let of_many = |_: &mut Reading, interface: &mut InterfaceCounters| {
            (interface.tx_packets, interface.tx_dropped) = (interface.tx_packets + 9_950, interface.tx_dropped + 50);
        };
        assert_eq!((scene.first(9, few), scene.first(60, of_many), scene.problem()), (None, None, None));
        assert_eq!(scene.losses.interface().queue, 9 + 60 * 50, "but they are counted");
    }

    #[test]
    fn an_interface_without_a_carrier_is_not_overloaded() {
        let mut scene = Scene::new(Layer::Ip);
        let dropped = |interface: &mut InterfaceCounters| interface.tx_dropped += 5_000;
        let falls = |_: &mut Reading, interface: &mut InterfaceCounters| {
            (interface.carries, interface.carrier_changes) = (false, 4);
            dropped(interface);
        };
        let rises = |_: &mut Reading, interface: &mut InterfaceCounters| {
            (interface.carries, interface.carrier_changes) = (true, 5);
            dropped(interface);
        };
        let flaps = |_: &mut Reading, interface: &mut InterfaceCounters| {
            interface.carrier_changes += 2;
            dropped(interface);
        };
        let said = [scene.second(falls), scene.second(falls), scene.second(rises), scene.second(flaps)];
        assert_eq!((said.concat().as_str(), scene.problem()), ("", None));
        assert_eq!(scene.losses.interface(), InterfaceDrops { no_carrier: 20_000, ..InterfaceDrops::default() });
    }

    #[test]
    fn what_is_not_the_links_interface_any_more_is_not_read() {
        let mut scene = Scene::new(Layer::Ip);
        let interface = scene.reading.interface.take();
        assert!(scene.losses.take(Time(9 * SECOND), scene.reading, &scene.problems).is_empty());
        scene.reading.interface = interface;
        assert_eq!(scene.second(flood), "", "what came before it was back is unknown");
        assert!(scene.second(flood).starts_with("WARN "));
    }

    #[test]
    fn what_the_kernel_drops_behind_the_interface_is_overload_on_ip_alone() {
        let backlog = |reading: &mut Reading, interface: &mut InterfaceCounters| {
            reading.written += 100;
            interface.rx_packets += 100;
            // One of them failed to be written, and was counted there.
            reading.refused += 1;
            interface.rx_dropped += 101;
        };
        let mut scene = Scene::new(Layer::Ip);
        let line = scene.second(backlog);
        assert!(line.starts_with("WARN 50.0 % of the packets from the peer"), "{line}");
        assert!(line.contains("net.core.netdev_max_backlog"), "{line}");
        assert_eq!(scene.problem().unwrap().0, Code::Overload);
        assert_eq!(scene.losses.interface().receive, 100);
        let mut scene = Scene::new(Layer::Ethernet);
        assert_eq!((scene.second(backlog).as_str(), scene.problem()), ("", None));
        assert_eq!(scene.losses.interface().receive, 100);
    }

    #[test]
    fn an_interface_that_refuses_packets_is_a_problem_unless_it_is_down() {
        let mut scene = Scene::new(Layer::Ip);
        let down = |reading: &mut Reading, interface: &mut InterfaceCounters| {
            (reading.down, interface.rx_dropped) = (reading.down + 500, interface.rx_dropped + 500);
        };
        let late = |reading: &mut Reading, _: &mut InterfaceCounters| reading.down += 20;
        let kernel = |_: &mut Reading, interface: &mut InterfaceCounters| interface.rx_dropped += 20;
        let said = [scene.second(down), scene.second(late), scene.second(kernel)].concat();
        assert_eq!((said.as_str(), scene.problem()), ("", None), "that is another problem");
        let refuses = |reading: &mut Reading, _: &mut InterfaceCounters| reading.refused += 500;
        assert!(scene.second(refuses).contains("did not take them at tl0"));
        assert_eq!(scene.problem().unwrap().0, Code::InterfaceRefuses);
        assert_eq!(scene.losses.interface().receive, 0);
    }

    #[test]
    fn marks_of_congestion_are_a_problem_from_the_first_packet_and_name_the_path() {
        let mut scene = Scene::new(Layer::Ip);
        scene.losses.marked("203.0.113.7:7311".parse().unwrap(), Some("lte".into()));
        let line = scene.second(|reading, _| reading.congested += 1);
        let words =
            ["WARN 100.0 % of the packets from the peer", "from 203.0.113.7:7311 by path lte", "CE", "DSCP alone"];
        assert!(words.iter().all(|words| line.contains(words)), "{line}");
        assert_eq!(scene.problem().unwrap().0, Code::EcnMarks);
        assert_eq!(scene.losses.ratios(), Some([0.0, 1.0]));
        let (_, line) = scene.first(60, calm).unwrap();
        assert!(line.starts_with("INFO packets from the peer come without marks"), "{line}");
        assert_eq!(scene.problem(), None);
    }
}

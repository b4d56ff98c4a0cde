//! What is done to the pair: how each fault begins, goes on and is lifted, and what it may do to the link.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::lab::{End, Lab, PATIENCE, PORT, Site};
use crate::common::relay::{self, Relay};
use crate::common::transfer::SplitMix;
use crate::common::udp::RawUdp;
use crate::common::{nft, wait_until};

/// One thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    Loss,
    LossOneWay,
    Delay,
    Reorder,
    Duplicate,
    Corrupt,
    Slow,
    EverythingAtOnce,
    Cut,
    CutOneWay,
    NatRebinds,
    AddressChanges,
    CableDown,
    Killed,
    Terminated,
    Sleeps,
    Junk,
    Replay,
}

use Fault::{
    AddressChanges, CableDown, Corrupt, Cut, CutOneWay, Delay, Duplicate, EverythingAtOnce, Junk, Killed, Loss,
    LossOneWay, NatRebinds, Reorder, Replay, Sleeps, Slow, Terminated,
};

impl Fault {
    pub const ALL: [Self; 18] = [
        Loss,
        LossOneWay,
        Delay,
        Reorder,
        Duplicate,
        Corrupt,
        Slow,
        EverythingAtOnce,
        Cut,
        CutOneWay,
        NatRebinds,
        AddressChanges,
        CableDown,
        Killed,
        Terminated,
        Sleeps,
        Junk,
        Replay,
    ];

    /// Whether a link that is Up must not even notice.
    pub fn is_harmless(self) -> bool {
        matches!(self, Delay | Reorder | Duplicate | Corrupt | Slow | Junk | Replay)
    }

    /// Why datagrams may be dropped while it lasts, as `status` names it. A packet too big for the link nobody sends.
    pub fn explains(self) -> &'static [&'static str] {
        match self {
            // What comes twice, or for a session that is no more; cold opens that cross.
            Loss | LossOneWay | Delay | Reorder | Duplicate | Slow | Cut | CutOneWay | NatRebinds | AddressChanges
            | CableDown | Sleeps => &["replayed", "no_session"],
            // Tokens too of a process that is no more.
            Killed | Terminated => &["replayed", "no_session", "unauthentic"],
            Corrupt | EverythingAtOnce | Junk | Replay => &["replayed", "no_session", "unauthentic", "malformed"],
        }
    }
}

/// The pair and its line. The left end lives through all of it, so what grows shows there; it is the right one that dies.
pub struct Stage<'a> {
    lab: &'a Lab,
    relay: Relay,
    pub dice: SplitMix,
    ends: [Option<End<'a>>; 2],
    asleep: [bool; 2],
    moved: Option<usize>,
    forger: RawUdp,
    recorded: Vec<Vec<u8>>,
    /// Of both sites, before there was a link.
    routes: [Vec<[String; 3]>; 2],
}

impl<'a> Stage<'a> {
    pub fn new(lab: &'a Lab, relay: Relay, seed: u64) -> Self {
        Self {
            lab,
            relay,
            routes: [lab.left.routes(), lab.right.routes()],
            dice: SplitMix(seed),
            ends: [Some(lab.left.start()), Some(lab.right.start())],
            asleep: [false; 2],
            moved: None,
            forger: RawUdp::at(&lab.right),
            recorded: Vec::new(),
        }
    }

    /// The ends that run and can answer.
    pub fn awake(&self) -> impl Iterator<Item = (usize, &End<'a>)> {
        self.ends.iter().enumerate().filter_map(|(n, end)| Some((n, end.as_ref()?))).filter(|(n, _)| !self.asleep[*n])
    }

    /// Whether a ping comes through each way.
    pub fn pings_pass(&self) -> bool {
        let [left, right] = self.sites();
        let passes = |from: &Site, to: &Site| from.ping_within(to.inner[0], Duration::from_millis(300)).is_some();
        passes(left, right) && passes(right, left)
    }

    pub fn frames(&self) -> [relay::Counts; 2] {
        self.relay.counts()
    }

    fn sites(&self) -> [&'a Site; 2] {
        [&self.lab.left, &self.lab.right]
    }

    fn one_of(&mut self, count: u64) -> u64 {
        self.dice.next().unwrap() % count
    }

    /// A time between these, in milliseconds.
    pub fn time(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.one_of(to - from + 1))
    }

    /// Starts it, and says what exactly.
    pub fn begin(&mut self, fault: Fault) -> String {
        let share = |stage: &mut Self, percent: u64| (1 + stage.one_of(percent)) as f64 / 100.0;
        let clean = relay::Faults::default();
        let faults = match fault {
            Loss => relay::Faults { loss: share(self, 30), ..clean },
            LossOneWay => relay::Faults { loss: share(self, 60), ..clean },
            Delay => relay::Faults { delay: self.time(50, 500), jitter: self.time(0, 50), ..clean },
            Reorder => relay::Faults { reorder: share(self, 50), jitter: self.time(1, 20), ..clean },
            Duplicate => relay::Faults { duplicate: share(self, 50), jitter: self.time(0, 20), ..clean },
            Corrupt => relay::Faults { corrupt: share(self, 10), ..clean },
            Slow => relay::Faults { rate: Some(250_000 + self.one_of(1_000_000)), ..clean },
            EverythingAtOnce => relay::Faults {
                loss: share(self, 20),
                delay: self.time(20, 200),
                jitter: self.time(1, 50),
                duplicate: share(self, 20),
                corrupt: share(self, 5),
                reorder: share(self, 20),
                ..clean
            },
            Cut | CutOneWay => relay::Faults { cut: true, ..clean },
            _ => return self.begin_beyond_the_line(fault),
        };
        let mut both = [faults; 2];
        if matches!(fault, LossOneWay | CutOneWay) {
            both[self.one_of(2) as usize] = clean;
        }
        self.relay.set(both);
        match fault {
            LossOneWay | CutOneWay => {
                format!("{fault:?} {}", if both[0] == clean { "right to left" } else { "left to right" })
            }
            Slow => format!("Slow: {} kB/s", faults.rate.unwrap_or(0) / 1000),
            Cut => "Cut".into(),
            _ => format!(
                "{fault:?}: loss {:.0} %, delay {:?} + {:?}, duplicate {:.0} %, corrupt {:.0} %, reorder {:.0} %",
                faults.loss * 100.0,
                faults.delay,
                faults.jitter,
                faults.duplicate * 100.0,
                faults.corrupt * 100.0,
                faults.reorder * 100.0
            ),
        }
    }

    fn begin_beyond_the_line(&mut self, fault: Fault) -> String {
        let one = self.one_of(2) as usize;
        let site = self.sites()[one];
        match fault {
            NatRebinds => {
                let port = 40_000 + self.one_of(10_000);
                nft::load(&self.lab.right.network, &nat(port));
                return format!("{fault:?}: right comes from port {port}");
            }
            AddressChanges => {
                site.change_address(site.outer[0], elsewhere(one));
                self.moved = Some(one);
            }
            CableDown => {
                site.take_cable_down();
                self.moved = Some(one);
            }
            Sleeps => {
                if let Some(end) = &self.ends[one] {
                    end.signal(Signal::SIGSTOP);
                }
                self.asleep[one] = true;
            }
            Killed => {
                self.ends[1].take().unwrap().kill_9();
                return "right is killed".into();
            }
            Terminated => {
                let end = self.ends[1].take().unwrap();
                assert!(end.terminate().success());
                return "right is terminated".into();
            }
            Replay => self.recorded = RawUdp::at(&self.lab.left).record(PORT, 500),
            _ => {}
        }
        if matches!(fault, Junk | Replay) { format!("{fault:?}") } else { format!("{fault:?}: {}", site.name) }
    }

    /// What goes on while it lasts; called about twenty times a second.
    pub fn go_on(&mut self, fault: Fault) {
        let left = SocketAddr::new(self.lab.left.outer[0], PORT);
        match fault {
            Junk => {
                for _ in 0..100 {
                    let length = self.one_of(1400) as usize;
                    let mut bytes: Vec<u8> =
                        self.dice.by_ref().take(length.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
                    if let Some(kind) = bytes.first_mut() {
                        *kind %= 8;
                    }
                    bytes.truncate(length);
                    self.forger.send(4711, left, &bytes);
                }
            }
            Replay => {
                for _ in 0..100.min(self.recorded.len()) {
                    let which = self.one_of(self.recorded.len() as u64) as usize;
                    let port = if self.one_of(2) == 0 { PORT } else { 4711 };
                    self.forger.send(port, left, &self.recorded[which]);
                }
            }
            _ => {}
        }
    }

    /// Ends it. What was stopped goes on, what was killed is started again.
    pub fn lift(&mut self, fault: Fault) {
        self.relay.set([relay::Faults::default(); 2]);
        match fault {
            NatRebinds => nft::load(&self.lab.right.network, "delete table inet rebind"),
            AddressChanges => {
                let moved = self.moved.take().unwrap();
                let site = self.sites()[moved];
                site.change_address(elsewhere(moved), site.outer[0]);
            }
            CableDown => self.sites()[self.moved.take().unwrap()].bring_cable_up(),
            Sleeps => {
                for n in [0, 1] {
                    if let Some(end) = self.ends[n].as_ref().filter(|_| std::mem::take(&mut self.asleep[n])) {
                        end.signal(Signal::SIGCONT);
                    }
                }
            }
            Killed | Terminated => {
                let end = self.lab.right.start();
                wait_until("right answering again", PATIENCE, || end.answers());
                self.ends[1] = Some(end);
            }
            _ => {}
        }
    }

    /// Both ends end as a service manager has it, and nothing of them is left.
    pub fn close(self) {
        for ((site, end), before) in self.sites().into_iter().zip(self.ends).zip(self.routes) {
            assert!(end.unwrap().terminate().success());
            assert_eq!(site.interfaces(), ["lo", site.name]);
            assert!(!site.socket().exists());
            // A cable that was down a moment ago gets its IPv6 routes back later.
            wait_until("routes as before the link", PATIENCE, || site.routes() == before);
        }
    }
}

fn elsewhere(site: usize) -> IpAddr {
    [192, 0, 2, 71 + site as u8].into()
}

/// A NAT without a memory, so that none is in the way of the next: the right end's port is another from now on, and the old one
/// leads nowhere.
fn nat(port: u64) -> String {
    format!(
        "table inet rebind {{
            chain out {{
                type filter hook output priority raw
                udp sport {PORT} udp sport set {port}
            }}
            chain in {{
                type filter hook prerouting priority raw
                udp dport {PORT} drop
                udp dport {port} udp dport set {PORT}
            }}
        }}"
    )
}

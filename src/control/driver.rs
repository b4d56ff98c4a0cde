//! The driver: the engine's hands. One loop, which tells the engine what happened and carries out what it says.
//!
//! The engine's order is kept: keys reach the ingress loop before the datagram that lets the peer use them. Nothing here
//! waits but the one select; a datagram that cannot be sent now is lost, as on any wire.

use super::drops::DropLog;
use super::line::Line;
use super::losses::{self, Losses, Reading};
use super::mtu::{Limits, Way};
use super::ports::Ports;
use super::problem::{Code, Problems};
use super::reconciler::{Seen, Wanted};
use super::reload::Reload;
use super::resolver::Resolver;
use super::status::{Client, Identity, Listener, Moment, Since, WallClock};
use super::story::{PEER_DOWN, Story, own_down, same_key};
use super::unreachable::{self, Reasons};
use super::{RunError, clock, keys};
use crate::dataplane::{Dataplane, Mailbox, Message};
use crate::keys::secret::leaving_no_trace;
use crate::os_error::in_words;
use crate::protocol::control::State;
use crate::protocol::{Event, Input, Link, Output, Path, SocketId, Time, Transmit};
use crate::sys::memory;
use crate::sys::netlink::view::{InterfaceCounters, LinkState};
use crate::sys::timer::Timer;
use crate::sys::udp::{self, UdpSocket};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tracing::{debug, error, trace, warn};

/// So much later the link's own datagrams leave in the first second of asking why nobody answers; in the next, twice as much.
const HOLD: Duration = Duration::from_millis(100);

/// A goodbye takes 100 ms; by then the link is over, said or not.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// What the kernel shows of the carrier may be as old as this.
const CARRIER_LAG: Duration = Duration::from_secs(1);

/// All that can wake the driver.
pub(super) struct Inlets {
    pub(super) timer: Timer,
    pub(super) mailbox: Mailbox,
    pub(super) resolver: Resolver,
    pub(super) listener: Listener,
    /// SIGHUP, for a process that is there for its link alone.
    pub(super) hangups: Option<Signal>,
    /// What comes of asking why nobody answers.
    pub(super) asked: mpsc::Receiver<Asked>,
    /// What the kernel counts at the interface, each second.
    pub(super) counted: watch::Receiver<Option<InterfaceCounters>>,
}

/// What comes of asking by ICMP why nobody answers.
pub(super) enum Asked {
    /// An attempt that failed, and what ICMP says of it.
    Why(Event, Reasons),
    /// A datagram that was held back meanwhile.
    Held(Transmit),
}

impl Inlets {
    async fn hangup(hangups: &mut Option<Signal>) {
        match hangups {
            Some(signal) => _ = signal.recv().await,
            None => std::future::pending().await,
        }
    }
}

/// Waits for a change; for ever once there can be none.
pub(super) async fn changed<T>(of: &mut watch::Receiver<T>) {
    if of.changed().await.is_err() {
        std::future::pending().await
    }
}

/// What woke it.
// The large one is the usual one, and boxing it would allocate for each.
#[allow(clippy::large_enum_variant)]
enum Woken {
    Timer(io::Result<()>),
    Mail(Message),
    /// Of one of config's paths, or of the link.
    Addresses(usize, Vec<SocketAddr>),
    Asked(Client),
    Limits,
    Seen,
    Hangup,
    Unanswered(Asked),
    Counted(Option<InterfaceCounters>),
    Stop,
}

/// The engine and what it acts on.
pub(super) struct Driver {
    pub(super) link: Link,
    pub(super) line: Line,
    pub(super) dataplane: Dataplane,
    pub(super) ports: Ports,
    pub(super) identity: Identity,
    pub(super) reload: Reload,
    /// The way to the peer, for whoever keeps the MTU …
    pub(super) way: watch::Sender<Way>,
    /// … and the sizes that come of it.
    pub(super) limits: watch::Receiver<Limits>,
    /// What the kernel should have for the link …
    pub(super) wanted: watch::Sender<Wanted>,
    /// … and what it shows.
    pub(super) seen: watch::Receiver<Seen>,
    /// Where it is told why nobody answers.
    pub(super) asked: mpsc::Sender<Asked>,
    pub(super) state: DriverState,
}

/// What the driver remembers for itself.
pub(super) struct DriverState {
    story: Story,
    drop_log: DropLog,
    losses: Losses,
    problems: Problems,
    /// For when the state changed, when each direction's size was found, until when the link is damped, here or there, until when it
    /// is at the peer, and since when it has its problem.
    wall_clocks: [WallClock; 6],
    /// For when each of config's paths came or went.
    path_clocks: Vec<WallClock>,
    /// Where the peer is looked for, by each of config's paths, or by the link.
    sought: BTreeMap<usize, Vec<SocketAddr>>,
    /// Those that wait until nothing sent there can enter a link.
    waiting: Vec<(usize, Vec<SocketAddr>)>,
    /// How often the way to the peer had changed when that was last looked at, and the machine's interfaces and addresses.
    reroutes: u64,
    changes: u64,
    /// When the interface's carrier was last set.
    carrier_set: Option<Time>,
    /// The peer is not heard: the name may mean another address by now.
    look_again: bool,
    /// Since when it is asked why nobody answers.
    asking: Option<Time>,
    /// It has been said that keys lie on pages that are not locked.
    unlocked: bool,
    /// Once the link closes: what comes of it, and when that is over at the latest.
    ending: Option<(Result<(), RunError>, Time)>,
}

impl DriverState {
    /// Of this link, which hears the peer at these addresses.
    pub(super) fn new(link: &Identity, locals: &[SocketAddr], problems: Problems) -> DriverState {
        let names = link.paths.iter().map(|path| path.name.clone()).collect();
        DriverState {
            story: Story::of(link.interface.clone(), names, locals),
            drop_log: DropLog::default(),
            losses: Losses::of(&link.interface, link.layer),
            problems,
            wall_clocks: Default::default(),
            path_clocks: link.paths.iter().map(|_| WallClock::default()).collect(),
            sought: BTreeMap::new(),
            waiting: Vec::new(),
            reroutes: 0,
            changes: 0,
            carrier_set: None,
            look_again: false,
            asking: None,
            unlocked: false,
            ending: None,
        }
    }

    /// Where the peer is looked for first, and by whom.
    fn sought_first(&self) -> Option<(usize, SocketAddr)> {
        self.sought.iter().find_map(|(asker, addresses)| Some((*asker, *addresses.first()?)))
    }

    /// Says once that keys had to be put elsewhere: it cannot be said where that happens.
    fn watch_vault(&mut self) {
        if !self.unlocked && memory::unlocked_blocks() > 0 {
            self.unlocked = true;
            warn!("the locked pages are full, so that some keys may be swapped to disk; this is a fault in tieline");
        }
    }
}

impl Driver {
    /// Drives the link until `stop`, or until it cannot go on; then says goodbye and stops the loops.
    pub(super) async fn run(mut self, mut inlets: Inlets, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut stop = pin!(stop);
        self.tell_ports();
        self.link.handle_timeout(clock()?);
        loop {
            let now = clock()?;
            self.carry_out(now);
            self.show_line(now);
            self.note_interface(now);
            self.note_same_key(now);
            self.note_loop(now);
            if std::mem::take(&mut self.state.look_again) {
                inlets.resolver.look_again();
            }
            if let Some((result, _)) = self.state.ending.take_if(|(_, by)| *by <= now || self.link.is_closed()) {
                self.dataplane.stop();
                return result;
            }
            let by = self.state.ending.as_ref().map(|(_, by)| *by);
            let due = [self.link.poll_timeout(), self.line.due(), by].into_iter().flatten().min();
            let woken = tokio::select! {
                fired = inlets.timer.until(due.map(|due| due.0)) => Woken::Timer(fired),
                message = inlets.mailbox.recv() => Woken::Mail(message),
                (asker, addresses) = inlets.resolver.next() => Woken::Addresses(asker, addresses),
                client = inlets.listener.next() => Woken::Asked(client),
                () = changed(&mut self.limits) => Woken::Limits,
                () = changed(&mut self.seen) => Woken::Seen,
                () = Inlets::hangup(&mut inlets.hangups) => Woken::Hangup,
                Some(asked) = inlets.asked.recv() => Woken::Unanswered(asked),
                counters = losses::next(&mut inlets.counted) => Woken::Counted(counters),
                () = &mut stop, if by.is_none() => Woken::Stop,
            };
            let now = clock()?;
            leaving_no_trace(|| self.handle(now, woken))?;
            self.state.watch_vault();
            if tracing::enabled!(tracing::Level::DEBUG)
                && let Some(line) = self.state.story.dropped(now, &self.link.levels().drops)
            {
                line.log();
            }
        }
    }

    fn handle(&mut self, now: Time, woken: Woken) -> Result<(), RunError> {
        match woken {
            Woken::Timer(fired) => {
                fired.map_err(RunError::system("cannot wait for the time"))?;
                self.link.handle_timeout(now);
            }
            Woken::Mail(Message::Input(input)) => {
                if let Input::Control { session, counter, .. } = &input {
                    trace!(session, counter, "control message");
                }
                self.link.handle_input(now, input);
            }
            Woken::Mail(Message::SendFailed { path, error }) => {
                debug!("user data cannot leave from the address in use: {error}");
                self.link.handle_send_failure(now, path);
            }
            Woken::Mail(Message::TooBig { path }) => self.link.handle_too_big(now, path, None),
            Woken::Mail(Message::ForeignSource { source, prefix }) => {
                self.state.drop_log.foreign_source(source, prefix)
            }
            Woken::Mail(Message::Returned { destination }) => self.state.drop_log.returned(destination),
            Woken::Mail(Message::Congested { path }) => {
                let name = self.ports.way_by(path.socket).and_then(|way| self.identity.paths.get(way));
                self.state.losses.marked(path.peer, name.map(|path| path.name.clone()));
            }
            Woken::Mail(Message::Looped { path }) => {
                let peer = path.peer.ip().to_canonical();
                let known = self.seen.borrow().covered.contains_key(&peer);
                self.state.drop_log.looped(now, peer, known);
            }
            Woken::Mail(Message::LoopDied { which, error }) => {
                let interface = self.identity.interface.clone();
                self.end(now, Err(RunError::LoopDied { which, interface, source: error }));
            }
            Woken::Addresses(asker, addresses) => {
                self.state.waiting.push((asker, addresses.clone()));
                self.state.sought.insert(asker, addresses);
                self.admit(now);
            }
            Woken::Seen => self.look(now),
            Woken::Limits => self.take_limits(now),
            Woken::Hangup => self.reload(now),
            Woken::Unanswered(Asked::Held(transmit)) => self.send_at_once(now, transmit),
            Woken::Unanswered(Asked::Why(event, reasons)) => {
                self.state.asking = None;
                if self.link.status().state != State::Up {
                    self.state.story.take_reasons(reasons);
                    self.tell(now, &event);
                }
            }
            Woken::Counted(counters) => self.count(now, counters),
            Woken::Asked(client) => client.answer(&self.status(now)),
            Woken::Stop => self.end(now, Ok(())),
        }
        Ok(())
    }

    /// Takes the keys of a config that has changed; one that is wrong changes nothing.
    fn reload(&mut self, now: Time) {
        let Some(config) = self.reload.read() else { return };
        match self.link.handle_keys(now, keys(config)) {
            Ok(()) => {
                self.identity.take_keys(config);
                self.reload.take();
            }
            Err(error) => error!("the config was not taken, and the link goes on as it was: {error}"),
        }
    }

    /// Begins to close the link; what it ends with is what it was first closed for.
    fn end(&mut self, now: Time, result: Result<(), RunError>) {
        if self.state.ending.is_none() {
            self.state.ending = Some((result, now + CLOSING_TIME));
            self.line.close();
            self.link.close(now);
        }
    }

    /// Does what the engine says until it has nothing more to say.
    fn carry_out(&mut self, now: Time) {
        while let Some(output) = self.link.poll_output() {
            match output {
                Output::Ingress(update) => self.dataplane.ingress(update),
                Output::Egress(update) => self.dataplane.egress(update),
                Output::Send(transmit) => self.send(now, transmit),
                Output::Event(event) => self.hear(now, event),
            }
        }
        let link = self.link.status();
        let path = link.path.map(|path| path.peer);
        // The line's own address may be talked to by any socket; others are those of ways.
        let peers = path.iter().flat_map(|peer| self.dataplane.sockets().map(|id| (id, *peer)));
        let peers: Vec<_> = peers.chain(self.link.peers().map(|path| (path.socket, path.peer))).collect();
        if let Err(error) = self.dataplane.admit(&peers) {
            debug!("what the peer sends may come later than what others do: {error}");
        }
        let sought = self.state.sought.values().flatten();
        let peers = peers.iter().map(|(_, address)| address).chain(sought).map(SocketAddr::ip).collect();
        self.wanted.send_if_modified(|told| std::mem::replace(&mut told.peers, peers) != told.peers);
        let way = match path {
            Some(peer) => (self.link.used_way(), Some(peer)),
            None => self.state.sought_first().unzip(),
        };
        let found = link.tx_size.map(|found| found.size);
        let way = Way { path: way.0, peer: way.1.map(|address| address.ip()), found, link: link.link_mtu };
        self.way.send_if_modified(|told| std::mem::replace(told, way) != way);
    }

    /// Lets the rest of the machine see that the line came or went.
    fn show_line(&mut self, now: Time) {
        let Some(on) = self.line.news(now, self.link.status().held_by_peer) else { return };
        if self.line.sets_carrier()
            && let Err(error) = self.dataplane.set_carrier(on)
        {
            warn!("the interface's carrier stays as it was: {}", in_words(&error));
        }
        self.state.carrier_set = Some(now);
        self.wanted.send_if_modified(|told| std::mem::replace(&mut told.on, on) != on);
        let path = self.link.status().path.map(|path| path.peer);
        self.line.tell(now, on, path.or(self.state.sought_first().map(|(_, address)| address)));
    }

    /// Gives the engine the addresses whose datagrams enter no link.
    fn admit(&mut self, now: Time) {
        let admitted = self.seen.borrow().admitted.clone();
        // Without anybody who looks at the routes there is nothing to wait for.
        let anything = self.seen.has_changed().is_err();
        let ready = |addresses: &[SocketAddr]| anything || addresses.iter().all(|a| admitted.contains(&a.ip()));
        let (ready, waiting) =
            std::mem::take(&mut self.state.waiting).into_iter().partition(|(_, addresses)| ready(addresses));
        self.state.waiting = waiting;
        for (asker, addresses) in ready {
            self.link.handle_addresses(now, asker, &addresses);
        }
    }

    /// Hands on the sizes that this machine sets: those of datagrams to the engine, the interface's to the reconciler.
    fn take_limits(&mut self, now: Time) {
        let Limits { ceiling, given, mtu } = *self.limits.borrow_and_update();
        if let Some(ceiling) = ceiling {
            self.link.handle_ceiling(now, ceiling);
        }
        self.link.handle_given_mtu(now, given);
        self.wanted.send_if_modified(|told| std::mem::replace(&mut told.mtu, mtu) != mtu);
    }

    /// Follows what the kernel shows: routes, interfaces, addresses and the carrier of the link's own.
    fn look(&mut self, now: Time) {
        let seen = self.seen.borrow_and_update().clone();
        self.admit(now);
        if std::mem::replace(&mut self.state.changes, seen.changes) != seen.changes {
            for (id, socket) in self.ports.sync(&seen.links) {
                self.take_socket(now, id, socket);
            }
        }
        if std::mem::replace(&mut self.state.reroutes, seen.reroutes) != seen.reroutes {
            debug!("the routes to the peer have changed");
            for id in self.ports.untied() {
                self.link.handle_route_change(now, id);
            }
        }
        if let Some(interface) = &seen.interface {
            self.link.handle_interface(now, interface.up);
        }
        self.keep_carrier(now, &seen);
    }

    /// Sets the carrier again where another program has changed it.
    fn keep_carrier(&mut self, now: Time, seen: &Seen) {
        let differs = |link: &LinkState| link.up && link.carrier != self.line.is_on();
        if !self.line.sets_carrier() || !seen.interface.as_ref().is_some_and(differs) {
            return;
        }
        let on = self.line.is_on();
        if let Err(error) = self.dataplane.set_carrier(on) {
            return debug!("the interface's carrier stays as it is: {error}");
        }
        // What was seen may be older than what was set last.
        if self.state.carrier_set.replace(now).is_none_or(|last| now.since(last) > CARRIER_LAG) {
            warn!("restored the carrier of {}, which another program had changed", self.identity.interface);
        }
    }

    /// Uses a socket that took the place of the one with its number, or came where there was none.
    fn take_socket(&mut self, now: Time, id: SocketId, socket: UdpSocket) {
        match self.dataplane.add_socket(id, socket) {
            Ok(()) => {
                self.tell_ports();
                if self.identity.paths.is_empty() {
                    self.link.handle_socket(now, id);
                }
                self.link.handle_route_change(now, id);
            }
            Err(error) => warn!("staying with the UDP port there is: {error}"),
        }
    }

    /// The UDP ports that rules of routing may have to go by.
    fn tell_ports(&self) {
        let ports = self.dataplane.local_ports();
        self.wanted.send_if_modified(|told| std::mem::replace(&mut told.ports, ports) != told.ports);
    }

    /// Counts what this end drops, and says when it is too much.
    fn count(&mut self, now: Time, counters: Option<InterfaceCounters>) {
        // Another interface may have the index of one that was moved away.
        let counters = counters.filter(|_| self.seen.borrow().interface.is_some());
        let written = self.dataplane.counters().rx_packets;
        let reading = Reading::of(counters, &self.link.levels().drops, written);
        let lines = self.state.losses.take(now, reading, &self.state.problems);
        lines.iter().for_each(super::story::Line::log);
    }

    /// Whether an interface that is administratively down keeps packets from passing.
    fn note_interface(&self, now: Time) {
        let (link, problems) = (self.link.status(), &self.state.problems);
        match (link.state, link.peer_state) {
            (State::AdminDown, _) => problems.set(Code::InterfaceDown, own_down(&self.identity.interface), now),
            (_, Some(State::AdminDown)) => problems.set(Code::InterfaceDown, PEER_DOWN, now),
            _ => problems.clear(Code::InterfaceDown),
        }
    }

    /// Whether another machine with the same key, this end's or the peer's, takes the link.
    fn note_same_key(&self, now: Time) {
        match self.link.status().same_key {
            Some(known) => self.state.problems.set(Code::SameKeyTwice, same_key(&known), now),
            None => self.state.problems.clear(Code::SameKeyTwice),
        }
    }

    /// Whether a route leads the link's own datagrams into a link.
    fn note_loop(&self, now: Time) {
        let covered = self.seen.borrow().covered.first_key_value().map(|(peer, cover)| cover.in_words(*peer));
        match covered.or_else(|| self.state.drop_log.loop_at(now)) {
            Some(text) => self.state.problems.set(Code::RouteCoversPeer, text, now),
            None => self.state.problems.clear(Code::RouteCoversPeer),
        }
    }

    fn send(&mut self, now: Time, transmit: Transmit) {
        match self.state.asking.filter(|_| self.state.ending.is_none()) {
            Some(since) => self.hold(now.since(since), transmit),
            None => self.send_at_once(now, transmit),
        }
    }

    /// Sends a datagram a little later. A machine sends one ICMP error a second to another (Linux, `icmp_ratelimit`), and while the link is
    /// down the engine sends once a second too: each error would answer the engine's datagram, and none the question.
    fn hold(&self, asking: Duration, transmit: Transmit) {
        let step = (self.link.status().detection / 10).min(HOLD);
        let wait = step * (1 + u32::try_from(asking.as_secs()).unwrap_or(0));
        let back = self.asked.clone();
        tokio::spawn(async move {
            sleep(wait).await;
            // The driver may have ended meanwhile.
            _ = back.send(Asked::Held(transmit)).await;
        });
    }

    fn send_at_once(&mut self, now: Time, Transmit { path, datagram }: Transmit) {
        let mut sent = self.dataplane.send(path, &datagram);
        if path.local.is_some() && sent.as_ref().is_err_and(udp::unpins) {
            self.link.handle_send_failure(now, path);
            // The same bytes once more, from the address the routing table gives.
            sent = self.dataplane.send(Path { local: None, ..path }, &datagram);
        }
        match sent {
            Ok(()) => {}
            Err(error) if udp::is_too_big(&error) => {
                let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
                self.link.handle_too_big(now, path, Some(length));
            }
            // A full buffer, or a datagram for a socket that has gone meanwhile.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound) => {
                debug!("a datagram to {} was not sent: {error}", path.peer);
            }
            Err(error) => {
                let way = self.ports.way_by(path.socket);
                if let Some(line) = self.state.story.cannot_send(now, path.peer, way, &error) {
                    line.log();
                }
            }
        }
    }

    /// Tells people of an event, and does what follows from it.
    fn hear(&mut self, now: Time, event: Event) {
        match &event {
            // Made for nobody if nobody reads them, and there may be many.
            Event::Cold { .. } if !tracing::enabled!(tracing::Level::DEBUG) => return,
            Event::NoAnswer { addresses, challenged: false, .. } if self.state.story.wants_reasons(now) => {
                self.ask_why(now, addresses, event.clone());
            }
            _ => self.tell(now, &event),
        }
        self.state.look_again |=
            matches!(event, Event::Quiet | Event::NoAnswer { .. } | Event::State { state: State::Down, .. });
        match event {
            Event::State { state, cause } => {
                self.line.hear(now, state, cause);
                self.link.handle_hold(self.line.hold(now));
            }
            Event::WantSocket if self.identity.paths.is_empty() => self.open_port(now),
            Event::WantSocket => (0..self.identity.paths.len()).for_each(|way| self.reopen(now, way)),
            Event::SilentWay { way } => self.reopen(now, way),
            Event::UsesSocket(id) => self.use_port(id),
            _ => {}
        }
    }

    fn tell(&mut self, now: Time, event: &Event) {
        if let Some(line) = self.state.story.tell(now, event, &self.link.status()) {
            line.log();
        }
    }

    /// Asks by ICMP why nobody answers at these addresses; what comes of the attempt is told then.
    fn ask_why(&mut self, now: Time, addresses: &[SocketAddr], event: Event) {
        let by_way = |(way, known): (&usize, &Vec<SocketAddr>)| {
            let peers = known.iter().copied().filter(|peer| addresses.contains(peer)).collect();
            self.ports.question(*way, peers)
        };
        let questions = match self.identity.paths.is_empty() {
            true => vec![self.ports.question(0, addresses.to_vec())],
            false => self.state.sought.iter().map(by_way).collect(),
        };
        self.state.asking = Some(now);
        let tell = self.asked.clone();
        tokio::spawn(async move {
            // The driver may have ended meanwhile.
            _ = tell.send(Asked::Why(event, unreachable::ask(questions).await)).await;
        });
    }

    fn open_port(&mut self, now: Time) {
        let socket = match self.ports.open_another() {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => return warn!("staying with the UDP port there is: {error}"),
        };
        let used = self.link.status().path.map(|path| path.socket);
        let (id, evicted) = self.ports.next(used, &socket);
        if let Some(evicted) = evicted {
            self.dataplane.remove_socket(evicted);
        }
        match self.dataplane.add_socket(id, socket) {
            Ok(()) => self.link.handle_socket(now, id),
            Err(error) => warn!("staying with the UDP port there is: {}", in_words(&error)),
        }
        self.tell_ports();
    }

    /// Opens a path's socket anew, unless another path lives by it.
    fn reopen(&mut self, now: Time, way: usize) {
        let ways = self.link.ways();
        let mut sharers = self.ports.ways_by(self.ports.socket_of(way));
        if sharers.any(|way| ways.get(way).is_some_and(|way| way.up)) {
            return;
        }
        drop(sharers);
        if let Some((id, socket)) = self.ports.reopen(now, way)
            && let Err(error) = self.dataplane.add_socket(id, socket)
        {
            warn!("staying with the UDP port there is: {}", in_words(&error));
        }
        self.tell_ports();
    }

    /// The line goes over this socket, and so will the engine's next cold open: the others close.
    fn use_port(&mut self, id: SocketId) {
        for needless in self.ports.take_needless(id) {
            self.dataplane.remove_socket(needless);
        }
        self.tell_ports();
    }

    fn status(&mut self, now: Time) -> String {
        let (link, levels, ways) = (self.link.status(), self.link.levels(), self.link.ways());
        let (damped_until, problem) = (self.line.damped_until(now), self.state.problems.worst());
        let [state, tx, rx, damped, held, trouble] = &mut self.state.wall_clocks;
        let paths = &mut self.state.path_clocks;
        let show = |clock: &mut WallClock, moment| clock.show(moment, now, SystemTime::now());
        let since = Since {
            state: show(state, link.since),
            sizes: [(tx, link.tx_size), (rx, link.rx_size)].map(|(clock, found)| show(clock, found?.since)),
            paths: paths.iter_mut().zip(&ways).map(|(clock, way)| show(clock, way.since)).collect(),
            damped: damped_until.and_then(|until| show(damped, until)),
            held_by_peer: link.held_by_peer.and_then(|until| show(held, until)),
            problem: problem.as_ref().and_then(|problem| show(trouble, problem.since)),
        };
        let moment = Moment {
            now,
            link,
            sought: self.state.sought_first().map(|(_, address)| address),
            ways: &ways,
            ceiling: self.limits.borrow().ceiling,
            counters: self.dataplane.counters(),
            interface: self.state.losses.interface(),
            dropped: self.state.losses.ratios(),
            drops: &levels.drops,
            offloads: self.dataplane.offloads(),
            carrier: self.line.status(now),
            problem,
        };
        moment.show(&self.identity, since).to_json()
    }
}

//! Any number of ends at addresses of their own, two machines with one key among them, on a network
//! without faults but those a test makes. A world (`world.rs`) has exactly two ends.

use super::{SeededEntropy, end::EndSetup};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tieline::{
    keys::{PublicKey, SecretKey},
    protocol::{
        Event, HEADER, Input, Keys, Link, Output, Path, Received, Receiver, Sender, Small, SocketId, TAG, Time,
        link::Status,
    },
};

/// A machine with a link on it.
pub struct Machine {
    pub address: SocketAddr,
    /// How long it had been up when the crowd began, in nanoseconds.
    boot: u64,
    link: Link,
    sender: Sender,
    receiver: Receiver,
    /// What it said, with the crowd's time.
    pub events: Vec<(u64, Event)>,
    pub delivered: u64,
}

impl Machine {
    fn time(&self, now: u64) -> Time {
        Time(self.boot + now)
    }

    pub fn status(&self) -> Status {
        self.link.status()
    }

    /// How often it said something like this.
    pub fn said(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, event)| what(event)).count()
    }
}

/// See the module.
#[derive(Default)]
pub struct Crowd {
    pub now: u64,
    /// A machine that is off is `None`.
    pub machines: Vec<Option<Machine>>,
    flights: BTreeMap<(u64, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    order: u64,
    /// How long a datagram that leaves now takes from this address, in nanoseconds.
    pub delays: BTreeMap<SocketAddr, u64>,
}

/// What a datagram takes where nothing else is said.
const DELAY: u64 = 10_000_000;

impl Crowd {
    /// Starts a machine with these keys and this clock at an address, which is told where the peer
    /// is. Gives its number.
    pub fn start(&mut self, setup: &EndSetup, peer: PublicKey, address: &str, known: Option<SocketAddr>) -> usize {
        let number = self.machines.len();
        self.machines.push(None);
        self.restart(number, setup, peer, address.parse().expect("an address"), known);
        number
    }

    /// The same in the place of one that was there.
    pub fn restart(
        &mut self,
        number: usize,
        setup: &EndSetup,
        peer: PublicKey,
        address: SocketAddr,
        known: Option<SocketAddr>,
    ) {
        self.order += 1;
        let secret = SecretKey::from_bytes(setup.secret);
        let keys = Keys { own: &secret, peers: &[peer], preshared: &[] };
        let (now, entropy) = (Time(setup.boot + self.now), Box::new(SeededEntropy::new(self.order)));
        let (link, sender, receiver) = Link::new(setup.params.clone(), keys, entropy, now).expect("keys that fit");
        let mut machine =
            Machine { address, boot: setup.boot, link, sender, receiver, events: Vec::new(), delivered: 0 };
        if let Some(known) = known {
            machine.link.handle_addresses(now, 0, &[known]);
        }
        machine.link.handle_timeout(now);
        self.machines[number] = Some(machine);
        self.carry_out(number);
    }

    pub fn get(&self, number: usize) -> &Machine {
        self.machines[number].as_ref().expect("a machine that runs")
    }

    /// A machine is at another address from now on.
    pub fn moves(&mut self, number: usize, address: SocketAddr) {
        self.machines[number].as_mut().expect("a machine that runs").address = address;
    }

    /// How many datagrams from this address are on their way.
    pub fn on_the_way(&self, address: SocketAddr) -> usize {
        self.flights.values().filter(|(from, ..)| *from == address).count()
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time.as_nanos() as u64;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until `done`; false at the limit.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Crowd) -> bool) -> bool {
        let end = self.now + limit.as_nanos() as u64;
        while !done(self) {
            if !self.step(end) {
                self.now = end;
                return done(self);
            }
        }
        true
    }

    fn step(&mut self, end: u64) -> bool {
        let running = self.machines.iter().enumerate().filter_map(|(n, machine)| Some((n, machine.as_ref()?)));
        let due = |(n, m): (usize, &Machine)| Some((m.link.poll_timeout()?.0.saturating_sub(m.boot), n));
        let timer = running.filter_map(due).min();
        let flight = self.flights.first_key_value().map(|(key, _)| *key);
        match (timer, flight) {
            (Some((at, n)), next) if at <= end && next.is_none_or(|(t, _)| at <= t) => {
                self.now = self.now.max(at);
                if let Some(machine) = &mut self.machines[n] {
                    machine.link.handle_timeout(Time(machine.boot + self.now));
                }
                self.carry_out(n);
            }
            (_, Some(key)) if key.0 <= end => {
                self.now = self.now.max(key.0);
                if let Some((from, to, bytes)) = self.flights.remove(&key) {
                    self.arrive(from, to, bytes);
                }
            }
            _ => return false,
        }
        true
    }

    fn carry_out(&mut self, number: usize) {
        let Some(machine) = &mut self.machines[number] else { return };
        let from = machine.address;
        let mut sends = Vec::new();
        while let Some(output) = machine.link.poll_output() {
            match output {
                Output::Ingress(update) => machine.receiver.apply(update),
                Output::Egress(update) => {
                    machine.sender.apply(update);
                    machine.sender.take_keepalive();
                }
                Output::Send(transmit) => sends.push((transmit.path.peer, transmit.datagram)),
                Output::Event(event) => machine.events.push((self.now, event)),
            }
        }
        let delay = self.delays.get(&from).copied().unwrap_or(DELAY);
        for (to, bytes) in sends {
            self.order += 1;
            self.flights.insert((self.now + delay, self.order), (from, to, bytes));
        }
    }

    fn arrive(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        let at = |machine: &Option<Machine>| machine.as_ref().is_some_and(|machine| machine.address == to);
        let Some(number) = self.machines.iter().position(at) else { return };
        let Some(machine) = &mut self.machines[number] else { return };
        let now = machine.time(self.now);
        let path = Path { socket: SocketId(0), local: Some(to.ip()), peer: from };
        let input = match machine.receiver.receive(now, path, &mut bytes) {
            Received::Cold => Some(Input::Cold { path, datagram: Small::new(&bytes) }),
            Received::Control { session, counter } => {
                let message = Small::new(&bytes[HEADER..bytes.len() - TAG]);
                Some(Input::Control { path, session, counter, message })
            }
            Received::Frame { .. } => {
                machine.delivered += 1;
                None
            }
            Received::Piece { .. } | Received::Nothing => None,
        };
        if let Some(input) = input {
            machine.link.handle_input(now, input);
        }
        while let Some(notice) = machine.receiver.poll_notice() {
            machine.link.handle_input(now, Input::Notice(notice));
        }
        self.carry_out(number);
    }
}

//! One end: its keys, its place in the network, and its process while that runs.

use super::{
    entropy::{Draws, SeededEntropy},
    watch::ProcessWatch,
};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tieline::{
    control::OsEntropy,
    keys::{PresharedKey, PublicKey, SecretKey},
    packet::pieces::{Bounds, Pieces},
    protocol::{
        Event, Keys, Link, Params, Receiver, Sender, SocketId, Time, constants::PIECE_TIME, crypto::Entropy,
        link::Status,
    },
};

/// How one end is set up.
#[derive(Clone, Debug)]
pub struct EndSetup {
    /// Its secret key.
    pub secret: [u8; 32],
    /// Its preshared keys, as its config lists them.
    pub psks: Vec<[u8; 32]>,
    pub params: Params,
    /// Whether the peer's address is configured here.
    pub knows_peer: bool,
    /// How long this machine has been up when the world begins, in nanoseconds.
    pub boot: u64,
    /// Whether it draws from the system, as real links do: a world with one of these does not repeat.
    pub real_entropy: bool,
    /// How late this end's driver may be for its timers.
    pub lateness: Duration,
}

impl EndSetup {
    pub fn new(secret: u8) -> EndSetup {
        EndSetup {
            secret: [secret; 32],
            psks: Vec::new(),
            params: Params::default(),
            knows_peer: true,
            boot: 77_000_000_000 * u64::from(secret),
            real_entropy: false,
            lateness: Duration::ZERO,
        }
    }

    pub fn public(&self) -> PublicKey {
        SecretKey::from_bytes(self.secret).public().expect("a public key")
    }
}

/// A running process of an end.
pub struct Process {
    pub link: Link,
    pub sender: Sender,
    pub receiver: Receiver,
    /// What came of cut frames.
    pub pieces: Pieces,
    pub draws: Arc<Draws>,
    pub watch: ProcessWatch,
}

/// See the module.
pub struct End {
    pub setup: EndSetup,
    /// The peer's public keys, as this end's config lists them.
    pub peers: Vec<PublicKey>,
    pub process: Option<Process>,
    /// Whether that is saying goodbye.
    pub closing: bool,
    /// Counts processes: the one running is the last.
    pub generation: u64,
    /// Whether the operator has its interface up; each process makes a new one, which is.
    pub interface_up: bool,
    /// The machine's own address.
    pub local: IpAddr,
    /// Each socket's address as the network shows it.
    pub sockets: BTreeMap<SocketId, SocketAddr>,
    /// The socket the line uses.
    pub used: SocketId,
    /// Where the peer is, as config or the resolver say.
    pub addresses: Vec<SocketAddr>,
    /// When its engine wants to be woken.
    pub timer: Option<Time>,
    /// When it will be, by the world's clock.
    pub wakes: Option<u64>,
    /// Until when the machine sleeps, by the world's clock.
    pub asleep_until: u64,
    /// Everything its processes said, with the time in the world.
    pub events: Vec<(u64, Event)>,
    /// Every datagram its present process got, by its fingerprint, and from where.
    pub arrived: HashSet<(u64, SocketAddr)>,
    /// How many datagrams had been sent when that started.
    pub born: usize,
    /// Frames that wait while the sender is held.
    pub held: VecDeque<Vec<u8>>,
    /// User frames delivered to it.
    pub delivered: u64,
    /// User frames it sealed, and how many of them in pieces.
    pub sealed: u64,
    pub cut: u64,
}

impl End {
    pub fn new(setup: EndSetup, peer: PublicKey, local: IpAddr) -> End {
        End {
            setup,
            peers: vec![peer],
            process: None,
            closing: false,
            generation: 0,
            interface_up: true,
            local,
            sockets: BTreeMap::new(),
            used: SocketId(0),
            addresses: Vec::new(),
            timer: None,
            wakes: None,
            asleep_until: 0,
            events: Vec::new(),
            arrived: HashSet::new(),
            born: 0,
            held: VecDeque::new(),
            delivered: 0,
            sealed: 0,
            cut: 0,
        }
    }

    /// The sockets that a process begins with: those of its ways, or one.
    pub fn own_sockets(&self) -> Vec<SocketId> {
        match &self.setup.params.ways[..] {
            [] => vec![SocketId(0)],
            ways => ways.iter().map(|way| way.socket).collect(),
        }
    }

    /// This end's `CLOCK_BOOTTIME` when the world's clock says `now`.
    pub fn time(&self, now: u64) -> Time {
        Time(self.setup.boot + now)
    }

    /// The world's time at this end's `time`. A time before the world began counts as its beginning.
    pub fn world_time(&self, time: Time) -> u64 {
        time.0.saturating_sub(self.setup.boot)
    }

    /// Starts a process; the caller carries out what it says.
    pub fn start(&mut self, now: u64, seed: u64) {
        self.generation += 1;
        self.interface_up = true;
        self.arrived.clear();
        let entropy = SeededEntropy::new(seed ^ self.generation.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let draws = entropy.draws();
        let entropy: Box<dyn Entropy> = if self.setup.real_entropy { Box::new(OsEntropy) } else { Box::new(entropy) };
        let secret = SecretKey::from_bytes(self.setup.secret);
        let preshared = self.preshared();
        let keys = Keys { own: &secret, peers: &self.peers, preshared: &preshared };
        let (link, sender, receiver) =
            Link::new(self.setup.params.clone(), keys, entropy, self.time(now)).expect("keys that fit");
        let watch = ProcessWatch::new();
        let bounds = Bounds { pieces: 256, bytes: 100_000, time: PIECE_TIME.as_nanos() as u64, frame: 9_216 };
        self.process = Some(Process { link, sender, receiver, pieces: Pieces::new(bounds), draws, watch });
    }

    fn preshared(&self) -> Vec<PresharedKey> {
        self.setup.psks.iter().map(|psk| PresharedKey::from_bytes(*psk).expect("a preshared key")).collect()
    }

    /// The running process reads its config again.
    pub fn reload(&mut self, now: u64) {
        let (secret, preshared, time) = (SecretKey::from_bytes(self.setup.secret), self.preshared(), self.time(now));
        let peers = self.peers.clone();
        let keys = Keys { own: &secret, peers: &peers, preshared: &preshared };
        self.process().link.handle_keys(time, keys).expect("keys that fit");
    }

    pub fn running(&self) -> bool {
        self.process.is_some()
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a running process")
    }

    pub fn status(&self) -> Option<Status> {
        self.process.as_ref().map(|process| process.link.status())
    }

    /// The sum of its drop counters.
    pub fn drops(&self) -> u64 {
        let Some(process) = &self.process else { return 0 };
        let levels = process.link.levels();
        let d = &levels.drops;
        [&d.replayed, &d.unauthentic, &d.malformed, &d.no_session, &d.too_big, &d.congested]
            .iter()
            .map(|c| c.get())
            .sum()
    }

    /// How often its processes said something like this.
    pub fn said(&self, what: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|(_, event)| what(event)).count()
    }
}

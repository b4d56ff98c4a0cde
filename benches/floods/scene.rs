//! A link between two sites, a transfer through it, and the flood beside it.

use crate::common::lab::{End, Lab, PATIENCE, PORT};
use crate::common::transfer::{self, Load, Meter};
use crate::common::udp::RawUdp;
use crate::flood::gauge::{Reading, TELLING};
use crate::flood::junk;
use crate::flood::opener::{Opened, Opener};
use crate::flood::outside::{Flow, GATE, Outside};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tieline::protocol::wire;
use tieline::sys::priority::set_nice;
use tieline::sys::udp::{ReceiveBatch, UdpSocket};
use tieline::sys::wake::wait_readable;

/// Datagrams of the link's beginning: a Knock and an Init are among them.
const BEGINNING: usize = 20;
/// Nobody listens there.
const CLOSED: u16 = 9;
/// What comes there is taken and forgotten.
const OPEN: u16 = 7_999;
/// Datagrams taken in one call, as the link's own loop takes them, and room for each.
const ROOMS: usize = 16;
const ROOM: usize = 1 << 16;
/// How often a loop without work looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// Reports are as frequent as can be, so that a lost one shows.
const INTERVAL: &str = "[liveness]\ninterval = \"100ms\"\n";
/// From the start of flood and transfer until both have found their rate.
const WARM_UP: Duration = Duration::from_millis(700);
/// Knocks a second by one who opens what is answered.
const OPENS: u64 = 20_000;

/// What comes in beside the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nothing,
    /// Plain UDP to a port where nobody listens: the machine's own price.
    Closed,
    ClosedLarge,
    /// To a port where a loop takes it and forgets it: what it costs to be handed anything at all.
    Taken,
    Garbage,
    EachType,
    OldKnock,
    FreshKnock,
    Init,
    Data,
    DataByPeer,
    DataLarge,
    Control,
    /// Opens by one who has the peer's key; half of his Noise messages are junk.
    Opens,
}

impl Kind {
    pub const ALL: [Kind; 14] = [
        Kind::Nothing,
        Kind::Closed,
        Kind::ClosedLarge,
        Kind::Taken,
        Kind::Garbage,
        Kind::EachType,
        Kind::OldKnock,
        Kind::FreshKnock,
        Kind::Init,
        Kind::Data,
        Kind::DataByPeer,
        Kind::DataLarge,
        Kind::Control,
        Kind::Opens,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Nothing => "nothing",
            Kind::Closed => "closed",
            Kind::ClosedLarge => "closed-large",
            Kind::Taken => "taken",
            Kind::Garbage => "garbage",
            Kind::EachType => "each-type",
            Kind::OldKnock => "old-knock",
            Kind::FreshKnock => "fresh-knock",
            Kind::Init => "init",
            Kind::Data => "data",
            Kind::DataByPeer => "data-by-peer",
            Kind::DataLarge => "data-large",
            Kind::Control => "control",
            Kind::Opens => "opens",
        }
    }

    /// What its throughput is compared with.
    pub fn price(self) -> Kind {
        match self {
            Kind::ClosedLarge | Kind::DataLarge => Kind::ClosedLarge,
            Kind::Opens => Kind::Nothing,
            _ => Kind::Closed,
        }
    }
}

/// What one measurement saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub time: Duration,
    /// Bytes through the link.
    pub bytes: u64,
    pub sent: u64,
    pub left: [Reading; 2],
    pub right: [Reading; 2],
    /// Control messages that came, and that did not: at the left end, at the right.
    pub control: [(u64, u64); 2],
    pub opened: Opened,
}

/// Where the flood comes from, and what was recorded of the link's beginning.
pub struct Scene {
    outside: Outside,
    /// Before either end is up.
    recorded: std::sync::OnceLock<Vec<Vec<u8>>>,
}

impl Scene {
    pub fn build(lab: &mut Lab) -> Self {
        for site in [&mut lab.left, &mut lab.right] {
            site.arguments = TELLING.to_vec();
            site.local = INTERVAL.to_owned();
        }
        // So the left end is the one that knocks.
        lab.right.endpoint = None;
        Scene { outside: Outside::of(lab, PORT), recorded: std::sync::OnceLock::new() }
    }

    /// Starts both ends, and records what passes.
    pub fn up<'a>(&self, lab: &'a Lab) -> [End<'a>; 2] {
        let recorder = RawUdp::at(&lab.right);
        let ends = lab.up();
        self.recorded.set(recorder.record(PORT, BEGINNING)).unwrap();
        // What was recorded is to be old.
        thread::sleep(Duration::from_secs(11));
        ends.into()
    }

    /// Starts transfer and flood, and looks at both ends twice.
    pub fn measure(
        &self,
        lab: &Lab,
        [left, right]: &[End<'_>; 2],
        kind: Kind,
        rate: u64,
        streams: usize,
        time: Duration,
    ) -> Seen {
        left.wait_for_state("up");
        right.wait_for_state("up");
        let (datagrams, sources, to) = self.flood(lab, kind);
        let per_second = rate / sources.len().max(1) as u64;
        let flows: Vec<_> = sources.iter().map(|&from| Flow { from, to, datagrams: &datagrams, per_second }).collect();
        let (meter, stop, sent) = (Meter::default(), AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            if kind == Kind::Taken {
                scope.spawn(|| lab.right.network.run(|| take(to, &stop)).unwrap());
            }
            let opening = (kind == Kind::Opens).then(|| scope.spawn(|| self.opens(lab, &stop)));
            scope.spawn(|| self.outside.flood(&flows, &stop, &sent));
            for (outgoing, incoming) in (0..streams).map(|_| connect(lab)) {
                let (load, meter) = (Load::Timed(Duration::MAX), &meter);
                scope.spawn(move || transfer::send(&outgoing, load, meter));
                scope.spawn(move || transfer::receive(&incoming, load, meter));
            }
            thread::sleep(WARM_UP);
            let read = || [Reading::of(left, left.site.name), Reading::of(right, GATE)];
            let [left_before, right_before] = read();
            let (bytes, count, started) = (meter.received.load(Relaxed), sent.load(Relaxed), Instant::now());
            thread::sleep(time);
            let took = started.elapsed();
            let (bytes, count) = (meter.received.load(Relaxed) - bytes, sent.load(Relaxed) - count);
            let [left_after, right_after] = read();
            stop.store(true, Relaxed);
            meter.stop.store(true, Relaxed);
            let control = [
                left_after.control_since(&left_before, left.site),
                right_after.control_since(&right_before, right.site),
            ];
            Seen {
                time: took,
                bytes,
                sent: count,
                left: [left_before, left_after],
                right: [right_before, right_after],
                control,
                opened: opening.map(|opening| opening.join().unwrap()).unwrap_or_default(),
            }
        })
    }

    /// The datagrams, the addresses they claim to come from, and where they go.
    fn flood(&self, lab: &Lab, kind: Kind) -> (Vec<Vec<u8>>, Vec<SocketAddr>, SocketAddr) {
        let Outside { stranger, peer, target, .. } = self.outside;
        let recorded = |kind| junk::recorded(self.recorded.get().unwrap(), kind)[..1].to_vec();
        // Of the session there is: some datagram of it comes every few milliseconds.
        let transport = |kind, size| {
            let index = RawUdp::at(&lab.right).record(PORT, 1).iter().find_map(|payload| junk::index(payload));
            junk::transport(kind, index.expect("a datagram of the session"), size)
        };
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let keys = junk::open_key(&lab.left.key, &lab.right.key.public().unwrap());
        let [closed, open] = [CLOSED, OPEN].map(|port| SocketAddr::new(target.ip(), port));
        match kind {
            Kind::Nothing | Kind::Opens => (Vec::new(), Vec::new(), target),
            Kind::Closed => (junk::garbage(junk::SMALL), vec![stranger], closed),
            Kind::ClosedLarge => (junk::garbage(junk::LARGE), vec![stranger], closed),
            Kind::Taken => (junk::garbage(junk::SMALL), vec![stranger], open),
            Kind::Garbage => (junk::garbage(junk::SMALL), vec![stranger], target),
            Kind::EachType => (junk::each_type(), vec![stranger], target),
            Kind::OldKnock => (recorded(wire::Kind::Knock), vec![stranger], target),
            Kind::FreshKnock => (vec![junk::knock(&keys, seed)], vec![stranger], target),
            Kind::Init => (recorded(wire::Kind::Init), vec![peer], target),
            Kind::Data => (transport(wire::Kind::Data, junk::EMPTY_TRANSPORT), vec![stranger], target),
            Kind::DataByPeer => (transport(wire::Kind::Data, junk::SMALL), vec![peer], target),
            Kind::DataLarge => (transport(wire::Kind::Data, junk::LARGE), vec![stranger], target),
            Kind::Control => (transport(wire::Kind::Control, junk::SMALL), vec![peer], target),
        }
    }

    fn opens(&self, lab: &Lab, stop: &AtomicBool) -> Opened {
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let (own, peer) = (&lab.left.key, lab.right.key.public().unwrap());
        let Outside { stranger, target, .. } = self.outside;
        let socket = self.outside.socket(stranger, target);
        Opener::new(own, &peer, true).open(&socket, OPENS, seed, stop)
    }
}

/// Takes what comes to `at` as the link's own loop does, and no more.
fn take(at: SocketAddr, stop: &AtomicBool) {
    let socket = UdpSocket::bind(at).unwrap();
    let (mut batch, mut buffer) = (ReceiveBatch::new(ROOMS), vec![0; ROOMS * ROOM]);
    let _ = set_nice(-15);
    while !stop.load(Relaxed) {
        wait_readable([Some(socket.as_fd())], Some(LOOK)).unwrap();
        loop {
            match batch.receive(socket.as_fd(), buffer.chunks_exact_mut(ROOM)).unwrap() {
                0 => break,
                ROOMS => {}
                _ => thread::yield_now(),
            }
        }
    }
}

fn connect(lab: &Lab) -> (TcpStream, TcpStream) {
    let (left, right) = (&lab.left, &lab.right);
    let listener = right.network.run(|| TcpListener::bind((right.inner[0], 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let outgoing = left.network.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
    (outgoing, listener.accept().unwrap().0)
}

//! A bad line on request: a relay in place of the cable, which hands each frame on as a wire would, later, or not, or damaged.
//!
//! It stands in a network of its own, between two veth pairs, and moves whole Ethernet frames (`man 7 packet`), so both ends see
//! each other's addresses. ARP and IPv6 neighbour discovery pass whatever is set: on a long line the next router answers those.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc::PACKET_OUTGOING;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send, setsockopt, socket,
};
use nix::sys::time::TimeSpec;
use tieline::sys::netns::NetNs;

use super::lab::Site;
use super::nic::{disable_offloads, lost};
use super::transfer::SplitMix;

/// How long a thread sleeps at most, and so how long stopping takes.
const NAP: Duration = Duration::from_millis(20);
/// Frames taken before what is due is looked at again.
const BATCH: usize = 64;
/// Frames on their way at most, each direction.
const LENGTH: usize = 20_000;
/// What a slow line keeps waiting at most; the rest it drops.
const BACKLOG: Duration = Duration::from_millis(200);
/// How much later than others a frame comes that is held back.
const HELD_BACK: std::ops::Range<u64> = 10_000_000..60_000_000;
const BUFFER: usize = 32 << 20;
const ETHERNET: usize = 14;

/// What happens to frames in one direction. Shares are of 1; by default it is a perfect wire.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    pub delay: Duration,
    /// At most so much on top, drawn for each frame, so one may overtake another.
    pub jitter: Duration,
    pub loss: f64,
    pub duplicate: f64,
    /// Two words of the payload change places: no internet checksum notices.
    pub corrupt: f64,
    /// Held back by 10 to 60 ms, so that others overtake.
    pub reorder: f64,
    /// Bytes per second; `None` is as fast as it goes.
    pub rate: Option<u64>,
    /// Nothing passes.
    pub cut: bool,
}

/// What happened, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub seen: u64,
    /// By `loss` or `cut`.
    pub lost: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub held_back: u64,
    /// Dropped because too much was waiting.
    pub overflowed: u64,
    pub passed: u64,
}

/// A running relay; it ends when it is dropped. Of two directions the first is always the one from the left.
pub struct Relay {
    lines: [Arc<Mutex<Line>>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Line {
    faults: Faults,
    counts: Counts,
}

impl Relay {
    /// Connects two sites that have no cable yet. What chance does follows from `seed`.
    pub fn between(sites: [&Site; 2], seed: u64) -> Self {
        Self::joining(sites.map(|site| (&site.network, site.name)), seed)
    }

    /// Connects two networks, each by a new interface of this name.
    pub fn joining(ports: [(&NetNs, &str); 2], seed: u64) -> Self {
        let network = NetNs::create().unwrap();
        let [left, right] = ports.map(|(of, name)| Arc::new(plug_in(&network, of, name)));
        let mut relay = Self { lines: Default::default(), stop: Arc::default(), threads: Vec::new() };
        for (n, (from, to)) in [(left.clone(), right.clone()), (right, left)].into_iter().enumerate() {
            let (line, stop) = (relay.lines[n].clone(), relay.stop.clone());
            let dice = SplitMix(seed.wrapping_mul(2).wrapping_add(n as u64));
            let direction = Direction { from, to, line, dice, queue: BinaryHeap::new(), number: 0, busy_until: None };
            relay.threads.push(thread::spawn(move || direction.run(&stop)));
        }
        relay
    }

    /// From now on, for frames that come from now on.
    pub fn set(&self, faults: [Faults; 2]) {
        for (line, faults) in self.lines.iter().zip(faults) {
            line.lock().unwrap().faults = faults;
        }
    }

    pub fn counts(&self) -> [Counts; 2] {
        [0, 1].map(|n| self.lines[n].lock().unwrap().counts)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // Where the scenario has failed already, a second panic would hide why.
            assert!(thread.join().is_ok() || thread::panicking(), "the relay broke down");
        }
    }
}

/// A pair of interfaces, one of this name in one network, the other in the relay's: the socket for that one.
fn plug_in(network: &NetNs, of: &NetNs, name: &str) -> OwnedFd {
    let ours = format!("to-{name}");
    super::lab::netlink(of, async |netlink| {
        netlink.create_veth(name, &ours).await.unwrap();
        netlink.set_netns(netlink.index(&ours).await.unwrap(), network).await.unwrap();
        // Frames as they would be on a wire: none larger than one, and checksums complete.
        disable_offloads(name);
    });
    super::lab::netlink(network, async |netlink| {
        disable_offloads(&ours);
        // It has no business of its own on the wire.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{ours}/disable_ipv6"), "1").unwrap();
        netlink.set_up(netlink.index(&ours).await.unwrap()).await.unwrap();
    });
    network.run(|| open(&ours)).unwrap()
}

fn open(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
    let of_it = getifaddrs().unwrap().filter(|entry| entry.interface_name == interface);
    let address = of_it.filter_map(|entry| entry.address).find_map(|address| address.as_link_addr().copied()).unwrap();
    bind(fd.as_raw_fd(), &address).unwrap();
    // Only the machine's own root gets the larger one.
    if setsockopt(&fd, RcvBufForce, &BUFFER).is_err() {
        setsockopt(&fd, RcvBuf, &BUFFER).unwrap();
    }
    fd
}

/// A frame on its way: when it is due, and its number, so that of two due at once the first goes first.
type Flight = Reverse<(Instant, u64, Box<[u8]>)>;

struct Direction {
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    line: Arc<Mutex<Line>>,
    dice: SplitMix,
    queue: BinaryHeap<Flight>,
    number: u64,
    /// When a slow line has sent what is before it.
    busy_until: Option<Instant>,
}

impl Direction {
    fn run(mut self, stop: &AtomicBool) {
        let mut room = vec![0; 1 << 16];
        while !stop.load(Relaxed) {
            self.wait();
            let missed = u64::from(lost(&*self.from));
            self.line.lock().unwrap().counts.overflowed += missed;
            for _ in 0..BATCH {
                match recvfrom::<LinkAddr>(self.from.as_raw_fd(), &mut room) {
                    Ok((_, Some(from))) if from.pkttype() == PACKET_OUTGOING => {}
                    Ok((length, _)) => self.take(&mut room[..length]),
                    Err(Errno::EAGAIN) => break,
                    // The interface went down and will come up, or not.
                    Err(Errno::ENETDOWN | Errno::EINTR) => {}
                    Err(e) => panic!("relaying: {e}"),
                }
            }
            self.send_what_is_due();
        }
    }

    fn wait(&self) {
        let due = self.queue.peek().map_or(NAP, |Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let mut readable = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut readable, Some(TimeSpec::from_duration(due.min(NAP))), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => panic!("relaying: {e}"),
        }
    }

    fn take(&mut self, frame: &mut [u8]) {
        let now = Instant::now();
        if is_for_neighbours(frame) {
            return self.enqueue(now, frame);
        }
        let line = self.line.clone();
        let Line { faults, counts } = &mut *line.lock().unwrap();
        counts.seen += 1;
        if faults.cut || self.happens(faults.loss) {
            counts.lost += 1;
            return;
        }
        let Some(leaves) = self.leaves(now, frame.len(), faults.rate).filter(|_| self.queue.len() < LENGTH) else {
            counts.overflowed += 1;
            return;
        };
        if self.happens(faults.corrupt) {
            counts.corrupted += u64::from(corrupt(frame, &mut self.dice));
        }
        let mut due = leaves + faults.delay + self.up_to(faults.jitter);
        if self.happens(faults.reorder) {
            counts.held_back += 1;
            due += Duration::from_nanos(HELD_BACK.start + self.draw() % (HELD_BACK.end - HELD_BACK.start));
        }
        if self.happens(faults.duplicate) {
            counts.duplicated += 1;
            let again = due + self.up_to(faults.jitter);
            self.enqueue(again, frame);
        }
        counts.passed += 1;
        self.enqueue(due, frame);
    }

    /// When a line of this rate has sent it; `None` if too much is waiting already.
    fn leaves(&mut self, now: Instant, bytes: usize, rate: Option<u64>) -> Option<Instant> {
        let Some(rate) = rate else { return Some(now) };
        let begins = self.busy_until.map_or(now, |until| until.max(now));
        let leaves = begins + Duration::from_secs_f64(bytes as f64 / rate as f64);
        if begins - now > BACKLOG {
            return None;
        }
        self.busy_until = Some(leaves);
        Some(leaves)
    }

    fn enqueue(&mut self, due: Instant, frame: &[u8]) {
        self.number += 1;
        self.queue.push(Reverse((due, self.number, frame.into())));
    }

    fn send_what_is_due(&mut self) {
        let now = Instant::now();
        while self.queue.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((.., frame))) = self.queue.pop() else { return };
            match send(self.to.as_raw_fd(), &frame, MsgFlags::empty()) {
                Ok(_) => {}
                // No room, or the interface is down: what wires do with frames then.
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENETDOWN | Errno::ENXIO) => {
                    self.line.lock().unwrap().counts.overflowed += 1;
                }
                Err(e) => panic!("relaying: {e}"),
            }
        }
    }

    fn draw(&mut self) -> u64 {
        self.dice.next().unwrap()
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && (self.draw() as f64) < share * u64::MAX as f64
    }

    fn up_to(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.draw() as f64 / u64::MAX as f64)
    }
}

/// ARP and everything that is not IP; of IPv6 what is between neighbours (RFC 4861 §4), types 133 to 137, and what goes to all on
/// a link, `ff02::/16`.
fn is_for_neighbours(frame: &[u8]) -> bool {
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => false,
        Some([0x86, 0xDD]) => {
            let header = frame.get(ETHERNET..ETHERNET + 41);
            header.is_none_or(|ip| ip[24..26] == [0xFF, 0x02] || ip[6] == 58 && (133..=137).contains(&ip[40]))
        }
        _ => true,
    }
}

/// Swaps two words of what follows a UDP header; whether that changed anything.
fn corrupt(frame: &mut [u8], dice: &mut SplitMix) -> bool {
    let header = if frame[12] == 0x08 { usize::from(frame[ETHERNET] & 0x0F) * 4 } else { 40 };
    let start = ETHERNET + header + 8;
    let words = frame.len().saturating_sub(start) / 2;
    if words < 2 {
        return false;
    }
    let [a, b] = [(); 2].map(|()| start + 2 * (dice.next().unwrap() as usize % words));
    let same = frame[a..a + 2] == frame[b..b + 2];
    (0..2).for_each(|n| frame.swap(a + n, b + n));
    !same
}

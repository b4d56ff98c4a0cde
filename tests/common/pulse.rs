//! Small datagrams both ways through a link, all the time, each with a number: how long it was out, in which direction, what was lost and what
//! overtook what is read off their arrivals.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf};

use super::lab::{Lab, PATIENCE, Site};

/// Between one datagram and the next: what is measured is at least this.
pub const BEAT: Duration = Duration::from_millis(5);
const TICK: Duration = Duration::from_millis(100);
/// What has not come after so long will not.
const LATE: Duration = Duration::from_millis(500);

/// A running pulse; it ends when it is dropped. Of two directions the first is the one to the right.
pub struct Pulse {
    directions: [Arc<Direction>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Direction {
    sent: AtomicU64,
    arrivals: Mutex<Vec<(u64, Instant)>>,
}

/// What became of the datagrams of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub sent: u64,
    pub lost: u64,
    /// That came again.
    pub twice: u64,
    /// That came when a later one was there already.
    pub overtaken: u64,
}

impl Pulse {
    /// Between the inner IPv4 addresses of two sites.
    pub fn of(lab: &Lab) -> Self {
        Self::every(lab, BEAT)
    }

    /// The same with so much time between one datagram and the next.
    pub fn every(lab: &Lab, beat: Duration) -> Self {
        let bind = |site: &Site| {
            let socket = site.network.run(|| UdpSocket::bind((site.inner[0], 0))).unwrap().unwrap();
            setsockopt(&socket, RcvBuf, &(4 << 20)).unwrap();
            socket
        };
        let sockets = [bind(&lab.left), bind(&lab.right)];
        sockets[0].connect(sockets[1].local_addr().unwrap()).unwrap();
        sockets[1].connect(sockets[0].local_addr().unwrap()).unwrap();
        let mut pulse = Self { directions: Default::default(), stop: Arc::default(), threads: Vec::new() };
        let [left, right] = sockets.map(Arc::new);
        for (n, (from, to)) in [(left.clone(), right.clone()), (right, left)].into_iter().enumerate() {
            let (stop, direction) = (pulse.stop.clone(), pulse.directions[n].clone());
            pulse.threads.push(thread::spawn(move || {
                while !stop.load(Relaxed) {
                    let number = direction.sent.fetch_add(1, Relaxed);
                    // What cannot be sent is lost, as any other.
                    let _ = from.send(&number.to_be_bytes());
                    thread::sleep(beat);
                }
            }));
            let (stop, direction) = (pulse.stop.clone(), pulse.directions[n].clone());
            to.set_read_timeout(Some(TICK)).unwrap();
            pulse.threads.push(thread::spawn(move || {
                let mut number = [0; 8];
                while !stop.load(Relaxed) {
                    if to.recv(&mut number).is_ok() {
                        direction.arrivals.lock().unwrap().push((u64::from_be_bytes(number), Instant::now()));
                    }
                }
            }));
        }
        pulse.settle();
        pulse
    }

    /// Waits until both directions have been without a gap for half a second.
    pub fn settle(&self) {
        const CALM: Duration = Duration::from_millis(500);
        let begun = Instant::now();
        loop {
            let since = Instant::now();
            thread::sleep(CALM);
            if self.gaps(since).iter().all(|gap| *gap < CALM / 3) {
                return;
            }
            assert!(begun.elapsed() < 2 * PATIENCE, "no steady flow: gaps of {:?}", self.gaps(since));
        }
    }

    /// The longest time without an arrival since then, up to now, in each direction.
    pub fn gaps(&self, since: Instant) -> [Duration; 2] {
        self.directions.each_ref().map(|direction| {
            let arrivals = direction.arrivals.lock().unwrap();
            let later = arrivals.iter().map(|(_, at)| *at).filter(|at| *at >= since);
            let times: Vec<Instant> = [since].into_iter().chain(later).chain([Instant::now()]).collect();
            times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        })
    }

    /// Makes something happen, waits until the flow is steady again, and says how long each direction was out.
    pub fn during(&self, what: &str, event: impl FnOnce()) -> [Duration; 2] {
        let since = Instant::now();
        event();
        thread::sleep(TICK);
        self.settle();
        let gaps = self.gaps(since);
        println!("{what}: out for {:.0} ms to the right, {:.0} ms to the left", ms(gaps[0]), ms(gaps[1]));
        gaps
    }

    /// The numbers of the next datagrams.
    pub fn numbers(&self) -> [u64; 2] {
        self.directions.each_ref().map(|direction| direction.sent.load(Relaxed))
    }

    /// What became of the datagrams with these numbers and after, up to the last of now.
    pub fn account(&self, from: [u64; 2]) -> [Account; 2] {
        let to = self.numbers();
        thread::sleep(LATE);
        [0, 1].map(|n| {
            let arrivals = self.directions[n].arrivals.lock().unwrap();
            let mut account = Account { sent: to[n] - from[n], ..Account::default() };
            let (mut seen, mut last) = (HashSet::new(), 0);
            for number in arrivals.iter().map(|(number, _)| *number).filter(|number| (from[n]..to[n]).contains(number))
            {
                account.twice += u64::from(!seen.insert(number));
                account.overtaken += u64::from(number < last);
                last = last.max(number);
            }
            account.lost = account.sent - seen.len() as u64;
            account
        })
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // Where the scenario has failed already, a second panic would hide why.
            assert!(thread.join().is_ok() || thread::panicking(), "the pulse broke down");
        }
    }
}

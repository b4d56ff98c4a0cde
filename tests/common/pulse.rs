//! Small datagrams both ways through a link, all the time: how long it was out, and in which direction, is read off their gaps.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::lab::{Lab, PATIENCE, Site};

/// Between one datagram and the next: what is measured is at least this.
pub const BEAT: Duration = Duration::from_millis(5);
const TICK: Duration = Duration::from_millis(100);

/// A running pulse; it ends when it is dropped. Of two directions the first is the one to the right.
pub struct Pulse {
    arrivals: [Arc<Mutex<Vec<Instant>>>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pulse {
    /// Between the inner IPv4 addresses of two sites.
    pub fn of(lab: &Lab) -> Self {
        let bind = |site: &Site| site.network.run(|| UdpSocket::bind((site.inner[0], 0))).unwrap().unwrap();
        let sockets = [bind(&lab.left), bind(&lab.right)];
        sockets[0].connect(sockets[1].local_addr().unwrap()).unwrap();
        sockets[1].connect(sockets[0].local_addr().unwrap()).unwrap();
        let mut pulse = Self { arrivals: Default::default(), stop: Arc::default(), threads: Vec::new() };
        let [left, right] = sockets.map(Arc::new);
        for (n, (from, to)) in [(left.clone(), right.clone()), (right, left)].into_iter().enumerate() {
            let stop = pulse.stop.clone();
            pulse.threads.push(thread::spawn(move || {
                while !stop.load(Relaxed) {
                    // What cannot be sent is lost, as any other.
                    let _ = from.send(&[0]);
                    thread::sleep(BEAT);
                }
            }));
            let (stop, arrivals) = (pulse.stop.clone(), pulse.arrivals[n].clone());
            to.set_read_timeout(Some(TICK)).unwrap();
            pulse.threads.push(thread::spawn(move || {
                while !stop.load(Relaxed) {
                    if to.recv(&mut [0; 8]).is_ok() {
                        arrivals.lock().unwrap().push(Instant::now());
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
        self.arrivals.each_ref().map(|arrivals| {
            let arrivals = arrivals.lock().unwrap();
            let later = arrivals.iter().copied().filter(|at| *at >= since);
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

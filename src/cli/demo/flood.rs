//! Small datagrams, as many as the machine takes: how many of them come out of the link.
//!
//! Many a system call, for what is measured is the link and not the calls. No segmentation offload: each datagram is a packet
//! of its own on its way in.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt};

/// Bytes of UDP payload in each datagram.
pub const PAYLOAD: usize = 64;
/// Datagrams a system call at most.
const BATCH: usize = 64;
/// Bytes the receiving socket has room for, where the system allows it: the flood is to find the link's limit, not the socket's.
const BUFFER: usize = 8 << 20;
/// How often the sender looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);
/// After the last datagram was sent: when so long none has come, none is on its way.
const LATE: Duration = Duration::from_millis(200);

/// What became of a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams received.
    pub received: u64,
    /// From the first sent until the last was sent and the last received.
    pub took: Duration,
}

impl Flood {
    /// Sends from one connected socket to another for this time, or until told to stop.
    ///
    /// # Errors
    /// Those of the sockets.
    pub fn run(from: &UdpSocket, to: &UdpSocket, time: Duration, stop: &AtomicBool) -> io::Result<Self> {
        from.set_write_timeout(Some(TICK))?;
        to.set_read_timeout(Some(LATE))?;
        // Force goes beyond the system's limit, and only root outside of any user namespace may.
        setsockopt(to, RcvBufForce, &BUFFER).or_else(|_| setsockopt(to, RcvBuf, &BUFFER))?;
        let started = Instant::now();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(to, &over));
            let sent = send(from, || started.elapsed() < time && !stop.load(Relaxed));
            let ended = Instant::now();
            over.store(true, Relaxed);
            let (received, last) = super::join(receiver)?;
            Ok(Self { sent: sent?, received, took: last.unwrap_or(ended).max(ended) - started })
        })
    }

    /// Datagrams that arrived in a second.
    pub fn delivered_per_s(&self) -> f64 {
        self.received as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// The share that was lost of what was sent, 0 to 1.
    pub fn loss_ratio(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }
}

/// Gives the number of datagrams the kernel took.
fn send(socket: &UdpSocket, go_on: impl Fn() -> bool) -> io::Result<u64> {
    let payload = [0; PAYLOAD];
    let datagrams = [[IoSlice::new(&payload)]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut count = 0;
    while go_on() {
        let flags = MsgFlags::empty();
        count += taken(
            sendmmsg(socket.as_raw_fd(), &mut headers, &datagrams, [None; BATCH], [], flags).map(Iterator::count),
        )?;
    }
    Ok(count)
}

/// Gives the number of datagrams that came, and when the last of them did.
fn receive(socket: &UdpSocket, over: &AtomicBool) -> io::Result<(u64, Option<Instant>)> {
    let mut rooms = [[0; PAYLOAD]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let (mut count, mut last) = (0, None);
    loop {
        let was_over = over.load(Relaxed);
        let mut datagrams = rooms.each_mut().map(|room| [IoSliceMut::new(room)]);
        let flags = MsgFlags::MSG_WAITFORONE;
        let came = taken(recvmmsg(socket.as_raw_fd(), &mut headers, &mut datagrams, flags, None).map(Iterator::count))?;
        if came > 0 {
            count += came;
            last = Some(Instant::now());
        } else if was_over {
            return Ok((count, last));
        }
    }
}

/// How many datagrams a call moved: none if its time was over first.
fn taken(result: nix::Result<usize>) -> io::Result<u64> {
    match result {
        Ok(count) => Ok(count as u64),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets() -> [UdpSocket; 2] {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for n in [0, 1] {
            sockets[n].connect(sockets[1 - n].local_addr().unwrap()).unwrap();
        }
        sockets
    }

    #[test]
    fn what_is_sent_and_what_arrives_is_counted() {
        let [from, to] = sockets();
        // More than a batch, and few enough for any socket's buffer.
        let left = std::cell::Cell::new(2);
        let sent = send(&from, || left.replace(left.get() - 1) > 0).unwrap();
        assert_eq!(sent, 2 * BATCH as u64);
        to.set_read_timeout(Some(LATE)).unwrap();
        let (received, last) = receive(&to, &AtomicBool::new(true)).unwrap();
        assert_eq!((received, last.is_some()), (sent, true));
        assert_eq!(receive(&to, &AtomicBool::new(true)).unwrap(), (0, None));
    }

    #[test]
    fn a_flood_lasts_its_time_and_stops_when_told() {
        let [from, to] = sockets();
        let time = Duration::from_millis(30);
        let flood = Flood::run(&from, &to, time, &AtomicBool::new(false)).unwrap();
        assert!(flood.received > 0 && flood.received <= flood.sent && flood.took >= time, "{flood:?}");
        let flood = Flood::run(&from, &to, Duration::from_secs(3600), &AtomicBool::new(true)).unwrap();
        assert_eq!((flood.sent, flood.received), (0, 0));
    }

    #[test]
    fn rates_are_of_what_arrived() {
        let flood = Flood { sent: 1000, received: 750, took: Duration::from_millis(500) };
        assert_eq!((flood.delivered_per_s(), flood.loss_ratio()), (1500.0, 0.25));
        let nothing = Flood { sent: 0, received: 0, took: Duration::ZERO };
        assert_eq!((nothing.delivered_per_s(), nothing.loss_ratio()), (0.0, 1.0));
    }
}

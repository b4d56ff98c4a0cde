//! What flows while all of it happens: TCP whose every byte is compared, numbered datagrams, pings, and one connection that is
//! never given up. In a calm stretch nothing of it may be lost.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::RcvBuf, sockopt::SndBuf};

use crate::common::flow::datagram;
use crate::common::lab::{Lab, Site};
use crate::common::ping::Pinger;
use crate::common::transfer::SplitMix;

/// Bytes of one TCP transfer.
const TRANSFER: u64 = 8 << 20;
/// A transfer in which nothing moves for so long is broken off, and another begun.
const STALLED: Duration = Duration::from_secs(5);
/// How often those who wait look whether they should stop.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of TCP on their way: no queue is longer than that, so that in calm nothing is lost in one.
const WINDOW: usize = 64 << 10;
/// Between two datagrams of a flow.
const SPACING: Duration = Duration::from_millis(10);
const SIZES: std::ops::RangeInclusive<usize> = 8..=1300;
/// A ping not answered by then counts as lost.
pub const PING_PATIENCE: Duration = Duration::from_secs(1);

/// All of it, counted.
pub struct Traffic {
    stop: AtomicBool,
    /// What must never happen and did.
    wrong: Mutex<Vec<String>>,
    pub tcp_bytes: AtomicU64,
    pub transfers: AtomicU64,
    pub broken_off: AtomicU64,
    /// Lines typed on the connection that stays, and answered.
    pub lines: AtomicU64,
    pub pings: AtomicU64,
    pub unanswered: AtomicU64,
    /// To the left and to the right, IPv4 and IPv6.
    pub flows: [Flow; 4],
}

/// Numbered datagrams one way.
#[derive(Default)]
pub struct Flow {
    /// As many as were handed to the kernel.
    pub sent: AtomicU64,
    refused: AtomicU64,
    pub overtaken: AtomicU64,
    seen: Mutex<Vec<bool>>,
}

/// How things stood at the beginning of a calm stretch.
pub struct Mark {
    sent: [u64; 4],
    refused: u64,
    overtaken: u64,
    unanswered: u64,
    pings: u64,
}

impl Traffic {
    pub fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
            tcp_bytes: AtomicU64::new(0),
            transfers: AtomicU64::new(0),
            broken_off: AtomicU64::new(0),
            lines: AtomicU64::new(0),
            pings: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            flows: Default::default(),
        }
    }

    /// Starts everything; the link must be up.
    pub fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, lab: &'s Lab) {
        for (n, (from, to)) in [(&lab.right, &lab.left), (&lab.left, &lab.right)].into_iter().enumerate() {
            for family in [0, 1] {
                self.start_flow(scope, from, to, to.inner[family], &self.flows[2 * n + family]);
            }
            self.start_transfers(scope, from, to, to.inner[n], n as u64);
            scope.spawn(move || from.network.run(|| self.ping(to.inner[1 - n])).unwrap());
        }
        self.start_session(scope, lab);
    }

    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Panics if anything arrived that should not have.
    pub fn assert_nothing_wrong(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    fn is_wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    pub fn mark(&self) -> Mark {
        Mark {
            sent: self.flows.each_ref().map(|flow| flow.sent.load(Relaxed)),
            refused: self.sum(|flow| &flow.refused),
            overtaken: self.sum(|flow| &flow.overtaken),
            unanswered: self.unanswered.load(Relaxed),
            pings: self.pings.load(Relaxed),
        }
    }

    pub fn sum(&self, of: fn(&Flow) -> &AtomicU64) -> u64 {
        self.flows.iter().map(|flow| of(flow).load(Relaxed)).sum()
    }

    pub fn delivered(&self) -> u64 {
        self.flows.iter().map(|flow| flow.seen.lock().unwrap().iter().filter(|seen| **seen).count() as u64).sum()
    }

    /// Panics unless everything sent since `mark` has arrived or arrives soon, and in order.
    pub fn assert_all_since(&self, mark: &Mark) {
        let until = self.mark();
        let missing = || {
            let of = |n: usize| {
                let seen = self.flows[n].seen.lock().unwrap();
                (mark.sent[n]..until.sent[n])
                    .filter(|number| !seen.get(*number as usize).copied().unwrap_or(false))
                    .count()
            };
            [of(0), of(1), of(2), of(3)]
        };
        let since = Instant::now();
        while missing() != [0; 4] && since.elapsed() < Duration::from_secs(2) {
            thread::sleep(TICK);
        }
        assert_eq!(missing(), [0; 4], "datagrams lost in calm, of {:?} to {:?}", mark.sent, until.sent);
        assert_eq!(until.refused, mark.refused, "the kernel took some datagrams not, in calm");
        assert_eq!(until.overtaken, mark.overtaken, "datagrams overtook others, in calm");
        assert_eq!(until.unanswered, mark.unanswered, "pings lost in calm, of {}", until.pings - mark.pings);
        assert!((0..4).all(|n| until.sent[n] > mark.sent[n]), "nothing was sent in calm");
    }

    fn start_flow<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        from: &'s Site,
        to: &'s Site,
        target: IpAddr,
        flow: &'s Flow,
    ) {
        let receiver = to.network.run(|| UdpSocket::bind((target, 0))).unwrap().unwrap();
        let any = if target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let sender = from.network.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        let target = receiver.local_addr().unwrap();
        receiver.set_read_timeout(Some(TICK)).unwrap();
        scope.spawn(move || {
            while !self.stopped() {
                // It fails where the interface is gone with its process.
                match sender.send_to(&datagram(flow.sent.load(Relaxed), &SIZES), target) {
                    Ok(_) => flow.sent.fetch_add(1, Relaxed),
                    Err(_) => flow.refused.fetch_add(1, Relaxed),
                };
                thread::sleep(SPACING);
            }
        });
        scope.spawn(move || {
            let mut room = vec![0; 1 << 16];
            let mut next = 0;
            while !self.stopped() {
                let Ok(length) = receiver.recv(&mut room) else { continue };
                let number = room.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap();
                if length < 8 || room[..length] != datagram(number, &SIZES) {
                    self.is_wrong(format!("a datagram to {target} came changed: {:02x?} …", &room[..length.min(32)]));
                    continue;
                }
                flow.overtaken.fetch_add(u64::from(number < next), Relaxed);
                next = next.max(number + 1);
                let mut seen = flow.seen.lock().unwrap();
                let place = number as usize;
                if seen.len() <= place {
                    seen.resize(place + 1, false);
                }
                if std::mem::replace(&mut seen[place], true) {
                    self.is_wrong(format!("datagram {number} to {target} came twice"));
                }
            }
        });
    }

    fn ping(&self, target: IpAddr) {
        let mut pinger = Pinger::new(target).unwrap();
        while !self.stopped() {
            let answered = matches!(pinger.ping(PING_PATIENCE), Ok(Some(_)));
            self.pings.fetch_add(1, Relaxed);
            self.unanswered.fetch_add(u64::from(!answered), Relaxed);
            thread::sleep(TICK);
        }
    }

    fn start_transfers<'s>(&'s self, scope: &'s Scope<'s, '_>, from: &'s Site, to: &'s Site, address: IpAddr, id: u64) {
        let listener = to.network.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
        // Connections have it from their listener.
        setsockopt(&listener, RcvBuf, &WINDOW).unwrap();
        listener.set_nonblocking(true).unwrap();
        let target = listener.local_addr().unwrap();
        scope.spawn(move || {
            while !self.stopped() {
                match listener.accept() {
                    Ok((connection, _)) => {
                        connection.set_nonblocking(false).unwrap();
                        // One that is broken off may wait for its time-out beside the next.
                        scope.spawn(move || self.receive(&connection));
                    }
                    Err(_) => thread::sleep(TICK / 10),
                }
            }
        });
        scope.spawn(move || {
            let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(2));
            for number in 1.. {
                if self.stopped() {
                    return;
                }
                let sent = from.network.run(|| connect().and_then(|stream| self.send(&stream, number << 1 | id)));
                match sent.unwrap() {
                    Ok(()) => self.transfers.fetch_add(1, Relaxed),
                    Err(_) => {
                        thread::sleep(TICK);
                        self.broken_off.fetch_add(1, Relaxed)
                    }
                };
            }
        });
    }

    /// First the seed, then what follows from it. Done when the other end says that all of it came.
    fn send(&self, mut stream: &TcpStream, seed: u64) -> io::Result<()> {
        setsockopt(stream, SndBuf, &WINDOW)?;
        let patience = Patience::of(self, stream)?;
        patience.write(&seed.to_le_bytes())?;
        let mut numbers = SplitMix(seed);
        for _ in 0..TRANSFER / BLOCK {
            patience.write(&block(&mut numbers))?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut done = [0];
        patience.until(|| stream.read(&mut done)).and_then(|length| match length {
            1 => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        })
    }

    fn receive(&self, mut stream: &TcpStream) {
        let Ok(patience) = Patience::of(self, stream) else { return };
        let mut seed = [0; 8];
        if patience.read(&mut seed) != Some(8) {
            return;
        }
        let seed = u64::from_le_bytes(seed);
        let mut numbers = SplitMix(seed);
        for n in 0..TRANSFER / BLOCK {
            let mut came = [0; BLOCK as usize];
            let Some(length) = patience.read(&mut came) else { return };
            if came[..length] != block(&mut numbers)[..length] {
                return self
                    .is_wrong(format!("TCP transfer {seed} is not what was sent, between {n} and {n} + 1 blocks"));
            }
            self.tcp_bytes.fetch_add(length as u64, Relaxed);
            if length < BLOCK as usize {
                return;
            }
        }
        if patience.read(&mut [0]) == Some(0) {
            let _ = stream.write_all(&[1]);
        }
    }

    /// As a terminal left open: lines of text, each answered before the next is typed, over whatever happens.
    fn start_session<'s>(&'s self, scope: &'s Scope<'s, '_>, lab: &'s Lab) {
        let listener = lab.left.network.run(|| TcpListener::bind((lab.left.inner[0], 22))).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        let keyboard = lab.right.network.run(|| TcpStream::connect_timeout(&target, super::BOUND)).unwrap().unwrap();
        let shell = listener.accept().unwrap().0;
        for end in [&keyboard, &shell] {
            end.set_nodelay(true).unwrap();
        }
        scope.spawn(move || self.answer_lines(&shell));
        scope.spawn(move || self.type_lines(&keyboard));
    }

    fn answer_lines(&self, mut shell: &TcpStream) {
        shell.set_read_timeout(Some(TICK)).unwrap();
        let mut room = [0; 1024];
        while !self.stopped() {
            match shell.read(&mut room) {
                Ok(0) => return,
                Ok(length) => {
                    if let Err(e) = shell.write_all(&room[..length]) {
                        return self.is_wrong(format!("the connection that stays: {e}"));
                    }
                }
                Err(e) if is_only_late(&e) => {}
                Err(e) => return self.is_wrong(format!("the connection that stays: {e}")),
            }
        }
    }

    fn type_lines(&self, mut keyboard: &TcpStream) {
        keyboard.set_read_timeout(Some(TICK)).unwrap();
        for number in 0_u64.. {
            let line = number.to_be_bytes();
            let mut echo = Vec::new();
            let mut room = [0; 8];
            if let Err(e) = keyboard.write_all(&line) {
                return self.is_wrong(format!("the connection that stays: {e}"));
            }
            while echo.len() < line.len() {
                if self.stopped() {
                    return;
                }
                match keyboard.read(&mut room[echo.len()..]) {
                    Ok(0) => return self.is_wrong("the connection that stays was closed".into()),
                    Ok(length) => echo.extend_from_slice(&room[echo.len()..][..length]),
                    Err(e) if is_only_late(&e) => {}
                    Err(e) => return self.is_wrong(format!("the connection that stays: {e}")),
                }
            }
            if echo != line {
                return self.is_wrong(format!("the connection that stays: {echo:?} for {line:?}"));
            }
            self.lines.fetch_add(1, Relaxed);
            thread::sleep(TICK);
        }
    }
}

const BLOCK: u64 = 16 << 10;

fn block(numbers: &mut SplitMix) -> Vec<u8> {
    numbers.take(BLOCK as usize / 8).flat_map(u64::to_le_bytes).collect()
}

fn is_only_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Reads and writes until nothing moves for [`STALLED`].
struct Patience<'a> {
    traffic: &'a Traffic,
    stream: &'a TcpStream,
}

impl<'a> Patience<'a> {
    fn of(traffic: &'a Traffic, stream: &'a TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        Ok(Self { traffic, stream })
    }

    fn until<T>(&self, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let since = Instant::now();
        loop {
            match attempt() {
                Err(e) if is_only_late(&e) => {}
                result => return result,
            }
            if self.traffic.stopped() || since.elapsed() > STALLED {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let mut stream = self.stream;
        while !bytes.is_empty() {
            let length = self.until(|| stream.write(bytes))?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Fills `room`, or less of it where the stream ends or breaks off; `None` where nothing came before it broke off.
    fn read(&self, room: &mut [u8]) -> Option<usize> {
        let mut stream = self.stream;
        let mut length = 0;
        while length < room.len() {
            match self.until(|| stream.read(&mut room[length..])) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(_) if length == 0 => return None,
                Err(_) => break,
            }
        }
        Some(length)
    }
}

//! Bytes over TCP, counted and hashed at both ends.
//!
//! This file leans on nothing else in the crate: the tests in tests/ measure with it too.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};

/// One write and one read at most.
const BLOCK: usize = 256 * 1024;
/// A transfer in which nothing moves for this long has failed.
const STALLED: Duration = Duration::from_secs(15);
/// How often a waiting end looks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// What to send.
#[derive(Debug, Clone, Copy)]
pub enum Load {
    /// So many bytes, SHA-256 taken at both ends.
    Hashed(u64),
    /// As many bytes as go through in this time, counted at both ends. Not hashed: that would cost a good part of the two
    /// cores the figure is about.
    Timed(Duration),
}

/// What one end saw of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Bytes written or read.
    pub bytes: u64,
    /// SHA-256 of them, of a [`Load::Hashed`].
    pub sha256: Option<[u8; 32]>,
    /// From the call to the end of the stream.
    pub took: Duration,
}

/// Looked at and set from outside while a transfer runs.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes received so far.
    pub received: AtomicU64,
    /// Ends the transfer early, with an error of kind `Interrupted`.
    pub stop: AtomicBool,
}

impl Meter {
    /// Passes an end's result on, and stops the other end if it is an error: it would only wait.
    pub fn guard(&self, result: io::Result<Tally>) -> io::Result<Tally> {
        if result.is_err() {
            self.stop.store(true, Relaxed);
        }
        result
    }
}

/// Writes `load` into the stream and closes that direction of it.
///
/// # Errors
/// Those of the connection; `TimedOut` if nothing moves for 15 s; `Interrupted` when told to stop.
pub fn send(mut stream: &TcpStream, load: Load, meter: &Meter) -> io::Result<Tally> {
    stream.set_write_timeout(Some(TICK))?;
    let mut block = pattern();
    let mut tally = Counting::start(load);
    while let Some(length) = tally.next_length() {
        // Every block differs: one that is lost, doubled or misplaced changes the hash.
        block[..8].copy_from_slice(&tally.bytes.to_le_bytes());
        let mut left = &block[..length];
        while !left.is_empty() {
            let written = tally.patiently(meter, || stream.write(left))?;
            tally.add(&left[..written]);
            left = &left[written..];
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(tally.finish())
}

/// Reads the stream to its end.
///
/// # Errors
/// As [`send`].
pub fn receive(mut stream: &TcpStream, load: Load, meter: &Meter) -> io::Result<Tally> {
    stream.set_read_timeout(Some(TICK))?;
    let mut block = vec![0; BLOCK];
    let mut tally = Counting::start(load);
    loop {
        let length = tally.patiently(meter, || stream.read(&mut block))?;
        if length == 0 {
            return Ok(tally.finish());
        }
        tally.add(&block[..length]);
        meter.received.fetch_add(length as u64, Relaxed);
    }
}

struct Counting {
    load: Load,
    hash: Option<Context>,
    bytes: u64,
    started: Instant,
    moved: Instant,
}

impl Counting {
    fn start(load: Load) -> Self {
        let now = Instant::now();
        let hash = match load {
            Load::Hashed(_) => Some(Context::new(&SHA256)),
            Load::Timed(_) => None,
        };
        Self { load, hash, bytes: 0, started: now, moved: now }
    }

    /// How much to send next; `None` when it has all been sent.
    fn next_length(&self) -> Option<usize> {
        match self.load {
            Load::Hashed(total) => {
                let left = total - self.bytes;
                (left > 0).then(|| BLOCK.min(usize::try_from(left).unwrap_or(BLOCK)))
            }
            Load::Timed(time) => (self.started.elapsed() < time).then_some(BLOCK),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.moved = Instant::now();
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
    }

    /// Tries until it works, stalls, fails or is stopped.
    fn patiently(&self, meter: &Meter, mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            if meter.stop.load(Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
            }
            match attempt() {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                result => return result,
            }
            if self.moved.elapsed() > STALLED {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("nothing moved for {} s after {} bytes", STALLED.as_secs(), self.bytes),
                ));
            }
        }
    }

    fn finish(self) -> Tally {
        Tally {
            bytes: self.bytes,
            sha256: self.hash.map(|hash| {
                let mut digest = [0; 32];
                digest.copy_from_slice(hash.finish().as_ref());
                digest
            }),
            took: self.started.elapsed(),
        }
    }
}

/// Numbers that follow from the first and look alike nowhere: SplitMix64, which is enough where nobody attacks.
pub struct SplitMix(pub u64);

impl Iterator for SplitMix {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }
}

/// A block no two stretches of which look alike.
fn pattern() -> Vec<u8> {
    SplitMix(0x7465_6c69_6e65).take(BLOCK / 8).flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn through_loopback(load: Load) -> (Tally, Tally) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let meter = Meter::default();
        thread::scope(|scope| {
            let sender = scope.spawn(|| send(&TcpStream::connect(address).unwrap(), load, &meter));
            let received = receive(&listener.accept().unwrap().0, load, &meter).unwrap();
            assert_eq!(meter.received.load(Relaxed), received.bytes);
            (sender.join().unwrap().unwrap(), received)
        })
    }

    #[test]
    fn both_ends_count_and_hash_the_same() {
        let (sent, received) = through_loopback(Load::Hashed(3 * BLOCK as u64 + 17));
        assert_eq!((sent.bytes, sent.sha256), (received.bytes, received.sha256));
        assert_eq!(sent.bytes, 3 * BLOCK as u64 + 17);
        // Another length is another hash, and so the hash is one of the bytes.
        let (other, _) = through_loopback(Load::Hashed(3 * BLOCK as u64 + 18));
        assert_ne!(other.sha256, sent.sha256);
    }

    #[test]
    fn a_timed_load_ends_when_its_time_is_over() {
        let (sent, received) = through_loopback(Load::Timed(Duration::from_millis(50)));
        assert_eq!(sent.bytes, received.bytes);
        assert_eq!(sent.sha256, None);
        assert!(sent.took >= Duration::from_millis(50));
    }

    #[test]
    fn a_stopped_transfer_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let meter = Meter::default();
        meter.stop.store(true, Relaxed);
        let error = receive(&silent, Load::Hashed(1), &meter).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}

//! UDP from left to right through the link.

use crate::scene::Site;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{RcvBuf, UdpGroSegment, UdpGsoSegment};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// As QUIC does: runs of large datagrams in one call, as many at a time as a window allows that acknowledgements move.
    Windowed,
    /// Small datagrams, a call each, as fast as they go.
    Small,
}

/// Bytes of a datagram of QUIC's (RFC 9000 §14.1), and how many of them leave in one call.
const LARGE: usize = 1_200;
const RUN: usize = 16;
/// Datagrams that are sent before one must be acknowledged, and received before they are.
const WINDOW: u64 = 1_024;
const ACKNOWLEDGED: u64 = 16;
/// After so long without an acknowledgement all that is on its way counts as lost.
const LOST: Duration = Duration::from_millis(20);
/// Bytes of a small datagram.
const SMALL: usize = 64;
/// For what the receiver has not read yet.
const BUFFER: usize = 8 << 20;
/// How long the receiver waits for more.
const QUIET: Duration = Duration::from_millis(100);

/// Sends a flow for some time. Gives the payload that arrived, in Gbit/s.
///
/// # Errors
/// What the system says.
pub fn transfer(sites: &[Site; 2], flow: Flow, time: Duration) -> Result<f64, Box<dyn Error>> {
    let [sender, receiver] = [&sites[0], &sites[1]].map(|site| site.network.run(|| UdpSocket::bind((site.inner, 0))));
    let (sender, receiver) = (sender??, receiver??);
    sender.connect(receiver.local_addr()?)?;
    receiver.connect(sender.local_addr()?)?;
    setsockopt(&receiver, RcvBuf, &BUFFER)?;
    setsockopt(&receiver, UdpGroSegment, &true)?;
    receiver.set_read_timeout(Some(QUIET))?;
    let over = AtomicBool::new(false);
    let arrived = thread::scope(|scope| {
        let received = scope.spawn(|| receive(&receiver, flow, &over));
        let sent = match flow {
            Flow::Windowed => send_windowed(&sender, time),
            Flow::Small => send_small(&sender, time),
        };
        over.store(true, Relaxed);
        sent.and(received.join().unwrap())
    })?;
    Ok(arrived as f64 * 8e-9 / time.as_secs_f64())
}

/// Each datagram begins with its number.
fn send_windowed(socket: &UdpSocket, time: Duration) -> io::Result<()> {
    setsockopt(socket, UdpGsoSegment, &(LARGE as i32))?;
    socket.set_read_timeout(Some(LOST))?;
    let (mut sent, mut seen, started) = (0, 0, Instant::now());
    let mut run = vec![0; RUN * LARGE];
    while started.elapsed() < time {
        while sent + RUN as u64 <= seen + WINDOW {
            for (datagram, number) in run.chunks_mut(LARGE).zip(sent..) {
                datagram[..8].copy_from_slice(&number.to_be_bytes());
            }
            socket.send(&run)?;
            sent += RUN as u64;
        }
        let mut acknowledgement = [0; 8];
        match socket.recv(&mut acknowledgement) {
            Ok(_) => seen = seen.max(u64::from_be_bytes(acknowledgement)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => seen = sent,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send_small(socket: &UdpSocket, time: Duration) -> io::Result<()> {
    let started = Instant::now();
    while started.elapsed() < time {
        for _ in 0..64 {
            match socket.send(&[0; SMALL]) {
                // The interface's queue is full.
                Err(error) if error.raw_os_error() != Some(nix::libc::ENOBUFS) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Counts the payload until nothing more comes, and acknowledges what is large by the number of the next one.
fn receive(socket: &UdpSocket, flow: Flow, over: &AtomicBool) -> io::Result<usize> {
    let mut room = vec![0; 1 << 16];
    let (mut bytes, mut told) = (0, 0);
    loop {
        let length = match socket.recv(&mut room) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock && over.load(Relaxed) => return Ok(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        bytes += length;
        let Some(last) = room[..length].chunks_exact(LARGE).next_back().filter(|_| flow == Flow::Windowed) else {
            continue;
        };
        let next = last[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte)) + 1;
        if next >= told + ACKNOWLEDGED {
            socket.send(&next.to_be_bytes())?;
            told = next;
        }
    }
}

//! One who can make everything of a cold open, the Noise message included, and opens as fast as he can.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tieline::control::OsEntropy;
use tieline::keys::{PublicKey, SecretKey};
use tieline::protocol::crypto::OpenKeys;
use tieline::protocol::handshake::{Handshake, Statics};
use tieline::protocol::wire::{self, Kind, Nonce, Payload, Token, Verdict};

use super::junk;

/// How long what was sent waits for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module.
pub struct Opener {
    keys: OpenKeys,
    statics: Statics,
    /// Whether his Noise messages are worth reading: else he saves himself the trouble.
    honest: bool,
}

/// What he sent, and what came back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub knocks: u64,
    pub challenges: u64,
    pub inits: u64,
    pub responses: u64,
    /// Responses that were not to what was asked, or did not open: none.
    pub wrong: u64,
    /// How long he was at it.
    pub took: Duration,
}

/// An Init of his that may still be answered.
struct Sent {
    handshake: Option<Handshake>,
    at: Instant,
}

impl Opener {
    pub fn new(own: &SecretKey, peer: &PublicKey, honest: bool) -> Self {
        Self { keys: junk::open_key(own, peer), statics: Statics::new(own, *peer), honest }
    }

    /// Knocks so many times a second from a connected socket, and goes on with whatever is answered.
    pub fn open(&self, socket: &UdpSocket, per_second: u64, seed: u64, stop: &AtomicBool) -> Opened {
        socket.set_nonblocking(true).unwrap();
        let (started, mut opened, mut waiting) = (Instant::now(), Opened::default(), HashMap::new());
        while !stop.load(Relaxed) {
            let due = (started.elapsed().as_secs_f64() * per_second as f64) as u64;
            if opened.knocks < due {
                send(socket, &junk::knock(&self.keys, seed + opened.knocks));
                opened.knocks += 1;
            }
            let mut room = [0; 256];
            match socket.recv(&mut room) {
                Ok(length) => self.take(socket, &room[..length], &mut opened, &mut waiting),
                Err(error) if error.kind() == ErrorKind::WouldBlock && opened.knocks >= due => {
                    thread::sleep(Duration::from_micros(100));
                }
                Err(_) => {}
            }
            waiting.retain(|_, sent: &mut Sent| sent.at.elapsed() < PATIENCE);
        }
        Opened { took: started.elapsed(), ..opened }
    }

    fn take(&self, socket: &UdpSocket, datagram: &[u8], opened: &mut Opened, waiting: &mut HashMap<Nonce, Sent>) {
        let Some(nonce) = datagram.get(4..20).and_then(|nonce| Nonce::try_from(nonce).ok()) else { return };
        match Kind::of(datagram) {
            Some(Kind::Challenge) => {
                opened.challenges += 1;
                let token: Token = datagram[20..44].try_into().unwrap();
                let (init, handshake) = self.init(&nonce, &token);
                send(socket, &init);
                opened.inits += 1;
                waiting.insert(nonce, Sent { handshake, at: Instant::now() });
            }
            Some(Kind::Response) => {
                let handshake = waiting.remove(&nonce).and_then(|sent| sent.handshake);
                let read = handshake.map(|mut handshake| handshake.read::<16>(&datagram[20..84]));
                let good = read.is_some_and(|payload| payload.is_ok_and(|payload| Payload::parse(&payload).is_ok()));
                opened.responses += u64::from(good);
                opened.wrong += u64::from(!good);
            }
            _ => opened.wrong += 1,
        }
    }

    fn init(&self, nonce: &Nonce, token: &Token) -> (Vec<u8>, Option<Handshake>) {
        if !self.honest {
            return (wire::init(nonce, token, &[7; 64], &self.keys.sending), None);
        }
        let payload = Payload {
            index: 0xabcd,
            epoch: 1,
            ciphers: 3,
            flags: 0,
            lanes: 1,
            verdict: Verdict::Fine,
            interval_ms: 1_000,
        };
        let prologue = [b"tieline v1 cold", &nonce[..], token].concat();
        let mut handshake = self.statics.initiate(&prologue, &[0; 32], &mut OsEntropy).unwrap();
        let noise = handshake.write(&payload.encode()).unwrap();
        (wire::init(nonce, token, &noise, &self.keys.sending), Some(handshake))
    }
}

fn send(socket: &UdpSocket, datagram: &[u8]) {
    // What the kernel does not take is lost, as on any wire.
    let _ = socket.send(datagram);
}

//! What a running link keeps of its keys, and where: its memory is searched for every secret there has been, by a peer that has
//! them all. A key in use is on a locked page and nowhere else; one that is done with is nowhere.

// Helpers outside #[test] functions may panic too: here that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "secrets/memory.rs"]
mod memory;
#[path = "secrets/peer.rs"]
mod peer;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use common::lab::{End, Lab, PATIENCE, PORT};
use memory::{Found, Needle, locked_bytes, search};
use peer::{Peer, Session};
use tieline::keys::PresharedKey;

/// All that may be locked.
const VAULT: usize = 64 << 10;
const AES: u8 = 1;
const CHACHA: u8 = 2;
/// Bytes of a user datagram.
const LONG: usize = 1_200;

/// A real end at the left, and at the right a peer by hand.
struct Watched<'a> {
    lab: &'a Lab,
    end: End<'a>,
    peer: Peer,
    cipher: u8,
}

fn lab(cipher: &str) -> Lab {
    let mut lab = Lab::new();
    lab.left.preshared = Some(PresharedKey::generate().unwrap());
    lab.left.local = format!("[crypto]\ncipher = \"{cipher}\"\n");
    // The peer played here reports when it likes: the line is hardly ever Up.
    lab.left.link = "carrier = \"always\"\n".into();
    lab
}

impl<'a> Watched<'a> {
    fn start(lab: &'a Lab, cipher: u8) -> Self {
        let at = |address| SocketAddr::new(address, PORT);
        let socket = lab.right.network.run(|| UdpSocket::bind(at(lab.right.outer[0]))).unwrap().unwrap();
        let psk = lab.left.preshared.as_ref().unwrap();
        let peer = Peer::new(socket, at(lab.left.outer[0]), &lab.right.key, lab.right.peer, psk, cipher);
        let end = lab.left.start();
        end.wait_for_log(&["on interface"], PATIENCE);
        Watched { lab, end, peer, cipher }
    }

    fn search(&self, needles: &[Needle]) -> Vec<Found> {
        search(self.end.id(), needles)
    }

    /// Each of the needles is there, and all there is of them is on locked pages. But ChaCha20-Poly1305's code in aws-lc leaves the
    /// key it works with on the stack of the loop, until the session goes.
    fn assert_locked(&self, needles: &[Needle]) {
        let (started, mut last_astray) = (Instant::now(), Vec::new());
        loop {
            let (locked, mut astray): (Vec<_>, Vec<_>) =
                self.search(needles).into_iter().partition(|found| found.locked);
            astray.retain(|found| !(self.cipher == CHACHA && found.name.starts_with("key ")));
            let missing = needles.iter().find(|needle| !locked.iter().any(|found| found.name == needle.name));
            if missing.is_none() && astray.is_empty() {
                return;
            }
            if !astray.is_empty() {
                last_astray = astray;
            }
            // A session may have ended meanwhile, so that nothing is astray any more.
            assert!(started.elapsed() < PATIENCE, "missing: {missing:?}; not locked when last seen: {last_astray:#?}");
        }
    }

    /// None of the needles is anywhere, as soon as the end has done what it was told.
    fn assert_nowhere(&self, what: &str, needles: &[Needle], patience: Duration) {
        let started = Instant::now();
        loop {
            let found = self.search(needles);
            if found.is_empty() {
                return println!("{what}: gone after {:?}", started.elapsed());
            }
            assert!(started.elapsed() < patience, "{what}: still there after {patience:?}: {found:#?}");
        }
    }

    /// User frames both ways: keys have been where keys go. They are long: ChaCha20-Poly1305 leaves its key on the stack only then.
    fn use_session(&self, session: &mut Session) {
        let (from, to) = (self.lab.left.inner[0], self.lab.right.inner[0]);
        let user = self.lab.left.network.run(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        for _ in 0..3 {
            self.peer.exchange_frames(session, || drop(user.send_to(&[0; LONG], (to, 9))));
        }
        self.peer.report(session);
    }

    /// The keys of the two ends' own files, in whatever form.
    fn own_keys(&self) -> Vec<Needle> {
        let psk = self.lab.left.preshared.as_ref().unwrap();
        [Needle::of("secret key", self.lab.left.key.as_bytes()), Needle::of("psk", psk.as_bytes())].concat()
    }

    fn own_keys_as_text(&self) -> Vec<Needle> {
        let (key, psk) = (self.lab.left.key.encode(), self.lab.left.preshared.as_ref().unwrap().encode());
        // Without the parts that all keys have.
        [Needle::of("text of the key", &key.as_bytes()[10..]), Needle::of("text of the psk", &psk.as_bytes()[7..])]
            .concat()
    }

    /// How much of it is in use.
    fn vault_use(&self) -> usize {
        let (locked, used) = locked_bytes(self.end.id());
        println!("locked: {used} of {locked} bytes in use");
        assert_eq!(locked, VAULT, "more is locked than keys");
        used
    }

    /// From a bootstrap to the end: what is kept, and what is not.
    fn live(&mut self, open: fn(&mut Peer) -> Session, hybrid: fn(&mut Peer, &mut Session) -> Session) {
        self.assert_locked(&self.own_keys());
        self.assert_nowhere("key files' text", &self.own_keys_as_text(), PATIENCE);
        self.assert_nowhere("what K is made of", &self.peer.passing, PATIENCE);

        let mut boot = open(&mut self.peer);
        self.assert_locked(&boot.keys(&[255]));
        self.assert_nowhere("what the bootstrap's keys are made of", &boot.passing, PATIENCE);
        let mut first = hybrid(&mut self.peer, &mut boot);
        self.assert_nowhere("the bootstrap", &boot.all(), PATIENCE);
        self.use_session(&mut first);
        self.assert_locked(&first.keys(&[0, 255]));
        self.assert_nowhere("what the first session's keys are made of", &first.passing, PATIENCE);

        let mut second = self.peer.rekey(&mut first);
        self.use_session(&mut second);
        self.assert_locked(&second.keys(&[0, 255]));
        self.assert_nowhere("what the second session's keys are made of", &second.passing, PATIENCE);
        assert!(self.vault_use() < VAULT / 2, "two sessions fill it");
        // It is kept for what may still be under way.
        self.peer.report(&mut second);
        self.assert_nowhere("the first session", &first.all(), 2 * PATIENCE);
        self.assert_locked(&second.keys(&[0, 255]));

        let before = self.vault_use();
        self.peer.say_goodbye(&mut second);
        self.assert_nowhere("the second session", &second.all(), PATIENCE);
        let mut boot = open(&mut self.peer);
        let mut third = hybrid(&mut self.peer, &mut boot);
        self.use_session(&mut third);
        self.assert_locked(&[third.keys(&[0, 255]), self.own_keys()].concat());
        let all = [boot.all(), boot.passing, third.passing, self.peer.passing.clone()].concat();
        self.assert_nowhere("all that has passed", &all, PATIENCE);
        // As many sessions as then: what is freed is given back.
        assert!(self.vault_use() <= before + VAULT / 16, "{before} bytes in use have become {}", self.vault_use());
        let log = self.lab.left.log();
        assert!(!log.contains("swapped"), "{log}");
    }
}

scenario!(an_end_that_is_called_keeps_only_the_keys_it_uses, 150, {
    let mut lab = lab("aes-256-gcm");
    lab.left.endpoint = None;
    let mut watched = Watched::start(&lab, AES);
    watched.live(Peer::open, Peer::rekey);
    assert!(watched.end.terminate().success());
});

scenario!(an_end_that_calls_keeps_only_the_keys_it_uses, 150, {
    let lab = lab("chacha20-poly1305");
    let mut watched = Watched::start(&lab, CHACHA);
    watched.live(Peer::answer, Peer::answer_rekey);
    assert!(watched.end.terminate().success());
});

//! A link's peer that keeps every secret there is: it runs the protocol by hand, out of primitives, from Noise's own text (rev 34)
//! and `docs/PROTOCOL.md`, and remembers each key it came by. What a real end must forget is what is remembered here.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::memory::Needle;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use tieline::control::OsEntropy;
use tieline::keys::{PresharedKey, PublicKey, SecretKey};
use tieline::protocol::constants::{CONTROL_LANE, HEADER};
use tieline::protocol::control::{Message, Report, State};
use tieline::protocol::crypto::{Entropy, MacKey, sha256, x25519, x25519_public};
use tieline::protocol::wire::{self, Header, Kind, Payload, Token, Verdict, payload_flags};

use super::common::lab::PATIENCE;

type Key = [u8; 32];

fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &parts.concat());
    tag.as_ref().try_into().unwrap()
}

/// HKDF-Expand of up to 32 bytes (RFC 5869 §2.3).
fn expand(prk: &Key, info: &[&[u8]]) -> Key {
    mac(prk, &[&info.concat(), &[1]])
}

fn random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    rand::fill(&mut out).unwrap();
    out
}

fn aead(algorithm: &'static Algorithm, key: &Key) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap())
}

/// `Noise_KKpsk2_25519_ChaChaPoly_SHA256`, in either role.
struct Noise {
    h: Key,
    ck: Key,
    k: Key,
    n: u64,
    /// All that was ever secret.
    secrets: Vec<Needle>,
}

impl Noise {
    fn new(prologue: &[u8], initiator: &PublicKey, responder: &PublicKey) -> Noise {
        let h = sha256(&[b"Noise_KKpsk2_25519_ChaChaPoly_SHA256"]);
        let mut noise = Noise { h, ck: h, k: [0; 32], n: 0, secrets: Vec::new() };
        noise.mix_hash(prologue);
        noise.mix_hash(initiator.as_bytes());
        noise.mix_hash(responder.as_bytes());
        noise
    }

    fn keep(&mut self, name: &str, secret: &[u8]) {
        self.secrets.extend(Needle::of(name, secret));
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.h = sha256(&[&self.h, data]);
    }

    /// HKDF of §4.3, as many outputs as are asked for.
    fn hkdf<const N: usize>(&mut self, material: &[u8]) -> [Key; N] {
        let temporary = mac(&self.ck, &[material]);
        self.keep("temp_key", &temporary);
        let mut last = Vec::new();
        std::array::from_fn(|n| {
            let out = mac(&temporary, &[&last, &[n as u8 + 1]]);
            last = out.to_vec();
            self.keep("an output of HKDF", &out);
            out
        })
    }

    fn mix_key(&mut self, material: &[u8]) {
        [self.ck, self.k] = self.hkdf(material);
        self.n = 0;
    }

    fn dh(&mut self, name: &str, secret: &Key, public: &Key) {
        let shared = *x25519(secret, public).unwrap();
        self.keep(name, &shared);
        self.mix_key(&shared);
    }

    fn public_e(&mut self, e: &Key) {
        self.mix_hash(e);
        self.mix_key(e);
    }

    fn mix_psk(&mut self, psk: &Key) {
        let [ck, hash, k] = self.hkdf(psk);
        (self.ck, self.k, self.n) = (ck, k, 0);
        self.mix_hash(&hash);
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.n.to_le_bytes());
        self.n += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        let mut sealed = text.to_vec();
        let (key, nonce, h) = (aead(&CHACHA20_POLY1305, &self.k), self.nonce(), self.h);
        key.seal_in_place_append_tag(nonce, Aad::from(h), &mut sealed).unwrap();
        self.mix_hash(&sealed);
        sealed
    }

    fn open(&mut self, sealed: &[u8]) -> Vec<u8> {
        let mut text = sealed.to_vec();
        let (key, nonce, h) = (aead(&CHACHA20_POLY1305, &self.k), self.nonce(), self.h);
        let length = key.open_in_place(nonce, Aad::from(h), &mut text).expect("a Noise message that opens").len();
        self.mix_hash(sealed);
        text.truncate(length);
        text
    }
}

/// A session, and all that is secret about it.
pub struct Session {
    /// The index the real end receives on.
    index: u32,
    own_index: u32,
    /// 0 where this end began.
    direction: u8,
    h: Key,
    chain: Key,
    prk: Key,
    cipher: u8,
    sealed: u64,
    /// What no end needs once the session is made.
    pub passing: Vec<Needle>,
}

impl Session {
    fn new(mut noise: Noise, cipher: u8, initiator: bool, (own_index, index): (u32, u32)) -> Session {
        let [k1, k2] = noise.hkdf(&[]);
        noise.keep("k1", &k1);
        noise.keep("k2", &k2);
        let prk = mac(&noise.h, &[&k1, &k2]);
        noise.keep("prk", &prk);
        let chain = expand(&prk, &[b"tieline v1 chain"]);
        let direction = u8::from(!initiator);
        Session { index, own_index, direction, h: noise.h, chain, prk, cipher, sealed: 0, passing: noise.secrets }
    }

    fn lane(&self, direction: u8, lane: u8) -> (Key, [u8; 12]) {
        let suffix = [self.cipher, direction, lane];
        let iv = expand(&self.prk, &[b"tieline v1 iv", &suffix]);
        (expand(&self.prk, &[b"tieline v1 key", &suffix]), iv[..12].try_into().unwrap())
    }

    /// What both ends need as long as there is the session: the keys of these lanes.
    pub fn keys(&self, lanes: &[u8]) -> Vec<Needle> {
        let both = lanes.iter().flat_map(|lane| [(0, *lane), (1, *lane)]);
        let key = |(direction, lane)| Needle::of(&format!("key {direction}/{lane}"), &self.lane(direction, lane).0);
        both.flat_map(key).collect()
    }

    /// The same of all lanes, and the chain key. Not the ivs: each is the nonce of a lane's first datagram, and no secret.
    pub fn all(&self) -> Vec<Needle> {
        [self.keys(&[0, CONTROL_LANE]), Needle::of("chain", &self.chain)].concat()
    }

    fn aead(&self, direction: u8, lane: u8, counter: u64) -> (LessSafeKey, Nonce) {
        let (key, mut nonce) = self.lane(direction, lane);
        nonce[4..].iter_mut().zip(counter.to_be_bytes()).for_each(|(byte, c)| *byte ^= c);
        let algorithm = if self.cipher == 1 { &AES_256_GCM } else { &CHACHA20_POLY1305 };
        (aead(algorithm, &key), Nonce::assume_unique_for_key(nonce))
    }

    fn seal(&mut self, lane: u8, text: &[u8]) -> Vec<u8> {
        let kind = if lane == CONTROL_LANE { Kind::Control } else { Kind::Data };
        // One counter for both lanes: neither repeats.
        let counter = self.sealed;
        self.sealed += 1;
        let header = Header { kind, flags: 0, lane, path: 0, index: self.index, counter }.encode();
        let (key, nonce) = self.aead(self.direction, lane, counter);
        let mut sealed = text.to_vec();
        key.seal_in_place_append_tag(nonce, Aad::from(&header[..]), &mut sealed).unwrap();
        [&header[..], &sealed].concat()
    }

    /// What the real end sealed under it: the lane and the text.
    fn open(&self, datagram: &[u8]) -> Option<(u8, Vec<u8>)> {
        let header = Header::parse(datagram).ok().filter(|header| header.index == self.own_index)?;
        let (key, nonce) = self.aead(1 - self.direction, header.lane, header.counter);
        let mut text = datagram[HEADER..].to_vec();
        let length = key.open_in_place(nonce, Aad::from(&datagram[..HEADER]), &mut text).ok()?.len();
        text.truncate(length);
        Some((header.lane, text))
    }
}

/// See the module.
pub struct Peer {
    socket: UdpSocket,
    to: SocketAddr,
    secret: Key,
    public: PublicKey,
    theirs: PublicKey,
    psk: Key,
    cipher: u8,
    epoch: u32,
    /// K of what this end sends, and of what comes.
    sending: MacKey,
    /// What belongs to the pair of keys and is not kept in this form: ss, and K both ways.
    pub passing: Vec<Needle>,
}

impl Peer {
    /// It speaks from `socket` with the end at `to`.
    pub fn new(
        socket: UdpSocket,
        to: SocketAddr,
        own: &SecretKey,
        theirs: PublicKey,
        psk: &PresharedKey,
        cipher: u8,
    ) -> Peer {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (secret, public) = (*own.as_bytes(), own.public().unwrap());
        let ss = *x25519(&secret, theirs.as_bytes()).unwrap();
        let prk = mac(b"tieline v1 open", &[&ss]);
        let [sending, receiving] =
            [(public, theirs), (theirs, public)].map(|(a, b)| expand(&prk, &[a.as_bytes(), b.as_bytes()]));
        let named = [("ss", ss), ("prk of K", prk), ("K to the end", sending), ("K from the end", receiving)];
        let passing = named.iter().flat_map(|(name, secret)| Needle::of(name, secret)).collect();
        let (psk, sending) = (*psk.as_bytes(), MacKey::new(&sending));
        Peer { socket, to, secret, public, theirs, psk, cipher, epoch: 0, sending, passing }
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.to).unwrap();
    }

    /// Reads what comes until `wanted` makes something of it.
    fn wait_for<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let started = Instant::now();
        let mut datagram = [0; 2_000];
        loop {
            assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            match self.socket.recv(&mut datagram) {
                Ok(length) => {
                    if let Some(found) = wanted(&datagram[..length]) {
                        return found;
                    }
                }
                // Nothing, or an end that is not there yet.
                Err(e) if [ErrorKind::WouldBlock, ErrorKind::ConnectionRefused].contains(&e.kind()) => {}
                Err(e) => panic!("{what}: {e}"),
            }
        }
    }

    fn next_payload(&mut self) -> Payload {
        self.epoch += 10;
        let flags = payload_flags::HYBRID | payload_flags::PSK;
        let (index, ciphers) = (u32::from_be_bytes(random()) | 1, self.cipher);
        Payload { index, epoch: self.epoch, ciphers, flags, lanes: 1, verdict: Verdict::Fine, interval_ms: 1_000 }
    }

    /// Opens a bootstrap at the end.
    pub fn open(&mut self) -> Session {
        let nonce = random();
        let knock = wire::knock(&nonce, &self.sending);
        let token: Token = loop {
            self.send(&knock);
            let challenge = self.wait_for("a Challenge", |d| Some((d[0] == 2).then(|| d[20..44].try_into().unwrap())));
            if let Some(token) = challenge {
                break token;
            }
        };
        let own = self.next_payload();
        let (mut noise, e, mut one) = self.message_1(&prologue(&nonce, &token), &own.encode());
        self.send(&wire::init(&nonce, &token, one[..].try_into().unwrap(), &self.sending));
        one = self.wait_for("a Response", |d| (d[0] == 4 && d[4..20] == nonce).then(|| d[20..84].to_vec()));
        let theirs = self.read_message_2(&mut noise, &e, &one, &self.psk.clone());
        let theirs = Payload::parse(theirs[..].try_into().unwrap()).unwrap();
        assert_eq!(theirs.ciphers, self.cipher);
        Session::new(noise, self.cipher, true, (own.index, theirs.index))
    }

    /// Answers the end, which knocks.
    pub fn answer(&mut self) -> Session {
        let token: Token = random();
        let mut nonce = [0; 16];
        let one = self.wait_for("an Init", |d| {
            if d[0] == Kind::Knock as u8 {
                nonce = d[4..20].try_into().unwrap();
                self.send(&wire::challenge(&nonce, &token, &self.sending));
            }
            (d[0] == Kind::Init as u8 && d[4..20] == nonce && d[20..44] == token).then(|| d[44..108].to_vec())
        });
        let own = self.next_payload();
        let (mut noise, e, theirs) = self.read_message_1(&prologue(&nonce, &token), &one);
        let theirs = Payload::parse(theirs[..].try_into().unwrap()).unwrap();
        let two = self.message_2(&mut noise, &e, one[..32].try_into().unwrap(), &own.encode(), &self.psk.clone());
        self.send(&wire::response(&nonce, two[..].try_into().unwrap(), &self.sending));
        Session::new(noise, self.cipher, false, (own.index, theirs.index))
    }

    fn message_1(&self, prologue: &[u8], payload: &[u8]) -> (Noise, Key, Vec<u8>) {
        let mut noise = Noise::new(prologue, &self.public, &self.theirs);
        let e = random();
        let public = x25519_public(&e).unwrap();
        noise.public_e(&public);
        noise.dh("es", &e, self.theirs.as_bytes());
        noise.dh("ss", &self.secret, self.theirs.as_bytes());
        let sealed = noise.seal(payload);
        (noise, e, [&public[..], &sealed].concat())
    }

    fn read_message_1(&self, prologue: &[u8], message: &[u8]) -> (Noise, Key, Vec<u8>) {
        let mut noise = Noise::new(prologue, &self.theirs, &self.public);
        let (e, sealed) = message.split_first_chunk().unwrap();
        noise.public_e(e);
        noise.dh("es", &self.secret, e);
        noise.dh("ss", &self.secret, self.theirs.as_bytes());
        let payload = noise.open(sealed);
        (noise, random(), payload)
    }

    fn message_2(&self, noise: &mut Noise, e: &Key, their_e: &Key, payload: &[u8], psk: &Key) -> Vec<u8> {
        let public = x25519_public(e).unwrap();
        noise.public_e(&public);
        noise.dh("ee", e, their_e);
        noise.dh("se", e, self.theirs.as_bytes());
        noise.mix_psk(psk);
        [&public[..], &noise.seal(payload)].concat()
    }

    fn read_message_2(&self, noise: &mut Noise, e: &Key, message: &[u8], psk: &Key) -> Vec<u8> {
        let (their_e, sealed) = message.split_first_chunk().unwrap();
        noise.public_e(their_e);
        noise.dh("ee", e, their_e);
        noise.dh("se", &self.secret, their_e);
        noise.mix_psk(psk);
        noise.open(sealed)
    }

    /// psk' of a hybrid rekey, and what it is made of.
    fn hybrid_psk(&self, noise: &mut Noise, parent: &Session, k: &Key, ek: &[u8], ct: &[u8]) -> Key {
        let prk = mac(&parent.chain, &[k, &self.psk]);
        let psk = expand(&prk, &[b"tieline v1 psk", &sha256(&[ek, ct])]);
        for (name, secret) in [("ML-KEM's secret", k), ("prk of psk'", &prk), ("psk'", &psk)] {
            noise.keep(name, secret);
        }
        psk
    }

    /// Starts a rekey under `parent`: the child.
    pub fn rekey(&mut self, parent: &mut Session) -> Session {
        let (kem, ek) = OsEntropy.kem_generate().unwrap();
        let own = self.next_payload();
        let (mut noise, e, one) = self.message_1(&rekey_prologue(parent, &ek[..]), &own.encode()[..8]);
        self.send_parts(parent, 1, &[&one, &ek[..]].concat());
        let two = self.wait_for_parts(parent, 2, 56 + 1_088);
        let (noise_2, ct) = two.split_at(56);
        let k = *kem.decapsulate(ct.try_into().unwrap()).unwrap();
        let psk = self.hybrid_psk(&mut noise, parent, &k, &ek[..], ct);
        let theirs = self.read_message_2(&mut noise, &e, noise_2, &psk);
        let mut child = Session::new(noise, self.cipher, true, (own.index, index(&theirs)));
        self.report(&mut child);
        child
    }

    /// Answers the rekey that the end starts under `parent`: the child.
    pub fn answer_rekey(&mut self, parent: &mut Session) -> Session {
        let one = self.wait_for_parts(parent, 1, 56 + 1_184);
        let (noise_1, ek) = one.split_at(56);
        let (mut noise, e, theirs) = self.read_message_1(&rekey_prologue(parent, ek), noise_1);
        let (ct, k) = OsEntropy.kem_encapsulate(ek.try_into().unwrap()).unwrap();
        let psk = self.hybrid_psk(&mut noise, parent, &k, ek, &ct[..]);
        let own = self.next_payload();
        let two = self.message_2(&mut noise, &e, noise_1[..32].try_into().unwrap(), &own.encode()[..8], &psk);
        self.send_parts(parent, 2, &[&two, &ct[..]].concat());
        let mut child = Session::new(noise, self.cipher, false, (own.index, index(&theirs)));
        self.wait_for("a datagram under the child", |d| child.open(d));
        self.report(&mut child);
        child
    }

    fn send_parts(&self, parent: &mut Session, kind: u8, message: &[u8]) {
        let parts = message.len().div_ceil(512) as u8;
        for (part, bytes) in (0..).zip(message.chunks(512)) {
            self.send(&parent.seal(CONTROL_LANE, &[&[kind, part, parts, 0], bytes].concat()));
        }
    }

    fn wait_for_parts(&self, parent: &Session, kind: u8, length: usize) -> Vec<u8> {
        let mut got: Vec<Option<Vec<u8>>> = vec![None; length.div_ceil(512)];
        self.wait_for("the parts of a rekey", |datagram| {
            let (_, text) = parent.open(datagram).filter(|(lane, text)| *lane == CONTROL_LANE && text[0] == kind)?;
            got[usize::from(text[1])] = Some(text[4..].to_vec());
            got.iter().cloned().collect::<Option<Vec<_>>>().map(|parts| parts.concat())
        })
    }

    /// Says that all is well.
    pub fn report(&self, session: &mut Session) {
        let report = Report { state: State::Up, lanes: vec![Default::default()], ..Report::default() };
        self.send(&session.seal(CONTROL_LANE, &Message::Report(report).encode()));
    }

    /// Sends a long frame, and waits for one of the end's, as `provoke` makes it send.
    pub fn exchange_frames(&self, session: &mut Session, mut provoke: impl FnMut()) {
        self.send(&session.seal(0, &[0x45; 1_200]));
        provoke();
        self.wait_for("a frame", |datagram| {
            let frame = session.open(datagram).filter(|(lane, text)| *lane == 0 && text.len() > 1_000);
            // Until there is a session the end's frames are lost.
            provoke();
            frame
        });
    }

    /// Leaves.
    pub fn say_goodbye(&self, session: &mut Session) {
        self.send(&session.seal(CONTROL_LANE, &Message::Goodbye.encode()));
    }
}

fn prologue(nonce: &[u8; 16], token: &Token) -> Vec<u8> {
    [b"tieline v1 cold", &nonce[..], token].concat()
}

fn rekey_prologue(parent: &Session, ek: &[u8]) -> Vec<u8> {
    [b"tieline v1 rekey", &parent.h[..], &sha256(&[ek])].concat()
}

fn index(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

//! Session keys, split into halves: what seals and what opens, each owned by one loop and never shared.
//!
//! A half cannot be cloned, so a counter cannot be used twice. A bootstrap session has no data lanes at all: user
//! data cannot be sealed or opened in it, whatever the code around it does.

use super::{
    constants::*,
    crypto::{CryptoFailure, Secret},
    handshake::{LaneKey, Root},
    levels::{LaneLevels, SessionLevels},
    replay::{Replay, Window},
    wire::{Header, Kind, cipher_bits, data_flags},
};
use crate::keys::secret::leaving_no_trace;
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use std::sync::Arc;
use thiserror::Error;

/// The AEAD of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm = cipher_bits::AES_256_GCM,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305 = cipher_bits::CHACHA20_POLY1305,
}

impl Cipher {
    /// Its name in config and status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cipher::Aes256Gcm => "aes-256-gcm",
            Cipher::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }
}

/// Why a datagram was not sealed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SealError {
    /// There is no session to seal under.
    #[error("no session")]
    NoSession,
    /// The datagram has a flag that the session did not agree to.
    #[error("the session did not agree to this")]
    NotAgreed,
    /// The lane reached its limit; a rekey is due.
    #[error("the session's keys are used up")]
    Exhausted,
}

/// Key and iv, and the one way to make a nonce of a counter.
struct Aead {
    key: LessSafeKey,
    iv: Secret<12>,
}

impl Aead {
    fn new(cipher: Cipher, lane: LaneKey) -> Result<Aead, CryptoFailure> {
        let algorithm = match cipher {
            Cipher::Aes256Gcm => &AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let key = leaving_no_trace(|| UnboundKey::new(algorithm, &*lane.key)).map_err(|_| CryptoFailure)?;
        Ok(Aead { key: LessSafeKey::new(key), iv: lane.iv })
    }

    /// `iv XOR (0^4 ‖ counter8)`.
    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = *self.iv;
        for (byte, c) in nonce[4..].iter_mut().zip(counter.to_be_bytes()) {
            *byte ^= c;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Splits a transport datagram into header, text and tag. Shorter ones were refused before.
fn split(datagram: &mut [u8]) -> Option<(&mut [u8; HEADER], &mut [u8], &mut [u8; TAG])> {
    let (header, rest) = datagram.split_first_chunk_mut::<HEADER>()?;
    let (text, tag) = rest.split_last_chunk_mut::<TAG>()?;
    Some((header, text, tag))
}

/// The sealing half of one lane: it alone knows the next counter.
pub struct LaneSealer {
    aead: Aead,
    header: Header,
    /// The flags agreed to.
    flags: u8,
    datagrams_left: u64,
    bytes_left: u64,
    session: Arc<SessionLevels>,
    /// The data lane's levels; none for the control lane.
    lane: Option<Arc<LaneLevels>>,
    /// Sealed, and not yet said to be on its way.
    held: u64,
}

impl LaneSealer {
    /// Writes header and tag around the text and seals it in place. `datagram` is `HEADER` bytes of room, the text,
    /// `TAG` bytes of room.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] at the sealing limit (`docs/PROTOCOL.md` §5); the datagram must not be sent.
    pub fn seal(&mut self, flags: u8, datagram: &mut [u8]) -> Result<(), SealError> {
        let Some((header, text, tag_room)) = split(datagram) else {
            return Err(SealError::Exhausted);
        };
        if flags & !self.flags != 0 {
            return Err(SealError::NotAgreed);
        }
        let len = text.len() as u64;
        if self.datagrams_left == 0 || self.bytes_left < len {
            return Err(SealError::Exhausted);
        }
        let counter = self.header.counter;
        // Spent before it is used: a failure below can never lead to a second use.
        self.header.counter += 1;
        self.datagrams_left -= 1;
        self.bytes_left -= len;
        *header = Header { flags, counter, ..self.header }.encode();
        let tag = self
            .aead
            .key
            .seal_in_place_separate_tag(self.aead.nonce(counter), Aad::from(&header[..]), text)
            .map_err(|_| SealError::Exhausted)?;
        tag_room.copy_from_slice(tag.as_ref());
        if self.lane.is_some() {
            self.held += 1;
            self.session.sealed.add(1);
            self.session.sealed_bytes.add(len);
            if datagram.len() > usize::from(MTU_FLOOR) {
                self.session.large.add(1);
            }
        }
        Ok(())
    }

    /// The flags a datagram may have.
    pub(super) fn flags(&self) -> u8 {
        self.flags
    }

    /// What was sealed has been handed to the socket: Reports count it from now on.
    pub(super) fn handed_over(&mut self) {
        if let Some(lane) = &self.lane {
            lane.sent.add(std::mem::take(&mut self.held));
        }
    }

    /// Seals a control message into a datagram of its own.
    ///
    /// # Errors
    /// As [`LaneSealer::seal`].
    pub fn seal_message(&mut self, message: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut datagram = vec![0; message.len() + MIN_TRANSPORT];
        datagram[HEADER..HEADER + message.len()].copy_from_slice(message);
        self.seal(0, &mut datagram)?;
        Ok(datagram)
    }
}

/// The opening half of one lane.
struct LaneOpener {
    aead: Aead,
    window: Window,
}

/// Why a datagram did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    Replayed(Replay),
    Unauthentic,
}

impl LaneOpener {
    /// Opens in place, then marks; true when the counter is the lane's highest so far.
    fn open(&mut self, counter: u64, datagram: &mut [u8]) -> Result<bool, OpenError> {
        self.window.check(counter).map_err(OpenError::Replayed)?;
        let Some((header, text, _)) = split(datagram) else {
            return Err(OpenError::Unauthentic);
        };
        let (aad, text_len) = (*header, text.len());
        let nonce = self.aead.nonce(counter);
        let sealed = &mut datagram[HEADER..HEADER + text_len + TAG];
        self.aead.key.open_in_place(nonce, Aad::from(&aad[..]), sealed).map_err(|_| OpenError::Unauthentic)?;
        Ok(self.window.mark(counter))
    }
}

/// The opening half of a session: all its lanes, owned by one ingress loop.
pub struct Opening {
    /// The index the peer writes into the header.
    pub index: u32,
    /// The flags agreed to.
    flags: u8,
    lanes: Vec<LaneOpener>,
    control: LaneOpener,
    session: Arc<SessionLevels>,
    lane_levels: LaneSet,
}

impl Opening {
    pub(super) fn levels(&self) -> &SessionLevels {
        &self.session
    }

    /// Opens a Data datagram of `lane`. `None` where this session has no such lane, or did not agree to a flag.
    pub(super) fn open_data(&mut self, header: Header, datagram: &mut [u8]) -> Option<Result<bool, OpenError>> {
        if header.flags & !self.flags != 0 {
            return None;
        }
        let lane = usize::from(header.lane);
        let (opener, levels) = (self.lanes.get_mut(lane)?, self.lane_levels.get(lane)?);
        let outcome = opener.open(header.counter, datagram);
        match outcome {
            Ok(newest) => {
                levels.received.add(1);
                self.session.opened_bytes.add((datagram.len() - MIN_TRANSPORT) as u64);
                if newest {
                    self.session.peer_sealed.set(header.counter.saturating_add(1));
                }
            }
            Err(OpenError::Replayed(Replay::Duplicate)) => levels.duplicate.add(1),
            Err(OpenError::Replayed(Replay::Late)) => levels.late.add(1),
            Err(OpenError::Unauthentic) => levels.failed.add(1),
        }
        Some(outcome)
    }

    pub(super) fn open_control(&mut self, counter: u64, datagram: &mut [u8]) -> Result<bool, OpenError> {
        self.control.open(counter, datagram)
    }
}

/// The levels of all data lanes of one cold open and its children.
pub type LaneSet = Arc<[Arc<LaneLevels>]>;

/// Makes the levels of `lanes` fresh lanes.
#[must_use]
pub fn lane_set(lanes: u8) -> LaneSet {
    (0..lanes).map(|_| Arc::default()).collect()
}

/// What both ends know of a session before its keys are made.
#[derive(Clone)]
pub struct Shape {
    /// The AEAD.
    pub cipher: Cipher,
    /// Whether this end sent message 1.
    pub initiator: bool,
    /// The index this end receives on.
    pub own_index: u32,
    /// The index the peer receives on.
    pub peer_index: u32,
    /// The data lanes; `None` for a bootstrap, which has none.
    pub lanes: Option<LaneSet>,
    /// Whether inner checksums may be partial.
    pub partial_checksum: bool,
    /// Whether frames may be cut.
    pub cut_frames: bool,
}

/// A session's halves, fresh from its keys.
pub struct Halves {
    /// Seals control messages: the engine's.
    pub control: LaneSealer,
    /// Seal user data: one an egress loop.
    pub sealers: Vec<LaneSealer>,
    /// Opens everything: the ingress loop's.
    pub opening: Box<Opening>,
    /// What both sides write and the engine reads.
    pub levels: Arc<SessionLevels>,
}

impl Halves {
    /// Expands all keys of a session from `root`.
    ///
    /// # Errors
    /// [`CryptoFailure`] where a primitive fails.
    pub fn derive(root: &Root, shape: &Shape) -> Result<Halves, CryptoFailure> {
        let levels: Arc<SessionLevels> = Arc::default();
        let lane_levels = shape.lanes.clone().unwrap_or_else(|| lane_set(0));
        let lanes = lane_levels.len().max(1) as u64; // a bootstrap has the control lane alone
        let mut halves = Halves {
            control: shape.sealer(root, CONTROL_LANE, lanes, &levels, None)?,
            sealers: Vec::new(),
            opening: Box::new(Opening {
                index: shape.own_index,
                flags: shape.flags(),
                lanes: Vec::new(),
                control: shape.opener(root, CONTROL_LANE, Window::control())?,
                session: levels.clone(),
                lane_levels: lane_levels.clone(),
            }),
            levels: levels.clone(),
        };
        for (lane, lane_level) in (0u8..).zip(lane_levels.iter()) {
            halves.sealers.push(shape.sealer(root, lane, lanes, &levels, Some(lane_level.clone()))?);
            halves.opening.lanes.push(shape.opener(root, lane, Window::data())?);
        }
        Ok(halves)
    }
}

impl Shape {
    /// The flags a Data datagram may have.
    fn flags(&self) -> u8 {
        let flag = |on: bool, flags: u8| if on { flags } else { 0 };
        flag(self.partial_checksum, data_flags::PARTIAL_CHECKSUM) | flag(self.cut_frames, data_flags::PIECE)
    }

    /// 0 is initiator → responder, 1 back.
    fn aead(&self, root: &Root, sending: bool, lane: u8) -> Result<Aead, CryptoFailure> {
        let direction = u8::from(sending != self.initiator);
        Aead::new(self.cipher, root.lane(self.cipher as u8, direction, lane)?)
    }

    fn sealer(
        &self,
        root: &Root,
        lane: u8,
        lanes: u64,
        session: &Arc<SessionLevels>,
        levels: Option<Arc<LaneLevels>>,
    ) -> Result<LaneSealer, CryptoFailure> {
        let kind = if lane == CONTROL_LANE { Kind::Control } else { Kind::Data };
        Ok(LaneSealer {
            aead: self.aead(root, true, lane)?,
            header: Header { kind, flags: 0, lane, path: 0, index: self.peer_index, counter: 0 },
            flags: if kind == Kind::Data { self.flags() } else { 0 },
            datagrams_left: SEAL_DATAGRAMS / lanes,
            bytes_left: SEAL_BYTES / lanes,
            session: session.clone(),
            lane: levels,
            held: 0,
        })
    }

    fn opener(&self, root: &Root, lane: u8, window: Window) -> Result<LaneOpener, CryptoFailure> {
        Ok(LaneOpener { aead: self.aead(root, false, lane)?, window })
    }
}

#[cfg(test)]
mod vectors {
    use super::*;
    use crate::protocol::vectors::{Listed, array, bytes, int, long, other, section, text};

    #[test]
    fn transport_datagrams_seal_and_open() {
        for vector in section("transport") {
            let (inputs, outputs) = (&vector["inputs"], &vector["outputs"]);
            let session = Listed::named(text(&inputs["session"]));
            let (sender, counter) = (text(&inputs["sender"]), long(&inputs["counter"]));
            let (lane, flags): (u8, u8) = (int(&inputs["lane"]), int(&inputs["flags"]));
            let plaintext = bytes(&inputs["plaintext"]);

            let key = session.root().lane(int(&inputs["cipher"]), int(&inputs["dir"]), lane).unwrap();
            assert_eq!((*key.key, *key.iv), (array(&inputs["key"]), array(&inputs["iv"])));

            let mut halves = session.halves(sender);
            let sealer = match lane {
                CONTROL_LANE => &mut halves.control,
                lane => &mut halves.sealers[usize::from(lane)],
            };
            sealer.header.counter = counter; // most are too far to seal up to
            sealer.flags |= flags; // and some have flags that this version cannot agree to
            assert_eq!(*sealer.aead.nonce(counter).as_ref(), array(&outputs["nonce"]));
            let mut datagram = [&[0; HEADER], &plaintext[..], &[0; TAG]].concat();
            sealer.seal(flags, &mut datagram).unwrap();
            assert_eq!(hex::encode(&datagram), text(&outputs["datagram"]), "{}", vector["name"]);
            assert_eq!(datagram[..HEADER], bytes(&outputs["header"]));

            let opening = &mut session.halves(other(sender)).opening;
            opening.flags |= flags;
            assert_eq!(opening.index, int::<u32>(&inputs["index"]));
            let kind = Kind::of(&datagram).unwrap();
            let header = Header { kind, flags, lane, path: 0, index: opening.index, counter };
            let opened = match kind {
                Kind::Control => Some(opening.open_control(counter, &mut datagram)),
                _ => opening.open_data(header, &mut datagram),
            };
            assert_eq!(opened, Some(Ok(true)), "{}", vector["name"]);
            assert_eq!(datagram[HEADER..datagram.len() - TAG], plaintext);
        }
    }

    #[test]
    fn every_lane_seals_its_share_and_no_more() {
        let last = section("transport").iter().map(|v| long(&v["inputs"]["counter"])).filter(|c| *c < 1 << 32).max();
        let mut halves = Listed::named("first hybrid").halves("a"); // two lanes
        for sealer in halves.sealers.iter_mut().chain([&mut halves.control]) {
            assert_eq!(Some(sealer.datagrams_left - 1), last, "the last counter of two lanes");
            assert_eq!(sealer.bytes_left, 1 << 37);
            sealer.datagrams_left = 1;
            assert_eq!(sealer.seal(0, &mut [0; MIN_TRANSPORT]), Ok(()));
            assert_eq!(sealer.seal(0, &mut [0; MIN_TRANSPORT]), Err(SealError::Exhausted));
        }
    }
}

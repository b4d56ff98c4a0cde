//! The datagrams by the byte: layouts, lengths, and nothing that needs a key but the MAC over them.
//!
//! Reading never fails halfway: a parser returns a whole value or [`Malformed`]. Integers are big-endian.

use super::{constants::*, crypto::MacKey};
use std::net::{IpAddr, SocketAddr};

/// A length, a header or a value out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Byte 0 of every datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// I → R: is this address alive, and give me a token.
    Knock = 1,
    /// R → I: the token.
    Challenge = 2,
    /// I → R: Noise message 1, with the token.
    Init = 3,
    /// R → I: Noise message 2.
    Response = 4,
    /// A user frame, sealed.
    Data = 5,
    /// A control message, sealed.
    Control = 6,
}

impl Kind {
    /// The kind of a datagram by its first byte.
    #[must_use]
    pub fn of(datagram: &[u8]) -> Option<Kind> {
        Some(match datagram.first()? {
            1 => Kind::Knock,
            2 => Kind::Challenge,
            3 => Kind::Init,
            4 => Kind::Response,
            5 => Kind::Data,
            6 => Kind::Control,
            _ => return None,
        })
    }

    /// The exact length of a cold-open datagram; `None` for Data and Control.
    #[must_use]
    pub const fn cold_len(self) -> Option<usize> {
        Some(match self {
            Kind::Knock => KNOCK,
            Kind::Challenge => CHALLENGE,
            Kind::Init => INIT,
            Kind::Response => RESPONSE,
            Kind::Data | Kind::Control => return None,
        })
    }
}

/// Bytes of a Knock.
pub const KNOCK: usize = 64;
/// Bytes of a Challenge.
pub const CHALLENGE: usize = 64;
/// Bytes of an Init.
pub const INIT: usize = 124;
/// Bytes of a Response.
pub const RESPONSE: usize = 100;
/// Bytes of a MAC at the end of every cold-open datagram.
pub const MAC: usize = 16;

/// The nonce of one cold-open attempt.
pub type Nonce = [u8; 16];
/// The responder's token: `stamp8 ‖ mac16`.
pub type Token = [u8; 24];
/// `e32 ‖ AEAD(payload16) ‖ tag16`.
pub type ColdNoise = [u8; 64];

/// A datagram under construction whose MAC goes on last.
fn cold(kind: Kind, parts: &[&[u8]], key: &MacKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(INIT);
    out.extend_from_slice(&[kind as u8, VERSION, 0, 0]);
    for part in parts {
        out.extend_from_slice(part);
    }
    let mac = key.mac16(&[&out]);
    out.extend_from_slice(&mac);
    out
}

/// `Knock`: `hdr4 ‖ nonce16 ‖ zero28 ‖ mac16`.
#[must_use]
pub fn knock(nonce: &Nonce, key: &MacKey) -> Vec<u8> {
    cold(Kind::Knock, &[nonce, &[0; 28]], key)
}

/// `Challenge`: `hdr4 ‖ nonce16 ‖ token24 ‖ zero4 ‖ mac16`.
#[must_use]
pub fn challenge(nonce: &Nonce, token: &Token, key: &MacKey) -> Vec<u8> {
    cold(Kind::Challenge, &[nonce, token, &[0; 4]], key)
}

/// `Init`: `hdr4 ‖ nonce16 ‖ token24 ‖ noise64 ‖ mac16`.
#[must_use]
pub fn init(nonce: &Nonce, token: &Token, noise: &ColdNoise, key: &MacKey) -> Vec<u8> {
    cold(Kind::Init, &[nonce, token, noise], key)
}

/// `Response`: `hdr4 ‖ nonce16 ‖ noise64 ‖ mac16`.
#[must_use]
pub fn response(nonce: &Nonce, noise: &ColdNoise, key: &MacKey) -> Vec<u8> {
    cold(Kind::Response, &[nonce, noise], key)
}

/// A cold-open datagram whose length and MAC are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cold {
    /// See [`Kind::Knock`].
    Knock {
        /// The attempt's nonce.
        nonce: Nonce,
    },
    /// See [`Kind::Challenge`].
    Challenge {
        /// The attempt's nonce, come back.
        nonce: Nonce,
        /// What the Init must carry.
        token: Token,
    },
    /// See [`Kind::Init`].
    Init {
        /// The attempt's nonce.
        nonce: Nonce,
        /// The responder's own token, come back.
        token: Token,
        /// Noise message 1.
        noise: ColdNoise,
    },
    /// See [`Kind::Response`].
    Response {
        /// The attempt's nonce.
        nonce: Nonce,
        /// Noise message 2.
        noise: ColdNoise,
    },
}

/// Whether `datagram` has the length of its kind and its MAC is right.
#[must_use]
pub fn check_cold(datagram: &[u8], key: &MacKey) -> ColdCheck {
    let Some(len) = Kind::of(datagram).and_then(Kind::cold_len) else {
        return ColdCheck::Malformed;
    };
    if datagram.len() != len {
        return ColdCheck::Malformed;
    }
    let (body, mac) = datagram.split_at(len - MAC);
    if key.verify16(&[body], mac) { ColdCheck::Authentic } else { ColdCheck::Unauthentic }
}

/// The outcome of [`check_cold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColdCheck {
    /// Length and MAC are right.
    Authentic,
    /// The length is not that of its kind.
    Malformed,
    /// The MAC is not the peer's.
    Unauthentic,
}

impl Cold {
    /// Reads a datagram that [`check_cold`] found authentic.
    ///
    /// # Errors
    /// [`Malformed`] for another version, a non-zero reserved byte or a wrong length.
    pub fn parse(datagram: &[u8]) -> Result<Cold, Malformed> {
        let kind = Kind::of(datagram).ok_or(Malformed)?;
        if kind.cold_len() != Some(datagram.len()) || datagram[1..4] != [VERSION, 0, 0] {
            return Err(Malformed);
        }
        let mut body = Reader(&datagram[4..datagram.len() - MAC]);
        let nonce = body.array()?;
        let cold = match kind {
            Kind::Knock => {
                body.zeros::<28>()?;
                Cold::Knock { nonce }
            }
            Kind::Challenge => {
                let token = body.array()?;
                body.skip(4)?;
                Cold::Challenge { nonce, token }
            }
            Kind::Init => Cold::Init { nonce, token: body.array()?, noise: body.array()? },
            Kind::Response => Cold::Response { nonce, noise: body.array()? },
            Kind::Data | Kind::Control => return Err(Malformed),
        };
        body.end()?;
        Ok(cold)
    }
}

/// `ip16 ‖ port2` of an address, IPv4 as IPv4-mapped (RFC 4291 §2.5.5.2).
#[must_use]
pub fn address18(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut out = [0; 18];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&address.port().to_be_bytes());
    out
}

/// The address that [`address18`] wrote; an IPv4-mapped one is IPv4's.
#[must_use]
pub fn read_address18(bytes: &[u8; 18]) -> SocketAddr {
    let [ip @ .., high, low] = *bytes;
    SocketAddr::new(IpAddr::from(ip).to_canonical(), u16::from_be_bytes([high, low]))
}

/// Bits of [`Payload::ciphers`].
pub mod cipher_bits {
    /// AES-256-GCM.
    pub const AES_256_GCM: u8 = 1;
    /// ChaCha20-Poly1305.
    pub const CHACHA20_POLY1305: u8 = 2;
}

/// Bits of [`Payload::flags`]; unknown ones are ignored.
pub mod payload_flags {
    /// Hybrid post-quantum keys are required.
    pub const HYBRID: u8 = 1;
    /// Partial inner checksums are understood.
    pub const PARTIAL_CHECKSUM: u8 = 2;
    /// A preshared key is configured.
    pub const PSK: u8 = 4;
    /// The link carries Ethernet frames.
    pub const ETHERNET: u8 = 8;
    /// Cut frames are understood.
    pub const CUT_FRAMES: u8 = 16;
}

/// The answer in a Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The session is made.
    Fine = 0,
    /// The ends share no cipher.
    NoCommonCipher = 1,
    /// One end is `ip`, the other `ethernet`.
    LayersDiffer = 2,
}

/// The 16 bytes inside both cold Noise messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The sender's own receive index, never 0.
    pub index: u32,
    /// The sender's epoch.
    pub epoch: u32,
    /// [`cipher_bits`]: what Init offers, what Response chose.
    pub ciphers: u8,
    /// [`payload_flags`].
    pub flags: u8,
    /// Lanes offered, 1 to 16.
    pub lanes: u8,
    /// The answer; `Fine` in an Init.
    pub verdict: Verdict,
    /// The sender's report interval, in milliseconds.
    pub interval_ms: u32,
}

impl Payload {
    /// The payload's length.
    pub const LEN: usize = 16;

    /// By the byte: `index4 ‖ epoch4 ‖ ciphers1 ‖ flags1 ‖ lanes1 ‖ status1 ‖ interval4`.
    #[must_use]
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[0..4].copy_from_slice(&self.index.to_be_bytes());
        out[4..8].copy_from_slice(&self.epoch.to_be_bytes());
        out[8] = self.ciphers;
        out[9] = self.flags;
        out[10] = self.lanes;
        out[11] = self.verdict as u8;
        out[12..16].copy_from_slice(&self.interval_ms.to_be_bytes());
        out
    }

    /// Reads what [`Payload::encode`] writes.
    ///
    /// # Errors
    /// [`Malformed`] for index 0, lanes outside 1..=16, an interval outside 50..=60,000 ms, an unknown status, or an
    /// epoch of 0 or over 2^31.
    pub fn parse(bytes: &[u8; 16]) -> Result<Payload, Malformed> {
        let mut r = Reader(bytes);
        let payload = Payload {
            index: r.u32()?,
            epoch: r.u32()?,
            ciphers: r.u8()?,
            flags: r.u8()?,
            lanes: r.u8()?,
            verdict: match r.u8()? {
                0 => Verdict::Fine,
                1 => Verdict::NoCommonCipher,
                2 => Verdict::LayersDiffer,
                _ => return Err(Malformed),
            },
            interval_ms: r.u32()?,
        };
        let fine = payload.index != 0
            && (1..=MAX_EPOCH).contains(&payload.epoch)
            && (1..=MAX_LANES).contains(&payload.lanes)
            && (INTERVAL_MIN_MS..=INTERVAL_MAX_MS).contains(&payload.interval_ms);
        if fine { Ok(payload) } else { Err(Malformed) }
    }
}

/// The header of a transport datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Data or Control.
    pub kind: Kind,
    /// [`data_flags`]; 0 for Control.
    pub flags: u8,
    /// The lane, 255 for Control.
    pub lane: u8,
    /// The path; 0.
    pub path: u8,
    /// The receiver's index.
    pub index: u32,
    /// The lane's counter.
    pub counter: u64,
}

/// Bits of [`Header::flags`] on Data.
pub mod data_flags {
    /// The inner L4 checksum is partial.
    pub const PARTIAL_CHECKSUM: u8 = 1;
    /// The first piece of a cut frame; with [`LAST_PIECE`] one that is neither the first nor the last.
    pub const FIRST_PIECE: u8 = 2;
    /// The last piece of a cut frame.
    pub const LAST_PIECE: u8 = 4;
    /// A piece of a cut frame has one of these flags, or both.
    pub const PIECE: u8 = FIRST_PIECE | LAST_PIECE;
    /// What this version can agree to. Whether a session did is judged by who holds it.
    pub const KNOWN: u8 = PARTIAL_CHECKSUM | PIECE;
}

impl Header {
    /// By the byte: `type1 ‖ flags1 ‖ lane1 ‖ path1 ‖ index4 ‖ counter8`.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0] = self.kind as u8;
        out[1] = self.flags;
        out[2] = self.lane;
        out[3] = self.path;
        out[4..8].copy_from_slice(&self.index.to_be_bytes());
        out[8..16].copy_from_slice(&self.counter.to_be_bytes());
        out
    }

    /// Reads the header of a transport datagram; lane and index are judged by who holds the session.
    ///
    /// # Errors
    /// [`Malformed`] for a datagram under 32 bytes, another type, an unknown flag or a path other than 0.
    pub fn parse(datagram: &[u8]) -> Result<Header, Malformed> {
        if datagram.len() < MIN_TRANSPORT {
            return Err(Malformed);
        }
        let kind = match Kind::of(datagram) {
            Some(kind @ (Kind::Data | Kind::Control)) => kind,
            _ => return Err(Malformed),
        };
        let mut r = Reader(&datagram[1..HEADER]);
        let header = Header { kind, flags: r.u8()?, lane: r.u8()?, path: r.u8()?, index: r.u32()?, counter: r.u64()? };
        let known = if kind == Kind::Data { data_flags::KNOWN } else { 0 };
        if header.flags & !known != 0 || header.path != 0 {
            return Err(Malformed);
        }
        Ok(header)
    }
}

/// Reads fixed fields off the front of a slice.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn zeros<const N: usize>(&mut self) -> Result<(), Malformed> {
        if self.array::<N>()? == [0; N] { Ok(()) } else { Err(Malformed) }
    }

    /// Passes over reserved bytes: sent as 0, not looked at.
    pub fn skip(&mut self, n: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(n..).ok_or(Malformed)?;
        Ok(())
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> MacKey {
        MacKey::new(&[7; 32])
    }

    fn payload() -> impl Strategy<Value = Payload> {
        let verdict = prop_oneof![Just(Verdict::Fine), Just(Verdict::NoCommonCipher), Just(Verdict::LayersDiffer)];
        (1u32.., 1..=MAX_EPOCH, any::<u8>(), any::<u8>(), 1..=MAX_LANES, verdict, INTERVAL_MIN_MS..=INTERVAL_MAX_MS)
            .prop_map(|(index, epoch, ciphers, flags, lanes, verdict, interval_ms)| Payload {
                index,
                epoch,
                ciphers,
                flags,
                lanes,
                verdict,
                interval_ms,
            })
    }

    proptest! {
        #[test]
        fn payloads_survive_the_trip(payload in payload()) {
            prop_assert_eq!(Payload::parse(&payload.encode()), Ok(payload));
        }

        #[test]
        fn any_sixteen_bytes_parse_to_what_encodes_back(bytes: [u8; 16]) {
            if let Ok(payload) = Payload::parse(&bytes) {
                prop_assert_eq!(payload.encode(), bytes);
            }
        }

        #[test]
        fn cold_datagrams_survive_the_trip(nonce: Nonce, token: Token, noise in prop::array::uniform32(any::<[u8; 2]>())) {
            let noise: ColdNoise = noise.as_flattened().try_into().unwrap();
            let all = [
                (knock(&nonce, &key()), Cold::Knock { nonce }),
                (challenge(&nonce, &token, &key()), Cold::Challenge { nonce, token }),
                (init(&nonce, &token, &noise, &key()), Cold::Init { nonce, token, noise }),
                (response(&nonce, &noise, &key()), Cold::Response { nonce, noise }),
            ];
            for (datagram, cold) in all {
                prop_assert_eq!(check_cold(&datagram, &key()), ColdCheck::Authentic);
                prop_assert_eq!(Cold::parse(&datagram), Ok(cold));
            }
        }

        #[test]
        fn one_changed_bit_is_never_authentic(nonce: Nonce, at in 0..KNOCK * 8) {
            let mut datagram = knock(&nonce, &key());
            datagram[at / 8] ^= 1 << (at % 8);
            prop_assert_ne!(check_cold(&datagram, &key()), ColdCheck::Authentic);
        }

        #[test]
        fn any_bytes_are_judged_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = check_cold(&bytes, &key());
            let _ = Cold::parse(&bytes);
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(&header.encode()[..], &bytes[..HEADER]);
            }
        }
    }

    #[test]
    fn headers_refuse_what_no_session_can_have_agreed_to() {
        let header = Header { kind: Kind::Data, flags: 0, lane: 0, path: 0, index: 5, counter: 9 };
        let datagram = |header: Header| [&header.encode()[..], &[0; TAG]].concat();
        assert_eq!(Header::parse(&datagram(header)), Ok(header));
        assert_eq!(Header::parse(&datagram(header)[..31]), Err(Malformed));
        let partial = Header { flags: data_flags::PARTIAL_CHECKSUM, ..header };
        assert_eq!(Header::parse(&datagram(partial)), Ok(partial));
        assert_eq!(Header::parse(&datagram(Header { kind: Kind::Control, ..partial })), Err(Malformed));
        for flags in [8, 128] {
            assert_eq!(Header::parse(&datagram(Header { flags, ..header })), Err(Malformed));
        }
        assert_eq!(Header::parse(&datagram(Header { path: 1, ..header })), Err(Malformed));
    }

    #[test]
    fn both_families_make_addresses_of_one_shape() {
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 0x1c, 0x8f];
        assert_eq!(address18("192.0.2.1:7311".parse().unwrap()), mapped);
        assert_eq!(address18("[::ffff:192.0.2.1]:7311".parse().unwrap()), mapped);
    }
}

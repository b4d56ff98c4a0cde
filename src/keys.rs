//! The three kinds of key, which cannot be confused: by type in the code, by prefix on paper.
//!
//! | type             | on paper     | what it is                                   |
//! |------------------|--------------|----------------------------------------------|
//! | [`PublicKey`]    | `tlpub1…`    | X25519 public key (RFC 7748 §5): an identity |
//! | [`SecretKey`]    | `TLSECRET1…` | X25519 private key: proves that identity     |
//! | [`PresharedKey`] | `TLPSK1…`    | 32 random bytes which both ends have         |
//!
//! On paper each is 32 bytes in Bech32m (BIP-350): a human-readable part, `1`, 52 characters of data, 6 of checksum.
//! Bech32m rather than Bech32 because it also finds characters inserted or removed before a final `p`. As BIP-173
//! says, either pure case is read and mixed case is not; secrets are written in upper case so that they stand out.
//!
//! Secrets are wiped when dropped, lie in memory of their own ([`secret`]), have no `Display`, and never appear in `Debug` or an error. What a key *does* is
//! not here: see [`crate::protocol`]. How key files are read and written is in [`mod@file`].

pub mod file;
mod mask;
pub mod secret;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::{agreement, rand};
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32m, ByteIterExt, Fe32IterExt, Hrp};
use zeroize::Zeroizing;

pub use file::KeyFileError;
pub use mask::mask_secrets;
pub use secret::Secret;

/// Characters of Bech32m after the human-readable part: `1`, 52 for 32 bytes, 6 of checksum.
const TAIL_CHARS: usize = 1 + 52 + 6;

/// The curve's prime 2^255 − 19, little-endian: public keys from here up are second spellings of smaller ones.
const P: [u8; 32] = {
    let mut p = [0xff; 32];
    p[0] = 0xed;
    p[31] = 0x7f;
    p
};

/// The canonical u-coordinates whose order divides 8, little-endian (<https://cr.yp.to/ecdh.html#validate>): with
/// these every shared secret is zero, whoever's secret key it is.
const LOW_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    {
        let mut minus_one = P;
        minus_one[0] = 0xec;
        minus_one
    },
];

/// Which of the three kinds of key a string is, or ought to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// `tlpub1…`
    Public,
    /// `TLSECRET1…`
    Secret,
    /// `TLPSK1…`
    Preshared,
}

impl KeyKind {
    const ALL: [Self; 3] = [Self::Public, Self::Secret, Self::Preshared];

    /// The human-readable part, in lower case.
    const fn hrp(self) -> &'static str {
        match self {
            Self::Public => "tlpub",
            Self::Secret => "tlsecret",
            Self::Preshared => "tlpsk",
        }
    }

    /// The kind that `text` says it is, whether or not the rest of it is in order.
    fn claimed_by(text: &str) -> Option<Self> {
        let (hrp, _) = text.split_once('1')?;
        Self::ALL.into_iter().find(|kind| hrp.eq_ignore_ascii_case(kind.hrp()))
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public key (tlpub1…)",
            Self::Secret => "secret key (TLSECRET1…)",
            Self::Preshared => "preshared key (TLPSK1…)",
        })
    }
}

/// Why a string or 32 bytes are not the key they should be.
///
/// `Display` says what is wrong and [`KeyError::help`] what to do. Neither holds any part of the input: it may be a
/// secret in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Nothing there.
    #[error("there is no key here: a {expected} belongs here")]
    Empty {
        /// What belongs here.
        expected: KeyKind,
    },
    /// A key of another kind.
    #[error("this is a {found}; here a {expected} belongs")]
    WrongKind {
        /// What it is.
        found: KeyKind,
        /// What belongs here.
        expected: KeyKind,
    },
    /// Not a tieline key at all.
    #[error("this is not a tieline key: a {expected} belongs here")]
    NotAKey {
        /// What belongs here.
        expected: KeyKind,
    },
    /// Base64 of 32 bytes, as WireGuard writes its keys.
    #[error("this looks like a WireGuard key; here a {expected} belongs")]
    LooksLikeWireGuard {
        /// What belongs here.
        expected: KeyKind,
    },
    /// Upper and lower case in one string.
    #[error("this {kind} has both upper and lower case letters")]
    MixedCase {
        /// What it says it is.
        kind: KeyKind,
    },
    /// Too few or too many characters.
    #[error("this {kind} is {found} characters long, not {expected}")]
    WrongLength {
        /// What it says it is.
        kind: KeyKind,
        /// Characters there are.
        found: usize,
        /// Characters there should be.
        expected: usize,
    },
    /// The right length, but the checksum does not match.
    #[error("this {kind} is damaged: its checksum does not match")]
    Damaged {
        /// What it says it is.
        kind: KeyKind,
    },
    /// A public key ≥ 2^255 − 19.
    #[error("this public key is not in canonical form")]
    NonCanonical,
    /// A public key with which every shared secret is zero.
    #[error("this public key is a low-order point: it gives no secrecy at all")]
    LowOrder,
    /// A preshared key of 32 zero bytes.
    #[error("this preshared key is all zero: it protects nothing")]
    ZeroPsk,
    /// The operating system gave no randomness, or the crypto library failed.
    #[error("the crypto library failed to make a key")]
    Crypto,
}

impl KeyError {
    /// What to do about it, as one line.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Empty { expected } | Self::NotAKey { expected } | Self::LooksLikeWireGuard { expected } => {
                match expected {
                    KeyKind::Public => "paste the line that `tieline pubkey` prints at the other end",
                    KeyKind::Secret => "make one with `tieline keygen --out FILE`",
                    KeyKind::Preshared => "make one with `tieline psk --out FILE` and copy it to both ends",
                }
            }
            Self::WrongKind { found: KeyKind::Secret, expected: KeyKind::Public } => {
                "take it out and put the peer's public key here: `tieline pubkey FILE` prints it from the secret key's \
                 file; if this text has been seen by others, make a new key"
            }
            Self::WrongKind { expected: KeyKind::Public, .. } => {
                "put the peer's public key here: `tieline pubkey FILE` prints it at the other end"
            }
            Self::WrongKind { expected: KeyKind::Secret, .. } => {
                "put this end's secret key here: `tieline keygen --out FILE` makes one"
            }
            Self::WrongKind { expected: KeyKind::Preshared, .. } => {
                "put the key that both ends share here: `tieline psk --out FILE` makes one"
            }
            Self::MixedCase { .. } | Self::WrongLength { .. } | Self::Damaged { .. } => {
                "copy it again from where it was made: a character is missing, mistyped or too many"
            }
            Self::NonCanonical | Self::LowOrder => {
                "no honest end has such a key: ask the other end for what `tieline pubkey` prints there"
            }
            Self::ZeroPsk => "make a real one with `tieline psk --out FILE` and copy it to both ends",
            Self::Crypto => "try again; if it stays, the machine has no working source of randomness",
        }
    }
}

/// An X25519 public key: who an end is. Safe to show to anyone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes of RFC 7748 §5 as a key.
    ///
    /// # Errors
    /// [`KeyError::NonCanonical`] if they are not below 2^255 − 19 (so one key has one spelling), and
    /// [`KeyError::LowOrder`] if every shared secret with it would be zero.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if !bytes.iter().rev().lt(P.iter().rev()) {
            return Err(KeyError::NonCanonical);
        }
        if LOW_ORDER.contains(&bytes) {
            return Err(KeyError::LowOrder);
        }
        Ok(Self(bytes))
    }

    /// The key as it goes on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hrp = Hrp::parse_unchecked(KeyKind::Public.hrp());
        bech32::encode_to_fmt::<Bech32m, _>(f, hrp, &self.0).map_err(|_| fmt::Error)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*decode(KeyKind::Public, text)?)
    }
}

/// An X25519 private key. Wiped when dropped; to pass it on, lend it.
pub struct SecretKey(Secret);

impl SecretKey {
    /// Makes a new key from the operating system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] if there is none to be had.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Self(Secret::default());
        rand::fill(&mut *key.0).map_err(|_| KeyError::Crypto)?;
        Ok(key)
    }

    /// Takes any 32 bytes as a key (X25519 clamps them as it uses them, RFC 7748 §5).
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    /// The secret itself. Do not let it outlive the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public key that belongs to it.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] if the crypto library fails, as it may without memory.
    pub fn public(&self) -> Result<PublicKey, KeyError> {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, &*self.0);
        let public = private.map_err(|_| KeyError::Crypto)?.compute_public_key().map_err(|_| KeyError::Crypto)?;
        PublicKey::from_bytes(public.as_ref().try_into().map_err(|_| KeyError::Crypto)?)
    }

    /// Reads `TLSECRET1…` (or all in lower case).
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Ok(Self(decode(KeyKind::Secret, text)?))
    }

    /// Writes `TLSECRET1…`: the secret in full.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        encode_upper(KeyKind::Secret, &self.0)
    }

    /// Reads a key file, which must be readable by its owner only. See [`mod@file`].
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn read_file(path: &Path) -> Result<Self, KeyFileError> {
        file::read(path, KeyKind::Secret, Self::parse, Self::is_published)
    }

    /// Writes a new key file with mode 0600; a file that is there already is left as it is. See [`mod@file`].
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn write_file(&self, path: &Path) -> Result<(), KeyFileError> {
        file::write_new(path, &self.encode())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

/// 32 random bytes which both ends have and mix into every handshake. Wiped when dropped.
pub struct PresharedKey(Secret);

impl PresharedKey {
    /// Makes a new key from the operating system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Crypto`] if there is none to be had.
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = Self(Secret::default());
        rand::fill(&mut *key.0).map_err(|_| KeyError::Crypto)?;
        Ok(key)
    }

    /// Takes 32 bytes as a key.
    ///
    /// # Errors
    /// [`KeyError::ZeroPsk`] if all are zero: that is how Noise spells "no preshared key".
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        Self::unless_zero(bytes.into())
    }

    fn unless_zero(key: Secret) -> Result<Self, KeyError> {
        if *key == [0; 32] { Err(KeyError::ZeroPsk) } else { Ok(Self(key)) }
    }

    /// The secret itself. Do not let it outlive the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads `TLPSK1…` (or all in lower case).
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        Self::unless_zero(decode(KeyKind::Preshared, text)?)
    }

    /// Writes `TLPSK1…`: the secret in full.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<String> {
        encode_upper(KeyKind::Preshared, &self.0)
    }

    /// Reads a key file, which must be readable by its owner only. See [`mod@file`].
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn read_file(path: &Path) -> Result<Self, KeyFileError> {
        file::read(path, KeyKind::Preshared, Self::parse, Self::is_published)
    }

    /// Writes a new key file with mode 0600; a file that is there already is left as it is. See [`mod@file`].
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn write_file(&self, path: &Path) -> Result<(), KeyFileError> {
        file::write_new(path, &self.encode())
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(redacted)")
    }
}

/// Reads one Bech32m string of the kind that belongs here, naming the nearest thing that is wrong with it.
fn decode(expected: KeyKind, text: &str) -> Result<Secret, KeyError> {
    let text = text.trim();
    let kind = match KeyKind::claimed_by(text) {
        _ if text.is_empty() => return Err(KeyError::Empty { expected }),
        None if looks_like_wireguard(text) => {
            return Err(KeyError::LooksLikeWireGuard { expected });
        }
        None => return Err(KeyError::NotAKey { expected }),
        Some(found) if found != expected => return Err(KeyError::WrongKind { found, expected }),
        Some(kind) => kind,
    };
    if text.contains(|c: char| c.is_ascii_lowercase()) && text.contains(|c: char| c.is_ascii_uppercase()) {
        return Err(KeyError::MixedCase { kind });
    }
    let (found, expected) = (text.chars().count(), kind.hrp().len() + TAIL_CHARS);
    if found != expected {
        return Err(KeyError::WrongLength { kind, found, expected });
    }
    let checked = CheckedHrpstring::new::<Bech32m>(text).map_err(|_| KeyError::Damaged { kind })?;
    // 52 characters hold 260 bits: the four left over must be zero, or one key would have sixteen spellings.
    if checked.fe32_iter().last().is_none_or(|last| last.to_u8() & 0x0f != 0) {
        return Err(KeyError::Damaged { kind });
    }
    let mut bytes = Secret::default();
    bytes.iter_mut().zip(checked.byte_iter()).for_each(|(to, from)| *to = from);
    Ok(bytes)
}

/// Base64 of 32 bytes is 43 characters and `=`.
fn looks_like_wireguard(text: &str) -> bool {
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    text.len() == 44 && text.strip_suffix('=').is_some_and(|head| head.bytes().all(base64))
}

/// Writes the upper-case Bech32m string straight into one buffer that is wiped and never grows.
fn encode_upper(kind: KeyKind, bytes: &[u8; 32]) -> Zeroizing<String> {
    let hrp = Hrp::parse_unchecked(kind.hrp());
    let mut text = Zeroizing::new(String::with_capacity(kind.hrp().len() + TAIL_CHARS));
    text.extend(
        bytes.iter().copied().bytes_to_fes().with_checksum::<Bech32m>(&hrp).chars().map(|c| c.to_ascii_uppercase()),
    );
    text
}

#[cfg(test)]
mod tests;

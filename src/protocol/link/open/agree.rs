//! What two ends agree on: it follows from both payloads of a cold open, at both ends the same (`docs/PROTOCOL.md` §4.3).

use crate::protocol::{
    constants::*,
    session::{Cipher, lane_set},
    slots::Agreed,
    wire::{Payload, Verdict, cipher_bits, payload_flags},
};
use std::time::Duration;

/// What an Init is answered with: the cipher both offer, AES first, and whether the link can be.
pub(super) fn judge(own: &Payload, peer: &Payload) -> (Option<Cipher>, Verdict) {
    let both = own.ciphers & peer.ciphers;
    let cipher = if both & cipher_bits::AES_256_GCM != 0 {
        Cipher::Aes256Gcm
    } else if both & cipher_bits::CHACHA20_POLY1305 != 0 {
        Cipher::ChaCha20Poly1305
    } else {
        return (None, Verdict::NoCommonCipher);
    };
    if layers_differ(own, peer) { (None, Verdict::LayersDiffer) } else { (Some(cipher), Verdict::Fine) }
}

/// Whether one end is `ip` and the other `ethernet`.
pub(super) fn layers_differ(own: &Payload, peer: &Payload) -> bool {
    (own.flags ^ peer.flags) & payload_flags::ETHERNET != 0
}

/// What follows from both payloads, at both ends the same.
pub(super) fn agree(cipher: Cipher, own: &Payload, peer: &Payload) -> Agreed {
    let interval = Duration::from_millis(own.interval_ms.max(peer.interval_ms).into());
    Agreed {
        cipher,
        hybrid: (own.flags | peer.flags) & payload_flags::HYBRID != 0,
        partial_checksum: own.flags & peer.flags & payload_flags::PARTIAL_CHECKSUM != 0,
        cut_frames: own.flags & peer.flags & payload_flags::CUT_FRAMES != 0,
        detection: interval * MISSED_REPORTS,
        lanes: lane_set(own.lanes.min(peer.lanes)),
    }
}

/// What a Response chose: `Some(None)` where it refuses the link, `None` where it makes no sense.
pub(super) fn chosen(payload: &Payload, offered: u8) -> Option<Option<Cipher>> {
    if payload.verdict != Verdict::Fine {
        return (payload.ciphers == 0).then_some(None);
    }
    let cipher = match payload.ciphers & offered {
        cipher_bits::AES_256_GCM => Cipher::Aes256Gcm,
        cipher_bits::CHACHA20_POLY1305 => Cipher::ChaCha20Poly1305,
        _ => return None,
    };
    (payload.ciphers == cipher as u8).then_some(Some(cipher))
}

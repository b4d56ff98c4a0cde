//! Any bytes as a datagram, as a cold-open payload and as a control message: what is read is written back the same.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tieline::protocol::control::Message;
use tieline::protocol::crypto::MacKey;
use tieline::protocol::wire::{Cold, ColdCheck, Header, Kind, Payload, challenge, check_cold, init, knock, response};
use tieline::protocol::{HEADER, TAG};

static KEY: LazyLock<MacKey> = LazyLock::new(|| MacKey::new(&[7; 32]));

fuzz_target!(|bytes: &[u8]| {
    let kind = Kind::of(bytes);
    let has_cold_length = kind.and_then(Kind::cold_len) == Some(bytes.len());
    assert_eq!(check_cold(bytes, &KEY) == ColdCheck::Malformed, !has_cold_length);
    if let Ok(cold) = Cold::parse(bytes) {
        assert!(has_cold_length);
        let again = match &cold {
            Cold::Knock { nonce } => knock(nonce, &KEY),
            Cold::Challenge { nonce, token } => challenge(nonce, token, &KEY),
            Cold::Init { nonce, token, noise } => init(nonce, token, noise, &KEY),
            Cold::Response { nonce, noise } => response(nonce, noise, &KEY),
        };
        // The last four bytes of a Challenge's body are not looked at, and the MAC is ours.
        let read = if let Cold::Challenge { .. } = cold { 44 } else { again.len() - 16 };
        assert_eq!(again[..read], bytes[..read]);
        assert_eq!(check_cold(&again, &KEY), ColdCheck::Authentic);
        assert_eq!(Cold::parse(&again), Ok(cold));
    }
    if let Ok(header) = Header::parse(bytes) {
        assert!(matches!(kind, Some(Kind::Data | Kind::Control)) && bytes.len() >= HEADER + TAG);
        let known = if kind == Some(Kind::Data) { 0b111 } else { 0 };
        assert!(header.path == 0 && header.flags & !known == 0, "no flag but 1, 2 and 4 of Data, no path but 0");
        assert_eq!(header.encode(), bytes[..HEADER]);
    }
    if let Some(Ok(payload)) = bytes.first_chunk().map(Payload::parse) {
        assert_eq!(payload.encode(), bytes[..Payload::LEN]);
    }
    match Message::parse(bytes) {
        // What follows the kind is not known, and not kept.
        Ok(Message::Unknown(kind)) => assert_eq!(kind, bytes[0]),
        Ok(message) => {
            let again = message.encode();
            assert!(again.len() == bytes.len() || matches!(message, Message::Probe { .. }), "lengths are exact");
            let same = |(at, (new, old)): (usize, (&u8, &u8))| *new == old & !unread(&message, at, *new);
            assert!(again.iter().zip(bytes).enumerate().all(same));
            assert_eq!(Message::parse(&again), Ok(message));
        }
        Err(_) => {}
    }
});

/// The bits at a place of a message that are not looked at, and written as 0; `written` is what was.
fn unread(message: &Message, at: usize, written: u8) -> u8 {
    match (message, at) {
        (Message::Probe { .. }, 4..) | (Message::WayCheck { .. }, 16..) => 0xff,
        (Message::WayCheck { .. }, 1) => !3,
        (Message::Mtu { .. }, 1) => !1,
        // All other reserved bytes are among the first four.
        (_, 0..4) if written == 0 => 0xff,
        _ => 0,
    }
}

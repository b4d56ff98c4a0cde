//! Any bytes as a packet: no header leads out of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline::packet::ip::{self, Version};
use tieline::packet::transport::Transport;
use tieline_fuzz::u16_at;

fuzz_target!(|bytes: &[u8]| {
    let checked = ip::check(bytes);
    match checked {
        Ok(Version::V4) => assert!((20..=bytes.len()).contains(&u16_at(bytes, 2).into())),
        Ok(Version::V6) => assert!(40 + usize::from(u16_at(bytes, 4)) <= bytes.len()),
        Err(_) => assert_eq!(Transport::find(bytes), None),
    }
    let Some(found) = Transport::find(bytes) else { return };
    assert_eq!(checked, Ok(found.version));
    assert!(20 <= found.start && found.start < found.payload && found.payload <= found.end && found.end <= bytes.len());
    assert_eq!(usize::from(found.length()), found.end - found.start);
    let mut completed = bytes.to_vec();
    found.complete(&mut completed);
    let at = found.start + found.protocol.checksum_offset();
    assert!(completed[..at] == bytes[..at] && completed[at + 2..] == bytes[at + 2..]);
});

//! Any bytes as a packet, and behind an Ethernet header: no header leads out of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tieline::packet::Layer;
use tieline::packet::ip::{self, Version};
use tieline::packet::transport::Transport;
use tieline_fuzz::{network, u16_at};

fuzz_target!(|bytes: &[u8]| {
    let checked = ip::check(bytes);
    match checked {
        Ok(Version::V4) => assert!((20..=bytes.len()).contains(&u16_at(bytes, 2).into())),
        Ok(Version::V6) => assert!(40 + usize::from(u16_at(bytes, 4)) <= bytes.len()),
        Err(_) => assert_eq!(Transport::find(Layer::Ip, bytes), None),
    }
    framed(bytes);
    let Some(found) = Transport::find(Layer::Ip, bytes) else { return };
    assert_eq!(checked, Ok(found.version));
    assert!(20 <= found.start && found.start < found.payload && found.payload <= found.end && found.end <= bytes.len());
    assert_eq!(usize::from(found.length()), found.end - found.start);
    let mut completed = bytes.to_vec();
    found.complete(&mut completed);
    let at = found.start + found.protocol.checksum_offset();
    assert!(completed[..at] == bytes[..at] && completed[at + 2..] == bytes[at + 2..]);
});

/// The same bytes as a frame: what is found is the packet in it, moved.
fn framed(bytes: &[u8]) {
    let Ok(found) = Layer::Ethernet.network(bytes) else { return assert!(bytes.len() < 14) };
    let Some(found) = found else { return assert_eq!(Transport::find(Layer::Ethernet, bytes), None) };
    assert_eq!(found.start, network(Layer::Ethernet, bytes));
    assert_eq!(ip::check(&bytes[found.start..]), Ok(found.version));
    let inside = Transport::find(Layer::Ip, &bytes[found.start..]);
    let moved = inside.map(|inside| Transport {
        network: found.start,
        start: found.start + inside.start,
        payload: found.start + inside.payload,
        end: found.start + inside.end,
        ..inside
    });
    let fits = moved.filter(|moved| moved.payload <= 65_535);
    assert_eq!(Transport::find(Layer::Ethernet, bytes), fits);
}

//! What floods are made of.

use tieline::keys::{PublicKey, SecretKey};
use tieline::protocol::constants::CONTROL_LANE;
use tieline::protocol::crypto::OpenKeys;
use tieline::protocol::wire::{self, Header, Kind};

use crate::common::transfer::SplitMix;

/// How many datagrams of a kind are made: enough that no cache of anybody's knows them all.
const VARIETY: u64 = 4_096;
/// Bytes of the datagrams whose size is free: the smallest that means anything, and what fills a packet.
pub const SMALL: usize = 64;
pub const LARGE: usize = 1_400;
pub const EMPTY_TRANSPORT: usize = 32;

/// Random bytes, `variety` times.
pub fn garbage(size: usize) -> Vec<Vec<u8>> {
    (0..VARIETY).map(|seed| random(seed, size)).collect()
}

/// Random bytes, each datagram with the first byte and, where it has one, the length of a message.
pub fn each_type() -> Vec<Vec<u8>> {
    let kinds = [Kind::Knock, Kind::Challenge, Kind::Init, Kind::Response, Kind::Data, Kind::Control];
    let kinds = kinds.into_iter().cycle().zip(0..VARIETY);
    kinds.map(|(kind, seed)| begin(kind as u8, random(seed, kind.cold_len().unwrap_or(SMALL)))).collect()
}

/// What claims to belong to the session with this index, with counters beyond those of any key but none that shows at a glance, and is
/// random else.
pub fn transport(kind: Kind, index: u32, size: usize) -> Vec<Vec<u8>> {
    let lane = if kind == Kind::Control { CONTROL_LANE } else { 0 };
    let with = |seed: u64| {
        let mut datagram = random(seed, size);
        let header = Header { kind, flags: 0, lane, path: 0, index, counter: 1 << 30 | seed }.encode();
        datagram[..header.len()].copy_from_slice(&header);
        datagram
    };
    (0..VARIETY).map(with).collect()
}

/// The MAC key of what `sender` sends, as it, the other end and whoever stole their secret can compute it.
pub fn open_key(sender: &SecretKey, receiver: &PublicKey) -> OpenKeys {
    OpenKeys::derive(sender, &sender.public().unwrap(), receiver).unwrap()
}

/// A Knock with a nonce that was not seen before, as one recorded this moment has it.
pub fn knock(keys: &OpenKeys, seed: u64) -> Vec<u8> {
    wire::knock(random(seed, 16).first_chunk().unwrap(), &keys.sending)
}

/// The index in a recorded datagram of a session.
pub fn index(payload: &[u8]) -> Option<u32> {
    Header::parse(payload).ok().map(|header| header.index)
}

/// Recorded datagrams of one kind.
pub fn recorded(payloads: &[Vec<u8>], kind: Kind) -> Vec<Vec<u8>> {
    payloads.iter().filter(|payload| Kind::of(payload) == Some(kind)).cloned().collect()
}

fn begin(with: u8, mut datagram: Vec<u8>) -> Vec<u8> {
    datagram[0] = with;
    datagram
}

/// `size` bytes that follow from the seed.
fn random(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = SplitMix(seed).take(size.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(size);
    bytes
}

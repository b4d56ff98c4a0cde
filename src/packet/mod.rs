//! Pure bytes: where frames and datagrams lie in memory, what their headers say, and how the interface's big packets
//! become datagrams and datagrams big packets again.
//!
//! Nothing here knows sockets, keys or clocks; sizes of headers and tags come in as arguments. Nothing allocates for a
//! packet, and nothing that can be in a packet makes it panic.
//!
//! ```text
//!   TUN ──▶ virtio::Header, frame ──▶ split: Plan ──▶ segments at their places ──▶ pieces, if need be ──▶ (seal)
//!   TUN ◀── virtio::Header, parts ◀── merge: Merger ◀── packets in order of arrival ◀── pieces ◀── (open)
//! ```

mod addresses;
mod batch;
pub mod checksum;
pub mod ip;
mod layer;
pub mod marks;
pub mod merge;
pub mod mss;
pub mod own_datagrams;
pub mod pieces;
pub mod returns;
pub mod source_filter;
pub mod split;
pub mod transport;
pub mod virtio;

#[cfg(test)]
pub(crate) mod testing;

pub use addresses::{Addresses, OwnAddresses};
pub use batch::{Batch, Layout};
pub use layer::{Layer, Network};

/// A number of two bytes in network order. The caller has checked that it is there.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A number of four bytes in network order. The caller has checked that it is there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

/// Writes a number of two bytes in network order. The caller has checked that there is room.
fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

//! The tieline protocol, version 1, without IO: no clock, no socket, no thread, no randomness of its own. Time and
//! entropy come in as arguments. `docs/PROTOCOL.md` is the text; this is its code.
//!
//! | part | what it is |
//! |---|---|
//! | [`wire`], [`control`] | the datagrams and the control messages by the byte |
//! | [`constants`] | every number, in one place |
//! | [`crypto`], [`handshake`] | the primitives (aws-lc-rs) and the Noise handshake (snow) |
//! | [`session`], [`halves`] | keys split into a sealing and an opening half, each owned by one packet loop |
//! | [`levels`] | counters that loops write and the engine reads |
//! | [`replay`] | the counters opened already |
//! | [`mtu`] | the search for the largest datagram that passes |
//! | [`link`] | the engine: one end of a link |
//!
//! Two ends in one process, in virtual time, are shown by `examples/in_memory.rs`.

mod admission;
mod agreement;
pub mod constants;
pub mod control;
pub mod crypto;
mod gate;
pub mod halves;
pub mod handshake;
mod hold;
mod keyring;
pub mod levels;
pub mod link;
mod liveness;
mod measure;
pub mod mtu;
mod paths;
mod rekey;
pub mod replay;
mod resolver;
mod same_key;
pub mod session;
mod slots;
mod time;
#[cfg(test)]
#[path = "../../tests/vectors/reader.rs"]
mod vectors;
mod ways;
pub mod wire;

pub use constants::{HEADER, TAG};
pub use halves::{EgressUpdate, IngressUpdate, Input, Notice, Path, Received, Receiver, Sender, Small, SocketId};
pub use keyring::Keys;
pub use link::{Event, Link, Output, Params, Transmit};
pub use time::Time;

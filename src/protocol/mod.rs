//! The protocol, sans-IO.
pub mod constants;
pub mod control;
pub mod crypto;
pub mod halves;
pub mod handshake;
pub mod levels;
mod replay;
mod resolver;
pub mod session;
mod time;
pub mod wire;

pub use halves::{EgressUpdate, IngressUpdate, Input, Notice, Path, Received, Receiver, Sender, Small, SocketId};
pub use time::Time;

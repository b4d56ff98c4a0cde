//! The protocol, sans-IO.
mod admission;
pub mod constants;
pub mod control;
pub mod crypto;
pub mod halves;
pub mod handshake;
pub mod levels;
pub mod link;
mod liveness;
mod measure;
mod paths;
mod rekey;
mod replay;
mod resolver;
pub mod session;
mod slots;
mod time;
pub mod wire;

pub use halves::{EgressUpdate, IngressUpdate, Input, Notice, Path, Received, Receiver, Sender, Small, SocketId};
pub use link::{Event, Link, Output, Params, Transmit};
pub use time::Time;

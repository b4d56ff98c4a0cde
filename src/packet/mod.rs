//! Pure bytes: where frames and datagrams lie in memory, and what an IP header must say.
//!
//! Nothing here knows sockets, keys or clocks; sizes of headers and tags come in as arguments.

mod batch;
pub mod ip;

pub use batch::{Batch, Layout};

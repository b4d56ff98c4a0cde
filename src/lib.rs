//! tieline: an encrypted virtual wire between exactly two ends, over the internet.
//!
//! The binary is the product; this library is the house it lives in, and can be lived in by others: a whole link by
//! [`control::run`], or the bare protocol by [`protocol::Link`] (see `examples/in_memory.rs`).
//!
//! # The rooms
//! Dependencies point one way: `cli → control → dataplane → { protocol | packet | sys } → keys`. The three in braces
//! never import each other.
//!
//! | room | what lives there |
//! |---|---|
//! | [`keys`] | three types of key that cannot be confused, and the manners of their files |
//! | [`config`] | one TOML file, checked: every error with line, column and what to do |
//! | [`protocol`] | the protocol without IO: bytes, handshake, sessions, liveness, the engine |
//! | [`packet`] | pure bytes: the batch buffer, IP headers |
//! | [`sys`] | the edge to the OS, the only room with `unsafe`: TUN, UDP, netlink, namespaces |
//! | [`dataplane`] | two std threads with one straight loop each: seal what leaves, open what comes |
//! | [`control`] | everything that waits, on one tokio thread: the driver of the engine, status, logs, signals |
//! | [`cli`] | one file a subcommand |
//!
//! `docs/ARCHITECTURE.md` says why the house is built so, `docs/PROTOCOL.md` gives the protocol by the byte.

pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod keys;
mod os_error;
pub mod packet;
pub mod protocol;
pub mod sys;
mod text;

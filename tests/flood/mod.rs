//! Floods on a running link: where they come from, what they are made of, how fast they are, and what the flooded end shows of
//! them. Shared by `tests/floods.rs` and `benches/floods`, whose `common` it leans on.

// Each of the two uses its part of it.
#![allow(dead_code)]

pub mod gauge;
pub mod junk;
pub mod opener;
pub mod outside;

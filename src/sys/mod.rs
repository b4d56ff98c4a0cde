//! The edge to the operating system: devices, sockets, descriptors, clock.
//!
//! The only room with `unsafe`, each block with the reason why it is sound. It knows no protocol and keeps no state
//! of the link; it makes the kernel's interfaces safe and their errors clear.
#![allow(unsafe_code)]

pub mod clock;
mod cmsg;
pub mod lookup;
pub mod memory;
pub mod netlink;
pub mod netns;
pub mod offloads;
pub mod priority;
pub mod process;
pub mod sandbox;
pub mod sysctl;
#[cfg(test)]
pub(crate) mod testing;
pub mod timer;
pub mod tun;
pub mod udp;
pub mod wake;

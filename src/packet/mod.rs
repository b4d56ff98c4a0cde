//! Room: packet.

//! Room: dataplane.

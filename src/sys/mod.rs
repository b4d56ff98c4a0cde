//! Room: sys.
#![allow(unsafe_code)]

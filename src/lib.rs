//! An encrypted virtual wire between exactly two ends.

pub mod config;
pub mod control;
pub mod dataplane;
pub mod keys;
pub mod packet;
pub mod protocol;
pub mod sys;

pub mod cli;

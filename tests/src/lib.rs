//! Tests of `/dev/ioasid` from outside: what a program sees, and nothing of the daemon's inside.
//!
//! [`harness`] starts a private daemon and runs programs against its node, [`bad_input`] is the
//! matrix of wrong arguments, [`raw`] makes the calls. The programs in C, which can be read as
//! examples, are in `c/`.
#![deny(unsafe_code)]

pub mod bad_input;
pub mod harness;
pub mod raw;

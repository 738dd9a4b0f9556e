//! Calls of `/dev/ioasid` as a program makes them: what `ioasidctl` and `ioasid-run` have in common.
//!
//! [`call`] makes a command and says why that touches no memory but what it was lent; [`errno`] has
//! the names of what comes back. Which descriptor is meant, and what to tell the user, is the
//! programs' own.

pub mod call;
pub mod errno;

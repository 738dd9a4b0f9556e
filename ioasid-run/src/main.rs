//! `ioasid-run`: runs programs that nobody changed on `/dev/ioasid`.
//!
//! `cli` is the command line. This process becomes the program (`launch`); before that it makes a second
//! one beside itself, which serves what a seccomp filter (`filter`, `notify`) puts before it
//! (`supervisor`). What an intercepted command means is `bridge`'s; `child` looks into the program,
//! `devices` knows the devices of the host and their placeholders, `marks` and `watch` know devices and
//! contexts again without keeping them, `node` makes commands of `/dev/ioasid`, `uevents` listens for
//! devices that come and go, `explain` tells. `sys` and `notify` hold all `unsafe`, but for one attribute
//! below.

#![deny(unsafe_code)]
#![cfg_attr(not(test), no_main)]

mod bridge;
mod child;
mod cli;
mod devices;
mod explain;
mod filter;
mod launch;
mod marks;
mod node;
mod notify;
mod supervisor;
mod sys;
mod uevents;
mod watch;

use std::ffi::{c_char, c_int};

use clap::Parser as _;
use rustix::fs::{Mode, OFlags, open};

/// The C library's entry. Rust's own would have SIGPIPE ignored and open descriptors 0 to 2 where they are
/// closed, and the program would begin with that. (The standard library finds the arguments by itself.)
#[allow(unsafe_code)]
// SAFETY: it is the entry of a program, with the signature that the C library calls.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    occupy_standard_descriptors();
    match cli::Cli::try_parse() {
        Ok(cli) => launch::run(&cli),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { 125 } else { 0 }
        }
    }
}

/// So that nothing which is opened here is taken for standard output. On exec they are closed again.
fn occupy_standard_descriptors() {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    while let Ok(null) = open("/dev/null", flags, Mode::empty()) {
        use std::os::fd::AsRawFd as _;
        if null.as_raw_fd() > 2 {
            break;
        }
        std::mem::forget(null);
    }
}

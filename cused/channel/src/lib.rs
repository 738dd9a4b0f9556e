//! Serve one character-device-like node from userspace.
//!
//! The node speaks the kernel's FUSE wire protocol, over either of two transports:
//!
//! - **CUSE** ([`Channel::cuse`]): a real character device /dev/NAME, made through /dev/cuse. Its
//!   ioctls are unrestricted: the kernel fetches and stores whatever data [`IoctlReply::Retry`] names.
//! - **FUSE file** ([`Channel::fuse_file`]): a FUSE mount whose root is a regular file. Needs no
//!   CUSE, and in a user and mount namespace no root. The kernel moves only the data that an ioctl
//!   command's size and direction bits describe.
//!
//! Behaviour is a [`Node`]; [`Server`] has it answer. Its handlers may block: see
//! [`ServeOptions`] for how many can, and [`Interrupt`] for when they should give up. No request
//! stays unanswered, because its caller could then not even be killed.
//!
//! A node can outlive the process that serves it: while somebody keeps two descriptors
//! ([`Server::keepsakes`]), a successor can go on where a process was killed ([`Server::succeed`]).
//!
//! # What this crate does not do
//!
//! - It does not read or write callers' memory, except as the kernel offers (RETRY).
//! - It serves no directories, no mmap and no file positions: one node, as a device has it.
//! - It sets no permissions on a CUSE node; that is for udev.
//! - It does not fork, daemonise or handle signals, but for the one that wakes its own threads
//!   ([`ServeOptions::wake_signal`]).
//!
//! # Example
//!
//! ```no_run
//! use std::sync::Arc;
//! use cuse_channel::*;
//!
//! struct Null;
//!
//! impl Node for Null {
//!     fn open(&self, _flags: u32, _context: &Context<'_>) -> Result<u64, Errno> {
//!         Ok(1)
//!     }
//!     fn release(&self, _handle: u64) {}
//!     fn ioctl(&self, _request: &Ioctl<'_>) -> IoctlReply {
//!         IoctlReply::error(Errno::NOTTY)
//!     }
//! }
//!
//! let channel = Channel::cuse(&CuseOptions::new("example"))?;
//! let server = Server::new(channel, ServeOptions::default())?;
//! let ended = server.serve(Arc::new(Null));
//! println!("{:?}", ended.reason);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod answer;
mod channel;
mod dispatch;
mod error;
mod file;
mod ledger;
mod life;
mod mount;
mod node;
mod parked;
mod pool;
mod request;
mod serve;
mod slots;
mod system;
mod wire;

pub use channel::{Channel, CuseOptions, FuseFileOptions};
pub use error::SetupError;
pub use life::EndReason;
pub use node::{
    Caller, Context, Interrupt, IoVec, Ioctl, IoctlReply, Node, PollHandle, Read, ReadReply,
    Remote, Responder, WayOut,
};
pub use parked::Parked;
/// The error numbers that a node answers with.
pub use rustix::io::Errno;
pub use serve::{
    Ended, Estate, Keepsakes, Notifier, ServeError, ServeOptions, Server, Stop, serve,
};

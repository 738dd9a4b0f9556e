//! The daemon behind `/dev/ioasid`, in parts.
//!
//! Data moves one way: bytes from the kernel (`cuse_channel`) come to the [`node`], which finds the
//! [`context`] of the open; [`commands`] reads the [`argument`] from the [`caller`] and asks the
//! engine (`ioasid`) for a plan; a [`backend`] carries it out, on callers' [`memory`].
//!
//! `unsafe` lives in `memory::window` (mmap), `memory::pin` (io_uring), `in_context::ptrace`,
//! `backend::vfio::{ioctl, trace}`, `faults::eventfd` and `system` alone.
#![deny(unsafe_code)]

pub mod argument;
pub mod backend;
pub mod caller;
pub mod commands;
pub mod config;
pub mod context;
pub mod failure;
pub mod faults;
pub mod in_context;
pub mod leader;
pub mod memory;
pub mod node;
pub mod pasids;
pub mod policy;
pub mod process;
pub mod stages;
pub mod system;
pub mod users;

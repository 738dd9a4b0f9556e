//! The daemon behind `/dev/ioasid`, in parts.
//!
//! Data moves one way: bytes from the kernel (`cuse_channel`) come to the [`node`], which finds the
//! [`context`] of the open; [`commands`] reads the [`argument`] from the [`caller`] and asks the
//! engine (`ioasid`) for a plan; a [`backend`] carries it out, on callers' [`memory`].
//!
//! `unsafe` lives in `memory::window` (mmap) and `backend::vfio::ioctl` alone.
#![deny(unsafe_code)]

pub mod argument;
pub mod backend;
pub mod caller;
pub mod commands;
pub mod config;
pub mod context;
pub mod failure;
pub mod memory;
pub mod node;

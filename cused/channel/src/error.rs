//! Why a channel could not be set up, in sentences for whoever runs the program.

use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

/// Why there is no channel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SetupError {
    /// There is no CUSE on this machine, or its module is not loaded.
    #[error("{0} does not exist: CUSE is not available, run: modprobe cuse")]
    NoCuse(PathBuf),
    /// There is no FUSE on this machine, or its module is not loaded.
    #[error("{0} does not exist: FUSE is not available, run: modprobe fuse")]
    NoFuse(PathBuf),
    /// The channel device may not be opened by this user.
    #[error("no permission to open {0}: run as root, or get read and write access to it")]
    DevicePermission(PathBuf),
    /// The channel device cannot be opened for another reason.
    #[error("cannot open {device}: {errno}")]
    Device {
        /// The device.
        device: PathBuf,
        /// What open(2) said.
        errno: Errno,
    },
    /// What was opened does not behave as /dev/cuse or /dev/fuse does.
    #[error("{0} is not the device that it should be")]
    NotTheDevice(PathBuf),

    /// The name of a CUSE device cannot be a file name in /dev.
    #[error("{name:?} cannot be the name of a device: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The numbers do not fit a device number.
    #[error("{major}:{minor} cannot be a device number: at most 4095:1048575")]
    BadNumber {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Another CUSE device has the name.
    #[error(
        "the name {0:?} is taken by another CUSE device: stop the program that serves it, or \
         choose another name"
    )]
    NameTaken(String),
    /// The path where the node would appear is taken by something else.
    #[error("{0} exists already and is not a CUSE device: remove it, or choose another name")]
    NodeExists(PathBuf),
    /// The kernel ended the connection instead of creating the device. It does not say why.
    #[error(
        "the kernel refused to create the device {name:?} with the number {major}:{minor} (0 \
         stands for any): the number may be taken, see /proc/devices and the kernel's log"
    )]
    Refused {
        /// The name asked for.
        name: String,
        /// The major number asked for.
        major: u32,
        /// The minor number asked for.
        minor: u32,
    },

    /// The place for a FUSE file is a directory.
    #[error("{0} is a directory: name a file")]
    Directory(PathBuf),
    /// Another channel's node is at that place.
    #[error("another program serves a node at {0}: stop it, or choose another place")]
    PlaceTaken(PathBuf),
    /// The place for a FUSE file cannot be used.
    #[error("cannot use {path} as the place of the node: {errno}")]
    Place {
        /// The place.
        path: PathBuf,
        /// What was said about it.
        errno: Errno,
    },
    /// The kernel does not let this process mount.
    #[error("not allowed to mount over {0}: run in unshare -Urm, or as root")]
    MountPermission(PathBuf),
    /// The kernel refuses this mount.
    #[error("cannot mount over {path}: {errno}")]
    Mount {
        /// The place.
        path: PathBuf,
        /// What mount(2) said.
        errno: Errno,
    },

    /// The protocol versions have nothing in common.
    #[error(
        "the kernel speaks FUSE protocol {major}.{minor}, this program needs 7.23 or later (7.11 \
         for CUSE)"
    )]
    Protocol {
        /// The kernel's major version.
        major: u32,
        /// The kernel's minor version.
        minor: u32,
    },
    /// The first exchange with the kernel failed.
    #[error("the first exchange with the kernel failed: {0}")]
    Handshake(Errno),
}

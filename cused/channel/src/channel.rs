//! Setting up a channel: opening the device, the first exchange with the kernel, the node's name.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::answer::Link;
use crate::error::SetupError;
use crate::file::FileAttributes;
use crate::ledger::{Identity, Kind, Owner};
use crate::mount::FileMount;
use crate::request::{Operation, Request};
use crate::wire;

/// Where the kernel shows CUSE devices.
const CUSE_CLASS: &str = "/sys/class/cuse";
/// Longest name of a device: what is left of 64 bytes in the kernel's table of character devices.
const LONGEST_NAME: usize = 63;

/// What a CUSE device is to be.
#[derive(Clone, Debug)]
pub struct CuseOptions {
    /// Name of the node in /dev.
    pub name: String,
    /// Major number; 0 for any that is free.
    pub major: u32,
    /// Minor number. With a dynamic major number it can still be chosen.
    pub minor: u32,
    /// The device to make it with, usually /dev/cuse.
    pub device: PathBuf,
}

impl CuseOptions {
    /// A device /dev/`name` with any number.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), major: 0, minor: 0, device: "/dev/cuse".into() }
    }
}

/// What a FUSE file is to be.
#[derive(Clone, Debug)]
pub struct FuseFileOptions {
    /// Where. A file that exists is covered and left as it is; one that does not is created, and
    /// removed at the end.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// Owner; by default the effective user.
    pub uid: Option<u32>,
    /// Group; by default the effective group.
    pub gid: Option<u32>,
    /// Whether users other than the one who mounts can use the node at all (within `mode`). In a
    /// user namespace of one's own it extends to that namespace only.
    pub allow_other: bool,
    /// The device to make it with, usually /dev/fuse.
    pub device: PathBuf,
}

impl FuseFileOptions {
    /// A node at `path` for its owner only: mode 0600.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o600,
            uid: None,
            gid: None,
            allow_other: true,
            device: "/dev/fuse".into(),
        }
    }
}

/// A node that the kernel knows, and its connection to this process. Nobody answers until
/// [`crate::Server::serve`]; whoever opens the node before waits. Dropping it ends the node.
#[derive(Debug)]
pub struct Channel {
    // First, so that a mount is taken away before the connection is closed.
    pub(crate) presence: Presence,
    pub(crate) link: Link,
    /// What stat(2) says; only a file has it here, a device has it in /dev.
    pub(crate) attributes: Option<FileAttributes>,
    pub(crate) node: PathBuf,
}

/// How the node is visible in the system.
#[derive(Debug)]
pub(crate) enum Presence {
    Cuse { name: String },
    FuseFile(FileMount),
}

impl Presence {
    /// Ends the connection, so that nobody waits for answers that will not come.
    pub(crate) fn abort(&mut self) {
        match self {
            Self::Cuse { name } => {
                let _ = std::fs::write(format!("{CUSE_CLASS}/{name}/abort"), "1");
            }
            Self::FuseFile(mount) => mount.unmount(),
        }
    }

    /// Leaves the node to a successor.
    pub(crate) fn leave(&mut self) {
        match self {
            Self::Cuse { .. } => {}
            Self::FuseFile(mount) => mount.leave(),
        }
    }
}

impl Channel {
    /// Creates the character device that `options` describe. Needs access to /dev/cuse, usually
    /// root's. The kernel creates the node with mode 0600 for root: what else is wanted is for udev.
    pub fn cuse(options: &CuseOptions) -> Result<Self, SetupError> {
        check_name(&options.name)?;
        if options.major > 0xfff || options.minor > 0xf_ffff {
            let (major, minor) = (options.major, options.minor);
            return Err(SetupError::BadNumber { major, minor });
        }
        let node = Path::new("/dev").join(&options.name);
        let class = Path::new(CUSE_CLASS).join(&options.name);
        let device = open_device(&options.device, SetupError::NoCuse)?;
        if class.exists() {
            return Err(SetupError::NameTaken(options.name.clone()));
        }
        if node.symlink_metadata().is_ok() {
            return Err(SetupError::NodeExists(node));
        }
        let link = Link::new(device);
        introduce_cuse(&link, options)?;
        // The kernel has created the device, or ended the connection, by the time that writing the
        // answer returns.
        if connection_is_over(&link) || !class.exists() {
            return Err(if class.exists() {
                SetupError::NameTaken(options.name.clone())
            } else {
                let CuseOptions { name, major, minor, .. } = options.clone();
                SetupError::Refused { name, major, minor }
            });
        }
        if !node.exists() {
            let number = std::fs::read_to_string(class.join("dev")).unwrap_or_default();
            let (node, number) = (node.display(), number.trim());
            log::warn!("{node} has not appeared: /dev is no devtmpfs? its number is {number}");
        }
        let presence = Presence::Cuse { name: options.name.clone() };
        Ok(Self { presence, link, attributes: None, node })
    }

    /// Mounts a file that behaves like a device, as `options` describe. Works as root, and for
    /// everyone in a user and mount namespace of their own (`unshare -Urm`).
    pub fn fuse_file(options: &FuseFileOptions) -> Result<Self, SetupError> {
        let device = open_device(&options.device, SetupError::NoFuse)?;
        let mount = FileMount::new(device.as_fd(), &options.path, options.allow_other)?;
        let link = Link::new(device);
        let uid = options.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let gid = options.gid.unwrap_or_else(|| rustix::process::getegid().as_raw());
        let attributes = FileAttributes::new(Owner { mode: options.mode, uid, gid });
        introduce_fuse(&link)?;
        let node = mount.path().to_owned();
        Ok(Self { presence: Presence::FuseFile(mount), link, attributes: Some(attributes), node })
    }

    /// That of a predecessor, whose connection is `device`.
    pub(crate) fn inherited(device: OwnedFd, identity: Identity) -> Self {
        let Identity { kind, node } = identity;
        let (presence, attributes) = match kind {
            Kind::Cuse => {
                let name = node.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (Presence::Cuse { name }, None)
            }
            Kind::File { owner, created } => {
                let mount = FileMount::inherited(node.clone(), created);
                (Presence::FuseFile(mount), Some(FileAttributes::new(owner)))
            }
        };
        Self { presence, link: Link::new(device), attributes, node }
    }

    /// Which node it is.
    pub(crate) fn identity(&self) -> Identity {
        let kind = match (&self.presence, &self.attributes) {
            (Presence::FuseFile(mount), Some(attributes)) => {
                Kind::File { owner: attributes.owner(), created: mount.created() }
            }
            _ => Kind::Cuse,
        };
        Identity { kind, node: self.node.clone() }
    }

    /// Path of the node: /dev/NAME, or the absolute path of the file.
    pub fn node(&self) -> &Path {
        &self.node
    }
}

fn check_name(name: &str) -> Result<(), SetupError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > LONGEST_NAME {
        "it is longer than 63 bytes"
    } else if name == "." || name == ".." {
        "it stands for a directory"
    } else if name.contains(['/', '!']) {
        "it contains a slash, or an exclamation mark, which the kernel turns into one"
    } else if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "it contains a blank, a line break or a control character"
    } else {
        return Ok(());
    };
    Err(SetupError::BadName { name: name.to_owned(), reason })
}

fn open_device(path: &Path, missing: fn(PathBuf) -> SetupError) -> Result<OwnedFd, SetupError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        // A static node in /dev whose module cannot be loaded says ENODEV or ENXIO.
        Errno::NOENT | Errno::NODEV | Errno::NXIO => missing(path.to_owned()),
        Errno::ACCESS | Errno::PERM => SetupError::DevicePermission(path.to_owned()),
        errno => SetupError::Device { device: path.to_owned(), errno },
    })
}

/// Reads the kernel's first request, lets `answer` answer it.
fn introduce(
    link: &Link,
    answer: impl FnOnce(u64, Operation<'_>) -> Result<(), SetupError>,
) -> Result<(), SetupError> {
    let mut buffer = vec![0; wire::MAX_REQUEST];
    let count = loop {
        match rustix::io::read(link.device(), &mut buffer[..]) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            result => break result.map_err(SetupError::Handshake)?,
        }
    };
    let request = Request::decode(&buffer[..count]);
    let request = request.map_err(|_| SetupError::Handshake(Errno::PROTO))?;
    answer(request.header.unique, request.operation)
}

fn introduce_cuse(link: &Link, options: &CuseOptions) -> Result<(), SetupError> {
    introduce(link, |unique, operation| {
        let Operation::CuseInit(init) = operation else {
            return Err(SetupError::NotTheDevice(options.device.clone()));
        };
        let minor = common_minor(init.major, init.minor, wire::CUSE_MINOR_OLDEST)?;
        let answer = wire::CuseInitOut {
            major: wire::MAJOR,
            minor,
            flags: wire::CUSE_UNRESTRICTED_IOCTL,
            max_read: wire::MAX_PAYLOAD as u32,
            max_write: wire::MAX_PAYLOAD as u32,
            dev_major: options.major,
            dev_minor: options.minor,
            ..Default::default()
        };
        let information = format!("DEVNAME={}\0", options.name);
        let sent = link.structure_and_data(unique, &answer, information.as_bytes());
        match sent {
            // What the kernel has against the name or number is not known here.
            Ok(()) | Err(Errno::NODEV | Errno::NOENT) => Ok(()),
            Err(errno) => Err(SetupError::Handshake(errno)),
        }
    })
}

fn introduce_fuse(link: &Link) -> Result<(), SetupError> {
    introduce(link, |unique, operation| {
        let Operation::Init(init) = operation else {
            return Err(SetupError::Handshake(Errno::PROTO));
        };
        let minor = common_minor(init.major, init.minor, wire::MINOR_OLDEST)?;
        let wanted = wire::INIT_ATOMIC_O_TRUNC
            | wire::INIT_BIG_WRITES
            | wire::INIT_ABORT_ERROR
            | wire::INIT_MAX_PAGES;
        let answer = wire::InitOut {
            major: wire::MAJOR,
            minor,
            max_readahead: 0,
            flags: wanted & init.flags,
            // RELEASE and the like are sent in the background; more of them at a time do no harm.
            max_background: 64,
            congestion_threshold: 48,
            max_write: wire::MAX_PAYLOAD as u32,
            time_gran: 1,
            max_pages: (wire::MAX_PAYLOAD / 4096) as u16,
            ..Default::default()
        };
        link.structure(unique, &answer).map_err(SetupError::Handshake)
    })
}

/// The protocol's minor version that both sides know.
fn common_minor(major: u32, minor: u32, oldest: u32) -> Result<u32, SetupError> {
    if major != wire::MAJOR || minor < oldest {
        return Err(SetupError::Protocol { major, minor });
    }
    Ok(minor.min(wire::MINOR))
}

fn connection_is_over(link: &Link) -> bool {
    let mut descriptors = [PollFd::from_borrowed_fd(link.device(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let result = poll(&mut descriptors, Some(&now));
    result.is_err() || descriptors[0].revents().contains(PollFlags::ERR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_be_in_dev_are_refused_with_a_reason() {
        let long = "x".repeat(64);
        for name in ["", ".", "..", "a/b", "a!b", "a\nb", " a", "a\0b", long.as_str()] {
            let error = Channel::cuse(&CuseOptions::new(name)).unwrap_err();
            assert!(matches!(error, SetupError::BadName { .. }), "{name:?}: {error}");
        }
        assert!(check_name("ioasid").is_ok());
        assert!(check_name(&long[1..]).is_ok());
    }

    #[test]
    fn a_missing_device_says_how_to_get_it() {
        let mut options = CuseOptions::new("x");
        options.device = "/nonexistent/cuse".into();
        let error = Channel::cuse(&options).unwrap_err();
        assert!(error.to_string().ends_with("run: modprobe cuse"), "{error}");
        let mut options = FuseFileOptions::new("/nonexistent/node");
        options.device = "/nonexistent/fuse".into();
        let error = Channel::fuse_file(&options).unwrap_err();
        assert!(error.to_string().ends_with("run: modprobe fuse"), "{error}");
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let mut options = CuseOptions::new("x");
        options.major = 4096;
        assert!(matches!(Channel::cuse(&options), Err(SetupError::BadNumber { .. })));
    }

    #[test]
    fn versions_without_anything_in_common_are_refused() {
        assert_eq!(common_minor(7, 45, wire::MINOR_OLDEST).unwrap(), wire::MINOR);
        assert_eq!(common_minor(7, 23, wire::MINOR_OLDEST).unwrap(), 23);
        assert!(common_minor(7, 22, wire::MINOR_OLDEST).is_err());
        assert!(common_minor(8, 0, wire::MINOR_OLDEST).is_err());
    }
}

//! The node: which file it is, and its commands that the supervisor makes on the program's descriptors
//! of it.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use ioasid_client::{call, errno};
use ioasid_uapi::{AttachDevice, BIND_VFIO_GROUP, BindDevice, DeviceInfo, NAME_LEN, cmd, ext};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;

use crate::bridge::Refusal;

/// Which file the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeFile {
    /// The character device of these numbers.
    Device(u32, u32),
    /// The file of a FUSE mount: its file system and inode.
    File(u32, u32, u64),
}

impl NodeFile {
    /// The file of a descriptor.
    ///
    /// # Errors
    /// Those of stat(2).
    pub(crate) fn of(file: impl AsFd) -> Result<Self, Errno> {
        // Not to be asked of whoever serves the file.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(file, "", flags, StatxFlags::TYPE | StatxFlags::INO)?;
        Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::CharacterDevice => Self::Device(stat.stx_rdev_major, stat.stx_rdev_minor),
            _ => Self::File(stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino),
        })
    }
}

/// A descriptor of the node, which the program has open.
#[derive(Debug)]
pub(crate) struct Node(OwnedFd);

/// A device that was bound.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    /// Its name.
    pub(crate) name: String,
    /// Its number in the context.
    pub(crate) number: u32,
    /// What it was bound with, which no other device of any context has.
    pub(crate) cookie: u64,
}

impl Node {
    /// Opens the node, to see that it is one.
    ///
    /// # Errors
    /// Why it is none, or cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let why = |errno| format!("{}: {}", path.display(), errno::why_not_opened(errno));
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let node = Self(file.map_err(why)?);
        match call::by_value(node.0.as_fd(), cmd::CHECK_EXTENSION, ext::CONTAINER) {
            Ok(1) => Ok(node),
            Ok(_) => Err(format!(
                "the daemon behind {} is older than ioasid-run, and has no IOASID_EXT_CONTAINER",
                path.display()
            )),
            Err(Errno::NOTTY | Errno::INVAL) => {
                Err(format!("{} is not /dev/ioasid, but something else", path.display()))
            }
            Err(errno) => Err(why(errno)),
        }
    }

    /// A descriptor that is known to be one of the node.
    pub(crate) fn over(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The open file.
    pub(crate) fn file(&self) -> &OwnedFd {
        &self.0
    }

    fn explained<T>(&self, result: Result<T, Errno>) -> Result<T, Refusal> {
        result.map_err(|errno| {
            let last = call::last_error(self.0.as_fd(), 0);
            let sentence = match last {
                Ok(last) if last.errno == errno => last.text,
                _ => errno::sentence(errno),
            };
            Refusal::new(errno, sentence)
        })
    }

    /// BIND_DEVICE of a device by its group.
    ///
    /// # Errors
    /// Its own.
    pub(crate) fn bind(&self, group: &OwnedFd, name: &str, cookie: u64) -> Result<Bound, Refusal> {
        let mut bind = BindDevice {
            argsz: BindDevice::ARGSZ,
            flags: BIND_VFIO_GROUP,
            fd: group.as_raw_fd(),
            cookie,
            ..BindDevice::default()
        };
        if name.len() >= NAME_LEN {
            return Err(Refusal::new(Errno::INVAL, format!("the name {name} is too long")));
        }
        bind.name[..name.len()].copy_from_slice(name.as_bytes());
        self.explained(call::structure(self.0.as_fd(), cmd::BIND_DEVICE, &mut bind))?;
        Ok(Bound { name: name.to_owned(), number: bind.device, cookie })
    }

    /// UNBIND_DEVICE.
    ///
    /// # Errors
    /// Its own.
    pub(crate) fn unbind(&self, device: &Bound) -> Result<(), Refusal> {
        let number = device.number.into();
        self.explained(call::by_value(self.0.as_fd(), cmd::UNBIND_DEVICE, number)).map(drop)
    }

    /// ATTACH_DEVICE or DETACH_DEVICE.
    ///
    /// # Errors
    /// Its own.
    pub(crate) fn attach(&self, command: u32, mut attach: AttachDevice) -> Result<(), Refusal> {
        self.explained(call::structure(self.0.as_fd(), command, &mut attach)).map(drop)
    }

    /// GET_DEVICE_INFO, if the device is bound to this context.
    pub(crate) fn device(&self, device: &Bound) -> Option<DeviceInfo> {
        let mut info =
            DeviceInfo { argsz: DeviceInfo::ARGSZ, device: device.number, ..DeviceInfo::default() };
        let found = call::structure(self.0.as_fd(), cmd::GET_DEVICE_INFO, &mut info);
        found.is_ok_and(|_| info.cookie == device.cookie).then_some(info)
    }
}

//! The devices that are bound to vfio drivers, as sysfs tells, and the placeholders that stand for them
//! in the program's /dev/vfio/devices.
//!
//! A placeholder is an empty file in a file system that only the program sees and that has no room, so
//! that nothing can be written there. Its owner and mode are those of the group's node: who may open the
//! one may open the other.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{
    Access, AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, access, fchmod, fchown, fstat, openat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

/// Where the nodes of groups are.
pub(crate) const DIRECTORY: &str = "/dev/vfio";

/// The directory below it in which the program finds the real one, for groups that come later.
pub(crate) const REAL: &str = ".host";

/// A device that is bound to a vfio driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its name; of a PCI device, the address.
    pub(crate) name: String,
    /// The number of its IOMMU group.
    pub(crate) group: u32,
}

/// All devices that are bound to vfio drivers, by group and name.
pub(crate) fn all() -> Vec<Device> {
    let groups = names(Path::new("/sys/kernel/iommu_groups"));
    let mut groups: Vec<u32> = groups.iter().filter_map(|name| name.parse().ok()).collect();
    groups.sort_unstable();
    groups.into_iter().flat_map(of_group).collect()
}

/// Those of one group.
pub(crate) fn of_group(group: u32) -> Vec<Device> {
    let directory = PathBuf::from(format!("/sys/kernel/iommu_groups/{group}/devices"));
    let mut names = names(&directory);
    names.sort();
    names.retain(|name| {
        let driver = fs::read_link(directory.join(name).join("driver")).unwrap_or_default();
        driver.file_name().is_some_and(|driver| driver.to_string_lossy().contains("vfio"))
    });
    names.into_iter().map(|name| Device { name, group }).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The path of a group's node.
pub(crate) fn node_of(group: u32) -> String {
    format!("{DIRECTORY}/{group}")
}

/// The number of the group, if a file is the node of one with an IOMMU.
pub(crate) fn group_of(file: &OwnedFd) -> Option<u32> {
    let stat = fstat(file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return None;
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let device = fs::canonicalize(format!("/sys/dev/char/{major}:{minor}")).ok()?;
    let class = fs::canonicalize(device.join("subsystem")).ok()?;
    let is_group = class.file_name()? == "vfio";
    device.file_name()?.to_str()?.parse().ok().filter(|_| is_group)
}

/// The placeholders of one program.
#[derive(Debug)]
pub(crate) struct Placeholders {
    directory: OwnedFd,
    /// The number of their file system.
    device: u64,
    /// Their names, by inode.
    names: Mutex<HashMap<u64, String>>,
    /// May give files away: then permissions are copied, else decided once for this user.
    is_privileged: bool,
    /// What takes all the room.
    _ballast: OwnedFd,
}

impl Placeholders {
    /// Placeholders in an empty directory of a file system of their own.
    ///
    /// # Errors
    /// Those of stat(2).
    pub(crate) fn new(
        directory: OwnedFd,
        ballast: OwnedFd,
        is_privileged: bool,
    ) -> Result<Self, Errno> {
        let device = fstat(&directory)?.st_dev;
        let names = Mutex::default();
        Ok(Self { directory, device, names, is_privileged, _ballast: ballast })
    }

    /// Makes one for each device that is there now, and takes away those of devices that are gone.
    ///
    /// # Errors
    /// The first that could not be made.
    pub(crate) fn refresh(&self) -> Result<(), Errno> {
        let devices = all();
        let mut names = self.names.lock();
        names.retain(|_, name| {
            let stays = devices.iter().any(|device| device.name == *name);
            if !stays {
                let _ = unlinkat(&self.directory, name.as_str(), AtFlags::empty());
            }
            stays
        });
        for device in devices {
            // The groups that were there at first have nodes in the program's view; others come as links.
            let link = format!("{REAL}/{}", device.group);
            let _ = symlinkat(link, &self.directory, format!("../{}", device.group));
            let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&self.directory, device.name.as_str(), flags, Mode::empty());
            // One that nobody may read is one that was made before.
            let file = match file {
                Err(Errno::ACCESS) => continue,
                file => file?,
            };
            self.grant(&file, &node_of(device.group))?;
            names.insert(fstat(&file)?.st_ino, device.name);
        }
        Ok(())
    }

    /// Gives a placeholder the permissions of a group's node.
    fn grant(&self, file: &OwnedFd, node: &str) -> Result<(), Errno> {
        if !self.is_privileged {
            let may_open = access(node, Access::READ_OK | Access::WRITE_OK).is_ok();
            return fchmod(file, Mode::from_raw_mode(if may_open { 0o600 } else { 0o400 }));
        }
        let Ok(metadata) = fs::metadata(node) else {
            return fchmod(file, Mode::from_raw_mode(0o600));
        };
        let (owner, group) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
        fchown(file, Some(owner), Some(group))?;
        let mut list = [0u8; 4096];
        const ACL: &str = "system.posix_acl_access";
        // With a list, the group's bits of the mode mean something else.
        let is_copied = match rustix::fs::getxattr(node, ACL, &mut list[..]) {
            Ok(len) => {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::fsetxattr(file, ACL, &list[..len], flags).is_ok()
            }
            Err(_) => true,
        };
        let mode = metadata.mode() & if is_copied { 0o666 } else { 0o600 };
        fchmod(file, Mode::from_raw_mode(mode))
    }

    /// The name of the device that a file is the placeholder of.
    pub(crate) fn name_of(&self, file: impl AsFd) -> Option<String> {
        let Stat { st_dev, st_ino, .. } = fstat(file).ok()?;
        self.names.lock().get(&st_ino).filter(|_| st_dev == self.device).cloned()
    }

    /// Opens the placeholder of a device.
    ///
    /// # Errors
    /// ENOENT when there is none.
    pub(crate) fn open(&self, name: &str) -> Result<OwnedFd, Errno> {
        openat(&self.directory, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    }
}

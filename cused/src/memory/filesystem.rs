//! Which file systems a caller's memory may come from.
//!
//! The daemon opens files that a caller has mapped. On a file system that is served by a program (FUSE)
//! or by another machine, opening could wait for ever at the caller's wish; so only file
//! systems that the kernel serves alone are accepted, and which one it is, is found out
//! without asking the file system itself.

use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::fd::AsFd;
use rustix::fs::{
    AtFlags, MemfdFlags, SealFlags, Stat, Statx, StatxFlags, fcntl_get_seals, fstat, memfd_create,
    statx,
};

use crate::caller::Tid;

/// File systems whose pages devices may use, and which open without waiting for anybody.
const ACCEPTED: [&str; 10] =
    ["tmpfs", "devtmpfs", "ramfs", "hugetlbfs", "ext2", "ext3", "ext4", "xfs", "f2fs", "jfs"];

/// A device number, as in maps and mountinfo: major, minor.
pub(super) type Device = (u32, u32);

/// The attributes of a file that the kernel knows without asking a file system's server.
pub fn attributes(file: impl AsFd) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    statx(file, c"", flags, StatxFlags::BASIC_STATS)
}

pub(super) fn device(attributes: &Statx) -> Device {
    (attributes.stx_dev_major, attributes.stx_dev_minor)
}

/// The attributes and the seals of a file that is memory and nothing else (a memfd, a file on tmpfs or
/// hugetlbfs); None for any other, and for one opened with O_PATH. Nobody is asked who could keep us
/// waiting, and it is the quickest way to know.
pub(super) fn memory_attributes(file: impl AsFd) -> Option<(Stat, SealFlags)> {
    // The kernel keeps seals for these alone (mm/memfd.c).
    let seals = fcntl_get_seals(&file).ok()?;
    Some((fstat(file).ok()?, seals))
}

/// Whether an open file's memory comes in huge pages. Only for files that [`accept`] let pass: the
/// question goes to the file system.
pub(super) fn is_hugetlb(file: impl AsFd) -> bool {
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    rustix::fs::fstatfs(file).is_ok_and(|statfs| statfs.f_type as u64 == HUGETLBFS_MAGIC)
}

/// Whether an open file's pages are memory and nothing else. Only for files that [`accept`] let pass.
pub(super) fn is_memory(file: impl AsFd) -> bool {
    const MAGICS: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6]; // tmpfs, ramfs, hugetlbfs
    rustix::fs::fstatfs(file).is_ok_and(|statfs| MAGICS.contains(&(statfs.f_type as u64)))
}

/// The name of the file system with this device number, as the caller's mount namespace has it;
/// None when it is not mounted there.
fn kind(tid: Tid, device: Device) -> io::Result<Option<String>> {
    if kernel_internal().contains(&device) {
        return Ok(Some("tmpfs".into()));
    }
    let mounts = fs::read(format!("/proc/{}/mountinfo", tid.get()))?;
    Ok(find(&String::from_utf8_lossy(&mounts), device).map(str::to_owned))
}

/// Whether memory may come from the file system with this device number.
///
/// # Errors
/// The name of a file system that is not accepted, or that it cannot be found out.
pub(super) fn accept(tid: Tid, device: Device) -> Result<(), String> {
    match kind(tid, device) {
        Ok(Some(kind)) if ACCEPTED.contains(&kind.as_str()) => Ok(()),
        Ok(Some(kind)) => Err(format!("a {kind} file system")),
        Ok(None) => Err(format!("an unknown file system ({}:{})", device.0, device.1)),
        Err(error) => Err(format!("a file system that cannot be determined ({error})")),
    }
}

/// The file systems that are mounted nowhere: those of memfd and of shared anonymous memory, with
/// pages of every size that this machine has. Their numbers last as long as the kernel.
fn kernel_internal() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let sizes = [
            MemfdFlags::HUGE_2MB,
            MemfdFlags::HUGE_1GB,
            MemfdFlags::HUGE_64KB,
            MemfdFlags::HUGE_32MB,
            MemfdFlags::HUGE_512MB,
        ];
        let huge = sizes.map(|size| MemfdFlags::HUGETLB | size);
        std::iter::once(MemfdFlags::empty())
            .chain(huge)
            .filter_map(|flags| memfd_create(c"ioasid-probe", flags | MemfdFlags::CLOEXEC).ok())
            .filter_map(|file| attributes(file).ok())
            .map(|attributes| device(&attributes))
            .collect()
    })
}

/// The file system type of a device in the text of mountinfo:
/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn find(mountinfo: &str, device: Device) -> Option<&str> {
    let number = format!("{}:{}", device.0, device.1);
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let same = mount.split(' ').nth(2) == Some(number.as_str());
        same.then(|| filesystem.split(' ').next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /home/x\\040-\\040tmpfs rw shared:2 - fuse.sshfs host: rw,user_id=0
";

    #[test]
    fn the_type_is_found_by_device_number() {
        assert_eq!(find(MOUNTINFO, (254, 0)), Some("ext4"));
        assert_eq!(find(MOUNTINFO, (0, 21)), Some("fuse.sshfs"));
        assert_eq!(find(MOUNTINFO, (0, 2)), None);
    }

    #[test]
    fn a_memfd_is_accepted_and_procfs_is_not() {
        let tid = Tid::new(std::process::id()).expect("a process");
        let memfd = memfd_create(c"x", MemfdFlags::CLOEXEC).expect("memfd");
        let device_of = |file| device(&attributes(file).expect("attributes"));
        assert_eq!(accept(tid, device_of(memfd)), Ok(()));
        let procfs = fs::File::open("/proc/self/maps").expect("procfs");
        assert_eq!(accept(tid, device_of(procfs.into())), Err("a proc file system".into()));
    }
}

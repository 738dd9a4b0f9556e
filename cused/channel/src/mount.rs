//! A FUSE mount over one file: making it, recognising it, taking it away.
//!
//! Owns the mount point. An existing file is left as it is below the mount; one that had to be
//! created is removed again, if it is still the same empty file. What a process that was killed has
//! left behind, a mount that nobody answers for, is cleared away by the next.

use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::SetupError;
use crate::wire;

/// Root of the files that control FUSE connections, if fusectl is mounted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What our mounts call their source, by which they are recognised.
const SOURCE: &str = "cuse-channel";
/// Files created as mount points have no permissions, by which they are recognised.
const CREATED_MODE: Mode = Mode::empty();

/// A mounted FUSE file; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct FileMount {
    place: Place,
    /// Which mount of the mount table is ours. `None` if the table cannot be read.
    identity: Option<Identity>,
    mounted: bool,
}

/// What tells our mount from others at the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    mount_id: u64,
    /// Minor number of the file system's device, which is also the name of its connection.
    connection: u32,
    /// Made by this crate, in this process or another.
    is_channel: bool,
}

impl FileMount {
    /// Mounts the connection of `device` over `path`.
    pub(crate) fn new(
        device: BorrowedFd<'_>,
        path: &Path,
        allow_other: bool,
    ) -> Result<Self, SetupError> {
        let place = Place::prepare(path)?;
        let options = format!(
            "fd={},rootmode={:o},user_id={},group_id={},default_permissions{},max_read={}",
            device.as_raw_fd(),
            wire::S_IFREG,
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
            if allow_other { ",allow_other" } else { "" },
            wire::MAX_PAYLOAD,
        );
        let options = CString::new(options).map_err(|_| SetupError::Handshake(Errno::INVAL))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount(SOURCE, &place.path, "fuse", flags, options.as_c_str()).map_err(
            |errno| match errno {
                Errno::PERM | Errno::ACCESS => SetupError::MountPermission(place.path.clone()),
                errno => SetupError::Mount { path: place.path.clone(), errno },
            },
        )?;
        let identity = topmost_mount(&place.path);
        Ok(Self { place, identity, mounted: true })
    }

    /// That of a predecessor, which mounted it at `path`, and had created that file if it says so.
    pub(crate) fn inherited(path: PathBuf, created: Option<(u64, u64)>) -> Self {
        let identity = topmost_mount(&path).filter(|mount| mount.is_channel);
        Self { mounted: identity.is_some(), place: Place { path, created }, identity }
    }

    /// Device and inode of the file that was created to be mounted over.
    pub(crate) fn created(&self) -> Option<(u64, u64)> {
        self.place.created
    }

    /// Leaves the mount to a successor.
    pub(crate) fn leave(&mut self) {
        self.mounted = false;
        self.place.created = None;
    }

    /// Absolute path of the node.
    pub(crate) fn path(&self) -> &Path {
        &self.place.path
    }

    /// Takes the mount away at once, even if it is in use, and ends the connection: whoever waits
    /// for an answer gets ECONNABORTED. Ending it needs root; without, it ends when the descriptor
    /// of the channel is closed.
    pub(crate) fn unmount(&mut self) {
        if !std::mem::take(&mut self.mounted) {
            return;
        }
        self.abort();
        // Someone else may have unmounted ours, or mounted over it; neither is ours to touch.
        if self.identity.is_some() && topmost_mount(&self.place.path) != self.identity {
            return;
        }
        let forced = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let gently = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if rustix::mount::unmount(&self.place.path, forced).is_err()
            && let Err(errno) = rustix::mount::unmount(&self.place.path, gently)
        {
            log::warn!("cannot unmount {}: {errno}", self.place.path.display());
        }
    }

    /// Ends the connection through fusectl, if that is mounted and ours to write. It works when
    /// ours is no longer the topmost mount, too.
    fn abort(&self) {
        if let Some(identity) = self.identity {
            let file = format!("{CONNECTIONS}/{}/abort", identity.connection);
            let _ = std::fs::write(file, "1");
        }
    }
}

impl Drop for FileMount {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// The file that is mounted over.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// Device and inode of the file, if it was created here.
    created: Option<(u64, u64)>,
}

impl Place {
    fn prepare(path: &Path) -> Result<Self, SetupError> {
        let refused = |errno| SetupError::Place { path: path.to_owned(), errno };
        match path.canonicalize() {
            Ok(path) => {
                clear_dead_mounts(&path)?;
                let stat = rustix::fs::stat(&path).map_err(refused)?;
                let kind = FileType::from_raw_mode(stat.st_mode);
                if kind == FileType::Directory {
                    return Err(SetupError::Directory(path));
                }
                // Left behind by a process that was killed.
                let ours = kind == FileType::RegularFile
                    && stat.st_size == 0
                    && Mode::from_raw_mode(stat.st_mode) == CREATED_MODE
                    && stat.st_uid == rustix::process::geteuid().as_raw();
                Ok(Self { path, created: ours.then_some((stat.st_dev, stat.st_ino)) })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::create(path).map_err(refused)
            }
            Err(error) => Err(refused(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
        }
    }

    fn create(path: &Path) -> Result<Self, Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = parent.canonicalize();
        let parent = parent.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let path = parent.join(name);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, CREATED_MODE)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self { path, created: Some((stat.st_dev, stat.st_ino)) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(created) = self.created else { return };
        // As an O_PATH descriptor, so that a FUSE file that someone mounted here is not opened.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if topmost_mount(&self.path).is_some() {
            return;
        }
        let Ok(file) = rustix::fs::open(&self.path, flags, Mode::empty()) else { return };
        if let Ok(stat) = rustix::fs::fstat(&file)
            && (stat.st_dev, stat.st_ino) == created
            && stat.st_size == 0
        {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// Unmounts what earlier processes have mounted at `path` and no longer answer for.
fn clear_dead_mounts(path: &Path) -> Result<(), SetupError> {
    while topmost_mount(path).is_some_and(|mount| mount.is_channel) {
        // Asks whoever serves it: what the kernel remembers outlives them.
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MODE) {
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {}
            _ => return Err(SetupError::PlaceTaken(path.to_owned())),
        }
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let unmounted = rustix::mount::unmount(path, flags);
        unmounted.map_err(|_| SetupError::PlaceTaken(path.to_owned()))?;
        log::info!("unmounted {}, which nobody served any longer", path.display());
    }
    Ok(())
}

/// The mount that a lookup of `path` ends in, if something is mounted right there.
fn topmost_mount(path: &Path) -> Option<Identity> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    find_mount(&table, path)
}

/// Finds the last mount at `path` in a table of the form that proc(5) gives for mountinfo:
/// mount id, parent's id, device's major:minor, root, mount point, ..., `-`, type, source, ...
fn find_mount(table: &[u8], path: &Path) -> Option<Identity> {
    let lines = table.split(|&byte| byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let number = |bytes| std::str::from_utf8(bytes).ok();
            let mount_id = number(fields.next()?)?.parse().ok()?;
            let device = number(fields.nth(1)?)?;
            let (_, minor) = device.split_once(':')?;
            let point = unescape(fields.nth(1)?);
            let kind = fields.by_ref().skip_while(|&field| field != b"-").nth(1)?;
            let is_channel = kind == b"fuse" && fields.next()? == SOURCE.as_bytes();
            let identity = Identity { mount_id, connection: minor.parse().ok()?, is_channel };
            (Path::new(&point) == path).then_some(identity)
        })
        .next_back()
}

/// Undoes the table's octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escape = tail.get(..3).filter(|_| *first == b'\\');
        let code = escape.and_then(|digits| {
            digits
                .iter()
                .try_fold(0u32, |code, digit| Some(code * 8 + char::from(*digit).to_digit(8)?))
        });
        match code.and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => plain.push(*first),
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
40 22 0:35 / /run/a\\040b rw - fuse cuse-channel rw\n\
41 22 0:36 / /run/x rw - fuse other rw\n\
42 22 0:37 / /run/x rw - fuse cuse-channel rw\n";

    #[test]
    fn the_last_mount_at_a_path_counts() {
        let identity = find_mount(TABLE, Path::new("/run/x"));
        assert_eq!(identity, Some(Identity { mount_id: 42, connection: 37, is_channel: true }));
    }

    #[test]
    fn blanks_in_a_path_are_escaped() {
        let identity = find_mount(TABLE, Path::new("/run/a b"));
        assert_eq!(identity, Some(Identity { mount_id: 40, connection: 35, is_channel: true }));
    }

    #[test]
    fn other_mounts_are_not_channels() {
        let other = TABLE.strip_suffix(b"cuse-channel rw\n").unwrap();
        let identity = find_mount(&[other, b"sshfs rw\n"].concat(), Path::new("/run/x")).unwrap();
        assert_eq!((identity.mount_id, identity.is_channel), (42, false));
    }

    #[test]
    fn a_path_below_a_mount_is_not_a_mount() {
        assert_eq!(find_mount(TABLE, Path::new("/run")), None);
        assert_eq!(find_mount(b"nonsense\n\n1 2 3\n", Path::new("/run")), None);
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape(b"a\\134b\\9\\777"), "a\\b\\9\\777");
    }
}

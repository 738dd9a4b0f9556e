//! The mirror route: finding the files behind a caller's shared memory, and opening them with no more
//! right than the caller has.
//!
//! `/proc/PID/map_files` opens the file behind a mapping, and for root it opens it for writing
//! also where the caller may only read. A caller can moreover exchange a mapping between any
//! two of our steps. The order of steps that makes this sound:
//!
//! 1. open the link with O_PATH: that names one file, and gives no access to it
//! 2. check that it is a regular file, on a file system that the kernel serves alone
//! 3. only now read maps, and require that the caller has this very file mapped shared, with the
//!    rights that are asked for. It has it *after* the file was named, so it holds those rights
//!    on the file that we hold
//! 4. open that named file, through /proc/self/fd, for access
//!
//! Device and inode number alone do not tell a memfd from a System V segment; so step 3 also compares
//! the paths.
//!
//! An unprivileged daemon (an ordinary user's, in a user namespace) may not use map_files. It
//! looks for a descriptor of the file among the caller's instead, which carries its rights itself.

use std::fs::File;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, Stat, fcntl_getfl, fstat, open, readlink};
use rustix::io::Errno;

use super::files::OpenFile;
use super::maps::Vma;
use super::{FilePiece, Rights, filesystem};
use crate::caller::Tid;
use crate::failure::Failure;

/// How many of a caller's descriptors are looked at for the file behind a mapping.
const DESCRIPTORS_SEARCHED: usize = 4096;

/// The file behind a mapping, before it is opened for access.
pub(super) enum Named {
    /// An O_PATH descriptor from map_files.
    Path(OwnedFd),
    /// A duplicate of a descriptor of the caller.
    Descriptor(OwnedFd),
}

impl Named {
    pub(super) fn open(self, vma: &Vma, rights: Rights) -> Result<File, Failure> {
        match self {
            Self::Path(fd) => reopen(&fd, vma, rights),
            Self::Descriptor(fd) => {
                let flags = fcntl_getfl(&fd).map_err(|error| refused(vma, error))?;
                match [rights.open_flags(), OFlags::RDWR].contains(&(flags & OFlags::RWMODE)) {
                    true => Ok(fd.into()),
                    false => Err(refused(vma, Errno::PERM)),
                }
            }
        }
    }
}

fn reopen(fd: &OwnedFd, vma: &Vma, rights: Rights) -> Result<File, Failure> {
    // NONBLOCK: a lease that the caller took on the file must not make us wait.
    let flags = rights.open_flags() | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let fd = open(path, flags, Mode::empty()).map_err(|error| refused(vma, error))?;
    Ok(fd.into())
}

/// Steps 1 and 2, and the comparison of step 3 for what the list of maps said *before*: the caller
/// requires the list to be unchanged afterwards.
pub(super) fn name(tid: Tid, vma: &Vma) -> Result<Named, Failure> {
    let link = format!("/proc/{}/map_files/{}", tid.get(), vma.file_name());
    match open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => {
            check_file(tid, vma, &fd)?;
            Ok(Named::Path(fd))
        }
        Err(Errno::PERM | Errno::ACCESS) => descriptor_of(tid, vma),
        Err(_) => Err(changed(vma.range.start, vma.range.end - vma.range.start)),
    }
}

fn check_file(tid: Tid, vma: &Vma, fd: &OwnedFd) -> Result<(), Failure> {
    let attributes = filesystem::attributes(fd).map_err(|error| refused(vma, error))?;
    if FileType::from_raw_mode(attributes.stx_mode.into()) != FileType::RegularFile {
        return Err(Failure::unsupported(format!(
            "{} is memory of a device; of devices, only the registers of one that is bound to \
             this open of the node can be mapped",
            vma.describe()
        )));
    }
    let device = filesystem::device(&attributes);
    filesystem::accept(tid, device).map_err(|what| {
        Failure::unsupported(format!(
            "{} is a file on {what}; devices can use memory (memfd, shared anonymous, hugetlb, \
             /dev/shm) and files on the kernel's own disk file systems",
            vma.describe()
        ))
    })?;
    match same_file(vma, fd, device, attributes.stx_ino) {
        true => Ok(()),
        false => Err(changed(vma.range.start, vma.range.end - vma.range.start)),
    }
}

/// Whether an open file is the one that a line of maps names.
fn same_file(vma: &Vma, fd: &OwnedFd, device: filesystem::Device, inode: u64) -> bool {
    if (device, inode) != (vma.device, vma.inode) {
        return false;
    }
    let path = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
    path.is_ok_and(|path| escaped(path.as_bytes()) == vma.path)
}

/// A path as maps prints it.
fn escaped(path: &[u8]) -> Vec<u8> {
    path.split(|&byte| byte == b'\n').collect::<Vec<_>>().join(&b"\\012"[..])
}

fn descriptor_of(tid: Tid, vma: &Vma) -> Result<Named, Failure> {
    let directory = format!("/proc/{}/fd", tid.get());
    let entries = std::fs::read_dir(directory).map_err(unlisted)?;
    let mut read_only = None;
    for entry in entries.take(DESCRIPTORS_SEARCHED).flatten() {
        let name = entry.file_name();
        let same_path = std::fs::read_link(entry.path())
            .is_ok_and(|path| escaped(path.as_os_str().as_bytes()) == vma.path);
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| same_path) else { continue };
        let Ok(fd) = tid.descriptor(number) else { continue };
        if check_file(tid, vma, &fd).is_err() {
            continue;
        }
        let flags = fcntl_getfl(&fd).unwrap_or(OFlags::PATH);
        if flags.contains(OFlags::PATH) {
            continue;
        }
        match flags & OFlags::RWMODE {
            OFlags::RDWR => return Ok(Named::Descriptor(fd)),
            OFlags::RDONLY => read_only = Some(fd),
            _ => {}
        }
    }
    read_only.map(Named::Descriptor).ok_or_else(|| {
        Failure::unsupported(format!(
            "{}: this daemon runs without privilege and finds memory only through a descriptor \
             that the program has open; keep the memfd or file open while mapping it",
            vma.describe()
        ))
    })
}

/// The piece of a file that a part of a mapping shows.
pub(super) fn piece(
    vma: &Vma,
    Range { start: from, end: to }: Range<u64>,
    rights: Rights,
    file: File,
) -> Result<FilePiece, Failure> {
    let what = || format!("the {}", vma.describe());
    let offset = vma.offset + (from - vma.range.start);
    let attributes = fstat(&file).map_err(|error| refuse(&what(), error))?;
    let file = Arc::new(OpenFile::new(file, &attributes, rights));
    file_piece(file, &attributes, offset..offset + (to - from), what)
}

/// A piece of a file of an accepted file system, of which `what` is said in messages.
pub(super) fn file_piece(
    file: Arc<OpenFile>,
    attributes: &Stat,
    range: Range<u64>,
    what: impl Fn() -> String,
) -> Result<FilePiece, Failure> {
    let Range { start: offset, end } = range;
    let size = attributes.st_size as u64;
    if end > size.checked_next_multiple_of(file.alignment).unwrap_or(u64::MAX) {
        return Err(Failure::new(
            Errno::FAULT,
            format!("part of {} lies behind the end of its file", what()),
        ));
    }
    // Opening is not everything: a sealed memfd opens for writing and refuses to be mapped so.
    let window = file.window(range, size).map_err(|error| refuse(&what(), error))?;
    Ok(FilePiece { file, offset, len: end - offset, window: Mutex::new(Some(window)) })
}

pub(super) fn unlisted(error: std::io::Error) -> Failure {
    Failure::new(
        Errno::from_io_error(&error).unwrap_or(Errno::IO),
        format!("the program's memory map cannot be read: {error}"),
    )
}

fn refused(vma: &Vma, error: Errno) -> Failure {
    refuse(&format!("the file behind the {}", vma.describe()), error)
}

fn refuse(what: &str, error: Errno) -> Failure {
    let errno = match error {
        Errno::PERM | Errno::ACCESS | Errno::ROFS | Errno::TXTBSY => Errno::PERM,
        Errno::NOMEM | Errno::MFILE | Errno::NFILE => Errno::NOMEM,
        _ => Errno::FAULT,
    };
    let why = match error {
        Errno::ACCESS => "it was opened with fewer rights".to_owned(),
        error => error.to_string(),
    };
    Failure::new(errno, format!("{what} cannot be opened or mapped for this: {why}"))
}

pub(super) fn changed(vaddr: u64, size: u64) -> Failure {
    Failure::new(
        Errno::FAULT,
        format!(
            "the memory at {vaddr:#x} (+{size:#x}) of the program changed while it was being mapped"
        ),
    )
}

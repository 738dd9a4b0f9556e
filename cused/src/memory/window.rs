//! An mmap of a file, or of a piece of it, in the daemon's own address space: a passing one, or a
//! lasting one for registered memory, for device registers and for files of which more will be mapped.
//!
//! The only module that maps memory, and so the only one of `memory` with `unsafe`. A window gives
//! out its address as a number, for the kernel to pin; Rust never sees its bytes as memory.
//! Copies go through process_vm_readv and process_vm_writev on ourselves, which report a page
//! that is gone (a file cut short) as EFAULT where a load or store would be a SIGBUS.
#![allow(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Rights;

/// How many windows there are. The kernel permits a process 65530 mappings, by default.
static WINDOWS: AtomicUsize = AtomicUsize::new(0);
/// How many bytes of the daemon's address space they take.
static SPACE: AtomicUsize = AtomicUsize::new(0);

/// A mapped piece of a file.
#[derive(Debug)]
pub struct Window {
    base: NonNull<std::ffi::c_void>,
    mapped: usize,
    /// Where it begins in the file, bytes.
    begin: u64,
}

// SAFETY: the address is of memory that belongs to the process, not to a thread; nothing but the
// kernel goes there.
unsafe impl Send for Window {}
// SAFETY: as above; there is no access that two threads could make at once.
unsafe impl Sync for Window {}

impl Window {
    /// Maps a range of `file`, of which it shows whole pages. `alignment` is the page size of the file.
    pub(super) fn new(
        file: impl AsFd,
        range: Range<u64>,
        alignment: u64,
        rights: Rights,
    ) -> Result<Self, Errno> {
        // What is small is about to be pinned whole: cheaper here than page by page then, but for
        // a single page.
        const SMALL: u64 = 64 << 10;
        let small = (alignment + 1..=SMALL).contains(&(range.end - range.start));
        let populate = if small { MapFlags::POPULATE } else { MapFlags::empty() };
        Self::with(file, range, alignment, rights, populate)
    }

    /// Maps all of a file of `size` bytes, unless that is too much for what nobody has asked for. It
    /// costs addresses, and no memory.
    pub(super) fn whole(
        file: impl AsFd,
        size: u64,
        alignment: u64,
        rights: Rights,
    ) -> Result<Self, Errno> {
        // Files with nothing in them can be long. An address space is 128 TiB.
        const FILE: u64 = 1 << 40;
        const ALL: u64 = 16 << 40;
        let space = SPACE.load(Ordering::Relaxed) as u64;
        if size > FILE || space.saturating_add(size) > ALL || !Self::may_stay() {
            return Err(Errno::NOMEM);
        }
        // Without NORESERVE, hugetlbfs sets aside huge pages for all that the file does not have yet.
        Self::with(file, 0..size, alignment, rights, MapFlags::NORESERVE)
    }

    fn with(
        file: impl AsFd,
        range: Range<u64>,
        alignment: u64,
        rights: Rights,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        let begin = range.start - range.start % alignment;
        let end = range.end.checked_next_multiple_of(alignment);
        let mapped = end.and_then(|end| usize::try_from(end - begin).ok()).ok_or(Errno::NOMEM)?;
        let prot = match rights {
            Rights::ReadOnly => ProtFlags::READ,
            Rights::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | flags;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. Its
        // bytes change under other programs' hands; nothing makes a Rust reference to them.
        let base = unsafe { mmap(ptr::null_mut(), mapped, prot, flags, file, begin)? };
        let base = NonNull::new(base).ok_or(Errno::NOMEM)?;
        WINDOWS.fetch_add(1, Ordering::Relaxed);
        SPACE.fetch_add(mapped, Ordering::Relaxed);
        Ok(Self { base, mapped, begin })
    }

    /// Whether there are few enough windows for some to stay that could go.
    pub(super) fn may_stay() -> bool {
        const FEW: usize = 1024;
        WINDOWS.load(Ordering::Relaxed) <= FEW
    }

    /// Whether it shows all of a range of its file.
    pub(super) fn shows(&self, range: &Range<u64>) -> bool {
        self.begin <= range.start && range.end - self.begin <= self.mapped as u64
    }

    /// `len` bytes, from `offset` of the file on.
    ///
    /// # Panics
    /// If it does not show them.
    pub(super) fn view(&self, offset: u64, len: u64) -> View<'_> {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| self.shows(&(offset..end))), "no such bytes");
        View { window: self, start: (offset - self.begin) as usize, len: len as usize }
    }
}

/// A part of a mapped piece.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    window: &'a Window,
    /// Where it begins in the window.
    start: usize,
    len: usize,
}

impl View<'_> {
    /// The address of the part in the daemon.
    pub fn address(&self) -> u64 {
        (self.window.base.as_ptr().addr() + self.start) as u64
    }

    /// The length of the part, bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// True for a part of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies from the start of the part into `buffer`, which is no longer than the part.
    ///
    /// # Errors
    /// EFAULT when the file has no such bytes any more.
    pub fn read(&self, buffer: &mut [u8]) -> Result<(), Errno> {
        let (remote, wanted) = self.remote(buffer.len())?;
        let mut local = [IoSliceMut::new(buffer)];
        whole(process_vm_readv(Pid::this(), &mut local, &remote), wanted)
    }

    /// Copies `bytes`, no longer than the part, to its start.
    ///
    /// # Errors
    /// EFAULT when the file has no such bytes any more, or the window is read-only.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        let (remote, wanted) = self.remote(bytes.len())?;
        whole(process_vm_writev(Pid::this(), &[IoSlice::new(bytes)], &remote), wanted)
    }

    fn remote(&self, len: usize) -> Result<([RemoteIoVec; 1], usize), Errno> {
        match len <= self.len {
            true => Ok(([RemoteIoVec { base: self.address() as usize, len }], len)),
            false => Err(Errno::FAULT),
        }
    }
}

fn whole(copied: nix::Result<usize>, wanted: usize) -> Result<(), Errno> {
    match copied {
        Ok(copied) if copied == wanted => Ok(()),
        Ok(_) => Err(Errno::FAULT),
        Err(error) => Err(Errno::from_raw_os_error(error as i32)),
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `new`, is owned by this value alone, and no
        // reference into it exists. Pages that hardware has pinned stay pinned without it.
        let result = unsafe { munmap(self.base.as_ptr(), self.mapped) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
        WINDOWS.fetch_sub(1, Ordering::Relaxed);
        SPACE.fetch_sub(self.mapped, Ordering::Relaxed);
    }
}

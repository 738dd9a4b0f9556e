//! Where requests are read into: one region of memory, one slot for each thread.
//!
//! Owns the only memory of this crate that two threads look at while the kernel writes to it. A
//! thread claims a slot for itself and reads requests straight into it. The header's `unique` lies
//! at a fixed place of the slot and is zeroed just before each read(2), so that at any moment the
//! region says which requests have been read and not been followed by another read: a FUSE_INTERRUPT
//! finds its target there, and so could a successor of this process, were the region a shared file.
//!
//! # Invariants
//!
//! 1. The region is mapped, readable and writable for as long as its [`Region`] lives, and nothing
//!    outside this module has its address.
//! 2. A slot's bytes are written only by its owner: the thread that holds its [`Slot`], or the
//!    kernel on that thread's behalf during read(2). `claimed` sees to it that there is one owner.
//! 3. Bytes of a request are handed out as `&[u8]` bound to a `&mut` borrow of the [`Slot`], so that
//!    the owner cannot start the next read(2) while they are looked at.
//! 4. Anyone else touches a slot's `unique` only, and only by atomic loads. A load that overlaps the
//!    kernel's copy may see part of the value: whoever acts on a match must be harmless when wrong.
//! 5. The kernel makes a FUSE_INTERRUPT readable only after the whole request that it names has been
//!    copied out (fs/fuse/dev.c, `fuse_dev_do_read`: FR_SENT is set, then FR_INTERRUPTED tested), so
//!    whoever has read the INTERRUPT finds the target's `unique` complete.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::wire;

/// Bytes of one slot: the largest request, rounded up to whole pages.
pub(crate) const SLOT_SIZE: usize = wire::MAX_REQUEST.next_multiple_of(4096);

const _: () = {
    // The kernel refuses a read(2) with a smaller buffer (FUSE_MIN_READ_BUFFER).
    assert!(SLOT_SIZE >= 8192 && SLOT_SIZE >= wire::MAX_REQUEST);
    assert!(SLOT_SIZE.is_multiple_of(64));
};

/// The memory of all slots. Pages are taken only once they are written to.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    claimed: Box<[AtomicBool]>,
}

// SAFETY: `base` is an address of memory that belongs to the process, not to a thread; access is
// ordered by invariants 2 to 4.
unsafe impl Send for Region {}
// SAFETY: as above: shared access is atomic loads, and claiming, which is atomic.
unsafe impl Sync for Region {}

impl Region {
    pub(crate) fn new(slots: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { mmap_anonymous(null_mut(), slots * SLOT_SIZE, protection, flags)? };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, claimed: (0..slots).map(|_| AtomicBool::new(false)).collect() })
    }

    /// Takes a slot that nobody owns, or `None` if all are taken.
    pub(crate) fn claim(&self) -> Option<usize> {
        self.claimed.iter().position(|claimed| !claimed.swap(true, Ordering::Acquire))
    }

    /// The slots that hold the request `unique`. By invariant 4 a slot that is being read into may
    /// be among them wrongly; by invariant 5 the right one is not missing.
    pub(crate) fn holding(&self, unique: u64) -> impl Iterator<Item = usize> {
        (0..self.claimed.len()).filter(move |&index| self.unique(index) == unique)
    }

    /// The `unique` of the request that slot `index` holds; 0 if it holds none.
    pub(crate) fn unique(&self, index: usize) -> u64 {
        self.unique_cell(index).load(Ordering::Acquire)
    }

    fn slot_base(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.claimed.len());
        // SAFETY: `index` names a slot of the mapping, whose size is `claimed.len() * SLOT_SIZE`.
        unsafe { self.base.add(index * SLOT_SIZE) }
    }

    fn unique_cell(&self, index: usize) -> &AtomicU64 {
        let address = self.slot_base(index).as_ptr();
        // SAFETY: within the slot, mapped for as long as `self` (invariant 1), and aligned, since
        // slots begin on a page and the offset is 8. Shared references to these bytes are read only,
        // apart from the owner's store before read(2), which is through this same atomic.
        unsafe { AtomicU64::from_ptr(address.add(wire::UNIQUE_OFFSET).cast()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let size = self.claimed.len() * SLOT_SIZE;
        // SAFETY: the mapping was made by `new` with this size; every `Slot` borrows the region, so
        // none is left to use it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), size) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The right to read requests into one slot.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    region: &'a Region,
    index: usize,
}

impl<'a> Slot<'a> {
    /// The slot that [`Region::claim`] returned; given back when this is dropped.
    pub(crate) fn of_claimed(region: &'a Region, index: usize) -> Self {
        debug_assert!(region.claimed[index].load(Ordering::Relaxed));
        Self { region, index }
    }

    /// Marks the slot as holding no request.
    pub(crate) fn clear(&mut self) {
        self.region.unique_cell(self.index).store(0, Ordering::Release);
    }

    /// Blocks in read(2) until there is a request, and returns its bytes.
    pub(crate) fn receive(&mut self, device: BorrowedFd<'_>) -> Result<&[u8], Errno> {
        self.clear();
        let base = self.region.slot_base(self.index).as_ptr();
        // SAFETY: the kernel writes at most SLOT_SIZE bytes from `base`: this slot, of which this
        // thread is the owner (invariant 2) and to whose bytes no slice exists (invariant 3).
        let count = unsafe { libc::read(device.as_raw_fd(), base.cast(), SLOT_SIZE) };
        let count = match usize::try_from(count) {
            Ok(count) => count.min(SLOT_SIZE),
            Err(_) => return Err(last_errno()),
        };
        // SAFETY: the kernel has just written `count` bytes of this slot; until the returned borrow
        // of `self` ends there is no further write (invariant 3), only atomic loads elsewhere.
        Ok(unsafe { std::slice::from_raw_parts(base, count) })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.clear();
        self.region.claimed[self.index].store(false, Ordering::Release);
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_slot_has_one_owner_at_a_time() {
        let region = Region::new(2).unwrap();
        let first = region.claim().unwrap();
        let second = region.claim().unwrap();
        assert_ne!(first, second);
        assert_eq!(region.claim(), None);
        drop(Slot::of_claimed(&region, first));
        assert_eq!(region.claim(), Some(first));
    }

    #[test]
    fn a_request_is_found_by_its_unique_until_the_slot_is_read_into_again() {
        let region = Region::new(3).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let index = region.claim().unwrap();
        let mut slot = Slot::of_claimed(&region, index);
        let mut header = [0u8; 40];
        header[wire::UNIQUE_OFFSET..][..8].copy_from_slice(&42u64.to_ne_bytes());
        rustix::io::write(&writer, &header).unwrap();
        assert_eq!(slot.receive(reader.as_fd()).unwrap(), header);
        assert_eq!(region.holding(42).collect::<Vec<_>>(), [index]);
        drop(writer);
        assert_eq!(slot.receive(reader.as_fd()).unwrap(), []);
        assert_eq!(region.holding(42).count(), 0);
    }

    #[test]
    fn every_slot_is_aligned_and_its_last_byte_is_mapped() {
        let region = Region::new(4).unwrap();
        for index in 0..4 {
            let base = region.slot_base(index).as_ptr();
            assert_eq!(base.addr() % 64, 0);
            // SAFETY: the last byte of a slot of a live region, which nobody else uses.
            unsafe { base.add(SLOT_SIZE - 1).write_volatile(1) };
        }
    }
}

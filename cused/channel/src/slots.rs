//! Where requests are read into: one region of memory, one slot for each thread.
//!
//! Owns the only memory of this crate that two threads look at while the kernel writes to it. A
//! thread claims a slot for itself and reads requests straight into it. The header's `unique` lies
//! at a fixed place of the slot and is zeroed just before each read(2), so that at any moment the
//! region says which requests have been read and not been followed by another read: a FUSE_INTERRUPT
//! finds its target there. The region is a file in memory, so that a successor of this process finds
//! there, complete, what was read and not answered: the kernel has copied a request before the reader
//! runs another instruction. In front of the slots are words for the notes of [`crate::ledger`].
//!
//! # Invariants
//!
//! 1. The region is mapped, readable and writable for as long as its [`Region`] lives, and nothing
//!    outside this module has its address. Its file is sealed against a change of size, so that
//!    no part of the mapping is ever behind the end of the file. Another process that has the file
//!    is a predecessor, which is dead, or one that only keeps it.
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

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::ledger::NOTES_WORDS;
use crate::wire;

/// Bytes of one slot: the largest request, rounded up to whole pages.
pub(crate) const SLOT_SIZE: usize = wire::MAX_REQUEST.next_multiple_of(4096);

const _: () = {
    // The kernel refuses a read(2) with a smaller buffer (FUSE_MIN_READ_BUFFER).
    assert!(SLOT_SIZE >= 8192 && SLOT_SIZE >= wire::MAX_REQUEST);
    assert!(SLOT_SIZE.is_multiple_of(64));
};

/// Bytes in front of the slots.
const NOTES_SIZE: usize = (NOTES_WORDS * size_of::<u64>()).next_multiple_of(4096);

/// What the file of a region may not become.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The memory of all slots and of the notes in front of them. Pages are taken only once they are
/// written to.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    file: OwnedFd,
    claimed: Box<[AtomicBool]>,
}

// SAFETY: `base` is an address of memory that belongs to the process, not to a thread; access is
// ordered by invariants 2 to 4.
unsafe impl Send for Region {}
// SAFETY: as above: shared access is atomic loads, and claiming, which is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// An empty one.
    pub(crate) fn new(slots: usize) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("cuse-channel", flags)?;
        rustix::fs::ftruncate(&file, (NOTES_SIZE + slots * SLOT_SIZE) as u64)?;
        rustix::fs::fcntl_add_seals(&file, SEALS)?;
        Self::of_sealed(file, slots)
    }

    /// That of a predecessor. Slots that hold a request are claimed, for who answers it.
    ///
    /// Errors: EINVAL if the file is none of this crate's, by its seals and its size.
    pub(crate) fn adopt(file: OwnedFd) -> Result<Self, Errno> {
        let is_sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SEALS);
        let size = usize::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| Errno::INVAL)?;
        let slots = size.checked_sub(NOTES_SIZE).ok_or(Errno::INVAL)?;
        let slots = is_sealed.then_some(slots).filter(|slots| slots.is_multiple_of(SLOT_SIZE));
        let region = Self::of_sealed(file, slots.ok_or(Errno::INVAL)? / SLOT_SIZE)?;
        for (index, claimed) in region.claimed.iter().enumerate() {
            claimed.store(region.unique(index) != 0, Ordering::Relaxed);
        }
        Ok(region)
    }

    fn of_sealed(file: OwnedFd, slots: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let size = NOTES_SIZE + slots * SLOT_SIZE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing; its file is
        // as long as that, and sealed (invariant 1).
        let base = unsafe { mmap(null_mut(), size, protection, MapFlags::SHARED, &file, 0)? };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, file, claimed: (0..slots).map(|_| AtomicBool::new(false)).collect() })
    }

    /// The file, for a successor.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How many slots there are.
    pub(crate) fn slots(&self) -> usize {
        self.claimed.len()
    }

    /// The words in front of the slots, of which [`crate::ledger`] has the use.
    pub(crate) fn notes(&self) -> &[AtomicU64] {
        // SAFETY: NOTES_SIZE bytes from the base are mapped for as long as `self` (invariant 1), begin
        // on a page, and are used by nobody but through atomics; all bit patterns are valid.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), NOTES_WORDS) }
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
        // SAFETY: `index` names a slot of the mapping, which has `claimed.len()` of them behind the
        // notes.
        unsafe { self.base.add(NOTES_SIZE + index * SLOT_SIZE) }
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
        let size = NOTES_SIZE + self.claimed.len() * SLOT_SIZE;
        // SAFETY: the mapping was made by `of_sealed` with this size; every `Slot` borrows the region, so
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

    /// The bytes of the request that the slot holds, if it holds one.
    pub(crate) fn held(&mut self) -> Option<&[u8]> {
        const { assert!(wire::LENGTH_OFFSET == 0) };
        if self.region.unique(self.index) == 0 {
            return None;
        }
        let base = self.region.slot_base(self.index).as_ptr();
        // SAFETY: the slot's first 4 bytes, which nobody writes to while this thread, its owner
        // (invariant 2), is not in read(2).
        let length = unsafe { base.cast::<u32>().read() } as usize;
        // SAFETY: within the slot; the bytes stay as they are until the borrow of `self` ends
        // (invariant 3), but for atomic loads elsewhere.
        Some(unsafe { std::slice::from_raw_parts(base, length.min(SLOT_SIZE)) })
    }

    /// Puts a request there as if it had been read; `unique` is the one in `bytes`.
    pub(crate) fn put(&mut self, unique: u64, bytes: &[u8]) -> Option<&[u8]> {
        assert!(bytes.len() <= SLOT_SIZE);
        self.clear();
        let base = self.region.slot_base(self.index).as_ptr();
        let after = wire::UNIQUE_OFFSET + size_of::<u64>();
        for (at, &byte) in bytes.iter().enumerate() {
            // The word that others look at is written last, and at once.
            if !(wire::UNIQUE_OFFSET..after).contains(&at) {
                // SAFETY: within the slot, of which this thread is the owner (invariant 2) and to
                // whose bytes no slice exists (invariant 3).
                unsafe { base.add(at).write(byte) };
            }
        }
        self.region.unique_cell(self.index).store(unique, Ordering::Release);
        self.held()
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
    use zerocopy::IntoBytes as _;

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

    #[test]
    fn a_successor_finds_what_was_read_and_not_what_was_cleared() {
        let region = Region::new(3).unwrap();
        let message = |unique: u64| {
            let header = wire::InHeader { len: 40, unique, opcode: 77, ..Default::default() };
            header.as_bytes().to_vec()
        };
        for unique in [6, 8] {
            let mut slot = Slot::of_claimed(&region, region.claim().unwrap());
            assert_eq!(slot.put(unique, &message(unique)).unwrap(), message(unique));
            if unique == 6 {
                std::mem::forget(slot); // its thread dies with the process
            }
        }
        region.notes()[3].store(4711, Ordering::Relaxed);
        let successor = Region::adopt(region.file().try_clone_to_owned().unwrap()).unwrap();
        drop(region);
        assert_eq!((successor.slots(), successor.unique(0), successor.unique(1)), (3, 6, 0));
        assert_eq!(successor.notes()[3].load(Ordering::Relaxed), 4711);
        assert_eq!(successor.claim(), Some(1), "the first one is taken");
        let mut held = Slot::of_claimed(&successor, 0);
        assert_eq!(held.held().unwrap(), message(6));
        held.clear();
        assert_eq!(held.held(), None);
    }

    #[test]
    fn a_file_that_is_no_region_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        for (size, seals) in [
            (0, SEALS),
            (NOTES_SIZE + SLOT_SIZE - 1, SEALS),
            (NOTES_SIZE + SLOT_SIZE, SealFlags::SHRINK),
        ] {
            let file = rustix::fs::memfd_create("other", flags).unwrap();
            rustix::fs::ftruncate(&file, size as u64).unwrap();
            rustix::fs::fcntl_add_seals(&file, seals).unwrap();
            assert_eq!(Region::adopt(file).unwrap_err(), Errno::INVAL);
        }
    }
}

//! The system calls that Rust cannot check: ioctl, mmap and borrowing a descriptor by number.
//!
//! This is the only module with `unsafe`. What it owns is the argument why each call touches
//! no memory but what it was lent; which commands exist and what they mean is `node`'s.
//!
//! The argument is that of [`ioasid_client::call`], with a function here for each command that
//! takes the address of a buffer. Other addresses in structures are of memory that a *device* may
//! reach later: [`Memory`], of which this process never makes a reference, as of no file that it
//! names.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr;

use ioasid_client::call::{BY_VALUE, address, ioctl};
use ioasid_uapi::{
    Dirty, Info, IovaRange, LIST_DEVICES, LIST_IOASIDS, LIST_MAPPINGS, List, Mapping, Op,
    SIM_DMA_READ, SIM_DMA_WRITE, SimDma, UnmapDma, Vector, cmd,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use zerocopy::{FromBytes, IntoBytes};

/// A descriptor that this process inherited, for instance from the shell that started it.
///
/// Errors: EBADF when it is not open.
pub(crate) fn inherited(fd: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    if fd < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: `fd` is not -1. If it is not open the next call says so. If it is, it was inherited,
    // or opened by this process before, and nothing in this process closes a descriptor by number.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_getfd(fd)?;
    Ok(fd)
}

/// GET_INFO, with room for `ranges`; sets the fields `ranges` and `nr_ranges`.
pub(crate) fn get_info(
    fd: BorrowedFd<'_>,
    info: &mut Info,
    ranges: &mut [IovaRange],
) -> Result<u32, Errno> {
    info.ranges = address(ranges);
    info.nr_ranges = ranges.len() as u32;
    // SAFETY: the command writes the structure and at most `nr_ranges` entries at `ranges`; both
    // are lent to this call mutably.
    unsafe { ioctl(fd, cmd::GET_INFO, ptr::from_mut(info).cast()) }
}

/// An item of a list.
///
/// # Safety
///
/// It must be what the command writes with the flag `WHICH`.
pub(crate) unsafe trait Item: FromBytes + IntoBytes {
    /// Which list it is in.
    const WHICH: u32;
}

/// The number of an IOASID in a list.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes)]
#[repr(transparent)]
pub(crate) struct ListedIoasid(pub(crate) u32);

/// The number of a device in a list.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes)]
#[repr(transparent)]
pub(crate) struct ListedDevice(pub(crate) u32);

// SAFETY: the header says so: numbers are __u32.
unsafe impl Item for ListedIoasid {
    const WHICH: u32 = LIST_IOASIDS;
}

// SAFETY: as above.
unsafe impl Item for ListedDevice {
    const WHICH: u32 = LIST_DEVICES;
}

// SAFETY: the header says so: mappings are struct ioasid_mapping.
unsafe impl Item for Mapping {
    const WHICH: u32 = LIST_MAPPINGS;
}

/// LIST, with room for `items`; sets the fields `flags`, `items` and `nr`.
pub(crate) fn list<T: Item>(
    fd: BorrowedFd<'_>,
    list: &mut List,
    items: &mut [T],
) -> Result<u32, Errno> {
    list.flags = T::WHICH;
    list.items = address(items);
    list.nr = items.len() as u32;
    // SAFETY: the command writes the structure and at most `nr` items at `items`, which are of this
    // type (`Item`) and may hold any bytes afterwards (FromBytes); both are lent to this call mutably.
    unsafe { ioctl(fd, cmd::LIST, ptr::from_mut(list).cast()) }
}

/// UNMAP_DMA; sets the fields `bitmap` and `bitmap_size`, to zero if there is no `bitmap`.
pub(crate) fn unmap(
    fd: BorrowedFd<'_>,
    unmap: &mut UnmapDma,
    bitmap: &mut [u64],
) -> Result<u32, Errno> {
    unmap.bitmap = address(bitmap);
    unmap.bitmap_size = size_of_val(bitmap) as u64;
    // SAFETY: the command writes the structure and at most `bitmap_size` bytes at `bitmap`; both
    // are lent to this call mutably.
    unsafe { ioctl(fd, cmd::UNMAP_DMA, ptr::from_mut(unmap).cast()) }
}

/// DIRTY; sets the fields `bitmap` and `bitmap_size`, to zero if there is no `bitmap`.
pub(crate) fn dirty(
    fd: BorrowedFd<'_>,
    dirty: &mut Dirty,
    bitmap: &mut [u64],
) -> Result<u32, Errno> {
    dirty.bitmap = address(bitmap);
    dirty.bitmap_size = size_of_val(bitmap) as u64;
    // SAFETY: the command writes the structure and at most `bitmap_size` bytes at `bitmap`; both
    // are lent to this call mutably.
    unsafe { ioctl(fd, cmd::DIRTY, ptr::from_mut(dirty).cast()) }
}

/// VECTOR of `ops`; sets the fields `ops` and `nr_ops`.
pub(crate) fn vector(fd: BorrowedFd<'_>, vector: &mut Vector, ops: &[Op]) -> Result<u32, Errno> {
    vector.ops = ops.as_ptr().expose_provenance() as u64;
    vector.nr_ops = ops.len() as u32;
    // SAFETY: the command writes the structure and reads at most `nr_ops` operations at `ops`; both
    // are lent to this call, the structure mutably.
    unsafe { ioctl(fd, cmd::VECTOR, ptr::from_mut(vector).cast()) }
}

/// SIM_DMA with which the device reads and `data` receives; sets the direction, `data` and `size`.
pub(crate) fn sim_dma_read(
    fd: BorrowedFd<'_>,
    dma: &mut SimDma,
    data: &mut [u8],
) -> Result<u32, Errno> {
    dma.flags = dma.flags & !(SIM_DMA_READ | SIM_DMA_WRITE) | SIM_DMA_READ;
    dma.data = address(data);
    dma.size = data.len() as u64;
    // SAFETY: the command writes the structure and at most `size` bytes at `data`; both are lent
    // to this call mutably.
    unsafe { ioctl(fd, cmd::SIM_DMA, ptr::from_mut(dma).cast()) }
}

/// SIM_DMA with which the device writes `data`; sets the direction, `data` and `size`.
pub(crate) fn sim_dma_write(
    fd: BorrowedFd<'_>,
    dma: &mut SimDma,
    data: &[u8],
) -> Result<u32, Errno> {
    dma.flags = dma.flags & !(SIM_DMA_READ | SIM_DMA_WRITE) | SIM_DMA_WRITE;
    dma.data = data.as_ptr().expose_provenance() as u64;
    dma.size = data.len() as u64;
    // SAFETY: the command writes the structure and reads at most `size` bytes at `data`; both are
    // lent to this call, the structure mutably.
    unsafe { ioctl(fd, cmd::SIM_DMA, ptr::from_mut(dma).cast()) }
}

/// What [`raw`] gives a command.
pub(crate) enum RawArgument<'a> {
    /// A number, or an address of which nothing is known.
    Value(u64),
    /// A structure in memory of its own, and the buffers whose addresses belong at these offsets.
    Structure { bytes: &'a mut Guarded, buffers: &'a mut [(usize, Guarded)] },
}

/// Makes any command with any argument, right or wrong.
///
/// Errors: EACCES, without a call, when the argument is or holds the address of writable memory
/// of this process other than `buffers`: the command might write there.
pub(crate) fn raw(
    fd: BorrowedFd<'_>,
    command: u32,
    argument: RawArgument<'_>,
) -> Result<u32, Errno> {
    let argument = match argument {
        RawArgument::Value(value) => {
            // A number that is looked at as an address only if the command takes one.
            if !BY_VALUE.contains(&command) && is_ours(value)? {
                return Err(Errno::ACCESS);
            }
            ptr::without_provenance_mut(value as usize)
        }
        RawArgument::Structure { bytes, buffers } => {
            for word in bytes.bytes().chunks_exact(8) {
                if is_ours(u64::from_ne_bytes(word.try_into().unwrap()))? {
                    return Err(Errno::ACCESS);
                }
            }
            for (offset, buffer) in buffers {
                let address = buffer.address().to_ne_bytes();
                bytes.bytes_mut()[*offset..*offset + 8].copy_from_slice(&address);
            }
            bytes.start()
        }
    };
    // SAFETY: whatever the command takes the argument for, and whatever sizes the argument claims,
    // it can write only to memory that begins at the argument or at an address in it. Each such
    // address is of a `Guarded`, lent mutably, which is followed by a page that ends the writing
    // with EFAULT; or it is of no writable memory, so that the writing does not begin.
    unsafe { ioctl(fd, command, argument) }
}

/// Whether an address lies in writable memory of this process.
fn is_ours(address: u64) -> Result<bool, Errno> {
    let mut maps = String::with_capacity(1 << 16);
    File::open("/proc/self/maps")
        .and_then(|mut file| file.read_to_string(&mut maps))
        .map_err(|_| Errno::ACCESS)?;
    Ok(maps.lines().any(|line| {
        let mut words = line.split(' ');
        let bounds = words.next().and_then(|bounds| bounds.split_once('-'));
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        match bounds.and_then(|(start, end)| number(start).zip(number(end))) {
            Some((start, end)) => {
                let writable = words.next().is_none_or(|access| access.contains('w'));
                writable && (start..end).contains(&address)
            }
            // Not understood: better refused than wrong.
            None => true,
        }
    }))
}

/// How this process may use [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protection {
    /// It may read.
    pub(crate) read: bool,
    /// It may write.
    pub(crate) write: bool,
}

/// Memory of this process for devices to reach. The process itself never looks at it.
#[derive(Debug)]
pub(crate) struct Memory {
    start: *mut c_void,
    len: usize,
}

impl Memory {
    /// Maps `len` bytes of a file from `offset`, shared with the file or as a private copy.
    ///
    /// Errors: those of mmap(2).
    pub(crate) fn of_file(
        file: &File,
        offset: u64,
        len: usize,
        protection: Protection,
        shared: bool,
    ) -> Result<Memory, Errno> {
        let kind = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: without MAP_FIXED the kernel chooses an address that is in no other use.
        let start = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                prot_flags(protection),
                kind,
                file.as_fd(),
                offset,
            )
        }?;
        Ok(Memory { start, len })
    }

    /// Maps `len` bytes of zeroes, shared or private.
    ///
    /// Errors: those of mmap(2).
    pub(crate) fn anonymous(
        len: usize,
        protection: Protection,
        shared: bool,
    ) -> Result<Memory, Errno> {
        let kind = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: without MAP_FIXED the kernel chooses an address that is in no other use.
        let start = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), len, prot_flags(protection), kind)
        }?;
        Ok(Memory { start, len })
    }

    /// Where it is in this process.
    pub(crate) fn address(&self) -> u64 {
        self.start.expose_provenance() as u64
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are those of a mapping of its own, to which no reference was
        // ever made. A failure leaves it mapped, which harms nothing.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}

fn prot_flags(protection: Protection) -> ProtFlags {
    let mut flags = ProtFlags::empty();
    flags.set(ProtFlags::READ, protection.read);
    flags.set(ProtFlags::WRITE, protection.write);
    flags
}

/// Bytes that end where a page begins that nobody may touch: whoever writes past their end gets
/// EFAULT.
pub(crate) struct Guarded {
    memory: Memory,
    offset: usize,
    len: usize,
}

impl Guarded {
    /// Bytes with this content.
    ///
    /// Errors: ENOMEM.
    pub(crate) fn new(content: &[u8]) -> Result<Guarded, Errno> {
        let page = rustix::param::page_size();
        let room = content.len().next_multiple_of(page);
        let all = room.checked_add(page).ok_or(Errno::NOMEM)?;
        let memory = Memory::anonymous(all, Protection { read: true, write: true }, false)?;
        // SAFETY: the last page of a mapping of our own, to which there is no reference.
        unsafe { rustix::mm::mprotect(memory.start.byte_add(room), page, MprotectFlags::empty()) }?;
        let mut guarded = Guarded { memory, offset: room - content.len(), len: content.len() };
        guarded.bytes_mut().copy_from_slice(content);
        Ok(guarded)
    }

    fn start(&self) -> *mut c_void {
        self.memory.start.wrapping_byte_add(self.offset)
    }

    /// Where they are in this process.
    pub(crate) fn address(&self) -> u64 {
        self.start().expose_provenance() as u64
    }

    /// What they hold.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` lie in the readable part of the mapping, which lives
        // as long as `self` and is written only through `&mut self`, or by a command to which
        // `raw` lends it mutably.
        unsafe { std::slice::from_raw_parts(self.start().cast(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_not_open_is_refused() {
        assert_eq!(inherited(-1).unwrap_err(), Errno::BADF);
        assert_eq!(inherited(1 << 20).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn guarded_bytes_end_at_a_page_boundary() {
        let page = rustix::param::page_size() as u64;
        for len in [0, 1, 40, 4096, 5000] {
            let guarded = Guarded::new(&vec![7; len]).unwrap();
            assert_eq!((guarded.address() + len as u64) % page, 0);
            assert!(guarded.bytes().iter().all(|byte| *byte == 7));
        }
    }

    /// The kernel itself must meet the guard: it is what makes `raw` sound.
    #[test]
    fn writing_past_guarded_bytes_is_efault() {
        let guarded = Guarded::new(&[0; 40]).unwrap();
        assert!(is_ours(guarded.address() + 39).unwrap());
        assert!(!is_ours(guarded.address() + 40).unwrap());
    }

    #[test]
    fn a_raw_argument_that_points_into_this_process_is_refused() {
        let fd = File::open("/dev/null").unwrap();
        let mut victim = Box::new(0u64);
        let address = address(std::slice::from_mut(&mut *victim));
        let by_value = raw(fd.as_fd(), cmd::GET_INFO, RawArgument::Value(address));
        assert_eq!(by_value, Err(Errno::ACCESS));
        let mut bytes = Guarded::new(&address.to_ne_bytes()).unwrap();
        let structure = RawArgument::Structure { bytes: &mut bytes, buffers: &mut [] };
        assert_eq!(raw(fd.as_fd(), cmd::GET_INFO, structure), Err(Errno::ACCESS));
        // An address of nothing reaches the driver, which is not /dev/ioasid's.
        assert_eq!(raw(fd.as_fd(), cmd::GET_INFO, RawArgument::Value(16)), Err(Errno::NOTTY));
    }

    #[test]
    fn raw_fills_in_the_addresses_of_buffers() {
        let fd = File::open("/dev/null").unwrap();
        let mut bytes = Guarded::new(&[0; 24]).unwrap();
        let mut buffers = [(16, Guarded::new(&[1, 2, 3]).unwrap())];
        let structure = RawArgument::Structure { bytes: &mut bytes, buffers: &mut buffers };
        assert_eq!(raw(fd.as_fd(), cmd::GET_ERROR, structure), Err(Errno::NOTTY));
        assert_eq!(bytes.bytes()[16..], buffers[0].1.address().to_ne_bytes());
        assert_eq!(bytes.bytes()[..16], [0; 16]);
    }
}

//! VFIO's container and group ioctls, each as a function with checked arguments.
//!
//! Source of numbers and structures: <linux/vfio.h>. Every descriptor given to these functions is
//! one on which the ioctl is defined: groups come from [`Group::new`](super::Group::new), which
//! asks the kernel what the descriptor is, and containers from opening /dev/vfio/vfio. On any
//! other descriptor the kernel would answer ENOTTY without touching the argument.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use ioasid::Prot;
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_CC_IOMMU, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE,
    VFIO_DMA_UNMAP_FLAG_ALL, VFIO_GROUP_FLAGS_CONTAINER_SET,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_group_status,
    vfio_iommu_type1_dirty_bitmap, vfio_iommu_type1_dirty_bitmap_get, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_region_info,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::View;
use crate::system::last_error;

const fn number(nr: u32) -> Opcode {
    opcode::none(VFIO_TYPE, (VFIO_BASE + nr) as u8)
}

const CHECK_EXTENSION: Opcode = number(1);
const SET_IOMMU: Opcode = number(2);
const GROUP_GET_STATUS: Opcode = number(3);
const GROUP_SET_CONTAINER: Opcode = number(4);
const GROUP_UNSET_CONTAINER: Opcode = number(5);
const GROUP_GET_DEVICE_FD: Opcode = number(6);
const DEVICE_GET_REGION_INFO: Opcode = number(8);
const IOMMU_GET_INFO: Opcode = number(12);
/// VFIO_IOMMU_MAP_DMA, for a caller that is led through it.
pub(super) const IOMMU_MAP_DMA: Opcode = number(13);
const IOMMU_UNMAP_DMA: Opcode = number(14);
const IOMMU_DIRTY_PAGES: Opcode = number(17);

/// A VFIO ioctl with an argument that the kernel reads, and for some commands writes.
struct Command<'a, T: ?Sized>(Opcode, &'a mut T);

// SAFETY: the opcode and the pointer are what the constructor was given, and the kernel treats the
// argument as mutable.
unsafe impl<T: ?Sized> Ioctl for Command<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.1).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// A VFIO ioctl whose argument is a plain number.
struct Number(Opcode, usize);

// SAFETY: the argument is a number, which the kernel does not take for an address.
unsafe impl Ioctl for Number {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.0
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.1)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// A VFIO ioctl that answers with its result.
struct Question(Number);

// SAFETY: as for the number inside.
unsafe impl Ioctl for Question {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        self.0.opcode()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_ptr()
    }

    unsafe fn output_from_ptr(result: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(result)
    }
}

/// VFIO_CHECK_EXTENSION: whether DMA of the container's devices is always coherent with caches.
pub(super) fn is_coherent(container: &OwnedFd) -> bool {
    let question = Question(Number(CHECK_EXTENSION, VFIO_DMA_CC_IOMMU as usize));
    // SAFETY: the command takes the extension by value.
    unsafe { ioctl::ioctl(container, question) }.is_ok_and(|answer| answer > 0)
}

/// VFIO_GROUP_GET_STATUS: whether the group is in a container, anybody's.
pub(super) fn has_container(group: &OwnedFd) -> Result<bool, Errno> {
    let mut status =
        vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, ..Default::default() };
    // SAFETY: the argument is the structure of this command with its true size, and lives
    // through the call.
    unsafe { ioctl::ioctl(group, Command(GROUP_GET_STATUS, &mut status))? };
    Ok(status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET != 0)
}

/// VFIO_GROUP_SET_CONTAINER.
pub(super) fn set_container(group: &OwnedFd, container: &OwnedFd) -> Result<(), Errno> {
    let mut fd: i32 = container.as_raw_fd();
    // SAFETY: the argument is an int, as this command takes, and lives through the call.
    unsafe { ioctl::ioctl(group, Command(GROUP_SET_CONTAINER, &mut fd)) }
}

/// VFIO_GROUP_UNSET_CONTAINER.
pub(super) fn unset_container(group: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the command takes no argument.
    unsafe { ioctl::ioctl(group, Number(GROUP_UNSET_CONTAINER, 0)) }
}

/// VFIO_SET_IOMMU with the type1 v2 model.
pub(super) fn set_type1v2(container: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the command takes the model by value.
    unsafe { ioctl::ioctl(container, Number(SET_IOMMU, VFIO_TYPE1v2_IOMMU as usize)) }
}

/// The argument of VFIO_IOMMU_MAP_DMA, `struct vfio_iommu_type1_dma_map`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

const _: () = assert!(size_of::<DmaMap>() == size_of::<vfio_iommu_type1_dma_map>());

impl DmaMap {
    /// `size` bytes at `vaddr` of whoever makes the call.
    pub(super) fn new(iova: u64, vaddr: u64, size: u64, prot: Prot) -> Self {
        let mut flags = 0;
        if prot.read {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if prot.write {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        Self { argsz: size_of::<Self>() as u32, flags, vaddr, iova, size }
    }
}

/// VFIO_IOMMU_MAP_DMA of memory of the daemon.
pub(super) fn map_dma(
    container: &OwnedFd,
    iova: u64,
    memory: &View<'_>,
    prot: Prot,
) -> Result<(), Errno> {
    let mut map = DmaMap::new(iova, memory.address(), memory.len(), prot);
    // SAFETY: the argument is the structure of this command with its true size, and lives
    // through the call. The memory at vaddr is only pinned: Rust has no reference to it.
    unsafe { ioctl::ioctl(container, Command(IOMMU_MAP_DMA, &mut map)) }
}

/// VFIO_GROUP_GET_DEVICE_FD: opens a device of a group, by its name.
pub(super) fn device(group: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: the argument is a string that ends with a zero byte and lives through the call, which
    // does not write to it.
    let fd = unsafe {
        libc::ioctl(group.as_raw_fd(), u64::from(GROUP_GET_DEVICE_FD) as _, name.as_ptr())
    };
    match fd {
        // SAFETY: the kernel has just opened this descriptor (close-on-exec) for us alone.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_error()),
    }
}

/// Where a region of a device lies in its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where in the descriptor it begins, bytes.
    pub offset: u64,
    /// Its size, bytes.
    pub size: u64,
}

/// VFIO_DEVICE_GET_REGION_INFO.
///
/// # Errors
/// EOPNOTSUPP for a region that cannot be mapped into memory.
pub(super) fn region(device: &OwnedFd, index: u32) -> Result<Region, Errno> {
    let argsz = size_of::<vfio_region_info>() as u32;
    let mut info = vfio_region_info { argsz, index, ..Default::default() };
    // SAFETY: the argument is the structure of this command with its true size, and lives
    // through the call.
    unsafe { ioctl::ioctl(device, Command(DEVICE_GET_REGION_INFO, &mut info))? };
    match info.flags & VFIO_REGION_INFO_FLAG_MMAP {
        0 => Err(Errno::OPNOTSUPP),
        _ => Ok(Region { offset: info.offset, size: info.size }),
    }
}

/// VFIO_IOMMU_UNMAP_DMA of a range. Returns how many bytes were mapped there.
pub(super) fn unmap_dma(container: &OwnedFd, iova: u64, size: u64) -> Result<u64, Errno> {
    unmap(container, 0, iova, size)
}

/// VFIO_IOMMU_UNMAP_DMA of everything.
pub(super) fn unmap_all(container: &OwnedFd) -> Result<(), Errno> {
    unmap(container, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0).map(drop)
}

fn unmap(container: &OwnedFd, flags: u32, iova: u64, size: u64) -> Result<u64, Errno> {
    let argsz = size_of::<vfio_iommu_type1_dma_unmap>() as u32;
    // `data`, of no size here, is for a bitmap that no flag asks for.
    let mut unmap = vfio_iommu_type1_dma_unmap { argsz, flags, iova, size, ..Default::default() };
    // SAFETY: the argument is the structure of this command with its true size, and lives
    // through the call; the kernel writes its size field.
    unsafe { ioctl::ioctl(container, Command(IOMMU_UNMAP_DMA, &mut unmap))? };
    Ok(unmap.size)
}

/// What VFIO_IOMMU_GET_INFO says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// Bitmap of page sizes; bit n for 2^n bytes.
    pub(super) pgsizes: u64,
    /// Permitted IOVA ranges: first and last address.
    pub(super) ranges: Vec<(u64, u64)>,
    /// How many mappings the container takes, if it says so.
    pub(super) available_mappings: Option<u32>,
}

/// struct vfio_iommu_type1_info.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct InfoHeader {
    argsz: u32,
    flags: u32,
    pgsizes: u64,
    cap_offset: u32,
    pad: u32,
}

/// struct vfio_info_cap_header.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CapabilityHeader {
    id: u16,
    version: u16,
    next: u32,
}

/// VFIO_IOMMU_GET_INFO with its capability chain.
pub(super) fn info(container: &OwnedFd) -> Result<Info, Errno> {
    let mut buffer = vec![0u64; size_of::<InfoHeader>() / size_of::<u64>()];
    loop {
        let room = buffer.len() * size_of::<u64>();
        let (header, _) =
            InfoHeader::mut_from_prefix(buffer.as_mut_bytes()).map_err(|_| Errno::IO)?;
        header.argsz = room as u32;
        // SAFETY: the argument has the room that its argsz field says, of which the kernel writes
        // no more, and lives through the call.
        unsafe { ioctl::ioctl(container, Command(IOMMU_GET_INFO, buffer.as_mut_slice()))? };
        let (header, _) = InfoHeader::ref_from_prefix(buffer.as_bytes()).map_err(|_| Errno::IO)?;
        match header.argsz as usize {
            needed if needed > room => buffer = vec![0; needed.div_ceil(size_of::<u64>())],
            _ => return parse(buffer.as_bytes()).ok_or(Errno::IO),
        }
    }
}

/// Reads the answer of VFIO_IOMMU_GET_INFO. None when it is malformed.
fn parse(bytes: &[u8]) -> Option<Info> {
    let (header, _) = InfoHeader::read_from_prefix(bytes).ok()?;
    let mut info = Info::default();
    if header.flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.pgsizes = header.pgsizes;
    }
    let has_caps = header.flags & VFIO_IOMMU_INFO_CAPS != 0;
    let mut offset = if has_caps { header.cap_offset as usize } else { 0 };
    while offset != 0 {
        let (capability, body) = CapabilityHeader::read_from_prefix(bytes.get(offset..)?).ok()?;
        match u32::from(capability.id) {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => info.ranges = parse_ranges(body)?,
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                info.available_mappings = Some(u32::read_from_prefix(body).ok()?.0);
            }
            _ => {}
        }
        let next = capability.next as usize;
        // A chain that goes backwards could go in circles.
        offset = if next == 0 || next > offset { next } else { return None };
    }
    Some(info)
}

fn parse_ranges(body: &[u8]) -> Option<Vec<(u64, u64)>> {
    let ([count, _], mut rest) = <[u32; 2]>::read_from_prefix(body).ok()?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        let ([start, last], behind) = <[u64; 2]>::read_from_prefix(rest).ok()?;
        ranges.push((start, last));
        rest = behind;
    }
    Some(ranges)
}

/// The argument of VFIO_IOMMU_DIRTY_PAGES: `struct vfio_iommu_type1_dirty_bitmap`, and behind it
/// `struct vfio_iommu_type1_dirty_bitmap_get`.
#[repr(C)]
struct DirtyPages {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
    page: u64,
    bitmap_size: u64,
    bitmap: u64,
}

const _: () = assert!(
    size_of::<DirtyPages>()
        == size_of::<vfio_iommu_type1_dirty_bitmap>()
            + size_of::<vfio_iommu_type1_dirty_bitmap_get>()
);

/// VFIO_IOMMU_DIRTY_PAGES: begins or ends tracking.
pub(super) fn track_dirty(container: &OwnedFd, on: bool) -> Result<(), Errno> {
    let flags = match on {
        true => VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
        false => VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
    };
    // The header's size: without a bitmap, nothing follows it.
    let argsz = size_of::<vfio_iommu_type1_dirty_bitmap>() as u32;
    let mut pages =
        DirtyPages { argsz, flags, iova: 0, size: 0, page: 0, bitmap_size: 0, bitmap: 0 };
    // SAFETY: the argument is at least the structure of this command and lives through the call.
    unsafe { ioctl::ioctl(container, Command(IOMMU_DIRTY_PAGES, &mut pages)) }
}

/// VFIO_IOMMU_DIRTY_PAGES: which of the pages of `page` bytes from `iova` on were written.
pub(super) fn dirty_bitmap(
    container: &OwnedFd,
    iova: u64,
    size: u64,
    page: u64,
    bitmap: &mut [u64],
) -> Result<(), Errno> {
    debug_assert!((size / page).div_ceil(64) <= bitmap.len() as u64);
    let mut pages = DirtyPages {
        argsz: size_of::<DirtyPages>() as u32,
        flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
        iova,
        size,
        page,
        bitmap_size: size_of_val(bitmap) as u64,
        bitmap: bitmap.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the argument is the structure of this command with its true size; the kernel writes
    // at most bitmap_size bytes to the bitmap. Both live through the call.
    unsafe { ioctl::ioctl(container, Command(IOMMU_DIRTY_PAGES, &mut pages)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<u8> {
        words.as_bytes().to_vec()
    }

    const PGSIZES: u64 = 0x4020_1000;
    const BOTH: u64 = (VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS) as u64;

    #[test]
    fn a_chain_of_two_capabilities() {
        let bytes = words(&[
            88 | BOTH << 32,
            PGSIZES,
            24,                     // the chain begins at byte 24
            1 | 1 << 16 | 72 << 32, // IOVA ranges, the next capability at byte 72
            2,
            0,
            0xfedf_ffff,
            0xfef0_0000,
            (1 << 39) - 1,
            3 | 1 << 16, // mappings available, the last capability
            65535,
        ]);
        let info = parse(&bytes).expect("well-formed");
        assert_eq!(info.pgsizes, PGSIZES);
        assert_eq!(info.ranges, [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]);
        assert_eq!(info.available_mappings, Some(65535));
    }

    #[test]
    fn chains_that_leave_the_buffer_or_go_in_circles_are_refused() {
        let circle = words(&[48 | BOTH << 32, PGSIZES, 24, 9 | 24 << 32, 0, 0]);
        assert_eq!(parse(&circle), None);
        let outside = words(&[48 | BOTH << 32, PGSIZES, 4096]);
        assert_eq!(parse(&outside), None);
        let short = words(&[48 | BOTH << 32, PGSIZES, 24, 1, 1000]);
        assert_eq!(parse(&short), None);
    }

    #[test]
    fn no_capabilities() {
        let bytes = words(&[24 | u64::from(VFIO_IOMMU_INFO_PGSIZES) << 32, PGSIZES, 0]);
        let info = parse(&bytes).expect("well-formed");
        assert_eq!(info, Info { pgsizes: PGSIZES, ..Info::default() });
    }
}

//! What a led thread's VFIO_IOMMU_MAP_DMA has mapped: the physical address, which no other
//! interface of the kernel tells for the registers of a device.
//!
//! The kernel's tracepoint iommu:map is recorded for that thread alone, into a ring that only we
//! see (perf_event_open(2)).
#![allow(unsafe_code)]

use std::fs;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{Immutable, IntoBytes};

use crate::caller::Tid;
use crate::failure::Failure;
use crate::system::last_error;

/// `struct perf_event_attr` as in its first version.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: [u32; 3],
}

const KIND_TRACEPOINT: u32 = 2;
const SAMPLE_RAW: u64 = 1 << 10;
const FLAG_CLOEXEC: u64 = 1 << 3;
/// PERF_RECORD_SAMPLE
const RECORD_SAMPLE: u32 = 9;

/// Where `struct perf_event_mmap_page` has `data_head`.
const HEAD: usize = 1024;
/// Of a record: its header, and the length of the raw data.
const RAW: usize = 8 + 4;
/// Of the raw data, as in `events/iommu/map/format`.
const IOVA: usize = 8;
const PADDR: usize = 16;

/// A record of what a thread maps, from when this is made.
#[derive(Debug)]
pub(super) struct MapTrace {
    _event: OwnedFd,
    ring: NonNull<u8>,
    page: usize,
}

impl MapTrace {
    /// Begins to record.
    ///
    /// # Errors
    /// EOPNOTSUPP where the kernel's tracepoints cannot be used.
    pub(super) fn new(tid: Tid) -> Result<Self, Failure> {
        let config = tracepoint().ok_or_else(|| {
            Failure::unsupported(
                "which device's registers these are can only be told with the tracepoint iommu:map: \
                 mount tracefs at /sys/kernel/tracing, and run the daemon as root",
            )
        })?;
        let attributes = Attributes {
            kind: KIND_TRACEPOINT,
            size: size_of::<Attributes>() as u32,
            config,
            sample_period: 1,
            sample_type: SAMPLE_RAW,
            read_format: 0,
            flags: 0,
            wakeup_events: 1,
            breakpoint: [0; 3],
        };
        Self::open(tid, &attributes).map_err(|error| {
            let remedy = match error {
                // Debian's kernel has a level 3, at which CAP_PERFMON is not enough.
                Errno::ACCESS => "; run: sysctl kernel.perf_event_paranoid=2",
                _ => "",
            };
            Failure::unsupported(format!(
                "which device's registers these are cannot be told: perf_event_open: {error}{remedy}"
            ))
        })
    }

    fn open(tid: Tid, attributes: &Attributes) -> Result<Self, Errno> {
        let attributes = attributes.as_bytes().as_ptr();
        // SAFETY: the kernel reads as many bytes at `attributes` as its field `size` says, which
        // live through the call.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, attributes, tid.get(), -1, -1, FLAG_CLOEXEC)
        };
        let event = match i32::try_from(fd) {
            // SAFETY: the kernel has just opened this descriptor for us alone.
            Ok(fd @ 0..) => unsafe { OwnedFd::from_raw_fd(fd) },
            _ => return Err(last_error()),
        };
        let page = rustix::param::page_size();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let ring =
            unsafe { mmap(ptr::null_mut(), 2 * page, prot, MapFlags::SHARED, event.as_fd(), 0)? };
        let ring = NonNull::new(ring.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { _event: event, ring, page })
    }

    /// The physical address that was mapped at `iova`.
    pub(super) fn physical_address(&self, iova: u64) -> Option<u64> {
        // SAFETY: `data_head` lies in the first of our two pages, 8 bytes aligned to 8.
        let head = unsafe { self.ring.add(HEAD).cast::<u64>().read_volatile() };
        // What is below the head was written before it.
        fence(Ordering::Acquire);
        let end = usize::try_from(head).ok()?.min(self.page);
        let mut at = 0;
        while at + 8 <= end {
            let kind = u32::from_ne_bytes(self.bytes(at)?);
            let size = usize::from(u16::from_ne_bytes(self.bytes(at + 6)?));
            if kind == RECORD_SAMPLE
                && size >= RAW + PADDR + 8
                && u64::from_ne_bytes(self.bytes(at + RAW + IOVA)?) == iova
            {
                return Some(u64::from_ne_bytes(self.bytes(at + RAW + PADDR)?));
            }
            at += size.max(8);
        }
        None
    }

    /// Bytes of the ring's data.
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        (at + N <= self.page).then(|| {
            // SAFETY: they lie in the second of our two pages; any alignment will do for bytes.
            unsafe { self.ring.add(self.page + at).cast::<[u8; N]>().read_volatile() }
        })
    }
}

impl Drop for MapTrace {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `open`, and no reference into it exists.
        let _ = unsafe { munmap(self.ring.as_ptr().cast(), 2 * self.page) };
    }
}

/// The number of the tracepoint.
fn tracepoint() -> Option<u64> {
    let roots = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let id = roots
        .iter()
        .find_map(|root| fs::read_to_string(format!("{root}/events/iommu/map/id")).ok());
    id?.trim().parse().ok()
}

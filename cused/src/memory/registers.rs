//! The registers of devices, for other devices to reach (peer-to-peer DMA).
//!
//! A program that has mapped a BAR of a bound device may map it for another device. Behind such an
//! address is no page that could be pinned, so that nothing would keep the device from being
//! given away while others still reach its registers. So the daemon opens the device itself,
//! through the group that the program has bound, and maps the same BAR: for as long as that
//! exists, the kernel leaves the device in the group and the group in its container.
//!
//! Which device it is, the program's list of mappings does not say: only which BAR
//! (drivers/vfio/pci/vfio_pci_core.h: VFIO_PCI_OFFSET_SHIFT). The physical address behind the
//! program's address does, compared with the BARs of the devices that are bound to the same open.
//! Whatever a program does meanwhile, what is mapped is the BAR of a device that it has bound.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::io::Errno;

use super::maps::Vma;
use super::{RegistersPiece, Rights, Window};
use crate::backend::vfio::Group;
use crate::caller::Tid;
use crate::failure::Failure;

/// A device whose registers a program may map for others.
#[derive(Clone, Debug)]
pub struct BoundDevice {
    /// Its group, which the program has opened.
    pub group: Arc<Group>,
    /// Its PCI address.
    pub name: String,
}

/// Whether a shared mapping shows registers of a device that VFIO drives.
pub(super) fn are_at(vma: &Vma) -> bool {
    // No file of a file system has a path without a slash.
    vma.path == b"anon_inode:[vfio-device]"
}

/// Of an offset in a device's descriptor: the lower bits are inside the BAR.
const INDEX_SHIFT: u32 = 40;

/// The registers that a part of a mapping shows. Its first page must be in the caller's page table.
pub(super) fn piece(
    tid: Tid,
    vma: &Vma,
    Range { start, end }: Range<u64>,
    rights: Rights,
    devices: &[BoundDevice],
) -> Result<RegistersPiece, Failure> {
    let offset = vma.offset + (start - vma.range.start);
    let (bar, inside) = ((offset >> INDEX_SHIFT) as u32, offset & ((1 << INDEX_SHIFT) - 1));
    let address = physical_address(tid, start)?;
    let is_there = |device: &&BoundDevice| {
        bar_of(&device.name, bar).is_some_and(|bar| bar.start.checked_add(inside) == Some(address))
    };
    let device = devices.iter().find(is_there).ok_or_else(|| {
        Failure::unsupported(format!(
            "the {} shows registers of a device that is not bound to this open of the node: bind \
             it first, so that it cannot be given away while others reach it",
            vma.describe()
        ))
    })?;
    let (fd, region) = device.group.open_region(&device.name, bar).map_err(|error| {
        Failure::new(error, format!("device {} cannot be opened: {error}", device.name))
    })?;
    let len = end - start;
    if inside.checked_add(len).is_none_or(|end| end > region.size) {
        return Err(Failure::new(Errno::FAULT, "part of the range lies behind the registers"));
    }
    let page = rustix::param::page_size() as u64;
    let window = Window::new(&fd, region.offset + inside, len, page, rights).map_err(|error| {
        Failure::new(
            Errno::FAULT,
            format!("the registers of device {} cannot be mapped: {error}", device.name),
        )
    })?;
    Ok(RegistersPiece { _device: fd, window })
}

/// What is behind an address of the caller.
fn physical_address(tid: Tid, vaddr: u64) -> Result<u64, Failure> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let page = rustix::param::page_size() as u64;
    let mut entry = [0; 8];
    let read = File::open(format!("/proc/{}/pagemap", tid.get()))
        .and_then(|pagemap| pagemap.read_exact_at(&mut entry, vaddr / page * 8));
    let entry = u64::from_ne_bytes(entry);
    match (read, entry & FRAME) {
        (Ok(()), frame @ 1..) if entry & PRESENT != 0 => Ok(frame * page + vaddr % page),
        _ => Err(Failure::new(
            Errno::FAULT,
            format!("the registers at {vaddr:#x} of the program cannot be found"),
        )),
    }
}

/// The physical addresses of a BAR of a PCI device.
fn bar_of(name: &str, bar: u32) -> Option<Range<u64>> {
    let resources = fs::read_to_string(format!("/sys/bus/pci/devices/{name}/resource")).ok()?;
    parse_resource(resources.lines().nth(bar as usize)?)
}

/// A line of `resource`: first address, last address, flags.
fn parse_resource(line: &str) -> Option<Range<u64>> {
    let mut fields =
        line.split(' ').map(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16).ok());
    let (start, last) = (fields.next()??, fields.next()??);
    (start < last).then_some(start..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_in_the_text_of_sysfs() {
        let bar = "0x00000000fea00000 0x00000000feafffff 0x0000000000040200";
        assert_eq!(parse_resource(bar), Some(0xfea0_0000..0xfeb0_0000));
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000";
        assert_eq!(parse_resource(none), None);
        assert_eq!(parse_resource("x"), None);
    }

    #[test]
    fn the_physical_address_of_a_page_that_is_there() {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let tid = Tid::new(tid).expect("a thread");
        let here = [1_u8; 8192];
        let vaddr = here.as_ptr().addr() as u64 + 4096;
        // Ordinary users are told 0 in place of the frame.
        if rustix::process::geteuid().is_root() {
            let address = physical_address(tid, vaddr).expect("present");
            assert_eq!(address % 4096, vaddr % 4096);
        }
        assert!(physical_address(tid, 0).is_err());
    }
}

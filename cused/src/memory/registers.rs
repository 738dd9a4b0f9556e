//! The registers of devices, for other devices to reach (peer-to-peer DMA).
//!
//! A program that has mapped a BAR of a bound device may map it for another device. Behind such an
//! address is no page that could be pinned, so that nothing would keep the device from being
//! given away while others still reach its registers. So the daemon opens the device itself,
//! through the group that the program has bound, and maps the same BAR: for as long as that
//! exists, the kernel leaves the device in the group and the group in its container.
//!
//! Which device it is, the program's list of mappings does not say; nor does pagemap, which leaves
//! such memory out (mm/pagewalk.c: VM_PFNMAP). The physical address behind the program's address
//! does, compared with the BARs of the devices that are bound to the same open. Whatever a program
//! does meanwhile, what is mapped is the BAR of a device that it has bound.

use std::fs;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use super::maps::Vma;
use super::{RegistersPiece, Rights, Window};
use crate::backend::vfio::Group;
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

/// The number of BARs that a PCI device has.
const BARS: u32 = 6;

/// The registers that a part of a mapping shows, of which the first are at physical address
/// `address`.
pub(super) fn piece(
    address: u64,
    vma: &Vma,
    Range { start, end }: Range<u64>,
    rights: Rights,
    devices: &[BoundDevice],
) -> Result<RegistersPiece, Failure> {
    let is_there = |name: &str, bar| bar_of(name, bar).filter(|range| range.contains(&address));
    let bars = devices.iter().flat_map(|device| (0..BARS).map(move |bar| (device, bar)));
    let mut found = bars.filter_map(|(device, bar)| {
        Some((device, bar, address - is_there(&device.name, bar)?.start))
    });
    let (device, bar, inside) = found.next().ok_or_else(|| {
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
    let offset = region.offset + inside;
    let window = Window::new(&fd, offset..offset + len, page, rights).map_err(|error| {
        Failure::new(
            Errno::FAULT,
            format!("the registers of device {} cannot be mapped: {error}", device.name),
        )
    })?;
    Ok(RegistersPiece { _device: fd, offset, len, window })
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
}

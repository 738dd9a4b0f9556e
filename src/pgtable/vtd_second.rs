//! The entries of VT-d's second-stage page tables: VT-d specification 3.7 and 9.8. What Linux
//! writes: drivers/iommu/intel/iommu.h, drivers/iommu/generic_pt/fmt/vtdss.h; what QEMU refuses:
//! hw/i386/intel_iommu_internal.h.

use super::walker::{Decode, Entry};
use crate::Prot;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const PAGE: u64 = 1 << 7;
/// Snooping, for pages; in an entry for a table it is reserved.
const SNOOP: u64 = 1 << 11;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Once the transient mapping hint, reserved since. Bits 61:52 and 63 are ignored.
const RESERVED: u64 = 1 << 62;

pub(super) struct SecondStage;

impl Decode for SecondStage {
    fn decode(entry: u64, level: u32, allowed: Prot) -> Entry {
        // There is no present bit: an entry that allows neither is not present (VT-d 3.7). An
        // access needs the right at every level.
        let read = allowed.read && entry & READ != 0;
        let write = allowed.write && entry & WRITE != 0;
        if entry & RESERVED != 0 || !(read || write) {
            return Entry::Absent;
        }
        let (prot, address, shift) = (Prot { read, write }, entry & ADDRESS, 12 + 9 * level);
        match level {
            0 => Entry::Leaf { target: address, shift, prot },
            // Bits 20:12 or 29:12 of the address of a superpage are reserved.
            1 | 2 if entry & PAGE != 0 => match address & ((1 << shift) - 1) {
                0 => Entry::Leaf { target: address, shift, prot },
                _ => Entry::Absent,
            },
            // No page is larger than 1 GiB.
            3.. if entry & PAGE != 0 => Entry::Absent,
            _ if entry & SNOOP != 0 => Entry::Absent,
            _ => Entry::Table { address, level: level - 1, allowed: prot },
        }
    }
}

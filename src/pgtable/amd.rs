//! The entries of AMD's I/O page tables for host translations ("v1"): AMD IOMMU specification
//! 2.2.3. What Linux writes: drivers/iommu/amd/amd_iommu_types.h, drivers/iommu/amd/io_pgtable.c,
//! drivers/iommu/generic_pt/fmt/amdv1.h.
//!
//! The specification counts levels from 1, which here is 0. An entry names the level of the table
//! that it leads to, and may leave levels out: the bits of the address that those would have
//! translated must be zero. A page larger than one entry is for has the same entry as often as it
//! has room. Hardware uses one of them, and says nothing of which: where a program lets them
//! differ, each counts for its own part of the page.

use super::walker::{Decode, Entry};
use crate::Prot;

const PRESENT: u64 = 1 << 0;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// The level of the next table.
const NEXT: u64 = 0xe00;
const NEXT_PAGE: u64 = 0;
const NEXT_SIZED_PAGE: u64 = 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits 58:52; in an entry for a table also 60:59, which are for pages only (2.2.3, figures of PTE
/// and PDE).
const RESERVED: u64 = 0x07f0_0000_0000_0000;
const RESERVED_FOR_TABLES: u64 = 0x1ff0_0000_0000_0000;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;

pub(super) struct V1;

impl Decode for V1 {
    // A page has at most half the size of what the level above has for one entry.
    const REPLICAS: u64 = 256;
    // The IOMMU sets these in any one of the entries for a page (2.2.3.2).
    const VOLATILE: u64 = ACCESSED | DIRTY;

    fn decode(entry: u64, level: u32, allowed: Prot) -> Entry {
        // Reading and writing is what all levels allow (IR and IW of the table below 2.2.3).
        let read = allowed.read && entry & READ != 0;
        let write = allowed.write && entry & WRITE != 0;
        if entry & PRESENT == 0 || entry & RESERVED != 0 || !(read || write) {
            return Entry::Absent;
        }
        let (prot, address, shift) = (Prot { read, write }, entry & ADDRESS, 12 + 9 * level);
        match (entry & NEXT) >> 9 {
            // The sixth level has no pages ("Page Table Level Parameters").
            NEXT_PAGE | NEXT_SIZED_PAGE if level >= 5 => Entry::Absent,
            NEXT_PAGE => page(address, shift, prot),
            NEXT_SIZED_PAGE => {
                // The lowest clear bit of the address gives the size, and is not part of it: bit
                // n stands for 2^(n + 1) bytes. The size that an entry is for by itself has no
                // such code, and smaller or larger ones are for other levels.
                let coded = 13 + (address >> 12).trailing_ones();
                if coded <= shift || coded >= shift + 9 || coded > 52 {
                    return Entry::Absent;
                }
                page(address & !((1 << coded) - 1), coded, prot)
            }
            next if next <= u64::from(level) && entry & RESERVED_FOR_TABLES == 0 => {
                Entry::Table { address, level: next as u32 - 1, allowed: prot }
            }
            _ => Entry::Absent,
        }
    }
}

fn page(target: u64, shift: u32, prot: Prot) -> Entry {
    match target & ((1 << shift) - 1) {
        0 => Entry::Leaf { target, shift, prot },
        _ => Entry::Absent,
    }
}

//! The descriptors of Arm's VMSAv8-64 page tables, stage 1, with pages of 4 KiB or 64 KiB: Arm
//! ARM D8.3. What Linux writes: drivers/iommu/io-pgtable-arm.c.
//!
//! Arm's level 3 is level 0 here.
//!
//! - DMA is unprivileged, as Linux has it: it maps pages with AP[1] (`ARM_LPAE_PTE_AP_UNPRIV`)
//!   but for those that it asks `IOMMU_PRIV` for. So a page without AP[1] maps nothing.
//! - The access flag and dirty state are not managed by hardware (`TCR.HA` and `HD` are 0): a page
//!   whose access flag is clear faults, and DBM means nothing.
//! - Restrictions in table descriptors count (`TCR.HPD` is 0).
//! - A bit of the address that must be zero (RES0) and is not makes the descriptor map nothing,
//!   though hardware may also take it for zero: what is meant is an address that this format
//!   cannot say, and no other one should stand in for it.

use super::walker::{Decode, Entry};
use crate::Prot;

/// A page in a table of level 0, a table above it.
const PAGE_OR_TABLE: u64 = 3;
/// A page in a table above level 0.
const BLOCK: u64 = 1;
/// AP[1]: without privilege too.
const UNPRIVILEGED: u64 = 1 << 6;
/// AP[2].
const READ_ONLY: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 10;
/// Bits 49:48 of pages and 50:48 of tables. Above, pages have attributes (guarded, DBM, the
/// contiguous hint, never execute), and both have ignored bits.
const RESERVED_FOR_PAGES: u64 = 3 << 48;
const RESERVED_FOR_TABLES: u64 = 7 << 48;
/// APTable[0]: pages below are privileged.
const TABLE_PRIVILEGED: u64 = 1 << 61;
/// APTable[1]: pages below are read-only.
const TABLE_READ_ONLY: u64 = 1 << 62;

pub(super) struct Lpae<const PAGE_SHIFT: u32>;

impl<const PAGE_SHIFT: u32> Decode for Lpae<PAGE_SHIFT> {
    fn decode(entry: u64, level: u32, allowed: Prot) -> Entry {
        match (entry & 3, level) {
            (PAGE_OR_TABLE, 0) => Self::page(entry, level, allowed),
            // Blocks: 2 MiB and 1 GiB; 512 MiB and, with addresses of 52 bits, 4 TiB.
            (BLOCK, 1 | 2) => Self::page(entry, level, allowed),
            (PAGE_OR_TABLE, 1..) => Self::table(entry, level, allowed),
            _ => Entry::Absent,
        }
    }
}

impl<const PAGE_SHIFT: u32> Lpae<PAGE_SHIFT> {
    fn page(entry: u64, level: u32, allowed: Prot) -> Entry {
        let needed = UNPRIVILEGED | ACCESSED;
        if entry & needed != needed || entry & RESERVED_FOR_PAGES != 0 {
            return Entry::Absent;
        }
        let shift = PAGE_SHIFT + level * (PAGE_SHIFT - 3);
        let target = Self::address(entry);
        // Bits below the address of a block are RES0. One of them (nT, FEAT_BBM) lets hardware
        // fault while the block is replaced: so does this.
        if target & ((1 << shift) - 1) != 0 {
            return Entry::Absent;
        }
        let write = allowed.write && entry & READ_ONLY == 0;
        Entry::Leaf { target, shift, prot: Prot { write, ..allowed } }
    }

    fn table(entry: u64, level: u32, allowed: Prot) -> Entry {
        if entry & (TABLE_PRIVILEGED | RESERVED_FOR_TABLES) != 0 {
            return Entry::Absent;
        }
        let write = allowed.write && entry & TABLE_READ_ONLY == 0;
        let allowed = Prot { write, ..allowed };
        Entry::Table { address: Self::address(entry), level: level - 1, allowed }
    }

    /// Bits 47 and below; with 64 KiB bits 51:48 are in 15:12 (FEAT_LPA; `iopte_to_paddr`).
    fn address(entry: u64) -> u64 {
        let low = entry & 0x0000_ffff_ffff_ffff & !((1 << PAGE_SHIFT) - 1);
        match PAGE_SHIFT {
            16 => low | (entry & 0xf000) << 36,
            _ => low,
        }
    }
}

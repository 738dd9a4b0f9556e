//! The entries of x86-64 page tables with 4 or 5 levels: Intel SDM volume 3A, 4.5 (tables 4-15 to
//! 4-20), and as VT-d's first stage, VT-d specification 3.6 and 9.7.

use super::walker::{Decode, Entry};
use crate::Prot;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// In an entry that may be for a page or a table: for a page.
const PAGE: u64 = 1 << 7;
/// Bits 62:52 are ignored (SDM 4.5.4), bit 63 forbids to execute.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Of the address in an entry for a superpage: the page attribute table, which is no reserved bit.
const PAT: u64 = 1 << 12;

pub(super) struct FirstStage;

impl Decode for FirstStage {
    fn decode(entry: u64, level: u32, allowed: Prot) -> Entry {
        // A DMA request is a user request unless the PASID entry and the device say otherwise:
        // every level must allow users (VT-d 3.6.1, SDM 4.6.1), and writing is what all levels
        // allow.
        if entry & (PRESENT | USER) != PRESENT | USER {
            return Entry::Absent;
        }
        let prot = Prot { read: allowed.read, write: allowed.write && entry & WRITE != 0 };
        let (address, shift) = (entry & ADDRESS, 12 + 9 * level);
        match level {
            // Bit 7 selects a memory type here.
            0 => Entry::Leaf { target: address, shift, prot },
            1 | 2 if entry & PAGE != 0 => {
                // Bits 20:13 or 29:13 are reserved (SDM tables 4-16 and 4-18).
                let target = address & !PAT;
                match target & ((1 << shift) - 1) {
                    0 => Entry::Leaf { target, shift, prot },
                    _ => Entry::Absent,
                }
            }
            // Bit 7 of a PML4E or PML5E is reserved (SDM tables 4-14 and 4-15).
            3.. if entry & PAGE != 0 => Entry::Absent,
            _ => Entry::Table { address, level: level - 1, allowed: prot },
        }
    }
}

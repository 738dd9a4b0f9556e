//! PASID tables that a program keeps in its own memory: which page table a PASID has.
//!
//! Like page tables they may hold anything: an entry that hardware would refuse is no entry.

use super::{Format, Root, TableMemory};

/// What a PASID table looks like. The numbers are those of the uAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum PasidFormat {
    /// VT-d scalable mode: a directory, and tables of 64 entries each.
    VtdScalable = 1,
    /// Arm SMMUv3: context descriptors in a row (`STE.S1Fmt` 0).
    ArmCdLinear = 2,
    /// Arm SMMUv3: two levels, with 64 context descriptors in each second-level table of 4 KiB
    /// (`STE.S1Fmt` 1).
    ArmCd4k = 3,
    /// The same with 1024 in 64 KiB (`STE.S1Fmt` 2).
    ArmCd64k = 4,
}

impl PasidFormat {
    /// All of them, by number.
    pub const ALL: [Self; 4] =
        [Self::VtdScalable, Self::ArmCdLinear, Self::ArmCd4k, Self::ArmCd64k];

    /// The number that stands for it in the uAPI.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The format with a number of the uAPI, if there is one.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.number() == number)
    }

    /// A short name, as it is shown and typed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::VtdScalable => "vtd-scalable",
            Self::ArmCdLinear => "arm-cd",
            Self::ArmCd4k => "arm-cd-4k",
            Self::ArmCd64k => "arm-cd-64k",
        }
    }

    /// What the address of the table is a multiple of.
    pub const fn alignment(self) -> u64 {
        match self {
            Self::VtdScalable => 0x1000,
            // STE.S1ContextPtr has the bits 51:6.
            Self::ArmCdLinear | Self::ArmCd4k | Self::ArmCd64k => 64,
        }
    }
}

/// How DMA with a PASID is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidTarget {
    /// By a page table.
    Table(Root),
    /// Not at all: IOVAs are addresses of the parent.
    PassThrough,
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Both formats have entries of 64 bytes, of which the first 24 say what is needed.
const ENTRY: u64 = 64;

/// What the entry of `pasid` says, in the table of `1 << pasid_bits` PASIDs at `address` of the
/// parent. `None` if DMA with that PASID faults: it is not in the table, its entry is not valid or
/// cannot be read, or wants what this cannot do:
///
/// - VT-d: nested translation (PGTT 011b), of which the second stage would be another table
///   between the first and the parent.
/// - Arm: pages of 16 KiB, big-endian tables, AArch32, no fault for a clear access flag (AFFD),
///   no hierarchical attributes (HAD0). The upper half of addresses (TTB1) is not translated.
///
/// Fields of an entry that have no bearing on these (domains, ids, caching, what was reserved when
/// this was written) are not looked at.
///
/// # Errors
///
/// The memory failed.
pub fn find<M: TableMemory>(
    format: PasidFormat,
    address: u64,
    pasid_bits: u32,
    pasid: u32,
    memory: &mut M,
) -> Result<Option<PasidTarget>, M::Error> {
    // An address with more bits than there are in the parent would be cut short by hardware.
    let well_formed = address.is_multiple_of(format.alignment()) && address >> 52 == 0;
    if !well_formed || pasid_bits > 20 || pasid >> pasid_bits != 0 {
        return Ok(None);
    }
    let index = u64::from(pasid);
    let entry = match format {
        PasidFormat::VtdScalable => {
            // VT-d 9.5: present, fault processing off, 11:2 reserved, the table's address.
            let table = word(memory, address + (index >> 6) * 8)?;
            let table = table.filter(|table| table & 1 == 1 && table & 0xffc == 0);
            table.map(|table| (table & !0xfff) + (index & 63) * ENTRY)
        }
        PasidFormat::ArmCdLinear => Some(address + index * ENTRY),
        PasidFormat::ArmCd4k => arm_second(memory, address, index, 6)?,
        PasidFormat::ArmCd64k => arm_second(memory, address, index, 10)?,
    };
    // A table may have more bits in its address than the parent; nothing is there.
    let Some(entry) = entry.filter(|entry| entry >> 52 == 0) else { return Ok(None) };
    let mut bytes = [0; 24];
    if !memory.read(entry, &mut bytes)? {
        return Ok(None);
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte]));
    Ok(match format {
        PasidFormat::VtdScalable => vtd(word(0), word(2)),
        PasidFormat::ArmCdLinear | PasidFormat::ArmCd4k | PasidFormat::ArmCd64k => {
            arm(word(0), word(1))
        }
    })
}

/// The address of a context descriptor in a table of two levels: SMMUv3 5.4.1, "Level 1 context
/// descriptor": V in bit 0, the second table in 51:12.
fn arm_second<M: TableMemory>(
    memory: &mut M,
    address: u64,
    index: u64,
    shift: u32,
) -> Result<Option<u64>, M::Error> {
    let first = word(memory, address + (index >> shift) * 8)?.filter(|first| first & 1 == 1);
    Ok(first.map(|first| (first & ADDRESS) + (index & ((1 << shift) - 1)) * ENTRY))
}

fn word<M: TableMemory>(memory: &mut M, address: u64) -> Result<Option<u64>, M::Error> {
    let mut bytes = [0; 8];
    Ok(memory.read(address, &mut bytes)?.then(|| u64::from_le_bytes(bytes)))
}

/// VT-d 9.6, scalable-mode PASID table entry: bits 63:0 and 191:128 of it. Linux:
/// drivers/iommu/intel/pasid.h.
fn vtd(low: u64, first_stage: u64) -> Option<PasidTarget> {
    if low & 1 == 0 {
        return None;
    }
    let root = match low >> 6 & 7 {
        // FSPM in bits 131:130: 4 or 5 levels. FSPTPTR in 191:140.
        0b001 => match first_stage >> 2 & 3 {
            0 => Root::new(Format::X86Level4, first_stage & !0xfff, 48),
            1 => Root::new(Format::X86Level5, first_stage & !0xfff, 57),
            _ => return None,
        },
        // AW in bits 4:2: 3, 4 or 5 levels. SSPTPTR in 63:12.
        0b010 => match low >> 2 & 7 {
            levels @ 1..=3 => Root::new(Format::VtdSecond, low & !0xfff, 30 + 9 * levels as u32),
            _ => return None,
        },
        0b100 => return Some(PasidTarget::PassThrough),
        _ => return None,
    };
    root.ok().map(PasidTarget::Table)
}

/// SMMUv3 5.4, context descriptor: its first 16 bytes. Linux:
/// drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h.
fn arm(low: u64, table: u64) -> Option<PasidTarget> {
    const EPD0: u64 = 1 << 14;
    const ENDI: u64 = 1 << 15;
    const VALID: u64 = 1 << 31;
    const AFFD: u64 = 1 << 35;
    const AA64: u64 = 1 << 41;
    const HAD0: u64 = 1 << 1;
    if low & (VALID | AA64 | EPD0 | ENDI | AFFD) != VALID | AA64 || table & HAD0 != 0 {
        return None;
    }
    let format = match low >> 6 & 3 {
        0 => Format::ArmLpae4k,
        1 => Format::ArmLpae64k,
        _ => return None,
    };
    // T0SZ in bits 5:0, TTB0 in 51:4.
    let width = 64 - (low & 0x3f) as u32;
    Root::new(format, table & 0x000f_ffff_ffff_fff0, width).ok().map(PasidTarget::Table)
}

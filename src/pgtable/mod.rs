//! Page tables that a program keeps in its own memory: which formats there are, and what a table
//! maps.
//!
//! A [`walk`] goes through a table and tells each [`Leaf`] that it finds. The pointers in the
//! table and the targets of its leaves are addresses of a *parent* address space, like the
//! guest-physical addresses of a virtual machine. What lies there is read through a
//! [`TableMemory`]: this module knows no memory, keeps nothing between two walks, and leaves it to
//! others what to do with a leaf. [`pasid`] finds the page table of a PASID.
//!
//! **Tables are hostile.** A program may write anything into its memory, and while it is read. An
//! entry that hardware would refuse (a reserved bit, a superpage that is not aligned, a pointer
//! to where nothing is) maps nothing, as it would there; nothing in a table makes a walk fail,
//! panic or overflow. Each entry is read once and judged by what that read gave. A walk is never
//! deeper than the format has levels, and a [`Budget`] bounds how much of it there is: tables may
//! name each other or themselves, so that a few pages of memory can mean 2^36 leaves.
//!
//! **Exactly as hardware.** The rules are those of the specifications, named where they are
//! applied: the Intel SDM (volume 3A) and the VT-d specification, the AMD IOMMU specification,
//! the Arm Architecture Reference Manual and SMMUv3. Where a specification leaves a choice, what
//! Linux writes into such tables decides. What the formats have in common here:
//!
//! - Every rule is for requests without privilege, which DMA requests are.
//! - Addresses of the parent have 52 bits (48 in Arm tables with 4 KiB pages).
//! - Whether a page may be executed does not matter: devices read and write.
//! - Accessed and dirty bits are neither needed nor set, but for Arm's access flag, whose
//!   absence is a fault there.

mod amd;
mod arm;
pub mod pasid;
#[cfg(test)]
mod tests;
mod vtd_second;
mod walker;
mod x86;

use std::fmt;

use crate::{Prot, Range, RangeSet};
use walker::Walker;

/// Reads the memory in which a table lies, at addresses of the parent.
///
/// A table may change while it is read. Each aligned group of 8 bytes should then be read at once,
/// as hardware does; otherwise an entry may be seen that never was there, which does no more harm
/// than any other entry that a program can write.
pub trait TableMemory {
    /// Why memory that is there cannot be read.
    type Error;

    /// Fills `buffer` with what is at `address`, which is a multiple of 8, and behind it. Returns
    /// `Ok(false)` if a part of that is not there or is not readable, whatever is in the buffer
    /// then: the walk goes on as if no entry there were present.
    ///
    /// # Errors
    ///
    /// An error ends the walk.
    fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<bool, Self::Error>;
}

/// What the entries of a page table look like. The numbers are those of the uAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Format {
    /// x86-64 with 4 levels: what a processor uses, and VT-d as a first stage.
    X86Level4 = 1,
    /// The same with 5 levels.
    X86Level5 = 2,
    /// VT-d, second stage, with 3 to 5 levels.
    VtdSecond = 3,
    /// The I/O page table of AMD's IOMMU ("v1", the host's), with 3 to 6 levels.
    AmdV1 = 4,
    /// Arm VMSAv8-64, stage 1, with pages of 4 KiB.
    ArmLpae4k = 5,
    /// The same with pages of 64 KiB and output addresses of 52 bits (FEAT_LPA).
    ArmLpae64k = 6,
}

impl Format {
    /// All of them, by number.
    pub const ALL: [Self; 6] = [
        Self::X86Level4,
        Self::X86Level5,
        Self::VtdSecond,
        Self::AmdV1,
        Self::ArmLpae4k,
        Self::ArmLpae64k,
    ];

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
            Self::X86Level4 => "x86-4level",
            Self::X86Level5 => "x86-5level",
            Self::VtdSecond => "vtd-second",
            Self::AmdV1 => "amd-v1",
            Self::ArmLpae4k => "arm-lpae-4k",
            Self::ArmLpae64k => "arm-lpae-64k",
        }
    }

    /// The address widths that a table of this format can have, as a sentence says them.
    pub const fn widths(self) -> &'static str {
        match self {
            Self::X86Level4 => "48",
            Self::X86Level5 => "57",
            Self::VtdSecond => "39, 48 or 57",
            Self::AmdV1 => "39, 48, 57 or 64",
            Self::ArmLpae4k | Self::ArmLpae64k => "25 to 48",
        }
    }

    /// Whether a table of this format can translate addresses of `width` bits.
    fn has_width(self, width: u32) -> bool {
        match self {
            Self::X86Level4 => width == 48,
            Self::X86Level5 => width == 57,
            Self::VtdSecond => matches!(width, 39 | 48 | 57),
            Self::AmdV1 => matches!(width, 39 | 48 | 57 | 64),
            Self::ArmLpae4k | Self::ArmLpae64k => (25..=48).contains(&width),
        }
    }

    /// log2 of the smallest page.
    const fn page_shift(self) -> u32 {
        match self {
            Self::ArmLpae64k => 16,
            _ => 12,
        }
    }

    /// log2 of how many entries a table has, which fill a page of the smallest size.
    const fn stride(self) -> u32 {
        self.page_shift() - 3
    }

    /// How many bits an address of the parent has at most.
    const fn parent_bits(self) -> u32 {
        match self {
            Self::ArmLpae4k => 48,
            _ => 52,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a page table begins, and how it is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    format: Format,
    address: u64,
    address_width: u32,
}

/// Why there can be no page table like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum RootError {
    #[error(
        "a page table of format {format} cannot translate addresses of {width} bits: use {}",
        format.widths()
    )]
    Width { format: Format, width: u32 },
    #[error(
        "the page table's address {address:#x} is not a multiple of {align:#x}, as format {format} \
         wants it"
    )]
    Misaligned { format: Format, address: u64, align: u64 },
    #[error(
        "the page table's address {address:#x} has more than {bits} bits, the most that format \
         {format} knows"
    )]
    TooHigh { format: Format, address: u64, bits: u32 },
}

impl Root {
    /// A table of `format` whose root is at `address` of the parent and which translates
    /// addresses of `address_width` bits. That width gives the number of levels:
    ///
    /// | format | widths | levels |
    /// |---|---|---|
    /// | x86, 4 levels | 48 | 4 |
    /// | x86, 5 levels | 57 | 5 |
    /// | VT-d second stage | 39, 48, 57 | 3, 4, 5 |
    /// | AMD | 39, 48, 57, 64 | 3, 4, 5, 6 (`Mode` of a device table entry) |
    /// | Arm, 4 KiB | 25 to 48 (64 - `T0SZ`) | 2 up to 30 bits, 3 up to 39, else 4 |
    /// | Arm, 64 KiB | 25 to 48 | 1 up to 29 bits, 2 up to 42, else 3 |
    ///
    /// # Errors
    ///
    /// The format has no such width; the address is not aligned (to 4 KiB, or for Arm to the size
    /// of the root table, which is smaller with some widths); the address has too many bits.
    pub fn new(format: Format, address: u64, address_width: u32) -> Result<Self, RootError> {
        let root = Self { format, address, address_width };
        if !format.has_width(address_width) {
            return Err(RootError::Width { format, width: address_width });
        }
        let align = root.alignment();
        if !address.is_multiple_of(align) {
            return Err(RootError::Misaligned { format, address, align });
        }
        let bits = format.parent_bits();
        if address >> bits != 0 {
            return Err(RootError::TooHigh { format, address, bits });
        }
        Ok(root)
    }

    /// The format.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Where the root table is, in the parent.
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// How many bits an address has that it translates.
    pub const fn address_width(&self) -> u32 {
        self.address_width
    }

    /// How many levels of tables there are.
    pub const fn levels(&self) -> u32 {
        (self.address_width - self.format.page_shift()).div_ceil(self.format.stride())
    }

    /// The IOVAs that it can translate: with x86 the canonical addresses, a half at the bottom and
    /// a half at the top; else those of the address width.
    pub fn iovas(&self) -> RangeSet {
        self.halves().into_iter().flatten().map(|(iovas, _)| iovas).collect()
    }

    /// The IOVAs that it can translate, in ascending order, and the bits that those of a half have
    /// above the address width.
    fn halves(&self) -> [Option<(Range, u64)>; 2] {
        let width = self.address_width;
        let upto = |bits: u32| u64::MAX >> (64 - bits);
        match self.format {
            // SDM 3.3.7.1: the bits above repeat the highest bit of the address.
            Format::X86Level4 | Format::X86Level5 => {
                let half = upto(width - 1);
                [
                    Range::new(0, half).map(|low| (low, 0)),
                    Range::new(!half, u64::MAX).map(|high| (high, !upto(width))),
                ]
            }
            _ => [Range::new(0, upto(width)).map(|all| (all, 0)), None],
        }
    }

    /// The root of Arm tables may have fewer entries than others and is aligned to its size then,
    /// though to 64 bytes at least if addresses have 52 bits (Arm ARM, TTBR0_EL1.BADDR).
    const fn alignment(&self) -> u64 {
        let (format, below) = (self.format, self.levels() - 1);
        let entries = 1 << (self.address_width - format.page_shift() - below * format.stride());
        match format {
            Format::ArmLpae4k => 8 * entries,
            Format::ArmLpae64k if entries < 8 => 64,
            Format::ArmLpae64k => 8 * entries,
            _ => 0x1000,
        }
    }
}

/// A page that a table maps: `[iova, iova + size)` leads to `target` and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first IOVA, a multiple of `size`.
    pub iova: u64,
    /// Bytes, a power of two.
    pub size: u64,
    /// The address in the parent, a multiple of `size`.
    pub target: u64,
    /// What devices may do. Not nothing.
    pub prot: Prot,
}

/// How much a walk may still do. It is counted down, so that several walks can share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// How many times a table may be read. One that is named several times is read as often.
    pub tables: u64,
    /// How many leaves may be found.
    pub leaves: u64,
}

/// Why a walk ended early. The leaves that it had told by then are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError<E> {
    /// The memory of the table failed.
    #[error("{0}")]
    Memory(E),
    /// [`Budget::tables`] is used up.
    #[error("the page table leads to more tables than may be read for it")]
    TooManyTables,
    /// [`Budget::leaves`] is used up.
    #[error("the page table maps more pages than may be kept for it")]
    TooManyLeaves,
}

/// Tells every leaf that overlaps `range`, whole, in ascending order of IOVAs.
///
/// Leaves never overlap. Of a table only the entries for `range` are read, in one read (AMD: with
/// those around them that may belong to the same page; where that fails, page by page).
///
/// ```
/// use ioasid::pgtable::{Budget, Format, Leaf, Root, TableMemory, walk};
/// use ioasid::{Prot, Range};
///
/// struct Slice<'a>(&'a [u64]);
/// impl TableMemory for Slice<'_> {
///     type Error = std::convert::Infallible;
///     fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<bool, Self::Error> {
///         let (first, words) = (address as usize / 8, buffer.len() / 8);
///         let Some(found) = self.0.get(first..first + words) else { return Ok(false) };
///         for (bytes, word) in buffer.chunks_exact_mut(8).zip(found) {
///             bytes.copy_from_slice(&word.to_le_bytes());
///         }
///         Ok(true)
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Two tables of VT-d's second stage, and in the second a page of 2 MiB that may be read.
/// let mut memory = vec![0; 2 * 512];
/// memory[0] = 0x1000 | 0b11;
/// memory[512 + 5] = 0x4000_0000 | 1 << 7 | 0b01;
///
/// let root = Root::new(Format::VtdSecond, 0, 39)?;
/// let mut budget = Budget { tables: 100, leaves: 100 };
/// let mut found = vec![];
/// walk(&root, Range::ALL, &mut Slice(&memory), &mut budget, &mut |leaf| found.push(leaf))?;
/// let leaf = Leaf { iova: 0xa0_0000, size: 0x20_0000, target: 0x4000_0000, prot: Prot::READ };
/// assert_eq!(found, [leaf]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// The budget is used up, or the memory failed. Nothing in a table is an error.
pub fn walk<M: TableMemory>(
    root: &Root,
    range: Range,
    memory: &mut M,
    budget: &mut Budget,
    found: &mut impl FnMut(Leaf),
) -> Result<(), WalkError<M::Error>> {
    let walker = Walker::new(memory, budget, found);
    match root.format {
        Format::X86Level4 | Format::X86Level5 => walker.run::<x86::FirstStage>(root, range),
        Format::VtdSecond => walker.run::<vtd_second::SecondStage>(root, range),
        Format::AmdV1 => walker.run::<amd::V1>(root, range),
        Format::ArmLpae4k => walker.run::<arm::Lpae<12>>(root, range),
        Format::ArmLpae64k => walker.run::<arm::Lpae<16>>(root, range),
    }
}

//! The rules of page tables, one by one. The name of a test is the rule that it holds.
//!
//! Tables are written with numbers of their own, and a second reader ([`translate`]) follows one
//! address at a time, so that no mistake of the walker is repeated here unseen.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::pasid::{PasidFormat, PasidTarget, find};
use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PLENTY: Budget = Budget { tables: 100_000, leaves: 100_000 };
const NONE: Prot = Prot { read: false, write: false };

/// Memory from an address on, and what was read of it.
struct Memory {
    base: u64,
    /// How many words there are, and those at the beginning that are not zero.
    size: u64,
    words: Vec<u64>,
    /// Aligned pages of 4 KiB that are not there.
    holes: Vec<u64>,
    reads: Vec<(u64, u64)>,
}

impl Memory {
    fn new(base: u64, bytes: u64) -> Self {
        Self { base, size: bytes / 8, words: vec![], holes: vec![], reads: vec![] }
    }

    fn set(&mut self, address: u64, word: u64) {
        let at = (address - self.base) / 8;
        assert!(at < self.size, "{address:#x}");
        self.words.resize(self.words.len().max(at as usize + 1), 0);
        self.words[at as usize] = word;
    }

    fn get(&self, address: u64) -> Option<u64> {
        let at = address.checked_sub(self.base)? / 8;
        let there = at < self.size && !self.holes.contains(&(address & !0xfff));
        there.then(|| self.words.get(at as usize).copied().unwrap_or(0))
    }

    /// Puts words into all of it, again and again.
    fn fill(&mut self, words: &[u64]) {
        self.words = words.iter().copied().cycle().take(self.size as usize).collect();
    }

    fn bytes_read(&self) -> u64 {
        self.reads.iter().map(|(_, length)| length).sum()
    }
}

impl TableMemory for Memory {
    type Error = Infallible;

    fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<bool, Infallible> {
        assert!(address.is_multiple_of(8) && buffer.len().is_multiple_of(8) && !buffer.is_empty());
        for (index, bytes) in buffer.chunks_exact_mut(8).enumerate() {
            let Some(word) = self.get(address + index as u64 * 8) else {
                // Pages, if anybody looked at them.
                let pages = buffer.chunks_exact_mut(8);
                pages.for_each(|bytes| bytes.copy_from_slice(&0x7_0447u64.to_le_bytes()));
                return Ok(false);
            };
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        self.reads.push((address, buffer.len() as u64));
        Ok(true)
    }
}

fn root(format: Format, address: u64, width: u32) -> Root {
    Root::new(format, address, width).unwrap()
}

fn range(start: u64, last: u64) -> Range {
    Range::new(start, last).unwrap()
}

fn leaf(iova: u64, size: u64, target: u64, prot: Prot) -> Leaf {
    Leaf { iova, size, target, prot }
}

type Walked<E = Infallible> = (Vec<Leaf>, Result<(), WalkError<E>>);

fn walk_with<M: TableMemory>(
    root: &Root,
    range: Range,
    memory: &mut M,
    mut budget: Budget,
) -> Walked<M::Error> {
    let mut found = vec![];
    let result = walk(root, range, memory, &mut budget, &mut |leaf| found.push(leaf));
    (found, result)
}

/// All that a table maps.
fn walk_all(root: &Root, memory: &mut Memory) -> Vec<Leaf> {
    let (found, result) = walk_with(root, Range::ALL, memory, PLENTY);
    result.unwrap();
    found
}

/// What the tables of a format look like, for writing them.
#[derive(Clone, Copy, Debug)]
struct Shape {
    format: Format,
    width: u32,
    levels: u32,
    /// log2 of the bytes for which an entry of the lowest level is, and of the entries in a table.
    page: u32,
    stride: u32,
    /// The highest level that has pages, counted from 0.
    pages_upto: u32,
}

const fn shape(format: Format, width: u32, levels: u32, pages_upto: u32) -> Shape {
    let (page, stride) = match format {
        Format::ArmLpae64k => (16, 13),
        _ => (12, 9),
    };
    Shape { format, width, levels, page, stride, pages_upto }
}

const SHAPES: [Shape; 21] = [
    shape(Format::X86Level4, 48, 4, 2),
    shape(Format::X86Level5, 57, 5, 2),
    shape(Format::VtdSecond, 39, 3, 2),
    shape(Format::VtdSecond, 48, 4, 2),
    shape(Format::VtdSecond, 57, 5, 2),
    shape(Format::AmdV1, 39, 3, 2),
    shape(Format::AmdV1, 48, 4, 3),
    shape(Format::AmdV1, 57, 5, 4),
    shape(Format::AmdV1, 64, 6, 4),
    shape(Format::ArmLpae4k, 25, 2, 1),
    shape(Format::ArmLpae4k, 30, 2, 1),
    shape(Format::ArmLpae4k, 31, 3, 2),
    shape(Format::ArmLpae4k, 39, 3, 2),
    shape(Format::ArmLpae4k, 40, 4, 2),
    shape(Format::ArmLpae4k, 48, 4, 2),
    shape(Format::ArmLpae64k, 25, 1, 0),
    shape(Format::ArmLpae64k, 29, 1, 0),
    shape(Format::ArmLpae64k, 30, 2, 1),
    shape(Format::ArmLpae64k, 42, 2, 1),
    shape(Format::ArmLpae64k, 43, 3, 2),
    shape(Format::ArmLpae64k, 48, 3, 2),
];

impl Shape {
    /// log2 of what an entry of a level is for.
    fn shift(&self, level: u32) -> u32 {
        self.page + level * self.stride
    }

    /// The entry that leads to a table of `level`.
    fn table(&self, level: u32, address: u64) -> u64 {
        match self.format {
            Format::X86Level4 | Format::X86Level5 => address | 0b111,
            Format::VtdSecond => address | 0b11,
            Format::AmdV1 => address | 3 << 61 | u64::from(level + 1) << 9 | 1,
            Format::ArmLpae4k => address | 0b11,
            Format::ArmLpae64k => address & 0xffff_ffff_ffff | address >> 48 << 12 | 0b11,
        }
    }

    /// The entry for a page, in a table of `level`.
    fn leaf(&self, level: u32, target: u64, prot: Prot) -> u64 {
        let (read, write) = (u64::from(prot.read), u64::from(prot.write));
        let superpage = if level > 0 { 1 << 7 } else { 0 };
        let arm = 1 << 10 | (1 - write) << 7 | 1 << 6 | if level > 0 { 0b01 } else { 0b11 };
        match self.format {
            Format::X86Level4 | Format::X86Level5 => target | superpage | 0b101 | write << 1,
            Format::VtdSecond => target | superpage | write << 1 | read,
            Format::AmdV1 => target | write << 62 | read << 61 | 1,
            Format::ArmLpae4k => target | arm,
            Format::ArmLpae64k => target & 0xffff_ffff_ffff | target >> 48 << 12 | arm,
        }
    }

    /// What a page can allow.
    fn prot(&self, wanted: Prot) -> Prot {
        match self.format {
            Format::VtdSecond | Format::AmdV1 => wanted,
            _ => Prot { read: true, ..wanted },
        }
    }
}

/// A page table that is being written, at 1 MiB of the parent.
struct Tables {
    shape: Shape,
    memory: Memory,
    root: u64,
    next: u64,
}

impl Tables {
    fn new(shape: Shape, tables: u64) -> Self {
        let root = MIB;
        let memory = Memory::new(root, tables << shape.page);
        Self { shape, memory, root, next: root + (1 << shape.page) }
    }

    fn root(&self) -> Root {
        root(self.shape.format, self.root, self.shape.width)
    }

    /// Where a new table is.
    fn add(&mut self) -> u64 {
        let address = self.next;
        self.next += 1 << self.shape.page;
        address
    }

    /// Where the entry of `level` for an IOVA is, with the tables that lead there.
    fn entry(&mut self, iova: u64, level: u32) -> u64 {
        let Shape { width, levels, stride, .. } = self.shape;
        let (mut table, mut at) = (self.root, levels - 1);
        loop {
            let bits = if at == levels - 1 { width - self.shape.shift(at) } else { stride };
            let entry = table + (iova >> self.shape.shift(at) & ((1 << bits) - 1)) * 8;
            if at == level {
                return entry;
            }
            if self.memory.get(entry) == Some(0) {
                let below = self.add();
                self.memory.set(entry, self.shape.table(at - 1, below));
            }
            let present = self.memory.get(entry).unwrap();
            table = present & 0xffff_ffff_ffff & !((1 << self.shape.page) - 1);
            at -= 1;
        }
    }

    fn map(&mut self, iova: u64, level: u32, target: u64, prot: Prot) -> u64 {
        let entry = self.entry(iova, level);
        self.memory.set(entry, self.shape.leaf(level, target, prot));
        entry
    }

    fn map_pages(&mut self, level: u32, pages: &[Leaf]) {
        for page in pages {
            self.map(page.iova, level, page.target, page.prot);
        }
    }

    /// Sets bits of the entry of `level` for an IOVA.
    fn or(&mut self, iova: u64, level: u32, bits: u64) {
        let entry = self.entry(iova, level);
        let before = self.memory.get(entry).unwrap();
        self.memory.set(entry, before | bits);
    }

    fn clear(&mut self, iova: u64, level: u32, bits: u64) {
        let entry = self.entry(iova, level);
        let before = self.memory.get(entry).unwrap();
        self.memory.set(entry, before & !bits);
    }

    fn walk(&mut self) -> Vec<Leaf> {
        walk_all(&self.root(), &mut self.memory)
    }
}

fn tables(format: Format, width: u32) -> Tables {
    let shape = SHAPES.into_iter().find(|shape| shape.format == format && shape.width == width);
    Tables::new(shape.unwrap(), 16)
}

/// A second reader of tables: where one address leads, entry by entry.
fn translate(memory: &Memory, root: &Root, iova: u64) -> Option<(u64, Prot)> {
    let width = root.address_width();
    let below = |bits: u32| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let there = match root.format() {
        Format::X86Level4 | Format::X86Level5 => {
            (iova << (64 - width)) as i64 >> (64 - width) == iova as i64
        }
        _ => iova & !below(width) == 0,
    };
    if !there {
        return None;
    }
    let iova = iova & below(width);
    let (mut table, mut prot) = (root.address(), Prot::READ_WRITE);
    let mut shift = match root.format() {
        Format::ArmLpae64k => [16, 29, 42][root.levels() as usize - 1],
        _ => [12, 21, 30, 39, 48, 57][root.levels() as usize - 1],
    };
    // What the tables above left of the address.
    let mut rest = iova;
    loop {
        let entry = memory.get(table + (rest >> shift) * 8)?;
        rest &= below(shift);
        let address = entry & 0x000f_ffff_ffff_f000;
        match root.format() {
            Format::X86Level4 | Format::X86Level5 => {
                if entry & 1 == 0 || entry & 4 == 0 {
                    return None;
                }
                prot.write &= entry & 2 != 0;
                let large = entry & 0x80 != 0;
                match (shift, large) {
                    (12, _) => return Some((address + rest, prot)),
                    (21, true) if entry & 0x1f_e000 != 0 => return None,
                    (30, true) if entry & 0x3fff_e000 != 0 => return None,
                    (21 | 30, true) => return Some(((address & !0x1000) + rest, prot)),
                    (_, true) => return None,
                    _ => (table, shift) = (address, shift - 9),
                }
            }
            Format::VtdSecond => {
                prot.read &= entry & 1 != 0;
                prot.write &= entry & 2 != 0;
                if prot == NONE || entry & 1 << 62 != 0 {
                    return None;
                }
                let large = entry & 0x80 != 0;
                match (shift, large) {
                    (12, _) => return Some((address + rest, prot)),
                    (21, true) if entry & 0x1f_f000 != 0 => return None,
                    (30, true) if entry & 0x3fff_f000 != 0 => return None,
                    (21 | 30, true) => return Some((address + rest, prot)),
                    (_, true) => return None,
                    _ if entry & 0x800 != 0 => return None,
                    _ => (table, shift) = (address, shift - 9),
                }
            }
            Format::AmdV1 => {
                prot.read &= entry & 1 << 61 != 0;
                prot.write &= entry & 1 << 62 != 0;
                if prot == NONE || entry & 1 == 0 || entry & 0x7f << 52 != 0 {
                    return None;
                }
                let level = (shift - 3) / 9;
                match (entry >> 9) as u32 & 7 {
                    0 | 7 if level == 6 => return None,
                    0 if address & below(shift) != 0 => return None,
                    0 => return Some((address + rest, prot)),
                    7 => {
                        let zero = (12..52).find(|bit| address & 1 << bit == 0)?;
                        if zero < shift || zero + 1 > shift + 8 {
                            return None;
                        }
                        let page = below(zero + 1);
                        return Some((address & !page | iova & page, prot));
                    }
                    next if next >= level || entry & 3 << 59 != 0 => return None,
                    next => {
                        shift = 3 + 9 * next;
                        if rest & !below(shift + 9) != 0 {
                            return None;
                        }
                        table = address;
                    }
                }
            }
            Format::ArmLpae4k | Format::ArmLpae64k => {
                let page: u32 = if root.format() == Format::ArmLpae4k { 12 } else { 16 };
                let mut address = entry & 0xffff_ffff_ffff & !below(page);
                if page == 16 {
                    address |= (entry >> 12 & 0xf) << 48;
                }
                match (entry & 3, shift == page, shift >= 39 && page == 12) {
                    (3, true, _) | (1, false, false) => {
                        let bad = entry & 3 << 48 != 0 || address & below(shift) != 0;
                        if bad || entry & 0x440 != 0x440 {
                            return None;
                        }
                        prot.write &= entry & 0x80 == 0;
                        return Some((address + rest, prot));
                    }
                    (3, false, _) if entry & 7 << 48 == 0 && entry & 1 << 61 == 0 => {
                        prot.write &= entry & 1 << 62 == 0;
                        (table, shift) = (address, shift + 3 - page);
                    }
                    _ => return None,
                }
            }
        }
    }
}

// What a root can be.

#[test]
fn formats_have_the_numbers_of_the_uapi() {
    assert_eq!(Format::ALL.map(Format::number), [1, 2, 3, 4, 5, 6]);
    for format in Format::ALL {
        assert_eq!(Format::from_number(format.number()), Some(format));
    }
    assert_eq!((Format::from_number(0), Format::from_number(7)), (None, None));
    assert_eq!(PasidFormat::ALL.map(PasidFormat::number), [1, 2, 3, 4]);
    assert_eq!(PasidFormat::from_number(2), Some(PasidFormat::ArmCdLinear));
    assert_eq!(PasidFormat::from_number(5), None);
}

#[test]
fn a_root_has_a_width_of_its_format() {
    let widths = |format: Format| -> Vec<u32> {
        (0..=u8::MAX.into()).filter(|&width| Root::new(format, 0, width).is_ok()).collect()
    };
    assert_eq!(widths(Format::X86Level4), [48]);
    assert_eq!(widths(Format::X86Level5), [57]);
    assert_eq!(widths(Format::VtdSecond), [39, 48, 57]);
    assert_eq!(widths(Format::AmdV1), [39, 48, 57, 64]);
    assert_eq!(widths(Format::ArmLpae4k), Vec::from_iter(25..=48));
    assert_eq!(widths(Format::ArmLpae64k), Vec::from_iter(25..=48));
    let error = Root::new(Format::VtdSecond, 0, 42).unwrap_err();
    let sentence = "a page table of format vtd-second cannot translate addresses of 42 bits: use \
                    39, 48 or 57";
    assert_eq!(error.to_string(), sentence);
}

#[test]
fn the_width_gives_the_number_of_levels() {
    for shape in SHAPES {
        assert_eq!(root(shape.format, 0, shape.width).levels(), shape.levels, "{shape:?}");
    }
}

#[test]
fn a_root_is_aligned_to_its_page_or_the_size_of_the_table() {
    let aligned = |format, width, align: u64| {
        let other = Root::new(format, align / 2, width);
        assert_eq!(other, Err(RootError::Misaligned { format, address: align / 2, align }));
        assert!(Root::new(format, align, width).is_ok());
    };
    aligned(Format::X86Level4, 48, 4 * KIB);
    aligned(Format::AmdV1, 64, 4 * KIB);
    aligned(Format::ArmLpae4k, 48, 4 * KIB);
    // Two entries, sixteen; eight are the least with 64 KiB, as addresses have 52 bits.
    aligned(Format::ArmLpae4k, 31, 16);
    aligned(Format::ArmLpae4k, 25, 128);
    aligned(Format::ArmLpae64k, 42, 64 * KIB);
    aligned(Format::ArmLpae64k, 30, 64);
    aligned(Format::ArmLpae64k, 48, 512);
}

#[test]
fn a_root_is_an_address_that_the_format_can_say() {
    for format in [Format::X86Level4, Format::VtdSecond, Format::AmdV1, Format::ArmLpae64k] {
        assert!(Root::new(format, 1 << 51, 48).is_ok());
        let error = Root::new(format, 1 << 52, 48);
        assert_eq!(error, Err(RootError::TooHigh { format, address: 1 << 52, bits: 52 }));
    }
    assert!(Root::new(Format::ArmLpae4k, 1 << 47, 48).is_ok());
    assert!(Root::new(Format::ArmLpae4k, 1 << 48, 48).is_err());
}

#[test]
fn a_root_tells_the_iovas_it_can_translate() {
    let iovas = |format, width| root(format, 0, width).iovas().as_slice().to_vec();
    let low = range(0, 0x7fff_ffff_ffff);
    assert_eq!(iovas(Format::X86Level4, 48), [low, range(0xffff_8000_0000_0000, u64::MAX)]);
    assert_eq!(iovas(Format::VtdSecond, 39), [range(0, (1 << 39) - 1)]);
    assert_eq!(iovas(Format::AmdV1, 64), [Range::ALL]);
    assert_eq!(iovas(Format::ArmLpae4k, 25), [range(0, (1 << 25) - 1)]);
}

// x86.

#[test]
fn x86_an_entry_must_be_present_and_for_users_at_every_level() {
    for (level, bit) in [0, 1, 2, 3].into_iter().flat_map(|level| [(level, 1), (level, 4)]) {
        let mut tables = tables(Format::X86Level4, 48);
        tables.map(0x1000, 0, 5 * GIB, Prot::READ_WRITE);
        assert_eq!(tables.walk(), [leaf(0x1000, 0x1000, 5 * GIB, Prot::READ_WRITE)]);
        tables.clear(0x1000, level, bit);
        assert_eq!(tables.walk(), [], "level {level}, bit {bit}");
    }
}

#[test]
fn x86_writing_needs_leave_at_every_level() {
    for level in 0..4 {
        let mut tables = tables(Format::X86Level4, 48);
        tables.map(0x1000, 0, 5 * GIB, Prot::READ_WRITE);
        tables.clear(0x1000, level, 2);
        assert_eq!(tables.walk(), [leaf(0x1000, 0x1000, 5 * GIB, Prot::READ)]);
    }
}

#[test]
fn x86_superpages_have_2_mib_and_1_gib_and_no_reserved_bits() {
    for (level, size) in [(1, 2 * MIB), (2, GIB)] {
        let mut tables = tables(Format::X86Level5, 57);
        tables.map(GIB, level, 7 * GIB, Prot::READ);
        // Memory type (PAT), accessed, dirty, global.
        tables.or(GIB, level, 1 << 12 | 1 << 8 | 3 << 5);
        assert_eq!(tables.walk(), [leaf(GIB, size, 7 * GIB, Prot::READ)]);
        for bit in 13..size.trailing_zeros() {
            tables.or(GIB, level, 1 << bit);
            assert_eq!(tables.walk(), [], "bit {bit}");
            tables.clear(GIB, level, 1 << bit);
        }
    }
    for level in [3, 4] {
        let mut tables = tables(Format::X86Level5, 57);
        tables.map(0, level, 0, Prot::READ);
        assert_eq!(tables.walk(), []);
    }
}

#[test]
fn x86_bit_7_is_reserved_above_and_a_memory_type_below() {
    for (level, found) in [(4, 0), (3, 0), (0, 1)] {
        let mut tables = tables(Format::X86Level5, 57);
        tables.map(0x1000, 0, 0x5000, Prot::READ);
        tables.or(0x1000, level, 1 << 7);
        assert_eq!(tables.walk().len(), found);
    }
}

#[test]
fn x86_bits_62_to_52_and_execution_are_ignored() {
    let mut tables = tables(Format::X86Level4, 48);
    tables.map(0x1000, 0, 0x5000, Prot::READ);
    for level in 0..4 {
        tables.or(0x1000, level, 0xfff << 52);
    }
    assert_eq!(tables.walk(), [leaf(0x1000, 0x1000, 0x5000, Prot::READ)]);
}

#[test]
fn x86_the_upper_half_is_at_the_top_of_the_address_space() {
    for (width, lowest) in [(48, 0xffff_8000_0000_0000), (57, 0xff00_0000_0000_0000)] {
        let format = if width == 48 { Format::X86Level4 } else { Format::X86Level5 };
        let mut tables = Tables::new(tables(format, width).shape, 32);
        let iovas = [0, (1 << (width - 1)) - 0x1000, lowest, !0xfff];
        for (index, iova) in iovas.into_iter().enumerate() {
            tables.map(iova, 0, index as u64 * GIB, Prot::READ);
        }
        let all = iovas.iter().zip(0..).map(|(&iova, n)| leaf(iova, 0x1000, n * GIB, Prot::READ));
        assert_eq!(tables.walk(), Vec::from_iter(all));
        // Addresses between the halves are not canonical.
        let between = range(1 << (width - 1), lowest - 1);
        let (root, memory) = (tables.root(), &mut tables.memory);
        assert_eq!(walk_with(&root, between, memory, PLENTY), (vec![], Ok(())));
    }
}

// VT-d, second stage.

#[test]
fn vtd_what_every_level_allows_is_allowed() {
    for read in 0..8 {
        for write in 0..8 {
            let mut tables = tables(Format::VtdSecond, 39);
            tables.map(0x1000, 0, 0x5000, Prot::READ_WRITE);
            for level in 0..3 {
                tables.clear(0x1000, level, (read >> level & 1) | (write >> level & 1) << 1);
            }
            let prot = Prot { read: read == 0, write: write == 0 };
            let expected = leaf(0x1000, 0x1000, 0x5000, prot);
            assert_eq!(tables.walk(), if prot == NONE { vec![] } else { vec![expected] });
        }
    }
}

#[test]
fn vtd_superpages_have_2_mib_and_1_gib_and_no_reserved_bits() {
    for (level, size) in [(1, 2 * MIB), (2, GIB)] {
        let mut tables = tables(Format::VtdSecond, 57);
        tables.map(GIB, level, 7 * GIB, Prot::WRITE);
        // Snooping, accessed, dirty, and ignored bits.
        tables.or(GIB, level, 1 << 63 | 0x3ff << 52 | 1 << 11 | 1 << 9 | 1 << 8);
        assert_eq!(tables.walk(), [leaf(GIB, size, 7 * GIB, Prot::WRITE)]);
        for bit in (12..size.trailing_zeros()).chain([62]) {
            tables.or(GIB, level, 1 << bit);
            assert_eq!(tables.walk(), [], "bit {bit}");
            tables.clear(GIB, level, 1 << bit);
        }
    }
    for level in [3, 4] {
        let mut tables = tables(Format::VtdSecond, 57);
        tables.map(0, level, 0, Prot::READ);
        assert_eq!(tables.walk(), []);
    }
}

#[test]
fn vtd_reserved_bits_of_entries_for_tables_make_them_absent() {
    for (level, bit) in [(4, 7), (3, 7), (4, 11), (3, 11), (2, 11), (1, 11), (1, 62), (0, 62)] {
        let mut tables = tables(Format::VtdSecond, 57);
        tables.map(0x1000, 0, 0x5000, Prot::READ);
        tables.or(0x1000, level, 1 << bit);
        assert_eq!(tables.walk(), [], "level {level}, bit {bit}");
    }
    let mut tables = tables(Format::VtdSecond, 57);
    tables.map(0x1000, 0, 0x5000, Prot::READ);
    tables.or(0x1000, 0, 1 << 11 | 1 << 7);
    assert_eq!(tables.walk().len(), 1);
}

// AMD.

#[test]
fn amd_what_every_level_allows_is_allowed() {
    for level in 0..4 {
        let mut tables = tables(Format::AmdV1, 48);
        tables.map(0x1000, 0, 0x5000, Prot::READ_WRITE);
        tables.clear(0x1000, level, 1 << 61);
        assert_eq!(tables.walk(), [leaf(0x1000, 0x1000, 0x5000, Prot::WRITE)]);
        tables.or(0x1000, level, 1 << 61);
        tables.clear(0x1000, level, 1 << 62);
        assert_eq!(tables.walk(), [leaf(0x1000, 0x1000, 0x5000, Prot::READ)]);
        tables.clear(0x1000, level, 1 << 61);
        assert_eq!(tables.walk(), []);
        tables.or(0x1000, level, 3 << 61);
        tables.clear(0x1000, level, 1);
        assert_eq!(tables.walk(), []);
    }
}

#[test]
fn amd_every_level_but_the_sixth_has_pages_of_its_own_size() {
    for level in 0..5 {
        let size = 1 << (12 + 9 * level);
        let mut tables = tables(Format::AmdV1, 64);
        tables.map(1 << 63, level, 3 << 48, Prot::READ);
        assert_eq!(tables.walk(), [leaf(1 << 63, size, 3 << 48, Prot::READ)]);
        if level > 0 {
            tables.or(1 << 63, level, size / 2);
            assert_eq!(tables.walk(), []);
        }
    }
    let mut tables = tables(Format::AmdV1, 64);
    tables.map(1 << 63, 5, 0, Prot::READ);
    assert_eq!(tables.walk(), []);
}

/// Writes a page whose size its address tells, in as many entries as it has room for.
fn map_sized(tables: &mut Tables, iova: u64, level: u32, shift: u32, target: u64) {
    let entry = tables.entry(iova, level);
    let word = target | ((1 << (shift - 1)) - 1) & !0xfff | 1 << 61 | 7 << 9 | 1;
    for index in 0..1 << (shift - 12 - 9 * level) {
        tables.memory.set(entry + index * 8, word);
    }
}

#[test]
fn amd_sizes_between_levels_are_told_by_the_address() {
    for level in 0..5u32 {
        for shift in (13 + 9 * level..21 + 9 * level).take_while(|&shift| shift < 52) {
            let mut tables = tables(Format::AmdV1, 64);
            let (iova, target) = (1 << 63, 1 << 51);
            map_sized(&mut tables, iova, level, shift, target);
            let page = leaf(iova, 1 << shift, target, Prot::READ);
            assert_eq!(tables.walk(), [page], "2^{shift}");
            // The whole page, from any part of it, whatever of it was accessed.
            let entry = tables.entry(iova, level);
            let word = tables.memory.get(entry + 8).unwrap();
            tables.memory.set(entry + 8, word | 3 << 5);
            let (root, last) = (tables.root(), iova + (1 << shift) - 1);
            let walked = walk_with(&root, range(last, last), &mut tables.memory, PLENTY);
            assert_eq!(walked, (vec![page], Ok(())));
        }
    }
}

#[test]
fn amd_sizes_of_other_levels_are_refused() {
    // 4 KiB cannot be said at all; 8 KiB to 1 MiB are of the lowest level.
    for (level, shift) in [(0, 21), (0, 22), (1, 13), (1, 20), (1, 21), (1, 30), (2, 30), (4, 53)] {
        let mut tables = tables(Format::AmdV1, 64);
        let entry = tables.entry(0, level);
        let word = ((1 << (shift - 1)) - 1) & !0xfff | 1 << 61 | 7 << 9 | 1;
        (0..512).for_each(|index| tables.memory.set(entry + index * 8, word));
        assert_eq!(tables.walk(), [], "level {level}, 2^{shift}");
    }
}

#[test]
fn amd_entries_that_differ_count_for_their_own_part_of_the_page() {
    let mut tables = tables(Format::AmdV1, 39);
    map_sized(&mut tables, 0, 0, 15, GIB);
    tables.map(0x3000, 0, 5 * GIB, Prot::WRITE);
    let parts = (0..8).map(|page| match page {
        3 => leaf(0x3000, 0x1000, 5 * GIB, Prot::WRITE),
        _ => leaf(page * 0x1000, 0x1000, GIB + page * 0x1000, Prot::READ),
    });
    assert_eq!(tables.walk(), Vec::from_iter(parts));
}

#[test]
fn amd_levels_can_be_left_out_for_addresses_that_have_zeros_there() {
    let mut tables = tables(Format::AmdV1, 64);
    let (third, first) = (tables.add(), tables.add());
    let entry = tables.entry(1 << 57, 5);
    // From the sixth level to the third, from there to the first.
    tables.memory.set(entry, third | 3 << 61 | 3 << 9 | 1);
    tables.memory.set(third + 8, first | 3 << 61 | 1 << 9 | 1);
    tables.memory.set(first + 511 * 8, (5 * GIB) | 1 << 61 | 1);
    let iova = (1 << 57) + GIB + 511 * 0x1000;
    assert_eq!(tables.walk(), [leaf(iova, 0x1000, 5 * GIB, Prot::READ)]);
    // With another bit of those left out, nothing is there.
    let root = tables.root();
    for bit in [39, 48, 56, 21, 29] {
        let other = range(iova | 1 << bit, iova | 1 << bit);
        assert_eq!(walk_with(&root, other, &mut tables.memory, PLENTY), (vec![], Ok(())));
    }
}

#[test]
fn amd_an_entry_leads_down() {
    for level in 0..5u32 {
        for next in u64::from(level) + 1..7 {
            let mut tables = tables(Format::AmdV1, 57);
            let (entry, root) = (tables.entry(0, level), tables.root);
            tables.memory.set(entry, root | 3 << 61 | next << 9 | 1);
            assert_eq!(tables.walk(), [], "level {level}, next level {next}");
        }
    }
}

#[test]
fn amd_reserved_bits_make_an_entry_absent() {
    for (level, bit, found) in [(0, 52, 0), (0, 58, 0), (0, 59, 1), (0, 60, 1), (0, 63, 1)]
        .into_iter()
        .chain([(1, 52, 0), (1, 58, 0), (1, 59, 0), (1, 60, 0), (1, 63, 1)])
    {
        let mut tables = tables(Format::AmdV1, 39);
        tables.map(0, 0, GIB, Prot::READ);
        tables.or(0, level, 1 << bit);
        assert_eq!(tables.walk().len(), found, "level {level}, bit {bit}");
    }
}

// Arm.

const ARM: [(Format, u32); 2] = [(Format::ArmLpae4k, 48), (Format::ArmLpae64k, 48)];

#[test]
fn arm_pages_are_accessed_and_for_the_unprivileged() {
    for (format, width) in ARM {
        let mut tables = tables(format, width);
        let size = 1 << tables.shape.page;
        tables.map(GIB, 0, 5 * GIB, Prot::READ_WRITE);
        // Not global, the contiguous hint, DBM, never to execute, free for software.
        tables.or(GIB, 0, 1 << 11 | 0xfff << 51);
        assert_eq!(tables.walk(), [leaf(GIB, size, 5 * GIB, Prot::READ_WRITE)]);
        tables.or(GIB, 0, 1 << 7);
        assert_eq!(tables.walk(), [leaf(GIB, size, 5 * GIB, Prot::READ)]);
        for bit in [0, 1, 6, 10] {
            tables.clear(GIB, 0, 1 << bit);
            assert_eq!(tables.walk(), [], "bit {bit}");
            tables.or(GIB, 0, 1 << bit);
        }
    }
}

#[test]
fn arm_tables_restrict_what_is_below() {
    for (format, width) in ARM {
        let mut tables = tables(format, width);
        let (top, size) = (tables.shape.levels - 1, 1 << tables.shape.page);
        tables.map(0, 0, 5 * GIB, Prot::READ_WRITE);
        // NSTable, XNTable, PXNTable and ignored bits.
        tables.or(0, top, 1 << 63 | 3 << 59 | 0xff << 51 | 0x3ff << 2);
        assert_eq!(tables.walk(), [leaf(0, size, 5 * GIB, Prot::READ_WRITE)]);
        tables.or(0, top, 1 << 62);
        assert_eq!(tables.walk(), [leaf(0, size, 5 * GIB, Prot::READ)]);
        tables.or(0, top, 1 << 61);
        assert_eq!(tables.walk(), []);
    }
}

#[test]
fn arm_blocks_are_at_the_levels_that_have_them() {
    let sizes = |format, width| -> Vec<u64> {
        let levels = tables(format, width).shape.levels;
        let found = (0..levels).flat_map(|level| {
            let mut tables = tables(format, width);
            tables.map(0, level, 4 * TIB, Prot::READ);
            tables.walk()
        });
        found.map(|leaf| leaf.size).collect()
    };
    assert_eq!(sizes(Format::ArmLpae4k, 48), [4 * KIB, 2 * MIB, GIB]);
    assert_eq!(sizes(Format::ArmLpae4k, 39), [4 * KIB, 2 * MIB, GIB]);
    assert_eq!(sizes(Format::ArmLpae4k, 30), [4 * KIB, 2 * MIB]);
    assert_eq!(sizes(Format::ArmLpae64k, 48), [64 * KIB, 512 * MIB, 4 * TIB]);
    assert_eq!(sizes(Format::ArmLpae64k, 42), [64 * KIB, 512 * MIB]);
    assert_eq!(sizes(Format::ArmLpae64k, 29), [64 * KIB]);
    // In the lowest table, what would be a block is reserved.
    for (format, width) in ARM {
        let mut tables = tables(format, width);
        tables.map(0, 0, GIB, Prot::READ);
        tables.clear(0, 0, 2);
        assert_eq!(tables.walk(), []);
    }
}

#[test]
fn arm_bits_that_must_be_zero_make_a_descriptor_absent() {
    let absent = |format, map_level, level, bit: u32| {
        let mut tables = tables(format, 48);
        tables.map(0, map_level, 4 * TIB, Prot::READ);
        assert_eq!(tables.walk().len(), 1);
        tables.or(0, level, 1 << bit);
        assert_eq!(tables.walk(), [], "{format}, level {level}, bit {bit}");
    };
    for (format, _) in ARM {
        (48..50).for_each(|bit| absent(format, 0, 0, bit));
        (48..51).for_each(|bit| absent(format, 0, 1, bit));
    }
    (12..21).for_each(|bit| absent(Format::ArmLpae4k, 1, 1, bit));
    (12..30).for_each(|bit| absent(Format::ArmLpae4k, 2, 2, bit));
    (16..29).for_each(|bit| absent(Format::ArmLpae64k, 1, 1, bit));
    (16..42).for_each(|bit| absent(Format::ArmLpae64k, 2, 2, bit));
}

#[test]
fn arm_with_64_kib_addresses_have_52_bits() {
    for level in 0..3 {
        let mut tables = tables(Format::ArmLpae64k, 48);
        let target = 0xa << 48 | 1 << 42;
        tables.map(0, level, target, Prot::READ);
        let found = tables.walk();
        assert_eq!((found.len(), found[0].target), (1, target));
    }
    // Tables as well.
    let mut memory = Memory::new(0xf << 48, 128 * KIB);
    memory.set(0xf << 48, 0x1_f003);
    memory.set((0xf << 48) + 64 * KIB, 0x443);
    let root = root(Format::ArmLpae64k, 0xf << 48, 42);
    assert_eq!(walk_all(&root, &mut memory), [leaf(0, 64 * KIB, 0, Prot::READ_WRITE)]);
}

// Any format.

#[test]
fn leaves_that_overlap_the_range_are_told_whole() {
    // Where there is room for four.
    for shape in SHAPES.into_iter().filter(|shape| shape.width >= shape.shift(1) + 2) {
        let mut tables = Tables::new(shape, 16);
        let level = shape.pages_upto.min(1);
        let size = 1 << shape.shift(level);
        // The lowest three pages of a size.
        let pages = [0, 1, 2].map(|page| leaf(page * size, size, page * size, Prot::READ));
        tables.map_pages(level, &pages);
        let (root, memory) = (tables.root(), &mut tables.memory);
        let mut within = |start, last| {
            let (found, result) = walk_with(&root, range(start, last), memory, PLENTY);
            result.unwrap();
            found
        };
        assert_eq!(within(size - 1, size), pages[..2], "{shape:?}");
        assert_eq!(within(size, 2 * size - 1), pages[1..2]);
        assert_eq!(within(2 * size + 1, u64::MAX), pages[2..]);
        assert_eq!(within(3 * size, u64::MAX), []);
    }
}

#[test]
fn a_walk_for_one_page_reads_one_entry_of_each_table() {
    for shape in SHAPES {
        let mut tables = Tables::new(shape, 16);
        tables.map(0, 0, 0, Prot::READ);
        let root = tables.root();
        let (found, _) = walk_with(&root, range(5, 5), &mut tables.memory, PLENTY);
        assert_eq!(found.len(), 1);
        // AMD: and those that could be for the same page.
        let entries = if shape.format == Format::AmdV1 { 256 } else { 1 };
        assert_eq!(tables.memory.reads.len(), shape.levels as usize);
        assert_eq!(tables.memory.bytes_read(), u64::from(shape.levels) * entries * 8);
    }
}

#[test]
fn each_table_is_read_at_once_and_each_entry_once() {
    let mut tables = tables(Format::VtdSecond, 39);
    for page in 0..512 {
        tables.map(page * 0x1000, 0, page * 0x1000, Prot::READ);
    }
    assert_eq!(tables.walk().len(), 512);
    let table = |index: u64| (MIB + index * 0x1000, 0x1000);
    assert_eq!(tables.memory.reads, [table(0), table(1), table(2)]);
}

#[test]
fn a_pointer_beyond_memory_leads_nowhere() {
    for shape in SHAPES.into_iter().filter(|shape| shape.levels > 1) {
        let mut tables = Tables::new(shape, 16);
        let present = 1 << shape.shift(1);
        tables.map(present, 0, 0, Prot::READ);
        for nowhere in [0, MIB - 0x1_0000, MIB + (16 << shape.page), 0xffff_ffff_0000] {
            let entry = tables.entry(0, 1);
            tables.memory.set(entry, shape.table(0, nowhere));
            let found = tables.walk();
            assert_eq!((found.len(), found[0].iova), (1, present), "{shape:?} {nowhere:#x}");
        }
    }
    // Nor does a root.
    let root = root(Format::X86Level4, 0, 48);
    assert_eq!(walk_all(&root, &mut Memory::new(MIB, MIB)), []);
}

#[test]
fn a_table_of_which_a_part_is_missing_has_its_other_entries() {
    let mut tables = tables(Format::ArmLpae64k, 42);
    let page = |index: u64| leaf(index << 16, 64 * KIB, index << 16, Prot::READ);
    let pages = [0, 511, 512, 1023, 1024, 8191].map(page);
    tables.map_pages(0, &pages);
    assert_eq!(tables.walk(), pages);
    // 512 entries are in 4 KiB: those of the second piece are gone.
    let table = tables.entry(0, 0);
    tables.memory.holes.push(table + 0x1000);
    assert_eq!(tables.walk(), [0, 511, 1024, 8191].map(page));
    let (root, part) = (tables.root(), range(511 << 16, (513 << 16) - 1));
    let found = walk_with(&root, part, &mut tables.memory, PLENTY);
    assert_eq!(found, (vec![page(511)], Ok(())));
}

#[test]
fn a_table_can_be_shared() {
    let mut tables = tables(Format::X86Level4, 48);
    tables.map(0x3000, 0, 0x5000, Prot::READ_WRITE);
    let entry = tables.entry(0, 1);
    let shared = tables.memory.get(entry).unwrap();
    tables.memory.set(entry + 8, shared);
    // Here for reading only.
    tables.memory.set(entry + 16, shared & !2);
    let pages = [
        leaf(0x3000, 0x1000, 0x5000, Prot::READ_WRITE),
        leaf(2 * MIB + 0x3000, 0x1000, 0x5000, Prot::READ_WRITE),
        leaf(4 * MIB + 0x3000, 0x1000, 0x5000, Prot::READ),
    ];
    assert_eq!(tables.walk(), pages);
}

#[test]
fn a_table_that_names_itself_ends_with_the_budget() {
    for shape in SHAPES {
        // One table, all of whose entries lead to it: 512^4 leaves with four levels. AMD's name
        // the level, so there it is each level's own.
        let levels = u64::from(shape.levels);
        let mut memory = Memory::new(0, levels << shape.page);
        for level in 0..levels {
            let (same, below) = (shape.format != Format::AmdV1, level.saturating_sub(1));
            let next = if same { 0 } else { below << shape.page };
            let word = match shape.format {
                Format::AmdV1 if level == 0 => shape.leaf(0, 0, Prot::READ_WRITE),
                // A table above, and a page in the lowest.
                Format::ArmLpae4k | Format::ArmLpae64k => 0x443,
                _ => shape.table(below as u32, next),
            };
            for index in 0..1 << shape.stride {
                memory.set((level << shape.page) + index * 8, word);
            }
        }
        let top = if shape.format == Format::AmdV1 { (levels - 1) << shape.page } else { 0 };
        let root = root(shape.format, top, shape.width);
        let few = Budget { tables: 2, leaves: u64::MAX };
        let (found, result) = walk_with(&root, Range::ALL, &mut memory, few);
        if shape.levels > 1 {
            assert_eq!(result, Err(WalkError::TooManyTables), "{shape:?}");
            assert_eq!(memory.reads.len(), 2);
        } else {
            assert_eq!(result, Ok(()));
        }
        assert!(found.len() <= 2 << shape.stride);
        let few = Budget { tables: u64::MAX, leaves: 100 };
        let (found, result) = walk_with(&root, Range::ALL, &mut memory, few);
        assert_eq!((found.len(), result), (100, Err(WalkError::TooManyLeaves)), "{shape:?}");
    }
}

#[test]
fn a_budget_is_counted_down_to_the_last() {
    let mut tables = tables(Format::AmdV1, 39);
    tables.map(0, 0, 0, Prot::READ);
    tables.map(0x1000, 0, 0, Prot::READ);
    let root = tables.root();
    let mut budget = Budget { tables: 3, leaves: 2 };
    walk(&root, Range::ALL, &mut tables.memory, &mut budget, &mut |_| ()).unwrap();
    assert_eq!(budget, Budget { tables: 0, leaves: 0 });
    let (found, result) =
        walk_with(&root, Range::ALL, &mut tables.memory, Budget { tables: 3, leaves: 1 });
    assert_eq!((found.len(), result), (1, Err(WalkError::TooManyLeaves)));
    let (found, result) =
        walk_with(&root, Range::ALL, &mut tables.memory, Budget { tables: 2, leaves: 2 });
    assert_eq!((found.len(), result), (0, Err(WalkError::TooManyTables)));
}

#[test]
fn a_huge_sparse_table_costs_what_is_in_it() {
    let mut tables = Tables::new(SHAPES[8], 81);
    let iovas = Vec::from_iter((0..16).map(|index| index << 60 | index << 40 | index << 13));
    for &iova in &iovas {
        tables.map(iova, 0, iova & 0xffff_f000, Prot::READ);
    }
    let found = tables.walk();
    assert_eq!(Vec::from_iter(found.iter().map(|leaf| leaf.iova)), iovas);
    assert!(tables.memory.reads.len() <= 1 + 16 * 5);
}

/// Memory that says something else each time it is read.
struct Changing {
    words: [u64; 5],
    reads: usize,
}

impl TableMemory for Changing {
    type Error = Infallible;

    fn read(&mut self, _address: u64, buffer: &mut [u8]) -> Result<bool, Infallible> {
        for bytes in buffer.chunks_exact_mut(8) {
            self.reads += 1;
            bytes.copy_from_slice(&self.words[self.reads % 5].to_le_bytes());
        }
        Ok(true)
    }
}

#[test]
fn a_table_that_changes_while_it_is_walked_gives_leaves_like_any_other() {
    for shape in SHAPES {
        let (table, page) = (shape.table(0, 0), shape.leaf(1, 0, Prot::READ));
        let words = [table, page, shape.table(1, 0), 0, u64::MAX];
        let root = root(shape.format, 0, shape.width);
        let budget = Budget { tables: 500, leaves: 500 };
        let (found, _) = walk_with(&root, Range::ALL, &mut Changing { words, reads: 0 }, budget);
        well_formed(&root, Range::ALL, &found);
    }
}

#[test]
fn memory_that_fails_ends_the_walk() {
    struct Failing;
    impl TableMemory for Failing {
        type Error = &'static str;
        fn read(&mut self, _: u64, _: &mut [u8]) -> Result<bool, &'static str> {
            Err("gone")
        }
    }
    let root = root(Format::X86Level4, 0, 48);
    let (found, result) = walk_with(&root, Range::ALL, &mut Failing, PLENTY);
    assert_eq!((found, result), (vec![], Err(WalkError::Memory("gone"))));
    let pasid = find(PasidFormat::VtdScalable, 0, 20, 0, &mut Failing);
    assert_eq!(pasid, Err("gone"));
}

/// What holds of the leaves of any table.
fn well_formed(root: &Root, range: Range, found: &[Leaf]) {
    let iovas = root.iovas();
    let mut behind = 0;
    for leaf in found {
        assert!(leaf.size.is_power_of_two() && leaf.size >= 1 << root.format().page_shift());
        assert!(leaf.iova.is_multiple_of(leaf.size) && leaf.target.is_multiple_of(leaf.size));
        assert!(u128::from(leaf.iova) >= behind, "in ascending order, without overlap");
        behind = u128::from(leaf.iova) + u128::from(leaf.size);
        assert!(leaf.prot != NONE);
        assert!(leaf.target + leaf.size <= 1 << 52);
        let page = Range::from_size(leaf.iova, leaf.size).unwrap();
        assert!(page.intersection(range).is_some());
        assert_eq!(iovas.gap_in(page), None);
    }
}

/// A page to be mapped: its level, its entries from the lowest level on, its target and rights.
type Page = (u32, Vec<usize>, u64, u8);

/// A shape, and pages for it.
fn pages() -> impl Strategy<Value = (usize, Vec<Page>)> {
    let page = (0..5u32, prop::collection::vec(0..6usize, 6), any::<u64>(), 1..4u8);
    (0..SHAPES.len(), prop::collection::vec(page, 1..40))
}

/// Entries that pages and samples are taken from, so that tables are shared and edges reached.
fn place(stride: u32, choice: usize) -> u64 {
    let last = (1 << stride) - 1;
    [0, 1, last / 2, last / 2 + 1, last - 1, last][choice]
}

/// The IOVA with those entries from the lowest level on.
fn address(shape: &Shape, places: &[usize]) -> u64 {
    let mut iova = 0;
    for (level, &choice) in (0..shape.levels).zip(places) {
        iova |= place(shape.stride, choice) << shape.shift(level);
    }
    let iova = if shape.width < 64 { iova & ((1 << shape.width) - 1) } else { iova };
    match shape.format {
        Format::X86Level4 | Format::X86Level5 if iova >> (shape.width - 1) != 0 => {
            iova | !((1 << shape.width) - 1)
        }
        _ => iova,
    }
}

/// An entry that may mean something in some format.
fn word() -> impl Strategy<Value = u64> {
    let low = prop::sample::select(vec![1, 3, 7, 0x443, 0x441, 0x4c3, 0x87, 0x83, 0x81, 0x801]);
    let low = prop_oneof![4 => low, 4 => (0..8u64).prop_map(|next| next << 9 | 1)];
    let shift = prop::sample::select(vec![12, 12, 12, 16, 16, 21, 29, 30, 39, 42]);
    let high = prop::sample::select(vec![0, 1 << 61, 2 << 61, 3 << 61, 3 << 61, 7 << 61, 1 << 59]);
    let ones = prop::sample::select(vec![0, 0, 0, 0x1000, 0x7000, 0x1f_f000, 0xff_f000]);
    let parts = (low, 0..4u64, shift, high, ones, any::<u64>(), 0..8u8);
    let built = parts.prop_map(|(low, page, shift, high, ones, noise, some)| {
        let noise = if some == 0 { 1 << (noise % 64) } else { 0 };
        (low | page << shift | high | ones) ^ noise
    });
    prop_oneof![12 => built, 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..Default::default() })]

    #[test]
    fn what_was_mapped_is_found(
        (choice, pages) in pages(),
        (first, second) in (prop::collection::vec(0..6usize, 6), prop::collection::vec(0..6usize, 6)),
    ) {
        let shape = SHAPES[choice];
        let mut tables = Tables::new(shape, 1 + 40 * 6);
        let mut mapped: BTreeMap<u64, Leaf> = BTreeMap::new();
        for (level, places, target, rights) in pages {
            let level = level.min(shape.pages_upto).min(shape.levels - 1);
            let size = 1 << shape.shift(level);
            let prot = shape.prot(Prot { read: rights & 1 != 0, write: rights & 2 != 0 });
            let bits = if shape.format == Format::ArmLpae4k { 48 } else { 52 };
            let page = leaf(
                address(&shape, &places) & !(size - 1),
                size,
                target & ((1 << bits) - 1) & !(size - 1),
                prot,
            );
            let below = mapped.range(..=page.iova + (size - 1)).next_back();
            if below.is_none_or(|(&iova, below)| iova + (below.size - 1) < page.iova) {
                tables.map(page.iova, level, page.target, prot);
                mapped.insert(page.iova, page);
            }
        }
        prop_assert_eq!(&tables.walk(), &Vec::from_iter(mapped.values().copied()));
        let (a, b) = (address(&shape, &first), address(&shape, &second));
        let part = range(a.min(b), a.max(b));
        let overlap = |page: &&Leaf| {
            Range::from_size(page.iova, page.size).unwrap().intersection(part).is_some()
        };
        let expected = Vec::from_iter(mapped.values().filter(overlap).copied());
        let root = tables.root();
        let (found, result) = walk_with(&root, part, &mut tables.memory, PLENTY);
        prop_assert_eq!(result, Ok(()));
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn garbage_maps_what_a_look_at_each_address_finds(
        choice in 0..SHAPES.len(),
        words in prop::collection::vec((0..3u64, 0..6usize, word()), 1..120),
        samples in prop::collection::vec((prop::collection::vec(0..6usize, 6), any::<u64>()), 1..30),
        replicas in prop::option::of((0..3u64, word())),
    ) {
        let shape = SHAPES[choice];
        let mut memory = Memory::new(0, 3 << shape.page);
        if let Some((table, word)) = replicas {
            // Pages that many entries are for are not met by chance.
            (0..1 << shape.stride).for_each(|n| memory.set((table << shape.page) + n * 8, word));
        }
        for (table, choice, word) in words {
            memory.set((table << shape.page) + place(shape.stride, choice) * 8, word);
        }
        let root = root(shape.format, 0, shape.width);
        let budget = Budget { tables: 300, leaves: 3000 };
        let (all, result) = walk_with(&root, Range::ALL, &mut memory, budget);
        well_formed(&root, Range::ALL, &all);
        prop_assert!(all.len() <= 3000 && memory.reads.len() <= 300);
        for (places, low) in samples {
            let iova = address(&shape, &places) | low & 0xfff;
            let one = range(iova, iova);
            let (found, walked) = walk_with(&root, one, &mut memory, PLENTY);
            prop_assert_eq!(walked, Ok(()));
            well_formed(&root, one, &found);
            let leads = |leaf: &Leaf| (leaf.target + (iova - leaf.iova), leaf.prot);
            let here = translate(&memory, &root, iova);
            prop_assert_eq!(found.first().map(leads), here, "{:?} {:#x}", shape, iova);
            if result.is_ok() {
                let within = all.iter().find(|leaf| leaf.iova <= iova && iova - leaf.iova < leaf.size);
                prop_assert_eq!(within, found.first());
            }
        }
    }

    #[test]
    fn a_budget_is_kept_whatever_the_table(
        choice in 0..SHAPES.len(),
        words in prop::collection::vec(word(), 1..64),
        (tables, leaves) in (0..50u64, 0..500u64),
    ) {
        let shape = SHAPES[choice];
        let mut memory = Memory::new(0, 4 << shape.page);
        memory.fill(&words);
        let root = root(shape.format, 0, shape.width);
        let (found, result) =
            walk_with(&root, Range::ALL, &mut memory, Budget { tables, leaves });
        well_formed(&root, Range::ALL, &found);
        prop_assert!(memory.reads.len() as u64 <= tables);
        prop_assert!(found.len() as u64 <= leaves);
        if result == Err(WalkError::TooManyLeaves) {
            prop_assert_eq!(found.len() as u64, leaves);
        }
    }
}

// PASID tables.

/// A VT-d PASID directory at 1 MiB with one table for the PASIDs from 64 on, and the entry of 65.
fn vtd_pasids(low: u64, first_stage: u64) -> Memory {
    let mut memory = Memory::new(MIB, 3 * 0x1000);
    memory.set(MIB + 8, MIB + 0x1000 + 1);
    memory.set(MIB + 0x1000 + 64, low);
    memory.set(MIB + 0x1000 + 64 + 16, first_stage);
    memory
}

fn vtd_pasid(low: u64, first_stage: u64) -> Option<PasidTarget> {
    let mut memory = vtd_pasids(low, first_stage);
    find(PasidFormat::VtdScalable, MIB, 20, 65, &mut memory).unwrap()
}

#[test]
fn vtd_a_pasid_has_the_translation_that_its_entry_names() {
    let table = |format, address, width| Some(PasidTarget::Table(root(format, address, width)));
    assert_eq!(vtd_pasid(1 << 6 | 1, 0x5000), table(Format::X86Level4, 0x5000, 48));
    // Other fields: supervisor and write protection, access flags.
    assert_eq!(vtd_pasid(1 << 6 | 3, 0x5000 | 0xf3), table(Format::X86Level4, 0x5000, 48));
    assert_eq!(vtd_pasid(1 << 6 | 1, 0x5000 | 1 << 2), table(Format::X86Level5, 0x5000, 57));
    for (aw, width) in [(1, 39), (2, 48), (3, 57)] {
        let low = 0x5000 | 2 << 6 | aw << 2 | 1;
        assert_eq!(vtd_pasid(low, 0), table(Format::VtdSecond, 0x5000, width));
    }
    assert_eq!(vtd_pasid(4 << 6 | 1, 0), Some(PasidTarget::PassThrough));
}

#[test]
fn vtd_an_entry_that_hardware_would_refuse_is_none() {
    assert_eq!(vtd_pasid(1 << 6, 0x5000), None, "not present");
    for kind in [0, 3, 5, 6, 7] {
        assert_eq!(vtd_pasid(kind << 6 | 1 << 2 | 1, 0x5000), None, "PGTT {kind}");
    }
    for mode in [2, 3] {
        assert_eq!(vtd_pasid(1 << 6 | 1, 0x5000 | mode << 2), None, "FSPM {mode}");
    }
    for aw in [0, 4, 5, 6, 7] {
        assert_eq!(vtd_pasid(0x5000 | 2 << 6 | aw << 2 | 1, 0), None, "AW {aw}");
    }
    assert_eq!(vtd_pasid(1 << 6 | 1, 1 << 52), None, "an address of 53 bits");
    for (directory, found) in [(1, true), (0, false), (5, false), (1 << 52 | 1, false)] {
        let mut memory = vtd_pasids(4 << 6 | 1, 0);
        memory.set(MIB + 8, MIB + 0x1000 + directory);
        let target = find(PasidFormat::VtdScalable, MIB, 20, 65, &mut memory).unwrap();
        assert_eq!(target.is_some(), found, "directory entry {directory:#x}");
    }
}

#[test]
fn a_pasid_beyond_the_table_or_memory_has_no_translation() {
    let mut memory = vtd_pasids(4 << 6 | 1, 0);
    let mut found = |bits, pasid| {
        find(PasidFormat::VtdScalable, MIB, bits, pasid, &mut memory).unwrap().is_some()
    };
    assert_eq!((found(20, 65), found(7, 65), found(6, 65)), (true, true, false));
    assert_eq!((found(20, 64), found(20, 0), found(20, 1 << 20)), (false, false, false));
    assert_eq!((found(21, 65), found(32, 65), found(u32::MAX, 65)), (false, false, false));
    // The directory has an entry of another table; there is none at all.
    assert!(!found(20, (1 << 20) - 1));
    for address in [0, MIB + 8, u64::MAX, 1 << 52, !0xfff] {
        for format in PasidFormat::ALL {
            assert_eq!(find(format, address, 20, 65, &mut memory), Ok(None));
        }
    }
}

/// A context descriptor: its first two words.
fn descriptor(t0sz: u64, granule: u64, table: u64) -> [u64; 2] {
    [1 << 41 | 1 << 31 | 1 << 30 | granule << 6 | t0sz, table]
}

fn arm_pasid([low, table]: [u64; 2]) -> Option<PasidTarget> {
    let mut memory = Memory::new(MIB, 0x1000);
    memory.set(MIB + 5 * 64, low);
    memory.set(MIB + 5 * 64 + 8, table);
    find(PasidFormat::ArmCdLinear, MIB, 6, 5, &mut memory).unwrap()
}

#[test]
fn arm_a_pasid_has_the_table_of_its_descriptor() {
    let table = |format, address, width| Some(PasidTarget::Table(root(format, address, width)));
    assert_eq!(arm_pasid(descriptor(16, 0, 0x5000)), table(Format::ArmLpae4k, 0x5000, 48));
    assert_eq!(arm_pasid(descriptor(25, 0, 0x5000)), table(Format::ArmLpae4k, 0x5000, 39));
    assert_eq!(arm_pasid(descriptor(22, 1, 0x5_0000)), table(Format::ArmLpae64k, 0x5_0000, 42));
    assert_eq!(arm_pasid(descriptor(39, 0, 0x80)), table(Format::ArmLpae4k, 0x80, 25));
    // Cacheability, output size, fault handling, ASID.
    let [low, address] = descriptor(16, 0, 0x5000);
    let other = 0xffff << 48 | 7 << 44 | 7 << 32 | 0x3f << 8;
    let found = arm_pasid([low | other & !(1 << 14 | 1 << 15) | 0x3f00 & !0xc000, address]);
    assert_eq!(found, table(Format::ArmLpae4k, 0x5000, 48));
}

#[test]
fn arm_a_descriptor_that_cannot_be_followed_is_none() {
    let good = descriptor(16, 0, 0x5000);
    assert!(arm_pasid(good).is_some());
    for (bit, what) in [(31, "V"), (41, "AA64")] {
        assert_eq!(arm_pasid([good[0] & !(1 << bit), good[1]]), None, "{what} is 0");
    }
    for (bit, what) in [(14, "EPD0"), (15, "ENDI"), (35, "AFFD"), (7, "TG0: 16 KiB")] {
        assert_eq!(arm_pasid([good[0] | 1 << bit, good[1]]), None, "{what}");
    }
    assert_eq!(arm_pasid([good[0], good[1] | 2]), None, "HAD0");
    for t0sz in [0, 15, 40, 63] {
        assert_eq!(arm_pasid(descriptor(t0sz, 0, 0)), None, "T0SZ {t0sz}");
    }
    assert_eq!(arm_pasid(descriptor(16, 0, 0x5010)), None, "TTB0 is not aligned");
    assert_eq!(arm_pasid(descriptor(16, 0, 1 << 48)), None, "TTB0 has 49 bits");
}

#[test]
fn arm_descriptors_can_be_in_tables_of_two_levels() {
    for (format, leaf) in [(PasidFormat::ArmCd4k, 64), (PasidFormat::ArmCd64k, 1024)] {
        let mut memory = Memory::new(MIB, MIB);
        let [low, table] = descriptor(16, 0, 0x5000);
        let pasid = 3 * leaf + leaf - 1;
        memory.set(MIB + 3 * 8, MIB + 0x1_0000 + 1);
        memory.set(MIB + 0x1_0000 + (leaf - 1) * 64, low);
        memory.set(MIB + 0x1_0000 + (leaf - 1) * 64 + 8, table);
        let mut found =
            |pasid: u64| find(format, MIB, 20, pasid as u32, &mut memory).unwrap().is_some();
        assert_eq!((found(pasid), found(pasid - 1), found(pasid - leaf)), (true, false, false));
        memory.set(MIB + 3 * 8, MIB + 0x1_0000);
        assert_eq!(find(format, MIB, 20, pasid as u32, &mut memory), Ok(None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_pasid_table_gives_roots_that_can_be_walked(
        choice in 0..PasidFormat::ALL.len(),
        words in prop::collection::vec(prop_oneof![any::<u64>(), word()], 32),
        (address, bits, pasid) in (0..4u64, 0..40u32, 0..2048u32),
    ) {
        let mut memory = Memory::new(0, 4 * 0x1000);
        memory.fill(&words);
        let found = find(PasidFormat::ALL[choice], address << 12, bits, pasid, &mut memory).unwrap();
        if let Some(PasidTarget::Table(root)) = found {
            let (format, width) = (root.format(), root.address_width());
            prop_assert_eq!(Root::new(format, root.address(), width), Ok(root));
        }
    }
}

//! The walk that all formats share. A format says what one entry means ([`Decode`]); here it is
//! read, followed and counted.
//!
//! Levels are counted from the bottom: a table of level 0 has entries for pages of the smallest
//! size, and the entries of level n are for 2^(page shift + n * stride) bytes each.

use std::mem;

use super::{Budget, Leaf, Root, TableMemory, WalkError};
use crate::{Prot, Range};

/// The most levels that a format has: AMD's six.
const MAX_LEVELS: usize = 6;
/// The smallest page that a parent maps: memory is there or not in such pieces at least.
const PIECE: u64 = 0x1000;

/// What one entry means.
pub(super) enum Entry {
    /// Nothing: a device that gets here has a translation fault.
    Absent,
    /// Another table, of a level below the entry's. If levels are left out between the two, the
    /// table is for the first addresses of the entry.
    Table {
        address: u64,
        level: u32,
        /// What entries in the table may allow.
        allowed: Prot,
    },
    /// A page of 2^`shift` bytes. If that is more than one entry is for, the following ones up to
    /// the next multiple of the size repeat it.
    Leaf { target: u64, shift: u32, prot: Prot },
}

/// What the entries of a format mean.
pub(super) trait Decode {
    /// How many entries at most may say the same about one page.
    const REPLICAS: u64 = 1;
    /// Bits in which entries that say the same may differ.
    const VOLATILE: u64 = 0;

    /// What an entry in a table of a level means if those that led there allow `allowed`.
    fn decode(entry: u64, level: u32, allowed: Prot) -> Entry;
}

/// A table, as the entry that leads to it says.
#[derive(Clone, Copy)]
struct Table {
    address: u64,
    level: u32,
    allowed: Prot,
    /// The first address that it translates.
    base: u64,
}

pub(super) struct Walker<'a, M, F> {
    memory: &'a mut M,
    budget: &'a mut Budget,
    found: &'a mut F,
    page_shift: u32,
    stride: u32,
    /// The bits above the address width.
    extension: u64,
    /// The entries of the tables that lead to where the walk is, by level.
    entries: [Vec<u8>; MAX_LEVELS],
}

impl<'a, M: TableMemory, F: FnMut(Leaf)> Walker<'a, M, F> {
    pub(super) fn new(memory: &'a mut M, budget: &'a mut Budget, found: &'a mut F) -> Self {
        let entries = Default::default();
        Self { memory, budget, found, page_shift: 0, stride: 0, extension: 0, entries }
    }

    pub(super) fn run<D: Decode>(
        mut self,
        root: &Root,
        range: Range,
    ) -> Result<(), WalkError<M::Error>> {
        self.page_shift = root.format.page_shift();
        self.stride = root.format.stride();
        let level = root.levels() - 1;
        let table = Table { address: root.address, level, allowed: Prot::READ_WRITE, base: 0 };
        for (iovas, extension) in root.halves().into_iter().flatten() {
            if let Some(part) = iovas.intersection(range) {
                self.extension = extension;
                self.table::<D>(table, part.start() & !extension, part.last() & !extension)?;
            }
        }
        Ok(())
    }

    /// Walks a table and what is below it, for the addresses from `first` to `last`, which it
    /// translates.
    fn table<D: Decode>(
        &mut self,
        table: Table,
        first: u64,
        last: u64,
    ) -> Result<(), WalkError<M::Error>> {
        self.budget.tables = self.budget.tables.checked_sub(1).ok_or(WalkError::TooManyTables)?;
        let shift = self.page_shift + table.level * self.stride;
        let (mut index, end) = ((first - table.base) >> shift, (last - table.base) >> shift);
        // All entries that may say the same as one of those.
        let (begin, behind) = (index & !(D::REPLICAS - 1), (end | (D::REPLICAS - 1)) + 1);

        // Kept for the next table of this level.
        let mut entries = mem::take(&mut self.entries[table.level as usize]);
        entries.resize((behind - begin) as usize * 8, 0);
        if !self.read(table.address + begin * 8, &mut entries).map_err(WalkError::Memory)? {
            self.entries[table.level as usize] = entries;
            return Ok(());
        }

        while index <= end {
            let start = table.base + (index << shift);
            match D::decode(entry(&entries, index - begin), table.level, table.allowed) {
                Entry::Absent => {}
                Entry::Table { address, level, allowed } => {
                    // The table may be for less than the entry, where levels are left out.
                    let size_shift = self.page_shift + (level + 1) * self.stride;
                    let last = last.min(start + ((1 << size_shift) - 1));
                    let first = first.max(start);
                    if first <= last {
                        let below = Table { address, level, allowed, base: start };
                        self.table::<D>(below, first, last)?;
                    }
                }
                Entry::Leaf { target, shift: size_shift, prot } if size_shift > shift => {
                    let count = 1 << (size_shift - shift);
                    let group = index & !(count - 1);
                    if same::<D>(&entries, group - begin, count) {
                        self.leaf(table.base + (group << shift), size_shift, target, prot)?;
                        index = group + count;
                        continue;
                    }
                    // Hardware looks at one entry only, so each is for its own part of the page.
                    self.leaf(start, shift, target + ((index - group) << shift), prot)?;
                }
                Entry::Leaf { target, prot, .. } => self.leaf(start, shift, target, prot)?,
            }
            index += 1;
        }
        self.entries[table.level as usize] = entries;
        Ok(())
    }

    fn leaf(
        &mut self,
        address: u64,
        shift: u32,
        target: u64,
        prot: Prot,
    ) -> Result<(), WalkError<M::Error>> {
        self.budget.leaves = self.budget.leaves.checked_sub(1).ok_or(WalkError::TooManyLeaves)?;
        (self.found)(Leaf { iova: self.extension | address, size: 1 << shift, target, prot });
        Ok(())
    }

    /// Reads what is there of a table, and zeros, which no format has for a present entry, where
    /// nothing is. Says whether anything is there.
    fn read(&mut self, address: u64, entries: &mut [u8]) -> Result<bool, M::Error> {
        if self.memory.read(address, entries)? {
            return Ok(true);
        }
        let last = address + (entries.len() as u64 - 1);
        if address / PIECE == last / PIECE {
            return Ok(false);
        }
        let (mut any, mut rest, mut address) = (false, entries, address);
        while !rest.is_empty() {
            let length = rest.len().min((PIECE - address % PIECE) as usize);
            let (piece, behind) = rest.split_at_mut(length);
            match self.memory.read(address, piece)? {
                true => any = true,
                false => piece.fill(0),
            }
            (rest, address) = (behind, address + length as u64);
        }
        Ok(any)
    }
}

fn entry(entries: &[u8], index: u64) -> u64 {
    let at = index as usize * 8;
    let bytes = entries[at..at + 8].first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(bytes)
}

/// Whether `count` entries say the same.
fn same<D: Decode>(entries: &[u8], first: u64, count: u64) -> bool {
    let said = entry(entries, first) & !D::VOLATILE;
    (1..count).all(|next| entry(entries, first + next) & !D::VOLATILE == said)
}

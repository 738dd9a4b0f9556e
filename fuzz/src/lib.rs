//! What the fuzz targets share: how the bytes of an input are a memory, a root and a range, and
//! what must hold of every walk.
//!
//! An input to a page-table target has this form; what is missing is zero:
//!
//! | bytes | |
//! |---|---|
//! | 0 | which width of the format |
//! | 1 | the page at which the root is |
//! | 2, 3 | how many tables and leaves (times 4) the budget has |
//! | 4..20 | the first and the last address of the range, in either order |
//! | from 20 | the memory, by entries: see [`Memory::new`] |

use std::collections::BTreeMap;
use std::convert::Infallible;

use ioasid::pgtable::{Budget, Format, Leaf, Root, TableMemory, WalkError, walk};
use ioasid::{Prot, Range};

/// How many pages of memory there are. Few, so that a pointer often leads to a table.
const PAGES: u64 = 8;

/// Memory from address 0 on that holds the entries of an input, and counts what is read.
pub struct Memory {
    page: u64,
    /// By address.
    entries: BTreeMap<u64, u64>,
    reads: u64,
}

impl Memory {
    /// Entries of 10 bytes each: in the first byte the page and, in bit 7, whether the next byte
    /// counts from the end of the page; which word of the page; the word.
    pub fn new(page: u64, input: &[u8]) -> Self {
        let entries = input.chunks_exact(10).map(|bytes| {
            let words = page / 8;
            let index = u64::from(bytes[1]) % words;
            let index = if bytes[0] & 0x80 == 0 { index } else { words - 1 - index };
            let address = u64::from(bytes[0]) % PAGES * page + index * 8;
            (address, u64::from_le_bytes(std::array::from_fn(|byte| bytes[2 + byte])))
        });
        Self { page, entries: entries.collect(), reads: 0 }
    }
}

impl TableMemory for Memory {
    type Error = Infallible;

    fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<bool, Infallible> {
        assert!(address.is_multiple_of(8) && buffer.len().is_multiple_of(8) && !buffer.is_empty());
        assert!(buffer.len() as u64 <= self.page, "no more than a table is read at a time");
        let end = address.checked_add(buffer.len() as u64).expect("no address beyond 2^64");
        if end > PAGES * self.page {
            return Ok(false);
        }
        self.reads += 1;
        buffer.fill(0);
        for (at, word) in self.entries.range(address..end) {
            let at = (at - address) as usize;
            buffer[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        Ok(true)
    }
}

fn number(input: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| input.get(at + byte).copied().unwrap_or(0)))
}

fn page_size(format: Format) -> u64 {
    if format == Format::ArmLpae64k { 0x1_0000 } else { 0x1000 }
}

/// Walks the table of `format` that an input says, and checks what must hold of any walk.
pub fn check_walk(format: Format, input: &[u8]) {
    let byte = |at: usize| u32::from(input.get(at).copied().unwrap_or(0));
    let page = page_size(format);
    let widths = Vec::from_iter((0..=64).filter(|&width| Root::new(format, 0, width).is_ok()));
    let width = widths[byte(0) as usize % widths.len()];
    let address = u64::from(byte(1)) % PAGES * page;
    let root = Root::new(format, address, width).expect("the address is aligned");
    let given = Budget { tables: byte(2).into(), leaves: u64::from(byte(3)) * 4 };
    let (a, b) = (number(input, 4), number(input, 12));
    let range = Range::new(a.min(b), a.max(b)).expect("in order");
    let mut memory = Memory::new(page, input.get(20..).unwrap_or_default());

    let (mut budget, mut found) = (given, vec![]);
    let result = walk(&root, range, &mut memory, &mut budget, &mut |leaf| found.push(leaf));
    assert!(memory.reads <= given.tables - budget.tables);
    assert_eq!(found.len() as u64, given.leaves - budget.leaves);
    match result {
        Ok(()) => {}
        Err(WalkError::TooManyTables) => assert_eq!(budget.tables, 0),
        Err(WalkError::TooManyLeaves) => assert_eq!(budget.leaves, 0),
        Err(WalkError::Memory(never)) => match never {},
    }
    check_leaves(&root, range, &found);

    // A walk for the first address of a leaf finds the same leaf.
    if let Some(leaf) = found.first() {
        let (one, mut alone) = (Range::new(leaf.iova, leaf.iova).expect("one address"), vec![]);
        let mut budget = Budget { tables: 6, leaves: 1 };
        walk(&root, one, &mut memory, &mut budget, &mut |leaf| alone.push(leaf))
            .expect("one address needs a table of each level");
        assert_eq!(alone, [*leaf]);
    }
}

fn check_leaves(root: &Root, range: Range, found: &[Leaf]) {
    let (smallest, iovas) = (page_size(root.format()), root.iovas());
    let mut behind = 0;
    for leaf in found {
        assert!(leaf.size.is_power_of_two() && leaf.size >= smallest, "{leaf:x?}");
        assert!(
            leaf.iova.is_multiple_of(leaf.size) && leaf.target.is_multiple_of(leaf.size),
            "{leaf:x?}"
        );
        assert!(u128::from(leaf.iova) >= behind, "{leaf:x?} is behind {behind:#x}");
        behind = u128::from(leaf.iova) + u128::from(leaf.size);
        assert!(leaf.prot != Prot { read: false, write: false });
        assert!(leaf.target + leaf.size <= 1 << 52, "{leaf:x?}");
        let page = Range::from_size(leaf.iova, leaf.size).expect("an end within 2^64");
        assert!(page.intersection(range).is_some(), "{leaf:x?} {range}");
        assert_eq!(iovas.gap_in(page), None, "{leaf:x?}");
    }
}

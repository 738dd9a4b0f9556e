//! One I/O address space: what it maps. It knows page tables and devices only by name.

use std::collections::BTreeMap;

use crate::{Geometry, GroupId, MemoryId, Prot, Range};

/// A mapping, kept under its first IOVA. There may be millions: at most 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The last IOVA.
    pub(crate) last: u64,
    /// Where the memory is in the program.
    pub(crate) vaddr: u64,
    pub(crate) memory: MemoryId,
    pub(crate) prot: Prot,
}

const _: () = assert!(size_of::<Mapping>() <= 32);

/// What the tables of an address space are able to hold alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) geometry: Geometry,
    /// All of the tables are simulated.
    pub(crate) simulated: bool,
}

/// An I/O address space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    mappings: BTreeMap<u64, Mapping>,
    mapped_bytes: u128,
    /// The tables that show it.
    pub(crate) tables: Vec<GroupId>,
    /// That of its tables; without tables, that of the last it had; `None` before the first.
    pub(crate) shape: Option<Shape>,
}

/// What [`Space::remove`] took out.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) memories: Vec<MemoryId>,
    pub(crate) bytes: u128,
}

impl Space {
    /// How many mappings there are.
    pub(crate) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// How many bytes they cover.
    pub(crate) fn mapped_bytes(&self) -> u128 {
        self.mapped_bytes
    }

    /// The mappings that begin in `range`, in ascending order.
    pub(crate) fn iter(
        &self,
        range: Range,
    ) -> impl DoubleEndedIterator<Item = (Range, &Mapping)> + use<'_> {
        self.mappings.range(range.start()..=range.last()).map(extent)
    }

    /// The mapping that `iova` lies in.
    pub(crate) fn find(&self, iova: u64) -> Option<(Range, &Mapping)> {
        self.last_before(iova).filter(|(range, _)| iova <= range.last())
    }

    /// The highest mapping that overlaps `range`.
    pub(crate) fn overlapping(&self, range: Range) -> Option<Range> {
        let (highest, _) = self.last_before(range.last())?;
        (range.start() <= highest.last()).then_some(highest)
    }

    /// From the first to the last mapping in `range`, or `None` if there is none.
    ///
    /// # Errors
    /// The mapping that `range` begins or ends inside of.
    pub(crate) fn inside(&self, range: Range) -> Result<Option<Range>, Range> {
        let Some((highest, _)) = self.last_before(range.last()) else { return Ok(None) };
        if highest.last() < range.start() {
            return Ok(None);
        }
        if highest.last() > range.last() {
            return Err(highest);
        }
        if highest.start() == range.start() {
            return Ok(Some(highest));
        }
        if let Some((cut, _)) = self.find(range.start()).filter(|(at, _)| !range.contains(*at)) {
            return Err(cut);
        }
        let lowest = self.iter(range).next().map(|(lowest, _)| lowest.start());
        Ok(lowest.and_then(|start| Range::new(start, highest.last())))
    }

    /// Adds a mapping that overlaps no other.
    pub(crate) fn insert(&mut self, iova: u64, mapping: Mapping) {
        self.mapped_bytes += extent((&iova, &mapping)).0.bytes();
        self.mappings.insert(iova, mapping);
    }

    /// Removes the mappings in `range`, which begins and ends with a mapping.
    pub(crate) fn remove(&mut self, range: Range) -> Removed {
        let mut removed = Removed::default();
        let mut next = Some(range.start());
        while let Some(start) = next {
            let Some(mapping) = self.mappings.remove(&start) else { break };
            removed.bytes += extent((&start, &mapping)).0.bytes();
            removed.memories.push(mapping.memory);
            next = Range::new(mapping.last, range.last())
                .filter(|rest| mapping.last < rest.last())
                .and_then(|rest| self.iter(rest).next())
                .map(|(mapped, _)| mapped.start());
        }
        self.mapped_bytes -= removed.bytes;
        removed
    }

    /// The memory of all mappings, for one who drops them all.
    pub(crate) fn memories(&self) -> impl Iterator<Item = MemoryId> + use<'_> {
        self.mappings.values().map(|mapping| mapping.memory)
    }

    /// The highest mapping that begins at or below `iova`.
    fn last_before(&self, iova: u64) -> Option<(Range, &Mapping)> {
        self.mappings.range(..=iova).next_back().map(extent)
    }
}

/// A mapping with the IOVAs that it covers.
fn extent<'a>((start, mapping): (&u64, &'a Mapping)) -> (Range, &'a Mapping) {
    let range = Range::new(*start, mapping.last).expect("a mapping is never empty");
    (range, mapping)
}

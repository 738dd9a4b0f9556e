//! One I/O address space: what it maps, and what of that is charged. It knows page tables and devices only by name.

use std::collections::{BTreeMap, BTreeSet};

use crate::coverage::Coverage;
use crate::dirty::Written;
use crate::pgtable::Root;
use crate::targets::Targets;
use crate::{Geometry, GroupId, Ioasid, MapKind, MemoryId, Owner, Prot, Range};

/// A mapping, kept under its first IOVA. There may be millions: at most 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The last IOVA.
    pub(crate) last: u64,
    /// Where the memory is in what belongs to `owner`; of [`MapKind::Nested`], the address in the
    /// parent.
    pub(crate) vaddr: u64,
    /// Means nothing for [`MapKind::Nested`], like `owner`.
    pub(crate) memory: MemoryId,
    pub(crate) owner: Owner,
    pub(crate) prot: Prot,
    pub(crate) kind: MapKind,
    pub(crate) charge: Charge,
}

/// How the memory of a mapping is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge {
    /// Once for the address space, however often it is mapped there.
    Own,
    /// When it was registered.
    Registered,
    /// Never.
    Nothing,
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
    /// What is charged as [`Charge::Own`].
    charged: BTreeMap<Owner, Coverage>,
    locked_bytes: u128,
    /// Where the mappings of a child lead in its parent.
    targets: Targets,
    /// What it is nested on.
    pub(crate) parent: Option<Ioasid>,
    /// What is nested on it.
    pub(crate) children: BTreeSet<Ioasid>,
    /// What devices have written, while that is tracked.
    pub(crate) written: Option<Written>,
    /// The page table of the program that its mappings were read from.
    pub(crate) bound: Option<Root>,
    /// The tables of devices that are attached to it: they show it, or something nested on it.
    pub(crate) tables: Vec<GroupId>,
    /// That of its tables; without tables, that of the last it had; `None` before the first.
    pub(crate) shape: Option<Shape>,
    /// Of one that is no child: changes with everything above, with the devices of its tables, and
    /// with all that is nested on it.
    pub(crate) generation: u64,
}

/// What [`Space::remove`] and [`Space::into_removed`] took out.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) memories: Vec<MemoryId>,
    pub(crate) bytes: u128,
    /// Bytes that are charged no more; never 0. An owner may come up several times.
    pub(crate) uncharged: Vec<(Owner, u128)>,
    /// Of each mapping that was made from registered memory, where that memory is.
    pub(crate) registered: Vec<(Owner, u64)>,
}

impl Removed {
    fn take(&mut self, mapping: &Mapping) {
        if mapping.kind == MapKind::Nested {
            return;
        }
        self.memories.push(mapping.memory);
        if mapping.charge == Charge::Registered {
            self.registered.push((mapping.owner, mapping.vaddr));
        }
    }
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

    /// The mappings that overlap `range`, in ascending order.
    pub(crate) fn iter_overlapping(
        &self,
        range: Range,
    ) -> impl Iterator<Item = (Range, &Mapping)> + use<'_> {
        let first = self.last_before(range.start()).filter(|(at, _)| at.last() >= range.start());
        // Mostly that is all, and a second search is saved.
        let next = first.map_or(Some(range.start()), |(at, _)| at.last().checked_add(1));
        let rest = next.and_then(|next| Range::new(next, range.last()));
        first.into_iter().chain(rest.into_iter().flat_map(|rest| self.iter(rest)))
    }

    /// The mappings of a child that lead to any of the parent's addresses in `range`.
    pub(crate) fn leading_to(
        &self,
        range: Range,
    ) -> impl Iterator<Item = (Range, &Mapping)> + use<'_> {
        self.targets.candidates(range).filter_map(move |iova| {
            let (mapped, mapping) = extent(self.mappings.get_key_value(&iova)?);
            target(mapped, mapping).intersection(range).map(|_| (mapped, mapping))
        })
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

    /// How many bytes it is charged for.
    pub(crate) fn locked_bytes(&self) -> u128 {
        self.locked_bytes
    }

    /// How many bytes more it would be charged for with a mapping.
    pub(crate) fn charge(&self, iova: u64, mapping: &Mapping) -> u64 {
        match (mapping.charge, self.charged.get(&mapping.owner)) {
            (Charge::Own, Some(charged)) => charged.uncovered(source(iova, mapping)),
            (Charge::Own, None) => mapping.last - iova + 1,
            (Charge::Registered | Charge::Nothing, _) => 0,
        }
    }

    /// Adds a mapping that overlaps no other.
    pub(crate) fn insert(&mut self, iova: u64, mapping: Mapping) {
        self.mapped_bytes += extent((&iova, &mapping)).0.bytes();
        if mapping.charge == Charge::Own {
            let charged = self.charged.entry(mapping.owner).or_default();
            self.locked_bytes += u128::from(charged.add(source(iova, &mapping)));
        }
        if mapping.kind == MapKind::Nested {
            self.targets.insert(source(iova, &mapping), iova);
        }
        self.mappings.insert(iova, mapping);
    }

    /// Removes the mappings in `range`, which begins and ends with a mapping.
    pub(crate) fn remove(&mut self, range: Range) -> Removed {
        let mut removed = Removed::default();
        let mut next = Some(range.start());
        while let Some(start) = next {
            let Some(mapping) = self.mappings.remove(&start) else { break };
            removed.bytes += extent((&start, &mapping)).0.bytes();
            removed.take(&mapping);
            if mapping.kind == MapKind::Nested {
                self.targets.remove(source(start, &mapping), start);
            }
            self.uncharge(start, &mapping, &mut removed);
            next = Range::new(mapping.last, range.last())
                .filter(|rest| mapping.last < rest.last())
                .and_then(|rest| self.iter(rest).next())
                .map(|(mapped, _)| mapped.start());
        }
        self.mapped_bytes -= removed.bytes;
        removed
    }

    /// Removes everything.
    pub(crate) fn into_removed(self) -> Removed {
        let charged = self.charged.iter().map(|(&owner, charged)| (owner, charged.covered()));
        let mut removed = Removed {
            bytes: self.mapped_bytes,
            uncharged: charged.collect(),
            ..Removed::default()
        };
        self.mappings.values().for_each(|mapping| removed.take(mapping));
        removed
    }

    /// Charges a mapping that is gone no more.
    fn uncharge(&mut self, iova: u64, mapping: &Mapping, removed: &mut Removed) {
        if mapping.charge != Charge::Own {
            return;
        }
        let Some(charged) = self.charged.get_mut(&mapping.owner) else { return };
        let bytes = u128::from(charged.remove(source(iova, mapping)));
        if charged.covered() == 0 {
            self.charged.remove(&mapping.owner);
        }
        if bytes > 0 {
            self.locked_bytes -= bytes;
            match removed.uncharged.last_mut() {
                Some((owner, sum)) if *owner == mapping.owner => *sum += bytes,
                _ => removed.uncharged.push((mapping.owner, bytes)),
            }
        }
    }

    /// The highest mapping that begins at or below `iova`.
    fn last_before(&self, iova: u64) -> Option<(Range, &Mapping)> {
        self.mappings.range(..=iova).next_back().map(extent)
    }
}

/// Where in the parent a mapping of a child leads.
pub(crate) fn target(mapped: Range, mapping: &Mapping) -> Range {
    source(mapped.start(), mapping)
}

/// Where the memory of a mapping is in what belongs to its owner.
fn source(iova: u64, mapping: &Mapping) -> Range {
    let last = mapping.vaddr + (mapping.last - iova);
    Range::new(mapping.vaddr, last).expect("the memory of a mapping does not wrap")
}

/// A mapping with the IOVAs that it covers.
pub(crate) fn extent<'a>((start, mapping): (&u64, &'a Mapping)) -> (Range, &'a Mapping) {
    let range = Range::new(*start, mapping.last).expect("a mapping is never empty");
    (range, mapping)
}

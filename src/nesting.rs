//! Address spaces on top of each other: what a mapping at one level means for the tables that show
//! a level below, and where an address leads in the end.
//!
//! A child's mapping leads into its parent, where other mappings lead on, down to memory. What all
//! levels have in common is a *piece*: an entry of a hardware table. Pieces are never cut: where
//! one begins or ends, a mapping of some level does. So whatever a command adds or removes is a
//! whole number of pieces, and hardware that cannot split an entry is never asked to.

use std::borrow::{BorrowMut, Cow};
use std::collections::BTreeMap;

use crate::space::{Mapping, Space, target};
use crate::table::{Table, names};
use crate::{Change, Context, Entry, Error, GroupId, Ioasid, MemoryId, Prot, Range};

/// The most pieces that one command may add. Mappings that all lead to the same place multiply from
/// level to level: without a limit, one page mapped would be work without end.
const MAX_PIECES: usize = 1 << 20;

/// The most steps that a command may take to find them, each of a piece through one level. A million
/// ways may all lead to a hole, and levels may be many.
const MAX_STEPS: usize = 1 << 21;

/// How much composing one command may still do, and what has come of it.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Whom to name when it is used up.
    ioasid: Ioasid,
    pieces: usize,
    steps: usize,
    /// How many entries are added to and removed from tables that show a child.
    growth: BTreeMap<GroupId, (usize, usize)>,
}

impl Budget {
    /// That of a command.
    pub(crate) fn new(ioasid: Ioasid) -> Self {
        Self { ioasid, pieces: MAX_PIECES, steps: MAX_STEPS, growth: BTreeMap::new() }
    }

    /// For what a command has found to be little enough.
    fn unlimited(ioasid: Ioasid) -> Self {
        Self { pieces: usize::MAX, steps: usize::MAX, ..Self::new(ioasid) }
    }

    fn pieces(&mut self, count: usize) -> Result<(), Error> {
        self.pieces = self.pieces.checked_sub(count).ok_or_else(|| self.error())?;
        Ok(())
    }

    fn steps(&mut self, count: usize) -> Result<(), Error> {
        self.steps = self.steps.checked_sub(count).ok_or_else(|| self.error())?;
        Ok(())
    }

    fn grow(&mut self, group: GroupId, added: usize, removed: usize) {
        let growth = self.growth.entry(group).or_default();
        (growth.0, growth.1) = (growth.0 + added, growth.1 + removed);
    }

    fn error(&self) -> Error {
        Error::TooManyPieces { ioasid: self.ioasid, max: MAX_PIECES }
    }
}

/// Something that is mapped, on the way to memory.
#[derive(Clone, Copy, Debug)]
struct Piece {
    iova: u64,
    /// Where it leads at the next level.
    at: Range,
    prot: Prot,
    /// How many levels were passed.
    passed: usize,
}

/// Follows pieces down to memory, in ascending order.
struct Descent<'a> {
    levels: Vec<&'a Space>,
    /// Both are taken from the end.
    pieces: Vec<Piece>,
    entries: Vec<Entry>,
}

impl Prot {
    /// What both permit; `None` if that is nothing.
    pub(crate) fn intersection(self, other: Self) -> Option<Self> {
        let both = Self { read: self.read && other.read, write: self.write && other.write };
        (both.read || both.write).then_some(both)
    }
}

impl Context {
    /// What an address space is nested on in the end: itself, for one that is no child.
    pub(crate) fn root_of(&self, ioasid: Ioasid) -> Ioasid {
        let parents = std::iter::successors(Some(ioasid), |ioasid| self.spaces.get(ioasid)?.parent);
        parents.last().unwrap_or(ioasid)
    }

    /// An address space, and those that it is nested on, one after another.
    fn levels(&self, ioasid: Ioasid) -> Vec<&Space> {
        std::iter::successors(self.spaces.get(&ioasid), |space| self.spaces.get(&space.parent?))
            .collect()
    }

    /// How many address spaces are above one.
    pub(crate) fn depth_of(&self, ioasid: Ioasid) -> u32 {
        self.levels(ioasid).len().saturating_sub(1) as u32
    }

    fn descent(&self, ioasid: Ioasid) -> Descent<'_> {
        Descent { levels: self.levels(ioasid), pieces: vec![], entries: vec![] }
    }

    /// What a table that shows `ioasid` must hold in `range`, which begins and ends where no piece
    /// is cut, in ascending order. Nothing else decides what tables hold.
    pub(crate) fn contents(&self, ioasid: Ioasid, range: Range) -> impl Iterator<Item = Entry> {
        self.composition(ioasid, range, Budget::unlimited(ioasid)).filter_map(Result::ok)
    }

    /// The same within a budget, of which steps are spent. What follows an error says nothing.
    fn composition<'a>(
        &'a self,
        ioasid: Ioasid,
        range: Range,
        mut budget: impl BorrowMut<Budget> + 'a,
    ) -> impl Iterator<Item = Result<Entry, Error>> + 'a {
        let mut descent = self.descent(ioasid);
        let mut first = self.spaces.get(&ioasid).map(|space| space.iter_overlapping(range));
        std::iter::from_fn(move || {
            loop {
                if let Some(found) = descent.next(budget.borrow_mut()).transpose() {
                    return Some(found);
                }
                let (mapped, mapping) = first.as_mut()?.next()?;
                if let Some(part) = mapped.intersection(range) {
                    descent.begin(part, mapped, mapping);
                }
            }
        })
    }

    /// How many entries a table must hold that shows `ioasid`; if more than `max`, one more.
    pub(crate) fn count_entries(&self, ioasid: Ioasid, max: u32) -> Result<usize, Error> {
        let entries = self.composition(ioasid, Range::ALL, Budget::new(ioasid));
        let mut upto = entries.take(max as usize + 1);
        upto.try_fold(0, |count, entry| entry.map(|_| count + 1))
    }

    /// What mappings of `ioasid` that do not exist yet would lead to: the pieces of each, in
    /// ascending order.
    fn pieces_of<'a>(
        &self,
        ioasid: Ioasid,
        added: impl ExactSizeIterator<Item = (Range, &'a Mapping)>,
        budget: &mut Budget,
    ) -> Result<Vec<Entry>, Error> {
        let mut descent = self.descent(ioasid);
        let mut found = Vec::with_capacity(added.len());
        for (mapped, mapping) in added {
            descent.begin(mapped, mapped, mapping);
            while let Some(entry) = descent.next(budget)? {
                found.push(entry);
            }
        }
        Ok(found)
    }

    /// What pieces of an address space are in what is nested on it: `below`, one after another, of
    /// which the last is asked for.
    fn pull<'a>(
        &self,
        below: &[Ioasid],
        pieces: &'a [Entry],
        budget: &mut Budget,
    ) -> Result<Cow<'a, [Entry]>, Error> {
        let mut pieces = Cow::Borrowed(pieces);
        for &ioasid in below {
            let space = self.space(ioasid)?;
            let mut pulled = vec![];
            for entry in pieces.iter() {
                let Some(range) = Range::from_size(entry.iova, entry.size) else { continue };
                for (mapped, mapping) in space.leading_to(range) {
                    budget.steps(1)?;
                    let leads = target(mapped, mapping);
                    let Some(common) = leads.intersection(range) else { continue };
                    let Some(prot) = mapping.prot.intersection(entry.prot) else { continue };
                    pulled.push(Entry {
                        iova: mapped.start() + (common.start() - leads.start()),
                        size: common.bytes() as u64,
                        prot,
                        memory: entry.memory,
                        offset: entry.offset + (common.start() - range.start()),
                    });
                }
            }
            pieces = Cow::Owned(pulled);
        }
        Ok(pieces)
    }

    /// How tables follow when a mapping is added to `ioasid`.
    pub(crate) fn additions(
        &self,
        ioasid: Ioasid,
        mapped: Range,
        mapping: &Mapping,
        budget: &mut Budget,
    ) -> Result<Vec<Change>, Error> {
        self.all_additions(ioasid, std::iter::once((mapped, mapping)), budget)
    }

    /// The same for several mappings that are added together: one table after the other.
    pub(crate) fn all_additions<'a>(
        &self,
        ioasid: Ioasid,
        added: impl ExactSizeIterator<Item = (Range, &'a Mapping)>,
        budget: &mut Budget,
    ) -> Result<Vec<Change>, Error> {
        let mut changes = vec![];
        if self.space(ioasid)?.tables.is_empty() {
            return Ok(changes);
        }
        let pieces = self.pieces_of(ioasid, added, budget)?;
        self.each_table(ioasid, |group, table| {
            let pieces = self.pull(table.below(ioasid), &pieces, budget)?;
            budget.pieces(pieces.len())?;
            if table.shows_child() {
                budget.grow(group, pieces.len(), 0);
            }
            changes.extend(pieces.iter().map(|&entry| Change::Map { group, entry }));
            Ok(())
        })?;
        Ok(changes)
    }

    /// How tables follow when everything in `range` of `ioasid` is removed, where mappings begin and
    /// end.
    pub(crate) fn removals(
        &self,
        ioasid: Ioasid,
        range: Range,
        budget: &mut Budget,
    ) -> Result<Vec<Change>, Error> {
        let space = self.space(ioasid)?;
        if range == Range::ALL {
            // Whatever a table shows below leads through here.
            let mut changes = vec![];
            self.each_table(ioasid, |group, table| {
                changes.push(Change::Clear { group });
                if table.shows_child() {
                    budget.grow(group, 0, table.held);
                }
                Ok(())
            })?;
            return Ok(changes);
        }
        let size = range.bytes() as u64;
        let memory = MemoryId(0);
        let all = Entry { iova: range.start(), size, prot: Prot::READ_WRITE, memory, offset: 0 };
        let mut changes = vec![];
        self.each_table(ioasid, |group, table| {
            let below = table.below(ioasid);
            let unmap = |(iova, size)| Change::Unmap { group, iova, size };
            if below.is_empty() && space.parent.is_none() {
                changes.push(unmap((range.start(), size)));
                return Ok(());
            }
            let shown = below.last().copied().unwrap_or(ioasid);
            let mut pieces = vec![];
            for place in self.pull(below, &[all], budget)?.iter() {
                let Some(place) = Range::from_size(place.iova, place.size) else { continue };
                for piece in self.composition(shown, place, &mut *budget) {
                    pieces.push(piece?);
                }
            }
            budget.grow(group, 0, pieces.len());
            changes.extend(runs(pieces).into_iter().map(unmap));
            Ok(())
        })?;
        Ok(changes)
    }

    fn each_table(
        &self,
        ioasid: Ioasid,
        mut each: impl FnMut(GroupId, &Table) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let space = self.space(ioasid)?;
        space.tables.iter().try_for_each(|&group| match self.tables.get(&group) {
            Some(table) => each(group, table),
            None => Ok(()),
        })
    }

    /// How many entries the tables will hold that a command has found to change. (What a table
    /// holds that shows no child are the mappings of that, of which there is no other count.)
    ///
    /// # Errors
    /// [`Error::TableFull`].
    pub(crate) fn check_room(&self, budget: Budget) -> Result<Vec<(GroupId, usize)>, Error> {
        let ioasid = budget.ioasid;
        let held = budget.growth.into_iter().filter_map(|(group, (added, removed))| {
            let table = self.tables.get(&group)?;
            let (entries, max) = (table.held + added - removed, table.geometry.max_mappings);
            let full = added > 0 && entries > max as usize;
            Some(match full {
                true => {
                    let devices = names(table.devices.iter());
                    Err(Error::TableFull { ioasid, devices, entries, max })
                }
                false => Ok((group, entries)),
            })
        });
        held.collect()
    }
}

impl Descent<'_> {
    /// Has `part` of a mapping of the first level followed next.
    fn begin(&mut self, part: Range, mapped: Range, mapping: &Mapping) {
        self.take(part, mapped, mapping, mapping.prot, (part.start(), 0));
    }

    /// The next entry, or `None` if everything has been followed.
    fn next(&mut self, budget: &mut Budget) -> Result<Option<Entry>, Error> {
        loop {
            if let Some(entry) = self.entries.pop() {
                return Ok(Some(entry));
            }
            let Some(piece) = self.pieces.pop() else { return Ok(None) };
            budget.steps(1 + self.pass(piece))?;
        }
    }

    /// Follows a piece through one level. Returns how many mappings there give no rights to it.
    fn pass(&mut self, piece: Piece) -> usize {
        let (pieces, entries) = (self.pieces.len(), self.entries.len());
        let mut without_rights = 0;
        for (mapped, mapping) in self.levels[piece.passed].iter_overlapping(piece.at) {
            let Some(part) = mapped.intersection(piece.at) else { continue };
            let Some(prot) = piece.prot.intersection(mapping.prot) else {
                without_rights += 1;
                continue;
            };
            let iova = piece.iova + (part.start() - piece.at.start());
            self.take(part, mapped, mapping, prot, (iova, piece.passed));
        }
        self.pieces[pieces..].reverse();
        self.entries[entries..].reverse();
        without_rights
    }

    /// What `part` of a mapping is for `iova`: a piece that leads on, or at the last level an entry,
    /// which leads to memory.
    fn take(
        &mut self,
        part: Range,
        mapped: Range,
        mapping: &Mapping,
        prot: Prot,
        (iova, passed): (u64, usize),
    ) {
        let offset = part.start() - mapped.start();
        let size = part.bytes() as u64;
        if passed + 1 >= self.levels.len() {
            self.entries.push(Entry { iova, size, prot, memory: mapping.memory, offset });
        } else if let Some(at) = Range::from_size(mapping.vaddr + offset, size) {
            self.pieces.push(Piece { iova, at, prot, passed: passed + 1 });
        }
    }
}

/// Pieces as ranges: those that follow one another without a gap are one.
fn runs(mut pieces: Vec<Entry>) -> Vec<(u64, u64)> {
    pieces.sort_unstable_by_key(|entry| entry.iova);
    let mut runs: Vec<(u64, u64)> = vec![];
    for Entry { iova, size, .. } in pieces {
        match runs.last_mut() {
            // All of 64 bits are more than a size can say.
            Some((start, length))
                if start.checked_add(*length) == Some(iova)
                    && length.checked_add(size).is_some() =>
            {
                *length += size;
            }
            _ => runs.push((iova, size)),
        }
    }
    runs
}

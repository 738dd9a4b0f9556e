//! Dirty pages: which pages of an I/O address space devices have written since they were last asked
//! for.
//!
//! Hardware tells what was written through a table. That is noted in the address space which the
//! table shows, and in all that it is nested on, at the addresses of each, as far as they are
//! tracked. So whoever asks one of them takes nothing away from the others.

use std::collections::BTreeMap;

use crate::space::{Shape, target};
use crate::{Context, Error, GroupId, Ioasid, Range};

/// A set of pages, as ranges with a gap between each two: first and last address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written(BTreeMap<u64, u64>);

impl Written {
    fn add(&mut self, range: Range) {
        let (mut start, mut last) = (range.start(), range.last());
        let below = start.saturating_sub(1);
        if let Some((&first, &end)) = self.0.range(..=below).next_back()
            && end >= below
        {
            start = first;
        }
        let upto = last.saturating_add(1);
        while let Some((&first, &end)) = self.0.range(start..=upto).next() {
            last = last.max(end);
            self.0.remove(&first);
        }
        self.0.insert(start, last);
    }

    /// Takes out what lies in `range`.
    fn take(&mut self, range: Range) -> Vec<Range> {
        let mut taken = vec![];
        let first = self.0.range(..=range.start()).next_back().map_or(0, |(&start, _)| start);
        let members: Vec<_> = self
            .0
            .range(first..=range.last())
            .filter_map(|(&start, &last)| Range::new(start, last))
            .collect();
        for member in members {
            let Some(common) = member.intersection(range) else { continue };
            self.0.remove(&member.start());
            let before =
                common.start().checked_sub(1).and_then(|end| Range::new(member.start(), end));
            let after =
                common.last().checked_add(1).and_then(|next| Range::new(next, member.last()));
            for rest in [before, after].into_iter().flatten() {
                self.0.insert(rest.start(), rest.last());
            }
            taken.push(common);
        }
        taken
    }
}

impl Context {
    /// Notes from now on which pages of an address space are written, or does so no more and forgets
    /// what is known (`IOASID_DIRTY`).
    ///
    /// # Errors
    /// The states in which the IOASID takes no command.
    pub fn track(&mut self, ioasid: Ioasid, on: bool) -> Result<(), Error> {
        self.usable_space(ioasid)?;
        if let Some(space) = self.spaces.get_mut(&ioasid) {
            match on {
                true => drop(space.written.get_or_insert_default()),
                false => space.written = None,
            }
        }
        Ok(())
    }

    /// Whether the pages of an address space are tracked.
    pub fn is_tracking(&self, ioasid: Ioasid) -> bool {
        self.spaces.get(&ioasid).is_some_and(|space| space.written.is_some())
    }

    /// Whether what is written through the table of a group is to be noted anywhere.
    pub fn is_tracked(&self, group: GroupId) -> bool {
        let path = self.tables.get(&group).map_or(&[][..], |table| &table.path);
        path.iter().any(|&ioasid| self.is_tracking(ioasid))
    }

    /// A device has written `range` through the table of its group.
    pub fn note_written(&mut self, group: GroupId, range: Range) {
        let Some(table) = self.tables.get(&group) else { return };
        let path = table.path.clone();
        let mut ranges = vec![range];
        for ioasid in path.into_iter().rev() {
            let Some(space) = self.spaces.get_mut(&ioasid) else { return };
            let page = space.shape.as_ref().and_then(|shape| shape.geometry.pgsizes.smallest());
            let below = page.unwrap_or(1) - 1;
            if let Some(written) = &mut space.written {
                let whole =
                    |range: &Range| Range::new(range.start() & !below, range.last() | below);
                ranges.iter().filter_map(whole).for_each(|range| written.add(range));
            }
            if space.parent.is_none() {
                return;
            }
            ranges = ranges
                .iter()
                .flat_map(|&range| {
                    space.iter_overlapping(range).filter_map(move |(mapped, mapping)| {
                        let part = mapped.intersection(range)?;
                        let start =
                            target(mapped, mapping).start() + (part.start() - mapped.start());
                        Range::from_size(start, part.bytes() as u64)
                    })
                })
                .collect();
        }
    }

    /// The pages in `range` that were written since they were last taken, in ascending order.
    ///
    /// # Errors
    /// The states in which the IOASID takes no command; [`Error::NotTracking`].
    pub fn take_written(&mut self, ioasid: Ioasid, range: Range) -> Result<Vec<Range>, Error> {
        self.usable_space(ioasid)?;
        let space = self.spaces.get_mut(&ioasid);
        let written = space.and_then(|space| space.written.as_mut());
        Ok(written.ok_or(Error::NotTracking(ioasid))?.take(range))
    }

    /// Notes again what was taken and has not reached whoever asked for it.
    pub fn give_back_written(&mut self, ioasid: Ioasid, taken: &[Range]) {
        let space = self.spaces.get_mut(&ioasid);
        if let Some(written) = space.and_then(|space| space.written.as_mut()) {
            taken.iter().for_each(|&range| written.add(range));
        }
    }

    /// Whether `range` can be asked for in pages of `page` bytes.
    ///
    /// # Errors
    /// The states in which the IOASID takes no command; [`Error::NotTracking`],
    /// [`Error::ZeroSize`], [`Error::Misaligned`], [`Error::Wraps`], [`Error::WrongPage`].
    pub fn check_written(
        &self,
        ioasid: Ioasid,
        iova: u64,
        size: u64,
        page: u64,
    ) -> Result<Range, Error> {
        let space = self.usable_space(ioasid)?;
        let Shape { geometry, .. } = self.shape(ioasid, space)?;
        if space.written.is_none() {
            return Err(Error::NotTracking(ioasid));
        }
        let smallest = geometry.pgsizes.smallest().unwrap_or(1);
        if page != smallest {
            return Err(Error::WrongPage { ioasid, page, smallest });
        }
        crate::context::aligned_range(ioasid, geometry, iova, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> Range {
        Range::new(start, last).expect("a range")
    }

    #[test]
    fn ranges_that_touch_become_one_and_are_taken_in_parts() {
        let mut written = Written::default();
        for part in [range(10, 19), range(30, 39), range(20, 29), range(50, 59), range(5, 12)] {
            written.add(part);
        }
        assert_eq!(written.0.iter().collect::<Vec<_>>(), [(&5, &39), (&50, &59)]);
        assert_eq!(written.take(range(15, 16)), [range(15, 16)]);
        assert_eq!(written.take(range(15, 16)), []);
        assert_eq!(written.take(range(0, 52)), [range(5, 14), range(17, 39), range(50, 52)]);
        assert_eq!(written.take(Range::ALL), [range(53, 59)]);
        assert_eq!(written, Written::default());
    }

    #[test]
    fn the_ends_of_the_address_space_are_no_special_case() {
        let mut written = Written::default();
        written.add(range(0, 0));
        written.add(range(u64::MAX, u64::MAX));
        written.add(range(1, u64::MAX - 1));
        assert_eq!(written.take(Range::ALL), [Range::ALL]);
    }
}

//! Children that translate by a page table of the program: their mappings are what was found in it
//! when it was last read, a leaf each.
//!
//! Reading is the caller's part, with [`pgtable::walk`](crate::pgtable::walk): the table lies in memory.
//! What has not changed stays in the hardware tables all the while, so that devices are
//! not disturbed by an invalidation of something else.

use crate::context::check_unbound;
use crate::nesting::Budget;
use crate::pgtable::{Leaf, Root};
use crate::plan::Commit;
use crate::space::{Charge, Mapping, Shape};
use crate::{Context, Error, Geometry, Ioasid, MapKind, MemoryId, Owner, Plan, Range};

impl Context {
    /// Whether a table of the program can be bound to an IOASID, whatever it holds.
    ///
    /// # Errors
    /// The states in which the IOASID takes no command; [`Error::NoChild`],
    /// [`Error::TableBound`], [`Error::HasMappings`].
    pub fn check_bind_table(&self, ioasid: Ioasid) -> Result<(), Error> {
        let space = self.usable_space(ioasid)?;
        if space.parent.is_none() {
            return Err(Error::NoChild(ioasid));
        }
        check_unbound(ioasid, space)?;
        match space.len() {
            0 => Ok(()),
            _ => Err(Error::HasMappings { ioasid }),
        }
    }

    /// The page table that is bound to an IOASID.
    ///
    /// # Errors
    /// The states in which the IOASID takes no command; [`Error::NoChild`],
    /// [`Error::NothingBound`].
    pub fn bound_table(&self, ioasid: Ioasid) -> Result<&Root, Error> {
        let space = self.usable_space(ioasid)?;
        if space.parent.is_none() {
            return Err(Error::NoChild(ioasid));
        }
        space.bound.as_ref().ok_or(Error::NothingBound(ioasid))
    }

    /// Has a child translate by a table of the program (`IOASID_BIND_PGTABLE`), of which `leaves` are
    /// all leaves, in ascending order.
    ///
    /// # Errors
    /// Those of [`check_bind_table`](Self::check_bind_table), [`Error::TooManyMappings`],
    /// [`Error::TooManyPieces`], [`Error::TableFull`].
    pub fn plan_bind_table(
        &self,
        ioasid: Ioasid,
        root: Root,
        leaves: &[Leaf],
    ) -> Result<Plan, Error> {
        self.check_bind_table(ioasid)?;
        self.plan_reread(ioasid, Some(root), Range::ALL, leaves)
    }

    /// The IOVAs to read anew when those of `range` may have changed: what is mapped there is
    /// not cut.
    ///
    /// # Errors
    /// Those of [`bound_table`](Self::bound_table).
    pub fn reread_extent(&self, ioasid: Ioasid, range: Range) -> Result<Range, Error> {
        self.bound_table(ioasid)?;
        let mapped = self.space(ioasid)?.iter_overlapping(range).map(|(mapped, _)| mapped);
        Ok(mapped.fold(range, Range::hull))
    }

    /// Follows a bound table where it has changed (`IOASID_INVALIDATE_CACHE`): `leaves` are all its
    /// leaves in `range`, in ascending order. Neither a leaf nor a mapping is cut by the range: see
    /// [`reread_extent`](Self::reread_extent).
    ///
    /// # Errors
    /// Those of [`bound_table`](Self::bound_table), [`Error::TooManyMappings`],
    /// [`Error::TooManyPieces`], [`Error::TableFull`].
    pub fn plan_invalidate(
        &self,
        ioasid: Ioasid,
        range: Range,
        leaves: &[Leaf],
    ) -> Result<Plan, Error> {
        let root = *self.bound_table(ioasid)?;
        self.plan_reread(ioasid, Some(root), range, leaves)
    }

    /// Has a child translate nothing any more, and take mappings again (`IOASID_UNBIND_PGTABLE`).
    ///
    /// # Errors
    /// Those of [`bound_table`](Self::bound_table), but [`Error::NotBound`] if nothing is bound.
    pub fn plan_unbind_table(&self, ioasid: Ioasid) -> Result<Plan, Error> {
        match self.bound_table(ioasid) {
            Err(Error::NothingBound(_)) => Err(Error::NotBound(ioasid)),
            Err(error) => Err(error),
            Ok(_) => self.plan_reread(ioasid, None, Range::ALL, &[]),
        }
    }

    fn plan_reread(
        &self,
        ioasid: Ioasid,
        bound: Option<Root>,
        range: Range,
        leaves: &[Leaf],
    ) -> Result<Plan, Error> {
        let space = self.space(ioasid)?;
        let Shape { geometry, .. } = self.shape(ioasid, space)?;
        let wanted = leaves.iter().flat_map(|leaf| mappings_of(leaf, geometry));
        let mut wanted = wanted.peekable();
        let (mut added, mut removed, mut kept) = (vec![], vec![], 0);
        // Neighbours that go are removed together.
        let mut run: Option<Range> = None;
        for (mapped, mapping) in space.iter(range) {
            while let Some(new) = wanted.next_if(|(new, _)| new.start() < mapped.start()) {
                added.push(new);
            }
            let stays = wanted.next_if(|(new, wanted)| (*new, wanted) == (mapped, mapping));
            if stays.is_some() {
                kept += 1;
                removed.extend(run.take());
            } else {
                run = Some(run.map_or(mapped, |run| run.hull(mapped)));
            }
        }
        removed.extend(run);
        added.extend(wanted);
        let max = geometry.max_mappings.min(self.limits.max_mappings);
        let elsewhere = space.len() - space.iter(range).count();
        if elsewhere + kept + added.len() > max as usize {
            return Err(Error::TooManyMappings { ioasid, max });
        }
        let all = kept == 0 && elsewhere == 0;
        let mut budget = Budget::new(ioasid);
        let mut changes = match (all, removed.as_slice()) {
            (_, []) => vec![],
            (true, _) => self.removals(ioasid, Range::ALL, &mut budget)?,
            (false, some) => {
                let mut changes = vec![];
                for &range in some {
                    changes.extend(self.removals(ioasid, range, &mut budget)?);
                }
                changes
            }
        };
        for (mapped, mapping) in &added {
            changes.extend(self.additions(ioasid, *mapped, mapping, &mut budget)?);
        }
        let held = self.check_room(budget)?;
        let added = added.into_iter().map(|(mapped, mapping)| (mapped.start(), mapping)).collect();
        let commit = Commit::Reread { ioasid, bound, removed, added };
        Ok(Plan::new(self.basis(ioasid), changes, commit).and_held(held))
    }
}

/// What a leaf maps in tables of this geometry: nothing where it lies outside, or does not fit their
/// pages, as hardware would fault there.
fn mappings_of<'a>(
    leaf: &Leaf,
    geometry: &'a Geometry,
) -> impl Iterator<Item = (Range, Mapping)> + use<'a> {
    let &Leaf { iova, size, target, prot } = leaf;
    let page = geometry.pgsizes.smallest().unwrap_or(1);
    let whole = Range::from_size(iova, size).filter(|_| target.checked_add(size - 1).is_some());
    let parts = geometry.permitted.as_slice().iter();
    parts.filter_map(move |permitted| whole?.intersection(*permitted)).filter_map(move |part| {
        let vaddr = target + (part.start() - iova);
        let mapping = Mapping {
            last: part.last(),
            vaddr,
            memory: MemoryId(0),
            owner: Owner(0),
            prot,
            kind: MapKind::Nested,
            charge: Charge::Nothing,
        };
        let fits = [part.start(), part.last().wrapping_add(1), vaddr];
        fits.iter().all(|edge| edge.is_multiple_of(page)).then_some((part, mapping))
    })
}

//! Hardware for tests: tables that really hold their entries, insist on the contract of
//! [`Hardware`], and refuse calls on demand.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Entry, GroupId, Hardware};

/// A call that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("call {0} was refused on demand")]
pub(crate) struct Refusal(pub(crate) usize);

/// The tables of all groups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    tables: BTreeMap<GroupId, BTreeMap<u64, Entry>>,
    /// Calls since [`Fake::refuse`].
    pub(crate) calls: usize,
    /// Bytes that were mapped since then, those of refused calls too.
    pub(crate) mapped: u128,
    refused: BTreeSet<usize>,
}

impl Fake {
    /// From now on refuses the calls with these places, counted from 0.
    pub(crate) fn refuse(&mut self, places: impl IntoIterator<Item = usize>) {
        self.calls = 0;
        self.mapped = 0;
        self.refused = places.into_iter().collect();
    }

    /// Whether a call since [`Fake::refuse`] was refused.
    pub(crate) fn has_refused(&self) -> bool {
        self.refused.iter().any(|&place| place < self.calls)
    }

    /// What a table holds, in ascending order.
    pub(crate) fn entries(&self, group: GroupId) -> Vec<Entry> {
        self.tables.get(&group).map_or(vec![], |table| table.values().copied().collect())
    }

    /// Where an address leads, as the hardware would find it.
    pub(crate) fn walk(&self, group: GroupId, iova: u64) -> Option<(Entry, u64)> {
        let (start, entry) = self.tables.get(&group)?.range(..=iova).next_back()?;
        (iova - start < entry.size).then(|| (*entry, iova - start + entry.offset))
    }

    /// The table of a group is there no more.
    pub(crate) fn forget(&mut self, group: GroupId) {
        self.tables.remove(&group);
    }

    fn call(&mut self) -> Result<(), Refusal> {
        let place = self.calls;
        self.calls += 1;
        if self.refused.contains(&place) { Err(Refusal(place)) } else { Ok(()) }
    }
}

fn end(entry: &Entry) -> u128 {
    u128::from(entry.iova) + u128::from(entry.size)
}

impl Hardware for Fake {
    type Error = Refusal;

    fn map(&mut self, group: GroupId, entry: Entry) -> Result<(), Refusal> {
        self.mapped += u128::from(entry.size);
        self.call()?;
        let table = self.tables.entry(group).or_default();
        assert!(entry.size > 0 && end(&entry) <= 1 << 64, "{entry:?} is no range");
        let below = table.range(..=entry.iova + (entry.size - 1)).next_back();
        let clash = below.filter(|(_, e)| entry.iova <= e.iova + (e.size - 1));
        assert_eq!(clash, None, "{entry:?} overlaps");
        table.insert(entry.iova, entry);
        Ok(())
    }

    fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Refusal> {
        self.call()?;
        let (start, stop) = (u128::from(iova), u128::from(iova) + u128::from(size));
        let table = self.tables.entry(group).or_default();
        let before = table.len();
        for entry in table.values() {
            let at = u128::from(entry.iova);
            let inside = start <= at && end(entry) <= stop;
            assert!(inside || end(entry) <= start || stop <= at, "{entry:?} would be cut");
        }
        table.retain(|_, entry| !(start <= u128::from(entry.iova) && end(entry) <= stop));
        assert!(table.len() < before, "unmap of nothing at {iova:#x}");
        Ok(())
    }

    fn clear(&mut self, group: GroupId) -> Result<(), Refusal> {
        self.call()?;
        self.tables.remove(&group);
        Ok(())
    }
}

//! Which mappings of a nested address space lead to a given part of its parent: the way back from
//! an address to the IOVAs that stand for it.
//!
//! Mappings of a child may lead to the same addresses, and overlap there as they like. They are kept
//! by size class (the power of two that the length fits into), in order of address: whatever
//! overlaps a range begins less than its class before it. So a question costs one search for each
//! class there is, and looks at few mappings that do not overlap: at none if all lengths are powers of
//! two and all addresses multiples of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::Range;

/// The mappings of one child, by where they lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    /// By class: first address and IOVA of each mapping.
    classes: BTreeMap<u8, BTreeSet<(u64, u64)>>,
}

impl Targets {
    /// Takes in a mapping of `iova` that leads to `target`.
    pub(crate) fn insert(&mut self, target: Range, iova: u64) {
        self.classes.entry(class(target)).or_default().insert((target.start(), iova));
    }

    /// Takes it out.
    pub(crate) fn remove(&mut self, target: Range, iova: u64) {
        let class = class(target);
        if let Some(members) = self.classes.get_mut(&class) {
            members.remove(&(target.start(), iova));
            if members.is_empty() {
                self.classes.remove(&class);
            }
        }
    }

    /// The IOVAs of all mappings that lead to any of `range`, and of few others.
    pub(crate) fn candidates(&self, range: Range) -> impl Iterator<Item = u64> + use<'_> {
        self.classes.iter().flat_map(move |(&class, members)| {
            let reach = u64::MAX.checked_shr(64 - u32::from(class)).unwrap_or(0);
            let from = (range.start().saturating_sub(reach), 0);
            members.range(from..=(range.last(), u64::MAX)).map(|&(_, iova)| iova)
        })
    }
}

/// The exponent of the lowest power of two that is no less than the length.
fn class(target: Range) -> u8 {
    (64 - (target.last() - target.start()).leading_zeros()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, last: u64) -> Range {
        Range::new(start, last).expect("a range")
    }

    fn found(targets: &Targets, at: Range) -> Vec<u64> {
        let mut found: Vec<u64> = targets.candidates(at).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn whatever_overlaps_is_among_the_candidates() {
        let mut targets = Targets::default();
        let members = [
            (range(0x1000, 0x1fff), 1),
            (range(0x0, 0xffff), 2),
            (range(0x1fff, 0x3ffe), 3),
            (range(0, u64::MAX), 4),
            (range(0x1000, 0x1fff), 5),
            (range(u64::MAX - 0xfff, u64::MAX), 6),
        ];
        for (target, iova) in members {
            targets.insert(target, iova);
        }
        for at in [range(0, 0), range(0x1fff, 0x1fff), range(0x3ffe, 0x5000), range(0, u64::MAX)] {
            let overlapping =
                members.iter().filter(|(target, _)| target.intersection(at).is_some());
            let candidates = found(&targets, at);
            assert!(overlapping.clone().all(|(_, iova)| candidates.contains(iova)), "{at}");
        }
        for (target, iova) in members {
            targets.remove(target, iova);
        }
        assert_eq!(targets, Targets::default());
    }

    #[test]
    fn pages_elsewhere_are_not_candidates() {
        let mut targets = Targets::default();
        for page in 0..1000 {
            targets.insert(range(page << 12, (page << 12) + 0xfff), page);
        }
        assert_eq!(found(&targets, range(0x10_0000, 0x10_0fff)), [0x100]);
    }
}

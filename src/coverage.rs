//! How often each address is counted, kept as runs of equal counts: so that memory which is mapped
//! several times is charged once.

use std::collections::BTreeMap;

use crate::Range;

/// Addresses that are counted equally often, kept under the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    last: u64,
    /// At least 1.
    count: u32,
}

/// A counter for every address. Ranges are added in any number and order; each is removed as it
/// was added. Runs that touch have different counts, so that a million pages in a row are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    runs: BTreeMap<u64, Run>,
    covered: u128,
}

/// A run with the address behind it as its end.
#[derive(Clone, Copy)]
struct Piece {
    start: u128,
    end: u128,
    count: u32,
}

impl Coverage {
    /// How many bytes are counted at least once.
    pub(crate) fn covered(&self) -> u128 {
        self.covered
    }

    /// How many bytes of a range of less than 2^64 are not counted at all.
    pub(crate) fn uncovered(&self, range: Range) -> u64 {
        let runs = self.runs.range(..=range.last()).rev().map(|(&start, run)| (start, run.last));
        let overlapping = runs.take_while(|&(_, last)| last >= range.start());
        let parts = overlapping.filter_map(|(start, last)| Range::new(start, last));
        let covered: u128 = parts.filter_map(|run| run.intersection(range)).map(Range::bytes).sum();
        small(range.bytes() - covered)
    }

    /// Counts a range once more; says how many bytes of it were not counted before.
    pub(crate) fn add(&mut self, range: Range) -> u64 {
        let fresh = match self.add_alone(range) {
            true => range.bytes(),
            false => self.change(range, |count| count + 1),
        };
        self.covered += fresh;
        small(fresh)
    }

    /// Counts a range that was added once less; says how many bytes of it are counted no more.
    pub(crate) fn remove(&mut self, range: Range) -> u64 {
        let gone = match self.remove_alone(range) {
            true => range.bytes(),
            false => self.change(range, |count| count.saturating_sub(1)),
        };
        self.covered -= gone;
        small(gone)
    }

    /// Counts a range of which nothing is counted yet: the usual case, made in place. Says whether
    /// it was that.
    fn add_alone(&mut self, range: Range) -> bool {
        let next = range.last().checked_add(1);
        let above = next.and_then(|next| Some((next, *self.runs.get(&next)?)));
        let mut below = self.runs.range_mut(..=range.last()).next_back().map(|(_, run)| run);
        if below.as_ref().is_some_and(|below| below.last >= range.start()) {
            return false;
        }
        let above = above.filter(|(_, above)| above.count == 1);
        let last = above.map_or(range.last(), |(_, above)| above.last);
        below =
            below.filter(|below| below.count == 1 && below.last.wrapping_add(1) == range.start());
        match below {
            Some(below) => below.last = last,
            None => drop(self.runs.insert(range.start(), Run { last, count: 1 })),
        }
        if let Some((next, _)) = above {
            self.runs.remove(&next);
        }
        true
    }

    /// Counts a range no more that lies in a run which is counted once: the usual case, made in
    /// place. Says whether it was that.
    fn remove_alone(&mut self, range: Range) -> bool {
        let below = self.runs.range_mut(..=range.start()).next_back();
        let Some((&start, run)) = below.filter(|(_, run)| run.count == 1) else { return false };
        let last = run.last;
        if last < range.last() {
            return false;
        }
        if start < range.start() {
            run.last = range.start() - 1;
        } else {
            self.runs.remove(&start);
        }
        if last > range.last() {
            self.runs.insert(range.last() + 1, Run { last, count: 1 });
        }
        true
    }

    /// Changes the count of each address in a range; says how many bytes began or ceased to be
    /// counted.
    fn change(&mut self, range: Range, change: impl Fn(u32) -> u32) -> u128 {
        let (start, end) = (range.start().into(), u128::from(range.last()) + 1);
        let (mut pieces, mut flipped, mut done) = (vec![], 0, start);
        let mut inside = |pieces: &mut Vec<Piece>, piece: Piece| {
            let count = change(piece.count);
            if (count == 0) != (piece.count == 0) {
                flipped += piece.end.saturating_sub(piece.start);
            }
            push(pieces, Piece { count, ..piece });
        };
        for run in self.take(range).into_iter().rev() {
            push(&mut pieces, Piece { end: run.end.min(start), ..run });
            inside(&mut pieces, Piece { start: done, end: run.start.min(end), count: 0 });
            let part = Piece { start: run.start.max(start), end: run.end.min(end), ..run };
            inside(&mut pieces, part);
            push(&mut pieces, Piece { start: run.start.max(end), ..run });
            done = done.max(part.end);
        }
        inside(&mut pieces, Piece { start: done, end, count: 0 });
        let runs = pieces.into_iter().map(|piece| {
            (piece.start as u64, Run { last: (piece.end - 1) as u64, count: piece.count })
        });
        self.runs.extend(runs);
        flipped
    }

    /// Takes out the runs that overlap or touch a range, the highest first.
    fn take(&mut self, range: Range) -> Vec<Piece> {
        let mut taken = vec![];
        let limit = range.last().saturating_add(1);
        while let Some((&start, &Run { last, count })) = self.runs.range(..=limit).next_back() {
            if last < range.start().saturating_sub(1) {
                break;
            }
            self.runs.remove(&start);
            taken.push(Piece { start: start.into(), end: u128::from(last) + 1, count });
        }
        taken
    }
}

/// Adds a piece behind the others, unless it is empty or not counted; one that continues the last
/// is joined to it.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if piece.start >= piece.end || piece.count == 0 {
        return;
    }
    match pieces.last_mut() {
        Some(last) if last.end == piece.start && last.count == piece.count => last.end = piece.end,
        _ => pieces.push(piece),
    }
}

fn small(bytes: u128) -> u64 {
    bytes.try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As far from 0 or from 2^64 as `low` says, so that both ends of the addresses are reached.
    fn range(low: bool, start: u64, size: u64) -> Range {
        let (start, last) = (start, start + (size - 1));
        if low { Range::new(start, last) } else { Range::new(!last, !start) }.unwrap()
    }

    #[test]
    fn pages_in_a_row_are_one_run() {
        let mut coverage = Coverage::default();
        for page in (0..1000).step_by(2).chain((1..1000).step_by(2)) {
            assert_eq!(coverage.add(range(true, page * 0x1000, 0x1000)), 0x1000);
        }
        assert_eq!((coverage.runs.len(), coverage.covered()), (1, 1000 * 0x1000));
        assert_eq!(coverage.add(range(true, 0x3000, 0x2000)), 0);
        assert_eq!(coverage.runs.len(), 3);
        assert_eq!(coverage.remove(range(true, 0x3000, 0x2000)), 0);
        assert_eq!(coverage.runs.len(), 1);
    }

    #[test]
    fn every_address_can_be_covered() {
        let (half, top) = (range(true, 0, 1 << 63), range(false, 0, 1 << 63));
        let mut coverage = Coverage::default();
        assert_eq!((coverage.add(half), coverage.add(top)), (1 << 63, 1 << 63));
        assert_eq!((coverage.covered(), coverage.runs.len()), (1 << 64, 1));
        assert_eq!(coverage.uncovered(Range::ALL), 0);
        assert_eq!((coverage.remove(half), coverage.remove(top)), (1 << 63, 1 << 63));
        assert_eq!(coverage, Coverage::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn counts_are_those_of_a_counter_for_each_address(
            low: bool,
            steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..16, any::<usize>()), 1..60),
        ) {
            let mut coverage = Coverage::default();
            let mut naive = [0u32; 64];
            let mut added: Vec<(u64, u64)> = vec![];
            for (remove, start, size, choice) in steps {
                let bytes = |naive: &[u32], start: u64, size: u64, count| {
                    let part = &naive[start as usize..(start + size) as usize];
                    part.iter().filter(|&&found| found == count).count() as u64
                };
                let uncovered = bytes(&naive, start, size, 0);
                prop_assert_eq!(coverage.uncovered(range(low, start, size)), uncovered);
                if remove && !added.is_empty() {
                    let (start, size) = added.swap_remove(choice % added.len());
                    let gone = bytes(&naive, start, size, 1);
                    naive[start as usize..(start + size) as usize].iter_mut().for_each(|n| *n -= 1);
                    prop_assert_eq!(coverage.remove(range(low, start, size)), gone);
                } else {
                    naive[start as usize..(start + size) as usize].iter_mut().for_each(|n| *n += 1);
                    prop_assert_eq!(coverage.add(range(low, start, size)), uncovered);
                    added.push((start, size));
                }
                let covered = naive.iter().filter(|&&count| count > 0).count();
                prop_assert_eq!(coverage.covered(), covered as u128);
                // As few runs as there are stretches of equal counts.
                let stretches = naive.chunk_by(|a, b| a == b).filter(|chunk| chunk[0] > 0);
                prop_assert_eq!(coverage.runs.len(), stretches.count());
            }
        }
    }
}

//! Ranges of IOVAs, with inclusive ends so that the last one can end at 2^64 - 1, and sets of
//! them.

use std::fmt;

/// A range of addresses that is never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    start: u64,
    last: u64,
}

impl Range {
    /// Every address.
    pub const ALL: Self = Self { start: 0, last: u64::MAX };

    /// From `start` to `last`, both included; `None` if that is no range.
    pub const fn new(start: u64, last: u64) -> Option<Self> {
        if start <= last { Some(Self { start, last }) } else { None }
    }

    /// `size` bytes from `start`; `None` if there are none or if they go beyond 2^64.
    pub const fn from_size(start: u64, size: u64) -> Option<Self> {
        match size.checked_sub(1) {
            Some(length) => match start.checked_add(length) {
                Some(last) => Some(Self { start, last }),
                None => None,
            },
            None => None,
        }
    }

    /// The first address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The last address, which belongs to the range.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// How many bytes the range has. [`Range::ALL`] has one more than a `u64` can say.
    pub const fn bytes(self) -> u128 {
        (self.last - self.start) as u128 + 1
    }

    /// Whether all of `other` is in this range.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.last <= self.last
    }

    /// From the lower start to the higher end, whatever lies between.
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), last: self.last.max(other.last) }
    }

    /// The addresses that both have.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.last.min(other.last))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last)
    }
}

/// A set of addresses: ranges in ascending order, with a gap between each two.
///
/// Collect it from ranges in any order; those that overlap or touch become one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// The ranges, in ascending order.
    pub fn as_slice(&self) -> &[Range] {
        &self.0
    }

    /// Whether it has no address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// From the lowest to the highest address (the aperture), whatever lies between; `None` if
    /// the set is empty.
    pub fn hull(&self) -> Option<Range> {
        Range::new(self.0.first()?.start, self.0.last()?.last)
    }

    /// The addresses that both sets have.
    pub fn intersection(&self, other: &Self) -> Self {
        let pairs = self.0.iter().flat_map(|a| other.0.iter().map(|b| a.intersection(*b)));
        pairs.flatten().collect()
    }

    /// The lowest gap in the set that `range` runs into, in its full width; `None` if the set
    /// has all of `range`.
    pub fn gap_in(&self, range: Range) -> Option<Range> {
        let next = self.0.partition_point(|member| member.last < range.start);
        match self.0.get(next) {
            Some(member) if member.contains(range) => None,
            Some(member) if member.start <= range.start => self.gap_before(next + 1),
            _ => self.gap_before(next),
        }
    }

    /// The addresses between the range before place `next` and the range there.
    fn gap_before(&self, next: usize) -> Option<Range> {
        let start =
            next.checked_sub(1).map_or(Some(0), |before| self.0[before].last.checked_add(1));
        let last = self.0.get(next).map_or(Some(u64::MAX), |after| after.start.checked_sub(1));
        Range::new(start?, last?)
    }
}

impl FromIterator<Range> for RangeSet {
    fn from_iter<I: IntoIterator<Item = Range>>(ranges: I) -> Self {
        let mut sorted: Vec<Range> = ranges.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup_by(|next, before| {
            let joined = next.start <= before.last.saturating_add(1);
            if joined {
                before.last = before.last.max(next.last);
            }
            joined
        });
        Self(sorted)
    }
}

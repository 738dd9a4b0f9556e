//! What models of the engine have in common: kinds of hardware, what several kinds are able to do
//! alike, worked out address by address, and verdicts.

use crate::*;

pub(crate) const PAGE: u64 = 0x1000;

/// A kind of hardware that groups of the model have.
pub(crate) struct Kind {
    pub(crate) pgsizes: u64,
    pub(crate) permitted: &'static [(u64, u64)],
    pub(crate) max_mappings: u32,
    pub(crate) simulated: bool,
}

/// Group n of the model is of kind n.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        pgsizes: 0x3000,
        permitted: &[(0, 0x5fff), (0x8000, 0xffff)],
        max_mappings: 8,
        simulated: false,
    },
    Kind { pgsizes: 0x6000, permitted: &[(0x2000, 0x1_1fff)], max_mappings: 4, simulated: false },
    Kind { pgsizes: 0x1000, permitted: &[(0, u64::MAX)], max_mappings: 100, simulated: true },
    Kind {
        pgsizes: 0x7000,
        permitted: &[(0x4000, 0x5fff), (0xc000, u64::MAX)],
        max_mappings: 3,
        simulated: true,
    },
    Kind {
        pgsizes: 0x1000,
        permitted: &[(0x1_2000, 0x1_7fff)],
        max_mappings: 100,
        simulated: false,
    },
];

/// The pages that are looked at one by one: all that commands name, and some around them.
pub(crate) fn pages() -> impl Iterator<Item = u64> {
    (0..0x1a)
        .map(|page| page * PAGE)
        .chain((1..=8).rev().map(|page| 0u64.wrapping_sub(page * PAGE)))
}

/// An errno, or what would come out of the command.
pub(crate) type Verdict = Result<(), i32>;

pub(crate) fn fail_if(condition: bool, errno: i32) -> Verdict {
    if condition { Err(errno) } else { Ok(()) }
}

pub(crate) fn permitted(kinds: &[usize], address: u64) -> bool {
    kinds.iter().all(|&kind| {
        KINDS[kind].permitted.iter().any(|&(start, last)| (start..=last).contains(&address))
    })
}

/// The lowest and the highest address that all kinds permit: ends of ranges of one of them.
pub(crate) fn aperture(kinds: &[usize]) -> Option<(u64, u64)> {
    let ends = kinds.iter().flat_map(|&kind| KINDS[kind].permitted);
    let ends: Vec<u64> = ends.flat_map(|&(start, last)| [start, last]).collect();
    let usable = || ends.iter().copied().filter(|&address| permitted(kinds, address));
    Some((usable().min()?, usable().max()?))
}

/// The smallest page size that all kinds have.
pub(crate) fn smallest_page(kinds: &[usize]) -> Option<u64> {
    (0..64).map(|shift| 1 << shift).find(|size| kinds.iter().all(|&k| KINDS[k].pgsizes & size != 0))
}

pub(crate) fn id(number: u32) -> Ioasid {
    Ioasid::try_from(number).unwrap()
}

//! What a hardware table is able to hold, and what several are able to hold alike.

use std::fmt;

use crate::RangeSet;

/// The page sizes of a table: bit n stands for pages of 2^n bytes, as in VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSizes(pub u64);

impl PageSizes {
    /// The smallest page size in bytes, or `None` if there is no size at all. Mappings begin
    /// and end at its multiples.
    pub const fn smallest(self) -> Option<u64> {
        match self.0 {
            0 => None,
            sizes => Some(1 << sizes.trailing_zeros()),
        }
    }
}

impl fmt::Display for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        let shifts = (0..u64::BITS).filter(|shift| self.0 >> shift & 1 == 1);
        for (place, shift) in shifts.enumerate() {
            let separator = if place == 0 { "" } else { ", " };
            let unit = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][shift as usize / 10];
            write!(f, "{separator}{} {unit}", 1u64 << (shift % 10))?;
        }
        Ok(())
    }
}

/// What a hardware table is able to hold. That of an IOASID is what all tables that show it are
/// able to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The page sizes. At least one.
    pub pgsizes: PageSizes,
    /// The IOVAs that can be mapped. At least one.
    pub permitted: RangeSet,
    /// How many mappings there can be.
    pub max_mappings: u32,
}

impl Geometry {
    /// What two tables are able to hold alike.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self {
            pgsizes: PageSizes(self.pgsizes.0 & other.pgsizes.0),
            permitted: self.permitted.intersection(&other.permitted),
            max_mappings: self.max_mappings.min(other.max_mappings),
        }
    }

    /// Whether anything can be mapped with it.
    pub(crate) fn is_usable(&self) -> bool {
        self.pgsizes.0 != 0 && !self.permitted.is_empty()
    }
}

//! The engine of `/dev/ioasid`: which I/O address spaces exist, what each maps, and what every
//! hardware table must therefore hold.
//!
//! A [`Context`] is the state behind one open of the node. Questions are answered at once
//! ([`Context::info`], [`Context::translate`]); a change is made in two steps. A `plan_…` function
//! checks every rule and returns a [`Plan`]: which hardware tables change, and how. Then
//! [`Context::execute`] has a [`Hardware`] carry the changes out one by one, takes them back if one
//! is refused, and alters the state only after all were accepted. So after any error the context
//! and the tables are as they were before.
//!
//! What this crate does not do: it opens no file, makes no system call, reads no clock, starts no
//! thread and logs nothing. It does not know what memory is (a [`MemoryId`] stands for it), whether
//! a caller may use it, or how a table is programmed: that is the daemon's.
//!
//! The rules are those of `uapi/include/ioasid.h`, which follows "\[RFC\] /dev/ioasid uAPI proposal"
//! (2021) and, for MAP and UNMAP, VFIO type1 v2. When several rules are broken, the one that
//! is reported is the first in this order:
//!
//! 1. an id that names nothing (`ENOENT`)
//! 2. an IOASID that no device was attached to yet (`ENODEV`)
//! 3. a hardware table in an unknown state (`EIO`), a partly attached group (`EBUSY`)
//! 4. arguments that are malformed by themselves or for the page size and aperture (`EINVAL`,
//!    `EOVERFLOW`)
//! 5. a conflict with the platform (`EADDRINUSE`), with what is mapped (`EEXIST`; `EINVAL` for
//!    an unmap that would split), with a limit (`ENOSPC`)
#![forbid(unsafe_code)]

mod context;
mod error;
mod execute;
mod geometry;
mod ids;
mod plan;
mod query;
mod range;
mod space;
mod table;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use context::{Bind, Context, Limits, Map, Unmap};
pub use error::Error;
pub use geometry::{Geometry, PageSizes};
pub use ids::{Cookie, DeviceId, GroupId, Ioasid, MemoryId};
pub use plan::{Change, Entry, ExecuteError, Hardware, Outcome, Plan, Prot};
pub use query::{DeviceInfo, MappingInfo, SpaceInfo, TableInfo, Translation};
pub use range::{Range, RangeSet};

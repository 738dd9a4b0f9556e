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
//!
//! ```
//! use ioasid::{Bind, Context, Cookie, Entry, Geometry, GroupId, Hardware, Limits, Map, MemoryId};
//! use ioasid::{PageSizes, Prot, Range};
//!
//! struct Nothing;
//! impl Hardware for Nothing {
//!     type Error = std::convert::Infallible;
//!     fn map(&mut self, _: GroupId, _: Entry) -> Result<(), Self::Error> { Ok(()) }
//!     fn unmap(&mut self, _: GroupId, _iova: u64, _size: u64) -> Result<(), Self::Error> { Ok(()) }
//!     fn clear(&mut self, _: GroupId) -> Result<(), Self::Error> { Ok(()) }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let limits = Limits { max_ioasids: 16, max_devices: 16, max_mappings: 65535 };
//! let mut context = Context::new(limits);
//! let device = context.bind(Bind {
//!     group: GroupId(7),
//!     geometry: Geometry {
//!         pgsizes: PageSizes(0x1000),
//!         permitted: [Range::ALL].into_iter().collect(),
//!         max_mappings: 65535,
//!     },
//!     simulated: true,
//!     name: "sim0".to_owned(),
//!     cookie: Cookie(0),
//! })?;
//! let ioasid = context.alloc()?;
//! context.execute(context.plan_attach(device, ioasid)?, &mut Nothing)?;
//! let map = Map { iova: 0x1000, size: 0x1000, vaddr: 0x7f00_0000_0000, prot: Prot::READ };
//! context.execute(context.plan_map(ioasid, map, MemoryId(1))?, &mut Nothing)?;
//! assert_eq!(context.translate(ioasid, 0x1234).map(|found| found.offset), Some(0x234));
//! # Ok(())
//! # }
//! ```
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

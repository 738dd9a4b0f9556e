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
//! A caller that shares a context between threads keeps it unlocked while hardware works:
//! it plans and [`check`](Context::check)s under its lock, has [`Plan::carry_out`] ask for what
//! tables must hold through [`Contents`], and [`commit`](Context::commit)s or
//! [`abandon`](Context::abandon)s under the lock again. Commands on other IOASIDs and other groups
//! do not disturb a plan; see [`Plan`] for what does.
//!
//! Locked memory is counted, not limited: [`Plan::charge`] and [`Outcome::uncharged`] say how much
//! each command adds and takes. Registered memory ([`Context::register`]) is charged once, by
//! whoever registers it; other memory once for each IOASID, however often it is mapped there and by
//! however many devices; registers of devices never.
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
//! 6. memory that is not registered while other memory is (`EFAULT`)
//!
//! ```
//! use ioasid::{Bind, Context, Cookie, Entry, Geometry, GroupId, Hardware, Limits, Map, MapKind};
//! use ioasid::{MemoryId, Owner, PageSizes, Prot, Range};
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
//! let limits =
//!     Limits { max_ioasids: 16, max_devices: 16, max_mappings: 65535, max_registered: 64 };
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
//! let map = Map {
//!     iova: 0x1000,
//!     size: 0x1000,
//!     vaddr: 0x7f00_0000_0000,
//!     prot: Prot::READ,
//!     owner: Owner(1),
//!     kind: MapKind::Memory,
//! };
//! let plan = context.plan_map(ioasid, map, MemoryId(1))?;
//! assert_eq!(plan.charge(), 0x1000);
//! context.execute(plan, &mut Nothing)?;
//! assert_eq!(context.translate(ioasid, 0x1234).map(|found| found.offset), Some(0x234));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod context;
mod coverage;
mod dirty;
mod error;
mod execute;
mod geometry;
mod ids;
mod nesting;
pub mod pgtable;
mod plan;
mod query;
mod range;
mod registered;
mod regroup;
mod shadow;
mod space;
mod table;
mod targets;

#[cfg(test)]
mod batch_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod forest_tests;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod nesting_tests;
#[cfg(test)]
mod setup;
#[cfg(test)]
mod tests;

pub use context::{Bind, Context, Limits, Map, MapKind, Unmap};
pub use error::Error;
pub use geometry::{Geometry, PageSizes};
pub use ids::{Cookie, DeviceId, GroupId, Ioasid, MemoryId, Owner};
pub use plan::{
    Carried, Change, Contents, Entry, ExecuteError, Hardware, Outcome, Plan, Prot, Undone,
};
pub use query::{DeviceInfo, MappingInfo, SpaceInfo, TableInfo, Translation};
pub use range::{Range, RangeSet};
pub use registered::{Hold, Registered};

//! The names of things: integers that must not be mistaken for one another.

use std::fmt;
use std::num::NonZeroU32;

use crate::Error;

/// An I/O address space of one context. Counted from 1 and never used again in the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ioasid(NonZeroU32);

impl Ioasid {
    /// The number that the program uses.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for Ioasid {
    type Error = Error;

    /// The IOASID of a number that came from a program; [`Error::NoIoasid`] for 0, which names none.
    fn try_from(number: u32) -> Result<Self, Error> {
        NonZeroU32::new(number).map(Self).ok_or(Error::NoIoasid(number))
    }
}

impl fmt::Display for Ioasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Defines identifiers that are plain integers.
macro_rules! ids {
    ($($(#[$attr:meta])* $name:ident($integer:ty),)*) => {
        $(
            $(#[$attr])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub $integer);

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.0.fmt(f)
                }
            }
        )*
    };
}

ids! {
    /// A bound device of one context. Counted from 1 and never used again in the context.
    DeviceId(u32),
    /// A group of devices that DMA through one hardware table; it also names that table. Chosen by
    /// whoever binds; the engine only compares it.
    GroupId(u64),
    /// The memory behind one mapping or one registration, as whoever makes it knows it. The engine
    /// reports it in [`Outcome::released`](crate::Outcome::released) when that mapping is removed,
    /// so that no two of them that exist at the same time must have the same one.
    MemoryId(u64),
    /// Whose memory: stands for one address space or one file of one program, as the daemon numbers
    /// them. Memory of one owner is the same memory where its addresses (offsets in a file) are.
    Owner(u32),
    /// The program's own name for a device, given back in whatever is reported about it.
    Cookie(u64),
}

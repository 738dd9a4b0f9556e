//! Callers' memory: what stands behind a mapping, whatever kind of memory it is.
//!
//! [`resolve`](mirror::resolve) turns a range of a caller's address space into a [`Backing`]: file
//! ranges that the daemon holds open. A backing outlives the caller's own mapping and the caller. It
//! is reached through a [`Window`], a passing mmap of it in the daemon: hardware pins the pages
//! behind a window, simulated devices copy through one. The daemon itself never touches the bytes
//! of a window: a file can be cut short by its owner at any moment, and a touch would then be
//! a SIGBUS.

mod filesystem;
mod maps;
pub mod mirror;
mod window;

use std::fs::File;
use std::ops::Range;

use rustix::fs::OFlags;
use rustix::io::Errno;

pub use filesystem::attributes;
pub use window::Window;

/// What devices may do to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Devices read it.
    ReadOnly,
    /// Devices may write it.
    ReadWrite,
}

impl Rights {
    /// How a file must be open to give these rights.
    fn open_flags(self) -> OFlags {
        match self {
            Self::ReadOnly => OFlags::RDONLY,
            Self::ReadWrite => OFlags::RDWR,
        }
    }
}

/// A piece of a file that stands behind a piece of a mapping.
#[derive(Debug)]
struct Segment {
    file: File,
    /// Where the piece begins in the file, bytes.
    offset: u64,
    /// Its length, bytes.
    len: u64,
    /// What offset and length of an mmap of the file must be a multiple of, bytes.
    alignment: u64,
}

/// The memory behind one mapping: file pieces, one after another.
#[derive(Debug)]
pub struct Backing {
    segments: Vec<Segment>,
    rights: Rights,
}

impl Backing {
    /// Maps `range` (bytes from the start of the backing) into the daemon, a window for each
    /// piece of file in it, and calls `visit` with the window and its position in the range.
    /// Stops at the first error.
    ///
    /// # Errors
    /// What mmap says, or what `visit` does; EFAULT for a range that the backing does not have.
    pub fn visit<E: From<Errno>>(
        &self,
        range: Range<u64>,
        mut visit: impl FnMut(u64, &Window) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut begin = 0;
        for segment in &self.segments {
            let end = begin + segment.len;
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                let offset = segment.offset + (from - begin);
                let window =
                    Window::new(&segment.file, offset, to - from, segment.alignment, self.rights)?;
                visit(from - range.start, &window)?;
            }
            begin = end;
        }
        match range.end <= begin {
            true => Ok(()),
            false => Err(Errno::FAULT.into()),
        }
    }
}

//! Hardware tables: the I/O page tables that follow the engine.
//!
//! A table belongs to one device group for as long as it is bound. Which table holds what is
//! the engine's decision; a backend carries out single changes, each of which can be repeated or
//! undone.

pub mod simulated;
pub mod vfio;

use std::sync::Arc;

use ioasid::{Entry, Geometry, Prot};

use crate::failure::Failure;
use crate::memory::{Backing, Rights};

/// The rights that a program must have on memory which is mapped for devices like this.
pub fn rights_needed(prot: Prot) -> Rights {
    if prot.write { Rights::ReadWrite } else { Rights::ReadOnly }
}

/// The I/O page table of a bound group.
#[derive(Debug)]
pub enum Table {
    /// A VFIO type1 container.
    Vfio(vfio::Container),
    /// A table of the software IOMMU.
    Simulated(simulated::Table),
}

impl Table {
    /// What the table can hold.
    pub fn geometry(&self) -> &Geometry {
        match self {
            Self::Vfio(container) => container.geometry(),
            Self::Simulated(table) => table.geometry(),
        }
    }

    /// Has the group's devices see a piece of `memory`, as the entry says.
    ///
    /// # Errors
    /// EFAULT when the memory cannot be pinned, ENOMEM, ENOSPC when the table is full; the table
    /// is then as it was.
    pub fn map(&mut self, entry: &Entry, memory: &Arc<Backing>) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.map(entry, memory),
            Self::Simulated(table) => table.map(entry, memory),
        }
    }

    /// Removes what is mapped in `size` bytes at `iova`. Nothing there is no error.
    pub fn unmap(&mut self, iova: u64, size: u64) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.unmap(iova, size),
            Self::Simulated(table) => table.unmap(iova, size),
        }
    }

    /// Removes all that is mapped.
    pub fn clear(&mut self) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.clear(),
            Self::Simulated(table) => table.clear(),
        }
    }
}

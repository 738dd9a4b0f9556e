//! Hardware tables: the I/O page tables that follow the engine.
//!
//! A table belongs to one device group for as long as it is bound, or to several that share it.
//! Which table holds what is the engine's decision; a backend carries out single changes, each of
//! which can be repeated or undone.

pub mod simulated;
pub mod vfio;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasid::{Entry, Geometry, Prot};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::in_context::{Broken, Led};
use crate::memory::{Backing, Rights};
use crate::process::Process;

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

    /// Has the table's hardware note which pages are written, or not. Simulated devices need not: who
    /// has them do DMA knows what they write.
    ///
    /// # Errors
    /// EOPNOTSUPP when it cannot.
    pub fn track(&mut self, on: bool) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.track(on),
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Tells which pages of whole entries were written since that was last asked, as far as it is
    /// the hardware that knows.
    ///
    /// # Errors
    /// EIO when it cannot say.
    pub fn written(
        &self,
        range: ioasid::Range,
        tell: impl FnMut(ioasid::Range),
    ) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.written(range, tell),
            Self::Simulated(_) => Ok(()),
        }
    }

    /// Has the groups of another table, which maps nothing, share this one.
    ///
    /// # Errors
    /// EINVAL when they cannot, EBUSY when a device of them is open. Both are as they were.
    pub fn merge(&mut self, other: &mut Self) -> Result<(), Failure> {
        match (self, other) {
            (Self::Vfio(container), Self::Vfio(other)) => other.move_groups(container),
            (Self::Simulated(table), Self::Simulated(other)) => {
                table.merge(other);
                Ok(())
            }
            _ => Err(refuse_mixed()),
        }
    }

    /// Lets a group go, which shares the table with others or is the last.
    ///
    /// # Errors
    /// EBUSY when a device of it is open.
    pub fn leave(&mut self, group: u32) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.leave(group),
            Self::Simulated(table) => {
                table.leave(group);
                Ok(())
            }
        }
    }

    /// Whether DMA through it is always coherent with caches.
    pub fn is_coherent(&self) -> bool {
        match self {
            Self::Vfio(container) => container.is_coherent(),
            Self::Simulated(_) => true,
        }
    }

    /// Whether what is mapped gets pinned, by whoever makes the call.
    pub fn pins(&self) -> bool {
        matches!(self, Self::Vfio(_))
    }

    /// Has the group's devices see a piece of `memory`, as the entry says, whose offset counts from
    /// `base` on.
    ///
    /// # Errors
    /// EFAULT when the memory cannot be pinned, ENOMEM, ENOSPC when the table is full; the table
    /// is then as it was.
    pub fn map(
        &mut self,
        entry: &Entry,
        (memory, base): (&Arc<Backing>, u64),
        effort: &mut Effort<'_, '_>,
    ) -> Result<(), Failure> {
        match self {
            Self::Vfio(container) => container.map(entry, (memory, base), effort),
            Self::Simulated(table) => table.map(entry, (memory, base)),
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

/// A real group and a simulated one have no table in common.
pub fn refuse_mixed() -> Failure {
    Failure::invalid("a simulated device cannot share the I/O page table of a real one")
}

/// Private memory is pinned by a thread of its own program, or not at all.
pub fn refuse_foreign(owner: &Process) -> Failure {
    Failure::new(
        Errno::FAULT,
        format!(
            "private memory of process {} can be mapped for another device by that process alone{}",
            owner.id(),
            if owner.is_alive() { "" } else { ", and it has ended" }
        ),
    )
}

/// How far a command has got that works on tables, bytes.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// The work to do is known.
    pub fn begin(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Part of it is done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Done and total. (What is undone again is not taken off.)
    pub fn get(&self) -> (u64, u64) {
        let total = self.total.load(Ordering::Relaxed);
        (self.done.load(Ordering::Relaxed).min(total), total)
    }
}

/// What a command has at hand to change tables with.
pub struct Effort<'a, 'l> {
    /// The caller, if it is being led.
    pub led: Option<&'a mut Led<'l>>,
    /// Where progress is told.
    pub progress: &'a Progress,
    /// Whether to stop, and why.
    pub stop: &'a dyn Fn() -> Result<(), Failure>,
}

impl<'l> Effort<'_, 'l> {
    /// To be asked before each long step.
    ///
    /// # Errors
    /// Why there should be none.
    pub fn go_on(&self) -> Result<(), Failure> {
        (self.stop)()
    }

    /// Tells of a step that is done.
    pub fn done(&self, bytes: u64) {
        self.progress.add(bytes);
    }

    /// A thread of `process`, to be led through a call.
    ///
    /// # Errors
    /// EFAULT when the caller is none.
    pub fn lead(&mut self, process: &Arc<Process>) -> Result<&mut Led<'l>, Failure> {
        match &mut self.led {
            Some(led) if Arc::ptr_eq(led.process(), process) => Ok(led),
            _ => Err(refuse_foreign(process)),
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Gone => Self::new(Errno::INTR, "the calling thread was killed"),
            Broken::Failed(failure) => failure,
        }
    }
}

//! Changes as plain data: what is to happen to hardware tables and then to the state, and the
//! interface of what carries it out.

use crate::pgtable::Root;
use crate::registered::Sources;
use crate::space::Mapping;
use crate::table::Table;
use crate::{DeviceId, Error, GroupId, Ioasid, MemoryId, Owner, Range};

/// What devices may do to mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prot {
    /// They may read it.
    pub read: bool,
    /// They may write it.
    pub write: bool,
}

impl Prot {
    /// Devices may read only.
    pub const READ: Self = Self { read: true, write: false };
    /// Devices may write only.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Devices may do both.
    pub const READ_WRITE: Self = Self { read: true, write: true };
}

/// One entry of a hardware table: `[iova, iova + size)` leads to `memory` from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first IOVA.
    pub iova: u64,
    /// Bytes; `iova + size` is at most 2^64.
    pub size: u64,
    /// What devices may do.
    pub prot: Prot,
    /// The memory behind it.
    pub memory: MemoryId,
    /// Where in the memory the entry begins, bytes.
    pub offset: u64,
}

/// One step of a plan: a change of one hardware table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add an entry.
    Map {
        /// Whose table.
        group: GroupId,
        /// What to add.
        entry: Entry,
    },
    /// Remove the entries in `[iova, iova + size)`: one or more, each wholly inside.
    Unmap {
        /// Whose table.
        group: GroupId,
        /// Where the first of the entries begins.
        iova: u64,
        /// Bytes, up to where the last of the entries ends.
        size: u64,
    },
    /// Add everything that a table which shows `ioasid` must hold. The table is empty before.
    Fill {
        /// Whose table.
        group: GroupId,
        /// The address space.
        ioasid: Ioasid,
    },
    /// Remove every entry.
    Clear {
        /// Whose table.
        group: GroupId,
    },
}

impl Change {
    /// Whose table it changes.
    pub const fn group(&self) -> GroupId {
        match self {
            Self::Map { group, .. }
            | Self::Unmap { group, .. }
            | Self::Fill { group, .. }
            | Self::Clear { group } => *group,
        }
    }
}

/// What a command will do, found legal for one state of what it concerns: the changes of hardware
/// tables, and the change of state once they are made.
///
/// It is plain data, borrows nothing, and is stale ([`Error::StalePlan`]) once what it was made for
/// has changed:
/// - for map, unmap, free and what concerns a bound table: the IOASID and all that are nested on the
///   same, that is their mappings, which groups are attached to them, and the devices of these
///   groups; if registered memory is mapped, also its registration
/// - for attach, detach, leave and withdraw: the IOASID and the group of the device
/// - for unbind: the group of the device
/// - for release: nothing
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "nothing has changed until the plan is executed"]
pub struct Plan {
    pub(crate) basis: Basis,
    pub(crate) changes: Vec<Change>,
    pub(crate) commit: Commit,
    pub(crate) charge: u64,
    /// How many entries tables hold afterwards, of those that show a child and change.
    pub(crate) held: Vec<(GroupId, usize)>,
}

/// What a plan was made for, each with its generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Basis {
    pub(crate) space: Option<(Ioasid, u64)>,
    pub(crate) group: Option<(GroupId, u64)>,
    /// What mappings are made from.
    pub(crate) sources: Sources,
}

impl Basis {
    pub(crate) fn and_group(self, group: GroupId, table: &Table) -> Self {
        Self { group: Some((group, table.generation)), ..self }
    }
}

impl Plan {
    /// A plan that charges nothing.
    pub(crate) fn new(basis: Basis, changes: Vec<Change>, commit: Commit) -> Self {
        Self { basis, changes, commit, charge: 0, held: vec![] }
    }

    pub(crate) fn and_held(self, held: Vec<(GroupId, usize)>) -> Self {
        Self { held, ..self }
    }

    /// How many bytes are newly charged to the owner of the memory if the plan is committed; 0 for
    /// all but map. Registered memory is charged with its registration, other memory once for each
    /// IOASID.
    pub fn charge(&self) -> u64 {
        self.charge
    }

    /// The changes of hardware tables, in their order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
}

/// The change of state at the end of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    Map {
        ioasid: Ioasid,
        added: Vec<(u64, Mapping)>,
    },
    /// Remove what is mapped in `range`, which begins and ends with a mapping.
    Unmap {
        ioasid: Ioasid,
        range: Range,
    },
    /// A table of the program was read.
    Reread {
        ioasid: Ioasid,
        bound: Option<Root>,
        /// Of each mapping that is gone, all of it.
        removed: Vec<Range>,
        added: Vec<(u64, Mapping)>,
    },
    /// Nothing is mapped where a command unmaps.
    Nothing,
    Attach {
        device: DeviceId,
        ioasid: Ioasid,
    },
    Detach {
        device: DeviceId,
        /// To how many IOASIDs it stays attached.
        level: usize,
        /// Its table holds what it shows then.
        intact: bool,
    },
    Free {
        ioasid: Ioasid,
    },
    Unbind {
        device: DeviceId,
    },
    /// Detach from everything and unbind.
    Withdraw {
        device: DeviceId,
    },
    Release,
}

/// What hardware tables must hold, asked for while a plan is carried out. The [`Context`] itself
/// answers; a caller that shares it behind a lock locks it for each question only.
///
/// [`Context`]: crate::Context
pub trait Contents {
    /// What a table that shows `ioasid` must hold: the entries that begin in `range`, in ascending
    /// order.
    fn entries(&self, ioasid: Ioasid, range: Range) -> Vec<Entry>;

    /// The IOASID that the table of `group` shows; `None` if it shows none or there is no such
    /// group.
    fn shown(&self, group: GroupId) -> Option<Ioasid>;
}

/// What carries out changes: all the hardware tables of a context.
///
/// Each function changes the table of `group` and nothing else. What an implementation must hold:
/// a call that fails has changed nothing, and what was removed from a table is out of the reach of
/// devices when the call returns.
pub trait Hardware {
    /// Why a change is refused.
    type Error;

    /// Adds an entry where there is none.
    ///
    /// # Errors
    /// The table cannot have it.
    fn map(&mut self, group: GroupId, entry: Entry) -> Result<(), Self::Error>;

    /// Adds entries, one after another, for hardware that has less to do for many than for each.
    ///
    /// # Errors
    /// How many were added, and why the next cannot be.
    fn map_all(&mut self, group: GroupId, entries: &[Entry]) -> Result<(), (usize, Self::Error)> {
        let mut entries = entries.iter().enumerate();
        entries.try_for_each(|(done, &entry)| self.map(group, entry).map_err(|error| (done, error)))
    }

    /// Removes the entries in `[iova, iova + size)`: one or more, none of which is cut.
    ///
    /// # Errors
    /// They cannot be removed, and are all still there.
    fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Self::Error>;

    /// Removes every entry. There may be none.
    ///
    /// # Errors
    /// They cannot be removed, and are all still there.
    fn clear(&mut self, group: GroupId) -> Result<(), Self::Error>;
}

/// What a plan did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<E> {
    /// The memory of the mappings that were removed; no table leads to it any more, except those
    /// in `failures`. Of [`plan_release`](crate::Context::plan_release), also the registered memory.
    pub released: Vec<MemoryId>,
    /// How many bytes were unmapped by [`plan_unmap`](crate::Context::plan_unmap); `u64::MAX`
    /// stands for all 2^64.
    pub unmapped_bytes: u64,
    /// What is charged no more, of what [`Plan::charge`] said: bytes, never 0, once for each owner,
    /// in ascending order. Registered memory is not in it.
    pub uncharged: Vec<(Owner, u64)>,
    /// The groups that have no bound device any more: their tables are needed no longer.
    pub retired: Vec<GroupId>,
    /// The tables that could not be cleared by [`plan_release`](crate::Context::plan_release),
    /// and why: destroy them before the released memory is given back.
    pub failures: Vec<(GroupId, E)>,
}

impl<E> Default for Outcome<E> {
    fn default() -> Self {
        Self {
            released: vec![],
            unmapped_bytes: 0,
            uncharged: vec![],
            retired: vec![],
            failures: vec![],
        }
    }
}

/// Proof that hardware has made the changes of a plan. Give it to
/// [`Context::commit`](crate::Context::commit).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the state does not follow until the plan is committed"]
pub struct Carried<E> {
    /// The tables that could not be cleared by a release.
    pub(crate) failures: Vec<(GroupId, E)>,
}

/// A plan that a table refused and that was undone. Give it to
/// [`Context::abandon`](crate::Context::abandon).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "broken tables must be marked in the context"]
pub struct Undone<E> {
    /// The change that was refused.
    pub change: Change,
    /// Why.
    pub error: E,
    /// The tables that could not be restored, and why.
    pub broken: Vec<(GroupId, E)>,
}

/// Why a plan was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteError<E> {
    /// The plan does not hold any more ([`Error::StalePlan`]). Nothing was done.
    #[error(transparent)]
    Plan(#[from] Error),
    /// A table refused a change. All is as it was before.
    #[error("{error}")]
    Refused {
        /// The change that was refused.
        change: Change,
        /// Why.
        error: E,
    },
    /// A table refused a change, and some of what had been done before could not be undone. The
    /// state is as it was before, and so are all tables but those in `broken`: of what they hold
    /// nothing is known, and IOASIDs that their devices are attached to take no command
    /// ([`Error::TableBroken`]). They may lead to memory that was to be mapped: give no other memory the same [`MemoryId`].
    #[error("{error}; and what had been done before could not be undone")]
    Broken {
        /// The change that was refused.
        change: Change,
        /// Why.
        error: E,
        /// The tables that could not be restored, and why.
        broken: Vec<(GroupId, E)>,
    },
}

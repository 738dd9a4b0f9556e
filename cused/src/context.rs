//! One open of the node: the engine's state together with the hardware tables and the memory that
//! it speaks of.
//!
//! Two opens share nothing but the pool of simulated devices, so that they have no lock in
//! common either: a slow command of one delays no other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use ioasid::{Entry, ExecuteError, GroupId, Limits, MemoryId, Outcome, Plan};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::backend::Table;
use crate::failure::Failure;
use crate::memory::Backing;

/// How many threads' last failures an open remembers.
const FAILURES_KEPT: usize = 64;

/// The state behind one open of the node.
#[derive(Debug)]
pub struct Context {
    /// Address spaces, devices and what is mapped.
    pub state: Mutex<State>,
    /// What failed last, for IOASID_GET_ERROR.
    pub failures: Mutex<Failures>,
}

impl Context {
    /// A fresh open.
    pub fn new(limits: Limits) -> Self {
        Self { state: Mutex::new(State::new(limits)), failures: Mutex::default() }
    }
}

/// The engine and what it commands.
#[derive(Debug)]
pub struct State {
    /// What exists and what is mapped.
    pub engine: ioasid::Context,
    tables: BTreeMap<GroupId, Table>,
    memories: HashMap<MemoryId, Arc<Backing>>,
    last_memory: u64,
}

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            engine: ioasid::Context::new(limits),
            tables: BTreeMap::new(),
            memories: HashMap::new(),
            last_memory: 0,
        }
    }

    /// The table of a group that has a bound device.
    pub fn table(&mut self, group: GroupId) -> Option<&mut Table> {
        self.tables.get_mut(&group)
    }

    /// Adds the table of a group whose first device is being bound.
    pub fn insert_table(&mut self, group: GroupId, table: Table) {
        self.tables.insert(group, table);
    }

    /// Drops the table of a group, which has no bound device.
    pub fn remove_table(&mut self, group: GroupId) {
        self.tables.remove(&group);
    }

    /// Takes memory in, to be named by a plan. Memory that a failed plan named goes again with
    /// [`forget_memory`](Self::forget_memory).
    pub fn remember_memory(&mut self, backing: Backing) -> MemoryId {
        self.last_memory += 1;
        let id = MemoryId(self.last_memory);
        self.memories.insert(id, Arc::new(backing));
        id
    }

    /// Lets memory go that no mapping refers to.
    pub fn forget_memory(&mut self, id: MemoryId) {
        self.memories.remove(&id);
    }

    /// Carries out a plan; lets go of the memory and the tables that it leaves unused. Returns how
    /// many bytes it unmapped.
    ///
    /// # Errors
    /// What the hardware said; everything is then as it was.
    pub fn execute(&mut self, plan: Plan) -> Result<u64, Failure> {
        let mut hardware = Hardware { tables: &mut self.tables, memories: &self.memories };
        let outcome = self.engine.execute(plan, &mut hardware).map_err(refusal)?;
        let Outcome { released, unmapped_bytes, retired, failures } = outcome;
        for (group, failure) in failures {
            log::error!("the table of group {group} could not be cleared at release: {failure}");
        }
        // Tables go before memory: what could not be unmapped goes with its table.
        for group in retired {
            self.tables.remove(&group);
        }
        for memory in released {
            self.memories.remove(&memory);
        }
        Ok(unmapped_bytes)
    }

    /// Gives everything back: the open has ended.
    pub fn release(&mut self) {
        if let Err(failure) = self.execute(self.engine.plan_release()) {
            log::error!("an open of the node could not be released in order: {failure}");
        }
        self.tables.clear();
        self.memories.clear();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Also when a panic ends the open without its release.
        self.tables.clear();
    }
}

fn refusal(error: ExecuteError<Failure>) -> Failure {
    match error {
        ExecuteError::Plan(error) => error.into(),
        ExecuteError::Refused { error, .. } => error,
        ExecuteError::Broken { error, broken, .. } => {
            let groups: Vec<_> =
                broken.iter().map(|(group, why)| format!("{group} ({why})")).collect();
            Failure::new(
                Errno::IO,
                format!(
                    "{error}; and the tables of these groups could not be restored: {}; detach their devices",
                    groups.join(", ")
                ),
            )
        }
    }
}

/// Carries the engine's changes out.
struct Hardware<'a> {
    tables: &'a mut BTreeMap<GroupId, Table>,
    memories: &'a HashMap<MemoryId, Arc<Backing>>,
}

impl Hardware<'_> {
    fn table(&mut self, group: GroupId) -> Result<&mut Table, Failure> {
        self.tables.get_mut(&group).ok_or_else(|| lost("table", group.0))
    }
}

fn lost(what: &str, number: u64) -> Failure {
    Failure::new(
        Errno::IO,
        format!("the daemon has lost {what} {number}: this is a fault of the daemon"),
    )
}

impl ioasid::Hardware for Hardware<'_> {
    type Error = Failure;

    fn map(&mut self, group: GroupId, entry: Entry) -> Result<(), Failure> {
        let memory =
            self.memories.get(&entry.memory).ok_or_else(|| lost("memory", entry.memory.0))?;
        self.table(group)?.map(&entry, memory)
    }

    fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Failure> {
        self.table(group)?.unmap(iova, size)
    }

    fn clear(&mut self, group: GroupId) -> Result<(), Failure> {
        self.table(group)?.clear()
    }
}

/// A command that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The calling thread, 0 if unknown.
    pub thread: u32,
    /// Its ioctl number.
    pub command: u32,
    /// Why.
    pub failure: Failure,
}

/// The last failure of each thread, newest at the end.
#[derive(Debug, Default)]
pub struct Failures(VecDeque<Failed>);

impl Failures {
    /// Remembers a failure in place of the thread's last one.
    pub fn record(&mut self, failed: Failed) {
        self.0.retain(|other| other.thread != failed.thread);
        if self.0.len() >= FAILURES_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(failed);
    }

    /// The last failure of a thread, or of any.
    pub fn last(&self, thread: Option<u32>) -> Option<&Failed> {
        self.0.iter().rev().find(|failed| thread.is_none_or(|thread| failed.thread == thread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(thread: u32, command: u32) -> Failed {
        Failed { thread, command, failure: Failure::invalid("x") }
    }

    #[test]
    fn each_thread_has_its_own_last_failure() {
        let mut failures = Failures::default();
        for (thread, command) in [(1, 10), (2, 20), (1, 11)] {
            failures.record(failed(thread, command));
        }
        let command = |thread| failures.last(thread).map(|failed| failed.command);
        assert_eq!(command(Some(1)), Some(11));
        assert_eq!(command(Some(2)), Some(20));
        assert_eq!(command(Some(3)), None);
        assert_eq!(command(None), Some(11));
    }

    #[test]
    fn a_program_cannot_make_an_open_remember_without_end() {
        let mut failures = Failures::default();
        for thread in 0..10_000 {
            failures.record(failed(thread, thread));
        }
        assert_eq!(failures.0.len(), FAILURES_KEPT);
        assert!(failures.last(Some(0)).is_none());
        assert!(failures.last(Some(9_999)).is_some());
    }
}

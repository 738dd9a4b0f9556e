//! The commands of nested address spaces: children, and the tables of the program that they
//! translate by.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use cuse_channel::Interrupt;
use ioasid::pgtable::{self, Budget, Format, Leaf, Root, TableMemory, WalkError};
use ioasid::{Change, Contents as _, Ioasid, Map, MemoryId, Plan, Range};
use ioasid_uapi as uapi;
use rustix::io::Errno;

use super::{
    Command, Done, by_value, known_flags, no_wrap, pasid, refuse_invalid, reserved, result,
};
use crate::argument::Stop;
use crate::backend::refuse_foreign;
use crate::context::{Claim, Context, State, Turn};
use crate::failure::Failure;
use crate::memory::{Backing, Reach};
use crate::process::Process;

impl Command<'_, '_, '_> {
    pub(super) fn create_nesting(&mut self, arg: u64) -> Done {
        let parent = by_value(arg, "IOASID")?.try_into()?;
        let _turn = self.turn(&[Claim::Space(parent)])?;
        let mut state = self.context.state();
        if state.pasids.table(parent).is_some() {
            return Err(pasid::table_bound(parent).into());
        }
        Ok(result(state.engine.create_nesting(parent)?.get()))
    }

    /// MAP_DMA on a child, whose memory is the parent's.
    pub(super) fn map_nested(
        &mut self,
        turn: &Turn<'_>,
        ioasid: Ioasid,
        map: Map,
    ) -> Result<(), Stop> {
        let plan = self.context.state().engine.plan_map(ioasid, map, MemoryId(0))?;
        self.follow(turn, plan).map(drop)
    }

    pub(super) fn bind_pgtable(&mut self, arg: u64, bind: bool) -> Done {
        let table: uapi::BindPgtable = self.memory.structure(arg)?;
        known_flags(table.flags, 0)?;
        reserved(table.reserved)?;
        if !bind && (table.format, table.addr, table.addr_width) != (0, 0, 0) {
            return refuse_invalid("to unbind, every field but argsz and ioasid must be 0");
        }
        let ioasid = table.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        let plan = match bind {
            false => self.context.state().engine.plan_unbind_table(ioasid)?,
            true => {
                let state = self.context.state();
                state.engine.check_bind_table(ioasid)?;
                if state.pasids.table(ioasid).is_some() {
                    return Err(pasid::table_bound(ioasid).into());
                }
                drop(state);
                let root = root(&table)?;
                let leaves = self.walk(ioasid, &root, Range::ALL)?;
                self.check_root(ioasid, &root)?;
                self.context.state().engine.plan_bind_table(ioasid, root, &leaves)?
            }
        };
        self.follow(&turn, plan)?;
        Ok(0)
    }

    pub(super) fn invalidate_cache(&mut self, arg: u64) -> Done {
        let invalidate: uapi::InvalidateCache = self.memory.structure(arg)?;
        known_flags(invalidate.flags, uapi::INVALIDATE_ALL)?;
        reserved(invalidate.reserved)?;
        let all = invalidate.flags & uapi::INVALIDATE_ALL != 0;
        let range = match (all, invalidate.iova, invalidate.size) {
            (true, 0, 0) => Some(Range::ALL),
            (true, ..) => {
                return refuse_invalid(
                    "IOASID_INVALIDATE_ALL takes no range: iova and size must be 0",
                );
            }
            (false, _, 0) => return refuse_invalid("size is 0"),
            (false, iova, size) => {
                no_wrap("iova", iova, size)?;
                Range::from_size(iova, size)
            }
        };
        let ioasid = invalidate.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        if self.invalidate_pasids(&turn, ioasid, range.unwrap_or(Range::ALL))? {
            return Ok(0);
        }
        let root = *self.context.state().engine.bound_table(ioasid)?;
        // A page that reaches over an edge, in the table or as it was read before, is read whole.
        let mut range = range.unwrap_or(Range::ALL);
        let leaves = loop {
            range = self.context.state().engine.reread_extent(ioasid, range)?;
            let leaves = self.walk(ioasid, &root, range)?;
            let pages = leaves.iter().filter_map(|leaf| Range::from_size(leaf.iova, leaf.size));
            let whole = pages.fold(range, Range::hull);
            if whole == range {
                break leaves;
            }
            range = whole;
        };
        let plan = self.context.state().engine.plan_invalidate(ioasid, range, &leaves)?;
        self.follow(&turn, plan)?;
        Ok(0)
    }

    /// Carries out a plan that may have private memory pinned for another table, which only a
    /// thread of its program can do: the caller is then led. If it is not the caller's, nothing is
    /// changed: what tables hold could not be put back.
    pub(super) fn follow(&mut self, turn: &Turn<'_>, plan: Plan) -> Result<u64, Stop> {
        self.check_interrupt()?;
        self.harvest_before(&plan)?;
        let Pinned { wanted, held } = Pinned::by(&self.context.state(), &plan);
        if !wanted.is_empty() || !held.is_empty() {
            let tid = self.named_caller()?;
            let process = self.process_of(tid)?;
            let others = wanted.iter().find(|owner| !Arc::ptr_eq(owner, &process));
            if let Some(other) = others {
                return Err(refuse_foreign(other).into());
            }
            if !wanted.is_empty() || held.iter().any(|owner| Arc::ptr_eq(owner, &process)) {
                turn.leads(&process);
                self.leader.begin(tid, &process)?;
            }
        }
        Ok(self.execute(turn, plan)?)
    }

    /// The leaves of a table of the program in `range`, as far as the devices can use them.
    pub(super) fn walk(
        &mut self,
        ioasid: Ioasid,
        root: &Root,
        range: Range,
    ) -> Result<Vec<Leaf>, Stop> {
        let state = self.context.state();
        let info = state.engine.info(ioasid)?;
        drop(state);
        let usable = info.permitted.hull().and_then(|usable| usable.intersection(range));
        let (Some(parent), Some(usable)) = (info.parent, usable) else { return Ok(vec![]) };
        let most = u64::from(info.max_mappings);
        // Each table of a sensible one leads to a leaf; the rest is for those that lead nowhere.
        let mut budget = Budget { tables: 4 * most + 4096, leaves: most };
        let mut memory = ParentMemory::new(self.context, parent, self.interrupt);
        let mut leaves = vec![];
        let walked = self.memory.reading(|| {
            pgtable::walk(root, usable, &mut memory, &mut budget, &mut |leaf| leaves.push(leaf))
        })?;
        let too_much = match walked {
            Ok(()) => return Ok(leaves),
            Err(WalkError::TooManyLeaves) => format!("maps more than {most} pages"),
            Err(WalkError::TooManyTables) => "leads to too many tables".to_owned(),
            Err(WalkError::Memory(Interrupted)) => return Err(Stop::Restart),
        };
        Err(Failure::new(
            Errno::NOSPC,
            format!(
                "the page table {too_much}, while IOASID {ioasid} may hold {most} mappings: use \
                 larger pages, or map less"
            ),
        )
        .into())
    }

    /// A root that is nowhere is a mistake; anything else in a table could be meant.
    fn check_root(&mut self, ioasid: Ioasid, root: &Root) -> Result<(), Stop> {
        let parent = self.context.state().engine.parent(ioasid)?;
        let Some(parent) = parent else { return Ok(()) };
        let mut memory = ParentMemory::new(self.context, parent, self.interrupt);
        let mut entry = [0; 8];
        let found = self.memory.reading(|| memory.read(root.address(), &mut entry))?;
        match found {
            Ok(true) => Ok(()),
            Err(Interrupted) => Err(Stop::Restart),
            Ok(false) => Err(Failure::new(
                Errno::FAULT,
                format!(
                    "the root of the table is to be at {:#x}, where the parent, IOASID {parent}, \
                     maps nothing that can be read",
                    root.address()
                ),
            )
            .into()),
        }
    }
}

/// Whose private memory a plan is about, in tables that pin what they hold.
#[derive(Debug, Default)]
struct Pinned {
    /// Entered.
    wanted: Vec<Arc<Process>>,
    /// Taken out, and entered again if what follows is refused.
    held: Vec<Arc<Process>>,
}

impl Pinned {
    fn by(state: &State, plan: &Plan) -> Self {
        let pins = |group| state.table(group).is_some_and(|table| table.lock().pins());
        let groups: BTreeSet<_> = plan.changes().iter().map(|change| change.group()).collect();
        let groups: BTreeSet<_> = groups.into_iter().filter(|&group| pins(group)).collect();
        let (mut wanted, mut held) = (BTreeSet::new(), BTreeSet::new());
        let mut may_fail = false;
        // From the end: what comes after a change decides whether it may have to be undone.
        for change in plan.changes().iter().rev() {
            let group = change.group();
            let is_addition = matches!(change, Change::Map { .. } | Change::Fill { .. });
            may_fail |= is_addition;
            if !groups.contains(&group) || !(is_addition || may_fail) {
                continue;
            }
            let (shown, range, memories) = match *change {
                Change::Map { entry, .. } => {
                    wanted.insert(entry.memory);
                    continue;
                }
                Change::Fill { ioasid, .. } => (Some(ioasid), Some(Range::ALL), &mut wanted),
                Change::Clear { .. } => (state.engine.shown(group), Some(Range::ALL), &mut held),
                Change::Unmap { iova, size, .. } => {
                    (state.engine.shown(group), Range::from_size(iova, size), &mut held)
                }
            };
            if let (Some(shown), Some(range)) = (shown, range) {
                let entries = state.engine.entries(shown, range);
                memories.extend(entries.iter().map(|entry| entry.memory));
            }
        }
        let programs = |memories: BTreeSet<MemoryId>| {
            let known = memories.into_iter().filter_map(|memory| state.memory(memory));
            known.flat_map(|(memory, _)| memory.programs().cloned().collect::<Vec<_>>()).collect()
        };
        Self { wanted: programs(wanted), held: programs(held) }
    }
}

fn root(table: &uapi::BindPgtable) -> Result<Root, Failure> {
    let format = Format::from_number(table.format).ok_or_else(|| {
        Failure::unsupported(format!(
            "{} is the number of no page-table format: see IOASID_FORMAT_* in ioasid.h",
            table.format
        ))
    })?;
    Root::new(format, table.addr, table.addr_width)
        .map_err(|error| Failure::invalid(error.to_string()))
}

/// The formats that can be bound, a bit for each number.
pub(super) fn formats() -> u64 {
    Format::ALL.iter().fold(0, |bits, format| bits | 1 << format.number())
}

/// What a program has put where a parent address space maps it.
pub(super) struct ParentMemory<'a> {
    context: &'a Context,
    parent: Ioasid,
    interrupt: &'a Interrupt,
    /// What was found last: most tables lie close together.
    last: Option<Found>,
}

struct Found {
    addresses: Range,
    memory: Arc<Backing>,
    /// Where in it the addresses begin.
    offset: u64,
}

impl<'a> ParentMemory<'a> {
    /// What is where an address space maps it.
    pub(super) fn new(context: &'a Context, parent: Ioasid, interrupt: &'a Interrupt) -> Self {
        Self { context, parent, interrupt, last: None }
    }

    fn find(&mut self, address: u64) -> Option<&Found> {
        let known = self
            .last
            .take()
            .filter(|found| (found.addresses.start()..=found.addresses.last()).contains(&address));
        let found = match known {
            Some(found) => found,
            None => {
                let state = self.context.state();
                let place = state.engine.translate(self.parent, address)?;
                if !place.prot.read {
                    return None;
                }
                let (memory, base) = state.memory(place.memory)?;
                let addresses = Range::new(address, place.last)?;
                Found { addresses, memory, offset: base + place.offset }
            }
        };
        Some(self.last.insert(found))
    }
}

/// A signal waits for the caller. It has been let go or is about to be, so that there is no point in
/// reading on: a table can be made to last.
pub(super) struct Interrupted;

impl TableMemory for ParentMemory<'_> {
    type Error = Interrupted;

    fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<bool, Self::Error> {
        if self.interrupt.is_set() {
            return Err(Interrupted);
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = match address.checked_add(done as u64) {
                Some(at) => at,
                None => return Ok(false),
            };
            let Some(found) = self.find(at) else { return Ok(false) };
            let there = found.addresses.last() - at;
            let most =
                (buffer.len() - done).min(usize::try_from(there).unwrap_or(usize::MAX - 1) + 1);
            let from = found.offset + (at - found.addresses.start());
            if read(&found.memory, from, &mut buffer[done..done + most]).is_break() {
                return Ok(false);
            }
            done += most;
        }
        Ok(true)
    }
}

/// Copies from memory, if it can be read.
fn read(memory: &Backing, from: u64, buffer: &mut [u8]) -> ControlFlow<()> {
    const STRETCH: u64 = 64 << 10;
    let range = from..from + buffer.len() as u64;
    let copied = memory.visit(range, STRETCH, |position, reach| {
        let begin = position as usize;
        let part = &mut buffer[begin..begin + reach.len() as usize];
        match reach {
            Reach::Here(view) => view.read(part),
            Reach::There(there) => there.read(part),
            Reach::Registers(_) => Err(Errno::FAULT),
        }
    });
    match copied {
        Ok(()) => ControlFlow::Continue(()),
        Err::<_, Errno>(_) => ControlFlow::Break(()),
    }
}

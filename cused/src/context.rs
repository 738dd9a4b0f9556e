//! One open of the node: the engine's state together with the hardware tables and the memory that
//! it speaks of.
//!
//! Two opens share nothing but the pool of simulated devices, so that they have no lock in
//! common either: a slow command of one delays no other. Within one, the lock on the state is held
//! only to look at it and to change it. A command that works on tables, which may take long, first
//! takes a [`Turn`] on what it works on, and so delays only commands on the same.

use std::collections::{BTreeMap, VecDeque, hash_map};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuse_channel::Notifier;
use ioasid::{
    Contents, DeviceId, Entry, ExecuteError, GroupId, Ioasid, Limits, MemoryId, Outcome, Owner,
    Plan, Range,
};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use rustix::io::Errno;

use crate::backend::{Effort, Progress, Table, vfio};
use crate::failure::Failure;
use crate::faults::Faults;
use crate::memory::files::Files;
use crate::memory::resolve::FileId;
use crate::memory::{Backing, BoundDevice};
use crate::pasids::Pasids;
use crate::process::Process;
use crate::users::{Opener, Registered};

/// How many threads' last failures an open remembers.
const FAILURES_KEPT: usize = 64;

/// The state behind one open of the node.
#[derive(Debug)]
pub struct Context {
    /// Who has opened the node.
    pub opener: Arc<Opener>,
    state: Mutex<State>,
    /// A turn has ended.
    freed: Condvar,
    /// What failed last, for IOASID_GET_ERROR.
    pub failures: Mutex<Failures>,
    /// What its devices could not reach.
    pub faults: Faults,
    /// The files that are mapped here.
    pub files: Files,
}

/// What a command has for itself while it works: no other command that claims it runs at the same
/// time. Everything else goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// What an I/O address space maps, and which tables show it; with all that are nested on the
    /// same: it is named by the one that is nested on none.
    Space(Ioasid),
    /// The devices of a group and what they are attached to.
    Group(GroupId),
    /// Which devices there are, which groups share a table, and whether the open is a container.
    Devices,
    /// Which memory is registered.
    Registrations,
}

/// How long a command waits for its turn before it looks whether it still should.
const LOOK: Duration = Duration::from_millis(20);
/// How long a program that has closed the node may keep a call of its own from ending, before it
/// is killed: its thread is led through a call that pins memory which never comes. (VFIO itself
/// does not wait for userfaultfd; io_uring does on 6.12.)
const CLOSED_GRACE: Duration = Duration::from_secs(10);

impl Context {
    /// A fresh open. Who sleeps in poll is woken through `notifier`.
    pub fn new(opener: Arc<Opener>, limits: Limits, notifier: Notifier) -> Self {
        Self {
            opener,
            state: Mutex::new(State::new(limits)),
            freed: Condvar::new(),
            failures: Mutex::default(),
            faults: Faults::new(notifier),
            files: Files::default(),
        }
    }

    /// The state, to be looked at or changed in no time: nothing may be waited for.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until nobody else has any of `claims`, and claims them.
    ///
    /// # Errors
    /// What `give_up` says, asked while waiting.
    pub fn turn<E>(
        &self,
        claims: &[Claim],
        give_up: impl Fn() -> Result<(), E>,
    ) -> Result<Turn<'_>, E> {
        let mut state = self.state.lock();
        while state.turns.iter().any(|turn| turn.conflicts(claims)) {
            give_up()?;
            self.freed.wait_for(&mut state, LOOK);
        }
        state.last_turn += 1;
        let number = state.last_turn;
        let progress = Arc::new(Progress::default());
        let (claims, progress_told) = (claims.to_vec(), Arc::clone(&progress));
        state.turns.push(Holder { number, claims, progress: progress_told, led: None });
        Ok(Turn { context: self, number, progress })
    }

    /// The open has ended. Everything is given back: now, or when the last command ends that still
    /// runs. That can only be one whose caller is being led, and has its answer already.
    pub fn release(self: &Arc<Self>) {
        let mut state = self.state.lock();
        // Most often the caller has just been let go, and only the turn is not yet given back.
        let give_up = Instant::now() + LOOK;
        while !state.turns.is_empty() && !self.freed.wait_until(&mut state, give_up).timed_out() {}
        if state.turns.is_empty() {
            let garbage = state.release();
            drop(state);
            drop(garbage);
            return;
        }
        state.is_released = true;
        drop(state);
        let context = Arc::downgrade(self);
        let end = move || {
            std::thread::sleep(CLOSED_GRACE);
            if let Some(context) = context.upgrade() {
                context.state.lock().turns.iter().for_each(Holder::kill);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("closed".into()).spawn(end) {
            log::error!("no thread to end the calls of a closed file: {error}");
        }
    }
}

/// Who has a turn.
#[derive(Debug)]
struct Holder {
    number: u64,
    claims: Vec<Claim>,
    progress: Arc<Progress>,
    /// The process that is being led.
    led: Option<Arc<Process>>,
}

impl Holder {
    fn conflicts(&self, claims: &[Claim]) -> bool {
        self.claims.iter().any(|claim| claims.contains(claim))
    }

    fn kill(&self) {
        if let Some(process) = &self.led {
            log::warn!("process {} closed the node and did not end its call: killed", process.id());
            process.kill();
        }
    }
}

/// The right to work on what was claimed; given back when dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    context: &'a Context,
    number: u64,
    progress: Arc<Progress>,
}

impl Turn<'_> {
    /// Where the progress of the command is told.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The work is done: from now on none is told of.
    pub fn finished(&self) {
        self.progress.begin(0);
    }

    /// Notes whose thread is being led.
    pub fn leads(&self, process: &Arc<Process>) {
        let mut state = self.context.state.lock();
        if let Some(holder) = state.turns.iter_mut().find(|holder| holder.number == self.number) {
            holder.led = Some(Arc::clone(process));
        }
    }

    /// Carries out a plan, and lets go of the memory and the tables that it leaves unused. Returns
    /// how many bytes it unmapped.
    ///
    /// # Errors
    /// What the hardware said; everything is then as it was.
    pub fn execute(&self, plan: Plan, effort: Effort<'_, '_>) -> Result<u64, Failure> {
        let shared = Shared(self.context);
        self.progress.begin(plan.work(&shared));
        let mut hardware = Hardware { context: self.context, effort };
        let carried = plan.carry_out(&shared, &mut hardware);
        let mut state = self.context.state.lock();
        match carried {
            Ok(carried) => {
                let outcome = state.engine.commit(plan, carried).map_err(Failure::from)?;
                let unmapped = outcome.unmapped_bytes;
                let garbage = state.settle(outcome);
                drop(state);
                drop(garbage);
                Ok(unmapped)
            }
            Err(undone) => Err(refusal(state.engine.abandon(undone))),
        }
    }

    /// Carries out a plan that pins nothing anew, unless it has to be undone.
    ///
    /// # Errors
    /// As for [`execute`](Self::execute).
    pub fn execute_simply(&self, plan: Plan) -> Result<u64, Failure> {
        let effort = Effort { led: None, progress: &self.progress, stop: &|| Ok(()) };
        self.execute(plan, effort)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.context.state.lock();
        state.turns.retain(|holder| holder.number != self.number);
        let last = state.is_released && state.turns.is_empty();
        let garbage = last.then(|| state.release());
        drop(state);
        self.context.freed.notify_all();
        drop(garbage);
    }
}

/// The context as a plan sees it while it is carried out: locked for each look only.
struct Shared<'a>(&'a Context);

impl Contents for Shared<'_> {
    fn entries(&self, ioasid: Ioasid, range: Range) -> Vec<Entry> {
        self.0.state.lock().engine.entries(ioasid, range)
    }

    fn shown(&self, group: GroupId) -> Option<Ioasid> {
        self.0.state.lock().engine.shown(group)
    }
}

/// A table, which one command at a time changes.
pub type SharedTable = Arc<Mutex<Table>>;

/// The engine and what it commands.
#[derive(Debug)]
pub struct State {
    /// What exists and what is mapped.
    pub engine: ioasid::Context,
    /// What stands for PASIDs.
    pub pasids: Pasids,
    tables: BTreeMap<GroupId, SharedTable>,
    /// The groups that have bound devices, as the host numbers them.
    members: BTreeMap<HomeId, Member>,
    /// What the open is as a VFIO container: see [`State::container`].
    container: Option<Container>,
    memories: FxHashMap<MemoryId, Memory>,
    last_memory: u64,
    /// What the opener is charged for memory that is registered.
    registered: FxHashMap<MemoryId, Registered>,
    owners: FxHashMap<Owner, OwnerInfo>,
    owner_numbers: FxHashMap<OwnerKey, Owner>,
    last_owner: u32,
    /// Owners that have no memory here any more.
    idle_owners: usize,
    turns: Vec<Holder>,
    last_turn: u64,
    is_released: bool,
}

/// A group as the host knows it: real ones by their IOMMU group number. (The engine knows those that
/// share a table as one group.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HomeId {
    /// A VFIO group.
    Vfio(u32),
    /// A simulated one.
    Simulated(u32),
}

impl HomeId {
    /// Its number on the host.
    pub fn number(self) -> u32 {
        match self {
            Self::Vfio(number) | Self::Simulated(number) => number,
        }
    }
}

/// A group that has bound devices.
#[derive(Clone, Debug)]
pub struct Member {
    /// Whose table it uses: that of this engine group.
    pub table: GroupId,
    /// Its bound devices.
    pub devices: Vec<DeviceId>,
    /// Its descriptor, if it is real: who asks for it need not wait for the table.
    group: Option<Arc<vfio::Group>>,
}

/// An open whose I/O address space is driven by the ioctls of a VFIO container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container {
    /// The I/O address space.
    pub ioasid: Ioasid,
    /// It unmaps as VFIO_TYPE1_IOMMU does, and not as VFIO_TYPE1v2_IOMMU.
    pub is_v1: bool,
}

/// The memory of one mapping, or registered memory.
#[derive(Clone, Debug)]
struct Memory {
    backing: Arc<Backing>,
    /// Where in the backing it begins.
    base: u64,
    owner: Owner,
}

/// Whose memory: of which process, and of which file if it named one.
type OwnerKey = (u64, Option<FileId>);

#[derive(Debug)]
struct OwnerInfo {
    /// Who is charged.
    process: Arc<Process>,
    /// How many memories there are of it.
    memories: u64,
}

/// What nobody needs any more, to be dropped without the lock. The order of fields is the order in
/// which it goes: tables that could not be cleared go before the memory that they may lead to;
/// memory goes before the tables whose devices its registers may belong to.
#[derive(Debug, Default)]
pub struct Garbage {
    _uncleared: Vec<SharedTable>,
    _memories: Vec<Memory>,
    _tables: Vec<SharedTable>,
}

/// Simulated groups are numbered apart from the machine's IOMMU groups.
const SIMULATED_GROUPS: u64 = 1 << 32;
/// Above the numbers of groups: for a second table of the same number.
const AGAIN_SHIFT: u32 = 33;

/// How many owners may be remembered that have no memory here any more.
const IDLE_OWNERS: usize = 64;

/// Of owners that the engine has never seen: nothing is registered for it, and nothing mapped.
const NOBODY: Owner = Owner(0);

impl State {
    fn new(limits: Limits) -> Self {
        Self {
            engine: ioasid::Context::new(limits),
            pasids: Pasids::default(),
            tables: BTreeMap::new(),
            members: BTreeMap::new(),
            container: None,
            memories: FxHashMap::default(),
            last_memory: 0,
            registered: FxHashMap::default(),
            owners: FxHashMap::default(),
            owner_numbers: FxHashMap::default(),
            last_owner: 0,
            idle_owners: 0,
            turns: Vec::new(),
            last_turn: 0,
            is_released: false,
        }
    }

    /// The table of a group that has a bound device.
    pub fn table(&self, group: GroupId) -> Option<&SharedTable> {
        self.tables.get(&group)
    }

    /// The tables that show an I/O address space, or one that is nested on it.
    pub fn tables_of(&self, ioasid: Ioasid) -> Vec<SharedTable> {
        self.engine.groups(ioasid).filter_map(|group| self.tables.get(&group).cloned()).collect()
    }

    /// What the open is as a VFIO container, if it is one, and the program has not freed its IOASID.
    pub fn container(&self) -> Option<Container> {
        self.container.filter(|container| self.engine.mappings(container.ioasid).is_ok())
    }

    /// The open is a container from now on, or is none any more.
    pub fn set_container(&mut self, container: Option<Container>) {
        self.container = container;
    }

    /// A group that has bound devices.
    pub fn member(&self, home: HomeId) -> Option<&Member> {
        self.members.get(&home)
    }

    /// The group of a bound device, as the host numbers it.
    pub fn home_of(&self, device: DeviceId) -> Option<HomeId> {
        let mut members = self.members.iter();
        members.find(|(_, member)| member.devices.contains(&device)).map(|(&home, _)| home)
    }

    /// What the engine is to call the table of a group that shares none: its number on the host if
    /// that is free (it may have left a table that has this name).
    pub fn free_group(&self, home: HomeId) -> GroupId {
        let kind = match home {
            HomeId::Vfio(_) => 0,
            HomeId::Simulated(_) => SIMULATED_GROUPS,
        };
        let first = kind | u64::from(home.number());
        let mut names = (0..).map(|again| GroupId(first | again << AGAIN_SHIFT));
        names.find(|name| !self.tables.contains_key(name)).unwrap_or(GroupId(first))
    }

    /// Adds the table of a group whose first device is being bound.
    pub fn insert_table(&mut self, group: GroupId, table: Table) {
        self.tables.insert(group, Arc::new(Mutex::new(table)));
    }

    /// Takes out the table of a group that has no bound device.
    pub fn remove_table(&mut self, group: GroupId) -> Option<SharedTable> {
        self.members.retain(|_, member| member.table != group);
        self.tables.remove(&group)
    }

    /// Notes a device of a group, whose table is there.
    pub fn insert_device(&mut self, home: HomeId, table: GroupId, device: DeviceId) {
        let group = match self.tables.get(&table).map(|table| table.lock()).as_deref() {
            Some(Table::Vfio(container)) => container.group(home.number()).map(Arc::clone),
            _ => None,
        };
        let member = Member { table, devices: vec![], group };
        self.members.entry(home).or_insert(member).devices.push(device);
    }

    /// Forgets a device that was unbound.
    pub fn forget_device(&mut self, device: DeviceId) {
        self.members.retain(|_, member| {
            member.devices.retain(|&other| other != device);
            !member.devices.is_empty()
        });
    }

    /// All devices of table `from` use table `into` from now on.
    pub fn merge_tables(&mut self, from: GroupId, into: GroupId) -> Option<SharedTable> {
        for member in self.members.values_mut().filter(|member| member.table == from) {
            member.table = into;
        }
        self.tables.remove(&from)
    }

    /// How far the command has got that works on an I/O address space: done and total bytes.
    pub fn progress(&self, ioasid: Ioasid) -> (u64, u64) {
        let claim = [Claim::Space(self.engine.family(ioasid))];
        let turn = self.turns.iter().find(|turn| turn.conflicts(&claim));
        turn.map_or((0, 0), |turn| turn.progress.get())
    }

    /// The number of an owner, if it has any memory here.
    pub fn owner(&self, process: &Process, file: Option<FileId>) -> Owner {
        self.owner_numbers.get(&(process.serial(), file)).copied().unwrap_or(NOBODY)
    }

    /// Takes memory in, to be named by a plan or registered. Memory that a failed plan named goes
    /// again with [`forget_memory`](Self::forget_memory).
    pub fn remember_memory(
        &mut self,
        backing: Arc<Backing>,
        base: u64,
        process: &Arc<Process>,
        file: Option<FileId>,
    ) -> (MemoryId, Owner) {
        let owner = self.use_owner(process, file, 1);
        (self.add_memory(Memory { backing, base, owner }), owner)
    }

    /// The same for several memories of one process, in less time than one after another: what
    /// stands behind each, and where in it it begins.
    pub fn remember_memories(
        &mut self,
        memories: impl ExactSizeIterator<Item = (Arc<Backing>, u64)>,
        process: &Arc<Process>,
    ) -> (Vec<MemoryId>, Owner) {
        let owner = self.use_owner(process, None, memories.len() as u64);
        self.memories.reserve(memories.len());
        let add = |(backing, base)| self.add_memory(Memory { backing, base, owner });
        (memories.map(add).collect(), owner)
    }

    /// The number of an owner, which has so many memories more from now on.
    fn use_owner(&mut self, process: &Arc<Process>, file: Option<FileId>, memories: u64) -> Owner {
        let key = (process.serial(), file);
        let owner = *self.owner_numbers.entry(key).or_insert_with(|| {
            self.last_owner += 1;
            Owner(self.last_owner)
        });
        match self.owners.entry(owner) {
            hash_map::Entry::Occupied(mut known) => {
                let info = known.get_mut();
                self.idle_owners -= usize::from(info.memories == 0);
                info.memories += memories;
            }
            hash_map::Entry::Vacant(new) => {
                new.insert(OwnerInfo { process: Arc::clone(process), memories });
            }
        }
        owner
    }

    fn add_memory(&mut self, memory: Memory) -> MemoryId {
        self.last_memory += 1;
        let id = MemoryId(self.last_memory);
        self.memories.insert(id, memory);
        id
    }

    /// Keeps what the opener is charged for memory that was remembered, until it is forgotten.
    pub fn charge_registered(&mut self, id: MemoryId, charge: Registered) {
        self.registered.insert(id, charge);
    }

    /// Memory that was remembered, and where in it it begins.
    pub fn memory(&self, id: MemoryId) -> Option<(Arc<Backing>, u64)> {
        self.memories.get(&id).map(|memory| (Arc::clone(&memory.backing), memory.base))
    }

    /// How many memories are remembered.
    #[cfg(test)]
    pub fn memories(&self) -> usize {
        self.memories.len()
    }

    /// Lets memory go that no mapping refers to. To be dropped without the lock.
    #[must_use]
    pub fn forget_memory(&mut self, id: MemoryId) -> Garbage {
        Garbage { _memories: self.take_memory(id).into_iter().collect(), ..Garbage::default() }
    }

    fn take_memory(&mut self, id: MemoryId) -> Option<Memory> {
        let memory = self.memories.remove(&id)?;
        self.registered.remove(&id);
        if let Some(info) = self.owners.get_mut(&memory.owner) {
            info.memories -= 1;
            self.idle_owners += usize::from(info.memories == 0);
        }
        // Whoever maps and unmaps the same all the time keeps its number.
        if self.idle_owners > IDLE_OWNERS {
            self.idle_owners = 0;
            self.owners.retain(|_, info| info.memories > 0);
            let owners = &self.owners;
            self.owner_numbers.retain(|_, owner| owners.contains_key(owner));
        }
        Some(memory)
    }

    /// Follows the engine: takes back charges, and takes out what is not needed any more.
    #[must_use]
    fn settle(&mut self, outcome: Outcome<Failure>) -> Garbage {
        let Outcome { released, retired, failures, uncharged, .. } = outcome;
        for (owner, bytes) in uncharged {
            if let Some(info) = self.owners.get(&owner) {
                info.process.uncharge(bytes);
            }
        }
        let mut garbage = Garbage::default();
        for (group, failure) in failures {
            log::error!("the table of group {group} could not be cleared at release: {failure}");
            garbage._uncleared.extend(self.remove_table(group));
        }
        garbage._memories =
            released.into_iter().filter_map(|memory| self.take_memory(memory)).collect();
        garbage._tables =
            retired.into_iter().filter_map(|group| self.remove_table(group)).collect();
        garbage
    }

    /// Gives everything back: the open has ended, and no command works on it.
    #[must_use]
    fn release(&mut self) -> Garbage {
        let registered: Vec<_> = self.engine.registrations().collect();
        for (owner, range, ..) in registered {
            if let Some(info) = self.owners.get(&owner) {
                info.process.uncharge(range.bytes() as u64);
            }
        }
        let plan = self.engine.plan_release();
        let outcome = self.engine.execute(plan, &mut Clear(&self.tables));
        let mut garbage = match outcome {
            Ok(outcome) => self.settle(outcome),
            Err(error) => {
                log::error!("an open of the node could not be released in order: {error}");
                Garbage::default()
            }
        };
        self.registered.clear();
        garbage._memories.extend(self.memories.drain().map(|(_, memory)| memory));
        garbage._tables.extend(std::mem::take(&mut self.tables).into_values());
        self.members.clear();
        garbage
    }

    /// The devices of VFIO groups that are bound here.
    pub fn vfio_devices(&self) -> Vec<BoundDevice> {
        let devices = |member: &Member| {
            let (group, devices) = (member.group.clone(), member.devices.clone());
            let pair = move |device| Some((group.clone()?, device));
            devices.into_iter().filter_map(pair)
        };
        let named = |(group, device)| {
            let name = self.engine.device_info(device).ok()?.name.to_owned();
            Some(BoundDevice { group, name })
        };
        self.members.values().flat_map(devices).filter_map(named).collect()
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
struct Hardware<'a, 'b, 'l> {
    context: &'a Context,
    effort: Effort<'b, 'l>,
}

impl Hardware<'_, '_, '_> {
    fn table(&self, group: GroupId) -> Result<SharedTable, Failure> {
        let table = self.context.state.lock().tables.get(&group).cloned();
        table.ok_or_else(|| lost("table", group.0))
    }
}

fn lost(what: &str, number: u64) -> Failure {
    Failure::new(
        Errno::IO,
        format!("the daemon has lost {what} {number}: this is a fault of the daemon"),
    )
}

impl ioasid::Hardware for Hardware<'_, '_, '_> {
    type Error = Failure;

    fn map(&mut self, group: GroupId, entry: Entry) -> Result<(), Failure> {
        let memory = self.context.state.lock().memory(entry.memory);
        let (backing, base) = memory.ok_or_else(|| lost("memory", entry.memory.0))?;
        self.table(group)?.lock().map(&entry, (&backing, base), &mut self.effort)
    }

    fn map_all(&mut self, group: GroupId, entries: &[Entry]) -> Result<(), (usize, Failure)> {
        let table = self.table(group).map_err(|lost| (0, lost))?;
        let state = self.context.state.lock();
        let memories: Vec<_> = entries.iter().map(|entry| state.memory(entry.memory)).collect();
        drop(state);
        let mut table = table.lock();
        for (done, (entry, memory)) in entries.iter().zip(memories).enumerate() {
            let mapped = match memory {
                Some((backing, base)) => table.map(entry, (&backing, base), &mut self.effort),
                None => Err(lost("memory", entry.memory.0)),
            };
            mapped.map_err(|failure| (done, failure))?;
        }
        Ok(())
    }

    fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Failure> {
        self.table(group)?.lock().unmap(iova, size)
    }

    fn clear(&mut self, group: GroupId) -> Result<(), Failure> {
        self.table(group)?.lock().clear()
    }
}

/// Clears tables, which is all that a release asks for.
struct Clear<'a>(&'a BTreeMap<GroupId, SharedTable>);

impl ioasid::Hardware for Clear<'_> {
    type Error = Failure;

    fn map(&mut self, _: GroupId, entry: Entry) -> Result<(), Failure> {
        Err(lost("memory", entry.memory.0))
    }

    fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Failure> {
        self.0.get(&group).map_or(Ok(()), |table| table.lock().unmap(iova, size))
    }

    fn clear(&mut self, group: GroupId) -> Result<(), Failure> {
        self.0.get(&group).map_or(Ok(()), |table| table.lock().clear())
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

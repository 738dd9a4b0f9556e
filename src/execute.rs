//! Carrying out a plan: hardware first, change by change, then the state.

use crate::plan::{Basis, Commit};
use crate::space::{Removed, Shape};
use crate::{
    Carried, Change, Contents, Context, DeviceId, Entry, Error, ExecuteError, GroupId, Hardware,
    Ioasid, Outcome, Owner, Plan, Range, Undone,
};

impl Contents for Context {
    fn entries(&self, ioasid: Ioasid, range: Range) -> Vec<Entry> {
        self.contents(ioasid, range).collect()
    }

    fn shown(&self, group: GroupId) -> Option<Ioasid> {
        self.tables.get(&group)?.shows()
    }
}

/// The step that touches hardware. It needs no more of the context than [`Contents`].
impl Plan {
    /// How many bytes [`carry_out`](Self::carry_out) will give to [`Hardware::map`], if nothing is
    /// refused; `u64::MAX` stands for more than that.
    pub fn work(&self, contents: &impl Contents) -> u64 {
        let work = |change: &Change| match *change {
            Change::Map { entry, .. } => u128::from(entry.size),
            Change::Fill { ioasid, .. } => {
                let entries = contents.entries(ioasid, Range::ALL);
                entries.iter().map(|entry| u128::from(entry.size)).sum()
            }
            Change::Unmap { .. } | Change::Clear { .. } => 0,
        };
        saturated(self.changes.iter().map(work).sum())
    }

    /// Has `hardware` make the changes, in order. If one is refused, those before it are undone in
    /// reverse order.
    ///
    /// From [`check`](Context::check) to [`commit`](Context::commit) the caller gives no other
    /// command that would make the plan stale, and carries out no other plan that this one would
    /// make stale. That goes for bind and unbind too, in a group that is attached to the IOASID
    /// ([`Contents::shown`]). A [`hold`](Context::hold) keeps registered memory registered. Other
    /// commands can be given all the while.
    ///
    /// # Errors
    /// [`Undone`]; give it to [`abandon`](Context::abandon). A plan from
    /// [`plan_release`](Context::plan_release) gives none.
    pub fn carry_out<H: Hardware>(
        &self,
        contents: &impl Contents,
        hardware: &mut H,
    ) -> Result<Carried<H::Error>, Undone<H::Error>> {
        if self.commit == Commit::Release {
            return Ok(Carried { failures: make_all(&self.changes, contents, hardware) });
        }
        let mut place = 0;
        while let Some(&change) = self.changes.get(place) {
            let (made, result) = match additions(&self.changes[place..]) {
                Some((group, entries)) => match hardware.map_all(group, &entries) {
                    Ok(()) => (entries.len(), Ok(())),
                    Err((done, error)) => (done, Err(error)),
                },
                None => match make(change, contents, hardware) {
                    Ok(()) => (1, Ok(())),
                    // A table may have been filled in part.
                    Err(error) => (usize::from(matches!(change, Change::Fill { .. })), Err(error)),
                },
            };
            if let Err(error) = result {
                let change = match change {
                    Change::Map { .. } => self.changes[place + made],
                    other => other,
                };
                let broken = undo_all(&self.changes[..place + made], contents, hardware);
                return Err(Undone { change, error, broken });
            }
            place += made;
        }
        Ok(Carried { failures: vec![] })
    }
}

/// The entries that `changes` begin with, if they begin with several for one table.
fn additions(changes: &[Change]) -> Option<(GroupId, Vec<Entry>)> {
    let [Change::Map { group, .. }, Change::Map { group: same, .. }, ..] = changes else {
        return None;
    };
    if same != group {
        return None;
    }
    let entries = changes.iter().map_while(|change| match change {
        Change::Map { group: same, entry } if same == group => Some(*entry),
        _ => None,
    });
    Some((*group, entries.collect()))
}

/// Makes every change that is not refused, and says which were.
fn make_all<H: Hardware>(
    changes: &[Change],
    contents: &impl Contents,
    hardware: &mut H,
) -> Vec<(GroupId, H::Error)> {
    let results = changes.iter().map(|&change| (change, make(change, contents, hardware)));
    results.filter_map(|(change, result)| Some((change.group(), result.err()?))).collect()
}

fn make<H: Hardware>(
    change: Change,
    contents: &impl Contents,
    hardware: &mut H,
) -> Result<(), H::Error> {
    match change {
        Change::Map { group, entry } => hardware.map(group, entry),
        Change::Unmap { group, iova, size } => hardware.unmap(group, iova, size),
        Change::Fill { group, ioasid } => fill(group, ioasid, Range::ALL, contents, hardware),
        Change::Clear { group } => hardware.clear(group),
    }
}

/// Undoes changes, the last first, and says which tables could not be restored. The state still
/// says what they held before. A table that refuses once is left alone from there on: what else is
/// undone in it would meet what is still there.
fn undo_all<H: Hardware>(
    changes: &[Change],
    contents: &impl Contents,
    hardware: &mut H,
) -> Vec<(GroupId, H::Error)> {
    let mut broken: Vec<(GroupId, H::Error)> = vec![];
    for &change in changes.iter().rev() {
        if broken.iter().any(|(group, _)| *group == change.group()) {
            continue;
        }
        if let Err(error) = undo(change, contents, hardware) {
            broken.push((change.group(), error));
        }
    }
    broken
}

fn undo<H: Hardware>(
    change: Change,
    contents: &impl Contents,
    hardware: &mut H,
) -> Result<(), H::Error> {
    match change {
        Change::Map { group, entry } => hardware.unmap(group, entry.iova, entry.size),
        Change::Fill { group, .. } => hardware.clear(group),
        Change::Unmap { group, iova, size } => match Range::from_size(iova, size) {
            Some(range) => refill(group, range, contents, hardware),
            None => Ok(()),
        },
        Change::Clear { group } => refill(group, Range::ALL, contents, hardware),
    }
}

/// Adds again what the table of `group` held in `range`.
fn refill<H: Hardware>(
    group: GroupId,
    range: Range,
    contents: &impl Contents,
    hardware: &mut H,
) -> Result<(), H::Error> {
    match contents.shown(group) {
        Some(ioasid) => fill(group, ioasid, range, contents, hardware),
        None => Ok(()),
    }
}

fn fill<H: Hardware>(
    group: GroupId,
    ioasid: Ioasid,
    range: Range,
    contents: &impl Contents,
    hardware: &mut H,
) -> Result<(), H::Error> {
    hardware.map_all(group, &contents.entries(ioasid, range)).map_err(|(_, error)| error)
}

/// The steps around it.
impl Context {
    /// Has `hardware` make the changes of a plan, in order, and then changes the state: all of
    /// [`check`](Self::check), [`carry_out`](Plan::carry_out), and [`commit`](Self::commit) or
    /// [`abandon`](Self::abandon).
    ///
    /// If a change is refused, those before it are undone in reverse order and the state stays as
    /// it is. A table for which undoing fails too is broken: the IOASIDs that devices of the group
    /// are attached to take no command until all of these are detached from the IOASID that the table
    /// shows, which clears it.
    ///
    /// # Errors
    /// See [`ExecuteError`]. A plan from [`plan_release`](Self::plan_release) gives none.
    pub fn execute<H: Hardware>(
        &mut self,
        plan: Plan,
        hardware: &mut H,
    ) -> Result<Outcome<H::Error>, ExecuteError<H::Error>> {
        self.check(&plan)?;
        match plan.carry_out(self, hardware) {
            Ok(carried) => Ok(self.commit(plan, carried)?),
            Err(undone) => Err(self.abandon(undone)),
        }
    }

    /// Whether what a plan was made for is as it was then.
    ///
    /// # Errors
    /// [`Error::StalePlan`].
    pub fn check(&self, plan: &Plan) -> Result<(), Error> {
        let Basis { space, group, sources } = &plan.basis;
        let space_holds = space.is_none_or(|(ioasid, generation)| {
            self.spaces.get(&ioasid).is_some_and(|space| space.generation == generation)
        });
        let group_holds = group.is_none_or(|(group, generation)| {
            self.tables.get(&group).is_some_and(|table| table.generation == generation)
        });
        let sources_hold = sources.iter().all(|(source, _)| self.registrations.has(source));
        if space_holds && group_holds && sources_hold { Ok(()) } else { Err(Error::StalePlan) }
    }

    /// Changes the state as planned, after hardware has followed.
    ///
    /// # Errors
    /// [`Error::StalePlan`]. Hardware has been changed and the state has not: a caller that does
    /// as [`Plan::carry_out`] says sees this only after a release.
    pub fn commit<E>(&mut self, plan: Plan, carried: Carried<E>) -> Result<Outcome<E>, Error> {
        self.check(&plan)?;
        let mut outcome = Outcome { failures: carried.failures, ..Outcome::default() };
        for &(group, held) in &plan.held {
            if let Some(table) = self.tables.get_mut(&group) {
                table.held = held;
            }
        }
        self.follow(plan, &mut outcome);
        Ok(outcome)
    }

    /// Says what became of a plan that hardware refused, and marks the tables that could not be
    /// restored.
    pub fn abandon<E>(&mut self, undone: Undone<E>) -> ExecuteError<E> {
        let Undone { change, error, broken } = undone;
        if broken.is_empty() {
            return ExecuteError::Refused { change, error };
        }
        for (group, _) in &broken {
            if let Some(table) = self.tables.get_mut(group) {
                table.broken = true;
                self.touch_table(*group);
            }
        }
        ExecuteError::Broken { change, error, broken }
    }
}

/// Changes of the state, when all tables have followed.
impl Context {
    fn follow<E>(&mut self, plan: Plan, outcome: &mut Outcome<E>) {
        match plan.commit {
            Commit::Nothing => {}
            Commit::Map { ioasid, added } => {
                if let Some(space) = self.spaces.get_mut(&ioasid) {
                    added.into_iter().for_each(|(iova, mapping)| space.insert(iova, mapping));
                }
                self.registrations.use_sources(&plan.basis.sources);
                self.touch_space(ioasid);
            }
            Commit::Unmap { ioasid, range } => {
                if let Some(space) = self.spaces.get_mut(&ioasid) {
                    let removed = space.remove(range);
                    outcome.unmapped_bytes = saturated(removed.bytes);
                    self.give_back(removed, outcome);
                }
                self.touch_space(ioasid);
            }
            Commit::Attach { device, ioasid } => self.attach(device, ioasid),
            Commit::Detach { device, level, intact } => self.detach(device, level, intact),
            Commit::Reread { ioasid, bound, removed, added } => {
                if let Some(space) = self.spaces.get_mut(&ioasid) {
                    removed.into_iter().for_each(|range| drop(space.remove(range)));
                    added.into_iter().for_each(|(iova, mapping)| space.insert(iova, mapping));
                    space.bound = bound;
                }
                self.touch_space(ioasid);
            }
            Commit::Free { ioasid } => {
                self.touch_space(ioasid);
                if let Some(space) = self.spaces.remove(&ioasid) {
                    if let Some(parent) = space.parent.and_then(|i| self.spaces.get_mut(&i)) {
                        parent.children.remove(&ioasid);
                    }
                    self.give_back(space.into_removed(), outcome);
                }
            }
            Commit::Unbind { device } => outcome.retired = self.unbind(device),
            Commit::Withdraw { device } => {
                self.detach(device, 0, true);
                outcome.retired = self.unbind(device);
            }
            Commit::Release => self.release(outcome),
        }
    }

    /// Reports what was removed and ends its use of registered memory.
    fn give_back<E>(&mut self, removed: Removed, outcome: &mut Outcome<E>) {
        for (owner, vaddr) in removed.registered {
            self.registrations.unuse(owner, vaddr);
        }
        outcome.released = removed.memories;
        outcome.uncharged = by_owner(removed.uncharged);
    }

    fn release<E>(&mut self, outcome: &mut Outcome<E>) {
        let mut uncharged = vec![];
        for space in std::mem::take(&mut self.spaces).into_values() {
            let removed = space.into_removed();
            outcome.released.extend(removed.memories);
            uncharged.extend(removed.uncharged);
        }
        outcome.uncharged = by_owner(uncharged);
        outcome.released.extend(self.registrations.clear());
        outcome.retired = std::mem::take(&mut self.tables).into_keys().collect();
        self.devices.clear();
    }

    fn attach(&mut self, device: DeviceId, ioasid: Ioasid) {
        self.change_level(device, |level| level + 1);
        let Some((group, table)) = self.table_mut(device) else { return };
        if !table.path.contains(&ioasid) {
            table.path.push(ioasid);
            table.broken = false;
            if let Some(space) = self.spaces.get_mut(&ioasid) {
                space.tables.push(group);
            }
            self.reshape(ioasid);
        }
        self.touch_table(group);
    }

    fn detach(&mut self, device: DeviceId, level: usize, intact: bool) {
        let Some(&group) = self.devices.get(&device) else { return };
        // Before the table shows something else: what it shows changes too.
        self.touch_table(group);
        self.change_level(device, |_| level);
        let Some((_, table)) = self.table_mut(device) else { return };
        table.broken &= !intact;
        let level = table.devices.iter().map(|member| member.level).max().unwrap_or(0);
        for ioasid in table.path.split_off(level) {
            if let Some(space) = self.spaces.get_mut(&ioasid) {
                space.tables.retain(|&shows| shows != group);
            }
            self.reshape(ioasid);
        }
    }

    /// Removes a device, and the table of its group with the last; says which that was.
    fn unbind(&mut self, device: DeviceId) -> Vec<GroupId> {
        let Some((group, table)) = self.table_mut(device) else { return vec![] };
        table.devices.retain(|member| member.id != device);
        let empty = table.devices.is_empty();
        self.devices.remove(&device);
        if !empty {
            self.touch_table(group);
            return vec![];
        }
        self.tables.remove(&group);
        vec![group]
    }

    fn table_mut(&mut self, device: DeviceId) -> Option<(GroupId, &mut crate::table::Table)> {
        let group = *self.devices.get(&device)?;
        Some((group, self.tables.get_mut(&group)?))
    }

    fn change_level(&mut self, device: DeviceId, change: impl FnOnce(usize) -> usize) {
        let Some((_, table)) = self.table_mut(device) else { return };
        if let Some(member) = table.devices.iter_mut().find(|member| member.id == device) {
            member.level = change(member.level);
        }
    }

    /// Computes anew what the tables of an address space are able to hold alike. Without tables
    /// it keeps what the last one was able to.
    pub(crate) fn reshape(&mut self, ioasid: Ioasid) {
        let Some(space) = self.spaces.get(&ioasid) else { return };
        let shapes = self
            .tables_of(space)
            .map(|table| Shape { geometry: table.geometry.clone(), simulated: table.simulated });
        let shape = shapes.reduce(|a, b| Shape {
            geometry: a.geometry.intersection(&b.geometry),
            simulated: a.simulated && b.simulated,
        });
        if let (Some(shape), Some(space)) = (shape, self.spaces.get_mut(&ioasid)) {
            space.shape = Some(shape);
        }
    }
}

fn saturated(bytes: u128) -> u64 {
    bytes.try_into().unwrap_or(u64::MAX)
}

/// Each owner once, in ascending order.
fn by_owner(mut bytes: Vec<(Owner, u128)>) -> Vec<(Owner, u64)> {
    bytes.sort_unstable_by_key(|&(owner, _)| owner);
    bytes.dedup_by(|next, before| {
        let same = next.0 == before.0;
        if same {
            before.1 += next.1;
        }
        same
    });
    bytes.into_iter().map(|(owner, bytes)| (owner, saturated(bytes))).collect()
}

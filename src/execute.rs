//! Carrying out a plan: hardware first, change by change, then the state.

use crate::plan::Commit;
use crate::space::Shape;
use crate::{
    Change, Context, DeviceId, Entry, Error, ExecuteError, GroupId, Hardware, Ioasid, Outcome,
    Plan, Range,
};

impl Context {
    /// Has `hardware` make the changes of a plan, in order, and then changes the state.
    ///
    /// If a change is refused, those before it are undone in reverse order and the state stays as
    /// it is. A table for which undoing fails too is broken: the IOASID that it shows takes no
    /// command until all devices of the group are detached, which clears the table.
    ///
    /// # Errors
    /// See [`ExecuteError`]. A plan from [`plan_release`](Self::plan_release) gives none but
    /// [`Error::StalePlan`].
    pub fn execute<H: Hardware>(
        &mut self,
        plan: Plan,
        hardware: &mut H,
    ) -> Result<Outcome<H::Error>, ExecuteError<H::Error>> {
        if plan.generation != self.generation {
            return Err(Error::StalePlan.into());
        }
        let mut outcome = Outcome::default();
        if plan.commit == Commit::Release {
            outcome.failures = self.make_all(&plan.changes, hardware);
        } else {
            self.make(&plan.changes, hardware)?;
        }
        self.commit(plan.commit, &mut outcome);
        self.generation += 1;
        Ok(outcome)
    }

    /// Makes every change, or none.
    fn make<H: Hardware>(
        &mut self,
        changes: &[Change],
        hardware: &mut H,
    ) -> Result<(), ExecuteError<H::Error>> {
        for (place, &change) in changes.iter().enumerate() {
            let Err(error) = self.make_one(change, hardware) else { continue };
            // A table may have been filled in part.
            let done = if matches!(change, Change::Fill { .. }) { place + 1 } else { place };
            let broken = self.undo(&changes[..done], hardware);
            return Err(self.refused(change, error, broken));
        }
        Ok(())
    }

    /// Makes every change that is not refused, and says which were.
    fn make_all<H: Hardware>(
        &self,
        changes: &[Change],
        hardware: &mut H,
    ) -> Vec<(GroupId, H::Error)> {
        let results = changes.iter().map(|&change| (change, self.make_one(change, hardware)));
        results.filter_map(|(change, result)| Some((change.group(), result.err()?))).collect()
    }

    fn make_one<H: Hardware>(&self, change: Change, hardware: &mut H) -> Result<(), H::Error> {
        match change {
            Change::Map { group, entry } => hardware.map(group, entry),
            Change::Unmap { group, iova, size } => hardware.unmap(group, iova, size),
            Change::Fill { group, ioasid } => self.fill(group, ioasid, Range::ALL, hardware),
            Change::Clear { group } => hardware.clear(group),
        }
    }

    /// Undoes changes, the last first, and says which tables could not be restored. The state
    /// still says what they held before.
    fn undo<H: Hardware>(&self, changes: &[Change], hardware: &mut H) -> Vec<(GroupId, H::Error)> {
        let results = changes.iter().rev().map(|&change| (change, self.undo_one(change, hardware)));
        results.filter_map(|(change, result)| Some((change.group(), result.err()?))).collect()
    }

    fn undo_one<H: Hardware>(&self, change: Change, hardware: &mut H) -> Result<(), H::Error> {
        match change {
            Change::Map { group, entry } => hardware.unmap(group, entry.iova, entry.size),
            Change::Fill { group, .. } => hardware.clear(group),
            Change::Unmap { group, iova, size } => match Range::from_size(iova, size) {
                Some(range) => self.refill(group, range, hardware),
                None => Ok(()),
            },
            Change::Clear { group } => self.refill(group, Range::ALL, hardware),
        }
    }

    /// Adds again what the table of `group` held in `range`.
    fn refill<H: Hardware>(
        &self,
        group: GroupId,
        range: Range,
        hardware: &mut H,
    ) -> Result<(), H::Error> {
        match self.tables.get(&group).and_then(|table| table.shows) {
            Some(ioasid) => self.fill(group, ioasid, range, hardware),
            None => Ok(()),
        }
    }

    fn fill<H: Hardware>(
        &self,
        group: GroupId,
        ioasid: Ioasid,
        range: Range,
        hardware: &mut H,
    ) -> Result<(), H::Error> {
        self.contents(ioasid, range).try_for_each(|entry| hardware.map(group, entry))
    }

    /// What a table that shows `ioasid` must hold: the entries that begin in `range`, in ascending
    /// order. Nothing else decides what tables hold.
    pub(crate) fn contents(&self, ioasid: Ioasid, range: Range) -> impl Iterator<Item = Entry> {
        let space = self.spaces.get(&ioasid);
        let mappings = space.into_iter().flat_map(move |space| space.iter(range));
        mappings.map(|(mapped, mapping)| Entry {
            iova: mapped.start(),
            size: mapped.bytes() as u64,
            prot: mapping.prot,
            memory: mapping.memory,
            offset: 0,
        })
    }

    fn refused<E>(
        &mut self,
        change: Change,
        error: E,
        broken: Vec<(GroupId, E)>,
    ) -> ExecuteError<E> {
        if broken.is_empty() {
            return ExecuteError::Refused { change, error };
        }
        for (group, _) in &broken {
            if let Some(table) = self.tables.get_mut(group) {
                table.broken = true;
            }
        }
        self.generation += 1;
        ExecuteError::Broken { change, error, broken }
    }
}

/// Changes of the state, when all tables have followed.
impl Context {
    fn commit<E>(&mut self, commit: Commit, outcome: &mut Outcome<E>) {
        match commit {
            Commit::Nothing => {}
            Commit::Map { ioasid, iova, mapping } => {
                if let Some(space) = self.spaces.get_mut(&ioasid) {
                    space.insert(iova, mapping);
                }
            }
            Commit::Unmap { ioasid, range } => {
                if let Some(space) = self.spaces.get_mut(&ioasid) {
                    let removed = space.remove(range);
                    outcome.released = removed.memories;
                    outcome.unmapped_bytes = removed.bytes.try_into().unwrap_or(u64::MAX);
                }
            }
            Commit::Attach { device, ioasid } => self.attach(device, ioasid),
            Commit::Detach { device } => self.detach(device),
            Commit::Free { ioasid } => {
                if let Some(space) = self.spaces.remove(&ioasid) {
                    outcome.released = space.memories().collect();
                }
            }
            Commit::Unbind { device } => outcome.retired = self.unbind(device),
            Commit::Release => {
                outcome.released =
                    self.spaces.values().flat_map(|space| space.memories()).collect();
                outcome.retired = self.tables.keys().copied().collect();
                self.spaces.clear();
                self.devices.clear();
                self.tables.clear();
            }
        }
    }

    fn attach(&mut self, device: DeviceId, ioasid: Ioasid) {
        self.set_attached(device, true);
        let Some((group, table)) = self.table_mut(device) else { return };
        if table.shows.is_some() {
            return;
        }
        table.shows = Some(ioasid);
        table.broken = false;
        if let Some(space) = self.spaces.get_mut(&ioasid) {
            space.tables.push(group);
        }
        self.reshape(ioasid);
    }

    fn detach(&mut self, device: DeviceId) {
        self.set_attached(device, false);
        let Some((group, table)) = self.table_mut(device) else { return };
        if table.attached(true).next().is_some() {
            return;
        }
        let shown = table.shows.take();
        table.broken = false;
        if let Some((ioasid, space)) = shown.and_then(|i| Some((i, self.spaces.get_mut(&i)?))) {
            space.tables.retain(|&shows| shows != group);
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
            return vec![];
        }
        self.tables.remove(&group);
        vec![group]
    }

    fn table_mut(&mut self, device: DeviceId) -> Option<(GroupId, &mut crate::table::Table)> {
        let group = *self.devices.get(&device)?;
        Some((group, self.tables.get_mut(&group)?))
    }

    fn set_attached(&mut self, device: DeviceId, attached: bool) {
        let Some((_, table)) = self.table_mut(device) else { return };
        if let Some(member) = table.devices.iter_mut().find(|member| member.id == device) {
            member.attached = attached;
        }
    }

    /// Computes anew what the tables of an address space are able to hold alike. Without tables
    /// it keeps what the last one was able to.
    fn reshape(&mut self, ioasid: Ioasid) {
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

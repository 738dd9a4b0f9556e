//! PASIDs: devices whose DMA is told apart by one, and tables of the program that say which page
//! table each has. Simulated devices only: VFIO type1 has one table for a device.

use std::collections::{BTreeMap, BTreeSet};

use ioasid::pgtable::Root;
use ioasid::pgtable::pasid::{self, PasidFormat, PasidTarget};
use ioasid::{Bind, DeviceId, Ioasid, Range};
use ioasid_uapi as uapi;
use rustix::io::Errno;

use super::nested::{Interrupted, ParentMemory};
use super::{Command, Done, known_flags, refuse_invalid, reserved};
use crate::argument::Stop;
use crate::backend::Table;
use crate::context::{Claim, State, Turn};
use crate::failure::Failure;
use crate::pasids::{PasidTable, Tag};

const NO_PASIDS: &str = "DMA cannot be told apart by PASID: VFIO type1 has one table for a device (IOASID_EXT_USER_PASID_TABLE is 1 for simulated devices alone)";

/// How many entries of a PASID table are kept: the devices that stand for them count among those of
/// the open.
const ENTRIES_KEPT: usize = 64;

impl<'a> Command<'a, '_, '_> {
    pub(super) fn attach_pasid(&mut self, tag: Tag, ioasid: Ioasid) -> Done {
        let turn = self.pasid_turn(tag.0, ioasid)?;
        drop(self.context.state().engine.mappings(ioasid)?);
        let known = self.context.state().pasids.asked_for(tag);
        if let Some(known) = known {
            let plan = self.context.state().engine.plan_attach(known, ioasid)?;
            self.follow(&turn, plan)?;
            return Ok(0);
        }
        // What the program attaches goes before what an entry says.
        self.forget_pasids(&turn, |other| other == tag)?;
        let above = self.above_for(tag.0, ioasid)?;
        let stands_for_it = self.stand_in(tag)?;
        if let Err(stop) = self.attach_hidden(&turn, stands_for_it, &above, ioasid) {
            self.let_go(&turn, stands_for_it)?;
            return Err(stop);
        }
        self.context.state().pasids.insert_asked_for(stands_for_it, above);
        Ok(0)
    }

    pub(super) fn detach_pasid(&mut self, tag: Tag, ioasid: Ioasid) -> Done {
        let turn = self.attachment_turn(tag.0, ioasid)?;
        let state = self.context.state();
        drop(state.engine.mappings(ioasid)?);
        let attached = state.pasids.asked_for(tag);
        let attached = attached.filter(|&known| !state.pasids.implies(known, ioasid));
        let Some(stands_for_it) = attached else {
            let (device, pasid) = tag;
            let name = state.engine.device_info(device)?.name.to_owned();
            return Err(Failure::new(
                Errno::NOENT,
                format!("PASID {pasid} of device \"{name}\" is not attached to IOASID {ioasid}"),
            )
            .into());
        };
        let plan = state.engine.plan_detach(stands_for_it, ioasid)?;
        let parent = state.engine.parent(ioasid)?;
        let stays = parent.is_some_and(|parent| !state.pasids.implies(stands_for_it, parent));
        drop(state);
        match stays {
            true => drop(self.follow(&turn, plan)?),
            false => self.let_go(&turn, stands_for_it)?,
        }
        let (device, pasid) = tag;
        self.context.faults.detached(device, ioasid, |other| other == Some(pasid));
        Ok(0)
    }

    /// The turn to attach a PASID, which may take down what an entry of a PASID table said.
    fn pasid_turn(&self, device: DeviceId, ioasid: Ioasid) -> Result<Turn<'a>, Stop> {
        loop {
            let look = || -> Result<_, Failure> {
                let group = self.group_of(device)?;
                Ok((group, self.context.state().engine.device_info(device)?.ioasid))
            };
            let seen = look()?;
            let spaces = [Some(ioasid), seen.1].into_iter().flatten().map(Claim::Space);
            let claims = Vec::from_iter(spaces.chain([Claim::Group(seen.0)]));
            let turn = self.turn(&claims)?;
            if look()? == seen {
                return Ok(turn);
            }
        }
    }

    /// What a PASID that is to be attached to a child has to be attached to first: all that the child
    /// is nested on, if that is what its device is attached to. (Otherwise the engine refuses.)
    fn above_for(&self, device: DeviceId, ioasid: Ioasid) -> Result<Vec<Ioasid>, Failure> {
        let state = self.context.state();
        let deepest = state.engine.device_info(device)?.ioasid;
        let parent = state.engine.parent(ioasid)?;
        let is_there = |parent: &Ioasid| deepest.is_some_and(|own| is_on(&state, own, *parent));
        Ok(parent.filter(is_there).map_or_else(Vec::new, |parent| line(&state, parent)))
    }

    /// Attaches what stands for a PASID to `above`, in order, and then to `ioasid`.
    fn attach_hidden(
        &mut self,
        turn: &Turn<'_>,
        stands_for_it: DeviceId,
        above: &[Ioasid],
        ioasid: Ioasid,
    ) -> Result<(), Stop> {
        for &each in above.iter().chain([&ioasid]) {
            let plan = self.context.state().engine.plan_attach(stands_for_it, each)?;
            self.follow(turn, plan)?;
        }
        Ok(())
    }

    /// Makes a device that is to stand for a PASID.
    fn stand_in(&mut self, (device, pasid): Tag) -> Result<DeviceId, Failure> {
        let mut state = self.context.state();
        let info = state.engine.device_info(device)?;
        if !info.simulated {
            return Err(Failure::unsupported(NO_PASIDS));
        }
        let (name, cookie, geometry, group) =
            (info.name.to_owned(), info.cookie, info.geometry.clone(), info.group);
        if state.engine.devices().filter(|other| other.group == group).count() > 1 {
            return Err(Failure::new(
                Errno::BUSY,
                format!(
                    "device \"{name}\" shares its group with others, which DMA with its PASIDs too: \
                     PASIDs can be attached only of a device that is alone in its group"
                ),
            ));
        }
        let group = state.pasids.next_group();
        let table = crate::backend::simulated::Table::for_pasid(geometry.clone());
        let name = format!("{name} PASID {pasid}");
        let stands_for_it =
            state.engine.bind(Bind { group, geometry, simulated: true, name, cookie })?;
        state.insert_table(group, Table::Simulated(table));
        state.pasids.hide_device(stands_for_it, (device, pasid));
        Ok(stands_for_it)
    }

    /// Lets go of what stands for a PASID. From the first step on its DMA reaches nothing.
    fn let_go(&self, turn: &Turn<'_>, stands_for_it: DeviceId) -> Result<(), Failure> {
        self.context.state().pasids.remove(stands_for_it);
        let gone = self.detach_and_unbind(turn, stands_for_it);
        let mut state = self.context.state();
        match gone {
            Ok(()) => state.pasids.forget_device(stands_for_it),
            Err(_) => state.pasids.put_back(stands_for_it),
        }
        gone
    }

    fn detach_and_unbind(&self, turn: &Turn<'_>, device: DeviceId) -> Result<(), Failure> {
        let plan = self.context.state().engine.plan_leave(device)?;
        turn.execute_simply(plan)?;
        let plan = self.context.state().engine.plan_unbind(device)?;
        turn.execute_simply(plan).map(drop)
    }

    pub(super) fn bind_pasid_table(&mut self, arg: u64, bind: bool) -> Done {
        let table: uapi::BindPasidTable = self.memory.structure(arg)?;
        known_flags(table.flags, 0)?;
        reserved(table.reserved)?;
        if !bind && (table.format, table.addr, table.pasid_bits) != (0, 0, 0) {
            return refuse_invalid("to unbind, every field but argsz and ioasid must be 0");
        }
        let ioasid = table.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        let state = self.context.state();
        let known = state.pasids.table(ioasid).is_some();
        match (bind, known) {
            (true, true) => return Err(table_bound(ioasid).into()),
            (true, false) => state.engine.check_bind_table(ioasid)?,
            (false, true) => drop(state.engine.info(ioasid)?),
            (false, false) => {
                // The rest is said as for a page table.
                drop(state.engine.plan_unbind_table(ioasid)?);
                let why = "what is bound to the IOASID is a page table: IOASID_UNBIND_PGTABLE";
                return Err(Failure::new(Errno::NOENT, why).into());
            }
        }
        drop(state);
        if !bind {
            self.forget_read(&turn, ioasid, |_| true)?;
            self.context.state().pasids.unbind(ioasid);
            return Ok(0);
        }
        let format = PasidFormat::from_number(table.format).ok_or_else(|| {
            let number = table.format;
            Failure::unsupported(format!(
                "{number} is the number of no PASID-table format: see IOASID_PASID_FORMAT_*"
            ))
        })?;
        if !(1..=20).contains(&table.pasid_bits) {
            return refuse_invalid("pasid_bits must be 1 to 20");
        }
        if !table.addr.is_multiple_of(format.alignment()) {
            return refuse_invalid("addr is not a multiple of what the format asks for");
        }
        let mut state = self.context.state();
        if !state.engine.info(ioasid)?.simulated {
            return Err(Failure::unsupported(NO_PASIDS).into());
        }
        let (address, bits, read) = (table.addr, table.pasid_bits, BTreeMap::new());
        state.pasids.bind(ioasid, PasidTable { format, address, bits, read });
        Ok(0)
    }

    /// INVALIDATE_CACHE of what was read from a PASID table; false if none is bound.
    pub(super) fn invalidate_pasids(
        &mut self,
        turn: &Turn<'_>,
        ioasid: Ioasid,
        range: Range,
    ) -> Result<bool, Stop> {
        let state = self.context.state();
        if state.pasids.table(ioasid).is_none() {
            return Ok(false);
        }
        state.engine.info(ioasid)?;
        drop(state);
        let pasids = range.start()..=range.last();
        self.forget_read(turn, ioasid, |(_, pasid)| pasids.contains(&u64::from(pasid)))?;
        Ok(true)
    }

    /// Takes down what was read from PASID tables, of the PASIDs that are asked for.
    pub(super) fn forget_pasids(
        &mut self,
        turn: &Turn<'_>,
        which: impl Fn(Tag) -> bool,
    ) -> Result<(), Failure> {
        let children = Vec::from_iter(self.context.state().pasids.children());
        children.into_iter().try_for_each(|child| self.forget_read(turn, child, &which))
    }

    /// Takes down what was read from the PASID table that is bound to a child.
    fn forget_read(
        &mut self,
        turn: &Turn<'_>,
        child: Ioasid,
        which: impl Fn(Tag) -> bool,
    ) -> Result<(), Failure> {
        let state = self.context.state();
        let read = state.pasids.table(child).into_iter().flat_map(|table| &table.read);
        let read = read.map(|(&tag, &space)| (tag, space));
        let chosen = Vec::from_iter(read.filter(|&(tag, _)| which(tag)));
        drop(state);
        for (tag, space) in chosen {
            let stands_for_it = self.context.state().pasids.device(tag);
            self.take_down(turn, stands_for_it, space)?;
            if let Some(table) = self.context.state().pasids.table_mut(child) {
                table.read.remove(&tag);
            }
        }
        Ok(())
    }

    fn take_down(
        &self,
        turn: &Turn<'_>,
        stands_for_it: Option<DeviceId>,
        space: Option<Ioasid>,
    ) -> Result<(), Failure> {
        stands_for_it.map_or(Ok(()), |device| self.let_go(turn, device))?;
        if let Some(space) = space {
            let plan = self.context.state().engine.plan_free(space)?;
            turn.execute_simply(plan)?;
            self.context.state().pasids.forget_space(space);
        }
        Ok(())
    }

    /// What translates DMA of a device that is tagged with a PASID: the device that stands for it, or
    /// none. An entry of a PASID table is read if it is needed for the first time.
    pub(super) fn tagged(&mut self, tag: Tag) -> Result<Option<DeviceId>, Stop> {
        let state = self.context.state();
        let child = state.engine.device_info(tag.0)?.ioasid;
        let child = child.filter(|&child| state.pasids.table(child).is_some());
        let known = state.pasids.device(tag);
        drop(state);
        let (None, Some(child)) = (known, child) else { return Ok(known) };
        let turn = self.attachment_turn(tag.0, child)?;
        let state = self.context.state();
        // What was looked at before the turn may have changed.
        let known = state.pasids.device(tag);
        let is_there = state.engine.device_info(tag.0)?.ioasid == Some(child);
        let table = state.pasids.table(child).filter(|_| is_there && known.is_none());
        let Some(table) = table else { return Ok(known) };
        let (format, address, bits) = (table.format, table.address, table.bits);
        let too_many = table.read.len() >= ENTRIES_KEPT;
        let oldest = table.read.keys().next().copied().filter(|_| too_many);
        let Some(parent) = state.engine.parent(child)? else { return Ok(None) };
        drop(state);
        let mut memory = ParentMemory::new(self.context, parent, self.interrupt);
        let pasid = tag.1;
        let found =
            self.memory.reading(|| pasid::find(format, address, bits, pasid, &mut memory))?;
        let target = match found {
            Ok(Some(target)) => target,
            Ok(None) => return Ok(None),
            Err(Interrupted) => return Err(Stop::Restart),
        };
        if oldest.is_some() {
            self.forget_read(&turn, child, |other| Some(other) == oldest)?;
        }
        self.read_entry(&turn, tag, child, parent, target).map(Some)
    }

    /// Has DMA of a PASID translated as an entry of the table of `child` says.
    fn read_entry(
        &mut self,
        turn: &Turn<'_>,
        tag: Tag,
        child: Ioasid,
        parent: Ioasid,
        target: PasidTarget,
    ) -> Result<DeviceId, Stop> {
        let stands_for_it = self.stand_in(tag)?;
        let line = line(&self.context.state(), parent);
        let mut space = None;
        let attached = self.attach_hidden(turn, stands_for_it, &line[..line.len() - 1], parent);
        let made = attached.and_then(|()| match target {
            PasidTarget::PassThrough => Ok(()),
            PasidTarget::Table(root) => {
                let mut state = self.context.state();
                let own = state.engine.create_nesting(parent)?;
                state.pasids.hide_space(own);
                drop(state);
                space = Some(own);
                self.shadow(turn, stands_for_it, own, root)
            }
        });
        match made {
            Ok(()) => self.context.state().pasids.insert_read(child, stands_for_it, space),
            Err(stop) => {
                self.take_down(turn, Some(stands_for_it), space)?;
                return Err(stop);
            }
        }
        Ok(stands_for_it)
    }

    fn shadow(
        &mut self,
        turn: &Turn<'_>,
        stands_for_it: DeviceId,
        child: Ioasid,
        root: Root,
    ) -> Result<(), Stop> {
        self.attach_hidden(turn, stands_for_it, &[], child)?;
        let leaves = self.walk(child, &root, Range::ALL)?;
        let plan = self.context.state().engine.plan_bind_table(child, root, &leaves)?;
        self.follow(turn, plan).map(drop)
    }
}

/// What an address space is nested on, from the one that is nested on none, and then itself.
fn line(state: &State, ioasid: Ioasid) -> Vec<Ioasid> {
    let above = |&below: &Ioasid| state.engine.parent(below).ok().flatten();
    let mut line = Vec::from_iter(std::iter::successors(Some(ioasid), above));
    line.reverse();
    line
}

fn is_on(state: &State, deepest: Ioasid, ioasid: Ioasid) -> bool {
    line(state, deepest).contains(&ioasid)
}

/// How many devices are attached to an address space as the program sees it: one with several PASIDs
/// counts once, and what was made of a PASID table's entries not at all.
pub(super) fn nr_devices(state: &State, ioasid: Ioasid) -> u32 {
    let attached = state.engine.devices().filter_map(|info| {
        let is_there = info.ioasid.is_some_and(|deepest| is_on(state, deepest, ioasid))
            && !state.pasids.implies(info.id, ioasid);
        is_there.then(|| state.pasids.stands_for(info.id)).flatten()
    });
    attached.collect::<BTreeSet<_>>().len() as u32
}

/// How many address spaces that programs must not name are nested on one.
pub(super) fn nr_hidden_children(state: &State, ioasid: Ioasid) -> u32 {
    let is_child = |&space: &Ioasid| state.engine.parent(space) == Ok(Some(ioasid));
    state.pasids.spaces().filter(is_child).count() as u32
}

/// The formats that can be bound, a bit for each number.
pub(super) fn formats() -> u64 {
    PasidFormat::ALL.iter().fold(0, |bits, format| bits | 1 << format.number())
}

pub(super) fn table_bound(ioasid: Ioasid) -> Failure {
    Failure::new(
        Errno::BUSY,
        format!(
            "a PASID table of the program is bound to IOASID {ioasid}, so that it takes no MAP, UNMAP, \
             child or other table: unbind it first"
        ),
    )
}

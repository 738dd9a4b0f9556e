//! The state behind one open of the node, and the rules: which command is legal now, and what it
//! would change.

use std::collections::BTreeMap;

use crate::nesting::Budget;
use crate::plan::{Basis, Commit};
use crate::registered::{Registrations, Sources};
use crate::space::{Charge, Mapping, Shape, Space, extent};
use crate::table::{Device, Table, names};
use crate::{
    Change, Cookie, DeviceId, Error, Geometry, GroupId, Ioasid, MemoryId, Owner, Plan, Prot, Range,
};

/// How much one context may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// IOASIDs at a time.
    pub max_ioasids: u32,
    /// Bound devices at a time.
    pub max_devices: u32,
    /// Mappings in each IOASID.
    pub max_mappings: u32,
    /// Registered ranges of memory at a time, of all owners.
    pub max_registered: u32,
}

/// A device to bind.
#[derive(Clone, Debug)]
pub struct Bind {
    /// Its group.
    pub group: GroupId,
    /// What the hardware table of the group is able to hold.
    pub geometry: Geometry,
    /// The hardware is simulated.
    pub simulated: bool,
    /// Its name, unique in the group.
    pub name: String,
    /// The program's own name for it.
    pub cookie: Cookie,
}

/// A mapping to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// The first IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Where the memory is in the program, or in the file.
    pub vaddr: u64,
    /// What devices may do.
    pub prot: Prot,
    /// Whose memory.
    pub owner: Owner,
    /// What it is.
    pub kind: MapKind,
}

/// What is mapped, which decides how it is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// Memory of a program: the rules of registration apply. If registered, it is charged once,
    /// with its registration; otherwise once for the IOASID.
    Memory,
    /// A piece of a file, `vaddr` being its offset: charged once for the IOASID. The rules of
    /// registration do not apply.
    File,
    /// Registers of a device: never charged. The rules of registration do not apply.
    Device,
    /// In a child: leads to the parent's address `vaddr`, and to no memory by itself. Never charged.
    Nested,
}

/// What to unmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// The mappings that lie in `[iova, iova + size)`.
    Range {
        /// The first IOVA.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// Every mapping.
    All,
}

/// The state behind one open of the node: its I/O address spaces, bound devices and hardware
/// tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub(crate) limits: Limits,
    /// The last that [`Context::next_generation`] gave out.
    last_generation: u64,
    last_ioasid: u32,
    last_device: u32,
    pub(crate) spaces: BTreeMap<Ioasid, Space>,
    /// Which group each bound device is in.
    pub(crate) devices: BTreeMap<DeviceId, GroupId>,
    pub(crate) tables: BTreeMap<GroupId, Table>,
    pub(crate) registrations: Registrations,
}

/// Commands that touch no hardware.
impl Context {
    /// An open of the node that nothing has been done with yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            last_generation: 0,
            last_ioasid: 0,
            last_device: 0,
            spaces: BTreeMap::new(),
            devices: BTreeMap::new(),
            tables: BTreeMap::new(),
            registrations: Registrations::default(),
        }
    }

    /// Makes an empty I/O address space (`IOASID_ALLOC`).
    ///
    /// # Errors
    /// [`Error::TooManyIoasids`]; [`Error::NumbersUsedUp`] after 2^31 - 1 of them, as the number
    /// is the result of an ioctl.
    pub fn alloc(&mut self) -> Result<Ioasid, Error> {
        self.add(Space::default())
    }

    /// Makes an empty I/O address space whose addresses are translated again by `parent`
    /// (`IOASID_CREATE_NESTING`).
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc), and the states in which `parent` takes no command.
    pub fn create_nesting(&mut self, parent: Ioasid) -> Result<Ioasid, Error> {
        self.usable_space(parent)?;
        let mut space = Space::default();
        space.parent = Some(parent);
        let child = self.add(space)?;
        if let Some(space) = self.spaces.get_mut(&parent) {
            space.children.insert(child);
        }
        self.touch_space(parent);
        Ok(child)
    }

    fn add(&mut self, space: Space) -> Result<Ioasid, Error> {
        let max = self.limits.max_ioasids;
        if self.spaces.len() >= max as usize {
            return Err(Error::TooManyIoasids { max });
        }
        let number = next_number(self.last_ioasid)?;
        let ioasid = Ioasid::try_from(number)?;
        self.last_ioasid = number;
        self.spaces.insert(ioasid, space);
        self.touch_space(ioasid);
        Ok(ioasid)
    }

    /// Whether a device of this name could be bound, as far as can be said without touching the
    /// hardware.
    ///
    /// # Errors
    /// [`Error::AlreadyBound`], [`Error::TooManyDevices`], [`Error::NumbersUsedUp`].
    pub fn can_bind(&self, group: GroupId, name: &str) -> Result<(), Error> {
        let siblings = self.tables.get(&group).map_or(&[][..], |table| &table.devices);
        if let Some(same) = siblings.iter().find(|sibling| sibling.name == name) {
            return Err(Error::AlreadyBound { device: name.to_owned(), id: same.id });
        }
        let max = self.limits.max_devices;
        if self.devices.len() >= max as usize {
            return Err(Error::TooManyDevices { max });
        }
        next_number(self.last_device).map(drop)
    }

    /// Puts a device under the control of this context (`IOASID_BIND_DEVICE`). The table of its
    /// group is empty, or is the one that was bound with an earlier device of the group.
    ///
    /// # Errors
    /// Those of [`can_bind`](Self::can_bind), [`Error::UnusableGeometry`], and
    /// [`Error::GroupDiffers`] if geometry or kind is not that of the group's other devices.
    pub fn bind(&mut self, bind: Bind) -> Result<DeviceId, Error> {
        self.can_bind(bind.group, &bind.name)?;
        if !bind.geometry.is_usable() {
            return Err(Error::UnusableGeometry { device: bind.name });
        }
        let table = self.tables.get(&bind.group);
        if table.is_some_and(|t| t.geometry != bind.geometry || t.simulated != bind.simulated) {
            return Err(Error::GroupDiffers { device: bind.name });
        }
        let id = DeviceId(next_number(self.last_device)?);
        let Bind { group, geometry, simulated, name, cookie } = bind;
        let table = self.tables.entry(group).or_insert_with(|| Table {
            geometry,
            simulated,
            devices: vec![],
            path: vec![],
            held: 0,
            broken: false,
            generation: 0,
        });
        table.devices.push(Device { id, name, cookie, level: 0 });
        self.devices.insert(id, group);
        self.last_device = id.0;
        self.touch_table(group);
        Ok(id)
    }
}

/// Commands on an I/O address space.
impl Context {
    /// Whether a mapping could be made, before anything is known of its memory: owner and kind are
    /// not looked at.
    ///
    /// # Errors
    /// Those of `IOASID_MAP_DMA` that do not depend on memory, in the order that the crate's page
    /// gives.
    pub fn check_map(&self, ioasid: Ioasid, map: Map) -> Result<(), Error> {
        let (space, geometry) = self.mappable_space(ioasid)?;
        check_mapping(ioasid, space, geometry, map)?;
        self.check_count(ioasid, space, geometry, 1)
    }

    /// An address space that takes maps, and what its tables can hold.
    fn mappable_space(&self, ioasid: Ioasid) -> Result<(&Space, &Geometry), Error> {
        let space = self.usable_space(ioasid)?;
        check_unbound(ioasid, space)?;
        Ok((space, &self.shape(ioasid, space)?.geometry))
    }

    /// An address space must have room for so many mappings more.
    fn check_count(
        &self,
        ioasid: Ioasid,
        space: &Space,
        geometry: &Geometry,
        more: usize,
    ) -> Result<(), Error> {
        let max = geometry.max_mappings.min(self.limits.max_mappings);
        match space.len() + more > max as usize {
            true => Err(Error::TooManyMappings { ioasid, max }),
            false => Ok(()),
        }
    }

    /// Lets the attached devices reach `memory` (`IOASID_MAP_DMA`). No other mapping or registration
    /// that exists has this `memory`. Of a child, kind and owner are not looked at, nor is `memory`.
    ///
    /// # Errors
    /// Those of [`check_map`](Self::check_map); for [`MapKind::Memory`],
    /// [`Error::OutsideRegistered`]; [`Error::TooManyPieces`], [`Error::TableFull`].
    pub fn plan_map(&self, ioasid: Ioasid, map: Map, memory: MemoryId) -> Result<Plan, Error> {
        self.check_map(ioasid, map)?;
        let Map { iova, size, vaddr, prot, owner, mut kind } = map;
        let space = self.space(ioasid)?;
        if space.parent.is_some() {
            kind = MapKind::Nested;
        }
        let source = match kind {
            MapKind::Memory => self.source(owner, vaddr, size)?.map(|(source, _)| source),
            MapKind::File | MapKind::Device | MapKind::Nested => None,
        };
        let charge = match kind {
            MapKind::Device | MapKind::Nested => Charge::Nothing,
            MapKind::Memory if source.is_some() => Charge::Registered,
            MapKind::Memory | MapKind::File => Charge::Own,
        };
        let last = iova + (size - 1);
        let mapping = Mapping { last, vaddr, memory, owner, prot, kind, charge };
        let mapped = Range::new(iova, last).ok_or(Error::ZeroSize)?;
        let mut budget = Budget::new(ioasid);
        let changes = self.additions(ioasid, mapped, &mapping, &mut budget)?;
        let held = self.check_room(budget)?;
        let mut sources = Sources::default();
        source.into_iter().for_each(|source| sources.add(source));
        let basis = Basis { sources, ..self.basis(ioasid) };
        let charge = space.charge(iova, &mapping);
        let added = vec![(iova, mapping)];
        Ok(Plan { basis, changes, commit: Commit::Map { ioasid, added }, charge, held })
    }

    /// The same for several mappings of registered memory, all of them or none, in less time than one
    /// after another.
    ///
    /// # Errors
    /// What one of them would give; [`Error::OutsideRegistered`] also for memory that is not
    /// registered where nothing is. The IOASID is no child.
    pub fn plan_map_registered(
        &self,
        ioasid: Ioasid,
        maps: &[(Map, MemoryId)],
    ) -> Result<Plan, Error> {
        let (space, geometry) = self.mappable_space(ioasid)?;
        let mut sources = Sources::default();
        let mut added: Vec<(u64, Mapping)> = Vec::with_capacity(maps.len());
        for &(map, memory) in maps {
            let range = check_mapping(ioasid, space, geometry, map)?;
            let Map { vaddr, size, prot, owner, .. } = map;
            self.add_source(&mut sources, owner, vaddr, size)?;
            let (kind, charge) = (MapKind::Memory, Charge::Registered);
            let mapping = Mapping { last: range.last(), vaddr, memory, owner, prot, kind, charge };
            added.push((range.start(), mapping));
        }
        // Most often they are in order already.
        added.sort_by_key(|&(iova, _)| iova);
        let mappings = || added.iter().map(|(iova, mapping)| extent((iova, mapping)));
        let neighbours = mappings().zip(mappings().skip(1));
        for ((mapped, _), (range, _)) in neighbours {
            if mapped.last() >= range.start() {
                return Err(Error::Overlap { ioasid, range, mapped });
            }
        }
        self.check_count(ioasid, space, geometry, added.len())?;
        let mut budget = Budget::new(ioasid);
        let changes = self.all_additions(ioasid, mappings(), &mut budget)?;
        let held = self.check_room(budget)?;
        let basis = Basis { sources, ..self.basis(ioasid) };
        Ok(Plan::new(basis, changes, Commit::Map { ioasid, added }).and_held(held))
    }

    /// Takes memory away from devices again (`IOASID_UNMAP_DMA`). Where nothing is mapped, nothing
    /// is done and 0 bytes are reported, as by VFIO type1.
    ///
    /// # Errors
    /// Those of `IOASID_UNMAP_DMA`, in the order that the crate's page gives; [`Error::TooManyPieces`],
    /// but never for [`Unmap::All`].
    pub fn plan_unmap(&self, ioasid: Ioasid, unmap: Unmap) -> Result<Plan, Error> {
        let space = self.usable_space(ioasid)?;
        check_unbound(ioasid, space)?;
        let Shape { geometry, .. } = self.shape(ioasid, space)?;
        let range = match unmap {
            Unmap::Range { iova, size } => aligned_range(ioasid, geometry, iova, size)?,
            Unmap::All => Range::ALL,
        };
        let inside = space.inside(range);
        let Some(range) = inside.map_err(|mapped| Error::Splits { ioasid, range, mapped })? else {
            return Ok(Plan::new(self.basis(ioasid), vec![], Commit::Nothing));
        };
        let gone = if unmap == Unmap::All { Range::ALL } else { range };
        let mut budget = Budget::new(ioasid);
        let changes = self.removals(ioasid, gone, &mut budget)?;
        let held = self.check_room(budget)?;
        Ok(Plan::new(self.basis(ioasid), changes, Commit::Unmap { ioasid, range }).and_held(held))
    }

    /// Removes an I/O address space and all that is mapped in it (`IOASID_FREE`).
    ///
    /// # Errors
    /// [`Error::NoIoasid`], [`Error::SpaceInUse`].
    pub fn plan_free(&self, ioasid: Ioasid) -> Result<Plan, Error> {
        let space = self.space(ioasid)?;
        if !space.tables.is_empty() {
            let devices = names(self.attached_devices(ioasid, space));
            return Err(Error::SpaceInUse { ioasid, devices });
        }
        if let Some(&child) = space.children.first() {
            return Err(Error::HasChild { ioasid, child });
        }
        Ok(Plan::new(self.basis(ioasid), vec![], Commit::Free { ioasid }))
    }
}

/// Commands on a device.
impl Context {
    /// Has the DMA of a device translated by an I/O address space (`IOASID_ATTACH_DEVICE`). With
    /// the first device of its group, the group's table is filled.
    ///
    /// # Errors
    /// Those of `IOASID_ATTACH_DEVICE`, in the order of its documentation; [`Error::TableBroken`]
    /// if the IOASID takes no command; [`Error::TooManyPieces`].
    pub fn plan_attach(&self, device: DeviceId, ioasid: Ioasid) -> Result<Plan, Error> {
        let (group, table, member) = self.device(device)?;
        let space = self.space(ioasid)?;
        check_unattached(table, member, ioasid, space)?;
        self.check_tables_intact(ioasid, space)?;
        let (mut changes, mut held) = (vec![], vec![]);
        if table.path.len() == member.level {
            let entries = self.check_compatible(table, member, ioasid, space)?;
            let shown = table.shows().and_then(|shown| self.spaces.get(&shown));
            if table.broken || shown.is_some_and(|shown| shown.len() > 0) {
                changes.push(Change::Clear { group });
            }
            if entries > 0 {
                changes.push(Change::Fill { group, ioasid });
            }
            held.push((group, entries));
        }
        let basis = self.basis(ioasid).and_group(group, table);
        Ok(Plan::new(basis, changes, Commit::Attach { device, ioasid }).and_held(held))
    }

    /// Undoes an attach (`IOASID_DETACH_DEVICE`). With the last device of its group, the group's
    /// table shows what the IOASID is nested on, or is cleared. The IOASID keeps its mappings and,
    /// without a table, its last properties.
    ///
    /// From the IOASID at which its path begins, a device whose table is broken is detached whatever
    /// it is attached to below, and from all of that: what the table would have to show on the way
    /// may be what it refuses.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NoIoasid`], [`Error::NotAttached`],
    /// [`Error::AttachedToChild`]; [`Error::TableTooSmall`] and [`Error::TooManyPieces`] for the
    /// parent, which can be unmapped then.
    pub fn plan_detach(&self, device: DeviceId, ioasid: Ioasid) -> Result<Plan, Error> {
        let (group, table, member) = self.device(device)?;
        self.space(ioasid)?;
        let name = || member.name.clone();
        match table.path_of(member) {
            [.., deepest] if *deepest == ioasid => {}
            [root, ..] if *root == ioasid && table.broken => {
                return self.plan_leave(device);
            }
            [.., child] if table.path_of(member).contains(&ioasid) => {
                return Err(Error::AttachedToChild { device: name(), ioasid, child: *child });
            }
            _ => return Err(Error::NotAttached { device: name(), ioasid }),
        }
        let (mut changes, mut held) = (vec![], vec![]);
        let is_last = table.level_without(device) < member.level;
        if is_last {
            changes.push(Change::Clear { group });
            if let Some(&ioasid) = table.path.iter().rev().nth(1) {
                let entries = self.check_table_size(table, member, ioasid)?;
                if entries > 0 {
                    changes.push(Change::Fill { group, ioasid });
                }
                held.push((group, entries));
            }
        }
        let basis = self.basis(ioasid).and_group(group, table);
        let commit = Commit::Detach { device, level: member.level - 1, intact: is_last };
        Ok(Plan::new(basis, changes, commit).and_held(held))
    }

    /// Detaches a device from all that it is attached to, in one step: the table of its group is
    /// cleared with the last device, and shows nothing else on the way. Otherwise it shows what is
    /// left; a broken one stays as it is until the last device leaves.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::TableTooSmall`] and [`Error::TooManyPieces`] for what is left.
    pub fn plan_leave(&self, device: DeviceId) -> Result<Plan, Error> {
        let (group, table, member) = self.device(device)?;
        let level = table.level_without(device);
        let is_shortened = level < member.level && (level == 0 || !table.broken);
        let (mut changes, mut held) = (vec![], vec![]);
        if is_shortened {
            changes.push(Change::Clear { group });
            if let Some(&ioasid) = table.path[..level].last() {
                let entries = self.check_table_size(table, member, ioasid)?;
                if entries > 0 {
                    changes.push(Change::Fill { group, ioasid });
                }
                held.push((group, entries));
            }
        }
        let basis = table.path.first().map_or_else(Basis::default, |&first| self.basis(first));
        let commit = Commit::Detach { device, level: 0, intact: is_shortened };
        Ok(Plan::new(basis.and_group(group, table), changes, commit).and_held(held))
    }

    /// Gives a device back (`IOASID_UNBIND_DEVICE`).
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::DeviceAttached`].
    pub fn plan_unbind(&self, device: DeviceId) -> Result<Plan, Error> {
        let (group, table, member) = self.device(device)?;
        match table.path_of(member) {
            &[.., ioasid] => Err(Error::DeviceAttached { device: member.name.clone(), ioasid }),
            [] => {
                let basis = Basis::default().and_group(group, table);
                Ok(Plan::new(basis, vec![], Commit::Unbind { device }))
            }
        }
    }

    /// Gives a device back with all that it is attached to. It is alone with its table, which goes with
    /// it, so that there is nothing that hardware could refuse.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::SiblingElsewhere`] if the table has other devices.
    pub fn plan_withdraw(&self, device: DeviceId) -> Result<Plan, Error> {
        let (group, table, member) = self.device(device)?;
        let first = table.path.first().copied();
        if table.devices.len() > 1 {
            let siblings = names(table.devices.iter().filter(|other| other.id != device));
            return match first {
                Some(ioasid) => {
                    Err(Error::SiblingElsewhere { device: member.name.clone(), siblings, ioasid })
                }
                None => self.plan_unbind(device),
            };
        }
        let basis = first.map_or_else(Basis::default, |first| self.basis(first));
        Ok(Plan::new(basis.and_group(group, table), vec![], Commit::Withdraw { device }))
    }

    /// Gives back everything, when the open of the node ends. Tables that refuse are reported in
    /// [`Outcome::failures`](crate::Outcome::failures); they stop nothing. The plan never becomes
    /// stale: if the context has changed since, tables may be left uncleared.
    pub fn plan_release(&self) -> Plan {
        let used = self.tables.iter().filter(|(_, table)| table.shows().is_some() || table.broken);
        let changes = used.map(|(&group, _)| Change::Clear { group }).collect();
        Plan::new(Basis::default(), changes, Commit::Release)
    }
}

/// What plans depend on.
impl Context {
    /// A number that no state has had before.
    pub(crate) fn next_generation(&mut self) -> u64 {
        self.last_generation += 1;
        self.last_generation
    }

    /// A space has changed, and with it all those that are nested on the same.
    pub(crate) fn touch_space(&mut self, ioasid: Ioasid) {
        let generation = self.next_generation();
        let root = self.root_of(ioasid);
        if let Some(space) = self.spaces.get_mut(&root) {
            space.generation = generation;
        }
    }

    /// That a plan depends on an address space as it is now, and on all those that are nested on
    /// the same.
    pub(crate) fn basis(&self, ioasid: Ioasid) -> Basis {
        let root = self.root_of(ioasid);
        let generation = self.spaces.get(&root).map(|space| (root, space.generation));
        Basis { space: generation, ..Basis::default() }
    }

    /// A table has changed, and with it what it shows: commands on that depend on whether the group
    /// is attached in full and the table intact.
    pub(crate) fn touch_table(&mut self, group: GroupId) {
        let generation = self.next_generation();
        let Some(table) = self.tables.get_mut(&group) else { return };
        table.generation = generation;
        if let Some(ioasid) = table.shows() {
            self.touch_space(ioasid);
        }
    }
}

/// The rules, one by one.
impl Context {
    pub(crate) fn space(&self, ioasid: Ioasid) -> Result<&Space, Error> {
        self.spaces.get(&ioasid).ok_or(Error::NoIoasid(ioasid.get()))
    }

    /// A bound device with its group and table.
    pub(crate) fn device(&self, device: DeviceId) -> Result<(GroupId, &Table, &Device), Error> {
        let group = *self.devices.get(&device).ok_or(Error::NoDevice(device))?;
        let table = self.tables.get(&group).ok_or(Error::NoDevice(device))?;
        let member = table.devices.iter().find(|member| member.id == device);
        Ok((group, table, member.ok_or(Error::NoDevice(device))?))
    }

    /// The tables of the devices that are attached to an address space.
    pub(crate) fn tables_of<'a>(&'a self, space: &'a Space) -> impl Iterator<Item = &'a Table> {
        space.tables.iter().filter_map(|group| self.tables.get(group))
    }

    /// The devices that are attached to an address space.
    pub(crate) fn attached_devices<'a>(
        &'a self,
        ioasid: Ioasid,
        space: &'a Space,
    ) -> impl Iterator<Item = &'a Device> {
        self.tables_of(space).flat_map(move |table| table.devices_of(ioasid, true))
    }

    /// An address space that takes commands.
    pub(crate) fn usable_space(&self, ioasid: Ioasid) -> Result<&Space, Error> {
        let space = self.space(ioasid)?;
        self.shape(ioasid, space)?;
        self.check_tables_intact(ioasid, space)?;
        if let Some(table) = self.tables_of(space).find(|table| table.is_partial(ioasid)) {
            let attached = names(table.devices_of(ioasid, true));
            let missing = names(table.devices_of(ioasid, false));
            return Err(Error::PartialGroup { ioasid, attached, missing });
        }
        Ok(space)
    }

    pub(crate) fn shape<'a>(&self, ioasid: Ioasid, space: &'a Space) -> Result<&'a Shape, Error> {
        space.shape.as_ref().ok_or(Error::NeverAttached(ioasid))
    }

    fn check_tables_intact(&self, ioasid: Ioasid, space: &Space) -> Result<(), Error> {
        match self.tables_of(space).find(|table| table.broken) {
            Some(table) => {
                let devices = names(table.devices_of(ioasid, true));
                let first = table.path.first().copied().unwrap_or(ioasid);
                Err(Error::TableBroken { ioasid, devices, first })
            }
            None => Ok(()),
        }
    }

    /// A table must be able to hold what it is to show. Returns how many entries that takes.
    fn check_table_size(
        &self,
        table: &Table,
        member: &Device,
        ioasid: Ioasid,
    ) -> Result<usize, Error> {
        let max = table.geometry.max_mappings;
        match self.count_entries(ioasid, max)? {
            entries if entries > max as usize => {
                Err(Error::TableTooSmall { ioasid, device: member.name.clone(), max })
            }
            entries => Ok(entries),
        }
    }

    /// A table that is to show an address space must be able to hold what it maps, and have
    /// something in common with the tables that show it already. Returns how many entries it takes.
    fn check_compatible(
        &self,
        table: &Table,
        member: &Device,
        ioasid: Ioasid,
        space: &Space,
    ) -> Result<usize, Error> {
        let device = || member.name.clone();
        let others = if space.tables.is_empty() { None } else { space.shape.as_ref() };
        let own = &table.geometry;
        let geometry = others.map_or_else(|| own.clone(), |o| own.intersection(&o.geometry));
        let Some(page) = geometry.pgsizes.smallest() else {
            let others = others.map_or(own.pgsizes, |others| others.geometry.pgsizes);
            let own = own.pgsizes;
            return Err(Error::PageSizesDiffer { ioasid, device: device(), own, others });
        };
        if geometry.permitted.is_empty() {
            return Err(Error::AperturesDiffer { ioasid, device: device() });
        }
        let is_aligned = |value: u64| value.is_multiple_of(page);
        for (mapped, mapping) in space.iter(Range::ALL) {
            if !(is_aligned(mapped.start())
                && is_aligned(mapped.last().wrapping_add(1))
                && is_aligned(mapping.vaddr))
            {
                return Err(Error::MappingMisaligned { ioasid, device: device(), mapped, page });
            }
        }
        for (mapped, _) in space.iter(Range::ALL) {
            if let Some(reserved) = own.permitted.gap_in(mapped) {
                return Err(Error::MappingReserved { ioasid, device: device(), mapped, reserved });
            }
        }
        self.check_table_size(table, member, ioasid)
    }
}

/// The number after `last`; numbers must be positive as an `int`.
fn next_number(last: u32) -> Result<u32, Error> {
    if last < i32::MAX as u32 { Ok(last + 1) } else { Err(Error::NumbersUsedUp) }
}

/// A device can be attached once at each level, after its parent, and only to what the table of its
/// group shows already.
fn check_unattached(
    table: &Table,
    member: &Device,
    ioasid: Ioasid,
    space: &Space,
) -> Result<(), Error> {
    let device = || member.name.clone();
    let own = table.path_of(member);
    match (own.last(), space.parent) {
        (Some(&ioasid), None) => return Err(Error::AlreadyAttached { device: device(), ioasid }),
        (_, Some(_)) if own.contains(&ioasid) => {
            return Err(Error::AlreadyAttached { device: device(), ioasid });
        }
        (attached, Some(parent)) if attached != Some(&parent) => {
            return match own.iter().position(|&member| member == parent) {
                Some(place) => {
                    Err(Error::AlreadyAttached { device: device(), ioasid: own[place + 1] })
                }
                None => Err(Error::NotOnParent { device: device(), ioasid, parent }),
            };
        }
        _ => {}
    }
    match table.path.get(member.level) {
        Some(&shown) if shown != ioasid => {
            let siblings = names(table.devices_of(shown, true));
            Err(Error::SiblingElsewhere { device: device(), siblings, ioasid: shown })
        }
        _ => Ok(()),
    }
}

/// A mapping must be one that the address space can take, beside those that are there. Gives its
/// IOVAs.
fn check_mapping(
    ioasid: Ioasid,
    space: &Space,
    geometry: &Geometry,
    map: Map,
) -> Result<Range, Error> {
    if !map.prot.read && !map.prot.write {
        return Err(Error::NoAccess);
    }
    aligned(ioasid, geometry, "vaddr", map.vaddr)?;
    let range = aligned_range(ioasid, geometry, map.iova, map.size)?;
    no_wrap("vaddr", map.vaddr, map.size)?;
    check_permitted(ioasid, geometry, range)?;
    match space.overlapping(range) {
        Some(mapped) => Err(Error::Overlap { ioasid, range, mapped }),
        None => Ok(range),
    }
}

/// What is read from a table of the program cannot be changed otherwise.
pub(crate) fn check_unbound(ioasid: Ioasid, space: &Space) -> Result<(), Error> {
    match space.bound {
        Some(_) => Err(Error::TableBound { ioasid }),
        None => Ok(()),
    }
}

/// The IOVAs of a command: some, aligned, and within 64 bits.
pub(crate) fn aligned_range(
    ioasid: Ioasid,
    geometry: &Geometry,
    iova: u64,
    size: u64,
) -> Result<Range, Error> {
    if size == 0 {
        return Err(Error::ZeroSize);
    }
    aligned(ioasid, geometry, "IOVA", iova)?;
    aligned(ioasid, geometry, "size", size)?;
    no_wrap("IOVA", iova, size)
}

fn aligned(
    ioasid: Ioasid,
    geometry: &Geometry,
    what: &'static str,
    value: u64,
) -> Result<(), Error> {
    match geometry.pgsizes.smallest() {
        Some(page) if !value.is_multiple_of(page) => {
            Err(Error::Misaligned { ioasid, what, value, page })
        }
        _ => Ok(()),
    }
}

fn no_wrap(what: &'static str, start: u64, size: u64) -> Result<Range, Error> {
    Range::from_size(start, size).ok_or(Error::Wraps { what, start, size })
}

/// IOVAs outside the aperture are malformed; those in a hole of it are reserved.
fn check_permitted(ioasid: Ioasid, geometry: &Geometry, range: Range) -> Result<(), Error> {
    let aperture = geometry.permitted.hull();
    if let Some(aperture) = aperture.filter(|aperture| !aperture.contains(range)) {
        return Err(Error::OutsideAperture { ioasid, range, aperture });
    }
    match geometry.permitted.gap_in(range) {
        Some(reserved) => Err(Error::Reserved { ioasid, range, reserved }),
        None => Ok(()),
    }
}

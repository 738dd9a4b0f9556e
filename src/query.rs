//! Questions about a context.

use crate::pgtable::Root;
use crate::table::{Device, Table};
use crate::{
    Context, Cookie, DeviceId, Entry, Error, Geometry, GroupId, Ioasid, MapKind, MemoryId, Owner,
    PageSizes, Prot, Range, RangeSet,
};

/// What an I/O address space can do and holds (`struct ioasid_info`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceInfo {
    /// The IOASID that it is nested on.
    pub parent: Option<Ioasid>,
    /// The page sizes that all its tables have.
    pub pgsizes: PageSizes,
    /// The IOVAs that can be mapped.
    pub permitted: RangeSet,
    /// How many devices are attached to it now.
    pub nr_devices: u32,
    /// How many IOASIDs are above it: 0 for one that is nested on none.
    pub depth: u32,
    /// The page table of the program that it translates by.
    pub bound: Option<Root>,
    /// How many IOASIDs are nested on it.
    pub nr_children: u32,
    /// How many mappings it may hold.
    pub max_mappings: u32,
    /// How many mappings it holds.
    pub nr_mappings: u64,
    /// How many bytes they cover; `u64::MAX` stands for all 2^64.
    pub mapped_bytes: u64,
    /// How many bytes it is charged for, to all owners together: memory that is not registered, each
    /// piece once; `u64::MAX` stands for more than that.
    pub locked_bytes: u64,
    /// Its devices are all simulated.
    pub simulated: bool,
}

/// What a bound device is and can do (`struct ioasid_device_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo<'a> {
    /// The device.
    pub id: DeviceId,
    /// Its group.
    pub group: GroupId,
    /// Its name.
    pub name: &'a str,
    /// The program's own name for it.
    pub cookie: Cookie,
    /// What it is attached to.
    pub ioasid: Option<Ioasid>,
    /// The hardware is simulated.
    pub simulated: bool,
    /// What the table of its group is able to hold.
    pub geometry: &'a Geometry,
}

/// The hardware table of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// The group.
    pub group: GroupId,
    /// The IOASID that the table shows; the table is empty if there is none.
    pub shows: Option<Ioasid>,
    /// What the table holds is unknown, as a failed change could not be undone.
    pub broken: bool,
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// The IOVAs.
    pub range: Range,
    /// Where the memory is in the program, or in the file; of a child, the parent's address.
    pub vaddr: u64,
    /// What devices may do.
    pub prot: Prot,
    /// Whose memory. Of a child it says nothing, and neither does `memory`.
    pub owner: Owner,
    /// What it is.
    pub kind: MapKind,
    /// The memory.
    pub memory: MemoryId,
}

/// Where an IOVA leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The memory.
    pub memory: MemoryId,
    /// Where in the memory, bytes.
    pub offset: u64,
    /// Where that is in the program.
    pub vaddr: u64,
    /// What devices may do.
    pub prot: Prot,
    /// The last IOVA up to which memory goes on without a break.
    pub last: u64,
}

impl Context {
    /// What an I/O address space can do and holds (`IOASID_GET_INFO`).
    ///
    /// # Errors
    /// Those of `IOASID_GET_INFO`; [`Error::TableBroken`].
    pub fn info(&self, ioasid: Ioasid) -> Result<SpaceInfo, Error> {
        let space = self.usable_space(ioasid)?;
        let shape = self.shape(ioasid, space)?;
        Ok(SpaceInfo {
            parent: space.parent,
            depth: self.depth_of(ioasid),
            bound: space.bound,
            pgsizes: shape.geometry.pgsizes,
            permitted: shape.geometry.permitted.clone(),
            nr_devices: self.attached_devices(ioasid, space).count() as u32,
            nr_children: space.children.len() as u32,
            max_mappings: shape.geometry.max_mappings.min(self.limits.max_mappings),
            nr_mappings: space.len() as u64,
            mapped_bytes: space.mapped_bytes().try_into().unwrap_or(u64::MAX),
            locked_bytes: space.locked_bytes().try_into().unwrap_or(u64::MAX),
            simulated: shape.simulated,
        })
    }

    /// What a bound device is and can do (`IOASID_GET_DEVICE_INFO`).
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub fn device_info(&self, device: DeviceId) -> Result<DeviceInfo<'_>, Error> {
        let (group, table, member) = self.device(device)?;
        Ok(device_info(group, table, member))
    }

    /// The bound devices, group by group.
    pub fn devices(&self) -> impl Iterator<Item = DeviceInfo<'_>> {
        self.tables.iter().flat_map(|(&group, table)| {
            table.devices.iter().map(move |member| device_info(group, table, member))
        })
    }

    /// The hardware tables.
    pub fn tables(&self) -> impl Iterator<Item = TableInfo> {
        self.tables.iter().map(|(&group, table)| TableInfo {
            group,
            shows: table.shows(),
            broken: table.broken,
        })
    }

    /// What the hardware table of a group must hold, in ascending order; nothing if there is no
    /// such group or no device of it is attached.
    pub fn table_contents(&self, group: GroupId) -> impl Iterator<Item = Entry> {
        let shown = self.tables.get(&group).and_then(|table| table.shows());
        shown.into_iter().flat_map(|ioasid| self.contents(ioasid, Range::ALL))
    }

    /// What the hardware table of a group must hold in `range`, where none of its entries is cut.
    pub fn table_entries(&self, group: GroupId, range: Range) -> impl Iterator<Item = Entry> {
        let shown = self.tables.get(&group).and_then(|table| table.shows());
        shown.into_iter().flat_map(move |ioasid| self.contents(ioasid, range))
    }

    /// The I/O address spaces, also those that take no command.
    pub fn ioasids(&self) -> impl Iterator<Item = Ioasid> {
        self.spaces.keys().copied()
    }

    /// What an I/O address space maps, in ascending order, also while it takes no command.
    ///
    /// # Errors
    /// [`Error::NoIoasid`].
    pub fn mappings(&self, ioasid: Ioasid) -> Result<impl Iterator<Item = MappingInfo>, Error> {
        self.mappings_in(ioasid, Range::ALL)
    }

    /// The same of those that begin in `range`.
    ///
    /// # Errors
    /// [`Error::NoIoasid`].
    pub fn mappings_in(
        &self,
        ioasid: Ioasid,
        range: Range,
    ) -> Result<impl Iterator<Item = MappingInfo>, Error> {
        let mappings = self.space(ioasid)?.iter(range);
        Ok(mappings.map(|(range, mapping)| MappingInfo {
            range,
            vaddr: mapping.vaddr,
            prot: mapping.prot,
            owner: mapping.owner,
            kind: mapping.kind,
            memory: mapping.memory,
        }))
    }

    /// Where an IOVA leads; `None` if nothing is mapped there or if there is no such IOASID.
    pub fn translate(&self, ioasid: Ioasid, iova: u64) -> Option<Translation> {
        let (mut ioasid, mut at, mut prot, mut rest) = (ioasid, iova, Prot::READ_WRITE, u64::MAX);
        loop {
            let space = self.spaces.get(&ioasid)?;
            let (range, mapping) = space.find(at)?;
            let offset = at - range.start();
            prot = prot.intersection(mapping.prot)?;
            rest = rest.min(range.last() - at);
            at = mapping.vaddr + offset;
            match space.parent {
                Some(parent) => ioasid = parent,
                None => {
                    let last = iova.saturating_add(rest);
                    let (memory, vaddr) = (mapping.memory, at);
                    return Some(Translation { memory, offset, vaddr, prot, last });
                }
            }
        }
    }

    /// The groups with a device that is attached to an I/O address space; their tables show it, or one
    /// that is nested on it.
    pub fn groups(&self, ioasid: Ioasid) -> impl Iterator<Item = GroupId> {
        self.spaces.get(&ioasid).into_iter().flat_map(|space| space.tables.iter().copied())
    }

    /// The IOASID that one is nested on in the end: itself, if it is no child. Commands on IOASIDs
    /// that have this in common disturb each other.
    pub fn family(&self, ioasid: Ioasid) -> Ioasid {
        self.root_of(ioasid)
    }

    /// What an IOASID is nested on.
    ///
    /// # Errors
    /// [`Error::NoIoasid`].
    pub fn parent(&self, ioasid: Ioasid) -> Result<Option<Ioasid>, Error> {
        Ok(self.space(ioasid)?.parent)
    }
}

fn device_info<'a>(group: GroupId, table: &'a Table, member: &'a Device) -> DeviceInfo<'a> {
    DeviceInfo {
        id: member.id,
        group,
        name: &member.name,
        cookie: member.cookie,
        ioasid: table.path_of(member).last().copied(),
        simulated: table.simulated,
        geometry: &table.geometry,
    }
}

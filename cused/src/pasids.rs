//! What stands for the PASIDs of simulated devices.
//!
//! DMA that is tagged with a PASID has a table of its own. For the engine this is one more device,
//! alone in its group, which programs can neither see nor name. It is there while the
//! PASID is attached to something: by the program (IOASID_ATTACH_USER_PASID), or because DMA
//! has used an entry of a PASID table that is bound to what the device is attached to. In that
//! case it is attached to an address space that is as hidden, and translates by the page table
//! which the entry names.

use std::collections::{BTreeMap, BTreeSet};

use ioasid::pgtable::pasid::PasidFormat;
use ioasid::{DeviceId, GroupId, Ioasid};

/// Groups of PASIDs are numbered apart from those of devices.
const PASID_GROUPS: u64 = 1 << 48;

/// A PASID of a device.
pub type Tag = (DeviceId, u32);

/// The PASIDs of one open of the node.
#[derive(Debug, Default)]
pub struct Pasids {
    /// The device that stands for each, once it translates as it should.
    devices: BTreeMap<Tag, DeviceId>,
    /// All such devices, also those that are being made or taken down.
    stand_ins: BTreeMap<DeviceId, StandIn>,
    /// What was made of the entries of PASID tables.
    spaces: BTreeSet<Ioasid>,
    /// By the child that each is bound to.
    tables: BTreeMap<Ioasid, PasidTable>,
    last_group: u64,
}

/// A device that stands for a PASID.
#[derive(Clone, Debug)]
struct StandIn {
    tag: Tag,
    /// The program has attached the PASID.
    is_asked_for: bool,
    /// What it had to be attached to first, which the program did not ask for.
    implied: Vec<Ioasid>,
}

/// A PASID table of the program.
#[derive(Debug)]
pub struct PasidTable {
    /// What it looks like.
    pub format: PasidFormat,
    /// Where it is in the parent.
    pub address: u64,
    /// The log2 of its number of entries.
    pub bits: u32,
    /// What was read, by PASID and device: the hidden address space, or none where the entry says
    /// that addresses are the parent's.
    pub read: BTreeMap<Tag, Option<Ioasid>>,
}

impl Pasids {
    /// The device that stands for a PASID.
    pub fn device(&self, tag: Tag) -> Option<DeviceId> {
        self.devices.get(&tag).copied()
    }

    /// The same, if the program has attached the PASID.
    pub fn asked_for(&self, tag: Tag) -> Option<DeviceId> {
        let is_asked_for =
            |device: &DeviceId| self.stand_ins.get(device).is_some_and(|known| known.is_asked_for);
        self.device(tag).filter(is_asked_for)
    }

    /// `device` is being made to stand for a PASID.
    pub fn hide_device(&mut self, device: DeviceId, tag: Tag) {
        self.stand_ins.insert(device, StandIn { tag, is_asked_for: false, implied: vec![] });
    }

    /// From now on it translates, because the program has attached the PASID. `implied`: see
    /// [`implies`](Self::implies).
    pub fn insert_asked_for(&mut self, device: DeviceId, implied: Vec<Ioasid>) {
        if let Some(known) = self.stand_ins.get_mut(&device) {
            known.is_asked_for = true;
            known.implied = implied;
            self.devices.insert(known.tag, device);
        }
    }

    /// From now on it translates, as an entry of a PASID table says.
    pub fn insert_read(&mut self, child: Ioasid, device: DeviceId, space: Option<Ioasid>) {
        if let Some(known) = self.stand_ins.get(&device)
            && let Some(table) = self.tables.get_mut(&child)
        {
            self.devices.insert(known.tag, device);
            table.read.insert(known.tag, space);
        }
    }

    /// From now on it does not: it is being taken down. It stays hidden.
    pub fn remove(&mut self, device: DeviceId) {
        if let Some(known) = self.stand_ins.get(&device) {
            self.devices.remove(&known.tag);
        }
    }

    /// It could not be taken down, and translates as before.
    pub fn put_back(&mut self, device: DeviceId) {
        if let Some(known) = self.stand_ins.get(&device) {
            self.devices.insert(known.tag, device);
        }
    }

    /// It is gone.
    pub fn forget_device(&mut self, device: DeviceId) {
        self.remove(device);
        self.stand_ins.remove(&device);
    }

    /// Whether a PASID is attached to something only because the program has attached it to what
    /// is nested there.
    pub fn implies(&self, device: DeviceId, ioasid: Ioasid) -> bool {
        self.stand_ins.get(&device).is_some_and(|known| known.implied.contains(&ioasid))
    }

    /// Whose DMA it is that `device` translates, as far as the program has asked for that: for one
    /// that stands for a PASID, the device that has the PASID.
    pub fn stands_for(&self, device: DeviceId) -> Option<DeviceId> {
        match self.stand_ins.get(&device) {
            None => Some(device),
            Some(known) => known.is_asked_for.then_some(known.tag.0),
        }
    }

    /// A group for a device that is to stand for a PASID.
    pub fn next_group(&mut self) -> GroupId {
        self.last_group += 1;
        GroupId(PASID_GROUPS | self.last_group)
    }

    /// Whether programs must not name a device.
    pub fn hides_device(&self, device: DeviceId) -> bool {
        self.stand_ins.contains_key(&device)
    }

    /// `ioasid` is being made of an entry of a PASID table.
    pub fn hide_space(&mut self, ioasid: Ioasid) {
        self.spaces.insert(ioasid);
    }

    /// It is gone.
    pub fn forget_space(&mut self, ioasid: Ioasid) {
        self.spaces.remove(&ioasid);
    }

    /// Whether programs must not name an address space.
    pub fn hides_space(&self, ioasid: Ioasid) -> bool {
        self.spaces.contains(&ioasid)
    }

    /// What programs must not name.
    pub fn spaces(&self) -> impl Iterator<Item = Ioasid> {
        self.spaces.iter().copied()
    }

    /// Whether there is any device that programs must not name.
    pub fn any(&self) -> bool {
        !self.stand_ins.is_empty()
    }

    /// The PASIDs of a device that anything stands for.
    pub fn of(&self, device: DeviceId) -> impl Iterator<Item = u32> {
        self.devices.range((device, 0)..=(device, u32::MAX)).map(|(&(_, pasid), _)| pasid)
    }

    /// What tables are bound to.
    pub fn children(&self) -> impl Iterator<Item = Ioasid> {
        self.tables.keys().copied()
    }

    /// The table that is bound to a child.
    pub fn table(&self, ioasid: Ioasid) -> Option<&PasidTable> {
        self.tables.get(&ioasid)
    }

    /// The same, to be changed.
    pub fn table_mut(&mut self, ioasid: Ioasid) -> Option<&mut PasidTable> {
        self.tables.get_mut(&ioasid)
    }

    /// Binds a table to a child.
    pub fn bind(&mut self, ioasid: Ioasid, table: PasidTable) {
        self.tables.insert(ioasid, table);
    }

    /// Unbinds it. What was read is to be taken down before.
    pub fn unbind(&mut self, ioasid: Ioasid) {
        self.tables.remove(&ioasid);
    }
}

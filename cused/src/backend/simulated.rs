//! The software IOMMU and its simulated devices, for people without hardware and for tests.
//!
//! A simulated device does DMA when the program tells it to (IOASID_SIM_DMA). Every byte that it
//! moves goes through the tables kept here, which know nothing of the engine's: a wrong plan of
//! the engine shows as wrong data. Groups, page sizes, apertures and reserved ranges are as
//! configured.

use std::collections::BTreeMap;
use std::sync::Arc;

use ioasid::{Entry, Geometry, PageSizes, Prot, Range, RangeSet};
use parking_lot::Mutex;
use rustix::io::Errno;
use serde::Deserialize;

use crate::failure::Failure;
use crate::faults::queue::Reason;
use crate::memory::{Backing, Reach};

/// A simulated device as configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceConfig {
    /// What programs bind it by.
    pub name: String,
    /// Devices with the same group share one I/O page table.
    pub group: u32,
    /// Supported page sizes, bytes; each a power of two.
    #[serde(default = "default_page_sizes")]
    pub page_sizes: Vec<u64>,
    /// The lowest and the highest IOVA.
    #[serde(default = "default_aperture")]
    pub aperture: (u64, u64),
    /// Ranges inside the aperture that cannot be mapped: first and last IOVA.
    #[serde(default)]
    pub reserved: Vec<(u64, u64)>,
    /// How many mappings the table takes.
    #[serde(default = "default_max_mappings")]
    pub max_mappings: u32,
}

fn default_page_sizes() -> Vec<u64> {
    vec![4 << 10, 2 << 20, 1 << 30]
}

/// As under VT-d with 39 bits, and with its interrupt range.
fn default_aperture() -> (u64, u64) {
    (0, (1 << 39) - 1)
}

fn default_max_mappings() -> u32 {
    65535
}

impl DeviceConfig {
    /// A device with the defaults of an Intel machine, in a group of its own.
    pub fn plain(number: u32) -> Self {
        Self {
            name: format!("sim{number}"),
            group: number,
            page_sizes: default_page_sizes(),
            aperture: default_aperture(),
            reserved: vec![(0xfee0_0000, 0xfeef_ffff)],
            max_mappings: default_max_mappings(),
        }
    }

    /// What the device's table can hold, or the sentence that says what is wrong.
    pub fn geometry(&self) -> Result<Geometry, String> {
        let name = &self.name;
        if name.is_empty() || name.len() >= ioasid_uapi::NAME_LEN {
            return Err(format!(
                "simulated device {name:?}: a name has 1 to {} bytes",
                ioasid_uapi::NAME_LEN - 1
            ));
        }
        let page_sizes = &self.page_sizes;
        if page_sizes.is_empty()
            || page_sizes.iter().any(|size| *size < 4096 || !size.is_power_of_two())
        {
            return Err(format!(
                "simulated device {name}: page-sizes must be powers of two from 4096 on"
            ));
        }
        let permitted = self.permitted().ok_or_else(|| {
            format!(
                "simulated device {name}: aperture and reserved ranges are [first, last] with \
                 first <= last, the reserved ranges inside the aperture and apart from each other, \
                 and something must be left to map"
            )
        })?;
        let pgsizes = page_sizes.iter().fold(0, |bitmap, size| bitmap | size);
        Ok(Geometry { pgsizes: PageSizes(pgsizes), permitted, max_mappings: self.max_mappings })
    }

    /// The aperture without what is reserved in it.
    fn permitted(&self) -> Option<RangeSet> {
        let aperture = Range::new(self.aperture.0, self.aperture.1)?;
        let mut reserved = self.reserved.clone();
        reserved.sort_unstable();
        let mut permitted = Vec::new();
        // Where the next permitted range may begin; None behind the last address of all.
        let mut next = Some(aperture.start());
        for (first, last) in reserved {
            let reserved = Range::new(first, last).filter(|range| aperture.contains(*range))?;
            let begin = next.filter(|&begin| begin <= first)?;
            permitted.extend(first.checked_sub(1).and_then(|end| Range::new(begin, end)));
            next = reserved.last().checked_add(1);
        }
        permitted.extend(next.and_then(|begin| Range::new(begin, aperture.last())));
        (!permitted.is_empty()).then(|| permitted.into_iter().collect())
    }
}

#[derive(Debug)]
struct Group {
    geometry: Geometry,
    devices: Vec<String>,
    taken: bool,
}

/// All simulated devices of the daemon.
#[derive(Debug)]
pub struct Simulator {
    groups: Mutex<BTreeMap<u32, Group>>,
}

impl Simulator {
    /// The devices of a configuration.
    ///
    /// # Errors
    /// The sentence that says which device is wrong, and how.
    pub fn new(devices: &[DeviceConfig]) -> Result<Arc<Self>, String> {
        let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
        for device in devices {
            let geometry = device.geometry()?;
            if groups.values().any(|group| group.devices.contains(&device.name)) {
                return Err(format!("simulated device {}: the name is used twice", device.name));
            }
            let group = groups.entry(device.group).or_insert_with(|| Group {
                geometry: geometry.clone(),
                devices: Vec::new(),
                taken: false,
            });
            if group.geometry != geometry {
                return Err(format!(
                    "simulated device {}: differs from the other devices of group {}",
                    device.name, device.group
                ));
            }
            group.devices.push(device.name.clone());
        }
        Ok(Arc::new(Self { groups: Mutex::new(groups) }))
    }

    /// Whether there is any device.
    pub fn is_empty(&self) -> bool {
        self.groups.lock().is_empty()
    }

    /// The group of a device.
    ///
    /// # Errors
    /// ENOENT when there is no such device.
    pub fn group_of(&self, name: &str) -> Result<u32, Failure> {
        let groups = self.groups.lock();
        let found =
            groups.iter().find(|(_, group)| group.devices.iter().any(|device| device == name));
        found.map(|(&number, _)| number).ok_or_else(|| {
            let devices = groups.values().flat_map(|group| &group.devices).map(String::as_str);
            let all = devices.collect::<Vec<_>>().join(", ");
            Failure::new(
                Errno::NOENT,
                format!("there is no simulated device {name:?}; there are: {all}"),
            )
        })
    }

    /// Takes a group for one context.
    ///
    /// # Errors
    /// EBUSY when another has it.
    pub fn claim(self: &Arc<Self>, number: u32) -> Result<Table, Failure> {
        let mut groups = self.groups.lock();
        match groups.get_mut(&number) {
            Some(group) if !group.taken => {
                group.taken = true;
                let geometry = group.geometry.clone();
                let claim = Claim { simulator: Arc::clone(self), group: number, geometry };
                let geometry = claim.geometry.clone();
                Ok(Table { claims: vec![claim], geometry, extents: BTreeMap::new() })
            }
            _ => Err(Failure::new(
                Errno::BUSY,
                format!("simulated group {number} is bound to another open of this node"),
            )),
        }
    }
}

/// A group in the hands of one context.
#[derive(Debug)]
struct Claim {
    simulator: Arc<Simulator>,
    group: u32,
    geometry: Geometry,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(group) = self.simulator.groups.lock().get_mut(&self.group) {
            group.taken = false;
        }
    }
}

#[derive(Debug)]
struct Extent {
    entry: Entry,
    memory: Arc<Backing>,
    /// Where in the memory the offset of the entry counts from.
    base: u64,
}

impl Extent {
    fn last(&self) -> u64 {
        self.entry.iova + (self.entry.size - 1)
    }
}

/// The I/O page table of a simulated group, or of several.
#[derive(Debug)]
pub struct Table {
    /// None for the table of a PASID.
    claims: Vec<Claim>,
    geometry: Geometry,
    /// By IOVA. None overlaps another.
    extents: BTreeMap<u64, Extent>,
}

/// What a device transfers: bytes from memory, or to it.
#[derive(Debug)]
pub enum Transfer<'a> {
    /// The device reads memory.
    Read(&'a mut [u8]),
    /// The device writes memory.
    Write(&'a [u8]),
}

impl Transfer<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(buffer) => buffer.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }
}

/// DMA that did not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The IOVA.
    pub at: u64,
    /// Why.
    pub reason: Reason,
}

impl Refused {
    /// What whoever had the device do it is told.
    pub fn failure(self) -> Failure {
        let why = match self.reason {
            Reason::NotMapped | Reason::Unknown => "nothing is mapped there",
            Reason::Permission => "the mapping does not permit this direction",
            Reason::Memory => "the memory behind the mapping is gone",
        };
        let at = self.at;
        Failure::new(
            Errno::IO,
            format!("the simulated device met a DMA fault at IOVA {at:#x}: {why}"),
        )
    }
}

impl Table {
    /// What it holds, in ascending order.
    #[cfg(test)]
    pub fn entries(&self) -> Vec<Entry> {
        self.extents.values().map(|extent| extent.entry).collect()
    }

    /// A table for DMA with one PASID of a device.
    pub fn for_pasid(geometry: Geometry) -> Self {
        Self { claims: vec![], geometry, extents: BTreeMap::new() }
    }

    /// Has the groups of `other`, which maps nothing, share this table.
    pub fn merge(&mut self, other: &mut Self) {
        self.claims.append(&mut other.claims);
        self.share_geometry();
    }

    /// Lets a group go.
    pub fn leave(&mut self, group: u32) {
        self.claims.retain(|claim| claim.group != group);
        self.share_geometry();
    }

    fn share_geometry(&mut self) {
        let all = self.claims.iter().map(|claim| claim.geometry.clone());
        if let Some(geometry) = all.reduce(|a, b| a.shared(&b)) {
            self.geometry = geometry;
        }
    }

    /// What the table can hold.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// See [`Table::map`](super::Table::map).
    ///
    /// # Errors
    /// As there; EIO for what the engine must never ask: an overlap, or a forbidden place.
    pub fn map(
        &mut self,
        entry: &Entry,
        (memory, base): (&Arc<Backing>, u64),
    ) -> Result<(), Failure> {
        refusal::check()?;
        if memory.has_registers() {
            return Err(Failure::unsupported(
                "simulated devices cannot reach the registers of real ones",
            ));
        }
        let extent = Extent { entry: *entry, memory: Arc::clone(memory), base };
        let range = Range::new(entry.iova, extent.last());
        let permitted = self.geometry.permitted.as_slice();
        if !range.is_some_and(|range| permitted.iter().any(|whole| whole.contains(range))) {
            return Err(never("outside what the device can address"));
        }
        if self.extents.len() >= self.geometry.max_mappings as usize {
            return Err(Failure::new(Errno::NOSPC, "the simulated table is out of mappings"));
        }
        let below = self.extents.range(..=extent.last()).next_back();
        if below.is_some_and(|(_, below)| below.last() >= entry.iova) {
            return Err(never("mapped already"));
        }
        self.extents.insert(entry.iova, extent);
        Ok(())
    }

    /// See [`Table::unmap`](super::Table::unmap).
    ///
    /// # Errors
    /// EIO for what the engine must never ask: cutting a mapping.
    pub fn unmap(&mut self, iova: u64, size: u64) -> Result<(), Failure> {
        refusal::check()?;
        let last = iova + (size - 1);
        let before = self.extents.range(..iova).next_back();
        let inside = self.extents.range(iova..=last).next_back();
        if before.is_some_and(|(_, extent)| extent.last() >= iova)
            || inside.is_some_and(|(_, extent)| extent.last() > last)
        {
            return Err(never("only partly in the range to unmap"));
        }
        let starts: Vec<_> = self.extents.range(iova..=last).map(|(&start, _)| start).collect();
        for start in starts {
            self.extents.remove(&start);
        }
        Ok(())
    }

    /// See [`Table::clear`](super::Table::clear).
    ///
    /// # Errors
    /// None but those that tests ask for.
    pub fn clear(&mut self) -> Result<(), Failure> {
        refusal::check()?;
        self.extents.clear();
        Ok(())
    }

    /// A device of the group does DMA from `iova` on. Returns how many bytes it moved and, when
    /// that is not all, the fault that it met.
    pub fn dma(&self, iova: u64, mut transfer: Transfer<'_>) -> (u64, Option<Refused>) {
        let mut done = 0;
        while done < transfer.len() {
            let at = iova + done as u64;
            match self.step(at, &mut transfer, done) {
                Ok(moved) => done += moved,
                Err(reason) => return (done as u64, Some(Refused { at, reason })),
            }
        }
        (done as u64, None)
    }

    /// Moves as much as one page gives, so that what was moved before a fault is known exactly.
    fn step(&self, at: u64, transfer: &mut Transfer<'_>, done: usize) -> Result<usize, Reason> {
        const PAGE: u64 = 4096;
        let below = self.extents.range(..=at).next_back();
        let (_, extent) =
            below.filter(|(_, extent)| extent.last() >= at).ok_or(Reason::NotMapped)?;
        let Prot { read, write } = extent.entry.prot;
        if !(if matches!(transfer, Transfer::Read(_)) { read } else { write }) {
            return Err(Reason::Permission);
        }
        let inside = at - extent.entry.iova;
        let room = (extent.entry.size - inside).min(PAGE - at % PAGE) as usize;
        let len = room.min(transfer.len() - done);
        let from = extent.base + extent.entry.offset + inside;
        let copied = extent.memory.visit(from..from + len as u64, PAGE, |position, reach| {
            let begin = done + position as usize;
            let end = begin + reach.len() as usize;
            match (&mut *transfer, reach) {
                (Transfer::Read(buffer), Reach::Here(view)) => view.read(&mut buffer[begin..end]),
                (Transfer::Write(bytes), Reach::Here(view)) => view.write(&bytes[begin..end]),
                (Transfer::Read(buffer), Reach::There(there)) => {
                    there.read(&mut buffer[begin..end])
                }
                (Transfer::Write(bytes), Reach::There(there)) => there.write(&bytes[begin..end]),
                (_, Reach::Registers(_)) => Err(Errno::FAULT),
            }
        });
        copied.map_err(|_: Errno| Reason::Memory)?;
        Ok(len)
    }
}

fn never(what: &str) -> Failure {
    Failure::new(Errno::IO, format!("the simulated table was asked for a range that is {what}"))
}

#[cfg(not(test))]
mod refusal {
    pub(super) fn check() -> Result<(), crate::failure::Failure> {
        Ok(())
    }
}

/// Refusals that unit tests ask for, of what their own thread has tables do.
#[cfg(test)]
pub mod refusal {
    use std::cell::Cell;

    use rustix::io::Errno;

    use crate::failure::Failure;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Has the operation refused that comes after so many others.
    pub fn after(operations: usize) {
        LEFT.set(Some(operations));
    }

    /// Ends that; says whether it came to a refusal.
    pub fn end() -> bool {
        LEFT.take().is_none()
    }

    pub(super) fn check() -> Result<(), Failure> {
        match LEFT.get() {
            Some(0) => {
                LEFT.set(None);
                Err(Failure::new(Errno::NOLINK, "a test wants this to be refused"))
            }
            left => {
                LEFT.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}

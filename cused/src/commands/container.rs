//! The open as a VFIO container: the ioctls of /dev/vfio/vfio on the node, with the meaning and the
//! errnos of VFIO type1 (drivers/vfio/container.c and vfio_iommu_type1.c of Linux 6.1 and 6.12).
//!
//! A container is one IOASID behind another interface:
//!
//! | of VFIO                     | here                                                           |
//! |-----------------------------|----------------------------------------------------------------|
//! | VFIO_GROUP_SET_CONTAINER    | BIND_DEVICE: the group ioctl cannot reach us                   |
//! | VFIO_GROUP_UNSET_CONTAINER  | UNBIND_DEVICE of the group's devices; the last takes all along |
//! | VFIO_SET_IOMMU              | ALLOC, then ATTACH_DEVICE of every device that is unattached   |
//! | VFIO_IOMMU_MAP_DMA, _UNMAP_DMA | MAP_DMA, UNMAP_DMA                                          |
//! | VFIO_IOMMU_GET_INFO         | GET_INFO                                                       |
//! | VFIO_IOMMU_DIRTY_PAGES      | DIRTY                                                          |
//!
//! Devices that are bound after SET_IOMMU are attached with their bind. Real groups share one table
//! as they do in a container of VFIO: those of before SET_IOMMU that are not open yet, and all that
//! come later. The IOASID is an ordinary one, which GET_DEVICE_INFO names: every command of the node
//! works on it, and other IOASIDs may be beside it.
//!
//! Two things of type1 are not there, and CHECK_EXTENSION says so: changing the vaddr of mappings
//! (VFIO_UPDATE_VADDR) and nesting in hardware (VFIO_TYPE1_NESTING_IOMMU). Of dirty pages less can be
//! asked for at a time, as VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION says.

mod dirty;

use ioasid::{DeviceId, GroupId, Ioasid, PageSizes, Range, Unmap};
use ioasid_uapi as uapi;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_CC_IOMMU, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_TYPE,
    VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU as VFIO_TYPE1V2_IOMMU, VFIO_UNMAP_ALL,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Command, Done, Mapping};
use crate::argument::Stop;
use crate::context::{Claim, Container, HomeId, State, Turn};
use crate::failure::Failure;

const fn io(number: u32) -> u32 {
    (VFIO_TYPE as u32) << 8 | (VFIO_BASE + number)
}

const GET_API_VERSION: u32 = io(0);
const CHECK_EXTENSION: u32 = io(1);
const SET_IOMMU: u32 = io(2);
const GET_INFO: u32 = io(12);
const MAP_DMA: u32 = io(13);
const UNMAP_DMA: u32 = io(14);
const DIRTY_PAGES: u32 = io(17);
/// VFIO's numbers end here; those of iommufd begin.
const LAST: u32 = io(27);

/// Whether a command is one that VFIO defines, on a container or on something else.
pub(super) fn is_command(command: u32) -> bool {
    (GET_API_VERSION..=LAST).contains(&command)
}

/// `struct vfio_iommu_type1_dma_map`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

/// `struct vfio_iommu_type1_dma_unmap`, without what follows it for VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

/// `struct vfio_iommu_type1_info`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Info {
    argsz: u32,
    flags: u32,
    pgsizes: u64,
    cap_offset: u32,
    pad: u32,
}

const _: () = assert!(size_of::<DmaMap>() == size_of::<vfio_iommu_type1_dma_map>());
const _: () = assert!(size_of::<DmaUnmap>() == size_of::<vfio_iommu_type1_dma_unmap>());
const _: () = assert!(size_of::<Info>() == size_of::<vfio_iommu_type1_info>());
/// Up to `pgsizes`, as before capabilities existed.
const INFO_SIZE_MIN: usize = 16;
/// With `cap_offset`, and without the padding behind it.
const INFO_SIZE_CAPS: usize = 20;

/// The table that a group which is being bound shares, if the open is a container: type1 has its real
/// groups share one wherever it can.
pub(super) fn table_for(state: &State, home: HomeId) -> Option<GroupId> {
    let ioasid = state.container().filter(|_| matches!(home, HomeId::Vfio(_)))?.ioasid;
    first_real(state, ioasid)
}

/// The table of the first real device that is attached to an I/O address space.
fn first_real(state: &State, ioasid: Ioasid) -> Option<GroupId> {
    let mut devices = state.engine.devices();
    devices.find(|info| info.ioasid == Some(ioasid) && !info.simulated).map(|info| info.group)
}

/// What type1 says where the contract of the node has another errno, for its own reasons: more telling
/// ones, or one answer on all kernels.
fn of_type1(errno: Errno) -> Errno {
    match errno {
        // Reserved IOVAs: vfio_dma_do_map, vfio_iommu_iova_dma_valid.
        Errno::ADDRINUSE
        // Addresses that wrap: vfio_dma_do_map and _unmap. (EOVERFLOW from Linux 6.18 on, and where
        // that was ported back.)
        | Errno::OVERFLOW
        // There is no IOMMU: vfio_fops_unl_ioctl without a driver.
        | Errno::NODEV
        | Errno::NOENT => Errno::INVAL,
        // The program may not write the memory, or it is of a kind that cannot be pinned:
        // vaddr_get_pfns, pin_user_pages_remote, check_vma_flags.
        Errno::PERM | Errno::OPNOTSUPP => Errno::FAULT,
        other => other,
    }
}

fn as_type1(stop: Stop) -> Stop {
    match stop {
        Stop::Refuse(failure) => {
            Stop::Refuse(Failure { errno: of_type1(failure.errno), ..failure })
        }
        other => other,
    }
}

fn refuse<T>(errno: Errno, sentence: &'static str) -> Result<T, Stop> {
    Err(Failure::new(errno, sentence).into())
}

impl<'a> Command<'a, '_, '_> {
    /// Serves an ioctl of VFIO.
    pub(super) fn container(&mut self, command: u32, arg: u64) -> Done {
        match command {
            GET_API_VERSION => return Ok(VFIO_API_VERSION.cast_signed()),
            CHECK_EXTENSION => return self.container_extension(arg),
            SET_IOMMU => return self.set_iommu(arg),
            _ => {}
        }
        let Some(container) = self.context.state().container() else {
            return refuse(
                Errno::INVAL,
                "this open of the node is no VFIO container yet: bind devices, then VFIO_SET_IOMMU",
            );
        };
        match command {
            GET_INFO => self.container_info(container, arg),
            MAP_DMA => self.container_map(container, arg),
            UNMAP_DMA => self.container_unmap(container, arg),
            DIRTY_PAGES => self.container_dirty(container, arg),
            _ => refuse(Errno::NOTTY, "this command of VFIO is none of a container on this node"),
        }
    }

    fn container_extension(&mut self, arg: u64) -> Done {
        let Ok(extension) = u32::try_from(arg) else { return Ok(0) };
        let container = self.context.state().container();
        Ok(match (extension, container) {
            (VFIO_TYPE1_IOMMU | VFIO_TYPE1V2_IOMMU | VFIO_UNMAP_ALL, _) => 1,
            (VFIO_DMA_CC_IOMMU, Some(Container { ioasid, .. })) => {
                // So that no table is being worked on.
                let _turn = self.turn(&[Claim::Space(ioasid)])?;
                let tables = self.context.state().tables_of(ioasid);
                tables.iter().all(|table| table.lock().is_coherent()).into()
            }
            _ => 0,
        })
    }

    fn set_iommu(&mut self, arg: u64) -> Done {
        let turn = self.all_groups_turn()?;
        let state = self.context.state();
        // Of a group that is attached elsewhere, none of the devices can be attached here.
        let is_free = |group| state.engine.tables().any(|t| t.group == group && t.shows.is_none());
        let bound = state.engine.devices().filter(|info| state.home_of(info.id).is_some());
        let devices: Vec<_> =
            bound.filter(|info| is_free(info.group)).map(|info| info.id).collect();
        if state.container().is_some() {
            return refuse(Errno::INVAL, "this open of the node has its IOMMU model already");
        }
        if devices.is_empty() {
            return refuse(
                Errno::INVAL,
                "no device is bound to this open of the node, or all are attached to IOASIDs: bind one first",
            );
        }
        drop(state);
        let is_v1 = match u32::try_from(arg) {
            Ok(VFIO_TYPE1_IOMMU) => true,
            Ok(VFIO_TYPE1V2_IOMMU) => false,
            _ => {
                return refuse(
                    Errno::NODEV,
                    "only VFIO_TYPE1_IOMMU and VFIO_TYPE1v2_IOMMU are IOMMU models here",
                );
            }
        };
        let ioasid = self.context.state().engine.alloc()?;
        let attached = self.attach_all(&turn, &devices, ioasid);
        if let Err(stop) = attached {
            self.undo_container(&turn, &devices, ioasid)?;
            return Err(as_type1(stop));
        }
        self.context.state().set_container(Some(Container { ioasid, is_v1 }));
        Ok(0)
    }

    /// Attaches devices to a new I/O address space, whose number somebody may guess.
    fn attach_all(
        &mut self,
        turn: &Turn<'_>,
        devices: &[DeviceId],
        ioasid: Ioasid,
    ) -> Result<(), Stop> {
        // Whoever has this turn waits for no other.
        let _space = self.turn(&[Claim::Space(ioasid)])?;
        for &device in devices {
            self.attach_to_container(turn, device, ioasid)?;
        }
        self.share_tables(ioasid);
        Ok(())
    }

    /// The turn to change all groups that there are.
    fn all_groups_turn(&self) -> Result<Turn<'a>, Stop> {
        let groups = || -> Vec<_> {
            let state = self.context.state();
            state.engine.tables().map(|table| Claim::Group(table.group)).collect()
        };
        loop {
            let seen = groups();
            let turn = self.turn(&[&seen[..], &[Claim::Devices]].concat())?;
            if groups() == seen {
                return Ok(turn);
            }
        }
    }

    fn attach_to_container(
        &mut self,
        turn: &Turn<'_>,
        device: DeviceId,
        ioasid: Ioasid,
    ) -> Result<(), Stop> {
        let state = self.context.state();
        let plan = state.engine.plan_attach(device, ioasid)?;
        let group = state.engine.device_info(device)?.group;
        drop(state);
        self.track_for(group, ioasid)?;
        self.follow(turn, plan).map(drop)
    }

    fn undo_container(
        &self,
        turn: &Turn<'_>,
        devices: &[DeviceId],
        ioasid: Ioasid,
    ) -> Result<(), Failure> {
        for &device in devices {
            let plan = self.context.state().engine.plan_detach(device, ioasid);
            if let Ok(plan) = plan {
                turn.execute_simply(plan)?;
            }
        }
        let plan = self.context.state().engine.plan_free(ioasid)?;
        turn.execute_simply(plan)?;
        Ok(())
    }

    /// Has the real groups that are attached to an I/O address space which maps nothing share one table.
    /// Those that cannot keep their own: what is mapped later is then entered in each.
    fn share_tables(&self, ioasid: Ioasid) {
        let state = self.context.state();
        let Some(into) = first_real(&state, ioasid) else { return };
        let devices = state
            .engine
            .devices()
            .filter(|info| info.ioasid == Some(ioasid) && !info.simulated && info.group != into);
        let mut others: Vec<_> = devices.map(|info| info.group).collect();
        others.dedup();
        drop(state);
        for from in others {
            if let Err(why) = self.share_table(from, into) {
                log::debug!("group {from} keeps a table of its own: {why}");
            }
        }
    }

    fn share_table(&self, from: GroupId, into: GroupId) -> Result<(), Failure> {
        let state = self.context.state();
        let tables = state.table(from).cloned().zip(state.table(into).cloned());
        drop(state);
        let Some((source, target)) = tables else { return Ok(()) };
        let mut table = target.lock();
        table.merge(&mut source.lock())?;
        let geometry = table.geometry().clone();
        drop(table);
        let mut state = self.context.state();
        state.engine.regroup(into, geometry, "")?;
        state.engine.merge(from, into)?;
        let garbage = state.merge_tables(from, into);
        drop(state);
        drop(garbage);
        Ok(())
    }

    /// Attaches a device that was just bound, if the open is a container.
    pub(super) fn join_container(&mut self, turn: &Turn<'_>, device: DeviceId) -> Result<(), Stop> {
        let container = self.context.state().container();
        container.map_or(Ok(()), |own| self.attach_to_container(turn, device, own.ioasid))
    }

    /// A device was unbound. A container that has none any more is as it was before SET_IOMMU:
    /// vfio_group_detach_container.
    pub(super) fn leave_container(&self, turn: &Turn<'_>) -> Result<(), Failure> {
        let mut state = self.context.state();
        let Some(Container { ioasid, .. }) = state.container() else { return Ok(()) };
        if state.engine.devices().any(|info| info.ioasid == Some(ioasid)) {
            return Ok(());
        }
        // If something is nested on it, it has to stay.
        let Ok(plan) = state.engine.plan_free(ioasid) else { return Ok(()) };
        state.set_container(None);
        drop(state);
        turn.execute_simply(plan).map(drop)
    }

    fn container_info(&mut self, container: Container, arg: u64) -> Done {
        let mut info = Info { argsz: 0, flags: 0, pgsizes: 0, cap_offset: 0, pad: 0 };
        self.memory.read(arg, &mut info.as_mut_bytes()[..INFO_SIZE_MIN])?;
        let room = info.argsz as usize;
        if room < INFO_SIZE_MIN {
            return refuse(Errno::INVAL, "argsz is shorter than the structure up to iova_pgsizes");
        }
        let turn = self.turn(&[Claim::Space(container.ioasid)])?;
        let space = self.context.state().engine.info(container.ioasid).map_err(Failure::from)?;
        drop(turn);
        let avail = u64::from(space.max_mappings).saturating_sub(space.nr_mappings) as u32;
        let mut capabilities = Capabilities::default();
        let migration = dirty::migration(space.pgsizes.smallest().unwrap_or(1));
        capabilities.add(VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, migration.as_bytes());
        capabilities.add(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, avail.as_bytes());
        let ranges = space.permitted.as_slice();
        let mut listed = vec![ranges.len() as u64];
        listed.extend(ranges.iter().flat_map(|range| [range.start(), range.last()]));
        capabilities.add(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, listed.as_bytes());
        let capabilities = capabilities.bytes;
        info.flags = VFIO_IOMMU_INFO_PGSIZES | VFIO_IOMMU_INFO_CAPS;
        info.pgsizes = space.pgsizes.0;
        let needed = size_of::<Info>() + capabilities.len();
        let known = if room < INFO_SIZE_CAPS { INFO_SIZE_MIN } else { room.min(size_of::<Info>()) };
        let has_room = room >= needed;
        match has_room {
            true => info.cap_offset = size_of::<Info>() as u32,
            false => info.argsz = needed as u32,
        }
        let written = if has_room { needed } else { known };
        let output = self.memory.reserve(arg, written);
        self.memory.ready()?;
        let bytes = [info.as_bytes(), &capabilities].concat();
        self.memory.write(output, &bytes[..written])?;
        Ok(0)
    }

    fn container_map(&mut self, container: Container, arg: u64) -> Done {
        let mut map = DmaMap { argsz: 0, flags: 0, vaddr: 0, iova: 0, size: 0 };
        self.memory.read(arg, map.as_mut_bytes())?;
        let DmaMap { argsz, flags, vaddr, iova, size } = map;
        if (argsz as usize) < size_of::<DmaMap>() {
            return refuse(Errno::INVAL, "argsz is shorter than the structure");
        }
        if flags & !(VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE) != 0 {
            return refuse(Errno::INVAL, "flags has unknown bits");
        }
        let mut rights = 0;
        if flags & VFIO_DMA_MAP_FLAG_READ != 0 {
            rights |= uapi::MAP_READ;
        }
        if flags & VFIO_DMA_MAP_FLAG_WRITE != 0 {
            rights |= uapi::MAP_WRITE;
        }
        let mapping = Mapping::new(rights, 0, (vaddr, iova, size))?;
        self.map_once(container.ioasid, &mapping).map_err(|stop| match stop {
            Stop::Refuse(failure) => {
                let found = self.conflict(container.ioasid, &mapping, failure.errno);
                as_type1(Stop::Refuse(Failure { errno: found, ..failure }))
            }
            other => other,
        })
    }

    /// type1 looks at conflicts and the limit first, and then whether the IOVAs can be used at all.
    fn conflict(&self, ioasid: Ioasid, map: &Mapping, errno: Errno) -> Errno {
        if !matches!(errno, Errno::ADDRINUSE | Errno::INVAL) {
            return errno;
        }
        let state = self.context.state();
        let Ok(info) = state.engine.info(ioasid) else { return errno };
        let is_shaped = map.flags != 0
            && is_range(info.pgsizes, map.iova, map.size)
            && is_range(info.pgsizes, map.vaddr, map.size);
        let Ok(mut mappings) = state.engine.mappings(ioasid) else { return errno };
        if !is_shaped {
            return errno;
        }
        let last = map.iova + (map.size - 1);
        if mappings.any(|other| other.range.start() <= last && map.iova <= other.range.last()) {
            return Errno::EXIST;
        }
        let is_full = info.nr_mappings >= u64::from(info.max_mappings);
        if is_full { Errno::NOSPC } else { errno }
    }

    fn container_unmap(&mut self, container: Container, arg: u64) -> Done {
        let mut unmap = DmaUnmap { argsz: 0, flags: 0, iova: 0, size: 0 };
        self.memory.read(arg, unmap.as_mut_bytes())?;
        let DmaUnmap { argsz, flags, iova, size } = unmap;
        if (argsz as usize) < size_of::<DmaUnmap>() {
            return refuse(Errno::INVAL, "argsz is shorter than the structure");
        }
        let all = flags & VFIO_DMA_UNMAP_FLAG_ALL != 0;
        let dirty = flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP != 0;
        if flags & !(VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) != 0 {
            return refuse(Errno::INVAL, "flags has unknown bits");
        }
        if dirty && all {
            return refuse(Errno::INVAL, "dirty pages are told of a range, not of everything");
        }
        if dirty {
            return self.unmap_with_bitmap(container, &mut unmap, arg).map_err(as_type1);
        }
        let output = self.memory.reserve(arg, size_of::<DmaUnmap>());
        self.memory.ready()?;
        self.memory.check_writable(output, unmap.as_bytes())?;
        if all && (iova, size) != (0, 0) {
            return refuse(Errno::INVAL, "to unmap everything, iova and size must be 0");
        }
        let what = if all { Unmap::All } else { Unmap::Range { iova, size } };
        unmap.size = self.unmap_as(container, what).map_err(as_type1)?;
        self.memory.write(output, unmap.as_bytes())?;
        Ok(0)
    }

    fn unmap_as(&mut self, container: Container, what: Unmap) -> Result<u64, Stop> {
        let turn = self.turn(&[Claim::Space(container.ioasid)])?;
        let what = match (container.is_v1, what) {
            (true, Unmap::Range { iova, size }) => {
                match self.whole(container.ioasid, iova, size)? {
                    Some(what) => what,
                    None => return Ok(0),
                }
            }
            (_, what) => what,
        };
        let size = self.unmap(&turn, container.ioasid, what)?;
        let gone = match what {
            Unmap::Range { iova, size } => Range::from_size(iova, size),
            Unmap::All => Some(Range::ALL),
        };
        let mut state = self.context.state();
        if let Some(gone) = gone.filter(|_| state.engine.is_tracking(container.ioasid)) {
            // type1 forgets what was written of a mapping with the mapping.
            state.engine.take_written(container.ioasid, gone).map_err(Failure::from)?;
        }
        Ok(size)
    }

    /// What VFIO_TYPE1_IOMMU unmaps for a range: nothing if it begins in the middle of a mapping;
    /// otherwise every mapping that begins in it, the last one too where it ends behind the range.
    fn whole(&self, ioasid: Ioasid, iova: u64, size: u64) -> Result<Option<Unmap>, Failure> {
        let state = self.context.state();
        if !is_range(state.engine.info(ioasid)?.pgsizes, iova, size) {
            return Err(Failure::invalid("iova or size is misaligned, size is 0, or they wrap"));
        }
        if state.engine.translate(ioasid, iova).is_some_and(|found| found.offset != 0) {
            return Ok(None);
        }
        let last = iova + (size - 1);
        let last = state.engine.translate(ioasid, last).map_or(last, |found| found.last);
        let size = (last - iova).checked_add(1);
        Ok(Some(size.map_or(Unmap::All, |size| Unmap::Range { iova, size })))
    }
}

/// Whether a range is some, aligned to the smallest page size, and within 64 bits.
fn is_range(pgsizes: PageSizes, start: u64, size: u64) -> bool {
    let page = pgsizes.smallest().unwrap_or(1);
    size != 0 && (start | size).is_multiple_of(page) && start.checked_add(size - 1).is_some()
}

/// The capabilities behind `struct vfio_iommu_type1_info`, each led to by the one before: as
/// vfio_info_cap_add makes them, with the alignment that it has since Linux 6.6.
#[derive(Debug, Default)]
struct Capabilities {
    bytes: Vec<u8>,
    /// Where the last of them begins.
    last: Option<usize>,
}

impl Capabilities {
    fn add(&mut self, id: u32, body: &[u8]) {
        let begin = self.bytes.len();
        // struct vfio_info_cap_header: id, version, and where in the whole the next one is, if any.
        let (id, version, next) = (id as u16, 1u16, 0u32);
        if let Some(last) = self.last.replace(begin) {
            let next = (size_of::<Info>() + begin) as u32;
            self.bytes[last + 4..last + 8].copy_from_slice(next.as_bytes());
        }
        for part in [id.as_bytes(), version.as_bytes(), next.as_bytes(), body] {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(size_of::<u64>()), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_vfio() {
        assert_eq!((GET_API_VERSION, MAP_DMA, UNMAP_DMA), (0x3b64, 0x3b71, 0x3b72));
        assert!(is_command(LAST) && !is_command(LAST + 1) && !is_command(0x3b80));
    }

    #[test]
    fn each_capability_leads_to_the_next() {
        let mut capabilities = Capabilities::default();
        capabilities.add(3, &[1, 2, 3, 4]);
        capabilities.add(1, &[9; 8]);
        let (first, second) = capabilities.bytes.split_at(16);
        assert_eq!(first, [3, 0, 1, 0, 24 + 16, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(second, [1, 0, 1, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]);
    }
}

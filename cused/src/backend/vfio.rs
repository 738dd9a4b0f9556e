//! VFIO: a group that a program brought, and the type1 container that translates for it.
//!
//! The daemon never opens a group or a device. It takes the group descriptor that the program
//! names, checks that this is one, and gives the group a container: one of its own, or that of
//! another group of the program. The devices are then the program's to open and to use, without the
//! daemon.

mod dirty;
mod ioctl;
pub mod kernel_log;
mod trace;

pub use ioctl::Region;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ioasid::{Entry, Geometry, PageSizes, Prot, Range, RangeSet};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, open};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::Effort;
use crate::failure::Failure;
use crate::in_context::Led;
use crate::memory::{self, Backing, Foreign, Reach};
use crate::process::Process;

const CONTAINER_NODE: &str = "/dev/vfio/vfio";
/// The most that is pinned in one go, bytes: between these steps progress is shown and a killed
/// program is noticed. Each takes one of the container's mappings; at this size they last for 8 TiB.
const STRIDE: u64 = 128 << 20;
/// type1's own limit, when the container does not say (module parameter dma_entry_limit).
const DEFAULT_ENTRY_LIMIT: u32 = 65535;

/// Whether this host has VFIO at all.
pub fn available() -> bool {
    Path::new(CONTAINER_NODE).exists()
}

/// A group descriptor that a program opened, checked to be one.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    number: u32,
}

impl Group {
    /// Takes over a descriptor that a program named.
    ///
    /// What it is, is asked of the kernel by its device number and not by an ioctl: an ioctl on a
    /// node of the caller's own making could do anything, or never return.
    ///
    /// # Errors
    /// EINVAL when it is no VFIO group; EOPNOTSUPP for a group without an IOMMU.
    pub fn new(fd: OwnedFd) -> Result<Self, Failure> {
        // A descriptor opened with O_PATH names a group and gives no right to it.
        let is_open = fcntl_getfl(&fd).is_ok_and(|flags| !flags.contains(OFlags::PATH));
        let name = class_device(&fd, "vfio").filter(|_| is_open).ok_or_else(|| {
            Failure::invalid(
                "the descriptor is no VFIO group: open /dev/vfio/N, N the group number",
            )
        })?;
        match name.parse() {
            Ok(number) => Ok(Self { fd, number }),
            Err(_) => Err(Failure::unsupported(format!(
                "group {name} has no IOMMU, so that its devices cannot be confined"
            ))),
        }
    }

    /// Its IOMMU group number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Checks that the group has a device of this name, ready for VFIO.
    ///
    /// # Errors
    /// ENOENT otherwise.
    pub fn check_device(&self, name: &str) -> Result<(), Failure> {
        let devices = PathBuf::from(format!("/sys/kernel/iommu_groups/{}/devices", self.number));
        let missing = |what: String| Err(Failure::new(Errno::NOENT, what));
        let is_file_name = !name.contains('/') && name != "." && name != "..";
        let device = devices.join(name);
        if !is_file_name || !device.exists() {
            let present = names(&devices).join(", ");
            return missing(format!(
                "group {} has no device {name:?}; it has {present}",
                self.number
            ));
        }
        let driver = fs::read_link(device.join("driver")).unwrap_or_default();
        let driver = driver.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match driver.contains("vfio") {
            true => Ok(()),
            false => missing(format!(
                "device {name} is not bound to a VFIO driver (it has {}): bind it to vfio-pci",
                if driver.is_empty() { "none" } else { &driver }
            )),
        }
    }
}

impl Group {
    /// Opens a device of the group and finds one of its regions, to be mapped into memory.
    ///
    /// # Errors
    /// What the kernel says; EOPNOTSUPP when the region cannot be mapped into memory.
    pub fn open_region(&self, name: &str, index: u32) -> Result<(OwnedFd, Region), Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let device = ioctl::device(&self.fd, &name)?;
        let region = ioctl::region(&device, index)?;
        Ok((device, region))
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// The name of a character device in class `class`, if `fd` is open on one.
fn class_device(fd: &OwnedFd, class: &str) -> Option<String> {
    let attributes = memory::attributes(fd).ok()?;
    if FileType::from_raw_mode(attributes.stx_mode.into()) != FileType::CharacterDevice {
        return None;
    }
    let (major, minor) = (attributes.stx_rdev_major, attributes.stx_rdev_minor);
    let link = fs::canonicalize(format!("/sys/dev/char/{major}:{minor}")).ok()?;
    let subsystem = fs::canonicalize(link.join("subsystem")).ok()?;
    (subsystem.file_name()? == class).then(|| link.file_name()?.to_str().map(str::to_owned))?
}

/// A type1 container with the groups in it, ready to map. Dropping it unmaps everything and lets
/// the groups go.
#[derive(Debug)]
pub struct Container {
    fd: OwnedFd,
    /// The groups that share it; none once the last was let go.
    groups: Vec<Arc<Group>>,
    geometry: Geometry,
    /// The kernel tracks dirty pages.
    tracks: bool,
    /// What was mapped by led callers, by IOVA: its length, and whom the kernel charges for it.
    led: BTreeMap<u64, (u64, Arc<Process>)>,
}

impl Container {
    /// Makes a container for the group.
    ///
    /// # Errors
    /// EBUSY when the group has one already; EPERM when it is not viable or interrupts
    /// are not remapped; EOPNOTSUPP when the host has no type1 v2, or the group no IOMMU.
    pub fn new(group: Group) -> Result<Self, Failure> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = open(CONTAINER_NODE, flags, Mode::empty()).map_err(|error| {
            Failure::unsupported(format!(
                "{CONTAINER_NODE} cannot be opened: {error}; run: modprobe vfio-pci"
            ))
        })?;
        ioctl::set_container(&group.fd, &fd).map_err(|error| refuse_container(&group, error))?;
        let enabled = ioctl::set_type1v2(&fd).map_err(|error| refuse_iommu(group.number, error));
        match enabled.and_then(|()| geometry(&fd, group.number)) {
            Ok(geometry) => {
                let groups = vec![Arc::new(group)];
                Ok(Self { fd, groups, geometry, tracks: false, led: BTreeMap::new() })
            }
            Err(failure) => {
                let _ = ioctl::unset_container(&group.fd);
                Err(failure)
            }
        }
    }

    fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Has another group share the container: what is mapped, its devices reach too. What can be
    /// mapped may be less from then on.
    ///
    /// # Errors
    /// EBUSY when the group has a container already; EPERM when it is not viable; EINVAL when
    /// its IOMMU differs, or it cannot use an IOVA that is mapped. The container is as it was.
    pub fn join(&mut self, group: Group) -> Result<(), Failure> {
        self.take(Arc::new(group))
    }

    fn take(&mut self, group: Arc<Group>) -> Result<(), Failure> {
        ioctl::set_container(&group.fd, &self.fd).map_err(|error| refuse_join(&group, error))?;
        match self.shared_geometry(group.number) {
            Ok(geometry) => {
                self.geometry = geometry;
                self.groups.push(group);
                Ok(())
            }
            Err(failure) => {
                let _ = ioctl::unset_container(&group.fd);
                Err(failure)
            }
        }
    }

    /// Lets a group go: no device descriptor of it, nor a mapping of a device's registers, may be
    /// open. For the others all stays as it is; with the last, everything is unmapped.
    ///
    /// # Errors
    /// EBUSY.
    pub fn leave(&mut self, number: u32) -> Result<(), Failure> {
        let Some(place) = self.groups.iter().position(|group| group.number == number) else {
            return Ok(());
        };
        ioctl::unset_container(&self.groups[place].fd).map_err(|error| match error {
            Errno::BUSY => Failure::new(
                Errno::BUSY,
                format!(
                    "a device of group {number} is still open: close its descriptor and unmap its registers first, \
                     also from the IOASIDs that map them for other devices"
                ),
            ),
            other => unexpected("VFIO_GROUP_UNSET_CONTAINER", other),
        })?;
        self.groups.remove(place);
        if let Some(other) = self.groups.first()
            && let Ok(geometry) = self.shared_geometry(other.number)
        {
            self.geometry = geometry;
        }
        Ok(())
    }

    /// Takes all groups out of this container, which maps nothing, into another: see
    /// [`leave`](Self::leave) and [`join`](Self::join).
    ///
    /// # Errors
    /// Theirs. All groups are then back where they were.
    pub fn move_groups(&mut self, into: &mut Self) -> Result<(), Failure> {
        let mut moved: Vec<Arc<Group>> = vec![];
        while let Some(group) = self.groups.last().cloned() {
            if let Err(failure) = self.move_group(&group, into) {
                for group in moved {
                    into.leave(group.number)?;
                    self.take_back(group)?;
                }
                return Err(failure);
            }
            moved.push(group);
        }
        Ok(())
    }

    fn move_group(&mut self, group: &Arc<Group>, into: &mut Self) -> Result<(), Failure> {
        self.leave(group.number)?;
        let taken = into.take(Arc::clone(group));
        if taken.is_err() {
            self.take_back(Arc::clone(group))?;
        }
        taken
    }

    fn take_back(&mut self, group: Arc<Group>) -> Result<(), Failure> {
        ioctl::set_container(&group.fd, &self.fd)
            .map_err(|error| refuse_container(&group, error))?;
        if self.groups.is_empty() {
            // The last to leave has taken the IOMMU model with it.
            ioctl::set_type1v2(&self.fd).map_err(|error| refuse_iommu(group.number, error))?;
        }
        self.groups.push(group);
        if std::mem::take(&mut self.tracks) { self.track(true) } else { Ok(()) }
    }

    /// What can be mapped now that other groups share it. Of mappings, the kernel tells how many more
    /// there can be; how many in all does not change.
    fn shared_geometry(&self, group: u32) -> Result<Geometry, Failure> {
        let max_mappings = self.geometry.max_mappings;
        Ok(Geometry { max_mappings, ..geometry(&self.fd, group)? })
    }

    /// What the container can hold.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// One of its groups.
    pub fn group(&self, number: u32) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| group.number == number)
    }

    /// Whether DMA of its devices is always coherent with caches.
    pub fn is_coherent(&self) -> bool {
        ioctl::is_coherent(&self.fd)
    }

    /// See [`Table::map`](super::Table::map). It takes a mapping of the container for each piece of
    /// memory and each stride.
    ///
    /// # Errors
    /// As there.
    pub fn map(
        &mut self,
        entry: &Entry,
        (memory, base): (&Backing, u64),
        effort: &mut Effort<'_, '_>,
    ) -> Result<(), Failure> {
        let &Entry { iova, size, prot, .. } = entry;
        let begin = base + entry.offset;
        let mut touched = 0;
        let result = memory.visit(begin..begin + size, STRIDE, |position, reach| {
            effort.go_on()?;
            // A caller that dies while it maps may have mapped or not.
            touched = position + reach.len();
            let iova = iova + position;
            match &reach {
                Reach::Here(view) | Reach::Registers(view) => {
                    ioctl::map_dma(&self.fd, iova, view, prot)
                }
                Reach::There(foreign) => self.lead_map(iova, foreign, prot, effort)?,
            }
            .map_err(|error| refuse_map(iova, reach.len(), error))?;
            effort.done(reach.len());
            Ok(())
        });
        if result.is_err() && touched > 0 {
            // What was mapped a moment ago can be unmapped; if not, the release of the container
            // will.
            let _ = self.unmap(iova, touched);
        }
        result
    }

    fn lead_map(
        &mut self,
        iova: u64,
        memory: &Foreign<'_>,
        prot: Prot,
        effort: &mut Effort<'_, '_>,
    ) -> Result<Result<(), Errno>, Failure> {
        let map = ioctl::DmaMap::new(iova, memory.vaddr, memory.len, prot);
        let process = memory.process();
        let led = effort.lead(process)?;
        // Kernels before 6.2 pin what is there to be read; if that is not the program's own page,
        // the program gets another one when it writes, and devices go on reading the old.
        if !prot.write
            && memory.is_writable()
            && let Err(error) = led.make_own(memory.vaddr, memory.len)?
            && error != Errno::INVAL
        {
            return Ok(Err(error));
        }
        let container = self.fd.as_fd();
        let mut mapped = led.ioctl(container, ioctl::IOMMU_MAP_DMA, map.as_bytes())?;
        if mapped == Err(Errno::NOMEM) && process.is_within_limit(led.tid()) {
            // The kernel charges the program for each container, and we charge it once.
            mapped = led.ioctl_beside(container, ioctl::IOMMU_MAP_DMA, map.as_bytes())?;
        }
        if mapped.is_ok() {
            process.kernel_charges(memory.len);
            self.led.insert(iova, (memory.len, Arc::clone(process)));
        }
        Ok(mapped.map(drop))
    }

    /// The physical address of a page of registers at `vaddr` of a led caller: it is mapped at
    /// `iova`, where nothing is, for a moment.
    ///
    /// # Errors
    /// EFAULT when there is no such page; EOPNOTSUPP where it cannot be found out.
    pub fn locate(&mut self, iova: u64, vaddr: u64, led: &mut Led<'_>) -> Result<u64, Failure> {
        let page = self.geometry.pgsizes.smallest().unwrap_or(4096);
        let map = ioctl::DmaMap::new(iova, vaddr, page, Prot::READ);
        let container = self.fd.as_fd();
        let trace = trace::MapTrace::new(led.tid())?;
        let mapped = led.ioctl(container, ioctl::IOMMU_MAP_DMA, map.as_bytes());
        // Also when the caller died: it may have mapped before.
        let _ = ioctl::unmap_dma(&self.fd, iova, page);
        mapped?.map_err(|error| refuse_map(iova, page, error))?;
        trace.physical_address(iova).ok_or_else(|| {
            Failure::new(
                Errno::FAULT,
                format!("the registers at {vaddr:#x} of the program cannot be found"),
            )
        })
    }

    /// See [`Table::unmap`](super::Table::unmap).
    ///
    /// # Errors
    /// EIO when the kernel refuses.
    pub fn unmap(&mut self, iova: u64, size: u64) -> Result<(), Failure> {
        ioctl::unmap_dma(&self.fd, iova, size)
            .map_err(|error| unexpected("VFIO_IOMMU_UNMAP_DMA", error))?;
        let last = iova + (size - 1);
        while let Some((&start, _)) = self.led.range(iova..=last).next() {
            self.kernel_uncharges(start);
        }
        Ok(())
    }

    /// See [`Table::clear`](super::Table::clear).
    ///
    /// # Errors
    /// EIO when the kernel refuses.
    pub fn clear(&mut self) -> Result<(), Failure> {
        // With the last group, the kernel has unmapped everything.
        if !self.groups.is_empty() {
            ioctl::unmap_all(&self.fd)
                .map_err(|error| unexpected("VFIO_IOMMU_UNMAP_DMA (all)", error))?;
        }
        while let Some((&start, _)) = self.led.first_key_value() {
            self.kernel_uncharges(start);
        }
        Ok(())
    }

    fn kernel_uncharges(&mut self, start: u64) {
        if let Some((len, process)) = self.led.remove(&start) {
            process.kernel_uncharges(len);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The program may still hold a group or a device, and with it the container; so what
        // is mapped must go now and not with the last descriptor. Errors mean that it is gone.
        if !self.groups.is_empty() {
            let _ = ioctl::unmap_all(&self.fd);
        }
        for group in &self.groups {
            let _ = ioctl::unset_container(&group.fd);
        }
        for (len, process) in self.led.values() {
            process.kernel_uncharges(*len);
        }
    }
}

/// Asks what a container can do.
fn geometry(container: &OwnedFd, group: u32) -> Result<Geometry, Failure> {
    let info = ioctl::info(container).map_err(|error| unexpected("VFIO_IOMMU_GET_INFO", error))?;
    let ranges = info.ranges.iter().filter_map(|&(start, last)| Range::new(start, last));
    let permitted: RangeSet = ranges.collect();
    if permitted.is_empty() {
        return Err(Failure::unsupported(format!(
            "group {group} is not behind an IOMMU of its own (a mediated device?)"
        )));
    }
    Ok(Geometry {
        pgsizes: PageSizes(info.pgsizes),
        permitted,
        max_mappings: info.available_mappings.unwrap_or(DEFAULT_ENTRY_LIMIT),
    })
}

fn refuse_iommu(group: u32, error: Errno) -> Failure {
    match error {
        Errno::PERM => Failure::new(
            Errno::PERM,
            "the platform does not remap interrupts, so that the kernel refuses to give devices \
             away; turn interrupt remapping on, or accept the risk with: \
             echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        ),
        Errno::NODEV | Errno::INVAL | Errno::NOTTY => Failure::unsupported(format!(
            "group {group} cannot be driven by VFIO type1 v2: {error}; run: modprobe vfio_iommu_type1"
        )),
        other => unexpected("VFIO_SET_IOMMU", other),
    }
}

fn refuse_container(group: &Group, error: Errno) -> Failure {
    let number = group.number;
    match error {
        Errno::PERM => Failure::new(
            Errno::PERM,
            format!(
                "group {number} is not viable: every device in it must be bound to vfio-pci or to no driver; \
                 see ioasidctl doctor, and /sys/kernel/iommu_groups/{number}/devices"
            ),
        ),
        Errno::INVAL | Errno::BUSY => Failure::new(
            Errno::BUSY,
            format!(
                "group {number} is in a container already: another open of this node, or another program, uses it"
            ),
        ),
        other => unexpected("VFIO_GROUP_SET_CONTAINER", other),
    }
}

fn refuse_join(group: &Group, error: Errno) -> Failure {
    // The kernel says EINVAL for both.
    let is_taken = || ioctl::has_container(&group.fd).unwrap_or(true);
    match error {
        Errno::INVAL | Errno::NODEV | Errno::IO if !is_taken() => Failure::invalid(format!(
            "group {} cannot share this I/O page table: its IOMMU differs, or there is something \
             mapped where its devices cannot reach: bind it without IOASID_BIND_SHARE",
            group.number
        )),
        other => refuse_container(group, other),
    }
}

fn refuse_map(iova: u64, size: u64, error: Errno) -> Failure {
    let range = format!("[{iova:#x}, +{size:#x})");
    match error {
        Errno::FAULT | Errno::OPNOTSUPP => Failure::new(
            Errno::FAULT,
            format!(
                "the memory for {range} cannot be pinned: it was cut short or unmapped, or it is a file \
                 that this kernel does not let devices write (files on disk, from Linux 6.5 on)"
            ),
        ),
        Errno::NOMEM => Failure::new(
            Errno::NOMEM,
            format!(
                "the kernel refuses to pin the memory for {range}: there is too little of it, or it is over \
                 a limit of locked memory (ulimit -l). Private memory is charged to the program itself, \
                 beside what it locks by other means; other memory to the daemon"
            ),
        ),
        Errno::NOSPC => Failure::new(
            Errno::NOSPC,
            format!(
                "no room for {range}: the container is out of mappings (module parameter dma_entry_limit of vfio_iommu_type1)"
            ),
        ),
        Errno::INTR => Failure::new(Errno::INTR, "a signal arrived; nothing was mapped"),
        other => unexpected("VFIO_IOMMU_MAP_DMA", other),
    }
}

fn unexpected(what: &str, error: impl Into<io::Error>) -> Failure {
    Failure::new(Errno::IO, format!("{what} failed unexpectedly: {}", error.into()))
}

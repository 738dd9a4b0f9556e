//! Every command that has tables do something, on simulated tables of which the first operation is
//! refused, then the second, and so on: what iommufd's selftest does with its n-th allocation.
//! The command then fails, all is as it was before, and the same command succeeds afterwards.
//!
//! The commands go through the node as those of programs do. The program is the test itself.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicBool;

use cuse_channel::{Caller, Interrupt, Node as _, Responder};
use ioasid::Limits;
use ioasid_uapi::{self as uapi, cmd};
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::backend::Table;
use crate::backend::simulated::{DeviceConfig, Simulator, refusal};
use crate::in_context::Scratches;
use crate::policy::{Policy, PolicyConfig};
use crate::process::Processes;
use crate::users::{Quotas, Users};

const PAGE: u64 = 0x1000;
/// How much memory there is, and where the parent maps all of it.
const SIZE: u64 = 64 * PAGE;
const GPA: u64 = 0x10_0000;
/// Where the parent maps four pages of it once more, and where nothing is mapped yet.
const AGAIN: u64 = 0x20_0000;
const HOLE: u64 = 0x30_0000;
/// From here on the program's page table translates.
const GVA: u64 = 0x1_0000;
/// Where the PASID table is, and the PASID that is in it.
const PASIDS: u64 = GPA + 4 * PAGE;
const PASID: u32 = 3;
const VFIO_SET_IOMMU: u32 = 0x3b66;
const VFIO_TYPE1V2: u64 = 3;

type Done = Result<i32, Errno>;

/// An open of a node with devices that are attached to address spaces.
struct World {
    node: Node,
    fh: u64,
    memory: File,
    /// Of a group each.
    one: u32,
    two: u32,
    /// Of a group together.
    pair: [u32; 2],
    /// What the first two are attached to; the first also to what is nested on it.
    parent: u32,
    child: u32,
    /// A second child, which nobody is attached to.
    other: u32,
}

impl World {
    fn new() -> Self {
        let mut devices: Vec<_> = (0..4).map(DeviceConfig::plain).collect();
        devices[3].group = devices[2].group;
        let host = Host {
            limits: Limits {
                max_ioasids: 16,
                max_devices: 16,
                max_mappings: 100,
                max_registered: 1,
            },
            simulator: Simulator::new(&devices).expect("good devices"),
            processes: Processes::default(),
            scratches: Scratches::new().expect("random numbers"),
            is_ending: Arc::default(),
            tells_real_faults: AtomicBool::new(false),
            policy: Policy::new(&PolicyConfig::default()).expect("no rules are good rules"),
            users: Users::new(Quotas { opens: 8, registered: 0, registered_of_user: 0 }),
        };
        let node = Node::new(host, Access::Direct, Notifier::detached());
        let interrupt = Interrupt::new();
        let opening = cuse_channel::Context::detached(&interrupt);
        let fh = node.open(0, &opening).expect("opens are not limited");
        let memory = memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory");
        let memory = File::from(memory);
        memory.set_len(SIZE).expect("memory");
        let world =
            Self { node, fh, memory, one: 0, two: 0, pair: [0; 2], parent: 0, child: 0, other: 0 };
        world.fill_tables();
        world
    }

    /// With everything that the fields say.
    fn full() -> Self {
        let mut world = Self::new();
        [world.one, world.two] = ["sim0", "sim1"].map(|name| world.bind(name).expect("bound"));
        world.pair = ["sim2", "sim3"].map(|name| world.bind(name).expect("bound"));
        world.parent = world.value(cmd::ALLOC, 0).expect("a number") as u32;
        world.attach(world.one, world.parent).expect("attached");
        world.attach(world.two, world.parent).expect("attached");
        world.map(world.parent, GPA, 0, SIZE).expect("mapped");
        world.map(world.parent, AGAIN, 0, 4 * PAGE).expect("mapped");
        world.child = world.nest();
        world.attach(world.one, world.child).expect("attached");
        // Two pieces each: the first parts of what the parent maps twice, and what leads to a hole.
        world.map_child(world.child, 0, GPA + 8 * PAGE, 4 * PAGE).expect("mapped");
        world.map_child(world.child, 0x8000, AGAIN - PAGE, 3 * PAGE).expect("mapped");
        world.map_child(world.child, 0x2_0000, HOLE - 2 * PAGE, 4 * PAGE).expect("mapped");
        world.map_child(world.child, 0x3_0000, HOLE, PAGE).expect("mapped");
        world.other = world.nest();
        world
    }

    fn nest(&self) -> u32 {
        self.value(cmd::CREATE_NESTING, self.parent.into()).expect("a number") as u32
    }

    /// A page table with four levels that translates three pages from [`GVA`] on, and a PASID table
    /// (VT-d, scalable mode) that names it.
    fn fill_tables(&self) {
        for level in 0..3 {
            self.put(level * PAGE, GPA + (level + 1) * PAGE + 7);
        }
        for page in 0..3 {
            self.leaf(page, 16 + 2 * page);
        }
        self.put(PASIDS - GPA, PASIDS + PAGE + 1);
        let entry = PASIDS - GPA + PAGE + u64::from(PASID) * 64;
        self.put(entry, 1 << 6 | 1);
        self.put(entry + 16, GPA | 1);
    }

    /// Has page `page` from [`GVA`] on lead to a page of the memory.
    fn leaf(&self, page: u64, target: u64) {
        self.put(3 * PAGE + (GVA / PAGE + page) * 8, GPA + target * PAGE + 7);
    }

    fn put(&self, at: u64, word: u64) {
        self.memory.write_all_at(&word.to_le_bytes(), at).expect("written");
    }
}

/// Commands.
impl World {
    fn value(&self, command: u32, arg: u64) -> Done {
        let (interrupt, responder) = (Interrupt::new(), Responder::detached());
        let caller = Caller {
            tid: rustix::thread::gettid().as_raw_nonzero().get() as u32,
            ..Caller::default()
        };
        let request =
            Ioctl { fh: self.fh, caller, ..Ioctl::detached(command, arg, &interrupt, &responder) };
        match self.node.ioctl(&request) {
            IoctlReply::Done { result, .. } if result >= 0 => Ok(result),
            IoctlReply::Done { result, .. } => Err(Errno::from_raw_os_error(-result)),
            other => panic!("{command:#x}: {other:?}"),
        }
    }

    /// The daemon reads and writes the structure from outside of the program, as it were.
    fn call<T>(&self, command: u32, argument: &mut T) -> Done {
        self.value(command, std::ptr::from_mut(argument).expose_provenance() as u64)
    }

    fn bind(&self, device: &str) -> Result<u32, Errno> {
        let mut name = [0; uapi::NAME_LEN];
        name[..device.len()].copy_from_slice(device.as_bytes());
        let (argsz, flags, fd) = (uapi::BindDevice::ARGSZ, uapi::BIND_SIMULATED, -1);
        let mut bind = uapi::BindDevice { argsz, flags, fd, name, ..Default::default() };
        self.call(cmd::BIND_DEVICE, &mut bind).map(|_| bind.device)
    }

    fn attachment(&self, command: u32, device: u32, ioasid: u32, pasid: Option<u32>) -> Done {
        let (argsz, user_pasid) = (uapi::AttachDevice::ARGSZ, pasid.unwrap_or(0));
        let flags = if pasid.is_some() { uapi::ATTACH_USER_PASID } else { 0 };
        let mut attach =
            uapi::AttachDevice { argsz, flags, device, ioasid, user_pasid, ..Default::default() };
        self.call(command, &mut attach)
    }

    fn attach(&self, device: u32, ioasid: u32) -> Done {
        self.attachment(cmd::ATTACH_DEVICE, device, ioasid, None)
    }

    fn detach(&self, device: u32, ioasid: u32) -> Done {
        self.attachment(cmd::DETACH_DEVICE, device, ioasid, None)
    }

    fn map(&self, ioasid: u32, iova: u64, vaddr: u64, size: u64) -> Done {
        let (argsz, fd) = (uapi::MapDma::ARGSZ, self.memory.as_raw_fd());
        let flags = uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_FILE;
        self.call(cmd::MAP_DMA, &mut uapi::MapDma { argsz, flags, ioasid, fd, vaddr, iova, size })
    }

    fn map_child(&self, ioasid: u32, iova: u64, vaddr: u64, size: u64) -> Done {
        let (argsz, flags) = (uapi::MapDma::ARGSZ, uapi::MAP_READ | uapi::MAP_WRITE);
        let map = uapi::MapDma { argsz, flags, ioasid, fd: 0, vaddr, iova, size };
        self.call(cmd::MAP_DMA, &mut { map })
    }

    fn unmap(&self, ioasid: u32, at: Option<(u64, u64)>) -> Done {
        let (argsz, (iova, size)) = (uapi::UnmapDma::ARGSZ, at.unwrap_or_default());
        let flags = if at.is_none() { uapi::UNMAP_ALL } else { 0 };
        let mut unmap = uapi::UnmapDma { argsz, flags, ioasid, iova, size, ..Default::default() };
        self.call(cmd::UNMAP_DMA, &mut unmap)
    }

    fn unmap_dirty(&self, ioasid: u32, iova: u64, size: u64) -> Done {
        let mut bits = [0_u64; 1];
        let (argsz, flags, page_size) = (uapi::UnmapDma::ARGSZ, uapi::UNMAP_DIRTY, PAGE);
        let (bitmap, bitmap_size) = (bits.as_mut_ptr().expose_provenance() as u64, 8);
        let mut unmap = uapi::UnmapDma {
            argsz,
            flags,
            ioasid,
            iova,
            size,
            page_size,
            bitmap,
            bitmap_size,
            ..Default::default()
        };
        self.call(cmd::UNMAP_DMA, &mut unmap)
    }

    fn track(&self, ioasid: u32) -> Done {
        let (argsz, flags) = (uapi::Dirty::ARGSZ, uapi::DIRTY_START);
        self.call(cmd::DIRTY, &mut uapi::Dirty { argsz, flags, ioasid, ..Default::default() })
    }

    fn bind_table(&self, ioasid: u32) -> Done {
        let (argsz, format, addr, addr_width) = (uapi::BindPgtable::ARGSZ, 1, GPA, 48);
        let table =
            uapi::BindPgtable { argsz, ioasid, format, addr, addr_width, ..Default::default() };
        self.call(cmd::BIND_PGTABLE, &mut { table })
    }

    fn unbind_table(&self, ioasid: u32) -> Done {
        let argsz = uapi::BindPgtable::ARGSZ;
        let table = uapi::BindPgtable { argsz, ioasid, ..Default::default() };
        self.call(cmd::UNBIND_PGTABLE, &mut { table })
    }

    fn bind_pasids(&self, ioasid: u32) -> Done {
        let (argsz, format, addr, pasid_bits) = (uapi::BindPasidTable::ARGSZ, 1, PASIDS, 6);
        let table =
            uapi::BindPasidTable { argsz, ioasid, format, addr, pasid_bits, ..Default::default() };
        self.call(cmd::BIND_PASID_TABLE, &mut { table })
    }

    fn unbind_pasids(&self, ioasid: u32) -> Done {
        let argsz = uapi::BindPasidTable::ARGSZ;
        let table = uapi::BindPasidTable { argsz, ioasid, ..Default::default() };
        self.call(cmd::UNBIND_PASID_TABLE, &mut { table })
    }

    fn invalidate(&self, ioasid: u32, at: Option<(u64, u64)>) -> Done {
        let (argsz, (iova, size)) = (uapi::InvalidateCache::ARGSZ, at.unwrap_or_default());
        let flags = if at.is_none() { uapi::INVALIDATE_ALL } else { 0 };
        let invalidate =
            uapi::InvalidateCache { argsz, flags, ioasid, iova, size, ..Default::default() };
        self.call(cmd::INVALIDATE_CACHE, &mut { invalidate })
    }

    /// A device writes a byte with the PASID that is in the PASID table.
    fn dma(&self, device: u32) -> Done {
        let mut byte = 1_u8;
        let (argsz, flags) = (uapi::SimDma::ARGSZ, uapi::SIM_DMA_WRITE | uapi::SIM_DMA_PASID);
        let data = (&raw mut byte).expose_provenance() as u64;
        let (iova, size, pasid) = (GVA, 1, PASID);
        let dma =
            uapi::SimDma { argsz, flags, device, iova, data, size, pasid, ..Default::default() };
        self.call(cmd::SIM_DMA, &mut { dma })
    }

    /// Three operations; gives how many were done.
    fn vector(&self, ops: &[uapi::Op]) -> (Done, u32) {
        let (argsz, ioasid, nr_ops) = (uapi::Vector::ARGSZ, self.parent, ops.len() as u32);
        let ops = ops.as_ptr().expose_provenance() as u64;
        let mut vector = uapi::Vector { argsz, ioasid, nr_ops, ops, ..Default::default() };
        (self.call(cmd::VECTOR, &mut vector), vector.nr_done)
    }

    fn ops(&self) -> [uapi::Op; 3] {
        let flags = uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_FILE;
        let (op, fd, size) = (uapi::OP_MAP, self.memory.as_raw_fd(), PAGE);
        let map = uapi::Op { op, flags, fd, iova: HOLE, size, ..Default::default() };
        let unmap =
            uapi::Op { op: uapi::OP_UNMAP, iova: AGAIN, size: 4 * PAGE, ..Default::default() };
        [map, unmap, uapi::Op { iova: HOLE + PAGE, ..map }]
    }
}

/// What is there.
impl World {
    /// All that can be seen of the open, from inside too. Each table holds what the engine says.
    fn look(&self) -> String {
        let context = self.node.context(self.fh).expect("it is open");
        let state = context.state();
        let engine = &state.engine;
        let mut seen = String::new();
        for ioasid in engine.ioasids() {
            let mappings: Vec<_> = engine.mappings(ioasid).expect("it exists").collect();
            let (info, tracking) = (engine.info(ioasid), engine.is_tracking(ioasid));
            seen += &format!("{ioasid}: {info:?} {tracking} {mappings:?}\n");
        }
        for device in engine.devices() {
            seen += &format!("{device:?} {:?}\n", state.home_of(device.id));
        }
        for table in engine.tables() {
            let held = state.table(table.group).expect("it is there").lock();
            let Table::Simulated(simulated) = &*held else { panic!("{table:?} is real") };
            let entries = simulated.entries();
            assert!(table.broken || engine.table_contents(table.group).eq(entries.iter().copied()));
            seen += &format!("{table:?} {:?} {entries:?}\n", simulated.geometry());
        }
        let own = crate::caller::Tid::new(std::process::id()).expect("a thread");
        let locked = self.node.host.processes.of(own).map(|process| process.locked()).ok();
        let pasids = format!("{:?}", state.pasids);
        // Numbers are used once.
        let pasids = pasids.split(", last_group").next().unwrap_or_default();
        seen += &format!("{pasids} {} {:?} {locked:?}\n", state.memories(), state.container());
        // Who has which group.
        seen += &format!("{:?}\n", self.node.host.simulator);
        seen
    }
}

/// Gives a command on a fresh world each time, with another operation refused, until none is.
fn each_refused(name: &str, world: impl Fn() -> World, act: impl Fn(&World) -> Done) {
    for refused in 0.. {
        let world = world();
        let before = world.look();
        refusal::after(refused);
        let done = act(&world);
        if !refusal::end() {
            assert!(done.is_ok(), "{name}: {done:?}");
            assert!(refused > 0, "{name} has no table do anything");
            world.look();
            return;
        }
        assert_eq!(done, Err(Errno::NOLINK), "{name}, operation {refused} refused");
        let after = world.look();
        assert!(before == after, "{name}, operation {refused} refused:\n{before}\n{after}");
        act(&world).unwrap_or_else(|error| panic!("{name}, once more: {error}"));
        world.look();
        world.node.release(world.fh);
    }
}

#[test]
fn maps_and_unmaps_that_a_table_refuses_leave_everything_as_it_was() {
    let full = World::full;
    each_refused("a map", full, |w| w.map(w.parent, HOLE, 0, PAGE));
    each_refused("a map of a child", full, |w| w.map_child(w.child, GVA, AGAIN - PAGE, 4 * PAGE));
    each_refused("an unmap", full, |w| w.unmap(w.parent, Some((AGAIN, 4 * PAGE))));
    each_refused("an unmap of all", full, |w| w.unmap(w.parent, None));
    each_refused("an unmap of a child", full, |w| w.unmap(w.child, Some((0, 0x10 * PAGE))));
    let tracking = || {
        let world = full();
        world.track(world.parent).expect("tracked");
        world
    };
    each_refused("an unmap with a bitmap", tracking, |w| w.unmap_dirty(w.parent, AGAIN, 4 * PAGE));
}

#[test]
fn attaches_and_detaches_that_a_table_refuses_leave_everything_as_it_was() {
    let full = World::full;
    each_refused("an attach", full, |w| w.attach(w.pair[0], w.parent));
    each_refused("an attach to a child", full, |w| w.attach(w.two, w.child));
    each_refused("a detach", full, |w| w.detach(w.two, w.parent));
    each_refused("a detach from a child", full, |w| w.detach(w.one, w.child));
    let attached = || {
        let world = full();
        for device in world.pair {
            world.attach(device, world.parent).expect("attached");
        }
        world.detach(world.pair[0], world.parent).expect("the other stays");
        world
    };
    each_refused("the last detach of a group", attached, |w| w.detach(w.pair[1], w.parent));
}

#[test]
fn page_tables_whose_pages_a_table_refuses_leave_everything_as_it_was() {
    let attached = || {
        let world = World::full();
        world.attach(world.two, world.other).expect("attached");
        world
    };
    let bound = || {
        let world = attached();
        world.bind_table(world.other).expect("bound");
        world.leaf(0, 30);
        world.leaf(2, 31);
        world.leaf(5, 32);
        world
    };
    each_refused("binding a page table", attached, |w| w.bind_table(w.other));
    each_refused("invalidating all of it", bound, |w| w.invalidate(w.other, None));
    each_refused("invalidating a page", bound, |w| w.invalidate(w.other, Some((GVA, PAGE))));
    each_refused("unbinding it", bound, |w| w.unbind_table(w.other));
    each_refused("leaving it", bound, |w| w.detach(w.two, w.other));
    each_refused("mapping below it", bound, |w| w.unmap(w.parent, Some((GPA, SIZE))));
}

#[test]
fn pasids_that_a_table_refuses_leave_everything_as_it_was() {
    let full = World::full;
    let attach = |w: &World, ioasid| w.attachment(cmd::ATTACH_DEVICE, w.two, ioasid, Some(5));
    each_refused("attaching a PASID", full, |w| attach(w, w.parent));
    each_refused("attaching a PASID to a child", full, |w| attach(w, w.child));
    let attached = || {
        let world = full();
        attach(&world, world.child).expect("attached");
        world
    };
    each_refused("detaching a PASID", attached, |w| {
        w.attachment(cmd::DETACH_DEVICE, w.two, w.child, Some(5))
    });
    each_refused("mapping for a PASID", attached, |w| w.map(w.parent, HOLE, 0, PAGE));
    let bound = || {
        let world = full();
        world.attach(world.two, world.other).expect("attached");
        world.bind_pasids(world.other).expect("bound");
        world
    };
    each_refused("reading an entry of a PASID table", bound, |w| w.dma(w.two));
    let read = || {
        let world = bound();
        world.dma(world.two).expect("the entry is there");
        world
    };
    each_refused("invalidating a PASID table", read, |w| w.invalidate(w.other, None));
    each_refused("unbinding a PASID table", read, |w| w.unbind_pasids(w.other));
}

#[test]
fn what_tables_refuse_of_a_container_leaves_everything_as_it_was() {
    let container = || {
        let mut world = World::new();
        world.one = world.bind("sim0").expect("bound");
        world.value(VFIO_SET_IOMMU, VFIO_TYPE1V2).expect("a container");
        let context = world.node.context(world.fh).expect("it is open");
        world.parent = context.state().container().expect("it is one").ioasid.get();
        world.map(world.parent, GPA, 0, SIZE).expect("mapped");
        world.map(world.parent, AGAIN, 0, 4 * PAGE).expect("mapped");
        world
    };
    each_refused("a device for a container", container, |w| w.bind("sim1").map(|_| 0));
    each_refused("a map in a container", container, |w| w.map(w.parent, HOLE, 0, PAGE));
    // Where a table goes with its device there is nothing to refuse.
    let mut world = container();
    world.two = world.bind("sim1").expect("bound");
    refusal::after(0);
    for device in [world.two, world.one] {
        assert_eq!(world.value(cmd::UNBIND_DEVICE, device.into()), Ok(0));
        world.look();
    }
    assert!(!refusal::end(), "a table was asked");
}

/// What was done before it is done, and counted.
#[test]
fn a_vector_of_which_a_table_refuses_one_is_done_up_to_that() {
    for refused in 0.. {
        let world = World::full();
        let ops = world.ops();
        refusal::after(refused);
        let (done, count) = world.vector(&ops);
        if !refusal::end() {
            assert_eq!((done, count), (Ok(0), 3));
            return;
        }
        assert_eq!(done, Err(Errno::NOLINK));
        assert!(count < 3);
        let alike = World::full();
        if count > 0 {
            assert_eq!(alike.vector(&alike.ops()[..count as usize]), (Ok(0), count));
        }
        let view = |world: &World| {
            let context = world.node.context(world.fh).expect("it is open");
            let state = context.state();
            let tables: Vec<_> = state.engine.tables().map(|table| table.group).collect();
            let at = |group| state.engine.table_contents(group).map(|e| (e.iova, e.size, e.offset));
            let tables: Vec<Vec<_>> = tables.into_iter().map(|group| at(group).collect()).collect();
            (tables, state.memories())
        };
        world.look();
        assert_eq!(view(&world), view(&alike));
        let rest = world.vector(&ops[count as usize..]);
        assert_eq!(rest, (Ok(0), 3 - count));
    }
}

//! Random commands, legal and illegal, on hardware that sometimes refuses: the engine against a
//! model that keeps lists and works everything out from scratch, address by address.

use std::collections::{BTreeMap, BTreeSet};

use ioasid_uapi::errno::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::fake::Fake;
use crate::*;

const PAGE: u64 = 0x1000;
const LIMITS: Limits = Limits { max_ioasids: 3, max_devices: 6, max_mappings: 5 };

/// A kind of hardware that groups of the model have.
struct Kind {
    pgsizes: u64,
    permitted: &'static [(u64, u64)],
    max_mappings: u32,
    simulated: bool,
}

/// Group n of the model is of kind n.
const KINDS: &[Kind] = &[
    Kind {
        pgsizes: 0x3000,
        permitted: &[(0, 0x5fff), (0x8000, 0xffff)],
        max_mappings: 8,
        simulated: false,
    },
    Kind { pgsizes: 0x6000, permitted: &[(0x2000, 0x1_1fff)], max_mappings: 4, simulated: false },
    Kind { pgsizes: 0x1000, permitted: &[(0, u64::MAX)], max_mappings: 100, simulated: true },
    Kind {
        pgsizes: 0x7000,
        permitted: &[(0x4000, 0x5fff), (0xc000, u64::MAX)],
        max_mappings: 3,
        simulated: true,
    },
    Kind {
        pgsizes: 0x1000,
        permitted: &[(0x1_2000, 0x1_7fff)],
        max_mappings: 100,
        simulated: false,
    },
];

/// The pages that are looked at one by one: all that commands name, and some around them.
fn pages() -> impl Iterator<Item = u64> {
    (0..0x1a)
        .map(|page| page * PAGE)
        .chain((1..=8).rev().map(|page| 0u64.wrapping_sub(page * PAGE)))
}

#[derive(Clone, Debug)]
enum Op {
    Alloc,
    Free(usize),
    Bind { kind: usize, name: usize },
    Unbind(usize),
    Attach(usize, usize),
    Detach(usize, usize),
    Map { space: usize, iova: u64, size: u64, vaddr: u64, read: bool, write: bool },
    Unmap { space: usize, iova: u64, size: u64 },
    UnmapMapping { space: usize, mapping: usize, more: u64 },
    UnmapAll(usize),
}

/// A step, as proptest draws and shrinks it: small numbers that [`op`] and [`refused`] turn into a
/// command and into which of the hardware calls that it makes are refused. (Strategies that yield
/// commands themselves take most of the time of the test.)
type Step = [u8; 6];

fn iova(dice: u8) -> u64 {
    let dice = u64::from(dice);
    match dice {
        0..140 => dice % 8 * 2 * PAGE,
        140..200 => dice % 0x18 * PAGE,
        200..230 => 0u64.wrapping_sub((1 + dice % 5) * PAGE),
        _ => dice % 0x30 * 0x800,
    }
}

fn size(dice: u8) -> u64 {
    match dice {
        0..120 => 2 * PAGE,
        120..220 => (1 + u64::from(dice) % 4) * PAGE,
        220..235 => 0,
        _ => 0x800,
    }
}

fn vaddr(dice: u8) -> u64 {
    match dice {
        0..180 => u64::from(dice) * 4 * PAGE,
        180..230 => u64::from(dice) * PAGE,
        230..245 => 0u64.wrapping_sub(2 * PAGE),
        _ => 0x7800,
    }
}

fn op([kind, a, b, c, d, _]: Step) -> Op {
    // Now and then a space or device that does not exist, often the first.
    let choice = |dice: u8| if dice < 160 { 1 } else { usize::from(dice) % 19 };
    let (space, device) = (choice(a), usize::from(b) % 21);
    match kind {
        0..12 => Op::Alloc,
        12..18 => Op::Free(space),
        18..28 => Op::Bind { kind: usize::from(a) % KINDS.len(), name: usize::from(b) % 2 },
        28..34 => Op::Unbind(device),
        34..58 => Op::Attach(device, space),
        58..72 => Op::Detach(device, space),
        72..196 => Op::Map {
            space,
            iova: iova(b),
            size: size(c),
            vaddr: vaddr(d),
            read: kind % 16 > 3,
            write: kind % 4 > 0,
        },
        196..208 => Op::Unmap { space, iova: iova(b), size: size(c) },
        208..218 => Op::Unmap { space, iova: iova(b), size: 0x8000 },
        218..222 => Op::Unmap { space, iova: iova(b), size: !0xfff },
        222..250 => {
            let (mapping, more) = (usize::from(b) % 6, u64::from(c) % 3 * PAGE);
            Op::UnmapMapping { space, mapping, more }
        }
        _ => Op::UnmapAll(space),
    }
}

/// Which hardware calls are refused: mostly none, one, or all from one on.
fn refused([.., dice]: Step) -> BTreeSet<usize> {
    let place = usize::from(dice) % 5;
    match dice {
        0..150 => BTreeSet::new(),
        150..200 => BTreeSet::from([place]),
        200..240 => (place..20).collect(),
        _ => [place, place + 2, place + 3].into(),
    }
}

#[derive(Clone, Debug)]
struct Mapping {
    iova: u64,
    size: u64,
    vaddr: u64,
    prot: Prot,
    memory: MemoryId,
}

impl Mapping {
    fn covers(&self, address: u64) -> bool {
        address.checked_sub(self.iova).is_some_and(|offset| offset < self.size)
    }

    fn end(&self) -> u128 {
        u128::from(self.iova) + u128::from(self.size)
    }

    fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let iova = self.iova;
        (0..self.size / PAGE).map(move |page| iova + page * PAGE)
    }
}

#[derive(Clone, Debug, Default)]
struct Space {
    mappings: Vec<Mapping>,
    /// The groups whose properties it has: those that show it, or that last did.
    shaped_by: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Device {
    kind: usize,
    name: usize,
    attached: Option<u32>,
}

/// What the context should be.
#[derive(Clone, Debug, Default)]
struct Model {
    spaces: BTreeMap<u32, Space>,
    devices: BTreeMap<u32, Device>,
    broken: BTreeSet<usize>,
    spaces_made: u32,
    devices_made: u32,
}

/// An errno, or what would come out of the command.
type Verdict = Result<(), i32>;

fn fail_if(condition: bool, errno: i32) -> Verdict {
    if condition { Err(errno) } else { Ok(()) }
}

fn permitted(kinds: &[usize], address: u64) -> bool {
    kinds.iter().all(|&kind| {
        KINDS[kind].permitted.iter().any(|&(start, last)| (start..=last).contains(&address))
    })
}

/// The lowest and the highest address that all kinds permit: ends of ranges of one of them.
fn aperture(kinds: &[usize]) -> Option<(u64, u64)> {
    let ends = kinds.iter().flat_map(|&kind| KINDS[kind].permitted);
    let ends: Vec<u64> = ends.flat_map(|&(start, last)| [start, last]).collect();
    let usable = || ends.iter().copied().filter(|&address| permitted(kinds, address));
    Some((usable().min()?, usable().max()?))
}

/// The smallest page size that all kinds have.
fn smallest_page(kinds: &[usize]) -> Option<u64> {
    (0..64).map(|shift| 1 << shift).find(|size| kinds.iter().all(|&k| KINDS[k].pgsizes & size != 0))
}

impl Model {
    /// The groups that have a device attached to a space.
    fn showing(&self, space: u32) -> BTreeSet<usize> {
        let attached = self.devices.values().filter(|device| device.attached == Some(space));
        attached.map(|device| device.kind).collect()
    }

    fn shown_by(&self, kind: usize) -> Option<u32> {
        self.devices
            .values()
            .filter(|device| device.kind == kind)
            .find_map(|device| device.attached)
    }

    fn is_partial(&self, kind: usize) -> bool {
        let members = || self.devices.values().filter(|device| device.kind == kind);
        members().any(|device| device.attached.is_some())
            && members().any(|device| device.attached.is_none())
    }

    fn usable(&self, space: u32) -> Result<&Space, i32> {
        let found = self.spaces.get(&space).ok_or(ENOENT)?;
        fail_if(found.shaped_by.is_empty(), ENODEV)?;
        let showing = self.showing(space);
        fail_if(showing.iter().any(|kind| self.broken.contains(kind)), EIO)?;
        fail_if(showing.iter().any(|&kind| self.is_partial(kind)), EBUSY)?;
        Ok(found)
    }

    fn map(&self, space: u32, map: Map) -> Verdict {
        let Space { mappings, shaped_by } = self.usable(space)?;
        let Map { iova, size, vaddr, prot } = map;
        let page = smallest_page(shaped_by).unwrap();
        fail_if(!prot.read && !prot.write || size == 0, EINVAL)?;
        fail_if([iova, size, vaddr].iter().any(|value| value % page != 0), EINVAL)?;
        let wraps = |start: u64| u128::from(start) + u128::from(size) > 1 << 64;
        fail_if(wraps(iova) || wraps(vaddr), EOVERFLOW)?;
        let pages: Vec<u64> = (0..size / PAGE).map(|page| iova + page * PAGE).collect();
        let (lowest, highest) = aperture(shaped_by).unwrap();
        fail_if(pages.iter().any(|page| *page < lowest || *page > highest), EINVAL)?;
        fail_if(pages.iter().any(|&page| !permitted(shaped_by, page)), EADDRINUSE)?;
        let is_mapped = |page: u64| mappings.iter().any(|mapping| mapping.covers(page));
        fail_if(pages.iter().any(|&page| is_mapped(page)), EEXIST)?;
        let table_limits = shaped_by.iter().map(|&kind| KINDS[kind].max_mappings);
        let limit = table_limits.chain([LIMITS.max_mappings]).min().unwrap();
        fail_if(mappings.len() == limit as usize, ENOSPC)
    }

    /// The memory that an unmap releases.
    fn unmap(&self, space: u32, unmap: Unmap) -> Result<Vec<MemoryId>, i32> {
        let Space { mappings, shaped_by } = self.usable(space)?;
        let Unmap::Range { iova, size } = unmap else {
            return Ok(mappings.iter().map(|mapping| mapping.memory).collect());
        };
        let page = smallest_page(shaped_by).unwrap();
        fail_if(size == 0 || iova % page != 0 || size % page != 0, EINVAL)?;
        let (start, end) = (u128::from(iova), u128::from(iova) + u128::from(size));
        fail_if(end > 1 << 64, EOVERFLOW)?;
        let mut gone = vec![];
        for mapping in mappings {
            let inside = |page: &u64| (start..end).contains(&u128::from(*page));
            match mapping.pages().filter(inside).count() as u64 * PAGE {
                0 => {}
                covered if covered == mapping.size => gone.push(mapping.memory),
                _ => return Err(EINVAL),
            }
        }
        Ok(gone)
    }

    fn attach(&self, device: u32, space: u32) -> Verdict {
        let Device { kind, attached, .. } = *self.devices.get(&device).ok_or(ENOENT)?;
        let mappings = &self.spaces.get(&space).ok_or(ENOENT)?.mappings;
        let shown = self.shown_by(kind);
        fail_if(attached.is_some() || shown.is_some_and(|shown| shown != space), EBUSY)?;
        let showing = self.showing(space);
        fail_if(showing.iter().any(|kind| self.broken.contains(kind)), EIO)?;
        if shown.is_some() {
            return Ok(());
        }
        let together: Vec<usize> = showing.into_iter().chain([kind]).collect();
        let page = smallest_page(&together).ok_or(EINVAL)?;
        fail_if(aperture(&together).is_none(), EINVAL)?;
        let fits = |m: &Mapping| [m.iova, m.size, m.vaddr].iter().all(|value| value % page == 0);
        fail_if(!mappings.iter().all(fits), EINVAL)?;
        let mut pages = mappings.iter().flat_map(Mapping::pages);
        fail_if(pages.any(|page| !permitted(&[kind], page)), EADDRINUSE)?;
        fail_if(mappings.len() > KINDS[kind].max_mappings as usize, ENOSPC)
    }

    fn detach(&self, device: u32, space: u32) -> Verdict {
        let device = self.devices.get(&device).ok_or(ENOENT)?;
        fail_if(!self.spaces.contains_key(&space) || device.attached != Some(space), ENOENT)
    }

    fn unbind(&self, device: u32) -> Verdict {
        fail_if(self.devices.get(&device).ok_or(ENOENT)?.attached.is_some(), EBUSY)
    }

    fn bind(&self, kind: usize, name: usize) -> Verdict {
        fail_if(self.devices.values().any(|d| (d.kind, d.name) == (kind, name)), EBUSY)?;
        fail_if(self.devices.len() == LIMITS.max_devices as usize, ENOSPC)
    }

    fn free(&self, space: u32) -> Verdict {
        fail_if(!self.spaces.contains_key(&space), ENOENT)?;
        fail_if(!self.showing(space).is_empty(), EBUSY)
    }

    /// After an attach or a detach: the space takes the properties of the groups that show it,
    /// and a group without an attached device has an empty table, which cannot be broken.
    fn reshape(&mut self, space: u32, kind: usize, was_shown: bool) {
        let showing: Vec<usize> = self.showing(space).into_iter().collect();
        if !showing.is_empty() {
            self.spaces.get_mut(&space).unwrap().shaped_by = showing;
        }
        if self.shown_by(kind).is_some() != was_shown {
            self.broken.remove(&kind);
        }
    }
}

/// The engine, the hardware and the model.
struct World {
    context: Context,
    fake: Fake,
    model: Model,
    next_memory: u64,
    /// Memory that was mapped and not yet released.
    held: BTreeSet<MemoryId>,
    may_have_changed: bool,
    /// How often each errno was seen, 0 for success.
    seen: BTreeMap<i32, usize>,
}

impl World {
    fn new() -> Self {
        let (context, fake, model) = (Context::new(LIMITS), Fake::default(), Model::default());
        let (held, seen) = (BTreeSet::new(), BTreeMap::new());
        Self { context, fake, model, next_memory: 0, held, may_have_changed: false, seen }
    }

    /// One of the ids that exist, or one that does not.
    fn pick(ids: impl Iterator<Item = u32>, made: u32, choice: usize) -> u32 {
        let ids: Vec<u32> = ids.collect();
        if choice == 0 || ids.is_empty() {
            return (1..=made + 1).find(|id| !ids.contains(id)).unwrap();
        }
        ids[(choice - 1) % ids.len()]
    }

    fn space(&self, choice: usize) -> u32 {
        Self::pick(self.model.spaces.keys().copied(), self.model.spaces_made, choice)
    }

    fn device(&self, choice: usize) -> u32 {
        Self::pick(self.model.devices.keys().copied(), self.model.devices_made, choice)
    }

    /// Plans and executes, and checks what comes out against the verdict: its errno, or success
    /// unless the hardware refused. Returns the outcome if the change was made.
    fn run(
        &mut self,
        verdict: Verdict,
        plan: Result<Plan, Error>,
    ) -> Option<Outcome<crate::fake::Refusal>> {
        assert_eq!(plan.as_ref().map(drop).map_err(Error::errno), verdict, "{plan:?}");
        *self.seen.entry(verdict.err().unwrap_or(0)).or_default() += 1;
        let plan = plan.ok()?;
        self.may_have_changed = true;
        let before = self.context.clone();
        match self.context.execute(plan.clone(), &mut self.fake) {
            Ok(outcome) => {
                assert!(!self.fake.has_refused(), "a refusal was overlooked");
                assert_eq!(outcome.failures, []);
                Some(outcome)
            }
            Err(ExecuteError::Refused { .. }) => {
                assert!(self.fake.has_refused());
                assert_eq!(self.context, before, "a refused change left a trace");
                *self.seen.entry(-1).or_default() += 1;
                None
            }
            Err(ExecuteError::Broken { broken, .. }) => {
                assert!(self.fake.has_refused());
                assert!(!broken.is_empty());
                self.model.broken.extend(broken.iter().map(|(group, _)| group.0 as usize));
                *self.seen.entry(-2).or_default() += 1;
                None
            }
            Err(ExecuteError::Plan(error)) => panic!("{error}"),
        }
    }

    fn release(&mut self, released: &[MemoryId]) {
        for memory in released {
            assert!(self.held.remove(memory), "memory {memory} was released twice");
        }
    }

    /// Gives a command, and says whether anything may have changed: planning alone borrows the
    /// context without the right to.
    fn step(&mut self, op: &Op) -> bool {
        self.may_have_changed = false;
        self.command(op);
        self.may_have_changed
    }

    fn command(&mut self, op: &Op) {
        match *op {
            Op::Alloc => self.alloc(),
            Op::Free(space) => self.free(self.space(space)),
            Op::Bind { kind, name } => self.bind(kind, name),
            Op::Unbind(device) => self.unbind(self.device(device)),
            Op::Attach(device, space) => self.attach(self.device(device), self.space(space)),
            Op::Detach(device, space) => self.detach(self.device(device), self.space(space)),
            Op::Map { space, iova, size, vaddr, read, write } => {
                let prot = Prot { read, write };
                self.map(self.space(space), Map { iova, size, vaddr, prot });
            }
            Op::Unmap { space, iova, size } => {
                self.unmap(self.space(space), Unmap::Range { iova, size });
            }
            Op::UnmapMapping { space, mapping, more } => {
                let space = self.space(space);
                let mappings = self.model.spaces.get(&space).map_or(&[][..], |s| &s.mappings);
                if let Some(m) = mappings.get(mapping) {
                    let (iova, size) = (m.iova, m.size + more);
                    self.unmap(space, Unmap::Range { iova, size });
                }
            }
            Op::UnmapAll(space) => self.unmap(self.space(space), Unmap::All),
        }
    }

    fn alloc(&mut self) {
        let verdict = fail_if(self.model.spaces.len() == LIMITS.max_ioasids as usize, ENOSPC);
        let result = self.context.alloc();
        self.may_have_changed = true;
        assert_eq!(result.as_ref().map(drop).map_err(Error::errno), verdict);
        if let Ok(ioasid) = result {
            self.model.spaces_made += 1;
            assert_eq!(ioasid.get(), self.model.spaces_made, "numbers are never used again");
            self.model.spaces.insert(ioasid.get(), Space::default());
        }
    }

    fn free(&mut self, space: u32) {
        let plan = self.context.plan_free(id(space));
        if let Some(outcome) = self.run(self.model.free(space), plan) {
            let gone = self.model.spaces.remove(&space).unwrap().mappings;
            assert_eq!(set(&outcome.released), gone.iter().map(|m| m.memory).collect());
            self.release(&outcome.released);
        }
    }

    fn bind(&mut self, kind: usize, name: usize) {
        let verdict = self.model.bind(kind, name);
        let bind = bind_of(kind, name);
        let possible = self.context.can_bind(bind.group, &bind.name);
        assert_eq!(possible.map_err(|error| error.errno()), verdict);
        let result = self.context.bind(bind);
        self.may_have_changed = true;
        assert_eq!(result.as_ref().map(drop).map_err(Error::errno), verdict);
        if let Ok(device) = result {
            self.model.devices_made += 1;
            assert_eq!(device.0, self.model.devices_made, "numbers are never used again");
            self.model.devices.insert(device.0, Device { kind, name, attached: None });
        }
    }

    fn unbind(&mut self, device: u32) {
        let plan = self.context.plan_unbind(DeviceId(device));
        let Some(outcome) = self.run(self.model.unbind(device), plan) else { return };
        let kind = self.model.devices.remove(&device).unwrap().kind;
        let last = !self.model.devices.values().any(|device| device.kind == kind);
        assert_eq!(outcome.retired, if last { vec![group(kind)] } else { vec![] });
        if last && self.model.broken.remove(&kind) {
            // The group gets another table when it is bound again.
            self.fake.refuse([]);
            self.fake.clear(group(kind)).unwrap();
        }
    }

    fn attach(&mut self, device: u32, space: u32) {
        let plan = self.context.plan_attach(DeviceId(device), id(space));
        if self.run(self.model.attach(device, space), plan).is_some() {
            let kind = self.model.devices[&device].kind;
            let was_shown = self.model.shown_by(kind).is_some();
            self.model.devices.get_mut(&device).unwrap().attached = Some(space);
            self.model.reshape(space, kind, was_shown);
        }
    }

    fn detach(&mut self, device: u32, space: u32) {
        let plan = self.context.plan_detach(DeviceId(device), id(space));
        if self.run(self.model.detach(device, space), plan).is_some() {
            let kind = self.model.devices[&device].kind;
            self.model.devices.get_mut(&device).unwrap().attached = None;
            self.model.reshape(space, kind, true);
        }
    }

    fn map(&mut self, space: u32, map: Map) {
        let verdict = self.model.map(space, map);
        let check = self.context.check_map(id(space), map);
        assert_eq!(check.map_err(|error| error.errno()), verdict);
        let memory = MemoryId(self.next_memory);
        self.next_memory += 1;
        let plan = self.context.plan_map(id(space), map, memory);
        if self.run(verdict, plan).is_some() {
            let Map { iova, size, vaddr, prot } = map;
            let mappings = &mut self.model.spaces.get_mut(&space).unwrap().mappings;
            mappings.push(Mapping { iova, size, vaddr, prot, memory });
            self.held.insert(memory);
        }
    }

    fn unmap(&mut self, space: u32, unmap: Unmap) {
        let verdict = self.model.unmap(space, unmap);
        let plan = self.context.plan_unmap(id(space), unmap);
        if let Some(outcome) = self.run(verdict.clone().map(drop), plan) {
            let gone = set(&verdict.unwrap());
            assert_eq!(set(&outcome.released), gone);
            self.release(&outcome.released);
            let mappings = &mut self.model.spaces.get_mut(&space).unwrap().mappings;
            let bytes = mappings.iter().filter(|m| gone.contains(&m.memory)).map(|m| m.size);
            assert_eq!(outcome.unmapped_bytes, bytes.sum::<u64>());
            mappings.retain(|mapping| !gone.contains(&mapping.memory));
        }
    }

    /// Everything that can be seen from outside is as the model says.
    fn check(&self) {
        assert!(self.context.ioasids().map(Ioasid::get).eq(self.model.spaces.keys().copied()));
        for (&number, space) in &self.model.spaces {
            self.check_space(number, space);
        }
        for kind in 0..KINDS.len() {
            self.check_table(kind);
        }
        for (&number, device) in &self.model.devices {
            let info = self.context.device_info(DeviceId(number)).unwrap();
            assert_eq!(info.group, group(device.kind));
            assert_eq!(info.ioasid.map(Ioasid::get), device.attached);
        }
        assert_eq!(self.context.devices().count(), self.model.devices.len());
    }

    fn check_space(&self, number: u32, space: &Space) {
        let mut sorted = space.mappings.clone();
        sorted.sort_by_key(|mapping| mapping.iova);
        let held = self.context.mappings(id(number)).unwrap();
        assert!(held.map(|m| m.memory).eq(sorted.iter().map(|m| m.memory)));
        for page in pages() {
            let expected = space.mappings.iter().find(|mapping| mapping.covers(page));
            let found = self.context.translate(id(number), page);
            assert_eq!(found.map(|t| t.memory), expected.map(|m| m.memory), "at {page:#x}");
            if let (Some(found), Some(m)) = (found, expected) {
                assert_eq!((found.offset, found.prot), (page - m.iova, m.prot));
                assert_eq!(found.vaddr, m.vaddr + (page - m.iova));
                assert_eq!(u128::from(found.last) + 1, m.end());
            }
        }
        let info = self.context.info(id(number));
        let usable = self.model.usable(number);
        assert_eq!(info.as_ref().map(drop).map_err(Error::errno), usable.map(drop));
        if let Ok(info) = info {
            self.check_info(number, space, &info);
        }
    }

    fn check_info(&self, number: u32, space: &Space, info: &SpaceInfo) {
        let kinds = &space.shaped_by;
        let attached = self.model.devices.values().filter(|d| d.attached == Some(number));
        assert_eq!(info.nr_devices as usize, attached.count());
        assert_eq!(info.nr_mappings as usize, space.mappings.len());
        assert_eq!(info.mapped_bytes, space.mappings.iter().map(|m| m.size).sum::<u64>());
        assert_eq!(info.pgsizes.smallest(), smallest_page(kinds));
        assert_eq!(info.simulated, kinds.iter().all(|&kind| KINDS[kind].simulated));
        let limits = kinds.iter().map(|&kind| KINDS[kind].max_mappings);
        assert_eq!(Some(info.max_mappings), limits.chain([LIMITS.max_mappings]).min());
        for page in pages() {
            let listed =
                info.permitted.as_slice().iter().any(|r| r.start() <= page && page <= r.last());
            assert_eq!(listed, permitted(kinds, page), "at {page:#x}");
        }
    }

    /// The hardware holds exactly what the model says, and so does the engine's account of it.
    fn check_table(&self, kind: usize) {
        let is_broken = self.model.broken.contains(&kind);
        let said = self.context.tables().find(|table| table.group == group(kind));
        assert_eq!(said.is_some_and(|table| table.broken), is_broken);
        let shown = self.model.shown_by(kind);
        assert_eq!(said.and_then(|table| table.shows).map(Ioasid::get), shown);
        if is_broken {
            return;
        }
        let none = Space::default();
        let space = shown.map_or(&none, |number| &self.model.spaces[&number]);
        assert_eq!(self.fake.entries(group(kind)).len(), space.mappings.len());
        assert!(self.context.table_contents(group(kind)).eq(self.fake.entries(group(kind))));
        for page in pages() {
            let expected = space.mappings.iter().find(|mapping| mapping.covers(page));
            let found = self.fake.walk(group(kind), page);
            let found = found.map(|(entry, offset)| (entry.memory, offset, entry.prot));
            assert_eq!(found, expected.map(|m| (m.memory, page - m.iova, m.prot)), "at {page:#x}");
        }
    }

    /// The open of the node ends. Nothing is left anywhere but in tables that refuse.
    fn end(mut self) -> BTreeMap<i32, usize> {
        let plan = self.context.plan_release();
        let outcome = self.context.execute(plan, &mut self.fake).unwrap();
        assert_eq!(outcome.failures.is_empty(), !self.fake.has_refused());
        assert_eq!(set(&outcome.released), self.held);
        assert_eq!(outcome.released.len(), self.held.len());
        let failed: Vec<GroupId> = outcome.failures.iter().map(|(group, _)| *group).collect();
        for kind in (0..KINDS.len()).filter(|&kind| !failed.contains(&group(kind))) {
            assert_eq!(self.fake.entries(group(kind)), []);
        }
        assert_eq!(self.context.ioasids().count() + self.context.devices().count(), 0);
        self.seen
    }
}

fn id(number: u32) -> Ioasid {
    Ioasid::try_from(number).unwrap()
}

fn group(kind: usize) -> GroupId {
    GroupId(kind as u64)
}

fn set(memories: &[MemoryId]) -> BTreeSet<MemoryId> {
    memories.iter().copied().collect()
}

fn bind_of(kind: usize, name: usize) -> Bind {
    let Kind { pgsizes, permitted, max_mappings, simulated } = KINDS[kind];
    let permitted =
        permitted.iter().map(|&(start, last)| Range::new(start, last).unwrap()).collect();
    Bind {
        group: group(kind),
        geometry: Geometry { pgsizes: PageSizes(pgsizes), permitted, max_mappings },
        simulated,
        name: format!("device {kind}.{name}"),
        cookie: Cookie(kind as u64),
    }
}

/// What sequences begin with, so that most get far: 0 is nothing; 1 binds devices and attaches the
/// two of a group; 2 has a second group follow; 3 has it elsewhere.
fn prelude(kind: usize) -> Vec<Op> {
    let bind = |(kind, name)| Op::Bind { kind, name };
    let binds = [(0, 0), (0, 1), (3, 0), (1, 0)].map(bind);
    let space = [Op::Alloc, Op::Alloc, Op::Attach(1, 1), Op::Attach(2, 1)];
    let more: &[Op] = match kind {
        0 => return vec![],
        1 => &[],
        2 => &[Op::Attach(3, 1)],
        _ => &[Op::Attach(3, 2), Op::Attach(4, 2)],
    };
    [&binds, &space, more].concat()
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(4000)
}

#[test]
fn engine_and_tables_follow_the_model() {
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let mut total: BTreeMap<i32, usize> = BTreeMap::new();
    let all = std::cell::RefCell::new(&mut total);
    let run = |(begin, steps, last): (usize, Vec<Step>, Step)| {
        let mut world = World::new();
        for op in prelude(begin) {
            world.step(&op);
        }
        for step in steps {
            world.fake.refuse(refused(step));
            if world.step(&op(step)) {
                world.check();
            }
        }
        world.fake.refuse(refused(last));
        for (errno, count) in world.end() {
            *all.borrow_mut().entry(errno).or_default() += count;
        }
        Ok::<(), TestCaseError>(())
    };
    let steps = prop::collection::vec(any::<Step>(), 1..100);
    TestRunner::new(config).run(&(0usize..7, steps, any::<Step>()), run).unwrap();
    // The sequences reach every kind of end: success, each errno, a refusal, a broken table.
    for end in
        [0, ENOENT, ENODEV, EIO, EBUSY, EINVAL, EOVERFLOW, EADDRINUSE, EEXIST, ENOSPC, -1, -2]
    {
        assert!(total.get(&end).is_some_and(|&count| count > 20), "{end} is rare in {total:?}");
    }
    println!("{total:?}");
}

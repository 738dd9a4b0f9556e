//! Random commands, legal and illegal, on hardware that sometimes refuses: the engine against a
//! model that keeps lists and works everything out from scratch, address by address. Some plans
//! are carried out or committed only after other commands.

use std::collections::{BTreeMap, BTreeSet};

use ioasid_uapi::errno::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::fake::{Fake, Refusal};
use crate::kinds::*;
use crate::*;

const LIMITS: Limits =
    Limits { max_ioasids: 3, max_devices: 6, max_mappings: 4, max_registered: 2 };

#[derive(Clone, Debug)]
enum Op {
    Alloc,
    Free(usize),
    Bind {
        kind: usize,
        name: usize,
    },
    Unbind(usize),
    Attach(usize, usize),
    Detach(usize, usize),
    Map {
        space: usize,
        map: Map,
    },
    Unmap {
        space: usize,
        iova: u64,
        size: u64,
    },
    UnmapMapping {
        space: usize,
        mapping: usize,
        more: u64,
    },
    UnmapAll(usize),
    Register {
        owner: Owner,
        vaddr: u64,
        size: u64,
    },
    Unregister {
        owner: Owner,
        vaddr: u64,
        size: u64,
    },
    UnregisterOne(usize),
    /// Goes on with a plan that was put off.
    Finish(usize),
}

/// When the plan of a command is carried out and committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Now,
    /// It is carried out and committed later.
    Planned,
    /// It is carried out now and committed later.
    Carried,
}

/// A command on what the ids of an [`Op`] chose.
#[derive(Clone, Debug)]
enum Command {
    Free(u32),
    Unbind(u32),
    Attach(u32, u32),
    Detach(u32, u32),
    Map(u32, Map, MemoryId),
    Unmap(u32, Unmap),
}

/// What a plan depends on or a command changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Space(u32),
    Group(usize),
    Registration(MemoryId),
}

/// A plan that was put off.
struct Later {
    command: Command,
    plan: Plan,
    /// What it depends on, worked out when it was made.
    basis: BTreeSet<Thing>,
    /// That, and what it is going to change.
    concerns: BTreeSet<Thing>,
    /// Something that it depends on has changed since.
    stale: bool,
    /// What hardware said to it, and its hold, if it was carried out.
    carried: Option<(Carried<Refusal>, Hold)>,
}

/// A step, as proptest draws and shrinks it: small numbers that [`op`] and [`refused`] turn into a
/// command and into which of the hardware calls that it makes are refused. (Strategies that yield
/// commands themselves take most of the time of the test.)
type Step = [u8; 8];

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
        0..180 => u64::from(dice) % 12 * 2 * PAGE,
        180..230 => u64::from(dice) % 64 * PAGE,
        230..245 => 0u64.wrapping_sub(2 * PAGE),
        _ => 0x7800,
    }
}

/// Owner and kind of mapped memory: files belong to nobody else.
fn source(dice: u8) -> (Owner, MapKind) {
    match dice {
        0..120 => (Owner(1), MapKind::Memory),
        120..190 => (Owner(2), MapKind::Memory),
        190..230 => (Owner(3 + u32::from(dice) % 2), MapKind::File),
        _ => (Owner(1), MapKind::Device),
    }
}

fn op([kind, a, b, c, d, e, ..]: Step) -> Op {
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
        72..180 => {
            let prot = Prot { read: kind % 16 > 3, write: kind % 4 > 0 };
            let (owner, kind) = source(e);
            let (iova, size, vaddr) = (iova(b), size(c), vaddr(d));
            Op::Map { space, map: Map { iova, size, vaddr, prot, owner, kind } }
        }
        180..190 => {
            // Often half of the addresses that are mapped, so that there is something to map.
            let whole = c < 160;
            let size = if whole { 0x20 * PAGE } else { size(c) * 4 };
            let vaddr = if whole { u64::from(d) % 2 * 0x10 * PAGE } else { vaddr(d) };
            Op::Register { owner: Owner(1 + u32::from(e) % 2), vaddr, size }
        }
        190..191 => {
            Op::Unregister { owner: Owner(1 + u32::from(e) % 2), vaddr: vaddr(d), size: size(c) }
        }
        191..198 => Op::UnregisterOne(usize::from(a)),
        198..208 => Op::Unmap { space, iova: iova(b), size: size(c) },
        208..218 => Op::Unmap { space, iova: iova(b), size: 0x8000 },
        218..222 => Op::Unmap { space, iova: iova(b), size: !0xfff },
        222..245 => {
            let (mapping, more) = (usize::from(b) % 6, u64::from(c) % 3 * PAGE);
            Op::UnmapMapping { space, mapping, more }
        }
        245..250 => Op::UnmapAll(space),
        _ => Op::Finish(usize::from(a)),
    }
}

fn when([.., dice]: Step) -> When {
    match dice {
        0..180 => When::Now,
        180..210 => When::Planned,
        _ => When::Carried,
    }
}

/// Which hardware calls are refused: mostly none, one, or all from one on.
fn refused([.., dice, _]: Step) -> BTreeSet<usize> {
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
    owner: Owner,
    kind: MapKind,
    memory: MemoryId,
    /// The registration that it was made from.
    registered: Option<MemoryId>,
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

impl Space {
    /// The pages that are charged: each once, whoever maps it how often.
    fn charged(&self) -> BTreeSet<(Owner, u64)> {
        let own = |m: &&Mapping| m.kind != MapKind::Device && m.registered.is_none();
        let pages = |m: &Mapping| {
            let (owner, vaddr) = (m.owner, m.vaddr);
            (0..m.size / PAGE).map(move |page| (owner, vaddr + page * PAGE))
        };
        self.mappings.iter().filter(own).flat_map(pages).collect()
    }
}

/// Bytes by owner.
fn by_owner<'a>(pages: impl Iterator<Item = &'a (Owner, u64)>) -> Vec<(Owner, u64)> {
    let mut bytes = BTreeMap::new();
    pages.for_each(|&(owner, _)| *bytes.entry(owner).or_default() += PAGE);
    bytes.into_iter().collect()
}

#[derive(Clone, Debug)]
struct Registration {
    owner: Owner,
    vaddr: u64,
    size: u64,
    memory: MemoryId,
}

impl Registration {
    fn has(&self, address: u64) -> bool {
        address.checked_sub(self.vaddr).is_some_and(|offset| offset < self.size)
    }
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
    registrations: Vec<Registration>,
    spaces_made: u32,
    devices_made: u32,
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
        let Map { iova, size, vaddr, prot, .. } = map;
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

    /// The registration that memory is mapped from.
    fn registered(&self, map: Map) -> Result<Option<MemoryId>, i32> {
        if map.kind != MapKind::Memory || self.registrations.is_empty() {
            return Ok(None);
        }
        let has_all = |r: &&Registration| {
            let last = map.vaddr.checked_add(map.size.saturating_sub(1));
            r.owner == map.owner && r.has(map.vaddr) && last.is_some_and(|last| r.has(last))
        };
        self.registrations.iter().find(has_all).map(|r| Some(r.memory)).ok_or(EFAULT)
    }

    fn register(&self, owner: Owner, vaddr: u64, size: u64) -> Verdict {
        fail_if(size == 0, EINVAL)?;
        let end = u128::from(vaddr) + u128::from(size);
        fail_if(end > 1 << 64, EOVERFLOW)?;
        let overlaps = |r: &Registration| {
            u128::from(r.vaddr) < end && u128::from(r.vaddr) + u128::from(r.size) > vaddr.into()
        };
        fail_if(self.registrations.iter().any(|r| r.owner == owner && overlaps(r)), EEXIST)?;
        fail_if(self.registrations.len() == LIMITS.max_registered as usize, ENOSPC)
    }

    /// How many mappings were made from registered memory.
    fn users(&self, memory: MemoryId) -> u64 {
        let mappings = self.spaces.values().flat_map(|space| &space.mappings);
        mappings.filter(|mapping| mapping.registered == Some(memory)).count() as u64
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

    fn verdict(&self, command: &Command) -> Verdict {
        match *command {
            Command::Free(space) => self.free(space),
            Command::Unbind(device) => self.unbind(device),
            Command::Attach(device, space) => self.attach(device, space),
            Command::Detach(device, space) => self.detach(device, space),
            Command::Map(space, map, _) => {
                self.map(space, map)?;
                self.registered(map).map(drop)
            }
            Command::Unmap(space, unmap) => self.unmap(space, unmap).map(drop),
        }
    }

    fn group_of(&self, device: u32) -> Option<Thing> {
        Some(Thing::Group(self.devices.get(&device)?.kind))
    }

    /// What the plan of a command depends on.
    fn basis(&self, command: &Command) -> BTreeSet<Thing> {
        let of = |space, device| [Some(Thing::Space(space)), self.group_of(device)];
        match *command {
            Command::Free(space) | Command::Unmap(space, _) => [Thing::Space(space)].into(),
            Command::Map(space, map, _) => {
                let source = self.registered(map).ok().flatten().map(Thing::Registration);
                [Thing::Space(space)].into_iter().chain(source).collect()
            }
            Command::Attach(device, space) | Command::Detach(device, space) => {
                of(space, device).into_iter().flatten().collect()
            }
            Command::Unbind(device) => self.group_of(device).into_iter().collect(),
        }
    }

    /// What a command changes when it succeeds.
    fn effect(&self, command: &Command) -> BTreeSet<Thing> {
        match *command {
            Command::Free(space) | Command::Map(space, ..) => [Thing::Space(space)].into(),
            Command::Unmap(space, unmap) => match self.unmap(space, unmap) {
                Ok(gone) if !gone.is_empty() => [Thing::Space(space)].into(),
                _ => BTreeSet::new(),
            },
            Command::Attach(..) | Command::Detach(..) => self.basis(command),
            Command::Unbind(device) => {
                self.devices.get(&device).map_or_else(BTreeSet::new, |d| self.group(d.kind))
            }
        }
    }

    /// A group and the space that it shows.
    fn group(&self, kind: usize) -> BTreeSet<Thing> {
        let shown = self.shown_by(kind).map(Thing::Space);
        [Thing::Group(kind)].into_iter().chain(shown).collect()
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
    /// Memory that was mapped or registered and not yet released.
    held: BTreeSet<MemoryId>,
    /// What the plans charged and did not take back.
    charged: BTreeMap<Owner, u64>,
    later: Vec<Later>,
    when: When,
    may_have_changed: bool,
    /// How often each errno was seen, 0 for success.
    seen: BTreeMap<i32, usize>,
}

/// Ends that are no errno.
const REFUSED: i32 = -1;
const BROKEN: i32 = -2;
const STALE: i32 = -3;
const EXECUTED_LATER: i32 = -4;
const COMMITTED_LATER: i32 = -5;
const MAPPED_REGISTERED: i32 = -6;
const MAPPED_AGAIN: i32 = -7;
const UNREGISTER_WHILE_HELD: i32 = -8;

impl World {
    fn new() -> Self {
        Self {
            context: Context::new(LIMITS),
            fake: Fake::default(),
            model: Model::default(),
            next_memory: 0,
            held: BTreeSet::new(),
            charged: BTreeMap::new(),
            later: vec![],
            when: When::Now,
            may_have_changed: false,
            seen: BTreeMap::new(),
        }
    }

    fn count(&mut self, end: i32) {
        *self.seen.entry(end).or_default() += 1;
    }

    fn memory(&mut self) -> MemoryId {
        self.next_memory += 1;
        MemoryId(self.next_memory)
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

    fn plan(&self, command: &Command) -> Result<Plan, Error> {
        match *command {
            Command::Free(space) => self.context.plan_free(id(space)),
            Command::Unbind(device) => self.context.plan_unbind(DeviceId(device)),
            Command::Attach(device, space) => self.context.plan_attach(DeviceId(device), id(space)),
            Command::Detach(device, space) => self.context.plan_detach(DeviceId(device), id(space)),
            Command::Map(space, map, memory) => self.context.plan_map(id(space), map, memory),
            Command::Unmap(space, unmap) => self.context.plan_unmap(id(space), unmap),
        }
    }

    /// Whether a plan that was carried out and waits for its commit concerns one of these: the
    /// caller of the engine then gives no command that depends on them or changes them.
    fn is_busy(&self, things: &BTreeSet<Thing>) -> bool {
        self.later.iter().any(|l| l.carried.is_some() && !l.concerns.is_disjoint(things))
    }

    /// Plans that depend on one of these are stale.
    fn touch(&mut self, things: &BTreeSet<Thing>) {
        let depends = |later: &&mut Later| !later.basis.is_disjoint(things);
        self.later.iter_mut().filter(depends).for_each(|later| later.stale = true);
    }

    /// Plans, and carries out and commits now or later. What comes out of planning must be the
    /// verdict of the model.
    fn run(&mut self, command: Command) {
        let basis = self.model.basis(&command);
        let concerns = basis.union(&self.model.effect(&command)).copied().collect();
        if self.is_busy(&concerns) {
            return;
        }
        let verdict = self.model.verdict(&command);
        let plan = self.plan(&command);
        assert_eq!(plan.as_ref().map(drop).map_err(Error::errno), verdict, "{plan:?}");
        self.count(verdict.err().unwrap_or(0));
        let Ok(plan) = plan else { return };
        self.check_charge(&command, &plan);
        match self.when {
            When::Now => self.execute(command, plan),
            When::Planned => {
                let (stale, carried) = (false, None);
                self.later.push(Later { command, plan, basis, concerns, stale, carried });
            }
            When::Carried => {
                let hold = self.context.hold(&plan).unwrap();
                match plan.carry_out(&self.context, &mut self.fake) {
                    Ok(carried) => {
                        assert!(!self.fake.has_refused(), "a refusal was overlooked");
                        let (stale, carried) = (false, Some((carried, hold)));
                        self.later.push(Later { command, plan, basis, concerns, stale, carried });
                    }
                    Err(undone) => {
                        self.context.let_go(hold);
                        let error = self.context.abandon(undone);
                        self.refused(error);
                    }
                }
            }
        }
    }

    /// A plan charges the pages that the mapping adds to those of its space.
    fn check_charge(&self, command: &Command, plan: &Plan) {
        let mut more = 0;
        if let Command::Map(space, map, memory) = *command {
            let mut space = self.model.spaces[&space].clone();
            let before = space.charged();
            space.mappings.push(self.mapping(map, memory, self.model.registered(map).unwrap()));
            more = (space.charged().len() - before.len()) as u64 * PAGE;
        }
        assert_eq!(plan.charge(), more);
    }

    fn mapping(&self, map: Map, memory: MemoryId, registered: Option<MemoryId>) -> Mapping {
        let Map { iova, size, vaddr, prot, owner, kind } = map;
        Mapping { iova, size, vaddr, prot, owner, kind, memory, registered }
    }

    /// Success unless the hardware refuses.
    fn execute(&mut self, command: Command, plan: Plan) {
        self.may_have_changed = true;
        let before = self.context.clone();
        let (work, charge) = (plan.work(&self.context), plan.charge());
        let mapped = self.fake.mapped;
        match self.context.execute(plan, &mut self.fake) {
            Ok(outcome) => {
                assert!(!self.fake.has_refused(), "a refusal was overlooked");
                assert_eq!(u128::from(work), self.fake.mapped - mapped);
                self.done(command, charge, outcome);
            }
            Err(error @ ExecuteError::Refused { .. }) => {
                assert_eq!(self.context, before, "a refused change left a trace");
                self.refused(error);
            }
            Err(error @ ExecuteError::Broken { .. }) => self.refused(error),
            Err(ExecuteError::Plan(error)) => panic!("{error}"),
        }
    }

    fn refused(&mut self, error: ExecuteError<Refusal>) {
        assert!(self.fake.has_refused());
        self.may_have_changed = true;
        let ExecuteError::Broken { broken, .. } = error else {
            return self.count(REFUSED);
        };
        assert!(!broken.is_empty());
        for (group, _) in broken {
            let kind = group.0 as usize;
            self.model.broken.insert(kind);
            self.touch(&self.model.group(kind));
        }
        self.count(BROKEN);
    }

    /// Goes on with a plan that was put off. It is refused if and only if something that it depends
    /// on has changed; if not, the verdict still holds.
    fn finish(&mut self, later: Later) {
        let Later { command, plan, basis, stale, carried, .. } = later;
        self.may_have_changed = true;
        assert_eq!(self.context.check(&plan).is_err(), stale, "{command:?}");
        if let Some((carried, hold)) = carried {
            assert!(!stale, "{command:?} was disturbed");
            let charge = plan.charge();
            let outcome = self.context.commit(plan, carried).unwrap();
            self.context.let_go(hold);
            self.count(COMMITTED_LATER);
            self.done_with(command, charge, outcome, &basis);
        } else if stale {
            let before = self.context.clone();
            assert!(self.context.hold(&plan).is_err());
            let refused = self.context.execute(plan, &mut self.fake);
            assert!(matches!(refused, Err(ExecuteError::Plan(Error::StalePlan))));
            assert_eq!((self.context == before, self.fake.calls), (true, 0));
            self.count(STALE);
        } else {
            // What is registered meanwhile changes nothing for memory that was not.
            let verdict = self.model.verdict(&command);
            assert!(verdict.is_ok() || verdict == Err(EFAULT), "{command:?}: {verdict:?}");
            if self.is_busy(&basis.union(&self.model.effect(&command)).copied().collect()) {
                return;
            }
            self.count(EXECUTED_LATER);
            self.execute_later(command, plan, &basis);
        }
    }

    fn execute_later(&mut self, command: Command, plan: Plan, basis: &BTreeSet<Thing>) {
        let charge = plan.charge();
        match self.context.execute(plan, &mut self.fake) {
            Ok(outcome) => self.done_with(command, charge, outcome, basis),
            Err(error) => self.refused(error),
        }
    }

    fn done(&mut self, command: Command, charge: u64, outcome: Outcome<Refusal>) {
        let basis = self.model.basis(&command);
        self.done_with(command, charge, outcome, &basis);
    }

    /// The model follows what was committed, and checks what came out.
    fn done_with(
        &mut self,
        command: Command,
        charge: u64,
        outcome: Outcome<Refusal>,
        basis: &BTreeSet<Thing>,
    ) {
        assert_eq!(outcome.failures, []);
        self.touch(&self.model.effect(&command));
        match command {
            Command::Free(space) => {
                let gone = self.model.spaces.remove(&space).unwrap();
                assert_eq!(
                    set(&outcome.released),
                    gone.mappings.iter().map(|m| m.memory).collect()
                );
                self.release(&outcome, by_owner(gone.charged().iter()));
            }
            Command::Unbind(device) => self.unbound(device, &outcome),
            Command::Attach(device, space) => {
                let kind = self.model.devices[&device].kind;
                let was_shown = self.model.shown_by(kind).is_some();
                self.model.devices.get_mut(&device).unwrap().attached = Some(space);
                self.model.reshape(space, kind, was_shown);
            }
            Command::Detach(device, space) => {
                let kind = self.model.devices[&device].kind;
                self.model.devices.get_mut(&device).unwrap().attached = None;
                self.model.reshape(space, kind, true);
            }
            Command::Map(space, map, memory) => {
                let registered = basis.iter().find_map(|thing| match thing {
                    Thing::Registration(memory) => Some(*memory),
                    _ => None,
                });
                if registered.is_some() {
                    self.count(MAPPED_REGISTERED);
                } else if charge < map.size && map.kind != MapKind::Device {
                    self.count(MAPPED_AGAIN);
                }
                let mapping = self.mapping(map, memory, registered);
                self.model.spaces.get_mut(&space).unwrap().mappings.push(mapping);
                self.held.insert(memory);
                *self.charged.entry(map.owner).or_default() += charge;
            }
            Command::Unmap(space, unmap) => self.unmapped(space, unmap, &outcome),
        }
    }

    /// What was mapped is given back, and so is what it was charged.
    fn release(&mut self, outcome: &Outcome<Refusal>, uncharged: Vec<(Owner, u64)>) {
        for memory in &outcome.released {
            assert!(self.held.remove(memory), "memory {memory} was released twice");
        }
        assert_eq!(outcome.uncharged, uncharged);
        for (owner, bytes) in uncharged {
            *self.charged.get_mut(&owner).unwrap() -= bytes;
        }
    }

    fn unbound(&mut self, device: u32, outcome: &Outcome<Refusal>) {
        let kind = self.model.devices.remove(&device).unwrap().kind;
        let last = !self.model.devices.values().any(|device| device.kind == kind);
        assert_eq!(outcome.retired, if last { vec![group(kind)] } else { vec![] });
        if last && self.model.broken.remove(&kind) {
            // The group gets another table when it is bound again.
            self.fake.refuse([]);
            self.fake.clear(group(kind)).unwrap();
        }
    }

    fn unmapped(&mut self, space: u32, unmap: Unmap, outcome: &Outcome<Refusal>) {
        let gone = set(&self.model.unmap(space, unmap).unwrap());
        assert_eq!(set(&outcome.released), gone);
        let space = self.model.spaces.get_mut(&space).unwrap();
        let before = space.charged();
        let bytes = space.mappings.iter().filter(|m| gone.contains(&m.memory)).map(|m| m.size);
        assert_eq!(outcome.unmapped_bytes, bytes.sum::<u64>());
        space.mappings.retain(|mapping| !gone.contains(&mapping.memory));
        let uncharged = by_owner(before.difference(&space.charged()));
        self.release(outcome, uncharged);
    }

    /// Gives a command, and says whether anything may have changed: planning alone borrows the
    /// context without the right to.
    fn step(&mut self, op: &Op, when: When) -> bool {
        self.may_have_changed = false;
        self.when = when;
        self.command(op);
        if self.later.len() > 3 {
            self.fake.refuse([]);
            self.command(&Op::Finish(0));
        }
        self.may_have_changed
    }

    fn command(&mut self, op: &Op) {
        match *op {
            Op::Alloc => self.alloc(),
            Op::Free(space) => self.run(Command::Free(self.space(space))),
            Op::Bind { kind, name } => self.bind(kind, name),
            Op::Unbind(device) => self.run(Command::Unbind(self.device(device))),
            Op::Attach(device, space) => {
                self.run(Command::Attach(self.device(device), self.space(space)));
            }
            Op::Detach(device, space) => {
                self.run(Command::Detach(self.device(device), self.space(space)));
            }
            Op::Map { space, map } => self.map(self.space(space), map),
            Op::Unmap { space, iova, size } => {
                self.run(Command::Unmap(self.space(space), Unmap::Range { iova, size }));
            }
            Op::UnmapMapping { space, mapping, more } => {
                let space = self.space(space);
                let mappings = self.model.spaces.get(&space).map_or(&[][..], |s| &s.mappings);
                if let Some(m) = mappings.get(mapping) {
                    let (iova, size) = (m.iova, m.size + more);
                    self.run(Command::Unmap(space, Unmap::Range { iova, size }));
                }
            }
            Op::UnmapAll(space) => self.run(Command::Unmap(self.space(space), Unmap::All)),
            Op::Register { owner, vaddr, size } => self.register(owner, vaddr, size),
            Op::Unregister { owner, vaddr, size } => self.unregister(owner, vaddr, size),
            Op::UnregisterOne(choice) => {
                let count = self.model.registrations.len().max(1);
                if let Some(one) = self.model.registrations.get(choice % count) {
                    let Registration { owner, vaddr, size, .. } = *one;
                    self.unregister(owner, vaddr, size);
                }
            }
            Op::Finish(choice) => {
                if !self.later.is_empty() {
                    let later = self.later.remove(choice % self.later.len());
                    self.finish(later);
                }
            }
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

    fn bind(&mut self, kind: usize, name: usize) {
        if self.is_busy(&self.model.group(kind)) {
            return;
        }
        let verdict = self.model.bind(kind, name);
        let bind = bind_of(kind, name);
        let possible = self.context.can_bind(bind.group, &bind.name);
        assert_eq!(possible.map_err(|error| error.errno()), verdict);
        let result = self.context.bind(bind);
        self.may_have_changed = true;
        assert_eq!(result.as_ref().map(drop).map_err(Error::errno), verdict);
        if let Ok(device) = result {
            self.touch(&self.model.group(kind));
            self.model.devices_made += 1;
            assert_eq!(device.0, self.model.devices_made, "numbers are never used again");
            self.model.devices.insert(device.0, Device { kind, name, attached: None });
        }
    }

    fn map(&mut self, space: u32, map: Map) {
        let verdict = self.model.map(space, map);
        let check = self.context.check_map(id(space), map);
        assert_eq!(check.map_err(|error| error.errno()), verdict);
        if verdict.is_ok() && map.kind == MapKind::Memory {
            let found = self.context.registered(map.owner, map.vaddr, map.size);
            let found = found.map(|found| found.map(|found| found.memory));
            assert_eq!(found.map_err(|error| error.errno()), self.model.registered(map));
        }
        let memory = self.memory();
        self.run(Command::Map(space, map, memory));
    }

    fn register(&mut self, owner: Owner, vaddr: u64, size: u64) {
        let verdict = self.model.register(owner, vaddr, size);
        let check = self.context.check_register(owner, vaddr, size);
        assert_eq!(check.map_err(|error| error.errno()), verdict);
        let memory = self.memory();
        let result = self.context.register(owner, vaddr, size, memory);
        self.may_have_changed = true;
        assert_eq!(result.map_err(|error| error.errno()), verdict);
        self.count(verdict.err().unwrap_or(0));
        if verdict.is_ok() {
            self.model.registrations.push(Registration { owner, vaddr, size, memory });
            self.held.insert(memory);
        }
    }

    fn unregister(&mut self, owner: Owner, vaddr: u64, size: u64) {
        let same = |r: &Registration| (r.owner, r.vaddr, r.size) == (owner, vaddr, size);
        let place = self.model.registrations.iter().position(same);
        let memory = place.map(|place| self.model.registrations[place].memory);
        let wraps = u128::from(vaddr) + u128::from(size) > 1 << 64;
        let verdict = match memory {
            _ if size == 0 => Err(EINVAL),
            _ if wraps => Err(EOVERFLOW),
            None => Err(ENOENT),
            Some(memory) if self.users(memory) > 0 => Err(EBUSY),
            Some(memory) => Ok(memory),
        };
        if memory.is_some_and(|memory| self.users(memory) > self.model.users(memory)) {
            self.count(UNREGISTER_WHILE_HELD);
        }
        let result = self.context.unregister(owner, vaddr, size);
        self.may_have_changed = true;
        assert_eq!(result.map_err(|error| error.errno()), verdict);
        self.count(verdict.err().unwrap_or(0));
        if let (Ok(memory), Some(place)) = (verdict, place) {
            self.model.registrations.remove(place);
            self.held.remove(&memory);
            self.touch(&[Thing::Registration(memory)].into());
        }
    }

    /// The mappings made from registered memory, and those that are about to be.
    fn users(&self, memory: MemoryId) -> u64 {
        let source = Thing::Registration(memory);
        let held = self.later.iter().filter(|l| l.carried.is_some() && l.basis.contains(&source));
        self.model.users(memory) + held.count() as u64
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
        let mut registered = self.model.registrations.clone();
        registered.sort_by_key(|r| (r.owner, r.vaddr));
        let registered = registered.into_iter().map(|r| {
            (r.owner, Range::from_size(r.vaddr, r.size).unwrap(), r.memory, self.users(r.memory))
        });
        assert!(self.context.registrations().eq(registered));
    }

    fn check_space(&self, number: u32, space: &Space) {
        let mut sorted = space.mappings.clone();
        sorted.sort_by_key(|mapping| mapping.iova);
        let held = self.context.mappings(id(number)).unwrap();
        let seen = |m: &Mapping| (m.memory, m.owner, m.kind);
        assert!(held.map(|m| (m.memory, m.owner, m.kind)).eq(sorted.iter().map(seen)));
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
        assert_eq!(info.locked_bytes, space.charged().len() as u64 * PAGE);
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
        let ahead = self.later.iter().filter(|later| later.carried.is_some());
        let mut ahead = ahead.flat_map(|later| later.plan.changes());
        if ahead.any(|change| change.group() == group(kind)) {
            return;
        }
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
    fn end(mut self, refused: BTreeSet<usize>) -> BTreeMap<i32, usize> {
        while !self.later.is_empty() {
            self.fake.refuse([]);
            self.command(&Op::Finish(0));
        }
        self.check();
        self.fake.refuse(refused);
        let plan = self.context.plan_release();
        let outcome = self.context.execute(plan, &mut self.fake).unwrap();
        assert_eq!(outcome.failures.is_empty(), !self.fake.has_refused());
        assert_eq!(set(&outcome.released), self.held);
        assert_eq!(outcome.released.len(), self.held.len());
        let charged = self.charged.iter().map(|(&owner, &bytes)| (owner, bytes));
        assert_eq!(outcome.uncharged, charged.filter(|(_, bytes)| *bytes > 0).collect::<Vec<_>>());
        let failed: Vec<GroupId> = outcome.failures.iter().map(|(group, _)| *group).collect();
        for kind in (0..KINDS.len()).filter(|&kind| !failed.contains(&group(kind))) {
            assert_eq!(self.fake.entries(group(kind)), []);
        }
        assert_eq!(self.context.ioasids().count() + self.context.devices().count(), 0);
        assert_eq!(self.context.registrations().count(), 0);
        self.seen
    }
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
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(6000)
}

#[test]
fn engine_and_tables_follow_the_model() {
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let mut total: BTreeMap<i32, usize> = BTreeMap::new();
    let all = std::cell::RefCell::new(&mut total);
    let run = |(begin, steps, last): (usize, Vec<Step>, Step)| {
        let mut world = World::new();
        for op in prelude(begin) {
            world.step(&op, When::Now);
        }
        for step in steps {
            world.fake.refuse(refused(step));
            if world.step(&op(step), when(step)) {
                world.check();
            }
        }
        for (errno, count) in world.end(refused(last)) {
            *all.borrow_mut().entry(errno).or_default() += count;
        }
        Ok::<(), TestCaseError>(())
    };
    let steps = prop::collection::vec(any::<Step>(), 1..100);
    TestRunner::new(config).run(&(0usize..7, steps, any::<Step>()), run).unwrap();
    // The sequences reach every kind of end: success, each errno, a refusal, a broken table.
    for end in
        [0, ENOENT, ENODEV, EIO, EBUSY, EINVAL, EOVERFLOW, EADDRINUSE, EEXIST, EFAULT, ENOSPC]
            .into_iter()
            .chain([REFUSED, BROKEN, STALE, EXECUTED_LATER, COMMITTED_LATER])
            .chain([MAPPED_REGISTERED, MAPPED_AGAIN, UNREGISTER_WHILE_HELD])
    {
        assert!(total.get(&end).is_some_and(|&count| count > 20), "{end} is rare in {total:?}");
    }
    println!("{total:?}");
}

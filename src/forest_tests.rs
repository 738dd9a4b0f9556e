//! Random commands, legal and illegal, on forests of nested address spaces and on groups of several
//! devices, on hardware that sometimes refuses: the engine against a model that knows nothing of
//! pieces and works out every translation from scratch, page by page and level by level. Page
//! tables of the program are lists of leaves, which change behind the engine's back. Some plans
//! are carried out only after other commands.
//!
//! A run can be repeated: it prints its seed, which `IOASID_SEED` sets.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ioasid_uapi::errno::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::fake::{Fake, Refusal};
use crate::kinds::*;
use crate::pgtable::{Format, Leaf, Root};
use crate::*;

const LIMITS: Limits =
    Limits { max_ioasids: 7, max_devices: 8, max_mappings: 8, max_registered: 1 };
/// Group n is hardware of this kind.
const GROUPS: [usize; 7] = [0, 2, 0, 2, 1, 3, 4];
/// How many page tables the program has.
const PROGRAMS: usize = 3;
/// Pages at the bottom and at the top of the IOVAs, which are all that commands name.
const LOW: u64 = 0x20;
const HIGH: u64 = 8;
/// The memory that is registered, if any: half of what roots map.
const REGISTERED: (u64, u64) = (0x100 * PAGE, 0x20 * PAGE);
const ME: Owner = Owner(1);

fn all_pages() -> impl Iterator<Item = u64> {
    let high = (1..=HIGH).rev().map(|page| 0u64.wrapping_sub(page * PAGE));
    (0..LOW).map(|page| page * PAGE).chain(high)
}

#[derive(Clone, Debug)]
enum Op {
    Alloc,
    Nest(usize),
    Free(usize),
    Bind {
        group: usize,
        name: usize,
    },
    Unbind(usize),
    Attach(usize, usize),
    /// To a child of what the device is attached to, or to a root.
    Descend(usize, usize),
    Detach(usize, usize),
    /// From what the device was attached to last.
    Ascend(usize),
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
    BindTable {
        space: usize,
        program: usize,
    },
    UnbindTable(usize),
    Invalidate {
        space: usize,
        range: Range,
    },
    /// The program changes a table of its own.
    Write {
        program: usize,
        leaf: Leaf,
        present: bool,
    },
    Register,
    Unregister,
    /// Goes on with a plan that was put off.
    Finish(usize),
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
    BindTable(u32, usize, Vec<Leaf>),
    UnbindTable(u32),
    Invalidate(u32, Range, Vec<Leaf>),
}

impl Command {
    /// The address space that it names.
    fn space(&self) -> Option<u32> {
        match *self {
            Self::Free(space)
            | Self::Attach(_, space)
            | Self::Detach(_, space)
            | Self::Map(space, ..)
            | Self::Unmap(space, _)
            | Self::BindTable(space, ..)
            | Self::UnbindTable(space)
            | Self::Invalidate(space, ..) => Some(space),
            Self::Unbind(_) => None,
        }
    }

    fn device(&self) -> Option<u32> {
        match *self {
            Self::Unbind(device) | Self::Attach(device, _) | Self::Detach(device, _) => {
                Some(device)
            }
            _ => None,
        }
    }
}

/// What a plan depends on or a command changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// Everything that is nested on a root.
    Family(u32),
    Group(usize),
    Registration(MemoryId),
}

/// A plan that was put off.
struct Later {
    command: Command,
    plan: Plan,
    basis: BTreeSet<Thing>,
    stale: bool,
}

/// A step, as proptest draws and shrinks it. See `model_tests`.
type Step = [u8; 8];

fn address(dice: u8) -> u64 {
    match u64::from(dice) {
        dice @ 0..200 => dice % 8 * 2 * PAGE,
        dice @ 200..240 => dice % 0x18 * PAGE,
        dice @ 240..252 => 0u64.wrapping_sub((1 + dice % 4) * 2 * PAGE),
        dice => dice % 0x10 * 0x800,
    }
}

fn size(dice: u8) -> u64 {
    match dice {
        0..70 => 2 * PAGE,
        70..140 => 4 * PAGE,
        140..200 => 8 * PAGE,
        200..248 => (1 + u64::from(dice) % 3) * PAGE,
        248..252 => 0,
        _ => 0x800,
    }
}

fn prot(dice: u8) -> Prot {
    match dice % 16 {
        0 | 1 => Prot::READ,
        2 | 3 => Prot::WRITE,
        _ => Prot::READ_WRITE,
    }
}

fn leaf(at: u8, to: u8, pages: u8, rights: u8) -> Leaf {
    let size = PAGE << (pages % 8).saturating_sub(4);
    let place = |dice: u8| match dice {
        0..240 => (u64::from(dice) % 0x18 * PAGE) & !(size - 1),
        _ => 0u64.wrapping_sub(8 * PAGE),
    };
    Leaf { iova: place(at), size, target: place(to), prot: prot(rights) }
}

fn op([kind, a, b, c, d, e, ..]: Step) -> Op {
    // Now and then a space or device that does not exist.
    let choice = |dice: u8| usize::from(dice) % 129;
    let (space, device, program) = (choice(a), choice(b), usize::from(e) % PROGRAMS);
    match kind {
        0..3 => Op::Alloc,
        3..10 => Op::Nest(space),
        10..14 => Op::Free(space),
        14..21 => Op::Bind { group: usize::from(a) % GROUPS.len(), name: usize::from(b) % 2 },
        21..24 => Op::Unbind(device),
        24..29 => Op::Attach(device, space),
        29..56 => Op::Descend(device, usize::from(a)),
        56..59 => Op::Detach(device, space),
        59..68 => Op::Ascend(device),
        68..162 => {
            let kind = match d {
                0..200 => MapKind::Memory,
                200..230 => MapKind::File,
                _ => MapKind::Device,
            };
            let (iova, size, vaddr, prot) = (address(b), size(c), address(d), prot(e));
            Op::Map { space, map: Map { iova, size, vaddr, prot, owner: ME, kind } }
        }
        162..168 => Op::Unmap { space, iova: address(b), size: size(c) << (d % 3) },
        168..182 => {
            let (mapping, more) = (usize::from(b) % 6, u64::from(c) % 3 * PAGE);
            Op::UnmapMapping { space, mapping, more }
        }
        182..184 => Op::UnmapAll(space),
        184..195 => Op::BindTable { space, program },
        195..197 => Op::UnbindTable(space),
        197..221 => {
            let range = match c {
                0..60 => Range::ALL,
                _ => Range::from_size(address(b), size(c).max(1)).unwrap_or(Range::ALL),
            };
            Op::Invalidate { space, range }
        }
        221..246 => Op::Write { program, leaf: leaf(a, b, c, d), present: d % 4 > 0 },
        246..249 => Op::Register,
        249..251 => Op::Unregister,
        _ => Op::Finish(usize::from(a)),
    }
}

/// Which hardware calls are refused: mostly none, one, or all from one on.
fn refused([.., dice, _]: Step) -> BTreeSet<usize> {
    let place = usize::from(dice) % 5;
    match dice {
        0..170 => BTreeSet::new(),
        170..210 => BTreeSet::from([place]),
        210..240 => (place..40).collect(),
        _ => [place, place + 2, place + 3].into(),
    }
}

/// A mapping, made by a command or read from a leaf.
#[derive(Clone, Debug)]
struct Mapping {
    /// No other has had it.
    key: u32,
    iova: u64,
    size: u64,
    /// Where in the parent it leads, or nowhere that matters.
    vaddr: u64,
    prot: Prot,
    /// Of a root: what it leads to.
    memory: MemoryId,
    registered: Option<MemoryId>,
}

impl Mapping {
    fn covers(&self, address: u64) -> bool {
        address.checked_sub(self.iova).is_some_and(|offset| offset < self.size)
    }

    fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let iova = self.iova;
        (0..self.size / PAGE).map(move |page| iova + page * PAGE)
    }

    fn range(&self) -> Range {
        Range::from_size(self.iova, self.size).unwrap()
    }

    /// The same for all that can be seen.
    fn is_like(&self, other: &Self) -> bool {
        (self.iova, self.size, self.vaddr, self.prot)
            == (other.iova, other.size, other.vaddr, other.prot)
    }
}

#[derive(Clone, Debug, Default)]
struct Space {
    parent: Option<u32>,
    mappings: Vec<Mapping>,
    /// The kinds of hardware whose properties it has: of those that are attached, or that last
    /// were.
    shaped_by: Vec<usize>,
    /// The table of the program that it is bound to.
    bound: Option<usize>,
}

impl Space {
    fn limit(&self) -> usize {
        let limits = self.shaped_by.iter().map(|&kind| KINDS[kind].max_mappings);
        limits.chain([LIMITS.max_mappings]).min().unwrap() as usize
    }
}

#[derive(Clone, Debug)]
struct Device {
    group: usize,
    name: usize,
    /// What it is attached to, each nested on the one before.
    path: Vec<u32>,
}

/// Where a page leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lead {
    memory: MemoryId,
    offset: u64,
    prot: Prot,
    /// The mappings on the way.
    way: [u32; LIMITS.max_ioasids as usize],
}

/// What the context should be.
#[derive(Clone, Debug, Default)]
struct Model {
    spaces: BTreeMap<u32, Space>,
    devices: BTreeMap<u32, Device>,
    broken: BTreeSet<usize>,
    registered: Option<MemoryId>,
    spaces_made: u32,
    devices_made: u32,
    keys: u32,
}

/// Questions about translations.
impl Model {
    fn lead(&self, space: u32, address: u64) -> Option<Lead> {
        let (mut space, mut address) = (self.spaces.get(&space)?, address);
        let mut way = [0; LIMITS.max_ioasids as usize];
        let (mut read, mut write) = (true, true);
        for key in &mut way {
            let mapping = space.mappings.iter().find(|mapping| mapping.covers(address))?;
            *key = mapping.key;
            read &= mapping.prot.read;
            write &= mapping.prot.write;
            let offset = address - mapping.iova;
            let Some(parent) = space.parent else {
                let prot = Prot { read, write };
                return (read || write).then_some(Lead {
                    memory: mapping.memory,
                    offset,
                    prot,
                    way,
                });
            };
            space = &self.spaces[&parent];
            address = mapping.vaddr + offset;
        }
        unreachable!("no space has so many above it")
    }

    /// The entries of a table that shows a space: pages that follow one another and lead through the
    /// same mappings are one.
    fn entries(&self, space: u32) -> Vec<Entry> {
        let mut entries: Vec<Entry> = vec![];
        let mut last: Option<(u64, Lead)> = None;
        for page in all_pages() {
            let Some(lead) = self.lead(space, page) else { continue };
            let goes_on =
                last.is_some_and(|(before, way)| before + PAGE == page && way.way == lead.way);
            match entries.last_mut() {
                Some(entry) if goes_on => entry.size += PAGE,
                _ => {
                    let Lead { memory, offset, prot, .. } = lead;
                    entries.push(Entry { iova: page, size: PAGE, prot, memory, offset });
                }
            }
            last = Some((page, lead));
        }
        entries
    }
}

/// Questions about who is attached to what.
impl Model {
    fn root(&self, space: u32) -> u32 {
        match self.spaces.get(&space).and_then(|space| space.parent) {
            Some(parent) => self.root(parent),
            None => space,
        }
    }

    fn depth(&self, space: u32) -> u32 {
        self.spaces[&space].parent.map_or(0, |parent| 1 + self.depth(parent))
    }

    fn members(&self, group: usize) -> impl Iterator<Item = &Device> {
        self.devices.values().filter(move |device| device.group == group)
    }

    /// The groups with a device that is attached to a space.
    fn attached(&self, space: u32) -> BTreeSet<usize> {
        let attached = self.devices.values().filter(|device| device.path.contains(&space));
        attached.map(|device| device.group).collect()
    }

    /// The path of the device of a group that is attached to most, which is what the table shows.
    fn path(&self, group: usize) -> &[u32] {
        let paths = self.members(group).map(|device| &device.path[..]);
        paths.max_by_key(|path| path.len()).unwrap_or(&[])
    }

    fn is_partial(&self, group: usize, space: u32) -> bool {
        self.members(group).any(|device| device.path.contains(&space))
            && self.members(group).any(|device| !device.path.contains(&space))
    }

    fn kinds(groups: &BTreeSet<usize>) -> Vec<usize> {
        groups.iter().map(|&group| GROUPS[group]).collect()
    }
}

/// The rules: the errno of each command, or what comes out of it.
impl Model {
    fn usable(&self, space: u32) -> Result<&Space, i32> {
        let found = self.spaces.get(&space).ok_or(ENOENT)?;
        fail_if(found.shaped_by.is_empty(), ENODEV)?;
        let groups = self.attached(space);
        fail_if(groups.iter().any(|group| self.broken.contains(group)), EIO)?;
        fail_if(groups.iter().any(|&group| self.is_partial(group, space)), EBUSY)?;
        Ok(found)
    }

    fn nest(&self, parent: u32) -> Verdict {
        self.usable(parent)?;
        fail_if(self.spaces.len() == LIMITS.max_ioasids as usize, ENOSPC)
    }

    fn free(&self, space: u32) -> Verdict {
        fail_if(!self.spaces.contains_key(&space), ENOENT)?;
        fail_if(!self.attached(space).is_empty(), EBUSY)?;
        fail_if(self.spaces.values().any(|other| other.parent == Some(space)), EBUSY)
    }

    fn bind(&self, group: usize, name: usize) -> Verdict {
        fail_if(self.members(group).any(|device| device.name == name), EBUSY)?;
        fail_if(self.devices.len() == LIMITS.max_devices as usize, ENOSPC)
    }

    fn unbind(&self, device: u32) -> Verdict {
        fail_if(!self.devices.get(&device).ok_or(ENOENT)?.path.is_empty(), EBUSY)
    }

    fn map(&self, space: u32, map: Map) -> Verdict {
        let found = self.usable(space)?;
        fail_if(found.bound.is_some(), EBUSY)?;
        let (Space { mappings, shaped_by, .. }, Map { iova, size, vaddr, prot, .. }) = (found, map);
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
        fail_if(mappings.len() == found.limit(), ENOSPC)
    }

    /// The registration that memory is mapped from. What a child maps is an address.
    fn source(&self, space: u32, map: Map) -> Result<Option<MemoryId>, i32> {
        let Some(memory) = self.registered else { return Ok(None) };
        if self.spaces[&space].parent.is_some() || map.kind != MapKind::Memory {
            return Ok(None);
        }
        let (start, size) = REGISTERED;
        let room = map.vaddr.checked_sub(start).and_then(|before| size.checked_sub(before));
        if room.is_some_and(|room| map.size <= room) { Ok(Some(memory)) } else { Err(EFAULT) }
    }

    /// The mappings that an unmap removes.
    fn unmap(&self, space: u32, unmap: Unmap) -> Result<BTreeSet<u32>, i32> {
        let Space { mappings, shaped_by, bound, .. } = self.usable(space)?;
        fail_if(bound.is_some(), EBUSY)?;
        let Unmap::Range { iova, size } = unmap else {
            return Ok(mappings.iter().map(|mapping| mapping.key).collect());
        };
        let page = smallest_page(shaped_by).unwrap();
        fail_if(size == 0 || iova % page != 0 || size % page != 0, EINVAL)?;
        let (start, end) = (u128::from(iova), u128::from(iova) + u128::from(size));
        fail_if(end > 1 << 64, EOVERFLOW)?;
        let mut gone = BTreeSet::new();
        for mapping in mappings {
            let inside = |page: &u64| (start..end).contains(&u128::from(*page));
            match mapping.pages().filter(inside).count() as u64 * PAGE {
                0 => {}
                covered if covered == mapping.size => drop(gone.insert(mapping.key)),
                _ => return Err(EINVAL),
            }
        }
        Ok(gone)
    }

    fn attach(&self, device: u32, space: u32) -> Verdict {
        let Device { group, path, .. } = self.devices.get(&device).ok_or(ENOENT)?;
        let found = self.spaces.get(&space).ok_or(ENOENT)?;
        fail_if(path.contains(&space), EBUSY)?;
        match found.parent {
            None => fail_if(!path.is_empty(), EBUSY)?,
            Some(parent) => {
                fail_if(!path.contains(&parent), EINVAL)?;
                fail_if(path.last() != Some(&parent), EBUSY)?;
            }
        }
        let shown = self.path(*group);
        fail_if(shown.get(path.len()).is_some_and(|&other| other != space), EBUSY)?;
        let others = self.attached(space);
        fail_if(others.iter().any(|group| self.broken.contains(group)), EIO)?;
        if shown.len() > path.len() {
            return Ok(());
        }
        let kind = GROUPS[*group];
        let together = [Self::kinds(&others), vec![kind]].concat();
        let page = smallest_page(&together).ok_or(EINVAL)?;
        fail_if(aperture(&together).is_none(), EINVAL)?;
        let fits = |m: &Mapping| [m.iova, m.size, m.vaddr].iter().all(|value| value % page == 0);
        fail_if(!found.mappings.iter().all(fits), EINVAL)?;
        let mut pages = found.mappings.iter().flat_map(Mapping::pages);
        fail_if(pages.any(|page| !permitted(&[kind], page)), EADDRINUSE)?;
        fail_if(self.entries(space).len() > KINDS[kind].max_mappings as usize, ENOSPC)
    }

    fn detach(&self, device: u32, space: u32) -> Verdict {
        let Device { group, path, .. } = self.devices.get(&device).ok_or(ENOENT)?;
        fail_if(!self.spaces.contains_key(&space) || !path.contains(&space), ENOENT)?;
        fail_if(path.last() != Some(&space), EBUSY)?;
        let others =
            self.devices.iter().filter(|(id, other)| **id != device && other.group == *group);
        let stays = others.map(|(_, other)| other.path.len()).max() >= Some(path.len());
        let parent = self.spaces[&space].parent.filter(|_| !stays);
        let too_many =
            |parent| self.entries(parent).len() > KINDS[GROUPS[*group]].max_mappings as usize;
        fail_if(parent.is_some_and(too_many), ENOSPC)
    }

    fn bind_table(&self, space: u32) -> Verdict {
        let found = self.usable(space)?;
        fail_if(found.parent.is_none(), EINVAL)?;
        fail_if(found.bound.is_some() || !found.mappings.is_empty(), EBUSY)
    }

    fn bound(&self, space: u32, errno: i32) -> Result<usize, i32> {
        let found = self.usable(space)?;
        fail_if(found.parent.is_none(), EINVAL)?;
        found.bound.ok_or(errno)
    }

    /// What is mapped after leaves have been read in a range.
    fn reread(&self, space: u32, range: Range, leaves: &[Leaf]) -> Result<Vec<Mapping>, i32> {
        let found = &self.spaces[&space];
        let (inside, mut after): (Vec<Mapping>, Vec<Mapping>) = found
            .mappings
            .iter()
            .cloned()
            .partition(|mapping| mapping.range().intersection(range).is_some());
        assert!(inside.iter().all(|mapping| range.contains(mapping.range())));
        let read = leaves.iter().flat_map(|leaf| Self::mappings_of(leaf, &found.shaped_by));
        for (key, new) in (self.keys + 1..).zip(read) {
            let same = inside.iter().find(|mapping| mapping.is_like(&new));
            after.push(same.cloned().unwrap_or(Mapping { key, ..new }));
        }
        fail_if(after.len() > found.limit(), ENOSPC)?;
        Ok(after)
    }

    /// A leaf page by page: those that are permitted and follow one another are a mapping, if the
    /// hardware has pages as small as that.
    fn mappings_of(leaf: &Leaf, kinds: &[usize]) -> Vec<Mapping> {
        if leaf.target.checked_add(leaf.size - 1).is_none() {
            return vec![];
        }
        let mut mappings: Vec<Mapping> = vec![];
        for offset in (0..leaf.size).step_by(PAGE as usize) {
            let (iova, vaddr) = (leaf.iova + offset, leaf.target + offset);
            if !permitted(kinds, iova) {
                continue;
            }
            match mappings.last_mut() {
                Some(mapping) if mapping.iova + mapping.size == iova => mapping.size += PAGE,
                _ => {
                    let (prot, memory, registered) = (leaf.prot, MemoryId(0), None);
                    mappings.push(Mapping {
                        key: 0,
                        iova,
                        size: PAGE,
                        vaddr,
                        prot,
                        memory,
                        registered,
                    });
                }
            }
        }
        let page = smallest_page(kinds).unwrap();
        mappings.retain(|m| [m.iova, m.size, m.vaddr].iter().all(|value| value % page == 0));
        mappings
    }

    fn verdict(&self, command: &Command) -> Verdict {
        match *command {
            Command::Free(space) => self.free(space),
            Command::Unbind(device) => self.unbind(device),
            Command::Attach(device, space) => self.attach(device, space),
            Command::Detach(device, space) => self.detach(device, space),
            Command::Map(space, map, _) => {
                self.map(space, map)?;
                self.source(space, map).map(drop)
            }
            Command::Unmap(space, unmap) => self.unmap(space, unmap).map(drop),
            Command::BindTable(space, _, ref leaves) => {
                self.bind_table(space)?;
                self.reread(space, Range::ALL, leaves).map(drop)
            }
            Command::UnbindTable(space) => self.bound(space, ENOENT).map(drop),
            Command::Invalidate(space, range, ref leaves) => {
                self.bound(space, EINVAL)?;
                self.reread(space, range, leaves).map(drop)
            }
        }
    }
}

/// What plans depend on, and what follows from commands.
impl Model {
    fn basis(&self, command: &Command) -> BTreeSet<Thing> {
        let family = command.space().map(|space| Thing::Family(self.root(space)));
        let device = command.device().and_then(|device| self.devices.get(&device));
        let group = device.map(|device| Thing::Group(device.group));
        let source = match *command {
            Command::Map(space, map, _) if self.spaces.contains_key(&space) => {
                self.source(space, map).ok().flatten().map(Thing::Registration)
            }
            _ => None,
        };
        family.into_iter().chain(group).chain(source).collect()
    }

    fn effect(&self, command: &Command) -> BTreeSet<Thing> {
        match *command {
            Command::Unmap(space, unmap)
                if self.unmap(space, unmap).is_ok_and(|gone| gone.is_empty()) =>
            {
                BTreeSet::new()
            }
            Command::Unbind(device) => self.group(self.devices[&device].group),
            _ => {
                let mut things = self.basis(command);
                things.retain(|thing| !matches!(thing, Thing::Registration(_)));
                things
            }
        }
    }

    /// A group, and the family that its table shows a member of.
    fn group(&self, group: usize) -> BTreeSet<Thing> {
        let family = self.path(group).first().map(|&root| Thing::Family(root));
        family.into_iter().chain([Thing::Group(group)]).collect()
    }

    /// After an attach or a detach that changed the path of a table.
    fn reshape(&mut self, space: u32, group: usize, length: usize) {
        if self.path(group).len() == length {
            return;
        }
        // It was cleared on the way.
        self.broken.remove(&group);
        let groups = self.attached(space);
        if !groups.is_empty() {
            self.spaces.get_mut(&space).unwrap().shaped_by = Self::kinds(&groups);
        }
    }

    /// The range that is read when a table is invalidated: no leaf and no mapping is read in part.
    fn extent(&self, space: u32, mut range: Range, leaves: &[Leaf]) -> Range {
        loop {
            let mappings = self.spaces[&space].mappings.iter().map(Mapping::range);
            let parts = mappings.chain(leaves.iter().map(range_of));
            let overlapping = parts.filter(|part| part.intersection(range).is_some());
            let whole = overlapping.fold(range, Range::hull);
            if whole == range {
                return range;
            }
            range = whole;
        }
    }
}

fn range_of(leaf: &Leaf) -> Range {
    Range::from_size(leaf.iova, leaf.size).unwrap()
}

fn overlapping(leaves: &[Leaf], range: Range) -> Vec<Leaf> {
    leaves.iter().filter(|leaf| range_of(leaf).intersection(range).is_some()).copied().collect()
}

fn root_of(program: usize) -> Root {
    Root::new(Format::X86Level4, (program as u64 + 1) * PAGE, 48).unwrap()
}

fn group(group: usize) -> GroupId {
    GroupId(group as u64)
}

/// The engine, the hardware, the program and the model.
struct World {
    context: Context,
    fake: Fake,
    model: Model,
    /// The page tables of the program, each in ascending order.
    programs: [Vec<Leaf>; PROGRAMS],
    next_memory: u64,
    /// Memory that was mapped or registered and not yet released.
    held: BTreeSet<MemoryId>,
    later: Vec<Later>,
    puts_off: bool,
    may_have_changed: bool,
    /// How often each errno was seen, 0 for success, and other ends.
    seen: BTreeMap<i32, usize>,
}

/// Ends that are no errno.
const REFUSED: i32 = -1;
const BROKEN: i32 = -2;
const REPAIRED: i32 = -3;
const STALE: i32 = -4;
const EXECUTED_LATER: i32 = -5;
const TABLE_BOUND: i32 = -6;
const INVALIDATED_IN_PART: i32 = -7;
const TABLE_TOO_SMALL: i32 = -8;
/// Tables that showed something through this many levels, at least one piece of it.
const LEVELS: [i32; 4] = [-11, -12, -13, -14];

impl World {
    fn new() -> Self {
        Self {
            context: Context::new(LIMITS),
            fake: Fake::default(),
            model: Model::default(),
            programs: [0, 1, 2].map(program),
            next_memory: 0,
            held: BTreeSet::new(),
            later: vec![],
            puts_off: false,
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
        ids[choice % ids.len()]
    }

    /// Mostly one with a device.
    fn space(&self, choice: usize) -> u32 {
        let mut attached: Vec<u32> =
            self.model.devices.values().flat_map(|device| &device.path).copied().collect();
        attached.sort_unstable();
        attached.dedup();
        if choice % 8 > 1 && !attached.is_empty() {
            return attached[choice / 8 % attached.len()];
        }
        Self::pick(self.model.spaces.keys().copied(), self.model.spaces_made, choice)
    }

    fn device(&self, choice: usize) -> u32 {
        Self::pick(self.model.devices.keys().copied(), self.model.devices_made, choice)
    }

    fn plan(&self, command: &Command) -> Result<Plan, Error> {
        let context = &self.context;
        match *command {
            Command::Free(space) => context.plan_free(id(space)),
            Command::Unbind(device) => context.plan_unbind(DeviceId(device)),
            Command::Attach(device, space) => context.plan_attach(DeviceId(device), id(space)),
            Command::Detach(device, space) => context.plan_detach(DeviceId(device), id(space)),
            Command::Map(space, map, memory) => context.plan_map(id(space), map, memory),
            Command::Unmap(space, unmap) => context.plan_unmap(id(space), unmap),
            Command::BindTable(space, program, ref leaves) => {
                context.plan_bind_table(id(space), root_of(program), leaves)
            }
            Command::UnbindTable(space) => context.plan_unbind_table(id(space)),
            Command::Invalidate(space, range, ref leaves) => {
                context.plan_invalidate(id(space), range, leaves)
            }
        }
    }

    /// Plans that depend on one of these are stale.
    fn touch(&mut self, things: &BTreeSet<Thing>) {
        let depends = |later: &&mut Later| !later.basis.is_disjoint(things);
        self.later.iter_mut().filter(depends).for_each(|later| later.stale = true);
    }

    /// Plans, and carries out now or later. What comes out of planning must be the verdict of the
    /// model.
    fn run(&mut self, command: Command) {
        let verdict = self.model.verdict(&command);
        let plan = self.plan(&command);
        assert_eq!(plan.as_ref().map(drop).map_err(Error::errno), verdict, "{command:?}: {plan:?}");
        self.count(verdict.err().unwrap_or(0));
        if let Err(Error::TableTooSmall { .. }) = plan {
            self.count(TABLE_TOO_SMALL);
        }
        let Ok(plan) = plan else { return };
        self.check_plan(&command, &plan);
        let basis = self.model.basis(&command);
        if self.puts_off {
            self.later.push(Later { command, plan, basis, stale: false });
        } else {
            self.execute(command, plan, &basis);
        }
    }

    /// A child is charged nothing, and what stays mapped is not touched.
    fn check_plan(&self, command: &Command, plan: &Plan) {
        let Some(space) = command.space() else { return };
        let Some(found) = self.model.spaces.get(&space) else { return };
        if found.parent.is_some() {
            assert_eq!(plan.charge(), 0);
        }
        let Command::Invalidate(_, range, leaves) = command else { return };
        let after = self.model.reread(space, *range, leaves).unwrap();
        let stays = |key: &u32| after.iter().any(|mapping| mapping.key == *key);
        let stays: BTreeSet<u32> = found.mappings.iter().map(|m| m.key).filter(stays).collect();
        for number in self.model.attached(space) {
            let shown = *self.model.path(number).last().unwrap();
            let touched = plan.changes().iter().filter(|change| change.group() == group(number));
            let touched: Vec<Range> = touched.map(touched_by).collect();
            for page in all_pages() {
                let lead = self.model.lead(shown, page);
                if lead.is_some_and(|lead| lead.way.iter().any(|key| stays.contains(key))) {
                    let here = Range::from_size(page, PAGE).unwrap();
                    assert!(touched.iter().all(|range| range.intersection(here).is_none()));
                }
            }
        }
    }

    /// What all tables hold whose contents are known.
    fn tables(&self) -> Vec<Vec<Entry>> {
        let known = |number: &usize| !self.model.broken.contains(number);
        (0..GROUPS.len()).filter(known).map(|number| self.fake.entries(group(number))).collect()
    }

    /// Success unless the hardware refuses.
    fn execute(&mut self, command: Command, plan: Plan, basis: &BTreeSet<Thing>) {
        self.may_have_changed = true;
        let before = (self.context.clone(), self.tables());
        let (work, mapped) = (plan.work(&self.context), self.fake.mapped);
        match self.context.execute(plan, &mut self.fake) {
            Ok(outcome) => {
                assert!(!self.fake.has_refused(), "a refusal was overlooked");
                assert_eq!(u128::from(work), self.fake.mapped - mapped);
                self.done(command, outcome, basis);
            }
            Err(ExecuteError::Refused { .. }) => {
                assert!(self.fake.has_refused());
                assert!(before == (self.context.clone(), self.tables()), "a refusal left a trace");
                self.count(REFUSED);
            }
            Err(ExecuteError::Broken { broken, .. }) => {
                assert!(self.fake.has_refused());
                let groups: BTreeSet<usize> =
                    broken.iter().map(|(group, _)| group.0 as usize).collect();
                assert_eq!(groups.len(), broken.len(), "each once");
                for number in groups {
                    self.model.broken.insert(number);
                    self.touch(&self.model.group(number));
                }
                self.count(BROKEN);
            }
            Err(ExecuteError::Plan(error)) => panic!("{error}"),
        }
    }

    /// Goes on with a plan that was put off. It is refused if and only if something that it depends
    /// on has changed; if not, the verdict still holds.
    fn finish(&mut self, later: Later) {
        let Later { command, plan, basis, stale } = later;
        assert_eq!(self.context.check(&plan).is_err(), stale, "{command:?}");
        if stale {
            let refused = self.context.execute(plan, &mut self.fake);
            assert!(matches!(refused, Err(ExecuteError::Plan(Error::StalePlan))));
            return self.count(STALE);
        }
        // What is registered meanwhile changes nothing for memory that was not.
        let verdict = self.model.verdict(&command);
        assert!(verdict.is_ok() || verdict == Err(EFAULT), "{command:?}: {verdict:?}");
        self.count(EXECUTED_LATER);
        self.execute(command, plan, &basis);
    }

    /// The model follows what was done, and checks what came out.
    fn done(&mut self, command: Command, outcome: Outcome<Refusal>, basis: &BTreeSet<Thing>) {
        assert_eq!(outcome.failures, []);
        self.touch(&self.model.effect(&command));
        match command {
            Command::Free(space) => {
                let gone = self.model.spaces.remove(&space).unwrap();
                self.released(&gone, &gone.mappings, &outcome);
            }
            Command::Unbind(device) => self.unbound(device, &outcome),
            Command::Attach(device, space) => self.moved(device, space, |path| path.push(space)),
            Command::Detach(device, space) => {
                self.moved(device, space, |path| path.truncate(path.len() - 1))
            }
            Command::Map(space, map, memory) => self.mapped(space, map, memory, basis),
            Command::Unmap(space, unmap) => {
                let gone = self.model.unmap(space, unmap).unwrap();
                let found = self.model.spaces.get_mut(&space).unwrap();
                let is_gone = |mapping: &Mapping| gone.contains(&mapping.key);
                let (gone, stays) = found.mappings.drain(..).partition(is_gone);
                found.mappings = stays;
                let gone: Vec<Mapping> = gone;
                assert_eq!(outcome.unmapped_bytes, gone.iter().map(|m| m.size).sum::<u64>());
                let found = found.clone();
                self.released(&found, &gone, &outcome);
            }
            Command::BindTable(space, program, leaves) => {
                self.reread(space, Some(program), Range::ALL, &leaves);
                self.count(TABLE_BOUND);
            }
            Command::UnbindTable(space) => self.reread(space, None, Range::ALL, &[]),
            Command::Invalidate(space, range, leaves) => {
                let mappings = self.model.spaces[&space].mappings.len();
                self.reread(space, self.model.spaces[&space].bound, range, &leaves);
                if range != Range::ALL && mappings > 1 {
                    self.count(INVALIDATED_IN_PART);
                }
            }
        }
    }

    fn reread(&mut self, space: u32, bound: Option<usize>, range: Range, leaves: &[Leaf]) {
        let mappings = self.model.reread(space, range, leaves).unwrap();
        self.model.keys += 8 * leaves.len() as u32;
        let found = self.model.spaces.get_mut(&space).unwrap();
        (found.mappings, found.bound) = (mappings, bound);
    }

    fn mapped(&mut self, space: u32, map: Map, memory: MemoryId, basis: &BTreeSet<Thing>) {
        let registered = basis.iter().find_map(|thing| match thing {
            Thing::Registration(memory) => Some(*memory),
            _ => None,
        });
        self.model.keys += 1;
        let Map { iova, size, vaddr, prot, .. } = map;
        let mapping = Mapping { key: self.model.keys, iova, size, vaddr, prot, memory, registered };
        let found = self.model.spaces.get_mut(&space).unwrap();
        if found.parent.is_none() {
            self.held.insert(memory);
        }
        found.mappings.push(mapping);
    }

    /// The memory of what a root mapped is given back; a child has none.
    fn released(&mut self, space: &Space, gone: &[Mapping], outcome: &Outcome<Refusal>) {
        let mut memories: Vec<MemoryId> = gone.iter().map(|mapping| mapping.memory).collect();
        if space.parent.is_some() {
            memories.clear();
            assert_eq!(outcome.uncharged, []);
        }
        assert_eq!(outcome.released.len(), memories.len());
        for memory in memories {
            assert!(outcome.released.contains(&memory) && self.held.remove(&memory));
        }
    }

    fn moved(&mut self, device: u32, space: u32, step: impl FnOnce(&mut Vec<u32>)) {
        let number = self.model.devices[&device].group;
        let (length, broken) = (self.model.path(number).len(), self.model.broken.len());
        step(&mut self.model.devices.get_mut(&device).unwrap().path);
        self.model.reshape(space, number, length);
        if self.model.broken.len() < broken {
            self.count(REPAIRED);
        }
    }

    fn unbound(&mut self, device: u32, outcome: &Outcome<Refusal>) {
        let number = self.model.devices.remove(&device).unwrap().group;
        let last = self.model.members(number).next().is_none();
        assert_eq!(outcome.retired, if last { vec![group(number)] } else { vec![] });
        if last && self.model.broken.remove(&number) {
            // The group gets another table when it is bound again.
            self.fake.refuse([]);
            self.fake.clear(group(number)).unwrap();
        }
    }

    /// Gives a command, and says whether anything may have changed: planning alone borrows the
    /// context without the right to.
    fn step(&mut self, op: &Op, puts_off: bool) -> bool {
        self.may_have_changed = false;
        self.puts_off = puts_off;
        self.command(op);
        if self.later.len() > 3 {
            self.fake.refuse([]);
            self.command(&Op::Finish(0));
        }
        self.may_have_changed
    }

    fn command(&mut self, op: &Op) {
        match *op {
            Op::Alloc => {
                let full = self.model.spaces.len() == LIMITS.max_ioasids as usize;
                let made = self.context.alloc();
                self.made(made, fail_if(full, ENOSPC), None);
            }
            Op::Nest(parent) => {
                let parent = self.space(parent);
                let made = self.context.create_nesting(id(parent));
                self.made(made, self.model.nest(parent), Some(parent));
            }
            Op::Free(space) => self.run(Command::Free(self.space(space))),
            Op::Bind { group, name } => self.bind(group, name),
            Op::Unbind(device) => self.run(Command::Unbind(self.device(device))),
            Op::Attach(device, space) => {
                self.run(Command::Attach(self.device(device), self.space(space)));
            }
            Op::Descend(device, choice) => self.descend(self.device(device), choice),
            Op::Detach(device, space) => {
                self.run(Command::Detach(self.device(device), self.space(space)));
            }
            Op::Ascend(device) => {
                let device = self.device(device);
                let path = self.model.devices.get(&device).map_or(&[][..], |device| &device.path);
                if let Some(&space) = path.last() {
                    self.run(Command::Detach(device, space));
                }
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
            Op::BindTable { space, program } => {
                let (space, leaves) = (self.space(space), self.programs[program].clone());
                let check = self.context.check_bind_table(id(space));
                assert_eq!(check.map_err(|error| error.errno()), self.model.bind_table(space));
                self.run(Command::BindTable(space, program, leaves));
            }
            Op::UnbindTable(space) => self.run(Command::UnbindTable(self.space(space))),
            Op::Invalidate { space, range } => self.invalidate(self.space(space), range),
            Op::Write { program, leaf, present } => {
                let leaves = &mut self.programs[program];
                leaves.retain(|other| range_of(other).intersection(range_of(&leaf)).is_none());
                if present {
                    leaves.push(leaf);
                    leaves.sort_unstable_by_key(|leaf| leaf.iova);
                }
            }
            Op::Register => self.register(),
            Op::Unregister => self.unregister(),
            Op::Finish(choice) => {
                if !self.later.is_empty() {
                    let later = self.later.remove(choice % self.later.len());
                    self.finish(later);
                }
            }
        }
    }

    fn made(&mut self, made: Result<Ioasid, Error>, verdict: Verdict, parent: Option<u32>) {
        self.may_have_changed = true;
        assert_eq!(made.as_ref().map(drop).map_err(Error::errno), verdict);
        self.count(verdict.err().unwrap_or(0));
        let Ok(ioasid) = made else { return };
        if let Some(parent) = parent {
            self.touch(&[Thing::Family(self.model.root(parent))].into());
        }
        self.model.spaces_made += 1;
        assert_eq!(ioasid.get(), self.model.spaces_made, "numbers are never used again");
        self.model.spaces.insert(ioasid.get(), Space { parent, ..Space::default() });
    }

    fn bind(&mut self, number: usize, name: usize) {
        let verdict = self.model.bind(number, name);
        let kind = &KINDS[GROUPS[number]];
        let permitted =
            kind.permitted.iter().map(|&(start, last)| Range::new(start, last).unwrap());
        let bound = self.context.bind(Bind {
            group: group(number),
            geometry: Geometry {
                pgsizes: PageSizes(kind.pgsizes),
                permitted: permitted.collect(),
                max_mappings: kind.max_mappings,
            },
            simulated: kind.simulated,
            name: format!("device {number}.{name}"),
            cookie: Cookie(0),
        });
        self.may_have_changed = true;
        assert_eq!(bound.as_ref().map(drop).map_err(Error::errno), verdict);
        self.count(verdict.err().unwrap_or(0));
        if let Ok(device) = bound {
            self.touch(&self.model.group(number));
            self.model.devices_made += 1;
            assert_eq!(device.0, self.model.devices_made, "numbers are never used again");
            self.model.devices.insert(device.0, Device { group: number, name, path: vec![] });
        }
    }

    fn descend(&mut self, device: u32, choice: usize) {
        let path = self.model.devices.get(&device).map_or(&[][..], |device| &device.path);
        let parent = path.last().copied();
        let fits = |(_, space): &(&u32, &Space)| space.parent == parent;
        let below: Vec<u32> = self.model.spaces.iter().filter(fits).map(|(&id, _)| id).collect();
        if !below.is_empty() {
            self.run(Command::Attach(device, below[choice % below.len()]));
        }
    }

    fn map(&mut self, space: u32, mut map: Map) {
        if self.model.spaces.get(&space).is_some_and(|space| space.parent.is_none()) {
            map.vaddr = map.vaddr.saturating_add(REGISTERED.0 + 0x14 * PAGE);
            // The highest stays aligned.
            map.vaddr &= !0x7ff;
        }
        let verdict = self.model.map(space, map);
        let check = self.context.check_map(id(space), map);
        assert_eq!(check.map_err(|error| error.errno()), verdict);
        let memory = self.memory();
        self.run(Command::Map(space, map, memory));
    }

    /// What the caller of the engine does: it reads again as long as what it reads reaches over the
    /// range.
    fn invalidate(&mut self, space: u32, at: Range) {
        let bound = self.model.bound(space, EINVAL);
        let leaves = bound.map_or(&[][..], |program| &self.programs[program]);
        let mut range = at;
        let found = loop {
            let extent = self.context.reread_extent(id(space), range);
            assert_eq!(extent.as_ref().map(drop).map_err(Error::errno), bound.map(drop));
            range = extent.unwrap_or(range);
            let found = overlapping(leaves, range);
            let whole = found.iter().map(range_of).fold(range, Range::hull);
            if whole == range {
                break found;
            }
            range = whole;
        };
        if bound.is_ok() {
            assert_eq!(range, self.model.extent(space, at, leaves));
        }
        self.run(Command::Invalidate(space, range, found));
    }

    fn register(&mut self) {
        let verdict = fail_if(self.model.registered.is_some(), EEXIST);
        let memory = self.memory();
        let registered = self.context.register(ME, REGISTERED.0, REGISTERED.1, memory);
        assert_eq!(registered.map_err(|error| error.errno()), verdict);
        if verdict.is_ok() {
            self.model.registered = Some(memory);
            self.held.insert(memory);
        }
    }

    fn unregister(&mut self) {
        let mut mappings = self.model.spaces.values().flat_map(|space| &space.mappings);
        let verdict = match self.model.registered {
            None => Err(ENOENT),
            Some(memory) if mappings.any(|m| m.registered == Some(memory)) => Err(EBUSY),
            Some(memory) => Ok(memory),
        };
        let unregistered = self.context.unregister(ME, REGISTERED.0, REGISTERED.1);
        assert_eq!(unregistered.map_err(|error| error.errno()), verdict);
        if let Ok(memory) = verdict {
            self.model.registered = None;
            self.held.remove(&memory);
            self.touch(&[Thing::Registration(memory)].into());
        }
    }

    /// Everything that can be seen from outside is as the model says.
    fn check(&mut self) {
        assert!(self.context.ioasids().map(Ioasid::get).eq(self.model.spaces.keys().copied()));
        for (&number, space) in &self.model.spaces {
            self.check_space(number, space);
        }
        for number in 0..GROUPS.len() {
            if let Some(levels) = self.check_table(number) {
                self.count(LEVELS[levels.min(LEVELS.len()) - 1]);
            }
        }
        for (&number, device) in &self.model.devices {
            let info = self.context.device_info(DeviceId(number)).unwrap();
            assert_eq!(info.group, group(device.group));
            assert_eq!(info.ioasid.map(Ioasid::get), device.path.last().copied());
        }
        assert_eq!(self.context.devices().count(), self.model.devices.len());
    }

    fn check_space(&self, number: u32, space: &Space) {
        let info = self.context.info(id(number));
        let usable = self.model.usable(number);
        assert_eq!(info.as_ref().map(drop).map_err(Error::errno), usable.map(drop));
        assert_eq!(self.context.family(id(number)).get(), self.model.root(number));
        if let Ok(info) = info {
            assert_eq!(info.parent.map(Ioasid::get), space.parent);
            assert_eq!(info.depth, self.model.depth(number));
            let children = self.model.spaces.values().filter(|s| s.parent == Some(number));
            assert_eq!(info.nr_children as usize, children.count());
            let attached = self.model.devices.values().filter(|d| d.path.contains(&number));
            assert_eq!(info.nr_devices as usize, attached.count());
            assert_eq!(info.nr_mappings as usize, space.mappings.len());
            assert_eq!(info.mapped_bytes, space.mappings.iter().map(|m| m.size).sum::<u64>());
            assert_eq!(info.bound, space.bound.map(root_of));
            assert_eq!(info.pgsizes.smallest(), smallest_page(&space.shaped_by));
            assert_eq!(info.max_mappings as usize, space.limit());
            assert!(space.parent.is_none() || info.locked_bytes == 0);
        }
        for page in all_pages() {
            let found = self.context.translate(id(number), page + 0x123);
            let found = found.map(|found| (found.memory, found.offset, found.prot));
            let lead = self.model.lead(number, page);
            assert_eq!(found, lead.map(|lead| (lead.memory, lead.offset + 0x123, lead.prot)));
        }
    }

    /// The hardware holds exactly what the model says, and so does the engine's account of it. Says
    /// through how many levels something is shown.
    fn check_table(&self, number: usize) -> Option<usize> {
        let is_broken = self.model.broken.contains(&number);
        let said = self.context.tables().find(|table| table.group == group(number));
        assert_eq!(said.is_some_and(|table| table.broken), is_broken);
        let path = self.model.path(number);
        assert_eq!(said.and_then(|table| table.shows).map(Ioasid::get), path.last().copied());
        if is_broken {
            return None;
        }
        let held = self.fake.entries(group(number));
        let Some(&shown) = path.last() else {
            assert_eq!(held, []);
            return None;
        };
        assert_eq!(held, self.model.entries(shown));
        assert!(self.context.table_contents(group(number)).eq(held.iter().copied()));
        for page in all_pages() {
            let found = self.fake.walk(group(number), page);
            let found = found.map(|(entry, offset)| (entry.memory, offset, entry.prot));
            let lead = self.model.lead(shown, page);
            assert_eq!(found, lead.map(|l| (l.memory, l.offset, l.prot)), "at {page:#x}");
        }
        (!held.is_empty()).then_some(path.len())
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
        assert_eq!(outcome.released.iter().copied().collect::<BTreeSet<_>>(), self.held);
        assert_eq!(outcome.released.len(), self.held.len());
        let failed: Vec<GroupId> = outcome.failures.iter().map(|(group, _)| *group).collect();
        for number in (0..GROUPS.len()).map(group).filter(|number| !failed.contains(number)) {
            assert_eq!(self.fake.entries(number), []);
        }
        self.seen
    }
}

/// The IOVAs that a change concerns.
fn touched_by(change: &Change) -> Range {
    match *change {
        Change::Map { entry, .. } => Range::from_size(entry.iova, entry.size).unwrap(),
        Change::Unmap { iova, size, .. } => Range::from_size(iova, size).unwrap(),
        Change::Fill { .. } | Change::Clear { .. } => Range::ALL,
    }
}

/// What the program has in a table to begin with.
fn program(number: u64) -> Vec<Leaf> {
    let leaves = [(0, 4, 0), (4, 1, 8), (5, 1, 8 + number), (8, 4, 8), (12, 2, 4 * number)];
    let prot = Prot::READ_WRITE;
    let leaf = |(iova, pages, target)| Leaf {
        iova: iova * PAGE,
        size: pages * PAGE,
        target: target * PAGE,
        prot,
    };
    leaves.map(leaf).to_vec()
}

/// What sequences begin with, so that most get far: devices of three groups, and spaces on top of
/// each other.
fn prelude(kind: usize) -> Vec<Op> {
    let bind = |(group, name)| Op::Bind { group, name };
    let binds = [(0, 0), (0, 1), (1, 0), (2, 0)].map(bind);
    // All devices, to the only place there is.
    let all = || [4, 1, 2, 3].map(|device| Op::Descend(device, 0));
    let two = || [2, 3].map(|device| Op::Descend(device, 0));
    // On the space that was made last.
    let nest = |spaces: usize| Op::Nest(8 * (spaces - 1) + 2);
    let begin = [&binds[..], &[Op::Alloc], &all()].concat();
    // Once a device is attached to each space, this is the one that was made last.
    let bound = |spaces: usize| Op::BindTable { space: 8 * (spaces - 1) + 2, program: 0 };
    let map = |spaces: usize| {
        let (iova, size, vaddr, prot) = (8 * PAGE, 8 * PAGE, 8 * PAGE, Prot::READ_WRITE);
        let map = Map { iova, size, vaddr, prot, owner: ME, kind: MapKind::Memory };
        Op::Map { space: 8 * (spaces - 1) + 2, map }
    };
    match kind {
        0 => vec![],
        1 => [&begin[..], &[nest(1)], &two(), &[map(1), map(2)]].concat(),
        2 => [&begin[..], &[nest(1)], &all(), &[nest(2)], &all(), &[map(1), map(2)]].concat(),
        3 => [&begin[..], &[nest(1)], &two(), &[nest(2)], &two(), &[bound(2), map(1)]].concat(),
        4..7 => {
            let more = match kind {
                4 => vec![map(1), map(2), map(3)],
                5 => vec![map(1), map(3), map(4)],
                _ => vec![bound(3), bound(4), map(1), map(2)],
            };
            let levels = [&begin[..], &[nest(1)], &two(), &[nest(2)], &two(), &[nest(3)], &two()];
            [&levels.concat()[..], &more].concat()
        }
        // A child whose pieces are too many for one of the tables.
        7 => {
            let begin = [(4, 0), (0, 0)].map(bind);
            let devices = [Op::Alloc, Op::Descend(2, 0), Op::Descend(1, 0), nest(1)];
            let page = |space: usize, at: u64, to: u64, pages: u64| {
                let (owner, prot, kind) = (ME, Prot::READ_WRITE, MapKind::Memory);
                let (iova, vaddr, size) = (at * PAGE, to * PAGE, pages * PAGE);
                Op::Map { space, map: Map { iova, size, vaddr, prot, owner, kind } }
            };
            let [root, child] = [2, 10];
            let maps = [8, 10, 12].map(|at| page(root, at, 0, 2));
            let more = [page(child, 8, 8, 8), page(child, 2, 8, 4)];
            [&begin[..], &devices, &maps, &[Op::Descend(1, 0)], &more].concat()
        }
        // Two children of one root.
        _ => {
            let children = [nest(1), Op::Descend(2, 0), Op::Nest(2), Op::Descend(3, 1)];
            [&begin[..], &children, &[map(1), bound(2)]].concat()
        }
    }
}

/// What the run is drawn from.
fn seed() -> u64 {
    let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    match std::env::var("IOASID_SEED") {
        Ok(seed) => seed.parse().expect("IOASID_SEED is a decimal number"),
        Err(_) => random(),
    }
}

/// How many sequences of commands are run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1600)
}

#[test]
fn shadows_follow_every_level() {
    let seed = seed();
    println!("to repeat this: IOASID_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases: cases(), failure_persistence: None, ..Config::default() };
    let total = RefCell::new((BTreeMap::<i32, usize>::new(), 0));
    let run = |(begin, steps, last): (usize, Vec<Step>, Step)| {
        let mut world = World::new();
        for op in prelude(begin) {
            world.step(&op, false);
        }
        let mut total = total.borrow_mut();
        total.1 += steps.len();
        for step in steps {
            world.fake.refuse(refused(step));
            if world.step(&op(step), step[7] > 230) {
                world.check();
            }
        }
        for (end, count) in world.end(refused(last)) {
            *total.0.entry(end).or_default() += count;
        }
        Ok::<(), TestCaseError>(())
    };
    let steps = prop::collection::vec(any::<Step>(), 1..130);
    let drawn = (0usize..9, steps, any::<Step>());
    TestRunner::new_with_rng(config, rng).run(&drawn, run).unwrap();
    let (total, steps) = total.into_inner();
    println!("{steps} steps, {total:?}");
    // The sequences reach every kind of end.
    let ends =
        [0, ENOENT, ENODEV, EIO, EBUSY, EINVAL, EOVERFLOW, EADDRINUSE, EEXIST, EFAULT, ENOSPC];
    let others = [
        REFUSED,
        BROKEN,
        REPAIRED,
        STALE,
        EXECUTED_LATER,
        TABLE_BOUND,
        INVALIDATED_IN_PART,
        TABLE_TOO_SMALL,
    ];
    for end in ends.into_iter().chain(others).chain(LEVELS) {
        assert!(total.get(&end).is_some_and(|&count| count > 20), "{end} is rare in {total:?}");
    }
}

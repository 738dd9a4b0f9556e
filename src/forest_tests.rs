//! Random commands, legal and illegal, on forests of nested address spaces and on groups of several
//! devices, which may come to share a table, on hardware that sometimes refuses: the engine against
//! a model that knows nothing of pieces and works out every translation from scratch, page by page
//! and level by level, and just so every charge and every dirty page. Page tables of the program
//! are lists of leaves, which change behind the engine's back; devices write where their tables
//! let them. Some plans are carried out only after other commands.
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
/// Group n of the host is hardware of this kind. The engine calls its table n too, or if it left one
/// that others go on sharing under this name, n and a multiple of how many there are.
const HOMES: [usize; 7] = [0, 2, 0, 2, 1, 3, 4];
/// How many page tables the program has.
const PROGRAMS: usize = 3;
/// Pages at the bottom and at the top of the IOVAs, which are all that commands name.
const LOW: u64 = 0x20;
const HIGH: u64 = 8;
/// The memory that is registered, if any: half of what roots map.
const REGISTERED: (u64, u64) = (0x100 * PAGE, 0x20 * PAGE);
const ME: Owner = Owner(1);
/// A second program, which has registered nothing.
const OTHER: Owner = Owner(2);

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
        home: usize,
        name: usize,
    },
    /// Binds a device whose group is to share the table of another.
    Share {
        home: usize,
        name: usize,
        with: usize,
    },
    /// Makes the table of a device one with another that shows the same, or with any.
    Merge(usize, usize),
    Unbind(usize),
    Attach(usize, usize),
    /// To a child of what the device is attached to, or to a root.
    Descend(usize, usize),
    Detach(usize, usize),
    /// From what the device was attached to last.
    Ascend(usize),
    /// From what the device was attached to first.
    DetachFirst(usize),
    /// From all at once.
    Leave(usize),
    /// Leaves and is unbound.
    Withdraw(usize),
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
    /// Several mappings of registered memory at once.
    MapRegistered {
        space: usize,
        maps: [Map; 3],
    },
    /// Whether it is to be noted which pages are written.
    Track(usize, bool),
    /// A device writes.
    Dma {
        device: usize,
        iova: u64,
        size: u64,
    },
    TakeWritten {
        space: usize,
        iova: u64,
        size: u64,
        page: u64,
    },
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
    Leave(u32),
    Withdraw(u32),
    Map(u32, Map, MemoryId),
    MapRegistered(u32, Vec<(Map, MemoryId)>),
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
            | Self::MapRegistered(space, _)
            | Self::Unmap(space, _)
            | Self::BindTable(space, ..)
            | Self::UnbindTable(space)
            | Self::Invalidate(space, ..) => Some(space),
            Self::Unbind(_) | Self::Leave(_) | Self::Withdraw(_) => None,
        }
    }

    fn device(&self) -> Option<u32> {
        match *self {
            Self::Unbind(device)
            | Self::Leave(device)
            | Self::Withdraw(device)
            | Self::Attach(device, _)
            | Self::Detach(device, _) => Some(device),
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

/// Most memory is of one program.
fn kind_of_owner(dice: u8) -> bool {
    dice < 205
}

fn op([kind, a, b, c, d, e, ..]: Step) -> Op {
    // Now and then a space or device that does not exist.
    let choice = |dice: u8| usize::from(dice) % 129;
    let (space, device, program) = (choice(a), choice(b), usize::from(e) % PROGRAMS);
    match kind {
        0..3 => Op::Alloc,
        3..10 => Op::Nest(space),
        10..14 => Op::Free(space),
        14..18 => Op::Bind { home: usize::from(a) % HOMES.len(), name: usize::from(b) % 2 },
        18..21 => {
            let (home, name) = (usize::from(a) % HOMES.len(), usize::from(c) % 2);
            Op::Share { home, name, with: device }
        }
        21..24 => Op::Unbind(device),
        24..29 => Op::Attach(device, space),
        29..56 => Op::Descend(device, usize::from(a)),
        56..59 => Op::Detach(device, space),
        59..65 => Op::Ascend(device),
        65..68 => Op::DetachFirst(device),
        68 if a < 128 => Op::Leave(device),
        68 => Op::Withdraw(device),
        69..143 => {
            let kind = match d {
                0..200 => MapKind::Memory,
                200..230 => MapKind::File,
                _ => MapKind::Device,
            };
            let (iova, size, vaddr, prot) = (address(b), size(c), address(d), prot(e));
            let owner = if kind_of_owner(a) { ME } else { OTHER };
            Op::Map { space, map: Map { iova, size, vaddr, prot, owner, kind } }
        }
        143..149 => {
            let maps =
                [(b, c), (b.wrapping_add(1), d), (b.wrapping_add(2), e)].map(|(at, from)| {
                    let size = if from < 230 { 2 * PAGE } else { size(e) };
                    let (iova, vaddr, prot) = (address(at % 200), address(from), prot(d));
                    let owner = if e < 250 { ME } else { OTHER };
                    Map { iova, size, vaddr, prot, owner, kind: MapKind::Memory }
                });
            Op::MapRegistered { space, maps }
        }
        149..153 => Op::Track(space, b % 4 > 0),
        153..159 => {
            let page = if d < 240 { [1, 2][usize::from(d / 160)] * PAGE } else { u64::from(d) };
            Op::TakeWritten { space, iova: address(b), size: size(c) << (e % 4), page }
        }
        159..162 => Op::Merge(device, usize::from(b)),
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
        221..240 => Op::Write { program, leaf: leaf(a, b, c, d), present: d % 4 > 0 },
        240..246 => {
            let (iova, size) = (address(a), 1 + u64::from(c) * 0x40);
            Op::Dma { device, iova: iova.wrapping_add(u64::from(d) * 8), size }
        }
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
    /// Who is charged for it, if anybody is.
    charged: Option<Owner>,
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
    /// The pages of 4 KiB that devices have written, while that is noted.
    written: Option<BTreeSet<u64>>,
}

impl Space {
    fn limit(&self) -> usize {
        let limits = self.shaped_by.iter().map(|&kind| KINDS[kind].max_mappings);
        limits.chain([LIMITS.max_mappings]).min().unwrap() as usize
    }

    /// What each owner is charged for, page by page.
    fn charges(&self) -> BTreeSet<(Owner, u64)> {
        let own = |mapping: &Mapping| {
            let (owner, vaddr) = (mapping.charged, mapping.vaddr);
            let pages = (0..mapping.size / PAGE).map(move |page| vaddr + page * PAGE);
            pages.filter_map(move |page| Some((owner?, page))).collect::<Vec<_>>()
        };
        self.mappings.iter().flat_map(own).collect()
    }
}

#[derive(Clone, Debug)]
struct Device {
    home: usize,
    /// What the engine calls the table.
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
    /// The groups of the host that use each table.
    tables: BTreeMap<usize, Vec<usize>>,
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

    /// The kinds of hardware that use some tables.
    fn kinds(&self, groups: &BTreeSet<usize>) -> Vec<usize> {
        groups.iter().flat_map(|group| &self.tables[group]).map(|&home| HOMES[home]).collect()
    }

    /// How many entries a table holds.
    fn capacity(&self, group: usize) -> usize {
        let homes = self.tables[&group].iter();
        homes.map(|&home| KINDS[HOMES[home]].max_mappings).min().unwrap() as usize
    }

    /// The table that a group of the host uses.
    fn table_of(&self, home: usize) -> Option<usize> {
        self.tables.iter().find(|(_, homes)| homes.contains(&home)).map(|(&group, _)| group)
    }

    /// What the engine is to call the table of a group that has none.
    fn free_group(&self, home: usize) -> usize {
        let names = (0..).map(|again| home + again * HOMES.len());
        names.into_iter().find(|name| !self.tables.contains_key(name)).unwrap()
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

    fn bind(&self, group: usize, home: usize, name: usize) -> Verdict {
        let is_same = |device: &Device| (device.home, device.name) == (home, name);
        fail_if(self.members(group).any(is_same), EBUSY)?;
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

    /// Whether tables that show something nested on a space, or itself if it is that, can hold what
    /// comes out with these mappings.
    fn fits(&self, space: u32, mappings: Vec<Mapping>) -> Verdict {
        let groups = self.attached(space);
        let nested = groups.into_iter().filter(|&group| self.path(group).len() > 1);
        let nested: Vec<usize> = nested.collect();
        if nested.is_empty() {
            return Ok(());
        }
        let mut after = self.clone();
        after.spaces.get_mut(&space).unwrap().mappings = mappings;
        let is_full = |&group: &usize| {
            let shown = *self.path(group).last().unwrap();
            after.entries(shown).len() > self.capacity(group)
        };
        fail_if(nested.iter().any(is_full), ENOSPC)
    }

    /// The mapping that a command makes.
    fn mapping(&self, space: u32, map: Map, memory: MemoryId) -> Result<Mapping, i32> {
        let registered = self.source(space, map)?;
        let is_root = self.spaces[&space].parent.is_none();
        let charges = is_root && registered.is_none() && map.kind != MapKind::Device;
        let charged = charges.then_some(map.owner);
        let Map { iova, size, vaddr, prot, .. } = map;
        Ok(Mapping { key: self.keys + 1, iova, size, vaddr, prot, memory, registered, charged })
    }

    /// The space with one mapping more, if it can have it.
    fn with(&self, space: u32, map: Map, memory: MemoryId) -> Result<Vec<Mapping>, i32> {
        self.map(space, map)?;
        let mut mappings = self.spaces[&space].mappings.clone();
        mappings.push(self.mapping(space, map, memory)?);
        self.fits(space, mappings.clone())?;
        Ok(mappings)
    }

    /// Mappings of registered memory, one after another: the space with all of them, or what is
    /// wrong with any.
    fn with_all(
        &self,
        space: u32,
        maps: &[(Map, MemoryId)],
    ) -> Result<Vec<Mapping>, BTreeSet<i32>> {
        let (mut model, mut wrong) = (self.clone(), BTreeSet::new());
        for &(map, memory) in maps {
            let legal = model.map(space, map);
            // One too many is in the way of those after it all the same.
            let is_legal = legal.is_ok() || legal == Err(ENOSPC);
            wrong.extend(legal.err());
            if !is_legal {
                continue;
            }
            match model.source(space, map).and_then(|source| source.ok_or(EFAULT)) {
                Err(errno) => drop(wrong.insert(errno)),
                Ok(_) => {
                    let mapping = model.mapping(space, map, memory).unwrap();
                    model.spaces.get_mut(&space).unwrap().mappings.push(mapping);
                    model.keys += 1;
                }
            }
        }
        let mappings = model.spaces.get(&space).map_or(vec![], |found| found.mappings.clone());
        if wrong.is_empty() {
            wrong.extend(self.fits(space, mappings.clone()).err());
        }
        if wrong.is_empty() { Ok(mappings) } else { Err(wrong) }
    }

    /// The registration that memory is mapped from. What a child maps is an address.
    fn source(&self, space: u32, map: Map) -> Result<Option<MemoryId>, i32> {
        let Some(memory) = self.registered else { return Ok(None) };
        if self.spaces[&space].parent.is_some() || map.kind != MapKind::Memory {
            return Ok(None);
        }
        let (start, size) = REGISTERED;
        let room = map.vaddr.checked_sub(start).and_then(|before| size.checked_sub(before));
        let inside = map.owner == ME && room.is_some_and(|room| map.size <= room);
        if inside { Ok(Some(memory)) } else { Err(EFAULT) }
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
        let own = self.kinds(&[*group].into());
        let together = [self.kinds(&others), own.clone()].concat();
        let page = smallest_page(&together).ok_or(EINVAL)?;
        fail_if(aperture(&together).is_none(), EINVAL)?;
        let fits = |m: &Mapping| [m.iova, m.size, m.vaddr].iter().all(|value| value % page == 0);
        fail_if(!found.mappings.iter().all(fits), EINVAL)?;
        let mut pages = found.mappings.iter().flat_map(Mapping::pages);
        fail_if(pages.any(|page| !permitted(&own, page)), EADDRINUSE)?;
        fail_if(self.entries(space).len() > self.capacity(*group), ENOSPC)
    }

    fn detach(&self, device: u32, space: u32) -> Verdict {
        let Device { group, path, .. } = self.devices.get(&device).ok_or(ENOENT)?;
        fail_if(!self.spaces.contains_key(&space) || !path.contains(&space), ENOENT)?;
        if self.leaves_all(device, space) {
            return self.leave(device);
        }
        fail_if(path.last() != Some(&space), EBUSY)?;
        let others =
            self.devices.iter().filter(|(id, other)| **id != device && other.group == *group);
        let stays = others.map(|(_, other)| other.path.len()).max() >= Some(path.len());
        let parent = self.spaces[&space].parent.filter(|_| !stays);
        let too_many = |parent| self.entries(parent).len() > self.capacity(*group);
        fail_if(parent.is_some_and(too_many), ENOSPC)
    }

    /// Nothing but what stands in the way of an unbind if others use the table.
    fn withdraw(&self, device: u32) -> Verdict {
        let Device { group, .. } = self.devices.get(&device).ok_or(ENOENT)?;
        let has_others = self.members(*group).count() > 1;
        fail_if(has_others && !self.path(*group).is_empty(), EBUSY)
    }

    /// What is left of the path of its table must be possible to show.
    fn leave(&self, device: u32) -> Verdict {
        let Device { group, path, .. } = self.devices.get(&device).ok_or(ENOENT)?;
        let others =
            self.devices.iter().filter(|(id, other)| **id != device && other.group == *group);
        let left = others.map(|(_, other)| &other.path[..]).max_by_key(|path| path.len());
        let left = left.filter(|left| left.len() < path.len() && !self.broken.contains(group));
        let shown = left.and_then(|left| left.last());
        fail_if(shown.is_some_and(|&it| self.entries(it).len() > self.capacity(*group)), ENOSPC)
    }

    /// Whether a detach is from all that the device is attached to: its table is broken.
    fn leaves_all(&self, device: u32, space: u32) -> bool {
        let Device { group, path, .. } = &self.devices[&device];
        path.len() > 1 && path[0] == space && self.broken.contains(group)
    }

    /// Whether a table can be shared by these groups of the host, with what it shows.
    fn regroup(&self, group: usize, homes: &[usize]) -> Verdict {
        let own: Vec<usize> = homes.iter().map(|&home| HOMES[home]).collect();
        fail_if(smallest_page(&own).is_none() || aperture(&own).is_none(), EIO)?;
        let path: BTreeSet<u32> = self.path(group).iter().copied().collect();
        for space in path {
            let mut others = self.attached(space);
            others.remove(&group);
            let together = [self.kinds(&others), own.clone()].concat();
            let page = smallest_page(&together).ok_or(EINVAL)?;
            fail_if(aperture(&together).is_none(), EINVAL)?;
            // The mapping that is looked at first decides.
            let mut mappings = self.spaces[&space].mappings.clone();
            mappings.sort_unstable_by_key(|mapping| mapping.iova);
            for m in mappings {
                fail_if([m.iova, m.size, m.vaddr].iter().any(|value| value % page != 0), EINVAL)?;
                fail_if(m.pages().any(|page| !permitted(&own, page)), EADDRINUSE)?;
            }
        }
        let max = own.iter().map(|&kind| KINDS[kind].max_mappings).min().unwrap();
        let shown = self.path(group).last();
        fail_if(shown.is_some_and(|&shown| self.entries(shown).len() > max as usize), ENOSPC)
    }

    /// Whether the devices of a table can use another one.
    fn merge(&self, from: usize, into: usize) -> Verdict {
        let path = self.path(from);
        fail_if(!path.is_empty() && path != self.path(into), EBUSY)?;
        let simulated = |group| KINDS[HOMES[self.tables[&group][0]]].simulated;
        fail_if(simulated(from) != simulated(into), EIO)
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
        self.fits(space, after.clone())?;
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
                    let (size, prot, memory) = (PAGE, leaf.prot, MemoryId(0));
                    let (key, registered, charged) = (0, None, None);
                    mappings.push(Mapping {
                        key,
                        iova,
                        size,
                        vaddr,
                        prot,
                        memory,
                        registered,
                        charged,
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
            Command::Leave(device) => self.leave(device),
            Command::Withdraw(device) => self.withdraw(device),
            Command::Map(space, map, memory) => self.with(space, map, memory).map(drop),
            Command::MapRegistered(space, ref maps) => {
                self.with_all(space, maps).map(drop).map_err(|wrong| *wrong.first().unwrap())
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
        if let Command::Leave(device) | Command::Withdraw(device) = command
            && let Some(device) = self.devices.get(device)
        {
            return self.group(device.group);
        }
        let family = command.space().map(|space| Thing::Family(self.root(space)));
        let device = command.device().and_then(|device| self.devices.get(&device));
        let group = device.map(|device| Thing::Group(device.group));
        let source = match *command {
            Command::Map(space, map, _) if self.spaces.contains_key(&space) => {
                self.source(space, map).ok().flatten().map(Thing::Registration)
            }
            Command::MapRegistered(..) => self.registered.map(Thing::Registration),
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
            Command::Unbind(device) | Command::Leave(device) | Command::Withdraw(device) => {
                self.group(self.devices[&device].group)
            }
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

    /// After spaces were attached to, or detached from, or what their tables can hold has changed.
    fn reshape(&mut self, spaces: &[u32]) {
        for space in spaces {
            let groups = self.attached(*space);
            if !groups.is_empty() {
                self.spaces.get_mut(space).unwrap().shaped_by = self.kinds(&groups);
            }
        }
    }

    /// A device has written some bytes of a page through its table: page by page and level by level.
    fn note_written(&mut self, group: usize, mut address: u64) {
        let mut next = self.path(group).last().copied();
        while let Some(space) = next {
            let found = self.spaces.get_mut(&space).unwrap();
            let block = smallest_page(&found.shaped_by).unwrap();
            let first = address & !(block - 1);
            if let Some(written) = &mut found.written {
                written.extend((0..block / PAGE).map(|page| first + page * PAGE));
            }
            let Some(mapping) = found.mappings.iter().find(|m| m.covers(address)) else { return };
            address = mapping.vaddr + (address - mapping.iova);
            next = found.parent;
        }
    }

    fn check_written(&self, space: u32, (iova, size): (u64, u64), page: u64) -> Verdict {
        let found = self.usable(space)?;
        let smallest = smallest_page(&found.shaped_by).unwrap();
        fail_if(found.written.is_none() || page != smallest, EINVAL)?;
        fail_if(size == 0 || iova % smallest != 0 || size % smallest != 0, EINVAL)?;
        fail_if(u128::from(iova) + u128::from(size) > 1 << 64, EOVERFLOW)
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
const LEFT_BROKEN: i32 = -9;
const SHARED: i32 = -10;
/// Tables that showed something through this many levels, at least one piece of it.
const LEVELS: [i32; 4] = [-11, -12, -13, -14];
const TABLE_FULL: i32 = -15;
const MERGED: i32 = -16;
const UNSHARED: i32 = -17;
const NOT_SHARED: i32 = -18;
const VECTOR_DONE: i32 = -19;
const VECTOR_REFUSED: i32 = -20;
const WRITTEN: i32 = -21;
const TAKEN: i32 = -22;
const LEFT: i32 = -23;
const WITHDRAWN: i32 = -24;

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
            Command::Leave(device) => context.plan_leave(DeviceId(device)),
            Command::Withdraw(device) => context.plan_withdraw(DeviceId(device)),
            Command::Map(space, map, memory) => context.plan_map(id(space), map, memory),
            Command::MapRegistered(space, ref maps) => context.plan_map_registered(id(space), maps),
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
        let mut verdict = self.model.verdict(&command);
        let plan = self.plan(&command);
        let said = plan.as_ref().map(drop).map_err(Error::errno);
        if let Command::MapRegistered(space, maps) = &command {
            self.count(if verdict.is_ok() { VECTOR_DONE } else { VECTOR_REFUSED });
            // Of several that are wrong, any may be named.
            let wrong = self.model.with_all(*space, maps).err().unwrap_or_default();
            verdict = said.err().filter(|errno| wrong.contains(errno)).map_or(verdict, Err);
        }
        assert_eq!(said, verdict, "{command:?}: {plan:?}");
        self.count(verdict.err().unwrap_or(0));
        match plan {
            Err(Error::TableTooSmall { .. }) => self.count(TABLE_TOO_SMALL),
            Err(Error::TableFull { .. }) => self.count(TABLE_FULL),
            _ => {}
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
        let mut charge = 0;
        if let Command::Map(_, map, memory) = *command {
            let mappings = self.model.with(space, map, memory).unwrap();
            let after = Space { mappings, ..Space::default() };
            charge = after.charges().difference(&found.charges()).count() as u64 * PAGE;
        }
        assert_eq!(plan.charge(), charge);
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
        let known = |number: &&usize| !self.model.broken.contains(number);
        let numbers = self.model.tables.keys().filter(known);
        numbers.map(|&number| self.fake.entries(group(number))).collect()
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
                let mut found = self.model.spaces.remove(&space).unwrap();
                let (before, gone) = (found.charges(), std::mem::take(&mut found.mappings));
                self.released(&found, &gone, &before, &outcome);
            }
            Command::Unbind(device) => self.unbound(device, &outcome),
            Command::Attach(device, space) => self.moved(device, |path| path.push(space), |_| true),
            Command::Detach(device, space) if self.model.leaves_all(device, space) => {
                self.leave(device);
            }
            Command::Leave(device) => self.leave(device),
            Command::Withdraw(device) => {
                self.moved(device, Vec::clear, |_| true);
                self.unbound(device, &outcome);
                self.count(WITHDRAWN);
            }
            Command::Detach(device, _) => {
                self.moved(device, |path| path.truncate(path.len() - 1), |_| true);
            }
            Command::Map(space, map, memory) => self.mapped(space, &[(map, memory)], basis),
            Command::MapRegistered(space, maps) => self.mapped(space, &maps, basis),
            Command::Unmap(space, unmap) => {
                let gone = self.model.unmap(space, unmap).unwrap();
                let found = self.model.spaces.get_mut(&space).unwrap();
                let before = found.charges();
                let is_gone = |mapping: &Mapping| gone.contains(&mapping.key);
                let (gone, stays) = found.mappings.drain(..).partition(is_gone);
                found.mappings = stays;
                let gone: Vec<Mapping> = gone;
                assert_eq!(outcome.unmapped_bytes, gone.iter().map(|m| m.size).sum::<u64>());
                let found = found.clone();
                self.released(&found, &gone, &before, &outcome);
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

    fn mapped(&mut self, space: u32, maps: &[(Map, MemoryId)], basis: &BTreeSet<Thing>) {
        let registered = basis.iter().find_map(|thing| match thing {
            Thing::Registration(memory) => Some(*memory),
            _ => None,
        });
        for &(map, memory) in maps {
            self.model.keys += 1;
            let is_root = self.model.spaces[&space].parent.is_none();
            let charges = is_root && registered.is_none() && map.kind != MapKind::Device;
            let Map { iova, size, vaddr, prot, owner, .. } = map;
            let (key, charged) = (self.model.keys, charges.then_some(owner));
            let mapping = Mapping { key, iova, size, vaddr, prot, memory, registered, charged };
            if is_root {
                self.held.insert(memory);
            }
            self.model.spaces.get_mut(&space).unwrap().mappings.push(mapping);
        }
    }

    /// The memory of what a root mapped is given back; a child has none.
    fn released(
        &mut self,
        space: &Space,
        gone: &[Mapping],
        before: &BTreeSet<(Owner, u64)>,
        outcome: &Outcome<Refusal>,
    ) {
        let mut memories: Vec<MemoryId> = gone.iter().map(|mapping| mapping.memory).collect();
        if space.parent.is_some() {
            memories.clear();
        }
        let mut uncharged: BTreeMap<Owner, u64> = BTreeMap::new();
        for &(owner, _) in before.difference(&space.charges()) {
            *uncharged.entry(owner).or_default() += PAGE;
        }
        assert_eq!(outcome.uncharged, uncharged.into_iter().collect::<Vec<_>>());
        assert_eq!(outcome.released.len(), memories.len());
        for memory in memories {
            assert!(outcome.released.contains(&memory) && self.held.remove(&memory));
        }
    }

    fn leave(&mut self, device: u32) {
        let is_broken = self.model.broken.contains(&self.model.devices[&device].group);
        self.count(if is_broken { LEFT_BROKEN } else { LEFT });
        self.moved(device, Vec::clear, |left| left.is_empty() || !is_broken);
    }

    /// A device is attached to something else. If its table shows something else too, that was
    /// cleared for it, but by whoever leaves it broken to others.
    fn moved(
        &mut self,
        device: u32,
        step: impl FnOnce(&mut Vec<u32>),
        was_cleared: impl FnOnce(&[u32]) -> bool,
    ) {
        let number = self.model.devices[&device].group;
        let before = self.model.path(number).to_vec();
        step(&mut self.model.devices.get_mut(&device).unwrap().path);
        let after = self.model.path(number).to_vec();
        if before == after {
            return;
        }
        let longer = if before.len() > after.len() { &before } else { &after };
        self.model.reshape(&longer[before.len().min(after.len())..]);
        if was_cleared(&after) && self.model.broken.remove(&number) {
            self.count(REPAIRED);
        }
    }

    fn unbound(&mut self, device: u32, outcome: &Outcome<Refusal>) {
        let number = self.model.devices.remove(&device).unwrap().group;
        let last = self.model.members(number).next().is_none();
        assert_eq!(outcome.retired, if last { vec![group(number)] } else { vec![] });
        if last {
            self.model.tables.remove(&number);
            self.model.broken.remove(&number);
            // The group gets another table when it is bound again.
            self.fake.forget(group(number));
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
            Op::Bind { home, name } => {
                let known = self.model.table_of(home);
                self.bind(home, known.unwrap_or_else(|| self.model.free_group(home)), name);
            }
            Op::Share { home, name, with } => self.share(home, name, self.device(with)),
            Op::Merge(from, choice) => self.merge(self.device(from), choice),
            Op::Unbind(choice) => {
                let free = |&(_, device): &(&u32, &Device)| device.path.is_empty();
                let free = self.model.devices.iter().filter(free).map(|(&id, _)| id);
                let free: Vec<u32> = free.collect();
                self.unbind(match choice % 3 {
                    0 if !free.is_empty() => free[choice / 3 % free.len()],
                    _ => self.device(choice),
                });
            }
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
            Op::Leave(device) => self.run(Command::Leave(self.device(device))),
            Op::Withdraw(device) => self.run(Command::Withdraw(self.device(device))),
            Op::DetachFirst(device) => {
                // Rather one that has no other way out.
                let of_broken =
                    |id: &&u32| self.model.broken.contains(&self.model.devices[id].group);
                let found = self.model.devices.keys().find(of_broken).copied();
                let device = found.unwrap_or_else(|| self.device(device));
                let path = self.model.devices.get(&device).map_or(&[][..], |device| &device.path);
                if let Some(&space) = path.first() {
                    self.run(Command::Detach(device, space));
                }
            }
            Op::Map { space, map } => self.map(self.space(space), map),
            Op::MapRegistered { space, maps } => self.map_registered(self.space(space), maps),
            Op::Track(space, on) => self.track(self.space(space), on),
            Op::Dma { device, iova, size } => self.dma(self.device(device), iova, size),
            Op::TakeWritten { space, iova, size, page } => {
                self.take_written(self.space(space), (iova, size), page);
            }
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

    /// Binds a device of a group of the host, which uses this table or is about to.
    fn bind(&mut self, home: usize, number: usize, name: usize) -> bool {
        let verdict = self.model.bind(number, home, name);
        let mut homes = self.model.tables.get(&number).cloned().unwrap_or_default();
        if !homes.contains(&home) {
            homes.push(home);
        }
        let bound = self.context.bind(Bind {
            group: group(number),
            geometry: geometry_of(&homes),
            simulated: KINDS[HOMES[home]].simulated,
            name: format!("device {home}.{name}"),
            cookie: Cookie(0),
        });
        self.may_have_changed = true;
        assert_eq!(bound.as_ref().map(drop).map_err(Error::errno), verdict);
        self.count(verdict.err().unwrap_or(0));
        let Ok(device) = bound else { return false };
        self.model.tables.insert(number, homes);
        self.touch(&self.model.group(number));
        self.model.devices_made += 1;
        assert_eq!(device.0, self.model.devices_made, "numbers are never used again");
        let bound = Device { home, group: number, name, path: vec![] };
        self.model.devices.insert(device.0, bound);
        true
    }

    /// What the caller of the engine does for a group that is to share the table of another.
    fn share(&mut self, home: usize, name: usize, with: u32) {
        let Some(number) = self.model.devices.get(&with).map(|device| device.group) else { return };
        let simulated = |home: usize| KINDS[HOMES[home]].simulated;
        let homes = self.model.tables[&number].clone();
        if self.model.table_of(home).is_some() || simulated(home) != simulated(homes[0]) {
            return;
        }
        if self.model.bind(number, home, name).is_err() {
            return;
        }
        if self.regroup(number, [&homes[..], &[home]].concat()) {
            self.bind(home, number, name);
            self.count(SHARED);
        } else {
            self.count(NOT_SHARED);
        }
    }

    /// So that there is a plan which what is done to a table makes stale.
    fn put_off_unmap(&mut self, number: usize) {
        if let Some(&shown) = self.model.path(number).last() {
            self.puts_off = true;
            self.run(Command::Unmap(shown, Unmap::All));
        }
        self.puts_off = false;
    }

    /// A table is used by other groups of the host from now on, if what it shows lets it.
    fn regroup(&mut self, number: usize, homes: Vec<usize>) -> bool {
        self.put_off_unmap(number);
        let verdict = self.model.regroup(number, &homes);
        let (geometry, before) = (geometry_of(&homes), self.context.clone());
        let changes = self.context.devices().find(|info| info.group == group(number));
        let changes = changes.is_some_and(|info| *info.geometry != geometry);
        let regrouped = self.context.regroup(group(number), geometry, "it");
        self.may_have_changed = true;
        if changes {
            assert_eq!(regrouped.as_ref().map_err(Error::errno), verdict.as_ref().map_err(|e| *e));
        }
        if regrouped.is_err() {
            assert!(self.context == before, "a refusal left a trace");
            return false;
        }
        if changes {
            self.touch(&self.model.group(number));
        }
        self.model.tables.insert(number, homes);
        let path = self.model.path(number).to_vec();
        self.model.reshape(&path);
        true
    }

    /// Two tables become one: what a container does with those that show the same.
    fn merge(&mut self, device: u32, choice: usize) {
        let Some(from) = self.model.devices.get(&device).map(|device| device.group) else { return };
        let shows_the_same = |into: &usize| self.model.path(from) == self.model.path(*into);
        let alike = self.model.tables.keys().copied().filter(shows_the_same).collect::<Vec<_>>();
        let all = self.model.tables.keys().copied().collect::<Vec<_>>();
        let into = if choice < 96 { &alike } else { &all };
        let into = into[choice / 4 % into.len()];
        if from == into {
            return assert_eq!(self.context.merge(group(from), group(into)), Ok(()));
        }
        let verdict = self.model.merge(from, into);
        let homes = [self.model.tables[&into].clone(), self.model.tables[&from].clone()].concat();
        if verdict.is_ok() && !self.regroup(into, homes.clone()) {
            return;
        }
        self.put_off_unmap(into);
        let things = &self.model.group(from) | &self.model.group(into);
        let before = self.context.clone();
        let merged = self.context.merge(group(from), group(into));
        self.may_have_changed = true;
        assert_eq!(merged.map_err(|error| error.errno()), verdict);
        if verdict.is_err() {
            return assert!(self.context == before, "a refusal left a trace");
        }
        self.touch(&things);
        let path = self.model.path(into).to_vec();
        for device in self.model.devices.values_mut().filter(|device| device.group == from) {
            device.group = into;
        }
        self.model.tables.remove(&from);
        self.model.broken.remove(&from);
        self.model.tables.insert(into, homes);
        self.model.reshape(&path);
        self.fake.forget(group(from));
        self.count(MERGED);
    }

    /// With the last device of a group of the host, its group lets the table go, which others may
    /// use.
    fn unbind(&mut self, device: u32) {
        if self.model.unbind(device).is_ok() {
            let Device { home, group: number, .. } = self.model.devices[&device];
            let of_home = self.model.devices.values().filter(|device| device.home == home);
            let mut homes = self.model.tables[&number].clone();
            if of_home.count() == 1 && homes.len() > 1 {
                homes.retain(|&other| other != home);
                assert!(self.regroup(number, homes), "what suits more of them suits fewer");
                self.puts_off = false;
                self.count(UNSHARED);
            }
        }
        self.run(Command::Unbind(device));
    }

    fn map_registered(&mut self, space: u32, maps: [Map; 3]) {
        // A child has no memory.
        if self.model.spaces.get(&space).is_none_or(|space| space.parent.is_some()) {
            return;
        }
        // Mostly there is something to map.
        if self.model.registered.is_none() && maps[0].prot.read {
            self.register();
        }
        let maps = maps.map(|map| {
            let vaddr = (map.vaddr.saturating_add(REGISTERED.0)) & !0x7ff;
            (Map { vaddr, ..map }, self.memory())
        });
        self.run(Command::MapRegistered(space, maps.to_vec()));
    }

    fn track(&mut self, space: u32, on: bool) {
        let verdict = self.model.usable(space).map(drop);
        let tracked = self.context.track(id(space), on);
        assert_eq!(tracked.map_err(|error| error.errno()), verdict);
        if verdict.is_ok() {
            let written = &mut self.model.spaces.get_mut(&space).unwrap().written;
            *written = if on { Some(written.take().unwrap_or_default()) } else { None };
        }
        self.may_have_changed = true;
    }

    /// A device writes as far as its table lets it, and whoever has it do so tells the engine.
    fn dma(&mut self, device: u32, iova: u64, size: u64) {
        let Some(number) = self.model.devices.get(&device).map(|device| device.group) else {
            return;
        };
        if self.model.broken.contains(&number) {
            return;
        }
        let is_writable = |address: u64| {
            self.fake.walk(group(number), address).is_some_and(|(entry, _)| entry.prot.write)
        };
        let pages =
            (0..=size / PAGE + 1).map_while(|page| (iova & !(PAGE - 1)).checked_add(page * PAGE));
        let pages = pages.filter(|&page| page < iova.saturating_add(size));
        let pages: Vec<u64> = pages.take_while(|&page| is_writable(page)).collect();
        let Some(&last) = pages.last() else { return };
        let last = last.saturating_add(PAGE - 1).min(iova.saturating_add(size - 1));
        self.context.note_written(group(number), Range::new(iova, last).unwrap());
        pages.iter().for_each(|&page| self.model.note_written(number, page));
        self.may_have_changed = true;
        self.count(WRITTEN);
    }

    fn take_written(&mut self, space: u32, at: (u64, u64), page: u64) {
        let verdict = self.model.check_written(space, at, page);
        let checked = self.context.check_written(id(space), at.0, at.1, page);
        assert_eq!(checked.as_ref().map(drop).map_err(Error::errno), verdict);
        let Ok(range) = checked else { return };
        let taken = self.context.take_written(id(space), range).unwrap();
        let inside = |page: &u64| range.start() <= *page && *page <= range.last();
        let written = self.model.spaces.get_mut(&space).unwrap().written.as_mut().unwrap();
        let (expected, rest) = written.iter().copied().partition::<BTreeSet<u64>, _>(inside);
        *written = rest;
        assert_eq!(pages_of(&taken), expected.iter().copied().collect::<Vec<_>>());
        if at.1 == PAGE {
            // It does not reach whoever asked.
            self.context.give_back_written(id(space), &taken);
            let found = self.model.spaces.get_mut(&space).unwrap();
            found.written.as_mut().unwrap().extend(expected);
        }
        self.may_have_changed = true;
        self.count(TAKEN);
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
        let numbers: Vec<usize> = self.model.tables.keys().copied().collect();
        assert!(
            self.context.tables().map(|table| table.group).eq(numbers.iter().copied().map(group))
        );
        for number in numbers {
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
            assert_eq!(info.locked_bytes, space.charges().len() as u64 * PAGE);
            assert_eq!(info.simulated, space.shaped_by.iter().all(|&kind| KINDS[kind].simulated));
        }
        let attached = self.model.attached(number).into_iter().map(group);
        assert_eq!(self.context.groups(id(number)).collect::<BTreeSet<_>>(), attached.collect());
        assert_eq!(self.context.is_tracking(id(number)), space.written.is_some());
        if let (Ok(_), Some(written)) = (usable, &space.written) {
            let taken = self.context.clone().take_written(id(number), Range::ALL).unwrap();
            assert_eq!(pages_of(&taken), written.iter().copied().collect::<Vec<_>>());
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
        let tracked = path.iter().any(|space| self.model.spaces[space].written.is_some());
        assert_eq!(self.context.is_tracked(group(number)), tracked);
        if is_broken {
            return None;
        }
        let held = self.fake.entries(group(number));
        let Some(&shown) = path.last() else {
            assert_eq!(held, []);
            return None;
        };
        assert_eq!(held, self.model.entries(shown));
        assert!(held.len() <= self.model.capacity(number), "more than the hardware holds");
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
        let numbers = self.model.tables.keys().copied().map(group);
        for number in numbers.filter(|number| !failed.contains(number)) {
            assert_eq!(self.fake.entries(number), []);
        }
        self.seen
    }
}

/// What a table is able to hold that these groups of the host use.
fn geometry_of(homes: &[usize]) -> Geometry {
    let geometries = homes.iter().map(|&home| {
        let kind = &KINDS[HOMES[home]];
        let permitted = kind.permitted.iter().filter_map(|&(start, last)| Range::new(start, last));
        Geometry {
            pgsizes: PageSizes(kind.pgsizes),
            permitted: permitted.collect(),
            max_mappings: kind.max_mappings,
        }
    });
    geometries.reduce(|a, b| a.shared(&b)).unwrap()
}

/// Ranges, which are in ascending order, as pages of 4 KiB.
fn pages_of(ranges: &[Range]) -> Vec<u64> {
    let pages = |range: &Range| (range.start()..=range.last()).step_by(PAGE as usize);
    ranges.iter().flat_map(pages).collect()
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
    let bind = |(home, name)| Op::Bind { home, name };
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
        8 => {
            let children = [nest(1), Op::Descend(2, 0), Op::Nest(2), Op::Descend(3, 1)];
            [&begin[..], &children, &[map(1), bound(2)]].concat()
        }
        // A small table that a child fills.
        9 | 13 => {
            let begin = [bind((4, 0)), Op::Alloc, Op::Descend(1, 0), nest(1), Op::Descend(1, 0)];
            let page = |space: usize, at: u64, pages: u64| {
                let (owner, prot, kind) = (ME, Prot::READ_WRITE, MapKind::Memory);
                let (iova, vaddr, size) = (at * PAGE, 8 * PAGE, pages * PAGE);
                Op::Map { space, map: Map { iova, size, vaddr, prot, owner, kind } }
            };
            let maps = [8, 10, 12].map(|at| page(2, at, 2));
            [&begin[..], &maps, &[page(10, 2, 6)]].concat()
        }
        // Registered memory.
        10 => [&[Op::Register], &begin[..], &[nest(1)], &two(), &[map(2)]].concat(),
        // Groups that share a table, and others that show the same.
        11 => {
            let share = |(home, name)| Op::Share { home, name, with: 1 };
            let binds = [bind((0, 0)), share((2, 0)), share((2, 1)), bind((1, 0)), bind((3, 0))];
            let all = [1, 2, 3, 4, 5].map(|device| Op::Descend(device, 0));
            [&binds[..], &[Op::Alloc], &all, &[map(1), nest(1)], &all[3..], &[map(2)]].concat()
        }
        // Groups that have come to share a table that shows nothing.
        12 => {
            let share = |(home, name)| Op::Share { home, name, with: 1 };
            vec![bind((0, 0)), share((2, 0)), share((2, 1)), bind((1, 0)), Op::Alloc]
        }
        // Dirty pages of two levels.
        _ => {
            let track = [Op::Track(2, true), Op::Track(10, true)];
            let dma = |page: u64| Op::Dma { device: 3, iova: page * PAGE, size: 5 * PAGE };
            [&begin[..], &[nest(1)], &two(), &[map(1), map(2)], &track, &[dma(8), dma(12)]].concat()
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
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1700)
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
    let drawn = (0usize..15, steps, any::<Step>());
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
        TABLE_FULL,
        LEFT_BROKEN,
        SHARED,
        NOT_SHARED,
        UNSHARED,
        MERGED,
        VECTOR_DONE,
        VECTOR_REFUSED,
        WRITTEN,
        TAKEN,
        LEFT,
        WITHDRAWN,
    ];
    for end in ends.into_iter().chain(others).chain(LEVELS) {
        assert!(total.get(&end).is_some_and(|&count| count > 10), "{end} is rare in {total:?}");
    }
}

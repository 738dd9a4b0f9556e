//! The rules of nested address spaces, one by one. The name of a test is the rule that it holds.

use ioasid_uapi::errno::*;

use crate::fake::Refusal;
use crate::pgtable::{Format, Leaf, Root};
use crate::setup::*;
use crate::*;

const MANY: Limits =
    Limits { max_ioasids: 8, max_devices: 8, max_mappings: 2100, max_registered: 3 };
const C: GroupId = GroupId(12);
/// Where the memory of a root's mapping is does not matter to what is nested on it.
const PAGE: u64 = 0x1000;

/// A mapping of a child: `pages` pages at page `iova` that lead to page `vaddr` of the parent.
fn to(iova: u64, pages: u64, vaddr: u64) -> Map {
    Map { vaddr: vaddr * PAGE, kind: MapKind::Nested, ..at(iova, pages) }
}

/// A mapping of memory: `pages` pages at page `iova`.
fn at(iova: u64, pages: u64) -> Map {
    map_at(iova * PAGE, pages * PAGE)
}

fn leaf(iova: u64, pages: u64, target: u64) -> Leaf {
    let prot = Prot::READ_WRITE;
    Leaf { iova: iova * PAGE, size: pages * PAGE, target: target * PAGE, prot }
}

fn table_at(address: u64) -> Root {
    Root::new(Format::X86Level4, address, 48).unwrap()
}

/// An entry of a table, in pages: first IOVA, how many, memory, and where in it they begin.
type Piece = (u64, u64, MemoryId, u64);

impl Setup {
    /// With a device that is attached to `depth` address spaces, each nested on the one before.
    fn nested(depth: usize) -> (Self, DeviceId, Vec<Ioasid>) {
        Self::nested_on(depth, geometry(PAGE, &[(0, u64::MAX)], 65535))
    }

    fn nested_on(depth: usize, geometry: Geometry) -> (Self, DeviceId, Vec<Ioasid>) {
        let mut setup = Self::limited(MANY);
        let device = setup.bind(A, "a0", geometry);
        let mut levels = vec![setup.context.alloc().unwrap()];
        setup.attach(device, levels[0]).unwrap();
        while levels.len() < depth {
            levels.push(setup.nest(*levels.last().unwrap()));
            setup.attach(device, *levels.last().unwrap()).unwrap();
        }
        (setup, device, levels)
    }

    fn nest(&mut self, parent: Ioasid) -> Ioasid {
        self.context.create_nesting(parent).unwrap()
    }

    /// Binds another device and attaches it to all of `path`.
    fn follow(&mut self, group: GroupId, name: &str, path: &[Ioasid]) -> DeviceId {
        let device = self.bind(group, name, geometry(PAGE, &[(0, u64::MAX)], 65535));
        path.iter().for_each(|&ioasid| drop(self.attach(device, ioasid).unwrap()));
        device
    }

    fn unmap_pages(&mut self, ioasid: Ioasid, iova: u64, pages: u64) -> u64 {
        self.unmap(ioasid, iova * PAGE, pages * PAGE).unwrap().unmapped_bytes / PAGE
    }

    /// What a table holds. The engine must say the same.
    fn pieces(&self, group: GroupId) -> Vec<Piece> {
        let held = self.hardware.entries(group);
        assert!(self.context.table_contents(group).eq(held.iter().copied()));
        let piece = |e: &Entry| (e.iova / PAGE, e.size / PAGE, e.memory, e.offset / PAGE);
        held.iter().map(piece).collect()
    }

    fn bind_table(&mut self, ioasid: Ioasid, leaves: &[Leaf]) -> Result<(), Failed> {
        let plan = self.context.plan_bind_table(ioasid, table_at(PAGE), leaves);
        self.execute(plan).map(drop)
    }

    /// Reads a table anew that now has `leaves`.
    fn invalidate(&mut self, ioasid: Ioasid, at: Range, leaves: &[Leaf]) -> Result<(), Failed> {
        let mut range = at;
        let found = loop {
            range = self.context.reread_extent(ioasid, range)?;
            let leaf_at = |leaf: &Leaf| Range::from_size(leaf.iova, leaf.size).unwrap();
            let overlaps = |leaf: &&Leaf| leaf_at(leaf).intersection(range).is_some();
            let found: Vec<Leaf> = leaves.iter().filter(overlaps).copied().collect();
            let whole = found.iter().map(leaf_at).fold(range, Range::hull);
            if whole == range {
                break found;
            }
            range = whole;
        };
        let plan = self.context.plan_invalidate(ioasid, range, &found);
        self.execute(plan).map(drop)
    }
}

fn page_range(first: u64, pages: u64) -> Range {
    Range::from_size(first * PAGE, pages * PAGE).unwrap()
}

// Composing.

#[test]
fn a_table_shows_a_child_composed_with_its_parent() {
    let (mut setup, _, levels) = Setup::nested(2);
    let memory = setup.map(levels[0], at(0x10, 8)).unwrap();
    setup.map(levels[1], to(3, 2, 0x12)).unwrap();
    assert_eq!(setup.pieces(A), [(3, 2, memory, 2)]);
}

#[test]
fn three_levels_are_composed_to_memory() {
    let (mut setup, _, levels) = Setup::nested(3);
    let memory = setup.map(levels[0], at(0x10, 8)).unwrap();
    setup.map(levels[1], to(0x20, 8, 0x10)).unwrap();
    setup.map(levels[2], to(0x30, 4, 0x22)).unwrap();
    assert_eq!(setup.pieces(A), [(0x30, 4, memory, 2)]);
}

#[test]
fn a_mapping_over_several_of_the_parents_becomes_pieces_that_end_where_theirs_do() {
    let (mut setup, _, levels) = Setup::nested(3);
    let [a, b] = [at(0, 3), at(3, 3)].map(|map| setup.map(levels[0], map).unwrap());
    setup.map(levels[1], to(0x10, 2, 1)).unwrap();
    setup.map(levels[1], to(0x12, 3, 3)).unwrap();
    setup.map(levels[2], to(0x20, 3, 0x11)).unwrap();
    setup.map(levels[2], to(0x23, 1, 0x14)).unwrap();
    assert_eq!(setup.pieces(A), [(0x20, 1, a, 2), (0x21, 2, b, 0), (0x23, 1, b, 2)]);
}

#[test]
fn what_the_parent_does_not_map_is_a_hole_until_it_does() {
    let (mut setup, _, levels) = Setup::nested(3);
    setup.map(levels[2], to(0x20, 4, 0x10)).unwrap();
    setup.map(levels[1], to(0x10, 4, 0)).unwrap();
    assert_eq!(setup.pieces(A), []);
    let memory = setup.map(levels[0], at(1, 2)).unwrap();
    assert_eq!(setup.pieces(A), [(0x21, 2, memory, 0)]);
    let behind = setup.map(levels[0], at(3, 4)).unwrap();
    assert_eq!(setup.pieces(A), [(0x21, 2, memory, 0), (0x23, 1, behind, 0)]);
    assert_eq!(setup.unmap_pages(levels[0], 1, 2), 2);
    assert_eq!(setup.pieces(A), [(0x23, 1, behind, 0)]);
}

#[test]
fn rights_are_those_that_every_level_gives() {
    let (r, w, rw) = (Prot::READ, Prot::WRITE, Prot::READ_WRITE);
    for (top, middle, bottom, expected) in [
        (rw, rw, rw, Some(rw)),
        (r, rw, rw, Some(r)),
        (rw, w, rw, Some(w)),
        (rw, rw, r, Some(r)),
        (r, w, rw, None),
        (rw, r, w, None),
        (w, rw, r, None),
    ] {
        let (mut setup, _, levels) = Setup::nested(3);
        // In every order, as each level has to find what the others map.
        let maps = [
            Map { prot: top, ..at(0, 1) },
            Map { prot: middle, ..to(1, 1, 0) },
            Map { prot: bottom, ..to(2, 1, 1) },
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            for level in order {
                setup.map(levels[level], maps[level]).unwrap();
            }
            let found: Vec<Prot> = setup.hardware.entries(A).iter().map(|e| e.prot).collect();
            assert_eq!(found, Vec::from_iter(expected));
            assert_eq!(setup.context.translate(levels[2], 2 * PAGE).map(|t| t.prot), expected);
            setup.pieces(A);
            for level in order {
                setup.unmap(levels[level], maps[level].iova, PAGE).unwrap();
                setup.pieces(A);
            }
        }
    }
}

#[test]
fn a_change_at_any_level_is_followed_in_every_table_below() {
    let (mut setup, _, levels) = Setup::nested(3);
    let other = setup.nest(levels[0]);
    setup.follow(B, "b0", &levels[..2]);
    setup.follow(C, "c0", &[levels[0], other]);
    let memory = setup.map(levels[0], at(0, 4)).unwrap();
    setup.map(levels[1], to(0x10, 4, 0)).unwrap();
    setup.map(levels[2], to(0x20, 4, 0x10)).unwrap();
    setup.map(other, to(0x30, 1, 3)).unwrap();
    let all = |setup: &Setup| [A, B, C].map(|group| setup.pieces(group));
    let (a, b, c) =
        (vec![(0x20, 4, memory, 0)], vec![(0x10, 4, memory, 0)], vec![(0x30, 1, memory, 3)]);
    assert_eq!(all(&setup), [a.clone(), b.clone(), c.clone()]);
    setup.unmap_pages(levels[2], 0x20, 4);
    assert_eq!(all(&setup), [vec![], b.clone(), c.clone()]);
    setup.map(levels[2], to(0x20, 4, 0x10)).unwrap();
    setup.unmap_pages(levels[1], 0x10, 4);
    assert_eq!(all(&setup), [vec![], vec![], c.clone()]);
    setup.map(levels[1], to(0x10, 4, 0)).unwrap();
    assert_eq!(all(&setup), [a, b, c]);
    setup.execute(setup.context.plan_unmap(levels[0], Unmap::All)).unwrap();
    assert_eq!(all(&setup), [vec![], vec![], vec![]]);
    let memory = setup.map(levels[0], at(1, 2)).unwrap();
    let expected = [vec![(0x21, 2, memory, 0)], vec![(0x11, 2, memory, 0)], vec![]];
    assert_eq!(all(&setup), expected);
}

#[test]
fn several_mappings_of_a_child_may_lead_to_the_same_place() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.map(levels[1], to(0x10, 4, 0)).unwrap();
    setup.map(levels[1], to(0x14, 2, 1)).unwrap();
    setup.map(levels[1], to(0x20, 1, 2)).unwrap();
    let memory = setup.map(levels[0], at(1, 2)).unwrap();
    let pieces = [(0x11, 2, memory, 0), (0x14, 2, memory, 0), (0x20, 1, memory, 1)];
    assert_eq!(setup.pieces(A), pieces);
    assert_eq!(setup.unmap_pages(levels[1], 0x14, 2), 2);
    assert_eq!(setup.pieces(A), [pieces[0], pieces[2]]);
    assert_eq!(setup.unmap_pages(levels[0], 1, 2), 2);
    assert_eq!(setup.pieces(A), []);
}

#[test]
fn pieces_that_follow_one_another_are_removed_by_one_call() {
    let (mut setup, _, levels) = Setup::nested(2);
    for page in 0..4 {
        setup.map(levels[0], at(page, 1)).unwrap();
    }
    setup.map(levels[1], to(0x10, 4, 0)).unwrap();
    setup.map(levels[1], to(0x20, 2, 1)).unwrap();
    assert_eq!(setup.pieces(A).len(), 6);
    let unmap = Unmap::Range { iova: PAGE, size: 2 * PAGE };
    let plan = setup.context.plan_unmap(levels[0], unmap).unwrap();
    let gone = |iova: u64| Change::Unmap { group: A, iova: iova * PAGE, size: 2 * PAGE };
    assert_eq!(plan.changes(), [gone(0x11), gone(0x20)]);
    setup.execute(Ok(plan)).unwrap();
    assert_eq!(setup.pieces(A).len(), 2);
}

#[test]
fn what_leads_nowhere_is_mapped_and_unmapped_without_hardware() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.hardware.refuse([]);
    setup.map(levels[1], to(0x10, 4, 0)).unwrap();
    assert_eq!(setup.unmap_pages(levels[1], 0x10, 4), 4);
    assert_eq!(setup.hardware.calls, 0);
}

#[test]
fn the_pieces_of_an_unmap_are_never_more_than_a_size_can_say() {
    let (mut setup, _, levels) = Setup::nested(2);
    let half = 1 << 63;
    setup.map(levels[1], Map { vaddr: 0, ..map_at(0, half) }).unwrap();
    setup.map(levels[1], Map { vaddr: 0, ..map_at(half, half) }).unwrap();
    setup.map(levels[0], Map { vaddr: 0, ..map_at(0, half) }).unwrap();
    assert_eq!(setup.pieces(A).len(), 2);
    assert_eq!(setup.unmap(levels[0], 0, half).unwrap().unmapped_bytes, half);
    assert_eq!(setup.pieces(A), []);
}

#[test]
fn an_unmap_is_judged_by_the_mappings_of_its_ioasid_not_by_pieces() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.map(levels[0], at(0, 1)).unwrap();
    setup.map(levels[0], at(1, 1)).unwrap();
    setup.map(levels[1], to(0x10, 2, 0)).unwrap();
    assert_eq!(setup.pieces(A).len(), 2);
    assert_eq!(errno(setup.unmap(levels[1], 0x10 * PAGE, PAGE)), EINVAL);
    assert_eq!(setup.unmap_pages(levels[1], 0, 0x20), 2);
}

#[test]
fn translate_goes_through_all_levels() {
    let (mut setup, _, levels) = Setup::nested(3);
    let memory = setup.map(levels[0], Map { prot: Prot::READ, ..at(2, 6) }).unwrap();
    setup.map(levels[1], to(0x10, 3, 3)).unwrap();
    setup.map(levels[2], to(0x20, 8, 0x11)).unwrap();
    let expected = Translation {
        memory,
        offset: 2 * PAGE + 0x123,
        vaddr: at(0, 1).vaddr + 2 * PAGE + 0x123,
        prot: Prot::READ,
        last: 0x22 * PAGE - 1,
    };
    assert_eq!(setup.context.translate(levels[2], 0x20 * PAGE + 0x123), Some(expected));
    assert_eq!(setup.context.translate(levels[2], 0x22 * PAGE), None, "the child ends there");
    assert_eq!(setup.context.translate(levels[1], 0x13 * PAGE), None);
}

// What a child is.

#[test]
fn a_child_is_made_on_an_ioasid_that_takes_commands_and_counts_against_the_limit() {
    let mut setup = Setup::new();
    let parent = setup.context.alloc().unwrap();
    let create = |setup: &mut Setup, parent| setup.context.create_nesting(parent);
    assert_eq!(create(&mut setup, Ioasid::try_from(9).unwrap()).unwrap_err().errno(), ENOENT);
    assert_eq!(create(&mut setup, parent).unwrap_err().errno(), ENODEV);
    let device = setup.bind(A, "a0", vtd());
    setup.attach(device, parent).unwrap();
    let sibling = setup.bind(A, "a1", vtd());
    assert_eq!(create(&mut setup, parent).unwrap_err().errno(), EBUSY);
    setup.execute(setup.context.plan_unbind(sibling)).unwrap();
    let child = create(&mut setup, parent).unwrap();
    assert_eq!(create(&mut setup, child).unwrap_err().errno(), ENODEV);
    create(&mut setup, parent).unwrap();
    create(&mut setup, parent).unwrap();
    assert_eq!(create(&mut setup, parent).unwrap_err().errno(), ENOSPC);
}

#[test]
fn a_child_takes_no_command_before_a_device_is_attached_to_it() {
    let (mut setup, _, levels) = Setup::nested(1);
    let child = setup.nest(levels[0]);
    assert_eq!(errno(setup.map(child, to(0, 1, 0))), ENODEV);
    assert_eq!(setup.context.info(child).unwrap_err().errno(), ENODEV);
    assert_eq!(errno(setup.bind_table(child, &[])), ENODEV);
    assert_eq!(setup.context.bound_table(child).unwrap_err().errno(), ENODEV);
    setup.execute(setup.context.plan_free(child)).unwrap();
}

#[test]
fn info_tells_parent_depth_and_children() {
    let (mut setup, _, levels) = Setup::nested(3);
    setup.nest(levels[1]);
    let seen = levels.iter().map(|&ioasid| {
        let info = setup.context.info(ioasid).unwrap();
        (info.parent, info.depth, info.nr_children, info.nr_devices)
    });
    let expected = [(None, 0, 1, 1), (Some(levels[0]), 1, 2, 1), (Some(levels[1]), 2, 0, 1)];
    assert_eq!(Vec::from_iter(seen), expected);
    assert_eq!(setup.context.parent(levels[2]), Ok(Some(levels[1])));
    assert!(levels.iter().all(|&ioasid| setup.context.family(ioasid) == levels[0]));
    assert_eq!(setup.context.devices().next().unwrap().ioasid, Some(levels[2]));
}

#[test]
fn a_parent_cannot_be_freed_before_its_children() {
    let (mut setup, device, levels) = Setup::nested(2);
    setup.map(levels[1], to(0, 1, 0)).unwrap();
    for &ioasid in levels.iter().rev() {
        assert_eq!(errno(setup.execute(setup.context.plan_free(ioasid))), EBUSY);
        setup.detach(device, ioasid).unwrap();
    }
    let error = refusal(setup.execute(setup.context.plan_free(levels[0])));
    assert_eq!(error, Error::HasChild { ioasid: levels[0], child: levels[1] });
    assert_eq!(error.errno(), EBUSY);
    let outcome = setup.execute(setup.context.plan_free(levels[1])).unwrap();
    assert_eq!(outcome, Outcome::default(), "a child has no memory to give back");
    setup.execute(setup.context.plan_free(levels[0])).unwrap();
}

#[test]
fn only_the_parent_is_charged_and_gives_memory_back() {
    let (mut setup, _, levels) = Setup::nested(2);
    let map = |setup: &Setup, ioasid, map| setup.context.plan_map(ioasid, map, MemoryId(1));
    assert_eq!(map(&setup, levels[0], at(0, 2)).unwrap().charge(), 2 * PAGE);
    let memory = setup.map(levels[0], at(0, 2)).unwrap();
    assert_eq!(map(&setup, levels[1], to(0, 2, 0)).unwrap().charge(), 0);
    setup.map(levels[1], to(0, 2, 0)).unwrap();
    assert_eq!(setup.context.info(levels[1]).unwrap().locked_bytes, 0);
    assert_eq!(setup.context.info(levels[1]).unwrap().mapped_bytes, 2 * PAGE);
    assert_eq!(setup.context.info(levels[0]).unwrap().locked_bytes, 2 * PAGE);
    let outcome = setup.unmap(levels[1], 0, 2 * PAGE).unwrap();
    let nothing = (2 * PAGE, vec![], vec![]);
    assert_eq!((outcome.unmapped_bytes, outcome.released, outcome.uncharged), nothing);
    setup.map(levels[1], to(0, 2, 0)).unwrap();
    let outcome = setup.execute(Ok(setup.context.plan_release())).unwrap();
    assert_eq!((outcome.released, outcome.uncharged), (vec![memory], vec![(ME, 2 * PAGE)]));
}

#[test]
fn of_a_child_kind_and_owner_of_a_mapping_do_not_matter_and_neither_does_registration() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.context.register(ME, 0x7000_0000_0000, 0x4000, MemoryId(77)).unwrap();
    let memory = setup.map(levels[0], at(0, 2)).unwrap();
    for (place, kind) in
        [MapKind::Memory, MapKind::File, MapKind::Device, MapKind::Nested].into_iter().enumerate()
    {
        let map = Map { kind, owner: Owner(9), ..to(place as u64, 1, 1) };
        let plan = setup.context.plan_map(levels[1], map, MemoryId(0)).unwrap();
        assert_eq!(plan.charge(), 0);
        setup.execute(Ok(plan)).unwrap();
    }
    assert_eq!(setup.pieces(A), [0, 1, 2, 3].map(|iova| (iova, 1, memory, 1)));
    let mut mappings = setup.context.mappings(levels[1]).unwrap();
    assert!(mappings.all(|mapping| mapping.kind == MapKind::Nested));
    drop(mappings);
    setup.unmap_pages(levels[0], 0, 2);
    setup.context.unregister(ME, 0x7000_0000_0000, 0x4000).unwrap();
}

#[test]
fn the_rules_of_a_mapping_are_those_of_any_ioasid() {
    let (mut setup, _, levels) = Setup::nested_on(2, geometry(0x3000, &[(0, 0xffff)], 2));
    let child = levels[1];
    assert_eq!(errno(setup.map(child, Map { vaddr: 0x800, ..to(0, 1, 0) })), EINVAL);
    assert_eq!(errno(setup.map(child, to(0x10, 1, 0))), EINVAL);
    let top = 0u64.wrapping_sub(PAGE);
    assert_eq!(errno(setup.map(child, Map { vaddr: top, ..to(0, 2, 0) })), EOVERFLOW);
    setup.map(child, Map { vaddr: top, ..to(0, 1, 0) }).unwrap();
    assert_eq!(errno(setup.map(child, to(0, 1, 0))), EEXIST);
    setup.map(child, to(1, 1, 0)).unwrap();
    assert_eq!(errno(setup.map(child, to(2, 1, 0))), ENOSPC);
}

// Attaching.

#[test]
fn a_device_is_attached_to_the_parent_before_the_child() {
    let (mut setup, _, levels) = Setup::nested(3);
    let device = setup.follow(B, "b0", &[]);
    for &child in &levels[1..] {
        let error = refusal(setup.attach(device, child));
        assert!(matches!(error, Error::NotOnParent { .. }), "{error}");
        assert_eq!(error.errno(), EINVAL);
    }
    setup.attach(device, levels[0]).unwrap();
    assert_eq!(errno(setup.attach(device, levels[2])), EINVAL);
    setup.attach(device, levels[1]).unwrap();
    setup.attach(device, levels[2]).unwrap();
}

#[test]
fn a_device_is_attached_once_at_each_level() {
    let (mut setup, device, levels) = Setup::nested(3);
    let siblings = [levels[0], levels[1]].map(|parent| setup.nest(parent));
    let other = setup.context.alloc().unwrap();
    let below = setup.nest(levels[2]);
    for target in levels.iter().copied().chain(siblings).chain([other]) {
        let error = refusal(setup.attach(device, target));
        assert!(matches!(error, Error::AlreadyAttached { .. }), "{target}: {error}");
        assert_eq!(error.errno(), EBUSY);
    }
    setup.attach(device, below).unwrap();
}

#[test]
fn devices_of_a_group_follow_one_path() {
    let (mut setup, _, levels) = Setup::nested(2);
    let other = setup.nest(levels[0]);
    let root = setup.context.alloc().unwrap();
    let sibling = setup.follow(A, "a1", &[]);
    for (path, target) in [(None, root), (Some(levels[0]), other)] {
        if let Some(first) = path {
            setup.attach(sibling, first).unwrap();
        }
        let error = refusal(setup.attach(sibling, target));
        assert!(matches!(error, Error::SiblingElsewhere { .. }), "{error}");
        assert_eq!(error.errno(), EBUSY);
    }
    setup.attach(sibling, levels[1]).unwrap();
}

#[test]
fn an_attach_to_a_child_replaces_what_the_table_held_and_a_detach_brings_it_back() {
    let (mut setup, device, levels) = Setup::nested(2);
    let memory = setup.map(levels[0], at(0, 4)).unwrap();
    setup.map(levels[1], to(0x10, 1, 2)).unwrap();
    let composed = [(0x10, 1, memory, 2)];
    assert_eq!(setup.pieces(A), composed);
    setup.detach(device, levels[1]).unwrap();
    assert_eq!(setup.pieces(A), [(0, 4, memory, 0)]);
    setup.map(levels[1], to(0x20, 1, 9)).unwrap();
    assert_eq!(setup.pieces(A), [(0, 4, memory, 0)], "it shows the parent");
    setup.attach(device, levels[1]).unwrap();
    assert_eq!(setup.pieces(A), composed);
    setup.detach(device, levels[1]).unwrap();
    setup.detach(device, levels[0]).unwrap();
    assert_eq!(setup.pieces(A), []);
}

#[test]
fn a_device_leaves_the_child_before_the_parent() {
    let (mut setup, device, levels) = Setup::nested(3);
    for &above in &levels[..2] {
        let error = refusal(setup.detach(device, above));
        let (device, child) = ("a0".to_owned(), levels[2]);
        assert_eq!(error, Error::AttachedToChild { device, ioasid: above, child });
        assert_eq!(error.errno(), EBUSY);
    }
    let error = refusal(setup.execute(setup.context.plan_unbind(device)));
    assert_eq!(error, Error::DeviceAttached { device: "a0".to_owned(), ioasid: levels[2] });
    for &ioasid in levels.iter().rev() {
        setup.detach(device, ioasid).unwrap();
        assert_eq!(errno(setup.detach(device, ioasid)), ENOENT);
    }
}

#[test]
fn a_partly_attached_group_stops_the_level_that_is_partly_attached() {
    let (mut setup, device, levels) = Setup::nested(2);
    let sibling = setup.follow(A, "a1", &[]);
    let stopped = |setup: &Setup| {
        [0, 1].map(|level| setup.context.info(levels[level]).err().map(|error| error.errno()))
    };
    assert_eq!(stopped(&setup), [Some(EBUSY); 2]);
    assert_eq!(errno(setup.map(levels[1], to(0, 1, 0))), EBUSY);
    assert_eq!(errno(setup.bind_table(levels[1], &[])), EBUSY);
    assert_eq!(setup.context.create_nesting(levels[1]).unwrap_err().errno(), EBUSY);
    setup.attach(sibling, levels[0]).unwrap();
    assert_eq!(stopped(&setup), [None, Some(EBUSY)]);
    setup.map(levels[1], to(0, 1, 0)).unwrap_err();
    setup.map(levels[0], at(0, 1)).unwrap();
    setup.attach(sibling, levels[1]).unwrap();
    assert_eq!(stopped(&setup), [None; 2]);
    let devices = levels.iter().map(|&i| setup.context.info(i).unwrap().nr_devices);
    assert_eq!(Vec::from_iter(devices), [2, 2]);
    setup.map(levels[1], to(0, 1, 0)).unwrap();
    setup.detach(device, levels[1]).unwrap();
    assert_eq!(stopped(&setup), [None, Some(EBUSY)]);
    assert_eq!(setup.pieces(A).len(), 1, "the sibling is on the child");
    setup.detach(device, levels[0]).unwrap();
    setup.execute(setup.context.plan_unbind(device)).unwrap();
    assert_eq!(stopped(&setup), [None; 2]);
}

#[test]
fn the_properties_of_a_child_are_those_of_its_own_devices() {
    let (mut setup, device, levels) = Setup::nested_on(2, geometry(0x3000, VTD, 65535));
    let narrow = setup.bind(B, "b0", geometry(0x2000, &[(0, 0xffff)], 5));
    setup.attach(narrow, levels[0]).unwrap();
    let seen = |setup: &Setup, level: usize| {
        let info = setup.context.info(levels[level]).unwrap();
        (info.pgsizes.0, info.max_mappings)
    };
    assert_eq!((seen(&setup, 0), seen(&setup, 1)), ((0x2000, 5), (0x3000, 2100)));
    setup.map(levels[0], at(0, 2)).unwrap();
    setup.map(levels[1], to(0x11, 1, 1)).unwrap();
    assert_eq!(setup.pieces(A).len(), 1);
    let error = refusal(setup.attach(narrow, levels[1]));
    assert!(matches!(error, Error::MappingMisaligned { .. }), "{error}");
    setup.unmap_pages(levels[1], 0x11, 1);
    setup.map(levels[1], to(0x20, 2, 0)).unwrap();
    assert_eq!(errno(setup.attach(narrow, levels[1])), EADDRINUSE);
    setup.unmap_pages(levels[1], 0x20, 2);
    setup.attach(narrow, levels[1]).unwrap();
    setup.detach(device, levels[1]).unwrap();
    assert_eq!(seen(&setup, 1), (0x2000, 5));
}

#[test]
fn a_table_must_be_able_to_hold_the_pieces_not_just_the_mappings() {
    let (mut setup, device, levels) = Setup::nested_on(1, geometry(PAGE, VTD, 4));
    let big = setup.follow(B, "b0", &[levels[0]]);
    let child = setup.nest(levels[0]);
    setup.attach(big, child).unwrap();
    for page in 0..4 {
        setup.map(levels[0], at(page, 1)).unwrap();
    }
    setup.map(child, to(0x10, 4, 0)).unwrap();
    setup.attach(device, child).unwrap();
    setup.detach(device, child).unwrap();
    setup.map(child, to(0x20, 1, 0)).unwrap();
    let error = refusal(setup.attach(device, child));
    assert_eq!(error, Error::TableTooSmall { ioasid: child, device: "a0".to_owned(), max: 4 });
    assert_eq!(error.errno(), ENOSPC);
    assert_eq!(setup.pieces(A).len(), 4, "nothing has changed");
    setup.unmap_pages(child, 0x20, 1);
    setup.attach(device, child).unwrap();
}

#[test]
fn a_map_whose_pieces_a_table_cannot_hold_is_refused_before_hardware_is_touched() {
    let (mut setup, _, levels) = Setup::nested_on(2, geometry(PAGE, &[(0, u64::MAX)], 4));
    let wide = setup.follow(B, "b0", &levels);
    for page in 0..3 {
        setup.map(levels[0], at(page, 1)).unwrap();
    }
    setup.map(levels[1], to(0, 3, 0)).unwrap();
    for refused in [to(8, 2, 0), to(8, 3, 1)] {
        let before = (setup.context.clone(), setup.hardware.calls);
        let error = refusal(setup.map(levels[1], refused));
        let says = "takes 5 entries in the I/O page table of \"a0\", which holds 4";
        assert!(error.errno() == ENOSPC && error.to_string().contains(says), "{error}");
        assert_eq!((setup.context.clone(), setup.hardware.calls), before);
    }
    setup.map(levels[1], to(8, 1, 0)).unwrap();
    // Of a parent too: each of its pages is one more piece for whatever leads there.
    setup.unmap_pages(levels[0], 1, 1);
    setup.map(levels[1], to(16, 2, 1)).unwrap();
    assert_eq!(setup.pieces(A).len(), 4);
    let before = setup.hardware.calls;
    assert_eq!(errno(setup.map(levels[0], at(1, 1))), ENOSPC);
    assert_eq!(setup.hardware.calls, before);
    setup.unmap_pages(levels[1], 16, 2);
    setup.map(levels[0], at(1, 1)).unwrap();
    assert_eq!(setup.pieces(A).len(), 4);
    // What is counted is what is there, also after all was taken away and shown again.
    setup.execute(setup.context.plan_unmap(levels[0], Unmap::All)).unwrap();
    setup.map(levels[0], at(0, 4)).unwrap();
    setup.map(levels[1], to(20, 1, 0)).unwrap();
    setup.map(levels[1], to(24, 1, 0)).unwrap();
    assert_eq!(setup.pieces(A).len(), 4);
    setup.detach(wide, levels[1]).unwrap();
    assert_eq!(setup.pieces(A).len(), 4);
}

#[test]
fn leaves_whose_pieces_a_table_cannot_hold_are_refused_before_hardware_is_touched() {
    let (mut setup, _, levels) = Setup::nested_on(2, geometry(PAGE, &[(0, u64::MAX)], 4));
    for page in 0..4 {
        setup.map(levels[0], at(page, 1)).unwrap();
    }
    let before = setup.hardware.calls;
    let leaves = [leaf(0, 4, 0), leaf(8, 1, 0)];
    assert_eq!(errno(setup.bind_table(levels[1], &leaves)), ENOSPC);
    assert_eq!(setup.hardware.calls, before);
    setup.bind_table(levels[1], &leaves[..1]).unwrap();
    // One piece goes and another comes.
    setup.invalidate(levels[1], Range::ALL, &[leaf(0, 2, 0), leaf(8, 2, 0)]).unwrap();
    let (before, held) = (setup.hardware.calls, setup.pieces(A));
    let more = [leaf(0, 2, 0), leaf(8, 2, 0), leaf(16, 1, 3)];
    assert_eq!(errno(setup.invalidate(levels[1], Range::ALL, &more)), ENOSPC);
    assert_eq!((setup.hardware.calls, setup.pieces(A)), (before, held));
}

#[test]
fn a_device_stays_on_a_child_while_its_table_cannot_hold_the_parent() {
    let (mut setup, device, levels) = Setup::nested_on(3, geometry(PAGE, VTD, 4));
    for page in 0..3 {
        setup.map(levels[0], at(page, 1)).unwrap();
    }
    setup.map(levels[1], to(0, 3, 0)).unwrap();
    setup.map(levels[1], to(8, 3, 0)).unwrap();
    let error = refusal(setup.detach(device, levels[2]));
    assert!(matches!(error, Error::TableTooSmall { ioasid, .. } if ioasid == levels[1]));
    setup.execute(setup.context.plan_unmap(levels[1], Unmap::All)).unwrap();
    setup.detach(device, levels[2]).unwrap();
}

// Limits.

/// Two levels that lead to page 0 of a root, 2^10 times each page of the lower.
fn manifold(lower: u64) -> (Setup, DeviceId, Vec<Ioasid>) {
    let (mut setup, device, levels) = Setup::nested(3);
    for page in 0..1024 {
        setup.map(levels[1], to(page, 1, 0)).unwrap();
    }
    for place in 0..lower {
        setup.map(levels[2], to(place * 1024, 1024, 0)).unwrap();
    }
    (setup, device, levels)
}

#[test]
fn one_command_adds_a_million_pieces_at_most() {
    let (mut setup, device, levels) = manifold(1025);
    let error = refusal(setup.map(levels[0], at(0, 1)));
    assert!(matches!(error, Error::TooManyPieces { .. }), "{error}");
    assert_eq!((error.errno(), setup.pieces(A)), (ENOSPC, vec![]));
    setup.detach(device, levels[2]).unwrap();
    setup.map(levels[0], at(0, 1)).unwrap();
    assert_eq!(setup.pieces(A).len(), 1024);
    let error = refusal(setup.attach(device, levels[2]));
    assert!(matches!(error, Error::TableTooSmall { .. }), "{error}");
}

#[test]
fn one_command_takes_two_million_steps_at_most_if_they_lead_nowhere() {
    let (mut setup, device, levels) = manifold(2050);
    setup.detach(device, levels[2]).unwrap();
    let error = refusal(setup.attach(device, levels[2]));
    assert!(matches!(error, Error::TooManyPieces { .. }), "{error}");
    assert_eq!(error.errno(), ENOSPC);
    setup.execute(setup.context.plan_unmap(levels[2], Unmap::All)).unwrap();
    setup.attach(device, levels[2]).unwrap();
}

#[test]
fn the_pieces_of_all_leaves_of_a_table_count_together() {
    let (mut setup, _, levels) = Setup::nested(2);
    for page in 0..1024 {
        setup.map(levels[0], at(page, 1)).unwrap();
    }
    let leaves: Vec<Leaf> = (0..1025).map(|place| leaf(place * 1024, 1024, 0)).collect();
    let error = refusal(setup.bind_table(levels[1], &leaves));
    assert!(matches!(error, Error::TooManyPieces { .. }), "{error}");
    setup.bind_table(levels[1], &leaves[..2]).unwrap();
    assert_eq!(setup.pieces(A).len(), 2048);
}

// Plans.

#[test]
fn a_plan_for_any_member_of_a_family_is_stale_after_a_change_of_another() {
    let (mut setup, device, levels) = Setup::nested(3);
    let side = setup.nest(levels[0]);
    let unattached = setup.context.alloc().unwrap();
    let b0 = setup.follow(B, "b0", &[levels[0], side]);
    setup.map(levels[0], at(0x40, 1)).unwrap();
    type Make = fn(&Setup, &[Ioasid], DeviceId) -> Result<Plan, Error>;
    let plans: [Make; 7] = [
        |s, levels, _| s.context.plan_map(levels[0], at(0, 1), MemoryId(99)),
        |s, levels, _| s.context.plan_map(levels[1], to(0, 1, 0), MemoryId(99)),
        |s, levels, _| s.context.plan_unmap(levels[0], Unmap::All),
        |s, levels, _| s.context.plan_bind_table(levels[2], table_at(0), &[leaf(0, 1, 0)]),
        |s, levels, _| s.context.plan_free(levels[3]),
        |s, levels, device| s.context.plan_detach(device, levels[2]),
        |s, levels, device| s.context.plan_attach(device, levels[3]),
    ];
    type Change = fn(&mut Setup, &[Ioasid], DeviceId);
    let changes: [Change; 6] = [
        |s, levels, _| assert!(s.map(levels[0], at(0x20, 1)).is_ok()),
        |s, levels, _| assert!(s.map(levels[2], to(0x20, 1, 0)).is_ok()),
        |s, levels, b0| drop(s.detach(b0, levels[4]).unwrap()),
        |s, levels, _| assert!(s.context.create_nesting(levels[1]).is_ok()),
        |s, levels, _| s.bind_table(levels[4], &[]).unwrap(),
        |s, _, _| assert!(s.follow(B, "b1", &[]) > DeviceId(0)),
    ];
    let bottom = setup.nest(levels[2]);
    let all = [&levels[..], &[bottom, side]].concat();
    for make in plans {
        for change in changes {
            let mut setup = Setup {
                context: setup.context.clone(),
                hardware: setup.hardware.clone(),
                next_memory: setup.next_memory,
            };
            let plan = make(&setup, &all, device).unwrap();
            assert_eq!(setup.context.check(&plan), Ok(()));
            setup.execute(setup.context.plan_free(unattached)).unwrap();
            assert_eq!(setup.context.check(&plan), Ok(()), "that is another family");
            change(&mut setup, &all, b0);
            assert_eq!(refusal(setup.execute(Ok(plan))), Error::StalePlan);
        }
    }
}

#[test]
fn a_broken_table_stops_every_level_that_it_is_attached_to_until_it_is_detached() {
    let (mut setup, device, levels) = Setup::nested(2);
    let side = setup.nest(levels[0]);
    setup.follow(B, "b0", &[levels[0], side]);
    let memory = setup.map(levels[0], at(0, 1)).unwrap();
    setup.map(levels[1], to(4, 1, 0)).unwrap();
    setup.map(side, to(8, 1, 0)).unwrap();
    setup.hardware.refuse([1, 2]);
    let broken = setup.unmap(levels[0], 0, PAGE).unwrap_err();
    assert!(matches!(broken, ExecuteError::Broken { broken, .. } if broken == [(A, Refusal(2))]));
    setup.hardware.refuse([]);
    assert_eq!(errno(setup.map(levels[0], at(1, 1))), EIO);
    assert_eq!(errno(setup.map(levels[1], to(5, 1, 0))), EIO);
    setup.map(side, to(9, 1, 0)).unwrap();
    setup.detach(device, levels[1]).unwrap();
    assert_eq!(setup.pieces(A), [(0, 1, memory, 0)]);
    setup.map(levels[0], at(1, 1)).unwrap();
    assert_eq!(setup.pieces(B), [(8, 1, memory, 0), (9, 1, memory, 0)]);
}

#[test]
fn what_a_child_cannot_be_shown_for_the_table_shows_the_parent_again() {
    let (mut setup, device, levels) = Setup::nested(2);
    let memory = setup.map(levels[0], at(0, 4)).unwrap();
    setup.map(levels[1], to(0, 1, 0)).unwrap();
    setup.map(levels[1], to(1, 1, 3)).unwrap();
    setup.detach(device, levels[1]).unwrap();
    for place in 0..3 {
        let before = setup.context.clone();
        setup.hardware.refuse([place]);
        let refused = setup.attach(device, levels[1]);
        assert!(matches!(refused, Err(ExecuteError::Refused { .. })), "{refused:?}");
        assert_eq!((setup.pieces(A), &setup.context), (vec![(0, 4, memory, 0)], &before));
    }
    // Calls: clear, map, map; clear to undo. The parent's mapping is not put where a child's is.
    setup.hardware.refuse([2, 3]);
    let broken = setup.attach(device, levels[1]).unwrap_err();
    assert!(matches!(broken, ExecuteError::Broken { broken, .. } if broken == [(A, Refusal(3))]));
    assert_eq!(setup.hardware.calls, 4);
    setup.hardware.refuse([]);
    setup.attach(device, levels[1]).unwrap();
    assert_eq!(setup.pieces(A).len(), 2);
    for place in 0..2 {
        let before = (setup.context.clone(), setup.pieces(A));
        setup.hardware.refuse([place]);
        setup.detach(device, levels[1]).unwrap_err();
        assert_eq!((setup.context.clone(), setup.pieces(A)), before);
    }
}

#[test]
fn a_broken_table_can_be_left_at_once_by_way_of_where_its_path_begins() {
    let (mut setup, device, levels) = Setup::nested(3);
    let memory = setup.map(levels[0], at(0, 4)).unwrap();
    setup.map(levels[1], to(0, 4, 0)).unwrap();
    setup.map(levels[2], to(0, 1, 0)).unwrap();
    setup.hardware.refuse([]);
    assert_eq!(errno(setup.detach(device, levels[0])), EBUSY);
    let sibling = setup.follow(A, "a1", &levels[..2]);
    setup.hardware.refuse([1, 2]);
    setup.detach(device, levels[2]).unwrap_err();
    // The parent cannot be shown, however often that is tried.
    setup.hardware.refuse([1, 2]);
    setup.detach(device, levels[2]).unwrap_err();
    assert_eq!(errno(setup.detach(device, levels[1])), EBUSY);
    assert_eq!(errno(setup.map(levels[0], at(8, 1))), EIO);
    setup.hardware.refuse([]);
    setup.detach(device, levels[0]).unwrap();
    assert_eq!(setup.context.device_info(device).unwrap().ioasid, None);
    assert_eq!((setup.hardware.calls, errno(setup.map(levels[0], at(8, 1)))), (0, EIO));
    assert_eq!(errno(setup.attach(device, levels[0])), EIO);
    // The last of the group takes the table with it.
    setup.hardware.refuse([0]);
    let before = setup.context.clone();
    let refused = setup.detach(sibling, levels[0]);
    assert!(matches!(refused, Err(ExecuteError::Refused { .. })), "{refused:?}");
    assert_eq!(setup.context, before);
    setup.hardware.refuse([]);
    setup.detach(sibling, levels[0]).unwrap();
    assert_eq!((setup.pieces(A), setup.hardware.calls), (vec![], 1));
    assert!(setup.context.tables().all(|table| !table.broken && table.shows.is_none()));
    for device in [device, sibling] {
        levels[..2].iter().for_each(|&level| drop(setup.attach(device, level).unwrap()));
    }
    assert_eq!(setup.pieces(A), [(0, 4, memory, 0)]);
    setup.map(levels[0], at(8, 1)).unwrap();
}

#[test]
fn a_table_that_refuses_to_be_restored_is_asked_no_more() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.map(levels[0], at(0, 16)).unwrap();
    setup.bind_table(levels[1], &[leaf(0, 1, 0), leaf(1, 1, 1), leaf(8, 1, 8)]).unwrap();
    // Calls: unmap, map, map; unmap to undo the first of them.
    setup.hardware.refuse([2, 3]);
    let leaves = [leaf(0, 1, 2), leaf(1, 1, 3), leaf(8, 1, 8)];
    let broken = setup.invalidate(levels[1], Range::ALL, &leaves).unwrap_err();
    assert!(matches!(broken, ExecuteError::Broken { broken, .. } if broken == [(A, Refusal(3))]));
    assert_eq!(setup.hardware.calls, 4);
}

// Tables of the program.

#[test]
fn a_bound_table_is_shown_through_the_parent_and_gone_when_it_is_unbound() {
    let (mut setup, _, levels) = Setup::nested(3);
    let memory = setup.map(levels[0], at(0, 8)).unwrap();
    setup.map(levels[2], to(0x20, 4, 0x10)).unwrap();
    let write = Leaf { prot: Prot::WRITE, ..leaf(0x11, 1, 4) };
    setup.bind_table(levels[1], &[leaf(0x10, 1, 2), write, leaf(0x12, 2, 7)]).unwrap();
    let expected = [(0x20, 1, memory, 2), (0x21, 1, memory, 4), (0x22, 1, memory, 7)];
    assert_eq!(setup.pieces(A), expected);
    assert_eq!(setup.hardware.entries(A)[1].prot, Prot::WRITE);
    let info = setup.context.info(levels[1]).unwrap();
    assert_eq!((info.bound, info.nr_mappings), (Some(table_at(PAGE)), 3));
    assert_eq!(setup.context.bound_table(levels[1]), Ok(&table_at(PAGE)));
    let outcome = setup.execute(setup.context.plan_unbind_table(levels[1])).unwrap();
    assert_eq!((outcome, setup.pieces(A)), (Outcome::default(), vec![]));
    let info = setup.context.info(levels[1]).unwrap();
    assert_eq!((info.bound, info.nr_mappings, info.mapped_bytes), (None, 0, 0));
    setup.map(levels[1], to(0x10, 1, 5)).unwrap();
    assert_eq!(setup.pieces(A), [(0x20, 1, memory, 5)]);
}

#[test]
fn what_leaves_lead_to_follows_the_parent_at_once() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.bind_table(levels[1], &[leaf(0x10, 4, 0), leaf(0x20, 1, 1)]).unwrap();
    assert_eq!(setup.pieces(A), []);
    let memory = setup.map(levels[0], at(1, 2)).unwrap();
    assert_eq!(setup.pieces(A), [(0x11, 2, memory, 0), (0x20, 1, memory, 0)]);
    setup.unmap_pages(levels[0], 1, 2);
    assert_eq!(setup.pieces(A), []);
}

#[test]
fn leaves_that_did_not_change_are_not_touched_in_hardware() {
    let (mut setup, _, levels) = Setup::nested(2);
    let memory = setup.map(levels[0], at(0, 64)).unwrap();
    let mut leaves: Vec<Leaf> = (0..16).map(|page| leaf(page, 1, page)).collect();
    setup.bind_table(levels[1], &leaves).unwrap();
    let calls = |setup: &mut Setup, range, leaves: &[Leaf]| {
        setup.hardware.refuse([]);
        setup.invalidate(levels[1], range, leaves).unwrap();
        setup.hardware.calls
    };
    assert_eq!(calls(&mut setup, Range::ALL, &leaves), 0);
    leaves[3].target = 0x30 * PAGE;
    leaves[9].prot = Prot::READ;
    assert_eq!(calls(&mut setup, page_range(4, 5), &leaves), 0, "neither is in the range");
    assert_eq!(calls(&mut setup, page_range(3, 1), &leaves), 2);
    assert_eq!(setup.pieces(A)[3], (3, 1, memory, 0x30));
    assert_eq!(setup.hardware.entries(A)[9].prot, Prot::READ_WRITE);
    assert_eq!(calls(&mut setup, Range::ALL, &leaves), 2);
    assert_eq!(setup.hardware.entries(A)[9].prot, Prot::READ);
    leaves.drain(5..8);
    assert_eq!(calls(&mut setup, page_range(0, 16), &leaves), 1, "neighbours go together");
    leaves.push(leaf(0x20, 1, 0));
    assert_eq!(calls(&mut setup, page_range(0, 0x40), &leaves), 1);
    assert_eq!(setup.pieces(A).len(), 14);
    assert_eq!(calls(&mut setup, Range::ALL, &[leaf(0, 1, 9)]), 2, "cleared and filled");
    assert_eq!(setup.pieces(A), [(0, 1, memory, 9)]);
}

#[test]
fn pages_are_replaced_by_a_superpage_and_back() {
    let (mut setup, _, levels) = Setup::nested(2);
    let memory = setup.map(levels[0], at(0, 64)).unwrap();
    let beside = leaf(8, 1, 3);
    let small: Vec<Leaf> = (0..8).map(|n| leaf(n, 1, 63 - n)).chain([beside]).collect();
    let large = [leaf(0, 8, 16), beside];
    setup.bind_table(levels[1], &small).unwrap();
    // The range is one page, but what was read before and what is there now reach over it.
    setup.invalidate(levels[1], page_range(5, 1), &large).unwrap();
    assert_eq!(setup.pieces(A), [(0, 8, memory, 16), (8, 1, memory, 3)]);
    assert_eq!(setup.context.reread_extent(levels[1], page_range(5, 1)), Ok(page_range(0, 8)));
    setup.invalidate(levels[1], page_range(7, 1), &small).unwrap();
    assert_eq!(setup.pieces(A).len(), 9);
    assert_eq!(setup.pieces(A)[7], (7, 1, memory, 56));
}

#[test]
fn leaves_outside_of_what_can_be_mapped_are_holes() {
    let permitted = [(0x2000, 0x5fff), (0x8000, 0xffff)];
    let (mut setup, _, levels) = Setup::nested_on(2, geometry(0x2000, &permitted, 65535));
    let memory = setup.map(levels[0], at(2, 4)).unwrap();
    let leaves = [
        // Over a hole of the permitted ranges, and beyond their ends.
        leaf(0, 16, 0),
        // Not on the smallest page: in size, in target.
        leaf(0x10, 2, 2),
        leaf(0x12, 1, 2),
    ];
    setup.bind_table(levels[1], &leaves).unwrap();
    assert_eq!(setup.pieces(A), [(2, 4, memory, 0)]);
    assert_eq!(setup.context.info(levels[1]).unwrap().nr_mappings, 2);
    let inside = [leaf(8, 1, 2), leaf(9, 1, 3), leaf(10, 2, 3), leaf(12, 2, 4)];
    setup.invalidate(levels[1], Range::ALL, &inside).unwrap();
    assert_eq!(setup.pieces(A), [(12, 2, memory, 2)]);
    let wraps = Leaf { target: 0u64.wrapping_sub(2 * PAGE), ..leaf(8, 4, 0) };
    setup.invalidate(levels[1], Range::ALL, &[wraps]).unwrap();
    assert_eq!(setup.context.info(levels[1]).unwrap().nr_mappings, 0);
}

#[test]
fn a_table_may_not_have_more_leaves_than_the_ioasid_mappings() {
    let (mut setup, _, levels) = Setup::nested_on(2, geometry(PAGE, VTD, 3));
    let leaves = |count: u64| Vec::from_iter((0..count).map(|page| leaf(page, 1, 0)));
    assert_eq!(errno(setup.bind_table(levels[1], &leaves(4))), ENOSPC);
    assert_eq!(setup.context.info(levels[1]).unwrap().bound, None);
    setup.bind_table(levels[1], &leaves(3)).unwrap();
    let all = [leaves(3), vec![leaf(8, 1, 0)]].concat();
    assert_eq!(errno(setup.invalidate(levels[1], page_range(8, 1), &all)), ENOSPC);
    let moved = [leaf(0, 1, 0), leaf(1, 1, 0), leaf(8, 1, 0)];
    setup.invalidate(levels[1], Range::ALL, &moved).unwrap();
}

#[test]
fn what_is_bound_to_a_table_takes_no_map_no_unmap_and_no_other_table() {
    let (mut setup, _, levels) = Setup::nested(2);
    setup.bind_table(levels[1], &[leaf(0, 1, 0)]).unwrap();
    assert_eq!(errno(setup.map(levels[1], to(8, 1, 0))), EBUSY);
    assert_eq!(errno(setup.unmap(levels[1], 0, PAGE)), EBUSY);
    assert_eq!(errno(setup.execute(setup.context.plan_unmap(levels[1], Unmap::All))), EBUSY);
    let error = refusal(setup.bind_table(levels[1], &[]));
    assert_eq!((error.errno(), error), (EBUSY, Error::TableBound { ioasid: levels[1] }));
    setup.execute(setup.context.plan_unbind_table(levels[1])).unwrap();
    setup.map(levels[1], to(8, 1, 0)).unwrap();
}

#[test]
fn a_table_is_bound_to_a_child_without_mappings_only() {
    let (mut setup, _, levels) = Setup::nested(2);
    let error = refusal(setup.bind_table(levels[0], &[]));
    assert_eq!((error.errno(), error), (EINVAL, Error::NoChild(levels[0])));
    setup.map(levels[1], to(0, 1, 0)).unwrap();
    let error = refusal(setup.bind_table(levels[1], &[]));
    assert_eq!((error.errno(), error), (EBUSY, Error::HasMappings { ioasid: levels[1] }));
    setup.unmap_pages(levels[1], 0, 1);
    setup.bind_table(levels[1], &[]).unwrap();
}

#[test]
fn without_a_bound_table_there_is_nothing_to_invalidate_or_to_unbind() {
    let (setup, _, levels) = Setup::nested(2);
    let context = &setup.context;
    let nowhere = Ioasid::try_from(9).unwrap();
    let [root, child] = levels[..] else { unreachable!() };
    for (ioasid, invalidate, unbind) in
        [(child, EINVAL, ENOENT), (root, EINVAL, EINVAL), (nowhere, ENOENT, ENOENT)]
    {
        let plan = context.plan_invalidate(ioasid, Range::ALL, &[]);
        assert_eq!(plan.unwrap_err().errno(), invalidate);
        assert_eq!(context.reread_extent(ioasid, Range::ALL).unwrap_err().errno(), invalidate);
        assert_eq!(context.plan_unbind_table(ioasid).unwrap_err().errno(), unbind);
    }
    assert_eq!(context.plan_unbind_table(child), Err(Error::NotBound(child)));
    assert_eq!(context.bound_table(child), Err(Error::NothingBound(child)));
}

#[test]
fn a_table_stays_bound_while_no_device_is_attached() {
    let (mut setup, device, levels) = Setup::nested(2);
    let memory = setup.map(levels[0], at(0, 4)).unwrap();
    setup.bind_table(levels[1], &[leaf(0, 1, 1)]).unwrap();
    setup.detach(device, levels[1]).unwrap();
    setup.invalidate(levels[1], Range::ALL, &[leaf(1, 1, 2)]).unwrap();
    assert_eq!(setup.pieces(A), [(0, 4, memory, 0)]);
    setup.attach(device, levels[1]).unwrap();
    assert_eq!(setup.pieces(A), [(1, 1, memory, 2)]);
}

#[test]
fn a_device_that_leaves_all_at_once_shows_nothing_on_the_way() {
    let (mut setup, device, levels) = Setup::nested(3);
    let memory = setup.map(levels[0], at(0, 4)).unwrap();
    setup.map(levels[1], to(0, 2, 0)).unwrap();
    let plan = setup.context.plan_leave(device).unwrap();
    assert_eq!(plan.changes(), [Change::Clear { group: A }]);
    // As far as others of its group stay, their table shows what they are attached to.
    let sibling = setup.follow(A, "a1", &levels[..1]);
    setup.execute(setup.context.plan_leave(device)).unwrap();
    assert_eq!(setup.pieces(A), [(0, 4, memory, 0)]);
    let plan = setup.context.plan_leave(device).unwrap();
    assert_eq!(plan.changes(), []);
    setup.execute(Ok(plan)).unwrap();
    setup.execute(setup.context.plan_leave(sibling)).unwrap();
    assert_eq!(setup.pieces(A), []);
    assert!(setup.context.devices().all(|device| device.ioasid.is_none()));
}

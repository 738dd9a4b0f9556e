//! The rules, one by one. The name of a test is the rule that it holds.

use ioasid_uapi::errno::*;

use crate::fake::{Fake, Refusal};
use crate::setup::*;
use crate::*;

// Ids.

#[test]
fn ioasids_count_from_1_and_are_never_used_again() {
    let mut setup = Setup::new();
    let first = setup.context.alloc().unwrap();
    assert_eq!(first.get(), 1);
    setup.execute(setup.context.plan_free(first)).unwrap();
    assert_eq!(setup.context.alloc().unwrap().get(), 2);
    assert_eq!(Ioasid::try_from(0), Err(Error::NoIoasid(0)));
}

#[test]
fn a_freed_ioasid_and_an_unbound_device_are_enoent_everywhere() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let gone = setup.context.alloc().unwrap();
    setup.execute(setup.context.plan_free(gone)).unwrap();
    let unbound = setup.bind(B, "b0", vtd());
    setup.execute(setup.context.plan_unbind(unbound)).unwrap();
    assert_eq!(errno(setup.map(gone, map_at(0, 0x1000))), ENOENT);
    assert_eq!(errno(setup.unmap(gone, 0, 0x1000)), ENOENT);
    assert_eq!(errno(setup.attach(device, gone)), ENOENT);
    assert_eq!(errno(setup.detach(device, gone)), ENOENT);
    assert_eq!(errno(setup.attach(unbound, ioasid)), ENOENT);
    assert_eq!(errno(setup.detach(unbound, ioasid)), ENOENT);
    assert_eq!(errno(setup.execute(setup.context.plan_free(gone))), ENOENT);
    assert_eq!(errno(setup.execute(setup.context.plan_unbind(unbound))), ENOENT);
    assert_eq!(setup.context.info(gone).unwrap_err().errno(), ENOENT);
    assert_eq!(setup.context.device_info(unbound).unwrap_err().errno(), ENOENT);
    assert_eq!(setup.context.mappings(gone).map(drop).unwrap_err().errno(), ENOENT);
}

#[test]
fn alloc_and_bind_stop_at_their_limits() {
    let mut setup = Setup::new();
    for _ in 0..LIMITS.max_ioasids {
        setup.context.alloc().unwrap();
    }
    assert_eq!(setup.context.alloc().unwrap_err().errno(), ENOSPC);
    for number in 0..LIMITS.max_devices {
        setup.bind(A, &format!("a{number}"), vtd());
    }
    assert_eq!(setup.context.can_bind(A, "one more").unwrap_err().errno(), ENOSPC);
    assert_eq!(setup.try_bind(B, "one more", vtd()).unwrap_err().errno(), ENOSPC);
}

// Binding.

#[test]
fn a_device_is_bound_once_but_its_name_may_occur_in_another_group() {
    let mut setup = Setup::new();
    setup.bind(A, "a0", vtd());
    assert_eq!(setup.context.can_bind(A, "a0").unwrap_err().errno(), EBUSY);
    assert_eq!(setup.try_bind(A, "a0", vtd()).unwrap_err().errno(), EBUSY);
    setup.bind(B, "a0", vtd());
}

#[test]
fn devices_of_a_group_have_one_kind_and_one_geometry_that_works() {
    let mut setup = Setup::new();
    setup.bind(A, "a0", vtd());
    let other = geometry(0x1000, VTD, 65535);
    assert_eq!(setup.try_bind(A, "a1", other).unwrap_err().errno(), EIO);
    let (name, cookie) = ("a1".to_owned(), Cookie(0));
    let simulated = Bind { group: A, geometry: vtd(), simulated: true, name, cookie };
    assert_eq!(setup.context.bind(simulated).unwrap_err().errno(), EIO);
    let no_page_size = geometry(0, VTD, 65535);
    assert_eq!(setup.try_bind(B, "b0", no_page_size).unwrap_err().errno(), EIO);
    let no_iova = geometry(0x1000, &[], 65535);
    assert_eq!(setup.try_bind(B, "b0", no_iova).unwrap_err().errno(), EIO);
}

#[test]
fn an_attached_device_cannot_be_unbound() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    assert_eq!(errno(setup.execute(setup.context.plan_unbind(device))), EBUSY);
    setup.detach(device, ioasid).unwrap();
    let outcome = setup.execute(setup.context.plan_unbind(device)).unwrap();
    assert_eq!(outcome.retired, [A]);
}

#[test]
fn a_table_is_retired_with_the_last_device_of_its_group() {
    let mut setup = Setup::new();
    let devices = ["a0", "a1"].map(|name| setup.bind(A, name, vtd()));
    let retired =
        devices.map(|device| setup.execute(setup.context.plan_unbind(device)).unwrap().retired);
    assert_eq!(retired, [vec![], vec![A]]);
}

#[test]
fn device_info_tells_what_was_bound() {
    let (setup, device, ioasid) = Setup::attached(vtd());
    let info = setup.context.device_info(device).unwrap();
    assert_eq!((info.id, info.group, info.name, info.cookie), (device, A, "a0", Cookie(7)));
    assert_eq!((info.ioasid, info.simulated, info.geometry), (Some(ioasid), false, &vtd()));
    assert!(setup.context.devices().eq([info]));
}

// An IOASID takes no command before its first attach, and goes on after its last detach.

#[test]
fn an_ioasid_takes_no_command_before_its_first_attach_but_can_be_freed() {
    let mut setup = Setup::new();
    let ioasid = setup.context.alloc().unwrap();
    assert_eq!(errno(setup.map(ioasid, map_at(0, 0))), ENODEV);
    assert_eq!(errno(setup.unmap(ioasid, 0, 0)), ENODEV);
    assert_eq!(setup.context.info(ioasid).unwrap_err().errno(), ENODEV);
    setup.execute(setup.context.plan_free(ioasid)).unwrap();
}

#[test]
fn after_the_last_detach_mappings_and_geometry_stay_and_are_replayed() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0x1000, 0x1000)).unwrap();
    setup.detach(device, ioasid).unwrap();
    assert_eq!(setup.table(A), []);
    setup.map(ioasid, map_at(0x3000, 0x1000)).unwrap();
    setup.map(ioasid, map_at(0x5000, 0x1000)).unwrap();
    assert_eq!(setup.unmap(ioasid, 0x1000, 0x1000).unwrap().unmapped_bytes, 0x1000);
    assert_eq!(errno(setup.map(ioasid, map_at(0xfee0_0000, 0x1000))), EADDRINUSE);
    let info = setup.context.info(ioasid).unwrap();
    assert_eq!((info.nr_devices, info.nr_mappings), (0, 2));
    setup.attach(device, ioasid).unwrap();
    assert_eq!(setup.table(A), [0x3000, 0x5000]);
}

#[test]
fn info_tells_geometry_and_contents() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0x1000, 0x3000)).unwrap();
    let expected = SpaceInfo {
        parent: None,
        depth: 0,
        bound: None,
        pgsizes: PageSizes(0x4020_1000),
        permitted: vtd().permitted,
        nr_devices: 1,
        nr_children: 0,
        max_mappings: LIMITS.max_mappings,
        nr_mappings: 1,
        mapped_bytes: 0x3000,
        locked_bytes: 0x3000,
        simulated: false,
    };
    assert_eq!(setup.context.info(ioasid), Ok(expected));
}

// Mapping.

#[test]
fn a_map_reaches_every_table_that_shows_the_ioasid() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let device = setup.bind(B, "b0", vtd());
    setup.attach(device, ioasid).unwrap();
    let map = Map { prot: Prot::READ, ..map_at(0x5000, 0x2000) };
    let memory = setup.map(ioasid, map).unwrap();
    let entry = Entry { iova: 0x5000, size: 0x2000, prot: Prot::READ, memory, offset: 0 };
    assert_eq!(setup.hardware.entries(A), [entry]);
    assert_eq!(setup.hardware.entries(B), [entry]);
    assert!(setup.context.table_contents(B).eq([entry]));
}

#[test]
fn a_map_that_allows_nothing_is_einval() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let prot = Prot { read: false, write: false };
    assert_eq!(errno(setup.map(ioasid, Map { prot, ..map_at(0, 0x1000) })), EINVAL);
    setup.map(ioasid, Map { prot: Prot::WRITE, ..map_at(0, 0x1000) }).unwrap();
}

#[test]
fn a_size_of_zero_is_einval() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    assert_eq!(refusal(setup.map(ioasid, map_at(0x1000, 0))), Error::ZeroSize);
    assert_eq!(refusal(setup.unmap(ioasid, 0x1000, 0)), Error::ZeroSize);
}

#[test]
fn iova_size_and_vaddr_are_multiples_of_the_smallest_page() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x20_4000, VTD, 10));
    let good = map_at(0x4000, 0x4000);
    for bad in [
        Map { iova: 0x5000, ..good },
        Map { size: 0x5000, ..good },
        Map { vaddr: good.vaddr + 0x2000, ..good },
    ] {
        assert_eq!(errno(setup.map(ioasid, bad)), EINVAL, "{bad:?}");
    }
    setup.map(ioasid, good).unwrap();
    assert_eq!(errno(setup.unmap(ioasid, 0x5000, 0x4000)), EINVAL);
    assert_eq!(errno(setup.unmap(ioasid, 0x4000, 0x5000)), EINVAL);
}

#[test]
fn a_range_may_end_at_the_top_of_64_bits_but_not_wrap() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, &[(0, u64::MAX)], 10));
    let top = 0u64.wrapping_sub(0x2000);
    assert_eq!(errno(setup.map(ioasid, map_at(top, 0x3000))), EOVERFLOW);
    assert_eq!(errno(setup.map(ioasid, Map { vaddr: top, ..map_at(0, 0x3000) })), EOVERFLOW);
    assert_eq!(errno(setup.unmap(ioasid, top, 0x3000)), EOVERFLOW);
    setup.map(ioasid, Map { vaddr: top, ..map_at(top, 0x2000) }).unwrap();
    let found = setup.context.translate(ioasid, u64::MAX).unwrap();
    assert_eq!((found.vaddr, found.offset, found.last), (u64::MAX, 0x1fff, u64::MAX));
    assert_eq!(setup.unmap(ioasid, top, 0x2000).unwrap().unmapped_bytes, 0x2000);
}

#[test]
fn all_of_64_bits_can_be_mapped_and_counted() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, &[(0, u64::MAX)], 10));
    let half = 1 << 63;
    setup.map(ioasid, Map { vaddr: 0, ..map_at(0, half) }).unwrap();
    setup.map(ioasid, Map { vaddr: 0, ..map_at(half, half) }).unwrap();
    assert_eq!(setup.context.info(ioasid).unwrap().mapped_bytes, u64::MAX);
    let outcome = setup.execute(setup.context.plan_unmap(ioasid, Unmap::All)).unwrap();
    assert_eq!((outcome.unmapped_bytes, outcome.released.len()), (u64::MAX, 2));
    assert_eq!(setup.context.info(ioasid).unwrap().mapped_bytes, 0);
}

#[test]
fn iovas_outside_the_aperture_are_einval_and_those_in_its_holes_eaddrinuse() {
    let permitted = [(0x10_0000, 0x1f_ffff), (0x30_0000, 0x3f_ffff)];
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, &permitted, 10));
    for outside in [map_at(0xf_f000, 0x2000), map_at(0x3f_f000, 0x2000), map_at(0, 0x1000)] {
        assert_eq!(errno(setup.map(ioasid, outside)), EINVAL, "{outside:?}");
    }
    let hole = range(0x20_0000, 0x2f_ffff);
    for inside in
        [map_at(0x28_0000, 0x1000), map_at(0x1f_f000, 0x2000), map_at(0x10_0000, 0x30_0000)]
    {
        let error = refusal(setup.map(ioasid, inside));
        assert!(matches!(error, Error::Reserved { reserved, .. } if reserved == hole), "{error}");
        assert_eq!(error.errno(), EADDRINUSE);
    }
    setup.map(ioasid, map_at(0x10_0000, 0x10_0000)).unwrap();
    setup.map(ioasid, map_at(0x30_0000, 0x10_0000)).unwrap();
}

#[test]
fn mappings_touch_but_do_not_overlap() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0x4000, 0x4000)).unwrap();
    for (iova, size) in
        [(0x4000, 0x4000), (0x5000, 0x1000), (0x3000, 0x2000), (0x7000, 0x2000), (0, 0x10000)]
    {
        let error = refusal(setup.map(ioasid, map_at(iova, size)));
        assert!(matches!(error, Error::Overlap { mapped, .. } if mapped == range(0x4000, 0x7fff)));
        assert_eq!(error.errno(), EEXIST);
    }
    setup.map(ioasid, map_at(0x3000, 0x1000)).unwrap();
    setup.map(ioasid, map_at(0x8000, 0x1000)).unwrap();
}

#[test]
fn the_limit_on_mappings_is_the_smallest_of_context_and_tables() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, VTD, 3));
    for page in 0..3 {
        setup.map(ioasid, map_at(page * 0x1000, 0x1000)).unwrap();
    }
    assert_eq!(errno(setup.map(ioasid, map_at(0x8000, 0x1000))), ENOSPC);
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    for page in 0..u64::from(LIMITS.max_mappings) {
        setup.map(ioasid, map_at(page * 0x1000, 0x1000)).unwrap();
    }
    assert_eq!(errno(setup.map(ioasid, map_at(0x10_0000, 0x1000))), ENOSPC);
    setup.unmap(ioasid, 0, 0x1000).unwrap();
    setup.map(ioasid, map_at(0x10_0000, 0x1000)).unwrap();
}

#[test]
fn of_several_broken_rules_the_first_in_the_documented_order_is_reported() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, &VTD[..1], 1));
    setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    let wrong_twice = |map| setup.context.check_map(ioasid, map).unwrap_err().errno();
    let top = 0u64.wrapping_sub(0x1000);
    assert_eq!(wrong_twice(Map { vaddr: 1, ..map_at(top, 0x2000) }), EINVAL, "not EOVERFLOW");
    assert_eq!(wrong_twice(map_at(top, 0x2000)), EOVERFLOW, "not EINVAL for the aperture");
    assert_eq!(wrong_twice(map_at(0, 0x1_0000_0000)), EINVAL, "not EEXIST");
    assert_eq!(wrong_twice(map_at(0, 0x1000)), EEXIST, "not ENOSPC");
}

// Unmapping.

#[test]
fn an_unmap_removes_every_mapping_in_its_range_and_says_which() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let at = |iova| map_at(iova, 0x1000);
    let memories =
        [0x1000, 0x3000, 0x4000, 0x9000].map(|iova| setup.map(ioasid, at(iova)).unwrap());
    let outcome = setup.unmap(ioasid, 0x2000, 0x7000).unwrap();
    assert_eq!(outcome.released, memories[1..3]);
    assert_eq!(outcome.unmapped_bytes, 0x2000);
    assert_eq!(setup.table(A), [0x1000, 0x9000]);
    let left = setup.context.mappings(ioasid).unwrap();
    assert!(left.map(|mapping| mapping.memory).eq([memories[0], memories[3]]));
}

#[test]
fn several_mappings_are_unmapped_by_one_call_to_each_table() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    for iova in [0x1000, 0x3000, 0x5000] {
        setup.map(ioasid, map_at(iova, 0x1000)).unwrap();
    }
    let plan = setup.context.plan_unmap(ioasid, Unmap::Range { iova: 0, size: 0x10_0000 });
    assert_eq!(plan.unwrap().changes(), [Change::Unmap { group: A, iova: 0x1000, size: 0x5000 }]);
}

#[test]
fn an_unmap_of_nothing_succeeds_with_0_bytes() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0x1000, 0x1000)).unwrap();
    for (iova, size) in [(0, 0x1000), (0x2000, 0x1000), (1 << 60, 0x1000)] {
        assert_eq!(setup.unmap(ioasid, iova, size).unwrap(), Outcome::default());
    }
}

#[test]
fn an_unmap_that_would_split_a_mapping_is_einval() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0x2000, 0x1000)).unwrap();
    setup.map(ioasid, map_at(0x4000, 0x4000)).unwrap();
    for (iova, size) in
        [(0x4000, 0x3000), (0x5000, 0x3000), (0x5000, 0x1000), (0, 0x6000), (0x6000, 0x8000)]
    {
        let error = refusal(setup.unmap(ioasid, iova, size));
        assert!(matches!(error, Error::Splits { mapped, .. } if mapped == range(0x4000, 0x7fff)));
        assert_eq!(error.errno(), EINVAL);
    }
    assert_eq!(setup.table(A), [0x2000, 0x4000]);
}

#[test]
fn unmap_all_removes_everything_in_one_ioasid_only() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let (device, other) = (setup.bind(B, "b0", vtd()), setup.context.alloc().unwrap());
    setup.attach(device, other).unwrap();
    let memory = setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    setup.map(other, map_at(0, 0x1000)).unwrap();
    let outcome = setup.execute(setup.context.plan_unmap(ioasid, Unmap::All)).unwrap();
    assert_eq!((outcome.released, outcome.unmapped_bytes), (vec![memory], 0x1000));
    assert_eq!((setup.table(A), setup.table(B)), (vec![], vec![0]));
    let outcome = setup.execute(setup.context.plan_unmap(ioasid, Unmap::All)).unwrap();
    assert_eq!(outcome, Outcome::default());
}

#[test]
fn translate_finds_memory_offset_and_rights() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let memory = setup.map(ioasid, Map { prot: Prot::READ, ..map_at(0x4000, 0x4000) }).unwrap();
    let expected = Translation {
        memory,
        offset: 0x1234,
        vaddr: 0x7000_0000_1234,
        prot: Prot::READ,
        last: 0x7fff,
    };
    assert_eq!(setup.context.translate(ioasid, 0x5234), Some(expected));
    assert_eq!(setup.context.translate(ioasid, 0x3fff), None);
    assert_eq!(setup.context.translate(ioasid, 0x8000), None);
}

// Freeing.

#[test]
fn an_ioasid_with_an_attached_device_cannot_be_freed() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let memory = setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    assert_eq!(errno(setup.execute(setup.context.plan_free(ioasid))), EBUSY);
    setup.detach(device, ioasid).unwrap();
    let outcome = setup.execute(setup.context.plan_free(ioasid)).unwrap();
    assert_eq!(outcome.released, [memory]);
    assert_eq!(setup.context.ioasids().count(), 0);
}

// Attaching and detaching.

#[test]
fn a_device_is_attached_once() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let other = setup.context.alloc().unwrap();
    for target in [ioasid, other] {
        let error = refusal(setup.attach(device, target));
        assert!(matches!(error, Error::AlreadyAttached { ioasid: at, .. } if at == ioasid));
        assert_eq!(error.errno(), EBUSY);
    }
}

#[test]
fn devices_of_a_group_cannot_be_attached_to_different_ioasids() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let sibling = setup.bind(A, "a1", vtd());
    let other = setup.context.alloc().unwrap();
    let error = refusal(setup.attach(sibling, other));
    assert!(matches!(error, Error::SiblingElsewhere { .. }));
    assert_eq!(error.errno(), EBUSY);
    setup.detach(device, ioasid).unwrap();
    setup.attach(sibling, other).unwrap();
}

#[test]
fn only_what_is_attached_to_the_ioasid_can_be_detached_from_it() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let other = setup.context.alloc().unwrap();
    let sibling = setup.bind(A, "a1", vtd());
    assert_eq!(errno(setup.detach(device, other)), ENOENT);
    assert_eq!(errno(setup.detach(sibling, ioasid)), ENOENT);
    setup.detach(device, ioasid).unwrap();
    assert_eq!(errno(setup.detach(device, ioasid)), ENOENT);
}

#[test]
fn a_table_is_filled_with_the_first_device_of_its_group_and_cleared_with_the_last() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    let [first, second] = ["b0", "b1"].map(|name| setup.bind(B, name, vtd()));
    let changes = |plan: Result<Plan, Error>| plan.unwrap().changes().to_vec();
    let fill = Change::Fill { group: B, ioasid };
    assert_eq!(changes(setup.context.plan_attach(first, ioasid)), [fill]);
    setup.attach(first, ioasid).unwrap();
    assert_eq!(setup.table(B), [0]);
    assert_eq!(changes(setup.context.plan_attach(second, ioasid)), []);
    setup.attach(second, ioasid).unwrap();
    assert_eq!(changes(setup.context.plan_detach(first, ioasid)), []);
    setup.detach(first, ioasid).unwrap();
    assert_eq!(changes(setup.context.plan_detach(second, ioasid)), [Change::Clear { group: B }]);
    setup.detach(second, ioasid).unwrap();
    assert_eq!((setup.table(A), setup.table(B)), (vec![0], vec![]));
    setup.detach(device, ioasid).unwrap();
}

#[test]
fn a_partly_attached_group_stops_commands_but_not_attach_and_detach() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    let sibling = setup.bind(A, "a1", vtd());
    let partial =
        Error::PartialGroup { ioasid, attached: "\"a0\"".to_owned(), missing: "\"a1\"".to_owned() };
    assert_eq!(partial.errno(), EBUSY);
    assert_eq!(refusal(setup.map(ioasid, map_at(1, 0))), partial);
    assert_eq!(refusal(setup.unmap(ioasid, 0, 0x1000)), partial);
    assert_eq!(setup.context.info(ioasid), Err(partial));
    let other = setup.bind(B, "b0", vtd());
    setup.attach(other, ioasid).unwrap();
    setup.attach(sibling, ioasid).unwrap();
    assert_eq!(setup.context.info(ioasid).unwrap().nr_devices, 3);
    setup.detach(device, ioasid).unwrap();
    assert!(matches!(setup.context.info(ioasid), Err(Error::PartialGroup { .. })));
    setup.execute(setup.context.plan_unbind(device)).unwrap();
    assert_eq!(setup.context.info(ioasid).unwrap().nr_devices, 2);
}

#[test]
fn the_geometry_is_what_all_tables_have_in_common_and_widens_when_one_leaves() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let narrow = geometry(0x20_4000 | 0x1000, &[(0x10_0000, 0xfeef_ffff)], 5);
    let device = setup.bind(B, "b0", narrow);
    setup.attach(device, ioasid).unwrap();
    let info = setup.context.info(ioasid).unwrap();
    assert_eq!(info.pgsizes, PageSizes(0x20_1000));
    assert_eq!(info.permitted.as_slice(), [range(0x10_0000, 0xfedf_ffff)]);
    assert_eq!(info.max_mappings, 5);
    setup.detach(device, ioasid).unwrap();
    let info = setup.context.info(ioasid).unwrap();
    assert_eq!((info.pgsizes, info.permitted), (vtd().pgsizes, vtd().permitted));
    assert_eq!(info.max_mappings, LIMITS.max_mappings);
}

#[test]
fn an_ioasid_is_simulated_if_all_its_tables_are() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let bind = Bind {
        group: B,
        geometry: vtd(),
        simulated: true,
        name: "sim0".to_owned(),
        cookie: Cookie(0),
    };
    let simulated = setup.context.bind(bind).unwrap();
    setup.attach(simulated, ioasid).unwrap();
    assert!(!setup.context.info(ioasid).unwrap().simulated);
    setup.detach(device, ioasid).unwrap();
    assert!(setup.context.info(ioasid).unwrap().simulated);
}

#[test]
fn a_device_without_a_common_page_size_cannot_be_attached() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, VTD, 10));
    let device = setup.bind(B, "b0", geometry(0x1_0000, VTD, 10));
    let error = refusal(setup.attach(device, ioasid));
    assert!(matches!(error, Error::PageSizesDiffer { .. }), "{error}");
    assert_eq!(error.errno(), EINVAL);
}

#[test]
fn a_device_without_a_common_iova_cannot_be_attached() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, &[(0, 0xffff)], 10));
    let device = setup.bind(B, "b0", geometry(0x1000, &[(0x1_0000, 0x1_ffff)], 10));
    let error = refusal(setup.attach(device, ioasid));
    assert!(matches!(error, Error::AperturesDiffer { .. }), "{error}");
    assert_eq!(error.errno(), EINVAL);
}

#[test]
fn a_device_whose_pages_are_too_large_for_what_is_mapped_cannot_be_attached() {
    let large = geometry(0x4000, VTD, 10);
    let bad = [map_at(0x1000, 0x4000), map_at(0x4000, 0x1000)];
    for map in bad.into_iter().chain([Map { vaddr: 0x1000, ..map_at(0x4000, 0x4000) }]) {
        let (mut setup, _, ioasid) = Setup::attached(geometry(0x5000, VTD, 10));
        let device = setup.bind(B, "b0", large.clone());
        setup.map(ioasid, map).unwrap();
        let error = refusal(setup.attach(device, ioasid));
        assert!(matches!(error, Error::MappingMisaligned { page: 0x4000, .. }), "{error}");
        assert_eq!(error.errno(), EINVAL);
    }
}

#[test]
fn a_device_that_cannot_use_what_is_mapped_cannot_be_attached() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(0x1000, &[(0, u64::MAX)], 10));
    setup.map(ioasid, map_at(0x1000, 0x1000)).unwrap();
    setup.map(ioasid, map_at(0xfed0_0000, 0x20_0000)).unwrap();
    let device = setup.bind(B, "b0", vtd());
    let error = refusal(setup.attach(device, ioasid));
    let (mapped, reserved) = (range(0xfed0_0000, 0xfeef_ffff), range(0xfee0_0000, 0xfeef_ffff));
    let named = Error::MappingReserved { ioasid, device: "b0".to_owned(), mapped, reserved };
    assert_eq!(error, named);
    assert_eq!(error.errno(), EADDRINUSE);
    assert_eq!(setup.table(B), []);
}

#[test]
fn a_device_whose_table_is_too_small_cannot_be_attached() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    for page in 0..3 {
        setup.map(ioasid, map_at(page * 0x1000, 0x1000)).unwrap();
    }
    let small = setup.bind(B, "b0", geometry(0x1000, VTD, 2));
    assert_eq!(errno(setup.attach(small, ioasid)), ENOSPC);
    let enough = setup.bind(GroupId(12), "c0", geometry(0x1000, VTD, 3));
    setup.attach(enough, ioasid).unwrap();
}

// Plans and hardware.

#[test]
fn a_plan_is_refused_once_its_ioasid_has_changed() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let plan = setup.context.plan_map(ioasid, map_at(0, 0x1000), MemoryId(99)).unwrap();
    setup.execute(Ok(plan.clone())).unwrap();
    assert_eq!(refusal(setup.execute(Ok(plan))), Error::StalePlan);
    let plan = setup.context.plan_unmap(ioasid, Unmap::All);
    setup.bind(A, "a1", vtd());
    assert_eq!(refusal(setup.execute(plan)), Error::StalePlan);
    assert_eq!(Error::StalePlan.errno(), EBUSY);
}

#[test]
fn a_plan_is_not_disturbed_by_what_happens_to_other_ioasids_and_groups() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let map = setup.context.plan_map(ioasid, map_at(0, 0x1000), MemoryId(99));
    let c0 = setup.bind(GroupId(12), "c0", vtd());
    let attach = setup.context.plan_attach(c0, ioasid);
    let other = setup.context.alloc().unwrap();
    let b0 = setup.bind(B, "b0", vtd());
    setup.attach(b0, other).unwrap();
    setup.map(other, map_at(0, 0x1000)).unwrap();
    setup.unmap(other, 0, 0x1000).unwrap();
    setup.context.register(ME, 0, 0x1000, MemoryId(77)).unwrap();
    setup.context.unregister(ME, 0, 0x1000).unwrap();
    setup.detach(b0, other).unwrap();
    setup.execute(setup.context.plan_free(other)).unwrap();
    setup.execute(setup.context.plan_unbind(b0)).unwrap();
    assert_eq!(setup.context.check(attach.as_ref().unwrap()), Ok(()));
    setup.execute(map).unwrap();
    assert_eq!(refusal(setup.execute(attach)), Error::StalePlan);
}

#[test]
fn a_group_that_is_bound_anew_does_not_make_an_old_plan_valid() {
    let mut setup = Setup::new();
    let ioasid = setup.context.alloc().unwrap();
    let device = setup.bind(A, "a0", vtd());
    let (attach, unbind) =
        (setup.context.plan_attach(device, ioasid), setup.context.plan_unbind(device));
    setup.execute(setup.context.plan_unbind(device)).unwrap();
    setup.bind(A, "a0", vtd());
    assert_eq!(refusal(setup.execute(attach)), Error::StalePlan);
    assert_eq!(refusal(setup.execute(unbind)), Error::StalePlan);
}

#[test]
fn a_broken_table_makes_plans_for_what_it_shows_stale() {
    let (mut setup, _, ioasid) = two_tables();
    let map = setup.context.plan_map(ioasid, map_at(0x5000, 0x1000), MemoryId(99));
    setup.hardware.refuse([1, 2]);
    setup.unmap(ioasid, 0x1000, 0x1000).unwrap_err();
    assert_eq!(refusal(setup.execute(map)), Error::StalePlan);
}

/// A context behind a lock that every question takes.
struct Shared<'a>(&'a std::sync::Mutex<Context>);

impl Contents for Shared<'_> {
    fn entries(&self, ioasid: Ioasid, range: Range) -> Vec<Entry> {
        self.0.try_lock().expect("nobody holds the lock").entries(ioasid, range)
    }

    fn shown(&self, group: GroupId) -> Option<Ioasid> {
        self.0.try_lock().expect("nobody holds the lock").shown(group)
    }
}

#[test]
fn a_shared_context_is_not_locked_while_hardware_works() {
    /// Gives another command whenever it is called.
    struct Busy<'a>(&'a std::sync::Mutex<Context>, Fake);
    impl Hardware for Busy<'_> {
        type Error = Refusal;
        fn map(&mut self, group: GroupId, entry: Entry) -> Result<(), Refusal> {
            self.0.try_lock().expect("nobody holds the lock").alloc().unwrap();
            self.1.map(group, entry)
        }
        fn unmap(&mut self, group: GroupId, iova: u64, size: u64) -> Result<(), Refusal> {
            self.1.unmap(group, iova, size)
        }
        fn clear(&mut self, group: GroupId) -> Result<(), Refusal> {
            self.1.clear(group)
        }
    }
    let (mut setup, device, ioasid) = two_tables();
    setup.detach(device, ioasid).unwrap();
    setup.hardware.refuse([]);
    let context = std::sync::Mutex::new(setup.context);
    let mut hardware = Busy(&context, setup.hardware);
    let attach = context.lock().unwrap().plan_attach(device, ioasid).unwrap();
    assert_eq!(attach.work(&Shared(&context)), 0x2000);
    let carried = attach.carry_out(&Shared(&context), &mut hardware).unwrap();
    context.lock().unwrap().commit(attach, carried).unwrap();
    let setup = Setup { hardware: hardware.1, context: context.into_inner().unwrap(), ..setup };
    assert_eq!(setup.table(B), [0x1000, 0x3000]);
    assert_eq!(setup.context.ioasids().count(), 3);
}

#[test]
fn the_work_of_a_plan_is_what_all_its_tables_are_given() {
    let (mut setup, _, ioasid) = two_tables();
    let work = |setup: &Setup, plan: Result<Plan, Error>| plan.unwrap().work(&setup.context);
    let map = setup.context.plan_map(ioasid, map_at(0x8000, 0x3000), MemoryId(99));
    assert_eq!(work(&setup, map), 2 * 0x3000);
    assert_eq!(work(&setup, setup.context.plan_unmap(ioasid, Unmap::All)), 0);
    let (mut whole, _, all) = Setup::attached(geometry(0x1000, &[(0, u64::MAX)], 10));
    whole.map(all, Map { vaddr: 0, ..map_at(0, 1 << 63) }).unwrap();
    whole.map(all, Map { vaddr: 0, ..map_at(1 << 63, 1 << 63) }).unwrap();
    let device = whole.bind(B, "b0", geometry(0x1000, &[(0, u64::MAX)], 10));
    assert_eq!(work(&whole, whole.context.plan_attach(device, all)), u64::MAX);
    let c0 = setup.bind(GroupId(12), "c0", vtd());
    assert_eq!(work(&setup, setup.context.plan_attach(c0, ioasid)), 0x2000);
}

#[test]
fn a_release_is_never_stale_but_makes_what_is_under_way_stale() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let release = setup.context.plan_release();
    let plan = setup.context.plan_map(ioasid, map_at(0, 0x1000), MemoryId(99)).unwrap();
    let carried = plan.carry_out(&setup.context, &mut setup.hardware).unwrap();
    setup.bind(B, "b0", vtd());
    assert_eq!(setup.execute(Ok(release)).unwrap().retired, [A, B]);
    assert_eq!(setup.context.commit(plan, carried), Err(Error::StalePlan));
}

// Registered memory.

const MEMORY: u64 = 0x7000_0000_0000;

#[test]
fn ranges_are_registered_without_overlap_and_unregistered_exactly() {
    let mut context = Context::new(LIMITS);
    let (half, top) = (0x8000, 0u64.wrapping_sub(0x1000));
    assert_eq!(context.check_register(ME, 0, 0).unwrap_err().errno(), EINVAL);
    assert_eq!(context.check_register(ME, top, 0x2000).unwrap_err().errno(), EOVERFLOW);
    context.register(ME, half, half, MemoryId(1)).unwrap();
    for (vaddr, size) in [(half, half), (0, half + 1), (2 * half - 1, 1), (0, 4 * half)] {
        let error = context.register(ME, vaddr, size, MemoryId(9)).unwrap_err();
        let registered = range(half, 2 * half - 1);
        assert!(
            matches!(error, Error::RegisteredOverlap { registered: at, .. } if at == registered)
        );
        assert_eq!(error.errno(), EEXIST);
    }
    context.register(ME, 2 * half, half, MemoryId(2)).unwrap();
    context.register(Owner(2), half, half, MemoryId(3)).unwrap();
    assert_eq!(context.register(ME, 0, half, MemoryId(9)).unwrap_err().errno(), ENOSPC);
    let all = [(ME, 1, half), (ME, 2, 2 * half), (Owner(2), 3, half)];
    let all = all.map(|(owner, id, at)| (owner, range(at, at + half - 1), MemoryId(id), 0));
    assert!(context.registrations().eq(all));
    for (owner, vaddr, size) in [(ME, half, 2 * half), (ME, half, 1), (Owner(3), half, half)] {
        assert_eq!(context.unregister(owner, vaddr, size).unwrap_err().errno(), ENOENT);
    }
    assert_eq!(context.unregister(ME, half, 0).unwrap_err().errno(), EINVAL);
    assert_eq!(context.unregister(ME, top, 0x2000).unwrap_err().errno(), EOVERFLOW);
    assert_eq!(context.unregister(ME, half, half), Ok(MemoryId(1)));
    context.register(ME, 0, half, MemoryId(9)).unwrap();
}

#[test]
fn once_anything_is_registered_memory_is_mapped_from_registered_ranges_only() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let before = setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    assert_eq!(setup.context.registered(ME, 0, 1), Ok(None));
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(77)).unwrap();
    let range = Range::new(MEMORY, MEMORY + 0x3fff).unwrap();
    let found = Registered { memory: MemoryId(77), range, offset: 0x1000 };
    assert_eq!(setup.context.registered(ME, MEMORY + 0x1000, 0x3000), Ok(Some(found)));
    let inside = Map { vaddr: MEMORY + 0x1000, ..map_at(0x10_0000, 0x3000) };
    for outside in [
        Map { size: 0x4000, ..inside },
        Map { vaddr: MEMORY - 0x1000, ..inside },
        Map { owner: Owner(2), ..inside },
    ] {
        let error = refusal(setup.map(ioasid, outside));
        assert!(matches!(error, Error::OutsideRegistered { .. }), "{error}");
        assert_eq!(error.errno(), EFAULT);
        assert_eq!(setup.context.check_map(ioasid, outside), Ok(()));
        for kind in [MapKind::File, MapKind::Device] {
            setup.map(ioasid, Map { kind, ..outside }).unwrap();
            setup.unmap(ioasid, outside.iova, outside.size).unwrap();
        }
    }
    setup.map(ioasid, inside).unwrap();
    assert_eq!(setup.unmap(ioasid, 0, 0x1000).unwrap().released, [before]);
}

#[test]
fn ranges_that_touch_are_not_one_registered_range() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.context.register(ME, MEMORY, 0x1000, MemoryId(77)).unwrap();
    setup.context.register(ME, MEMORY + 0x1000, 0x1000, MemoryId(78)).unwrap();
    assert_eq!(errno(setup.map(ioasid, map_at(0, 0x2000))), EFAULT);
}

#[test]
fn registered_memory_stays_registered_while_it_is_mapped() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(77)).unwrap();
    setup.context.unregister(ME, MEMORY, 0x4000).unwrap();
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(77)).unwrap();
    for (iova, owner, vaddr) in [(0x10_0000, Owner(2), MEMORY), (0x11_0000, ME, 0)] {
        setup.context.register(owner, vaddr, 0x1000, MemoryId(78)).unwrap();
        setup.map(ioasid, Map { owner, vaddr, ..map_at(iova, 0x1000) }).unwrap();
    }
    setup.map(ioasid, map_at(0x21_0000, 0x1000)).unwrap();
    setup.map(ioasid, Map { vaddr: MEMORY + 0x3000, ..map_at(0x25_0000, 0x1000) }).unwrap();
    let users: Vec<u64> = setup.context.registrations().map(|(.., users)| users).collect();
    assert_eq!(users, [1, 2, 1]);
    let error = setup.context.unregister(ME, MEMORY, 0x4000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the registered memory 0x700000000000-0x700000003fff is in use: IOASID 1 maps memory of it \
         at the IOVAs 0x210000-0x210fff: unmap that first"
    );
    assert_eq!(error.errno(), EBUSY);
    setup.unmap(ioasid, 0x21_0000, 0x1000).unwrap();
    assert_eq!(setup.context.unregister(ME, MEMORY, 0x4000).unwrap_err().errno(), EBUSY);
    setup.detach(device, ioasid).unwrap();
    setup.execute(setup.context.plan_free(ioasid)).unwrap();
    assert_eq!(setup.context.unregister(ME, MEMORY, 0x4000), Ok(MemoryId(77)));
}

#[test]
fn a_map_of_registered_memory_is_stale_once_that_is_unregistered_unless_it_was_held() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(77)).unwrap();
    let plan = setup.context.plan_map(ioasid, map_at(0, 0x1000), MemoryId(99)).unwrap();
    let hold = setup.context.hold(&plan).unwrap();
    let error = setup.context.unregister(ME, MEMORY, 0x4000).unwrap_err();
    assert!(error.to_string().ends_with("memory of it is being mapped: try again"), "{error}");
    assert_eq!(error.errno(), EBUSY);
    setup.context.let_go(hold);
    setup.context.unregister(ME, MEMORY, 0x4000).unwrap();
    assert_eq!(setup.context.check(&plan), Err(Error::StalePlan));
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(78)).unwrap();
    assert_eq!(setup.context.hold(&plan).unwrap_err(), Error::StalePlan);
}

#[test]
fn release_forgets_what_was_registered() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(77)).unwrap();
    let mapped = setup.map(ioasid, map_at(0, 0x1000)).unwrap();
    let outcome = setup.execute(Ok(setup.context.plan_release())).unwrap();
    assert_eq!((outcome.released, outcome.uncharged), (vec![mapped, MemoryId(77)], vec![]));
    assert_eq!(setup.context.registrations().count(), 0);
}

// What is charged.

impl Setup {
    /// Maps; says what that was charged.
    fn charge(&mut self, ioasid: Ioasid, map: Map) -> u64 {
        let plan = self.context.plan_map(ioasid, map, MemoryId(self.next_memory)).unwrap();
        let charge = plan.charge();
        self.next_memory += 1;
        self.execute(Ok(plan)).unwrap();
        charge
    }

    fn locked(&self, ioasid: Ioasid) -> u64 {
        self.context.info(ioasid).unwrap().locked_bytes
    }
}

#[test]
fn memory_is_charged_once_for_an_ioasid_however_often_it_is_mapped_and_by_however_many_devices() {
    let (mut setup, _, ioasid) = two_tables();
    assert_eq!(setup.locked(ioasid), 0x1000);
    assert_eq!(setup.charge(ioasid, map_at(0x10_0000, 0x3000)), 0x2000);
    let half = Map { vaddr: MEMORY + 0x2000, ..map_at(0x20_0000, 0x2000) };
    assert_eq!(setup.charge(ioasid, half), 0x1000);
    assert_eq!(setup.locked(ioasid), 0x4000);
    assert_eq!(setup.unmap(ioasid, 0x10_0000, 0x3000).unwrap().uncharged, [(ME, 0x1000)]);
    assert_eq!(setup.unmap(ioasid, 0x1000, 0x1000).unwrap().uncharged, []);
    let outcome = setup.execute(setup.context.plan_unmap(ioasid, Unmap::All)).unwrap();
    assert_eq!((outcome.uncharged, setup.locked(ioasid)), (vec![(ME, 0x3000)], 0));
}

#[test]
fn each_ioasid_and_each_owner_is_charged_by_itself() {
    let (mut setup, device, ioasid) = Setup::attached(vtd());
    let (b0, other) = (setup.bind(B, "b0", vtd()), setup.context.alloc().unwrap());
    setup.attach(b0, other).unwrap();
    let (you, file) = (Owner(2), Owner(3));
    assert_eq!(setup.charge(ioasid, map_at(0, 0x1000)), 0x1000);
    assert_eq!(setup.charge(other, map_at(0, 0x1000)), 0x1000);
    assert_eq!(setup.charge(ioasid, Map { owner: you, ..map_at(0x1000, 0x2000) }), 0x2000);
    let map = Map { owner: file, kind: MapKind::File, ..map_at(0x4000, 0x1000) };
    assert_eq!(setup.charge(ioasid, map), 0x1000);
    assert_eq!(setup.charge(ioasid, Map { iova: 0x6000, ..map }), 0);
    assert_eq!(setup.locked(ioasid), 0x4000);
    setup.detach(device, ioasid).unwrap();
    assert_eq!(setup.locked(ioasid), 0x4000, "it stays pinned");
    let outcome = setup.execute(setup.context.plan_free(ioasid)).unwrap();
    assert_eq!(outcome.uncharged, [(ME, 0x1000), (you, 0x2000), (file, 0x1000)]);
    assert_eq!(setup.execute(Ok(setup.context.plan_release())).unwrap().uncharged, [(ME, 0x1000)]);
}

#[test]
fn registered_memory_and_registers_of_devices_charge_no_ioasid() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let own = setup.charge(ioasid, map_at(0, 0x1000));
    setup.context.register(ME, MEMORY, 0x4000, MemoryId(77)).unwrap();
    let registers = Map { kind: MapKind::Device, ..map_at(0x8000, 0x1000) };
    assert_eq!((own, setup.charge(ioasid, map_at(0x1000, 0x4000))), (0x1000, 0));
    assert_eq!((setup.charge(ioasid, registers), setup.locked(ioasid)), (0, 0x1000));
    let kinds = setup.context.mappings(ioasid).unwrap().map(|m| (m.owner, m.kind));
    let kinds: Vec<(Owner, MapKind)> = kinds.collect();
    assert_eq!(kinds, [(ME, MapKind::Memory), (ME, MapKind::Memory), (ME, MapKind::Device)]);
    assert_eq!(setup.unmap(ioasid, 0x1000, 0x8000).unwrap().uncharged, []);
    assert_eq!(setup.unmap(ioasid, 0, 0x1000).unwrap().uncharged, [(ME, 0x1000)]);
}

/// Two tables that show one address space with two mappings.
fn two_tables() -> (Setup, DeviceId, Ioasid) {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let device = setup.bind(B, "b0", vtd());
    setup.attach(device, ioasid).unwrap();
    setup.map(ioasid, map_at(0x1000, 0x1000)).unwrap();
    setup.map(ioasid, map_at(0x3000, 0x1000)).unwrap();
    (setup, device, ioasid)
}

#[test]
fn what_one_table_refuses_is_undone_in_the_others() {
    type Command = fn(&Context, Ioasid) -> Result<Plan, Error>;
    let commands: [Command; 3] = [
        |context, ioasid| context.plan_map(ioasid, map_at(0x5000, 0x1000), MemoryId(99)),
        |context, ioasid| context.plan_unmap(ioasid, Unmap::Range { iova: 0, size: 0x8000 }),
        |context, ioasid| context.plan_unmap(ioasid, Unmap::All),
    ];
    for command in commands {
        let (mut setup, _, ioasid) = two_tables();
        let before = setup.context.clone();
        setup.hardware.refuse([1]);
        let result = setup.execute(command(&setup.context, ioasid));
        assert!(
            matches!(result, Err(ExecuteError::Refused { error: Refusal(1), change }) if change.group() == B)
        );
        assert_eq!(setup.context, before);
        assert_eq!((setup.table(A), setup.table(B)), (vec![0x1000, 0x3000], vec![0x1000, 0x3000]));
        setup.execute(command(&setup.context, ioasid)).unwrap();
    }
}

#[test]
fn changes_are_undone_in_reverse_order() {
    #[derive(Default)]
    struct Log(Vec<(GroupId, bool)>);
    impl Hardware for Log {
        type Error = ();
        fn map(&mut self, group: GroupId, _: Entry) -> Result<(), ()> {
            self.0.push((group, true));
            if self.0.len() == 3 { Err(()) } else { Ok(()) }
        }
        fn unmap(&mut self, group: GroupId, _: u64, _: u64) -> Result<(), ()> {
            self.0.push((group, false));
            Ok(())
        }
        fn clear(&mut self, _: GroupId) -> Result<(), ()> {
            unreachable!()
        }
    }
    let (mut setup, _, ioasid) = two_tables();
    let c = GroupId(12);
    let device = setup.bind(c, "c0", vtd());
    setup.attach(device, ioasid).unwrap();
    let plan = setup.context.plan_map(ioasid, map_at(0, 0x1000), MemoryId(99)).unwrap();
    let mut log = Log::default();
    setup.context.execute(plan, &mut log).unwrap_err();
    assert_eq!(log.0, [(A, true), (B, true), (c, true), (B, false), (A, false)]);
}

#[test]
fn a_table_that_cannot_be_filled_is_left_empty_and_unattached() {
    let (mut setup, device, ioasid) = two_tables();
    setup.detach(device, ioasid).unwrap();
    let before = setup.context.clone();
    setup.hardware.refuse([1]);
    let refused = setup.attach(device, ioasid);
    assert!(matches!(refused, Err(ExecuteError::Refused { error: Refusal(1), .. })));
    assert_eq!((setup.table(B), setup.context), (vec![], before));
}

#[test]
fn a_table_that_cannot_be_cleared_stays_attached() {
    let (mut setup, device, ioasid) = two_tables();
    let before = setup.context.clone();
    setup.hardware.refuse([0]);
    let refused = setup.detach(device, ioasid);
    assert!(matches!(refused, Err(ExecuteError::Refused { .. })));
    assert_eq!((setup.table(B), setup.context), (vec![0x1000, 0x3000], before));
}

#[test]
fn a_table_that_cannot_be_restored_stops_its_ioasid_until_it_is_detached() {
    let (mut setup, device, ioasid) = two_tables();
    setup.hardware.refuse([1, 2]);
    let broken = setup.unmap(ioasid, 0x1000, 0x1000).unwrap_err();
    assert!(
        matches!(broken, ExecuteError::Broken { ref broken, .. } if broken == &[(A, Refusal(2))])
    );
    assert_eq!((setup.table(A), setup.table(B)), (vec![0x3000], vec![0x1000, 0x3000]));
    setup.hardware.refuse([]);
    let c0 = setup.bind(GroupId(12), "c0", vtd());
    assert_eq!(errno(setup.map(ioasid, map_at(0, 0x1000))), EIO);
    assert_eq!(errno(setup.unmap(ioasid, 0x3000, 0x1000)), EIO);
    assert_eq!(errno(setup.attach(c0, ioasid)), EIO);
    assert_eq!(setup.context.info(ioasid).unwrap_err().errno(), EIO);
    assert_eq!(setup.context.tables().filter(|table| table.broken).count(), 1);
    let first = setup.context.devices().next().unwrap().id;
    setup.detach(first, ioasid).unwrap();
    assert_eq!(setup.context.info(ioasid).unwrap().nr_mappings, 2);
    setup.attach(first, ioasid).unwrap();
    assert_eq!(setup.table(A), [0x1000, 0x3000]);
    setup.detach(device, ioasid).unwrap();
}

#[test]
fn a_table_that_could_be_neither_filled_nor_emptied_is_cleared_by_the_next_attach() {
    let (mut setup, device, ioasid) = two_tables();
    setup.detach(device, ioasid).unwrap();
    setup.hardware.refuse([1, 2]);
    assert!(matches!(setup.attach(device, ioasid), Err(ExecuteError::Broken { .. })));
    assert_eq!(setup.table(B), [0x1000]);
    setup.hardware.refuse([]);
    setup.map(ioasid, map_at(0x5000, 0x1000)).unwrap();
    setup.unmap(ioasid, 0x1000, 0x1000).unwrap();
    setup.attach(device, ioasid).unwrap();
    assert_eq!(setup.table(B), [0x3000, 0x5000]);
    assert_eq!(setup.context.tables().filter(|table| table.broken).count(), 0);
}

#[test]
fn release_gives_everything_back_and_stops_at_no_refusal() {
    let (mut setup, _, _) = two_tables();
    let unattached = setup.context.alloc().unwrap();
    setup.bind(GroupId(12), "c0", vtd());
    setup.hardware.refuse([0]);
    let plan = setup.context.plan_release();
    let outcome = setup.execute(Ok(plan)).unwrap();
    assert_eq!(outcome.failures, [(A, Refusal(0))]);
    assert_eq!(outcome.released, [MemoryId(1), MemoryId(2)]);
    assert_eq!(outcome.retired, [A, B, GroupId(12)]);
    assert_eq!(setup.table(B), []);
    assert_eq!(setup.context.info(unattached).unwrap_err().errno(), ENOENT);
    assert_eq!(setup.context.devices().count() + setup.context.tables().count(), 0);
}

// Sentences, ranges, page sizes.

#[test]
fn errors_are_sentences_that_name_rule_range_and_remedy() {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    setup.map(ioasid, map_at(0x10_0000, 0x1000)).unwrap();
    assert_eq!(
        refusal(setup.map(ioasid, map_at(0x10_0000, 0x2000))).to_string(),
        "the IOVAs 0x100000-0x101fff overlap 0x100000-0x100fff, which IOASID 1 maps already: unmap \
         that first"
    );
    assert_eq!(
        refusal(setup.map(ioasid, map_at(0x10_0800, 0x1000))).to_string(),
        "the IOVA 0x100800 is not a multiple of 0x1000, the smallest page size of IOASID 1"
    );
    let device = setup.bind(B, "0000:00:03.0", geometry(0x2000, VTD, 10));
    assert_eq!(
        refusal(setup.attach(device, ioasid)).to_string(),
        "the page sizes of device \"0000:00:03.0\" (8 KiB) and of the devices attached to IOASID 1 \
         (4 KiB, 2 MiB, 1 GiB) have none in common: attach it to an IOASID of its own"
    );
    setup.bind(A, "a1", vtd());
    assert_eq!(
        setup.context.info(ioasid).unwrap_err().to_string(),
        "IOASID 1 takes no command while a device group is partly attached to it: attach \"a1\" \
         too, which shares an I/O page table with \"a0\", or unbind it"
    );
}

#[test]
fn a_range_is_never_empty_and_never_wraps() {
    assert_eq!(Range::new(5, 4), None);
    assert_eq!(Range::from_size(5, 0), None);
    assert_eq!(Range::from_size(u64::MAX, 2), None);
    assert_eq!(Range::from_size(u64::MAX, 1), Range::new(u64::MAX, u64::MAX));
    assert_eq!(Range::ALL.bytes(), 1 << 64);
}

#[test]
fn ranges_that_overlap_or_touch_become_one_in_a_set() {
    let set =
        |ranges: &[(u64, u64)]| -> RangeSet { ranges.iter().map(|r| range(r.0, r.1)).collect() };
    let joined = set(&[(20, 29), (0, 4), (5, 9), (22, 35), (31, 33), (37, u64::MAX)]);
    assert_eq!(joined.as_slice(), [range(0, 9), range(20, 35), range(37, u64::MAX)]);
    assert_eq!(set(&[(3, u64::MAX), (9, u64::MAX)]).as_slice(), [range(3, u64::MAX)]);
    let other = set(&[(5, 21), (30, 36), (50, 60)]);
    let both = [range(5, 9), range(20, 21), range(30, 35), range(50, 60)];
    assert_eq!(joined.intersection(&other).as_slice(), both);
}

#[test]
fn a_gap_is_found_to_the_byte_and_reported_in_full() {
    let set: RangeSet = [range(10, 19), range(30, 39)].into_iter().collect();
    assert_eq!(set.gap_in(range(10, 19)), None);
    assert_eq!(set.gap_in(range(19, 19)), None);
    assert_eq!(set.gap_in(range(39, 39)), None);
    assert_eq!(set.gap_in(range(9, 10)), Some(range(0, 9)));
    assert_eq!(set.gap_in(range(19, 20)), Some(range(20, 29)));
    assert_eq!(set.gap_in(range(20, 20)), Some(range(20, 29)));
    assert_eq!(set.gap_in(range(10, 39)), Some(range(20, 29)));
    assert_eq!(set.gap_in(range(29, 30)), Some(range(20, 29)));
    assert_eq!(set.gap_in(range(39, 40)), Some(range(40, u64::MAX)));
    assert_eq!(set.gap_in(range(0, u64::MAX)), Some(range(0, 9)));
    assert_eq!(RangeSet::default().gap_in(range(5, 6)), Some(Range::ALL));
    assert_eq!(set.hull(), Some(range(10, 39)));
}

#[test]
fn mappings_are_compared_to_the_byte() {
    let (mut setup, _, ioasid) = Setup::attached(geometry(1, &[(0, u64::MAX)], 10));
    setup.map(ioasid, map_at(5, 5)).unwrap();
    assert_eq!(errno(setup.map(ioasid, map_at(9, 1))), EEXIST);
    assert_eq!(errno(setup.map(ioasid, map_at(4, 2))), EEXIST);
    setup.map(ioasid, map_at(10, 1)).unwrap();
    setup.map(ioasid, map_at(4, 1)).unwrap();
    assert_eq!(errno(setup.unmap(ioasid, 4, 2)), EINVAL);
    assert_eq!(setup.unmap(ioasid, 0, 100).unwrap().unmapped_bytes, 7);
}

#[test]
fn page_sizes_are_told_as_people_write_them() {
    assert_eq!(PageSizes(0x4020_1000).to_string(), "4 KiB, 2 MiB, 1 GiB");
    assert_eq!(PageSizes(1 << 63 | 1 << 9).to_string(), "512 B, 8 EiB");
    assert_eq!(PageSizes(0).to_string(), "none");
    assert_eq!((PageSizes(0x6000).smallest(), PageSizes(0).smallest()), (Some(0x2000), None));
}

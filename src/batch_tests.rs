//! Several mappings of registered memory made by one plan: the same as one after another.

use ioasid_uapi::errno::*;

use crate::fake::Fake;
use crate::setup::*;
use crate::*;

const FIRST: u64 = 0x7000_0000_0000;
const SECOND: u64 = 0x7000_0010_0000;

/// Two devices, of which the second is attached to a child too that shows all but the first page, and
/// two registered ranges.
fn setup() -> (Setup, Ioasid) {
    let (mut setup, _, ioasid) = Setup::attached(vtd());
    let device = setup.bind(B, "b0", vtd());
    let child = setup.context.create_nesting(ioasid).unwrap();
    setup.attach(device, ioasid).unwrap();
    setup.attach(device, child).unwrap();
    let below = Map { vaddr: 0x1000, ..map_at(0x20_0000, 0x10_0000) };
    setup.map(child, below).unwrap();
    setup.context.register(ME, FIRST, 0x4000, MemoryId(50)).unwrap();
    setup.context.register(ME, SECOND, 0x4000, MemoryId(51)).unwrap();
    (setup, ioasid)
}

/// Not in order, from one registered range and the other.
fn maps() -> Vec<(Map, MemoryId)> {
    let at = [(0x3000, FIRST), (0, FIRST + 0x2000), (0x8000, SECOND), (0x1000, FIRST + 0x1000)];
    let map = |(iova, vaddr)| Map { vaddr, ..map_at(iova, 0x1000) };
    at.into_iter().map(map).zip((60..).map(MemoryId)).collect()
}

fn users(setup: &Setup) -> Vec<u64> {
    setup.context.registrations().map(|(.., users)| users).collect()
}

fn together(setup: &mut Setup, ioasid: Ioasid, maps: &[(Map, MemoryId)]) -> Result<(), Failed> {
    setup.execute(setup.context.plan_map_registered(ioasid, maps)).map(drop)
}

#[test]
fn together_is_as_one_after_another() {
    let (mut batch, ioasid) = setup();
    together(&mut batch, ioasid, &maps()).unwrap();
    let (mut single, same) = setup();
    for (map, memory) in maps() {
        single.execute(single.context.plan_map(same, map, memory)).unwrap();
    }
    for group in [A, B] {
        assert_eq!(batch.hardware.entries(group), single.hardware.entries(group));
    }
    assert_eq!(batch.table(A), [0, 0x1000, 0x3000, 0x8000]);
    assert_eq!(batch.table(B), [0x20_0000, 0x20_2000, 0x20_7000]);
    assert_eq!(users(&batch), [3, 1]);
    assert_eq!(users(&single), [3, 1]);
    batch.unmap(ioasid, 0, 0x10_0000).unwrap();
    assert_eq!(users(&batch), [0, 0]);
}

#[test]
fn a_hold_counts_every_mapping_of_the_plan_until_it_is_let_go() {
    let (mut setup, ioasid) = setup();
    let plan = setup.context.plan_map_registered(ioasid, &maps()).unwrap();
    let hold = setup.context.hold(&plan).unwrap();
    assert_eq!(users(&setup), [3, 1]);
    let used = setup.context.unregister(ME, SECOND, 0x4000).unwrap_err();
    assert_eq!(used.errno(), EBUSY);
    setup.context.let_go(hold);
    setup.context.unregister(ME, SECOND, 0x4000).unwrap();
    assert_eq!(setup.context.check(&plan), Err(Error::StalePlan));
}

#[test]
fn what_one_of_them_may_not_none_is() {
    let (mut setup, ioasid) = setup();
    let before = setup.context.clone();
    let good = maps();
    let bad = |change: fn(&mut Map)| {
        let mut maps = good.clone();
        change(&mut maps[2].0);
        maps
    };
    let many = |_| Map { iova: 0x100_0000, ..good[0].0 };
    let row = (0..9).map(many).enumerate().map(|(n, map)| {
        (Map { iova: map.iova + 0x1000 * n as u64, ..map }, MemoryId(100 + n as u64))
    });
    for (maps, errno) in [
        (bad(|map| map.iova = 0x3000), EEXIST),
        (bad(|map| (map.iova, map.size) = (0x2000, 0x2000)), EEXIST),
        (bad(|map| map.vaddr = SECOND + 0x4000), EFAULT),
        (bad(|map| map.size = 0x8000), EFAULT),
        (bad(|map| map.iova = 0xfee0_0000), EADDRINUSE),
        (bad(|map| map.iova = 1), EINVAL),
        (row.collect(), ENOSPC),
    ] {
        let result = together(&mut setup, ioasid, &maps);
        assert_eq!(refusal(result).errno(), errno);
        assert_eq!(setup.context, before);
    }
}

#[test]
fn nothing_is_left_when_any_table_refuses_any_of_them() {
    let (start, ioasid) = setup();
    let (before, calls) = (start.hardware.entries(A), maps().len() + 3);
    for refused in 0..calls {
        let (mut setup, _) = setup();
        setup.hardware.refuse([refused]);
        together(&mut setup, ioasid, &maps()).unwrap_err();
        assert!(Fake::has_refused(&setup.hardware), "call {refused} is made");
        assert_eq!(setup.hardware.entries(A), before);
        assert_eq!(setup.hardware.entries(B), start.hardware.entries(B));
        assert_eq!(users(&setup), [0, 0]);
    }
}

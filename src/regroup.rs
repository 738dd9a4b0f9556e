//! Groups that come to share one hardware table. Here they are one group from then on, and what its
//! table is able to hold changes with who shares it.

use crate::space::Space;
use crate::table::names;
use crate::{Contents as _, Context, Error, Geometry, GroupId, Ioasid, Range};

impl Geometry {
    /// What devices can use alike of which some are confined to this, and some to `other`.
    #[must_use]
    pub fn shared(&self, other: &Self) -> Self {
        self.intersection(other)
    }
}

impl Context {
    /// Says that the table of a group is able to hold something else from now on, as another group
    /// shares it or does so no more. What it holds has stayed in it. `device` is whose group that
    /// is, for the sentence; without a bound device in `group` there is nothing to say.
    ///
    /// # Errors
    /// Those of `IOASID_ATTACH_DEVICE` for a device that does not suit what is attached to, or
    /// mapped by, the IOASIDs of the group; [`Error::UnusableGeometry`]. Nothing has changed then.
    pub fn regroup(
        &mut self,
        group: GroupId,
        geometry: Geometry,
        device: &str,
    ) -> Result<(), Error> {
        let device = || device.to_owned();
        if !geometry.is_usable() {
            return Err(Error::UnusableGeometry { device: device() });
        }
        let Some(table) = self.tables.get(&group) else { return Ok(()) };
        if table.geometry == geometry {
            return Ok(());
        }
        let uses =
            |(&ioasid, space): (&Ioasid, &Space)| space.tables.contains(&group).then_some(ioasid);
        let used: Vec<Ioasid> = self.spaces.iter().filter_map(uses).collect();
        for &ioasid in &used {
            self.check_suits(ioasid, group, &geometry, device)?;
        }
        let max = geometry.max_mappings;
        if let Some(ioasid) = self.shown(group)
            && self.table_contents(group).count() > max as usize
        {
            return Err(Error::TableTooSmall { ioasid, device: device(), max });
        }
        if let Some(table) = self.tables.get_mut(&group) {
            table.geometry = geometry;
        }
        for ioasid in used {
            self.reshape(ioasid);
        }
        self.touch_table(group);
        Ok(())
    }

    /// With `geometry` for the table of `group`, something must be left that all tables of an
    /// address space can hold, and what it maps must be aligned to the smallest page of that, and
    /// permitted: the rules of an attach.
    fn check_suits(
        &self,
        ioasid: Ioasid,
        group: GroupId,
        geometry: &Geometry,
        device: impl Fn() -> String,
    ) -> Result<(), Error> {
        let space = self.space(ioasid)?;
        let others = space.tables.iter().filter(|&&other| other != group);
        let others = others.filter_map(|other| self.tables.get(other));
        let others = others.map(|table| table.geometry.clone()).reduce(|a, b| a.intersection(&b));
        let common = others.as_ref().map_or_else(|| geometry.clone(), |o| o.intersection(geometry));
        let Some(page) = common.pgsizes.smallest() else {
            let (own, others) = (geometry.pgsizes, others.map_or(geometry.pgsizes, |o| o.pgsizes));
            return Err(Error::PageSizesDiffer { ioasid, device: device(), own, others });
        };
        if common.permitted.is_empty() {
            return Err(Error::AperturesDiffer { ioasid, device: device() });
        }
        let is_aligned = |value: u64| value.is_multiple_of(page);
        for (mapped, mapping) in space.iter(Range::ALL) {
            let end = mapped.last().wrapping_add(1);
            if !(is_aligned(mapped.start()) && is_aligned(end) && is_aligned(mapping.vaddr)) {
                return Err(Error::MappingMisaligned { ioasid, device: device(), mapped, page });
            }
            if let Some(reserved) = geometry.permitted.gap_in(mapped) {
                return Err(Error::MappingReserved { ioasid, device: device(), mapped, reserved });
            }
        }
        Ok(())
    }

    /// Has the devices of `from` share the table of `into`; the table of `from` is there no more.
    /// Either it shows nothing, or both show the same and hold it.
    ///
    /// # Errors
    /// [`Error::SiblingElsewhere`] if `from` shows something else; [`Error::GroupDiffers`] if only
    /// one of the two is simulated. Nothing has changed then.
    pub fn merge(&mut self, from: GroupId, into: GroupId) -> Result<(), Error> {
        let (Some(source), Some(target)) = (self.tables.get(&from), self.tables.get(&into)) else {
            return Ok(());
        };
        if from == into {
            return Ok(());
        }
        let device = || source.devices.first().map_or(String::new(), |first| first.name.clone());
        if let Some(ioasid) = self.shown(from).filter(|_| source.path != target.path) {
            let siblings = names(source.devices.iter());
            return Err(Error::SiblingElsewhere { device: device(), siblings, ioasid });
        }
        if source.simulated != target.simulated {
            return Err(Error::GroupDiffers { device: device() });
        }
        let moved = self.tables.remove(&from).map_or(vec![], |source| source.devices);
        for device in &moved {
            self.devices.insert(device.id, into);
        }
        if let Some(target) = self.tables.get_mut(&into) {
            target.devices.extend(moved);
        }
        let uses = |(&ioasid, space): (&Ioasid, &mut Space)| {
            let before = space.tables.len();
            space.tables.retain(|&group| group != from);
            (space.tables.len() < before).then_some(ioasid)
        };
        let used: Vec<Ioasid> = self.spaces.iter_mut().filter_map(uses).collect();
        for ioasid in used {
            self.reshape(ioasid);
        }
        self.touch_table(into);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use crate::{
        Bind, Cookie, DeviceId, ExecuteError, Limits, Map, MapKind, MemoryId, Owner, PageSizes,
        Prot,
    };

    const A: GroupId = GroupId(1);
    const B: GroupId = GroupId(2);

    fn geometry(pgsizes: u64, permitted: &[(u64, u64)], max_mappings: u32) -> Geometry {
        let ranges = permitted.iter().filter_map(|&(start, last)| Range::new(start, last));
        Geometry { pgsizes: PageSizes(pgsizes), permitted: ranges.collect(), max_mappings }
    }

    fn wide() -> Geometry {
        geometry(0x20_1000, &[(0, 0xffff_ffff)], 8)
    }

    /// A context whose group A has device "a" with a wide table.
    fn context() -> (Context, DeviceId) {
        let limits = Limits { max_ioasids: 4, max_devices: 4, max_mappings: 8, max_registered: 4 };
        let mut context = Context::new(limits);
        let device = bind(&mut context, A, "a", wide()).expect("bound");
        (context, device)
    }

    fn bind(
        context: &mut Context,
        group: GroupId,
        name: &str,
        geometry: Geometry,
    ) -> Result<DeviceId, Error> {
        let (name, cookie) = (name.to_owned(), Cookie(0));
        context.bind(Bind { group, geometry, simulated: false, name, cookie })
    }

    /// The same, with a page at `iova` mapped in the IOASID that "a" is attached to.
    fn mapped(iova: u64) -> (Context, DeviceId, Ioasid) {
        let (mut context, device) = context();
        let ioasid = context.alloc().expect("a number");
        let (mut hardware, prot) = (Fake::default(), Prot::READ);
        let plan = context.plan_attach(device, ioasid).expect("legal");
        context.execute(plan, &mut hardware).expect("done");
        let (owner, kind, vaddr, size) = (Owner(1), MapKind::Memory, 0x1000, 0x1000);
        let map = Map { iova, size, vaddr, prot, owner, kind };
        let plan = context.plan_map(ioasid, map, MemoryId(1)).expect("legal");
        context.execute(plan, &mut hardware).expect("done");
        (context, device, ioasid)
    }

    #[test]
    fn a_table_that_holds_nothing_takes_any_usable_geometry() {
        let (mut context, _) = context();
        let narrow = geometry(0x20_0000, &[(0x1000_0000, 0x1fff_ffff)], 2);
        assert_eq!(context.regroup(A, narrow.clone(), "b"), Ok(()));
        assert_eq!(bind(&mut context, A, "b", narrow), Ok(DeviceId(2)));
        let unusable = Err(Error::UnusableGeometry { device: "b".to_owned() });
        assert_eq!(context.regroup(A, geometry(0x1000, &[], 1), "b"), unusable);
    }

    #[test]
    fn what_is_mapped_must_fit_the_new_geometry_and_then_stays() {
        let (mut context, _, ioasid) = mapped(0x8000_0000);
        let without = geometry(0x1000, &[(0, 0x7fff_ffff)], 8);
        let before = context.clone();
        assert!(matches!(context.regroup(A, without, "b"), Err(Error::MappingReserved { .. })));
        let coarse = geometry(0x20_0000, &[(0, 0xffff_ffff)], 8);
        assert!(matches!(context.regroup(A, coarse, "b"), Err(Error::MappingMisaligned { .. })));
        let tiny = geometry(0x1000, &[(0, 0xffff_ffff)], 0);
        assert!(matches!(context.regroup(A, tiny, "b"), Err(Error::TableTooSmall { .. })));
        assert_eq!(context, before, "a refusal changed something");
        let narrow = geometry(0x1000, &[(0x8000_0000, 0x8fff_ffff)], 8);
        assert_eq!(context.regroup(A, narrow.clone(), "b"), Ok(()));
        assert_eq!(context.table_contents(A).count(), 1);
        let info = context.info(ioasid).expect("it has properties");
        assert_eq!((info.pgsizes, info.permitted), (narrow.pgsizes, narrow.permitted));
    }

    #[test]
    fn something_must_be_left_for_all_tables_of_an_ioasid() {
        let (mut context, _, ioasid) = mapped(0);
        let low = geometry(0x1000, &[(0, 0xffff)], 8);
        assert_eq!(context.regroup(A, low.clone(), "a"), Ok(()));
        let other = bind(&mut context, B, "b", low).expect("bound");
        let plan = context.plan_attach(other, ioasid).expect("legal");
        context.execute(plan, &mut Fake::default()).expect("done");
        let elsewhere = geometry(0x1000, &[(0x10_0000, 0x1f_ffff)], 8);
        let refused = context.regroup(B, elsewhere, "c");
        assert!(matches!(refused, Err(Error::AperturesDiffer { .. })), "{refused:?}");
        let huge = geometry(0x4000_0000, &[(0, 0xffff_ffff)], 8);
        let refused = context.regroup(B, huge, "c");
        assert!(matches!(refused, Err(Error::PageSizesDiffer { .. })), "{refused:?}");
    }

    #[test]
    fn a_plan_from_before_is_stale() {
        let (mut context, _, ioasid) = mapped(0);
        let plan = context.plan_unmap(ioasid, crate::Unmap::All).expect("legal");
        let narrow = geometry(0x1000, &[(0, 0xffff)], 8);
        assert_eq!(context.regroup(A, narrow, "b"), Ok(()));
        let executed = context.execute(plan, &mut Fake::default());
        assert_eq!(executed, Err(ExecuteError::Plan(Error::StalePlan)));
    }

    #[test]
    fn merged_groups_are_one_which_is_partly_attached_until_all_devices_are() {
        let (mut context, a, ioasid) = mapped(0);
        let b = bind(&mut context, B, "b", wide()).expect("bound");
        assert_eq!(context.merge(B, A), Ok(()));
        assert_eq!(context.device_info(b).expect("bound").group, A);
        let partial = context.info(ioasid);
        assert!(matches!(partial, Err(Error::PartialGroup { .. })), "{partial:?}");
        let plan = context.plan_attach(b, ioasid).expect("legal");
        assert_eq!(plan.changes(), [], "the table holds everything already");
        context.execute(plan, &mut Fake::default()).expect("done");
        assert_eq!(context.info(ioasid).map(|info| info.nr_devices), Ok(2));
        assert_eq!(context.tables().count(), 1);
        let plan = context.plan_detach(a, ioasid).expect("legal");
        assert_eq!(plan.changes(), [], "the other still uses it");
    }

    #[test]
    fn groups_that_show_the_same_merge_and_go_on_showing_it() {
        let (mut context, a, ioasid) = mapped(0);
        let b = bind(&mut context, B, "b", wide()).expect("bound");
        let mut hardware = Fake::default();
        let plan = context.plan_attach(b, ioasid).expect("legal");
        context.execute(plan, &mut hardware).expect("done");
        assert_eq!(context.merge(B, A), Ok(()));
        assert_eq!(context.info(ioasid).map(|info| info.nr_devices), Ok(2));
        let plan = context.plan_unmap(ioasid, crate::Unmap::All).expect("legal");
        assert_eq!(plan.changes(), [crate::Change::Clear { group: A }]);
        for (device, changes) in [(a, 0), (b, 1)] {
            let plan = context.plan_detach(device, ioasid).expect("legal");
            assert_eq!(plan.changes().len(), changes);
            context.execute(plan, &mut hardware).expect("done");
        }
    }

    #[test]
    fn a_group_that_is_attached_elsewhere_merges_into_no_other() {
        let (mut context, ..) = mapped(0);
        bind(&mut context, B, "b", wide()).expect("bound");
        let before = context.clone();
        assert!(matches!(context.merge(A, B), Err(Error::SiblingElsewhere { .. })));
        assert_eq!(context, before);
    }
}

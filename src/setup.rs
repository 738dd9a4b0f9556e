//! What tests of single rules begin with: a context on hardware for tests, and short ways to give it
//! commands.

use crate::fake::{Fake, Refusal};
use crate::*;

pub(crate) const LIMITS: Limits =
    Limits { max_ioasids: 4, max_devices: 8, max_mappings: 8, max_registered: 3 };
pub(crate) const ME: Owner = Owner(1);
pub(crate) const A: GroupId = GroupId(10);
pub(crate) const B: GroupId = GroupId(11);
/// The IOVAs under VT-d, with the hole for interrupts.
pub(crate) const VTD: &[(u64, u64)] = &[(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];

pub(crate) fn geometry(pgsizes: u64, permitted: &[(u64, u64)], max_mappings: u32) -> Geometry {
    let ranges = permitted.iter().map(|&(start, last)| range(start, last));
    Geometry { pgsizes: PageSizes(pgsizes), permitted: ranges.collect(), max_mappings }
}

pub(crate) fn vtd() -> Geometry {
    geometry(0x4020_1000, VTD, 65535)
}

pub(crate) fn range(start: u64, last: u64) -> Range {
    Range::new(start, last).unwrap()
}

pub(crate) fn map_at(iova: u64, size: u64) -> Map {
    let (owner, kind) = (ME, MapKind::Memory);
    Map { iova, size, vaddr: 0x7000_0000_0000, prot: Prot::READ_WRITE, owner, kind }
}

/// A context, its hardware and the next memory to map.
pub(crate) struct Setup {
    pub(crate) context: Context,
    pub(crate) hardware: Fake,
    pub(crate) next_memory: u64,
}

pub(crate) type Failed = ExecuteError<Refusal>;

impl Setup {
    pub(crate) fn new() -> Self {
        Self::limited(LIMITS)
    }

    pub(crate) fn limited(limits: Limits) -> Self {
        Self { context: Context::new(limits), hardware: Fake::default(), next_memory: 1 }
    }

    /// With one device on `geometry` that is attached to one address space.
    pub(crate) fn attached(geometry: Geometry) -> (Self, DeviceId, Ioasid) {
        let mut setup = Self::new();
        let device = setup.bind(A, "a0", geometry);
        let ioasid = setup.context.alloc().unwrap();
        setup.attach(device, ioasid).unwrap();
        (setup, device, ioasid)
    }

    pub(crate) fn bind(&mut self, group: GroupId, name: &str, geometry: Geometry) -> DeviceId {
        self.try_bind(group, name, geometry).unwrap()
    }

    pub(crate) fn try_bind(
        &mut self,
        group: GroupId,
        name: &str,
        geometry: Geometry,
    ) -> Result<DeviceId, Error> {
        let (name, cookie) = (name.to_owned(), Cookie(7));
        self.context.bind(Bind { group, geometry, simulated: false, name, cookie })
    }

    pub(crate) fn execute(
        &mut self,
        plan: Result<Plan, Error>,
    ) -> Result<Outcome<Refusal>, Failed> {
        self.context.execute(plan?, &mut self.hardware)
    }

    pub(crate) fn attach(
        &mut self,
        device: DeviceId,
        ioasid: Ioasid,
    ) -> Result<Outcome<Refusal>, Failed> {
        self.execute(self.context.plan_attach(device, ioasid))
    }

    pub(crate) fn detach(
        &mut self,
        device: DeviceId,
        ioasid: Ioasid,
    ) -> Result<Outcome<Refusal>, Failed> {
        self.execute(self.context.plan_detach(device, ioasid))
    }

    pub(crate) fn map(&mut self, ioasid: Ioasid, map: Map) -> Result<MemoryId, Failed> {
        let memory = MemoryId(self.next_memory);
        self.execute(self.context.plan_map(ioasid, map, memory))?;
        self.next_memory += 1;
        Ok(memory)
    }

    pub(crate) fn unmap(
        &mut self,
        ioasid: Ioasid,
        iova: u64,
        size: u64,
    ) -> Result<Outcome<Refusal>, Failed> {
        self.execute(self.context.plan_unmap(ioasid, Unmap::Range { iova, size }))
    }

    /// The IOVAs at which entries of a table begin.
    pub(crate) fn table(&self, group: GroupId) -> Vec<u64> {
        self.hardware.entries(group).iter().map(|entry| entry.iova).collect()
    }
}

pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, Failed>) -> Error {
    match result {
        Err(ExecuteError::Plan(error)) => error,
        other => panic!("a rule should have been broken, but: {other:?}"),
    }
}

pub(crate) fn errno<T: std::fmt::Debug>(result: Result<T, Failed>) -> i32 {
    refusal(result).errno()
}

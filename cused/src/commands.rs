//! The commands of the node: each ioctl from its argument to its result.
//!
//! A command first reads all of its argument and checks its shape, then asks the engine, and only
//! then changes something. Which rule is checked by whom: the shape of an argument here; ids,
//! ranges and limits in the engine; whose memory and whose descriptor it is in
//! [`memory`] and [`backend`](crate::backend).

mod container;
mod dirty;
mod faults;
mod list;
mod nested;
mod pasid;
mod sim_dma;
mod vector;

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cuse_channel::Interrupt;
use ioasid::{
    Bind, Contents as _, Cookie, DeviceId, GroupId, Ioasid, Limits, Map, MapKind, Owner, Plan,
    Prot, Unmap,
};
use ioasid_uapi::{self as uapi, cmd, ext};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use crate::argument::{CallerMemory, Stop};
use crate::backend::simulated::Simulator;
use crate::backend::{Effort, Table, refuse_mixed, rights_needed, vfio};
use crate::caller::Tid;
use crate::context::{Claim, Context, HomeId, SharedTable, State, Turn};
use crate::failure::Failure;
use crate::in_context::{Led, Scratches};
use crate::leader::Leader;
use crate::memory::resolve::{FileId, Resolver};
use crate::memory::{self, Backing, Pin, Rights};
use crate::policy::Policy;
use crate::process::{Process, Processes};
use crate::users::Users;

/// What all opens of the node have in common.
#[derive(Debug)]
pub struct Host {
    /// What one open may have.
    pub limits: Limits,
    /// Who may do what.
    pub policy: Policy,
    /// Who has the node open, and how much there may be of one user.
    pub users: Users,
    /// The simulated devices.
    pub simulator: Arc<Simulator>,
    /// The programs that call.
    pub processes: Processes,
    /// Their scratch memory.
    pub scratches: Scratches,
    /// The daemon is about to end.
    pub is_ending: Arc<AtomicBool>,
    /// Somebody tells of the faults of real devices: see
    /// [`Node::report_unrecoverable`](crate::node::Node::report_unrecoverable).
    pub tells_real_faults: AtomicBool,
}

impl Host {
    /// Whether the node has one of [`ext`].
    pub fn has_extension(&self, extension: u64) -> bool {
        match extension {
            ext::MAP_TYPE1V2
            | ext::MULTIDEV_GROUP
            | ext::SHARED_MEMORY
            | ext::PRIVATE_MEMORY
            | ext::NESTING
            | ext::USER_PAGE_TABLE
            | ext::VECTOR
            | ext::DIRTY_TRACKING
            | ext::FILE_MEMORY => true,
            ext::REGISTER_MEMORY => memory::can_pin(),
            ext::VFIO => vfio::available(),
            ext::SIMULATED | ext::USER_PASID_TABLE | ext::RECOVERABLE_FAULTS => {
                !self.simulator.is_empty()
            }
            ext::FAULTS => {
                !self.simulator.is_empty() || self.tells_real_faults.load(Ordering::Relaxed)
            }
            ext::SHARED_TABLE | ext::CONTAINER => true,
            _ => false,
        }
    }
}

/// PASIDs have 20 bits.
const PASID_MAX: u32 = (1 << 20) - 1;

/// One command being served.
pub struct Command<'a, 'm, 'c> {
    /// What all opens share.
    pub host: &'a Host,
    /// The open that it came on.
    pub context: &'a Context,
    /// The memory of its caller.
    pub memory: &'a mut CallerMemory<'m>,
    /// Its thread.
    pub leader: &'a mut Leader<'c>,
    /// Whether a signal waits for its caller.
    pub interrupt: &'a Interrupt,
    /// The process of its caller, once it was needed.
    pub process: OnceCell<Arc<Process>>,
}

type Done = Result<i32, Stop>;

impl<'a> Command<'a, '_, '_> {
    /// Serves ioctl `command` with argument `arg`. Returns what the ioctl returns.
    ///
    /// # Errors
    /// Each with the errno that the header gives for it.
    pub fn run(&mut self, command: u32, arg: u64) -> Done {
        match command {
            cmd::CHECK_EXTENSION => Ok(self.host.has_extension(arg).into()),
            cmd::REGISTER_MEMORY => self.register_memory(arg),
            cmd::UNREGISTER_MEMORY => self.unregister_memory(arg),
            cmd::ALLOC => self.alloc(),
            cmd::FREE => self.free(arg),
            cmd::GET_INFO => self.get_info(arg),
            cmd::MAP_DMA => self.map_dma(arg),
            cmd::UNMAP_DMA => self.unmap_dma(arg),
            cmd::CREATE_NESTING => self.create_nesting(arg),
            cmd::BIND_PGTABLE => self.bind_pgtable(arg, true),
            cmd::UNBIND_PGTABLE => self.bind_pgtable(arg, false),
            cmd::BIND_PASID_TABLE => self.bind_pasid_table(arg, true),
            cmd::UNBIND_PASID_TABLE => self.bind_pasid_table(arg, false),
            cmd::INVALIDATE_CACHE => self.invalidate_cache(arg),
            cmd::VECTOR => self.vector(arg),
            cmd::DIRTY => self.dirty(arg),
            cmd::BIND_DEVICE => self.bind_device(arg),
            cmd::UNBIND_DEVICE => self.unbind_device(arg),
            cmd::ATTACH_DEVICE => self.attach_device(arg),
            cmd::DETACH_DEVICE => self.detach_device(arg),
            cmd::GET_DEVICE_INFO => self.get_device_info(arg),
            cmd::COMPLETE_FAULT => self.complete_fault(arg),
            cmd::SET_FAULT_EVENTFD => self.set_fault_eventfd(arg),
            cmd::GET_ERROR => self.get_error(arg),
            cmd::LIST => self.list(arg),
            cmd::SIM_DMA => self.sim_dma(arg),
            of_container if container::is_command(of_container) => {
                self.container(of_container, arg)
            }
            other => Err(Failure::new(
                Errno::NOTTY,
                format!("{other:#x} is no command of /dev/ioasid; see ioasid.h"),
            )
            .into()),
        }
    }

    fn alloc(&mut self) -> Done {
        Ok(result(self.context.state().engine.alloc()?.get()))
    }

    fn free(&mut self, arg: u64) -> Done {
        let ioasid = by_value(arg, "IOASID")?.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        let plan = self.context.state().engine.plan_free(ioasid)?;
        turn.execute_simply(plan)?;
        self.context.state().pasids.unbind(ioasid);
        Ok(0)
    }

    fn get_info(&mut self, arg: u64) -> Done {
        let sizes = [uapi::INFO_SIZE_VER0, uapi::INFO_SIZE_VER1];
        let (mut info, output): (uapi::Info, _) = self.memory.exchange_of(arg, &sizes)?;
        let argsz = info.argsz as usize;
        let room = info.nr_ranges as usize;
        let ioasid = info.ioasid.try_into()?;
        let state = self.context.state();
        if state.pasids.hides_space(ioasid) {
            return Err(ioasid::Error::NoIoasid(info.ioasid).into());
        }
        let space = state.engine.info(ioasid)?;
        let nr_hidden = pasid::nr_hidden_children(&state, ioasid);
        let nr_devices = match state.pasids.any() {
            true => pasid::nr_devices(&state, ioasid),
            false => space.nr_devices,
        };
        let pasid_table = state.pasids.table(ioasid).map(|table| (table.format, table.address));
        (info.work_done, info.work_total) = state.progress(ioasid);
        let tracking = state.engine.is_tracking(ioasid);
        drop(state);
        let ranges = space.permitted.as_slice();
        let listed = if ranges.len() <= room { ranges.len() } else { 0 };
        let list = self.memory.reserve(info.ranges, listed * size_of::<uapi::IovaRange>());
        self.memory.ready()?;
        info.flags = uapi::INFO_NESTING;
        for (flag, is_set) in [
            (uapi::INFO_MAP_DMA, space.bound.is_none() && pasid_table.is_none()),
            (uapi::INFO_PASID_TABLE, pasid_table.is_some()),
            (uapi::INFO_SIMULATED, space.simulated),
            (uapi::INFO_SHADOW, space.parent.is_some()),
            (uapi::INFO_DIRTY, true),
            (uapi::INFO_TRACKING, tracking),
        ] {
            info.flags |= if is_set { flag } else { 0 };
        }
        info.formats = if space.parent.is_some() { nested::formats() } else { 0 };
        let tells_pasids = space.parent.is_some() && space.simulated;
        info.pasid_formats = if tells_pasids { pasid::formats() } else { 0 };
        (info.format, info.format_addr) = match (space.bound, pasid_table) {
            (Some(root), _) => (root.format().number(), root.address()),
            (None, Some((format, address))) => (format.number(), address),
            (None, None) => (0, 0),
        };
        info.depth = space.depth;
        info.parent = space.parent.map_or(0, Ioasid::get);
        info.pgsizes = space.pgsizes.0;
        info.nr_ranges = ranges.len() as u32;
        info.nr_devices = nr_devices;
        info.nr_children = space.nr_children - nr_hidden;
        info.max_mappings = space.max_mappings;
        info.nr_mappings = space.nr_mappings;
        info.mapped_bytes = space.mapped_bytes;
        info.locked_bytes = space.locked_bytes;
        (info.locked_used, info.locked_limit) = self.locked();
        let known = argsz.min(size_of::<uapi::Info>());
        self.memory.write(output, &info.as_bytes()[..known])?;
        let bytes: Vec<_> = ranges[..listed]
            .iter()
            .map(|range| uapi::IovaRange { start: range.start(), last: range.last() })
            .collect();
        self.memory.write(list, bytes.as_bytes())?;
        match room != 0 && ranges.len() > room {
            false => Ok(0),
            true => Err(Failure::new(
                Errno::MSGSIZE,
                format!("there are {} IOVA ranges, but room for {room}", ranges.len()),
            )
            .into()),
        }
    }

    fn map_dma(&mut self, arg: u64) -> Done {
        let map: uapi::MapDma = self.memory.structure(arg)?;
        let uapi::MapDma { flags, fd, vaddr, iova, size, .. } = map;
        let mapping = Mapping::new(flags, fd, (vaddr, iova, size))?;
        let ioasid = map.ioasid.try_into()?;
        self.map_once(ioasid, &mapping)
    }

    /// Makes one mapping, and answers a caller that is led.
    fn map_once(&mut self, ioasid: Ioasid, mapping: &Mapping) -> Done {
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        self.map(&turn, ioasid, mapping)?;
        turn.finished();
        if !self.leader.conclude(0) {
            // Nobody will ever know of this mapping.
            let unmap = Unmap::Range { iova: mapping.iova, size: mapping.size };
            let plan = self.context.state().engine.plan_unmap(ioasid, unmap)?;
            turn.execute_simply(plan)?;
        }
        Ok(0)
    }

    /// Makes one mapping.
    fn map(&mut self, turn: &Turn<'_>, ioasid: Ioasid, map: &Mapping) -> Result<(), Stop> {
        let is_file = map.flags & uapi::MAP_FILE != 0;
        let read = map.flags & uapi::MAP_READ != 0;
        let write = map.flags & uapi::MAP_WRITE != 0;
        let request = Map {
            iova: map.iova,
            size: map.size,
            vaddr: map.vaddr,
            prot: Prot { read, write },
            owner: Owner(0),
            kind: if is_file { MapKind::File } else { MapKind::Memory },
        };
        let state = self.context.state();
        state.engine.check_map(ioasid, request)?;
        if state.pasids.table(ioasid).is_some() {
            return Err(pasid::table_bound(ioasid).into());
        }
        let is_nested = state.engine.parent(ioasid)?.is_some();
        drop(state);
        if is_nested {
            if is_file {
                let why = "a child maps addresses of its parent, and no files";
                return Err(Failure::invalid(why).into());
            }
            return self.map_nested(turn, ioasid, request);
        }
        let tid = self.named_caller()?;
        let (process, source) = match is_file {
            true => self.file(tid, map.fd, request)?,
            false => {
                let process = self.process_of(tid)?;
                let source = self.caller_memory(turn, tid, &process, ioasid, request)?;
                (process, source)
            }
        };
        if !self.leader.is_leading() {
            self.check_interrupt()?;
        }
        self.map_source(turn, tid, &process, ioasid, request, source)?;
        Ok(())
    }

    /// The memory of a file that the caller names by its descriptor, and the caller's process.
    fn file(&self, tid: Tid, fd: i32, map: Map) -> Result<(Arc<Process>, MapSource), Failure> {
        let open = |process: Arc<Process>| {
            let rights = rights_needed(map.prot);
            let resolver = Resolver { tid, process: &process, rights, devices: &[] };
            let (backing, file) = resolver.file(&self.context.files, fd, map.vaddr, map.size)?;
            Ok((process, MapSource { backing: Arc::new(backing), base: 0, file: Some(file) }))
        };
        // Only of a process that lives can a descriptor be taken.
        let presumed = self.host.processes.presumed(tid).and_then(|process| open(process).ok());
        presumed.map_or_else(|| open(self.process_of(tid)?), Ok)
    }

    /// The memory at an address of the caller: registered before, or to be found now.
    fn caller_memory(
        &mut self,
        turn: &Turn<'_>,
        tid: Tid,
        process: &Arc<Process>,
        ioasid: Ioasid,
        map: Map,
    ) -> Result<MapSource, Stop> {
        let state = self.context.state();
        let owner = state.owner(process, None);
        let registered = state.engine.registered(owner, map.vaddr, map.size)?;
        let known = registered.and_then(|place| {
            let (backing, base) = state.memory(place.memory)?;
            Some((backing, base + place.offset))
        });
        let tables = state.tables_of(ioasid);
        let devices = if known.is_none() { state.vfio_devices() } else { Vec::new() };
        drop(state);
        let (backing, base) = match known {
            Some(known) => known,
            None => {
                let rights = rights_needed(map.prot);
                let resolver = Resolver { tid, process, rights, devices: &devices };
                let leader = &mut *self.leader;
                // Why the caller cannot be led is not always a refusal.
                let mut stopped = None;
                let mut locate = |vaddr| {
                    turn.leads(process);
                    if let Err(stop) = leader.begin(tid, process) {
                        let why = Failure::interrupted();
                        stopped = Some(stop);
                        return Err(why);
                    }
                    locate(&tables, map.iova, vaddr, leader.led()?)
                };
                match (resolver.memory(map.vaddr, map.size, &mut locate), stopped) {
                    (_, Some(stop)) => return Err(stop),
                    (backing, None) => (Arc::new(backing?), 0),
                }
            }
        };
        let must_lead = backing.programs().any(|own| Arc::ptr_eq(own, process));
        if must_lead && tables.iter().any(|table| table.lock().pins()) {
            turn.leads(process);
            self.leader.begin(tid, process)?;
        }
        Ok(MapSource { backing, base, file: None })
    }

    fn map_source(
        &mut self,
        turn: &Turn<'_>,
        tid: Tid,
        process: &Arc<Process>,
        ioasid: Ioasid,
        map: Map,
        source: MapSource,
    ) -> Result<(), Failure> {
        let MapSource { backing, base, file } = source;
        let kind = if backing.is_registers() { MapKind::Device } else { map.kind };
        let mut state = self.context.state();
        let (memory, owner) = state.remember_memory(Arc::clone(&backing), base, process, file);
        let planned = state.engine.plan_map(ioasid, Map { owner, kind, ..map }, memory);
        // So that what it is made from stays registered meanwhile.
        let held = planned.and_then(|plan| Ok((state.engine.hold(&plan)?, plan)));
        drop(state);
        let done = held.map_err(Failure::from).and_then(|(hold, plan)| {
            let charge = plan.charge();
            let done = process.charge(tid, charge).and_then(|()| {
                let done = self.execute(turn, plan);
                done.inspect_err(|_| process.uncharge(charge))
            });
            self.context.state().engine.let_go(hold);
            done
        });
        if done.is_err() {
            let garbage = self.context.state().forget_memory(memory);
            drop(garbage);
        }
        backing.settle();
        done.map(drop)
    }

    /// Carries out a plan that may take long, with the caller led if it is.
    fn execute(&mut self, turn: &Turn<'_>, plan: Plan) -> Result<u64, Failure> {
        let stop = self.stop();
        let effort = Effort { led: self.leader.led()?, progress: turn.progress(), stop: &stop };
        turn.execute(plan, effort)
    }

    /// Why a long command should go no further, to be asked between its steps.
    fn stop(&self) -> impl Fn() -> Result<(), Failure> + use<'a> {
        let (is_ending, interrupt): (&'a AtomicBool, &'a Interrupt) =
            (&self.host.is_ending, self.interrupt);
        let tid = self.memory.tid();
        // Of the death of a led caller, whose stop looks like a signal to us, we hear otherwise.
        let is_led = self.leader.is_leading();
        move || {
            if !is_led && interrupt.is_set() && tid.is_some_and(Tid::is_killed) {
                return Err(Failure::interrupted());
            }
            match is_ending.load(Ordering::Relaxed) {
                true => Err(Failure::new(Errno::INTR, "the daemon is ending; nothing was changed")),
                false => Ok(()),
            }
        }
    }

    fn unmap_dma(&mut self, arg: u64) -> Done {
        let sizes = [uapi::UNMAP_SIZE_VER0];
        let (mut unmap, output): (uapi::UnmapDma, _) = self.memory.exchange_of(arg, &sizes)?;
        self.memory.ready()?;
        let known = (unmap.argsz as usize).min(size_of::<uapi::UnmapDma>());
        self.memory.check_writable(output, &unmap.as_bytes()[..known])?;
        known_flags(unmap.flags, uapi::UNMAP_ALL | uapi::UNMAP_DIRTY)?;
        reserved(unmap.reserved)?;
        let dirty = unmap.flags & uapi::UNMAP_DIRTY != 0;
        if !dirty && (unmap.page_size, unmap.bitmap, unmap.bitmap_size) != (0, 0, 0) {
            return refuse_invalid("a bitmap is given, but not IOASID_UNMAP_DIRTY");
        }
        if dirty && unmap.flags & uapi::UNMAP_ALL != 0 {
            return refuse_invalid("IOASID_UNMAP_DIRTY and IOASID_UNMAP_ALL exclude each other");
        }
        let ioasid = unmap.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        let what = self.what_to_unmap(ioasid, unmap.flags, (unmap.iova, unmap.size))?;
        let bitmap;
        (unmap.size, bitmap) = match dirty {
            false => (self.unmap(&turn, ioasid, what)?, None),
            true => {
                let (size, taken, place) = self.unmap_dirty(&turn, ioasid, &unmap)?;
                (size, Some((taken, place)))
            }
        };
        drop(turn);
        let known = (unmap.argsz as usize).min(size_of::<uapi::UnmapDma>());
        let mut told = self.memory.write(output, &unmap.as_bytes()[..known]);
        if let Some((taken, place)) = bitmap {
            told = told.and_then(|()| self.memory.write(place, taken.bits.as_bytes()));
            told = self.settle_written(ioasid, &taken, told);
        }
        told?;
        Ok(0)
    }

    /// What flags and range ask for.
    fn what_to_unmap(
        &self,
        ioasid: Ioasid,
        flags: u32,
        (iova, size): (u64, u64),
    ) -> Result<Unmap, Failure> {
        match flags & uapi::UNMAP_ALL != 0 {
            false => Ok(Unmap::Range { iova, size }),
            true if (iova, size) == (0, 0) => Ok(Unmap::All),
            true => {
                // Ids and states are spoken of first.
                drop(self.context.state().engine.plan_unmap(ioasid, Unmap::All)?);
                let why = "IOASID_UNMAP_ALL unmaps everything: iova and size must be 0";
                Err(Failure::invalid(why))
            }
        }
    }

    /// Unmaps; says how many bytes.
    fn unmap(&mut self, turn: &Turn<'_>, ioasid: Ioasid, what: Unmap) -> Result<u64, Stop> {
        let state = self.context.state();
        let plan = state.engine.plan_unmap(ioasid, what)?;
        if state.pasids.table(ioasid).is_some() {
            return Err(pasid::table_bound(ioasid).into());
        }
        drop(state);
        self.check_interrupt()?;
        self.harvest_before(&plan)?;
        Ok(turn.execute_simply(plan)?)
    }

    fn bind_device(&mut self, arg: u64) -> Done {
        let sizes = [uapi::BIND_SIZE_VER0];
        let (mut bind, output): (uapi::BindDevice, _) = self.memory.exchange_of(arg, &sizes)?;
        let known = (bind.argsz as usize).min(size_of::<uapi::BindDevice>());
        self.memory.ready()?;
        self.memory.check_writable(output, &bind.as_bytes()[..known])?;
        let kinds = uapi::BIND_VFIO_GROUP | uapi::BIND_SIMULATED;
        known_flags(bind.flags, kinds | uapi::BIND_SHARE)?;
        reserved(bind.reserved)?;
        let shares = bind.flags & uapi::BIND_SHARE != 0;
        if !shares && bind.with != 0 {
            return refuse_invalid("with is set, but not IOASID_BIND_SHARE: it must then be 0");
        }
        let name = device_name(&bind.name)?;
        let source = match bind.flags & kinds {
            uapi::BIND_VFIO_GROUP => Source::vfio(self.named_caller()?, bind.fd, &name)?,
            uapi::BIND_SIMULATED if bind.fd != -1 => {
                return refuse_invalid("a simulated device has no descriptor: fd must be -1");
            }
            uapi::BIND_SIMULATED => Source::simulated(&self.host.simulator, &name)?,
            _ => {
                return refuse_invalid(
                    "exactly one of IOASID_BIND_VFIO_GROUP and IOASID_BIND_SIMULATED must be set",
                );
            }
        };
        let home = source.home();
        self.host.policy.check_bind(&self.context.opener.subject, &name, home)?;
        let with = shares.then_some(DeviceId(bind.with));
        let (turn, place) = self.bind_turn(home, with)?;
        let device = self.bind(source, place, name, Cookie(bind.cookie))?;
        bind.device = device.0;
        let written = self.memory.write(output, &bind.as_bytes()[..known]).map_err(Stop::from);
        let finished = written.and_then(|()| self.join_container(&turn, device));
        finished.inspect_err(|_| {
            // The program does not learn the number, so that it must not keep the device.
            if let Err(why) = self.unbind(&turn, device) {
                log::error!("device {device} stays bound until its open ends: {why}");
            }
        })?;
        Ok(0)
    }

    /// The turn to bind a device of a group, and which table it is to use.
    fn bind_turn(&self, home: HomeId, with: Option<DeviceId>) -> Result<(Turn<'a>, Place), Stop> {
        loop {
            let look = || -> Result<_, Failure> {
                let state = self.context.state();
                let place = Place::of(&state, home, with)?;
                let shown = state.engine.shown(place.group());
                Ok((place, shown, state.container().map(|container| container.ioasid)))
            };
            let seen = look()?;
            let (place, shown, container) = seen;
            let spaces = shown.into_iter().chain(container).map(Claim::Space);
            let claims = spaces.chain([Claim::Devices, Claim::Group(place.group())]);
            let turn = self.turn(&claims.collect::<Vec<_>>())?;
            if look()? == seen {
                return Ok((turn, place));
            }
        }
    }

    fn bind(
        &self,
        source: Source,
        place: Place,
        name: String,
        cookie: Cookie,
    ) -> Result<DeviceId, Failure> {
        let (home, group) = (source.home(), place.group());
        let simulated = matches!(home, HomeId::Simulated(_));
        let mut state = self.context.state();
        state.engine.can_bind(group, &name)?;
        match place {
            Place::Bound(_) => {}
            Place::Own(_) => state.insert_table(group, source.open()?),
            Place::Shared(_) => {
                let table = state.table(group).cloned();
                drop(state);
                let Some(table) = table else { return Err(lost_table(group)) };
                // Whoever shows something in it has no turn now.
                source.join(&mut table.lock())?;
                state = self.context.state();
            }
        }
        let geometry = state.table(group).map(|table| table.lock().geometry().clone());
        let Some(geometry) = geometry else { return Err(lost_table(group)) };
        let bound = state
            .engine
            .regroup(group, geometry.clone(), &name)
            .and_then(|()| state.engine.bind(Bind { group, geometry, simulated, name, cookie }));
        let failure = match bound {
            Ok(device) => {
                state.insert_device(home, group, device);
                return Ok(device);
            }
            Err(error) => Failure::from(error),
        };
        match place {
            Place::Bound(_) => Err(failure),
            Place::Own(_) => {
                let garbage = state.remove_table(group);
                drop(state);
                drop(garbage);
                Err(failure)
            }
            Place::Shared(_) => {
                drop(state);
                self.leave(group, home)?;
                Err(Failure::invalid(failure.sentence))
            }
        }
    }

    /// Has a group let its table go, which others may share.
    fn leave(&self, group: GroupId, home: HomeId) -> Result<(), Failure> {
        let table = self.context.state().table(group).cloned();
        let Some(table) = table else { return Ok(()) };
        let mut table = table.lock();
        table.leave(home.number())?;
        let geometry = table.geometry().clone();
        drop(table);
        // What is mapped suits the others, who were there before.
        let regrouped = self.context.state().engine.regroup(group, geometry, "");
        if let Err(error) = regrouped {
            log::error!("the table of group {group} without {home:?}: {error}");
        }
        Ok(())
    }

    fn unbind_device(&mut self, arg: u64) -> Done {
        let device = DeviceId(by_value(arg, "device")?);
        let turn = self.device_turn(device)?;
        self.unbind(&turn, device)?;
        Ok(0)
    }

    fn unbind(&self, turn: &Turn<'_>, device: DeviceId) -> Result<(), Failure> {
        let state = self.context.state();
        let info = state.engine.device_info(device)?;
        let (group, attached) = (info.group, info.ioasid);
        let by_container = state.container().map(|c| c.ioasid).filter(|&own| attached == Some(own));
        // What is illegal must change nothing.
        let plan = match by_container {
            Some(ioasid) => state.engine.plan_detach(device, ioasid)?,
            None => state.engine.plan_unbind(device)?,
        };
        if let Some(pasid) = state.pasids.of(device).next() {
            let why = format!("PASID {pasid} of the device is attached: detach it first");
            return Err(Failure::new(Errno::BUSY, why));
        }
        let home = state.home_of(device);
        let last_of = home.filter(|&home| state.member(home).is_some_and(|m| m.devices.len() == 1));
        drop(state);
        self.harvest_before(&plan)?;
        if let Some(home) = last_of {
            // Nobody is at work on its table.
            self.leave(group, home)?;
        }
        let state = self.context.state();
        let alone = state.engine.devices().filter(|other| other.group == group).count() == 1;
        drop(state);
        match by_container {
            // Its table goes too. What that refuses matters to nobody.
            Some(_) if alone => {
                let plan = self.context.state().engine.plan_withdraw(device)?;
                turn.execute_simply(plan)?;
            }
            Some(ioasid) => {
                let plan = self.context.state().engine.plan_detach(device, ioasid)?;
                turn.execute_simply(plan)?;
                let plan = self.context.state().engine.plan_unbind(device)?;
                turn.execute_simply(plan)?;
            }
            None => {
                let plan = self.context.state().engine.plan_unbind(device)?;
                turn.execute_simply(plan)?;
            }
        }
        self.context.state().forget_device(device);
        self.context.faults.unbound(device);
        self.leave_container(turn)
    }

    fn attach_device(&mut self, arg: u64) -> Done {
        let (attach, device, ioasid) = self.attachment(arg)?;
        if attach.flags & uapi::ATTACH_USER_PASID != 0 {
            return self.attach_pasid((device, attach.user_pasid), ioasid);
        }
        let turn = self.attachment_turn(device, ioasid)?;
        let state = self.context.state();
        let plan = state.engine.plan_attach(device, ioasid)?;
        let group = state.engine.device_info(device)?.group;
        drop(state);
        self.track_for(group, ioasid)?;
        self.follow(&turn, plan)?;
        Ok(0)
    }

    fn detach_device(&mut self, arg: u64) -> Done {
        let (attach, device, ioasid) = self.attachment(arg)?;
        if attach.flags & uapi::ATTACH_USER_PASID != 0 {
            return self.detach_pasid((device, attach.user_pasid), ioasid);
        }
        let turn = self.attachment_turn(device, ioasid)?;
        let state = self.context.state();
        // What is illegal must change nothing; and what was read of a PASID table stands in no way.
        drop(state.engine.plan_detach(device, ioasid)?);
        // Below the one that is named, if a broken table is left.
        let deepest = state.engine.device_info(device)?.ioasid.unwrap_or(ioasid);
        drop(state);
        self.forget_pasids(&turn, |(other, _)| other == device)?;
        let plan = self.context.state().engine.plan_detach(device, ioasid)?;
        self.follow(&turn, plan)?;
        let state = self.context.state();
        let is_attached = |pasid| state.pasids.device((device, pasid)).is_some();
        let is_detached = |pasid: Option<u32>| !pasid.is_some_and(is_attached);
        self.context.faults.detached(device, deepest, is_detached);
        Ok(0)
    }

    fn attachment_turn(&self, device: DeviceId, ioasid: Ioasid) -> Result<Turn<'a>, Stop> {
        loop {
            let group = self.group_of(device)?;
            let turn = self.turn(&[Claim::Space(ioasid), Claim::Group(group)])?;
            // Groups may have become one meanwhile.
            if self.group_of(device)? == group {
                return Ok(turn);
            }
        }
    }

    /// The turn to unbind a device, which also concerns the I/O address space that its table shows
    /// and that of the container.
    fn device_turn(&self, device: DeviceId) -> Result<Turn<'a>, Stop> {
        loop {
            let look = || -> Result<_, Failure> {
                let state = self.context.state();
                if state.pasids.hides_device(device) {
                    return Err(ioasid::Error::NoDevice(device).into());
                }
                let group = state.engine.device_info(device)?.group;
                let container = state.container().map(|container| container.ioasid);
                Ok((group, state.engine.shown(group), container))
            };
            let seen = look()?;
            let (group, shown, container) = seen;
            let spaces = shown.into_iter().chain(container).map(Claim::Space);
            let claims = spaces.chain([Claim::Devices, Claim::Group(group)]);
            let turn = self.turn(&claims.collect::<Vec<_>>())?;
            if look()? == seen {
                return Ok(turn);
            }
        }
    }

    fn group_of(&self, device: DeviceId) -> Result<GroupId, Failure> {
        let state = self.context.state();
        if state.pasids.hides_device(device) {
            return Err(ioasid::Error::NoDevice(device).into());
        }
        Ok(state.engine.device_info(device)?.group)
    }

    fn attachment(&mut self, arg: u64) -> Result<(uapi::AttachDevice, DeviceId, Ioasid), Stop> {
        let attach: uapi::AttachDevice = self.memory.structure(arg)?;
        known_flags(attach.flags, uapi::ATTACH_USER_PASID)?;
        reserved(attach.reserved)?;
        let has_pasid = attach.flags & uapi::ATTACH_USER_PASID != 0;
        if !has_pasid && attach.user_pasid != 0 {
            return Err(
                Failure::invalid("user_pasid is set, but not IOASID_ATTACH_USER_PASID").into()
            );
        }
        if attach.user_pasid > PASID_MAX {
            return Err(Failure::invalid("user_pasid has more than 20 bits").into());
        }
        Ok((attach, DeviceId(attach.device), attach.ioasid.try_into()?))
    }

    fn get_device_info(&mut self, arg: u64) -> Done {
        let (mut info, output): (uapi::DeviceInfo, _) = self.memory.exchange(arg)?;
        self.memory.ready()?;
        let state = self.context.state();
        let number = DeviceId(info.device);
        if state.pasids.hides_device(number) {
            return Err(ioasid::Error::NoDevice(number).into());
        }
        let device = state.engine.device_info(number)?;
        let aperture = device.geometry.permitted.hull();
        info.flags = if device.simulated { uapi::DEVICE_SIMULATED } else { uapi::DEVICE_VFIO };
        if device.ioasid.is_some() {
            info.flags |= uapi::DEVICE_ATTACHED;
        }
        info.group = state.home_of(device.id).map_or(0, HomeId::number);
        info.ioasid = device.ioasid.map_or(0, Ioasid::get);
        info.max_mappings = device.geometry.max_mappings;
        info.cookie = device.cookie.0;
        info.pgsizes = device.geometry.pgsizes.0;
        info.aperture_start = aperture.map_or(0, |range| range.start());
        info.aperture_last = aperture.map_or(0, |range| range.last());
        info.name = [0; uapi::NAME_LEN];
        info.name[..device.name.len()].copy_from_slice(device.name.as_bytes());
        drop(state);
        self.memory.write(output, info.as_bytes())?;
        Ok(0)
    }

    fn get_error(&mut self, arg: u64) -> Done {
        let (mut error, output): (uapi::ErrorInfo, _) = self.memory.exchange(arg)?;
        known_flags(error.flags, uapi::ERROR_ANY_THREAD)?;
        reserved(error.reserved)?;
        let any = error.flags & uapi::ERROR_ANY_THREAD != 0;
        let thread = self.memory.tid().map_or(0, Tid::get);
        let last = self.context.failures.lock().last((!any).then_some(thread)).cloned();
        let Some(failed) = last else {
            return Err(Failure::new(Errno::NOENT, "no command has failed").into());
        };
        let mut text = failed.failure.sentence.into_owned().into_bytes();
        text.push(0);
        let room = error.text_len as usize;
        let copied = if text.len() <= room { text.len() } else { 0 };
        let text_output = self.memory.reserve(error.text, copied);
        self.memory.ready()?;
        error.command = failed.command;
        error.error = failed.failure.errno.raw_os_error().cast_unsigned();
        error.text_len = text.len() as u32;
        self.memory.write(output, error.as_bytes())?;
        self.memory.write(text_output, &text[..copied])?;
        match room != 0 && copied == 0 {
            false => Ok(0),
            true => Err(Failure::new(Errno::MSGSIZE, "the explanation needs more room").into()),
        }
    }

    /// The calling thread, for what cannot be done without knowing it.
    fn named_caller(&self) -> Result<Tid, Failure> {
        self.memory.tid().ok_or_else(|| {
            Failure::unsupported(
                "the calling program runs outside the daemon's pid namespace, so that its memory \
                 and descriptors cannot be found; run the daemon in the host's",
            )
        })
    }

    /// The process of the caller, which is blocked until it has its answer.
    fn process_of(&self, caller: Tid) -> Result<Arc<Process>, Failure> {
        if let Some(process) = self.process.get() {
            return Ok(Arc::clone(process));
        }
        let process = self.host.processes.of(caller)?;
        Ok(Arc::clone(self.process.get_or_init(|| process)))
    }

    /// What the caller has locked, and may lock.
    fn locked(&self) -> (u64, u64) {
        let tid = self.memory.tid();
        let process = tid.and_then(|tid| Some((self.host.processes.of(tid).ok()?, tid)));
        process.map_or((0, u64::MAX), |(process, tid)| (process.locked(), process.lock_limit(tid)))
    }

    /// Waits for the turn to work on `claims`.
    fn turn(&self, claims: &[Claim]) -> Result<Turn<'a>, Stop> {
        let context: &'a Context = self.context;
        let state = context.state();
        let family = |claim: &Claim| match *claim {
            Claim::Space(ioasid) if state.pasids.hides_space(ioasid) => {
                Err(ioasid::Error::NoIoasid(ioasid.get()))
            }
            Claim::Space(ioasid) => Ok(Claim::Space(state.engine.family(ioasid))),
            other => Ok(other),
        };
        let claims = claims.iter().map(family).collect::<Result<Vec<_>, _>>()?;
        drop(state);
        context.turn(&claims, || self.check_interrupt())
    }

    /// Lets a signal of the caller be handled while nothing has been changed.
    fn check_interrupt(&self) -> Result<(), Stop> {
        match self.interrupt.is_set() {
            true => Err(Stop::Restart),
            false => Ok(()),
        }
    }
}

/// A mapping as it is asked for.
struct Mapping {
    flags: u32,
    fd: i32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

impl Mapping {
    /// One whose flags and descriptor fit.
    fn new(flags: u32, fd: i32, (vaddr, iova, size): (u64, u64, u64)) -> Result<Self, Failure> {
        known_flags(flags, uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_FILE)?;
        match flags & uapi::MAP_FILE == 0 && fd != 0 {
            true => Err(Failure::invalid("fd is set, but not IOASID_MAP_FILE: it must then be 0")),
            false => Ok(Self { flags, fd, vaddr, iova, size }),
        }
    }
}

/// The memory that a mapping is made from.
struct MapSource {
    backing: Arc<Backing>,
    /// Where in it the mapping begins.
    base: u64,
    /// The file, if it was named by a descriptor.
    file: Option<FileId>,
}

/// The physical address of registers at `vaddr` of a led caller.
fn locate(
    tables: &[SharedTable],
    iova: u64,
    vaddr: u64,
    led: Option<&mut Led<'_>>,
) -> Result<u64, Failure> {
    let led = led.ok_or_else(Failure::interrupted)?;
    for table in tables {
        if let Table::Vfio(container) = &mut *table.lock() {
            return container.locate(iova, vaddr, led);
        }
    }
    Err(Failure::unsupported(
        "registers of a device can be mapped only where a real device is attached: simulated ones \
         cannot reach them",
    ))
}

/// Registered memory.
impl Command<'_, '_, '_> {
    fn register_memory(&mut self, arg: u64) -> Done {
        let (vaddr, size) = self.registration(arg)?;
        if !memory::can_pin() {
            return Err(memory::refuse_pin(Errno::NOSYS).into());
        }
        let tid = self.named_caller()?;
        let process = self.process_of(tid)?;
        let turn = self.turn(&[Claim::Registrations])?;
        let state = self.context.state();
        state.engine.check_register(state.owner(&process, None), vaddr, size)?;
        drop(state);
        let rights = Rights::ReadWrite;
        let resolver = Resolver { tid, process: &process, rights, devices: &[] };
        let mut locate =
            |_| Err(Failure::unsupported("the registers of a device cannot be registered"));
        let mut backing = resolver.memory(vaddr, size, &mut locate)?;
        backing.check_pinnable()?;
        let quota = self.context.opener.register(size)?;
        if backing.programs().next().is_some() {
            turn.leads(&process);
            self.leader.begin(tid, &process)?;
        }
        process.charge(tid, size)?;
        let registered = self.pin(&mut backing).and_then(|()| {
            let mut state = self.context.state();
            let (memory, owner) = state.remember_memory(Arc::new(backing), 0, &process, None);
            let registered = state.engine.register(owner, vaddr, size, memory);
            state.charge_registered(memory, quota);
            registered.map_err(|error| {
                drop(state.forget_memory(memory));
                error.into()
            })
        });
        if let Err(failure) = registered {
            process.uncharge(size);
            return Err(failure.into());
        }
        if !self.leader.conclude(0) {
            self.unregister(&process, vaddr, size)?;
        }
        Ok(0)
    }

    fn pin(&mut self, backing: &mut Backing) -> Result<(), Failure> {
        let stop = self.stop();
        let pin_there = |vaddr, len| {
            let led = self.leader.led()?.ok_or_else(Failure::interrupted)?;
            led.pin(vaddr, len)?.map(Pin::of_ring).map_err(memory::refuse_pin)
        };
        backing.pin(pin_there, stop)
    }

    fn unregister_memory(&mut self, arg: u64) -> Done {
        let (vaddr, size) = self.registration(arg)?;
        let process = self.process_of(self.named_caller()?)?;
        let _turn = self.turn(&[Claim::Registrations])?;
        self.unregister(&process, vaddr, size)?;
        Ok(0)
    }

    fn unregister(&self, process: &Process, vaddr: u64, size: u64) -> Result<(), Failure> {
        let mut state = self.context.state();
        let owner = state.owner(process, None);
        let memory = state.engine.unregister(owner, vaddr, size)?;
        let garbage = state.forget_memory(memory);
        drop(state);
        drop(garbage);
        process.uncharge(size);
        Ok(())
    }

    fn registration(&mut self, arg: u64) -> Result<(u64, u64), Stop> {
        let register: uapi::RegisterMemory = self.memory.structure(arg)?;
        known_flags(register.flags, 0)?;
        let uapi::RegisterMemory { vaddr, size, .. } = register;
        let page = rustix::param::page_size() as u64;
        if size == 0 || !(vaddr | size).is_multiple_of(page) {
            let why = "vaddr and size must be multiples of the page size, and size not 0";
            return Err(Failure::invalid(why).into());
        }
        no_wrap("vaddr", vaddr, size)?;
        Ok((vaddr, size))
    }
}

/// Where a device to bind comes from.
enum Source {
    Vfio(vfio::Group),
    Simulated(Arc<Simulator>, u32),
}

impl Source {
    fn vfio(tid: Tid, fd: i32, name: &str) -> Result<Self, Failure> {
        if !vfio::available() {
            return Err(Failure::unsupported(
                "this host has no VFIO (IOASID_EXT_VFIO is 0); run: modprobe vfio-pci, and see ioasidctl doctor",
            ));
        }
        let group = vfio::Group::new(tid.descriptor(fd)?)?;
        group.check_device(name)?;
        Ok(Self::Vfio(group))
    }

    fn simulated(simulator: &Arc<Simulator>, name: &str) -> Result<Self, Failure> {
        if simulator.is_empty() {
            return Err(Failure::unsupported(
                "this daemon has no simulated devices; start it with --simulated N",
            ));
        }
        Ok(Self::Simulated(Arc::clone(simulator), simulator.group_of(name)?))
    }

    fn home(&self) -> HomeId {
        match self {
            Self::Vfio(group) => HomeId::Vfio(group.number()),
            Self::Simulated(_, group) => HomeId::Simulated(*group),
        }
    }

    /// Takes the group, with a table of its own.
    fn open(self) -> Result<Table, Failure> {
        match self {
            Self::Vfio(group) => vfio::Container::new(group).map(Table::Vfio),
            Self::Simulated(simulator, group) => simulator.claim(group).map(Table::Simulated),
        }
    }

    /// Takes the group, to share a table that others have.
    fn join(self, table: &mut Table) -> Result<(), Failure> {
        match (self, table) {
            (Self::Vfio(group), Table::Vfio(container)) => container.join(group),
            (own @ Self::Simulated(..), table) => table.merge(&mut own.open()?),
            (Self::Vfio(_), Table::Simulated(_)) => Err(refuse_mixed()),
        }
    }
}

/// Which table a device that is being bound is to use: that of this engine group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// That which its group has already.
    Bound(GroupId),
    /// One of its own.
    Own(GroupId),
    /// One that it will share.
    Shared(GroupId),
}

impl Place {
    fn of(state: &State, home: HomeId, with: Option<DeviceId>) -> Result<Self, Failure> {
        let table_of = |device| {
            let home = state.home_of(device).and_then(|home| state.member(home));
            home.map(|member| member.table).ok_or(ioasid::Error::NoDevice(device))
        };
        let with = with.map(table_of).transpose()?;
        if let Some(member) = state.member(home) {
            return match with {
                Some(other) if other != member.table => Err(Failure::new(
                    Errno::BUSY,
                    format!(
                        "group {} has an I/O page table of its own already: unbind its devices first",
                        home.number()
                    ),
                )),
                _ => Ok(Self::Bound(member.table)),
            };
        }
        let shared = with.or_else(|| container::table_for(state, home));
        Ok(shared.map_or_else(|| Self::Own(state.free_group(home)), Self::Shared))
    }

    fn group(self) -> GroupId {
        match self {
            Self::Bound(group) | Self::Own(group) | Self::Shared(group) => group,
        }
    }
}

fn lost_table(group: GroupId) -> Failure {
    Failure::new(Errno::IO, format!("the table of group {group} is gone"))
}

/// A device name out of a fixed field, which must end with a zero byte.
fn device_name(field: &[u8; uapi::NAME_LEN]) -> Result<String, Failure> {
    let end = field.iter().position(|&byte| byte == 0);
    let name = end.and_then(|end| str::from_utf8(&field[..end]).ok());
    match name {
        Some("") => Err(Failure::invalid("name is empty")),
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure::invalid("name is not UTF-8 that ends with a zero byte")),
    }
}

/// An id that is the ioctl's argument itself. One that has more bits than an id names nothing.
fn by_value(arg: u64, what: &str) -> Result<u32, Failure> {
    u32::try_from(arg).map_err(|_| {
        Failure::new(Errno::NOENT, format!("there is no {what} {arg:#x} in this open of the node"))
    })
}

/// Ids are at most i32::MAX (the engine sees to it), so that they can be an ioctl's result.
fn result(id: u32) -> i32 {
    id.cast_signed()
}

fn known_flags(flags: u32, known: u32) -> Result<(), Failure> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Failure::invalid(format!("flags has the unknown bits {unknown:#x}"))),
    }
}

fn reserved(field: u32) -> Result<(), Failure> {
    match field {
        0 => Ok(()),
        value => Err(Failure::invalid(format!("the reserved field is {value:#x} and must be 0"))),
    }
}

fn no_wrap(what: &str, start: u64, size: u64) -> Result<(), Failure> {
    match start.checked_add(size - 1) {
        Some(_) => Ok(()),
        None => Err(Failure::new(
            Errno::OVERFLOW,
            format!("{what} + size wraps: {start:#x} + {size:#x}"),
        )),
    }
}

fn refuse_invalid(sentence: &'static str) -> Done {
    Err(Failure::invalid(sentence).into())
}

fn refuse_unsupported(sentence: &'static str) -> Done {
    Err(Failure::unsupported(sentence).into())
}

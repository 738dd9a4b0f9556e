//! The commands of the node: each ioctl from its argument to its result.
//!
//! A command first reads all of its argument and checks its shape, then asks the engine, and only
//! then changes something. Which rule is checked by whom: the shape of an argument here; ids,
//! ranges and limits in the engine; whose memory and whose descriptor it is in
//! [`memory`] and [`backend`](crate::backend).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cuse_channel::Interrupt;
use ioasid::{
    Bind, Change, Contents as _, Cookie, DeviceId, GroupId, Ioasid, Limits, Map, MapKind, Owner,
    Plan, Prot, Unmap,
};
use ioasid_uapi::{self as uapi, cmd, ext};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use crate::argument::{CallerMemory, Output, Stop};
use crate::backend::simulated::{Simulator, Transfer};
use crate::backend::{Effort, Table, rights_needed, vfio};
use crate::caller::Tid;
use crate::context::{Claim, Context, SharedTable, State, Turn};
use crate::failure::Failure;
use crate::in_context::{Led, Scratches};
use crate::leader::Leader;
use crate::memory::resolve::{FileId, Resolver};
use crate::memory::{self, Backing, Pin, Rights};
use crate::process::{Process, Processes};

/// What all opens of the node have in common.
#[derive(Debug)]
pub struct Host {
    /// What one open may have.
    pub limits: Limits,
    /// The simulated devices.
    pub simulator: Arc<Simulator>,
    /// The programs that call.
    pub processes: Processes,
    /// Their scratch memory.
    pub scratches: Scratches,
    /// The daemon is about to end.
    pub is_ending: Arc<AtomicBool>,
}

impl Host {
    fn has_extension(&self, extension: u64) -> bool {
        match extension {
            ext::MAP_TYPE1V2
            | ext::MULTIDEV_GROUP
            | ext::SHARED_MEMORY
            | ext::PRIVATE_MEMORY
            | ext::FILE_MEMORY => true,
            ext::REGISTER_MEMORY => memory::can_pin(),
            ext::VFIO => vfio::available(),
            ext::SIMULATED => !self.simulator.is_empty(),
            _ => false,
        }
    }
}

/// Simulated groups are numbered apart from the machine's IOMMU groups.
const SIMULATED_GROUPS: u64 = 1 << 32;

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
            cmd::CREATE_NESTING => self.create_nesting(),
            cmd::BIND_PGTABLE => self.bind_pgtable(arg, true),
            cmd::UNBIND_PGTABLE => self.bind_pgtable(arg, false),
            cmd::BIND_PASID_TABLE => self.bind_pasid_table(arg, true),
            cmd::UNBIND_PASID_TABLE => self.bind_pasid_table(arg, false),
            cmd::INVALIDATE_CACHE => self.invalidate_cache(arg),
            cmd::BIND_DEVICE => self.bind_device(arg),
            cmd::UNBIND_DEVICE => self.unbind_device(arg),
            cmd::ATTACH_DEVICE => self.attach_device(arg),
            cmd::DETACH_DEVICE => self.detach_device(arg),
            cmd::GET_DEVICE_INFO => self.get_device_info(arg),
            cmd::GET_ERROR => self.get_error(arg),
            cmd::SIM_DMA => self.sim_dma(arg),
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
        Ok(0)
    }

    fn get_info(&mut self, arg: u64) -> Done {
        let sizes = [uapi::INFO_SIZE_VER0];
        let (mut info, output): (uapi::Info, _) = self.memory.exchange_of(arg, &sizes)?;
        let argsz = info.argsz as usize;
        let room = info.nr_ranges as usize;
        let ioasid = info.ioasid.try_into()?;
        let state = self.context.state();
        let space = state.engine.info(ioasid)?;
        (info.work_done, info.work_total) = state.progress(ioasid);
        drop(state);
        let ranges = space.permitted.as_slice();
        let listed = if ranges.len() <= room { ranges.len() } else { 0 };
        let list = self.memory.reserve(info.ranges, listed * size_of::<uapi::IovaRange>());
        self.memory.ready()?;
        info.flags = uapi::INFO_MAP_DMA;
        if space.simulated {
            info.flags |= uapi::INFO_SIMULATED;
        }
        info.parent = space.parent.map_or(0, Ioasid::get);
        info.pgsizes = space.pgsizes.0;
        info.nr_ranges = ranges.len() as u32;
        info.nr_devices = space.nr_devices;
        info.nr_children = space.nr_children;
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
        known_flags(map.flags, uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_FILE)?;
        let is_file = map.flags & uapi::MAP_FILE != 0;
        if !is_file && map.fd != 0 {
            return refuse_invalid("fd is set, but not IOASID_MAP_FILE: it must then be 0");
        }
        let read = map.flags & uapi::MAP_READ != 0;
        let write = map.flags & uapi::MAP_WRITE != 0;
        let ioasid = map.ioasid.try_into()?;
        let kind = if is_file { MapKind::File } else { MapKind::Memory };
        let request = Map {
            iova: map.iova,
            size: map.size,
            vaddr: map.vaddr,
            prot: Prot { read, write },
            owner: Owner(0),
            kind,
        };
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        self.context.state().engine.check_map(ioasid, request)?;
        let tid = self.named_caller()?;
        let (process, source) = match is_file {
            true => self.file(tid, map.fd, request)?,
            false => {
                let process = self.host.processes.of(tid)?;
                let source = self.caller_memory(&turn, tid, &process, ioasid, request)?;
                (process, source)
            }
        };
        if !self.leader.is_leading() {
            self.check_interrupt()?;
        }
        self.map_source(&turn, tid, &process, ioasid, request, source)?;
        turn.finished();
        if !self.leader.conclude(0) {
            // Nobody will ever know of this mapping.
            let unmap = Unmap::Range { iova: map.iova, size: map.size };
            let plan = self.context.state().engine.plan_unmap(ioasid, unmap)?;
            turn.execute_simply(plan)?;
        }
        Ok(0)
    }

    /// The memory of a file that the caller names by its descriptor, and the caller's process.
    fn file(&self, tid: Tid, fd: i32, map: Map) -> Result<(Arc<Process>, MapSource), Failure> {
        let open = |process: Arc<Process>| {
            let rights = rights_needed(map.prot);
            let resolver = Resolver { tid, process: &process, rights, devices: &[] };
            let (backing, file) = resolver.file(fd, map.vaddr, map.size)?;
            Ok((process, MapSource { backing: Arc::new(backing), base: 0, file: Some(file) }))
        };
        // Only of a process that lives can a descriptor be taken.
        let presumed = self.host.processes.presumed(tid).and_then(|process| open(process).ok());
        presumed.map_or_else(|| open(self.host.processes.of(tid)?), Ok)
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
        let (mut unmap, output): (uapi::UnmapDma, _) = self.memory.exchange(arg)?;
        self.memory.ready()?;
        self.memory.check_writable(output, unmap.as_bytes())?;
        known_flags(unmap.flags, uapi::UNMAP_ALL)?;
        reserved(unmap.reserved)?;
        let what = match unmap.flags & uapi::UNMAP_ALL != 0 {
            false => Unmap::Range { iova: unmap.iova, size: unmap.size },
            true => Unmap::All,
        };
        let ioasid = unmap.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        let plan = self.context.state().engine.plan_unmap(ioasid, what)?;
        if what == Unmap::All && (unmap.iova, unmap.size) != (0, 0) {
            return refuse_invalid("IOASID_UNMAP_ALL unmaps everything: iova and size must be 0");
        }
        self.check_interrupt()?;
        unmap.size = turn.execute_simply(plan)?;
        drop(turn);
        self.memory.write(output, unmap.as_bytes())?;
        Ok(0)
    }

    fn bind_device(&mut self, arg: u64) -> Done {
        let (mut bind, output): (uapi::BindDevice, _) = self.memory.exchange(arg)?;
        self.memory.ready()?;
        self.memory.check_writable(output, bind.as_bytes())?;
        known_flags(bind.flags, uapi::BIND_VFIO_GROUP | uapi::BIND_SIMULATED)?;
        let name = device_name(&bind.name)?;
        let source = match bind.flags {
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
        let turn = self.group_turn(source.group())?;
        let device = source.bind(&mut self.context.state(), name, Cookie(bind.cookie))?;
        bind.device = device.0;
        self.memory.write(output, bind.as_bytes()).map_err(|failure| {
            // The program does not learn the number, so that it must not keep the device.
            let unbound = self.context.state().engine.plan_unbind(device).map_err(Failure::from);
            if let Err(why) = unbound.and_then(|plan| turn.execute_simply(plan)) {
                log::error!("device {device} stays bound until its open ends: {why}");
            }
            Stop::Refuse(failure)
        })?;
        Ok(0)
    }

    fn unbind_device(&mut self, arg: u64) -> Done {
        let device = DeviceId(by_value(arg, "device")?);
        let turn = self.group_turn(self.group_of(device)?)?;
        let state = self.context.state();
        let plan = state.engine.plan_unbind(device)?;
        let group = state.engine.device_info(device)?.group;
        let last = state.engine.devices().filter(|device| device.group == group).count() == 1;
        let table = state.table(group).filter(|_| last).cloned();
        drop(state);
        // Its table shows nothing, so that nobody is at work on it.
        if let Some(table) = table
            && let Table::Vfio(container) = &mut *table.lock()
        {
            container.detach_group()?;
        }
        turn.execute_simply(plan)?;
        Ok(0)
    }

    fn attach_device(&mut self, arg: u64) -> Done {
        let (attach, device, ioasid) = self.attachment(arg)?;
        let turn = self.attachment_turn(device, ioasid)?;
        let state = self.context.state();
        let plan = state.engine.plan_attach(device, ioasid)?;
        refuse_pasid(&attach)?;
        let must_lead = self.must_lead(&state, &plan, device, ioasid)?;
        drop(state);
        self.check_interrupt()?;
        if must_lead {
            let tid = self.named_caller()?;
            let process = self.host.processes.of(tid)?;
            turn.leads(&process);
            self.leader.begin(tid, &process)?;
        }
        self.execute(&turn, plan)?;
        Ok(0)
    }

    /// Whether the table of a device is to be filled with private memory, which a thread of the
    /// process has to pin that it belongs to.
    fn must_lead(
        &self,
        state: &State,
        plan: &Plan,
        device: DeviceId,
        ioasid: Ioasid,
    ) -> Result<bool, Failure> {
        let group = state.engine.device_info(device)?.group;
        let pins = state.table(group).is_some_and(|table| table.lock().pins());
        let fills = |change: &Change| matches!(change, Change::Fill { .. });
        if !pins || !plan.changes().iter().any(fills) {
            return Ok(false);
        }
        let memories = state.engine.mappings(ioasid)?.filter_map(|m| state.memory(m.memory));
        let mut private = memories.filter(|(backing, _)| backing.programs().next().is_some());
        Ok(private.next().is_some())
    }

    fn detach_device(&mut self, arg: u64) -> Done {
        let (attach, device, ioasid) = self.attachment(arg)?;
        let turn = self.attachment_turn(device, ioasid)?;
        let plan = self.context.state().engine.plan_detach(device, ioasid)?;
        refuse_pasid(&attach)?;
        turn.execute_simply(plan)?;
        Ok(0)
    }

    fn attachment_turn(&self, device: DeviceId, ioasid: Ioasid) -> Result<Turn<'a>, Stop> {
        let group = self.group_of(device)?;
        self.turn(&[Claim::Space(ioasid), Claim::Group(group)])
    }

    /// The turn to change which devices of a group are bound, which also concerns the I/O address
    /// space that its table shows.
    fn group_turn(&self, group: GroupId) -> Result<Turn<'a>, Stop> {
        loop {
            let shown = self.context.state().engine.shown(group);
            let claims = shown.map(Claim::Space).into_iter().chain([Claim::Group(group)]);
            let turn = self.turn(&claims.collect::<Vec<_>>())?;
            if self.context.state().engine.shown(group) == shown {
                return Ok(turn);
            }
        }
    }

    fn group_of(&self, device: DeviceId) -> Result<GroupId, Failure> {
        Ok(self.context.state().engine.device_info(device)?.group)
    }

    fn attachment(&mut self, arg: u64) -> Result<(uapi::AttachDevice, DeviceId, Ioasid), Stop> {
        const PASID_MAX: u32 = (1 << 20) - 1;
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
        let device = state.engine.device_info(DeviceId(info.device))?;
        let aperture = device.geometry.permitted.hull();
        info.flags = if device.simulated { uapi::DEVICE_SIMULATED } else { uapi::DEVICE_VFIO };
        if device.ioasid.is_some() {
            info.flags |= uapi::DEVICE_ATTACHED;
        }
        info.group = device.group.0 as u32;
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

    fn sim_dma(&mut self, arg: u64) -> Done {
        let (mut dma, output): (uapi::SimDma, _) = self.memory.exchange(arg)?;
        known_flags(dma.flags, uapi::SIM_DMA_READ | uapi::SIM_DMA_WRITE)?;
        reserved(dma.reserved)?;
        let write = match dma.flags {
            uapi::SIM_DMA_READ => false,
            uapi::SIM_DMA_WRITE => true,
            _ => {
                return refuse_invalid(
                    "exactly one of IOASID_SIM_DMA_READ and IOASID_SIM_DMA_WRITE must be set",
                );
            }
        };
        self.check_simulated(DeviceId(dma.device))?;
        if dma.size == 0 || dma.size > uapi::SIM_DMA_MAX {
            return refuse_invalid("size must be 1 to IOASID_SIM_DMA_MAX");
        }
        no_wrap("iova", dma.iova, dma.size)?;
        no_wrap("data", dma.data, dma.size)?;
        let mut buffer = vec![0; dma.size as usize];
        let data = if write {
            self.memory.read(dma.data, &mut buffer)?;
            None
        } else {
            Some(self.memory.reserve(dma.data, buffer.len()))
        };
        self.memory.ready()?;
        self.memory.check_writable(output, dma.as_bytes())?;
        let (done, fault) = self.transfer(&dma, &mut buffer)?;
        dma.done = done;
        self.memory.write(output, dma.as_bytes())?;
        self.write_data(data, &buffer[..done as usize])?;
        fault.map_or(Ok(0), |fault| Err(fault.into()))
    }

    fn write_data(&mut self, data: Option<Output>, bytes: &[u8]) -> Result<(), Failure> {
        data.map_or(Ok(()), |data| self.memory.write(data, bytes))
    }

    fn transfer(
        &self,
        dma: &uapi::SimDma,
        buffer: &mut [u8],
    ) -> Result<(u64, Option<Failure>), Stop> {
        let state = self.context.state();
        let group = state.engine.device_info(DeviceId(dma.device))?.group;
        let table = state.table(group).cloned();
        drop(state);
        let Some(table) = table else { return Err(not_simulated(DeviceId(dma.device)).into()) };
        match &*table.lock() {
            Table::Simulated(table) => Ok(match dma.flags {
                uapi::SIM_DMA_READ => table.dma(dma.iova, Transfer::Read(buffer)),
                _ => table.dma(dma.iova, Transfer::Write(buffer)),
            }),
            Table::Vfio(_) => Err(not_simulated(DeviceId(dma.device)).into()),
        }
    }

    fn check_simulated(&self, device: DeviceId) -> Result<(), Stop> {
        let state = self.context.state();
        match state.engine.device_info(device)?.simulated {
            true => Ok(()),
            false => Err(not_simulated(device).into()),
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

    /// What the caller has locked, and may lock.
    fn locked(&self) -> (u64, u64) {
        let tid = self.memory.tid();
        let process = tid.and_then(|tid| Some((self.host.processes.of(tid).ok()?, tid)));
        process.map_or((0, u64::MAX), |(process, tid)| (process.locked(), process.lock_limit(tid)))
    }

    /// Waits for the turn to work on `claims`.
    fn turn(&self, claims: &[Claim]) -> Result<Turn<'a>, Stop> {
        let context: &'a Context = self.context;
        context.turn(claims, || self.check_interrupt())
    }

    /// Lets a signal of the caller be handled while nothing has been changed.
    fn check_interrupt(&self) -> Result<(), Stop> {
        match self.interrupt.is_set() {
            true => Err(Stop::Restart),
            false => Ok(()),
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
        let process = self.host.processes.of(tid)?;
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
        if backing.programs().next().is_some() {
            turn.leads(&process);
            self.leader.begin(tid, &process)?;
        }
        process.charge(tid, size)?;
        let registered = self.pin(&mut backing).and_then(|()| {
            let mut state = self.context.state();
            let (memory, owner) = state.remember_memory(Arc::new(backing), 0, &process, None);
            let registered = state.engine.register(owner, vaddr, size, memory);
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
        let process = self.host.processes.of(self.named_caller()?)?;
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

/// The commands that this version refuses after checking the shape of their argument.
impl Command<'_, '_, '_> {
    fn create_nesting(&mut self) -> Done {
        refuse_unsupported("IOASIDs cannot be nested yet (IOASID_EXT_NESTING is 0)")
    }

    fn bind_pgtable(&mut self, arg: u64, bind: bool) -> Done {
        let table: uapi::BindPgtable = self.memory.structure(arg)?;
        known_flags(table.flags, 0)?;
        reserved(table.reserved)?;
        if !bind && (table.format, table.addr, table.addr_width) != (0, 0, 0) {
            return refuse_invalid("to unbind, every field but argsz and ioasid must be 0");
        }
        refuse_unsupported(
            "page tables of the program cannot be bound yet (IOASID_EXT_USER_PAGE_TABLE is 0)",
        )
    }

    fn bind_pasid_table(&mut self, arg: u64, bind: bool) -> Done {
        let table: uapi::BindPasidTable = self.memory.structure(arg)?;
        known_flags(table.flags, 0)?;
        reserved(table.reserved)?;
        if !bind && (table.format, table.addr, table.pasid_bits) != (0, 0, 0) {
            return refuse_invalid("to unbind, every field but argsz and ioasid must be 0");
        }
        refuse_unsupported(NO_PASIDS)
    }

    fn invalidate_cache(&mut self, arg: u64) -> Done {
        let invalidate: uapi::InvalidateCache = self.memory.structure(arg)?;
        known_flags(invalidate.flags, uapi::INVALIDATE_ALL)?;
        reserved(invalidate.reserved)?;
        let all = invalidate.flags & uapi::INVALIDATE_ALL != 0;
        match (all, invalidate.iova, invalidate.size) {
            (true, 0, 0) => {}
            (true, ..) => {
                return refuse_invalid(
                    "IOASID_INVALIDATE_ALL takes no range: iova and size must be 0",
                );
            }
            (false, _, 0) => return refuse_invalid("size is 0"),
            (false, iova, size) => no_wrap("iova", iova, size)?,
        }
        refuse_unsupported(
            "no table of the program can be bound yet, so that there is nothing to invalidate",
        )
    }
}

const NO_PASIDS: &str = "DMA cannot be told apart by PASID: VFIO type1 has one table for a device (IOASID_EXT_USER_PASID_TABLE is 0)";

fn refuse_pasid(attach: &uapi::AttachDevice) -> Result<(), Failure> {
    match attach.flags & uapi::ATTACH_USER_PASID {
        0 => Ok(()),
        _ => Err(Failure::unsupported(NO_PASIDS)),
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

    fn group(&self) -> GroupId {
        match self {
            Self::Vfio(group) => GroupId(group.number().into()),
            Self::Simulated(_, group) => GroupId(SIMULATED_GROUPS | u64::from(*group)),
        }
    }

    /// Takes the group, unless the open has it already.
    fn open(self) -> Result<Table, Failure> {
        match self {
            Self::Vfio(group) => vfio::Container::new(group).map(Table::Vfio),
            Self::Simulated(simulator, group) => simulator.claim(group).map(Table::Simulated),
        }
    }

    fn bind(self, state: &mut State, name: String, cookie: Cookie) -> Result<DeviceId, Failure> {
        let group = self.group();
        let simulated = matches!(self, Self::Simulated(..));
        state.engine.can_bind(group, &name)?;
        let first = state.table(group).is_none();
        if first {
            state.insert_table(group, self.open()?);
        }
        let geometry = state.table(group).map(|table| table.lock().geometry().clone());
        let geometry =
            geometry.unwrap_or_else(|| unreachable!("the table was there or was inserted"));
        let bound = state.engine.bind(Bind { group, geometry, simulated, name, cookie });
        if bound.is_err() && first {
            drop(state.remove_table(group));
        }
        Ok(bound?)
    }
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

fn not_simulated(device: DeviceId) -> Failure {
    Failure::unsupported(format!(
        "device {device} is real: only simulated devices do DMA on command"
    ))
}

fn refuse_invalid(sentence: &'static str) -> Done {
    Err(Failure::invalid(sentence).into())
}

fn refuse_unsupported(sentence: &'static str) -> Done {
    Err(Failure::unsupported(sentence).into())
}

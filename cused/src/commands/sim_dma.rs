//! IOASID_SIM_DMA: what a simulated device does on command, and what becomes of it where it
//! cannot.

use ioasid::{Contents as _, DeviceId, Ioasid, Range};
use ioasid_uapi as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::{Command, Done, PASID_MAX, known_flags, no_wrap, refuse_invalid, reserved};
use crate::argument::{Output, Stop};
use crate::backend::Table;
use crate::backend::simulated::{Refused, Transfer};
use crate::context::{Claim, State, Turn};
use crate::failure::Failure;
use crate::faults::queue::{Access, Fault, Reason, Response};

impl<'a> Command<'a, '_, '_> {
    pub(super) fn sim_dma(&mut self, arg: u64) -> Done {
        let sizes = [uapi::SIM_DMA_SIZE_VER0];
        let (mut dma, output): (uapi::SimDma, _) = self.memory.exchange_of(arg, &sizes)?;
        let order = Order::new(&dma)?;
        self.check_simulated(order.device)?;
        if let Some(id) = order.goes_on {
            self.context.faults.response(id, order.device, order.access)?;
        }
        if dma.size == 0 || dma.size > uapi::SIM_DMA_MAX {
            return refuse_invalid("size must be 1 to IOASID_SIM_DMA_MAX");
        }
        no_wrap("iova", dma.iova, dma.size)?;
        no_wrap("data", dma.data, dma.size)?;
        let mut buffer = vec![0; dma.size as usize];
        let data = if order.access.write {
            self.memory.read(dma.data, &mut buffer)?;
            None
        } else {
            Some(self.memory.reserve(dma.data, buffer.len()))
        };
        self.memory.ready()?;
        let known = size_of::<uapi::SimDma>().min(dma.argsz as usize);
        self.memory.check_writable(output, &dma.as_bytes()[..known])?;
        let moved = self.carry_out(&order, &mut buffer)?;
        (dma.done, dma.fault) = (moved.done, moved.fault);
        self.memory.write(output, &dma.as_bytes()[..known])?;
        self.write_data(data, &buffer[..moved.done as usize])?;
        moved.failure.map_or(Ok(0), |failure| Err(failure.into()))
    }

    fn write_data(&mut self, data: Option<Output>, bytes: &[u8]) -> Result<(), Failure> {
        data.map_or(Ok(()), |data| self.memory.write(data, bytes))
    }

    /// Has the device do what it is ordered, and tells of the fault that it may meet.
    fn carry_out(&mut self, order: &Order, buffer: &mut [u8]) -> Result<Moved, Stop> {
        let mut through = self.translating(order)?;
        let faults = &self.context.faults;
        let resume = |id| Ok::<_, Failure>((id, faults.resume(id, order.device, order.access)?));
        let answer = order.goes_on.map(resume).transpose()?;
        if let Some((id, Response::Fail)) = answer {
            let sentence = format!(
                "fault {id} was completed with IOASID_RESPONSE_FAIL, or its device was detached"
            );
            return Ok(Moved::failed(0, Failure::new(Errno::IO, sentence)));
        }
        let mut done = 0;
        let refused = loop {
            let (moved, refused) = self.dma(&through, order, done, &mut buffer[done as usize..])?;
            done += moved;
            let by = through.by;
            drop(through);
            // What was read of a PASID table may have been dropped just now.
            if refused.is_none() || by.is_none() || self.still_translates(order, by) {
                break refused;
            }
            through = self.translating(order)?;
        };
        let Some(refused) = refused else { return Ok(Moved { done, fault: 0, failure: None }) };
        // With the state locked, so that a detach finds the fault, or the fault the detach.
        let state = self.context.state();
        let fault = Fault {
            device: order.device,
            cookie: state.engine.device_info(order.device)?.cookie,
            ioasid: order.ioasid(&state)?,
            access: Access { address: refused.at, ..order.access },
            reason: refused.reason,
            best_effort: false,
        };
        let for_good = done == 0 && matches!(answer, Some((_, Response::Success)));
        if !order.waits || for_good {
            faults.report(fault);
            return Ok(Moved::failed(done, refused.failure()));
        }
        Ok(match faults.ask(fault) {
            Some(fault) => Moved { done, fault, failure: None },
            None => {
                let Failure { errno, sentence } = refused.failure();
                let sentence = format!(
                    "{sentence}; it fails at once, for {} faults wait already to be read or completed",
                    uapi::FAULTS_MAX
                );
                Moved::failed(done, Failure::new(errno, sentence))
            }
        })
    }

    /// What translates what a device is ordered.
    fn translating(&mut self, order: &Order) -> Result<Through<'a>, Stop> {
        let by = match order.access.pasid {
            None => Some(order.device),
            Some(pasid) => self.tagged((order.device, pasid))?,
        };
        let look = || {
            let state = self.context.state();
            let group = by.and_then(|by| Some(state.engine.device_info(by).ok()?.group))?;
            Some((group, state.engine.family(state.engine.shown(group)?)))
        };
        loop {
            let seen = look();
            let (Some((_, family)), true) = (seen, order.access.write) else {
                return Ok(Through { by, turn: None });
            };
            let turn = self.turn(&[Claim::Space(family)])?;
            if look() == seen {
                return Ok(Through { by, turn: Some(turn) });
            }
        }
    }

    fn still_translates(&self, order: &Order, by: Option<DeviceId>) -> bool {
        let tag = order.access.pasid.map(|pasid| (order.device, pasid));
        tag.is_none_or(|tag| self.context.state().pasids.device(tag) == by)
    }

    /// Moves bytes through the table of a device, from the byte `from` of an order on.
    fn dma(
        &self,
        through: &Through<'_>,
        order: &Order,
        from: u64,
        buffer: &mut [u8],
    ) -> Result<(u64, Option<Refused>), Failure> {
        let (address, write) = (order.access.address + from, order.access.write);
        let by = through.by.filter(|_| !write || through.turn.is_some());
        let state = self.context.state();
        let group = by.and_then(|by| state.engine.device_info(by).ok()).map(|info| info.group);
        let table = group.and_then(|group| Some((group, state.table(group).cloned()?)));
        drop(state);
        // It is gone if the device, or the PASID, was taken away in between.
        let Some((group, table)) = table else {
            return Ok((0, Some(Refused { at: address, reason: Reason::NotMapped })));
        };
        let moved = match &*table.lock() {
            Table::Simulated(table) => match write {
                false => table.dma(address, Transfer::Read(buffer)),
                true => table.dma(address, Transfer::Write(buffer)),
            },
            Table::Vfio(_) => return Err(not_simulated(order.device)),
        };
        if write && let Some(written) = Range::from_size(address, moved.0) {
            self.context.state().engine.note_written(group, written);
        }
        Ok(moved)
    }

    fn check_simulated(&self, device: DeviceId) -> Result<(), Failure> {
        let state = self.context.state();
        if state.pasids.hides_device(device) {
            return Err(ioasid::Error::NoDevice(device).into());
        }
        match state.engine.device_info(device)?.simulated {
            true => Ok(()),
            false => Err(not_simulated(device)),
        }
    }
}

fn not_simulated(device: DeviceId) -> Failure {
    Failure::unsupported(format!(
        "device {device} is real: only simulated devices do DMA on command"
    ))
}

/// What translates DMA.
struct Through<'a> {
    /// The device whose table it is: the one that does the DMA, or what stands for its PASID. None
    /// if that is attached to nothing.
    by: Option<DeviceId>,
    /// Of DMA that writes, unless the table shows nothing: the turn on what it shows. Until it is
    /// noted what was written, the table goes on showing that, nothing is unmapped from it nor from
    /// what it is nested on, and nobody begins or ends tracking or asks for dirty pages. (The state
    /// cannot be locked while the table is: others lock the two the other way round.)
    turn: Option<Turn<'a>>,
}

/// What a simulated device is to do.
struct Order {
    device: DeviceId,
    access: Access,
    /// At a fault it waits.
    waits: bool,
    /// The fault at which it waited before.
    goes_on: Option<u32>,
}

impl Order {
    /// Checks what the argument says by itself.
    fn new(dma: &uapi::SimDma) -> Result<Self, Failure> {
        const WAYS: u32 = uapi::SIM_DMA_READ | uapi::SIM_DMA_WRITE;
        const OPTIONS: u32 =
            uapi::SIM_DMA_PASID | uapi::SIM_DMA_RECOVERABLE | uapi::SIM_DMA_CONTINUE;
        known_flags(dma.flags, WAYS | OPTIONS)?;
        reserved(dma.reserved)?;
        let has = |flag| dma.flags & flag != 0;
        let (waits, goes_on) = (has(uapi::SIM_DMA_RECOVERABLE), has(uapi::SIM_DMA_CONTINUE));
        let invalid = |why: &'static str| Err(Failure::invalid(why));
        if has(uapi::SIM_DMA_READ) == has(uapi::SIM_DMA_WRITE) {
            return invalid(
                "exactly one of IOASID_SIM_DMA_READ and IOASID_SIM_DMA_WRITE must be set",
            );
        }
        if goes_on && !waits {
            return invalid("IOASID_SIM_DMA_CONTINUE is for DMA with IOASID_SIM_DMA_RECOVERABLE");
        }
        if !goes_on && dma.fault != 0 {
            return invalid("fault is set, but not IOASID_SIM_DMA_CONTINUE: it must then be 0");
        }
        let pasid = has(uapi::SIM_DMA_PASID).then_some(dma.pasid);
        if pasid.is_none() && dma.pasid != 0 {
            return invalid("pasid is set, but not IOASID_SIM_DMA_PASID: it must then be 0");
        }
        if dma.pasid > PASID_MAX {
            return invalid("pasid has more than 20 bits");
        }
        Ok(Self {
            device: DeviceId(dma.device),
            access: Access { address: dma.iova, write: has(uapi::SIM_DMA_WRITE), pasid },
            waits,
            goes_on: goes_on.then_some(dma.fault),
        })
    }

    /// What translates, as the program knows it: what was made of a PASID table's entries is hidden
    /// behind the child that the table is bound to.
    fn ioasid(&self, state: &State) -> Result<Option<Ioasid>, Failure> {
        let own = state.engine.device_info(self.device)?.ioasid;
        let Some(pasid) = self.access.pasid else { return Ok(own) };
        let tag = (self.device, pasid);
        let table = own.and_then(|child| Some((child, state.pasids.table(child)?)));
        match (table, state.pasids.device(tag)) {
            (Some((child, table)), stand_in)
                if stand_in.is_none() || table.read.contains_key(&tag) =>
            {
                Ok(Some(child))
            }
            (_, Some(stand_in)) => Ok(state.engine.device_info(stand_in)?.ioasid),
            (_, None) => Ok(None),
        }
    }
}

/// What became of an order.
struct Moved {
    /// Bytes.
    done: u64,
    /// The fault at which the device waits, or 0.
    fault: u32,
    /// Why it gave up.
    failure: Option<Failure>,
}

impl Moved {
    fn failed(done: u64, failure: Failure) -> Self {
        Self { done, fault: 0, failure: Some(failure) }
    }
}

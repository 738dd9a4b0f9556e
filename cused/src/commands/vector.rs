//! IOASID_VECTOR: many maps and unmaps of one I/O address space in one call.

use std::sync::Arc;

use ioasid::{Ioasid, Map, MapKind, MemoryId, Owner, Prot, Range};
use ioasid_uapi as uapi;
use zerocopy::IntoBytes as _;

use super::{Command, Done, Mapping, known_flags, refuse_invalid, reserved};
use crate::argument::Stop;
use crate::context::{Claim, State, Turn};
use crate::failure::Failure;
use crate::memory::Backing;

impl Command<'_, '_, '_> {
    pub(super) fn vector(&mut self, arg: u64) -> Done {
        let (mut vector, output): (uapi::Vector, _) = self.memory.exchange(arg)?;
        known_flags(vector.flags, 0)?;
        reserved(vector.reserved)?;
        if vector.nr_ops == 0 || vector.nr_ops > uapi::VECTOR_MAX {
            return refuse_invalid("nr_ops must be 1 to IOASID_VECTOR_MAX");
        }
        let mut ops = vec![uapi::Op::default(); vector.nr_ops as usize];
        self.memory.read(vector.ops, ops.as_mut_slice().as_mut_bytes())?;
        self.memory.ready()?;
        vector.nr_done = 0;
        self.memory.check_writable(output, vector.as_bytes())?;
        let ioasid = vector.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        let mut done = Ok(0);
        let mut rest = ops.as_slice();
        // What cannot be done together is done one by one, which says what is wrong.
        let mut one_by_one = 0;
        while let [op, others @ ..] = rest {
            if one_by_one == 0 {
                let together = registered_run(rest);
                if together.len() > 1
                    && matches!(self.map_registered(&turn, ioasid, together), Ok(true))
                {
                    vector.nr_done += together.len() as u32;
                    rest = &rest[together.len()..];
                    continue;
                }
                one_by_one = together.len().max(1);
            }
            one_by_one -= 1;
            rest = others;
            match self.operation(&turn, ioasid, op) {
                Ok(()) => vector.nr_done += 1,
                // What was done before a signal is told: the rest can be asked for again.
                Err(Stop::Restart) if vector.nr_done > 0 => {
                    done = Err(Failure::interrupted().into());
                    break;
                }
                Err(stop) => {
                    done = Err(stop);
                    break;
                }
            }
        }
        turn.finished();
        if !matches!(done, Err(Stop::Restart | Stop::Retry | Stop::Abandoned)) {
            self.memory.write(output, vector.as_bytes())?;
        }
        done
    }

    /// Makes mappings of registered memory, all of them; false if that is not possible, and nothing
    /// was done.
    fn map_registered(
        &mut self,
        turn: &Turn<'_>,
        ioasid: Ioasid,
        ops: &[uapi::Op],
    ) -> Result<bool, Stop> {
        self.check_interrupt()?;
        let process = self.process_of(self.named_caller()?)?;
        let mut state = self.context.state();
        let owner = state.owner(&process, None);
        let Some(places) = places_of(&state, owner, ops) else { return Ok(false) };
        let (memories, owner) = state.remember_memories(places.into_iter(), &process);
        let map = |op: &uapi::Op| {
            let &uapi::Op { flags, vaddr, iova, size, .. } = op;
            let prot =
                Prot { read: flags & uapi::MAP_READ != 0, write: flags & uapi::MAP_WRITE != 0 };
            Map { iova, size, vaddr, prot, owner, kind: MapKind::Memory }
        };
        let maps: Vec<(Map, MemoryId)> =
            ops.iter().map(map).zip(memories.iter().copied()).collect();
        let planned = match state.engine.parent(ioasid) {
            Ok(None) => state.engine.plan_map_registered(ioasid, &maps).ok(),
            _ => None,
        };
        let held = planned.and_then(|plan| Some((state.engine.hold(&plan).ok()?, plan)));
        drop(state);
        let done = held.is_some_and(|(hold, plan)| {
            let done = self.execute(turn, plan).is_ok();
            self.context.state().engine.let_go(hold);
            done
        });
        if !done {
            let mut state = self.context.state();
            let forget = |memory| state.forget_memory(memory);
            let garbage: Vec<_> = memories.into_iter().map(forget).collect();
            drop(state);
            drop(garbage);
        }
        Ok(done)
    }

    fn operation(&mut self, turn: &Turn<'_>, ioasid: Ioasid, op: &uapi::Op) -> Result<(), Stop> {
        reserved(op.reserved)?;
        let &uapi::Op { flags, fd, vaddr, iova, size, .. } = op;
        match op.op {
            uapi::OP_MAP => {
                let mapping = Mapping::new(flags, fd, (vaddr, iova, size))?;
                self.map(turn, ioasid, &mapping)
            }
            uapi::OP_UNMAP => {
                if (fd, vaddr) != (0, 0) {
                    return Err(
                        Failure::invalid("UNMAP takes no memory: fd and vaddr must be 0").into()
                    );
                }
                known_flags(flags, uapi::UNMAP_ALL)?;
                let what = self.what_to_unmap(ioasid, flags, (iova, size))?;
                self.unmap(turn, ioasid, what).map(drop)
            }
            other => {
                Err(Failure::invalid(format!("{other} is no operation: see IOASID_OP_*")).into())
            }
        }
    }
}

/// What stands behind each of the operations, which map memory, and where in it it begins. None
/// unless all of it is registered, and the daemon's to pin.
fn places_of(state: &State, owner: Owner, ops: &[uapi::Op]) -> Option<Vec<(Arc<Backing>, u64)>> {
    let mut places = Vec::with_capacity(ops.len());
    // What was found last: neighbours are mostly from one registration.
    let mut known: Option<(Range, Arc<Backing>, u64)> = None;
    for op in ops {
        let wanted = Range::from_size(op.vaddr, op.size)?;
        if known.as_ref().is_none_or(|(range, ..)| !range.contains(wanted)) {
            let place = state.engine.registered(owner, op.vaddr, op.size).ok()??;
            let (backing, base) = state.memory(place.memory)?;
            // A program's own memory it has to pin itself.
            if backing.programs().next().is_some() {
                return None;
            }
            known = Some((place.range, backing, base));
        }
        let (range, backing, base) = known.as_ref()?;
        places.push((Arc::clone(backing), base + (op.vaddr - range.start())));
    }
    Some(places)
}

/// The operations at the start that may be maps of registered memory.
fn registered_run(ops: &[uapi::Op]) -> &[uapi::Op] {
    let is_plain = |op: &uapi::Op| {
        op.op == uapi::OP_MAP
            && op.flags & !(uapi::MAP_READ | uapi::MAP_WRITE) == 0
            && (op.fd, op.reserved) == (0, 0)
    };
    let len = ops.iter().position(|op| !is_plain(op)).unwrap_or(ops.len());
    &ops[..len]
}

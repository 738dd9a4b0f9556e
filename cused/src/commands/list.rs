//! IOASID_LIST: which IOASIDs and devices an open holds, and what an IOASID maps.

use ioasid::{Ioasid, MapKind, MappingInfo, Range};
use ioasid_uapi as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use super::{Command, Done, known_flags, refuse_invalid};
use crate::argument::Stop;
use crate::failure::Failure;

/// How many items there are from `start` on, and the bytes of those that there is room for.
type Listed = (usize, Vec<u8>);

impl Command<'_, '_, '_> {
    pub(super) fn list(&mut self, arg: u64) -> Done {
        let (mut list, output): (uapi::List, _) = self.memory.exchange(arg)?;
        let of_mappings = list.flags == uapi::LIST_MAPPINGS;
        let known = uapi::LIST_IOASIDS | uapi::LIST_DEVICES | uapi::LIST_MAPPINGS;
        known_flags(list.flags, known)?;
        if list.flags.count_ones() != 1 {
            return refuse_invalid(
                "exactly one of IOASID_LIST_IOASIDS, DEVICES and MAPPINGS must be set",
            );
        }
        if list.nr > uapi::LIST_MAX {
            return refuse_invalid("nr must be at most IOASID_LIST_MAX");
        }
        if !of_mappings && list.ioasid != 0 {
            return refuse_invalid("ioasid is for IOASID_LIST_MAPPINGS only; otherwise it is 0");
        }
        let room = list.nr as usize;
        let (count, items) = match (of_mappings, u32::try_from(list.start)) {
            (true, _) => self.mappings(list.ioasid.try_into()?, list.start, room)?,
            (false, Ok(start)) => self.numbers(list.flags, start, room),
            (false, Err(_)) => return refuse_invalid("start is no number of 32 bits"),
        };
        let place = self.memory.reserve(list.items, items.len());
        self.memory.ready()?;
        list.nr = count.try_into().unwrap_or(u32::MAX);
        self.memory.write(output, list.as_bytes())?;
        self.memory.write(place, &items)?;
        match room != 0 && count > room {
            false => Ok(0),
            true => Err(Failure::new(
                Errno::MSGSIZE,
                format!("there are {count} to be listed, but room for {room}"),
            )
            .into()),
        }
    }

    /// The IOASIDs or the devices, without those that the daemon has made for itself.
    fn numbers(&self, which: u32, start: u32, room: usize) -> Listed {
        let state = self.context.state();
        let mut numbers: Vec<u32> = match which {
            uapi::LIST_IOASIDS => {
                let visible = |ioasid: &Ioasid| !state.pasids.hides_space(*ioasid);
                state.engine.ioasids().filter(visible).map(Ioasid::get).collect()
            }
            _ => {
                let devices = state.engine.devices().map(|device| device.id);
                devices.filter(|id| !state.pasids.hides_device(*id)).map(|id| id.0).collect()
            }
        };
        drop(state);
        // The engine has devices group by group.
        numbers.sort_unstable();
        let listed = &numbers[numbers.partition_point(|number| *number < start)..];
        (listed.len(), listed[..listed.len().min(room)].as_bytes().to_vec())
    }

    fn mappings(&self, ioasid: Ioasid, start: u64, room: usize) -> Result<Listed, Stop> {
        let from_start = Range::new(start, u64::MAX).unwrap_or(Range::ALL);
        let state = self.context.state();
        if state.pasids.hides_space(ioasid) {
            return Err(ioasid::Error::NoIoasid(ioasid.get()).into());
        }
        let mut mappings = state.engine.mappings_in(ioasid, from_start)?;
        let listed: Vec<_> = mappings.by_ref().take(room).map(item).collect();
        Ok((listed.len() + mappings.count(), listed.as_bytes().to_vec()))
    }
}

/// A mapping as it was asked for.
fn item(mapping: MappingInfo) -> uapi::Mapping {
    let mut flags = 0;
    for (flag, is_set) in [
        (uapi::MAP_READ, mapping.prot.read),
        (uapi::MAP_WRITE, mapping.prot.write),
        (uapi::MAP_FILE, mapping.kind == MapKind::File),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    uapi::Mapping {
        iova: mapping.range.start(),
        // What was asked for as a u64 is one.
        size: mapping.range.bytes().try_into().unwrap_or(u64::MAX),
        vaddr: mapping.vaddr,
        flags,
        reserved: 0,
    }
}

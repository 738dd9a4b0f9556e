//! IOASID_DIRTY, and UNMAP_DMA with a bitmap: which pages devices have written.

use ioasid::{Change, GroupId, Ioasid, Plan, Range, Unmap};
use ioasid_uapi as uapi;
use zerocopy::IntoBytes as _;

use super::{Command, Done, known_flags, refuse_invalid, reserved};
use crate::argument::{Output, Stop};
use crate::context::{Claim, Turn};
use crate::failure::Failure;

/// Where a bitmap is to be written, and what of.
struct Bitmap {
    range: Range,
    page: u64,
    output: Output,
}

/// What was taken of what is known to be written.
pub(super) struct Taken {
    ranges: Vec<Range>,
    /// A bit for each page, the lowest of a byte first.
    pub(super) bits: Vec<u64>,
}

impl Command<'_, '_, '_> {
    pub(super) fn dirty(&mut self, arg: u64) -> Done {
        let dirty: uapi::Dirty = self.memory.structure(arg)?;
        let known = uapi::DIRTY_START | uapi::DIRTY_STOP | uapi::DIRTY_READ;
        known_flags(dirty.flags, known)?;
        reserved(dirty.reserved)?;
        if dirty.flags.count_ones() != 1 {
            return refuse_invalid("exactly one of IOASID_DIRTY_START, STOP and READ must be set");
        }
        let fields = [dirty.iova, dirty.size, dirty.page_size, dirty.bitmap, dirty.bitmap_size];
        if dirty.flags != uapi::DIRTY_READ && fields != [0; 5] {
            return refuse_invalid("IOASID_DIRTY_START and STOP take no range and no bitmap");
        }
        let ioasid = dirty.ioasid.try_into()?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        if dirty.flags == uapi::DIRTY_READ {
            let place = (dirty.bitmap, dirty.bitmap_size);
            let bitmap = self.bitmap(ioasid, (dirty.iova, dirty.size), dirty.page_size, place)?;
            self.memory.ready()?;
            // What is taken and cannot be written would be lost.
            self.memory.check_output(bitmap.output)?;
            self.harvest_all(ioasid)?;
            let taken = self.take_written(ioasid, bitmap.range, bitmap.page)?;
            let told = self.memory.write(bitmap.output, taken.bits.as_bytes());
            self.settle_written(ioasid, &taken, told)?;
            return Ok(0);
        }
        self.track(&turn, ioasid, dirty.flags == uapi::DIRTY_START)?;
        Ok(0)
    }

    /// Begins to track which pages of an I/O address space are written, or ends it.
    pub(super) fn track(&self, _turn: &Turn<'_>, ioasid: Ioasid, on: bool) -> Result<(), Failure> {
        let mut state = self.context.state();
        let was_on = state.engine.is_tracking(ioasid);
        state.engine.track(ioasid, on)?;
        let groups: Vec<_> = state.engine.groups(ioasid).collect();
        drop(state);
        let followed = groups.into_iter().try_for_each(|group| self.track_table(group));
        if followed.is_err() && !was_on {
            self.context.state().engine.track(ioasid, false)?;
        }
        followed
    }

    /// Has the hardware of a group track what is written if anybody wants to know.
    fn track_table(&self, group: GroupId) -> Result<(), Failure> {
        let state = self.context.state();
        let on = state.engine.is_tracked(group);
        let table = state.table(group).cloned();
        drop(state);
        table.map_or(Ok(()), |table| table.lock().track(on))
    }

    /// Has the hardware of a group that is about to show `ioasid` track what is written, if that is
    /// wanted of it.
    pub(super) fn track_for(&self, group: GroupId, ioasid: Ioasid) -> Result<(), Failure> {
        let state = self.context.state();
        let table = state.table(group).filter(|_| state.engine.is_tracking(ioasid)).cloned();
        drop(state);
        table.map_or(Ok(()), |table| table.lock().track(true))
    }

    /// Takes over what the hardware knows of all that is reached through an I/O address space.
    pub(super) fn harvest_all(&self, ioasid: Ioasid) -> Result<(), Failure> {
        let groups: Vec<_> = self.context.state().engine.groups(ioasid).collect();
        groups.into_iter().try_for_each(|group| self.harvest(group, Range::ALL))
    }

    /// Takes over what the hardware of a group knows of the pages in `range`, where entries begin
    /// and end.
    fn harvest(&self, group: GroupId, range: Range) -> Result<(), Failure> {
        let state = self.context.state();
        let is_broken = |info: ioasid::TableInfo| info.group == group && info.broken;
        // What a table holds that could not be restored is unknown, and so is what was written by it.
        if !state.engine.is_tracked(group) || state.engine.tables().any(is_broken) {
            return Ok(());
        }
        let Some(table) = state.table(group).filter(|table| table.lock().pins()).cloned() else {
            return Ok(());
        };
        let entries: Vec<_> = state.engine.table_entries(group, range).collect();
        drop(state);
        let mut written = vec![];
        let table = table.lock();
        for entry in entries {
            if let Some(range) = Range::from_size(entry.iova, entry.size) {
                table.written(range, |range| written.push(range))?;
            }
        }
        drop(table);
        let mut state = self.context.state();
        written.into_iter().for_each(|range| state.engine.note_written(group, range));
        Ok(())
    }

    /// Takes over what the hardware knows of what a plan removes: afterwards it knows nothing.
    pub(super) fn harvest_before(&self, plan: &Plan) -> Result<(), Failure> {
        plan.changes().iter().try_for_each(|change| match *change {
            Change::Unmap { group, iova, size } => match Range::from_size(iova, size) {
                Some(range) => self.harvest(group, range),
                None => Ok(()),
            },
            Change::Clear { group } => self.harvest(group, Range::ALL),
            Change::Map { .. } | Change::Fill { .. } => Ok(()),
        })
    }

    /// What was told of is taken for good; what was not is there for whoever asks next, and so is what
    /// nobody knows whether it has arrived.
    pub(super) fn settle_written(
        &self,
        ioasid: Ioasid,
        taken: &Taken,
        told: Result<(), Failure>,
    ) -> Result<(), Failure> {
        if told.is_err() || !self.memory.is_checked() {
            self.context.state().engine.give_back_written(ioasid, &taken.ranges);
        }
        told
    }

    /// UNMAP_DMA with a bitmap. Gives how many bytes were unmapped, what was written and where to
    /// tell it.
    pub(super) fn unmap_dirty(
        &mut self,
        turn: &Turn<'_>,
        ioasid: Ioasid,
        unmap: &uapi::UnmapDma,
    ) -> Result<(u64, Taken, Output), Stop> {
        let place = (unmap.bitmap, unmap.bitmap_size);
        let bitmap = self.bitmap(ioasid, (unmap.iova, unmap.size), unmap.page_size, place)?;
        self.memory.ready()?;
        // Nothing is unmapped if it could not be told what was written.
        self.memory.check_output(bitmap.output)?;
        let what = Unmap::Range { iova: unmap.iova, size: unmap.size };
        let size = self.unmap(turn, ioasid, what)?;
        let taken = self.take_written(ioasid, bitmap.range, bitmap.page)?;
        Ok((size, taken, bitmap.output))
    }

    /// Checks where a bitmap of `page` bytes a bit is to be written.
    fn bitmap(
        &mut self,
        ioasid: Ioasid,
        (iova, size): (u64, u64),
        page: u64,
        (address, room): (u64, u64),
    ) -> Result<Bitmap, Stop> {
        let range = self.context.state().engine.check_written(ioasid, iova, size, page)?;
        let pages = size / page;
        if pages > uapi::DIRTY_PAGES_MAX {
            return Err(Failure::invalid(format!(
                "{pages} pages are more than can be asked for at a time: at most {}",
                uapi::DIRTY_PAGES_MAX
            ))
            .into());
        }
        let needed = 8 * pages.div_ceil(64);
        if room < needed {
            return Err(Failure::invalid(format!(
                "bitmap_size is {room}, and {pages} pages need {needed} bytes"
            ))
            .into());
        }
        // By retry, an address that is nowhere is noticed in time because it is read.
        self.memory.read(address, &mut vec![0; needed as usize])?;
        let output = self.memory.reserve(address, needed as usize);
        Ok(Bitmap { range, page, output })
    }

    /// Takes what is known to be written in a range, in pages of `page` bytes. To be settled.
    pub(super) fn take_written(
        &self,
        ioasid: Ioasid,
        range: Range,
        page: u64,
    ) -> Result<Taken, Failure> {
        let ranges = self.context.state().engine.take_written(ioasid, range)?;
        let pages = range.bytes() / u128::from(page);
        let mut bits = vec![0_u64; pages.div_ceil(64) as usize];
        for written in &ranges {
            let first = (written.start() - range.start()) / page;
            let last = (written.last() - range.start()) / page;
            for bit in first..=last {
                bits[(bit / 64) as usize] |= 1 << (bit % 64);
            }
        }
        // The lowest bit of a byte comes first, whatever the machine.
        bits.iter_mut().for_each(|word| *word = word.to_le());
        Ok(Taken { ranges, bits })
    }
}

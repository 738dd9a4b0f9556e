//! Dirty pages of an open that is a VFIO container: VFIO_IOMMU_DIRTY_PAGES, and what is written of
//! what VFIO_IOMMU_UNMAP_DMA unmaps.
//!
//! type1 writes of a bitmap only the words that mappings reach into. Where a mapping begins inside a
//! word, bits are added to what that holds; every other word is written anew. A range may not cut a
//! mapping. (Bits of pages that are not mapped, which type1 sets where a bitmap of it was shifted
//! before, are not set here.)

use ioasid::{Contents as _, Ioasid, Range, Unmap};
use ioasid_uapi as uapi;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, vfio_bitmap, vfio_iommu_type1_dirty_bitmap,
    vfio_iommu_type1_dirty_bitmap_get, vfio_iommu_type1_info_cap_migration,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::dirty::Taken;
use super::{Command, DmaUnmap, Done, as_type1, refuse};
use crate::argument::{Output, Stop};
use crate::context::{Claim, Container};
use crate::failure::Failure;

/// The longest bitmap, bytes. (The kernel's own limit is 256 MiB.)
const BITMAP_MAX: u64 = uapi::DIRTY_PAGES_MAX / 8;

/// Addresses from here on are the kernel's.
const KERNEL: u64 = 1 << 63;

/// `struct vfio_iommu_type1_dirty_bitmap`, before what follows it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DirtyPages {
    argsz: u32,
    flags: u32,
}

/// `struct vfio_iommu_type1_dirty_bitmap_get`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct GetBitmap {
    iova: u64,
    size: u64,
    bitmap: Bitmap,
}

/// `struct vfio_bitmap`
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Bitmap {
    page: u64,
    size: u64,
    data: u64,
}

/// `struct vfio_iommu_type1_info_cap_migration`, behind its header.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct Migration {
    flags: u32,
    pad: u32,
    pgsizes: u64,
    bitmap_max: u64,
}

const HEADER: usize = 8;
const _: () = assert!(size_of::<DirtyPages>() == size_of::<vfio_iommu_type1_dirty_bitmap>());
const _: () = assert!(size_of::<GetBitmap>() == size_of::<vfio_iommu_type1_dirty_bitmap_get>());
const _: () = assert!(size_of::<Bitmap>() == size_of::<vfio_bitmap>());
const _: () =
    assert!(size_of::<Migration>() + HEADER == size_of::<vfio_iommu_type1_info_cap_migration>());

/// What VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION says where `page` is the smallest page.
pub(super) fn migration(page: u64) -> impl IntoBytes + Immutable {
    Migration { flags: 0, pad: 0, pgsizes: page, bitmap_max: BITMAP_MAX }
}

/// A bitmap of the program's, as it was before the call, and where to write it.
struct Place {
    words: Vec<u64>,
    output: Output,
}

impl Place {
    /// Enters what was written of a mapping, whose first page has the bit `first`.
    fn enter(&mut self, written: &[u64], first: u64, pages: u64) {
        enter(&mut self.words, written, first, pages);
    }
}

/// As `update_user_bitmap` does: see the module.
fn enter(words: &mut [u64], written: &[u64], first: u64, pages: u64) {
    let end = first + pages;
    for word in first / 64..end.div_ceil(64) {
        let bits_below = |bit: u64| match bit.saturating_sub(64 * word) {
            bits @ 0..64 => (1_u64 << bits) - 1,
            _ => u64::MAX,
        };
        let mine = bits_below(end) & !bits_below(first);
        let is_begun = first > 64 * word;
        let word = word as usize;
        let kept = if is_begun { u64::from_le(words[word]) } else { 0 };
        words[word] = (kept | (u64::from_le(written[word]) & mine)).to_le();
    }
}

impl Command<'_, '_, '_> {
    pub(super) fn container_dirty(&mut self, container: Container, arg: u64) -> Done {
        const START: u32 = VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
        const STOP: u32 = VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
        const GET: u32 = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
        if container.is_v1 {
            return refuse(
                Errno::ACCESS,
                "VFIO_TYPE1_IOMMU tracks no dirty pages: use VFIO_TYPE1v2_IOMMU",
            );
        }
        let mut pages = DirtyPages { argsz: 0, flags: 0 };
        self.memory.read(arg, pages.as_mut_bytes())?;
        let room = (pages.argsz as usize).checked_sub(size_of::<DirtyPages>());
        match (room, pages.flags) {
            (None, _) => refuse(Errno::INVAL, "argsz is shorter than the structure"),
            (_, START | STOP) => {
                let turn = self.turn(&[Claim::Space(container.ioasid)])?;
                let tracked = self.track(&turn, container.ioasid, pages.flags == START);
                tracked.map_err(|failure| as_type1(failure.into()))?;
                Ok(0)
            }
            (Some(room), GET) if room >= size_of::<GetBitmap>() => {
                self.get_bitmap(container.ioasid, arg).map_err(as_type1)
            }
            (_, GET) => refuse(Errno::INVAL, "argsz is shorter than the structure with a range"),
            _ => refuse(
                Errno::INVAL,
                "exactly one of VFIO_IOMMU_DIRTY_PAGES_FLAG_START, _STOP and _GET_BITMAP must be set",
            ),
        }
    }

    fn get_bitmap(&mut self, ioasid: Ioasid, arg: u64) -> Done {
        let mut get = GetBitmap { iova: 0, size: 0, bitmap: Bitmap { page: 0, size: 0, data: 0 } };
        let behind = arg.checked_add(size_of::<DirtyPages>() as u64);
        self.memory.read(behind.unwrap_or(u64::MAX), get.as_mut_bytes())?;
        let GetBitmap { iova, size, bitmap } = get;
        // Other than of a map or an unmap, the last page of all is none here.
        if iova.checked_add(size).is_none() {
            return refuse(Errno::INVAL, "iova + size wraps");
        }
        let range = self.check_bitmap(ioasid, (iova, size), bitmap)?;
        if self.mapped_in(ioasid, range).is_empty() {
            // Nothing is written, wherever the bitmap is.
            return Ok(0);
        }
        let mut place = self.place(bitmap, size)?;
        self.memory.ready()?;
        self.memory.check_writable(place.output, place.words.as_bytes())?;
        let _turn = self.turn(&[Claim::Space(ioasid)])?;
        self.check_bitmap(ioasid, (iova, size), bitmap)?;
        self.harvest_all(ioasid)?;
        let mapped = self.mapped_in(ioasid, range);
        let taken = self.fill(ioasid, range, bitmap.page, &mapped, &mut place)?;
        let told = self.memory.write(place.output, place.words.as_bytes());
        self.settle_written(ioasid, &taken, told)?;
        Ok(0)
    }

    /// VFIO_IOMMU_UNMAP_DMA with VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP.
    pub(super) fn unmap_with_bitmap(
        &mut self,
        container: Container,
        unmap: &mut DmaUnmap,
        arg: u64,
    ) -> Done {
        let mut bitmap = Bitmap { page: 0, size: 0, data: 0 };
        if (unmap.argsz as usize) < size_of::<DmaUnmap>() + size_of::<Bitmap>() {
            return refuse(Errno::INVAL, "argsz is shorter than the structure with a bitmap");
        }
        let behind = arg.checked_add(size_of::<DmaUnmap>() as u64);
        self.memory.read(behind.unwrap_or(u64::MAX), bitmap.as_mut_bytes())?;
        if container.is_v1 {
            return refuse(Errno::INVAL, "VFIO_TYPE1_IOMMU tracks no dirty pages");
        }
        let (ioasid, DmaUnmap { iova, size, .. }) = (container.ioasid, *unmap);
        let range = self.check_bitmap(ioasid, (iova, size), bitmap)?;
        let output = self.memory.reserve(arg, size_of::<DmaUnmap>());
        let has_any = !self.mapped_in(ioasid, range).is_empty();
        let place = has_any.then(|| self.place(bitmap, size)).transpose()?;
        self.memory.ready()?;
        self.memory.check_writable(output, unmap.as_bytes())?;
        let Some(mut place) = place else {
            // Nothing was mapped just now: the bitmap is not touched.
            unmap.size = 0;
            self.memory.write(output, unmap.as_bytes())?;
            return Ok(0);
        };
        self.memory.check_writable(place.output, place.words.as_bytes())?;
        let turn = self.turn(&[Claim::Space(ioasid)])?;
        self.check_bitmap(ioasid, (iova, size), bitmap)?;
        let mapped = self.mapped_in(ioasid, range);
        unmap.size = self.unmap(&turn, ioasid, Unmap::Range { iova, size })?;
        let taken = self.fill(ioasid, range, bitmap.page, &mapped, &mut place)?;
        drop(turn);
        let told = self.memory.write(output, unmap.as_bytes());
        let told = told.and_then(|()| self.memory.write(place.output, place.words.as_bytes()));
        self.settle_written(ioasid, &taken, told)?;
        Ok(0)
    }

    /// What type1 checks of a range and its bitmap: all of it is EINVAL.
    fn check_bitmap(
        &self,
        ioasid: Ioasid,
        (iova, size): (u64, u64),
        bitmap: Bitmap,
    ) -> Result<Range, Stop> {
        let state = self.context.state();
        let invalid = |why| refuse(Errno::INVAL, why);
        let page = state.engine.info(ioasid).map_err(Failure::from)?.pgsizes.smallest();
        let page = page.unwrap_or(1);
        if bitmap.page != page {
            return invalid("pgsize of the bitmap is not the smallest page size");
        }
        let Some(range) =
            Range::from_size(iova, size).filter(|_| (iova | size).is_multiple_of(page))
        else {
            return invalid("iova or size is misaligned, size is 0, or they wrap");
        };
        let needed = 8 * (size / page).div_ceil(64);
        if bitmap.size < needed || bitmap.size > BITMAP_MAX {
            return invalid(
                "size of the bitmap is too small for the range, or more than GET_INFO says",
            );
        }
        if bitmap.data.checked_add(bitmap.size).is_none_or(|end| end > KERNEL) {
            return invalid("data of the bitmap is no address of a program");
        }
        if !state.engine.is_tracking(ioasid) {
            return invalid("dirty pages are not being tracked");
        }
        let first = state.engine.translate(ioasid, iova);
        let last = state.engine.translate(ioasid, range.last());
        if first.is_some_and(|first| first.offset != 0)
            || last.is_some_and(|last_page| last_page.last != range.last())
        {
            return invalid("the range begins or ends in the middle of a mapping");
        }
        Ok(range)
    }

    fn mapped_in(&self, ioasid: Ioasid, range: Range) -> Vec<Range> {
        let entries = self.context.state().engine.entries(ioasid, range);
        entries.iter().filter_map(|entry| Range::from_size(entry.iova, entry.size)).collect()
    }

    /// Reads a bitmap for `size` bytes, in which some bits stay.
    fn place(&mut self, bitmap: Bitmap, size: u64) -> Result<Place, Stop> {
        let mut words = vec![0_u64; (size / bitmap.page).div_ceil(64) as usize];
        self.memory.read(bitmap.data, words.as_mut_bytes())?;
        let output = self.memory.reserve(bitmap.data, size_of_val(&words[..]));
        Ok(Place { words, output })
    }

    /// Takes what is known to be written of what is, or was, mapped in `range`.
    fn fill(
        &self,
        ioasid: Ioasid,
        range: Range,
        page: u64,
        mapped: &[Range],
        place: &mut Place,
    ) -> Result<Taken, Failure> {
        let taken = self.take_written(ioasid, range, page)?;
        for mapping in mapped {
            let first = (mapping.start() - range.start()) / page;
            place.enter(&taken.bits, first, mapping.bytes() as u64 / page);
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::enter;

    #[test]
    fn a_word_in_which_a_mapping_begins_keeps_its_bits_and_others_do_not() {
        let mut words = [u64::MAX >> 8; 3];
        let written = [0b1010 << 60, 1, u64::MAX];
        enter(&mut words, &written, 61, 4);
        assert_eq!(words, [u64::MAX >> 8 | 0b1010 << 60, 1, u64::MAX >> 8]);
        enter(&mut words, &written, 128, 64);
        assert_eq!(words[2], u64::MAX);
        enter(&mut words, &[u64::MAX; 3], 64, 2);
        assert_eq!(words[1], 0b11);
        enter(&mut words, &[0; 3], 0, 64);
        assert_eq!(words, [0, 0b11, u64::MAX]);
    }
}

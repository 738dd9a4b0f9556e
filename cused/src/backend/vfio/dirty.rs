//! Dirty pages, as VFIO type1 tells of them: every page that it has pinned may have been written.

use ioasid::Range;
use rustix::io::Errno;

use super::{Container, ioctl, unexpected};
use crate::failure::Failure;

impl Container {
    /// Has the kernel track which pages are written, or not.
    ///
    /// # Errors
    /// EOPNOTSUPP when it cannot.
    pub fn track(&mut self, on: bool) -> Result<(), Failure> {
        if self.tracks == on {
            return Ok(());
        }
        ioctl::track_dirty(self.fd(), on).map_err(|error| match error {
            Errno::NOTTY | Errno::INVAL => Failure::unsupported(
                "VFIO type1 of this kernel does not track dirty pages (from Linux 5.8 on it does)",
            ),
            other => unexpected("VFIO_IOMMU_DIRTY_PAGES", other),
        })?;
        self.tracks = on;
        Ok(())
    }

    /// Tells which pages of `range` were written since that was last asked, whole mappings as
    /// [`map`](Self::map) made them.
    ///
    /// # Errors
    /// EIO when the kernel refuses; ENOMEM.
    pub fn written(&self, range: Range, mut tell: impl FnMut(Range)) -> Result<(), Failure> {
        let page = self.geometry.pgsizes.smallest().unwrap_or(4096);
        let size = range.bytes() as u64;
        let words = (size / page).div_ceil(64) as usize;
        let mut bitmap = Vec::new();
        let room = bitmap.try_reserve_exact(words);
        room.map_err(|_| Failure::new(Errno::NOMEM, "no memory for a bitmap of dirty pages"))?;
        bitmap.resize(words, 0_u64);
        ioctl::dirty_bitmap(self.fd(), range.start(), size, page, &mut bitmap)
            .map_err(|error| unexpected("VFIO_IOMMU_DIRTY_PAGES", error))?;
        // Neighbouring pages are told as one.
        let mut run: Option<Range> = None;
        for bit in (0..size / page).filter(|bit| bitmap[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
        {
            let start = range.start() + bit * page;
            let Some(page) = Range::from_size(start, page) else { continue };
            run = match run {
                Some(run) if run.last() + 1 == start => Some(run.hull(page)),
                Some(run) => {
                    tell(run);
                    Some(page)
                }
                None => Some(page),
            };
        }
        run.into_iter().for_each(tell);
        Ok(())
    }
}

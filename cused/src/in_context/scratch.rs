//! Places in callers' memory where the arguments of led system calls lie.
//!
//! Below the stack pointer there is no safe place: a guard page or the stack of another coroutine
//! may follow. So a process that maps private memory gets one page mapped for this, at its
//! first such call, and keeps it. The page is told by a random mark at its start, which is
//! checked before every use: if the process has executed another program, or has put something
//! else there, the mark is not found and the process gets a new page. Only the process itself
//! could forge the mark, to have its own memory overwritten.

use std::collections::HashMap;

use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::caller::Tid;

/// Bytes of a page, on every architecture at least.
pub(super) const PAGE: u64 = 4096;
/// Bytes of one slot.
pub(super) const SLOT: u64 = 512;
/// Bytes of the mark.
const MARK: usize = 32;
/// One slot of a page less: the first holds the mark.
const SLOTS: u32 = (PAGE / SLOT) as u32 - 1;
/// How many processes' pages are remembered.
const PROCESSES: usize = 1024;

/// The scratch pages of all callers.
#[derive(Debug)]
pub struct Scratches {
    mark: [u8; MARK],
    pages: Mutex<HashMap<u32, Vec<Page>>>,
}

/// A page in one process.
#[derive(Debug)]
struct Page {
    address: u64,
    /// Bitmap of slots in use.
    used: u32,
}

/// A slot that one led thread uses.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    scratches: &'a Scratches,
    process: u32,
    page: u64,
    index: u32,
}

impl Scratches {
    /// None yet. The mark is good for as long as this daemon runs.
    pub fn new() -> rustix::io::Result<Self> {
        let mut mark = [0; MARK];
        getrandom(&mut mark, GetRandomFlags::empty())?;
        Ok(Self { mark, pages: Mutex::default() })
    }

    /// A free slot in a page that `process` still has, of which `tid` is a stopped thread. None:
    /// [`adopt`](Self::adopt) a new page.
    pub(super) fn claim(&self, process: u32, tid: Tid) -> Option<Slot<'_>> {
        let mut pages = self.pages.lock();
        let own = pages.get_mut(&process)?;
        let free = own.iter().position(|page| page.used.count_ones() < SLOTS)?;
        if !self.is_marked(tid, own[free].address) {
            // Those that are in use are looked at again when they are not.
            own.retain(|page| page.used != 0);
            return None;
        }
        let page = &mut own[free];
        let index = page.used.trailing_ones();
        page.used |= 1 << index;
        Some(Slot { scratches: self, process, page: page.address, index })
    }

    /// Takes a page in that was just mapped in `process`, and its first slot.
    pub(super) fn adopt(&self, process: u32, tid: Tid, address: u64) -> Option<Slot<'_>> {
        tid.write(address, &self.mark).ok()?;
        let mut pages = self.pages.lock();
        if pages.len() >= PROCESSES {
            // Somebody who was forgotten gets another page at the next call.
            let idle = |page: &Page| page.used == 0;
            let forget = pages.iter().find(|(_, own)| own.iter().all(idle)).map(|(&id, _)| id);
            forget.and_then(|id| pages.remove(&id));
        }
        pages.entry(process).or_default().push(Page { address, used: 1 });
        Some(Slot { scratches: self, process, page: address, index: 0 })
    }

    fn is_marked(&self, tid: Tid, address: u64) -> bool {
        let mut found = [0; MARK];
        tid.read(address, &mut found) == Ok(MARK) && found == self.mark
    }
}

impl Slot<'_> {
    /// Where the slot begins in the caller.
    pub(super) fn address(&self) -> u64 {
        self.page + SLOT * u64::from(self.index + 1)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut pages = self.scratches.pages.lock();
        let own = pages.get_mut(&self.process).into_iter().flatten();
        if let Some(page) = own.into_iter().find(|page| page.address == self.page) {
            page.used &= !(1 << self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this_thread() -> Tid {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        Tid::new(tid).expect("a thread")
    }

    fn page() -> Vec<u8> {
        vec![0; PAGE as usize]
    }

    fn address(page: &[u8]) -> u64 {
        page.as_ptr().addr() as u64
    }

    #[test]
    fn slots_of_a_page_are_apart_and_behind_the_mark() {
        let (scratches, tid, page) = (Scratches::new().expect("random"), this_thread(), page());
        let first = scratches.adopt(1, tid, address(&page)).expect("a slot");
        let mut slots = vec![first];
        slots.extend(std::iter::from_fn(|| scratches.claim(1, tid)));
        let mut places: Vec<_> = slots.iter().map(|slot| slot.address() - address(&page)).collect();
        places.sort_unstable();
        assert_eq!(places, [512, 1024, 1536, 2048, 2560, 3072, 3584]);
        slots.remove(3);
        assert!(scratches.claim(1, tid).is_some());
        assert!(scratches.claim(2, tid).is_none(), "another process has a page of its own");
    }

    #[test]
    fn a_page_that_has_lost_its_mark_is_not_used_again() {
        let (scratches, tid, mut page) = (Scratches::new().expect("random"), this_thread(), page());
        drop(scratches.adopt(1, tid, address(&page)).expect("a slot"));
        assert!(scratches.claim(1, tid).is_some());
        page[5] ^= 1;
        assert!(scratches.claim(1, tid).is_none());
    }
}

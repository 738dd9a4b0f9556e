//! Reads that wait for something to happen, and occupy no thread while they do.
//!
//! Owns which requests those are, and that each gets one answer: whoever takes a request out of the
//! lot answers it. That is the node when it has data, and this crate when the caller gets a signal
//! or serving ends.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;

use crate::answer::Link;

/// All reads that are parked.
#[derive(Debug)]
pub(crate) struct Lot {
    link: Arc<Link>,
    /// Most reads of one handle.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The handle of each request.
    handles: HashMap<u64, u64>,
    closed: bool,
}

impl Lot {
    pub(crate) fn new(link: Arc<Link>, limit: usize) -> Self {
        Self { link, limit, state: Mutex::default() }
    }

    pub(crate) fn park(
        self: &Arc<Self>,
        handle: u64,
        unique: u64,
        size: usize,
    ) -> Result<Parked, Errno> {
        let mut state = self.lock();
        if state.closed {
            return Err(Errno::INTR);
        }
        if state.handles.values().filter(|&&other| other == handle).count() >= self.limit {
            return Err(Errno::BUSY);
        }
        state.handles.insert(unique, handle);
        Ok(Parked { lot: Arc::downgrade(self), unique, size })
    }

    /// Takes a request out, to answer it. False if it is not there (any more).
    pub(crate) fn take(&self, unique: u64) -> bool {
        self.lock().handles.remove(&unique).is_some()
    }

    /// The caller of `unique` has got a signal. False if the request is not parked.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        let taken = self.take(unique);
        if taken {
            let _ = self.link.error(unique, Errno::INTR);
        }
        taken
    }

    /// Serving ends: lets all callers go, and parks nothing any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let parked = std::mem::take(&mut state.handles);
        drop(state);
        for unique in parked.into_keys() {
            let _ = self.link.error(unique, Errno::INTR);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the request of one handler can be parked.
#[derive(Debug)]
pub(crate) struct Parking<'a> {
    lot: &'a Arc<Lot>,
    is_used: Cell<bool>,
}

impl<'a> Parking<'a> {
    pub(crate) fn new(lot: &'a Arc<Lot>) -> Self {
        Self { lot, is_used: Cell::new(false) }
    }

    pub(crate) fn park(&self, handle: u64, unique: u64, size: usize) -> Result<Parked, Errno> {
        let parked = self.lot.park(handle, unique, size)?;
        self.is_used.set(true);
        Ok(parked)
    }

    /// Whether the handler's own answer is the first.
    pub(crate) fn take_back(&self, unique: u64) -> bool {
        !self.is_used.get() || self.lot.take(unique)
    }
}

/// A read(2) that was put aside with [`Read::park`](crate::Read::park), to be answered by any
/// thread at any time.
///
/// When its caller gets a signal, or serving ends, the caller gets EINTR, and an answer comes too
/// late. Dropped without an answer, it is answered EIO.
#[derive(Debug)]
pub struct Parked {
    lot: Weak<Lot>,
    unique: u64,
    size: usize,
}

impl Parked {
    /// The most bytes that it takes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether its caller still waits. If not, it can be dropped; a node that keeps many should
    /// look now and then, for it is not told.
    pub fn is_waiting(&self) -> bool {
        let lot = self.lot.upgrade();
        lot.is_some_and(|lot| lot.lock().handles.contains_key(&self.unique))
    }

    /// Answers it. On an error the data has reached nobody.
    ///
    /// Errors: ENOENT if its caller does not wait any more, EINVAL if the data is longer than
    /// [`Parked::size`], ENODEV if serving has ended.
    pub fn answer(self, data: &[u8]) -> Result<(), Errno> {
        if data.len() > self.size {
            return Err(Errno::INVAL);
        }
        let lot = self.lot.upgrade().ok_or(Errno::NODEV)?;
        match lot.take(self.unique) {
            true => lot.link.data(self.unique, data),
            false => Err(Errno::NOENT),
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(lot) = self.lot.upgrade()
            && lot.take(self.unique)
        {
            let _ = lot.link.error(self.unique, Errno::IO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// A lot that takes two reads of a handle, and what it answers.
    fn lot() -> (Arc<Lot>, OwnedFd) {
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
        (Arc::new(Lot::new(Arc::new(Link::new(writer)), 2)), reader)
    }

    /// The error and the request of each answer so far; none has data.
    fn answers(reader: &OwnedFd) -> Vec<(i32, u64)> {
        let mut bytes = [0; 256];
        let count = rustix::io::read(reader, &mut bytes[..]).unwrap_or(0);
        let number = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().expect("4 bytes"));
        let answer = |bytes: &[u8]| (number(&bytes[4..8]), number(&bytes[8..12]) as u64);
        bytes[..count].chunks_exact(16).map(answer).collect()
    }

    const INTR: i32 = -Errno::INTR.raw_os_error();

    #[test]
    fn an_answer_reaches_its_request_once() {
        let (lot, reader) = lot();
        let parked = lot.park(1, 4, 10).unwrap();
        assert!(parked.is_waiting());
        assert_eq!(parked.answer(&[]), Ok(()));
        assert!(!lot.interrupt(4));
        assert_eq!(answers(&reader), [(0, 4)]);
    }

    #[test]
    fn an_interrupted_read_is_answered_by_nobody_else() {
        let (lot, reader) = lot();
        let parked = lot.park(1, 4, 10).unwrap();
        assert!(lot.interrupt(4));
        assert!(!parked.is_waiting());
        assert_eq!(parked.answer(&[]), Err(Errno::NOENT));
        assert_eq!(answers(&reader), [(INTR, 4)]);
    }

    #[test]
    fn a_read_that_is_dropped_is_answered_all_the_same() {
        let (lot, reader) = lot();
        drop(lot.park(1, 4, 10).unwrap());
        let parked = lot.park(1, 6, 10).unwrap();
        assert_eq!(parked.answer(&[0; 11]), Err(Errno::INVAL));
        let io = -Errno::IO.raw_os_error();
        assert_eq!(answers(&reader), [(io, 4), (io, 6)]);
    }

    #[test]
    fn the_limit_is_of_each_handle_and_of_those_that_wait() {
        let (lot, _reader) = lot();
        let first = lot.park(1, 4, 10).unwrap();
        let _second = lot.park(1, 6, 10).unwrap();
        assert_eq!(lot.park(1, 8, 10).unwrap_err(), Errno::BUSY);
        assert!(lot.park(2, 10, 10).is_ok());
        drop(first);
        assert!(lot.park(1, 12, 10).is_ok());
    }

    #[test]
    fn a_closed_lot_has_let_everybody_go_and_takes_nobody() {
        let (lot, reader) = lot();
        let parked = lot.park(1, 4, 10).unwrap();
        lot.close();
        assert!(!parked.is_waiting());
        assert_eq!(lot.park(1, 6, 10).unwrap_err(), Errno::INTR);
        drop(parked);
        assert_eq!(answers(&reader), [(INTR, 4)]);
    }
}

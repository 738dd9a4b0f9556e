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
use crate::ledger::Ledger;

/// All reads that are parked.
#[derive(Debug)]
pub(crate) struct Lot {
    link: Arc<Link>,
    /// Where they are noted for a successor.
    ledger: Arc<Ledger>,
    /// Most reads of one handle.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The requests.
    parked: HashMap<u64, Spot>,
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Spot {
    handle: u64,
    /// Where the request is noted.
    place: usize,
}

/// A request that was taken out of the lot. Dropped once it has been answered.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    ledger: &'a Ledger,
    place: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.ledger.unpark(self.place);
    }
}

impl Lot {
    pub(crate) fn new(link: Arc<Link>, ledger: Arc<Ledger>, limit: usize) -> Self {
        Self { link, ledger, limit, state: Mutex::default() }
    }

    /// Parks a read of `handle`, the request `unique`, whose message is `message`.
    pub(crate) fn park(
        self: &Arc<Self>,
        handle: u64,
        (unique, message): (u64, &[u8]),
        size: usize,
    ) -> Result<Parked, Errno> {
        let mut state = self.lock();
        if state.closed {
            return Err(Errno::INTR);
        }
        if state.parked.values().filter(|spot| spot.handle == handle).count() >= self.limit {
            return Err(Errno::BUSY);
        }
        let place = self.ledger.park(unique, message)?;
        state.parked.insert(unique, Spot { handle, place });
        Ok(Parked { lot: Arc::downgrade(self), unique, size })
    }

    /// Takes a request out, to answer it. `None` if it is not there (any more).
    pub(crate) fn take(&self, unique: u64) -> Option<Taken<'_>> {
        let spot = self.lock().parked.remove(&unique)?;
        Some(Taken { ledger: &self.ledger, place: spot.place })
    }

    /// The caller of `unique` has got a signal. False if the request is not parked.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        let taken = self.take(unique);
        if taken.is_some() {
            let _ = self.link.error(unique, Errno::INTR);
        }
        taken.is_some()
    }

    /// Serving ends: lets all callers go, and parks nothing any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        for (unique, spot) in parked {
            let _ = self.link.error(unique, Errno::INTR);
            self.ledger.unpark(spot.place);
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
    message: &'a [u8],
    is_used: Cell<bool>,
}

impl<'a> Parking<'a> {
    /// For the request whose message is `message`.
    pub(crate) fn new(lot: &'a Arc<Lot>, message: &'a [u8]) -> Self {
        Self { lot, message, is_used: Cell::new(false) }
    }

    pub(crate) fn park(&self, handle: u64, unique: u64, size: usize) -> Result<Parked, Errno> {
        let parked = self.lot.park(handle, (unique, self.message), size)?;
        self.is_used.set(true);
        Ok(parked)
    }

    /// Whether the handler's own answer is the first; it is noted no more.
    pub(crate) fn take_back(&self, unique: u64) -> bool {
        !self.is_used.get() || self.lot.take(unique).is_some()
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
        lot.is_some_and(|lot| lot.lock().parked.contains_key(&self.unique))
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
        let _taken = lot.take(self.unique).ok_or(Errno::NOENT)?;
        lot.link.data(self.unique, data)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(lot) = self.lot.upgrade()
            && let Some(_taken) = lot.take(self.unique)
        {
            let _ = lot.link.error(self.unique, Errno::IO);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::ledger::{Identity, Kind};
    use crate::slots::Region;

    /// A lot that takes two reads of a handle, and what it answers.
    fn lot() -> (Arc<Lot>, OwnedFd) {
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).expect("a pipe");
        let region = Arc::new(Region::new(2).expect("memory"));
        let node = Identity { kind: Kind::Cuse, node: "/dev/none".into() };
        let ledger = Arc::new(Ledger::new(region, &node).expect("a short path"));
        (Arc::new(Lot::new(Arc::new(Link::new(writer)), ledger, 2)), reader)
    }

    fn park(lot: &Arc<Lot>, handle: u64, unique: u64) -> Result<Parked, Errno> {
        lot.park(handle, (unique, b"message"), 10)
    }

    /// What a successor would find.
    fn noted(lot: &Lot) -> Vec<u64> {
        lot.ledger.parked().into_iter().map(|(_, unique, _)| unique).collect()
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
        let parked = park(&lot, 1, 4).unwrap();
        assert!(parked.is_waiting());
        assert_eq!(noted(&lot), [4]);
        assert_eq!(parked.answer(&[]), Ok(()));
        assert_eq!(noted(&lot), []);
        assert!(!lot.interrupt(4));
        assert_eq!(answers(&reader), [(0, 4)]);
    }

    #[test]
    fn an_interrupted_read_is_answered_by_nobody_else() {
        let (lot, reader) = lot();
        let parked = park(&lot, 1, 4).unwrap();
        assert!(lot.interrupt(4));
        assert!(!parked.is_waiting());
        assert_eq!(parked.answer(&[]), Err(Errno::NOENT));
        assert_eq!(answers(&reader), [(INTR, 4)]);
    }

    #[test]
    fn a_read_that_is_dropped_is_answered_all_the_same() {
        let (lot, reader) = lot();
        drop(park(&lot, 1, 4).unwrap());
        let parked = park(&lot, 1, 6).unwrap();
        assert_eq!(parked.answer(&[0; 11]), Err(Errno::INVAL));
        let io = -Errno::IO.raw_os_error();
        assert_eq!(answers(&reader), [(io, 4), (io, 6)]);
    }

    #[test]
    fn the_limit_is_of_each_handle_and_of_those_that_wait() {
        let (lot, _reader) = lot();
        let first = park(&lot, 1, 4).unwrap();
        let _second = park(&lot, 1, 6).unwrap();
        assert_eq!(park(&lot, 1, 8).unwrap_err(), Errno::BUSY);
        assert!(park(&lot, 2, 10).is_ok());
        drop(first);
        assert!(park(&lot, 1, 12).is_ok());
    }

    #[test]
    fn a_closed_lot_has_let_everybody_go_and_takes_nobody() {
        let (lot, reader) = lot();
        let parked = park(&lot, 1, 4).unwrap();
        lot.close();
        assert!(!parked.is_waiting());
        assert_eq!(park(&lot, 1, 6).unwrap_err(), Errno::INTR);
        assert_eq!(noted(&lot), []);
        drop(parked);
        assert_eq!(answers(&reader), [(INTR, 4)]);
    }
}

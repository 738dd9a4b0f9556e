//! Faults of an open's devices: told to whoever reads the node, polls it or has named an eventfd,
//! and answered by IOASID_COMPLETE_FAULT.
//!
//! [`queue`] is what there is to tell. Here is who is told: a read that finds nothing is parked,
//! so that it occupies no thread of the daemon, and whoever brings the next record answers it.

pub mod eventfd;
pub mod queue;

use std::collections::VecDeque;

use cuse_channel::{Notifier, Parked, PollHandle, Read, ReadReply};
use ioasid::{DeviceId, Ioasid};
use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;

use self::eventfd::Eventfd;
use self::queue::{Access, Fault, Queue, Response};
use crate::failure::Failure;

/// The faults of one open. Its lock comes after that of the open's state.
#[derive(Debug)]
pub struct Faults {
    inner: Mutex<Inner>,
    notifier: Notifier,
}

#[derive(Debug, Default)]
struct Inner {
    queue: Queue,
    /// Those who wait in read. There are none while there is something to read.
    readers: VecDeque<Parked>,
    /// Who sleeps in poll.
    sleeper: Option<PollHandle>,
    eventfd: Option<Eventfd>,
}

impl Faults {
    /// No faults yet. Who sleeps in poll is woken through `notifier`.
    pub fn new(notifier: Notifier) -> Self {
        Self { inner: Mutex::default(), notifier }
    }

    /// One read of the node.
    pub fn read(&self, request: &Read<'_>) -> ReadReply {
        let mut inner = self.inner.lock();
        let Some(records) = inner.queue.peek(request.size) else {
            return ReadReply::Error(Errno::INVAL);
        };
        if !records.is_empty() {
            inner.queue.advance(records.len());
            return ReadReply::Data(records);
        }
        if request.nonblock {
            return ReadReply::Error(Errno::AGAIN);
        }
        match request.park() {
            Ok(parked) => {
                // Nobody tells of those that a signal has ended.
                inner.readers.retain(Parked::is_waiting);
                inner.readers.push_back(parked);
                ReadReply::Elsewhere
            }
            Err(errno) => ReadReply::Error(errno),
        }
    }

    /// Which of `events` hold; `sleeper` will be woken when that changes.
    pub fn poll(&self, events: u32, sleeper: Option<PollHandle>) -> u32 {
        let mut inner = self.inner.lock();
        if sleeper.is_some() {
            inner.sleeper = sleeper;
        }
        let readable = PollFlags::IN | PollFlags::RDNORM;
        if inner.queue.is_empty() { 0 } else { events & u32::from(readable.bits()) }
    }

    /// Has an eventfd signalled for every new record from now on, or none.
    pub fn announce_to(&self, eventfd: Option<Eventfd>) {
        let before = std::mem::replace(&mut self.inner.lock().eventfd, eventfd);
        drop(before);
    }

    /// DMA has failed.
    pub fn report(&self, fault: Fault) {
        let mut inner = self.inner.lock();
        if inner.queue.report(fault) {
            inner.announce(&self.notifier);
        }
    }

    /// A device waits at a fault. Gives the id by which it can be completed; None if the access
    /// fails because too much waits already.
    pub fn ask(&self, fault: Fault) -> Option<u32> {
        let mut inner = self.inner.lock();
        let id = inner.queue.ask(fault)?;
        inner.announce(&self.notifier);
        Some(id)
    }

    /// Faults have happened of which nothing else is known.
    pub fn count_lost(&self, faults: u32) {
        self.inner.lock().queue.count_lost(faults);
    }

    /// See [`Queue::complete`].
    ///
    /// # Errors
    /// As there.
    pub fn complete(&self, id: u32, response: u32) -> Result<(), Failure> {
        self.inner.lock().queue.complete(id, response)
    }

    /// See [`Queue::response`].
    ///
    /// # Errors
    /// As there.
    pub fn response(&self, id: u32, device: DeviceId, access: Access) -> Result<Response, Failure> {
        self.inner.lock().queue.response(id, device, access)
    }

    /// See [`Queue::resume`].
    ///
    /// # Errors
    /// As there.
    pub fn resume(&self, id: u32, device: DeviceId, access: Access) -> Result<Response, Failure> {
        self.inner.lock().queue.resume(id, device, access)
    }

    /// See [`Queue::detached`].
    pub fn detached(&self, device: DeviceId, ioasid: Ioasid, with: impl Fn(Option<u32>) -> bool) {
        self.inner.lock().queue.detached(device, ioasid, with);
    }

    /// See [`Queue::unbound`].
    pub fn unbound(&self, device: DeviceId) {
        self.inner.lock().queue.unbound(device);
    }
}

impl Inner {
    /// There is a new record.
    fn announce(&mut self, notifier: &Notifier) {
        // Whatever becomes of it is the program's own affair.
        let _ = self.eventfd.as_ref().map(Eventfd::signal);
        while !self.queue.is_empty()
            && let Some(reader) = self.readers.pop_front()
        {
            let records = self.queue.peek(reader.size()).unwrap_or_default();
            // One that a signal has ended leaves them to the next.
            if reader.answer(&records).is_ok() {
                self.queue.advance(records.len());
            }
        }
        if !self.queue.is_empty()
            && let Some(sleeper) = self.sleeper.take()
        {
            // It fails when serving has ended, and then nobody sleeps.
            let _ = notifier.wake(sleeper);
        }
    }
}

#[cfg(test)]
mod tests {
    use cuse_channel::Interrupt;
    use ioasid::Cookie;
    use ioasid_uapi as uapi;

    use self::queue::Reason;
    use super::*;

    const FAULT: Fault = Fault {
        device: DeviceId(1),
        cookie: Cookie(0),
        ioasid: None,
        access: Access { address: 0, write: false, pasid: None },
        reason: Reason::Unknown,
        best_effort: false,
    };
    const SIZE: usize = size_of::<uapi::Fault>();
    const IN: u32 = 0x001;
    const OUT: u32 = 0x004;

    fn faults() -> Faults {
        Faults::new(Notifier::detached())
    }

    fn read(faults: &Faults, size: usize) -> ReadReply {
        faults.read(&Read::detached(size, true, &Interrupt::new()))
    }

    #[test]
    fn a_read_gives_records_or_says_why_not() {
        let faults = faults();
        assert_eq!(read(&faults, SIZE), ReadReply::Error(Errno::AGAIN));
        faults.report(FAULT);
        assert_eq!(read(&faults, SIZE - 1), ReadReply::Error(Errno::INVAL));
        assert!(matches!(read(&faults, 4096), ReadReply::Data(data) if data.len() == SIZE));
        assert_eq!(read(&faults, SIZE - 1), ReadReply::Error(Errno::INVAL));
        assert_eq!(read(&faults, SIZE), ReadReply::Error(Errno::AGAIN));
    }

    #[test]
    fn poll_says_in_while_there_is_a_record_and_never_out() {
        let faults = faults();
        assert_eq!(faults.poll(IN | OUT, None), 0);
        faults.count_lost(1);
        assert_eq!(faults.poll(IN | OUT, None), 0, "there is nothing to read");
        let id = faults.ask(FAULT).expect("room");
        assert_eq!(faults.poll(IN | OUT, None), IN);
        assert_eq!(faults.poll(OUT, None), 0);
        faults.complete(id, 0).expect("it waits");
        assert_eq!(faults.poll(IN | OUT, None), 0);
    }
}

//! The faults of one open, as data: records that nobody has read yet, and devices that wait for
//! an answer. The rules are those of the section "Faults" in ioasid.h.

use std::collections::{BTreeMap, VecDeque};

use ioasid::{Cookie, DeviceId, Ioasid};
use ioasid_uapi as uapi;
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use crate::failure::Failure;

/// How many records are kept that have not been read, and how many devices may wait.
const KEPT: usize = uapi::FAULTS_MAX as usize;

/// Why DMA was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Nobody has said.
    Unknown = uapi::FAULT_REASON_UNKNOWN,
    /// Nothing is mapped there.
    NotMapped = uapi::FAULT_REASON_NOT_MAPPED,
    /// It is mapped, but not for this direction.
    Permission = uapi::FAULT_REASON_PERMISSION,
    /// The memory behind the mapping is gone.
    Memory = uapi::FAULT_REASON_MEMORY,
}

/// What a device wanted to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The IOVA.
    pub address: u64,
    /// To write there; otherwise to read.
    pub write: bool,
    /// What the DMA was tagged with.
    pub pasid: Option<u32>,
}

/// DMA that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose.
    pub device: DeviceId,
    /// What it was bound with.
    pub cookie: Cookie,
    /// What translates for it, if anything does.
    pub ioasid: Option<Ioasid>,
    /// Where.
    pub access: Access,
    /// Why.
    pub reason: Reason,
    /// It is known only because the kernel's log told of it.
    pub best_effort: bool,
}

/// How a recoverable fault was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The device tries once more, for good.
    Success,
    /// The device tries once more, and may report anew.
    Retry,
    /// The access fails.
    Fail,
}

impl Response {
    fn new(number: u32) -> Option<Self> {
        Some(match number {
            uapi::RESPONSE_SUCCESS => Self::Success,
            uapi::RESPONSE_RETRY => Self::Retry,
            uapi::RESPONSE_FAIL => Self::Fail,
            _ => return None,
        })
    }
}

/// The faults of one open.
#[derive(Debug, Default)]
pub struct Queue {
    /// What has not been read: the fault, and the id by which it can be completed or 0.
    records: VecDeque<(Fault, u32)>,
    /// Devices that wait for an answer, or have one and have not gone on yet, by id.
    waiting: BTreeMap<u32, Waiting>,
    last_id: u32,
    lost: u32,
}

#[derive(Debug)]
struct Waiting {
    fault: Fault,
    response: Option<Response>,
}

impl Queue {
    /// Whether there is anything to read.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// DMA has failed. False if the record is lost.
    pub fn report(&mut self, fault: Fault) -> bool {
        let has_room = self.records.len() < KEPT;
        match has_room {
            true => self.records.push_back((fault, 0)),
            false => self.count_lost(1),
        }
        has_room
    }

    /// A device waits at a fault. Gives the id by which it can be completed; None if there are too
    /// many already, so that the access fails.
    pub fn ask(&mut self, fault: Fault) -> Option<u32> {
        if self.records.len() >= KEPT || !self.make_room() {
            self.count_lost(1);
            return None;
        }
        let id = self.new_id();
        self.waiting.insert(id, Waiting { fault, response: None });
        self.records.push_back((fault, id));
        Some(id)
    }

    /// Faults have happened of which nothing else is known.
    pub fn count_lost(&mut self, faults: u32) {
        self.lost = self.lost.saturating_add(faults);
    }

    /// Room for one more device that waits. The oldest that was answered and has not gone on makes
    /// it if need be: whoever drives it seems to have forgotten it.
    fn make_room(&mut self) -> bool {
        if self.waiting.len() < KEPT {
            return true;
        }
        let answered = self.waiting.iter().find(|(_, waiting)| waiting.response.is_some());
        let answered = answered.map(|(&id, _)| id);
        answered.and_then(|id| self.waiting.remove(&id)).is_some()
    }

    /// The next number, so that none is used again before all others have been.
    fn new_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.waiting.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// What a read with `room` bytes gives, to be taken off with [`advance`](Self::advance) once
    /// it has reached the reader. None if there is no room for a record.
    pub fn peek(&self, room: usize) -> Option<Vec<u8>> {
        let count = room / size_of::<uapi::Fault>();
        let mut lost = self.lost;
        let records = self.records.iter().take(count);
        let bytes = records.flat_map(|(fault, id)| {
            record(fault, *id, std::mem::take(&mut lost)).as_bytes().to_vec()
        });
        (count > 0).then(|| bytes.collect())
    }

    /// That many bytes of [`peek`](Self::peek) have been read.
    pub fn advance(&mut self, bytes: usize) {
        let count = bytes / size_of::<uapi::Fault>();
        self.records.drain(..count);
        if count > 0 {
            self.lost = 0;
        }
    }

    /// Answers a fault. If nobody has read of it, nobody will.
    ///
    /// # Errors
    /// ENOENT if no device waits with this id, EINVAL if there is no such response.
    pub fn complete(&mut self, id: u32, response: u32) -> Result<(), Failure> {
        let waiting = self.waiting.get_mut(&id).filter(|waiting| waiting.response.is_none());
        let waiting = waiting.ok_or_else(|| {
            Failure::new(
                Errno::NOENT,
                format!(
                    "no fault {id} waits for an answer: it was completed, or its device was detached"
                ),
            )
        })?;
        let response = Response::new(response).ok_or_else(|| {
            Failure::invalid(format!("response is {response}, and none of IOASID_RESPONSE_*"))
        })?;
        waiting.response = Some(response);
        self.records.retain(|&(_, other)| other != id);
        Ok(())
    }

    /// How fault `id` of a device was completed, which wants to go on with `access`.
    ///
    /// # Errors
    /// ENOENT if the device does not wait with this id, EINVAL if it waits with another access,
    /// EAGAIN if the fault is not completed yet.
    pub fn response(&self, id: u32, device: DeviceId, access: Access) -> Result<Response, Failure> {
        let waiting = self.waiting.get(&id).filter(|waiting| waiting.fault.device == device);
        let waiting = waiting.ok_or_else(|| {
            let sentence = format!("device {device} does not wait with fault {id}");
            Failure::new(Errno::NOENT, sentence)
        })?;
        let stopped = waiting.fault.access;
        if stopped != access {
            let direction = if stopped.write { "writing" } else { "reading" };
            let pasid = stopped.pasid.map_or(String::new(), |pasid| format!(" with PASID {pasid}"));
            return Err(Failure::invalid(format!(
                "with fault {id} the device waits {direction} at IOVA {:#x}{pasid}: go on there, likewise",
                stopped.address
            )));
        }
        waiting.response.ok_or_else(|| {
            let sentence = format!("fault {id} is not completed yet (IOASID_COMPLETE_FAULT)");
            Failure::new(Errno::AGAIN, sentence)
        })
    }

    /// The same, and the device goes on: it waits no more.
    ///
    /// # Errors
    /// As for [`response`](Self::response); the device then waits as before.
    pub fn resume(
        &mut self,
        id: u32,
        device: DeviceId,
        access: Access,
    ) -> Result<Response, Failure> {
        let response = self.response(id, device, access)?;
        self.waiting.remove(&id);
        Ok(response)
    }

    /// A device was detached from `ioasid`, with some of its PASIDs or the DMA that has none: its
    /// faults there have failed.
    pub fn detached(
        &mut self,
        device: DeviceId,
        ioasid: Ioasid,
        with: impl Fn(Option<u32>) -> bool,
    ) {
        let place = (device, Some(ioasid));
        self.fail(|fault| (fault.device, fault.ioasid) == place && with(fault.access.pasid));
    }

    /// A device was unbound: nothing is heard of it any more.
    pub fn unbound(&mut self, device: DeviceId) {
        self.waiting.retain(|_, waiting| waiting.fault.device != device);
        self.records.retain(|(fault, id)| *id == 0 || fault.device != device);
    }

    fn fail(&mut self, concerned: impl Fn(&Fault) -> bool) {
        for waiting in self.waiting.values_mut() {
            if concerned(&waiting.fault) {
                waiting.response.get_or_insert(Response::Fail);
            }
        }
        self.records.retain(|(fault, id)| *id == 0 || !concerned(fault));
    }
}

fn record(fault: &Fault, id: u32, lost: u32) -> uapi::Fault {
    let Access { address, write, pasid } = fault.access;
    let mut flags = if write { uapi::FAULT_WRITE } else { uapi::FAULT_READ };
    for (flag, is_set) in [
        (uapi::FAULT_RECOVERABLE, id != 0),
        (uapi::FAULT_BEST_EFFORT, fault.best_effort),
        (uapi::FAULT_PASID, pasid.is_some()),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    uapi::Fault {
        flags,
        ioasid: fault.ioasid.map_or(0, Ioasid::get),
        address,
        cookie: fault.cookie.0,
        device: fault.device.0,
        reason: fault.reason as u32,
        id,
        pasid: pasid.unwrap_or(0),
        lost,
        reserved: 0,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes as _;

    use super::*;

    const SIZE: usize = size_of::<uapi::Fault>();
    const DEVICE: DeviceId = DeviceId(3);
    const OTHER: DeviceId = DeviceId(4);

    fn space(number: u32) -> Ioasid {
        number.try_into().expect("an IOASID")
    }

    fn access(address: u64) -> Access {
        Access { address, write: true, pasid: None }
    }

    fn fault_of(device: DeviceId, address: u64) -> Fault {
        Fault {
            device,
            cookie: Cookie(77),
            ioasid: Some(space(1)),
            access: access(address),
            reason: Reason::NotMapped,
            best_effort: false,
        }
    }

    fn fault(address: u64) -> Fault {
        fault_of(DEVICE, address)
    }

    /// Reads up to `count` records.
    fn read(queue: &mut Queue, count: usize) -> Vec<uapi::Fault> {
        let bytes = queue.peek(count * SIZE).expect("room for a record");
        queue.advance(bytes.len());
        let read = |record| uapi::Fault::read_from_bytes(record).expect("the size of a record");
        bytes.chunks_exact(SIZE).map(read).collect()
    }

    fn ids(records: &[uapi::Fault]) -> Vec<u32> {
        records.iter().map(|record| record.id).collect()
    }

    fn errno<T: std::fmt::Debug>(result: Result<T, Failure>) -> Errno {
        result.expect_err("a refusal").errno
    }

    #[test]
    fn a_record_tells_all_that_is_known() {
        let mut queue = Queue::default();
        queue.report(Fault { best_effort: true, ioasid: None, ..fault(0x1000) });
        let write = Access { address: 0x2000, write: false, pasid: Some(9) };
        queue.ask(Fault { access: write, reason: Reason::Permission, ..fault(0) });
        let expected = uapi::Fault {
            flags: uapi::FAULT_WRITE | uapi::FAULT_BEST_EFFORT,
            ioasid: 0,
            address: 0x1000,
            cookie: 77,
            device: 3,
            reason: uapi::FAULT_REASON_NOT_MAPPED,
            id: 0,
            pasid: 0,
            lost: 0,
            reserved: 0,
        };
        let waiting = uapi::Fault {
            flags: uapi::FAULT_READ | uapi::FAULT_RECOVERABLE | uapi::FAULT_PASID,
            ioasid: 1,
            address: 0x2000,
            reason: uapi::FAULT_REASON_PERMISSION,
            id: 1,
            pasid: 9,
            ..expected
        };
        assert_eq!(read(&mut queue, 2), [expected, waiting]);
    }

    #[test]
    fn reads_give_whole_records_in_order() {
        let mut queue = Queue::default();
        (0..5).for_each(|address| assert!(queue.report(fault(address))));
        assert_eq!(queue.peek(0), None);
        assert_eq!(queue.peek(SIZE - 1), None);
        assert_eq!(queue.peek(2 * SIZE - 1).map(|bytes| bytes.len()), Some(SIZE));
        let mut addresses = Vec::new();
        for count in [1, 3, 10] {
            addresses.extend(read(&mut queue, count).iter().map(|record| record.address));
        }
        assert_eq!(addresses, [0, 1, 2, 3, 4]);
        assert!(queue.is_empty());
        assert_eq!(queue.peek(SIZE), Some(Vec::new()));
    }

    #[test]
    fn what_did_not_reach_the_reader_is_still_there() {
        let mut queue = Queue::default();
        queue.report(fault(1));
        queue.count_lost(5);
        let once = queue.peek(SIZE);
        assert_eq!(queue.peek(SIZE), once);
        queue.advance(0);
        assert_eq!(queue.peek(SIZE), once);
    }

    #[test]
    fn each_response_is_what_the_device_goes_on_with() {
        let mut queue = Queue::default();
        for (number, response) in [
            (uapi::RESPONSE_SUCCESS, Response::Success),
            (uapi::RESPONSE_RETRY, Response::Retry),
            (uapi::RESPONSE_FAIL, Response::Fail),
        ] {
            let id = queue.ask(fault(1)).expect("room");
            assert_eq!(errno(queue.resume(id, DEVICE, access(1))), Errno::AGAIN);
            assert_eq!(queue.complete(id, number), Ok(()));
            assert_eq!(queue.resume(id, DEVICE, access(1)), Ok(response));
            assert_eq!(errno(queue.resume(id, DEVICE, access(1))), Errno::NOENT);
        }
    }

    #[test]
    fn a_fault_is_completed_once_and_with_a_known_response() {
        let mut queue = Queue::default();
        assert_eq!(errno(queue.complete(1, 0)), Errno::NOENT);
        let id = queue.ask(fault(1)).expect("room");
        assert_eq!(errno(queue.complete(0, 0)), Errno::NOENT);
        assert_eq!(errno(queue.complete(id, 3)), Errno::INVAL);
        assert_eq!(errno(queue.complete(id + 1, 3)), Errno::NOENT, "the id comes first");
        assert_eq!(queue.complete(id, uapi::RESPONSE_RETRY), Ok(()));
        assert_eq!(errno(queue.complete(id, uapi::RESPONSE_FAIL)), Errno::NOENT);
        assert_eq!(queue.response(id, DEVICE, access(1)), Ok(Response::Retry));
    }

    #[test]
    fn an_unrecoverable_fault_cannot_be_completed() {
        let mut queue = Queue::default();
        queue.report(fault(1));
        assert_eq!(ids(&read(&mut queue, 1)), [0]);
        assert_eq!(errno(queue.complete(0, 0)), Errno::NOENT);
    }

    #[test]
    fn a_device_goes_on_only_where_and_as_it_stopped() {
        let mut queue = Queue::default();
        let id = queue.ask(fault(0x1000)).expect("room");
        queue.complete(id, uapi::RESPONSE_SUCCESS).expect("it waits");
        let good = access(0x1000);
        for wrong in [
            Access { address: 0x1001, ..good },
            Access { write: false, ..good },
            Access { pasid: Some(0), ..good },
        ] {
            assert_eq!(errno(queue.resume(id, DEVICE, wrong)), Errno::INVAL);
        }
        assert_eq!(errno(queue.resume(id, OTHER, good)), Errno::NOENT);
        assert_eq!(queue.resume(id, DEVICE, good), Ok(Response::Success));
    }

    #[test]
    fn a_fault_completed_before_it_was_read_is_not_read() {
        let mut queue = Queue::default();
        let first = queue.ask(fault(1)).expect("room");
        let second = queue.ask(fault(2)).expect("room");
        queue.complete(first, uapi::RESPONSE_SUCCESS).expect("it waits");
        assert_eq!(ids(&read(&mut queue, 9)), [second]);
    }

    #[test]
    fn a_detach_fails_what_waits_there_and_nothing_else() {
        let mut queue = Queue::default();
        let read_before = queue.ask(fault(1)).expect("room");
        read(&mut queue, 1);
        let answered = queue.ask(fault(2)).expect("room");
        queue.complete(answered, uapi::RESPONSE_SUCCESS).expect("it waits");
        let unread = queue.ask(fault(3)).expect("room");
        queue.report(fault(4));
        let elsewhere = queue.ask(Fault { ioasid: Some(space(2)), ..fault(5) }).expect("room");
        let others = queue.ask(fault_of(OTHER, 6)).expect("room");
        queue.detached(DEVICE, space(1), |_| true);
        for id in [read_before, unread] {
            assert_eq!(errno(queue.complete(id, 0)), Errno::NOENT);
        }
        for (id, address, response) in [
            (read_before, 1, Response::Fail),
            (answered, 2, Response::Success),
            (unread, 3, Response::Fail),
        ] {
            assert_eq!(queue.resume(id, DEVICE, access(address)), Ok(response));
        }
        // What has failed for good, and what others wait for, is still told of.
        assert_eq!(ids(&read(&mut queue, 9)), [0, elsewhere, others]);
        assert_eq!(queue.complete(others, 0), Ok(()));
    }

    #[test]
    fn a_detach_of_one_pasid_leaves_the_others_waiting() {
        let mut queue = Queue::default();
        let with = |pasid| Fault { access: Access { pasid, ..access(1) }, ..fault(1) };
        let ids = [None, Some(1), Some(2)].map(|pasid| queue.ask(with(pasid)).expect("room"));
        queue.detached(DEVICE, space(1), |pasid| pasid == Some(1));
        let left = ids.map(|id| queue.complete(id, uapi::RESPONSE_SUCCESS).is_ok());
        assert_eq!(left, [true, false, true]);
    }

    #[test]
    fn an_unbound_device_waits_no_more() {
        let mut queue = Queue::default();
        let unattached = queue.ask(Fault { ioasid: None, ..fault(1) }).expect("room");
        queue.report(fault(2));
        let others = queue.ask(fault_of(OTHER, 3)).expect("room");
        queue.unbound(DEVICE);
        assert_eq!(errno(queue.complete(unattached, 0)), Errno::NOENT);
        assert_eq!(errno(queue.response(unattached, DEVICE, access(1))), Errno::NOENT);
        assert_eq!(ids(&read(&mut queue, 9)), [0, others]);
    }

    #[test]
    fn beyond_the_limit_faults_fail_and_are_counted() {
        let mut queue = Queue::default();
        (0..KEPT as u64).for_each(|address| assert!(queue.report(fault(address))));
        assert!(!queue.report(fault(1000)));
        assert_eq!(queue.ask(fault(1001)), None);
        let first = read(&mut queue, 1);
        assert_eq!((first[0].address, first[0].lost), (0, 2));
        // Told once; and there is room again.
        assert_eq!(read(&mut queue, 1)[0].lost, 0);
        assert!(queue.ask(fault(1002)).is_some());
        queue.count_lost(3);
        let rest = read(&mut queue, 1000);
        assert_eq!(rest.len(), KEPT - 1);
        assert_eq!(rest.iter().map(|record| record.lost).collect::<Vec<_>>()[..2], [3, 0]);
    }

    #[test]
    fn faults_that_are_read_and_never_completed_are_limited_too() {
        let mut queue = Queue::default();
        let mut waiting = Vec::new();
        for address in 0..KEPT as u64 {
            waiting.extend(queue.ask(fault(address)));
            read(&mut queue, 1);
        }
        assert_eq!(waiting.len(), KEPT);
        assert_eq!(queue.ask(fault(1000)), None);
        // One that was answered and not gone on with is forgotten for a new one.
        queue.complete(waiting[7], uapi::RESPONSE_SUCCESS).expect("it waits");
        assert!(queue.ask(fault(1000)).is_some());
        assert_eq!(errno(queue.response(waiting[7], DEVICE, access(7))), Errno::NOENT);
        assert_eq!(queue.ask(fault(1001)), None);
        assert_eq!(read(&mut queue, 1)[0].lost, 2);
    }

    #[test]
    fn the_count_of_the_lost_stays_at_its_end() {
        let mut queue = Queue::default();
        queue.count_lost(u32::MAX);
        queue.count_lost(2);
        queue.report(fault(1));
        assert_eq!(read(&mut queue, 1)[0].lost, u32::MAX);
    }

    #[test]
    fn ids_are_not_used_again_soon() {
        let mut queue = Queue::default();
        let kept = queue.ask(fault(1)).expect("room");
        let again = queue.ask(fault(2)).expect("room");
        queue.complete(again, uapi::RESPONSE_FAIL).expect("it waits");
        queue.resume(again, DEVICE, access(2)).expect("it is completed");
        assert!(queue.ask(fault(3)).is_some_and(|id| id != again && id != kept));
        // Around the end of all numbers: 0 is none, and one that waits keeps its own.
        queue.last_id = u32::MAX - 1;
        let ids: Vec<_> = (0..3).filter_map(|_| queue.ask(fault(4))).collect();
        assert_eq!(ids, [u32::MAX, again, again + 2]);
    }
}

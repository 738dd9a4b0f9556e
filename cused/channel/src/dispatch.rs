//! One request: from its bytes through the node to its answer.
//!
//! Owns which opcode means what, and that whatever happens there is exactly one answer to a request
//! that takes one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use crate::node::{
    Caller, Context, Interrupt, Ioctl, IoctlReply, Node, PollHandle, Read, ReadReply, Responder,
    WayOut,
};
use crate::parked::Parking;
use crate::pool::{Occupant, Shared};
use crate::request::{Operation, Request};
use crate::wire::{self, InHeader};

/// How an open file of the node behaves: no cache, no file position and, at close, no FLUSH; two
/// threads may read and write at once.
const OPEN_FLAGS: u32 = wire::FOPEN_DIRECT_IO
    | wire::FOPEN_NONSEEKABLE
    | wire::FOPEN_STREAM
    | wire::FOPEN_NOFLUSH
    | wire::FOPEN_PARALLEL_DIRECT_WRITES;

/// O_NONBLOCK, as open files have it in the flags of a request.
const NONBLOCK: u32 = rustix::fs::OFlags::NONBLOCK.bits();

const _: () = {
    assert!(size_of::<InHeader>() + size_of::<wire::ReadIn>() <= crate::ledger::PARKED_MESSAGE);
};

/// Runs code of the node; `None` if it panics.
pub(crate) fn guarded<T>(code: impl FnOnce() -> T) -> Option<T> {
    // What a panic may have left inconsistent is the node's own state; it is the node's choice to
    // share state that cannot take it (a std Mutex would be poisoned).
    catch_unwind(AssertUnwindSafe(code)).ok()
}

/// Handles the request in `bytes`, read by thread `index`.
pub(crate) fn handle(shared: &Shared, node: &impl Node, index: usize, bytes: &[u8]) {
    let request = match Request::decode(bytes) {
        Ok(request) => request,
        Err(malformed) => {
            if let Some(unique) = malformed.unique {
                let _ = shared.link.error(unique, Errno::INVAL);
            }
            return;
        }
    };
    let unique = request.header.unique;
    shared.worker(index).interrupt.begin(unique);
    let task = Task { shared, node, index, header: &request.header };
    match guarded(|| task.run(request.operation)) {
        Some(Ok(())) => {}
        // The request is gone, because the caller was let go otherwise, or the connection is.
        Some(Err(Errno::NOENT | Errno::NODEV)) => {}
        // The kernel did not like the answer, or there has been none. If it has answered by itself,
        // this one is refused with ENOENT and does no harm.
        Some(Err(_)) | None => {
            if crate::request::takes_answer(request.header.opcode) {
                let _ = shared.link.error(unique, Errno::IO);
            }
        }
    }
}

/// Tells the node that the caller of `unique` wants it to end, and sends the answer that the node
/// may have for this.
pub(crate) fn interrupted(shared: &Shared, node: &impl Node, unique: u64) {
    let _ = match guarded(|| node.interrupted(unique)).flatten() {
        Some(WayOut::Restart) if !shared.life.is_ending() => shared.link.ioctl_restart(unique),
        Some(WayOut::Restart) => shared.link.error(unique, Errno::INTR),
        Some(WayOut::Fail(errno)) => shared.link.error(unique, errno),
        None => Ok(()),
    };
}

/// One request being handled.
struct Task<'a, N> {
    shared: &'a Shared,
    node: &'a N,
    index: usize,
    header: &'a InHeader,
}

impl<N: Node> Task<'_, N> {
    /// Handles and answers. An error is that of answering: a failure of the operation is an answer.
    fn run(&self, operation: Operation<'_>) -> Result<(), Errno> {
        let (link, unique) = (&self.shared.link, self.header.unique);
        match operation {
            Operation::Ioctl(ioctl, data) => self.ioctl(&ioctl, data),
            Operation::Read(read) => self.read(&read),
            Operation::Write(write, data) => self.write(&write, data),
            Operation::Poll(poll) => self.poll(&poll),
            Operation::Open(open) => self.open(&open),
            Operation::Release(release) => self.release(release.fh),
            Operation::Interrupt(interrupt) => {
                let is_handled = self.shared.interrupt(interrupt.unique);
                // Asked afterwards: a read is parked before its slot is free for another request.
                let was_parked = self.shared.lot.interrupt(interrupt.unique);
                if is_handled && !was_parked {
                    interrupted(self.shared, self.node, interrupt.unique);
                }
                Ok(())
            }
            Operation::GetAttr => match &self.shared.attributes {
                Some(attributes) => link.structure(unique, &attributes.get()),
                None => link.error(unique, Errno::NOSYS),
            },
            Operation::SetAttr(change) => match &self.shared.attributes {
                Some(attributes) => match attributes.set(&change) {
                    Ok(now) => {
                        self.shared.ledger.note_owner(attributes.owner());
                        link.structure(unique, &now)
                    }
                    Err(errno) => link.error(unique, errno),
                },
                None => link.error(unique, Errno::NOSYS),
            },
            Operation::StatFs => {
                let nothing = wire::StatfsOut {
                    bsize: 4096,
                    frsize: 4096,
                    namelen: 255,
                    ..Default::default()
                };
                link.structure(unique, &nothing)
            }
            Operation::Nothing => link.ok(unique),
            Operation::Unanswered => Ok(()),
            // A second INIT makes no sense. Everything else (extended attributes, locks, seeking)
            // the kernel does without after one ENOSYS.
            Operation::Init(_) | Operation::CuseInit(_) => link.error(unique, Errno::PROTO),
            Operation::Unknown => link.error(unique, Errno::NOSYS),
        }
    }

    fn open(&self, open: &wire::OpenIn) -> Result<(), Errno> {
        let (link, unique) = (&self.shared.link, self.header.unique);
        let handle = match self.node.open(open.flags, &self.context()) {
            Ok(0) => return link.error(unique, Errno::IO),
            Ok(handle) => handle,
            Err(errno) => return link.error(unique, errno),
        };
        if let Err(errno) = self.shared.ledger.open(handle) {
            self.node.release(handle);
            return link.error(unique, errno);
        }
        let answer = wire::OpenOut { fh: handle, open_flags: OPEN_FLAGS, padding: 0 };
        let sent = link.structure(unique, &answer);
        if sent == Err(Errno::NOENT) {
            // The kernel does not know the handle and will not release it.
            self.close(handle);
        }
        sent
    }

    fn release(&self, handle: u64) -> Result<(), Errno> {
        self.close(handle);
        self.shared.link.ok(self.header.unique)
    }

    fn close(&self, handle: u64) {
        self.node.release(handle);
        self.shared.ledger.closed(handle);
    }

    fn ioctl(&self, ioctl: &wire::IoctlIn, input: &[u8]) -> Result<(), Errno> {
        let (link, unique) = (&self.shared.link, self.header.unique);
        let Some(admission) = self.admission(ioctl.fh, false) else {
            return link.error(unique, Errno::BUSY);
        };
        let output_size = ioctl.out_size as usize;
        let unrestricted = ioctl.flags & wire::IOCTL_UNRESTRICTED != 0;
        let responder = Responder::new(link, unique, output_size);
        let reply = self.node.ioctl(&Ioctl {
            fh: ioctl.fh,
            command: ioctl.cmd,
            arg: ioctl.arg,
            caller: self.caller(),
            compat: ioctl.flags & (wire::IOCTL_COMPAT | wire::IOCTL_32BIT) != 0,
            unrestricted,
            input,
            output_size,
            unique,
            interrupt: self.interrupt(),
            responder: &responder,
        });
        drop(admission);
        if responder.sent().is_some() {
            return Ok(());
        }
        match reply {
            IoctlReply::Done { output, .. } if output.len() > output_size => {
                link.error(unique, Errno::IO)
            }
            IoctlReply::Done { result, output } => link.ioctl_done(unique, result, &output),
            IoctlReply::Retry { inputs, outputs } if unrestricted => {
                link.ioctl_retry(unique, &inputs, &outputs)
            }
            IoctlReply::Retry { .. } => link.error(unique, Errno::IO),
            // Without a signal, as when we interrupt handlers ourselves at the end, the kernel's code
            // for this would reach the program.
            IoctlReply::Restart if self.interrupt().is_set() && !self.shared.life.is_ending() => {
                link.ioctl_restart(unique)
            }
            IoctlReply::Restart => link.error(unique, Errno::INTR),
            IoctlReply::Elsewhere => Ok(()),
        }
    }

    fn read(&self, read: &wire::ReadIn) -> Result<(), Errno> {
        let (link, unique) = (&self.shared.link, self.header.unique);
        let Some(admission) = self.admission(read.fh, true) else {
            return link.error(unique, Errno::BUSY);
        };
        let size = read.size as usize;
        let length = (size_of::<InHeader>() + size_of::<wire::ReadIn>()) as u32;
        let header = InHeader { len: length, ..*self.header };
        let message = [header.as_bytes(), read.as_bytes()].concat();
        let parking = Parking::new(&self.shared.lot, &message);
        let reply = self.node.read(&Read {
            fh: read.fh,
            size,
            nonblock: read.flags & NONBLOCK != 0,
            caller: self.caller(),
            unique,
            interrupt: self.interrupt(),
            parking: Some(&parking),
        });
        drop(admission);
        match reply {
            ReadReply::Elsewhere => {
                // A signal from before the request was parked.
                if self.interrupt().is_set() {
                    self.shared.lot.interrupt(unique);
                }
                Ok(())
            }
            _ if !parking.take_back(unique) => Ok(()),
            ReadReply::Data(data) if data.len() > size => link.error(unique, Errno::IO),
            ReadReply::Data(data) => link.data(unique, &data),
            ReadReply::Error(errno) => link.error(unique, errno),
        }
    }

    fn write(&self, write: &wire::WriteIn, data: &[u8]) -> Result<(), Errno> {
        let (link, unique) = (&self.shared.link, self.header.unique);
        let Some(admission) = self.admission(write.fh, false) else {
            return link.error(unique, Errno::BUSY);
        };
        let nonblock = write.flags & NONBLOCK != 0;
        let result = self.node.write(write.fh, data, nonblock, &self.context());
        drop(admission);
        match result {
            Ok(size) if size > data.len() => link.error(unique, Errno::IO),
            Ok(size) => link.structure(unique, &wire::WriteOut { size: size as u32, padding: 0 }),
            Err(errno) => link.error(unique, errno),
        }
    }

    fn poll(&self, poll: &wire::PollIn) -> Result<(), Errno> {
        let sleeps = poll.flags & wire::POLL_SCHEDULE_NOTIFY != 0;
        let wake = sleeps.then_some(PollHandle(poll.kh));
        if sleeps {
            self.shared.ledger.sleeps(poll.fh, poll.kh);
        }
        let revents = self.node.poll(poll.fh, poll.events, wake);
        let answer = wire::PollOut { revents, padding: 0 };
        self.shared.link.structure(self.header.unique, &answer)
    }

    /// Lets a request that may block occupy this thread, unless its handle has too many already.
    fn admission(&self, handle: u64, waits: bool) -> Option<Admission<'_>> {
        let occupant = Occupant { handle, waits };
        let admitted = self.shared.admit(self.index, occupant);
        admitted.then(|| Admission { shared: self.shared, index: self.index })
    }

    fn interrupt(&self) -> &Interrupt {
        &self.shared.worker(self.index).interrupt
    }

    fn context(&self) -> Context<'_> {
        Context { unique: self.header.unique, caller: self.caller(), interrupt: self.interrupt() }
    }

    fn caller(&self) -> Caller {
        Caller { tid: self.header.pid, uid: self.header.uid, gid: self.header.gid }
    }
}

/// The right to occupy a thread; given back when dropped, which is to be before the answer.
struct Admission<'a> {
    shared: &'a Shared,
    index: usize,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        self.shared.discharge(self.index);
    }
}

//! Leading a caller's own thread through system calls, on its way out of an ioctl of ours.
//!
//! VFIO pins the memory of whoever makes the call. Private memory of a program can so be mapped only
//! by a thread of that program. The steps:
//!
//! 1. the thread is blocked in its ioctl. It is seized and told to stop (PTRACE_SEIZE,
//!    PTRACE_INTERRUPT), and the ioctl is answered with EIO. It leaves the kernel and stops
//!    before it runs an instruction of its own
//! 2. the instruction behind it must be the one that enters the kernel as a 64-bit program does.
//!    Its signals are blocked
//! 3. that same instruction is run again for other calls: a socket pair through which it gets
//!    the container's descriptor, VFIO_IOMMU_MAP_DMA, and closing what it got
//! 4. registers and signal mask are restored, with the command's own result in place of EIO
//!
//! What can go wrong, and what becomes of it:
//!
//! | | |
//! |---|---|
//! | the daemon ends before step 3 | the program gets EIO, which is true |
//! | the daemon ends during step 3 | the program is killed (PTRACE_O_EXITKILL): it would go on with the registers and the result of another call, all signals blocked |
//! | the program is being traced | EBUSY before anything is done |
//! | signals, stops | wait until the end; a stop of the whole process begins anew then |
//! | the program is killed | at every step; what it has mapped is unmapped by our caller |
//! | another thread executes a program | seizing would wait for the thread's death, and this for our answer: see [`stages`](crate::stages) |
//! | seccomp filters | are suspended for the thread while it is traced; where that takes more privilege than we have, a program with a filter is refused |
//! | other threads of the program interfere | with their own descriptors and memory: they get what they could have done themselves |
//!
//! The container's descriptor is visible to the program for a moment, and it may keep a duplicate;
//! a child that another thread forks in this moment has one. So a container never serves two
//! programs that do not trust each other, and everything in it is unmapped when its open ends.
//!
//! The kernel charges the caller's RLIMIT_MEMLOCK once for each container. Where the daemon's own
//! count, once for all of them, is within the limit and the kernel's is not, the call is made by a
//! passing child of the caller that shares its memory and has no limit ([`Led::ioctl_beside`]): the
//! limit of the program itself must not be raised, as its other threads would have the use of that.
//!
//! # Why the descriptor is given for each call
//!
//! A small map is dominated by the stops of the caller. Three ways were measured
//! (`tests/c/bench-in-context.c`; medians of 4 KiB mapped and unmapped; natively with a refused ioctl in
//! place of VFIO's):
//!
//! | | stops | 6.1, emulated | 6.12, emulated | native, one CPU | native, two |
//! |---|---|---|---|---|---|
//! | the descriptor is given for each call | 9 | 2.1 to 2.7 ms | 2.0 to 3.4 ms | 117 to 140 µs | 460 to 590 µs |
//! | it is left in the program | 3 | 0.7 to 0.8 ms | 0.6 to 1.1 ms | 37 to 48 µs | 153 to 196 µs |
//! | a thread of ours lives in the program | 0 | 0.3 to 0.4 ms | 0.3 to 0.5 ms | 12 to 16 µs | 17 to 24 µs |
//!
//! The first is the slowest by far and the only one that leaves nothing behind. A descriptor
//! that stays can be closed by a program that closes what it does not know, and its number
//! then be another file's, on which our next call would land; it is inherited by every child, counts
//! against the program's limit and keeps the container for as long as any of them lives. A thread
//! that stays makes a program multi-threaded which is not (unshare and setns then fail), shows
//! in its list of threads, and has to be told apart at every fork, execve and exit. Whoever maps
//! often registers memory that is shared, or maps much at once: then the pinning dominates.
//!
//! Single steps would take 5 stops for the 9, but the kernel forces a SIGTRAP for each, and
//! with that resets a program's own disposition of SIGTRAP if it blocks or ignores it.

mod ptrace;
mod registers;
mod scratch;

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::IntoBytes as _;

use self::ptrace::{Event, Tracee};
use self::registers::{Native, Registers as _};
pub use self::scratch::Scratches;
use self::scratch::{PAGE, SLOT, Slot};
use crate::caller::Tid;
use crate::failure::Failure;
use crate::memory::uring::{PARAMETERS as URING_PARAMETERS, REGISTER_BUFFERS};
use crate::process::Process;
use crate::system;

/// Why a led call has no result.
#[derive(Debug)]
pub enum Broken {
    /// The caller was killed. Its last call may have been made or not.
    Gone,
    /// The kernel refuses what has to come before or after the call, or the program
    /// interferes with it.
    Failed(Failure),
}

/// A caller that is blocked in its ioctl and seized, but not yet answered.
#[derive(Debug)]
pub struct Seized {
    tid: Tid,
    tracee: Tracee,
    unfiltered: bool,
}

impl Seized {
    /// Seizes a caller. May block for as long as another thread of the caller's process is in
    /// execve, which waits for this caller to die.
    ///
    /// # Errors
    /// EBUSY when it is being traced; EPERM when the daemon may not trace it.
    pub fn new(tid: Tid) -> Result<Self, Failure> {
        let (tracee, unfiltered) = Tracee::seize(tid).map_err(|error| refuse_seize(tid, error))?;
        Ok(Self { tid, tracee, unfiltered })
    }

    /// Has it stop as soon as it leaves the kernel.
    pub fn stop(&self) {
        // It cannot fail for a tracee that lives; one that does not is noticed by waiting.
        let _ = self.tracee.interrupt();
    }

    /// Lets go of a caller that somebody else has answered meanwhile. What is let go may be
    /// another program, which has taken over the thread's id by execve.
    pub fn release(self) {
        self.stop();
        match self.tracee.wait() {
            Event::Gone => {}
            Event::Signal(signal) => drop(self.tracee.detach(signal)),
            _ => drop(self.tracee.detach(0)),
        }
    }

    /// Waits for the caller to leave the kernel: it must have been answered. `process` is its
    /// process.
    ///
    /// # Errors
    /// [`Broken::Gone`]
    pub fn lead<'a>(
        self,
        process: &Arc<Process>,
        scratches: &'a Scratches,
    ) -> Result<Led<'a>, Broken> {
        let Self { tid, tracee, unfiltered } = self;
        loop {
            match tracee.wait() {
                Event::Trap | Event::GroupStop => break,
                Event::Gone => return Err(Broken::Gone),
                Event::Syscall | Event::Clone => tracee.cont(0).or_else(|_| dead(&tracee))?,
                Event::Signal(signal) => tracee.cont(signal).or_else(|_| dead(&tracee))?,
            }
        }
        let look = || Ok::<_, Errno>((tracee.registers()?, tracee.signal_mask()?));
        let Ok((registers, mask)) = look() else { return Err(gone(&tracee)) };
        let mut entered = [0; Native::ENTER.len()];
        let behind = registers.pc().wrapping_sub(Native::ENTER.len() as u64);
        let read = tid.read(behind, &mut entered) == Ok(entered.len());
        let is_at_ioctl =
            read && entered == Native::ENTER && registers.has_made(Native::CALLS.ioctl);
        let led = Led {
            tid,
            tracee,
            process: Arc::clone(process),
            scratches,
            registers,
            mask,
            is_at_ioctl,
            unfiltered,
            is_ours: false,
            slot: None,
            link: None,
            given: Vec::new(),
        };
        Ok(led)
    }
}

/// A caller that is stopped on its way out of its ioctl.
#[derive(Debug)]
pub struct Led<'a> {
    tid: Tid,
    tracee: Tracee,
    process: Arc<Process>,
    scratches: &'a Scratches,
    /// As the caller left the kernel.
    registers: Native,
    /// The signals that the caller itself blocks.
    mask: u64,
    /// It has entered the kernel as 64-bit programs do: the instruction can be used again.
    is_at_ioctl: bool,
    /// Its seccomp filters, if it has any, are suspended.
    unfiltered: bool,
    /// Its registers and signals are not its own at the moment.
    is_ours: bool,
    slot: Option<Slot<'a>>,
    link: Option<Link>,
    /// Descriptors that the caller got: ours and its number for each.
    given: Vec<(RawFd, i32)>,
}

/// The socket pair over which a caller gets descriptors.
#[derive(Debug)]
struct Link {
    ours: OwnedFd,
    theirs: [i32; 2],
}

/// Where in a slot what lies.
mod place {
    pub(super) const MESSAGE: u64 = 0;
    pub(super) const VECTOR: u64 = 56;
    pub(super) const BYTE: u64 = 72;
    pub(super) const CONTROL: u64 = 80;
    pub(super) const PAIR: u64 = 104;
    /// The argument of a call, up to the end of the slot.
    pub(super) const ARGUMENT: u64 = 128;
}

/// The longest argument of a led call, bytes.
const ARGUMENT_MAX: usize = (SLOT - place::ARGUMENT) as usize;

/// `struct cmsghdr` with one descriptor.
const CONTROL_LEN: u64 = 20;

impl Led<'_> {
    /// The led thread.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Its process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Whether it can be led through calls. If not, only [`finish`](Self::finish) may follow.
    ///
    /// # Errors
    /// EOPNOTSUPP when it has not entered the kernel as 64-bit programs do, or has a seccomp filter
    /// that we lack the privilege to suspend.
    pub fn check(&self) -> Result<(), Failure> {
        if !self.is_at_ioctl {
            return Err(Failure::unsupported(
                "the program has not called ioctl as 64-bit programs do, so that its private \
                 memory cannot be mapped",
            ));
        }
        match self.unfiltered || self.tid.status().number("Seccomp:") == Some(0) {
            true => Ok(()),
            false => Err(Failure::unsupported(
                "the program has a seccomp filter, which this daemon lacks the privilege to \
                 suspend, so that its private memory cannot be mapped: use shared memory (memfd)",
            )),
        }
    }

    /// Has the caller make ioctl `command` on a descriptor of ours, with `argument` in its
    /// memory. The inner result is what the kernel says.
    pub fn ioctl(
        &mut self,
        fd: BorrowedFd<'_>,
        command: u32,
        argument: &[u8],
    ) -> Result<Result<i64, Errno>, Broken> {
        let arguments = self.ioctl_arguments(fd, command, argument)?;
        self.call(Native::CALLS.ioctl, arguments)
    }

    fn ioctl_arguments(
        &mut self,
        fd: BorrowedFd<'_>,
        command: u32,
        argument: &[u8],
    ) -> Result<[u64; 6], Broken> {
        let theirs = self.give(fd)?;
        let address = self.argument(argument)?;
        Ok([theirs as u64, command.into(), address, 0, 0, 0])
    }

    /// As [`ioctl`](Self::ioctl), by a passing child of the caller that shares its memory and
    /// descriptors, and has no limit of locked memory. For memory that is locked already, which
    /// the kernel would count once more: the limit of the program itself is not touched, so
    /// that no other thread of it can lock more meanwhile.
    pub fn ioctl_beside(
        &mut self,
        fd: BorrowedFd<'_>,
        command: u32,
        argument: &[u8],
    ) -> Result<Result<i64, Errno>, Broken> {
        let arguments = self.ioctl_arguments(fd, command, argument)?;
        let (child, number) = match self.fork()? {
            Ok(made) => made,
            Err(error) => return Ok(Err(error)),
        };
        let result = Self::call_in(&child, Native::CALLS.ioctl, arguments);
        child.tid().kill();
        gone(&child);
        // Nothing but this takes it off the caller's list of children: it tells nobody of its end.
        let wait = [number, 0, libc::__WALL as u64, 0, 0, 0];
        let _ = self.call(Native::CALLS.wait4, wait)?;
        match result {
            Ok(Some(result)) => Ok(as_result(result)),
            // Killed by somebody else, or not given the limit.
            Ok(None) | Err(_) => Ok(Err(Errno::NOMEM)),
        }
    }

    /// Makes the passing child, stopped; gives also its process id as the caller sees it.
    fn fork(&mut self) -> Result<Result<(Tracee, u64), Errno>, Broken> {
        let flags = (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES) as u64;
        let prepared = self.own().and_then(|()| self.tracee.trace_children());
        prepared.map_err(|_| gone(&self.tracee))?;
        let mut child = None;
        let made_child = |tracee: &Tracee| child = tracee.child().ok();
        let number =
            self.call_making(Native::CALLS.clone, [flags, 0, 0, 0, 0, 0], || {}, made_child)?;
        Ok(match (number, child) {
            (Ok(number), Some(child)) => Ok((child, number.cast_unsigned())),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(Errno::AGAIN),
        })
    }

    /// None: it died in the call. An error: it could not be commanded.
    fn call_in(child: &Tracee, number: u64, arguments: [u64; 6]) -> Result<Option<i64>, Errno> {
        if child.wait() == Event::Gone {
            return Ok(None);
        }
        system::lift_memlock_limit(child.tid())?;
        make(child, &child.registers()?.calling(number, arguments), || {}, |_| {})
    }

    /// Has the caller make `size` bytes at `vaddr` of its private memory its own: no page of it is
    /// any more that of a file, of another process, or the one of zeroes that all share.
    pub fn make_own(&mut self, vaddr: u64, size: u64) -> Result<Result<(), Errno>, Broken> {
        let advice = libc::MADV_POPULATE_WRITE as u64;
        let made = self.call(Native::CALLS.madvise, [vaddr, size, advice, 0, 0, 0])?;
        Ok(made.map(drop))
    }

    /// Has the caller pin `size` bytes at `vaddr` of its memory, as
    /// [`Pin`](crate::memory::Pin) does; gives the ring that holds them.
    pub fn pin(&mut self, vaddr: u64, size: u64) -> Result<Result<OwnedFd, Errno>, Broken> {
        let parameters = self.argument(&[0; URING_PARAMETERS])?;
        let ring = match self.call(Native::CALLS.io_uring_setup, [1, parameters, 0, 0, 0, 0])? {
            Ok(ring) => ring.cast_unsigned(),
            Err(error) => return Ok(Err(error)),
        };
        let pinned = self.fill_ring(ring, vaddr, size);
        let closed = self.call(Native::CALLS.close, [ring, 0, 0, 0, 0, 0]);
        let pinned = pinned?;
        closed?.map_err(|_| interfered())?;
        Ok(pinned)
    }

    fn fill_ring(
        &mut self,
        ring: u64,
        vaddr: u64,
        size: u64,
    ) -> Result<Result<OwnedFd, Errno>, Broken> {
        let buffer = self.argument([vaddr, size].as_bytes())?;
        let register = [ring, REGISTER_BUFFERS.into(), buffer, 1, 0, 0];
        if let Err(error) = self.call(Native::CALLS.io_uring_register, register)? {
            return Ok(Err(error));
        }
        self.tid.descriptor(ring as i32).map(Ok).map_err(Broken::Failed)
    }

    /// Lets the caller go on, with `result` as that of its ioctl. Says whether it is alive to
    /// see it.
    pub fn finish(mut self, result: i32) -> bool {
        if self.take_back_descriptors().is_err() {
            return false;
        }
        let restore = || {
            if self.is_at_ioctl {
                self.tracee.set_registers(&self.registers.returning(result.into()))?;
                self.tracee.set_signal_mask(self.mask)?;
            }
            Ok::<_, Errno>(())
        };
        if restore().is_err() {
            gone(&self.tracee);
            return false;
        }
        self.tracee.detach(0).is_ok()
    }

    /// Puts the argument of the next call into the caller's memory; says where.
    fn argument(&mut self, argument: &[u8]) -> Result<u64, Broken> {
        debug_assert!(argument.len() <= ARGUMENT_MAX);
        self.put(place::ARGUMENT, argument)
    }

    fn put(&mut self, place: u64, bytes: &[u8]) -> Result<u64, Broken> {
        let address = self.scratch()? + place;
        self.tid.write(address, bytes).map_err(|_| interfered())?;
        Ok(address)
    }

    fn get<const N: usize>(&mut self, place: u64) -> Result<[u8; N], Broken> {
        let mut bytes = [0; N];
        let read = self.tid.read(self.scratch()? + place, &mut bytes);
        if read == Ok(N) { Ok(bytes) } else { Err(interfered()) }
    }

    /// Where this thread's slot of scratch memory is.
    fn scratch(&mut self) -> Result<u64, Broken> {
        if self.slot.is_none() {
            self.slot = self.scratches.claim(self.process.id(), self.tid);
        }
        if self.slot.is_none() {
            let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            let nowhere = u64::MAX;
            let page = self.call(Native::CALLS.mmap, [0, PAGE, prot, flags, nowhere, 0])?;
            let page = page.map_err(|error| no_room("a page of memory", error))?;
            self.slot = self.scratches.adopt(self.process.id(), self.tid, page.cast_unsigned());
        }
        self.slot.as_ref().map(Slot::address).ok_or_else(interfered)
    }

    /// Gives the caller a descriptor of ours, if it has not got it yet; says its number there.
    fn give(&mut self, fd: BorrowedFd<'_>) -> Result<i32, Broken> {
        let known = self.given.iter().find(|(ours, _)| *ours == fd.as_raw_fd());
        if let Some(&(_, theirs)) = known {
            return Ok(theirs);
        }
        let link = match self.link.take() {
            Some(link) => link,
            None => self.connect()?,
        };
        let received = self.receive(&link, fd);
        self.link = Some(link);
        let theirs = received?;
        self.given.push((fd.as_raw_fd(), theirs));
        Ok(theirs)
    }

    /// Has the caller receive a descriptor of ours; says its number there.
    fn receive(&mut self, link: &Link, fd: BorrowedFd<'_>) -> Result<i32, Broken> {
        let slot = self.scratch()?;
        // struct msghdr: name, its length, vectors, their number, control, its length, flags; and
        // the one struct iovec: base, length.
        let [vector, control, byte] =
            [place::VECTOR, place::CONTROL, place::BYTE].map(|at| slot + at);
        let message = [0, 0, vector, 1, control, CONTROL_LEN + 4, 0_u64, byte, 1];
        let message = self.put(place::MESSAGE, message.as_bytes())?;
        let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        let call = [link.theirs[1] as u64, message, flags, 0, 0, 0];
        // While the caller is on its way to receive it.
        let mut sent = Ok(());
        let send = || sent = send(link.ours.as_fd(), fd);
        let received = self.call_making(Native::CALLS.recvmsg, call, send, |_| {})?;
        sent.map_err(|error| no_room("a message", error))?;
        let control: [u8; CONTROL_LEN as usize] = self.get(place::CONTROL)?;
        let mut expected = [0; 16];
        expected[..8].copy_from_slice(&CONTROL_LEN.to_ne_bytes());
        expected[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
        expected[12..].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
        let (header, number) = control.split_at(expected.len());
        match (received, number.try_into().map(i32::from_ne_bytes)) {
            (Ok(1), Ok(number)) if header == expected && number >= 0 => Ok(number),
            // The limit of open files: the message comes without its descriptor.
            (Ok(1), _) => Err(no_room("a descriptor", Errno::MFILE)),
            _ => Err(interfered()),
        }
    }

    fn connect(&mut self) -> Result<Link, Broken> {
        let pair = self.scratch()? + place::PAIR;
        let kind = (libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC) as u64;
        let call = [libc::AF_UNIX as u64, kind, 0, pair, 0, 0];
        let made = self.call(Native::CALLS.socketpair, call)?;
        made.map_err(|error| no_room("a socket pair", error))?;
        let numbers: [u8; 8] = self.get(place::PAIR)?;
        let (first, second) = numbers.split_at(4);
        let number = |bytes: &[u8]| bytes.try_into().map_or(-1, i32::from_ne_bytes);
        let theirs = [number(first), number(second)];
        match self.process.descriptor(self.tid, theirs[0]) {
            Ok(ours) => Ok(Link { ours, theirs }),
            Err(failure) => {
                // They are closed with the rest; no descriptor of ours belongs to them.
                self.given.extend(theirs.map(|number| (-1, number)));
                Err(Broken::Failed(failure))
            }
        }
    }

    /// Closes what the caller got, in one call where the numbers are neighbours: others in
    /// between could belong to other threads.
    fn take_back_descriptors(&mut self) -> Result<(), Broken> {
        let link = self.link.take().into_iter().flat_map(|link| link.theirs);
        let mut numbers: Vec<i32> =
            link.chain(self.given.drain(..).map(|(_, theirs)| theirs)).collect();
        numbers.sort_unstable();
        for run in numbers.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (run[0] as u64, run[run.len() - 1] as u64);
            let _ = self.call(Native::CALLS.close_range, [first, last, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    /// Has the caller make one system call. The inner result is the kernel's.
    fn call(&mut self, number: u64, arguments: [u64; 6]) -> Result<Result<i64, Errno>, Broken> {
        self.call_making(number, arguments, || {}, |_| {})
    }

    /// The same for a call that makes a child. What is done `meanwhile` is done before the kernel
    /// begins with the call.
    fn call_making(
        &mut self,
        number: u64,
        arguments: [u64; 6],
        meanwhile: impl FnOnce(),
        made_child: impl FnMut(&Tracee),
    ) -> Result<Result<i64, Errno>, Broken> {
        let call = self.registers.calling(number, arguments);
        match self.own().and_then(|()| make(&self.tracee, &call, meanwhile, made_child)) {
            Ok(Some(result)) => Ok(as_result(result)),
            Ok(None) => Err(Broken::Gone),
            Err(_) => Err(gone(&self.tracee)),
        }
    }

    /// Takes over its registers and signals, if that is not done yet.
    fn own(&mut self) -> Result<(), Errno> {
        if !self.is_ours {
            self.tracee.tie()?;
            self.tracee.set_signal_mask(u64::MAX)?;
            self.is_ours = true;
        }
        Ok(())
    }
}

/// Has a stopped thread make the system call that `call` is about to make; says what it returned.
/// `meanwhile` is called while it is on its way to that, and `made_child` if it makes a child, while
/// it tells of that.
///
/// None: it died in the call. An error: it was dead already.
fn make(
    tracee: &Tracee,
    call: &Native,
    meanwhile: impl FnOnce(),
    mut made_child: impl FnMut(&Tracee),
) -> Result<Option<i64>, Errno> {
    let mut meanwhile = Some(meanwhile);
    tracee.set_registers(call)?;
    for _ in ["enters", "leaves"] {
        let mut signal = 0;
        loop {
            tracee.run(signal)?;
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile();
            }
            signal = match tracee.wait() {
                Event::Syscall => break,
                Event::Trap | Event::GroupStop => 0,
                Event::Clone => {
                    made_child(tracee);
                    0
                }
                // SIGSTOP, which cannot be blocked.
                Event::Signal(signal) => signal,
                Event::Gone => return Ok(None),
            };
        }
    }
    tracee.registers().map(|registers| Some(registers.result()))
}

fn as_result(returned: i64) -> Result<i64, Errno> {
    match i32::try_from(returned) {
        Ok(error @ -4095..=-1) => Err(Errno::from_raw_os_error(-error)),
        _ => Ok(returned),
    }
}

/// Sends one descriptor along with one byte.
fn send(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, flags).map(drop)
}

/// The tracee has died: sees it off.
fn gone(tracee: &Tracee) -> Broken {
    tracee.see_off();
    Broken::Gone
}

fn dead(tracee: &Tracee) -> Result<(), Broken> {
    Err(gone(tracee))
}

fn interfered() -> Broken {
    Broken::Failed(Failure::new(
        Errno::FAULT,
        "another thread of the program has interfered with the mapping of its private memory",
    ))
}

fn no_room(what: &str, error: Errno) -> Broken {
    Broken::Failed(Failure::new(
        Errno::NOMEM,
        format!(
            "to map its private memory, the program must be able to get {what}, and the kernel \
             says: {error}"
        ),
    ))
}

fn refuse_seize(tid: Tid, error: Errno) -> Failure {
    match (error, tid.status().number("TracerPid:")) {
        (Errno::PERM, Some(tracer @ 1..)) => Failure::new(
            Errno::BUSY,
            format!(
                "private memory is mapped by leading the calling thread, and process {tracer} is \
                 tracing it: map shared memory (memfd), or end the debugger or strace"
            ),
        ),
        (Errno::PERM | Errno::ACCESS, _) => Failure::new(
            Errno::PERM,
            "the daemon may not trace the program, so that its private memory cannot be mapped; \
             if /proc/sys/kernel/yama/ptrace_scope is 3, set it to 2 or less and reboot",
        ),
        (error, _) => {
            Failure::new(Errno::IO, format!("the calling thread cannot be seized: {error}"))
        }
    }
}

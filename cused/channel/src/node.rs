//! What a node is asked, and what it may answer.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::answer::Link;
use crate::parked::{Parked, Parking};
use crate::wire;

/// Behaviour of a node. Its methods are called by several threads at once, for one handle as well as
/// for several; a handler that blocks delays nobody but its own caller.
///
/// A panic in a method is caught, and the caller's answer is EIO.
pub trait Node: Send + Sync + 'static {
    /// Someone opens the node; `flags` are those of open(2). The returned number names this open
    /// file in all later calls. It must not be 0, nor be given out twice while in use. The `unique` of
    /// the request will do: see [`crate::Server::succeed`].
    ///
    /// Must not wait for anything that a caller controls: opening is not limited per handle.
    fn open(&self, flags: u32, context: &Context<'_>) -> Result<u64, Errno>;

    /// The last descriptor of an open file is closed, or serving ends. Called exactly once for every
    /// successful open whose handle reached the kernel or not, and never refused (but see
    /// [`crate::Server::succeed`]). By then the
    /// kernel has the answers to all requests of the handle, which is not to say that their handlers
    /// have returned: see [`Responder::send`], [`Node::interrupted`] and [`crate::Ended::abandoned`].
    ///
    /// Must not wait for anything that a caller controls, such as a handler that reads its memory.
    fn release(&self, handle: u64);

    /// One ioctl(2). Beyond the limits of [`crate::ServeOptions`] the caller gets EBUSY and this is
    /// not called.
    fn ioctl(&self, request: &Ioctl<'_>) -> IoctlReply;

    /// Which of `events` (POLLIN and so on, as in poll(2)) hold now, at once and without blocking.
    /// If `wake` is given, the caller will sleep until [`crate::Notifier::wake`] is called with it;
    /// keep it, in place of any earlier one of this handle, from before looking at the state.
    ///
    /// By default a node is always readable and writable, as a device without poll is.
    fn poll(&self, handle: u64, events: u32, wake: Option<PollHandle>) -> u32 {
        let _ = (handle, wake);
        events & ALWAYS_READY
    }

    /// One read(2). What it means that there is nothing to read is the node's decision: EAGAIN,
    /// no data for end of file, or waiting until there is something. For that a request can be
    /// [parked](Read::park); to block until `request.interrupt` is set is possible too, but
    /// occupies a thread.
    fn read(&self, request: &Read<'_>) -> ReadReply {
        let _ = request;
        ReadReply::Error(Errno::OPNOTSUPP)
    }

    /// One write(2) of at most 128 KiB; longer ones arrive in parts. Returns how many bytes were
    /// taken.
    fn write(
        &self,
        handle: u64,
        data: &[u8],
        nonblock: bool,
        context: &Context<'_>,
    ) -> Result<usize, Errno> {
        let _ = (handle, data, nonblock, context);
        Err(Errno::OPNOTSUPP)
    }

    /// The caller of request `unique` has got a signal, and its [`Interrupt`] has just been set.
    /// Called by another thread than the one in the handler, whose answer is still awaited: the
    /// place to wake a handler that sleeps. If it returns a way out, the caller gets that as its
    /// answer now and whatever the handler answers later is dropped: the way out for a handler that
    /// can be stuck beyond waking. May come before the handler is called or after it has returned,
    /// and also when serving ends. The kernel tells of the first signal only: a SIGKILL after it
    /// comes unannounced.
    fn interrupted(&self, unique: u64) -> Option<WayOut> {
        let _ = unique;
        None
    }
}

/// POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM: what the kernel answers for a file without poll.
const ALWAYS_READY: u32 = 0x001 | 0x004 | 0x040 | 0x100;

/// Who made a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Thread id in the pid namespace of the process that opened the channel; 0 if the caller has
    /// none there or the kernel acts by itself.
    pub tid: u32,
    /// File system user id, in the user namespace of the channel.
    pub uid: u32,
    /// File system group id, in the user namespace of the channel.
    pub gid: u32,
}

/// What an open or a write carries besides its flags or data.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Names the request: see [`Node::interrupted`].
    pub unique: u64,
    /// Who made it.
    pub caller: Caller,
    /// Tells whether the caller wants it to end.
    pub interrupt: &'a Interrupt,
}

impl<'a> Context<'a> {
    /// That of a request that did not come from a kernel, to test a node with.
    pub fn detached(interrupt: &'a Interrupt) -> Self {
        Self { unique: 0, caller: Caller::default(), interrupt }
    }
}

/// One ioctl(2).
#[derive(Clone, Copy, Debug)]
pub struct Ioctl<'a> {
    /// The open file, as [`Node::open`] named it.
    pub fh: u64,
    /// The command, all 32 bits.
    pub command: u32,
    /// The third argument of ioctl(2): a number, or an address in the caller's memory.
    pub arg: u64,
    /// Who made it.
    pub caller: Caller,
    /// The caller is a 32-bit one (i386 or x32): `arg` and pointers in structures are 32 bits wide.
    pub compat: bool,
    /// The kernel will move any data that [`IoctlReply::Retry`] names. Without it, it moves only
    /// what the command's size and direction bits say.
    pub unrestricted: bool,
    /// The data gathered from the caller's memory: what a RETRY named, else what a restricted
    /// command's bits say.
    pub input: &'a [u8],
    /// How much output the kernel will take, scattered to where the RETRY named.
    pub output_size: usize,
    /// Names the request: see [`Node::interrupted`].
    pub unique: u64,
    /// Tells whether the caller wants it to end.
    pub interrupt: &'a Interrupt,
    /// Answers before the handler returns.
    pub responder: &'a Responder<'a>,
}

impl<'a> Ioctl<'a> {
    /// A request that did not come from a kernel, to test a node with: the rest is 0, empty and false.
    pub fn detached(
        command: u32,
        arg: u64,
        interrupt: &'a Interrupt,
        responder: &'a Responder<'a>,
    ) -> Self {
        Self {
            fh: 0,
            command,
            arg,
            caller: Caller::default(),
            compat: false,
            unrestricted: false,
            input: &[],
            output_size: 0,
            unique: 0,
            interrupt,
            responder,
        }
    }
}

/// One read(2).
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// The open file, as [`Node::open`] named it.
    pub fh: u64,
    /// The most bytes to return; with more the caller gets EIO.
    pub size: usize,
    /// The file has O_NONBLOCK.
    pub nonblock: bool,
    /// Who made it.
    pub caller: Caller,
    /// Names the request: see [`Node::interrupted`].
    pub unique: u64,
    /// Tells whether the caller wants it to end.
    pub interrupt: &'a Interrupt,
    pub(crate) parking: Option<&'a Parking<'a>>,
}

impl<'a> Read<'a> {
    /// A request that did not come from a kernel, to test a node with. It cannot be parked.
    pub fn detached(size: usize, nonblock: bool, interrupt: &'a Interrupt) -> Self {
        let caller = Caller::default();
        Self { fh: 0, size, nonblock, caller, unique: 0, interrupt, parking: None }
    }

    /// Puts the request aside, to be answered through what this returns; the handler then returns
    /// [`ReadReply::Elsewhere`]. Meanwhile the request occupies no thread, and a signal ends it
    /// with EINTR without the node's doing.
    ///
    /// So that nothing is missed, park it with the lock held under which there is found to be
    /// nothing to read.
    ///
    /// Errors, to be answered as they are: EBUSY if the handle has
    /// [`ServeOptions::per_handle_limit`](crate::ServeOptions::per_handle_limit) reads parked, EINTR
    /// if serving is about to end, ENODEV if the request is detached.
    pub fn park(&self) -> Result<Parked, Errno> {
        self.parking.ok_or(Errno::NODEV)?.park(self.fh, self.unique, self.size)
    }
}

/// The answer to a read(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadReply {
    /// What was read; nothing stands for the end of the file.
    Data(Vec<u8>),
    /// The call fails.
    Error(Errno),
    /// The call has been, or will be, answered by another thread: the request was
    /// [parked](Read::park), or [`Node::interrupted`] has given a way out.
    Elsewhere,
}

impl From<Result<Vec<u8>, Errno>> for ReadReply {
    fn from(result: Result<Vec<u8>, Errno>) -> Self {
        match result {
            Ok(data) => Self::Data(data),
            Err(errno) => Self::Error(errno),
        }
    }
}

/// The answer to an ioctl(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoctlReply {
    /// The call ends.
    Done {
        /// What ioctl(2) returns: a value that is not negative, or a negative errno.
        result: i32,
        /// Data for the caller's memory, at most `output_size` bytes; more is answered EIO.
        /// It is written there even if `result` is an error.
        output: Vec<u8>,
    },
    /// Ask again with the data of these places in the caller's memory, in this order, and room for
    /// output in those. At most 256 places and 128 KiB in each direction; only if `unrestricted`.
    /// The kernel checks that they are the caller's: if not, the caller gets EFAULT.
    Retry {
        /// What to read.
        inputs: Vec<IoVec>,
        /// Where to write.
        outputs: Vec<IoVec>,
    },
    /// Nothing was done, and the caller has got a signal: [`Interrupt::is_set`]. The kernel has the
    /// signal handled, and begins the call anew if the caller is still alive.
    Restart,
    /// The call has been answered by another thread: [`Node::interrupted`] has given a way out.
    Elsewhere,
}

impl IoctlReply {
    /// The call returns `value` and no data.
    pub fn value(value: i32) -> Self {
        Self::Done { result: value, output: Vec::new() }
    }

    /// The call fails with `errno`.
    pub fn error(errno: Errno) -> Self {
        Self::value(-errno.raw_os_error())
    }
}

/// The answer to an interrupted request whose handler may be stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayOut {
    /// It fails.
    Fail(Errno),
    /// As [`IoctlReply::Restart`]; for an ioctl only.
    Restart,
}

/// A place in the caller's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
pub struct IoVec {
    /// Address.
    pub base: u64,
    /// Size in bytes.
    pub len: u64,
}

/// Someone asleep in poll(2), select(2) or epoll_wait(2): to be given to [`crate::Notifier::wake`].
/// The number stays valid for as long as the file is open, also for a successor of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PollHandle(pub u64);

/// Whether the caller of one request has got a signal.
///
/// A caller that has is still waiting for its answer, even one that was killed: the kernel lets it
/// go only then. A handler that takes long should look here now and then, and give up with EINTR.
#[derive(Debug)]
pub struct Interrupt {
    current: AtomicU64,
    interrupted: AtomicU64,
}

impl Interrupt {
    /// One that is not set, to test a node with.
    pub const fn new() -> Self {
        Self { current: AtomicU64::new(1), interrupted: AtomicU64::new(0) }
    }

    /// Whether a FUSE_INTERRUPT has come for this request, or serving is about to end.
    pub fn is_set(&self) -> bool {
        self.interrupted.load(Ordering::Acquire) == self.current.load(Ordering::Relaxed)
    }

    /// Sets it, to test a node with.
    pub fn set(&self) {
        self.interrupted.store(self.current.load(Ordering::Relaxed), Ordering::Release);
    }

    /// From now on this is about request `unique`. A FUSE_INTERRUPT may have come for it already.
    pub(crate) fn begin(&self, unique: u64) {
        self.current.store(unique, Ordering::Relaxed);
    }

    /// A FUSE_INTERRUPT has come for `unique`, and `holds` tells whether the slot still has that
    /// request. Asked for in between reading and changing the word: a late one can then not wipe
    /// out the interrupt of a request that the slot got since.
    pub(crate) fn mark(&self, unique: u64, holds: impl Fn() -> bool) {
        let mut before = self.interrupted.load(Ordering::Acquire);
        while before != unique && holds() {
            match self.interrupted.compare_exchange(
                before,
                unique,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return,
                Err(now) => before = now,
            }
        }
    }
}

impl Default for Interrupt {
    fn default() -> Self {
        Self::new()
    }
}

/// Answers an ioctl before its handler returns.
pub struct Responder<'a> {
    link: Option<&'a Arc<Link>>,
    unique: u64,
    output_size: usize,
    sent: Cell<Option<i32>>,
}

impl<'a> Responder<'a> {
    pub(crate) fn new(link: &'a Arc<Link>, unique: u64, output_size: usize) -> Self {
        Self { link: Some(link), unique, output_size, sent: Cell::new(None) }
    }

    /// One that is not connected to a kernel, to test a node with.
    pub fn detached() -> Self {
        Self { link: None, unique: 0, output_size: wire::MAX_PAYLOAD, sent: Cell::new(None) }
    }

    /// Answers the request now, as [`IoctlReply::Done`] would; what the handler returns later is
    /// ignored. From here on the caller runs again, may close the file ([`Node::release`] may come
    /// before the handler returns), and its thread id may pass to another.
    ///
    /// Errors: EALREADY if it has been answered before, EINVAL if the output is longer than
    /// `output_size`, ENOENT if the request is gone, ENODEV if the connection is over.
    pub fn send(&self, result: i32, output: &[u8]) -> Result<(), Errno> {
        if self.sent.get().is_some() {
            return Err(Errno::ALREADY);
        }
        if output.len() > self.output_size {
            return Err(Errno::INVAL);
        }
        if let Some(link) = self.link {
            link.ioctl_done(self.unique, result, output)?;
        }
        self.sent.set(Some(result));
        Ok(())
    }

    /// What answers the request from another thread, at any time: of two answers the first counts.
    pub fn remote(&self) -> Remote {
        Remote { link: self.link.map(Arc::downgrade).unwrap_or_default(), unique: self.unique }
    }

    /// The result that [`Responder::send`] has delivered, if it has.
    pub fn sent(&self) -> Option<i32> {
        self.sent.get()
    }
}

/// Answers a request from another thread than the one that handles it.
#[derive(Clone, Debug)]
pub struct Remote {
    link: Weak<Link>,
    unique: u64,
}

impl Remote {
    /// Has the request fail. If it has been answered, or serving has ended, nothing happens.
    pub fn fail(&self, errno: Errno) {
        if let Some(link) = self.link.upgrade() {
            let _ = link.error(self.unique, errno);
        }
    }
}

impl fmt::Debug for Responder<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Responder")
            .field("unique", &self.unique)
            .field("sent", &self.sent.get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_seen_by_its_own_request_only() {
        let interrupt = Interrupt::default();
        interrupt.begin(4);
        assert!(!interrupt.is_set());
        interrupt.mark(4, || true);
        assert!(interrupt.is_set());
        interrupt.begin(6);
        assert!(!interrupt.is_set());
    }

    #[test]
    fn an_interrupt_that_comes_before_the_handler_is_not_lost() {
        let interrupt = Interrupt::default();
        interrupt.mark(4, || true);
        interrupt.begin(4);
        assert!(interrupt.is_set());
    }

    #[test]
    fn a_late_interrupt_does_not_wipe_out_that_of_the_next_request() {
        let interrupt = Interrupt::default();
        interrupt.begin(6);
        interrupt.mark(6, || true);
        interrupt.mark(4, || false);
        assert!(interrupt.is_set());
    }

    #[test]
    fn a_late_interrupt_that_loses_the_race_does_not_either() {
        let interrupt = Interrupt::default();
        interrupt.begin(6);
        let first = Cell::new(true);
        // The slot moves on between the check and the exchange.
        interrupt.mark(4, || {
            if first.replace(false) {
                interrupt.mark(6, || true);
                true
            } else {
                false
            }
        });
        assert!(interrupt.is_set());
    }

    #[test]
    fn a_request_is_answered_early_once() {
        let responder = Responder::detached();
        assert_eq!(responder.sent(), None);
        responder.send(-5, &[]).unwrap();
        assert_eq!(responder.send(0, &[]), Err(Errno::ALREADY));
        assert_eq!(responder.sent(), Some(-5));
    }
}

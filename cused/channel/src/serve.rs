//! Threads that read requests and have a node answer them.
//!
//! Owns the threads, how many there are, who may occupy one, and the end of it all. What a request
//! means is [`crate::dispatch`]'s matter.
//!
//! All threads read the same descriptor and block in read(2); one that gets a request handles it
//! itself. Whoever takes the last one away from reading starts another thread first. Thus a handler
//! that blocks, for as long as a caller likes, delays nobody else: until the threads run out. For
//! then there are limits, by which requests that may block are refused with EBUSY:
//!
//! - One handle occupies at most [`ServeOptions::per_handle_limit`] threads, and at most as many as
//!   are left unoccupied. So one greedy handle gets a half of the threads (or its limit), two get a
//!   third each, k of them a (k+1)th part each, and the rest stays free for others. Only when there
//!   are about as many greedy handles as threads is nothing left for a newcomer.
//! - The last thread never runs a handler that may block. It refuses, and goes back to reading, so
//!   that interrupts, RELEASE and everything that does not block are always served.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::{Pid, futex};
use thiserror::Error;

use crate::answer::Link;
use crate::channel::{Channel, Presence};
use crate::dispatch::{self, Handles};
use crate::file::FileAttributes;
use crate::node::{Interrupt, Node, PollHandle};
use crate::slots::{Region, Slot};
use crate::system;

/// Threads that stay in read(2) when there is little to do: one to take the next request, one to
/// take the one after that while the first is busy.
const READERS_KEPT: u32 = 2;
/// Readers beyond those stay until no thread has had to be started for this long.
const SURPLUS_STAYS: Duration = Duration::from_secs(1);
/// Reads that fail in a row, for reasons unknown, before serving is given up.
const FAILURES_TOLERATED: u32 = 1000;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Most threads; at least 2. Each reserves 132 KiB of address space, and its stack.
    pub max_threads: usize,
    /// Most threads that the requests of one open file may occupy at a time.
    pub per_handle_limit: usize,
    /// Stack of a thread in bytes.
    pub stack_size: usize,
    /// How long handlers may take to finish once serving is to end. After half of it they are
    /// interrupted; reads, which wait for something to happen, at once. As long again may pass
    /// without the node having released a handle.
    pub stop_grace: Duration,
    /// Signal by which threads are woken from read(2) at the end. It is given a handler that does
    /// nothing, unless the program has one without SA_RESTART itself, and keeps it.
    /// `None` for SIGRTMIN+9.
    pub wake_signal: Option<i32>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_threads: 256,
            per_handle_limit: 64,
            stack_size: 256 * 1024,
            stop_grace: Duration::from_secs(5),
            wake_signal: None,
        }
    }
}

/// Why serving could not begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is no room for the buffers.
    #[error("no memory for the buffers of {threads} threads: {errno}")]
    Buffers {
        /// Threads asked for.
        threads: usize,
        /// What mmap(2) said.
        errno: Errno,
    },
    /// The wake signal cannot be used.
    #[error(
        "signal {signal} cannot wake threads, because the program ignores it, has a handler with \
         SA_RESTART, or it cannot be caught: choose another"
    )]
    WakeSignal {
        /// The signal.
        signal: i32,
    },
}

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// [`Stop::stop`] was called.
    Stopped,
    /// The FUSE file was unmounted by someone, and its last user is gone.
    Unmounted,
    /// The connection was aborted: through fusectl or, for a CUSE device, through
    /// /sys/class/cuse/NAME/abort.
    Aborted,
    /// Requests can no longer be read, or no thread can be started.
    Failed(Errno),
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// Why.
    pub reason: EndReason,
    /// Open files that were released because of it.
    pub released: usize,
    /// Open files that were not, because [`Node::release`] did not return within the time.
    pub unreleased: usize,
    /// Handlers that did not return within the time. Their threads are left to themselves, and use
    /// the node until the process ends. Their callers have got ECONNABORTED.
    pub abandoned: usize,
}

/// Serves one channel.
#[derive(Debug)]
pub struct Server {
    // First, so that a mount is taken away before the connection is closed.
    presence: Presence,
    shared: Arc<Shared>,
    node: PathBuf,
}

impl Server {
    /// Gets everything ready to serve `channel`.
    pub fn new(channel: Channel, options: ServeOptions) -> Result<Self, ServeError> {
        let signal = options.wake_signal.unwrap_or_else(system::default_signal);
        system::prepare(signal).map_err(|_| ServeError::WakeSignal { signal })?;
        let threads = options.max_threads.clamp(2, u16::MAX as usize);
        let region =
            Region::new(threads).map_err(|errno| ServeError::Buffers { threads, errno })?;
        let Channel { presence, link, attributes, node } = channel;
        let shared = Shared {
            link,
            attributes,
            handles: Handles::default(),
            region,
            workers: (0..threads).map(|_| Worker::default()).collect(),
            life: Arc::default(),
            readers: AtomicU32::new(0),
            begun: Instant::now(),
            newest_start: AtomicU64::new(0),
            signal,
            options,
        };
        Ok(Self { presence, shared: Arc::new(shared), node })
    }

    /// Path of the node.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// What ends [`Server::serve`].
    pub fn stopper(&self) -> Stop {
        Stop { life: Arc::clone(&self.shared.life) }
    }

    /// What wakes callers asleep in poll(2).
    pub fn notifier(&self) -> Notifier {
        Notifier { shared: Arc::downgrade(&self.shared) }
    }

    /// Has `node` answer until [`Stop::stop`] is called or the connection is over. Then requests in
    /// progress are finished and answered, every handle that is still open is released, and the
    /// node disappears. The requests are handled by other threads than this one, which take none of
    /// the process's signals.
    ///
    /// This process must not have the node open itself, by the time that serving ends: the last
    /// close waits for an answer that nobody would give.
    pub fn serve<N: Node>(mut self, node: Arc<N>) -> Ended {
        for _ in 0..READERS_KEPT {
            if !self.shared.start_thread(&node) && self.shared.life.threads() == 0 {
                self.shared.life.end(EndReason::Failed(Errno::AGAIN));
            }
        }
        let reason = self.shared.life.wait_for_end();
        let abandoned = self.shared.wind_down(&*node);
        let (released, unreleased) = self.shared.release_all(&node);
        if abandoned > 0 {
            // Their threads keep the descriptor; it must not keep the node.
            self.shared.answer_abandoned();
            self.presence.abort();
            if let Err(errno) = system::sever(self.shared.link.device()) {
                log::warn!("the node stays until this process ends: {errno}");
            }
        }
        Ended { reason, released, unreleased, abandoned }
    }
}

/// Serves `channel` with `node` until the connection is over: [`Server::new`] and
/// [`Server::serve`], for a node that needs no [`Notifier`] and nobody who stops it.
pub fn serve<N: Node>(
    channel: Channel,
    node: Arc<N>,
    options: ServeOptions,
) -> Result<Ended, ServeError> {
    Ok(Server::new(channel, options)?.serve(node))
}

/// Makes [`Server::serve`] return.
#[derive(Clone, Debug)]
pub struct Stop {
    life: Arc<Life>,
}

impl Stop {
    /// Asks for the end, from any thread, and does not wait for it. Async-signal-safe.
    pub fn stop(&self) {
        self.life.end(EndReason::Stopped);
    }
}

/// Wakes callers asleep in poll(2), select(2) or epoll_wait(2).
#[derive(Clone, Debug)]
pub struct Notifier {
    shared: Weak<Shared>,
}

impl Notifier {
    /// Has whoever sleeps on `handle` ask [`Node::poll`] again. To be called after the state has
    /// changed. Nobody sleeping, or a file closed since, is not an error.
    ///
    /// Errors: ENODEV if serving has ended.
    pub fn wake(&self, handle: PollHandle) -> Result<(), Errno> {
        self.shared.upgrade().ok_or(Errno::NODEV)?.link.wake(handle)
    }
}

/// What all threads use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) attributes: Option<FileAttributes>,
    pub(crate) handles: Handles,
    region: Region,
    workers: Box<[Worker]>,
    life: Arc<Life>,
    /// Threads that are in read(2) or on their way there.
    readers: AtomicU32,
    begun: Instant,
    /// When a thread was last started, in milliseconds from `begun`.
    newest_start: AtomicU64,
    signal: i32,
    options: ServeOptions,
}

/// One thread, as the others see it; of the same index as its slot.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Worker {
    phase: AtomicU32,
    thread: AtomicU32,
    /// The handle whose limit its request counts against, while `counted`.
    handle: AtomicU64,
    counted: AtomicBool,
    /// Its request ends when something happens, which may be never: interrupted first.
    waits: AtomicBool,
    pub(crate) interrupt: Interrupt,
}

/// A request that may block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupant {
    pub(crate) handle: u64,
    /// Waits for something to happen, as a read does.
    pub(crate) waits: bool,
}

/// The thread does nothing that anyone could wait for.
const OUT: u32 = 0;
/// The thread is in read(2), about to enter it or just back.
const READING: u32 = 1;
/// The thread handles a request.
const HANDLING: u32 = 2;

/// What outlives the channel: whether to go on, and who is left.
#[derive(Debug, Default)]
struct Life {
    /// 0 while serving goes on, else an encoded [`EndReason`].
    end: AtomicU32,
    threads: AtomicU32,
    /// Counts what the serving thread wants to know: the end, threads that are gone.
    events: AtomicU32,
}

impl Life {
    fn end(&self, reason: EndReason) {
        let _ = self.end.compare_exchange(0, reason.encode(), Ordering::SeqCst, Ordering::SeqCst);
        self.tell();
    }

    fn is_ending(&self) -> bool {
        self.end.load(Ordering::SeqCst) != 0
    }

    fn threads(&self) -> u32 {
        self.threads.load(Ordering::SeqCst)
    }

    fn tell(&self) {
        self.events.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(&self.events, futex::Flags::PRIVATE, u32::MAX);
    }

    fn events(&self) -> u32 {
        self.events.load(Ordering::SeqCst)
    }

    /// Waits for an event after the count was `seen`, for at most `time`.
    fn wait(&self, seen: u32, time: Duration) {
        let time = time.try_into().ok();
        let _ = futex::wait(&self.events, futex::Flags::PRIVATE, seen, time.as_ref());
    }

    fn wait_for_end(&self) -> EndReason {
        loop {
            let seen = self.events();
            if let Some(reason) = EndReason::decode(self.end.load(Ordering::SeqCst)) {
                return reason;
            }
            let _ = futex::wait(&self.events, futex::Flags::PRIVATE, seen, None);
        }
    }
}

impl EndReason {
    fn encode(self) -> u32 {
        match self {
            Self::Stopped => 1,
            Self::Unmounted => 2,
            Self::Aborted => 3,
            Self::Failed(errno) => 0x1_0000 | errno.raw_os_error().unsigned_abs(),
        }
    }

    fn decode(code: u32) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Stopped),
            2 => Some(Self::Unmounted),
            3 => Some(Self::Aborted),
            code => Some(Self::Failed(Errno::from_raw_os_error((code & 0xffff) as i32))),
        }
    }
}

impl Shared {
    /// Takes the calling thread away from reading, to handle a request. Sees to it that another
    /// reads; if there can be none, returns false, and the request must not be one that may block.
    fn stop_reading<N: Node>(self: &Arc<Self>, node: &Arc<N>) -> bool {
        let left = self.readers.fetch_sub(1, Ordering::SeqCst) - 1;
        left > 0 || self.life.is_ending() || self.start_thread(node)
    }

    /// Takes the calling thread back to reading. False if there are enough readers without it.
    fn resume_reading(&self) -> bool {
        let mut readers = self.readers.fetch_add(1, Ordering::SeqCst) + 1;
        while readers > READERS_KEPT && self.surplus_may_go() {
            match self.readers.compare_exchange(
                readers,
                readers - 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => return false,
                Err(now) => readers = now,
            }
        }
        true
    }

    fn surplus_may_go(&self) -> bool {
        let age = self.milliseconds().saturating_sub(self.newest_start.load(Ordering::Relaxed));
        age >= SURPLUS_STAYS.as_millis() as u64
    }

    fn milliseconds(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }

    /// Starts a thread that reads; false if there are as many as there may be, or the system
    /// refuses.
    fn start_thread<N: Node>(self: &Arc<Self>, node: &Arc<N>) -> bool {
        let Some(index) = self.region.claim() else { return false };
        self.life.threads.fetch_add(1, Ordering::SeqCst);
        self.readers.fetch_add(1, Ordering::SeqCst);
        self.newest_start.store(self.milliseconds(), Ordering::Relaxed);
        let (shared, node) = (Arc::clone(self), Arc::clone(node));
        let started = std::thread::Builder::new()
            .name(format!("channel-{index}"))
            .stack_size(self.options.stack_size)
            .spawn(move || {
                let life = Arc::clone(&shared.life);
                read_and_handle(&shared, &node, index);
                // Whoever sees the thread gone may rely on its share of these being gone, too.
                drop((node, shared));
                life.threads.fetch_sub(1, Ordering::SeqCst);
                life.tell();
            });
        if started.is_err() {
            drop(Slot::of_claimed(&self.region, index));
            self.readers.fetch_sub(1, Ordering::SeqCst);
            self.life.threads.fetch_sub(1, Ordering::SeqCst);
        }
        started.is_ok()
    }

    /// Whether a request that may block can occupy thread `index`, when another one reads. If so it
    /// counts until [`Shared::discharge`].
    pub(crate) fn admit(&self, index: usize, occupant: Occupant) -> bool {
        let worker = &self.workers[index];
        let handle = occupant.handle;
        worker.handle.store(handle, Ordering::Relaxed);
        worker.waits.store(occupant.waits, Ordering::Relaxed);
        worker.counted.store(true, Ordering::SeqCst);
        let readers = self.readers.load(Ordering::SeqCst);
        let busy = self.life.threads().saturating_sub(readers) as usize;
        let free = self.workers.len().saturating_sub(busy).max(1);
        let allowed = self.options.per_handle_limit.min(free);
        // No handle has more than all; mostly that settles it.
        let admitted = busy <= allowed || self.occupied_by(handle) <= allowed;
        if !admitted {
            self.discharge(index);
        }
        admitted
    }

    /// The request of thread `index` no longer counts.
    pub(crate) fn discharge(&self, index: usize) {
        let worker = &self.workers[index];
        worker.waits.store(false, Ordering::Relaxed);
        worker.counted.store(false, Ordering::SeqCst);
    }

    fn occupied_by(&self, handle: u64) -> usize {
        let same = |worker: &&Worker| {
            worker.counted.load(Ordering::SeqCst) && worker.handle.load(Ordering::Relaxed) == handle
        };
        self.workers.iter().filter(same).count()
    }

    pub(crate) fn worker(&self, index: usize) -> &Worker {
        &self.workers[index]
    }

    /// Sets the interrupt of the request `unique`, if some thread has it.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        let mut found = false;
        for index in self.region.holding(unique) {
            found = true;
            let holds = || self.region.unique(index) == unique;
            self.workers[index].interrupt.mark(unique, holds);
        }
        found
    }

    /// Gets all threads to leave, within the time of [`ServeOptions::stop_grace`]. Returns how many
    /// are left.
    fn wind_down(&self, node: &impl Node) -> usize {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let seen = self.life.events();
            let threads = self.life.threads();
            let waited = begun.elapsed();
            if threads == 0 || waited >= self.options.stop_grace {
                return threads as usize;
            }
            self.wake_readers();
            self.interrupt_handlers(node, waited >= self.options.stop_grace / 2);
            self.life.wait(seen, pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Has the node release every open handle, those that a handler is stuck with last. Gives up
    /// when none has been released for [`ServeOptions::stop_grace`]: the node may be waiting for
    /// a stuck handler. Returns how many were released, and how many not.
    fn release_all(self: &Arc<Self>, node: &Arc<impl Node>) -> (usize, usize) {
        let mut handles: Vec<u64> = self.handles.take_all().into_iter().collect();
        handles.sort_unstable_by_key(|&handle| (self.occupied_by(handle) > 0, handle));
        let total = handles.len();
        if total == 0 {
            return (0, 0);
        }
        let released = Arc::new(AtomicUsize::new(0));
        let release = {
            let (released, node) = (Arc::clone(&released), Arc::clone(node));
            let (life, signal) = (Arc::clone(&self.life), self.signal);
            move || {
                system::only(signal);
                for handle in handles {
                    dispatch::guarded(|| node.release(handle));
                    released.fetch_add(1, Ordering::SeqCst);
                    life.tell();
                }
            }
        };
        let started = std::thread::Builder::new().name("channel-end".into()).spawn(release);
        if let Err(error) = started {
            log::error!("no thread to release {total} open files: {error}");
            return (0, total);
        }
        let mut progress = (0, Instant::now());
        loop {
            let seen = self.life.events();
            let done = released.load(Ordering::SeqCst);
            if done > progress.0 {
                progress = (done, Instant::now());
            }
            if done == total || progress.1.elapsed() >= self.options.stop_grace {
                return (done, total - done);
            }
            self.life.wait(seen, Duration::from_millis(50));
        }
    }

    /// Interrupts every read(2), or the next one: a thread announces that it reads before it looks
    /// whether to go on, so that one which is missed here sees the end by itself.
    fn wake_readers(&self) {
        for worker in &self.workers {
            if worker.phase.load(Ordering::SeqCst) == READING
                && let Some(thread) = Pid::from_raw(worker.thread.load(Ordering::SeqCst) as i32)
            {
                system::send(self.signal, thread);
            }
        }
    }

    /// Interrupts handlers that have not been yet: all, or only those that wait.
    fn interrupt_handlers(&self, node: &impl Node, all: bool) {
        for (index, worker) in self.workers.iter().enumerate() {
            let concerned = all || worker.waits.load(Ordering::Relaxed);
            if !concerned || worker.phase.load(Ordering::SeqCst) != HANDLING {
                continue;
            }
            let unique = self.region.unique(index);
            if unique != 0 && !worker.interrupt.is_set() {
                self.interrupt(unique);
                dispatch::interrupted(self, node, unique);
            }
        }
    }

    /// Lets the callers of stuck handlers go.
    fn answer_abandoned(&self) {
        for (index, worker) in self.workers.iter().enumerate() {
            let unique = self.region.unique(index);
            if worker.phase.load(Ordering::SeqCst) == HANDLING && unique != 0 {
                let _ = self.link.error(unique, Errno::CONNABORTED);
            }
        }
    }

    fn over(&self, errno: Errno) -> EndReason {
        // FUSE_ABORT_ERROR is asked for: ECONNABORTED is an abort, ENODEV then an unmount. CUSE has
        // ENODEV only, and nothing to unmount.
        match (errno, self.attributes.is_some()) {
            (Errno::NODEV, true) => EndReason::Unmounted,
            _ => EndReason::Aborted,
        }
    }
}

/// The life of one thread.
fn read_and_handle<N: Node>(shared: &Arc<Shared>, node: &Arc<N>, index: usize) {
    system::only(shared.signal);
    let worker = shared.worker(index);
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    worker.thread.store(thread.unsigned_abs(), Ordering::SeqCst);
    let mut slot = Slot::of_claimed(&shared.region, index);
    let mut failures = 0;
    loop {
        worker.phase.store(READING, Ordering::SeqCst);
        if shared.life.is_ending() {
            break;
        }
        match slot.receive(shared.link.device()) {
            Ok(bytes) if !bytes.is_empty() => {
                worker.phase.store(HANDLING, Ordering::SeqCst);
                failures = 0;
                let another_reads = shared.stop_reading(node);
                dispatch::handle(shared, &**node, index, bytes, another_reads);
                if !shared.resume_reading() {
                    worker.phase.store(OUT, Ordering::SeqCst);
                    return;
                }
            }
            // ENOENT: the request was taken back before it could be read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
            Err(errno @ (Errno::NODEV | Errno::CONNABORTED)) => {
                shared.life.end(shared.over(errno));
                break;
            }
            // Out of memory, for instance; the kernel has answered the request itself. An end of
            // file no kernel is known to send.
            failure => {
                let errno = failure.err().unwrap_or(Errno::IO);
                failures += 1;
                if failures >= FAILURES_TOLERATED {
                    shared.life.end(EndReason::Failed(errno));
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    shared.readers.fetch_sub(1, Ordering::SeqCst);
    worker.phase.store(OUT, Ordering::SeqCst);
}

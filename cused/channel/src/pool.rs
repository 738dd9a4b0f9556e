//! Threads that read requests and have a node answer them.
//!
//! Owns the threads: how many there are, who may occupy one, waking and interrupting them. What
//! a request means is [`crate::dispatch`]'s matter, beginning and end are [`mod@crate::serve`]'s.
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
//!   that interrupts, RELEASE and everything that does not block are always served. The system may
//!   refuse threads before there are [`ServeOptions::max_threads`]; that changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::Pid;

use crate::answer::Link;
use crate::dispatch;
use crate::file::FileAttributes;
use crate::ledger::Ledger;
use crate::life::{EndReason, Life};
use crate::node::{Interrupt, Node, PollHandle};
use crate::parked::Lot;
use crate::serve::ServeOptions;
use crate::slots::{Region, Slot};
use crate::{system, wire};

/// Threads that stay in read(2) when there is little to do: one to take the next request, one to
/// take the one after that while the first is busy.
pub(crate) const READERS_KEPT: u32 = 2;
/// Readers beyond those stay until no thread has had to be started for this long.
const SURPLUS_STAYS: Duration = Duration::from_secs(1);
/// Reads that fail in a row, for reasons unknown, before serving is given up.
const FAILURES_TOLERATED: u32 = 1000;

/// What all threads use.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) link: Arc<Link>,
    pub(crate) attributes: Option<FileAttributes>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) lot: Arc<Lot>,
    pub(crate) region: Arc<Region>,
    workers: Box<[Worker]>,
    pub(crate) life: Arc<Life>,
    /// How many threads read or will read: see [`Counts`].
    counts: AtomicU64,
    /// Threads whose request may block.
    occupied: AtomicU32,
    begun: Instant,
    /// When a thread was last started, in milliseconds from `begun`.
    newest_start: AtomicU64,
    pub(crate) signal: i32,
    pub(crate) options: ServeOptions,
}

/// Two numbers that change together, in one word.
#[derive(Clone, Copy, Debug)]
struct Counts(u64);

impl Counts {
    /// One thread that is in read(2) or on its way there.
    const READER: u64 = 1;
    /// One thread that will be, when it has handled what it may have.
    const STAYING: u64 = 1 << 32;

    fn readers(self) -> u32 {
        self.0 as u32
    }

    fn staying(self) -> u32 {
        (self.0 >> 32) as u32
    }
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

impl Shared {
    /// For as many threads as there are slots; none is there yet.
    pub(crate) fn new(
        link: Link,
        attributes: Option<FileAttributes>,
        (region, ledger): (Arc<Region>, Ledger),
        signal: i32,
        options: ServeOptions,
    ) -> Self {
        let (link, ledger) = (Arc::new(link), Arc::new(ledger));
        let (limit, threads) = (options.per_handle_limit, region.slots());
        Self {
            lot: Arc::new(Lot::new(Arc::clone(&link), Arc::clone(&ledger), limit)),
            link,
            attributes,
            ledger,
            region,
            workers: (0..threads).map(|_| Worker::default()).collect(),
            life: Arc::default(),
            counts: AtomicU64::new(0),
            occupied: AtomicU32::new(0),
            begun: Instant::now(),
            newest_start: AtomicU64::new(0),
            signal,
            options,
        }
    }

    /// Takes the calling thread away from reading, to handle a request, and sees to it that another
    /// reads, if there can be one.
    fn stop_reading<N: Node>(self: &Arc<Self>, node: &Arc<N>) {
        let before = Counts(self.counts.fetch_sub(Counts::READER, Ordering::SeqCst));
        if before.readers() == 1 && !self.life.is_ending() {
            self.start_thread(node);
        }
    }

    /// Takes the calling thread back to reading. False if there are enough readers without it.
    fn resume_reading(&self) -> bool {
        let before = self.counts.fetch_add(Counts::READER, Ordering::SeqCst);
        let mut now = Counts(before + Counts::READER);
        while now.readers() > READERS_KEPT && self.surplus_may_go() {
            // Both at once: at no moment may someone rely on this thread to read, or miss it.
            let without = now.0 - Counts::READER - Counts::STAYING;
            let exchange =
                self.counts.compare_exchange(now.0, without, Ordering::SeqCst, Ordering::SeqCst);
            match exchange {
                Ok(_) => return false,
                Err(actual) => now = Counts(actual),
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
    pub(crate) fn start_thread<N: Node>(self: &Arc<Self>, node: &Arc<N>) -> bool {
        self.region.claim().is_some_and(|index| self.start_thread_at(index, node, &Arc::default()))
    }

    /// Starts a thread for a slot that is claimed. A request that the slot holds, and what was parked,
    /// it handles first.
    fn start_thread_at<N: Node>(
        self: &Arc<Self>,
        index: usize,
        node: &Arc<N>,
        parked: &Arc<Vec<Before>>,
    ) -> bool {
        self.life.threads.fetch_add(1, Ordering::SeqCst);
        self.counts.fetch_add(Counts::STAYING + Counts::READER, Ordering::SeqCst);
        self.newest_start.store(self.milliseconds(), Ordering::Relaxed);
        let (shared, node, parked) = (Arc::clone(self), Arc::clone(node), Arc::clone(parked));
        let started = std::thread::Builder::new()
            .name(format!("channel-{index}"))
            .stack_size(self.options.stack_size)
            .spawn(move || {
                let life = Arc::clone(&shared.life);
                read_and_handle(&shared, &node, index, parked);
                // Whoever sees the thread gone may rely on its share of these being gone, too.
                drop((node, shared));
                life.threads.fetch_sub(1, Ordering::SeqCst);
                life.tell();
            });
        if started.is_err() {
            drop(Slot::of_claimed(&self.region, index));
            self.counts.fetch_sub(Counts::STAYING + Counts::READER, Ordering::SeqCst);
            self.life.threads.fetch_sub(1, Ordering::SeqCst);
        }
        started.is_ok()
    }

    /// Whether a request that may block can occupy thread `index`. If so it counts until
    /// [`Shared::discharge`], which is to come before its answer: whoever has an answer can ask again.
    pub(crate) fn admit(&self, index: usize, occupant: Occupant) -> bool {
        let worker = &self.workers[index];
        let handle = occupant.handle;
        worker.handle.store(handle, Ordering::Relaxed);
        worker.waits.store(occupant.waits, Ordering::Relaxed);
        worker.counted.store(true, Ordering::SeqCst);
        let occupied = self.occupied.fetch_add(1, Ordering::SeqCst) + 1;
        let staying = Counts(self.counts.load(Ordering::SeqCst)).staying();
        let another_reads = occupied < staying;
        let occupied = occupied as usize;
        let free = self.workers.len().saturating_sub(occupied);
        let allowed = self.options.per_handle_limit.min(free).max(1);
        // No handle has more than all; mostly that settles it.
        let admitted =
            another_reads && (occupied <= allowed || self.occupied_by(handle) <= allowed);
        if !admitted {
            self.discharge(index);
        }
        admitted
    }

    /// The request of thread `index` can no longer block.
    pub(crate) fn discharge(&self, index: usize) {
        let worker = &self.workers[index];
        worker.waits.store(false, Ordering::Relaxed);
        worker.counted.store(false, Ordering::SeqCst);
        self.occupied.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn occupied_by(&self, handle: u64) -> usize {
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

    /// Interrupts every read(2), or the next one: a thread announces that it reads before it looks
    /// whether to go on, so that one which is missed here sees the end by itself.
    pub(crate) fn wake_readers(&self) {
        for worker in &self.workers {
            if worker.phase.load(Ordering::SeqCst) == READING
                && let Some(thread) = Pid::from_raw(worker.thread.load(Ordering::SeqCst) as i32)
            {
                system::send(self.signal, thread);
            }
        }
    }

    /// Interrupts handlers that have not been yet: all, or only those that wait.
    pub(crate) fn interrupt_handlers(&self, node: &impl Node, all: bool) {
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
    pub(crate) fn answer_abandoned(&self) {
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
fn read_and_handle<N: Node>(
    shared: &Arc<Shared>,
    node: &Arc<N>,
    index: usize,
    parked: Arc<Vec<Before>>,
) {
    system::only(shared.signal);
    let worker = shared.worker(index);
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    worker.thread.store(thread.unsigned_abs(), Ordering::SeqCst);
    let mut slot = Slot::of_claimed(&shared.region, index);
    if let Some(bytes) = slot.held()
        && !handle_inherited(shared, node, index, bytes)
    {
        return;
    }
    if !parked.is_empty() && !handle_parked(shared, node, &mut slot, index, &parked) {
        return;
    }
    drop(parked);
    let mut failures = 0;
    loop {
        worker.phase.store(READING, Ordering::SeqCst);
        if shared.life.is_ending() {
            break;
        }
        match slot.receive(shared.link.device()) {
            Ok(bytes) if !bytes.is_empty() => {
                failures = 0;
                if !handle(shared, node, index, bytes) {
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
    shared.counts.fetch_sub(Counts::STAYING + Counts::READER, Ordering::SeqCst);
    worker.phase.store(OUT, Ordering::SeqCst);
}

/// Handles a request. False if the thread is not needed for reading afterwards.
fn handle<N: Node>(shared: &Arc<Shared>, node: &Arc<N>, index: usize, bytes: &[u8]) -> bool {
    away_from_reading(shared, node, index, || dispatch::handle(shared, &**node, index, bytes))
}

/// Has thread `index` do something while others read. False if it is not needed for reading
/// afterwards.
fn away_from_reading<N: Node>(
    shared: &Arc<Shared>,
    node: &Arc<N>,
    index: usize,
    work: impl FnOnce(),
) -> bool {
    let worker = shared.worker(index);
    worker.phase.store(HANDLING, Ordering::SeqCst);
    shared.stop_reading(node);
    work();
    let reads_on = shared.resume_reading();
    if !reads_on {
        worker.phase.store(OUT, Ordering::SeqCst);
    }
    reads_on
}

/// Handles a request that a predecessor has read, unless it has answered it. False if the thread is
/// not needed for reading afterwards.
fn handle_inherited<N: Node>(
    shared: &Arc<Shared>,
    node: &Arc<N>,
    index: usize,
    bytes: &[u8],
) -> bool {
    let unique = shared.region.unique(index);
    // Of FUSE_INTERRUPTs as well: what they were about is told again where it is asked for.
    let is_waiting = unique & wire::INTERRUPT_BIT == 0 && shared.link.is_waiting(unique);
    !is_waiting || handle(shared, node, index, bytes)
}

/// A read that a predecessor had parked.
#[derive(Debug)]
struct Before {
    /// Where it is noted.
    place: usize,
    unique: u64,
    message: Vec<u8>,
}

/// Handles reads that were parked, each as if it had just been read. False if the thread is not
/// needed for reading afterwards.
fn handle_parked<N: Node>(
    shared: &Arc<Shared>,
    node: &Arc<N>,
    slot: &mut Slot<'_>,
    index: usize,
    parked: &[Before],
) -> bool {
    away_from_reading(shared, node, index, || {
        for &Before { place, unique, ref message } in parked {
            // In this order it is noted somewhere at any moment, and found by its FUSE_INTERRUPT.
            let held = slot.put(unique, message);
            shared.ledger.unpark(place);
            if let Some(bytes) = held.filter(|_| shared.link.is_waiting(unique)) {
                dispatch::handle(shared, &**node, index, bytes);
            }
        }
        slot.clear();
    })
}

impl Shared {
    /// Has done what a predecessor has left to do, by threads that are started here. To be called
    /// while there is no other.
    pub(crate) fn take_over<N: Node>(self: &Arc<Self>, node: &Arc<N>) {
        let unique = |index: &usize| self.region.unique(*index);
        let held: Vec<usize> =
            (0..self.region.slots()).filter(|index| unique(index) != 0).collect();
        let uniques: Vec<u64> = held.iter().map(unique).collect();
        let mut parked = Vec::new();
        for (place, unique, message) in self.ledger.parked() {
            match uniques.contains(&unique) {
                // It was being parked or taken back.
                true => self.ledger.unpark(place),
                false => parked.push(Before { place, unique, message }),
            }
        }
        for (index, unique) in held.into_iter().zip(uniques) {
            if !self.start_thread_at(index, node, &Arc::default()) {
                let _ = self.link.error(unique, Errno::IO);
            }
        }
        let parked = Arc::new(parked);
        let start = |index| self.start_thread_at(index, node, &parked);
        while !parked.is_empty() && !self.region.claim().is_some_and(start) {
            // All slots hold what was left, or there is no thread to be had: later perhaps.
            if self.life.is_ending() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for sleeper in self.ledger.sleepers() {
            let _ = self.link.wake(PollHandle(sleeper));
        }
    }
}

//! Serving a channel, from its first thread to its end.
//!
//! Owns what is public about it, and that the end leaves nothing behind within bounds of time. What
//! happens in between is [`crate::pool`]'s.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;

use crate::channel::{Channel, Presence};
use crate::dispatch;
use crate::ledger::{Ledger, Unreadable};
use crate::life::{EndReason, Life};
use crate::node::{Node, PollHandle};
use crate::pool::{READERS_KEPT, Shared};
use crate::slots::Region;
use crate::system;

/// How to serve.
///
/// A request that may block (ioctl, read, write) occupies a thread until its handler returns, and
/// a read that is [parked](crate::Read::park) none. One is
/// refused with EBUSY, at once, if its open file occupies [`ServeOptions::per_handle_limit`] threads
/// already, or as many as are left unoccupied, or if it would take the last thread. So k open files
/// that want everything get a (k+1)th part of the threads each, and others still find some; only
/// about as many such files as there are threads leave nothing for a newcomer. Everything else is
/// always served: opening, closing, polling, interrupts.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Most threads; at least 2. Each reserves 132 KiB of address space, and its stack. A successor
    /// has as many as the first one was given.
    pub max_threads: usize,
    /// Most threads that the requests of one open file may occupy at a time; at least 1. Also the
    /// most reads of it that may be parked.
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
    /// What should be a predecessor's buffers is not.
    #[error("what was left to take over is not of a cuse-channel: {0}")]
    Foreign(Errno),
    /// The predecessor is of another version.
    #[error(
        "what was left to take over is of another version ({0}): let the program that wrote it \
         serve it, or stop that before this one is started"
    )]
    Version(u64),
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
        let threads = options.max_threads.clamp(2, u16::MAX as usize);
        let refused = |errno| ServeError::Buffers { threads, errno };
        let region = Arc::new(Region::new(threads).map_err(refused)?);
        let ledger = Ledger::new(Arc::clone(&region), &channel.identity()).map_err(refused)?;
        Self::with(channel, (region, ledger), options)
    }

    /// Takes over from a process that served the node and is dead, or has [left](Stop::leave), with
    /// what it had as [`Server::keepsakes`]. Programs that have the node open do not notice: what they
    /// ask for meanwhile waits.
    ///
    /// Requests that the predecessor has read and not answered are handled again, with the same
    /// `unique`. How far they had come is for the node to know, as is which files are open and what
    /// they were. So, if one process may take over from another:
    ///
    /// - [`Node::open`](crate::Node::open) may be called again for the same `unique`, and is then to
    ///   return the same handle. To have the `unique` for the handle is the simplest way.
    /// - [`Node::release`](crate::Node::release) may be called again for a handle that is gone.
    /// - Whoever sleeps in poll is woken, and asks again. Reads that were parked are asked for again.
    ///
    /// Nothing is changed before it is certain that all of it is understood.
    pub fn succeed(estate: Estate, options: ServeOptions) -> Result<Self, ServeError> {
        let region = Arc::new(Region::adopt(estate.requests).map_err(ServeError::Foreign)?);
        let adopted = Ledger::adopt(Arc::clone(&region)).map_err(|unreadable| match unreadable {
            Unreadable::Foreign => ServeError::Foreign(Errno::INVAL),
            Unreadable::Version(version) => ServeError::Version(version),
        });
        let (ledger, identity) = adopted?;
        Self::with(Channel::inherited(estate.device, identity), (region, ledger), options)
    }

    fn with(
        channel: Channel,
        memory: (Arc<Region>, Ledger),
        options: ServeOptions,
    ) -> Result<Self, ServeError> {
        let signal = options.wake_signal.unwrap_or_else(system::default_signal);
        system::prepare(signal).map_err(|_| ServeError::WakeSignal { signal })?;
        let Channel { presence, link, attributes, node } = channel;
        let shared = Shared::new(link, attributes, memory, signal, options);
        Ok(Self { presence, shared: Arc::new(shared), node })
    }

    /// The descriptors that a successor needs. While some process has them, and nothing but them, the
    /// node stays, and waits for a process that serves it.
    pub fn keepsakes(&self) -> Keepsakes<'_> {
        Keepsakes { device: self.shared.link.device(), requests: self.shared.region.file() }
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
        self.shared.take_over(&node);
        for _ in 0..READERS_KEPT {
            if !self.shared.start_thread(&node) && self.shared.life.threads() == 0 {
                self.shared.life.end(EndReason::Failed(Errno::AGAIN));
            }
        }
        let reason = self.shared.life.wait_for_end();
        let abandoned = self.shared.wind_down(&*node, reason);
        if reason == EndReason::Left {
            self.presence.leave();
            return Ended { reason, released: 0, unreleased: 0, abandoned };
        }
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

    /// Asks for an end that leaves everything as it is, for a [successor](Server::succeed): no file is
    /// released, and the node stays for as long as somebody has its [keepsakes](Server::keepsakes).
    /// Requests in progress may finish, within [`ServeOptions::stop_grace`]; the process must end
    /// before the successor begins. Async-signal-safe.
    pub fn leave(&self) {
        self.life.end(EndReason::Left);
    }
}

/// What a successor needs, still in use.
#[derive(Clone, Copy, Debug)]
pub struct Keepsakes<'a> {
    /// The connection to the kernel.
    pub device: BorrowedFd<'a>,
    /// Memory in which are the requests that have been read.
    pub requests: BorrowedFd<'a>,
}

/// What a predecessor has left: its [`Keepsakes`].
#[derive(Debug)]
pub struct Estate {
    /// The connection to the kernel.
    pub device: OwnedFd,
    /// Memory in which are the requests that have been read.
    pub requests: OwnedFd,
}

/// Wakes callers asleep in poll(2), select(2) or epoll_wait(2).
#[derive(Clone, Debug)]
pub struct Notifier {
    shared: Weak<Shared>,
}

impl Notifier {
    /// One that wakes nobody, to test a node with.
    pub fn detached() -> Self {
        Self { shared: Weak::new() }
    }

    /// Has whoever sleeps on `handle` ask [`Node::poll`] again. To be called after the state has
    /// changed. Nobody sleeping, or a file closed since, is not an error.
    ///
    /// Errors: ENODEV if serving has ended.
    pub fn wake(&self, handle: PollHandle) -> Result<(), Errno> {
        self.shared.upgrade().ok_or(Errno::NODEV)?.link.wake(handle)
    }
}

/// The end.
impl Shared {
    /// Gets all threads to leave, within the time of [`ServeOptions::stop_grace`]. Returns how many
    /// are left. Unless there is to be a successor, nobody waits for answers any longer.
    fn wind_down(&self, node: &impl Node, reason: EndReason) -> usize {
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
            if reason != EndReason::Left {
                self.lot.close();
                self.interrupt_handlers(node, waited >= self.options.stop_grace / 2);
            }
            self.life.wait(seen, pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Has the node release every open handle, those that a handler is stuck with last. Gives up
    /// when none has been released for [`ServeOptions::stop_grace`]: the node may be waiting for
    /// a stuck handler. Returns how many were released, and how many not.
    fn release_all(self: &Arc<Self>, node: &Arc<impl Node>) -> (usize, usize) {
        let mut handles = self.ledger.take_handles();
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Link;
    use crate::file::FileAttributes;
    use crate::ledger::Owner;
    use crate::node::{Context, IoVec, Ioctl, IoctlReply, Read, ReadReply, WayOut};
    use crate::request;
    use crate::wire::{InHeader, OutHeader};
    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
    use std::os::fd::OwnedFd;
    use zerocopy::{FromBytes, IntoBytes};

    /// Answers with whatever the request's own numbers suggest, right or wrong.
    struct Fickle;

    impl Node for Fickle {
        fn open(&self, flags: u32, _context: &Context<'_>) -> Result<u64, Errno> {
            if flags & 1 == 0 { Ok(flags.into()) } else { Err(Errno::from_raw_os_error(600)) }
        }

        fn release(&self, _handle: u64) {}

        fn ioctl(&self, request: &Ioctl<'_>) -> IoctlReply {
            let size = (request.arg % 5000) as usize;
            let place = IoVec { base: request.arg, len: request.arg };
            match request.command % 4 {
                0 => IoctlReply::Done { result: request.arg as i32, output: vec![0; size] },
                1 => IoctlReply::Retry { inputs: vec![place; size], outputs: vec![place; 2] },
                2 => {
                    let _ = request.responder.send(-1, &vec![0; size]);
                    IoctlReply::value(1)
                }
                _ => IoctlReply::error(Errno::from_raw_os_error(-7)),
            }
        }

        fn read(&self, request: &Read<'_>) -> ReadReply {
            let data = vec![0; request.size.min(10_000) + usize::from(request.nonblock)];
            match request.size % 3 {
                0 => ReadReply::Data(data),
                // Answered whatever becomes of it: with data, dropped, or as the handler says.
                1 => {
                    let _ = request.park().and_then(|parked| parked.answer(&data));
                    ReadReply::Elsewhere
                }
                _ => {
                    let _parked = request.park();
                    ReadReply::Error(Errno::AGAIN)
                }
            }
        }

        fn interrupted(&self, _unique: u64) -> Option<WayOut> {
            Some(WayOut::Fail(Errno::INTR))
        }
    }

    /// The kernel's end of a channel, as far as one that keeps to message boundaries can be one.
    struct FakeKernel {
        socket: OwnedFd,
        stop: Stop,
        serving: Option<std::thread::JoinHandle<Ended>>,
        unique: u64,
    }

    impl FakeKernel {
        fn new() -> Self {
            let (socket, device) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            let channel = Channel {
                presence: Presence::Cuse { name: "channel-test-none".into() },
                link: Link::new(device),
                attributes: Some(FileAttributes::new(Owner { mode: 0o600, uid: 0, gid: 0 })),
                node: "/dev/channel-test-none".into(),
            };
            let server = Server::new(channel, ServeOptions::default()).unwrap();
            let stop = server.stopper();
            let serving = std::thread::spawn(move || server.serve(Arc::new(Fickle)));
            Self { socket, stop, serving: Some(serving), unique: 0 }
        }

        fn request(&mut self, opcode: u32, body: &[u8]) -> u64 {
            self.unique += 2;
            let header = InHeader {
                len: (size_of::<InHeader>() + body.len()) as u32,
                opcode,
                unique: self.unique,
                ..Default::default()
            };
            let bytes = [header.as_bytes(), body].concat();
            rustix::net::send(&self.socket, &bytes, SendFlags::empty()).unwrap();
            self.unique
        }

        fn answer(&self) -> OutHeader {
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            let time = Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(poll(&mut ready, Some(&time)), Ok(1), "no answer");
            let mut bytes = vec![0; 1 << 20];
            let (_, count) =
                rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::empty()).unwrap();
            let (header, _) = OutHeader::read_from_prefix(&bytes).unwrap();
            assert_eq!(header.len as usize, count);
            header
        }
    }

    impl Drop for FakeKernel {
        fn drop(&mut self) {
            self.stop.stop();
            let ended = self.serving.take().map(|serving| serving.join().unwrap());
            assert!(ended.is_some_and(|ended| ended.abandoned == 0));
        }
    }

    /// An opcode that is answered at once, to see that nothing was before it.
    const SENTINEL: u32 = 999;

    #[test]
    fn every_request_gets_one_answer_or_none_as_its_kind_demands() {
        let kernel = std::cell::RefCell::new(FakeKernel::new());
        let bodies = prop::collection::vec(any::<u8>(), 0..200);
        let opcodes = prop_oneof![0u32..52, Just(39), Just(14), Just(15), Just(16), Just(4096)];
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
        let result = runner.run(&(opcodes, bodies), |(opcode, body)| {
            let mut kernel = kernel.borrow_mut();
            let unique = kernel.request(opcode, &body);
            if request::takes_answer(opcode) {
                let answer = kernel.answer();
                prop_assert_eq!(answer.unique, unique);
                prop_assert!((-511..=0).contains(&answer.error), "{:?}", answer);
            }
            let sentinel = kernel.request(SENTINEL, &[]);
            let answer = kernel.answer();
            prop_assert_eq!(answer.unique, sentinel);
            prop_assert_eq!(answer.error, -Errno::NOSYS.raw_os_error());
            Ok(())
        });
        result.unwrap();
    }

    #[test]
    fn a_connection_that_delivers_nothing_is_given_up() {
        let mut kernel = FakeKernel::new();
        // Reads now return nothing at once, for ever.
        rustix::net::shutdown(&kernel.socket, rustix::net::Shutdown::Both).unwrap();
        let ended = kernel.serving.take().unwrap().join().unwrap();
        assert_eq!(ended.reason, EndReason::Failed(Errno::IO));
        kernel.serving = Some(std::thread::spawn(move || ended));
    }
}

//! A node whose behaviour a test can see and steer, and a server for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cuse_channel::{
    Caller, Channel, Context, CuseOptions, Ended, Errno, FuseFileOptions, IoVec, Ioctl, IoctlReply,
    Node, Notifier, Parked, PollHandle, Read, ReadReply, ServeOptions, Server, Stop, WayOut,
};

/// How long anything may take before it counts as hanging. Emulated machines are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Commands of the node, `_IO('T', n)`.
pub(crate) mod command {
    /// Returns the argument.
    pub(crate) const SAME: u64 = 0x5400;
    /// Fails with the argument as errno.
    pub(crate) const FAIL: u64 = 0x5401;
    /// Takes as many milliseconds as the argument says, or EINTR once it is interrupted.
    pub(crate) const SLOW: u64 = 0x5402;
    /// Takes as many milliseconds as the argument says, and returns 7.
    pub(crate) const STUBBORN: u64 = 0x5403;
    /// Blocks until the gate is opened, and returns 1.
    pub(crate) const BLOCK: u64 = 0x5404;
    /// Panics.
    pub(crate) const PANIC: u64 = 0x5405;
    /// Answers with EIO before the handler takes as many milliseconds as the argument says.
    pub(crate) const EARLY: u64 = 0x5406;
    /// The argument points to an address and a size; the bytes there are inverted.
    pub(crate) const INVERT: u64 = 0x5407;
    /// Answers with more output than there is room for.
    pub(crate) const TOO_MUCH: u64 = 0x5408;
    /// As BLOCK, but interrupted the caller gets EINTR while the handler goes on.
    pub(crate) const HOPELESS: u64 = 0x5409;
    /// Waits to be interrupted, begins anew, and then returns 9.
    pub(crate) const AGAIN: u64 = 0x5411;
    /// Makes the file readable: one more record, of the argument's lowest byte.
    pub(crate) const FEED: u64 = 0x540a;
    /// Asks for 128 KiB at the argument by RETRY, and returns how many bytes came.
    pub(crate) const GATHER: u64 = 0x540b;
    /// The same with one byte more than can be had.
    pub(crate) const GATHER_TOO_MUCH: u64 = 0x5410;
    /// `_IOWR('T', 12, 16 bytes)`: inverts 16 bytes.
    pub(crate) const INVERT_16: u64 = 0xc010_540c;
    /// 1 for a 32-bit caller, else 0.
    pub(crate) const IS_COMPAT: u64 = 0x540d;
    /// 1 if RETRY is possible, else 0.
    pub(crate) const IS_UNRESTRICTED: u64 = 0x540e;
    /// RETRY, whether possible or not.
    pub(crate) const RETRY: u64 = 0x540f;
    /// From now on reads of the file that wait are parked; with argument 1, once they are interrupted.
    pub(crate) const PARK: u64 = 0x5412;
}

/// The node.
#[derive(Default)]
pub(crate) struct Lab {
    notifier: OnceLock<Notifier>,
    next: AtomicU64,
    /// Opens and ioctls that have reached the node.
    pub(crate) entered: AtomicUsize,
    pub(crate) opened: AtomicUsize,
    /// Each handle that was released, as often as it was.
    pub(crate) released: Mutex<Vec<u64>>,
    pub(crate) callers: Mutex<Vec<Caller>>,
    /// Requests that saw their interrupt set.
    pub(crate) interrupted: AtomicUsize,
    /// Calls of the hook.
    pub(crate) hooks: AtomicUsize,
    pub(crate) blocked: AtomicUsize,
    pub(crate) finished: AtomicUsize,
    pub(crate) open_refused: AtomicBool,
    pub(crate) open_takes: Mutex<Duration>,
    pub(crate) release_takes: Mutex<Duration>,
    /// Whether releasing waits for the gate.
    pub(crate) release_blocks: AtomicBool,
    hopeless: Mutex<HashSet<u64>>,
    gate: Mutex<bool>,
    changed: Condvar,
    files: Mutex<HashMap<u64, File>>,
}

#[derive(Default)]
struct File {
    records: VecDeque<u8>,
    wake: Option<PollHandle>,
    parks: bool,
    parks_late: bool,
    parked: VecDeque<Parked>,
}

impl Lab {
    pub(crate) fn open_gate(&self) {
        *self.gate.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass_gate(&self) {
        self.blocked.fetch_add(1, Ordering::SeqCst);
        let mut open = self.gate.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
        self.blocked.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn feed(&self, handle: u64, record: u8) {
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(&handle).unwrap();
        file.records.push_back(record);
        while let Some(parked) = file.parked.pop_front() {
            let count = file.records.len().min(parked.size());
            let records: Vec<u8> = file.records.iter().copied().take(count).collect();
            if parked.answer(&records).is_ok() {
                file.records.drain(..count);
                break;
            }
        }
        self.changed.notify_all();
        if let Some(wake) = file.wake.take() {
            self.notifier.get().unwrap().wake(wake).unwrap();
        }
    }
}

/// What is parked.
impl Lab {
    /// How many reads of a file wait.
    pub(crate) fn waiting(&self, handle: u64) -> usize {
        let files = self.files.lock().unwrap();
        files[&handle].parked.iter().filter(|parked| parked.is_waiting()).count()
    }

    /// Drops the parked reads of a file without an answer.
    pub(crate) fn forget(&self, handle: u64) {
        self.files.lock().unwrap().get_mut(&handle).unwrap().parked.clear();
    }
}

fn invert(request: &Ioctl<'_>) -> IoctlReply {
    let outer = IoVec { base: request.arg, len: 16 };
    match request.input.len() {
        0 => IoctlReply::Retry { inputs: vec![outer], outputs: vec![] },
        16 => {
            let word = |at| u64::from_ne_bytes(request.input[at..at + 8].try_into().unwrap());
            let inner = IoVec { base: word(0), len: word(8) };
            IoctlReply::Retry { inputs: vec![outer, inner], outputs: vec![inner] }
        }
        _ => {
            let output: Vec<u8> = request.input[16..].iter().map(|byte| !byte).collect();
            assert_eq!(output.len(), request.output_size);
            IoctlReply::Done { result: output.len() as i32, output }
        }
    }
}

fn gather(request: &Ioctl<'_>, size: u64) -> IoctlReply {
    if request.input.is_empty() {
        let inputs = vec![IoVec { base: request.arg, len: size }];
        return IoctlReply::Retry { inputs, outputs: vec![] };
    }
    IoctlReply::value(request.input.len() as i32)
}

impl Node for Lab {
    fn open(&self, _flags: u32, context: &Context<'_>) -> Result<u64, Errno> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(*self.open_takes.lock().unwrap());
        if self.open_refused.load(Ordering::SeqCst) {
            return Err(Errno::NFILE);
        }
        self.callers.lock().unwrap().push(context.caller);
        let handle = self.next.fetch_add(1, Ordering::SeqCst) + 100;
        self.files.lock().unwrap().insert(handle, File::default());
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(handle)
    }

    fn release(&self, handle: u64) {
        std::thread::sleep(*self.release_takes.lock().unwrap());
        if self.release_blocks.load(Ordering::SeqCst) {
            self.pass_gate();
        }
        self.files.lock().unwrap().remove(&handle);
        self.released.lock().unwrap().push(handle);
    }

    fn ioctl(&self, request: &Ioctl<'_>) -> IoctlReply {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let milliseconds = Duration::from_millis(request.arg);
        let begun = Instant::now();
        match u64::from(request.command) {
            command::SAME => IoctlReply::value(request.arg as i32),
            command::FAIL => IoctlReply::value(-(request.arg as i32)),
            command::SLOW => {
                while begun.elapsed() < milliseconds {
                    if request.interrupt.is_set() {
                        self.interrupted.fetch_add(1, Ordering::SeqCst);
                        return IoctlReply::error(Errno::INTR);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                IoctlReply::value(0)
            }
            command::AGAIN => {
                if self.interrupted.load(Ordering::SeqCst) > 0 {
                    return IoctlReply::value(9);
                }
                while !request.interrupt.is_set() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                self.interrupted.fetch_add(1, Ordering::SeqCst);
                IoctlReply::Restart
            }
            command::STUBBORN => {
                self.blocked.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(milliseconds);
                self.blocked.fetch_sub(1, Ordering::SeqCst);
                self.finished.fetch_add(1, Ordering::SeqCst);
                if request.interrupt.is_set() {
                    self.interrupted.fetch_add(1, Ordering::SeqCst);
                }
                IoctlReply::value(7)
            }
            command::BLOCK => {
                self.pass_gate();
                IoctlReply::value(1)
            }
            command::PANIC => panic!("as the test wants it"),
            command::EARLY => {
                request.responder.send(-Errno::IO.raw_os_error(), &[]).unwrap();
                assert_eq!(request.responder.send(0, &[]), Err(Errno::ALREADY));
                std::thread::sleep(milliseconds);
                self.finished.fetch_add(1, Ordering::SeqCst);
                IoctlReply::value(3)
            }
            command::INVERT => invert(request),
            command::TOO_MUCH => {
                IoctlReply::Done { result: 0, output: vec![0; request.output_size + 1] }
            }
            command::HOPELESS => {
                self.hopeless.lock().unwrap().insert(request.unique);
                self.pass_gate();
                self.finished.fetch_add(1, Ordering::SeqCst);
                IoctlReply::value(2)
            }
            command::FEED => {
                self.feed(request.fh, request.arg as u8);
                IoctlReply::value(0)
            }
            command::PARK => {
                let mut files = self.files.lock().unwrap();
                let file = files.get_mut(&request.fh).unwrap();
                (file.parks, file.parks_late) = (true, request.arg == 1);
                IoctlReply::value(0)
            }
            command::GATHER => gather(request, 128 << 10),
            command::GATHER_TOO_MUCH => gather(request, (128 << 10) + 1),
            command::INVERT_16 => match request.input {
                [] => {
                    let place = vec![IoVec { base: request.arg, len: 16 }];
                    IoctlReply::Retry { inputs: place.clone(), outputs: place }
                }
                input => {
                    let output = input.iter().map(|byte| !byte).collect();
                    IoctlReply::Done { result: 5, output }
                }
            },
            command::IS_COMPAT => IoctlReply::value(request.compat.into()),
            command::IS_UNRESTRICTED => IoctlReply::value(request.unrestricted.into()),
            command::RETRY => gather(request, 1),
            _ => IoctlReply::error(Errno::NOTTY),
        }
    }

    fn poll(&self, handle: u64, events: u32, wake: Option<PollHandle>) -> u32 {
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(&handle).unwrap();
        if wake.is_some() {
            file.wake = wake;
        }
        let ready = if file.records.is_empty() { libc::POLLOUT } else { libc::POLLIN };
        events & ready as u32
    }

    fn read(&self, request: &Read<'_>) -> ReadReply {
        let mut files = self.files.lock().unwrap();
        loop {
            let file = files.get_mut(&request.fh).unwrap();
            if !file.records.is_empty() {
                let count = file.records.len().min(request.size);
                return ReadReply::Data(file.records.drain(..count).collect());
            }
            if request.nonblock {
                return ReadReply::Error(Errno::AGAIN);
            }
            if file.parks && (!file.parks_late || request.interrupt.is_set()) {
                return match request.park() {
                    Ok(parked) => {
                        file.parked.push_back(parked);
                        ReadReply::Elsewhere
                    }
                    Err(errno) => ReadReply::Error(errno),
                };
            }
            if request.interrupt.is_set() {
                self.interrupted.fetch_add(1, Ordering::SeqCst);
                return ReadReply::Error(Errno::INTR);
            }
            files = self.changed.wait(files).unwrap();
        }
    }

    fn write(
        &self,
        handle: u64,
        data: &[u8],
        _nonblock: bool,
        _context: &Context<'_>,
    ) -> Result<usize, Errno> {
        if data.first() == Some(&0) {
            return Err(Errno::INVAL);
        }
        for byte in data {
            self.feed(handle, *byte);
        }
        Ok(data.len())
    }

    fn interrupted(&self, unique: u64) -> Option<WayOut> {
        self.hooks.fetch_add(1, Ordering::SeqCst);
        // Whoever waits with this lock held looks at its interrupt before it waits again.
        drop(self.files.lock().unwrap());
        self.changed.notify_all();
        self.hopeless.lock().unwrap().contains(&unique).then_some(WayOut::Fail(Errno::INTR))
    }
}

/// How the node is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Cuse,
    File,
}

impl Transport {
    /// Why it cannot be tried here.
    pub(crate) fn obstacle(self) -> Option<String> {
        let device = match self {
            Self::Cuse => "/dev/cuse",
            Self::File => "/dev/fuse",
        };
        let opened = std::fs::File::options().read(true).write(true).open(device);
        opened.err().map(|error| format!("{device}: {}", error.kind()))
    }
}

/// A name that no other test uses.
pub(crate) fn unused_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("channel-test-{}-{number}", std::process::id())
}

/// A node being served.
pub(crate) struct Served {
    pub(crate) node: Arc<Lab>,
    pub(crate) path: PathBuf,
    stop: Stop,
    serving: Option<JoinHandle<Ended>>,
}

impl Served {
    pub(crate) fn new(transport: Transport) -> Self {
        Self::with(transport, ServeOptions::default())
    }

    pub(crate) fn with(transport: Transport, options: ServeOptions) -> Self {
        let channel = match transport {
            Transport::Cuse => Channel::cuse(&CuseOptions::new(unused_name())),
            Transport::File => {
                Channel::fuse_file(&FuseFileOptions::new(Path::new("/tmp").join(unused_name())))
            }
        };
        Self::of(channel.unwrap(), options)
    }

    pub(crate) fn of(channel: Channel, options: ServeOptions) -> Self {
        let path = channel.node().to_owned();
        let server = Server::new(channel, options).unwrap();
        let node = Arc::new(Lab::default());
        node.notifier.set(server.notifier()).unwrap();
        let stop = server.stopper();
        let serving = {
            let node = Arc::clone(&node);
            std::thread::spawn(move || server.serve(node))
        };
        Self { node, path, stop, serving: Some(serving) }
    }

    pub(crate) fn released(&self) -> usize {
        self.node.released.lock().unwrap().len()
    }

    /// Asks for the end without waiting.
    pub(crate) fn begin_stop(&self) {
        self.stop.stop();
    }

    /// Waits for the end.
    pub(crate) fn ended(&mut self) -> Ended {
        let serving = self.serving.take().unwrap();
        await_that("serving ends", || serving.is_finished());
        serving.join().unwrap()
    }

    pub(crate) fn stop(mut self) -> Ended {
        self.begin_stop();
        self.ended()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.stop();
        self.node.open_gate();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

/// Waits for a condition that some other process or thread brings about.
pub(crate) fn await_that(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the whole process if a test hangs; that closes the channel, and frees its callers.
pub(crate) struct Watchdog {
    _leash: Sender<()>,
}

impl Watchdog {
    pub(crate) fn new(name: String) -> Self {
        let (leash, leashed) = channel::<()>();
        std::thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError::Timeout;
            if leashed.recv_timeout(PATIENCE * 3) == Err(Timeout) {
                eprintln!("{name} hangs");
                std::process::abort();
            }
        });
        Self { _leash: leash }
    }
}

//! A node that outlives who serves it: processes are killed or leave, and others take over.
//!
//! The process of the trials is the one that keeps: it makes the node, serves it never, and starts
//! one server after the other, which inherit what it has. What a server's node has to remember across
//! its death, it keeps in a directory.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cuse_channel::{
    Channel, Context, CuseOptions, Errno, Estate, FuseFileOptions, Ioctl, IoctlReply, Node,
    Notifier, Parked, PollHandle, Read, ReadReply, ServeError, ServeOptions, Server,
};
use libtest_mimic::Trial;

use crate::client::Client;
use crate::lab::{Transport, await_that, command, unused_name};

/// Where a server remembers things, and that this process is one.
const PLACE: &str = "CUSE_CHANNEL_TEST_HEIR";
/// A server that does not heed interrupts.
const DEAF: &str = "CUSE_CHANNEL_TEST_DEAF";

type Test = (&'static str, fn(Transport));

pub(crate) fn trials() -> Vec<Trial> {
    let tests: &[Test] = &[
        ("no_call_fails_while_servers_are_killed", killed_often),
        ("a_call_is_begun_anew_by_the_successor", begun_anew),
        ("calls_of_all_threads_are_begun_anew", many_begun_anew),
        ("what_is_asked_while_nobody_serves_waits", gap),
        ("an_interrupt_that_was_heard_by_the_dead_is_heard_again", interrupted),
        ("a_caller_that_is_killed_meanwhile_is_let_go", killed_caller),
        ("a_parked_read_is_answered_by_the_successor", parked),
        ("who_sleeps_in_poll_is_woken", asleep),
        ("an_open_in_progress_is_finished_under_the_same_handle", opening),
        ("files_closed_meanwhile_are_released", released),
        ("who_leaves_finishes_what_it_has_begun", leaving),
        ("the_last_server_takes_the_node_away", taken_away),
        ("a_changed_mode_is_remembered", mode),
        ("what_is_of_another_version_is_refused_and_left_as_it_is", version),
    ];
    let mut trials = Vec::new();
    for transport in [Transport::File, Transport::Cuse] {
        for &(name, test) in tests {
            let prefix = format!("{transport:?}").to_lowercase();
            let root = (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned());
            let only_files = ["the_last_server_takes", "a_changed_mode"];
            if transport == Transport::Cuse && only_files.iter().any(|part| name.contains(part)) {
                continue;
            }
            let obstacle = transport.obstacle().or(root);
            let name = format!("heir::{prefix}::{name}");
            trials.push(crate::trial_with(name, obstacle, move || test(transport)));
        }
    }
    trials
}

/// A node that is kept, and who serves it.
struct Kept {
    server: Server,
    path: PathBuf,
    place: PathBuf,
    heir: Option<Child>,
}

impl Kept {
    /// Served by a first process.
    fn new(transport: Transport) -> Self {
        let mut kept = Self::unserved(transport);
        kept.serve(&[]);
        kept
    }

    fn unserved(transport: Transport) -> Self {
        let name = unused_name();
        let place = Path::new("/tmp").join(format!("{name}-notes"));
        fs::create_dir(&place).unwrap();
        let channel = match transport {
            Transport::Cuse => Channel::cuse(&CuseOptions::new(name)),
            Transport::File => {
                Channel::fuse_file(&FuseFileOptions::new(Path::new("/tmp").join(name)))
            }
        };
        let options = ServeOptions { max_threads: 16, ..ServeOptions::default() };
        let server = Server::new(channel.unwrap(), options).unwrap();
        Self { path: server.node().to_owned(), server, place, heir: None }
    }

    fn serve(&mut self, variables: &[(&str, &str)]) {
        let keepsakes = self.server.keepsakes();
        let kept = [keepsakes.device, keepsakes.requests].map(|fd| fd.as_raw_fd());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(PLACE, &self.place).envs(variables.iter().copied());
        command.env("CUSE_CHANNEL_TEST_KEPT", format!("{} {}", kept[0], kept[1]));
        // SAFETY: between fork and exec, only fcntl(2) on descriptors that are open.
        unsafe {
            command.pre_exec(move || {
                for fd in kept {
                    let fd = BorrowedFd::borrow_raw(fd);
                    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
                }
                Ok(())
            })
        };
        self.heir = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        let mut heir = self.heir.take().unwrap();
        heir.kill().unwrap();
        heir.wait().unwrap();
    }

    fn replace(&mut self) {
        self.kill();
        self.serve(&[]);
    }

    fn note(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// How often something has been noted.
    fn count(&self, name: &str) -> usize {
        fs::read(self.note(name)).map_or(0, |noted| noted.iter().filter(|&&b| b == b'\n').count())
    }

    /// The handles that have been noted.
    fn handles(&self, name: &str) -> BTreeSet<String> {
        let noted = fs::read_to_string(self.note(name)).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    fn client(&self) -> (Client, i64) {
        let mut client = Client::new();
        let file = client.open(&self.path);
        (client, file)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(mut heir) = self.heir.take() {
            let _ = heir.kill();
            let _ = heir.wait();
        }
        let _ = fs::remove_dir_all(&self.place);
    }
}

fn killed_often(transport: Transport) {
    let mut kept = Kept::new(transport);
    let mut clients: Vec<_> = (0..4).map(|_| kept.client()).collect();
    for (client, file) in &mut clients {
        client.begin(format!("repeat {file} {} 5 100000000", command::SAME));
    }
    let emulated = std::env::var_os("LAB").is_some();
    for round in 0..if emulated { 25 } else { 100 } {
        std::thread::sleep(Duration::from_millis(5 + round * 7 % 23));
        kept.replace();
        // Opening and closing go on as well.
        let (mut client, file) = kept.client();
        assert_eq!(
            client.value(format!("ioctl {file} {} {round}", command::SAME)),
            Ok(round as i64)
        );
        client.value(format!("close {file}")).unwrap();
    }
    for (client, _) in &mut clients {
        assert_eq!(client.ends_within(Duration::ZERO), None, "no call has failed");
    }
}

fn begun_anew(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (mut client, file) = kept.client();
    client.begin(format!("ioctl {file} {} 1000", command::SLOW));
    await_that("the call", || kept.count("slow") == 1);
    kept.replace();
    assert_eq!(client.result(), Ok((0, vec![])));
    assert_eq!(kept.count("slow"), 2);
}

fn many_begun_anew(transport: Transport) {
    let mut kept = Kept::new(transport);
    let mut clients: Vec<_> = (0..12).map(|_| kept.client()).collect();
    for (client, file) in &mut clients {
        client.begin(format!("ioctl {file} {} 1000", command::SLOW));
    }
    await_that("the calls", || kept.count("slow") >= 7);
    kept.replace();
    for (client, _) in &mut clients {
        assert_eq!(client.result(), Ok((0, vec![])));
    }
}

fn gap(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (mut client, file) = kept.client();
    kept.kill();
    client.begin(format!("ioctl {file} {} 5", command::SAME));
    let mut newcomer = Client::new();
    newcomer.begin(format!("open {} {}", kept.path.display(), libc::O_RDWR));
    assert_eq!(client.ends_within(Duration::from_millis(100)), None);
    assert_eq!(newcomer.ends_within(Duration::ZERO), None);
    kept.serve(&[]);
    assert_eq!(client.result(), Ok((5, vec![])));
    assert!(newcomer.result().is_ok());
}

fn interrupted(transport: Transport) {
    let mut kept = Kept::unserved(transport);
    kept.serve(&[(DEAF, "1")]);
    let (mut client, file) = kept.client();
    client.value("alarm 50 50 interrupt").unwrap();
    client.begin(format!("ioctl {file} {} 600000", command::SLOW));
    await_that("the interrupt", || kept.count("interrupted") >= 1);
    kept.replace();
    assert_eq!(client.result(), Err(libc::EINTR));
}

fn killed_caller(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (mut client, file) = kept.client();
    client.begin(format!("ioctl {file} {} 600000", command::SLOW));
    await_that("the call", || kept.count("slow") == 1);
    kept.kill();
    client.kill();
    assert!(!client.is_gone_within(Duration::from_millis(100)), "its request was read");
    kept.serve(&[]);
    assert!(client.is_gone_within(crate::lab::PATIENCE));
    await_that("release", || kept.count("released") == 1);
}

fn parked(transport: Transport) {
    let mut kept = Kept::new(transport);
    let mut clients: Vec<_> = (0..3).map(|_| kept.client()).collect();
    for (client, file) in &mut clients {
        client.begin(format!("read {file} 10"));
    }
    await_that("reads", || kept.count("parked") == 3);
    kept.replace();
    await_that("the same reads", || kept.count("parked") == 6);
    // One caller goes away; who serves next knows nothing of it.
    let (mut gone, _) = clients.pop().unwrap();
    gone.kill();
    assert!(gone.is_gone_within(crate::lab::PATIENCE));
    kept.replace();
    await_that("the reads that are left", || kept.count("parked") == 8);
    fs::write(kept.note("data"), "x").unwrap();
    for (client, _) in &mut clients {
        assert_eq!(client.result(), Ok((1, vec![b'x'])));
    }
}

fn asleep(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (mut client, file) = kept.client();
    client.begin(format!("poll {file} {} -1", libc::POLLIN));
    await_that("poll", || kept.count("polled") >= 1);
    assert_eq!(client.ends_within(Duration::from_millis(50)), None);
    kept.kill();
    fs::write(kept.note("data"), "x").unwrap();
    kept.serve(&[]);
    assert_eq!(client.result(), Ok((libc::POLLIN.into(), vec![])));
}

fn opening(transport: Transport) {
    let mut kept = Kept::new(transport);
    fs::write(kept.note("slow-open"), "").unwrap();
    let mut client = Client::new();
    client.begin(format!("open {} {}", kept.path.display(), libc::O_RDWR));
    await_that("the open", || kept.count("opened") == 1);
    kept.kill();
    fs::remove_file(kept.note("slow-open")).unwrap();
    kept.serve(&[]);
    let file = client.result().unwrap().0;
    client.value(format!("close {file}")).unwrap();
    await_that("release", || kept.count("released") == 1);
    assert_eq!((kept.count("opened"), kept.handles("opened")), (2, kept.handles("released")));
}

fn released(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (client, _) = kept.client();
    let (stays, _) = kept.client();
    kept.kill();
    // The last close of a CUSE device waits for its RELEASE, so nobody waits for it here.
    drop(client);
    kept.serve(&[]);
    // Perhaps told of twice: it may be killed when it has noted that and not answered.
    await_that("release", || kept.handles("released").len() == 1);
    kept.replace();
    stays.finish();
    await_that("release", || kept.handles("released").len() == 2);
    assert_eq!(kept.handles("released"), kept.handles("opened"));
}

fn leaving(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (mut client, file) = kept.client();
    let (mut reader, other) = kept.client();
    reader.begin(format!("read {other} 10"));
    client.begin(format!("ioctl {file} {} 300", command::SLOW));
    await_that("both", || kept.count("slow") == 1 && kept.count("parked") == 1);
    fs::write(kept.note("leave"), "").unwrap();
    let mut heir = kept.heir.take().unwrap();
    let status = heir.wait().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(client.result(), Ok((0, vec![])), "by who has left");
    fs::remove_file(kept.note("leave")).unwrap();
    assert_eq!(reader.ends_within(Duration::from_millis(50)), None);
    fs::write(kept.note("data"), "x").unwrap();
    kept.serve(&[]);
    assert_eq!(reader.result(), Ok((1, vec![b'x'])));
    assert_eq!((kept.count("slow"), kept.count("released")), (1, 0));
}

fn taken_away(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (client, _) = kept.client();
    kept.replace();
    fs::write(kept.note("stop"), "").unwrap();
    let mut heir = kept.heir.take().unwrap();
    assert!(heir.wait().unwrap().success());
    assert_eq!(kept.count("released"), 1, "as far as it was open");
    assert!(!kept.path.exists(), "also the file that the first one had created");
    drop(client);
}

fn mode(transport: Transport) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut kept = Kept::new(transport);
    fs::set_permissions(&kept.path, fs::Permissions::from_mode(0o640)).unwrap();
    kept.replace();
    // What the kernel remembers is not enough: chown makes it ask.
    std::os::unix::fs::chown(&kept.path, None, Some(4321)).unwrap();
    assert_eq!(fs::metadata(&kept.path).unwrap().permissions().mode(), 0o100_640);
}

fn version(transport: Transport) {
    let mut kept = Kept::new(transport);
    let (mut client, file) = kept.client();
    kept.kill();
    client.begin(format!("ioctl {file} {} 5", command::SAME));
    let estate = |kept: &Kept| {
        let keepsakes = kept.server.keepsakes();
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        Estate { device: own(keepsakes.device), requests: own(keepsakes.requests) }
    };
    let version = |kept: &Kept, number: u64| {
        let requests = kept.server.keepsakes().requests;
        rustix::io::pwrite(requests, &number.to_ne_bytes(), 8).unwrap();
    };
    version(&kept, 2);
    let refused = Server::succeed(estate(&kept), ServeOptions::default()).unwrap_err();
    assert!(matches!(refused, ServeError::Version(2)), "{refused}");
    let estate = Estate { requests: fs::File::open("/dev/null").unwrap().into(), ..estate(&kept) };
    let refused = Server::succeed(estate, ServeOptions::default()).unwrap_err();
    assert!(matches!(refused, ServeError::Foreign(_)), "{refused}");
    assert_eq!(client.ends_within(Duration::from_millis(20)), None);
    version(&kept, 1);
    kept.serve(&[]);
    assert_eq!(client.result(), Ok((5, vec![])));
}

// Below runs in a process that takes over.

pub(crate) fn is_one() -> bool {
    std::env::var_os(PLACE).is_some()
}

pub(crate) fn play() {
    let kept = std::env::var("CUSE_CHANNEL_TEST_KEPT").unwrap();
    let mut kept = kept.split(' ').map(|number| {
        // SAFETY: inherited for this, and nothing else here knows the number.
        let fd = unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) };
        rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::CLOEXEC).unwrap();
        fd
    });
    let mut next = || kept.next().unwrap();
    let estate = Estate { device: next(), requests: next() };
    let server = Server::succeed(estate, ServeOptions::default()).unwrap();
    let node = Arc::new(Heir {
        place: std::env::var_os(PLACE).unwrap().into(),
        is_deaf: std::env::var_os(DEAF).is_some(),
        notifier: server.notifier(),
        waiting: Mutex::default(),
    });
    let (stop, watching) = (server.stopper(), Arc::clone(&node));
    std::thread::spawn(move || {
        loop {
            watching.look();
            if watching.place.join("leave").exists() {
                stop.leave();
            }
            if watching.place.join("stop").exists() {
                stop.stop();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let ended = server.serve(node);
    assert_eq!(ended.abandoned, 0);
}

/// A node that has all that it knows in a directory.
struct Heir {
    place: PathBuf,
    is_deaf: bool,
    notifier: Notifier,
    waiting: Mutex<(Vec<Parked>, Vec<PollHandle>)>,
}

impl Heir {
    fn note(&self, name: &str, what: u64) {
        use std::io::Write as _;
        let mut notes =
            fs::File::options().append(true).create(true).open(self.place.join(name)).unwrap();
        notes.write_all(format!("{what}\n").as_bytes()).unwrap();
    }

    fn has_data(&self) -> bool {
        self.place.join("data").exists()
    }

    fn look(&self) {
        let mut waiting = self.waiting.lock().unwrap();
        if self.has_data() {
            for parked in waiting.0.drain(..) {
                let _ = parked.answer(b"x");
            }
            for sleeper in waiting.1.drain(..) {
                let _ = self.notifier.wake(sleeper);
            }
        }
    }
}

impl Node for Heir {
    fn open(&self, _flags: u32, context: &Context<'_>) -> Result<u64, Errno> {
        self.note("opened", context.unique);
        while self.place.join("slow-open").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(context.unique)
    }

    fn release(&self, handle: u64) {
        self.note("released", handle);
    }

    fn ioctl(&self, request: &Ioctl<'_>) -> IoctlReply {
        match u64::from(request.command) {
            command::SAME => IoctlReply::value(request.arg as i32),
            command::SLOW => {
                self.note("slow", request.unique);
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(request.arg) {
                    if request.interrupt.is_set() && !self.is_deaf {
                        return IoctlReply::error(Errno::INTR);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                IoctlReply::value(0)
            }
            _ => IoctlReply::error(Errno::NOTTY),
        }
    }

    fn interrupted(&self, unique: u64) -> Option<cuse_channel::WayOut> {
        self.note("interrupted", unique);
        None
    }

    fn poll(&self, _handle: u64, events: u32, wake: Option<PollHandle>) -> u32 {
        let mut waiting = self.waiting.lock().unwrap();
        waiting.1.extend(wake);
        self.note("polled", 0);
        if self.has_data() { events & libc::POLLIN as u32 } else { 0 }
    }

    fn read(&self, request: &Read<'_>) -> ReadReply {
        let mut waiting = self.waiting.lock().unwrap();
        if self.has_data() {
            return ReadReply::Data(b"x".to_vec());
        }
        match request.park() {
            Ok(parked) => waiting.0.push(parked),
            Err(errno) => return ReadReply::Error(errno),
        }
        self.note("parked", request.unique);
        ReadReply::Elsewhere
    }
}

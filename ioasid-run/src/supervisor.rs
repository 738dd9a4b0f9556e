//! The process beside the program, which serves its intercepted calls until the last process of it is
//! gone.
//!
//! It holds nothing that the program is seen by: no terminal, no pipe, no directory, no descriptor of the
//! program. Signals that are sent to the program with everything around it pass it by: what the program
//! still has to do then may need it.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use crate::bridge::Bridge;
use crate::child;
use crate::devices::Placeholders;
use crate::explain::Explain;
use crate::node::NodeFile;
use crate::notify::{self, Call};
use crate::sys;
use crate::uevents;

/// What the program offers, once it has it: numbers of its descriptors.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Offer {
    /// The seccomp listener.
    pub(crate) listener: RawFd,
    /// The directory for placeholders.
    pub(crate) directory: RawFd,
    /// What takes the room there.
    pub(crate) ballast: RawFd,
}

/// What a supervisor has to know from the start.
#[derive(Debug)]
pub(crate) struct Task {
    /// The program's process.
    pub(crate) program: u32,
    /// Which file the node is.
    pub(crate) node: NodeFile,
    /// Whether it may do what root may.
    pub(crate) is_privileged: bool,
    /// Where to tell of calls.
    pub(crate) explain: Explain,
}

/// Serves the program at the other end of `socket`, and ends.
pub(crate) fn run(socket: OwnedFd, task: Task) -> ! {
    withdraw(&socket, &task.explain);
    let status = match prepare(&socket, task) {
        Ok(Some(bridge)) => {
            let told = rustix::io::write(&socket, &[READY]);
            drop(socket);
            told.map_or(1, |_| serve(&Arc::new(bridge)))
        }
        // The program has given up.
        Ok(None) => 0,
        Err(why) => {
            let _ = rustix::io::write(&socket, why.as_bytes());
            1
        }
    };
    sys::exit(status)
}

/// What is written to the program when it can begin; anything else is the reason why it cannot.
pub(crate) const READY: u8 = 0;

/// Leaves everything that the program and those who started it may notice.
fn withdraw(socket: &OwnedFd, explain: &Explain) {
    // It fails for who leads a session already; this process is new.
    let _ = rustix::process::setsid();
    sys::ignore_signals();
    let _ = rustix::process::chdir("/");
    if let Ok(null) = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
        std::mem::forget(null);
    }
    let kept: Vec<_> =
        [Some(socket.as_raw_fd()), explain.raw_descriptor()].into_iter().flatten().collect();
    sys::close_all_but(&kept);
}

fn prepare(socket: &OwnedFd, task: Task) -> Result<Option<Bridge>, String> {
    let mut offer = Offer::new_zeroed();
    match rustix::io::read(socket, offer.as_mut_bytes()) {
        Ok(read) if read == size_of::<Offer>() => {}
        _ => return Ok(None),
    }
    let Offer { listener, directory, ballast } = offer;
    let pid = Pid::from_raw(task.program.cast_signed()).ok_or(Errno::SRCH);
    let program = pid
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|errno| format!("the program cannot be found: {errno}"))?;
    // What is tried here is what every intercepted call needs.
    let take = |fd| {
        pidfd_getfd(&program, fd, PidfdGetfdFlags::empty()).map_err(|errno| match errno {
            Errno::PERM => child::not_permitted("take descriptors of the program").sentence,
            errno => format!("the program's descriptors cannot be taken: {errno}"),
        })
    };
    let (listener, directory, ballast) = (take(listener)?, take(directory)?, take(ballast)?);
    let placeholders = Placeholders::new(directory, ballast, task.is_privileged);
    let placeholders = placeholders
        .and_then(|placeholders| placeholders.refresh().map(|()| placeholders))
        .map_err(|errno| format!("placeholders cannot be made: {errno}"))?;
    Ok(Some(Bridge::new(listener, task.node, placeholders, task.explain)))
}

/// How often groups are looked at that are open for a program which may have closed the node.
const PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Serves calls, each in a thread of its own: a call is rare, and may wait for hardware.
fn serve(bridge: &Arc<Bridge>) -> i32 {
    let events = uevents::open().ok();
    let at_work = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = vec![PollFd::new(bridge.listener(), PollFlags::IN)];
        fds.extend(events.as_ref().map(|events| PollFd::new(events, PollFlags::IN)));
        let is_idle = at_work.load(Ordering::Acquire) == 0 && !bridge.release_groups();
        match poll(&mut fds, (!is_idle).then_some(&PAUSE)) {
            Err(Errno::INTR) => continue,
            Err(_) => return 1,
            Ok(_) => {}
        }
        let calls = fds[0].revents();
        let has_events = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if calls.contains(PollFlags::IN) {
            if let Ok(call) = notify::receive(bridge.listener()) {
                start(bridge, call, &at_work);
            }
        } else if !calls.is_empty() {
            // Nobody has the filter any more.
            return 0;
        }
        if has_events
            && let Some(events) = &events
            && uevents::concern_vfio(events)
        {
            bridge.refresh_devices();
        }
    }
}

fn start(bridge: &Arc<Bridge>, call: Call, at_work: &Arc<AtomicUsize>) {
    at_work.fetch_add(1, Ordering::AcqRel);
    let (own, counter) = (Arc::clone(bridge), Arc::clone(at_work));
    let started = thread::Builder::new().name("call".into()).spawn(move || {
        own.serve(call);
        counter.fetch_sub(1, Ordering::AcqRel);
    });
    if started.is_err() {
        bridge.serve(call);
        at_work.fetch_sub(1, Ordering::AcqRel);
    }
}

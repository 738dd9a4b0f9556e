//! The programs that call, as processes: which one a thread belongs to, whether it is still
//! there, and how much memory it has locked.
//!
//! A process is told by its id for as long as the pidfd that was opened with it says that it
//! lives. It is charged, against its own RLIMIT_MEMLOCK, for what it has mapped and registered on
//! all opens of the node, until that is unmapped: also when it has ended before. As for the
//! kernel's own VFIO, CAP_IPC_LOCK lifts the limit and not the count.

use std::fs;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, capabilities};

use crate::caller::{self, Tid};
use crate::failure::Failure;
use crate::system;

/// How many threads are remembered with their process.
const THREADS_KEPT: usize = 4096;

/// A process that has called.
#[derive(Debug)]
pub struct Process {
    tgid: u32,
    /// Different for each process that this daemon has ever seen.
    serial: u64,
    pidfd: OwnedFd,
    locked: AtomicU64,
    /// What the kernel charges it for led calls: once for each container, where we charge once.
    by_kernel: AtomicU64,
}

impl Process {
    /// Its process id, which means something while it [lives](Self::is_alive).
    pub fn id(&self) -> u32 {
        self.tgid
    }

    /// Tells it from every other process.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())) == Ok(0)
    }

    /// A duplicate of descriptor `fd` of thread `tid`, one of its own.
    ///
    /// # Errors
    /// As for [`Tid::descriptor`].
    pub fn descriptor(&self, tid: Tid, fd: RawFd) -> Result<OwnedFd, Failure> {
        // Other threads than the first may have tables of their own.
        match tid.get() == self.tgid {
            true => caller::take(&self.pidfd, fd),
            false => tid.descriptor(fd),
        }
    }

    /// Kills it, if it is still there.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// How many bytes it has locked through the node.
    pub fn locked(&self) -> u64 {
        self.locked.load(Ordering::Relaxed)
    }

    /// How many bytes it may have locked; `u64::MAX` for any number. `tid` is one of its threads,
    /// blocked in a call.
    pub fn lock_limit(&self, tid: Tid) -> u64 {
        match self.soft_limit() {
            limit if limit == u64::MAX || may_lock_anything(tid) => u64::MAX,
            limit => limit,
        }
    }

    /// The same without regard to CAP_IPC_LOCK.
    fn soft_limit(&self) -> u64 {
        // Asking directly takes CAP_SYS_RESOURCE for processes of other users; /proc is slower.
        system::memlock_limit(self.tgid).unwrap_or_else(|_| {
            let limits = fs::read_to_string(format!("/proc/{}/limits", self.tgid));
            limits.map_or(0, |limits| parse_limit(&limits))
        })
    }

    /// Charges it for `bytes` more of locked memory.
    ///
    /// # Errors
    /// ENOMEM over its limit; nothing is then charged.
    pub fn charge(&self, tid: Tid, bytes: u64) -> Result<(), Failure> {
        if bytes == 0 {
            return Ok(());
        }
        let used = self.locked.fetch_add(bytes, Ordering::Relaxed);
        let fits = |limit: u64| used.checked_add(bytes).is_some_and(|sum| sum <= limit);
        // The cheap question first: few programs come near their limit.
        let soft = self.soft_limit();
        if fits(soft) || may_lock_anything(tid) {
            return Ok(());
        }
        self.uncharge(bytes);
        Err(Failure::new(
            Errno::NOMEM,
            format!(
                "this takes {bytes} bytes of locked memory; the program has {used} locked through \
                 this node, and its limit (RLIMIT_MEMLOCK, ulimit -l) is {soft}: raise the limit, \
                 or unmap something"
            ),
        ))
    }

    /// The kernel has charged it itself, for a call that it was led through.
    pub fn kernel_charges(&self, bytes: u64) {
        self.by_kernel.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The kernel has taken that back.
    pub fn kernel_uncharges(&self, bytes: u64) {
        self.by_kernel.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether all that it has locked, through the node or by other means (mlock, VFIO of its own), is
    /// within its limit, each page counted once. `tid` is one of its threads, blocked in a call.
    pub fn is_within_limit(&self, tid: Tid) -> bool {
        let Some(locked) = tid.locked_memory() else { return false };
        let otherwise = locked.saturating_sub(self.by_kernel.load(Ordering::Relaxed));
        otherwise.saturating_add(self.locked()) <= self.soft_limit()
    }

    /// Takes back a charge.
    pub fn uncharge(&self, bytes: u64) {
        self.locked.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The soft limit of locked memory in the text of /proc/PID/limits, bytes; `u64::MAX` for none.
fn parse_limit(limits: &str) -> u64 {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.map_or(0, |soft| if soft == "unlimited" { u64::MAX } else { soft.parse().unwrap_or(0) })
}

/// Whether a thread has CAP_IPC_LOCK over the machine, and not just in a user namespace of its own.
fn may_lock_anything(tid: Tid) -> bool {
    static HERE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/user")).ok();
    let sets = capabilities(Pid::from_raw(tid.get().cast_signed()));
    sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
        && namespace(&tid.get().to_string())
            .is_some_and(|own| HERE.get_or_init(|| namespace("self")).as_ref() == Some(&own))
}

/// All processes that have called and are still of interest.
#[derive(Debug, Default)]
pub struct Processes {
    by_thread: Mutex<FxHashMap<u32, Arc<Process>>>,
    by_id: Mutex<FxHashMap<u32, Weak<Process>>>,
    last_serial: AtomicU64,
}

impl Processes {
    /// The process of a thread that is blocked in a call.
    ///
    /// # Errors
    /// ESRCH when it cannot be found in /proc.
    pub fn of(&self, tid: Tid) -> Result<Arc<Process>, Failure> {
        let known = self.by_thread.lock().get(&tid.get()).cloned();
        if let Some(process) = known
            && process.is_alive()
            && (process.tgid == tid.get() || system::is_thread_of(process.tgid, tid))
        {
            return Ok(process);
        }
        let process = self.find(tid.process()?)?;
        let mut by_thread = self.by_thread.lock();
        if by_thread.len() >= THREADS_KEPT {
            by_thread.clear();
        }
        by_thread.insert(tid.get(), Arc::clone(&process));
        Ok(process)
    }

    /// The process whose first thread `tid` was when it last called. It is so still if the process
    /// lives, which is to be found out by using it.
    pub fn presumed(&self, tid: Tid) -> Option<Arc<Process>> {
        let known = self.by_thread.lock().get(&tid.get()).cloned();
        known.filter(|process| process.tgid == tid.get())
    }

    fn find(&self, tgid: u32) -> Result<Arc<Process>, Failure> {
        let mut by_id = self.by_id.lock();
        if let Some(process) = by_id.get(&tgid).and_then(Weak::upgrade)
            && process.is_alive()
        {
            return Ok(process);
        }
        // The thread that calls is blocked, so that its process cannot end and give up its id.
        let pid = Pid::from_raw(tgid.cast_signed());
        let opened = pid.ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = opened.map_err(|error| {
            Failure::new(error, format!("the calling process cannot be found: {error}"))
        })?;
        let serial = self.last_serial.fetch_add(1, Ordering::Relaxed) + 1;
        let process = Arc::new(Process {
            tgid,
            serial,
            pidfd,
            locked: AtomicU64::new(0),
            by_kernel: AtomicU64::new(0),
        });
        if by_id.len() >= THREADS_KEPT {
            by_id.retain(|_, process| process.strong_count() > 0);
        }
        by_id.insert(tgid, Arc::downgrade(&process));
        Ok(process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this_thread() -> Tid {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        Tid::new(tid).expect("a thread")
    }

    #[test]
    fn threads_of_one_process_are_charged_together() {
        let processes = Processes::default();
        let here = processes.of(this_thread()).expect("ourselves");
        let there = std::thread::scope(|scope| {
            scope.spawn(|| processes.of(this_thread()).expect("ourselves")).join()
        });
        assert!(Arc::ptr_eq(&here, &there.expect("no panic")));
        assert!(here.is_alive());
        assert_eq!(here.id(), std::process::id());
        here.charge(this_thread(), 4096).expect("little");
        assert_eq!(here.locked(), 4096);
        here.uncharge(4096);
        assert_eq!(here.locked(), 0);
    }

    #[test]
    fn the_limit_in_the_text_of_proc_is_that_of_the_kernel() {
        let limits = fs::read_to_string("/proc/self/limits").expect("limits");
        let limit = system::memlock_limit(std::process::id()).expect("our own");
        assert_eq!(parse_limit(&limits), limit);
        assert_eq!(parse_limit("Max locked memory   unlimited   unlimited   bytes"), u64::MAX);
        assert_eq!(parse_limit(""), 0);
    }

    #[test]
    fn a_process_that_has_ended_is_known_to_have() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let processes = Processes::default();
        let process = processes.of(Tid::new(child.id()).expect("a thread")).expect("our child");
        assert!(process.is_alive());
        child.kill().expect("our child");
        child.wait().expect("our child");
        assert!(!process.is_alive());
    }
}

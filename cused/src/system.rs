//! The few questions to the kernel about processes that no library asks.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::ptr;

use rustix::io::Errno;

use crate::caller::Tid;

/// Whether thread `tid` is one of process `tgid` at this moment.
pub fn is_thread_of(tgid: u32, tid: Tid) -> bool {
    // SAFETY: signal 0 asks whether the thread exists and sends nothing.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, tgid, tid.get(), 0) };
    result == 0 || last_error() == Errno::PERM
}

/// Whether thread `tid` of process `tgid` has the same table of descriptors as the first thread. False
/// also where the kernel does not say (CONFIG_KCMP), unless it is the first.
pub fn share_descriptors(tgid: u32, tid: Tid) -> bool {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: kcmp compares, and touches no memory of ours.
    let same = || unsafe { libc::syscall(libc::SYS_kcmp, tgid, tid.get(), KCMP_FILES, 0, 0) == 0 };
    tgid == tid.get() || same()
}

/// Whether descriptor `fd` of a thread stands for the same open file as ours. False also where the
/// kernel does not say (CONFIG_KCMP).
pub fn is_same_file(ours: impl AsFd, tid: Tid, fd: RawFd) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let ours = ours.as_fd().as_raw_fd();
    let (Ok(ours), Ok(fd)) = (libc::c_ulong::try_from(ours), libc::c_ulong::try_from(fd)) else {
        return false;
    };
    let own = std::process::id();
    // SAFETY: kcmp compares, and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, own, tid.get(), KCMP_FILE, ours, fd) };
    result == 0
}

/// The soft limit of a process for locked memory; `u64::MAX` for none.
pub fn memlock_limit(tgid: u32) -> Result<u64, Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: nothing is set; the limit is written to a variable that lives through the call.
    let result = unsafe {
        libc::prlimit(tgid.cast_signed(), libc::RLIMIT_MEMLOCK, ptr::null(), &raw mut limit)
    };
    match result {
        0 => Ok(limit.rlim_cur),
        _ => Err(last_error()),
    }
}

/// Lets a process lock any amount of memory.
pub fn lift_memlock_limit(tid: Tid) -> Result<(), Errno> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is read from a variable that lives through the call.
    let result = unsafe {
        let pid = tid.get().cast_signed();
        libc::prlimit(pid, libc::RLIMIT_MEMLOCK, &raw const limit, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Has the kernel not send SIGCHLD when a traced thread stops: it would interrupt some thread of ours
/// at each of the stops that another one is waiting for.
pub fn ignore_stops() {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = libc::SIG_DFL;
    action.sa_flags = libc::SA_NOCLDSTOP;
    // SAFETY: no code of ours is installed; the action is read from a variable that lives through
    // the call.
    let result = unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, ptr::null_mut()) };
    debug_assert_eq!(result, 0, "SIGCHLD is a signal whose action can be set");
}

/// What the system call that has just failed said.
pub fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_one_of_this_process_and_of_no_other() {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let tid = Tid::new(tid).expect("a thread");
        assert!(is_thread_of(std::process::id(), tid));
        assert!(!is_thread_of(1, tid));
    }
}

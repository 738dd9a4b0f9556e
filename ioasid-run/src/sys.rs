//! The system calls that Rust cannot check: becoming two processes and another program, comparing
//! descriptors, and the ioctls of VFIO groups.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use crate::filter::GROUP_GET_DEVICE_FD;

/// Who this process is after [`divide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one that was there before.
    Program,
    /// The new one. It is nobody's child but init's.
    Supervisor,
}

/// Makes a process beside this one. This one gets no child by that: nothing to wait for, and no SIGCHLD,
/// now or later. To be called while there is one thread.
///
/// # Errors
/// EAGAIN, ENOMEM.
pub(crate) fn divide() -> Result<Role, Errno> {
    // SAFETY: with neither flags nor a stack this is fork, without a signal at its end. The child is
    // in the only thread, and does nothing but what is below.
    match unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) } {
        -1 => Err(last_error()),
        0 => {
            // The C library's own fork, so that it knows of the new process what it must.
            // SAFETY: there is one thread.
            match unsafe { libc::fork() } {
                0 => Ok(Role::Supervisor),
                // SAFETY: always. No destructor and no exit handler of the program's is run.
                pid => unsafe { libc::_exit((pid < 0).into()) },
            }
        }
        pid => {
            let mut status = 0;
            loop {
                // SAFETY: `status` is written, which is ours.
                let waited = unsafe { libc::waitpid(pid as i32, &raw mut status, libc::__WALL) };
                match waited {
                    -1 if last_error() == Errno::INTR => {}
                    // Where SIGCHLD is ignored, nothing is told.
                    -1 => return Ok(Role::Program),
                    _ if status == 0 => return Ok(Role::Program),
                    _ => return Err(Errno::AGAIN),
                }
            }
        }
    }
}

/// Puts this process into namespaces of its own.
///
/// # Errors
/// Those of unshare(2).
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: what makes unshare unsafe is to take descriptors from other threads: there are none, and
    // CLONE_FILES is never asked for.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Has signals that are meant for the program and everything around it pass this process by.
pub(crate) fn ignore_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE] {
        // SAFETY: to ignore a signal installs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes every descriptor that this process inherited, except the first three and `kept`. To be called
/// before anything else is opened.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.cast_unsigned()).collect();
    kept.sort_unstable();
    let mut from = 3;
    for last in kept.into_iter().map(|fd| fd.checked_sub(1)).chain([Some(u32::MAX)]) {
        if let Some(last) = last
            && from <= last
        {
            // SAFETY: what is closed has no owner in this program but those that are never dropped: the
            // caller ends with `_exit` or lives on without them.
            unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
        }
        from = last.map_or(from, |last| last.saturating_add(2)).max(3);
    }
}

/// Ends this process at once.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: always.
    unsafe { libc::_exit(status) }
}

/// Becomes another program, which is searched for as shells do. Returns why that did not work.
pub(crate) fn exec(words: &[CString]) -> Errno {
    let mut pointers: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: the strings and the list live through the call; both end as they must.
    unsafe { libc::execvp(pointers[0], pointers.as_ptr()) };
    last_error()
}

/// Whether descriptor `fd` of thread `tid` is the same open file as `own` of this process.
///
/// # Errors
/// EBADF when it is not open; ESRCH, EPERM.
pub(crate) fn is_same_file(tid: u32, fd: RawFd, own: &OwnedFd) -> Result<bool, Errno> {
    const KCMP_FILE: i32 = 0;
    kcmp(tid, std::process::id(), KCMP_FILE, fd.cast_unsigned(), own.as_raw_fd().cast_unsigned())
}

/// Whether two threads have one descriptor table.
///
/// # Errors
/// ESRCH, EPERM.
pub(crate) fn share_descriptors(one: u32, other: u32) -> Result<bool, Errno> {
    const KCMP_FILES: i32 = 2;
    kcmp(one, other, KCMP_FILES, 0, 0)
}

fn kcmp(one: u32, other: u32, kind: i32, a: u32, b: u32) -> Result<bool, Errno> {
    // SAFETY: kcmp takes numbers only, for these kinds.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.cast_signed(),
            other.cast_signed(),
            kind,
            libc::c_ulong::from(a),
            libc::c_ulong::from(b),
        )
    };
    if result < 0 { Err(last_error()) } else { Ok(result == 0) }
}

/// The open file of a VFIO device, from its group: as VFIO_GROUP_GET_DEVICE_FD.
///
/// # Errors
/// Its own.
pub(crate) fn open_device(group: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: the command reads a string that ends with a zero byte, which lives through the call. Its
    // result is a new descriptor, closed on exec, which nobody else knows.
    unsafe {
        match libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD.into(), name.as_ptr()) {
            -1 => Err(last_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// A mark that an open file carries, wherever its descriptors go, until it is closed for good: the owner
/// and the signal of F_SETOWN and F_SETSIG, which mean nothing to a file that never sends SIGIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark {
    /// The thread that is the owner: one of ours, so that no other file has it.
    pub(crate) owner: i32,
    /// From 1 to [`Mark::SIGNALS`].
    pub(crate) signal: i32,
}

/// `struct f_owner_ex` of asm-generic/fcntl.h, and its kinds and commands.
#[repr(C)]
struct Owner {
    kind: i32,
    pid: i32,
}
const F_OWNER_TID: i32 = 0;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

impl Mark {
    /// How many there are with one owner.
    pub(crate) const SIGNALS: i32 = 64;

    /// Puts it on a file.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn put(self, file: &OwnedFd) -> Result<(), Errno> {
        let owner = Owner { kind: F_OWNER_TID, pid: self.owner };
        // SAFETY: F_SETOWN_EX reads a structure that lives through the call; F_SETSIG takes a number.
        unsafe {
            if libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) < 0
                || libc::fcntl(file.as_raw_fd(), F_SETSIG, self.signal) < 0
            {
                return Err(last_error());
            }
        }
        Ok(())
    }

    /// The mark of a file, if it has any.
    pub(crate) fn of(file: &OwnedFd) -> Option<Self> {
        let mut owner = Owner { kind: -1, pid: 0 };
        // SAFETY: F_GETOWN_EX writes a structure that is ours; F_GETSIG takes nothing.
        let (found, signal) = unsafe {
            (
                libc::fcntl(file.as_raw_fd(), F_GETOWN_EX, &raw mut owner),
                libc::fcntl(file.as_raw_fd(), F_GETSIG),
            )
        };
        let is_one = found == 0 && owner.kind == F_OWNER_TID && owner.pid > 0 && signal > 0;
        is_one.then_some(Self { owner: owner.pid, signal })
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn file() -> OwnedFd {
        File::open("/dev/null").expect("there is one").into()
    }

    #[test]
    fn a_mark_stays_with_the_open_file_and_its_duplicates_alone() {
        let (marked, other) = (file(), file());
        let duplicate = marked.try_clone().expect("room for one");
        let owner = rustix::thread::gettid().as_raw_nonzero().get();
        for signal in [1, 33, Mark::SIGNALS] {
            let mark = Mark { owner, signal };
            mark.put(&marked).expect("a file");
            assert_eq!(Mark::of(&duplicate), Some(mark));
            assert_eq!(Mark::of(&other), None);
        }
    }

    #[test]
    fn duplicates_are_the_same_file_and_second_opens_are_not() {
        let (one, other) = (file(), file());
        let duplicate = one.try_clone().expect("room for one");
        let same = |fd: &OwnedFd| is_same_file(std::process::id(), fd.as_raw_fd(), &one);
        assert_eq!((same(&duplicate), same(&other)), (Ok(true), Ok(false)));
        assert_eq!(is_same_file(std::process::id(), 1 << 20, &one), Err(Errno::BADF));
    }

    #[test]
    fn threads_of_one_process_share_their_descriptors() {
        let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        assert_eq!(share_descriptors(std::process::id(), own), Ok(true));
    }
}

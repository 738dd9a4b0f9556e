//! The seccomp listener: the descriptor on which the kernel tells of intercepted calls and takes what
//! becomes of them (seccomp_unotify(2)).
//!
//! A call is named by an id for as long as its thread waits. If the thread is killed, everything that
//! is done to the id gives ENOENT: [`Call::is_waiting`] asks, and must be asked after each look at what
//! the thread's number names in /proc, since that number may by then be another's.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;

use crate::filter;

/// An intercepted ioctl.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    id: u64,
    /// The thread that waits in it, as this process numbers threads.
    pub(crate) tid: u32,
    /// The descriptor that it is made on, as the program wrote it.
    pub(crate) fd: RawFd,
    /// One of [`filter::COMMANDS`].
    pub(crate) command: u32,
    /// The argument.
    pub(crate) arg: u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It returns this.
    Value(i32),
    /// It fails with this.
    Fail(Errno),
    /// The kernel is to carry it out.
    Native,
}

/// Installs the filter for this process, and whatever it will become. Gives the listener, which is closed
/// on exec.
///
/// # Errors
/// EBUSY when the process has a listener already; EACCES when it may not have a filter.
pub(crate) fn install() -> Result<OwnedFd, Errno> {
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // Linux 5.19: once the supervisor has the call, only what kills the program ends the waiting.
    match install_with(flags | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(Errno::INVAL) => install_with(flags),
        done => done,
    }
}

fn install_with(flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let mut program = filter::PROGRAM;
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr().cast() };
    // SAFETY: the kernel reads `len` instructions, laid out as it has them (see the test of `filter`),
    // from memory that lives through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            ptr::from_ref(&fprog),
        )
    };
    let fd = checked(result)?;
    // SAFETY: with NEW_LISTENER the result is a new descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes the next call. To be called when the listener is readable.
///
/// # Errors
/// ENOENT when its thread was killed meanwhile; EINTR.
pub(crate) fn receive(listener: &OwnedFd) -> Result<Call, Errno> {
    // SAFETY: a structure of integers, for which zeroes are values; the kernel wants them.
    let mut seen: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut seen)?;
    let [fd, command, arg, ..] = seen.data.args;
    // The kernel takes descriptor and command as unsigned int.
    let (fd, command) = ((fd as u32).cast_signed(), command as u32);
    Ok(Call { id: seen.id, tid: seen.pid, fd, command, arg })
}

impl Call {
    /// Whether the thread still waits: if so, its number was its own until now.
    pub(crate) fn is_waiting(&self, listener: &OwnedFd) -> bool {
        let mut id = self.id;
        ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id).is_ok()
    }

    /// Makes a duplicate of `file` in the thread's table: as descriptor `place`, whatever that was before,
    /// or with `None` as one that is free, which is then the result of the call.
    ///
    /// # Errors
    /// ENOENT when the thread does not wait any more; EMFILE when it can have no more descriptors.
    pub(crate) fn put(
        &self,
        listener: &OwnedFd,
        file: &OwnedFd,
        place: Option<RawFd>,
        cloexec: bool,
    ) -> Result<(), Errno> {
        let flags = match place {
            Some(_) => libc::SECCOMP_ADDFD_FLAG_SETFD,
            None => libc::SECCOMP_ADDFD_FLAG_SEND,
        };
        let mut put = libc::seccomp_notif_addfd {
            id: self.id,
            flags: flags as u32,
            srcfd: file.as_raw_fd().cast_unsigned(),
            newfd: place.unwrap_or(0).cast_unsigned(),
            newfd_flags: if cloexec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
        };
        ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut put)
    }

    /// Has the thread go on.
    ///
    /// # Errors
    /// ENOENT when it does not wait any more.
    pub(crate) fn answer(&self, listener: &OwnedFd, answer: Answer) -> Result<(), Errno> {
        let (val, error, flags) = match answer {
            Answer::Value(value) => (value, 0, 0),
            Answer::Fail(errno) => (0, -errno.raw_os_error(), 0),
            Answer::Native => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        };
        let mut response = libc::seccomp_notif_resp { id: self.id, val: val.into(), error, flags };
        ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response)
    }
}

/// One of the listener's ioctls with its structure.
fn ioctl<T>(listener: &OwnedFd, command: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the listener's commands read and write the structure that their number tells the size of,
    // and nothing else; each caller in this module gives the one that belongs to the command. What the
    // kernel writes are integers.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), command, ptr::from_mut(argument)) };
    checked(result.into()).map(drop)
}

fn checked(result: libc::c_long) -> Result<libc::c_long, Errno> {
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        other => Ok(other),
    }
}

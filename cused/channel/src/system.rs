//! System calls that rustix lacks.
//!
//! Owns the signal that gets a thread out of a blocking read(2): masks, the disposition of that one
//! signal, and sending it to one thread. The signal means nothing by itself: whoever sends it has set
//! a flag before, and sends it again until the thread has noticed, so that it does not matter if it
//! comes just before the read(2). And it owns taking an open file away from a descriptor in use.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{null, null_mut};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::Pid;

/// Signals that a thread raises against itself; blocked they would only hide what happened.
const OWN_FAULTS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGABRT,
];

/// The signal used unless another is chosen: a real-time one that few programs use.
pub(crate) fn default_signal() -> i32 {
    libc::SIGRTMIN() + 9
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Makes sure that `signal` interrupts a read(2) and does no harm. A handler that the program has
/// installed itself is left alone if it interrupts system calls.
///
/// Errors: EINVAL if there is no such signal or it cannot be caught, EBUSY if the program ignores it
/// or has a handler with SA_RESTART.
pub(crate) fn prepare(signal: i32) -> Result<(), Errno> {
    let mut present = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: `present` is writable and of the right type; a null action changes nothing.
    if unsafe { libc::sigaction(signal, null(), present.as_mut_ptr()) } != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: sigaction(2) succeeded and filled it in; zeroed it was a valid value already.
    let present = unsafe { present.assume_init() };
    if present.sa_sigaction == libc::SIG_IGN {
        return Err(Errno::BUSY);
    }
    if present.sa_sigaction != libc::SIG_DFL {
        let restarts = present.sa_flags & libc::SA_RESTART != 0;
        return if restarts { Err(Errno::BUSY) } else { Ok(()) };
    }
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask.
    let mut wanted = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    wanted.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing and is therefore async-signal-safe, and lives forever.
    if unsafe { libc::sigaction(signal, &raw const wanted, null_mut()) } != 0 {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Makes the calling thread take no signal but `signal`, and the faults that it causes itself.
pub(crate) fn only(signal: i32) {
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) initialises the set, the other calls change that set; with valid
    // signal numbers (`prepare` has accepted this one) none of them fails.
    unsafe {
        libc::sigfillset(mask.as_mut_ptr());
        for exempt in OWN_FAULTS.into_iter().chain([signal]) {
            libc::sigdelset(mask.as_mut_ptr(), exempt);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), null_mut());
    }
}

/// Sends `signal` to thread `thread` of this process. A thread that is gone is not an error.
pub(crate) fn send(signal: i32, thread: Pid) {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: tgkill(2) takes integers only. Should the id have passed to another thread of this
    // process, that one gets a signal whose handler does nothing.
    let _ =
        unsafe { libc::syscall(libc::SYS_tgkill, process, thread.as_raw_nonzero().get(), signal) };
}

/// Closes the open file of `descriptor` without giving up its number: from here on it is that of
/// /dev/null, also for threads that are using it.
pub(crate) fn sever(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let nothing = rustix::fs::open("/dev/null", flags, Mode::empty())
        .or_else(|_| rustix::fs::memfd_create("severed", MemfdFlags::CLOEXEC))?;
    // SAFETY: the number is open and owned for as long as it is borrowed, and stays so: dup3(2)
    // replaces in one step what it refers to. Its owner is this crate, which uses it for nothing
    // but read(2) and writev(2), and nothing depends on their effect any longer.
    let result =
        unsafe { libc::dup3(nothing.as_raw_fd(), descriptor.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(Errno::BADF) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_thread_blocked_in_read_is_woken_and_stays_alive() {
        let signal = default_signal();
        prepare(signal).unwrap();
        prepare(signal).unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let (sender, receiver) = mpsc::channel();
        static OUT: AtomicBool = AtomicBool::new(false);
        let thread = std::thread::spawn(move || {
            only(signal);
            sender.send(rustix::thread::gettid()).unwrap();
            let result = rustix::io::read(&reader, &mut [0u8; 1]);
            OUT.store(true, Ordering::SeqCst);
            result
        });
        let id = receiver.recv().unwrap();
        while !OUT.load(Ordering::SeqCst) {
            send(signal, id);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(thread.join().unwrap(), Err(Errno::INTR));
    }

    #[test]
    fn a_severed_descriptor_no_longer_holds_its_file() {
        use std::os::fd::AsFd;
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        sever(writer.as_fd()).unwrap();
        rustix::io::write(&writer, b"lost").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0u8; 8]), Ok(0));
        assert!(rustix::io::fcntl_getfd(&writer).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn signals_that_cannot_serve_are_refused() {
        assert_eq!(prepare(0), Err(Errno::INVAL));
        assert_eq!(prepare(libc::SIGKILL), Err(Errno::INVAL));
        assert_eq!(prepare(4711), Err(Errno::INVAL));
        // The Rust runtime ignores SIGPIPE.
        assert_eq!(prepare(libc::SIGPIPE), Err(Errno::BUSY));
    }
}

//! Signalling an eventfd that a program owns, without ever waiting for the program.
//!
//! The descriptor that we have stands for the program's own open file. write(2) blocks when the
//! counter is full, unless the *file* has O_NONBLOCK, which the program can change at any moment;
//! eventfds know no RWF_NOWAIT; and between a poll(2) and the write the program can fill the
//! counter. A daemon thread that blocked there could not be got back.
//!
//! What never blocks is the kernel's own signalling (eventfd_signal: at its end the counter just
//! stays there). The smallest thing that has the kernel do it for us is an asynchronous read of
//! /dev/null with IOCB_FLAG_RESFD (fs/aio.c). It ends at once, and the kernel checks by itself that
//! the descriptor is an eventfd.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::ptr;
use std::sync::OnceLock;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, open, readlink};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::system::last_error;

/// An eventfd of a program.
#[derive(Debug)]
pub struct Eventfd {
    fd: OwnedFd,
    signaller: &'static Signaller,
}

impl Eventfd {
    /// Takes over what a program says is an eventfd.
    ///
    /// # Errors
    /// EINVAL when it is none, EOPNOTSUPP when this kernel cannot signal it.
    pub fn new(fd: OwnedFd) -> Result<Self, Failure> {
        // The name is the kernel's: what files of programs are called begins with a slash here.
        let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
        if !link.is_ok_and(|link| link.as_bytes() == b"anon_inode:[eventfd]") {
            return Err(Failure::invalid("the descriptor is no eventfd: see eventfd(2)"));
        }
        Ok(Self { fd, signaller: Signaller::get()? })
    }

    /// Adds 1 to its counter, unless that is full.
    pub fn signal(&self) -> Result<(), Errno> {
        self.signaller.signal(&self.fd)
    }
}

/// The daemon's one context of asynchronous I/O.
#[derive(Debug)]
struct Signaller {
    /// Held while a request is on its way, of which there is room for one.
    context: Mutex<libc::c_ulong>,
    null: OwnedFd,
}

/// IOCB_CMD_PREAD, IOCB_FLAG_RESFD of <linux/aio_abi.h>.
const READ: u16 = 0;
const SIGNAL_RESULT: u32 = 1;

impl Signaller {
    fn get() -> Result<&'static Self, Failure> {
        static SIGNALLER: OnceLock<Result<Signaller, Errno>> = OnceLock::new();
        SIGNALLER.get_or_init(Self::new).as_ref().map_err(|error| {
            Failure::unsupported(format!(
                "the daemon cannot signal eventfds, for which it takes io_setup(2) and /dev/null: \
                 {error}; poll the node instead"
            ))
        })
    }

    fn new() -> Result<Self, Errno> {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number to a variable that lives through the call.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
        match result {
            0 => Ok(Self { context: Mutex::new(context), null }),
            _ => Err(last_error()),
        }
    }

    fn signal(&self, eventfd: &OwnedFd) -> Result<(), Errno> {
        // SAFETY: all zeroes is a valid request: to read 0 bytes to nowhere.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = READ;
        request.aio_fildes = self.null.as_raw_fd().cast_unsigned();
        request.aio_flags = SIGNAL_RESULT;
        request.aio_resfd = eventfd.as_raw_fd().cast_unsigned();
        let mut requests = [&raw mut request];
        let context = self.context.lock();
        // SAFETY: one request, read by the kernel within the call (only its key is written). It
        // transfers no bytes, so that there is no buffer to outlive it; both descriptors are
        // open, and the kernel holds on to them by itself.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, *context, 1_usize, requests.as_mut_ptr()) };
        let result = if submitted == 1 { Ok(()) } else { Err(last_error()) };
        // struct io_event: four 64-bit words.
        let mut event = [0_u64; 4];
        // SAFETY: the kernel writes at most one event to an array of its size that lives through
        // the call; there is no time to wait, as none has to be.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                *context,
                0_usize,
                1_usize,
                event.as_mut_ptr(),
                ptr::null_mut::<libc::timespec>(),
            )
        };
        result
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// An eventfd of the program's, which blocks, and what the daemon has of it.
    fn both() -> (OwnedFd, Eventfd) {
        let program = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let daemon = program.try_clone().expect("a descriptor");
        (program, Eventfd::new(daemon).expect("asynchronous I/O"))
    }

    fn count(program: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(program, &mut bytes), Ok(8));
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn each_signal_adds_one() {
        let (program, daemon) = both();
        for signals in [1, 2, 300] {
            (0..signals).for_each(|_| assert_eq!(daemon.signal(), Ok(())));
            assert_eq!(count(&program), signals);
        }
    }

    #[test]
    fn a_full_counter_makes_nobody_wait() {
        let (program, daemon) = both();
        let full = u64::MAX - 1;
        rustix::io::write(&program, &full.to_ne_bytes()).expect("room in a new counter");
        let begun = Instant::now();
        (0..3).for_each(|_| assert_eq!(daemon.signal(), Ok(())));
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(count(&program) >= full);
        assert_eq!(daemon.signal(), Ok(()));
        assert_eq!(count(&program), 1);
    }

    #[test]
    fn nothing_else_is_taken_for_an_eventfd() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let named =
            rustix::fs::memfd_create("anon_inode:[eventfd]", rustix::fs::MemfdFlags::CLOEXEC);
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        for fd in [reader, writer, named.expect("a memfd"), epoll.expect("an epoll")] {
            let refused = Eventfd::new(fd).map(drop);
            assert_eq!(refused.map_err(|failure| failure.errno), Err(Errno::INVAL));
        }
    }
}

//! ptrace(2) and waiting for a traced thread.
//!
//! All of it is tied to the calling thread of ours: only the thread that seized a tracee may
//! command it, so a [`Tracee`] cannot be sent to another.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes as _};

use super::registers::Native;
use crate::caller::Tid;
use crate::system::last_error;

/// A thread that this thread traces.
#[derive(Debug)]
pub(super) struct Tracee {
    tid: Tid,
    options: c_int,
    /// Not Send: only the thread that seized it may command it.
    bound: PhantomData<*mut ()>,
}

/// What a tracee did that ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It stopped, as PTRACE_INTERRUPT asks it to, or for SIGCONT.
    Trap,
    /// It has made a child, which is traced too.
    Clone,
    /// It takes part in a stop of its whole process, by SIGSTOP or the like.
    GroupStop,
    /// It stopped on entering or leaving a system call.
    Syscall,
    /// A signal is about to be delivered to it.
    Signal(c_int),
    /// It is no more.
    Gone,
}

impl Tracee {
    /// Begins to trace `tid`, without stopping it. Returns also whether its seccomp filters are
    /// suspended while it is traced, which takes privilege.
    ///
    /// # Errors
    /// EPERM when somebody else traces it or we may not; ESRCH when it is gone.
    pub(super) fn seize(tid: Tid) -> Result<(Self, bool), Errno> {
        let seize = |options: c_int| {
            let tracee = Self { tid, options, bound: PhantomData };
            // SAFETY: PTRACE_SEIZE takes options by value and touches no memory of ours.
            unsafe { tracee.command(libc::PTRACE_SEIZE, 0, options as usize) }.map(|()| tracee)
        };
        // Of those who were traced before nobody will ask.
        WAITED.with_borrow_mut(Vec::clear);
        let options = libc::PTRACE_O_TRACESYSGOOD;
        match seize(options | libc::PTRACE_O_SUSPEND_SECCOMP) {
            Ok(tracee) => Ok((tracee, true)),
            Err(Errno::PERM | Errno::INVAL) => Ok((seize(options)?, false)),
            Err(error) => Err(error),
        }
    }

    /// Has it stop as soon as it leaves the kernel.
    pub(super) fn interrupt(&self) -> Result<(), Errno> {
        // SAFETY: PTRACE_INTERRUPT takes no argument.
        unsafe { self.command(libc::PTRACE_INTERRUPT, 0, 0) }
    }

    /// Has it killed if this thread ends before it is let go.
    pub(super) fn tie(&self) -> Result<(), Errno> {
        let options = self.options | libc::PTRACE_O_EXITKILL;
        // SAFETY: PTRACE_SETOPTIONS takes options by value.
        unsafe { self.command(libc::PTRACE_SETOPTIONS, 0, options as usize) }
    }

    /// From now on has the children that it makes traced too, and tells of them.
    pub(super) fn trace_children(&self) -> Result<(), Errno> {
        let options = self.options | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE;
        // SAFETY: PTRACE_SETOPTIONS takes options by value.
        unsafe { self.command(libc::PTRACE_SETOPTIONS, 0, options as usize) }
    }

    /// The child that it has told of.
    pub(super) fn child(&self) -> Result<Self, Errno> {
        let mut child: std::ffi::c_ulong = 0;
        // SAFETY: the kernel writes one unsigned long to `child`.
        unsafe { self.command(libc::PTRACE_GETEVENTMSG, 0, (&raw mut child).addr_of()) }?;
        let tid = u32::try_from(child).ok().and_then(Tid::new).ok_or(Errno::SRCH)?;
        Ok(Self { tid, options: self.options, bound: PhantomData })
    }

    /// The thread.
    pub(super) fn tid(&self) -> Tid {
        self.tid
    }

    /// Lets it run to where it next enters or leaves a system call, with `signal` delivered, if
    /// not 0.
    pub(super) fn run(&self, signal: c_int) -> Result<(), Errno> {
        // SAFETY: PTRACE_SYSCALL takes the signal by value.
        unsafe { self.command(libc::PTRACE_SYSCALL, 0, signal as usize) }
    }

    /// Lets it run to its next stop of another kind, with `signal` delivered, if not 0.
    pub(super) fn cont(&self, signal: c_int) -> Result<(), Errno> {
        // SAFETY: PTRACE_CONT takes the signal by value.
        unsafe { self.command(libc::PTRACE_CONT, 0, signal as usize) }
    }

    /// Ends tracing. It must be stopped. One that was killed a moment before is seen off, since its
    /// parent does not learn of its death before we do.
    ///
    /// # Errors
    /// ESRCH when it is gone.
    pub(super) fn detach(self, signal: c_int) -> Result<(), Errno> {
        // SAFETY: PTRACE_DETACH takes the signal by value.
        let detached = unsafe { self.command(libc::PTRACE_DETACH, 0, signal as usize) };
        if detached.is_err() {
            self.see_off();
        }
        detached
    }

    /// Waits until it is gone, which has been killed.
    pub(super) fn see_off(&self) {
        while self.wait() != Event::Gone {
            let _ = self.cont(0);
        }
    }

    /// Its registers. It must be stopped.
    pub(super) fn registers(&self) -> Result<Native, Errno> {
        let mut registers = Native::new_zeroed();
        let size = size_of::<Native>();
        let mut io =
            libc::iovec { iov_base: registers.as_mut_bytes().as_mut_ptr().cast(), iov_len: size };
        // SAFETY: the kernel writes at most iov_len bytes to `registers`, which any bytes are
        // valid for, and the new length to `io`; both live through the call.
        unsafe { self.command(libc::PTRACE_GETREGSET, NT_PRSTATUS, (&raw mut io).addr_of()) }?;
        if io.iov_len == size { Ok(registers) } else { Err(Errno::OPNOTSUPP) }
    }

    /// Sets its registers. It must be stopped.
    pub(super) fn set_registers(&self, registers: &Native) -> Result<(), Errno> {
        let bytes = registers.as_bytes();
        let mut io =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel reads iov_len bytes of `registers` and does not write there; it may
        // write to `io`. Both live through the call.
        unsafe { self.command(libc::PTRACE_SETREGSET, NT_PRSTATUS, (&raw mut io).addr_of()) }
    }

    /// The signals that it blocks. It must be stopped.
    pub(super) fn signal_mask(&self) -> Result<u64, Errno> {
        let mut mask = 0_u64;
        // SAFETY: the kernel writes 8 bytes, as many as its `addr` argument says, to `mask`.
        unsafe { self.command(libc::PTRACE_GETSIGMASK, 8, (&raw mut mask).addr_of()) }?;
        Ok(mask)
    }

    /// Sets the signals that it blocks. It must be stopped.
    pub(super) fn set_signal_mask(&self, mut mask: u64) -> Result<(), Errno> {
        // SAFETY: the kernel reads 8 bytes, as many as its `addr` argument says, of `mask`.
        unsafe { self.command(libc::PTRACE_SETSIGMASK, 8, (&raw mut mask).addr_of()) }
    }

    /// Waits for what it does next.
    pub(super) fn wait(&self) -> Event {
        // Not for its id: when another thread executes a program and takes that id over, whoever
        // waits for the id is not woken (fs/exec.c, de_thread: __wake_up_parent comes after
        // exchange_tids). This thread has no children; beside this one it may trace a passing child
        // of it, whose turn comes when it is waited for.
        let options = libc::__WALL | libc::__WNOTHREAD;
        let mut status = 0;
        let put_aside = WAITED.with_borrow_mut(|waited| {
            let place = waited.iter().position(|&(pid, _)| pid == self.pid())?;
            Some(waited.remove(place).1)
        });
        if let Some(status) = put_aside {
            return decode(status);
        }
        let mut impatience = Impatience::new();
        loop {
            let patience = if impatience.lasts() { libc::WNOHANG } else { 0 };
            // SAFETY: the status is written to a variable that lives through the call.
            let waited = unsafe { libc::waitpid(-1, &raw mut status, options | patience) };
            if waited == self.pid() {
                return decode(status);
            }
            if waited == 0 {
                impatience.pass();
            } else if waited > 0 {
                WAITED.with_borrow_mut(|others| others.push((waited, status)));
            } else if last_error() != Errno::INTR {
                // ECHILD: another thread of its process has called execve and taken its id.
                return Event::Gone;
            }
        }
    }

    fn pid(&self) -> libc::pid_t {
        self.tid.get().cast_signed()
    }

    /// # Safety
    /// As for ptrace(2): `data` is what `request` takes, and valid for the call if an address.
    unsafe fn command(
        &self,
        request: RequestNumber,
        address: usize,
        data: usize,
    ) -> Result<(), Errno> {
        let pointer = |number: usize| ptr::without_provenance_mut::<c_void>(number);
        // SAFETY: the caller's promise. Of the tracee's own memory no request used here writes
        // any; addresses of ours were exposed by `addr_of`.
        let result = unsafe {
            libc::ptrace(
                request,
                self.pid(),
                pointer(address),
                ptr::with_exposed_provenance_mut::<c_void>(data),
            )
        };
        if result < 0 { Err(last_error()) } else { Ok(()) }
    }
}

/// A wait begins with looking, for a short while: most stops come at once, and from another
/// processor being woken takes longer than the stop itself. On the same processor, or where others
/// want it, whoever is waited for goes first.
struct Impatience {
    until: Option<Instant>,
}

impl Impatience {
    /// As long as being woken takes, in a virtual machine.
    const WHILE: Duration = Duration::from_micros(100);

    fn new() -> Self {
        Self { until: Some(Instant::now() + Self::WHILE) }
    }

    fn lasts(&self) -> bool {
        self.until.is_some()
    }

    /// Nothing has come yet.
    fn pass(&mut self) {
        thread::yield_now();
        self.until = self.until.filter(|until| Instant::now() < *until);
    }
}

thread_local! {
    /// What others than the one that was waited for did: process ids and statuses, in order.
    static WAITED: RefCell<Vec<(libc::pid_t, c_int)>> = const { RefCell::new(Vec::new()) };
}

/// ptrace's requests are of another integer type with each C library.
#[cfg(target_env = "musl")]
type RequestNumber = c_int;
/// ptrace's requests are of another integer type with each C library.
#[cfg(not(target_env = "musl"))]
type RequestNumber = std::ffi::c_uint;

/// The general registers, among the sets of registers.
const NT_PRSTATUS: usize = 1;

trait AddressOf {
    fn addr_of(self) -> usize;
}

impl<T> AddressOf for *mut T {
    fn addr_of(self) -> usize {
        self.expose_provenance()
    }
}

fn decode(status: c_int) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Gone;
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::Trap,
        libc::PTRACE_EVENT_STOP => Event::GroupStop,
        libc::PTRACE_EVENT_CLONE => Event::Clone,
        _ if signal == libc::SIGTRAP | 0x80 => Event::Syscall,
        _ => Event::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_wait_says() {
        let stopped = |signal: c_int, event: c_int| event << 16 | signal << 8 | 0x7f;
        assert_eq!(decode(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_STOP)), Event::Trap);
        assert_eq!(decode(stopped(libc::SIGSTOP, libc::PTRACE_EVENT_STOP)), Event::GroupStop);
        assert_eq!(decode(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_CLONE)), Event::Clone);
        assert_eq!(decode(stopped(libc::SIGTRAP | 0x80, 0)), Event::Syscall);
        assert_eq!(decode(stopped(libc::SIGSTOP, 0)), Event::Signal(libc::SIGSTOP));
        assert_eq!(decode(stopped(40, 0)), Event::Signal(40));
        assert_eq!(decode(0), Event::Gone);
        assert_eq!(decode(libc::SIGKILL), Event::Gone);
    }
}

//! The caller of a request: the thread that is blocked in its ioctl while we serve it.
//!
//! The kernel names it by thread id. The thread cannot run or go away before the request is
//! answered (a killed caller waits, uninterruptibly, for the answer), so for that long its
//! id, its memory and its descriptors can be used without fear of the id being given to somebody
//! else. Nothing here may be used after the answer.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid as NixPid;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
};

use crate::failure::Failure;
use crate::system;

/// The thread id of a caller, as seen in the daemon's pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tid(u32);

impl Tid {
    /// The thread of a request's header. None when the kernel could not name it: the caller is
    /// outside the daemon's pid namespace.
    pub fn new(tid: u32) -> Option<Self> {
        (tid != 0 && i32::try_from(tid).is_ok()).then_some(Self(tid))
    }

    /// The number, for paths under /proc.
    pub fn get(self) -> u32 {
        self.0
    }

    /// What the kernel tells of it in /proc; nothing if it is gone.
    pub fn status(self) -> Status {
        // About 1500 bytes, in one go.
        let mut text = String::with_capacity(4096);
        let file = File::open(format!("/proc/{}/status", self.0));
        let _ = file.and_then(|mut file| file.read_to_string(&mut text));
        Status(text)
    }

    /// How much memory the kernel counts as locked by its process, bytes.
    pub fn locked_memory(self) -> Option<u64> {
        let status = self.status();
        let kilobytes: u64 = status.field("VmLck:")?.strip_suffix("kB")?.trim().parse().ok()?;
        kilobytes.checked_mul(1024)
    }

    /// Whether SIGKILL is pending for it, as when its process was killed or is in execve.
    pub fn is_killed(self) -> bool {
        const SIGKILL: u64 = 1 << (9 - 1);
        let status = self.status();
        let pending = ["SigPnd:", "ShdPnd:"].map(|field| status.set(field).unwrap_or(0));
        (pending[0] | pending[1]) & SIGKILL != 0
    }

    /// Kills its process. Only for one that is traced by us: its id cannot be another's.
    pub fn kill(self) {
        if let Some(pid) = Pid::from_raw(self.0.cast_signed()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn nix(self) -> NixPid {
        NixPid::from_raw(self.0.cast_signed())
    }

    /// Reads the caller's memory at `address`. Returns how many bytes could be read: fewer than
    /// asked for where they reach into a page that cannot be read.
    ///
    /// # Errors
    /// EFAULT when not even the first can be; ESRCH or EPERM when the caller cannot be reached.
    pub fn read(self, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let remote = remote_part(address, buffer.len())?;
        process_vm_readv(self.nix(), &mut [IoSliceMut::new(buffer)], &[remote]).map_err(errno)
    }

    /// Writes `bytes` to the caller's memory: all of them, or EFAULT.
    pub fn write(self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let remote = remote_part(address, bytes.len())?;
        match process_vm_writev(self.nix(), &[IoSlice::new(bytes)], &[remote]).map_err(errno)? {
            written if written == bytes.len() => Ok(()),
            _ => Err(Errno::FAULT),
        }
    }

    /// A duplicate of descriptor `fd` of the caller's own table.
    ///
    /// The caller gets nothing from this that it did not hold: the descriptor carries the
    /// rights with which the caller, or who gave it to the caller, opened it.
    pub fn descriptor(self, fd: RawFd) -> Result<OwnedFd, Failure> {
        check_number(fd)?;
        if let Some(thread) = self.pidfd_of_thread() {
            return take(&thread, fd);
        }
        let process = self.process()?;
        let taken = take(&pidfd_of(process)?, fd);
        // Asked afterwards: tables that are one now have always been.
        match system::share_descriptors(process, self) {
            true => taken,
            false => Err(Failure::unsupported(
                "the calling thread has descriptors of its own (unshare, clone), which only Linux 6.9 \
                 and later let the daemon reach: call from the program's first thread",
            )),
        }
    }

    /// The thread itself, whose descriptor table may be its own: from Linux 6.9 on.
    fn pidfd_of_thread(self) -> Option<OwnedFd> {
        const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);
        pidfd_open(Pid::from_raw(self.0.cast_signed())?, PIDFD_THREAD).ok()
    }

    /// The process id (thread group) of the caller.
    pub fn process(self) -> Result<u32, Failure> {
        self.status().number("Tgid:").ok_or_else(|| {
            Failure::new(Errno::SRCH, "the calling process cannot be found in /proc")
        })
    }
}

/// The text of /proc/TID/status.
pub struct Status(String);

impl Status {
    /// A field, by its name with the colon.
    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.field(name)?.parse().ok()
    }

    /// A field that is a list of numbers.
    pub fn numbers(&self, name: &str) -> Vec<u32> {
        let field = self.field(name).unwrap_or_default();
        field.split_whitespace().filter_map(|number| number.parse().ok()).collect()
    }

    /// A field that is a bitmap.
    pub fn set(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }
}

fn pidfd_of(process: u32) -> Result<OwnedFd, Failure> {
    let pid = Pid::from_raw(process.cast_signed()).ok_or(Errno::SRCH);
    pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|error| Failure::new(error, format!("the caller cannot be found: {error}")))
}

/// A duplicate of descriptor `fd` of the process behind `pidfd`.
///
/// # Errors
/// As for [`Tid::descriptor`].
pub fn take(pidfd: &OwnedFd, fd: RawFd) -> Result<OwnedFd, Failure> {
    check_number(fd)?;
    pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty()).map_err(|error| match error {
        Errno::BADF => {
            Failure::new(Errno::BADF, format!("descriptor {fd} is not open in the calling program"))
        }
        Errno::PERM => Failure::new(
            Errno::PERM,
            format!(
                "the kernel does not let the daemon take descriptor {fd} from the program; if \
                 /proc/sys/kernel/yama/ptrace_scope is 3, set it to 2 or less and reboot"
            ),
        ),
        other => Failure::new(other, format!("descriptor {fd} cannot be taken: {other}")),
    })
}

fn check_number(fd: RawFd) -> Result<(), Failure> {
    match fd {
        0.. => Ok(()),
        _ => Err(Failure::new(Errno::BADF, format!("{fd} is not a file descriptor"))),
    }
}

fn remote_part(base: u64, len: usize) -> Result<RemoteIoVec, Errno> {
    let base = usize::try_from(base).map_err(|_| Errno::FAULT)?;
    Ok(RemoteIoVec { base, len })
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

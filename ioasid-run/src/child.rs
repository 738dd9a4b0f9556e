//! The program's side, seen from outside: the descriptors and the memory of a thread that waits in an
//! intercepted call.
//!
//! Everything is named by the thread's number, which may be another's once the thread is killed: what
//! was read counts only if the call still [waits](crate::notify::Call::is_waiting) afterwards.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::bridge::Refusal;
use crate::sys;

/// `PIDFD_THREAD` of Linux 6.9.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);

/// A thread of the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(pub(crate) u32);

impl Thread {
    /// A duplicate of one of its descriptors.
    ///
    /// # Errors
    /// EBADF when it is not open; EPERM when the kernel does not permit it.
    pub(crate) fn descriptor(self, fd: RawFd) -> Result<OwnedFd, Refusal> {
        if fd < 0 {
            return Err(Refusal::new(Errno::BADF, format!("{fd} is no descriptor")));
        }
        let table = self.table()?;
        pidfd_getfd(table, fd, PidfdGetfdFlags::empty()).map_err(|errno| why(fd, errno))
    }

    /// A pidfd through which its descriptors can be had.
    fn table(self) -> Result<OwnedFd, Refusal> {
        let gone = || Refusal::new(Errno::SRCH, "the calling thread is gone");
        if let Ok(thread) = pidfd_open(pid(self.0).ok_or_else(gone)?, PIDFD_THREAD) {
            return Ok(thread);
        }
        let process = self.process().ok_or_else(gone)?;
        let table = pidfd_open(pid(process).ok_or_else(gone)?, PidfdFlags::empty());
        // Asked afterwards: tables that are one now have always been.
        match sys::share_descriptors(process, self.0) {
            Ok(false) => Err(Refusal::new(
                Errno::OPNOTSUPP,
                "the calling thread has descriptors of its own (unshare, clone), which only Linux 6.9 and \
                 later let others reach: call from the program's first thread",
            )),
            _ => table.map_err(|_| gone()),
        }
    }

    /// The process that it belongs to.
    fn process(self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
    }

    /// The numbers of its descriptors.
    pub(crate) fn descriptors(self) -> Vec<RawFd> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.0)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// The numbers of its descriptors that are the same open file as ours.
    pub(crate) fn duplicates_of(self, own: &OwnedFd) -> Vec<RawFd> {
        let mut all = self.descriptors();
        all.retain(|fd| self.is_same_file(*fd, own));
        all
    }

    /// Whether a descriptor is the same open file as ours.
    pub(crate) fn is_same_file(self, fd: RawFd, own: &OwnedFd) -> bool {
        sys::is_same_file(self.0, fd, own) == Ok(true)
    }

    /// What a descriptor is open on, as the kernel writes it; nothing if it is not open.
    pub(crate) fn link(self, fd: RawFd) -> String {
        let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.0));
        link.map_or(String::new(), |link| link.to_string_lossy().into_owned())
    }

    /// Whether a descriptor is closed on exec.
    pub(crate) fn is_cloexec(self, fd: RawFd) -> bool {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.0)).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
        flags.is_some_and(|flags| flags & libc::O_CLOEXEC != 0)
    }

    /// Reads its memory. Gives how much could be read.
    ///
    /// # Errors
    /// EFAULT when that is nothing; EPERM when the kernel does not permit it.
    pub(crate) fn read(self, address: u64, buffer: &mut [u8]) -> Result<usize, Refusal> {
        let remote = RemoteIoVec { base: address as usize, len: buffer.len() };
        let thread = nix::unistd::Pid::from_raw(self.0.cast_signed());
        process_vm_readv(thread, &mut [IoSliceMut::new(buffer)], &[remote]).map_err(|error| {
            let errno = Errno::from_raw_os_error(error as i32);
            match errno {
                Errno::PERM => not_permitted("read its memory"),
                _ => Refusal::new(errno, format!("nothing can be read at {address:#x}")),
            }
        })
    }
}

fn pid(number: u32) -> Option<Pid> {
    Pid::from_raw(number.cast_signed())
}

fn why(fd: RawFd, errno: Errno) -> Refusal {
    match errno {
        Errno::BADF => Refusal::new(errno, format!("descriptor {fd} is not open in the program")),
        Errno::PERM => not_permitted(&format!("take descriptor {fd}")),
        other => Refusal::new(other, format!("descriptor {fd} cannot be taken: {other}")),
    }
}

/// Why the kernel forbids what a supervisor has to do.
pub(crate) fn not_permitted(what: &str) -> Refusal {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let reason = match scope.trim() {
        "3" => {
            "/proc/sys/kernel/yama/ptrace_scope is 3, which forbids it to everybody until the next boot: \
             set kernel.yama.ptrace_scope to 2 or less in /etc/sysctl.d and reboot"
        }
        _ => {
            "the program runs with other rights than ioasid-run was started with, or its file may be \
             executed and not read"
        }
    };
    Refusal::new(Errno::PERM, format!("the kernel does not let ioasid-run {what}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_setfd};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn this() -> Thread {
        Thread(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned())
    }

    #[test]
    fn all_duplicates_of_a_file_are_found_and_no_other_open_of_it() {
        let file: OwnedFd = File::open("/dev/null").expect("there is one").into();
        let (one, two) = (file.try_clone().expect("room"), file.try_clone().expect("room"));
        let other = File::open("/dev/null").expect("there is one");
        let mut found = this().duplicates_of(&file);
        found.sort_unstable();
        let mut expected = vec![file.as_raw_fd(), one.as_raw_fd(), two.as_raw_fd()];
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(!found.contains(&other.as_raw_fd()));
    }

    #[test]
    fn whether_a_descriptor_is_closed_on_exec_is_read_of_it() {
        let file = File::open("/dev/null").expect("there is one");
        assert!(this().is_cloexec(file.as_raw_fd()));
        fcntl_setfd(&file, FdFlags::empty()).expect("open");
        assert!(!this().is_cloexec(file.as_raw_fd()));
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_ebadf() {
        for fd in [-1, 1 << 20] {
            assert_eq!(this().descriptor(fd).expect_err("not open").errno, Errno::BADF);
        }
    }

    #[test]
    fn memory_that_is_not_there_is_efault() {
        let mut buffer = [0; 4];
        assert_eq!(this().read(16, &mut buffer).expect_err("nothing").errno, Errno::FAULT);
        assert_eq!(this().read(buffer.as_ptr() as u64, &mut [0; 4]).expect("ours"), 4);
    }
}

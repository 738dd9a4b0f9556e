//! Descriptors of another process: which of them are open on the node, and a duplicate of one.
//!
//! Both take the rights of a debugger over that process, which the kernel checks: a process of the
//! same user, as far as Yama allows it, or any for root.

use std::fmt;
use std::fs;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::node::plain_error;
use crate::report::Failure;
use crate::target::Target;

/// A descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Of {
    pid: Pid,
    /// Its number there.
    pub(crate) fd: RawFd,
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {} of process {}", self.fd, self.pid)
    }
}

impl Target {
    /// The descriptors that are meant, at least one, in ascending order. If none was named they are
    /// all that are open on the node at `node`, also those that are duplicates of each other.
    ///
    /// Errors: [`Failure::Host`] when there are none, or the process may not be looked at.
    pub(crate) fn descriptors(self, node: &Path) -> Result<Vec<Of>, Failure> {
        let pid = self.pid;
        if let Some(fd) = self.fd {
            return Ok(vec![Of { pid, fd }]);
        }
        let known = fs::metadata(node).map_err(|error| {
            Failure::Host(format!("{}: {}", node.display(), plain_error(&error)))
        })?;
        let directory = format!("/proc/{pid}/fd");
        let entries = fs::read_dir(&directory).map_err(|error| not_permitted(pid, &error))?;
        let mut found: Vec<Of> = entries
            .flatten()
            // It may have been closed since.
            .filter(|entry| fs::metadata(entry.path()).is_ok_and(|file| is_same(&file, &known)))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .map(|fd| Of { pid, fd })
            .collect();
        found.sort_unstable_by_key(|of| of.fd);
        if found.is_empty() {
            let node = node.display();
            return Err(Failure::Host(format!("process {pid} does not have {node} open")));
        }
        Ok(found)
    }

    /// The one descriptor that is meant.
    ///
    /// Errors: as for [`descriptors`](Self::descriptors); [`Failure::Usage`] when there are several.
    pub(crate) fn descriptor(self, node: &Path) -> Result<Of, Failure> {
        match self.descriptors(node)?.as_slice() {
            [of] => Ok(*of),
            several => {
                let names: Vec<_> =
                    several.iter().map(|of| format!("{}:{}", of.pid, of.fd)).collect();
                Err(Failure::Usage(format!(
                    "process {} has the node open several times; name one: --pid {}",
                    self.pid,
                    names.join(", --pid ")
                )))
            }
        }
    }
}

/// Whether two files are the same: devices by what they stand for, since a program may see them
/// under another name.
fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    let is_device = |file: &fs::Metadata| file.file_type().is_char_device();
    match is_device(one) && is_device(other) {
        true => one.rdev() == other.rdev(),
        false => (one.dev(), one.ino()) == (other.dev(), other.ino()),
    }
}

impl Of {
    /// A duplicate of it in this process.
    ///
    /// Errors: [`Failure::Host`] when there is no such process or descriptor, or it may not be taken.
    pub(crate) fn duplicate(self) -> Result<OwnedFd, Failure> {
        let Of { pid, fd } = self;
        let taken = pidfd_open(pid, PidfdFlags::empty())
            .and_then(|process| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()));
        taken.map_err(|errno| match errno {
            Errno::BADF => Failure::Host(format!("{self} is not open")),
            errno => not_permitted(pid, &errno.into()),
        })
    }
}

fn not_permitted(pid: Pid, error: &std::io::Error) -> Failure {
    let why = match Errno::from_io_error(error) {
        Some(Errno::SRCH | Errno::NOENT) => "there is no such process".into(),
        Some(Errno::ACCESS | Errno::PERM) => format!(
            "{}: you may look at its descriptors only as root, or where you could debug it: as its \
             own user and with a small /proc/sys/kernel/yama/ptrace_scope",
            plain_error(error)
        ),
        _ => plain_error(error),
    };
    Failure::Host(format!("process {pid}: {why}"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    fn me() -> u32 {
        std::process::id()
    }

    #[test]
    fn descriptors_are_found_by_what_they_are_open_on() {
        let null = Path::new("/dev/null");
        let (one, two) = (File::open(null).unwrap(), File::open(null).unwrap());
        let found = target(&me().to_string()).descriptors(null).unwrap();
        let numbers: Vec<_> = found.iter().map(|of| of.fd).collect();
        assert!(numbers.contains(&one.as_raw_fd()) && numbers.contains(&two.as_raw_fd()));
        assert!(numbers.is_sorted());
        let Err(Failure::Usage(several)) = target(&me().to_string()).descriptor(null) else {
            panic!("there are several")
        };
        assert!(several.contains(&format!("--pid {}:{}", me(), one.as_raw_fd())), "{several}");
        let none = target(&me().to_string()).descriptors(Path::new("/dev/full")).unwrap_err();
        assert_eq!(none.to_string(), format!("process {} does not have /dev/full open", me()));
    }

    #[test]
    fn what_cannot_be_taken_is_told() {
        let of = |fd| Of { pid: target(&me().to_string()).pid, fd };
        let closed = of(1 << 20).duplicate().unwrap_err().to_string();
        assert_eq!(closed, format!("descriptor 1048576 of process {} is not open", me()));
        let nobody = target("2147483647").descriptors(Path::new("/dev/null")).unwrap_err();
        assert_eq!(nobody.to_string(), "process 2147483647: there is no such process");
    }
}

//! Whether an open of the node is still there, told without keeping it.
//!
//! The supervisor must not hold the program's context: it ends with the program's last descriptor of
//! it. An epoll instance refers to an open file without keeping it open, and the kernel takes the entry
//! out when the file is closed for good (eventpoll_release).

use std::fs;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
use rustix::io::Errno;

/// A look at one open file.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Looks at a file that can be polled.
    ///
    /// # Errors
    /// EPERM when it cannot; ENOMEM.
    pub(crate) fn new(file: impl AsFd) -> Result<Self, Errno> {
        let epoll = create(CreateFlags::CLOEXEC)?;
        add(&epoll, file, EventData::new_u64(0), EventFlags::empty())?;
        Ok(Self(epoll))
    }

    /// Whether anybody has it open.
    pub(crate) fn is_open(&self) -> bool {
        // proc_pid_fdinfo(5): a line that begins with "tfd:" for each file in it.
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()));
        info.is_ok_and(|info| info.lines().any(|line| line.starts_with("tfd:")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_until_its_last_descriptor_is_closed() {
        let (file, _peer) = rustix::pipe::pipe().expect("a pipe");
        let watch = Watch::new(&file).expect("a pipe can be polled");
        let duplicate = file.try_clone().expect("room");
        drop(file);
        assert!(watch.is_open());
        drop(duplicate);
        assert!(!watch.is_open());
    }
}

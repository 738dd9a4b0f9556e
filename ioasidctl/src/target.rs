//! Which descriptor of which process a command line means.

use std::os::fd::RawFd;
use std::str::FromStr;

use rustix::process::Pid;

/// A process, and one of its descriptors or any that is open on the node: `PID` or `PID:FD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) pid: Pid,
    pub(crate) fd: Option<RawFd>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (pid, fd) = match text.split_once(':') {
            Some((pid, fd)) => (pid, Some(fd)),
            None => (text, None),
        };
        let wrong = || format!("`{text}` is neither a process id nor PID:FD");
        let pid = pid.parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let fd = match fd {
            Some(fd) => Some(fd.parse().ok().filter(|fd| *fd >= 0).ok_or_else(wrong)?),
            None => None,
        };
        Ok(Target { pid: pid.ok_or_else(wrong)?, fd })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_process_or_one_of_its_descriptors() {
        assert_eq!(target("12").pid.as_raw_nonzero().get(), 12);
        assert_eq!((target("12").fd, target("12:7").fd), (None, Some(7)));
        for wrong in ["", ":", "0", "-1", "12:", "12:-1", "12:x", "x", "12:7:8"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }
}

//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

const ABOUT: &str = "\
Run a program that nobody changed on /dev/ioasid.

Two kinds of programs run:

  written for the proposal   open /dev/vfio/devices/NAME (NAME is the PCI address of a device that
                             is bound to a vfio driver), VFIO_BIND_IOASID_FD, VFIO_ATTACH_IOASID,
                             VFIO_DETACH_IOASID and VFIO_UNBIND_IOASID_FD on it; or a group, and
                             VFIO_GROUP_SET_CONTAINER with a descriptor of /dev/ioasid
  today's VFIO programs      /dev/vfio/vfio is /dev/ioasid, which is a VFIO container too

They may be static or dynamic, have threads and start others. The program is this very process: it
keeps its id, terminal, signals, exit status, descriptors and environment. What it does with its
device afterwards goes to the kernel directly.";

const AFTER: &str = "\
Examples:
  ioasid-run -- my-driver /dev/vfio/devices/0000:00:10.0
  ioasid-run --explain -- dpdk-testpmd -a 0000:00:10.0 -- --forward-mode=txonly
  ioasid-run --explain=/tmp/calls -- qemu-system-x86_64 -device vfio-pci,host=00:10.0 ...

How: in a mount namespace of its own, the program finds placeholders in /dev/vfio/devices and
/dev/ioasid in place of /dev/vfio/vfio. A seccomp filter puts seven ioctl commands before a
supervisor, a second process, which carries them out through /dev/ioasid with the rights of who
started it. No other call is affected. The supervisor ends with the last process of the program. If
it is killed, those seven commands give ENOSYS, and everything else goes on.

Rights: none are needed but those to open /dev/ioasid and /dev/vfio/GROUP. Without CAP_SYS_ADMIN and
CAP_SYS_PTRACE the program runs in a user namespace, in which it is the same user and group; there,
files of others seem to be nobody's, and set-user-ID programs do not get their privilege.

What cannot work: a program that installs a seccomp listener itself (EBUSY), and so a launcher in a
launcher; 32-bit programs, which /dev/ioasid refuses; kernel.yama.ptrace_scope = 3. To attach a
device to an address space which maps private memory already is refused (EFAULT), as is to detach it
from one nested on such: map afterwards, or map shared memory.

Exit status: the program's, or
  125  ioasid-run could not prepare the program; a sentence on standard error says why
  126  the program was found and could not be started
  127  the program was not found";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(name = "ioasid-run", version, about = ABOUT, after_help = AFTER)]
pub(crate) struct Cli {
    /// The node that the program finds as /dev/vfio/vfio, and as /dev/ioasid
    #[arg(long, env = "IOASID_NODE", value_name = "PATH", default_value = "/dev/ioasid")]
    pub(crate) node: PathBuf,
    /// Tell of every intercepted call, what became of it, and why one failed: on standard error,
    /// or at the end of FILE
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "-"
    )]
    pub(crate) explain: Option<PathBuf>,
    /// The program and its arguments
    #[arg(
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    pub(crate) program: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(words: &[&str]) -> Cli {
        Cli::try_parse_from([&["ioasid-run"], words].concat()).expect("a command line")
    }

    #[test]
    fn what_follows_the_program_is_the_programs() {
        for words in [&["--", "ls", "--explain", "--", "-l"][..], &["ls", "--explain", "--", "-l"]]
        {
            let cli = parse(words);
            assert_eq!(cli.program, ["ls", "--explain", "--", "-l"]);
            assert_eq!(cli.explain, None);
        }
    }

    #[test]
    fn explain_takes_a_file_only_behind_an_equals_sign() {
        assert_eq!(parse(&["--explain", "ls"]).explain.as_deref(), Some(Path::new("-")));
        assert_eq!(parse(&["--explain=f", "ls"]).explain.as_deref(), Some(Path::new("f")));
    }

    #[test]
    fn a_program_is_wanted() {
        assert!(Cli::try_parse_from(["ioasid-run"]).is_err());
        assert!(Cli::try_parse_from(["ioasid-run", "--"]).is_err());
    }
}

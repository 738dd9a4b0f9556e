//! What `--explain` tells: a line for each intercepted call.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::Path;

use ioasid_client::errno;
use ioasid_uapi::cmd;
use parking_lot::Mutex;

use crate::bridge::{Done, Refusal};
use crate::filter::{COMMANDS, GROUP_UNSET_CONTAINER};
use crate::notify::{Answer, Call};

/// Where it is told, if anywhere.
#[derive(Debug)]
pub(crate) struct Explain(Option<Mutex<File>>);

impl Explain {
    /// Tells nothing for no file, on standard error for `-`, else at the end of the file.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn new(path: Option<&Path>) -> std::io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = match path == Path::new("-") {
            true => rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 3)?.into(),
            false => File::options().append(true).create(true).open(path)?,
        };
        Ok(Self(Some(Mutex::new(file))))
    }

    /// The descriptor that it needs.
    pub(crate) fn raw_descriptor(&self) -> Option<RawFd> {
        self.0.as_ref().map(|file| file.lock().as_raw_fd())
    }

    /// Tells of one call. Nobody is disturbed if nobody listens.
    pub(crate) fn tell(&self, call: &Call, subject: &str, outcome: &Result<Done, Refusal>) {
        if let Some(file) = &self.0 {
            let _ = file.lock().write_all(line(call, subject, outcome).as_bytes());
        }
    }

    /// Tells something else.
    pub(crate) fn note(&self, text: &str) {
        if let Some(file) = &self.0 {
            let _ = file.lock().write_all(format!("ioasid-run: {text}\n").as_bytes());
        }
    }
}

fn line(call: &Call, subject: &str, outcome: &Result<Done, Refusal>) -> String {
    let Call { tid, fd, command, arg, .. } = *call;
    let argument = match command {
        cmd::VFIO_BIND_IOASID_FD | cmd::VFIO_UNBIND_IOASID_FD => format!(", {}", arg as i32),
        GROUP_UNSET_CONTAINER => String::new(),
        _ => format!(", {arg:#x}"),
    };
    let result = match outcome {
        Ok(Done::Sent) => "a descriptor".into(),
        Ok(Done::Answer(Answer::Value(value))) => value.to_string(),
        Ok(Done::Answer(Answer::Native)) => "left to the kernel: not of /dev/ioasid".into(),
        Ok(Done::Answer(Answer::Fail(errno))) => errno::name(*errno),
        Err(Refusal { errno, sentence }) => format!("{}: {sentence}", errno::name(*errno)),
    };
    let name =
        COMMANDS.iter().find(|(known, _)| *known == command).map_or("ioctl", |(_, name)| name);
    let subject = if subject.is_empty() { String::new() } else { format!(" [{subject}]") };
    format!("ioasid-run: thread {tid}: {name}({fd}{argument}){subject} = {result}\n")
}

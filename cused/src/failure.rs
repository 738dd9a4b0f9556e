//! Why a request was refused: an errno of the contract and the sentence that explains it.
//!
//! Every layer of the daemon ends in this type; the sentence is what IOASID_GET_ERROR gives to
//! the caller. It says which rule was broken, with which range or device, and what to do.

use std::borrow::Cow;

use rustix::io::Errno;

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    /// What the ioctl returns.
    pub errno: Errno,
    /// What IOASID_GET_ERROR returns.
    pub sentence: Cow<'static, str>,
}

impl Failure {
    /// A refusal with its explanation.
    pub fn new(errno: Errno, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, sentence: sentence.into() }
    }

    /// The request is well understood, and this host, backend or kernel cannot serve it.
    pub fn unsupported(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Errno::OPNOTSUPP, sentence)
    }

    /// A signal waits for the caller, who has lost nothing by it.
    pub fn interrupted() -> Self {
        Self::new(Errno::INTR, "a signal arrived; nothing was changed")
    }

    /// The request is malformed.
    pub fn invalid(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Errno::INVAL, sentence)
    }
}

impl From<ioasid::Error> for Failure {
    fn from(error: ioasid::Error) -> Self {
        Self::new(Errno::from_raw_os_error(error.errno()), error.to_string())
    }
}

/// What mmap says of memory.
impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        let errno = match error {
            Errno::PERM | Errno::ACCESS => Errno::PERM,
            Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN => Errno::NOMEM,
            Errno::OPNOTSUPP => Errno::OPNOTSUPP,
            _ => Errno::FAULT,
        };
        Self::new(errno, format!("the memory cannot be reached: {error}"))
    }
}

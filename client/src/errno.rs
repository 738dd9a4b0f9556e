//! Names and general meanings of errnos, for when the node has no sentence of its own.

use rustix::io::Errno;

macro_rules! names {
    ($($name:ident)*) => {
        &[$((Errno::$name, concat!("E", stringify!($name)))),*]
    };
}

/// Those whose constants in rustix are the C names without the leading `E`.
const NAMES: &[(Errno, &str)] = names! {
    PERM NOENT INTR IO NXIO BADF AGAIN NOMEM FAULT BUSY EXIST NODEV NOTDIR ISDIR INVAL
    NFILE MFILE NOTTY FBIG NOSPC ROFS PIPE NOSYS OVERFLOW MSGSIZE OPNOTSUPP ADDRINUSE CONNABORTED
    NOTCONN TIMEDOUT
};

/// The name of an errno as C spells it, or its number.
pub fn name(errno: Errno) -> String {
    match errno {
        // Two that rustix spells in another way.
        Errno::ACCESS => "EACCES".into(),
        Errno::TOOBIG => "E2BIG".into(),
        _ => match NAMES.iter().find(|(known, _)| *known == errno) {
            Some((_, name)) => (*name).into(),
            None => format!("errno {}", errno.raw_os_error()),
        },
    }
}

/// The C library's sentence for an errno, without the number that the standard library appends.
pub fn sentence(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    match text.split_once(" (os error") {
        Some((sentence, _)) => sentence.to_lowercase(),
        None => text,
    }
}

/// What an errno of open, or of a node whose daemon is gone, means to who called.
pub fn why_not_opened(errno: Errno) -> String {
    let reason = match errno {
        Errno::NOENT => "there is no such node: is the daemon running? (try: ioasidctl doctor)",
        Errno::ACCESS | Errno::PERM => {
            "you may not open it; its owner and mode are a udev rule's matter \
             (try: ioasidctl doctor)"
        }
        Errno::NODEV | Errno::NXIO | Errno::NOTCONN | Errno::CONNABORTED => {
            "the daemon behind it is gone, and what was mapped with it; open it again once the \
             daemon runs"
        }
        Errno::ISDIR => "it is a directory, not the node",
        _ => "it cannot be opened",
    };
    format!("{}: {reason}", name(errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasid_uapi::errno;

    /// The contract's errnos are what a script greps for: each must have its C name.
    #[test]
    fn every_errno_of_the_contract_has_its_c_name() {
        for (code, expected) in [
            (errno::EPERM, "EPERM"),
            (errno::ENOENT, "ENOENT"),
            (errno::EINTR, "EINTR"),
            (errno::EIO, "EIO"),
            (errno::E2BIG, "E2BIG"),
            (errno::EBADF, "EBADF"),
            (errno::EAGAIN, "EAGAIN"),
            (errno::ENOMEM, "ENOMEM"),
            (errno::EACCES, "EACCES"),
            (errno::EFAULT, "EFAULT"),
            (errno::EBUSY, "EBUSY"),
            (errno::EEXIST, "EEXIST"),
            (errno::ENODEV, "ENODEV"),
            (errno::EINVAL, "EINVAL"),
            (errno::ENOTTY, "ENOTTY"),
            (errno::ENOSPC, "ENOSPC"),
            (errno::EOVERFLOW, "EOVERFLOW"),
            (errno::EMSGSIZE, "EMSGSIZE"),
            (errno::EOPNOTSUPP, "EOPNOTSUPP"),
            (errno::EADDRINUSE, "EADDRINUSE"),
        ] {
            assert_eq!(name(Errno::from_raw_os_error(code)), expected);
        }
        assert_eq!(name(Errno::from_raw_os_error(131)), "errno 131");
    }

    #[test]
    fn a_sentence_carries_no_number() {
        assert_eq!(sentence(Errno::EXIST), "file exists");
    }
}

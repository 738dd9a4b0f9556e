//! Numbers and structures of the FUSE wire protocol, as far as one node needs them.
//!
//! Owns the layout and nothing else. Everything is in the machine's own byte order; every structure
//! is padded explicitly, so that 32-bit and 64-bit programs agree. The source is the protocol's
//! public header, `linux/fuse.h`; the tests below hold sizes and offsets to it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The only major version of the protocol in use since Linux 2.6.14.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version that this crate was written against.
pub(crate) const MINOR: u32 = 31;
/// The oldest minor version understood: 7.23 is when `init_out` grew to its present size.
pub(crate) const MINOR_OLDEST: u32 = 23;
/// CUSE itself came with 7.11 and has named that version ever since (7.38 as of Linux 6.1).
pub(crate) const CUSE_MINOR_OLDEST: u32 = 11;

/// Largest payload of one request in either direction, in bytes: 32 pages, the kernel's own default
/// (`FUSE_DEFAULT_MAX_PAGES_PER_REQ`), which CUSE cannot change.
pub(crate) const MAX_PAYLOAD: usize = 128 * 1024;
/// Most iovecs (inputs and outputs together) that one RETRY may name.
pub(crate) const IOCTL_MAX_IOV: usize = 256;
/// ERESTARTNOINTR of the kernel: the call is begun anew once the caller's signals are handled.
pub(crate) const RESTART_NO_INTERRUPT: i32 = 513;
/// Errors outside 1..=511 are refused by the kernel with the request left unanswered.
pub(crate) const LARGEST_ERRNO: i32 = 511;

/// What a request asks for.
pub(crate) mod opcode {
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const CUSE_INIT: u32 = 4096;
}

/// `FUSE_NOTIFY_POLL`, sent in the `error` field of a message whose `unique` is 0.
pub(crate) const NOTIFY_POLL: i32 = 1;

pub(crate) const CUSE_UNRESTRICTED_IOCTL: u32 = 1 << 0;

pub(crate) const INIT_ATOMIC_O_TRUNC: u32 = 1 << 3;
pub(crate) const INIT_BIG_WRITES: u32 = 1 << 5;
pub(crate) const INIT_ABORT_ERROR: u32 = 1 << 21;
pub(crate) const INIT_MAX_PAGES: u32 = 1 << 22;

pub(crate) const FOPEN_DIRECT_IO: u32 = 1 << 0;
pub(crate) const FOPEN_NONSEEKABLE: u32 = 1 << 2;
pub(crate) const FOPEN_STREAM: u32 = 1 << 4;
pub(crate) const FOPEN_NOFLUSH: u32 = 1 << 5;
pub(crate) const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

pub(crate) const IOCTL_COMPAT: u32 = 1 << 0;
pub(crate) const IOCTL_UNRESTRICTED: u32 = 1 << 1;
pub(crate) const IOCTL_RETRY: u32 = 1 << 2;
pub(crate) const IOCTL_32BIT: u32 = 1 << 3;

pub(crate) const POLL_SCHEDULE_NOTIFY: u32 = 1 << 0;

pub(crate) const FATTR_MODE: u32 = 1 << 0;
pub(crate) const FATTR_UID: u32 = 1 << 1;
pub(crate) const FATTR_GID: u32 = 1 << 2;
pub(crate) const FATTR_SIZE: u32 = 1 << 3;
pub(crate) const FATTR_ATIME: u32 = 1 << 4;
pub(crate) const FATTR_MTIME: u32 = 1 << 5;
pub(crate) const FATTR_ATIME_NOW: u32 = 1 << 7;
pub(crate) const FATTR_MTIME_NOW: u32 = 1 << 8;

/// File type and permission mask of `st_mode`.
pub(crate) const S_IFREG: u32 = 0o100_000;

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub(crate) struct $name { $(pub(crate) $field: $kind),* }
    )*};
}

structures! {
    /// Begins every request.
    InHeader {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        total_extlen: u16,
        padding: u16,
    }
    /// Begins every answer and notification.
    OutHeader { len: u32, error: i32, unique: u64 }

    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    InitOut {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        unused: [u32; 7],
    }
    CuseInitIn { major: u32, minor: u32, unused: u32, flags: u32 }
    CuseInitOut {
        major: u32,
        minor: u32,
        unused: u32,
        flags: u32,
        max_read: u32,
        max_write: u32,
        dev_major: u32,
        dev_minor: u32,
        spare: [u32; 10],
    }

    Attr {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    SetattrIn {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
    StatfsOut {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }

    OpenIn { flags: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, padding: u32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    ReadIn {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    WriteIn {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
    WriteOut { size: u32, padding: u32 }
    InterruptIn { unique: u64 }
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    PollIn { fh: u64, kh: u64, flags: u32, events: u32 }
    PollOut { revents: u32, padding: u32 }
    NotifyPollOut { kh: u64 }
}

/// Where `unique` lies in a request.
pub(crate) const UNIQUE_OFFSET: usize = std::mem::offset_of!(InHeader, unique);
/// Where a request says how long it is.
pub(crate) const LENGTH_OFFSET: usize = std::mem::offset_of!(InHeader, len);
/// The `unique` of a FUSE_INTERRUPT is that of its target with this bit set.
pub(crate) const INTERRUPT_BIT: u64 = 1;

/// Most bytes one request can have: header, the largest fixed part, payload.
pub(crate) const MAX_REQUEST: usize = size_of::<InHeader>() + size_of::<WriteIn>() + MAX_PAYLOAD;

const _: () = {
    assert!(UNIQUE_OFFSET == 8 && UNIQUE_OFFSET.is_multiple_of(align_of::<u64>()));
    assert!(size_of::<IoctlIn>() <= size_of::<WriteIn>());
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// Sizes as `sizeof` gives them for linux/fuse.h of protocol 7.38.
    #[test]
    fn sizes_are_those_of_the_protocol() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<InitOut>(), 64),
            (size_of::<CuseInitIn>(), 16),
            (size_of::<CuseInitOut>(), 72),
            (size_of::<Attr>(), 88),
            (size_of::<AttrOut>(), 104),
            (size_of::<SetattrIn>(), 88),
            (size_of::<StatfsOut>(), 80),
            (size_of::<OpenIn>(), 8),
            (size_of::<OpenOut>(), 16),
            (size_of::<ReleaseIn>(), 24),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<WriteOut>(), 8),
            (size_of::<InterruptIn>(), 8),
            (size_of::<IoctlIn>(), 32),
            (size_of::<IoctlOut>(), 16),
            (size_of::<PollIn>(), 24),
            (size_of::<PollOut>(), 8),
            (size_of::<NotifyPollOut>(), 8),
        ];
        for (index, (ours, theirs)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, theirs, "structure {index}");
        }
    }

    #[test]
    fn fields_lie_where_the_protocol_has_them() {
        assert_eq!(offset_of!(InHeader, uid), 24);
        assert_eq!(offset_of!(InHeader, pid), 32);
        assert_eq!(offset_of!(InHeader, total_extlen), 36);
        assert_eq!(offset_of!(InitOut, max_write), 20);
        assert_eq!(offset_of!(InitOut, max_pages), 28);
        assert_eq!(offset_of!(InitOut, flags2), 32);
        assert_eq!(offset_of!(CuseInitOut, max_read), 16);
        assert_eq!(offset_of!(CuseInitOut, dev_major), 24);
        assert_eq!(offset_of!(Attr, mode), 60);
        assert_eq!(offset_of!(Attr, blksize), 80);
        assert_eq!(offset_of!(AttrOut, attr), 16);
        assert_eq!(offset_of!(SetattrIn, mode), 68);
        assert_eq!(offset_of!(SetattrIn, uid), 76);
        assert_eq!(offset_of!(StatfsOut, bsize), 40);
        assert_eq!(offset_of!(ReadIn, size), 16);
        assert_eq!(offset_of!(ReadIn, flags), 32);
        assert_eq!(offset_of!(WriteIn, size), 16);
        assert_eq!(offset_of!(WriteIn, flags), 32);
        assert_eq!(offset_of!(IoctlIn, cmd), 12);
        assert_eq!(offset_of!(IoctlIn, arg), 16);
        assert_eq!(offset_of!(IoctlIn, out_size), 28);
        assert_eq!(offset_of!(IoctlOut, out_iovs), 12);
        assert_eq!(offset_of!(PollIn, kh), 8);
        assert_eq!(offset_of!(PollIn, events), 20);
    }
}

//! Pinning memory without any hardware: as the buffer of an io_uring that does no I/O.
//!
//! The kernel pins such a buffer as long-term DMA memory, exactly like VFIO (io_uring/rsrc.c:
//! pin_user_pages with FOLL_WRITE and FOLL_LONGTERM), for as long as the ring exists, whatever the
//! program does to its mapping. It takes anonymous memory, shared memory and huge pages, which the
//! owner may write; not files on disk. The ring is made with two system calls, the same that a
//! caller is led through for its private memory: so no library is used here.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

use self::uring::{PARAMETERS, REGISTER_BUFFERS, UNREGISTER_BUFFERS};
use crate::failure::Failure;
use crate::system::last_error;

/// The most bytes that one pin covers: the kernel's limit for one buffer.
pub const PIN_MAX: u64 = 1 << 30;

/// Numbers of <linux/io_uring.h>.
pub(crate) mod uring {
    /// `struct io_uring_params`, bytes.
    pub(crate) const PARAMETERS: usize = 120;
    /// IORING_REGISTER_BUFFERS
    pub(crate) const REGISTER_BUFFERS: u32 = 0;
    /// IORING_UNREGISTER_BUFFERS
    pub(crate) const UNREGISTER_BUFFERS: u32 = 1;
}

/// Memory that is pinned. Dropping it unpins.
#[derive(Debug)]
pub struct Pin(OwnedFd);

impl Pin {
    /// Pins `len` bytes of the daemon's own address space, at most [`PIN_MAX`].
    pub(super) fn new(address: u64, len: u64) -> Result<Self, Errno> {
        let ring = ring()?;
        let buffer = [address, len];
        register(&ring, REGISTER_BUFFERS, Some(&buffer))?;
        Ok(Self(ring))
    }

    /// Takes over a ring that a caller was led to make for its own memory.
    pub fn of_ring(ring: OwnedFd) -> Self {
        Self(ring)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Closing alone unpins some time later.
        if let Err(error) = register(&self.0, UNREGISTER_BUFFERS, None) {
            log::debug!("pinned memory is let go when its ring ends: {error}");
        }
    }
}

/// Whether memory can be pinned on this host.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| ring().is_ok())
}

/// Why memory cannot be pinned, in words.
pub fn refuse(error: Errno) -> Failure {
    match error {
        Errno::NOSYS | Errno::PERM => Failure::unsupported(
            "memory is registered with the help of io_uring, which this kernel does not permit \
             (IOASID_EXT_REGISTER_MEMORY is 0); see /proc/sys/kernel/io_uring_disabled",
        ),
        Errno::OPNOTSUPP => Failure::unsupported(
            "memory of a file on disk cannot be registered: map it without, or use a memfd",
        ),
        Errno::NOMEM => Failure::new(
            Errno::NOMEM,
            "the kernel refuses to pin this much memory: there is too little of it, or the limit \
             of locked memory (ulimit -l) of the program's user is reached",
        ),
        error => Failure::new(Errno::FAULT, format!("the memory cannot be pinned: {error}")),
    }
}

fn ring() -> Result<OwnedFd, Errno> {
    let mut parameters = [0_u8; PARAMETERS];
    // SAFETY: the kernel reads and writes as many bytes as the array has, which lives through
    // the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just opened this descriptor (close-on-exec) for us alone.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_error()),
    }
}

fn register(ring: &OwnedFd, command: u32, buffer: Option<&[u64; 2]>) -> Result<(), Errno> {
    let (vectors, count) = match buffer {
        Some(buffer) => (buffer.as_ptr(), 1),
        None => (std::ptr::null(), 0),
    };
    // SAFETY: `vectors` is one struct iovec, or none, and lives through the call. The memory that
    // it names is pinned, not accessed; Rust has no reference to it.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), command, vectors, count)
    };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

//! Answers and notifications to the kernel, one writev(2) each.
//!
//! Owns the descriptor of the channel and what a well-formed answer is. The kernel takes an answer
//! whole or not at all, from any thread.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::node::{IoVec, PollHandle};
use crate::wire::{self, OutHeader};

/// Restart codes of the kernel and the like: not for user space, and refused in a header.
const INTERNAL_ERRNOS: std::ops::RangeInclusive<i32> = -4095..=-(wire::LARGEST_ERRNO + 1);

/// The write side of a channel.
#[derive(Debug)]
pub(crate) struct Link {
    device: OwnedFd,
}

impl Link {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    pub(crate) fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Success without data.
    pub(crate) fn ok(&self, unique: u64) -> Result<(), Errno> {
        self.send(unique, 0, [])
    }

    /// Success with one structure.
    pub(crate) fn structure(
        &self,
        unique: u64,
        body: &(impl IntoBytes + Immutable),
    ) -> Result<(), Errno> {
        self.send(unique, 0, [body.as_bytes()])
    }

    /// Success with plain bytes.
    pub(crate) fn data(&self, unique: u64, data: &[u8]) -> Result<(), Errno> {
        self.send(unique, 0, [data])
    }

    /// Success with one structure and bytes behind it.
    pub(crate) fn structure_and_data(
        &self,
        unique: u64,
        body: &(impl IntoBytes + Immutable),
        data: &[u8],
    ) -> Result<(), Errno> {
        self.send(unique, 0, [body.as_bytes(), data])
    }

    /// Failure.
    pub(crate) fn error(&self, unique: u64, errno: Errno) -> Result<(), Errno> {
        let number = errno.raw_os_error();
        let known = (1..=wire::LARGEST_ERRNO).contains(&number);
        self.send(unique, if known { -number } else { -Errno::IO.raw_os_error() }, [])
    }

    /// The end of an ioctl.
    pub(crate) fn ioctl_done(&self, unique: u64, result: i32, output: &[u8]) -> Result<(), Errno> {
        let internal = INTERNAL_ERRNOS.contains(&result);
        let result = if internal { -Errno::IO.raw_os_error() } else { result };
        let body = wire::IoctlOut { result, ..Default::default() };
        if output.is_empty() {
            self.send(unique, 0, [body.as_bytes()])
        } else {
            self.send(unique, 0, [body.as_bytes(), output])
        }
    }

    /// The end of an ioctl whose caller has got a signal: once that is handled, the kernel begins
    /// the call anew. fs/fuse/ioctl.c hands the result to the system call's return unchanged.
    pub(crate) fn ioctl_restart(&self, unique: u64) -> Result<(), Errno> {
        let body = wire::IoctlOut { result: -wire::RESTART_NO_INTERRUPT, ..Default::default() };
        self.send(unique, 0, [body.as_bytes()])
    }

    /// Another round of an ioctl. The kernel's own checks would say ENOMEM after the fact; what
    /// breaks its limits is refused here.
    pub(crate) fn ioctl_retry(
        &self,
        unique: u64,
        inputs: &[IoVec],
        outputs: &[IoVec],
    ) -> Result<(), Errno> {
        if !retry_is_within_limits(inputs, outputs) {
            return self.error(unique, Errno::IO);
        }
        let body = wire::IoctlOut {
            result: 0,
            flags: wire::IOCTL_RETRY,
            in_iovs: inputs.len() as u32,
            out_iovs: outputs.len() as u32,
        };
        self.send(unique, 0, [body.as_bytes(), inputs.as_bytes(), outputs.as_bytes()])
    }

    /// Wakes whoever polls. Nobody polling is not an error.
    pub(crate) fn wake(&self, handle: PollHandle) -> Result<(), Errno> {
        let body = wire::NotifyPollOut { kh: handle.0 };
        match self.send(0, wire::NOTIFY_POLL, [body.as_bytes()]) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    /// Whether a request that has been read is still to be answered. If its caller has got a signal,
    /// a FUSE_INTERRUPT for it will be read once more.
    ///
    /// Asked with the answer to a FUSE_INTERRUPT that says that it came too early: fs/fuse/dev.c looks
    /// for its target, and if that is there and interrupted, queues it again.
    pub(crate) fn is_waiting(&self, unique: u64) -> bool {
        let again = -Errno::AGAIN.raw_os_error();
        // EINVAL: it is there, and not interrupted.
        matches!(self.send(unique | wire::INTERRUPT_BIT, again, []), Ok(()) | Err(Errno::INVAL))
    }

    fn send<const N: usize>(
        &self,
        unique: u64,
        error: i32,
        parts: [&[u8]; N],
    ) -> Result<(), Errno> {
        let body: usize = parts.iter().map(|part| part.len()).sum();
        let header = OutHeader { len: (size_of::<OutHeader>() + body) as u32, error, unique };
        let mut slices = [IoSlice::new(&[]); 4];
        const { assert!(N < 4) };
        slices[0] = IoSlice::new(header.as_bytes());
        for (slice, part) in slices[1..].iter_mut().zip(&parts) {
            *slice = IoSlice::new(part);
        }
        loop {
            match rustix::io::writev(&self.device, &slices[..=N]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn retry_is_within_limits(inputs: &[IoVec], outputs: &[IoVec]) -> bool {
    let fits = |places: &[IoVec]| {
        let mut room = wire::MAX_PAYLOAD as u64;
        places.iter().all(|place| match room.checked_sub(place.len) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        })
    };
    inputs.len() + outputs.len() <= wire::IOCTL_MAX_IOV && fits(inputs) && fits(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `answer` writes, taken from the other end of a pipe.
    fn written(answer: impl FnOnce(&Link) -> Result<(), Errno>) -> Vec<u8> {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        answer(&Link::new(writer)).unwrap();
        let mut buffer = vec![0; 8192];
        let count = rustix::io::read(&reader, &mut buffer[..]).unwrap();
        buffer.truncate(count);
        buffer
    }

    fn words(bytes: &[u8]) -> Vec<i32> {
        bytes.chunks_exact(4).map(|word| i32::from_ne_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn an_empty_answer_is_a_bare_header() {
        let bytes = written(|link| link.ok(6));
        assert_eq!(words(&bytes), [16, 0, 6, 0]);
    }

    #[test]
    fn an_error_is_negative() {
        let bytes = written(|link| link.error(6, Errno::BUSY));
        assert_eq!(words(&bytes), [16, -16, 6, 0]);
    }

    #[test]
    fn an_error_that_the_kernel_would_refuse_becomes_eio() {
        let bytes = written(|link| link.error(6, Errno::from_raw_os_error(512)));
        assert_eq!(words(&bytes), [16, -5, 6, 0]);
    }

    #[test]
    fn an_ioctl_result_keeps_its_value_and_output() {
        let bytes = written(|link| link.ioctl_done(6, -22, &[1, 0, 0, 0]));
        assert_eq!(words(&bytes), [36, 0, 6, 0, -22, 0, 0, 0, 1]);
        let bytes = written(|link| link.ioctl_done(6, -512, &[]));
        assert_eq!(words(&bytes)[4], -5);
        let bytes = written(|link| link.ioctl_done(6, i32::MIN, &[]));
        assert_eq!(words(&bytes)[4], i32::MIN);
    }

    #[test]
    fn a_retry_names_inputs_before_outputs() {
        let place = |base| IoVec { base, len: 8 };
        let bytes = written(|link| link.ioctl_retry(6, &[place(1), place(2)], &[place(3)]));
        let words = words(&bytes);
        assert_eq!(words[..8], [16 + 16 + 48, 0, 6, 0, 0, 4, 2, 1]);
        assert_eq!(words[8..], [1, 0, 8, 0, 2, 0, 8, 0, 3, 0, 8, 0]);
    }

    #[test]
    fn a_retry_beyond_the_kernels_limits_is_answered_eio() {
        let big = IoVec { base: 0, len: wire::MAX_PAYLOAD as u64 };
        let byte = IoVec { base: 0, len: 1 };
        assert!(retry_is_within_limits(&[big], &[big]));
        assert!(!retry_is_within_limits(&[big, byte], &[]));
        assert!(!retry_is_within_limits(&[], &[IoVec { base: 0, len: u64::MAX }, byte]));
        assert!(!retry_is_within_limits(&[byte; 128], &[byte; 129]));
        let bytes = written(|link| link.ioctl_retry(6, &[big, byte], &[]));
        assert_eq!(words(&bytes), [16, -5, 6, 0]);
    }

    #[test]
    fn a_request_is_asked_for_by_the_answer_to_its_interrupt() {
        let bytes = written(|link| {
            assert!(link.is_waiting(6));
            Ok(())
        });
        assert_eq!(words(&bytes), [16, -11, 7, 0]);
    }

    #[test]
    fn a_wake_is_a_notification() {
        let bytes = written(|link| link.wake(PollHandle(9)));
        assert_eq!(words(&bytes), [24, 1, 0, 0, 9, 0]);
    }
}

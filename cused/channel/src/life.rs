//! Whether serving goes on, and who is left: what outlives the channel.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;

/// Why serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndReason {
    /// [`crate::Stop::stop`] was called.
    Stopped,
    /// [`crate::Stop::leave`] was called: the node is there, for a successor to serve.
    Left,
    /// The FUSE file was unmounted by someone, and its last user is gone.
    Unmounted,
    /// The connection was aborted: through fusectl or, for a CUSE device, through
    /// /sys/class/cuse/NAME/abort.
    Aborted,
    /// Requests can no longer be read, or no thread can be started.
    Failed(Errno),
}

/// Shared by everybody who takes part.
#[derive(Debug, Default)]
pub(crate) struct Life {
    /// 0 while serving goes on, else an encoded [`EndReason`].
    end: AtomicU32,
    /// Threads that have not let go of everything.
    pub(crate) threads: AtomicU32,
    /// Counts what the serving thread wants to know: the end, threads that are gone.
    events: AtomicU32,
}

impl Life {
    pub(crate) fn end(&self, reason: EndReason) {
        let _ = self.end.compare_exchange(0, reason.encode(), Ordering::SeqCst, Ordering::SeqCst);
        self.tell();
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.end.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn threads(&self) -> u32 {
        self.threads.load(Ordering::SeqCst)
    }

    pub(crate) fn tell(&self) {
        self.events.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(&self.events, futex::Flags::PRIVATE, u32::MAX);
    }

    pub(crate) fn events(&self) -> u32 {
        self.events.load(Ordering::SeqCst)
    }

    /// Waits for an event after the count was `seen`, for at most `time`.
    pub(crate) fn wait(&self, seen: u32, time: Duration) {
        let time = time.try_into().ok();
        let _ = futex::wait(&self.events, futex::Flags::PRIVATE, seen, time.as_ref());
    }

    pub(crate) fn wait_for_end(&self) -> EndReason {
        loop {
            let seen = self.events();
            if let Some(reason) = EndReason::decode(self.end.load(Ordering::SeqCst)) {
                return reason;
            }
            let _ = futex::wait(&self.events, futex::Flags::PRIVATE, seen, None);
        }
    }
}

impl EndReason {
    fn encode(self) -> u32 {
        match self {
            Self::Stopped => 1,
            Self::Unmounted => 2,
            Self::Aborted => 3,
            Self::Left => 4,
            Self::Failed(errno) => 0x1_0000 | errno.raw_os_error().unsigned_abs(),
        }
    }

    fn decode(code: u32) -> Option<Self> {
        match code {
            0 => None,
            1 => Some(Self::Stopped),
            2 => Some(Self::Unmounted),
            3 => Some(Self::Aborted),
            4 => Some(Self::Left),
            code => Some(Self::Failed(Errno::from_raw_os_error((code & 0xffff) as i32))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_reason_survives_its_encoding() {
        let reasons = [
            EndReason::Stopped,
            EndReason::Unmounted,
            EndReason::Aborted,
            EndReason::Left,
            EndReason::Failed(Errno::NOMEM),
        ];
        for reason in reasons {
            assert_eq!(EndReason::decode(reason.encode()), Some(reason));
        }
        assert_eq!(EndReason::decode(0), None);
    }
}

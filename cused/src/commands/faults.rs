//! IOASID_COMPLETE_FAULT and IOASID_SET_FAULT_EVENTFD. Records are read from the node itself: see
//! [`faults`](crate::faults).

use ioasid_uapi::{self as uapi, ext};
use rustix::io::Errno;

use super::{Command, Done, known_flags, refuse_unsupported};
use crate::failure::Failure;
use crate::faults::eventfd::Eventfd;

impl Command<'_, '_, '_> {
    pub(super) fn complete_fault(&mut self, arg: u64) -> Done {
        let complete: uapi::CompleteFault = self.memory.structure(arg)?;
        known_flags(complete.flags, 0)?;
        if !self.host.has_extension(ext::RECOVERABLE_FAULTS) {
            return refuse_unsupported(
                "no device here waits at a fault: real ones cannot be made to, and this daemon has \
                 no simulated ones (IOASID_EXT_RECOVERABLE_FAULTS is 0)",
            );
        }
        self.context.faults.complete(complete.id, complete.response)?;
        Ok(0)
    }

    pub(super) fn set_fault_eventfd(&mut self, arg: u64) -> Done {
        if !self.host.has_extension(ext::FAULTS) {
            return refuse_unsupported(
                "no faults are told of here: this daemon has no simulated devices, and does not \
                 hear of those of real ones (IOASID_EXT_FAULTS is 0)",
            );
        }
        let eventfd = match descriptor_number(arg)? {
            -1 => None,
            fd => Some(Eventfd::new(self.named_caller()?.descriptor(fd)?)?),
        };
        self.context.faults.announce_to(eventfd);
        Ok(0)
    }
}

/// A descriptor that is the ioctl's argument itself: of an int that C has passed as it is, the upper
/// half may hold its sign or nothing.
fn descriptor_number(arg: u64) -> Result<i32, Failure> {
    let fd = arg as i32;
    match arg == i64::from(fd).cast_unsigned() || arg == u64::from(fd.cast_unsigned()) {
        true => Ok(fd),
        false => Err(Failure::new(Errno::BADF, format!("{arg:#x} is not a file descriptor"))),
    }
}

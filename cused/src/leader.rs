//! The caller of one command, to be led through system calls if the command needs that, and the
//! answer that it gets in the end.

use std::sync::Arc;

use cuse_channel::Ioctl;
use rustix::io::Errno;

use crate::argument::Stop;
use crate::caller::Tid;
use crate::failure::Failure;
use crate::in_context::{Broken, Led, Scratches, Seized};
use crate::process::Process;
use crate::stages::Stages;

/// The caller of one command.
pub struct Leader<'a> {
    request: &'a Ioctl<'a>,
    stages: &'a Stages,
    scratches: &'a Scratches,
    caller: Caller<'a>,
}

/// Where the caller is.
enum Caller<'a> {
    /// Blocked in its ioctl, waiting for an answer.
    Waiting,
    /// Answered, and on its way out: it will stop there.
    Answered(Seized, Arc<Process>),
    /// Stopped on its way out.
    Led(Box<Led<'a>>),
    /// Killed, or gone its own way with the interim answer.
    Gone,
}

/// What a caller gets that our end catches between its interim answer and its stop: nothing is mapped.
const INTERIM: i32 = -5; // EIO

impl<'a> Leader<'a> {
    /// The caller of `request`.
    pub fn new(request: &'a Ioctl<'a>, stages: &'a Stages, scratches: &'a Scratches) -> Self {
        Self { request, stages, scratches, caller: Caller::Waiting }
    }

    /// Has the caller, thread `tid` of `process`, stop outside its ioctl. From now on it is answered by
    /// [`conclude`](Self::conclude).
    ///
    /// # Errors
    /// EBUSY, EPERM: it cannot be led, and why. EINTR: it was killed.
    pub fn begin(&mut self, tid: Tid, process: &Arc<Process>) -> Result<(), Stop> {
        match self.caller {
            Caller::Waiting => {}
            Caller::Answered(..) | Caller::Led(_) => return Ok(()),
            Caller::Gone => return Err(Failure::from(Broken::Gone).into()),
        }
        let Ioctl { unique, interrupt, responder, .. } = *self.request;
        let release = |seized: Result<Seized, Failure>| {
            if let Ok(seized) = seized {
                seized.release();
            }
        };
        let remote = responder.remote();
        let seize = || Seized::new(tid);
        let seized = self.stages.seizing((unique, tid), remote, interrupt, seize, release)??;
        // The kernel tells us of the stop as of a signal: only now, when it means nothing any more.
        seized.stop();
        if responder.send(INTERIM, &[]).is_err() {
            // The connection has ended, and the caller with it: nobody waits for an answer.
            self.caller = Caller::Gone;
            seized.release();
            return Err(Stop::Abandoned);
        }
        self.caller = Caller::Answered(seized, Arc::clone(process));
        Ok(())
    }

    /// Whether the caller is being led.
    pub fn is_leading(&self) -> bool {
        matches!(self.caller, Caller::Answered(..) | Caller::Led(_))
    }

    /// The caller, stopped, if it is being led.
    ///
    /// # Errors
    /// EOPNOTSUPP: it cannot be led, and why. EINTR: it was killed.
    pub fn led(&mut self) -> Result<Option<&mut Led<'a>>, Failure> {
        self.caller = match std::mem::replace(&mut self.caller, Caller::Gone) {
            Caller::Answered(seized, process) => {
                Caller::Led(Box::new(seized.lead(&process, self.scratches)?))
            }
            other => other,
        };
        match &mut self.caller {
            Caller::Led(led) => led.check().map(|()| Some(&mut **led)),
            _ => Ok(None),
        }
    }

    /// Gives a caller that was led the result of its ioctl, and lets it go on. False if it did not
    /// live to see it; true also for a caller that waits for the ordinary answer.
    pub fn conclude(&mut self, result: i32) -> bool {
        match std::mem::replace(&mut self.caller, Caller::Gone) {
            Caller::Answered(seized, process) => {
                seized.lead(&process, self.scratches).is_ok_and(|led| led.finish(result))
            }
            Caller::Led(led) => led.finish(result),
            Caller::Gone => false,
            Caller::Waiting => {
                self.caller = Caller::Waiting;
                true
            }
        }
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        // A panic of ours must not leave a program stopped.
        self.conclude(-Errno::IO.raw_os_error());
    }
}

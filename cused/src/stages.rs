//! Requests that wait for something which their own caller may never let happen, and the ways out.
//!
//! A killed caller waits for our answer, uninterruptibly; we must not wait for it in return. There
//! are two places where that could be:
//!
//! *Reading* an argument. What lies behind an address may be served by a program (userfaultfd,
//! FUSE), even by the caller's own, which a killed caller keeps open while it waits for us.
//!
//! *Seizing* the caller to lead it through system calls. The kernel makes us wait while another
//! thread of the caller's process is in execve, and execve waits for the caller to die.
//!
//! The way out is an answer from another thread, at which the caller dies or goes on; what the
//! stuck thread of ours ends with is thrown away. Afterwards the caller's thread id may be
//! another's: nothing may be written to it.
//!
//! A reading is given up at any signal. A seizing is given up only when SIGKILL is pending, as
//! execve sends it to the other threads; and since the kernel announces only the first signal
//! of a request, whoever got another one is watched from then on.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cuse_channel::{Interrupt, Remote, WayOut};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::argument::Stop;
use crate::caller::Tid;

/// How often callers are looked at that got a signal while they are seized.
const WATCH: Duration = Duration::from_millis(5);

/// The requests in such a stage, by their number.
#[derive(Clone, Debug, Default)]
pub struct Stages(Arc<Mutex<Vec<(u64, Stage)>>>);

#[derive(Debug)]
enum Stage {
    Reading,
    Seizing { tid: Tid, remote: Remote, watched: bool },
}

impl Stages {
    /// Reads the caller's memory for request `unique`.
    ///
    /// # Errors
    /// [`Stop::Restart`] when a signal was there before; [`Stop::Abandoned`] when one has come
    /// meanwhile, and has been answered.
    pub fn reading<T>(
        &self,
        unique: u64,
        interrupt: &Interrupt,
        read: impl FnOnce() -> T,
    ) -> Result<T, Stop> {
        match self.pass(unique, interrupt, Stage::Reading, read)? {
            (result, true) => Ok(result),
            (_, false) => Err(Stop::Abandoned),
        }
    }

    /// Seizes the caller of request `unique`, which is answered through `remote` if need be.
    /// If that has happened, `release` undoes it.
    ///
    /// # Errors
    /// As for [`reading`](Self::reading).
    pub fn seizing<T>(
        &self,
        (unique, tid): (u64, Tid),
        remote: Remote,
        interrupt: &Interrupt,
        seize: impl FnOnce() -> T,
        release: impl FnOnce(T),
    ) -> Result<T, Stop> {
        let stage = Stage::Seizing { tid, remote, watched: false };
        match self.pass(unique, interrupt, stage, seize)? {
            (seized, true) => Ok(seized),
            (seized, false) => {
                release(seized);
                Err(Stop::Abandoned)
            }
        }
    }

    /// The result, and whether the request is still ours to answer.
    fn pass<T>(
        &self,
        unique: u64,
        interrupt: &Interrupt,
        stage: Stage,
        act: impl FnOnce() -> T,
    ) -> Result<(T, bool), Stop> {
        self.0.lock().push((unique, stage));
        // An interrupt is marked before `interrupted` is called: one that came too early for it is
        // seen here.
        if interrupt.is_set() {
            return Err(match self.leave(unique) {
                true => Stop::Restart,
                false => Stop::Abandoned,
            });
        }
        let result = act();
        Ok((result, self.leave(unique)))
    }

    /// Ends a stage, unless it has been given up.
    fn leave(&self, unique: u64) -> bool {
        let mut stages = self.0.lock();
        let place = stages.iter().position(|&(other, _)| other == unique);
        place.map(|place| stages.swap_remove(place)).is_some()
    }

    /// The caller of `unique` has got a signal. Some: what it shall be answered now.
    pub fn interrupted(&self, unique: u64) -> Option<WayOut> {
        let mut stages = self.0.lock();
        let place = stages.iter().position(|&(other, _)| other == unique)?;
        let way_out = match &mut stages[place].1 {
            Stage::Reading => WayOut::Restart,
            Stage::Seizing { tid, .. } if tid.is_killed() => WayOut::Fail(Errno::INTR),
            Stage::Seizing { watched, .. } => {
                if !std::mem::replace(watched, true) {
                    self.watch();
                }
                return None;
            }
        };
        stages.swap_remove(place);
        Some(way_out)
    }

    /// Looks at watched callers until there are none. It is rare that there is one, and that the
    /// thread for it lives longer than one look.
    fn watch(&self) {
        let stages = Arc::clone(&self.0);
        let look = move || loop {
            thread::sleep(WATCH);
            let mut stages = stages.lock();
            stages.retain(|(_, stage)| match stage {
                Stage::Seizing { tid, remote, watched: true } if tid.is_killed() => {
                    remote.fail(Errno::INTR);
                    false
                }
                _ => true,
            });
            let is_watched = |stage: &Stage| matches!(stage, Stage::Seizing { watched: true, .. });
            if !stages.iter().any(|(_, stage)| is_watched(stage)) {
                return;
            }
        };
        if let Err(error) = thread::Builder::new().name("watch".into()).spawn(look) {
            log::error!("no thread to watch an interrupted caller: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use cuse_channel::Responder;

    use super::*;

    #[test]
    fn a_reading_can_be_given_up_once_and_only_while_it_lasts() {
        let stages = Stages::default();
        assert_eq!(stages.interrupted(4), None);
        let read = || assert_eq!(stages.interrupted(4), Some(WayOut::Restart));
        assert_eq!(stages.reading(4, &Interrupt::new(), read), Err(Stop::Abandoned));
        assert_eq!(stages.reading(6, &Interrupt::new(), || 1), Ok(1));
        assert_eq!(stages.interrupted(6), None);
    }

    #[test]
    fn a_signal_that_is_there_already_ends_the_call_before_it_begins() {
        let (stages, interrupt) = (Stages::default(), Interrupt::new());
        interrupt.set();
        let read = || panic!("nothing may be read");
        assert_eq!(stages.reading(4, &interrupt, read), Err::<(), _>(Stop::Restart));
        assert!(stages.0.lock().is_empty());
    }

    #[test]
    fn seizing_goes_on_under_a_signal_that_does_not_kill() {
        let stages = Stages::default();
        let tid = Tid::new(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
        let who = (4, tid.expect("a thread"));
        let released = |()| panic!("the request was not given up");
        let seize = || assert_eq!(stages.interrupted(4), None);
        let remote = Responder::detached().remote();
        assert_eq!(stages.seizing(who, remote, &Interrupt::new(), seize, released), Ok(()));
    }

    #[test]
    fn what_was_seized_after_the_answer_is_released() {
        let stages = Stages::default();
        let tid = Tid::new(1).expect("a thread");
        let (released, is_released) = mpsc::channel();
        let seize = || assert!(stages.leave(4));
        let remote = Responder::detached().remote();
        let result = stages.seizing((4, tid), remote, &Interrupt::new(), seize, |()| {
            released.send(()).expect("listening");
        });
        assert_eq!(result, Err(Stop::Abandoned));
        assert_eq!(is_released.try_recv(), Ok(()));
    }
}

//! The node as the kernel sees it: opens, ioctls, polls and the last close, each led to its
//! [`Context`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuse_channel::{Caller, Ioctl, IoctlReply, PollHandle, WayOut};
use ioasid_uapi::cmd;
use parking_lot::RwLock;
use rustix::io::Errno;

use crate::argument::{Access, CallerMemory, Stop};
use crate::commands::{Command, Host};
use crate::context::{Context, Failed};
use crate::failure::Failure;
use crate::leader::Leader;
use crate::stages::Stages;

/// All opens of the node.
#[derive(Debug)]
pub struct Node {
    host: Host,
    access: Access,
    stages: Stages,
    opens: RwLock<BTreeMap<u64, Arc<Context>>>,
    last_handle: AtomicU64,
}

impl Node {
    /// A node that nobody has opened yet.
    pub fn new(host: Host, access: Access) -> Self {
        Self {
            host,
            access,
            stages: Stages::default(),
            opens: RwLock::default(),
            last_handle: AtomicU64::new(0),
        }
    }

    fn context(&self, handle: u64) -> Option<Arc<Context>> {
        self.opens.read().get(&handle).cloned()
    }

    fn serve(
        &self,
        context: &Context,
        request: &Ioctl<'_>,
        memory: &mut CallerMemory<'_>,
        leader: &mut Leader<'_>,
    ) -> Result<i32, Stop> {
        if request.compat {
            return Err(Failure::unsupported(
                "32-bit programs are not served: build the program for 64 bits",
            )
            .into());
        }
        let (host, interrupt) = (&self.host, request.interrupt);
        Command { host, context, memory, leader, interrupt }.run(request.command, request.arg)
    }
}

impl cuse_channel::Node for Node {
    fn open(&self, _: Caller, _: u32) -> Result<u64, Errno> {
        let handle = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.opens.write().insert(handle, Arc::new(Context::new(self.host.limits)));
        Ok(handle)
    }

    fn release(&self, handle: u64) {
        let context = self.opens.write().remove(&handle);
        if let Some(context) = context {
            context.release();
        }
    }

    fn ioctl(&self, request: &Ioctl<'_>) -> IoctlReply {
        let Some(context) = self.context(request.fh) else {
            return refused(Errno::BADF, Vec::new());
        };
        let mut memory = CallerMemory::new(request, self.access, &self.stages);
        let mut leader = Leader::new(request, &self.stages, &self.host.scratches);
        let served = self.serve(&context, request, &mut memory, &mut leader);
        if let Err(Stop::Refuse(failure)) = &served
            && request.command != cmd::GET_ERROR
        {
            // Before the caller goes on, which may ask for it at once.
            let (thread, command, failure) = (request.caller.tid, request.command, failure.clone());
            context.failures.lock().record(Failed { thread, command, failure });
        }
        leader.conclude(match &served {
            Ok(result) => *result,
            Err(Stop::Refuse(failure)) => -failure.errno.raw_os_error(),
            Err(_) => -Errno::INTR.raw_os_error(),
        });
        match served {
            Ok(result) => IoctlReply::Done { result, output: memory.into_output() },
            Err(Stop::Retry) => {
                let (inputs, outputs) = memory.wanted();
                IoctlReply::Retry { inputs, outputs }
            }
            Err(Stop::Restart) => IoctlReply::Restart,
            Err(Stop::Abandoned) => IoctlReply::Elsewhere,
            Err(Stop::Refuse(failure)) => refused(failure.errno, memory.into_output()),
        }
    }

    fn interrupted(&self, unique: u64) -> Option<WayOut> {
        self.stages.interrupted(unique)
    }

    /// Nothing is ever to be read: no backend reports faults.
    fn poll(&self, _: u64, _: u32, _: Option<PollHandle>) -> u32 {
        0
    }

    /// Nothing is ever to be read, as for poll.
    fn read(
        &self,
        _: u64,
        _: usize,
        _: bool,
        _: &cuse_channel::Context<'_>,
    ) -> Result<Vec<u8>, Errno> {
        Err(Errno::OPNOTSUPP)
    }
}

fn refused(errno: Errno, output: Vec<u8>) -> IoctlReply {
    IoctlReply::Done { result: -errno.raw_os_error(), output }
}

//! The node as the kernel sees it: opens, ioctls, polls and the last close, each led to its
//! [`Context`].

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cuse_channel::{Ioctl, IoctlReply, Notifier, PollHandle, Read, ReadReply, WayOut};
use ioasid_uapi::{cmd, ext};
use parking_lot::RwLock;
use rustix::io::Errno;

use crate::argument::{Access, CallerMemory, Stop};
use crate::commands::{Command, Host};
use crate::context::{Context, Failed};
use crate::failure::Failure;
use crate::faults::queue::{Access as DmaAccess, Fault, Reason};
use crate::leader::Leader;
use crate::policy::Subject;
use crate::stages::Stages;

/// All opens of the node.
#[derive(Debug)]
pub struct Node {
    host: Host,
    access: Access,
    stages: Stages,
    notifier: Notifier,
    opens: RwLock<BTreeMap<u64, Arc<Context>>>,
    last_handle: AtomicU64,
}

impl Node {
    /// A node that nobody has opened yet. Who sleeps in poll is woken through `notifier`.
    pub fn new(host: Host, access: Access, notifier: Notifier) -> Self {
        Self {
            host,
            access,
            stages: Stages::default(),
            notifier,
            opens: RwLock::default(),
            last_handle: AtomicU64::new(0),
        }
    }

    fn context(&self, handle: u64) -> Option<Arc<Context>> {
        self.opens.read().get(&handle).cloned()
    }

    /// From now on somebody tells of the faults of real devices.
    pub fn tells_real_faults(&self) {
        self.host.tells_real_faults.store(true, Ordering::Relaxed);
    }

    /// A real device's DMA has failed, as the kernel's log tells of it: `device` is its PCI address.
    /// It is told to the open that has the device, if any has.
    pub fn report_unrecoverable(&self, device: &str, access: DmaAccess, reason: Reason) {
        // Of the few faults that the kernel lets through, and few opens, no index is worth keeping.
        for context in self.contexts() {
            let state = context.state();
            let mut devices = state.engine.devices();
            let found = devices.find(|bound| !bound.simulated && bound.name == device);
            if let Some(bound) = found {
                context.faults.report(Fault {
                    device: bound.id,
                    cookie: bound.cookie,
                    ioasid: bound.ioasid,
                    access,
                    reason,
                    best_effort: true,
                });
                return;
            }
        }
    }

    /// The kernel has kept that many messages about faults of real devices to itself. Nobody knows
    /// whose they were: all opens that have such devices may have missed as many faults.
    pub fn report_suppressed(&self, messages: u64) {
        let count = messages.try_into().unwrap_or(u32::MAX);
        for context in self.contexts() {
            let has_real = context.state().engine.devices().any(|device| !device.simulated);
            if has_real {
                context.faults.count_lost(count);
            }
        }
    }

    fn contexts(&self) -> Vec<Arc<Context>> {
        self.opens.read().values().cloned().collect()
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
        Command { host, context, memory, leader, interrupt, process: OnceCell::new() }
            .run(request.command, request.arg)
    }
}

impl cuse_channel::Node for Node {
    fn open(&self, _: u32, opening: &cuse_channel::Context<'_>) -> Result<u64, Errno> {
        let subject = Subject::of(opening.caller);
        let checked = self.host.policy.check_open(&subject);
        let opened = checked.and_then(|()| self.host.users.open(subject));
        let opener = opened.map_err(|failure| {
            // There is no descriptor yet to ask for the reason.
            log::debug!("open refused: {failure}");
            failure.errno
        })?;
        let handle = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        let context = Context::new(opener, self.host.limits, self.notifier.clone());
        self.opens.write().insert(handle, Arc::new(context));
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

    fn poll(&self, handle: u64, events: u32, wake: Option<PollHandle>) -> u32 {
        self.context(handle).map_or(0, |context| context.faults.poll(events, wake))
    }

    fn read(&self, request: &Read<'_>) -> ReadReply {
        if !self.host.has_extension(ext::FAULTS) {
            return ReadReply::Error(Errno::OPNOTSUPP);
        }
        match self.context(request.fh) {
            Some(context) => context.faults.read(request),
            None => ReadReply::Error(Errno::BADF),
        }
    }
}

fn refused(errno: Errno, output: Vec<u8>) -> IoctlReply {
    IoctlReply::Done { result: -errno.raw_os_error(), output }
}

#[cfg(test)]
mod refusal_tests;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use cuse_channel::{Interrupt, Node as _};
    use ioasid::{Bind, Cookie, Geometry, GroupId, Limits, PageSizes, Range};
    use ioasid_uapi as uapi;
    use zerocopy::FromBytes as _;

    use super::*;
    use crate::backend::simulated::Simulator;
    use crate::in_context::Scratches;
    use crate::policy::{Policy, PolicyConfig};
    use crate::process::Processes;
    use crate::users::{Quotas, Users};

    fn node() -> Node {
        let host = Host {
            limits: Limits { max_ioasids: 1, max_devices: 1, max_mappings: 1, max_registered: 1 },
            policy: Policy::new(&PolicyConfig::default()).expect("no rules are good rules"),
            users: Users::new(Quotas { opens: 8, registered: 0, registered_of_user: 0 }),
            simulator: Simulator::new(&[]).expect("no devices are good devices"),
            processes: Processes::default(),
            scratches: Scratches::new().expect("random numbers"),
            is_ending: Arc::default(),
            tells_real_faults: AtomicBool::new(true),
        };
        Node::new(host, Access::default(), Notifier::detached())
    }

    /// An open that has a device of this name.
    fn open_with(node: &Node, name: &str, simulated: bool) -> u64 {
        let interrupt = Interrupt::new();
        let opening = cuse_channel::Context::detached(&interrupt);
        let handle = node.open(0, &opening).expect("opens are not limited");
        let permitted = Range::new(0, u64::MAX).into_iter().collect();
        let geometry = Geometry { pgsizes: PageSizes(4096), permitted, max_mappings: 1 };
        let (group, name, cookie) = (GroupId(1), name.to_owned(), Cookie(handle));
        let context = node.context(handle).expect("it is open");
        let bind = Bind { group, geometry, simulated, name, cookie };
        context.state().engine.bind(bind).expect("a first device");
        handle
    }

    fn read(node: &Node, fh: u64) -> Result<uapi::Fault, Errno> {
        let interrupt = Interrupt::new();
        let mut request = Read::detached(4096, true, &interrupt);
        request.fh = fh;
        match node.read(&request) {
            ReadReply::Data(data) => Ok(uapi::Fault::read_from_bytes(&data).expect("one record")),
            ReadReply::Error(errno) => Err(errno),
            ReadReply::Elsewhere => unreachable!("it does not wait"),
        }
    }

    const WRITE: DmaAccess = DmaAccess { address: 0x5000, write: true, pasid: None };

    #[test]
    fn a_real_fault_is_told_to_the_open_that_has_the_device() {
        let node = node();
        let other = open_with(&node, "0000:00:04.0", false);
        let owner = open_with(&node, "0000:00:03.0", false);
        let namesake = open_with(&node, "0000:00:03.0", true);
        node.report_suppressed(7);
        node.report_unrecoverable("0000:00:03.0", WRITE, Reason::Unknown);
        node.report_unrecoverable("0000:00:05.0", WRITE, Reason::Unknown);
        let fault = read(&node, owner).expect("a record");
        assert_eq!(fault.flags, uapi::FAULT_WRITE | uapi::FAULT_BEST_EFFORT);
        assert_eq!((fault.address, fault.cookie, fault.lost), (0x5000, owner, 7));
        for open in [owner, other, namesake] {
            assert_eq!(read(&node, open), Err(Errno::AGAIN));
        }
    }

    #[test]
    fn where_nobody_tells_of_faults_there_is_nothing_to_wait_for() {
        let node = node();
        node.host.tells_real_faults.store(false, Ordering::Relaxed);
        let open = open_with(&node, "0000:00:03.0", false);
        assert_eq!(read(&node, open), Err(Errno::OPNOTSUPP));
    }
}

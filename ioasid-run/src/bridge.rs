//! What each intercepted command means on /dev/ioasid.
//!
//! | of the program                  | here                                                          |
//! |---------------------------------|---------------------------------------------------------------|
//! | VFIO_BIND_IOASID_FD             | BIND_DEVICE through its group; the device takes the place of its placeholder |
//! | VFIO_ATTACH_IOASID, _DETACH_    | ATTACH_DEVICE, DETACH_DEVICE                                  |
//! | VFIO_UNBIND_IOASID_FD           | the placeholder takes the place of the device; UNBIND_DEVICE  |
//! | VFIO_GROUP_SET_CONTAINER        | BIND_DEVICE of every device of the group                      |
//! | VFIO_GROUP_UNSET_CONTAINER      | UNBIND_DEVICE of them                                         |
//! | VFIO_GROUP_GET_DEVICE_FD        | the same, so that the device's open file can be marked        |
//!
//! What is not of /dev/ioasid is left to the kernel, and so is everything that the node does by itself.
//!
//! Nothing of the program is kept: not its descriptors of the node, which end a context when they are
//! closed, nor of its devices. A context is found again among the descriptors that the calling process
//! has, by the cookie that a device was bound with; a device by a mark that its open file carries. Only a
//! group that was opened here, since the program does not do that, is kept as long as the context is open.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use ioasid_uapi::{AttachDevice, DEVICE_ATTACHED, cmd};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, fcntl_getfl, open};
use rustix::io::Errno;
use zerocopy::IntoBytes as _;

use crate::child::Thread;
use crate::devices::{self, Device, Placeholders};
use crate::explain::Explain;
use crate::filter::{GROUP_GET_DEVICE_FD, GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER};
use crate::marks::Marks;
use crate::node::{Bound, Node, NodeFile};
use crate::notify::{Answer, Call};
use crate::sys;
use crate::watch::Watch;

/// Why a call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What it gives.
    pub(crate) errno: Errno,
    /// The reason, for `--explain`.
    pub(crate) sentence: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub(crate) fn new(errno: Errno, sentence: impl Into<String>) -> Self {
        Self { errno, sentence: sentence.into() }
    }
}

/// How a call was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// This is to be its answer.
    Answer(Answer),
    /// It was answered with a descriptor.
    Sent,
}

const DONE: Result<Done, Refusal> = Ok(Done::Answer(Answer::Value(0)));
const NATIVE: Result<Done, Refusal> = Ok(Done::Answer(Answer::Native));

/// A group of which devices are bound.
#[derive(Debug, Default)]
struct Group {
    /// All are bound to the same context.
    bound: Vec<Bound>,
    /// The group's open file, if the program has none.
    opened: Option<OwnedFd>,
    /// The context.
    context: Option<Watch>,
    /// The descriptor of the context that the program named last.
    node_at: RawFd,
}

impl Group {
    /// Forgets what went with the context.
    fn refresh(&mut self) {
        if self.context.as_ref().is_some_and(|context| !context.is_open()) {
            *self = Self::default();
        }
    }

    fn bind(&mut self, node: &Node, device: Bound) {
        if self.bound.is_empty() {
            // If it cannot be watched, the group stays open until it is unbound.
            self.context = Watch::new(node.file()).ok();
        }
        self.bound.push(device);
    }

    fn unbind(&mut self, cookie: u64) {
        self.bound.retain(|device| device.cookie != cookie);
        if self.bound.is_empty() {
            *self = Self::default();
        }
    }
}

/// Serves the intercepted calls of one program.
#[derive(Debug)]
pub(crate) struct Bridge {
    listener: OwnedFd,
    node: NodeFile,
    placeholders: Placeholders,
    groups: Mutex<HashMap<u32, Arc<Mutex<Group>>>>,
    marks: Marks,
    explain: Explain,
}

impl Bridge {
    /// One for the calls that come on `listener`.
    pub(crate) fn new(
        listener: OwnedFd,
        node: NodeFile,
        placeholders: Placeholders,
        explain: Explain,
    ) -> Self {
        let (groups, marks) = (Mutex::default(), Marks::default());
        Self { listener, node, placeholders, groups, marks, explain }
    }

    /// The listener.
    pub(crate) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    /// Serves one call, and answers it.
    pub(crate) fn serve(&self, call: Call) {
        let mut subject = String::new();
        let thread = Thread(call.tid);
        let outcome = Serving { bridge: self, call, thread, subject: &mut subject }.run();
        let answer = match &outcome {
            Ok(Done::Sent) => None,
            Ok(Done::Answer(answer)) => Some(*answer),
            Err(refusal) => Some(Answer::Fail(refusal.errno)),
        };
        if let Some(answer) = answer {
            // If it was killed, nobody waits for the answer.
            let _ = call.answer(&self.listener, answer);
        }
        self.explain.tell(&call, &subject, &outcome);
    }

    /// Lets go of groups that were opened here and whose context is gone. Gives whether any are left.
    pub(crate) fn release_groups(&self) -> bool {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        let held = groups.into_iter().filter(|group| {
            // One that is being worked on is looked at the next time.
            group.try_lock().is_none_or(|mut group| {
                group.refresh();
                group.opened.is_some()
            })
        });
        held.count() > 0
    }

    /// Looks for devices that have come and gone.
    pub(crate) fn refresh_devices(&self) {
        if let Err(errno) = self.placeholders.refresh() {
            self.explain.note(&format!("placeholders of new devices cannot be made: {errno}"));
        }
    }

    fn group(&self, number: u32) -> Arc<Mutex<Group>> {
        Arc::clone(self.groups.lock().entry(number).or_default())
    }
}

/// One call being served.
struct Serving<'a> {
    bridge: &'a Bridge,
    call: Call,
    thread: Thread,
    /// Which device or group it is about, for who reads the explanations.
    subject: &'a mut String,
}

impl Serving<'_> {
    fn run(&mut self) -> Result<Done, Refusal> {
        match self.call.command {
            cmd::VFIO_BIND_IOASID_FD => self.bind(),
            cmd::VFIO_UNBIND_IOASID_FD => self.unbind(),
            command @ (cmd::VFIO_ATTACH_IOASID | cmd::VFIO_DETACH_IOASID) => self.attach(command),
            GROUP_SET_CONTAINER => self.set_container(),
            GROUP_UNSET_CONTAINER => self.unset_container(),
            GROUP_GET_DEVICE_FD => self.get_device(),
            _ => NATIVE,
        }
    }

    /// Checks that what was read of the thread was the thread's.
    fn still_waits(&self) -> Result<(), Refusal> {
        match self.call.is_waiting(&self.bridge.listener) {
            true => Ok(()),
            false => Err(Refusal::new(Errno::INTR, "the program was killed, or got a signal")),
        }
    }

    /// A duplicate of a descriptor of the program.
    fn take(&self, fd: RawFd) -> Result<OwnedFd, Refusal> {
        let taken = self.thread.descriptor(fd)?;
        self.still_waits()?;
        // ioctl does not work on those.
        match fcntl_getfl(&taken) {
            Ok(flags) if !flags.contains(OFlags::PATH) => Ok(taken),
            _ => Err(Refusal::new(Errno::BADF, format!("descriptor {fd} was opened with O_PATH"))),
        }
    }

    /// The node behind a descriptor of the program, if it is one.
    fn node(&self, fd: RawFd) -> Result<Option<Node>, Refusal> {
        let taken = self.take(fd)?;
        let is_node = NodeFile::of(&taken) == Ok(self.bridge.node);
        Ok(is_node.then(|| Node::over(taken)))
    }

    fn must_be_node(&self, fd: RawFd) -> Result<Node, Refusal> {
        self.node(fd)?.ok_or_else(|| {
            let what = self.thread.link(fd);
            Refusal::new(Errno::INVAL, format!("descriptor {fd} is not of /dev/ioasid, but {what}"))
        })
    }

    /// The program's descriptor of the context that a device is bound to: most likely `at`.
    fn node_of(&self, device: &Bound, at: RawFd) -> Result<Node, Refusal> {
        // Others than those that look like the node are not even touched.
        let names_node = |fd: &RawFd| {
            let link = self.thread.link(*fd);
            link.ends_with("/ioasid") || link.ends_with("/vfio")
        };
        let others = self.thread.descriptors().into_iter().filter(|fd| *fd != at && names_node(fd));
        for fd in [at].into_iter().chain(others) {
            if let Ok(Some(node)) = self.node(fd)
                && node.device(device).is_some()
            {
                return Ok(node);
            }
        }
        self.still_waits()?;
        Err(Refusal::new(
            Errno::BADF,
            format!(
                "{} is bound to a descriptor of /dev/ioasid that this process does not have open any more",
                device.name
            ),
        ))
    }

    // ---- devices -------------------------------------------------------------------------------

    fn bind(&mut self) -> Result<Done, Refusal> {
        let node_at = self.call.arg as i32;
        let place = self.take(self.call.fd)?;
        let Some(name) = self.bridge.placeholders.name_of(&place) else {
            return match self.bridge.marks.find(&place) {
                Some(marked) => Err(Refusal::new(
                    Errno::BUSY,
                    format!("{} is bound already: VFIO_UNBIND_IOASID_FD first", marked.name),
                )),
                None => NATIVE,
            };
        };
        self.subject.clone_from(&name);
        let may_use =
            fcntl_getfl(&place).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::RDWR);
        if !may_use {
            return Err(Refusal::new(
                Errno::ACCESS,
                "the device was not opened for reading and writing (O_RDWR)",
            ));
        }
        let node = self.must_be_node(node_at)?;
        let Some(device) = devices::all().into_iter().find(|device| device.name == name) else {
            let why = format!("{name} is not bound to a vfio driver any more");
            return Err(Refusal::new(Errno::NODEV, why));
        };
        let group = self.bridge.group(device.group);
        let mut group = group.lock();
        group.refresh();
        let file = self.group_file(&mut group, device.group)?;
        let bound = match node.bind(&file, &name, self.bridge.marks.cookie(&name)) {
            Ok(bound) => bound,
            Err(refusal) => {
                group.unbind(0);
                return Err(refusal);
            }
        };
        group.node_at = node_at;
        let cookie = bound.cookie;
        let installed = self
            .open_device(&file, &device, &name, &bound)
            .and_then(|opened| self.replace(&place, &opened));
        group.bind(&node, bound.clone());
        if let Err(refusal) = installed {
            // It is nowhere open.
            let _ = node.unbind(&bound);
            group.unbind(cookie);
            return Err(refusal);
        }
        DONE
    }

    /// The group's open file, which there can be only one of: the program's, if it has opened it.
    /// Otherwise it is opened and kept.
    fn group_file(&self, group: &mut Group, number: u32) -> Result<OwnedFd, Refusal> {
        let duplicate = |file: &OwnedFd| {
            file.try_clone().map_err(|error| Refusal::new(Errno::NFILE, error.to_string()))
        };
        if let Some(file) = &group.opened {
            return duplicate(file);
        }
        let path = devices::node_of(number);
        match open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => return duplicate(group.opened.insert(file)),
            Err(Errno::BUSY) => {}
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(Refusal::new(
                    Errno::ACCESS,
                    format!("you may not open {path}; ioasidctl doctor tells how to permit it"),
                ));
            }
            Err(errno) => {
                return Err(Refusal::new(errno, format!("{path} cannot be opened: {errno}")));
            }
        }
        for fd in self.thread.descriptors() {
            if self.thread.link(fd) == path
                && let Ok(file) = self.take(fd)
                && devices::group_of(&file) == Some(number)
            {
                return Ok(file);
            }
        }
        self.still_waits()?;
        Err(Refusal::new(
            Errno::BUSY,
            format!("group {number} is open in another program, and can be open only once"),
        ))
    }

    /// Opens a bound device, so that it will be known again. `name` is as the kernel takes it.
    fn open_device(
        &self,
        group: &OwnedFd,
        device: &Device,
        name: &str,
        bound: &Bound,
    ) -> Result<OwnedFd, Refusal> {
        let name = CString::new(name).map_err(|_| Refusal::new(Errno::INVAL, "a bad name"))?;
        let opened = sys::open_device(group, &name).map_err(|errno| {
            Refusal::new(errno, format!("the kernel does not open {}: {errno}", device.name))
        })?;
        let marked = self.bridge.marks.put(&opened, device, bound.cookie);
        marked.map_err(|errno| {
            Refusal::new(errno, format!("the device cannot be marked: {errno}"))
        })?;
        Ok(opened)
    }

    /// Has `new` take the place of `old` wherever the process has that.
    ///
    /// Like dup2, this takes a number from whatever it stands for by then: a program that closes the
    /// descriptor of a call while another thread is in it may lose what it opens instead.
    fn replace(&self, old: &OwnedFd, new: &OwnedFd) -> Result<(), Refusal> {
        let places = self.thread.duplicates_of(old);
        self.still_waits()?;
        let closed = || {
            let fd = self.call.fd;
            Refusal::new(Errno::BADF, format!("descriptor {fd} was closed during the call"))
        };
        if !places.contains(&self.call.fd) {
            return Err(closed());
        }
        for place in places {
            let cloexec = self.thread.is_cloexec(place);
            if !self.thread.is_same_file(place, old) {
                if place == self.call.fd {
                    return Err(closed());
                }
                continue;
            }
            self.call.put(&self.bridge.listener, new, Some(place), cloexec).map_err(|errno| {
                Refusal::new(errno, format!("descriptor {place} cannot be replaced: {errno}"))
            })?;
        }
        Ok(())
    }

    /// The device that the call is made on, if it was bound here.
    fn marked(&mut self) -> Result<Option<(OwnedFd, Marked)>, Refusal> {
        let file = self.take(self.call.fd)?;
        if let Some(name) = self.bridge.placeholders.name_of(&file) {
            self.subject.clone_from(&name);
            return Err(Refusal::new(
                Errno::INVAL,
                format!("{name} is not bound to /dev/ioasid: VFIO_BIND_IOASID_FD first"),
            ));
        }
        let Some(marked) = self.bridge.marks.find(&file) else { return Ok(None) };
        self.subject.clone_from(&marked.name);
        Ok(Some((file, marked)))
    }

    fn attach(&mut self, command: u32) -> Result<Done, Refusal> {
        let Some((_, marked)) = self.marked()? else { return NATIVE };
        let (flags, ioasid, user_pasid) = self.attachment()?;
        let group = self.bridge.group(marked.group);
        let mut group = group.lock();
        group.refresh();
        let bound = marked.among(&group.bound)?;
        let node = self.node_of(bound, group.node_at)?;
        let command = match command {
            cmd::VFIO_ATTACH_IOASID => cmd::ATTACH_DEVICE,
            _ => cmd::DETACH_DEVICE,
        };
        let attach = AttachDevice {
            argsz: AttachDevice::ARGSZ,
            flags,
            device: bound.number,
            ioasid,
            user_pasid,
            reserved: 0,
        };
        node.attach(command, attach)?;
        DONE
    }

    /// Reads `struct vfio_attach_ioasid`, as the node reads its own structures: flags, IOASID and PASID.
    fn attachment(&self) -> Result<(u32, u32, u32), Refusal> {
        const KNOWN: usize = 16;
        const MOST: usize = 4096;
        let mut fields = [0u32; KNOWN / 4];
        let mut tail = [0u8; MOST];
        let unreadable = || Refusal::new(Errno::FAULT, "struct vfio_attach_ioasid cannot be read");
        let argsz = &mut fields[..1];
        if self.thread.read(self.call.arg, argsz.as_mut_bytes())? < 4 {
            return Err(unreadable());
        }
        self.still_waits()?;
        let argsz = fields[0] as usize;
        if argsz < KNOWN {
            return Err(Refusal::new(
                Errno::INVAL,
                format!("argsz is {argsz}, less than the {KNOWN} of struct vfio_attach_ioasid"),
            ));
        }
        if argsz > MOST {
            return Err(Refusal::new(Errno::TOOBIG, format!("argsz is {argsz}, over {MOST}")));
        }
        let tail = &mut tail[..argsz];
        if self.thread.read(self.call.arg, tail)? < argsz {
            return Err(unreadable());
        }
        self.still_waits()?;
        fields.as_mut_bytes().copy_from_slice(&tail[..KNOWN]);
        if tail[KNOWN..].iter().any(|byte| *byte != 0) {
            return Err(Refusal::new(
                Errno::TOOBIG,
                "what follows struct vfio_attach_ioasid is not known here, and not zero",
            ));
        }
        let [_, flags, ioasid, user_pasid] = fields;
        Ok((flags, ioasid, user_pasid))
    }

    fn unbind(&mut self) -> Result<Done, Refusal> {
        let Some((file, marked)) = self.marked()? else { return NATIVE };
        let node = self.must_be_node(self.call.arg as i32)?;
        let group = self.bridge.group(marked.group);
        let mut group = group.lock();
        group.refresh();
        let bound = marked.among(&group.bound)?.clone();
        let info = node.device(&bound).ok_or_else(|| {
            Refusal::new(
                Errno::INVAL,
                format!("{} is bound to another descriptor of /dev/ioasid", bound.name),
            )
        })?;
        if info.flags & DEVICE_ATTACHED != 0 {
            let why = format!(
                "{} is attached to IOASID {}: VFIO_DETACH_IOASID first",
                bound.name, info.ioasid
            );
            return Err(Refusal::new(Errno::BUSY, why));
        }
        let group_file = self.group_file(&mut group, marked.group)?;
        let placeholder = self.bridge.placeholders.open(&bound.name).map_err(|errno| {
            Refusal::new(errno, format!("the placeholder of {} is gone", bound.name))
        })?;
        self.replace(&file, &placeholder)?;
        // The last descriptor of the device, if the program has mapped none of its registers.
        drop(file);
        if let Err(refusal) = node.unbind(&bound) {
            let device = Device { name: bound.name.clone(), group: marked.group };
            let opened = self.open_device(&group_file, &device, &bound.name, &bound)?;
            self.replace(&placeholder, &opened)?;
            return Err(refusal);
        }
        group.unbind(bound.cookie);
        DONE
    }

    // ---- groups --------------------------------------------------------------------------------

    /// The group that the call is made on, if it is one.
    fn own_group(&mut self) -> Result<Option<(OwnedFd, u32)>, Refusal> {
        let file = self.take(self.call.fd)?;
        let Some(number) = devices::group_of(&file) else { return Ok(None) };
        *self.subject = format!("group {number}");
        Ok(Some((file, number)))
    }

    fn set_container(&mut self) -> Result<Done, Refusal> {
        let Some((file, number)) = self.own_group()? else { return NATIVE };
        let mut node_at: RawFd = 0;
        if self.thread.read(self.call.arg, node_at.as_mut_bytes())? < size_of::<RawFd>() {
            return Err(Refusal::new(Errno::FAULT, "the container's descriptor cannot be read"));
        }
        self.still_waits()?;
        let Some(node) = self.node(node_at)? else { return NATIVE };
        let group = self.bridge.group(number);
        let mut group = group.lock();
        group.refresh();
        let devices = devices::of_group(number);
        if devices.is_empty() {
            let why = format!("group {number} has no device that is bound to a vfio driver");
            return Err(Refusal::new(Errno::INVAL, why));
        }
        let mut bound = vec![];
        for device in devices {
            match node.bind(&file, &device.name, self.bridge.marks.cookie(&device.name)) {
                Ok(device) => bound.push(device),
                Err(refusal) => {
                    for device in bound {
                        let _ = node.unbind(&device);
                    }
                    return Err(as_vfio(refusal));
                }
            }
        }
        group.node_at = node_at;
        for device in bound {
            group.bind(&node, device);
        }
        DONE
    }

    fn unset_container(&mut self) -> Result<Done, Refusal> {
        let Some((file, number)) = self.own_group()? else { return NATIVE };
        let group = self.bridge.group(number);
        let mut group = group.lock();
        group.refresh();
        let Some(first) = group.bound.first() else { return NATIVE };
        let node = self.node_of(first, group.node_at)?;
        for device in group.bound.clone() {
            if let Err(refusal) = node.unbind(&device) {
                self.bind_again(&node, &file, &mut group, number);
                return Err(as_vfio(refusal));
            }
            group.unbind(device.cookie);
        }
        DONE
    }

    /// Binds those devices of a group that were unbound before one refused.
    fn bind_again(&self, node: &Node, file: &OwnedFd, group: &mut Group, number: u32) {
        for device in devices::of_group(number) {
            if group.bound.iter().all(|bound| bound.name != device.name)
                && let Ok(bound) =
                    node.bind(file, &device.name, self.bridge.marks.cookie(&device.name))
            {
                group.bind(node, bound);
            }
        }
    }

    fn get_device(&mut self) -> Result<Done, Refusal> {
        let Some((file, number)) = self.own_group()? else { return NATIVE };
        let group = self.bridge.group(number);
        let mut group = group.lock();
        group.refresh();
        if group.bound.is_empty() {
            return NATIVE;
        }
        let text = self.text()?;
        // Behind the name there may be more: vfio_pci_core_match.
        let name = text.split_whitespace().next().unwrap_or_default();
        let Some(bound) = group.bound.iter().find(|bound| bound.name == name) else {
            return NATIVE;
        };
        self.subject.clone_from(&bound.name);
        let device = Device { name: bound.name.clone(), group: number };
        let opened = self.open_device(&file, &device, &text, bound)?;
        // vfio_group_ioctl_get_device_fd opens with O_CLOEXEC too.
        self.call.put(&self.bridge.listener, &opened, None, true).map_err(|errno| {
            Refusal::new(errno, format!("the program cannot get the descriptor: {errno}"))
        })?;
        Ok(Done::Sent)
    }

    /// A string of the program.
    fn text(&self) -> Result<String, Refusal> {
        // strndup_user of the kernel takes as much.
        let mut bytes = [0; 4096];
        let read = self.thread.read(self.call.arg, &mut bytes)?;
        self.still_waits()?;
        let end = bytes[..read].iter().position(|byte| *byte == 0).ok_or_else(|| {
            let errno = if read < bytes.len() { Errno::FAULT } else { Errno::INVAL };
            Refusal::new(errno, "the device's name has no end")
        })?;
        String::from_utf8(bytes[..end].to_vec())
            .map_err(|_| Refusal::new(Errno::NODEV, "no device has a name like that"))
    }
}

/// A device that was opened here, by the mark of its open file.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    /// Its name.
    pub(crate) name: String,
    /// Its group.
    pub(crate) group: u32,
    /// What it was bound with when it was opened.
    pub(crate) cookie: u64,
}

impl Marked {
    /// The device among those that are bound.
    fn among<'b>(&self, bound: &'b [Bound]) -> Result<&'b Bound, Refusal> {
        bound.iter().find(|bound| bound.cookie == self.cookie).ok_or_else(|| {
            Refusal::new(
                Errno::INVAL,
                format!(
                    "{} is not bound any more: the descriptor of /dev/ioasid that it was bound to was \
                     closed, or it was unbound",
                    self.name
                ),
            )
        })
    }
}

/// What VFIO_GROUP_SET_CONTAINER and _UNSET_CONTAINER give where BIND_DEVICE has another errno
/// (drivers/vfio/group.c, container.c).
fn as_vfio(refusal: Refusal) -> Refusal {
    let errno = match refusal.errno {
        // A device that is bound is one whose group has a container: vfio_group_ioctl_set_container.
        Errno::BUSY if !refusal.sentence.contains("still open") => Errno::INVAL,
        Errno::NOENT => Errno::INVAL,
        other => other,
    };
    Refusal { errno, ..refusal }
}

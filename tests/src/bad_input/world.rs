//! The scene in which the rows are called: three opens of the node, with something in them.

use super::{Input, Place};
use crate::raw::{
    ARGUMENT, Arena, Argument, KERNEL, NEVER_MAPPED, NON_CANONICAL, OUTPUT, PAGE, READ_ONLY,
    SHARED, errno_name,
};
use anyhow::{Context as _, Result, anyhow, bail};
use ioasid_uapi::{self as uapi, cmd, ext};
use rustix::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The opens of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Has a device, an IOASID that it is attached to, mappings, and an IOASID never attached to.
    Ours,
    /// Has IOASIDs with numbers that [`Open::Ours`] does not have, and no device.
    Theirs,
    /// Has nothing, and nothing has failed on it yet.
    Fresh,
}

/// A device to run the rows with.
#[derive(Clone, Debug)]
pub enum DeviceName {
    /// A simulated device's name.
    Simulated(String),
    /// A device on VFIO: its address and its group's number.
    Vfio(String, String),
}

/// What IOASID_GET_ERROR tells.
#[derive(Clone, Debug)]
pub struct LastError {
    /// The ioctl that failed.
    pub command: u32,
    /// Its errno.
    pub errno: Errno,
    /// The explanation.
    pub text: String,
}

/// Mapped in our IOASID: 8 pages, all of them untouched by the rows.
pub const MAPPED: u64 = 0x100_0000;
/// How much is mapped there.
pub const MAPPED_SIZE: u64 = 8 * PAGE;
/// Mapped too: 4 pages, which the rows of UNMAP_DMA unmap.
pub const SECOND: u64 = 0x300_0000;
/// How much is mapped there.
pub const SECOND_SIZE: u64 = 4 * PAGE;
/// Not mapped.
pub const FREE_IOVA: u64 = 0x500_0000;
/// The size of the files of [`Files`].
pub const FILE_SIZE: u64 = 2 * PAGE;
/// A number that no IOASID or device has.
pub const UNKNOWN_ID: u32 = 0x7abc_def0;
/// The cookie of our device.
pub const COOKIE: u64 = 0xc00c_1e00_1234_5678;

/// The scene.
pub struct World {
    arena: RefCell<Arena>,
    ours: OwnedFd,
    theirs: OwnedFd,
    fresh: OwnedFd,
    node: std::path::PathBuf,
    extensions: Vec<bool>,
    /// Whether the kernel copies the arguments, and so finds bad pointers itself.
    pub kernel_copies: bool,
    /// What devices there are.
    pub devices: Vec<DeviceName>,
    /// The VFIO groups of the devices, in their order.
    pub groups: Vec<OwnedFd>,
    /// Our device, attached to `space`.
    pub device: u32,
    /// Our IOASID with mappings.
    pub space: u32,
    /// Our IOASID to which nothing was ever attached.
    pub empty: u32,
    /// Nested on `space`, empty, and without a device now; 0 if the host cannot do that.
    pub child: u32,
    /// An IOASID of [`Open::Theirs`] whose number we do not have.
    pub foreign: u32,
    /// The device that a row has bound, if it has.
    pub bound: Cell<u32>,
    /// The fault at which a row has left our device waiting.
    pub waiting: Cell<u32>,
    /// What our device can be mapped at.
    pub ranges: Vec<uapi::IovaRange>,
    /// A file, a pipe, /dev/null, the node itself: descriptors that are no VFIO group.
    pub no_groups: Vec<(&'static str, OwnedFd)>,
    /// Descriptors of files that have memory.
    pub files: Files,
    /// Descriptors behind which there is no memory.
    pub no_files: Vec<(&'static str, OwnedFd)>,
}

/// A memfd with [`FILE_SIZE`] bytes, by descriptors with different rights.
pub struct Files {
    /// Open for both.
    pub both: OwnedFd,
    /// Open for reading.
    pub read: OwnedFd,
    /// Open for writing.
    pub write: OwnedFd,
    /// Another memfd, open for both and sealed against writing.
    pub sealed: OwnedFd,
}

impl World {
    /// Sets the scene with the first of `devices`; a second one is bound and unbound by rows.
    ///
    /// # Errors
    /// Whatever in it does not succeed: the rows then say nothing.
    pub fn new(node: &Path, devices: Vec<DeviceName>, kernel_copies: bool) -> Result<Self> {
        let open = || -> Result<OwnedFd> {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::open(node, flags, Mode::empty())
                .with_context(|| format!("cannot open {}", node.display()))
        };
        let groups = open_groups(&devices)?;
        let mut world = Self {
            arena: RefCell::new(Arena::new()?),
            ours: open()?,
            theirs: open()?,
            fresh: open()?,
            node: node.to_owned(),
            extensions: Vec::new(),
            kernel_copies,
            no_groups: no_groups(node, &devices)?,
            files: files()?,
            no_files: no_files(node)?,
            groups,
            devices,
            device: 0,
            space: 0,
            empty: 0,
            child: 0,
            foreign: 0,
            bound: Cell::new(0),
            waiting: Cell::new(0),
            ranges: Vec::new(),
        };
        world.extensions =
            (0..16).map(|n| world.value(Open::Ours, cmd::CHECK_EXTENSION, n) == Ok(1)).collect();
        world.furnish().context("the scene for the rows cannot be set")?;
        Ok(world)
    }

    fn furnish(&mut self) -> Result<()> {
        for _ in 0..8 {
            self.foreign = self.must_value(Open::Theirs, cmd::ALLOC, 0)? as u32;
        }
        self.device = self.bind(Open::Ours, 0)?;
        self.space = self.must_value(Open::Ours, cmd::ALLOC, 0)? as u32;
        self.empty = self.must_value(Open::Ours, cmd::ALLOC, 0)? as u32;
        if self.foreign <= self.empty {
            bail!("IOASID {} of another open is one of ours too", self.foreign);
        }
        self.attach();
        if self.has(ext::NESTING) {
            self.child =
                self.must_value(Open::Ours, cmd::CREATE_NESTING, self.space.into())? as u32;
            // So that it takes commands from now on.
            let attachment = uapi::AttachDevice { ioasid: self.child, ..self.attachment() };
            self.must(cmd::ATTACH_DEVICE, attachment);
            self.must(cmd::DETACH_DEVICE, attachment);
        }
        self.ranges = self.permitted_ranges()?;
        self.map(MAPPED, self.shared(), MAPPED_SIZE);
        self.map(SECOND, self.shared() + MAPPED_SIZE, SECOND_SIZE);
        Ok(())
    }

    /// Whether the node says that it has this extension.
    pub fn has(&self, extension: u64) -> bool {
        self.extensions.get(extension as usize).copied().unwrap_or(false)
    }

    /// Whether our device is simulated.
    pub fn is_simulated(&self) -> bool {
        matches!(self.devices[0], DeviceName::Simulated(_))
    }

    /// A descriptor of the node in the numbers of this process.
    pub fn fd(&self, open: Open) -> BorrowedFd<'_> {
        match open {
            Open::Ours => self.ours.as_fd(),
            Open::Theirs => self.theirs.as_fd(),
            Open::Fresh => self.fresh.as_fd(),
        }
    }

    /// Opens the node once more.
    ///
    /// # Errors
    /// If that does not succeed.
    pub fn open_again(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.node, flags, Mode::empty())?)
    }

    /// Where the program's shared memory begins.
    pub fn shared(&self) -> u64 {
        self.start(SHARED)
    }

    /// Where a piece of the arena begins.
    pub fn start(&self, piece: crate::raw::Piece) -> u64 {
        self.arena.borrow().start(piece)
    }

    /// The first address behind a piece of the arena.
    pub fn end(&self, piece: crate::raw::Piece) -> u64 {
        self.arena.borrow().end(piece)
    }

    /// Bytes of the arena.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        self.arena.borrow().read(address, len)
    }

    /// Writes to the arena.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.arena.borrow_mut().write(address, bytes);
    }

    // -----------------------------------------------------------------------------------------
    // Calls
    // -----------------------------------------------------------------------------------------

    /// Puts a row's input where it says, and gives the argument.
    pub fn place(&self, input: &Input) -> Argument {
        let (bytes, place) = match input {
            Input::Value(value) => return Argument::Value(*value),
            Input::Structure(bytes, place) => (bytes, *place),
        };
        let mut arena = self.arena.borrow_mut();
        let (address, written) = match place {
            Place::Ordinary => (arena.start(ARGUMENT), bytes.len()),
            Place::Odd => (arena.start(ARGUMENT) + 1, bytes.len()),
            Place::ReadOnly => (arena.start(READ_ONLY), bytes.len()),
            Place::AtTheEnd => (arena.end(ARGUMENT) - bytes.len() as u64, bytes.len()),
            Place::CutAfter(count) => (arena.end(ARGUMENT) - count, count as usize),
            Place::Nowhere(address) => (address, 0),
        };
        if written > 0 {
            arena.write(address, &bytes[..written]);
        }
        Argument::Address(address)
    }

    /// Calls the node.
    pub fn call(&self, open: Open, command: u32, argument: Argument) -> Result<i32, Errno> {
        self.arena.borrow_mut().call(self.fd(open), command, argument)
    }

    /// Calls the node through a descriptor of its own.
    pub fn call_fd(&self, fd: &OwnedFd, command: u32, argument: Argument) -> Result<i32, Errno> {
        self.arena.borrow_mut().call(fd.as_fd(), command, argument)
    }

    /// Calls a command that takes a number.
    pub fn value(&self, open: Open, command: u32, value: u64) -> Result<i32, Errno> {
        self.call(open, command, Argument::Value(value))
    }

    /// Calls a command that takes a structure, which is then as the call left it.
    pub fn exchange<T>(&self, open: Open, command: u32, structure: &mut T) -> Result<i32, Errno>
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout,
    {
        // Not where the rows put theirs, so that these can be looked at afterwards.
        let address = self.end(ARGUMENT) - 2 * PAGE;
        self.write(address, structure.as_bytes());
        let result = self.call(open, command, Argument::Address(address));
        let bytes = self.bytes(address, size_of::<T>());
        *structure = T::read_from_bytes(&bytes).expect("as many bytes as the structure has");
        result
    }

    fn must_value(&self, open: Open, command: u32, value: u64) -> Result<i32> {
        self.value(open, command, value).map_err(|errno| self.failure(open, command, errno))
    }

    /// What is said when a call that the scene needs does not succeed.
    fn failure(&self, open: Open, command: u32, errno: Errno) -> anyhow::Error {
        let text = self.last_error(open).map_or(String::new(), |error| error.text);
        let name = cmd::name(command).unwrap_or("an unknown command");
        anyhow!("{name} gives {}. {text}", errno_name(errno))
    }

    fn must<T>(&self, command: u32, mut structure: T) -> T
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout,
    {
        if let Err(errno) = self.exchange(Open::Ours, command, &mut structure) {
            panic!("between two rows, {}", self.failure(Open::Ours, command, errno));
        }
        structure
    }

    // -----------------------------------------------------------------------------------------
    // What rows do and undo
    // -----------------------------------------------------------------------------------------

    /// How device number `which` is bound.
    pub fn bind_request(&self, which: usize) -> uapi::BindDevice {
        let (flags, fd, name) = match &self.devices[which] {
            DeviceName::Simulated(name) => (uapi::BIND_SIMULATED, -1, name),
            DeviceName::Vfio(address, _) => {
                (uapi::BIND_VFIO_GROUP, self.groups[which].as_raw_fd(), address)
            }
        };
        let argsz = uapi::BindDevice::ARGSZ;
        uapi::BindDevice {
            argsz,
            flags,
            fd,
            device: 0,
            cookie: COOKIE,
            name: name_field(name),
            ..uapi::BindDevice::default()
        }
    }

    fn bind(&self, open: Open, which: usize) -> Result<u32> {
        let mut bind = self.bind_request(which);
        self.exchange(open, cmd::BIND_DEVICE, &mut bind)
            .map_err(|errno| self.failure(open, cmd::BIND_DEVICE, errno))?;
        Ok(bind.device)
    }

    /// Our device to our IOASID.
    pub fn attachment(&self) -> uapi::AttachDevice {
        uapi::AttachDevice {
            argsz: uapi::AttachDevice::ARGSZ,
            device: self.device,
            ioasid: self.space,
            ..Default::default()
        }
    }

    /// Attaches our device to our IOASID.
    pub fn attach(&self) {
        self.must(cmd::ATTACH_DEVICE, self.attachment());
    }

    /// Detaches it.
    pub fn detach(&self) {
        self.must(cmd::DETACH_DEVICE, self.attachment());
    }

    /// Unbinds the device whose number a row has left in its structure.
    pub fn unbind_spare(&self) {
        let request = Argument::Value(self.bound.replace(0).into());
        if let Err(errno) = self.call(Open::Ours, cmd::UNBIND_DEVICE, request) {
            panic!("between two rows, {}", self.failure(Open::Ours, cmd::UNBIND_DEVICE, errno));
        }
    }

    /// Binds the second device.
    pub fn bind_spare(&self) {
        self.bound.set(self.bind(Open::Ours, 1).expect("the second device can be bound"));
    }

    /// Has the access fail at which our device waits.
    pub fn fail_fault(&self) {
        let (argsz, id) = (uapi::CompleteFault::ARGSZ, self.waiting.replace(0));
        let response = uapi::RESPONSE_FAIL;
        self.must(cmd::COMPLETE_FAULT, uapi::CompleteFault { argsz, flags: 0, id, response });
    }

    /// Takes our eventfd for faults away, if there is one.
    pub fn no_fault_eventfd(&self) {
        if let Err(errno) = self.value(Open::Ours, cmd::SET_FAULT_EVENTFD, u64::MAX) {
            panic!("between two rows, {}", self.failure(Open::Ours, cmd::SET_FAULT_EVENTFD, errno));
        }
    }

    /// A good BIND_PGTABLE to our child; what is mapped is taken for a table.
    pub fn bind_pgtable_request(&self) -> uapi::BindPgtable {
        uapi::BindPgtable {
            argsz: uapi::BindPgtable::ARGSZ,
            ioasid: self.child,
            format: uapi::FORMAT_X86_4LEVEL,
            addr: MAPPED,
            addr_width: 48,
            ..Default::default()
        }
    }

    /// A good UNBIND_PGTABLE.
    pub fn unbind_pgtable_request(&self) -> uapi::BindPgtable {
        let argsz = uapi::BindPgtable::ARGSZ;
        uapi::BindPgtable { argsz, ioasid: self.child, ..Default::default() }
    }

    /// Binds a page table to our child.
    pub fn bind_pgtable(&self) {
        self.must(cmd::BIND_PGTABLE, self.bind_pgtable_request());
    }

    /// Unbinds it.
    pub fn unbind_pgtable(&self) {
        self.must(cmd::UNBIND_PGTABLE, self.unbind_pgtable_request());
    }

    /// A good MAP_DMA in our child, to an address at which the parent maps nothing.
    pub fn map_child_request(&self) -> uapi::MapDma {
        uapi::MapDma { ioasid: self.child, ..self.map_request(FREE_IOVA, self.shared(), PAGE) }
    }

    /// Maps in our child.
    pub fn map_child(&self) {
        self.must(cmd::MAP_DMA, self.map_child_request());
    }

    /// Unmaps there.
    pub fn unmap_child(&self) {
        let unmap = self.unmap_request(FREE_IOVA, PAGE);
        self.must(cmd::UNMAP_DMA, uapi::UnmapDma { ioasid: self.child, ..unmap });
    }

    /// A good MAP_DMA in our IOASID.
    pub fn map_request(&self, iova: u64, vaddr: u64, size: u64) -> uapi::MapDma {
        uapi::MapDma {
            argsz: uapi::MapDma::ARGSZ,
            flags: uapi::MAP_READ | uapi::MAP_WRITE,
            ioasid: self.space,
            fd: 0,
            vaddr,
            iova,
            size,
        }
    }

    /// Maps in our IOASID.
    pub fn map(&self, iova: u64, vaddr: u64, size: u64) {
        self.must(cmd::MAP_DMA, self.map_request(iova, vaddr, size));
    }

    /// Registers memory of this program, or undoes that.
    pub fn register(&self, vaddr: u64, size: u64, undo: bool) {
        let argsz = uapi::RegisterMemory::ARGSZ;
        let command = if undo { cmd::UNREGISTER_MEMORY } else { cmd::REGISTER_MEMORY };
        self.must(command, uapi::RegisterMemory { argsz, flags: 0, vaddr, size });
    }

    /// A good UNMAP_DMA in our IOASID.
    pub fn unmap_request(&self, iova: u64, size: u64) -> uapi::UnmapDma {
        let argsz = uapi::UnmapDma::ARGSZ;
        uapi::UnmapDma { argsz, ioasid: self.space, iova, size, ..uapi::UnmapDma::default() }
    }

    /// Unmaps in our IOASID.
    pub fn unmap(&self, iova: u64, size: u64) {
        self.must(cmd::UNMAP_DMA, self.unmap_request(iova, size));
    }

    /// Has something fail, so that there is an explanation.
    pub fn fail_free(&self, open: Open) {
        let result = self.value(open, cmd::FREE, UNKNOWN_ID.into());
        assert_eq!(result, Err(Errno::NOENT), "FREE of an unknown IOASID");
    }

    /// Makes an IOASID and frees it.
    ///
    /// # Errors
    /// That of either.
    pub fn alloc_and_free(&self, open: Open) -> Result<(), Errno> {
        let ioasid = self.value(open, cmd::ALLOC, 0)?;
        self.value(open, cmd::FREE, ioasid as u64).map(drop)
    }

    fn permitted_ranges(&self) -> Result<Vec<uapi::IovaRange>> {
        let mut info = uapi::Info { argsz: uapi::Info::ARGSZ, ioasid: self.space, ..empty_info() };
        info.ranges = self.start(OUTPUT);
        info.nr_ranges = (OUTPUT.size() / size_of::<uapi::IovaRange>() as u64) as u32;
        self.exchange(Open::Ours, cmd::GET_INFO, &mut info)
            .map_err(|errno| self.failure(Open::Ours, cmd::GET_INFO, errno))?;
        let size = size_of::<uapi::IovaRange>();
        let bytes = self.bytes(info.ranges, info.nr_ranges as usize * size);
        let read = |piece| uapi::IovaRange::read_from_bytes(piece).expect("the size of a range");
        Ok(bytes.chunks_exact(size).map(read).collect())
    }

    // -----------------------------------------------------------------------------------------
    // What there is
    // -----------------------------------------------------------------------------------------

    /// Everything that can be asked about the opens, one line for each question.
    ///
    /// What this process has locked is part of it (`locked_used`): of what is registered it is the
    /// only sign. It is the same for all opens, and would change by itself only if an open
    /// with mappings had just been closed, which takes a moment, or if other threads used the
    /// node; neither happens here.
    pub fn snapshot(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for open in [Open::Ours, Open::Theirs] {
            for ioasid in [self.space, self.empty, self.child, self.foreign] {
                let mut info = uapi::Info { argsz: uapi::Info::ARGSZ, ioasid, ..empty_info() };
                let result = self.exchange(open, cmd::GET_INFO, &mut info);
                lines.push(match result {
                    Ok(_) => format!("{open:?}: {info:?}"),
                    Err(errno) => format!("{open:?}: IOASID {ioasid}: {}", errno_name(errno)),
                });
            }
            for device in 1..=4 {
                let argsz = uapi::DeviceInfo::ARGSZ;
                let mut info = uapi::DeviceInfo { argsz, device, ..Default::default() };
                let result = self.exchange(open, cmd::GET_DEVICE_INFO, &mut info);
                lines.push(match result {
                    Ok(_) => format!("{open:?}: {info:?}"),
                    Err(errno) => format!("{open:?}: device {device}: {}", errno_name(errno)),
                });
            }
        }
        lines
    }

    /// The explanation of the last failure of this thread on that open, if there was any.
    pub fn last_error(&self, open: Open) -> Option<LastError> {
        self.last_error_with(open, 0)
    }

    /// The same, with flags.
    pub fn last_error_with(&self, open: Open, flags: u32) -> Option<LastError> {
        let mut error = uapi::ErrorInfo {
            argsz: uapi::ErrorInfo::ARGSZ,
            flags,
            text: self.start(OUTPUT),
            text_len: OUTPUT.size() as u32,
            ..Default::default()
        };
        self.exchange(open, cmd::GET_ERROR, &mut error).ok()?;
        let text = self.bytes(error.text, error.text_len as usize);
        let text = match text.split_last() {
            Some((0, text)) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        };
        let errno = Errno::from_raw_os_error(error.error as i32);
        Some(LastError { command: error.command, errno, text })
    }
}

/// What is wrong with an explanation as a sentence, if anything.
pub fn flaw_of_a_sentence(text: &str) -> Option<String> {
    let flaw = if text.trim().is_empty() {
        "is empty"
    } else if text.contains(char::REPLACEMENT_CHARACTER) {
        "is not UTF-8"
    } else if text.chars().any(char::is_control) {
        "has control characters"
    } else if text.len() > 1000 {
        "is longer than 1000 bytes"
    } else {
        return None;
    };
    Some(format!("the explanation {flaw}: {text:?}"))
}

/// A device name in its field.
pub fn name_field(name: &str) -> [u8; uapi::NAME_LEN] {
    let mut field = [0; uapi::NAME_LEN];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}

fn empty_info() -> uapi::Info {
    uapi::Info::default()
}

/// Addresses where no structure can be, and what each is.
pub fn nowhere(world: &World) -> Vec<(&'static str, u64)> {
    vec![
        ("a null pointer", 0),
        ("a pointer to the first page", NEVER_MAPPED),
        ("a pointer to memory without access", world.end(ARGUMENT)),
        ("a pointer into the kernel", KERNEL),
        ("a pointer that is no address", NON_CANONICAL),
        ("a pointer to the last byte there could be", u64::MAX),
    ]
}

fn open_groups(devices: &[DeviceName]) -> Result<Vec<OwnedFd>> {
    let mut groups: Vec<OwnedFd> = Vec::new();
    for device in devices {
        if let DeviceName::Vfio(_, group) = device {
            let path = format!("/dev/vfio/{group}");
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            groups.push(
                rustix::fs::open(&path, flags, Mode::empty())
                    .with_context(|| format!("cannot open {path}"))?,
            );
        }
    }
    Ok(groups)
}

fn files() -> Result<Files> {
    let memfd = |flags| -> Result<OwnedFd> {
        let file = rustix::fs::memfd_create("file-memory", flags | MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, FILE_SIZE)?;
        Ok(file)
    };
    let both = memfd(MemfdFlags::empty())?;
    let again = |flags| {
        let path = format!("/proc/self/fd/{}", both.as_raw_fd());
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
    };
    let (read, write) = (again(OFlags::RDONLY)?, again(OFlags::WRONLY)?);
    let sealed = memfd(MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE)?;
    Ok(Files { both, read, write, sealed })
}

fn no_files(node: &Path) -> Result<Vec<(&'static str, OwnedFd)>> {
    let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (socket, _) = std::os::unix::net::UnixStream::pair()?;
    let memfd = rustix::fs::memfd_create("named-only", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memfd, FILE_SIZE)?;
    let named = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    Ok(vec![
        ("/dev/null", open(Path::new("/dev/null"), OFlags::RDWR)?),
        ("/dev/zero", open(Path::new("/dev/zero"), OFlags::RDWR)?),
        ("the reading end of a pipe", reader),
        ("the writing end of a pipe", writer),
        ("a socket", socket.into()),
        ("an eventfd", rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?),
        ("a directory", open(Path::new("/"), OFlags::DIRECTORY)?),
        ("a directory's path (O_PATH)", open(Path::new("/"), OFlags::PATH)?),
        ("a memfd that was only named (O_PATH)", open(Path::new(&named), OFlags::PATH)?),
        ("a file of procfs", open(Path::new("/proc/self/maps"), OFlags::RDONLY)?),
        ("the node itself", open(node, OFlags::RDWR)?),
    ])
}

fn no_groups(node: &Path, devices: &[DeviceName]) -> Result<Vec<(&'static str, OwnedFd)>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut found = vec![
        ("/dev/null", open(Path::new("/dev/null"))?),
        ("the reading end of a pipe", reader),
        ("the writing end of a pipe", writer),
        ("the node itself", open(node)?),
        ("a memfd", rustix::fs::memfd_create("no-group", rustix::fs::MemfdFlags::CLOEXEC)?),
        (
            "a path without a file (O_PATH)",
            rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
        ),
        ("a directory", rustix::fs::open("/", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?),
    ];
    if let Ok(container) = open(Path::new("/dev/vfio/vfio")) {
        found.push(("a VFIO container", container));
    }
    if let Some(DeviceName::Vfio(_, group)) = devices.first() {
        // It names a group, but was opened without any right to it.
        let path = format!("/dev/vfio/{group}");
        let named = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        found.push(("a group that was only named (O_PATH)", named));
    }
    Ok(found)
}

//! A handle of `/dev/ioasid`: every command as a function, every refusal with its explanation.
//!
//! Owns which descriptor is meant and what to say when it is the wrong one. Numbers that could be
//! swapped have types of their own.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use ioasid_client::call::{self, Argument, LastError};
use ioasid_client::errno::{self, why_not_opened};
use ioasid_uapi::{
    ATTACH_USER_PASID, AttachDevice, BIND_SHARE, BIND_SIMULATED, BIND_VFIO_GROUP, BindDevice,
    BindPasidTable, BindPgtable, CompleteFault, DIRTY_PAGES_MAX, DIRTY_READ, DIRTY_START,
    DIRTY_STOP, DeviceInfo, Dirty, ERROR_ANY_THREAD, Fault, INVALIDATE_ALL, Info, InvalidateCache,
    IovaRange, LIST_MAX, List, MAP_FILE, MapDma, Mapping, NAME_LEN, Op, RegisterMemory,
    SIM_DMA_CONTINUE, SIM_DMA_PASID, SIM_DMA_RECOVERABLE, SimDma, UNMAP_ALL, UNMAP_DIRTY, UnmapDma,
    Vector, cmd,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::process::Of;
use crate::progress::Work;
use crate::report::{Failure, Refusal};
use crate::sys::{self, ListedDevice, ListedIoasid, RawArgument};

/// The number of an I/O address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ioasid(pub(crate) u32);

/// The number of a bound device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceId(pub(crate) u32);

/// Where memory is that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At an address of this process.
    Address(u64),
    /// In the file of a descriptor of this process.
    File {
        /// The descriptor.
        fd: RawFd,
        /// Where in the file it begins.
        offset: u64,
    },
}

/// A part of an I/O address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// Where it begins.
    pub(crate) iova: u64,
    /// Its length in bytes.
    pub(crate) size: u64,
}

/// Which pages of a range were written: a bit for each.
#[derive(Debug)]
pub(crate) struct Bitmap {
    iova: u64,
    page: u64,
    words: Vec<u64>,
}

impl Bitmap {
    /// Room for the pages of a range, or for as many as can be asked for at a time: the node refuses
    /// to tell of more.
    fn new(range: Range, page: u64) -> Bitmap {
        let pages = range.size.div_ceil(page).min(DIRTY_PAGES_MAX);
        Bitmap { iova: range.iova, page, words: vec![0; pages.div_ceil(64) as usize] }
    }

    /// The longest ranges that were written, in order.
    pub(crate) fn ranges(&self) -> Vec<IovaRange> {
        let mut ranges: Vec<IovaRange> = Vec::new();
        for (index, word) in self.words.iter().enumerate() {
            let mut bits = u64::from_le(*word);
            while bits != 0 {
                let n = index as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                let start = self.iova + n * self.page;
                let last = start + (self.page - 1);
                match ranges.last_mut() {
                    Some(before) if before.last + 1 == start => before.last = last,
                    _ => ranges.push(IovaRange { start, last }),
                }
            }
        }
        ranges
    }
}

/// How a simulated device does DMA.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// The PASID that it is tagged with.
    pub(crate) pasid: Option<u32>,
    /// A fault does not fail it: the device waits.
    pub(crate) recoverable: bool,
    /// The fault after which it goes on.
    pub(crate) after: Option<u32>,
}

/// How far DMA came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Bytes that were transferred.
    pub(crate) done: u64,
    /// The fault with which the device waits, 0 for none.
    pub(crate) fault: u32,
}

enum Descriptor {
    Inherited(RawFd, BorrowedFd<'static>),
    Opened(PathBuf, OwnedFd),
    Duplicate(Of, OwnedFd),
}

/// One open of the node: a context.
pub(crate) struct Node(Descriptor);

type Result<T> = std::result::Result<T, Failure>;

impl Node {
    /// The context of an inherited descriptor.
    ///
    /// Errors: [`Failure::Host`] when it is not open.
    pub(crate) fn inherited(fd: RawFd) -> Result<Node> {
        match sys::inherited(fd) {
            Ok(borrowed) => Ok(Node(Descriptor::Inherited(fd, borrowed))),
            Err(_) => Err(Failure::Host(format!(
                "descriptor {fd} is not open; start with: exec {fd}<>/dev/ioasid"
            ))),
        }
    }

    /// A context of our own, which ends with this process.
    ///
    /// Errors: [`Failure::Host`] when the node cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Node> {
        match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Node(Descriptor::Opened(path.into(), fd))),
            Err(errno) => {
                Err(Failure::Host(format!("{}: {}", path.display(), why_not_opened(errno))))
            }
        }
    }

    /// The context of another process's descriptor.
    ///
    /// Errors: those of [`Of::duplicate`].
    pub(crate) fn of(descriptor: Of) -> Result<Node> {
        Ok(Node(Descriptor::Duplicate(descriptor, descriptor.duplicate()?)))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Descriptor::Inherited(_, fd) => *fd,
            Descriptor::Opened(_, fd) | Descriptor::Duplicate(_, fd) => fd.as_fd(),
        }
    }

    /// How messages call it.
    fn title(&self) -> String {
        match &self.0 {
            Descriptor::Inherited(fd, _) => format!("descriptor {fd}"),
            Descriptor::Opened(path, _) => path.display().to_string(),
            Descriptor::Duplicate(of, _) => of.to_string(),
        }
    }

    /// What the descriptor is open on, as the kernel names it.
    fn target(&self) -> String {
        use std::os::fd::AsRawFd;
        let link = format!("/proc/self/fd/{}", self.fd().as_raw_fd());
        std::fs::read_link(link).map_or("something else".into(), |path| path.display().to_string())
    }

    /// Turns a result of a command into one that explains itself.
    ///
    /// Nothing but GET_ERROR may be called on the node between the command and this.
    fn explain(&self, command: u32, result: std::result::Result<u32, Errno>) -> Result<u32> {
        let errno = match result {
            Ok(value) => return Ok(value),
            Err(errno) => errno,
        };
        let gone = || Failure::Host(format!("{}: {}", self.title(), why_not_opened(errno)));
        match self.last_error(0) {
            Ok(last) => {
                let ours = last.command == command && last.errno == errno;
                let explanation = ours.then_some(last.text);
                Err(Refusal { command, errno, explanation, outputs: None }.into())
            }
            // Not even GET_ERROR: it is some other driver that does not know the command.
            Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF)
                if matches!(errno, Errno::NOTTY | Errno::INVAL | Errno::BADF) =>
            {
                Err(Failure::Host(format!(
                    "{} is not /dev/ioasid: it is {}, which does not know the command ({})",
                    self.title(),
                    self.target(),
                    errno::name(errno)
                )))
            }
            Err(Errno::NOTCONN | Errno::CONNABORTED) => Err(gone()),
            Err(_) if matches!(errno, Errno::NOTCONN | Errno::CONNABORTED) => Err(gone()),
            Err(_) => Err(Refusal { command, errno, explanation: None, outputs: None }.into()),
        }
    }

    fn by_value(&self, command: u32, value: u64) -> Result<u32> {
        self.explain(command, call::by_value(self.fd(), command, value))
    }

    fn structure<T: Argument>(&self, command: u32, argument: &mut T) -> Result<u32> {
        self.explain(command, call::structure(self.fd(), command, argument))
    }

    /// CHECK_EXTENSION.
    pub(crate) fn check(&self, extension: u64) -> Result<u32> {
        self.by_value(cmd::CHECK_EXTENSION, extension)
    }

    /// REGISTER_MEMORY or, with `undo`, UNREGISTER_MEMORY of our own memory.
    pub(crate) fn register(&self, vaddr: u64, size: u64, undo: bool) -> Result<()> {
        let command = if undo { cmd::UNREGISTER_MEMORY } else { cmd::REGISTER_MEMORY };
        let mut argument = RegisterMemory { argsz: RegisterMemory::ARGSZ, flags: 0, vaddr, size };
        self.structure(command, &mut argument).map(drop)
    }

    /// ALLOC.
    pub(crate) fn alloc(&self) -> Result<Ioasid> {
        self.by_value(cmd::ALLOC, 0).map(Ioasid)
    }

    /// FREE.
    pub(crate) fn free(&self, ioasid: Ioasid) -> Result<()> {
        self.by_value(cmd::FREE, ioasid.0.into()).map(drop)
    }

    /// GET_INFO, with all ranges.
    pub(crate) fn info(&self, ioasid: Ioasid) -> Result<(Info, Vec<IovaRange>)> {
        let mut info = Info { argsz: Info::ARGSZ, ioasid: ioasid.0, ..Info::default() };
        let mut result = sys::get_info(self.fd(), &mut info, &mut []);
        // The first call says how many ranges there are. More may have come by the second.
        for _ in 0..8 {
            if !matches!(result, Ok(_) | Err(Errno::MSGSIZE)) {
                break;
            }
            let mut ranges = vec![IovaRange::default(); info.nr_ranges as usize];
            result = sys::get_info(self.fd(), &mut info, &mut ranges);
            if result.is_ok() && info.nr_ranges as usize <= ranges.len() {
                ranges.truncate(info.nr_ranges as usize);
                return Ok((info, ranges));
            }
        }
        self.explain(cmd::GET_INFO, result)?;
        Err(Failure::Host("the number of IOVA ranges changes all the time".into()))
    }

    /// LIST of the IOASIDs.
    pub(crate) fn ioasids(&self) -> Result<Vec<Ioasid>> {
        let listed = self.list(0, |last: &ListedIoasid| u64::from(last.0) + 1)?;
        Ok(listed.into_iter().map(|listed| Ioasid(listed.0)).collect())
    }

    /// LIST of the devices.
    pub(crate) fn devices(&self) -> Result<Vec<DeviceId>> {
        let listed = self.list(0, |last: &ListedDevice| u64::from(last.0) + 1)?;
        Ok(listed.into_iter().map(|listed| DeviceId(listed.0)).collect())
    }

    /// LIST of what an I/O address space maps.
    pub(crate) fn mappings(&self, ioasid: Ioasid) -> Result<Vec<Mapping>> {
        self.list(ioasid.0, |last: &Mapping| last.iova.saturating_add(last.size))
    }

    /// All of a list, in as many calls as that takes; `next` says where it goes on after an item.
    fn list<T: sys::Item + Clone + Default>(
        &self,
        ioasid: u32,
        next: impl Fn(&T) -> u64,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut start = 0;
        loop {
            let mut items = vec![T::default(); LIST_MAX as usize];
            let mut list = List { argsz: List::ARGSZ, ioasid, start, ..List::default() };
            let result = sys::list(self.fd(), &mut list, &mut items);
            let goes_on = result == Err(Errno::MSGSIZE);
            if !goes_on {
                self.explain(cmd::LIST, result)?;
            }
            items.truncate(list.nr as usize);
            all.append(&mut items);
            match all.last() {
                Some(last) if goes_on => start = next(last),
                _ => return Ok(all),
            }
        }
    }

    /// How far the command is that works on an I/O address space; None if there is none.
    pub(crate) fn work(&self, ioasid: Ioasid) -> std::result::Result<Option<Work>, Errno> {
        let mut info = Info { argsz: Info::ARGSZ, ioasid: ioasid.0, ..Info::default() };
        sys::get_info(self.fd(), &mut info, &mut [])?;
        let work = Work { done: info.work_done, total: info.work_total };
        Ok((work.total > 0).then_some(work))
    }

    /// MAP_DMA.
    pub(crate) fn map(&self, ioasid: Ioasid, place: Place, range: Range, flags: u32) -> Result<()> {
        let (fd, vaddr, kind) = match place {
            Place::Address(vaddr) => (0, vaddr, 0),
            Place::File { fd, offset } => (fd, offset, MAP_FILE),
        };
        let mut argument = MapDma {
            argsz: MapDma::ARGSZ,
            flags: flags | kind,
            ioasid: ioasid.0,
            fd,
            vaddr,
            iova: range.iova,
            size: range.size,
        };
        self.structure(cmd::MAP_DMA, &mut argument).map(drop)
    }

    /// UNMAP_DMA of a range, or of everything. Gives the number of bytes.
    pub(crate) fn unmap(&self, ioasid: Ioasid, range: Option<Range>) -> Result<u64> {
        let mut argument =
            UnmapDma { argsz: UnmapDma::ARGSZ, ioasid: ioasid.0, ..UnmapDma::default() };
        match range {
            Some(range) => (argument.iova, argument.size) = (range.iova, range.size),
            None => argument.flags = UNMAP_ALL,
        }
        self.explain(cmd::UNMAP_DMA, sys::unmap(self.fd(), &mut argument, &mut []))?;
        Ok(argument.size)
    }

    /// UNMAP_DMA of a range with a bitmap. Gives the number of bytes, and which of them were written.
    pub(crate) fn unmap_dirty(&self, ioasid: Ioasid, range: Range) -> Result<(u64, Bitmap)> {
        let page = self.smallest_page(ioasid)?;
        let mut bitmap = Bitmap::new(range, page);
        let mut argument = UnmapDma {
            argsz: UnmapDma::ARGSZ,
            flags: UNMAP_DIRTY,
            ioasid: ioasid.0,
            iova: range.iova,
            size: range.size,
            page_size: page,
            ..UnmapDma::default()
        };
        let result = sys::unmap(self.fd(), &mut argument, &mut bitmap.words);
        self.explain(cmd::UNMAP_DMA, result)?;
        Ok((argument.size, bitmap))
    }

    /// The smallest page of an I/O address space, bytes.
    fn smallest_page(&self, ioasid: Ioasid) -> Result<u64> {
        let mut info = Info { argsz: Info::ARGSZ, ioasid: ioasid.0, ..Info::default() };
        self.explain(cmd::GET_INFO, sys::get_info(self.fd(), &mut info, &mut []))?;
        // There is a page size in every one.
        Ok(1 << info.pgsizes.trailing_zeros().min(63))
    }

    /// VECTOR. Gives how many operations were done, also when one was refused.
    pub(crate) fn vector(&self, ioasid: Ioasid, ops: &[Op]) -> (u32, Result<()>) {
        let mut vector = Vector { argsz: Vector::ARGSZ, ioasid: ioasid.0, ..Vector::default() };
        let result = sys::vector(self.fd(), &mut vector, ops);
        (vector.nr_done, self.explain(cmd::VECTOR, result).map(drop))
    }

    /// DIRTY: begins or ends to track what is written.
    pub(crate) fn track(&self, ioasid: Ioasid, on: bool) -> Result<()> {
        let flags = if on { DIRTY_START } else { DIRTY_STOP };
        let mut argument =
            Dirty { argsz: Dirty::ARGSZ, flags, ioasid: ioasid.0, ..Dirty::default() };
        self.explain(cmd::DIRTY, sys::dirty(self.fd(), &mut argument, &mut [])).map(drop)
    }

    /// DIRTY: what was written in a range since it was last asked for.
    pub(crate) fn written(&self, ioasid: Ioasid, range: Range) -> Result<Bitmap> {
        let page = self.smallest_page(ioasid)?;
        let mut bitmap = Bitmap::new(range, page);
        let mut argument = Dirty {
            argsz: Dirty::ARGSZ,
            flags: DIRTY_READ,
            ioasid: ioasid.0,
            iova: range.iova,
            size: range.size,
            page_size: page,
            ..Dirty::default()
        };
        let result = sys::dirty(self.fd(), &mut argument, &mut bitmap.words);
        self.explain(cmd::DIRTY, result)?;
        Ok(bitmap)
    }

    /// CREATE_NESTING.
    pub(crate) fn create_nesting(&self, parent: Ioasid) -> Result<Ioasid> {
        self.by_value(cmd::CREATE_NESTING, parent.0.into()).map(Ioasid)
    }

    /// BIND_PGTABLE; `argsz` is filled in.
    pub(crate) fn bind_pgtable(&self, mut table: BindPgtable) -> Result<()> {
        table.argsz = BindPgtable::ARGSZ;
        self.structure(cmd::BIND_PGTABLE, &mut table).map(drop)
    }

    /// UNBIND_PGTABLE.
    pub(crate) fn unbind_pgtable(&self, child: Ioasid) -> Result<()> {
        let mut argument =
            BindPgtable { argsz: BindPgtable::ARGSZ, ioasid: child.0, ..BindPgtable::default() };
        self.structure(cmd::UNBIND_PGTABLE, &mut argument).map(drop)
    }

    /// BIND_PASID_TABLE; `argsz` is filled in.
    pub(crate) fn bind_pasid_table(&self, mut table: BindPasidTable) -> Result<()> {
        table.argsz = BindPasidTable::ARGSZ;
        self.structure(cmd::BIND_PASID_TABLE, &mut table).map(drop)
    }

    /// UNBIND_PASID_TABLE.
    pub(crate) fn unbind_pasid_table(&self, child: Ioasid) -> Result<()> {
        let mut argument = BindPasidTable {
            argsz: BindPasidTable::ARGSZ,
            ioasid: child.0,
            ..BindPasidTable::default()
        };
        self.structure(cmd::UNBIND_PASID_TABLE, &mut argument).map(drop)
    }

    /// INVALIDATE_CACHE of a range, or of everything.
    pub(crate) fn invalidate(&self, child: Ioasid, range: Option<Range>) -> Result<()> {
        let mut argument = InvalidateCache {
            argsz: InvalidateCache::ARGSZ,
            ioasid: child.0,
            ..InvalidateCache::default()
        };
        match range {
            Some(range) => (argument.iova, argument.size) = (range.iova, range.size),
            None => argument.flags = INVALIDATE_ALL,
        }
        self.structure(cmd::INVALIDATE_CACHE, &mut argument).map(drop)
    }

    /// BIND_DEVICE of a device of a VFIO group that is open in this process as `group`, or of a
    /// simulated device; its group may share the table of the device `with`.
    ///
    /// Errors: [`Failure::Usage`] when the name does not fit; and the node's.
    pub(crate) fn bind(
        &self,
        name: &str,
        group: Option<RawFd>,
        with: Option<DeviceId>,
        cookie: u64,
    ) -> Result<DeviceId> {
        let kind = if group.is_some() { BIND_VFIO_GROUP } else { BIND_SIMULATED };
        let mut argument = BindDevice {
            argsz: BindDevice::ARGSZ,
            flags: kind | if with.is_some() { BIND_SHARE } else { 0 },
            fd: group.unwrap_or(-1),
            cookie,
            with: with.map_or(0, |device| device.0),
            ..BindDevice::default()
        };
        if name.len() >= NAME_LEN {
            return Err(Failure::Usage(format!(
                "the name `{name}` is longer than {} bytes",
                NAME_LEN - 1
            )));
        }
        argument.name[..name.len()].copy_from_slice(name.as_bytes());
        self.structure(cmd::BIND_DEVICE, &mut argument)?;
        Ok(DeviceId(argument.device))
    }

    /// UNBIND_DEVICE.
    pub(crate) fn unbind(&self, device: DeviceId) -> Result<()> {
        self.by_value(cmd::UNBIND_DEVICE, device.0.into()).map(drop)
    }

    /// ATTACH_DEVICE.
    pub(crate) fn attach(
        &self,
        device: DeviceId,
        ioasid: Ioasid,
        pasid: Option<u32>,
    ) -> Result<()> {
        self.structure(cmd::ATTACH_DEVICE, &mut attachment(device, ioasid, pasid)).map(drop)
    }

    /// DETACH_DEVICE.
    pub(crate) fn detach(
        &self,
        device: DeviceId,
        ioasid: Ioasid,
        pasid: Option<u32>,
    ) -> Result<()> {
        self.structure(cmd::DETACH_DEVICE, &mut attachment(device, ioasid, pasid)).map(drop)
    }

    /// GET_DEVICE_INFO.
    pub(crate) fn device_info(&self, device: DeviceId) -> Result<DeviceInfo> {
        let mut info =
            DeviceInfo { argsz: DeviceInfo::ARGSZ, device: device.0, ..DeviceInfo::default() };
        self.structure(cmd::GET_DEVICE_INFO, &mut info)?;
        Ok(info)
    }

    /// SIM_DMA: the device reads. Gives how far it came, also when it met a fault.
    pub(crate) fn sim_dma_read(
        &self,
        device: DeviceId,
        iova: u64,
        manner: Manner,
        data: &mut [u8],
    ) -> (Reached, Result<()>) {
        let mut dma = dma(device, iova, manner);
        let result = sys::sim_dma_read(self.fd(), &mut dma, data);
        (reached(&dma, manner), self.explain(cmd::SIM_DMA, result).map(drop))
    }

    /// SIM_DMA: the device writes. Gives how far it came, also when it met a fault.
    pub(crate) fn sim_dma_write(
        &self,
        device: DeviceId,
        iova: u64,
        manner: Manner,
        data: &[u8],
    ) -> (Reached, Result<()>) {
        let mut dma = dma(device, iova, manner);
        let result = sys::sim_dma_write(self.fd(), &mut dma, data);
        (reached(&dma, manner), self.explain(cmd::SIM_DMA, result).map(drop))
    }

    /// Waits until there is a fault record, or looks whether there is one. Ends also when nobody
    /// reads standard output any more.
    ///
    /// Errors: [`Failure::Host`] when the daemon is gone.
    pub(crate) fn has_fault(&self, wait: bool) -> Result<bool> {
        let stdout = std::io::stdout();
        let node = self.fd();
        let mut fds = [
            PollFd::from_borrowed_fd(node, PollFlags::IN),
            // Only for its errors.
            PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::empty()),
        ];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = loop {
            match poll(&mut fds, if wait { None } else { Some(&now) }) {
                Err(Errno::INTR) => {}
                polled => break polled,
            }
        };
        match polled {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(errno) => Err(self.unreadable(errno)),
        }
    }

    /// Reads a fault record. Unless another reader was quicker there is one, see
    /// [`has_fault`](Self::has_fault); else it waits, or with O_NONBLOCK gives none.
    ///
    /// Errors: [`Failure::Host`] when it cannot be read.
    pub(crate) fn fault(&self) -> Result<Option<Fault>> {
        let mut fault = Fault::default();
        match rustix::io::retry_on_intr(|| rustix::io::read(self.fd(), fault.as_mut_bytes())) {
            Ok(read) if read == size_of::<Fault>() => Ok(Some(fault)),
            Err(Errno::AGAIN) => Ok(None),
            Ok(read) => Err(Failure::Host(format!(
                "{} gave {read} bytes where a record has {}",
                self.title(),
                size_of::<Fault>()
            ))),
            Err(errno) => Err(self.unreadable(errno)),
        }
    }

    fn unreadable(&self, errno: Errno) -> Failure {
        let why = match errno {
            Errno::NOTCONN | Errno::CONNABORTED => why_not_opened(errno),
            _ => format!("{}: {}", errno::name(errno), errno::sentence(errno)),
        };
        Failure::Host(format!("{}: {why}", self.title()))
    }

    /// COMPLETE_FAULT.
    pub(crate) fn complete(&self, fault: u32, response: u32) -> Result<()> {
        let mut argument =
            CompleteFault { argsz: CompleteFault::ARGSZ, id: fault, response, flags: 0 };
        self.structure(cmd::COMPLETE_FAULT, &mut argument).map(drop)
    }

    /// GET_ERROR: the last failure of this context, in whichever thread or, with `this_thread`, in
    /// this one.
    pub(crate) fn error(&self, this_thread: bool) -> Result<LastError> {
        match self.last_error(if this_thread { 0 } else { ERROR_ANY_THREAD }) {
            Ok(last) => Ok(last),
            Err(Errno::NOENT) => {
                let explanation = Some("no command has failed on this descriptor".into());
                let (command, errno) = (cmd::GET_ERROR, Errno::NOENT);
                Err(Refusal { command, errno, explanation, outputs: None }.into())
            }
            Err(errno) => self.explain(cmd::GET_ERROR, Err(errno)).map(|_| unreachable!()),
        }
    }

    fn last_error(&self, flags: u32) -> std::result::Result<LastError, Errno> {
        call::last_error(self.fd(), flags)
    }

    /// Any command with any argument. The outer error is for an argument that was not sent.
    pub(crate) fn raw(&self, command: u32, argument: RawArgument<'_>) -> Result<u32> {
        match sys::raw(self.fd(), command, argument) {
            Err(Errno::ACCESS) => Err(Failure::Usage(
                "the argument holds an address of ioasidctl's own memory; \
                 use FIELD=@SIZE to give the command a buffer"
                    .into(),
            )),
            result => self.explain(command, result),
        }
    }
}

fn attachment(device: DeviceId, ioasid: Ioasid, pasid: Option<u32>) -> AttachDevice {
    AttachDevice {
        argsz: AttachDevice::ARGSZ,
        flags: if pasid.is_some() { ATTACH_USER_PASID } else { 0 },
        device: device.0,
        ioasid: ioasid.0,
        user_pasid: pasid.unwrap_or(0),
        ..AttachDevice::default()
    }
}

fn dma(device: DeviceId, iova: u64, manner: Manner) -> SimDma {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    SimDma {
        argsz: SimDma::ARGSZ,
        flags: flag(manner.pasid.is_some(), SIM_DMA_PASID)
            | flag(manner.recoverable, SIM_DMA_RECOVERABLE)
            | flag(manner.after.is_some(), SIM_DMA_CONTINUE),
        device: device.0,
        iova,
        pasid: manner.pasid.unwrap_or(0),
        fault: manner.after.unwrap_or(0),
        ..SimDma::default()
    }
}

/// A fault that DMA was to go on after is none that it met.
fn reached(dma: &SimDma, manner: Manner) -> Reached {
    let waits = manner.recoverable && dma.done < dma.size;
    Reached { done: dma.done, fault: if waits { dma.fault } else { 0 } }
}

/// Opens a file for mapping or for reading and writing data.
///
/// Errors: [`Failure::Host`] with the path and the reason.
pub(crate) fn open_file(path: &Path, write: bool) -> Result<File> {
    File::options()
        .read(true)
        .write(write)
        .open(path)
        .map_err(|error| Failure::Host(format!("{}: {}", path.display(), plain_error(&error))))
}

/// An error of the standard library in the words of this program.
pub(crate) fn plain_error(error: &std::io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(errno) => format!("{}: {}", errno::name(errno), errno::sentence(errno)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_descriptor_is_told_how_to_open_it() {
        let Err(failure) = Node::inherited(1 << 20) else { panic!("it is open?") };
        assert_eq!(failure.status(), 3);
        assert_eq!(
            failure.to_string(),
            "descriptor 1048576 is not open; start with: exec 1048576<>/dev/ioasid"
        );
    }

    #[test]
    fn a_bitmap_tells_the_longest_ranges() {
        let mut bitmap = Bitmap::new(Range { iova: 0x10000, size: 0x80000 }, 0x1000);
        assert_eq!((bitmap.words.len(), bitmap.ranges()), (2, vec![]));
        bitmap.words = vec![(0b1011u64 | 1 << 63).to_le(), 1u64.to_le()];
        let range = |start, last| IovaRange { start, last };
        let expected = [range(0x10000, 0x11fff), range(0x13000, 0x13fff), range(0x4f000, 0x50fff)];
        assert_eq!(bitmap.ranges(), expected);
        // To the very end of the address space.
        let end = Bitmap { iova: 0xffff_ffff_ffff_e000, page: 0x1000, words: vec![3u64.to_le()] };
        assert_eq!(end.ranges(), [range(0xffff_ffff_ffff_e000, u64::MAX)]);
        // What cannot be asked for takes no memory.
        let all = Bitmap::new(Range { iova: 0, size: u64::MAX }, 0x1000);
        assert_eq!(all.words.len() as u64, DIRTY_PAGES_MAX / 64);
    }

    #[test]
    fn only_what_waits_has_a_fault() {
        let sent = SimDma { size: 8, done: 3, fault: 5, ..SimDma::default() };
        let waits = Manner { recoverable: true, after: Some(4), pasid: None };
        assert_eq!(reached(&sent, waits), Reached { done: 3, fault: 5 });
        assert_eq!(reached(&SimDma { done: 8, ..sent }, waits), Reached { done: 8, fault: 0 });
        assert_eq!(reached(&sent, Manner::default()), Reached { done: 3, fault: 0 });
    }

    #[test]
    fn another_file_is_named() {
        let node = Node::open(Path::new("/dev/null")).unwrap();
        let failure = node.alloc().unwrap_err();
        assert_eq!(failure.status(), 3);
        let text = failure.to_string();
        assert!(text.contains("is not /dev/ioasid: it is /dev/null"), "{text}");
        assert!(text.contains("ENOTTY"), "{text}");
    }

    #[test]
    fn a_missing_node_points_to_the_doctor() {
        let Err(failure) = Node::open(Path::new("/nonexistent/ioasid")) else { panic!() };
        assert_eq!(failure.status(), 3);
        let text = failure.to_string();
        assert!(text.contains("ENOENT") && text.contains("ioasidctl doctor"), "{text}");
    }
}

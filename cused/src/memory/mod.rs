//! Callers' memory: what stands behind a mapping, whatever kind of memory it is.
//!
//! [`resolve`] turns a range of a caller's address space into a [`Backing`]. Which
//! way each piece of it takes is decided by how the caller has mapped it, never by trying:
//!
//! | in the caller | piece | pinned through |
//! |---|---|---|
//! | a file of the kernel's own file systems, shared: memfd, shm, hugetlbfs, ext4 | `Piece::File` | a window: the file, mapped in the daemon |
//! | anything private | `Piece::Program` | the caller itself, [led](crate::in_context) through the call |
//! | registers of a bound device | `Piece::Registers` | a window: the device's own descriptor, mapped in the daemon |
//!
//! A backing outlives the caller's own mapping. Files and registers it holds open, so that they
//! can be mapped again at any time. A program's private memory is held by those who have pinned
//! it, and can be mapped again only by a thread of that program.
//!
//! The daemon itself never touches the bytes of a window: a file can be cut short by its owner
//! at any moment, and a touch would then be a SIGBUS.

pub mod files;
mod filesystem;
mod maps;
mod mirror;
mod pin;
mod registers;
pub mod resolve;
mod window;

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{OFlags, SealFlags};
use rustix::io::Errno;

pub use filesystem::attributes;
pub(crate) use pin::uring;
pub use pin::{PIN_MAX, Pin, available as can_pin, refuse as refuse_pin};
pub use registers::BoundDevice;
pub use window::{View, Window};

use self::files::OpenFile;
use crate::failure::Failure;
use crate::process::Process;

/// What devices may do to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// Devices read it.
    ReadOnly,
    /// Devices may write it.
    ReadWrite,
}

impl Rights {
    /// How a file must be open to give these rights.
    fn open_flags(self) -> OFlags {
        match self {
            Self::ReadOnly => OFlags::RDONLY,
            Self::ReadWrite => OFlags::RDWR,
        }
    }

    /// Whether a file with these seals can still be mapped so.
    fn are_left_by(self, seals: SealFlags) -> bool {
        self == Self::ReadOnly || !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE)
    }
}

/// What stands behind a piece of a mapping.
#[derive(Debug)]
enum Piece {
    File(FilePiece),
    Program(ProgramPiece),
    Registers(RegistersPiece),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::File(piece) => piece.len,
            Self::Program(piece) => piece.len,
            Self::Registers(piece) => piece.len,
        }
    }

    /// Where it begins, as far as its pages are concerned: huge ones are aligned to this.
    fn place(&self) -> u64 {
        match self {
            Self::File(piece) => piece.offset,
            Self::Program(piece) => piece.vaddr,
            Self::Registers(_) => 0,
        }
    }
}

/// A piece of a file.
#[derive(Debug)]
struct FilePiece {
    file: Arc<OpenFile>,
    /// Where it begins in the file, bytes.
    offset: u64,
    /// Its length, bytes.
    len: u64,
    /// All of it mapped: for registered memory always, for other memory from when it is found for as
    /// long as there are few windows. Otherwise parts of it are mapped when they are needed.
    window: Mutex<Option<Arc<Window>>>,
}

/// A piece of a program's own address space.
#[derive(Debug)]
struct ProgramPiece {
    process: Arc<Process>,
    vaddr: u64,
    /// Its length, bytes.
    len: u64,
    /// The process may write it.
    writable: bool,
    /// /proc/PID/mem, opened when a simulated device first needs it.
    memory: OnceLock<File>,
}

/// Registers of a device.
#[derive(Debug)]
struct RegistersPiece {
    /// Keeps the device in its group, and the group with us, until the registers are unmapped.
    _device: OwnedFd,
    /// Where they begin in the device's file, bytes.
    offset: u64,
    /// Bytes.
    len: u64,
    window: Window,
}

/// The memory behind one mapping, or behind registered memory: pieces, one after another.
#[derive(Debug)]
pub struct Backing {
    pieces: Vec<Piece>,
    pins: Vec<Pin>,
}

/// How a stretch of memory can be reached.
#[derive(Debug)]
pub enum Reach<'a> {
    /// At an address of the daemon.
    Here(View<'a>),
    /// Registers of a device, at an address of the daemon.
    Registers(View<'a>),
    /// At an address of a program.
    There(Foreign<'a>),
}

impl Reach<'_> {
    /// How long the stretch is, bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Here(view) | Self::Registers(view) => view.len(),
            Self::There(foreign) => foreign.len,
        }
    }

    /// True for a stretch of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A stretch of a program's memory.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    piece: &'a ProgramPiece,
    /// Where it is in the program.
    pub vaddr: u64,
    /// Bytes.
    pub len: u64,
}

impl Foreign<'_> {
    /// Whose memory it is.
    pub fn process(&self) -> &Arc<Process> {
        &self.piece.process
    }

    /// Whether the process may write it.
    pub fn is_writable(&self) -> bool {
        self.piece.writable
    }

    /// Copies from the start of the stretch.
    ///
    /// # Errors
    /// EFAULT when the program has no such memory any more, or has ended.
    pub fn read(&self, buffer: &mut [u8]) -> Result<(), Errno> {
        self.memory()?.read_exact_at(buffer, self.vaddr).map_err(|_| Errno::FAULT)
    }

    /// Copies to the start of the stretch.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        self.memory()?.write_all_at(bytes, self.vaddr).map_err(|_| Errno::FAULT)
    }

    /// The descriptor stands for the address space that the process had when it was opened: an id
    /// that passes to another process does it no harm.
    fn memory(&self) -> Result<&File, Errno> {
        if let Some(memory) = self.piece.memory.get() {
            return Ok(memory);
        }
        let process = &self.piece.process;
        let path = format!("/proc/{}/mem", process.id());
        let memory = File::options().read(true).write(true).open(path).map_err(|_| Errno::FAULT)?;
        match process.is_alive() {
            true => Ok(self.piece.memory.get_or_init(|| memory)),
            false => Err(Errno::FAULT),
        }
    }
}

impl Backing {
    /// Whether all of it is registers of devices, which are not charged for.
    pub fn is_registers(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece, Piece::Registers(_)))
    }

    /// Whether any of it is registers of devices.
    pub fn has_registers(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Registers(_)))
    }

    /// Those whose threads must be led to pin it.
    pub fn programs(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Program(piece) => Some(&piece.process),
            Piece::File(_) | Piece::Registers(_) => None,
        })
    }

    /// Calls `visit` with each stretch in `range` (bytes from the start of the backing) and its
    /// position in the range. A stretch has at most `most` bytes; all but the last end where their
    /// memory has a multiple of `most`, so that huge pages stay whole. Stops at the first error.
    ///
    /// # Errors
    /// What mmap says, or what `visit` does; EFAULT for a range that the backing does not have.
    pub fn visit<E: From<Errno>>(
        &self,
        range: Range<u64>,
        most: u64,
        mut visit: impl FnMut(u64, Reach<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut begin = 0;
        for piece in &self.pieces {
            let end = begin + piece.len();
            let (mut from, to) = (range.start.max(begin), range.end.min(end));
            while from < to {
                let past = (piece.place().wrapping_add(from - begin)) % most;
                let next = if to - from <= most { to } else { from + (most - past) };
                let position = from - range.start;
                self.reach(piece, from - begin..next - begin, |reach| visit(position, reach))?;
                from = next;
            }
            begin = end;
        }
        match range.end <= begin {
            true => Ok(()),
            false => Err(Errno::FAULT.into()),
        }
    }

    fn reach<E: From<Errno>>(
        &self,
        piece: &Piece,
        Range { start, end }: Range<u64>,
        visit: impl FnOnce(Reach<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let len = end - start;
        match piece {
            Piece::File(piece) => {
                let begin = piece.offset + start;
                let whole = piece.window.lock().clone();
                if let Some(window) = whole {
                    return visit(Reach::Here(window.view(begin, len)));
                }
                let window = piece.file.passing(begin..begin + len)?;
                visit(Reach::Here(window.view(begin, len)))
            }
            Piece::Registers(piece) => {
                visit(Reach::Registers(piece.window.view(piece.offset + start, len)))
            }
            Piece::Program(piece) => {
                visit(Reach::There(Foreign { piece, vaddr: piece.vaddr + start, len }))
            }
        }
    }

    /// It has been mapped for devices: lets go of what is only quicker to have, if there is much of it.
    pub fn settle(&self) {
        if Window::may_stay() {
            return;
        }
        for piece in &self.pieces {
            if let Piece::File(piece) = piece
                && self.pins.is_empty()
            {
                piece.window.lock().take();
                piece.file.settle();
            }
        }
    }

    /// Pins all of it, with `pin_there` for a program's own memory and with `go_on` asked between
    /// the steps. Files stay mapped from now on, so that mapping them for devices is quicker.
    ///
    /// # Errors
    /// What the two say; of the daemon's own pinning, see [`refuse_pin`].
    pub fn pin(
        &mut self,
        mut pin_there: impl FnMut(u64, u64) -> Result<Pin, Failure>,
        go_on: impl Fn() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for piece in &self.pieces {
            let len = piece.len();
            let mut from = 0;
            while from < len {
                go_on()?;
                let part = (len - from).min(PIN_MAX);
                self.pins.push(match piece {
                    Piece::File(piece) => match &*piece.window.lock() {
                        Some(window) => {
                            let view = window.view(piece.offset + from, part);
                            Pin::new(view.address(), part).map_err(refuse_pin)?
                        }
                        None => return Err(refuse_pin(Errno::FAULT)),
                    },
                    Piece::Program(piece) => pin_there(piece.vaddr + from, part)?,
                    Piece::Registers(_) => return Err(refuse_pin(Errno::OPNOTSUPP)),
                });
                from += part;
            }
        }
        Ok(())
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // Before the windows that they were made through.
        self.pins.clear();
    }
}

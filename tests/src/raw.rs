//! Calls of the node with arguments of any kind, wrong ones too.
//!
//! All memory that a call can touch is in an [`Arena`]: pages that no Rust reference points to, of
//! each kind that matters to the node, with pages between them that nobody can access.
//!
//! This is the only module with unsafe code. It is sound because [`Arena::call`] lets no address
//! through, neither as the argument nor in a pointer field that it knows of, but those of the arena
//! and those where this process can never have memory.
#![allow(unsafe_code)]

use ioasid_uapi::cmd;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{self, Errno};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::ffi::c_void;

/// The page size of the machines served here.
pub const PAGE: u64 = 4096;

/// Below `mmap_min_addr`, where no process has memory.
pub const NEVER_MAPPED: u64 = 0x1000;
/// In the kernel's half.
pub const KERNEL: u64 = 0xffff_8880_0000_0000;
/// Neither in the user's half nor in the kernel's.
pub const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// A range of pages of the arena.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    first: u64,
    count: u64,
}

impl Piece {
    const fn pages(first: u64, count: u64) -> Self {
        Self { first, count }
    }

    /// How many bytes it has.
    pub const fn size(self) -> u64 {
        self.count * PAGE
    }
}

/// Readable and writable, private; behind it a page that nobody can access.
pub const ARGUMENT: Piece = Piece::pages(0, 4);
/// Readable only, as seen by the program; it is filled through `READ_ONLY_FILLER`.
pub const READ_ONLY: Piece = Piece::pages(5, 1);
const READ_ONLY_FILLER: Piece = Piece::pages(7, 1);
/// Shared memory for DMA; behind it a page that nobody can access.
pub const SHARED: Piece = Piece::pages(9, 16);
/// Shared memory that the program itself can only read.
pub const SHARED_READ_ONLY: Piece = Piece::pages(26, 2);
/// Private memory, behind it at once [`AFTER_PRIVATE`].
pub const PRIVATE: Piece = Piece::pages(29, 4);
/// Shared memory right behind private memory.
pub const AFTER_PRIVATE: Piece = Piece::pages(33, 2);
/// For what the node writes where a pointer in a structure says; behind it no access.
pub const OUTPUT: Piece = Piece::pages(36, 4);
/// Shared memory that the program can neither read nor write.
pub const NO_ACCESS: Piece = Piece::pages(41, 2);
/// What the arena has in all.
const ALL: Piece = Piece::pages(0, 44);

/// What an ioctl is called with.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A number.
    Value(u64),
    /// Where a structure is, or would be.
    Address(u64),
}

/// The memory that calls are made with; see the module.
#[derive(Debug)]
pub struct Arena {
    base: u64,
    /// Keeps the shared pieces' memory named, for looking at it in /proc.
    _files: [OwnedFd; 5],
}

impl Arena {
    /// Maps all of it.
    ///
    /// # Errors
    /// Those of mmap and memfd_create.
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                ALL.size() as usize,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }?
        .addr() as u64;
        let files = [file(READ_ONLY)?, file(SHARED)?, file(SHARED_READ_ONLY)?, file(NO_ACCESS)?, {
            file(AFTER_PRIVATE)?
        }];
        let [read_only, shared, shared_read_only, no_access, after_private] = &files;
        let both = ProtFlags::READ | ProtFlags::WRITE;
        place(base, ARGUMENT, both, None)?;
        place(base, READ_ONLY, ProtFlags::READ, Some(read_only))?;
        place(base, READ_ONLY_FILLER, both, Some(read_only))?;
        place(base, SHARED, both, Some(shared))?;
        place(base, SHARED_READ_ONLY, ProtFlags::READ, Some(shared_read_only))?;
        place(base, PRIVATE, both, None)?;
        place(base, AFTER_PRIVATE, both, Some(after_private))?;
        place(base, OUTPUT, both, None)?;
        place(base, NO_ACCESS, ProtFlags::empty(), Some(no_access))?;
        Ok(Self { base, _files: files })
    }

    /// Where a piece begins.
    pub fn start(&self, piece: Piece) -> u64 {
        self.base + piece.first * PAGE
    }

    /// The first address behind a piece.
    pub fn end(&self, piece: Piece) -> u64 {
        self.start(piece) + piece.size()
    }

    /// Copies `bytes` to `address`, which is in a piece that can be written, or in
    /// [`READ_ONLY`], whose memory can be written elsewhere.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let within =
            |piece| self.start(piece) <= address && address + bytes.len() as u64 <= self.end(piece);
        let target = if within(READ_ONLY) {
            self.start(READ_ONLY_FILLER) + (address - self.start(READ_ONLY))
        } else {
            assert!(
                [ARGUMENT, SHARED, PRIVATE, AFTER_PRIVATE, OUTPUT].into_iter().any(within),
                "{address:#x} is in no writable piece of the arena"
            );
            address
        };
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: all of the range is in one piece that is mapped writable for as long as the
            // process lives, and no Rust object is there.
            unsafe { ((target + i as u64) as *mut u8).write_volatile(byte) };
        }
    }

    /// A copy of `len` bytes at `address`, which is in a piece that can be read.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        assert!(self.readable(address, len as u64), "{address:#x} is in no readable piece");
        // SAFETY: all of the range is in one piece that is mapped readable for as long as the
        // process lives; a volatile read of what others may write at the time is a copy.
        (0..len as u64).map(|i| unsafe { ((address + i) as *const u8).read_volatile() }).collect()
    }

    fn readable(&self, address: u64, len: u64) -> bool {
        [ARGUMENT, READ_ONLY, SHARED, SHARED_READ_ONLY, PRIVATE, AFTER_PRIVATE, OUTPUT]
            .into_iter()
            .any(|piece| self.start(piece) <= address && address + len <= self.end(piece))
    }

    /// Calls ioctl `command` of `node`. Gives what it returns.
    ///
    /// # Errors
    /// The errno that the call gives.
    ///
    /// # Panics
    /// When an address, the argument itself or that of a pointer field, could be of memory
    /// outside the arena.
    pub fn call(
        &mut self,
        node: BorrowedFd<'_>,
        command: u32,
        argument: Argument,
    ) -> io::Result<i32> {
        let argument = match argument {
            Argument::Value(value) => value,
            Argument::Address(address) => {
                self.check_address(address);
                self.check_pointer_field(command, address);
                address
            }
        };
        // SAFETY: the node writes what ioasid.h says: to the structure at the argument, and to where
        // the structure's pointer field says. Both were checked to be in the arena, where no Rust
        // object is, or where no memory can be. Commands that take a number touch no memory.
        unsafe { rustix::ioctl::ioctl(node, Raw { command, argument }) }
    }

    /// Ends the test unless nothing but the arena can be at `address`.
    fn check_address(&self, address: u64) {
        let in_arena = self.base <= address && address < self.base + ALL.size();
        let nowhere = address <= NEVER_MAPPED || address >= 1 << 47;
        assert!(in_arena || nowhere, "{address:#x} could be anything");
    }

    fn check_pointer_field(&self, command: u32, address: u64) {
        let offset = match command {
            cmd::GET_INFO | cmd::SIM_DMA => 24,
            cmd::GET_ERROR | cmd::MAP_DMA | cmd::VECTOR => 16,
            cmd::REGISTER_MEMORY => 8,
            _ => return,
        };
        if address < 1 << 47 && self.readable(address + offset, 8) {
            let field = self.read(address + offset, 8);
            self.check_address(u64::from_ne_bytes(field.try_into().expect("eight bytes")));
        }
    }
}

/// A memfd as large as a piece.
fn file(piece: Piece) -> io::Result<OwnedFd> {
    let file = memfd_create("ioasid-tests", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, piece.size())?;
    Ok(file)
}

/// Maps a piece over the pages that were set aside for it: of a file, shared, or private.
fn place(base: u64, piece: Piece, prot: ProtFlags, file: Option<&OwnedFd>) -> io::Result<()> {
    let address = (base + piece.first * PAGE) as *mut c_void;
    let size = piece.size() as usize;
    // SAFETY: the pages replaced are of the arena's own reservation, and nothing is there yet.
    unsafe {
        match file {
            Some(file) => mmap(address, size, prot, MapFlags::SHARED | MapFlags::FIXED, file, 0)?,
            None => mmap_anonymous(address, size, prot, MapFlags::PRIVATE | MapFlags::FIXED)?,
        }
    };
    Ok(())
}

/// One ioctl whose argument is a bare number for Rust.
struct Raw {
    command: u32,
    argument: u64,
}

// SAFETY: the opcode and the argument are handed over as they are, and the result is the call's.
// What the call may write is the business of whoever makes it: see `Arena::call`.
unsafe impl Ioctl for Raw {
    type Output = i32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.command as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument as *mut c_void
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> io::Result<i32> {
        Ok(output)
    }
}

/// The name of an errno, as the header writes it.
pub fn errno_name(errno: Errno) -> String {
    const NAMES: &[(Errno, &str)] = &[
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::INTR, "EINTR"),
        (Errno::IO, "EIO"),
        (Errno::TOOBIG, "E2BIG"),
        (Errno::BADF, "EBADF"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::FAULT, "EFAULT"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::NODEV, "ENODEV"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOTTY, "ENOTTY"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::OVERFLOW, "EOVERFLOW"),
        (Errno::MSGSIZE, "EMSGSIZE"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::ADDRINUSE, "EADDRINUSE"),
        (Errno::NOTCONN, "ENOTCONN"),
        (Errno::CONNABORTED, "ECONNABORTED"),
    ];
    match NAMES.iter().find(|(known, _)| *known == errno) {
        Some((_, name)) => (*name).to_string(),
        None => format!("errno {}", errno.raw_os_error()),
    }
}

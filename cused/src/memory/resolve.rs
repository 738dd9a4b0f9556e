//! From what a caller names to the memory behind it: one interface over all routes.

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use rustix::fs::{FileType, OFlags, Stat, fcntl_getfl, fstat};
use rustix::io::Errno;

use super::files::{Files, OpenFile};
use super::maps::{Maps, Vma};
use super::registers::{self, BoundDevice};
use super::{Backing, Piece, ProgramPiece, Rights, filesystem, mirror};
use crate::caller::Tid;
use crate::failure::Failure;
use crate::process::Process;

/// Finds the physical address of registers at an address of the caller, without touching them.
pub type Locate<'a> = dyn FnMut(u64) -> Result<u64, Failure> + 'a;

/// What a program may name, and how.
pub struct Resolver<'a> {
    /// The thread that is blocked in the call.
    pub tid: Tid,
    /// Its process.
    pub process: &'a Arc<Process>,
    /// What devices will do.
    pub rights: Rights,
    /// The devices whose registers can be mapped.
    pub devices: &'a [BoundDevice],
}

impl Resolver<'_> {
    /// What stands behind `size` bytes at `vaddr` of the caller.
    ///
    /// # Errors
    /// - EFAULT: part of the range is not mapped in the caller, or changes while we look
    /// - EPERM: the rights are more than the caller's own
    /// - EOPNOTSUPP: memory of a foreign device, or a file system that is not accepted
    pub fn memory(
        &self,
        vaddr: u64,
        size: u64,
        locate: &mut Locate<'_>,
    ) -> Result<Backing, Failure> {
        let end = vaddr.checked_add(size).ok_or_else(|| unmapped(u64::MAX))?;
        let range = vaddr..end;
        let mut maps = Maps::open(self.tid).map_err(mirror::unlisted)?;
        let vmas = maps.overlapping(&range).map_err(mirror::unlisted)?;
        check_whole(&vmas, &range)?;
        let ways = vmas.iter().map(|vma| self.way(vma)).collect::<Result<Vec<_>, _>>()?;
        // Files were named: only now the list says what the caller may do to them.
        if ways.iter().any(|way| matches!(way, Way::Mirror(_)))
            && maps.overlapping(&range).map_err(mirror::unlisted)? != vmas
        {
            return Err(mirror::changed(vaddr, size));
        }
        let mut pieces = Vec::new();
        for (vma, way) in vmas.iter().zip(ways) {
            let part = vma.range.start.max(range.start)..vma.range.end.min(range.end);
            self.piece(&mut pieces, vma, part, way, locate)?;
        }
        Ok(Backing { pieces, pins: Vec::new() })
    }

    fn way(&self, vma: &Vma) -> Result<Way, Failure> {
        check_rights(vma, self.rights)?;
        Ok(match vma.shared {
            false => Way::Lead,
            true if registers::are_at(vma) => Way::Registers,
            true => Way::Mirror(mirror::name(self.tid, vma)?),
        })
    }

    fn piece(
        &self,
        pieces: &mut Vec<Piece>,
        vma: &Vma,
        part: Range<u64>,
        way: Way,
        locate: &mut Locate<'_>,
    ) -> Result<(), Failure> {
        let piece = match way {
            Way::Mirror(named) => {
                let file = named.open(vma, self.rights)?;
                Piece::File(mirror::piece(vma, part, self.rights, file)?)
            }
            Way::Registers => {
                let address = locate(part.start)?;
                Piece::Registers(registers::piece(address, vma, part, self.rights, self.devices)?)
            }
            Way::Lead => {
                // The heap, or a stack with its guard taken away, is several neighbours in the list.
                if let Some(Piece::Program(before)) = pieces.last_mut()
                    && before.writable == vma.writable
                {
                    before.len += part.end - part.start;
                    return Ok(());
                }
                let (vaddr, len) = (part.start, part.end - part.start);
                let process = Arc::clone(self.process);
                Piece::Program(ProgramPiece {
                    process,
                    vaddr,
                    len,
                    writable: vma.writable,
                    memory: OnceLock::new(),
                })
            }
        };
        pieces.push(piece);
        Ok(())
    }

    /// A piece of the file that the caller has open as `fd`. `files` are those that have been named in
    /// the same open of the node.
    ///
    /// # Errors
    /// - EBADF: it is not open; EPERM: it is not open for this
    /// - EFAULT: the file is shorter
    /// - EOPNOTSUPP: it is no regular file, or on a file system that is not accepted
    pub fn file(
        &self,
        files: &Files,
        fd: i32,
        offset: u64,
        size: u64,
    ) -> Result<(Backing, FileId), Failure> {
        let what = || format!("the file of descriptor {fd}");
        let known = files.find((self.process, self.tid), fd, self.rights);
        let (file, attributes) = known.map_or_else(|| self.open(files, fd), Ok)?;
        let id = FileId { device: attributes.st_dev, inode: attributes.st_ino };
        let Some(end) = offset.checked_add(size) else {
            return Err(Failure::new(Errno::FAULT, "no file is that long"));
        };
        // Whether it is open for what devices shall do, the kernel says when it is mapped.
        let piece = mirror::file_piece(file, &attributes, offset..end, what)?;
        Ok((Backing { pieces: vec![Piece::File(piece)], pins: vec![] }, id))
    }

    /// The file of a descriptor, to be remembered if it is memory and nothing else.
    fn open(&self, files: &Files, fd: i32) -> Result<(Arc<OpenFile>, Stat), Failure> {
        let file = File::from(self.process.descriptor(self.tid, fd)?);
        let memory = filesystem::memory_attributes(&file);
        let attributes = match memory {
            Some((attributes, _)) => attributes,
            None => self.attributes(&file, fd)?,
        };
        let file = Arc::new(OpenFile::new(file, &attributes, self.rights));
        if memory.is_some() {
            files.remember(self.process, fd, &file);
        }
        Ok((file, attributes))
    }

    /// The attributes of a file that is not known to be memory.
    fn attributes(&self, file: &File, fd: i32) -> Result<Stat, Failure> {
        let refuse = |error: Errno| {
            Failure::new(Errno::FAULT, format!("the file of descriptor {fd}: {error}"))
        };
        let flags = fcntl_getfl(file).map_err(refuse)?;
        let attributes = filesystem::attributes(file).map_err(refuse)?;
        let is_file = FileType::from_raw_mode(attributes.stx_mode.into()) == FileType::RegularFile;
        if flags.contains(OFlags::PATH) || !is_file {
            return Err(Failure::unsupported(format!(
                "descriptor {fd} is no file with memory behind it: use a memfd, or a file on \
                 hugetlbfs or tmpfs"
            )));
        }
        filesystem::accept(self.tid, filesystem::device(&attributes)).map_err(|kind| {
            Failure::unsupported(format!(
                "the file of descriptor {fd} is on {kind}; devices can use memfds and files on the \
                 kernel's own file systems"
            ))
        })?;
        fstat(file).map_err(refuse)
    }
}

/// Tells one file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

enum Way {
    Mirror(mirror::Named),
    Lead,
    Registers,
}

impl Backing {
    /// Whether it can be registered: whether all of it is memory, rather than a file on disk or
    /// registers.
    ///
    /// # Errors
    /// EOPNOTSUPP
    pub fn check_pinnable(&self) -> Result<(), Failure> {
        let pinnable = |piece: &Piece| match piece {
            Piece::File(piece) => filesystem::is_memory(&*piece.file),
            Piece::Program(_) => true,
            Piece::Registers(_) => false,
        };
        match self.pieces.iter().all(pinnable) {
            true => Ok(()),
            false => Err(Failure::unsupported(
                "files on disk and device registers cannot be registered: map them without, or use \
                 memory (memfd, malloc)",
            )),
        }
    }
}

fn check_whole(vmas: &[Vma], range: &Range<u64>) -> Result<(), Failure> {
    let mut reached = range.start;
    for vma in vmas {
        if vma.range.start > reached {
            break;
        }
        reached = vma.range.end;
    }
    match reached >= range.end {
        true => Ok(()),
        false => Err(unmapped(reached)),
    }
}

fn unmapped(address: u64) -> Failure {
    Failure::new(Errno::FAULT, format!("nothing is mapped at {address:#x} in the program"))
}

fn check_rights(vma: &Vma, rights: Rights) -> Result<(), Failure> {
    let (errno, missing) = match rights {
        // There is no source here that could be read-only: it is no memory at all.
        _ if !vma.readable && !vma.shared => (Errno::FAULT, "read"),
        _ if !vma.readable => (Errno::PERM, "read"),
        Rights::ReadWrite if !vma.writable => (Errno::PERM, "write"),
        _ => return Ok(()),
    };
    Err(Failure::new(errno, format!("the program itself may not {missing} the {}", vma.describe())))
}

//! The memory that `map` and `register` lend to devices: from the command line to an address.

use std::fs::File;
use std::path::Path;

use rustix::io::Errno;

use crate::cli::Source;
use crate::errno;
use crate::node::open_file;
use crate::report::Failure;
use crate::sys::{Memory, Protection};

/// An address and a size for the node, and what has to live while they are used.
pub(crate) struct Lent {
    /// Where it is.
    pub(crate) vaddr: u64,
    /// How many bytes.
    pub(crate) size: u64,
    /// The mapping, unless the address was given as it is.
    _memory: Option<Memory>,
    /// The file, if there is one. A daemon without privilege finds the memory by a descriptor.
    _file: Option<File>,
}

/// Makes the memory that the command line describes.
///
/// Without a protection of its own, it is mapped so that `device_writes` can be granted.
///
/// Errors: [`Failure::Usage`] when the description lacks something, [`Failure::Host`] when the
/// file cannot be opened or mapped.
pub(crate) fn lend(source: &Source, device_writes: bool) -> Result<Lent, Failure> {
    let protection = match source.protection.as_deref() {
        Some(access) => Protection { read: access.contains('r'), write: access.contains('w') },
        None => Protection { read: true, write: device_writes },
    };
    if let Some(path) = &source.file {
        // A private copy can be written without the right to write the file.
        let file = open_file(path, protection.write && !source.private)?;
        let size = size_in_file(source, path, &file)?;
        return lend_file(&path.display().to_string(), file, source, size, protection);
    }
    if !(source.memfd || source.anonymous || source.private || source.vaddr.is_some()) {
        return Err(Failure::Usage(
            "say which memory: --file, --memfd, --anonymous, --private or --vaddr".into(),
        ));
    }
    let size = source
        .size
        .ok_or_else(|| Failure::Usage("memory that is not a file's needs --size".into()))?;
    if let Some(vaddr) = source.vaddr {
        return Ok(Lent { vaddr, size, _memory: None, _file: None });
    }
    if source.memfd {
        let file = memfd(size).map_err(|error| no_memory("a memfd", size, error))?;
        return lend_file("a memfd", file, source, size, protection);
    }
    let memory = Memory::anonymous(room(size), protection, !source.private)
        .map_err(|error| no_memory("the memory", size, error))?;
    Ok(Lent { vaddr: memory.address(), size, _memory: Some(memory), _file: None })
}

/// How many bytes of a file are meant.
fn size_in_file(source: &Source, path: &Path, file: &File) -> Result<u64, Failure> {
    let page = rustix::param::page_size() as u64;
    if !source.offset.is_multiple_of(page) {
        return Err(Failure::Usage(format!("--offset is no multiple of the page size, {page}")));
    }
    if let Some(size) = source.size {
        return Ok(size);
    }
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    match length.saturating_sub(source.offset).checked_next_multiple_of(page) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(Failure::Usage(format!(
            "{} has no bytes from offset {:#x}: make it longer (truncate -s SIZE), or give --size",
            path.display(),
            source.offset
        ))),
    }
}

fn memfd(size: u64) -> Result<File, Errno> {
    let file = rustix::fs::memfd_create("ioasidctl", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, size)?;
    Ok(file.into())
}

fn lend_file(
    name: &str,
    file: File,
    source: &Source,
    size: u64,
    protection: Protection,
) -> Result<Lent, Failure> {
    let memory = Memory::of_file(&file, source.offset, room(size), protection, !source.private)
        .map_err(|error| no_memory(name, size, error))?;
    Ok(Lent { vaddr: memory.address(), size, _memory: Some(memory), _file: Some(file) })
}

/// What to map for so many bytes: at least one, so that also wrong sizes can be sent.
fn room(size: u64) -> usize {
    usize::try_from(size.max(1)).unwrap_or(usize::MAX)
}

fn no_memory(what: &str, size: u64, error: Errno) -> Failure {
    Failure::Host(format!(
        "{what} cannot be mapped ({size:#x} bytes): {}: {}",
        errno::name(error),
        errno::sentence(error)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            file: None,
            offset: 0,
            memfd: false,
            anonymous: false,
            private: false,
            vaddr: None,
            size: None,
            protection: None,
        }
    }

    #[test]
    fn a_file_is_lent_to_the_end_of_its_last_page() {
        let page = rustix::param::page_size() as u64;
        let path = std::env::temp_dir().join(format!("ioasidctl-lend-{}", std::process::id()));
        std::fs::write(&path, vec![1; page as usize + 5]).unwrap();
        let whole = lend(&Source { file: Some(path.clone()), ..source() }, true).unwrap();
        assert_eq!(whole.size, 2 * page);
        assert_eq!(whole.vaddr % page, 0);
        let rest = Source { file: Some(path.clone()), offset: page, ..source() };
        assert_eq!(lend(&rest, true).unwrap().size, page);
        let beyond = Source { file: Some(path.clone()), offset: 2 * page, ..source() };
        assert_eq!(lend(&beyond, true).err().unwrap().status(), 2);
        let odd = Source { file: Some(path.clone()), offset: 1, ..source() };
        assert_eq!(lend(&odd, true).err().unwrap().status(), 2);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_address_is_passed_on_as_it_is() {
        let given = Source { vaddr: Some(0xdead), size: Some(7), ..source() };
        let lent = lend(&given, true).unwrap();
        assert_eq!((lent.vaddr, lent.size), (0xdead, 7));
    }

    #[test]
    fn memory_needs_a_source_and_a_size() {
        assert_eq!(lend(&source(), true).err().unwrap().status(), 2);
        let sized = Source { size: Some(4096), ..source() };
        assert!(lend(&sized, true).err().unwrap().to_string().contains("which memory"));
        let unsized_memfd = Source { memfd: true, ..source() };
        assert!(lend(&unsized_memfd, true).err().unwrap().to_string().contains("--size"));
        let memfd = Source { memfd: true, size: Some(4096), ..source() };
        assert_ne!(lend(&memfd, true).unwrap().vaddr, 0);
        let shared = Source { anonymous: true, size: Some(4096), ..source() };
        assert_ne!(lend(&shared, true).unwrap().vaddr, 0);
    }
}

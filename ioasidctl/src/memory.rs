//! The memory that `map` and `register` lend to devices: from the command line to an address, or to
//! the descriptor of a file.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use rustix::io::Errno;

use crate::cli::{ByDescriptor, Source};
use crate::node::open_file;
use crate::report::Failure;
use crate::sys::{self, Memory, Protection};
use ioasid_client::errno;

/// An address and a size for the node, and what has to live while they are used.
#[derive(Debug)]
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
    let protection = protection(source, device_writes);
    if let Some(path) = &source.file {
        // A private copy can be written without the right to write the file.
        let file = open_file(path, protection.write && !source.private)?;
        let size = size_in_file(source, path, &file)?;
        return lend_file(&path.display().to_string(), file, source, size, protection);
    }
    if !(source.memfd || source.anonymous || source.private || source.vaddr.is_some()) {
        return Err(Failure::Usage(
            "say which memory: --file, --memfd, --anonymous, --private or --vaddr (map also takes \
             --map-file and --map-fd)"
                .into(),
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

fn protection(source: &Source, device_writes: bool) -> Protection {
    match source.protection.as_deref() {
        Some(access) => Protection { read: access.contains('r'), write: access.contains('w') },
        None => Protection { read: true, write: device_writes },
    }
}

/// The descriptor of a file and a size for the node.
#[derive(Debug)]
pub(crate) struct Named {
    /// The descriptor.
    pub(crate) fd: RawFd,
    /// How many bytes.
    pub(crate) size: u64,
    /// The file, if it was opened here.
    _file: Option<File>,
}

/// Names the file that the command line gives by its descriptor, if it gives one. Whether it is a
/// file that can be mapped, and from this offset, is left to the node.
///
/// Errors: [`Failure::Usage`] when the size is neither said nor the file's; [`Failure::Host`] when
/// the file cannot be opened.
pub(crate) fn name(
    named: &ByDescriptor,
    source: &Source,
    device_writes: bool,
) -> Result<Option<Named>, Failure> {
    if let Some(fd) = named.map_fd {
        let length = || {
            let attributes = sys::inherited(fd).and_then(rustix::fs::fstat);
            let attributes = attributes.map_err(|error| {
                let (name, sentence) = (errno::name(error), errno::sentence(error));
                Failure::Host(format!("descriptor {fd}: {name}: {sentence}"))
            })?;
            Ok(attributes.st_size as u64)
        };
        let size = size(source, &format!("the file of descriptor {fd}"), length)?;
        return Ok(Some(Named { fd, size, _file: None }));
    }
    let Some(path) = &named.map_file else { return Ok(None) };
    let file = open_file(path, protection(source, device_writes).write)?;
    let size = size(source, &path.display().to_string(), || Ok(length(&file)))?;
    Ok(Some(Named { fd: file.as_raw_fd(), size, _file: Some(file) }))
}

/// How many bytes of a file are to be mapped here.
fn size_in_file(source: &Source, path: &Path, file: &File) -> Result<u64, Failure> {
    let page = rustix::param::page_size() as u64;
    if !source.offset.is_multiple_of(page) {
        return Err(Failure::Usage(format!("--offset is no multiple of the page size, {page}")));
    }
    size(source, &path.display().to_string(), || Ok(length(file)))
}

fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len())
}

/// How many bytes of a file are meant.
fn size(
    source: &Source,
    name: &str,
    length: impl FnOnce() -> Result<u64, Failure>,
) -> Result<u64, Failure> {
    if let Some(size) = source.size {
        return Ok(size);
    }
    let page = rustix::param::page_size() as u64;
    match length()?.saturating_sub(source.offset).checked_next_multiple_of(page) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(Failure::Usage(format!(
            "{name} has no bytes from offset {:#x}: make it longer (truncate -s SIZE), or give \
             --size",
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
        Source::default()
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
    fn a_file_is_named_to_the_end_of_its_last_page_or_as_it_is_said() {
        let page = rustix::param::page_size() as u64;
        let path = std::env::temp_dir().join(format!("ioasidctl-name-{}", std::process::id()));
        std::fs::write(&path, vec![1; page as usize + 5]).unwrap();
        let by_path = ByDescriptor { map_file: Some(path.clone()), ..ByDescriptor::default() };
        let whole = name(&by_path, &source(), true).unwrap().unwrap();
        assert_eq!(whole.size, 2 * page);
        let by_number = ByDescriptor { map_fd: Some(whole.fd), ..ByDescriptor::default() };
        let rest = Source { offset: page, ..source() };
        assert_eq!(name(&by_number, &rest, true).unwrap().unwrap().size, page);
        let beyond = Source { offset: 2 * page, ..source() };
        assert_eq!(name(&by_number, &beyond, true).unwrap_err().status(), 2);
        // What the node has to refuse is passed on.
        let odd = Source { offset: 1, size: Some(7), ..source() };
        assert_eq!(name(&by_path, &odd, true).unwrap().unwrap().size, 7);
        let closed = ByDescriptor { map_fd: Some(1 << 20), ..ByDescriptor::default() };
        assert_eq!(name(&closed, &source(), true).unwrap_err().status(), 3);
        assert_eq!(name(&closed, &odd, true).unwrap().unwrap().fd, 1 << 20);
        assert!(name(&ByDescriptor::default(), &source(), true).unwrap().is_none());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_is_opened_for_what_devices_shall_do_unless_it_is_said() {
        let named = |protection: Option<&str>, writes| {
            let by_path =
                ByDescriptor { map_file: Some("/proc/self/exe".into()), ..Default::default() };
            let source = Source { protection: protection.map(str::to_owned), ..source() };
            name(&by_path, &source, writes)
        };
        // A running program cannot be opened for writing.
        assert!(named(None, false).is_ok());
        assert_eq!(named(None, true).unwrap_err().status(), 3);
        assert!(named(Some("r"), true).is_ok());
        assert_eq!(named(Some("rw"), false).unwrap_err().status(), 3);
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

//! /proc/PID/maps, the kernel's list of what is mapped where in a process.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::caller::Tid;

/// One line of maps: one mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vma {
    pub(super) range: Range<u64>,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) shared: bool,
    /// Where the mapping begins in its file, bytes.
    pub(super) offset: u64,
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    /// As the kernel prints it: a newline in it appears as `\012`.
    pub(super) path: Vec<u8>,
}

impl Vma {
    /// The mapping's name under /proc/PID/map_files.
    pub(super) fn file_name(&self) -> String {
        format!("{:x}-{:x}", self.range.start, self.range.end)
    }

    /// What the mapping is, in a few words, for messages.
    pub(super) fn describe(&self) -> String {
        let kind = if self.shared { "shared" } else { "private" };
        let path = match self.path.as_slice() {
            [] => "anonymous".into(),
            path => String::from_utf8_lossy(path),
        };
        format!("{kind} memory at {:#x}-{:#x} ({path})", self.range.start, self.range.end)
    }
}

/// The list of one caller, to be read more than once.
pub(super) struct Maps {
    reader: BufReader<Growing>,
    /// It stands at the beginning.
    is_fresh: bool,
}

/// Reads little at first: the kernel writes no more lines than it is asked for, and that takes most
/// of the time.
struct Growing {
    file: File,
    chunk: usize,
}

impl Growing {
    const FIRST: usize = 512;
}

impl Read for Growing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.chunk.min(buffer.len());
        self.chunk = self.chunk.saturating_mul(2);
        self.file.read(&mut buffer[..most])
    }
}

impl Seek for Growing {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.chunk = Self::FIRST;
        self.file.seek(position)
    }
}

impl Maps {
    pub(super) fn open(tid: Tid) -> io::Result<Self> {
        let file = File::open(format!("/proc/{}/maps", tid.get()))?;
        // The kernel gives no more than a page at a time.
        let reader = Growing { file, chunk: Growing::FIRST };
        let reader = BufReader::with_capacity(rustix::param::page_size(), reader);
        Ok(Self { reader, is_fresh: true })
    }

    /// The mappings that overlap `range` now, in order of address.
    pub(super) fn overlapping(&mut self, range: &Range<u64>) -> io::Result<Vec<Vma>> {
        if !std::mem::take(&mut self.is_fresh) {
            self.reader.rewind()?;
        }
        let mut found = Vec::new();
        let mut line = Vec::new();
        loop {
            line.clear();
            if self.reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(found);
            }
            let vma = parse(line.trim_ascii_end()).ok_or(io::ErrorKind::InvalidData)?;
            if vma.range.start >= range.end {
                return Ok(found);
            }
            if vma.range.end > range.start {
                found.push(vma);
            }
        }
    }
}

/// Parses `7f00-7f10 rw-s 00001000 00:01 1026 /memfd:x (deleted)`.
fn parse(line: &[u8]) -> Option<Vma> {
    let mut rest = line;
    let range = field(&mut rest)?;
    let (start, end) = range.split_once('-')?;
    let permissions = field(&mut rest)?.as_bytes();
    let &[read, write, _, share] = permissions else { return None };
    let offset = hex(field(&mut rest)?)?;
    let (major, minor) = field(&mut rest)?.split_once(':')?;
    let inode = field(&mut rest)?.parse().ok()?;
    Some(Vma {
        range: hex(start)?..hex(end)?,
        readable: read == b'r',
        writable: write == b'w',
        shared: share == b's',
        offset,
        device: (hex(major)?.try_into().ok()?, hex(minor)?.try_into().ok()?),
        inode,
        path: rest.trim_ascii_start().to_vec(),
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let line = rest.trim_ascii_start();
    let end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let (field, tail) = line.split_at(end);
    *rest = tail;
    str::from_utf8(field).ok().filter(|field| !field.is_empty())
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_path_of_several_words() {
        let vma =
            parse(b"7f0000001000-7f0000003000 rw-s 00002000 00:01 1026   /memfd:a b (deleted)");
        let vma = vma.expect("well-formed");
        assert_eq!(vma.range, 0x7f00_0000_1000..0x7f00_0000_3000);
        assert!(vma.readable && vma.writable && vma.shared);
        assert_eq!((vma.offset, vma.device, vma.inode), (0x2000, (0, 1), 1026));
        assert_eq!(vma.path, b"/memfd:a b (deleted)");
        assert_eq!(vma.file_name(), "7f0000001000-7f0000003000");
    }

    #[test]
    fn an_anonymous_line() {
        let vma = parse(b"7f0000001000-7f0000003000 r--p 00000000 00:00 0 ").expect("well-formed");
        assert!(!vma.shared && !vma.writable);
        assert_eq!(vma.path, b"");
    }

    #[test]
    fn garbage_is_refused() {
        for line in
            ["", "x", "1-2", "1-2 rw-s", "1-2 rw 0 0:0 0", "1-2 rw-s 0 0 0", "g-h rw-s 0 0:0 0"]
        {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn our_own_maps_parse() {
        let tid = Tid::new(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
        let mut maps = Maps::open(tid.expect("a thread")).expect("readable");
        for _ in 0..2 {
            let all = maps.overlapping(&(0..u64::MAX)).expect("readable");
            assert!(all.iter().any(|vma| vma.path == b"[stack]"), "{all:?}");
        }
    }
}

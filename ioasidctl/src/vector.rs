//! `vector`: lines of text as operations of IOASID_VECTOR.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use ioasid_uapi::{MAP_FILE, MAP_READ, MAP_WRITE, OP_MAP, OP_UNMAP, Op, UNMAP_ALL, VECTOR_MAX};
use serde_json::json;

use crate::commands::with_outputs;
use crate::node::{self, Ioasid, Node, open_file};
use crate::number::number;
use crate::report::{Failure, Output};

type Result<T> = std::result::Result<T, Failure>;

/// Has the node do what the lines of a file say.
pub(crate) fn run(node: &Node, ioasid: Ioasid, path: &Path) -> Result<Output> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = read.map_err(|error| {
        Failure::Host(format!("{}: {}", path.display(), node::plain_error(&error)))
    })?;
    let mut files = Files::default();
    let lines = parse(&text, &mut |path, write| files.descriptor(path, write))?;
    let (ops, numbers): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
    if ops.is_empty() {
        return Err(Failure::Usage(format!("{} has no operations", path.display())));
    }
    let mut total = 0;
    for part in ops.chunks(VECTOR_MAX as usize) {
        let (done, result) = node.vector(ioasid, part);
        total += done as usize;
        if let Err(failure) = result {
            return Err(with_outputs(at_line(failure, numbers.get(total)), done_so_far(total)));
        }
    }
    Ok(done_so_far(total))
}

fn done_so_far(done: usize) -> Output {
    Output::line(done, json!({ "done": done }))
}

/// Adds the line of the operation that was refused.
fn at_line(mut failure: Failure, line: Option<&usize>) -> Failure {
    if let (Failure::Refused(refusal), Some(line)) = (&mut failure, line)
        && let Some(text) = &mut refusal.explanation
    {
        *text = format!("line {line}: {text}");
    }
    failure
}

/// The files that operations name, open while they are done.
#[derive(Debug, Default)]
struct Files(BTreeMap<(PathBuf, bool), File>);

impl Files {
    fn descriptor(&mut self, path: &str, write: bool) -> Result<RawFd> {
        let key = (PathBuf::from(path), write);
        if let Some(file) = self.0.get(&key) {
            return Ok(file.as_raw_fd());
        }
        let file = open_file(&key.0, write)?;
        let fd = file.as_raw_fd();
        self.0.insert(key, file);
        Ok(fd)
    }
}

/// The operations with the numbers of their lines. `open` gives the descriptor of a file.
fn parse(
    text: &str,
    open: &mut dyn FnMut(&str, bool) -> Result<RawFd>,
) -> Result<Vec<(Op, usize)>> {
    let mut ops = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let op = operation(line, open).map_err(|failure| {
            let say = |text: &str| format!("line {}: {text}", index + 1);
            match failure {
                Failure::Usage(text) => Failure::Usage(say(&text)),
                Failure::Host(text) => Failure::Host(say(&text)),
                other => other,
            }
        })?;
        ops.push((op, index + 1));
    }
    Ok(ops)
}

const FORMS: &str = "map [r|w|rw] IOVA SIZE ADDRESS, map-file [r|w|rw] IOVA SIZE OFFSET PATH, \
                     unmap IOVA SIZE, unmap-all";

fn operation(line: &str, open: &mut dyn FnMut(&str, bool) -> Result<RawFd>) -> Result<Op> {
    let (name, mut rest) = word(line);
    let no_form = || Failure::Usage(format!("`{line}` is none of: {FORMS}"));
    if name == "unmap-all" && rest.is_empty() {
        return Ok(Op { op: OP_UNMAP, flags: UNMAP_ALL, ..Op::default() });
    }
    let mut op = match name {
        "map" => Op { op: OP_MAP, flags: access(&mut rest), ..Op::default() },
        "map-file" => Op { op: OP_MAP, flags: access(&mut rest) | MAP_FILE, ..Op::default() },
        "unmap" => Op { op: OP_UNMAP, ..Op::default() },
        _ => return Err(no_form()),
    };
    let mut value = || {
        let (text, after) = word(rest);
        rest = after;
        if text.is_empty() { Err(no_form()) } else { number(text).map_err(Failure::Usage) }
    };
    (op.iova, op.size) = (value()?, value()?);
    if op.op == OP_MAP {
        op.vaddr = value()?;
    }
    let is_file = op.flags & MAP_FILE != 0;
    match (is_file, rest) {
        (true, path) if !path.is_empty() && op.op == OP_MAP => {
            op.fd = open(path, op.flags & MAP_WRITE != 0)?;
            Ok(op)
        }
        (false, "") => Ok(op),
        _ => Err(no_form()),
    }
}

/// The first word, and what is behind it.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    (word, rest.trim_start())
}

/// What devices may do, if the next word says it.
fn access(rest: &mut &str) -> u32 {
    let (first, after) = word(rest);
    let flags = match first {
        "r" => MAP_READ,
        "w" => MAP_WRITE,
        "rw" => MAP_READ | MAP_WRITE,
        _ => return MAP_READ | MAP_WRITE,
    };
    *rest = after;
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_operations() {
        let mut opened = Vec::new();
        let text = "# first\n\nmap 0x1000 4K 64K\n  map r 0 4K 0\nmap-file w 2M 8K 4K /a b\n\
                    unmap\t0x1000 4K\nunmap-all\n";
        let ops = parse(text, &mut |path, write| {
            opened.push((path.to_owned(), write));
            Ok(9)
        });
        let both = MAP_READ | MAP_WRITE;
        let map = Op { op: OP_MAP, ..Op::default() };
        let unmap = Op { op: OP_UNMAP, ..Op::default() };
        assert_eq!(
            ops.unwrap(),
            [
                (Op { flags: both, iova: 4096, size: 4096, vaddr: 64 << 10, ..map }, 3),
                (Op { flags: MAP_READ, size: 4096, ..map }, 4),
                (
                    Op {
                        flags: MAP_WRITE | MAP_FILE,
                        fd: 9,
                        iova: 2 << 20,
                        size: 8192,
                        vaddr: 4096,
                        ..map
                    },
                    5
                ),
                (Op { iova: 4096, size: 4096, ..unmap }, 6),
                (Op { flags: UNMAP_ALL, ..unmap }, 7),
            ]
        );
        assert_eq!(opened, [("/a b".to_owned(), true)]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (line, reason) in [
            ("fly 0 4K", "is none of"),
            ("map 0 4K", "is none of"),
            ("map 0 4K 0 0", "is none of"),
            ("map rx 0 4K 0", "no number"),
            ("map-file 0 4K 0", "is none of"),
            ("unmap", "is none of"),
            ("unmap-all 0", "is none of"),
        ] {
            let failure = parse(&format!("\n{line}"), &mut |_, _| Ok(9)).unwrap_err();
            let text = failure.to_string();
            assert!(text.starts_with("line 2: ") && text.contains(reason), "{text}");
            assert_eq!(failure.status(), 2);
        }
        let mut files = Files::default();
        let missing = parse("map-file 0 4K 0 /no/such", &mut |path, w| files.descriptor(path, w));
        assert_eq!(missing.unwrap_err().status(), 3);
    }

    #[test]
    fn a_file_is_opened_once_for_each_right() {
        let mut files = Files::default();
        let read = files.descriptor("/proc/self/exe", false).unwrap();
        assert_eq!(files.descriptor("/proc/self/exe", false).unwrap(), read);
        assert_eq!(files.0.len(), 1);
    }
}

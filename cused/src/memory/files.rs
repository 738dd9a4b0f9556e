//! Files that are open here because memory of theirs is mapped, and which of them a descriptor of a
//! program stands for.
//!
//! A program that maps one piece of a file after the other (a VMM whose guest has an IOMMU of its own
//! does, with the file that is the guest's memory) names the same descriptor each time. For as long as
//! any piece is mapped, the daemon has the file open and a window of it. Whether the descriptor still
//! stands for the same open file, the kernel says in one call (kcmp), and then the file need
//! neither be opened nor mapped again.
//!
//! Only the same *open* file is shared. That two are the same file could not be told: among the files
//! that are mounted nowhere, a System V segment can have the device and inode number of a memfd. And
//! with an open file come the rights that it was opened with, which the kernel compared when
//! it was mapped first. Of what else it compares, seals alone change afterwards, and are looked at
//! each time. So files that are found at an address, which are opened anew for each mapping, are not
//! shared, nor are files on disks.
//!
//! Nothing here keeps a file open, or a window: those do that have mapped it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::fs::Stat;
use rustix::io::Errno;

use super::{Rights, Window, filesystem};
use crate::caller::Tid;
use crate::process::Process;
use crate::system;

/// A file that is open here.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    /// What offset and length of an mmap of it must be a multiple of, bytes.
    pub(super) alignment: u64,
    rights: Rights,
    /// The window that was made last.
    window: Mutex<Option<Arc<Window>>>,
}

impl OpenFile {
    /// Takes in a file of an accepted file system, to be mapped with these rights.
    pub(super) fn new(file: File, attributes: &Stat, rights: Rights) -> Self {
        let page = rustix::param::page_size() as u64;
        // hugetlbfs gives its page size as the block size; others give a size that needs no heed.
        let block = attributes.st_blksize as u64;
        let alignment = if block > page && filesystem::is_hugetlb(&file) { block } else { page };
        Self { file, alignment, rights, window: Mutex::default() }
    }

    /// A window that shows a range of the file, which has `size` bytes: of exactly this range if
    /// nothing else is mapped.
    pub(super) fn window(&self, range: Range<u64>, size: u64) -> Result<Arc<Window>, Errno> {
        let last = self.window.lock().clone();
        if let Some(window) = last.as_ref().filter(|window| window.shows(&range)) {
            return Ok(Arc::clone(window));
        }
        let whole = last.and_then(|_| Window::whole(self, size, self.alignment, self.rights).ok());
        let window = match whole.filter(|window| window.shows(&range)) {
            Some(window) => window,
            None => self.passing(range)?,
        };
        let window = Arc::new(window);
        *self.window.lock() = Some(Arc::clone(&window));
        Ok(window)
    }

    /// A window of exactly this range, for who asks.
    pub(super) fn passing(&self, range: Range<u64>) -> Result<Window, Errno> {
        Window::new(self, range, self.alignment, self.rights)
    }

    /// Lets go of the window that others could share.
    pub(super) fn settle(&self) {
        self.window.lock().take();
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The process by its serial number, its descriptor, and what devices may do.
type Name = (u64, i32, Rights);

/// The files that the programs of one open of the node have named by descriptor.
#[derive(Debug, Default)]
pub struct Files(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    files: FxHashMap<Name, Weak<OpenFile>>,
    /// How many there may be before those are looked for that mean nothing any more.
    enough: usize,
}

impl Files {
    /// The file that descriptor `fd` of a thread stands for, if it is mapped already and may be so
    /// once more, and its attributes.
    pub(super) fn find(
        &self,
        (process, tid): (&Process, Tid),
        fd: i32,
        rights: Rights,
    ) -> Option<(Arc<OpenFile>, Stat)> {
        let named = self.0.lock().files.get(&(process.serial(), fd, rights)).cloned();
        let file = named.and_then(|named| named.upgrade())?;
        // In this order: the thread that was asked is then one of this process.
        if !system::is_same_file(&file, tid, fd) || !process.is_alive() {
            return None;
        }
        // What is sealed is mapped anew, for the kernel to say what is wrong with that.
        let (attributes, seals) = filesystem::memory_attributes(&file)?;
        rights.are_left_by(seals).then_some((file, attributes))
    }

    /// Remembers what a descriptor of a process stands for.
    pub(super) fn remember(&self, process: &Process, fd: i32, file: &Arc<OpenFile>) {
        const FEW: usize = 64;
        let mut names = self.0.lock();
        if names.files.len() >= names.enough {
            names.files.retain(|_, file| file.strong_count() > 0);
            names.enough = FEW.max(2 * names.files.len());
        }
        names.files.insert((process.serial(), fd, file.rights), Arc::downgrade(file));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::FileExt as _;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;
    use crate::failure::Failure;
    use crate::memory::resolve::{FileId, Resolver};
    use crate::memory::{Backing, Reach};
    use crate::process::Processes;

    const PAGE: u64 = 4096;

    /// A program that maps pieces of files: ourselves.
    struct Program {
        process: Arc<Process>,
        tid: Tid,
        files: Files,
    }

    impl Program {
        fn new() -> Self {
            let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
            let tid = Tid::new(tid).expect("a thread");
            let process = Processes::default().of(tid).expect("ourselves");
            Self { process, tid, files: Files::default() }
        }

        fn map(&self, file: impl AsFd, page: u64, rights: Rights) -> Result<Backing, Failure> {
            let resolver = Resolver { tid: self.tid, process: &self.process, rights, devices: &[] };
            let fd = file.as_fd().as_raw_fd();
            let mapped = resolver.file(&self.files, fd, page * PAGE, PAGE);
            mapped.map(|(backing, _): (_, FileId)| backing)
        }

        fn must_map(&self, file: impl AsFd, page: u64) -> Backing {
            self.map(file, page, Rights::ReadWrite).expect("can be mapped")
        }
    }

    /// A memfd whose pages are full of their number.
    fn memfd(pages: u8) -> File {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(c"files-test", flags).expect("memfd"));
        for page in 0..pages {
            file.write_all_at(&[page; PAGE as usize], u64::from(page) * PAGE).expect("memory");
        }
        file
    }

    /// Where a page is in the daemon, and the first byte of it.
    fn look(backing: &Backing) -> (u64, u8) {
        let (mut address, mut byte) = (0, [0]);
        let visited = backing.visit(0..PAGE, PAGE, |_, reach| {
            let Reach::Here(view) = reach else { panic!("a file is reached here") };
            address = view.address();
            view.read(&mut byte)
        });
        visited.expect("memory");
        (address, byte[0])
    }

    #[test]
    fn pieces_of_a_file_share_a_window_once_there_are_several() {
        let (program, file) = (Program::new(), memfd(8));
        let first = program.must_map(&file, 3);
        let (second, third) = (program.must_map(&file, 5), program.must_map(&file, 1));
        assert_eq!(look(&first).1, 3);
        let ((at_second, five), (at_third, one)) = (look(&second), look(&third));
        assert_eq!((five, one), (5, 1));
        assert_eq!(at_second, at_third + 4 * PAGE, "of one window");
        // It is there for as long as anything of the file is mapped.
        drop((second, third));
        assert_eq!(look(&program.must_map(&file, 1)), (at_third, 1));
        // What the file got since is not in it.
        file.write_all_at(&[8; PAGE as usize], 8 * PAGE).expect("memory");
        assert_eq!(look(&program.must_map(&file, 8)).1, 8);
    }

    #[test]
    fn nothing_of_a_file_is_left_when_none_of_it_is_mapped() {
        let (program, file) = (Program::new(), memfd(8));
        let pieces = [0, 7, 4].map(|page| program.must_map(&file, page));
        fcntl_add_seals(&file, SealFlags::WRITE).expect_err("it is mapped for writing");
        drop(pieces);
        fcntl_add_seals(&file, SealFlags::WRITE).expect("nothing is mapped");
        assert!(program.map(&file, 0, Rights::ReadWrite).is_err());
        assert_eq!(look(&program.map(&file, 2, Rights::ReadOnly).expect("for reading")).1, 2);
    }

    #[test]
    fn a_seal_is_heeded_though_a_window_is_there() {
        let (program, file) = (Program::new(), memfd(8));
        let _pieces = [0, 7].map(|page| program.must_map(&file, page));
        fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).expect("a seal for what comes");
        let refused = program.map(&file, 1, Rights::ReadWrite).expect_err("sealed");
        assert_eq!(refused.errno, Errno::PERM);
        assert_eq!(look(&program.map(&file, 1, Rights::ReadOnly).expect("for reading")).1, 1);
    }

    #[test]
    fn a_window_does_not_hide_the_end_of_its_file() {
        let (program, file) = (Program::new(), memfd(8));
        let pieces = [0, 7].map(|page| program.must_map(&file, page));
        ftruncate(&file, 4 * PAGE).expect("cut short");
        let refused = program.map(&file, 4, Rights::ReadWrite).expect_err("behind the end");
        assert_eq!(refused.errno, Errno::FAULT);
        assert_eq!(look(&program.must_map(&file, 3)).1, 3);
        assert_eq!(look(&pieces[0]).1, 0);
    }

    #[test]
    fn a_descriptor_that_stands_for_another_file_now_is_not_taken_for_the_old_one() {
        let (program, file, other) = (Program::new(), memfd(8), memfd(0));
        let _pieces = [0, 7].map(|page| program.must_map(&file, page));
        other.write_all_at(&[99; 8 * PAGE as usize], 0).expect("memory");
        let mut fd = std::os::fd::OwnedFd::from(file);
        rustix::io::dup2(&other, &mut fd).expect("dup2");
        assert_eq!(look(&program.must_map(&fd, 1)).1, 99);
    }

    #[test]
    fn files_that_are_not_mapped_any_more_are_forgotten() {
        let (program, mut kept) = (Program::new(), Vec::new());
        for fd in 0..1000 {
            let file = memfd(0);
            let attributes = rustix::fs::fstat(&file).expect("attributes");
            let file = Arc::new(OpenFile::new(file, &attributes, Rights::ReadWrite));
            program.files.remember(&program.process, fd, &file);
            kept.extend((fd % 100 == 0).then_some((fd, file)));
        }
        let names = program.files.0.lock();
        assert!(names.files.len() <= 64);
        for (fd, file) in kept {
            let known = &names.files[&(program.process.serial(), fd, Rights::ReadWrite)];
            assert!(Arc::ptr_eq(&file, &known.upgrade().expect("mapped")));
        }
    }
}

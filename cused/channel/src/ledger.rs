//! What a successor of this process has to know beyond the requests in the slots: which node it is,
//! which files are open, who sleeps in poll, which reads are parked.
//!
//! Owns the words in front of the slots. They are notes and nothing that this process relies on: it
//! keeps what it needs in memory of its own. Each note is written before what it tells of is known to
//! the kernel, and erased after that has ended, each with one store to the word that makes it valid.
//! So whenever the process dies, the notes tell of all that there is, and perhaps of a little more: of
//! requests that have been answered, which the kernel is asked about ([`Link::is_waiting`]), and of
//! files whose OPEN or RELEASE is then in a slot.
//!
//! [`Link::is_waiting`]: crate::answer::Link::is_waiting

use std::collections::HashMap;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::slots::Region;

/// Of another layout than ours, a file is left alone: `cusechan` and a version.
const MAGIC: u64 = u64::from_le_bytes(*b"cusechan");
const VERSION: u64 = 1;

/// Most files of the node that can be open at a time.
const MAX_HANDLES: usize = 1 << 20;
/// Most reads that can be parked at a time.
const MAX_PARKED: usize = 1 << 14;

/// One open file: its handle, and the poll handle of who sleeps on it (0 if nobody does).
const HANDLE_WORDS: usize = 2;
/// One parked read: its unique, the length of its message in bytes, and the message.
const PARKED_WORDS: usize = 16;
/// Longest message of a parked read.
pub(crate) const PARKED_MESSAGE: usize = (PARKED_WORDS - 2) * size_of::<u64>();

/// Where each note is.
mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const KIND: usize = 2;
    pub(super) const MODE: usize = 3;
    pub(super) const UID: usize = 4;
    pub(super) const GID: usize = 5;
    pub(super) const CREATED: usize = 6;
    pub(super) const CREATED_DEVICE: usize = 7;
    pub(super) const CREATED_INODE: usize = 8;
    /// Length of the node's path, bytes.
    pub(super) const PATH_LENGTH: usize = 9;
    /// How many places for open files, and for parked reads, have ever been used.
    pub(super) const HANDLES_USED: usize = 10;
    pub(super) const PARKED_USED: usize = 11;
    pub(super) const PATH: usize = 512;
    pub(super) const HANDLES: usize = 1024;
    pub(super) const PARKED: usize = HANDLES + super::MAX_HANDLES * super::HANDLE_WORDS;
    pub(super) const END: usize = PARKED + super::MAX_PARKED * super::PARKED_WORDS;
}

/// How many words there are.
pub(crate) const NOTES_WORDS: usize = word::END;

/// Longest path of a node, bytes.
const LONGEST_PATH: usize = (word::HANDLES - word::PATH) * size_of::<u64>();

/// Which node it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) kind: Kind,
    pub(crate) node: PathBuf,
}

/// How the node was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cuse,
    File {
        /// What it looks like.
        owner: Owner,
        /// Device and inode of the file that was created to be mounted over.
        created: Option<(u64, u64)>,
    },
}

/// Permission bits and owner of a FUSE file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Why a successor can do nothing with what was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is of no cuse-channel.
    Foreign,
    /// It is of one that wrote its notes otherwise.
    Version(u64),
}

/// The notes.
#[derive(Debug)]
pub(crate) struct Ledger {
    region: Arc<Region>,
    handles: Mutex<Handles>,
    parked: Mutex<Places>,
}

#[derive(Debug)]
struct Handles {
    /// The place of each open file.
    open: HashMap<u64, usize>,
    places: Places,
}

/// Which places of a table are free.
#[derive(Debug)]
struct Places {
    most: usize,
    used: usize,
    free: Vec<usize>,
}

impl Places {
    fn new(most: usize) -> Self {
        Self { most, used: 0, free: Vec::new() }
    }

    fn take(&mut self) -> Option<usize> {
        self.free.pop().or_else(|| {
            let next = self.used;
            (next < self.most).then(|| {
                self.used += 1;
                next
            })
        })
    }
}

impl Ledger {
    /// Those of a new node.
    ///
    /// Errors: ENAMETOOLONG if there is no room for its path.
    pub(crate) fn new(region: Arc<Region>, identity: &Identity) -> Result<Self, Errno> {
        let ledger = Self {
            region,
            handles: Mutex::new(Handles { open: HashMap::new(), places: Places::new(MAX_HANDLES) }),
            parked: Mutex::new(Places::new(MAX_PARKED)),
        };
        ledger.introduce(identity)?;
        Ok(ledger)
    }

    /// Those of a predecessor.
    pub(crate) fn adopt(region: Arc<Region>) -> Result<(Self, Identity), Unreadable> {
        let notes = region.notes();
        if load(&notes[word::MAGIC]) != MAGIC {
            return Err(Unreadable::Foreign);
        }
        let version = load(&notes[word::VERSION]);
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        let identity = read_identity(notes).ok_or(Unreadable::Foreign)?;
        let (handles, parked) = (used_handles(notes), used_parked(notes));
        let mut open = HashMap::new();
        let mut places = Places { most: MAX_HANDLES, used: handles.len(), free: Vec::new() };
        for (place, cell) in handles.iter().enumerate() {
            match load(&cell[0]) {
                0 => places.free.push(place),
                handle => drop(open.insert(handle, place)),
            }
        }
        let is_free = |place: &usize| load(&parked[*place][0]) == 0;
        let free = (0..parked.len()).filter(is_free).collect();
        let parked = Places { most: MAX_PARKED, used: parked.len(), free };
        let handles = Mutex::new(Handles { open, places });
        Ok((Self { region, handles, parked: Mutex::new(parked) }, identity))
    }

    fn introduce(&self, identity: &Identity) -> Result<(), Errno> {
        let notes = self.region.notes();
        let path = identity.node.as_os_str().as_bytes();
        if path.len() > LONGEST_PATH {
            return Err(Errno::NAMETOOLONG);
        }
        put_bytes(&notes[word::PATH..word::HANDLES], path);
        store(&notes[word::PATH_LENGTH], path.len() as u64);
        let kind = match identity.kind {
            Kind::Cuse => 1,
            Kind::File { owner, created } => {
                self.note_owner(owner);
                store(&notes[word::CREATED], created.is_some().into());
                let (device, inode) = created.unwrap_or_default();
                store(&notes[word::CREATED_DEVICE], device);
                store(&notes[word::CREATED_INODE], inode);
                2
            }
        };
        store(&notes[word::KIND], kind);
        store(&notes[word::VERSION], VERSION);
        store(&notes[word::MAGIC], MAGIC);
        Ok(())
    }

    /// The file is seen to have these from now on.
    pub(crate) fn note_owner(&self, owner: Owner) {
        let notes = self.region.notes();
        store(&notes[word::MODE], owner.mode.into());
        store(&notes[word::UID], owner.uid.into());
        store(&notes[word::GID], owner.gid.into());
    }
}

/// Open files.
impl Ledger {
    /// A file is about to be open. Of one that is, nothing changes.
    ///
    /// Errors: ENFILE if there are too many.
    pub(crate) fn open(&self, handle: u64) -> Result<(), Errno> {
        let mut handles = self.handles();
        if handles.open.contains_key(&handle) {
            return Ok(());
        }
        let place = handles.places.take().ok_or(Errno::NFILE)?;
        handles.open.insert(handle, place);
        let cell = self.handle_cell(place);
        store(&cell[1], 0);
        store(&cell[0], handle);
        store(&self.region.notes()[word::HANDLES_USED], handles.places.used as u64);
        Ok(())
    }

    /// A file is open no more.
    pub(crate) fn closed(&self, handle: u64) {
        let mut handles = self.handles();
        if let Some(place) = handles.open.remove(&handle) {
            store(&self.handle_cell(place)[0], 0);
            handles.places.free.push(place);
        }
    }

    /// Somebody is about to sleep on a file.
    pub(crate) fn sleeps(&self, handle: u64, sleeper: u64) {
        if let Some(&place) = self.handles().open.get(&handle) {
            store(&self.handle_cell(place)[1], sleeper);
        }
    }

    /// The open files, which are open no more as far as the notes go.
    pub(crate) fn take_handles(&self) -> Vec<u64> {
        let handles: Vec<_> = self.handles().open.keys().copied().collect();
        handles.iter().for_each(|&handle| self.closed(handle));
        handles
    }

    /// Who may be asleep in poll.
    pub(crate) fn sleepers(&self) -> Vec<u64> {
        let handles = self.handles();
        let sleeper = |&place: &usize| load(&self.handle_cell(place)[1]);
        handles.open.values().map(sleeper).filter(|&sleeper| sleeper != 0).collect()
    }

    fn handle_cell(&self, place: usize) -> &[AtomicU64] {
        &self.region.notes()[word::HANDLES + place * HANDLE_WORDS..][..HANDLE_WORDS]
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parked reads.
impl Ledger {
    /// Notes a read, by its message of at most [`PARKED_MESSAGE`] bytes. Returns where.
    ///
    /// Errors: EBUSY if there are too many.
    pub(crate) fn park(&self, unique: u64, message: &[u8]) -> Result<usize, Errno> {
        let mut places = self.parked_places();
        let place = places.take().ok_or(Errno::BUSY)?;
        let cell = self.parked_cell(place);
        put_bytes(&cell[2..], message);
        store(&cell[1], message.len() as u64);
        store(&cell[0], unique);
        store(&self.region.notes()[word::PARKED_USED], places.used as u64);
        Ok(place)
    }

    /// The read that was noted at a place has been answered, or is in a slot.
    pub(crate) fn unpark(&self, place: usize) {
        let mut places = self.parked_places();
        store(&self.parked_cell(place)[0], 0);
        places.free.push(place);
    }

    /// Where reads are parked, with the unique and the message of each.
    pub(crate) fn parked(&self) -> Vec<(usize, u64, Vec<u8>)> {
        let cells = used_parked(self.region.notes()).iter().enumerate();
        cells
            .filter_map(|(place, cell)| {
                let unique = load(&cell[0]);
                let length = (load(&cell[1]) as usize).min(PARKED_MESSAGE);
                (unique != 0).then(|| (place, unique, take_bytes(&cell[2..], length)))
            })
            .collect()
    }

    fn parked_cell(&self, place: usize) -> &[AtomicU64] {
        &self.region.notes()[word::PARKED + place * PARKED_WORDS..][..PARKED_WORDS]
    }

    fn parked_places(&self) -> MutexGuard<'_, Places> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
}

fn used_handles(notes: &[AtomicU64]) -> &[[AtomicU64; HANDLE_WORDS]] {
    let used = (load(&notes[word::HANDLES_USED]) as usize).min(MAX_HANDLES);
    &notes[word::HANDLES..].as_chunks().0[..used]
}

fn used_parked(notes: &[AtomicU64]) -> &[[AtomicU64; PARKED_WORDS]] {
    let used = (load(&notes[word::PARKED_USED]) as usize).min(MAX_PARKED);
    &notes[word::PARKED..].as_chunks().0[..used]
}

fn read_identity(notes: &[AtomicU64]) -> Option<Identity> {
    let length = load(&notes[word::PATH_LENGTH]) as usize;
    if length > LONGEST_PATH {
        return None;
    }
    let path = take_bytes(&notes[word::PATH..word::HANDLES], length);
    let small = |at: usize| u32::try_from(load(&notes[at])).ok();
    let kind = match load(&notes[word::KIND]) {
        1 => Kind::Cuse,
        2 => {
            let (mode, uid, gid) = (small(word::MODE)?, small(word::UID)?, small(word::GID)?);
            let file = (load(&notes[word::CREATED_DEVICE]), load(&notes[word::CREATED_INODE]));
            let created = (load(&notes[word::CREATED]) != 0).then_some(file);
            Kind::File { owner: Owner { mode, uid, gid }, created }
        }
        _ => return None,
    };
    Some(Identity { kind, node: std::ffi::OsString::from_vec(path).into() })
}

fn put_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(size_of::<u64>())) {
        let mut padded = [0; size_of::<u64>()];
        padded[..chunk.len()].copy_from_slice(chunk);
        store(word, u64::from_ne_bytes(padded));
    }
}

fn take_bytes(words: &[AtomicU64], length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::with_capacity(length.next_multiple_of(size_of::<u64>()));
    for word in &words[..length.div_ceil(size_of::<u64>())] {
        bytes.extend(load(word).to_ne_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cuse() -> Identity {
        Identity { kind: Kind::Cuse, node: "/dev/ioasid".into() }
    }

    fn ledger(identity: &Identity) -> Ledger {
        Ledger::new(Arc::new(Region::new(2).unwrap()), identity).unwrap()
    }

    /// As a process sees it that takes over.
    fn successor(ledger: &Ledger) -> (Ledger, Identity) {
        let file = ledger.region.file().try_clone_to_owned().unwrap();
        Ledger::adopt(Arc::new(Region::adopt(file).unwrap())).unwrap()
    }

    #[test]
    fn a_successor_knows_which_node_it_is() {
        let owner = Owner { mode: 0o640, uid: 4, gid: u32::MAX };
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(LONGEST_PATH - 5)));
        for (created, node) in [(None, long), (Some((u64::MAX, 3)), "/tmp/an odd\nname".into())] {
            let file = Identity { kind: Kind::File { owner, created }, node };
            let ledger = ledger(&file);
            assert_eq!(successor(&ledger).1, file);
            let changed = Owner { mode: 0o600, ..owner };
            ledger.note_owner(changed);
            let kind = Kind::File { owner: changed, created };
            assert_eq!(successor(&ledger).1.kind, kind);
        }
        assert_eq!(successor(&ledger(&cuse())).1, cuse());
    }

    #[test]
    fn a_path_without_room_is_refused() {
        let node = PathBuf::from("x".repeat(LONGEST_PATH + 1));
        let region = Arc::new(Region::new(2).unwrap());
        let refused = Ledger::new(region, &Identity { node, ..cuse() }).unwrap_err();
        assert_eq!(refused, Errno::NAMETOOLONG);
    }

    #[test]
    fn notes_of_another_version_are_left_alone() {
        let ledger = ledger(&cuse());
        let adopt = || Ledger::adopt(Arc::clone(&ledger.region)).map(|(_, identity)| identity);
        store(&ledger.region.notes()[word::VERSION], 2);
        assert_eq!(adopt().unwrap_err(), Unreadable::Version(2));
        store(&ledger.region.notes()[word::MAGIC], 2);
        assert_eq!(adopt().unwrap_err(), Unreadable::Foreign);
        assert_eq!(load(&ledger.region.notes()[word::KIND]), 1, "nothing has changed");
    }

    #[test]
    fn a_successor_knows_which_files_are_open_and_who_sleeps() {
        let ledger = ledger(&cuse());
        for handle in [10, 12, 14, 12] {
            ledger.open(handle).unwrap();
        }
        ledger.sleeps(12, 77);
        ledger.sleeps(14, 78);
        ledger.sleeps(4711, 79);
        ledger.closed(14);
        let (successor, _) = successor(&ledger);
        assert_eq!(successor.sleepers(), [77]);
        // A place that was left is taken again, and has no sleeper then.
        successor.open(16).unwrap();
        assert_eq!(successor.sleepers(), [77]);
        assert_eq!(load(&successor.region.notes()[word::HANDLES_USED]), 3);
        let mut handles = successor.take_handles();
        handles.sort_unstable();
        assert_eq!(handles, [10, 12, 16]);
        assert_eq!(successor.take_handles(), []);
    }

    #[test]
    fn a_successor_finds_the_parked_reads() {
        let ledger = ledger(&cuse());
        let longest = [7; PARKED_MESSAGE];
        let places = [(4, &b"abc"[..]), (6, &longest), (8, b"")];
        let places = places.map(|(unique, message)| ledger.park(unique, message).unwrap());
        ledger.unpark(places[2]);
        let (successor, _) = successor(&ledger);
        let parked = successor.parked();
        assert_eq!(parked, [(places[0], 4, b"abc".to_vec()), (places[1], 6, longest.to_vec())]);
        assert_eq!(successor.park(10, b"").unwrap(), places[2], "the free place");
    }

    #[test]
    fn places_are_limited() {
        let ledger = ledger(&cuse());
        for unique in 0..MAX_PARKED as u64 {
            ledger.park(unique + 1, b"").unwrap();
        }
        assert_eq!(ledger.park(1, b"").unwrap_err(), Errno::BUSY);
        ledger.unpark(5);
        assert_eq!(ledger.park(1, b"").unwrap(), 5);
    }
}

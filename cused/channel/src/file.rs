//! Attributes of a FUSE file.
//!
//! Owns mode, owner and times, which live as long as the mount: chmod(1) and chown(1) work as they
//! do on a node in /dev. Who may change them the kernel decides (`default_permissions`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use crate::ledger::Owner;
use crate::wire::{self, Attr, AttrOut, SetattrIn};

/// The root's inode number, and the only one.
const ROOT_INODE: u64 = 1;
/// Seconds for which the kernel may believe the attributes: nobody but the kernel changes them.
const ATTRIBUTES_VALID: u64 = 3600;

/// What stat(2) says of the node.
#[derive(Debug)]
pub(crate) struct FileAttributes {
    attr: Mutex<Attr>,
}

impl FileAttributes {
    pub(crate) fn new(Owner { mode, uid, gid }: Owner) -> Self {
        let now = now();
        let attr = Attr {
            ino: ROOT_INODE,
            atime: now.as_secs(),
            mtime: now.as_secs(),
            ctime: now.as_secs(),
            atimensec: now.subsec_nanos(),
            mtimensec: now.subsec_nanos(),
            ctimensec: now.subsec_nanos(),
            mode: wire::S_IFREG | (mode & 0o7777),
            nlink: 1,
            uid,
            gid,
            blksize: 4096,
            ..Default::default()
        };
        Self { attr: Mutex::new(attr) }
    }

    /// Permission bits and owner.
    pub(crate) fn owner(&self) -> Owner {
        let Attr { mode, uid, gid, .. } = *self.lock();
        Owner { mode: mode & 0o7777, uid, gid }
    }

    /// Answer to GETATTR.
    pub(crate) fn get(&self) -> AttrOut {
        AttrOut { attr_valid: ATTRIBUTES_VALID, attr: *self.lock(), ..Default::default() }
    }

    /// Carries out SETATTR. Truncating to nothing is accepted, as O_TRUNC is on a device; any other
    /// size is EINVAL.
    pub(crate) fn set(&self, change: &SetattrIn) -> Result<AttrOut, Errno> {
        let asked = |bit| change.valid & bit != 0;
        if asked(wire::FATTR_SIZE) && change.size != 0 {
            return Err(Errno::INVAL);
        }
        let now = now();
        let mut attr = self.lock();
        if asked(wire::FATTR_MODE) {
            attr.mode = wire::S_IFREG | (change.mode & 0o7777);
        }
        if asked(wire::FATTR_UID) {
            attr.uid = change.uid;
        }
        if asked(wire::FATTR_GID) {
            attr.gid = change.gid;
        }
        if asked(wire::FATTR_ATIME_NOW) {
            (attr.atime, attr.atimensec) = (now.as_secs(), now.subsec_nanos());
        } else if asked(wire::FATTR_ATIME) {
            (attr.atime, attr.atimensec) = (change.atime, change.atimensec);
        }
        if asked(wire::FATTR_MTIME_NOW) {
            (attr.mtime, attr.mtimensec) = (now.as_secs(), now.subsec_nanos());
        } else if asked(wire::FATTR_MTIME) {
            (attr.mtime, attr.mtimensec) = (change.mtime, change.mtimensec);
        }
        (attr.ctime, attr.ctimensec) = (now.as_secs(), now.subsec_nanos());
        Ok(AttrOut { attr_valid: ATTRIBUTES_VALID, attr: *attr, ..Default::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Attr> {
        // Plain numbers are never left half changed.
        self.attr.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_and_owner_change_and_the_type_does_not() {
        let file = FileAttributes::new(Owner { mode: 0o600, uid: 1, gid: 2 });
        let change = SetattrIn {
            valid: wire::FATTR_MODE | wire::FATTR_GID,
            mode: 0o040_666,
            uid: 7,
            gid: 8,
            ..Default::default()
        };
        file.set(&change).unwrap();
        let attr = file.get().attr;
        assert_eq!((attr.mode, attr.uid, attr.gid), (0o100_666, 1, 8));
    }

    #[test]
    fn the_size_stays_nothing() {
        let file = FileAttributes::new(Owner { mode: 0o600, uid: 0, gid: 0 });
        let mut change = SetattrIn { valid: wire::FATTR_SIZE, ..Default::default() };
        assert_eq!(file.set(&change).unwrap().attr.size, 0);
        change.size = 1;
        assert_eq!(file.set(&change).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn touch_sets_times() {
        let file = FileAttributes::new(Owner { mode: 0o600, uid: 0, gid: 0 });
        let change =
            SetattrIn { valid: wire::FATTR_MTIME, mtime: 12, mtimensec: 34, ..Default::default() };
        let attr = file.set(&change).unwrap().attr;
        assert_eq!((attr.mtime, attr.mtimensec), (12, 34));
        assert_ne!(attr.atime, 12);
    }
}

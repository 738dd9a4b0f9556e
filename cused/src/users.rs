//! What each user has through the node, all opens together, and may have.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::io::Errno;

use crate::failure::Failure;
use crate::policy::Subject;

/// How much one open or one user may have.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Opens of the node of one user at a time.
    pub opens: u64,
    /// Bytes of registered memory of one open.
    pub registered: u64,
    /// Bytes of registered memory of one user.
    pub registered_of_user: u64,
}

/// The users who have the node open.
#[derive(Debug)]
pub struct Users {
    quotas: Quotas,
    accounts: Mutex<FxHashMap<u32, Weak<Account>>>,
}

/// What a user has.
#[derive(Debug, Default)]
struct Account {
    opens: AtomicU64,
    registered: AtomicU64,
}

/// Who has opened the node, and what that open has. The user has one open less once it is dropped.
#[derive(Debug)]
pub struct Opener {
    /// Who it was.
    pub subject: Subject,
    quotas: Quotas,
    account: Arc<Account>,
    registered: AtomicU64,
}

/// A range of registered memory as an open and its user are charged for it, until it is dropped.
#[derive(Debug)]
pub struct Registered {
    opener: Arc<Opener>,
    bytes: u64,
}

/// Adds to a count that may reach `max`. Says whether that was possible.
fn take(count: &AtomicU64, amount: u64, max: u64) -> bool {
    let more = |now: u64| now.checked_add(amount).filter(|&sum| sum <= max);
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

impl Users {
    /// Nobody yet.
    pub fn new(quotas: Quotas) -> Self {
        Self { quotas, accounts: Mutex::default() }
    }

    /// Somebody opens the node.
    ///
    /// # Errors
    /// EMFILE when the user has it open as often as is allowed.
    pub fn open(&self, subject: Subject) -> Result<Arc<Opener>, Failure> {
        let mut accounts = self.accounts.lock();
        let known = accounts.get(&subject.uid).and_then(Weak::upgrade);
        let account = known.unwrap_or_else(|| {
            let account = Arc::new(Account::default());
            accounts.retain(|_, account| account.strong_count() > 0);
            accounts.insert(subject.uid, Arc::downgrade(&account));
            account
        });
        drop(accounts);
        let max = self.quotas.opens;
        if !take(&account.opens, 1, max) {
            return Err(Failure::new(
                Errno::MFILE,
                format!("user {} has the node open {max} times, as often as it may", subject.uid),
            ));
        }
        let (quotas, registered) = (self.quotas, AtomicU64::new(0));
        Ok(Arc::new(Opener { subject, quotas, account, registered }))
    }
}

impl Opener {
    /// An open registers `bytes` of memory.
    ///
    /// # Errors
    /// ENOSPC when it or its user would have more than is allowed; nothing is then charged.
    pub fn register(self: &Arc<Self>, bytes: u64) -> Result<Registered, Failure> {
        let Quotas { registered, registered_of_user, .. } = self.quotas;
        if !take(&self.registered, bytes, registered) {
            return Err(self.refuse("this open of the node", &self.registered, bytes, registered));
        }
        if !take(&self.account.registered, bytes, registered_of_user) {
            self.registered.fetch_sub(bytes, Ordering::Relaxed);
            let who = format!("user {}", self.subject.uid);
            return Err(self.refuse(&who, &self.account.registered, bytes, registered_of_user));
        }
        Ok(Registered { opener: Arc::clone(self), bytes })
    }

    fn refuse(&self, who: &str, has: &AtomicU64, bytes: u64, max: u64) -> Failure {
        let has = has.load(Ordering::Relaxed);
        Failure::new(
            Errno::NOSPC,
            format!(
                "{who} has {has} bytes of memory registered and may have {max}: {bytes} more are \
                 too many; unregister something"
            ),
        )
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.account.opens.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.opener.registered.fetch_sub(self.bytes, Ordering::Relaxed);
        self.opener.account.registered.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        Users::new(Quotas { opens: 2, registered: 100, registered_of_user: 150 })
    }

    fn user(uid: u32) -> Subject {
        Subject { uid, ..Subject::default() }
    }

    #[test]
    fn a_user_has_so_many_opens_and_takes_none_from_others() {
        let users = users();
        let first = users.open(user(1)).expect("one");
        let _second = users.open(user(1)).expect("two");
        let refused = users.open(user(1)).expect_err("three");
        assert_eq!(refused.errno, Errno::MFILE);
        assert!(refused.sentence.contains("user 1"), "{refused}");
        users.open(user(2)).expect("another user");
        drop(first);
        users.open(user(1)).expect("one was closed");
    }

    #[test]
    fn registered_memory_is_counted_for_the_open_and_for_its_user() {
        let users = users();
        let (first, second) =
            (users.open(user(1)).expect("one"), users.open(user(1)).expect("two"));
        let most = first.register(100).expect("as much as an open may");
        assert_eq!(first.register(1).expect_err("one byte more").errno, Errno::NOSPC);
        let rest = second.register(50).expect("as much as a user may");
        let refused = second.register(1).expect_err("one byte more");
        assert!(refused.sentence.contains("user 1 has 150 bytes"), "{refused}");
        drop(most);
        first.register(100).expect("was given back to both");
        drop(rest);
        let other = users.open(user(2)).expect("another user");
        other.register(100).expect("has its own");
        assert_eq!(other.register(u64::MAX).expect_err("wraps").errno, Errno::NOSPC);
    }

    #[test]
    fn a_refused_range_is_charged_to_nobody() {
        let users = users();
        let (first, second) =
            (users.open(user(1)).expect("one"), users.open(user(1)).expect("two"));
        let _most = first.register(100).expect("as much as an open may");
        second.register(51).expect_err("more than the user may");
        second.register(50).expect("the open was charged for nothing");
    }

    #[test]
    fn who_has_nothing_open_is_not_remembered() {
        let users = users();
        for uid in 0..1000 {
            drop(users.open(user(uid)).expect("one"));
        }
        assert!(users.accounts.lock().len() <= 1);
    }
}

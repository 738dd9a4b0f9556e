//! The administrator's policy: who may open the node, and who may bind which devices, on top of
//! the permissions of the node and of the VFIO groups.
//!
//! Asked is about who opened the node, as for any file: whom the descriptor is passed to acts in
//! the opener's name.

use ioasid_uapi::NAME_LEN;
use nix::unistd::{Group, User};
use rustix::io::Errno;
use serde::Deserialize;

use crate::caller::Tid;
use crate::context::HomeId;
use crate::failure::Failure;

/// The policy as the settings have it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PolicyConfig {
    /// Who may open the node; nobody named means everybody.
    pub allow: Vec<Name>,
    /// Who may not, whatever `allow` says.
    pub deny: Vec<Name>,
    /// Whether devices that no rule of `bind` names may be bound, by everybody.
    pub bind_others: bool,
    /// Who may bind what.
    pub bind: Vec<BindConfig>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { allow: Vec::new(), deny: Vec::new(), bind_others: true, bind: Vec::new() }
    }
}

/// Who may bind these devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct BindConfig {
    /// PCI addresses, or names of simulated devices.
    pub devices: Vec<String>,
    /// IOMMU groups.
    pub groups: Vec<u32>,
    /// Who may.
    pub allow: Vec<Name>,
}

/// Who is meant: `"alice"` or `1000`, a user; `"@vmm"` or `"@1000"`, a group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Name {
    /// A user's number.
    Uid(u32),
    /// A user's name, or a group's after `@`.
    Text(String),
}

/// Somebody who is named in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    User(u32),
    Group(u32),
}

impl Who {
    fn named(name: &Name) -> Result<Self, String> {
        let text = match name {
            Name::Uid(uid) => return Ok(Self::User(*uid)),
            Name::Text(text) => text.as_str(),
        };
        let unknown = |what| format!("policy: there is no {what} {text:?}");
        match text.strip_prefix('@') {
            Some(group) if group.parse::<u32>().is_ok() => {
                Ok(Self::Group(group.parse().unwrap_or_default()))
            }
            Some(group) => match Group::from_name(group) {
                Ok(Some(group)) => Ok(Self::Group(group.gid.as_raw())),
                _ => Err(unknown("group")),
            },
            None => match User::from_name(text) {
                Ok(Some(user)) => Ok(Self::User(user.uid.as_raw())),
                _ => Err(unknown("user")),
            },
        }
    }

    fn all_named(names: &[Name]) -> Result<Vec<Self>, String> {
        names.iter().map(Self::named).collect()
    }

    fn is(self, subject: &Subject) -> bool {
        match self {
            Self::User(uid) => subject.uid == uid,
            Self::Group(gid) => subject.gid == gid || subject.groups.contains(&gid),
        }
    }
}

/// Who opened the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The supplementary groups; none where the caller is unknown.
    pub groups: Vec<u32>,
}

impl Subject {
    /// Who calls, while the call waits.
    pub fn of(caller: cuse_channel::Caller) -> Self {
        let status = Tid::new(caller.tid).map(Tid::status);
        let groups = status.map(|status| status.numbers("Groups:")).unwrap_or_default();
        Self { uid: caller.uid, gid: caller.gid, groups }
    }

    fn is_any(&self, of: &[Who]) -> bool {
        of.iter().any(|who| who.is(self))
    }
}

#[derive(Debug)]
struct BindRule {
    devices: Vec<String>,
    groups: Vec<u32>,
    allow: Vec<Who>,
}

impl BindRule {
    fn names(&self, device: &str, home: HomeId) -> bool {
        let is_group = matches!(home, HomeId::Vfio(number) if self.groups.contains(&number));
        is_group || self.devices.iter().any(|name| name == device)
    }
}

/// The policy, ready to be asked.
#[derive(Debug)]
pub struct Policy {
    allow: Vec<Who>,
    deny: Vec<Who>,
    bind_others: bool,
    bind: Vec<BindRule>,
}

impl Policy {
    /// Looks up who is named.
    ///
    /// # Errors
    /// The sentence that says who does not exist, or which rule means nothing.
    pub fn new(config: &PolicyConfig) -> Result<Self, String> {
        let rule = |rule: &BindConfig| {
            if rule.devices.is_empty() && rule.groups.is_empty() {
                return Err("policy: a rule of bind names neither devices nor groups".to_owned());
            }
            if let Some(long) = rule.devices.iter().find(|name| name.len() >= NAME_LEN) {
                return Err(format!("policy: no device can have the long name {long:?}"));
            }
            let (devices, groups) = (rule.devices.clone(), rule.groups.clone());
            Ok(BindRule { devices, groups, allow: Who::all_named(&rule.allow)? })
        };
        Ok(Self {
            allow: Who::all_named(&config.allow)?,
            deny: Who::all_named(&config.deny)?,
            bind_others: config.bind_others,
            bind: config.bind.iter().map(rule).collect::<Result<_, _>>()?,
        })
    }

    /// Whether somebody may open the node.
    ///
    /// # Errors
    /// EACCES.
    pub fn check_open(&self, subject: &Subject) -> Result<(), Failure> {
        let is_allowed = self.allow.is_empty() || subject.is_any(&self.allow);
        match is_allowed && !subject.is_any(&self.deny) {
            true => Ok(()),
            false => Err(Failure::new(
                Errno::ACCESS,
                format!("the policy does not let user {} open the node", subject.uid),
            )),
        }
    }

    /// Whether who opened the node may bind a device.
    ///
    /// # Errors
    /// EACCES.
    pub fn check_bind(&self, subject: &Subject, device: &str, home: HomeId) -> Result<(), Failure> {
        let mut rules = self.bind.iter().filter(|rule| rule.names(device, home)).peekable();
        let is_allowed = match rules.peek() {
            None => self.bind_others,
            Some(_) => rules.any(|rule| subject.is_any(&rule.allow)),
        };
        match is_allowed {
            true => Ok(()),
            false => Err(Failure::new(
                Errno::ACCESS,
                format!(
                    "the policy does not let user {}, who opened the node, bind {device} (group {}): \
                     see [[policy.bind]] in the daemon's settings",
                    subject.uid,
                    home.number()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        Policy::new(&toml::from_str(text).expect("well-formed")).expect("good")
    }

    fn subject(uid: u32, gid: u32, groups: &[u32]) -> Subject {
        Subject { uid, gid, groups: groups.to_vec() }
    }

    fn opens(policy: &Policy, subject: &Subject) -> bool {
        let checked = policy.check_open(subject);
        checked.inspect_err(|failure| assert_eq!(failure.errno, Errno::ACCESS)).is_ok()
    }

    #[test]
    fn nobody_named_means_everybody() {
        let policy = policy("");
        assert!(opens(&policy, &subject(1000, 1000, &[])));
        assert!(policy.check_bind(&subject(1000, 1000, &[]), "any", HomeId::Vfio(1)).is_ok());
    }

    #[test]
    fn users_and_groups_are_allowed_by_name_and_number_and_root_is_no_exception() {
        let policy = policy("allow = [1000, \"@2000\", \"daemon\"]");
        assert!(opens(&policy, &subject(1000, 5, &[])));
        assert!(opens(&policy, &subject(5, 2000, &[])));
        assert!(opens(&policy, &subject(5, 5, &[7, 2000])));
        let daemon = User::from_name("daemon").expect("readable").expect("on every system");
        assert!(opens(&policy, &subject(daemon.uid.as_raw(), 5, &[])));
        assert!(!opens(&policy, &subject(2000, 1000, &[])), "a uid is no gid");
        assert!(!opens(&policy, &subject(0, 0, &[])));
    }

    #[test]
    fn who_is_denied_is_so_whatever_else_is_said() {
        let policy = policy("allow = [\"@2000\"]\ndeny = [1000]");
        assert!(opens(&policy, &subject(1001, 2000, &[])));
        assert!(!opens(&policy, &subject(1000, 2000, &[])));
    }

    #[test]
    fn a_device_that_rules_name_is_for_those_whom_one_of_them_allows() {
        let policy = policy(
            "[[bind]]\ndevices = [\"0000:03:00.0\"]\nallow = [1000]\n\
             [[bind]]\ngroups = [7]\nallow = [\"@2000\"]\n",
        );
        let binds = |uid, gid, device, home| {
            policy.check_bind(&subject(uid, gid, &[]), device, home).is_ok()
        };
        assert!(binds(1000, 1, "0000:03:00.0", HomeId::Vfio(3)));
        assert!(!binds(1001, 1, "0000:03:00.0", HomeId::Vfio(3)));
        assert!(binds(1001, 2000, "0000:03:00.0", HomeId::Vfio(7)), "the second rule allows it");
        assert!(!binds(1001, 1, "other", HomeId::Vfio(7)));
        assert!(binds(1001, 1, "other", HomeId::Simulated(7)), "simulated groups are others");
        assert!(binds(1001, 1, "other", HomeId::Vfio(8)));
    }

    #[test]
    fn what_no_rule_names_can_be_kept_from_everybody() {
        let policy = policy("bind-others = false\n[[bind]]\ndevices = [\"a\"]\nallow = [0]");
        let root = subject(0, 0, &[]);
        assert!(policy.check_bind(&root, "a", HomeId::Vfio(1)).is_ok());
        let refused = policy.check_bind(&root, "b", HomeId::Vfio(1)).expect_err("no rule");
        assert_eq!(refused.errno, Errno::ACCESS);
        assert!(refused.sentence.contains('b') && refused.sentence.contains("policy"));
    }

    #[test]
    fn who_does_not_exist_is_an_error_and_so_is_a_rule_about_nothing() {
        for (text, named) in [
            ("allow = [\"no-such-user\"]", "no-such-user"),
            ("deny = [\"@no-such-group\"]", "no-such-group"),
            ("[[bind]]\nallow = [0]", "neither"),
            (
                "[[bind]]\ndevices = [\"x\"]\nallow = [\"nobody-of-that-name\"]",
                "nobody-of-that-name",
            ),
        ] {
            let refused = Policy::new(&toml::from_str(text).expect("well-formed"));
            assert!(refused.expect_err(text).contains(named));
        }
    }

    #[test]
    fn the_groups_of_a_caller_are_those_of_its_thread() {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        let caller = cuse_channel::Caller { tid, uid: 1, gid: 2 };
        let own = rustix::process::getgroups().expect("our own");
        let own: Vec<_> = own.into_iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(Subject::of(caller), subject(1, 2, &own));
        assert!(Subject::of(cuse_channel::Caller::default()).groups.is_empty());
    }
}

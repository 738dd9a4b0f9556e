//! What the kernel tells about a host, read below a root that can be another directory.

use std::path::{Path, PathBuf};

/// The files of a host.
#[derive(Debug)]
pub(crate) struct Host {
    root: PathBuf,
}

/// Whether a kernel module can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    /// It is loaded, or part of the kernel.
    Loaded,
    /// It is not loaded; modprobe would find it.
    Available,
    /// This kernel has none.
    Absent,
}

/// A limit on bytes: none, or so many.
pub(crate) type Limit = Option<u64>;

impl Host {
    /// The host whose `/` is this directory.
    pub(crate) fn new(root: &Path) -> Host {
        Host { root: root.into() }
    }

    /// Where an absolute path of the host is.
    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether there is something.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// A file as text, without blanks around it; `None` if it cannot be read.
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A file as bytes; `None` if it cannot be read.
    pub(crate) fn bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        std::fs::read(self.path(path)).ok()
    }

    /// The names in a directory, sorted; none if it cannot be read.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
        names.sort();
        names
    }

    /// The last part of what a symbolic link points to.
    pub(crate) fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into())
    }

    /// The release of the running kernel, as `uname -r` prints it.
    pub(crate) fn release(&self) -> String {
        self.text("/proc/sys/kernel/osrelease").unwrap_or_default()
    }

    /// The state of a module, by its name with underscores.
    pub(crate) fn module(&self, name: &str) -> Module {
        // Built-in modules have a directory there too, if they have parameters.
        if self.exists(Path::new("/sys/module").join(name)) {
            return Module::Loaded;
        }
        let modules = Path::new("/lib/modules").join(self.release());
        let lists = |file: &str| {
            self.text(modules.join(file)).is_some_and(|text| {
                text.lines().any(|line| {
                    let path = line.split(':').next().unwrap_or_default();
                    let file = path.rsplit('/').next().unwrap_or_default();
                    let stem = file.split(".ko").next().unwrap_or_default();
                    stem.replace('-', "_") == name
                })
            })
        };
        if lists("modules.builtin") {
            Module::Loaded
        } else if lists("modules.dep") {
            Module::Available
        } else {
            Module::Absent
        }
    }

    /// The words of the kernel's command line.
    pub(crate) fn command_line(&self) -> Vec<String> {
        let text = self.text("/proc/cmdline").unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// The soft and hard limit on locked memory of this process, in bytes.
    pub(crate) fn locked_memory(&self) -> Option<(Limit, Limit)> {
        let limits = self.text("/proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
        let mut words = line.split_whitespace();
        let mut limit = || match words.next()? {
            "unlimited" => Some(None),
            bytes => bytes.parse().ok().map(Some),
        };
        Some((limit()?, limit()?))
    }

    /// Whether this process has a capability, by its number.
    pub(crate) fn capable(&self, capability: u32) -> bool {
        let status = self.text("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        effective
            .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
            .is_some_and(|set| set >> capability & 1 != 0)
    }

    /// Whether this process may read and write a file.
    pub(crate) fn accessible(&self, path: impl AsRef<Path>) -> bool {
        use rustix::fs::{Access, access};
        access(self.path(path), Access::READ_OK | Access::WRITE_OK).is_ok()
    }
}

//! The program's side of the launch: what this process goes through to become the program.
//!
//! It stays the same process, in one thread, so that everything which the kernel keeps for a process
//! is the program's without being carried over: its id and who waits for it, process group, session and
//! terminal, signal mask and dispositions, limits, umask, descriptors. What is opened here is closed on exec.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ioasid_client::errno;
use rustix::fs::{CWD, FallocateFlags, Mode, OFlags, fallocate, mkdirat, open, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount, open_tree,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities};
use zerocopy::IntoBytes as _;

use crate::cli::Cli;
use crate::devices::{DIRECTORY, REAL};
use crate::explain::Explain;
use crate::node::{Node, NodeFile};
use crate::notify;
use crate::supervisor::{self, Offer, READY, Task};
use crate::sys::{self, Role};

/// Exit statuses, as those of env(1) and timeout(1).
const NOT_PREPARED: i32 = 125;
const NOT_STARTED: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Where programs expect the node.
const NODE: &str = "/dev/ioasid";
/// The directory of the placeholders.
const DEVICES: &str = "devices";
/// The room of the file system for placeholders, bytes: the least that there is.
const ROOM: u64 = 4096;

/// Becomes the program. Returns, with an exit status, only if that did not work.
pub(crate) fn run(cli: &Cli) -> i32 {
    let words: Result<Vec<_>, _> =
        cli.program.iter().map(|word| CString::new(word.as_bytes())).collect();
    // The kernel gives no argument with a zero byte.
    let Ok(words) = words else { return NOT_PREPARED };
    if let Err(why) = prepare(cli) {
        eprintln!("ioasid-run: {why}");
        return NOT_PREPARED;
    }
    let errno = sys::exec(&words);
    let program = cli.program[0].display();
    eprintln!("ioasid-run: {program}: {}: {}", errno::name(errno), errno::sentence(errno));
    if errno == Errno::NOENT { NOT_FOUND } else { NOT_STARTED }
}

/// Everything up to exec.
fn prepare(cli: &Cli) -> Result<(), String> {
    check_host()?;
    // Seen to be the node, and closed again.
    let node = NodeFile::of(Node::open(&cli.node)?.file())
        .map_err(|errno| format!("{}: {errno}", cli.node.display()))?;
    let is_privileged = is_privileged();
    if !is_privileged {
        warn_of_lost_privilege(&cli.program[0]);
    }
    let explain = Explain::new(cli.explain.as_deref())
        .map_err(|error| format!("--explain: the file cannot be opened: {error}"))?;
    let flags = SocketFlags::CLOEXEC;
    let (socket, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| format!("no socket: {errno}"))?;
    let task = Task { program: std::process::id(), node, is_privileged, explain };
    match sys::divide() {
        Ok(Role::Supervisor) => {
            drop(socket);
            supervisor::run(other, task)
        }
        Ok(Role::Program) => drop(other),
        Err(errno) => return Err(format!("no second process can be made: {errno}")),
    }
    enter(is_privileged)?;
    let view = View::make(&cli.node)?;
    let listener = notify::install().map_err(why_no_filter)?;
    let offer = Offer {
        listener: listener.as_raw_fd(),
        directory: view.devices.as_raw_fd(),
        ballast: view.ballast.as_raw_fd(),
    };
    let mut answer = [0; 4096];
    let told = rustix::io::write(&socket, offer.as_bytes())
        .and_then(|_| rustix::io::retry_on_intr(|| rustix::io::read(&socket, &mut answer[..])));
    match told {
        Ok(1) if answer[0] == READY => Ok(()),
        Ok(0) | Err(_) => Err("the supervisor has ended unexpectedly".into()),
        Ok(length) => Err(String::from_utf8_lossy(&answer[..length]).into_owned()),
    }
}

/// Whether this process may mount, and trace processes of others, by itself.
fn is_privileged() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

fn check_host() -> Result<(), String> {
    if fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|s| s.trim() == "3") {
        return Err(
            "kernel.yama.ptrace_scope is 3, which lets nobody take a program's descriptors, \
                    until the next boot: set it to 2 or less in /etc/sysctl.d and reboot"
                .into(),
        );
    }
    match fs::metadata(DIRECTORY) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        _ => Err(
            "there is no /dev/vfio: no device is bound to a vfio driver; ioasidctl doctor tells \
                  how to do that"
                .into(),
        ),
    }
}

/// Tells if a program is one that gets privilege when it is started, and here will not.
fn warn_of_lost_privilege(program: &OsStr) {
    let Some(path) = find(program) else { return };
    let mode = fs::metadata(&path).map_or(0, |metadata| metadata.permissions().mode());
    let mut list = [0u8; 64];
    let has_capabilities =
        rustix::fs::getxattr(&path, "security.capability", &mut list[..]).is_ok();
    let kind = match (mode & 0o4000 != 0, mode & 0o2000 != 0) {
        _ if has_capabilities => "has file capabilities",
        (true, _) => "is set-user-ID",
        (_, true) => "is set-group-ID",
        _ => return,
    };
    eprintln!(
        "ioasid-run: warning: {} {kind}, and does not get that privilege in a user namespace; to keep \
         it, start ioasid-run as root",
        path.display()
    );
}

/// The file that execvp will take.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let is_program =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0);
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(is_program)
}

/// Enters namespaces: of mounts, and before that of users, if it takes that to mount.
fn enter(is_privileged: bool) -> Result<(), String> {
    if is_privileged {
        return sys::unshare(UnshareFlags::NEWNS)
            .map_err(|errno| format!("no mount namespace can be made: {errno}"));
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(why_no_namespace)?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| format!("/proc/self/{file} cannot be written: {error}"))
    };
    write("uid_map", format!("{user} {user} 1"))?;
    // Who may not change groups cannot drop one that denies him something: user_namespaces(7).
    write("setgroups", "deny".into())?;
    write("gid_map", format!("{group} {group} 1"))
}

fn why_no_namespace(errno: Errno) -> String {
    let is = |file: &str, value: &str| {
        fs::read_to_string(format!("/proc/sys/{file}")).is_ok_and(|text| text.trim() == value)
    };
    let reason = if is("kernel/unprivileged_userns_clone", "0") {
        "as root: sysctl kernel.unprivileged_userns_clone=1"
    } else if is("user/max_user_namespaces", "0") {
        "as root: sysctl user.max_user_namespaces=10000"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor forbids it; as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        "a container's seccomp profile may forbid it, or a chroot"
    };
    format!(
        "no user namespace can be made ({}), which it takes to run a program without root: {reason}",
        errno::name(errno)
    )
}

fn why_no_filter(errno: Errno) -> String {
    match errno {
        Errno::BUSY => {
            "this process has a seccomp listener already (it runs under ioasid-run, or in a \
                        container whose manager watches system calls), and there can be only one"
                .into()
        }
        errno => format!(
            "the seccomp filter cannot be installed: {}: {}; a kernel from 5.9 on is needed",
            errno::name(errno),
            errno::sentence(errno)
        ),
    }
}

/// What the program sees in place of /dev/vfio.
struct View {
    devices: OwnedFd,
    ballast: OwnedFd,
}

impl View {
    /// Puts it there, in the mount namespace that was entered.
    fn make(node: &Path) -> Result<Self, String> {
        let why = |what: &str| {
            let what = what.to_owned();
            move |errno: Errno| format!("{what}: {}", errno::sentence(errno))
        };
        // What is mounted here is seen by the program alone; what the host mounts later, by it too.
        let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", propagation).map_err(why("mounts cannot be made private"))?;
        let real = take_mount(Path::new(DIRECTORY), true).map_err(why("/dev/vfio"))?;
        let mut nodes = vec![("vfio".into(), take_mount(node, false).map_err(why("the node"))?)];
        for (name, path) in character_devices(Path::new(DIRECTORY)) {
            if name != "vfio" {
                nodes.push((name, take_mount(&path, false).map_err(why("a group"))?));
            }
        }
        for (name, path) in character_devices(&Path::new(DIRECTORY).join(DEVICES)) {
            let name = format!("{DEVICES}/{name}");
            nodes.push((name, take_mount(&path, false).map_err(why("a device"))?));
        }
        if node != Path::new(NODE) && fs::metadata(NODE).is_ok() {
            let own = take_mount(node, false).map_err(why("the node"))?;
            put_mount(&own, CWD, NODE).map_err(why("the node over /dev/ioasid"))?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        let options = CString::new(format!("mode=0755,size={ROOM}")).unwrap_or_default();
        mount("ioasid-run", DIRECTORY, "tmpfs", flags, Some(options.as_c_str()))
            .map_err(why("a file system over /dev/vfio"))?;
        let path = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(DIRECTORY, path, Mode::empty()).map_err(why("/dev/vfio"))?;
        let fill = || -> Result<Self, Errno> {
            for directory in [DEVICES, REAL] {
                mkdirat(&root, directory, Mode::from_raw_mode(0o755))?;
            }
            put_mount(&real, root.as_fd(), REAL)?;
            for (name, mount) in &nodes {
                openat(
                    &root,
                    name.as_str(),
                    OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                put_mount(mount, root.as_fd(), name)?;
            }
            let devices = openat(&root, DEVICES, path, Mode::empty())?;
            let ballast = openat(
                &root,
                ".",
                OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            fallocate(&ballast, FallocateFlags::empty(), 0, ROOM)?;
            Ok(Self { devices, ballast })
        };
        fill().map_err(why("the program's /dev/vfio"))
    }
}

/// The character devices of a directory, with their names.
fn character_devices(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let devices = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_char_device()));
    devices
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

/// What is at a path, to be mounted elsewhere.
fn take_mount(path: &Path, all: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, all);
    open_tree(CWD, path, flags)
}

fn put_mount(mount: &OwnedFd, directory: impl std::os::fd::AsFd, name: &str) -> Result<(), Errno> {
    move_mount(mount, "", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

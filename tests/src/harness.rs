//! A private daemon for each test, and programs that run against its node.
//!
//! The daemon serves a FUSE file in a directory of its own, so that any number of them run side by
//! side. Root mounts it as it is. Anybody else gets a user and a mount namespace for it, into which
//! the programs then follow; where such namespaces are forbidden, a test says so and ends.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything here may take before it counts as hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The exit status of a program that can show nothing here.
const SKIPPED: i32 = 77;

/// The number of simulated devices, `sim0` and on, that a daemon of the harness has.
pub const SIMULATED: u32 = 4;

/// It has one more, whose I/O page table is soon full.
const SETTINGS: &str = "[[simulated]]\nname = \"small\"\ngroup = 100\nmax-mappings = 8\n";

// ---------------------------------------------------------------------------------------------
// What is run
// ---------------------------------------------------------------------------------------------

/// The root of the source tree.
fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in the workspace")
}

/// The daemon: `$CUSED`, or the one that cargo builds beside this test.
///
/// # Panics
/// When it cannot be built.
pub fn cused() -> &'static Path {
    static CUSED: OnceLock<PathBuf> = OnceLock::new();
    CUSED.get_or_init(|| {
        if let Some(path) = std::env::var_os("CUSED") {
            return path.into();
        }
        // This test is TARGET/PROFILE/deps/NAME-HASH.
        let test = std::env::current_exe().expect("the path of this test");
        let profile = test.ancestors().nth(2).expect("TARGET/PROFILE");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--quiet", "-p", "cused"]).current_dir(tree());
        cargo.arg("--target-dir").arg(profile.parent().expect("TARGET"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo can be run");
        assert!(status.success(), "cused cannot be built: {cargo:?}");
        profile.join("cused")
    })
}

/// One of the programs in tests/c, compiled if it has to be.
///
/// # Panics
/// When it cannot be.
pub fn c_program(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let output = Command::new(tree().join("scripts/build-c")).output();
        let output = output.expect("scripts/build-c can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        tree().join("target/c")
    });
    directory.join(name)
}

// ---------------------------------------------------------------------------------------------
// The daemon
// ---------------------------------------------------------------------------------------------

/// How a daemon is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// With those of the test; if these are not root's, in namespaces of its own.
    Own,
    /// As an ordinary user (65534, when the test is root), in namespaces of its own.
    Ordinary,
}

/// A running daemon. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    directory: PathBuf,
    rights: Rights,
    /// Whether it has namespaces of its own.
    apart: bool,
}

impl Daemon {
    /// Starts a daemon and waits for its node. Gives None, and says why, where that is impossible
    /// with these rights.
    ///
    /// # Panics
    /// When it should be possible and does not succeed.
    pub fn start(rights: Rights) -> Option<Self> {
        let apart = rights == Rights::Ordinary || !is_root();
        let reason = if apart { no_namespaces(rights) } else { None };
        if let Some(reason) = reason.or_else(no_fuse) {
            eprintln!("skipped: {reason}");
            return None;
        }
        Some(Self::try_start(rights, apart).unwrap_or_else(|error| panic!("{error:#}")))
    }

    fn try_start(rights: Rights, apart: bool) -> Result<Self> {
        let directory = new_directory(rights)?;
        // The descriptor that the daemon tells on is its standard output, as number 3.
        let mut script = String::from("exec 3>&1 1>&2; exec \"$@\"");
        if let Some(fuse) = fuse_for_everybody(rights, &directory)? {
            script = format!("mount --bind {} /dev/fuse && {script}", fuse.display());
        }
        let settings = directory.join("settings.toml");
        std::fs::write(&settings, SETTINGS)?;
        let mut command = entering(rights, apart);
        command
            .args(["sh", "-c", &script, "sh"])
            .arg(reachable_cused(rights, &directory)?)
            .arg("--config")
            .arg(settings)
            .args(["--transport", "fuse", "--mode", "666", "--log-level", "warn"])
            .args(["--ready-fd", "3", "--simulated", &SIMULATED.to_string()])
            .arg("--path")
            .arg(directory.join("ioasid"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut daemon = Self { child, directory, rights, apart };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = self.child.stdout.take().context("the daemon's output is a pipe")?;
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        poll(&mut [PollFd::new(&ready, PollFlags::IN)], Some(&patience))?;
        let mut line = String::new();
        BufReader::new(ready).read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the daemon ended before its node was there");
        Ok(())
    }

    /// Its node.
    pub fn node(&self) -> PathBuf {
        self.directory.join("ioasid")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A command that runs `program` where the node is to be seen, with the daemon's rights.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        if !self.apart {
            return Command::new(program.as_ref());
        }
        let mut command = with_rights(self.rights);
        command
            .args(["nsenter", "--user", "--mount", "--preserve-credentials", "--target"])
            .arg(self.pid().to_string())
            .arg(program.as_ref());
        command
    }

    /// Whether it runs without privilege, in namespaces of its own.
    pub fn is_unprivileged(&self) -> bool {
        self.apart
    }

    /// Runs one of the programs in tests/c with the node as its first argument. If it says that it
    /// can show nothing here, that is passed on.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(c_program(name));
        command.arg(self.node()).args(arguments);
        let output = finish(command);
        if output.status.code() == Some(SKIPPED) {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
            return output;
        }
        must_have_succeeded(output)
    }

    /// Starts one of the programs in tests/c and waits until it prints "ready".
    ///
    /// # Panics
    /// When it ends before that.
    pub fn hold(&self, name: &str, arguments: &[&str]) -> Child {
        let mut command = self.command(c_program(name));
        command.arg(self.node()).args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let ready = output.lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(ready, "{name} ended before it was ready");
        child
    }

    /// Sends SIGTERM and gives how the daemon ended.
    ///
    /// # Panics
    /// When it does not end, or its node is still there.
    pub fn stop(mut self) -> ExitStatus {
        let status = self.terminate().unwrap_or_else(|error| panic!("{error:#}"));
        if !self.apart {
            assert!(!is_mounted(&self.node()), "the daemon has left its node mounted");
        }
        status
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).context("the daemon cannot be told to stop")?;
        wait(&mut self.child).context("the daemon does not stop")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.terminate()
        {
            eprintln!("{error:#}");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whether something is mounted at `path` in this namespace.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.to_string_lossy();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&path))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The beginning of a command line that gives the rights up.
fn with_rights(rights: Rights) -> Command {
    if rights == Rights::Own || !is_root() {
        return Command::new("env");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command
}

/// The beginning of a command line that runs in new namespaces, if `apart`.
fn entering(rights: Rights, apart: bool) -> Command {
    let mut command = with_rights(rights);
    if apart {
        command.args(["unshare", "--user", "--map-root-user", "--mount"]);
    }
    command
}

/// Why namespaces cannot be had, if they cannot.
fn no_namespaces(rights: Rights) -> Option<String> {
    let output = entering(rights, true).arg("true").output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "no user namespaces here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("util-linux is needed to enter namespaces: {error}")),
    }
}

/// Why FUSE cannot be used by whoever runs the test, if it cannot.
fn no_fuse() -> Option<String> {
    let fuse = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    fuse.err().map(|error| format!("/dev/fuse cannot be opened: {error}"))
}

/// A directory that whoever runs the daemon can use.
fn new_directory(rights: Rights) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ioasid-tests-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
    if rights == Rights::Ordinary && is_root() {
        std::os::unix::fs::chown(&directory, Some(65534), Some(65534))?;
    }
    Ok(directory)
}

/// A /dev/fuse that everybody may use, as they may where udev has set the permissions. In a container
/// it is often root's alone, and an ordinary user could not be tried there; so root makes
/// another.
fn fuse_for_everybody(rights: Rights, directory: &Path) -> Result<Option<PathBuf>> {
    let mode = std::fs::metadata("/dev/fuse").context("/dev/fuse")?.mode();
    if rights == Rights::Own || !is_root() || mode & 0o006 == 0o006 {
        return Ok(None);
    }
    let fuse = directory.join("fuse");
    let mut mknod = Command::new("mknod");
    let status = mknod.arg("--mode=666").arg(&fuse).args(["c", "10", "229"]).status()?;
    ensure!(status.success(), "mknod {} failed", fuse.display());
    Ok(Some(fuse))
}

/// The daemon's program; for an ordinary user, who may not be able to enter the source tree, a copy
/// in `directory`.
fn reachable_cused(rights: Rights, directory: &Path) -> Result<PathBuf> {
    if rights == Rights::Own {
        return Ok(cused().to_owned());
    }
    let copy = directory.join("cused");
    std::fs::copy(cused(), &copy).with_context(|| format!("copying {}", cused().display()))?;
    Ok(copy)
}

// ---------------------------------------------------------------------------------------------
// Programs
// ---------------------------------------------------------------------------------------------

/// Runs a command to its end.
///
/// # Panics
/// When it fails or hangs; with what it printed.
pub fn succeed(command: Command) -> Output {
    must_have_succeeded(finish(command))
}

fn must_have_succeeded(output: Output) -> Output {
    assert!(
        output.status.success(),
        "it ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command to its end, whatever that is.
///
/// # Panics
/// When it cannot be run or hangs.
pub fn finish(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let pid = Pid::from_child(&child);
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let hangs = is_done.recv_timeout(2 * PATIENCE).is_err();
        if hangs {
            let _ = kill_process(pid, Signal::KILL);
        }
        hangs
    });
    let output = child.wait_with_output().expect("a child can be waited for");
    let _ = done.send(());
    assert!(!watch.join().expect("the watch does not panic"), "{command:?} hung");
    output
}

/// Waits for a child to end.
///
/// # Errors
/// When it does not.
pub fn wait(child: &mut Child) -> Result<ExitStatus> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > give_up {
            bail!("process {} has not ended in {PATIENCE:?}", child.id());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills a child and waits for it.
///
/// # Errors
/// When it cannot be killed: it hangs in the kernel.
pub fn kill(child: &mut Child) -> Result<()> {
    child.kill()?;
    wait(child).map(drop).map_err(|error| anyhow!("it cannot be killed: {error:#}"))
}

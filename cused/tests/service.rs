//! The daemon as a service: how it starts, what it says when it cannot, how it ends.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cused::config::Config;

const PATIENCE: Duration = Duration::from_secs(20);

fn cused() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cused"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("NOTIFY_SOCKET");
    command
}

fn output(arguments: &[&str]) -> Output {
    cused().args(arguments).output().expect("the daemon can be run")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory of the test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cused-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn terminate(child: &mut Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it is ours");
    let begin = Instant::now();
    loop {
        match child.try_wait().expect("it is ours") {
            Some(status) => return assert!(status.success(), "{status}"),
            None if begin.elapsed() > PATIENCE => {
                let _ = child.kill();
                panic!("the daemon does not end");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn the_packaged_settings_are_the_defaults_and_pass_the_check() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/cused.toml");
    let text = fs::read_to_string(&path).expect("the packaged settings");
    assert_eq!(toml::from_str::<Config>(&text).expect("good"), Config::default());
    let checked = output(&["--check-config", "--config", path.to_str().expect("UTF-8")]);
    assert!(checked.status.success(), "{}", stderr(&checked));
}

#[test]
fn the_example_of_a_simulated_device_in_the_packaged_settings_is_good() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/cused.toml");
    let text = fs::read_to_string(&path).expect("the packaged settings");
    let (_, example) = text.split_once("# [[simulated]]").expect("an example");
    let example: String = example
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned() + "\n")
        .collect();
    let config: Config = toml::from_str(&format!("[[simulated]]{example}")).expect("good");
    assert_eq!(config.simulated.len(), 1);
    config.simulated[0].geometry().expect("good");
}

#[test]
fn bad_settings_are_named_and_end_the_daemon() {
    let scratch = Scratch::new("settings");
    let path = scratch.file("bad.toml");
    for (text, named) in [
        ("nmae = \"x\"\n", "nmae"),
        ("[limits]\nthreads = 0\n", "limits"),
        ("mode = \"999\"\n", "999"),
        ("log-level = \"loud\"\n", "loud"),
        ("[[simulated]]\nname = \"d\"\ngroup = 1\npage-sizes = [3]\n", "page-sizes"),
    ] {
        fs::write(&path, text).expect("writable");
        let output = output(&["--check-config", "--config", path.to_str().expect("UTF-8")]);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(stderr(&output).contains(named), "{text}: {}", stderr(&output));
    }
}

#[test]
fn without_cuse_it_says_how_to_get_it() {
    if Path::new("/dev/cuse").exists() {
        eprintln!("skipped: this machine has CUSE");
        return;
    }
    let output = output(&["--transport", "cuse"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("modprobe cuse"), "{}", stderr(&output));
}

#[test]
fn a_service_manager_is_told_when_the_node_is_there_and_when_it_goes() {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err()
        || !rustix::process::geteuid().is_root()
    {
        eprintln!("skipped: needs root and /dev/fuse");
        return;
    }
    let scratch = Scratch::new("notify");
    let socket = UnixDatagram::bind(scratch.file("socket")).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let node = scratch.file("node");
    let mut daemon = cused()
        .args(["--transport", "fuse", "--simulated", "1", "--path"])
        .arg(&node)
        .env("NOTIFY_SOCKET", scratch.file("socket"))
        .spawn()
        .expect("the daemon can be run");
    let mut message = [0; 256];
    let mut told = || loop {
        match socket.recv(&mut message) {
            Ok(length) => return String::from_utf8_lossy(&message[..length]).into_owned(),
            // With a time limit the kernel does not begin it anew after a signal (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("no message in time: {error}"),
        }
    };
    assert!(told().contains("READY=1"));
    assert!(
        fs::OpenOptions::new().read(true).write(true).open(&node).is_ok(),
        "ready, but no node"
    );
    terminate(&mut daemon);
    assert!(told().contains("STOPPING=1"));
    assert!(!node.exists(), "the place of the node is left behind");
    let mut said = String::new();
    daemon.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains("is ready"), "{said}");
}

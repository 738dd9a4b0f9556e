//! What only a FUSE file has: its place, its attributes, its mount, and doing without root.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cuse_channel::{Channel, EndReason, FuseFileOptions, ServeOptions, SetupError};
use libtest_mimic::Trial;

use crate::client::Client;
use crate::lab::{Served, Transport, await_that, command, unused_name};

/// What this program does instead of running trials.
const PART: &str = "CUSE_CHANNEL_TEST_PART";
/// Where, if that is to serve.
const PLACE: &str = "CUSE_CHANNEL_TEST_PLACE";

pub(crate) fn trials() -> Vec<Trial> {
    let tests: &[(&str, fn())] = &[
        ("an_existing_file_is_covered_and_left_as_it_is", existing),
        ("a_missing_file_is_created_and_removed", missing),
        ("a_directory_is_refused", directory),
        ("a_place_in_nowhere_is_refused", nowhere),
        ("a_blank_in_the_path_is_no_matter", blank),
        ("dropping_an_unserved_channel_removes_the_node", dropped),
        ("mode_and_owner_are_as_asked_and_can_be_changed", attributes),
        ("the_kernel_enforces_the_mode", permissions),
        ("truncating_to_nothing_does_nothing", truncation),
        ("a_shell_can_open_and_close_it", shell),
        ("an_unmount_from_outside_ends_serving", unmounted),
        ("an_abort_through_fusectl_ends_serving", aborted),
        ("a_mount_by_someone_else_on_top_is_left_alone", covered),
        ("a_second_server_at_a_place_is_refused", taken),
        ("what_a_killed_server_leaves_behind_is_cleared_away", left_behind),
        ("an_ordinary_user_can_serve_in_a_namespace", unprivileged),
        ("an_ordinary_user_outside_is_told_what_to_do", refused),
    ];
    let obstacle = |name: &str| {
        let root = "needs root: the mounts and users that it plays with are root's to make";
        let not_root = !rustix::process::geteuid().is_root();
        let general = Transport::File.obstacle().or_else(|| not_root.then(|| root.to_owned()));
        general
            .or_else(|| name.contains("fusectl").then(no_fusectl).flatten())
            .or_else(|| name.contains("namespace").then(no_namespaces).flatten())
    };
    tests
        .iter()
        .map(|&(name, test)| crate::trial(format!("file::{name}"), obstacle(name), test))
        .collect()
}

/// Why the control files cannot be used. The laboratory has them mounted for this.
fn no_fusectl() -> Option<String> {
    let place = "/sys/fs/fuse/connections";
    if std::env::var_os("LAB").is_some() && !is_mounted(Path::new(place)) {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", place, "fusectl", flags, None).unwrap();
    }
    (!is_mounted(Path::new(place))).then(|| "fusectl is not mounted".to_owned())
}

/// Why an ordinary user can have no namespaces of his own: some hosts forbid them, and in a chroot
/// the kernel does.
fn no_namespaces() -> Option<String> {
    let mut unshare = Command::new("setpriv");
    unshare.args(["--reuid", "4321", "--clear-groups", "unshare", "-Urm", "true"]);
    let allowed = unshare.output().is_ok_and(|output| output.status.success());
    (!allowed).then(|| "user namespaces are forbidden here".to_owned())
}

fn unused_path() -> PathBuf {
    Path::new("/tmp").join(unused_name())
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!(" {} ", path.display()))
}

fn serve_at(path: &Path) -> Served {
    let channel = Channel::fuse_file(&FuseFileOptions::new(path)).unwrap();
    Served::of(channel, ServeOptions::default())
}

fn existing() {
    let path = unused_path();
    fs::write(&path, "contents").unwrap();
    let served = serve_at(&path);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let mut client = Client::new();
    let file = client.open(&path);
    client.value(format!("write {file} 01")).unwrap();
    client.finish();
    served.stop();
    assert!(!is_mounted(&path));
    assert_eq!(fs::read_to_string(&path).unwrap(), "contents");
    fs::remove_file(&path).unwrap();
}

fn missing() {
    let path = unused_path();
    let served = serve_at(&path);
    assert!(is_mounted(&path));
    served.stop();
    assert!(!is_mounted(&path));
    assert!(!path.exists());
}

fn directory() {
    let error = Channel::fuse_file(&FuseFileOptions::new("/tmp")).unwrap_err();
    assert!(matches!(error, SetupError::Directory(_)), "{error}");
}

fn nowhere() {
    let error = Channel::fuse_file(&FuseFileOptions::new("/nonexistent/node")).unwrap_err();
    assert!(matches!(error, SetupError::Place { .. }), "{error}");
}

fn blank() {
    let path = Path::new("/tmp").join(format!("{} with blanks", unused_name()));
    let served = serve_at(&path);
    assert!(fs::metadata(&path).unwrap().is_file());
    served.stop();
    assert!(!path.exists());
}

fn dropped() {
    let path = unused_path();
    drop(Channel::fuse_file(&FuseFileOptions::new(&path)).unwrap());
    assert!(!path.exists());
    assert!(!is_mounted(&path));
}

fn attributes() {
    let mut options = FuseFileOptions::new(unused_path());
    (options.mode, options.uid, options.gid) = (0o640, Some(1234), Some(5678));
    let served = Served::of(Channel::fuse_file(&options).unwrap(), ServeOptions::default());
    let metadata = fs::metadata(&served.path).unwrap();
    assert_eq!((metadata.mode(), metadata.uid(), metadata.gid()), (0o100_640, 1234, 5678));
    fs::set_permissions(&served.path, fs::Permissions::from_mode(0o666)).unwrap();
    chown(&served.path, Some(4321), None).unwrap();
    let metadata = fs::metadata(&served.path).unwrap();
    assert_eq!((metadata.mode(), metadata.uid(), metadata.gid()), (0o100_666, 4321, 5678));
    let file_system = rustix::fs::statfs(&served.path).unwrap();
    assert_eq!(file_system.f_bsize, 4096);
}

fn permissions() {
    let mut options = FuseFileOptions::new(unused_path());
    (options.mode, options.uid) = (0o600, Some(4321));
    let served = Served::of(Channel::fuse_file(&options).unwrap(), ServeOptions::default());
    let open = format!("open {} {}", served.path.display(), libc::O_RDWR);
    let mut owner = Client::of_user(4321);
    owner.value(&open).unwrap();
    let mut other = Client::of_user(4322);
    assert_eq!(other.value(&open), Err(libc::EACCES));
    assert_eq!(served.node.opened.load(Ordering::SeqCst), 1);
    assert_eq!(served.node.callers.lock().unwrap()[0].uid, 4321);
    drop(other);
    owner.finish();
    served.stop();

    // Without allow_other, nobody but who mounts gets in at all.
    let mut options = FuseFileOptions::new(unused_path());
    (options.mode, options.allow_other) = (0o666, false);
    let served = Served::of(Channel::fuse_file(&options).unwrap(), ServeOptions::default());
    let open = format!("open {} {}", served.path.display(), libc::O_RDWR);
    assert_eq!(Client::of_user(4322).value(&open), Err(libc::EACCES));
    Client::new().value(&open).unwrap();
}

fn truncation() {
    let served = Served::new(Transport::File);
    let mut client = Client::new();
    let path = served.path.display();
    assert_eq!(client.value(format!("truncate {path} 0")), Ok(0));
    assert_eq!(client.value(format!("truncate {path} 1")), Err(libc::EINVAL));
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    client.value(format!("open {path} {flags}")).unwrap();
    assert_eq!(fs::metadata(&served.path).unwrap().len(), 0);
}

fn shell() {
    let served = Served::new(Transport::File);
    let script = "exec 7<>\"$0\"; printf abc >&7; head -c 2 <&7; exec 7>&-; [ -f \"$0\" ]";
    let output = Command::new("sh").arg("-c").arg(script).arg(&served.path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"ab");
    await_that("release", || served.released() == 1);
}

fn unmounted() {
    let mut served = Served::new(Transport::File);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let output = Command::new("umount").arg("-l").arg(&served.path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // Whoever has it open can go on; the end comes with the last.
    assert_eq!(client.value(format!("ioctl {file} {} 5", command::SAME)), Ok(5));
    client.finish();
    assert_eq!(served.ended().reason, EndReason::Unmounted);
    // The kernel may end the connection before its RELEASE is read; either way there is one.
    assert_eq!(*served.node.released.lock().unwrap(), [100]);
    assert!(!served.path.exists());
}

fn aborted() {
    let mut served = Served::new(Transport::File);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let device = fs::metadata(&served.path).unwrap().dev();
    let file_name = format!("/sys/fs/fuse/connections/{}/abort", libc::minor(device));
    fs::write(file_name, "1").unwrap();
    let ended = served.ended();
    assert_eq!((ended.reason, ended.released), (EndReason::Aborted, 1));
    assert!(client.value(format!("ioctl {file} {} 5", command::SAME)).is_err());
}

fn covered() {
    let served = Served::new(Transport::File);
    let path = served.path.clone();
    let bind = Command::new("mount").arg("--bind").arg("/etc/passwd").arg(&path).status();
    assert!(bind.unwrap().success());
    served.stop();
    assert!(!fs::read(&path).unwrap().is_empty(), "the other mount is gone");
    for _ in 0..2 {
        let unmounted = Command::new("umount").arg("-l").arg(&path).status();
        assert!(unmounted.unwrap().success());
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    fs::remove_file(&path).unwrap();
}

fn taken() {
    let served = Served::new(Transport::File);
    let error = Channel::fuse_file(&FuseFileOptions::new(&served.path)).unwrap_err();
    assert!(matches!(error, SetupError::PlaceTaken(_)), "{error}");
    let mut client = Client::new();
    client.open(&served.path);
}

fn left_behind() {
    let path = unused_path();
    for _ in 0..2 {
        let mut server = Command::new(std::env::current_exe().unwrap());
        let mut server = server.env(PART, "serve").env(PLACE, &path).spawn().unwrap();
        // In the second round the dead mount of the first is there, too.
        await_that("the node", || fs::File::open(&path).is_ok() && is_mounted(&path));
        let mut client = Client::new();
        let file = client.open(&path);
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(client.value(format!("ioctl {file} {} 5", command::SAME)).is_err());
        assert!(is_mounted(&path));
    }
    let served = serve_at(&path);
    let mut client = Client::new();
    let file = client.open(&path);
    assert_eq!(client.value(format!("ioctl {file} {} 5", command::SAME)), Ok(5));
    client.finish();
    served.stop();
    assert!(!is_mounted(&path));
    assert!(!path.exists());
}

/// Runs `command` as an ordinary user for whom /dev/fuse is as on most systems, and this program
/// again in it.
fn as_ordinary_user(wrapper: &str, part: &str) -> std::process::Output {
    let script = format!(
        "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && mkdir -m 777 /mnt/home && \
         cp \"$0\" /mnt/program && \
         exec setpriv --reuid 4321 --regid 4321 --clear-groups {wrapper} /mnt/program"
    );
    Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(PART, part)
        .output()
        .unwrap()
}

fn unprivileged() {
    let output = as_ordinary_user("unshare -Urm", "unprivileged");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("as it should be"), "{output:?}");
}

fn refused() {
    let output = as_ordinary_user("", "refused");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("run in unshare -Urm, or as root"), "{text}");
}

pub(crate) fn has_part() -> bool {
    std::env::var_os(PART).is_some()
}

/// Plays the part of another process in a trial.
pub(crate) fn play_part() {
    let mut options = FuseFileOptions::new("/mnt/home/node");
    options.device = "/mnt/fuse".into();
    match std::env::var(PART).unwrap().as_str() {
        "serve" => {
            let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
            serve_at(&place).ended();
        }
        "refused" => println!("{}", Channel::fuse_file(&options).unwrap_err()),
        "unprivileged" => unprivileged_part(&options),
        part => panic!("there is no part {part}"),
    }
}

fn unprivileged_part(options: &FuseFileOptions) {
    let served = Served::of(Channel::fuse_file(options).unwrap(), ServeOptions::default());
    assert_eq!(fs::metadata(&served.path).unwrap().mode(), 0o100_600);
    let mut client = Client::new();
    let file = client.open(&served.path);
    assert_eq!(client.value(format!("ioctl {file} {} 5", command::SAME)), Ok(5));
    let mut second = Client::new();
    let file = second.open(&served.path);
    assert_eq!(served.node.callers.lock().unwrap()[0].tid, client.pid());
    second.begin(format!("ioctl {file} {} 0", command::BLOCK));
    client.finish();
    await_that("release", || served.released() == 1);
    served.node.open_gate();
    assert_eq!(second.result(), Ok((1, vec![])));
    let path = served.path.clone();
    assert_eq!(served.stop().released, 1);
    assert!(!path.exists());
    unprivileged_stop_with_stuck(options);
    println!("as it should be");
}

/// Who may not abort a connection can still end it.
fn unprivileged_stop_with_stuck(options: &FuseFileOptions) {
    let serve = ServeOptions { stop_grace: Duration::from_secs(1), ..ServeOptions::default() };
    let mut served = Served::of(Channel::fuse_file(options).unwrap(), serve);
    let mut clients = [Client::new(), Client::new()];
    let files = clients.each_mut().map(|client| client.open(&served.path));
    clients[0].begin(format!("ioctl {} {} 0", files[0], command::BLOCK));
    await_that("blocking", || served.node.blocked.load(Ordering::SeqCst) == 1);
    served.begin_stop();
    std::thread::sleep(Duration::from_millis(300));
    clients[1].begin(format!("ioctl {} {} 0", files[1], command::SAME));
    assert_eq!(served.ended().abandoned, 1);
    for client in &mut clients {
        assert_eq!(client.result(), Err(libc::ECONNABORTED));
    }
}

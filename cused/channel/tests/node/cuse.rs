//! What only a CUSE device has: RETRY, its name and number, its place in sysfs.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use cuse_channel::{Channel, CuseOptions, EndReason, ServeOptions, SetupError};
use libtest_mimic::Trial;

use crate::client::{Client, to_hex};
use crate::lab::{Served, Transport, command, unused_name};

pub(crate) fn trials() -> Vec<Trial> {
    let tests: &[(&str, fn())] = &[
        ("retry_follows_pointers_both_ways", retry),
        ("retry_serves_32_bit_callers", retry_32),
        ("retry_takes_128_kib_and_no_more", retry_limits),
        ("a_pointer_that_is_not_the_callers_is_efault", bad_pointers),
        ("the_number_asked_for_is_the_number_got", numbers),
        ("a_taken_name_is_refused_with_a_reason", taken_name),
        ("a_path_that_exists_in_dev_is_refused", taken_path),
        ("a_taken_number_is_refused", taken_number),
        ("an_abort_through_sysfs_ends_serving", abort),
        ("dropping_an_unserved_channel_removes_the_node", dropped),
        ("close_returns_after_the_release", synchronous_release),
        ("a_name_is_free_again_after_the_end", reuse),
    ];
    let obstacle = Transport::Cuse.obstacle();
    tests
        .iter()
        .map(|&(name, test)| crate::trial(format!("cuse::{name}"), obstacle.clone(), test))
        .collect()
}

fn retry() {
    let served = Served::new(Transport::Cuse);
    let mut client = Client::new();
    let file = client.open(&served.path);
    for size in [1usize, 100, 4096, 100_000] {
        let data: Vec<u8> = (0..size).map(|index| index as u8).collect();
        let inverted: Vec<u8> = data.iter().map(|byte| !byte).collect();
        let call = format!("indirect {file} {} {}", command::INVERT, to_hex(&data));
        assert_eq!(client.call(call), Ok((size as i64, inverted)));
    }
}

fn retry_32() {
    let served = Served::new(Transport::Cuse);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let call = format!("indirect32 {file} {} 0102", command::INVERT);
    assert_eq!(client.call(call), Ok((2, vec![0xfe, 0xfd])));
}

fn retry_limits() {
    let served = Served::new(Transport::Cuse);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let mut call =
        |command| client.call(format!("data {file} {command} 00")).map(|result| result.0);
    assert_eq!(call(command::GATHER), Ok(128 << 10));
    assert_eq!(call(command::GATHER_TOO_MUCH), Err(libc::EIO));
    assert_eq!(call(command::GATHER), Ok(128 << 10));
}

fn bad_pointers() {
    let served = Served::new(Transport::Cuse);
    let mut client = Client::new();
    let file = client.open(&served.path);
    assert_eq!(client.value(format!("ioctl {file} {} 4096", command::INVERT)), Err(libc::EFAULT));
    assert_eq!(client.value(format!("ioctl {file} {} 5", command::SAME)), Ok(5));
}

fn numbers() {
    let options = CuseOptions { major: 240, minor: 77, ..CuseOptions::new(unused_name()) };
    let served = Served::of(Channel::cuse(&options).unwrap(), ServeOptions::default());
    let metadata = fs::metadata(&served.path).unwrap();
    assert!(metadata.file_type().is_char_device());
    assert_eq!(metadata.rdev(), libc::makedev(240, 77));
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let mut client = Client::new();
    client.open(&served.path);
}

fn taken_name() {
    let served = Served::new(Transport::Cuse);
    let name = served.path.file_name().unwrap().to_str().unwrap();
    let error = Channel::cuse(&CuseOptions::new(name)).unwrap_err();
    assert!(matches!(error, SetupError::NameTaken(_)), "{error}");
    // The one that has it is not disturbed.
    let mut client = Client::new();
    client.open(&served.path);
}

fn taken_path() {
    let error = Channel::cuse(&CuseOptions::new("null")).unwrap_err();
    assert!(matches!(error, SetupError::NodeExists(_)), "{error}");
}

fn taken_number() {
    // 1:3 is /dev/null's.
    let options = CuseOptions { major: 1, minor: 3, ..CuseOptions::new(unused_name()) };
    let error = Channel::cuse(&options).unwrap_err();
    assert!(matches!(error, SetupError::Refused { .. }), "{error}");
    assert!(!Path::new("/dev").join(options.name).exists());
}

fn abort() {
    let mut served = Served::new(Transport::Cuse);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let name = served.path.file_name().unwrap().to_str().unwrap();
    fs::write(format!("/sys/class/cuse/{name}/abort"), "1").unwrap();
    let ended = served.ended();
    assert_eq!((ended.reason, ended.released), (EndReason::Aborted, 1));
    assert!(client.value(format!("ioctl {file} {} 1", command::SAME)).is_err());
    assert!(!served.path.exists());
}

fn dropped() {
    let channel = Channel::cuse(&CuseOptions::new(unused_name())).unwrap();
    let path = channel.node().to_owned();
    assert!(path.exists());
    drop(channel);
    assert!(!path.exists());
}

/// Unlike that of a FUSE file, whose RELEASE the kernel sends in the background.
fn synchronous_release() {
    let served = Served::new(Transport::Cuse);
    *served.node.release_takes.lock().unwrap() = Duration::from_millis(500);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.value(format!("close {file}")).unwrap();
    assert_eq!(served.released(), 1);
}

fn reuse() {
    let name = unused_name();
    for _ in 0..3 {
        let channel = Channel::cuse(&CuseOptions::new(&name)).unwrap();
        let served = Served::of(channel, ServeOptions::default());
        let mut client = Client::new();
        let file = client.open(&served.path);
        assert_eq!(client.value(format!("ioctl {file} {} 5", command::SAME)), Ok(5));
        assert_eq!(served.stop().released, 1);
    }
}

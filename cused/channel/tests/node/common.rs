//! What holds over both transports.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cuse_channel::{EndReason, ServeOptions};
use libtest_mimic::Trial;

use crate::client::{Client, to_hex};
use crate::lab::{PATIENCE, Served, Transport, await_that, command};

/// A rule, and what tries it.
type Test = (&'static str, fn(Transport));

pub(crate) fn trials() -> Vec<Trial> {
    let tests: &[Test] = &[
        ("opening_and_closing_reach_the_node_once", opening_and_closing),
        ("a_refused_open_leaves_nothing_open", refused_open),
        ("results_come_back_as_they_are", results),
        ("an_ioctl_with_size_bits_moves_its_data", data_by_size_bits),
        ("a_32_bit_caller_is_seen_as_such", compat),
        ("the_caller_is_named_by_its_thread", caller),
        ("a_panic_is_answered_eio_and_nothing_else_stops", panic),
        ("output_without_room_is_answered_eio", too_much_output),
        ("a_signal_interrupts_a_slow_ioctl", interrupt),
        ("a_handler_that_ignores_its_interrupt_still_answers", stubborn),
        ("an_interrupt_hook_can_answer_instead_of_the_handler", hopeless),
        ("an_interrupted_ioctl_can_begin_anew", again),
        ("an_ioctl_that_would_begin_anew_ends_when_serving_does", again_at_the_end),
        ("a_killed_caller_is_let_go_and_released", killed),
        ("a_caller_killed_while_it_opens_is_released", killed_while_opening),
        ("signals_in_plenty_lose_nothing", signal_storm),
        ("blocked_callers_delay_nobody", blocked_callers),
        ("a_handle_beyond_its_limit_is_told_busy_at_once", handle_limit),
        ("greedy_handles_leave_room_for_others", fairness),
        ("with_all_threads_taken_the_rest_is_still_served", exhaustion),
        ("an_early_answer_counts_and_the_later_one_does_not", early),
        ("poll_tells_and_wakes", poll),
        ("reads_and_writes_reach_the_node", read_and_write),
        ("a_blocked_read_is_woken_by_data_and_by_signals", blocked_read),
        ("parked_reads_occupy_no_thread", parked_reads),
        ("a_parked_read_ends_by_signals", parked_and_interrupted),
        ("a_parked_read_that_is_dropped_is_answered", parked_and_dropped),
        ("parked_reads_of_one_handle_are_limited", parked_limit),
        ("stop_releases_what_is_open_and_takes_the_node_away", stop_with_open_files),
        ("stop_lets_requests_in_progress_finish", stop_in_progress),
        ("stop_interrupts_handlers_that_take_long", stop_interrupts),
        ("stop_is_bounded_in_time_by_leaving_stuck_handlers", stop_with_stuck),
        ("stop_frees_callers_whose_requests_are_still_queued", stop_with_queued),
        ("stop_does_not_wait_for_reads_that_wait", stop_with_blocked_read),
        ("stop_is_bounded_even_if_the_node_does_not_release", stop_with_stuck_release),
        ("stop_before_any_request_is_quick", stop_at_once),
    ];
    let mut trials = Vec::new();
    for transport in [Transport::File, Transport::Cuse] {
        for &(name, test) in tests {
            let prefix = format!("{transport:?}").to_lowercase();
            let name = format!("{prefix}::{name}");
            let obstacle = transport.obstacle();
            trials.push(crate::trial_with(name, obstacle, move || test(transport)));
        }
    }
    trials
}

fn opening_and_closing(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let first = client.open(&served.path);
    let second = client.open(&served.path);
    assert_eq!(served.node.opened.load(Ordering::SeqCst), 2);
    client.value(format!("close {first}")).unwrap();
    await_that("release", || served.released() == 1);
    // Only the last descriptor of an open file counts.
    let copy = client.value(format!("dup {second}")).unwrap();
    client.value(format!("close {second}")).unwrap();
    assert_eq!(client.value(format!("ioctl {copy} {} 5", command::SAME)), Ok(5));
    assert_eq!(served.released(), 1);
    client.finish();
    await_that("release at exit", || served.released() == 2);
    assert_eq!(*served.node.released.lock().unwrap(), [100, 101]);
    let ended = served.stop();
    assert_eq!((ended.reason, ended.released, ended.abandoned), (EndReason::Stopped, 0, 0));
}

fn refused_open(transport: Transport) {
    let served = Served::new(transport);
    served.node.open_refused.store(true, Ordering::SeqCst);
    let mut client = Client::new();
    let open = format!("open {} {}", served.path.display(), libc::O_RDWR);
    assert_eq!(client.value(open), Err(libc::ENFILE));
    client.finish();
    assert_eq!(served.stop().released, 0);
}

fn results(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let mut ioctl =
        |command, argument: u64| client.value(format!("ioctl {file} {command} {argument}"));
    assert_eq!(ioctl(command::SAME, 0), Ok(0));
    assert_eq!(ioctl(command::SAME, 0x7fff_ffff), Ok(0x7fff_ffff));
    for errno in [libc::EINVAL, libc::ENOTTY, libc::EAGAIN, libc::E2BIG, libc::EOPNOTSUPP, 133] {
        assert_eq!(ioctl(command::FAIL, errno as u64), Err(errno));
    }
    // ENOSYS is not for ioctl(2): the kernel makes it ENOTTY. A restart code must not get out.
    assert_eq!(ioctl(command::FAIL, libc::ENOSYS as u64), Err(libc::ENOTTY));
    assert_eq!(ioctl(command::FAIL, 512), Err(libc::EIO));
    assert_eq!(ioctl(0x5477, 0), Err(libc::ENOTTY));
    let unrestricted = i64::from(transport == Transport::Cuse);
    assert_eq!(ioctl(command::IS_UNRESTRICTED, 0), Ok(unrestricted));
}

fn data_by_size_bits(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let data: Vec<u8> = (0..16).collect();
    let inverted: Vec<u8> = data.iter().map(|byte| !byte).collect();
    let call = format!("{file} {} {}", command::INVERT_16, to_hex(&data));
    assert_eq!(client.call(format!("data {call}")), Ok((5, inverted.clone())));
    if is_x86_64() {
        assert_eq!(client.call(format!("data32 {call}")), Ok((5, inverted)));
    }
    let bad = format!("ioctl {file} {} 4096", command::INVERT_16);
    assert_eq!(client.value(bad), Err(libc::EFAULT));
}

fn compat(transport: Transport) {
    if !is_x86_64() {
        eprintln!("skipped: only tried on x86_64");
        return;
    }
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let call = format!("{file} {} 0", command::IS_COMPAT);
    assert_eq!(client.value(format!("ioctl {call}")), Ok(0));
    assert_eq!(client.value(format!("ioctl32 {call}")), Ok(1));
    assert_eq!(client.value(format!("ioctl32 {file} {} 9", command::SAME)), Ok(9));
}

fn is_x86_64() -> bool {
    cfg!(target_arch = "x86_64")
}

fn caller(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let thread = client.value("tid").unwrap();
    client.open(&served.path);
    let callers = served.node.callers.lock().unwrap();
    assert_eq!(i64::from(callers[0].tid), thread);
    assert_eq!(callers[0].uid, rustix::process::geteuid().as_raw());
    assert_eq!(callers[0].gid, rustix::process::getegid().as_raw());
}

fn panic(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    for _ in 0..5 {
        let call = format!("ioctl {file} {} 0", command::PANIC);
        assert_eq!(client.value(call), Err(libc::EIO));
        assert_eq!(client.value(format!("ioctl {file} {} 3", command::SAME)), Ok(3));
    }
    client.finish();
    await_that("release", || served.released() == 1);
    assert_eq!(served.stop().abandoned, 0);
}

fn too_much_output(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    assert_eq!(client.value(format!("ioctl {file} {} 0", command::TOO_MUCH)), Err(libc::EIO));
    // So is a RETRY where the kernel does not allow it, or of more than it would move.
    if transport == Transport::File {
        assert_eq!(client.value(format!("data {file} {} 00", command::RETRY)), Err(libc::EIO));
    }
}

fn interrupt(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    for restart in ["restart", "interrupt"] {
        let begun = Instant::now();
        client.value(format!("alarm 50 0 {restart}")).unwrap();
        let call = format!("ioctl {file} {} 60000", command::SLOW);
        assert_eq!(client.value(call), Err(libc::EINTR));
        assert!(begun.elapsed() < PATIENCE);
    }
    assert_eq!(served.node.interrupted.load(Ordering::SeqCst), 2);
    assert_eq!(served.node.hooks.load(Ordering::SeqCst), 2);
    // Interrupts are not switched off by the first.
    client.value("alarm 50 0 restart").unwrap();
    let call = format!("ioctl {file} {} 60000", command::SLOW);
    assert_eq!(client.value(call), Err(libc::EINTR));
}

fn stubborn(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.value("alarm 20 20 restart").unwrap();
    assert_eq!(client.value(format!("ioctl {file} {} 500", command::STUBBORN)), Ok(7));
    client.value("alarm 0 0 restart").unwrap();
    assert_eq!(served.node.interrupted.load(Ordering::SeqCst), 1);
    // One interrupt for one request, however many signals and however late the answer.
    assert_eq!(served.node.hooks.load(Ordering::SeqCst), 1);
}

fn hopeless(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.value("alarm 50 0 interrupt").unwrap();
    let call = format!("ioctl {file} {} 0", command::HOPELESS);
    assert_eq!(client.value(call), Err(libc::EINTR));
    assert_eq!(served.node.finished.load(Ordering::SeqCst), 0);
    // Its handler is still there; the file works, and can be closed.
    assert_eq!(client.value(format!("ioctl {file} {} 3", command::SAME)), Ok(3));
    client.finish();
    await_that("release", || served.released() == 1);
    served.node.open_gate();
    await_that("the handler", || served.node.finished.load(Ordering::SeqCst) == 1);
    assert_eq!(served.stop().abandoned, 0);
}

/// The kernel's own restart, which facts about fs/fuse say works: the program sees no EINTR and no
/// internal errno, whatever its handler was installed with.
fn again(transport: Transport) {
    for restart in ["restart", "interrupt"] {
        let served = Served::new(transport);
        let mut client = Client::new();
        let file = client.open(&served.path);
        client.value(format!("alarm 50 0 {restart}")).unwrap();
        assert_eq!(client.value(format!("ioctl {file} {} 0", command::AGAIN)), Ok(9));
        // The open, and the call twice.
        assert_eq!(served.node.entered.load(Ordering::SeqCst), 3);
        client.finish();
    }
}

fn again_at_the_end(transport: Transport) {
    let options = ServeOptions { stop_grace: Duration::from_secs(4), ..ServeOptions::default() };
    let mut served = Served::with(transport, options);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("ioctl {file} {} 0", command::AGAIN));
    await_that("the handler", || served.node.entered.load(Ordering::SeqCst) == 2);
    served.begin_stop();
    assert_eq!(client.result(), Err(libc::EINTR));
    assert_eq!(served.ended().abandoned, 0);
}

fn killed(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("ioctl {file} {} 60000", command::SLOW));
    await_that("the handler", || served.node.entered.load(Ordering::SeqCst) == 2);
    client.kill();
    assert!(client.is_gone_within(PATIENCE), "the caller cannot be killed");
    await_that("release", || served.released() == 1);
    assert_eq!(served.node.interrupted.load(Ordering::SeqCst), 1);
    assert_eq!(served.stop().released, 0);
}

fn killed_while_opening(transport: Transport) {
    let served = Served::new(transport);
    *served.node.open_takes.lock().unwrap() = Duration::from_millis(300);
    let mut client = Client::new();
    client.begin(format!("open {} {}", served.path.display(), libc::O_RDWR));
    await_that("the handler", || served.node.entered.load(Ordering::SeqCst) == 1);
    client.kill();
    assert!(client.is_gone_within(PATIENCE));
    await_that("release", || served.released() == 1);
    assert_eq!(served.stop().released, 0);
}

fn signal_storm(transport: Transport) {
    let served = Served::new(transport);
    let mut clients: Vec<_> = (0..4).map(|_| Client::new()).collect();
    for client in &mut clients {
        let file = client.open(&served.path);
        client.value("alarm 1 1 restart").unwrap();
        client.begin(format!("repeat {file} {} 1 1000", command::SAME));
    }
    for mut client in clients {
        // Interrupted or not, every call gets its own answer.
        assert_eq!(client.result(), Ok((1000, vec![])));
        client.finish();
    }
    await_that("release", || served.released() == 4);
    let ended = served.stop();
    assert_eq!((ended.released, ended.abandoned), (0, 0));
}

fn blocked_callers(transport: Transport) {
    let served = Served::new(transport);
    let mut blocked: Vec<_> = (0..5).map(|_| Client::new()).collect();
    for client in &mut blocked {
        let file = client.open(&served.path);
        client.begin(format!("ioctl {file} {} 0", command::BLOCK));
    }
    await_that("blocking", || served.node.blocked.load(Ordering::SeqCst) == 5);
    let mut other = Client::new();
    let file = other.open(&served.path);
    assert_eq!(other.value(format!("repeat {file} {} 1 1000", command::SAME)), Ok(1000));
    // A caller that blocks cannot be got rid of without an answer, but it holds up nobody.
    served.node.open_gate();
    for client in &mut blocked {
        assert_eq!(client.result(), Ok((1, vec![])));
    }
}

/// Results of a burst: how many of its calls returned `result`.
fn count(pairs: &[u8], result: i8) -> u8 {
    let found = pairs.chunks(2).find(|pair| pair[0] == result as u8);
    found.map_or(0, |pair| pair[1])
}

const BUSY: i8 = -(libc::EBUSY as i8);

fn handle_limit(transport: Transport) {
    let options = ServeOptions { per_handle_limit: 8, ..ServeOptions::default() };
    let served = Served::with(transport, options);
    let mut greedy = Client::new();
    let file = greedy.open(&served.path);
    let files = format!(" {file}").repeat(20);
    greedy.begin(format!("burst {} 0{files}", command::BLOCK));
    await_that("the limit", || served.node.blocked.load(Ordering::SeqCst) == 8);
    // Another handle, even of the same process, is not concerned.
    let mut other = Client::new();
    let file = other.open(&served.path);
    assert_eq!(other.value(format!("ioctl {file} {} 4", command::SAME)), Ok(4));
    assert_eq!(greedy.ends_within(Duration::from_millis(50)), None);
    served.node.open_gate();
    let (_, results) = greedy.result().unwrap();
    assert_eq!((count(&results, 1), count(&results, BUSY)), (8, 12));
    // And the limit is of requests at a time.
    let (_, results) = greedy.call(format!("burst {} 0 3", command::SAME)).unwrap();
    assert_eq!(count(&results, 0), 1);
}

fn fairness(transport: Transport) {
    let options = ServeOptions { max_threads: 24, ..ServeOptions::default() };
    let served = Served::with(transport, options);
    let mut greedy: Vec<_> = (0..3).map(|_| Client::new()).collect();
    for client in &mut greedy {
        let file = client.open(&served.path);
        client.begin(format!("burst {} 0{}", command::BLOCK, format!(" {file}").repeat(30)));
    }
    // Three handles that want everything get about a quarter of the threads each.
    await_that("the limit", || served.node.blocked.load(Ordering::SeqCst) >= 12);
    std::thread::sleep(Duration::from_millis(200));
    let taken = served.node.blocked.load(Ordering::SeqCst);
    assert!(taken <= 21, "{taken} of 24 threads are taken");
    let mut other = Client::new();
    let file = other.open(&served.path);
    assert_eq!(other.value(format!("ioctl {file} {} 4", command::SAME)), Ok(4));
    served.node.open_gate();
    for client in &mut greedy {
        let (_, results) = client.result().unwrap();
        assert_eq!(count(&results, 1) + count(&results, BUSY), 30);
        assert!(count(&results, 1) > 0);
    }
}

fn exhaustion(transport: Transport) {
    let options = ServeOptions { max_threads: 4, ..ServeOptions::default() };
    let served = Served::with(transport, options);
    let mut blocked: Vec<_> = (0..3).map(|_| Client::new()).collect();
    for client in &mut blocked {
        let file = client.open(&served.path);
        client.begin(format!("ioctl {file} {} 0", command::BLOCK));
    }
    await_that("blocking", || served.node.blocked.load(Ordering::SeqCst) == 3);
    // The fourth thread runs nothing that may block, and serves everything else.
    let mut other = Client::new();
    let file = other.open(&served.path);
    let call = format!("ioctl {file} {} 4", command::SAME);
    assert_eq!(other.value(&call), Err(libc::EBUSY));
    assert_eq!(other.value(format!("poll {file} {} 0", libc::POLLOUT)), Ok(libc::POLLOUT.into()));
    other.value(format!("close {file}")).unwrap();
    await_that("release", || served.released() == 1);
    served.node.open_gate();
    for client in &mut blocked {
        assert_eq!(client.result(), Ok((1, vec![])));
    }
    let file = other.open(&served.path);
    assert_eq!(other.value(format!("ioctl {file} {} 4", command::SAME)), Ok(4));
}

fn early(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    assert_eq!(client.value(format!("ioctl {file} {} 300", command::EARLY)), Err(libc::EIO));
    assert_eq!(served.node.finished.load(Ordering::SeqCst), 0);
    assert_eq!(client.value(format!("ioctl {file} {} 6", command::SAME)), Ok(6));
    await_that("the handler", || served.node.finished.load(Ordering::SeqCst) == 1);
    assert_eq!(client.value(format!("ioctl {file} {} 6", command::SAME)), Ok(6));
}

fn poll(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    let (input, both) = (libc::POLLIN, libc::POLLIN | libc::POLLOUT);
    assert_eq!(client.value(format!("poll {file} {both} 0")), Ok(libc::POLLOUT.into()));
    assert_eq!(client.value(format!("poll {file} {input} 10")), Ok(0));
    client.begin(format!("poll {file} {input} -1"));
    assert_eq!(client.ends_within(Duration::from_millis(100)), None);
    // Fed from outside, as by a device: the handle of the first open is 100.
    served.node.feed(100, 9);
    assert_eq!(client.result(), Ok((input.into(), vec![])));
    assert_eq!(client.call(format!("read {file} 10")), Ok((1, vec![9])));
    client.begin(format!("poll {file} {input} -1"));
    assert_eq!(client.ends_within(Duration::from_millis(100)), None);
    served.node.feed(100, 8);
    assert_eq!(client.result(), Ok((input.into(), vec![])));
}

fn read_and_write(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    let file = client.value(format!("open {} {flags}", served.path.display())).unwrap();
    assert_eq!(client.call(format!("read {file} 10")), Err(libc::EAGAIN));
    assert_eq!(client.value(format!("write {file} 010203")), Ok(3));
    assert_eq!(client.call(format!("read {file} 2")), Ok((2, vec![1, 2])));
    assert_eq!(client.call(format!("read {file} 2")), Ok((1, vec![3])));
    assert_eq!(client.value(format!("write {file} 00")), Err(libc::EINVAL));
    // 128 KiB is the most that one request carries either way.
    let big = to_hex(&vec![7; 128 << 10]);
    assert_eq!(client.value(format!("write {file} {big}")), Ok(128 << 10));
    let (count, data) = client.call(format!("read {file} {}", 128 << 10)).unwrap();
    assert_eq!(count, 128 << 10);
    assert!(data.iter().all(|byte| *byte == 7));
}

fn blocked_read(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("read {file} 10"));
    assert_eq!(client.ends_within(Duration::from_millis(100)), None);
    served.node.feed(100, 5);
    assert_eq!(client.result(), Ok((1, vec![5])));
    client.value("alarm 50 0 interrupt").unwrap();
    assert_eq!(client.call(format!("read {file} 10")), Err(libc::EINTR));
    client.begin(format!("read {file} 10"));
    assert_eq!(client.ends_within(Duration::from_millis(50)), None);
    client.kill();
    assert!(client.is_gone_within(PATIENCE));
    await_that("release", || served.released() == 1);
}

/// A caller whose read of an open file of its own is parked.
fn parked_client(served: &Served, handle: u64) -> (Client, i64) {
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.value(format!("ioctl {file} {} 0", command::PARK)).unwrap();
    client.begin(format!("read {file} 10"));
    await_that("parking", || served.node.waiting(handle) == 1);
    (client, file)
}

fn parked_reads(transport: Transport) {
    let options = ServeOptions { max_threads: 3, ..ServeOptions::default() };
    let served = Served::with(transport, options);
    let mut parked: Vec<_> = (100..108).map(|handle| parked_client(&served, handle).0).collect();
    // More than there are threads; and all of these are free.
    let mut other = Client::new();
    let file = other.open(&served.path);
    assert_eq!(other.value(format!("repeat {file} {} 1 100", command::SAME)), Ok(100));
    for (client, handle) in parked.iter_mut().zip(100..) {
        assert_eq!(client.ends_within(Duration::ZERO), None);
        served.node.feed(handle, handle as u8);
        assert_eq!(client.result(), Ok((1, vec![handle as u8])));
    }
}

fn parked_and_interrupted(transport: Transport) {
    let served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.value(format!("ioctl {file} {} 0", command::PARK)).unwrap();
    for restart in ["restart", "interrupt"] {
        client.value(format!("alarm 50 0 {restart}")).unwrap();
        assert_eq!(client.call(format!("read {file} 10")), Err(libc::EINTR));
    }
    // A signal that comes before the read is parked.
    client.value(format!("ioctl {file} {} 1", command::PARK)).unwrap();
    client.value("alarm 50 0 interrupt").unwrap();
    assert_eq!(client.call(format!("read {file} 10")), Err(libc::EINTR));
    client.value(format!("ioctl {file} {} 0", command::PARK)).unwrap();
    // And at any moment.
    client.value("alarm 1 1 interrupt").unwrap();
    for _ in 0..200 {
        assert_eq!(client.call(format!("read {file} 10")), Err(libc::EINTR));
    }
    client.value("alarm 0 0 interrupt").unwrap();
    // What comes next is not given to those that are gone.
    served.node.feed(100, 7);
    assert_eq!(client.call(format!("read {file} 10")), Ok((1, vec![7])));
    client.begin(format!("read {file} 10"));
    await_that("parking", || served.node.waiting(100) == 1);
    client.kill();
    assert!(client.is_gone_within(PATIENCE), "the caller cannot be killed");
    await_that("release", || served.released() == 1);
}

fn parked_and_dropped(transport: Transport) {
    let served = Served::new(transport);
    let (mut client, file) = parked_client(&served, 100);
    served.node.forget(100);
    assert_eq!(client.result(), Err(libc::EIO));
    assert_eq!(client.value(format!("ioctl {file} {} 3", command::SAME)), Ok(3));
}

fn parked_limit(transport: Transport) {
    let options = ServeOptions { per_handle_limit: 4, ..ServeOptions::default() };
    let served = Served::with(transport, options);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.value(format!("ioctl {file} {} 0", command::PARK)).unwrap();
    client.begin(format!("reads {file} 10"));
    await_that("parking", || served.node.waiting(100) == 4);
    assert_eq!(client.ends_within(Duration::from_millis(100)), None);
    // Each gets one.
    (0..4).for_each(|record| served.node.feed(100, record));
    let (_, results) = client.result().unwrap();
    assert_eq!((count(&results, 1), count(&results, BUSY)), (4, 6));
}

/// What a caller may see once the node is gone.
fn is_gone(errno: i32) -> bool {
    [libc::ENOTCONN, libc::ECONNABORTED, libc::ENODEV].contains(&errno)
}

fn stop_with_open_files(transport: Transport) {
    let mut served = Served::new(transport);
    let mut clients: Vec<_> = (0..3).map(|_| Client::new()).collect();
    let files: Vec<_> = clients.iter_mut().map(|client| client.open(&served.path)).collect();
    clients[0].begin(format!("poll {} {} -1", files[0], libc::POLLIN));
    assert_eq!(clients[0].ends_within(Duration::from_millis(50)), None);
    let begun = Instant::now();
    served.begin_stop();
    let ended = served.ended();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!((ended.reason, ended.released, ended.abandoned), (EndReason::Stopped, 3, 0));
    let mut released = served.node.released.lock().unwrap().clone();
    released.sort_unstable();
    assert_eq!(released, [100, 101, 102]);
    // The poll ends, too: with an error, or as the kernel polls a dead connection.
    assert!(clients[0].ends_within(PATIENCE).is_some());
    for (client, file) in clients.iter_mut().zip(files) {
        let errno = client.value(format!("ioctl {file} {} 0", command::SAME)).unwrap_err();
        assert!(is_gone(errno), "{errno}");
    }
    assert!(!served.path.exists(), "the node is still there");
    for client in clients {
        client.finish();
    }
}

fn stop_in_progress(transport: Transport) {
    let mut served = Served::new(transport);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("ioctl {file} {} 400", command::STUBBORN));
    await_that("the handler", || served.node.blocked.load(Ordering::SeqCst) == 1);
    served.begin_stop();
    assert_eq!(client.result(), Ok((7, vec![])));
    let ended = served.ended();
    assert_eq!((ended.released, ended.abandoned), (1, 0));
    // Finished by itself, without being interrupted.
    assert_eq!(served.node.interrupted.load(Ordering::SeqCst), 0);
}

fn stop_interrupts(transport: Transport) {
    let options = ServeOptions { stop_grace: Duration::from_secs(4), ..ServeOptions::default() };
    let mut served = Served::with(transport, options);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("ioctl {file} {} 60000", command::SLOW));
    await_that("the handler", || served.node.entered.load(Ordering::SeqCst) == 2);
    served.begin_stop();
    assert_eq!(client.result(), Err(libc::EINTR));
    let ended = served.ended();
    assert_eq!((ended.released, ended.abandoned), (1, 0));
}

fn stop_with_stuck(transport: Transport) {
    let options =
        ServeOptions { stop_grace: Duration::from_millis(300), ..ServeOptions::default() };
    let mut served = Served::with(transport, options);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("ioctl {file} {} 0", command::BLOCK));
    await_that("blocking", || served.node.blocked.load(Ordering::SeqCst) == 1);
    served.begin_stop();
    let ended = served.ended();
    assert_eq!((ended.released, ended.abandoned), (1, 1));
    assert_eq!(client.result(), Err(libc::ECONNABORTED));
    let errno = client.value(format!("ioctl {file} {} 0", command::SAME)).unwrap_err();
    assert!(is_gone(errno), "{errno}");
    client.finish();
    assert_eq!(served.released(), 1);
    // Although the thread that is stuck still has the descriptor.
    assert!(!served.path.exists(), "the node is still there");
}

fn stop_with_blocked_read(transport: Transport) {
    let mut served = Served::new(transport);
    let (mut parked, _) = parked_client(&served, 100);
    let mut client = Client::new();
    let file = client.open(&served.path);
    client.begin(format!("read {file} 10"));
    assert_eq!(client.ends_within(Duration::from_millis(100)), None);
    let begun = Instant::now();
    served.begin_stop();
    let ended = served.ended();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((ended.released, ended.abandoned), (2, 0));
    assert_eq!(client.result(), Err(libc::EINTR));
    assert_eq!(parked.result(), Err(libc::EINTR));
}

fn stop_with_stuck_release(transport: Transport) {
    let options =
        ServeOptions { stop_grace: Duration::from_millis(300), ..ServeOptions::default() };
    let mut served = Served::with(transport, options);
    let mut client = Client::new();
    client.open(&served.path);
    client.open(&served.path);
    served.node.release_blocks.store(true, Ordering::SeqCst);
    served.begin_stop();
    let ended = served.ended();
    assert_eq!((ended.released, ended.unreleased, ended.abandoned), (0, 2, 0));
    assert!(!served.path.exists(), "the node is still there");
}

fn stop_with_queued(transport: Transport) {
    let options = ServeOptions { stop_grace: Duration::from_secs(1), ..ServeOptions::default() };
    let mut served = Served::with(transport, options);
    let mut clients = [Client::new(), Client::new()];
    let files = clients.each_mut().map(|client| client.open(&served.path));
    clients[0].begin(format!("ioctl {} {} 0", files[0], command::BLOCK));
    await_that("blocking", || served.node.blocked.load(Ordering::SeqCst) == 1);
    served.begin_stop();
    std::thread::sleep(Duration::from_millis(300));
    // Nobody reads any longer.
    clients[1].begin(format!("ioctl {} {} 0", files[1], command::SAME));
    served.ended();
    for client in &mut clients {
        let errno = client.result().unwrap_err();
        assert!(is_gone(errno), "{errno}");
    }
}

fn stop_at_once(transport: Transport) {
    for _ in 0..20 {
        let served = Served::new(transport);
        let path = served.path.clone();
        let begun = Instant::now();
        assert_eq!(served.stop().reason, EndReason::Stopped);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(!path.exists());
    }
}

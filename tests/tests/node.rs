//! The node of a private daemon, used by programs as it is meant to be, and as it is not.

use ioasid_tests::harness::{
    Daemon, PATIENCE, Rights, c_program, finish, is_mounted, kill, succeed, wait,
};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// A daemon, or the end of the test where none can be had.
macro_rules! daemon {
    ($rights:expr) => {
        match Daemon::start($rights) {
            Some(daemon) => daemon,
            None => return,
        }
    };
}

fn says_ok(output: &std::process::Output) -> usize {
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("ok: ")).count()
}

#[test]
fn bytes_go_both_ways_and_not_after_the_unmap() {
    let daemon = daemon!(Rights::Own);
    let output = daemon.run("first-light-sim", &["sim0"]);
    assert!(says_ok(&output) > 10, "it has shown too little");
    assert!(daemon.stop().success());
}

#[test]
fn an_ordinary_user_needs_no_privilege() {
    let daemon = daemon!(Rights::Ordinary);
    daemon.run("first-light-sim", &["sim1"]);
    daemon.run("many-clients", &["8", "sim0", "sim1"]);
    memory_kinds(&daemon);
    daemon.run("moving", &["sim0", "sim1"]);
    daemon.run("registered", &["sim0", "--unprivileged"]);
    daemon.run("flows", &["sim0", "sim1"]);
    daemon.run("vector", &["sim0"]);
    daemon.run("dirty", &["sim0"]);
    daemon.run("faults", &["sim2"]);
    assert!(daemon.stop().success());
}

#[test]
fn every_wrong_argument_is_refused_and_explained() {
    let daemon = daemon!(Rights::Own);
    let mut command = daemon.command(Path::new(env!("CARGO_BIN_EXE_bad-input")));
    command.arg("--node").arg(daemon.node());
    command.args(["--simulated", "sim0", "--simulated", "sim1"]);
    succeed(command);
}

fn memory_kinds(daemon: &Daemon) {
    let unprivileged: &[&str] = if daemon.is_unprivileged() { &["--unprivileged"] } else { &[] };
    daemon.run("memory-kinds", &[&["--simulated", "sim0"], unprivileged].concat());
}

#[test]
fn memory_of_every_kind_is_reached() {
    let daemon = daemon!(Rights::Own);
    memory_kinds(&daemon);
}

#[test]
fn two_programs_are_strangers() {
    let daemon = daemon!(Rights::Own);
    daemon.run("two-programs", &["--simulated", "sim0", "--simulated", "sim1", "256"]);
}

#[test]
fn devices_move_with_every_kind_of_memory() {
    let daemon = daemon!(Rights::Own);
    daemon.run("moving", &["sim0", "sim1"]);
}

#[test]
fn groups_that_share_a_table_are_one_until_they_part() {
    let daemon = daemon!(Rights::Own);
    daemon.run("shared-table", &["sim0", "sim1"]);
}

#[test]
fn the_node_is_a_container_as_of_vfio() {
    let daemon = daemon!(Rights::Own);
    daemon.run("container", &["sim0", "sim1"]);
}

#[test]
fn a_device_that_faults_is_told_of_and_goes_on() {
    let daemon = daemon!(Rights::Own);
    daemon.run("faults", &["sim0"]);
    assert!(daemon.stop().success());
}

#[test]
fn the_flows_of_the_proposal_work_step_by_step() {
    let daemon = daemon!(Rights::Own);
    daemon.run("flows", &["sim0", "sim1"]);
    assert!(daemon.stop().success());
}

#[test]
fn a_table_that_is_full_is_left_as_it_was() {
    let daemon = daemon!(Rights::Own);
    daemon.run("flows", &["--small", "small", "sim1"]);
}

#[test]
fn page_tables_of_programs_translate_whatever_they_hold() {
    let daemon = daemon!(Rights::Own);
    daemon.run("page-tables", &["sim0", "sim1"]);
    assert!(daemon.stop().success());
}

#[test]
fn each_pasid_goes_its_own_way() {
    let daemon = daemon!(Rights::Own);
    daemon.run("pasids", &["sim0", "sim1"]);
    assert!(daemon.stop().success());
}

#[test]
fn what_holds_of_iommufd_holds_here() {
    let daemon = daemon!(Rights::Own);
    daemon.run("iommufd-cases", &["sim0", "sim1"]);
    assert!(daemon.stop().success());
}

#[test]
fn many_operations_are_one_call() {
    let daemon = daemon!(Rights::Own);
    daemon.run("vector", &["sim0"]);
}

#[test]
fn pages_that_devices_write_are_told_once() {
    let daemon = daemon!(Rights::Own);
    daemon.run("dirty", &["sim0"]);
}

#[test]
fn registered_memory_is_pinned_until_it_is_unregistered() {
    let daemon = daemon!(Rights::Own);
    let unprivileged: &[&str] = if daemon.is_unprivileged() { &["--unprivileged"] } else { &[] };
    daemon.run("registered", &[&["sim0"], unprivileged].concat());
}

#[test]
fn locked_memory_is_limited_and_given_back() {
    let daemon = daemon!(Rights::Own);
    daemon.run("locked-limit", &["sim0", "sim1"]);
}

#[test]
fn a_read_only_file_is_never_written() {
    let daemon = daemon!(Rights::Own);
    daemon.run("attacker", &["--simulated", "sim0", "10000"]);
}

#[test]
fn memory_that_never_comes_stops_nobody_else() {
    let daemon = daemon!(Rights::Own);
    daemon.run("stuck-memory", &[]);
}

#[test]
fn signals_leave_no_call_half_done() {
    let daemon = daemon!(Rights::Own);
    daemon.run("interrupted", &["--simulated", "sim0", "400"]);
}

#[test]
fn programs_with_32_bits_are_refused() {
    let daemon = daemon!(Rights::Own);
    daemon.run("compat32", &[]);
}

#[test]
fn many_clients_at_once_share_a_few_devices() {
    let daemon = daemon!(Rights::Own);
    daemon.run("many-clients", &["64", "sim0", "sim1", "sim2", "sim3"]);
    assert!(daemon.stop().success());
}

#[test]
fn daemons_side_by_side_know_nothing_of_each_other() {
    let first = daemon!(Rights::Own);
    let second = daemon!(Rights::Own);
    // The same name is another device of another daemon.
    let mut held = first.hold("first-light-sim", &["sim0", "--hold"]);
    second.run("first-light-sim", &["sim0"]);
    assert!(second.stop().success());
    let mut others = first.command(c_program("first-light-sim"));
    others.arg(first.node()).arg("sim0");
    assert!(!finish(others).status.success(), "a device that is held was bound again");
    first.run("first-light-sim", &["sim1"]);
    kill(&mut held).unwrap();
}

#[test]
fn a_killed_program_leaves_its_device_to_the_next() {
    let daemon = daemon!(Rights::Own);
    for _ in 0..5 {
        let mut held = daemon.hold("first-light-sim", &["sim0", "--hold"]);
        kill(&mut held).unwrap();
        let give_up = Instant::now() + PATIENCE;
        // The kernel tells the daemon of the close after the program is gone.
        loop {
            let mut next = daemon.command(c_program("first-light-sim"));
            next.arg(daemon.node()).arg("sim0");
            let output = finish(next);
            if output.status.success() {
                break;
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("BIND_DEVICE"), "{said}");
            assert!(Instant::now() < give_up, "the device is still not free: {said}");
        }
    }
}

#[test]
fn stopping_under_programs_that_hold_the_node_leaves_no_mount() {
    let daemon = daemon!(Rights::Own);
    let node = daemon.node();
    let mut held = daemon.hold("first-light-sim", &["sim0", "--hold"]);
    let mut other = daemon.hold("first-light-sim", &["sim1", "--hold"]);
    let status = daemon.stop();
    assert!(status.success(), "the daemon ended with {status}");
    assert!(!is_mounted(&node));
    // The programs live on, and can be killed.
    assert!(held.try_wait().unwrap().is_none() && other.try_wait().unwrap().is_none());
    kill(&mut held).unwrap();
    kill(&mut other).unwrap();
}

#[test]
fn stopping_under_load_hangs_nobody() {
    let daemon = daemon!(Rights::Own);
    let mut command = daemon.command(c_program("many-clients"));
    command.arg(daemon.node()).args(["32", "sim0", "sim1"]);
    let mut clients = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(daemon.stop().success());
    // They fail, or were done already; but they end.
    wait(&mut clients).unwrap();
}

#[test]
fn the_proposals_samples_ask_for_what_stock_kernels_have_not() {
    // On a descriptor that is no VFIO device of a kernel with IOASIDs the sample ends with a
    // sentence that says what to do. (That it works under ioasid-run is that room's test.)
    let mut command = Command::new(c_program("rfc-samples"));
    command.args(["5.1", "/dev/null", "/dev/null", "1"]);
    let output = finish(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("ioasid-run"), "{said}");
}

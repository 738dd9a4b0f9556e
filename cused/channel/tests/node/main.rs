//! A channel as programs meet it: a real node, and callers in processes of their own.
//!
//! Every rule that holds for both transports is tried over both, in `common`; what only one of them
//! has is in `cuse` and `file`, and what happens when
//! servers die is in `heir`. Trials that this machine cannot run are counted as ignored, with the
//! reason. All of them run in the laboratory's virtual machine:
//!
//! ```text
//! cargo test -p cuse-channel --test node --no-run
//! scripts/lab --kernel 6.1 -- target/debug/deps/node-HASH --test-threads=1
//! ```
//!
//! The process under test never has its own node open: all callers are children, see `client`.

mod client;
mod common;
mod cuse;
mod file;
mod heir;
mod lab;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if client::is_wanted() {
        client::run();
        return ExitCode::SUCCESS;
    }
    if file::has_part() {
        file::play_part();
        return ExitCode::SUCCESS;
    }
    if heir::is_one() {
        heir::play();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let trials = [common::trials(), cuse::trials(), file::trials(), heir::trials()];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// A trial, ignored if there is a reason.
fn trial(name: String, obstacle: Option<String>, test: fn()) -> Trial {
    trial_with(name, obstacle, test)
}

fn trial_with(
    name: String,
    obstacle: Option<String>,
    test: impl FnOnce() + Send + 'static,
) -> Trial {
    let ignored = obstacle.is_some();
    let watched = {
        let name = name.clone();
        move || {
            let _watchdog = lab::Watchdog::new(name);
            test();
            Ok(())
        }
    };
    Trial::test(name, watched).with_ignored_flag(ignored).with_kind(obstacle.unwrap_or_default())
}

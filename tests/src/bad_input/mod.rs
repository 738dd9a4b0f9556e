//! The matrix of wrong arguments: every command of the header, with everything that can be wrong.
//!
//! Each row is one call, and of each it is held that
//! - it gives the errno of the contract (or succeeds, where what looks odd is allowed)
//! - a failure is explained by IOASID_GET_ERROR, with the command and errno that failed
//! - a failure changes nothing: what all opens hold is the same as before
//! - the open still works: ALLOC and FREE succeed
//!
//! [`world`] sets the scene and calls, [`rows`] is the table.

pub mod rows;
pub mod world;

use crate::raw::{Argument, errno_name};
use anyhow::Result;
use ioasid_uapi::cmd;
use rustix::io::Errno;
use std::fmt;
use world::{Open, World};

/// What a call must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It gives no error.
    Success,
    /// It gives this error.
    Fails(Errno),
    /// It gives one of these: the header allows each of them.
    FailsAny(Vec<Errno>),
}

impl Expect {
    fn is_met_by(&self, result: &Result<i32, Errno>) -> bool {
        match (self, result) {
            (Self::Success, Ok(_)) => true,
            (Self::Fails(expected), Err(got)) => expected == got,
            (Self::FailsAny(expected), Err(got)) => expected.contains(got),
            _ => false,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Fails(errno) => f.write_str(&errno_name(*errno)),
            Self::FailsAny(errnos) => {
                f.write_str(&errnos.iter().map(|&e| errno_name(e)).collect::<Vec<_>>().join(" or "))
            }
        }
    }
}

/// Where the structure of a row is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In ordinary memory.
    Ordinary,
    /// At an odd address in ordinary memory.
    Odd,
    /// In memory that the program can only read.
    ReadOnly,
    /// So that it ends where memory ends.
    AtTheEnd,
    /// So that only this many of its bytes are in memory, and the rest behind its end.
    CutAfter(u64),
    /// Nowhere: the argument is this address.
    Nowhere(u64),
}

impl Place {
    /// Whether all of the structure can be read.
    fn is_in_memory(self) -> bool {
        !matches!(self, Self::CutAfter(_) | Self::Nowhere(_))
    }
}

/// The argument of a row.
#[derive(Clone, Debug)]
pub enum Input {
    /// A number.
    Value(u64),
    /// A structure, and possibly bytes behind it.
    Structure(Vec<u8>, Place),
}

/// Something to do before or after a row.
pub type Step = fn(&World);
/// A look at what a successful row left in its structure: None, or what is wrong with it.
pub type Look = fn(&World, &[u8]) -> Option<String>;

/// One call and what it must do.
pub struct Row {
    /// What is wrong in it.
    pub name: String,
    /// The ioctl.
    pub command: u32,
    /// Its argument.
    pub input: Input,
    /// The open that it is made on.
    pub open: Open,
    /// What it must do.
    pub expect: Expect,
    /// Done before it.
    pub before: Option<Step>,
    /// Done after it has succeeded, to undo it.
    pub undo: Option<Step>,
    /// Done after it in any case, to undo `before`.
    pub after: Option<Step>,
    /// What to look at in the structure afterwards, whatever the result.
    pub look: Option<Look>,
}

impl Row {
    /// The command's name as in the header, or its number.
    pub fn command_name(&self) -> String {
        match cmd::name(self.command) {
            Some(name) => name.trim_start_matches("IOASID_").to_string(),
            None => format!("{:#x}", self.command),
        }
    }

    /// Makes the call in the scene, in which there is `at_first`. Gives what is not as it should be.
    pub fn run(&self, world: &World, at_first: &[String]) -> Vec<String> {
        let mut wrong = Vec::new();
        let before = self.before.map(|step| {
            step(world);
            world.snapshot()
        });
        let before = before.as_deref().unwrap_or(at_first);
        if self.command == cmd::GET_ERROR && self.open != Open::Fresh {
            world.fail_free(self.open);
        }
        let argument = world.place(&self.input);
        let result = world.call(self.open, self.command, argument);
        if !self.expect.is_met_by(&result) {
            let got = result.map_or_else(errno_name, |value| format!("success ({value})"));
            let said = result.err().and_then(|_| world.last_error(self.open)).map(|e| e.text);
            let said = said.map_or(String::new(), |text| format!(": {text}"));
            wrong.push(format!("expected {}, got {got}{said}", self.expect));
        }
        if let Err(errno) = result {
            wrong.extend(self.explanation(world, errno));
            if self.after.is_some() {
                wrong.extend(difference("it failed, but something has changed", before, world));
            }
        }
        if let (Some(look), Argument::Address(address)) = (self.look, argument)
            && let Input::Structure(bytes, place) = &self.input
            && place.is_in_memory()
        {
            wrong.extend(look(world, &world.bytes(address, bytes.len())));
        }
        if let (Ok(_), Some(undo)) = (result, self.undo) {
            undo(world);
        }
        if let Some(after) = self.after {
            after(world);
        }
        wrong.extend(difference("afterwards something has changed", at_first, world));
        if let Err(errno) = world.alloc_and_free(self.open) {
            wrong.push(format!("afterwards ALLOC and FREE give {}", errno_name(errno)));
        }
        wrong
    }

    /// What is wrong with the explanation of a failure.
    fn explanation(&self, world: &World, errno: Errno) -> Option<String> {
        if world.kernel_copies && errno == Errno::FAULT {
            return None; // the daemon has not heard of it
        }
        let Some(error) = world.last_error(self.open) else {
            let own_failure = self.command == cmd::GET_ERROR && self.open == Open::Fresh;
            return (!own_failure).then(|| "it was not explained".into());
        };
        if self.command == cmd::GET_ERROR {
            // GET_ERROR's own failures are not kept: what was provoked must still be there.
            let kept = (error.command, error.errno) == (cmd::FREE, Errno::NOENT);
            return (!kept).then(|| "GET_ERROR's failure replaced the one before".into());
        }
        if (error.command, error.errno) != (self.command, errno) {
            return Some(format!(
                "the explanation is of command {:#x} and {}",
                error.command,
                errno_name(error.errno)
            ));
        }
        world::flaw_of_a_sentence(&error.text)
    }
}

fn difference(what: &str, before: &[String], world: &World) -> Option<String> {
    let now = world.snapshot();
    let changed: Vec<_> = before
        .iter()
        .zip(&now)
        .filter(|(a, b)| a != b)
        .map(|(a, b)| format!("{a} -> {b}"))
        .collect();
    (!changed.is_empty()).then(|| format!("{what}: {}", changed.join("; ")))
}

/// How a run of the matrix ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that are as they should be.
    pub passed: usize,
    /// Rows that are not.
    pub failed: usize,
    /// Rows that this host or device does not allow.
    pub skipped: usize,
}

/// Runs all rows whose name contains `filter`, and tells of each that failed; with `verbose`, of
/// all.
pub fn run(world: &World, filter: &str, verbose: bool) -> Tally {
    let mut tally = Tally::default();
    let table = rows::all(world);
    let mut at_first = world.snapshot();
    for row in &table.rows {
        let name = format!("{}: {}", row.command_name(), row.name);
        if !name.contains(filter) {
            continue;
        }
        let wrong = row.run(world, &at_first);
        if wrong.is_empty() {
            tally.passed += 1;
            if verbose {
                println!("ok: {name}: {}", row.expect);
            }
        } else {
            tally.failed += 1;
            println!("FAILED: {name}: {}", wrong.join("; "));
            at_first = world.snapshot(); // so that what it changed is not held against the next
        }
    }
    for (name, check) in rows::CHECKS {
        if !name.contains(filter) {
            continue;
        }
        match check(world) {
            Ok(()) => {
                tally.passed += 1;
                if verbose {
                    println!("ok: {name}");
                }
            }
            Err(why) => {
                tally.failed += 1;
                println!("FAILED: {name}: {why}");
            }
        }
    }
    for reason in &table.skipped {
        tally.skipped += 1;
        println!("skipped: {reason}");
    }
    tally
}

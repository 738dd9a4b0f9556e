//! `ioasidctl`: every command of `/dev/ioasid` from the shell, and a doctor for the host.
//!
//! `cli` is the command line, `commands` turns it into calls of `node`, with `vector`, `dma` and
//! `faults` and `contents` for those that are more than one call; `process` finds the descriptors of
//! another process; `raw` is for malformed calls, `progress` watches
//! those that take long, `report` says how it ended. `sys` holds all `unsafe`. `doctor` looks at
//! the host and shares nothing with the rest.
#![deny(unsafe_code)]

mod cli;
mod commands;
mod contents;
mod dma;
mod doctor;
mod faults;
mod memory;
mod node;
mod number;
mod process;
mod progress;
mod raw;
mod report;
mod sys;
mod target;
mod vector;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;

use report::{Failure, Output};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let result = commands::run(&cli).and_then(|output| {
        print(&output, cli.json)?;
        if let Some(memory) = output.held {
            // However it ends, that is when to let go.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            drop(memory);
        }
        Ok(output.status)
    });
    result.map_or_else(|failure| fail(&failure, &cli), ExitCode::from)
}

/// Tells why it did not work. In plain form the outputs of a refused command are on standard
/// output as if it had worked; in JSON they are part of the error.
fn fail(failure: &Failure, cli: &cli::Cli) -> ExitCode {
    let subcommand = cli.command.name();
    if cli.json {
        eprintln!("{}", failure.json(subcommand));
    } else {
        if let Failure::Refused(refusal) = failure
            && let Some(outputs) = &refusal.outputs
        {
            // There is an error to tell already.
            let _ = print(outputs, false);
        }
        eprintln!("ioasidctl: {subcommand}: {failure}");
    }
    ExitCode::from(failure.status())
}

fn print(output: &Output, json: bool) -> Result<(), Failure> {
    if output.is_printed {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    let written =
        if json { writeln!(stdout, "{}", output.json) } else { stdout.write_all(&output.plain) };
    match written.and_then(|()| stdout.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::Host(format!("standard output: {}", node::plain_error(&error)))),
        Ok(()) => Ok(()),
    }
}

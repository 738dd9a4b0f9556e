//! Writes the man pages and the shell completions of the package, from the same definitions that
//! the programs read their command lines with.
//!
//! `pages DIRECTORY` leaves `man/`, and `bash/`, `zsh/` and `fish/`, with the names that they are
//! installed under.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

#[allow(dead_code, unreachable_pub)]
#[path = "../../../ioasidctl/src/cli.rs"]
mod cli;
#[allow(dead_code)]
#[path = "../../../ioasidctl/src/number.rs"]
mod number;
#[allow(dead_code)]
#[path = "../../../ioasid-run/src/cli.rs"]
mod run;
#[allow(dead_code)]
#[path = "../../../ioasidctl/src/target.rs"]
mod target;

fn main() -> anyhow::Result<()> {
    let out = std::env::args_os().nth(1).context("usage: pages DIRECTORY")?;
    let out = PathBuf::from(out);
    // One line for each program: its command line, and the section of its page.
    let programs = [
        (cused::config::Options::command().name("cused"), "8"),
        (cli::Cli::command(), "1"),
        (run::Cli::command(), "1"),
    ];
    for (command, section) in programs {
        write(&out, command, section).with_context(|| out.display().to_string())?;
    }
    Ok(())
}

fn write(out: &Path, command: Command, section: &str) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    for (shell, file) in [
        (Shell::Bash, format!("bash/{name}")),
        (Shell::Zsh, format!("zsh/_{name}")),
        (Shell::Fish, format!("fish/{name}.fish")),
    ] {
        let mut file = create(&out.join(file))?;
        clap_complete::generate(shell, &mut command.clone(), &name, &mut file);
    }
    page(out, command, &name, section)
}

/// The page of a command, and those of its subcommands, as `man PROGRAM-SUBCOMMAND` finds them.
fn page(out: &Path, mut command: Command, name: &str, section: &str) -> anyhow::Result<()> {
    command = command.disable_help_subcommand(true);
    command.build();
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("{name}-{}", subcommand.get_name());
        page(out, subcommand.clone(), &name, section)?;
    }
    let mut file = create(&out.join(format!("man/{name}.{section}")))?;
    let title = name.to_uppercase();
    clap_mangen::Man::new(command).title(title).section(section).render(&mut file)?;
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    File::create(path).with_context(|| path.display().to_string())
}

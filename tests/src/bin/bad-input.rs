//! Runs the matrix of wrong arguments against a node.

use anyhow::{Result, bail};
use clap::Parser;
use ioasid_tests::bad_input::{
    self,
    world::{DeviceName, World},
};
use std::path::PathBuf;
use std::process::ExitCode;

/// Call every command of the node with everything that can be wrong in its argument.
///
/// Of each call the errno, the explanation and that nothing has changed are checked. Prints a line
/// for each that is not as ioasid.h says, and ends with 1 if there is any.
#[derive(Debug, Parser)]
#[command(name = "bad-input", version)]
struct Options {
    /// The node.
    #[arg(long, default_value = "/dev/ioasid")]
    node: PathBuf,
    /// A simulated device to use; a second one makes more rows possible.
    #[arg(long, value_name = "NAME", conflicts_with = "vfio")]
    simulated: Vec<String>,
    /// A PCI device on VFIO to use, as in 0000:00:10.0:4; a second one makes more rows possible.
    #[arg(long, value_name = "ADDRESS:GROUP")]
    vfio: Vec<String>,
    /// Only the rows whose name contains this.
    #[arg(long, default_value = "")]
    filter: String,
    /// The daemon was told to have the kernel copy arguments (--argument-access retry). The kernel
    /// then finds bad pointers itself, so that these are not explained, and results that cannot be
    /// written are noticed too late.
    #[arg(long)]
    retry: bool,
    /// Print the rows that pass, too.
    #[arg(long)]
    verbose: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let world = World::new(&options.node, devices(&options)?, options.retry)?;
    let tally = bad_input::run(&world, &options.filter, options.verbose);
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn devices(options: &Options) -> Result<Vec<DeviceName>> {
    let mut devices: Vec<_> =
        options.simulated.iter().cloned().map(DeviceName::Simulated).collect();
    for text in &options.vfio {
        let Some((address, group)) = text.rsplit_once(':').filter(|(a, _)| a.contains('.')) else {
            bail!("{text} is no ADDRESS:GROUP, as in 0000:00:10.0:4");
        };
        devices.push(DeviceName::Vfio(address.into(), group.into()));
    }
    if devices.is_empty() {
        bail!("name a device with --simulated or --vfio");
    }
    Ok(devices)
}

//! `cused`: reads its settings, makes the node, serves it until it is told to stop.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, bail};
use clap::Parser as _;
use cuse_channel::{Channel, CuseOptions, EndReason, Ended, FuseFileOptions, ServeOptions, Server};
use cused::backend::simulated::Simulator;
use cused::backend::vfio::kernel_log::{Event, KernelLog};
use cused::commands::Host;
use cused::config::{Config, Options, Transport};
use cused::faults::queue::{Access, Reason};
use cused::in_context::Scratches;
use cused::node::Node;
use cused::policy::Policy;
use cused::process::Processes;
use cused::users::{Quotas, Users};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cused: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let config = Config::load(options)?;
    if options.check_config {
        println!("the settings are good");
        return Ok(());
    }
    env_logger::Builder::new().filter_level(config.log_level).format_target(false).init();
    let ready = options.ready_fd.map(inherited).transpose()?;
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    raise_limits();
    cused::system::ignore_stops();
    let simulator = Simulator::new(&config.simulated).map_err(anyhow::Error::msg)?;
    let limits = ioasid::Limits {
        max_ioasids: config.limits.ioasids,
        max_devices: config.limits.devices,
        max_mappings: config.limits.mappings,
        max_registered: config.limits.registered,
    };
    let is_ending = Arc::new(AtomicBool::new(false));
    let scratches = Scratches::new().context("no random numbers")?;
    let processes = Processes::default();
    let quotas = Quotas {
        opens: config.limits.opens_per_user,
        registered: config.limits.registered_bytes,
        registered_of_user: config.limits.registered_bytes_per_user,
    };
    let host = Host {
        limits,
        policy: Policy::new(&config.policy).map_err(anyhow::Error::msg)?,
        users: Users::new(quotas),
        simulator,
        processes,
        scratches,
        is_ending: Arc::clone(&is_ending),
        tells_real_faults: AtomicBool::new(false),
    };
    let channel = open_channel(&config)?;
    let serve = ServeOptions {
        max_threads: config.limits.threads,
        per_handle_limit: config.limits.calls,
        ..ServeOptions::default()
    };
    let server = Server::new(channel, serve)?;
    let node = Arc::new(Node::new(host, config.argument_access, server.notifier()));
    let _kernel_log = follow_kernel_log(&node);
    stop_on_signal(&server, signals, is_ending)?;
    announce(server.node(), ready)?;
    let ended = server.serve(node);
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    report(&ended)
}

/// Has programs told of the faults of real devices, as long as what is returned is kept.
fn follow_kernel_log(node: &Arc<Node>) -> Option<KernelLog> {
    let there = Arc::downgrade(node);
    let tell = move |event| {
        let Some(node) = there.upgrade() else { return };
        match event {
            Event::Suppressed(messages) => node.report_suppressed(messages),
            Event::Fault(fault) => {
                let access =
                    Access { address: fault.address, write: fault.write, pasid: fault.pasid };
                // What hardware calls a reason says which entry it met, and not why.
                node.report_unrecoverable(&fault.device, access, Reason::Unknown);
            }
        }
    };
    match KernelLog::follow(tell) {
        Ok(log) => {
            node.tells_real_faults();
            Some(log)
        }
        Err(failure) => {
            log::info!("programs will not be told of the faults of real devices: {failure}");
            None
        }
    }
}

fn open_channel(config: &Config) -> anyhow::Result<Channel> {
    let cuse = CuseOptions {
        major: config.major,
        minor: config.minor,
        ..CuseOptions::new(config.name.clone())
    };
    let transport = match config.transport {
        Transport::Auto if cuse.device.exists() => Transport::Cuse,
        Transport::Auto => Transport::Fuse,
        chosen => chosen,
    };
    Ok(match transport {
        Transport::Cuse => Channel::cuse(&cuse)?,
        _ => Channel::fuse_file(&FuseFileOptions {
            mode: config.mode.0,
            ..FuseFileOptions::new(config.path.clone())
        })?,
    })
}

/// The descriptor that whoever started us waits on.
#[allow(unsafe_code)]
fn inherited(fd: RawFd) -> anyhow::Result<OwnedFd> {
    if fd < 3 {
        bail!("--ready-fd: {fd} is no descriptor made for this; use 3 or higher");
    }
    // SAFETY: this runs before the daemon has opened anything, so that nobody else in this
    // process owns the number; whether it is open is checked first.
    let fd = unsafe {
        rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(fd))
            .with_context(|| format!("--ready-fd: descriptor {fd} is not open"))?;
        OwnedFd::from_raw_fd(fd)
    };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Each mapping holds a file open and pins memory: have as much of both as the system gives us.
fn raise_limits() {
    let files = getrlimit(Resource::Nofile);
    let most = Rlimit { current: files.maximum, maximum: files.maximum };
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        log::warn!("the limit of open files cannot be raised: {error}");
    }
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        log::debug!("the limit of locked memory cannot be raised: {error}");
    }
}

fn stop_on_signal(
    server: &Server,
    mut signals: Signals,
    is_ending: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let stopper = server.stopper();
    let wait = move || {
        for signal in signals.forever() {
            log::info!("signal {signal}: stopping");
            is_ending.store(true, Ordering::Relaxed);
            stopper.stop();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("no thread for signals")?;
    Ok(())
}

/// Tells everybody who waits that the node is there.
fn announce(node: &Path, ready: Option<OwnedFd>) -> anyhow::Result<()> {
    log::info!("{} is ready", node.display());
    if let Some(ready) = ready {
        let mut ready = File::from(ready);
        writeln!(ready, "{}", node.display()).context("--ready-fd")?;
    }
    sd_notify::notify(&[NotifyState::Ready]).context("telling systemd")
}

fn report(ended: &Ended) -> anyhow::Result<()> {
    if ended.abandoned > 0 {
        log::warn!("{} calls did not end in time and were abandoned", ended.abandoned);
    }
    match ended.reason {
        EndReason::Stopped => Ok(()),
        reason => bail!("the node is gone: {reason:?}"),
    }
}

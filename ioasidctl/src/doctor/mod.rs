//! `doctor`: what this host has and lacks for `/dev/ioasid`.
//!
//! `host` reads files below a root, `groups` judges IOMMU groups, `checks` makes findings of both,
//! `render` prints them. Nothing here changes anything: each finding carries the commands that
//! mend it, for the administrator to run.

mod checks;
mod groups;
mod host;
mod render;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::cli;
use crate::report::Output;
use groups::Group;
use host::Host;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Something will not work, or not well.
    Warning,
    /// The node cannot be used until it is mended.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// What was looked at, in a word.
    pub(crate) topic: &'static str,
    /// How it is.
    pub(crate) level: Level,
    /// What was found, in a sentence.
    pub(crate) text: String,
    /// What to do: lines that begin with `#` are remarks, the others shell commands for root.
    pub(crate) mend: Vec<String>,
}

/// What the daemon behind the node says of itself.
#[derive(Debug)]
pub(crate) enum Daemon {
    /// Its extensions by name.
    Answers(BTreeMap<String, u64>),
    /// It could not be reached: why.
    Fails(String),
    /// It takes the call and does not answer.
    Hangs,
    /// It was not asked.
    NotAsked,
}

/// All that was found.
#[derive(Debug)]
pub(crate) struct Report {
    /// In the order of reading.
    pub(crate) findings: Vec<Finding>,
    /// Every IOMMU group.
    pub(crate) groups: Vec<Group>,
}

impl Report {
    /// The worst level.
    pub(crate) fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// How long a daemon may take to answer CHECK_EXTENSION.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at the host and prints what it found. The exit status is 1 if there is a problem.
pub(crate) fn run(arguments: &cli::Doctor, node: &Path) -> Output {
    let host = Host::new(&arguments.root);
    let this_host = arguments.root == Path::new("/");
    let daemon = if this_host { ask(node, PATIENCE) } else { Daemon::NotAsked };
    let report = checks::examine(&host, node, &daemon);
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let usable = report.worst() != Level::Problem;
    let json = json!({
        "usable": usable,
        "findings": report.findings,
        "groups": report.groups,
    });
    let text = render::text(&report, colour).into_bytes();
    Output { status: u8::from(!usable), ..Output::bytes(text, json) }
}

/// Asks the daemon for its extensions in a process of its own: whoever opens a node whose daemon
/// hangs cannot be sure to come back, not even from SIGKILL.
fn ask(node: &Path, patience: Duration) -> Daemon {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("ioasidctl"));
    let child = Command::new(program)
        .args(["check", "all", "--json", "--node"])
        .arg(node)
        .env_remove("IOASID_FD")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Daemon::Fails(format!("the question could not be asked: {error}")),
    };
    let deadline = Instant::now() + patience;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > deadline {
            // Not waited for: it may never end.
            let _ = child.kill();
            return Daemon::Hangs;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match child.wait_with_output() {
        Ok(output) => understand(&output.stdout, &output.stderr),
        Err(error) => Daemon::Fails(error.to_string()),
    }
}

/// Reads the two outputs of `check all --json`.
fn understand(stdout: &[u8], stderr: &[u8]) -> Daemon {
    #[derive(serde::Deserialize)]
    struct Answer {
        extensions: BTreeMap<String, u64>,
    }
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: String,
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(stdout) {
        return Daemon::Answers(answer.extensions);
    }
    match serde_json::from_slice::<Refusal>(stderr) {
        Ok(refusal) => Daemon::Fails(refusal.error),
        Err(_) => Daemon::Fails(String::from_utf8_lossy(stderr).trim().to_owned()),
    }
}

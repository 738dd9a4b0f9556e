//! What a subcommand ends with: an output in two forms, or a failure with its exit status.

use serde_json::{Value, json};

use crate::memory::Lent;
use ioasid_client::errno;
use rustix::io::Errno;

/// The result of a subcommand that worked.
#[derive(Debug)]
pub(crate) struct Output {
    /// What a script reads: exactly these bytes.
    pub(crate) plain: Vec<u8>,
    /// What a program reads with `--json`.
    pub(crate) json: Value,
    /// The exit status, which is 0 unless the subcommand's answer is its status.
    pub(crate) status: u8,
    /// Nothing is to be printed, in either form: it was, while it came.
    pub(crate) is_printed: bool,
    /// Memory to be held, after this was printed, until standard input ends.
    pub(crate) held: Option<Lent>,
}

impl Output {
    /// Nothing to tell a script; `json` for a program.
    pub(crate) fn silent(json: Value) -> Output {
        Output::bytes(Vec::new(), json)
    }

    /// Nothing more: what there was to tell is printed.
    pub(crate) fn printed() -> Output {
        Output { is_printed: true, ..Output::silent(Value::Null) }
    }

    /// One line.
    pub(crate) fn line(line: impl std::fmt::Display, json: Value) -> Output {
        Output::bytes(format!("{line}\n").into_bytes(), json)
    }

    /// `key=value` lines.
    pub(crate) fn fields(fields: &[(&str, String)], json: Value) -> Output {
        let lines: String = fields.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        Output::bytes(lines.into_bytes(), json)
    }

    /// Exactly these bytes.
    pub(crate) fn bytes(plain: Vec<u8>, json: Value) -> Output {
        Output { plain, json, status: 0, is_printed: false, held: None }
    }
}

/// A command that `/dev/ioasid` refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The ioctl number.
    pub(crate) command: u32,
    /// The errno that it gave.
    pub(crate) errno: Errno,
    /// The node's own sentence, if it had one for this failure.
    pub(crate) explanation: Option<String>,
    /// Outputs that the command gave all the same.
    pub(crate) outputs: Option<Output>,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(Box::new(refusal))
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", errno::name(self.errno))?;
        match &self.explanation {
            Some(sentence) => f.write_str(sentence),
            None => write!(f, "{} (no explanation was given)", errno::sentence(self.errno)),
        }
    }
}

/// Why a subcommand did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The node refused. Exit status 1.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// The command line asks for something that is nothing. Exit status 2.
    #[error("{0}")]
    Usage(String),
    /// The node was not reached, or a file could not be used. Exit status 3.
    #[error("{0}")]
    Host(String),
}

impl Failure {
    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Failure::Refused(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Host(_) => 3,
        }
    }

    /// The error object of `--json`.
    pub(crate) fn json(&self, subcommand: &str) -> Value {
        let mut object = json!({
            "error": self.to_string(),
            "subcommand": subcommand,
            "status": self.status(),
        });
        if let Failure::Refused(refusal) = self {
            object["command"] = json!(ioasid_uapi::cmd::name(refusal.command));
            object["number"] = json!(refusal.command);
            object["errno"] = json!(errno::name(refusal.errno));
            object["code"] = json!(refusal.errno.raw_os_error());
            object["explanation"] = json!(refusal.explanation);
            if let Some(outputs) = &refusal.outputs {
                object["outputs"] = outputs.json.clone();
            }
        }
        object
    }
}

/// An address, a bitmap or a label as JSON: a string, since a JSON number is safe to 53 bits only.
pub(crate) fn wide(value: u64) -> Value {
    Value::String(format!("{value:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasid_uapi::cmd;

    fn refusal(explanation: Option<&str>) -> Failure {
        let explanation = explanation.map(str::to_owned);
        Refusal { command: cmd::MAP_DMA, errno: Errno::EXIST, explanation, outputs: None }.into()
    }

    #[test]
    fn a_refusal_shows_the_errno_and_the_sentence() {
        assert_eq!(refusal(Some("overlaps")).to_string(), "EEXIST: overlaps");
        assert_eq!(refusal(None).to_string(), "EEXIST: file exists (no explanation was given)");
    }

    #[test]
    fn the_json_error_has_what_a_program_branches_on() {
        let json = refusal(Some("overlaps")).json("map");
        assert_eq!(json["errno"], "EEXIST");
        assert_eq!(json["code"], 17);
        assert_eq!(json["command"], "IOASID_MAP_DMA");
        assert_eq!(json["subcommand"], "map");
        assert_eq!(json["explanation"], "overlaps");
        assert_eq!(json["status"], 1);
    }
}

//! `faults` and `complete`: records of DMA faults as lines.

use std::io::{ErrorKind, Write};

use ioasid_uapi::{
    FAULT_BEST_EFFORT, FAULT_PASID, FAULT_READ, FAULT_REASON_MEMORY, FAULT_REASON_NOT_MAPPED,
    FAULT_REASON_PERMISSION, FAULT_WRITE, Fault, RESPONSE_FAIL, RESPONSE_RETRY, RESPONSE_SUCCESS,
    ext,
};
use serde_json::{Map as Object, Value, json};

use crate::cli;
use crate::node::{self, Node};
use crate::report::{Failure, Output, wide};

type Result<T> = std::result::Result<T, Failure>;

/// Reads the records that there are, or with `--follow` all that come. Each is printed when it is
/// read: it is gone from the node then.
pub(crate) fn run(node: &Node, arguments: &cli::Faults, json: bool) -> Result<Output> {
    if node.check(ext::FAULTS)? == 0 {
        return Err(Failure::Host(
            "this node has no fault records: IOASID_EXT_FAULTS is 0".to_owned(),
        ));
    }
    let most = arguments.count.unwrap_or(u64::MAX);
    let mut listed = Vec::new();
    let mut read = 0;
    while read < most && node.has_fault(arguments.follow)? {
        let Some(fault) = node.fault()? else { continue };
        let fields = record(&fault);
        let (line, value) = chosen(&fields, arguments.field.field.as_deref())?;
        read += 1;
        match (json, arguments.follow) {
            (true, false) => listed.push(value),
            (true, true) if !print(&value)? => break,
            (false, _) if !print(&line)? => break,
            _ => {}
        }
    }
    Ok(match (json, arguments.follow) {
        (true, true) | (false, _) => Output::printed(),
        (true, false) => Output::silent(json!({ "faults": listed })),
    })
}

/// Prints a line; false if nobody reads it.
fn print(line: &dyn std::fmt::Display) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Host(format!("standard output: {}", node::plain_error(&error)))),
    }
}

type Fields = Vec<(&'static str, String, Value)>;

fn record(fault: &Fault) -> Fields {
    let access = match fault.flags & (FAULT_READ | FAULT_WRITE) {
        FAULT_READ => "read",
        FAULT_WRITE => "write",
        _ => "unknown",
    };
    let reason = match fault.reason {
        FAULT_REASON_NOT_MAPPED => "not-mapped",
        FAULT_REASON_PERMISSION => "permission",
        FAULT_REASON_MEMORY => "memory",
        _ => "unknown",
    };
    let source = if fault.flags & FAULT_BEST_EFFORT == 0 { "device" } else { "kernel-log" };
    let number = |name, value: u32| (name, value.to_string(), json!(value));
    let hexadecimal = |name, value: u64| (name, format!("{value:#x}"), wide(value));
    let word = |name, value: &str| (name, value.to_owned(), json!(value));
    let mut fields = vec![
        number("id", fault.id),
        word("access", access),
        hexadecimal("address", fault.address),
        word("reason", reason),
        number("ioasid", fault.ioasid),
        number("device", fault.device),
        hexadecimal("cookie", fault.cookie),
        number("lost", fault.lost),
        word("source", source),
    ];
    if fault.flags & FAULT_PASID != 0 {
        fields.push(number("pasid", fault.pasid));
    }
    fields
}

/// A record in its two forms, or one field of it. A record without a PASID has an empty one.
fn chosen(fields: &Fields, name: Option<&str>) -> Result<(String, Value)> {
    let Some(name) = name else {
        let words: Vec<_> = fields.iter().map(|(key, text, _)| format!("{key}={text}")).collect();
        let object: Object<String, Value> =
            fields.iter().map(|(key, _, value)| ((*key).to_owned(), value.clone())).collect();
        return Ok((words.join(" "), Value::Object(object)));
    };
    match fields.iter().find(|(key, ..)| *key == name) {
        Some((_, text, value)) => Ok((text.clone(), value.clone())),
        None if name == "pasid" => Ok((String::new(), Value::Null)),
        None => {
            let known: Vec<_> = fields.iter().map(|(key, ..)| *key).collect();
            Err(Failure::Usage(format!(
                "there is no field `{name}`; there are: {}",
                known.join(", ")
            )))
        }
    }
}

/// Answers a recoverable fault.
pub(crate) fn complete(node: &Node, fault: u32, response: cli::Response) -> Result<()> {
    let response = match response {
        cli::Response::Success => RESPONSE_SUCCESS,
        cli::Response::Retry => RESPONSE_RETRY,
        cli::Response::Fail => RESPONSE_FAIL,
    };
    node.complete(fault, response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasid_uapi::FAULT_RECOVERABLE;

    #[test]
    fn a_record_is_a_line_or_an_object() {
        let fault = Fault {
            flags: FAULT_WRITE | FAULT_RECOVERABLE | FAULT_PASID,
            ioasid: 2,
            address: 0x10000,
            cookie: 0xc0,
            device: 1,
            reason: FAULT_REASON_NOT_MAPPED,
            id: 7,
            pasid: 3,
            lost: 4,
            ..Fault::default()
        };
        let (line, value) = chosen(&record(&fault), None).unwrap();
        assert_eq!(
            line,
            "id=7 access=write address=0x10000 reason=not-mapped ioasid=2 device=1 cookie=0xc0 \
             lost=4 source=device pasid=3"
        );
        assert_eq!((&value["id"], &value["address"]), (&json!(7), &json!("0x10000")));
        assert_eq!(chosen(&record(&fault), Some("id")).unwrap(), ("7".into(), json!(7)));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let fault = Fault { flags: FAULT_READ | FAULT_BEST_EFFORT, ..Fault::default() };
        let fields = record(&fault);
        let line = chosen(&fields, None).unwrap().0;
        assert!(line.starts_with("id=0 access=read address=0x0 reason=unknown"), "{line}");
        assert!(line.ends_with("source=kernel-log"), "{line}");
        assert_eq!(chosen(&fields, Some("pasid")).unwrap(), (String::new(), Value::Null));
        assert_eq!(chosen(&fields, Some("colour")).unwrap_err().status(), 2);
    }
}

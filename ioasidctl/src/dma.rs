//! `sim-dma`: DMA of simulated devices, of any length, which a command of the node has not.

use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Map as Object, Value, json};

use crate::cli;
use crate::commands::with_outputs;
use crate::node::{self, DeviceId, Manner, Node, Reached};
use crate::number::to_hex;
use crate::report::{Failure, Output};

/// The most that one `sim-dma` transfers, which it keeps in memory.
const SIM_DMA_TOTAL: u64 = 1 << 30;

type Result<T> = std::result::Result<T, Failure>;

/// Has the device read or write.
pub(crate) fn run(node: &Node, direction: &cli::SimDma) -> Result<Output> {
    match direction {
        cli::SimDma::Read { device, iova, size, file, text, manner } => {
            if *size > SIM_DMA_TOTAL {
                return Err(Failure::Usage(format!("--size is more than {SIM_DMA_TOTAL} bytes")));
            }
            let manner = manner_of(manner);
            if manner.recoverable && file.as_deref() == Some(Path::new("-")) {
                return Err(Failure::Usage(
                    "with --recoverable, standard output has the fault: give --file a path".into(),
                ));
            }
            let mut data = vec![0; *size as usize];
            let mut chunks = chunks(data.len());
            let (reached, result) = transfer(&mut chunks, manner, |chunk, manner| {
                let iova = iova.wrapping_add(chunk.start as u64);
                node.sim_dma_read(DeviceId(*device), iova, manner, &mut data[chunk])
            });
            let partial = Output::silent(json!({ "done": reached.done }));
            result.map_err(|failure| with_outputs(failure, partial))?;
            let output = read_output(&data[..reached.done as usize], file.as_deref(), *text)?;
            let key = if *text { "text" } else { "data" };
            Ok(if manner.recoverable { with_fault(reached, key, output) } else { output })
        }
        cli::SimDma::Write { device, iova, data, manner } => {
            let data = written_data(data)?;
            let manner = manner_of(manner);
            let (reached, result) = transfer(&mut chunks(data.len()), manner, |chunk, manner| {
                let iova = iova.wrapping_add(chunk.start as u64);
                node.sim_dma_write(DeviceId(*device), iova, manner, &data[chunk])
            });
            let done = reached.done;
            let output = match manner.recoverable {
                true => with_fault(reached, "data", Output::silent(json!({ "done": done }))),
                false => Output::line(done, json!({ "done": done })),
            };
            match result {
                Ok(()) => Ok(output),
                Err(failure) => Err(with_outputs(failure, output)),
            }
        }
    }
}

fn manner_of(arguments: &cli::Manner) -> Manner {
    Manner {
        pasid: arguments.pasid,
        recoverable: arguments.recoverable || arguments.after.is_some(),
        after: arguments.after,
    }
}

/// How far it came, before what is told of the data.
fn with_fault(reached: Reached, key: &str, data: Output) -> Output {
    let mut plain = format!("done={}\nfault={}\n", reached.done, reached.fault).into_bytes();
    if !data.plain.is_empty() {
        plain.extend(format!("{key}=").bytes().chain(data.plain));
    }
    let mut object = match data.json {
        Value::Object(object) => object,
        _ => Object::new(),
    };
    object.insert("fault".into(), reached.fault.into());
    Output::bytes(plain, Value::Object(object))
}

/// The parts in which so many bytes are transferred, each small enough for one command. Nothing
/// is one part, for the node to refuse.
fn chunks(len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let most = ioasid_uapi::SIM_DMA_MAX as usize;
    (0..len.max(1)).step_by(most).map(move |start| start..len.min(start + most))
}

/// Transfers the parts one by one until one is refused or waits. The first goes on after a fault,
/// if that is the manner; the others come of themselves.
fn transfer(
    chunks: &mut dyn Iterator<Item = std::ops::Range<usize>>,
    mut manner: Manner,
    mut one: impl FnMut(std::ops::Range<usize>, Manner) -> (Reached, Result<()>),
) -> (Reached, Result<()>) {
    let mut total = Reached::default();
    for chunk in chunks {
        let (part, result) = one(chunk, manner);
        total = Reached { done: total.done + part.done, fault: part.fault };
        if result.is_err() || part.fault != 0 {
            return (total, result);
        }
        manner.after = None;
    }
    (total, Ok(()))
}

fn read_output(data: &[u8], file: Option<&Path>, text: bool) -> Result<Output> {
    let done = data.len();
    if let Some(path) = file {
        if path == Path::new("-") {
            let json = json!({ "done": done, "hex": to_hex(data) });
            return Ok(Output::bytes(data.to_vec(), json));
        }
        let written = std::fs::File::create(path).and_then(|mut file| file.write_all(data));
        written.map_err(|error| {
            Failure::Host(format!("{}: {}", path.display(), node::plain_error(&error)))
        })?;
        return Ok(Output::silent(json!({ "done": done })));
    }
    if text {
        let end = data.iter().position(|byte| *byte == 0).unwrap_or(done);
        let text = String::from_utf8_lossy(&data[..end]);
        return Ok(Output::line(&text, json!({ "done": done, "text": text })));
    }
    let hex = to_hex(data);
    Ok(Output::line(&hex, json!({ "done": done, "hex": hex })))
}

fn written_data(data: &cli::Data) -> Result<Vec<u8>> {
    if let Some(text) = &data.text {
        return Ok(text.clone().into_bytes());
    }
    if let Some(bytes) = &data.hex {
        return Ok(bytes.0.clone());
    }
    let path = data.file.as_deref().unwrap_or(Path::new("-"));
    let read = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| {
        Failure::Host(format!("{}: {}", path.display(), node::plain_error(&error)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_made_in_parts_that_one_command_takes() {
        let most = ioasid_uapi::SIM_DMA_MAX as usize;
        let parts = |len| chunks(len).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(parts(0), [0]);
        assert_eq!(parts(1), [1]);
        assert_eq!(parts(most), [most]);
        assert_eq!(parts(2 * most + 5), [most, most, 5]);
        let refusal = || Failure::Usage(String::new());
        let part = |done| Reached { done, fault: 0 };
        let manner = Manner::default();
        let (reached, result) =
            transfer(&mut chunks(2 * most), manner, |chunk, _| match chunk.start {
                0 => (part(most as u64), Ok(())),
                _ => (part(7), Err(refusal())),
            });
        assert_eq!((reached.done, result.is_err()), (most as u64 + 7, true));
    }

    #[test]
    fn a_part_that_waits_is_the_last_and_only_the_first_goes_on() {
        let most = ioasid_uapi::SIM_DMA_MAX as usize;
        let manner = Manner { recoverable: true, after: Some(4), pasid: Some(1) };
        let mut seen = Vec::new();
        let (reached, result) = transfer(&mut chunks(4 * most), manner, |chunk, manner| {
            seen.push(manner.after);
            let fault = if chunk.start == most { 5 } else { 0 };
            (Reached { done: most as u64 - u64::from(fault), fault }, Ok(()))
        });
        assert!(result.is_ok());
        assert_eq!(reached, Reached { done: 2 * most as u64 - 5, fault: 5 });
        assert_eq!(seen, [Some(4), None]);
    }

    #[test]
    fn a_fault_is_told_before_the_data() {
        let reached = Reached { done: 2, fault: 5 };
        let shown = with_fault(reached, "text", read_output(b"hi", None, true).unwrap());
        assert_eq!(shown.plain, b"done=2\nfault=5\ntext=hi\n");
        assert_eq!(shown.json, json!({ "done": 2, "text": "hi", "fault": 5 }));
        let none = with_fault(reached, "data", Output::silent(json!({ "done": 2 })));
        assert_eq!(none.plain, b"done=2\nfault=5\n");
    }

    #[test]
    fn data_that_a_device_read_is_hexadecimal_text_or_bytes() {
        assert_eq!(read_output(b"hi\0x", None, false).unwrap().plain, b"68690078\n");
        assert_eq!(read_output(b"hi\0x", None, true).unwrap().plain, b"hi\n");
        assert_eq!(read_output(b"hi\0x", Some(Path::new("-")), false).unwrap().plain, b"hi\0x");
    }
}

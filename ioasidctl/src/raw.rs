//! `raw`: any command with any argument, for those who test the node with wrong ones.
//!
//! Owns how a structure is written as FIELD=VALUE words, by the layouts that the contract's crate
//! gives for each structure.

use ioasid_uapi::{STRUCTURES, Structure, cmd};
use serde_json::{Map as Object, Value, json};

use crate::cli;
use crate::commands::with_outputs;
use crate::node::Node;
use crate::number::{hex, number, to_hex};
use crate::report::{Failure, Output, wide};
use crate::sys::{Guarded, RawArgument};

/// Every command by its name without `IOASID_`, and the structure that it takes, if it takes one.
const COMMANDS: &[(&str, u32, Option<&str>)] = &[
    ("CHECK_EXTENSION", cmd::CHECK_EXTENSION, None),
    ("REGISTER_MEMORY", cmd::REGISTER_MEMORY, Some("ioasid_register_memory")),
    ("UNREGISTER_MEMORY", cmd::UNREGISTER_MEMORY, Some("ioasid_register_memory")),
    ("ALLOC", cmd::ALLOC, None),
    ("FREE", cmd::FREE, None),
    ("GET_INFO", cmd::GET_INFO, Some("ioasid_info")),
    ("MAP_DMA", cmd::MAP_DMA, Some("ioasid_map_dma")),
    ("UNMAP_DMA", cmd::UNMAP_DMA, Some("ioasid_unmap_dma")),
    ("CREATE_NESTING", cmd::CREATE_NESTING, None),
    ("BIND_PGTABLE", cmd::BIND_PGTABLE, Some("ioasid_bind_pgtable")),
    ("UNBIND_PGTABLE", cmd::UNBIND_PGTABLE, Some("ioasid_bind_pgtable")),
    ("BIND_PASID_TABLE", cmd::BIND_PASID_TABLE, Some("ioasid_bind_pasid_table")),
    ("UNBIND_PASID_TABLE", cmd::UNBIND_PASID_TABLE, Some("ioasid_bind_pasid_table")),
    ("INVALIDATE_CACHE", cmd::INVALIDATE_CACHE, Some("ioasid_invalidate_cache")),
    ("VECTOR", cmd::VECTOR, Some("ioasid_vector")),
    ("DIRTY", cmd::DIRTY, Some("ioasid_dirty")),
    ("BIND_DEVICE", cmd::BIND_DEVICE, Some("ioasid_bind_device")),
    ("UNBIND_DEVICE", cmd::UNBIND_DEVICE, None),
    ("ATTACH_DEVICE", cmd::ATTACH_DEVICE, Some("ioasid_attach_device")),
    ("DETACH_DEVICE", cmd::DETACH_DEVICE, Some("ioasid_attach_device")),
    ("GET_DEVICE_INFO", cmd::GET_DEVICE_INFO, Some("ioasid_device_info")),
    ("COMPLETE_FAULT", cmd::COMPLETE_FAULT, Some("ioasid_complete_fault")),
    ("SET_FAULT_EVENTFD", cmd::SET_FAULT_EVENTFD, None),
    ("GET_ERROR", cmd::GET_ERROR, Some("ioasid_error")),
    ("LIST", cmd::LIST, Some("ioasid_list")),
    ("SIM_DMA", cmd::SIM_DMA, Some("ioasid_sim_dma")),
];

/// The fields that are signed.
const SIGNED: &[(&str, &str)] = &[("ioasid_bind_device", "fd"), ("ioasid_map_dma", "fd")];

type Result<T> = std::result::Result<T, Failure>;

/// Sends what the arguments describe, and shows what came back.
pub(crate) fn run(node: &Node, arguments: &cli::Raw) -> Result<Output> {
    let (command, structure) = find(&arguments.command)?;
    if let Some(value) = arguments.value {
        return Ok(returned(node.raw(command, RawArgument::Value(value))?));
    }
    let Some(structure) = structure else {
        if !arguments.fields.is_empty() || arguments.tail.is_some() || arguments.cut.is_some() {
            return Err(Failure::Usage(format!(
                "`{}` takes no structure: give its argument with --value",
                arguments.command
            )));
        }
        return Ok(returned(node.raw(command, RawArgument::Value(0))?));
    };
    let built = build(structure, arguments)?;
    let mut bytes = guarded(&built.bytes)?;
    let mut buffers = Vec::new();
    for (_, offset, content) in &built.buffers {
        buffers.push((*offset, guarded(content)?));
    }
    let argument = RawArgument::Structure { bytes: &mut bytes, buffers: &mut buffers };
    let result = node.raw(command, argument);

    let mut outputs = Outputs::default();
    outputs.structure(structure, bytes.bytes());
    for ((field, ..), (_, buffer)) in built.buffers.iter().zip(&buffers) {
        outputs.buffer(field, buffer.bytes());
    }
    match result {
        Ok(value) => Ok(outputs.output(Some(value))),
        Err(failure) => Err(with_outputs(failure, outputs.output(None))),
    }
}

fn returned(value: u32) -> Output {
    Output::fields(&[("return", value.to_string())], json!({ "return": value }))
}

fn guarded(content: &[u8]) -> Result<Guarded> {
    Guarded::new(content).map_err(|_| Failure::Host("there is no memory for the buffers".into()))
}

/// A command by its name or its whole number, and its structure.
fn find(text: &str) -> Result<(u32, Option<&'static Structure>)> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    let name = name.strip_prefix("IOASID_").unwrap_or(&name);
    let name = match name {
        "DMA_MAP" => "MAP_DMA",
        "DMA_UNMAP" => "UNMAP_DMA",
        name => name,
    };
    let number = number(text).ok().and_then(|number| u32::try_from(number).ok());
    let known =
        COMMANDS.iter().find(|(known, command, _)| *known == name || Some(*command) == number);
    match (known, number) {
        (Some((_, command, tag)), _) => {
            let structure = tag.and_then(|tag| STRUCTURES.iter().find(|s| s.name == tag));
            Ok((*command, structure))
        }
        (None, Some(number)) => Ok((number, None)),
        (None, None) => {
            let known: Vec<_> = COMMANDS.iter().map(|(name, ..)| *name).collect();
            Err(Failure::Usage(format!("`{text}` is no command; known: {}", known.join(", "))))
        }
    }
}

/// A structure as it is to be sent.
#[derive(Debug, PartialEq)]
struct Built {
    bytes: Vec<u8>,
    /// Buffers: the field, the offset of the address that belongs to it, and the content.
    buffers: Vec<(String, usize, Vec<u8>)>,
}

fn build(structure: &Structure, arguments: &cli::Raw) -> Result<Built> {
    let mut built = Built { bytes: vec![0; structure.size], buffers: Vec::new() };
    if let Some(tail) = &arguments.tail {
        built.bytes.extend(&tail.0);
    }
    let sent = match arguments.cut {
        Some(cut) if cut <= structure.size as u64 => cut as usize,
        Some(_) => {
            return Err(Failure::Usage(format!(
                "--cut is more than the structure's {} bytes; --tail makes it longer",
                structure.size
            )));
        }
        None => built.bytes.len(),
    };
    built.bytes[..4].copy_from_slice(&(sent as u32).to_ne_bytes());
    for word in &arguments.fields {
        set(structure, &mut built, word)?;
    }
    built.bytes.truncate(sent);
    built.buffers.retain(|(_, offset, _)| offset + 8 <= sent);
    Ok(built)
}

/// Sets one field by its FIELD=VALUE word.
fn set(structure: &Structure, built: &mut Built, word: &str) -> Result<()> {
    let usage = |why: String| Failure::Usage(format!("{word}: {why}"));
    let (name, value) = word.split_once('=').ok_or_else(|| usage("expected FIELD=VALUE".into()))?;
    let Some((field, offset, size)) = structure.fields.iter().find(|(known, ..)| *known == name)
    else {
        let known: Vec<_> = structure.fields.iter().map(|(name, ..)| *name).collect();
        return Err(usage(format!("struct {} has: {}", structure.name, known.join(", "))));
    };
    let place = *offset..*offset + *size;
    match (*size, value.strip_prefix('@')) {
        (8, Some(buffer)) => {
            let content = match buffer.strip_prefix(':') {
                Some(text) => text.as_bytes().to_vec(),
                None => match number(buffer).map_err(usage)? {
                    size if size <= 1 << 24 => vec![0; size as usize],
                    _ => return Err(usage("a buffer has at most 16M".into())),
                },
            };
            built.buffers.push(((*field).into(), *offset, content));
        }
        (4 | 8, _) => {
            let bits = 8 * *size as u32;
            let (magnitude, negative) = match value.strip_prefix('-') {
                Some(magnitude) => (magnitude, true),
                None => (value, false),
            };
            let value = number(magnitude).map_err(usage)?;
            if bits < 64 && value >> bits != 0 {
                return Err(usage(format!("it does not fit in {bits} bits")));
            }
            let value = if negative { value.wrapping_neg() } else { value };
            if *size == 8 {
                built.bytes[place].copy_from_slice(&value.to_ne_bytes());
            } else {
                built.bytes[place].copy_from_slice(&(value as u32).to_ne_bytes());
            }
        }
        _ => {
            let bytes = match value.strip_prefix("hex:") {
                Some(digits) => hex(digits).map_err(usage)?,
                None => value.as_bytes().to_vec(),
            };
            if bytes.len() > *size {
                return Err(usage(format!("it has {} bytes, the field {size}", bytes.len())));
            }
            built.bytes[*offset..*offset + bytes.len()].copy_from_slice(&bytes);
        }
    }
    Ok(())
}

/// What came back, in the order of the structure.
/// Each with its name and its two forms.
#[derive(Default)]
struct Outputs(Vec<(String, String, Value)>);

impl Outputs {
    fn structure(&mut self, structure: &Structure, bytes: &[u8]) {
        for (name, offset, size) in structure.fields {
            let Some(bytes) = bytes.get(*offset..*offset + *size) else { break };
            let (plain, json) = match *size {
                4 => {
                    let value = u32::from_ne_bytes(bytes.try_into().unwrap());
                    if SIGNED.contains(&(structure.name, name)) {
                        ((value as i32).to_string(), json!(value as i32))
                    } else {
                        (value.to_string(), json!(value))
                    }
                }
                8 => {
                    let value = u64::from_ne_bytes(bytes.try_into().unwrap());
                    (format!("{value:#x}"), wide(value))
                }
                _ => {
                    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
                    (text.clone(), json!(text))
                }
            };
            self.0.push(((*name).into(), plain, json));
        }
    }

    /// All of it, after the command's return value if it gave one.
    fn output(self, returned: Option<u32>) -> Output {
        let returned = returned.map(|value| ("return".to_owned(), value.to_string(), json!(value)));
        let mut lines = String::new();
        let mut object = Object::new();
        for (name, plain, json) in returned.into_iter().chain(self.0) {
            lines.push_str(&format!("{name}={plain}\n"));
            object.insert(name, json);
        }
        Output::bytes(lines.into_bytes(), Value::Object(object))
    }

    fn buffer(&mut self, field: &str, bytes: &[u8]) {
        let hex = to_hex(bytes);
        self.0.push((format!("@{field}"), hex.clone(), json!(hex)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Bytes;
    use ioasid_client::call::BY_VALUE;
    use ioasid_uapi::{MapDma, SimDma};
    use zerocopy::FromBytes;

    fn arguments(command: &str, fields: &[&str]) -> cli::Raw {
        cli::Raw {
            command: command.into(),
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            tail: None,
            cut: None,
            value: None,
        }
    }

    fn built(arguments: &cli::Raw) -> Result<Built> {
        build(find(&arguments.command)?.1.unwrap(), arguments)
    }

    #[test]
    fn every_command_is_known_with_its_structure() {
        for (name, command, tag) in COMMANDS {
            assert_eq!(cmd::name(*command).unwrap().strip_prefix("IOASID_"), Some(*name));
            assert_eq!(find(name).unwrap().0, *command);
            assert_eq!(find(name).unwrap().1.map(|structure| structure.name), *tag);
            assert_eq!(tag.is_none(), BY_VALUE.contains(command), "{name}");
        }
        assert_eq!(find("ioasid-dma-map").unwrap().0, cmd::MAP_DMA);
        assert_eq!(find("0x3bc6").unwrap().1.unwrap().name, "ioasid_map_dma");
        let (number, structure) = find("0x3bff").unwrap();
        assert_eq!((number, structure.is_none()), (0x3bff, true));
        assert_eq!(find("fly").unwrap_err().status(), 2);
    }

    #[test]
    fn fields_are_set_and_the_rest_is_zero() {
        let words = ["ioasid=3", "iova=64K", "flags=0x80", "vaddr=-4096", "fd=-2"];
        let built = built(&arguments("map-dma", &words)).unwrap();
        let expected = MapDma {
            argsz: MapDma::ARGSZ,
            flags: 0x80,
            ioasid: 3,
            fd: -2,
            iova: 64 << 10,
            vaddr: 4096u64.wrapping_neg(),
            ..MapDma::default()
        };
        assert_eq!(MapDma::read_from_bytes(&built.bytes).unwrap(), expected);
    }

    #[test]
    fn argsz_counts_what_is_sent_unless_it_is_given() {
        let argsz = |raw: &cli::Raw| {
            let built = built(raw).unwrap();
            (u32::from_ne_bytes(built.bytes[..4].try_into().unwrap()), built.bytes.len())
        };
        let mut raw = arguments("register-memory", &[]);
        assert_eq!(argsz(&raw), (24, 24));
        raw.tail = Some(Bytes(vec![0, 1]));
        assert_eq!(argsz(&raw), (26, 26));
        raw.tail = None;
        raw.cut = Some(8);
        assert_eq!(argsz(&raw), (8, 8));
        raw.fields = vec!["argsz=4097".into()];
        assert_eq!(argsz(&raw), (4097, 8));
        raw.cut = Some(25);
        assert_eq!(built(&raw).unwrap_err().status(), 2);
    }

    #[test]
    fn a_buffer_is_zeroes_or_text_at_an_address_field() {
        let raw = built(&arguments("sim-dma", &["data=@:abc", "size=3"])).unwrap();
        let offset = std::mem::offset_of!(SimDma, data);
        assert_eq!(raw.buffers, [("data".to_owned(), offset, b"abc".to_vec())]);
        let raw = built(&arguments("get-error", &["text=@16"])).unwrap();
        assert_eq!(raw.buffers[0].2, [0; 16]);
        assert!(built(&arguments("get-error", &["text_len=@16"])).is_err());
        assert!(built(&arguments("get-error", &["text=@17M"])).is_err());
    }

    #[test]
    fn names_are_text_or_bytes_without_an_end_when_full() {
        let raw = built(&arguments("bind-device", &["fd=-1", "name=sim0"])).unwrap();
        assert_eq!(raw.bytes[8..12], [0xff; 4]);
        assert_eq!(raw.bytes[24..29], *b"sim0\0");
        let full = format!("name=hex:{}", "61".repeat(64));
        assert_eq!(built(&arguments("bind-device", &[&full])).unwrap().bytes[24..88], [b'a'; 64]);
        let over = format!("name={}", "a".repeat(65));
        assert!(built(&arguments("bind-device", &[&over])).is_err());
    }

    #[test]
    fn wrong_words_are_refused() {
        for word in ["iova", "iovas=1", "flags=4G", "flags=x", "flags=--1"] {
            assert_eq!(built(&arguments("map-dma", &[word])).unwrap_err().status(), 2, "{word}");
        }
    }
}

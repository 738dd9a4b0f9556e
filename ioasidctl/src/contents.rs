//! `list`: what a context holds, a line for each IOASID, mapping and device.

use ioasid_uapi::{MAP_FILE, MAP_READ, MAP_WRITE, Mapping};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::commands::{flag_names, name_of};
use crate::node::{DeviceId, Ioasid, Node};
use crate::report::{Failure, Output, wide};

type Result<T> = std::result::Result<T, Failure>;

/// What one context holds.
struct Contents {
    lines: Vec<String>,
    json: Value,
}

/// The contexts of these descriptors; of several, each is headed by its number.
pub(crate) fn run(nodes: &[(Option<i32>, Node)]) -> Result<Output> {
    let mut plain = String::new();
    let mut opens = Vec::new();
    for (number, node) in nodes {
        let Contents { lines, mut json } = contents(node)?;
        if let Some(number) = number {
            plain.push_str(&format!("fd={number}\n"));
            json["fd"] = (*number).into();
        }
        plain.extend(lines.iter().map(|line| format!("{line}\n")));
        opens.push(json);
    }
    Ok(Output::bytes(plain.into_bytes(), json!({ "opens": opens })))
}

fn contents(node: &Node) -> Result<Contents> {
    let mut lines = Vec::new();
    let (mut spaces, mut devices) = (Vec::new(), Vec::new());
    for ioasid in node.ioasids()? {
        let Some((line, mut json)) = there_still(space(node, ioasid))? else { continue };
        let Some(mappings) = there_still(node.mappings(ioasid))? else { continue };
        lines.push(line);
        lines.extend(mappings.iter().map(|mapping| mapping_line(ioasid, mapping)));
        json["mappings"] = mappings.iter().map(mapping_json).collect();
        spaces.push(json);
    }
    for id in node.devices()? {
        let Some((line, json)) = there_still(device(node, id))? else { continue };
        lines.push(line);
        devices.push(json);
    }
    Ok(Contents { lines, json: json!({ "ioasids": spaces, "devices": devices }) })
}

/// The program goes on in the meantime, and may have freed what was listed.
fn there_still<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::NOENT => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn space(node: &Node, ioasid: Ioasid) -> Result<(String, Value)> {
    let id = ioasid.0;
    let (info, state) = match node.info(ioasid) {
        Ok((info, _)) => (info, "ready"),
        // It has no properties yet, or takes no command until a group is attached in full.
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::NODEV => {
            return Ok((
                format!("ioasid={id} state=unused"),
                json!({ "ioasid": id, "state": "unused" }),
            ));
        }
        Err(Failure::Refused(refusal)) if refusal.errno == Errno::BUSY => {
            return Ok((
                format!("ioasid={id} state=partial"),
                json!({ "ioasid": id, "state": "partial" }),
            ));
        }
        Err(failure) => return Err(failure),
    };
    let line = format!(
        "ioasid={id} state={state} parent={} nr_devices={} nr_children={} nr_mappings={} \
         mapped_bytes={} locked_bytes={}",
        info.parent,
        info.nr_devices,
        info.nr_children,
        info.nr_mappings,
        info.mapped_bytes,
        info.locked_bytes
    );
    let json = json!({
        "ioasid": id,
        "state": state,
        "parent": info.parent,
        "nr_devices": info.nr_devices,
        "nr_children": info.nr_children,
        "nr_mappings": info.nr_mappings,
        "mapped_bytes": info.mapped_bytes,
        "locked_bytes": info.locked_bytes,
    });
    Ok((line, json))
}

fn access(mapping: &Mapping) -> Vec<&'static str> {
    flag_names(mapping.flags, &[(MAP_READ, "READ"), (MAP_WRITE, "WRITE"), (MAP_FILE, "FILE")])
}

fn mapping_line(ioasid: Ioasid, mapping: &Mapping) -> String {
    format!(
        "mapping={:#x} size={} vaddr={:#x} flags={} ioasid={}",
        mapping.iova,
        mapping.size,
        mapping.vaddr,
        access(mapping).join(","),
        ioasid.0
    )
}

fn mapping_json(mapping: &Mapping) -> Value {
    json!({
        "iova": wide(mapping.iova),
        "size": mapping.size,
        "vaddr": wide(mapping.vaddr),
        "flags": access(mapping),
    })
}

fn device(node: &Node, id: DeviceId) -> Result<(String, Value)> {
    let info = node.device_info(id)?;
    let name = name_of(&info);
    let line = format!(
        "device={} name={name} group={} ioasid={} cookie={:#x}",
        id.0, info.group, info.ioasid, info.cookie
    );
    let json = json!({
        "device": id.0,
        "name": name,
        "group": info.group,
        "ioasid": info.ioasid,
        "cookie": wide(info.cookie),
    });
    Ok((line, json))
}

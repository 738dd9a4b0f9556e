//! What each subcommand does: from the command line to calls of the node, and from their results
//! to an output.

use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use ioasid::pgtable::Format;
use ioasid::pgtable::pasid::PasidFormat;
use ioasid_client::errno;
use ioasid_uapi::{
    BindPasidTable, BindPgtable, DEVICE_ATTACHED, DEVICE_SIMULATED, DEVICE_VFIO, DeviceInfo,
    INFO_DIRTY, INFO_MAP_DMA, INFO_NESTING, INFO_PASID_TABLE, INFO_SHADOW, INFO_SIMULATED,
    INFO_TRACKING, Info, IovaRange, MAP_READ, MAP_WRITE, cmd, ext,
};
use serde_json::{Map as Object, Value, json};

use crate::cli::{self, Cli, Command};
use crate::node::{Bitmap, DeviceId, Ioasid, Node, Place, Range, open_file};
use crate::number::number;
use crate::progress::Watch;
use crate::report::{Failure, Output, wide};
use crate::{contents, dma, doctor, faults, memory, raw, vector};

/// The extensions by the names of the header, without `IOASID_EXT_`.
pub(crate) const EXTENSIONS: &[(&str, u64)] = &[
    ("MAP_TYPE1V2", ext::MAP_TYPE1V2),
    ("NESTING", ext::NESTING),
    ("USER_PAGE_TABLE", ext::USER_PAGE_TABLE),
    ("USER_PASID_TABLE", ext::USER_PASID_TABLE),
    ("MULTIDEV_GROUP", ext::MULTIDEV_GROUP),
    ("DIRTY_TRACKING", ext::DIRTY_TRACKING),
    ("REGISTER_MEMORY", ext::REGISTER_MEMORY),
    ("SHARED_MEMORY", ext::SHARED_MEMORY),
    ("PRIVATE_MEMORY", ext::PRIVATE_MEMORY),
    ("VFIO", ext::VFIO),
    ("SIMULATED", ext::SIMULATED),
    ("FILE_MEMORY", ext::FILE_MEMORY),
    ("VECTOR", ext::VECTOR),
    ("FAULTS", ext::FAULTS),
    ("RECOVERABLE_FAULTS", ext::RECOVERABLE_FAULTS),
    ("SHARED_TABLE", ext::SHARED_TABLE),
    ("CONTAINER", ext::CONTAINER),
];

type Result<T> = std::result::Result<T, Failure>;

/// Does what the command line says.
pub(crate) fn run(cli: &Cli) -> Result<Output> {
    match &cli.command {
        Command::Doctor(arguments) => Ok(doctor::run(arguments, &cli.node)),
        Command::List => contents::run(&reach_all(cli)?),
        command => on_node(&reach(cli)?, command, cli.json),
    }
}

/// The contexts to look at: of another process that has the node open several times, all of them.
fn reach_all(cli: &Cli) -> Result<Vec<(Option<RawFd>, Node)>> {
    let Some(target) = cli.pid else { return Ok(vec![(None, reach(cli)?)]) };
    let descriptors = target.descriptors(&cli.node)?;
    descriptors.into_iter().map(|of| Ok((Some(of.fd), Node::of(of)?))).collect()
}

/// The context to work on.
fn reach(cli: &Cli) -> Result<Node> {
    if let Some(target) = cli.pid {
        return Node::of(target.descriptor(&cli.node)?);
    }
    match cli.fd {
        Some(fd) => Node::inherited(fd),
        None if cli.command.is_one_shot() => Node::open(&cli.node),
        None => {
            let (node, name) = (cli.node.display(), cli.command.name());
            Err(Failure::Usage(format!(
                "it works on an open context: exec 7<>{node}; ioasidctl --fd 7 {name} ..."
            )))
        }
    }
}

fn on_node(node: &Node, command: &Command, json: bool) -> Result<Output> {
    match command {
        Command::Check(arguments) => check(node, arguments),
        Command::Register(arguments) => register(node, arguments),
        Command::Unregister(arguments) => {
            node.register(arguments.vaddr, arguments.size, true).map(|()| done())
        }
        Command::Alloc => node.alloc().map(new_ioasid),
        Command::Free { ioasid } => node.free(Ioasid(*ioasid)).map(|()| done()),
        Command::Info { ioasid, field } => info(node, Ioasid(*ioasid), field),
        Command::Map(arguments) => {
            map(node, arguments, Watch::new(command.name(), arguments.progress.progress, json))
        }
        Command::Unmap(arguments) => unmap(node, arguments),
        Command::Vector { ioasid, file } => vector::run(node, Ioasid(*ioasid), file),
        Command::Nest { parent } => node.create_nesting(Ioasid(*parent)).map(new_ioasid),
        Command::BindTable(arguments) => bind_table(node, arguments),
        Command::UnbindTable { ioasid } => node.unbind_pgtable(Ioasid(*ioasid)).map(|()| done()),
        Command::BindPasids(arguments) => bind_pasids(node, arguments),
        Command::UnbindPasids { ioasid } => {
            node.unbind_pasid_table(Ioasid(*ioasid)).map(|()| done())
        }
        Command::Invalidate(arguments) => invalidate(node, arguments),
        Command::Dirty(arguments) => dirty(node, arguments),
        Command::Bind(arguments) => bind(node, arguments),
        Command::Unbind { device } => node.unbind(DeviceId(*device)).map(|()| done()),
        Command::Attach(cli::Attach { attachment: a, progress }) => {
            let ioasid = Ioasid(a.ioasid);
            let watch = Watch::new(command.name(), progress.progress, json);
            let attach = || node.attach(DeviceId(a.device), ioasid, a.pasid);
            watch.during(attach, &|| node.work(ioasid)).map(|()| done())
        }
        Command::Detach(a) => {
            node.detach(DeviceId(a.device), Ioasid(a.ioasid), a.pasid).map(|()| done())
        }
        Command::DeviceInfo { device, field } => device_info(node, DeviceId(*device), field),
        Command::SimDma(direction) => dma::run(node, direction),
        Command::Faults(arguments) => faults::run(node, arguments, json),
        Command::Complete { fault, response } => {
            faults::complete(node, *fault, *response).map(|()| done())
        }
        Command::Error { this_thread } => last_error(node, *this_thread),
        Command::Raw(arguments) => raw::run(node, arguments),
        Command::Doctor(_) => unreachable!("it asks the node by itself"),
        Command::List => unreachable!("it may look at several contexts"),
    }
}

fn done() -> Output {
    Output::silent(json!({}))
}

fn new_ioasid(ioasid: Ioasid) -> Output {
    Output::line(ioasid.0, json!({ "ioasid": ioasid.0 }))
}

fn chosen(range: &cli::RangeOrAll) -> Option<Range> {
    Some(Range { iova: range.iova?, size: range.size? })
}

fn check(node: &Node, arguments: &cli::Check) -> Result<Output> {
    if arguments.extension.eq_ignore_ascii_case("all") {
        let mut plain = Vec::new();
        let mut object = Object::new();
        for (name, number) in EXTENSIONS {
            let has = node.check(*number)?;
            plain.push((*name, has.to_string()));
            object.insert((*name).into(), has.into());
        }
        return Ok(Output::fields(&plain, json!({ "extensions": object })));
    }
    let number = extension(&arguments.extension)?;
    let has = node.check(number)?;
    let mut output = Output::line(has, json!({ "extension": number, "value": has }));
    if arguments.quiet {
        output.plain.clear();
        output.status = u8::from(has == 0);
    }
    Ok(output)
}

/// The number of an extension by its name, in any spelling, or number.
fn extension(text: &str) -> Result<u64> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    let name = name.strip_prefix("IOASID_EXT_").unwrap_or(&name);
    if let Some((_, number)) = EXTENSIONS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    number(text).map_err(|_| {
        let known: Vec<_> = EXTENSIONS.iter().map(|(name, _)| *name).collect();
        Failure::Usage(format!("`{text}` is no extension; known: {}, all", known.join(", ")))
    })
}

fn register(node: &Node, arguments: &cli::Register) -> Result<Output> {
    let lent = memory::lend(&arguments.source, true)?;
    node.register(lent.vaddr, lent.size, false)?;
    Ok(Output::silent(json!({ "vaddr": wide(lent.vaddr), "size": lent.size })))
}

fn map(node: &Node, arguments: &cli::Map, watch: Watch) -> Result<Output> {
    let flags = match (arguments.read, arguments.write) {
        (true, false) => MAP_READ,
        (false, true) => MAP_WRITE,
        _ => MAP_READ | MAP_WRITE,
    };
    let ioasid = Ioasid(arguments.ioasid);
    let writes = flags & MAP_WRITE != 0;
    if let Some(named) = memory::name(&arguments.by_descriptor, &arguments.source, writes)? {
        let range = Range { iova: arguments.iova, size: named.size };
        let place = Place::File { fd: named.fd, offset: arguments.source.offset };
        watch.during(|| node.map(ioasid, place, range, flags), &|| node.work(ioasid))?;
        return Ok(Output::silent(json!({
            "iova": wide(range.iova),
            "size": range.size,
            "offset": wide(arguments.source.offset),
        })));
    }
    // Memory can be registered only by who may write it.
    let lent = memory::lend(&arguments.source, writes || arguments.register)?;
    if arguments.register {
        node.register(lent.vaddr, lent.size, false)?;
    }
    let range = Range { iova: arguments.iova, size: lent.size };
    let place = Place::Address(lent.vaddr);
    let mapped = watch.during(|| node.map(ioasid, place, range, flags), &|| node.work(ioasid));
    if let Err(failure) = mapped {
        if arguments.register {
            // Nobody could map it any more, nor anything else. There is an error to tell already.
            let _ = node.register(lent.vaddr, lent.size, true);
        }
        return Err(failure);
    }
    let json = json!({ "iova": wide(range.iova), "size": range.size, "vaddr": wide(lent.vaddr) });
    Ok(match arguments.hold {
        false => Output::silent(json),
        true => {
            let output = Output::line(format_args!("{:#x}", lent.vaddr), json);
            Output { held: Some(lent), ..output }
        }
    })
}

fn unmap(node: &Node, arguments: &cli::Unmap) -> Result<Output> {
    let ioasid = Ioasid(arguments.ioasid);
    let range = chosen(&arguments.range);
    let Some(range) = range.filter(|_| arguments.dirty) else {
        let bytes = node.unmap(ioasid, range)?;
        return Ok(Output::line(bytes, json!({ "unmapped": bytes })));
    };
    let (bytes, bitmap) = node.unmap_dirty(ioasid, range)?;
    let (lines, list) = written(&bitmap);
    let mut fields = vec![("unmapped", bytes.to_string())];
    fields.extend(lines.into_iter().map(|line| ("written", line)));
    Ok(Output::fields(&fields, json!({ "unmapped": bytes, "written": list })))
}

fn dirty(node: &Node, arguments: &cli::Dirty) -> Result<Output> {
    match *arguments {
        cli::Dirty::Start { ioasid } => node.track(Ioasid(ioasid), true).map(|()| done()),
        cli::Dirty::Stop { ioasid } => node.track(Ioasid(ioasid), false).map(|()| done()),
        cli::Dirty::Read { ioasid, iova, size } => {
            let bitmap = node.written(Ioasid(ioasid), Range { iova, size })?;
            let (lines, list) = written(&bitmap);
            let plain: String = lines.iter().map(|line| format!("{line}\n")).collect();
            Ok(Output::bytes(plain.into_bytes(), json!({ "written": list })))
        }
    }
}

/// What was written, as lines and as JSON.
fn written(bitmap: &Bitmap) -> (Vec<String>, Value) {
    let ranges = bitmap.ranges();
    (ranges.iter().map(range_line).collect(), range_list(&ranges))
}

fn range_line(range: &IovaRange) -> String {
    format!("{:#x}-{:#x}", range.start, range.last)
}

fn range_list(ranges: &[IovaRange]) -> Value {
    let object =
        |range: &IovaRange| json!({ "start": wide(range.start), "last": wide(range.last) });
    ranges.iter().map(object).collect()
}

fn bind_table(node: &Node, arguments: &cli::BindTable) -> Result<Output> {
    let usual = if arguments.format == Format::X86Level5 { 57 } else { 48 };
    let table = BindPgtable {
        ioasid: arguments.ioasid,
        addr: arguments.address,
        format: arguments.format.number(),
        addr_width: arguments.width.unwrap_or(usual),
        ..BindPgtable::default()
    };
    node.bind_pgtable(table).map(|()| done())
}

fn bind_pasids(node: &Node, arguments: &cli::BindPasids) -> Result<Output> {
    let table = BindPasidTable {
        ioasid: arguments.ioasid,
        addr: arguments.address,
        format: arguments.format.number(),
        pasid_bits: arguments.bits,
        ..BindPasidTable::default()
    };
    node.bind_pasid_table(table).map(|()| done())
}

fn invalidate(node: &Node, arguments: &cli::Invalidate) -> Result<Output> {
    let range = match (arguments.pasid, arguments.iova.zip(arguments.size)) {
        // The header counts PASIDs as addresses.
        (Some(pasid), _) => Some(Range { iova: pasid.into(), size: 1 }),
        (None, range) => range.map(|(iova, size)| Range { iova, size }),
    };
    node.invalidate(Ioasid(arguments.ioasid), range).map(|()| done())
}

/// The names of the bits that are set.
pub(crate) fn flag_names(flags: u32, names: &[(u32, &'static str)]) -> Vec<&'static str> {
    names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect()
}

/// An output of fields, or of the one that was asked for.
fn shown(fields: &[(&str, String)], json: Value, field: &cli::Field) -> Result<Output> {
    let Some(name) = &field.field else {
        return Ok(Output::fields(fields, json));
    };
    let values: Vec<_> =
        fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
    if values.is_empty() {
        let known: Vec<_> = fields.iter().map(|(key, _)| *key).collect();
        return Err(Failure::Usage(format!(
            "there is no field `{name}`; there are: {}",
            known.join(", ")
        )));
    }
    Ok(Output::line(values.join("\n"), json[name.as_str()].clone()))
}

fn info(node: &Node, ioasid: Ioasid, field: &cli::Field) -> Result<Output> {
    let (info, ranges) = node.info(ioasid)?;
    let (fields, json) = space(&info, &ranges);
    shown(&fields, json, field)
}

/// An I/O address space as fields and as JSON.
fn space(info: &Info, ranges: &[IovaRange]) -> (Vec<(&'static str, String)>, Value) {
    let limit = Some(info.locked_limit).filter(|limit| *limit != u64::MAX);
    let flags = flag_names(
        info.flags,
        &[
            (INFO_MAP_DMA, "MAP_DMA"),
            (INFO_NESTING, "NESTING"),
            (INFO_SIMULATED, "SIMULATED"),
            (INFO_SHADOW, "SHADOW"),
            (INFO_DIRTY, "DIRTY"),
            (INFO_TRACKING, "TRACKING"),
            (INFO_PASID_TABLE, "PASID_TABLE"),
        ],
    );
    let formats = names_of_bits(info.formats, table_format);
    let pasid_formats = names_of_bits(info.pasid_formats, pasid_format);
    let bound = match info.flags & INFO_PASID_TABLE {
        _ if info.format == 0 => None,
        0 => Some(table_format(info.format)),
        _ => Some(pasid_format(info.format)),
    };
    let mut fields = vec![
        ("ioasid", info.ioasid.to_string()),
        ("parent", info.parent.to_string()),
        ("depth", info.depth.to_string()),
        ("flags", flags.join(",")),
        ("pgsizes", format!("{:#x}", info.pgsizes)),
        ("nr_devices", info.nr_devices.to_string()),
        ("nr_children", info.nr_children.to_string()),
        ("nr_mappings", info.nr_mappings.to_string()),
        ("max_mappings", info.max_mappings.to_string()),
        ("mapped_bytes", info.mapped_bytes.to_string()),
        ("locked_bytes", info.locked_bytes.to_string()),
        ("locked_used", info.locked_used.to_string()),
        ("locked_limit", limit.map_or("unlimited".into(), |bytes| bytes.to_string())),
        ("work_done", info.work_done.to_string()),
        ("work_total", info.work_total.to_string()),
        ("formats", formats.join(",")),
        ("pasid_formats", pasid_formats.join(",")),
        ("format", bound.clone().unwrap_or_else(|| "none".into())),
        ("format_addr", format!("{:#x}", info.format_addr)),
        ("nr_ranges", ranges.len().to_string()),
    ];
    fields.extend(ranges.iter().map(|range| ("range", range_line(range))));
    let json = json!({
        "ioasid": info.ioasid,
        "parent": info.parent,
        "depth": info.depth,
        "flags": flags,
        "pgsizes": wide(info.pgsizes),
        "nr_devices": info.nr_devices,
        "nr_children": info.nr_children,
        "nr_mappings": info.nr_mappings,
        "max_mappings": info.max_mappings,
        "mapped_bytes": info.mapped_bytes,
        "locked_bytes": info.locked_bytes,
        "locked_used": info.locked_used,
        "locked_limit": limit,
        "work_done": info.work_done,
        "work_total": info.work_total,
        "formats": formats,
        "pasid_formats": pasid_formats,
        "format": bound,
        "format_addr": wide(info.format_addr),
        "nr_ranges": ranges.len(),
        "range": range_list(ranges),
    });
    (fields, json)
}

/// The name of a page-table format, or of one that came later the number.
fn table_format(number: u32) -> String {
    Format::from_number(number).map_or_else(|| number.to_string(), |format| format.name().into())
}

/// The same of a PASID-table format.
fn pasid_format(number: u32) -> String {
    PasidFormat::from_number(number)
        .map_or_else(|| number.to_string(), |format| format.name().into())
}

fn names_of_bits(bits: u64, name: fn(u32) -> String) -> Vec<String> {
    (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1).map(name).collect()
}

/// The name of a device.
pub(crate) fn name_of(info: &DeviceInfo) -> String {
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    String::from_utf8_lossy(&info.name[..end]).into_owned()
}

fn device_info(node: &Node, device: DeviceId, field: &cli::Field) -> Result<Output> {
    let info = node.device_info(device)?;
    let flags = flag_names(
        info.flags,
        &[(DEVICE_VFIO, "VFIO"), (DEVICE_SIMULATED, "SIMULATED"), (DEVICE_ATTACHED, "ATTACHED")],
    );
    let name = name_of(&info);
    let fields = [
        ("device", device.0.to_string()),
        ("name", name.clone()),
        ("flags", flags.join(",")),
        ("group", info.group.to_string()),
        ("ioasid", info.ioasid.to_string()),
        ("cookie", format!("{:#x}", info.cookie)),
        ("pgsizes", format!("{:#x}", info.pgsizes)),
        ("aperture_start", format!("{:#x}", info.aperture_start)),
        ("aperture_last", format!("{:#x}", info.aperture_last)),
        ("max_mappings", info.max_mappings.to_string()),
    ];
    let json = json!({
        "device": device.0,
        "name": name,
        "flags": flags,
        "group": info.group,
        "ioasid": info.ioasid,
        "cookie": wide(info.cookie),
        "pgsizes": wide(info.pgsizes),
        "aperture_start": wide(info.aperture_start),
        "aperture_last": wide(info.aperture_last),
        "max_mappings": info.max_mappings,
    });
    shown(&fields, json, field)
}

fn bind(node: &Node, arguments: &cli::Bind) -> Result<Output> {
    let with = arguments.share_with.map(DeviceId);
    let bind = |name: &str, group| node.bind(name, group, with, arguments.cookie);
    let device = if let Some(name) = &arguments.simulated {
        bind(name, None)?
    } else {
        // The command line cannot be without a name here.
        let name = arguments.name.as_deref().unwrap_or_default();
        match arguments.group_fd {
            Some(fd) => bind(name, Some(fd))?,
            None => {
                let path = match &arguments.vfio_group {
                    Some(path) => path.clone(),
                    None => group_of(name)?,
                };
                let group = open_group(&path)?;
                bind(name, Some(group.as_raw_fd()))?
            }
        }
    };
    Ok(Output::line(device.0, json!({ "device": device.0 })))
}

/// The node of a PCI device's VFIO group.
fn group_of(name: &str) -> Result<PathBuf> {
    let link = Path::new("/sys/bus/pci/devices").join(name).join("iommu_group");
    match std::fs::read_link(&link) {
        Ok(target) => Ok(Path::new("/dev/vfio").join(target.file_name().unwrap_or_default())),
        Err(_) => Err(Failure::Host(format!(
            "{} does not exist: no such PCI device, or it has no IOMMU (try: ioasidctl doctor); \
             name the group with --vfio-group or --group-fd, or a simulated device with --simulated",
            link.display()
        ))),
    }
}

fn open_group(path: &Path) -> Result<std::fs::File> {
    open_file(path, true).map_err(|failure| {
        Failure::Host(format!(
            "{failure} (its devices must be on vfio-pci; a group can be open only once: for a second \
             device keep it open in the shell and use --group-fd)"
        ))
    })
}

/// Adds to a refusal what the command gave all the same.
pub(crate) fn with_outputs(mut failure: Failure, outputs: Output) -> Failure {
    if let Failure::Refused(refusal) = &mut failure {
        refusal.outputs = Some(outputs);
    }
    failure
}

fn last_error(node: &Node, this_thread: bool) -> Result<Output> {
    let last = node.error(this_thread)?;
    let command = cmd::name(last.command)
        .map_or_else(|| format!("command {:#x}", last.command), str::to_owned);
    let errno = errno::name(last.errno);
    let json = json!({
        "command": cmd::name(last.command),
        "number": last.command,
        "errno": errno,
        "code": last.errno.raw_os_error(),
        "explanation": last.text,
    });
    Ok(Output::line(format_args!("{command}: {errno}: {}", last.text), json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_has_a_name_in_any_spelling_or_a_number() {
        for text in ["SIMULATED", "simulated", "IOASID_EXT_SIMULATED", "ioasid-ext-simulated", "11"]
        {
            assert_eq!(extension(text).unwrap(), 11, "{text}");
        }
        assert_eq!(extension("private-memory").unwrap(), 9);
        assert_eq!(extension("file-memory").unwrap(), 12);
        assert_eq!(extension("0xffffffff").unwrap(), 0xffff_ffff);
        let failure = extension("telepathy").unwrap_err();
        assert_eq!(failure.status(), 2);
        assert!(failure.to_string().contains("MAP_TYPE1V2"));
    }

    #[test]
    fn what_is_locked_is_shown_with_its_limit() {
        let info = Info {
            mapped_bytes: 8192,
            locked_bytes: 4096,
            locked_used: 12288,
            locked_limit: u64::MAX,
            work_done: 1 << 20,
            work_total: 1 << 30,
            ..Info::default()
        };
        let (fields, json) = space(&info, &[]);
        let plain = |name| fields.iter().find(|(key, _)| *key == name).unwrap().1.as_str();
        assert_eq!(plain("locked_bytes"), "4096");
        assert_eq!(plain("locked_used"), "12288");
        assert_eq!(plain("locked_limit"), "unlimited");
        assert_eq!((plain("work_done"), plain("work_total")), ("1048576", "1073741824"));
        assert_eq!(json["locked_limit"], Value::Null);
        assert_eq!(json["locked_used"], 12288);
        let (fields, json) = space(&Info { locked_limit: 65536, ..info }, &[]);
        assert!(fields.contains(&("locked_limit", "65536".into())));
        assert_eq!(json["locked_limit"], 65536);
        for (name, _) in &fields {
            assert!(json.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn formats_are_shown_by_name() {
        let bound = |flags, format| Info {
            flags,
            formats: 0b1000_0010,
            pasid_formats: 0b10,
            format,
            format_addr: 0x1000,
            depth: 1,
            ..Info::default()
        };
        let (fields, json) = space(&bound(0, 3), &[]);
        let has = |name, text: &str| assert!(fields.contains(&(name, text.into())), "{fields:?}");
        has("formats", "x86-4level,7");
        has("pasid_formats", "vtd-scalable");
        has("format", "vtd-second");
        has("format_addr", "0x1000");
        has("depth", "1");
        assert_eq!(json["formats"], json!(["x86-4level", "7"]));
        let (_, json) = space(&bound(INFO_PASID_TABLE, 3), &[]);
        assert_eq!(
            (&json["format"], &json["flags"]),
            (&json!("arm-cd-4k"), &json!(["PASID_TABLE"]))
        );
        let (fields, json) = space(&bound(0, 0), &[]);
        assert!(fields.contains(&("format", "none".into())));
        assert_eq!(json["format"], Value::Null);
    }

    #[test]
    fn one_field_is_printed_alone() {
        let fields = [("a", "1".to_owned()), ("range", "x".into()), ("range", "y".into())];
        let json = json!({ "a": 1, "range": ["x", "y"] });
        let field = |name: &str| cli::Field { field: Some(name.into()) };
        assert_eq!(shown(&fields, json.clone(), &field("a")).unwrap().plain, b"1\n");
        assert_eq!(shown(&fields, json.clone(), &field("range")).unwrap().plain, b"x\ny\n");
        assert_eq!(shown(&fields, json.clone(), &field("b")).unwrap_err().status(), 2);
        let all = shown(&fields, json, &cli::Field { field: None }).unwrap();
        assert_eq!(all.plain, b"a=1\nrange=x\nrange=y\n");
    }
}

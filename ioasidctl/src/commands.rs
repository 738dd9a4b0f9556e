//! What each subcommand does: from the command line to calls of the node, and from their results
//! to an output.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ioasid_uapi::{
    BindPasidTable, BindPgtable, DEVICE_ATTACHED, DEVICE_SIMULATED, DEVICE_VFIO, INFO_MAP_DMA,
    INFO_NESTING, INFO_SIMULATED, Info, IovaRange, MAP_READ, MAP_WRITE, cmd, ext,
};
use serde_json::{Map as Object, Value, json};

use crate::cli::{self, Cli, Command};
use crate::node::{self, DeviceId, Ioasid, Node, Place, Range, open_file};
use crate::number::{number, to_hex};
use crate::progress::Watch;
use crate::report::{Failure, Output, wide};
use crate::{doctor, errno, memory, raw};

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
];

type Result<T> = std::result::Result<T, Failure>;

/// Does what the command line says.
pub(crate) fn run(cli: &Cli) -> Result<Output> {
    match &cli.command {
        Command::Doctor(arguments) => Ok(doctor::run(arguments, &cli.node)),
        command => on_node(&reach(cli)?, command, cli.json),
    }
}

/// The context to work on.
fn reach(cli: &Cli) -> Result<Node> {
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
        Command::Unmap { ioasid, range } => {
            let bytes = node.unmap(Ioasid(*ioasid), chosen(range))?;
            Ok(Output::line(bytes, json!({ "unmapped": bytes })))
        }
        Command::CreateNesting { parent } => node.create_nesting(Ioasid(*parent)).map(new_ioasid),
        Command::BindPgtable { ioasid, addr, format, addr_width } => {
            let table = BindPgtable {
                ioasid: *ioasid,
                addr: *addr,
                format: *format,
                addr_width: *addr_width,
                ..BindPgtable::default()
            };
            node.bind_pgtable(table).map(|()| done())
        }
        Command::UnbindPgtable { ioasid } => node.unbind_pgtable(Ioasid(*ioasid)).map(|()| done()),
        Command::BindPasidTable { ioasid, addr, format, pasid_bits } => {
            let table = BindPasidTable {
                ioasid: *ioasid,
                addr: *addr,
                format: *format,
                pasid_bits: *pasid_bits,
                ..BindPasidTable::default()
            };
            node.bind_pasid_table(table).map(|()| done())
        }
        Command::UnbindPasidTable { ioasid } => {
            node.unbind_pasid_table(Ioasid(*ioasid)).map(|()| done())
        }
        Command::Invalidate { ioasid, range } => {
            node.invalidate(Ioasid(*ioasid), chosen(range)).map(|()| done())
        }
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
        Command::SimDma(direction) => sim_dma(node, direction),
        Command::Error { this_thread } => last_error(node, *this_thread),
        Command::Raw(arguments) => raw::run(node, arguments),
        Command::Doctor(_) => unreachable!("it asks the node by itself"),
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

/// The names of the bits that are set.
fn flag_names(flags: u32, names: &[(u32, &'static str)]) -> Vec<&'static str> {
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
        &[(INFO_MAP_DMA, "MAP_DMA"), (INFO_NESTING, "NESTING"), (INFO_SIMULATED, "SIMULATED")],
    );
    let mut fields = vec![
        ("ioasid", info.ioasid.to_string()),
        ("parent", info.parent.to_string()),
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
        ("nr_ranges", ranges.len().to_string()),
    ];
    fields.extend(
        ranges.iter().map(|range| ("range", format!("{:#x}-{:#x}", range.start, range.last))),
    );
    let list: Vec<_> = ranges
        .iter()
        .map(|range| json!({ "start": wide(range.start), "last": wide(range.last) }))
        .collect();
    let json = json!({
        "ioasid": info.ioasid,
        "parent": info.parent,
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
        "nr_ranges": ranges.len(),
        "range": list,
    });
    (fields, json)
}

fn device_info(node: &Node, device: DeviceId, field: &cli::Field) -> Result<Output> {
    let info = node.device_info(device)?;
    let flags = flag_names(
        info.flags,
        &[(DEVICE_VFIO, "VFIO"), (DEVICE_SIMULATED, "SIMULATED"), (DEVICE_ATTACHED, "ATTACHED")],
    );
    let end = info.name.iter().position(|byte| *byte == 0).unwrap_or(info.name.len());
    let name = String::from_utf8_lossy(&info.name[..end]).into_owned();
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
    let device = if let Some(name) = &arguments.simulated {
        node.bind(name, None, arguments.cookie)?
    } else {
        // The command line cannot be without a name here.
        let name = arguments.name.as_deref().unwrap_or_default();
        match arguments.group_fd {
            Some(fd) => node.bind(name, Some(fd), arguments.cookie)?,
            None => {
                let path = match &arguments.vfio_group {
                    Some(path) => path.clone(),
                    None => group_of(name)?,
                };
                let group = open_group(&path)?;
                node.bind(name, Some(group.as_raw_fd()), arguments.cookie)?
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

/// The most that one `sim-dma` transfers, which it keeps in memory.
const SIM_DMA_TOTAL: u64 = 1 << 30;

fn sim_dma(node: &Node, direction: &cli::SimDma) -> Result<Output> {
    match direction {
        cli::SimDma::Read { device, iova, size, file, text } => {
            if *size > SIM_DMA_TOTAL {
                return Err(Failure::Usage(format!("--size is more than {SIM_DMA_TOTAL} bytes")));
            }
            let mut data = vec![0; *size as usize];
            let mut chunks = chunks(data.len());
            let (done, result) = transfer(&mut chunks, |chunk| {
                let iova = iova.wrapping_add(chunk.start as u64);
                node.sim_dma_read(DeviceId(*device), iova, &mut data[chunk])
            });
            let partial = Output::silent(json!({ "done": done }));
            result.map_err(|failure| with_outputs(failure, partial))?;
            read_output(&data, file.as_deref(), *text)
        }
        cli::SimDma::Write { device, iova, data } => {
            let data = written_data(data)?;
            let (done, result) = transfer(&mut chunks(data.len()), |chunk| {
                let iova = iova.wrapping_add(chunk.start as u64);
                node.sim_dma_write(DeviceId(*device), iova, &data[chunk])
            });
            let output = Output::line(done, json!({ "done": done }));
            match result {
                Ok(()) => Ok(output),
                Err(failure) => Err(with_outputs(failure, output)),
            }
        }
    }
}

/// The parts in which so many bytes are transferred, each small enough for one command. Nothing
/// is one part, for the node to refuse.
fn chunks(len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let most = ioasid_uapi::SIM_DMA_MAX as usize;
    (0..len.max(1)).step_by(most).map(move |start| start..len.min(start + most))
}

/// Transfers the parts one by one until one is refused. Gives the number of bytes.
fn transfer(
    chunks: &mut dyn Iterator<Item = std::ops::Range<usize>>,
    mut one: impl FnMut(std::ops::Range<usize>) -> (u64, Result<()>),
) -> (u64, Result<()>) {
    let mut total = 0;
    for chunk in chunks {
        let (done, result) = one(chunk);
        total += done;
        if result.is_err() {
            return (total, result);
        }
    }
    (total, Ok(()))
}

/// Adds to a refusal what the command gave all the same.
pub(crate) fn with_outputs(mut failure: Failure, outputs: Output) -> Failure {
    if let Failure::Refused(refusal) = &mut failure {
        refusal.outputs = Some(outputs);
    }
    failure
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
    fn transfers_are_made_in_parts_that_one_command_takes() {
        let most = ioasid_uapi::SIM_DMA_MAX as usize;
        let parts = |len| chunks(len).map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(parts(0), [0]);
        assert_eq!(parts(1), [1]);
        assert_eq!(parts(most), [most]);
        assert_eq!(parts(2 * most + 5), [most, most, 5]);
        let refusal = || Failure::Usage(String::new());
        let (done, result) = transfer(&mut chunks(2 * most), |part| match part.start {
            0 => (most as u64, Ok(())),
            _ => (7, Err(refusal())),
        });
        assert_eq!((done, result.is_err()), (most as u64 + 7, true));
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

    #[test]
    fn data_that_a_device_read_is_hexadecimal_text_or_bytes() {
        assert_eq!(read_output(b"hi\0x", None, false).unwrap().plain, b"68690078\n");
        assert_eq!(read_output(b"hi\0x", None, true).unwrap().plain, b"hi\n");
        assert_eq!(read_output(b"hi\0x", Some(Path::new("-")), false).unwrap().plain, b"hi\0x");
    }
}

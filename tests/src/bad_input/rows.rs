//! The table. What each row expects is what ioasid.h says of its command.
//!
//! Which of two errors wins where an argument has both is this: the argument cannot be read or
//! written; argsz; flags and reserved fields; ids; ENODEV and EBUSY; ranges; what is at the
//! addresses. Of a command that the host cannot do: the shape of the argument, then EOPNOTSUPP.

use super::world::{
    DeviceName, FILE_SIZE, FREE_IOVA, MAPPED, MAPPED_SIZE, Open, SECOND, SECOND_SIZE, UNKNOWN_ID,
    World, flaw_of_a_sentence, name_field, nowhere,
};
use super::{Expect, Input, Look, Place, Row, Step};
use crate::raw::{
    AFTER_PRIVATE, ARGUMENT, Arena, Argument, KERNEL, NEVER_MAPPED, NO_ACCESS, NON_CANONICAL,
    OUTPUT, PAGE, PRIVATE, READ_ONLY, SHARED, SHARED_READ_ONLY,
};
use ioasid_uapi::{self as uapi, cmd, ext};
use rustix::fd::{AsFd as _, AsRawFd as _};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The table for one scene.
pub struct Table {
    /// All rows that can be run.
    pub rows: Vec<Row>,
    /// Why others cannot.
    pub skipped: Vec<String>,
}

/// All rows.
pub fn all(world: &World) -> Table {
    let mut table = Table { rows: Vec::new(), skipped: Vec::new() };
    for template in templates(world, &mut table.skipped) {
        table.rows.extend(template.shapes(world));
    }
    table.rows.extend(unknown_commands(world));
    table.rows.extend(check_extension());
    table.rows.extend(alloc_and_free(world));
    table.rows.extend(get_info(world));
    table.rows.extend(list(world));
    table.rows.extend(map_ids_and_ranges(world));
    table.rows.extend(map_memory(world));
    table.rows.extend(map_file(world));
    table.rows.extend(unmap(world));
    table.rows.extend(nesting(world));
    table.rows.extend(map_in_a_child(world));
    table.rows.extend(page_tables(world));
    table.rows.extend(vectors(world));
    table.rows.extend(unsupported_tables(world));
    table.rows.extend(register_shapes(world));
    table.rows.extend(register_memory(world));
    table.rows.extend(map_registered(world));
    table.rows.extend(bind_simulated(world));
    table.rows.extend(bind_vfio(world));
    table.rows.extend(bind_twice(world));
    table.rows.extend(unbind(world));
    table.rows.extend(attach(world));
    table.rows.extend(detach(world));
    table.rows.extend(get_device_info(world));
    table.rows.extend(get_error(world));
    table.rows.extend(sim_dma(world));
    table.rows.extend(sim_dma_options(world));
    table.rows.extend(complete_fault(world));
    table.rows.extend(set_fault_eventfd(world));
    table
}

// ---------------------------------------------------------------------------------------------
// Making rows
// ---------------------------------------------------------------------------------------------

fn bytes_of(structure: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    structure.as_bytes().to_vec()
}

fn row(command: u32, name: impl Into<String>, structure: impl IntoBytes + Immutable) -> Row {
    row_of_bytes(command, name, bytes_of(&structure))
}

fn row_of_bytes(command: u32, name: impl Into<String>, bytes: Vec<u8>) -> Row {
    Row {
        name: name.into(),
        command,
        input: Input::Structure(bytes, Place::Ordinary),
        open: Open::Ours,
        expect: Expect::Success,
        before: None,
        undo: None,
        after: None,
        look: None,
    }
}

fn number(command: u32, name: impl Into<String>, value: impl Into<u64>) -> Row {
    Row { input: Input::Value(value.into()), ..row_of_bytes(command, name, Vec::new()) }
}

impl Row {
    fn fails(self, errno: Errno) -> Self {
        self.expect(Expect::Fails(errno))
    }

    fn fails_any(self, errnos: &[Errno]) -> Self {
        self.expect(Expect::FailsAny(errnos.to_vec()))
    }

    fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }

    fn on(self, open: Open) -> Self {
        Self { open, ..self }
    }

    fn at(mut self, new_place: Place) -> Self {
        if let Input::Structure(_, place) = &mut self.input {
            *place = new_place;
        }
        self
    }

    fn before(self, step: Step) -> Self {
        Self { before: Some(step), ..self }
    }

    fn undo(self, step: Step) -> Self {
        Self { undo: Some(step), ..self }
    }

    fn after(self, step: Step) -> Self {
        Self { after: Some(step), ..self }
    }

    fn look(self, look: Look) -> Self {
        Self { look: Some(look), ..self }
    }
}

/// Reads what a row's structure holds.
fn structure<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).expect("a row's structure is in memory that can be read").0
}

// ---------------------------------------------------------------------------------------------
// What can be wrong with any structure
// ---------------------------------------------------------------------------------------------

/// A good call of a command that takes a structure, from which wrong ones are made.
struct Template {
    row: Row,
    /// Whether the command writes to the structure.
    writes: bool,
    /// The flags that it knows; None if `flags` is an output.
    known_flags: Option<u32>,
    /// Where its reserved fields are.
    reserved: &'static [usize],
    /// Sizes that the structure had before, which are taken too.
    former: &'static [u32],
}

const FLAGS_OFFSET: usize = 4;

impl Template {
    fn new(row: Row) -> Self {
        Self { row, writes: false, known_flags: Some(0), reserved: &[], former: &[] }
    }

    fn bytes(&self) -> &[u8] {
        match &self.row.input {
            Input::Structure(bytes, _) => bytes,
            Input::Value(_) => &[],
        }
    }

    /// The good call with other bytes.
    fn with(&self, name: impl Into<String>, bytes: Vec<u8>) -> Row {
        let row = &self.row;
        Row {
            name: name.into(),
            command: row.command,
            input: Input::Structure(bytes, Place::Ordinary),
            open: row.open,
            expect: row.expect.clone(),
            before: row.before,
            undo: row.undo,
            after: row.after,
            look: row.look,
        }
    }

    fn good(&self, name: impl Into<String>) -> Row {
        self.with(name, self.bytes().to_vec())
    }

    fn with_u32(&self, name: impl Into<String>, offset: usize, value: u32) -> Row {
        let mut bytes = self.bytes().to_vec();
        bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self.with(name, bytes)
    }

    /// The good call with another argsz, and a tail of zeroes up to there (or to 8192 bytes).
    fn with_argsz(&self, name: impl Into<String>, argsz: u32) -> Row {
        let mut row = self.with_u32(name, 0, argsz);
        if let Input::Structure(bytes, _) = &mut row.input {
            let len = (argsz as usize).clamp(bytes.len(), 8192);
            bytes.resize(len, 0);
        }
        row
    }

    /// The same, with one byte of the tail not zero.
    fn with_tail(&self, name: impl Into<String>, argsz: u32, at: u32) -> Row {
        let mut row = self.with_argsz(name, argsz);
        if let Input::Structure(bytes, _) = &mut row.input {
            bytes[at as usize] = 1;
        }
        row
    }

    fn shapes(&self, world: &World) -> Vec<Row> {
        let mut rows = vec![self.good("a good argument")];
        rows.extend(self.bad_pointers(world));
        rows.extend(self.bad_sizes());
        rows.extend(self.bad_flags());
        rows
    }

    fn bad_pointers(&self, world: &World) -> Vec<Row> {
        let size = self.bytes().len() as u64;
        let mut rows: Vec<_> = nowhere(world)
            .into_iter()
            .map(|(name, address)| self.good(name).at(Place::Nowhere(address)).fails(Errno::FAULT))
            .collect();
        for count in [1, 3, 4, 8, size / 2, size - 1] {
            let name = format!("only the first {count} bytes are in memory");
            rows.push(self.good(name).at(Place::CutAfter(count)).fails(Errno::FAULT));
        }
        let behind = self.with_argsz("argsz reaches behind the end of memory", size as u32 + 64);
        rows.push(behind.at(Place::CutAfter(size)).fails(Errno::FAULT));
        rows.push(self.good("it ends where memory ends").at(Place::AtTheEnd));
        rows.push(self.good("it is at an odd address").at(Place::Odd));
        let read_only = self.good("it is in read-only memory").at(Place::ReadOnly);
        match (self.writes, &self.row.expect) {
            (false, _) => rows.push(read_only),
            (true, Expect::Fails(errno)) => {
                rows.push(read_only.fails_any(&[Errno::FAULT, *errno]));
            }
            // The kernel copies the result when the command is done and cannot be undone.
            (true, _) if world.kernel_copies && self.row.undo.is_some() => {}
            (true, _) => rows.push(read_only.fails(Errno::FAULT)),
        }
        rows
    }

    fn bad_sizes(&self) -> Vec<Row> {
        let size = self.bytes().len() as u32;
        let mut rows = Vec::new();
        for argsz in [0, 1, 4, 8, size - 8, size - 1] {
            let row = self.with_argsz(format!("argsz {argsz}"), argsz);
            rows.push(if self.former.contains(&argsz) { row } else { row.fails(Errno::INVAL) });
        }
        for argsz in [size + 1, size + 8, 4096] {
            rows.push(self.with_argsz(format!("argsz {argsz} with a zero tail"), argsz));
            // The first byte of the tail, and the last.
            for at in BTreeSet::from([size, argsz - 1]) {
                let name = format!("argsz {argsz} with byte {at} set");
                rows.push(self.with_tail(name, argsz, at).fails(Errno::TOOBIG));
            }
        }
        for argsz in [4097, 8192, 1 << 31, u32::MAX] {
            rows.push(self.with_argsz(format!("argsz {argsz}"), argsz).fails(Errno::TOOBIG));
        }
        rows
    }

    fn bad_flags(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if let Some(known) = self.known_flags {
            let good: u32 = structure::<[u32; 2]>(self.bytes())[1];
            for unknown in [1 << (!known).trailing_zeros(), 1 << 31, !known] {
                let name = format!("unknown flags {unknown:#x}");
                rows.push(self.with_u32(name, FLAGS_OFFSET, good | unknown).fails(Errno::INVAL));
            }
        }
        for &offset in self.reserved {
            for value in [1, 1 << 31, u32::MAX] {
                let name = format!("a reserved field is {value:#x}");
                rows.push(self.with_u32(name, offset, value).fails(Errno::INVAL));
            }
        }
        rows
    }
}

/// A good call of each command that takes a structure.
fn templates(world: &World, skipped: &mut Vec<String>) -> Vec<Template> {
    let mut templates = vec![
        Template {
            writes: true,
            known_flags: None,
            ..Template::new(row(cmd::GET_INFO, "", info_request(world)))
        },
        Template {
            known_flags: Some(uapi::MAP_READ | uapi::MAP_WRITE | uapi::MAP_FILE),
            ..Template::new(row(cmd::MAP_DMA, "", free_map(world)).undo(unmap_free_page))
        },
        Template {
            writes: true,
            known_flags: Some(uapi::UNMAP_ALL),
            reserved: &[12],
            ..Template::new(
                row(cmd::UNMAP_DMA, "", world.unmap_request(SECOND, SECOND_SIZE)).undo(map_second),
            )
        },
        Template {
            known_flags: Some(uapi::ATTACH_USER_PASID),
            reserved: &[20],
            ..Template::new(
                row(cmd::ATTACH_DEVICE, "", world.attachment())
                    .before(World::detach)
                    .undo(World::detach)
                    .after(World::attach),
            )
        },
        Template {
            known_flags: Some(uapi::ATTACH_USER_PASID),
            reserved: &[20],
            ..Template::new(row(cmd::DETACH_DEVICE, "", world.attachment()).undo(World::attach))
        },
        Template {
            writes: true,
            known_flags: None,
            ..Template::new(row(cmd::GET_DEVICE_INFO, "", device_info_request(world.device)))
        },
        Template {
            writes: true,
            known_flags: Some(uapi::LIST_IOASIDS | uapi::LIST_DEVICES | uapi::LIST_MAPPINGS),
            ..Template::new(row(cmd::LIST, "", list_request(world, uapi::LIST_MAPPINGS)))
        },
        Template {
            writes: true,
            known_flags: Some(uapi::ERROR_ANY_THREAD),
            reserved: &[28],
            ..Template::new(row(cmd::GET_ERROR, "", error_request(world)))
        },
        Template {
            writes: true,
            known_flags: Some(SIM_DMA_FLAGS),
            reserved: &[12],
            former: &[uapi::SIM_DMA_SIZE_VER0],
            ..Template::new(row(cmd::SIM_DMA, "", dma_request(world)).expect(
                if world.is_simulated() {
                    Expect::Success
                } else {
                    Expect::Fails(Errno::OPNOTSUPP)
                },
            ))
        },
        Template::new(row(cmd::COMPLETE_FAULT, "", fault_answer()).fails(no_such_fault(world))),
    ];
    if world.devices.len() > 1 {
        templates.push(Template {
            writes: true,
            known_flags: Some(uapi::BIND_VFIO_GROUP | uapi::BIND_SIMULATED | uapi::BIND_SHARE),
            reserved: &[92],
            former: &[uapi::BIND_SIZE_VER0],
            ..Template::new(
                row(cmd::BIND_DEVICE, "", world.bind_request(1))
                    .look(remember_bound)
                    .undo(World::unbind_spare),
            )
        });
    } else {
        skipped.push(
            "a good BIND_DEVICE, and what is wrong with its shape: name a second device".into(),
        );
    }
    if world.has(ext::REGISTER_MEMORY) {
        let memory = register_request(world);
        templates.extend([
            Template::new(row(cmd::REGISTER_MEMORY, "", memory).undo(unregister)),
            Template::new(
                row(cmd::UNREGISTER_MEMORY, "", memory)
                    .before(register)
                    .undo(register)
                    .after(unregister),
            ),
        ]);
    }
    templates.extend(nested_templates(world));
    templates.extend(unsupported_templates(world, skipped));
    templates
}

/// Good calls of what is nested, and of several at once.
fn nested_templates(world: &World) -> Vec<Template> {
    let mut templates = Vec::new();
    if world.has(ext::USER_PAGE_TABLE) {
        let (bind, unbind) = (world.bind_pgtable_request(), world.unbind_pgtable_request());
        let invalidate = uapi::InvalidateCache { ioasid: world.child, ..invalidate_request(world) };
        let bind = row(cmd::BIND_PGTABLE, "", bind).undo(World::unbind_pgtable);
        let unbind = row(cmd::UNBIND_PGTABLE, "", unbind)
            .before(World::bind_pgtable)
            .undo(World::bind_pgtable)
            .after(World::unbind_pgtable);
        let invalidate = row(cmd::INVALIDATE_CACHE, "", invalidate)
            .before(World::bind_pgtable)
            .after(World::unbind_pgtable);
        templates.extend([
            Template { reserved: &[28], ..Template::new(bind) },
            Template { reserved: &[28], ..Template::new(unbind) },
            Template {
                reserved: &[12],
                known_flags: Some(uapi::INVALIDATE_ALL),
                ..Template::new(invalidate)
            },
        ]);
    }
    if world.has(ext::VECTOR) {
        let vector = row(cmd::VECTOR, "", vector_request(world));
        let vector = vector.before(put_op).undo(unmap_free_page).after(nothing);
        templates.push(Template { writes: true, reserved: &[28], ..Template::new(vector) });
    }
    templates
}

/// Good calls of what a host cannot do.
fn unsupported_templates(world: &World, skipped: &mut Vec<String>) -> Vec<Template> {
    let mut templates = Vec::new();
    let mut add = |extension, name: &str, reserved, known_flags, rows: Vec<Row>| {
        if world.has(extension) {
            skipped.push(format!("{name} as a host that cannot do it must answer: this host can"));
            return;
        }
        templates.extend(rows.into_iter().map(|row| Template {
            reserved,
            known_flags: Some(known_flags),
            ..Template::new(row.fails(Errno::OPNOTSUPP))
        }));
    };
    let memory = register_request(world);
    add(
        ext::REGISTER_MEMORY,
        "REGISTER_MEMORY",
        &[],
        0,
        vec![row(cmd::REGISTER_MEMORY, "", memory), row(cmd::UNREGISTER_MEMORY, "", memory)],
    );
    let (pgtable, pasid_table) = (pgtable_request(world), pasid_table_request(world));
    add(
        ext::USER_PAGE_TABLE,
        "BIND_PGTABLE",
        &[28],
        0,
        vec![
            row(cmd::BIND_PGTABLE, "", pgtable),
            row(cmd::UNBIND_PGTABLE, "", uapi::BindPgtable { addr: 0, addr_width: 0, ..pgtable }),
        ],
    );
    add(
        ext::USER_PASID_TABLE,
        "BIND_PASID_TABLE",
        &[28],
        0,
        vec![
            row(cmd::BIND_PASID_TABLE, "", pasid_table),
            row(
                cmd::UNBIND_PASID_TABLE,
                "",
                uapi::BindPasidTable { addr: 0, pasid_bits: 0, ..pasid_table },
            ),
        ],
    );
    add(
        ext::USER_PAGE_TABLE,
        "INVALIDATE_CACHE",
        &[12],
        uapi::INVALIDATE_ALL,
        vec![row(cmd::INVALIDATE_CACHE, "", invalidate_request(world))],
    );
    templates
}

fn info_request(world: &World) -> uapi::Info {
    uapi::Info { argsz: uapi::Info::ARGSZ, ioasid: world.space, ..Default::default() }
}

/// A list of what is ours, with more room than it takes.
fn list_request(world: &World, which: u32) -> uapi::List {
    uapi::List {
        argsz: uapi::List::ARGSZ,
        flags: which,
        ioasid: if which == uapi::LIST_MAPPINGS { world.space } else { 0 },
        nr: 64,
        start: 0,
        items: list_place(world),
    }
}

/// Where lists are written: behind the explanation that a failure leaves at the same place.
fn list_place(world: &World) -> u64 {
    world.end(OUTPUT) - 64 * size_of::<uapi::Mapping>() as u64
}

fn device_info_request(device: u32) -> uapi::DeviceInfo {
    uapi::DeviceInfo { argsz: uapi::DeviceInfo::ARGSZ, device, ..Default::default() }
}

fn free_map(world: &World) -> uapi::MapDma {
    world.map_request(FREE_IOVA, world.shared(), PAGE)
}

fn error_request(world: &World) -> uapi::ErrorInfo {
    uapi::ErrorInfo {
        argsz: uapi::ErrorInfo::ARGSZ,
        text: world.start(OUTPUT),
        text_len: 1024,
        ..Default::default()
    }
}

fn dma_request(world: &World) -> uapi::SimDma {
    uapi::SimDma {
        argsz: uapi::SimDma::ARGSZ,
        flags: uapi::SIM_DMA_READ,
        device: world.device,
        iova: MAPPED,
        data: world.start(OUTPUT),
        size: 64,
        ..Default::default()
    }
}

const SIM_DMA_FLAGS: u32 = uapi::SIM_DMA_READ
    | uapi::SIM_DMA_WRITE
    | uapi::SIM_DMA_PASID
    | uapi::SIM_DMA_RECOVERABLE
    | uapi::SIM_DMA_CONTINUE;

/// Of a fault that there is not.
fn fault_answer() -> uapi::CompleteFault {
    let argsz = uapi::CompleteFault::ARGSZ;
    uapi::CompleteFault { argsz, id: UNKNOWN_ID, ..Default::default() }
}

fn no_such_fault(world: &World) -> Errno {
    if world.has(ext::RECOVERABLE_FAULTS) { Errno::NOENT } else { Errno::OPNOTSUPP }
}

/// What is registered by [`register`]: behind what is mapped, and with memory before and behind it
/// that is not registered.
fn registered(world: &World) -> (u64, u64) {
    (world.end(SHARED) - 3 * PAGE, 2 * PAGE)
}

fn register_request(world: &World) -> uapi::RegisterMemory {
    let argsz = uapi::RegisterMemory::ARGSZ;
    let (vaddr, size) = registered(world);
    uapi::RegisterMemory { argsz, flags: 0, vaddr, size }
}

fn register(world: &World) {
    let (vaddr, size) = registered(world);
    world.register(vaddr, size, false);
}

fn unregister(world: &World) {
    let (vaddr, size) = registered(world);
    world.register(vaddr, size, true);
}

fn register_and_map(world: &World) {
    register(world);
    world.map(FREE_IOVA, registered(world).0 + PAGE, PAGE);
}

fn unmap_and_unregister(world: &World) {
    unmap_free_page(world);
    unregister(world);
}

/// A good MAP_DMA of the first page of a file.
fn file_map(world: &World, fd: i32) -> uapi::MapDma {
    let good = free_map(world);
    uapi::MapDma { flags: good.flags | uapi::MAP_FILE, fd, vaddr: 0, ..good }
}

fn pgtable_request(world: &World) -> uapi::BindPgtable {
    uapi::BindPgtable {
        argsz: uapi::BindPgtable::ARGSZ,
        ioasid: world.space,
        addr: MAPPED,
        addr_width: 48,
        ..Default::default()
    }
}

fn pasid_table_request(world: &World) -> uapi::BindPasidTable {
    uapi::BindPasidTable {
        argsz: uapi::BindPasidTable::ARGSZ,
        ioasid: world.space,
        addr: MAPPED,
        pasid_bits: 8,
        ..Default::default()
    }
}

fn invalidate_request(world: &World) -> uapi::InvalidateCache {
    uapi::InvalidateCache {
        argsz: uapi::InvalidateCache::ARGSZ,
        ioasid: world.space,
        iova: MAPPED,
        size: PAGE,
        ..Default::default()
    }
}

/// A good VECTOR of the operation that [`put_op`] has put in memory.
fn vector_request(world: &World) -> uapi::Vector {
    uapi::Vector {
        argsz: uapi::Vector::ARGSZ,
        ioasid: world.space,
        nr_ops: 1,
        ops: world.start(OUTPUT),
        ..Default::default()
    }
}

fn put_op(world: &World) {
    let uapi::MapDma { flags, vaddr, iova, size, .. } = free_map(world);
    let op = uapi::Op { op: uapi::OP_MAP, flags, vaddr, iova, size, ..Default::default() };
    world.write(world.start(OUTPUT), op.as_bytes());
}

fn nothing(_: &World) {}

fn map_mapped(world: &World) {
    world.map(MAPPED, world.shared(), MAPPED_SIZE);
}

fn map_second(world: &World) {
    world.map(SECOND, world.shared() + MAPPED_SIZE, SECOND_SIZE);
}

fn map_both(world: &World) {
    map_mapped(world);
    map_second(world);
}

fn unmap_free_page(world: &World) {
    world.unmap(FREE_IOVA, PAGE);
}

fn remember_bound(world: &World, bytes: &[u8]) -> Option<String> {
    if bytes.len() >= size_of::<uapi::BindDevice>() {
        world.bound.set(structure::<uapi::BindDevice>(bytes).device);
    }
    None
}

/// Ids that name nothing.
fn unknown_ids() -> [(&'static str, u32); 4] {
    [("0", 0), ("unknown", UNKNOWN_ID), ("negative", 1 << 31), ("all ones", u32::MAX)]
}

// ---------------------------------------------------------------------------------------------
// Commands by number
// ---------------------------------------------------------------------------------------------

fn unknown_commands(world: &World) -> Vec<Row> {
    const TYPE: u32 = uapi::TYPE << 8;
    let known = |number: u32| cmd::name(TYPE | number).is_some();
    let mut rows = Vec::new();
    // What an open that is no VFIO container says to all but the first three of VFIO's commands.
    for n in 103..=127 {
        rows.push(number(TYPE | n, "of a container", 0u32).fails(Errno::INVAL));
        rows.push(row(TYPE | n, "of a container", [0u32; 16]).fails(Errno::INVAL));
    }
    // All that are free from IOASID_BASE on; iommufd's.
    let numbers = (uapi::BASE..=0xff).filter(|n| !known(*n)).chain(0x80..=0x8f);
    for n in numbers {
        rows.push(number(TYPE | n, "an unknown number", 0u32).fails(Errno::NOTTY));
        rows.push(row(TYPE | n, "an unknown number", [0u32; 16]).fails(Errno::NOTTY));
    }
    // The right number with the wrong type, or with size and direction, which VFIO's have not.
    for nr in [0u32, 3, 5, 6, 16] {
        let number = uapi::BASE + nr;
        let with_size = (3 << 30) | (40 << 16) | TYPE | number;
        rows.push(
            row(u32::from(b'x') << 8 | number, "another type", [0u32; 16]).fails(Errno::NOTTY),
        );
        rows.push(row(number, "no type", [0u32; 16]).fails(Errno::NOTTY));
        rows.push(row(with_size, "size and direction", [0u32; 16]).fails(Errno::NOTTY));
    }
    rows.push(row(0x5401, "TCGETS", [0u32; 16]).fails(Errno::NOTTY));
    for (name, address) in nowhere(world) {
        rows.push(
            row(TYPE | 0xff, format!("an unknown number, {name}"), 0u32)
                .at(Place::Nowhere(address))
                .fails(Errno::NOTTY),
        );
    }
    rows
}

fn check_extension() -> Vec<Row> {
    [0, 1, 12, 13, 1 << 31, 1 << 32, (1 << 32) | 1, u64::MAX]
        .into_iter()
        .map(|n: u64| number(cmd::CHECK_EXTENSION, format!("extension {n:#x}"), n))
        .collect()
}

// ---------------------------------------------------------------------------------------------
// I/O address spaces
// ---------------------------------------------------------------------------------------------

fn alloc_and_free(world: &World) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, id) in unknown_ids() {
        rows.push(number(cmd::FREE, format!("IOASID {name}"), id).fails(Errno::NOENT));
    }
    rows.push(number(cmd::FREE, "an IOASID of another open", world.foreign).fails(Errno::NOENT));
    rows.push(number(cmd::FREE, "a device is attached", world.space).fails(Errno::BUSY));
    rows.push(
        number(cmd::FREE, "our IOASID, of another open", world.foreign + 100)
            .on(Open::Theirs)
            .fails(Errno::NOENT),
    );
    rows
}

fn get_info(world: &World) -> Vec<Row> {
    let good = info_request(world);
    let ask = |name: &str, change: fn(&mut uapi::Info, &World)| {
        let mut info = good;
        change(&mut info, world);
        row(cmd::GET_INFO, name, info)
    };
    let mut rows = Vec::new();
    for (name, ioasid) in unknown_ids() {
        let info = uapi::Info { ioasid, ..good };
        rows.push(row(cmd::GET_INFO, format!("IOASID {name}"), info).fails(Errno::NOENT));
    }
    rows.extend([
        ask("an IOASID of another open", |i, w| i.ioasid = w.foreign).fails(Errno::NOENT),
        ask("nothing was ever attached", |i, w| i.ioasid = w.empty).fails(Errno::NODEV),
        ask("no room, and no list", |i, _| i.nr_ranges = 0).look(says_all_ranges),
        ask("no room, and a bad list", |i, _| i.ranges = KERNEL).look(says_all_ranges),
        ask("room for many", |i, w| (i.ranges, i.nr_ranges) = (w.start(OUTPUT), 1000))
            .look(says_all_ranges),
        ask("room without end", |i, w| (i.ranges, i.nr_ranges) = (w.start(OUTPUT), u32::MAX))
            .look(says_all_ranges),
    ]);
    for (name, address) in nowhere(world) {
        let info = uapi::Info { ranges: address, nr_ranges: 8, ..good };
        let name = format!("the list is at {name}");
        rows.push(row(cmd::GET_INFO, name, info).fails(Errno::FAULT));
    }
    rows.push(
        ask("the list is in read-only memory", |i, w| {
            (i.ranges, i.nr_ranges) = (w.start(READ_ONLY), 8);
        })
        .fails(Errno::FAULT),
    );
    rows.push(
        ask("the list reaches behind the end of memory", |i, w| {
            (i.ranges, i.nr_ranges) = (w.end(OUTPUT) - 8, 8);
        })
        .fails(Errno::FAULT),
    );
    if world.ranges.len() > 1 {
        rows.push(
            ask("room for too few", |i, w| {
                (i.ranges, i.nr_ranges) = (w.start(OUTPUT), w.ranges.len() as u32 - 1);
            })
            .fails(Errno::MSGSIZE)
            .look(says_all_ranges),
        );
    }
    rows.extend(get_info_in_former_sizes(world));
    rows
}

/// What stands in GET_INFO's argument behind the size that it is given.
const CANARY: u8 = 0xa5;

/// The size that the structure had in the first version is taken, and nothing behind it is looked
/// at or written; sizes between that and today's never were any.
fn get_info_in_former_sizes(world: &World) -> Vec<Row> {
    let good = info_request(world);
    let in_size = |name: String, argsz: u32, info: uapi::Info| {
        let mut bytes = bytes_of(&uapi::Info { argsz, ..info });
        bytes[argsz as usize..].fill(CANARY);
        row_of_bytes(cmd::GET_INFO, name, bytes)
    };
    let first = uapi::INFO_SIZE_VER0;
    let listed = uapi::Info { ranges: world.start(OUTPUT), nr_ranges: 1000, ..good };
    let unknown = uapi::Info { ioasid: UNKNOWN_ID, ..good };
    let mut rows = vec![
        in_size(format!("argsz {first}, the first version's"), first, good)
            .look(leaves_the_rest_of_the_first),
        in_size(format!("argsz {first}, with a list"), first, listed)
            .look(leaves_the_rest_of_the_first),
        in_size(format!("argsz {first}, and all of that in memory"), first, good)
            .at(Place::CutAfter(first.into())),
        in_size(format!("argsz {first}, and not all of that in memory"), first, good)
            .at(Place::CutAfter(u64::from(first) - 1))
            .fails(Errno::FAULT),
        in_size(format!("argsz {first}, an unknown IOASID"), first, unknown)
            .fails(Errno::NOENT)
            .look(leaves_the_rest_of_the_first),
    ];
    for argsz in [first - 1, first + 1, first + 8, uapi::Info::ARGSZ - 1] {
        let name = format!("argsz {argsz}, which no version has");
        rows.push(in_size(name, argsz, good).fails(Errno::INVAL));
    }
    rows
}

fn leaves_the_rest_of_the_first(world: &World, bytes: &[u8]) -> Option<String> {
    let (first, rest) = bytes.split_at(uapi::INFO_SIZE_VER0 as usize);
    if let Some(at) = rest.iter().position(|&byte| byte != CANARY) {
        return Some(format!("byte {} behind argsz was written", first.len() + at));
    }
    match structure::<[u32; 3]>(bytes)[2] == world.space {
        true => says_all_ranges(world, bytes),
        false => None,
    }
}

fn says_all_ranges(world: &World, bytes: &[u8]) -> Option<String> {
    let said = structure::<uapi::Info>(bytes).nr_ranges as usize;
    let right = world.ranges.len();
    (said != right).then(|| format!("nr_ranges is {said} instead of {right}"))
}

fn list(world: &World) -> Vec<Row> {
    let mappings = list_request(world, uapi::LIST_MAPPINGS);
    let ask = |name: &str, list: uapi::List| row(cmd::LIST, name, list);
    let mut rows = Vec::new();
    for (name, ioasid) in unknown_ids() {
        let list = uapi::List { ioasid, ..mappings };
        rows.push(ask(&format!("mappings of IOASID {name}"), list).fails(Errno::NOENT));
    }
    let foreign = uapi::List { ioasid: world.foreign, ..mappings };
    rows.push(ask("mappings of an IOASID of another open", foreign).fails(Errno::NOENT));
    let all = uapi::LIST_IOASIDS | uapi::LIST_DEVICES | uapi::LIST_MAPPINGS;
    for flags in [0, all, uapi::LIST_IOASIDS | uapi::LIST_MAPPINGS] {
        let name = format!("flags {flags:#x}, of which one must be set");
        rows.push(ask(&name, uapi::List { flags, ..mappings }).fails(Errno::INVAL));
    }
    for which in [uapi::LIST_IOASIDS, uapi::LIST_DEVICES] {
        let good = list_request(world, which);
        rows.extend([
            ask("an IOASID where none belongs", uapi::List { ioasid: world.space, ..good })
                .fails(Errno::INVAL),
            ask("a start of more than 32 bits", uapi::List { start: 1 << 32, ..good })
                .fails(Errno::INVAL),
            ask("nothing from start on", uapi::List { start: u32::MAX.into(), ..good })
                .look(|_, bytes| lists(bytes, 0)),
        ]);
    }
    rows.extend([
        ask("our IOASIDs", list_request(world, uapi::LIST_IOASIDS)).look(lists_our_ioasids),
        ask("our devices", list_request(world, uapi::LIST_DEVICES)).look(lists_our_device),
        ask("our mappings", mappings).look(lists_our_mappings),
        ask("no room, and a bad list", uapi::List { nr: 0, items: KERNEL, ..mappings })
            .look(|_, bytes| lists(bytes, 2)),
        ask("from the second mapping on", uapi::List { start: MAPPED + 1, ..mappings })
            .look(|_, bytes| lists(bytes, 1)),
        ask("from behind all mappings on", uapi::List { start: u64::MAX, ..mappings })
            .look(|_, bytes| lists(bytes, 0)),
        ask(
            "mappings of an IOASID that takes no command yet",
            uapi::List { ioasid: world.empty, ..mappings },
        )
        .look(|_, bytes| lists(bytes, 0)),
        ask("room for one of two", uapi::List { nr: 1, ..mappings })
            .fails(Errno::MSGSIZE)
            .look(lists_the_first_of_two),
        ask("all the room there may be", uapi::List { nr: uapi::LIST_MAX, ..mappings })
            .look(lists_our_mappings),
    ]);
    for nr in [uapi::LIST_MAX + 1, u32::MAX] {
        let name = format!("room for {nr}");
        rows.push(ask(&name, uapi::List { nr, ..mappings }).fails(Errno::INVAL));
    }
    for (name, items) in nowhere(world) {
        let name = format!("the list is at {name}");
        rows.push(ask(&name, uapi::List { items, ..mappings }).fails(Errno::FAULT));
    }
    for (name, items) in [
        ("the list is in read-only memory", world.start(READ_ONLY)),
        ("the list reaches behind the end of memory", world.end(OUTPUT) - 8),
    ] {
        rows.push(ask(name, uapi::List { items, ..mappings }).fails(Errno::FAULT));
    }
    rows
}

fn lists(bytes: &[u8], right: u32) -> Option<String> {
    let said = structure::<uapi::List>(bytes).nr;
    (said != right).then(|| format!("nr is {said} instead of {right}"))
}

/// What was written to the list, which has that many items.
fn items<T: FromBytes>(world: &World, count: usize) -> Vec<T> {
    let bytes = world.bytes(list_place(world), count * size_of::<T>());
    bytes.chunks_exact(size_of::<T>()).map(structure).collect()
}

fn lists_our_ioasids(world: &World, bytes: &[u8]) -> Option<String> {
    let mut right = vec![world.space, world.empty, world.child];
    right.retain(|ioasid| *ioasid != 0);
    right.sort_unstable();
    let listed: Vec<u32> = items(world, right.len());
    lists(bytes, right.len() as u32)
        .or_else(|| (listed != right).then(|| format!("it lists {listed:?} instead of {right:?}")))
}

fn lists_our_device(world: &World, bytes: &[u8]) -> Option<String> {
    let listed: Vec<u32> = items(world, 1);
    lists(bytes, 1)
        .or_else(|| (listed != [world.device]).then(|| format!("it lists device {listed:?}")))
}

/// What [`World`] maps in our IOASID.
fn our_mappings(world: &World) -> [uapi::Mapping; 2] {
    let shared = world.start(SHARED);
    let flags = uapi::MAP_READ | uapi::MAP_WRITE;
    let mapping = |iova, vaddr, size| uapi::Mapping { iova, size, vaddr, flags, reserved: 0 };
    [mapping(MAPPED, shared, MAPPED_SIZE), mapping(SECOND, shared + MAPPED_SIZE, SECOND_SIZE)]
}

fn lists_our_mappings(world: &World, bytes: &[u8]) -> Option<String> {
    let (listed, right) = (items::<uapi::Mapping>(world, 2), our_mappings(world));
    lists(bytes, 2).or_else(|| (listed != right).then(|| format!("it lists {listed:?}")))
}

fn lists_the_first_of_two(world: &World, bytes: &[u8]) -> Option<String> {
    let (listed, right) = (items::<uapi::Mapping>(world, 1), our_mappings(world));
    lists(bytes, 2).or_else(|| (listed != right[..1]).then(|| format!("it lists {listed:?}")))
}

fn nesting(world: &World) -> Vec<Row> {
    let mut cases: Vec<(String, u32, Errno)> =
        unknown_ids().map(|(name, id)| (format!("parent {name}"), id, Errno::NOENT)).to_vec();
    cases.push(("the parent is of another open".into(), world.foreign, Errno::NOENT));
    cases.push(("nothing was ever attached to the parent".into(), world.empty, Errno::NODEV));
    cases
        .into_iter()
        .map(|(name, id, errno)| {
            let errno = if world.has(ext::NESTING) { errno } else { Errno::OPNOTSUPP };
            number(cmd::CREATE_NESTING, name, id).fails(errno)
        })
        .collect()
}

fn map_in_a_child(world: &World) -> Vec<Row> {
    if !world.has(ext::NESTING) {
        return Vec::new();
    }
    let good = world.map_child_request();
    let try_map =
        |name: &str, map: uapi::MapDma| row(cmd::MAP_DMA, name, map).undo(World::unmap_child);
    let file = good.flags | uapi::MAP_FILE;
    let fd = world.files.both.as_raw_fd();
    let mut rows = vec![
        try_map("in a child", good),
        try_map("in a child, to address 0", uapi::MapDma { vaddr: 0, ..good }),
        try_map("in a child, a file", uapi::MapDma { flags: file, fd, vaddr: 0, ..good })
            .fails(Errno::INVAL),
        try_map("in a child, with an fd", uapi::MapDma { fd, ..good }).fails(Errno::INVAL),
        try_map("in a child, vaddr misaligned", uapi::MapDma { vaddr: good.vaddr + 8, ..good })
            .fails(Errno::INVAL),
        try_map("in a child, to the last page", uapi::MapDma { vaddr: !(PAGE - 1), ..good }),
        try_map(
            "in a child, vaddr + size wraps",
            uapi::MapDma { vaddr: !(PAGE - 1), size: 2 * PAGE, ..good },
        )
        .fails(Errno::OVERFLOW),
        row(cmd::MAP_DMA, "in a child, over a mapping", good)
            .before(World::map_child)
            .fails(Errno::EXIST)
            .after(World::unmap_child),
    ];
    if world.has(ext::USER_PAGE_TABLE) {
        let unmap = uapi::UnmapDma { ioasid: world.child, ..world.unmap_request(FREE_IOVA, PAGE) };
        let bound = |row: Row| row.before(World::bind_pgtable).after(World::unbind_pgtable);
        let busy = |row: Row| bound(row).fails(Errno::BUSY);
        rows.push(busy(row(cmd::MAP_DMA, "a page table is bound", good)));
        rows.push(busy(row(cmd::UNMAP_DMA, "a page table is bound", unmap)));
    }
    rows
}

fn page_tables(world: &World) -> Vec<Row> {
    if !world.has(ext::USER_PAGE_TABLE) {
        return Vec::new();
    }
    let bind = world.bind_pgtable_request();
    let try_bind = |name: String, bind: uapi::BindPgtable| {
        row(cmd::BIND_PGTABLE, name, bind).undo(World::unbind_pgtable)
    };
    let unbind = world.unbind_pgtable_request();
    let invalidate = uapi::InvalidateCache { ioasid: world.child, ..invalidate_request(world) };
    let mut rows = Vec::new();
    let mut ids: Vec<(String, u32, Errno)> =
        unknown_ids().map(|(name, id)| (format!("IOASID {name}"), id, Errno::NOENT)).to_vec();
    ids.push(("an IOASID of another open".into(), world.foreign, Errno::NOENT));
    ids.push(("nothing was ever attached".into(), world.empty, Errno::NODEV));
    ids.push(("an IOASID that is no child".into(), world.space, Errno::INVAL));
    for (name, ioasid, errno) in ids {
        let bind = uapi::BindPgtable { ioasid, ..bind };
        let invalidate = uapi::InvalidateCache { ioasid, ..invalidate };
        rows.push(try_bind(name.clone(), bind).fails(errno));
        let unbind = uapi::BindPgtable { ioasid, ..unbind };
        rows.push(row(cmd::UNBIND_PGTABLE, name.clone(), unbind).fails(errno));
        rows.push(row(cmd::INVALIDATE_CACHE, name, invalidate).fails(errno));
    }
    rows.push(row(cmd::UNBIND_PGTABLE, "nothing is bound", unbind).fails(Errno::NOENT));
    rows.push(row(cmd::INVALIDATE_CACHE, "nothing is bound", invalidate).fails(Errno::INVAL));
    for format in [0, 7, 64, 1 << 31, u32::MAX] {
        let bind = uapi::BindPgtable { format, ..bind };
        rows.push(try_bind(format!("format {format:#x}"), bind).fails(Errno::OPNOTSUPP));
    }
    // Each format with widths that it does not have, and the smallest step that is not aligned.
    let widths: [(u32, &[u32]); 6] = [
        (uapi::FORMAT_X86_4LEVEL, &[0, 39, 47, 49, 57, 64, u32::MAX]),
        (uapi::FORMAT_X86_5LEVEL, &[0, 48, 56, 58, 64]),
        (uapi::FORMAT_VTD_SECOND, &[0, 38, 40, 64]),
        (uapi::FORMAT_AMD_V1, &[0, 30, 38, 65]),
        (uapi::FORMAT_ARM_LPAE_4K, &[0, 24, 49, 52]),
        (uapi::FORMAT_ARM_LPAE_64K, &[0, 24, 49, 52]),
    ];
    for (format, bad) in widths {
        for &addr_width in bad {
            let bind = uapi::BindPgtable { format, addr_width, ..bind };
            let name = format!("format {format}, {addr_width} bits");
            rows.push(try_bind(name, bind).fails(Errno::INVAL));
        }
        let addr_width = if format == uapi::FORMAT_X86_5LEVEL { 57 } else { 48 };
        let bind = uapi::BindPgtable { format, addr_width, addr: MAPPED + 8, ..bind };
        rows.push(try_bind(format!("format {format}, misaligned"), bind).fails(Errno::INVAL));
    }
    let nowhere = uapi::BindPgtable { addr: FREE_IOVA, ..bind };
    rows.push(try_bind("the root is nowhere".into(), nowhere).fails(Errno::FAULT));
    let high = uapi::BindPgtable { addr: 1 << 52, ..bind };
    rows.push(try_bind("the root has more than 52 bits".into(), high).fails(Errno::INVAL));
    let behind = uapi::BindPgtable { addr: MAPPED + MAPPED_SIZE, ..bind };
    rows.push(try_bind("the root is behind a mapping".into(), behind).fails(Errno::FAULT));
    rows.push(
        row(cmd::BIND_PGTABLE, "a table is bound already", bind)
            .before(World::bind_pgtable)
            .fails(Errno::BUSY)
            .after(World::unbind_pgtable),
    );
    rows.push(
        row(cmd::BIND_PGTABLE, "something is mapped", bind)
            .before(World::map_child)
            .fails(Errno::BUSY)
            .after(World::unmap_child),
    );
    rows
}

fn vectors(world: &World) -> Vec<Row> {
    if !world.has(ext::VECTOR) {
        return Vec::new();
    }
    let good = vector_request(world);
    let try_vector = |name: String, vector: uapi::Vector| {
        row(cmd::VECTOR, name, vector).before(put_op).undo(unmap_free_page).after(nothing)
    };
    let mut rows = Vec::new();
    for (name, ioasid) in unknown_ids() {
        let vector = uapi::Vector { ioasid, ..good };
        rows.push(try_vector(format!("IOASID {name}"), vector).fails(Errno::NOENT));
    }
    let cases: Vec<(&str, uapi::Vector, Errno)> = vec![
        ("an IOASID of another open", uapi::Vector { ioasid: world.foreign, ..good }, Errno::NOENT),
        ("nothing was ever attached", uapi::Vector { ioasid: world.empty, ..good }, Errno::NODEV),
        ("no operation", uapi::Vector { nr_ops: 0, ..good }, Errno::INVAL),
        ("too many operations", uapi::Vector { nr_ops: 2049, ..good }, Errno::INVAL),
        ("2^32 - 1 operations", uapi::Vector { nr_ops: u32::MAX, ..good }, Errno::INVAL),
    ];
    for (name, vector, errno) in cases {
        rows.push(try_vector(name.into(), vector).fails(errno));
    }
    for (name, ops) in nowhere(world) {
        let vector = uapi::Vector { ops, ..good };
        rows.push(try_vector(format!("the operations are {name}"), vector).fails(Errno::FAULT));
    }
    rows
}

// ---------------------------------------------------------------------------------------------
// Mapping
// ---------------------------------------------------------------------------------------------

fn map_ids_and_ranges(world: &World) -> Vec<Row> {
    let good = free_map(world);
    let try_map =
        |name: String, map: uapi::MapDma| row(cmd::MAP_DMA, name, map).undo(unmap_free_page);
    let mut rows = Vec::new();
    for (name, ioasid) in unknown_ids() {
        let map = uapi::MapDma { ioasid, ..good };
        rows.push(try_map(format!("IOASID {name}"), map).fails(Errno::NOENT));
    }
    let cases: Vec<(&str, uapi::MapDma, Errno)> = vec![
        ("an IOASID of another open", uapi::MapDma { ioasid: world.foreign, ..good }, Errno::NOENT),
        ("nothing was ever attached", uapi::MapDma { ioasid: world.empty, ..good }, Errno::NODEV),
        ("neither READ nor WRITE", uapi::MapDma { flags: 0, ..good }, Errno::INVAL),
        ("size 0", uapi::MapDma { size: 0, ..good }, Errno::INVAL),
        ("size 1", uapi::MapDma { size: 1, ..good }, Errno::INVAL),
        ("size of a page and a byte", uapi::MapDma { size: PAGE + 1, ..good }, Errno::INVAL),
        ("size of half a page", uapi::MapDma { size: PAGE / 2, ..good }, Errno::INVAL),
        ("iova misaligned by 1", uapi::MapDma { iova: FREE_IOVA + 1, ..good }, Errno::INVAL),
        ("iova misaligned by 2048", uapi::MapDma { iova: FREE_IOVA + 2048, ..good }, Errno::INVAL),
        ("vaddr misaligned by 1", uapi::MapDma { vaddr: good.vaddr + 1, ..good }, Errno::INVAL),
        ("vaddr misaligned by 512", uapi::MapDma { vaddr: good.vaddr + 512, ..good }, Errno::INVAL),
        (
            "iova + size wraps",
            uapi::MapDma { iova: 0u64.wrapping_sub(PAGE), size: 2 * PAGE, ..good },
            Errno::OVERFLOW,
        ),
        (
            "iova + size wraps by a lot",
            uapi::MapDma { iova: 1 << 63, size: (1 << 63) + PAGE, ..good },
            Errno::OVERFLOW,
        ),
        (
            "vaddr + size wraps",
            uapi::MapDma { vaddr: 0u64.wrapping_sub(PAGE), size: 2 * PAGE, ..good },
            Errno::OVERFLOW,
        ),
    ];
    rows.extend(cases.into_iter().map(|(name, map, errno)| try_map(name.into(), map).fails(errno)));
    // These end at 2^64 exactly: the last address does not wrap, the sum does.
    let map = uapi::MapDma { iova: 0u64.wrapping_sub(PAGE), ..good };
    rows.push(
        try_map("the last page of all".into(), map).fails_any(&[Errno::INVAL, Errno::OVERFLOW]),
    );
    rows.extend(overlaps(good));
    rows.extend(outside_the_ranges(world, good));
    rows
}

fn overlaps(good: uapi::MapDma) -> Vec<Row> {
    let all = MAPPED_SIZE;
    [
        ("exactly a mapping", MAPPED, all),
        ("the first page of a mapping", MAPPED, PAGE),
        ("the last page of a mapping", MAPPED + all - PAGE, PAGE),
        ("the middle of a mapping", MAPPED + 3 * PAGE, 2 * PAGE),
        ("around a mapping", MAPPED - PAGE, all + 2 * PAGE),
        ("into the head of a mapping", MAPPED - PAGE, 2 * PAGE),
        ("out of the tail of a mapping", MAPPED + all - PAGE, 2 * PAGE),
    ]
    .into_iter()
    .map(|(name, iova, size)| {
        row(cmd::MAP_DMA, name, uapi::MapDma { iova, size, ..good }).fails(Errno::EXIST)
    })
    .collect()
}

/// Holes between the permitted ranges are reserved; before the first and behind the last the
/// aperture ends.
fn outside_the_ranges(world: &World, good: uapi::MapDma) -> Vec<Row> {
    let mut rows = Vec::new();
    let try_map = |name: &str, iova: u64, size: u64, errno| {
        row(cmd::MAP_DMA, name, uapi::MapDma { iova, size, ..good }).fails(errno)
    };
    for pair in world.ranges.windows(2) {
        let (hole, last) = (pair[0].last + 1, pair[1].start - 1);
        rows.extend([
            try_map("in a reserved range", hole, PAGE, Errno::ADDRINUSE),
            try_map("into a reserved range", hole - PAGE, 2 * PAGE, Errno::ADDRINUSE),
            try_map("out of a reserved range", last + 1 - PAGE, 2 * PAGE, Errno::ADDRINUSE),
            try_map(
                "across a reserved range",
                hole - PAGE,
                last - hole + 1 + 2 * PAGE,
                Errno::ADDRINUSE,
            ),
        ]);
    }
    let last = world.ranges.last().map_or(u64::MAX, |range| range.last);
    if last < u64::MAX - PAGE {
        rows.extend([
            try_map("behind the aperture", last + 1, PAGE, Errno::INVAL),
            try_map("out of the aperture", last + 1 - PAGE, 2 * PAGE, Errno::INVAL),
            try_map("far behind the aperture", 1 << 62, PAGE, Errno::INVAL),
            try_map("larger than the aperture", FREE_IOVA, 1 << 62, Errno::INVAL),
        ]);
    }
    rows
}

/// What is, or is not, at the program's addresses.
fn map_memory(world: &World) -> Vec<Row> {
    let good = free_map(world);
    let memory = |name: &str, vaddr: u64, size: u64, flags: u32| {
        row(cmd::MAP_DMA, name, uapi::MapDma { vaddr, size, flags, ..good })
    };
    let (read, write, both) = (uapi::MAP_READ, uapi::MAP_WRITE, uapi::MAP_READ | uapi::MAP_WRITE);
    let private = match world.has(ext::PRIVATE_MEMORY) {
        true => Expect::Success,
        false => Expect::Fails(Errno::OPNOTSUPP),
    };
    // Memory without access is here private memory without access: which is said first is open.
    let no_access = [Errno::FAULT, Errno::OPNOTSUPP];
    let read_only = world.start(SHARED_READ_ONLY);
    vec![
        memory("vaddr 0", 0, PAGE, read).fails(Errno::FAULT),
        memory("vaddr in the first page", NEVER_MAPPED, PAGE, both).fails(Errno::FAULT),
        memory("vaddr in the kernel", KERNEL, PAGE, both).fails(Errno::FAULT),
        memory("vaddr that is no address", NON_CANONICAL, PAGE, both).fails(Errno::FAULT),
        memory("memory without access", world.end(SHARED), PAGE, both).fails_any(&no_access),
        memory("reaching into memory without access", world.end(SHARED) - PAGE, 2 * PAGE, both)
            .fails_any(&no_access),
        memory("more than the program has", world.shared(), 1 << 36, both).fails_any(&[
            Errno::FAULT,
            Errno::OPNOTSUPP,
            Errno::ADDRINUSE,
        ]),
        memory("shared memory without access, for reading", world.start(NO_ACCESS), PAGE, read)
            .fails_any(&[Errno::FAULT, Errno::PERM]),
        memory("shared memory without access, for writing", world.start(NO_ACCESS), PAGE, write)
            .fails_any(&[Errno::FAULT, Errno::PERM]),
        memory("read-only memory, for reading", read_only, PAGE, read).undo(unmap_free_page),
        memory("read-only memory, for writing", read_only, PAGE, write).fails(Errno::PERM),
        memory("read-only memory, for both", read_only, PAGE, both).fails(Errno::PERM),
        memory("private memory", world.start(PRIVATE), PAGE, both)
            .expect(private.clone())
            .undo(unmap_free_page),
        memory("private memory, for reading", world.start(PRIVATE), PAGE, read)
            .expect(private.clone())
            .undo(unmap_free_page),
        memory("private and shared memory", world.start(AFTER_PRIVATE) - PAGE, 2 * PAGE, both)
            .expect(private)
            .undo(|world| world.unmap(FREE_IOVA, 2 * PAGE)),
    ]
}

/// Files that are named by a descriptor.
fn map_file(world: &World) -> Vec<Row> {
    let both = file_map(world, world.files.both.as_raw_fd());
    let (read, write) = (both.flags & !uapi::MAP_WRITE, both.flags & !uapi::MAP_READ);
    let try_map = |name: &str, map: uapi::MapDma| {
        row(cmd::MAP_DMA, format!("by descriptor, {name}"), map).undo(unmap_free_page)
    };
    if !world.has(ext::FILE_MEMORY) {
        return vec![try_map("a memfd", both).fails(Errno::OPNOTSUPP)];
    }
    let of = |fd: i32, flags: u32| uapi::MapDma { fd, flags, ..both };
    let place = |vaddr: u64, size: u64| uapi::MapDma { vaddr, size, ..both };
    let files = &world.files;
    let (read_only, write_only) = (files.read.as_raw_fd(), files.write.as_raw_fd());
    let wrapping = 0u64.wrapping_sub(PAGE);
    let mut rows = vec![
        try_map("a memfd", both),
        try_map("a memfd, from its second page", place(PAGE, PAGE)),
        try_map("a memfd, open for reading, for reading", of(read_only, read)),
        try_map("open for reading, for writing", of(read_only, write)).fails(Errno::PERM),
        try_map("open for reading, for both", of(read_only, both.flags)).fails(Errno::PERM),
        try_map("open for writing, for reading", of(write_only, read)).fails(Errno::PERM),
        try_map("open for writing, for both", of(write_only, both.flags)).fails(Errno::PERM),
        try_map("sealed, for both", of(files.sealed.as_raw_fd(), both.flags)).fails(Errno::PERM),
        try_map("behind the end", place(1 << 47, PAGE)).fails(Errno::FAULT),
        try_map("reaching behind the end", place(PAGE, FILE_SIZE)).fails(Errno::FAULT),
        try_map("longer than the file", place(0, FILE_SIZE + PAGE)).fails(Errno::FAULT),
        try_map("offset misaligned by 1", place(1, PAGE)).fails(Errno::INVAL),
        try_map("offset misaligned by 512", place(512, PAGE)).fails(Errno::INVAL),
        try_map("size 0", place(0, 0)).fails(Errno::INVAL),
        try_map("size of half a page", place(0, PAGE / 2)).fails(Errno::INVAL),
        try_map("offset + size wraps", place(wrapping, 2 * PAGE)).fails(Errno::OVERFLOW),
        // This ends at 2^64 exactly: the last byte's offset does not wrap, the sum does.
        try_map("the last page of all", place(wrapping, PAGE))
            .fails_any(&[Errno::FAULT, Errno::OVERFLOW]),
        try_map("neither READ nor WRITE", of(both.fd, uapi::MAP_FILE)).fails(Errno::INVAL),
        // Before it is looked at what the descriptor is.
        try_map("of nothing, IOASID unknown", uapi::MapDma { ioasid: UNKNOWN_ID, ..of(-1, read) })
            .fails(Errno::NOENT),
        try_map("of nothing, over a mapping", uapi::MapDma { iova: MAPPED, ..of(-1, read) })
            .fails(Errno::EXIST),
    ];
    for (what, fd) in &world.no_files {
        let map = of(fd.as_raw_fd(), read);
        rows.push(try_map(&format!("the fd is {what}"), map).fails(Errno::OPNOTSUPP));
    }
    for (what, fd) in closed_fds() {
        let map = of(fd, both.flags);
        rows.push(try_map(&format!("the fd is {what}"), map).fails(Errno::BADF));
    }
    for fd in [both.fd, 1, -1, i32::MIN, i32::MAX] {
        let map = uapi::MapDma { fd, ..free_map(world) };
        let name = format!("fd {fd} without IOASID_MAP_FILE");
        rows.push(row(cmd::MAP_DMA, name, map).fails(Errno::INVAL));
    }
    rows
}

fn unmap(world: &World) -> Vec<Row> {
    let good = world.unmap_request(SECOND, SECOND_SIZE);
    let range = |name: &str, iova: u64, size: u64| {
        row(cmd::UNMAP_DMA, name, uapi::UnmapDma { iova, size, ..good })
    };
    let all = |name: &str, iova: u64, size: u64| {
        let flags = uapi::UNMAP_ALL;
        row(cmd::UNMAP_DMA, name, uapi::UnmapDma { flags, iova, size, ..good })
    };
    let mut rows = Vec::new();
    for (name, ioasid) in unknown_ids() {
        let unmap = uapi::UnmapDma { ioasid, ..good };
        rows.push(row(cmd::UNMAP_DMA, format!("IOASID {name}"), unmap).fails(Errno::NOENT));
    }
    let foreign = uapi::UnmapDma { ioasid: world.foreign, ..good };
    let empty = uapi::UnmapDma { ioasid: world.empty, ..good };
    let all_of_it = MAPPED_SIZE;
    rows.extend([
        row(cmd::UNMAP_DMA, "an IOASID of another open", foreign).fails(Errno::NOENT),
        row(cmd::UNMAP_DMA, "nothing was ever attached", empty).fails(Errno::NODEV),
        range("size 0", SECOND, 0).fails(Errno::INVAL),
        range("size 1", SECOND, 1).fails(Errno::INVAL),
        range("size misaligned", SECOND, SECOND_SIZE + 512).fails(Errno::INVAL),
        range("iova misaligned", SECOND + 1, SECOND_SIZE).fails(Errno::INVAL),
        range("iova + size wraps", 0u64.wrapping_sub(PAGE), 2 * PAGE).fails(Errno::OVERFLOW),
        range("iova + size wraps by a lot", 1 << 63, (1 << 63) + PAGE).fails(Errno::OVERFLOW),
        range("the first page of a mapping", MAPPED, PAGE).fails(Errno::INVAL),
        range("the last page of a mapping", MAPPED + all_of_it - PAGE, PAGE).fails(Errno::INVAL),
        range("the middle of a mapping", MAPPED + 2 * PAGE, PAGE).fails(Errno::INVAL),
        range("all but the first page", MAPPED + PAGE, all_of_it - PAGE).fails(Errno::INVAL),
        range("all but the last page", MAPPED, all_of_it - PAGE).fails(Errno::INVAL),
        range(
            "half of one mapping and all of the next",
            MAPPED + PAGE,
            SECOND - MAPPED + SECOND_SIZE,
        )
        .fails(Errno::INVAL),
        range("nothing", FREE_IOVA, PAGE).look(|_, bytes| unmapped(bytes, 0)),
        range("nothing, beside a mapping", MAPPED - PAGE, PAGE).look(|_, bytes| unmapped(bytes, 0)),
        range("nothing, behind the aperture", 1 << 62, PAGE).look(|_, bytes| unmapped(bytes, 0)),
        range("a range around a mapping", SECOND - PAGE, SECOND_SIZE + 2 * PAGE)
            .look(|_, bytes| unmapped(bytes, SECOND_SIZE))
            .undo(map_second),
        range("a range of two mappings", MAPPED, SECOND - MAPPED + SECOND_SIZE)
            .look(|_, bytes| unmapped(bytes, MAPPED_SIZE + SECOND_SIZE))
            .undo(map_both),
        range("a range of nearly everything", 0, 0u64.wrapping_sub(PAGE))
            .look(|_, bytes| unmapped(bytes, MAPPED_SIZE + SECOND_SIZE))
            .undo(map_both),
        all("ALL", 0, 0).look(|_, bytes| unmapped(bytes, MAPPED_SIZE + SECOND_SIZE)).undo(map_both),
        all("ALL with iova", MAPPED, 0).fails(Errno::INVAL),
        all("ALL with size", 0, PAGE).fails(Errno::INVAL),
        all("ALL with a range", SECOND, SECOND_SIZE).fails(Errno::INVAL),
    ]);
    rows
}

fn unmapped(bytes: &[u8], right: u64) -> Option<String> {
    let said = structure::<uapi::UnmapDma>(bytes).size;
    (said != right).then(|| format!("size is {said} instead of {right}"))
}

fn register_shapes(world: &World) -> Vec<Row> {
    let good = register_request(world);
    let mut rows = Vec::new();
    for command in [cmd::REGISTER_MEMORY, cmd::UNREGISTER_MEMORY] {
        let try_it = |name: &str, vaddr: u64, size: u64, errno| {
            row(command, name, uapi::RegisterMemory { vaddr, size, ..good }).fails(errno)
        };
        rows.extend([
            try_it("size 0", good.vaddr, 0, Errno::INVAL),
            try_it("size misaligned", good.vaddr, PAGE + 1, Errno::INVAL),
            try_it("vaddr misaligned", good.vaddr + 1, PAGE, Errno::INVAL),
            try_it("vaddr + size wraps", 0u64.wrapping_sub(PAGE), 2 * PAGE, Errno::OVERFLOW),
            try_it("vaddr + size wraps by a lot", 1 << 63, (1 << 63) + PAGE, Errno::OVERFLOW),
        ]);
    }
    rows
}

/// What is, or is not, at the addresses of REGISTER, and what UNREGISTER does not know.
fn register_memory(world: &World) -> Vec<Row> {
    if !world.has(ext::REGISTER_MEMORY) {
        return Vec::new();
    }
    let good = register_request(world);
    let memory = |command: u32, name: &str, vaddr: u64, size: u64| {
        row(command, name, uapi::RegisterMemory { vaddr, size, ..good })
    };
    let register_it = |name: &str, vaddr, size| memory(cmd::REGISTER_MEMORY, name, vaddr, size);
    let unregister_it = |name: &str, vaddr, size| memory(cmd::UNREGISTER_MEMORY, name, vaddr, size);
    let no_access = [Errno::FAULT, Errno::PERM];
    let (vaddr, size) = (good.vaddr, good.size);
    let private = world.has(ext::PRIVATE_MEMORY);
    let private = |row: Row| if private { row } else { row.fails(Errno::OPNOTSUPP) };
    let mut rows = vec![
        register_it("vaddr 0", 0, PAGE).fails(Errno::FAULT),
        register_it("vaddr in the first page", NEVER_MAPPED, PAGE).fails(Errno::FAULT),
        register_it("vaddr in the kernel", KERNEL, PAGE).fails(Errno::FAULT),
        register_it("vaddr that is no address", NON_CANONICAL, PAGE).fails(Errno::FAULT),
        // This ends at 2^64 exactly.
        register_it("the last page of all", 0u64.wrapping_sub(PAGE), PAGE)
            .fails_any(&[Errno::FAULT, Errno::OVERFLOW]),
        register_it("memory without access", world.end(SHARED), PAGE).fails_any(&no_access),
        register_it("reaching into memory without access", world.end(SHARED) - PAGE, 2 * PAGE)
            .fails_any(&no_access),
        register_it("shared memory without access", world.start(NO_ACCESS), PAGE)
            .fails_any(&no_access),
        register_it("more than the program has", world.shared(), 1 << 36).fails_any(&no_access),
        register_it("read-only memory", world.start(SHARED_READ_ONLY), PAGE).fails(Errno::PERM),
        register_it("memory that is mapped", world.shared(), MAPPED_SIZE)
            .undo(|world| world.register(world.shared(), MAPPED_SIZE, true)),
        private(register_it("private memory", world.start(PRIVATE), PAGE))
            .undo(|world| world.register(world.start(PRIVATE), PAGE, true)),
        private(register_it(
            "private and shared memory",
            world.start(AFTER_PRIVATE) - PAGE,
            2 * PAGE,
        ))
        .undo(|world| world.register(world.start(AFTER_PRIVATE) - PAGE, 2 * PAGE, true)),
        unregister_it("nothing is registered", vaddr, size).fails(Errno::NOENT),
        unregister_it("memory that is mapped, not registered", world.shared(), MAPPED_SIZE)
            .fails(Errno::NOENT),
        unregister_it("memory that is none", NEVER_MAPPED, PAGE).fails(Errno::NOENT),
    ];
    for (name, first, pages) in [
        ("exactly what is registered", vaddr, 2),
        ("the first page of it", vaddr, 1),
        ("the last page of it", vaddr + PAGE, 1),
        ("into its head", vaddr - PAGE, 2),
        ("out of its tail", vaddr + PAGE, 2),
        ("around it", vaddr - PAGE, 4),
    ] {
        let row = register_it(&format!("{name}, again"), first, pages * PAGE);
        rows.push(row.before(register).after(unregister).fails(Errno::EXIST));
        if (first, pages * PAGE) != (vaddr, size) {
            let row = unregister_it(&format!("{name}, not just that"), first, pages * PAGE);
            rows.push(row.before(register).after(unregister).fails(Errno::NOENT));
        }
    }
    rows.extend([
        register_it("beside what is registered", vaddr - PAGE, PAGE)
            .before(register)
            .undo(|world| world.register(registered(world).0 - PAGE, PAGE, true))
            .after(unregister),
        unregister_it("registered on another open", vaddr, size)
            .on(Open::Theirs)
            .before(register)
            .after(unregister)
            .fails(Errno::NOENT),
        unregister_it("part of it is mapped", vaddr, size)
            .before(register_and_map)
            .after(unmap_and_unregister)
            .fails(Errno::BUSY),
    ]);
    rows
}

/// MAP_DMA while memory is registered.
fn map_registered(world: &World) -> Vec<Row> {
    if !world.has(ext::REGISTER_MEMORY) {
        return Vec::new();
    }
    let good = free_map(world);
    let (vaddr, size) = registered(world);
    let try_map = |name: &str, map: uapi::MapDma| {
        let row = row(cmd::MAP_DMA, format!("while memory is registered, {name}"), map);
        row.before(register).after(unregister)
    };
    let memory =
        |name: &str, vaddr: u64, size: u64| try_map(name, uapi::MapDma { vaddr, size, ..good });
    let read_only = uapi::MapDma { vaddr, flags: uapi::MAP_READ, ..good };
    let mut rows = vec![
        memory("all of it", vaddr, size).undo(|world| world.unmap(FREE_IOVA, 2 * PAGE)),
        memory("its last page", vaddr + PAGE, PAGE).undo(unmap_free_page),
        try_map("a page of it for reading", read_only).undo(unmap_free_page),
        memory("other memory", world.shared(), PAGE).fails(Errno::FAULT),
        memory("private memory", world.start(PRIVATE), PAGE).fails(Errno::FAULT),
        memory("into its head", vaddr - PAGE, 2 * PAGE).fails(Errno::FAULT),
        memory("out of its tail", vaddr + PAGE, 2 * PAGE).fails(Errno::FAULT),
        memory("around it", vaddr - PAGE, 4 * PAGE).fails(Errno::FAULT),
        memory("memory that is none", NEVER_MAPPED, PAGE).fails(Errno::FAULT),
        try_map("over a mapping", uapi::MapDma { iova: MAPPED, ..good }).fails(Errno::EXIST),
    ];
    if world.has(ext::FILE_MEMORY) {
        let file = file_map(world, world.files.both.as_raw_fd());
        rows.push(try_map("a file by its descriptor", file).undo(unmap_free_page));
    }
    rows
}

/// What the header calls malformed in the commands for tables of the program, whether the host can
/// do them or not.
fn unsupported_tables(world: &World) -> Vec<Row> {
    let (pgtable, pasid_table) = (pgtable_request(world), pasid_table_request(world));
    let invalidate = invalidate_request(world);
    let all = uapi::INVALIDATE_ALL;
    vec![
        row(cmd::UNBIND_PGTABLE, "addr is not 0", uapi::BindPgtable { addr_width: 0, ..pgtable })
            .fails(Errno::INVAL),
        row(cmd::UNBIND_PGTABLE, "addr_width is not 0", uapi::BindPgtable { addr: 0, ..pgtable })
            .fails(Errno::INVAL),
        row(
            cmd::UNBIND_PASID_TABLE,
            "addr is not 0",
            uapi::BindPasidTable { pasid_bits: 0, ..pasid_table },
        )
        .fails(Errno::INVAL),
        row(
            cmd::UNBIND_PASID_TABLE,
            "pasid_bits is not 0",
            uapi::BindPasidTable { addr: 0, ..pasid_table },
        )
        .fails(Errno::INVAL),
        row(
            cmd::INVALIDATE_CACHE,
            "ALL with a range",
            uapi::InvalidateCache { flags: all, ..invalidate },
        )
        .fails(Errno::INVAL),
        row(cmd::INVALIDATE_CACHE, "size 0", uapi::InvalidateCache { size: 0, ..invalidate })
            .fails(Errno::INVAL),
        row(
            cmd::INVALIDATE_CACHE,
            "iova + size wraps",
            uapi::InvalidateCache { iova: 0u64.wrapping_sub(PAGE), size: 2 * PAGE, ..invalidate },
        )
        .fails(Errno::OVERFLOW),
    ]
}

// ---------------------------------------------------------------------------------------------
// Devices
// ---------------------------------------------------------------------------------------------

/// Names that are malformed, and those of nothing.
fn bad_names() -> Vec<(&'static str, [u8; uapi::NAME_LEN], Errno)> {
    let mut longest = [b'a'; uapi::NAME_LEN];
    longest[uapi::NAME_LEN - 1] = 0;
    let mut latin1 = name_field("sim0");
    latin1[3] = 0xe4;
    vec![
        ("an empty name", name_field(""), Errno::INVAL),
        ("a name without an end", [b'a'; uapi::NAME_LEN], Errno::INVAL),
        ("an unknown name", name_field("nosuchdevice"), Errno::NOENT),
        ("an unknown name of full length", longest, Errno::NOENT),
        ("a name with a slash", name_field("../sim0"), Errno::NOENT),
        ("a name in Latin-1", latin1, Errno::NOENT),
    ]
}

fn bind_simulated(world: &World) -> Vec<Row> {
    let good = uapi::BindDevice {
        argsz: uapi::BindDevice::ARGSZ,
        flags: uapi::BIND_SIMULATED,
        fd: -1,
        name: name_field("nosuchdevice"),
        ..Default::default()
    };
    let unless_unsupported = |errno| match (world.has(ext::SIMULATED), errno) {
        (false, Errno::NOENT) => Errno::OPNOTSUPP,
        _ => errno,
    };
    let mut rows = Vec::new();
    for (what, name, errno) in bad_names() {
        let bind = uapi::BindDevice { name, ..good };
        let row = row(cmd::BIND_DEVICE, format!("simulated, {what}"), bind);
        // Not being text makes it malformed, or just unknown.
        rows.push(match what.contains("Latin-1") {
            true => row.fails_any(&[Errno::INVAL, unless_unsupported(errno)]),
            false => row.fails(unless_unsupported(errno)),
        });
    }
    for fd in [0, 1, -2, i32::MIN, i32::MAX, world.no_groups[0].1.as_raw_fd()] {
        let bind = uapi::BindDevice { fd, ..good };
        let row = row(cmd::BIND_DEVICE, format!("simulated, with fd {fd}"), bind);
        rows.push(row.fails(Errno::INVAL));
    }
    let both = uapi::BIND_SIMULATED | uapi::BIND_VFIO_GROUP;
    for (name, flags) in [("none of the kinds", 0), ("both kinds", both)] {
        let bind = uapi::BindDevice { flags, ..good };
        rows.push(row(cmd::BIND_DEVICE, name, bind).fails(Errno::INVAL));
    }
    rows
}

fn bind_vfio(world: &World) -> Vec<Row> {
    let good = uapi::BindDevice {
        argsz: uapi::BindDevice::ARGSZ,
        flags: uapi::BIND_VFIO_GROUP,
        fd: world.no_groups[0].1.as_raw_fd(),
        name: name_field("0000:00:1f.7"),
        ..Default::default()
    };
    let supported = world.has(ext::VFIO);
    let unless_unsupported = |errno| if supported { errno } else { Errno::OPNOTSUPP };
    let mut rows = Vec::new();
    for (what, name, errno) in bad_names().into_iter().filter(|bad| bad.2 == Errno::INVAL) {
        let bind = uapi::BindDevice { name, ..good };
        rows.push(row(cmd::BIND_DEVICE, format!("VFIO, {what}"), bind).fails(errno));
    }
    for (what, fd) in &world.no_groups {
        let bind = uapi::BindDevice { fd: fd.as_raw_fd(), ..good };
        let row = row(cmd::BIND_DEVICE, format!("VFIO, the fd is {what}"), bind);
        rows.push(row.fails(unless_unsupported(Errno::INVAL)));
    }
    for (what, fd) in closed_fds().into_iter().filter(|(_, fd)| *fd != -1) {
        let bind = uapi::BindDevice { fd, ..good };
        let row = row(cmd::BIND_DEVICE, format!("VFIO, the fd is {what}"), bind);
        rows.push(row.fails(unless_unsupported(Errno::BADF)));
    }
    // -1 is what a program passes that has no fd: not open, and not fit for the kind.
    rows.push(
        row(cmd::BIND_DEVICE, "VFIO, the fd is -1", uapi::BindDevice { fd: -1, ..good })
            .fails_any(&[unless_unsupported(Errno::BADF), Errno::INVAL]),
    );
    if let Some(group) = world.groups.first() {
        for name in ["0000:ff:1f.7", "nosuchdevice", "0000:00:00.0", "0", ".."] {
            let bind = uapi::BindDevice { fd: group.as_raw_fd(), name: name_field(name), ..good };
            let row = row(cmd::BIND_DEVICE, format!("VFIO, {name} of a real group"), bind);
            rows.push(row.fails(Errno::NOENT));
        }
    }
    rows
}

/// Descriptors that are not open: one that was just closed, one that other processes have but not
/// this, and impossible ones.
fn closed_fds() -> [(&'static str, i32); 6] {
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe can be made");
    [
        ("closed", reader.as_raw_fd()),
        ("of others only", 1000),
        ("beyond any table", i32::MAX),
        ("-1", -1),
        ("-2", -2),
        ("the lowest number", i32::MIN),
    ]
}

fn bind_twice(world: &World) -> Vec<Row> {
    let bind = world.bind_request(0);
    vec![
        row(cmd::BIND_DEVICE, "what this open has already", bind).fails(Errno::BUSY),
        row(cmd::BIND_DEVICE, "what another open has", bind).on(Open::Theirs).fails(Errno::BUSY),
    ]
}

fn unbind(world: &World) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, id) in unknown_ids() {
        let row = number(cmd::UNBIND_DEVICE, format!("device {name}"), id);
        rows.push(row.fails(Errno::NOENT));
    }
    rows.push(number(cmd::UNBIND_DEVICE, "an attached device", world.device).fails(Errno::BUSY));
    rows.push(
        number(cmd::UNBIND_DEVICE, "a device of another open", world.device)
            .on(Open::Theirs)
            .fails(Errno::NOENT),
    );
    rows
}

fn attach(world: &World) -> Vec<Row> {
    let good = world.attachment();
    let mut rows = attachments(world, cmd::ATTACH_DEVICE);
    rows.push(row(cmd::ATTACH_DEVICE, "attached there already", good).fails(Errno::BUSY));
    rows.push(
        row(
            cmd::ATTACH_DEVICE,
            "attached elsewhere already",
            uapi::AttachDevice { ioasid: world.empty, ..good },
        )
        .fails(Errno::BUSY),
    );
    if !world.has(ext::USER_PASID_TABLE) {
        for user_pasid in [0, 1, (1 << 20) - 1] {
            let flags = uapi::ATTACH_USER_PASID;
            let attach = uapi::AttachDevice { flags, user_pasid, ..good };
            rows.push(
                row(cmd::ATTACH_DEVICE, format!("with user_pasid {user_pasid}"), attach)
                    .before(World::detach)
                    .undo(World::detach)
                    .after(World::attach)
                    .fails(Errno::OPNOTSUPP),
            );
        }
    }
    rows
}

fn detach(world: &World) -> Vec<Row> {
    let good = world.attachment();
    let mut rows = attachments(world, cmd::DETACH_DEVICE);
    rows.push(
        row(
            cmd::DETACH_DEVICE,
            "attached to another IOASID",
            uapi::AttachDevice { ioasid: world.empty, ..good },
        )
        .fails(Errno::NOENT),
    );
    rows.push(
        row(cmd::DETACH_DEVICE, "not attached", good)
            .before(World::detach)
            .after(World::attach)
            .fails(Errno::NOENT),
    );
    rows
}

/// What is refused by both ATTACH and DETACH.
fn attachments(world: &World, command: u32) -> Vec<Row> {
    let good = world.attachment();
    let mut rows = Vec::new();
    for (name, id) in unknown_ids() {
        let attach = uapi::AttachDevice { device: id, ..good };
        rows.push(row(command, format!("device {name}"), attach).fails(Errno::NOENT));
        let attach = uapi::AttachDevice { ioasid: id, ..good };
        rows.push(row(command, format!("IOASID {name}"), attach).fails(Errno::NOENT));
    }
    let foreign = uapi::AttachDevice { ioasid: world.foreign, ..good };
    rows.push(row(command, "an IOASID of another open", foreign).fails(Errno::NOENT));
    rows.push(
        row(command, "a device of another open", foreign).on(Open::Theirs).fails(Errno::NOENT),
    );
    for user_pasid in [1, u32::MAX] {
        let attach = uapi::AttachDevice { user_pasid, ..good };
        let name = format!("user_pasid {user_pasid:#x} without the flag");
        rows.push(row(command, name, attach).fails(Errno::INVAL));
    }
    for user_pasid in [1 << 20, u32::MAX] {
        let flags = uapi::ATTACH_USER_PASID;
        let attach = uapi::AttachDevice { flags, user_pasid, ..good };
        let name = format!("user_pasid {user_pasid:#x}, more than 20 bits");
        rows.push(row(command, name, attach).fails(Errno::INVAL));
    }
    rows
}

fn get_device_info(world: &World) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, id) in unknown_ids() {
        let info = device_info_request(id);
        rows.push(row(cmd::GET_DEVICE_INFO, format!("device {name}"), info).fails(Errno::NOENT));
    }
    rows.push(
        row(cmd::GET_DEVICE_INFO, "a device of another open", device_info_request(world.device))
            .on(Open::Theirs)
            .fails(Errno::NOENT),
    );
    rows
}

// ---------------------------------------------------------------------------------------------
// Explanations
// ---------------------------------------------------------------------------------------------

fn get_error(world: &World) -> Vec<Row> {
    let good = error_request(world);
    let ask = |name: &str, text: u64, text_len: u32| {
        row(cmd::GET_ERROR, name, uapi::ErrorInfo { text, text_len, ..good })
    };
    let output = world.start(OUTPUT);
    let mut rows = vec![
        ask("nothing has failed", output, 1024).on(Open::Fresh).fails(Errno::NOENT),
        ask("no room, and no text", 0, 0).look(is_of_the_free),
        ask("no room, and a bad text", KERNEL, 0).look(is_of_the_free),
        ask("room for one byte", output, 1).fails(Errno::MSGSIZE).look(is_of_the_free),
        ask("room for ten bytes", output, 10).fails(Errno::MSGSIZE).look(is_of_the_free),
        ask("room without end", output, u32::MAX).look(is_of_the_free),
        ask("the text is in read-only memory", world.start(READ_ONLY) + 2048, 1024)
            .fails(Errno::FAULT),
        ask("the text reaches behind the end of memory", world.end(OUTPUT) - 4, 1024)
            .fails(Errno::FAULT),
    ];
    for (name, address) in nowhere(world) {
        rows.push(ask(&format!("the text is at {name}"), address, 1024).fails(Errno::FAULT));
    }
    rows
}

/// The failure before each row of GET_ERROR is that of a FREE.
fn is_of_the_free(_: &World, bytes: &[u8]) -> Option<String> {
    let error = structure::<uapi::ErrorInfo>(bytes);
    let right = error.command == cmd::FREE
        && error.error == Errno::NOENT.raw_os_error() as u32
        && (2..1024).contains(&error.text_len);
    (!right).then(|| format!("it left {error:?}"))
}

// ---------------------------------------------------------------------------------------------
// Simulated DMA
// ---------------------------------------------------------------------------------------------

fn sim_dma(world: &World) -> Vec<Row> {
    let good = dma_request(world);
    let mut rows = Vec::new();
    let both = uapi::SIM_DMA_READ | uapi::SIM_DMA_WRITE;
    for (name, flags) in [("no direction", 0), ("both directions", both)] {
        rows.push(row(cmd::SIM_DMA, name, uapi::SimDma { flags, ..good }).fails(Errno::INVAL));
    }
    if !world.is_simulated() {
        return rows;
    }
    for (name, device) in unknown_ids() {
        let dma = uapi::SimDma { device, ..good };
        rows.push(row(cmd::SIM_DMA, format!("device {name}"), dma).fails(Errno::NOENT));
    }
    rows.push(
        row(cmd::SIM_DMA, "a device of another open", good).on(Open::Theirs).fails(Errno::NOENT),
    );
    for flags in [uapi::SIM_DMA_READ, uapi::SIM_DMA_WRITE] {
        let way = if flags == uapi::SIM_DMA_READ { "read" } else { "write" };
        let dma = |name: &str, iova: u64, data: u64, size: u64| {
            let dma = uapi::SimDma { flags, iova, data, size, ..good };
            row(cmd::SIM_DMA, format!("{way}, {name}"), dma)
        };
        let data = good.data;
        rows.extend([
            dma("size 0", MAPPED, data, 0).fails(Errno::INVAL),
            dma("more than the largest size", MAPPED, data, uapi::SIM_DMA_MAX + 1)
                .fails(Errno::INVAL),
            dma("all ones as size", MAPPED, data, u64::MAX).fails(Errno::INVAL),
            dma("iova + size wraps", u64::MAX - 7, data, 64).fails(Errno::OVERFLOW),
            dma("data + size wraps", MAPPED, u64::MAX - 7, 64).fails(Errno::OVERFLOW),
            dma("nothing is mapped there", FREE_IOVA, data, 64)
                .fails(Errno::IO)
                .look(|_, bytes| transferred(bytes, 0)),
            dma("it runs out of a mapping", MAPPED + MAPPED_SIZE - 10, data, 64)
                .fails(Errno::IO)
                .look(|_, bytes| transferred(bytes, 10)),
            dma("behind the aperture", 1 << 62, data, 64)
                .fails(Errno::IO)
                .look(|_, bytes| transferred(bytes, 0)),
            dma("the device is not attached", MAPPED, data, 64)
                .before(World::detach)
                .after(World::attach)
                .fails(Errno::IO)
                .look(|_, bytes| transferred(bytes, 0)),
            dma("its data reaches behind the end of memory", MAPPED, world.end(OUTPUT) - 8, 64)
                .fails(Errno::FAULT),
            dma("all of a mapping", MAPPED, data, MAPPED_SIZE.min(OUTPUT.size()))
                .look(|_, bytes| transferred(bytes, MAPPED_SIZE.min(OUTPUT.size()))),
        ]);
        for (name, address) in nowhere(world).into_iter().filter(|(_, a)| *a != u64::MAX) {
            let row = dma(&format!("its data is at {name}"), MAPPED, address, 64);
            rows.push(row.fails(Errno::FAULT));
        }
        let read_only = dma("its data is in read-only memory", MAPPED, world.start(READ_ONLY), 64);
        rows.push(match flags {
            uapi::SIM_DMA_READ => read_only.fails(Errno::FAULT),
            _ => read_only,
        });
    }
    rows
}

/// DMA with the flags and fields that came later.
fn sim_dma_options(world: &World) -> Vec<Row> {
    let (pasid, waits, goes_on) =
        (uapi::SIM_DMA_PASID, uapi::SIM_DMA_RECOVERABLE, uapi::SIM_DMA_CONTINUE);
    let read = dma_request(world);
    let dma = |name: &str, flags: u32, with: uapi::SimDma| {
        row(cmd::SIM_DMA, name, uapi::SimDma { flags: read.flags | flags, ..with })
    };
    let mut rows = vec![
        dma("CONTINUE without RECOVERABLE", goes_on, read).fails(Errno::INVAL),
        dma("fault without CONTINUE", waits, uapi::SimDma { fault: 1, ..read }).fails(Errno::INVAL),
        dma("fault without a flag", 0, uapi::SimDma { fault: 1, ..read }).fails(Errno::INVAL),
        dma("pasid without a flag", 0, uapi::SimDma { pasid: 1, ..read }).fails(Errno::INVAL),
    ];
    for value in [1 << 20, u32::MAX] {
        let name = format!("pasid {value:#x}, more than 20 bits");
        rows.push(dma(&name, pasid, uapi::SimDma { pasid: value, ..read }).fails(Errno::INVAL));
    }
    if !world.is_simulated() {
        return rows;
    }
    for fault in [0, UNKNOWN_ID, u32::MAX] {
        let name = format!("CONTINUE of fault {fault:#x}, which there is not");
        let with = uapi::SimDma { fault, ..read };
        rows.push(dma(&name, waits | goes_on, with).fails(Errno::NOENT));
        // What is wrong with the range comes after the ids.
        let with = uapi::SimDma { size: 0, ..with };
        rows.push(dma(&format!("{name}, and size 0"), waits | goes_on, with).fails(Errno::NOENT));
    }
    rows.push(
        dma("RECOVERABLE, without a fault", waits, read).look(|_, bytes| transferred(bytes, 64)),
    );
    for (name, iova, done) in [
        ("RECOVERABLE, nothing is mapped there", FREE_IOVA, 0),
        ("RECOVERABLE, it runs out of a mapping", MAPPED + MAPPED_SIZE - 10, 10),
    ] {
        let look: Look = if done == 0 {
            |world, bytes| remember_fault(world, bytes).or(transferred(bytes, 0))
        } else {
            |world, bytes| remember_fault(world, bytes).or(transferred(bytes, 10))
        };
        let with = uapi::SimDma { iova, ..read };
        rows.push(dma(name, waits, with).look(look).undo(World::fail_fault));
    }
    if !world.has(ext::USER_PASID_TABLE) {
        rows.push(dma("with a PASID", pasid, read).fails(Errno::OPNOTSUPP));
    }
    rows
}

fn remember_fault(world: &World, bytes: &[u8]) -> Option<String> {
    let fault = structure::<uapi::SimDma>(bytes).fault;
    world.waiting.set(fault);
    (fault == 0).then(|| "the device does not wait".into())
}

fn complete_fault(world: &World) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, id) in unknown_ids() {
        for response in [uapi::RESPONSE_SUCCESS, uapi::RESPONSE_FAIL, 3, u32::MAX] {
            let answer = uapi::CompleteFault { id, response, ..fault_answer() };
            let name = format!("fault {name}, response {response}");
            rows.push(row(cmd::COMPLETE_FAULT, name, answer).fails(no_such_fault(world)));
        }
    }
    rows
}

fn set_fault_eventfd(world: &World) -> Vec<Row> {
    let set =
        |name: &str, fd: i32| number(cmd::SET_FAULT_EVENTFD, name, i64::from(fd).cast_unsigned());
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        rows.push(match world.has(ext::FAULTS) {
            true => row.undo(World::no_fault_eventfd),
            false => row.fails(Errno::OPNOTSUPP),
        });
    };
    for (name, fd) in closed_fds() {
        let row = set(name, fd);
        add(if fd == -1 { row } else { row.fails(Errno::BADF) });
    }
    for (name, fd) in &world.no_files {
        let row = set(name, fd.as_raw_fd());
        add(if *name == "an eventfd" { row } else { row.fails(Errno::INVAL) });
    }
    add(number(cmd::SET_FAULT_EVENTFD, "-1 in 32 bits", u64::from(u32::MAX)));
    for more in [1_u64 << 32, 1 << 63, 0xffff_fffe_ffff_ffff] {
        let name = format!("{more:#x}, more than a descriptor has");
        add(number(cmd::SET_FAULT_EVENTFD, name, more).fails(Errno::BADF));
    }
    rows
}

fn transferred(bytes: &[u8], right: u64) -> Option<String> {
    let done = structure::<uapi::SimDma>(bytes).done;
    (done != right).then(|| format!("done is {done} instead of {right}"))
}

// ---------------------------------------------------------------------------------------------
// What takes more than one call
// ---------------------------------------------------------------------------------------------

/// A check, and what it holds.
pub type Check = fn(&World) -> Result<(), String>;

/// Everything that takes more than one call.
pub const CHECKS: &[(&str, Check)] = &[
    ("GET_ERROR: each thread has its own explanation", explanations_are_by_thread),
    ("ALLOC: as many as there may be, then ENOSPC", too_many_ioasids),
    ("close: gives back the devices", close_gives_back),
];

fn explanations_are_by_thread(world: &World) -> Result<(), String> {
    let unaligned = uapi::MapDma { size: 1, ..free_map(world) };
    world
        .exchange(Open::Ours, cmd::MAP_DMA, &mut { unaligned })
        .err()
        .ok_or("MAP_DMA with size 1 succeeded")?;
    let node = world.fd(Open::Ours);
    let other = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let mut arena = Arena::new().map_err(|e| e.to_string())?;
                let query = uapi::ErrorInfo { argsz: uapi::ErrorInfo::ARGSZ, ..Default::default() };
                let address = arena.start(ARGUMENT);
                arena.write(address, query.as_bytes());
                let nothing = arena.call(node, cmd::GET_ERROR, Argument::Address(address));
                let failed = arena.call(node, cmd::FREE, Argument::Value(UNKNOWN_ID.into()));
                Ok::<_, String>((nothing, failed))
            })
            .join()
            .map_err(|_| "the other thread panicked".to_string())?
    })?;
    if other != (Err(Errno::NOENT), Err(Errno::NOENT)) {
        return Err(format!("a thread in which nothing had failed got {other:?}"));
    }
    let mine = world.last_error(Open::Ours).map(|error| error.command);
    let any = world.last_error_with(Open::Ours, uapi::ERROR_ANY_THREAD).map(|e| e.command);
    match (mine, any) {
        (Some(cmd::MAP_DMA), Some(cmd::FREE)) => Ok(()),
        other => Err(format!("this thread's and any thread's last failures are {other:x?}")),
    }
}

fn too_many_ioasids(world: &World) -> Result<(), String> {
    let node = world.open_again().map_err(|e| e.to_string())?;
    let mut made = 0u32;
    let errno = loop {
        match world.call_fd(&node, cmd::ALLOC, Argument::Value(0)) {
            Ok(_) => made += 1,
            Err(errno) => break errno,
        }
        if made > 1 << 20 {
            return Err("one open made a million IOASIDs".into());
        }
    };
    if errno != Errno::NOSPC {
        return Err(format!("after {made} IOASIDs, ALLOC gave {errno}"));
    }
    let ioasid = u64::from(made);
    world
        .call_fd(&node, cmd::FREE, Argument::Value(ioasid))
        .and_then(|_| world.call_fd(&node, cmd::ALLOC, Argument::Value(0)))
        .map_err(|e| format!("after one of {made} was freed, another cannot be made: {e}"))?;
    world.alloc_and_free(Open::Ours).map_err(|e| format!("another open is affected: {e}"))
}

fn close_gives_back(world: &World) -> Result<(), String> {
    if world.devices.len() < 2 || matches!(world.devices[1], DeviceName::Vfio(..)) {
        return Ok(());
    }
    let bind = |node: &rustix::fd::OwnedFd| {
        let mut arena = Arena::new().expect("memory for an argument");
        let address = arena.start(ARGUMENT);
        arena.write(address, world.bind_request(1).as_bytes());
        arena.call(node.as_fd(), cmd::BIND_DEVICE, Argument::Address(address))
    };
    let first = world.open_again().map_err(|e| e.to_string())?;
    let second = world.open_again().map_err(|e| e.to_string())?;
    bind(&first).map_err(|e| format!("the first open cannot bind: {e}"))?;
    if bind(&second) != Err(Errno::BUSY) {
        return Err("two opens have the same device".into());
    }
    drop(first);
    // The kernel tells the daemon of a close only after close() has returned.
    let give_up = Instant::now() + Duration::from_secs(5);
    while let Err(errno) = bind(&second) {
        if Instant::now() > give_up {
            return Err(format!("5 s after the close the device is still not free: {errno}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(second);
    let third = world.open_again().map_err(|e| e.to_string())?;
    while bind(&third).is_err() {
        if Instant::now() > give_up {
            return Err("the device is not free after the second close".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(third);
    world.alloc_and_free(Open::Ours).map_err(|e| e.to_string())?;
    match world.last_error(Open::Ours).and_then(|error| flaw_of_a_sentence(&error.text)) {
        Some(flaw) => Err(flaw),
        None => Ok(()),
    }
}

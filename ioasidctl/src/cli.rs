//! The command line.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ioasid::pgtable::Format;
use ioasid::pgtable::pasid::PasidFormat;

use crate::number::{hex, number, number32};
use crate::target::Target;

const ABOUT: &str = "\
Every command of /dev/ioasid from the shell, and a doctor for the host.

State lives in the shell: an open descriptor is a context, and ioasidctl works
on the one that it inherits.

    exec 7<>/dev/ioasid
    export IOASID_FD=7
    device=$(ioasidctl bind --simulated sim0)
    id=$(ioasidctl alloc)
    ioasidctl attach $device $id
    ioasidctl map $id --iova 0x10000 --file /dev/shm/buf
    ioasidctl sim-dma write $device --iova 0x10000 --text hello
    exec 7>&-

A device of a VFIO group is bound with the group's descriptor, which can live
in the shell too: exec 8<>/dev/vfio/5; ioasidctl bind --group-fd 8 0000:00:03.0

Numbers are decimal or 0x hexadecimal, with K, M, G or T for powers of 1024.";

const AFTER: &str = "\
Output: one plain value, or FIELD=VALUE lines; with --json one JSON object, in
which addresses, bitmaps and cookies are strings of hexadecimal (\"0x1000\").
Errors go to standard error as `ioasidctl: SUBCOMMAND: ERRNO: why`; with --json
as one JSON object, also on standard error.

Exit status:
  0  it worked
  1  /dev/ioasid refused (or: check --quiet says no; doctor found a problem)
  2  the command line is wrong
  3  /dev/ioasid was not reached, or a file could not be used";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(name = "ioasidctl", version, about = ABOUT, after_help = AFTER)]
pub(crate) struct Cli {
    /// The inherited descriptor that is open on the node
    #[arg(long, global = true, env = "IOASID_FD", value_name = "N")]
    pub(crate) fd: Option<RawFd>,
    /// Work on what process PID has open on the node, with a duplicate of its descriptor FD; without
    /// FD it is looked for. This goes before --fd
    #[arg(long, global = true, value_name = "PID[:FD]")]
    pub(crate) pid: Option<Target>,
    /// The node to open when there is no --fd
    #[arg(
        long,
        global = true,
        env = "IOASID_NODE",
        value_name = "PATH",
        default_value = "/dev/ioasid"
    )]
    pub(crate) node: PathBuf,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Does the node have an optional ability? Prints 1 or 0
    Check(Check),
    /// Pin and account for memory of this process, once for all that maps it
    #[command(long_about = REGISTER)]
    Register(Register),
    /// Undo a registration that this process made
    #[command(long_about = UNREGISTER)]
    Unregister(Unregister),
    /// Make an empty I/O address space; prints its IOASID
    Alloc,
    /// Remove an I/O address space
    Free {
        /// The IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
    },
    /// Show an I/O address space
    #[command(long_about = INFO)]
    Info {
        /// The IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
        #[command(flatten)]
        field: Field,
    },
    /// Map memory; it stays mapped after this process has ended
    #[command(long_about = MAP)]
    Map(Map),
    /// Unmap a range, or everything; prints the number of bytes
    Unmap(Unmap),
    /// Map and unmap as the lines of a file say; prints how many were done
    #[command(long_about = VECTOR)]
    Vector {
        /// The IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
        /// The file, `-` for standard input
        file: PathBuf,
    },
    /// Make an I/O address space nested on another, which translates its addresses; prints its IOASID
    #[command(long_about = NEST)]
    Nest {
        /// The IOASID to nest on
        #[arg(value_parser = number32)]
        parent: u32,
    },
    /// Have a child IOASID translate by a page table that lies in memory of its parent
    #[command(long_about = BIND_TABLE)]
    BindTable(BindTable),
    /// Undo bind-table
    UnbindTable {
        /// The child IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
    },
    /// Have a child IOASID stand for a PASID table that lies in memory of its parent
    #[command(long_about = BIND_PASIDS)]
    BindPasids(BindPasids),
    /// Undo bind-pasids
    UnbindPasids {
        /// The child IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
    },
    /// Say that a bound table has changed: all of it, or what translates a range or a PASID
    Invalidate(Invalidate),
    /// Which pages of an I/O address space devices have written
    #[command(subcommand, long_about = DIRTY)]
    Dirty(Dirty),
    /// Put a device under control of the context; prints its number
    Bind(Bind),
    /// Give a device back
    Unbind {
        /// The number of the device
        #[arg(value_parser = number32)]
        device: u32,
    },
    /// Have the DMA of a device translated by an I/O address space
    Attach(Attach),
    /// Undo attach
    Detach(Attachment),
    /// Show a bound device
    DeviceInfo {
        /// The number of the device
        #[arg(value_parser = number32)]
        device: u32,
        #[command(flatten)]
        field: Field,
    },
    /// Show all that the context holds: IOASIDs, mappings, devices
    #[command(long_about = LIST)]
    List,
    /// Have a simulated device do DMA
    #[command(subcommand, long_about = SIM_DMA)]
    SimDma(SimDma),
    /// Read the records of DMA faults, a line each; without --follow, those that there are
    #[command(long_about = FAULTS)]
    Faults(Faults),
    /// Answer a recoverable fault, for which a device waits
    Complete {
        /// The fault's id, from its record
        #[arg(value_parser = number32)]
        fault: u32,
        /// What the device is told
        #[arg(value_enum)]
        response: Response,
    },
    /// Explain the last failure of the context
    Error {
        /// Only of this thread (in which nothing has failed yet)
        #[arg(long)]
        this_thread: bool,
    },
    /// Send any command with any argument, also a malformed one
    #[command(long_about = RAW)]
    Raw(Raw),
    /// Say what this host has and lacks
    Doctor(Doctor),
}

impl Command {
    /// The name of the subcommand.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Command::Check(_) => "check",
            Command::Register(_) => "register",
            Command::Unregister(_) => "unregister",
            Command::Alloc => "alloc",
            Command::Free { .. } => "free",
            Command::Info { .. } => "info",
            Command::Map(_) => "map",
            Command::Unmap(_) => "unmap",
            Command::Vector { .. } => "vector",
            Command::Nest { .. } => "nest",
            Command::BindTable(_) => "bind-table",
            Command::UnbindTable { .. } => "unbind-table",
            Command::BindPasids(_) => "bind-pasids",
            Command::UnbindPasids { .. } => "unbind-pasids",
            Command::Invalidate(_) => "invalidate",
            Command::Dirty(_) => "dirty",
            Command::Bind(_) => "bind",
            Command::Unbind { .. } => "unbind",
            Command::Attach(_) => "attach",
            Command::Detach(_) => "detach",
            Command::DeviceInfo { .. } => "device-info",
            Command::List => "list",
            Command::SimDma(_) => "sim-dma",
            Command::Faults(_) => "faults",
            Command::Complete { .. } => "complete",
            Command::Error { .. } => "error",
            Command::Raw(_) => "raw",
            Command::Doctor(_) => "doctor",
        }
    }

    /// Whether it makes sense on a context that ends with this process.
    pub(crate) fn is_one_shot(&self) -> bool {
        matches!(self, Command::Check(_) | Command::Raw(_) | Command::Doctor(_))
    }
}

/// Arguments of `check`.
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The name or number of an extension, or `all`
    #[arg(value_name = "EXTENSION")]
    pub(crate) extension: String,
    /// Print nothing: exit with 0 for yes, 1 for no
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

const INFO: &str = "\
Show an I/O address space.

locked_bytes is what is charged for what this IOASID maps. locked_used and
locked_limit are of the process that asks, which is this one: to see those of
your program, have it call IOASID_GET_INFO, or run this under its limit.
locked_limit is `unlimited`, in JSON null, for a process with CAP_IPC_LOCK.

While a command works on the IOASID, work_total is how many bytes it will map
and work_done how many it has mapped; otherwise both are 0.

parent is 0 and depth 0 for one that is nested on none. formats and
pasid_formats name what bind-table and bind-pasids take; format is what is
bound, or `none`, and format_addr where it is in the parent. The flags tell what
can be done (MAP_DMA, NESTING, DIRTY), what it is (SIMULATED, SHADOW: a child,
whose contents the daemon composes) and what is at work (TRACKING: dirty pages
are tracked; PASID_TABLE: what is bound is one).";

const LIST: &str = "\
Show all that the context holds, a line each: IOASIDs, after each what it maps, and
devices.

    ioasidctl --pid $(pidof dpdk-testpmd) list

Nothing is changed. A program that has the node open several times is shown with all
of its opens, each after a line `fd=N`.

state is `ready`; `unused` for an IOASID to which no device was attached yet; or
`partial` while only some devices of a group are attached. A line of a mapping has its
first IOVA, its size in bytes, the vaddr that it was mapped with (of a child, in the
parent; with FILE, in the file) and what devices may do. `device-info` and `info`
tell more.";

const MAP: &str = "\
Map memory; it stays mapped after this process has ended.

The kinds of memory:
  --file PATH      shared: this process maps the file, and the node finds it
  --map-file PATH  the same file by a descriptor, without mapping it here;
  --map-fd N       the same with a descriptor that is inherited. What devices
                   may do is what the descriptor is open for
  --memfd          shared zeroes; also --anonymous, without a descriptor
  --private        private memory, such as malloc gives: a real device keeps it
                   when this process ends, a simulated one then meets faults,
                   so that --hold keeps this process
  --parent-address A
                   for an IOASID that is nested: an address of its parent, whose
                   memory devices then reach; takes --size

    ioasidctl map $id --iova 0 --map-file /dev/shm/buf --offset 4K --size 4K
    exec 8<>/dev/shm/buf; ioasidctl map $id --iova 64K --map-fd 8";

const REGISTER: &str = "\
Pin and account for memory of this process, once for all that maps it.

A registration belongs to the process that made it, and this process ends at
once: what it registered can be mapped no more, but stays pinned and charged
until the context is closed. For as long as anything is registered, the context
maps nothing but registered memory, and files by descriptor (map --map-file).
So use this to try the node out; to map what is registered, use map --register.";

const UNREGISTER: &str = "\
Undo a registration that this process made.

No process can undo the registration of another, and this process has made none:
the answer is ENOENT, or what is wrong with the range. What was registered with
this tool goes when the context is closed.";

/// Where memory comes from.
#[derive(Args, Debug, Default)]
pub(crate) struct Source {
    /// Memory of a file, mapped shared
    #[arg(long, value_name = "PATH", groups = ["memory", "with_offset"])]
    pub(crate) file: Option<PathBuf>,
    /// Where in the file to begin
    #[arg(long, value_parser = number, default_value = "0", requires = "with_offset")]
    pub(crate) offset: u64,
    /// Zeroes in a memfd
    #[arg(long, group = "memory")]
    pub(crate) memfd: bool,
    /// Zeroes in shared memory without a descriptor
    #[arg(long, group = "memory")]
    pub(crate) anonymous: bool,
    /// Private memory: a copy of the file or memfd, or zeroes
    #[arg(long, conflicts_with = "vaddr")]
    pub(crate) private: bool,
    /// An address as it is: of the parent when the IOASID is nested, or a wrong one
    #[arg(
        long,
        visible_alias = "parent-address",
        value_name = "ADDRESS",
        value_parser = number,
        group = "memory"
    )]
    pub(crate) vaddr: Option<u64>,
    /// How many bytes [default: the file from the offset, to the end of its last page]
    #[arg(long, value_parser = number)]
    pub(crate) size: Option<u64>,
    /// How this process maps it, or opens the file [default: rw if devices may write, else r]
    #[arg(long, value_name = "ACCESS", value_parser = ["none", "r", "w", "rw"])]
    pub(crate) protection: Option<String>,
}

/// A file that is named to the node by a descriptor.
#[derive(Args, Debug, Default)]
pub(crate) struct ByDescriptor {
    /// A file, by a descriptor (IOASID_MAP_FILE): this process does not map it
    #[arg(
        long,
        value_name = "PATH",
        groups = ["memory", "with_offset"],
        conflicts_with_all = ["private", "register"]
    )]
    pub(crate) map_file: Option<PathBuf>,
    /// The file of an inherited descriptor, by it; or, with --size, any number
    #[arg(
        long,
        value_name = "N",
        groups = ["memory", "with_offset"],
        allow_negative_numbers = true,
        conflicts_with_all = ["private", "register", "protection"]
    )]
    pub(crate) map_fd: Option<RawFd>,
}

/// When to show how far a command is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// While it takes long, if standard error is a terminal and there is no --json
    #[default]
    Auto,
    /// While it takes long, and a line at its end
    Always,
    /// Never
    Never,
}

/// Arguments of commands that may take long.
#[derive(Args, Debug, Default)]
pub(crate) struct Progress {
    /// Show on standard error how far it is
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) progress: When,
}

/// Arguments of `map`.
#[derive(Args, Debug)]
pub(crate) struct Map {
    /// The IOASID
    #[arg(value_parser = number32)]
    pub(crate) ioasid: u32,
    /// The address that devices will use
    #[arg(long, value_parser = number)]
    pub(crate) iova: u64,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) by_descriptor: ByDescriptor,
    /// Devices may read it [default: both]
    #[arg(long)]
    pub(crate) read: bool,
    /// Devices may write it [default: both]
    #[arg(long)]
    pub(crate) write: bool,
    /// Register the memory first; if it cannot be mapped, that is undone
    #[arg(long, conflicts_with = "vaddr")]
    pub(crate) register: bool,
    /// Print the memory's address and wait until standard input ends: so long its process is there
    #[arg(long, conflicts_with_all = ["map_file", "map_fd"])]
    pub(crate) hold: bool,
    #[command(flatten)]
    pub(crate) progress: Progress,
}

/// Arguments of `register`.
#[derive(Args, Debug)]
pub(crate) struct Register {
    #[command(flatten)]
    pub(crate) source: Source,
}

/// Arguments of `unregister`.
#[derive(Args, Debug)]
pub(crate) struct Unregister {
    /// The address
    #[arg(long, value_parser = number)]
    pub(crate) vaddr: u64,
    /// How many bytes
    #[arg(long, value_parser = number)]
    pub(crate) size: u64,
}

const VECTOR: &str = "\
Map and unmap as the lines of a file say, in order, up to 2048 in one call of the
node; prints how many were done. The first that is refused ends it: those before
stay done, and the error names its line.

  map [ACCESS] IOVA SIZE ADDRESS           of the parent, when nested
  map-file [ACCESS] IOVA SIZE OFFSET PATH  a file, by a descriptor
  unmap IOVA SIZE
  unmap-all

ACCESS is what devices may do: r, w or rw, which it is without. PATH is the rest of
the line. Empty lines, and those that begin with #, are skipped.

    ioasidctl vector $id - <<END
    map-file rw 0x10000 64K 0 /dev/shm/buf
    map-file r 0x20000 4K 64K /dev/shm/buf
    unmap 0x10000 64K
    END";

const NEST: &str = "\
Make an I/O address space nested on another, which translates its addresses; prints
its IOASID.

The child is filled by map --parent-address, or bound to a page table
(bind-table) or a PASID table (bind-pasids). A device is attached to the parent
first, and then to the child.

    child=$(ioasidctl nest $parent)
    ioasidctl attach $device $parent
    ioasidctl attach $device $child
    ioasidctl map $child --iova 0x1000 --parent-address 0x80000 --size 4K";

const BIND_TABLE: &str = "\
Have a child IOASID translate by a page table that lies in memory of its parent.

All addresses in the table are the parent's. It is read now, and when invalidate
says that it has changed. Formats, and the widths of their addresses:

  x86-4level    48              x86-64, VT-d first stage
  x86-5level    57              the same with five levels
  vtd-second    39, 48, 57      VT-d second stage
  amd-v1        39, 48, 57, 64  AMD I/O page table
  arm-lpae-4k   25 to 48        Arm long descriptors, stage 1, 4 KiB
  arm-lpae-64k  25 to 48        the same with 64 KiB

    ioasidctl bind-table $child --format x86-4level --address 0x1000";

const BIND_PASIDS: &str = "\
Have a child IOASID stand for a PASID table that lies in memory of its parent.

DMA of its simulated devices that is tagged with a PASID (sim-dma --pasid) is
translated by the page table that the PASID's entry names, and then by the parent.
Formats:

  vtd-scalable  VT-d scalable mode: a directory, and tables of 64 entries
  arm-cd        Arm SMMUv3: context descriptors in a row
  arm-cd-4k     the same in two levels, with tables of 4 KiB
  arm-cd-64k    the same in two levels, with tables of 64 KiB";

/// The parser of a page-table format's name.
fn table_format() -> impl TypedValueParser<Value = Format> {
    let names = Format::ALL.map(Format::name);
    PossibleValuesParser::new(names).map(|text| {
        let known = Format::ALL.into_iter().find(|format| format.name() == text);
        known.unwrap_or_else(|| unreachable!("{text} is one of the names"))
    })
}

/// The parser of a PASID-table format's name.
fn pasid_format() -> impl TypedValueParser<Value = PasidFormat> {
    let names = PasidFormat::ALL.map(|format| {
        let name = PossibleValue::new(format.name());
        // As the header has it.
        if format == PasidFormat::VtdScalable { name.alias("vtd") } else { name }
    });
    PossibleValuesParser::new(names).map(|text| {
        let known = PasidFormat::ALL.into_iter().find(|format| format.name() == text);
        known.unwrap_or(PasidFormat::VtdScalable)
    })
}

/// Arguments of `bind-table`.
#[derive(Args, Debug)]
pub(crate) struct BindTable {
    /// The child IOASID
    #[arg(value_parser = number32)]
    pub(crate) ioasid: u32,
    /// What the table's entries look like
    #[arg(long, value_name = "NAME", value_parser = table_format())]
    pub(crate) format: Format,
    /// Where the table's root is in the parent
    #[arg(long, value_parser = number)]
    pub(crate) address: u64,
    /// Bits of an address that it translates [default: 57 for x86-5level, else 48]
    #[arg(long, value_name = "BITS", value_parser = number32)]
    pub(crate) width: Option<u32>,
}

/// Arguments of `bind-pasids`.
#[derive(Args, Debug)]
pub(crate) struct BindPasids {
    /// The child IOASID
    #[arg(value_parser = number32)]
    pub(crate) ioasid: u32,
    /// What the table looks like
    #[arg(long, value_name = "NAME", value_parser = pasid_format())]
    pub(crate) format: PasidFormat,
    /// Where the table is in the parent
    #[arg(long, value_parser = number)]
    pub(crate) address: u64,
    /// The log2 of the number of PASIDs
    #[arg(long, value_parser = number32)]
    pub(crate) bits: u32,
}

/// Arguments of `invalidate`.
#[derive(Args, Debug)]
pub(crate) struct Invalidate {
    /// The child IOASID
    #[arg(value_parser = number32)]
    pub(crate) ioasid: u32,
    /// Where the range begins
    #[arg(long, value_parser = number, requires = "size")]
    pub(crate) iova: Option<u64>,
    /// How many bytes
    #[arg(long, value_parser = number, requires = "iova")]
    pub(crate) size: Option<u64>,
    /// Of a PASID table: this PASID's entry, and the page table behind it
    #[arg(long, value_parser = number32, conflicts_with_all = ["iova", "size"])]
    pub(crate) pasid: Option<u32>,
}

const DIRTY: &str = "\
Which pages of an I/O address space devices have written.

Pages are tracked from `start` on; `read` prints the ranges that were written since
they were last asked for, a line each. Simulated devices are tracked exactly; of
real ones no more is known than which pages they can write, and each read says so
anew.

    ioasidctl dirty start $id
    ioasidctl dirty read $id --iova 0 --size 16M
    ioasidctl unmap $id --iova 0 --size 16M --dirty
    ioasidctl dirty stop $id";

/// What `dirty` does.
#[derive(Subcommand, Debug)]
pub(crate) enum Dirty {
    /// Track from now on
    Start {
        /// The IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
    },
    /// Track no more, and forget
    Stop {
        /// The IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
    },
    /// Print the ranges that were written, as START-LAST, and forget these
    Read {
        /// The IOASID
        #[arg(value_parser = number32)]
        ioasid: u32,
        /// Where to look
        #[arg(long, value_parser = number)]
        iova: u64,
        /// How many bytes
        #[arg(long, value_parser = number)]
        size: u64,
    },
}

/// Arguments of `unmap`.
#[derive(Args, Debug)]
pub(crate) struct Unmap {
    /// The IOASID
    #[arg(value_parser = number32)]
    pub(crate) ioasid: u32,
    #[command(flatten)]
    pub(crate) range: RangeOrAll,
    /// Tell also what devices have written of it: prints FIELD=VALUE lines
    #[arg(long, conflicts_with = "all")]
    pub(crate) dirty: bool,
}

/// A range of IOVAs, or everything.
#[derive(Args, Debug)]
pub(crate) struct RangeOrAll {
    /// Where the range begins
    #[arg(long, value_parser = number, required_unless_present = "all", requires = "size")]
    pub(crate) iova: Option<u64>,
    /// How many bytes
    #[arg(long, value_parser = number, requires = "iova")]
    pub(crate) size: Option<u64>,
    /// Everything
    #[arg(long, conflicts_with_all = ["iova", "size"])]
    pub(crate) all: bool,
}

/// A choice of what to show.
#[derive(Args, Debug)]
pub(crate) struct Field {
    /// Print the value of this field only
    #[arg(long, value_name = "NAME")]
    pub(crate) field: Option<String>,
}

/// Arguments of `bind`.
#[derive(Args, Debug)]
pub(crate) struct Bind {
    /// The device's name in its VFIO group, such as 0000:00:03.0; with nothing else given, the
    /// group is looked up and opened
    #[arg(value_name = "DEVICE", required_unless_present = "simulated")]
    pub(crate) name: Option<String>,
    /// The inherited descriptor that is open on the group
    #[arg(long, value_name = "N", conflicts_with_all = ["vfio_group", "simulated"])]
    pub(crate) group_fd: Option<RawFd>,
    /// The group to open; the context holds it. It cannot be opened again, so for a second device
    /// of a group use --group-fd
    #[arg(long, value_name = "PATH", conflicts_with = "simulated")]
    pub(crate) vfio_group: Option<PathBuf>,
    /// A simulated device
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    pub(crate) simulated: Option<String>,
    /// Have its group share the I/O page table of this device, of the same kind and bound before:
    /// what is mapped is pinned once, and they can only be attached to the same IOASID
    #[arg(long, value_name = "NUMBER", value_parser = number32)]
    pub(crate) share_with: Option<u32>,
    /// A number that reports about the device will carry
    #[arg(long, value_parser = number, default_value = "0")]
    pub(crate) cookie: u64,
}

/// Arguments of `attach`.
#[derive(Args, Debug)]
pub(crate) struct Attach {
    #[command(flatten)]
    pub(crate) attachment: Attachment,
    #[command(flatten)]
    pub(crate) progress: Progress,
}

/// Arguments of `detach`, and what `attach` has in common with it.
#[derive(Args, Debug)]
pub(crate) struct Attachment {
    /// The number of the device
    #[arg(value_parser = number32)]
    pub(crate) device: u32,
    /// The IOASID
    #[arg(value_parser = number32)]
    pub(crate) ioasid: u32,
    /// Only DMA that is tagged with this PASID (simulated devices)
    #[arg(long, value_parser = number32)]
    pub(crate) pasid: Option<u32>,
}

const SIM_DMA: &str = "\
Have a simulated device do DMA.

A fault fails it, unless it is --recoverable: then the device waits, and the output
is FIELD=VALUE lines, with `done`, the bytes before the fault, and `fault`, its id
(0 if there was none). Once that is completed, the rest is asked for with --continue.

    ioasidctl sim-dma write $device --iova 0x10000 --text hi --recoverable
    ioasidctl map $id --iova 0x10000 --file /dev/shm/buf
    ioasidctl complete $fault success
    ioasidctl sim-dma write $device --iova 0x10000 --text hi --continue $fault";

/// How a simulated device does DMA.
#[derive(Args, Debug)]
pub(crate) struct Manner {
    /// Tag it with this PASID
    #[arg(long, value_parser = number32)]
    pub(crate) pasid: Option<u32>,
    /// At a fault wait for `complete`; prints FIELD=VALUE lines
    #[arg(long)]
    pub(crate) recoverable: bool,
    /// Go on after this fault, which was completed; implies --recoverable
    #[arg(long = "continue", value_name = "FAULT", value_parser = number32)]
    pub(crate) after: Option<u32>,
}

/// The two directions of `sim-dma`.
#[derive(Subcommand, Debug)]
pub(crate) enum SimDma {
    /// The device reads memory; prints the bytes in hexadecimal
    Read {
        /// The number of the device
        #[arg(value_parser = number32)]
        device: u32,
        /// Where to read
        #[arg(long, value_parser = number)]
        iova: u64,
        /// How many bytes
        #[arg(long, value_parser = number)]
        size: u64,
        /// Put the bytes into this file, `-` for standard output, and print no hexadecimal
        #[arg(long, value_name = "PATH", conflicts_with = "text")]
        file: Option<PathBuf>,
        /// Print the bytes as text, up to the first zero byte
        #[arg(long)]
        text: bool,
        #[command(flatten)]
        manner: Manner,
    },
    /// The device writes memory; prints the number of bytes
    Write {
        /// The number of the device
        #[arg(value_parser = number32)]
        device: u32,
        /// Where to write
        #[arg(long, value_parser = number)]
        iova: u64,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        manner: Manner,
    },
}

const FAULTS: &str = "\
Read the records of DMA faults, a line each; without --follow, those that there are.
A record that is read is gone.

A line has `access` (read, write), `address`, `ioasid` (0 if the device is attached to
none), `device` and its `cookie`; `reason` (not-mapped, permission, memory, unknown);
`id`, for complete, of a recoverable fault and otherwise 0; `lost`, how many records
were lost before; `source`, which is `kernel-log` for what is known of real devices
only late and in part; and `pasid` if the DMA was tagged.

    fault=$(ioasidctl faults --count 1 --field id)";

/// Arguments of `faults`.
#[derive(Args, Debug)]
pub(crate) struct Faults {
    /// Wait for more, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,
    /// End after so many
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) field: Field,
}

/// The answers to a recoverable fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Response {
    /// It repeats its access, which fails if there is still nothing
    Success,
    /// The same, but if there is still nothing it reports anew
    Retry,
    /// Its access fails
    Fail,
}

/// What a simulated device writes.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Data {
    /// The content of a file, `-` for standard input
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// The bytes of a text
    #[arg(long)]
    pub(crate) text: Option<String>,
    /// Bytes in hexadecimal
    #[arg(long, value_parser = bytes)]
    pub(crate) hex: Option<Bytes>,
}

/// Bytes given on the command line. A newtype, because clap reads `Vec` as a repeated option.
#[derive(Clone, Debug)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

fn bytes(text: &str) -> Result<Bytes, String> {
    hex(text).map(Bytes)
}

const RAW: &str = "\
Send any command with any argument, also a malformed one.

COMMAND is a name (map-dma, MAP_DMA, IOASID_MAP_DMA) or a whole ioctl number.
A command that takes a structure gets it with the fields given here, zero in
the others and its right argsz, unless that is given too. A VALUE is
  a number, also negative for a signed field;
  @SIZE, the address of a buffer of so many zero bytes, which is shown after;
  @:TEXT, the address of a buffer with this text;
  any text, for a field of characters; hex:BYTES for any bytes there.
Buffers and the structure end at a page that cannot be touched: what lies about
its size gets EFAULT.

    ioasidctl raw map-dma ioasid=1 flags=0x80 iova=0 size=4K vaddr=0x1000
    ioasidctl raw get-info ioasid=1 nr_ranges=4 ranges=@64
    ioasidctl raw unmap-dma argsz=8
    ioasidctl raw map-dma ioasid=1 --tail 00000000000000ff
    ioasidctl raw map-dma --value 0x1000
    ioasidctl raw 0x3bff";

/// Arguments of `raw`.
#[derive(Args, Debug)]
pub(crate) struct Raw {
    /// The command
    pub(crate) command: String,
    /// Fields of the structure
    #[arg(value_name = "FIELD=VALUE", conflicts_with = "value")]
    pub(crate) fields: Vec<String>,
    /// Bytes after the structure, counted in argsz
    #[arg(long, value_name = "HEX", value_parser = bytes, conflicts_with = "value")]
    pub(crate) tail: Option<Bytes>,
    /// Send only so many bytes of the structure, and argsz says so
    #[arg(long, value_parser = number, conflicts_with_all = ["value", "tail"])]
    pub(crate) cut: Option<u64>,
    /// A number instead of a structure
    #[arg(long, value_parser = number)]
    pub(crate) value: Option<u64>,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Look at a tree of files instead of this host; the daemon is then not asked
    #[arg(long, hide = true, env = "IOASIDCTL_DOCTOR_ROOT", default_value = "/")]
    pub(crate) root: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_is_called_by_its_name() {
        let line = |rest: &str| {
            let words = ["ioasidctl"].into_iter().chain(rest.split(' '));
            Cli::try_parse_from(words).unwrap().command
        };
        for rest in [
            "check all",
            "register --anonymous --size 4K",
            "unregister --vaddr 0 --size 4K",
            "alloc",
            "free 1",
            "info 1",
            "map 1 --iova 0 --file /dev/null",
            "unmap 1 --all",
            "unmap 1 --iova 0 --size 4K --dirty",
            "vector 1 -",
            "nest 1",
            "bind-table 1 --format arm-lpae-4k --address 0 --width 39",
            "unbind-table 1",
            "bind-pasids 1 --format vtd --address 0 --bits 4",
            "unbind-pasids 1",
            "invalidate 1",
            "invalidate 1 --iova 0 --size 4K",
            "invalidate 1 --pasid 4",
            "dirty start 1",
            "dirty read 1 --iova 0 --size 4K",
            "bind --simulated sim0",
            "unbind 1",
            "attach 1 1",
            "detach 1 1 --pasid 3",
            "device-info 1",
            "sim-dma read 1 --iova 0 --size 1",
            "sim-dma read 1 --iova 0 --size 1 --pasid 3 --continue 7",
            "faults --follow",
            "complete 7 retry",
            "error",
            "raw alloc",
            "doctor",
        ] {
            assert_eq!(line(rest).name(), rest.split(' ').next().unwrap());
        }
    }

    #[test]
    fn a_file_is_named_by_path_or_by_descriptor() {
        let map = |rest: &str| {
            let words = ["ioasidctl"].into_iter().chain(rest.split(' '));
            match Cli::try_parse_from(words).unwrap().command {
                Command::Map(map) => map,
                other => panic!("{other:?}"),
            }
        };
        let by_path = map("map 1 --iova 0 --map-file /a --offset 4K --size 8K --protection r");
        assert_eq!(by_path.by_descriptor.map_file.as_deref(), Some(std::path::Path::new("/a")));
        assert_eq!((by_path.source.offset, by_path.source.size), (4096, Some(8192)));
        let by_number = map("--fd 7 map 1 --iova 0 --map-fd 9");
        assert_eq!((by_number.by_descriptor.map_fd, by_number.source.file), (Some(9), None));
        assert_eq!(map("map 1 --iova 0 --map-fd -1 --size 4K").by_descriptor.map_fd, Some(-1));
        assert_eq!(by_number.progress.progress, When::Auto);
        let always = map("map 1 --iova 0 --private --size 4K --progress always --hold");
        assert_eq!((always.progress.progress, always.hold), (When::Always, true));
        map("map 1 --iova 0 --file /a --private");
    }

    #[test]
    fn formats_are_called_by_the_names_of_the_engine() {
        for format in Format::ALL {
            assert!(BIND_TABLE.contains(&format!("  {} ", format.name())), "{}", format.name());
        }
        let bound = |name: &str| {
            let line = format!("ioasidctl bind-pasids 1 --address 0 --bits 4 --format {name}");
            match Cli::try_parse_from(line.split(' ')).unwrap().command {
                Command::BindPasids(arguments) => arguments.format,
                other => panic!("{other:?}"),
            }
        };
        for format in PasidFormat::ALL {
            assert!(BIND_PASIDS.contains(&format!("  {} ", format.name())), "{}", format.name());
            assert_eq!(bound(format.name()), format);
        }
        assert_eq!(bound("vtd"), PasidFormat::VtdScalable);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for rest in [
            "unmap 1",
            "unmap 1 --iova 0",
            "unmap 1 --all --iova 0 --size 1",
            "unmap 1 --all --dirty",
            "bind-table 1 --address 0",
            "bind-table 1 --address 0 --format fat32",
            "bind-pasids 1 --address 0 --format arm-cd",
            "invalidate 1 --iova 0",
            "invalidate 1 --iova 0 --size 1 --pasid 1",
            "dirty 1 read",
            "complete 1",
            "complete 1 perhaps",
            "bind",
            "bind sim0 --simulated sim0",
            "bind a --group-fd 3 --vfio-group /dev/vfio/1",
            "map 1 --iova 0 --file /a --anonymous",
            "map 1 --iova 0 --vaddr 0 --private",
            "map 1 --iova 0 --anonymous --offset 4K",
            "map 1 --iova 0 --private --offset 4K",
            "map 1 --iova 0 --file /a --map-file /a",
            "map 1 --iova 0 --map-file /a --map-fd 3",
            "map 1 --iova 0 --map-file /a --private",
            "map 1 --iova 0 --map-file /a --register",
            "map 1 --iova 0 --map-file /a --hold",
            "map 1 --iova 0 --map-fd 3 --memfd",
            "map 1 --iova 0 --map-fd 3 --protection r",
            "map 1 --iova 0 --map-fd buf",
            "map 1 --iova 0 --memfd --progress sometimes",
            "register --map-file /a",
            "detach 1 1 --progress always",
            "sim-dma write 1 --iova 0",
            "sim-dma write 1 --iova 0 --text a --hex 00",
            "sim-dma write 1 --iova 0 --hex 0",
            "raw alloc a=1 --value 1",
        ] {
            let words = ["ioasidctl"].into_iter().chain(rest.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{rest}");
        }
    }
}

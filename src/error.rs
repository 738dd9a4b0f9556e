//! Why a command was refused: each reason, the sentence that explains it and its errno.

use ioasid_uapi::errno;

use crate::{DeviceId, Ioasid, PageSizes, Range};

/// Why a command was refused. Its text is a sentence for the program's author: which rule, which
/// range or device, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
#[non_exhaustive]
pub enum Error {
    // An id that names nothing, or nothing that fits.
    #[error(
        "there is no IOASID {0} in this context: use a number that IOASID_ALLOC returned on this \
         open of the node and that was not freed since"
    )]
    NoIoasid(u32),
    #[error(
        "there is no device {0} in this context: use a number that IOASID_BIND_DEVICE returned on \
         this open of the node and that was not unbound since"
    )]
    NoDevice(DeviceId),
    #[error(
        "the pages of IOASID {0} that devices write are not tracked: begin with IOASID_DIRTY_START"
    )]
    NotTracking(Ioasid),
    #[error(
        "a bit is to stand for {page:#x} bytes, and the smallest page of IOASID {ioasid} has \
         {smallest:#x}: use that"
    )]
    WrongPage { ioasid: Ioasid, page: u64, smallest: u64 },
    #[error("no table of the program is bound to IOASID {0}")]
    NotBound(Ioasid),
    #[error(
        "device \"{device}\" is not attached to IOASID {ioasid}, so it cannot be detached from it"
    )]
    NotAttached { device: String, ioasid: Ioasid },

    // A state that does not allow the command.
    #[error("IOASID {0} takes no command before a device is attached to it: attach one first")]
    NeverAttached(Ioasid),
    #[error(
        "the I/O page table of {devices} failed and could not be restored, so what it holds for \
         IOASID {ioasid} is unknown: detach from IOASID {first}, which clears the table, and attach again"
    )]
    TableBroken { ioasid: Ioasid, devices: String, first: Ioasid },
    #[error(
        "IOASID {ioasid} takes no command while a device group is partly attached to it: attach \
         {missing} too, which shares an I/O page table with {attached}, or unbind it"
    )]
    PartialGroup { ioasid: Ioasid, attached: String, missing: String },
    #[error(
        "IOASID {ioasid} cannot be freed while devices are attached to it: detach {devices} first"
    )]
    SpaceInUse { ioasid: Ioasid, devices: String },
    #[error(
        "IOASID {ioasid} cannot be freed while IOASID {child} is nested on it: free that first"
    )]
    HasChild { ioasid: Ioasid, child: Ioasid },
    #[error(
        "device \"{device}\" cannot be detached from IOASID {ioasid} while it is attached to IOASID \
         {child}, which is nested on it: detach it from that first"
    )]
    AttachedToChild { device: String, ioasid: Ioasid, child: Ioasid },
    #[error(
        "a page table of the program is bound to IOASID {ioasid}, so that it takes no MAP, UNMAP or \
         other table: change that table and invalidate, or unbind it"
    )]
    TableBound { ioasid: Ioasid },
    #[error(
        "IOASID {ioasid} has mappings that were made by MAP, so that no page table can be bound to \
         it: unmap them first"
    )]
    HasMappings { ioasid: Ioasid },
    #[error("device \"{device}\" is attached to IOASID {ioasid} already")]
    AlreadyAttached { device: String, ioasid: Ioasid },
    #[error(
        "device \"{device}\" shares an I/O page table with {siblings}, attached to IOASID \
         {ioasid}: attach it to the same IOASID, or detach the others first"
    )]
    SiblingElsewhere { device: String, siblings: String, ioasid: Ioasid },
    #[error(
        "device \"{device}\" cannot be unbound while it is attached: detach it from IOASID {ioasid} first"
    )]
    DeviceAttached { device: String, ioasid: Ioasid },
    #[error("device \"{device}\" is bound already, as device {id} of this context")]
    AlreadyBound { device: String, id: DeviceId },
    #[error(
        "the state that this change was planned for has changed since, by another call on the \
         same open of the node: try again"
    )]
    StalePlan,

    // Registered memory.
    #[error(
        "the memory {range} overlaps {registered}, which is registered already: unregister that \
         first"
    )]
    RegisteredOverlap { range: Range, registered: Range },
    #[error(
        "the memory {range} was not registered by this program on this open of the node, or not as \
         one range: use exactly a range that was given to IOASID_REGISTER_MEMORY"
    )]
    NotRegistered { range: Range },
    #[error("the registered memory {range} is in use: {by}")]
    RegisteredInUse { range: Range, by: String },
    #[error(
        "the memory {range} is not inside a registered range, and memory was registered on this \
         open of the node: register it, or unregister everything"
    )]
    OutsideRegistered { range: Range },

    // What the backend says about a device.
    #[error("the I/O page table of device \"{device}\" has no page size or no usable IOVA")]
    UnusableGeometry { device: String },
    #[error(
        "device \"{device}\" is said to differ from the other devices of its group in page sizes, \
         usable IOVAs or kind, though they share one I/O page table"
    )]
    GroupDiffers { device: String },

    // What fits only a child.
    #[error(
        "IOASID {ioasid} is nested on IOASID {parent}: attach device \"{device}\" to that first"
    )]
    NotOnParent { device: String, ioasid: Ioasid, parent: Ioasid },
    #[error(
        "IOASID {0} is nested on no other, and only a child can translate by a table of the program: \
         make one with IOASID_CREATE_NESTING"
    )]
    NoChild(Ioasid),
    #[error("nothing is bound to IOASID {0}, so that there is nothing to invalidate")]
    NothingBound(Ioasid),

    // Malformed arguments.
    #[error(
        "a mapping that devices may neither read nor write is of no use: set READ, WRITE or both"
    )]
    NoAccess,
    #[error("the size is zero")]
    ZeroSize,
    #[error(
        "the {what} {value:#x} is not a multiple of {page:#x}, the smallest page size of IOASID {ioasid}"
    )]
    Misaligned { ioasid: Ioasid, what: &'static str, value: u64, page: u64 },
    #[error("the {what} {start:#x} plus the size {size:#x} goes beyond the 64-bit address space")]
    Wraps { what: &'static str, start: u64, size: u64 },
    #[error("the IOVAs {range} lie outside {aperture}, the aperture of IOASID {ioasid}")]
    OutsideAperture { ioasid: Ioasid, range: Range, aperture: Range },

    // Conflicts.
    #[error(
        "the IOVAs {range} run into {reserved}, which the platform reserves: IOASID_GET_INFO lists \
         the IOVAs that IOASID {ioasid} may map"
    )]
    Reserved { ioasid: Ioasid, range: Range, reserved: Range },
    #[error(
        "the IOVAs {range} overlap {mapped}, which IOASID {ioasid} maps already: unmap that first"
    )]
    Overlap { ioasid: Ioasid, range: Range, mapped: Range },
    #[error(
        "unmapping the IOVAs {range} would split the mapping {mapped} of IOASID {ioasid}: mappings \
         are removed whole"
    )]
    Splits { ioasid: Ioasid, range: Range, mapped: Range },

    // Devices that do not suit an IOASID.
    #[error(
        "the page sizes of device \"{device}\" ({own}) and of the devices attached to IOASID \
         {ioasid} ({others}) have none in common: attach it to an IOASID of its own"
    )]
    PageSizesDiffer { ioasid: Ioasid, device: String, own: PageSizes, others: PageSizes },
    #[error(
        "device \"{device}\" and the devices attached to IOASID {ioasid} have no usable IOVA in \
         common: attach it to an IOASID of its own"
    )]
    AperturesDiffer { ioasid: Ioasid, device: String },
    #[error(
        "with device \"{device}\" the smallest page size of IOASID {ioasid} would be {page:#x}, and \
         the mapping {mapped} is not aligned to it: unmap it, or use another IOASID"
    )]
    MappingMisaligned { ioasid: Ioasid, device: String, mapped: Range, page: u64 },
    #[error(
        "device \"{device}\" cannot use the IOVAs {reserved}, and the mapping {mapped} of IOASID \
         {ioasid} runs into them: unmap it, or use another IOASID"
    )]
    MappingReserved { ioasid: Ioasid, device: String, mapped: Range, reserved: Range },

    // Limits.
    #[error("this context has {max} IOASIDs, as many as it may have: free one")]
    TooManyIoasids { max: u32 },
    #[error("this context has {max} devices, as many as it may have: unbind one")]
    TooManyDevices { max: u32 },
    #[error("this context has used up its numbers: open the node anew")]
    NumbersUsedUp,
    #[error(
        "IOASID {ioasid} has {max} mappings, as many as it or a table of its hardware may hold"
    )]
    TooManyMappings { ioasid: Ioasid, max: u32 },
    #[error(
        "what IOASID {ioasid} and those nested with it map gives more than {max} pieces when it is \
         put together, or is as much work: map less, or not the same place so often"
    )]
    TooManyPieces { ioasid: Ioasid, max: usize },
    #[error(
        "this context has {max} registered ranges of memory, as many as it may have: unregister one"
    )]
    TooManyRegistered { max: u32 },
    #[error(
        "what IOASID {ioasid} maps takes more than {max} entries of an I/O page table, and that of \
         device \"{device}\" holds no more: unmap some, or use another IOASID"
    )]
    TableTooSmall { ioasid: Ioasid, device: String, max: u32 },
    #[error(
        "with this, what IOASID {ioasid} and those nested with it map takes {entries} entries in the \
         I/O page table of {devices}, which holds {max}: map less, or larger pieces"
    )]
    TableFull { ioasid: Ioasid, devices: String, entries: usize, max: u32 },
}

impl Error {
    /// The errno for it, as `ioasid.h` documents it for the commands.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NoIoasid(_)
            | Self::NoDevice(_)
            | Self::NotAttached { .. }
            | Self::NotBound(_)
            | Self::NotRegistered { .. } => errno::ENOENT,
            Self::NeverAttached(_) => errno::ENODEV,
            Self::TableBroken { .. }
            | Self::UnusableGeometry { .. }
            | Self::GroupDiffers { .. } => errno::EIO,
            Self::PartialGroup { .. }
            | Self::SpaceInUse { .. }
            | Self::AlreadyAttached { .. }
            | Self::SiblingElsewhere { .. }
            | Self::DeviceAttached { .. }
            | Self::AlreadyBound { .. }
            | Self::RegisteredInUse { .. }
            | Self::HasChild { .. }
            | Self::AttachedToChild { .. }
            | Self::TableBound { .. }
            | Self::HasMappings { .. }
            | Self::StalePlan => errno::EBUSY,
            Self::NoAccess
            | Self::NotOnParent { .. }
            | Self::NoChild(_)
            | Self::NotTracking(_)
            | Self::WrongPage { .. }
            | Self::NothingBound(_)
            | Self::ZeroSize
            | Self::Misaligned { .. }
            | Self::OutsideAperture { .. }
            | Self::Splits { .. }
            | Self::PageSizesDiffer { .. }
            | Self::AperturesDiffer { .. }
            | Self::MappingMisaligned { .. } => errno::EINVAL,
            Self::Wraps { .. } => errno::EOVERFLOW,
            Self::Reserved { .. } | Self::MappingReserved { .. } => errno::EADDRINUSE,
            Self::Overlap { .. } | Self::RegisteredOverlap { .. } => errno::EEXIST,
            Self::OutsideRegistered { .. } => errno::EFAULT,
            Self::TooManyIoasids { .. }
            | Self::TooManyDevices { .. }
            | Self::NumbersUsedUp
            | Self::TooManyMappings { .. }
            | Self::TooManyRegistered { .. }
            | Self::TooManyPieces { .. }
            | Self::TableTooSmall { .. }
            | Self::TableFull { .. } => errno::ENOSPC,
        }
    }
}

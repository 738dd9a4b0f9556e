//! The contract of `/dev/ioasid`: the Rust twin of `include/ioasid.h`.
//!
//! This crate owns the numbers and the memory layout of the interface, and nothing else: no
//! behaviour, no system call, no allocation. What each command takes, returns and refuses is
//! documented once, in the C header; the items here name the entry to read there. The test
//! `abi` compares every number, size and offset with the header through a C compiler.
#![no_std]
#![forbid(unsafe_code)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The ioctl type of all commands (`IOASID_TYPE`).
pub const TYPE: u32 = b';' as u32;
/// The first ioctl number (`IOASID_BASE`).
pub const BASE: u32 = 0xC0;

const fn io(nr: u32) -> u32 {
    (TYPE << 8) | (BASE + nr)
}

const fn vfio_io(nr: u32) -> u32 {
    (TYPE << 8) | (100 + nr)
}

/// Ioctl numbers.
pub mod cmd {
    use super::{io, vfio_io};

    /// `IOASID_CHECK_EXTENSION`: one of [`ext`](super::ext), by value.
    pub const CHECK_EXTENSION: u32 = io(0);
    /// `IOASID_REGISTER_MEMORY`: [`RegisterMemory`](super::RegisterMemory).
    pub const REGISTER_MEMORY: u32 = io(1);
    /// `IOASID_UNREGISTER_MEMORY`: [`RegisterMemory`](super::RegisterMemory).
    pub const UNREGISTER_MEMORY: u32 = io(2);
    /// `IOASID_ALLOC`: no argument.
    pub const ALLOC: u32 = io(3);
    /// `IOASID_FREE`: the IOASID, by value.
    pub const FREE: u32 = io(4);
    /// `IOASID_GET_INFO`: [`Info`](super::Info).
    pub const GET_INFO: u32 = io(5);
    /// `IOASID_MAP_DMA`: [`MapDma`](super::MapDma).
    pub const MAP_DMA: u32 = io(6);
    /// `IOASID_UNMAP_DMA`: [`UnmapDma`](super::UnmapDma).
    pub const UNMAP_DMA: u32 = io(7);
    /// `IOASID_CREATE_NESTING`: the parent IOASID, by value.
    pub const CREATE_NESTING: u32 = io(8);
    /// `IOASID_BIND_PGTABLE`: [`BindPgtable`](super::BindPgtable).
    pub const BIND_PGTABLE: u32 = io(9);
    /// `IOASID_UNBIND_PGTABLE`: [`BindPgtable`](super::BindPgtable).
    pub const UNBIND_PGTABLE: u32 = io(10);
    /// `IOASID_BIND_PASID_TABLE`: [`BindPasidTable`](super::BindPasidTable).
    pub const BIND_PASID_TABLE: u32 = io(11);
    /// `IOASID_UNBIND_PASID_TABLE`: [`BindPasidTable`](super::BindPasidTable).
    pub const UNBIND_PASID_TABLE: u32 = io(12);
    /// `IOASID_INVALIDATE_CACHE`: [`InvalidateCache`](super::InvalidateCache).
    pub const INVALIDATE_CACHE: u32 = io(13);

    /// `IOASID_BIND_DEVICE`: [`BindDevice`](super::BindDevice).
    pub const BIND_DEVICE: u32 = io(16);
    /// `IOASID_UNBIND_DEVICE`: the device number, by value.
    pub const UNBIND_DEVICE: u32 = io(17);
    /// `IOASID_ATTACH_DEVICE`: [`AttachDevice`](super::AttachDevice).
    pub const ATTACH_DEVICE: u32 = io(18);
    /// `IOASID_DETACH_DEVICE`: [`AttachDevice`](super::AttachDevice).
    pub const DETACH_DEVICE: u32 = io(19);
    /// `IOASID_GET_DEVICE_INFO`: [`DeviceInfo`](super::DeviceInfo).
    pub const GET_DEVICE_INFO: u32 = io(20);
    /// `IOASID_GET_ERROR`: [`ErrorInfo`](super::ErrorInfo).
    pub const GET_ERROR: u32 = io(24);
    /// `IOASID_VECTOR`: [`Vector`](super::Vector).
    pub const VECTOR: u32 = io(14);
    /// `IOASID_DIRTY`: [`Dirty`](super::Dirty).
    pub const DIRTY: u32 = io(15);
    /// `IOASID_COMPLETE_FAULT`: [`CompleteFault`](super::CompleteFault).
    pub const COMPLETE_FAULT: u32 = io(21);
    /// `IOASID_SET_FAULT_EVENTFD`: an eventfd by value.
    pub const SET_FAULT_EVENTFD: u32 = io(22);
    /// `IOASID_LIST`: [`List`](super::List).
    pub const LIST: u32 = io(25);
    /// `IOASID_SIM_DMA`: [`SimDma`](super::SimDma).
    pub const SIM_DMA: u32 = io(32);

    /// `VFIO_BIND_IOASID_FD` of the proposal, on a VFIO device descriptor.
    pub const VFIO_BIND_IOASID_FD: u32 = vfio_io(22);
    /// `VFIO_UNBIND_IOASID_FD` of the proposal, on a VFIO device descriptor.
    pub const VFIO_UNBIND_IOASID_FD: u32 = vfio_io(23);
    /// `VFIO_ATTACH_IOASID` of the proposal, on a VFIO device descriptor.
    pub const VFIO_ATTACH_IOASID: u32 = vfio_io(24);
    /// `VFIO_DETACH_IOASID` of the proposal, on a VFIO device descriptor.
    pub const VFIO_DETACH_IOASID: u32 = vfio_io(25);

    /// The name of a command as the header spells it, for messages.
    pub const fn name(command: u32) -> Option<&'static str> {
        Some(match command {
            CHECK_EXTENSION => "IOASID_CHECK_EXTENSION",
            REGISTER_MEMORY => "IOASID_REGISTER_MEMORY",
            UNREGISTER_MEMORY => "IOASID_UNREGISTER_MEMORY",
            ALLOC => "IOASID_ALLOC",
            FREE => "IOASID_FREE",
            GET_INFO => "IOASID_GET_INFO",
            MAP_DMA => "IOASID_MAP_DMA",
            UNMAP_DMA => "IOASID_UNMAP_DMA",
            CREATE_NESTING => "IOASID_CREATE_NESTING",
            BIND_PGTABLE => "IOASID_BIND_PGTABLE",
            UNBIND_PGTABLE => "IOASID_UNBIND_PGTABLE",
            BIND_PASID_TABLE => "IOASID_BIND_PASID_TABLE",
            UNBIND_PASID_TABLE => "IOASID_UNBIND_PASID_TABLE",
            INVALIDATE_CACHE => "IOASID_INVALIDATE_CACHE",
            BIND_DEVICE => "IOASID_BIND_DEVICE",
            UNBIND_DEVICE => "IOASID_UNBIND_DEVICE",
            ATTACH_DEVICE => "IOASID_ATTACH_DEVICE",
            DETACH_DEVICE => "IOASID_DETACH_DEVICE",
            GET_DEVICE_INFO => "IOASID_GET_DEVICE_INFO",
            GET_ERROR => "IOASID_GET_ERROR",
            VECTOR => "IOASID_VECTOR",
            DIRTY => "IOASID_DIRTY",
            COMPLETE_FAULT => "IOASID_COMPLETE_FAULT",
            SET_FAULT_EVENTFD => "IOASID_SET_FAULT_EVENTFD",
            LIST => "IOASID_LIST",
            SIM_DMA => "IOASID_SIM_DMA",
            _ => return None,
        })
    }
}

/// The errno values of the contract, as Linux numbers them on every architecture served here.
#[allow(missing_docs)]
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EINTR: i32 = 4;
    pub const EIO: i32 = 5;
    pub const E2BIG: i32 = 7;
    pub const EBADF: i32 = 9;
    pub const EAGAIN: i32 = 11;
    pub const ENOMEM: i32 = 12;
    pub const EACCES: i32 = 13;
    pub const EFAULT: i32 = 14;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const ENODEV: i32 = 19;
    pub const EINVAL: i32 = 22;
    pub const ENOTTY: i32 = 25;
    pub const ENOSPC: i32 = 28;
    pub const EOVERFLOW: i32 = 75;
    pub const EMSGSIZE: i32 = 90;
    pub const EOPNOTSUPP: i32 = 95;
    pub const EADDRINUSE: i32 = 98;
}

/// Extension numbers of `IOASID_CHECK_EXTENSION`.
pub mod ext {
    /// `IOASID_EXT_MAP_TYPE1V2`
    pub const MAP_TYPE1V2: u64 = 1;
    /// `IOASID_EXT_NESTING`
    pub const NESTING: u64 = 2;
    /// `IOASID_EXT_USER_PAGE_TABLE`
    pub const USER_PAGE_TABLE: u64 = 3;
    /// `IOASID_EXT_USER_PASID_TABLE`
    pub const USER_PASID_TABLE: u64 = 4;
    /// `IOASID_EXT_MULTIDEV_GROUP`
    pub const MULTIDEV_GROUP: u64 = 5;
    /// `IOASID_EXT_DIRTY_TRACKING`
    pub const DIRTY_TRACKING: u64 = 6;
    /// `IOASID_EXT_REGISTER_MEMORY`
    pub const REGISTER_MEMORY: u64 = 7;
    /// `IOASID_EXT_SHARED_MEMORY`
    pub const SHARED_MEMORY: u64 = 8;
    /// `IOASID_EXT_PRIVATE_MEMORY`
    pub const PRIVATE_MEMORY: u64 = 9;
    /// `IOASID_EXT_VFIO`
    pub const VFIO: u64 = 10;
    /// `IOASID_EXT_SIMULATED`
    pub const SIMULATED: u64 = 11;
    /// `IOASID_EXT_FILE_MEMORY`
    pub const FILE_MEMORY: u64 = 12;
    /// `IOASID_EXT_VECTOR`
    pub const VECTOR: u64 = 13;
    /// `IOASID_EXT_FAULTS`
    pub const FAULTS: u64 = 14;
    /// `IOASID_EXT_RECOVERABLE_FAULTS`
    pub const RECOVERABLE_FAULTS: u64 = 15;
    /// `IOASID_EXT_SHARED_TABLE`
    pub const SHARED_TABLE: u64 = 16;
    /// `IOASID_EXT_CONTAINER`
    pub const CONTAINER: u64 = 17;
}

/// `IOASID_INFO_SIZE_VER0`, bytes
pub const INFO_SIZE_VER0: u32 = 64;
/// `IOASID_INFO_SIZE_VER1`, bytes
pub const INFO_SIZE_VER1: u32 = 104;
/// `IOASID_INFO_MAP_DMA`
pub const INFO_MAP_DMA: u32 = 1 << 0;
/// `IOASID_INFO_NESTING`
pub const INFO_NESTING: u32 = 1 << 1;
/// `IOASID_INFO_SIMULATED`
pub const INFO_SIMULATED: u32 = 1 << 2;
/// `IOASID_INFO_SHADOW`
pub const INFO_SHADOW: u32 = 1 << 3;
/// `IOASID_INFO_DIRTY`
pub const INFO_DIRTY: u32 = 1 << 4;
/// `IOASID_INFO_TRACKING`
pub const INFO_TRACKING: u32 = 1 << 5;
/// `IOASID_INFO_PASID_TABLE`
pub const INFO_PASID_TABLE: u32 = 1 << 6;
/// `IOASID_MAP_READ`
pub const MAP_READ: u32 = 1 << 0;
/// `IOASID_MAP_WRITE`
pub const MAP_WRITE: u32 = 1 << 1;
/// `IOASID_MAP_FILE`
pub const MAP_FILE: u32 = 1 << 2;
/// `IOASID_UNMAP_ALL`
pub const UNMAP_ALL: u32 = 1 << 0;
/// `IOASID_UNMAP_DIRTY`
pub const UNMAP_DIRTY: u32 = 1 << 1;
/// `IOASID_UNMAP_SIZE_VER0`, bytes
pub const UNMAP_SIZE_VER0: u32 = 32;
/// `IOASID_FORMAT_X86_4LEVEL`
pub const FORMAT_X86_4LEVEL: u32 = 1;
/// `IOASID_FORMAT_X86_5LEVEL`
pub const FORMAT_X86_5LEVEL: u32 = 2;
/// `IOASID_FORMAT_VTD_SECOND`
pub const FORMAT_VTD_SECOND: u32 = 3;
/// `IOASID_FORMAT_AMD_V1`
pub const FORMAT_AMD_V1: u32 = 4;
/// `IOASID_FORMAT_ARM_LPAE_4K`
pub const FORMAT_ARM_LPAE_4K: u32 = 5;
/// `IOASID_FORMAT_ARM_LPAE_64K`
pub const FORMAT_ARM_LPAE_64K: u32 = 6;
/// `IOASID_PASID_FORMAT_VTD`
pub const PASID_FORMAT_VTD: u32 = 1;
/// `IOASID_PASID_FORMAT_ARM_CD`
pub const PASID_FORMAT_ARM_CD: u32 = 2;
/// `IOASID_PASID_FORMAT_ARM_CD_4K`
pub const PASID_FORMAT_ARM_CD_4K: u32 = 3;
/// `IOASID_PASID_FORMAT_ARM_CD_64K`
pub const PASID_FORMAT_ARM_CD_64K: u32 = 4;
/// `IOASID_OP_MAP`
pub const OP_MAP: u32 = 1;
/// `IOASID_OP_UNMAP`
pub const OP_UNMAP: u32 = 2;
/// `IOASID_VECTOR_MAX`
pub const VECTOR_MAX: u32 = 2048;
/// `IOASID_DIRTY_START`
pub const DIRTY_START: u32 = 1 << 0;
/// `IOASID_DIRTY_STOP`
pub const DIRTY_STOP: u32 = 1 << 1;
/// `IOASID_DIRTY_READ`
pub const DIRTY_READ: u32 = 1 << 2;
/// `IOASID_DIRTY_PAGES_MAX`
pub const DIRTY_PAGES_MAX: u64 = 1 << 25;
/// `IOASID_INVALIDATE_ALL`
pub const INVALIDATE_ALL: u32 = 1 << 0;
/// `IOASID_NAME_LEN`, bytes with the terminating zero
pub const NAME_LEN: usize = 64;
/// `IOASID_BIND_VFIO_GROUP`
pub const BIND_VFIO_GROUP: u32 = 1 << 0;
/// `IOASID_BIND_SIMULATED`
pub const BIND_SIMULATED: u32 = 1 << 1;
/// `IOASID_BIND_SHARE`
pub const BIND_SHARE: u32 = 1 << 2;
/// `IOASID_BIND_SIZE_VER0`, bytes
pub const BIND_SIZE_VER0: u32 = 88;
/// `IOASID_ATTACH_USER_PASID`
pub const ATTACH_USER_PASID: u32 = 1 << 0;
/// `IOASID_DEVICE_VFIO`
pub const DEVICE_VFIO: u32 = 1 << 0;
/// `IOASID_DEVICE_SIMULATED`
pub const DEVICE_SIMULATED: u32 = 1 << 1;
/// `IOASID_DEVICE_ATTACHED`
pub const DEVICE_ATTACHED: u32 = 1 << 2;
/// `IOASID_FAULT_READ`
pub const FAULT_READ: u32 = 1 << 0;
/// `IOASID_FAULT_WRITE`
pub const FAULT_WRITE: u32 = 1 << 1;
/// `IOASID_FAULT_RECOVERABLE`
pub const FAULT_RECOVERABLE: u32 = 1 << 2;
/// `IOASID_FAULT_BEST_EFFORT`
pub const FAULT_BEST_EFFORT: u32 = 1 << 3;
/// `IOASID_FAULT_PASID`
pub const FAULT_PASID: u32 = 1 << 4;
/// `IOASID_FAULT_REASON_UNKNOWN`
pub const FAULT_REASON_UNKNOWN: u32 = 0;
/// `IOASID_FAULT_REASON_NOT_MAPPED`
pub const FAULT_REASON_NOT_MAPPED: u32 = 1;
/// `IOASID_FAULT_REASON_PERMISSION`
pub const FAULT_REASON_PERMISSION: u32 = 2;
/// `IOASID_FAULT_REASON_MEMORY`
pub const FAULT_REASON_MEMORY: u32 = 3;
/// `IOASID_FAULTS_MAX`
pub const FAULTS_MAX: u32 = 256;
/// `IOASID_RESPONSE_SUCCESS`
pub const RESPONSE_SUCCESS: u32 = 0;
/// `IOASID_RESPONSE_RETRY`
pub const RESPONSE_RETRY: u32 = 1;
/// `IOASID_RESPONSE_FAIL`
pub const RESPONSE_FAIL: u32 = 2;
/// `IOASID_ERROR_ANY_THREAD`
pub const ERROR_ANY_THREAD: u32 = 1 << 0;
/// `IOASID_LIST_IOASIDS`
pub const LIST_IOASIDS: u32 = 1 << 0;
/// `IOASID_LIST_DEVICES`
pub const LIST_DEVICES: u32 = 1 << 1;
/// `IOASID_LIST_MAPPINGS`
pub const LIST_MAPPINGS: u32 = 1 << 2;
/// `IOASID_LIST_MAX`
pub const LIST_MAX: u32 = 1024;
/// `IOASID_SIM_DMA_READ`
pub const SIM_DMA_READ: u32 = 1 << 0;
/// `IOASID_SIM_DMA_WRITE`
pub const SIM_DMA_WRITE: u32 = 1 << 1;
/// `IOASID_SIM_DMA_PASID`
pub const SIM_DMA_PASID: u32 = 1 << 2;
/// `IOASID_SIM_DMA_RECOVERABLE`
pub const SIM_DMA_RECOVERABLE: u32 = 1 << 3;
/// `IOASID_SIM_DMA_CONTINUE`
pub const SIM_DMA_CONTINUE: u32 = 1 << 4;
/// `IOASID_SIM_DMA_SIZE_VER0`, bytes
pub const SIM_DMA_SIZE_VER0: u32 = 48;
/// `IOASID_SIM_DMA_MAX`, bytes
pub const SIM_DMA_MAX: u64 = 1 << 16;
/// The longest `argsz` that is accepted, bytes; more is E2BIG whatever the tail holds.
pub const ARGSZ_MAX: u32 = 4096;

/// Defines structures of the interface: all of plain integers, without padding.
macro_rules! structures {
    ($($(#[$attr:meta])* $name:ident $c_name:literal { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$attr])*
            #[doc = concat!("\n\n`struct ", $c_name, "` of the header, which documents the fields.")]
            #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
            #[repr(C)]
            #[allow(missing_docs)]
            pub struct $name { $(pub $field: $ty,)* }

            impl Default for $name {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }

            impl $name {
                /// The name of the structure in the C header.
                pub const C_NAME: &'static str = $c_name;
                /// Each field: its name in the C header, its offset and its size in bytes.
                pub const LAYOUT: &'static [(&'static str, usize, usize)] = &[
                    $((c_field(stringify!($field)), core::mem::offset_of!($name, $field), size_of::<$ty>()),)*
                ];
                /// `argsz` of a program that was built with this version, bytes.
                pub const ARGSZ: u32 = size_of::<Self>() as u32;
            }
        )*

        /// Every structure: its name in the C header, its size and its fields.
        pub const STRUCTURES: &[Structure] =
            &[$(Structure { name: $name::C_NAME, size: size_of::<$name>(), fields: $name::LAYOUT },)*];
    };
}

/// The layout of one structure, for comparing it with the C header.
#[derive(Clone, Copy, Debug)]
pub struct Structure {
    /// Its tag in the C header.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Each field: its name in the C header, its offset and its size in bytes.
    pub fields: &'static [(&'static str, usize, usize)],
}

const fn c_field(name: &'static str) -> &'static str {
    match name.as_bytes() {
        b"reserved" => "__reserved",
        _ => name,
    }
}

structures! {
    /// Argument of `REGISTER_MEMORY` and `UNREGISTER_MEMORY`.
    RegisterMemory "ioasid_register_memory" { argsz: u32, flags: u32, vaddr: u64, size: u64, }
    /// A range of IOVAs, both ends inclusive.
    IovaRange "ioasid_iova_range" { start: u64, last: u64, }
    /// Argument of `GET_INFO`.
    Info "ioasid_info" {
        argsz: u32, flags: u32, ioasid: u32, parent: u32, pgsizes: u64, ranges: u64,
        nr_ranges: u32, nr_devices: u32, nr_children: u32, max_mappings: u32,
        nr_mappings: u64, mapped_bytes: u64, locked_bytes: u64, locked_used: u64,
        locked_limit: u64, work_done: u64, work_total: u64, formats: u64, pasid_formats: u64,
        format_addr: u64, format: u32, depth: u32,
    }
    /// Argument of `MAP_DMA`.
    MapDma "ioasid_map_dma" {
        argsz: u32, flags: u32, ioasid: u32, fd: i32, vaddr: u64, iova: u64, size: u64,
    }
    /// Argument of `UNMAP_DMA`.
    UnmapDma "ioasid_unmap_dma" {
        argsz: u32, flags: u32, ioasid: u32, reserved: u32, iova: u64, size: u64,
        page_size: u64, bitmap: u64, bitmap_size: u64,
    }
    /// Argument of `BIND_PGTABLE` and `UNBIND_PGTABLE`.
    BindPgtable "ioasid_bind_pgtable" {
        argsz: u32, flags: u32, ioasid: u32, format: u32, addr: u64, addr_width: u32, reserved: u32,
    }
    /// Argument of `BIND_PASID_TABLE` and `UNBIND_PASID_TABLE`.
    BindPasidTable "ioasid_bind_pasid_table" {
        argsz: u32, flags: u32, ioasid: u32, format: u32, addr: u64, pasid_bits: u32, reserved: u32,
    }
    /// Argument of `INVALIDATE_CACHE`.
    InvalidateCache "ioasid_invalidate_cache" {
        argsz: u32, flags: u32, ioasid: u32, reserved: u32, iova: u64, size: u64,
    }
    /// Argument of `BIND_DEVICE`.
    BindDevice "ioasid_bind_device" {
        argsz: u32, flags: u32, fd: i32, device: u32, cookie: u64, name: [u8; NAME_LEN],
        with: u32, reserved: u32,
    }
    /// One operation of `VECTOR`.
    Op "ioasid_op" {
        op: u32, flags: u32, fd: i32, reserved: u32, vaddr: u64, iova: u64, size: u64,
    }
    /// Argument of `VECTOR`.
    Vector "ioasid_vector" {
        argsz: u32, flags: u32, ioasid: u32, nr_ops: u32, ops: u64, nr_done: u32, reserved: u32,
    }
    /// Argument of `DIRTY`.
    Dirty "ioasid_dirty" {
        argsz: u32, flags: u32, ioasid: u32, reserved: u32, iova: u64, size: u64, page_size: u64,
        bitmap: u64, bitmap_size: u64,
    }
    /// Argument of `LIST`.
    List "ioasid_list" { argsz: u32, flags: u32, ioasid: u32, nr: u32, start: u64, items: u64, }
    /// An item of `LIST_MAPPINGS`.
    Mapping "ioasid_mapping" { iova: u64, size: u64, vaddr: u64, flags: u32, reserved: u32, }
    /// What `read` of the node gives.
    Fault "ioasid_fault" {
        flags: u32, ioasid: u32, address: u64, cookie: u64, device: u32, reason: u32, id: u32,
        pasid: u32, lost: u32, reserved: u32,
    }
    /// Argument of `COMPLETE_FAULT`.
    CompleteFault "ioasid_complete_fault" { argsz: u32, flags: u32, id: u32, response: u32, }
    /// Argument of `ATTACH_DEVICE` and `DETACH_DEVICE`.
    AttachDevice "ioasid_attach_device" {
        argsz: u32, flags: u32, device: u32, ioasid: u32, user_pasid: u32, reserved: u32,
    }
    /// Argument of `GET_DEVICE_INFO`.
    DeviceInfo "ioasid_device_info" {
        argsz: u32, flags: u32, device: u32, group: u32, ioasid: u32, max_mappings: u32,
        cookie: u64, pgsizes: u64, aperture_start: u64, aperture_last: u64, name: [u8; NAME_LEN],
    }
    /// Argument of `GET_ERROR`.
    ErrorInfo "ioasid_error" {
        argsz: u32, flags: u32, command: u32, error: u32, text: u64, text_len: u32, reserved: u32,
    }
    /// Argument of `SIM_DMA`.
    SimDma "ioasid_sim_dma" {
        argsz: u32, flags: u32, device: u32, reserved: u32, iova: u64, data: u64, size: u64, done: u64,
        pasid: u32, fault: u32,
    }
    /// Argument of the proposal's `VFIO_ATTACH_IOASID` and `VFIO_DETACH_IOASID`.
    VfioAttachIoasid "vfio_attach_ioasid" { argsz: u32, flag: u32, ioasid: u32, user_pasid: u32, }
}

//! The ioctls of the node.
//!
//! What this module owns is the argument why each call touches no memory but what it was lent. A
//! command reads and writes (1) the structure that its argument points to, of the size that the
//! contract gives it, and (2) for some commands, a buffer whose address and size the structure names.
//! (1) is tied to the type by [`Argument`]. A command with (2) needs a function of its own, such as
//! [`get_error`], which fills in address and size from a slice that it holds for the whole call. A
//! descriptor that is not `/dev/ioasid` changes nothing in this: the numbers are answered with ENOTTY
//! by all other drivers, among them VFIO and iommufd, which share the ioctl type.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;

use ioasid_uapi::{
    AttachDevice, BindDevice, BindPasidTable, BindPgtable, CompleteFault, DeviceInfo, ErrorInfo,
    InvalidateCache, MapDma, RegisterMemory, cmd,
};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use zerocopy::{FromBytes, IntoBytes};

/// A structure that some commands take.
///
/// # Safety
///
/// Each of `COMMANDS` must read and write no memory of the calling process except the structure
/// itself, within its size.
pub unsafe trait Argument: FromBytes + IntoBytes {
    /// The commands that take it.
    const COMMANDS: &'static [u32];
}

macro_rules! arguments {
    ($($structure:ty: $($command:ident)*;)*) => {
        // SAFETY: the header gives these commands this structure, and none of them has an output
        // that is written elsewhere.
        $(unsafe impl Argument for $structure {
            const COMMANDS: &'static [u32] = &[$(cmd::$command),*];
        })*
    };
}

arguments! {
    RegisterMemory: REGISTER_MEMORY UNREGISTER_MEMORY;
    MapDma: MAP_DMA;
    BindPgtable: BIND_PGTABLE UNBIND_PGTABLE;
    BindPasidTable: BIND_PASID_TABLE UNBIND_PASID_TABLE;
    InvalidateCache: INVALIDATE_CACHE;
    BindDevice: BIND_DEVICE;
    AttachDevice: ATTACH_DEVICE DETACH_DEVICE;
    DeviceInfo: GET_DEVICE_INFO;
    CompleteFault: COMPLETE_FAULT;
}

/// The commands whose argument is a number.
pub const BY_VALUE: &[u32] = &[
    cmd::CHECK_EXTENSION,
    cmd::ALLOC,
    cmd::FREE,
    cmd::CREATE_NESTING,
    cmd::UNBIND_DEVICE,
    cmd::SET_FAULT_EVENTFD,
];

/// Makes a command that takes a number.
///
/// # Errors
/// Those of the command.
///
/// # Panics
/// If the command is none of [`BY_VALUE`].
pub fn by_value(fd: BorrowedFd<'_>, command: u32, value: u64) -> Result<u32, Errno> {
    assert!(BY_VALUE.contains(&command), "command {command:#x} takes no number");
    // SAFETY: these commands do not take their argument for an address.
    unsafe { ioctl(fd, command, ptr::without_provenance_mut(value as usize)) }
}

/// Makes a command that takes a structure; its outputs are in `argument` afterwards.
///
/// # Errors
/// Those of the command.
///
/// # Panics
/// If the command takes another structure.
pub fn structure<T: Argument>(
    fd: BorrowedFd<'_>,
    command: u32,
    argument: &mut T,
) -> Result<u32, Errno> {
    assert!(T::COMMANDS.contains(&command), "command {command:#x} takes another structure");
    // SAFETY: `Argument` says that the command stays within the structure, which is lent to
    // this call mutably and may hold any bytes afterwards (FromBytes).
    unsafe { ioctl(fd, command, ptr::from_mut(argument).cast()) }
}

/// GET_ERROR, with room for `text`; sets the fields `text` and `text_len`.
///
/// # Errors
/// Those of the command.
pub fn get_error(fd: BorrowedFd<'_>, error: &mut ErrorInfo, text: &mut [u8]) -> Result<u32, Errno> {
    error.text = address(text);
    error.text_len = text.len() as u32;
    // SAFETY: the command writes the structure and at most `text_len` bytes at `text`; both are
    // lent to this call mutably.
    unsafe { ioctl(fd, cmd::GET_ERROR, ptr::from_mut(error).cast()) }
}

/// The last failure that the node remembers.
#[derive(Debug)]
pub struct LastError {
    /// The ioctl number.
    pub command: u32,
    /// What it gave.
    pub errno: Errno,
    /// Why.
    pub text: String,
}

/// GET_ERROR with as much room as it takes; `flags` are its own.
///
/// # Errors
/// Those of the command; ENOENT if nothing has failed.
pub fn last_error(fd: BorrowedFd<'_>, flags: u32) -> Result<LastError, Errno> {
    let mut text = vec![0; 256];
    loop {
        let mut error = ErrorInfo { argsz: ErrorInfo::ARGSZ, flags, ..ErrorInfo::default() };
        match get_error(fd, &mut error, &mut text) {
            Ok(_) => {
                let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
                return Ok(LastError {
                    command: error.command,
                    errno: Errno::from_raw_os_error(error.error as i32),
                    text: String::from_utf8_lossy(&text[..end]).into_owned(),
                });
            }
            Err(Errno::MSGSIZE) if error.text_len as usize > text.len() => {
                text.resize(error.text_len as usize, 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// The address of a buffer for a field of a structure; 0 for an empty one.
pub fn address<T>(slice: &mut [T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_mut_ptr().expose_provenance() as u64 }
}

/// An ioctl whose number and argument are known only at run time.
struct Call {
    command: u32,
    argument: *mut c_void,
}

// SAFETY: the opcode is what the caller of `ioctl` below vouches for; the call may change memory,
// so IS_MUTATING is true; the output is the return value, and nothing is read through the pointer.
unsafe impl Ioctl for Call {
    type Output = u32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.command as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        Ok(out as u32)
    }
}

/// Makes any ioctl whose result is a number.
///
/// # Errors
/// Those of the command.
///
/// # Safety
///
/// The command may read and write only memory that the caller lends it, given this argument.
pub unsafe fn ioctl(fd: BorrowedFd<'_>, command: u32, argument: *mut c_void) -> Result<u32, Errno> {
    // SAFETY: the caller's promise, and see `impl Ioctl for Call`.
    unsafe { rustix::ioctl::ioctl(fd, Call { command, argument }) }
}

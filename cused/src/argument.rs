//! The argument of one ioctl: reading it from the caller and writing results back.
//!
//! Two ways, behind one interface. *Direct*: the caller's memory is read and written while it
//! waits, so that a command takes one round trip. *Retry*: the kernel copies. The handler runs,
//! finds that it lacks an input or the room for an output, and the request is answered with the
//! list of what it wants; the kernel gathers that and sends the request again, and the handler
//! runs from its start. So a handler must read all its inputs and reserve all its outputs
//! before it changes anything. Retry is the fallback where the caller cannot be reached (it
//! lives outside the daemon's pid namespace), and only CUSE offers it.

use cuse_channel::{Interrupt, IoVec};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::caller::Tid;
use crate::failure::Failure;
use crate::stages::Stages;

/// How the memory of callers is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Directly where possible, else by retry.
    #[default]
    Direct,
    /// Always by retry: for measuring it, and for its tests.
    Retry,
}

/// Why a handler stops before it has done anything.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// The request is refused.
    Refuse(Failure),
    /// The kernel must gather more of the caller's memory first: see [`CallerMemory::wanted`].
    Retry,
    /// A signal waits for the caller, and nothing has been done: once it is handled, the kernel
    /// makes the call anew.
    Restart,
    /// The caller has its answer already: see [`stages`](crate::stages).
    Abandoned,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Refuse(failure)
    }
}

impl From<ioasid::Error> for Stop {
    fn from(error: ioasid::Error) -> Self {
        Self::Refuse(error.into())
    }
}

/// A place in the caller's memory whose bytes will be written when the request succeeds.
#[derive(Clone, Copy, Debug)]
pub struct Output(usize);

/// The memory of the caller of one request.
pub struct CallerMemory<'a> {
    stages: &'a Stages,
    unique: u64,
    interrupt: &'a Interrupt,
    tid: Option<Tid>,
    by_retry: bool,
    can_retry: bool,
    gathered: &'a [u8],
    output_room: usize,
    inputs: Vec<IoVec>,
    outputs: Vec<IoVec>,
    written: Vec<u8>,
    /// All outputs that were to be checked could be.
    is_checked: bool,
}

impl<'a> CallerMemory<'a> {
    /// The memory behind `request`.
    pub fn new(request: &cuse_channel::Ioctl<'a>, access: Access, stages: &'a Stages) -> Self {
        let tid = Tid::new(request.caller.tid);
        let repeated = !request.input.is_empty() || request.output_size > 0;
        let by_retry =
            request.unrestricted && (repeated || tid.is_none() || access == Access::Retry);
        Self {
            stages,
            unique: request.unique,
            interrupt: request.interrupt,
            tid,
            by_retry,
            can_retry: request.unrestricted,
            gathered: request.input,
            output_room: request.output_size,
            inputs: Vec::new(),
            outputs: Vec::new(),
            written: Vec::new(),
            is_checked: true,
        }
    }

    /// Does something that may have to wait for the caller, or for what it has mapped: it is given up
    /// when the caller gets a signal.
    ///
    /// # Errors
    /// As for [`Stages::reading`].
    pub fn reading<T>(&self, read: impl FnOnce() -> T) -> Result<T, Stop> {
        self.stages.reading(self.unique, self.interrupt, read)
    }

    /// The calling thread, if it can be named.
    pub fn tid(&self) -> Option<Tid> {
        self.tid
    }

    /// What the kernel shall gather after [`Stop::Retry`]: inputs and outputs.
    pub fn wanted(self) -> (Vec<IoVec>, Vec<IoVec>) {
        (self.inputs, self.outputs)
    }

    /// What the kernel shall copy to the caller with the answer.
    pub fn into_output(self) -> Vec<u8> {
        self.written
    }

    /// Reads `buffer.len()` bytes at `address`.
    ///
    /// # Errors
    /// EFAULT when any of them cannot be read.
    pub fn read(&mut self, address: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        self.read_some(address, buffer, buffer.len()).map(drop)
    }

    /// Reads as much of `buffer` as can be read, but at least `least` bytes of it. Returns how
    /// much was read.
    fn read_some(&mut self, address: u64, buffer: &mut [u8], least: usize) -> Result<usize, Stop> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if !self.by_retry {
            let result = match self.tid {
                Some(tid) => self
                    .stages
                    .reading(self.unique, self.interrupt, || tid.read(address, buffer))?,
                None => Err(Errno::PERM),
            };
            match result {
                Ok(read) if read >= least => return Ok(read),
                Ok(_) | Err(Errno::FAULT) => return Err(unreadable(address, buffer.len())),
                Err(_) if self.can_retry => self.by_retry = true,
                Err(error) => return Err(unreachable_caller(error)),
            }
        }
        self.inputs.push(IoVec { base: address, len: buffer.len() as u64 });
        match self.gathered.split_at_checked(buffer.len()) {
            Some((bytes, rest)) => {
                buffer.copy_from_slice(bytes);
                self.gathered = rest;
                Ok(bytes.len())
            }
            None => {
                self.gathered = &[];
                Err(Stop::Retry)
            }
        }
    }

    /// Sets `len` bytes at `address` aside for a result. The caller's memory is written only by
    /// [`write`](Self::write).
    pub fn reserve(&mut self, address: u64, len: usize) -> Output {
        self.outputs.push(IoVec { base: address, len: len as u64 });
        Output(self.outputs.len() - 1)
    }

    /// To be called once all inputs were read and all outputs reserved.
    ///
    /// # Errors
    /// [`Stop::Retry`] when the kernel has not made room for the outputs yet.
    pub fn ready(&mut self) -> Result<(), Stop> {
        let room: u64 = self.outputs.iter().map(|output| output.len).sum();
        match self.by_retry && room > self.output_room as u64 {
            true => Err(Stop::Retry),
            false => Ok(()),
        }
    }

    /// Checks that an output can be written, by writing to it what it holds: for commands that
    /// change something and then report it, so that a bad pointer is noticed before the change.
    /// By retry too, where the kernel copies after the answer, if the caller can be reached; if not,
    /// nobody can tell: see [`is_checked`](Self::is_checked).
    ///
    /// # Errors
    /// EFAULT.
    pub fn check_writable(&mut self, output: Output, holds: &[u8]) -> Result<(), Failure> {
        let address = self.outputs[output.0].base;
        match self.tid.ok_or(Errno::PERM).and_then(|tid| tid.write(address, holds)) {
            Ok(()) => Ok(()),
            Err(error) if self.by_retry && error != Errno::FAULT => {
                self.is_checked = false;
                Ok(())
            }
            Err(_) => Err(unwritable(address, holds)),
        }
    }

    /// Whether every output that was to be checked could be. If not, it is never known whether it
    /// has reached the caller.
    pub fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// Checks that an output that holds nothing yet can be written, by writing zeroes.
    ///
    /// # Errors
    /// EFAULT.
    pub fn check_output(&mut self, output: Output) -> Result<(), Failure> {
        let len = self.outputs[output.0].len;
        self.check_writable(output, &vec![0; len as usize])
    }

    fn write_directly(&self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.tid.ok_or(Errno::FAULT).and_then(|tid| tid.write(address, bytes));
        written.map_err(|_| unwritable(address, bytes))
    }

    /// Writes a result. Outputs are written in the order in which they were reserved; each once.
    ///
    /// # Errors
    /// EFAULT when the caller's memory cannot be written.
    pub fn write(&mut self, output: Output, bytes: &[u8]) -> Result<(), Failure> {
        let IoVec { base, len } = self.outputs[output.0];
        debug_assert!(bytes.len() as u64 <= len);
        if bytes.is_empty() {
            return Ok(());
        }
        if self.by_retry {
            let start: u64 = self.outputs[..output.0].iter().map(|output| output.len).sum();
            self.written.resize(start as usize, 0);
            self.written.extend_from_slice(bytes);
            return Ok(());
        }
        self.write_directly(base, bytes)
    }

    /// Reads a structure that begins with `argsz`, by the rules of the header: shorter than the
    /// structure is EINVAL; longer is fine while the tail is zero.
    pub fn structure<T>(&mut self, address: u64) -> Result<T, Stop>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.structure_of(address, &[])
    }

    /// Reads a structure that has grown, and may also have one of its `former` sizes; what is
    /// beyond that is zero.
    fn structure_of<T>(&mut self, address: u64, former: &[u32]) -> Result<T, Stop>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let mut value = T::new_zeroed();
        let size = size_of::<T>();
        // The kernel gathers all that it is asked for or nothing.
        let smallest = former.iter().min().filter(|_| self.by_retry);
        let first = smallest.map_or(size, |&smallest| smallest as usize);
        // A structure that the program has cut short may end where its memory does.
        let buffer = &mut value.as_mut_bytes()[..first];
        let mut read = self.read_some(address, buffer, size_of::<u32>())?;
        let argsz = value.as_bytes().first_chunk().map_or(0, |first| u32::from_ne_bytes(*first));
        if former.contains(&argsz) {
            let known = argsz as usize;
            if read < known {
                return Err(unreadable(address, known));
            }
            value.as_mut_bytes()[known..].fill(0);
            return Ok(value);
        }
        if first < size && argsz as usize >= size {
            let behind = address.checked_add(first as u64).ok_or(unreadable(address, size))?;
            self.read(behind, &mut value.as_mut_bytes()[first..])?;
            read = size;
        }
        if (argsz as usize) < size {
            return Err(Failure::invalid(format!(
                "argsz is {argsz}, but the structure has {size} bytes: set it to sizeof the structure"
            ))
            .into());
        }
        if read < size {
            return Err(unreadable(address, size));
        }
        if argsz as usize > size {
            self.check_tail(address, size, argsz)?;
        }
        Ok(value)
    }

    /// Reads a structure that the command also writes results into.
    ///
    /// # Errors
    /// As for [`structure`](Self::structure).
    pub fn exchange<T>(&mut self, address: u64) -> Result<(T, Output), Stop>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.exchange_of(address, &[])
    }

    /// As [`exchange`](Self::exchange), for a structure that had the sizes `former` before. Of a
    /// shorter one no more than its size must be written.
    pub fn exchange_of<T>(&mut self, address: u64, former: &[u32]) -> Result<(T, Output), Stop>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        if former.is_empty() {
            // Reserved first, so that by retry one more round gathers the input and makes the room.
            let output = self.reserve(address, size_of::<T>());
            return Ok((self.structure(address)?, output));
        }
        let value: T = self.structure_of(address, former)?;
        let argsz = value.as_bytes().first_chunk().map_or(0, |first| u32::from_ne_bytes(*first));
        let output = self.reserve(address, size_of::<T>().min(argsz as usize));
        Ok((value, output))
    }

    fn check_tail(&mut self, address: u64, size: usize, argsz: u32) -> Result<(), Stop> {
        if argsz > ioasid_uapi::ARGSZ_MAX {
            return Err(Failure::new(
                Errno::TOOBIG,
                format!(
                    "argsz is {argsz}, more than the {} that any structure may have",
                    ioasid_uapi::ARGSZ_MAX
                ),
            )
            .into());
        }
        let mut tail = [0; ioasid_uapi::ARGSZ_MAX as usize];
        let tail = &mut tail[..argsz as usize - size];
        let behind = address.checked_add(size as u64).ok_or(unreadable(address, size))?;
        self.read(behind, tail)?;
        match tail.iter().position(|&byte| byte != 0) {
            None => Ok(()),
            Some(at) => Err(Failure::new(
                Errno::TOOBIG,
                format!(
                    "argsz is {argsz} and byte {} is not zero, but this version knows only the first {size} bytes",
                    size + at
                ),
            )
            .into()),
        }
    }
}

fn unreadable(address: u64, len: usize) -> Stop {
    let sentence = format!("the {len} bytes at {address:#x} of the program cannot be read");
    Failure::new(Errno::FAULT, sentence).into()
}

fn unwritable(address: u64, bytes: &[u8]) -> Failure {
    let len = bytes.len();
    let sentence = format!("the {len} bytes at {address:#x} of the program cannot be written");
    Failure::new(Errno::FAULT, sentence)
}

fn unreachable_caller(error: Errno) -> Stop {
    Failure::new(
        Errno::FAULT,
        format!(
            "the memory of the program cannot be reached ({error}): it runs outside the daemon's \
             pid namespace, or the daemon may not trace it"
        ),
    )
    .into()
}

#[cfg(test)]
mod tests {
    use cuse_channel::{Caller, Ioctl, Responder};
    use ioasid_uapi::UnmapDma;

    use super::*;

    const ADDRESS: u64 = 0x1000;

    /// Has `use_memory` use the memory of a call by RETRY in which the kernel has gathered `input`.
    fn by_retry<T>(
        input: &[u8],
        output_size: usize,
        use_memory: impl FnOnce(&mut CallerMemory<'_>) -> T,
    ) -> (T, Vec<IoVec>, Vec<IoVec>) {
        let (interrupt, responder, stages) =
            (Interrupt::new(), Responder::detached(), Stages::default());
        let call = Ioctl::detached(0, ADDRESS, &interrupt, &responder);
        let request = Ioctl { unrestricted: true, input, output_size, ..call };
        let mut memory = CallerMemory::new(&request, Access::Retry, &stages);
        let result = use_memory(&mut memory);
        let (inputs, outputs) = memory.wanted();
        (result, inputs, outputs)
    }

    /// Reads a structure of this process itself, directly.
    fn directly(address: u64) -> Result<UnmapDma, Stop> {
        let (interrupt, responder, stages) =
            (Interrupt::new(), Responder::detached(), Stages::default());
        let caller = Caller { tid: std::process::id(), ..Caller::default() };
        let request = Ioctl { caller, ..Ioctl::detached(0, address, &interrupt, &responder) };
        CallerMemory::new(&request, Access::Direct, &stages).structure(address)
    }

    fn errno<T: std::fmt::Debug>(result: Result<T, Stop>) -> Errno {
        match result {
            Err(Stop::Refuse(failure)) => failure.errno,
            other => panic!("{other:?}"),
        }
    }

    const SIZE: u64 = UnmapDma::ARGSZ as u64;

    #[test]
    fn by_retry_one_more_round_gathers_the_input_and_makes_room_for_the_output() {
        let exchange = |memory: &mut CallerMemory<'_>| {
            let (unmap, output) = memory.exchange::<UnmapDma>(ADDRESS)?;
            memory.ready()?;
            memory.write(output, unmap.as_bytes())?;
            Ok(unmap)
        };
        let (result, inputs, outputs) = by_retry(&[], 0, exchange);
        assert_eq!(result, Err(Stop::Retry));
        assert_eq!(inputs, [IoVec { base: ADDRESS, len: SIZE }]);
        assert_eq!(outputs, inputs);
        let sent = UnmapDma { argsz: UnmapDma::ARGSZ, size: 7, ..UnmapDma::default() };
        let (result, ..) = by_retry(sent.as_bytes(), SIZE as usize, exchange);
        assert_eq!(result, Ok(sent));
    }

    #[test]
    fn by_retry_a_longer_structure_takes_another_round_for_its_tail() {
        let read = |memory: &mut CallerMemory<'_>| memory.structure::<UnmapDma>(ADDRESS);
        let sent = UnmapDma { argsz: UnmapDma::ARGSZ + 4, ..UnmapDma::default() };
        let (result, inputs, _) = by_retry(sent.as_bytes(), 0, read);
        assert_eq!(result, Err(Stop::Retry));
        assert_eq!(inputs[1], IoVec { base: ADDRESS + SIZE, len: 4 });
        let with_tail = |tail: [u8; 4]| [sent.as_bytes(), &tail].concat();
        assert_eq!(by_retry(&with_tail([0; 4]), 0, read).0, Ok(sent));
        assert_eq!(errno(by_retry(&with_tail([0, 0, 0, 1]), 0, read).0), Errno::TOOBIG);
    }

    #[test]
    fn by_retry_an_output_is_checked_if_the_caller_can_be_reached() {
        let (interrupt, responder, stages) =
            (Interrupt::new(), Responder::detached(), Stages::default());
        let checked = |tid, address| {
            let caller = Caller { tid, ..Caller::default() };
            let call = Ioctl::detached(0, address, &interrupt, &responder);
            let request = Ioctl { caller, unrestricted: true, ..call };
            let mut memory = CallerMemory::new(&request, Access::Retry, &stages);
            let output = memory.reserve(address, 8);
            let result = memory.check_output(output).map_err(|failure| failure.errno);
            (result, memory.is_checked())
        };
        let place = std::sync::atomic::AtomicU64::new(1);
        let address = place.as_ptr().addr() as u64;
        assert_eq!(checked(std::process::id(), address), (Ok(()), true));
        assert_eq!(place.into_inner(), 0);
        // Code can be read.
        let code = (errno::<()> as *const ()).addr() as u64;
        assert_eq!(checked(std::process::id(), code).0, Err(Errno::FAULT));
        assert_eq!(checked(0, address), (Ok(()), false));
    }

    #[test]
    fn directly_argsz_decides_what_the_structure_is() {
        let structure = |argsz| UnmapDma { argsz, ..UnmapDma::default() };
        let address = |structure: &UnmapDma| std::ptr::from_ref(structure).addr() as u64;
        let good = structure(UnmapDma::ARGSZ);
        assert_eq!(directly(address(&good)), Ok(good));
        let short = structure(UnmapDma::ARGSZ - 1);
        assert_eq!(errno(directly(address(&short))), Errno::INVAL);
        let long = structure(ioasid_uapi::ARGSZ_MAX + 1);
        assert_eq!(errno(directly(address(&long))), Errno::TOOBIG);
        assert_eq!(errno(directly(0)), Errno::FAULT);
    }
}

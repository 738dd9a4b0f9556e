//! The other side: a process that uses the node as told, line by line.
//!
//! It is this same program, started again with a variable set. Each line of its input is a call,
//! each line of its output that call's result: `ok VALUE [HEX]` or `err ERRNO`.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::lab::PATIENCE;

const WANTED: &str = "CUSE_CHANNEL_TEST_CLIENT";

pub(crate) fn is_wanted() -> bool {
    std::env::var_os(WANTED).is_some()
}

/// A caller.
pub(crate) struct Client {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
}

/// Result of a call: a value and data, or an errno.
pub(crate) type Outcome = Result<(i64, Vec<u8>), i32>;

impl Client {
    pub(crate) fn new() -> Self {
        Self::started_by(Command::new(std::env::current_exe().unwrap()))
    }

    /// A caller that is user `uid` and nobody's group member.
    pub(crate) fn of_user(uid: u32) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.uid(uid).gid(uid);
        Self::started_by(command)
    }

    fn started_by(mut command: Command) -> Self {
        command.env(WANTED, "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { input: child.stdin.take(), child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Begins a call without waiting for its result.
    pub(crate) fn begin(&mut self, line: impl AsRef<str>) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{}", line.as_ref()).unwrap();
    }

    /// Whether the call begun last has ended after `time`.
    pub(crate) fn ends_within(&mut self, time: Duration) -> Option<Outcome> {
        match self.output.recv_timeout(time) {
            Ok(line) => Some(parse(&line)),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the client is gone"),
        }
    }

    pub(crate) fn result(&mut self) -> Outcome {
        self.ends_within(PATIENCE).expect("the call did not end")
    }

    pub(crate) fn call(&mut self, line: impl AsRef<str>) -> Outcome {
        self.begin(line);
        self.result()
    }

    /// A call whose result is a value only.
    pub(crate) fn value(&mut self, line: impl AsRef<str>) -> Result<i64, i32> {
        self.call(line).map(|(value, _)| value)
    }

    /// Opens the node for reading and writing.
    pub(crate) fn open(&mut self, path: &std::path::Path) -> i64 {
        self.value(format!("open {} {}", path.display(), libc::O_RDWR)).unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Waits until the process is gone.
    pub(crate) fn is_gone_within(&mut self, time: Duration) -> bool {
        let begun = std::time::Instant::now();
        while begun.elapsed() < time {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Lets it end by itself, closing what it has open.
    pub(crate) fn finish(mut self) {
        self.input = None;
        assert!(self.is_gone_within(PATIENCE), "the client does not end");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not waited for without end: a caller whose request is unanswered cannot be killed.
        let _ = self.is_gone_within(Duration::from_secs(1));
    }
}

fn parse(line: &str) -> Outcome {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["ok", value] => Ok((value.parse().unwrap(), Vec::new())),
        ["ok", value, hex] => Ok((value.parse().unwrap(), from_hex(hex))),
        ["err", errno] => Err(errno.parse().unwrap()),
        _ => panic!("unexpected result: {line}"),
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Below runs in the child.

pub(crate) fn run() {
    let mut memory = Memory::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let result = act(&words, &mut memory);
        let mut output = std::io::stdout().lock();
        match result {
            Ok((value, data)) => writeln!(output, "ok {value} {}", to_hex(&data)).unwrap(),
            Err(errno) => writeln!(output, "err {errno}").unwrap(),
        }
        output.flush().unwrap();
    }
}

fn act(words: &[&str], memory: &mut Memory) -> Outcome {
    let number = |word: &str| word.parse::<u64>().unwrap();
    let int = |word: &str| word.parse::<libc::c_int>().unwrap();
    match *words {
        ["open", path, flags] => {
            let path = CString::new(path).unwrap();
            // SAFETY: a terminated string.
            value(unsafe { libc::open(path.as_ptr(), int(flags) | libc::O_CLOEXEC) }.into())
        }
        // SAFETY: a number of the test's choice; nothing else in this process uses it.
        ["close", fd] => value(unsafe { libc::close(int(fd)) }.into()),
        ["dup", fd] => {
            // SAFETY: as above.
            value(unsafe { libc::dup(int(fd)) }.into())
        }
        ["ioctl", fd, command, argument] => ioctl(int(fd), number(command), number(argument)),
        ["ioctl32", fd, command, argument] => ioctl32(int(fd), number(command), number(argument)),
        // The argument is the address of a place with the given bytes, in the low 4 GiB.
        [call @ ("data" | "data32"), fd, command, hex] => {
            let size = memory.put(&from_hex(hex));
            let function = if call == "data" { ioctl } else { ioctl32 };
            let (value, _) = function(int(fd), number(command), memory.address())?;
            Ok((value, memory.take(size)))
        }
        // As data, for a place of which the first words are the address and size of a second place.
        [call @ ("indirect" | "indirect32"), fd, command, hex] => {
            let inner = from_hex(hex);
            let mut outer = (memory.address() + 64).to_ne_bytes().to_vec();
            outer.extend((inner.len() as u64).to_ne_bytes());
            outer.resize(64, 0);
            outer.extend(&inner);
            let size = memory.put(&outer);
            let function = if call == "indirect" { ioctl } else { ioctl32 };
            let (value, _) = function(int(fd), number(command), memory.address())?;
            Ok((value, memory.take(size)[64..].to_vec()))
        }
        // The same ioctl on each of several files, all at the same time: how many returned what.
        ["burst", command, argument, ref files @ ..] => {
            let (command, argument) = (number(command), number(argument));
            Ok(at_once(files.iter().map(|fd| {
                let fd = int(fd);
                move || ioctl(fd, command, argument)
            })))
        }
        // As many reads at the same time: likewise.
        ["reads", fd, count] => {
            let fd = int(fd);
            Ok(at_once((0..number(count)).map(|_| move || read(fd, 1))))
        }
        ["repeat", fd, command, argument, count] => {
            for _ in 0..number(count) {
                ioctl(int(fd), number(command), number(argument))?;
            }
            Ok((number(count) as i64, Vec::new()))
        }
        ["poll", fd, events, timeout] => {
            let mut poll =
                libc::pollfd { fd: int(fd), events: events.parse().unwrap(), revents: 0 };
            // SAFETY: one valid structure.
            let ready = unsafe { libc::poll(&raw mut poll, 1, int(timeout)) };
            value(ready.into())?;
            Ok((i64::from(poll.revents), Vec::new()))
        }
        ["read", fd, size] => read(int(fd), number(size) as usize),
        ["write", fd, hex] => {
            let data = from_hex(hex);
            // SAFETY: the data is of that size.
            value(unsafe { libc::write(int(fd), data.as_ptr().cast(), data.len()) } as i64)
        }
        ["truncate", path, size] => {
            let path = CString::new(path).unwrap();
            // SAFETY: a terminated string.
            value(unsafe { libc::truncate(path.as_ptr(), number(size) as i64) }.into())
        }
        // A signal with a handler after some milliseconds, and every so many, if not 0.
        ["alarm", first, interval, restart] => alarm(number(first), number(interval), restart),
        ["tid"] => Ok((i64::from(rustix::thread::gettid().as_raw_nonzero().get()), Vec::new())),
        _ => panic!("unknown call {words:?}"),
    }
}

/// Makes all calls in threads of their own. Gives pairs of a result, as one byte, and its count.
fn at_once<C>(calls: impl Iterator<Item = C>) -> (i64, Vec<u8>)
where
    C: FnOnce() -> Outcome + Send + 'static,
{
    let calls: Vec<_> = calls.map(std::thread::spawn).collect();
    let mut counts = HashMap::<i64, u8>::new();
    for call in calls {
        let result = call.join().unwrap().map_or_else(|errno| -i64::from(errno), |v| v.0);
        *counts.entry(result).or_default() += 1;
    }
    let mut pairs: Vec<_> = counts.into_iter().collect();
    pairs.sort_unstable();
    (0, pairs.into_iter().flat_map(|(result, n)| [result as i8 as u8, n]).collect())
}

fn read(fd: libc::c_int, size: usize) -> Outcome {
    let mut buffer = vec![0u8; size];
    // SAFETY: the buffer is of that size.
    let count = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    let (count, _) = value(count as i64)?;
    buffer.truncate(count as usize);
    Ok((count, buffer))
}

fn value(result: i64) -> Outcome {
    if result < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
    }
    Ok((result, Vec::new()))
}

fn ioctl(fd: libc::c_int, command: u64, argument: u64) -> Outcome {
    // SAFETY: the memory that the argument may point to is made by `Memory` and large enough.
    value(unsafe { libc::ioctl(fd, command as libc::Ioctl, argument) }.into())
}

/// ioctl(2) as a 32-bit program calls it.
#[cfg(target_arch = "x86_64")]
fn ioctl32(fd: libc::c_int, command: u64, argument: u64) -> Outcome {
    let result: u64;
    // SAFETY: i386's ioctl(2) is number 54, arguments in ebx, ecx, edx. rbx is restored because the
    // compiler keeps it for itself; the gate may clobber r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {fd}",
            "int 0x80",
            "xchg rbx, {fd}",
            fd = inout(reg) u64::from(fd as u32) => _,
            inlateout("rax") 54u64 => result,
            in("rcx") command & 0xffff_ffff,
            in("rdx") argument & 0xffff_ffff,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    match i64::from(result as u32 as i32) {
        error @ -4095..=-1 => Err(-error as i32),
        result => Ok((result, Vec::new())),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn ioctl32(_fd: libc::c_int, _command: u64, _argument: u64) -> Outcome {
    Err(libc::ENOSYS)
}

extern "C" fn nothing(_signal: libc::c_int) {}

fn alarm(first: u64, interval: u64, restart: &str) -> Outcome {
    let time = |milliseconds: u64| libc::timeval {
        tv_sec: (milliseconds / 1000) as i64,
        tv_usec: (milliseconds % 1000 * 1000) as i64,
    };
    let timer = libc::itimerval { it_interval: time(interval), it_value: time(first) };
    // SAFETY: the handler does nothing; an action and a timer of all zeroes are valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = if restart == "restart" { libc::SA_RESTART } else { 0 };
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        value(libc::syscall(
            libc::SYS_setitimer,
            libc::ITIMER_REAL,
            &raw const timer,
            std::ptr::null_mut::<libc::itimerval>(),
        ))
    }
}

/// A page that a 32-bit pointer can point to.
struct Memory {
    page: *mut u8,
}

const MEMORY_SIZE: usize = 256 * 1024;

impl Memory {
    fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        let low = libc::MAP_32BIT;
        #[cfg(not(target_arch = "x86_64"))]
        let low = 0;
        // SAFETY: a fresh anonymous mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | low,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        Self { page: page.cast() }
    }

    fn address(&self) -> u64 {
        self.page.addr() as u64
    }

    fn put(&mut self, data: &[u8]) -> usize {
        assert!(data.len() <= MEMORY_SIZE);
        // SAFETY: within the mapping, which only this thread uses.
        unsafe { self.page.copy_from(data.as_ptr(), data.len()) };
        data.len()
    }

    fn take(&self, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        // SAFETY: as above.
        unsafe { self.page.copy_to(data.as_mut_ptr(), size) };
        data
    }
}

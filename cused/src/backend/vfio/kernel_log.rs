//! Unrecoverable DMA faults of real devices, as far as the kernel's log tells of them.
//!
//! VFIO type1 reports no faults: what a device was refused is written to the kernel's log and to
//! nowhere else. It is a hint and not an event source. The kernel limits the rate of these
//! messages (VT-d: three single faults, then none until 5 s after the first), the address may be
//! that of the page only (VT-d), and behind a PCIe-to-PCI bridge the device is an alias.
//!
//! This module owns the messages' formats, the records of /dev/kmsg around them, and the thread
//! that reads those. Which context a device belongs to, and what becomes of a fault, is left to
//! the callback.
//!
//! Read are the messages of Intel VT-d and AMD-Vi, in the words of Linux 6.1 to 6.12. The Arm
//! SMMUv3's are not: in these versions they are five records of bare numbers, which name a stream
//! and no device, and other messages can come between them.
//!
//! A message is believed if the kernel wrote it. What programs write to /dev/kmsg is marked as
//! theirs by the kernel: its facility is never 0. Where the kernel quotes programs, it does so
//! after words of its own, or gives a name of 15 bytes: so formats are matched from the first byte.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, read, write};

use crate::failure::Failure;

const NODE: &str = "/dev/kmsg";
/// No record is longer (CONSOLE_EXT_LOG_MAX; 2048 in Linux 6.12).
const RECORD_MAX: usize = 8192;

/// What the kernel's log told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device's DMA was refused.
    Fault(Fault),
    /// The kernel kept this many messages to itself, before now.
    ///
    /// It says so when the next message is due, which may be much later. These are not faults:
    /// VT-d has three for a fault that comes alone. Whose they were is not said.
    Suppressed(u64),
}

/// A device's DMA that the IOMMU refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The PCI address, as in `0000:00:03.0`. VT-d's messages have no segment; it is taken to be 0.
    pub device: String,
    /// The IOVA; with VT-d, of its page.
    pub address: u64,
    /// Whether the device wanted to write. With AMD-Vi, false can also mean that the hardware
    /// did not say.
    pub write: bool,
    /// The PASID, if the request had one and the message tells it (AMD-Vi's do not).
    pub pasid: Option<u32>,
    /// VT-d: the fault reason. AMD-Vi: the event's flags.
    pub reason: u32,
}

/// What a message of the kernel tells of faults, if anything.
pub fn parse(message: &str) -> Option<Event> {
    if let Some(count) = suppressed(message) {
        return Some(Event::Suppressed(count));
    }
    vtd(message).or_else(|| amd(message)).map(Event::Fault)
}

/// `dmar_fault: 110 callbacks suppressed`, from `___ratelimit` (lib/ratelimit.c).
fn suppressed(message: &str) -> Option<u64> {
    let (function, rest) = message.split_once(": ")?;
    if !matches!(function, "dmar_fault" | "amd_iommu_report_page_fault") {
        return None;
    }
    rest.strip_suffix(" callbacks suppressed").and_then(|count| number(count, 10))
}

/// `DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x5000000 [fault reason 0x06] …`,
/// from `dmar_fault_do_one` (drivers/iommu/intel/dmar.c).
fn vtd(message: &str) -> Option<Fault> {
    let (access, rest) = message.strip_prefix("DMAR: [DMA ")?.split_once(' ')?;
    let write = match access {
        "Read" => false,
        "Write" => true,
        _ => return None,
    };
    let (pasid, rest) = rest.split_once("] Request device [")?;
    let pasid = match pasid {
        "NO_PASID" => None,
        _ => Some(hexadecimal(pasid.strip_prefix("PASID ")?)?.try_into().ok()?),
    };
    let (device, rest) = rest.split_once("] fault addr ")?;
    let (address, rest) = rest.split_once(" [fault reason ")?;
    let (reason, _) = rest.split_once("] ")?;
    Some(Fault {
        device: pci_address(device)?,
        address: hexadecimal(address)?,
        write,
        pasid,
        reason: hexadecimal(reason)?.try_into().ok()?,
    })
}

/// AMD's event flag I: an interrupt and not memory was asked for.
const AMD_INTERRUPT: u32 = 0x008;
/// AMD's event flag RW.
const AMD_WRITE: u32 = 0x020;

/// `vfio-pci 0000:03:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000e address=0x5000000
/// flags=0x0020]`, or with `device=0000:03:00.0` after IO_PAGE_FAULT and nothing before AMD-Vi,
/// from `amd_iommu_report_page_fault` (drivers/iommu/amd/iommu.c).
fn amd(message: &str) -> Option<Fault> {
    let (origin, rest) = message.split_once("AMD-Vi: Event logged [IO_PAGE_FAULT ")?;
    let fields = rest.strip_suffix(']')?;
    let field = |name| {
        let mut values = fields.split(' ').filter_map(|field| field.split_once('='));
        values.find_map(|(its_name, value)| (its_name == name).then_some(value))
    };
    let device = match origin {
        "" => field("device")?,
        // A driver and an address: with more words than that the line is someone else's.
        _ => origin.strip_suffix(": ")?.split_once(' ')?.1,
    };
    let flags = u32::try_from(hexadecimal(field("flags")?)?).ok()?;
    (flags & AMD_INTERRUPT == 0).then_some(())?;
    Some(Fault {
        device: pci_address(device)?,
        address: hexadecimal(field("address")?)?,
        write: flags & AMD_WRITE != 0,
        pasid: None,
        reason: flags,
    })
}

/// A PCI address in its full form, from that or one without the segment.
fn pci_address(text: &str) -> Option<String> {
    let (segment, rest) = match text.split(':').count() {
        2 => ("0000", text),
        _ => text.split_once(':')?,
    };
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let part = |text: &str, digits: usize, last: u64| {
        number(text, 16).filter(|&value| text.len() == digits && value <= last)
    };
    // A segment that a driver invents (VMD) has five digits.
    let segment = part(segment, segment.len().clamp(4, 8), u32::MAX.into())?;
    let (bus, slot) = (part(bus, 2, 0xff)?, part(slot, 2, 0x1f)?);
    let function = part(function, 1, 7)?;
    Some(format!("{segment:04x}:{bus:02x}:{slot:02x}.{function}"))
}

/// A number with 0x before it.
fn hexadecimal(text: &str) -> Option<u64> {
    number(text.strip_prefix("0x")?, 16)
}

/// A number of nothing but digits.
fn number(text: &str, radix: u32) -> Option<u64> {
    let digits = text.chars().all(|c| c.is_digit(radix));
    digits.then(|| u64::from_str_radix(text, radix).ok())?
}

/// A record of /dev/kmsg: `PRIORITY,SEQUENCE,TIME,FLAGS[,…];TEXT`, and lines with more about it
/// that are not needed here (Documentation/ABI/testing/dev-kmsg).
#[derive(Debug, PartialEq, Eq)]
struct Record<'a> {
    sequence: u64,
    /// The text, if it is a whole message and the kernel's own.
    message: Option<Cow<'a, str>>,
}

impl<'a> Record<'a> {
    fn new(record: &'a [u8]) -> Option<Self> {
        let prefix = record.split(|&byte| byte == b';').next()?;
        // The kernel escapes a newline in the text: the first one ends it.
        let text = record.get(prefix.len() + 1..)?.split(|&byte| byte == b'\n').next()?;
        let mut fields = std::str::from_utf8(prefix).ok()?.split(',');
        let priority = number(fields.next()?, 10)?;
        let sequence = number(fields.next()?, 10)?;
        let flags = fields.nth(1)?;
        let facility = priority >> 3;
        // `c` and `+` are parts of a line, which may begin with a program's words.
        let message = (facility == 0 && flags == "-").then(|| unescape(text));
        Some(Self { sequence, message })
    }
}

/// Text of a record with each `\xNN` made one byte again.
fn unescape(text: &[u8]) -> Cow<'_, str> {
    if !text.contains(&b'\\') {
        return String::from_utf8_lossy(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let (byte, after) = escaped(rest).unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// The byte of a `\xNN` at the start of the text, and what follows it.
fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let (digits, rest) = text.strip_prefix(b"\\x")?.split_at_checked(2)?;
    let byte = number(std::str::from_utf8(digits).ok()?, 16)?;
    Some((byte.try_into().ok()?, rest))
}

/// The kernel's log, followed from when this is made until it is dropped.
#[derive(Debug)]
pub struct KernelLog {
    stop: Arc<OwnedFd>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl KernelLog {
    /// Follows the log: calls `tell` for each event that the kernel writes from now on.
    ///
    /// It is called in a thread of its own and one call at a time. It must not wait for long, for
    /// the log is overwritten meanwhile, nor drop what this returns, which waits for that thread.
    ///
    /// # Errors
    /// EOPNOTSUPP when the log cannot be read.
    pub fn follow(tell: impl Fn(Event) + Send + 'static) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = open(NODE, flags, Mode::empty())
            .and_then(|log| seek(&log, SeekFrom::End(0)).map(|_| log))
            .map_err(|error| refuse(error.into(), remedy(error)))?;
        Self::follow_descriptor(log, tell)
    }

    fn follow_descriptor(
        log: OwnedFd,
        tell: impl Fn(Event) + Send + 'static,
    ) -> Result<Self, Failure> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC);
        let stop = Arc::new(stop.map_err(|error| refuse(error.into(), ""))?);
        let lost = Arc::new(AtomicU64::new(0));
        let reader = Reader { log, lost: Arc::clone(&lost), expected: None };
        let run = {
            let stop = Arc::clone(&stop);
            move || reader.run(stop.as_fd(), tell)
        };
        let thread = thread::Builder::new().name("kernel-log".into()).spawn(run);
        let thread = Some(thread.map_err(|error| refuse(error, ""))?);
        Ok(Self { stop, lost, thread })
    }

    /// How many records of the log, of any kind, were overwritten before they were read, at least.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for KernelLog {
    fn drop(&mut self) {
        let _ = write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // Its panic, if it had one, has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn refuse(error: std::io::Error, remedy: &str) -> Failure {
    Failure::unsupported(format!(
        "faults of devices cannot be told, for the kernel's log cannot be read: {NODE}: {error}{remedy}"
    ))
}

/// What to do when the log cannot be opened.
fn remedy(error: Errno) -> &'static str {
    match error {
        Errno::PERM | Errno::ACCESS => {
            "; give the daemon CAP_SYSLOG, as kernel.dmesg_restrict demands, and let it read the node"
        }
        Errno::NOENT | Errno::NODEV | Errno::NXIO => "; give the daemon's container this node",
        _ => "",
    }
}

/// What the thread has.
struct Reader {
    log: OwnedFd,
    lost: Arc<AtomicU64>,
    /// The sequence number of the next record, once one was read.
    expected: Option<u64>,
}

impl Reader {
    fn run(mut self, stop: BorrowedFd<'_>, tell: impl Fn(Event)) {
        let mut buffer = [0; RECORD_MAX];
        loop {
            match self.next(stop, &mut buffer) {
                Ok(Next::Record(length)) => {
                    if let Some(event) = self.take(&buffer[..length]) {
                        tell(event);
                    }
                }
                Ok(Next::Nothing) => {}
                Ok(Next::Stop) => return,
                Err(error) => {
                    log::warn!("{NODE} is read no more, nor faults of devices told: {error}");
                    return;
                }
            }
        }
    }

    /// Waits, and reads one record.
    fn next(&self, stop: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Next, Errno> {
        let mut both =
            [PollFd::new(&self.log, PollFlags::IN), PollFd::from_borrowed_fd(stop, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) if !both[1].revents().is_empty() => return Ok(Next::Stop),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        match read(&self.log, buffer) {
            Ok(0) => Err(Errno::NODEV),
            Ok(length) => Ok(Next::Record(length)),
            // Records are gone; how many, the next one's sequence number tells, if there was one
            // to compare it with.
            Err(Errno::PIPE) => {
                self.count_lost(u64::from(self.expected.is_none()));
                Ok(Next::Nothing)
            }
            // EINVAL is a record too long for the buffer: it is left out.
            Err(Errno::AGAIN | Errno::INTR | Errno::INVAL) => Ok(Next::Nothing),
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, record: &[u8]) -> Option<Event> {
        let record = Record::new(record)?;
        let expected = self.expected.unwrap_or(record.sequence);
        self.count_lost(record.sequence.saturating_sub(expected));
        self.expected = Some(record.sequence.saturating_add(1));
        record.message.and_then(|message| parse(&message))
    }

    fn count_lost(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
    }
}

/// What came of waiting for a record.
enum Next {
    /// One of this many bytes.
    Record(usize),
    Nothing,
    Stop,
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn fault(device: &str, address: u64, write: bool, reason: u32) -> Option<Event> {
        let device = device.into();
        Some(Event::Fault(Fault { device, address, write, pasid: None, reason }))
    }

    /// Records as Debian's kernels wrote them, 6.1.192 and 6.12.117, when QEMU's edu reached where
    /// nothing, or memory to be read only, was mapped.
    const VTD_6_1: [&str; 10] = [
        "3,386,3583555,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,387,3583936,-;DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x5000000 [fault reason 0x06] PTE Read access is not set\n",
        "3,388,3706496,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,389,3706698,-;DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x5001000 [fault reason 0x05] PTE Write access is not set\n",
        "3,390,9828437,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,391,9828822,-;DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x6000000 [fault reason 0x06] PTE Read access is not set\n",
        "3,395,16071603,-;DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x100000 [fault reason 0x05] PTE Write access is not set\n",
        "4,403,34027570,-;dmar_fault: 110 callbacks suppressed\n",
        "3,404,34027647,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,405,34027984,-;DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x9000000 [fault reason 0x06] PTE Read access is not set\n",
    ];
    const VTD_6_12: [&str; 10] = [
        "3,392,3840764,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,393,3841180,-;DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x5000000 [fault reason 0x06] PTE Read access is not set\n",
        "3,394,3963599,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,395,3963885,-;DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x5001000 [fault reason 0x05] PTE Write access is not set\n",
        "3,396,10085766,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,397,10086026,-;DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x6000000 [fault reason 0x06] PTE Read access is not set\n",
        "3,401,16328980,-;DMAR: [DMA Write NO_PASID] Request device [00:10.0] fault addr 0x100000 [fault reason 0x05] PTE Write access is not set\n",
        "4,409,34314088,-;dmar_fault: 110 callbacks suppressed\n",
        "3,410,34314220,-;DMAR: DRHD: handling fault status reg 2\n",
        "3,411,34314536,-;DMAR: [DMA Read NO_PASID] Request device [00:10.0] fault addr 0x9000000 [fault reason 0x06] PTE Read access is not set\n",
    ];

    fn event(record: &str) -> Option<Event> {
        parse(&Record::new(record.as_bytes())?.message?)
    }

    #[test]
    fn both_kernels_faults_are_read() {
        let expected = [
            None,
            fault("0000:00:10.0", 0x500_0000, false, 6),
            None,
            fault("0000:00:10.0", 0x500_1000, true, 5),
            None,
            fault("0000:00:10.0", 0x600_0000, false, 6),
            fault("0000:00:10.0", 0x10_0000, true, 5),
            Some(Event::Suppressed(110)),
            None,
            fault("0000:00:10.0", 0x900_0000, false, 6),
        ];
        assert_eq!(VTD_6_1.map(event), expected);
        assert_eq!(VTD_6_12.map(event), expected);
    }

    #[test]
    fn vtd_with_a_pasid() {
        let line = "DMAR: [DMA Write PASID 0x1f] Request device [6a:01.7] fault addr 0xfffffffffffff000 [fault reason 0x59] SM: Present bit in PASID Table Entry is clear";
        let expected = Fault {
            device: "0000:6a:01.7".into(),
            address: 0xffff_ffff_ffff_f000,
            write: true,
            pasid: Some(0x1f),
            reason: 0x59,
        };
        assert_eq!(parse(line), Some(Event::Fault(expected)));
    }

    #[test]
    fn amd_with_and_without_a_driver() {
        let line = "vfio-pci 0000:c5:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0022 address=0x191c00000 flags=0x0000]";
        assert_eq!(parse(line), fault("0000:c5:00.0", 0x1_91c0_0000, false, 0));
        let line = "nvidia 0000:41:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0018 address=0x4d7201180 flags=0x0020]";
        assert_eq!(parse(line), fault("0000:41:00.0", 0x4_d720_1180, true, 0x20));
        let line = "AMD-Vi: Event logged [IO_PAGE_FAULT device=0001:0a:1f.7 domain=0x001d address=0x637c080 flags=0x0070]";
        assert_eq!(parse(line), fault("0001:0a:1f.7", 0x637_c080, true, 0x70));
        let line = "AMD-Vi: Event logged [IO_PAGE_FAULT device=01:00.0 domain=0x0000 address=0x0 flags=0x0000]";
        assert_eq!(parse(line), fault("0000:01:00.0", 0, false, 0));
        let line = "amd_iommu_report_page_fault: 10432 callbacks suppressed";
        assert_eq!(parse(line), Some(Event::Suppressed(10432)));
    }

    #[test]
    fn a_segment_may_have_more_than_four_digits() {
        let line = "nvme 10000:e1:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0001 address=0x1000 flags=0x0000]";
        assert_eq!(parse(line), fault("10000:e1:00.0", 0x1000, false, 0));
    }

    #[test]
    fn what_is_no_fault_of_dma_is_nothing() {
        let lines = [
            "",
            "DMAR: [INTR-REMAP] Request device [00:1f.0] fault index 0x1c [fault reason 0x26] Blocked an interrupt request due to source-id verification failure",
            "DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x5000000",
            "DMAR: [DMA Read NO_PASID] Request device [00:03.8] fault addr 0x5000000 [fault reason 0x06] no such function",
            "DMAR: [DMA Read NO_PASID] Request device [00:20.0] fault addr 0x5000000 [fault reason 0x06] no such slot",
            "DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 5000000 [fault reason 0x06] no 0x",
            "DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x+5000000 [fault reason 0x06] a sign",
            "DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x10000000000000000 [fault reason 0x06] 65 bits",
            "DMAR: [DMA Exec NO_PASID] Request device [00:03.0] fault addr 0x5000000 [fault reason 0x06] no such access",
            "a DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x5000000 [fault reason 0x06] quoted",
            // An interrupt.
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:00:14.5 domain=0x0000 address=0xfdf8020200 flags=0x0008]",
            "AMD-Vi: Event logged [INVALID_DEVICE_REQUEST device=0000:00:00.0 pasid=0x00000 address=0xfffffffdf8000000 flags=0x0a00]",
            "said of vfio-pci 0000:c5:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0022 address=0x1000 flags=0x0000]",
            "vfio-pci: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0022 address=0x1000 flags=0x0000]",
            "vfio-pci 0000:c5:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0022 flags=0x0000]",
            "arm-smmu-v3 9050000.smmuv3: event 0x10 received:",
            "net_ratelimit: 12 callbacks suppressed",
            "dmar_fault: -1 callbacks suppressed",
            "dmar_fault: callbacks suppressed",
        ];
        for line in lines {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    const TEXT: &str = "dmar_fault: 7 callbacks suppressed";

    #[test]
    fn only_whole_messages_of_the_kernel_are_read() {
        let prefix_is_read = |prefix| event(&format!("{prefix};{TEXT}\n")).is_some();
        for prefix in ["0,1,2,-", "7,1,2,-", "4,1,2,-,caller=T1234", "4,1,2,-,a,b=c"] {
            assert!(prefix_is_read(prefix), "{prefix}");
        }
        // 8 and above: programs, by way of /dev/kmsg. c and +: parts of lines.
        for prefix in ["8,1,2,-", "12,1,2,-", "30,1,2,-", "4,1,2,c", "4,1,2,+", "4,1,2,"] {
            assert!(!prefix_is_read(prefix), "{prefix}");
        }
        // What was written in the lab, with <4> before it, to the /dev/kmsg of Linux 6.12.
        let forged = "12,412,35365798,-;DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x5000000 [fault reason 0x06] forged\n";
        assert_eq!(event(forged), None);
    }

    #[test]
    fn malformed_prefixes_are_no_records() {
        for prefix in ["", "4", "4,1", "4,1,2", "-4,1,2,-", "4,+1,2,-", "x,1,2,-", "4,y,2,-"] {
            assert_eq!(Record::new(format!("{prefix};{TEXT}\n").as_bytes()), None, "{prefix}");
        }
        assert_eq!(Record::new(b"4,1,2,-"), None);
        assert_eq!(Record::new(b"\xff,1,2,-;text\n"), None);
    }

    #[test]
    fn lines_with_more_about_a_record_are_no_part_of_it() {
        let record =
            format!("4,1,2,-;text; more\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:10.0\n {TEXT}\n");
        let record = Record::new(record.as_bytes()).unwrap();
        assert_eq!(record, Record { sequence: 1, message: Some("text; more".into()) });
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(b"plain"), "plain");
        assert_eq!(unescape(br"a\x0ab\x5cx0a\xc3\xa4"), "a\nb\\x0aä");
        assert_eq!(unescape(br"\xff\x\x1\xzz\"), "\u{fffd}\\x\\x1\\xzz\\");
        // As Linux 6.12 gave a line of the lab's back.
        let record =
            Record::new(b"0,391,14087345,-;with\\x0anewline \\x5c and \\x09\\xff\n").unwrap();
        assert_eq!(record.message.unwrap(), "with\nnewline \\ and \t\u{fffd}");
        // A newline that was part of a message begins no other.
        assert_eq!(event(&format!("4,1,2,-;any\\x0a{TEXT}\n")), None);
    }

    fn reader() -> Reader {
        let log = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Reader { log, lost: Arc::default(), expected: None }
    }

    #[test]
    fn missing_sequence_numbers_are_lost_records() {
        let mut reader = reader();
        for (sequence, lost) in
            [(5, 0), (6, 0), (10, 3), (11, 3), (3, 3), (5, 4), (u64::MAX, u64::MAX - 2)]
        {
            reader.take(format!("12,{sequence},0,-;text\n").as_bytes());
            assert_eq!(reader.lost.load(Ordering::Relaxed), lost, "at {sequence}");
        }
    }

    /// A socket of packets is like /dev/kmsg in that one read is one record.
    fn followed() -> (OwnedFd, KernelLog, mpsc::Receiver<Event>) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, log) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (sender, events) = mpsc::channel();
        let tell = move |event| sender.send(event).unwrap();
        (ours, KernelLog::follow_descriptor(log, tell).unwrap(), events)
    }

    #[test]
    fn each_event_is_told_once_and_in_order() {
        let (kernel, log, events) = followed();
        for record in VTD_6_12 {
            write(&kernel, record.as_bytes()).unwrap();
        }
        for expected in VTD_6_12.into_iter().filter_map(event) {
            assert_eq!(events.recv_timeout(Duration::from_secs(10)), Ok(expected));
        }
        // 398 to 400, and 402 to 408, are not among the records.
        assert_eq!(log.lost(), 3 + 7);
        drop(log);
        assert_eq!(events.recv(), Err(mpsc::RecvError), "the thread has ended, callback and all");
    }

    #[test]
    fn a_log_that_ends_ends_the_thread() {
        let (kernel, log, events) = followed();
        drop(kernel);
        assert_eq!(events.recv(), Err(mpsc::RecvError));
        drop(log);
    }

    #[test]
    fn the_log_is_followed_or_the_reason_told() {
        match KernelLog::follow(|_| ()) {
            Ok(log) => drop(log),
            Err(failure) => {
                assert_eq!(failure.errno, Errno::OPNOTSUPP);
                assert!(failure.sentence.contains("/dev/kmsg: "), "{failure}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Record::new(&bytes);
            let _ = parse(&unescape(&bytes));
            let _ = reader().take(&[b"4,1,2,-;", &bytes[..]].concat());
        }

        /// Nor do a few wrong bytes in a real record.
        #[test]
        fn no_damage_makes_it_panic(
            which in 0..VTD_6_12.len(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            end in any::<prop::sample::Index>(),
        ) {
            let mut record = VTD_6_12[which].as_bytes().to_vec();
            for (at, byte) in damage {
                let at = at.index(record.len());
                record[at] = byte;
            }
            record.truncate(end.index(record.len() + 1));
            let _ = reader().take(&record);
        }

        #[test]
        fn what_the_kernel_prints_is_what_is_read(
            (bus, slot, function) in (0u8.., 0u8..32, 0u8..8),
            address: u64,
            write: bool,
            pasid in proptest::option::of(0u32..1 << 20),
            reason: u8,
        ) {
            let line = format!(
                "DMAR: [DMA {} {}] Request device [{bus:02x}:{slot:02x}.{function}] fault addr {address:#x} [fault reason {reason:#04x}] Unknown",
                if write { "Write" } else { "Read" },
                pasid.map_or("NO_PASID".into(), |pasid| format!("PASID {pasid:#x}")),
            );
            let device = format!("0000:{bus:02x}:{slot:02x}.{function}");
            let fault = Fault { device, address, write, pasid, reason: reason.into() };
            prop_assert_eq!(parse(&line), Some(Event::Fault(fault)));
        }
    }
}

//! How the supervisor knows a device again: cookies, by which the node tells a bound device from all
//! others, and [`Mark`]s, which an open file carries as long as it is open, wherever its descriptors go.
//!
//! A VFIO device's descriptor does not say which device it is, and the supervisor must keep none: the
//! device would stay open with it. So each open file gets a mark that no other has ever had.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::bridge::Marked;
use crate::devices::Device;
use crate::sys::Mark;

/// All marks that were put.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    state: Mutex<State>,
    serial: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Mark>,
    devices: HashMap<Mark, Marked>,
}

impl Marks {
    /// A cookie that none had before: a serial number, and below it the address of a PCI device in 32
    /// bits, so that a program which reads fault records finds the device in them.
    pub(crate) fn cookie(&self, name: &str) -> u64 {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        serial << 32 | u64::from(pci_address(name).unwrap_or(0))
    }

    /// Marks the open file of a device.
    ///
    /// # Errors
    /// ENOMEM, EAGAIN.
    pub(crate) fn put(&self, file: &OwnedFd, device: &Device, cookie: u64) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let mark = match state.last {
            Some(Mark { owner, signal }) if signal < Mark::SIGNALS => {
                Mark { owner, signal: signal + 1 }
            }
            _ => Mark { owner: owner()?, signal: 1 },
        };
        mark.put(file)?;
        state.last = Some(mark);
        let (name, group) = (device.name.clone(), device.group);
        state.devices.insert(mark, Marked { name, group, cookie });
        Ok(())
    }

    /// The device that an open file is of, if it was marked here.
    pub(crate) fn find(&self, file: &OwnedFd) -> Option<Marked> {
        let mark = Mark::of(file)?;
        self.state.lock().devices.get(&mark).cloned()
    }
}

/// A thread that does nothing but have a number, until this process ends.
fn owner() -> Result<i32, Errno> {
    let (number, numbers) = mpsc::channel();
    let body = move || {
        let _ = number.send(rustix::thread::gettid().as_raw_nonzero().get());
        loop {
            thread::park();
        }
    };
    let started = thread::Builder::new().name("marks".into()).stack_size(1 << 16).spawn(body);
    started.map_err(|_| Errno::AGAIN)?;
    numbers.recv().map_err(|_| Errno::AGAIN)
}

/// DDDD:BB:DD.F in 32 bits: the domain, the bus, the device in 5 bits and the function in 3.
fn pci_address(name: &str) -> Option<u32> {
    let (domain, rest) = name.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let number =
        |digits, most| u32::from_str_radix(digits, 16).ok().filter(|number: &u32| *number <= most);
    let (domain, bus) = (number(domain, 0xffff)?, number(bus, 0xff)?);
    let (device, function) = (number(device, 0x1f)?, number(function, 7)?);
    Some(domain << 16 | bus << 8 | device << 3 | function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn no_two_open_files_have_one_mark_however_many_there_are() {
        let marks = Marks::default();
        let files: Vec<OwnedFd> =
            (0..200).map(|_| File::open("/dev/null").expect("there is one").into()).collect();
        for (n, file) in files.iter().enumerate() {
            assert!(marks.find(file).is_none());
            let device = Device { name: n.to_string(), group: 0 };
            marks.put(file, &device, n as u64).expect("room");
        }
        for (n, file) in files.iter().enumerate() {
            assert_eq!(marks.find(file).expect("marked").cookie, n as u64);
        }
    }

    #[test]
    fn a_cookie_has_the_address_of_its_device_and_comes_once() {
        let marks = Marks::default();
        let (one, two) = (marks.cookie("0000:00:10.1"), marks.cookie("0000:00:10.1"));
        assert_ne!(one, two);
        assert_eq!((one as u32, two as u32), (0x81, 0x81));
        assert_eq!(marks.cookie("abcd:ef:1f.7") as u32, 0xabcd_efff);
        assert_eq!(marks.cookie("platform") as u32, 0);
    }
}

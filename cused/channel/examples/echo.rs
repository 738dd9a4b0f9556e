//! A node that shows what a channel can do; the tests drive the same behaviour.
//!
//! ```text
//! echo cuse NAME          as /dev/NAME
//! echo file PATH          as a FUSE file
//! ```
//!
//! What is written to it can be read back, by the same open file. Ends at end of input:
//! `mkfifo stop; echo cuse echo <stop & ...; echo >stop`.
//!
//! `echo latency PATH [COUNT]` measures ioctls of such a node.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cuse_channel::{
    Channel, Context, CuseOptions, Errno, FuseFileOptions, Ioctl, IoctlReply, Node, ReadReply,
    ServeOptions, Server,
};

/// `_IO('E', 0)`: returns its argument.
const SAME: u32 = 0x4500;

#[derive(Default)]
struct Echo {
    next: AtomicU64,
    written: Mutex<HashMap<u64, Vec<u8>>>,
}

impl Node for Echo {
    fn open(&self, _flags: u32, _context: &Context<'_>) -> Result<u64, Errno> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.written.lock().map_err(|_| Errno::IO)?.insert(handle, Vec::new());
        Ok(handle)
    }

    fn release(&self, handle: u64) {
        if let Ok(mut written) = self.written.lock() {
            written.remove(&handle);
        }
    }

    fn ioctl(&self, request: &Ioctl<'_>) -> IoctlReply {
        match request.command {
            SAME => IoctlReply::value(request.arg as i32),
            _ => IoctlReply::error(Errno::NOTTY),
        }
    }

    fn read(&self, request: &cuse_channel::Read<'_>) -> ReadReply {
        let Ok(mut written) = self.written.lock() else { return ReadReply::Error(Errno::IO) };
        let Some(data) = written.get_mut(&request.fh) else { return ReadReply::Error(Errno::BADF) };
        let size = request.size.min(data.len());
        ReadReply::Data(data.drain(..size).collect())
    }

    fn write(
        &self,
        handle: u64,
        data: &[u8],
        _nonblock: bool,
        _context: &Context<'_>,
    ) -> Result<usize, Errno> {
        let mut written = self.written.lock().map_err(|_| Errno::IO)?;
        written.get_mut(&handle).ok_or(Errno::BADF)?.extend(data);
        Ok(data.len())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let channel = match arguments[..] {
        ["cuse", name] => Channel::cuse(&CuseOptions::new(name))?,
        ["file", path] => Channel::fuse_file(&FuseFileOptions::new(path))?,
        ["latency", path] => return measure(path, 100_000),
        ["latency", path, count] => return measure(path, count.parse()?),
        _ => return Err("usage: echo cuse NAME | file PATH | latency PATH [COUNT]".into()),
    };
    let server = Server::new(channel, ServeOptions::default())?;
    println!("serving {}", server.node().display());
    let stop = server.stopper();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        stop.stop();
    });
    println!("{:?}", server.serve(Arc::new(Echo::default())));
    Ok(())
}

/// Times `count` ioctls that do nothing.
fn measure(path: &str, count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let file = std::fs::File::open(path)?;
    let mut times: Vec<f64> = Vec::with_capacity(count);
    for index in 0..count {
        let begun = Instant::now();
        // SAFETY: the node takes the argument as a number; no memory is involved.
        #[allow(unsafe_code)]
        let result = unsafe { libc::ioctl(file.as_raw_fd(), SAME.into(), index) };
        times.push(begun.elapsed().as_secs_f64() * 1e6);
        if result != index as i32 {
            return Err(format!("ioctl {index} returned {result}").into());
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[(part * (count - 1) as f64) as usize];
    let mean = times.iter().sum::<f64>() / count as f64;
    println!("mean {mean:.1} median {:.1} p99 {:.1} max {:.1} µs", at(0.5), at(0.99), at(1.0));
    Ok(())
}

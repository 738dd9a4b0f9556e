//! The commands of the node, by arguments that a program could pass: with simulated devices, and by
//! the protocol in which the kernel copies, so that the memory of no process is touched.
//!
//! An input is a sequence of calls: which command, how many bytes (less 128: the first eight are the
//! argument itself, otherwise they are the structure that it points to), and these bytes. An `argsz`
//! of zero stands for the right one. Behind a structure there are zeroes, up to the end of memory.
#![no_main]

use cuse_channel::{Context, Interrupt, IoVec, Ioctl, IoctlReply, Node as _, Notifier, Responder};
use cused::argument::Access;
use cused::backend::simulated::{DeviceConfig, Simulator};
use cused::commands::Host;
use cused::in_context::Scratches;
use cused::node::Node;
use cused::policy::{Policy, PolicyConfig};
use cused::process::Processes;
use cused::users::{Quotas, Users};
use ioasid_uapi as uapi;

/// Where the argument is, and all memory there is.
const ADDRESS: u64 = 0x1_0000;
const MEMORY: usize = 0x1_0000;
/// What the kernel copies at most in each direction.
const COPIED: u64 = 128 << 10;

/// ENOENT, EINTR, EIO, E2BIG, EBADF, EAGAIN, ENOMEM, EFAULT, EBUSY, EEXIST, ENODEV, EINVAL, ENOTTY,
/// ENOSPC, EPERM, EOVERFLOW, EMSGSIZE, EOPNOTSUPP, EADDRINUSE.
const ERRORS: [i32; 19] = [2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19, 22, 25, 28, 1, 75, 90, 95, 98];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let node = node();
    let interrupt = Interrupt::new();
    let opening = Context::detached(&interrupt);
    let open = node.open(0, &opening).expect("one open is permitted");
    let mut rest = input;
    while let Some((&[number, length], behind)) = rest.split_first_chunk() {
        let (bytes, next) = behind.split_at(behind.len().min(usize::from(length & 0x7f)));
        rest = next;
        // Some numbers lie outside of those that there are.
        let command = uapi::cmd::CHECK_EXTENSION - 4 + u32::from(number) % 48;
        let mut memory = vec![0; MEMORY];
        memory[..bytes.len()].copy_from_slice(bytes);
        let arg = match length & 0x80 {
            0 => ADDRESS,
            _ => u64::from_le_bytes(std::array::from_fn(|at| memory[at])),
        };
        if memory[..4] == [0; 4] {
            memory[..4].copy_from_slice(&size_of_argument(command).to_le_bytes());
        }
        call(&node, open, command, arg, &memory);
    }
    node.release(open);
    // All devices are free again.
    let open = node.open(0, &opening).expect("one open is permitted");
    node.release(open);
});

fn node() -> Node {
    let host = Host {
        limits: ioasid::Limits {
            max_ioasids: 16,
            max_devices: 16,
            max_mappings: 256,
            max_registered: 4,
        },
        simulator: Simulator::new(&[DeviceConfig::plain(0), DeviceConfig::plain(1)])
            .expect("good devices"),
        processes: Processes::default(),
        scratches: Scratches::new().expect("random numbers"),
        is_ending: Default::default(),
        tells_real_faults: false.into(),
        policy: Policy::new(&PolicyConfig::default()).expect("no rules are good rules"),
        users: Users::new(Quotas { opens: 1, registered: 1 << 20, registered_of_user: 1 << 20 }),
    };
    Node::new(host, Access::Retry, Notifier::detached())
}

fn size_of_argument(command: u32) -> u32 {
    use uapi::cmd;
    match command {
        cmd::GET_INFO => size_of::<uapi::Info>() as u32,
        cmd::MAP_DMA => size_of::<uapi::MapDma>() as u32,
        cmd::UNMAP_DMA => size_of::<uapi::UnmapDma>() as u32,
        cmd::BIND_PGTABLE | cmd::UNBIND_PGTABLE => size_of::<uapi::BindPgtable>() as u32,
        cmd::BIND_PASID_TABLE | cmd::UNBIND_PASID_TABLE => size_of::<uapi::BindPasidTable>() as u32,
        cmd::INVALIDATE_CACHE => size_of::<uapi::InvalidateCache>() as u32,
        cmd::BIND_DEVICE => size_of::<uapi::BindDevice>() as u32,
        cmd::ATTACH_DEVICE | cmd::DETACH_DEVICE => size_of::<uapi::AttachDevice>() as u32,
        cmd::GET_DEVICE_INFO => size_of::<uapi::DeviceInfo>() as u32,
        cmd::LIST => size_of::<uapi::List>() as u32,
        cmd::SIM_DMA => size_of::<uapi::SimDma>() as u32,
        _ => 40,
    }
}

/// One call as the kernel makes it: again, with what is asked for, until it is answered.
fn call(node: &Node, fh: u64, command: u32, arg: u64, memory: &[u8]) {
    let (mut input, mut output_size) = (vec![], 0);
    for _ in 0..8 {
        let (interrupt, responder) = (Interrupt::new(), Responder::detached());
        let detached = Ioctl::detached(command, arg, &interrupt, &responder);
        let request = Ioctl { fh, unrestricted: true, input: &input, output_size, ..detached };
        match node.ioctl(&request) {
            IoctlReply::Done { result, output } => {
                assert!(output.len() <= output_size, "more output than there is room");
                assert!(
                    result >= 0 || ERRORS.contains(&-result),
                    "{command:#x} gives errno {}",
                    -result
                );
                return;
            }
            IoctlReply::Retry { inputs, outputs } => {
                let total = |places: &[IoVec]| {
                    places.iter().fold(0u64, |sum, place| sum.saturating_add(place.len))
                };
                // Otherwise the kernel refuses by itself.
                if total(&inputs).max(total(&outputs)) > COPIED || inputs.len() > 256 {
                    return;
                }
                input.clear();
                for place in &inputs {
                    let begin = place.base.wrapping_sub(ADDRESS);
                    let end = begin.saturating_add(place.len);
                    let Some(bytes) = memory.get(begin as usize..end as usize) else { return };
                    input.extend_from_slice(bytes);
                }
                output_size = total(&outputs) as usize;
            }
            other => panic!("{command:#x}: nobody has interrupted it: {other:?}"),
        }
    }
    panic!("{command:#x} is not answered");
}

//! The seccomp filter: which system calls of the program are put before the supervisor.
//!
//! It is a classic BPF program over `struct seccomp_data` (linux/seccomp.h), which every system call
//! of the program meets. All but ioctl leave it after one load and one comparison; and since that
//! much depends on the number alone, the kernel (5.11 and later) knows it beforehand and does not run
//! the program at all.
//!
//! Calls of other architectures (32-bit, x32) are let through: their numbers mean something else, and
//! the node refuses such programs anyhow.

use ioasid_uapi::cmd;

/// `VFIO_GROUP_SET_CONTAINER` of linux/vfio.h.
pub(crate) const GROUP_SET_CONTAINER: u32 = 0x3b68;
/// `VFIO_GROUP_UNSET_CONTAINER`
pub(crate) const GROUP_UNSET_CONTAINER: u32 = 0x3b69;
/// `VFIO_GROUP_GET_DEVICE_FD`
pub(crate) const GROUP_GET_DEVICE_FD: u32 = 0x3b6a;

/// Every command that is intercepted, with its name: two runs of numbers.
pub(crate) const COMMANDS: [(u32, &str); 7] = [
    (GROUP_SET_CONTAINER, "VFIO_GROUP_SET_CONTAINER"),
    (GROUP_UNSET_CONTAINER, "VFIO_GROUP_UNSET_CONTAINER"),
    (GROUP_GET_DEVICE_FD, "VFIO_GROUP_GET_DEVICE_FD"),
    (cmd::VFIO_BIND_IOASID_FD, "VFIO_BIND_IOASID_FD"),
    (cmd::VFIO_UNBIND_IOASID_FD, "VFIO_UNBIND_IOASID_FD"),
    (cmd::VFIO_ATTACH_IOASID, "VFIO_ATTACH_IOASID"),
    (cmd::VFIO_DETACH_IOASID, "VFIO_DETACH_IOASID"),
];

/// `AUDIT_ARCH_*` of linux/audit.h
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
/// `AUDIT_ARCH_*` of linux/audit.h
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Where `struct seccomp_data` has the number of the call, the architecture, and the low half of the
/// second argument: the kernel takes no more of an ioctl's command. Both architectures are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const COMMAND: u32 = 24;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const NOTIFY: u32 = 0x7fc0_0000; // SECCOMP_RET_USER_NOTIF
const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW

/// `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, value: offset }
}

const fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

const fn give(value: u32) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, value }
}

/// The filter. The jumps count the instructions that are left out.
pub(crate) const PROGRAM: [Instruction; 11] = [
    load(NUMBER),
    jump(EQUAL, libc::SYS_ioctl as u32, 0, 7),
    load(ARCHITECTURE),
    jump(EQUAL, ARCH, 0, 5),
    load(COMMAND),
    jump(AT_LEAST, cmd::VFIO_DETACH_IOASID + 1, 3, 0),
    jump(AT_LEAST, cmd::VFIO_BIND_IOASID_FD, 3, 0),
    jump(AT_LEAST, GROUP_GET_DEVICE_FD + 1, 1, 0),
    jump(AT_LEAST, GROUP_SET_CONTAINER, 1, 0),
    give(ALLOW),
    give(NOTIFY),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter as the kernel would. Gives its verdict and how many instructions it took.
    fn run(number: u32, arch: u32, command: u64) -> (u32, usize) {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        data[24..32].copy_from_slice(&command.to_le_bytes());
        let (mut at, mut loaded, mut steps) = (0, 0, 0);
        loop {
            let Instruction { code, if_true, if_false, value } = PROGRAM[at];
            (at, steps) = (at + 1, steps + 1);
            let holds = match code {
                LOAD => {
                    let offset = value as usize;
                    loaded = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
                    continue;
                }
                EQUAL => loaded == value,
                AT_LEAST => loaded >= value,
                RETURN => return (value, steps),
                other => panic!("unknown instruction {other:#x}"),
            };
            at += usize::from(if holds { if_true } else { if_false });
        }
    }

    const IOCTL: u32 = libc::SYS_ioctl as u32;

    #[test]
    fn just_the_commands_are_put_before_the_supervisor() {
        for command in 0..=0xffff {
            let is_listed = COMMANDS.iter().any(|(listed, _)| *listed == command);
            let verdict = if is_listed { NOTIFY } else { ALLOW };
            assert_eq!(run(IOCTL, ARCH, command.into()).0, verdict, "{command:#x}");
        }
        for bit in 16..32 {
            let command = u64::from(GROUP_SET_CONTAINER | 1 << bit);
            assert_eq!(run(IOCTL, ARCH, command).0, ALLOW, "{command:#x}");
        }
    }

    /// `do_vfs_ioctl` takes an unsigned int: what is above does not make it another command.
    #[test]
    fn the_upper_half_of_a_command_does_not_matter() {
        let command = 0xdead_beef_0000_0000 | u64::from(cmd::VFIO_BIND_IOASID_FD);
        assert_eq!(run(IOCTL, ARCH, command).0, NOTIFY);
    }

    #[test]
    fn other_calls_pass_after_one_comparison() {
        for number in (0..600).filter(|number| *number != IOCTL) {
            assert_eq!(run(number, ARCH, GROUP_SET_CONTAINER.into()), (ALLOW, 3), "{number}");
        }
    }

    #[test]
    fn other_architectures_pass() {
        const I386: u32 = 0x4000_0003;
        const X32: u32 = 0x4000_0000;
        for (command, _) in COMMANDS {
            assert_eq!(run(IOCTL, I386, command.into()).0, ALLOW);
            assert_eq!(run(X32 | 514, ARCH, command.into()).0, ALLOW);
            assert_eq!(run(X32 | IOCTL, ARCH, command.into()).0, ALLOW);
        }
    }

    #[test]
    fn an_instruction_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
    }
}

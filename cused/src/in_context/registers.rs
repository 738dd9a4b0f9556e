//! The registers of a stopped thread, as far as leading it through system calls needs them.
//!
//! Pure, and built for every architecture on every architecture, so that all of it is tested
//! wherever the tests run. The layouts are those of the regset NT_PRSTATUS: `struct
//! user_regs_struct` (arch/x86/include/asm/user_64.h) and `struct user_pt_regs`
//! (arch/arm64/include/uapi/asm/ptrace.h).

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The numbers of the system calls that callers are led through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calls {
    pub(super) mmap: u64,
    pub(super) madvise: u64,
    pub(super) socketpair: u64,
    pub(super) recvmsg: u64,
    pub(super) ioctl: u64,
    pub(super) close: u64,
    pub(super) close_range: u64,
    pub(super) clone: u64,
    pub(super) wait4: u64,
    pub(super) io_uring_setup: u64,
    pub(super) io_uring_register: u64,
}

/// The general registers of a thread on one architecture.
pub(super) trait Registers: Copy + FromBytes + IntoBytes + Immutable {
    /// Its system calls.
    const CALLS: Calls;
    /// The machine code of the instruction that enters the kernel.
    const ENTER: &'static [u8];

    /// Where the thread goes on.
    fn pc(&self) -> u64;
    /// What the system call that the thread has just made returned.
    fn result(&self) -> i64;
    /// Whether the thread has just made system call `number`, as a 64-bit program makes it.
    /// Where the architecture does not keep the number, the instruction has to tell.
    fn has_made(&self, number: u64) -> bool;
    /// The same thread about to make another call with the instruction that it has just used.
    fn calling(&self, number: u64, arguments: [u64; 6]) -> Self;
    /// The same thread with another result of its call.
    fn returning(&self, result: i64) -> Self;
}

/// x86-64.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for tests"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct X86 {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    orig_rax: u64,
    rip: u64,
    cs: u64,
    eflags: u64,
    rsp: u64,
    ss: u64,
    fs_base: u64,
    gs_base: u64,
    ds: u64,
    es: u64,
    fs: u64,
    gs: u64,
}

/// The code segment of 64-bit programs (__USER_CS).
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for tests"))]
const X86_CS_64: u64 = 0x33;

impl Registers for X86 {
    const CALLS: Calls = Calls {
        mmap: 9,
        madvise: 28,
        socketpair: 53,
        recvmsg: 47,
        ioctl: 16,
        close: 3,
        close_range: 436,
        clone: 56,
        wait4: 61,
        io_uring_setup: 425,
        io_uring_register: 427,
    };
    // syscall; a 32-bit entry is cd 80.
    const ENTER: &'static [u8] = &[0x0f, 0x05];

    fn pc(&self) -> u64 {
        self.rip
    }

    fn result(&self) -> i64 {
        self.rax.cast_signed()
    }

    fn has_made(&self, number: u64) -> bool {
        self.orig_rax == number && self.cs == X86_CS_64
    }

    fn calling(&self, number: u64, arguments: [u64; 6]) -> Self {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        Self {
            rax: number,
            // No call is in progress, so that the kernel will not take it for one to restart.
            orig_rax: u64::MAX,
            rip: self.rip.wrapping_sub(Self::ENTER.len() as u64),
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..*self
        }
    }

    fn returning(&self, result: i64) -> Self {
        Self { rax: result.cast_unsigned(), ..*self }
    }
}

/// 64-bit Arm.
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "for tests"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Arm64 {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
}

/// PSTATE.nRW: the thread runs 32-bit code.
#[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "for tests"))]
const ARM64_PSTATE_32_BIT: u64 = 1 << 4;

impl Registers for Arm64 {
    const CALLS: Calls = Calls {
        mmap: 222,
        madvise: 233,
        socketpair: 199,
        recvmsg: 212,
        ioctl: 29,
        close: 57,
        close_range: 436,
        clone: 220,
        wait4: 260,
        io_uring_setup: 425,
        io_uring_register: 427,
    };
    // svc #0, as it lies in memory.
    const ENTER: &'static [u8] = &[0x01, 0x00, 0x00, 0xd4];

    fn pc(&self) -> u64 {
        self.pc
    }

    fn result(&self) -> i64 {
        self.x[0].cast_signed()
    }

    fn has_made(&self, number: u64) -> bool {
        self.x[8] == number && self.pstate & ARM64_PSTATE_32_BIT == 0
    }

    fn calling(&self, number: u64, arguments: [u64; 6]) -> Self {
        let mut next = *self;
        next.x[..arguments.len()].copy_from_slice(&arguments);
        next.x[8] = number;
        next.pc = self.pc.wrapping_sub(Self::ENTER.len() as u64);
        next
    }

    fn returning(&self, result: i64) -> Self {
        let mut next = *self;
        next.x[0] = result.cast_unsigned();
        next
    }
}

/// The registers of this machine.
#[cfg(target_arch = "x86_64")]
pub(super) type Native = X86;
/// The registers of this machine.
#[cfg(target_arch = "aarch64")]
pub(super) type Native = Arm64;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("callers' threads cannot be led through system calls on this architecture yet");

#[cfg(test)]
mod tests {
    use super::*;

    const ARGUMENTS: [u64; 6] = [11, 12, 13, 14, 15, 16];

    fn x86() -> X86 {
        X86 {
            r15: 1,
            rbx: 2,
            rbp: 3,
            rcx: 4,
            r11: 5,
            rsp: 0x7fff_0000,
            rax: (-5_i64).cast_unsigned(),
            orig_rax: 16,
            rip: 0x40_1002,
            cs: 0x33,
            ..X86::default()
        }
    }

    fn arm64() -> Arm64 {
        let mut registers = Arm64 { sp: 0x7fff_0000, pc: 0x40_1004, ..Arm64::default() };
        for (number, x) in registers.x.iter_mut().enumerate() {
            *x = 100 + number as u64;
        }
        registers.x[0] = (-5_i64).cast_unsigned();
        registers.x[8] = 29;
        registers
    }

    #[test]
    fn the_sizes_are_those_of_the_kernel_regset() {
        assert_eq!(size_of::<X86>(), 27 * 8);
        assert_eq!(size_of::<Arm64>(), 34 * 8);
    }

    #[test]
    fn x86_calls_again_with_the_instruction_just_used() {
        let next = x86().calling(9, ARGUMENTS);
        assert_eq!(next.rip, 0x40_1000);
        assert_eq!((next.rax, next.orig_rax), (9, u64::MAX));
        assert_eq!([next.rdi, next.rsi, next.rdx, next.r10, next.r8, next.r9], ARGUMENTS);
        let kept = |r: X86| (r.r15, r.rbx, r.rbp, r.rsp, r.rcx, r.r11, r.cs);
        assert_eq!(kept(next), kept(x86()));
    }

    #[test]
    fn arm64_calls_again_with_the_instruction_just_used() {
        let next = arm64().calling(222, ARGUMENTS);
        assert_eq!(next.pc, 0x40_1000);
        assert_eq!(next.x[..6], ARGUMENTS);
        assert_eq!(next.x[8], 222);
        assert_eq!(next.x[6..8], arm64().x[6..8]);
        assert_eq!(next.x[9..], arm64().x[9..]);
        assert_eq!(next.sp, arm64().sp);
    }

    #[test]
    fn the_result_is_read_and_replaced_and_nothing_else_is() {
        assert_eq!(x86().result(), -5);
        assert_eq!(X86 { rax: x86().rax, ..x86().returning(7) }, x86());
        assert_eq!(x86().returning(-14).result(), -14);
        assert_eq!(arm64().result(), -5);
        let mut back = arm64().returning(7);
        assert_eq!(back.result(), 7);
        back.x[0] = arm64().x[0];
        assert_eq!(back, arm64());
    }

    #[test]
    fn only_64_bit_calls_of_the_number_count() {
        assert!(x86().has_made(16));
        assert!(!x86().has_made(1));
        assert!(!X86 { cs: 0x23, ..x86() }.has_made(16));
        assert!(arm64().has_made(29));
        assert!(!arm64().has_made(16));
        assert!(!Arm64 { pstate: 1 << 4, ..arm64() }.has_made(29));
    }

    #[test]
    fn the_numbers_of_this_machine_are_those_of_libc() {
        let calls = Native::CALLS;
        let libc = Calls {
            mmap: libc::SYS_mmap as u64,
            madvise: libc::SYS_madvise as u64,
            socketpair: libc::SYS_socketpair as u64,
            recvmsg: libc::SYS_recvmsg as u64,
            ioctl: libc::SYS_ioctl as u64,
            close: libc::SYS_close as u64,
            close_range: libc::SYS_close_range as u64,
            clone: libc::SYS_clone as u64,
            wait4: libc::SYS_wait4 as u64,
            io_uring_setup: libc::SYS_io_uring_setup as u64,
            io_uring_register: libc::SYS_io_uring_register as u64,
        };
        assert_eq!(calls, libc);
    }
}

// SPDX-License-Identifier: GPL-2.0
//! Exceptions and calls: from the processor's entry to one Rust function, and back.
//!
//! A process runs on the registers that are in its [`Frame`]. The kernel copies that to and from
//! the process's own storage, so that returning from a trap is also how another process starts:
//! there is one stack for each vCPU, and nothing on it survives a trap.

use core::arch::{asm, global_asm};

use minikernel_abi::call;

use crate::{cpu, schedule};

/// Registers of whoever was interrupted, as the entry code stores them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    #[cfg(target_arch = "x86_64")]
    pub r: [usize; 8],
    pub di: usize,
    pub si: usize,
    pub bp: usize,
    pub bx: usize,
    pub dx: usize,
    pub cx: usize,
    pub ax: usize,
    pub vector: usize,
    pub error: usize,
    pub ip: usize,
    pub cs: usize,
    pub flags: usize,
    /// Not there in protected mode when the kernel was interrupted.
    pub sp: usize,
    pub ss: usize,
}

impl Frame {
    pub const ZERO: Self = Self {
        #[cfg(target_arch = "x86_64")]
        r: [0; 8],
        di: 0,
        si: 0,
        bp: 0,
        bx: 0,
        dx: 0,
        cx: 0,
        ax: 0,
        vector: 0,
        error: 0,
        ip: 0,
        cs: 0,
        flags: 0,
        sp: 0,
        ss: 0,
    };

    pub fn is_user(&self) -> bool {
        self.cs & 3 == 3
    }
}

pub const PAGE_FAULT: usize = 14;

/// The entry code of vectors 0 to 31, and of calls as 32.
pub fn entry(which: usize) -> usize {
    extern "C" {
        static trap_entries: u8;
    }
    core::ptr::addr_of!(trap_entries) as usize + 16 * which
}

// Vectors 8, 10 to 14, 17, 21, 29 and 30 bring an error code; the others get a zero in its place.
global_asm!(
    ".pushsection .text.traps, \"ax\"",
    ".balign 16",
    "trap_entries:",
    ".set vector, 0",
    ".rept 33",
    ".balign 16",
    ".if (0x60227d00 >> vector) & 1 == 0",
    "push 0",
    ".endif",
    ".if vector == 32",
    "push {call}",
    ".else",
    "push vector",
    ".endif",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    ".popsection",
    call = const call::VECTOR,
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.traps, \"ax\"",
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "push rbp",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call {trap}",
    "trap_return:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rbp",
    "pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    trap = sym trap,
);

#[cfg(target_arch = "x86")]
global_asm!(
    ".pushsection .text.traps, \"ax\"",
    "trap_common:",
    "push eax",
    "push ecx",
    "push edx",
    "push ebx",
    "push ebp",
    "push esi",
    "push edi",
    "cld",
    "mov eax, esp",
    // Rust expects 16-byte alignment, and may change its argument's place.
    "mov ebp, esp",
    "and esp, -16",
    "sub esp, 12",
    "push eax",
    "call {trap}",
    "mov esp, ebp",
    "trap_return:",
    "pop edi",
    "pop esi",
    "pop ebp",
    "pop ebx",
    "pop edx",
    "pop ecx",
    "pop eax",
    "add esp, 8",
    "iretd",
    ".popsection",
    trap = sym trap,
);

/// Goes to user mode with these registers, and never comes back to the caller.
pub fn enter(frame: &Frame) -> ! {
    // SAFETY: the frame is one of user mode; the stack below it is of no more use.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mov rsp, {}", "jmp trap_return", in(reg) frame, options(noreturn));
        #[cfg(target_arch = "x86")]
        asm!("mov esp, {}", "jmp trap_return", in(reg) frame, options(noreturn));
    }
}

/// Everything that happens comes here, with the registers to go on with afterwards.
extern "C" fn trap(frame: &mut Frame) {
    if frame.is_user() {
        schedule::trap_from_user(frame);
    } else if frame.vector == PAGE_FAULT && crate::probe::caught(frame) {
        // An access of the kernel that was meant to see whether it faults.
    } else {
        panic!(
            "exception {} in the kernel, error code {:#x}, at {:#x}, CR2 {:#x}",
            frame.vector,
            frame.error,
            frame.ip,
            cpu::cr2()
        );
    }
}

// SPDX-License-Identifier: GPL-2.0
//! The first instructions, and the stacks. All vCPUs start at the same address at the same time,
//! with their number in EDI; one stack each is all that they need to run Rust.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use minikernel_abi::MAX_VCPUS;

pub const STACK_SIZE: usize = 16 << 10;

#[repr(C, align(4096))]
pub struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; MAX_VCPUS as usize]>);

// SAFETY: each vCPU uses its own, and only as a stack.
unsafe impl Sync for Stacks {}

impl Stacks {
    pub fn start(&self) -> usize {
        self.0.get() as usize
    }

    /// Where a vCPU's stack begins; it grows down from there.
    pub fn top(&self, index: usize) -> usize {
        self.start() + STACK_SIZE * (index + 1)
    }
}

#[no_mangle]
pub static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; MAX_VCPUS as usize]));

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .start, \"ax\"",
    ".globl _start",
    "_start:",
    "mov eax, edi",
    "inc eax",
    "imul eax, eax, {size}",
    "lea rsp, [STACKS + rax]",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".popsection",
    size = const STACK_SIZE,
    main = sym crate::main,
);

#[cfg(target_arch = "x86")]
global_asm!(
    ".pushsection .start, \"ax\"",
    ".globl _start",
    "_start:",
    "mov eax, edi",
    "inc eax",
    "imul eax, eax, {size}",
    "lea esp, [STACKS + eax - 12]",
    "xor ebp, ebp",
    "push edi",
    "call {main}",
    "ud2",
    ".popsection",
    size = const STACK_SIZE,
    main = sym crate::main,
);

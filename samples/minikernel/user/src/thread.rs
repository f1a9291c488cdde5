// SPDX-License-Identifier: GPL-2.0
//! Threads: processes in one address space, each with a stack that was mapped for it.

use core::arch::global_asm;

use crate::calls;
use crate::memory::{Memory, PAGE};

const STACK_PAGES: usize = 4;

/// What a new thread finds at the top of its stack.
#[repr(C)]
struct Start {
    body: fn(usize) -> u64,
    argument: usize,
}

pub struct Thread {
    number: usize,
    stack: Memory,
}

extern "C" {
    fn thread_start();
}

#[cfg(target_arch = "x86_64")]
global_asm!("thread_start:", "call {}", "ud2", sym begin);
// The argument goes on the stack, below which the alignment is 16 bytes.
#[cfg(target_arch = "x86")]
global_asm!("thread_start:", "sub esp, 12", "push edi", "call {}", "ud2", sym begin);

extern "C" fn begin(start: &Start) -> ! {
    calls::exit((start.body)(start.argument))
}

/// Runs `body` in a thread.
pub fn spawn(body: fn(usize) -> u64, argument: usize) -> Thread {
    let stack = Memory::new(STACK_PAGES, 0);
    let top = stack.start + STACK_PAGES * PAGE - 64;
    // SAFETY: the stack was just mapped for this thread, and lives longer.
    unsafe { (top as *mut Start).write(Start { body, argument }) };
    let number = calls::spawn(thread_start as *const () as usize, top, top);
    Thread { number, stack }
}

impl Thread {
    /// Waits for its end; returns what it has returned.
    pub fn join(self) -> u64 {
        let result = calls::wait(self.number);
        self.stack.unmap();
        result
    }
}

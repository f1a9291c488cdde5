// SPDX-License-Identifier: GPL-2.0
//! The program in the mini-kernel's processes: one workload, which ends with a checksum of what it
//! has read. That depends on the workload, its size and the seed, and on nothing else: not on the
//! order in which processes run, how many vCPUs there are, or what kind of paging is below.

#![no_std]
#![no_main]

mod calls;
mod code;
mod entry;
#[path = "../../memory.rs"]
mod functions;
mod memory;
mod random;
mod thread;
mod workloads;

use core::arch::global_asm;
use core::panic::PanicInfo;

use minikernel_abi::call::parameter;

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "call {}", "ud2", sym start);
#[cfg(target_arch = "x86")]
global_asm!(".globl _start", "_start:", "call {}", "ud2", sym start);

extern "C" fn start() -> ! {
    let workload = workloads::ALL[calls::parameter(parameter::WORKLOAD)];
    calls::exit(workload())
}

/// `usual`, as much more or less as was asked for, but one at least.
fn scaled(usual: usize) -> usize {
    (usual * calls::parameter(parameter::SIZE) / 100).max(1)
}

fn seed() -> u32 {
    calls::parameter(parameter::SEED) as u32
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let line = info.location().map_or(0, |place| place.line());
    calls::fail(line as usize, 0, 0)
}

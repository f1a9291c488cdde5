// SPDX-License-Identifier: GPL-2.0
//! Segments, and what a processor does when something happens. Segmentation is flat, and as little
//! of it as there can be: two privilege levels, and for each vCPU a task-state segment that says
//! where its stack begins.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::size_of;

use minikernel_abi::{call, MAX_VCPUS};

use crate::start::STACKS;
use crate::traps;

const KERNEL_CODE: u16 = 0x08;
const USER: u16 = 3;
/// Flat in every mode, so that the kernel uses it too and never has to reload a segment.
pub const DATA: u16 = 0x18 | USER;
pub const USER_CODE: u16 = 0x20 | USER;
const TASK: u16 = 0x28;
const STACK: u16 = 0x10;

const LONG: bool = cfg!(target_pointer_width = "64");
/// L in long mode, D in protected mode.
const CODE_SIZE: u64 = if LONG { 1 << 53 } else { 1 << 54 };
const FLAT_CODE: u64 = 0x008f_9b00_0000_ffff | CODE_SIZE;
const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;
const FOR_USER: u64 = 3 << 45;
/// An available task-state segment; the processor makes it busy.
const TASK_PRESENT: u64 = 0x89 << 40;
const TRAP_GATE: u64 = 0x8f << 40;

/// Bytes of a task-state segment, and where the stack of level 0 is in it.
const TASK_SIZE: usize = 104;
const TASK_STACK: usize = 4;
#[cfg(target_pointer_width = "32")]
const TASK_SEGMENT: usize = 8;

const VECTORS: usize = call::VECTOR as usize + 1;
/// 64-bit words of a gate.
const GATE: usize = size_of::<usize>() / 4;

#[repr(C, align(16))]
struct Tables {
    segments: [u64; 7],
    task: [u8; TASK_SIZE],
    gates: [u64; GATE * VECTORS],
}

struct PerCpu(UnsafeCell<[Tables; MAX_VCPUS as usize]>);

// SAFETY: each vCPU writes its own, once, before it loads them.
unsafe impl Sync for PerCpu {}

static TABLES: PerCpu = PerCpu(UnsafeCell::new(
    [const { Tables { segments: [0; 7], task: [0; TASK_SIZE], gates: [0; GATE * VECTORS] } };
        MAX_VCPUS as usize],
));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: usize,
}

impl Pointer {
    fn to<T>(table: &T) -> Self {
        Self { limit: (size_of::<T>() - 1) as u16, base: core::ptr::from_ref(table) as usize }
    }
}

/// Fills in this vCPU's tables and loads them.
pub fn load(index: usize) {
    // SAFETY: nobody else uses this vCPU's, and it does so only from here on.
    let tables = unsafe { &mut (*TABLES.0.get())[index] };
    let stack = STACKS.top(index);
    tables.task[TASK_STACK..][..size_of::<usize>()].copy_from_slice(&stack.to_le_bytes());
    #[cfg(target_pointer_width = "32")]
    tables.task[TASK_SEGMENT..][..2].copy_from_slice(&STACK.to_le_bytes());

    let task = tables.task.as_ptr() as u64;
    tables.segments = [
        0,
        FLAT_CODE,
        FLAT_DATA,
        FLAT_DATA | FOR_USER,
        FLAT_CODE | FOR_USER,
        (TASK_SIZE as u64 - 1) | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56 | TASK_PRESENT,
        // Long mode has the upper half of the address here.
        task >> 32,
    ];
    // Gates that leave interrupts on: an emulated VMX may hold its host's back while they are off.
    for (vector, gate) in tables.gates.chunks_exact_mut(GATE).enumerate() {
        let entry = match vector {
            0..32 => traps::entry(vector),
            _ if vector == usize::from(call::VECTOR) => traps::entry(32),
            _ => continue,
        } as u64;
        let from_user = if vector >= 32 { FOR_USER } else { 0 };
        gate[0] = entry & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | TRAP_GATE
            | from_user
            | (entry >> 16 & 0xffff) << 48;
        if LONG {
            gate[GATE - 1] = entry >> 32;
        }
    }

    let segments = Pointer::to(&tables.segments);
    let gates = Pointer::to(&tables.gates);
    // SAFETY: the tables are complete, stay where they are, and have the segments in use.
    unsafe {
        asm!("lgdt [{}]", "lidt [{}]", in(reg) &segments, in(reg) &gates, options(nostack));
        load_segments();
        asm!("ltr {:x}", in(reg) TASK, options(nostack));
    }
}

/// # Safety
///
/// The table that was just loaded has them.
unsafe fn load_segments() {
    // SAFETY: the segments are as flat as those before.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!(
            "push {code}", "lea {scratch}, [rip + 2f]", "push {scratch}", "retfq", "2:",
            code = const KERNEL_CODE,
            scratch = out(reg) _,
        );
        #[cfg(target_arch = "x86")]
        asm!(
            "push {code}", "lea {scratch}, [2f]", "push {scratch}", "retf", "2:",
            code = const KERNEL_CODE,
            scratch = out(reg) _,
        );
        asm!(
            "mov ss, {stack:x}", "mov ds, {data:x}", "mov es, {data:x}",
            stack = in(reg) STACK,
            data = in(reg) DATA,
            options(nostack),
        );
    }
}

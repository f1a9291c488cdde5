// SPDX-License-Identifier: GPL-2.0

//! A slot may end at the top of guest-physical space and not above it, and the guest reaches its last byte.

use crate::compare::{compare, Log};
use crate::machine::{PTE_ALL, PTE_LARGE};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(memslot_top, code64, "mov [rbx], rax", "mov rdx, [rbx]", "mov cl, [rbx + 7]", "hlt");

const LARGE: u64 = 2 << 20;

fn run(t: &Context) -> Outcome {
    let cpuid = t.device()?.supported_cpuid(256)?;
    let sizes = cpuid.iter().find(|entry| entry.function == 0x8000_0008).map_or(36, |entry| entry.eax);
    let top = 1u64 << (sizes & 0xFF);
    // Both must see the same host addresses.
    let memory = Memory::aligned(LARGE as usize, LARGE as usize)?;
    compare(t, |device, log| scenario(device, log, top, &memory))
}

fn scenario(device: &Device, log: &mut Log, top: u64, memory: &Memory) -> Outcome {
    let machine = Machine::long(device, memslot_top())?;
    let page = PAGE as u64;
    // Virtual 1 GiB is the last large page of physical space.
    machine.memory.write_u64(layout::DIRECTORIES + 0x1000, (top - LARGE) | PTE_LARGE | PTE_ALL);
    for (what, gpa, size) in [
        ("the last page", top - page, page),
        ("the last large page", top - LARGE, LARGE),
        ("across the top", top - page, 2 * page),
        ("at the top", top, page),
        ("far above", top << 1, page),
        ("the last page of 64 bits", 0u64.wrapping_sub(page), page),
        ("around to zero", 0u64.wrapping_sub(page), 2 * page),
        ("all of it and more", page, 0u64.wrapping_sub(page)),
    ] {
        let result = machine.vm.set_slot(1, 0, gpa, size, memory.address());
        note!(log, "{what}: {result:?}");
        for offset in [LARGE - 8, LARGE - page, 0] {
            memory.fill(0, LARGE as usize, 0);
            let value = 0x1122_3344_5566_7788 ^ offset;
            machine.change_regs(|regs| {
                (regs.rip, regs.rbx, regs.rax) = (layout::CODE as u64, 0x4000_0000 + offset, value);
                (regs.rcx, regs.rdx) = (0, 0);
            })?;
            let exit = machine.run()?;
            let regs = machine.vcpu.regs()?;
            let at = (gpa.wrapping_sub(top - LARGE)).wrapping_sub(offset).wrapping_neg();
            let stored = if exit == Exit::Hlt { memory.read_u64(at as usize) } else { 0 };
            note!(log, "{what} + {offset:#x}: {exit:x?} {:#x} {:#x} {stored:#x}", regs.rdx, regs.rcx);
            machine.vcpu.set_immediate_exit(1);
            let _ = machine.run();
            machine.vcpu.set_immediate_exit(0);
        }
        if result.is_ok() {
            machine.vm.set_slot(1, 0, 0, 0, 0)?;
        }
    }
    Ok(())
}

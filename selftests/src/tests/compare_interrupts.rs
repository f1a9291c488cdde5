// SPDX-License-Identifier: GPL-2.0

//! Interrupts at random exits, and requests for an interrupt window, go as with KVM.

use crate::compare::{compare, Log};
use crate::emulator;
use crate::prelude::*;
use crate::random::Random;
use crate::traps;

pub const TEST: Test = Test::new(60, run);

guest!(
    compare_interrupts,
    code64,
    "2: cli",
    "out 0x11, al",
    "sti",
    "out 0x12, al",
    "nop",
    "hlt",
    "mov eax, ss",
    "mov ss, eax",
    "out 0x13, al",
    "pushfq",
    "cli",
    "mov ebx, 0xd0000000",
    "mov eax, [rbx]",
    "popfq",
    "out 0x14, al",
    "sti",
    "hlt",
    "mov [rbx], eax",
    "in al, 0x15",
    "jmp 2b",
);
guest!(
    // The same without an exit in a shadow.
    compare_interrupts_open,
    code64,
    "2: cli",
    "out 0x11, al",
    "sti",
    "nop",
    "out 0x12, al",
    "nop",
    "hlt",
    "mov eax, ss",
    "mov ss, eax",
    "nop",
    "out 0x13, al",
    "pushfq",
    "cli",
    "mov ebx, 0xd0000000",
    "mov eax, [rbx]",
    "popfq",
    "nop",
    "out 0x14, al",
    "sti",
    "nop",
    "hlt",
    "mov [rbx], eax",
    "in al, 0x15",
    "jmp 2b",
);
guest!(compare_interrupts_handler, code64, "inc r15", "mov r14, [rsp]", "out 0x20, al", "iretq");

fn run(t: &Context) -> Outcome {
    let count = t.repetitions(1000);
    compare(t, |device, log| scenario(device, log, count))
}

fn scenario(device: &Device, log: &mut Log, count: u64) -> Outcome {
    // QEMU's TCG forgets a shadow with any exit in it, that for a host interrupt as well.
    let code = if emulator::is_tcg() { compare_interrupts_open() } else { compare_interrupts() };
    let machine = Machine::long(device, code)?;
    machine.memory.write(layout::DATA, compare_interrupts_handler());
    for vector in 0x20..0x100 {
        machine.memory.write_u64(layout::IDT + 16 * vector, traps::gate(layout::DATA));
    }
    let mut random = Random::new(17);
    let area = machine.vcpu.kvm_run();
    for _ in 0..count {
        let mut exit = machine.run()?;
        match &mut exit {
            Exit::MmioRead { length, .. } => machine.vcpu.answer_mmio(&vec![7; *length]),
            // What the area held before nobody promises.
            Exit::Io { direction: Direction::In, data, .. } => {
                data.fill(0);
                machine.vcpu.answer_io(&[0x15]);
            }
            _ => {}
        }
        // SAFETY: the vCPU's area.
        let (ready, flag) = unsafe { ((*area).ready_for_interrupt_injection, (*area).if_flag) };
        let regs = machine.vcpu.regs()?;
        note!(log, "{exit:x?} ready {ready} IF {flag} handled {} at {:#x}", regs.r15, regs.r14);
        let (inject, window) = (random.one_in(3), random.one_in(4));
        let vector = 0x20 + random.below(0xE0) as u32;
        if ready != 0 && inject {
            note!(log, "vector {vector:#x}: {:?}", machine.vcpu.interrupt(vector));
            let pending = machine.vcpu.sregs()?.interrupt_bitmap;
            note!(log, "pending {pending:x?}");
        }
        // SAFETY: as above.
        unsafe { (&raw mut (*area).request_interrupt_window).write_volatile(window.into()) };
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! An interrupt waits while the guest has interrupts off or in shadow, and comes at the first instruction that takes it.

use crate::emulator;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(10, run);

guest!(
    interrupt_waits,
    code64,
    "cli",
    "out 0x11, al",
    "mov eax, ss",
    "nop",
    "sti",
    "mov ss, eax",
    "nop",
    // Here: neither right behind STI, nor right behind MOV SS.
    "3: inc rbx",
    "out 0x12, al",
    "hlt",
    "lea rdi, [rip + 3b]",
);
guest!(interrupt_waits_handler, code64, "mov rax, [rsp]", "mov rcx, [rsp + 16]", "out 0x20, al", "iretq");

const VECTOR: usize = 0x51;

fn run(t: &Context) -> Outcome {
    // KVM injects it at once, and the entry fails.
    let device = t.rusthv()?;
    if !emulator::is_nested() && (emulator::is_tcg() || emulator::is_bochs()) {
        // Without nested tables, MOV SS behind STI makes one, for the page of its descriptor.
        skip!("the emulators forget the shadow of STI when a page fault exits in it");
    }
    let machine = Machine::long(&device, interrupt_waits())?;
    let vcpu = &machine.vcpu;
    // SAFETY: the vCPU's area.
    let ready = || unsafe {
        let area = vcpu.kvm_run().read_volatile();
        (area.if_flag, area.ready_for_interrupt_injection)
    };
    machine.memory.write(layout::DATA, interrupt_waits_handler());
    machine.memory.write_u64(layout::IDT + 16 * VECTOR, traps::gate(layout::DATA));
    check!(matches!(machine.run()?, Exit::Io { port: 0x11, .. }), "{:x?}", vcpu.exit());
    check_eq!(vcpu.interrupt(VECTOR as u32), Ok(0));
    check_err!(vcpu.interrupt(VECTOR as u32 + 1), EEXIST, "one is waiting");
    check_err!(vcpu.interrupt(256), EINVAL, "none at all is refused before that");
    let mut bitmap = [0; 4];
    bitmap[VECTOR / 64] = 1 << (VECTOR % 64);
    check_eq!(vcpu.sregs()?.interrupt_bitmap, bitmap, "waiting");
    // Completes the OUT, and runs nothing.
    vcpu.set_immediate_exit(1);
    check_err!(machine.run(), EINTR);
    vcpu.set_immediate_exit(0);
    check_eq!(ready(), (0, 0), "IF and ready, with one waiting");
    check_eq!(vcpu.sregs()?.interrupt_bitmap, bitmap, "still waiting");
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x20, .. }), "the handler, not {exit:x?}");
    let regs = vcpu.regs()?;
    // CLI, OUT, MOV, NOP, STI and MOV SS are 1, 2, 2, 1, 1 and 2 bytes.
    // QEMU's TCG forgets the shadow of MOV SS when there is an exit in it.
    let behind_mov_ss = if emulator::is_tcg() { 0 } else { 1 };
    check_eq!(regs.rax, layout::CODE as u64 + 9 + behind_mov_ss, "where it came");
    check_eq!(regs.rbx, 0, "before the next instruction");
    check_eq!(regs.rcx & 0x200, 0x200, "with interrupts on");
    check_eq!(vcpu.sregs()?.interrupt_bitmap, [0; 4], "delivered");
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x12, .. }), "{exit:x?}");
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! LMSW and SMSW, of registers and of memory, with caches off for the guest; and INT1 is a #DB behind it.

use crate::emulator;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

// MP and TS on, from memory; read in every form; TS off and on again, from a register.
guest!(
    machine_status,
    code16,
    "mov bx, 0x6000",
    "mov word ptr [bx], 0x1a",
    "lmsw [bx]",
    "smsw [bx + 2]",
    "mov eax, 0x11111111",
    "smsw ax",
    "smsw ecx",
    "mov edx, cr0",
    "mov bp, 0x10",
    "lmsw bp",
    "mov esi, cr0",
    "mov bp, 0x18",
    "lmsw bp",
    "mov edi, cr0",
    "hlt",
);
guest!(machine_status_int1, code64, ".byte 0xf1", "nop", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::real(&device, machine_status())?;
    // CD and NW, as after a reset: they stay as they are.
    check_eq!(machine.vcpu.sregs()?.cr0, 0x6000_0010);
    for attempt in ["first", "second"] {
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        check_eq!(machine.run()?, Exit::Hlt, "{attempt}");
        let regs = machine.vcpu.regs()?;
        check_eq!(machine.memory.read_u32(0x6000), 0x001a_001a, "SMSW of memory, {attempt}");
        check_eq!(regs.rax & 0xFFFF_FFFF, 0x1111_001a, "SMSW of 16 bits, {attempt}");
        check_eq!(regs.rcx & 0xFFFF_FFFF, 0x6000_001a, "SMSW of 32 bits, {attempt}");
        check_eq!(regs.rdx & 0xFFFF_FFFF, 0x6000_001a, "MOV of CR0, {attempt}");
        check_eq!(regs.rsi & 0xFFFF_FFFF, 0x6000_0010, "after LMSW of a register, {attempt}");
        check_eq!(regs.rdi & 0xFFFF_FFFF, 0x6000_0018, "after another one, {attempt}");
        check_eq!(machine.vcpu.sregs()?.cr0, 0x6000_0018, "for user space, {attempt}");
    }
    if emulator::is_tcg() {
        // There INT1 is an undefined instruction.
        return Ok(());
    }
    let machine = Machine::long(&device, machine_status_int1())?;
    let trap = machine.run_to_trap("INT1")?;
    check_eq!((trap.vector, trap.rip), (traps::DEBUG, layout::CODE as u64 + 1), "INT1");
    Ok(())
}

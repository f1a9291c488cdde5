// SPDX-License-Identifier: GPL-2.0

//! #DB reaches the guest whatever stands in front of it: single steps behind STI, INT1 behind MOV SS; and ends DR7.GD.

use crate::emulator;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(debug_behind_sti, code64, "cli", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "sti", "nop", "nop",);
// INT1 is F1.
guest!(
    debug_int1,
    code64,
    "mov eax, ss",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "mov ss, eax",
    ".byte 0xf1",
    "nop",
);
guest!(
    debug_general_detect,
    code64,
    "mov eax, 0x2400",
    "mov dr7, rax",
    "pushfq",
    "or qword ptr [rsp], 0x100",
    "popfq",
    "nop",
    "hlt",
);
guest!(debug_handler, code64, "mov rbx, dr7", "mov rcx, dr6", "out 0x20, al", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, debug_behind_sti())?;
    let end = (layout::CODE + debug_behind_sti().len()) as u64;
    let trap = machine.run_to_trap("a step over STI")?;
    // QEMU's TCG does not step in the shadow of STI.
    let behind = if emulator::is_tcg() { 1 } else { 2 };
    check_eq!((trap.vector, trap.rip), (traps::DEBUG, end - behind));
    check_eq!(trap.rflags & 0x300, 0x300, "IF and TF");

    if emulator::is_tcg() {
        // That of QEMU 7.2 has no INT1, delivers a single step itself, and leaves DR7 as it is.
        return Ok(());
    }
    let machine = Machine::long(&device, debug_int1())?;
    let end = (layout::CODE + debug_int1().len()) as u64;
    let trap = machine.run_to_trap("INT1 behind MOV SS")?;
    check_eq!((trap.vector, trap.rip), (traps::DEBUG, end - 1));

    let machine = Machine::long(&device, debug_general_detect())?;
    machine.memory.write(layout::DATA, debug_handler());
    machine.memory.write_u64(layout::IDT + 16, traps::gate(layout::DATA));
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x20, .. }), "{exit:x?}");
    let regs = machine.vcpu.regs()?;
    check_eq!(regs.rbx, 0x400, "DR7 in the handler");
    check_eq!(regs.rcx & 0x6000, 0x4000, "DR6: a single step, and no access to a debug register");
    Ok(())
}

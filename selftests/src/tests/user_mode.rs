// SPDX-License-Identifier: GPL-2.0

//! SYSCALL, SYSRET, SWAPGS and faults from user mode in a guest, with the host's own MSRs unharmed.

use crate::machine::{PTE_ALL, PTE_LARGE, PTE_USER};
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(30, run);

guest!(
    user_mode,
    code64,
    // STAR, LSTAR, FMASK, KERNEL_GS_BASE, GS_BASE.
    "mov ecx, 0xc0000081",
    "xor eax, eax",
    "mov edx, 0x00330008",
    "wrmsr",
    "inc ecx",
    "lea rax, [rip + 4f]",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0xc0000084",
    "mov eax, 0x700",
    "wrmsr",
    "mov ecx, 0xc0000102",
    "mov eax, 0x20000",
    "wrmsr",
    "dec ecx",
    "mov eax, 0x21000",
    "wrmsr",
    // To user mode.
    "push 0x3b",
    "push 0x17000",
    "push 0x202",
    "push 0x43",
    "lea rax, [rip + 3f]",
    "push rax",
    "iretq",
    // User: counts its system calls in r12, passes rbx.
    "3: mov rbx, 0x1234",
    "mov r12d, 100",
    "2: syscall",
    "cmp rbx, 0x1235",
    "jne 5f",
    "dec rbx",
    "dec r12",
    "jnz 2b",
    "mov rax, gs:[0]",
    "mov rbx, 0x600000",
    "mov [rbx], rax",
    "5: ud2",
    // Kernel.
    "4: swapgs",
    "inc qword ptr gs:[0]",
    "out 0x10, al",
    "swapgs",
    "inc rbx",
    "sysretq",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, user_mode())?;
    // STAR[63:48] = 0x33: SYSRET makes 0x3b and 0x43 of it.
    check_eq!((layout::USER_DATA | 3, layout::USER_CODE64 | 3), (0x3B, 0x43));
    machine.memory.write_u64(0x21000, 0x7777);
    // A page that only the kernel may touch.
    let entry = layout::DIRECTORIES + 8 * 3;
    machine.memory.write_u64(entry, (0x60_0000 | PTE_LARGE | PTE_ALL) & !PTE_USER);
    let mut calls = 0;
    let trap = loop {
        let exit = machine.run()?;
        if let Some(trap) = traps::trap(&machine, &exit)? {
            break trap;
        }
        check!(matches!(exit, Exit::Io { port: 0x10, .. }), "after {calls} calls: {exit:x?}");
        let regs = machine.vcpu.regs()?;
        check_eq!(regs.rflags & 0x700, 0, "FMASK clears them");
        check_eq!(regs.r11 & 0x202, 0x202, "R11 has the user's flags");
        check_eq!(machine.vcpu.sregs()?.cs.selector, layout::CODE64);
        calls += 1;
    };
    check_eq!(calls, 100);
    check_eq!(machine.memory.read_u64(layout::DATA), 100, "counted through the kernel's GS");
    check_eq!(
        (trap.vector, trap.error, trap.cs),
        (traps::PAGE_FAULT, 7, 0x43),
        "a user's write to the kernel's page"
    );
    let regs = machine.vcpu.regs()?;
    check_eq!(regs.rax, 0x7777, "through the user's GS");
    check!(
        regs.rsp < layout::TRAP_STACK as u64 && regs.rsp > layout::TRAP_STACK as u64 - 0x100,
        "the stack from the TSS"
    );
    Ok(())
}

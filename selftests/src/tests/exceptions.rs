// SPDX-License-Identifier: GPL-2.0

//! Exceptions in a 64-bit guest come through its own IDT, with the right error code and RIP.

use crate::emulator;
use crate::machine::{PTE_ALL, PTE_LARGE, PTE_NX, PTE_PRESENT, PTE_USER};
use crate::prelude::*;
use crate::traps::*;

pub const TEST: Test = Test::new(20, run);

guest!(exception_ud2, code64, "ud2");
guest!(exception_divide, code64, "xor ecx, ecx", "div ecx");
guest!(exception_int3, code64, "int3");
guest!(exception_selector, code64, "mov eax, 0x1238", "mov ds, eax");
guest!(exception_canonical, code64, "movabs rbx, 0x8000000000000000", "mov al, [rbx]");
guest!(exception_stack, code64, "movabs rbp, 0x8000000000000000", "mov al, [rbp]");
guest!(exception_read, code64, "mov rbx, 0x600000", "mov al, [rbx]");
guest!(exception_write, code64, "mov rbx, 0x600000", "mov [rbx], al");
guest!(exception_read_only, code64, "mov rbx, 0x800000", "mov [rbx], al");
guest!(exception_fetch, code64, "mov rbx, 0xa00000", "jmp rbx");
guest!(exception_reserved, code64, "mov rbx, 0xc00000", "mov al, [rbx]");

fn run(t: &Context) -> Outcome {
    let code = layout::CODE as u64;
    // QEMU's TCG makes no difference between accesses to the stack and others, and does not call a
    // page with reserved bits present (with KVM, too).
    let stack_fault = if emulator::is_tcg() { GENERAL_PROTECTION } else { STACK_FAULT };
    let reserved = if emulator::walk_quirks().reserved_without_present { 8 } else { 9 };
    // Error code bits: present, write, (user,) reserved, fetch.
    for (what, guest, vector, error, rip, cr2) in [
        ("UD2", exception_ud2(), INVALID_OPCODE, 0, code, None),
        ("division by zero", exception_divide(), DIVIDE_ERROR, 0, code + 2, None),
        ("INT3", exception_int3(), BREAKPOINT, 0, code + 1, None),
        ("a selector past the GDT", exception_selector(), GENERAL_PROTECTION, 0x1238, code + 5, None),
        ("a non-canonical address", exception_canonical(), GENERAL_PROTECTION, 0, code + 10, None),
        ("a non-canonical stack", exception_stack(), stack_fault, 0, code + 10, None),
        ("read, not present", exception_read(), PAGE_FAULT, 0, code + 7, Some(0x60_0000)),
        ("write, not present", exception_write(), PAGE_FAULT, 2, code + 7, Some(0x60_0000)),
        ("write, read-only", exception_read_only(), PAGE_FAULT, 3, code + 7, Some(0x80_0000)),
        ("fetch, no-execute", exception_fetch(), PAGE_FAULT, 0x11, 0xA0_0000, Some(0xA0_0000)),
        ("reserved bit", exception_reserved(), PAGE_FAULT, reserved, code + 7, Some(0xC0_0000)),
    ] {
        let machine = Machine::long(&t.device()?, guest)?;
        let entry = |index: usize, value: u64| {
            let address = (index as u64) << 21;
            machine.memory.write_u64(layout::DIRECTORIES + 8 * index, address | PTE_LARGE | value);
        };
        entry(3, PTE_ALL & !PTE_PRESENT);
        entry(4, PTE_PRESENT | PTE_USER);
        entry(5, PTE_ALL | PTE_NX);
        entry(6, PTE_ALL | 1 << 14);
        let trap = machine.run_to_trap(what)?;
        check_eq!((trap.vector, trap.error, trap.rip), (vector, error, rip), "{what}");
        check_eq!(trap.cs, u64::from(layout::CODE64));
        check_eq!(trap.rsp, layout::STACK as u64);
        if let Some(cr2) = cr2 {
            check_eq!(machine.vcpu.sregs()?.cr2, cr2, "CR2 after {what}");
        }
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A slot may name host memory that is not mapped yet: it is looked at when the guest touches it.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(slot_unmapped, code16, "out 0x10, al", "mov ax, 0x2000", "mov ds, ax", "mov al, [0]", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::new(&t.device()?)?;
    machine.load(slot_unmapped());
    machine.vm.set_slot(0, 0, 0, 0, 0)?;
    machine.vm.set_slot(0, 0, 0, 0x10000, machine.memory.address())?;
    // A hole in the address space that is certainly free: just unmapped.
    let hole = Memory::new(PAGE)?.address();
    check_eq!(machine.vm.set_slot(1, 0, 0x20000, PAGE as u64, hole), Ok(0));
    crate::machine::enter_real(&machine.vcpu)?;
    check!(matches!(machine.run()?, Exit::Io { .. }));
    check_eq!(machine.run(), Err(Errno::EFAULT));
    check_eq!(machine.vcpu.exit_reason(), 0, "none: not that of the exit before");
    // The guest is still at the instruction: with the memory there, it goes on.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a free range, as NOREPLACE makes sure; nothing of ours is there.
    let mapped =
        unsafe { libc::mmap(hole as *mut _, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    check_eq!(mapped as u64, hole);
    // SAFETY: just mapped.
    unsafe { (hole as *mut u8).write_volatile(0x77) };
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax & 0xFF, 0x77);
    // SAFETY: the mapping made above.
    unsafe { libc::munmap(mapped, PAGE) };
    Ok(())
}

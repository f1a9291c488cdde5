// SPDX-License-Identifier: GPL-2.0

//! mprotect() under a guest: without write permission a write is EFAULT, without any a read is, too.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(notifier_protect_read, code64, "2: mov rax, [0x400000]", "hlt", "jmp 2b");
guest!(notifier_protect_write, code64, "2: mov [0x400000], rdx", "hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, notifier_protect_read())?;
    let memory = Memory::new(PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    let code = layout::CODE as u64;
    let read = || {
        machine.load(notifier_protect_read());
        machine.change_regs(|regs| regs.rip = code)?;
        machine.run()
    };
    let write = |value: u64| {
        machine.load(notifier_protect_write());
        machine.change_regs(|regs| (regs.rip, regs.rdx) = (code, value))?;
        machine.run()
    };
    for round in 1..=3 {
        check_eq!(write(round)?, Exit::Hlt);
        check_eq!(read()?, Exit::Hlt);
        memory.protect(0, PAGE, libc::PROT_READ)?;
        check_eq!(read()?, Exit::Hlt, "a read of memory that may be read");
        check_eq!(machine.vcpu.regs()?.rax, round);
        check_err!(write(99), EFAULT, "a write of memory that may be read");
        check_eq!(memory.read_u64(0), round);
        memory.protect(0, PAGE, libc::PROT_NONE)?;
        check_err!(read(), EFAULT, "a read of memory that may not be touched");
        memory.protect(0, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        check_eq!(memory.read_u64(0), round, "what was written stayed");
    }
    Ok(())
}

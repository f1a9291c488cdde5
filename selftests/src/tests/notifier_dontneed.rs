// SPDX-License-Identifier: GPL-2.0

//! MADV_DONTNEED under a guest: it never sees the old page again, and its writes go to the new one.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(30, run);

guest!(notifier_dontneed, code64, "2: mov rax, [rbx]", "add qword ptr [rbx], 1", "hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, notifier_dontneed())?;
    let pages = 16;
    let memory = Memory::new(pages * PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    for round in 0..t.repetitions(200) {
        let page = round as usize * 7 % pages * PAGE;
        let at = 0x40_0000 + page as u64;
        machine.change_regs(|regs| regs.rbx = at)?;
        memory.write_u64(page, 0x7777);
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!((machine.vcpu.regs()?.rax, memory.read_u64(page)), (0x7777, 0x7778), "round {round}");
        memory.advise(page, PAGE, libc::MADV_DONTNEED)?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!((machine.vcpu.regs()?.rax, memory.read_u64(page)), (0, 1), "after it, round {round}");
    }
    Ok(())
}

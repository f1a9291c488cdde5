// SPDX-License-Identifier: GPL-2.0

//! A slot that moves under a running guest is found at its new place at once, and no more at the old.

use crate::prelude::*;
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

const FIRST: u64 = 0x40_0000;
const SECOND: u64 = 0x60_0000;

guest!(
    slot_move_running,
    code64,
    "2: mov rax, [rbx]",
    "mov [rdi], rax",
    "inc rcx",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
);
guest!(slot_move_once, code64, "mov rax, [rbx]", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, slot_move_running())?;
    let memory = Memory::new(0x2000)?;
    memory.write_u64(0, 0x1234_5678_9ABC_DEF0);
    machine.vm.map(1, FIRST, &memory)?;
    machine.change_regs(|regs| (regs.rbx, regs.rdi) = (FIRST, layout::DATA as u64 + 8))?;
    let rounds = t.repetitions(200);
    let end = thread::scope(|scope| -> Result<_, Failure> {
        let machine = &machine;
        let guest = scope.spawn(move || -> Result<Exit, Errno> {
            loop {
                match machine.run()? {
                    Exit::MmioRead { .. } => {
                        machine.vcpu.answer_mmio(&0x1234_5678_9ABC_DEF0u64.to_le_bytes())
                    }
                    other => return Ok(other),
                }
            }
        });
        let moved = (0..rounds).try_for_each(|round| -> Outcome {
            let gpa = if round % 2 == 0 { SECOND } else { FIRST };
            check_eq!(machine.vm.map(1, gpa, &memory), Ok(0));
            Ok(())
        });
        machine.memory.write(layout::DATA, &[1]);
        let end = guest.join().map_err(|_| Failure::failed("the guest's thread panicked"))??;
        moved?;
        Ok(end)
    })?;
    check_eq!(end, Exit::Hlt);
    check_eq!(machine.memory.read_u64(layout::DATA + 8), 0x1234_5678_9ABC_DEF0);

    machine.load(slot_move_once());
    for round in 0..10 {
        let (here, gone) = if round % 2 == 0 { (SECOND, FIRST) } else { (FIRST, SECOND) };
        machine.vm.map(1, here, &memory)?;
        machine.change_regs(|regs| (regs.rip, regs.rbx) = (layout::CODE as u64, here))?;
        check_eq!(machine.run()?, Exit::Hlt, "round {round}");
        check_eq!(machine.vcpu.regs()?.rax, 0x1234_5678_9ABC_DEF0);
        machine.change_regs(|regs| (regs.rip, regs.rbx) = (layout::CODE as u64, gone))?;
        check_eq!(machine.run()?, Exit::MmioRead { address: gone, length: 8 }, "round {round}");
        machine.vcpu.answer_mmio(&[0; 8]);
        check_eq!(machine.run()?, Exit::Hlt);
    }
    Ok(())
}

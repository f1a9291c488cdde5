// SPDX-License-Identifier: GPL-2.0

//! A slot that is deleted and made again under a running guest is MMIO in between, and never stale memory.

use crate::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

const GPA: u64 = 0x40_0000;
const SIZE: usize = 0x4000;

guest!(
    slot_delete_running,
    code64,
    "2: mov eax, [0x400000]",
    "mov eax, [0x401000]",
    "mov eax, [0x402000]",
    "mov eax, [0x403000]",
    "inc rcx",
    "cmp byte ptr [0x20000], 0",
    "je 2b",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, slot_delete_running())?;
    let rounds = t.repetitions(300);
    let memories = [filled(0x11)?, filled(0x22)?];
    machine.vm.map(1, GPA, &memories[0])?;
    let stop = AtomicBool::new(false);
    let (mmio, exits) = thread::scope(|scope| -> Result<_, Failure> {
        let (machine, stop) = (&machine, &stop);
        let guest = scope.spawn(move || -> Result<(u64, Exit), Errno> {
            let mut mmio = 0;
            loop {
                match machine.run()? {
                    Exit::MmioRead { .. } => {
                        mmio += 1;
                        machine.vcpu.answer_mmio(&[0x99; 4]);
                    }
                    other => return Ok((mmio, other)),
                }
                if stop.load(Ordering::Relaxed) {
                    machine.memory.write(layout::DATA, &[1]);
                }
            }
        });
        let changed = change(machine, &memories, rounds);
        stop.store(true, Ordering::Relaxed);
        machine.memory.write(layout::DATA, &[1]);
        let (mmio, end) = guest.join().map_err(|_| Failure::failed("the guest's thread panicked"))??;
        changed?;
        Ok((mmio, end))
    })?;
    check_eq!(exits, Exit::Hlt, "after {mmio} MMIO exits");

    // And with nobody running: what was there before is gone at once.
    for (index, value) in [(1, 0x2222_2222), (0, 0x1111_1111)] {
        machine.vm.set_slot(1, 0, 0, 0, 0)?;
        machine.memory.write(layout::DATA, &[1]);
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        check_eq!(machine.run()?, Exit::MmioRead { address: GPA, length: 4 });
        machine.vcpu.answer_mmio(&[0; 4]);
        machine.vm.map(1, GPA, &memories[index])?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, value);
    }
    Ok(())
}

fn filled(byte: u8) -> Result<Memory, Errno> {
    let memory = Memory::new(SIZE)?;
    memory.fill(0, SIZE, byte);
    Ok(memory)
}

fn change(machine: &Machine, memories: &[Memory; 2], rounds: u64) -> Outcome {
    for round in 0..rounds {
        check_eq!(machine.vm.set_slot(1, 0, 0, 0, 0), Ok(0));
        if round % 3 == 0 {
            thread::yield_now();
        }
        check_eq!(machine.vm.map(1, GPA, &memories[round as usize % 2]), Ok(0));
    }
    // The last one is the first again, for what comes behind.
    machine.vm.set_slot(1, 0, 0, 0, 0)?;
    machine.vm.map(1, GPA, &memories[0])?;
    Ok(())
}

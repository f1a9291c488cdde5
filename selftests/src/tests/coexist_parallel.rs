// SPDX-License-Identifier: GPL-2.0

//! KVM guests and rusthv guests at the same time on the same processors, preempting each other.

use crate::host;
use crate::prelude::*;
use std::thread;

pub const TEST: Test = Test::new(240, run).with_several_cpus();

guest!(
    coexist_parallel,
    code64,
    // Long stretches in the guest, so that the scheduler and interrupts cut in: a checksum over a page.
    "2: mov rdi, 0x20000",
    "mov ecx, 512",
    "mov rax, rbx",
    "3: imul rax, rax, 0x5851f42d",
    "inc rax",
    "mov [rdi], rax",
    "add rdi, 8",
    "loop 3b",
    "inc rbx",
    "dec r8",
    "jnz 2b",
    "out 0x10, al",
    "jmp 2b",
);

const STRETCH: u64 = 20;

fn run(t: &Context) -> Outcome {
    let devices = [t.reference()?, t.device()?];
    let turns = t.repetitions(60);
    let cpus = host::online_cpus();
    thread::scope(|scope| -> Outcome {
        let threads: Vec<_> = (0..4 * cpus.len())
            .map(|index| {
                let (device, cpu) = (&devices[index % 2], cpus[index / 2 % cpus.len()]);
                scope.spawn(move || one(device, cpu, index as u64, turns))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked")))
        })
    })?;
    check!(turns > 0);
    Ok(())
}

fn one(device: &Device, cpu: usize, index: u64, turns: u64) -> Outcome {
    host::pin(cpu)?;
    let machine = Machine::long(device, coexist_parallel())?;
    let seed = index << 32;
    machine.change_regs(|regs| regs.rbx = seed)?;
    for turn in 0..turns {
        machine.change_regs(|regs| regs.r8 = STRETCH)?;
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{}: {exit:x?}", device.path());
        let rounds = (turn + 1) * STRETCH;
        let mut value = seed + rounds - 1;
        for word in 0..512 {
            value = value.wrapping_mul(0x5851_F42D).wrapping_add(1);
            check_eq!(
                machine.memory.read_u64(layout::DATA + 8 * word),
                value,
                "{}, turn {turn}",
                device.path()
            );
        }
        check_eq!(machine.vcpu.regs()?.rbx, seed + rounds);
        // The next round starts from what is in RIP: past the OUT.
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Several VMs at once, at the same guest addresses, on the same processors, each with its own memory.

use crate::host;
use crate::prelude::*;
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(
    several_vms,
    code64,
    // Fills a page with a pattern from rbx, sums it up again, reports the sum.
    "2: mov rdi, 0x20000",
    "mov ecx, 512",
    "mov rax, rbx",
    "rep stosq",
    "mov rsi, 0x20000",
    "mov ecx, 512",
    "xor edx, edx",
    "3: add rdx, [rsi]",
    "add rsi, 8",
    "loop 3b",
    "mov [0x21000], rdx",
    "inc rbx",
    "out 0x10, al",
    "jmp 2b",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machines: Vec<Machine> = (0..6)
        .map(|index| {
            let machine = Machine::long(&device, several_vms())?;
            machine.change_regs(|regs| regs.rbx = 0x1_0000_0000 * (index + 1))?;
            Ok(machine)
        })
        .collect::<Result<_, Errno>>()?;
    let turns = t.repetitions(200);
    let cpus = host::online_cpus();
    let one = |index: usize, turn: u64| -> Outcome {
        let machine = &machines[index];
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: 0x10, .. }), "VM {index}: {exit:x?}");
        let value = 0x1_0000_0000 * (index as u64 + 1) + turn;
        check_eq!(machine.memory.read_u64(0x21000), 512 * value, "VM {index}, turn {turn}");
        Ok(())
    };
    // In turn on one thread: every entry is to another VM than the last.
    for turn in 0..turns {
        for index in 0..machines.len() {
            one(index, turn)?;
        }
    }
    // At once, more VMs than processors.
    thread::scope(|scope| -> Outcome {
        let threads: Vec<_> = (0..machines.len())
            .map(|index| {
                let (one, cpus) = (&one, &cpus);
                scope.spawn(move || -> Outcome {
                    host::pin(cpus[index % cpus.len()])?;
                    (turns..2 * turns).try_for_each(|turn| one(index, turn))
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::failed("a thread panicked")))
        })
    })?;
    check!(machines.iter().all(|machine| machine.vcpu.regs().is_ok()));
    Ok(())
}

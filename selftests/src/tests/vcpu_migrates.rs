// SPDX-License-Identifier: GPL-2.0

//! A vCPU that changes processor and thread all the time keeps its state.

use crate::host;
use crate::prelude::*;
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(
    vcpu_migrates,
    code64,
    // A checksum over many registers, so that a lost one shows.
    "2: add rax, rbx",
    "rol rax, 7",
    "xor rbx, rax",
    "lea r8, [r8 + rax*2 + 1]",
    "xor r15, r8",
    "movq xmm3, r15",
    "paddq xmm3, xmm4",
    "movdqa xmm4, xmm3",
    "inc rcx",
    "out 0x10, al",
    "jmp 2b",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let steps = t.repetitions(2000);
    let still = Machine::long(&device, vcpu_migrates())?;
    for _ in 0..steps {
        one_turn(&still.vcpu)?;
    }
    let moving = Machine::long(&device, vcpu_migrates())?;
    let cpus = host::online_cpus();
    // Threads in turn, each for some turns on some processors.
    let mut left = steps;
    while left > 0 {
        let turns = left.min(97);
        thread::scope(|scope| {
            let (moving, cpus) = (&moving, &cpus);
            let thread = scope.spawn(move || -> Outcome {
                for turn in 0..turns {
                    host::pin(cpus[((left + turn) % cpus.len() as u64) as usize])?;
                    one_turn(&moving.vcpu)?;
                }
                Ok(())
            });
            thread.join().unwrap_or_else(|_| Err(Failure::failed("the thread panicked")))
        })?;
        left -= turns;
    }
    check_eq!(moving.vcpu.regs()?, still.vcpu.regs()?, "registers after {steps} turns");
    check_eq!(still.vcpu.regs()?.rcx, steps);
    Ok(())
}

fn one_turn(vcpu: &Vcpu) -> Outcome {
    let exit = vcpu.run()?;
    check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{exit:x?}");
    Ok(())
}

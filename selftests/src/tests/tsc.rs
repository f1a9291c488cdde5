// SPDX-License-Identifier: GPL-2.0

//! A guest's TSC never goes back, over exits and processors, and runs no faster than the host's.

use crate::host;
use crate::prelude::*;
use core::arch::x86_64::_rdtsc;

pub const TEST: Test = Test::new(60, run).with_several_cpus();

guest!(tsc, code64, "2: rdtsc", "shl rdx, 32", "or rax, rdx", "out 0x10, al", "jmp 2b",);
guest!(
    tsc_msr,
    code64,
    "rdtsc",
    "shl rdx, 32",
    "lea rbx, [rax + rdx]",
    "mov ecx, 0x10",
    "rdmsr",
    "shl rdx, 32",
    "lea rsi, [rax + rdx]",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "hlt"
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, tsc())?;
    let cpus = host::online_cpus();
    let mut last: Option<u64> = None;
    for round in 0..t.repetitions(100) {
        host::pin(cpus[round as usize % cpus.len()])?;
        // SAFETY: user space may read the TSC.
        let start = unsafe { _rdtsc() };
        let first = read(&machine)?;
        let second = read(&machine)?;
        // SAFETY: as above.
        let elapsed = unsafe { _rdtsc() } - start;
        check!(second > first, "round {round}: {second} after {first}");
        check!(second - first <= elapsed, "round {round}: {} passed in {elapsed}", second - first);
        if let Some(last) = last {
            // Another processor may be behind by what the host itself tolerates.
            check!(first > last, "round {round}: {first} after {last}");
        }
        last = Some(second);
    }
    // The MSR is the same counter.
    let machine = Machine::long(&t.device()?, tsc_msr())?;
    check_eq!(machine.run()?, Exit::Hlt);
    let regs = machine.vcpu.regs()?;
    check!(
        regs.rbx <= regs.rsi && regs.rsi <= regs.rax && regs.rbx < regs.rax,
        "{} by the MSR, from {} to {}",
        regs.rsi,
        regs.rbx,
        regs.rax
    );
    Ok(())
}

fn read(machine: &Machine) -> Result<u64, Failure> {
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x10, .. }), "{exit:x?}");
    Ok(machine.vcpu.regs()?.rax)
}

// SPDX-License-Identifier: GPL-2.0

//! vCPUs of one VM on several processors at once, with atomic operations on shared memory.

use crate::host;
use crate::machine::enter_protected;
use crate::prelude::*;
use std::thread;

pub const TEST: Test = Test::new(120, run).with_several_cpus();

guest!(
    several_vcpus,
    code32,
    // A counter that is atomic, one under a spin lock, and one of each vCPU's own at [edi].
    "2: lock inc dword ptr [0x20000]",
    "3: mov eax, 1",
    "xchg [0x20040], eax",
    "test eax, eax",
    "jnz 3b",
    "mov eax, [0x20080]",
    "inc eax",
    "mov [0x20080], eax",
    "mov dword ptr [0x20040], 0",
    "inc dword ptr [edi]",
    "loop 2b",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::protected(&t.device()?, several_vcpus())?;
    let cpus = host::online_cpus();
    let count = (2 * cpus.len()).min(8);
    let turns = t.repetitions(20_000);
    let mut vcpus = Vec::new();
    for id in 0..count {
        let vcpu = machine.vm.vcpu(1 + id as u64)?;
        enter_protected(&vcpu)?;
        let mut regs = vcpu.regs()?;
        regs.rcx = turns;
        regs.rdi = (layout::DATA + 0x1000 + 0x1000 * id) as u64;
        vcpu.set_regs(&regs)?;
        vcpus.push(vcpu);
    }
    let exits: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| {
                let cpu = cpus[index % cpus.len()];
                scope.spawn(move || host::pin(cpu).and_then(|()| vcpu.run()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for (index, exit) in exits.into_iter().enumerate() {
        check!(matches!(exit, Ok(Ok(Exit::Hlt))), "vCPU {index}: {exit:x?}");
        check_eq!(u64::from(machine.memory.read_u32(layout::DATA + 0x1000 + 0x1000 * index)), turns);
    }
    let all = turns * count as u64;
    check_eq!(u64::from(machine.memory.read_u32(layout::DATA)), all, "the atomic counter");
    check_eq!(u64::from(machine.memory.read_u32(layout::DATA + 0x80)), all, "the locked counter");
    Ok(())
}

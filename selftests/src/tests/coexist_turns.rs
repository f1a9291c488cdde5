// SPDX-License-Identifier: GPL-2.0

//! A KVM guest and a rusthv guest in turn on one thread, thousands of switches, both right all the time.

use crate::prelude::*;

pub const TEST: Test = Test::new(240, run);

guest!(
    coexist_turns,
    code64,
    // A chain through general and SSE registers, and memory.
    "2: add rax, rbx",
    "rol rax, 9",
    "xor rbx, rax",
    "add [0x20000], rax",
    "movq xmm3, rax",
    "paddq xmm4, xmm3",
    "movq rcx, xmm4",
    "inc r8",
    "out 0x10, al",
    "jmp 2b",
);

fn run(t: &Context) -> Outcome {
    let kvm = t.reference()?;
    let device = t.device()?;
    let turns = t.repetitions(5000);
    let start = |device: &Device, seed: u64| -> Result<Machine, Failure> {
        let machine = Machine::long(device, coexist_turns())?;
        machine.change_regs(|regs| (regs.rax, regs.rbx) = (seed, 1))?;
        Ok(machine)
    };
    let guests = [start(&kvm, 1)?, start(&device, 2)?, start(&kvm, 3)?, start(&device, 4)?];
    for turn in 0..turns {
        for (index, guest) in guests.iter().enumerate() {
            check!(matches!(guest.run()?, Exit::Io { port: 0x10, .. }), "turn {turn}, guest {index}");
        }
    }
    for (index, guest) in guests.iter().enumerate() {
        let regs = guest.vcpu.regs()?;
        let (mut rax, mut rbx, mut memory, mut sse) = (index as u64 + 1, 1u64, 0u64, 0u64);
        for _ in 0..turns {
            rax = rax.wrapping_add(rbx).rotate_left(9);
            rbx ^= rax;
            memory = memory.wrapping_add(rax);
            sse = sse.wrapping_add(rax);
        }
        check_eq!(
            (regs.rax, regs.rbx, regs.rcx, regs.r8, guest.memory.read_u64(layout::DATA)),
            (rax, rbx, sse, turns, memory),
            "guest {index}"
        );
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A guest that never lets interrupts in keeps none from the host: signals take KVM_RUN out of it as out of any other.

use crate::host;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

// CLI changes nothing for a processor. Bochs needs to see it in each turn: without it this guest
// would hang the machine there, as START_FLAGS tells.
guest!(spin_interrupts_off, code16, "2: inc dword ptr [0x2000]", "cli", "jmp 2b");

const IF: u64 = 1 << 9;

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, spin_interrupts_off())?;
    machine.change_regs(|regs| regs.rflags &= !IF)?;
    host::under_signals(|| interrupted(&machine, t.repetitions(50)))
}

fn interrupted(machine: &Machine, rounds: u64) -> Outcome {
    let mut advanced = 0;
    let mut count = 0;
    for _ in 0..rounds {
        check_err!(machine.run(), EINTR);
        check_eq!(machine.vcpu.exit(), Exit::Intr, "the exit reason beside EINTR");
        check_eq!(machine.vcpu.regs()?.rflags & IF, 0, "interrupts that the guest never turned on");
        let now = machine.memory.read_u32(0x2000);
        advanced += u64::from(now != count);
        count = now;
    }
    check!(advanced > 0, "the guest never got anywhere between the signals");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! HLT exits behind the instruction, and KVM_RUN goes on from there, as often as wanted.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(hlt, code16, "2: hlt", "inc ax", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, hlt())?;
    for round in 0..10 {
        check_eq!(machine.run()?, Exit::Hlt);
        let regs = machine.vcpu.regs()?;
        check_eq!((regs.rax, regs.rip), (round, layout::CODE as u64 + 1));
    }
    Ok(())
}

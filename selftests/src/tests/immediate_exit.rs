// SPDX-License-Identifier: GPL-2.0

//! `immediate_exit` makes KVM_RUN come back with EINTR before any guest instruction, as long as it is set.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(immediate_exit, code16, "inc ax", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, immediate_exit())?;
    let before = machine.vcpu.regs()?;
    machine.vcpu.set_immediate_exit(1);
    for _ in 0..3 {
        check_err!(machine.run(), EINTR);
        check_eq!(machine.vcpu.regs()?, before);
    }
    machine.vcpu.set_immediate_exit(0);
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax, 1);
    Ok(())
}

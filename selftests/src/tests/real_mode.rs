// SPDX-License-Identifier: GPL-2.0

//! A 16-bit real-mode guest adds two numbers, prints the sum through a port, and halts.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(real_mode_add, code16, "mov dx, 0x3f8", "add al, bl", "out dx, al", "hlt",);

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, real_mode_add())?;
    let mut regs = machine.vcpu.regs()?;
    (regs.rax, regs.rbx) = (2, 3);
    machine.vcpu.set_regs(&regs)?;
    let expected = Exit::Io { direction: Direction::Out, port: 0x3F8, size: 1, count: 1, data: vec![5] };
    check_eq!(machine.run()?, expected);
    check_eq!(machine.run()?, Exit::Hlt);
    let end = machine.vcpu.regs()?;
    check_eq!(end.rip, (layout::CODE + real_mode_add().len()) as u64);
    check_eq!((end.rax, end.rbx, end.rdx), (5, 3, 0x3F8));
    Ok(())
}

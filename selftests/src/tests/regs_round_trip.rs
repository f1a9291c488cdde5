// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_REGS and KVM_GET_REGS keep every general register.

use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let vcpu_of = t.device()?.vm()?;
    let vcpu = vcpu_of.vcpu(0)?;
    // The reset state, as the architecture has it.
    let reset = vcpu.regs()?;
    check_eq!((reset.rip, reset.rflags, reset.rax, reset.rsp), (0xFFF0, 2, 0, 0));
    let mut random = Random::new(1);
    for _ in 0..100 {
        let mut r = || random.word();
        let regs = kvm_regs {
            rax: r(),
            rbx: r(),
            rcx: r(),
            rdx: r(),
            rsi: r(),
            rdi: r(),
            rsp: r(),
            rbp: r(),
            r8: r(),
            r9: r(),
            r10: r(),
            r11: r(),
            r12: r(),
            r13: r(),
            r14: r(),
            r15: r(),
            rip: r(),
            rflags: 0x202 | r() & 0xCD5,
        };
        check_eq!(vcpu.set_regs(&regs), Ok(0));
        check_eq!(vcpu.regs()?, regs);
    }
    // Bit 1 of the flags is always one.
    vcpu.set_regs(&kvm_regs::default())?;
    check_eq!(vcpu.regs()?.rflags, 2);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! What an exit left pending is completed by the next KVM_RUN, once, even if that ends in EINTR.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(pending_io, code64, "out 0x10, al", "in al, 0x11", "mov [rbx], al", "mov al, [rbx + 1]", "hlt",);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, pending_io())?;
    let code = layout::CODE as u64;
    machine.change_regs(|regs| regs.rbx = layout::MMIO)?;
    let complete = || -> Outcome {
        machine.vcpu.set_immediate_exit(1);
        check_err!(machine.run(), EINTR);
        // A second one has nothing left to complete.
        let regs = machine.vcpu.regs()?;
        check_err!(machine.run(), EINTR);
        check_eq!(machine.vcpu.regs()?, regs);
        machine.vcpu.set_immediate_exit(0);
        Ok(())
    };
    check!(matches!(machine.run()?, Exit::Io { direction: Direction::Out, port: 0x10, .. }));
    complete()?;
    check_eq!(machine.vcpu.regs()?.rip, code + 2, "behind the OUT");

    check!(matches!(machine.run()?, Exit::Io { direction: Direction::In, port: 0x11, .. }));
    machine.vcpu.answer_io(&[0x99]);
    complete()?;
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rip, regs.rax & 0xFF), (code + 4, 0x99), "behind the IN");

    check_eq!(machine.run()?, Exit::MmioWrite { address: layout::MMIO, data: vec![0x99] });
    complete()?;
    check_eq!(machine.vcpu.regs()?.rip, code + 6, "behind the MMIO write");

    check_eq!(machine.run()?, Exit::MmioRead { address: layout::MMIO + 1, length: 1 });
    machine.vcpu.answer_mmio(&[0x55]);
    complete()?;
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rip, regs.rax & 0xFF), (code + 9, 0x55), "behind the MMIO read");
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! OUTS from where no memory is ends in an exit to user space that says so, and the guest can be sent on.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(io_string_outside, code64, "rep outsb", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, io_string_outside())?;
    machine.change_regs(|regs| (regs.rcx, regs.rdx, regs.rsi) = (2, 0x10, layout::MMIO))?;
    if device.is_kvm() {
        // Its emulator reads the data from user space, too.
        check_eq!(machine.run()?, Exit::MmioRead { address: layout::MMIO, length: 1 });
        return Ok(());
    }
    for _ in 0..2 {
        let exit = machine.run()?;
        check!(
            matches!(exit, Exit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, .. }),
            "got {exit:x?}"
        );
        let regs = machine.vcpu.regs()?;
        check_eq!((regs.rip, regs.rcx, regs.rsi), (layout::CODE as u64, 2, layout::MMIO));
    }
    machine.change_regs(|regs| regs.rsi = layout::DATA as u64)?;
    machine.memory.write(layout::DATA, &[0x31, 0x32]);
    let mut seen = Vec::new();
    loop {
        match machine.run()? {
            Exit::Io { direction: Direction::Out, port: 0x10, data, .. } => seen.extend(data),
            Exit::Hlt => break,
            other => fail!("{other:x?}"),
        }
    }
    check_eq!(seen, [0x31, 0x32], "from memory");
    Ok(())
}

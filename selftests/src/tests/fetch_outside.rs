// SPDX-License-Identifier: GPL-2.0

//! Fetching code where there is no memory ends in an exit to user space, not in a loop or a dead host.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(fetch_outside, code64, "jmp rbx");
guest!(fetch_outside_hlt, code16, "hlt");

fn run(t: &Context) -> Outcome {
    t.real_mode()?;
    let device = t.device()?;
    let machine = Machine::long(&device, fetch_outside())?;
    machine.change_regs(|regs| regs.rbx = layout::MMIO)?;
    let exit = machine.run()?;
    check!(
        matches!(exit, Exit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, .. }),
        "got {exit:x?}"
    );
    check_eq!(machine.vcpu.regs()?.rip, layout::MMIO);
    // Without any memory at all, from the reset vector.
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    let exit = vcpu.run()?;
    check!(matches!(exit, Exit::InternalError { .. }), "from the reset vector: {exit:x?}");
    // And others are none the worse.
    check_eq!(Machine::real(&device, fetch_outside_hlt())?.run()?, Exit::Hlt);
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! KVM_RUN takes no argument, and unknown synchronised registers in `kvm_run` are refused.

use crate::ioctl::KVM_RUN;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(run_arguments, code16, "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, run_arguments())?;
    check_err!(machine.vcpu.ioctl(KVM_RUN, 1), EINVAL);
    check_err!(machine.vcpu.ioctl(KVM_RUN, u64::MAX), EINVAL);
    let area = machine.vcpu.kvm_run();
    // SAFETY: the vCPU's area.
    unsafe { (*area).kvm_valid_regs = 1 << 63 };
    check_err!(machine.run(), EINVAL, "kvm_valid_regs");
    // SAFETY: as above.
    unsafe {
        (*area).kvm_valid_regs = 0;
        (*area).kvm_dirty_regs = 1 << 63;
    }
    check_err!(machine.run(), EINVAL, "kvm_dirty_regs");
    // SAFETY: as above.
    unsafe { (*area).kvm_dirty_regs = 0 };
    check_eq!(machine.run()?, Exit::Hlt, "none of that ran the guest");
    check_eq!(machine.vcpu.regs()?.rip, layout::CODE as u64 + 1);
    Ok(())
}

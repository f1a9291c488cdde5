// SPDX-License-Identifier: GPL-2.0

//! A VM belongs to the address space that made it: a child that inherits the files gets EIO.

use crate::host;
use crate::ioctl::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(other_process, code16, "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::real(&device, other_process())?;
    let errnos = host::in_child(|| {
        let regs = kvm_regs::default();
        let identity = 0u64;
        let results = [
            machine.vcpu.ioctl(KVM_RUN, 0),
            machine.vcpu.ioctl(KVM_RUN, 1),
            machine.vcpu.regs().map(|_| 0),
            machine.vcpu.set_regs(&regs),
            machine.vcpu.sregs().map(|_| 0),
            machine.vcpu.ioctl(KVM_SET_SREGS, 0),
            machine.vcpu.set_cpuid(&[]),
            machine.vcpu.interrupt(0x51),
            machine.vm.set_slot(0, 0, 0, 0, 0),
            machine.vm.ioctl(KVM_CREATE_VCPU, 5),
            machine.vm.ioctl(KVM_CHECK_EXTENSION, 3),
            machine.vm.ioctl(KVM_SET_TSS_ADDR, 0),
            machine.vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, &raw const identity as u64),
        ];
        results.map(|result| result.err().map_or(0, |errno| errno.0 as u8)).to_vec()
    })?;
    check_eq!(errnos, [libc::EIO as u8; 13], "from another process");
    check_eq!(machine.run()?, Exit::Hlt, "and the owner's guest is none the worse");
    Ok(())
}

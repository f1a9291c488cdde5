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
        let results = [
            machine.vcpu.ioctl(KVM_RUN, 0),
            machine.vcpu.regs().map(|_| 0),
            machine.vcpu.set_regs(&kvm_regs::default()),
            machine.vcpu.sregs().map(|_| 0),
            machine.vm.set_slot(0, 0, 0, 0, 0),
            machine.vm.ioctl(KVM_CREATE_VCPU, 5),
        ];
        results.map(|result| result.err().map_or(0, |errno| errno.0 as u8)).to_vec()
    })?;
    check_eq!(errnos, [libc::EIO as u8; 6], "from another process");
    check_eq!(machine.run()?, Exit::Hlt, "and the owner's guest is none the worse");
    Ok(())
}

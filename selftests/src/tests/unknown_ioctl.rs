// SPDX-License-Identifier: GPL-2.0

//! An ioctl that does not exist is refused on the device, a VM and a vCPU, and does nothing.

use crate::ioctl::{io, ior, iow, iowr, KVMIO};
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    let before = vcpu.regs()?;
    for number in [0x0E, 0x3F, 0x5F, 0xF0, 0xFE, 0xFF] {
        for request in [
            io(KVMIO, number),
            ior::<u64>(KVMIO, number),
            iow::<u64>(KVMIO, number),
            iowr::<[u8; 0x1000]>(KVMIO, number),
            io(0xAD, number),
            io(0, number),
        ] {
            let results = [device.ioctl(request, 0), vm.ioctl(request, 0), vcpu.ioctl(request, 0)];
            // KVM's x86 code answers EINVAL where rusthv, as ioctl(2) has it, answers ENOTTY.
            let unknown = if device.is_kvm() { Errno::EINVAL } else { Errno::ENOTTY };
            let expected = [Err(unknown), Err(Errno::ENOTTY), Err(unknown)];
            check_eq!(results, expected, "{request:#x} on the device, a VM, a vCPU");
        }
    }
    // The size is part of the number: a known ioctl with another size is another one.
    check!(vcpu.ioctl(ior::<[u8; 8]>(KVMIO, 0x81), 0).is_err());
    check_err!(vm.ioctl(iow::<[u8; 24]>(KVMIO, 0x46), 0), ENOTTY);
    check_eq!(vcpu.regs()?, before);
    Ok(())
}

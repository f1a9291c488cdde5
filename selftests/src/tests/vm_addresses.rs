// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR take what KVM takes, and no later than KVM does.

use crate::ioctl::{KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR};
use crate::prelude::*;
use std::ptr;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let identity = |address: u64| vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, ptr::from_ref(&address) as u64);
    check_eq!(identity(0xFEFF_C000), Ok(0));
    check_eq!(identity(0), Ok(0), "0 means the default");
    check_err!(vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, 0), EFAULT);
    check_eq!(vm.ioctl(KVM_SET_TSS_ADDR, 0xFFFB_D000), Ok(0));
    // Three pages must fit below 4 GiB.
    check_err!(vm.ioctl(KVM_SET_TSS_ADDR, 0xFFFF_F000), EINVAL);
    check_err!(vm.ioctl(KVM_SET_TSS_ADDR, 1 << 32), EINVAL);
    let _vcpu = vm.vcpu(0)?;
    check_err!(identity(0xFEFF_C000), EINVAL, "after the first vCPU");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! KVM_CREATE_VM makes VMs of the default type only, and each is a file of its own.

use crate::ioctl::{KVM_CREATE_VM, KVM_GET_API_VERSION};
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let first = device.vm()?;
    let second = device.vm()?;
    check!(first.fd() != second.fd());
    // An ioctl of the device means nothing on a VM.
    check_err!(first.ioctl(KVM_GET_API_VERSION, 0), ENOTTY);
    for kind in [0x7F, 1 << 31, u64::MAX] {
        check_err!(device.ioctl(KVM_CREATE_VM, kind), EINVAL, "VM type {kind:#x}");
    }
    // A VM lives on without the device's file.
    drop(device);
    check!(first.vcpu(0).is_ok());
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! KVM_CHECK_EXTENSION on a VM answers as on the device, where KVM_CAP_CHECK_EXTENSION_VM says it exists.

use crate::ioctl::KVM_CHECK_EXTENSION;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let on_vm = |capability: u32| vm.ioctl(KVM_CHECK_EXTENSION, u64::from(capability));
    if device.check_extension(KVM_CAP_CHECK_EXTENSION_VM)? == 0 && !device.has_extensions() {
        check_err!(on_vm(KVM_CAP_USER_MEMORY), ENOTTY);
        return Ok(());
    }
    // rusthv promises it in its extension header, whether it claims KVM's capability or not.
    check_eq!(on_vm(KVM_CAP_USER_MEMORY), Ok(1));
    check_eq!(on_vm(KVM_CAP_IMMEDIATE_EXIT), Ok(1));
    check_eq!(on_vm(KVM_CAP_NR_MEMSLOTS), device.check_extension(KVM_CAP_NR_MEMSLOTS));
    check_eq!(on_vm(0x7FFF_FFFF), Ok(0));
    let extensions = crate::rusthv::RUSTHV_CAP_EXTENSIONS;
    check_eq!(on_vm(extensions), device.check_extension(extensions));
    Ok(())
}

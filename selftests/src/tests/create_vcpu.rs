// SPDX-License-Identifier: GPL-2.0

//! KVM_CREATE_VCPU: any free id below the limit, EEXIST for one in use, EINVAL past the limit.

use crate::ioctl::KVM_CREATE_VCPU;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let zero = vm.vcpu(0)?;
    check_err!(vm.vcpu(0).map(|_| ()), EEXIST);
    // Ids need not be dense, nor in order.
    let three = vm.vcpu(3)?;
    let one = vm.vcpu(1)?;
    check!(zero.fd() != one.fd() && one.fd() != three.fd());
    // An id stays in use when its file is closed, as long as the VM lives.
    drop(one);
    check_err!(vm.vcpu(1).map(|_| ()), EEXIST);
    for id in [1 << 31, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        check_err!(vm.ioctl(KVM_CREATE_VCPU, id), EINVAL, "id {id:#x}");
    }

    let maximum = device.check_extension(KVM_CAP_MAX_VCPUS)? as u64;
    let ids = match device.check_extension(KVM_CAP_MAX_VCPU_ID)? {
        0 => maximum,
        ids => ids as u64,
    };
    check_err!(vm.ioctl(KVM_CREATE_VCPU, ids), EINVAL, "the first id past the limit");
    let last = vm.vcpu(ids - 1)?;
    check!(last.regs().is_ok(), "the last id");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A VM takes KVM_CAP_MAX_VCPUS vCPUs, one more is EINVAL, and all of them go with it.

use crate::ioctl::KVM_CREATE_VCPU;
use crate::prelude::*;
use std::os::fd::{FromRawFd, OwnedFd};

pub const TEST: Test = Test::new(120, run);

/// vCPUs that are created in the worst case: KVM may be built for many more.
const MOST: u64 = 4096;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let limit = device.check_extension(KVM_CAP_MAX_VCPUS)? as u64;
    if limit > MOST {
        skip!("{limit} vCPUs take too long");
    }
    let counts = || match device.has_extensions() && t.is_exclusive() {
        true => device.host_stats().map(|stats| (stats.vms, stats.vcpus, stats.frames_in_use)),
        false => Ok((0, 0, 0)),
    };
    let before = counts()?;
    let vm = device.vm()?;
    for id in 0..limit {
        let fd = vm.ioctl(KVM_CREATE_VCPU, id);
        check!(fd.is_ok(), "vCPU {id} of {limit}: {fd:?}");
        // The vCPU stays; there are fewer descriptors to be had than vCPUs.
        // SAFETY: the descriptor is new, so it is ours.
        drop(unsafe { OwnedFd::from_raw_fd(fd?) });
    }
    // There are more ids than vCPUs, where the two are not one.
    check_err!(vm.ioctl(KVM_CREATE_VCPU, limit), EINVAL, "one more");
    check_err!(vm.ioctl(KVM_CREATE_VCPU, limit), EINVAL, "and again");
    // With as many as can be, the limit comes first.
    if t.path().ends_with("rusthv") {
        check_err!(vm.ioctl(KVM_CREATE_VCPU, 0), EINVAL, "one that is there");
    }
    drop(vm);
    check_eq!(counts()?, before, "VMs, vCPUs and frames when the VM is gone");
    Ok(())
}

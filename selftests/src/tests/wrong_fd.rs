// SPDX-License-Identifier: GPL-2.0

//! The ioctls of the device, a VM and a vCPU are refused on each other's files.

use crate::ioctl::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

const ON_DEVICE: &[u64] =
    &[KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_GET_SUPPORTED_CPUID];
const ON_VM: &[u64] =
    &[KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR];
const ON_VCPU: &[u64] = &[KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_CPUID2];

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    let unknown = if device.is_kvm() { Errno::EINVAL } else { Errno::ENOTTY };
    for &request in ON_VM.iter().chain(ON_VCPU) {
        check_eq!(device.ioctl(request, 0), Err(unknown), "{request:#x} on the device");
    }
    for &request in ON_DEVICE.iter().chain(ON_VCPU) {
        check_err!(vm.ioctl(request, 0), ENOTTY, "{request:#x} on a VM");
    }
    for &request in ON_DEVICE.iter().chain(ON_VM) {
        check_eq!(vcpu.ioctl(request, 0), Err(unknown), "{request:#x} on a vCPU");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! The ioctls of the device, a VM and a vCPU are refused on each other's files.

use crate::ioctl::*;
use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(10, run);

const ON_DEVICE: &[u64] =
    &[KVM_GET_API_VERSION, KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE, KVM_GET_SUPPORTED_CPUID];
const ON_VM: &[u64] =
    &[KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR];
const ON_VCPU: &[u64] = &[
    KVM_RUN,
    KVM_GET_REGS,
    KVM_SET_REGS,
    KVM_GET_SREGS,
    KVM_SET_SREGS,
    KVM_SET_CPUID2,
    KVM_TRANSLATE,
    KVM_INTERRUPT,
];

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
    // rusthv's own belong to one kind of file each, and to no KVM.
    for request in [
        RUSTHV_GET_INFO,
        RUSTHV_GET_HOST_STATS,
        RUSTHV_GET_NODE_STATS,
        RUSTHV_GET_VM_STATS,
        RUSTHV_GET_VCPU_STATS,
    ] {
        let mut room = [0u64; 64];
        let address = room.as_mut_ptr() as u64;
        let results =
            [device.ioctl(request, address), vm.ioctl(request, address), vcpu.ioctl(request, address)];
        let taken = results.iter().filter(|result| result.is_ok()).count();
        check_eq!(taken, usize::from(device.has_extensions()), "{request:#x}: {results:?}");
    }
    Ok(())
}

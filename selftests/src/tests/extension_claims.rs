// SPDX-License-Identifier: GPL-2.0

//! What KVM_CHECK_EXTENSION claims is there, and what it does not claim is not.

use crate::ioctl::{io, ior, iow, KVMIO};
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    // A null argument: an ioctl that exists answers EFAULT, EINVAL or does something harmless.
    let on_vm = [
        ("IRQCHIP", KVM_CAP_IRQCHIP, io(KVMIO, 0x60)),
        ("PIT2", KVM_CAP_PIT2, iow::<kvm_pit_config>(KVMIO, 0x77)),
        ("SIGNAL_MSI", KVM_CAP_SIGNAL_MSI, iow::<kvm_msi>(KVMIO, 0xA5)),
        ("IRQFD", KVM_CAP_IRQFD, iow::<kvm_irqfd>(KVMIO, 0x76)),
        ("IOEVENTFD", KVM_CAP_IOEVENTFD, iow::<kvm_ioeventfd>(KVMIO, 0x79)),
        ("ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK, iow::<kvm_clock_data>(KVMIO, 0x7B)),
    ];
    let on_vcpu = [
        ("MP_STATE", KVM_CAP_MP_STATE, ior::<kvm_mp_state>(KVMIO, 0x98)),
        ("VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, ior::<kvm_vcpu_events>(KVMIO, 0x9F)),
        ("DEBUGREGS", KVM_CAP_DEBUGREGS, ior::<kvm_debugregs>(KVMIO, 0xA1)),
        ("XSAVE", KVM_CAP_XSAVE, ior::<kvm_xsave>(KVMIO, 0xA4)),
        ("XCRS", KVM_CAP_XCRS, ior::<kvm_xcrs>(KVMIO, 0xA6)),
        ("SET_GUEST_DEBUG", KVM_CAP_SET_GUEST_DEBUG, iow::<kvm_guest_debug>(KVMIO, 0x9B)),
    ];
    let vm = device.vm()?;
    for (name, capability, request) in on_vm {
        let claimed = device.check_extension(capability)? > 0;
        let there = vm.ioctl(request, 0) != Err(Errno::ENOTTY);
        check_eq!(there, claimed, "the VM ioctl of {name}");
    }
    // KVM answers EINVAL for an ioctl that a vCPU does not know; with these it never does.
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    for (name, capability, request) in on_vcpu {
        let claimed = device.check_extension(capability)? > 0;
        let there = vcpu.ioctl(request, 0) != Err(Errno::ENOTTY);
        check_eq!(there, claimed, "the vCPU ioctl of {name}");
    }
    Ok(())
}

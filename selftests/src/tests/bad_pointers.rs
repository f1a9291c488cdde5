// SPDX-License-Identifier: GPL-2.0

//! Every ioctl that takes an address answers EFAULT for a null, unmapped, cut-off or protected one.

use crate::ioctl::*;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::new(&device)?;
    let before = (machine.vcpu.regs()?, machine.vcpu.sregs()?);
    let pages = Memory::new(3 * PAGE)?;
    pages.protect(PAGE, PAGE, libc::PROT_NONE)?;
    pages.protect(2 * PAGE, PAGE, libc::PROT_READ)?;
    let start = pages.address();
    let unmapped = Memory::new(PAGE)?.address();
    let bad = [
        ("null", 0),
        ("unmapped", unmapped),
        ("no access", start + PAGE as u64),
        ("cut off", start + PAGE as u64 - 2),
        ("non-canonical", 0x8000_0000_0000_0000),
        ("the kernel's", 0xFFFF_FFFF_8100_0000),
        ("the last byte", u64::MAX),
    ];
    for (what, address) in bad {
        check_err!(device.ioctl(KVM_GET_SUPPORTED_CPUID, address), EFAULT, "GET_SUPPORTED_CPUID, {what}");
        for (name, request) in [
            ("SET_USER_MEMORY_REGION", KVM_SET_USER_MEMORY_REGION),
            ("SET_IDENTITY_MAP_ADDR", KVM_SET_IDENTITY_MAP_ADDR),
            ("GET_DIRTY_LOG", KVM_GET_DIRTY_LOG),
        ] {
            let vm = device.vm()?;
            check_err!(vm.ioctl(request, address), EFAULT, "{name}, {what}");
        }
        for (name, request) in [
            ("GET_REGS", KVM_GET_REGS),
            ("SET_REGS", KVM_SET_REGS),
            ("GET_SREGS", KVM_GET_SREGS),
            ("SET_SREGS", KVM_SET_SREGS),
            ("SET_CPUID2", KVM_SET_CPUID2),
            ("TRANSLATE", KVM_TRANSLATE),
            ("INTERRUPT", KVM_INTERRUPT),
        ] {
            check_err!(machine.vcpu.ioctl(request, address), EFAULT, "{name}, {what}");
        }
        if device.has_extensions() {
            for result in [
                device.ioctl(RUSTHV_GET_INFO, address),
                device.ioctl(RUSTHV_GET_HOST_STATS, address),
                device.ioctl(RUSTHV_GET_NODE_STATS, address),
                machine.vm.ioctl(RUSTHV_GET_VM_STATS, address),
                machine.vm.ioctl(RUSTHV_MEASURE, address),
                machine.vcpu.ioctl(RUSTHV_GET_VCPU_STATS, address),
            ] {
                check_err!(result, EFAULT, "rusthv's own, {what}");
            }
        }
    }
    // A structure that may be read and not written.
    for request in [KVM_GET_REGS, KVM_GET_SREGS, KVM_TRANSLATE] {
        check_err!(machine.vcpu.ioctl(request, start + 2 * PAGE as u64), EFAULT);
    }
    check_eq!((machine.vcpu.regs()?, machine.vcpu.sregs()?), before, "the state after all that");
    // Misaligned is no error: the kernel copies.
    pages.fill(0, PAGE, 0xEE);
    check_eq!(machine.vcpu.ioctl(KVM_GET_REGS, start + 3), Ok(0));
    let rip_at = 3 + std::mem::offset_of!(kvm_regs, rip);
    check_eq!(pages.read(rip_at, 8), before.0.rip.to_le_bytes());
    check_eq!(pages.read(0, 3), [0xEE; 3], "not a byte before it");
    check_eq!(pages.read(3 + size_of::<kvm_regs>(), 4), [0xEE; 4], "nor behind it");
    Ok(())
}

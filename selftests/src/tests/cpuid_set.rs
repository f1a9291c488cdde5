// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_CPUID2: E2BIG past 256 entries, EFAULT for a list that is cut off, and none at all is fine.

use crate::device::CpuidList;
use crate::ioctl::KVM_SET_CPUID2;
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let vm = device.vm()?;
    let vcpu = vm.vcpu(0)?;
    let supported = device.supported_cpuid(256)?;
    check_eq!(vcpu.set_cpuid(&supported), Ok(0));
    check_eq!(vcpu.set_cpuid(&supported), Ok(0), "again, before the first run");
    check_eq!(vcpu.set_cpuid(&[]), Ok(0), "none");
    let entry = kvm_cpuid_entry2 { function: 0x4000_0000, ..Default::default() };
    check_eq!(vcpu.set_cpuid(&[entry; 256]), Ok(0), "as many as there may be");
    check_err!(vcpu.set_cpuid(&[entry; 257]), E2BIG);
    let mut huge = CpuidList::with_room(1);
    huge.set_count(u32::MAX);
    check_err!(vcpu.ioctl(KVM_SET_CPUID2, huge.address()), E2BIG);
    check_err!(vcpu.ioctl(KVM_SET_CPUID2, 0), EFAULT);
    // The count is readable, the entries are not.
    let edge = Memory::new(2 * PAGE)?;
    edge.protect(PAGE, PAGE, libc::PROT_NONE)?;
    edge.write_u64(PAGE - 8, 3);
    check_err!(vcpu.ioctl(KVM_SET_CPUID2, edge.address() + PAGE as u64 - 8), EFAULT);
    Ok(())
}

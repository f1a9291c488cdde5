// SPDX-License-Identifier: GPL-2.0

//! Calls in the wrong state, order or with odd values get the errno that KVM gives.

use crate::compare::{compare, Log};
use crate::ioctl::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

guest!(compare_errnos, code16, "2: hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    compare(t, scenario)
}

fn scenario(device: &Device, log: &mut Log) -> Outcome {
    for argument in [0, 1, 2, 100, 1 << 31, 1 << 32, u64::MAX] {
        note!(log, "GET_API_VERSION({argument:#x}): {:?}", device.ioctl(KVM_GET_API_VERSION, argument));
        note!(
            log,
            "GET_VCPU_MMAP_SIZE({argument:#x}) works: {}",
            device.ioctl(KVM_GET_VCPU_MMAP_SIZE, argument).is_ok()
        );
        if argument != 1 {
            note!(log, "CREATE_VM({argument:#x}) works: {}", device.ioctl(KVM_CREATE_VM, argument).is_ok());
        }
        let vm = device.vm()?;
        note!(log, "CREATE_VCPU({argument:#x}): {:?}", vm.ioctl(KVM_CREATE_VCPU, argument).map(drop));
        note!(log, "again: {:?}", vm.ioctl(KVM_CREATE_VCPU, argument).map(drop));
        note!(log, "SET_TSS_ADDR({argument:#x}): {:?}", vm.ioctl(KVM_SET_TSS_ADDR, argument));
        note!(
            log,
            "SET_IDENTITY_MAP_ADDR({argument:#x}): {:?}",
            vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, argument)
        );
        let machine = Machine::real(device, compare_errnos())?;
        note!(log, "RUN({argument:#x}): {:?}", machine.vcpu.ioctl(KVM_RUN, argument));
        note!(log, "then {:?}", machine.run());
        note!(log, "CPUID after the first run: {:?}", machine.vcpu.set_cpuid(&[]));
        let entry = kvm_cpuid_entry2 { function: 1, eax: 5, ..Default::default() };
        note!(log, "another CPUID: {:?}", machine.vcpu.set_cpuid(&[entry]));
        note!(log, "INTERRUPT({argument:#x}): {:?}", machine.vcpu.interrupt(argument as u32));
        note!(log, "SET_TSS_ADDR with a vCPU: {:?}", machine.vm.ioctl(KVM_SET_TSS_ADDR, argument));
        note!(log, "identity map with a vCPU: {:?}", machine.vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, argument));
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A guest's CPUID answers what KVM_SET_CPUID2 said, by leaf and by index.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(cpuid_guest, code64, "2: cpuid", "hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, cpuid_guest())?;
    let mut entries = device.supported_cpuid(256)?;
    let entry = |function, index, flags, value: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax: value,
        ebx: value + 1,
        ecx: value + 2,
        edx: value + 3,
        ..Default::default()
    };
    let indexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    entries.retain(|entry| ![0x4, 0x4000_0000].contains(&entry.function));
    entries.push(entry(0x4000_0000, 0, 0, 0x1000));
    entries.push(entry(0x4, 0, indexed, 0x2000));
    entries.push(entry(0x4, 1, indexed, 0x3000));
    check_eq!(machine.vcpu.set_cpuid(&entries), Ok(0));
    let ask = |function: u64, index: u64| -> Result<[u64; 4], Failure> {
        machine.change_regs(|regs| {
            (regs.rax, regs.rcx, regs.rip) = (function, index, layout::CODE as u64);
            // The upper halves are cleared by the instruction.
            (regs.rbx, regs.rdx) = (u64::MAX, u64::MAX);
        })?;
        check_exit(machine.run()?)?;
        let regs = machine.vcpu.regs()?;
        Ok([regs.rax, regs.rbx, regs.rcx, regs.rdx])
    };
    check_eq!(ask(0x4000_0000, 0)?, [0x1000, 0x1001, 0x1002, 0x1003]);
    check_eq!(ask(0x4000_0000, 77)?, [0x1000, 0x1001, 0x1002, 0x1003], "an index that does not matter");
    check_eq!(ask(0x4, 0)?, [0x2000, 0x2001, 0x2002, 0x2003]);
    check_eq!(ask(0x4, 1)?, [0x3000, 0x3001, 0x3002, 0x3003]);
    check_eq!(ask(0x4, 2)?, [0; 4], "an index that is not there");
    check_eq!(ask(0xFFFF_FFFF_4000_0000, 0)?[0], 0x1000, "only the low half of RAX counts");
    // The APIC is there when its base says so, whatever the VMM has said of it.
    const APIC: u64 = 1 << 9;
    for enabled in [1 << 11, 0] {
        machine.change_sregs(|sregs| sregs.apic_base = sregs.apic_base & !(1 << 11) | enabled)?;
        check_eq!(ask(1, 0)?[3] & APIC != 0, enabled != 0, "the APIC");
    }
    // A level of the topology that is not there has the number that was asked for, and the vCPU's.
    entries.push(entry(0xB, 0, indexed, 0x4000));
    entries.push(entry(0xB, 1, indexed, 0x5000));
    check_eq!(device.vm()?.vcpu(0)?.set_cpuid(&entries), Ok(0));
    if let Some(vendor) = entries.iter().find(|entry| entry.function == 0) {
        let [_, ebx, ecx, edx] = ask(0, 0)?;
        check_eq!([ebx, ecx, edx], [vendor.ebx, vendor.ecx, vendor.edx].map(u64::from), "the vendor");
    }
    Ok(())
}

fn check_exit(exit: Exit) -> Outcome {
    check_eq!(exit, Exit::Hlt);
    Ok(())
}

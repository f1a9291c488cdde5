// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_SREGS and KVM_GET_SREGS keep segments, tables and control registers.

use crate::machine::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::new(&device)?;
    let vcpu = &machine.vcpu;
    let reset = vcpu.sregs()?;
    check_eq!((reset.cs.base, reset.cs.selector, reset.cs.limit), (0xFFFF_0000, 0xF000, 0xFFFF));
    check_eq!((reset.cr0, reset.cr3, reset.cr4, reset.efer), (0x6000_0010, 0, 0, 0));
    check_eq!((reset.idt.limit, reset.gdt.limit), (0xFFFF, 0xFFFF));
    check_eq!(vcpu.set_sregs(&reset), Ok(0));
    check_eq!(vcpu.sregs()?, reset);

    // What EFER and CR4 may hold depends on it.
    vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(vcpu)?;
    let mut sregs = vcpu.sregs()?;
    sregs.fs = kvm_segment { base: 0x1234_5678_9ABC, ..sregs.fs };
    sregs.gs = kvm_segment { base: 0xFFFF_8000_0000_1000, selector: 0x13, dpl: 3, ..sregs.gs };
    sregs.ldt =
        kvm_segment { base: 0x5000, limit: 0x77, selector: 0x50, type_: 2, present: 1, ..Default::default() };
    sregs.cr2 = 0xDEAD_BEEF_0000;
    sregs.cr8 = 5;
    sregs.idt = kvm_dtable { base: 0xFFFF_FFFF_8000_0000, limit: 0x123, ..Default::default() };
    sregs.gdt = kvm_dtable { base: 0x7000_1000, limit: 0x456, ..Default::default() };
    check_eq!(vcpu.set_sregs(&sregs), Ok(0));
    check_eq!(vcpu.sregs()?, sregs);
    check_eq!(vcpu.sregs()?.efer, EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE);
    Ok(())
}

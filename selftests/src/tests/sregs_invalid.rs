// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_SREGS refuses impossible control-register states with EINVAL and changes nothing.

use crate::machine::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

type Change = fn(&mut kvm_sregs);

const FROM_REAL: &[(&str, Change)] = &[
    ("CR0.PG without PE", |s| s.cr0 |= CR0_PG),
    ("CR0.NW without CD", |s| s.cr0 = s.cr0 & !(1 << 30) | 1 << 29),
    ("CR0 above bit 31", |s| s.cr0 |= 1 << 32),
    ("CR4 reserved bit 31", |s| s.cr4 |= 1 << 31),
    ("CR4 reserved bit 63", |s| s.cr4 |= 1 << 63),
    ("CR4 reserved bit 15", |s| s.cr4 |= 1 << 15),
    ("EFER.LMA without LME", |s| s.efer |= EFER_LMA),
    ("EFER reserved bit 1", |s| s.efer |= 1 << 1),
    ("EFER reserved bit 63", |s| s.efer |= 1 << 63),
    ("a 64-bit code segment outside of long mode", |s| s.cs.l = 1),
];

const FROM_LONG: &[(&str, Change)] = &[
    ("long mode without PAE", |s| s.cr4 &= !CR4_PAE),
    ("EFER.LME and CR0.PG without LMA", |s| s.efer &= !EFER_LMA),
    ("LMA without LME", |s| s.efer &= !EFER_LME),
    ("LMA without paging", |s| s.cr0 &= !CR0_PG),
    ("CR3 reserved bits", |s| s.cr3 |= 1 << 62),
    ("CR4 reserved bit", |s| s.cr4 |= 1 << 40),
];

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::new(&device)?;
    machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    for (enter, changes) in [
        (enter_real as fn(&Vcpu) -> Result<(), Errno>, FROM_REAL),
        (enter_long as fn(&Vcpu) -> Result<(), Errno>, FROM_LONG),
    ] {
        enter(&machine.vcpu)?;
        let good = machine.vcpu.sregs()?;
        for (what, change) in changes {
            let mut sregs = good;
            change(&mut sregs);
            check_err!(machine.vcpu.set_sregs(&sregs), EINVAL, "{what}");
            check_eq!(machine.vcpu.sregs()?, good, "after {what}");
        }
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Random system registers are accepted or refused, and come back, as with KVM.

use crate::compare::{compare, Log};
use crate::machine::*;
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(120, run);

fn run(t: &Context) -> Outcome {
    let count = t.repetitions(2000);
    // One CPUID for both, or the comparison is one of CPUIDs.
    let cpuid = t.device()?.supported_cpuid(256)?;
    compare(t, |device, log| scenario(device, log, &cpuid, count))
}

fn scenario(device: &Device, log: &mut Log, cpuid: &[kvm_cpuid_entry2], count: u64) -> Outcome {
    let machine = Machine::new(device)?;
    machine.write_tables();
    let vcpu = &machine.vcpu;
    vcpu.set_cpuid(cpuid)?;
    let reset = vcpu.sregs()?;
    let mut random = Random::new(13);
    for _ in 0..count {
        vcpu.set_sregs(&reset)?;
        random.pick(&[enter_real as fn(&Vcpu) -> Result<(), Errno>, enter_protected, enter_long])(vcpu)?;
        let mut sregs = vcpu.sregs()?;
        for _ in 0..1 + random.below(3) {
            change(&mut sregs, &mut random);
        }
        let result = vcpu.set_sregs(&sregs);
        note!(log, "{result:?} of {sregs:x?}\n        now {:x?}", vcpu.sregs()?);
    }
    Ok(())
}

/// Segment limits in 64-bit mode.
const EFER_LMSLE: u64 = 1 << 13;

fn change(sregs: &mut kvm_sregs, random: &mut Random) {
    let bit = 1 << random.below(64);
    match random.below(14) {
        0 | 1 => sregs.cr0 ^= bit,
        2 | 3 => sregs.cr4 ^= bit,
        // kvm_amd lets EFER.LMSLE through to the CPU; rusthv does not offer it.
        4 if bit != EFER_LMSLE => sregs.efer ^= bit,
        5 => sregs.cr3 ^= bit,
        6 => sregs.cr0 ^= random.pick(&[CR0_PE, CR0_PG, 1 << 29, 1 << 30, CR0_WP, CR0_NE]),
        7 => sregs.cr4 ^= random.pick(&[CR4_PAE, 1 << 4, 1 << 13, 1 << 17, CR4_OSXSAVE, 1 << 20, 1 << 21]),
        8 => sregs.efer ^= random.pick(&[EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE]),
        9 => sregs.cr8 = random.below(20),
        10 => sregs.cr2 = random.edge(),
        11 => sregs.cs.l ^= 1,
        12 => sregs.gdt.base = random.edge(),
        _ => sregs.idt.limit = random.word() as u16,
    }
}

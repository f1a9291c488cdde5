// SPDX-License-Identifier: GPL-2.0

//! From random segment registers, VM entry fails or the guest runs, as with KVM.

use crate::compare::{compare, Log};
use crate::machine::*;
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(120, run);

guest!(compare_entry, code64, "2: out 0x10, al", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let count = t.repetitions(500);
    let cpuid = t.device()?.supported_cpuid(256)?;
    compare(t, |device, log| scenario(device, log, &cpuid, count))
}

fn scenario(device: &Device, log: &mut Log, cpuid: &[kvm_cpuid_entry2], count: u64) -> Outcome {
    let machine = Machine::long(device, compare_entry())?;
    let vcpu = &machine.vcpu;
    vcpu.set_cpuid(cpuid)?;
    let mut random = Random::new(14);
    for _ in 0..count {
        enter_long(vcpu)?;
        let mut sregs = vcpu.sregs()?;
        change(&mut sregs, &mut random);
        let result = vcpu.set_sregs(&sregs);
        let exit = result.and_then(|_| vcpu.run());
        note!(log, "{exit:x?} from {sregs:x?}");
        // Completes a pending port write, so that the next state is not changed by it.
        vcpu.set_immediate_exit(1);
        let _ = vcpu.run();
        vcpu.set_immediate_exit(0);
    }
    Ok(())
}

/// Attributes of segments other than SS, whose checks follow those of CS, and of tables.
fn change(sregs: &mut kvm_sregs, random: &mut Random) {
    let word = random.word();
    let kvm_sregs { ds, es, fs, gs, tr, ldt, cs, .. } = sregs;
    let segment = match random.below(8) {
        0 => ds,
        1 => es,
        2 => fs,
        3 => gs,
        4 => tr,
        5 => ldt,
        _ => cs,
    };
    match random.below(8) {
        0 => segment.type_ = (word & 15) as u8,
        1 => segment.present ^= 1,
        2 => segment.dpl = (word & 3) as u8,
        3 => segment.g ^= 1,
        4 => segment.limit = word as u32,
        5 => segment.db ^= 1,
        6 => segment.selector = word as u16,
        _ => segment.s ^= 1,
    }
}

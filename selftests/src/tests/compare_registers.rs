// SPDX-License-Identifier: GPL-2.0

//! The reset state, and what comes back of random registers, are the same as with KVM.

use crate::compare::{compare, Log};
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(60, run);

fn run(t: &Context) -> Outcome {
    compare(t, scenario)
}

fn scenario(device: &Device, log: &mut Log) -> Outcome {
    let vm = device.vm()?;
    for id in [0, 1, 7] {
        let vcpu = vm.vcpu(id)?;
        note!(log, "vCPU {id} at reset: {:x?}", vcpu.regs()?);
        note!(log, "vCPU {id} at reset: {:x?}", vcpu.sregs()?);
    }
    let vcpu = vm.vcpu(9)?;
    let mut random = Random::new(12);
    for _ in 0..200 {
        let mut regs = vcpu.regs()?;
        (regs.rip, regs.rflags, regs.r15) = (random.edge(), random.edge(), random.edge());
        let result = vcpu.set_regs(&regs);
        note!(log, "{result:?} of {regs:x?}: now {:x?}", vcpu.regs()?);
    }
    Ok(())
}

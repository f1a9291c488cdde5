// SPDX-License-Identifier: GPL-2.0

//! Garbage in all registers is EINVAL or an exit, and the vCPU runs again from a good state.

use crate::garbage;
use crate::machine::*;
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(120, run);

const HLT: u8 = 0xF4;
/// Small, and halts wherever one comes to. Vectors in real mode lead out of it.
const SIZE: usize = 0x28000;
/// What is given again after every round: more than `enter_long` sets.
type Good = (kvm_sregs, kvm_regs);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::with_memory(&device, Memory::new(SIZE)?)?;
    machine.memory.fill(0, SIZE, HLT);
    machine.write_tables();
    machine.vcpu.set_cpuid(&device.supported_cpuid(256)?)?;
    let reset = machine.vcpu.sregs()?;
    enter_long(&machine.vcpu)?;
    let good: Good = (machine.vcpu.sregs()?, machine.vcpu.regs()?);
    let mut random = Random::new(22);
    let (mut refused, mut entered) = (0, 0);
    for round in 0..t.repetitions(1000) {
        machine.vcpu.set_sregs(&reset)?;
        random.pick(&[enter_real as fn(&Vcpu) -> Result<(), Errno>, enter_protected, enter_long])(
            &machine.vcpu,
        )?;
        let (mut regs, mut sregs) = (machine.vcpu.regs()?, machine.vcpu.sregs()?);
        garbage::sregs(&mut random, &mut sregs);
        garbage::regs(&mut random, &mut regs);
        let before = machine.vcpu.sregs()?;
        match machine.vcpu.set_sregs(&sregs) {
            Ok(_) => entered += 1,
            Err(errno) => {
                refused += 1;
                check_eq!(errno, Errno::EINVAL, "round {round}");
                check_eq!(machine.vcpu.sregs()?, before, "round {round}: refused, and nothing changed");
            }
        }
        check_eq!(machine.vcpu.set_regs(&regs), Ok(0), "round {round}");
        for _ in 0..4 {
            match machine.run() {
                Ok(Exit::Shutdown | Exit::InternalError { .. } | Exit::FailEntry { .. }) => break,
                Ok(Exit::Io { .. } | Exit::MmioRead { .. } | Exit::MmioWrite { .. } | Exit::Hlt) => {}
                other => fail!("round {round}: {other:x?} from {regs:x?} {sregs:x?}"),
            }
        }
        // What a device access has left is completed or dropped, and the state is good again.
        machine.vcpu.set_immediate_exit(1);
        while !matches!(machine.run(), Err(Errno::EINTR)) {}
        machine.vcpu.set_immediate_exit(0);
        machine.vcpu.set_sregs(&good.0)?;
        machine.vcpu.set_regs(&good.1)?;
        machine.write_tables();
        machine.memory.write(layout::CODE, &[HLT]);
        check_eq!(machine.run()?, Exit::Hlt, "round {round}: from a good state, after {regs:x?} {sregs:x?}");
        check_eq!(machine.vcpu.regs()?.rip, layout::CODE as u64 + 1, "round {round}");
    }
    check!(refused > 0 && entered > 0, "{refused} refused, {entered} entered");
    Ok(())
}

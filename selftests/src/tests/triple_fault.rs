// SPDX-License-Identifier: GPL-2.0

//! A triple fault is KVM_EXIT_SHUTDOWN, and only that VM's problem.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(triple_fault, code64, "ud2");
guest!(triple_fault_other, code16, "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, triple_fault())?;
    machine.change_sregs(|sregs| sregs.idt.limit = 0)?;
    check_eq!(machine.run()?, Exit::Shutdown);
    check_eq!(Machine::real(&device, triple_fault_other())?.run()?, Exit::Hlt);
    // A fresh start of the same vCPU runs.
    machine.load(triple_fault_other());
    crate::machine::enter_real(&machine.vcpu).or_else(|_| reset(&machine))?;
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

/// `enter_real` starts from the reset state; here the vCPU was in long mode.
fn reset(machine: &Machine) -> Result<(), Errno> {
    let fresh = machine.vm.vcpu(1)?;
    machine.vcpu.set_sregs(&fresh.sregs()?)?;
    crate::machine::enter_real(&machine.vcpu)
}

// SPDX-License-Identifier: GPL-2.0

//! RFLAGS.TF steps a guest through its own code, also over instructions that exit to the hypervisor.

use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(single_step, code64, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "inc rbx", "cpuid", "nop",);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, single_step())?;
    let end = (layout::CODE + single_step().len()) as u64;
    // The #DB comes behind the instruction after POPFQ, and then behind each.
    for (behind, rip) in [("NOP", end - 6), ("INC", end - 3), ("CPUID", end - 1), ("the last NOP", end)] {
        let trap = machine.run_to_trap(behind)?;
        check_eq!((trap.vector, trap.rip), (traps::DEBUG, rip), "behind {behind}");
    }
    Ok(())
}

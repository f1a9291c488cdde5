// SPDX-License-Identifier: GPL-2.0

//! RFLAGS.TF steps a guest through its own code, also over instructions that exit to the hypervisor.

use crate::emulator;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(single_step, code64, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop", "inc rbx", "cpuid", "nop",);

guest!(single_step_string, code64, "pushfq", "or qword ptr [rsp], 0x100", "popfq", "rep outsb", "nop", "nop");

fn run(t: &Context) -> Outcome {
    instructions(t)?;
    iterations(t)
}

/// REP OUTS is stepped through one item at a time.
fn iterations(t: &Context) -> Outcome {
    if emulator::is_tcg() {
        // That of QEMU 7.2 forgets TF when an instruction exits.
        return Ok(());
    }
    let machine = Machine::long(&t.rusthv()?, single_step_string())?;
    let end = (layout::CODE + single_step_string().len()) as u64;
    machine.change_regs(|regs| {
        (regs.rcx, regs.rdx, regs.rsi) = (3, 0x10, layout::DATA as u64);
    })?;
    let (mut items, mut traps) = (0, Vec::new());
    while traps.last() != Some(&(end - 1)) {
        let exit = machine.run()?;
        if let Some(trap) = traps::trap(&machine, &exit)? {
            check_eq!(trap.vector, traps::DEBUG);
            traps.push(trap.rip);
        } else {
            check!(matches!(exit, Exit::Io { port: 0x10, count: 1, .. }), "{exit:x?}");
            items += 1;
        }
    }
    check_eq!(items, 3);
    check_eq!(traps, [end - 4, end - 4, end - 2, end - 1], "at the next item, and behind the last");
    Ok(())
}

fn instructions(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, single_step())?;
    let end = (layout::CODE + single_step().len()) as u64;
    // The #DB comes behind the instruction after POPFQ, and then behind each.
    for (behind, rip) in [("NOP", end - 6), ("INC", end - 3), ("CPUID", end - 1), ("the last NOP", end)] {
        let trap = machine.run_to_trap(behind)?;
        check_eq!((trap.vector, trap.rip), (traps::DEBUG, rip), "behind {behind}");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! An instruction that is not emulated on MMIO is KVM_EXIT_INTERNAL_ERROR with its bytes, and no more.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(mmio_unknown, code64, "paddd xmm1, [rbx]", "nop", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, mmio_unknown())?;
    machine.change_regs(|regs| regs.rbx = layout::MMIO)?;
    let exit = machine.run()?;
    let Exit::InternalError { suberror, data } = exit else { fail!("got {exit:x?}") };
    check_eq!(suberror, KVM_INTERNAL_ERROR_EMULATION);
    // flags, then the length and the bytes of the instruction in the next two words.
    check!(data.len() >= 3, "only {} words of data", data.len());
    check_eq!(data[0] & 1, 1, "the flag that the instruction's bytes are there");
    let bytes: Vec<u8> = data[1..3].iter().flat_map(|word| word.to_le_bytes()).collect();
    let length = usize::from(bytes[0]);
    check!((4..=15).contains(&length), "length {length}");
    check_eq!(bytes[1..5], mmio_unknown()[..4], "the instruction");
    check_eq!(machine.vcpu.regs()?.rip, layout::CODE as u64, "the guest stands at it");
    // User space may deal with it: here by leaving it out.
    machine.change_regs(|regs| regs.rip += 4)?;
    check!(matches!(machine.run()?, Exit::Hlt | Exit::Shutdown), "the VM goes on");
    Ok(())
}

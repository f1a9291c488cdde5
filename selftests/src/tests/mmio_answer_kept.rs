// SPDX-License-Identifier: GPL-2.0

//! A device that has answered is not asked again when the memory for its answer is not there: it goes there later.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

const GPA: u64 = 0x40_0000;

guest!(mmio_answer_kept, code64, "movsd", "hlt");

fn run(t: &Context) -> Outcome {
    // KVM gives the VMM the data as a write to a device.
    let machine = Machine::long(&t.rusthv()?, mmio_answer_kept())?;
    let memory = Memory::new(2 * PAGE)?;
    machine.vm.map(1, GPA, &memory)?;
    memory.protect(PAGE, PAGE, libc::PROT_NONE)?;
    // Across the pages: what is before the hole is written, too, once it is filled.
    machine.change_regs(|regs| (regs.rsi, regs.rdi) = (layout::MMIO, GPA + PAGE as u64 - 2))?;
    check_eq!(machine.run()?, Exit::MmioRead { address: layout::MMIO, length: 4 });
    machine.vcpu.answer_mmio(&[1, 2, 3, 4]);
    for _ in 0..2 {
        check_err!(machine.run(), EFAULT);
    }
    memory.protect(PAGE, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(memory.read(PAGE - 2, 4), [1, 2, 3, 4]);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rsi, regs.rdi), (layout::MMIO + 4, GPA + PAGE as u64 + 2));
    Ok(())
}

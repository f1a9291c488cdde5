// SPDX-License-Identifier: GPL-2.0

//! A page that was written is in the log also if the host takes it away, gives another, or moves it before anybody
//! has looked, and if its slot has moved.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const GPA: u64 = 0x40_0000;
const AWAY: u64 = 0x80_0000;
const PAGES: usize = 200;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(dirty_log_taken, code64, "mov [rbx], al", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, memory.size(), 1);
    let machine = Machine::long(&device, dirty_log_taken())?;
    let vm = &machine.vm;
    let (size, address) = (memory.size() as u64, memory.address());
    vm.set_slot(1, LOG, GPA, size, address)?;
    let write = |base: u64, page: usize| -> Outcome {
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, base + (page * PAGE) as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok(())
    };
    let read = || vm.dirty_pages(1, PAGES);
    // Nothing is mapped at first, everything later.
    for turn in 0..3 {
        let written = [4, 5, 90, 91, 150, 199];
        for page in written {
            write(GPA, page)?;
        }
        memory.advise(5 * PAGE, PAGE, libc::MADV_DONTNEED)?;
        memory.protect(90 * PAGE, 2 * PAGE, libc::PROT_READ)?;
        memory.protect(90 * PAGE, 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        memory.advise(150 * PAGE, 50 * PAGE, libc::MADV_DONTNEED)?;
        // Back in the guest, but not written again.
        check_eq!(memory.read(5 * PAGE, 1), [0]);
        check_eq!(read()?, written, "turn {turn}");
        check_eq!(read()?, [0; 0], "turn {turn}, again");
        // The log goes with its slot.
        write(GPA, 7)?;
        vm.set_slot(1, LOG, AWAY, size, address)?;
        write(AWAY, 8)?;
        vm.set_slot(1, LOG, GPA, size, address)?;
        check_eq!(read()?, [7, 8], "turn {turn}, moved");
        check_eq!(read()?, [0; 0], "turn {turn}, moved, again");
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A log that user space clears keeps its bits until then, and pages whose bits are cleared are logged again.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(30, run);

const GPA: u64 = 0x40_0000;
const PAGES: usize = 300;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(dirty_log_manual, code64, "mov [rbx], al", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, memory.size(), 1);
    let machine = Machine::long(&device, dirty_log_manual())?;
    let vm = &machine.vm;
    let set = |flags| vm.set_slot(1, flags, GPA, memory.size() as u64, memory.address());
    let write = |page: usize| {
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (page * PAGE) as u64);
        })?;
        machine.run()
    };
    let bit = |page: usize| {
        let mut words = [0; PAGES.div_ceil(64)];
        words[page / 64] = 1 << (page % 64);
        words
    };
    vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)?;
    set(LOG)?;
    for page in [3, 64, 299] {
        check_eq!(write(page)?, Exit::Hlt);
    }
    for round in 0..3 {
        check_eq!(vm.dirty_pages(1, PAGES)?, [3, 64, 299], "read, round {round}");
    }
    // Written once more after the reading: the bit goes nevertheless, the next write is logged.
    check_eq!(write(64)?, Exit::Hlt);
    vm.clear_log(1, 0, PAGES as u32, &bit(64))?;
    check_eq!(vm.dirty_pages(1, PAGES)?, [3, 299]);
    check_eq!(write(64)?, Exit::Hlt);
    check_eq!(vm.dirty_pages(1, PAGES)?, [3, 64, 299]);
    // A part of the slot, by its own bitmap; pages that were not named can be written as before.
    vm.clear_log(1, 256, 44, &[!0])?;
    check_eq!(vm.dirty_pages(1, PAGES)?, [3, 64]);
    check_eq!(write(298)?, Exit::Hlt);
    check_eq!(vm.dirty_pages(1, PAGES)?, [3, 64, 298]);
    // What was read is not lost when reading clears again: it is read once more, and then clean.
    vm.set_manual_log(0)?;
    check_eq!(vm.dirty_pages(1, PAGES)?, [3, 64, 298]);
    check_eq!(vm.dirty_pages(1, PAGES)?, [0; 0]);
    // Clearing works then, too.
    for page in [7, 8] {
        check_eq!(write(page)?, Exit::Hlt);
    }
    vm.clear_log(1, 0, PAGES as u32, &bit(7))?;
    check_eq!(vm.dirty_pages(1, PAGES)?, [8]);

    // A log that begins with everything, whether it was mapped before or not.
    set(0)?;
    check_eq!(write(9)?, Exit::Hlt);
    vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)?;
    set(LOG)?;
    check_eq!(vm.dirty_pages(1, PAGES)?, (0..PAGES).collect::<Vec<_>>());
    vm.clear_log(1, 0, 128, &[!0; 2])?;
    check_eq!(vm.dirty_pages(1, PAGES)?, (128..PAGES).collect::<Vec<_>>());
    vm.clear_log(1, 128, 172, &[!0; 3])?;
    check_eq!(vm.dirty_pages(1, PAGES)?, [0; 0]);
    for page in [9, 150, 299] {
        check_eq!(write(page)?, Exit::Hlt);
        check_eq!(vm.dirty_pages(1, PAGES)?, [page]);
        vm.clear_log(1, 0, PAGES as u32, &[!0; 5])?;
    }
    // That is for new logs: one that a slot has stays as it is when the slot moves.
    check_eq!(write(200)?, Exit::Hlt);
    vm.set_slot(1, LOG, 4 * GPA, memory.size() as u64, memory.address())?;
    check_eq!(vm.dirty_pages(1, PAGES)?, [200]);
    Ok(())
}

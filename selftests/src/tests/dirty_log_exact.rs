// SPDX-License-Identifier: GPL-2.0

//! A dirty log names the pages that were written and no others: no neighbours, and none that were only read.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(30, run);

const GPA: u64 = 0x40_0000;
const PAGES: usize = 300;

guest!(dirty_log_exact, code64, "mov [rbx], al", "hlt");
guest!(dirty_log_exact_read, code64, "mov al, [rbx]", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::new(PAGES * PAGE)?;
    // All in the host, so that a fault may map as many as it likes.
    memory.fill(0, memory.size(), 1);
    let machine = Machine::long(&device, dirty_log_exact())?;
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, GPA, memory.size() as u64, memory.address())?;
    let touch = |code: &[u8], page: usize| {
        machine.load(code);
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (page * PAGE) as u64);
        })?;
        machine.run()
    };
    // Twice: nothing is mapped at first, everything later.
    for round in 0..2 {
        for page in [0, 1, 63, 64, 150, 298, 299] {
            check_eq!(touch(dirty_log_exact(), page)?, Exit::Hlt);
            check_eq!(machine.vm.dirty_pages(1, PAGES)?, [page], "round {round}");
            check_eq!(machine.vm.dirty_pages(1, PAGES)?, [0; 0], "round {round}");
        }
    }
    let written = [3, 5, 70, 71, 200, 255, 256];
    for page in written {
        check_eq!(touch(dirty_log_exact(), page)?, Exit::Hlt);
    }
    check_eq!(machine.vm.dirty_pages(1, PAGES)?, written);
    for page in [0, 2, 100, 299] {
        check_eq!(touch(dirty_log_exact_read(), page)?, Exit::Hlt);
    }
    let read = machine.vm.dirty_pages(1, PAGES)?;
    // KVM maps a page that is read for the first time writable, and lists it.
    check!(read.is_empty() || !device.has_extensions(), "{read:?} were only read");
    // A page that the host takes away and gives back is written anew.
    memory.advise(70 * PAGE, 2 * PAGE, libc::MADV_DONTNEED)?;
    check_eq!(touch(dirty_log_exact(), 71)?, Exit::Hlt);
    check_eq!(machine.vm.dirty_pages(1, PAGES)?, [71]);
    Ok(())
}

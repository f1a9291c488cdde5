// SPDX-License-Identifier: GPL-2.0

//! However many readings a guest leaves memory alone for, what it writes then is in the next log; beside memory that is
//! only read, and in slots that share a page table.

use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

/// Not at the start of a page table; three of them are whole, and the last one is shared.
const GPA: u64 = 0x4f_0000;
const PAGES: usize = 4 * 512 + 100;
const NEXT: usize = 50;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(dirty_log_idle_write, code64, "mov [rbx], al", "hlt");
guest!(dirty_log_idle_read, code64, "mov al, [rbx]", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::new((PAGES + NEXT) * PAGE)?;
    memory.fill(0, memory.size(), 1);
    let machine = Machine::long(&device, dirty_log_idle_write())?;
    let vm = &machine.vm;
    let (bytes, behind) = ((PAGES * PAGE) as u64, (NEXT * PAGE) as u64);
    vm.set_slot(1, LOG, GPA, bytes, memory.address())?;
    vm.set_slot(2, LOG, GPA + bytes, behind, memory.address() + bytes)?;
    let touch = |code: &[u8], page: usize| -> Outcome {
        machine.load(code);
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (page * PAGE) as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok(())
    };
    // All of it is mapped, and some of it from the guest's own accesses.
    for page in (0..PAGES + NEXT).step_by(16) {
        touch(dirty_log_idle_write(), page)?;
    }
    vm.dirty_pages(1, PAGES)?;
    vm.dirty_pages(2, NEXT)?;
    for page in [0, 15, 16, 17, 600, 1100, 1640, PAGES - 1, PAGES, PAGES + NEXT - 1] {
        for idle in 0..4 {
            for other in 0..idle {
                check_eq!(vm.dirty_pages(1, PAGES)?, [0; 0], "page {page}, reading {other}");
                if other != 1 {
                    check_eq!(vm.dirty_pages(2, NEXT)?, [0; 0], "page {page}, reading {other}");
                }
                touch(dirty_log_idle_read(), 700)?;
            }
            touch(dirty_log_idle_write(), page)?;
            let (first, second) = match page.checked_sub(PAGES) {
                None => (vec![page], vec![]),
                Some(page) => (vec![], vec![page]),
            };
            check_eq!(vm.dirty_pages(1, PAGES)?, first, "page {page} after {idle} readings");
            check_eq!(vm.dirty_pages(2, NEXT)?, second, "page {page} after {idle} readings");
        }
    }
    // What is behind a slot in the last word of its bitmap is the next one's.
    vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)?;
    touch(dirty_log_idle_write(), PAGES)?;
    vm.clear_log(1, 0, PAGES as u32, &vec![u64::MAX; PAGES.div_ceil(64)])?;
    check_eq!(vm.dirty_pages(2, NEXT)?, [0], "after the slot before was cleared");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A page of 1 GiB is logged in small pages, cut where it is written alone, and is one page again afterwards.

use crate::gigantic::{self, GIB, GPA, LARGE, PAGES};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(120, run);

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(gigantic_pages_log, code64, "inc qword ptr [rbx + 8]", "hlt");
guest!(
    gigantic_pages_log_sum,
    code64,
    // Adds up the first word of each 2 MiB.
    "xor eax, eax",
    "2: add rax, [rbx]",
    "add rbx, 0x200000",
    "dec r8",
    "jnz 2b",
    "hlt"
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = gigantic::memory()?;
    let machine = Machine::long(&device, gigantic_pages_log())?;
    let vm = &machine.vm;
    let set = |flags| vm.set_slot(1, flags, GPA, GIB as u64, memory.address());
    let write = |page: usize| -> Outcome {
        let before = memory.read_u64(page * PAGE + 8);
        machine.load(gigantic_pages_log());
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (page * PAGE) as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(memory.read_u64(page * PAGE + 8), before + 1, "page {page}");
        Ok(())
    };
    let sum = || -> Outcome {
        machine.load(gigantic_pages_log_sum());
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, GPA, LARGE as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, (LARGE * (LARGE - 1) / 2) as u64);
        Ok(())
    };
    // Whoever has no such count is KVM.
    let ours = device.has_extensions() && device.info()?.missing & crate::rusthv::FEAT_1G == 0;
    let stats = || if ours { vm.stats() } else { Ok(Default::default()) };
    let dirty = || vm.dirty_pages(1, PAGES);
    set(0)?;
    write(0)?;
    let whole = stats()?;
    check!(!ours || whole.mapped_1g == 1, "{whole:?}");
    let pages = [0, 511, 512, 100_000, PAGES - 1];
    for round in 0..2 {
        set(LOG)?;
        check_eq!(dirty()?, [0; 0], "round {round}");
        sum()?;
        check!(dirty()?.is_empty() || !ours, "round {round}: it was only read");
        check_eq!(stats()?.mapped_1g, whole.mapped_1g, "round {round}: it was only read");
        for page in pages {
            write(page)?;
            check_eq!(dirty()?, [page], "round {round}");
        }
        let cut = stats()?;
        if ours {
            check_eq!(cut.mapped_1g, 0, "round {round}");
            // 4 of the 512 parts are cut further.
            check_eq!(cut.mapped_2m - whole.mapped_2m, LARGE as u64 - 4, "round {round}");
            check_eq!(cut.mapped_4k - whole.mapped_4k, 4 * 512, "round {round}");
            check_eq!(cut.table_frames - whole.table_frames, 1 + 4, "round {round}");
        }
        for page in pages {
            write(page)?;
        }
        sum()?;
        check_eq!(dirty()?, pages, "round {round}");
        set(0)?;
        check_eq!(stats()?.table_frames, whole.table_frames, "round {round}: no tables are left");
        sum()?;
        write(77)?;
        let again = stats()?;
        check_eq!(
            (again.mapped_1g, again.table_frames),
            (whole.mapped_1g, whole.table_frames),
            "round {round}"
        );
    }
    // All pages are dirty to begin with, and the page is whole, until some are cleared.
    vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)?;
    set(LOG)?;
    write(5)?;
    check_eq!(dirty()?.len(), PAGES);
    check_eq!(stats()?.mapped_1g, whole.mapped_1g, "nothing is cleared yet");
    vm.clear_log(1, 0, PAGES as u32, &vec![!0; PAGES / 64])?;
    check_eq!(stats()?.mapped_1g, whole.mapped_1g, "nothing is written yet");
    write(PAGES - 2)?;
    write(5)?;
    check_eq!(dirty()?, [5, PAGES - 2]);
    check_eq!(stats()?.mapped_1g, 0);
    set(0)?;
    sum()?;
    check_eq!(stats()?.mapped_1g, whole.mapped_1g);
    Ok(())
}

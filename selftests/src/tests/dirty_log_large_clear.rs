// SPDX-License-Identifier: GPL-2.0

//! A log that begins with all pages leaves large pages whole until a write comes after the clearing.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const GPA: u64 = 0x4000_0000;
const SIZE: usize = 3 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;
/// Pages in a large one.
const LARGE: usize = LARGE_PAGE / PAGE;
const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;

guest!(
    dirty_log_large_clear,
    code64,
    // Counts up in R8 pages, RDX bytes and R10 pages apart, which have their number from R9 on.
    "2: cmp [rbx], r9d",
    "jne 3f",
    "inc dword ptr [rbx + 4]",
    "add rbx, rdx",
    "add r9, r10",
    "dec r8",
    "jnz 2b",
    "hlt",
    "3: ud2",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    if memory.advise(0, SIZE, libc::MADV_HUGEPAGE).is_err() {
        skip!("no transparent huge pages in this kernel");
    }
    for page in 0..PAGES {
        memory.write_u64(page * PAGE, page as u64);
    }
    if host::huge_bytes(memory.address())? < SIZE as u64 {
        skip!("the host gave no huge pages");
    }
    let machine = Machine::long(&device, dirty_log_large_clear())?;
    let vm = &machine.vm;
    vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)?;
    let set = |flags| vm.set_slot(1, flags, GPA, SIZE as u64, memory.address());
    // How often each page was counted up.
    let mut counts = vec![0u64; PAGES];
    let mut write = |first: usize, number: usize, stride: usize| -> Outcome {
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (first * PAGE) as u64);
            (regs.rdx, regs.r8, regs.r9) = ((stride * PAGE) as u64, number as u64, first as u64);
            regs.r10 = stride as u64;
        })?;
        check_eq!(machine.run()?, Exit::Hlt, "{number} pages from {first} on");
        for page in (first..).step_by(stride).take(number) {
            counts[page] += 1;
            check_eq!(memory.read_u64(page * PAGE), page as u64 | counts[page] << 32, "page {page}");
        }
        Ok(())
    };
    let all: Vec<usize> = (0..PAGES).collect();
    set(0)?;
    write(0, PAGES, 1)?;
    // The machine's own memory may be one huge page, too. Whoever has no such count is KVM.
    let ours = device.has_extensions();
    let large = || if ours { vm.stats().map(|stats| stats.mapped_2m) } else { Ok(0) };
    let whole = large()?;
    check!(whole >= 3 || !ours, "{whole} large pages before the log");
    for round in 0..3 {
        set(LOG)?;
        check_eq!(vm.dirty_pages(1, PAGES)?, all, "round {round}");
        // All of it may be written still, without a fault.
        let faults = || if ours { machine.vcpu.stats().map(|stats| stats.ept_faults) } else { Ok(0) };
        let before = faults()?;
        write(0, PAGES, 1)?;
        check_eq!(faults()?, before, "faults before the clearing, round {round}");
        check_eq!(large()?, whole, "large pages before the clearing, round {round}");
        check_eq!(vm.dirty_pages(1, PAGES)?, all, "round {round}");
        // One page of the second large page: that one as a whole waits for a write.
        let word = (LARGE + 70) / 64;
        vm.clear_log(1, 64 * word as u64, 64, &[1 << ((LARGE + 70) % 64)])?;
        let without: Vec<_> = all.iter().copied().filter(|page| *page != LARGE + 70).collect();
        check_eq!(vm.dirty_pages(1, PAGES)?, without, "round {round}");
        check_eq!(large()?, whole, "large pages behind it, round {round}");
        write(LARGE + 70, 1, 1)?;
        check_eq!(vm.dirty_pages(1, PAGES)?, all, "round {round}");
        if ours {
            check_eq!(large()?, whole - 1, "it was cut, round {round}");
        }
        // All of it, then some writes in each.
        vm.clear_log(1, 0, PAGES as u32, &[!0; PAGES / 64])?;
        check_eq!(vm.dirty_pages(1, PAGES)?, [0; 0], "round {round}");
        write(5, 4, 400)?;
        check_eq!(vm.dirty_pages(1, PAGES)?, [5, 405, 805, 1205], "round {round}");
        if ours {
            check_eq!(large()?, whole - 3, "all are cut, round {round}");
        }
        write(5, 4, 400)?;
        // Logging ends, and large pages come back.
        set(0)?;
        write(1, 3, LARGE)?;
        check_eq!(large()?, whole, "large pages after the log, round {round}");
    }
    Ok(())
}

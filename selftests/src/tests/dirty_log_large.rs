// SPDX-License-Identifier: GPL-2.0

//! A slot of huge pages is logged in small ones, keeps its memory, and is mapped in large ones again afterwards.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const GPA: u64 = 0x4000_0000;
const SIZE: usize = 3 * LARGE_PAGE;
const PAGES: usize = SIZE / PAGE;

guest!(dirty_log_large, code64, "mov [rbx], rax", "hlt");
guest!(
    dirty_log_large_all,
    code64,
    "2: mov rax, [rbx]",
    "mov [rbx], rax",
    "add rbx, 0x1000",
    "dec r8",
    "jnz 2b",
    "hlt"
);
guest!(
    dirty_log_large_sum,
    code64,
    "xor eax, eax",
    "2: add rax, [rbx]",
    "add rbx, 0x1000",
    "dec r8",
    "jnz 2b",
    "hlt"
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
    let machine = Machine::long(&device, dirty_log_large())?;
    let set = |flags| machine.vm.set_slot(1, flags, GPA, SIZE as u64, memory.address());
    let write = |page: usize, value: u64| {
        machine.load(dirty_log_large());
        machine.change_regs(|regs| {
            (regs.rip, regs.rax) = (layout::CODE as u64, value);
            regs.rbx = GPA + (page * PAGE) as u64;
        })?;
        machine.run()
    };
    let over_all = |code: &[u8]| {
        machine.load(code);
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, GPA, PAGES as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok::<_, Failure>(machine.vcpu.regs()?.rax)
    };
    let sum = || over_all(dirty_log_large_sum());
    let large = || machine.vm.stats().map(|stats| stats.mapped_2m);
    let whole = (PAGES * (PAGES - 1) / 2) as u64;
    // The guest's own memory may be one huge page, too.
    let mut others = 0;
    if device.has_extensions() {
        check_eq!(machine.run()?, Exit::Hlt, "a write to its first page");
        others = large()?;
    }
    for round in 0..3 {
        set(0)?;
        check_eq!(sum()?, whole);
        // Whoever has no such count is KVM.
        if device.has_extensions() {
            check_eq!(large()?, others + 3, "large pages before the log, round {round}");
        }
        set(KVM_MEM_LOG_DIRTY_PAGES)?;
        check_eq!(machine.vm.dirty_pages(1, PAGES)?, [0; 0]);
        check_eq!(sum()?, whole);
        let read = machine.vm.dirty_pages(1, PAGES)?;
        check!(read.is_empty() || !device.has_extensions(), "{read:?} were only read");
        for page in [0, 511, 512, 700] {
            check_eq!(write(page, page as u64)?, Exit::Hlt);
            check_eq!(machine.vm.dirty_pages(1, PAGES)?, [page], "round {round}");
        }
        if device.has_extensions() {
            check_eq!(large()?, others + 1, "large pages that were not written, round {round}");
        }
        check_eq!(write(1, 1)?, Exit::Hlt);
        check_eq!(write(1300, 1300)?, Exit::Hlt);
        check_eq!(machine.vm.dirty_pages(1, PAGES)?, [1, 1300], "round {round}");
        check_eq!(sum()?, whole, "round {round}");
    }
    set(0)?;
    check_eq!(write(5, 5)?, Exit::Hlt);
    check_eq!(sum()?, whole);
    // With every page written, and so mapped for itself, when the log ends.
    set(KVM_MEM_LOG_DIRTY_PAGES)?;
    over_all(dirty_log_large_all())?;
    if device.has_extensions() {
        check_eq!(large()?, others, "large pages while all are logged");
    }
    check_eq!(machine.vm.dirty_pages(1, PAGES)?.len(), PAGES);
    over_all(dirty_log_large_all())?;
    set(0)?;
    check_eq!(sum()?, whole);
    if device.has_extensions() {
        check_eq!(large()?, others + 3, "large pages after the log");
    }
    Ok(())
}

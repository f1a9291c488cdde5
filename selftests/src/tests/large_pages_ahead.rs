// SPDX-License-Identifier: GPL-2.0

//! A fault in a huge page maps those behind it, too: no further than the slot and what the host has as huge
//! pages, and what was mapped so is taken back like everything else.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

guest!(
    large_pages_ahead,
    code64,
    "xor eax, eax",
    "2: add rax, [rbx]",
    "mov [rbx + 8], rbx",
    "add rbx, rdx",
    "dec r8",
    "jnz 2b",
    "hlt",
);

const GPA: u64 = 0x4000_0000;
const LARGE: usize = 7;
const SMALL: usize = LARGE_PAGE / PAGE;
const HUGE_TABLE: u64 = 512;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    for end in [LARGE * SMALL, LARGE * SMALL - 1, 6 * SMALL + 1, 2 * SMALL, 2 * SMALL - 1] {
        if !with_slot_of(&device, end)? {
            skip!("the host gave no huge pages");
        }
    }
    Ok(())
}

/// Sums up a word of each page, `step` pages apart.
fn sweep(machine: &Machine, first: usize, count: usize, step: usize) -> Result<u64, Failure> {
    machine.change_regs(|regs| {
        (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (first * PAGE) as u64);
        (regs.rdx, regs.r8) = ((step * PAGE) as u64, count as u64);
    })?;
    let exit = machine.run()?;
    check_eq!(exit, Exit::Hlt);
    Ok(machine.vcpu.regs()?.rax)
}

fn with_slot_of(device: &Device, end: usize) -> Result<bool, Failure> {
    let machine = Machine::long(device, large_pages_ahead())?;
    let memory = Memory::aligned(LARGE * LARGE_PAGE, LARGE_PAGE)?;
    if memory.advise(0, memory.size(), libc::MADV_HUGEPAGE).is_err() {
        return Ok(false);
    }
    for page in 0..LARGE * SMALL {
        memory.write_u64(page * PAGE, page as u64 + 1);
    }
    if crate::host::huge_bytes(memory.address())? < memory.size() as u64 {
        return Ok(false);
    }
    // The fifth one is small pages in the host by now.
    memory.advise(4 * LARGE_PAGE + 3 * PAGE, PAGE, libc::MADV_DONTNEED)?;
    machine.vm.set_slot(1, 0, GPA, (end * PAGE) as u64, memory.address())?;
    check_eq!(sweep(&machine, 5, 1, 1)?, 6);
    // A fault looks into one of the host's tables of huge pages, which is for 1 GiB.
    let in_table = HUGE_TABLE - memory.address() / LARGE_PAGE as u64 % HUGE_TABLE;
    let large = ((end / SMALL).min(4) as u64).min(in_table);
    if device.has_extensions() {
        let stats = machine.vm.stats()?;
        check!(stats.mapped_2m <= large + 1, "a slot of {end} pages: {stats:?}");
        check!(stats.mapped_2m >= large, "a slot of {end} pages: {stats:?}");
    }
    let expected = |first: usize, last: usize| -> u64 {
        (first..last).filter(|&page| page != 4 * SMALL + 3).map(|page| page as u64 + 1).sum()
    };
    check_eq!(sweep(&machine, 0, end, 1)?, expected(0, end), "a slot of {end} pages");
    // The second one goes as a whole, perhaps before any fault of its own.
    memory.advise(LARGE_PAGE, LARGE_PAGE, libc::MADV_DONTNEED)?;
    let sum = expected(0, SMALL) + expected((2 * SMALL).min(end), end);
    check_eq!(sweep(&machine, 0, end, 1)?, sum, "a slot of {end} pages, without the second large one");
    // What the guest wrote is in the VMM's memory.
    for page in 0..end {
        check_eq!(memory.read_u64(page * PAGE + 8), GPA + (page * PAGE) as u64, "page {page}");
    }
    for page in end..LARGE * SMALL {
        check_eq!(memory.read_u64(page * PAGE + 8), 0, "page {page}, which is not in the slot");
    }
    Ok(true)
}

// SPDX-License-Identifier: GPL-2.0

//! A page that was one of the guest's tables, and has become one of data, is written without an exit for each write.

use crate::emulator;
use crate::machine::*;
use crate::prelude::*;
use crate::rusthv::{PagingStats, VcpuStats, PAGING_NESTED};

pub const TEST: Test = Test::new(30, run);

// Goes over to the root in RBX, and fills the page at RDI with numbers RCX times over. A flush behind each
// write: where guests' tables are compared then, a page that is taken for one is watched again.
guest!(
    tables_become_data_root,
    code64,
    "mov cr3, rbx",
    "2: mov eax, ecx",
    "and eax, 511",
    "mov [rdi + rax * 8], rcx",
    "mov cr3, rbx",
    "loop 2b",
    "hlt",
);

// The same with a table below the root that the guest has taken out first, and without flushes behind.
guest!(
    tables_become_data_table,
    code64,
    "mov eax, [0x40000000]",
    "mov qword ptr [rsi], 0",
    "mov rax, cr3",
    "mov cr3, rax",
    "2: mov eax, ecx",
    "and eax, 511",
    "mov [rdi + rax * 8], rcx",
    "loop 2b",
    // As a page that is copied.
    "mov esi, 0x8000",
    "mov ecx, 512",
    "rep movsq",
    "hlt",
);

/// Writes, twice for each word.
const WRITES: u64 = 1024;
/// Exits that a page which changes its use may cost at most.
const FEW: u64 = 30;
const SECOND_ROOT: usize = layout::DATA;
/// What is mapped at 1 GiB, by the second directory.
const GIB: u64 = 1 << 30;
const SECOND_DIRECTORY: usize = layout::DIRECTORIES + 0x1000;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    if emulator::reads_cr3_unseen(&device)? {
        skip!("the emulator does not look at the intercept of reads of CR3");
    }

    let machine = Machine::long(&device, tables_become_data_root())?;
    machine.memory.write_u64(SECOND_ROOT, layout::PDPT as u64 | PTE_ALL);
    let fill = |page: usize, above: usize| -> Result<(VcpuStats, PagingStats), Failure> {
        machine.change_regs(|regs| {
            (regs.rbx, regs.rcx) = (SECOND_ROOT as u64, WRITES);
            (regs.rdi, regs.rsi) = (page as u64, above as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok((machine.vcpu.stats()?, machine.vm.paging_stats()?))
    };
    let (stats, paging) = fill(layout::PML4, 0)?;
    for index in 0..512 {
        let last = if index == 0 { 512 } else { index as u64 };
        check_eq!(machine.memory.read_u64(layout::PML4 + 8 * index), last, "word {index}");
    }
    check!(stats.page_faults + stats.table_writes < FEW, "{stats:?}, {paging:?}");
    let shadowed = paging.mode != u64::from(PAGING_NESTED);
    check!(paging.released >= u64::from(shadowed), "{paging:?}");
    drop(machine);

    let machine = Machine::long(&device, tables_become_data_table())?;
    let high = Memory::new(0x1000)?;
    machine.vm.map(1, GIB, &high)?;
    machine.change_regs(|regs| {
        (regs.rcx, regs.rdi) = (WRITES, SECOND_DIRECTORY as u64);
        regs.rsi = layout::PDPT as u64 + 8;
    })?;
    check_eq!(machine.run()?, Exit::Hlt);
    let page = |at: usize| machine.memory.read(at, 0x1000);
    check!(page(SECOND_DIRECTORY) == page(layout::CODE), "copied");
    let (stats, paging) = (machine.vcpu.stats()?, machine.vm.paging_stats()?);
    check!(stats.page_faults + stats.table_writes < FEW, "{stats:?}, {paging:?}");
    check!(paging.released >= u64::from(shadowed), "{paging:?}");
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! A CPU that logs writes itself exits for each 512 pages, and for no page; also those of a vCPU that has gone count.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::{VcpuStats, FEAT_PML};

pub const TEST: Test = Test::new(60, run);

const GPA: u64 = 0x40_0000;
const PAGES: usize = 1100;
/// What a log holds.
const ENTRIES: u64 = 512;

guest!(dirty_log_cpu, code64, "2: mov [rbx], r8", "add rbx, 0x1000", "dec r8", "jnz 2b", "hlt",);

fn run(t: &Context) -> Outcome {
    t.nested()?;
    let device = t.rusthv()?;
    if device.info()?.present & FEAT_PML == 0 {
        skip!("the CPU does not log writes");
    }
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, memory.size(), 1);
    let machine = Machine::long(&device, dirty_log_cpu())?;
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, GPA, memory.size() as u64, memory.address())?;
    let write = |first: usize, count: usize| -> Result<VcpuStats, Failure> {
        let before = machine.vcpu.stats()?;
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx) = (layout::CODE as u64, GPA + (first * PAGE) as u64);
            regs.r8 = count as u64;
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        let after = machine.vcpu.stats()?;
        Ok(VcpuStats {
            ept_faults: after.ept_faults - before.ept_faults,
            other: after.other - before.other,
            ..VcpuStats::default()
        })
    };
    let all: Vec<usize> = (0..PAGES).collect();
    // Faults map everything.
    write(0, PAGES)?;
    check_eq!(machine.vm.dirty_pages(1, PAGES)?, all);
    for turn in 0..3 {
        let exits = write(0, PAGES)?;
        check_eq!(exits.ept_faults, 0, "faults on pages that were mapped, turn {turn}");
        let full = PAGES as u64 / ENTRIES;
        check!((full..=full + 1).contains(&exits.other), "full {} times, turn {turn}", exits.other);
        check_eq!(machine.vm.dirty_pages(1, PAGES)?, all, "turn {turn}");
        check_eq!(machine.vm.dirty_pages(1, PAGES)?, [0; 0], "turn {turn}");
        // Again without a look in between: nothing is logged twice.
        write(7, 20)?;
        let exits = write(7, 20)?;
        check_eq!((exits.ept_faults, exits.other), (0, 0));
        check_eq!(machine.vm.dirty_pages(1, PAGES)?, (7..27).collect::<Vec<_>>());
    }
    // What was written before there was a log is not in it.
    write(3, 1)?;
    machine.vm.set_slot(1, 0, GPA, memory.size() as u64, memory.address())?;
    write(5, 1)?;
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, GPA, memory.size() as u64, memory.address())?;
    check_eq!(machine.vm.dirty_pages(1, PAGES)?, [0; 0], "in a log that has just begun");
    // In the log of a vCPU that is no more.
    write(9, 2)?;
    let Machine { vm, vcpu, memory: _own } = machine;
    drop(vcpu);
    check_eq!(vm.dirty_pages(1, PAGES)?, [9, 10], "of a vCPU that has gone");
    Ok(())
}

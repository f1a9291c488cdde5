// SPDX-License-Identifier: GPL-2.0

//! Each way to track writes lists the same pages; faults cost an exit for each, flags and logs cost none.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(60, run);

const GPA: u64 = 0x40_0000;
const PAGES: usize = 300;
const WAYS: [u32; 3] = [RUSTHV_TRACK_FAULTS, RUSTHV_TRACK_FLAGS, RUSTHV_TRACK_LOG];

// Every third page of R8.
guest!(dirty_tracking, code64, "2: mov [rbx], r8", "add rbx, 0x3000", "dec r8", "jnz 2b", "hlt");

fn run(t: &Context) -> Outcome {
    t.nested()?;
    let device = t.rusthv()?;
    let there = device.check_extension(RUSTHV_CAP_DIRTY_TRACKING)?;
    // The best way, and all before it.
    check!([0b1, 0b11, 0b111].contains(&there), "{there:#b}");
    let has = |way: u32| there >> way & 1 != 0;
    check_eq!(has(RUSTHV_TRACK_LOG), device.info()?.present & FEAT_PML != 0);
    arguments(&device, there)?;
    for way in WAYS.into_iter().filter(|way| has(*way)) {
        let vm = device.plain_vm()?;
        check_eq!(vm.enable_cap(RUSTHV_CAP_DIRTY_TRACKING, 0, way.into()), Ok(0));
        writes(&device, vm, way)?;
    }
    // The last one that there is, if nothing is said.
    let best = WAYS.into_iter().filter(|way| has(*way)).max().unwrap_or(0);
    writes(&device, device.plain_vm()?, best)
}

/// What a guest writes is listed; and it exits for each page of it, or for none.
fn writes(device: &Device, vm: Vm, way: u32) -> Outcome {
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, memory.size(), 1);
    let machine = Machine::long_in(device, vm, dirty_tracking())?;
    let vm = &machine.vm;
    vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, GPA, memory.size() as u64, memory.address())?;
    let third: Vec<usize> = (0..PAGES).step_by(3).collect();
    for turn in 0..5 {
        let before = machine.vcpu.stats()?.ept_faults;
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, GPA, third.len() as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        let faults = machine.vcpu.stats()?.ept_faults - before;
        check_eq!(vm.dirty_pages(1, PAGES)?, third, "way {way}, turn {turn}");
        check_eq!(vm.dirty_pages(1, PAGES)?, [0; 0], "way {way}, turn {turn}, again");
        // The first turn maps them.
        let expected = if way == RUSTHV_TRACK_FAULTS { third.len() as u64 } else { 0 };
        check!(turn == 0 || faults == expected, "{faults} faults, way {way}, turn {turn}");
    }
    Ok(())
}

fn arguments(device: &Device, there: i32) -> Outcome {
    let vm = device.plain_vm()?;
    let enable = |args: [u64; 4]| vm.enable_cap_with(RUSTHV_CAP_DIRTY_TRACKING, 0, args);
    for args in [[3, 0, 0, 0], [u64::MAX, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
        check_err!(enable(args), EINVAL, "{args:?}");
    }
    check_err!(vm.enable_cap(RUSTHV_CAP_DIRTY_TRACKING, 1, 0), EINVAL, "flags");
    for way in WAYS {
        match there >> way & 1 {
            0 => check_err!(enable([way.into(), 0, 0, 0]), EOPNOTSUPP, "way {way}"),
            _ => check_eq!(enable([way.into(), 0, 0, 0]), Ok(0), "way {way}"),
        }
    }
    let vcpu = vm.vcpu(0)?;
    check_err!(enable([0; 4]), EBUSY, "there is a vCPU");
    drop(vcpu);
    check_err!(enable([0; 4]), EBUSY, "there was a vCPU");
    let vm = device.plain_vm()?;
    vm.enable_cap(CAP_PAGING, 0, PAGING_SHADOW.into())?;
    check_err!(vm.enable_cap(RUSTHV_CAP_DIRTY_TRACKING, 0, 0), EOPNOTSUPP, "without nested tables");
    Ok(())
}

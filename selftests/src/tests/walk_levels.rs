// SPDX-License-Identifier: GPL-2.0

//! A linear address is followed level by level: the guest's entries as they are in its memory, then the nested or the shadow ones to the host's page.

use crate::device::PAGING;
use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;
use std::sync::atomic::Ordering;

pub const TEST: Test = Test::new(30, run);

guest!(walk_levels, code64, "mov [rbx], rbx", "hlt");

const AT: u64 = 0x1_5678;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let machine = Machine::long(&device, walk_levels())?;
    let table = match PAGING.load(Ordering::Relaxed) {
        PAGING_NESTED => RUSTHV_TABLE_NESTED,
        _ => RUSTHV_TABLE_SHADOW,
    };
    // It has not run yet.
    let walk = machine.vcpu.walk(AT, 0)?;
    check_eq!((walk.result, walk.gpa), (RUSTHV_WALK_NOT_MAPPED, AT), "{walk:x?}");
    machine.change_regs(|regs| regs.rbx = AT)?;
    check_eq!(machine.run()?, Exit::Hlt);
    for access in 0..3 {
        let walk = machine.vcpu.walk(AT, access)?;
        check_eq!((walk.result, walk.gpa), (RUSTHV_WALK_DONE, AT), "{walk:x?}");
        let entries = &walk.entries[..walk.count as usize];
        let (guest, nested): (Vec<WalkEntry>, Vec<WalkEntry>) =
            entries.iter().partition(|entry| entry.table == RUSTHV_TABLE_GUEST);
        check!(nested.iter().all(|entry| entry.table == table), "{walk:x?}");
        check!(guest.len() >= 2 && nested.len() >= 2, "{walk:x?}");
        check!(guest[0].level == 4 && nested[0].level >= 4, "{walk:x?}");
        check!(guest[0].address >> 12 == machine.vcpu.sregs()?.cr3 >> 12, "{walk:x?}");
        for (index, entry) in guest.iter().enumerate() {
            check_eq!(entry.level, 4 - index as u32, "{walk:x?}");
            // Nothing else was written meanwhile.
            check_eq!(entry.entry, machine.memory.read_u64(entry.address as usize), "{walk:x?}");
            if let Some(next) = guest.get(index + 1) {
                check_eq!(next.address >> 12, entry.entry << 12 >> 24, "{walk:x?}");
            }
        }
        for (entry, next) in nested.iter().zip(nested.iter().skip(1)) {
            check_eq!(next.level + 1, entry.level, "{walk:x?}");
            check_eq!(next.address >> 12, entry.entry << 12 >> 24, "{walk:x?}");
        }
        let host = host::physical(machine.memory.address() + AT / PAGE as u64 * PAGE as u64)?;
        check_eq!(walk.hpa, host + AT % PAGE as u64, "{walk:x?}");
        check_eq!(walk.hpa, machine.vm.locate(AT)?.hpa);
    }
    let walk = machine.vcpu.walk(1 << 60, 0)?;
    check_eq!((walk.result, walk.count), (RUSTHV_WALK_NOT_CANONICAL, 0), "{walk:x?}");
    let walk = machine.vcpu.walk(0xffff_8000_0000_0000, 1)?;
    check_eq!((walk.result, walk.error_code), (RUSTHV_WALK_PAGE_FAULT, 2), "{walk:x?}");
    check_eq!((walk.count, walk.entries[0].entry & 1), (1, 0), "{walk:x?}");
    // Memory that the guest has not touched: the guest's tables lead there, the nested ones end.
    let far = machine.memory.size() as u64 - PAGE as u64;
    machine.memory.advise(far as usize, PAGE, libc::MADV_DONTNEED)?;
    let walk = machine.vcpu.walk(far, 0)?;
    check_eq!((walk.result, walk.gpa), (RUSTHV_WALK_NOT_MAPPED, far), "{walk:x?}");
    // Tables where no memory is.
    machine.change_sregs(|sregs| sregs.cr3 = 0x30_0000_0000)?;
    let walk = machine.vcpu.walk(AT, 0)?;
    check_eq!((walk.result, walk.gpa, walk.count), (RUSTHV_WALK_NO_TABLE, 0x30_0000_0000, 0), "{walk:x?}");
    Ok(())
}

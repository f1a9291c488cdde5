// SPDX-License-Identifier: GPL-2.0

//! A large page is one mapping: its owner is found by any of its inner frames, and by the small ones it is cut into.

use crate::host;
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::rusthv::RUSTHV_PAGE_PRIVATE;

pub const TEST: Test = Test::new(30, run);

guest!(frame_owner_large, code64, "2: mov [rbx], rbx", "hlt", "jmp 2b");

const BASE: u64 = 0x4000_0000;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let memory = Memory::aligned(LARGE_PAGE, LARGE_PAGE)?;
    if memory.advise(0, LARGE_PAGE, libc::MADV_HUGEPAGE).is_err() {
        return Err(Failure::Skipped("no transparent huge pages".into()));
    }
    memory.fill(0, LARGE_PAGE, 1);
    if host::huge_bytes(memory.address())? < LARGE_PAGE as u64 {
        return Err(Failure::Skipped("the host gave no huge page".into()));
    }
    let machine = Machine::long(&device, frame_owner_large())?;
    let id = machine.vm.stats()?.id;
    machine.vm.map(1, BASE, &memory)?;
    let touch = |offset: u64| -> Outcome {
        machine.change_regs(|regs| {
            regs.rip = layout::CODE as u64;
            regs.rbx = BASE + offset;
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok(())
    };
    touch(5 * PAGE as u64)?;
    let found = machine.vm.locate(BASE)?;
    check_eq!(found.page_shift, 21, "{found:x?}");
    for inner in [0, 1, 4095, 0x12_3456, LARGE_PAGE as u64 - 1] {
        let frame = device.frame(found.hpa + inner, 0)?;
        check_eq!((frame.count, frame.total), (1, 1), "{inner:#x}: {frame:x?}");
        check_eq!(frame.kind, RUSTHV_PAGE_PRIVATE, "{inner:#x}: {frame:x?}");
        let owner = frame.owners[0];
        check_eq!((owner.vm, owner.gpa, owner.page_shift), (id, BASE + inner, 21), "{inner:#x}");
    }
    // The host cuts it; the guest's next access cuts ours.
    memory.protect(PAGE, PAGE, libc::PROT_READ)?;
    touch(9 * PAGE as u64)?;
    let small = machine.vm.locate(BASE + 9 * PAGE as u64)?;
    check_eq!(small.page_shift, 12, "{small:x?}");
    let frame = device.frame(small.hpa, 0)?;
    check_eq!((frame.count, frame.owners[0].page_shift, frame.owners[0].vm), (1, 12, id), "{frame:x?}");
    check_eq!(frame.owners[0].gpa, BASE + 9 * PAGE as u64);
    Ok(())
}

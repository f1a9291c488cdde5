// SPDX-License-Identifier: GPL-2.0

//! Every frame that a guest has mapped is found with its owner, and is not after it was unmapped.

use crate::device::PAGING;
use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;
use std::sync::atomic::Ordering;

pub const TEST: Test = Test::new(60, run);

guest!(
    frame_owner,
    code64,
    // Writes to RCX pages from RBX on.
    "2: mov [rbx], rbx",
    "add rbx, 0x1000",
    "dec rcx",
    "jnz 2b",
    "hlt",
);

const BASE: u64 = 0x40_0000;
const PAGES: usize = 300;

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    if device.check_extension(RUSTHV_CAP_INVERTED)? == 0 {
        return Err(Failure::Skipped("no inverted page table".into()));
    }
    let machine = Machine::long(&device, frame_owner())?;
    let id = machine.vm.stats()?.id;
    let modes: &[u32] = match PAGING.load(Ordering::Relaxed) {
        PAGING_SHADOW => &[RUSTHV_MODE_SHADOW],
        PAGING_TRAP => &[RUSTHV_MODE_TRAP],
        _ => &[RUSTHV_MODE_EPT, RUSTHV_MODE_NPT],
    };
    let memory = Memory::new(PAGES * PAGE)?;
    // One page at a time, so that the host has no large one.
    memory.advise(0, PAGES * PAGE, libc::MADV_NOHUGEPAGE)?;
    machine.vm.map(1, BASE, &memory)?;
    let at = |page: usize| BASE + (page * PAGE) as u64;
    let before = machine.vm.locate(at(7))?;
    check_eq!((before.page_shift, before.hpa, before.node), (0, 0, -1), "{before:x?}");
    check_eq!(before.hva, memory.address() + 7 * PAGE as u64, "{before:x?}");
    machine.change_regs(|regs| (regs.rbx, regs.rcx) = (BASE, PAGES as u64))?;
    check_eq!(machine.run()?, Exit::Hlt);
    let mut frames = Vec::new();
    for page in 0..PAGES {
        let gpa = at(page) + 0x123;
        let found = machine.vm.locate(gpa)?;
        check_eq!((found.page_shift, found.slot, found.owners), (12, 1, 1), "page {page}: {found:x?}");
        check!(found.flags & RUSTHV_MAP_WRITE != 0 && found.kind == RUSTHV_PAGE_PRIVATE, "{found:x?}");
        let host = host::physical(memory.address() + (page * PAGE) as u64)?;
        check_eq!(found.hpa, host + 0x123, "page {page}, as the host says");
        let frame = device.frame(found.hpa, 0)?;
        check_eq!((frame.total, frame.count), (1, 1), "page {page}: {frame:x?}");
        let owner = frame.owners[0];
        check_eq!((owner.vm, owner.gpa, owner.page_shift), (id, gpa, 12), "page {page}");
        check_eq!((owner.pid, owner.flags), (std::process::id(), found.flags), "page {page}");
        check_eq!((frame.node, frame.kind), (found.node, found.kind), "page {page}");
        check!(owner.mode == found.mode && modes.contains(&owner.mode), "page {page}: {owner:x?}");
        frames.push(found.hpa);
    }
    // Some of them go.
    memory.advise(100 * PAGE, 50 * PAGE, libc::MADV_DONTNEED)?;
    for (page, hpa) in frames.iter().enumerate() {
        let gone = (100..150).contains(&page);
        check_eq!(machine.vm.locate(at(page))?.page_shift, if gone { 0 } else { 12 }, "page {page}");
        let owners = device.frame(*hpa, 0)?;
        let ours = owners.owners[..owners.count as usize].iter().any(|owner| owner.vm == id);
        check_eq!(ours, !gone, "page {page}: {owners:x?}");
    }
    // And the rest.
    machine.vm.set_slot(1, 0, BASE, 0, memory.address())?;
    for (page, hpa) in frames.iter().enumerate() {
        let owners = device.frame(*hpa, 0)?;
        check!(
            owners.owners[..owners.count as usize].iter().all(|owner| owner.vm != id),
            "page {page}: {owners:x?}"
        );
    }
    check_err!(machine.vm.locate(at(0)).map(|_| 0), ENXIO);
    Ok(())
}

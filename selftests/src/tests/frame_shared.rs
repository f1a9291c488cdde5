// SPDX-License-Identifier: GPL-2.0

//! Memory that two VMs share has both as owners, in one process and in two; what they do not share has one.

use crate::debugfs;
use crate::host;
use crate::memory::PAGE;
use crate::prelude::*;
use crate::rusthv::*;

pub const TEST: Test = Test::new(60, run);

guest!(frame_shared, code64, "2: mov [rbx], rbx", "add rbx, 0x1000", "dec rcx", "jnz 2b", "hlt");

const PAGES: usize = 40;
const SHARED: u64 = 0x40_0000;
const OWN: u64 = 0x60_0000;

/// A VM that has written to memory that is shared, and to some that is its own.
fn vm(device: &Device, at: u64, shared: &Memory, own: &Memory) -> Result<Machine, Failure> {
    let machine = Machine::long(device, frame_shared())?;
    machine.vm.map(1, at, shared)?;
    machine.vm.map(2, OWN, own)?;
    for base in [at, OWN] {
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.rcx) = (layout::CODE as u64, base, PAGES as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
    }
    Ok(machine)
}

fn owners_of(device: &Device, machine: &Machine, gpa: u64) -> Result<(Vec<(u64, u64)>, u32), Failure> {
    let frame = device.frame(machine.vm.locate(gpa)?.hpa, 0)?;
    let mut owners: Vec<_> =
        frame.owners[..frame.count as usize].iter().map(|owner| (owner.vm, owner.gpa)).collect();
    owners.sort_unstable();
    Ok((owners, frame.kind))
}

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let shared = Memory::map(PAGES * PAGE, flags, -1)?;
    let own = [Memory::new(PAGES * PAGE)?, Memory::new(PAGES * PAGE)?];
    let first = vm(&device, SHARED, &shared, &own[0])?;
    let second = vm(&device, SHARED + 0x10_0000, &shared, &own[1])?;
    let (one, two) = (first.vm.stats()?.id, second.vm.stats()?.id);
    for page in 0..PAGES as u64 {
        let offset = page * PAGE as u64;
        let (owners, kind) = owners_of(&device, &first, SHARED + offset)?;
        check_eq!(owners, [(one, SHARED + offset), (two, SHARED + 0x10_0000 + offset)], "page {page}");
        check_eq!(kind, RUSTHV_PAGE_SHARED, "page {page}");
        let (owners, kind) = owners_of(&device, &second, OWN + offset)?;
        check_eq!((owners, kind), (vec![(two, OWN + offset)], RUSTHV_PAGE_PRIVATE), "page {page}");
    }
    if t.is_exclusive() {
        let report = debugfs::verify().map_err(Failure::failed)?;
        check_eq!(report["result"], "good", "{report:?}");
        check_eq!(report["shared"], "0", "of one process: {report:?}");
    }
    // Another process with the same memory, and with a copy of ours, which it gets when it writes.
    let answer = host::in_child(|| match in_child(t, &shared, &own[0], one) {
        Ok(()) => Vec::new(),
        Err(failure) => format!("{failure:?}").into_bytes(),
    })?;
    check!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    // Its VM is gone.
    let (owners, _) = owners_of(&device, &first, SHARED)?;
    check_eq!(owners.len(), 2, "{owners:x?}");
    Ok(())
}

fn in_child(t: &Context, shared: &Memory, copied: &Memory, parents: u64) -> Outcome {
    let device = Device::open(t.path())?;
    let machine = vm(&device, SHARED, shared, copied)?;
    let id = machine.vm.stats()?.id;
    let (owners, _) = owners_of(&device, &machine, SHARED)?;
    check_eq!(owners.len(), 3, "{owners:x?}");
    let (owners, kind) = owners_of(&device, &machine, OWN)?;
    check_eq!((owners, kind), (vec![(id, OWN)], RUSTHV_PAGE_PRIVATE));
    if t.is_exclusive() {
        let report = debugfs::verify().map_err(Failure::failed)?;
        check_eq!(report["result"], "good", "{report:?}");
        // Three VMs in two processes have each of the shared pages.
        check_eq!(report["shared"], (3 * PAGES).to_string(), "{report:?}");
    }
    check!(parents != id);
    Ok(())
}

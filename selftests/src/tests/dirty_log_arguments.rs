// SPDX-License-Identifier: GPL-2.0

//! KVM_GET_DIRTY_LOG of wrong slots, of slots without log, read-only, moved and very large ones answers as KVM does.

use crate::compare::{compare, Log};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
const BIG: u64 = 2 << 30;
const GPA: u64 = 0x40_0000;

guest!(dirty_log_arguments, code64, "mov [0x403000], al", "mov al, [0x405000]", "hlt");

fn run(t: &Context) -> Outcome {
    let memory = Memory::new(16 * PAGE)?;
    memory.fill(0, 16 * PAGE, 1);
    let big = Memory::new(BIG as usize)?;
    compare(t, |device, log| scenario(device, log, &memory, &big))?;
    a_bad_buffer(&t.device()?, &memory)
}

fn scenario(device: &Device, log: &mut Log, memory: &Memory, big: &Memory) -> Outcome {
    let machine = Machine::long(device, dirty_log_arguments())?;
    let vm = &machine.vm;
    let (size, hva) = (memory.size() as u64, memory.address());
    let write = || {
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        Ok::<_, Errno>(machine.run()? == Exit::Hlt)
    };
    // No such slot, one without log, numbers that no slot can have.
    for slot in [0, 1, 5, 32_763, 32_764, 40_000, 65_535, 2 << 16, 0x7FFF_0000, u32::MAX] {
        note!(log, "slot {slot}: {:?}", vm.dirty_pages(slot, 512));
    }
    note!(log, "no structure {:?}", vm.ioctl(crate::ioctl::KVM_GET_DIRTY_LOG, 8));
    // Before anything was written, after it, and again.
    note!(log, "set {:?}", vm.set_slot(1, 0, GPA, size, hva));
    note!(log, "written {:?}", write());
    note!(log, "no log {:?}", vm.dirty_pages(1, 16));
    note!(log, "on {:?}", vm.set_slot(1, LOG, GPA, size, hva));
    note!(log, "unchanged {:?}", vm.set_slot(1, LOG, GPA, size, hva));
    note!(log, "clean {:?}", vm.dirty_pages(1, 16));
    note!(log, "no buffer {:?}", vm.dirty_log_to(1, 8));
    for _ in 0..2 {
        note!(log, "written {:?}", write());
        note!(log, "dirty {:?}", vm.dirty_pages(1, 16));
        note!(log, "clean {:?}", vm.dirty_pages(1, 16));
    }
    // Off and on again: nothing is left of the first log.
    note!(log, "written {:?}", write());
    note!(log, "off {:?}", vm.set_slot(1, 0, GPA, size, hva));
    note!(log, "no log {:?}", vm.dirty_pages(1, 16));
    note!(log, "on {:?}", vm.set_slot(1, LOG, GPA, size, hva));
    note!(log, "clean {:?}", vm.dirty_pages(1, 16));
    // Elsewhere, with what was written before; and gone.
    note!(log, "written {:?}", write());
    note!(log, "moved {:?}", vm.set_slot(1, LOG, 2 * GPA, size, hva));
    note!(log, "dirty {:?}", vm.dirty_pages(1, 16));
    note!(log, "moved, no log {:?}", vm.set_slot(1, 0, GPA, size, hva));
    note!(log, "no log {:?}", vm.dirty_pages(1, 16));
    note!(log, "moved, log {:?}", vm.set_slot(1, LOG, 2 * GPA, size, hva));
    note!(log, "clean {:?}", vm.dirty_pages(1, 16));
    note!(log, "moved back {:?}", vm.set_slot(1, LOG, GPA, size, hva));
    note!(log, "written {:?}", write());
    note!(log, "deleted {:?}", vm.set_slot(1, LOG, GPA, 0, hva));
    note!(log, "gone {:?}", vm.dirty_pages(1, 16));
    note!(log, "again {:?}", vm.set_slot(1, LOG, GPA, size, hva));
    note!(log, "clean {:?}", vm.dirty_pages(1, 16));
    // A flag that cannot change, and both together.
    let both = LOG | KVM_MEM_READONLY;
    note!(log, "read-only {:?}", vm.set_slot(1, both, GPA, size, hva));
    note!(log, "deleted {:?}", vm.set_slot(1, 0, GPA, 0, hva));
    note!(log, "read-only {:?}", vm.set_slot(1, both, GPA, size, hva));
    machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
    note!(log, "device {:x?}", machine.run());
    note!(log, "clean {:?}", vm.dirty_pages(1, 16));
    note!(log, "plain {:?}", vm.set_slot(1, KVM_MEM_READONLY, GPA, size, hva));
    note!(log, "no log {:?}", vm.dirty_pages(1, 16));
    note!(log, "deleted {:?}", vm.set_slot(1, 0, GPA, 0, hva));
    // One page more than a slot may have; and far more than is there, written near its end.
    note!(log, "too big {:?}", vm.set_slot(2, LOG, 1 << 32, 1 << 43, hva));
    note!(log, "big {:?}", vm.set_slot(2, LOG, GPA, BIG, big.address()));
    note!(log, "written {:?}", write());
    let pages = (BIG / PAGE as u64) as usize;
    let dirty = vm.dirty_pages(2, pages)?;
    note!(log, "dirty, but for what was read {:?}", dirty.contains(&3));
    note!(log, "clean {:?}", vm.dirty_pages(2, pages));
    note!(log, "deleted {:?}", vm.set_slot(2, 0, 0, 0, 0));
    Ok(())
}

/// What could not be copied stays in the log. KVM's is empty then.
fn a_bad_buffer(device: &Device, memory: &Memory) -> Outcome {
    let machine = Machine::long(device, dirty_log_arguments())?;
    machine.vm.set_slot(1, LOG, GPA, memory.size() as u64, memory.address())?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_err!(machine.vm.dirty_log_to(1, 8), EFAULT);
    if device.has_extensions() {
        check_eq!(
            machine.vm.dirty_pages(1, 16)?,
            [3],
            "the page that was written, not the one that was read"
        );
    }
    machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
    check_eq!(machine.run()?, Exit::Hlt);
    check!(machine.vm.dirty_pages(1, 16)?.contains(&3));
    Ok(())
}

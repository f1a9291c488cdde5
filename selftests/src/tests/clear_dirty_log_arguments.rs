// SPDX-License-Identifier: GPL-2.0

//! KVM_CLEAR_DIRTY_LOG and its capability answer every wrong slot, range, buffer and flag as KVM does.

use crate::compare::{compare, Log};
use crate::ioctl::{KVM_CLEAR_DIRTY_LOG, KVM_ENABLE_CAP};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const LOG: u32 = KVM_MEM_LOG_DIRTY_PAGES;
const GPA: u64 = 0x40_0000;
/// No multiple of the pages in a word.
const PAGES: usize = 200;
const MANUAL: u32 = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;

guest!(clear_dirty_log_arguments, code64, "2: mov [rbx], al", "add rbx, 0x3000", "dec r8", "jnz 2b", "hlt");

fn run(t: &Context) -> Outcome {
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, PAGES * PAGE, 1);
    compare(t, capability)?;
    compare(t, |device, log| ranges(device, log, &memory))?;
    compare(t, |device, log| buffers(device, log, &memory))
}

/// What there is to enable, and with which values.
fn capability(device: &Device, log: &mut Log) -> Outcome {
    let vm = device.vm()?;
    // The older one had bugs of KVM's, and is offered by nobody.
    for capability in [MANUAL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT, KVM_CAP_ENABLE_CAP_VM] {
        let on_vm = vm.ioctl(crate::ioctl::KVM_CHECK_EXTENSION, capability.into());
        note!(log, "capability {capability}: {:?}, {on_vm:?}", device.check_extension(capability));
    }
    for value in (0..8).chain([1 << 32, 1 << 32 | 1, 1 << 63, u64::MAX]) {
        note!(log, "value {value:#x}: {:?}", vm.enable_cap(MANUAL, 0, value));
    }
    for flags in [1, 1 << 31, u32::MAX] {
        note!(log, "flags {flags:#x}: {:?}", vm.enable_cap(MANUAL, flags, 0));
    }
    for capability in [KVM_CAP_MANUAL_DIRTY_LOG_PROTECT, KVM_CAP_USER_MEMORY, 0x7FFF_FFFF, u32::MAX] {
        note!(log, "capability {capability}: {:?}", vm.enable_cap(capability, 0, 1));
    }
    note!(log, "no structure: {:?}", vm.ioctl(KVM_ENABLE_CAP, 8));
    note!(log, "no structure: {:?}", vm.ioctl(KVM_CLEAR_DIRTY_LOG, 8));
    Ok(())
}

fn ranges(device: &Device, log: &mut Log, memory: &Memory) -> Outcome {
    let machine = Machine::long(device, clear_dirty_log_arguments())?;
    let vm = &machine.vm;
    let (size, hva) = (memory.size() as u64, memory.address());
    let all = [!0; 8];
    // No such slot, one without log, numbers that no slot can have; and which mistake comes first.
    vm.set_slot(1, 0, GPA, size, hva)?;
    for slot in [0, 1, 5, 32_763, 32_764, 40_000, 65_535, 2 << 16, 0x7FFF_0000, u32::MAX] {
        note!(log, "slot {slot}: {:?}", vm.clear_log(slot, 0, 64, &all));
        note!(log, "slot {slot}, odd: {:?}", vm.clear_log(slot, 1, 64, &all));
        note!(log, "slot {slot}, far: {:?}", vm.clear_log(slot, 1 << 40, 64, &all));
        note!(log, "slot {slot}, no buffer: {:?}", vm.clear_log_by(slot, 0, 64, 8));
    }
    for manual in [0, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE] {
        note!(log, "manual {:?}", vm.set_manual_log(manual));
        vm.set_slot(1, LOG, GPA, size, hva)?;
        write(&machine, 66)?;
        for first in [0, 1, 32, 63, 64, 128, 192, 193, 200, 256, 1 << 32, 1 << 63, !63, u64::MAX] {
            for pages in [0, 1, 7, 8, 9, 63, 64, 65, 72, 128, 136, 192, 199, 200, 201, 256, u32::MAX] {
                // Nothing that could be cleared, where the call works.
                let none = [0u64; 8];
                let cleared = vm.clear_log_by(1, first, pages, none.as_ptr() as u64);
                note!(log, "{pages} from {first}: {cleared:?}");
            }
        }
        let mut seen = Vec::new();
        seen.push(vm.dirty_pages(1, PAGES)?);
        // One page, one word, all but what is behind the slot, and what is clean already.
        vm.clear_log(1, 0, PAGES as u32, &[1 << 3, 0, 0, 0])?;
        seen.push(vm.dirty_pages(1, PAGES)?);
        vm.clear_log(1, 64, 64, &[!0])?;
        seen.push(vm.dirty_pages(1, PAGES)?);
        vm.clear_log(1, 192, 8, &[!0])?;
        vm.clear_log(1, 0, 128, &[1 << 3 | 1 << 9, !0])?;
        seen.push(vm.dirty_pages(1, PAGES)?);
        note!(log, "seen {seen:?}");
        write(&machine, 66)?;
        note!(log, "again {:?}", vm.dirty_pages(1, PAGES));
        vm.set_slot(1, 0, GPA, size, hva)?;
    }
    // Of a slot that is gone, and of one that is back with a new log.
    vm.set_slot(1, LOG, GPA, size, hva)?;
    write(&machine, 3)?;
    vm.set_slot(1, 0, 0, 0, 0)?;
    note!(log, "gone {:?}", vm.clear_log(1, 0, PAGES as u32, &all));
    vm.set_slot(1, LOG, GPA, size, hva)?;
    note!(log, "back {:?}, {:?}", vm.clear_log(1, 0, PAGES as u32, &all), vm.dirty_pages(1, PAGES));
    Ok(())
}

/// What cannot be read clears nothing, however much of it can.
fn buffers(device: &Device, log: &mut Log, memory: &Memory) -> Outcome {
    let machine = Machine::long(device, clear_dirty_log_arguments())?;
    let vm = &machine.vm;
    vm.set_manual_log(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE)?;
    vm.set_slot(1, LOG, GPA, memory.size() as u64, memory.address())?;
    write(&machine, 66)?;
    let buffer = Memory::new(2 * PAGE)?;
    buffer.fill(0, PAGE, 0xFF);
    buffer.protect(PAGE, PAGE, libc::PROT_NONE)?;
    let end = buffer.address() + PAGE as u64;
    for address in [0, 8, end - 24, end - 25, end - 8, end - 1, end, 1 << 63, !7, u64::MAX] {
        note!(log, "cut off {:?}", vm.clear_log_by(1, 0, PAGES as u32, address));
        note!(log, "as before {:?}", vm.dirty_pages(1, PAGES));
    }
    note!(log, "nothing to read {:?}", vm.clear_log_by(1, 0, 0, 8));
    note!(log, "just fits {:?}", vm.clear_log_by(1, 0, PAGES as u32, end - 32));
    note!(log, "clean {:?}", vm.dirty_pages(1, PAGES));
    Ok(())
}

/// Writes to every third page, so many of them.
fn write(machine: &Machine, count: u64) -> Outcome {
    machine.change_regs(|regs| {
        (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, GPA, count);
    })?;
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}

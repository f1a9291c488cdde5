// SPDX-License-Identifier: GPL-2.0

//! The same writes, readings, clearings, toggles and moves of a logged slot give the same bitmaps as on KVM.

use crate::compare::{compare, Log};
use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(120, run);

/// No multiple of the pages in a word.
const PAGES: usize = 200;
const PLACES: [u64; 3] = [0x40_0000, 0x60_0000, 0x81_3000];
const SLOT: u32 = 3;

guest!(compare_dirty_log, code64, "2: mov [rbx], al", "add rbx, rdx", "dec r8", "jnz 2b", "hlt");
// Stores by whoever emulates them: from a device into memory.
guest!(compare_dirty_log_movs, code64, "movsq", "hlt");
guest!(compare_dirty_log_ins, code64, "mov edx, 0x10", "rep insb", "hlt");

fn run(t: &Context) -> Outcome {
    let count = t.repetitions(1500);
    compare(t, |device, log| scenario(device, log, count))
}

fn scenario(device: &Device, log: &mut Log, count: u64) -> Outcome {
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, PAGES * PAGE, 1);
    let machine = Machine::long(device, compare_dirty_log())?;
    let mut random = Random::new(23);
    let (mut place, mut flags, mut there) = (0, 0, false);
    for step in 0..count {
        match random.below(12) {
            // As it is, elsewhere, or with the other flag. A slot that is moved keeps its log.
            0 => {
                place = random.below(3) as usize;
                note!(log, "{step} at {place}: {:?}", set(&machine, flags, place, &memory));
                there = true;
            }
            1 => {
                flags = random.pick(&[0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_LOG_DIRTY_PAGES]);
                note!(log, "{step} flags {flags}: {:?}", set(&machine, flags, place, &memory));
                there = true;
            }
            2 if random.one_in(4) => {
                note!(log, "{step} gone: {:?}", machine.vm.set_slot(SLOT, 0, 0, 0, 0));
                there = false;
            }
            // Who clears the log, and what a new one begins with.
            3 if random.one_in(6) => {
                let manual = random.pick(&[0, 1, 1, 2, 3, 3, 4]);
                note!(log, "{step} manual {manual}: {:?}", machine.vm.set_manual_log(manual));
            }
            4 => clear(&machine, &mut random, log, step),
            2..=5 => note!(log, "{step} log: {:?}", machine.vm.dirty_pages(SLOT, PAGES)),
            kind if there => write(&machine, &mut random, PLACES[place], kind)?,
            _ => {}
        }
    }
    Ok(())
}

fn set(machine: &Machine, flags: u32, place: usize, memory: &Memory) -> Result<i32, Errno> {
    machine.vm.set_slot(SLOT, flags, PLACES[place], memory.size() as u64, memory.address())
}

/// Some pages or all, mostly as many as there may be.
fn clear(machine: &Machine, random: &mut Random, log: &mut Log, step: u64) {
    let first = 64 * random.below(4);
    let left = PAGES as u64 - first;
    let pages = match random.below(6) {
        0 => random.below(PAGES as u64 + 64),
        1 => 64.min(left),
        _ => left,
    };
    let words = [0; 5].map(|_: u64| match random.below(3) {
        0 => random.word(),
        1 => random.word() & random.word(),
        _ => !0,
    });
    let cleared = machine.vm.clear_log(SLOT, first, pages as u32, &words);
    note!(log, "{step} clear {pages} from {first}: {cleared:?}");
}

fn write(machine: &Machine, random: &mut Random, base: u64, kind: u64) -> Outcome {
    let page = random.below(PAGES as u64);
    // Also across the end of a page; a store that leaves the slot would be a device's.
    let offset = page * PAGE as u64 + random.pick(&[0, 8, 0xFF8, 0xFFC]);
    let offset = offset.min((PAGES * PAGE) as u64 - 8);
    let start = |code: &[u8], change: &dyn Fn(&mut kvm_regs)| {
        machine.load(code);
        machine.change_regs(|regs| {
            regs.rip = layout::CODE as u64;
            (regs.rsi, regs.rdi, regs.rcx) = (layout::MMIO, base + offset, 6);
            change(regs);
        })
    };
    match kind {
        6 => start(compare_dirty_log_movs(), &|_| ())?,
        7 => start(compare_dirty_log_ins(), &|_| ())?,
        _ => {
            let stride = 1 + random.below(70);
            let count = 1 + random.below((PAGES as u64 - page).div_ceil(stride));
            start(compare_dirty_log(), &|regs| {
                regs.rbx = base + page * PAGE as u64;
                (regs.rdx, regs.r8) = (stride * PAGE as u64, count);
            })?;
        }
    }
    loop {
        match machine.run()? {
            Exit::Hlt => return Ok(()),
            Exit::MmioRead { length, .. } => machine.vcpu.answer_mmio(&vec![7; length]),
            Exit::Io { data, .. } => machine.vcpu.answer_io(&vec![9; data.len()]),
            other => fail!("write {kind} at {offset:#x}: {other:x?}"),
        }
    }
}

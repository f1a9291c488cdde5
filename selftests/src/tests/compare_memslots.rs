// SPDX-License-Identifier: GPL-2.0

//! Random changes of memory slots, good and bad ones, get the same answers as from KVM.

use crate::compare::{compare, Log};
use crate::memory::PAGE;
use crate::prelude::*;
use crate::random::Random;

pub const TEST: Test = Test::new(60, run);

fn run(t: &Context) -> Outcome {
    let count = t.repetitions(3000);
    // Both must see the same host addresses.
    let memory = Memory::new(64 * PAGE)?;
    compare(t, |device, log| scenario(device, log, &memory, count))
}

fn scenario(device: &Device, log: &mut Log, memory: &Memory, count: u64) -> Outcome {
    let vm = device.vm()?;
    let mut random = Random::new(11);
    let page = PAGE as u64;
    for _ in 0..count {
        // Few slots and few places, so that they meet.
        // Slot ids of the first address space alone: KVM has a second one for SMM, rusthv has not.
        let slot =
            if random.one_in(20) { 40_000 + random.below(25_000) as u32 } else { random.below(8) as u32 };
        let flags = if random.one_in(20) { 1 << (4 + random.below(28)) } else { 0 };
        let mut gpa = random.below(48) * page;
        let mut size = random.pick(&[0, 0, 1, 1, 2, 4, 8, 16]) * page;
        let mut hva = memory.address() + random.below(3) * 16 * page;
        match random.below(25) {
            0 => gpa += 1 << random.below(12),
            1 => size += 1 << random.below(12),
            2 => hva += 1 << random.below(12),
            3 => gpa = 0u64.wrapping_sub((1 + random.below(4)) * page),
            4 => hva = 0u64.wrapping_sub((1 + random.below(4)) * page),
            5 => gpa = 1 << (52 + random.below(12)),
            6 => size = 1 << (43 + random.below(21)),
            _ => {}
        }
        note!(
            log,
            "slot {slot} flags {flags:#x} {gpa:#x}+{size:#x} at {hva:#x}: {:?}",
            vm.set_slot(slot, flags, gpa, size, hva)
        );
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0
//! What entries say and what the processor makes of it: accessed and dirty bits, rights of
//! processes and of the kernel, and the error code of each fault. Accessed bits are only expected
//! where there must be one: a processor may set them ahead of time, but never dirty bits.

use minikernel_abi::call::{feature, parameter, probe, prot, NONE};
use minikernel_abi::KERNEL;

use crate::calls::{self, expect, kernel_touches, touch};
use crate::entry::{error, ACCESSED, DIRTY, PRESENT, USER, WRITE};
use crate::memory::{Memory, PAGE};
use crate::random::{mix, Sum};
use crate::{code, scaled, seed};

/// The page is present, the access not allowed.
const REFUSED: usize = error::PRESENT | error::USER;
const KERNEL_REFUSED: usize = error::PRESENT;

fn bits(address: usize, mask: u64) -> usize {
    (calls::entry(address, 0) & mask) as usize
}

fn accessed_and_dirty(seed: u32) -> u64 {
    let mut sum = Sum::default();
    let memory = Memory::new(4, 0);
    let both = ACCESSED | DIRTY;
    let used = |page| bits(page, both);
    for page in (memory.start..memory.start + memory.size).step_by(PAGE) {
        expect(bits(page, PRESENT), 0);
        // A read, and it is there.
        expect(touch(page, probe::READ), NONE);
        expect(bits(page, PRESENT | WRITE | USER), (PRESENT | WRITE | USER) as usize);
        expect(used(page), ACCESSED as usize);
        // On the way down, tables are accessed as well. (The root of PAE knows no such bit.)
        for level in 1..calls::parameter(parameter::LEVELS).min(4) {
            if calls::parameter(parameter::LEVELS) != 3 || level != 2 {
                expect((calls::entry(page, level) & ACCESSED) as usize, ACCESSED as usize);
            }
        }
        for turn in 0..8 {
            // Whatever is cleared comes back with the next access that needs it.
            let dice = mix(seed ^ page as u32 ^ turn);
            calls::clear(page, both);
            expect(bits(page, DIRTY), 0);
            expect(touch(page, probe::READ), NONE);
            expect(used(page), ACCESSED as usize);
            match dice % 3 {
                0 => expect(touch(page, probe::WRITE), NONE),
                1 => expect(kernel_touches(page, probe::WRITE | probe::AC), NONE),
                _ => {
                    calls::clear(page, ACCESSED);
                    expect(touch(page + dice as usize % PAGE, probe::WRITE), NONE);
                }
            }
            expect(used(page), both as usize);
            calls::clear(page, DIRTY);
            expect(bits(page, DIRTY), 0);
            expect(touch(page, probe::READ), NONE);
            expect(bits(page, DIRTY), 0);
            sum.add(dice);
        }
    }
    memory.unmap();
    sum.0
}

fn rights_of_processes() {
    let memory = Memory::new(1, 0);
    let page = memory.start;
    expect(touch(page, probe::WRITE), NONE);
    calls::protect(page, PAGE, 0);
    expect(touch(page, probe::READ), NONE);
    expect(touch(page, probe::WRITE), REFUSED | error::WRITE);
    calls::protect(page, PAGE, prot::WRITE | prot::SUPERVISOR);
    expect(touch(page, probe::READ), REFUSED);
    expect(touch(page, probe::WRITE), REFUSED | error::WRITE);
    expect(kernel_touches(page, probe::READ), NONE);
    expect(kernel_touches(page, probe::WRITE), NONE);
    calls::protect(page, PAGE, prot::WRITE);
    expect(touch(page, probe::WRITE), NONE);
    memory.unmap();
    expect(touch(page, probe::READ), error::USER);
    expect(touch(page, probe::WRITE), error::USER | error::WRITE);

    // The kernel's code is there, as far as the error code tells.
    expect(touch(KERNEL as usize, probe::READ), REFUSED);
    expect(touch(KERNEL as usize, probe::WRITE), REFUSED | error::WRITE);
}

fn execution() {
    let fetch = if calls::has(feature::NX) || calls::has(feature::SMEP) { error::FETCH } else { 0 };
    let not_executable = if calls::has(feature::NX) { REFUSED | error::FETCH } else { NONE };
    let memory = Memory::new(1, 0);
    let page = memory.start;
    code::write_back(page);
    expect(touch(page, probe::EXECUTE), not_executable);
    for _ in 0..2 {
        calls::protect(page, PAGE, prot::EXECUTE);
        expect(touch(page, probe::EXECUTE), NONE);
        calls::protect(page, PAGE, prot::WRITE);
        expect(touch(page, probe::EXECUTE), not_executable);
    }
    // Kernels do not run their processes' code, where SMEP sees to that.
    calls::protect(page, PAGE, prot::EXECUTE);
    let smep = if calls::has(feature::SMEP) { KERNEL_REFUSED | error::FETCH } else { NONE };
    expect(kernel_touches(page, probe::EXECUTE), smep);
    calls::protect(page, PAGE, prot::EXECUTE | prot::SUPERVISOR);
    expect(kernel_touches(page, probe::EXECUTE), NONE);
    expect(touch(page, probe::EXECUTE), REFUSED | fetch);
    memory.unmap();
    expect(touch(page, probe::EXECUTE), error::USER | fetch);
}

fn rights_of_the_kernel() {
    let memory = Memory::new(1, 0);
    let page = memory.start;
    expect(touch(page, probe::WRITE), NONE);
    let smap = if calls::has(feature::SMAP) { KERNEL_REFUSED } else { NONE };
    let smap_write = if calls::has(feature::SMAP) { KERNEL_REFUSED | error::WRITE } else { NONE };
    expect(kernel_touches(page, probe::READ), smap);
    expect(kernel_touches(page, probe::WRITE), smap_write);
    expect(kernel_touches(page, probe::READ | probe::AC), NONE);
    expect(kernel_touches(page, probe::WRITE | probe::AC), NONE);
    // Read-only is so for the kernel too, with CR0.WP: its processes' memory, and its own code.
    calls::protect(page, PAGE, 0);
    expect(kernel_touches(page, probe::READ | probe::AC), NONE);
    expect(kernel_touches(page, probe::WRITE | probe::AC), KERNEL_REFUSED | error::WRITE);
    expect(kernel_touches(KERNEL as usize, probe::READ), NONE);
    expect(kernel_touches(KERNEL as usize, probe::WRITE), KERNEL_REFUSED | error::WRITE);
    memory.unmap();
    expect(kernel_touches(page, probe::READ), 0);
    expect(kernel_touches(page, probe::WRITE | probe::AC), error::WRITE);
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    for round in 0..scaled(10) as u32 {
        sum.add(accessed_and_dirty(seed() + round));
        rights_of_processes();
        execution();
        rights_of_the_kernel();
    }
    sum.0
}

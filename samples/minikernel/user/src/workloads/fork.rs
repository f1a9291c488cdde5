// SPDX-License-Identifier: GPL-2.0
//! A family of processes, each of which changes some pages of what it got from its parent: copying
//! on the first write, with both sides writing at the same time. Process 1 has the children 2 and 3,
//! and those have 4 to 7; what a process has to find on a page follows from its ancestors.

use crate::calls;
use crate::memory::{Memory, WORDS};
use crate::random::{mix, word, Sum};
use crate::{scaled, seed};

const GENERATIONS: u32 = 3;
/// Words that are looked at on each page.
const STEP: usize = WORDS / 4;

/// Whether a process writes to a page before it has children. The first one writes to all.
fn writes(process: u32, page: usize) -> bool {
    process == 1 || mix(process << 16 ^ page as u32) % 3 == 0
}

/// Whether it does so once more while its children run.
fn writes_again(process: u32, page: usize) -> bool {
    mix(process << 16 ^ page as u32) % 4 == 1
}

/// Who was the last to write to a page that a process inherits or has changed itself.
fn writer(process: u32, page: usize) -> u32 {
    let mut process = process;
    while !writes(process, page) {
        process /= 2;
    }
    process
}

fn check(memory: &Memory, sum: &mut Sum, content: impl Fn(usize) -> u32) {
    for place in (0..memory.words()).step_by(STEP) {
        sum.add(memory.check(place, word(content(place / WORDS), place as u32)));
    }
}

fn write(memory: &Memory, content: u32, pages: impl Fn(usize) -> bool) {
    for place in (0..memory.words()).step_by(STEP).filter(|place| pages(place / WORDS)) {
        memory.write(place, word(content, place as u32));
    }
}

fn live(memory: Memory, seed: u32, process: u32) -> u64 {
    let mut sum = Sum::default();
    // Of content: a process's first, and its second.
    let first = |process: u32| seed.wrapping_add(2 * process);
    let second = first(process) + 1;

    if process != 1 {
        check(&memory, &mut sum, |page| first(writer(process / 2, page)));
    }
    write(&memory, first(process), |page| writes(process, page));
    check(&memory, &mut sum, |page| first(writer(process, page)));
    if process >> (GENERATIONS - 1) == 0 {
        let children = [0, 1].map(|i| calls::fork(|| live(memory, seed, 2 * process + i)));
        write(&memory, second, |page| writes_again(process, page));
        calls::pause();
        check(&memory, &mut sum, |page| match writes_again(process, page) {
            true => second,
            false => first(writer(process, page)),
        });
        children.iter().for_each(|child| sum.add(calls::wait(*child)));
    }
    sum.0
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    // The second time with frames that have all been used before: a hypervisor has nothing to do
    // for new ones, and no occasion to flush what the guest should have flushed.
    for round in 0..2 {
        let memory = Memory::new(scaled(128), 0);
        sum.add(live(memory, seed() + 1000 * round, 1));
        memory.unmap();
    }
    sum.0
}

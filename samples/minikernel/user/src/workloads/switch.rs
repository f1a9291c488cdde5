// SPDX-License-Identifier: GPL-2.0
//! Processes that take turns all the time, with different memory at the same addresses. Whatever a
//! switch leaves in a TLB or in cached tables that belongs to somebody else is read here.

use minikernel_abi::call::prot;

use crate::calls;
use crate::memory::{atomic, Memory, PAGE, WORDS};
use crate::random::{word, Sum};
use crate::{scaled, seed};

use core::sync::atomic::Ordering;

const PROCESSES: u32 = 8;
const PAGES: usize = 6;

fn live(memory: Memory, shared: Memory, seed: u32, own: u32, rounds: u32) -> u64 {
    let mut sum = Sum::default();
    // Which content is where.
    let mut order: [u32; PAGES] = core::array::from_fn(|page| page as u32);
    for round in 1..=rounds {
        for (page, owner) in order.iter().enumerate() {
            let place = page * WORDS + own as usize;
            let content = |round| word(seed + own, PAGES as u32 * round + owner);
            let before = if round == 1 { 0 } else { content(round - 1) };
            sum.add(memory.check(place, before));
            memory.write(place, content(round));
            // Nobody else writes here, wherever it is.
            let other = page * WORDS + (own as usize + 1) % PROCESSES as usize;
            memory.check(other, 0);
        }
        // Everybody writes here.
        atomic(shared.start).fetch_add(own + 1, Ordering::Relaxed);
        calls::pause();
        // Most likely on another vCPU than before; and there again the next time.
        let (one, other) = (round as usize % PAGES, (round as usize + 1) % PAGES);
        calls::exchange(memory.start + one * PAGE, memory.start + other * PAGE);
        order.swap(one, other);
    }
    sum.0
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    let (seed, rounds) = (seed(), scaled(500) as u32);
    let memory = Memory::new(PAGES, 0);
    let shared = Memory::new(1, prot::SHARED);
    // Pages that are there before the fork are copied, the others are made new.
    (0..PAGES / 2).for_each(|page| memory.write(page * WORDS + WORDS - 1, 1));

    let mut children = [0; PROCESSES as usize];
    for own in 0..PROCESSES {
        children[own as usize] = calls::fork(|| live(memory, shared, seed, own, rounds));
    }
    children.iter().for_each(|child| sum.add(calls::wait(*child)));
    sum.add(shared.check(0, rounds * PROCESSES * (PROCESSES + 1) / 2));
    // What the children have written is not here.
    for place in (0..PAGES).flat_map(|page| (0..PROCESSES as usize).map(move |i| page * WORDS + i)) {
        memory.check(place, 0);
    }
    memory.unmap();
    shared.unmap();
    sum.0
}

// SPDX-License-Identifier: GPL-2.0
//! Touch much memory in order: what the first access to each page costs, and then nothing more.
//! Every page is read before it is written, since new memory has to be zero.

use crate::memory::{Memory, WORDS};
use crate::random::{word, Sum};
use crate::{scaled, seed};

pub fn run() -> u64 {
    let mut sum = Sum::default();
    let seed = seed();
    let memory = Memory::new(scaled(1024), 0);
    for round in 0..2 {
        for place in (0..memory.words()).step_by(WORDS / 16) {
            let before = match round {
                0 => 0,
                _ => word(seed + round - 1, place as u32),
            };
            memory.check(place, before);
            memory.write(place, word(seed + round, place as u32));
        }
    }
    for place in (0..memory.words()).step_by(WORDS / 16) {
        sum.add(memory.check(place, word(seed + 1, place as u32)));
    }
    memory.unmap();
    sum.0
}

// SPDX-License-Identifier: GPL-2.0
//! Touch memory here and there, more of it than a TLB covers: nearly every access walks the tables.
//! A word's content follows from how often it has been written, which is kept elsewhere.

use crate::memory::{Memory, WORDS};
use crate::random::{mix, word, Sum};
use crate::{scaled, seed};

/// Few words of each page are used, so that the same ones come again.
const USED: usize = 4;

pub fn run() -> u64 {
    let mut sum = Sum::default();
    let seed = seed();
    let memory = Memory::new(scaled(1024), 0);
    let words = USED * memory.words() / WORDS;
    let times = Memory::new(words.div_ceil(WORDS), 0);
    let place = |which: usize| which / USED * WORDS + which % USED * (WORDS / USED);
    let content = |which, times| match times {
        0 => 0,
        _ => word(seed + times, which as u32),
    };

    for turn in 0..scaled(20_000) as u32 {
        let dice = mix(seed ^ turn);
        let which = dice as usize % words;
        let written = times.read(which);
        sum.add(memory.check(place(which), content(which, written)));
        if dice >> 30 != 0 {
            memory.write(place(which), content(which, written + 1));
            times.write(which, written + 1);
        }
    }
    for which in 0..words {
        sum.add(memory.check(place(which), content(which, times.read(which))));
    }
    memory.unmap();
    times.unmap();
    sum.0
}

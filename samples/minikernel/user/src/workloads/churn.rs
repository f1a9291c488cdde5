// SPDX-License-Identifier: GPL-2.0
//! Map, use, change and unmap, over and over at the same addresses: what was there before must be
//! gone, from memory and from every TLB.

use minikernel_abi::call::{probe, prot, NONE};

use crate::calls;
use crate::entry::error;
use crate::memory::{Memory, PAGE, WORDS};
use crate::random::{mix, word, Sum};
use crate::{scaled, seed};

const MAPPINGS: usize = 12;
const MAX_PAGES: usize = 40;

/// A mapping, and what identifies its content.
struct Used {
    memory: Memory,
    who: u32,
}

impl Used {
    /// Maps some pages. New memory is zero, whoever had it before.
    fn new(pages: usize, who: u32, sum: &mut Sum) -> Self {
        let used = Self { memory: Memory::new(pages, 0), who };
        for place in used.places() {
            sum.add(used.memory.check(place, 0));
            used.memory.write(place, used.content(place));
        }
        used
    }

    /// The words that are looked at: one on each page.
    fn places(&self) -> impl Iterator<Item = usize> {
        (self.who as usize % WORDS..self.memory.words()).step_by(WORDS)
    }

    /// Goes by the address, so that it stays when the start of the mapping goes away.
    fn content(&self, place: usize) -> u32 {
        word(self.who, self.memory.address(place) as u32)
    }

    fn check(&self, sum: &mut Sum) {
        self.places().for_each(|place| sum.add(self.memory.check(place, self.content(place))));
    }

    /// Nothing can be written for a while.
    fn protect(self, sum: &mut Sum) -> Option<Self> {
        let Memory { start, size } = self.memory;
        calls::protect(start, size, 0);
        let refused = error::PRESENT | error::WRITE | error::USER;
        calls::expect(calls::touch(start, probe::WRITE), refused);
        calls::expect(calls::touch(start + size - PAGE, probe::WRITE), refused);
        self.check(sum);
        calls::protect(start, size, prot::WRITE);
        calls::expect(calls::touch(start, probe::WRITE), NONE);
        Some(self)
    }

    /// Unmaps some pages at the start, or all.
    fn shorten(self, pages: usize) -> Option<Self> {
        let Memory { start, size } = self.memory;
        let gone = size.min(pages * PAGE);
        calls::unmap(start, gone);
        for page in (start..start + gone).step_by(PAGE) {
            calls::expect(calls::touch(page, probe::READ), error::USER);
        }
        let memory = Memory { start: start + gone, size: size - gone };
        (memory.size != 0).then_some(Self { memory, ..self })
    }
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    let seed = seed();
    let mut mappings = [const { None::<Used> }; MAPPINGS];
    for turn in 0..scaled(600) as u32 {
        let dice = mix(seed ^ turn << 8);
        let pages = 1 + dice as usize / 64 % MAX_PAGES;
        let mapping = &mut mappings[dice as usize % MAPPINGS];
        *mapping = match mapping.take() {
            None => Some(Used::new(pages, dice, &mut sum)),
            Some(used) => {
                used.check(&mut sum);
                if dice >> 30 == 0 {
                    used.protect(&mut sum)
                } else {
                    used.shorten(pages)
                }
            }
        };
    }
    mappings.into_iter().flatten().for_each(|used| used.memory.unmap());
    sum.0
}

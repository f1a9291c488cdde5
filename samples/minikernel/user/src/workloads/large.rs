// SPDX-License-Identifier: GPL-2.0
//! Large pages: mapped, shared by a fork, and broken up by whatever needs a small page: a copy on
//! write, other rights, an unmapped part.

use minikernel_abi::call::{parameter, probe, prot, NONE};

use crate::calls;
use crate::entry::{error, DIRTY, LARGE};
use crate::memory::{Memory, PAGE, WORDS};
use crate::random::{mix, word, Sum};
use crate::seed;

fn check(memory: &Memory, sum: &mut Sum, pages: impl Iterator<Item = usize>, content: impl Fn(usize) -> u32) {
    for place in pages.map(|page| page * WORDS + page % WORDS) {
        sum.add(memory.check(place, word(content(place / WORDS), place as u32)));
    }
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    let seed = seed();
    let large = calls::parameter(parameter::LARGE);
    let memory = Memory::new(2 * large / PAGE, prot::LARGE);
    let pages = memory.size / PAGE;
    let page = |number: usize| memory.start + number * PAGE;
    let is_large = |number| calls::entry(page(number), 1) & LARGE != 0;
    let write = |number: usize, who| {
        let place = number * WORDS + number % WORDS;
        memory.write(place, word(who, place as u32));
    };

    // Dirty is the large page that was written to, and not its neighbour.
    sum.add(memory.check(0, 0));
    calls::expect((calls::entry(page(0), 1) & DIRTY) as usize, 0);
    (0..pages / 2).for_each(|number| write(number, seed));
    calls::expect((calls::entry(page(0), 1) & DIRTY) as usize, DIRTY as usize);
    calls::expect((calls::entry(page(pages / 2), 1) & DIRTY) as usize, 0);
    (pages / 2..pages).for_each(|number| write(number, seed));
    check(&memory, &mut sum, 0..pages, |_| seed);
    calls::ensure(is_large(0) && is_large(pages / 2));

    // A child breaks up the first one by writing here and there; for the parent it stays whole.
    let changed = |number: usize| mix(number as u32) % 16 == 0 && number < pages / 2;
    let child = calls::fork(|| {
        let mut sum = Sum::default();
        check(&memory, &mut sum, 0..pages, |_| seed);
        (0..pages).filter(|number| changed(*number)).for_each(|number| write(number, seed + 1));
        check(&memory, &mut sum, 0..pages, |number| seed + u32::from(changed(number)));
        calls::ensure(!is_large(0) && is_large(pages / 2));
        sum.0
    });
    sum.add(calls::wait(child));
    check(&memory, &mut sum, 0..pages, |_| seed);
    calls::ensure(is_large(0));

    // Now the parent writes, with nobody left to share with.
    write(3, seed + 2);
    calls::ensure(!is_large(0));
    check(&memory, &mut sum, 0..pages, |number| seed + if number == 3 { 2 } else { 0 });

    // Other rights for one page in the middle of the second.
    let middle = pages * 3 / 4;
    calls::protect(page(middle), PAGE, 0);
    calls::ensure(!is_large(middle));
    let refused = error::PRESENT | error::WRITE | error::USER;
    calls::expect(calls::touch(page(middle), probe::WRITE), refused);
    calls::expect(calls::touch(page(middle - 1), probe::WRITE), NONE);
    calls::expect(calls::touch(page(middle + 1), probe::WRITE), NONE);

    // All but the first and the last quarter goes away.
    let quarter = pages / 4;
    calls::unmap(page(quarter), 2 * quarter * PAGE);
    calls::expect(calls::touch(page(quarter), probe::READ), error::USER);
    calls::expect(calls::touch(page(middle - 1), probe::READ), error::USER);
    let left = (0..quarter).chain(middle..pages);
    check(&memory, &mut sum, left, |number| seed + if number == 3 { 2 } else { 0 });
    calls::unmap(memory.start, quarter * PAGE);
    calls::unmap(page(middle), quarter * PAGE);
    sum.0
}

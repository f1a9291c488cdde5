// SPDX-License-Identifier: GPL-2.0
//! A process that changes its own page tables while it runs on them: a window shows it the table
//! that maps its pages, itself in the end among them. It flushes what it changes, and has to find
//! exactly what it has written, as data and as code.

use minikernel_abi::call::{parameter, probe, prot, NONE};

use crate::calls::{self, expect, touch};
use crate::entry::{error, ACCESSED, DIRTY, USER, WRITE};
use crate::memory::{Memory, PAGE, WORDS};
use crate::random::{mix, word, Sum};
use crate::{code, scaled, seed};

const PAGES: usize = 16;

/// A page table as its process sees it. All frames lie below 4 GiB and all entries here have the
/// same upper halves, so the lower ones are enough.
struct Table {
    memory: Memory,
    /// 32-bit words of an entry.
    width: usize,
}

impl Table {
    /// The one for these pages, shown in a page of its own.
    fn of(pages: &Memory) -> Self {
        let memory = Memory::new(1, 0);
        memory.write(0, 0);
        calls::show_table(pages.start, memory.start);
        let width = if calls::parameter(parameter::LEVELS) == 2 { 1 } else { 2 };
        Self { memory, width }
    }

    fn place(&self, address: usize) -> usize {
        address / PAGE * self.width % WORDS
    }

    fn get(&self, address: usize) -> u32 {
        self.memory.read(self.place(address))
    }

    fn set(&self, address: usize, entry: u32) {
        self.memory.write(self.place(address), entry);
        calls::flush(address);
    }
}

/// Exchanges pages at random; their content goes with them.
fn permute(seed: u32) -> u64 {
    let mut sum = Sum::default();
    let pages = Memory::new(PAGES, 0);
    let mut order: [u32; PAGES] = core::array::from_fn(|i| i as u32);
    let start = |page: usize| pages.start + page * PAGE;
    (0..PAGES).for_each(|page| pages.write(page * WORDS, word(seed, page as u32)));
    let table = Table::of(&pages);
    for turn in 0..scaled(500) as u32 {
        let dice = mix(seed ^ turn) as usize;
        let (one, other) = (dice % PAGES, dice / PAGES % PAGES);
        if turn % 8 == 0 {
            // Now and then the kernel does it.
            calls::exchange(start(one), start(other));
        } else {
            let entries = (table.get(start(one)), table.get(start(other)));
            table.set(start(one), entries.1);
            table.set(start(other), entries.0);
        }
        order.swap(one, other);
        for page in [one, other, (one + 1) % PAGES] {
            sum.add(pages.check(page * WORDS, word(seed, order[page])));
        }
    }
    for (page, content) in order.iter().enumerate() {
        sum.add(pages.check(page * WORDS, word(seed, *content)));
        expect(table.get(start(page)) as usize, calls::entry(start(page), 0) as u32 as usize);
    }
    pages.unmap();
    table.memory.unmap();
    sum.0
}

/// Takes away rights and bits that the processor sets, and looks at what it does.
fn bits() {
    let pages = Memory::new(1, 0);
    let page = pages.start;
    pages.write(0, 1);
    let table = Table::of(&pages);
    let used = (ACCESSED | DIRTY) as u32;
    for _ in 0..scaled(20) {
        table.set(page, table.get(page) & !used);
        pages.check(0, 1);
        expect((table.get(page) & used) as usize, ACCESSED as usize);
        pages.write(0, 1);
        expect((table.get(page) & used) as usize, used as usize);
        for (bit, how, refused) in [
            (WRITE as u32, probe::WRITE, error::PRESENT | error::USER | error::WRITE),
            (USER as u32, probe::READ, error::PRESENT | error::USER),
        ] {
            let entry = table.get(page);
            table.set(page, entry & !bit);
            expect(touch(page, how), refused);
            table.set(page, entry);
            expect(touch(page, how), NONE);
        }
    }
    pages.unmap();
    table.memory.unmap();
}

/// A table that maps itself, and says through itself that it cannot be written.
fn itself() {
    // Two windows to one table, both of them in what it maps.
    let pages = Memory::new(1, 0);
    pages.write(0, 1);
    let (table, other) = (Table::of(&pages), Table::of(&pages));
    let (window, own) = (table.memory.start, table.get(table.memory.start));
    expect(other.get(window) as usize, (own | (ACCESSED | DIRTY) as u32) as usize);
    for _ in 0..scaled(20) {
        // The write that takes away the right to write is the last one through this window.
        table.set(window, own & !(WRITE as u32));
        expect(touch(window, probe::WRITE), error::PRESENT | error::USER | error::WRITE);
        other.set(window, own);
        expect(touch(window, probe::WRITE), NONE);
    }
    pages.unmap();
    table.memory.unmap();
    other.memory.unmap();
}

/// Functions that change places, and one that is rewritten.
fn functions(seed: u32) -> u64 {
    let mut sum = Sum::default();
    let pages = Memory::new(2, 0);
    let (one, other) = (pages.start, pages.start + PAGE);
    code::write_function(one, seed);
    code::write_function(other, !seed);
    calls::protect(one, 2 * PAGE, prot::EXECUTE);
    let table = Table::of(&pages);
    for turn in 0..scaled(50) as u32 {
        let (mine, others) = if turn % 2 == 0 { (seed, !seed) } else { (!seed, seed) };
        expect(code::call(one) as usize, mine as usize);
        expect(code::call(other) as usize, others as usize);
        let entries = (table.get(one), table.get(other));
        table.set(one, entries.1);
        table.set(other, entries.0);
    }
    for turn in 0..scaled(50) as u32 {
        calls::protect(one, PAGE, prot::WRITE);
        code::write_function(one, mix(seed ^ turn));
        calls::protect(one, PAGE, prot::EXECUTE);
        let result = code::call(one);
        expect(result as usize, mix(seed ^ turn) as usize);
        sum.add(result);
    }
    pages.unmap();
    table.memory.unmap();
    sum.0
}

pub fn run() -> u64 {
    let mut sum = Sum::default();
    let seed = seed();
    sum.add(permute(seed));
    bits();
    itself();
    sum.add(functions(seed));
    sum.0
}

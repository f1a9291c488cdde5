// SPDX-License-Identifier: GPL-2.0
//! Changes of what is mapped: unmapping, other rights, split pages, exchanged frames.

use core::sync::atomic::Ordering;

use minikernel_abi::call::prot;
use minikernel_abi::report::Value;

use super::{Refused, Region, Space};
use crate::counters::count;
use crate::frames::Frames;
use crate::paging::{
    self, Entry, ACCESSED, COPY, DIRTY, LARGE, LARGE_PAGES, LARGE_SIZE, NX, PAGE_SIZE, PRESENT, USER, WRITE,
};
use crate::tlb;

/// Frames that are unmapped but not yet flushed out of the TLBs.
struct Pending {
    list: [(usize, Kind); 128],
    count: usize,
    /// Where the pages are that TLBs may have.
    start: usize,
    end: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Page,
    Large,
    Table,
}

impl Pending {
    fn new() -> Self {
        Self { list: [(0, Kind::Page); 128], count: 0, start: usize::MAX, end: 0 }
    }

    fn add(
        &mut self,
        space: usize,
        target: usize,
        kind: Kind,
        address: usize,
        size: usize,
        frames: &mut Frames,
    ) {
        if self.count == self.list.len() {
            self.finish(space, frames);
        }
        self.list[self.count] = (target, kind);
        self.count += 1;
        self.start = self.start.min(address);
        self.end = self.end.max(address + size);
    }

    /// Flushes, and lets go of the frames.
    fn finish(&mut self, space: usize, frames: &mut Frames) {
        if self.count != 0 {
            tlb::changed(space, self.start, (self.end - self.start) / PAGE_SIZE);
        }
        for (target, kind) in &self.list[..self.count] {
            match kind {
                Kind::Page => frames.drop(*target),
                Kind::Large => Space::frames_of(1, *target as Entry).for_each(|f| frames.drop(f)),
                Kind::Table => frames.drop_table(*target),
            }
        }
        *self = Self::new();
    }
}

impl Space {
    /// Unmaps the pages of a range, and the tables that have nothing in them afterwards.
    pub(super) fn drop_pages(&mut self, start: usize, end: usize, frames: &mut Frames) {
        let mut pending = Pending::new();
        for (address, place) in paging::leaves(self.root, start, end) {
            let kind = if place.level == 0 { Kind::Page } else { Kind::Large };
            let old = place.replace(0);
            count(Value::Entries);
            let size = paging::span(place.level);
            pending.add(self.number, paging::target(old), kind, address, size, frames);
        }
        let mut address = start & !(LARGE_SIZE - 1);
        while address < end {
            let place = paging::find(self.root, address, 1);
            let table = paging::target(place.get());
            // One that a process has mapped for itself is not empty, as far as anybody knows.
            if place.level == 1
                && place.get() & (PRESENT | LARGE) == PRESENT
                && frames.uses(table) == 1
                && is_empty(table)
            {
                place.replace(0);
                count(Value::Entries);
                // Any address below the entry gets it out of the paging-structure caches.
                let address = address.max(start);
                pending.add(self.number, table, Kind::Table, address, PAGE_SIZE, frames);
            }
            address = (address & !(paging::span(place.level) - 1)) + paging::span(place.level);
        }
        pending.finish(self.number, frames);
    }

    pub fn unmap(&mut self, start: usize, size: usize, frames: &mut Frames) -> Result<(), Refused> {
        let end = self.carve(start, size, frames)?;
        for region in &mut self.regions {
            if start <= region.start && region.end <= end {
                *region = Region::default();
            }
        }
        self.drop_pages(start, end, frames);
        Ok(())
    }

    pub fn protect(
        &mut self,
        start: usize,
        size: usize,
        prot: usize,
        frames: &mut Frames,
    ) -> Result<(), Refused> {
        const RIGHTS: usize = prot::WRITE | prot::EXECUTE | prot::SUPERVISOR;
        let end = self.carve(start, size, frames)?;
        for index in 0..self.regions.len() {
            let region = &mut self.regions[index];
            if region.is_empty() || region.start < start || end < region.end {
                continue;
            }
            region.prot = region.prot & !RIGHTS | prot & RIGHTS;
            let region = *region;
            for (_, place) in paging::leaves(self.root, region.start, region.end) {
                let old = place.get();
                let mut bits = region.bits();
                let alone = Self::frames_of(place.level, old).all(|frame| frames.uses(frame) == 1);
                if bits & WRITE != 0 && !alone && !region.has(prot::SHARED) {
                    bits = bits & !WRITE | COPY;
                }
                // Bit by bit, so that an accessed or dirty bit that comes meanwhile stays.
                place.set_bits(bits & !WRITE);
                place.clear_bits((WRITE | USER | NX | COPY) & !bits);
                place.set_bits(bits);
                count(Value::Entries);
            }
        }
        tlb::changed(self.number, start, (end - start) / PAGE_SIZE);
        Ok(())
    }

    /// Exchanges the frames behind two pages.
    pub fn exchange(&mut self, one: usize, other: usize, frames: &mut Frames) -> Result<(), Refused> {
        // Pages of its own, so that copying on a write has happened.
        for address in [one, other] {
            self.region(address).filter(|r| r.has(prot::WRITE)).ok_or(Refused)?;
            let place = paging::find(self.root, address, 0);
            if place.level != 0 || place.get() & PRESENT == 0 {
                return Err(Refused);
            }
            if place.get() & COPY != 0 {
                self.copy(address & !(PAGE_SIZE - 1), frames)?;
            }
        }
        let place = paging::find(self.root, one, 0);
        let other_place = paging::find(self.root, other, 0);
        place.set(other_place.replace(place.get()));
        count(Value::Entries);
        count(Value::Entries);
        tlb::changed(self.number, one, 1);
        tlb::changed(self.number, other, 1);
        Ok(())
    }

    /// Lets a process see the page table that has the entry for an address: it takes the place of
    /// the page at `window`.
    pub fn show_table(&mut self, address: usize, window: usize, frames: &mut Frames) -> Result<(), Refused> {
        let table = paging::find(self.root, address, 0);
        let place = paging::find(self.root, window, 0);
        if table.level != 0 || place.level != 0 || place.get() & PRESENT == 0 {
            return Err(Refused);
        }
        frames.share(table.table);
        let bits = place.get() & !paging::ADDRESS & !COPY;
        let old = place.replace(paging::entry(table.table, bits | WRITE));
        count(Value::Entries);
        tlb::changed(self.number, window, 1);
        frames.drop(paging::target(old));
        Ok(())
    }

    /// Makes the ends of a range ends of regions, and of pages. Returns its end.
    fn carve(&mut self, start: usize, size: usize, frames: &mut Frames) -> Result<usize, Refused> {
        let end = start.checked_add(size).filter(|end| *end <= super::USER_END).ok_or(Refused)?;
        if start % PAGE_SIZE != 0 || size % PAGE_SIZE != 0 || size == 0 || start < crate::kernel_map::END {
            return Err(Refused);
        }
        for edge in [start, end] {
            if let Some(region) = self.regions.iter_mut().find(|r| r.start < edge && edge < r.end) {
                let upper = Region { start: edge, ..*region };
                region.end = edge;
                self.add(upper)?;
            }
            let place = paging::find(self.root, edge, 0);
            if edge % LARGE_SIZE != 0 && place.level == 1 && place.get() & PRESENT != 0 {
                self.split(edge, frames)?;
            }
        }
        Ok(end)
    }

    /// Makes a large page many small ones, which look the same.
    pub(super) fn split(&mut self, address: usize, frames: &mut Frames) -> Result<(), Refused> {
        let place = paging::find(self.root, address, 1);
        let table = frames.table().ok_or(Refused)?;
        let small = |index| paging::cell(table, index);
        let old = place.get();
        for (index, frame) in Self::frames_of(1, old).enumerate() {
            let bits = old & !paging::ADDRESS & !LARGE;
            small(index).store(paging::entry(frame, bits), Ordering::Relaxed);
        }
        let last = place.replace(paging::entry(table, PRESENT | WRITE | USER));
        // What a processor has noted in between holds for all the small pages too.
        let noted = last & !old & (ACCESSED | DIRTY);
        if noted != 0 {
            for index in 0..LARGE_PAGES {
                small(index).fetch_or(noted, Ordering::Relaxed);
            }
        }
        count(Value::Entries);
        // One INVLPG reaches the large page from any address in it.
        tlb::changed(self.number, address & !(PAGE_SIZE - 1), 1);
        Ok(())
    }
}

fn is_empty(table: usize) -> bool {
    (0..paging::count(0)).all(|i| paging::cell(table, i).load(Ordering::Relaxed) == 0)
}

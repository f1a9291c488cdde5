// SPDX-License-Identifier: GPL-2.0

//! Notice of writes ([`super::format::Notice`]).
//!
//! A *tracked* page is one that may be written, were it not that the first write is to be noticed:
//! its entry has a notice in place of the right ([`Format::withhold`]). The write faults, the
//! fault handler notes it and exchanges the two again with [`Table::allow_write`]; the host need
//! not be asked about the page, as nothing else has changed.
//!
//! Hardware that logs writes takes the notice itself, exchanges the two, and goes on without a
//! fault. For all others there is no difference: the right is withheld until the notice is taken.
//!
//! Where hardware only sets dirty flags, nothing is withheld from a page of 4 KiB: its flag is clear
//! or it has been written. [`Table::take_written`] finds those; who unmaps a page finds its flag in
//! what was there.
//!
//! A large page is tracked as a whole. [`Table::allow_write`] leaves it alone: it has to be cut
//! first ([`Table::split`]), and its parts are then tracked as it was.

use super::format::{Entry, Format, USED};
use super::frames::{TableMemory, TableRef, ENTRIES};
use super::sweep::{Progress, Sweep, Visitor};
use super::table::{index, Table};
use super::{Level, Permissions};
use crate::model::arch::addr::{Gfn, Gpa};
use crate::model::sync::{AtomicU64, Ordering};
use core::ops::Range;

/// What a write fault finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// The page may be written now, or could already; TLBs that say otherwise drop that when they
    /// fault on it.
    Yes,
    /// No page that may be written is mapped, or a large one.
    No,
}

/// What is mapped in a region of 2 MiB.
enum Region<'a> {
    Nothing,
    Large(&'a AtomicU64, Level),
    Pages(&'a [AtomicU64; ENTRIES]),
}

/// Exchanges the right for the notice. Tells whether the page had the right.
#[inline]
fn withhold<F: Format>(format: &F, entry: &AtomicU64, level: Level) -> bool {
    // Hardware sets flags at the same time.
    let change = |raw| format.withhold(raw, level);
    entry
        .fetch_update(Ordering::AcqRel, Ordering::Relaxed, change)
        .is_ok()
}

/// Exchanges the notice for the right, and sets some flags with it.
#[inline]
fn give_back<F: Format>(format: &F, entry: &AtomicU64, level: Level, flags: u64) {
    let change = |raw| format.give_back(raw, level).map(|raw| raw | flags);
    // Not tracked, nothing to do.
    let _ = entry.fetch_update(Ordering::AcqRel, Ordering::Relaxed, change);
}

impl<F: Format> Table<F> {
    fn region<'a, M: TableMemory>(&self, memory: &'a M, gfn: Gfn) -> Region<'a> {
        if gfn.raw() >= self.limit() {
            return Region::Nothing;
        }
        let mut table = self.root_ref();
        let mut level = self.top;
        while level > Level::Pt {
            let entry = &memory.entries(table)[index(gfn.raw() << 12, level)];
            match self.format.decode(entry.load(Ordering::Acquire), level) {
                Entry::Absent => return Region::Nothing,
                Entry::Leaf(_) => return Region::Large(entry, level),
                Entry::Table(next) => table = TableRef::linked(next),
            }
            match level.lower() {
                Some(lower) => level = lower,
                None => break,
            }
        }
        Region::Pages(memory.entries(table))
    }

    /// The table whose entries are for 2 MiB each, or the level of the entry where there is none.
    fn directory<M: TableMemory>(&self, memory: &M, gfn: Gfn) -> Result<TableRef, Level> {
        let mut table = self.root_ref();
        let mut level = self.top;
        while level > Level::Pd {
            let entry = &memory.entries(table)[index(gfn.raw() << 12, level)];
            match self.format.decode(entry.load(Ordering::Acquire), level) {
                Entry::Table(next) => table = TableRef::linked(next),
                Entry::Absent | Entry::Leaf(_) => return Err(level),
            }
            level = level.lower().ok_or(level)?;
        }
        Ok(table)
    }

    /// Tracks every page of a range that can be written. `changed` becomes true when there was
    /// one: TLBs must be flushed before anybody relies on it.
    pub fn track<M: TableMemory>(
        &mut self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        changed: &mut bool,
    ) -> Progress {
        let format = self.format;
        let visit = |entry: &AtomicU64, level| *changed |= withhold(&format, entry, level);
        self.walk(memory, sweep, budget, &mut Each(visit))
    }

    /// Makes every tracked page of a range one that can be written.
    pub fn untrack<M: TableMemory>(
        &mut self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
    ) -> Progress {
        let format = self.format;
        let visit = |entry: &AtomicU64, level| give_back(&format, entry, level, 0);
        self.walk(memory, sweep, budget, &mut Each(visit))
    }

    /// Tracks those of the 64 pages from `first` on whose bit is set. Tells whether one of them
    /// could be written: TLBs must be flushed before anybody relies on it.
    pub fn track_pages<M: TableMemory>(&mut self, memory: &M, first: Gfn, bits: u64) -> bool {
        self.track_some(memory, first, bits, true)
    }

    /// The same after [`Table::take_written`], which has tracked the pages of 4 KiB.
    pub fn track_larger<M: TableMemory>(&mut self, memory: &M, first: Gfn, bits: u64) -> bool {
        self.track_some(memory, first, bits, false)
    }

    #[inline]
    fn track_some<M: TableMemory>(
        &mut self,
        memory: &M,
        first: Gfn,
        bits: u64,
        small: bool,
    ) -> bool {
        let mut changed = false;
        let mut left = bits;
        while left != 0 {
            let start = first.raw().saturating_add(left.trailing_zeros().into());
            // Those in the same region of 2 MiB: all, or all up to its end.
            let end = (start | (ENTRIES as u64 - 1)).saturating_add(1);
            let until = end.saturating_sub(first.raw());
            let here = match 1u64.checked_shl(until as u32) {
                Some(bit) if until < 64 => left & (bit - 1),
                _ => left,
            };
            left &= !here;
            match self.region(memory, Gfn::new(start)) {
                Region::Nothing => {}
                Region::Large(entry, level) => changed |= withhold(&self.format, entry, level),
                Region::Pages(_) if !small => {}
                Region::Pages(entries) => {
                    let mut pages = here;
                    while pages != 0 {
                        let gfn = first.raw().wrapping_add(pages.trailing_zeros().into());
                        let entry = &entries[gfn as usize % ENTRIES];
                        changed |= withhold(&self.format, entry, Level::Pt);
                        pages &= pages - 1;
                    }
                }
            }
        }
        changed
    }

    /// Tells of the pages of 4 KiB in a range whose dirty flag is set, and clears that: a bit for each of 64
    /// pages at most, from one on. `stale` becomes true when TLBs must be flushed: until then some writes
    /// go unnoticed, and unless it is done before the next look, for good. One look at a range at a time;
    /// others may add to the tree meanwhile.
    ///
    /// A table that no CPU has used since is not looked at.
    pub fn take_written<M: TableMemory>(
        &self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        stale: &mut bool,
        mut on_pages: impl FnMut(Gfn, u64),
    ) -> Progress {
        let end = sweep.end().min(self.limit());
        let mut left = budget.max(1);
        loop {
            let next = sweep.next().raw();
            if next >= end {
                return Progress::Done;
            }
            if left == 0 {
                return Progress::More(sweep.next());
            }
            // Up to the end of an entry of a level.
            let until = |next: u64, level: Level| {
                let last = next | (level.pages() - 1);
                last.saturating_add(1).min(end)
            };
            let directory = match self.directory(memory, sweep.next()) {
                Ok(directory) => directory,
                Err(level) => {
                    left -= 1;
                    sweep.advance(Gfn::new(until(next, level)));
                    continue;
                }
            };
            let first = index(next << 12, Level::Pd);
            for link in memory.entries(directory).iter().skip(first) {
                let next = sweep.next().raw();
                if next >= end {
                    break;
                }
                if left == 0 {
                    return Progress::More(sweep.next());
                }
                let end = until(next, Level::Pd);
                let looked = self.take_region(memory, link, next..end, stale, &mut on_pages);
                left = left.saturating_sub(looked);
                sweep.advance(Gfn::new(end));
            }
        }
    }

    /// What [`Table::take_written`] does with pages of one page table, or with what is in its place. How
    /// many entries it looked at.
    #[inline]
    fn take_region<M: TableMemory>(
        &self,
        memory: &M,
        link: &AtomicU64,
        pages: Range<u64>,
        stale: &mut bool,
        on_pages: &mut impl FnMut(Gfn, u64),
    ) -> usize {
        let raw = link.load(Ordering::Acquire);
        let Entry::Table(table) = self.format.decode(raw, Level::Pd) else {
            return 1;
        };
        // Others' pages in the same table are looked at by others.
        let whole = pages.end - pages.start == Level::Pd.pages();
        if whole && !self.take_used(link, stale) {
            return 1;
        }
        let mask = self.format.dirty_mask();
        let first = index(pages.start << 12, Level::Pt);
        let entries = memory.entries(TableRef::linked(table));
        let last = (first + (pages.end - pages.start) as usize).min(entries.len());
        let entries = entries.get(first..last).unwrap_or_default();
        for (number, some) in entries.chunks(64).enumerate() {
            let mut bits = 0;
            for (bit, entry) in some.iter().enumerate() {
                if entry.load(Ordering::Relaxed) & mask != 0 {
                    entry.fetch_and(!mask, Ordering::AcqRel);
                    bits |= 1 << bit;
                }
            }
            if bits != 0 {
                *stale = true;
                on_pages(Gfn::new(pages.start + number as u64 * 64), bits);
            }
        }
        entries.len()
    }

    /// Whether a page table can have flags that were not there at the last look.
    ///
    /// A CPU that walks down sets the accessed flag of the entry that leads here. One that has that
    /// entry in its TLB does not set it again, until the flush that follows a look. So a table is looked
    /// at while the flag is set, and once more: [`USED`] says that it was set the last time.
    fn take_used(&self, link: &AtomicU64, stale: &mut bool) -> bool {
        let accessed = self.format.accessed_mask();
        let flags = USED | accessed;
        let change = |raw| match raw & flags {
            0 => None,
            now => Some(raw & !flags | if now & accessed != 0 { USED } else { 0 }),
        };
        let was = link.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        *stale |= was.is_ok_and(|raw| raw & accessed != 0);
        was.is_ok()
    }

    /// Lets a tracked 4 KiB page be written, for a write that has been noticed. Others may add to the
    /// tree at the same time.
    #[inline]
    pub fn allow_write<M: TableMemory>(&self, memory: &M, gpa: Gpa) -> Allowed {
        let Region::Pages(entries) = self.region(memory, gpa.gfn()) else {
            return Allowed::No;
        };
        let entry = &entries[index(gpa.raw(), Level::Pt)];
        // The write comes next: hardware need not set these.
        let flags = self.format.accessed_mask() | self.format.dirty_mask();
        give_back(&self.format, entry, Level::Pt, flags);
        match self.format.decode(entry.load(Ordering::Acquire), Level::Pt) {
            Entry::Leaf(leaf) if leaf.perms.contains(Permissions::W) => Allowed::Yes,
            _ => Allowed::No,
        }
    }

    /// The level of the entry where a walk for `gfn` ends: it maps a page of that level, or nothing.
    pub fn end_of_walk<M: TableMemory>(&self, memory: &M, gfn: Gfn) -> Level {
        let mut end = self.top;
        self.path(memory, Gpa::new(gfn.raw() << 12), |level, _, _| end = level);
        end
    }
}

struct Each<V>(V);

impl<V: FnMut(&AtomicU64, Level), M: TableMemory> Visitor<M> for Each<V> {
    fn leaf(&mut self, entry: &AtomicU64, _raw: u64, level: Level, _gfn: Gfn) {
        (self.0)(entry, level);
    }
}

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
    /// Nothing, where one entry of this level could map something.
    Nothing(Level),
    Large(&'a AtomicU64, Level),
    Pages(&'a [AtomicU64; ENTRIES]),
}

/// A region, and the entry that the way to it ends with: where one table leads to another.
struct Found<'a> {
    region: Region<'a>,
    link: Option<&'a AtomicU64>,
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
    #[inline]
    fn region<'a, M: TableMemory>(&self, memory: &'a M, gfn: Gfn) -> Region<'a> {
        self.find_region(memory, gfn).region
    }

    #[inline]
    fn find_region<'a, M: TableMemory>(&self, memory: &'a M, gfn: Gfn) -> Found<'a> {
        let mut link = None;
        let found = |region, link| Found { region, link };
        if gfn.raw() >= self.limit() {
            return found(Region::Nothing(self.top), link);
        }
        let mut table = self.root_ref();
        let mut level = self.top;
        while level > Level::Pt {
            let entry = &memory.entries(table)[index(gfn.raw() << 12, level)];
            match self.format.decode(entry.load(Ordering::Acquire), level) {
                Entry::Absent => return found(Region::Nothing(level), link),
                Entry::Leaf(_) => return found(Region::Large(entry, level), link),
                Entry::Table(next) => table = TableRef::linked(next),
            }
            link = Some(entry);
            match level.lower() {
                Some(lower) => level = lower,
                None => break,
            }
        }
        found(Region::Pages(memory.entries(table)), link)
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
                Region::Nothing(_) => {}
                Region::Large(entry, level) => changed |= withhold(&self.format, entry, level),
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

    /// Tells of the pages of 4 KiB in a range whose dirty flag is set, and clears that. `stale` becomes
    /// true when TLBs must be flushed: until then some writes go unnoticed, and unless it is done before
    /// the next look, for good. One look at a range at a time; others may add to the tree meanwhile.
    ///
    /// A table that no CPU has used since is not looked at.
    pub fn take_written<M: TableMemory>(
        &self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        stale: &mut bool,
        mut on_page: impl FnMut(Gfn),
    ) -> Progress {
        let (mask, end) = (self.format.dirty_mask(), sweep.end().min(self.limit()));
        let mut left = budget;
        loop {
            let next = sweep.next().raw();
            if next >= end {
                return Progress::Done;
            }
            if left == 0 {
                return Progress::More(sweep.next());
            }
            let found = self.find_region(memory, sweep.next());
            let (mut entries, level) = match found.region {
                Region::Nothing(level) | Region::Large(_, level) => (&[][..], level),
                Region::Pages(entries) => (&entries[index(next << 12, Level::Pt)..], Level::Pd),
            };
            let until = (next | (level.pages() - 1)).saturating_add(1).min(end);
            if until - next == level.pages() {
                if let (Region::Pages(_), Some(link)) = (found.region, found.link) {
                    if !self.take_used(link, stale) {
                        entries = &[];
                    }
                }
            }
            for (gfn, entry) in (next..until).zip(entries) {
                if entry.load(Ordering::Relaxed) & mask != 0 {
                    entry.fetch_and(!mask, Ordering::AcqRel);
                    *stale = true;
                    on_page(Gfn::new(gfn));
                }
            }
            left = left.saturating_sub(entries.len().max(1));
            sweep.advance(Gfn::new(until));
        }
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

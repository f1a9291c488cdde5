// SPDX-License-Identifier: GPL-2.0

//! Changes that several may make at once: a tree that only grows.
//!
//! Whoever merely shares a tree (`&Table`) may add to it: tables where there are none, pages where
//! nothing is mapped, rights to pages that are mapped. Nothing is taken away:
//!
//! * no table that somebody walks is unlinked, so nobody has to wait before frames are freed;
//! * no translation becomes wrong, so no TLB is to be flushed.
//!
//! Each step is one compare-and-exchange of an entry, and whoever loses one looks again: another
//! may have been faster, or hardware has set a flag. What would have to be taken away first is
//! [`MapError::LargePage`] or [`MapError::Occupied`]: that is for whoever has the tree alone
//! ([`Table::map`], [`Table::split`]). The caller's lock keeps the two kinds apart.
//!
//! The steps are model-checked with every interleaving of two threads and of hardware that sets
//! flags: `tests/loom.rs`.

use super::format::{Entry, Format, Leaf};
use super::frames::{Counts, TableMemory, ENTRIES};
use super::table::{encode, index, MapError, Stencil, Table};
use super::{Level, PageSize};
use crate::model::arch::addr::{Gpa, Hpa};
use crate::model::sync::{AtomicU64, Ordering};

/// What adding a page did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grown {
    /// Nothing was mapped there.
    Fresh,
    /// The page was already mapped, with at least these rights.
    Present,
    /// The page has got more rights. TLBs may hold the old ones; a fault on one drops it.
    Relaxed,
}

/// Somebody who adds to a tree, and counts what.
#[derive(Debug)]
#[must_use = "what was added is to be counted"]
pub struct Grow<'a, F: Format> {
    table: &'a Table<F>,
    added: Counts,
}

impl<F: Format> Table<F> {
    /// For changes that others may make at the same time.
    #[inline]
    pub fn grow(&self) -> Grow<'_, F> {
        Grow {
            table: self,
            added: Counts::default(),
        }
    }

    /// Takes into account what others have added.
    #[inline]
    pub fn count(&mut self, added: &Counts) {
        self.counts.merge(added);
    }
}

impl<'a, F: Format> Grow<'a, F> {
    /// What was added, for [`Table::count`].
    #[inline]
    pub fn finish(self) -> Counts {
        self.added
    }

    /// Maps one page, if that takes nothing away.
    pub fn map<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        leaf: Leaf,
    ) -> Result<Grown, MapError> {
        let format = *self.table.format();
        let raw = encode(format, gpa, &leaf)?;
        let level = leaf.size.level();
        let table = self.table.descend(memory, gpa, level, &mut self.added)?;
        let entry = &memory.entries(table)[index(gpa.raw(), level)];
        add(format, entry, &leaf, raw, &mut self.added)
    }

    /// Maps consecutive pages of the size of `like` from `gpa` on, up to the end of their table, where
    /// nothing is mapped yet. Tells of each page that it maps, by its number.
    pub fn fill<M: TableMemory>(
        &mut self,
        memory: &mut M,
        gpa: Gpa,
        like: Leaf,
        pages: impl IntoIterator<Item = Hpa>,
        on_set: impl FnMut(usize),
    ) -> Result<(), MapError> {
        let (format, level) = (*self.table.format(), like.size.level());
        let table = self.table.descend(memory, gpa, level, &mut self.added)?;
        let entries = memory.entries(table);
        let (filled, result) = fill(format, entries, gpa, &like, pages, on_set);
        self.added.add_leaves(like.size, filled);
        result
    }

    /// Walks once to the page table of a 2 MiB region, for several pages in it.
    #[inline]
    pub fn region<'b, M: TableMemory>(
        &'b mut self,
        memory: &'b mut M,
        gpa: Gpa,
    ) -> Result<Region<'b, F>, MapError> {
        let table = self
            .table
            .descend(memory, gpa, Level::Pt, &mut self.added)?;
        Ok(Region {
            format: *self.table.format(),
            number: gpa.raw() >> Level::Pd.shift(),
            entries: memory.entries(table),
            added: &mut self.added,
        })
    }
}

/// Writes a leaf entry, unless it would take something away.
#[inline]
fn add<F: Format>(
    format: F,
    entry: &AtomicU64,
    leaf: &Leaf,
    new: u64,
    added: &mut Counts,
) -> Result<Grown, MapError> {
    let mut old = entry.load(Ordering::Acquire);
    loop {
        let (raw, grown) = match format.decode(old, leaf.size.level()) {
            Entry::Absent => (new, Grown::Fresh),
            Entry::Leaf(was) if was.same_memory(leaf) && was.perms.contains(leaf.perms) => {
                return Ok(Grown::Present);
            }
            Entry::Leaf(was) if was.same_memory(leaf) && leaf.perms.contains(was.perms) => {
                (new | old & format.kept_flags(leaf), Grown::Relaxed)
            }
            Entry::Leaf(_) | Entry::Table(_) => return Err(MapError::Occupied),
        };
        match entry.compare_exchange(old, raw, Ordering::AcqRel, Ordering::Acquire) {
            Err(now) => old = now,
            Ok(_) => {
                if grown == Grown::Fresh {
                    added.add_leaves(leaf.size, 1);
                }
                return Ok(grown);
            }
        }
    }
}

/// Writes entries of a table for consecutive pages from `gpa` on, where there is none. How many, and why
/// not all.
#[inline]
fn fill<F: Format>(
    format: F,
    entries: &[AtomicU64; ENTRIES],
    gpa: Gpa,
    like: &Leaf,
    pages: impl IntoIterator<Item = Hpa>,
    mut on_set: impl FnMut(usize),
) -> (u64, Result<(), MapError>) {
    if gpa.raw() & (like.size.bytes() - 1) != 0 {
        return (0, Err(MapError::Misaligned));
    }
    let stencil = match Stencil::new(format, like) {
        Ok(stencil) => stencil,
        Err(error) => return (0, Err(error)),
    };
    let first = index(gpa.raw(), like.size.level());
    let mut filled = 0u64;
    for (number, (entry, hpa)) in entries.iter().skip(first).zip(pages).enumerate() {
        if entry.load(Ordering::Relaxed) != 0 {
            continue;
        }
        let raw = match stencil.at(hpa) {
            Ok(raw) => raw,
            Err(error) => return (filled, Err(error)),
        };
        let set = entry.compare_exchange(0, raw, Ordering::AcqRel, Ordering::Relaxed);
        if set.is_ok() {
            filled = filled.wrapping_add(1);
            on_set(number);
        }
    }
    (filled, Ok(()))
}

/// The page table of one 2 MiB region.
#[derive(Debug)]
pub struct Region<'a, F: Format> {
    format: F,
    number: u64,
    entries: &'a [AtomicU64; ENTRIES],
    added: &'a mut Counts,
}

impl<F: Format> Region<'_, F> {
    #[inline]
    fn check(&self, gpa: Gpa) -> Result<(), MapError> {
        if gpa.raw() >> Level::Pd.shift() != self.number {
            return Err(MapError::OutOfRange);
        }
        Ok(())
    }

    /// [`Grow::map`] for a 4 KiB page of the region.
    #[inline]
    pub fn map(&mut self, gpa: Gpa, leaf: Leaf) -> Result<Grown, MapError> {
        self.check(gpa)?;
        if leaf.size != PageSize::Size4K {
            return Err(MapError::Unsupported);
        }
        let raw = encode(self.format, gpa, &leaf)?;
        let entry = &self.entries[index(gpa.raw(), Level::Pt)];
        add(self.format, entry, &leaf, raw, self.added)
    }

    /// Maps consecutive 4 KiB pages from `gpa` on, up to the end of the region, where nothing is
    /// mapped yet, as `like` is. Tells of each page that it maps, by its number in the run. Returns
    /// how many.
    #[inline]
    pub fn fill(
        &mut self,
        gpa: Gpa,
        like: Leaf,
        run: impl IntoIterator<Item = Hpa>,
        on_set: impl FnMut(usize),
    ) -> Result<u64, MapError> {
        self.check(gpa)?;
        if like.size != PageSize::Size4K {
            return Err(MapError::Unsupported);
        }
        let base = gpa.page_base();
        let (filled, result) = fill(self.format, self.entries, base, &like, run, on_set);
        self.added.add_leaves(PageSize::Size4K, filled);
        result.map(|()| filled)
    }
}

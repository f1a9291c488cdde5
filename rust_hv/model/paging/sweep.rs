// SPDX-License-Identifier: GPL-2.0

//! Work on every mapping of a range, in bounded steps.
//!
//! Each operation takes a [`Sweep`], which remembers the range and how far the work has come, and a
//! budget of entries to look at, not counting those that lead down to another table: every step
//! gets somewhere, however small its budget. When the budget is used up, the caller may drop its
//! lock, let others run, and call again with the same sweep. An absent entry costs one look,
//! whatever it could have covered.
//!
//! A large page that is only partly in the range is treated as a whole.

use super::format::{Entry, Format, Leaf};
use super::frames::{Counts, Gather, TableFrame, TableMemory, TableRef};
use super::table::Table;
use super::Level;
use crate::model::arch::addr::{Gfn, GfnRange};
use crate::model::sync::{AtomicU64, Ordering};

/// A range, and how much of it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sweep {
    range: GfnRange,
    next: Gfn,
}

impl Sweep {
    /// Nothing of the range is done.
    #[inline]
    pub const fn new(range: GfnRange) -> Self {
        Self {
            range,
            next: range.start,
        }
    }

    /// Where the range ends.
    #[inline]
    pub(super) const fn end(&self) -> u64 {
        self.range.end.raw()
    }

    /// All before this frame is done.
    #[inline]
    pub(super) fn advance(&mut self, next: Gfn) {
        self.next = next;
    }

    /// The first frame that is not done.
    #[inline]
    pub const fn next(&self) -> Gfn {
        self.next
    }
}

/// How far an operation came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Progress {
    /// The whole range is done.
    Done,
    /// The budget is used up; go on from here.
    More(Gfn),
}

/// What is done with the entries of a range.
pub(super) trait Visitor<M: TableMemory> {
    /// A page of a level: its entry, as it was at the look; `gfn` is its first frame.
    fn leaf(&mut self, entry: &AtomicU64, raw: u64, level: Level, gfn: Gfn);

    /// A table below this entry has been visited, as far as it is in the range.
    fn table(&mut self, _memory: &M, _entry: &AtomicU64, _table: TableRef, _covered: bool) {}
}

/// The state of one step.
struct Walk<'a, F, M> {
    format: F,
    memory: &'a M,
    sweep: &'a mut Sweep,
    end: u64,
    budget: usize,
}

impl<F: Format, M: TableMemory> Walk<'_, F, M> {
    /// Visits a table whose first frame is `base`. Recursion ends with the levels: at most five.
    fn table(
        &mut self,
        table: TableRef,
        level: Level,
        base: u64,
        visitor: &mut impl Visitor<M>,
    ) -> Progress {
        let pages = level.pages();
        let next = self.sweep.next.raw();
        let first = (next.saturating_sub(base) / pages) as usize;
        let memory = self.memory;
        for (at, entry) in memory.entries(table).iter().enumerate().skip(first) {
            let gfn = base | (at as u64) << (level.shift() - 12);
            if gfn >= self.end {
                break;
            }
            if self.budget == 0 {
                let next = Gfn::new(gfn);
                self.sweep.next = next;
                return Progress::More(next);
            }
            let raw = entry.load(Ordering::Acquire);
            if raw == 0 {
                self.budget -= 1;
                continue;
            }
            match (self.format.decode(raw, level), level.lower()) {
                (Entry::Leaf(_), _) => {
                    self.budget -= 1;
                    visitor.leaf(entry, raw, level, Gfn::new(gfn));
                }
                (Entry::Table(child), Some(lower)) => {
                    let child = TableRef::linked(child);
                    if let more @ Progress::More(_) = self.table(child, lower, gfn, visitor) {
                        return more;
                    }
                    let covered = self.sweep.range.start.raw() <= gfn && gfn + pages <= self.end;
                    visitor.table(memory, entry, child, covered);
                }
                (Entry::Absent, _) | (Entry::Table(_), None) => self.budget -= 1,
            }
        }
        Progress::Done
    }
}

impl<F: Format> Table<F> {
    pub(super) fn walk<M: TableMemory>(
        &self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        visitor: &mut impl Visitor<M>,
    ) -> Progress {
        let end = sweep.range.end.raw().min(self.limit());
        if sweep.next.raw() >= end {
            return Progress::Done;
        }
        let mut walk = Walk {
            format: self.format,
            memory,
            sweep,
            end,
            budget: budget.max(1),
        };
        let progress = walk.table(self.root_ref(), self.top, 0, visitor);
        if progress == Progress::Done {
            sweep.next = Gfn::new(end);
        }
        progress
    }

    /// Unmaps a range. Every page and every table that lies whole in the range and is empty
    /// afterwards goes to `gather`, which must see a TLB flush before the tables are freed, and
    /// before anybody relies on a page being out of the guest's reach.
    pub fn zap<M: TableMemory, G: Gather>(
        &mut self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        gather: &mut G,
    ) -> Progress {
        let mut counts = self.counts;
        let mut zap = Zap {
            format: self.format,
            counts: &mut counts,
            gather,
        };
        let progress = self.walk(memory, sweep, budget, &mut zap);
        self.counts = counts;
        progress
    }

    /// Clears the accessed flags of a range, and tells which pages had it set. Until TLBs are
    /// flushed, some uses will go unnoticed.
    pub fn test_and_clear_accessed<M: TableMemory>(
        &mut self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        on_leaf: impl FnMut(Gfn, Leaf),
    ) -> Progress {
        let mut clear = Clear {
            format: self.format,
            mask: self.format.accessed_mask(),
            on_leaf,
        };
        self.walk(memory, sweep, budget, &mut clear)
    }

    /// Shows every page of a range, in order.
    pub fn for_each_leaf<M: TableMemory>(
        &self,
        memory: &M,
        sweep: &mut Sweep,
        budget: usize,
        on_leaf: impl FnMut(Gfn, Leaf),
    ) -> Progress {
        let mut show = Show {
            format: self.format,
            on_leaf,
        };
        self.walk(memory, sweep, budget, &mut show)
    }
}

struct Zap<'a, F, G> {
    format: F,
    counts: &'a mut Counts,
    gather: &'a mut G,
}

impl<F: Format, G: Gather, M: TableMemory> Visitor<M> for Zap<'_, F, G> {
    fn leaf(&mut self, entry: &AtomicU64, _raw: u64, level: Level, gfn: Gfn) {
        // What was there at the exchange counts: hardware may have set a flag since the look.
        let raw = entry.swap(0, Ordering::AcqRel);
        if let Entry::Leaf(leaf) = self.format.decode(raw, level) {
            self.counts.remove_leaf(leaf.size);
            self.gather.leaf(gfn, leaf);
        }
    }

    fn table(&mut self, memory: &M, entry: &AtomicU64, table: TableRef, covered: bool) {
        // Between two steps somebody may have mapped a page in a part that was done.
        let empty = |entry: &AtomicU64| entry.load(Ordering::Relaxed) == 0;
        if covered && memory.entries(table).iter().all(empty) {
            entry.store(0, Ordering::Release);
            self.counts.remove_table();
            self.gather.table(TableFrame::unlinked(table));
        }
    }
}

struct Clear<F, C> {
    format: F,
    mask: u64,
    on_leaf: C,
}

impl<F: Format, C: FnMut(Gfn, Leaf), M: TableMemory> Visitor<M> for Clear<F, C> {
    fn leaf(&mut self, entry: &AtomicU64, raw: u64, level: Level, gfn: Gfn) {
        // Without hardware flags every page counts as used.
        let raw = match self.mask {
            0 => raw,
            mask if raw & mask == 0 => return,
            mask => entry.fetch_and(!mask, Ordering::AcqRel),
        };
        if let Entry::Leaf(leaf) = self.format.decode(raw, level) {
            (self.on_leaf)(gfn, leaf);
        }
    }
}

struct Show<F, C> {
    format: F,
    on_leaf: C,
}

impl<F: Format, C: FnMut(Gfn, Leaf), M: TableMemory> Visitor<M> for Show<F, C> {
    fn leaf(&mut self, _entry: &AtomicU64, raw: u64, level: Level, gfn: Gfn) {
        if let Entry::Leaf(leaf) = self.format.decode(raw, level) {
            (self.on_leaf)(gfn, leaf);
        }
    }
}

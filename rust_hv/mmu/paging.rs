// SPDX-License-Identifier: GPL-2.0

//! The tables of a VM: one interface, whatever stands between the guest's memory and the host's.
//!
//! | Mode | What the CPU walks | How guests' changes of their own tables are followed |
//! |---|---|---|
//! | [`Mode::Nested`] | the guest's tables, then ours | not at all: that is the CPU's business |
//! | [`Mode::Shadow`], virtual | ours | when the guest invalidates (a virtual TLB) |
//! | [`Mode::Shadow`], exact | ours | each write is executed here (brute force) |
//!
//! What guests do is in `vcpu`; this is what the host and the dirty log need of all of them.
//! Everything here that changes something is called by whoever holds `Mmu::state` alone.

use super::owners::Notes;
use super::unlinked::Gone;
use super::{TableCounts, STEP};
use crate::host::tables::Tables;
use crate::model::arch::addr::{Gfn, GfnRange};
use crate::model::memory::dirty::WORD_PAGES;
use crate::model::paging::format::Leaf;
use crate::model::paging::frames::TableMemory;
use crate::model::paging::nested::Nested;
use crate::model::paging::shadow::{self, Cursor, Shadow};
use crate::model::paging::sweep::{Progress, Sweep};
use crate::model::paging::table::Table;
use crate::model::paging::PageSize;
use kernel::prelude::*;

/// Shadow tables in the kernel's memory.
pub(super) type Shadows = Shadow<KVVec<shadow::Slot>, KVVec<u32>, Notes>;

/// Where a change of a range of guest frames stands that is made in steps.
pub(super) struct Steps {
    range: GfnRange,
    sweep: Sweep,
    cursor: Cursor,
}

impl Steps {
    pub(super) fn new(range: GfnRange) -> Self {
        Self {
            range,
            sweep: Sweep::new(range),
            cursor: Cursor::default(),
        }
    }
}

/// What every mode can do.
pub(super) trait Paging {
    /// Unmaps some of a range.
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        gone: &mut Gone<'_, '_>,
    ) -> Progress;

    /// Withholds the right to write from some of a range. `stale` becomes true when TLBs must be
    /// flushed for it.
    fn track(&mut self, memory: &Tables<'_>, steps: &mut Steps, stale: &mut bool) -> Progress;

    /// Gives that right back, where it is known without another fault.
    fn untrack(&mut self, memory: &Tables<'_>, steps: &mut Steps) -> Progress;

    /// As [`Paging::track`], for the pages from `first` on whose bit is set. True when TLBs must be
    /// flushed.
    fn track_pages(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool;

    /// The same where the flags of small pages were taken before.
    fn track_larger(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool {
        self.track_pages(memory, first, bits)
    }

    /// Tables are in the way of a page of this size, whatever they map.
    fn is_cut(&self, memory: &Tables<'_>, gfn: Gfn, size: PageSize) -> bool;

    /// Whether some of a range was used since the last time, if `clear`.
    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool);

    /// How much is mapped, and with how many tables.
    fn counts(&self) -> TableCounts;

    /// Calls `f` for each page that a guest frame is in: at most one in nested tables, and the large
    /// one last in others.
    fn for_each_mapping(&self, memory: &Tables<'_>, gfn: Gfn, f: impl FnMut(Gfn, Leaf));

    /// Calls `f` for each page of a range, of 2 MiB at most.
    fn for_each_page(&self, memory: &Tables<'_>, range: GfnRange, f: impl FnMut(Gfn, Leaf));

    /// Calls `f` for some of all leaves, and says whether it is the first one of its page.
    fn for_each_leaf(
        &self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        f: impl FnMut(Gfn, Leaf, bool),
    ) -> Progress;
}

/// Leaves of nested tables that are looked at in one step.
const LEAVES: usize = 256;

impl Paging for Table<Nested> {
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        gone: &mut Gone<'_, '_>,
    ) -> Progress {
        self.zap(memory, &mut steps.sweep, STEP, gone)
    }

    fn track(&mut self, memory: &Tables<'_>, steps: &mut Steps, stale: &mut bool) -> Progress {
        Table::track(self, memory, &mut steps.sweep, STEP, stale)
    }

    fn untrack(&mut self, memory: &Tables<'_>, steps: &mut Steps) -> Progress {
        Table::untrack(self, memory, &mut steps.sweep, STEP)
    }

    fn track_pages(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool {
        Table::track_pages(self, memory, first, bits)
    }

    fn track_larger(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool {
        Table::track_larger(self, memory, first, bits)
    }

    fn is_cut(&self, memory: &Tables<'_>, gfn: Gfn, size: PageSize) -> bool {
        self.end_of_walk(memory, gfn) < size.level()
    }

    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool) {
        let mut young = false;
        let sweep = &mut steps.sweep;
        let progress = if clear {
            self.test_and_clear_accessed(memory, sweep, STEP, |_, _| young = true)
        } else {
            Table::for_each_leaf(self, memory, sweep, STEP, |_, leaf| young |= leaf.accessed)
        };
        (progress, young)
    }

    fn counts(&self) -> TableCounts {
        let counts = Table::counts(self);
        TableCounts {
            tables: counts.tables,
            leaves: counts.leaves,
        }
    }

    fn for_each_mapping(&self, memory: &Tables<'_>, gfn: Gfn, mut f: impl FnMut(Gfn, Leaf)) {
        let leaf = gfn.base().and_then(|gpa| self.lookup(memory, gpa));
        if let Some(leaf) = leaf {
            f(Gfn::new(gfn.raw() & !(leaf.size.pages() - 1)), leaf);
        }
    }

    fn for_each_page(&self, memory: &Tables<'_>, range: GfnRange, f: impl FnMut(Gfn, Leaf)) {
        // One step: a table has no more entries than this.
        let most = PageSize::Size2M.pages() as usize;
        let progress = Table::for_each_leaf(self, memory, &mut Sweep::new(range), most, f);
        debug_assert!(progress == Progress::Done);
    }

    fn for_each_leaf(
        &self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        mut f: impl FnMut(Gfn, Leaf, bool),
    ) -> Progress {
        Table::for_each_leaf(self, memory, &mut steps.sweep, LEAVES, |gfn, leaf| {
            f(gfn, leaf, true)
        })
    }
}

impl Paging for Shadows {
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        gone: &mut Gone<'_, '_>,
    ) -> Progress {
        let progress = Shadow::unmap(self, memory, steps.range, &mut steps.cursor);
        // The host may be waiting.
        self.census.settle_gone();
        gone.unlinked.note(self);
        progress
    }

    fn track(&mut self, memory: &Tables<'_>, steps: &mut Steps, stale: &mut bool) -> Progress {
        let progress = self.protect(memory, steps.range, &mut steps.cursor);
        *stale |= self.stale().is_some();
        progress
    }

    /// A write fault does it, page by page.
    fn untrack(&mut self, _memory: &Tables<'_>, _steps: &mut Steps) -> Progress {
        Progress::Done
    }

    fn track_pages(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool {
        for page in (0..WORD_PAGES).filter(|page| bits >> page & 1 != 0) {
            let gfn = Gfn::new(first.raw().wrapping_add(page));
            let range = GfnRange::new(gfn, Gfn::new(gfn.raw().saturating_add(1)));
            let mut cursor = Cursor::default();
            while self.protect(memory, range, &mut cursor) != Progress::Done {}
        }
        self.stale().is_some()
    }

    /// Where the guest has a large page. Its own small ones are in the way of nothing, and none is larger
    /// than 2 MiB.
    fn is_cut(&self, _memory: &Tables<'_>, gfn: Gfn, _size: PageSize) -> bool {
        self.is_in_pieces(gfn)
    }

    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool) {
        Shadow::young(self, memory, steps.range, &mut steps.cursor, clear)
    }

    fn counts(&self) -> TableCounts {
        let [small, large] = self.counts.leaves;
        TableCounts {
            tables: self.counts.tables.wrapping_mul(shadow::FRAMES as u64),
            leaves: [small, large, 0],
        }
    }

    fn for_each_mapping(&self, memory: &Tables<'_>, gfn: Gfn, f: impl FnMut(Gfn, Leaf)) {
        Shadow::for_each_mapping(self, memory, gfn, f);
    }

    fn for_each_page(&self, memory: &Tables<'_>, range: GfnRange, mut f: impl FnMut(Gfn, Leaf)) {
        let most = PageSize::Size2M.pages() as usize;
        for gfn in (range.start.raw()..range.end.raw()).take(most) {
            Shadow::for_each_mapping(self, memory, Gfn::new(gfn), |first, leaf| {
                // A large page once.
                if first.raw() == gfn || gfn == range.start.raw() {
                    f(first, leaf);
                }
            });
        }
    }

    fn for_each_leaf(
        &self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        f: impl FnMut(Gfn, Leaf, bool),
    ) -> Progress {
        Shadow::for_each_leaf(self, memory, &mut steps.cursor, f)
    }
}

/// The tables of a VM. Give them to [`Mode::destroy`].
// One for each VM, and moved when it is chosen: no box is needed.
#[allow(clippy::large_enum_variant)]
pub(super) enum Mode {
    /// The CPU's own second stage.
    Nested(Table<Nested>),
    /// In place of the guest's tables.
    Shadow(Shadows),
}

macro_rules! either {
    ($mode:expr, $tables:ident => $what:expr) => {
        match $mode {
            Mode::Nested($tables) => $what,
            Mode::Shadow($tables) => $what,
        }
    };
}

impl Mode {
    /// Gives up all frames, and tells of the leaves of nested tables, or those who hear of others.
    /// Nothing walks the tables any more.
    pub(super) fn destroy(self, memory: &mut impl TableMemory, leaf: impl FnMut(Gfn, Leaf)) {
        match self {
            Self::Nested(table) => table.destroy(memory, leaf),
            Self::Shadow(shadow) => shadow.destroy(memory).end(),
        }
    }
}

impl Paging for Mode {
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        gone: &mut Gone<'_, '_>,
    ) -> Progress {
        either!(self, tables => Paging::unmap(tables, memory, steps, gone))
    }

    fn track(&mut self, memory: &Tables<'_>, steps: &mut Steps, stale: &mut bool) -> Progress {
        either!(self, tables => Paging::track(tables, memory, steps, stale))
    }

    fn untrack(&mut self, memory: &Tables<'_>, steps: &mut Steps) -> Progress {
        either!(self, tables => Paging::untrack(tables, memory, steps))
    }

    fn track_pages(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool {
        either!(self, tables => Paging::track_pages(tables, memory, first, bits))
    }

    fn track_larger(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool {
        either!(self, tables => Paging::track_larger(tables, memory, first, bits))
    }

    fn is_cut(&self, memory: &Tables<'_>, gfn: Gfn, size: PageSize) -> bool {
        either!(self, tables => tables.is_cut(memory, gfn, size))
    }

    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool) {
        either!(self, tables => Paging::young(tables, memory, steps, clear))
    }

    fn counts(&self) -> TableCounts {
        either!(self, tables => Paging::counts(tables))
    }

    fn for_each_mapping(&self, memory: &Tables<'_>, gfn: Gfn, f: impl FnMut(Gfn, Leaf)) {
        either!(self, tables => Paging::for_each_mapping(tables, memory, gfn, f));
    }

    fn for_each_page(&self, memory: &Tables<'_>, range: GfnRange, f: impl FnMut(Gfn, Leaf)) {
        either!(self, tables => Paging::for_each_page(tables, memory, range, f));
    }

    fn for_each_leaf(
        &self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        f: impl FnMut(Gfn, Leaf, bool),
    ) -> Progress {
        either!(self, tables => Paging::for_each_leaf(tables, memory, steps, f))
    }
}

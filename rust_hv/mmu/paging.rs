// SPDX-License-Identifier: GPL-2.0

//! The tables of a VM: one interface, whatever stands between the guest's memory and the host's.
//!
//! | Mode | What the CPU walks | How guests' changes of their own tables are followed |
//! |---|---|---|
//! | [`Mode::Nested`] | the guest's tables, then ours | not at all: that is the CPU's business |
//! | [`Mode::Shadow`], virtual | ours | when the guest invalidates (a virtual TLB) |
//! | [`Mode::Shadow`], exact | ours | each write is executed here (brute force) |
//!
//! What a fault does is in `fault` for the first and in `shadow` for the others; this is what the
//! host and the dirty log need of all of them. Everything here that changes something is called by
//! whoever holds `Mmu::state` alone.

use super::{TableCounts, Unlinked, STEP};
use crate::host::tables::Tables;
use crate::model::arch::addr::{Gfn, GfnRange};
use crate::model::memory::dirty::WORD_PAGES;
use crate::model::paging::format::Leaf;
use crate::model::paging::frames::TableMemory;
use crate::model::paging::nested::Nested;
use crate::model::paging::shadow::{self, Cursor, Shadow};
use crate::model::paging::sweep::{Progress, Sweep};
use crate::model::paging::table::Table;
use kernel::prelude::*;

/// Shadow tables in the kernel's memory.
pub(super) type Shadows = Shadow<KVVec<shadow::Slot>, KVVec<u32>>;

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
        unlinked: &mut Unlinked<'_>,
    ) -> Progress;

    /// Withholds the right to write from some of a range. `stale` becomes true when TLBs must be
    /// flushed for it.
    fn track(&mut self, memory: &Tables<'_>, steps: &mut Steps, stale: &mut bool) -> Progress;

    /// Gives that right back, where it is known without another fault.
    fn untrack(&mut self, memory: &Tables<'_>, steps: &mut Steps) -> Progress;

    /// As [`Paging::track`], for the pages from `first` on whose bit is set. True when TLBs must be
    /// flushed.
    fn track_pages(&mut self, memory: &Tables<'_>, first: Gfn, bits: u64) -> bool;

    /// Small pages are mapped here, which are in the way of a large one.
    fn is_cut(&self, memory: &Tables<'_>, gfn: Gfn) -> bool;

    /// Whether some of a range was used since the last time, if `clear`.
    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool);

    /// How much is mapped, and with how many tables.
    fn counts(&self) -> TableCounts;
}

impl Paging for Table<Nested> {
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        unlinked: &mut Unlinked<'_>,
    ) -> Progress {
        self.zap(memory, &mut steps.sweep, STEP, unlinked)
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

    fn is_cut(&self, memory: &Tables<'_>, gfn: Gfn) -> bool {
        !self.is_large(memory, gfn)
    }

    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool) {
        let mut young = false;
        let sweep = &mut steps.sweep;
        let progress = if clear {
            self.test_and_clear_accessed(memory, sweep, STEP, |_, _| young = true)
        } else {
            self.for_each_leaf(memory, sweep, STEP, |_, leaf| young |= leaf.accessed)
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
}

impl Paging for Shadows {
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        unlinked: &mut Unlinked<'_>,
    ) -> Progress {
        let progress = Shadow::unmap(self, memory, steps.range, &mut steps.cursor);
        unlinked.note(self);
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

    /// Where the guest has a large page. Its own small ones are in the way of nothing.
    fn is_cut(&self, _memory: &Tables<'_>, gfn: Gfn) -> bool {
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
}

/// The tables of a VM. Give them to [`Mode::destroy`].
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
    /// Gives up all frames, and tells of the leaves of nested tables. Nothing walks the tables any more.
    pub(super) fn destroy(self, memory: &mut impl TableMemory, leaf: impl FnMut(Gfn, Leaf)) {
        match self {
            Self::Nested(table) => table.destroy(memory, leaf),
            Self::Shadow(shadow) => shadow.destroy(memory),
        }
    }
}

impl Paging for Mode {
    fn unmap(
        &mut self,
        memory: &Tables<'_>,
        steps: &mut Steps,
        unlinked: &mut Unlinked<'_>,
    ) -> Progress {
        either!(self, tables => Paging::unmap(tables, memory, steps, unlinked))
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

    fn is_cut(&self, memory: &Tables<'_>, gfn: Gfn) -> bool {
        either!(self, tables => tables.is_cut(memory, gfn))
    }

    fn young(&mut self, memory: &Tables<'_>, steps: &mut Steps, clear: bool) -> (Progress, bool) {
        either!(self, tables => Paging::young(tables, memory, steps, clear))
    }

    fn counts(&self) -> TableCounts {
        either!(self, tables => Paging::counts(tables))
    }
}

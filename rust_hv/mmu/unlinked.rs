// SPDX-License-Identifier: GPL-2.0

//! What was taken out of the tables: CPUs have to forget it before its frames are free, and others
//! have to hear of it before the lock is dropped.

use super::cpu_log::Written;
use super::owners::Notes;
use super::paging::Shadows;
use super::{Mmu, STEP};
use crate::host::tables::give_back;
use crate::model::arch::addr::Gfn;
use crate::model::paging::format::Leaf;
use crate::model::paging::frames::{Gather, TableFrame};
use crate::model::paging::PageSize;

/// Tables that one step can unlink: each has 512 entries that were looked at, and one change may
/// end with those above.
const STEP_TABLES: usize = STEP / 512 + 8;

/// Tables that were unlinked, until it is safe to free them; and what the inverted page table has
/// to be told before the lock is dropped.
pub(super) struct Unlinked<'a> {
    tables: [Option<TableFrame>; STEP_TABLES],
    /// What [`crate::model::paging::shadow::Shadow::flushed`] has to hear after the flush.
    stale: Option<u64>,
    pub(super) notes: Notes,
    mmu: &'a Mmu,
}

impl<'a> Unlinked<'a> {
    pub(super) fn new(mmu: &'a Mmu) -> Self {
        Self {
            tables: [const { None }; STEP_TABLES],
            stale: None,
            notes: Notes::new(mmu.inverted, &mmu.owner),
            mmu,
        }
    }

    /// Everything that shadow tables have dropped up to now is to be flushed.
    pub(super) fn note(&mut self, shadow: &Shadows) {
        self.stale = shadow.stale();
        if self.stale.is_some() {
            self.change();
        }
    }

    /// CPUs know something that is not in the tables any more. Under the lock, and behind each change: a
    /// flush that has begun between two of them has not paid for the second.
    pub(super) fn change(&self) {
        self.mmu.tlb.owe();
    }

    /// Makes every CPU forget what was unmapped, here or by somebody who has not come to that yet;
    /// then frees the tables.
    fn finish(&mut self) {
        self.mmu.tlb.settle(&self.mmu.stats);
        for table in self.tables.iter_mut().filter_map(Option::take) {
            give_back(&self.mmu.supply, table);
        }
    }
}

impl Gather for Unlinked<'_> {
    fn leaf(&mut self, gfn: Gfn, leaf: Leaf) {
        // The page was marked dirty when it was mapped writable.
        self.change();
        self.notes.unmapped(gfn, &leaf);
    }

    fn table(&mut self, frame: TableFrame) {
        if self.tables.iter().all(Option::is_some) {
            // More than a step should bring: flush early, which is allowed under the lock.
            self.finish();
        }
        self.change();
        if let Some(place) = self.tables.iter_mut().find(|place| place.is_none()) {
            *place = Some(frame);
        }
    }
}

impl Drop for Unlinked<'_> {
    /// Not under the lock.
    fn drop(&mut self) {
        self.finish();
        if let Some(stale) = self.stale {
            if let Some(shadow) = self.mmu.state.write().tree.shadow() {
                shadow.flushed(stale);
            }
        }
    }
}

/// The same while the lock is held, and what it means for the dirty logs.
pub(super) struct Gone<'a, 'b> {
    pub(super) unlinked: &'a mut Unlinked<'b>,
    /// Where the dirty flag of a page that goes says that it was written.
    written: Option<Written<'a>>,
}

impl<'a, 'b> Gone<'a, 'b> {
    pub(super) fn new(unlinked: &'a mut Unlinked<'b>, written: Option<Written<'a>>) -> Self {
        Self { unlinked, written }
    }
}

impl Gather for Gone<'_, '_> {
    fn leaf(&mut self, gfn: Gfn, leaf: Leaf) {
        if let Some(written) = &mut self.written {
            // Nobody writes to larger ones without a fault.
            if leaf.dirty && leaf.size == PageSize::Size4K {
                written.mark(gfn);
            }
        }
        self.unlinked.leaf(gfn, leaf);
    }

    fn table(&mut self, frame: TableFrame) {
        self.unlinked.table(frame);
    }
}

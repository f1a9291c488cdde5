// SPDX-License-Identifier: GPL-2.0

//! Dirty logs where CPUs note writes themselves: a small page of a slot that logs is tracked by its
//! dirty flag (`Notice`), which the guest's first write sets without an exit.
//!
//! # Flags alone
//!
//! Whoever is about to take bits of a slot looks through its tables, brings the flags that are set into
//! the bitmap, and clears them ([`Mmu::gather`]); a page that is unmapped takes its flag with it, so
//! whoever unmaps it looks as well ([`Written`], in `unlinked`). No write is lost:
//!
//! * A CPU that still has the page with its flag set may write without setting it again, until it is
//!   flushed. The flush comes before the call that took the flag returns, so user space, which has the
//!   bit or finds it in the bitmap, copies the page after such a write.
//! * Page tables that no CPU has used since the last look are left out. Whether one was is to be seen in
//!   the entry above, from one such flush to the next (`Table::take_used`): looks at a slot come one
//!   after the other, under `slots_lock`.
//! * A CPU that sets the flag later finds it clear, and sets it, whatever becomes of the bit: the next
//!   one who looks finds it.
//! * A page that goes is out of every CPU's reach before the host hears that it is, and its flag has
//!   been brought into the bitmap before that, under the same lock.
//!
//! # A log (page-modification logging)
//!
//! The CPU also puts the page into the vCPU's own log. What is in there gets into the slot's bitmap when
//! the log is full, when user space reads or clears a dirty log, and when the vCPU goes: nobody looks
//! through tables. Nobody is interrupted for that either: the log is memory. No write is lost:
//!
//! * A CPU logs a page *before* it sets the page's flag and writes. Should a bit be taken, and the
//!   flag be cleared, in between, the flag would be set without anybody knowing. So who has
//!   brought pages from a log into the bitmap waits until no CPU is in the middle of that, before
//!   bits are taken ([`Mmu::gather_logs`]).
//! * A vCPU that brings its own has left the guest.
//! * A slot that moves takes its bitmap with it, and pages that were written before are in the logs
//!   under their old number. Until all of that is in the bitmap, the slot counts as being in both
//!   places.
//! * A log that begins knows nothing of writes before: what the CPUs' logs hold of the slot is taken
//!   from them first.

use super::dirty::{Bitmap, FlushLater, Logs};
use super::mapper::{Mapper, Mappers};
use super::{Mmu, State, Tree, STEP};
use crate::host::tables::Tables;
use crate::host::task;
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::Gfn;
use crate::model::memory::slots::{Change, Slot, SlotView};
use crate::model::paging::format::Notice;
use crate::model::paging::sweep::{Progress, Sweep};
use kernel::prelude::*;
use kernel::sync::Arc;

/// Where it is noted that guests have written to pages, wherever those are.
pub(super) struct Written<'a> {
    slots: SlotView<'a>,
    logs: &'a Logs,
    moved: Option<&'a Slot>,
    /// The next page is likely to be in the same slot.
    last: Option<(&'a Slot, &'a Bitmap)>,
}

impl<'a> Written<'a> {
    fn new(slots: SlotView<'a>, logs: &'a Logs, moved: Option<&'a Slot>) -> Self {
        Self {
            slots,
            logs,
            moved,
            last: None,
        }
    }

    /// Notes a page.
    pub(super) fn mark(&mut self, gfn: Gfn) {
        if let Some(moved) = self.moved {
            self.logs.mark(moved, gfn);
        }
        if !self.last.is_some_and(|(slot, _)| slot.gfns().contains(gfn)) {
            let slot = self.slots.find(gfn);
            self.last = slot.and_then(|slot| Some((slot, self.logs.find(slot.id)?)));
        }
        if let Some((slot, bitmap)) = self.last {
            if let Some(page) = slot.index(gfn) {
                bitmap.mark(page);
            }
        }
    }
}

impl State {
    fn written(&self) -> Written<'_> {
        Written::new(self.view(), &self.logs, self.moved.as_ref())
    }

    /// Brings what a vCPU has written into the bitmaps.
    pub(super) fn gather_log(&self, mapper: &Mapper) -> bool {
        let Some(log) = mapper.log() else {
            return false;
        };
        let mut written = self.written();
        log.take(|gfn| written.mark(gfn))
    }
}

impl Mmu {
    /// The log of a new vCPU, where CPUs have one for it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new_log(&self) -> Result<Option<Arc<WriteLog>>> {
        match self.notice() == Notice::Log {
            true => WriteLog::new(self.supply.place()).map(Some),
            false => Ok(None),
        }
    }

    /// Brings what CPUs have noted of a slot's pages into its bitmap, before bits are taken from that.
    pub(super) fn gather(&self, slot: &Slot, flush: &FlushLater<'_>) {
        match self.notice() {
            Notice::Fault => {}
            Notice::Flag => self.gather_flags(slot, flush),
            Notice::Log => self.gather_logs(),
        }
    }

    /// The same of flags in the tables.
    fn gather_flags(&self, slot: &Slot, flush: &FlushLater<'_>) {
        let memory = Tables::existing(&self.supply);
        let mut sweep = Sweep::new(slot.gfns());
        loop {
            let state = self.state.read();
            let (Some(table), Some(bitmap)) = (state.tree.walked(), state.logs.find(slot.id))
            else {
                return;
            };
            let mut stale = false;
            let mark = |first, bits| {
                if let Some(page) = slot.index(first) {
                    bitmap.mark_run(page, bits);
                }
            };
            let progress = table.take_written(&memory, &mut sweep, STEP, &mut stale, mark);
            flush.note(stale);
            drop(state);
            if progress == Progress::Done {
                return;
            }
            task::cond_resched();
        }
    }

    /// The state by its parts, for whoever takes pages away; with the logs, where the flags of those
    /// pages matter to one.
    pub(super) fn parts<'a>(
        &self,
        state: &'a mut State,
    ) -> (&'a mut Tree, &'a Mappers, Option<Written<'a>>) {
        let flags = state.logs.len() != 0 && self.notice() == Notice::Flag;
        let State {
            tree,
            mappers,
            slots,
            logs,
            moved,
            ..
        } = state;
        let written = flags.then(|| Written::new(SlotView::new(slots), logs, moved.as_ref()));
        (tree, mappers, written)
    }

    /// Brings what CPUs have logged into the bitmaps.
    pub(super) fn gather_logs(&self) {
        if self.notice() != Notice::Log {
            return;
        }
        {
            let state = self.state.read();
            let mut any = false;
            for mapper in state.mappers.iter() {
                any |= state.gather_log(mapper);
            }
            if any {
                self.tlb.owe();
            }
        }
        self.tlb.settle(&self.stats);
    }

    /// The CPU has no room left in a vCPU's log, which is not in its guest.
    pub(super) fn empty_log(&self, mapper: &Mapper) {
        if let Some(log) = mapper.log() {
            let state = self.state.read();
            let mut written = state.written();
            log.take_all(|gfn| written.mark(gfn));
        }
    }

    /// Before a change of the slots: what is known of the old ones, where that matters to the new.
    pub(super) fn begin_change(&self, change: &Change) {
        if matches!(change, Change::Flags { .. } | Change::Create(_)) {
            self.gather_logs();
        }
    }

    /// After what was mapped of a slot that has moved is gone.
    pub(super) fn end_move(&self) {
        if self.state.read().moved.is_some() {
            self.gather_logs();
            self.state.write().moved = None;
        }
    }
}

/// The slot under whose old place writes may still come to light after a change.
pub(super) fn moved(change: &Change) -> Option<Slot> {
    match change {
        Change::Move { old, new } if old.flags.log_dirty() && new.flags.log_dirty() => Some(*old),
        _ => None,
    }
}

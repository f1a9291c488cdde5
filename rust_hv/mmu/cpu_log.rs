// SPDX-License-Identifier: GPL-2.0

//! Dirty logs where CPUs log writes themselves (page-modification logging).
//!
//! A small page of a slot that logs is tracked by its dirty flag (`Nested::logs_writes`): the guest's
//! first write sets it and puts the page into the vCPU's own log, without an exit. What is in
//! there gets into the slot's bitmap when the log is full, when user space reads or clears a dirty
//! log, and when the vCPU goes. Nobody is interrupted for that: the log is memory.
//!
//! # No write is lost
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

use super::choice::PagingMode;
use super::dirty::Bitmap;
use super::mapper::Mapper;
use super::{Mmu, State};
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::Gfn;
use crate::model::memory::slots::{Change, Slot};
use kernel::prelude::*;
use kernel::sync::Arc;

impl State {
    /// Notes that a guest has written to a page, wherever that is. The next one is likely to be in
    /// the same slot.
    fn writer(&self) -> impl FnMut(Gfn) + '_ {
        let mut last: Option<(&Slot, &Bitmap)> = None;
        move |gfn| {
            if let Some(moved) = &self.moved {
                self.logs.mark(moved, gfn);
            }
            if !last.is_some_and(|(slot, _)| slot.gfns().contains(gfn)) {
                let slot = self.view().find(gfn);
                last = slot.and_then(|slot| Some((slot, self.logs.find(slot.id)?)));
            }
            if let Some((slot, bitmap)) = last {
                if let Some(page) = slot.index(gfn) {
                    bitmap.mark(page);
                }
            }
        }
    }

    /// Brings what a vCPU has written into the bitmaps.
    pub(super) fn gather_log(&self, mapper: &Mapper) -> bool {
        mapper.log().is_some_and(|log| log.take(self.writer()))
    }
}

impl Mmu {
    /// The log of a new vCPU, where CPUs have one for it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new_log(&self) -> Result<Option<Arc<WriteLog>>> {
        let nested = self.paging_mode() == PagingMode::Nested;
        match nested && self.format.logs_writes() {
            true => WriteLog::new(self.supply.place()).map(Some),
            false => Ok(None),
        }
    }

    /// Brings what CPUs have logged into the bitmaps, before bits are taken from them.
    pub(super) fn gather_logs(&self) {
        if !self.format.logs_writes() {
            return;
        }
        let mut any = false;
        {
            let state = self.state.read();
            for mapper in state.mappers.iter() {
                any |= state.gather_log(mapper);
            }
        }
        if any {
            self.tlb.flush(&self.stats);
        }
    }

    /// The CPU has no room left in a vCPU's log, which is not in its guest.
    pub(super) fn empty_log(&self, mapper: &Mapper) {
        if let Some(log) = mapper.log() {
            let state = self.state.read();
            log.take_all(state.writer());
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

/// The slot under whose old place writes may still be logged after a change.
pub(super) fn moved(change: &Change) -> Option<Slot> {
    match change {
        Change::Move { old, new } if old.flags.log_dirty() && new.flags.log_dirty() => Some(*old),
        _ => None,
    }
}

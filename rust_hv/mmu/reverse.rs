// SPDX-License-Identifier: GPL-2.0

//! Reverse unmapping: a frame is taken from all guests that have it, as the inverted page table
//! tells.
//!
//! The host names user addresses when it takes memory from a VMM, and the slots lead from there to
//! guest frames. This is for those who know a frame and nothing else: what is about to be offlined or
//! tested, or whose owner is in doubt. The VMMs keep their memory, and a guest that goes on using the
//! frame faults it in again.

use super::owners::OWNERS;
use super::Mmu;
use crate::host::bindings::rusthv_unmap;
use crate::host::inverted::{InvertedTable, INVERTED};
use crate::host::task;
use crate::model::arch::addr::{Gfn, GfnRange, Hpa};
use crate::model::memory::inverted::Alias;
use kernel::prelude::*;

/// Mappings that are looked up at once, with a spinlock held.
const BATCH: usize = 16;

/// The first mappings of a frame behind `last`, in the order of owners and guest frames.
fn mappings(table: &InvertedTable, hpa: Hpa, last: Option<Alias>) -> [Option<Alias>; BATCH] {
    let mut first = [None; BATCH];
    table.for_each_alias(hpa, |alias| {
        if last.is_some_and(|last| alias <= last) {
            return;
        }
        let mut alias = alias;
        for place in &mut first {
            match place {
                Some(there) if alias < *there => core::mem::swap(there, &mut alias),
                Some(_) => {}
                None => {
                    *place = Some(alias);
                    return;
                }
            }
        }
    });
    first
}

/// `RUSTHV_UNMAP_FRAME`. Each mapping that there is when the call comes is gone for a moment at least,
/// and no CPU has it in its TLB then.
///
/// # Errors
///
/// `EINVAL` for fields that are not 0; `ENODEV` while the module comes or goes; `EINTR` for a task
/// that is killed.
pub fn unmap_frame(asked: &rusthv_unmap) -> Result<rusthv_unmap> {
    if asked.reserved != [0; 6] || asked.unmapped != 0 {
        return Err(EINVAL);
    }
    let (table, owners) = (INVERTED.get()?, OWNERS.get()?);
    let mut answer = *asked;
    let mut last = None;
    loop {
        owners.settle();
        let batch = mappings(table, Hpa::new(asked.hpa), last);
        // A mapping that comes back at once is not found again: each one is behind the last.
        for alias in batch.into_iter().flatten() {
            last = Some(alias);
            if let Some(member) = owners.find(alias.owner) {
                member.mmu.unmap(&alias);
                answer.unmapped += 1;
            }
        }
        if batch.last().is_none_or(Option::is_none) {
            return Ok(answer);
        }
        if task::is_dying() {
            return Err(EINTR);
        }
        task::cond_resched();
    }
}

impl Mmu {
    /// Unmaps the guest frames of a mapping, whatever they are mapped to by now.
    fn unmap(&self, alias: &Alias) {
        let end = alias.gfn.raw().saturating_add(alias.size.pages());
        self.zap(GfnRange::new(alias.gfn, Gfn::new(end)), true);
    }
}

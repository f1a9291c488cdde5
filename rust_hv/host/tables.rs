// SPDX-License-Identifier: GPL-2.0

//! Page-table frames for `model::paging`: real ones.
//!
//! Soundness rests on the rules at the top of `model/paging/frames.rs`: a [`TableRef`] is only
//! made from a frame that [`Tables::alloc`] gave out and that was not given to [`Tables::free`]
//! since, because the editor alone makes them, and an entry of a tree alone leads to one.

use super::frame::Frame;
use super::pool::Reserve;
use super::supply::Supply;
use crate::model::paging::frames::{TableFrame, TableMemory, TableRef, ENTRIES};
use core::sync::atomic::AtomicU64;

/// The host's memory as page tables, with a reserve to take new ones from.
pub struct Tables<'a> {
    reserves: &'a mut [Reserve],
    supply: &'a Supply,
}

impl<'a> Tables<'a> {
    /// For changes that may need tables.
    #[inline]
    pub fn with_reserve(supply: &'a Supply, reserve: &'a mut Reserve) -> Self {
        Self {
            reserves: core::slice::from_mut(reserve),
            supply,
        }
    }

    /// For changes that may need more than one reserve has.
    pub fn with_reserves(supply: &'a Supply, reserves: &'a mut [Reserve]) -> Self {
        Self { reserves, supply }
    }

    /// For changes that need none.
    #[inline]
    pub fn existing(supply: &'a Supply) -> Self {
        Self {
            reserves: &mut [],
            supply,
        }
    }
}

impl TableMemory for Tables<'_> {
    #[inline]
    fn alloc(&mut self) -> Option<TableFrame> {
        let frame = self.reserves.iter_mut().find_map(Reserve::take)?;
        Some(TableFrame::new(frame.into_hpa()))
    }

    fn free(&mut self, frame: TableFrame) {
        give_back(self.supply, frame);
    }

    #[inline]
    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        // SAFETY: A living table, see the module's text: 4 KiB in the direct map that hardware and
        // we access as aligned 64-bit words, atomically.
        unsafe { &*Frame::direct_map(table.hpa()).cast() }
    }
}

/// Ends the life of a table that no hardware can reach any more.
pub fn give_back(supply: &Supply, frame: TableFrame) {
    // SAFETY: A `TableFrame` is owned and cannot be copied; its address came from `into_hpa`.
    supply.give(unsafe { Frame::from_hpa(frame.hpa()) });
}

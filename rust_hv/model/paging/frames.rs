// SPDX-License-Identifier: GPL-2.0

//! Table frames: where they come from, who holds them, and where they go.
//!
//! # Who may free what, and when
//!
//! A table frame is in one of two states. *Owned*: it is a [`TableFrame`], which cannot be copied.
//! *Linked*: its address is in exactly one entry of one table (or it is the root). The editor
//! alone turns one state into the other.
//!
//! Hardware may walk a linked table at any time, and through its paging-structure caches even a
//! table that was unlinked a moment ago. So the editor never frees what was linked: it makes every
//! entry below non-present first, unlinks the table, and hands the frame to the caller's
//! [`Gather`]. The caller invalidates the TLBs (INVEPT on every CPU that may use the tree), and
//! only then gives the frames to [`TableMemory::free`].
//!
//! Entries are cleared with an exchange, one by one. Hardware that wants to set an accessed or
//! dirty flag afterwards finds the entry gone and faults, so the flags that a [`Gather`] sees are
//! final.
//!
//! Methods that take something out of the tree have it alone: they take `&mut self`, and the
//! caller's lock is what gives it out. Methods that only add take `&self`, and any number of them
//! may run at once ([`super::grow`]). All changes are made by compare-and-exchange: hardware writes
//! flags at the same time.

use super::format::Leaf;
use super::PageSize;
use crate::model::arch::addr::{Gfn, Hpa};
use crate::model::sync::AtomicU64;

/// Entries in a table. The model checker has to follow each of them.
pub const ENTRIES: usize = if cfg!(loom) { 2 } else { 512 };

/// A table that belongs to whoever holds this; see the top of the file.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a table frame that is dropped is lost: give it to TableMemory::free"]
pub struct TableFrame(Hpa);

impl TableFrame {
    /// For implementations of [`TableMemory::alloc`] only: vouches for a zeroed, page-aligned 4 KiB
    /// frame that nobody else uses, and that [`TableMemory::entries`] of the same implementation
    /// can reach until it is given to [`TableMemory::free`].
    #[inline]
    pub const fn new(hpa: Hpa) -> Self {
        Self(hpa)
    }

    /// Where the frame is.
    #[inline]
    pub const fn hpa(&self) -> Hpa {
        self.0
    }

    pub(super) const fn table(&self) -> TableRef {
        TableRef(self.0)
    }

    /// The frame of a table whose only entry has just been cleared.
    pub(in crate::model) const fn unlinked(table: TableRef) -> Self {
        Self(table.0)
    }
}

/// A table that is linked into a tree: made from a frame, or from an entry that the editor wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableRef(Hpa);

impl TableRef {
    /// Where the table is.
    #[inline]
    pub const fn hpa(self) -> Hpa {
        self.0
    }

    /// The table that an entry of the tree refers to; or, for [`crate::model::memory::inverted`],
    /// the page of lines that a directory or a link leads to.
    pub(in crate::model) const fn linked(hpa: Hpa) -> Self {
        Self(hpa)
    }
}

/// Where table frames come from and how they are reached.
///
/// A tree is used with one memory for its whole life.
pub trait TableMemory {
    /// A zeroed frame, or `None` when there is none to be had now. Called under the caller's lock.
    fn alloc(&mut self) -> Option<TableFrame>;

    /// Takes back a frame that no hardware can reach any more.
    fn free(&mut self, frame: TableFrame);

    /// The entries of a living table.
    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES];
}

/// Receives what a change took out of the tree.
pub trait Gather {
    /// A page is no longer mapped as `leaf` says. TLBs may still hold it; the flags are final.
    fn leaf(&mut self, gfn: Gfn, leaf: Leaf);

    /// A table is unlinked. Its entries are all zero, but hardware may still look at it: free it
    /// after the TLB flush, and do not write to it before.
    fn table(&mut self, frame: TableFrame);
}

/// How much a tree holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Table frames, with the root.
    pub tables: u64,
    /// Pages of 4 KiB, 2 MiB and 1 GiB.
    pub leaves: [u64; 3],
}

impl Counts {
    /// Mapped pages of a size.
    #[inline]
    pub const fn mapped(&self, size: PageSize) -> u64 {
        self.leaves[size as usize]
    }

    /// Adds what somebody else has counted.
    #[inline]
    pub fn merge(&mut self, other: &Self) {
        self.tables = self.tables.wrapping_add(other.tables);
        for (count, more) in self.leaves.iter_mut().zip(other.leaves) {
            *count = count.wrapping_add(more);
        }
    }

    #[inline]
    pub(super) fn add_leaves(&mut self, size: PageSize, number: u64) {
        let count = &mut self.leaves[size as usize];
        *count = count.wrapping_add(number);
    }

    #[inline]
    pub(super) fn remove_leaf(&mut self, size: PageSize) {
        let count = &mut self.leaves[size as usize];
        *count = count.wrapping_sub(1);
    }

    #[inline]
    pub(super) fn add_table(&mut self) {
        self.tables = self.tables.wrapping_add(1);
    }

    #[inline]
    pub(super) fn remove_table(&mut self) {
        self.tables = self.tables.wrapping_sub(1);
    }
}

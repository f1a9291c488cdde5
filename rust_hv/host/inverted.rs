// SPDX-License-Identifier: GPL-2.0

//! The inverted page table of the machine: `model::memory::inverted` with the host's locks and
//! frames.
//!
//! Locks: a group's spinlock, and inside it that of the spare lines or of a frame pool. Both are
//! taken inside of `Mmu::state`, by the MMU notifier among others, and never with interrupts off.
//!
//! The host's page of zeroes is not in the table: it belongs to nobody, any number of guest pages
//! may be it, and all of them would be in one chain.

use super::bindings;
use super::frame::node_of;
use super::global::Global;
use super::pool::{self, Pools, Reserve};
use super::supply::Supply;
use super::tables::Tables;
use super::task;
use crate::model::arch::addr::Hpa;
use crate::model::memory::inverted::{
    Added, Alias, Group, Inverted, Locks, Owner, Run, Spare, Usage, GROUPS,
};
use crate::model::paging::frames::{TableFrame, TableMemory, TableRef, ENTRIES};
use core::sync::atomic::AtomicU64;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::sync::{new_spinlock, SpinLock};

/// The table, while the module is loaded.
pub static INVERTED: Global<InvertedTable> = Global::new();

/// A lock in a cache line of its own.
#[pin_data]
#[repr(align(64))]
struct GroupLock {
    #[pin]
    lock: SpinLock<Group>,
}

#[pin_data]
struct HostLocks {
    #[pin]
    groups: [GroupLock; GROUPS],
    #[pin]
    spare: SpinLock<Spare>,
}

impl HostLocks {
    fn new() -> impl PinInit<Self> {
        let group = |_| {
            pin_init!(GroupLock {
                lock <- new_spinlock!(Group::default(), "rusthv_inverted"),
            })
        };
        pin_init!(Self {
            groups <- pin_init::pin_init_array_from_fn(group),
            spare <- new_spinlock!(Spare::default(), "rusthv_inverted_spare"),
        })
    }
}

impl Locks for HostLocks {
    #[inline]
    fn group<R>(&self, index: usize, f: impl FnOnce(&mut Group) -> R) -> R {
        f(&mut self.groups[index % GROUPS].lock.lock())
    }

    #[inline]
    fn spare<R>(&self, f: impl FnOnce(&mut Spare) -> R) -> R {
        f(&mut self.spare.lock())
    }
}

/// Frames that are counted as the table's.
struct Counted<'a, 'b>(&'a mut Tables<'b>);

impl TableMemory for Counted<'_, '_> {
    fn alloc(&mut self) -> Option<TableFrame> {
        let frame = self.0.alloc()?;
        count(&frame, 1);
        Some(frame)
    }

    fn free(&mut self, frame: TableFrame) {
        count(&frame, -1);
        self.0.free(frame);
    }

    #[inline]
    fn entries(&self, table: TableRef) -> &[AtomicU64; ENTRIES] {
        self.0.entries(table)
    }
}

/// Lines that are kept for so many entries, each of which may have to begin one. Twice: the next may come
/// before there are new ones.
fn lines_for(entries: u64) -> i64 {
    entries.saturating_mul(2) as i64
}

fn count(frame: &TableFrame, change: i64) {
    // A frame of the host's has a node.
    pool::INVERTED.add(node_of(frame.hpa()).map_or(0, |node| node as i32), change);
}

/// The inverted page table of all VMs.
pub struct InvertedTable {
    table: KBox<Inverted>,
    locks: Pin<KBox<HostLocks>>,
    supply: Supply,
    zero_page: Hpa,
    /// Pages that should have been added or removed and could not be: a bug of ours.
    pub lost: Atomic<u64>,
}

impl InvertedTable {
    /// An empty table.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(pools: &'static Pools) -> Result<Self> {
        // SAFETY: No preconditions.
        let (seed, zero_page) = unsafe { (bindings::rhv_random(), bindings::rhv_zero_page()) };
        let new = Self {
            table: KBox::new(Inverted::new(seed), GFP_KERNEL)?,
            locks: KBox::pin_init(HostLocks::new(), GFP_KERNEL)?,
            supply: Supply::new(pools),
            zero_page: Hpa::new(zero_page),
            lost: Atomic::new(0),
        };
        // Dropped on failure, with what it has.
        let mut reserve = Reserve::default();
        reserve.fill(&new.supply)?;
        new.grow(&mut reserve)?;
        Ok(new)
    }

    /// True when [`InvertedTable::grow`] should be called soon.
    #[inline]
    pub fn is_short(&self) -> bool {
        self.table.is_short()
    }

    /// Adds a page to the table, with frames from a reserve.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[cold]
    pub fn grow(&self, reserve: &mut Reserve) -> Result {
        let mut memory = Tables::with_reserve(&self.supply, reserve);
        let grown = self.table.grow(&mut Counted(&mut memory), &*self.locks);
        grown.map_err(|_| ENOMEM)
    }

    /// Somebody begins to add pages of which the table hears late, under a lock: up to `entries` at
    /// once. Until [`InvertedTable::stop_expecting`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`: nothing is expected.
    pub fn expect(&self, entries: u64) -> Result {
        self.table.expect(lines_for(entries));
        let made = self.make_lines();
        if made.is_err() {
            self.stop_expecting(entries);
        }
        made
    }

    /// The end of that.
    pub fn stop_expecting(&self, entries: u64) {
        self.table.expect(-lines_for(entries));
    }

    fn make_lines(&self) -> Result {
        let mut reserve = Reserve::default();
        while self.table.lacks_lines(&*self.locks) {
            reserve.fill(&self.supply)?;
            // Does nothing while somebody else does.
            self.grow(&mut reserve)?;
            task::cond_resched();
        }
        reserve.give_back(&self.supply);
        Ok(())
    }

    /// Gives back what the table does not need any more.
    pub fn trim(&self) {
        let mut memory = Tables::existing(&self.supply);
        self.table.trim(&mut Counted(&mut memory), &*self.locks);
    }

    /// True for the host's page of zeroes, which is not in the table.
    #[inline]
    pub fn is_zero_page(&self, hpa: Hpa) -> bool {
        hpa.page_base() == self.zero_page
    }

    /// Adds pages that an owner has mapped, none of them the page of zeroes. Allocates nothing:
    /// lines for chains were set aside by [`InvertedTable::grow`].
    #[inline]
    pub fn add(&self, owner: Owner, run: &Run) -> Added {
        let mut memory = Tables::existing(&self.supply);
        let added = self
            .table
            .add(&mut Counted(&mut memory), &*self.locks, owner, run);
        added.unwrap_or_else(|_| self.missed(run.count))
    }

    #[cold]
    fn missed(&self, pages: u64) -> Added {
        self.lost.add(pages, Relaxed);
        Added::default()
    }

    /// Takes away pages that an owner has just unmapped, none of them the page of zeroes.
    #[inline]
    pub fn remove(&self, owner: Owner, run: &Run) {
        let memory = Tables::existing(&self.supply);
        let removed = self.table.remove(&memory, &*self.locks, owner, run);
        if removed != run.count {
            self.missed(run.count - removed);
        }
    }

    /// Calls `f` for each mapping of the frame that holds a host address, by any VM. A spinlock is
    /// held meanwhile.
    pub fn for_each_alias(&self, hpa: Hpa, f: impl FnMut(Alias)) {
        let memory = Tables::existing(&self.supply);
        self.table.for_each_alias(&memory, &*self.locks, hpa, f);
    }

    /// True when this very mapping is in the table.
    pub fn contains(&self, what: &Alias) -> bool {
        let memory = Tables::existing(&self.supply);
        self.table.contains(&memory, &*self.locks, what)
    }

    /// A step of a walk through all of the table; see [`Inverted::for_each_in`].
    pub fn for_each_in(&self, group: usize, chain: u32, f: impl FnMut(Alias)) -> bool {
        let memory = Tables::existing(&self.supply);
        self.table
            .for_each_in(&memory, &*self.locks, group, chain, f)
    }

    /// How much is in the table.
    pub fn usage(&self) -> Usage {
        self.table.usage(&*self.locks)
    }

    /// Chains of a group there can be.
    pub fn chains(&self) -> u32 {
        self.table.pages()
    }
}

impl Drop for InvertedTable {
    fn drop(&mut self) {
        let mut memory = Tables::existing(&self.supply);
        self.table.destroy(&mut Counted(&mut memory), &*self.locks);
    }
}

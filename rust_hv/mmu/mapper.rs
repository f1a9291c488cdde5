// SPDX-License-Identifier: GPL-2.0

//! What faults have mapped and not told of yet.
//!
//! Faults of several vCPUs hold `Mmu::state` together, and share nothing that they write but the
//! page tables. What else a fault has to keep is in the vCPU's own [`Mapper`]: how many pages and
//! tables it has added, and the last run of pages, which waits for others that continue it.
//!
//! A mapper is written by its vCPU's task with the lock held for reading, or by anybody who holds it
//! for writing: never by two at once, and what one has written the next one sees. So loads and
//! stores are relaxed and plain.

use super::owners::RUN_ENTRIES;
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::{Gfn, Hpa};
use crate::model::memory::inverted::Run;
use crate::model::paging::frames::Counts;
use crate::model::paging::PageSize;
use crate::model::sync::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;

/// A vCPU's part. Neighbours in memory share no cache line that both write often, and a line of its own
/// brings nothing more (`rusthv-bench --layout`).
pub(super) struct Mapper {
    tables: AtomicU64,
    leaves: [AtomicU64; 3],
    /// Of the run: how many pages, their size and direction; 0 without one.
    shape: AtomicU64,
    gfn: AtomicU64,
    hpa: AtomicU64,
    /// What the CPU has seen the vCPU write to.
    log: Option<Arc<WriteLog>>,
}

/// In `Mapper::shape`.
const DOWN: u64 = 1 << 2;
const COUNT_SHIFT: u32 = 3;

impl Mapper {
    fn new(log: Option<Arc<WriteLog>>) -> Self {
        Self {
            tables: AtomicU64::new(0),
            leaves: [const { AtomicU64::new(0) }; 3],
            shape: AtomicU64::new(0),
            gfn: AtomicU64::new(0),
            hpa: AtomicU64::new(0),
            log,
        }
    }

    /// Where the CPU logs the vCPU's writes, if it does.
    pub(super) fn log(&self) -> Option<&Arc<WriteLog>> {
        self.log.as_ref()
    }

    /// The run that waits; none does afterwards.
    #[inline]
    pub(super) fn take_run(&self) -> Option<Run> {
        let shape = self.shape.load(Ordering::Relaxed);
        if shape == 0 {
            return None;
        }
        self.shape.store(0, Ordering::Relaxed);
        Some(Run {
            gfn: Gfn::new(self.gfn.load(Ordering::Relaxed)),
            hpa: Hpa::new(self.hpa.load(Ordering::Relaxed)),
            size: match shape & 3 {
                0 => PageSize::Size4K,
                1 => PageSize::Size2M,
                _ => PageSize::Size1G,
            },
            count: shape >> COUNT_SHIFT,
            down: shape & DOWN != 0,
        })
    }

    /// Lets a run wait.
    #[inline]
    pub(super) fn put_run(&self, run: Option<Run>) {
        if let Some(run) = run {
            let down = if run.down { DOWN } else { 0 };
            self.gfn.store(run.gfn.raw(), Ordering::Relaxed);
            self.hpa.store(run.hpa.raw(), Ordering::Relaxed);
            self.shape.store(
                run.count << COUNT_SHIFT | down | run.size as u64,
                Ordering::Relaxed,
            );
        }
    }

    /// Counts what a fault has added.
    #[inline]
    pub(super) fn count(&self, added: &Counts) {
        let add = |count: &AtomicU64, more: u64| {
            if more != 0 {
                count.store(
                    count.load(Ordering::Relaxed).wrapping_add(more),
                    Ordering::Relaxed,
                );
            }
        };
        add(&self.tables, added.tables);
        for (count, more) in self.leaves.iter().zip(added.leaves) {
            add(count, more);
        }
    }

    /// What its faults have added.
    fn counts(&self) -> Counts {
        let [small, large, huge] = &self.leaves;
        Counts {
            tables: self.tables.load(Ordering::Relaxed),
            leaves: [small, large, huge].map(|count| count.load(Ordering::Relaxed)),
        }
    }
}

/// All of a VM.
pub(super) struct Mappers(KVec<Arc<Mapper>>);

impl Mappers {
    pub(super) const fn new() -> Self {
        Self(KVec::new())
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mapper> {
        self.0.iter().map(|mapper| &**mapper)
    }

    /// What they have added, all together.
    pub(super) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.iter().for_each(|mapper| sum.merge(&mapper.counts()));
        sum
    }

    /// Adds one, with room that was made before the lock; gives back what is left of that. False
    /// when it is too small.
    fn add(&mut self, mapper: &Arc<Mapper>, room: &mut KVec<Arc<Mapper>>) -> bool {
        if room.capacity() <= self.0.len() {
            return false;
        }
        core::mem::swap(&mut self.0, room);
        // Within the capacity, all of them.
        for old in room.drain_all() {
            drop(self.0.push_within_capacity(old));
        }
        drop(self.0.push_within_capacity(mapper.clone()));
        true
    }

    /// Takes one away, and tells what it has added.
    fn remove(&mut self, mapper: &Arc<Mapper>) -> Counts {
        self.0.retain(|other| !Arc::ptr_eq(other, mapper));
        mapper.counts()
    }
}

impl super::Mmu {
    /// A mapper for another vCPU.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn add_mapper(&self) -> Result<Arc<Mapper>> {
        let mapper = Arc::new(Mapper::new(self.new_log()?), GFP_KERNEL_ACCOUNT)?;
        self.inverted.expect(RUN_ENTRIES)?;
        let added = self.list_mapper(&mapper);
        if added.is_err() {
            self.inverted.stop_expecting(RUN_ENTRIES);
        }
        added.map(|()| mapper)
    }

    fn list_mapper(&self, mapper: &Arc<Mapper>) -> Result {
        loop {
            let count = self.state.read().mappers.len();
            let mut room = KVec::with_capacity(count + 1, GFP_KERNEL_ACCOUNT)?;
            if self.state.write().mappers.add(mapper, &mut room) {
                return Ok(());
            }
        }
    }

    /// The end of a vCPU's mapper.
    pub(super) fn remove_mapper(&self, mapper: &Arc<Mapper>) {
        let mut notes = super::Notes::new(self.inverted, &self.owner);
        let mut state = self.state.write();
        state.gather_log(mapper);
        let added = state.mappers.remove(mapper);
        if let Some(table) = state.tree.nested() {
            table.count(&added);
        }
        notes.resume(mapper);
        notes.end();
        drop(state);
        notes.check_shared();
        self.inverted.stop_expecting(RUN_ENTRIES);
    }
}

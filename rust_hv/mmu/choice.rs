// SPDX-License-Identifier: GPL-2.0

//! How a VM's memory is virtualized, and how writes to it are noticed: chosen before its first vCPU.

use super::owners::Notes;
use super::paging::{Mode, Shadows};
use super::Mmu;
use crate::host::errno::unsupported;
use crate::host::tables::Tables;
use crate::model::paging::format::Notice;
use crate::model::paging::nested::Nested;
use crate::model::paging::shadow::{self, Policy, Shadow};
use kernel::prelude::*;
use kernel::sync::atomic::{
    ordering::{Acquire, Relaxed, Release},
    Atomic,
};

/// How a VM's memory is virtualized.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PagingMode {
    /// By the CPU: nested tables.
    Nested,
    /// By shadow tables that follow the guest's when it invalidates translations.
    Shadow,
    /// By shadow tables that follow each of the guest's writes to its own.
    Trap,
}

/// Tables of a VM at least, at most, and when nothing is said.
pub const MIN_TABLES: usize = 16;
/// See [`MIN_TABLES`].
pub const MAX_TABLES: usize = 8192;
/// See [`MIN_TABLES`].
pub const DEFAULT_TABLES: usize = 1024;

/// The mode, which is settled with the first vCPU. Changed with `slots_lock` held.
pub(super) struct Choice(Atomic<u64>);

impl Choice {
    const SETTLED: u64 = 1 << 8;

    pub(super) const fn new() -> Self {
        Self(Atomic::new(PagingMode::Nested as u64))
    }

    pub(super) fn mode(&self) -> PagingMode {
        match self.0.load(Acquire) & !Self::SETTLED {
            0 => PagingMode::Nested,
            1 => PagingMode::Shadow,
            _ => PagingMode::Trap,
        }
    }
}

/// A [`Notice`] that others look at meanwhile.
pub(super) struct ChosenNotice(Atomic<u64>);

impl ChosenNotice {
    pub(super) fn new(notice: Notice) -> Self {
        Self(Atomic::new(notice as u64))
    }

    #[inline]
    fn load(&self) -> Notice {
        match self.0.load(Relaxed) {
            0 => Notice::Fault,
            1 => Notice::Flag,
            _ => Notice::Log,
        }
    }

    fn store(&self, notice: Notice) {
        self.0.store(notice as u64, Relaxed);
    }
}

/// Empty tables.
fn tables(policy: Policy, count: usize, notes: Notes) -> Result<Shadows> {
    let mut slots = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for _ in 0..count {
        // Within the capacity.
        slots
            .push_within_capacity(shadow::Slot::new())
            .map_err(|_| ENOMEM)?;
    }
    let words = KVVec::from_elem(Shadows::WORD, Shadows::words(count), GFP_KERNEL_ACCOUNT)?;
    Shadow::new(policy, slots, words, notes).ok_or(EINVAL)
}

impl Mmu {
    /// Chooses how memory is virtualized, with so many shadow tables at most.
    ///
    /// # Errors
    ///
    /// `EBUSY` when there are vCPUs, or slots with fewer rights; `EINVAL` for a number of tables out of
    /// range, or one for nested tables; `ENOMEM`.
    pub fn choose(&self, mode: PagingMode, count: usize) -> Result {
        let _one_at_a_time = self.slots_lock.lock();
        if self.choice.0.load(Relaxed) & Choice::SETTLED != 0 {
            return Err(EBUSY);
        }
        let policy = match mode {
            PagingMode::Nested if count != 0 => return Err(EINVAL),
            // Once left, the nested tables are gone.
            PagingMode::Nested if self.choice.mode() == mode => return Ok(()),
            PagingMode::Nested => return Err(EBUSY),
            PagingMode::Shadow => Policy::Virtual,
            PagingMode::Trap => Policy::Exact,
        };
        let count = match count {
            0 => DEFAULT_TABLES,
            MIN_TABLES..=MAX_TABLES => count,
            _ => return Err(EINVAL),
        };
        if !self.is_unrestricted() {
            // Their tables have no rights of slots.
            return Err(EBUSY);
        }
        let notes = Notes::new(self.inverted, &self.owner);
        let new = Mode::Shadow(tables(policy, count, notes)?);
        let old = self.state.write().tree.mode.replace(new);
        if let Some(old) = old {
            // No vCPU has ever walked them.
            old.destroy(&mut Tables::existing(&self.supply), |_, _| {});
        }
        // Shadow tables track by faults alone.
        self.notice.store(Notice::Fault);
        self.choice.0.store(mode as u64, Release);
        Ok(())
    }

    /// How writes to pages of slots that log are noticed from now on. No vCPU is there or comes meanwhile.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for what the CPU does not have, or without nested tables; `ENOMEM`.
    pub fn choose_notice(&self, notice: Notice) -> Result {
        if notice > self.format.notice() || self.paging_mode() != PagingMode::Nested {
            return Err(unsupported());
        }
        let before = self.notice();
        self.notice.store(notice);
        self.renew_root().inspect_err(|_| self.notice.store(before))
    }

    /// How writes to pages of slots that log are noticed.
    #[inline]
    pub(super) fn notice(&self) -> Notice {
        self.notice.load()
    }

    /// The format of this VM's nested tables.
    pub(super) fn format(&self) -> Nested {
        self.format.with_notice(self.notice())
    }

    /// The mode, which does not change any more.
    pub fn settle(&self) -> PagingMode {
        let _one_at_a_time = self.slots_lock.lock();
        let mode = self.choice.mode();
        self.choice.0.store(mode as u64 | Choice::SETTLED, Release);
        mode
    }

    /// How memory is virtualized.
    pub fn paging_mode(&self) -> PagingMode {
        self.choice.mode()
    }
}

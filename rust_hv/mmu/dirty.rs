// SPDX-License-Identifier: GPL-2.0

//! The dirty log: which pages of a slot were written since user space asked.
//!
//! A slot with `KVM_MEM_LOG_DIRTY_PAGES` has a bitmap. Its mappings are *tracked*
//! (`model/paging/track.rs`): a page whose bit is clear cannot be written by the guest without
//! notice. That is a fault, which sets the bit and allows the write in one step under `Mmu::state`;
//! or, for pages of 4 KiB where CPUs set dirty flags or log what they set, something that is brought
//! into the bitmap before bits are taken from it (`cpu_log`). While a slot logs, only 4 KiB pages are
//! mapped writable; large ones from before stay as long as they are only read.
//!
//! # No write is lost
//!
//! * `KVM_GET_DIRTY_LOG` takes bits and tracks their pages again in one step under `Mmu::state`,
//!   so that a write fault comes either before, and is in the bitmap that is being read, or after,
//!   and is in the next one. CPUs may go on writing through old translations until the flush,
//!   which is done before the call returns: such a page is in this bitmap, and user space copies
//!   it afterwards.
//! * The hypervisor's own writes, through the VMM's mapping, come first and set the bit afterwards
//!   ([`Mmu::wrote`]), whatever the slot was when they were begun: one that is under way when
//!   logging starts sees the log, or user space sees what it wrote.
//! * When logging starts, faults log from the exchange of the slots on; mappings from before are
//!   tracked and flushed before the call returns. Where all pages are dirty to begin with
//!   (`KVM_DIRTY_LOG_INITIALLY_SET`) they are left alone: what is written through them has its bit.
//! * Where user space clears the log itself (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`),
//!   `KVM_GET_DIRTY_LOG` changes nothing, and `KVM_CLEAR_DIRTY_LOG` does what it does otherwise, for
//!   the bits that user space names. A bit of a page that was written again meanwhile goes with
//!   them: user space copies pages after it has cleared their bits.
//!
//! # Which notice
//!
//! The guest pays for a fault, once per page that it writes between two readings. Whoever reads pays
//! for flags: with a look at each page that is mapped. A log costs neither, and few CPUs have one. The
//! best that the CPU has is the default, and `RUSTHV_CAP_DIRTY_TRACKING` chooses another. Shadow tables
//! know faults alone. The figures are in `Documentation/architecture.md`.

use super::choice::PagingMode;
use super::paging::{Mode, Paging, Steps};
use super::{Mmu, State, STEP};
use crate::host::supply::Supply;
use crate::host::tables::Tables;
use crate::host::user::{self, ClearLog};
use crate::host::{bindings, cpu, task};
use crate::model::arch::addr::{Gfn, GfnRange, Gpa, Hva};
use crate::model::memory::dirty::{valid_bits, words_for, DirtyBitmap, WORD_PAGES};
use crate::model::memory::slots::{Change, Slot, SlotFlags, USER_SLOTS};
use crate::model::paging::format::Notice;
use crate::model::paging::sweep::Progress;
use crate::model::paging::track::Allowed;
use crate::model::paging::PageSize;
use crate::model::sync::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};

/// Words of a bitmap that go to user space at once.
const CHUNK: usize = 512;

pub(super) type Bitmap = DirtyBitmap<KVVec<AtomicU64>>;

/// What `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` was set to, for the logs of a VM.
pub struct Manual(Atomic<u64>);

impl Manual {
    const ENABLE: u64 = bindings::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as u64;
    const INITIALLY_SET: u64 = bindings::KVM_DIRTY_LOG_INITIALLY_SET as u64;
    /// What there is to set.
    pub const ALL: u64 = Self::ENABLE | Self::INITIALLY_SET;

    pub(super) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    fn set(&self, flags: u64) -> Result {
        // The second is for those who have the first.
        let known = match flags & Self::ENABLE {
            0 => 0,
            _ => Self::ALL,
        };
        if flags & !known != 0 {
            return Err(EINVAL);
        }
        self.0.store(flags, Relaxed);
        Ok(())
    }

    /// Reading a log leaves it as it is.
    fn enabled(&self) -> bool {
        self.0.load(Relaxed) & Self::ENABLE != 0
    }

    /// Every page of a new log is dirty.
    pub(super) fn initially_set(&self) -> bool {
        self.0.load(Relaxed) & Self::INITIALLY_SET != 0
    }
}

/// A new bitmap. May sleep.
fn new_bitmap(pages: u64, all_dirty: bool) -> Result<Bitmap> {
    let count = words_for(pages) as usize;
    let mut words = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for index in 0..count {
        let bits = match all_dirty {
            true => valid_bits(pages, index),
            false => 0,
        };
        // Within the capacity.
        words
            .push_within_capacity(AtomicU64::new(bits))
            .map_err(|_| ENOMEM)?;
        if index % STEP == 0 {
            task::cond_resched();
        }
    }
    DirtyBitmap::new(words, pages).ok_or(ENOMEM)
}

struct Log {
    slot: u16,
    bitmap: Bitmap,
}

/// The logs of a VM, sorted by slot id.
pub(super) struct Logs(KVec<Log>);

impl Logs {
    pub(super) const fn new() -> Self {
        Self(KVec::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn find(&self, slot: u16) -> Option<&Bitmap> {
        let index = self.0.binary_search_by_key(&slot, |log| log.slot).ok()?;
        self.0.get(index).map(|log| &log.bitmap)
    }

    /// Notes a write, if the slot logs.
    pub(super) fn mark(&self, slot: &Slot, gfn: Gfn) {
        if let (Some(bitmap), Some(page)) = (self.find(slot.id), slot.index(gfn)) {
            bitmap.mark(page);
        }
    }
}

/// What a change of the slots does to the logs: the part that allocates, before the lock, and the
/// part that frees, after it.
pub(super) struct Prepared {
    /// Room for the logs after the change; before it, none are in it.
    logs: KVec<Log>,
    fresh: Option<Log>,
    ending: Option<u16>,
    /// The log that has ended.
    _ended: Option<Log>,
}

impl Prepared {
    /// For a change of a VM that has `count` logs; a new one begins with all pages or none.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(change: &Change, count: usize, all_dirty: bool) -> Result<Self> {
        let logs = |slot: &Slot| slot.flags.log_dirty();
        let (before, after) = (change.before(), change.after());
        // A slot that moves, and logs before and after, keeps its bitmap.
        let begins = after.filter(|slot| logs(slot) && !before.as_ref().is_some_and(logs));
        let ending = before
            .filter(|slot| logs(slot) && !after.as_ref().is_some_and(logs))
            .map(|slot| slot.id);
        let fresh = match begins {
            Some(slot) => Some(Log {
                slot: slot.id,
                bitmap: new_bitmap(slot.pages, all_dirty)?,
            }),
            None => None,
        };
        let room = match fresh.is_some() || ending.is_some() {
            true => count + 1,
            false => 0,
        };
        Ok(Self {
            logs: KVec::with_capacity(room, GFP_KERNEL_ACCOUNT)?,
            fresh,
            ending,
            _ended: None,
        })
    }

    /// Makes the change. Allocates and frees nothing.
    pub(super) fn install(&mut self, logs: &mut Logs) {
        if self.fresh.is_none() && self.ending.is_none() {
            return;
        }
        core::mem::swap(&mut self.logs, &mut logs.0);
        // Within the capacity, all of them.
        let mut put = |log| drop(logs.0.push_within_capacity(log));
        for log in self.logs.drain_all() {
            if let Some(fresh) = self.fresh.take_if(|fresh| fresh.slot < log.slot) {
                put(fresh);
            }
            if self.ending == Some(log.slot) {
                self._ended = Some(log);
            } else {
                put(log);
            }
        }
        if let Some(fresh) = self.fresh.take() {
            put(fresh);
        }
    }
}

impl State {
    /// Lets the guest write to a page whose nested mapping waits for just that, and logs it. False
    /// when there is more to be done for the fault. Who takes bits from the log holds the lock alone,
    /// and so meets both or neither.
    #[inline]
    pub(super) fn allow_logged_write(&self, supply: &Supply, slot: &Slot, gpa: Gpa) -> bool {
        let memory = Tables::existing(supply);
        let table = self.tree.walked();
        let allowed = table.is_some_and(|table| table.allow_write(&memory, gpa) == Allowed::Yes);
        if allowed {
            self.logs.mark(slot, gpa.gfn());
        }
        allowed
    }
}

/// Makes CPUs forget their rights to write at the end of a call, however it ends: those that the call
/// has taken, and those that somebody else has taken and not flushed yet.
pub(super) struct FlushLater<'a> {
    mmu: &'a Mmu,
}

impl<'a> FlushLater<'a> {
    fn new(mmu: &'a Mmu) -> Self {
        Self { mmu }
    }

    /// Rights were taken, or not. Under the lock.
    pub(super) fn note(&self, changed: bool) {
        if changed {
            self.mmu.tlb.owe();
        }
    }
}

impl Drop for FlushLater<'_> {
    fn drop(&mut self) {
        self.mmu.tlb.settle(&self.mmu.stats);
    }
}

impl Mmu {
    /// Logs a write that the hypervisor has made to the slot's memory.
    #[inline]
    pub(super) fn wrote(&self, slot: &Slot, gpa: Gpa) {
        // The write comes before the look: whoever starts a log meanwhile sees what was written,
        // or is seen here. The other barrier of the pair is in `log_toggled`.
        cpu::smp_mb();
        if self.logged.load(Ordering::Relaxed) != 0 {
            self.state.read().logs.mark(slot, gpa.gfn());
        }
    }

    /// The same, for a slot that did not log when it was looked up.
    #[inline]
    pub(super) fn wrote_somewhere(&self, gpa: Gpa) {
        cpu::smp_mb();
        if self.logged.load(Ordering::Relaxed) != 0 {
            if let Some(slot) = self.slot(gpa) {
                self.state.read().logs.mark(&slot, gpa.gfn());
            }
        }
    }

    /// After logging has started, with all pages or with none, or stopped for a slot that keeps its
    /// memory. `slots_lock` is held.
    pub(super) fn log_toggled(&self, slot: &Slot, all_dirty: bool) {
        cpu::smp_mb();
        if !slot.flags.log_dirty() {
            self.untrack(slot);
        } else if !all_dirty {
            self.track(slot.gfns());
        }
    }

    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for flags that there are not, or not together.
    pub fn set_manual_log(&self, flags: u64) -> Result {
        self.manual_log.set(flags)
    }

    /// From here on no guest writes to the range unnoticed.
    fn track(&self, range: GfnRange) {
        let flush = FlushLater::new(self);
        self.sweep(range, |mode, memory, steps| {
            let mut changed = false;
            let progress = mode.track(memory, steps, &mut changed);
            flush.note(changed);
            progress
        });
    }

    /// Lets guests write without notice again, and use large pages again where the host has them.
    fn untrack(&self, slot: &Slot) {
        self.sweep(slot.gfns(), |mode, memory, steps| {
            mode.untrack(memory, steps)
        });
        if self.format.largest() == PageSize::Size4K {
            return;
        }
        // Small pages are in the way of large ones: the next fault finds the place empty.
        let mut run: Option<GfnRange> = None;
        let mut next = slot.base;
        while next < slot.gfns().end {
            let size = self.wanted_size(slot, next);
            // No less than one page table at a time.
            let pages = size.pages().max(PageSize::Size2M.pages());
            let start = Gfn::new(next.raw() & !(pages - 1));
            let end = Gfn::new(start.raw().saturating_add(pages));
            if self.is_cut(next, size) {
                let first = run.map_or(start, |run| run.start);
                run = Some(GfnRange::new(first, end));
            } else if let Some(run) = run.take() {
                self.zap(run, true);
            }
            next = end;
            task::cond_resched();
        }
        if let Some(run) = run {
            self.zap(run, true);
        }
    }

    /// The largest page that could be mapped at a frame of the slot.
    fn wanted_size(&self, slot: &Slot, gfn: Gfn) -> PageSize {
        let shift = |hva| self.mm.mapping_shift(hva);
        let size = self.page_size(slot, gfn, || slot.hva_of(gfn).map_or(0, shift));
        match self.paging_mode() {
            PagingMode::Nested => size,
            // Shadow tables have none that are larger.
            PagingMode::Shadow | PagingMode::Trap => size.min(PageSize::Size2M),
        }
    }

    /// True where a page of this size cannot be mapped as it is.
    fn is_cut(&self, gfn: Gfn, size: PageSize) -> bool {
        if size == PageSize::Size4K {
            return false;
        }
        let memory = Tables::existing(&self.supply);
        let state = self.state.read();
        let mode = state.tree.mode.as_ref();
        mode.is_some_and(|mode| mode.is_cut(&memory, gfn, size))
    }

    /// Does something to the tables of a range, in steps with the lock held.
    fn sweep(
        &self,
        range: GfnRange,
        mut step: impl FnMut(&mut Mode, &Tables<'_>, &mut Steps) -> Progress,
    ) {
        let memory = Tables::existing(&self.supply);
        let mut steps = Steps::new(range);
        loop {
            let progress = match self.state.write().tree.mode.as_mut() {
                Some(mode) => step(mode, &memory, &mut steps),
                None => Progress::Done,
            };
            if progress == Progress::Done {
                return;
            }
            task::cond_resched();
        }
    }

    /// The slot that logs under a number from user space.
    fn logging_slot(&self, number: u32) -> Result<Slot> {
        let id = check_slot(number)?;
        let slot = self.state.read().view().find_id(id).copied();
        slot.filter(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY))
            .ok_or(ENOENT)
    }

    /// `KVM_GET_DIRTY_LOG`: copies the bitmap of a slot to user space and begins a new one, unless
    /// user space does that itself.
    ///
    /// # Errors
    ///
    /// As KVM: `EINVAL` for a number that no slot can have, `ENOENT` for a slot that does not log;
    /// `EFAULT`: what was not copied stays in the log. `ENOMEM`.
    pub fn dirty_log(&self, number: u32, to: Hva) -> Result {
        let _one_at_a_time = self.slots_lock.lock();
        let slot = self.logging_slot(number)?;
        let count = words_for(slot.pages) as usize;
        let mut buffer = KVec::from_elem(0u64, CHUNK.min(count), GFP_KERNEL_ACCOUNT)?;
        // Before `slots_lock` is dropped, and before the call returns.
        let flush = FlushLater::new(self);
        self.gather(&slot, &flush);
        if self.manual_log.enabled() {
            return self.show_log(&slot, count, &mut buffer, to);
        }
        let mut at = 0;
        while at < count {
            let taken = self.take_words(&slot, at, &mut buffer, &flush)?;
            let words = buffer.get_mut(..taken.words.min(count - at)).ok_or(EIO)?;
            let address = to.checked_add(at as u64 * 8).ok_or(EFAULT);
            let copied = address.and_then(|hva| user::copy_to(hva, words.as_bytes()));
            if let Err(error) = copied {
                let state = self.state.read();
                if let Some(log) = state.logs.find(slot.id) {
                    for (index, bits) in words.iter().enumerate() {
                        log.put_back(at + index, *bits);
                    }
                }
                return Err(error);
            }
            at += words.len();
            if taken.dirty {
                words.fill(0);
            }
            task::cond_resched();
        }
        Ok(())
    }

    /// Copies a bitmap of so many words as it is.
    fn show_log(&self, slot: &Slot, count: usize, buffer: &mut [u64], to: Hva) -> Result {
        let mut at = 0;
        while at < count {
            let left = buffer.len().min(count - at);
            let words = buffer.get_mut(..left).ok_or(EIO)?;
            {
                let state = self.state.read();
                let log = state.logs.find(slot.id).ok_or(ENOENT)?;
                for (index, word) in words.iter_mut().enumerate() {
                    *word = log.look(at + index);
                }
            }
            let hva = to.checked_add(at as u64 * 8).ok_or(EFAULT)?;
            user::copy_to(hva, words.as_bytes())?;
            at += left;
            task::cond_resched();
        }
        Ok(())
    }

    /// `KVM_CLEAR_DIRTY_LOG`: begins anew for the pages whose bit is set in user space's bitmap.
    ///
    /// # Errors
    ///
    /// As KVM: `EINVAL` for a number that no slot can have, and for pages that are no whole words of
    /// the slot's bitmap; `ENOENT` for a slot that does not log; `EFAULT`: nothing is cleared.
    /// `ENOMEM`.
    pub fn clear_dirty_log(&self, wanted: &ClearLog) -> Result {
        let _one_at_a_time = self.slots_lock.lock();
        check_slot(wanted.slot)?;
        if wanted.first % WORD_PAGES != 0 {
            return Err(EINVAL);
        }
        let slot = self.logging_slot(wanted.slot)?;
        let pages = u64::from(wanted.pages);
        let left = slot.pages.checked_sub(wanted.first).ok_or(EINVAL)?;
        if pages > left || (pages < left && pages % WORD_PAGES != 0) {
            return Err(EINVAL);
        }
        // All of it first: a bad address clears nothing. No more than the bitmap has.
        let count = words_for(pages) as usize;
        let mut masks = KVVec::from_elem(0u64, count, GFP_KERNEL_ACCOUNT)?;
        user::copy_from(wanted.bitmap, masks.as_mut_bytes())?;
        // Flags are cleared with the bits that they have not come to yet.
        self.gather_logs();
        // Before `slots_lock` is dropped, and before the call returns.
        let flush = FlushLater::new(self);
        let mut word = (wanted.first / WORD_PAGES) as usize;
        let mut masks = masks.as_slice();
        while !masks.is_empty() {
            let done = self.clear_words(&slot, word, masks, &flush)?;
            word += done;
            masks = masks.get(done..).unwrap_or_default();
            task::cond_resched();
        }
        Ok(())
    }

    /// Clears bits of words from `at` on, and tracks their pages again: at least one word, and as
    /// many more as one step may. Tells how many.
    fn clear_words(
        &self,
        slot: &Slot,
        at: usize,
        masks: &[u64],
        flush: &FlushLater<'_>,
    ) -> Result<usize> {
        let memory = Tables::existing(&self.supply);
        let mut state = self.state.write();
        let now = &mut *state;
        let log = now.logs.find(slot.id).ok_or(ENOENT)?;
        let mode = now.tree.mode.as_mut().ok_or(EIO)?;
        let flags = self.notice() == Notice::Flag;
        let mut budget = STEP as u32;
        let mut changed = false;
        let mut done = masks.len().min(CHUNK);
        for (index, &mask) in masks.iter().take(done).enumerate() {
            // Behind the last page come those of another slot.
            let mask = mask & valid_bits(slot.pages, at + index);
            let bits = log.take_some(at + index, mask);
            let bits = if flags { mask } else { bits };
            if bits == 0 {
                continue;
            }
            let first = (at + index) as u64 * WORD_PAGES;
            let first = Gfn::new(slot.base.raw().wrapping_add(first));
            changed |= mode.track_pages(&memory, first, bits);
            budget = budget.saturating_sub(bits.count_ones());
            if budget == 0 {
                done = index + 1;
                break;
            }
        }
        flush.note(changed);
        Ok(done)
    }

    /// Takes words of a bitmap, at least one, and as many more as fit and one step may take; their
    /// pages are tracked again. `words` is all zeroes before.
    fn take_words(
        &self,
        slot: &Slot,
        at: usize,
        words: &mut [u64],
        flush: &FlushLater<'_>,
    ) -> Result<Taken> {
        let memory = Tables::existing(&self.supply);
        let mut state = self.state.write();
        let now = &mut *state;
        let log = now.logs.find(slot.id).ok_or(ENOENT)?;
        let mode = now.tree.mode.as_mut().ok_or(EIO)?;
        let mut taken = Taken {
            words: words.len(),
            dirty: false,
        };
        let flags = self.notice() == Notice::Flag;
        let mut budget = STEP as u32;
        let mut changed = false;
        let mut next = at;
        while let Some(word) = log.next_dirty(next, at + words.len()) {
            let bits = log.take(word);
            let first = slot.base.raw().wrapping_add(word as u64 * WORD_PAGES);
            taken.dirty = true;
            // A page that was written since the look at its flag is listed here, and the next time.
            changed |= match flags {
                true => mode.track_larger(&memory, Gfn::new(first), bits),
                false => mode.track_pages(&memory, Gfn::new(first), bits),
            };
            if let Some(place) = words.get_mut(word - at) {
                *place = bits;
            }
            next = word + 1;
            budget = budget.saturating_sub(bits.count_ones());
            if budget == 0 {
                taken.words = next - at;
                break;
            }
        }
        flush.note(changed);
        Ok(taken)
    }
}

/// The id of a slot, from a number from user space.
fn check_slot(number: u32) -> Result<u16> {
    let id = number as u16;
    // There is one address space.
    if number >> 16 != 0 || id >= USER_SLOTS {
        return Err(EINVAL);
    }
    Ok(id)
}

/// What a step has taken.
struct Taken {
    /// So many words.
    words: usize,
    /// There were bits in them.
    dirty: bool,
}

#[kunit_tests(rusthv_dirty)]
mod tests {
    use super::super::fault::Resolved;
    use super::super::tests::{fault, request, space, Space, BASE};
    use super::*;
    use crate::host::kunit::UserMemory;
    use crate::model::arch::addr::PAGE_SIZE;
    use crate::model::paging::Permissions;

    const LOG: u32 = SlotFlags::LOG_DIRTY.raw();

    fn gpa(page: u64) -> u64 {
        BASE + page * PAGE_SIZE
    }

    /// The only word of a log, into a page of its own.
    fn log(space: &Space, slot: u32) -> Result<u64> {
        let buffer = UserMemory::new(1)?;
        space.mmu.dirty_log(slot, buffer.start())?;
        let mut word = [0; 8];
        user::copy_from(buffer.start(), &mut word)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Rights of a mapping, and whether a write is waited for.
    fn leaf(space: &Space, page: u64) -> Option<(Permissions, bool)> {
        let state = space.mmu.state.read();
        let memory = Tables::existing(&space.mmu.supply);
        let leaf = state.tree.walked()?.lookup(&memory, Gpa::new(gpa(page)))?;
        Some((leaf.perms, leaf.tracked))
    }

    #[test]
    fn only_slots_that_log_have_one() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        let count = || {
            (
                space.mmu.logged.load(Ordering::Relaxed),
                space.mmu.state.read().logs.len(),
            )
        };
        let set = |slot, flags, at, size| {
            let mut wanted = request(slot, flags, at, &memory);
            wanted.memory_size = size;
            space.mmu.set_slot(&wanted)
        };
        let bytes = memory.bytes();
        assert_eq!(log(&space, 7).err(), Some(ENOENT));
        set(7, 0, BASE, bytes)?;
        assert_eq!((log(&space, 7).err(), count()), (Some(ENOENT), (0, 0)));
        // In any order of their numbers.
        set(7, LOG, BASE, bytes)?;
        set(9, LOG, 2 * BASE, bytes)?;
        set(2, LOG, 3 * BASE, bytes)?;
        assert_eq!(count(), (3, 3));
        for slot in [2, 7, 9] {
            assert_eq!(log(&space, slot), Ok(0));
        }
        set(7, 0, BASE, bytes)?;
        assert_eq!((log(&space, 7).err(), count()), (Some(ENOENT), (2, 2)));
        set(2, 0, 0, 0)?;
        assert_eq!((log(&space, 2).err(), count()), (Some(ENOENT), (1, 1)));
        // Moved, and still logging.
        set(9, LOG, 4 * BASE, bytes)?;
        assert_eq!((log(&space, 9), count()), (Ok(0), (1, 1)));
        for number in [1 << 16 | 9, u32::from(USER_SLOTS), u32::MAX] {
            assert_eq!(log(&space, number).err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn a_write_fault_is_logged_once_per_reading() -> Result {
        let memory = UserMemory::new(6)?;
        for page in 0..6 {
            user::copy_to(memory.start().wrapping_add(page * PAGE_SIZE), b"here")?;
        }
        let space = space()?;
        space.mmu.set_slot(&request(0, LOG, BASE, &memory))?;
        let waiting = Some((Permissions::RX, true));
        let writable = Some((Permissions::RWX, false));
        // Nothing is mapped: the page becomes writable, its neighbours wait.
        assert_eq!(fault(&space, gpa(2), true), Ok(Resolved::Mapped));
        assert_eq!(leaf(&space, 2), writable);
        for page in 3..6 {
            assert_eq!(leaf(&space, page), waiting);
        }
        // A read of one that is writable leaves it so.
        assert_eq!(fault(&space, gpa(2), false), Ok(Resolved::Mapped));
        assert_eq!(leaf(&space, 2), writable);
        assert_eq!(fault(&space, gpa(0), false), Ok(Resolved::Mapped));
        assert_eq!((leaf(&space, 0), leaf(&space, 1)), (waiting, waiting));
        assert_eq!(log(&space, 0), Ok(1 << 2));
        assert_eq!((leaf(&space, 2), log(&space, 0)), (waiting, Ok(0)));
        // Mapped, and waiting for it.
        assert_eq!(fault(&space, gpa(5), true), Ok(Resolved::Mapped));
        assert_eq!(fault(&space, gpa(2), true), Ok(Resolved::Mapped));
        assert_eq!((leaf(&space, 5), leaf(&space, 4)), (writable, waiting));
        assert_eq!(log(&space, 0), Ok(1 << 5 | 1 << 2));
        // Without the log nothing waits any more.
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        assert!((0..6).all(|page| leaf(&space, page) == writable));
        // And with it all do again.
        space.mmu.set_slot(&request(0, LOG, BASE, &memory))?;
        assert!((0..6).all(|page| leaf(&space, page) == waiting));
        assert_eq!(log(&space, 0), Ok(0));
        Ok(())
    }

    #[test]
    fn the_hypervisors_writes_are_logged() -> Result {
        let memory = UserMemory::new(8)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, LOG, BASE, &memory))?;
        // Across the end of a page.
        space.mmu.write(Gpa::new(gpa(2) - 3), b"across")?;
        assert_eq!(log(&space, 0), Ok(0b110));
        space.mmu.write_word(Gpa::new(gpa(3)), 4, 1)?;
        assert_eq!(log(&space, 0), Ok(0b1000));
        assert_eq!(space.mmu.compare_exchange(Gpa::new(gpa(3)), 4, 1, 2), Ok(1));
        assert_eq!(log(&space, 0), Ok(0b1000));
        space.mmu.read(Gpa::new(gpa(5)), &mut [0; 8])?;
        assert_eq!(log(&space, 0), Ok(0));
        // One that did not get anywhere may have got somewhere.
        memory.unmap(6, 1)?;
        assert!(space.mmu.write(Gpa::new(gpa(6)), b"lost").is_err());
        assert_eq!(log(&space, 0), Ok(1 << 6));
        Ok(())
    }

    fn clear(space: &Space, first: u64, pages: u32, bits: u64) -> Result {
        let buffer = UserMemory::new(1)?;
        user::copy_to(buffer.start(), &bits.to_ne_bytes())?;
        space.mmu.clear_dirty_log(&ClearLog {
            slot: 0,
            first,
            pages,
            bitmap: buffer.start(),
        })
    }

    #[test]
    fn what_user_space_clears_waits_again() -> Result {
        let memory = UserMemory::new(6)?;
        let space = space()?;
        space.mmu.set_manual_log(Manual::ENABLE)?;
        space.mmu.set_slot(&request(0, LOG, BASE, &memory))?;
        let waiting = Some((Permissions::RX, true));
        let writable = Some((Permissions::RWX, false));
        for page in [1, 2, 4] {
            fault(&space, gpa(page), true)?;
        }
        // Looked at, and as before.
        for _ in 0..2 {
            assert_eq!(log(&space, 0), Ok(0b10110));
        }
        assert_eq!(leaf(&space, 2), writable);
        // Bits that are not set, and those of pages that are not there, are no matter.
        clear(&space, 0, 6, !(1 << 4))?;
        assert_eq!((leaf(&space, 1), leaf(&space, 2)), (waiting, waiting));
        assert_eq!((leaf(&space, 4), log(&space, 0)), (writable, Ok(1 << 4)));
        fault(&space, gpa(2), true)?;
        assert_eq!((leaf(&space, 2), log(&space, 0)), (writable, Ok(0b10100)));
        // Nothing is cleared of what cannot be read.
        let wanted = ClearLog {
            slot: 0,
            first: 0,
            pages: 6,
            bitmap: Hva::new(8),
        };
        assert_eq!(space.mmu.clear_dirty_log(&wanted).err(), Some(EFAULT));
        for (first, pages) in [(1, 5), (64, 1), (0, 5), (0, 7), (0, u32::MAX), (!63, 6)] {
            assert_eq!(clear(&space, first, pages, !0).err(), Some(EINVAL));
        }
        assert_eq!(clear(&space, 0, 0, !0), Ok(()));
        assert_eq!(log(&space, 0), Ok(0b10100));
        // It can be used without the capability, too.
        space.mmu.set_manual_log(0)?;
        clear(&space, 0, 6, 1 << 2)?;
        assert_eq!((leaf(&space, 2), log(&space, 0)), (waiting, Ok(1 << 4)));
        assert_eq!((leaf(&space, 4), log(&space, 0)), (waiting, Ok(0)));
        Ok(())
    }

    #[test]
    fn a_log_may_begin_with_all_pages() -> Result {
        let memory = UserMemory::new(6)?;
        let space = space()?;
        for flags in [Manual::INITIALLY_SET, 4, Manual::ALL | 4, !0] {
            assert_eq!(space.mmu.set_manual_log(flags).err(), Some(EINVAL));
        }
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        fault(&space, gpa(1), true)?;
        fault(&space, gpa(3), true)?;
        space.mmu.set_manual_log(Manual::ALL)?;
        let writable = Some((Permissions::RWX, false));
        space.mmu.set_slot(&request(0, LOG, BASE, &memory))?;
        // What was mapped is left alone until it is cleared.
        assert_eq!((leaf(&space, 1), log(&space, 0)), (writable, Ok(0b111111)));
        clear(&space, 0, 6, 0b11)?;
        let waiting = Some((Permissions::RX, true));
        assert_eq!((leaf(&space, 1), leaf(&space, 3)), (waiting, writable));
        assert_eq!(log(&space, 0), Ok(0b111100));
        Ok(())
    }

    #[test]
    fn what_cannot_be_copied_stays() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, LOG, BASE, &memory))?;
        fault(&space, gpa(1), true)?;
        fault(&space, gpa(3), true)?;
        assert_eq!(space.mmu.dirty_log(0, Hva::new(8)).err(), Some(EFAULT));
        assert_eq!(space.mmu.dirty_log(0, Hva::new(!7)).err(), Some(EFAULT));
        assert_eq!(log(&space, 0), Ok(0b1010));
        Ok(())
    }
}

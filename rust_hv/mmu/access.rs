// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of guest memory by the hypervisor: through the VMM's mapping of it.
//!
//! Only the VMM's own tasks come here (`KVM_RUN` checks), so that the current address space is the
//! right one.

use super::Mmu;
use crate::host::errno::no_such_device;
use crate::host::user::{self, to_page_end};
use crate::model::arch::addr::{Gfn, GfnRange, Gpa, Hva, PAGE_SIZE};
use crate::model::memory::slots::{Slot, SlotFlags};
use crate::model::sync::Ordering;
use kernel::prelude::*;

/// What is behind a guest-physical page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Memory at this user address.
    Ram(Hva),
    /// Memory that the guest may only read.
    Rom(Hva),
    /// No memory.
    Mmio,
}

/// Slots in a [`SlotCache`]: one for code, one for tables or data elsewhere.
const WAYS: usize = 2;

/// A run of guest memory and where the VMM has it.
#[derive(Clone, Copy)]
struct Run {
    gpa: u64,
    bytes: u64,
    hva: u64,
    /// Of a slot that can be written, and does not log.
    plain: bool,
}

/// The slots that were found last, for a caller that asks again and again.
pub struct SlotCache {
    generation: u64,
    runs: [Run; WAYS],
    /// Frames without memory.
    hole: GfnRange,
}

impl SlotCache {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            generation: 0,
            runs: [Run {
                gpa: 0,
                bytes: 0,
                hva: 0,
                plain: false,
            }; WAYS],
            hole: GfnRange::new(Gfn::new(0), Gfn::new(0)),
        }
    }

    #[inline]
    fn find(&self, generation: u64, gpa: Gpa) -> Option<Hva> {
        if self.generation != generation {
            return None;
        }
        self.runs.iter().find_map(|run| {
            let offset = gpa.raw().wrapping_sub(run.gpa);
            (offset < run.bytes).then(|| Hva::new(run.hva.wrapping_add(offset)))
        })
    }

    /// As `find`, where a write takes no more than that.
    #[inline]
    fn find_plain(&self, generation: u64, gpa: Gpa) -> Option<Hva> {
        if self.generation != generation {
            return None;
        }
        self.runs.iter().find_map(|run| {
            let offset = gpa.raw().wrapping_sub(run.gpa);
            let found = run.plain && offset < run.bytes;
            found.then(|| Hva::new(run.hva.wrapping_add(offset)))
        })
    }

    /// Forgets everything of another generation.
    fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self::new();
            self.generation = generation;
        }
    }

    fn put(&mut self, generation: u64, slot: &Slot) {
        self.renew(generation);
        self.runs.rotate_right(1);
        if let (Some(first), Some(base)) = (self.runs.first_mut(), slot.base.base()) {
            *first = Run {
                gpa: base.raw(),
                bytes: slot.pages.saturating_mul(PAGE_SIZE),
                hva: slot.hva.raw(),
                plain: slot.is_plain(),
            };
        }
    }
}

impl Mmu {
    /// [`Mmu::read`] inside one page, without the lock as long as it is the same slot.
    ///
    /// A slot that is deleted at the same moment is read as it was: the memory is the VMM's own.
    ///
    /// # Errors
    ///
    /// As [`Mmu::read`].
    pub fn read_cached(&self, cache: &mut SlotCache, gpa: Gpa, buf: &mut [u8]) -> Result {
        user::copy_from(self.hva_cached(cache, gpa)?, buf)
    }

    /// A naturally aligned word of 1, 2, 4 or 8 bytes, in one piece; else as
    /// [`Mmu::read_cached`].
    ///
    /// # Errors
    ///
    /// As [`Mmu::read`].
    pub fn read_word_cached(&self, cache: &mut SlotCache, gpa: Gpa, size: u8) -> Result<u64> {
        user::read_word(self.hva_cached(cache, gpa)?, size)
    }

    /// Writes such a word.
    ///
    /// # Errors
    ///
    /// As [`Mmu::write`].
    pub fn write_word(&self, gpa: Gpa, size: u8, value: u64) -> Result {
        self.change(gpa, size.into(), |hva| user::write_word(hva, size, value))
    }

    /// User address of a guest-physical one, if the cache has it: without a lock, for where nothing
    /// may sleep.
    #[inline]
    pub fn hva_known(&self, cache: &SlotCache, gpa: Gpa) -> Option<Hva> {
        cache.find(self.generation.load(Ordering::Acquire), gpa)
    }

    /// True when the cache knows that there is no memory: without a lock.
    #[inline]
    pub fn is_hole(&self, cache: &SlotCache, gpa: Gpa) -> bool {
        cache.hole.contains(gpa.gfn())
            && cache.generation == self.generation.load(Ordering::Acquire)
    }

    /// Makes the cache know it.
    pub fn note_hole(&self, cache: &mut SlotCache, gpa: Gpa) {
        if self.is_hole(cache, gpa) {
            return;
        }
        let (hole, generation) = {
            let state = self.state.read();
            (state.view().gap(gpa.gfn()), state.generation)
        };
        if let Some(hole) = hole {
            cache.renew(generation);
            cache.hole = hole;
        }
    }

    #[inline]
    fn hva_cached(&self, cache: &mut SlotCache, gpa: Gpa) -> Result<Hva> {
        match self.hva_known(cache, gpa) {
            Some(hva) => Ok(hva),
            None => self.hva_looked_up(cache, gpa),
        }
    }

    #[cold]
    fn hva_looked_up(&self, cache: &mut SlotCache, gpa: Gpa) -> Result<Hva> {
        // Before the slot: should it change in between, what is kept is known to be old.
        let generation = self.generation.load(Ordering::Acquire);
        let slot = self.slot(gpa).ok_or_else(no_such_device)?;
        cache.put(generation, &slot);
        slot.hva_of_gpa(gpa).ok_or_else(no_such_device)
    }

    /// What is at a guest-physical address, up to the end of its page.
    pub fn backing(&self, gpa: Gpa) -> Backing {
        let Some(slot) = self.slot(gpa) else {
            return Backing::Mmio;
        };
        match slot.hva_of_gpa(gpa) {
            None => Backing::Mmio,
            Some(hva) if slot.flags.contains(SlotFlags::READ_ONLY) => Backing::Rom(hva),
            Some(hva) => Backing::Ram(hva),
        }
    }

    /// Reads guest memory; the range may cross pages and slots.
    ///
    /// # Errors
    ///
    /// `ENXIO` where the guest has no memory, `EFAULT` where the VMM has none behind it.
    pub fn read(&self, gpa: Gpa, mut buf: &mut [u8]) -> Result {
        let mut gpa = gpa;
        while !buf.is_empty() {
            let len = to_page_end(gpa.page_offset()).min(buf.len());
            let (now, rest) = buf.split_at_mut_checked(len).ok_or(EFAULT)?;
            match self.backing(gpa) {
                Backing::Ram(hva) | Backing::Rom(hva) => user::copy_from(hva, now)?,
                Backing::Mmio => return Err(no_such_device()),
            }
            buf = rest;
            gpa = gpa.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Writes guest memory; the range may cross pages and slots.
    ///
    /// # Errors
    ///
    /// `ENXIO` where the guest has no memory to be written, `EFAULT` where the VMM has none behind
    /// it.
    pub fn write(&self, gpa: Gpa, mut buf: &[u8]) -> Result {
        let mut gpa = gpa;
        while !buf.is_empty() {
            let len = to_page_end(gpa.page_offset()).min(buf.len());
            let (now, rest) = buf.split_at_checked(len).ok_or(EFAULT)?;
            self.change(gpa, len, |hva| user::copy_to(hva, now))?;
            buf = rest;
            gpa = gpa.wrapping_add(len as u64);
        }
        Ok(())
    }

    /// Replaces a naturally aligned word of guest memory if it still holds `old`; tells what was
    /// there.
    ///
    /// # Errors
    ///
    /// `ENXIO` where the guest has no memory to be written, `EFAULT` where the VMM has none behind
    /// it.
    pub fn compare_exchange(&self, gpa: Gpa, size: u8, old: u64, new: u64) -> Result<u64> {
        let exchange = |hva| user::compare_exchange(hva, size, old, new);
        self.change(gpa, size.into(), exchange)
    }

    /// The same for a walk that sets flags of an entry, which changes no translation.
    ///
    /// # Errors
    ///
    /// As [`Mmu::compare_exchange`].
    pub fn set_flags(
        &self,
        cache: &SlotCache,
        gpa: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<u64> {
        if let Some(hva) = cache.find_plain(self.generation.load(Ordering::Acquire), gpa) {
            let result = user::compare_exchange(hva, size, old, new);
            self.wrote_somewhere(gpa);
            return result;
        }
        self.change_quietly(gpa, |hva| user::compare_exchange(hva, size, old, new))
    }

    /// Writes inside one page, logs that, and lets shadow tables follow.
    fn change<R>(&self, gpa: Gpa, len: usize, write: impl FnOnce(Hva) -> Result<R>) -> Result<R> {
        let result = self.change_quietly(gpa, write);
        self.shadow_wrote(gpa, len);
        result
    }

    /// Writes inside one page, and logs that.
    fn change_quietly<R>(&self, gpa: Gpa, write: impl FnOnce(Hva) -> Result<R>) -> Result<R> {
        let slot = self.slot(gpa).ok_or_else(no_such_device)?;
        if slot.flags.contains(SlotFlags::READ_ONLY) {
            return Err(no_such_device());
        }
        let result = write(slot.hva_of_gpa(gpa).ok_or_else(no_such_device)?);
        // Whatever came of it: some of it may have been written.
        self.wrote(&slot, gpa);
        result
    }
}

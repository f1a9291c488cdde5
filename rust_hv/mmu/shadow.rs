// SPDX-License-Identifier: GPL-2.0

//! Shadow tables, in place of the guest's: a vCPU's root, faults, and what the guest does to its own
//! tables. The tables themselves are in `model/paging/shadow`.
//!
//! # Locks
//!
//! The tables are a part of `Mmu::state`. Nothing here is called with interrupts off: a vCPU leaves
//! its window first.
//!
//! # The guest's tables are read without the lock
//!
//! That may fault, and sleep. A fault notes [`crate::model::paging::shadow::Shadow::sequence`]
//! before it walks, and maps under the lock only if that is the same, and the host's page as it was
//! (`State::is_current`).

mod fault;

use super::access::SlotCache;
use super::choice::{PagingMode, MAX_TABLES};
use super::owners::look_at;
use super::paging::Shadows;
use super::unlinked::Unlinked;
use super::{Mmu, Moment};
use crate::host::errno::unsupported;
use crate::host::frame::Frame;
use crate::host::notifier::HvaRange;
use crate::host::pool::Reserve;
use crate::host::tables::{give_back, Tables};
use crate::host::task;
use crate::host::user::{PageRun, UserPages, Wanted};
use crate::model::arch::addr::{Gfn, Gpa, Gva, Hpa, Hva, PAGE_SIZE};
use crate::model::arch::exception::PageFaultError;
use crate::model::memory::slots::{Slot, SlotFlags};
use crate::model::paging::frames::TableFrame;
use crate::model::paging::shadow::route::RootKey;
use crate::model::paging::shadow::{
    self, Cause, Cursor, Filled, HostPage, Lack, LeafTable, Policy, ShadowCounts, Spot, Syncing,
    TableId,
};
use crate::model::paging::state::PagingState;
use crate::model::paging::walk::GuestPhys;
use crate::model::paging::PageSize;
use crate::model::sync::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Tables that are watched again with one flush.
const SYNCED: usize = 8;

/// A vCPU's part of shadow paging.
pub struct ShadowCpu {
    pub(super) mmu: Arc<Mmu>,
    pub(super) place: Place,
    pub(super) run: PageRun,
}

/// Where a vCPU is in the tables, and what it keeps for the next change of them.
pub(super) struct Place {
    root: Option<TableId>,
    /// The tables' sequence when it was last looked at: whatever was read since is current if it is
    /// still the same.
    sequence: u64,
    /// The table of the last fault.
    leaf: Option<LeafTable>,
    /// The slot of the last fault, as of this moment.
    slot: Option<(Slot, Moment)>,
    reserves: [Reserve; 3],
    /// For a root below 4 GiB.
    pointers: Option<TableFrame>,
    comparing: Comparing,
}

/// A guest table that is being compared, and how it is reached.
struct Comparing {
    words: KBox<[u64; 512]>,
    slots: SlotCache,
}

const _: () = assert!(3 * crate::host::pool::RESERVE >= shadow::RESERVE);

impl ShadowCpu {
    /// Without a root yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(mmu: Arc<Mmu>) -> Result<KBox<Self>> {
        // Where it is to be: it is too large for the stack.
        let new = try_init!(Self {
            mmu,
            place: Place {
                root: None,
                sequence: 0,
                leaf: None,
                slot: None,
                reserves: Default::default(),
                pointers: None,
                comparing: Comparing {
                    words: KBox::zeroed(GFP_KERNEL_ACCOUNT)?,
                    slots: SlotCache::new(),
                },
            },
            run: PageRun::new(),
        });
        KBox::init(new, GFP_KERNEL_ACCOUNT)
    }

    /// The root that it runs on.
    pub(super) fn current_root(&self) -> Option<TableId> {
        self.place.root
    }
}

impl Place {
    /// What is read from here on is as new as this.
    fn renew(&mut self, sequence: u64) {
        if self.sequence != sequence {
            // Its table may be another one's by now.
            self.leaf = None;
            self.sequence = sequence;
        }
    }
}

impl Drop for ShadowCpu {
    fn drop(&mut self) {
        if let (Some(root), Some(shadow)) = (self.place.root, self.mmu.state.write().tree.shadow())
        {
            shadow.leave(root);
        }
        if let Some(frame) = self.place.pointers.take() {
            give_back(&self.mmu.supply, frame);
        }
    }
}

/// A fault, and who made it.
#[derive(Clone, Copy)]
pub struct GuestFault {
    /// Where.
    pub gva: Gva,
    /// What the CPU says of it.
    pub code: PageFaultError,
    /// Current privilege level.
    pub cpl: u8,
    /// RFLAGS.AC.
    pub ac: bool,
}

impl Mmu {
    /// What shadow tables have been through; zeroes without any.
    pub fn shadow_counts(&self) -> ShadowCounts {
        let mut state = self.state.write();
        let shadow = state.tree.shadow();
        shadow.map(|shadow| shadow.counts).unwrap_or_default()
    }

    fn with_shadow<R>(&self, f: impl FnOnce(&mut Shadows) -> R) -> Result<R> {
        self.state.write().tree.shadow().map(f).ok_or(EIO)
    }

    /// Waits until no CPU uses what shadow tables have dropped.
    fn flush_stale(&self, stale: Option<u64>) -> Result {
        if let Some(stale) = stale {
            self.tlb.flush(&self.stats);
            self.with_shadow(|shadow| shadow.flushed(stale))?;
        }
        Ok(())
    }

    /// Drops all shadow tables, in steps.
    pub(super) fn forget_shadows(&self) {
        if self.choice.mode() == PagingMode::Nested {
            return;
        }
        let mut cursor = Cursor::default();
        loop {
            let mut unlinked = Unlinked::new(self);
            let memory = Tables::existing(&self.supply);
            let done = match self.state.write().tree.shadow() {
                Some(shadow) => {
                    let done = shadow.clear(&memory, &mut unlinked, &mut cursor);
                    unlinked.note(shadow);
                    done
                }
                None => true,
            };
            // Dropped here, after the lock: flush, then free.
            drop(unlinked);
            if done {
                return;
            }
            task::cond_resched();
        }
    }

    /// Makes room in shadow tables.
    fn evict(&self) -> Result {
        let mut unlinked = Unlinked::new(self);
        let memory = Tables::existing(&self.supply);
        let room = self.with_shadow(|shadow| {
            let room = shadow.evict(&memory, &mut unlinked);
            unlinked.note(shadow);
            room
        })?;
        drop(unlinked);
        task::cond_resched();
        if room {
            Ok(())
        } else {
            Err(ENOMEM)
        }
    }

    /// Brings shadow tables in step with the guest's: those that refer to others, or all.
    fn sync(&self, comparing: &mut Comparing, leaves: bool) -> Result {
        let Comparing { words, slots } = comparing;
        let memory = Tables::existing(&self.supply);
        let mut since = None;
        for _ in 0..MAX_TABLES {
            let mut syncing = [None; SYNCED];
            let stale = self.with_shadow(|shadow| {
                // What other vCPUs change from here on is of no concern.
                let since = *since.get_or_insert(shadow.sequence);
                for (skip, place) in syncing.iter_mut().enumerate() {
                    *place = shadow.begin_sync(&memory, leaves, since, skip);
                    if place.is_none() {
                        break;
                    }
                }
                shadow.stale()
            })?;
            let last = syncing.iter().any(Option::is_none);
            if !syncing.iter().all(Option::is_none) {
                // Whatever the guest writes from here on is noticed.
                self.flush_stale(stale)?;
            }
            for syncing in syncing.into_iter().flatten() {
                let read = self.read_table(slots, &syncing, words);
                let words = read.is_ok().then_some(&**words);
                self.with_shadow(|shadow| shadow.compare(&memory, &syncing, words))?;
            }
            if last {
                return Ok(());
            }
            task::cond_resched();
        }
        Ok(())
    }

    /// Reads what is compared of a guest's table.
    fn read_table(
        &self,
        slots: &mut SlotCache,
        syncing: &Syncing,
        words: &mut [u64; 512],
    ) -> Result {
        let gpa = syncing.gfn().base().ok_or(EINVAL)?;
        let Some(wanted) = syncing.words() else {
            return self.read_cached(slots, gpa, words.as_mut_bytes());
        };
        for (place, mut bits) in wanted.into_iter().enumerate() {
            while bits != 0 {
                let index = place * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let at = gpa.wrapping_add(index as u64 * 8);
                if let Some(word) = words.get_mut(index) {
                    *word = self.read_word_cached(slots, at, 8)?;
                }
            }
        }
        Ok(())
    }

    /// The root of the tables that the CPU walks for these registers, in step with the guest's
    /// tables: what MOV to CR3 does.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for 5-level paging; `ENOMEM`.
    pub(super) fn shadow_root(&self, cpu: &mut Place, paging: &PagingState) -> Result<Hpa> {
        self.sync(&mut cpu.comparing, true)?;
        let key = RootKey::of(paging, paging.pointers()).ok_or_else(unsupported)?;
        loop {
            self.fill(cpu)?;
            if key.has_pointers() && cpu.pointers.is_none() {
                let frame = Frame::new_below_4g(self.supply.place())?;
                cpu.pointers = Some(TableFrame::new(frame.into_hpa()));
            }
            let mut memory = Tables::with_reserves(&self.supply, &mut cpu.reserves);
            let entered = self.with_shadow(|shadow| {
                let entered = shadow.enter(&mut memory, &key, &mut cpu.pointers);
                if let (Ok(_), Some(old)) = (entered, cpu.root) {
                    shadow.leave(old);
                }
                // The table was another root's.
                (cpu.sequence, cpu.leaf) = (shadow.sequence, None);
                entered.map(|root| (root, shadow.root(root)))
            })?;
            match entered {
                Ok((root, hpa)) => {
                    cpu.root = Some(root);
                    return hpa.ok_or(EIO);
                }
                Err(Lack::Room) => self.evict()?,
                Err(Lack::Frames) => return Err(ENOMEM),
            }
        }
    }

    /// Room in the inverted page table for what a fault maps.
    fn grow_inverted(&self, cpu: &mut Place) -> Result {
        if self.inverted.is_short() {
            let [reserve, ..] = &mut cpu.reserves;
            self.inverted.grow(reserve)?;
            reserve.fill(&self.supply)?;
        }
        Ok(())
    }

    fn fill(&self, cpu: &mut Place) -> Result {
        for reserve in &mut cpu.reserves {
            reserve.fill(&self.supply)?;
        }
        Ok(())
    }

    /// INVLPG; without an address, as MOV to CR3. True when the CPU has to forget the one address
    /// only.
    ///
    /// # Errors
    ///
    /// `EIO`.
    pub(super) fn shadow_invalidate<M: GuestPhys<Error = Error>>(
        &self,
        cpu: &mut Place,
        run: &mut PageRun,
        guest: &mut M,
        paging: &PagingState,
        gva: Option<Gva>,
    ) -> Result<bool> {
        let Some(gva) = gva else {
            // What the CPU knows of the guest's tables goes, too.
            cpu.leaf = None;
            self.sync(&mut cpu.comparing, true)?;
            return Ok(false);
        };
        if self.renew_page(cpu, run, guest, paging, gva)? {
            return Ok(true);
        }
        let memory = Tables::existing(&self.supply);
        let Some(root) = cpu.root else {
            self.sync(&mut cpu.comparing, true)?;
            return Ok(false);
        };
        let (small, loose) = self.with_shadow(|shadow| {
            let small = shadow.invalidate(&memory, root, gva);
            cpu.renew(shadow.sequence);
            (small, shadow.has_loose_tables())
        })?;
        if loose {
            self.sync(&mut cpu.comparing, false)?;
        }
        Ok(small && !loose)
    }

    /// INVLPG where the way to the guest's entry is known: that alone is compared, and what it says
    /// by now is mapped at once, if the guest has used it before. False when there is more to it.
    fn renew_page<M: GuestPhys<Error = Error>>(
        &self,
        cpu: &mut Place,
        run: &mut PageRun,
        guest: &mut M,
        paging: &PagingState,
        gva: Gva,
    ) -> Result<bool> {
        let Some(root) = cpu.root else {
            return Ok(false);
        };
        let tables = Tables::existing(&self.supply);
        let found = self.with_shadow(|shadow| {
            if shadow.has_loose_tables() {
                return None;
            }
            let leaf = shadow.leaf_table(&tables, root, gva)?;
            let (at, spot) = leaf.place(gva);
            let old = shadow.recall(&tables, spot);
            (cpu.sequence, cpu.leaf) = (shadow.sequence, Some(leaf));
            Some((at, spot, old))
        })?;
        let Some((at, spot, old)) = found else {
            return Ok(false);
        };
        let Ok(now) = guest.read_entry(at, paging.entry_size()) else {
            return Ok(false);
        };
        if old.is_some_and(|old| shadow::is_noted(old, now)) {
            return Ok(true);
        }
        if shadow::is_used(now, paging.reserved_in_small()) {
            // Without room in the inverted page table the next fault looks after that.
            let room = !self.inverted.is_short();
            if room && self.fill_used(cpu, run, paging, spot, now)? {
                return Ok(true);
            }
        } else if old.is_none() {
            return Ok(true);
        }
        self.with_shadow(|shadow| shadow.forget(&tables, spot, cpu.sequence))
    }

    /// Maps what an entry of the guest's says that it has used, as far as the host has that present.
    fn fill_used(
        &self,
        cpu: &mut Place,
        run: &mut PageRun,
        paging: &PagingState,
        spot: Spot,
        entry: u64,
    ) -> Result<bool> {
        let gfn = Gfn::new(paging.frame(entry));
        let Some((slot, moment)) = self.slot_now(cpu, gfn) else {
            return Ok(false);
        };
        let Some(hva) = slot.hva_of(gfn).filter(|_| slot.is_plain()) else {
            return Ok(false);
        };
        let Some(hpa) = UserPages::present(run, &self.mm, hva) else {
            return Ok(false);
        };
        let host = HostPage {
            hpa,
            writable: true,
            large: false,
        };
        let tables = Tables::existing(&self.supply);
        let mut state = self.state.write();
        if !state.is_current(moment, looked_up(hva, 1, false)) {
            drop(state);
            cpu.slot = None;
            return Ok(false);
        }
        let shadow = state.tree.shadow().ok_or(EIO)?;
        let filled = shadow.fill(&tables, spot, cpu.sequence, entry, host, Cause::NONE);
        let shared = shadow.census.take_shared();
        drop(state);
        look_at(self.inverted, shared);
        Ok(filled == Filled::Done)
    }

    /// The hypervisor has written to a guest's page on the guest's behalf.
    pub(super) fn shadow_wrote(&self, gpa: Gpa, len: usize) {
        if self.choice.mode() == PagingMode::Nested {
            return;
        }
        let gfn = gpa.gfn().raw();
        let memory = Tables::existing(&self.supply);
        let watched = self.with_shadow(|shadow| match shadow.is_watched(gfn) {
            true if shadow.policy() == Policy::Exact => true,
            true => {
                shadow.loosen(gfn);
                false
            }
            false => false,
        });
        if watched != Ok(true) {
            return;
        }
        let (first, words) = match self.words_at(gpa, len) {
            Ok(found) => found,
            Err(_) => return self.loosen(gfn),
        };
        let words = words.get(..len.div_ceil(8) + 1).unwrap_or(&words);
        let words = words.get(..512usize.saturating_sub(first)).unwrap_or(words);
        let _ = self.with_shadow(|shadow| shadow.written(&memory, gfn, first, words));
    }

    fn loosen(&self, gfn: u64) {
        let _ = self.with_shadow(|shadow| shadow.loosen(gfn));
    }

    /// The words of a page around what was written there; the number of the first.
    fn words_at(&self, gpa: Gpa, len: usize) -> Result<(usize, [u64; TOUCHED])> {
        let first = (gpa.page_offset() / 8) as usize;
        if len > (TOUCHED - 1) * 8 {
            return Err(E2BIG);
        }
        let mut words = [0; TOUCHED];
        let count = TOUCHED.min(512 - first);
        let bytes = words.as_mut_bytes().get_mut(..count * 8).ok_or(EINVAL)?;
        self.read(Gpa::new(gpa.page_base().raw() + first as u64 * 8), bytes)?;
        Ok((first, words))
    }

    /// The slot of a frame as the slots are now, and when the host's changes were last looked at,
    /// which may be a while ago.
    fn slot_now(&self, cpu: &mut Place, gfn: Gfn) -> Option<(Slot, Moment)> {
        let generation = self.generation.load(Ordering::Acquire);
        if let Some((slot, moment)) = cpu.slot {
            if moment.generation == generation && slot.gfns().contains(gfn) {
                return Some((slot, moment));
            }
        }
        let state = self.state.read();
        let slot = state.view().find(gfn).copied()?;
        cpu.slot = Some((slot, state.moment()));
        cpu.slot
    }

    /// After a write to a guest's table was executed: maps at once what its entry refers to now.
    ///
    /// # Errors
    ///
    /// `EIO`.
    pub(super) fn shadow_refill(
        &self,
        run: &mut PageRun,
        paging: &PagingState,
        gpa: Gpa,
    ) -> Result {
        if self.inverted.is_short() {
            // A fault looks after that.
            return Ok(());
        }
        let gfn = gpa.gfn().raw();
        let sequence = self.with_shadow(|shadow| shadow.sequence)?;
        let Ok((word, words)) = self.words_at(gpa, 1) else {
            return Ok(());
        };
        let [value, ..] = words;
        let reserved = paging.reserved_in_small();
        let mut places = [None; 4];
        let memory = Tables::existing(&self.supply);
        self.with_shadow(|shadow| {
            let mut free = places.iter_mut();
            shadow.spots(gfn, word, value, |spot, source| {
                if shadow::is_used(source, reserved) {
                    if let Some(place) = free.next() {
                        *place = Some((spot, source));
                    }
                }
            });
        })?;
        for (spot, source) in places.into_iter().flatten() {
            let frame = self.with_shadow(|shadow| shadow.candidate(&memory, spot, source))?;
            let Some(frame) = frame.map(Gfn::new) else {
                continue;
            };
            let found = {
                let state = self.state.read();
                let slot = state.view().find(frame).copied();
                slot.map(|slot| (slot, state.moment()))
            };
            let Some((slot, moment)) = found else {
                continue;
            };
            let Some(hva) = slot.hva_of(frame) else {
                continue;
            };
            let wanted = match slot.flags.contains(SlotFlags::READ_ONLY) {
                true => Wanted::ReadOnly,
                false => Wanted::Read,
            };
            // What is not there comes with a fault.
            let Ok(pages) = UserPages::get(run, &self.mm, hva, wanted, 1) else {
                continue;
            };
            let Some(hpa) = pages.iter().next() else {
                continue;
            };
            let host = HostPage {
                hpa,
                writable: pages.writable() && wanted == Wanted::Read && !slot.flags.log_dirty(),
                large: false,
            };
            let mut state = self.state.write();
            if state.is_current(moment, looked_up(hva, 1, false)) {
                let shadow = state.tree.shadow().ok_or(EIO)?;
                shadow.fill(&memory, spot, sequence, source, host, Cause::NONE);
                let shared = shadow.census.take_shared();
                drop(state);
                look_at(self.inverted, shared);
            }
        }
        Ok(())
    }

    /// The guest may write to a table as if it was none, until it is next looked at: where the
    /// instruction cannot be executed.
    pub(super) fn shadow_let_go(&self, gpa: Gpa) {
        self.loosen(gpa.gfn().raw());
    }
}

/// Words that one write of an instruction can touch, and one more.
const TOUCHED: usize = 10;

/// The host range whose pages are about to be mapped.
fn looked_up(hva: Hva, count: usize, large: bool) -> HvaRange {
    let size = PageSize::Size2M.bytes();
    let (start, bytes) = match large {
        true => (hva.raw() & !(size - 1), size),
        false => (hva.raw(), (count as u64).wrapping_mul(PAGE_SIZE)),
    };
    let start = Hva::new(start);
    HvaRange {
        start,
        end: start.wrapping_add(bytes),
    }
}

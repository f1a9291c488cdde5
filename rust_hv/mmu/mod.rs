// SPDX-License-Identifier: GPL-2.0

//! A VM's memory: slots, the tables behind its guest-physical addresses, faults, and the TLB
//! protocol.
//!
//! | File | What it holds |
//! |---|---|
//! | `mod` | the address space and its lock; slots; notifications of the host |
//! | `choice` | how a VM's memory is virtualized |
//! | `paging` | what the tables of every paging mode can do |
//! | `vcpu` | what every paging mode makes of what guests do |
//! | `fault` | from a nested fault to a mapping |
//! | `size` | how large a page may be mapped |
//! | `rights` | what guests may do with a slot |
//! | `mapper` | what faults have mapped and not told of yet |
//! | `shadow` | the same, and the rest, where the tables stand in place of the guest's |
//! | `tlb` | which CPU must forget what, and when a frame may be freed |
//! | `unlinked` | what was taken out of the tables, until that is safe |
//! | `access` | reads and writes of guest memory by the hypervisor |
//! | `dirty` | which pages of a slot were written: the dirty log |
//! | `cpu_log` | what CPUs note themselves: their logs, and dirty flags |
//! | `owners` | which VM has a host frame mapped, and where: the inverted page table |
//! | `verify` | the inverted page table compared with the VMs' own |
//! | `query` | who has a frame, where an address is: for user space |
//! | `reverse` | a frame taken from all guests that have it |
//! | `show` | what of that is to be seen in debugfs |
//!
//! # Locks
//!
//! `slots_lock` (mutex, sleeps) → `state` (reader/writer lock, spins) → the inverted page table's,
//! the frame pools' and `tlb`'s (spinlocks).
//!
//! * `slots_lock`: one change of the slots at a time.
//! * `state`: slots, tables, and what the host has told us of changes under way. Taken inside the
//!   host's own locks, by the notifier: nothing is allocated or copied from user space under it.
//!   CPUs are interrupted after it is dropped; it is never taken with interrupts off. Whoever
//!   reads does not take it again, for reading either.
//!
//! Faults with nested tables hold `state` for reading, any number at once: they only add to the
//! tables (`model/paging/grow.rs`). Whoever takes something away, from the tables or the slots,
//! holds it for writing, and so does every fault without nested tables.
//!
//! # How a host page gets into the tables, and out of them
//!
//! The notifier says before a page of the VMM changes, and after. A fault looks the page up
//! without the lock, remembering `sequence` from before, and maps it under the lock only if no
//! change has come or is under way ([`State::is_current`]). Otherwise it starts over. So no
//! mapping outlives the host's own, and nothing is pinned.

pub mod access;
pub mod choice;
mod cpu_log;
pub mod dirty;
pub mod fault;
mod mapper;
pub mod owners;
mod paging;
pub mod query;
pub mod reverse;
pub mod rights;
pub mod shadow;
pub mod show;
mod size;
pub mod tlb;
mod unlinked;
pub mod vcpu;
pub mod verify;

use crate::host::inverted::{InvertedTable, INVERTED};
use crate::host::notifier::{HvaRange, MmuEvents};
use crate::host::pool::Reserve;
use crate::host::rwlock::RwLock;
use crate::host::supply::Supply;
use crate::host::tables::Tables;
use crate::host::task;
use crate::host::user::{self, UserMm};
use crate::model::arch::addr::{Gfn, GfnRange, Gpa};
use crate::model::memory::slots::{plan, Change, Limits, Request, Slot, SlotView};
use crate::model::paging::frames::Counts;
use crate::model::paging::nested::Nested;
use crate::model::paging::sweep::Progress;
use crate::model::paging::table::Table;
use crate::model::sync::{AtomicU64, Ordering};
use crate::vendor::flush::Flushes;
use crate::vendor::{KeepAlive, NestedRoot};
use choice::{Choice, ChosenNotice};
use dirty::{Logs, Manual, Prepared};
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::sync::{new_mutex, Arc, Mutex};
use mapper::Mappers;
use owners::{Notes, OwnerId};
use paging::{Mode, Paging, Shadows, Steps};
use tlb::Tlb;
use unlinked::{Gone, Unlinked};

/// Entries that one step of a long change looks at before the lock is dropped.
const STEP: usize = 4096;

/// What a VM's memory has been through.
pub struct MmuStats {
    /// Changes that made translations stale.
    pub flushes: Atomic<u64>,
    /// CPUs interrupted for them.
    pub flush_ipis: Atomic<u64>,
    /// CPUs that were left alone: they flush when the VM runs there again.
    pub flushes_deferred: Atomic<u64>,
    /// What CPUs were told to forget.
    pub hardware: Flushes,
    /// Flushes executed before an entry.
    pub invalidations: Atomic<u64>,
    /// Notifications that met a slot.
    pub notifications: Atomic<u64>,
    /// Faults repeated as the host changed the page meanwhile.
    pub retries: Atomic<u64>,
    /// Page faults of guests without nested tables.
    pub shadow_faults: Atomic<u64>,
    /// Writes to such guests' tables that were executed in software.
    pub table_writes: Atomic<u64>,
}

impl MmuStats {
    const fn new() -> Self {
        Self {
            flushes: Atomic::new(0),
            flush_ipis: Atomic::new(0),
            flushes_deferred: Atomic::new(0),
            hardware: Flushes::new(),
            invalidations: Atomic::new(0),
            notifications: Atomic::new(0),
            retries: Atomic::new(0),
            shadow_faults: Atomic::new(0),
            table_writes: Atomic::new(0),
        }
    }
}

/// The tables of a VM, freed on drop. That happens with the last reference to the address space,
/// when no vCPU and no notifier is left, so nothing walks the tables any more.
struct Tree {
    /// Some until `drop`.
    mode: Option<Mode>,
    supply: Arc<Supply>,
    notes: Notes,
}

/// Tables that map nothing.
fn empty_table(supply: &Supply, format: Nested) -> Result<Table<Nested>> {
    let mut reserve = Reserve::default();
    reserve.fill(supply)?;
    let mut memory = Tables::with_reserve(supply, &mut reserve);
    Table::new(&mut memory, format, format.levels()).ok_or(ENOMEM)
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(mode) = self.mode.take() {
            let notes = &mut self.notes;
            mode.destroy(&mut Tables::existing(&self.supply), |gfn, leaf| {
                notes.unmapped(gfn, &leaf);
            });
            notes.end();
        }
    }
}

impl Tree {
    /// The tables, where the CPU walks them behind the guest's own.
    #[inline]
    fn nested(&mut self) -> Option<&mut Table<Nested>> {
        match &mut self.mode {
            Some(Mode::Nested(table)) => Some(table),
            _ => None,
        }
    }

    /// The same, to be looked at.
    fn walked(&self) -> Option<&Table<Nested>> {
        match &self.mode {
            Some(Mode::Nested(table)) => Some(table),
            _ => None,
        }
    }

    /// The tables, where they stand in place of the guest's own.
    #[inline]
    fn shadow(&mut self) -> Option<&mut Shadows> {
        match &mut self.mode {
            Some(Mode::Shadow(shadow)) => Some(shadow),
            _ => None,
        }
    }
}

/// What `Mmu::state` protects.
struct State {
    /// Sorted by guest address.
    slots: KVec<Slot>,
    /// Changes with every change of `slots`; `Mmu::generation` follows.
    generation: u64,
    /// Those of the slots whose flag asks for one, and of no others.
    logs: Logs,
    /// A slot that logs and has moved, as it was, until neither the tables nor a CPU's log has pages of
    /// it.
    moved: Option<Slot>,
    /// A slot that is not in `slots` any more, or elsewhere, as it was, until nothing of it is mapped and
    /// no CPU has a translation: the host may want its pages back meanwhile.
    leaving: Option<Slot>,
    tree: Tree,
    /// What the vCPUs' faults have added to `tree` and not told of yet.
    mappers: Mappers,
    /// Changes under way in the host.
    invalidating: u64,
    /// Union of what they touch; none without a change under way.
    range: Option<HvaRange>,
    /// Changes completed by the host.
    sequence: u64,
}

/// The moment at which a fault looked at slots and host.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Moment {
    generation: u64,
    sequence: u64,
}

impl State {
    fn view(&self) -> SlotView<'_> {
        SlotView::new(&self.slots)
    }

    /// The guest frames of the first slot behind a host range from index `next` on, which moves past
    /// it. The last one is `leaving`.
    fn behind(&self, range: HvaRange, next: &mut usize) -> Option<GfnRange> {
        let HvaRange { start, end } = range;
        if let Some((index, gfns)) = self.view().find_hva_range(start, end, *next).next() {
            *next = index.saturating_add(1);
            return Some(gfns);
        }
        match core::mem::replace(next, usize::MAX) {
            usize::MAX => None,
            _ => self.leaving?.gfns_of_hva(start, end),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            generation: self.generation,
            sequence: self.sequence,
        }
    }

    /// True when nothing that was looked up at `moment` in the host range can have changed since.
    fn is_current(&self, moment: Moment, looked_up: HvaRange) -> bool {
        let touched = self
            .range
            .is_some_and(|range| range.start < looked_up.end && looked_up.start < range.end);
        self.moment() == moment && !touched
    }
}

/// The address space of one VM.
#[pin_data]
pub struct Mmu {
    #[pin]
    slots_lock: Mutex<()>,
    #[pin]
    state: RwLock<State>,
    /// `State::generation`, to be looked at without the lock.
    generation: AtomicU64,
    /// `State::sequence`, likewise.
    sequence: AtomicU64,
    /// Number of `State::logs`, to be looked at without the lock.
    logged: AtomicU64,
    /// Slots with which guests may not do all that there is.
    restricted: AtomicU64,
    /// Who clears the logs.
    manual_log: Manual,
    #[pin]
    tlb: Tlb,
    limits: Limits,
    mm: UserMm,
    supply: Arc<Supply>,
    /// The best that the CPU has; see [`Mmu::format`].
    format: Nested,
    overrules_pat: bool,
    /// How memory is virtualized.
    choice: Choice,
    /// How writes to it are noticed.
    notice: ChosenNotice,
    inverted: &'static InvertedTable,
    /// After `state`: no number is given to another VM while something is mapped.
    owner: OwnerId,
    /// Counters, for `RUSTHV_GET_VM_STATS`.
    pub stats: MmuStats,
}

/// Counts of [`Mmu`]'s tables.
#[derive(Default)]
pub struct TableCounts {
    /// 4 KiB frames in tables.
    pub tables: u64,
    /// Mapped pages of 4 KiB, 2 MiB and 1 GiB.
    pub leaves: [u64; 3],
}

impl TableCounts {
    fn plus(mut self, more: &Counts) -> Self {
        self.tables = self.tables.wrapping_add(more.tables);
        for (count, more) in self.leaves.iter_mut().zip(more.leaves) {
            *count = count.wrapping_add(more);
        }
        self
    }
}

impl Mmu {
    /// An address space without memory, for the current task's VMs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(
        format: Nested,
        phys_bits: u32,
        mm: UserMm,
        supply: Arc<Supply>,
    ) -> Result<impl PinInit<Self, Error>> {
        let (inverted, owner) = (INVERTED.get()?, OwnerId::new()?);
        let table = empty_table(&supply, format)?;
        let tree = Tree {
            mode: Some(Mode::Nested(table)),
            supply: supply.clone(),
            notes: Notes::new(inverted, &owner),
        };
        let tlb = Tlb::new()?;
        let state = State {
            slots: KVec::new(),
            generation: 1,
            logs: Logs::new(),
            moved: None,
            leaving: None,
            tree,
            mappers: Mappers::new(),
            invalidating: 0,
            range: None,
            sequence: 0,
        };
        let bits = phys_bits.min(format.address_bits());
        let limits = Limits::new(bits, user::max_user_address());
        Ok(try_pin_init!(Self {
            tlb <- tlb,
            slots_lock <- new_mutex!(()),
            state <- RwLock::new(state, c"Mmu::state", kernel::static_lock_class!()),
            // A cache that was never filled is never current.
            generation: AtomicU64::new(1),
            sequence: AtomicU64::new(0),
            logged: AtomicU64::new(0),
            restricted: AtomicU64::new(0),
            manual_log: Manual::new(),
            limits,
            mm,
            supply,
            format,
            overrules_pat: format.overrules_pat(),
            choice: Choice::new(),
            notice: ChosenNotice::new(format.notice()),
            inverted,
            owner,
            stats: MmuStats::new(),
        }))
    }

    /// The tables, for the hardware; they live as long as the address space.
    pub fn root(this: &Arc<Self>) -> NestedRoot {
        let table = this.state.read().tree.walked().map(|table| table.root());
        // Without nested tables nobody asks.
        NestedRoot::new(table.unwrap_or_default(), this.clone())
    }

    /// Puts the root table where the supply says now. No vCPU has it yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn renew_root(&self) -> Result {
        let new = Mode::Nested(empty_table(&self.supply, self.format())?);
        let mut state = self.state.write();
        // Without a vCPU nothing was mapped, and shadow tables are made when they are needed.
        let old = match state.tree.nested() {
            Some(_) => state.tree.mode.replace(new),
            None => Some(new),
        };
        drop(state);
        if let Some(old) = old {
            old.destroy(&mut Tables::existing(&self.supply), |_, _| {});
        }
        Ok(())
    }

    /// The address space of the VMM.
    pub fn mm(&self) -> &UserMm {
        &self.mm
    }

    /// Where its frames come from.
    pub fn supply(&self) -> &Supply {
        &self.supply
    }

    /// Which CPU must forget what.
    #[inline]
    pub fn tlb(&self) -> &Tlb {
        &self.tlb
    }

    /// How much is mapped, and with how many tables.
    pub fn counts(&self) -> TableCounts {
        let state = self.state.read();
        let mode = state.tree.mode.as_ref();
        let counts = mode.map(Paging::counts).unwrap_or_default();
        counts.plus(&state.mappers.counts())
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    ///
    /// # Errors
    ///
    /// As KVM: `EINVAL`, `EEXIST`, `ENOMEM`.
    pub fn set_slot(&self, request: &Request) -> Result {
        let _one_at_a_time = self.slots_lock.lock();
        // Only this lock's holder changes the slots: what is read now stays true.
        let (change, (count, logs)) = {
            let state = self.state.read();
            let change = plan(state.view(), request, &self.limits);
            (change, (state.slots.len(), state.logs.len()))
        };
        let change = change.map_err(|error| Error::from_errno(-error.errno()))?;
        if change == Change::Nothing {
            return Ok(());
        }
        let mut slots = KVec::with_capacity(count + 1, GFP_KERNEL_ACCOUNT)?;
        let all_dirty = self.manual_log.initially_set();
        let mut logs = Prepared::new(&change, logs, all_dirty)?;
        self.begin_change(&change);
        {
            let mut state = self.state.write();
            for slot in change.applied(SlotView::new(&state.slots)) {
                // Within the capacity: this allocates nothing.
                slots.push_within_capacity(slot).map_err(|_| ENOMEM)?;
            }
            core::mem::swap(&mut state.slots, &mut slots);
            logs.install(&mut state.logs);
            state.moved = cpu_log::moved(&change);
            state.leaving = change.before().filter(|_| change.unmaps());
            self.logged
                .store(state.logs.len() as u64, Ordering::Relaxed);
            self.slots_changed(&mut state);
        }
        // No fault maps a page of the old slot from here on.
        if let (true, Some(old)) = (change.unmaps(), change.before()) {
            self.zap(old.gfns(), true);
            self.state.write().leaving = None;
            // Tables of the guest's may have been in it.
            self.forget_shadows();
            self.end_move();
        }
        // Here the bitmap of a log that was goes, after the lock.
        drop(logs);
        if let Change::Flags { new, .. } = change {
            self.log_toggled(&new, all_dirty);
        }
        Ok(())
    }

    /// After each change of the slots.
    fn slots_changed(&self, state: &mut State) {
        let restricted = state.slots.iter().filter(|slot| slot.is_restricted());
        self.restricted
            .store(restricted.count() as u64, Ordering::Relaxed);
        state.generation = state.generation.wrapping_add(1);
        self.generation.store(state.generation, Ordering::Release);
    }

    /// The slot of a guest frame.
    pub fn slot(&self, gpa: Gpa) -> Option<Slot> {
        self.state.read().view().find(gpa.gfn()).copied()
    }

    /// Unmaps everything, in steps.
    pub fn clear(&self) {
        self.zap(everything(), true);
    }

    /// Unmaps a range, in steps; others may run between them when `may_sleep`.
    fn zap(&self, range: GfnRange, may_sleep: bool) {
        let mut steps = Steps::new(range);
        loop {
            let mut unlinked = Unlinked::new(self);
            let memory = Tables::existing(&self.supply);
            let progress = {
                let mut state = self.state.write();
                let (tree, mappers, written) = self.parts(&mut state);
                unlinked.notes.begin(mappers);
                let mut gone = Gone::new(&mut unlinked, written);
                let progress = match tree.mode.as_mut() {
                    Some(mode) => mode.unmap(&memory, &mut steps, &mut gone),
                    None => Progress::Done,
                };
                unlinked.notes.end();
                progress
            };
            // Dropped here, after the lock: flush, then free.
            drop(unlinked);
            if progress == Progress::Done {
                return;
            }
            if may_sleep {
                task::cond_resched();
            }
        }
    }

    /// Calls `f` for the guest frames of each slot behind a host range, without the lock; starts
    /// over when the slots change meanwhile. Tells if there was one.
    fn for_each_slot(&self, range: HvaRange, mut f: impl FnMut(GfnRange)) -> bool {
        let mut met = false;
        let mut next = 0;
        let mut generation = None;
        loop {
            let found = {
                let state = self.state.read();
                if generation.replace(state.generation) != Some(state.generation) {
                    next = 0;
                }
                state.behind(range, &mut next)
            };
            let Some(gfns) = found else { return met };
            met = true;
            f(gfns);
        }
    }
}

impl KeepAlive for Mmu {
    fn flushes(&self) -> &Flushes {
        &self.stats.hardware
    }
}

impl MmuEvents for Mmu {
    fn invalidate_start(&self, range: HvaRange, blockable: bool) {
        {
            let mut state = self.state.write();
            state.invalidating = state.invalidating.wrapping_add(1);
            state.range = Some(match state.range {
                Some(other) => HvaRange {
                    start: other.start.min(range.start),
                    end: other.end.max(range.end),
                },
                None => range,
            });
        }
        // From here on no fault maps a page of the range, until the matching end.
        let met = self.for_each_slot(range, |gfns| self.zap(gfns, blockable));
        if met {
            self.stats.notifications.add(1, Relaxed);
        }
    }

    fn invalidate_end(&self, _range: HvaRange) {
        let mut state = self.state.write();
        state.sequence = state.sequence.wrapping_add(1);
        self.sequence.store(state.sequence, Ordering::Release);
        state.invalidating = state.invalidating.saturating_sub(1);
        if state.invalidating == 0 {
            state.range = None;
        }
    }

    fn young(&self, range: HvaRange, clear: bool) -> bool {
        let mut young = false;
        self.for_each_slot(range, |gfns| {
            let memory = Tables::existing(&self.supply);
            let mut steps = Steps::new(gfns);
            loop {
                let mut state = self.state.write();
                let Some(mode) = state.tree.mode.as_mut() else {
                    return;
                };
                let (progress, used) = mode.young(&memory, &mut steps, clear);
                young |= used;
                if progress == Progress::Done {
                    return;
                }
            }
        });
        young
    }

    fn release(&self) {
        self.clear();
    }
}

/// All guest frames.
fn everything() -> GfnRange {
    GfnRange::new(Gfn::new(0), Gfn::new(u64::MAX))
}

#[kunit_tests(rusthv_mmu)]
mod tests {
    use super::fault::{Faults, Resolved};
    use super::*;
    use crate::host::kunit::UserMemory;
    use crate::host::notifier::Notifier;
    use crate::host::pool::{in_use, POOLS};
    use crate::model::arch::addr::PAGE_SIZE;
    use crate::model::emulate::Backing;
    use crate::model::exit::{NestedFault, Origin};
    use crate::model::paging::ept::Ept;
    use crate::model::paging::format::Notice;
    use crate::model::paging::PageSize;

    const READ_ONLY: u32 = 1 << 1;
    /// Where the tests put their memory.
    pub(super) const BASE: u64 = 0x10_0000;

    /// An address space that follows the test's.
    pub(super) struct Space {
        _notifier: Pin<KBox<Notifier<Mmu>>>,
        pub(super) mmu: Arc<Mmu>,
    }

    pub(super) fn space() -> Result<Space> {
        let format = Nested::Ept(Ept {
            accessed_dirty: true,
            notice: Notice::Fault,
            execute_only: false,
            largest: PageSize::Size4K,
            five_level: false,
        });
        let mm = UserMm::current()?;
        let supply = Arc::new(Supply::new(POOLS.get()?), GFP_KERNEL)?;
        let mmu = Mmu::new(format, 40, mm.clone(), supply)?;
        let mmu = Arc::pin_init(mmu, GFP_KERNEL)?;
        let notifier = KBox::pin_init(Notifier::new(mm, mmu.clone()), GFP_KERNEL)?;
        Ok(Space {
            _notifier: notifier,
            mmu,
        })
    }

    pub(super) fn request(slot: u32, flags: u32, gpa: u64, memory: &UserMemory) -> Request {
        Request {
            slot,
            flags,
            guest_phys_addr: gpa,
            memory_size: memory.bytes(),
            userspace_addr: memory.start().raw(),
        }
    }

    pub(super) fn fault(space: &Space, gpa: u64, write: bool) -> Result<Resolved> {
        let fault = NestedFault {
            gpa: Gpa::new(gpa),
            write,
            fetch: false,
            present: false,
            origin: Origin::Access(None),
        };
        Faults::new(space.mmu.clone())?.resolve(&fault)
    }

    fn mapped(space: &Space) -> u64 {
        let [small, _, _] = space.mmu.counts().leaves;
        small
    }

    /// KUnit's threads have no address space of their own, and so no VM.
    #[test]
    fn kernel_threads_have_no_memory() {
        assert_eq!(UserMm::current().err(), Some(EIO));
    }

    #[test]
    fn slots_are_checked() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        let set = |change: &dyn Fn(&mut Request)| {
            let mut wanted = request(1, 0, BASE, &memory);
            change(&mut wanted);
            space.mmu.set_slot(&wanted).err()
        };
        assert_eq!(set(&|_| ()), None);
        // Again, as it is.
        assert_eq!(set(&|_| ()), None);
        assert_eq!(set(&|r| r.memory_size = 2 * PAGE_SIZE), Some(EINVAL));
        assert_eq!(set(&|r| r.flags = 1 << 31), Some(EINVAL));
        assert_eq!(set(&|r| r.guest_phys_addr += 1), Some(EINVAL));
        assert_eq!(set(&|r| r.memory_size -= 1), Some(EINVAL));
        assert_eq!(set(&|r| r.userspace_addr += 1), Some(EINVAL));
        assert_eq!(set(&|r| r.slot = 2), Some(EEXIST));
        let elsewhere = |r: &mut Request| (r.slot, r.guest_phys_addr) = (2, BASE << 4);
        assert_eq!(
            set(&|r| {
                elsewhere(r);
                r.userspace_addr = 1 << 63;
            }),
            Some(EINVAL)
        );
        assert_eq!(
            set(&|r| {
                elsewhere(r);
                r.guest_phys_addr = 0u64.wrapping_sub(PAGE_SIZE);
            }),
            Some(EINVAL)
        );
        assert_eq!(set(&elsewhere), None);
        // Deleting one that is not there.
        assert_eq!(set(&|r| (r.slot, r.memory_size) = (3, 0)), Some(EINVAL));
        assert!(space.mmu.slot(Gpa::new(BASE)).is_some());
        assert_eq!(set(&|r| r.memory_size = 0), None);
        assert!(space.mmu.slot(Gpa::new(BASE)).is_none());
        assert!(space.mmu.slot(Gpa::new(BASE << 4)).is_some());
        Ok(())
    }

    #[test]
    fn faults_map_memory_and_deletion_unmaps_it() -> Result {
        let memory = UserMemory::new(4)?;
        let before = in_use();
        let space = space()?;
        assert_eq!(fault(&space, BASE, true), Ok(Resolved::Mmio(Backing::Mmio)));
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        assert_eq!(mapped(&space), 0);
        assert_eq!(fault(&space, BASE + 5, true), Ok(Resolved::Mapped));
        assert_eq!(mapped(&space), 1);
        assert_eq!(space.mmu.counts().tables, 4);
        // Another write to it changes nothing.
        assert_eq!(fault(&space, BASE, true), Ok(Resolved::Mapped));
        assert_eq!(mapped(&space), 1);
        for page in 0..4 {
            assert_eq!(
                fault(&space, BASE + page * PAGE_SIZE, true),
                Ok(Resolved::Mapped)
            );
        }
        assert_eq!(mapped(&space), 4);
        // Behind the slot.
        assert_eq!(
            fault(&space, BASE + memory.bytes(), false),
            Ok(Resolved::Mmio(Backing::Mmio))
        );
        let mut delete = request(0, 0, BASE, &memory);
        delete.memory_size = 0;
        space.mmu.set_slot(&delete)?;
        assert_eq!(mapped(&space), 0);
        assert_eq!(fault(&space, BASE, true), Ok(Resolved::Mmio(Backing::Mmio)));
        drop(space);
        assert_eq!(in_use(), before);
        Ok(())
    }

    /// Present neighbours are mapped with the page of the fault; absent ones are not faulted in.
    #[test]
    fn neighbours_come_along() -> Result {
        let memory = UserMemory::new(8)?;
        for page in 0..6 {
            user::copy_to(memory.start().wrapping_add(page * PAGE_SIZE), b"here")?;
        }
        let space = space()?;
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        assert_eq!(
            fault(&space, BASE + 2 * PAGE_SIZE, false),
            Ok(Resolved::Mapped)
        );
        assert_eq!(mapped(&space), 4);
        Ok(())
    }

    #[test]
    fn read_only_slots_are_not_written() -> Result {
        let memory = UserMemory::new(2)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, READ_ONLY, BASE, &memory))?;
        assert_eq!(fault(&space, BASE, true), Ok(Resolved::Mmio(Backing::Rom)));
        assert_eq!(mapped(&space), 0);
        assert_eq!(fault(&space, BASE, false), Ok(Resolved::Mapped));
        assert_eq!(mapped(&space), 1);
        let denied = space.mmu.write(Gpa::new(BASE), b"no");
        assert_eq!(denied.err(), Some(crate::host::errno::no_such_device()));
        Ok(())
    }

    #[test]
    fn reads_and_writes_go_to_the_vmms_memory() -> Result {
        let memory = UserMemory::new(2)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        // Across the pages.
        let at = PAGE_SIZE - 3;
        space.mmu.write(Gpa::new(BASE + at), b"across")?;
        let mut seen = [0; 6];
        user::copy_from(memory.start().wrapping_add(at), &mut seen)?;
        assert_eq!(&seen, b"across");
        let mut seen = [0; 6];
        space.mmu.read(Gpa::new(BASE + at), &mut seen)?;
        assert_eq!(&seen, b"across");
        let behind = Gpa::new(BASE + memory.bytes() - 1);
        assert!(space.mmu.read(behind, &mut seen).is_err());
        assert!(space.mmu.write(behind, b"too long").is_err());
        Ok(())
    }

    /// The host takes pages away: no mapping is left when it has them.
    #[test]
    fn unmapping_in_the_host_unmaps_here() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        for page in 0..4 {
            fault(&space, BASE + page * PAGE_SIZE, true)?;
        }
        assert_eq!(mapped(&space), 4);
        let met = space.mmu.stats.notifications.load(Relaxed);
        memory.unmap(1, 2)?;
        assert_eq!(mapped(&space), 2);
        assert!(space.mmu.stats.notifications.load(Relaxed) > met);
        // The VMM has no memory there any more.
        assert_eq!(fault(&space, BASE + PAGE_SIZE, true).err(), Some(EFAULT));
        assert_eq!(fault(&space, BASE, true), Ok(Resolved::Mapped));
        Ok(())
    }

    /// The host may want a page back while its slot is being taken away, or moved: it is gone from the
    /// slots by then, and still mapped.
    #[test]
    fn a_slot_that_leaves_follows_the_host() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        let elsewhere = request(1, 0, BASE << 4, &memory);
        space.mmu.set_slot(&elsewhere)?;
        for page in 0..4 {
            for base in [BASE, BASE << 4] {
                fault(&space, base + page * PAGE_SIZE, true)?;
            }
        }
        assert_eq!(mapped(&space), 8);
        // As in the middle of `set_slot`.
        let leaving = {
            let mut state = space.mmu.state.write();
            state.leaving = state.slots.pop();
            state.leaving.ok_or(ENOENT)?
        };
        memory.unmap(1, 1)?;
        assert_eq!(mapped(&space), 6);
        // And as it ends.
        space.mmu.zap(leaving.gfns(), true);
        assert_eq!(mapped(&space), 3);
        let delete = Request {
            memory_size: 0,
            ..request(0, 0, BASE, &memory)
        };
        space.mmu.set_slot(&delete)?;
        assert_eq!(mapped(&space), 0);
        assert!(space.mmu.state.read().leaving.is_none());
        Ok(())
    }

    /// Somebody has taken a page out of the tables, and has not come to the flush yet: who finds it gone
    /// waits for CPUs all the same, before the host has the page.
    #[test]
    fn what_others_have_unmapped_is_flushed() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        fault(&space, BASE, true)?;
        let flushes = || space.mmu.stats.flushes.load(Relaxed);
        let before = flushes();
        memory.unmap(1, 1)?;
        assert_eq!(flushes(), before);
        space.mmu.tlb.owe();
        memory.unmap(2, 1)?;
        assert_eq!(flushes(), before + 1);
        memory.unmap(0, 1)?;
        assert_eq!(flushes(), before + 2);
        Ok(())
    }

    /// A fault that has looked a page up before a change began, or while it is under way, starts
    /// over.
    #[test]
    fn changes_under_way_are_noticed() -> Result {
        let memory = UserMemory::new(4)?;
        let space = space()?;
        let page = |index: u64| HvaRange {
            start: memory.start().wrapping_add(index * PAGE_SIZE),
            end: memory.start().wrapping_add((index + 1) * PAGE_SIZE),
        };
        let current = |moment, range| space.mmu.state.read().is_current(moment, range);
        let moment = space.mmu.state.read().moment();
        assert!(current(moment, page(1)));
        space.mmu.invalidate_start(page(1), true);
        space.mmu.invalidate_start(page(2), true);
        assert!(!current(moment, page(1)));
        assert!(!current(moment, page(2)));
        assert!(current(moment, page(3)));
        space.mmu.invalidate_end(page(1));
        // One is still under way, and what came before the end of the other is old.
        let now = space.mmu.state.read().moment();
        assert!(!current(moment, page(3)));
        assert!(!current(now, page(2)));
        assert!(current(now, page(3)));
        space.mmu.invalidate_end(page(2));
        let now = space.mmu.state.read().moment();
        assert!(current(now, page(1)));
        // A change of the slots makes it old, too.
        space.mmu.set_slot(&request(0, 0, BASE, &memory))?;
        assert!(!current(now, page(1)));
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Who owns a frame: the inverted page table kept in step with the VMs' own tables, and what it is
//! good for.
//!
//! # In step
//!
//! Whoever sets or clears a leaf of a VM's tables notes that in a [`Notes`], and settles it before
//! `Mmu::state` is dropped. The last run of pages that a vCPU's faults have mapped may wait in its
//! [`Mapper`] for others that continue it: faults often come one page after the other, and one
//! entry then takes them all in. So for whoever holds a VM's `Mmu::state` alone, its leaves are what
//! its entries in the inverted table and those runs say. Whoever unmaps, or asks the table, has it
//! told of what waits first ([`Notes::begin`], [`Owners::settle`]); so an entry is gone before the
//! MMU notifier tells the host that a page is unmapped. `verify` compares the two.
//!
//! Shadow tables have any number of leaves for one page, and come and go with what the guest does.
//! They have a [`Notes`] of their own, which hears of the first leaf and of the last one
//! (`model/paging/shadow/census.rs`). What was unmapped may wait there, too, for it often comes
//! back at once: until somebody asks, and not if the host is waiting.
//!
//! # Isolation
//!
//! A frame may be mapped by two VMs when both have it from the same process, or when the host says
//! that it is shared: of a file or shared memory, merged (KSM), or anonymous and not yet copied
//! after a fork, which then nobody may write. Anything else is a page that one VMM has and another
//! VM sees. Whenever a fault maps a page that another VM has mapped, too, that is looked at.
//!
//! # Locks
//!
//! `list` (mutex) → `Mmu::state` (spinlock) → a group of the inverted table (spinlock).

use super::choice::PagingMode;
use super::mapper::{Mapper, Mappers};
use super::{Mmu, State};
use crate::host::bindings;
use crate::host::frame::PageKind;
use crate::host::global::Global;
use crate::host::inverted::InvertedTable;
use crate::host::task;
use crate::model::arch::addr::{Gfn, Hpa};
use crate::model::memory::inverted::{Owner, Run, CLUSTER, MAX_OWNERS};
use crate::model::paging::format::Leaf;
use crate::model::paging::shadow::Census;
use crate::model::paging::PageSize;
use kernel::prelude::*;
use kernel::sync::atomic::{ordering::Relaxed, Atomic};
use kernel::sync::{new_mutex, Arc, Mutex};

/// The owners of the machine, while the module is loaded.
pub static OWNERS: Global<Owners> = Global::new();

/// A VM as an owner of frames.
#[derive(Clone)]
pub struct Member {
    /// Number of the task that created it.
    pub pid: i32,
    /// The VM's own number.
    pub id: u64,
    /// Its address space.
    pub mmu: Arc<Mmu>,
}

/// A number that is taken, and the VM that has it as soon as that is made and as long as it is
/// there.
struct Place {
    taken: bool,
    member: Option<Member>,
}

/// The VMs, by their number as owners.
pub struct Owners {
    list: Pin<KBox<Mutex<KVec<Place>>>>,
    /// Frames that were found mapped by two VMs without being shared.
    violations: Atomic<u64>,
}

impl Owners {
    /// None.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self {
            list: KBox::pin_init(new_mutex!(KVec::new()), GFP_KERNEL)?,
            violations: Atomic::new(0),
        })
    }

    /// A number that nobody has.
    fn take(&self) -> Result<Owner> {
        let mut list = self.list.lock();
        let index = match list.iter().position(|place| !place.taken) {
            Some(index) => index,
            None if list.len() < MAX_OWNERS => {
                let place = Place {
                    taken: false,
                    member: None,
                };
                list.push(place, GFP_KERNEL_ACCOUNT)?;
                list.len() - 1
            }
            None => return Err(ENOSPC),
        };
        if let Some(place) = list.get_mut(index) {
            place.taken = true;
        }
        Ok(Owner::new(index as u16))
    }

    fn set(&self, owner: Owner, member: Option<Member>) {
        let old = {
            let mut list = self.list.lock();
            let place = list.get_mut(usize::from(owner.number()));
            place.and_then(|place| core::mem::replace(&mut place.member, member))
        };
        // After the lock: it may be the last reference.
        drop(old);
    }

    fn give_back(&self, owner: Owner) {
        let mut list = self.list.lock();
        if let Some(place) = list.get_mut(usize::from(owner.number())) {
            place.taken = false;
        }
    }

    /// The VM of a number.
    pub fn find(&self, owner: Owner) -> Option<Member> {
        let list = self.list.lock();
        list.get(usize::from(owner.number()))?.member.clone()
    }

    /// The first VM from a number on, and its number.
    pub fn next(&self, from: usize) -> Option<(usize, Member)> {
        let list = self.list.lock();
        let rest = list.iter().enumerate().skip(from);
        rest.into_iter()
            .find_map(|(index, place)| Some((index, place.member.clone()?)))
    }

    /// Has the inverted table know of everything that is mapped now. May sleep.
    pub fn settle(&self) {
        let mut next = 0;
        while let Some((index, member)) = self.next(next) {
            next = index + 1;
            let mmu = &member.mmu;
            let mut notes = Notes::new(mmu.inverted, &mmu.owner);
            mmu.state.write().settle(&mut notes);
            notes.check_shared();
            task::cond_resched();
        }
    }

    /// Frames that were found mapped by two VMs without being shared.
    pub fn violations(&self) -> u64 {
        self.violations.load(Relaxed)
    }

    /// Looks whether a frame is mapped by VMs that should not share it. May sleep.
    pub fn check(&self, table: &InvertedTable, hpa: Hpa) -> bool {
        // Numbers stay with their VMs as long as it is held.
        let list = self.list.lock();
        let mm = |owner: Owner| {
            let place = list.get(usize::from(owner.number()))?;
            place.member.as_ref().map(|member| member.mmu.mm().id())
        };
        let (mut first, mut several, mut kind) = (None, false, PageKind::Shared);
        table.for_each_alias(hpa, |alias| {
            // Mapped here and now: what the host says of the page holds.
            kind = PageKind::of(hpa);
            match (first, mm(alias.owner)) {
                (None, found) => first = found,
                (Some(one), Some(other)) => several |= one != other,
                (Some(_), None) => {}
            }
        });
        drop(list);
        if !several || kind != PageKind::Private {
            return true;
        }
        self.violations.add(1, Relaxed);
        pr_err!(
            "frame {:#x} is one VMM's own and mapped by several\n",
            hpa.raw()
        );
        false
    }
}

impl Mmu {
    /// Its number as an owner of frames.
    #[inline]
    pub fn number(&self) -> Owner {
        self.owner.owner
    }

    /// How guests of this address space are paged, in a word and as a `RUSTHV_MODE_*`.
    pub fn mode(&self) -> (&'static str, u32) {
        match self.paging_mode() {
            PagingMode::Nested => self.format.label(),
            PagingMode::Shadow => ("shadow", bindings::RUSTHV_MODE_SHADOW),
            PagingMode::Trap => ("trap", bindings::RUSTHV_MODE_TRAP),
        }
    }
}

/// The number of an address space that exists.
pub(super) struct OwnerId {
    pub(super) owner: Owner,
    owners: &'static Owners,
}

impl OwnerId {
    pub(super) fn new() -> Result<Self> {
        let owners = OWNERS.get()?;
        Ok(Self {
            owner: owners.take()?,
            owners,
        })
    }
}

impl Drop for OwnerId {
    fn drop(&mut self) {
        self.owners.give_back(self.owner);
    }
}

/// An address space that others can find by its number, until this is dropped.
pub struct Listed {
    owner: Owner,
    owners: &'static Owners,
    table: &'static InvertedTable,
}

impl Listed {
    /// Lists an address space with the VM that it is of.
    pub fn new(mmu: Arc<Mmu>, pid: i32, id: u64) -> Self {
        let (owner, owners, table) = (mmu.owner.owner, mmu.owner.owners, mmu.inverted);
        owners.set(owner, Some(Member { pid, id, mmu }));
        Self {
            owner,
            owners,
            table,
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.owners.set(self.owner, None);
        // Its pages were unmapped before.
        self.table.trim();
    }
}

/// Pages that a run which waits may have: the more, the longer takes it to settle.
const LONGEST: u64 = 1024;
/// Entries that such a run becomes at most: its ends may be in the middle of a cluster.
pub(super) const RUN_ENTRIES: u64 = LONGEST / CLUSTER + 1;

/// What was done to a VM's leaves and is not in the inverted table yet.
pub(super) struct Notes {
    owner: Owner,
    table: &'static InvertedTable,
    /// As long as the VM's lock is held.
    waiting: Option<Run>,
    gone: Option<Run>,
    /// A page that another VM has mapped, too.
    shared: Option<Hpa>,
}

impl Notes {
    pub(super) fn new(table: &'static InvertedTable, owner: &OwnerId) -> Self {
        Self {
            owner: owner.owner,
            table,
            waiting: None,
            gone: None,
            shared: None,
        }
    }

    /// After `Mmu::state` was taken alone, for changes: what waits is told of now, as it may go.
    #[inline]
    pub(super) fn begin(&mut self, mappers: &Mappers) {
        for mapper in mappers.iter() {
            self.resume(mapper);
            self.settle_waiting();
        }
    }

    /// Before `Mmu::state` is dropped.
    #[inline]
    pub(super) fn end(&mut self) {
        self.settle_gone();
        self.settle_waiting();
    }

    /// After `Mmu::state` was taken together with others, to add to what a vCPU has mapped.
    #[inline]
    pub(super) fn resume(&mut self, mapper: &Mapper) {
        self.waiting = mapper.take_run();
    }

    /// Before it is dropped: the last run goes on waiting.
    #[inline]
    pub(super) fn pause(&mut self, mapper: &Mapper) {
        mapper.put_run(self.waiting.take());
    }

    /// A page is no longer mapped.
    #[inline]
    pub(super) fn unmapped(&mut self, gfn: Gfn, leaf: &Leaf) {
        if self.table.is_zero_page(leaf.hpa) {
            return;
        }
        let gone = self.gone.as_mut();
        if !gone.is_some_and(|run| run.extend(gfn, leaf.hpa, leaf.size)) {
            self.unmapped_apart(gfn, leaf);
        }
    }

    /// [`Notes::unmapped`] of the first page of a run.
    #[inline(never)]
    fn unmapped_apart(&mut self, gfn: Gfn, leaf: &Leaf) {
        self.settle_gone();
        // It may be in there.
        self.settle_waiting();
        self.gone = Some(Run::page(gfn, leaf.hpa, leaf.size));
    }

    /// Pages have been mapped, one after the other in the guest: those whose bit is set, of at most
    /// 64 addresses.
    pub(super) fn mapped(&mut self, gfn: Gfn, size: PageSize, pages: &[u64], set: u64) {
        self.settle_gone();
        if let &[page] = pages {
            let hpa = Hpa::new(page);
            if set & 1 != 0 && !self.table.is_zero_page(hpa) {
                self.wait(Run::page(gfn, hpa, size));
            }
            return;
        }
        let mut rest = pages;
        let (mut gfn, mut set) = (gfn.raw(), set);
        while let (Some((&first, others)), true) = (rest.split_first(), set != 0) {
            let mut count = 1;
            // The page of zeroes comes alone: it is not writable.
            if set & 1 != 0 && !self.table.is_zero_page(Hpa::new(first)) {
                let limit = ((!set).trailing_zeros() as usize).min(pages.len());
                let step = others.first().map_or(0, |next| next.wrapping_sub(first));
                let down = step == size.bytes().wrapping_neg();
                if down || step == size.bytes() {
                    let mut last = first;
                    let neighbours = others.iter().take(limit.saturating_sub(1));
                    count += neighbours
                        .take_while(|&&next| {
                            let follows = next.wrapping_sub(last) == step;
                            last = next;
                            follows
                        })
                        .count();
                }
                self.wait(Run {
                    gfn: Gfn::new(gfn),
                    hpa: Hpa::new(first),
                    size,
                    count: count as u64,
                    down: down && count > 1,
                });
            }
            rest = rest.get(count..).unwrap_or_default();
            gfn = gfn.wrapping_add(count as u64 * size.pages());
            set = set.checked_shr(count as u32).unwrap_or(0);
        }
    }

    /// A large page has been cut into pages of the next smaller size.
    pub(super) fn cut(&mut self, gfn: Gfn, leaf: &Leaf) {
        let Some(size) = leaf.size.smaller() else {
            return;
        };
        self.unmapped(gfn, leaf);
        self.settle_gone();
        let count = leaf.size.pages() / size.pages();
        self.wait(Run {
            count,
            ..Run::page(gfn, leaf.hpa, size)
        });
    }

    /// Adds a run to the one that waits, or lets it wait instead of that.
    #[inline]
    fn wait(&mut self, run: Run) {
        if let Some(waiting) = &mut self.waiting {
            if waiting.count + run.count <= LONGEST && waiting.append(&run) {
                return;
            }
        }
        self.settle_waiting();
        self.waiting = Some(run);
    }

    /// Tells the inverted table of the run that waits.
    #[inline]
    pub(super) fn settle_waiting(&mut self) {
        if let Some(run) = self.waiting.take() {
            if self.table.add(self.owner, &run).shared {
                self.shared = Some(run.hpa);
            }
        }
    }

    /// Tells the inverted table what was unmapped.
    #[inline]
    pub(super) fn settle_gone(&mut self) {
        if let Some(run) = self.gone.take() {
            self.table.remove(self.owner, &run);
        }
    }

    /// After `Mmu::state` was dropped: looks at a page that another VM has, too. May sleep.
    #[inline]
    pub(super) fn check_shared(&mut self) {
        look_at(self.table, self.shared.take());
    }

    /// Under `Mmu::state`: the page that others find and look at, if there is one.
    #[inline]
    pub(super) fn take_shared(&mut self) -> Option<Hpa> {
        self.shared.take()
    }
}

/// Looks at a page that another VM has, too. May sleep.
#[inline]
pub(super) fn look_at(table: &InvertedTable, shared: Option<Hpa>) {
    if let Some(hpa) = shared {
        if let Ok(owners) = OWNERS.get() {
            owners.check(table, hpa);
        }
    }
}

/// What comes and what goes wait side by side: no page is in both runs.
impl Census for Notes {
    #[inline]
    fn mapped(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize) {
        if self.table.is_zero_page(hpa) {
            return;
        }
        let page = Run::page(gfn, hpa, size);
        if let Some(gone) = self.gone {
            if gone == page {
                // Back again, and still in the table.
                self.gone = None;
                return;
            }
            if gone.is_about(gfn) {
                self.settle_gone();
            }
        }
        self.wait(page);
    }

    #[inline]
    fn unmapped(&mut self, gfn: Gfn, hpa: Hpa, size: PageSize) {
        if self.table.is_zero_page(hpa) {
            return;
        }
        let page = Run::page(gfn, hpa, size);
        if let Some(waiting) = self.waiting {
            if waiting == page {
                // Gone before anybody knew.
                self.waiting = None;
                return;
            }
            if waiting.is_about(gfn) {
                self.settle_waiting();
            }
        }
        if let Some(gone) = &mut self.gone {
            if gone.count < LONGEST && gone.extend(gfn, hpa, size) {
                return;
            }
        }
        self.settle_gone();
        self.gone = Some(page);
    }
}

impl State {
    /// Has the inverted table know of all leaves.
    pub(super) fn settle(&mut self, notes: &mut Notes) {
        notes.begin(&self.mappers);
        if let Some(shadow) = self.tree.shadow() {
            shadow.census.end();
            notes.shared = shadow.census.take_shared().or(notes.shared);
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! From a nested fault to a mapping.
//!
//! Faults of several vCPUs of a VM proceed at once: where the last fault was in the same slot, no
//! lock is taken until the host's page is known, and then `Mmu::state` for reading, under which the
//! tables only grow ([`Faults::resolve`], `model/paging/grow.rs`). Only where something else is in
//! the way, a large page or the pages that it should replace, is the lock taken for writing.

use super::mapper::Mapper;
use super::owners::Notes;
use super::rights::needed;
use super::size::host_page;
use super::unlinked::{Gone, Unlinked};
use super::{Mmu, Moment};
use crate::host::notifier::HvaRange;
use crate::host::pool::Reserve;
use crate::host::tables::Tables;
use crate::host::task;
use crate::host::user::{PageRun, Reach, UserPages, Wanted, BATCH, LARGE_BATCH};
use crate::host::write_log::WriteLog;
use crate::model::arch::addr::{Gfn, GfnRange, Gpa, Hpa, Hva, PAGE_SIZE};
use crate::model::emulate::Backing;
use crate::model::exit::NestedFault;
use crate::model::memory::slots::{Slot, SlotFlags};
use crate::model::paging::format::Leaf;
use crate::model::paging::grow::{Grow, Grown, Region};
use crate::model::paging::nested::Nested;
use crate::model::paging::table::{MapError, Mapped, Table};
use crate::model::paging::{MemoryType, PageSize, Permissions};
use crate::model::sync::Ordering;
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;
use kernel::sync::Arc;

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolved {
    /// Try the access again.
    Mapped,
    /// A device's business: no memory is there ([`Backing::Mmio`]), or memory that the guest must
    /// not write ([`Backing::Rom`]).
    Mmio(Backing),
    /// Refused: guests do not have this right on the slot.
    Denied(Permissions),
}

const _: () = assert!(BATCH <= u64::BITS as usize);
const PAGES_2M: u64 = PageSize::Size2M.pages();

/// Pages that a fault maps which follows no other.
const FEWEST: usize = 4;

/// What a vCPU keeps from one fault to the next.
pub struct Faults {
    mmu: Arc<Mmu>,
    mapper: Arc<Mapper>,
    /// Frames for tables, to be taken under the lock.
    reserve: Reserve,
    run: PageRun,
    /// The slot of the last fault, if it does not log, and the generation of the slots that it is of.
    slot: Option<(Slot, u64)>,
    /// First frame behind what the last fault has mapped.
    next: Gfn,
    /// How many pages a fault maps, if they are present in the host: many where the guest goes on
    /// where the last fault ended.
    window: usize,
}

/// What is behind the address of a fault.
enum Look {
    /// Memory, as it was at a moment that is over.
    Memory(Slot, Moment),
    /// None.
    Hole,
    /// Memory that is mapped by now.
    Mapped,
}

/// What became of an attempt to map.
enum Attempt {
    Mapped,
    /// The host has changed the page, or user space the slot.
    Late,
    /// Something else is in the way, which is to be taken away first.
    Occupied,
}

/// What a fault has found in the host, and how it wants to have it.
struct Found<'a> {
    pages: UserPages<'a>,
    hva: Hva,
    slot: Slot,
    moment: Moment,
    /// In one page, large or small.
    size: PageSize,
    /// What the page of the fault is to be mapped as, and what its neighbours.
    like: [Leaf; 2],
}

impl Found<'_> {
    /// Host addresses of the pages of 2 MiB that are mapped together, the fault's first; none where it
    /// is alone.
    fn large_pages(&self) -> &[u64] {
        match self.size {
            PageSize::Size2M => self.pages.large_pages(),
            PageSize::Size4K | PageSize::Size1G => &[],
        }
    }

    /// First frame behind what a fault at `gfn` maps.
    fn next(&self, gfn: Gfn) -> Gfn {
        let pages = match self.size {
            PageSize::Size4K => self.pages.count(),
            PageSize::Size2M | PageSize::Size1G => self.large_pages().len().max(1),
        };
        let first = gfn.raw() & !(self.size.pages() - 1);
        Gfn::new(first.wrapping_add(pages as u64 * self.size.pages()))
    }
}

impl Faults {
    /// Those of another vCPU.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(mmu: Arc<Mmu>) -> Result<KBox<Self>> {
        // Where it is to be: it is too large for the stack.
        let new = try_init!(Self {
            mapper: mmu.add_mapper()?,
            mmu,
            reserve: Reserve::default(),
            run: PageRun::new(),
            slot: None,
            next: Gfn::new(0),
            window: FEWEST,
        });
        KBox::init(new, GFP_KERNEL_ACCOUNT)
    }

    /// Where the CPU is to log the vCPU's writes, if it does.
    pub fn write_log(&self) -> Option<Arc<WriteLog>> {
        self.mapper.log().cloned()
    }

    /// Makes room in that log, which is full. The vCPU is not in its guest.
    pub fn empty_write_log(&self) {
        self.mmu.empty_log(&self.mapper);
    }

    /// How many pages a fault at `gfn` is to map.
    fn adapt(&mut self, gfn: Gfn) -> usize {
        self.window = if gfn == self.next {
            self.window.saturating_mul(2).min(BATCH)
        } else {
            FEWEST
        };
        self.window
    }

    /// Maps the page of a nested fault, and its neighbours that are present in the host.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the VMM has no memory there or may not access it so, `EHWPOISON`, `ENOMEM`,
    /// `EINTR` for a signal.
    pub fn resolve(&mut self, fault: &NestedFault) -> Result<Resolved> {
        let gfn = fault.gpa.gfn();
        let window = self.adapt(gfn);
        loop {
            let (slot, moment) = match self.look(fault) {
                Look::Memory(slot, moment) => (slot, moment),
                Look::Hole => return Ok(Resolved::Mmio(Backing::Mmio)),
                Look::Mapped => return Ok(Resolved::Mapped),
            };
            if slot.is_restricted() && !slot.rights.contains(needed(fault)) {
                return Ok(Resolved::Denied(needed(fault)));
            }
            if fault.write && slot.flags.contains(SlotFlags::READ_ONLY) {
                return Ok(Resolved::Mmio(Backing::Rom));
            }
            let Self {
                mmu,
                mapper,
                reserve,
                run,
                ..
            } = self;
            let found = mmu.find(run, fault, slot, moment, window)?;
            mmu.prepare(reserve)?;
            let mut attempt = mmu.add(mapper, reserve, fault, &found)?;
            if let Attempt::Occupied = attempt {
                attempt = mmu.replace(reserve, fault, &found)?;
            }
            if let Attempt::Mapped = attempt {
                let next = found.next(gfn);
                // Gives up the references on the pages, after the lock.
                drop(found);
                self.next = next;
                return Ok(Resolved::Mapped);
            }
            drop(found);
            mmu.stats.retries.add(1, Relaxed);
            task::cond_resched();
        }
    }

    /// Finds the slot of a fault: the last one, without a lock, or with the lock for reading.
    #[inline]
    fn look(&mut self, fault: &NestedFault) -> Look {
        let (gfn, mmu) = (fault.gpa.gfn(), &*self.mmu);
        if let Some((slot, generation)) = self.slot {
            if generation == mmu.generation.load(Ordering::Acquire) && slot.gfns().contains(gfn) {
                // Before the host is asked. Should either number change meanwhile, it starts over.
                let sequence = mmu.sequence.load(Ordering::Acquire);
                return Look::Memory(
                    slot,
                    Moment {
                        generation,
                        sequence,
                    },
                );
            }
        }
        let state = mmu.state.read();
        let Some(slot) = state.view().find(gfn).copied() else {
            return Look::Hole;
        };
        let logged = slot.flags.log_dirty();
        if logged && fault.write && state.allow_logged_write(&mmu.supply, &slot, fault.gpa) {
            return Look::Mapped;
        }
        let moment = state.moment();
        self.slot = (!logged).then_some((slot, moment.generation));
        Look::Memory(slot, moment)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.mmu.remove_mapper(&self.mapper);
    }
}

impl Mmu {
    /// Asks the host for the pages of a fault.
    fn find<'a>(
        &self,
        run: &'a mut PageRun,
        fault: &NestedFault,
        slot: Slot,
        moment: Moment,
        window: usize,
    ) -> Result<Found<'a>> {
        let gfn = fault.gpa.gfn();
        let hva = slot.hva_of(gfn).ok_or(EFAULT)?;
        let read_only = !slot.is_writable();
        let wanted = match (read_only, fault.write) {
            (true, _) => Wanted::ReadOnly,
            (false, true) => Wanted::Write,
            (false, false) => Wanted::Read,
        };
        // Writes are logged page by page.
        let logged = slot.flags.log_dirty();
        let fits =
            !logged && self.format.largest() >= PageSize::Size2M && slot.fits_large(gfn, PAGES_2M);
        let reach = reach(&slot, gfn, window, fits);
        let pages = UserPages::get_ahead(run, &self.mm, hva, wanted, reach)?;
        let size = match fits {
            false => PageSize::Size4K,
            true => self.page_size(&slot, gfn, || {
                let known = pages.mapping_shift();
                known.unwrap_or_else(|| self.mm.mapping_shift(hva))
            }),
        };
        let like = self.leaf(pages.writable() && !read_only, slot.rights);
        let others = if logged { like.to_be_noticed() } else { like };
        let first = if fault.write { like } else { others };
        Ok(Found {
            pages,
            hva,
            slot,
            moment,
            size,
            like: [first, others],
        })
    }

    /// Sets frames aside for what is done under the lock.
    #[inline]
    fn prepare(&self, reserve: &mut Reserve) -> Result {
        reserve.fill(&self.supply)?;
        if self.inverted.is_short() {
            self.inverted.grow(reserve)?;
            reserve.fill(&self.supply)?;
        }
        Ok(())
    }

    /// Maps what a fault has found, together with other vCPUs that do so, where nothing is mapped.
    fn add(
        &self,
        mapper: &Mapper,
        reserve: &mut Reserve,
        fault: &NestedFault,
        found: &Found<'_>,
    ) -> Result<Attempt> {
        let mut notes = Notes::new(self.inverted, &self.owner);
        let mut memory = Tables::with_reserve(&self.supply, reserve);
        let state = self.state.read();
        if !state.is_current(found.moment, looked_up(found)) {
            return Ok(Attempt::Late);
        }
        let mut grow = state.tree.walked().ok_or(EIO)?.grow();
        notes.resume(mapper);
        let mapped = if found.size != PageSize::Size4K {
            add_large(&mut grow, &mut memory, &mut notes, fault.gpa, found)
        } else {
            add_small(&mut grow, &mut memory, &mut notes, fault.gpa, found)
        };
        notes.pause(mapper);
        mapper.count(&grow.finish());
        if mapped.is_ok() && fault.write && found.slot.flags.log_dirty() {
            state.logs.mark(&found.slot, fault.gpa.gfn());
        }
        drop(state);
        notes.check_shared();
        attempt(mapped)
    }

    /// Makes room for what a fault has found, alone, and maps the page of the fault; or lets the
    /// guest try again.
    #[cold]
    fn replace(
        &self,
        reserve: &mut Reserve,
        fault: &NestedFault,
        found: &Found<'_>,
    ) -> Result<Attempt> {
        // What an attempt before has taken.
        reserve.fill(&self.supply)?;
        let mut unlinked = Unlinked::new(self);
        let mut memory = Tables::with_reserve(&self.supply, reserve);
        let mut state = self.state.write();
        if !state.is_current(found.moment, looked_up(found)) {
            return Ok(Attempt::Late);
        }
        let (tree, mappers, written) = self.parts(&mut state);
        let table = tree.nested().ok_or(EIO)?;
        let (gfn, size) = (fault.gpa.gfn(), found.size);
        if size == PageSize::Size1G && table.end_of_walk(&memory, gfn) < size.level() {
            // Tables from before. To clear all of them takes steps, between which others run.
            drop(state);
            self.zap(covered(gfn, size), true);
            return Ok(Attempt::Late);
        }
        unlinked.notes.begin(mappers);
        let mut gone = Gone::new(&mut unlinked, written);
        let mapped = put(table, &mut memory, &mut gone, fault.gpa, found);
        unlinked.notes.end();
        if mapped.is_ok() && fault.write && found.slot.flags.log_dirty() {
            state.logs.mark(&found.slot, fault.gpa.gfn());
        }
        drop(state);
        unlinked.notes.check_shared();
        // After the lock: flush what was replaced, then free it.
        drop(unlinked);
        attempt(mapped)
    }

    /// What mappings have in common, all but address and size: write-back memory, in use.
    fn leaf(&self, writable: bool, rights: Permissions) -> Leaf {
        let perms = if writable {
            rights
        } else {
            rights.without(Permissions::W)
        };
        Leaf {
            accessed: true,
            ..Leaf::new(Hpa::new(0), PageSize::Size4K, perms)
                .with_memory_type(MemoryType::WriteBack, self.overrules_pat)
        }
    }
}

fn attempt(mapped: Result<(), MapError>) -> Result<Attempt> {
    match mapped {
        Ok(()) => Ok(Attempt::Mapped),
        Err(MapError::LargePage | MapError::Occupied) => Ok(Attempt::Occupied),
        Err(MapError::NoTable) => Err(ENOMEM),
        Err(_) => Err(EFAULT),
    }
}

/// The host range whose pages are about to be mapped.
fn looked_up(found: &Found<'_>) -> HvaRange {
    if found.size != PageSize::Size4K {
        let HvaRange { start, .. } = host_page(found.hva, found.size);
        let pages = found.large_pages().len().max(1) as u64;
        return HvaRange {
            start,
            end: start.wrapping_add(pages.wrapping_mul(found.size.bytes())),
        };
    }
    let pages = found.pages.count() as u64;
    HvaRange {
        start: found.hva,
        end: found.hva.wrapping_add(pages.wrapping_mul(PAGE_SIZE)),
    }
}

/// The guest frames of the page of a size that holds one.
fn covered(gfn: Gfn, size: PageSize) -> GfnRange {
    let start = gfn.raw() & !(size.pages() - 1);
    GfnRange::new(
        Gfn::new(start),
        Gfn::new(start.saturating_add(size.pages())),
    )
}

/// How many pages from a fault on may be mapped with it: to the end of the slot and, unless they are
/// large, of the page table.
///
/// Absent pages are made present for one in `FEWEST`: one for a fault that follows no other, and 16
/// at most, for a guest that has come through tens of pages one after the other. Of large pages a
/// fault maps as many as it may: their entries are in the same cache line or the next.
fn reach(slot: &Slot, gfn: Gfn, window: usize, large: bool) -> Reach {
    let gfn = gfn.raw();
    let in_slot = |from: u64| slot.gfns().end.raw().saturating_sub(from);
    let in_table = PAGES_2M - gfn % PAGES_2M;
    let present = in_slot(gfn).min(in_table).min(window as u64) as usize;
    let in_large = in_slot(gfn & !(PAGES_2M - 1)) / PAGES_2M;
    Reach {
        present,
        absent: (present / FEWEST).max(1),
        large: match large {
            true => in_large.min(LARGE_BATCH as u64) as usize,
            false => 0,
        },
    }
}

/// The large page that holds the page of a fault: where, and how it is mapped.
fn large_page(gpa: Gpa, found: &Found<'_>) -> Result<(Gpa, Leaf), MapError> {
    let mask = found.size.bytes() - 1;
    let first = found.pages.iter().next().ok_or(MapError::OutOfRange)?;
    let [like, _] = found.like;
    let leaf = Leaf {
        hpa: Hpa::new(first.raw() & !mask),
        size: found.size,
        ..like
    };
    Ok((Gpa::new(gpa.raw() & !mask), leaf))
}

/// Maps the large page of a fault, and those behind it where nothing is mapped.
fn add_large(
    grow: &mut Grow<'_, Nested>,
    memory: &mut Tables<'_>,
    notes: &mut Notes,
    gpa: Gpa,
    found: &Found<'_>,
) -> Result<(), MapError> {
    let (base, leaf) = large_page(gpa, found)?;
    let mut set = u64::from(grow.map(memory, base, leaf)? == Grown::Fresh);
    let alone = [leaf.hpa.raw()];
    let all = match found.large_pages() {
        [] => &alone[..],
        pages => pages,
    };
    let [_, others] = found.like;
    let neighbours = Leaf {
        size: leaf.size,
        accessed: false,
        ..others
    };
    if let (Some(next), Some((_, behind @ [_, ..]))) =
        (base.checked_add(leaf.size.bytes()), all.split_first())
    {
        let behind = behind.iter().map(|&hpa| Hpa::new(hpa));
        // Should it fail, their own faults will say why.
        let _ = grow.fill(memory, next, neighbours, behind, |number| {
            set |= 2 << number
        });
    }
    notes.mapped(base.gfn(), leaf.size, all, set);
    Ok(())
}

/// Maps the page of a fault, and its neighbours where nothing is mapped.
#[inline]
fn add_small(
    grow: &mut Grow<'_, Nested>,
    memory: &mut Tables<'_>,
    notes: &mut Notes,
    gpa: Gpa,
    found: &Found<'_>,
) -> Result<(), MapError> {
    let mut run = found.pages.iter();
    let hpa = run.next().ok_or(MapError::OutOfRange)?;
    let [like, others] = found.like;
    let base = gpa.page_base();
    let mut region = grow.region(memory, base)?;
    let grown = region.map(base, Leaf { hpa, ..like })?;
    // A bit for each page that was mapped: `BATCH` are not more than 64.
    let mut set = u64::from(grown == Grown::Fresh);
    let mut filled = Ok(());
    if found.pages.count() > 1 {
        filled = add_neighbours(&mut region, base, others, run, &mut set);
    }
    notes.mapped(base.gfn(), PageSize::Size4K, found.pages.addresses(), set);
    filled
}

/// Maps the pages behind one, and notes them in `set` behind its bit.
#[inline(never)]
fn add_neighbours(
    region: &mut Region<'_, Nested>,
    base: Gpa,
    like: Leaf,
    run: impl Iterator<Item = Hpa>,
    set: &mut u64,
) -> Result<(), MapError> {
    let Some(next) = base.checked_add(PAGE_SIZE) else {
        return Ok(());
    };
    let like = Leaf {
        accessed: false,
        ..like
    };
    let mut behind = 0u64;
    let filled = region.fill(next, like, run, |number| behind |= 1 << number);
    *set |= behind << 1;
    filled.map(|_| ())
}

/// Maps the page of a fault, whatever is there.
fn put(
    table: &mut Table<Nested>,
    memory: &mut Tables<'_>,
    gone: &mut Gone<'_, '_>,
    gpa: Gpa,
    found: &Found<'_>,
) -> Result<(), MapError> {
    let (base, leaf) = if found.size != PageSize::Size4K {
        large_page(gpa, found)?
    } else {
        let hpa = found.pages.iter().next().ok_or(MapError::OutOfRange)?;
        let [like, _] = found.like;
        (gpa.page_base(), Leaf { hpa, ..like })
    };
    let mapped = table.map(memory, base, leaf, gone);
    let unlinked = &mut *gone.unlinked;
    match mapped {
        Ok(Mapped::Fresh | Mapped::Replaced) => {
            let page = &[leaf.hpa.raw()];
            unlinked.notes.mapped(base.gfn(), leaf.size, page, 1);
            Ok(())
        }
        Ok(Mapped::Unchanged | Mapped::Relaxed) => Ok(()),
        // A large page is mapped where the host, by now, has smaller ones, or where smaller ones are
        // wanted: cut ours, too, into those of the next size, and let the guest try again. Other CPUs
        // must not go on using the large one.
        Err(MapError::LargePage) => {
            let large = table.lookup(memory, base);
            if table.split(memory, base)? {
                if let Some(leaf) = large {
                    let first = base.raw() & !(leaf.size.bytes() - 1);
                    unlinked.notes.cut(Gpa::new(first).gfn(), &leaf);
                }
            }
            unlinked.change();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

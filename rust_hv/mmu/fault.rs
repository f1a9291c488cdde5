// SPDX-License-Identifier: GPL-2.0

//! From a nested fault to a mapping.

use super::{Mmu, Unlinked};
use crate::host::notifier::HvaRange;
use crate::host::pool::Reserve;
use crate::host::tables::Tables;
use crate::host::task;
use crate::host::user::{PageRun, Reach, UserPages, Wanted, BATCH};
use crate::model::arch::addr::{Gfn, Gpa, Hpa, Hva, PAGE_SIZE};
use crate::model::emulate::Backing;
use crate::model::exit::NestedFault;
use crate::model::memory::slots::{Slot, SlotFlags};
use crate::model::paging::format::Leaf;
use crate::model::paging::nested::Nested;
use crate::model::paging::table::{MapError, Mapped, Table};
use crate::model::paging::{MemoryType, PageSize, Permissions};
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolved {
    /// Try the access again.
    Mapped,
    /// A device's business: no memory is there ([`Backing::Mmio`]), or memory that the guest must
    /// not write ([`Backing::Rom`]).
    Mmio(Backing),
}

const _: () = assert!(BATCH <= u64::BITS as usize);
const PAGES_2M: u64 = PageSize::Size2M.pages();

/// Pages that a fault maps which follows no other.
const FEWEST: usize = 4;

/// What is looked up for a fault that may map so many pages. Absent pages are made present with
/// that, one for each `FEWEST`: one for a fault that follows no other, and 16 at most, for a guest
/// that has come through tens of pages one after the other. (Documentation/architecture.md.)
fn reach(pages: usize) -> Reach {
    Reach {
        present: pages,
        absent: (pages / FEWEST).max(1),
    }
}

/// What a vCPU keeps from one fault to the next.
pub struct Faults {
    /// Frames for tables, to be taken under the lock.
    reserve: Reserve,
    run: PageRun,
    /// First frame behind what the last fault has mapped.
    next: Gfn,
    /// How many pages a fault maps, if they are present in the host: many where the guest goes on
    /// where the last fault ended.
    window: usize,
}

impl Faults {
    /// None yet.
    pub fn new() -> Self {
        Self {
            reserve: Reserve::default(),
            run: PageRun::new(),
            next: Gfn::new(0),
            window: FEWEST,
        }
    }

    /// Room for the addresses of pages.
    pub fn run(&mut self) -> &mut PageRun {
        &mut self.run
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
}

impl Mmu {
    /// Maps the page of a fault, and its neighbours that are present in the host.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the VMM has no memory there or may not access it so, `EHWPOISON`, `ENOMEM`,
    /// `EINTR` for a signal.
    pub fn resolve(&self, faults: &mut Faults, fault: &NestedFault) -> Result<Resolved> {
        let gfn = fault.gpa.gfn();
        let window = faults.adapt(gfn);
        let Faults {
            reserve, run, next, ..
        } = faults;
        loop {
            let (slot, moment) = {
                let mut state = self.state.lock();
                let slot = state.view().find(gfn).copied();
                let Some(slot) = slot else {
                    return Ok(Resolved::Mmio(Backing::Mmio));
                };
                let logged = slot.flags.log_dirty();
                if logged && fault.write && state.allow_logged_write(&self.supply, &slot, fault.gpa)
                {
                    return Ok(Resolved::Mapped);
                }
                (slot, state.moment())
            };
            let read_only = slot.flags.contains(SlotFlags::READ_ONLY);
            if read_only && fault.write {
                return Ok(Resolved::Mmio(Backing::Rom));
            }
            let hva = slot.hva_of(gfn).ok_or(EFAULT)?;

            let wanted = match (read_only, fault.write) {
                (true, _) => Wanted::ReadOnly,
                (false, true) => Wanted::Write,
                (false, false) => Wanted::Read,
            };
            let reach = reach(room(&slot, gfn, window));
            let pages = UserPages::get_ahead(run, &self.mm, hva, wanted, reach)?;
            // Writes are logged page by page.
            let logged = slot.flags.log_dirty();
            let large = self.large_pages
                && !logged
                && slot.fits_large(gfn, PAGES_2M)
                && pages
                    .mapping_shift()
                    .unwrap_or_else(|| self.mm.mapping_shift(hva))
                    >= PageSize::Size2M.level().shift();
            reserve.fill(&self.supply)?;
            if self.inverted.is_short() {
                self.inverted.grow(reserve)?;
                reserve.fill(&self.supply)?;
            }

            let mut unlinked = Unlinked::new(self);
            let mut memory = Tables::with_reserve(&self.supply, reserve);
            let mut state = self.state.lock();
            if !state.is_current(moment, looked_up(hva, &pages, large)) {
                drop(state);
                self.stats.retries.add(1, Relaxed);
                task::cond_resched();
                continue;
            }
            let now = &mut *state;
            let Some(table) = now.tree.nested() else {
                return Err(EIO);
            };
            unlinked.notes.begin(&mut now.waiting);
            let like = self.leaf(pages.writable() && !read_only);
            let mapped = if large {
                map_large(table, &mut memory, &mut unlinked, fault.gpa, &pages, like)
            } else {
                let others = if logged { like.to_be_noticed() } else { like };
                let first = if fault.write { like } else { others };
                let like = [first, others];
                map_small(table, &mut memory, &mut unlinked, fault.gpa, &pages, like)
            };
            unlinked.notes.end(&mut now.waiting);
            if logged && fault.write {
                now.logs.mark(&slot, gfn);
            }
            drop(state);
            unlinked.notes.check_shared();
            // After the lock: flush what was replaced, then free it.
            drop(unlinked);
            *next = Gfn::new(gfn.raw().wrapping_add(pages.count() as u64));
            return match mapped {
                Ok(()) => Ok(Resolved::Mapped),
                Err(MapError::NoTable) => Err(ENOMEM),
                Err(_) => Err(EFAULT),
            };
        }
    }
}

impl Mmu {
    /// What mappings have in common, all but address and size: write-back memory, in use.
    fn leaf(&self, writable: bool) -> Leaf {
        let perms = if writable {
            Permissions::RWX
        } else {
            Permissions::RX
        };
        Leaf {
            accessed: true,
            ..Leaf::new(Hpa::new(0), PageSize::Size4K, perms)
                .with_memory_type(MemoryType::WriteBack, self.overrules_pat)
        }
    }
}

/// The host range whose pages are about to be mapped.
fn looked_up(hva: Hva, pages: &UserPages<'_>, large: bool) -> HvaRange {
    let (start, bytes) = if large {
        let size = PageSize::Size2M.bytes();
        (Hva::new(hva.raw() & !(size - 1)), size)
    } else {
        (hva, (pages.count() as u64).wrapping_mul(PAGE_SIZE))
    };
    HvaRange {
        start,
        end: start.wrapping_add(bytes),
    }
}

/// How many pages from a fault on may be mapped with it: to the end of the slot and of the page
/// table.
fn room(slot: &Slot, gfn: Gfn, window: usize) -> usize {
    let gfn = gfn.raw();
    let in_slot = slot.gfns().end.raw().saturating_sub(gfn);
    let in_table = PAGES_2M - gfn % PAGES_2M;
    in_slot.min(in_table).min(window as u64) as usize
}

fn map_large(
    table: &mut Table<Nested>,
    memory: &mut Tables<'_>,
    unlinked: &mut Unlinked<'_>,
    gpa: Gpa,
    pages: &UserPages<'_>,
    like: Leaf,
) -> Result<(), MapError> {
    let mask = PageSize::Size2M.bytes() - 1;
    let first = pages.iter().next().ok_or(MapError::OutOfRange)?;
    let leaf = Leaf {
        hpa: Hpa::new(first.raw() & !mask),
        size: PageSize::Size2M,
        ..like
    };
    let base = Gpa::new(gpa.raw() & !mask);
    let mapped = table.map(memory, base, leaf, unlinked)?;
    if matches!(mapped, Mapped::Fresh | Mapped::Replaced) {
        let page = &[leaf.hpa.raw()];
        unlinked.notes.mapped(base.gfn(), leaf.size, page, 1);
    }
    Ok(())
}

/// Maps the page of a fault as the first of `like`, its neighbours as the second.
fn map_small(
    table: &mut Table<Nested>,
    memory: &mut Tables<'_>,
    unlinked: &mut Unlinked<'_>,
    gpa: Gpa,
    pages: &UserPages<'_>,
    [like, others]: [Leaf; 2],
) -> Result<(), MapError> {
    let mut run = pages.iter();
    let first = run.next().ok_or(MapError::OutOfRange)?;
    let base = gpa.page_base();
    let like = Leaf { hpa: first, ..like };
    match table.leaf_table(memory, base) {
        Ok(mut table) => {
            let mapped = table.map(base, like, unlinked)?;
            // A bit for each page that was mapped: `BATCH` are not more than 64.
            let mut set = u64::from(matches!(mapped, Mapped::Fresh | Mapped::Replaced));
            let mut filled = Ok(0);
            let perms = others.perms;
            if let Some(next) = base.checked_add(PAGE_SIZE) {
                if pages.count() > 1 {
                    let neighbours = Leaf {
                        accessed: false,
                        ..others
                    };
                    let run = run.map(|hpa| Some((hpa, perms)));
                    filled = table.fill_telling(next, neighbours, run, |number| {
                        set |= 2 << number;
                    });
                }
            }
            let gfn = base.gfn();
            unlinked
                .notes
                .mapped(gfn, PageSize::Size4K, pages.addresses(), set);
            filled.map(|_| ())
        }
        // A large page is mapped where the host, by now, has small ones: cut ours, too, and let
        // the guest try again. Other CPUs must not go on using the large one.
        Err(MapError::LargePage) => {
            let large = table.lookup(memory, base);
            if table.split(memory, base)? {
                if let Some(leaf) = large {
                    let first = base.raw() & !(leaf.size.bytes() - 1);
                    unlinked.notes.cut(Gpa::new(first).gfn(), &leaf);
                }
            }
            unlinked.changed = true;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

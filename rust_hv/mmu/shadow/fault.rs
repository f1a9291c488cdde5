// SPDX-License-Identifier: GPL-2.0

//! From a page fault of a guest on shadow tables to a mapping in them.

use super::super::owners::look_at;
use super::super::paging::Shadows;
use super::super::unlinked::Unlinked;
use super::super::vcpu::Outcome;
use super::super::{Mmu, Moment};
use super::{looked_up, GuestFault, Place};
use crate::host::errno::{no_such_device, unsupported};
use crate::host::tables::Tables;
use crate::host::task;
use crate::host::user::{PageRun, UserPages, Wanted};
use crate::model::arch::addr::{Gfn, Gpa, Hva};
use crate::model::arch::exception::PageFaultError;
use crate::model::emulate::{Backing, Exception};
use crate::model::exit::{NestedFault, Origin};
use crate::model::memory::slots::{Slot, SlotFlags};
use crate::model::paging::shadow::route::{RootKey, Route};
use crate::model::paging::shadow::{self, Cause, Filled, HostPage, Installed, Lack, Spot};
use crate::model::paging::state::{Access, AccessKind, PagingState, Privilege};
use crate::model::paging::walk::{self, GuestPhys, WalkError};
use crate::model::paging::PageSize;
use kernel::prelude::*;
use kernel::sync::atomic::ordering::Relaxed;

/// Tries of a fault whose tables are changed by other vCPUs, before the guest tries by itself.
const TRIES: u32 = 64;
/// Entries behind the one of a fault that are mapped with it, if the guest has used them.
const NEIGHBOURS: usize = 7;
/// Pieces of a large page that are mapped with the first.
const PIECES: usize = 31;

/// What the guest's own tables have to say to a page fault of the CPU's.
fn access_of(code: PageFaultError, cpl: u8, ac: bool) -> Access {
    let kind = if code.contains(PageFaultError::FETCH) {
        AccessKind::Fetch
    } else if code.contains(PageFaultError::WRITE) {
        AccessKind::Write
    } else {
        AccessKind::Read
    };
    let privilege = match cpl {
        _ if code.contains(PageFaultError::USER) => Privilege::User,
        // To a descriptor table or a TSS.
        3 => Privilege::Implicit,
        _ => Privilege::Supervisor { ac },
    };
    Access { kind, privilege }
}

/// What a fault has found before it takes the lock.
struct Found {
    slot: Slot,
    moment: Moment,
    hva: Hva,
    /// The guest's entries behind the one of the fault that are in use, and how many.
    next: [u64; NEIGHBOURS],
    used: usize,
}

impl Mmu {
    /// Resolves a page fault of the CPU's in shadow tables.
    ///
    /// # Errors
    ///
    /// As [`super::super::fault::Faults::resolve`].
    pub(in crate::mmu) fn shadow_fault<M: GuestPhys<Error = Error>>(
        &self,
        cpu: &mut Place,
        run: &mut PageRun,
        memory: &mut M,
        paging: &PagingState,
        fault: &GuestFault,
    ) -> Result<Outcome> {
        self.stats.shadow_faults.add(1, Relaxed);
        let access = access_of(fault.code, fault.cpl, fault.ac);
        if !self.inverted.is_short() && self.quick_fault(cpu, run, memory, paging, fault, access)? {
            return Ok(Outcome::Mapped);
        }
        let key = RootKey::of(paging, paging.pointers()).ok_or_else(unsupported)?;
        for _ in 0..TRIES {
            let (page, path) = match walk::walk_traced(memory, paging, fault.gva, access) {
                Ok(found) => found,
                Err(WalkError::Fault(code)) => {
                    return Ok(Outcome::Raise(Exception::page_fault(fault.gva, code)))
                }
                // The CPU has said nothing of it before.
                Err(WalkError::NonCanonical) => {
                    return Ok(Outcome::Raise(Exception::general_protection()));
                }
                Err(WalkError::Memory { error, .. }) if error == no_such_device() => {
                    return Ok(Outcome::NoTables);
                }
                Err(WalkError::Memory { error, .. }) => return Err(error),
                Err(WalkError::Contended) => return Ok(Outcome::Mapped),
            };
            let nested = NestedFault {
                gpa: page.gpa,
                write: access.kind == AccessKind::Write,
                fetch: access.kind == AccessKind::Fetch,
                present: false,
                origin: Origin::Access(Some(fault.gva)),
            };
            let Some((slot, moment)) = self.slot_now(cpu, page.gpa.gfn()) else {
                return Ok(Outcome::Device(nested, Backing::Mmio));
            };
            if nested.write && slot.flags.contains(SlotFlags::READ_ONLY) {
                return Ok(Outcome::Device(nested, Backing::Rom));
            }
            let last = path.leaf_of_small_page(paging);
            let (next, used) = used_behind(memory, paging, last);
            let found = Found {
                slot,
                moment,
                hva: slot.hva_of(page.gpa.gfn()).ok_or(EFAULT)?,
                next,
                used,
            };
            let route = Route::new(key, fault.gva, page, path);
            self.fill(cpu)?;
            self.grow_inverted(cpu)?;
            match self.install(cpu, run, &route, &nested, access, &found)? {
                Some(Installed::Done(_)) => return Ok(Outcome::Mapped),
                Some(Installed::Watched) => return Ok(Outcome::Table(nested)),
                Some(Installed::Loose) => self.sync(&mut cpu.comparing, true)?,
                Some(Installed::Lacking(Lack::Room)) => self.evict()?,
                // A full reserve has enough for any fault.
                Some(Installed::Lacking(Lack::Frames)) => return Err(ENOMEM),
                Some(Installed::Obsolete) | None => {
                    self.stats.retries.add(1, Relaxed);
                    task::cond_resched();
                }
            }
            // What is read from here on is as new as this.
            cpu.renew(self.with_shadow(|shadow| shadow.sequence)?);
            cpu.slot = None;
        }
        Ok(Outcome::Mapped)
    }

    /// A fault in a table whose way from the root is known: only the guest's entry for the page is
    /// read. False when there is more to it.
    fn quick_fault<M: GuestPhys<Error = Error>>(
        &self,
        cpu: &mut Place,
        run: &mut PageRun,
        memory: &mut M,
        paging: &PagingState,
        fault: &GuestFault,
        access: Access,
    ) -> Result<bool> {
        let gva = fault.gva;
        let leaf = match cpu.leaf.filter(|leaf| leaf.covers(gva)) {
            Some(leaf) => leaf,
            None => {
                let Some(root) = cpu.root else {
                    return Ok(false);
                };
                let tables = Tables::existing(&self.supply);
                cpu.leaf = self.with_shadow(|shadow| {
                    cpu.renew(shadow.sequence);
                    shadow.leaf_table(&tables, root, gva)
                })?;
                let Some(leaf) = cpu.leaf else {
                    return Ok(false);
                };
                leaf
            }
        };
        let (at, spot) = leaf.place(gva);
        let Ok(entry) = memory.read_entry(at, paging.entry_size()) else {
            return Ok(false);
        };
        let Some((gfn, rights)) = leaf.look(paging, entry) else {
            return Ok(false);
        };
        if paging.check(&rights, access).is_err() {
            return Ok(false);
        }
        let Some((slot, moment)) = self.slot_now(cpu, gfn) else {
            return Ok(false);
        };
        let Some(hva) = slot.hva_of(gfn).filter(|_| slot.is_plain()) else {
            return Ok(false);
        };
        let Some(source) = walk::mark_used(memory, paging, at, entry, access)? else {
            return Ok(false);
        };
        // Where the page was mapped already, those behind it are as well.
        let behind = (!fault.code.contains(PageFaultError::PRESENT)).then_some(at);
        let (next, used) = used_behind(memory, paging, behind);
        let write = access.kind == AccessKind::Write;
        let wanted = if write { Wanted::Write } else { Wanted::Read };
        let left = slot.gfns().end.raw().saturating_sub(gfn.raw());
        let max = left.min(used as u64 + 1) as usize;
        let pages = UserPages::get(run, &self.mm, hva, wanted, max)?;
        let host = HostPage {
            hpa: pages.iter().next().ok_or(EFAULT)?,
            writable: pages.writable(),
            large: false,
        };
        let cause = Cause {
            write,
            user: access.privilege == Privilege::User,
        };
        let tables = Tables::existing(&self.supply);
        let mut state = self.state.write();
        if !state.is_current(moment, looked_up(hva, pages.count(), false)) {
            drop(state);
            cpu.slot = None;
            return Ok(false);
        }
        let shadow = state.tree.shadow().ok_or(EIO)?;
        let filled = shadow.fill(&tables, spot, cpu.sequence, source, host, cause);
        if filled != Filled::Done {
            cpu.leaf = None;
            return Ok(false);
        }
        // Nobody else has changed anything up to now.
        cpu.sequence = shadow.sequence;
        let behind = next.get(..used).unwrap_or_default();
        map_entries(
            shadow,
            &tables,
            spot,
            cpu.sequence,
            behind,
            gfn,
            &pages,
            host,
        );
        let shared = shadow.census.take_shared();
        drop(state);
        look_at(self.inverted, shared);
        Ok(true)
    }

    /// Maps the page of a fault, and those behind it that are likely to be used, if all is still as
    /// it was found; `None` when the host has changed it.
    fn install(
        &self,
        cpu: &mut Place,
        run: &mut PageRun,
        route: &Route,
        fault: &NestedFault,
        access: Access,
        found: &Found,
    ) -> Result<Option<Installed>> {
        let Found { slot, hva, .. } = found;
        let gfn = fault.gpa.gfn();
        let read_only = slot.flags.contains(SlotFlags::READ_ONLY);
        let logged = slot.flags.log_dirty();
        let wanted = match (read_only, fault.write) {
            (true, _) => Wanted::ReadOnly,
            (false, true) => Wanted::Write,
            (false, false) => Wanted::Read,
        };
        let shift = PageSize::Size2M.level().shift();
        // Small pieces of a large page come in runs.
        let in_pieces = route.page().page_shift > PageSize::Size4K.level().shift();
        let behind = if in_pieces { PIECES } else { found.used };
        let left = slot.gfns().end.raw().saturating_sub(gfn.raw());
        let max = left.min(behind as u64 + 1) as usize;
        let pages = UserPages::get(run, &self.mm, *hva, wanted, max)?;
        let logs_write = logged && fault.write;
        let large = !(read_only || logs_write)
            && pages.writable()
            && route.page().page_shift >= shift
            && slot.fits_large(gfn, PageSize::Size2M.pages())
            && pages
                .mapping_shift()
                .unwrap_or_else(|| self.mm.mapping_shift(*hva))
                >= shift;
        let writable = pages.writable() && !read_only;
        let host = HostPage {
            hpa: pages.iter().next().ok_or(EFAULT)?,
            writable: writable && (fault.write || !logged),
            large,
        };
        let cause = Cause {
            write: fault.write,
            user: access.privilege == Privilege::User,
        };
        let root = cpu.root.ok_or(EIO)?;
        let mut unlinked = Unlinked::new(self);
        let mut memory = Tables::with_reserves(&self.supply, &mut cpu.reserves);
        let mut state = self.state.write();
        if !state.is_current(found.moment, looked_up(*hva, pages.count(), large)) {
            return Ok(None);
        }
        let now = &mut *state;
        let shadow = now.tree.shadow().ok_or(EIO)?;
        let installed = shadow.install(
            &mut memory,
            &mut unlinked,
            root,
            cpu.sequence,
            route,
            host,
            cause,
        );
        if let Installed::Done(spot) = installed {
            if logged && fault.write {
                now.logs.mark(slot, gfn);
            }
            if !large {
                let host = HostPage {
                    writable: writable && !logged,
                    ..host
                };
                map_behind(shadow, &memory, spot, cpu.sequence, found, &pages, host);
            }
            cpu.renew(shadow.sequence);
        }
        let shared = shadow.census.take_shared();
        drop(state);
        look_at(self.inverted, shared);
        drop(unlinked);
        Ok(Some(installed))
    }
}

/// The guest's entries behind the one that maps a small page, up to the first that it has not used.
fn used_behind<M: GuestPhys>(
    memory: &mut M,
    paging: &PagingState,
    last: Option<Gpa>,
) -> ([u64; NEIGHBOURS], usize) {
    let mut entries = [0; NEIGHBOURS];
    let mut used = 0;
    let size = paging.entry_size();
    if let Some(last) = last {
        let reserved = paging.reserved_in_small();
        for place in entries.iter_mut() {
            let at = last.wrapping_add((used as u64 + 1) * u64::from(size.bytes()));
            // Not in the next table.
            let entry = match at.page_offset() {
                0 => break,
                _ => memory.read_entry(at, size),
            };
            match entry {
                Ok(entry) if shadow::is_used(entry, reserved) => *place = entry,
                _ => break,
            }
            used += 1;
        }
    }
    (entries, used)
}

/// Maps pages behind that of a fault: other pieces of the same large page, or pages of the entries
/// behind its own that are in one piece with it in the host.
fn map_behind(
    shadow: &mut Shadows,
    memory: &Tables<'_>,
    spot: Spot,
    sequence: u64,
    found: &Found,
    pages: &UserPages<'_>,
    like: HostPage,
) {
    let room = shadow.room_behind(spot, pages.count().saturating_sub(1));
    if room != 0 {
        for (index, hpa) in pages.iter().skip(1).take(room).enumerate() {
            let spot = spot.plus(index + 1);
            shadow.fill_direct(memory, spot, HostPage { hpa, ..like });
        }
        return;
    }
    if let Some(first) = shadow.frame_at(memory, spot) {
        let behind = found.next.get(..found.used).unwrap_or_default();
        let first = Gfn::new(first);
        map_entries(shadow, memory, spot, sequence, behind, first, pages, like);
    }
}

/// Maps pages that the guest's entries behind one refer to which maps `first`.
#[allow(clippy::too_many_arguments)]
fn map_entries(
    shadow: &mut Shadows,
    memory: &Tables<'_>,
    spot: Spot,
    sequence: u64,
    behind: &[u64],
    first: Gfn,
    pages: &UserPages<'_>,
    like: HostPage,
) {
    for (index, &source) in behind.iter().enumerate() {
        let place = spot.plus(index + 1);
        let Some(frame) = shadow.candidate(memory, place, source) else {
            continue;
        };
        let offset = frame.wrapping_sub(first.raw()) as usize;
        if let Some(hpa) = pages.iter().nth(offset) {
            let page = HostPage { hpa, ..like };
            shadow.fill(memory, place, sequence, source, page, Cause::NONE);
        }
    }
}

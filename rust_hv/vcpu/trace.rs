// SPDX-License-Identifier: GPL-2.0

//! A linear address followed level by level: through the guest's tables, then through the nested
//! ones, or through the shadow tables that the CPU walks instead of the guest's.

use super::memory::GuestPhysical;
use super::Vcpu;
use crate::host::bindings::{self, rusthv_walk};
use crate::mmu::query::note_entry;
use crate::model::arch::addr::{Gpa, Gva, Hpa};
use crate::model::arch::regs::Rflags;
use crate::model::paging::state::{Access, AccessKind, Mode};
use crate::model::paging::walk::{self, EntrySize, GuestPhys, WalkError};
use crate::model::paging::Level;
use crate::vendor::{Guest, Vendor, Window};
use kernel::prelude::*;

/// Guest memory that keeps which entries were read from it.
struct Noted<'a, 'b> {
    memory: GuestPhysical<'a>,
    walk: &'b mut rusthv_walk,
    level: u32,
}

impl GuestPhys for Noted<'_, '_> {
    type Error = Error;

    fn read_entry(&mut self, at: Gpa, size: EntrySize) -> Result<u64> {
        let entry = self.memory.read_entry(at, size)?;
        let level = self.level;
        note_entry(
            self.walk,
            bindings::RUSTHV_TABLE_GUEST,
            level,
            at.raw(),
            entry,
        );
        self.level = level.saturating_sub(1);
        Ok(entry)
    }

    fn cmpxchg_entry(&mut self, _: Gpa, _: EntrySize, _: u64, _: u64) -> Result<bool> {
        // A look leaves no trace in the guest.
        Ok(true)
    }
}

impl<V: Vendor> Vcpu<V> {
    /// `RUSTHV_WALK`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an access that there is not, or fields that are not 0; `EINTR`, `EIO`.
    pub fn trace(&self, asked: &rusthv_walk) -> Result<rusthv_walk> {
        let kind = match asked.access {
            bindings::RUSTHV_WALK_READ => AccessKind::Read,
            bindings::RUSTHV_WALK_WRITE => AccessKind::Write,
            bindings::RUSTHV_WALK_FETCH => AccessKind::Fetch,
            _ => return Err(EINVAL),
        };
        if asked.reserved != [0; 4] || asked.count != 0 {
            return Err(EINVAL);
        }
        let mut answer = rusthv_walk {
            gva: asked.gva,
            access: asked.access,
            ..Default::default()
        };
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let window = inner.guest.open()?;
        let paging = inner.state.paging(&window)?;
        let rflags = Rflags::from_raw(window.rflags()?);
        // The tables may have to be fetched by the host: that sleeps.
        drop(window);
        let level = match paging.mode() {
            Mode::Unpaged => 0,
            Mode::Bits32 => 2,
            // Its pointers are in registers, or read with the rest.
            Mode::Pae if paging.has_pdptes() => 2,
            Mode::Pae => 3,
            Mode::FourLevel => 4,
            Mode::FiveLevel => 5,
        };
        let mut memory = Noted {
            memory: GuestPhysical::new(&self.mmu, &mut inner.state.slots),
            walk: &mut answer,
            level,
        };
        let access = Access::explicit(kind, 0, rflags);
        let found = walk::probe(&mut memory, &paging, Gva::new(asked.gva), access);
        let gpa = match found {
            Ok(found) => found.gpa,
            Err(error) => {
                answer.result = match error {
                    WalkError::NonCanonical => bindings::RUSTHV_WALK_NOT_CANONICAL,
                    WalkError::Fault(code) => {
                        answer.error_code = code.raw();
                        bindings::RUSTHV_WALK_PAGE_FAULT
                    }
                    WalkError::Memory { at, .. } => {
                        answer.gpa = at.raw();
                        bindings::RUSTHV_WALK_NO_TABLE
                    }
                    WalkError::Contended => return Err(EAGAIN),
                };
                return Ok(answer);
            }
        };
        answer.gpa = gpa.raw();
        let (write, fetch) = (kind == AccessKind::Write, kind == AccessKind::Fetch);
        let shadow = inner.paging.shadow();
        let table = match shadow {
            Some(_) => bindings::RUSTHV_TABLE_SHADOW,
            None => bindings::RUSTHV_TABLE_NESTED,
        };
        let on_entry = |level: Level, at: Hpa, entry| {
            note_entry(&mut answer, table, level as u32, at.raw(), entry);
        };
        let hpa = match shadow {
            // Another root is due, and not known yet.
            Some(_) if inner.state.root_is_stale() => None,
            Some(cpu) => {
                let gva = Gva::new(asked.gva);
                self.mmu.trace_shadow(cpu, gva, write, fetch, on_entry)
            }
            None => self.mmu.trace(gpa, write, fetch, on_entry),
        };
        match hpa {
            Some(hpa) => answer.hpa = hpa.raw(),
            None => answer.result = bindings::RUSTHV_WALK_NOT_MAPPED,
        }
        Ok(answer)
    }
}

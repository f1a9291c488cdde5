// SPDX-License-Identifier: GPL-2.0

//! Guest memory as a vCPU sees it: for the walk of its page tables and for the emulator.

use super::code::{stopped, ReadBytes};
use super::snapshot::{paging_state, Snapshot};
use super::Vcpu;
use crate::host::errno::no_such_device;
use crate::host::switch::request_cache_flush;
use crate::host::user;
use crate::mmu::access::{Backing as MmuBacking, SlotCache};
use crate::mmu::Mmu;
use crate::model::arch::addr::{Gpa, Gva};
use crate::model::arch::regs::Rflags;
use crate::model::arch::segment::Segment;
use crate::model::emulate::{
    Access, Backing, Cpu, Gpr, Insn, Memory, Place, SegmentName, Stop, Width, MAX_LEN,
};
use crate::model::exit::{NestedFault, Origin};
use crate::model::paging::state::{Access as WalkAccess, AccessKind};
use crate::model::paging::walk::{self, EntrySize, GuestPhys};
use crate::model::paging::Permissions;
use crate::vendor::{Guest, Vendor, Window};
use kernel::prelude::*;

/// Guest-physical memory, for walks.
pub struct GuestPhysical<'a> {
    mmu: &'a Mmu,
    slot: &'a mut SlotCache,
}

impl<'a> GuestPhysical<'a> {
    /// That of an address space.
    pub fn new(mmu: &'a Mmu, slot: &'a mut SlotCache) -> Self {
        Self { mmu, slot }
    }
}

/// A translation that the CPU has made: the access got as far as the nested tables, so the guest's
/// own tables allow it.
#[derive(Clone, Copy)]
pub struct Known {
    /// Where the CPU tells it; else the instruction has no other operand in memory.
    gva: Option<Gva>,
    gpa: Gpa,
    write: bool,
    backing: Backing,
}

impl Known {
    /// That of the nested fault of an instruction, where `backing` was found.
    pub fn from_fault(fault: &NestedFault, backing: Backing, insn: &Insn) -> Option<Self> {
        let gva = match fault.origin {
            Origin::Access(Some(gva)) => Some(gva),
            Origin::Access(None) if insn.has_one_memory_operand() => None,
            Origin::Access(None) | Origin::Tables => return None,
        };
        Some(Self {
            gva,
            gpa: fault.gpa,
            write: fault.write,
            backing,
        })
    }

    fn translate(&self, gva: Gva, access: Access) -> Option<Place> {
        let allowed = access == Access::Read || self.write;
        let same = match self.gva {
            Some(known) => gva.page_base() == known.page_base(),
            None => gva.page_offset() == self.gpa.page_offset(),
        };
        (allowed && same).then(|| Place {
            gpa: self.gpa.page_base().wrapping_add(gva.page_offset()),
            backing: self.backing,
        })
    }
}

impl GuestPhys for GuestPhysical<'_> {
    type Error = Error;

    fn read_entry(&mut self, at: Gpa, size: EntrySize) -> Result<u64> {
        self.mmu.check(at, Permissions::R)?;
        self.mmu.read_word_cached(self.slot, at, size.bytes())
    }

    fn cmpxchg_entry(&mut self, at: Gpa, size: EntrySize, old: u64, new: u64) -> Result<bool> {
        self.mmu.check(at, Permissions::W)?;
        match self.mmu.set_flags(self.slot, at, size.bytes(), old, new) {
            Ok(found) => Ok(found == old),
            Err(error) => match self.mmu.backing(at) {
                MmuBacking::Rom(_) => Ok(true),
                _ => Err(error),
            },
        }
    }
}

impl ReadBytes for GuestPhysical<'_> {
    fn read_bytes(&mut self, at: Gpa, bytes: &mut [u8]) -> Result {
        self.mmu.check(at, Permissions::X)?;
        self.mmu.read_cached(self.slot, at, bytes)
    }
}

impl<V: Vendor> Vcpu<V> {
    /// `KVM_TRANSLATE`: where a read at CPL 0 would go; no trace of it stays in the guest's tables.
    /// `None` where it would fault, or where tables are in no memory.
    ///
    /// # Errors
    ///
    /// `EINTR`, `EIO`.
    pub fn translate(&self, gva: Gva) -> Result<Option<Gpa>> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let window = inner.guest.open()?;
        let paging = paging_state(&window, inner.state.cpuid.facts())?;
        let rflags = Rflags::from_raw(window.rflags()?);
        // The tables may have to be fetched by the host: that sleeps.
        drop(window);
        let access = WalkAccess::explicit(AccessKind::Read, 0, rflags);
        let mut memory = GuestPhysical::new(&self.mmu, &mut inner.state.slots);
        Ok(walk::probe(&mut memory, &paging, gva, access)
            .ok()
            .map(|found| found.gpa))
    }
}

/// A vCPU's state and memory, for the emulator.
pub struct Machine<'a> {
    /// The registers, as they were at the exit and as the instruction changes them.
    pub snapshot: &'a mut Snapshot,
    /// What the CPU has translated already.
    pub known: Option<Known>,
    mmu: &'a Mmu,
    slot: &'a mut SlotCache,
}

impl<'a> Machine<'a> {
    /// A machine to execute on.
    pub fn new(snapshot: &'a mut Snapshot, mmu: &'a Mmu, slot: &'a mut SlotCache) -> Self {
        // Software reads what the guest points it to.
        request_cache_flush();
        Self {
            snapshot,
            known: None,
            mmu,
            slot,
        }
    }

    /// Translates a linear address, as a data access at the vCPU's privilege level.
    pub fn translate_kind(&mut self, gva: Gva, kind: AccessKind) -> Result<Gpa, Stop<Error>> {
        let access = WalkAccess::explicit(kind, self.snapshot.cpl, self.snapshot.rflags);
        let mut memory = GuestPhysical::new(self.mmu, self.slot);
        let page = walk::walk(&mut memory, &self.snapshot.paging, gva, access);
        let gpa = page.map_err(|error| stopped(error, gva))?.gpa;
        let right = match kind {
            AccessKind::Read => Permissions::R,
            AccessKind::Write => Permissions::W,
            AccessKind::Fetch => Permissions::X,
        };
        self.mmu.check(gpa, right).map_err(Stop::Failed)?;
        Ok(gpa)
    }

    /// Does something to each part of a linear range that lies in one page, once all of it has
    /// been translated: a fault leaves everything as it was. At most two pages.
    fn in_parts(
        &mut self,
        gva: Gva,
        len: usize,
        kind: AccessKind,
        mut f: impl FnMut(&Mmu, Gpa, usize, usize) -> Result,
    ) -> Result<(), Stop<Error>> {
        let first = user::to_page_end(gva.page_offset()).min(len);
        let low = self.translate_kind(gva, kind)?;
        let high = if first < len {
            let next = gva.wrapping_add(first as u64);
            Some(self.translate_kind(self.snapshot.wrap(next), kind)?)
        } else {
            None
        };
        f(self.mmu, low, 0, first).map_err(Stop::Failed)?;
        if let Some(high) = high {
            f(self.mmu, high, first, len).map_err(Stop::Failed)?;
        }
        Ok(())
    }

    /// Checks that a linear range of at most two pages can be accessed.
    pub fn probe(&mut self, gva: Gva, len: usize, kind: AccessKind) -> Result<(), Stop<Error>> {
        self.in_parts(gva, len, kind, |_, _, _, _| Ok(()))
    }

    /// Reads a linear range of at most two pages.
    pub fn load(&mut self, gva: Gva, buf: &mut [u8]) -> Result<(), Stop<Error>> {
        self.in_parts(gva, buf.len(), AccessKind::Read, |mmu, gpa, from, to| {
            mmu.read(gpa, buf.get_mut(from..to).unwrap_or_default())
        })
    }

    /// Writes a linear range of at most two pages.
    pub fn store(&mut self, gva: Gva, buf: &[u8]) -> Result<(), Stop<Error>> {
        self.in_parts(gva, buf.len(), AccessKind::Write, |mmu, gpa, from, to| {
            mmu.write(gpa, buf.get(from..to).unwrap_or_default())
        })
    }

    /// Fetches up to 15 instruction bytes at CS:RIP; what lies behind a page that cannot be
    /// fetched from is left out.
    pub fn fetch(&mut self, bytes: &mut [u8; MAX_LEN]) -> Result<usize, Stop<Error>> {
        let mut memory = GuestPhysical::new(self.mmu, self.slot);
        self.snapshot.code().fetch(&mut memory, bytes)
    }

    /// Whether the instruction byte `offset` bytes after RIP can be fetched.
    pub fn probe_code(&mut self, offset: u64) -> Result<(), Stop<Error>> {
        let mut memory = GuestPhysical::new(self.mmu, self.slot);
        let code = self.snapshot.code();
        code.translate(&mut memory, code.linear(offset)).map(drop)
    }
}

impl Cpu for Machine<'_> {
    fn gpr(&self, register: Gpr) -> u64 {
        self.snapshot.gpr(register)
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.snapshot.set_gpr(register, value);
    }

    fn rip(&self) -> u64 {
        self.snapshot.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.snapshot.rip = rip;
    }

    fn rflags(&self) -> Rflags {
        self.snapshot.rflags
    }

    fn set_rflags(&mut self, rflags: Rflags) {
        self.snapshot.rflags = rflags;
    }

    fn segment(&self, name: SegmentName) -> Segment {
        self.snapshot.segment(name)
    }

    fn is_protected(&self) -> bool {
        self.snapshot.is_protected()
    }

    fn linear_bits(&self) -> u32 {
        48
    }

    fn is_alignment_checked(&self) -> bool {
        self.snapshot.is_alignment_checked()
    }
}

impl Memory for Machine<'_> {
    type Error = Error;

    fn translate(&mut self, gva: Gva, access: Access) -> Result<Place, Stop<Error>> {
        let kind = match access {
            Access::Read => AccessKind::Read,
            Access::Write => AccessKind::Write,
        };
        let known = self.known.and_then(|known| known.translate(gva, access));
        if let Some(place) = known {
            return Ok(place);
        }
        let gpa = self.translate_kind(gva, kind)?;
        let backing = match self.mmu.backing(gpa) {
            MmuBacking::Ram(_) => Backing::Ram,
            MmuBacking::Rom(_) => Backing::Rom,
            MmuBacking::Mmio => Backing::Mmio,
        };
        Ok(Place { gpa, backing })
    }

    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result {
        let Some(size) = word_size(gpa, bytes.len()) else {
            return self.mmu.read(gpa, bytes).map_err(slot_has_gone);
        };
        let word = self.mmu.read_word_cached(self.slot, gpa, size);
        let word = word.map_err(slot_has_gone)?.to_le_bytes();
        for (to, from) in bytes.iter_mut().zip(word) {
            *to = from;
        }
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result {
        let Some(size) = word_size(gpa, bytes.len()) else {
            return self.mmu.write(gpa, bytes).map_err(slot_has_gone);
        };
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.mmu
            .write_word(gpa, size, u64::from_le_bytes(word))
            .map_err(slot_has_gone)
    }

    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<bool> {
        let found = self
            .mmu
            .compare_exchange(gpa, width.bytes(), old, new)
            .map_err(slot_has_gone)?;
        Ok(found == old)
    }
}

/// The size, when the access is naturally aligned: then it must be made in one piece.
fn word_size(gpa: Gpa, len: usize) -> Option<u8> {
    let aligned = matches!(len, 1 | 2 | 4 | 8) && gpa.raw() % len as u64 == 0;
    aligned.then_some(len as u8)
}

/// Memory that was there when the address was translated is gone: user space has changed the slots
/// meanwhile. The guest tries again.
fn slot_has_gone(error: Error) -> Error {
    if error == no_such_device() {
        EAGAIN
    } else {
        error
    }
}

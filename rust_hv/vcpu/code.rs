// SPDX-License-Identifier: GPL-2.0

//! The instruction that the vCPU is at: where it is, and its bytes.

use crate::host::switch::request_cache_flush;
use crate::host::user;
use crate::mmu::access::SlotCache;
use crate::mmu::Mmu;
use crate::model::arch::addr::{Gpa, Gva};
use crate::model::arch::exception::Vector;
use crate::model::arch::regs::Rflags;
use crate::model::emulate::{Exception, Mode, Stop, MAX_LEN};
use crate::model::paging::state::{Access, AccessKind, PagingState};
use crate::model::paging::walk::{self, EntrySize, GuestPhys, WalkError};
use crate::vendor::{HwError, SegmentRegister, Window};
use kernel::prelude::*;

/// Guest-physical memory of which bytes can be read, too.
pub trait ReadBytes: GuestPhys<Error = Error> {
    /// Reads inside one page.
    fn read_bytes(&mut self, at: Gpa, bytes: &mut [u8]) -> Result;
}

/// Where the instruction is.
pub struct Code<'a> {
    /// Default sizes.
    pub mode: Mode,
    /// RIP.
    pub rip: u64,
    /// Base of CS.
    pub base: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// How addresses are translated.
    pub paging: &'a PagingState,
}

impl<'a> Code<'a> {
    /// Where the guest is.
    #[inline]
    pub fn at(window: &impl Window, paging: &'a PagingState) -> Result<Self, HwError> {
        let (rights, cpl) = window.code_rights_and_cpl()?;
        let mode = Mode::new(paging.is_long(), rights.long(), rights.default_big());
        let base = match mode {
            Mode::Bits64 => 0,
            Mode::Bits32 | Mode::Bits16 => window.segment_base(SegmentRegister::Cs)?,
        };
        Ok(Self {
            mode,
            rip: window.rip()?,
            base,
            cpl,
            paging,
        })
    }

    /// Linear address of the byte `offset` bytes after RIP.
    #[inline]
    pub fn linear(&self, offset: u64) -> Gva {
        let rip = self.rip.wrapping_add(offset);
        match self.mode {
            Mode::Bits64 => Gva::new(rip),
            Mode::Bits32 | Mode::Bits16 => {
                Gva::new(self.base.wrapping_add(rip & 0xffff_ffff) & 0xffff_ffff)
            }
        }
    }

    /// Translates the address of one of its bytes. The CPU has fetched it, and with that set the
    /// accessed flags.
    #[inline]
    pub fn translate(
        &self,
        memory: &mut impl GuestPhys<Error = Error>,
        gva: Gva,
    ) -> Result<Gpa, Stop<Error>> {
        // RFLAGS.AC is about data.
        let access = Access::explicit(AccessKind::Fetch, self.cpl, Rflags::FIXED);
        match walk::probe(memory, self.paging, gva, access) {
            Ok(page) => Ok(page.gpa),
            Err(error) => Err(stopped(error, gva)),
        }
    }

    /// Fetches up to 15 bytes; what lies behind a page that cannot be fetched from is left out.
    #[inline]
    pub fn fetch(
        &self,
        memory: &mut impl ReadBytes,
        bytes: &mut [u8; MAX_LEN],
    ) -> Result<usize, Stop<Error>> {
        let mut have = 0;
        while have < MAX_LEN {
            let gva = self.linear(have as u64);
            let rest = bytes.get_mut(have..).unwrap_or_default();
            let len = rest.len().min(user::to_page_end(gva.page_offset()));
            let got = self.translate(memory, gva).and_then(|gpa| {
                let part = rest.get_mut(..len).unwrap_or_default();
                memory.read_bytes(gpa, part).map_err(Stop::Failed)
            });
            match got {
                Ok(()) => have += len,
                Err(stop) if have == 0 => return Err(stop),
                Err(_) => break,
            }
        }
        Ok(have)
    }
}

/// What a walk that found nothing means for the instruction that needs `gva`.
#[cold]
pub fn stopped(error: WalkError<Error>, gva: Gva) -> Stop<Error> {
    let (vector, code, cr2) = match error {
        WalkError::Fault(code) => (Vector::PF, code.raw(), Some(gva)),
        WalkError::NonCanonical => (Vector::GP, 0, None),
        WalkError::Memory { error, .. } => return Stop::Failed(error),
        WalkError::Contended => return Stop::Retry,
    };
    Stop::Fault(Exception {
        vector,
        error_code: Some(code),
        cr2,
    })
}

/// What can be reached while interrupts are off: slots that the cache knows, and pages that are
/// present. Everything else is an error, and nothing is written.
struct Present<'a> {
    mmu: &'a Mmu,
    slots: &'a SlotCache,
}

impl GuestPhys for Present<'_> {
    type Error = Error;

    #[inline]
    fn read_entry(&mut self, at: Gpa, size: EntrySize) -> Result<u64> {
        let hva = self.mmu.hva_known(self.slots, at).ok_or(EAGAIN)?;
        user::read_word(hva, size.bytes())
    }

    fn cmpxchg_entry(&mut self, _: Gpa, _: EntrySize, _: u64, _: u64) -> Result<bool> {
        Err(EAGAIN)
    }
}

impl ReadBytes for Present<'_> {
    #[inline]
    fn read_bytes(&mut self, at: Gpa, bytes: &mut [u8]) -> Result {
        user::copy_from(self.mmu.hva_known(self.slots, at).ok_or(EAGAIN)?, bytes)
    }
}

/// [`Code::fetch`] while interrupts are off; [`Stop::Failed`] where it takes a sleep.
#[inline]
pub fn fetch_present(
    code: &Code<'_>,
    mmu: &Mmu,
    slots: &SlotCache,
    bytes: &mut [u8; MAX_LEN],
) -> Result<usize, Stop<Error>> {
    if !mmu.is_unrestricted() {
        // Rights are looked up with the lock.
        return Err(Stop::Failed(EAGAIN));
    }
    // Software reads what the guest points it to.
    request_cache_flush();
    let mut memory = Present { mmu, slots };
    user::without_faults(|| code.fetch(&mut memory, bytes))
}

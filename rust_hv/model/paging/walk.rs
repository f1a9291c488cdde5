// SPDX-License-Identifier: GPL-2.0

//! A walk of the guest's own tables, as the CPU does it (SDM Vol. 3A, "Paging").
//!
//! Accessed and dirty flags are set when, and only when, the whole access is permitted. The SDM
//! leaves open which entries of a walk that faults have theirs set; none is what most CPUs do.
//!
//! Not here: linear-address masking, shadow stacks, supervisor protection keys. CPUID must not
//! offer them to a guest whose accesses are translated by this walk.

use super::state::{
    bits, low_mask, pdpte_reserved, Access, Mode, PagingState, Rights, ACCESSED, DIRTY, NO_EXECUTE,
    PRESENT, USER, WRITABLE,
};
use crate::model::arch::addr::{Gpa, Gva};
use crate::model::arch::exception::PageFaultError;

/// Bytes in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntrySize {
    /// 32-bit paging.
    Four,
    /// The other modes.
    Eight,
}

/// The guest's physical memory, where its tables are.
pub trait GuestPhys {
    /// Why an entry could not be reached.
    type Error;

    /// Reads an entry, in one piece. It is aligned to its size. The upper half of a four-byte
    /// entry reads as 0.
    fn read_entry(&mut self, at: Gpa, size: EntrySize) -> Result<u64, Self::Error>;

    /// Replaces an entry if it still has the value `old`, in one locked access, and says whether
    /// it had. Read-only memory, whose flags cannot be set, answers yes.
    fn cmpxchg_entry(
        &mut self,
        at: Gpa,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<bool, Self::Error>;
}

/// A linear address that was translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Where the byte is.
    pub gpa: Gpa,
    /// log2 of the page's size: 12, 21, 22 or 30.
    pub page_shift: u32,
    /// What the tables say.
    pub rights: Rights,
}

/// Why there is no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalkError<E> {
    /// The address is not canonical: a general-protection or stack fault, not a page fault.
    NonCanonical,
    /// A page fault with this error code.
    Fault(PageFaultError),
    /// An entry is where the guest has no memory.
    Memory {
        /// Where the entry would be.
        at: Gpa,
        /// What the memory said.
        error: E,
    },
    /// Other CPUs kept changing the entries; try again later.
    Contended,
}

/// Why page-directory pointers could not be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PdpteError<E> {
    /// A reserved bit is set: the MOV to CR3 faults (#GP).
    Reserved,
    /// The pointers are where the guest has no memory.
    Memory(E),
}

/// Walks that found an entry changed under them are begun anew this often.
const RETRIES: usize = 16;
/// Most levels of any mode.
const LEVELS: usize = 5;

/// Loads the page-directory pointers of PAE mode, as a MOV to CR3 does (SDM Vol. 3A, "PDPTE
/// Registers").
pub fn load_pdptes<M: GuestPhys>(
    memory: &mut M,
    cr3: u64,
    phys_bits: u8,
) -> Result<[u64; 4], PdpteError<M::Error>> {
    let mut pdptes = [0; 4];
    for (at, pdpte) in (0u64..).step_by(8).zip(pdptes.iter_mut()) {
        let at = Gpa::new((cr3 & bits(31, 5)) | at);
        *pdpte = memory
            .read_entry(at, EntrySize::Eight)
            .map_err(PdpteError::Memory)?;
        if *pdpte & PRESENT != 0 && *pdpte & pdpte_reserved(phys_bits) != 0 {
            return Err(PdpteError::Reserved);
        }
    }
    Ok(pdptes)
}

/// Translates an address for an access that takes place: sets accessed and dirty flags.
pub fn walk<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    gva: Gva,
    access: Access,
) -> Result<Translation, WalkError<M::Error>> {
    for _ in 0..RETRIES {
        let mut path = Path::new(state);
        let translation = path.translate(memory, gva, access)?;
        if path.set_flags(memory, access)? {
            return Ok(translation);
        }
    }
    Err(WalkError::Contended)
}

/// Translates an address without a trace: for debuggers and for `KVM_TRANSLATE`.
pub fn probe<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    gva: Gva,
    access: Access,
) -> Result<Translation, WalkError<M::Error>> {
    Path::new(state).translate(memory, gva, access)
}

#[derive(Clone, Copy)]
struct Step {
    at: Gpa,
    entry: u64,
    leaf: bool,
}

/// The entries that a walk has used.
struct Path<'a> {
    state: &'a PagingState,
    size: EntrySize,
    steps: [Option<Step>; LEVELS],
}

impl<'a> Path<'a> {
    fn new(state: &'a PagingState) -> Self {
        Self {
            state,
            size: match state.mode {
                Mode::Bits32 => EntrySize::Four,
                _ => EntrySize::Eight,
            },
            steps: [None; LEVELS],
        }
    }

    fn translate<M: GuestPhys>(
        &mut self,
        memory: &mut M,
        gva: Gva,
        access: Access,
    ) -> Result<Translation, WalkError<M::Error>> {
        let state = self.state;
        if !state.is_canonical(gva) {
            return Err(WalkError::NonCanonical);
        }
        let cr3 = state.registers.cr3;
        // Outside of 64-bit mode, linear addresses wrap at 4 GiB.
        let short = gva.raw() & bits(31, 0);
        let physical = bits(51, 12) & low_mask(state.features.phys_bits);
        let (linear, mut table, top, width) = match state.mode {
            Mode::Unpaged => {
                return Ok(Translation {
                    gpa: Gpa::new(short),
                    page_shift: 12,
                    rights: Rights::ALL,
                })
            }
            Mode::Bits32 => (short, cr3 & bits(31, 12), 22, 10),
            Mode::Pae => {
                let pdpte = self.pdpte(memory, short, access)?;
                (short, pdpte & physical, 21, 9)
            }
            Mode::FourLevel => (gva.raw(), cr3 & physical, 39, 9),
            Mode::FiveLevel => (gva.raw(), cr3 & physical, 48, 9),
        };

        let code = state.error_code(access);
        let mut rights = Rights::ALL;
        let mut shift: u32 = top;
        for step in self.steps.iter_mut() {
            let index = (linear >> shift) & low_mask(width);
            let at = match self.size {
                EntrySize::Four => Gpa::new(table | index << 2),
                EntrySize::Eight => Gpa::new(table | index << 3),
            };
            let entry = memory
                .read_entry(at, self.size)
                .map_err(|error| WalkError::Memory { at, error })?;
            if entry & PRESENT == 0 {
                return Err(WalkError::Fault(code));
            }
            let leaf = state.is_leaf(entry, shift);
            if entry & state.reserved(shift, leaf) != 0 {
                let reserved = PageFaultError::PRESENT | PageFaultError::RESERVED;
                return Err(WalkError::Fault(code | reserved));
            }
            rights.user &= entry & USER != 0;
            rights.writable &= entry & WRITABLE != 0;
            rights.executable &= entry & NO_EXECUTE == 0;
            *step = Some(Step { at, entry, leaf });
            if leaf {
                if state.mode != Mode::Bits32 && state.mode != Mode::Pae {
                    rights.key = (entry >> 59 & 15) as u8;
                }
                state.check(&rights, access).map_err(WalkError::Fault)?;
                let offset = linear & bits(shift - 1, 0);
                return Ok(Translation {
                    gpa: Gpa::new(state.page(entry, shift) | offset),
                    page_shift: shift,
                    rights,
                });
            }
            table = match state.mode {
                Mode::Bits32 => entry & bits(31, 12),
                _ => entry & physical,
            };
            shift = shift.saturating_sub(u32::from(width));
        }
        // Not reached: from any top, the fifth level at the latest has shift 12, always a leaf.
        Err(WalkError::Contended)
    }

    /// The page-directory pointer that covers an address in PAE mode.
    fn pdpte<M: GuestPhys>(
        &self,
        memory: &mut M,
        linear: u64,
        access: Access,
    ) -> Result<u64, WalkError<M::Error>> {
        let state = self.state;
        let index = linear >> 30 & 3;
        let pdpte = match state.pdptes {
            Some([a, b, c, d]) => match index {
                0 => a,
                1 => b,
                2 => c,
                _ => d,
            },
            None => {
                let at = Gpa::new((state.registers.cr3 & bits(31, 5)) | index << 3);
                let pdpte = memory
                    .read_entry(at, EntrySize::Eight)
                    .map_err(|error| WalkError::Memory { at, error })?;
                // Reserved; but a CPU that reads the pointer anew at each walk may set it, as
                // QEMU's does. One that has something against it has told so by itself.
                pdpte & !ACCESSED
            }
        };
        let code = state.error_code(access);
        if pdpte & PRESENT == 0 {
            return Err(WalkError::Fault(code));
        }
        if pdpte & pdpte_reserved(state.features.phys_bits) != 0 {
            let reserved = PageFaultError::PRESENT | PageFaultError::RESERVED;
            return Err(WalkError::Fault(code | reserved));
        }
        Ok(pdpte)
    }

    /// Sets the flags that are not set yet, from the top. False when an entry has changed.
    fn set_flags<M: GuestPhys>(
        &self,
        memory: &mut M,
        access: Access,
    ) -> Result<bool, WalkError<M::Error>> {
        for Step { at, entry, leaf } in self.steps.iter().flatten().copied() {
            let dirty = if leaf && access.is_write() { DIRTY } else { 0 };
            let new = entry | ACCESSED | dirty;
            let set = new == entry
                || memory
                    .cmpxchg_entry(at, self.size, entry, new)
                    .map_err(|error| WalkError::Memory { at, error })?;
            if !set {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

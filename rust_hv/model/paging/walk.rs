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

impl EntrySize {
    /// The number.
    #[inline]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
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
    walk_traced(memory, state, gva, access).map(|(translation, _)| translation)
}

/// [`walk`] that tells the way.
pub fn walk_traced<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    gva: Gva,
    access: Access,
) -> Result<(Translation, Path), WalkError<M::Error>> {
    for _ in 0..RETRIES {
        let mut path = Path::new();
        let translation = translate(memory, state, gva, access, |step| path.push(step))?;
        if path.set_flags(memory, state.entry_size(), access)? {
            return Ok((translation, path));
        }
    }
    Err(WalkError::Contended)
}

/// Sets the flags that an access of an entry for a page sets, which has passed all checks. What the
/// entry says then; `None` when it has changed since it was read.
pub fn mark_used<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    at: Gpa,
    entry: u64,
    access: Access,
) -> Result<Option<u64>, M::Error> {
    let dirty = if access.is_write() { DIRTY } else { 0 };
    let new = entry | ACCESSED | dirty;
    let set = new == entry || memory.cmpxchg_entry(at, state.entry_size(), entry, new)?;
    Ok(set.then_some(new))
}

/// Translates an address without a trace: for debuggers and for `KVM_TRANSLATE`.
pub fn probe<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    gva: Gva,
    access: Access,
) -> Result<Translation, WalkError<M::Error>> {
    translate(memory, state, gva, access, |_| ())
}

/// An entry that a walk has used.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Step {
    /// Where it is.
    pub at: Gpa,
    /// What it says, with the flags that the walk has set.
    pub entry: u64,
    /// It maps a page.
    pub leaf: bool,
}

/// Goes down the tables, and shows each entry that it uses to `used`.
#[inline]
fn translate<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    gva: Gva,
    access: Access,
    mut used: impl FnMut(Step),
) -> Result<Translation, WalkError<M::Error>> {
    if !state.is_canonical(gva) {
        return Err(WalkError::NonCanonical);
    }
    let fault = |more| Err(WalkError::Fault(state.error_code(access) | more));
    let cr3 = state.registers.cr3;
    // Outside of 64-bit mode, linear addresses wrap at 4 GiB.
    let short = gva.raw() & bits(31, 0);
    let physical = state.physical;
    let (linear, mut table, top, width, address) = match state.mode {
        Mode::Unpaged => {
            return Ok(Translation {
                gpa: Gpa::new(short),
                page_shift: 12,
                rights: Rights::ALL,
            })
        }
        Mode::Bits32 => (short, cr3 & bits(31, 12), 22, 10, bits(31, 12)),
        Mode::Pae => {
            let pdpte = pdpte(memory, state, short, access)?;
            (short, pdpte & physical, 21, 9, physical)
        }
        Mode::FourLevel => (gva.raw(), cr3 & physical, 39, 9, physical),
        Mode::FiveLevel => (gva.raw(), cr3 & physical, 48, 9, physical),
    };
    let size = state.entry_size();
    let scale = match size {
        EntrySize::Four => 2,
        EntrySize::Eight => 3,
    };

    // What is set in all of the entries, and in any of them.
    let (mut all, mut any) = (u64::MAX, 0);
    let mut shift: u32 = top;
    for _ in 0..LEVELS {
        let index = (linear >> shift) & low_mask(width);
        let at = Gpa::new(table | index << scale);
        let entry = memory
            .read_entry(at, size)
            .map_err(|error| WalkError::Memory { at, error })?;
        if entry & PRESENT == 0 {
            return fault(PageFaultError::NONE);
        }
        let leaf = state.is_leaf(entry, shift);
        if entry & state.reserved(shift, leaf) != 0 {
            return fault(PageFaultError::PRESENT | PageFaultError::RESERVED);
        }
        all &= entry;
        any |= entry;
        used(Step { at, entry, leaf });
        if leaf {
            let rights = Rights {
                user: all & USER != 0,
                writable: all & WRITABLE != 0,
                executable: any & NO_EXECUTE == 0,
                key: match state.mode {
                    Mode::FourLevel | Mode::FiveLevel => (entry >> 59 & 15) as u8,
                    _ => 0,
                },
            };
            state.check(&rights, access).map_err(WalkError::Fault)?;
            let offset = linear & bits(shift - 1, 0);
            return Ok(Translation {
                gpa: Gpa::new(state.page(entry, shift) | offset),
                page_shift: shift,
                rights,
            });
        }
        table = entry & address;
        shift = shift.saturating_sub(u32::from(width));
    }
    // Not reached: from any top, the fifth level at the latest has shift 12, always a leaf.
    Err(WalkError::Contended)
}

/// The page-directory pointer that covers an address in PAE mode.
fn pdpte<M: GuestPhys>(
    memory: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<u64, WalkError<M::Error>> {
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

/// The entries that a walk has used, from the top. Those of page-directory pointers are not among
/// them: a CPU has them loaded.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    steps: [Step; LEVELS],
    count: usize,
}

impl Path {
    /// The entries.
    #[inline]
    pub fn steps(&self) -> &[Step] {
        self.steps.get(..self.count).unwrap_or_default()
    }

    /// Where the entry is that maps a page of 4 KiB.
    pub fn leaf_of_small_page(&self, state: &PagingState) -> Option<Gpa> {
        let levels = match state.mode {
            Mode::Unpaged => return None,
            Mode::Bits32 | Mode::Pae => 2,
            Mode::FourLevel => 4,
            Mode::FiveLevel => 5,
        };
        let last = self.steps().get(levels - 1)?;
        Some(last.at)
    }

    /// That of a walk which used none.
    pub(super) fn new() -> Self {
        Self {
            steps: [Step::default(); LEVELS],
            count: 0,
        }
    }

    #[inline]
    fn push(&mut self, step: Step) {
        if let Some(place) = self.steps.get_mut(self.count) {
            *place = step;
            self.count += 1;
        }
    }

    /// Sets the flags that are not set yet, from the top. False when an entry has changed.
    fn set_flags<M: GuestPhys>(
        &mut self,
        memory: &mut M,
        size: EntrySize,
        access: Access,
    ) -> Result<bool, WalkError<M::Error>> {
        for step in self.steps.iter_mut().take(self.count) {
            let Step { at, entry, leaf } = *step;
            let dirty = if leaf && access.is_write() { DIRTY } else { 0 };
            let new = entry | ACCESSED | dirty;
            step.entry = new;
            let set = new == entry
                || memory
                    .cmpxchg_entry(at, size, entry, new)
                    .map_err(|error| WalkError::Memory { at, error })?;
            if !set {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Control registers, EFER, XCR0 and debug registers: what a guest may write, and what follows.
//!
//! Checks stand before changes: a write that faults leaves everything as it was.

use super::memory::GuestPhysical;
use super::State;
use crate::host::switch::HostSwitch;
use crate::mmu::access::SlotCache;
use crate::mmu::Mmu;
use crate::model::arch::exception::Vector;
use crate::model::arch::regs::{Cr0, Cr4, Efer};
use crate::model::exit::Event;
use crate::model::paging::walk::load_pdptes;
use crate::vendor::{Caps, HwError, SegmentRegister, Window};

/// An exception that the guest's instruction raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault(pub Event);

impl Fault {
    /// #GP(0)
    pub const fn general_protection() -> Self {
        Self(Event::exception(Vector::GP.raw(), Some(0)))
    }

    /// #UD
    pub const fn invalid_opcode() -> Self {
        Self(Event::exception(Vector::UD.raw(), None))
    }
}

/// What a register write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It took effect.
    Done,
    /// Nothing changed but this.
    Faulted(Fault),
    /// Nothing changed: the entries that PAE paging loads from guest memory are needed. Reading
    /// them may sleep, so the caller closes the window, reads them, and comes again.
    NeedsPdptes,
}

const REFUSED: Result<Written, HwError> = Ok(Written::Faulted(Fault::general_protection()));
const DONE: Result<Written, HwError> = Ok(Written::Done);

/// True when an address is canonical with so many linear-address bits.
pub const fn is_canonical(address: u64, bits: u32) -> bool {
    let upper = (address as i64) >> (bits - 1);
    upper == 0 || upper == -1
}

/// IA32_APIC_BASE: the bits that may be set are BSP, the enable bit, and the address.
pub fn apic_base_is_valid(state: &State, value: u64) -> bool {
    const BSP: u64 = 1 << 8;
    const ENABLE: u64 = 1 << 11;
    let address = (1u64 << state.cpuid.facts().phys_bits) - 1;
    value & !(address & !0xfff | BSP | ENABLE) == 0
}

/// True when CR0 is a value that a guest may have: consistent in itself, and one that the CPU can
/// run with.
pub fn cr0_is_valid(caps: &Caps, cr0: Cr0) -> bool {
    // Bits without a meaning are dropped, as the CPU does.
    let in_cpu =
        (cr0.intersection(Cr0::NAMED).raw() | caps.cr0.ones) & !Cr0::NW.union(Cr0::CD).raw();
    cr0.is_consistent() && caps.cr0.allow(in_cpu)
}

/// True when CR4 has only bits that the guest's CPUID offers and the CPU can run with.
pub fn cr4_is_valid(caps: &Caps, state: &State, cr4: Cr4) -> bool {
    cr4.raw() & !state.cpuid.facts().cr4 == 0 && caps.cr4.allow(cr4.raw() | caps.cr4.ones)
}

/// True when EFER has only bits that the guest's CPUID offers; LMA is looked at elsewhere.
pub fn efer_is_valid(state: &State, efer: Efer) -> bool {
    efer.without(Efer::LMA).raw() & !state.cpuid.facts().efer == 0
}

/// True where the tables of PAE paging are in use.
fn is_pae(cr0: Cr0, cr4: Cr4, efer: Efer) -> bool {
    cr0.contains(Cr0::PG) && cr4.contains(Cr4::PAE) && !efer.contains(Efer::LMA)
}

/// What PAE paging needs from guest memory for a write of CR0 or CR4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pdptes {
    /// Not looked at yet.
    Unread,
    /// The four entries at CR3.
    Read([u64; 4]),
    /// They have reserved bits, or there is no memory: the write faults.
    Bad,
}

impl Pdptes {
    /// Reads them. May sleep.
    pub fn read(mmu: &Mmu, state: &State, cr3: u64) -> Self {
        let phys_bits = state.cpuid.facts().phys_bits;
        match load_pdptes(
            &mut GuestPhysical::new(mmu, &mut SlotCache::new()),
            cr3,
            phys_bits,
        ) {
            Ok(entries) => Self::Read(entries),
            Err(_) => Self::Bad,
        }
    }

    /// Gives them to the CPU; some when that cannot be done now.
    fn load(self, state: &mut State, window: &mut impl Window) -> Result<Option<Written>, HwError> {
        match self {
            Self::Unread => Ok(Some(Written::NeedsPdptes)),
            Self::Bad => Ok(Some(Written::Faulted(Fault::general_protection()))),
            Self::Read(entries) => {
                state.note_pointers(entries);
                window.set_pdptes(entries).map(|()| None)
            }
        }
    }
}

/// MOV to CR0.
pub(super) fn write_cr0(
    caps: &Caps,
    state: &mut State,
    window: &mut impl Window,
    raw: u64,
    pdptes: Pdptes,
) -> Result<Written, HwError> {
    let new = Cr0::from_raw(raw);
    if !cr0_is_valid(caps, new) {
        return REFUSED;
    }
    let new = new.intersection(Cr0::NAMED).union(Cr0::ET);
    let old = Cr0::from_raw(window.cr0()?);
    let cr4 = Cr4::from_raw(window.cr4()?);
    let efer = Efer::from_raw(window.efer()?);
    let turns_on = new.contains(Cr0::PG) && !old.contains(Cr0::PG);
    let turns_off = !new.contains(Cr0::PG) && old.contains(Cr0::PG);
    let mut new_efer = efer;
    if turns_on && efer.contains(Efer::LME) {
        let code = window.segment(SegmentRegister::Cs)?;
        if !cr4.contains(Cr4::PAE) || code.rights.long() {
            return REFUSED;
        }
        new_efer = efer.union(Efer::LMA);
    }
    if turns_off {
        let in_64bit_code =
            efer.contains(Efer::LMA) && window.segment(SegmentRegister::Cs)?.rights.long();
        if cr4.contains(Cr4::PCIDE) || in_64bit_code {
            return REFUSED;
        }
        new_efer = efer.without(Efer::LMA);
    }
    let caching = Cr0::CD.union(Cr0::NW);
    // SDM Vol. 3A, "PDPTE Registers": any change of paging loads them, and so does one of CD or NW.
    let reloads = Cr0::PG.union(caching);
    if is_pae(new, cr4, new_efer) && (new.raw() ^ old.raw()) & reloads.raw() != 0 {
        if let Some(not_now) = pdptes.load(state, window)? {
            return Ok(not_now);
        }
    }
    if new_efer != efer {
        window.set_efer(new_efer.raw())?;
    }
    window.set_cr0(new.raw())?;
    if turns_on || turns_off || (new.raw() ^ old.raw()) & Cr0::WP.raw() != 0 {
        window.flush_guest_tables()?;
    }
    DONE
}

/// MOV to CR3, which exits without nested tables alone.
pub(super) fn write_cr3(
    state: &mut State,
    window: &mut impl Window,
    raw: u64,
    pdptes: Pdptes,
) -> Result<Written, HwError> {
    /// With PCIDs: what is cached of this one may stay. We need not.
    const KEEP: u64 = 1 << 63;
    let cr0 = Cr0::from_raw(window.cr0()?);
    let cr4 = Cr4::from_raw(window.cr4()?);
    let efer = Efer::from_raw(window.efer()?);
    let value = match cr4.contains(Cr4::PCIDE) {
        true => raw & !KEEP,
        false => raw,
    };
    if efer.contains(Efer::LMA) && value >> state.cpuid.facts().phys_bits != 0 {
        return REFUSED;
    }
    if is_pae(cr0, cr4, efer) {
        if let Some(not_now) = pdptes.load(state, window)? {
            return Ok(not_now);
        }
    }
    window.set_cr3(value)?;
    DONE
}

/// MOV to CR4.
pub(super) fn write_cr4(
    caps: &Caps,
    state: &mut State,
    window: &mut impl Window,
    raw: u64,
    pdptes: Pdptes,
) -> Result<Written, HwError> {
    let new = Cr4::from_raw(raw);
    if !cr4_is_valid(caps, state, new) {
        return REFUSED;
    }
    let old = Cr4::from_raw(window.cr4()?);
    let cr0 = Cr0::from_raw(window.cr0()?);
    let efer = Efer::from_raw(window.efer()?);
    if efer.contains(Efer::LMA) && !new.contains(Cr4::PAE) {
        return REFUSED;
    }
    if new.contains(Cr4::PCIDE) && !old.contains(Cr4::PCIDE) {
        let cr3 = window.cr3()?;
        if !efer.contains(Efer::LMA) || cr3 & 0xfff != 0 {
            return REFUSED;
        }
    }
    let changed = Cr4::from_raw(new.raw() ^ old.raw());
    // SDM Vol. 3A, "PDPTE Registers": the bits whose change loads them.
    let reloads = Cr4::PAE | Cr4::PGE | Cr4::PSE | Cr4::SMEP;
    if is_pae(cr0, new, efer) && changed.intersects(reloads) {
        if let Some(not_now) = pdptes.load(state, window)? {
            return Ok(not_now);
        }
    }
    window.set_cr4(new.raw())?;
    state.osxsave = new.contains(Cr4::OSXSAVE);
    if changed.intersects(Cr4::PAGING) {
        window.flush_guest_tables()?;
    }
    DONE
}

/// WRMSR of IA32_EFER.
pub(super) fn write_efer(
    state: &mut State,
    switch: &HostSwitch,
    window: &mut impl Window,
    raw: u64,
) -> Result<Written, HwError> {
    let new = Efer::from_raw(raw);
    let old = Efer::from_raw(window.efer()?);
    let paged = Cr0::from_raw(window.cr0()?).contains(Cr0::PG);
    let lme_changes = new.contains(Efer::LME) != old.contains(Efer::LME);
    if !efer_is_valid(state, new) || (paged && lme_changes) {
        return REFUSED;
    }
    // LMA is the CPU's to write.
    let new = new.with(Efer::LMA, old.contains(Efer::LMA));
    window.set_efer(new.raw())?;
    if new.contains(Efer::NXE) != old.contains(Efer::NXE) {
        window.flush_guest_tables()?;
    }
    want_user_msrs(state, switch, new);
    DONE
}

/// Tells the host switch which MSRs the guest can see.
pub(super) fn want_user_msrs(state: &State, switch: &HostSwitch, efer: Efer) {
    switch.want(efer.contains(Efer::SCE), state.cpuid.facts().rdtscp);
}

/// XSETBV (SDM Vol. 2C).
pub(super) fn write_xcr0(state: &mut State, index: u32, value: u64) -> Result<(), Fault> {
    const X87: u64 = 1 << 0;
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const AVX512: u64 = 0b111 << 5;
    let allowed = state.cpuid.facts().xcr0 | X87;
    let consistent = value & X87 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX512 == 0 || (value & AVX512 == AVX512 && value & AVX != 0));
    if index != 0 || value & !allowed != 0 || !consistent {
        return Err(Fault::general_protection());
    }
    state.xcr0 = value;
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! RDMSR and WRMSR of guests, for the MSRs that do not run without an exit.
//!
//! An MSR that is not here does not exist: the access is a general-protection fault.

use super::control::{self, Fault, Written};
use super::State;
use crate::host::switch::{HostSwitch, UserMsr};
use crate::model::arch::intercept::SwitchedMsr;
use crate::model::arch::msr;
use crate::vendor::{HwError, Window};

/// Variable-range MTRRs that the guest sees.
const MTRR_PAIRS: usize = 8;
/// IA32_MTRRCAP: that many pairs, fixed ranges, write combining.
const MTRR_CAP: u64 = MTRR_PAIRS as u64 | 1 << 8 | 1 << 10;

/// MSRs without an effect of their own. With nested paging the host's memory types count.
pub struct Msrs {
    mtrr_variable: [u64; 2 * MTRR_PAIRS],
    mtrr_fixed: [u64; 11],
    mtrr_default: u64,
    misc_enable: u64,
    bios_sign: u64,
}

/// IA32_MISC_ENABLE after a reset: fast strings.
const MISC_ENABLE_RESET: u64 = 1;

impl Msrs {
    /// After a reset.
    pub const fn new() -> Self {
        Self {
            mtrr_variable: [0; 2 * MTRR_PAIRS],
            mtrr_fixed: [0; 11],
            mtrr_default: 0,
            misc_enable: MISC_ENABLE_RESET,
            bios_sign: 0x1_0000_0000,
        }
    }

    fn mtrr(&mut self, number: u32) -> Option<&mut u64> {
        let index = |first: u32| number.wrapping_sub(first) as usize;
        match number {
            msr::MTRR_DEF_TYPE => Some(&mut self.mtrr_default),
            msr::MTRR_FIX64K => self.mtrr_fixed.get_mut(0),
            msr::MTRR_FIX16K_80000 | msr::MTRR_FIX16K_A0000 => {
                self.mtrr_fixed.get_mut(1 + index(msr::MTRR_FIX16K_80000))
            }
            msr::MTRR_FIX4K_C0000..=msr::MTRR_FIX4K_F8000 => {
                self.mtrr_fixed.get_mut(3 + index(msr::MTRR_FIX4K_C0000))
            }
            _ if number >= msr::MTRR_PHYSBASE0 => {
                self.mtrr_variable.get_mut(index(msr::MTRR_PHYSBASE0))
            }
            _ => None,
        }
    }
}

/// True for a memory type that MTRRs know.
const fn is_memory_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// True when all eight bytes are memory types; the PAT has one more (UC-, 7).
fn are_memory_types(value: u64, pat: bool) -> bool {
    value
        .to_le_bytes()
        .into_iter()
        .all(|byte| is_memory_type(u64::from(byte)) || (pat && byte == 7))
}

fn mtrr_is_valid(number: u32, value: u64, phys_bits: u8) -> bool {
    let too_wide = value >> phys_bits != 0;
    match number {
        // Type, fixed-range enable, enable.
        msr::MTRR_DEF_TYPE => value & !0xcff == 0 && is_memory_type(value & 0xff),
        msr::MTRR_FIX64K
        | msr::MTRR_FIX16K_80000
        | msr::MTRR_FIX16K_A0000
        | msr::MTRR_FIX4K_C0000..=msr::MTRR_FIX4K_F8000 => are_memory_types(value, false),
        // Bases are even and have a type; masks are odd and have a valid bit.
        _ if number & 1 == 0 => !too_wide && value & 0xf00 == 0 && is_memory_type(value & 0xff),
        _ => !too_wide && value & 0x7ff == 0,
    }
}

const fn user_msr(number: u32) -> Option<UserMsr> {
    Some(match number {
        msr::STAR => UserMsr::Star,
        msr::LSTAR => UserMsr::Lstar,
        msr::CSTAR => UserMsr::Cstar,
        msr::FMASK => UserMsr::Fmask,
        msr::TSC_AUX => UserMsr::TscAux,
        _ => return None,
    })
}

/// Reads an MSR for the guest.
pub(super) fn read(
    state: &mut State,
    switch: &HostSwitch,
    window: &impl Window,
    number: u32,
) -> Result<Result<u64, Fault>, HwError> {
    if let Some(which) = user_msr(number) {
        if which == UserMsr::TscAux && !state.cpuid.facts().rdtscp {
            return Ok(Err(Fault::general_protection()));
        }
        return Ok(Ok(window.user_msr(switch, which)));
    }
    if let Some(which) = SwitchedMsr::of(number) {
        // Where the VMM wants it to exit.
        return window.switched_msr(switch, which).map(Ok);
    }
    Ok(Ok(match number {
        msr::EFER => window.efer()?,
        msr::PAT => window.pat()?,
        // Where the CPU does not add the offset by itself.
        msr::TSC => window.time_stamp()?,
        msr::APIC_BASE => state.apic_base,
        msr::MISC_ENABLE => state.msrs.misc_enable,
        msr::BIOS_SIGN_ID => state.msrs.bios_sign,
        msr::MTRR_CAP => MTRR_CAP,
        // No machine-check banks; no performance counters to speak of; nothing of the platform.
        msr::MCG_CAP
        | msr::MCG_STATUS
        | msr::PLATFORM_ID
        | msr::EBL_CR_POWERON
        | msr::PERF_STATUS
        | msr::PERF_CTL
        | msr::DEBUGCTL => 0,
        _ => match state.msrs.mtrr(number) {
            Some(value) => *value,
            None => return Ok(Err(Fault::general_protection())),
        },
    }))
}

/// Writes an MSR for the guest.
pub(super) fn write(
    state: &mut State,
    switch: &HostSwitch,
    window: &mut impl Window,
    number: u32,
    value: u64,
) -> Result<Written, HwError> {
    let refused = Ok(Written::Faulted(Fault::general_protection()));
    if let Some(which) = user_msr(number) {
        let value = match which {
            UserMsr::TscAux if !state.cpuid.facts().rdtscp || value >> 32 != 0 => return refused,
            UserMsr::Lstar | UserMsr::Cstar if !control::is_canonical(value, 48) => return refused,
            // The upper half of FMASK does not exist.
            UserMsr::Fmask => value & 0xffff_ffff,
            _ => value,
        };
        window.set_user_msr(switch, which, value);
        return Ok(Written::Done);
    }
    if let Some(which) = SwitchedMsr::of(number) {
        let is_address = which != SwitchedMsr::SysenterCs;
        if is_address && !control::is_canonical(value, 48) {
            return refused;
        }
        window.set_switched_msr(switch, which, value)?;
        return Ok(Written::Done);
    }
    match number {
        msr::EFER => return control::write_efer(state, switch, window, value),
        msr::PAT if are_memory_types(value, true) => window.set_pat(value)?,
        msr::APIC_BASE if control::apic_base_is_valid(state, value) => state.apic_base = value,
        msr::MISC_ENABLE => state.msrs.misc_enable = value,
        msr::BIOS_SIGN_ID => {}
        msr::BIOS_UPDT_TRIG => {}
        msr::DEBUGCTL if value == 0 => {}
        msr::MCG_STATUS if value == 0 => {}
        msr::PAT | msr::APIC_BASE | msr::DEBUGCTL | msr::MCG_STATUS => return refused,
        _ => {
            let phys_bits = state.cpuid.facts().phys_bits;
            match state.msrs.mtrr(number) {
                Some(place) if mtrr_is_valid(number, value, phys_bits) => *place = value,
                _ => return refused,
            }
        }
    }
    Ok(Written::Done)
}

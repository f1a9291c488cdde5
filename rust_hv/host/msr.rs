// SPDX-License-Identifier: GPL-2.0

//! The host's model-specific registers and XCR0.

use super::bindings;
use super::cpu::IrqsOff;

/// Reads an MSR; `None` when the CPU does not have it.
pub fn read_safe(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: `value` is writable; a fault is caught.
    let error = unsafe { bindings::rhv_rdmsr_safe(msr, &mut value) };
    (error == 0).then_some(value)
}

/// Reads an MSR that every CPU which runs us has.
#[inline]
pub fn read(msr: u32) -> u64 {
    // SAFETY: Reading changes nothing; a missing MSR is a warning of the host and reads as 0.
    unsafe { bindings::rhv_rdmsr(msr) }
}

/// Writes an MSR of the host.
///
/// # Safety
///
/// The value is right for the host, or the MSR does not matter until the caller has restored it.
#[inline]
pub unsafe fn write(msr: u32, value: u64) {
    // SAFETY: By the contract of this function.
    unsafe { bindings::rhv_wrmsr(msr, value) };
}

/// XCR0 as the host runs with it; 0 when the host does not use XSAVE.
pub fn host_xcr0() -> u64 {
    // SAFETY: No preconditions.
    if !unsafe { bindings::rhv_has_osxsave() } {
        return 0;
    }
    // SAFETY: CR4.OSXSAVE is set, as was just checked.
    unsafe { bindings::rhv_xgetbv0() }
}

/// For guests that do not use XSAVE: they run with the host's XCR0.
pub const SAME_XCR0: u64 = 0;

/// Loads XCR0 for a guest, or the host's back.
///
/// # Safety
///
/// The host uses XSAVE, `value` is valid for the CPU, and the host's value is back before
/// interrupts come on.
#[inline]
unsafe fn write_xcr0(_irqs: &IrqsOff, value: u64) {
    // SAFETY: By the contract of this function.
    unsafe { bindings::rhv_xsetbv0(value) };
}

/// Calls `f` with a guest's XCR0 in the CPU, unless it is [`SAME_XCR0`] or the host's own.
///
/// # Safety
///
/// `host` is [`host_xcr0`], and `guest` has only bits that the CPU has.
#[inline]
pub unsafe fn with_xcr0<R>(irqs: &IrqsOff, host: u64, guest: u64, f: impl FnOnce() -> R) -> R {
    let differs = guest != SAME_XCR0 && guest != host;
    if differs {
        // SAFETY: By the contract, and as it is undone below with interrupts still off.
        unsafe { write_xcr0(irqs, guest) };
    }
    let result = f();
    if differs {
        // SAFETY: The host's own value.
        unsafe { write_xcr0(irqs, host) };
    }
    result
}

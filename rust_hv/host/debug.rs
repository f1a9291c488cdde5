// SPDX-License-Identifier: GPL-2.0

//! Debug registers and machine checks around a guest.

use super::bindings;
use super::cpu::IrqsOff;

/// Loads a guest's DR0 to DR3 and DR6 just before an entry, which brings DR7. [`clear`] and
/// [`restore`] follow the exit, with interrupts still off.
pub fn load(_irqs: &IrqsOff, addresses: &[u64; 4], dr6: u64) {
    // SAFETY: Interrupts are off; DR7 is 0 until the entry and after the exit.
    unsafe { bindings::rhv_load_debug_registers(addresses.as_ptr(), dr6) };
}

/// Takes a guest's breakpoints out of the CPU.
pub fn clear(irqs: &IrqsOff) {
    load(irqs, &[0; 4], 0xffff_0ff0);
    restore(irqs);
}

/// Puts the host's breakpoints back, which a VM exit has switched off.
#[inline]
pub fn restore(_irqs: &IrqsOff) {
    // SAFETY: The host's registers are restored from its own records, and only if it uses them.
    unsafe { bindings::rhv_restore_debug_registers() };
}

/// Runs the host's machine-check handler for one that came with the last exit.
pub fn machine_check(_irqs: &IrqsOff) {
    // SAFETY: Interrupts are off, on the CPU of the exit.
    unsafe { bindings::rhv_machine_check() };
}

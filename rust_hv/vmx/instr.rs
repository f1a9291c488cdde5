// SPDX-License-Identifier: GPL-2.0

//! The VMX instructions (SDM Vol. 3C, "VMX Instruction Reference"), each with its failure as a
//! value.
//!
//! The flags that tell of a failure are captured in the same assembly block as the instruction. A
//! fault is caught too: in a reboot the host switches VMX off under us.

use crate::model::arch::addr::{Gva, Hpa};
use crate::vendor::HwError;
use core::arch::asm;

/// Status of an instruction that came through with CF and ZF clear.
const DONE: u8 = 0;
/// Preset of the status: the instruction itself did not write it, as it faulted.
const FAULTED: u8 = 2;

/// Outcome of an instruction, by its status: 1 stands for CF or ZF.
#[inline]
fn check(status: u8) -> Result<(), HwError> {
    match status {
        DONE => Ok(()),
        FAULTED => Err(HwError::Fault),
        _ => Err(diagnose()),
    }
}

/// Finds out what kind of failure it was, from the VM-instruction error field.
#[cold]
fn diagnose() -> HwError {
    /// VM-instruction error
    const VM_INSTRUCTION_ERROR: u32 = 0x4400;
    match vmread_raw(VM_INSTRUCTION_ERROR) {
        (number, DONE) => HwError::Instruction(number as u32),
        _ => HwError::NoCurrentState,
    }
}

/// One VMX instruction with a fixup: on a fault, execution goes on behind it with the status still
/// as it was preset.
macro_rules! vmx {
    ($instruction:literal, $status:ident, $($operands:tt)*) => {
        // SAFETY: See the callers. The exception-table entry has the layout of the host's
        // `_ASM_EXTABLE`: EX_TYPE_DEFAULT resumes at the second address.
        unsafe {
            asm!(
                concat!("2: ", $instruction),
                "setbe {status}",
                "3:",
                ".pushsection \"__ex_table\", \"a\"",
                ".balign 4",
                ".long 2b - .",
                ".long 3b - .",
                ".long 1",
                ".popsection",
                status = inout(reg_byte) $status,
                $($operands)*
            )
        }
    };
}

#[inline]
fn vmread_raw(field: u32) -> (u64, u8) {
    let mut status = FAULTED;
    let mut value = 0u64;
    // VMREAD changes nothing but its destination.
    vmx!(
        "vmread {value}, {field}",
        status,
        value = inout(reg) value,
        field = in(reg) u64::from(field),
        options(nomem, nostack)
    );
    (value, status)
}

/// VMREAD of a field of the current VMCS.
///
/// # Errors
///
/// [`HwError::Instruction`] 12 for a field that the CPU does not have.
#[inline]
pub(super) fn vmread(field: u32) -> Result<u64, HwError> {
    let (value, status) = vmread_raw(field);
    check(status)?;
    Ok(value)
}

/// VMWRITE to a field of the current VMCS.
///
/// # Safety
///
/// A wrong value in the host area is loaded into the CPU at the next exit; a wrong EPT pointer or
/// bitmap address lets a guest reach foreign memory.
#[inline]
pub(super) unsafe fn vmwrite(field: u32, value: u64) -> Result<(), HwError> {
    let mut status = FAULTED;
    // The effect is delayed until a VM entry, which the caller answers for.
    vmx!(
        "vmwrite {field}, {value}",
        status,
        value = in(reg) value,
        field = in(reg) u64::from(field),
        options(nostack)
    );
    check(status)
}

/// VMCLEAR: writes cached data of a VMCS back and makes it inactive and clear.
///
/// # Safety
///
/// `region` is a VMCS region that we own, active on no other CPU.
pub(super) unsafe fn vmclear(region: Hpa) -> Result<(), HwError> {
    let mut status = FAULTED;
    let address = region.raw();
    vmx!(
        "vmclear qword ptr [{pointer}]",
        status,
        pointer = in(reg) &raw const address,
        options(nostack)
    );
    check(status)
}

/// VMPTRLD: makes a VMCS active and current on this CPU.
///
/// # Safety
///
/// `region` is a VMCS region that is active on no other CPU. Interrupts are off, and the VMCS that
/// was current before is made current again before they come on, if others count on it.
pub(super) unsafe fn vmptrld(region: Hpa) -> Result<(), HwError> {
    let mut status = FAULTED;
    let address = region.raw();
    vmx!(
        "vmptrld qword ptr [{pointer}]",
        status,
        pointer = in(reg) &raw const address,
        options(nostack)
    );
    check(status)
}

/// VMPTRST: the current VMCS, `None` without one.
#[inline]
pub(super) fn vmptrst() -> Result<Option<Hpa>, HwError> {
    let mut status = FAULTED;
    let mut address = 0u64;
    // VMPTRST stores the pointer and sets no flags: clear CF and ZF before it, so that `setbe`
    // tells whether it came through without a fault.
    vmx!(
        "vmptrst qword ptr [{pointer}]\n test {pointer}, {pointer}",
        status,
        pointer = in(reg) &raw mut address,
        options(nostack)
    );
    check(status)?;
    Ok((address != u64::MAX).then(|| Hpa::new(address)))
}

/// What INVEPT invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum InveptKind {
    /// All mappings of one EPT pointer.
    SingleContext = 1,
    /// All mappings of all EPT pointers.
    AllContexts = 2,
}

/// INVEPT on this CPU.
pub(super) fn invept(kind: InveptKind, eptp: u64) -> Result<(), HwError> {
    let mut status = FAULTED;
    let descriptor = [eptp, 0];
    // Dropping translations is always allowed.
    vmx!(
        "invept {kind}, xmmword ptr [{descriptor}]",
        status,
        kind = in(reg) kind as u64,
        descriptor = in(reg) &raw const descriptor,
        options(nostack)
    );
    check(status)
}

/// What INVVPID invalidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum InvvpidKind {
    /// The mappings of one linear address of a VPID.
    Address = 0,
    /// All mappings of one VPID.
    SingleContext = 1,
    /// All mappings of all VPIDs but the host's.
    AllContexts = 2,
}

/// INVVPID on this CPU.
pub(super) fn invvpid(kind: InvvpidKind, vpid: u16, address: Gva) -> Result<(), HwError> {
    let mut status = FAULTED;
    let descriptor = [u64::from(vpid), address.raw()];
    // Dropping translations is always allowed.
    vmx!(
        "invvpid {kind}, xmmword ptr [{descriptor}]",
        status,
        kind = in(reg) kind as u64,
        descriptor = in(reg) &raw const descriptor,
        options(nostack)
    );
    check(status)
}

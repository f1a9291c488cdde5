// SPDX-License-Identifier: GPL-2.0

//! A VMCS, and the window in which it is current.
//!
//! VMREAD and VMWRITE act on whatever VMCS is current on the CPU. [`Window`] is the proof that it
//! is ours: it borrows the VMCS, keeps interrupts off, and puts back what was current before, as
//! `kvm_intel` remembers which VMCS it loaded last and will not load it again.

use super::active::Region;
use super::fields::*;
use super::instr::{self, VmxError};
use crate::host::cpu::IrqsOff;
use crate::host::task;
use crate::model::arch::addr::Hpa;
use kernel::prelude::*;

/// A VMCS of ours.
pub struct Vmcs {
    region: Pin<KBox<Region>>,
}

/// Our VMCS is current on this CPU, and interrupts are off.
///
/// # Invariants
///
/// The current-VMCS pointer of this CPU is `vmcs`'s region.
pub struct Window<'a> {
    vmcs: &'a Vmcs,
    /// What was current before, when it was not ours.
    displaced: Option<Hpa>,
    /// Set when the VMCS has come to this CPU with this window.
    moved: bool,
    /// Last, so that interrupts come on after `drop` has put `displaced` back.
    irqs: IrqsOff,
}

impl Vmcs {
    /// A VMCS whose fields are all still to be written.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(revision: u32, node: i32) -> Result<Self> {
        Ok(Self {
            region: Region::new(revision, node)?,
        })
    }

    /// Makes the VMCS current until the window is dropped.
    ///
    /// Interrupts must be on; the call may wait for the CPU where the VMCS was active, and for the
    /// scheduler to take us off a CPU that is going offline.
    ///
    /// # Errors
    ///
    /// `EIO` when a VMX instruction failed.
    #[inline]
    pub fn open(&mut self) -> Result<Window<'_>> {
        loop {
            let irqs = IrqsOff::new();
            let moved = !self.region.is_active_here(&irqs);
            if moved {
                // Slow path: bring it here. Waiting for another CPU needs interrupts on.
                drop(irqs);
                self.region.clear();
                let irqs = IrqsOff::new();
                match self.region.as_ref().activate(&irqs) {
                    Ok(()) => return self.load(irqs, true),
                    Err(error) if error == EAGAIN => {
                        drop(irqs);
                        task::sleep_a_tick();
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            return self.load(irqs, false);
        }
    }

    #[inline]
    fn load(&mut self, irqs: IrqsOff, moved: bool) -> Result<Window<'_>> {
        let ours = self.region.hpa();
        let current = instr::vmptrst()?;
        let displaced = current.filter(|&hpa| hpa != ours);
        if current != Some(ours) {
            // SAFETY: Active on this CPU or nowhere; interrupts are off, and the window's `drop`
            // puts back what is displaced.
            unsafe { instr::vmptrld(ours) }?;
        }
        // INVARIANT: It was current, or has just been loaded.
        Ok(Window {
            vmcs: self,
            displaced,
            moved,
            irqs,
        })
    }
}

impl Window<'_> {
    /// Reads a field.
    #[inline]
    pub fn read<F: Readable>(&self, field: F) -> Result<F::Value, VmxError> {
        Ok(F::Value::from_raw(instr::vmread(field.encoding())?))
    }

    /// Writes a field of the guest's.
    #[inline]
    pub fn write<T: Width>(&mut self, field: Field<T>, value: T) -> Result<(), VmxError> {
        // SAFETY: By the choice of `Field`, the guest alone has the consequences.
        unsafe { instr::vmwrite(field.encoding(), value.into_raw()) }
    }

    /// Writes a field of the host's.
    ///
    /// # Safety
    ///
    /// The host can live with the value at the next exit, and it opens nothing to the guest that
    /// is not the guest's.
    #[inline]
    pub unsafe fn write_host<T: Width>(
        &mut self,
        field: HostField<T>,
        value: T,
    ) -> Result<(), VmxError> {
        // SAFETY: By the contract of this function.
        unsafe { instr::vmwrite(field.encoding(), value.into_raw()) }
    }

    /// Interrupts are off while this lives.
    #[inline]
    pub fn irqs(&self) -> &IrqsOff {
        &self.irqs
    }

    /// Whether the VMCS came to this CPU with this window: per-CPU host state must be written.
    #[inline]
    pub fn moved(&self) -> bool {
        self.moved
    }

    /// True when the next entry is a VMRESUME.
    #[inline]
    pub(super) fn launched(&self) -> bool {
        self.vmcs.region.launched()
    }

    /// Notes a successful entry.
    #[inline]
    pub(super) fn set_launched(&mut self) {
        self.vmcs.region.set_launched();
    }
}

impl Drop for Window<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(theirs) = self.displaced {
            // SAFETY: It was current on this CPU when the window opened, and interrupts were off
            // since: it is still active here, and its owner expects it to be current. A failure
            // means that VMX is off (a reboot), when nobody expects anything.
            let _ = unsafe { instr::vmptrld(theirs) };
        }
    }
}

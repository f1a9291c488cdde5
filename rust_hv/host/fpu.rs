// SPDX-License-Identifier: GPL-2.0

//! The guest's FPU registers: swapped in once per `KVM_RUN`, not once per exit.

use super::bindings;
use super::cpu::IrqsOff;
use kernel::prelude::*;
use kernel::types::Opaque;

/// Memory for one guest's FPU state, managed by the host's FPU code.
///
/// # Invariants
///
/// `inner` was allocated by `fpu_alloc_guest_fpstate`.
pub struct GuestFpu {
    inner: Pin<KBox<Opaque<bindings::fpu_guest>>>,
}

// SAFETY: The state is memory until it is swapped in, and then tied to the task by `FpuInUse`.
unsafe impl Send for GuestFpu {}

impl GuestFpu {
    /// State as after reset.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let inner = KBox::pin(Opaque::zeroed(), GFP_KERNEL)?;
        // SAFETY: Zeroed memory for the structure.
        if !unsafe { bindings::fpu_alloc_guest_fpstate(inner.get()) } {
            return Err(ENOMEM);
        }
        Ok(Self { inner })
    }

    /// Swaps the guest's registers in for the current task until the value is dropped.
    pub fn enter(&mut self) -> FpuInUse<'_> {
        // SAFETY: Allocated by the invariant; the task gives the registers back in `drop`.
        unsafe { bindings::fpu_swap_kvm_fpstate(self.inner.get(), true) };
        FpuInUse {
            fpu: self,
            _not_send: kernel::types::NotThreadSafe,
        }
    }
}

impl Drop for GuestFpu {
    fn drop(&mut self) {
        // SAFETY: Allocated by the invariant, and not in use as `FpuInUse` borrows `self`.
        unsafe { bindings::fpu_free_guest_fpstate(self.inner.get()) };
    }
}

/// The current task's FPU registers are the guest's.
pub struct FpuInUse<'a> {
    fpu: &'a mut GuestFpu,
    _not_send: kernel::types::NotThreadSafe,
}

impl FpuInUse<'_> {
    /// Brings the registers back to the CPU when the host had saved them meanwhile.
    #[inline]
    pub fn load(&self, _irqs: &IrqsOff) {
        // SAFETY: Interrupts are off; the task's state is the guest's.
        unsafe { bindings::rhv_load_fpu_if_needed() };
    }
}

impl Drop for FpuInUse<'_> {
    fn drop(&mut self) {
        // SAFETY: Swapped in by `enter`, on this task.
        unsafe { bindings::fpu_swap_kvm_fpstate(self.fpu.inner.get(), false) };
    }
}

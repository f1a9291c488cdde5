// SPDX-License-Identifier: GPL-2.0

//! The guest's FPU registers: swapped in once per `KVM_RUN`, not once per exit.

use super::bindings;
use super::cpu::IrqsOff;
use super::frame::Wipe;
use kernel::prelude::*;
use kernel::types::Opaque;

/// Memory for one guest's FPU state, managed by the host's FPU code.
///
/// # Invariants
///
/// `inner` was allocated by `fpu_alloc_guest_fpstate`.
pub struct GuestFpu {
    inner: Pin<KBox<Opaque<bindings::fpu_guest>>>,
    wipe: Wipe,
}

// SAFETY: The state is memory until it is swapped in, and then tied to the task by `FpuInUse`.
unsafe impl Send for GuestFpu {}

impl GuestFpu {
    /// State as after reset.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(wipe: Wipe) -> Result<Self> {
        let inner = KBox::pin(Opaque::zeroed(), GFP_KERNEL)?;
        // SAFETY: Zeroed memory for the structure.
        if !unsafe { bindings::fpu_alloc_guest_fpstate(inner.get()) } {
            return Err(ENOMEM);
        }
        Ok(Self { inner, wipe })
    }

    /// Where the registers are while they are in no CPU.
    fn memory(&self) -> (*mut u8, usize) {
        let mut size = 0;
        // SAFETY: Allocated by the invariant.
        let start = unsafe { bindings::rhv_fpu_memory(self.inner.get(), &mut size) };
        (start.cast(), size as usize)
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
        if self.wipe != Wipe::Never {
            let (start, size) = self.memory();
            // SAFETY: Memory for registers that are in no CPU, and about to be freed.
            unsafe { start.write_bytes(0, size) };
        }
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

#[kunit_tests(rusthv_fpu)]
mod tests {
    use super::*;
    use crate::host::kunit::{free_pages_keep_or_skip, peek};
    use crate::model::arch::addr::{Hpa, PAGE_SIZE};

    const SECRET: u64 = 0xf9b5_ec2e_7f9b_5ec2;

    /// How often physical memory has a secret that was in a guest's registers, when they are gone.
    fn secrets_left(wipe: Wipe) -> Result<usize> {
        let fpu = GuestFpu::new(wipe)?;
        let (start, size) = fpu.memory();
        let words = size / 8;
        let mut pages = KVec::new();
        for index in 0..words {
            // SAFETY: Inside the memory of registers that no CPU has.
            let word = unsafe { start.cast::<u64>().add(index) };
            // SAFETY: As above; it is aligned as XSAVE wants it.
            unsafe { word.write_volatile(SECRET) };
            // SAFETY: The host keeps FPU states in vmalloc memory.
            let hpa = unsafe { bindings::rhv_vmalloc_to_phys(word.cast()) };
            let page = Hpa::new(hpa & !(PAGE_SIZE - 1));
            if pages.last() != Some(&page) {
                pages.push(page, GFP_KERNEL)?;
            }
        }
        drop(fpu);
        Ok(pages
            .iter()
            .flat_map(|&page| peek(page))
            .filter(|&word| word == SECRET)
            .count())
    }

    #[test]
    fn registers_are_wiped() -> Result {
        free_pages_keep_or_skip!();
        // vfree may put off what it does: a secret that is still mapped is found all the same.
        assert!(secrets_left(Wipe::Never)? > 0);
        assert_eq!(secrets_left(Wipe::Zeros)?, 0);
        assert_eq!(secrets_left(Wipe::Random)?, 0);
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The host's time-stamp counter.

/// The counter now.
#[inline]
pub fn now() -> u64 {
    // SAFETY: Every 64-bit CPU has RDTSC, and the kernel may execute it.
    #[allow(unused_unsafe)]
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

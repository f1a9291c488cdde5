// SPDX-License-Identifier: GPL-2.0

//! CPUID of the host.

use crate::model::arch::cpuid::Registers;

/// Executes CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> Registers {
    // SAFETY: Every 64-bit CPU has the instruction; it changes its outputs only.
    #[allow(unused_unsafe)]
    let result = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    Registers {
        eax: result.eax,
        ebx: result.ebx,
        ecx: result.ecx,
        edx: result.edx,
    }
}

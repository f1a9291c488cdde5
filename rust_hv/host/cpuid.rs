// SPDX-License-Identifier: GPL-2.0

//! CPUID of the host.

use super::bindings;
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

/// The registers of a leaf, without features that the host kernel has switched off. Registers that
/// it does not keep are as the CPU has them.
pub fn host_features(leaf: u32) -> Registers {
    let cpu = cpuid(leaf, 0);
    // SAFETY: No preconditions.
    let kernel = |register| unsafe { bindings::rhv_kernel_features(leaf, register) };
    Registers {
        eax: cpu.eax & kernel(0),
        ebx: cpu.ebx & kernel(1),
        ecx: cpu.ecx & kernel(2),
        edx: cpu.edx & kernel(3),
    }
}

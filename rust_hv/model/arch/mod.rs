// SPDX-License-Identifier: GPL-2.0

//! x86 facts: addresses, registers, bits, vectors, MSR and CPUID numbers.

pub mod addr;
mod bits;
pub mod cpuid;
pub mod exception;
pub mod intercept;
pub mod msr;
pub mod regs;
pub mod segment;

// SPDX-License-Identifier: GPL-2.0

//! What the executor needs to know of a virtual CPU.

use super::types::{Gpr, SegmentName};
use crate::model::arch::regs::Rflags;
use crate::model::arch::segment::Segment;

/// A virtual CPU's registers.
///
/// Reads are infallible: what has to be fetched from the VMCS is fetched, and checked, before the
/// executor runs.
pub trait Cpu {
    /// All 64 bits of a general-purpose register.
    fn gpr(&self, register: Gpr) -> u64;
    /// Replaces all 64 bits of a general-purpose register.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// RFLAGS.
    fn rflags(&self) -> Rflags;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: Rflags);
    /// A segment register with its hidden part.
    fn segment(&self, name: SegmentName) -> Segment;
    /// True in protected mode (CR0.PE set, RFLAGS.VM clear), where segment types are checked.
    fn is_protected(&self) -> bool;
    /// Width of a canonical linear address: 57 with CR4.LA57, else 48.
    fn linear_bits(&self) -> u32;
    /// True where misaligned accesses fault: CR0.AM and RFLAGS.AC are set and CPL is 3.
    fn is_alignment_checked(&self) -> bool;
}

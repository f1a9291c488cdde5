// SPDX-License-Identifier: GPL-2.0

//! What the executor needs to know of a virtual CPU.

use super::types::{Gpr, SegmentName};

/// Segment attributes, laid out as the VMCS access-rights field: the descriptor's type in bits 3
/// to 0, S in bit 4, DPL, P in bit 7, L in bit 13, D/B in bit 14, G, and "unusable" in bit 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Attributes(u32);

impl Attributes {
    /// Wraps an access-rights value.
    pub const fn new(access_rights: u32) -> Self {
        Self(access_rights)
    }

    const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }

    /// Loaded with something other than a null selector, and present.
    pub const fn is_usable(self) -> bool {
        self.has(1 << 7) && !self.has(1 << 16)
    }

    /// A code segment (else data, or a system segment).
    pub const fn is_code(self) -> bool {
        self.has(1 << 4 | 1 << 3)
    }

    /// Loads through it are allowed.
    pub const fn is_readable(self) -> bool {
        !self.is_code() || self.has(1 << 1)
    }

    /// Stores through it are allowed.
    pub const fn is_writable(self) -> bool {
        !self.is_code() && self.has(1 << 1)
    }

    /// A data segment whose limit is its lowest offset.
    pub const fn is_expand_down(self) -> bool {
        !self.is_code() && self.has(1 << 4 | 1 << 2)
    }

    /// The D/B bit: 32-bit code, a 32-bit stack pointer, or a 4 GiB upper bound.
    pub const fn is_big(self) -> bool {
        self.has(1 << 14)
    }
}

/// The cached part of a segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Linear address of offset 0.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Type and flags.
    pub attributes: Attributes,
}

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
    fn rflags(&self) -> u64;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, rflags: u64);
    /// The cached part of a segment register.
    fn segment(&self, name: SegmentName) -> Segment;
    /// True in protected mode (CR0.PE set, RFLAGS.VM clear), where segment types are checked.
    fn is_protected(&self) -> bool;
    /// Width of a canonical linear address: 57 with CR4.LA57, else 48.
    fn linear_bits(&self) -> u32;
    /// True where misaligned accesses fault: CR0.AM and RFLAGS.AC are set and CPL is 3.
    fn is_alignment_checked(&self) -> bool;
}

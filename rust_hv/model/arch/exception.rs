// SPDX-License-Identifier: GPL-2.0

//! Exceptions and interrupts: vectors and error codes (SDM Vol. 3A, "Interrupt and Exception
//! Handling").

use super::bits::bits;
use super::regs::{Cr0, Rflags};

/// Number of an entry of the interrupt descriptor table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Vector(u8);

impl Vector {
    /// Divide error.
    pub const DE: Self = Self(0);
    /// Debug.
    pub const DB: Self = Self(1);
    /// Non-maskable interrupt.
    pub const NMI: Self = Self(2);
    /// Breakpoint (INT3).
    pub const BP: Self = Self(3);
    /// Overflow (INTO).
    pub const OF: Self = Self(4);
    /// BOUND range exceeded.
    pub const BR: Self = Self(5);
    /// Invalid opcode.
    pub const UD: Self = Self(6);
    /// Device not available.
    pub const NM: Self = Self(7);
    /// Double fault.
    pub const DF: Self = Self(8);
    /// Invalid TSS.
    pub const TS: Self = Self(10);
    /// Segment not present.
    pub const NP: Self = Self(11);
    /// Stack-segment fault.
    pub const SS: Self = Self(12);
    /// General protection.
    pub const GP: Self = Self(13);
    /// Page fault.
    pub const PF: Self = Self(14);
    /// x87 floating-point error.
    pub const MF: Self = Self(16);
    /// Alignment check.
    pub const AC: Self = Self(17);
    /// Machine check.
    pub const MC: Self = Self(18);
    /// SIMD floating-point error.
    pub const XM: Self = Self(19);
    /// Virtualization exception.
    pub const VE: Self = Self(20);
    /// Control protection.
    pub const CP: Self = Self(21);

    /// Wraps a number.
    #[inline]
    pub const fn new(raw: u8) -> Self {
        Self(raw)
    }

    /// The number.
    #[inline]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// True for the vectors that the architecture keeps for exceptions.
    #[inline]
    pub const fn is_exception(self) -> bool {
        self.0 < 32
    }

    /// True when an exception of this vector pushes an error code in protected mode. Real mode
    /// pushes none.
    #[inline]
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }

    /// True for exceptions that make a double fault when they meet another (SDM Vol. 3A, table
    /// "Interrupt and Exception Classes").
    #[inline]
    pub const fn is_contributory(self) -> bool {
        matches!(self.0, 0 | 10..=13 | 21)
    }
}

bits! {
    /// Error code of a page fault (SDM Vol. 3A, "Page-Fault Exceptions").
    pub struct PageFaultError(u32) {
        /// The page is present; its rights or a reserved bit made the fault.
        PRESENT = 1 << 0;
        /// A write.
        WRITE = 1 << 1;
        /// A user-mode access.
        USER = 1 << 2;
        /// A reserved bit is set in an entry.
        RESERVED = 1 << 3;
        /// An instruction fetch.
        FETCH = 1 << 4;
        /// A protection key.
        KEY = 1 << 5;
        /// A shadow-stack access.
        SHADOW_STACK = 1 << 6;
    }
}

/// True when #AC is for the guest: its user programs are not to make unaligned accesses (SDM Vol. 3A,
/// "Alignment Check Exception"). Otherwise the CPU has raised it for a split lock.
pub fn is_alignment_check(cpl: u8, cr0: Cr0, rflags: Rflags) -> bool {
    cpl == 3 && cr0.contains(Cr0::AM) && rflags.contains(Rflags::AC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_checked_for_users_who_want_it() {
        let (am, ac) = (Cr0::AM | Cr0::PE, Rflags::AC | Rflags::FIXED);
        assert!(is_alignment_check(3, am, ac));
        assert!(!is_alignment_check(0, am, ac));
        assert!(!is_alignment_check(3, Cr0::PE, ac));
        assert!(!is_alignment_check(3, am, Rflags::FIXED));
    }
}

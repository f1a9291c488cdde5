// SPDX-License-Identifier: GPL-2.0

//! Small facts that decoder and executor share.

use crate::model::arch::addr::Gva;

/// RFLAGS bits that the executor reads or writes.
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Parity of the low result byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Single-step trap.
    pub const TF: u64 = 1 << 8;
    /// Direction of string instructions: set is downwards.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// Resume: instruction breakpoints are ignored for one instruction.
    pub const RF: u64 = 1 << 16;
    /// The six flags that arithmetic sets.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// How the code segment makes the CPU decode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Real mode, virtual-8086 mode, or a code segment with CS.D clear.
    Bits16,
    /// A code segment with CS.D set, outside 64-bit mode.
    Bits32,
    /// 64-bit mode: EFER.LMA and CS.L set.
    Bits64,
}

impl Mode {
    /// The mode that follows from EFER.LMA, CS.L and CS.D.
    pub const fn new(long_mode: bool, cs_long: bool, cs_default: bool) -> Self {
        if long_mode && cs_long {
            Self::Bits64
        } else if cs_default {
            Self::Bits32
        } else {
            Self::Bits16
        }
    }
}

/// Size of an operand or address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// Size in bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u8 {
        1 << self.log2()
    }

    /// log2 of the size in bytes.
    pub const fn log2(self) -> u8 {
        match self {
            Self::Byte => 0,
            Self::Word => 1,
            Self::Dword => 2,
            Self::Qword => 3,
        }
    }

    /// Size in bits: 8, 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        8 << self.log2()
    }

    /// A value with all bits of this width set.
    pub const fn mask(self) -> u64 {
        u64::MAX >> 64u32.wrapping_sub(self.bits())
    }

    /// The top bit of this width.
    pub const fn sign_bit(self) -> u64 {
        1 << self.bits().wrapping_sub(1)
    }

    /// `value`'s low bits of this width, sign-extended to 64 bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let shift = 64u32.wrapping_sub(self.bits());
        (((value << shift) as i64) >> shift) as u64
    }

    /// `old` after a register write of this width: 32 bits clear the upper half, 8 and 16 keep
    /// what is above.
    pub const fn merge(self, old: u64, value: u64) -> u64 {
        match self {
            Self::Byte | Self::Word => (old & !self.mask()) | (value & self.mask()),
            Self::Dword | Self::Qword => value & self.mask(),
        }
    }
}

/// Number of a general-purpose register, in encoding order (RAX, RCX, RDX, RBX, RSP, …, R15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr(u8);

impl Gpr {
    /// Accumulator.
    pub const RAX: Self = Self(0);
    /// Counter.
    pub const RCX: Self = Self(1);
    /// Data.
    pub const RDX: Self = Self(2);
    /// Base.
    pub const RBX: Self = Self(3);
    /// Stack pointer.
    pub const RSP: Self = Self(4);
    /// Frame pointer.
    pub const RBP: Self = Self(5);
    /// Source index.
    pub const RSI: Self = Self(6);
    /// Destination index.
    pub const RDI: Self = Self(7);

    /// The register with this number; bits above the low four are ignored.
    pub const fn new(number: u8) -> Self {
        Self(number & 15)
    }

    /// The register's number, 0 to 15.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // The six names say all there is to say.
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// What an access needs: it decides the permission that is checked and the page-fault error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or a load whose result will be stored at the same place.
    Write,
}

/// An exception to inject.
///
/// The error code is what protected mode delivers: in real mode exceptions have none, and the
/// injecting side drops it. All of these are faults: the pushed RFLAGS image has RF set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector number.
    pub vector: u8,
    /// Error code, for the vectors that have one.
    pub error_code: Option<u32>,
    /// Faulting linear address, for page faults.
    pub cr2: Option<u64>,
}

impl Exception {
    const fn with_code(vector: u8, code: u32) -> Self {
        Self {
            vector,
            error_code: Some(code),
            cr2: None,
        }
    }

    /// #UD.
    pub const fn invalid_opcode() -> Self {
        Self {
            vector: 6,
            error_code: None,
            cr2: None,
        }
    }

    /// #SS(0).
    pub const fn stack_fault() -> Self {
        Self::with_code(12, 0)
    }

    /// #GP(0).
    pub const fn general_protection() -> Self {
        Self::with_code(13, 0)
    }

    /// #PF at `gva`, with the error code that the walk of the guest's tables gave.
    pub const fn page_fault(gva: Gva, error_code: u32) -> Self {
        Self {
            vector: 14,
            error_code: Some(error_code),
            cr2: Some(gva.raw()),
        }
    }

    /// #AC(0).
    pub const fn alignment_check() -> Self {
        Self::with_code(17, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_merge_like_register_writes() {
        let old = 0x1122_3344_5566_7788;
        assert_eq!(Width::Byte.merge(old, !0), 0x1122_3344_5566_77ff);
        assert_eq!(Width::Word.merge(old, !0), 0x1122_3344_5566_ffff);
        assert_eq!(Width::Dword.merge(old, !0), 0xffff_ffff);
        assert_eq!(Width::Qword.merge(old, 5), 5);
    }

    #[test]
    fn sign_extension_takes_the_top_bit_of_the_width() {
        assert_eq!(Width::Byte.sign_extend(0x180), 0xffff_ffff_ffff_ff80);
        assert_eq!(Width::Word.sign_extend(0x7fff), 0x7fff);
        assert_eq!(Width::Dword.sign_extend(0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(Width::Qword.sign_extend(1 << 63), 1 << 63);
    }

    #[test]
    fn cs_l_counts_only_in_long_mode() {
        assert_eq!(Mode::new(true, true, false), Mode::Bits64);
        assert_eq!(Mode::new(false, true, false), Mode::Bits16);
        assert_eq!(Mode::new(true, false, true), Mode::Bits32);
    }
}

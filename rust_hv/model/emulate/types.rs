// SPDX-License-Identifier: GPL-2.0

//! Small facts that decoder and executor share.

use crate::model::arch::addr::Gva;
use crate::model::arch::exception::{PageFaultError, Vector};

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
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
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
        (self.bytes() as u32).wrapping_mul(8)
    }

    /// A value with all bits of this width set.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => u8::MAX as u64,
            Self::Word => u16::MAX as u64,
            Self::Dword => u32::MAX as u64,
            Self::Qword => u64::MAX,
        }
    }

    /// The top bit of this width.
    pub const fn sign_bit(self) -> u64 {
        self.mask() ^ (self.mask() >> 1)
    }

    /// `value`'s low bits of this width, sign-extended to 64 bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        match self {
            Self::Byte => value as i8 as u64,
            Self::Word => value as i16 as u64,
            Self::Dword => value as i32 as u64,
            Self::Qword => value,
        }
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
    /// Which one.
    pub vector: Vector,
    /// Error code, for the vectors that have one.
    pub error_code: Option<u32>,
    /// Faulting linear address, for page faults.
    pub cr2: Option<Gva>,
}

impl Exception {
    const fn new(vector: Vector, error_code: Option<u32>) -> Self {
        Self {
            vector,
            error_code,
            cr2: None,
        }
    }

    /// #UD.
    pub const fn invalid_opcode() -> Self {
        Self::new(Vector::UD, None)
    }

    /// #SS(0).
    pub const fn stack_fault() -> Self {
        Self::new(Vector::SS, Some(0))
    }

    /// #GP(0).
    pub const fn general_protection() -> Self {
        Self::new(Vector::GP, Some(0))
    }

    /// #PF at `gva`, with the error code that the walk of the guest's tables gave.
    pub const fn page_fault(gva: Gva, error: PageFaultError) -> Self {
        Self {
            vector: Vector::PF,
            error_code: Some(error.raw()),
            cr2: Some(gva),
        }
    }

    /// #AC(0).
    pub const fn alignment_check() -> Self {
        Self::new(Vector::AC, Some(0))
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

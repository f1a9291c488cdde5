// SPDX-License-Identifier: GPL-2.0

//! A decoded instruction.

use super::types::{Exception, Gpr, Mode, SegmentName, Width};

/// Why no instruction came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The bytes end inside the instruction: fetch more and decode again.
    NeedMoreBytes,
    /// Longer than 15 bytes.
    TooLong,
    /// An encoding that every CPU refuses.
    InvalidOpcode,
    /// Not in the set that this decoder knows; it may well be a valid instruction.
    Unknown,
}

impl DecodeError {
    /// The exception that the CPU raises for this, if it does.
    pub const fn exception(self) -> Option<Exception> {
        match self {
            Self::TooLong => Some(Exception::general_protection()),
            Self::InvalidOpcode => Some(Exception::invalid_opcode()),
            Self::NeedMoreBytes | Self::Unknown => None,
        }
    }
}

/// What the instruction does. Encodings that differ only in their operands share a name, and so
/// do MOVSXD ([`Op::Movsx`]) and MOVNTI ([`Op::Mov`]: its caching hint means nothing here).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // Named after their mnemonics.
pub enum Op {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
    Not,
    Neg,
    Inc,
    Dec,
    Mov,
    Movzx,
    Movsx,
    Xchg,
    Xadd,
    Cmpxchg,
    Cmpxchg8b,
    Bt,
    Bts,
    Btr,
    Btc,
    Push,
    Pop,
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
}

impl Op {
    /// True for string instructions, which move RSI or RDI and can be repeated.
    pub const fn is_string(self) -> bool {
        matches!(
            self,
            Self::Movs | Self::Cmps | Self::Stos | Self::Lods | Self::Scas
        )
    }

    /// True for the bit-test family.
    pub const fn is_bit_test(self) -> bool {
        matches!(self, Self::Bt | Self::Bts | Self::Btr | Self::Btc)
    }

    /// True where a LOCK prefix is allowed, given a memory destination.
    pub(super) const fn is_lockable(self) -> bool {
        matches!(
            self,
            Self::Add
                | Self::Or
                | Self::Adc
                | Self::Sbb
                | Self::And
                | Self::Sub
                | Self::Xor
                | Self::Not
                | Self::Neg
                | Self::Inc
                | Self::Dec
                | Self::Xchg
                | Self::Xadd
                | Self::Cmpxchg
                | Self::Cmpxchg8b
                | Self::Bts
                | Self::Btr
                | Self::Btc
        )
    }
}

/// A register operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reg {
    /// The low part of a register, as wide as the operand.
    Low(Gpr),
    /// Bits 15 to 8: AH, CH, DH or BH.
    High(Gpr),
}

/// What an effective address starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// Nothing.
    None,
    /// A register.
    Reg(Gpr),
    /// The address of the next instruction.
    Rip,
}

/// A memory operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mem {
    /// The segment, with the override applied. In 64-bit mode only FS and GS overrides count.
    pub segment: SegmentName,
    /// The base.
    pub base: Base,
    /// The index register.
    pub index: Option<Gpr>,
    /// log2 of the index's factor, 0 to 3.
    pub scale: u8,
    /// The displacement, sign-extended.
    pub disp: i64,
}

/// An operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// The instruction has no operand at this place, or an implied one.
    None,
    /// A register.
    Reg(Reg),
    /// Memory.
    Mem(Mem),
    /// An immediate, sign-extended.
    Imm(i64),
}

/// A repeat prefix on a string instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rep {
    /// F3: REP, and REPE on instructions that compare.
    WhileEqual,
    /// F2: REPNE on instructions that compare, otherwise the same as F3.
    WhileNotEqual,
}

/// A decoded instruction. It says everything that [`execute`](super::execute()) needs, so the bytes
/// can be forgotten, even over an exit to user space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    /// What to do.
    pub op: Op,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// The mode it was decoded in.
    pub mode: Mode,
    /// Operand size.
    pub width: Width,
    /// Size of the source operand: differs from `width` for MOVZX and MOVSX only.
    pub source_width: Width,
    /// Address size; for string instructions also the size of the counter.
    pub address_width: Width,
    /// First operand: the destination, where there is one.
    pub dst: Operand,
    /// Second operand. Of PUSH, the only one.
    pub src: Operand,
    /// Repeat prefix; `None` on everything but string instructions.
    pub rep: Option<Rep>,
    /// LOCK prefix.
    pub lock: bool,
}

impl Insn {
    /// True for an instruction that accesses memory in one place only: at an explicit operand.
    pub fn has_one_memory_operand(&self) -> bool {
        let implied = self.op.is_string() || matches!(self.op, Op::Push | Op::Pop);
        let in_memory = |operand| matches!(operand, Operand::Mem(_));
        !implied && in_memory(self.dst) != in_memory(self.src)
    }
}

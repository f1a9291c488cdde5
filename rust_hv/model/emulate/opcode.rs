// SPDX-License-Identifier: GPL-2.0

//! The opcode table: which operation, with which operands.

use super::insn::{DecodeError, Op};
use super::modrm::ModRm;
use super::prefix::Prefixes;
use super::types::{Mode, Width};

/// Where the operands are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// ModRM.rm, ModRM.reg.
    RmReg,
    /// ModRM.rm, which must be memory, ModRM.reg; 32 bits wide, or 64.
    MemReg,
    /// ModRM.reg, ModRM.rm.
    RegRm,
    /// ModRM.reg, ModRM.rm with a source of this width.
    RegRmFrom(Width),
    /// ModRM.rm, immediate of the operand's width (but never more than 32 bits).
    RmImm,
    /// ModRM.rm, 8-bit immediate.
    RmImm8,
    /// ModRM.rm alone.
    Rm,
    /// ModRM.rm, pushed or popped.
    StackRm,
    /// Accumulator, address in the instruction.
    AccMoffs,
    /// Address in the instruction, accumulator.
    MoffsAcc,
    /// What the string instruction implies.
    String,
}

/// What an opcode without its ModRM byte says.
pub(super) enum Entry {
    /// Everything.
    Plain(Op, Form),
    /// ModRM.reg chooses among these.
    Group(Group),
}

/// Opcodes that share a first byte.
#[derive(Clone, Copy)]
pub(super) enum Group {
    /// 80 to 82, 83: arithmetic with this form of immediate.
    Arithmetic(Form),
    /// 8F.
    Pop,
    /// C6, C7.
    MovImm,
    /// F6, F7.
    Unary,
    /// FE (byte) and FF.
    IncDec,
    /// 0F BA.
    BitTest,
    /// 0F C7.
    Cmpxchg8b,
}

/// An entry, and whether bit 0 of its opcode makes it byte-sized.
type Found = (Entry, bool);

/// Looks an opcode of the one-byte map up.
pub(super) fn one_byte(opcode: u8, prefixes: &Prefixes) -> Result<Found, DecodeError> {
    let byte = opcode & 1 == 0;
    let plain = |op, form| Ok((Entry::Plain(op, form), byte));
    let group = |group| Ok((Entry::Group(group), byte));
    match opcode {
        0x00..=0x3f if opcode & 7 < 2 => plain(arithmetic(opcode >> 3), Form::RmReg),
        0x00..=0x3f if opcode & 7 < 4 => plain(arithmetic(opcode >> 3), Form::RegRm),
        0x63 if prefixes.mode == Mode::Bits64 => {
            // To 16 bits: as wide a load as Intel's. AMD CPUs load 32 bits and drop half.
            let from = match prefixes.operand_width() {
                Width::Word => Width::Word,
                _ => Width::Dword,
            };
            plain(Op::Movsx, Form::RegRmFrom(from))
        }
        0x80 | 0x81 => group(Group::Arithmetic(Form::RmImm)),
        0x82 if prefixes.mode == Mode::Bits64 => Err(DecodeError::InvalidOpcode),
        0x82 => group(Group::Arithmetic(Form::RmImm)),
        0x83 => group(Group::Arithmetic(Form::RmImm8)),
        0x84 | 0x85 => plain(Op::Test, Form::RmReg),
        0x86 | 0x87 => plain(Op::Xchg, Form::RmReg),
        0x88 | 0x89 => plain(Op::Mov, Form::RmReg),
        0x8a | 0x8b => plain(Op::Mov, Form::RegRm),
        0x8f => group(Group::Pop),
        0xa0 | 0xa1 => plain(Op::Mov, Form::AccMoffs),
        0xa2 | 0xa3 => plain(Op::Mov, Form::MoffsAcc),
        0xa4 | 0xa5 => plain(Op::Movs, Form::String),
        0xa6 | 0xa7 => plain(Op::Cmps, Form::String),
        0xaa | 0xab => plain(Op::Stos, Form::String),
        0xac | 0xad => plain(Op::Lods, Form::String),
        0xae | 0xaf => plain(Op::Scas, Form::String),
        0xc6 | 0xc7 => group(Group::MovImm),
        0xf6 | 0xf7 => group(Group::Unary),
        0xfe | 0xff => group(Group::IncDec),
        _ => Err(DecodeError::Unknown),
    }
}

/// Looks an opcode of the 0F map up.
pub(super) fn two_byte(opcode: u8, prefixes: &Prefixes) -> Result<Found, DecodeError> {
    let byte = opcode & 1 == 0;
    let plain = |op, form| Ok((Entry::Plain(op, form), byte));
    let wide = |op, form| Ok((Entry::Plain(op, form), false));
    let from = if byte { Width::Byte } else { Width::Word };
    match opcode {
        0xa3 => wide(Op::Bt, Form::RmReg),
        0xab => wide(Op::Bts, Form::RmReg),
        0xb3 => wide(Op::Btr, Form::RmReg),
        0xbb => wide(Op::Btc, Form::RmReg),
        0xba => Ok((Entry::Group(Group::BitTest), false)),
        0xb0 | 0xb1 => plain(Op::Cmpxchg, Form::RmReg),
        0xb6 | 0xb7 => wide(Op::Movzx, Form::RegRmFrom(from)),
        0xbe | 0xbf => wide(Op::Movsx, Form::RegRmFrom(from)),
        0xc0 | 0xc1 => plain(Op::Xadd, Form::RmReg),
        // MOVNTI. With one of the prefixes that choose among SSE instructions it is none we know.
        0xc3 if !prefixes.operand_override && prefixes.repeat.is_none() => {
            wide(Op::Mov, Form::MemReg)
        }
        0xc7 => Ok((Entry::Group(Group::Cmpxchg8b), false)),
        _ => Err(DecodeError::Unknown),
    }
}

fn arithmetic(number: u8) -> Op {
    match number & 7 {
        0 => Op::Add,
        1 => Op::Or,
        2 => Op::Adc,
        3 => Op::Sbb,
        4 => Op::And,
        5 => Op::Sub,
        6 => Op::Xor,
        _ => Op::Cmp,
    }
}

impl Group {
    /// The member that ModRM names.
    pub(super) fn member(
        self,
        modrm: &ModRm,
        prefixes: &Prefixes,
        byte: bool,
    ) -> Result<(Op, Form), DecodeError> {
        let extension = modrm.extension;
        match self {
            Self::Arithmetic(form) => Ok((arithmetic(extension), form)),
            Self::Pop => match extension {
                0 => Ok((Op::Pop, Form::StackRm)),
                // AMD's XOP prefix takes the place of the others but one.
                4 => Err(DecodeError::InvalidOpcode),
                _ => Err(DecodeError::Unknown),
            },
            Self::MovImm => match extension {
                0 => Ok((Op::Mov, Form::RmImm)),
                // XABORT and XBEGIN.
                7 if !modrm.is_memory() && modrm.rm == 0 => Err(DecodeError::Unknown),
                _ => Err(DecodeError::InvalidOpcode),
            },
            Self::Unary => match extension {
                // 1 is an undocumented twin that CPUs execute.
                0 | 1 => Ok((Op::Test, Form::RmImm)),
                2 => Ok((Op::Not, Form::Rm)),
                3 => Ok((Op::Neg, Form::Rm)),
                _ => Err(DecodeError::Unknown),
            },
            Self::IncDec => match extension {
                0 => Ok((Op::Inc, Form::Rm)),
                1 => Ok((Op::Dec, Form::Rm)),
                _ if byte => Err(DecodeError::InvalidOpcode),
                6 => Ok((Op::Push, Form::StackRm)),
                7 => Err(DecodeError::InvalidOpcode),
                _ => Err(DecodeError::Unknown),
            },
            Self::BitTest => match extension {
                4 => Ok((Op::Bt, Form::RmImm8)),
                5 => Ok((Op::Bts, Form::RmImm8)),
                6 => Ok((Op::Btr, Form::RmImm8)),
                7 => Ok((Op::Btc, Form::RmImm8)),
                _ => Err(DecodeError::InvalidOpcode),
            },
            // With REX.W it is CMPXCHG16B, wider than anything here.
            Self::Cmpxchg8b if extension == 1 && modrm.is_memory() && !prefixes.rex.w() => {
                Ok((Op::Cmpxchg8b, Form::Rm))
            }
            Self::Cmpxchg8b => Err(DecodeError::Unknown),
        }
    }
}

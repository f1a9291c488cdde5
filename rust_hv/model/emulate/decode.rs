// SPDX-License-Identifier: GPL-2.0

//! From bytes to an [`Insn`].

use super::insn::{Base, DecodeError, Insn, Mem, Op, Operand, Reg};
use super::modrm::ModRm;
use super::opcode::{self, Entry, Form};
use super::prefix::{Cursor, Prefixes};
use super::types::{Gpr, Mode, SegmentName, Width};

/// Decodes the instruction at the start of `bytes`.
///
/// `bytes` may hold more than the instruction; only the first [`MAX_LEN`](super::MAX_LEN) count.
/// [`DecodeError::NeedMoreBytes`] is never returned for a slice of that length.
pub fn decode(bytes: &[u8], mode: Mode) -> Result<Insn, DecodeError> {
    let mut code = Cursor::new(bytes);
    let (prefixes, first) = Prefixes::read(&mut code, mode)?;
    let (entry, byte) = if first == 0x0f {
        opcode::two_byte(code.byte()?, &prefixes)?
    } else {
        opcode::one_byte(first, &prefixes)?
    };
    Decoder { prefixes, byte }.finish(code, entry)
}

/// Length in bytes of the instruction at the start of `bytes`, for the instructions that
/// [`decode`] knows.
pub fn length(bytes: &[u8], mode: Mode) -> Result<usize, DecodeError> {
    Ok(usize::from(decode(bytes, mode)?.len))
}

struct Decoder {
    prefixes: Prefixes,
    byte: bool,
}

impl Decoder {
    fn finish(&self, mut code: Cursor<'_>, entry: Entry) -> Result<Insn, DecodeError> {
        let (op, form, modrm) = match entry {
            Entry::Plain(op, form) => match form {
                Form::String | Form::AccMoffs | Form::MoffsAcc => (op, form, None),
                _ => (op, form, Some(ModRm::read(&mut code, &self.prefixes)?)),
            },
            Entry::Group(group) => {
                let modrm = ModRm::read(&mut code, &self.prefixes)?;
                let (op, form) = group.member(&modrm, &self.prefixes, self.byte)?;
                (op, form, Some(modrm))
            }
        };
        let width = self.width(op, form);
        let source_width = match form {
            Form::RegRmFrom(from) => from,
            _ => width,
        };
        let (dst, src) = match modrm {
            Some(modrm) => self.operands(&mut code, op, form, &modrm, width, source_width)?,
            None if op.is_string() => self.string(op),
            None => self.moffs(&mut code, form)?,
        };
        if self.prefixes.lock && !(op.is_lockable() && matches!(dst, Operand::Mem(_))) {
            return Err(DecodeError::InvalidOpcode);
        }
        Ok(Insn {
            op,
            len: code.len(),
            mode: self.prefixes.mode,
            width,
            source_width,
            address_width: self.prefixes.address_width(),
            dst,
            src,
            rep: self.prefixes.repeat.filter(|_| op.is_string()),
            lock: self.prefixes.lock,
        })
    }

    fn width(&self, op: Op, form: Form) -> Width {
        match form {
            _ if self.byte => Width::Byte,
            _ if op == Op::Cmpxchg8b => Width::Qword,
            Form::StackRm => self.prefixes.stack_width(),
            // MOVNTI has no 16-bit form, in 16-bit mode neither.
            Form::MemReg => match self.prefixes.operand_width() {
                Width::Qword => Width::Qword,
                _ => Width::Dword,
            },
            _ => self.prefixes.operand_width(),
        }
    }

    fn operands(
        &self,
        code: &mut Cursor<'_>,
        op: Op,
        form: Form,
        modrm: &ModRm,
        width: Width,
        source_width: Width,
    ) -> Result<(Operand, Operand), DecodeError> {
        let prefixes = &self.prefixes;
        let rm = modrm.rm(prefixes, source_width);
        Ok(match form {
            Form::RegRm | Form::RegRmFrom(_) => (modrm.reg(prefixes, width), rm),
            Form::RmImm => {
                let immediate = match width {
                    Width::Qword => Width::Dword,
                    width => width,
                };
                (rm, Operand::Imm(code.signed(immediate)?))
            }
            Form::RmImm8 => (rm, Operand::Imm(code.signed(Width::Byte)?)),
            Form::Rm => (rm, Operand::None),
            Form::StackRm if op == Op::Push => (Operand::None, rm),
            Form::StackRm => (rm, Operand::None),
            Form::MemReg if !modrm.is_memory() => return Err(DecodeError::InvalidOpcode),
            Form::RmReg | Form::MemReg | Form::AccMoffs | Form::MoffsAcc | Form::String => {
                (rm, modrm.reg(prefixes, width))
            }
        })
    }

    fn moffs(&self, code: &mut Cursor<'_>, form: Form) -> Result<(Operand, Operand), DecodeError> {
        let mem = Operand::Mem(Mem {
            segment: self.prefixes.segment.unwrap_or(SegmentName::Ds),
            base: Base::None,
            index: None,
            scale: 0,
            disp: code.signed(self.prefixes.address_width())?,
        });
        let acc = Operand::Reg(Reg::Low(Gpr::RAX));
        Ok(match form {
            Form::MoffsAcc => (mem, acc),
            _ => (acc, mem),
        })
    }

    fn string(&self, op: Op) -> (Operand, Operand) {
        let at = |segment, index| {
            Operand::Mem(Mem {
                segment,
                base: Base::Reg(index),
                index: None,
                scale: 0,
                disp: 0,
            })
        };
        let acc = Operand::Reg(Reg::Low(Gpr::RAX));
        let source = at(self.prefixes.segment.unwrap_or(SegmentName::Ds), Gpr::RSI);
        // No prefix moves the destination out of ES.
        let destination = at(SegmentName::Es, Gpr::RDI);
        match op {
            Op::Stos => (destination, acc),
            Op::Lods => (acc, source),
            Op::Scas => (acc, destination),
            Op::Cmps => (source, destination),
            _ => (destination, source),
        }
    }
}

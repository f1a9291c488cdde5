// SPDX-License-Identifier: GPL-2.0

//! String instructions, one iteration at a time.

use super::alu;
use super::cpu::Cpu;
use super::insn::{Base, Insn, Op, Operand, Rep};
use super::memory::Memory;
use super::transaction::{Halt, Transaction};
use super::types::{Access, Gpr};
use crate::model::arch::regs::Rflags;

/// One iteration. Tells if it was the last one.
pub(super) fn iterate<M: Cpu + Memory>(
    t: &mut Transaction<'_, M>,
    insn: &Insn,
) -> Result<bool, Halt<M::Error>> {
    let count = t.gpr(Gpr::RCX) & insn.address_width.mask();
    if insn.rep.is_some() && count == 0 {
        return Ok(true);
    }
    if matches!(insn.op, Op::Cmps | Op::Scas) {
        compare(t, insn)?;
    } else {
        copy(t, insn)?;
    }
    advance(t, insn.dst, insn);
    advance(t, insn.src, insn);
    let Some(rep) = insn.rep else {
        return Ok(true);
    };
    t.set_gpr(Gpr::RCX, insn.address_width, count.wrapping_sub(1));
    Ok(count == 1 || is_decided(t, insn, rep))
}

fn copy<M: Cpu + Memory>(t: &mut Transaction<'_, M>, insn: &Insn) -> Result<(), Halt<M::Error>> {
    let src = t.locate(insn, insn.src, insn.width, Access::Read, 0)?;
    let dst = t.locate(insn, insn.dst, insn.width, Access::Write, 0)?;
    let value = t.load(src)?;
    t.store(dst, value, None);
    Ok(())
}

fn compare<M: Cpu + Memory>(t: &mut Transaction<'_, M>, insn: &Insn) -> Result<(), Halt<M::Error>> {
    let left = t.locate(insn, insn.dst, insn.width, Access::Read, 0)?;
    let right = t.locate(insn, insn.src, insn.width, Access::Read, 0)?;
    let a = t.load(left)?;
    let b = t.load(right)?;
    let computed = alu::compute(insn.op, insn.width, a, b, t.rflags());
    t.set_rflags(computed.rflags);
    Ok(())
}

/// Moves the index register of a memory operand to the next element.
fn advance<M: Cpu + Memory>(t: &mut Transaction<'_, M>, operand: Operand, insn: &Insn) {
    let Operand::Mem(mem) = operand else { return };
    let Base::Reg(register) = mem.base else {
        return;
    };
    let size = u64::from(insn.width.bytes());
    let index = t.gpr(register);
    let next = if t.rflags().contains(Rflags::DF) {
        index.wrapping_sub(size)
    } else {
        index.wrapping_add(size)
    };
    t.set_gpr(register, insn.address_width, next);
}

/// True if a comparison ends the repetition early.
fn is_decided<M: Cpu + Memory>(t: &Transaction<'_, M>, insn: &Insn, rep: Rep) -> bool {
    let equal = t.rflags().contains(Rflags::ZF);
    matches!(insn.op, Op::Cmps | Op::Scas)
        && match rep {
            Rep::WhileEqual => !equal,
            Rep::WhileNotEqual => equal,
        }
}

// SPDX-License-Identifier: GPL-2.0

//! MOV between a register and memory: most of what drivers do to devices. It reads one place and
//! writes another, so it needs no transaction.

use super::insn::{Base, Insn, Mem, Op, Operand, Reg};
use super::types::{Gpr, SegmentName, Width};

/// What moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Memory to a register, `signed` or with zeros in front.
    Load { to: Gpr, width: Width, signed: bool },
    /// A register to memory.
    Store(Gpr),
    /// An immediate to memory.
    StoreValue(i64),
}

/// A MOV between memory and a register that is neither the stack pointer nor one of AH, CH, DH and
/// BH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlainMove {
    kind: Kind,
    mem: Mem,
    /// Bytes in memory.
    width: Width,
    address_width: Width,
    len: u8,
}

impl Insn {
    /// The instruction as a plain move, if it is one.
    pub fn plain_move(&self) -> Option<PlainMove> {
        let is_move = matches!(self.op, Op::Mov | Op::Movzx | Op::Movsx);
        let (kind, mem) = match (self.dst, self.src) {
            (Operand::Reg(Reg::Low(to)), Operand::Mem(mem)) => {
                let (width, signed) = (self.width, self.op == Op::Movsx);
                (Kind::Load { to, width, signed }, mem)
            }
            (Operand::Mem(mem), Operand::Reg(Reg::Low(from))) => (Kind::Store(from), mem),
            (Operand::Mem(mem), Operand::Imm(value)) => (Kind::StoreValue(value), mem),
            _ => return None,
        };
        let own = match kind {
            Kind::Load { to, .. } => Some(to),
            Kind::Store(from) => Some(from),
            Kind::StoreValue(_) => None,
        };
        let stack = Some(Gpr::RSP);
        let uses_stack = mem.base == Base::Reg(Gpr::RSP) || mem.index == stack || own == stack;
        (is_move && !uses_stack).then_some(PlainMove {
            kind,
            mem,
            width: self.source_width,
            address_width: self.address_width,
            len: self.len,
        })
    }
}

impl PlainMove {
    /// Length of the instruction.
    #[inline]
    pub const fn insn_len(&self) -> u8 {
        self.len
    }

    /// Bytes of memory that it accesses: 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(&self) -> u8 {
        self.width.bytes()
    }

    /// True when it writes memory.
    #[inline]
    pub const fn is_store(&self) -> bool {
        !matches!(self.kind, Kind::Load { .. })
    }

    /// Segment of the memory operand.
    #[inline]
    pub const fn segment(&self) -> SegmentName {
        self.mem.segment
    }

    /// Offset of the memory operand in its segment, for the instruction at `rip`.
    #[inline]
    pub fn offset(&self, gprs: &[u64; 16], rip: u64) -> u64 {
        let next = rip.wrapping_add(u64::from(self.len));
        self.mem
            .offset(|register| read(gprs, register), next, self.address_width)
    }

    /// What a store writes, in its low bytes.
    #[inline]
    pub fn stored(&self, gprs: &[u64; 16]) -> u64 {
        let value = match self.kind {
            Kind::Load { .. } => 0,
            Kind::Store(from) => read(gprs, from),
            Kind::StoreValue(value) => value as u64,
        };
        value & self.width.mask()
    }

    /// Puts what a load has read, in the low bytes of `data`, into its register.
    #[inline]
    pub fn finish_load(&self, gprs: &mut [u64; 16], data: u64) {
        let Kind::Load { to, width, signed } = self.kind else {
            return;
        };
        let value = match signed {
            true => self.width.sign_extend(data & self.width.mask()),
            false => data & self.width.mask(),
        };
        if let Some(register) = gprs.get_mut(usize::from(to.number())) {
            *register = width.merge(*register, value);
        }
    }
}

#[inline]
fn read(gprs: &[u64; 16], register: Gpr) -> u64 {
    let value = gprs.get(usize::from(register.number()));
    value.copied().unwrap_or(0)
}

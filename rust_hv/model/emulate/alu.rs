// SPDX-License-Identifier: GPL-2.0

//! Arithmetic with flags, as the CPU does it.

use super::insn::Op;
use super::types::Width;
use crate::model::arch::regs::Rflags;

const CF: Rflags = Rflags::CF;
const PF: Rflags = Rflags::PF;
const AF: Rflags = Rflags::AF;
const ZF: Rflags = Rflags::ZF;
const SF: Rflags = Rflags::SF;
const OF: Rflags = Rflags::OF;
/// The flags that arithmetic sets.
const STATUS: Rflags = CF.union(PF).union(AF).union(ZF).union(SF).union(OF);

/// A result and the RFLAGS that come with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Computed {
    /// The result, within the operand width. Of comparisons, what they throw away.
    pub(super) value: u64,
    /// The new RFLAGS.
    pub(super) rflags: Rflags,
}

/// SF, ZF and PF of a result.
fn result_flags(width: Width, value: u64) -> Rflags {
    let mut flags = Rflags::NONE;
    if value & width.mask() == 0 {
        flags |= ZF;
    }
    if value & width.sign_bit() != 0 {
        flags |= SF;
    }
    // Parity covers the low byte at every width.
    if (value as u8).count_ones() % 2 == 0 {
        flags |= PF;
    }
    flags
}

/// AF of a sum or difference: what came into bit 4 besides the operands' own bits.
fn half_carry(a: u64, b: u64, result: u64) -> Rflags {
    Rflags::from_raw(a ^ b ^ result).intersection(AF)
}

fn add(width: Width, a: u64, b: u64, carry: bool) -> (u64, Rflags) {
    let sum = a.wrapping_add(b).wrapping_add(u64::from(carry)) & width.mask();
    let mut flags = result_flags(width, sum) | half_carry(a, b, sum);
    if sum < a || (carry && sum == a) {
        flags |= CF;
    }
    if (a ^ sum) & (b ^ sum) & width.sign_bit() != 0 {
        flags |= OF;
    }
    (sum, flags)
}

fn subtract(width: Width, a: u64, b: u64, borrow: bool) -> (u64, Rflags) {
    let difference = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & width.mask();
    let mut flags = result_flags(width, difference) | half_carry(a, b, difference);
    if a < b || (borrow && a == b) {
        flags |= CF;
    }
    if (a ^ b) & (a ^ difference) & width.sign_bit() != 0 {
        flags |= OF;
    }
    (difference, flags)
}

/// Computes `op` for the operations of one or two operands that set the status flags, and for
/// NOT, which sets none. Any other operation returns `a` and leaves the flags alone.
pub(super) fn compute(op: Op, width: Width, a: u64, b: u64, rflags: Rflags) -> Computed {
    let a = a & width.mask();
    let b = b & width.mask();
    let carry = rflags.contains(CF);
    // AF is documented as undefined after logic; CPUs clear it.
    let logic = |value| (value, result_flags(width, value));
    let (value, flags) = match op {
        Op::Add | Op::Xadd => add(width, a, b, false),
        Op::Adc => add(width, a, b, carry),
        Op::Sub | Op::Cmp | Op::Cmps | Op::Scas | Op::Cmpxchg => subtract(width, a, b, false),
        Op::Sbb => subtract(width, a, b, carry),
        Op::Neg => subtract(width, 0, a, false),
        Op::Inc | Op::Dec => {
            let (value, flags) = match op {
                Op::Inc => add(width, a, 1, false),
                _ => subtract(width, a, 1, false),
            };
            // They leave carry alone, so that loops can count between ADCs.
            (value, flags.with(CF, carry))
        }
        Op::And | Op::Test => logic(a & b),
        Op::Or => logic(a | b),
        Op::Xor => logic(a ^ b),
        Op::Not => {
            let value = !a & width.mask();
            return Computed { value, rflags };
        }
        _ => return Computed { value: a, rflags },
    };
    Computed {
        value,
        rflags: rflags.without(STATUS) | flags,
    }
}

/// Computes BT, BTS, BTR or BTC: tests bit `index` of `a`, modulo the width, then changes it.
pub(super) fn bit_test(op: Op, width: Width, a: u64, index: u64, rflags: Rflags) -> Computed {
    let bit = 1u64.wrapping_shl((index as u32) & width.bits().wrapping_sub(1));
    let value = match op {
        Op::Bts => a | bit,
        Op::Btr => a & !bit,
        Op::Btc => a ^ bit,
        _ => a,
    };
    // ZF is documented to stay; the other four are "undefined", and stay on every CPU we know.
    Computed {
        value,
        rflags: rflags.with(CF, a & bit != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Rflags = Rflags::NONE;

    fn flags(op: Op, width: Width, a: u64, b: u64, rflags: Rflags) -> (u64, Rflags) {
        let computed = compute(op, width, a, b, rflags);
        (computed.value, computed.rflags)
    }

    #[test]
    fn carry_and_overflow_are_told_apart() {
        let byte = Width::Byte;
        assert_eq!(flags(Op::Add, byte, 0xff, 1, NONE), (0, CF | ZF | PF | AF));
        assert_eq!(flags(Op::Add, byte, 0x7f, 1, NONE), (0x80, OF | SF | AF));
        assert_eq!(flags(Op::Sub, byte, 0x80, 1, NONE), (0x7f, OF | AF));
        assert_eq!(flags(Op::Sub, byte, 0, 1, NONE), (0xff, CF | SF | AF | PF));
    }

    #[test]
    fn carry_in_counts_at_the_edges() {
        let qword = Width::Qword;
        assert_eq!(flags(Op::Adc, qword, !0, !0, CF), (!0, CF | SF | PF | AF));
        assert_eq!(flags(Op::Sbb, qword, 5, 5, CF), (!0, CF | SF | PF | AF));
        assert_eq!(flags(Op::Sbb, qword, 0, !0, CF), (0, CF | ZF | PF | AF));
    }

    #[test]
    fn inc_and_dec_keep_carry_and_not_keeps_all() {
        let word = Width::Word;
        assert_eq!(flags(Op::Inc, word, 0xffff, 0, CF), (0, CF | ZF | PF | AF));
        assert_eq!(flags(Op::Inc, word, 0xffff, 0, NONE), (0, ZF | PF | AF));
        assert_eq!(flags(Op::Dec, word, 1, 0, NONE), (0, ZF | PF));
        assert_eq!(flags(Op::Not, word, 0xff, 0, STATUS), (0xff00, STATUS));
    }

    #[test]
    fn bit_index_wraps_at_the_width() {
        let computed = bit_test(Op::Bts, Width::Word, 0, 17, ZF);
        assert_eq!((computed.value, computed.rflags), (2, ZF));
        let computed = bit_test(Op::Btr, Width::Qword, !0, 63, NONE);
        assert_eq!((computed.value, computed.rflags), (!0 >> 1, CF));
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Effective and linear addresses.

use super::cpu::Cpu;
use super::insn::{Base, Mem};
use super::types::{Access, Exception, Gpr, Mode, SegmentName, Width};
use crate::model::arch::addr::Gva;
use crate::model::arch::segment::Segment;

impl Mem {
    /// Offset of the operand in its segment. `next` is the address of the next instruction.
    pub(super) fn offset(&self, gpr: impl Fn(Gpr) -> u64, next: u64, address_width: Width) -> u64 {
        let base = match self.base {
            Base::None => 0,
            Base::Reg(register) => gpr(register),
            Base::Rip => next,
        };
        let index = match self.index {
            Some(register) => gpr(register).wrapping_shl(u32::from(self.scale)),
            None => 0,
        };
        base.wrapping_add(index).wrapping_add(self.disp as u64) & address_width.mask()
    }
}

/// Linear address of `width` bytes at `offset` in a segment, or the exception that the segment or
/// a non-canonical address raises.
///
/// `offset` must already be cut to the address size.
pub(super) fn linear<C: Cpu>(
    cpu: &C,
    mode: Mode,
    name: SegmentName,
    offset: u64,
    width: Width,
    access: Access,
) -> Result<Gva, Exception> {
    let fault = match name {
        SegmentName::Ss => Exception::stack_fault(),
        _ => Exception::general_protection(),
    };
    let last = u64::from(width.bytes()).wrapping_sub(1);
    if mode == Mode::Bits64 {
        let base = match name {
            SegmentName::Fs | SegmentName::Gs => cpu.segment(name).base,
            _ => 0,
        };
        let address = base.wrapping_add(offset);
        let bits = cpu.linear_bits();
        if !is_canonical(address, bits) || !is_canonical(address.wrapping_add(last), bits) {
            return Err(fault);
        }
        return Ok(Gva::new(address));
    }
    let segment = cpu.segment(name);
    if cpu.is_protected() {
        if segment.rights.unusable() || !segment.rights.present() {
            return Err(fault);
        }
        let allowed = match access {
            Access::Read => segment.rights.is_readable(),
            Access::Write => segment.rights.is_writable(),
        };
        if !allowed {
            return Err(Exception::general_protection());
        }
    }
    if !is_within_limit(&segment, offset, offset.wrapping_add(last)) {
        return Err(fault);
    }
    Ok(Gva::new(
        segment.base.wrapping_add(offset) & Width::Dword.mask(),
    ))
}

/// Bytes from an offset in a segment on that are in the segment, before offsets of a width wrap.
pub(super) fn room<C: Cpu>(
    cpu: &C,
    mode: Mode,
    name: SegmentName,
    offset: u64,
    width: Width,
) -> u64 {
    let last = match mode {
        Mode::Bits64 => width.mask(),
        Mode::Bits16 | Mode::Bits32 => width.mask().min(last_offset(&cpu.segment(name))),
    };
    last.checked_sub(offset)
        .map_or(0, |behind| behind.saturating_add(1))
}

/// The linear address `bytes` after another: outside 64-bit mode addresses wrap at 4 GiB.
pub(super) fn linear_add(mode: Mode, gva: Gva, bytes: u64) -> Gva {
    let next = gva.wrapping_add(bytes);
    match mode {
        Mode::Bits64 => next,
        Mode::Bits16 | Mode::Bits32 => Gva::new(next.raw() & Width::Dword.mask()),
    }
}

/// True if all bits from `bits - 1` up are equal.
pub(super) const fn is_canonical(address: u64, bits: u32) -> bool {
    let upper = (address as i64).wrapping_shr(bits.wrapping_sub(1));
    upper == 0 || upper == -1
}

/// The highest offset in a segment.
fn last_offset(segment: &Segment) -> u64 {
    match (segment.rights.expands_down(), segment.rights.default_big()) {
        (false, _) => segment.limit.into(),
        (true, true) => Width::Dword.mask(),
        (true, false) => Width::Word.mask(),
    }
}

fn is_within_limit(segment: &Segment, first: u64, last: u64) -> bool {
    let limit = u64::from(segment.limit);
    if segment.rights.expands_down() {
        return first > limit && last <= last_offset(segment);
    }
    // With a 4 GiB limit there is nothing outside: an operand at the very end wraps.
    last <= limit || segment.limit == u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arch::segment::AccessRights;

    fn segment(limit: u32, rights: u32) -> Segment {
        Segment {
            base: 0,
            limit,
            selector: 8,
            rights: AccessRights::from_raw(rights),
        }
    }

    #[test]
    fn canonical_addresses_at_the_edges() {
        for (bits, edge) in [(48, 1 << 47), (57, 1 << 56)] {
            assert!(is_canonical(edge - 1, bits));
            assert!(!is_canonical(edge, bits));
            assert!(!is_canonical(0u64.wrapping_sub(edge) - 1, bits));
            assert!(is_canonical(0u64.wrapping_sub(edge), bits));
        }
    }

    #[test]
    fn limits_at_the_edges() {
        let up = segment(0xfff, 0x93);
        assert!(is_within_limit(&up, 0xffc, 0xfff));
        assert!(!is_within_limit(&up, 0xffd, 0x1000));
        let all = segment(u32::MAX, 0x4093);
        assert!(is_within_limit(&all, 0xffff_ffff, 0x1_0000_0000));
        let down16 = segment(0xfff, 0x97);
        assert!(!is_within_limit(&down16, 0xfff, 0x1000));
        assert!(is_within_limit(&down16, 0x1000, 0x1003));
        assert!(is_within_limit(&down16, 0xfffe, 0xffff));
        assert!(!is_within_limit(&down16, 0xffff, 0x1_0000));
        let down32 = segment(0xfff, 0x4097);
        assert!(is_within_limit(&down32, 0xffff_fffc, 0xffff_ffff));
        assert!(!is_within_limit(&down32, 0xffff_fffd, 0x1_0000_0000));
    }
}
